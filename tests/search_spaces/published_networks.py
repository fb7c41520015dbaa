"""Layer tables of published FBNet, FBNetV2 and FBNetV3 networks and their published costs, as small data.

A line is (type, kernel, expansion, out_channels, stride, repeats, squeeze, activation); out_channels 0 means unchanged. Only
the first of repeated blocks has the stride. The families' rules are written out here once more, on purpose: nothing of the
library is used but the dataclasses.
"""

import math
from typing import NamedTuple

from search_spaces.architecture import Architecture, Block


class Published(NamedTuple):
    """One network: family, side of the image, lines, FLOPs (multiply-adds) and weights of convolutions and linear layers."""

    family: str
    resolution: int
    lines: tuple[tuple[str, int, float, int, int, int, int, str], ...]
    flops: int
    params: int


RE, HS = "relu", "hswish"

FBNET_C = (
    ("conv", 3, 0, 16, 2, 1, 0, RE),
    ("mb", 3, 1, 16, 1, 1, 0, RE),
    ("mb", 3, 6, 24, 2, 1, 0, RE), ("skip", 0, 0, 0, 1, 1, 0, RE), ("mb", 3, 1, 24, 1, 2, 0, RE),
    ("mb", 5, 6, 32, 2, 1, 0, RE), ("mb", 5, 3, 32, 1, 1, 0, RE), ("mb", 5, 6, 32, 1, 1, 0, RE),
    ("mb", 3, 6, 32, 1, 1, 0, RE),
    ("mb", 5, 6, 64, 2, 1, 0, RE), ("mb", 5, 3, 64, 1, 1, 0, RE), ("mb", 5, 6, 64, 1, 2, 0, RE),
    ("mb", 5, 6, 112, 1, 3, 0, RE), ("mb", 5, 3, 112, 1, 1, 0, RE),
    ("mb", 5, 6, 184, 2, 1, 0, RE), ("mb", 5, 6, 184, 1, 3, 0, RE), ("mb", 3, 6, 352, 1, 1, 0, RE),
    ("conv", 1, 0, 1984, 1, 1, 0, RE),
)  # fmt: skip

V2_F1 = (
    ("conv", 3, 0, 8, 2, 1, 0, HS),
    ("mb", 5, 1, 8, 1, 1, 0, RE),
    ("mb", 5, 5.4566, 24, 2, 1, 0, RE), ("mb", 5, 4.7912, 24, 1, 1, 0, RE),
    ("mb", 5, 5.3501, 32, 2, 1, 1, RE), ("mb", 5, 4.5379, 24, 1, 1, 1, RE),
    ("mb", 5, 5.7133, 56, 2, 1, 0, HS), ("mb", 3, 4.1212, 56, 1, 1, 0, HS), ("mb", 3, 5.1246, 56, 1, 1, 1, HS),
    ("skip", 0, 0, 80, 1, 1, 0, RE), ("mb", 5, 4.507, 80, 1, 1, 1, HS), ("mb", 5, 1.7712, 80, 1, 1, 1, HS),
    ("mb", 3, 4.5685, 144, 2, 1, 1, HS), ("mb", 5, 5.84, 144, 1, 1, 1, HS), ("mb", 5, 6.8754, 144, 1, 1, 1, HS),
    ("skip", 0, 0, 224, 1, 1, 0, RE),
    ("pool_head", 0, 6, 1600, 1, 1, 0, HS),
)  # fmt: skip

V2_F3 = (*V2_F1[:-1], ("pool_head", 0, 6, 1984, 1, 1, 0, HS))

V2_F4 = (
    ("conv", 3, 0, 16, 2, 1, 0, HS),
    ("mb", 3, 1, 16, 1, 1, 0, HS),
    ("mb", 5, 5.4566, 24, 2, 1, 0, HS), ("mb", 5, 1.7912, 24, 1, 2, 0, HS),
    ("mb", 5, 5.3501, 32, 2, 1, 1, RE), ("mb", 5, 3.5379, 32, 1, 1, 1, RE), ("mb", 5, 4.5379, 32, 1, 2, 1, RE),
    ("mb", 5, 5.7133, 64, 2, 1, 0, HS), ("mb", 3, 2.1212, 64, 1, 1, 0, HS), ("skip", 0, 0, 0, 1, 1, 0, RE),
    ("mb", 3, 5.0333, 104, 1, 1, 0, HS), ("mb", 5, 2.507, 104, 1, 1, 1, HS), ("mb", 5, 1.7712, 104, 1, 1, 1, HS),
    ("mb", 5, 3.7712, 112, 1, 1, 1, HS),
    ("mb", 3, 5.5685, 184, 2, 1, 1, HS), ("mb", 5, 2.84, 184, 1, 1, 1, HS), ("mb", 5, 4.8754, 184, 1, 1, 1, HS),
    ("skip", 0, 0, 224, 1, 1, 0, RE),
    ("pool_head", 0, 6, 1984, 1, 1, 0, HS),
)  # fmt: skip

