"""Configuration of a search."""

import dataclasses
import typing
from dataclasses import dataclass
from typing import Any, Literal

from search_spaces.errors import closest
from search_spaces.serialisation import require, require_finite
from supernets.masking import MaskPosition


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """How a supergraph is searched. Defaults are those of the thesis, section 3.4, where it states them."""

    epochs: int = 90  # thesis 3.4
    batch_size: int = 256  # images a step of the weights, on one machine (thesis 4.6); its processes share them
    alpha_batch_size: int = 256  # images a step of alpha, likewise
    lr: float = (
        0.1  # of the weights (SGD), half a cosine to zero (FBNet's training settings, which the thesis takes over)
    )
    momentum: float = 0.9
    weight_decay: float = 4e-5  # not on norms and biases
    clip_grad_norm: float = 5.0
    label_smoothing: float = 0.0
    alpha_lr: float | None = (
        None  # Adam; None: 12 / (steps of alpha), within [0.005, 0.2], so a logit can travel about 12
    )
    tau_start: float = 5.0  # temperature at p = 0 (thesis 3.4)
    tau_decay: float = 0.956  # factor in each ninetieth of the search (thesis 3.4: every epoch of 90)
    mask_tau: float | None = None  # temperature of widths and expansions all the time; None: tau, as of the blocks
    weights_share: float = 0.8  # of the training images; the rest trains alpha (thesis 3.4)
    warmup: float = 1 / 9  # share of the search that trains weights only (FBNet: 10 of 90 epochs)
    cost_weight: float = 1.0  # lambda at the start; all the time if adapt_cost_weight is false
    adapt_cost_weight: bool = True
    commit_resolution: float = 0.6  # progress at which the resolution is decided; 1: at the end, with the rest
    land: float = 0.85  # from this progress on, alpha rests while the argmax network is inside the budget
    alpha_loss: bool = True  # whether cross entropy moves alpha; false, the budget alone does: a control of searches
    mask_position: MaskPosition = "affine"
    noise_per_rank: bool = True  # several processes: each draws its own Gumbel noise; else all the same
    sync_batch_norm: bool = False  # several processes: batch norms take the statistics of all images of a step
    sample: Literal["all", "two"] = "all"  # block types that a layer runs in a step: all, or two drawn by their weights
    share_pointwise: bool = False  # the block types of a layer share their 1x1 convolutions: faster, fewer weights
    share_blocks: bool = False  # they share all their weights and run as one block: the fastest
    recompute_resolutions: bool = False  # keep maps of the largest only: less memory, more time, the same bits
    amp: bool = True  # bfloat16 autocast, on CUDA only
    augment: bool = True
    images: int | None = None  # training images to search on, balanced over classes; None: all
    seed: int = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_type(field.name, getattr(self, field.name), field.type)
        require(self.epochs >= 1, f"epochs must be >= 1, got {self.epochs}")
        for name in ("batch_size", "alpha_batch_size"):  # batch norm needs two images
            require(getattr(self, name) >= 2, f"{name} must be >= 2, got {getattr(self, name)}")
        positive = ["lr", "tau_start", "clip_grad_norm"]
        positive += [name for name in ("alpha_lr", "mask_tau") if getattr(self, name) is not None]
        for name in positive:
            require_finite(**{name: getattr(self, name)})
            require(getattr(self, name) > 0, f"{name} must be > 0, got {getattr(self, name)}")
        require_finite(cost_weight=self.cost_weight)
        require(0 < self.tau_decay <= 1, f"tau_decay must be in (0, 1], got {self.tau_decay}")
        require(0 < self.weights_share < 1, f"weights_share must be in (0, 1), got {self.weights_share}")
        for name in ("momentum", "weight_decay", "label_smoothing", "warmup"):
            require(0 <= getattr(self, name) < 1, f"{name} must be in [0, 1), got {getattr(self, name)}")
        require(
            self.warmup_epochs < self.epochs,
            f"warmup {self.warmup} of epochs {self.epochs} leaves no epoch that trains alpha",
        )
        for name in ("commit_resolution", "land"):
            require(0 <= getattr(self, name) <= 1, f"{name} must be in [0, 1], got {getattr(self, name)}")
        require(
            not (self.sample == "two" and self.sync_batch_norm and self.noise_per_rank),
            "--sample two with --sync-batch-norm needs --same-noise: a norm waits for the same one of the other processes",
        )
        require(self.images is None or self.images >= 10, f"images must be >= 10, got {self.images}")
        require(self.seed >= 0, f"seed must be >= 0, got {self.seed}")

    @property
    def warmup_epochs(self) -> int:
        """Whole epochs that train weights only."""
        return round(self.warmup * self.epochs)


def _check_type(name: str, value: object, hint: Any) -> None:
    """Refuse what a Python caller without a type checker may pass."""
    if typing.get_origin(hint) is typing.Literal:
        allowed = typing.get_args(hint)
        require(value in allowed, f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        return
    kinds = typing.get_args(hint) or (hint,)
    fine = any(type(value) is kind or (kind is float and type(value) is int) for kind in kinds)
    expected = " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds)
    require(fine, f"{name} must be {expected}, got {value!r}")


# What suits the sets that come by name; everything else is the class's default. As the thesis searches on a tenth of ImageNet,
# small sets are searched on a part of their images: a step runs all block types at all resolutions.
PRESETS: dict[str, dict[str, Any]] = {
    "digits": {"epochs": 32, "batch_size": 96, "alpha_batch_size": 64},
    "mnist": {"epochs": 12, "batch_size": 128, "alpha_batch_size": 128, "images": 10_000},
    "fashion-mnist": {"epochs": 12, "batch_size": 128, "alpha_batch_size": 128, "images": 10_000},
    # Mixing resolutions slows the weights down and costs twice the time. All choices are cold, so that the weights see networks
    # and alpha what they differ in; one set of weights a layer bears that, and its steps are cheap enough for many of both.
    "cifar10": {
        "epochs": 24, "batch_size": 64, "alpha_batch_size": 32, "images": 12_000, "commit_resolution": 0.2,
        "tau_start": 0.7, "tau_decay": 1.0, "weights_share": 0.5, "warmup": 0.05, "share_blocks": True,
    },
}  # fmt: skip


def preset(data: str, **changes: Any) -> SearchConfig:
    """The configuration that suits the data set ``data``, with changes; entries that are None change nothing."""
    given = {key: value for key, value in changes.items() if value is not None}
    known = {field.name for field in dataclasses.fields(SearchConfig)}
    for key in given:
        require(key in known, f"unknown search setting {key!r}{closest(key, known)}")
    return SearchConfig(**{**PRESETS.get(data, {}), **given})
