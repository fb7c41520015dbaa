"""Switching filters off and removing them: the same outputs, and those of a network put together by hand."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from nas.lenet import LeNet5, build_lenet5
from nas.trees.filters.channels import activation_maps, filter_group, find_convolution, masked, narrowed
from search_spaces.architecture import Architecture, Block
from search_spaces.errors import UserError
from search_spaces.network import build

ARCHITECTURE = Architecture(
    name="small",
    resolution=11,
    blocks=(
        Block(kind="conv", out_channels=8, kernel=3, stride=2, activation="hswish"),
        Block(kind="ir", out_channels=8, kernel=3, mid_channels=24, squeeze_channels=8, activation="hswish"),
        Block(kind="ir", out_channels=12, kernel=5, mid_channels=16, stride=2),
        Block(kind="skip", out_channels=10),
        Block(kind="pool_head", out_channels=20, mid_channels=14, activation="hswish"),
    ),
)


def random_network(seed: int = 0) -> nn.Module:
    """Every tensor random, running statistics too: fresh ones would hide leaks."""
    network = build(ARCHITECTURE, 5, 2, seed=seed).double()
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            drawn = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
            tensor.copy_(drawn + 0.5 if name.endswith(("running_var", "1.weight")) else drawn - 0.4)
    return network.eval()


def images(count: int = 3, channels: int = 2, side: int = 11) -> Tensor:
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


@pytest.mark.parametrize(
    ("layer", "kept"),
    [("blocks.1.pw.0", [0, 3, 4, 11, 23]), ("blocks.1.dw.0", [2, 20]), ("blocks.2.pw.0", [15]), ("blocks.2.pwl.0", [1, 5, 7]),
     ("blocks.3.0", [0, 9]), ("blocks.4.pw.0", [3, 4, 5, 13]), ("blocks.4.pwl", [0, 1, 19])],
)  # fmt: skip
def test_removed_is_switched_off(layer: str, kept: list[int]) -> None:
    network = random_network()
    before = copy.deepcopy(network.state_dict())
    small = narrowed(network, layer, kept)
    together, group = masked(network, layer)
    mask = torch.zeros(group.filters, dtype=torch.float64)
    mask[kept] = 1
    with torch.no_grad():
        expected = small(images())
        assert torch.allclose(together(images(), mask), expected, rtol=1e-10, atol=1e-10)
        assert torch.allclose(together(images(), torch.ones_like(mask)), network(images()), rtol=1e-12, atol=1e-12)
        assert not torch.allclose(network(images()), expected, rtol=1e-3, atol=1e-3), "the filters do something"
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in network.parameters())


def test_a_narrower_block_is_the_network_built_with_sliced_weights() -> None:
    network, kept = random_network(), [1, 2, 7, 20]
    blocks = list(ARCHITECTURE.blocks)
    blocks[1] = Block(kind="ir", out_channels=8, kernel=3, mid_channels=4, squeeze_channels=8, activation="hswish")
    other = build(Architecture(name="by hand", resolution=11, blocks=tuple(blocks)), 5, 2).double().eval()
    state = network.state_dict()
    for name, tensor in other.state_dict().items():
        value = state[name]
        for axis, size in enumerate(tensor.shape):
            if value.shape[axis] != size:
                value = value.index_select(axis, torch.tensor(kept))
        tensor.copy_(value)
    with torch.no_grad():
        assert torch.allclose(
            narrowed(network, "blocks.1.dw.0", kept)(images()), other(images()), rtol=1e-10, atol=1e-10
        )
    group = filter_group(network, "blocks.1.dw.0")
    assert (group.layer, group.filters) == ("blocks.1.pw.0", 24)
    assert group.carriers == ("blocks.1.pw.1", "blocks.1.dw.0", "blocks.1.dw.1", "blocks.1.se")
    assert group.mixers == (("blocks.1.pwl.0", 1),)


@pytest.mark.parametrize("layer", ["convnet.c1", "convnet.c3", "convnet.c5"])
def test_lenet_without_filters_is_lenet_with_their_readers_weights_at_zero(layer: str) -> None:
    network = build_lenet5(LeNet5((4, 5, 6, 7)), 3, 1, seed=0).double().eval()
    kept, x = [0, 2, 3], images(2, 1, 32)
    by_hand = copy.deepcopy(network)
    reader = {"convnet.c1": "convnet.c3", "convnet.c3": "convnet.c5", "convnet.c5": "fc.f6"}[layer]
    gone = [i for i in range(find_convolution(network, layer).out_channels) if i not in kept]
    with torch.no_grad():
        by_hand.get_parameter(f"{reader}.weight")[:, gone] = 0
        assert torch.allclose(narrowed(network, layer, kept)(x), by_hand(x), rtol=1e-10, atol=1e-10)


class Flattened(nn.Module):
    """Maps of 3 x 3 that are flattened by one of the usual ways; a norm behind the activation."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.conv, self.norm = nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6)
        self.last = nn.Linear(6 if way == "mean" else 54, 4)
        nn.init.uniform_(self.norm.bias, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(self.norm(self.conv(x).relu()), 3)
        if self.way == "view":
            return self.last(x.view(x.size(0), -1))
        if self.way == "shape":
            return self.last(x.reshape([x.shape[0], -1]))
        if self.way == "mean":
            return self.last(x.mean([2, 3]))
        return self.last(torch.flatten(x, 1) if self.way == "function" else x.flatten(1))


@pytest.mark.parametrize("way", ["view", "shape", "mean", "function", "method"])
def test_flattened_positions_go_with_their_filter(way: str) -> None:
    torch.manual_seed(0)
    network = Flattened(way).double().eval()
    together, _ = masked(network, "conv")
    mask = torch.tensor([1, 0, 0, 1, 1, 0], dtype=torch.float64)
    with torch.no_grad():
        small = narrowed(network, "conv", [0, 3, 4])
        assert torch.allclose(small(images()), together(images(), mask), rtol=1e-10, atol=1e-10)
    assert small.get_submodule("last").in_features == (3 if way == "mean" else 27)


@pytest.mark.parametrize(
    ("name", "layer"),
    [("resnet18", "layer2.0.conv1"), ("mobilenet_v3_small", "features.4.block.0.0"), ("vgg11", "features.18")],
)
def test_torchvisions_networks_are_followed(name: str, layer: str) -> None:
    torch.manual_seed(0)
    network = models.get_model(name, num_classes=4).double().eval()
    filters = find_convolution(network, layer).out_channels
    kept = list(range(0, filters, 3))
    together, _ = masked(network, layer)
    mask = torch.zeros(filters, dtype=torch.float64)
    mask[kept] = 1
    with torch.no_grad():
        x = images(1, 3, 32)
        assert torch.allclose(narrowed(network, layer, kept)(x), together(x, mask), rtol=1e-9, atol=1e-12)


def test_maps_are_taken_behind_norm_and_activation_and_before_the_pool() -> None:
    network = random_network()
    seen: dict[str, Tensor] = {}
    behind = ("blocks.0.2", "blocks.1.dw.2", "blocks.1.se.activation", "blocks.2.pwl.1", "blocks.4.pw.2")
    for name in behind:
        network.get_submodule(name).register_forward_hook(lambda m, i, out, name=name: seen.update({name: out}))
    layers = ["blocks.0.0", "blocks.1.dw.0", "blocks.1.se.fc1", "blocks.2.pwl.0", "blocks.4.pw.0"]
    with torch.no_grad():
        network(images())
        expected = [seen[name] for name in behind]
        taken = activation_maps(network, layers)(images())
    assert all(torch.equal(a, b) for a, b in zip(taken, expected, strict=True))
    with torch.no_grad():
        (maps,) = activation_maps(Flattened("view").double().eval(), ["conv"])(images())
    assert maps.shape == (3, 6, 9, 9)
    assert bool((maps >= 0).all()), "behind relu; the norm follows it"


def test_what_cannot_be_removed_or_found_is_said() -> None:
    network = random_network()
    cases = {
        "blocks.0.0": "filters of blocks.0.0 cannot be removed: their channels reach the operation add",
        "blocks.1.pwl.0": "cannot be removed: their channels reach the operation add",
        "blocks.1.pv.0": "no layer 'blocks.1.pv.0'; a convolution is needed; did you mean 'blocks.1.pw.0'",
        "blocks.1.se.fc1": "cannot be removed: they are inside the squeeze-and-excite blocks.1.se",
        "classifier": "layer 'classifier' is a Linear; a convolution is needed",
    }
    for layer, message in cases.items():
        with pytest.raises(UserError, match=message):
            filter_group(network, layer)
    with pytest.raises(UserError, match=r"kept filters of blocks.4.pwl must be ascending numbers in 0..19"):
        narrowed(network, "blocks.4.pwl", [3, 3])
    with pytest.raises(UserError, match="has no convolution"):
        filter_group(nn.Linear(2, 2), "x")
    grouped = nn.Sequential(nn.Conv2d(4, 4, 1, groups=2), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(UserError, match="0 works in groups"):
        filter_group(grouped, "0")
    with pytest.raises(UserError, match="channels reach the network's output"):
        filter_group(nn.Sequential(nn.Conv2d(3, 4, 1)), "0")

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) if x.sum() > 0 else x

    with pytest.raises(UserError, match=r"torch\.fx cannot follow Branching"):
        filter_group(Branching(), "conv")


def test_numpy_numbers_are_numbers() -> None:
    assert (
        narrowed(random_network(), "blocks.4.pwl", np.array([1, 2]).tolist())
        .get_parameter("blocks.4.pwl.weight")
        .shape[0]
        == 2
    )
