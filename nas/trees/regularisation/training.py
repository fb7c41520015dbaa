"""Classifiers of tables and time series trained with an L1, L2 or tree penalty, and what came of it (document 002)."""
# n rows or N sequences, d features, T time steps, k classes

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from nas.trees.regularisation.path_length import Mimic, class_loss, mimic, predicted_classes, rows_of
from nas.trees.regularisation.penalty import Costs, Observation, TreePenalty, TreeRegularisation
from nas.trees.regularisation.toys import Split
from recipes.checkpoint import load_checkpoint, save_checkpoint
from recipes.evaluation import evaluation_mode
from recipes.interruption import Interruption
from search_spaces.errors import Stopped, UserError, closest, first_line
from search_spaces.seeding import stream_seed
from search_spaces.serialisation import require, require_finite, to_plain

Penalty = Literal["none", "l1", "l2", "tree"]
PENALTIES: tuple[Penalty, ...] = ("none", "l1", "l2", "tree")
Optimizer = Literal["sgd", "adam"]
OPTIMIZERS: tuple[Optimizer, ...] = ("sgd", "adam")
MOMENTUM = 0.9
CLIPPED = 2.0  # longest gradient: where stored weights hardly differ, a surrogate can be as steep as a wall
SCHEMA = 1  # of the checkpoint
SAVE_EVERY_S = 10.0  # an epoch takes milliseconds: a checkpoint after each would take longer than the training
HIDDEN = (100, 100, 10)  # document 002: "a 3-layer MLP with 100 first layer nodes, 100 second ... and 10 third"


@dataclass(frozen=True, kw_only=True, slots=True)
class RegularisationOptions:
    """How a classifier is trained.

    Attributes:
        penalty: ``l1`` adds strength x sum |w| over all weights, ``l2`` strength x sum w^2, ``tree`` strength x path length.
        strength: lambda, >= 0; of ``tree`` too, whatever stands in ``tree``.
        epochs: >= 1.
        batch_size: rows or sequences a step, >= 1.
        optimizer: ``sgd`` with momentum 0.9, or ``adam``, which takes steps of one size in all weights and so leaves the
            few directions that the surrogate knows; see docs/tree_regularisation.md.
        lr: at the beginning, > 0; it falls to 0 along a cosine, so that weights end where the last surrogates know them.
        tree: of the penalty. Its warm-up holds for all penalties, as L1 and L2 from the first step on would keep a network
            from learning anything; its trees measure path lengths with all.
    """

    penalty: Penalty = "none"
    strength: float = 0.0
    epochs: int = 250
    batch_size: int = 100
    optimizer: Optimizer = "sgd"
    lr: float = 0.1
    tree: TreePenalty = field(default_factory=TreePenalty)

    def __post_init__(self) -> None:
        require(self.penalty in PENALTIES, f"unknown penalty {self.penalty!r}{closest(self.penalty, PENALTIES)}")
        require(
            self.optimizer in OPTIMIZERS, f"unknown optimizer {self.optimizer!r}{closest(self.optimizer, OPTIMIZERS)}"
        )
        require_finite(strength=self.strength, lr=self.lr)
        require(self.strength >= 0, f"strength must be >= 0, got {self.strength}")
        for name in ("epochs", "batch_size"):
            require(getattr(self, name) >= 1, f"{name} must be >= 1, got {getattr(self, name)}")
        require(self.lr > 0, f"lr must be > 0, got {self.lr}")
        require(
            self.penalty == "none" or self.tree.warmup < self.epochs,
            f"warmup must be below the {self.epochs} epochs of training, got {self.tree.warmup}: the penalty would never act",
        )


