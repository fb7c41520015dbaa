"""What a step of the supergraph takes: against its candidate blocks run alone, against the largest single network, by setting.

A step is forward and backward pass of the phase in which the weights learn, without the optimizer. `blocks alone` is every
candidate block of every layer, as wide as its widest option and without masks, on a map of its own at every resolution,
forward and backward, plus stem and last stage: what the same work takes without a supergraph. `largest network` is a step of
the network of all widest options at the largest resolution. Variants run in turn, in rounds; ratios are within a round, and
their median is reported. `alpha_over_weights`: the step in which alpha learns, relative to that of the weights. A second table
(supergraph_step_operators.csv) has the operators that a step of the plain setting spends its time in; it is measured first,
before the heap is in pieces.

    python -m benchmarks.supergraph_step
    python -m benchmarks.supergraph_step --device cuda --resolutions 128,160,192,224 --batch 64 --compile
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.memory import saved_bytes
from benchmarks.tables import parser, write_table
from nas.loading import load_space
from nas.process import tune_process
from search_spaces.blocks import build_block, conv_norm
from search_spaces.network import build
from search_spaces.serialisation import require
from search_spaces.space import SearchSpace
from search_spaces.variables import Range, Rows
from supernets.gumbel import gumbel_noise
from supernets.supergraph import Supergraph

CLASSES, TAU = 1000, 2.0
BLOCKS, LARGEST, ALL = "blocks alone", "largest network", "all"


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """How the supergraph runs; see `Supergraph`."""

    two: bool = False
    shared: bool = False
    one_block: bool = False
    recompute: bool = False
    channels_last: bool = True
    compiled: bool = False


SETTINGS = {
    ALL: Setting(),
    "contiguous layout": Setting(channels_last=False),
    "two sampled": Setting(two=True),
    "shared pointwise": Setting(shared=True),
    "two sampled, shared pointwise": Setting(two=True, shared=True),
    "shared blocks": Setting(one_block=True),
}
MORE_RESOLUTIONS = {"recomputed resolutions": Setting(recompute=True)}
COMPILED = {"compiled": Setting(compiled=True)}


def at_resolutions(space: SearchSpace, sides: Sequence[int]) -> SearchSpace:
    """The space with other resolutions."""
    resolution = Range(space.resolution.name, tuple(float(side) for side in sides))
    return SearchSpace(
        space.name, resolution=resolution, stem=space.stem, slots=space.slots, head=space.head, squeeze=space.squeeze,
        round_widths=space.round_widths,
    )  # fmt: skip


def widest_row(space: SearchSpace, block: int = 0) -> Rows:
    """The row `(d,)` of the last option everywhere but for block types, which are all the ``block``-th."""
    row = np.array([len(variable.options) - 1 for variable in space.variables], dtype=np.int64)
    for slot in space.slots:
        if slot.block.name in space.column:
            row[space.column[slot.block.name]] = min(block, len(slot.block.options) - 1)
    return row


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """What a call takes: CPU seconds of this process, or seconds on a GPU."""
    if device.type != "cuda":
        started = time.process_time()
        work()
        return time.process_time() - started
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    torch.cuda.synchronize(device)
    return time.perf_counter() - started


class SupergraphStep:
    """Steps of one setting, each with a draw of its own."""

    def __init__(self, space: SearchSpace, setting: Setting, images: Tensor, labels: Tensor, seed: int) -> None:
        supergraph = Supergraph(
            space, CLASSES, seed=seed, share_pointwise=setting.shared, share_blocks=setting.one_block
        )
        supergraph.sample_two, supergraph.recompute_resolutions = setting.two, setting.recompute
        layout = torch.channels_last if setting.channels_last else torch.contiguous_format
        self.supergraph = supergraph.to(device=images.device, memory_format=layout)  # type: ignore[call-overload]
        self.model = torch.compile(self.supergraph) if setting.compiled else self.supergraph
        self.images, self.labels = images.to(memory_format=layout), labels
        self.generator = torch.Generator().manual_seed(seed)
        self.learn(weights=True)

    def learn(self, *, weights: bool) -> None:
        """Gradients for the weights, or for alpha."""
        for parameter in self.supergraph.network_parameters():
            parameter.requires_grad_(weights)
        self.supergraph.alpha.requires_grad_(not weights)

    def loss(self) -> Tensor:
        """Cross entropy of a fresh draw."""
        noise = gumbel_noise(len(self.supergraph.alpha), self.generator).to(self.images.device)
        weights = self.supergraph.weights(TAU, noise)
        with _autocast(self.images.device):
            logits: Tensor = self.model(self.images, weights)
        return F.cross_entropy(logits.float(), self.labels)

    def run(self) -> None:
        """Forward and backward pass."""
        self.supergraph.zero_grad(set_to_none=True)
        torch.autograd.backward(self.loss())


def _autocast(device: torch.device) -> torch.autocast:
    """bfloat16 on GPUs, as searches run there."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def alone(module: nn.Module, shape: tuple[int, ...], device: torch.device) -> Callable[[], None]:
    """Forward and backward pass of a module on a map of its own."""
    module.to(device=device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    x = torch.randn(shape, device=device).to(memory_format=torch.channels_last).requires_grad_(True)

    def run() -> None:
        module.zero_grad(set_to_none=True)
        x.grad = None
        with _autocast(device):
            y: Tensor = module(x)
        torch.autograd.backward(y, torch.ones_like(y))

    return run


def blocks_alone(space: SearchSpace, batch: int, device: torch.device) -> Iterator[Callable[[], None]]:
    """Every candidate block at every resolution, then stem and last stage."""
    types = max(len(slot.block.options) for slot in space.slots)
    for side in space.resolution.options:
        for block in range(types):
            architecture = space.decode(widest_row(space, block))
            size = int(side)
            layers = list(architecture.layers(3))
            for position, (channels, made) in enumerate(layers):
                shape = (batch, channels, size, size)
                size = -(-size // made.stride)
                if position in (0, len(layers) - 1):  # stem and last stage
                    if block == 0:
                        yield alone(build_block(made, channels), shape, device)
                    continue
                if block < len(space.slots[position - 1].block.options):
                    yield alone(_candidate(made, channels), shape, device)


def _candidate(block: Any, channels: int) -> nn.Module:
    """The module of a block; of a skip the convolution that it is where widths differ."""
    if block.kind == "skip":
        return conv_norm(channels, block.out_channels, stride=block.stride, activation="relu")
    return build_block(block, channels)


def prepared_steps(
    space: SearchSpace, settings: Mapping[str, Setting], batch: int, device: torch.device, seed: int
) -> tuple[dict[str, SupergraphStep], Callable[[], None]]:
    """A step of every setting, and one of the largest network, on the same images."""
    side = int(max(space.resolution.options))
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, 3, side, side, generator=generator).to(device)
    labels = torch.randint(CLASSES, (batch,), generator=generator).to(device)
    steps = {name: SupergraphStep(space, setting, images, labels, seed) for name, setting in settings.items()}
    network = build(space.decode(widest_row(space)), CLASSES, seed=seed)
    network.to(device=device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]

    def network_step() -> None:
        network.zero_grad(set_to_none=True)
        with _autocast(device):
            logits = network(images.to(memory_format=torch.channels_last))
        torch.autograd.backward(F.cross_entropy(logits.float(), labels))

    return steps, network_step


def measure(
    steps: Mapping[str, SupergraphStep],
    network_step: Callable[[], None],
    blocks: Sequence[Callable[[], object]],
    rounds: int,
    device: torch.device,
) -> list[dict[str, Any]]:
    """A line a setting, then the two references."""
    work: dict[str, Callable[[], object]] = {name: step.run for name, step in steps.items()}
    work[LARGEST] = network_step
    for run in (*work.values(), *blocks):  # warm up; compilation
        run()
    seconds: dict[str, list[float]] = {name: [] for name in (*work, BLOCKS)}
    alpha: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds):
        for name, run in work.items():
            seconds[name].append(seconds_of(run, device))
        seconds[BLOCKS].append(sum(seconds_of(run, device) for run in blocks))
        for name, step in steps.items():
            step.learn(weights=False)
            alpha[name].append(seconds_of(step.run, device) / seconds[name][number])
            step.learn(weights=True)
    lines = []
    for name, taken in seconds.items():
        line = {"what": name, "seconds_median": statistics.median(taken)}
        line |= {
            f"over_{other.replace(' ', '_')}": statistics.median(
                a / b for a, b in zip(taken, seconds[other], strict=True)
            )
            for other in (BLOCKS, ALL, LARGEST)
        }
        if name in steps:
            line |= {
                "alpha_over_weights": statistics.median(alpha[name]),
                "saved_mib": saved_bytes(steps[name].loss, steps[name].supergraph) / 2**20,
            }
        lines.append(line)
    return lines


