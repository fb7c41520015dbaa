"""Published weights: timm's own modules against ours, both ways; mobile-vision's layout by its documented names; refusals."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from search_spaces.architecture import Architecture, Block
from search_spaces.errors import UserError
from search_spaces.network import Network, build
from search_spaces.zoo import load
from search_spaces.zoo.weights import is_timm, read_published, to_timm

RESOLUTIONS = {"fbnetv3_b": (224, 248), "fbnetv3_d": (160, 152), "fbnetv3_g": (128, 152)}
STATE = dict[str, Tensor]


GAIN = 1.2  # of random weights; more lets rounding errors grow with depth, less makes all images look alike


def randomised(module: nn.Module, seed: int) -> nn.Module:
    """Random weights, norms, statistics and biases, far from 0 and 1, but such that rounding errors do not grow. Eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if tensor.dim() > 1:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * (GAIN / tensor[0].numel()) ** 0.5)
        elif name.endswith("running_var"):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        elif tensor.dim() == 1:
            centre = 1.0 if name.endswith("weight") else 0.0
            tensor.copy_(centre + 0.3 * torch.randn(tensor.shape, generator=generator))
        else:  # number of batches
            tensor.fill_(7)
    return module.eval()


def zoo_network(name: str, num_classes: int = 1000, paddings: str = "published", seed: int = 0) -> Network:
    architecture = load(name)
    if paddings == "normal":
        blocks = tuple(replace(block, padding=None) for block in architecture.blocks)
        architecture = replace(architecture, blocks=blocks)
    return build(architecture, num_classes, seed=seed).eval()


def small(bias: bool = True, num_classes: int = 7) -> Network:
    """Every part of a FBNetV3 in a few tensors: stem, with and without expansion, squeeze-and-excite, pool head."""
    blocks = (
        Block(kind="conv", kernel=3, stride=2, out_channels=8, activation="hswish", bias=bias),
        Block(kind="ir", kernel=3, mid_channels=8, out_channels=8, pointwise=False, activation="hswish"),
        Block(kind="ir", kernel=5, stride=2, mid_channels=24, out_channels=16, squeeze_channels=8, activation="hswish"),
        Block(kind="pool_head", mid_channels=32, out_channels=40, activation="hswish"),
    )
    return build(Architecture(name="small", resolution=32, blocks=blocks), num_classes)


@torch.no_grad()
def logits(module: nn.Module, resolution: int, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(resolution)
    coarse = torch.randn(batch, 3, 4, 4, generator=generator)  # noise alone would average out in the pools
    images = 2 * nn.functional.interpolate(coarse, size=(resolution, resolution), mode="bicubic")
    output: Tensor = module(images + torch.randn(images.shape, generator=generator))
    return output


def assert_same_outputs(ours: nn.Module, theirs: nn.Module, resolution: int) -> None:
    """Within 1e-5 of the largest logit."""
    expected = logits(theirs, resolution)
    largest = expected.abs().max().item()
    assert 0.1 < largest < 1e4
    assert (
        expected.std(0).mean() > 1e-2 * largest
    )  # images do differ: the outputs are not those of the last biases alone
    assert (logits(ours, resolution) - expected).abs().max().item() <= 1e-5 * largest


@pytest.fixture(scope="module")
def theirs() -> Callable[[str], nn.Module]:
    """timm's own modules with random weights."""
    timm = pytest.importorskip("timm")
    made: dict[str, nn.Module] = {}

    def make(name: str) -> nn.Module:
        if name not in made:
            made[name] = randomised(timm.create_model(name, pretrained=False), seed=3)
        return made[name]

    return make


@pytest.mark.parametrize("name", sorted(RESOLUTIONS))
def test_timms_weights_give_timms_outputs(name: str, theirs: Callable[[str], nn.Module]) -> None:
    network = zoo_network(name, paddings="normal")
    assert read_published(network, theirs(name).state_dict(), where="timm") is None
    for resolution in RESOLUTIONS[name]:
        assert_same_outputs(network, theirs(name), resolution)


@pytest.mark.parametrize("name", sorted(RESOLUTIONS))
def test_our_weights_in_timm_give_our_outputs(name: str) -> None:
    timm = pytest.importorskip("timm")
    network = randomised(zoo_network(name, num_classes=11, paddings="normal"), seed=5)
    assert isinstance(network, Network)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    module = timm.create_model(name, pretrained=False, num_classes=11).eval()
    module.load_state_dict(to_timm(network), strict=True)
    for resolution in RESOLUTIONS[name]:
        assert_same_outputs(module, network, resolution)
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())


