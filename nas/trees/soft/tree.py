"""A soft decision tree, whose inner nodes are logistic regressions on the pixels (Frosst & Hinton, arXiv:1711.09784).

Nodes are numbered level by level: node i has the children 2i + 1 (left) and 2i + 2 (right); the leaves follow the inner nodes.
What document 003 links to differs where this file says so.
"""
# B images, M inputs, K classes, D depth, I = 2^D - 1 inner nodes, L = 2^D leaves

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from recipes.checkpoint import load_checkpoint, save_checkpoint
from search_spaces.errors import UserError, closest, first_line
from search_spaces.serialisation import require

SCHEMA = 1
KIND = "soft decision tree"
MAX_DEPTH = 12  # 4,096 leaves; on MNIST 3.2 M weights
MAX_INPUTS = 1 << 20
MAX_CLASSES = 1 << 16
WINDOW = 100  # batches; of the root's running averages
LEAST_ALPHA = 1e-3  # alpha is kept this far from 0 and 1, so that no gradient of the penalty is above 1000

Form = Literal["expected", "log", "mixture"]
FORMS: tuple[Form, ...] = get_args(Form)


def node_depths(depth: int) -> Tensor:
    """Depth of every inner node, `(I,)` int64: 0 for the root, D - 1 above the leaves."""
    return torch.arange(depth).repeat_interleave(2 ** torch.arange(depth))


def log_path_probabilities(logits: Tensor, depth: int) -> Tensor:
    """log P^l(x): the logarithms of the decisions on the way to each leaf, summed.

    Args:
        logits: `(B, I)`, beta (x w_i + b_i); their sigmoid p_i is the probability of going right (Eq. 1).
        depth: D.

    Returns:
        `(B, L)`; the exponentials of a row sum to 1.
    """
    right = functional.logsigmoid(logits)
    left = right - logits  # log(1 - sigmoid(z)) = logsigmoid(z) - z
    paths = logits.new_zeros(len(logits), 1)
    for level in range(depth):
        nodes = slice(2**level - 1, 2 ** (level + 1) - 1)
        paths = torch.stack((paths + left[:, nodes], paths + right[:, nodes]), dim=2).flatten(1)
    return paths


