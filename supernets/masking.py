"""Channel masks (FBNetV2, thesis Eqs. 3.1-3.3 and Fig. 3.2).

One convolution as wide as the widest option stands for all of them; the weighted sum of 0/1 masks stands for the weighted sum
of outputs. The mask is folded into the affine vectors of the batch norm in front of it, so it costs no feature map.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MaskPosition = Literal["affine", "output"]


def width_table(channels: Tensor) -> Tensor:
    """Indicator vectors 1[c < channels_i] of every option.

    Args:
        channels: `(n,)` int, channels of each option.

    Returns:
        `(n, max(channels))` float32 of zeros and ones.
    """
    return (torch.arange(int(channels.max())) < channels[:, None]).float()


def channel_mask(gumbel_weights: Tensor, channels: Tensor) -> Tensor:
    """Soft mask over the widest candidate's channels, M = sum_i g_i 1[c < channels_i] (thesis Eq. 3.3).

    Args:
        gumbel_weights: `(n_choices,)`, non-negative, sums to 1.
        channels: `(n_choices,)` int, candidate widths.

    Returns:
        `(max(channels),)`, each entry in [0, 1].
    """
    return gumbel_weights @ width_table(channels).to(gumbel_weights)


def masked_norm(x: Tensor, norm: nn.BatchNorm2d, mask: Tensor) -> Tensor:
    """``norm(x) * mask`` with the mask folded into gamma and beta: no further feature map, forward or backward.

    Args:
        x: `(B, C, H, W)`.
        norm: batch norm over C channels with affine vectors and running statistics.
        mask: `(C,)` factors.

    Returns:
        `(B, C, H, W)`.
    """
    assert norm.momentum is not None, "no cumulative averages here"
    if norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    return F.batch_norm(
        x,
        norm.running_mean,
        norm.running_var,
        norm.weight * mask,
        norm.bias * mask,
        training=norm.training,
        momentum=norm.momentum,
        eps=norm.eps,
    )


def masked_norm_activation(
    x: Tensor, norm: nn.BatchNorm2d, mask: Tensor, activation: nn.Module, position: MaskPosition
) -> Tensor:
    """Batch norm, mask and activation.

    ``position="affine"`` puts the mask before the activation: exactly Eq. 3.3 for ReLU (positively homogeneous) and for
    one-hot weights with h-swish (which maps 0 to 0), another relaxation for soft weights under h-swish.
    ``position="output"`` is Eq. 3.3 literally, at the price of one more saved feature map.
    """
    if position == "affine":
        return activation(masked_norm(x, norm, mask))  # type: ignore[no-any-return]
    return activation(norm(x)) * mask[:, None, None]  # type: ignore[no-any-return]
