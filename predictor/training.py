"""The optimisation loop that pretraining and fitting share: Adam, rate along a half cosine, small batches."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn


def cosine(progress: float) -> float:
    """Factor on the learning rate, from 1 at progress 0 to 0 at progress 1."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def batches(n: int, size: int, rng: np.random.Generator, members: int | None = None) -> Iterator[Tensor]:
    """Indices of one epoch in random order, `(size,)` each, or `(members, size)` with an order of its own each.

    The last batch may be smaller.
    """
    order = np.broadcast_to(np.arange(n), (members or 1, n))
    shuffled = rng.permuted(order, axis=1)
    for start in range(0, n, size):
        chosen = torch.from_numpy(np.ascontiguousarray(shuffled[:, start : start + size]))
        yield chosen if members is not None else chosen[0]


def train_phase(
    values: Mapping[str, nn.Parameter],
    loss: Callable[[Tensor], Tensor],
    epoch_batches: Callable[[int], Iterable[Tensor]],
    *,
    epochs: int,
    steps_per_epoch: int,
    lr: float,
    weight_decay: float = 0.0,
    factors: Mapping[str, float] | None = None,
) -> None:
    """Minimise in place.

    Args:
        values: parameters to train, by name.
        loss: indices of a batch to a number; must be a sum over members, so that each has its own gradient.
        epoch_batches: epoch number to the batches of the epoch.
        epochs: how many.
        steps_per_epoch: batches in each.
        lr: at the start; 0 after the last step.
        weight_decay: decoupled, on names that end in ``weight``.
        factors: on the rate, by name; 1 where none is given.
    """
    by_name = factors or {}
    groups = [
        {
            "params": [value],
            "weight_decay": weight_decay if name.endswith("weight") else 0.0,
            "rate": by_name.get(name, 1.0),
        }
        for name, value in values.items()
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, fused=True)
    step, total = 0, epochs * steps_per_epoch
    for epoch in range(epochs):
        for indices in epoch_batches(epoch):
            for group in optimizer.param_groups:
                group["lr"] = lr * group["rate"] * cosine(step / total)
            optimizer.zero_grad(set_to_none=True)
            loss(indices).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            step += 1
