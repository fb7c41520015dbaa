"""From logits to the probabilities of a tree's decisions and classes (thesis 5.3, Eqs. 5.1, 5.2, 5.5).

The score <n_j, x> of a node is the mean logit of its leaves (Eq. 5.5: n_j is the mean of their rows). A choice is a child
j of an inner node i; p(j|i) is the softmax of the scores of i's children; p(k) is the product along the path to leaf k.
All of it for all nodes at once, in logarithms, with choices as rows: there is no loop over nodes or levels.

Axes: B batch, K classes, J inner nodes, E = J + K - 1 choices, ordered by parent, then as the children are.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from nas.trees.hierarchy import Hierarchy
from search_spaces.serialisation import require

DENSE_CLASSES = 100  # up to here two small matrix products beat sums over lists (measured on one CPU thread)
EXPORT_CLASSES = 2000  # up to here exported graphs use matrix products too: every runtime has them
UNREACHED = -1e4  # added to the logarithms of leaves that a hard tree does not reach; exp of it is 0 in any precision


class _RowSums(torch.autograd.Function):
    """y_i = sum of x's rows in list i, for a 0/1 matrix given by its lists and those of its transpose.

    The gradient is the same sum over the transpose's lists: several times faster than scattering.
    """

    @staticmethod
    def forward(rows: Tensor, index: Tensor, start: Tensor, t_index: Tensor, t_start: Tensor) -> Tensor:
        return functional.embedding_bag(index, rows, start, mode="sum")

    @staticmethod
    def setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        index, start, t_index, t_start = ctx.saved_tensors  # type: ignore[attr-defined]
        return _RowSums.apply(gradient.contiguous(), t_index, t_start, index, start), None, None, None, None


class TreeRule(nn.Module):
    """What soft and hard inference share: scores and probabilities of all choices of a tree.

    Holds no parameters and nothing that a state dict keeps; buffers are index lists, so that `half()` changes none.
    """

    below_index: Tensor
    below_start: Tensor
    path_index: Tensor
    path_start: Tensor
    below_counts: Tensor
    parent: Tensor
    rank: Tensor
    sibling: Tensor
    path_choices: Tensor
    path_lengths: Tensor
    membership: Tensor

    def __init__(self, hierarchy: Hierarchy, *, dense: bool | None = None) -> None:
        """Build the index lists.

        Args:
            hierarchy: the tree.
            dense: matrix products instead of sums over lists; default by the number of classes.
        """
        super().__init__()
        self.hierarchy = hierarchy
        classes = len(hierarchy.classes)
        self.dense = classes <= DENSE_CLASSES if dense is None else dense
        self.binary = all(len(children) == 2 for children in hierarchy.children)
        for name, values in _index_lists(hierarchy).items():
            self.register_buffer(name, torch.from_numpy(values), persistent=False)
        matrix = torch.zeros(classes, len(self.parent) if self.dense or classes <= EXPORT_CLASSES else 0)
        if matrix.numel() > 0:
            owner = torch.repeat_interleave(torch.arange(matrix.shape[1]), self.below_counts)
            matrix[self.below_index, owner] = 1
        self.register_buffer("membership", matrix.bool(), persistent=False)

    def scores(self, logits: Tensor) -> Tensor:
        """<n_j, x> of every choice (Eq. 5.5).

        Args:
            logits: `(B, K)`, finite.

        Returns:
            `(E, B)`, float64 for float64 logits, else float32.
        """
        classes = len(self.hierarchy.classes)
        require(
            logits.ndim == 2 and logits.shape[1] == classes,
            f"a tree of {classes} classes needs logits (batch, {classes}), got {tuple(logits.shape)}",
        )
        sums = self.below(logits if logits.dtype == torch.float64 else logits.float())
        return sums / self.below_counts.to(sums.dtype)[:, None]

    def below(self, values: Tensor) -> Tensor:
        """Sums of values `(B, K)` over the leaves below each choice, `(E, B)`."""
        if self._by_matrix():
            return _product(self.membership.T, values.T)
        lists = (self.below_index, self.below_start, self.path_index, self.path_start)
        sums: Tensor = _RowSums.apply(values.T.contiguous(), *lists)
        return sums

    def choices(self, scores: Tensor) -> Tensor:
        """log p(j|i) of every choice: softmax of `scores` `(E, B)` over siblings, in logarithms, `(E, B)`."""
        if self.binary:
            return functional.logsigmoid(scores - scores.index_select(0, self.sibling))
        shifted = scores - self._largest(scores.detach()).index_select(0, self.parent)
        total = shifted.new_zeros(len(self.hierarchy.children), shifted.shape[1])
        total = total.index_add(0, self.parent, shifted.exp())
        return shifted - total.log().index_select(0, self.parent)

    def along_paths(self, values: Tensor) -> Tensor:
        """Sums of `values` `(E, B)` over the choices on each leaf's path, `(B, K)`; of `choices` log p(k) (Eq. 5.1)."""
        if self._by_matrix():
            return _product(self.membership, values).T
        lists = (self.path_index, self.path_start, self.below_index, self.below_start)
        sums: Tensor = _RowSums.apply(values.contiguous(), *lists)
        return sums.T

    def _by_matrix(self) -> bool:
        return self.dense or (self.membership.numel() > 0 and torch.compiler.is_exporting())

    def _largest(self, values: Tensor) -> Tensor:
        """`(J, B)`, the largest of `values` `(E, B)` among the children of each inner node."""
        start = values.new_full((len(self.hierarchy.children), values.shape[1]), -torch.inf)
        return start.scatter_reduce(0, self.parent[:, None].expand_as(values), values, "amax")


