"""What a latency table has to hold: the distinct parts of a network, and of all networks of a space. No torch here.

A *part* is what one measurement times: a block on the map that enters it, the classifier, a seam, or a call of the runtime
that computes next to nothing; `search_spaces.latency` says what seams are for.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from search_spaces.architecture import MAX_RESOLUTION, Architecture, Block
from search_spaces.cost import out_size
from search_spaces.serialisation import require
from search_spaces.space import SearchSpace

Grid = npt.NDArray[Any]  # of Part, or None where no row leads
Other = Literal["classifier", "seam", "call"]


@dataclass(frozen=True, slots=True)
class Part:
    """What one measurement times.

    Attributes:
        side: of the map that enters, in pixels.
        in_channels: channels that enter.
        what: the block, or ``classifier`` (average pool and linear layer), ``seam`` or ``call``.
        first: whether it is the image itself that enters.
    """

    side: int
    in_channels: int
    what: Block | Other
    first: bool = False

    @property
    def out_side(self) -> int:
        """Side of the map that leaves; below 1 where the kernel does not fit."""
        if not isinstance(self.what, Block):
            return self.side if self.what == "seam" else 1
        if self.what.kind == "pool_head":
            return 1
        return out_size(self.side, self.what.stride, self.what.kernel - 1 - 2 * self.what.pad)

    @property
    def is_nothing(self) -> bool:
        """Whether nothing is computed: a skip that keeps the shape."""
        return isinstance(self.what, Block) and self.what.kind == "skip" and self.what.keeps_shape(self.in_channels)

    @property
    def seams(self) -> tuple["Part", "Part"]:
        """What it is measured between: the seams before and after it, the call in place of image and logits."""
        before = CALL if self.first else Part(self.side, self.in_channels, "seam")
        after = Part(self.out_side, self.what.out_channels, "seam") if isinstance(self.what, Block) else CALL
        return before, after

    def __str__(self) -> str:
        if not isinstance(self.what, Block):
            return f"{self.what} of {self.in_channels} channels on {self.side}x{self.side}"
        block = self.what
        told = ("kind", "out_channels", "kernel", "activation")
        rest = [(field.name, getattr(block, field.name)) for field in fields(block) if field.name not in told]
        facts = [block.activation, *(f"{name} {value}" for name, value in rest if value != _DEFAULTS[name])]
        kernel = f" {block.kernel}x{block.kernel}" if block.kernel > 1 else ""
        channels = f"{self.in_channels} to {block.out_channels} channels"
        return f"{block.kind}{kernel} block of {channels} on {self.side}x{self.side} ({', '.join(facts)})"


_DEFAULTS = {field.name: field.default for field in fields(Block)}
CALL = Part(0, 0, "call")


def placed(side: int, in_channels: int, block: Block, *, first: bool = False) -> Part:
    """A block on the map that enters it. Equal modules are equal parts, so a padding that is the usual one is left unsaid."""
    if block.padding is not None and block.pad == block.kernel // 2:
        block = replace(block, padding=None)
    return Part(side, in_channels, block, first)


def network_parts(architecture: Architecture, in_channels: int = 3, resolution: int | None = None) -> list[Part]:
    """Parts of a network in order, the classifier last; skips that compute nothing are left out.

    Args:
        architecture: the network.
        in_channels: channels of the image.
        resolution: side of the image in pixels; default the architecture's own.

    Raises:
        UserError: an image too small for the network, or a resolution out of range.
    """
    image = side = architecture.resolution if resolution is None else resolution
    require(1 <= side <= MAX_RESOLUTION, f"resolution must be in 1..{MAX_RESOLUTION}, got {side}")
    parts = []
    for index, (channels, block) in enumerate(architecture.layers(in_channels)):
        part = placed(side, channels, block, first=index == 0)
        require(part.out_side > 0, f"an image of side {image} is too small: the {part} has nothing to do")
        if not part.is_nothing:
            parts.append(part)
        side = part.out_side
    return [*parts, Part(side, architecture.out_channels, "classifier")]


def seams_of(parts: Iterable[Part]) -> list[Part]:
    """The call and all distinct seams between which ``parts`` are measured, in order of first use."""
    return list(dict.fromkeys([CALL, *(seam for part in parts for seam in part.seams)]))


def check_resolutions(space: SearchSpace, resolutions: Iterable[int] | None) -> tuple[int, ...]:
    """Sides of the input image to measure, increasing; all of the space where none are given.

    Raises:
        UserError: one that the space does not have, or none at all.
    """
    options = tuple(int(side) for side in space.resolution.options)
    chosen = options if resolutions is None else tuple(sorted(set(resolutions)))
    require(len(chosen) > 0, "resolutions must be at least one")
    for side in chosen:
        require(side in options, f"{space.name} has no resolution {side}; it has {', '.join(map(str, options))}")
    return chosen


def space_parts(space: SearchSpace, in_channels: int, resolutions: Iterable[int] | None = None) -> list[Part]:
    """Every distinct block and classifier of all networks of a space, each once, in a fixed order.

    Args:
        space: the space.
        in_channels: channels of the image.
        resolutions: sides of the image in pixels; default all of the space.

    Raises:
        UserError: a resolution that the space does not have.
    """
    found: dict[Part, None] = {}
    for resolution in check_resolutions(space, resolutions):
        for grid in space_grids(space, resolution, in_channels):
            found.update((part, None) for part in grid.flat if part is not None and not part.is_nothing)
    return list(found)


def space_grids(space: SearchSpace, resolution: int, in_channels: int) -> list[Grid]:
    """What every choice of a space builds for one resolution: stem, slots in order, head, classifier.

    Returns:
        Parts, stem and head `(n_widths,)`, every slot `(T, J, E, K)` (block types, input widths, expansions, output widths, as
        `search_spaces.tables.SlotTable`), classifier `()`. Slots with equal options on equal maps share one grid.
    """
    stem_widths = [int(width) for width in space.built_widths(space.stem.width)]
    grids = [_grid([placed(resolution, in_channels, space.build_stem(w), first=True) for w in stem_widths])]
    side, known = out_size(resolution, space.stem.stride), dict[Any, Grid]()
    for index, slot in enumerate(space.slots):
        before, after = space.in_width(index), slot.width
        tied = before == after
        alike = (side, slot.stride, before.options, after.options, tied, slot.block.options, slot.expansion.options)
        if alike not in known:
            known[alike] = _slot_grid(space, index, side)
        grids.append(known[alike])
        side = out_size(side, slot.stride)
    last_widths = [int(width) for width in space.built_widths(space.slots[-1].width)]
    grids.append(_grid([placed(side, width, space.build_head(width)) for width in last_widths]))
    return [*grids, _grid([Part(1, space.head.out_channels, "classifier")]).reshape(())]


def _slot_grid(space: SearchSpace, index: int, side: int) -> Grid:
    """Parts `(T, J, E, K)` of one slot; None off the diagonal of J and K where both widths are one choice."""
    slot = space.slots[index]
    in_widths = [int(width) for width in space.built_widths(space.in_width(index))]
    out_widths = [int(width) for width in space.built_widths(slot.width)]
    tied = space.in_width(index) == slot.width
    parts = [
        None if tied and j != k else placed(side, before, space.build_block(slot, block, before, expansion, after))
        for block in slot.block_types
        for j, before in enumerate(in_widths)
        for expansion in slot.expansion.options
        for k, after in enumerate(out_widths)
    ]
    return _grid(parts).reshape(len(slot.block_types), len(in_widths), len(slot.expansion.options), len(out_widths))


def _grid(parts: list[Part] | list[Part | None]) -> Grid:
    grid = np.empty(len(parts), dtype=object)
    grid[:] = parts
    return grid
