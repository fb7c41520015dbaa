"""Small spaces of the FBNetV2 and FBNetV3 shapes: 32x32 images (thesis 4.4) and the digits of the demo.

Low-resolution rule of thesis 4.4: the stem keeps stride 2, and the second stride-two layer (the first block with stride 2
after the stem) gets stride 1.
"""

from search_spaces.fbnetv3 import fbnetv3_slots
from search_spaces.rows import Row, space_of_rows
from search_spaces.space import PoolHead, SearchSpace, Stem
from search_spaces.variables import Range, span

EXPANSION = span(0.75, 3.75, 0.75)


def cifar() -> SearchSpace:
    """32x32 images, 0.416 to 12.3 MFLOPs (10 classes, colour: `nas spaces --classes 10`)."""
    return space_of_rows(
        "cifar",
        [
            Row(expansion=(1,), width=span(8, 16, 4)),
            Row(expansion=EXPANSION, width=span(16, 28, 4)),  # stride 2 in FBNetV2-F
            Row(expansion=EXPANSION, width=span(16, 28, 4)),
            Row(expansion=EXPANSION, width=span(24, 48, 8), stride=2),
            Row(expansion=EXPANSION, width=span(24, 48, 8), n=2),
            Row(expansion=EXPANSION, width=span(48, 80, 8), stride=2),
            Row(expansion=EXPANSION, width=span(48, 80, 8), n=2),
            Row(expansion=EXPANSION, width=span(72, 112, 8), stride=2),
            Row(expansion=EXPANSION, width=span(72, 112, 8)),
        ],
        resolutions=(20, 26, 32),
        stem_width=16,
        head_width=480,
        description="32x32 images in the shape of FBNetV2-F (thesis 4.4)",
    )


def fbnetv3_cifar() -> SearchSpace:
    """The FBNetV3 shape (thesis Table 4.2) for 32x32 images: 96 % of its networks have 2 to 12 MFLOPs (10 classes, colour).

    Kernels, expansions and what stages share are the table's; widths, depths, resolutions and the last stage are ours.
    """
    return SearchSpace(
        "fbnetv3-cifar",
        resolution=Range("resolution", span(20, 32, 4)),
        stem=Stem(width=Range("stem.width", span(8, 16, 8))),
        slots=fbnetv3_slots(
            widths={
                "stage1": span(8, 16, 8),
                "stage2": span(8, 24, 8),
                "stage3": span(16, 40, 8),
                "stage4": span(24, 64, 8),
                "stage5": span(32, 96, 8),
                "stage6": span(56, 128, 8),
                "stage7": span(56, 128, 8),
            },
            depths={
                "stage1": span(1, 2, 1),
                "stage2": span(1, 4, 1),
                "stage3": span(1, 4, 1),
                "stage4": span(1, 5, 1),
                "stage5": span(1, 5, 1),
                "stage6": span(1, 4, 1),
                "stage7": (1,),
            },
            strides={"stage1": 1, "stage2": 1, "stage3": 2, "stage4": 2, "stage5": 1, "stage6": 2, "stage7": 1},
        ),
        head=PoolHead(out_channels=480),
        squeeze="quarter_of_in",
        round_widths=True,
        description="32x32 images in the shape of FBNetV3 (thesis Table 4.2, 4.4)",
    )


def digits() -> SearchSpace:
    """16x16 images of the demo: six searched layers, 0.0145 to 0.712 MFLOPs.

    Of 10 classes and grey images, as `nas spaces --classes 10 --in-channels 1` tells.
    """
    expansion = span(1, 3, 1)
    return space_of_rows(
        "digits",
        [
            Row(expansion=expansion, width=span(8, 16, 4)),
            Row(expansion=expansion, width=span(8, 16, 4)),
            Row(expansion=expansion, width=span(16, 32, 8), stride=2),
            Row(expansion=expansion, width=span(16, 32, 8)),
            Row(expansion=expansion, width=span(24, 48, 8), stride=2),
            Row(expansion=expansion, width=span(24, 48, 8)),
        ],
        resolutions=(8, 12, 16),
        stem_width=8,
        head_width=128,
        head_expansion=3.0,
        description="16x16 grey images (scikit-learn's digits)",
    )
