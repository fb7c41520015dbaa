"""Bytes that a training step takes."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes behind tensors, each storage once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def saved_bytes(forward: Callable[[], Tensor], module: nn.Module) -> int:
    """Bytes of all that is kept for the backward pass, each storage once, the module's parameters and buffers left out.

    Args:
        forward: computes a loss.
        module: what it computes it with.
    """
    known = {t.untyped_storage().data_ptr() for t in [*module.parameters(), *module.buffers()]}
    kept: list[Tensor] = []  # alive, so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in known:
            kept.append(tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return storage_bytes(kept)


def peak_bytes(step: Callable[[], object], device: torch.device) -> int:
    """Most bytes that are allocated during a step at a time, above those before it.

    On CUDA `max_memory_allocated`, elsewhere from the profiler's record of the allocator.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    assert profiled.profiler is not None and profiled.profiler.kineto_results is not None
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak
