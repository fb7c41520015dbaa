"""A soft decision tree, whose inner nodes are logistic regressions on the pixels (Frosst & Hinton, arXiv:1711.09784).

What document 003 links to differs where this file or `nas.trees.soft.paths` says so.
"""
# B images, M inputs, K classes, D depth, I = 2^D - 1 inner nodes, L = 2^D leaves; T trees side by side

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from nas.trees.soft.paths import log_path_probabilities, node_depths, node_flows, running_mean
from recipes.checkpoint import load_checkpoint, save_checkpoint
from search_spaces.errors import UserError, first_line
from search_spaces.serialisation import require

SCHEMA = 1
KIND = "soft decision tree"
MAX_DEPTH = 12  # 4,096 leaves; on MNIST 3.2 M weights
MAX_INPUTS = 1 << 20
MAX_CLASSES = 1 << 16
WINDOW = 100  # batches; of the root's running averages
LEAST_ALPHA = 1e-3  # alpha is kept this far from 0 and 1, so that no gradient of the penalty is above 1000


@dataclass(frozen=True, slots=True)
class TreePaths:
    """The ways of B images to their most probable leaves.

    Attributes:
        nodes: `(B, D)` int64, inner nodes from the root on.
        right: `(B, D)` bool, whether the way goes right there.
        probabilities: `(B, D)`, of the branch that is taken; a row's product is the path probability.
        leaf: `(B,)` int64, 0..L-1 from left to right.
        distribution: `(B, K)`, Q of that leaf.
    """

    nodes: Tensor
    right: Tensor
    probabilities: Tensor
    leaf: Tensor
    distribution: Tensor