V2_L1 = (
    ("conv", 3, 0, 16, 2, 1, 0, HS),
    ("mb", 3, 1, 16, 1, 1, 0, HS),
    ("mb", 5, 5.4566, 24, 2, 1, 0, HS), ("mb", 5, 1.7912, 24, 1, 1, 0, HS), ("mb", 3, 1.7912, 24, 1, 1, 0, HS),
    ("mb", 5, 1.7912, 24, 1, 1, 0, HS),
    ("mb", 5, 5.3501, 40, 2, 1, 1, HS), ("mb", 5, 3.5379, 32, 1, 1, 1, HS), ("mb", 5, 4.5379, 32, 1, 2, 1, HS),
    ("mb", 5, 5.7133, 64, 2, 1, 0, HS), ("mb", 3, 2.1212, 64, 1, 1, 0, HS), ("skip", 0, 0, 0, 1, 1, 0, RE),
    ("mb", 3, 3.1246, 64, 1, 1, 0, HS), ("mb", 3, 5.0333, 112, 1, 1, 0, HS), ("mb", 5, 2.507, 112, 1, 1, 1, HS),
    ("mb", 5, 1.7712, 112, 1, 1, 1, HS), ("mb", 5, 2.7712, 112, 1, 1, 1, HS), ("mb", 5, 3.7712, 112, 1, 2, 1, HS),
    ("mb", 3, 5.5685, 184, 2, 1, 1, HS), ("mb", 5, 2.84, 184, 1, 2, 1, HS), ("mb", 5, 4.8754, 184, 1, 2, 1, HS),
    ("skip", 0, 0, 224, 1, 1, 0, RE),
    ("pool_head", 0, 6, 1984, 1, 1, 0, HS),
)  # fmt: skip

V3_B = (  # with normal paddings; the released network pads two depthwise convolutions oddly and costs 461.6M
    ("conv", 3, 0, 16, 2, 1, 0, HS),
    ("mb", 3, 1, 16, 1, 2, 0, HS),
    ("mb", 5, 4, 24, 2, 1, 0, HS), ("mb", 5, 2, 24, 1, 3, 0, HS),
    ("mb", 5, 5, 40, 2, 1, 1, HS), ("mb", 5, 3, 40, 1, 4, 1, HS),
    ("mb", 5, 5, 72, 2, 1, 0, HS), ("mb", 3, 3, 72, 1, 4, 0, HS),
    ("mb", 3, 5, 120, 1, 1, 1, HS), ("mb", 5, 3, 120, 1, 5, 1, HS),
    ("mb", 3, 6, 184, 2, 1, 1, HS), ("mb", 5, 4, 184, 1, 5, 1, HS), ("mb", 5, 6, 224, 1, 1, 1, HS),
    ("pool_head", 0, 6, 1984, 1, 1, 0, HS),
)  # fmt: skip

V3_C = (  # normal paddings
    ("conv", 3, 0, 16, 2, 1, 0, HS),
    ("mb", 3, 1, 16, 1, 2, 0, HS),
    ("mb", 5, 5, 24, 2, 1, 0, HS), ("mb", 3, 3, 24, 1, 4, 0, HS),
    ("mb", 5, 5, 48, 2, 1, 1, HS), ("mb", 5, 2, 48, 1, 4, 1, HS),
    ("mb", 5, 4, 88, 2, 1, 0, HS), ("mb", 3, 3, 88, 1, 4, 0, HS),
    ("mb", 3, 4, 120, 1, 1, 1, HS), ("mb", 5, 3, 120, 1, 5, 1, HS),
    ("mb", 5, 5, 216, 2, 1, 1, HS), ("mb", 5, 5, 216, 1, 5, 1, HS), ("mb", 5, 6, 216, 1, 1, 1, HS),
    ("pool_head", 0, 6, 1984, 1, 1, 0, HS),
)  # fmt: skip

V3_D = (
    ("conv", 3, 0, 24, 2, 1, 0, HS),
    ("mb", 3, 1, 16, 1, 2, 0, HS),
    ("mb", 3, 5, 24, 2, 1, 0, HS), ("mb", 3, 2, 24, 1, 5, 0, HS),
    ("mb", 5, 4, 40, 2, 1, 1, HS), ("mb", 3, 3, 40, 1, 4, 1, HS),
    ("mb", 3, 5, 72, 2, 1, 0, HS), ("mb", 3, 3, 72, 1, 4, 0, HS),
    ("mb", 3, 5, 128, 1, 1, 1, HS), ("mb", 5, 3, 128, 1, 6, 1, HS),
    ("mb", 3, 6, 208, 2, 1, 1, HS), ("mb", 5, 5, 208, 1, 5, 1, HS), ("mb", 5, 6, 240, 1, 1, 1, HS),
    ("pool_head", 0, 6, 1984, 1, 1, 0, HS),
)  # fmt: skip