def test_there_and_back_is_the_identity(theirs: Callable[[str], nn.Module]) -> None:
    network = zoo_network("fbnetv3_d")
    state = theirs("fbnetv3_d").state_dict()
    read_published(network, state, where="timm")
    back = to_timm(network)
    assert list(back) == list(state)
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


def test_published_paddings_tell_from_timms(theirs: Callable[[str], nn.Module]) -> None:
    """The comparison of outputs would notice the other paddings, and `to_timm` refuses them."""
    network = zoo_network("fbnetv3_b", paddings="published")
    read_published(network, theirs("fbnetv3_b").state_dict(), where="timm")
    with pytest.raises(AssertionError):
        assert_same_outputs(network, theirs("fbnetv3_b"), 224)
    with pytest.raises(UserError, match=r"timm pads a kernel of 5 by 2, blocks\.12\.dw\.0 by 1.*paddings='normal'"):
        to_timm(network)


def test_order_of_timms_names_does_not_matter(theirs: Callable[[str], nn.Module]) -> None:
    """Some file formats sort tensors by name."""
    state = theirs("fbnetv3_d").state_dict()
    first, second = zoo_network("fbnetv3_d"), zoo_network("fbnetv3_d", seed=1)
    read_published(first, state, where="timm")
    read_published(second, dict(sorted(state.items())), where="timm")
    assert all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in first.state_dict().items())


