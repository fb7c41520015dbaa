"""Every format against PyTorch, int8 against a count by hand, model cards against what is known, and bad input."""

import hashlib
import importlib.util
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import nas
from nas import model_card
from nas.cli.main import run
from nas.designs import TorchvisionModel, build_design
from nas.exporting import ExportSource, export, export_all
from nas.exporting import export as export_module_function
from nas.exporting.comparison import batch_sizes, measure
from nas.exporting.formats import FORMATS, Content
from nas.exporting.images import calibration_batches, comparison_images, normalisation
from nas.exporting.source import load_source
from nas.loading import ModelFacts, TrainedModel, load_model, load_space, save_model
from recipes.datasets import load_dataset
from search_spaces.architecture import Architecture, Block
from search_spaces.cost import cost
from search_spaces.errors import UserError
from search_spaces.network import build

SPACE = str(Path(__file__).with_name("tiny_space.yaml"))
CLASSES = tuple("0123456789")
HAS_EXECUTORCH = importlib.util.find_spec("executorch") is not None
assert export_module_function is nas.export


def randomised(network: nn.Module, images: Tensor) -> nn.Module:
    """Fresh residual branches are zero, fresh logits tiny, and with made-up statistics of norms maps shrink from layer to
    layer; after this every layer and the image show in the logits.
    """
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.2, generator=generator)
        elif isinstance(module, nn.Conv2d) and not module.weight.any():
            module.weight.data.normal_(0, 0.1, generator=generator)
        elif isinstance(module, nn.Linear):
            module.weight.data.normal_(0, 0.3, generator=generator)
    logits_of(network.train(), images)
    return network.eval()


