"""Classifiers of tables and time series trained with an L1, L2 or tree penalty, and what came of it (document 002)."""
# n rows or N sequences, d features, T time steps, k classes

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from nas.trees.regularisation.path_length import Mimic, class_loss, mimic, predicted_classes, rows_of
from nas.trees.regularisation.penalty import Costs, Observation, TreePenalty, TreeRegularisation
from nas.trees.regularisation.toys import Split
from recipes.evaluation import evaluation_mode
from search_spaces.errors import UserError, closest
from search_spaces.seeding import stream_seed
from search_spaces.serialisation import require, require_finite

Penalty = Literal["none", "l1", "l2", "tree"]
PENALTIES: tuple[Penalty, ...] = ("none", "l1", "l2", "tree")
Optimizer = Literal["sgd", "adam"]
OPTIMIZERS: tuple[Optimizer, ...] = ("sgd", "adam")
MOMENTUM = 0.9
CLIPPED = 2.0  # longest gradient: where stored weights hardly differ, a surrogate can be as steep as a wall
HIDDEN = (100, 100, 10)  # document 002: "a 3-layer MLP with 100 first layer nodes, 100 second ... and 10 third"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingOptions:
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
        require(self.epochs >= 1 and self.batch_size >= 1, "epochs and batch_size must be >= 1")
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


def train_regularised(
    model: nn.Module,
    split: Split,
    options: TrainingOptions,
    *,
    seed: int,
    penalised: nn.Module | None = None,
    layers: Sequence[str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Regularised:
    """Train a classifier in place.

    Args:
        model: inputs to logits as `nas.trees.regularisation.path_length.predicted_classes` takes.
        split: data.
        options: how.
        seed: of the order of rows, and of the tree penalty.
        penalised: part of the model whose path length is meant; None for all of it.
        layers: of that part, see `TreeRegularisation`; of L1 and L2 as well.
        progress: told the number of epochs done.

    Raises:
        UserError: labels of one class, or that are no classes; a layer that is not there; a loss that is not finite.
    """
    started = time.process_time()
    check_labels(split.labels)
    part = model if penalised is None else penalised
    tree = replace(options.tree, strength=options.strength)
    regularisation = TreeRegularisation(part, split.inputs, tree, seed=seed, layers=layers)
    weights = list(regularisation.parameters.values())
    optimizer = _optimizer(model, options)
    for epoch in range(options.epochs):
        generator = torch.Generator().manual_seed(stream_seed(seed, "order", epoch))
        model.train()
        for group in optimizer.param_groups:
            group["lr"] = options.lr * (1 + math.cos(math.pi * epoch / options.epochs)) / 2
        order = torch.randperm(len(split.inputs), generator=generator)
        for chosen in torch.split(order, options.batch_size):
            loss = class_loss(model(split.inputs[chosen]), split.labels[chosen])
            if options.penalty == "tree":
                loss = loss + regularisation.penalty()
            elif options.penalty != "none" and epoch >= tree.warmup:
                loss = loss + options.strength * _norm(weights, options.penalty)
            value = float(loss.detach())
            require(math.isfinite(value), f"the loss is {value} in epoch {epoch + 1}; try a lower lr")
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(model.parameters(), CLIPPED)
            optimizer.step()
            if options.penalty == "tree":
                regularisation.step_done()
        if options.penalty == "tree":
            regularisation.epoch_done()
        if progress is not None:
            progress(epoch + 1)
    return _measured(model, part, split, regularisation, started)


def _optimizer(model: nn.Module, options: TrainingOptions) -> torch.optim.Optimizer:
    if options.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=options.lr)
    return torch.optim.SGD(model.parameters(), lr=options.lr, momentum=MOMENTUM)


def _measured(
    model: nn.Module, part: nn.Module, split: Split, regularisation: TreeRegularisation, started: float
) -> Regularised:
    seconds = time.process_time() - started
    found = mimic(part, split.inputs, regularisation.config.tree)
    with torch.no_grad(), evaluation_mode(model):
        train, test, test_part = model(split.inputs), model(split.test_inputs), part(split.test_inputs)
    agreed = found.tree.predict(rows_of(split.test_inputs, test_part)) == predicted_classes(test_part)
    return Regularised(
        model=model.eval(), mimic=found, accuracy=accuracy(test, split.test_labels), auc=auc(test, split.test_labels),
        train_accuracy=accuracy(train, split.labels), test_fidelity=float(agreed.mean()),
        history=tuple(regularisation.history), costs=regularisation.costs, seconds=seconds,
    )  # fmt: skip


def accuracy(outputs: Tensor, labels: Tensor) -> float:
    """Percent of labels that are the predicted class."""
    return 100 * float((predicted_classes(outputs) == labels.flatten().numpy()).mean())


def auc(outputs: Tensor, labels: Tensor) -> float:
    """Area under the ROC curve of two classes; NaN for more, or where labels are of one class."""
    if not (outputs.ndim == 1 or outputs.shape[-1] == 1) or len(np.unique(labels.numpy())) != 2:
        return float("nan")
    return float(roc_auc_score(labels.flatten().numpy(), outputs.flatten().numpy()))


def _norm(weights: Sequence[Tensor], penalty: str) -> Tensor:
    return torch.stack([(w.abs() if penalty == "l1" else w.square()).sum() for w in weights]).sum()