def mobile_vision_state(num_classes: int = 1000) -> STATE:
    """A FBNetV3-B with mobile-vision's documented names, order and shapes, from its published table; random."""
    generator = torch.Generator().manual_seed(11)
    state: STATE = {}

    def tensor(name: str, *shape: int) -> None:
        state[f"backbone.stages.{name}"] = 0.1 * torch.randn(*shape, generator=generator)

    def norm(name: str, channels: int) -> None:
        for role in ("weight", "bias", "running_mean"):
            tensor(f"{name}.{role}", channels)
        state[f"backbone.stages.{name}.running_var"] = 0.5 + torch.rand(channels, generator=generator)
        state[f"backbone.stages.{name}.num_batches_tracked"] = torch.tensor(5)

    tensor("xif0_0.conv.weight", 16, 3, 3, 3)
    tensor("xif0_0.conv.bias", 16)
    norm("xif0_0.bn", 16)
    lines = [  # stage, expansion, kernel, width, repeats, squeeze-and-excite; FBNetV3-B
        (1, 1, 3, 16, 2, False), (2, 4, 5, 24, 1, False), (2, 2, 5, 24, 3, False), (3, 5, 5, 40, 1, True),
        (3, 3, 5, 40, 4, True), (4, 5, 5, 72, 1, False), (4, 3, 3, 72, 4, False), (4, 5, 3, 120, 1, True),
        (4, 3, 5, 120, 5, True), (5, 6, 3, 184, 1, True), (5, 4, 5, 184, 5, True), (5, 6, 5, 224, 1, True),
    ]  # fmt: skip
    entering, places = 16, dict.fromkeys(range(7), 0)
    for stage, expansion, kernel, width, repeats, squeezed in lines:
        for _ in range(repeats):
            name, middle = f"xif{stage}_{places[stage]}", entering * expansion
            places[stage] += 1
            if expansion > 1:
                tensor(f"{name}.pw.conv.weight", middle, entering, 1, 1)
                norm(f"{name}.pw.bn", middle)
            tensor(f"{name}.dw.conv.weight", middle, 1, kernel, kernel)
            norm(f"{name}.dw.bn", middle)
            if squeezed:
                squeeze = max(8, (entering // 4 + 4) // 8 * 8)
                if squeeze < 0.95 * (entering // 4):
                    squeeze += 8
                tensor(f"{name}.se.se.0.conv.weight", squeeze, middle, 1, 1)
                tensor(f"{name}.se.se.0.conv.bias", squeeze)
                tensor(f"{name}.se.se.1.weight", middle, squeeze, 1, 1)
                tensor(f"{name}.se.se.1.bias", middle)
            tensor(f"{name}.pwl.conv.weight", width, middle, 1, 1)
            norm(f"{name}.pwl.bn", width)
            entering = width
    tensor("xif6_0.pw.conv.weight", 1344, 224, 1, 1)
    norm("xif6_0.pw.bn", 1344)
    tensor("xif6_0.pwl.conv.weight", 1984, 1344, 1, 1)
    state["head.conv.weight"] = 0.1 * torch.randn(num_classes, 1984, 1, 1, generator=generator)
    state["head.conv.bias"] = torch.randn(num_classes, generator=generator)
    return state


@pytest.fixture(scope="module")
def published() -> STATE:
    return mobile_vision_state()


# A name in every part of the network, and where it must land in ours; written from the tables of names.
LANDS = {
    "xif0_0.conv.weight": "0.0.weight", "xif0_0.conv.bias": "0.0.bias", "xif0_0.bn.weight": "0.1.weight",
    "xif0_0.bn.bias": "0.1.bias", "xif0_0.bn.running_mean": "0.1.running_mean", "xif0_0.bn.running_var": "0.1.running_var",
    "xif0_0.bn.num_batches_tracked": "0.1.num_batches_tracked", "xif1_1.dw.conv.weight": "2.dw.0.weight",
    "xif2_0.pw.bn.running_mean": "3.pw.1.running_mean", "xif3_4.se.se.0.conv.weight": "11.se.fc1.weight",
    "xif3_4.se.se.1.bias": "11.se.fc2.bias", "xif4_5.dw.conv.weight": "17.dw.0.weight",
    "xif5_6.pwl.bn.bias": "29.pwl.1.bias", "xif6_0.pw.conv.weight": "30.pw.0.weight", "xif6_0.pwl.conv.weight": "30.pwl.weight",
}  # fmt: skip


def assert_landed(network: Network, state: STATE) -> None:
    own = network.state_dict()
    for name, ours in LANDS.items():
        assert torch.equal(own[f"blocks.{ours}"], state[f"backbone.stages.{name}"]), name
    assert torch.equal(own["classifier.weight"], state["head.conv.weight"][:, :, 0, 0])
    assert torch.equal(own["classifier.bias"], state["head.conv.bias"])


WRAPPINGS: dict[str, Callable[[STATE], dict[str, Any]]] = {
    "bare": lambda state: dict(state),
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "prefix": lambda state: {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}},
    "twice": lambda state: {f"module.module.{name}": tensor for name, tensor in state.items()},
    "ema": lambda state: {"state_dict": {"other": torch.zeros(1)}, "model_ema": state},
    "no ema": lambda state: {"state_dict": state, "model_ema": None},
    "ema with prefix": lambda state: {"model_ema": {f"module.{name}": tensor for name, tensor in state.items()}},
    "no counters": lambda state: {
        name: tensor for name, tensor in state.items() if "num_batches_tracked" not in name or "xif0_0" in name
    },
}


@pytest.mark.parametrize("wrapping", sorted(WRAPPINGS))
def test_mobile_visions_layout_in_every_wrapping(wrapping: str, published: STATE) -> None:
    network = zoo_network("fbnetv3_b")
    wrapped = WRAPPINGS[wrapping](published)
    assert not is_timm(wrapped, where="b.pth")
    assert read_published(network, wrapped, where="b.pth") is None
    assert_landed(network, published)
    if wrapping != "no counters":
        assert network.state_dict()["blocks.20.dw.1.num_batches_tracked"] == 5


def test_all_tensors_are_loaded_and_the_file_is_left_alone(published: STATE) -> None:
    network, copy = zoo_network("fbnetv3_b"), {name: tensor.clone() for name, tensor in published.items()}
    read_published(network, published, where="b.pth")
    assert list(published) == list(copy)
    assert all(torch.equal(tensor, published[name]) for name, tensor in copy.items())
    ours, theirs = (sum(t.double().sum().item() for t in s.values()) for s in (network.state_dict(), published))
    assert ours == pytest.approx(theirs, abs=1e-6)
    for tensor in network.state_dict().values():
        tensor.zero_()  # a copy was loaded, not the file's own memory
    assert all(torch.equal(tensor, published[name]) for name, tensor in copy.items())


def test_a_stem_bias_moves_into_the_norm_of_a_network_without() -> None:
    biased, plain = small(bias=True), small(bias=False)
    randomised(biased, seed=1)
    read_published(plain, biased.state_dict(), where="a")
    assert "blocks.0.0.bias" not in plain.state_dict()
    for side in (33, 48):
        torch.testing.assert_close(logits(plain.eval(), side), logits(biased, side), rtol=1e-5, atol=1e-5)


def test_a_missing_stem_bias_is_zero() -> None:
    plain, biased = small(bias=False), small(bias=True)
    randomised(plain, seed=1)
    biased.state_dict()["blocks.0.0.bias"].fill_(3.0)
    read_published(biased, plain.state_dict(), where="a")
    assert torch.equal(biased.state_dict()["blocks.0.0.bias"], torch.zeros(8))
    for side in (33, 48):
        torch.testing.assert_close(logits(biased.eval(), side), logits(plain, side), rtol=1e-5, atol=1e-5)


def test_half_precision_is_widened() -> None:
    source, network = small(), small()
    randomised(source, seed=2)
    state = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in source.state_dict().items()
    }
    read_published(network, state, where="a")
    for name, tensor in network.state_dict().items():
        assert tensor.dtype == source.state_dict()[name].dtype
        assert torch.equal(tensor, state[name].to(tensor.dtype))


def test_another_number_of_classes_leaves_the_classifier_fresh(published: STATE) -> None:
    network = zoo_network("fbnetv3_b", num_classes=10)
    head = network.classifier.weight.clone(), network.classifier.bias.clone()
    note = read_published(network, published, where="b.pth")
    assert note == "b.pth is of 1000 classes, not 10: the classifier is left fresh"
    assert torch.equal(network.classifier.weight, head[0])
    assert torch.equal(network.classifier.bias, head[1])
    own = network.state_dict()
    for name, ours in LANDS.items():
        assert torch.equal(own[f"blocks.{ours}"], published[f"backbone.stages.{name}"]), name


def refused(network: Network, state: Any, *words: str) -> None:
    """One line with all ``words``, and the network as it was."""
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(UserError) as caught:
        read_published(network, state, where="b.pth")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("b.pth")
    for word in words:
        assert word in message, message
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("num_classes", [1000, 10])
def test_a_wrong_network_names_tensor_and_shapes(num_classes: int, published: STATE) -> None:
    refused(
        zoo_network("fbnetv3_d", num_classes), published,
        "'backbone.stages.xif0_0.conv.weight' with shape (16, 3, 3, 3)",
        "'blocks.0.0.weight' with shape (24, 3, 3, 3)",
    )  # fmt: skip
    refused(
        zoo_network("fbnetv3_c", num_classes), published,
        "'backbone.stages.xif2_0.pw.conv.weight' with shape (64, 16, 1, 1)",
        "'blocks.3.pw.0.weight' with shape (80, 16, 1, 1)",
    )  # fmt: skip
    refused(zoo_network("fbnet_c", num_classes), published, "is where", "belongs")


def test_every_other_published_network_is_refused(published: STATE) -> None:
    from search_spaces.zoo import names

    for name in set(names()) - {"fbnetv3_a", "fbnetv3_b"}:
        refused(zoo_network(name), published, "with shape")


def test_wrong_channels_of_the_image_say_so() -> None:
    network = build(load("fbnetv3_a"), 10, in_channels=1)
    other = zoo_network("fbnetv3_a", num_classes=10)
    refused(network, other.state_dict(), "(16, 3, 3, 3)", "(16, 1, 3, 3)", "images of 3 channels (in_channels=3)")


def test_cut_and_lengthened_files_are_refused() -> None:
    network, state = small(), small().state_dict()
    names = [name for name in state if "num_batches" not in name]
    # Any single tensor gone but the stem's bias, which is optional: never silently shifted into the next place.
    for gone in set(names) - {"blocks.0.0.bias"}:
        refused(network, {name: tensor for name, tensor in state.items() if name != gone}, "of another network")
    for end in (6, 20, len(names) - 1):
        kept = {name: state[name] for name in names[:end]}
        refused(
            network, kept, f"ends after {end} tensors", f"{names[end]!r} with shape {tuple(state[names[end]].shape)}"
        )
    refused(network, {**state, "more.weight": torch.zeros(3)}, "1 more tensors", "'more.weight' with shape (3,)")
    refused(network, {name: tensor for name, tensor in state.items() if "num_batches" in name}, "'blocks.0.0.weight'")


def test_sorted_names_of_a_foreign_layout_are_refused() -> None:
    """Within a norm all shapes agree: only the roles tell bias from weight."""
    network, state = small(), small().state_dict()
    swapped = {}
    for name, tensor in state.items():
        role = {"weight": "bias", "bias": "weight"}.get(name.rpartition(".")[2])
        swapped[name if ".1." not in name or role is None else f"{name.rpartition('.')[0]}.{role}"] = tensor
    refused(network, swapped, "'blocks.0.1.bias' with shape (8,) is where 'blocks.0.1.weight' with shape (8,)")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "name", ["blocks.0.0.bias", "blocks.2.se.fc1.weight", "blocks.2.pwl.1.running_mean", "classifier.bias"]
)
def test_numbers_that_are_not_finite_are_refused(name: str, value: float) -> None:
    state = small().state_dict()
    state[name] = state[name].clone()
    state[name].view(-1)[-1] = value
    refused(small(), state, repr(name), "not finite")


