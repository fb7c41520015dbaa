"""Input-resolution search: subsample by nearest neighbours, run, scatter back with zeros between (thesis Figs. 3.2, 3.4, 3.5).

Pixels of a smaller map sit at the same places of the full map before and after an operation, so maps of all resolutions add
up without misalignment, and every resolution sees its own receptive field.
"""

import torch
from torch import Tensor

# B batch, C channels, H/W full map, h/w subsampled map


def subsample_index(full: int, reduced: int) -> Tensor:
    """Rows (or columns) of the full map that make up the smaller one: floor(i * full / reduced).

    Args:
        full: side of the full map in pixels.
        reduced: side of the smaller map in pixels, 1..full.

    Returns:
        `(reduced,)` int64, increasing.

    Raises:
        ValueError: reduced is larger than full or not positive.
    """
    if not 0 < reduced <= full:
        raise ValueError(f"a map of side {full} has no subsample of side {reduced}")
    return torch.arange(reduced) * full // reduced


def pixel_index(full: int, reduced: int) -> Tensor:
    """Flat pixels of the square full map that make up the smaller one, `(reduced * reduced,)` int64, row by row."""
    index = subsample_index(full, reduced)
    return (index[:, None] * full + index).flatten()


def _pixels(x: Tensor) -> Tensor:
    """`(B, C, H, W)` as `(B, H * W, C)`; free of copies in channels_last."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, x.shape[1])


def _maps(pixels: Tensor, side: int) -> Tensor:
    """Inverse of `_pixels`, channels_last."""
    return pixels.view(pixels.shape[0], side, side, -1).permute(0, 3, 1, 2)


def subsample(x: Tensor, reduced: int) -> Tensor:
    """Nearest-neighbour subsample, `(B, C, H, H)` to `(B, C, h, h)`."""
    if reduced == x.shape[-1]:
        return x
    index = pixel_index(x.shape[-1], reduced).to(x.device)
    return _maps(_pixels(x).index_select(1, index), reduced)


def scatter_add(total: Tensor, y: Tensor) -> Tensor:
    """``total`` `(B, C, H, H)` plus ``y`` `(B, C, h, h)` at the pixels that `subsample` took; zeros in between."""
    side, reduced = total.shape[-1], y.shape[-1]
    if reduced == side:
        return total + y
    index = pixel_index(side, reduced).to(y.device)
    return _maps(_pixels(total).index_add(1, index, _pixels(y)), side)


def scatter_back(y: Tensor, side: int) -> Tensor:
    """``y`` `(B, C, h, h)` in a map of zeros `(B, C, side, side)`."""
    if y.shape[-1] == side:
        return y
    zeros = y.new_zeros(y.shape[0], side, side, y.shape[1]).permute(0, 3, 1, 2)
    return scatter_add(zeros, y)
