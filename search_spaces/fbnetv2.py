"""The FBNetV2 spaces F, P and L (thesis Tables 3.7, 3.8 and 3.9).

Readings where the tables are silent: every layer chooses for itself; the last rows are the efficient last stage of the
published networks; table 3.9's stem has 16 channels (the next row's input says so); only the largest resolution is printed, the
others are those of the published networks.
"""

from search_spaces.rows import Row, space_of_rows
from search_spaces.space import SearchSpace
from search_spaces.variables import span

COARSE = span(0.75, 4.5, 0.75)


def fbnetv2_f() -> SearchSpace:
    """FLOP-efficient space, thesis Table 3.8."""
    return space_of_rows(
        "fbnetv2-f",
        [
            Row(expansion=(1,), width=span(12, 16, 4)),
            Row(expansion=COARSE, width=span(16, 24, 4), stride=2),
            Row(expansion=COARSE, width=span(16, 24, 4), n=2),
            Row(expansion=COARSE, width=span(16, 40, 8), stride=2),
            Row(expansion=COARSE, width=span(16, 40, 8), n=2),
            Row(expansion=COARSE, width=span(48, 80, 8), stride=2),
            Row(expansion=COARSE, width=span(48, 80, 8), n=2),
            Row(expansion=COARSE, width=span(72, 112, 8), n=3),
            Row(expansion=COARSE, width=span(112, 184, 8), stride=2),
            Row(expansion=COARSE, width=span(112, 184, 8), n=3),
        ],
        resolutions=(128, 160, 192, 224),
        stem_width=16,
        head_width=1984,
        description="FBNetV2-F, FLOP-efficient (thesis Table 3.8)",
    )


def fbnetv2_p() -> SearchSpace:
    """Parameter-efficient space, thesis Table 3.9."""
    return space_of_rows(
        "fbnetv2-p",
        [
            Row(expansion=(1,), width=span(16, 28, 4)),
            Row(expansion=COARSE, width=span(16, 40, 4), stride=2),
            Row(expansion=COARSE, width=span(16, 40, 4), n=2),
            Row(expansion=COARSE, width=span(16, 48, 8), stride=2),
            Row(expansion=COARSE, width=span(16, 48, 8), n=2),
            Row(expansion=COARSE, width=span(48, 96, 8), stride=2),
            Row(expansion=COARSE, width=span(48, 96, 8), n=2),
            Row(expansion=COARSE, width=span(72, 128, 8), n=4),
            Row(expansion=COARSE, width=span(112, 216, 8), stride=2),
            Row(expansion=COARSE, width=span(112, 216, 8), n=3),
            Row(expansion=COARSE, width=span(112, 216, 8)),
        ],
        resolutions=(224, 256, 288),
        stem_width=16,
        head_width=1280,
        description="FBNetV2-P, parameter-efficient (thesis Table 3.9)",
    )


def fbnetv2_l() -> SearchSpace:
    """Largest space, thesis Tables 3.2 and 3.7."""
    fine, middle = span(0.75, 3.25, 0.5), span(0.75, 3.75, 0.5)
    return space_of_rows(
        "fbnetv2-l",
        [
            Row(expansion=(1,), width=span(12, 16, 4)),
            Row(expansion=fine, width=span(16, 28, 4), stride=2),
            Row(expansion=fine, width=span(16, 28, 4), n=2),
            Row(expansion=fine, width=span(16, 40, 8), stride=2),
            Row(expansion=fine, width=span(16, 40, 8), n=2),
            Row(expansion=middle, width=span(48, 96, 8), stride=2),
            Row(expansion=middle, width=span(48, 96, 8), n=2),
            Row(expansion=COARSE, width=span(72, 128, 8), n=4),
            Row(expansion=COARSE, width=span(112, 216, 8), stride=2),
            Row(expansion=COARSE, width=span(112, 216, 8), n=3),
        ],
        resolutions=(192, 224, 256),
        stem_width=16,
        head_width=1984,
        description="FBNetV2-L, large (thesis Tables 3.2 and 3.7)",
    )
