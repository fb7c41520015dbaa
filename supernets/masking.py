"""Channel masks (FBNetV2, thesis Eqs. 3.1-3.3 and Fig. 3.2).

One convolution as wide as the widest option stands for all of them; the weighted sum of 0/1 masks stands for the weighted sum
of outputs. The mask is folded into the affine vectors of the batch norm in front of it, so it costs no feature map.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes.distributed import differentiable_sum

MaskPosition = Literal["affine", "output"]


class SynchronisedBatchNorm(nn.BatchNorm2d):
    """Marks a batch norm whose statistics are those of all processes' images; `normalise` does it, on any device."""


def synchronise_norms(module: nn.Module) -> None:
    """Turn all batch norms inside into synchronised ones, in place; their parameters and buffers stay the same objects."""
    for child in module.modules():
        if type(child) is nn.BatchNorm2d:
            child.__class__ = SynchronisedBatchNorm


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
    return normalise(x, norm, norm.weight * mask, norm.bias * mask)


def normalise(x: Tensor, norm: nn.BatchNorm2d, weight: Tensor, bias: Tensor) -> Tensor:
    """Batch norm of x `(B, C, H, W)` with the statistics of ``norm`` and the affine vectors `(C,)` given.

    As in torch, a norm in training whose ``track_running_stats`` is off leaves its running statistics alone.
    """
    assert norm.momentum is not None, "no cumulative averages here"
    tracks = norm.training and norm.track_running_stats
    if tracks and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    if norm.training and isinstance(norm, SynchronisedBatchNorm):
        return synchronised_norm(x, norm, weight, bias)
    running_mean, running_var = norm.running_mean, norm.running_var
    if norm.training and not tracks and running_mean is not None and running_var is not None:
        running_mean, running_var = running_mean.clone(), running_var.clone()  # not None: as many tensors must be kept
    return F.batch_norm(
        x,
        running_mean,
        running_var,
        weight,
        bias,
        training=norm.training,
        momentum=norm.momentum,
        eps=norm.eps,
    )


def synchronised_norm(x: Tensor, norm: nn.BatchNorm2d, weight: Tensor, bias: Tensor) -> Tensor:
    """`normalise` with mean and variance over the images of all processes, on any device.

    Mean and variance are two sums over all processes; gradients go through them, as if one process had all images. They are
    float32 where x has fewer digits, which could not even count the pixels; the result is as x.
    """
    assert norm.running_mean is not None and norm.running_var is not None and norm.momentum is not None
    exact = torch.promote_types(x.dtype, torch.float32)
    count = differentiable_sum(torch.tensor([x.numel() / x.shape[1]], dtype=exact, device=x.device))
    mean = differentiable_sum(x.sum((0, 2, 3), dtype=exact)) / count
    centred = x - mean[:, None, None]
    var = differentiable_sum((centred**2).sum((0, 2, 3))) / count
    if norm.track_running_stats:
        with torch.no_grad():
            norm.running_mean.lerp_(mean.to(norm.running_mean), norm.momentum)
            norm.running_var.lerp_((var * count / (count - 1)).to(norm.running_var), norm.momentum)
    scale = weight * torch.rsqrt(var + norm.eps)
    return (centred * scale[:, None, None] + bias[:, None, None]).to(x.dtype)


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
    y: Tensor = activation(normalise(x, norm, norm.weight, norm.bias))
    return y * mask.to(y.dtype)[:, None, None]
