"""A search space of networks: variables plus the layers that read them.

A *slot* is a place for one block. Block type, expansion, width and presence of a slot each refer to a variable; two slots that
refer to the same variable share the choice. A variable with one option is a constant and no part of a row.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from search_spaces.architecture import Activation, Architecture, Block
from search_spaces.serialisation import require
from search_spaces.variables import Choice, Range, Rows, Variable, VariableSet

SqueezeRule = Literal["quarter_of_mid", "quarter_of_in"]


def round_channels(channels: float, divisor: int = 8, threshold: float = 0.95) -> int:
    """The published networks' rounding R of a width to a multiple of ``divisor``, never below ``threshold`` of it."""
    if channels % divisor == 0 and channels > 0:
        return int(channels)
    rounded = divisor * max(1, int(channels / divisor + 0.5))
    return rounded + divisor if rounded < threshold * channels else rounded


@dataclass(frozen=True, slots=True)
class BlockType:
    """One row of thesis Table 3.3; kernel 0 marks ``skip``."""

    name: str
    kernel: int
    squeeze: bool
    activation: Activation

    @property
    def is_skip(self) -> bool:
        """Whether this is the skip connection."""
        return self.kernel == 0


# Thesis Table 3.3; the rows printed "ir_k3_se_hs3" and "ir_k5_se_hs5" are ir_k3_se_hs with kernel 3, ir_k5_se_hs with 5.
BLOCK_TYPES: dict[str, BlockType] = {
    block.name: block
    for block in (
        BlockType("ir_k3", 3, False, "relu"),
        BlockType("ir_k5", 5, False, "relu"),
        BlockType("ir_k3_hs", 3, False, "hswish"),
        BlockType("ir_k5_hs", 5, False, "hswish"),
        BlockType("ir_k3_se", 3, True, "relu"),
        BlockType("ir_k5_se", 5, True, "relu"),
        BlockType("ir_k3_se_hs", 3, True, "hswish"),
        BlockType("ir_k5_se_hs", 5, True, "hswish"),
        BlockType("skip", 0, False, "relu"),
    )
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """A place for one block.

    ``depth`` and ``position``: the block is there iff the chosen depth exceeds ``position``; absent blocks are always the
    last of their stage, where width does not change.
    """

    block: Variable
    expansion: Variable
    width: Variable
    stride: int
    depth: Variable | None = None
    position: int = 0

    @property
    def pointwise(self) -> bool:
        """Searched spaces leave the first pointwise convolution out only where the expansion is the constant 1."""
        return self.expansion.options != (1,)

    @property
    def block_types(self) -> tuple[BlockType, ...]:
        """Options of the block variable."""
        return cast(tuple[BlockType, ...], self.block.options)


@dataclass(frozen=True, kw_only=True, slots=True)
class Stem:
    """First convolution."""

    width: Variable
    kernel: int = 3
    stride: int = 2
    activation: Activation = "hswish"


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolHead:
    """Efficient last stage: expansion of its middle width, and its output channels."""

    out_channels: int
    expansion: float = 6.0
    activation: Activation = "hswish"


class SearchSpace(VariableSet):
    """All networks of a family; rows decode to Architectures and back.

    Args:
        name: what the space is called on the command line.
        resolution: sides of the input image in pixels.
        stem: first convolution.
        slots: searched layers in order.
        head: last stage.
        squeeze: rule of the squeeze-and-excite width, see `squeeze_channels`.
        round_widths: whether width options are rounded to multiples of 8 when built (FBNetV3) or stand (FBNetV2).
        description: one line for listings.
    """

    def __init__(
        self,
        name: str,
        *,
        resolution: Range,
        stem: Stem,
        slots: Sequence[Slot],
        head: PoolHead,
        squeeze: SqueezeRule = "quarter_of_mid",
        round_widths: bool = False,
        description: str = "",
    ) -> None:
        require(len(slots) > 0, f"space {name} has no searched layers")
        self.description, self.round_widths = description, round_widths
        self.resolution, self.stem, self.slots, self.head, self.squeeze = resolution, stem, tuple(slots), head, squeeze
        found: dict[str, Variable] = {}
        for variable in self._referenced():
            known = found.setdefault(variable.name, variable)
            require(known == variable, f"space {name}: two different variables are called {variable.name!r}")
        super().__init__([variable for variable in found.values() if len(variable.options) > 1], name=name)

    def _referenced(self) -> Iterator[Variable]:
        yield self.resolution
        yield self.stem.width
        for slot in self.slots:
            if slot.depth is not None:
                yield slot.depth
            yield from (slot.block, slot.expansion, slot.width)

    def __repr__(self) -> str:
        return f"SearchSpace({self.name!r}, {len(self)} variables, {len(self.slots)} layers)"

    def picked(self, rows: Rows, variable: Variable) -> Rows:
        """Option indices `(n,)` of ``variable`` in ``rows`` `(n, d)`; zeros for a constant."""
        column = self.column.get(variable.name)
        return np.zeros(len(rows), dtype=np.int64) if column is None else rows[:, column]

    def built_widths(self, variable: Variable) -> npt.NDArray[np.int64]:
        """Width options `(n_options,)` as built."""
        return np.array([round_channels(w) if self.round_widths else w for w in variable.options], dtype=np.int64)

    def in_width(self, index: int) -> Variable:
        """The width variable of what enters slot ``index``."""
        return self.slots[index - 1].width if index else self.stem.width

    def mid_channels(self, slot: Slot, in_channels: int, expansion: float) -> int:
        """Width between expansion and projection."""
        return round_channels(in_channels * expansion) if slot.pointwise else in_channels

    def squeeze_channels(self, mid_channels: int, expansion: float) -> int:
        """Squeeze-and-excite width: a quarter of the middle width (FBNetV2) or of the block's input width (FBNetV3)."""
        share = 0.25 if self.squeeze == "quarter_of_mid" else 0.25 / expansion
        return round_channels(int(share * mid_channels))

    def head_mid_channels(self, in_channels: int) -> int:
        """Middle width of the pool head."""
        return round_channels(in_channels * self.head.expansion)

    def decode(self, row: npt.ArrayLike) -> Architecture:
        """The network of one row of option indices `(d,)`.

        Raises:
            UserError: a row of the wrong length or an index that does not exist.
        """
        rows = self.check_rows(row)
        require(len(rows) == 1, f"decode takes one row, got {len(rows)}")

        def value(variable: Variable) -> Any:
            return variable.options[int(self.picked(rows, variable)[0])]

        def width(variable: Variable) -> int:
            return int(self.built_widths(variable)[self.picked(rows, variable)[0]])

        channels = width(self.stem.width)
        blocks = [self.build_stem(channels)]
        for slot in self.slots:
            if slot.depth is None or value(slot.depth) > slot.position:
                out_channels = width(slot.width)
                blocks.append(self.build_block(slot, value(slot.block), channels, value(slot.expansion), out_channels))
                channels = out_channels
        blocks.append(self.build_head(channels))
        return Architecture(name=self.name, resolution=int(value(self.resolution)), blocks=tuple(blocks))

    def build_stem(self, out_channels: int) -> Block:
        """The first convolution for one width."""
        return Block(
            kind="conv",
            out_channels=out_channels,
            kernel=self.stem.kernel,
            stride=self.stem.stride,
            activation=self.stem.activation,
        )

    def build_head(self, in_channels: int) -> Block:
        """The last stage for one width of the last slot."""
        return Block(
            kind="pool_head",
            out_channels=self.head.out_channels,
            mid_channels=self.head_mid_channels(in_channels),
            activation=self.head.activation,
        )

    def build_block(self, slot: Slot, block: BlockType, in_channels: int, expansion: float, out_channels: int) -> Block:
        """The block of ``slot`` for one block type, expansion and pair of widths."""
        if block.is_skip:
            return Block(kind="skip", out_channels=out_channels, stride=slot.stride)
        mid = self.mid_channels(slot, in_channels, expansion)
        return Block(
            kind="ir",
            out_channels=out_channels,
            kernel=block.kernel,
            stride=slot.stride,
            mid_channels=mid,
            squeeze_channels=self.squeeze_channels(mid, expansion) if block.squeeze else 0,
            activation=block.activation,
            pointwise=slot.pointwise,
        )

    def canonical(self, rows: npt.ArrayLike) -> Rows:
        """Rows that build the same network become the same row `(n, d)`.

        Variables that build nothing (expansion of a skip, choices of absent layers) and options that build alike (widths or
        expansions that round to the same channels) are set to their first such option.
        """
        rows = self._with_first_widths(self.check_rows(rows))
        present = [self.present(rows, slot) for slot in self.slots]
        for variable in self.variables:
            if readers := self._readers(variable):
                rows[:, self.column[variable.name]] = self._first_alike(rows, variable, readers, present)
        return rows

    def canonical_column(self, rows: Rows, column: int) -> npt.NDArray[np.int64]:
        """`(n,)` one column of `canonical`, without the others."""
        rows, variable = self._with_first_widths(rows), self.variables[column]
        if not (readers := self._readers(variable)):
            return rows[:, column]
        present = [
            self.present(rows, slot) if i in readers else np.ones(0, dtype=bool) for i, slot in enumerate(self.slots)
        ]
        return self._first_alike(rows, variable, readers, present)

    def _with_first_widths(self, rows: Rows) -> Rows:
        """A copy in which widths that build alike are the first such option."""
        rows = rows.copy()
        for variable in {self.stem.width.name: self.stem.width, **{s.width.name: s.width for s in self.slots}}.values():
            if variable.name in self.column:
                first = _first_equal(self.built_widths(variable))
                rows[:, self.column[variable.name]] = first[self.picked(rows, variable)]
        return rows

    def _readers(self, variable: Variable) -> list[int]:
        """Slots whose block type or expansion the variable is."""
        return [i for i, slot in enumerate(self.slots) if variable in (slot.block, slot.expansion)]

    def present(self, rows: Rows, slot: Slot) -> npt.NDArray[np.bool_]:
        """`(n,)` whether the slot holds a block."""
        if slot.depth is None:
            return np.ones(len(rows), dtype=bool)
        return np.asarray(slot.depth.options)[self.picked(rows, slot.depth)] > slot.position

    def _first_alike(
        self, rows: Rows, variable: Variable, readers: list[int], present: list[npt.NDArray[np.bool_]]
    ) -> npt.NDArray[np.int64]:
        """`(n,)` first option of ``variable`` that builds what the chosen one builds, in every slot that reads it."""
        chosen = self.picked(rows, variable)
        alike = np.ones((len(rows), len(variable.options)), dtype=bool)
        for index in readers:
            slot = self.slots[index]
            if variable == slot.block:
                same = np.arange(len(variable.options)) == chosen[:, None]
            else:
                mid, squeeze = self.middle_tables(index)
                types, j = self.picked(rows, slot.block), self.picked(rows, self.in_width(index))
                uses_squeeze = np.array([block.squeeze for block in slot.block_types])[types]
                is_skip = np.array([block.is_skip for block in slot.block_types])[types]
                same = mid[j] == mid[j, chosen][:, None]
                same &= (squeeze[j] == squeeze[j, chosen][:, None]) | ~uses_squeeze[:, None]
                same |= is_skip[:, None]
            alike &= same | ~present[index][:, None]
        return np.asarray(alike.argmax(axis=1))

    def middle_tables(self, index: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Middle and squeeze channels `(n_in, n_expansions)` of slot ``index``."""
        return self._all_middle_tables[index]

    @cached_property
    def _all_middle_tables(self) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        tables = []
        for index, slot in enumerate(self.slots):
            grid = [
                [self.mid_channels(slot, int(width), e) for e in slot.expansion.options]
                for width in self.built_widths(self.in_width(index))
            ]
            squeeze = [
                [self.squeeze_channels(mid, e) for mid, e in zip(row, slot.expansion.options, strict=True)]
                for row in grid
            ]
            tables.append((np.array(grid, dtype=np.int64), np.array(squeeze, dtype=np.int64)))
        return tables


def _first_equal(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """`(k,)` index of the first entry equal to each entry."""
    return np.asarray((values[:, None] == values).argmax(axis=1))


SpaceFunction = Callable[[], SearchSpace]


def constant(name: str, value: Any) -> Choice:
    """A variable with one option."""
    return Choice(name, (value,))