def tiny() -> Architecture:
    """h-swish, squeeze-and-excite, a residual, a smaller padding, a pool head: what the published networks are made of."""
    blocks = (
        Block(kind="conv", out_channels=8, kernel=3, stride=2, activation="hswish"),
        Block(kind="ir", out_channels=8, kernel=3, mid_channels=16, squeeze_channels=8, activation="hswish"),
        Block(kind="ir", out_channels=16, kernel=5, stride=2, mid_channels=24, padding=1),
        Block(kind="pool_head", out_channels=24, mid_channels=32, activation="hswish"),
    )
    return Architecture(name="tiny", resolution=12, blocks=blocks)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder."""
    folder = tmp_path_factory.mktemp("run") / "train"
    nas.train(tiny(), "digits", out=folder, epochs=2, seed=3, command=["train", "tiny|`x`", "--epochs", "2"])
    return folder


@pytest.fixture(scope="module")
def files(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """ONNX, int8 and torch.export of the run, by format."""
    folder = tmp_path_factory.mktemp("files")
    formats = ["onnx", "onnx-int8", "pt2"]
    results = export_all(trained, formats, out=folder, calibration_images=200, command=["export", "train"])
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        name + ending
        for name in ("model.onnx", "model-int8.onnx", "model.pt2")
        for ending in ("", ".card.json", ".card.md")
    )
    return dict(zip(formats, results, strict=True))


def logits_of(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = network(images)
    return logits


def run_onnx(path: Path, images: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def run_pt2(path: Path, images: Tensor) -> Tensor:
    with path.open("rb") as file:
        return logits_of(torch.export.load(file).module(), images)


@pytest.mark.parametrize(("format", "run_file"), [("onnx", run_onnx), ("pt2", run_pt2)])
def test_files_give_pytorch_s_logits_at_any_batch_size(
    files: dict[str, Any], trained: Path, format: str, run_file: Callable[[Path, Tensor], Tensor]
) -> None:
    network, side = load_model(trained).network, load_model(trained).facts.resolution
    for batch in (1, 2, 5):
        images = torch.randn(batch, 1, side, side, generator=torch.Generator().manual_seed(batch))
        expected = logits_of(network, images)
        assert float((run_file(files[format].path, images) - expected).abs().max()) < 1e-5 * float(expected.abs().max())
    result = files[format]
    assert result.batch is None and result.comparison.batches == (1, 3, 8) and result.comparison.same_class == 12
    assert result.images == "12 test images of digits" and result.comparison.largest_logit > 0.1
    assert result.max_difference <= 1e-5 * result.comparison.largest_logit
    assert result.size_bytes == result.path.stat().st_size


@pytest.mark.parametrize(("format", "run_file"), [("onnx", run_onnx), ("pt2", run_pt2), ("onnx-int8", run_onnx)])
def test_a_fixed_batch_takes_only_that(
    trained: Path, tmp_path: Path, format: str, run_file: Callable[[Path, Tensor], Tensor]
) -> None:
    result = export(trained, format=format, batch=5, out=tmp_path, data="digits")
    assert result.batch == 5 and result.comparison.batches == (5, 5, 5)
    side = load_model(trained).facts.resolution
    assert run_file(result.path, torch.zeros(5, 1, side, side)).shape == (5, 10)
    with pytest.raises(Exception, match=r"(?i)shape|dimension|size|guard"):
        run_file(result.path, torch.zeros(4, 1, side, side))
    assert json.loads(result.card.read_text())["input"]["shape"] == [5, 1, side, side]


def test_int8_is_int8_and_its_accuracy_is_counted(files: dict[str, Any], trained: Path) -> None:
    result = files["onnx-int8"]
    model = onnx.load(result.path)
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            image, weight = (producers[name] for name in node.input[:2])
            assert image.op_type == weight.op_type == "DequantizeLinear"
            assert kinds[weight.input[0]] == onnx.TensorProto.INT8 and kinds[image.input[2]] == onnx.TensorProto.UINT8
            scales = next(tensor for tensor in model.graph.initializer if tensor.name == weight.input[1])
            assert len(scales.dims) == 1, "one scale a channel"
    assert result.size_bytes < 0.8 * files["onnx"].size_bytes

    loaded, digits = load_model(trained), load_dataset("digits")
    right, right_int8 = [], []
    for images, labels in digits.test.batches(7, resolution=loaded.facts.resolution):
        for image, label in zip(images.contiguous(), labels, strict=True):
            right.append(int(logits_of(loaded.network, image[None]).argmax()) == int(label))
    for images, labels in digits.test.batches(360, resolution=loaded.facts.resolution):
        right_int8 = (run_onnx(result.path, images.contiguous()).argmax(1) == labels).tolist()
    got = result.accuracies
    assert got.total == 360 and got.float32 == pytest.approx(100 * np.mean(right))
    assert got.exported == pytest.approx(100 * np.mean(right_int8))
    assert got.float32 > 30 and abs(got.drop) < 10
    differences = np.array(right, dtype=float) - np.array(right_int8, dtype=float)
    assert got.drop == pytest.approx(100 * differences.mean())
    assert got.drop_standard_error == pytest.approx(100 * differences.std() / math.sqrt(360))


def test_drops_are_paired() -> None:
    """Networks that are made up: image i shows the number i."""

    class Says(nn.Module):
        def __init__(self, wrong: set[int]) -> None:
            super().__init__()
            self.wrong = wrong

        def forward(self, images: Tensor) -> Tensor:
            numbers = images[:, 0, 0, 0].long()
            classes = torch.tensor([int(number % 2) ^ (int(number) in self.wrong) for number in numbers])
            return torch.nn.functional.one_hot(classes, 2).float()

    class Numbers:
        def batches(self, batch_size: int, *, resolution: int) -> Any:
            for part in torch.arange(10).split(batch_size):
                yield part[:, None, None, None].float(), part % 2

    source: Any = Numbers()
    for batch in (None, 4, 7):  # of 10 images the last batch is filled up
        got = measure(Says({0, 1}), Says({1, 2, 3, 4}), source, resolution=1, batch=batch)
        assert (got.total, got.correct, got.lost, got.gained, got.same_class) == (10, 8, 3, 1, 6)
        assert got.drop == pytest.approx(20) and got.exported == pytest.approx(60)
        assert got.drop_standard_error == pytest.approx(100 * np.std([1, 1, 1, -1, 0, 0, 0, 0, 0, 0]) / math.sqrt(10))


def test_fbnetv3_a(tmp_path: Path) -> None:
    """At its own resolution, with norms and zero weights randomised, on photographs."""
    source = load_source("fbnetv3_a")
    assert source.resolution == 224 and source.fresh and source.stem == "fbnetv3_a"
    images = comparison_images(source, None, 12).pixels
    randomised(source.network, images)
    assert float(logits_of(source.network, images).std(0).mean()) > 1, "the image shows"
    for result in export_all(source, ["onnx", "pt2"], out=tmp_path):
        assert result.path.name == f"fbnetv3_a.{result.path.suffix[1:]}"
        assert result.images == "12 crops of scikit-learn's two photographs"
        compared = result.comparison
        assert compared.same_class == 12 and compared.relative < 1e-4  # float32 itself is 2e-5 off float64 here
        card = json.loads(result.card.read_text())
        assert (card["cost"]["flops"], card["cost"]["params"]) == (356_598_280, 8_542_224)  # as published
        assert "accuracy" not in card and "class_names" not in card["output"] and "mean" not in card["input"]
        assert result.card_markdown.read_text().count("\n| ") > len(source.design.blocks)


def test_torchvision_models_export(tmp_path: Path) -> None:
    network = build_design(TorchvisionModel("squeezenet1_1"), 4)
    names = ("a|b", "c\nd", "<script>", "`e`")
    facts = {"data": "own", "num_classes": 4, "in_channels": 3, "resolution": 64, "class_names": list(names)}
    save_model(tmp_path / "model.pt", network, TorchvisionModel("squeezenet1_1"), facts)
    result = export(tmp_path)
    assert result.path == tmp_path / "model.onnx" and result.comparison.relative < 2e-5
    assert result.images == "12 crops of scikit-learn's two photographs; own could not be loaded"
    card = json.loads(result.card.read_text())
    assert card["architecture"] == "torchvision:squeezenet1_1" and card["output"]["class_names"] == list(names)
    assert "made" not in card
    text = result.card_markdown.read_text()
    assert r"| classes, in order | a\|b, c d, \&lt;script\&gt;, \`e\` |" in text and "<script>" not in text


@pytest.mark.skipif(not HAS_EXECUTORCH, reason="the extra executorch is not installed")
def test_executorch(trained: Path, tmp_path: Path) -> None:
    from executorch.runtime import Runtime

    result = export(trained, format="executorch", out=tmp_path / "phone.pte")
    assert result.batch == 1 and result.comparison.batches == (1,) * 12 and result.comparison.relative < 2e-5
    loaded = load_model(trained)
    images = torch.randn(1, 1, loaded.facts.resolution, loaded.facts.resolution)
    (found,) = Runtime.get().load_program(result.path).load_method("forward").execute([images])
    expected = logits_of(loaded.network, images)
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())
    file = json.loads(result.card.read_text())["file"]
    assert file["backend"] == "XNNPACK" and file["size_bytes"] == result.path.stat().st_size
    three = export(trained, format="executorch", out=tmp_path / "three.pte", batch=3)
    assert three.comparison.batches == (3, 3, 3, 3)


@pytest.mark.skipif(HAS_EXECUTORCH, reason="the extra executorch is installed")
def test_executorch_that_is_not_there(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(capsys, "export", str(trained), "--format", "onnx,executorch", "--out", str(tmp_path))
    assert line == "nas: ExecuTorch is not installed; pip install 'nas-toolkit[executorch]'"
    assert list(tmp_path.iterdir()) == []


def test_cards_say_what_is_known(files: dict[str, Any], trained: Path) -> None:
    result = files["onnx-int8"]
    card = json.loads(result.card.read_text())
    exact = cost(tiny(), num_classes=10, in_channels=1)
    assert card["cost"] == exact._asdict() and Architecture.from_json(card["architecture"]) == tiny()
    assert card["file"]["sha256"] == hashlib.sha256(result.path.read_bytes()).hexdigest()
    assert card["file"]["size_bytes"] == result.path.stat().st_size and card["file"]["name"] == "model-int8.onnx"
    measured = json.loads((trained / "result.json").read_text())
    assert card["accuracy"]["correct"] == measured["correct"] == card["float32"]["correct"]
    assert card["accuracy"]["percent"] == pytest.approx(measured["accuracy"])
    assert card["accuracy"]["standard_error"] == pytest.approx(measured["standard_error"])
    assert card["int8"]["percent"] == pytest.approx(result.accuracies.exported)
    assert card["made"]["seed"] == 3 and card["made"]["recipe"]["epochs"] == 2 and card["made"]["data"] == "digits"
    assert card["output"]["class_names"] == list(CLASSES) and card["input"]["shape"][1] == 1
    assert (card["input"]["mean"], card["input"]["standard_deviation"]) == ([0.3045], [0.3184])
    assert card["file"]["calibration_images"] == "200 training images of digits, without augmentation"
    assert card["comparison"]["largest_difference"] == result.max_difference

    text = result.card_markdown.read_text()
    assert f"| FLOPs (multiply-adds of one image) | {exact.flops:,} |" in text
    assert f"{measured['accuracy']:.2f} % ± {measured['standard_error']:.2f}" in text
    assert "    nas train 'tiny|`x`' --epochs 2\n    nas export train" in text
    rows = [re.split(r"(?<!\\)\|", line) for line in text.splitlines() if line.startswith("| ")]
    layers = [row for row in rows if len(row) == 12][2:]
    assert [row[2].strip() for row in layers] == [block.kind for block in tiny().blocks]
    assert [row[5].strip() for row in layers] == [str(channels) for channels, _ in tiny().layers(1)]
    assert {len(row) for row in rows} == {4, 12}, "no cell splits its row"


def test_a_run_of_another_network_is_not_cited(trained: Path, tmp_path: Path) -> None:
    """model.pt beside somebody else's result."""
    space = load_space(SPACE)
    other = space.decode([0] * len(space))
    facts = {"data": "digits", "num_classes": 10, "in_channels": 1, "resolution": 8, "class_names": list(CLASSES)}
    for name in ("config.json", "result.json"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    assert {"made", "accuracy"} == set(model_card.run_facts(tmp_path, tiny()))
    save_model(tmp_path / "model.pt", build(other, 10, 1, seed=0), other, facts)
    card = json.loads(export(tmp_path / "model.pt").card.read_text())
    assert "accuracy" not in card and "made" not in card
    assert model_card.run_facts(tmp_path / "nowhere", tiny()) == {}


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("result.json", '{"correct": 5, "total": 4}', "correct must be in 0..total, got 5 of 4"),
        ("result.json", "[]", "got None of None"),
        ("result.json", '{"correct": "a", "total": 0}', "got 'a' of 0"),
        ("result.json", "{", "not valid JSON"),
        ("config.json", "{}", "config.json is damaged"),
    ],
)
def test_damaged_runs(
    trained: Path, tmp_path: Path, file: str, content: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("model.pt", "config.json", "result.json"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    (tmp_path / file).write_text(content)
    assert words in refusal(capsys, "export", str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"model.pt", "config.json", "result.json"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain name 1.5", "plain name 1.5"),
        ("a|b", r"a\|b"),
        ("line\nbreak\x00\u2028", "line break  "),
        ("\udc80", " "),
        ("*b* _i_ `c` [l](u) ~s~ #1", r"\*b\* \_i\_ \`c\` \[l\](u) \~s\~ \#1"),
        ("back\\slash", r"back\\slash"),
        ("<b>&amp;", r"\&lt;b\&gt;\&amp;amp;"),
        ("https://x @you $m$ !", r"https\://x \@you \$m\$ \!"),
    ],
)
def test_markdown_is_escaped(text: str, shown: str) -> None:
    assert model_card.escape(text) == shown


def test_photographs_digits_and_calibration_images(trained: Path) -> None:
    colour = load_source("torchvision:squeezenet1_1", num_classes=3)
    photographs = comparison_images(replace(colour, resolution=48), None, 12)
    assert photographs.pixels.shape == (12, 3, 48, 48) and photographs.pixels.is_contiguous()
    assert torch.equal(photographs.pixels, comparison_images(replace(colour, resolution=48), None, 12).pixels)
    assert len({tuple(image.flatten().tolist()[:20]) for image in photographs.pixels}) == 12, "all differ"
    values = photographs.pixels * torch.tensor(normalisation("imagefolder:x")[1]).view(1, 3, 1, 1)
    values = values + torch.tensor(normalisation("imagefolder:x")[0]).view(1, 3, 1, 1)
    assert float(values.min()) > -1e-5 and float(values.max()) < 1 + 1e-5 and float(values.std()) > 0.1
    assert normalisation("own") is None

    source, digits = load_source(trained), load_dataset("digits")
    side = source.resolution
    (everything, _) = next(digits.train.batches(len(digits.train), resolution=side))
    known = {image.numpy().tobytes() for image in everything.contiguous()}
    batches = list(calibration_batches(source, digits, 70, 32))
    assert [tuple(batch.shape) for batch in batches] == [(32, 1, side, side)] * 3
    chosen = [image.numpy().tobytes() for image in torch.cat(batches)]
    assert set(chosen) <= known and len(set(chosen[:70])) >= 69 and chosen[70:] == chosen[:26]
    (tests, _) = next(digits.test.batches(len(digits.test), resolution=side))
    known = {image.numpy().tobytes() for image in tests.contiguous()}
    for data, words in ((digits, "12 test images of digits"), (None, "12 test images of digits; gone")):
        images = comparison_images(source, data, 12, words.removeprefix("12 test images of digits"))
        assert images.words == words and {image.numpy().tobytes() for image in images.pixels} <= known
    many = comparison_images(source, digits, 400)
    assert many.pixels.shape[0] == 400, "there are 360"


def test_batches() -> None:
    assert batch_sizes(None) == (1, 3, 8)
    assert [batch_sizes(size) for size in (1, 5, 12, 64)] == [(1,) * 12, (5, 5, 5), (12,), (64,)]


def wrong(by: float) -> Callable[[Path], Callable[[Tensor], Tensor]]:
    """A runtime whose first logit is off by this share of the largest."""

    def load(path: Path) -> Callable[[Tensor], Tensor]:
        true = FORMATS["onnx"].load(path)

        def shifted(images: Tensor) -> Tensor:
            logits = true(images).clone()
            logits[0, 0] += by * logits.abs().max()
            return logits

        return shifted

    return load


def test_outputs_that_differ_leave_nothing(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("nas.exporting.export")
    (tmp_path / "model.onnx").write_text("kept")
    broken = replace(FORMATS["onnx"], load=wrong(1e-3), suffix=".pt2", ending=".pt2")
    monkeypatch.setattr(module, "FORMATS", {**FORMATS, "pt2": broken})
    with pytest.raises(UserError, match=r"differ from PyTorch's by .* allowed: 0.0001 of it"):
        export_all(trained, ["onnx", "pt2"], out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_text() == "kept", "of several formats all or none"
    monkeypatch.setattr(module, "FORMATS", {**FORMATS, "onnx": replace(FORMATS["onnx"], load=wrong(2e-5))})
    assert export(trained, out=tmp_path).comparison.relative == pytest.approx(2e-5, rel=0.5)


def test_exporters_that_fail_give_one_line(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("nas.exporting.export")

    def fails(task: Any) -> Content:
        raise RuntimeError("no such operator\n  at line 7")

    monkeypatch.setattr(module, "FORMATS", {**FORMATS, "onnx": replace(FORMATS["onnx"], make=fails)})
    with pytest.raises(UserError, match=r"as ONNX, float32: no such operator; a fixed --batch may help$"):
        export(trained, out=tmp_path)
    with pytest.raises(UserError, match=r"as ONNX, float32: no such operator$"):
        export(trained, out=tmp_path, batch=1)
    assert list(tmp_path.iterdir()) == []


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a refused command."""
    capsys.readouterr()
    assert run(list(arguments)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--format", "tflite"], "unknown format 'tflite'; allowed: executorch, onnx, onnx-int8, pt2"),
        (["--format", "onnx,onx"], "unknown format 'onx'; did you mean 'onnx'?"),
        (["--format", ""], "unknown format ''"),
        (["--batch", "0"], "batch must be in 1..1024, got 0"),
        (["--batch", "1025"], "batch must be in 1..1024, got 1025"),
        (["--out", "missing/model.onnx"], "folder missing does not exist"),
        (["--out", "model.pt"], "must end in .onnx, got 'model.pt'"),
        (["--format", "pt2", "--out", "model.onnx"], "must end in .pt2, got 'model.onnx'"),
        (["--format", "onnx,pt2", "--out", "both.onnx"], "several formats need an existing folder, both.onnx is none"),
        (["--out", "taken.onnx"], "taken.onnx.card.md: it is a folder"),
        (["--data", "cifar11"], "unknown dataset 'cifar11'"),
        (["--data", "cifar10", "--data-dir", "."], "nas data get cifar10"),
        (["--calibration-images", "5"], "--calibration-images is for the format onnx-int8"),
        (["--format", "onnx-int8", "--calibration-images", "0"], "--calibration-images must be >= 1, got 0"),
        (["--format", "onnx-int8", "--calibration-images", "1438"], "must be in 1..1437"),
        (["--pretrained", "x.pth"], "--pretrained is for networks given by name"),
        (["--classes", "5"], "--classes is for networks given by name"),
        (["--in-channels", "3"], "--in-channels is for networks given by name"),
        (["--threads", "0"], "threads must be in 1.."),
    ],
)
def test_bad_requests(
    trained: Path,
    tmp_path: Path,
    options: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.onnx.card.md").mkdir()
    before = {path.name for path in trained.iterdir()}
    assert words in refusal(capsys, "export", str(trained), *options)
    assert {path.name for path in trained.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["taken.onnx.card.md"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fbnetv3_z"], "did you mean 'fbnetv3_"),
        (["torchvision:resnet19"], "torchvision has no classifier 'resnet19'"),
        (["torchvision:squeezenet1_1", "--classes", "0"], "num_classes must be in 1..1000000, got 0"),
        (["torchvision:squeezenet1_1", "--in-channels", "1"], "takes images of 3 channels"),
        (["runs/none"], "cannot read runs/none"),
        (["none.pt"], "cannot read none.pt"),
        (["none.json"], "none.json"),
        (["net.json", "--pretrained", "none.pth"], "cannot read none.pth"),
        (["net.json", "--format", "onnx-int8"], "int8 needs images to calibrate with: give --data"),
        (["net.json", "--format", "onnx-int8", "--data", "digits"], "images of 1 channels, the network takes 3"),
    ],
)
def test_bad_sources(
    tmp_path: Path,
    arguments: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny().save(tmp_path / "net.json")
    assert words in refusal(capsys, "export", *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["net.json"]


def test_int8_needs_the_classes_and_data_of_a_trained_network(tmp_path: Path) -> None:
    facts = ModelFacts(data="gone", num_classes=3, in_channels=1, resolution=8, class_names=("a", "b", "c"))
    model = TrainedModel(design=tiny(), network=build(tiny(), 3, 1).eval(), facts=facts)
    with pytest.raises(
        UserError, match=r"int8 needs images to calibrate with: unknown dataset 'gone'.*; or give --data"
    ):
        export(model, format="onnx-int8", out=tmp_path)
    with pytest.raises(UserError, match="digits has 10 classes, the network 3"):
        export(model, format="onnx-int8", out=tmp_path, data="digits")
    assert list(tmp_path.iterdir()) == []
    result = export(model, out=tmp_path)
    assert result.images == "12 test images of digits; gone could not be loaded"


def test_architecture_files_have_fresh_or_given_weights(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny().save(tmp_path / "net.json")
    network = ["export", "net.json", "--in-channels", "1", "--classes", "10", "--threads", "1"]
    assert run([*network, "--batch", "2", "--format", "onnx-int8", "--data", "digits"]) == 0
    printed = capsys.readouterr().out
    assert "net.json has fresh weights" in printed and "net-int8.onnx" in printed and "accuracy" not in printed
    card = json.loads((tmp_path / "net-int8.onnx.card.json").read_text())
    assert card["weights"] == "fresh (seed 0)" and "int8" not in card and "made" not in card
    assert run([*network, "--pretrained", str(trained)]) == 0
    printed = capsys.readouterr().out
    assert "fresh" not in printed and "same class for 12 of 12" in printed
    side = load_model(trained).facts.resolution
    images = torch.randn(3, 1, side, side)
    expected = logits_of(load_model(trained).network, images)
    assert float((run_onnx(tmp_path / "net.onnx", images) - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def test_sources_by_name() -> None:
    source = load_source("fbnetv3_a_low32", num_classes=10)
    assert (source.stem, source.resolution, source.num_classes) == ("fbnetv3_a_low32", 32, 10)
    assert isinstance(source, ExportSource) and not source.network.training and source.data is None
