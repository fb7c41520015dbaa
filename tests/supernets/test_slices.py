"""Invariant 2: with one-hot weights the supergraph computes exactly the network that `build` makes, with sliced weights."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_spaces import randomise, three_layers
from torch import Tensor

from search_spaces.fbnetv2 import fbnetv2_f
from search_spaces.fbnetv3 import fbnetv3
from search_spaces.space import SearchSpace
from search_spaces.variables import Rows
from supernets.derive import sliced_network
from supernets.masking import MaskPosition
from supernets.residuals import MaskedInvertedResidual, SharedResidual, conv_and_norm, mixed_activation
from supernets.supergraph import Supergraph

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}  # of the largest logit


def covering_rows(space: SearchSpace, n: int, seed: int) -> Rows:
    """Rows in which every option of every variable occurs: shuffled repetitions of all options, column by column."""
    rng = np.random.default_rng(seed)
    columns = [rng.permutation(np.resize(np.arange(count), n)) for count in space.option_counts]
    return np.stack(columns, axis=1)


def worst_difference(
    space: SearchSpace, rows: Rows, dtype: torch.dtype, batch: int, position: MaskPosition, **shared: bool
) -> float:
    supergraph = Supergraph(space, 10, 3, seed=1, mask_position=position, **shared).to(dtype).eval()
    randomise(supergraph, seed=2)
    side = int(max(space.resolution.options))
    generator = torch.Generator().manual_seed(3)
    worst = 0.0
    for row in rows:
        images = torch.randn(batch, 3, side, side, generator=generator, dtype=dtype)
        network = sliced_network(supergraph, row)
        with torch.no_grad():
            reduced = space.decode(row).resolution
            pixels = [i * side // reduced for i in range(reduced)]
            expected = network(images[:, :, pixels][:, :, :, pixels])
            found = supergraph(images, supergraph.one_hot(row))
        worst = max(worst, float((found - expected).abs().max() / expected.abs().max()))
    return worst


@pytest.mark.parametrize("shared", [{}, {"share_pointwise": True}, {"share_blocks": True}])
@pytest.mark.parametrize("position", ["affine", "output"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_space(dtype: torch.dtype, position: MaskPosition, shared: dict[str, bool]) -> None:
    space = three_layers()
    rows = covering_rows(space, 60, seed=0)
    assert worst_difference(space, rows, dtype, 3, position, **shared) < TOLERANCE[dtype]


@pytest.mark.parametrize(("shared", "share_of_weights"), [("share_pointwise", 0.7), ("share_blocks", 0.5)])
def test_shared_convolutions_run_once_a_resolution_and_learn(shared: str, share_of_weights: float) -> None:
    space = three_layers()
    supergraph = Supergraph(space, 10, 3, **{shared: True})
    layer = supergraph.layers[1]
    residuals = [branch for branch in layer.branches if isinstance(branch, MaskedInvertedResidual)]
    calls = [0, 0]
    for position, pair in enumerate((residuals[0].pw, residuals[0].pwl)):
        conv, _ = conv_and_norm(pair)  # type: ignore[arg-type]

        def count(*_: object, position: int = position) -> None:
            calls[position] += 1

        conv.register_forward_hook(count)
    generator = torch.Generator().manual_seed(0)
    weights = supergraph.weights(1.0, torch.randn(len(supergraph.alpha), generator=generator))
    supergraph(torch.randn(2, 3, 16, 16, generator=generator), weights).square().sum().backward()
    assert calls == [len(supergraph.levels[2])] * 2
    assert all(parameter.grad is not None for parameter in supergraph.parameters())
    plain = sum(p.numel() for p in Supergraph(space, 10, 3).parameters())
    assert sum(p.numel() for p in supergraph.parameters()) < share_of_weights * plain


@pytest.mark.parametrize("make", [fbnetv2_f, fbnetv3])
def test_large_spaces(make: object) -> None:
    space = make()  # type: ignore[operator]
    rows = covering_rows(space, 3, seed=1)
    assert worst_difference(space, rows, torch.float32, 1, "affine") < TOLERANCE[torch.float32]


def test_a_gradient_does_not_change_the_result() -> None:
    """Without gradients only active branches run; with learned weights all do."""
    space = three_layers()
    supergraph = Supergraph(space, 10, 3).eval()
    randomise(supergraph, seed=0)
    images = torch.randn(2, 3, 16, 16)
    row = covering_rows(space, 4, seed=2)[1]
    hot = supergraph.one_hot(row)
    with torch.no_grad():
        pruned = supergraph(images, hot)
    full = supergraph(images, {name: g.clone().requires_grad_() for name, g in hot.items()})
    torch.testing.assert_close(pruned, full.detach(), rtol=0, atol=1e-5)


def test_soft_widths_are_the_weighted_sum_of_padded_narrow_blocks() -> None:
    """Eq. 3.1 on a whole layer: soft output widths, all else one-hot, compared with one sliced block for each width."""
    space = three_layers()
    supergraph = Supergraph(space, 10, 3, seed=4).double().eval()
    randomise(supergraph, seed=5)
    g = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    for block in range(9):
        row = space.row(
            {
                "resolution": 16, "layer1.block": space.slots[0].block.options[0], "layer1.width": 12,
                "layer2.block": space.slots[1].block.options[block], "layer2.expansion": 1.5, "layer2.width": 24,
                "layer3.block": space.slots[2].block.options[0], "layer3.expansion": 1.5, "layer3.width": 8,
            }
        )  # fmt: skip
        weights = {**supergraph.one_hot(row), "layer2.width": g}
        x = torch.zeros(2, 16, 8, 8, dtype=torch.float64)
        x[:, :12] = torch.randn(2, 12, 8, 8, dtype=torch.float64)
        expected = torch.zeros(2, 24, 4, 4, dtype=torch.float64)
        for option, width in enumerate((8, 16, 24)):
            narrow = row.copy()
            narrow[space.column["layer2.width"]] = option
            expected[:, :width] += g[option] * sliced_network(supergraph, narrow).blocks[2](x[:, :12])
        found = supergraph.layers[1](x, supergraph.layer_weights(weights)[1], torch.tensor(1.0, dtype=torch.float64))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_identity_carries_the_weight_of_equal_widths() -> None:
    """Skip of a layer that keeps the stride: s x + (1 - s) conv1x1-BN-ReLU(x), s = sum over equal widths of g_in g_out."""
    space = three_layers()
    supergraph = Supergraph(space, 10, 3, seed=4).double().eval()
    randomise(supergraph, seed=5)
    row = np.zeros(len(space), dtype=np.int64)
    row[space.column["layer3.block"]] = 8
    g_in = torch.tensor([0.1, 0.6, 0.3], dtype=torch.float64)
    g_out = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    weights = {**supergraph.one_hot(row), "layer2.width": g_in, "layer3.width": g_out}
    s = 0.1 * 0.5 + 0.6 * 0.2 + 0.3 * 0.3
    x = torch.randn(2, 24, 4, 4, dtype=torch.float64)
    conv, norm = supergraph.layers[2].branches[8]
    mask = torch.tensor([1.0] * 8 + [0.5] * 8 + [0.3] * 8, dtype=torch.float64)
    expected = s * x + (1 - s) * torch.relu(norm(conv(x))) * mask[:, None, None]
    found = supergraph.layers[2](x, supergraph.layer_weights(weights)[2], torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_soft_resolutions_are_scattered_with_zeros_between() -> None:
    """Stem with soft resolutions against explicit subsampling, running and putting back (Fig. 3.2)."""
    space = three_layers()
    supergraph = Supergraph(space, 10, 3, seed=4).double().eval()
    randomise(supergraph, seed=5)
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    g = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    hot = supergraph.one_hot(np.zeros(len(space), dtype=np.int64))
    expected = torch.zeros(2, 8, 8, 8, dtype=torch.float64)
    for weight, side, reduced in zip(g, (10, 13, 16), (5, 7, 8), strict=True):
        rows = [i * 16 // side for i in range(side)]
        small = supergraph.stem(images[:, :, rows][:, :, :, rows], torch.ones(8).double(), torch.tensor(1.0).double())
        places = [i * 8 // reduced for i in range(reduced)]
        for i, row in enumerate(places):
            for j, column in enumerate(places):
                expected[:, :, row, column] += weight * small[:, :, i, j]
    seen: list[torch.Tensor] = []
    supergraph.layers[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    supergraph(images, {**hot, "resolution": g.requires_grad_()})
    largest = max(seen, key=lambda x: x.shape[-1])
    torch.testing.assert_close(largest.detach(), expected.detach(), rtol=0, atol=1e-10)


def test_images_of_another_side_are_refused() -> None:
    supergraph = Supergraph(three_layers(), 10, 3)
    with pytest.raises(ValueError, match="images must be 16x16, got 13x13"):
        supergraph(torch.zeros(1, 3, 13, 13), supergraph.weights(1.0))


def test_soft_weights_mix_between_the_shared_convolutions() -> None:
    space = three_layers()
    supergraph = Supergraph(space, 10, 3, share_pointwise=True).double().eval()
    randomise(supergraph, seed=4)
    layer, generator = supergraph.layers[1], torch.Generator().manual_seed(5)
    noise = torch.randn(len(supergraph.alpha), generator=generator)
    given = supergraph.layer_weights(supergraph.weights(0.7, noise))[1]
    conv = supergraph.layers[0].branches[0].pwl[0]  # type: ignore[index, union-attr]
    x = torch.randn(2, conv.out_channels, 8, 8, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        found = layer(x, given, torch.tensor(0.6, dtype=torch.float64))
        # Each block type alone, up to its last convolution; weighted by g_i / G; projected once, times G.
        pairs = [
            (g, b) for g, b in zip(given.block, layer.branches, strict=True) if isinstance(b, MaskedInvertedResidual)
        ]
        total = sum(float(g) for g, _ in pairs)
        assert len(pairs) > 1 and total < 1  # the rest is skip's
        inside = torch.zeros(())
        for g, branch in pairs:
            expanding, norm = conv_and_norm(branch.pw)  # type: ignore[arg-type]
            y = branch.activation(norm(expanding(x)) * given.mid_mask[:, None, None])
            inside = inside + float(g) / total * branch.hidden(y, given.mid_mask, given.squeeze_mask)
        projecting, norm = conv_and_norm(pairs[0][1].pwl)
        expected = norm(projecting(inside)) * (0.6 * total * given.out_mask)[:, None, None]
        for g, branch in zip(given.block, layer.branches, strict=True):
            if not isinstance(branch, MaskedInvertedResidual):
                scale = (0.6 * float(g) * (1 - given.same) * given.out_mask)[:, None, None]
                expected = expected + branch(x).relu() * scale
        expected = expected + 0.6 * given.identity * x if layer.stride == 1 else expected
    torch.testing.assert_close(found, expected)


def test_resolutions_of_weight_zero_run_where_processes_wait_for_each_other() -> None:
    space = three_layers()
    supergraph, calls = Supergraph(space, 10, 3), []
    supergraph.stem.register_forward_hook(lambda *_: calls.append(1))
    chosen, images = supergraph.one_hot([0] * len(space)), torch.randn(2, 3, 16, 16)
    results = []
    for supergraph.run_all_resolutions in (False, True):
        calls.clear()
        with torch.no_grad():
            results.append(supergraph.eval()(images, chosen))
        assert len(calls) == (len(supergraph.levels[0]) if supergraph.run_all_resolutions else 1)
    torch.testing.assert_close(*results)


def test_one_block_mixes_kernels_activations_and_squeeze_each_for_itself() -> None:
    """Soft weights, step by step: one convolution a kernel, cut from the middle of the largest, instead of a masked one."""
    space = three_layers()
    supergraph = Supergraph(space, 10, 3, share_blocks=True).double().eval()
    randomise(supergraph, seed=4)
    layer, generator = supergraph.layers[1], torch.Generator().manual_seed(5)
    given = supergraph.layer_weights(supergraph.weights(0.7, torch.randn(len(supergraph.alpha), generator=generator)))[
        1
    ]
    branch = layer.branches[0]
    assert isinstance(branch, SharedResidual) and branch.reduce is not None and branch.expand is not None
    types = [block for block in space.slots[1].block_types if not block.is_skip]
    assert {block.kernel for block in types} == {3, 5} and {block.squeeze for block in types} == {False, True}
    parts = given.block[: len(types)] / given.block[: len(types)].sum()
    stride, mid, squeeze = space.slots[1].stride, given.mid_mask[:, None, None], given.squeeze_mask[:, None, None]
    x = torch.randn(2, layer.branches[0].pw[0].in_channels, 8, 8, generator=generator, dtype=torch.float64)  # type: ignore[index, union-attr]

    def activated(y: Tensor) -> Tensor:
        made = [F.hardswish(y) if block.activation == "hswish" else F.relu(y) for block in types]
        return torch.einsum("t,t...->...", parts, torch.stack(made))

    with torch.no_grad():
        expanding, norm = conv_and_norm(branch.pw)  # type: ignore[arg-type]
        y = activated(norm(expanding(x)) * mid)
        depthwise, norm = conv_and_norm(branch.dw)
        z = torch.zeros(())
        for part, block in zip(parts, types, strict=True):
            margin = (5 - block.kernel) // 2
            kernel = depthwise.weight[:, :, margin : 5 - margin, margin : 5 - margin]
            z = z + part * F.conv2d(y, kernel, stride=stride, padding=block.kernel // 2, groups=len(kernel))
        y = activated(norm(z) * mid)
        gate = F.hardsigmoid(branch.expand(activated(branch.reduce(y.mean((2, 3), keepdim=True))) * squeeze))
        gated = sum(float(part) for part, block in zip(parts, types, strict=True) if block.squeeze)
        expected = y * (1 - gated) + y * gate * gated
        found = branch.hidden_mix(x, parts, given.mid_mask, given.squeeze_mask)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_gradients_of_the_mixed_activation() -> None:
    generator = torch.Generator().manual_seed(0)
    x = (4 * torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64)).requires_grad_()
    share = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mixed_activation, (x, share))
    torch.testing.assert_close(mixed_activation(x, share), 0.7 * F.relu(x) + 0.3 * F.hardswish(x))