class SoftTrees(nn.Module):
    """Filters, leaves and running averages: of one tree, or of several side by side on the axes ``...``.

    Attributes:
        shape: of ``...``: `()` or `(T,)`.
        filters: w_i and b_i of all inner nodes, `Linear(M, I)`; of several trees one after the other.
        leaves: phi, `(..., L, K)`; Q^l = softmax(phi^l) (Eq. 2).
        beta: inverse temperature of the decisions, p_i = sigmoid(beta (x w_i + b_i)).
        through: `(..., I)` running average of P^i.
        right: `(..., I)` running average of P^i p_i.
        batches: how many the averages have seen.
    """

    through: Tensor
    right: Tensor
    batches: Tensor

    def __init__(
        self, shape: tuple[int, ...], inputs: int, classes: int, depth: int, *, beta: float, window: int
    ) -> None:
        """Room for trees, not yet filled; arguments as those of `SoftDecisionTree`."""
        super().__init__()
        require_depth(depth)
        require(1 <= inputs <= MAX_INPUTS, f"inputs must be in 1..{MAX_INPUTS}, got {inputs}")
        require(2 <= classes <= MAX_CLASSES, f"a tree needs 2..{MAX_CLASSES} classes, got {classes}")
        require(0 < beta < math.inf, f"beta must be > 0, got {beta}")
        require(window >= 1, f"window must be >= 1 batch, got {window}")
        self.shape, self.depth, self.beta, self.window = shape, depth, float(beta), int(window)
        inner, leaves = 2**depth - 1, 2**depth
        self.filters = nn.Linear(inputs, math.prod(shape) * inner, device="meta").to_empty(
            device="cpu"
        )  # draws nothing
        self.leaves = nn.Parameter(torch.empty(*shape, leaves, classes))
        self.register_buffer("through", torch.zeros(*shape, inner))
        self.register_buffer("right", torch.zeros(*shape, inner))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    @property
    def inputs(self) -> int:
        """M."""
        return self.filters.in_features

    @property
    def classes(self) -> int:
        """K."""
        return self.leaves.shape[-1]

    def log_paths(self, images: Tensor) -> Tensor:
        """log P^l(x), `(B, ..., L)`, of images `(B, ...)` with M values each."""
        return log_path_probabilities(self._logits(images), self.depth)

    def log_leaves(self) -> Tensor:
        """log Q^l, `(..., L, K)`."""
        return functional.log_softmax(self.leaves, dim=-1)

    def balance(self, log_paths: Tensor, *, update: bool) -> Tensor:
        """alpha of every inner node (Eq. 4) from running averages of both its sums; gradients go through the batch's part.

        The averages are means of all batches at first, then forget exponentially: over ``window`` 2^d batches at depth d.

        Args:
            log_paths: `(B, ..., L)` of a batch of any size.
            update: keep the averages.

        Returns:
            `(..., I)`, in [0.001, 0.999].
        """
        through, right = node_flows(log_paths.to(self.through).exp().mean(0), self.depth)
        window = self.window * 2.0 ** node_depths(self.depth).to(through.device)
        weight = torch.maximum(1 / window, 1 / (self.batches + 1.0)).to(self.through)
        through = running_mean(self.through, through, weight)
        right = running_mean(self.right, right, weight)
        if update:
            self.through.copy_(through.detach())
            self.right.copy_(right.detach())
            self.batches += 1
        alpha = right / through.clamp(min=1e-20)
        return alpha + (alpha.detach().clamp(LEAST_ALPHA, 1 - LEAST_ALPHA) - alpha.detach())

    def _logits(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        given = flat.shape[1]
        require(given == self.inputs, f"the tree takes {self.inputs} values an image, got {given}")
        logits: Tensor = self.beta * self.filters(flat)
        return logits.view(len(flat), *self.shape, -1) if self.shape else logits


class SoftDecisionTree(SoftTrees):
    """A binary tree of logistic regressions with a distribution over classes in each leaf; see `SoftTrees`.

    All inner nodes are one linear map. The prediction is the distribution of the leaf with the greatest path probability.
    """

    def __init__(
        self, inputs: int, classes: int, depth: int, *, beta: float = 1.0, window: int = WINDOW, seed: int = 0
    ) -> None:
        """A fresh tree: random filters whose sums are of order 1 for normalised images, leaves almost uniform.

        Args:
            inputs: M, values of an image.
            classes: K.
            depth: D, decisions on every way.
            beta: > 0.
            window: batches over which the root's averages reach; 2^d times as many at depth d.
            seed: of the weights; the global random state is left alone.

        Raises:
            UserError: a number out of its range.
        """
        super().__init__((), inputs, classes, depth, beta=beta, window=window)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.filters.weight.normal_(0.0, 1 / math.sqrt(inputs), generator=generator)
            self.filters.bias.zero_()
            self.leaves.normal_(0.0, 0.1, generator=generator)

    def forward(self, images: Tensor, *, paths: bool = False) -> Tensor:
        """The prediction: log Q of the leaf with the greatest path probability.

        Args:
            images: `(B, ...)` with M values each.
            paths: give log P^l(x) instead, which losses need.

        Returns:
            `(B, K)`; with ``paths`` `(B, L)`.
        """
        log_paths = self.log_paths(images)
        return log_paths if paths else self.log_leaves()[log_paths.argmax(1)]

    def mixture(self, images: Tensor) -> Tensor:
        """log sum_l P^l(x) Q^l, `(B, K)`: all leaves' say instead of the most probable one's."""
        return torch.logsumexp(self(images, paths=True)[:, :, None] + self.log_leaves(), dim=1)

    @torch.no_grad()
    def path(self, images: Tensor) -> TreePaths:
        """The way of each image `(B, ...)` to the leaf that gives its prediction."""
        logits = self._logits(images)
        leaf = log_path_probabilities(logits, self.depth).argmax(1)
        levels = torch.arange(self.depth, device=leaf.device)
        nodes = 2**levels - 1 + (leaf[:, None] >> (self.depth - levels))
        right = (leaf[:, None] >> (self.depth - 1 - levels)) % 2 == 1
        chosen = logits.gather(1, nodes)
        probabilities = torch.where(right, chosen, -chosen).sigmoid()
        return TreePaths(nodes, right, probabilities, leaf, self.log_leaves().exp()[leaf])

    def save(self, path: str | Path, **facts: Any) -> None:
        """Write the tree as a file; see `load`.

        Args:
            path: of the file.
            **facts: plain values to keep beside it.
        """
        made = {"inputs": self.inputs, "classes": self.classes, "depth": self.depth, "beta": self.beta}
        stored = {"kind": KIND, "schema": SCHEMA, **made, "window": self.window, "facts": facts}
        save_checkpoint(path, stored | {"state": self.state_dict()})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Inverse of `save`, in evaluation mode. Nothing in the file is run.

        Raises:
            UserError: a missing or damaged file, or one that holds something else.
        """
        stored = load_checkpoint(path)
        kind, schema = stored.get("kind"), stored.get("schema")
        known = isinstance(kind, str) and kind == KIND and type(schema) is int and schema == SCHEMA
        require(known, f"{path} holds no {KIND} of this toolkit")
        try:
            numbers = {name: int(stored[name]) for name in ("inputs", "classes", "depth", "window")}
            state = stored["state"]
            require_depth(numbers["depth"])
            expected = (2 ** numbers["depth"] - 1, numbers["inputs"])
            require(tuple(state["filters.weight"].shape) == expected, f"its filters must be {expected}")
            tree = cls(beta=float(stored["beta"]), **numbers)
            tree.load_state_dict(state)
        except KeyError as error:
            raise _damaged(path, f"key {error} is missing") from error
        except (ValueError, TypeError, RuntimeError, AttributeError, OverflowError) as error:
            raise _damaged(path, first_line(error)) from error
        for name, tensor in tree.state_dict().items():
            if not bool(tensor.isfinite().all()):
                raise _damaged(path, f"{name} holds values that are not finite")
        return tree.eval()


class SoftDecisionTrees(SoftTrees):
    """T trees that are trained side by side, each as if it were alone; see `SoftTrees`.

    A step of a small tree takes its time for many small operations, which the trees share: 32 of depth 4 take three to
    four times as long as one. Only a loss that is not finite is shared: it ends the training of all.
    """

    def __init__(self, trees: Sequence[SoftDecisionTree]) -> None:
        """Put fresh trees beside each other.

        Args:
            trees: T of them, alike but for their weights.

        Raises:
            UserError: none, or trees of different shapes.
        """
        require(len(trees) >= 1, "there must be at least one tree")
        first = trees[0]
        super().__init__((len(trees),), first.inputs, first.classes, first.depth, beta=first.beta, window=first.window)
        for tree in trees:
            same = (tree.inputs, tree.classes, tree.depth, tree.beta, tree.window)
            require(same == (first.inputs, first.classes, first.depth, first.beta, first.window), "trees must be alike")
        with torch.no_grad():
            self.filters.weight.copy_(torch.cat([tree.filters.weight for tree in trees]))
            self.filters.bias.copy_(torch.cat([tree.filters.bias for tree in trees]))
            self.leaves.copy_(torch.stack([tree.leaves for tree in trees]))

    def __len__(self) -> int:
        """T."""
        return self.shape[0]

    def forward(self, images: Tensor, *, paths: bool = False) -> Tensor:
        """The prediction of all trees together: the logarithm of the mean of what their most probable leaves say.

        Args:
            images: `(B, ...)` with M values each.
            paths: give log P^l(x) instead, which losses need.

        Returns:
            `(B, K)`; with ``paths`` `(B, T, L)`.
        """
        log_paths = self.log_paths(images)
        if paths:
            return log_paths
        return torch.logsumexp(self._said(log_paths), dim=1) - math.log(len(self))

    @torch.no_grad()
    def predictions(self, images: Tensor) -> Tensor:
        """The class that each tree predicts for each image, `(B, T)` int64."""
        return self._said(self.log_paths(images)).argmax(-1)

    def tree(self, index: int) -> SoftDecisionTree:
        """Tree ``index`` of 0..T-1 alone, with its running averages; a copy on the CPU."""
        tree = SoftDecisionTree(self.inputs, self.classes, self.depth, beta=self.beta, window=self.window)
        own = slice(index * (2**self.depth - 1), (index + 1) * (2**self.depth - 1))
        tree.load_state_dict({
            "filters.weight": self.filters.weight[own], "filters.bias": self.filters.bias[own],
            "leaves": self.leaves[index], "through": self.through[index], "right": self.right[index],
            "batches": self.batches,
        })  # fmt: skip
        return tree

    def _said(self, log_paths: Tensor) -> Tensor:
        """log Q of each tree's most probable leaf, `(B, T, K)`."""
        return self.log_leaves()[torch.arange(len(self), device=log_paths.device), log_paths.argmax(-1)]


def _damaged(path: str | Path, what: str) -> UserError:
    return UserError(f"{path} is damaged: {what}")


def require_depth(depth: int) -> None:
    """Refuse depths that no tree can have.

    Raises:
        UserError: not in 1..12.
    """
    require(1 <= depth <= MAX_DEPTH, f"depth must be in 1..{MAX_DEPTH}, got {depth}")
