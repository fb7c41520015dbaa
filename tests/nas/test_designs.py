"""torchvision's classifiers as designs: built as they are, with dropout and stochastic depth where they belong."""

import copy

import pytest
import torch
from torchvision import models

from nas.designs import TorchvisionModel, build_design, design_cost, design_from_json, design_to_json
from nas.loading import load_design
from search_spaces import zoo
from search_spaces.errors import UserError


def test_names_and_json() -> None:
    design = load_design("torchvision:resnet18")
    assert design == TorchvisionModel("resnet18") == design_from_json(design_to_json(design), "here")
    ours = zoo.load("fbnetv3_a_low32")
    assert load_design("fbnetv3_a_low32") == ours == design_from_json(design_to_json(ours), "here")
    with pytest.raises(UserError, match=r"torchvision has no classifier 'resnet51'.*did you mean 'resnet50'"):
        load_design("torchvision:resnet51")
    with pytest.raises(UserError, match="expected an architecture or torchvision:NAME, got 'resnet50'"):
        design_from_json("resnet50", "architecture")


def test_weights_are_torchvisions_and_seeded() -> None:
    before = torch.get_rng_state()
    first, again = (build_design(TorchvisionModel("resnet18"), 7, dropout=0.5, seed=3) for _ in range(2))
    other = build_design(TorchvisionModel("resnet18"), 7, seed=4)
    assert torch.equal(before, torch.get_rng_state()), "the global random state is left alone"
    assert list(first.state_dict()) == list(models.resnet18().state_dict())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.get_parameter("fc.weight"), other.get_parameter("fc.weight"))


def test_channels_are_checked() -> None:
    with pytest.raises(UserError, match="torchvision:resnet18 takes images of 3 channels, the data has 1"):
        build_design(TorchvisionModel("resnet18"), 10, in_channels=1)


def test_dropout_before_the_classifier() -> None:
    """The share of zeros that enter the last layer is p; the copy that a moving average makes drops as well."""
    torch.manual_seed(0)
    network = copy.deepcopy(build_design(TorchvisionModel("resnet18"), 10, dropout=0.25)).train()
    entered: list[torch.Tensor] = []
    network.get_submodule("fc").register_forward_pre_hook(lambda module, inputs: entered.append(inputs[0]))
    network.get_submodule("avgpool").register_forward_hook(lambda module, inputs, output: torch.ones_like(output))
    network(torch.rand(16, 3, 32, 32))
    share = float((entered[0] == 0).double().mean())
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / entered[0].numel()) ** 0.5  # 4 standard errors
    network.eval()(torch.rand(2, 3, 32, 32))
    assert bool((entered[1] == 1).all())
    own = build_design(TorchvisionModel("mobilenet_v2"), 10, dropout=0.25)
    assert [m.p for m in own.modules() if isinstance(m, torch.nn.Dropout)] == [0.25]


def test_stochastic_depth_rises_linearly() -> None:
    """Branches of ResNet-18's 8 blocks are dropped with probability p i / 7, and scaled so that their mean stays."""
    torch.manual_seed(0)
    network = build_design(TorchvisionModel("resnet18"), 10, stochastic_depth=0.7).train()
    blocks = [network.get_submodule(f"layer{stage}.{index}.bn2") for stage in (1, 2, 3, 4) for index in (0, 1)]
    ones = torch.ones(4000, 1, 1, 1)
    for index, norm in enumerate(blocks):
        (hook,) = norm._forward_hooks.values()
        branch = hook(norm, (ones,), ones)
        p = 0.7 * index / 7
        assert abs(float((branch == 0).double().mean()) - p) <= 4 * (p * (1 - p) / 4000) ** 0.5
        kept = branch[branch != 0]
        assert torch.allclose(kept, torch.full_like(kept, 1 / (1 - p)))
    efficientnet = build_design(TorchvisionModel("efficientnet_b0"), 10, stochastic_depth=0.3)
    probabilities = [m.p for m in efficientnet.modules() if type(m).__name__ == "StochasticDepth"]
    assert probabilities[0] == 0 and probabilities[-1] == pytest.approx(0.3) and probabilities == sorted(probabilities)


def test_cost_is_what_fvcore_counts() -> None:
    """ResNet-18 at 224 pixels: 1.814 GFLOPs of convolutions and the classifier, 512 x 49 of the pool."""
    exact = design_cost(TorchvisionModel("resnet18"), num_classes=1000)
    assert exact.flops == 1_813_561_344 + 512_000 + 512 * 49
    assert exact.params_all == 11_689_512
    with pytest.raises(UserError, match="torchvision:alexnet does not take images of 8 pixels"):
        design_cost(TorchvisionModel("alexnet"), num_classes=10, resolution=8)
