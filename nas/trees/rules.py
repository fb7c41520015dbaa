"""From logits to the probabilities of a tree's decisions and classes (thesis 5.3, Eqs. 5.1, 5.2, 5.5).

The score <n_j, x> of a node is the mean logit of its leaves (Eq. 5.5: n_j is the mean of their rows). A choice is a child
j of an inner node i; p(j|i) is the softmax of the scores of i's children; p(k) is the product along the path to leaf k.
All of it for all nodes at once, in logarithms, with choices as rows: there is no loop over nodes or levels.

Axes: B batch, K classes, J inner nodes, E = J + K - 1 choices, ordered by parent, then as the children are.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from nas.trees.hierarchy import Hierarchy
from search_spaces.errors import UserError

# Up to here two small matrix products beat sums over lists (measured at 10 and 100 on one CPU thread).
DENSE_CLASSES = 32
PADDED = 3  # nodes are padded to the most children of any where that makes at most so many times the choices
EXPORT_CLASSES = 2000  # up to here exported graphs use matrix products too: every runtime has them
NO_CHILD = -1e30  # score of a child that a node does not have; finite: 0 times it is 0
UNREACHED = -1e4  # added to the logarithms of leaves that a hard tree does not reach; exp of it is 0 in any precision


class _RowSums(torch.autograd.Function):
    """y_i = sum of x's rows in list i, for a 0/1 matrix given by its lists and those of its transpose.

    The gradient is the same sum over the transpose's lists: several times faster than scattering. There is no
    `setup_context`, with which a call takes longer than the sums of 100 classes; for `torch.func` there is ``dense=True``.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, start: Tensor, t_index: Tensor, t_start: Tensor) -> Tensor:
        ctx.save_for_backward(index, start, t_index, t_start)
        return functional.embedding_bag(index, rows, start, mode="sum")

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        index, start, t_index, t_start = ctx.saved_tensors
        return _row_sums(gradient.contiguous(), t_index, t_start, index, start), None, None, None, None


def _row_sums(rows: Tensor, index: Tensor, start: Tensor, t_index: Tensor, t_start: Tensor) -> Tensor:
    """`_RowSums`, or just the sums where no gradient is wanted."""
    if torch.is_grad_enabled() and rows.requires_grad:
        sums: Tensor = _RowSums.apply(rows, index, start, t_index, t_start)
        return sums
    return functional.embedding_bag(index, rows, start, mode="sum")


@dataclass(frozen=True, slots=True)
class _Matrices:
    """A tree of few classes as matrices; row c J + j of `means` belongs to child c of node j.

    Attributes:
        means: `(C J, K)`, a score is the mean of the logits below (Eq. 5.5); 0 where a node has no such child.
        differences: the same less that of the other child, in binary trees.
        absent: `(C J, 1)`, added to the scores: `NO_CHILD` where a node has no such child.
        paths: `(K, C J)`, 1 where a choice is on the path of a leaf.
        lengths: `(K, 1)`, of the paths.
        first: `(C J, 1)`, 1 for a node's first child, else 0.
        order: `(C, 1, 1)`, C to 1: the first of equals has the largest; `argmax` would tell too, in ten times the time.
    """

    means: Tensor
    differences: Tensor
    absent: Tensor
    paths: Tensor
    lengths: Tensor
    first: Tensor
    order: Tensor


