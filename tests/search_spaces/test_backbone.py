"""Backbones: maps equal the network's own, weights carry over, and torchvision's detectors train and infer on them."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign

from search_spaces.architecture import Architecture, Block
from search_spaces.backbone import Backbone, build_backbone
from search_spaces.errors import UserError
from search_spaces.network import build
from search_spaces.scaling import low_resolution
from search_spaces.zoo import load, names

# Stride after each block: 2, 2, 4, 4, 8, 16, 16, 32, 32; then the head.
SMALL = Architecture(
    name="small",
    resolution=64,
    blocks=(
        Block(kind="conv", out_channels=8, kernel=3, stride=2),
        Block(kind="skip", out_channels=8),
        Block(kind="ir", out_channels=16, mid_channels=24, kernel=3, stride=2),
        Block(kind="ir", out_channels=16, mid_channels=48, kernel=5, squeeze_channels=8, activation="hswish"),
        Block(kind="ir", out_channels=24, mid_channels=48, kernel=5, stride=2),
        Block(kind="skip", out_channels=32, stride=2),
        Block(kind="ir", out_channels=40, mid_channels=96, kernel=3),
        Block(kind="ir", out_channels=48, mid_channels=120, kernel=3, stride=2),
        Block(kind="ir", out_channels=56, mid_channels=144, kernel=3),
        Block(kind="pool_head", out_channels=100, mid_channels=336),
    ),
)
LAST = {"stride4": 3, "stride8": 4, "stride16": 6, "stride32": 8}


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def trained(architecture: Architecture, in_channels: int = 3) -> nn.Module:
    """A network whose weights and statistics are nothing that an initialisation gives."""
    network = build(architecture, 5, in_channels, seed=3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.dim() == 1:
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + (0.5 if "mean" not in name else 0))
    return network


def test_channels_and_sides_by_hand() -> None:
    backbone = build_backbone(SMALL)
    assert backbone.out_channels == {"stride4": 16, "stride8": 24, "stride16": 40, "stride32": 56}
    assert backbone.channels == (16, 24, 40, 56)
    maps = backbone(image(2, 3, 70, 101))
    assert {name: tuple(x.shape) for name, x in maps.items()} == {
        "stride4": (2, 16, 18, 26), "stride8": (2, 24, 9, 13), "stride16": (2, 40, 5, 7), "stride32": (2, 56, 3, 4),
    }  # fmt: skip
    assert list(maps) == list(backbone.out_channels)


@pytest.mark.parametrize("training", [False, True])
def test_maps_are_the_networks_own(training: bool) -> None:
    network = trained(SMALL, 4).train(training)
    backbone = Backbone.from_network(SMALL, network)
    assert backbone.training is training
    x = image(2, 4, 64, 96)
    maps = backbone(x)
    for index, block in enumerate(network.blocks):
        x = block(x)
        for name, last in LAST.items():
            if last == index:
                assert torch.equal(maps.pop(name), x)
    assert not maps


def test_weights_are_copies() -> None:
    network = trained(SMALL)
    backbone = Backbone.from_network(SMALL, network)
    kept = backbone.blocks[0][0].weight.clone()
    with torch.no_grad():
        network.blocks[0][0].weight.zero_()
    assert torch.equal(backbone.blocks[0][0].weight, kept)
    assert kept.abs().sum() > 0
    assert {p.dtype for p in Backbone.from_network(SMALL, network.double()).parameters()} == {torch.float64}


def test_head_and_classifier_are_dropped() -> None:
    assert len(build_backbone(SMALL).blocks) == 9
    first_fbnet = build_backbone(load("fbnet_a"))
    assert first_fbnet.out_channels["stride32"] == 352  # not the 1504 of the last 1x1 convolution
    assert not any(isinstance(module, nn.Linear) for module in first_fbnet.modules())


@pytest.mark.parametrize("name", names())
def test_every_published_network_has_four_levels_and_its_cifar_variant_three(name: str) -> None:
    with torch.device("meta"):
        assert list(Backbone(load(name)).out_channels) == ["stride4", "stride8", "stride16", "stride32"]
        assert list(Backbone(low_resolution(load(name))).out_channels) == ["stride4", "stride8", "stride16"]


def test_seed_decides_the_weights_and_leaves_the_global_state() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (build_backbone(SMALL, 1, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["blocks.0.0.weight"], other["blocks.0.0.weight"])


def test_halves_of_a_split_make_the_whole() -> None:
    backbone = build_backbone(SMALL).eval()
    maps = backbone(image(1, 3, 64, 64))
    for stride, first, second in ((16, 40, 56), (8, 24, 56)):
        trunk, rest = backbone.split(stride)
        assert (trunk.out_channels, rest.out_channels) == (first, second)
        middle = trunk(image(1, 3, 64, 64))
        assert torch.equal(middle, maps[f"stride{stride}"])
        assert torch.equal(rest(middle), maps["stride32"])
        assert len(list(trunk.parameters())) + len(list(rest.parameters())) == len(list(backbone.parameters()))


def targets() -> list[dict[str, Tensor]]:
    boxes = torch.tensor([[8.0, 8.0, 60.0, 50.0], [30.0, 20.0, 90.0, 90.0]])
    return [{"boxes": boxes, "labels": torch.tensor([1, 2])}, {"boxes": boxes[:1], "labels": torch.tensor([2])}]


def step_and_infer(model: FasterRCNN, watched: nn.Module) -> None:
    """One step of training moves the first and last weights of ``watched``; inference gives boxes inside the image."""
    parameters = [p for p in watched.parameters() if p.dim() == 4]
    before = [p.detach().clone() for p in (parameters[0], parameters[-1])]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with torch.random.fork_rng(devices=[]):  # the detector's sampling of proposals knows no generator
        torch.manual_seed(0)
        losses = model.train()([image(3, 96, 100), image(3, 96, 96, seed=1)], targets())
    assert set(losses) == {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    total = torch.stack(list(losses.values())).sum()
    assert torch.isfinite(total)
    total.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    for old, new in zip(before, (parameters[0], parameters[-1]), strict=True):
        assert not torch.equal(old, new)
    with torch.no_grad():
        (found,) = model.eval()([image(3, 96, 100, seed=2)])
    assert set(found) == {"boxes", "labels", "scores"}
    assert len(found["boxes"]) > 0
    assert (found["boxes"] >= 0).all()
    assert (found["boxes"][:, 2] <= 100).all()


@pytest.mark.parametrize("name", ["small", "fbnetv3_a"])
def test_faster_rcnn_over_a_pyramid(name: str) -> None:
    backbone = build_backbone(SMALL if name == "small" else load(name))
    pyramid = nn.Sequential(backbone, FeaturePyramidNetwork(list(backbone.channels), 16))
    pyramid.out_channels = 16  # type: ignore[assignment]  # where FasterRCNN looks for it
    levels = list(backbone.out_channels)
    model = FasterRCNN(
        pyramid,
        num_classes=3,
        rpn_anchor_generator=AnchorGenerator(((16,), (32,), (64,), (96,)), ((0.5, 1.0, 2.0),) * 4),
        box_roi_pool=MultiScaleRoIAlign(levels, output_size=3, sampling_ratio=2),
        min_size=96, max_size=128, rpn_post_nms_top_n_train=50, rpn_post_nms_top_n_test=20, box_score_thresh=0.0,
    )  # fmt: skip
    step_and_infer(model, backbone)


def test_faster_rcnn_with_a_c4_head() -> None:
    """Proposals from the map at stride 16, the stage at stride 32 as box head (thesis 4.4)."""
    backbone = build_backbone(load("fbnetv2_f1"))
    trunk, stage = backbone.split(16)
    model = FasterRCNN(
        trunk,
        rpn_anchor_generator=AnchorGenerator(((16, 32, 64),), ((0.5, 1.0, 2.0),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], output_size=6, sampling_ratio=2),
        box_head=nn.Sequential(stage, nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        box_predictor=FastRCNNPredictor(stage.out_channels, 3),
        min_size=96, max_size=128, rpn_post_nms_top_n_train=50, rpn_post_nms_top_n_test=20, box_score_thresh=0.0,
    )  # fmt: skip
    step_and_infer(model, backbone)


def test_wrong_input_is_one_line() -> None:
    with pytest.raises(UserError, match="in_channels must be >= 1, got 0"):
        build_backbone(SMALL, 0)
    with pytest.raises(UserError, match="small has no map at a stride of 4, 8, 16, 32 pixels"):
        build_backbone(replace(SMALL, blocks=SMALL.blocks[:2]))
    backbone = build_backbone(SMALL)
    with pytest.raises(UserError, match=r"stride must be that of a level \(stride4, .*\), got 2"):
        backbone.split(2)
    with pytest.raises(UserError, match="stride 32 is the last level"):
        backbone.split(32)


def test_weights_of_another_network_name_the_tensor() -> None:
    wider = (*SMALL.blocks[:3], replace(SMALL.blocks[3], mid_channels=56), *SMALL.blocks[4:])
    with pytest.raises(UserError, match=r"blocks.3.pw.0.weight of small is \(56, 16, 1, 1\), the network has \(48, 16"):
        Backbone.from_network(replace(SMALL, blocks=wider), build(SMALL, 5))
    plain = (*SMALL.blocks[:3], replace(SMALL.blocks[3], squeeze_channels=0), *SMALL.blocks[4:])
    with pytest.raises(UserError, match=r"blocks.3.se.fc1.weight of small .* has no such tensor"):
        Backbone.from_network(SMALL, build(replace(SMALL, blocks=plain), 5))
    with pytest.raises(UserError, match="small has 9 blocks, the network 10"):
        Backbone.from_network(replace(SMALL, blocks=SMALL.blocks[:9]), build(SMALL, 5))
