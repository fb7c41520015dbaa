"""A recipe as data: every number that decides how a network is trained. No torch here."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from search_spaces.errors import UserError, closest
from search_spaces.serialisation import from_versioned, read_json, require, require_finite, to_plain, write_json

SCHEMA = 1
MAX_EPOCHS = 100_000
MAX_BATCH = 1 << 20

Optimizer = Literal["sgd", "rmsprop"]
Schedule = Literal["step", "cosine", "exponential", "linear", "constant"]
OPTIMIZERS: tuple[Optimizer, ...] = ("sgd", "rmsprop")
SCHEDULES: tuple[Schedule, ...] = ("step", "cosine", "exponential", "linear", "constant")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How a network is trained; checked on construction, round-trips to JSON.

    `dropout` and `stochastic_depth` belong to the network: pass them to `search_spaces.network.build`. All the rest is
    what `recipes.trainer.fit` does. Schedules are functions of progress in [0, 1], see `recipes.schedules`.

    Raises:
        UserError: a field out of its range; the message names the field, its value and what is allowed.
    """

    name: str
    epochs: int  # the horizon of every schedule
    batch_size: int  # images a step, of one machine; its processes share them, see `recipes.distributed`
    lr: float  # learning rate at its highest, for this batch size; n machines make it n times as large (thesis 4.6)
    optimizer: Optimizer = "sgd"
    momentum: float = 0.9
    nesterov: bool = False  # SGD only
    rmsprop_alpha: float = 0.9  # decay of the mean square; this and eps as torchvision trained its MobileNetV3
    rmsprop_eps: float = 0.0316  # added to the root, so sqrt of the 1e-3 that TensorFlow adds under it
    weight_decay: float = 0.0  # L2 coefficient
    weight_decay_norm: bool = False  # true: batch norms and biases decay as well
    schedule: Schedule = "cosine"
    decay_per_epoch: float = 0.963  # "exponential": factor an epoch, stated for a run of `decay_epochs` (thesis 4.4)
    decay_epochs: float = 150.0  # a run of another length ends at the same rate
    milestones: tuple[float, ...] = (0.5, 0.75)  # "step": points of progress in (0, 1), ascending
    step_factor: float = 0.1  # "step": factor at each milestone
    warmup_epochs: float = 0.0  # linear rise of the rate, may be a fraction
    label_smoothing: float = 0.0
    mixup: float = 0.0  # m of the mixing weight drawn from Beta(m, m); 0: off
    dropout: float = 0.0
    stochastic_depth: float = 0.0
    ema: bool = False  # report and keep the exponential moving average of the weights
    ema_decay: float = 0.999
    clip_grad_norm: float | None = None
    amp: bool = False  # float16 autocast; used on CUDA only
    augment: bool = False  # random crops and flips, as the source defines them
    auto_augment: bool = False  # AutoAugment's policy besides (arXiv:1805.09501)
    distillation: float = 0.0  # weight of the teacher's probabilities in the loss; the labels' is 1 - it
    distillation_temperature: float = 1.0  # softens both logits (arXiv:1503.02531)
    sync_batch_norm: bool = False  # statistics over all processes; CUDA only, elsewhere each process has its own
    early_stop_epoch: int | None = None  # training ends after so many epochs, schedules keep the horizon

    def __post_init__(self) -> None:
        require(isinstance(self.name, str) and bool(self.name), f"name must be a non-empty text, got {self.name!r}")
        self._check_types()
        self._choice("optimizer", OPTIMIZERS)
        self._choice("schedule", SCHEDULES)
        self._inside("epochs", 1, MAX_EPOCHS)
        self._inside("batch_size", 2, MAX_BATCH)
        self._inside("decay_epochs", 1, MAX_EPOCHS)
        for name in ("weight_decay", "label_smoothing", "momentum", "dropout", "stochastic_depth", "ema_decay"):
            self._inside(name, 0, 1, open_high=True)
        self._inside("mixup", 0, 100)
        self._inside("rmsprop_alpha", 0, 1, open_high=True)
        for name in ("decay_per_epoch", "step_factor"):
            self._inside(name, 0, 1, open_low=True)
        self._inside("warmup_epochs", 0, self.epochs, open_high=True)
        self._inside("distillation", 0, 1)
        require(self.augment or not self.auto_augment, "auto_augment true needs augment true")
        for name in ("lr", "rmsprop_eps", "clip_grad_norm", "distillation_temperature"):
            if getattr(self, name) is not None:
                self._inside(name, 0, 1e6, open_low=True)
        if self.early_stop_epoch is not None:
            self._inside("early_stop_epoch", 1, self.epochs)
        require(
            all(0 < low < 1 for low in self.milestones) and list(self.milestones) == sorted(set(self.milestones)),
            f"milestones must ascend inside (0, 1), got {self.milestones}",
        )
        require(
            not self.nesterov or (self.optimizer == "sgd" and self.momentum > 0),
            f"nesterov needs optimizer 'sgd' and momentum > 0, got {self.optimizer!r} and {self.momentum}",
        )

    def _check_types(self) -> None:
        """Refuse what a Python caller without a type checker may pass; JSON is checked by `from_plain` already."""
        for field in dataclasses.fields(self):
            value, kind = getattr(self, field.name), field.type
            if kind is bool:
                require(type(value) is bool, f"{field.name} must be true or false, got {value!r}")
            elif kind is int or (field.name == "early_stop_epoch" and value is not None):
                require(type(value) is int, f"{field.name} must be a plain whole number, got {value!r}")
            elif kind is float or (field.name == "clip_grad_norm" and value is not None):
                require(type(value) in (int, float), f"{field.name} must be a plain number, got {value!r}")
                require_finite(**{field.name: value})
        require(
            isinstance(self.milestones, tuple) and all(type(value) in (int, float) for value in self.milestones),
            f"milestones must be a tuple of numbers, got {self.milestones!r}",
        )

    def _choice(self, name: str, allowed: tuple[str, ...]) -> None:
        value = getattr(self, name)
        require(value in allowed, f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")

    def _inside(self, name: str, low: float, high: float, *, open_low: bool = False, open_high: bool = False) -> None:
        value = getattr(self, name)
        inside = (low < value if open_low else low <= value) and (value < high if open_high else value <= high)
        interval = f"{'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"
        require(inside, f"{name} must be in {interval}, got {value}")

    def replace(self, **changes: Any) -> "Recipe":
        """The recipe with some fields changed.

        Raises:
            UserError: an unknown field, or a value out of its range.
        """
        names = [field.name for field in dataclasses.fields(self)]
        for key in changes:
            if key not in names:
                raise UserError(f"recipe: unknown key {key!r}{closest(key, names)}")
        return dataclasses.replace(self, **changes)

    def with_epochs(self, epochs: int) -> "Recipe":
        """The same recipe over another number of epochs: the warm-up and an early stop keep their share of the run."""
        require(type(epochs) is int and epochs >= 1, f"epochs must be a whole number >= 1, got {epochs!r}")
        stop = None if self.early_stop_epoch is None else max(1, round(self.early_stop_epoch * epochs / self.epochs))
        return self.replace(
            epochs=epochs, warmup_epochs=round(self.warmup_epochs * epochs / self.epochs, 9), early_stop_epoch=stop
        )

    @property
    def last_epoch(self) -> int:
        """Number of epochs that are trained: `early_stop_epoch`, or all."""
        return self.epochs if self.early_stop_epoch is None else self.early_stop_epoch

    def to_json(self) -> dict[str, Any]:
        """Plain values with the schema version."""
        return {"schema": SCHEMA, **to_plain(self)}

    @classmethod
    def from_json(cls, data: Any, where: str = "recipe") -> "Recipe":
        """Inverse of `to_json`.

        Raises:
            UserError: another schema, an unknown key, a wrong type or a value out of range.
        """
        return from_versioned(cls, data, SCHEMA, where)

    def save(self, path: str | Path) -> None:
        """Write as JSON, atomically."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> "Recipe":
        """Read what `save` wrote."""
        return cls.from_json(read_json(path), where=str(path))


# Tuned on scikit-learn's digits with networks of 0.2 to 0.5 MFLOPs at 16x16; `make demo` shows what it gives.
DIGITS = Recipe(
    name="digits", epochs=12, batch_size=64, lr=0.1, nesterov=True, weight_decay=5e-4, schedule="linear",
    warmup_epochs=2.4, label_smoothing=0.1, augment=True,
)  # fmt: skip

# For networks of 2 to 20 MFLOPs on 32x32 images.
CIFAR10_SMALL = Recipe(
    name="cifar10-small", epochs=24, batch_size=128, lr=0.2, nesterov=True, weight_decay=3e-4, schedule="linear",
    warmup_epochs=4.8, label_smoothing=0.1, augment=True,
)  # fmt: skip

# Thesis Table 4.9, found by the recipe-only search for FBNetV2-L3 and used on torchvision's networks in Table 4.3: lr,
# optimizer, EMA, dropout p, stochastic depth d, mixup m, weight decay. A final model decays by 0.9875 an epoch (4.4), over
# the 400 epochs of FBNetV3's. From 4.6: batch 256 a machine, label smoothing and AutoAugment, no weight decay on batch
# norms, EMA decay 0.99985. The amount of smoothing (0.1) and the constants of RMSProp are not printed.
NARS = Recipe(
    name="nars", epochs=400, batch_size=256, lr=0.026, optimizer="rmsprop", weight_decay=7e-6,
    schedule="exponential", decay_per_epoch=0.9875, decay_epochs=400.0, label_smoothing=0.1,
    mixup=0.19, dropout=0.17, stochastic_depth=0.09, ema=True, ema_decay=0.99985, amp=True, augment=True,
    auto_augment=True,
)  # fmt: skip

# Thesis 4.4, how FBNetV3-A to E were trained in the end: that recipe after 5 epochs of warm-up, batch norms synchronised.
# This is the first step, from labels alone.
FBNETV3 = NARS.replace(name="fbnetv3", warmup_epochs=5.0, sync_batch_norm=True)

# The second step: with FBNetV3-G from the first step as teacher, 0.8 x distillation + 0.2 x cross entropy (4.4).
FBNETV3_DISTILLED = FBNETV3.replace(name="fbnetv3-distilled", distillation=0.8)

# FBNetV3-F and G: stochastic depth 0.2 (4.4), in both steps.
FBNETV3_LARGE = FBNETV3.replace(name="fbnetv3-large", stochastic_depth=0.2)
FBNETV3_LARGE_DISTILLED = FBNETV3_DISTILLED.replace(name="fbnetv3-large-distilled", stochastic_depth=0.2)

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        recipe.name: recipe
        for recipe in (
            DIGITS, CIFAR10_SMALL, NARS, FBNETV3, FBNETV3_DISTILLED, FBNETV3_LARGE, FBNETV3_LARGE_DISTILLED
        )
    }
)  # fmt: skip


def load_recipe(name_or_path: str | Path) -> Recipe:
    """A ready recipe by name, or one read from a JSON file.

    Raises:
        UserError: neither a known name nor a readable recipe file.
    """
    if str(name_or_path) in RECIPES:
        return RECIPES[str(name_or_path)]
    path = Path(name_or_path)
    if path.suffix == ".json" or path.is_file():
        return Recipe.load(path)
    raise UserError(f"unknown recipe {str(name_or_path)!r}{closest(str(name_or_path), RECIPES)}; or give a .json file")