@dataclass(frozen=True, kw_only=True)
class Regularised:
    """What training gave.

    Attributes:
        model: trained, in evaluation mode.
        mimic: the tree that mimics it, or the part of it that is penalised, on the training inputs.
        accuracy: percent of the test labels.
        auc: area under the ROC curve on the test labels; NaN with more than two classes.
        train_accuracy: percent of the training labels.
        test_fidelity: share of the test rows on which tree and network agree, in [0, 1].
        history: of the tree penalty, an observation an epoch; else empty.
        costs: of the tree penalty.
        seconds: CPU time of all.
    """

    model: nn.Module
    mimic: Mimic
    accuracy: float
    auc: float
    train_accuracy: float
    test_fidelity: float
    history: tuple[Observation, ...]
    costs: Costs
    seconds: float

    def numbers(self) -> dict[str, float]:
        """All that is a number, by name."""
        tracked = tracking(self.history)
        return {
            "path_length": self.mimic.path_length, "nodes": self.mimic.nodes, "accuracy": self.accuracy, "auc": self.auc,
            "train_accuracy": self.train_accuracy, "fidelity": self.mimic.fidelity, "test_fidelity": self.test_fidelity,
            **tracked, "seconds": self.seconds, **{f"{name}_cost": value for name, value in asdict(self.costs).items()},
        }  # fmt: skip


def tracking(history: Sequence[Observation]) -> dict[str, float]:
    """How well the surrogate foretold path lengths it had not seen (document 002, Fig. 12).

    Returns:
        ``surrogate_rmse`` in decisions, and ``surrogate_r2``, the share of the variance over epochs that it explains; NaN
        where nothing was foretold.
    """
    pairs = np.array([(seen.path_length, seen.predicted) for seen in history if np.isfinite(seen.predicted)])
    if len(pairs) < 2:
        return {"surrogate_rmse": float("nan"), "surrogate_r2": float("nan")}
    squared, variance = float(np.square(pairs[:, 0] - pairs[:, 1]).mean()), float(pairs[:, 0].var())
    return {
        "surrogate_rmse": squared**0.5, "surrogate_r2": 1 - squared / variance if variance > 0 else float("nan")
    }  # fmt: skip


@contextmanager
def seeded(seed: int, stream: str) -> Iterator[None]:
    """Torch's generator on the CPU set to a stream of the seed, and left as found."""
    require(seed >= 0, f"seed must be >= 0, got {seed}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stream_seed(seed, stream))
        yield


def perceptron(inputs: int, outputs: int, seed: int, hidden: Sequence[int] = HIDDEN) -> nn.Sequential:
    """ReLU network of document 002's toy: 2-100-100-10-1 has 11,421 weights.

    Args:
        inputs: d.
        outputs: k; 1 for two classes.
        seed: of the initial weights.
        hidden: units of each layer.
    """
    sizes = [inputs, *hidden]
    with seeded(seed, "weights"):
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))


def check_labels(labels: Tensor, part: str = "training") -> None:
    """Refuse what is no classification.

    Args:
        labels: of any shape.
        part: for the message.

    Raises:
        UserError: labels that are no whole numbers >= 0, or of one class only.
    """
    whole = not labels.is_floating_point() or bool((labels == labels.round()).all())
    if not whole:
        example = labels[labels != labels.round()].flatten()[0]
        raise UserError(
            f"{part} labels must be class numbers, got {float(example):g}: tree regularisation is for classifiers,"
            " not for regression"
        )
    classes = np.unique(labels.cpu().numpy())
    require(len(classes) >= 2, f"{part} labels need at least 2 classes, got class {int(classes[0])} only")
    require(bool((labels >= 0).all()), f"{part} labels must be >= 0, got {int(labels.min())}")


@dataclass(frozen=True, kw_only=True)
class EpochDone:
    """What `train_regularised` tells after an epoch.

    Attributes:
        config: of the training.
        epoch: counted from 0.
        steps: an epoch.
        loss: of its last step.
        row: numbers of the epoch.
    """

    config: RegularisationOptions
    epoch: int
    steps: int
    loss: float
    row: dict[str, float]

    @property
    def step(self) -> int:
        """The last of the epoch, counted from 0."""
        return self.steps - 1


