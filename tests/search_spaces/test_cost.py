import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from published_networks import EXACT, published_architecture
from tiny_spaces import TINY, all_rows
from torch import nn

from search_spaces.architecture import Architecture, Block
from search_spaces.cost import Cost, block_cost, conv_cost, cost, ir_cost, out_size, pool_cost, skip_cost
from search_spaces.counting import fvcore_cost
from search_spaces.network import Network
from search_spaces.sampling import uniform_rows
from search_spaces.spaces import SPACES
from search_spaces.tables import SpaceTables

IMAGES = [(10, 1), (10, 3), (1000, 1), (1000, 3)]  # num_classes, in_channels


def on_meta(architecture: Architecture, num_classes: int, in_channels: int) -> nn.Module:
    """The built network with shapes but no numbers."""
    with torch.device("meta"):
        return Network(architecture, num_classes, in_channels).eval()


def counted_by_fvcore(network: nn.Module, in_channels: int, side: int) -> int:
    """fvcore runs the network, so it needs numbers; zeros are enough."""
    network.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.zero_()
    counts = FlopCountAnalysis(network, torch.zeros(1, in_channels, side, side))
    counts = counts.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    by_operator = counts.by_operator()
    return int(sum(by_operator[name] for name in ("conv", "linear", "adaptive_avg_pool2d")))


def counted_by_hooks(network: nn.Module, in_channels: int, side: int) -> int:
    """Weights times output positions of every convolution and linear layer that runs, and what enters adaptive pools."""
    total = 0

    def count(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.AdaptiveAvgPool2d):
            total += inputs[0].numel()
        elif isinstance(module, nn.Conv2d):
            total += module.weight.numel() * output.shape[2] * output.shape[3]
        else:
            total += module.weight.numel()

    counted = (nn.Conv2d, nn.Linear, nn.AdaptiveAvgPool2d)
    hooks = [module.register_forward_hook(count) for module in network.modules() if isinstance(module, counted)]
    with torch.no_grad():
        network(torch.zeros(1, in_channels, side, side, device="meta"))
    for hook in hooks:
        hook.remove()
    return total


def counted_params(network: nn.Module) -> tuple[int, int]:
    weights = sum(m.weight.numel() for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
    return weights, sum(p.numel() for p in network.parameters())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SPACES)
def test_cost_equals_fvcore_on_the_built_network(name: str) -> None:
    """20 random candidates of every space to the last digit, most of them on a smaller, odd image."""
    space, rng = SPACES[name](), np.random.default_rng(11)
    for index, row in enumerate(uniform_rows(space, 20, rng)):
        network = space.decode(row)
        num_classes, in_channels = IMAGES[index % 4]
        side = network.resolution if index % 10 == 3 else 2 * int(rng.integers(8, 40)) + 1
        module = on_meta(network, num_classes, in_channels)
        found = cost(network, num_classes=num_classes, in_channels=in_channels, resolution=side)
        assert found == (counted_by_fvcore(module, in_channels, side), *counted_params(module))


@pytest.mark.parametrize("name", SPACES)
def test_cost_equals_a_count_by_hooks(name: str) -> None:
    """The same without fvcore, at each candidate's own resolution and at odd ones."""
    space, rng = SPACES[name](), np.random.default_rng(12)
    for index, row in enumerate(uniform_rows(space, 6, rng)):
        network = space.decode(row)
        num_classes, in_channels = IMAGES[index % 4]
        module = on_meta(network, num_classes, in_channels)
        for side in (network.resolution, 33 + 10 * index):
            found = cost(network, num_classes=num_classes, in_channels=in_channels, resolution=side)
            assert found == (counted_by_hooks(module, in_channels, side), *counted_params(module))


def test_fvcore_cost_counts_a_real_module() -> None:
    """The library's own counter against arithmetic: a strided grouped convolution, a pool, a linear layer, a batch norm."""
    module = nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, groups=4, padding=1),
        nn.BatchNorm2d(8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )
    found = fvcore_cost(module, in_channels=4, resolution=11)
    assert found.flops == 8 * 1 * 9 * 36 + 8 * 36 + 8 * 5
    assert found.params == 8 * 1 * 9 + 8 * 5
    assert found.params_all == found.params + 8 + 2 * 8 + 5
    assert not module.training


# single layers, counted by loops -----------------------------------------------------------------------------------------


