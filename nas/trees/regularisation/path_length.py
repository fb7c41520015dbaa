"""Average path length: how many decisions a tree takes that mimics a network (document 002; Wu et al., arXiv:1711.06178).

The path length of a row is the number of inner nodes that it passes on its way down, which is the depth of its leaf: pure
functions of fitted trees and of a network's outputs. Counting by leaf numbers instead, as the public code does, depends on
how the tree happens to be stored and exceeds the depth several times.
"""
# n rows, d features, k classes, B batch, T time steps

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.tree import DecisionTreeClassifier
from torch import Tensor, nn
from torch.nn import functional

from recipes.evaluation import evaluation_mode
from search_spaces.serialisation import require, require_finite

MAX_DEPTH = 20  # nobody steps through more decisions than these


@dataclass(frozen=True, kw_only=True, slots=True)
class TreeOptions:
    """How the tree is grown that mimics a network: CART on the network's predictions, always the same for the same rows.

    Attributes:
        min_samples_leaf: rows that a leaf needs, >= 1; the public code has 25 of 100 rows.
        max_depth: decisions at most, 1..20; None for no limit.
        ccp_alpha: cost-complexity pruning, >= 0; 0 prunes nothing.
    """

    min_samples_leaf: int = 5
    max_depth: int | None = None
    ccp_alpha: float = 0.0

    def __post_init__(self) -> None:
        require(self.min_samples_leaf >= 1, f"min_samples_leaf must be >= 1, got {self.min_samples_leaf}")
        require(
            self.max_depth is None or 1 <= self.max_depth <= MAX_DEPTH,
            f"max_depth must be in 1..{MAX_DEPTH}, got {self.max_depth}",
        )
        require_finite(ccp_alpha=self.ccp_alpha)
        require(self.ccp_alpha >= 0, f"ccp_alpha must be >= 0, got {self.ccp_alpha}")


@dataclass(frozen=True, kw_only=True)
class Mimic:
    """A tree that mimics a network.

    Attributes:
        tree: fitted; its classes are those that the network predicts.
        path_length: mean number of decisions for the rows it was fitted to.
        nodes: of the tree, leaves included.
        depth: decisions on the longest path.
        fidelity: share of the rows, in [0, 1], for which tree and network agree (Craven and Shavlik 1996).
    """

    tree: Any
    path_length: float
    nodes: int
    depth: int
    fidelity: float


def fit_tree(
    rows: npt.NDArray[np.float32], predictions: npt.NDArray[np.int64], options: TreeOptions | None = None
) -> DecisionTreeClassifier:
    """CART fitted to what a network predicts.

    Args:
        rows: `(n, d)`.
        predictions: `(n,)`, predicted classes; a network may predict one class only: the tree is then one leaf.
        options: of the tree.
    """
    options = options or TreeOptions()
    grown = DecisionTreeClassifier(
        min_samples_leaf=options.min_samples_leaf, max_depth=options.max_depth, ccp_alpha=options.ccp_alpha,
        random_state=0,  # breaks ties between equal splits
    )  # fmt: skip
    return grown.fit(rows, predictions)