def train_regularised(
    model: nn.Module,
    split: Split,
    options: RegularisationOptions,
    *,
    seed: int,
    penalised: nn.Module | None = None,
    layers: Sequence[str] | None = None,
    progress: Callable[[EpochDone], None] | None = None,
    checkpoint: Path | None = None,
    save_every_s: float = SAVE_EVERY_S,
) -> Regularised:
    """Train a classifier in place.

    Nothing random depends on what was drawn before: a training that goes on from its checkpoint ends with the bits of one
    that was never stopped (same machine, versions and number of threads).

    Args:
        model: inputs to logits as `nas.trees.regularisation.path_length.predicted_classes` takes.
        split: data.
        options: how.
        seed: of the order of rows, and of the tree penalty.
        penalised: part of the model whose path length is meant; None for all of it.
        layers: of that part, see `TreeRegularisation`; of L1 and L2 as well.
        progress: told after every epoch, before it is saved.
        checkpoint: file that the training goes on from where it exists, and that keeps it at the end of an epoch, at most
            every so many seconds, at a SIGTERM and after the last epoch; None keeps nothing.
        save_every_s: these seconds, >= 0.

    Raises:
        UserError: labels of one class, or that are no classes; a layer that is not there; a loss or weights that are not
            finite; a checkpoint that is damaged or of another training.
        Stopped: a SIGTERM came.
    """
    started = time.process_time()
    check_labels(split.labels)
    training = _Training(model, split, options, seed, model if penalised is None else penalised, layers)
    if checkpoint is not None and checkpoint.exists():
        training.restore(load_checkpoint(checkpoint), str(checkpoint))
        started -= training.seconds
    saved = time.monotonic()
    with Interruption() as interruption:
        while training.epochs_done < options.epochs:
            told = training.epoch(training.epochs_done)
            training.seconds = time.process_time() - started
            last = training.epochs_done == options.epochs
            if progress is not None:
                progress(told)
            asked = interruption.asked
            if checkpoint is not None and (last or asked or time.monotonic() - saved >= save_every_s):
                save_checkpoint(checkpoint, training.checkpoint())
                saved = time.monotonic()
            if asked and not last:
                raise Stopped(f"stopped after epoch {training.epochs_done} of {options.epochs}")
    return training.measured()


