"""FLOPs and parameters, written once for numbers, numpy arrays and torch tensors alike (no torch import).

Convention of the published FBNet numbers: FLOPs are multiply-adds of convolutions and linear layers (squeeze-and-excite
and the classifier included) plus one for every input element of an adaptive average pool. ``params`` are the weights of
convolutions and linear layers, ``params_all`` adds their biases and the two affine vectors of every batch norm. Not counted:
batch norm, activations, element-wise products and sums.

``positions`` is the number of pixels of a feature map, height times width; it may be soft (FBNetV2, thesis Eq. 3.10, with the
effective sizes of Eq. 3.6). All formulas are affine in positions, which `search_spaces.tables` uses.
"""

from typing import Any, NamedTuple

from search_spaces.architecture import MAX_RESOLUTION, Architecture, Block
from search_spaces.serialisation import require

MAX_CLASSES = 1_000_000
MAX_IN_CHANNELS = 1024

Number = Any  # int, numpy integer array or torch tensor; the formulas use + and * only


class Cost(NamedTuple):
    """What a network costs: ``flops`` in multiply-adds for one image, ``params`` as published, ``params_all`` truly all."""

    flops: Number
    params: Number
    params_all: Number

    def plus(self, *others: "Cost") -> "Cost":
        """Element-wise sum."""
        total = self
        for other in others:
            total = Cost(*(a + b for a, b in zip(total, other, strict=True)))
        return total

    def times(self, factor: Number) -> "Cost":
        """Every entry times ``factor``, for example whether the layer is there at all."""
        return Cost(*(entry * factor for entry in self))


def check_image_and_classes(num_classes: int, in_channels: int) -> None:
    """Refuse what no network is built for.

    Raises:
        UserError: a number out of range.
    """
    require(1 <= num_classes <= MAX_CLASSES, f"num_classes must be in 1..{MAX_CLASSES}, got {num_classes}")
    require(1 <= in_channels <= MAX_IN_CHANNELS, f"in_channels must be in 1..{MAX_IN_CHANNELS}, got {in_channels}")


def out_size(size: int, stride: int, shrink: int = 0) -> int:
    """Side in pixels after a kernel: (size - shrink) / stride rounded up, where shrink is kernel - 1 - 2 x padding."""
    return (size - shrink - 1) // stride + 1


def conv_cost(
    in_per_group: Number,
    out_channels: Number,
    kernel: int,
    positions: Number,
    *,
    norm: bool = False,
    bias: bool = False,
) -> Cost:
    """Thesis Eq. 3.10 for one convolution, ``in_per_group`` being C_in / gamma; ``positions`` those of the output."""
    weights = in_per_group * out_channels * (kernel * kernel)
    return Cost(weights * positions, weights, weights + out_channels * (2 * norm + bias))


def pool_cost(channels: Number, positions: Number) -> Cost:
    """Adaptive average pool: one for every input element."""
    return Cost(channels * positions, 0, 0)


def ir_cost(
    in_channels: Number,
    mid_channels: Number,
    squeeze_channels: Number,
    out_channels: Number,
    *,
    kernel: int,
    pointwise: bool,
    squeeze: bool,
    positions_in: Number,
    positions_out: Number,
    bias: bool = False,
    groups: int = 1,
    group_width: int = 1,
) -> Cost:
    """Inverted residual block; the first pointwise convolution works at ``positions_in``, the rest at ``positions_out``."""
    total = conv_cost(group_width, mid_channels, kernel, positions_out, norm=True, bias=bias)
    if pointwise:
        total = total.plus(conv_cost(in_channels // groups, mid_channels, 1, positions_in, norm=True, bias=bias))
    if squeeze:
        total = total.plus(
            pool_cost(mid_channels, positions_out),
            conv_cost(mid_channels, squeeze_channels, 1, 1, bias=True),
            conv_cost(squeeze_channels, mid_channels, 1, 1, bias=True),
        )
    return total.plus(conv_cost(mid_channels // groups, out_channels, 1, positions_out, norm=True, bias=bias))


def skip_cost(in_channels: Number, out_channels: Number, *, stride: int, positions_out: Number) -> Cost:
    """Skip: nothing where the shape is kept, else a 1x1 convolution with batch norm."""
    projection = conv_cost(in_channels, out_channels, 1, positions_out, norm=True)
    return projection if stride > 1 else projection.times(1 * (in_channels != out_channels))


def pool_head_cost(
    in_channels: Number, mid_channels: Number, out_channels: Number, positions: Number, *, bias: bool = False
) -> Cost:
    """Efficient last stage: 1x1 convolution and norm, global pool, 1x1 convolution without norm."""
    return conv_cost(in_channels, mid_channels, 1, positions, norm=True, bias=bias).plus(
        pool_cost(mid_channels, positions), conv_cost(mid_channels, out_channels, 1, 1, bias=bias)
    )


def classifier_cost(in_channels: Number, num_classes: int, positions: Number) -> Cost:
    """Final average pool (a no-op after a pool head, but counted) and linear layer with bias."""
    return pool_cost(in_channels, positions).plus(conv_cost(in_channels, num_classes, 1, 1, bias=True))


def block_cost(block: Block, in_channels: int, positions_in: int, positions_out: int) -> Cost:
    """Exact cost of one block of an Architecture."""
    if block.kind == "conv":
        return conv_cost(in_channels, block.out_channels, block.kernel, positions_out, norm=True, bias=block.bias)
    if block.kind == "skip":
        return skip_cost(in_channels, block.out_channels, stride=block.stride, positions_out=positions_out)
    if block.kind == "pool_head":
        return pool_head_cost(in_channels, block.mid_channels, block.out_channels, positions_in, bias=block.bias)
    return ir_cost(
        in_channels,
        block.mid_channels,
        block.squeeze_channels,
        block.out_channels,
        kernel=block.kernel,
        pointwise=block.pointwise,
        squeeze=block.squeeze_channels > 0,
        positions_in=positions_in,
        positions_out=positions_out,
        bias=block.bias,
        groups=block.groups,
        group_width=block.group_width,
    )


def cost(
    architecture: Architecture, *, num_classes: int = 1000, in_channels: int = 3, resolution: int | None = None
) -> Cost:
    """Exact cost of a network for one square image; equals what fvcore counts on the built module, to the last digit.

    Args:
        architecture: the network.
        num_classes: outputs of the classifier.
        in_channels: channels of the image.
        resolution: side of the image in pixels; default the architecture's own.

    Raises:
        UserError: a number out of range, or an image too small for the network.
    """
    check_image_and_classes(num_classes, in_channels)
    size = architecture.resolution if resolution is None else resolution
    require(1 <= size <= MAX_RESOLUTION, f"resolution must be in 1..{MAX_RESOLUTION}, got {size}")
    total = Cost(0, 0, 0)
    for channels, block in architecture.layers(in_channels):
        reduced = 1 if block.kind == "pool_head" else out_size(size, block.stride, block.kernel - 1 - 2 * block.pad)
        require(
            reduced > 0, f"an image of side {size} is too small for a {block.kind} block with kernel {block.kernel}"
        )
        total = total.plus(block_cost(block, channels, size * size, reduced * reduced))
        size = reduced
    return total.plus(classifier_cost(architecture.out_channels, num_classes, size * size))
