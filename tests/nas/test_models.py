"""`create_model`: published networks with fresh weights or those of a file, and every kind of wrong input in one line."""

import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nas.models import create_model
from search_spaces.cost import cost
from search_spaces.counting import fvcore_cost
from search_spaces.errors import UserError
from search_spaces.network import Network, build
from search_spaces.zoo import load
from search_spaces.zoo.weights import to_timm

NAME = "fbnetv3_b"


def paddings(network: Network) -> tuple[int, int]:
    """Paddings of the two depthwise convolutions of FBNetV3-B that were published with 1 and 0, usually 2 and 1."""
    found = [network.get_submodule(f"blocks.{index}.dw.0").padding for index in (12, 23)]
    return found[0][0], found[1][0]  # type: ignore[index, return-value]


def as_published(network: nn.Module) -> dict[str, Tensor]:
    """mobile-vision's classifier is a convolution; names are of no weight but for their last part."""
    state = {f"module.backbone.{name}": tensor for name, tensor in network.state_dict().items()}
    state["module.backbone.classifier.weight"] = state["module.backbone.classifier.weight"][:, :, None, None]
    return state


@pytest.fixture(scope="module")
def source() -> Network:
    return create_model(NAME, num_classes=12, paddings="normal", seed=5)


@pytest.fixture(scope="module")
def files(source: Network, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    paths = {layout: folder / f"{layout}.pth" for layout in ("published", "timm")}
    torch.save({"state_dict": {"x": torch.zeros(1)}, "model_ema": as_published(source), "epoch": 3}, paths["published"])
    torch.save(to_timm(source), paths["timm"])
    return paths


def test_fresh_networks_are_as_published_and_seeded() -> None:
    state = torch.random.get_rng_state()
    first, again, other = (create_model("FBNetV3-B", num_classes=12, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first.training
    assert paddings(first) == (1, 0)
    weights = [network.get_parameter("blocks.12.dw.0.weight") for network in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert fvcore_cost(create_model(NAME), in_channels=3, resolution=248) == cost(load(NAME))


def test_numbers_reach_the_network() -> None:
    network = create_model(NAME, num_classes=5, in_channels=1, dropout=0.3, stochastic_depth=0.2)
    assert network.eval()(torch.zeros(2, 1, 64, 64)).shape == (2, 5)
    assert network.dropout.p == 0.3
    assert network.get_submodule("blocks.29.drop").p == pytest.approx(0.2 * 29 / 30)


@pytest.mark.parametrize(("layout", "found"), [("published", (1, 0)), ("timm", (2, 1))])
def test_the_names_in_the_file_decide_the_paddings(
    layout: str, found: tuple[int, int], files: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    network = create_model(NAME, num_classes=12, pretrained=files[layout])
    assert paddings(network) == found
    assert paddings(create_model(NAME, num_classes=12, pretrained=str(files[layout]), paddings="normal")) == (2, 1)
    assert paddings(create_model(NAME, num_classes=12, pretrained=files[layout], paddings="published")) == (1, 0)
    assert caplog.records == []


def test_weights_of_the_file_arrive(source: Network, files: dict[str, Path]) -> None:
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = source.eval()(images)
        for layout in ("published", "timm"):
            network = create_model(NAME, num_classes=12, pretrained=files[layout], paddings="normal").eval()
            torch.testing.assert_close(network(images), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_another_number_of_classes_is_said_in_one_line(
    files: dict[str, Path], source: Network, caplog: pytest.LogCaptureFixture
) -> None:
    network = create_model(NAME, num_classes=3, pretrained=files["published"], seed=9)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == f"{files['published']} is of 12 classes, not 3: the classifier is left fresh"
    fresh = create_model(NAME, num_classes=3, seed=9)
    assert torch.equal(network.classifier.weight, fresh.classifier.weight)
    name = "blocks.30.pwl.weight"
    assert torch.equal(network.get_parameter(name), source.get_parameter(name))


class Touch:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_code_in_a_file_is_not_run(writer: str, tmp_path: Path, source: Network) -> None:
    path, trace = tmp_path / "evil.pth", tmp_path / "trace"
    content = {"state_dict": as_published(source), "more": Touch(trace)}
    if writer == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    refused("evil.pth", pretrained=path)
    assert not trace.exists()


def refused(*words: str, name: str = NAME, **arguments: Any) -> None:
    with pytest.raises(UserError) as caught:
        create_model(name, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_wrong_arguments() -> None:
    refused("unknown network 'fbnetv3_z'; did you mean 'fbnetv3_", name="fbnetv3_z")
    refused("unknown network 'resnet50'", name="resnet50")
    refused("unknown paddings 'norml'; did you mean 'normal'?", paddings="norml")
    refused("num_classes must be", "got 0", num_classes=0)
    refused("in_channels must be", "got 0", in_channels=0)
    refused("dropout must be in [0, 1), got 1.0", dropout=1.0)
    refused("stochastic_depth must be in [0, 1), got -0.5", stochastic_depth=-0.5)


def test_wrong_files(tmp_path: Path, files: dict[str, Path]) -> None:
    refused("cannot read", "none.pth", pretrained=tmp_path / "none.pth")
    refused("cannot read", pretrained=tmp_path)
    cut = tmp_path / "cut.pth"
    cut.write_bytes(files["timm"].read_bytes()[:20_000])
    refused("cut.pth is damaged", pretrained=cut)
    (tmp_path / "text.pth").write_text("not weights")
    refused("text.pth is damaged", pretrained=tmp_path / "text.pth")
    torch.save(torch.zeros(2), tmp_path / "tensor.pth")
    refused("it holds a Tensor", pretrained=tmp_path / "tensor.pth")
    nans = build(load(NAME), 12).state_dict()
    nans["blocks.7.dw.0.weight"][3] = float("nan")
    torch.save(nans, tmp_path / "nan.pth")
    refused("nan.pth", "'blocks.7.dw.0.weight' holds numbers that are not finite", pretrained=tmp_path / "nan.pth")
    refused(
        "timm.pth is of another network: 'conv_stem.weight' with shape (16, 3, 3, 3)",
        "'blocks.0.0.weight' with shape (24, 3, 3, 3)", name="fbnetv3_d", pretrained=files["timm"],
    )  # fmt: skip
    refused(
        "(16, 3, 3, 3)", "(16, 1, 3, 3)", "images of 3 channels (in_channels=3)",
        in_channels=1, pretrained=files["published"],
    )  # fmt: skip
