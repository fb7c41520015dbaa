"""What is timed: networks and parts of networks, in PyTorch and in ONNX Runtime."""
# b images of a batch, c channels, r resolution

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from search_spaces.architecture import Block
from search_spaces.blocks import build_block
from search_spaces.latency import BackendName
from search_spaces.latency_parts import Part

SEAM_CHANNELS = (
    4  # outer side of the two convolutions around a block; few, and ONNX Runtime's layout takes multiples of 4
)

Call = Callable[[], object]  # runs something once


class Backend(Protocol):
    """Makes what is timed."""

    name: BackendName
    has_seams: bool  # whether blocks are measured between two convolutions, see `search_spaces.latency`

    def network(self, module: nn.Module, shape: tuple[int, ...]) -> Call:
        """A whole network in eval mode, fed with noise of ``shape`` `(b, c, r, r)`."""

    def part(self, part: Part, num_classes: int, batch: int) -> Call:
        """A part of a network; its weights are random, latency does not depend on them."""


class Eager:
    """PyTorch's own modules in channels_last, which is how networks are trained here and the faster layout on CPUs."""

    name: BackendName = "eager"
    has_seams = False

    def network(self, module: nn.Module, shape: tuple[int, ...]) -> Call:
        """See `Backend`."""
        ready: nn.Module = copy.deepcopy(module).eval().to(memory_format=torch.channels_last)
        images = noise(shape).to(memory_format=torch.channels_last)
        return lambda: ready(images)

    def part(self, part: Part, num_classes: int, batch: int) -> Call:
        """See `Backend`."""
        module = _module(part, num_classes)
        assert module is not None, "no seams are asked of a backend without them"
        return self.network(module, (batch, part.in_channels, part.side, part.side))


class OnnxRuntime:
    """ONNX Runtime on the CPU: networks as `nas export` writes them, blocks with the same nodes."""

    name: BackendName = "onnxruntime"
    has_seams = True

    def __init__(self, threads: int) -> None:
        import onnxruntime

        self.options = onnxruntime.SessionOptions()
        self.options.intra_op_num_threads = threads
        self.options.inter_op_num_threads = 1
        self.options.log_severity_level = 3  # errors

    def network(self, module: nn.Module, shape: tuple[int, ...]) -> Call:
        """See `Backend`."""
        from nas.exporting.formats import Task, make_onnx, quiet

        batch, *image = shape
        with quiet():
            content = make_onnx(Task(network=module, shape=tuple(image), batch=batch)).content  # type: ignore[arg-type]
        return self._session(content, shape)

    def part(self, part: Part, num_classes: int, batch: int) -> Call:
        """See `Backend`."""
        model, shape = part_graph(part, _module(part, num_classes), batch)
        return self._session(model, shape)

    def _session(self, model: bytes, shape: tuple[int, ...]) -> Call:
        import onnxruntime

        session = onnxruntime.InferenceSession(model, self.options, providers=["CPUExecutionProvider"])
        feed = {session.get_inputs()[0].name: noise(shape).numpy()}
        return lambda: session.run(None, feed)


def part_graph(part: Part, module: nn.Module | None, batch: int) -> tuple[bytes, tuple[int, ...]]:
    """ONNX model of a part between its seams' convolutions (of a seam: of the two alone), and the shape of its input."""
    from nas.block_graphs import INPUT, BlockGraph

    graph, x = BlockGraph(), INPUT
    if part.what == "call":
        return graph.serialised((1, 1, 1, 1), graph.activation(x, nn.ReLU())), (1, 1, 1, 1)
    entering = part.in_channels if part.first else SEAM_CHANNELS
    with seeded():
        if not part.first:
            x = graph.conv(x, nn.Conv2d(SEAM_CHANNELS, part.in_channels, 1))
        if isinstance(module, nn.Sequential) and part.what == "classifier":
            x = graph.classifier(x, module[-1])  # type: ignore[arg-type]
        elif module is not None:
            x = graph.block(x, module, part.side)
        if part.what != "classifier":
            leaving = part.what.out_channels if isinstance(part.what, Block) else part.in_channels
            x = graph.conv(x, nn.Conv2d(leaving, SEAM_CHANNELS, 1))
    shape = (batch, entering, part.side, part.side)
    return graph.serialised(shape, x), shape


def _module(part: Part, num_classes: int) -> nn.Module | None:
    """Module of a part in eval mode; None for a seam or a call."""
    with seeded():
        if isinstance(part.what, Block):
            return build_block(part.what, part.in_channels).eval()
        if part.what == "classifier":
            return nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(part.in_channels, num_classes)
            ).eval()
    return None


@contextmanager
def seeded() -> Iterator[None]:
    """Weights drawn by constructors are always the same, and the global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        yield


def noise(shape: tuple[int, ...]) -> Tensor:
    """Normal random numbers of ``shape``, always the same."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))
