"""Spaces written as the rows of the FBNetV2 tables: block, expansion, width, number of layers, stride."""

from collections.abc import Sequence
from dataclasses import dataclass

from search_spaces.architecture import MAX_RESOLUTION
from search_spaces.serialisation import require
from search_spaces.space import BLOCK_TYPES, PoolHead, SearchSpace, Slot, Stem, constant
from search_spaces.variables import Choice, Range

MAX_OPTIONS = 256  # of one variable; tables of costs grow with the product of three of them
TBS = tuple(BLOCK_TYPES)  # "to be searched": all nine block types of thesis Table 3.3


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One table row: ``n`` layers, each with its own choice of block type, expansion and width; the first has the stride."""

    block: tuple[str, ...] = TBS
    expansion: tuple[float, ...]
    width: tuple[int, ...]
    n: int = 1
    stride: int = 1

    def __post_init__(self) -> None:
        for name in self.block:
            require(name in BLOCK_TYPES, f"block must be among {', '.join(BLOCK_TYPES)} or TBS, got {name!r}")
        require(len(self.block) > 0, "block has no options")
        require(self.n >= 1, f"n must be >= 1, got {self.n}")
        require(self.n <= 100, f"n must be <= 100, got {self.n}")
        require(self.stride in (1, 2), f"stride must be 1 or 2, got {self.stride}")
        _require_few_options("expansion", self.expansion)
        _require_few_options("width", self.width)
        require(all(e > 0 for e in self.expansion), f"expansion must be > 0, got {self.expansion}")
        require(all(e <= 64 for e in self.expansion), f"expansion must be <= 64, got {self.expansion}")
        require(
            all(isinstance(w, int) and 0 < w <= 8192 for w in self.width),
            f"width must be whole numbers in 1..8192, got {self.width}",
        )


def _require_few_options(name: str, options: Sequence[float]) -> None:
    require(len(options) <= MAX_OPTIONS, f"{name} must have at most {MAX_OPTIONS} options, got {len(options)}")


def space_of_rows(
    name: str,
    rows: Sequence[Row],
    *,
    resolutions: tuple[int, ...],
    stem_width: int,
    head_width: int,
    head_expansion: float = 6.0,
    description: str = "",
) -> SearchSpace:
    """The space of table rows (reading: every layer chooses its own block type, expansion and output width).

    Args:
        name: name of the space.
        rows: table rows between stem and last stage.
        resolutions: sides of the input image in pixels, increasing.
        stem_width: channels of the first convolution (3x3, stride 2).
        head_width: channels of the efficient last stage.
        head_expansion: its expansion.
        description: one line for listings.

    Raises:
        UserError: options that repeat, do not increase or are too many, a resolution out of range, or no rows.
    """
    _require_few_options("resolutions", resolutions)
    require(
        all(1 <= side <= MAX_RESOLUTION for side in resolutions),
        f"resolutions must be in 1..{MAX_RESOLUTION}, got {resolutions}",
    )
    slots: list[Slot] = []
    for row in rows:
        for layer in range(row.n):
            label = f"layer{len(slots) + 1}"
            slots.append(
                Slot(
                    block=Choice(f"{label}.block", tuple(BLOCK_TYPES[block] for block in row.block)),
                    expansion=Range(f"{label}.expansion", row.expansion),
                    width=Range(f"{label}.width", row.width),
                    stride=row.stride if layer == 0 else 1,
                )
            )
    return SearchSpace(
        name,
        resolution=Range("resolution", resolutions),
        stem=Stem(width=constant("stem.width", stem_width)),
        slots=slots,
        head=PoolHead(out_channels=head_width, expansion=head_expansion),
        description=description,
    )
