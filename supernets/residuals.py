"""Branches of the supergraph's layers: inverted residuals as wide as their widest option, under channel masks.

`SharedResidual` stands for all inverted residuals of a layer at once. A smaller kernel is the middle of the largest one, so the
weighted sum of their depthwise convolutions is one convolution, sum_i g_i (x * (K . M_i)) = x * (K . sum_i g_i M_i), with M_i
1 where kernel i has an entry. The other things that block types differ in are mixed where they stand.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.blocks import ACTIVATIONS, conv_norm
from search_spaces.space import BlockType
from supernets.masking import MaskPosition, masked_norm, masked_norm_activation


def conv_and_norm(pair: nn.Module) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """The two parts of a `conv_norm` without activation."""
    conv, norm = cast(nn.Sequential, pair)
    return cast(nn.Conv2d, conv), cast(nn.BatchNorm2d, norm)


class MaskedInvertedResidual(nn.Module):
    """Branch of an inverted residual block (without the residual), as wide as its widest option."""

    def __init__(
        self,
        block: BlockType,
        in_channels: int,
        mid_channels: int,
        squeeze_channels: int,
        out_channels: int,
        *,
        stride: int,
        pointwise: bool,
        mask_position: MaskPosition,
    ) -> None:
        super().__init__()
        self.mask_position: MaskPosition = mask_position
        self.pw = conv_norm(in_channels, mid_channels) if pointwise else None
        self.dw = conv_norm(mid_channels, mid_channels, kernel=block.kernel, stride=stride, groups=mid_channels)
        self.reduce = nn.Conv2d(mid_channels, squeeze_channels, 1) if block.squeeze else None
        self.expand = nn.Conv2d(squeeze_channels, mid_channels, 1) if block.squeeze else None
        self.pwl = conv_norm(mid_channels, out_channels)
        self.activation = ACTIVATIONS[block.activation](inplace=True)
        self.squeeze_activation = ACTIVATIONS[block.activation]()

    def forward(self, x: Tensor, mid_mask: Tensor, squeeze_mask: Tensor, out_scale: Tensor) -> Tensor:
        """`(B, C_in, H, W)` to `(B, C_out, H', W')`, times ``out_scale`` `(C_out,)`."""
        if self.pw is not None:
            conv, norm = conv_and_norm(self.pw)
            x = masked_norm_activation(conv(x), norm, mid_mask, self.activation, self.mask_position)
        return self.projected(self.hidden(x, mid_mask, squeeze_mask), out_scale)

    def hidden(self, x: Tensor, mid_mask: Tensor, squeeze_mask: Tensor) -> Tensor:
        """`(B, C_mid, H, W)` to `(B, C_mid, H', W')`: depthwise convolution and squeeze-and-excite.

        Channels are masked again after the depthwise norm, whose beta would revive them.
        """
        conv, norm = conv_and_norm(self.dw)
        x = masked_norm_activation(conv(x), norm, mid_mask, self.activation, self.mask_position)
        if self.reduce is not None and self.expand is not None:
            squeezed = self.squeeze_activation(self.reduce(F.adaptive_avg_pool2d(x, 1)))
            x = x * F.hardsigmoid(self.expand(squeezed * squeeze_mask[:, None, None]))
        return x

    def projected(self, x: Tensor, out_scale: Tensor) -> Tensor:
        """`(B, C_mid, H', W')` to `(B, C_out, H', W')`, times ``out_scale`` `(C_out,)`."""
        conv, norm = conv_and_norm(self.pwl)
        return masked_norm(conv(x), norm, out_scale)


class SharedResidual(MaskedInvertedResidual):
    """All inverted residuals of a layer as one, with one set of weights; it costs about as much as one of them.

    With the weight of one block type alone it is exactly that type. Between, it is another relaxation than the sum of branches:
    kernels, activations and squeeze-and-excite are mixed each for itself.

    Args:
        block_types: those it stands for, of one or two activations.
        others: as of `MaskedInvertedResidual`.
    """

    kernel_masks: Tensor
    hswish: Tensor
    squeeze: Tensor

    def __init__(self, block_types: Sequence[BlockType], *channels: int, **others: Any) -> None:
        kernels = [block.kernel for block in block_types]
        squeezes = [block.squeeze for block in block_types]
        hswish = [block.activation == "hswish" for block in block_types]
        widest = BlockType("all", kernel=max(kernels), squeeze=any(squeezes), activation=block_types[0].activation)
        super().__init__(widest, *channels, **others)
        self.mixes_activations = len(set(hswish)) > 1
        self.register_buffer("kernel_masks", kernel_masks(kernels), persistent=False)
        self.register_buffer("hswish", torch.tensor(hswish).float(), persistent=False)
        self.register_buffer("squeeze", torch.tensor(squeezes).float(), persistent=False)

    def hidden_mix(self, x: Tensor, parts: Tensor, mid_mask: Tensor, squeeze_mask: Tensor) -> Tensor:
        """`(B, C_in, H, W)` to `(B, C_mid, H', W')`: all but the last convolution, `projected`.

        Args:
            x: input.
            parts: `(T,)` weights of the block types, non-negative, sum to 1.
            mid_mask: `(C_mid,)`.
            squeeze_mask: `(C_squeeze,)`.
        """
        with torch.autocast(
            x.device.type, enabled=False
        ):  # products of a few numbers, which alpha's gradient goes through
            hswish = parts @ self.hswish
            kernel_mask = torch.einsum("t,tij->ij", parts, self.kernel_masks)
            squeeze = parts @ self.squeeze
        if self.pw is not None:
            conv, norm = conv_and_norm(self.pw)
            x = self._activated(conv(x), norm, mid_mask, hswish)
        conv, norm = conv_and_norm(self.dw)
        x = F.conv2d(x, conv.weight * kernel_mask, None, conv.stride, conv.padding, conv.dilation, conv.groups)
        x = self._activated(x, norm, mid_mask, hswish)
        if self.reduce is not None and self.expand is not None:
            squeezed = self._activation(self.reduce(F.adaptive_avg_pool2d(x, 1)), hswish)
            gate = F.hardsigmoid(self.expand(squeezed * squeeze_mask[:, None, None]))
            x = x * torch.lerp(torch.ones_like(gate), gate, squeeze.to(gate.dtype))
        return x

    def _activated(self, x: Tensor, norm: nn.BatchNorm2d, mask: Tensor, hswish: Tensor) -> Tensor:
        """Norm, mask and mixed activation, in the order that ``mask_position`` says."""
        if self.mask_position == "affine":
            return self._activation(masked_norm(x, norm, mask), hswish)
        y = self._activation(masked_norm(x, norm, torch.ones_like(mask)), hswish)
        return y * mask.to(y.dtype)[:, None, None]

    def _activation(self, x: Tensor, hswish: Tensor) -> Tensor:
        if not self.mixes_activations:
            return self.squeeze_activation(x)  # type: ignore[no-any-return]
        return mixed_activation(x, hswish.to(x.dtype))


def kernel_masks(kernels: Sequence[int]) -> Tensor:
    """Which entries of the largest kernel each of these odd sides has: `(n, K, K)` float32 of zeros and ones."""
    side = max(kernels)
    offset = (torch.arange(side) - side // 2).abs()
    ring = torch.maximum(offset[:, None], offset)
    return (ring <= torch.tensor(kernels)[:, None, None] // 2).float()


def mixed_activation(x: Tensor, hswish: Tensor) -> Tensor:
    """``(1 - hswish) relu(x) + hswish hswish(x)``, with a scalar in [0, 1]; keeps ``x`` alone for the backward pass."""
    return cast(Tensor, _MixedActivation.apply(x, hswish))


class _MixedActivation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, share: Tensor) -> Tensor:
        ctx.save_for_backward(x, share)
        return torch.lerp(F.relu(x), F.hardswish(x), share)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, share = ctx.saved_tensors
        of_x, of_share = None, None
        if ctx.needs_input_grad[0]:
            of_relu = torch.ops.aten.threshold_backward(gradient, x, 0)
            of_x = torch.lerp(of_relu, torch.ops.aten.hardswish_backward(gradient, x), share)
        if ctx.needs_input_grad[1]:
            of_share = ((F.hardswish(x) - F.relu(x)) * gradient).sum()
        return of_x, of_share
