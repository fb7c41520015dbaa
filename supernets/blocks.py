"""Layers of the supergraph: every candidate block runs once, as wide as its widest option, under channel masks.

`LayerWeights` holds all that a layer needs of the Gumbel weights; it is computed once a step and shared by all resolutions.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.architecture import Activation
from search_spaces.blocks import ACTIVATIONS, conv_norm
from search_spaces.space import BlockType, PoolHead, Slot, Stem
from supernets.masking import MaskPosition, masked_norm, masked_norm_activation

# B batch, C channels, H/W feature map, T block types


class LayerWeights(NamedTuple):
    """What the Gumbel weights of one step mean for one layer.

    Attributes:
        block: `(T,)` weights of the block types, times the weight of the layer being there.
        active: block types to run; all of them, but where weights are exactly zero and no gradient is wanted.
        mid_mask: `(C_mid,)`.
        squeeze_mask: `(C_squeeze,)`.
        out_mask: `(C_out,)`.
        same: scalar s, the weight of equal input and output widths; 0 for a strided layer.
        identity: scalar, weight of the input passing unchanged (residuals, skip, or the layer absent).
    """

    block: Tensor
    active: tuple[int, ...]
    mid_mask: Tensor
    squeeze_mask: Tensor
    out_mask: Tensor
    same: Tensor
    identity: Tensor


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


class MixedLayer(nn.Module):
    """One searched layer: all its block types, weighted by Gumbel-softmax (thesis Table 3.3, Eq. 3.1 over blocks).

    The weights of a block type are folded into its last batch norm together with the output mask. Identity and residual exist
    only where input and output widths agree: they carry the weight s, skip is s x + (1 - s) conv1x1-BN-ReLU(x).

    Args:
        slot: the layer's place in the space.
        in_channels: widest input.
        mid_channels: widest middle.
        squeeze_channels: widest squeeze.
        out_channels: widest output.
        mask_position: see `masked_norm_activation`.
        share_pointwise: whether all block types have the same 1x1 convolutions and their norms, which then run once: the
            mixture is taken of the depthwise convolutions' results, between the two.
    """

    def __init__(
        self,
        slot: Slot,
        in_channels: int,
        mid_channels: int,
        squeeze_channels: int,
        out_channels: int,
        mask_position: MaskPosition,
        *,
        share_pointwise: bool = False,
    ) -> None:
        super().__init__()
        self.share_pointwise = share_pointwise
        self.stride = slot.stride
        self.block_types = slot.block_types
        self.branches = nn.ModuleList(
            conv_norm(in_channels, out_channels, stride=slot.stride)
            if block.is_skip
            else MaskedInvertedResidual(
                block,
                in_channels,
                mid_channels,
                squeeze_channels,
                out_channels,
                stride=slot.stride,
                pointwise=slot.pointwise,
                mask_position=mask_position,
            )
            for block in self.block_types
        )
        residuals = [branch for branch in self.branches if isinstance(branch, MaskedInvertedResidual)]
        for branch in residuals if share_pointwise else []:
            branch.pw, branch.pwl = residuals[0].pw, residuals[0].pwl

    def forward(self, x: Tensor, weights: LayerWeights, scale: Tensor) -> Tensor:
        """`(B, C_in, H, W)` to `(B, C_out, H', W')`, times the scalar ``scale`` (the weight of this resolution)."""
        out_mask = weights.out_mask * scale
        total = self._mixed_inside(x, weights, out_mask) if self.share_pointwise else None
        for index in weights.active:
            branch, out_scale = self.branches[index], weights.block[index] * out_mask
            if isinstance(branch, MaskedInvertedResidual):
                if self.share_pointwise:
                    continue
                y = branch(x, weights.mid_mask, weights.squeeze_mask, out_scale)
            else:  # ReLU(k z) = k ReLU(z) for k >= 0, so the factor goes into the norm
                conv, norm = conv_and_norm(branch)
                y = F.relu(masked_norm(conv(x), norm, out_scale * (1 - weights.same)), inplace=True)
            total = y if total is None else total + y
        assert total is not None, "a layer has at least one active block type"
        return total if self.stride > 1 else _add_channels(total, x, weights.identity * scale)

    def _mixed_inside(self, x: Tensor, weights: LayerWeights, out_mask: Tensor) -> Tensor | None:
        """All inverted residuals, mixed between their shared convolutions; None where there is none."""
        residuals = {
            index: branch
            for index in weights.active
            for branch in [self.branches[index]]
            if isinstance(branch, MaskedInvertedResidual)
        }
        if not residuals:
            return None
        first = next(iter(residuals.values()))
        expanded = _expanded(first, x, weights.mid_mask, [self.block_types[index].activation for index in residuals])
        share = weights.block[list(residuals)].sum()
        total: Tensor | None = None
        for index, branch in residuals.items():
            z = branch.hidden(expanded[self.block_types[index].activation], weights.mid_mask, weights.squeeze_mask)
            part = weights.block[index] / share.clamp_min(torch.finfo(share.dtype).tiny)
            total = z * part if total is None else torch.addcmul(total, z, part)
        assert total is not None
        return first.projected(total, share * out_mask)


def _expanded(
    branch: MaskedInvertedResidual, x: Tensor, mid_mask: Tensor, kinds: Sequence[Activation]
) -> dict[Activation, Tensor]:
    """By activation, in which block types differ, what the first 1x1 convolution of a branch makes of ``x``."""
    if branch.pw is None:
        return dict.fromkeys(kinds, x)
    conv, norm = conv_and_norm(branch.pw)
    affine = branch.mask_position == "affine"
    y = masked_norm(conv(x), norm, mid_mask if affine else torch.ones_like(mid_mask))
    maps = {kind: ACTIVATIONS[kind]()(y) for kind in dict.fromkeys(kinds)}
    return maps if affine else {kind: found * mid_mask[:, None, None] for kind, found in maps.items()}


def _add_channels(y: Tensor, x: Tensor, factor: Tensor) -> Tensor:
    """``y + factor * x`` over the channels that both maps have."""
    channels = min(y.shape[1], x.shape[1])
    if x.shape[1] > channels:
        x = x[:, :channels]
    if y.shape[1] == channels:
        return y.addcmul(x, factor.view(1, 1, 1, 1))
    return y + F.pad(factor * x, (0, 0, 0, 0, 0, y.shape[1] - channels))


class MaskedStem(nn.Module):
    """First convolution, as wide as its widest option."""

    def __init__(self, stem: Stem, in_channels: int, out_channels: int, mask_position: MaskPosition) -> None:
        super().__init__()
        self.mask_position: MaskPosition = mask_position
        self.conv = conv_norm(in_channels, out_channels, kernel=stem.kernel, stride=stem.stride)
        self.activation = ACTIVATIONS[stem.activation](inplace=True)

    def forward(self, x: Tensor, mask: Tensor, scale: Tensor) -> Tensor:
        """Images `(B, C, H, W)` to `(B, C_stem, H / 2, W / 2)`, times the scalar ``scale``."""
        conv, norm = conv_and_norm(self.conv)
        y = masked_norm_activation(conv(x), norm, mask, self.activation, self.mask_position)
        return y * scale


class MaskedPoolHead(nn.Module):
    """Efficient last stage, as wide as its widest option."""

    def __init__(self, head: PoolHead, in_channels: int, mid_channels: int, mask_position: MaskPosition) -> None:
        super().__init__()
        self.mask_position: MaskPosition = mask_position
        self.pw = conv_norm(in_channels, mid_channels)
        self.pwl = nn.Conv2d(mid_channels, head.out_channels, 1, bias=False)
        self.activation = ACTIVATIONS[head.activation]()

    def forward(self, x: Tensor, mid_mask: Tensor, scale: Tensor) -> Tensor:
        """`(B, C_in, H, W)` to `(B, C_head, 1, 1)`, times the scalar ``scale``."""
        conv, norm = conv_and_norm(self.pw)
        y = masked_norm_activation(conv(x), norm, mid_mask, self.activation, self.mask_position)
        pooled: Tensor = self.activation(self.pwl(F.adaptive_avg_pool2d(y, 1))) * scale
        return pooled
