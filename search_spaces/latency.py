"""Latency of networks as sums over a table of measured parts; measuring itself is `nas.latency`. No torch here.

A block alone in a model pays for the edges of that model: ONNX Runtime keeps maps in a memory layout of its own inside a
network and converts them where a model begins and ends. So a block is measured there between two fixed convolutions, A before
and B after it, and a *seam* is A and B alone, on the map between two blocks. With "call" for a model that does next to nothing,

    latency of a network = call + sum over its parts of [part - (seam before + seam after) / 2],

where the image and the logits have the call for a seam. Of A and B a part keeps (A - B) / 2 for the map that enters it and
(B - A) / 2 for the one that leaves; every map inside a network leaves one part and enters the next, so these cancel in the sum.
A runtime that needs none of this (PyTorch eager) has a table without seams, and the latency is the plain sum.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from search_spaces.architecture import Architecture, Block
from search_spaces.cost import check_image_and_classes
from search_spaces.errors import UserError
from search_spaces.latency_parts import CALL, Grid, Other, Part, network_parts, space_grids
from search_spaces.serialisation import from_plain, from_versioned, read_json, require, to_plain, write_text_atomic
from search_spaces.space import SearchSpace

SCHEMA = 1
BackendName = Literal["eager", "onnxruntime"]
Milliseconds = npt.NDArray[np.float64]

# What is allowed of each number that a measurement is made with.
LIMITS = {"threads": (1, 1024), "batch": (1, 4096), "warmup": (0, 10_000), "repeats": (1, 100_000), "passes": (1, 1000)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditions:
    """How something was measured.

    Attributes:
        backend: what ran it.
        threads: CPU threads of the backend.
        batch: images in one call.
        warmup: calls before every pass that are not timed.
        repeats: timed calls in every pass.
        passes: times that everything was measured, with everything else in between.
        device: the processor.
        versions: of the libraries, by name.

    Raises:
        UserError: a number out of range.
    """

    backend: BackendName
    threads: int = 1
    batch: int = 1
    warmup: int = 3
    repeats: int = 10
    passes: int = 5
    device: str
    versions: dict[str, str]

    def __post_init__(self) -> None:
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            require(low <= value <= high, f"{name} must be in {low}..{high}, got {value}")


class Timing(NamedTuple):
    """Median of the quietest pass (other work on a machine only ever adds), and the distance of that pass's quartiles."""

    latency_ms: float
    spread_ms: float


@dataclass(frozen=True, kw_only=True)
class LatencyTable:
    """Measured parts of a space's networks.

    Attributes:
        space: name of the space.
        num_classes: outputs of the classifier.
        in_channels: channels of the image.
        resolutions: sides of the images in pixels for which every part was measured.
        conditions: how it was measured.
        turns: groups of parts to measure in all passes together.
        turns_done: how many of them were.
        timings: by part, the call and the seams included.
        where: of messages: the file.
    """

    space: str
    num_classes: int
    in_channels: int
    resolutions: tuple[int, ...]
    conditions: Conditions
    turns: int
    turns_done: int
    timings: Mapping[Part, Timing]
    where: str = "latency table"

    def __post_init__(self) -> None:
        check_image_and_classes(self.num_classes, self.in_channels)
        require(0 <= self.turns_done <= self.turns, f"turns_done must be in 0..{self.turns}, got {self.turns_done}")
        for part, (latency_ms, spread_ms) in self.timings.items():
            require(latency_ms > 0 and spread_ms >= 0, f"the times of the {part} must be > 0, got {latency_ms}")

    @property
    def complete(self) -> bool:
        """Whether everything was measured in every pass."""
        return self.turns_done == self.turns

    def part_ms(self, part: Part) -> float:
        """What a part adds to the latency of a network.

        Raises:
            UserError: it was not measured.
        """
        if part.is_nothing:
            return 0.0
        if CALL not in self.timings:
            return self._measured_ms(part)
        before, after = part.seams
        return self._measured_ms(part) - (self._measured_ms(before) + self._measured_ms(after)) / 2

    @property
    def call_ms(self) -> float:
        """What a network costs before its first part."""
        return self.timings[CALL].latency_ms if CALL in self.timings else 0.0

    def _measured_ms(self, part: Part) -> float:
        timing = self.timings.get(part)
        if timing is None:
            sides = ", ".join(map(str, self.resolutions))
            raise UserError(
                f"{self.where} has no time of the {part}; it was measured for space {self.space},"
                f" {self.num_classes} classes, {self.in_channels} image channels, resolution {sides}"
            )
        return timing.latency_ms

    def latency_ms(self, architecture: Architecture, resolution: int | None = None) -> float:
        """Predicted latency of one network; every block of it must be in the table.

        Args:
            architecture: the network.
            resolution: side of the image in pixels; default the architecture's own.

        Raises:
            UserError: a block that was not measured, or an image too small for the network.
        """
        total = self.call_ms
        for part in network_parts(architecture, self.in_channels, resolution):
            total += self.part_ms(part)
        return total

    def save(self, path: str | Path) -> None:
        """Write as JSON, atomically."""
        write_text_atomic(path, json.dumps({"schema": SCHEMA, **_to_file(self)}, separators=(",", ":")) + "\n")

    @classmethod
    def load(cls, path: str | Path, *, partial: bool = False) -> "LatencyTable":
        """Read what `save` wrote.

        Args:
            path: the file.
            partial: whether it may be that of a measurement which has not ended.

        Raises:
            UserError: a missing, damaged, foreign or incomplete file.
        """
        table = _from_file(from_versioned(_File, read_json(path), SCHEMA, str(path)), str(path))
        require(
            partial or table.complete,
            f"{path} is not complete ({table.turns_done} of {table.turns} turns);"
            f" go on with: nas latency --space {table.space} --out {path} --resume",
        )
        return table


