"""Memory and time of a training step against the number of channel options (thesis Fig. 3.7) and of resolutions.

Channel options: four layers of convolution, norm and ReLU, whose widths are searched by masks (`supernets.masking`), by one
convolution for each option (`supernets.naive`) and, where it is installed, by the Gumbel strategy of NNI 3.0. As in the thesis,
k options of a layer with c channels are c/k, 2c/k, ..., c. Ratios are to masks with one option.

Resolutions: the k largest of a quarter of FBNetV2-F's, in a supergraph of four layers of nine block types, with all maps kept
and with those of the largest only (`SearchConfig.recompute_resolutions`). Ratios are to the largest resolution alone.

A step trains weights and alpha together. All variants take turns in one run.

    python -m benchmarks.flat_memory --figure docs/figures/flat_memory.svg
"""

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.memory import peak_bytes, saved_bytes, storage_bytes
from benchmarks.nni_layers import nni_stack
from benchmarks.tables import parser, write_table
from nas.reporting.charts import Line, Panel, draw
from search_spaces.blocks import conv_norm
from search_spaces.rows import Row, space_of_rows
from search_spaces.space import SearchSpace
from supernets.gumbel import gumbel_noise, gumbel_weights
from supernets.masking import masked_norm, width_table
from supernets.naive import NaiveConvNorm
from supernets.residuals import conv_and_norm
from supernets.supergraph import Supergraph

OPTIONS = (1, 2, 4, 8, 16, 32)
CHANNELS, LAYERS, SIDE = 64, 4, 32
RESOLUTIONS = (32, 40, 48, 56)  # a quarter of FBNetV2-F's
CLASSES = 10
MASKED, NAIVE, NNI = "masks", "one convolution an option", "NNI 3.0, Gumbel"


class MaskedConvNorm(nn.Module):
    """A convolution and batch norm as wide as the widest option, with a mask (thesis Eq. 3.3)."""

    def __init__(self, in_channels: int, channels: list[int], *, kernel: int) -> None:
        super().__init__()
        self.pair = conv_norm(in_channels, max(channels), kernel=kernel)
        self.register_buffer("widths", width_table(torch.tensor(channels)))

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        """`(B, C_in, H, W)` to `(B, max(channels), H, W)` under Gumbel weights `(n_options,)`."""
        conv, norm = conv_and_norm(self.pair)
        return masked_norm(conv(x), norm, given @ self.get_buffer("widths"))


class Stack(nn.Module):
    """Layers of convolution, norm and ReLU, each with its own choice of width."""

    def __init__(self, layer: type[MaskedConvNorm] | type[NaiveConvNorm], widths: list[int]) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(LAYERS, len(widths)))
        inputs = [3] + [CHANNELS] * (LAYERS - 1)
        self.layers = nn.ModuleList(layer(in_channels, widths, kernel=3) for in_channels in inputs)
        self.classifier = nn.Linear(CHANNELS, CLASSES)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """Images `(B, 3, H, W)` and Gumbel noise `(layers, n_options)` to logits `(B, classes)`."""
        for layer, alpha, epsilon in zip(self.layers, self.alpha, noise, strict=True):
            x = F.relu(layer(x, gumbel_weights(alpha, 1.0, epsilon)), inplace=True)
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits


class Step:
    """A training step of weights and alpha.

    Args:
        module: what is trained.
        logits: what it makes of images.
        side: of the images in pixels.
        batch: number of images.
        device: where.
        seed: of images and labels.
    """

    def __init__(
        self, module: nn.Module, logits: Callable[[Tensor], Tensor], side: int, batch: int, device: torch.device, seed: int
    ) -> None:  # fmt: skip
        generator = torch.Generator().manual_seed(seed)
        self.module, self.logits, self.device = module, logits, device
        images = torch.randn(batch, 3, side, side, generator=generator)
        self.images = images.to(device, memory_format=torch.channels_last)
        self.labels = torch.randint(CLASSES, (batch,), generator=generator).to(device)
        self.optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)

    def loss(self) -> Tensor:
        """Cross entropy on a fresh draw of Gumbel noise."""
        return F.cross_entropy(self.logits(self.images), self.labels)

    def run(self) -> float:
        """Seconds of one step: of the CPU, or on CUDA of the clock."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        clock = time.perf_counter if self.device.type == "cuda" else time.process_time
        started = clock()
        torch.autograd.backward(self.loss())
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)  # no gradients are left when the next step is measured
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return clock() - started


def channel_step(method: str, options: int, batch: int, device: torch.device, seed: int) -> Step | None:
    """The step of one point of Fig. 3.7; None where NNI is not installed."""
    widths = [CHANNELS * (index + 1) // options for index in range(options)]
    generator = torch.Generator().manual_seed(seed)
    module: nn.Module | None
    if method == NNI:
        module = nni_stack(widths, LAYERS, CLASSES)
        if module is None:
            return None
        module.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return Step(module, module, SIDE, batch, device, seed)
    stack = Stack(MaskedConvNorm if method == MASKED else NaiveConvNorm, widths)
    stack.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def logits(images: Tensor) -> Tensor:
        noise = gumbel_noise(stack.alpha.numel(), generator).view_as(stack.alpha).to(stack.alpha)
        return stack(images, noise)  # type: ignore[no-any-return]

    return Step(stack, logits, SIDE, batch, device, seed)


def space_at(resolutions: tuple[int, ...]) -> SearchSpace:
    """Four searched layers of nine block types and three widths."""
    rows = [Row(expansion=(3.0,), width=(32, 48, 64), stride=stride, n=2) for stride in (1, 2)]
    return space_of_rows("resolutions", rows, resolutions=resolutions, stem_width=32, head_width=256)


def resolution_step(count: int, recompute: bool, batch: int, device: torch.device, seed: int) -> Step:
    """The step of a supergraph of the ``count`` largest resolutions."""
    supergraph = Supergraph(space_at(RESOLUTIONS[-count:]), CLASSES, seed=seed)
    supergraph.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    supergraph.recompute_resolutions = recompute
    generator = torch.Generator().manual_seed(seed)

    def logits(images: Tensor) -> Tensor:
        noise = gumbel_noise(len(supergraph.alpha), generator)
        return supergraph(images, supergraph.weights(1.0, noise))  # type: ignore[no-any-return]

    return Step(supergraph, logits, RESOLUTIONS[-1], batch, device, seed)


def measured(steps: Mapping[Hashable, Step], reference: Hashable, rounds: int) -> list[dict[str, Any]]:
    """Bytes and seconds of every step, in the order given, with ratios to those of the reference."""
    saved = {key: saved_bytes(step.loss, step.module) for key, step in steps.items()}
    for step in steps.values():
        step.run()
    peak = {key: peak_bytes(step.run, step.device) for key, step in steps.items()}
    seconds: dict[Hashable, list[float]] = {key: [] for key in steps}
    for _ in range(rounds):
        for key, step in steps.items():
            seconds[key].append(step.run())
    least = {key: min(found) for key, found in seconds.items()}
    return [
        {
            "saved_mib": saved[key] / 2**20,
            "saved_ratio": saved[key] / saved[reference],
            "peak_mib": peak[key] / 2**20,
            "peak_ratio": peak[key] / peak[reference],
            "parameter_mib": storage_bytes(step.module.parameters()) / 2**20,
            "step_ms_min": 1e3 * least[key],
            "step_ratio_min": least[key] / least[reference],
            "step_ratio_median": statistics.median(
                a / b for a, b in zip(seconds[key], seconds[reference], strict=True)
            ),
        }
        for key, step in steps.items()
    ]


def channel_rows(batch: int, rounds: int, device: torch.device, seed: int) -> list[dict[str, Any]]:
    """Table of channel options."""
    steps: dict[Hashable, Step] = {}
    for method in (MASKED, NAIVE, NNI):
        for options in OPTIONS:
            step = channel_step(method, options, batch, device, seed)
            if step is not None:
                steps[method, options] = step
    found = measured(steps, (MASKED, 1), rounds)
    return [{"method": key[0], "options": key[1], **row} for key, row in zip(steps, found, strict=True)]  # type: ignore[index]


def resolution_rows(batch: int, rounds: int, device: torch.device, seed: int) -> list[dict[str, Any]]:
    """Table of resolutions."""
    made = partial(resolution_step, batch=batch, device=device, seed=seed)
    keys = [(count, recompute) for recompute in (False, True) for count in range(1, len(RESOLUTIONS) + 1)]
    found = measured({key: made(*key) for key in keys}, (1, False), rounds)
    return [
        {"resolutions": count, "maps": "of the largest" if recompute else "all kept", **row}
        for (count, recompute), row in zip(keys, found, strict=True)
    ]


def figure(channels: pd.DataFrame, resolutions: pd.DataFrame, path: Path) -> None:
    """Saved bytes against options and against resolutions."""

    def lines(table: pd.DataFrame, by: str, x: str) -> list[Line]:
        return [
            Line(name=str(name), x=rows[x].to_list(), y=rows["saved_mib"].to_list())
            for name, rows in table.groupby(by, sort=False)
        ]

    options = Panel(
        title="kept for the backward pass, MiB", x_label="channel options", lines=lines(channels, "method", "options"),
        from_zero=True,
    )  # fmt: skip
    named = resolutions.assign(maps=resolutions["maps"].map({"all kept": "all kept", "of the largest": "--recompute"}))
    sides = Panel(
        title="kept for the backward pass, MiB", x_label="resolutions", lines=lines(named, "maps", "resolutions"),
        from_zero=True,
    )  # fmt: skip
    draw([options, sides], path, "Bytes kept for the backward pass against channel options and resolutions")


def main() -> None:
    """Print and write both tables, and the figure where it is asked for."""
    options = parser(__doc__)
    options.add_argument("--batch", type=int, default=8, help="images of a step of the channel options")
    options.add_argument("--resolution-batch", type=int, default=4, help="images of a step of the resolutions")
    options.add_argument("--rounds", type=int, default=8, help="turns of every variant")
    options.add_argument("--device", default="cpu", help="cpu or cuda")
    options.add_argument("--figure", type=Path, default=None, help="an SVG of both tables")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    where: dict[str, Any] = {"rounds": arguments.rounds, "seed": arguments.seed}
    where |= {"device": torch.device(arguments.device)}
    tables = {}
    for name, rows, batch in (
        ("flat_memory", channel_rows, arguments.batch),
        ("flat_memory_resolutions", resolution_rows, arguments.resolution_batch),
    ):
        found = [row | {"batch": batch} | where for row in rows(batch, **where)]
        write_table(found, arguments.out / f"{name}.csv")
        tables[name] = pd.DataFrame(found)
    if arguments.figure is not None:
        figure(tables["flat_memory"], tables["flat_memory_resolutions"], arguments.figure)


if __name__ == "__main__":
    main()
