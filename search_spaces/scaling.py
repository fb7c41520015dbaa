"""Networks made from a network: the low-resolution rule and compound scaling (thesis 4.4). No torch here."""

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

from search_spaces.architecture import Architecture, Block
from search_spaces.serialisation import require
from search_spaces.space import round_channels

MAX_FACTOR = 64.0  # guards memory; Architecture guards widths and the number of blocks besides

# Squeeze-and-excite widths of the published families, from (channels that enter, middle channels, divisor).
SqueezeWidth = Callable[[int, int, int], int]
SQUEEZE_WIDTHS: tuple[SqueezeWidth, ...] = (
    lambda in_channels, mid, divisor: round_channels(in_channels // 4, divisor),  # FBNetV3
    lambda in_channels, mid, divisor: round_channels(mid // 4, divisor),  # FBNetV2
    lambda in_channels, mid, divisor: max(1, mid // 4),  # the first public FBNetV2 networks
)


def low_resolution(architecture: Architecture, resolution: int = 32) -> Architecture:
    """The variant for small images: the second stride-two layer is taken out (thesis 4.4).

    The stem is the first stride-two layer and keeps its stride; the second, which gets stride 1, is the first block with stride
    2 after the stem. Maps are then 16, 8, 4 and 2 pixels wide at 32 pixels, and total stride 32 becomes 16.

    Every kernel pads normally (kernel // 2) here, also where the published network does not (some depthwise paddings of
    FBNetV3-A, B, C, E and F are smaller). The thesis is silent on it; at 224 pixels such a padding costs one pixel of 14, at
    32 pixels the last map of FBNetV3-A would be 1x1 instead of 2x2. Weights know no paddings: published ones still fit.

    Args:
        architecture: any network with a stem of stride 2.
        resolution: side of the small image in pixels.

    Raises:
        UserError: the first block does not have stride 2, or no later one has, or a resolution out of range.
    """
    strides = [block.stride for block in architecture.blocks]
    require(strides[0] == 2, f"{architecture.name}: the first block must have stride 2, got {strides[0]}")
    require(2 in strides[1:], f"{architecture.name}: no block after the first has stride 2, so none can get stride 1")
    second = strides.index(2, 1)
    blocks = [
        replace(block, padding=None, stride=1 if index == second else block.stride)
        for index, block in enumerate(architecture.blocks)
    ]
    return Architecture(name=f"{architecture.name}_low{resolution}", resolution=resolution, blocks=tuple(blocks))


def scale(
    architecture: Architecture,
    *,
    width: float = 1.0,
    depth: float = 1.0,
    resolution: int | None = None,
    divisor: int = 8,
) -> Architecture:
    """Compound scaling of width, depth and resolution (thesis 4.4: FBNetV3-A from B, F and G from E).

    - Width: every output width is R(width x w), R being the published channel rounding (`round_channels`, multiples of
      ``divisor``, never below 0.95 of the value). The stem is rounded to the nearest multiple instead, without that floor.
      Middle widths keep their ratio to the channels that enter and are rounded by R; squeeze widths follow the rule of the
      network's family (a quarter of the input or of the middle width), else their ratio to the middle width. An identity
      stays one. The output of the last stage (pool head, or a last 1x1 convolution) stays. A factor of 1 changes nothing.
    - Depth: a run of n inverted residuals without stride that differ in nothing but the width that enters them becomes
      max(1, floor(depth x n + 1/2)) of them; copies are of its last block. Strided blocks, stem and head are never repeated.
    - Resolution: in pixels, as given.

    The papers do not print their rule. This is the nearest of those tried (one factor of width from 1 to 1.7 in steps of 0.001;
    rounding to the nearest multiple, up, down, R with floors 0.95 and 0.9; multiples of 4, 8, 16; stem as the rest, nearest or
    unscaled; depths rounded up, down, nearest, over runs or whole stages):

    - FBNetV3-A is B with resolution=224, exactly.
    - FBNetV3-F is E with width from 1.13 to 1.149, depth from 1.1 to 1.124, resolution=272: all blocks, middle and squeeze
      widths too, but for two depthwise paddings, which no factor gives: scaling keeps E's (1 in the first block of 88
      channels), F has 0 in the first block of 248 channels instead. Parameters agree; FLOPs are 1130.7M, F's are 1181.6M.
    - FBNetV3-G is not reached by one factor and any of these roundings: E's 24 channels become 40 (x1.67), its 48 become 56
      (x1.17). Nearest: width=1.22, depth=1.1, resolution=320. Five of eight widths agree (32, 24, 56, 160, 264); G's 40, 104
      and 288 come out as 32, 96 and 296. No rule gives six; of those with five this has the least sum of relative differences.
      All depths agree but the last row's: G has two blocks there, the rule gives one.

    Args:
        architecture: what to scale.
        width: factor of the channels, in (0, 64].
        depth: factor of the repeats, in (0, 64].
        resolution: side of the input image in pixels; default the architecture's own.
        divisor: widths become multiples of it; a multiple of the groups of grouped convolutions, where there are any.

    Raises:
        UserError: a factor out of its range, or a network that becomes too wide or too deep.
    """
    for name, factor in (("width", width), ("depth", depth)):
        require(0 < factor <= MAX_FACTOR, f"{name} must be in (0, {MAX_FACTOR:g}], got {factor}")
    require(divisor >= 1, f"divisor must be >= 1, got {divisor}")
    squeeze = _squeeze_width(architecture)
    blocks: list[Block] = []
    entering = 3
    layers = list(_deepened(architecture, depth))
    for index, (entered, block) in enumerate(layers):
        last = 0 < index == len(layers) - 1 and is_head(block)
        out = block.out_channels
        if width != 1 and not last:
            out = round_channels(out * width, divisor, 0.95 if index else 0.0)
        if block.kind == "skip" and block.keeps_shape(entered):
            out = entering
        blocks.append(_fitted(block, entered, entering, out, divisor, squeeze))
        entering = out
    marks = [f"_{letter}{factor:g}" for letter, factor in (("w", width), ("d", depth)) if factor != 1]
    marks += [] if resolution is None else [f"_r{resolution}"]
    side = architecture.resolution if resolution is None else resolution
    return Architecture(name=architecture.name + "".join(marks), resolution=side, blocks=tuple(blocks))


def is_head(block: Block) -> bool:
    """Whether a last block is the last stage of a classifier: a pool head, or the 1x1 convolution of the first FBNets."""
    return block.kind == "pool_head" or (block.kind == "conv" and block.kernel == 1)


def _fitted(
    block: Block, entered: int, entering: int, out_channels: int, divisor: int, squeeze: SqueezeWidth | None
) -> Block:
    """The block entered by ``entering`` channels instead of ``entered``."""
    mid, squeezed = block.mid_channels, block.squeeze_channels
    if mid and entering != entered:
        mid = round_channels(mid * entering / entered, divisor) if block.pointwise else entering
        if squeezed and squeeze is not None:
            squeezed = squeeze(entering, mid, divisor)
        elif squeezed:
            squeezed = round_channels(squeezed * mid / block.mid_channels, divisor)
    return replace(block, out_channels=out_channels, mid_channels=mid, squeeze_channels=squeezed)


def _squeeze_width(architecture: Architecture) -> SqueezeWidth | None:
    """The published rule that gives every squeeze width of a network, where one does."""
    known = [(channels, block) for channels, block in architecture.layers() if block.squeeze_channels]
    for rule in SQUEEZE_WIDTHS:
        if all(rule(channels, block.mid_channels, 8) == block.squeeze_channels for channels, block in known):
            return rule
    return None


def _deepened(architecture: Architecture, depth: float) -> Iterator[tuple[int, Block]]:
    """Layers as `Architecture.layers` gives them, runs repeated; a copy comes with the channels that entered its original."""
    layers = list(architecture.layers())
    start = 0
    for end in range(1, len(layers) + 1):
        if end < len(layers) and _continues(layers[end - 1], layers[end]):
            continue
        run, start = layers[start:end], end
        block = run[-1][1]
        repeats = len(run)
        if block.kind == "ir" and block.stride == 1:
            repeats = max(1, int(depth * repeats + 0.5))
        yield from (run[min(index, len(run) - 1)] for index in range(repeats))


def _continues(before: tuple[int, Block], after: tuple[int, Block]) -> bool:
    """Whether two layers in sequence are equal but for what follows from the channels that enter them."""
    (entered, a), (entering, b) = before, after
    same_ratio = a.mid_channels * entering == b.mid_channels * entered
    return same_ratio and _form(a) == _form(b)


def _form(block: Block) -> tuple[Any, ...]:
    """All of a block but its middle and squeeze widths."""
    squeezes = block.squeeze_channels > 0
    widths = ("mid_channels", "squeeze_channels")
    return squeezes, *(getattr(block, field.name) for field in fields(block) if field.name not in widths)