class SpaceLatency:
    """Latencies of a space's rows from a table: every slot's parts as one dense array, built once.

    Args:
        space: the space.
        table: measured for it, or for a space that holds all its blocks.
    """

    def __init__(self, space: SearchSpace, table: LatencyTable) -> None:
        self.space, self.table = space, table
        known: dict[int, Milliseconds] = {}
        grids = [space_grids(space, int(side), table.in_channels) for side in space.resolution.options]
        # (n_resolutions, n_widths) of the stem, (n_resolutions, T, J, E, K) of every slot, then head and classifier
        self._ms = [np.stack([self._looked_up(grid, known) for grid in same]) for same in zip(*grids, strict=True)]

    def _looked_up(self, grid: Grid, known: dict[int, Milliseconds]) -> Milliseconds:
        """Milliseconds of every part of a grid, NaN where there are none; equal slots share their grid and are done once."""
        if id(grid) not in known:
            flat = [np.nan if part is None else self._part_ms(part) for part in grid.flat]
            known[id(grid)] = np.array(flat, dtype=np.float64).reshape(grid.shape)
        return known[id(grid)]

    def _part_ms(self, part: Part) -> float:
        held = part.is_nothing or all(p in self.table.timings for p in self._needed(part))
        return self.table.part_ms(part) if held else np.nan

    def _needed(self, part: Part) -> tuple[Part, ...]:
        return (part, *part.seams) if CALL in self.table.timings else (part,)

    def latency_ms(self, rows: npt.ArrayLike) -> Milliseconds:
        """Predicted latency of every row of a pool; exactly `LatencyTable.latency_ms` of its networks.

        Args:
            rows: `(n, d)` option indices.

        Returns:
            `(n,)`.

        Raises:
            UserError: rows of another space, or a block that was not measured.
        """
        space, rows = self.space, self.space.check_rows(rows)
        side = space.picked(rows, space.resolution)
        stem, *slots, head, classifier = self._ms
        total = self.table.call_ms + stem[side, space.picked(rows, space.stem.width)]
        for index, (slot, ms) in enumerate(zip(space.slots, slots, strict=True)):
            block = ms[
                side,
                space.picked(rows, slot.block),
                space.picked(rows, space.in_width(index)),
                space.picked(rows, slot.expansion),
                space.picked(rows, slot.width),
            ]
            total += block if slot.depth is None else np.where(space.present(rows, slot), block, 0.0)
        total += head[side, space.picked(rows, space.slots[-1].width)]
        total += classifier[side]
        missing = np.flatnonzero(np.isnan(total))
        if len(missing):
            self.table.latency_ms(space.decode(rows[missing[0]]))  # says which block
        return total


