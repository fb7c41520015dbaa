from pathlib import Path
from typing import Any

import pytest
import torch
from small_spaces import three_layers
from torch import Tensor, nn

from supernets.gumbel import gumbel_noise
from supernets.masking import (
    MaskPosition,
    SynchronisedBatchNorm,
    channel_mask,
    masked_norm,
    masked_norm_activation,
    synchronised_norm,
)
from supernets.supergraph import Supergraph

WIDTHS = [3, 5, 8]
G = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)


def test_mask_matches_a_loop_over_options() -> None:
    expected = torch.zeros(8, dtype=torch.float64)
    for weight, width in zip(G, WIDTHS, strict=True):
        for channel in range(width):
            expected[channel] += weight
    torch.testing.assert_close(channel_mask(G, torch.tensor(WIDTHS)), expected)


def test_one_masked_convolution_is_the_sum_of_padded_narrow_ones() -> None:
    """Eq. 3.1 with shared weights equals Eq. 3.3."""
    conv = nn.Conv2d(4, 8, 3, padding=1).double()
    x = torch.randn(2, 4, 9, 11, dtype=torch.float64)
    padded = torch.zeros(2, 8, 9, 11, dtype=torch.float64)
    for weight, width in zip(G, WIDTHS, strict=True):
        narrow = nn.functional.conv2d(x, conv.weight[:width], conv.bias[:width], padding=1)
        padded[:, :width] += weight * narrow
    torch.testing.assert_close(conv(x) * channel_mask(G, torch.tensor(WIDTHS))[:, None, None], padded)


@pytest.mark.parametrize("training", [True, False])
def test_folded_mask_is_a_product_forward_and_backward(training: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 8, 5, 7, dtype=torch.float64)
    plain, folded = nn.BatchNorm2d(8).double().train(training), nn.BatchNorm2d(8).double().train(training)
    for norm in (plain, folded):
        norm.load_state_dict(
            {
                "weight": torch.linspace(0.5, 1.5, 8), "bias": torch.linspace(-1, 1, 8),
                "running_mean": torch.linspace(-0.3, 0.4, 8), "running_var": torch.linspace(0.5, 2, 8),
                "num_batches_tracked": torch.tensor(4),
            }
        )  # fmt: skip
    gradients = []
    for norm, fold in ((plain, False), (folded, True)):
        g = G.clone().requires_grad_()
        inputs = x.clone().requires_grad_()
        mask = channel_mask(g, torch.tensor(WIDTHS))
        y = masked_norm(inputs, norm, mask) if fold else norm(inputs) * mask[:, None, None]
        (y * torch.arange(y.numel()).view_as(y).sin()).sum().backward()
        gradients.append((y.detach(), inputs.grad, g.grad, norm.weight.grad, norm.bias.grad))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(folded.state_dict()[name], value)


@pytest.mark.parametrize(("activation", "equal"), [(nn.ReLU(), True), (nn.Hardswish(), False)])
def test_affine_position_is_exact_for_relu_only_when_weights_are_soft(activation: nn.Module, equal: bool) -> None:
    torch.manual_seed(0)
    x, norm = torch.randn(3, 8, 5, 7), nn.BatchNorm2d(8)
    mask = channel_mask(G.float(), torch.tensor(WIDTHS))
    affine, output = (masked_norm_activation(x, norm, mask, activation, place) for place in ("affine", "output"))  # type: ignore[arg-type]
    assert torch.allclose(affine, output, atol=1e-6) is equal


def test_one_hot_masks_are_exact_for_hswish_too() -> None:
    torch.manual_seed(0)
    x, norm, mask = torch.randn(3, 8, 5, 7), nn.BatchNorm2d(8), (torch.arange(8) < 5).float()
    affine = masked_norm_activation(x, norm, mask, nn.Hardswish(), "affine")
    torch.testing.assert_close(affine, masked_norm_activation(x, norm, mask, nn.Hardswish(), "output"))
    assert affine[:, 5:].abs().max() == 0


@pytest.mark.parametrize("position", ["affine", "output"])
@pytest.mark.parametrize("shared", [{}, {"share_pointwise": True}, {"share_blocks": True}])
def test_masks_are_exact_and_maps_small_under_autocast(position: MaskPosition, shared: dict[str, bool]) -> None:
    """As on GPUs: feature maps in bfloat16 from layer to layer, what alpha's gradient goes through in float32."""
    supergraph = Supergraph(three_layers(), 4, 3, seed=0, mask_position=position, **shared)
    maps, masks = set[torch.dtype](), set[torch.dtype]()

    def look(_: nn.Module, given: tuple[Any, ...], y: Tensor) -> None:
        maps.add(y.dtype)
        masks.update(part.dtype for part in given[1] if isinstance(part, Tensor))

    for layer in supergraph.layers:
        layer.register_forward_hook(look)
    weights = supergraph.weights(1.0, gumbel_noise(len(supergraph.alpha), torch.Generator().manual_seed(0)))
    with torch.autocast("cpu", torch.bfloat16):
        logits = supergraph(torch.randn(4, 3, 16, 16), weights)
    assert (maps, masks) == ({torch.bfloat16}, {torch.float32})
    torch.autograd.backward(logits.float().square().sum())
    assert supergraph.alpha.grad is not None and supergraph.alpha.grad.isfinite().all()


def test_synchronised_norms_count_in_float32(tmp_path: Path) -> None:
    """bfloat16 has no number between 4096 and 4128."""
    x = torch.randn(1, 2, 63, 65, generator=torch.Generator().manual_seed(0)) + 1  # 4095 pixels
    plain, norm = nn.BatchNorm2d(2), SynchronisedBatchNorm(2)
    expected = plain(x.bfloat16().float())
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    try:
        found = synchronised_norm(x.bfloat16(), norm, norm.weight, norm.bias)
    finally:
        torch.distributed.destroy_process_group()
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(norm.running_mean, plain.running_mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.running_var, plain.running_var, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.float(), expected, rtol=1e-2, atol=1e-2)