def multiply_adds(in_channels: int, out_channels: int, kernel: int, side: int, stride: int, groups: int) -> int:
    """One count for every multiplication of a convolution with padding kernel // 2, padded zeros included."""
    total, padding = 0, kernel // 2
    for row, column in itertools.product(range(-padding, side + padding - kernel + 1, stride), repeat=2):
        assert row + kernel <= side + padding and column + kernel <= side + padding
        for _ in range(out_channels):
            for _ in range(in_channels // groups):
                total += kernel * kernel
    return total


@pytest.mark.parametrize(
    ("kernel", "stride", "side", "groups"), [(1, 1, 9, 1), (3, 2, 9, 1), (5, 2, 10, 4), (3, 3, 11, 4)]
)
def test_one_convolution(kernel: int, stride: int, side: int, groups: int) -> None:
    positions = out_size(side, stride) ** 2
    found = conv_cost(8 // groups, 12, kernel, positions, norm=True, bias=True)
    weights = nn.Conv2d(8, 12, kernel, groups=groups).weight.numel()
    assert found == (multiply_adds(8, 12, kernel, side, stride, groups), weights, weights + 12 + 2 * 12)
    assert conv_cost(8 // groups, 12, kernel, positions).params_all == weights


def test_out_size_counts_the_positions_of_a_convolution() -> None:
    for kernel, stride, side in itertools.product((1, 3, 5, 7), (1, 2, 3), range(1, 14)):
        positions = len(range(-(kernel // 2), side + kernel // 2 - kernel + 1, stride))
        assert out_size(side, stride) == positions


def test_one_pool() -> None:
    assert pool_cost(7, 9 * 11) == (sum(1 for _ in itertools.product(range(7), range(9), range(11))), 0, 0)


@pytest.mark.parametrize(("pointwise", "squeeze", "stride"), list(itertools.product((True, False), (0, 5), (1, 2))))
def test_one_inverted_residual(pointwise: bool, squeeze: int, stride: int) -> None:
    """In 6 channels at 9x9, out 10, kernel 5; every term written down from the table of the block."""
    mid, side = 14 if pointwise else 6, 9
    out = len(range(0, side, stride)) ** 2
    found = ir_cost(
        6, mid, squeeze, 10, kernel=5, pointwise=pointwise, squeeze=squeeze > 0, positions_in=81, positions_out=out
    )
    expand = 6 * mid if pointwise else 0
    flops = expand * 81 + 25 * mid * out + mid * 10 * out
    params = expand + 25 * mid + mid * 10
    norms = 2 * (mid * pointwise + mid + 10)
    if squeeze:
        flops += mid * out + 2 * mid * squeeze
        params += 2 * mid * squeeze
        norms += squeeze + mid  # the two biases
    assert found == (flops, params, params + norms)


def test_one_skip() -> None:
    assert skip_cost(8, 8, stride=1, positions_out=49) == (0, 0, 0)
    assert skip_cost(8, 12, stride=1, positions_out=49) == (8 * 12 * 49, 96, 96 + 24)
    assert skip_cost(8, 8, stride=2, positions_out=49) == (8 * 8 * 49, 64, 64 + 16)
    over_pairs = skip_cost(np.array([[8], [12]]), np.array([[8, 12]]), stride=1, positions_out=3)
    assert over_pairs.flops.tolist() == [[0, 8 * 12 * 3], [12 * 8 * 3, 0]]


def test_a_whole_network_by_hand() -> None:
    """Stem 3 -> 4 at 10x10, kernel 3, stride 2; pool head 4 -> 6 -> 5; 7 classes."""
    network = Architecture(
        name="hand",
        resolution=10,
        blocks=(
            Block(kind="conv", out_channels=4, kernel=3, stride=2),
            Block(kind="pool_head", mid_channels=6, out_channels=5),
        ),
    )
    flops = 3 * 4 * 9 * 25 + 4 * 6 * 25 + 6 * 25 + 6 * 5 + 5 + 5 * 7
    params = 3 * 4 * 9 + 4 * 6 + 6 * 5 + 5 * 7
    assert cost(network, num_classes=7) == (flops, params, params + 2 * 4 + 2 * 6 + 7)
    without_head = replace(network, blocks=network.blocks[:1])
    assert cost(without_head, num_classes=7).flops == 3 * 4 * 9 * 25 + 4 * 25 + 4 * 7


def test_the_formulas_take_tensors_and_stay_linear_in_soft_widths() -> None:
    """Weighted sums of one layer's widths give the weighted cost, the others fixed (no rounding hides in a formula)."""
    weights, widths = torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64), torch.tensor([8, 12, 20], dtype=torch.float64)

    def total(out_channels: object) -> Cost:
        return ir_cost(
            6, 14, 5, out_channels, kernel=3, pointwise=True, squeeze=True, positions_in=81, positions_out=25
        )

    soft = total((weights * widths).sum())
    for entry, concrete in zip(soft, zip(*(total(int(w)) for w in widths), strict=True), strict=True):
        expected = sum(float(g) * value for g, value in zip(weights, concrete, strict=True))
        torch.testing.assert_close(float(entry), expected, rtol=1e-12, atol=0)


def test_sums_and_multiples() -> None:
    assert Cost(1, 2, 3).plus(Cost(10, 20, 30), Cost(100, 200, 300)) == (111, 222, 333)
    assert Cost(1, 2, 3).times(4) == (4, 8, 12)


def test_block_costs_sum_to_the_network() -> None:
    """A loop over the blocks with the sides of their maps."""
    space = SPACES["cifar"]()
    network = space.decode([1] * len(space))
    side, flops = network.resolution, 0
    for channels, block in network.layers():
        after = 1 if block.kind == "pool_head" else -(-side // block.stride)
        flops += block_cost(block, channels, side**2, after**2).flops
        side = after
    assert cost(network, num_classes=10).flops == flops + network.out_channels * (1 + 10)


# published networks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXACT)
def test_published_networks_cost_what_was_published(name: str) -> None:
    net = EXACT[name]
    found = cost(published_architecture(name, net.family, net.resolution, net.lines))
    assert (found.flops, found.params) == (net.flops, net.params)


@pytest.mark.parametrize(("name", "params"), [("FBNetV3_D", 10_306_272), ("FBNetV3_G", 16_623_888)])
def test_true_parameters_are_those_of_timm(name: str, params: int) -> None:
    net = EXACT[name]
    assert cost(published_architecture(name, net.family, net.resolution, net.lines)).params_all == params


def test_another_resolution_is_counted_without_a_new_architecture() -> None:
    small, large = EXACT["FBNetV2_F1"], EXACT["FBNetV2_F2"]  # one network at 128 and 160
    network = published_architecture("F1", small.family, small.resolution, small.lines)
    assert cost(network, resolution=large.resolution).flops == large.flops
    assert cost(network, resolution=large.resolution).params == large.params


# pools --------------------------------------------------------------------------------------------------------------------


def assert_pool_equals_singles(space: object, rows: np.ndarray, num_classes: int, in_channels: int) -> None:
    pool = SpaceTables(space, num_classes=num_classes, in_channels=in_channels).cost(rows)
    single = [cost(space.decode(row), num_classes=num_classes, in_channels=in_channels) for row in rows]
    for entry, expected in zip(pool, np.array(single).T, strict=True):
        assert entry.shape == (len(rows),) and entry.dtype == np.int64
        assert (entry == expected).all()


def test_a_pool_of_20000_rows_costs_what_each_row_costs() -> None:
    space = SPACES["digits"]()
    assert_pool_equals_singles(space, uniform_rows(space, 20_000, np.random.default_rng(5)), 10, 1)


@pytest.mark.parametrize("name", [name for name in SPACES if name != "digits"])
def test_pools_of_large_spaces_cost_what_each_row_costs(name: str) -> None:
    space = SPACES[name]()
    assert_pool_equals_singles(space, uniform_rows(space, 500, np.random.default_rng(6)), 1000, 3)


@pytest.mark.parametrize("name", TINY)
def test_pools_of_tiny_spaces_cost_what_each_row_costs(name: str) -> None:
    """Every row, canonical or not."""
    space = TINY[name]()
    rows = all_rows(space)
    assert_pool_equals_singles(space, rows[:: max(1, len(rows) // 1500)], 13, 2)


def test_pool_cost_refuses_bad_rows() -> None:
    space = SPACES["digits"]()
    with pytest.raises(ValueError, match=r"is not in 0\.\."):
        SpaceTables(space, num_classes=10, in_channels=1).cost(np.full((2, len(space)), 9))
