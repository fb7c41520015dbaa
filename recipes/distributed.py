"""Several processes that train one model together, as `torchrun` starts them.

A node is a machine. A recipe's batch size is that of a node (thesis 4.6): its processes share the batch, and more nodes
make the batch and the learning rate larger by their number. Two processes of one machine therefore do what one does, but
for batch norms, whose statistics are those of each process's images unless they are synchronised.
"""

import functools
import os
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from search_spaces.errors import Stopped, UserError, first_line
from search_spaces.serialisation import require

POLL_SECONDS = 0.05  # between looks for process 0


class SharedError(UserError):
    """An error that every process meets alike, so that one need speak of it."""


@contextmanager
def shared_errors() -> Iterator[None]:
    """For what all processes do alike with the same input: its errors are those of all."""
    try:
        yield
    except SharedError:
        raise
    except UserError as error:
        raise SharedError(str(error)) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """Which process this is, and of how many."""

    rank: int = 0  # among all processes
    world: int = 1  # number of processes
    local_rank: int = 0  # among those of this machine
    local_world: int = 1  # number of processes of this machine

    @property
    def main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    @property
    def nodes(self) -> int:
        """Number of machines."""
        return self.world // self.local_world

    def key(self) -> tuple[int, ...]:
        """What tells the random streams of processes apart; nothing where there is one."""
        return (self.rank,) if self.world > 1 else ()


def ranks() -> Ranks:
    """What `torchrun` put into the environment; one process where it did not.

    Raises:
        UserError: the environment does not fit together.
    """
    if "WORLD_SIZE" not in os.environ:
        return Ranks()
    values = {}
    for field, variable in (
        ("rank", "RANK"), ("world", "WORLD_SIZE"), ("local_rank", "LOCAL_RANK"), ("local_world", "LOCAL_WORLD_SIZE")
    ):  # fmt: skip
        text = os.environ.get(variable, "")
        require(text.isdigit(), f"WORLD_SIZE is set, so {variable} must be a whole number, got {text!r}; use torchrun")
        values[field] = int(text)
    found = Ranks(**values)
    fits = 0 <= found.local_rank < found.local_world and found.rank < found.world
    require(
        fits and found.world % max(1, found.local_world) == 0,
        f"every machine needs the same number of processes: {found}",
    )
    return found


def joined() -> Ranks:
    """`ranks` where a process group is up, else one process: what training has to reckon with."""
    return ranks() if dist.is_available() and dist.is_initialized() else Ranks()


def own_device(device: torch.device, place: Ranks) -> torch.device:
    """The device of this process: CUDA devices are dealt out by local rank.

    Raises:
        UserError: several processes of a machine on one CUDA device: they have fewer than processes, or one is named.
    """
    if device.type != "cuda" or place.world == 1:
        return device
    if place.local_world > 1:
        require(device.index is None, f"{place.local_world} processes cannot share device {device}; use cuda")
        there = torch.cuda.device_count()
        require(
            place.local_world <= there,
            f"{place.local_world} processes need a CUDA device each, torch sees {there} here",
        )
    return torch.device("cuda", place.local_rank) if device.index is None else device


@contextmanager
def process_group(device: torch.device, place: Ranks) -> Iterator[None]:
    """Join the other processes while inside, with NCCL on CUDA devices and gloo elsewhere; nothing for one process.

    A group that is up already, as Ray Train's is, is used and left as it is.

    An error of the input that this process alone meets gets a note that says which process it was. With NCCL the group is then
    left to the end of the process: to take it down needs the others, which wait for this one.

    Raises:
        UserError: the others cannot be reached, or not every machine has as many processes.
        Stopped: another process has ended.
    """
    if place.world == 1:
        yield
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    own = not dist.is_initialized()
    try:
        if own:
            _join(backend, place)
    except (RuntimeError, ValueError) as error:  # torch's own errors of the rendezvous are RuntimeErrors
        raise UserError(f"the {place.world} processes cannot reach each other: {error}") from error
    together = False  # whether all processes leave here
    try:
        _require_even(place)
        yield
        together = True
    except (SharedError, Stopped):
        together = True
        raise
    except UserError as error:
        error.add_note(f"in process {place.rank}")
        raise
    except RuntimeError as error:
        if not _is_lost(error):
            raise
        raise Stopped(f"process {place.rank} has lost the others: {first_line(error)}") from error
    finally:
        if own and (together or backend == "gloo"):
            dist.destroy_process_group()


def _join(backend: str, place: Ranks) -> None:
    """Start the process group that the environment describes."""
    store, rank, world = next(dist.rendezvous("env://", place.rank, place.world))  # type: ignore[attr-defined]
    store = dist.PrefixStore(f"group {meet(store, rank, world)}", store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=rank, world_size=world)


def meet(store: dist.Store, rank: int, world: int) -> str:  # type: ignore[name-defined]
    """A name for a group of the processes that are here now, the same for all of them and new every time.

    The store outlives a group, and attempts of a job: what others have left in it must not be taken for the present one's.
    Counting does not tell them apart: machines that a failure has not touched start anew without a count. So process 0
    announces a name, and every other one a word of its own, which process 0 has to repeat under that name.

    Args:
        store: that all processes share.
        rank: of this process.
        world: number of processes.

    Raises:
        RuntimeError: the others did not come within the store's timeout.
    """
    others = range(1, world)
    if rank == 0:
        name = uuid.uuid4().hex
        store.set("group", name)
        store.wait([f"{name} here {other}" for other in others], store.timeout)
        for other in others:
            store.set(f"{name} met {other}", store.get(f"{name} here {other}").decode())
        return name
    word, name = uuid.uuid4().hex, ""
    until = time.monotonic() + store.timeout.total_seconds()
    while time.monotonic() < until:
        announced = store.get("group").decode()
        if announced != name:
            name = announced
            store.set(f"{name} here {rank}", word)
        met = f"{name} met {rank}"
        if store.check([met]) and store.get(met).decode() == word:
            return name
        time.sleep(POLL_SECONDS)
    raise RuntimeError(f"process {rank} has waited {store.timeout.total_seconds():.0f} s for process 0")


