"""The FBNetV3 space, architecture part (thesis Table 4.2).

Readings: the second row has stride 1 (total stride 32, as all published networks); the kernel is chosen separately for the
first block of a stage and the rest; the stage of width (180, 224) has separate first and rest expansions, both (4, 7);
stages five and six share theirs (superscripts 1 and 2); the last row's width goes to 240; widths are rounded to multiples of 8
when built. B, C, D and E are then members, apart from their odd paddings, which are facts of those networks.
"""

from search_spaces.space import BlockType, PoolHead, SearchSpace, Slot, Stem, constant
from search_spaces.variables import Choice, Range, Variable, span


def _kernels(name: str, squeeze: bool) -> Choice:
    """Kernel 3 or 5; squeeze-and-excite is fixed by the row, activation is h-swish everywhere."""
    suffix = "_se_hs" if squeeze else "_hs"
    return Choice(name, tuple(BlockType(f"ir_k{kernel}{suffix}", kernel, squeeze, "hswish") for kernel in (3, 5)))


def _stage(
    name: str, width: Range, depth: Range, *, stride: int, squeeze: bool, first: Variable, rest: Variable
) -> list[Slot]:
    """All slots of one stage: first block with its own kernel and expansion, the rest share theirs."""
    first_kernel, rest_kernel = _kernels(f"{name}.kernel_first", squeeze), _kernels(f"{name}.kernel_rest", squeeze)
    searched_depth = depth if len(depth.options) > 1 else None
    return [
        Slot(
            block=rest_kernel if position else first_kernel,
            expansion=rest if position else first,
            width=width,
            stride=1 if position else stride,
            depth=searched_depth,
            position=position,
        )
        for position in range(int(depth.options[-1]))
    ]


def fbnetv3_slots(
    widths: dict[str, tuple[float, ...]], depths: dict[str, tuple[float, ...]], strides: dict[str, int]
) -> list[Slot]:
    """The seven stages of thesis Table 4.2 with the given widths, depths and strides by stage name."""
    shared_first, shared_rest = (
        Range("stage4_5.expansion_first", span(4, 7, 1)),
        Range("stage4_5.expansion_rest", span(2, 5, 1)),
    )
    one = constant("stage1.expansion", 1)
    expansions: dict[str, tuple[Variable, Variable]] = {
        "stage1": (one, one),
        "stage2": (Range("stage2.expansion_first", span(4, 7, 1)), Range("stage2.expansion_rest", span(2, 5, 1))),
        "stage3": (Range("stage3.expansion_first", span(4, 7, 1)), Range("stage3.expansion_rest", span(2, 5, 1))),
        "stage4": (shared_first, shared_rest),
        "stage5": (shared_first, shared_rest),
        "stage6": (Range("stage6.expansion_first", span(4, 7, 1)), Range("stage6.expansion_rest", span(4, 7, 1))),
        "stage7": (constant("stage7.expansion", 6),) * 2,
    }
    squeezed = {"stage3", "stage5", "stage6", "stage7"}
    slots = []
    for name, (first, rest) in expansions.items():
        width, depth = Range(f"{name}.width", widths[name]), Range(f"{name}.depth", depths[name])
        slots += _stage(name, width, depth, stride=strides[name], squeeze=name in squeezed, first=first, rest=rest)
    return slots


def fbnetv3() -> SearchSpace:
    """The space of thesis Table 4.2."""
    return SearchSpace(
        "fbnetv3",
        resolution=Range("resolution", span(224, 272, 8)),
        stem=Stem(width=Range("stem.width", span(16, 24, 2))),
        slots=fbnetv3_slots(
            widths={
                "stage1": span(16, 24, 2),
                "stage2": span(20, 32, 4),
                "stage3": span(24, 48, 4),
                "stage4": span(56, 84, 4),
                "stage5": span(96, 144, 4),
                "stage6": span(180, 224, 4),
                "stage7": span(180, 240, 4),
            },
            depths={
                "stage1": span(1, 4, 1),
                "stage2": span(4, 7, 1),
                "stage3": span(4, 7, 1),
                "stage4": span(4, 8, 1),
                "stage5": span(6, 10, 1),
                "stage6": span(5, 9, 1),
                "stage7": (1,),
            },
            strides={"stage1": 1, "stage2": 2, "stage3": 2, "stage4": 2, "stage5": 1, "stage6": 2, "stage7": 1},
        ),
        head=PoolHead(out_channels=1984),
        squeeze="quarter_of_in",
        round_widths=True,
        description="FBNetV3, architecture part (thesis Table 4.2)",
    )
