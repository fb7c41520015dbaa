"""Maps that the backward pass computes again instead of finding them kept (activation checkpointing).

Gradients have the same bits as without: the second forward pass draws the same random numbers, runs under the same autocast
and leaves the running statistics of batch norms alone.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def resting_statistics(module: nn.Module) -> Iterator[None]:
    """Inside, the batch norms of ``module`` leave their running statistics alone."""
    norms = [child for child in module.modules() if isinstance(child, nn.BatchNorm2d)]
    tracking = [norm.track_running_stats for norm in norms]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm, tracks in zip(norms, tracking, strict=True):
            norm.track_running_stats = tracks


def recomputed(run: Callable[..., Tensor], module: nn.Module, *inputs: Tensor) -> Tensor:
    """``run(*inputs)`` of which only the inputs are kept for the backward pass, which runs it a second time.

    Args:
        run: any function of tensors.
        module: holds all batch norms that ``run`` runs.
        inputs: of ``run``.
    """
    contexts = partial(_first_and_second, module)
    result: Tensor = checkpoint(run, *inputs, use_reentrant=False, context_fn=contexts)
    return result


def _first_and_second(module: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """What surrounds the two forward passes."""
    return nullcontext(), resting_statistics(module)
