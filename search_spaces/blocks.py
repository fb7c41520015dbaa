"""Modules of one block each; torchvision's operators where they fit."""

from functools import partial

from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation, SqueezeExcitation, StochasticDepth

from search_spaces.architecture import Activation, Block

ACTIVATIONS: dict[Activation, type[nn.Module]] = {"relu": nn.ReLU, "hswish": nn.Hardswish}

# Squeeze-and-excite with hard-sigmoid gate; torchvision pools with AdaptiveAvgPool2d, which FLOP counters see.
squeeze_excitation = partial(SqueezeExcitation, scale_activation=nn.Hardsigmoid)


def conv_norm(
    in_channels: int,
    out_channels: int,
    *,
    kernel: int = 1,
    stride: int = 1,
    groups: int = 1,
    activation: Activation | None = None,
    bias: bool = False,
    padding: int | None = None,
) -> nn.Sequential:
    """Convolution (padding kernel // 2 unless given), batch norm, activation if any."""
    module: nn.Sequential = Conv2dNormActivation(
        in_channels,
        out_channels,
        kernel_size=kernel,
        stride=stride,
        groups=groups,
        activation_layer=None if activation is None else ACTIVATIONS[activation],
        bias=bias,
        padding=padding,
    )
    return module


class InvertedResidual(nn.Module):
    """Inverted residual block (thesis Table 3.3); see `Block`.

    Args:
        block: what to build, of kind ``ir``.
        in_channels: channels that enter.
        stochastic_depth: probability to drop the branch of a sample in training, where there is a residual.
    """

    def __init__(self, block: Block, in_channels: int, stochastic_depth: float = 0.0) -> None:
        super().__init__()
        mid, groups, bias = block.mid_channels, block.groups, block.bias
        self.pw: nn.Module = nn.Identity()
        if block.pointwise:
            self.pw = conv_norm(in_channels, mid, activation=block.activation, groups=groups, bias=bias)
        self.shuffle = nn.ChannelShuffle(groups) if groups > 1 else nn.Identity()
        self.dw = conv_norm(
            mid, mid, kernel=block.kernel, stride=block.stride, groups=mid // block.group_width,
            activation=block.activation, bias=bias, padding=block.padding,
        )  # fmt: skip
        self.se: nn.Module = nn.Identity()
        if block.squeeze_channels:
            self.se = squeeze_excitation(mid, block.squeeze_channels, activation=ACTIVATIONS[block.activation])
        self.pwl = conv_norm(mid, block.out_channels, groups=groups, bias=bias)
        self.residual = block.keeps_shape(in_channels)
        self.drop = StochasticDepth(stochastic_depth, mode="row")

    def forward(self, x: Tensor) -> Tensor:
        """`(B, in, H, W)` to `(B, out, H / stride, W / stride)`, sizes rounded up."""
        branch: Tensor = self.pwl(self.se(self.dw(self.shuffle(self.pw(x)))))
        return x + self.drop(branch) if self.residual else branch


class PoolHead(nn.Module):
    """Efficient last stage: 1x1 convolution, norm, activation, global pool, 1x1 convolution, activation."""

    def __init__(self, block: Block, in_channels: int) -> None:
        super().__init__()
        self.pw = conv_norm(in_channels, block.mid_channels, activation=block.activation, bias=block.bias)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.pwl = nn.Conv2d(block.mid_channels, block.out_channels, 1, bias=block.bias)
        self.activation = ACTIVATIONS[block.activation]()

    def forward(self, x: Tensor) -> Tensor:
        """`(B, in, H, W)` to `(B, out, 1, 1)`."""
        pooled: Tensor = self.activation(self.pwl(self.pool(self.pw(x))))
        return pooled


def build_block(block: Block, in_channels: int, stochastic_depth: float = 0.0) -> nn.Module:
    """The module of one block; an identity for a skip that keeps the shape."""
    if block.kind == "ir":
        return InvertedResidual(block, in_channels, stochastic_depth)
    if block.kind == "pool_head":
        return PoolHead(block, in_channels)
    if block.kind == "conv":
        return conv_norm(
            in_channels, block.out_channels, kernel=block.kernel, stride=block.stride, activation=block.activation,
            bias=block.bias, padding=block.padding,
        )  # fmt: skip
    if block.keeps_shape(in_channels):
        return nn.Identity()
    return conv_norm(in_channels, block.out_channels, stride=block.stride, activation="relu")