@dataclass(frozen=True, slots=True)
class _Padding:
    """Values of `(P, 1)` for P = J C rows, those of each inner node together, padded to the most children C.

    Attributes:
        scale: one over the leaves below a choice; 1 for a child that is not there.
        absent: 0, or `NO_CHILD`.
    """

    scale: Tensor
    absent: Tensor


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
    path_choices: Tensor
    path_lengths: Tensor
    membership: Tensor
    padded_start: Tensor
    padded_path: Tensor

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
        self._made: dict[tuple[torch.dtype, torch.device], _Matrices] = {}
        self._pads: dict[tuple[torch.dtype, torch.device], _Padding] = {}
        rows = len(hierarchy.children) * max(map(len, hierarchy.children))
        self.padded = not self.binary and rows <= PADDED * len(self.parent)
        places = self.parent * (rows // len(hierarchy.children)) + self.rank
        counts = torch.zeros(rows, dtype=torch.int64).index_put((places,), self.below_counts)
        self.register_buffer("padded_start", counts.cumsum(0) - counts, persistent=False)
        self.register_buffer("padded_path", places[self.path_index], persistent=False)

    def scores(self, logits: Tensor) -> Tensor:
        """<n_j, x> of every choice (Eq. 5.5).

        Args:
            logits: `(B, K)`, finite.

        Returns:
            `(E, B)`, float64 for float64 logits, else float32.
        """
        sums = self.below(self.accepted(logits))
        return sums / self.below_counts.to(sums.dtype)[:, None]

    def accepted(self, logits: Tensor) -> Tensor:
        """The logits `(B, K)` in the precision that is computed in; an error where they are not of this tree."""
        classes = len(self.hierarchy.classes)
        if logits.ndim != 2 or logits.shape[1] != classes:
            shape = tuple(logits.shape)
            raise UserError(f"a tree of {classes} classes needs logits (batch, {classes}), got {shape}")
        return logits if logits.dtype == torch.float64 else logits.float()

    def below(self, values: Tensor) -> Tensor:
        """Sums of values `(B, K)` over the leaves below each choice, `(E, B)`."""
        if self._by_matrix():
            return _product(self.membership.T, values.T)
        lists = (self.below_index, self.below_start, self.path_index, self.path_start)
        return _row_sums(values.T.contiguous(), *lists)

    def choices(self, scores: Tensor) -> Tensor:
        """log p(j|i) of every choice: softmax of `scores` `(E, B)` over siblings, in logarithms, `(E, B)`."""
        if self.binary:
            return functional.log_softmax(_pairs(scores), 1).flatten(0, 1)
        shifted = scores - self._largest(scores.detach()).index_select(0, self.parent)
        total = shifted.new_zeros(len(self.hierarchy.children), shifted.shape[1])
        total = total.index_add(0, self.parent, shifted.exp())
        return shifted - total.log().index_select(0, self.parent)

    def along_paths(self, values: Tensor) -> Tensor:
        """Sums of `values` `(E, B)` over the choices on each leaf's path, `(B, K)`; of `choices` log p(k) (Eq. 5.1)."""
        if self._by_matrix():
            return _product(self.membership, values).T
        lists = (self.path_index, self.path_start, self.below_index, self.below_start)
        return _row_sums(values.contiguous(), *lists).T

    def _by_matrix(self) -> bool:
        return self.dense or (self.membership.numel() > 0 and torch.compiler.is_exporting())

    def _by_few_steps(self) -> bool:
        """Whether `_matrices` are used: not where others want to see every step."""
        return self.dense and not torch.compiler.is_compiling()

    def _matrices(self, values: Tensor) -> _Matrices:
        """In the precision of the values and where they are; made once. No buffers: `half()` would round them."""
        key = (values.dtype, values.device)
        if key not in self._made:
            with torch.inference_mode(False), torch.no_grad():
                self._made[key] = self._make_matrices(*key)
        return self._made[key]

    def _make_matrices(self, dtype: torch.dtype, device: torch.device) -> _Matrices:
        inner, most = len(self.hierarchy.children), max(map(len, self.hierarchy.children))
        row = self.rank * inner + self.parent
        paths = torch.zeros(most * inner, len(self.hierarchy.classes), dtype=dtype, device=device)
        paths[row] = self.membership.T.to(dtype)
        absent = torch.full((most * inner, 1), NO_CHILD, dtype=dtype, device=device)
        absent[row] = 0
        means = paths / paths.sum(1, keepdim=True).clamp(min=1)
        order = torch.arange(most, 0, -1, dtype=dtype, device=device)[:, None, None]
        first = (torch.arange(most * inner, device=device) < inner).to(dtype)[:, None]
        return _Matrices(
            means=means, differences=means - means.roll(inner, 0), absent=absent, paths=paths.T.contiguous(),
            lengths=self.path_lengths.to(dtype)[:, None], first=first, order=order,
        )  # fmt: skip

    def _padding(self, values: Tensor) -> _Padding:
        """In the precision of the values and where they are; made once, as `_matrices` are."""
        key = (values.dtype, values.device)
        if key not in self._pads:
            with torch.inference_mode(False), torch.no_grad():
                ends = torch.cat([self.padded_start[1:], self.padded_start.new_tensor([len(self.below_index)])])
                counts = (ends - self.padded_start)[:, None].to(values.dtype)
                self._pads[key] = _Padding(1 / counts.clamp(min=1), (counts == 0).to(values.dtype) * NO_CHILD)
        return self._pads[key]

    def _padded_log_probabilities(self, logits: Tensor) -> Tensor:
        """`along_paths(choices(scores(logits)))` without a gather: a child that is not there has an empty list of leaves."""
        padding, up, down = (
            self._padding(logits), (self.below_index, self.padded_start), (self.padded_path, self.path_start),
        )  # fmt: skip
        scores = torch.addcmul(padding.absent, _row_sums(logits.T.contiguous(), *up, *down), padding.scale)
        scores = torch.unflatten(scores, 0, (len(self.hierarchy.children), -1))
        return _row_sums(functional.log_softmax(scores, 1).flatten(0, 1), *down, *up).T

    def _few_scores(self, logits: Tensor, matrices: _Matrices) -> Tensor:
        """Scores `(C, J, B)` of child c of node j, `NO_CHILD` where it has none."""
        scores = torch.addmm(matrices.absent, matrices.means, logits.T)
        return torch.unflatten(scores, 0, (-1, len(self.hierarchy.children)))

    def _largest(self, values: Tensor) -> Tensor:
        """`(J, B)`, the largest of `values` `(E, B)` among the children of each inner node."""
        start = values.new_full((len(self.hierarchy.children), values.shape[1]), -torch.inf)
        return start.scatter_reduce(0, self.parent[:, None].expand_as(values), values, "amax")


class SoftRule(TreeRule):
    """Soft inference: log p(k) of every class (Eqs. 5.1, 5.2)."""

    def forward(self, logits: Tensor) -> Tensor:
        """Logits `(B, K)` to log-probabilities `(B, K)`; the largest is the prediction."""
        values = self.accepted(logits)
        if self.padded and not self.dense and not torch.compiler.is_compiling():
            return self._padded_log_probabilities(values)
        if not self._by_few_steps():
            return self.along_paths(self.choices(self.scores(values)))
        matrices = self._matrices(values)
        with _precisely(values):
            if self.binary:  # p(j|i) is the sigmoid of the difference of two scores
                return (matrices.paths @ functional.logsigmoid(matrices.differences @ values.T)).T
            choices = functional.log_softmax(self._few_scores(values, matrices), 0)
            return (matrices.paths @ choices.flatten(0, 1)).T


class HardRule(TreeRule):
    """Hard inference: from the root to the likeliest child until a leaf is reached (Figure 5.1, A)."""

    def forward(self, logits: Tensor) -> Tensor:
        """Logits `(B, K)` to log-probabilities `(B, K)`: 0 at the leaf reached, about -10^4 elsewhere.

        The others are in the order of soft inference, so that a top-5 means something; among equal scores the first child
        is taken.
        """
        if self._by_few_steps():
            return self._few_classes(self.accepted(logits))
        scores = self.scores(logits)
        taken = self.chosen(scores).to(scores.dtype)
        batch = logits.shape[0]  # len() would fix it in an export
        sums = self.along_paths(torch.cat([self.choices(scores), taken], 1))  # one product for both
        return (sums[:batch] + UNREACHED).masked_fill(sums[batch:] == self.path_lengths, 0.0)

    def _few_classes(self, logits: Tensor) -> Tensor:
        matrices = self._matrices(logits)
        with _precisely(logits):
            if self.binary:
                ahead = matrices.differences[: len(self.hierarchy.children)] @ logits.T  # of the first children
                ahead = torch.cat([ahead, -ahead])  # exactly: one of two must be taken
                choices, taken = functional.logsigmoid(ahead), ahead.detach().heaviside(matrices.first)
            else:
                scores = self._few_scores(logits, matrices)
                best = (scores == scores.amax(0)) * matrices.order
                choices = functional.log_softmax(scores, 0).flatten(0, 1)
                taken = (best == best.amax(0)).flatten(0, 1).to(scores.dtype)
            reached = matrices.paths @ taken == matrices.lengths
            return (matrices.paths @ choices + UNREACHED).masked_fill(reached, 0.0).T

    def chosen(self, scores: Tensor) -> Tensor:
        """`(E, B)` bool: whether each choice is the best of its siblings by `scores` `(E, B)`; one of them always is."""
        if self.binary:
            first, second = _pairs(scores).unbind(1)
            takes_first = first >= second
            return torch.stack([takes_first, ~takes_first], 1).flatten(0, 1)
        best = scores == self._largest(scores).index_select(0, self.parent)
        order = torch.where(best, -self.rank[:, None].to(scores.dtype), -torch.inf)
        return order == self._largest(order).index_select(0, self.parent)


Rule = Literal["soft", "hard"]
RULES: dict[str, type[SoftRule] | type[HardRule]] = {"soft": SoftRule, "hard": HardRule}


def _precisely(values: Tensor) -> AbstractContextManager[object]:
    """Products in the precision of the values, under autocast too."""
    device = values.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _product(matrix: Tensor, values: Tensor) -> Tensor:
    """A 0/1 matrix times values, in the precision of the values."""
    with _precisely(values):
        return matrix.to(values.dtype) @ values


def _pairs(values: Tensor) -> Tensor:
    """`(J, 2, B)`: `(E, B)` by parent, of a tree whose nodes have two children each."""
    return torch.unflatten(values, 0, (-1, 2))


def _index_lists(tree: Hierarchy) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.int64]]]:
    """The tree as lists of numbers.

    Returns:
        below_index, below_start: leaves below each choice, one after the other, and where each choice's start `(E,)`.
        path_index, path_start: choices on the path of each leaf, and where each leaf's start `(K,)`.
        below_counts: `(E,)`, how many leaves are below.
        parent: `(E,)`, inner node in 0..J-1.
        rank: `(E,)`, place among the siblings.
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
        "path_choices": paths,
        "path_lengths": lengths,
    }
