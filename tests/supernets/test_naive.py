import pytest
import torch
from torch import nn

from supernets.masking import channel_mask, masked_norm
from supernets.naive import NaiveConvNorm
from supernets.residuals import conv_and_norm

WIDTHS = (3, 5, 8)


@pytest.mark.parametrize("training", [True, False])
def test_naive_mix_of_shared_weights_is_the_masked_one(training: bool) -> None:
    """Eq. 3.1 with weights sliced from one convolution equals Eq. 3.3, forward and backward."""
    generator = torch.Generator().manual_seed(0)
    conv, norm = nn.Conv2d(4, 8, 3, stride=2, padding=1, bias=False).double(), nn.BatchNorm2d(8).double()
    norm.running_var.uniform_(0.5, 2.0, generator=generator)
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean):
        tensor.normal_(generator=generator)
    naive = NaiveConvNorm(4, WIDTHS, kernel=3, stride=2).double()
    for width, option in zip(WIDTHS, naive.options, strict=True):
        narrow, narrow_norm = conv_and_norm(option)
        narrow.weight.data = conv.weight.data[:width].clone()
        values = {key: value[:width] if value.ndim else value for key, value in norm.state_dict().items()}
        narrow_norm.load_state_dict(values)
    naive.train(training)
    norm.train(training)
    x = torch.randn(2, 4, 9, 11, dtype=torch.float64, generator=generator)
    g = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64, requires_grad=True)
    masked = masked_norm(conv(x), norm, channel_mask(g, torch.tensor(WIDTHS)))
    mixed = naive(x, g)
    torch.testing.assert_close(mixed, masked)
    above = torch.randn(masked.shape, dtype=torch.float64, generator=generator)
    (of_masked,) = torch.autograd.grad((masked * above).sum(), g)
    (of_mixed,) = torch.autograd.grad((mixed * above).sum(), g)
    torch.testing.assert_close(of_mixed, of_masked)


def test_one_hot_weights_choose_one_option() -> None:
    naive = NaiveConvNorm(4, WIDTHS).eval()
    x = torch.randn(2, 4, 5, 7, generator=torch.Generator().manual_seed(0))
    mixed = naive(x, torch.tensor([0.0, 1.0, 0.0]))
    torch.testing.assert_close(mixed[:, :5], naive.options[1](x))
    assert mixed.shape == (2, 8, 5, 7) and mixed[:, 5:].abs().max() == 0


def test_a_weight_for_every_option_is_needed() -> None:
    with pytest.raises(ValueError, match="zip"):
        NaiveConvNorm(4, WIDTHS)(torch.randn(2, 4, 5, 7), torch.tensor([0.5, 0.5]))
