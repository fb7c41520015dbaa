"""Layers of the supergraph: every candidate block runs once, as wide as its widest option, under channel masks.

`LayerWeights` holds all that a layer needs of the Gumbel weights; it is computed once a step and shared by all resolutions.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.architecture import Activation
from search_spaces.blocks import ACTIVATIONS, conv_norm
from search_spaces.space import PoolHead, Slot, Stem
from supernets.masking import MaskPosition, masked_norm, masked_norm_activation
from supernets.residuals import MaskedInvertedResidual, SharedResidual, conv_and_norm

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
        share_blocks: whether all inverted residuals have the same weights and run once, as a `SharedResidual`.
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
        share_blocks: bool = False,
    ) -> None:
        super().__init__()
        self.share_pointwise, self.share_blocks = share_pointwise, share_blocks
        self.stride = slot.stride
        self.block_types = slot.block_types
        channels = (in_channels, mid_channels, squeeze_channels, out_channels)
        others: dict[str, Any] = {"stride": slot.stride, "pointwise": slot.pointwise, "mask_position": mask_position}
        types = [block for block in slot.block_types if not block.is_skip]
        if share_blocks and types:
            residuals: list[MaskedInvertedResidual] = [SharedResidual(types, *channels, **others)] * len(types)
        else:
            residuals = [MaskedInvertedResidual(block, *channels, **others) for block in types]
        for branch in residuals if share_pointwise else []:
            branch.pw, branch.pwl = residuals[0].pw, residuals[0].pwl
        following = iter(residuals)
        self.branches = nn.ModuleList(
            conv_norm(in_channels, out_channels, stride=slot.stride) if block.is_skip else next(following)
            for block in slot.block_types
        )

    def forward(self, x: Tensor, weights: LayerWeights, scale: Tensor) -> Tensor:
        """`(B, C_in, H, W)` to `(B, C_out, H', W')`, times the scalar ``scale`` (the weight of this resolution)."""
        out_mask = weights.out_mask * scale
        shared = self.share_pointwise or self.share_blocks
        total = self._mixed_inside(x, weights, out_mask) if shared else None
        for index in weights.active:
            branch, out_scale = self.branches[index], weights.block[index] * out_mask
            if isinstance(branch, MaskedInvertedResidual):
                if shared:
                    continue
                y = branch(x, weights.mid_mask, weights.squeeze_mask, out_scale)
            else:  # ReLU(k z) = k ReLU(z) for k >= 0, so the factor goes into the norm
                conv, norm = conv_and_norm(branch)
                y = F.relu(masked_norm(conv(x), norm, out_scale * (1 - weights.same)), inplace=True)
            total = y if total is None else total + y
        assert total is not None, "a layer has at least one active block type"
        return total if self.stride > 1 else _add_channels(total, x, weights.identity * scale)

    def _mixed_inside(self, x: Tensor, weights: LayerWeights, out_mask: Tensor) -> Tensor | None:
        """All inverted residuals, mixed between the convolutions that they share; None where there is none to run."""
        residuals = {
            index: branch for index, branch in enumerate(self.branches) if isinstance(branch, MaskedInvertedResidual)
        }
        active = [index for index in residuals if index in weights.active]
        if not active:
            return None
        share = weights.block[active].sum()
        parts = weights.block / share.clamp_min(torch.finfo(share.dtype).tiny)
        first = residuals[active[0]]
        if isinstance(first, SharedResidual):
            inside = first.hidden_mix(x, parts[list(residuals)], weights.mid_mask, weights.squeeze_mask)
            return first.projected(inside, share * out_mask)
        expanded = _expanded(first, x, weights.mid_mask, [self.block_types[index].activation for index in active])
        total: Tensor | None = None
        for index in active:
            inside = expanded[self.block_types[index].activation]
            z = residuals[index].hidden(inside, weights.mid_mask, weights.squeeze_mask)
            total = z * parts[index] if total is None else torch.addcmul(total, z, parts[index].to(z.dtype))
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
    return maps if affine else {kind: found * mid_mask.to(found.dtype)[:, None, None] for kind, found in maps.items()}


def _add_channels(y: Tensor, x: Tensor, factor: Tensor) -> Tensor:
    """``y + factor * x`` over the channels that both maps have."""
    channels = min(y.shape[1], x.shape[1])
    if x.shape[1] > channels:
        x = x[:, :channels]
    if y.shape[1] == channels:
        return y.addcmul(x.to(y.dtype), factor.to(y.dtype).view(1, 1, 1, 1))
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