V3_E = (  # normal paddings
    ("conv", 3, 0, 24, 2, 1, 0, HS),
    ("mb", 3, 1, 16, 1, 3, 0, HS),
    ("mb", 5, 4, 24, 2, 1, 0, HS), ("mb", 5, 2, 24, 1, 4, 0, HS),
    ("mb", 5, 4, 48, 2, 1, 1, HS), ("mb", 5, 3, 48, 1, 4, 1, HS),
    ("mb", 5, 5, 80, 2, 1, 0, HS), ("mb", 3, 3, 80, 1, 4, 0, HS),
    ("mb", 3, 5, 128, 1, 1, 1, HS), ("mb", 5, 3, 128, 1, 7, 1, HS),
    ("mb", 3, 6, 216, 2, 1, 1, HS), ("mb", 5, 5, 216, 1, 5, 1, HS), ("mb", 5, 6, 240, 1, 1, 1, HS),
    ("pool_head", 0, 6, 1984, 1, 1, 0, HS),
)  # fmt: skip

V3_G = (
    ("conv", 3, 0, 32, 2, 1, 0, HS),
    ("mb", 3, 1, 24, 1, 3, 0, HS),
    ("mb", 5, 4, 40, 2, 1, 0, HS), ("mb", 5, 2, 40, 1, 4, 0, HS),
    ("mb", 5, 4, 56, 2, 1, 1, HS), ("mb", 5, 3, 56, 1, 4, 1, HS),
    ("mb", 5, 5, 104, 2, 1, 0, HS), ("mb", 3, 3, 104, 1, 4, 0, HS),
    ("mb", 3, 5, 160, 1, 1, 1, HS), ("mb", 5, 3, 160, 1, 8, 1, HS),
    ("mb", 3, 6, 264, 2, 1, 1, HS), ("mb", 5, 5, 264, 1, 6, 1, HS), ("mb", 5, 6, 288, 1, 2, 1, HS),
    ("pool_head", 0, 6, 1984, 1, 1, 0, HS),
)  # fmt: skip

# Networks without odd paddings or groups: published FLOPs and parameters, to the last digit.
EXACT = {
    "fbnet_c": Published("v1", 224, FBNET_C, 378_233_440, 5_525_424),
    "FBNetV2_F1": Published("v2", 128, V2_F1, 56_410_560, 5_999_408),
    "FBNetV2_F2": Published("v2", 160, V2_F1, 85_441_392, 5_999_408),
    "FBNetV2_F3": Published("v2", 192, V2_F3, 121_824_000, 6_899_504),
    "FBNetV2_F4": Published("v2", 224, V2_F4, 238_351_984, 6_994_824),
    "FBNetV2_L1": Published("v2", 224, V2_L1, 326_023_008, 8_496_520),
    "FBNetV2_L2": Published("v2", 256, V2_L1, 423_912_768, 8_496_520),
    "FBNetV3_D": Published("v3", 248, V3_D, 644_420_352, 10_237_552),
    "FBNetV3_G": Published("v3", 320, V3_G, 2_129_656_384, 16_513_648),
}

# Members of the FBNetV3 space: the side of their image and their lines.
MEMBERS = {"B": (248, V3_B), "C": (248, V3_C), "D": (248, V3_D), "E": (264, V3_E)}


def rounded(x: float, divisor: int) -> int:
    """The families' rounding R: a multiple of the divisor, one step up where it would fall below 95 %."""
    if x % divisor == 0:
        return int(x)
    steps = max(1, math.floor(x / divisor + 0.5))
    return divisor * (steps + 1 if divisor * steps < 0.95 * x else steps)


def published_architecture(name: str, family: str, resolution: int, lines: tuple) -> Architecture:  # type: ignore[type-arg]
    """The network of a layer table by its family's rules."""
    divisor = 1 if family == "v1" else 8
    blocks, channels = [], 0
    for kind, kernel, expansion, out, stride, repeats, squeeze, activation in lines:
        for repeat in range(repeats):
            out, s = out or channels, stride if repeat == 0 else 1
            mid = rounded(channels * expansion, divisor)
            if kind == "conv":
                block = Block(kind="conv", out_channels=out, kernel=kernel, stride=s, activation=activation)
            elif kind == "skip":
                block = Block(kind="skip", out_channels=out, stride=s)
            elif kind == "pool_head":
                block = Block(kind="pool_head", out_channels=out, mid_channels=mid, activation=activation)
            else:
                share = 0.25 if family == "v2" else 0.25 / expansion
                block = Block(
                    kind="ir",
                    out_channels=out,
                    kernel=kernel,
                    stride=s,
                    mid_channels=mid,
                    squeeze_channels=rounded(int(share * mid), divisor) if squeeze else 0,
                    activation=activation,
                    pointwise=mid != channels,
                )
            blocks.append(block)
            channels = out
    return Architecture(name=name, resolution=resolution, blocks=tuple(blocks))