# the file --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Blocks:
    """Blocks that differ in sizes only, column by column."""

    shared: dict[str, Any]  # fields of all these blocks, where they are not the default
    first: bool
    side: tuple[int, ...]
    in_channels: tuple[int, ...]
    mid_channels: tuple[int, ...]
    squeeze_channels: tuple[int, ...]
    out_channels: tuple[int, ...]
    latency_ms: tuple[float, ...]
    spread_ms: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Others:
    """Classifiers or seams, column by column."""

    side: tuple[int, ...]
    in_channels: tuple[int, ...]
    latency_ms: tuple[float, ...]
    spread_ms: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _File:
    """A latency table as it is written."""

    space: str
    num_classes: int
    in_channels: int
    resolutions: tuple[int, ...]
    conditions: Conditions
    turns: int
    turns_done: int
    blocks: tuple[_Blocks, ...]
    classifier: _Others
    seam: _Others
    call: _Others


_SIZES = ("mid_channels", "squeeze_channels", "out_channels")
_HEADER = ("space", "num_classes", "in_channels", "resolutions", "conditions", "turns", "turns_done")


def _to_file(table: LatencyTable) -> dict[str, Any]:
    blocks: dict[tuple[Any, ...], dict[str, Any]] = {}
    others: dict[str, dict[str, list[float]]] = {}
    for part, timing in table.timings.items():
        if isinstance(part.what, Block):
            shared = _shared(part.what)
            columns = blocks.setdefault((*shared.items(), part.first), {"shared": shared, "first": part.first})
            for name in _SIZES:
                columns.setdefault(name, []).append(getattr(part.what, name))
        else:
            columns = others.setdefault(part.what, {})
        for name, value in (("side", part.side), ("in_channels", part.in_channels), *timing._asdict().items()):
            columns.setdefault(name, []).append(value)
    empty: dict[str, list[float]] = {name: [] for name in ("side", "in_channels", *Timing._fields)}
    return {
        **{name: to_plain(getattr(table, name)) for name in _HEADER},
        "blocks": list(blocks.values()),
        **{what: others.get(what, empty) for what in ("classifier", "seam", "call")},
    }


def _shared(block: Block) -> dict[str, Any]:
    values = {field.name: (getattr(block, field.name), field.default) for field in fields(block)}
    return {name: value for name, (value, default) in values.items() if name not in _SIZES and value != default}


def _from_file(file: _File, where: str) -> LatencyTable:
    timings: dict[Part, Timing] = {}

    def add(columns: _Blocks | _Others, label: str, part: Callable[[int], Part]) -> None:
        names = ["side", "in_channels", *Timing._fields, *(_SIZES if isinstance(columns, _Blocks) else ())]
        lengths = {name: len(getattr(columns, name)) for name in names}
        equal = len(set(lengths.values())) == 1
        require(equal, f"{where}: columns of {label} must be equally long, got {lengths}")
        for i, timing in enumerate(zip(columns.latency_ms, columns.spread_ms, strict=True)):
            made = part(i)
            require(made not in timings, f"{where}: the {made} is there twice")
            timings[made] = Timing(*timing)

    try:
        for index, blocks in enumerate(file.blocks):
            twice = set(blocks.shared) & set(_SIZES)
            require(not twice, f"{where}: blocks[{index}].shared must not hold {', '.join(sorted(twice))}")

            def block_part(i: int, blocks: _Blocks = blocks, label: str = f"{where}: blocks[{index}]") -> Part:
                sizes = {name: getattr(blocks, name)[i] for name in _SIZES}
                block = Block(**blocks.shared, **sizes) if i else from_plain(Block, blocks.shared | sizes, label)
                return Part(blocks.side[i], blocks.in_channels[i], block, blocks.first)

            add(blocks, f"blocks[{index}]", block_part)
        others: dict[Other, _Others] = {"classifier": file.classifier, "seam": file.seam, "call": file.call}
        for what, columns in others.items():

            def other_part(i: int, columns: _Others = columns, what: Other = what) -> Part:
                return Part(columns.side[i], columns.in_channels[i], what)

            add(columns, what, other_part)
        header = {name: getattr(file, name) for name in _HEADER}
        return LatencyTable(**header, timings=timings, where=where)
    except UserError as error:
        message = str(error)
        raise UserError(message if message.startswith(where) else f"{where}: {message}") from error