class SoftRule(TreeRule):
    """Soft inference: log p(k) of every class (Eqs. 5.1, 5.2)."""

    def forward(self, logits: Tensor) -> Tensor:
        """Logits `(B, K)` to log-probabilities `(B, K)`; the largest is the prediction."""
        return self.along_paths(self.choices(self.scores(logits)))


class HardRule(TreeRule):
    """Hard inference: from the root to the likeliest child until a leaf is reached (Figure 5.1, A)."""

    def forward(self, logits: Tensor) -> Tensor:
        """Logits `(B, K)` to log-probabilities `(B, K)`: 0 at the leaf reached, about -10^4 elsewhere.

        The others are in the order of soft inference, so that a top-5 means something; among equal scores the first child
        is taken.
        """
        scores = self.scores(logits)
        taken = self.chosen(scores).to(scores.dtype)
        batch = logits.shape[0]  # len() would fix it in an export
        sums = self.along_paths(torch.cat([self.choices(scores), taken], 1))  # one product for both
        return (sums[:batch] + UNREACHED).masked_fill(sums[batch:] == self.path_lengths, 0.0)

    def chosen(self, scores: Tensor) -> Tensor:
        """`(E, B)` bool: whether each choice is the best of its siblings by `scores` `(E, B)`; one of them always is."""
        if self.binary:
            others = scores.index_select(0, self.sibling)
            return torch.where((self.rank == 0)[:, None], scores >= others, scores > others)
        best = scores == self._largest(scores).index_select(0, self.parent)
        order = torch.where(best, -self.rank[:, None].to(scores.dtype), -torch.inf)
        return order == self._largest(order).index_select(0, self.parent)


Rule = Literal["soft", "hard"]
RULES: dict[str, type[SoftRule] | type[HardRule]] = {"soft": SoftRule, "hard": HardRule}


def _product(matrix: Tensor, values: Tensor) -> Tensor:
    """A 0/1 matrix times values, in the precision of the values: under autocast too."""
    device = values.device.type
    if torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            return matrix.to(values.dtype) @ values
    return matrix.to(values.dtype) @ values


def _index_lists(tree: Hierarchy) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.int64]]]:
    """The tree as lists of numbers.

    Returns:
        below_index, below_start: leaves below each choice, one after the other, and where each choice's start `(E,)`.
        path_index, path_start: choices on the path of each leaf, and where each leaf's start `(K,)`.
        below_counts: `(E,)`, how many leaves are below.
        parent: `(E,)`, inner node in 0..J-1.
        rank: `(E,)`, place among the siblings.
        sibling: `(E,)`, the next choice of the same parent, in a circle.
        path_choices, path_lengths: `(K, largest depth)`, the path of each leaf from the root, then -1; how long it is.
    """
    sizes = np.array([len(children) for children in tree.children])
    node = np.array([child for children in tree.children for child in children])
    first = np.cumsum(sizes) - sizes
    parent = np.repeat(np.arange(len(sizes)), sizes)
    rank = np.arange(len(node)) - first[parent]
    choice_of = np.full(tree.nodes, -1)
    choice_of[node] = np.arange(len(node))
    paths = np.where(tree.paths[:, 1:] >= 0, choice_of[tree.paths[:, 1:]], -1)
    lengths = (paths >= 0).sum(1)
    leaf, column = np.nonzero(paths >= 0)
    on_path = paths[leaf, column]
    order = np.argsort(on_path, kind="stable")
    counts = tree.leaf_counts[node]
    return {
        "below_index": leaf[order],
        "below_start": np.cumsum(counts) - counts,
        "path_index": on_path,
        "path_start": np.cumsum(lengths) - lengths,
        "below_counts": counts,
        "parent": parent,
        "rank": rank,
        "sibling": first[parent] + (rank + 1) % sizes[parent],
        "path_choices": paths,
        "path_lengths": lengths,
    }