def node_flows(leaves: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """What reaches each inner node, and what of it goes right; sums over the leaves below.

    Args:
        leaves: `(L,)`, mean path probabilities of some images.
        depth: D.

    Returns:
        ``through`` and ``right``, `(I,)` each: means of P^i(x) and of P^i(x) p_i(x).
    """
    halves = [leaves.view(2**level, 2, -1).sum(2) for level in range(depth)]
    return torch.cat([half.sum(1) for half in halves]), torch.cat([half[:, 1] for half in halves])


def running_mean(average: Tensor, value: Tensor, weight: Tensor) -> Tensor:
    """The average moved to ``value`` by ``weight``; the gradient is that of ``value``, undiminished.

    In a running average a batch counts by its weight alone, but in all averages that follow; what it adds to them in the end
    is 1. Without this the penalty's gradient would be the window's length too small.
    """
    return torch.lerp(average, value.detach(), weight) + (value - value.detach())


def balance_penalty(alpha: Tensor, decay: float = 0.5) -> Tensor:
    """- sum_i decay^d_i [0.5 log alpha_i + 0.5 log(1 - alpha_i)] (Eq. 5 with lambda 1; there decay is 0.5).

    Args:
        alpha: `(I,)` in (0, 1): share of each inner node's images that goes right (Eq. 4).
        decay: factor of one level.

    Returns:
        Scalar; smallest, log 2 times the sum of the factors, where every node sends half to either side.
    """
    depths = node_depths(int(math.log2(len(alpha) + 1))).to(alpha.device)
    cross_entropies = -0.5 * (alpha.log() + torch.log1p(-alpha))
    return (decay**depths * cross_entropies).sum()


def leaf_loss(log_paths: Tensor, log_leaves: Tensor, targets: Tensor, form: Form = "expected") -> Tensor:
    """Loss of each image.

    - ``expected``: sum_l P^l(x) H(T, Q^l), the cross entropies of the leaves weighted by their path probabilities, which is
      what the paper says in words.
    - ``log``: the logarithm of that, which is Eq. 3 with its sign put right.
    - ``mixture``: H(T, sum_l P^l(x) Q^l), the cross entropy of the mixed distributions.

    Args:
        log_paths: `(B, L)`, log P^l(x).
        log_leaves: `(L, K)`, log Q^l.
        targets: T, `(B, K)`, rows sum to 1.
        form: which of the three.

    Returns:
        `(B,)`.
    """
    require(form in FORMS, f"unknown form {form!r}{closest(form, FORMS)}")
    if form == "mixture":
        return -(targets * torch.logsumexp(log_paths[:, :, None] + log_leaves, dim=1)).sum(1)
    expected = (log_paths.exp() * -(targets @ log_leaves.T)).sum(1)
    return expected.clamp(min=1e-8).log() if form == "log" else expected


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


class SoftDecisionTree(nn.Module):
    """A binary tree of logistic regressions with a distribution over classes in each leaf.

    All inner nodes are one linear map. The prediction is the distribution of the leaf with the greatest path probability.

    Attributes:
        filters: w_i and b_i of all inner nodes, `Linear(M, I)`.
        leaves: phi, `(L, K)`; Q^l = softmax(phi^l) (Eq. 2).
        beta: inverse temperature of the decisions, p_i = sigmoid(beta (x w_i + b_i)).
        through: `(I,)` running average of P^i.
        right: `(I,)` running average of P^i p_i.
        batches: how many the averages have seen.
    """

    through: Tensor
    right: Tensor
    batches: Tensor

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
        super().__init__()
        require_depth(depth)
        require(1 <= inputs <= MAX_INPUTS, f"inputs must be in 1..{MAX_INPUTS}, got {inputs}")
        require(2 <= classes <= MAX_CLASSES, f"a tree needs 2..{MAX_CLASSES} classes, got {classes}")
        require(0 < beta < math.inf, f"beta must be > 0, got {beta}")
        require(window >= 1, f"window must be >= 1 batch, got {window}")
        self.depth, self.beta, self.window = depth, float(beta), int(window)
        generator = torch.Generator().manual_seed(seed)
        inner, leaves = 2**depth - 1, 2**depth
        self.filters = nn.Linear(inputs, inner, device="meta").to_empty(device="cpu")  # draws nothing
        with torch.no_grad():
            self.filters.weight.normal_(0.0, 1 / math.sqrt(inputs), generator=generator)
            self.filters.bias.zero_()
        self.leaves = nn.Parameter(0.1 * torch.randn(leaves, classes, generator=generator))
        self.register_buffer("through", torch.zeros(inner))
        self.register_buffer("right", torch.zeros(inner))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    @property
    def inputs(self) -> int:
        """M."""
        return self.filters.in_features

    @property
    def classes(self) -> int:
        """K."""
        return self.leaves.shape[1]

    def forward(self, images: Tensor, *, paths: bool = False) -> Tensor:
        """The prediction: log Q of the leaf with the greatest path probability.

        Args:
            images: `(B, ...)` with M values each.
            paths: give log P^l(x) instead, which losses need.

        Returns:
            `(B, K)`; with ``paths`` `(B, L)`.
        """
        log_paths = log_path_probabilities(self._logits(images), self.depth)
        return log_paths if paths else self.log_leaves()[log_paths.argmax(1)]

    def mixture(self, images: Tensor) -> Tensor:
        """log sum_l P^l(x) Q^l, `(B, K)`: all leaves' say instead of the most probable one's."""
        return torch.logsumexp(self(images, paths=True)[:, :, None] + self.log_leaves(), dim=1)

    def log_leaves(self) -> Tensor:
        """log Q^l, `(L, K)`."""
        return functional.log_softmax(self.leaves, dim=1)

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

    def balance(self, log_paths: Tensor, *, update: bool) -> Tensor:
        """alpha of every inner node (Eq. 4) from running averages of both its sums; gradients go through the batch's part.

        The averages are means of all batches at first, then forget exponentially: over ``window`` 2^d batches at depth d.

        Args:
            log_paths: `(B, L)` of a batch of any size.
            update: keep the averages.

        Returns:
            `(I,)`, in [0.001, 0.999].
        """
        through, right = node_flows(log_paths.float().exp().mean(0), self.depth)
        window = self.window * 2.0 ** node_depths(self.depth).to(through.device)
        weight = torch.maximum(1 / window, 1 / (self.batches + 1.0))
        through = running_mean(self.through, through, weight)
        right = running_mean(self.right, right, weight)
        if update:
            self.through.copy_(through.detach())
            self.right.copy_(right.detach())
            self.batches += 1
        alpha = right / through.clamp(min=1e-20)
        return alpha + (alpha.detach().clamp(LEAST_ALPHA, 1 - LEAST_ALPHA) - alpha.detach())

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

    def _logits(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        given = flat.shape[1]
        require(given == self.inputs, f"the tree takes {self.inputs} values an image, got {given}")
        logits: Tensor = self.beta * self.filters(flat)
        return logits


def _damaged(path: str | Path, what: str) -> UserError:
    return UserError(f"{path} is damaged: {what}")


def require_depth(depth: int) -> None:
    """Refuse depths that no tree can have.

    Raises:
        UserError: not in 1..12.
    """
    require(1 <= depth <= MAX_DEPTH, f"depth must be in 1..{MAX_DEPTH}, got {depth}")


@dataclass(frozen=True, kw_only=True)
class SoftTreeLoss:
    """Loss of a `SoftDecisionTree` for `recipes.trainer.fit`: `leaf_loss` and lambda times `balance_penalty`.

    Attributes:
        penalty: lambda, strength of the penalty.
        decay: its factor of one level.
        form: see `leaf_loss`.

    Raises:
        UserError: a number out of its range, an unknown form.
    """

    penalty: float = 0.1
    decay: float = 0.5
    form: Form = "expected"

    def __post_init__(self) -> None:
        require(0 <= self.penalty < math.inf, f"penalty must be >= 0, got {self.penalty}")
        require(0 <= self.decay <= 1, f"decay must be in [0, 1], got {self.decay}")
        require(self.form in FORMS, f"unknown form {self.form!r}{closest(str(self.form), FORMS)}")

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor, progress: float, /) -> Tensor:
        """See `recipes.trainer.Loss`; targets are labels `(B,)` or distributions `(B, K)`."""
        tree = getattr(model, "module", model)  # under several processes the gradients go through the wrapper
        assert isinstance(tree, SoftDecisionTree), "the loss is of a soft decision tree"
        log_paths: Tensor = model(images, paths=True)
        if targets.ndim == 1:
            targets = functional.one_hot(targets, tree.classes).to(log_paths.dtype)
        loss = leaf_loss(log_paths, tree.log_leaves(), targets, self.form).mean()
        if self.penalty == 0:
            return loss
        return loss + self.penalty * balance_penalty(tree.balance(log_paths, update=tree.training), self.decay)