def test_what_is_no_weight_is_refused() -> None:
    state = small().state_dict()
    refused(small(), {}, "expected a mapping of tensors")
    refused(small(), {"model_ema": "x", "state_dict": state}, "model_ema: expected a mapping of tensors, got str")
    refused(small(), {"schema": 1, "state": state}, "'schema' is of type int")
    refused(small(), {**state, 3: torch.zeros(1)}, "3 is of type Tensor")
    refused(small(), {**state, "classifier.bias": torch.zeros(7, dtype=torch.int64)}, "'classifier.bias'", "int64")
    refused(small(), {**state, "classifier.bias": torch.zeros(7, device="meta")}, "'classifier.bias'", "dense")
    refused(small(), {**state, "classifier.bias": torch.zeros(7).to_sparse()}, "'classifier.bias'", "dense")
    refused(small(), {**state, "blocks.0.1.running_var": -torch.ones(8)}, "'blocks.0.1.running_var'", "negative")
    refused(small(), {**state, "blocks.0.1.num_batches_tracked": torch.zeros(2).long()}, "one whole number")
    refused(
        small(), {**state, "classifier.weight": torch.zeros(7, 41)}, "(7, 41)", "'classifier.weight' with shape (7, 40)"
    )
    refused(small(), {**state, "classifier.bias": torch.zeros(6)}, "with shape (6,) is where", "with shape (7,)")


