"""Is a given network a member of a space, and which row builds it?"""

from collections.abc import Iterator

import numpy as np

from search_spaces.architecture import Architecture
from search_spaces.errors import UserError
from search_spaces.serialisation import require
from search_spaces.space import SearchSpace
from search_spaces.variables import Rows, Variable


def row_of(space: SearchSpace, architecture: Architecture) -> Rows:
    """The canonical row `(d,)` that builds ``architecture``; widths are compared as built, the name does not matter.

    Raises:
        UserError: no row does; the message names the first block that no choice builds.
    """
    return np.asarray(space.canonical(_Matcher(space, architecture).search())[0])


class _Matcher:
    """Depth-first search for an assignment of variables that builds a given architecture, block after block."""

    def __init__(self, space: SearchSpace, architecture: Architecture) -> None:
        self.space, self.blocks = space, architecture.blocks
        self.resolution = architecture.resolution
        self.furthest = 0

    def search(self) -> Rows:
        space = self.space
        require(
            self.resolution in space.resolution.options,
            f"resolution {self.resolution} is not in space {space.name}: {space.resolution.options}",
        )
        chosen = {space.resolution.name: space.resolution.options.index(self.resolution)}
        for option, width in enumerate(space.built_widths(space.stem.width)):
            start = {**chosen, space.stem.width.name: option}
            if self.blocks[0] == space.build_stem(int(width)):
                found = self._match(0, 1, start)
                if found is not None:
                    return np.array([[found.get(v.name, 0) for v in space.variables]], dtype=np.int64)
        block = self.blocks[self.furthest]
        raise UserError(f"block {self.furthest} is built by no choice of space {space.name}: {block}")

    def _match(self, index: int, position: int, chosen: dict[str, int]) -> dict[str, int] | None:
        """Match slots from ``index`` with blocks from ``position``; None where it cannot be done."""
        self.furthest = max(self.furthest, min(position, len(self.blocks) - 1))
        space = self.space
        if index == len(space.slots):
            channels = self.blocks[position - 1].out_channels
            return chosen if self.blocks[position:] == (space.build_head(channels),) else None
        slot = space.slots[index]
        if slot.depth is not None and slot.position in slot.depth.options:
            absent = self._choose(chosen, slot.depth, slot.depth.options.index(slot.position))
            if absent is not None:
                after = next(
                    (i for i in range(index, len(space.slots)) if space.slots[i].depth != slot.depth), len(space.slots)
                )
                found = self._match(after, position, absent)
                if found is not None:
                    return found
        if slot.depth is not None and slot.position + 1 == max(slot.depth.options):
            deepest = self._choose(chosen, slot.depth, len(slot.depth.options) - 1)
            if deepest is None:
                return None
            chosen = deepest
        if position >= len(self.blocks):
            return None
        for option in self._options(index, position, chosen):
            found = self._match(index + 1, position + 1, option)
            if found is not None:
                return found
        return None

    def _options(self, index: int, position: int, chosen: dict[str, int]) -> Iterator[dict[str, int]]:
        """Every way in which slot ``index`` builds block ``position``, given what is chosen."""
        space, slot, block = self.space, self.space.slots[index], self.blocks[position]
        in_channels = self.blocks[position - 1].out_channels
        for width, channels in enumerate(space.built_widths(slot.width)):
            with_width = self._choose(chosen, slot.width, width) if channels == block.out_channels else None
            if with_width is None:
                continue
            for kind, block_type in enumerate(slot.block_types):
                with_kind = self._choose(with_width, slot.block, kind)
                if with_kind is None or block_type.is_skip != (block.kind == "skip"):
                    continue
                if block_type.is_skip:
                    if block.stride == slot.stride:
                        yield with_kind
                    continue
                for option, expansion in enumerate(slot.expansion.options):
                    if space.build_block(slot, block_type, in_channels, expansion, int(channels)) == block:
                        with_expansion = self._choose(with_kind, slot.expansion, option)
                        if with_expansion is not None:
                            yield with_expansion

    @staticmethod
    def _choose(chosen: dict[str, int], variable: Variable, option: int) -> dict[str, int] | None:
        """``chosen`` with one more choice, or None where another option of the variable is chosen already."""
        if chosen.get(variable.name, option) != option:
            return None
        return {**chosen, variable.name: option}