def path_lengths(tree: DecisionTreeClassifier, rows: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Decisions that each row passes, `(n,)`: 0 where the tree is one leaf.

    Args:
        tree: fitted.
        rows: `(n, d)`.

    Raises:
        UserError: a tree that is no classifier, or not fitted; no rows, or another number of features.
    """
    require(
        isinstance(tree, DecisionTreeClassifier) and hasattr(tree, "tree_"),
        f"path lengths need a fitted DecisionTreeClassifier, got {type(tree).__name__}",
    )
    array = np.asarray(rows, dtype=np.float32)
    require(
        array.ndim == 2 and len(array) > 0 and array.shape[1] == tree.n_features_in_,
        f"rows must be (n, {tree.n_features_in_}) with n >= 1, got {array.shape}",
    )
    passed: npt.NDArray[np.int64] = np.diff(tree.decision_path(array).indptr).astype(np.int64) - 1  # less the leaf
    return passed


def average_path_length(tree: DecisionTreeClassifier, rows: npt.ArrayLike) -> float:
    """Mean of `path_lengths` over the rows `(n, d)`."""
    return float(path_lengths(tree, rows).mean())


def path_length_of(
    rows: npt.NDArray[np.float32], predictions: npt.NDArray[np.int64], options: TreeOptions | None = None
) -> float:
    """`average_path_length` of the tree of `fit_tree` over its own rows, without walking down it.

    A row passes every inner node that it was a training row of: the mean is the sum of these nodes' rows over n.
    """
    tree = fit_tree(rows, predictions, options).tree_
    return float(tree.n_node_samples[tree.children_left >= 0].sum() / len(rows))


def predicted_classes(outputs: Tensor) -> npt.NDArray[np.int64]:
    """Classes `(n,)` that outputs stand for; time steps are rows of their own.

    Args:
        outputs: `(B,)`, `(B, 1)` or `(B, T, 1)` logits of class 1 against class 0; `(B, k)` or `(B, T, k)` logits.

    Raises:
        UserError: another shape.
    """
    require(1 <= outputs.ndim <= 3, f"outputs must be (B,), (B, k) or (B, T, k), got {tuple(outputs.shape)}")
    if outputs.ndim == 1 or outputs.shape[-1] == 1:
        return (outputs > 0).flatten().long().cpu().numpy()
    return outputs.argmax(-1).flatten().cpu().numpy()


def class_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log-likelihood of labels under logits.

    Args:
        outputs: as `predicted_classes` takes.
        labels: `(B,)` or `(B, T)`; for `(B, k)` logits of several classes also probabilities `(B, k)`, as mixup gives them.
    """
    if outputs.ndim == 1 or outputs.shape[-1] == 1:
        return functional.binary_cross_entropy_with_logits(outputs.flatten(), labels.flatten().to(outputs.dtype))
    return functional.cross_entropy(outputs.flatten(0, -2), labels if labels.is_floating_point() else labels.flatten())


def rows_of(inputs: Tensor, outputs: Tensor) -> npt.NDArray[np.float32]:
    """What the tree sees, `(n, d)`: an input flattened, or of a series each time step.

    Args:
        inputs: `(B, ...)`, or `(B, T, d)` of a series.
        outputs: as `predicted_classes` takes; those of a series are `(B, T, k)`.

    Raises:
        UserError: inputs and outputs that do not belong together.
    """
    require(len(inputs) == len(outputs) > 0, f"{len(inputs)} inputs gave {len(outputs)} outputs")
    if outputs.ndim == 3:
        steps = tuple(outputs.shape[:2])
        require(
            inputs.ndim == 3 and tuple(inputs.shape[:2]) == steps,
            f"outputs of {steps[1]} time steps need inputs (B, T, d), got {tuple(inputs.shape)}",
        )
        inputs = inputs.flatten(0, 1)
    rows: npt.NDArray[np.float32] = inputs.detach().flatten(1).float().cpu().numpy()
    return rows


@torch.no_grad()
def mimic(model: nn.Module, inputs: Tensor, options: TreeOptions | None = None) -> Mimic:
    """The tree that mimics a classifier on its inputs.

    Args:
        model: inputs to logits as `predicted_classes` takes; put into evaluation mode meanwhile.
        inputs: `(B, ...)`.
        options: of the tree.

    Raises:
        UserError: outputs of another shape.
    """
    with evaluation_mode(model):
        outputs: Tensor = model(inputs)
    return mimic_outputs(inputs, outputs, options)


def mimic_outputs(inputs: Tensor, outputs: Tensor, options: TreeOptions | None = None) -> Mimic:
    """`mimic` of a network that gave ``outputs`` for ``inputs``."""
    predictions, rows = predicted_classes(outputs), rows_of(inputs, outputs)
    tree = fit_tree(rows, predictions, options)
    return Mimic(
        tree=tree, path_length=average_path_length(tree, rows), nodes=int(tree.tree_.node_count),
        depth=int(tree.get_depth()), fidelity=float((tree.predict(rows) == predictions).mean()),
    )  # fmt: skip