def test_timms_names_are_for_fbnetv3_only() -> None:
    for name in ("fbnet_a", "fbnet_c", "dmasking_f1"):
        with pytest.raises(UserError, match="timm's names are for FBNetV3 networks"):
            to_timm(zoo_network(name, num_classes=2))


def test_timms_names_of_a_first_block_with_stride_and_squeeze() -> None:
    """The first block opens stage 0 whatever its stride; without a first 1x1 convolution names move up by one."""
    stem, first, *others = (
        Block(kind="conv", kernel=3, stride=2, out_channels=8),
        Block(kind="ir", kernel=3, stride=2, mid_channels=8, out_channels=16, squeeze_channels=8, pointwise=False),
        Block(kind="ir", kernel=3, stride=2, mid_channels=24, out_channels=16),
        Block(kind="pool_head", mid_channels=32, out_channels=40),
    )
    network = build(Architecture(name="other", resolution=32, blocks=(stem, first, *others)), 3)
    modules = list(dict.fromkeys(name.rpartition(".")[0] for name in to_timm(network)))
    assert modules == [
        "conv_stem", "bn1", "blocks.0.0.conv_dw", "blocks.0.0.bn1", "blocks.0.0.se.conv_reduce", "blocks.0.0.se.conv_expand",
        "blocks.0.0.conv_pw", "blocks.0.0.bn2", "blocks.1.0.conv_pw", "blocks.1.0.bn1", "blocks.1.0.conv_dw", "blocks.1.0.bn2",
        "blocks.1.0.conv_pwl", "blocks.1.0.bn3", "blocks.2.0.conv", "blocks.2.0.bn1", "conv_head", "classifier",
    ]  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "module.", "module.module."])
def test_timms_names_are_seen_in_every_wrapping(prefix: str) -> None:
    state = {f"{prefix}{name}": tensor for name, tensor in to_timm(small()).items()}
    assert is_timm(state, where="a")
    assert is_timm({"state_dict": state, "model_ema": None}, where="a")
    assert not is_timm({"state_dict": state, "model_ema": small().state_dict()}, where="a")


def test_numbers_too_large_for_the_networks_precision_are_refused() -> None:
    state = {name: tensor.double() for name, tensor in small().state_dict().items() if "num_batches" not in name}
    read_published(small(), state, where="a")
    state["blocks.1.dw.0.weight"][0] = 1e300
    refused(small(), state, "'blocks.1.dw.0.weight' holds numbers that are not finite")
