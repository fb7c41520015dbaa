"""Spaces small enough to be enumerated, with everything that makes canonical rows hard."""

import itertools

import numpy as np

from search_spaces.rows import Row, space_of_rows
from search_spaces.space import BLOCK_TYPES, BlockType, PoolHead, SearchSpace, Slot, Stem
from search_spaces.variables import Choice, Range, Rows


def tiny_rows() -> SearchSpace:
    """Rows: 1458 of them, with skips, squeeze, a stride, expansions that round to the same middle width."""
    return space_of_rows(
        "tiny-rows",
        [
            Row(block=("skip", "ir_k3", "ir_k3_se_hs"), expansion=(0.75, 1.0, 1.25), width=(8, 12, 20)),
            Row(block=("ir_k5", "skip", "ir_k5_se"), expansion=(1.0, 1.25, 1.5), width=(12, 16, 20), stride=2),
        ],
        resolutions=(9, 14),
        stem_width=12,
        head_width=24,
        head_expansion=1.5,
    )


def tiny_stages(squeeze: str = "quarter_of_in") -> SearchSpace:
    """Stages with depths, rounded widths, separate first and rest kernels, expansions shared by two stages: 5184 rows."""

    def kernels(name: str, squeezed: bool) -> Choice:
        suffix = "_se_hs" if squeezed else "_hs"
        return Choice(name, tuple(BLOCK_TYPES[f"ir_k{kernel}{suffix}"] for kernel in (3, 5)))

    first, rest = Range("shared.expansion_first", (1.4, 1.5, 3.0)), Range("shared.expansion_rest", (2.0, 2.1, 2.4))
    slots = []
    for name, widths, depths, stride, squeezed in (
        ("stage1", (16, 18), (1, 2), 1, False),
        ("stage2", (30, 32), (1, 3), 2, True),
    ):
        width, depth = Range(f"{name}.width", widths), Range(f"{name}.depth", depths)
        kernel_first, kernel_rest = kernels(f"{name}.kernel_first", squeezed), kernels(f"{name}.kernel_rest", squeezed)
        slots += [
            Slot(
                block=kernel_rest if position else kernel_first,
                expansion=rest if position else first,
                width=width,
                stride=1 if position else stride,
                depth=depth,
                position=position,
            )
            for position in range(depths[-1])
        ]
    return SearchSpace(
        "tiny-stages",
        resolution=Range("resolution", (15,)),
        stem=Stem(width=Range("stem.width", (16, 18, 20))),
        slots=slots,
        head=PoolHead(out_channels=24, expansion=2.0),
        squeeze=squeeze,  # type: ignore[arg-type]
        round_widths=True,
    )


def tiny_shared_block() -> SearchSpace:
    """Two slots that share one block variable and one expansion variable, and a slot that may be absent; 216 rows."""
    block = Choice("block", (BLOCK_TYPES["ir_k3"], BLOCK_TYPES["skip"], BlockType("ir_k3_se", 3, True, "relu")))
    expansion = Range("expansion", (1.0, 1.1, 1.5))
    depth = Range("depth", (1, 2))
    widths = [Range(f"width{i}", (8, 12)) for i in range(2)]
    return SearchSpace(
        "tiny-shared",
        resolution=Range("resolution", (7, 12, 17)),
        stem=Stem(width=Choice("stem.width", (8,))),
        slots=[
            Slot(block=block, expansion=expansion, width=widths[0], stride=1),
            Slot(block=block, expansion=expansion, width=widths[1], stride=2),
            Slot(block=block, expansion=expansion, width=widths[1], stride=1, depth=depth, position=1),
        ],
        head=PoolHead(out_channels=16, expansion=2.0),
    )


def tiny_squeeze() -> SearchSpace:
    """32 channels times 1.1 or 1.25 both round to 40, but a quarter of the input is then 9 or 8, which round to 16 and 8."""
    blocks = (BLOCK_TYPES["ir_k3"], BLOCK_TYPES["ir_k3_se"])
    return SearchSpace(
        "tiny-squeeze",
        resolution=Range("resolution", (9,)),
        stem=Stem(width=Choice("stem.width", (32,))),
        slots=[
            Slot(
                block=Choice(f"block{i}", blocks),
                expansion=Range(f"expansion{i}", (1.1, 1.25, 2.0)),
                width=Range(f"width{i}", (32, 40)),
                stride=1,
            )
            for i in range(2)
        ],
        head=PoolHead(out_channels=16, expansion=2.0),
        squeeze="quarter_of_in",
    )


TINY = {"rows": tiny_rows, "stages": tiny_stages, "shared": tiny_shared_block, "squeeze": tiny_squeeze}


def all_rows(space: SearchSpace) -> Rows:
    """Every row of a space `(size, d)`."""
    return np.array(list(itertools.product(*(range(len(v.options)) for v in space.variables))), dtype=np.int64)