def operators(step: SupergraphStep, device: torch.device, most: int = 12) -> list[dict[str, Any]]:
    """The operators that take most of a step's time, in order, with their share of it; what they call is not theirs."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    step.run()
    with torch.profiler.profile(activities=activities) as profiled:
        step.run()
    own = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    events = sorted(profiled.key_averages(), key=lambda event: -getattr(event, own))
    total = sum(getattr(event, own) for event in events)
    return [
        {"operator": event.key, "calls": event.count, "share": getattr(event, own) / total} for event in events[:most]
    ]


def main() -> None:
    """Print and write the tables."""
    options = parser(__doc__)
    options.add_argument("--space", default="fbnetv2-f")
    options.add_argument("--resolutions", default="128", help="sides in pixels, increasing")
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--device", default="cpu")
    options.add_argument("--compile", action="store_true", help="torch.compile as well; needs a C++ compiler")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    sides = tuple(int(side) for side in arguments.resolutions.split(","))
    require(arguments.rounds >= 1 and arguments.batch >= 2, "rounds must be >= 1, and batch >= 2")
    space = at_resolutions(load_space(arguments.space), sides)
    settings = {
        **SETTINGS, **(MORE_RESOLUTIONS if len(sides) > 1 else {}), **(COMPILED if arguments.compile else {})
    }  # fmt: skip
    device = torch.device(arguments.device)
    facts = {
        "space": arguments.space, "resolutions": arguments.resolutions, "batch": arguments.batch,
        "rounds": arguments.rounds, "device": arguments.device, "seed": arguments.seed,
    }  # fmt: skip
    name = "supergraph_step" if arguments.device == "cpu" else f"supergraph_step_{arguments.device.partition(':')[0]}"
    steps, network_step = prepared_steps(space, settings, arguments.batch, device, arguments.seed)
    taken = operators(steps[ALL], device)
    write_table([{**line, **facts} for line in taken], arguments.out / f"{name}_operators.csv")
    blocks = list(blocks_alone(space, arguments.batch, device))
    lines = measure(steps, network_step, blocks, arguments.rounds, device)
    write_table([{**line, **facts} for line in lines], arguments.out / f"{name}.csv")


if __name__ == "__main__":
    tune_process()
    main()
