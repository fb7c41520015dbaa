# B batch, C channels, H/W feature map
import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from search_spaces.architecture import Architecture, Block
from search_spaces.blocks import InvertedResidual, PoolHead, build_block
from search_spaces.errors import UserError
from search_spaces.network import build
from search_spaces.sampling import uniform_rows
from search_spaces.spaces import SPACES

TOLERANCE = {"rtol": 1e-10, "atol": 1e-10}  # float64

NETWORK = Architecture(
    name="small",
    resolution=16,
    blocks=(
        Block(kind="conv", out_channels=16, kernel=3, stride=2, activation="hswish"),
        Block(kind="ir", out_channels=16, kernel=3, mid_channels=32, activation="hswish"),
        Block(kind="ir", out_channels=24, kernel=5, mid_channels=48, stride=2, squeeze_channels=8),
        Block(kind="ir", out_channels=24, kernel=3, mid_channels=64),
        Block(kind="pool_head", out_channels=40, mid_channels=72, activation="hswish"),
    ),
)


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every number random, statistics of the batch norms too; float64, eval mode."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                positive = name.endswith("running_var")
                values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * 0.5
                tensor.copy_(values.abs() + 0.3 if positive else values)
    return module


def images(channels: int, height: int = 9, width: int = 11) -> Tensor:
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


# reference: the equations of a block over its state dict ----------------------------------------------------------------


def act(x: Tensor, name: str) -> Tensor:
    return x.clamp(min=0) if name == "relu" else x * (x + 3).clamp(0, 6) / 6