def _require_even(place: Ranks) -> None:
    """Refuse machines with different numbers of processes: each would take another number of machines for granted.

    Raises:
        SharedError: there are some.
    """
    found = [0] * place.world
    dist.all_gather_object(found, place.local_world)
    if len(set(found)) > 1:
        raise SharedError(
            f"every machine needs the same number of processes, got {min(found)} on one and {max(found)} on another"
        )


def _is_lost(error: RuntimeError) -> bool:
    """Whether the error says that another process has gone; gloo's errors have no type of their own."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


def share_gradients(model: nn.Module, place: Ranks, *, some: bool = False) -> nn.Module:
    """The model, whose gradients become the mean over all processes as backward computes them; its buffers stay its own.

    Args:
        model: every parameter that requires a gradient now must get one in every step, unless `some`.
        place: which process this is.
        some: whether a step may leave parameters without a gradient, which costs a walk over the graph.
    """
    if place.world == 1:
        return model
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*broadcast_buffers.*")  # its successor is newer than torch 2.9
        parallel = DistributedDataParallel(model, broadcast_buffers=False, find_unused_parameters=some)
    if dist.get_backend() == dist.Backend.GLOO:
        # In the order of processes: where gradients lie in their buckets changes after the first step of an attempt.
        def mean(place: Ranks, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
            done = torch.futures.Future[Tensor]()
            done.set_result(mean_over_ranks(bucket.buffer(), place))
            return done

        parallel.register_comm_hook(place, mean)
    return parallel


def require_equal(module: nn.Module, place: Ranks, when: str) -> None:
    """Refuse to go on where the parameters of the processes differ in any bit.

    Two sums over the bits of every parameter are compared, which takes next to no time.

    Args:
        module: of this process.
        place: which process this is.
        when: for the message, such as ``epoch 3``.

    Raises:
        SharedError: they differ.
    """
    if place.world == 1:
        return
    sums = []
    for parameter in module.parameters():
        flat = parameter.detach().clone(memory_format=torch.contiguous_format).flatten()
        bits = flat.view(torch.int32).to(torch.int64)
        places = torch.arange(1, len(bits) + 1, device=bits.device) % 65_521
        sums.append(torch.stack([bits.sum(), (bits * places).sum()]))
    low = torch.cat(sums)
    high = low.clone()
    dist.all_reduce(low, dist.ReduceOp.MIN)
    dist.all_reduce(high, dist.ReduceOp.MAX)
    differing = (low != high).view(-1, 2).any(1).tolist()
    names = [name for (name, _), differs in zip(module.named_parameters(), differing, strict=True) if differs]
    if names:
        raise SharedError(
            f"the {place.world} processes no longer have the same weights at {when}: {', '.join(names[:3])}"
        )


def mean_over_ranks(value: Tensor, place: Ranks) -> Tensor:
    """Mean of a tensor over all processes, the same on each."""
    return sum_over_ranks(value, place) / place.world if place.world > 1 else value


def sum_over_ranks(values: Tensor, place: Ranks) -> Tensor:
    """Sum of a tensor over all processes, the same on each."""
    return _summed(values) if place.world > 1 else values


def _summed(values: Tensor) -> Tensor:
    """Sum over all processes: with gloo in their order, so that the bits do not depend on where in a tensor a number lies."""
    if dist.get_backend() == dist.Backend.GLOO:
        parts = [torch.empty_like(values, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, values.contiguous())
        return functools.reduce(torch.add, parts)
    total = values.clone()
    dist.all_reduce(total)
    return total


class _SumOverRanks(torch.autograd.Function):
    """Every process gets the sum; a gradient of it is that of all processes' losses."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        return _summed(values)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return _summed(gradient)


def differentiable_sum(values: Tensor) -> Tensor:
    """Sum of a tensor over all processes, the same on each, through which gradients go to all of them."""
    summed: Tensor = _SumOverRanks.apply(values)
    return summed


def average_buffers(module: nn.Module, place: Ranks) -> None:
    """Give all processes the mean of their floating buffers (running statistics); integer ones are equal already."""
    if place.world > 1:
        for buffer in _floating_buffers(module):
            buffer.copy_(mean_over_ranks(buffer, place))


def gathered_buffers(module: nn.Module, place: Ranks) -> Tensor:
    """Floating buffers of every process, one after the other in a row: `(world, n)` on the CPU, the same in each."""
    own = torch.cat([buffer.detach().flatten() for buffer in _floating_buffers(module)])
    rows = [own]
    if place.world > 1:
        rows = [torch.empty_like(own) for _ in range(place.world)]
        dist.all_gather(rows, own)
    return torch.stack(rows).cpu()


def put_own_buffers(module: nn.Module, gathered: Tensor, place: Ranks) -> None:
    """Inverse of `gathered_buffers`; of another number of processes, every one gets their mean.

    Raises:
        RuntimeError: the rows have another length.
    """
    own = gathered[place.rank] if len(gathered) == place.world else gathered.mean(0)
    buffers = _floating_buffers(module)
    for buffer, part in zip(buffers, torch.split(own, [buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(part.view_as(buffer))


def _floating_buffers(module: nn.Module) -> list[Tensor]:
    return [buffer for buffer in module.buffers() if buffer.is_floating_point()]


def from_main(value: Any, place: Ranks) -> Any:
    """What process 0 has, in every process."""
    if place.world > 1:
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]
    return value
