"""Mathematics of soft decision trees: paths, their balance, and what the leaves' distributions cost.

Nodes are numbered level by level: node i has the children 2i + 1 (left) and 2i + 2 (right); the leaves follow the inner nodes.
Axes written ``...`` are of trees side by side, or none.
"""
# B images, K classes, D depth, I = 2^D - 1 inner nodes, L = 2^D leaves

import math
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from search_spaces.errors import closest
from search_spaces.serialisation import require

Form = Literal["expected", "log", "mixture"]
FORMS: tuple[Form, ...] = get_args(Form)


def node_depths(depth: int) -> Tensor:
    """Depth of every inner node, `(I,)` int64: 0 for the root, D - 1 above the leaves."""
    return torch.arange(depth).repeat_interleave(2 ** torch.arange(depth))


def log_path_probabilities(logits: Tensor, depth: int) -> Tensor:
    """log P^l(x): the logarithms of the decisions on the way to each leaf, summed.

    Args:
        logits: `(B, ..., I)`, beta (x w_i + b_i); their sigmoid p_i is the probability of going right (Eq. 1).
        depth: D.

    Returns:
        `(B, ..., L)`; the exponentials along the last axis sum to 1.
    """
    right = functional.logsigmoid(logits)
    left = right - logits  # log(1 - sigmoid(z)) = logsigmoid(z) - z
    paths = torch.zeros_like(logits[..., :1])
    for level in range(depth):
        nodes = slice(2**level - 1, 2 ** (level + 1) - 1)
        paths = torch.stack((paths + left[..., nodes], paths + right[..., nodes]), dim=-1).flatten(-2)
    return paths


def node_flows(leaves: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """What reaches each inner node, and what of it goes right; sums over the leaves below.

    Args:
        leaves: `(..., L)`, mean path probabilities of some images.
        depth: D.

    Returns:
        ``through`` and ``right``, `(..., I)` each: means of P^i(x) and of P^i(x) p_i(x).
    """
    halves = [leaves.view(*leaves.shape[:-1], 2**level, 2, -1).sum(-1) for level in range(depth)]
    return torch.cat([half.sum(-1) for half in halves], dim=-1), torch.cat([half[..., 1] for half in halves], dim=-1)


def running_mean(average: Tensor, value: Tensor, weight: Tensor) -> Tensor:
    """The average moved to ``value`` by ``weight``; the gradient is that of ``value``, undiminished.

    In a running average a batch counts by its weight alone, but in all averages that follow; what it adds to them in the end
    is 1. Without this the penalty's gradient would be the window's length too small.
    """
    return torch.lerp(average, value.detach(), weight) + (value - value.detach())


def balance_penalty(alpha: Tensor, decay: float = 0.5) -> Tensor:
    """- sum_i decay^d_i [0.5 log alpha_i + 0.5 log(1 - alpha_i)] (Eq. 5 with lambda 1; there decay is 0.5).

    Args:
        alpha: `(..., I)` in (0, 1): share of each inner node's images that goes right (Eq. 4).
        decay: factor of one level.

    Returns:
        `(...)`; smallest, log 2 times the sum of the factors, where every node sends half to either side.
    """
    depths = node_depths(int(math.log2(alpha.shape[-1] + 1))).to(alpha.device)
    cross_entropies = -0.5 * (alpha.log() + torch.log1p(-alpha))
    return (decay**depths * cross_entropies).sum(-1)


def leaf_loss(log_paths: Tensor, log_leaves: Tensor, targets: Tensor, form: Form = "expected") -> Tensor:
    """Loss of each image.

    - ``expected``: sum_l P^l(x) H(T, Q^l), the cross entropies of the leaves weighted by their path probabilities, which is
      what the paper says in words.
    - ``log``: the logarithm of that, which is Eq. 3 with its sign put right.
    - ``mixture``: H(T, sum_l P^l(x) Q^l), the cross entropy of the mixed distributions.

    Args:
        log_paths: `(B, ..., L)`, log P^l(x).
        log_leaves: `(..., L, K)`, log Q^l.
        targets: T, `(B, K)`, rows sum to 1.
        form: which of the three.

    Returns:
        `(B, ...)`.
    """
    require(form in FORMS, f"unknown form {form!r}{closest(form, FORMS)}")
    targets = targets.to(log_leaves.dtype)
    if form == "mixture":
        mixed = torch.logsumexp(log_paths[..., None] + log_leaves, dim=-2)
        return -torch.einsum("bk,b...k->b...", targets, mixed)
    cross_entropies = -torch.einsum("bk,...lk->b...l", targets, log_leaves)
    expected = (log_paths.exp() * cross_entropies).sum(-1)
    return expected.clamp(min=1e-8).log() if form == "log" else expected