def norm(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    mean, var, gamma, beta = (state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
    return ((x.movedim(1, -1) - mean) / (var + 1e-5).sqrt() * gamma + beta).movedim(-1, 1)


def depthwise_by_loops(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """`(B, C, H, W)` with `(C, 1, k, k)`; one sum for every output pixel."""
    k, pad = weight.shape[-1], weight.shape[-1] // 2
    padded = functional.pad(x, (pad, pad, pad, pad))
    rows, columns = (range(0, size + 2 * pad - k + 1, stride) for size in x.shape[-2:])
    out = x.new_empty(x.shape[0], x.shape[1], len(rows), len(columns))
    for (i, top), (j, left) in itertools.product(enumerate(rows), enumerate(columns)):
        out[:, :, i, j] = (padded[:, :, top : top + k, left : left + k] * weight[:, 0]).sum(dim=(2, 3))
    return out


def pointwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    out = torch.einsum("bchw,oc->bohw", x, weight[:, :, 0, 0])
    return out if bias is None else out + bias[:, None, None]


def reference_ir(block: Block, state: dict[str, Tensor], x: Tensor) -> Tensor:
    inputs = x
    if block.pointwise:
        x = act(norm(pointwise_conv(x, state["pw.0.weight"]), state, "pw.1"), block.activation)
    x = act(norm(depthwise_by_loops(x, state["dw.0.weight"], block.stride), state, "dw.1"), block.activation)
    if block.squeeze_channels:
        gate = x.mean(dim=(2, 3), keepdim=True)
        gate = act(pointwise_conv(gate, state["se.fc1.weight"], state["se.fc1.bias"]), block.activation)
        gate = pointwise_conv(gate, state["se.fc2.weight"], state["se.fc2.bias"])
        x = x * (gate + 3).clamp(0, 6) / 6
    x = norm(pointwise_conv(x, state["pwl.0.weight"]), state, "pwl.1")
    return x + inputs if block.stride == 1 and inputs.shape[1] == block.out_channels else x


@pytest.mark.parametrize(
    ("kernel", "stride", "out", "squeeze", "pointwise", "activation"),
    [
        (3, 1, 6, 0, True, "relu"),
        (5, 1, 6, 4, True, "hswish"),
        (3, 2, 6, 3, True, "relu"),
        (5, 2, 10, 0, True, "hswish"),
        (3, 1, 10, 4, False, "hswish"),
        (5, 1, 6, 0, False, "relu"),
        (3, 3, 6, 2, False, "relu"),
    ],
)
def test_inverted_residual_computes_its_equations(
    kernel: int, stride: int, out: int, squeeze: int, pointwise: bool, activation: str
) -> None:
    block = Block(
        kind="ir",
        out_channels=out,
        kernel=kernel,
        stride=stride,
        mid_channels=14 if pointwise else 6,
        squeeze_channels=squeeze,
        activation=activation,  # type: ignore[arg-type]
        pointwise=pointwise,
    )
    module, x = randomised(build_block(block, 6)), images(6)
    with torch.no_grad():
        found = module(x)
    assert found.shape == (2, out, math.ceil(9 / stride), math.ceil(11 / stride))
    torch.testing.assert_close(found, reference_ir(block, module.state_dict(), x), **TOLERANCE)


def test_pool_head_computes_its_equations() -> None:
    block = Block(kind="pool_head", out_channels=7, mid_channels=10, activation="hswish")
    module, x = randomised(build_block(block, 6)), images(6)
    state = module.state_dict()
    assert "pwl.bias" not in state
    hidden = act(norm(pointwise_conv(x, state["pw.0.weight"]), state, "pw.1"), "hswish").mean(dim=(2, 3), keepdim=True)
    torch.testing.assert_close(module(x), act(pointwise_conv(hidden, state["pwl.weight"]), "hswish"), **TOLERANCE)


@pytest.mark.parametrize(
    ("kind", "kernel", "stride", "out"), [("conv", 3, 2, 8), ("conv", 5, 1, 6), ("skip", 1, 2, 6), ("skip", 1, 1, 8)]
)
def test_convolutions_and_projecting_skips_compute_their_equations(
    kind: str, kernel: int, stride: int, out: int
) -> None:
    activation = "hswish" if kind == "conv" else "relu"
    block = Block(kind=kind, out_channels=out, kernel=kernel, stride=stride, activation=activation)  # type: ignore[arg-type]
    module, x = randomised(build_block(block, 6)), images(6)
    state = module.state_dict()
    assert "0.bias" not in state
    dense = functional.conv2d(x, state["0.weight"], stride=stride, padding=kernel // 2)
    torch.testing.assert_close(module(x), act(norm(dense, state, "1"), activation), **TOLERANCE)


def test_skip_that_keeps_the_shape_is_the_identity() -> None:
    module, x = build_block(Block(kind="skip", out_channels=6), 6), images(6)
    assert module(x) is x and not list(module.parameters())


@pytest.mark.parametrize("side", [(9, 11), (16, 16), (7, 5), (1, 1)])
@pytest.mark.parametrize("name", ["digits", "cifar"])
def test_networks_take_any_image_and_sizes_round_up(name: str, side: tuple[int, int]) -> None:
    space = SPACES[name]()
    for row in uniform_rows(space, 3, np.random.default_rng(3)):
        architecture = space.decode(row)
        network = build(architecture, 5, in_channels=2).eval()
        sizes, x = side, torch.zeros(3, 2, *side)
        for block, module in zip(architecture.blocks, network.blocks, strict=True):
            x = module(x)
            sizes = tuple(-(-size // block.stride) for size in sizes) if block.kind != "pool_head" else (1, 1)
            assert x.shape == (3, block.out_channels, *sizes)
        assert network(torch.zeros(3, 2, *side)).shape == (3, 5)


def test_logits_are_the_classifier_of_the_pooled_features() -> None:
    """Without a pool head the last map is averaged."""
    architecture = Architecture(name="n", resolution=9, blocks=NETWORK.blocks[:2])
    network = randomised(build(architecture, 7, in_channels=1))
    x = images(1)
    features = network.blocks[1](network.blocks[0](x)).mean(dim=(2, 3))
    expected = features @ network.classifier.weight.T + network.classifier.bias
    torch.testing.assert_close(network(x), expected, **TOLERANCE)


def test_no_convolution_but_squeeze_has_a_bias_and_norms_use_the_usual_constants() -> None:
    for name, module in build(NETWORK, 5).named_modules():
        if isinstance(module, nn.Conv2d):
            assert (module.bias is not None) == (".se." in name), name
        if isinstance(module, nn.BatchNorm2d):
            assert module.eps == 1e-5 and module.momentum == 0.1


# initial weights --------------------------------------------------------------------------------------------------------


def test_initial_weights_are_kaiming_fan_out() -> None:
    """Standard deviation sqrt(2 / (out_channels k k)) and mean 0 within 4 standard errors."""
    checked = 0
    for seed in range(3):
        for module in build(NETWORK, 1000, seed=seed).modules():
            if isinstance(module, nn.Conv2d):
                weight = module.weight.detach().double()
                n = weight.numel()
                std = math.sqrt(2 / (module.out_channels * module.kernel_size[0] ** 2))
                assert abs(float(weight.square().mean().sqrt()) / std - 1) < 4 / math.sqrt(2 * n)
                assert abs(float(weight.mean())) < 4 * std / math.sqrt(n)
                checked += 1
                if module.bias is not None:
                    assert not module.bias.any()
            elif isinstance(module, nn.Linear):
                n = module.weight.numel()
                assert abs(float(module.weight.detach().std()) / 0.01 - 1) < 4 / math.sqrt(2 * n)
                assert not module.bias.any()
    assert checked == 3 * 14


def test_only_the_last_norm_of_a_residual_branch_starts_at_zero() -> None:
    network = build(NETWORK, 5)
    zero = {
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.BatchNorm2d) and not module.weight.any()
    }
    assert zero == {"blocks.1.pwl.1", "blocks.3.pwl.1"}
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert not module.bias.any() and (module.weight == module.weight[0]).all()
            assert module.weight[0].item() in (0.0, 1.0)
    x = torch.randn(2, 16, 9, 11, generator=torch.Generator().manual_seed(0))
    assert torch.equal(network.blocks[1](x), x)  # a fresh residual block is the identity


def test_seeds_decide_the_weights_and_the_global_state_is_left_alone() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = build(NETWORK, 5, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again, other = build(NETWORK, 5, seed=3).state_dict(), build(NETWORK, 5, seed=4).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    drawn = [key for key, value in first.items() if value.dim() > 1]
    assert len(drawn) == 15 and not any(torch.equal(first[key], other[key]) for key in drawn)


# dropout and stochastic depth -------------------------------------------------------------------------------------------


def test_stochastic_depth_grows_linearly_and_dropout_stands_before_the_classifier() -> None:
    network = build(NETWORK, 5, dropout=0.17, stochastic_depth=0.2)
    assert network.dropout.p == 0.17
    found = {i: block.drop.p for i, block in enumerate(network.blocks) if isinstance(block, InvertedResidual)}
    assert found == pytest.approx({1: 0.05, 2: 0.1, 3: 0.15}, rel=1e-12)  # the last of five blocks would have 0.2
    assert isinstance(network.blocks[4], PoolHead)


def test_dropout_drops_features_of_the_classifier_in_training_only() -> None:
    network = build(NETWORK, 5, dropout=0.5).eval()
    x = torch.randn(2, 3, 9, 11, generator=torch.Generator().manual_seed(0))
    assert torch.equal(network(x), network(x))
    seen: list[Tensor] = []
    network.classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(x)
    network.dropout.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network(x)
    plain, dropped = seen
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], 2 * plain[kept], rtol=1e-6, atol=0)
    share = float(kept[plain != 0].double().mean())
    assert abs(share - 0.5) < 4 * 0.5 / math.sqrt(int((plain != 0).sum()))


def test_stochastic_depth_drops_whole_samples_of_residual_branches_in_training_only() -> None:
    block = Block(kind="ir", out_channels=6, kernel=3, mid_channels=12)
    module = randomised(build_block(block, 6, stochastic_depth=0.3))
    x = torch.randn(400, 6, 5, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    branch = module(x) - x
    module.drop.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dropped = module(x) - x
    kept = dropped.abs().sum(dim=(1, 2, 3)) > 1e-9
    torch.testing.assert_close(dropped[kept], branch[kept] / 0.7, **TOLERANCE)
    assert abs(float(kept.double().mean()) - 0.7) < 4 * math.sqrt(0.3 * 0.7 / 400)


def test_a_strided_branch_is_never_dropped() -> None:
    module = randomised(build_block(Block(kind="ir", out_channels=6, kernel=3, mid_channels=12, stride=2), 6, 0.9))
    x = images(6)
    expected = module(x)
    module.drop.train()
    assert torch.equal(module(x), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_classes": 0}, "num_classes must be in 1..1000000, got 0"),
        ({"in_channels": 0}, "in_channels must be in 1..1024, got 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"dropout": float("nan")}, r"dropout must be in \[0, 1\), got nan"),
        ({"stochastic_depth": -0.1}, r"stochastic_depth must be in \[0, 1\), got -0.1"),
    ],
)
def test_build_refuses_numbers_out_of_range(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(NETWORK, **({"num_classes": 5} | change))


def test_a_built_network_learns() -> None:
    """Gradients reach every parameter once the zero gammas have moved."""
    network = build(NETWORK, 3, in_channels=1, seed=1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    x = torch.randn(8, 1, 9, 11, generator=torch.Generator().manual_seed(5))
    labels, losses = torch.arange(8) % 3, []
    for _ in range(12):
        loss = functional.cross_entropy(network(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(bool(p.grad.any()) for p in network.parameters() if p.grad is not None)
    assert all(p.grad is not None for p in network.parameters())
