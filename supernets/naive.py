"""Plain DNAS of channel options: the baseline of thesis chapter 3, whose memory grows with the options (Fig. 3.7).

Every option is a convolution of its own. Searches use `supernets.masking`, where one convolution stands for all options.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.blocks import conv_norm

# B batch, C channels, H/W feature map


class NaiveConvNorm(nn.Module):
    """A convolution and batch norm for each output width, padded with zeros to the widest and mixed (thesis Eq. 3.1).

    Args:
        in_channels: channels of the input.
        channels: output channels of each option.
        kernel: side of the kernels.
        stride: of all options.
    """

    def __init__(self, in_channels: int, channels: Sequence[int], *, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.options = nn.ModuleList(conv_norm(in_channels, width, kernel=kernel, stride=stride) for width in channels)
        self.widest = max(channels)

    def forward(self, x: Tensor, gumbel_weights: Tensor) -> Tensor:
        """Sum over options i of g_i pad(norm_i(conv_i(x))).

        Args:
            x: `(B, C_in, H, W)`.
            gumbel_weights: `(n_options,)`, non-negative, sums to 1.

        Returns:
            `(B, max(channels), H', W')`.
        """
        return sum(  # type: ignore[return-value]
            _padded(weight * option(x), self.widest)
            for weight, option in zip(gumbel_weights, self.options, strict=True)
        )


def _padded(x: Tensor, channels: int) -> Tensor:
    """`(B, C, H, W)` with channels of zeros behind, `(B, channels, H, W)`."""
    return F.pad(x, (0, 0, 0, 0, 0, channels - x.shape[1]))