class _Training:
    """What changes during a training: the content of a checkpoint, and the epochs that change it."""

    def __init__(
        self, model: nn.Module, split: Split, options: RegularisationOptions, seed: int, part: nn.Module,
        layers: Sequence[str] | None,
    ) -> None:  # fmt: skip
        self.model, self.split, self.options, self.seed, self.part = model, split, options, seed, part
        tree = replace(options.tree, strength=options.strength if options.penalty == "tree" else 0.0)
        self.regularisation = TreeRegularisation(part, split.inputs, tree, seed=seed, layers=layers)
        self.weights = list(self.regularisation.parameters.values())
        self.optimizer = _optimizer(model, options)
        self.epochs_done = 0
        self.seconds = 0.0  # CPU time so far

    def epoch(self, epoch: int) -> EpochDone:
        """One pass over the training rows."""
        options, split, regularisation = self.options, self.split, self.regularisation
        generator = torch.Generator().manual_seed(stream_seed(self.seed, "order", epoch))
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = options.lr * (1 + math.cos(math.pi * epoch / options.epochs)) / 2
        batches = torch.split(torch.randperm(len(split.inputs), generator=generator), options.batch_size)
        losses = []
        for chosen in batches:
            loss = class_loss(self.model(split.inputs[chosen]), split.labels[chosen])
            if options.penalty == "tree":
                loss = loss + regularisation.penalty()
            elif options.penalty != "none" and epoch >= options.tree.warmup:
                loss = loss + options.strength * weight_norm(self.weights, options.penalty)
            losses.append(float(loss.detach()))
            self.require(math.isfinite(losses[-1]), f"the loss is {losses[-1]}", epoch)
            self.optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(self.model.parameters(), CLIPPED)
            self.optimizer.step()
            if options.penalty == "tree":
                regularisation.step_done()
        finite = all(bool(parameter.isfinite().all()) for parameter in self.model.parameters())
        self.require(finite, "weights are not finite", epoch)  # there may be no next loss to show it
        row = {"epoch": float(epoch), "train_loss": sum(losses) / len(losses)}
        if options.penalty == "tree":
            row["path_length"] = regularisation.epoch_done().path_length
        self.epochs_done = epoch + 1
        return EpochDone(config=options, epoch=epoch, steps=len(batches), loss=losses[-1], row=row)

    def require(self, fine: bool, what: str, epoch: int) -> None:
        require(fine, f"{what} in epoch {epoch + 1}; try a lower lr")

    def identity(self) -> dict[str, Any]:
        """What must agree between a checkpoint and the training that goes on from it."""
        layers = list(self.regularisation.parameters)
        return {"schema": SCHEMA, "options": to_plain(self.options), "seed": int(self.seed), "layers": layers}

    def checkpoint(self) -> dict[str, Any]:
        """Everything that going on needs: plain values and tensors."""
        return self.identity() | {
            "epochs_done": self.epochs_done,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "regularisation": self.regularisation.state_dict(),
        }

    def restore(self, stored: dict[str, Any], where: str) -> None:
        """Inverse of `checkpoint`.

        Raises:
            UserError: it belongs to another training, or is damaged.
        """
        for key, value in self.identity().items():
            require(
                stored.get(key) == value, f"{where} is of another run: its {key} is {stored.get(key)!r}, not {value!r}"
            )
        try:
            done = stored["epochs_done"]
            require(type(done) is int and 0 < done <= self.options.epochs, f"epochs_done is {done!r}")
            self.model.load_state_dict(stored["model"])
            self.optimizer.load_state_dict(stored["optimizer"])
            for parameter, state in self.optimizer.state.items():
                fits = all(value.numel() in (1, parameter.numel()) for value in state.values() if value is not None)
                require(fits, "the optimizer's state has other shapes than the weights")
            self.regularisation.load_state_dict(stored["regularisation"])
            self.epochs_done, self.seconds = done, float(stored["seconds"])
        except KeyError as error:
            raise UserError(f"{where} is damaged: key {error} is missing") from error
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            raise UserError(f"{where} does not fit this training: {first_line(error)}") from error
        seen = len(self.regularisation.history)
        require(
            seen == (done if self.options.penalty == "tree" else 0),
            f"{where} is damaged: it holds {seen} path lengths after {done} epochs",
        )

    def measured(self) -> Regularised:
        """What came of it."""
        split, regularisation = self.split, self.regularisation
        found = mimic(self.part, split.inputs, regularisation.config.tree)
        with torch.no_grad(), evaluation_mode(self.model):
            train, test, test_part = (
                self.model(split.inputs),
                self.model(split.test_inputs),
                self.part(split.test_inputs),
            )
        agreed = found.tree.predict(rows_of(split.test_inputs, test_part)) == predicted_classes(test_part)
        return Regularised(
            model=self.model.eval(), mimic=found, accuracy=accuracy(test, split.test_labels),
            auc=auc(test, split.test_labels), train_accuracy=accuracy(train, split.labels),
            test_fidelity=float(agreed.mean()), history=tuple(regularisation.history), costs=regularisation.costs,
            seconds=self.seconds,
        )  # fmt: skip


def _optimizer(model: nn.Module, options: RegularisationOptions) -> torch.optim.Optimizer:
    if options.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=options.lr)
    return torch.optim.SGD(model.parameters(), lr=options.lr, momentum=MOMENTUM)


def accuracy(outputs: Tensor, labels: Tensor) -> float:
    """Percent of labels that are the predicted class."""
    return 100 * float((predicted_classes(outputs) == labels.flatten().numpy()).mean())


def auc(outputs: Tensor, labels: Tensor) -> float:
    """Area under the ROC curve of two classes; NaN for more, or where labels are of one class."""
    if not (outputs.ndim == 1 or outputs.shape[-1] == 1) or len(np.unique(labels.numpy())) != 2:
        return float("nan")
    return float(roc_auc_score(labels.flatten().numpy(), outputs.flatten().numpy()))


def weight_norm(weights: Sequence[Tensor], penalty: str) -> Tensor:
    """Sum of |w| of ``l1``, of w^2 of ``l2``, over weights of any shapes."""
    return torch.stack([(w.abs() if penalty == "l1" else w.square()).sum() for w in weights]).sum()
