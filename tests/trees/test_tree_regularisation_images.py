"""Tree regularisation of image classifiers inside the one training loop, and ``nas tree-reg data``."""

import csv
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.tree import DecisionTreeClassifier
from torch import Tensor, nn
from torch.nn import functional

import nas
from nas.cli.main import run
from nas.lenet import LeNet5
from nas.trees.regularisation import penalty as penalties
from nas.trees.regularisation.images import NormPenalty, RegularisedImages, _images, _pixel_names, regularise_images
from nas.trees.regularisation.path_length import class_loss
from nas.trees.regularisation.penalty import TreePenalty, TreeRegularisation, require_few_weights, stored_bytes
from nas.trees.regularisation.series import GRUClassifier
from nas.trees.regularisation.surrogate import SurrogateOptions
from nas.trees.regularisation.training import perceptron
from recipes.checkpoint import load_checkpoint
from recipes.datasets import Dataset
from recipes.recipe import Recipe
from recipes.tensor_source import TensorSource
from recipes.trainer import Callback, TrainState
from search_spaces.errors import UserError

TREE = TreePenalty(every=1, perturbed=6, stored=24, surrogate=SurrogateOptions(steps=20))
RECIPE = Recipe(name="short", epochs=6, batch_size=16, lr=0.05, label_smoothing=0.1, augment=True)


def source(count: int, seed: int, classes: int = 3, side: int = 6) -> TensorSource:
    """Noise whose upper left quarter is the brighter, the higher the class; a tenth of the labels are drawn anew."""
    rng = np.random.default_rng(seed)
    images, labels = rng.integers(0, 86, (count, side, side, 1)), rng.integers(0, classes, count)
    images[:, : side // 2, : side // 2] += labels[:, None, None, None] * 170 // (classes - 1)
    labels = np.where(rng.random(count) < 0.1, rng.integers(0, classes, count), labels)
    return TensorSource(torch.from_numpy(images.astype(np.uint8)), torch.from_numpy(labels), mean=(0.5,), std=(0.3,))


def dataset(classes: int = 3, side: int = 6) -> Dataset:
    return Dataset(
        name="quarters", num_classes=classes, in_channels=1, resolution=side,
        class_names=tuple(f"class {index}" for index in range(classes)), train=source(96, 0, classes, side),
        test=source(40, 1, classes, side),
    )  # fmt: skip


def trained(**options: Any) -> RegularisedImages:
    given: dict[str, Any] = {"strength": 0.3, "tree": TREE, "inputs": 60, "recipe": RECIPE, "seed": 3} | options
    return regularise_images(given.pop("data", dataset()), given.pop("network", None), **given)


def weights(found: RegularisedImages) -> list[Tensor]:
    return list(found.result.model.state_dict().values())


def test_numbers_against_a_tree_of_our_own() -> None:
    data = dataset()
    found = trained(data=data, strength=0.01, epochs=18, lr=0.1)
    result, model = found.result, found.result.model
    seen = _images(data.train, 60, 6, 3)
    (test_images, test_labels), = data.test.batches(40, resolution=6)  # fmt: skip
    with torch.no_grad():
        predicted, test_predicted = (model(images).argmax(1).numpy() for images in (seen, test_images))
    tree = DecisionTreeClassifier(min_samples_leaf=5, random_state=0).fit(seen.flatten(1).numpy(), predicted)
    depths = tree.decision_path(seen.flatten(1).numpy()).sum(1) - 1
    assert result.mimic.path_length == pytest.approx(float(depths.mean()), rel=1e-12)
    assert result.test_fidelity == (tree.predict(test_images.flatten(1).numpy()) == test_predicted).mean()
    assert result.accuracy == pytest.approx(100 * float((test_predicted == test_labels.numpy()).mean()), rel=1e-12)
    assert [seen.epoch for seen in result.history] == list(range(1, 19))
    assert result.costs.fitted_surrogates == 16  # from the third epoch on: a sixth is the warm-up
    assert math.isnan(result.auc) and "class: class" in found.tree and result.mimic.path_length >= 1
    assert set(re.findall(r"pixel (\d),(\d)", found.tree)) <= {(row, column) for row in "012" for column in "012"}
    assert found.name == "quarters, perceptron"


def test_the_images_of_the_tree() -> None:
    data = dataset()
    one, two, other = (_images(data.train, 48, 6, seed) for seed in (0, 0, 1))
    assert one.shape == (48, 1, 6, 6) and torch.equal(one, two) and not torch.equal(one, other)
    (everything, labels), = data.train.batches(96, resolution=6)  # fmt: skip
    whole = {image.numpy().tobytes(): int(label) for image, label in zip(everything, labels, strict=True)}
    counts = np.bincount([whole[image.numpy().tobytes()] for image in one])
    assert np.abs(counts - np.bincount(labels) / 2).max() <= 0.5
    assert torch.equal(_images(data.train, 1000, 6, 0), everything)


def test_pixels_have_names() -> None:
    images = torch.arange(2 * 3 * 3).reshape(1, 2, 3, 3)
    names = _pixel_names(2, 3)
    assert names[int(images[0, 1, 2, 0])] == "channel 1 pixel 2,0" and len(names) == 18
    assert _pixel_names(1, 3)[5] == "pixel 1,2"


def test_no_penalty_is_plain_training(tmp_path: Path) -> None:
    data = dataset(side=32)
    plain = nas.train(LeNet5(), data, recipe=RECIPE, seed=3, clip_grad_norm=2.0)
    found = trained(data=data, network="lenet5", penalty="none", out=tmp_path / "run")
    assert all(torch.equal(a, b) for a, b in zip(plain.model.state_dict().values(), weights(found), strict=True))
    assert found.result.accuracy == plain.evaluation.accuracy and found.result.history == ()
    again = nas.load_model(tmp_path / "run")  # as any run of nas train
    assert again.facts.data == "quarters"
    zero = trained(data=data, network="lenet5", strength=0.0)  # as a penalty that weighs nothing
    assert all(torch.equal(a, b) for a, b in zip(weights(found), weights(zero), strict=True))
    strong = trained(data=data, network="lenet5", strength=1.0)
    assert not all(torch.equal(a, b) for a, b in zip(weights(found), weights(strong), strict=True))


def test_norms_by_hand() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, -2.0, 0.0, 0.5], [0.0, 0.0, -1.0, 0.0]]))
        model[1].bias.zero_()
    images, labels = torch.ones(2, 1, 2, 2), torch.tensor([0, 1])
    logits = torch.tensor([[-0.5, -1.0], [-0.5, -1.0]])
    plain = float(functional.cross_entropy(logits, labels))
    for penalty, norm in (("l1", 4.5), ("l2", 6.25)):
        loss = NormPenalty(
            loss=class_loss, weights=[model[1].weight], penalty=penalty, strength=0.1, warmup=2, epochs=10
        )
        assert float(loss(model, images, labels, 0.19).detach()) == pytest.approx(
            plain, rel=1e-6
        )  # in the second epoch
        assert float(loss(model, images, labels, 0.2).detach()) == pytest.approx(plain + 0.1 * norm, rel=1e-6)


def test_layers_restrict_what_is_penalised(tmp_path: Path) -> None:
    trained(layers=["5", "7.weight"], out=tmp_path / "run", epochs=3)
    state = load_checkpoint(tmp_path / "run" / "checkpoint.pt")["callbacks"][0]
    assert state["weights"].shape[1] == 100 * 10 + 10 + 10 * 3


class Killed(BaseException):
    pass


class Kill(Callback):
    """Ends the training in an epoch, as a kill does."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_step_end(self, state: TrainState) -> None:
        if (state.epoch, state.step) == (self.epoch, 2):
            raise Killed


@pytest.mark.parametrize("network", [None, "lenet5"])
@pytest.mark.parametrize("every", [1, 2])
def test_killed_and_resumed_is_undisturbed(network: str | None, every: int, tmp_path: Path) -> None:
    data = dataset(side=6 if network is None else 32)
    options = {"data": data, "network": network, "tree": replace(TREE, every=every)}
    whole = trained(**options)
    with pytest.raises(Killed):
        trained(**options, out=tmp_path / "run", callbacks=[Kill(4)])
    assert not (tmp_path / "run" / "result.json").exists()
    resumed = trained(**options, out=tmp_path / "run", resume=True)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))
    assert repr(whole.result.history) == repr(resumed.result.history) and whole.tree == resumed.tree
    finished = trained(**options, out=tmp_path / "run", resume=True)
    assert repr(finished.result.history) == repr(whole.result.history) and finished.tree == whole.tree
    with pytest.raises(UserError, match="seed was 3, now 4"):
        trained(**options, out=tmp_path / "run", resume=True, seed=4)
    with pytest.raises(UserError, match="inputs was 60, now 61"):
        trained(**options, out=tmp_path / "run", resume=True, inputs=61)
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"nothing")
    with pytest.raises(UserError, match="is damaged or not a checkpoint"):
        trained(**options, out=tmp_path / "run", resume=True)


def test_inputs_go_through_the_network_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.rand(50, 6, generator=torch.Generator().manual_seed(0))
    series = torch.rand(10, 5, 4, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    for model, inputs, classes in (
        (perceptron(6, 3, 0, (8,)), rows, torch.arange(50) % 3),
        (GRUClassifier(4, 3), series, torch.arange(50) % 2),
    ):
        tree = TreeRegularisation(model, inputs, TREE, seed=0)
        found = tree.weights().detach()
        model.zero_grad()
        class_loss(model(inputs), classes).backward()
        expected = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])  # type: ignore[union-attr]
        outputs = tree._outputs(found)
        for chunk in (512, 7):
            monkeypatch.setattr(penalties, "CHUNK", chunk)
            assert torch.allclose(tree._gradient(found, classes), expected, rtol=1e-4, atol=1e-7)
            assert torch.allclose(tree._outputs(found), outputs, rtol=1e-5, atol=1e-6)
        monkeypatch.undo()


def test_networks_that_are_too_large() -> None:
    config = TreePenalty()
    assert stored_bytes(1000, config) == 4 * 1000 * (128 + 64 + 12)
    parameters = {f"stage{index}.conv.weight": nn.Parameter(torch.empty(700, 1000)) for index in range(4)}
    with pytest.raises(UserError) as caught:
        require_few_weights(parameters, config)
    most = 2**30 // (4 * (128 + 64 + 12))
    assert "2,800,000 penalised weights are too many: 128 stored copies of them take 2.3 GB" in str(caught.value)
    assert f"{most:,} weights at most" in str(caught.value)
    assert "(the last ones are stage1.conv, stage2.conv, stage3.conv)" in str(caught.value)
    require_few_weights({"stage3.conv.weight": parameters["stage3.conv.weight"]}, config)
    require_few_weights(parameters, replace(config, stored=8))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    command = [
        "tree-reg",
        "data",
        "digits",
        "--network",
        "lenet5",
        "--epochs",
        "3",
        "--inputs",
        "60",
        "--max-depth",
        "3",
    ]
    command += ["--layers", "fc", "--resolution", "32", "--out", str(out)]
    assert run(command) == 0
    printed = capsys.readouterr().out
    stored = json.loads((out / "result.json").read_text())
    assert f"digits, lenet5, tree 0.1: {stored['accuracy']:.2f} % of the test labels; path length" in printed
    assert "AUC" not in printed and "surrogate: off by" in printed and stored["total"] == 360
    rows = list(csv.DictReader((out / "path_length.csv").open()))
    assert [row["epoch"] for row in rows] == ["0", "1", "2"] and all(float(row["path_length"]) <= 3 for row in rows)
    assert {path.name for path in out.iterdir()} >= {
        "model.pt",
        "metrics.csv",
        "recipe.json",
        "tree.txt",
        "path_length.svg",
    }
    assert json.loads((out / "recipe.json").read_text())["clip_grad_norm"] == 2.0
    assert run(["report", str(out), "--out", str(tmp_path / "report.html")]) == 0
    capsys.readouterr()
    assert run([*command, "--resume"]) == 0
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max-depth", "0"], "max_depth must be in 1..20, got 0"),
        (["--max-depth", "30"], "max_depth must be in 1..20, got 30"),
        (["--layers", "fc.f8"], "the network has no layer 'fc.f8'; allowed:"),
        (["--network", "lenet5", "--layers", "fc.f8"], "did you mean 'fc.f"),
        (["--network", "lenet5", "--resolution", "8"], "does not take digits's images of 8 pixels"),
        (["--network", "lenet6"], "unknown network 'lenet6'"),
        (["--network", "/nowhere.json"], "/nowhere.json"),
        (["--inputs", "1"], "inputs must be >= 2, got 1"),
        (["--stored", "1"], "stored must be >= 2, got 1"),
        (["--penalty", "l3"], "unknown penalty 'l3'"),
        (["--strength", "-1"], "strength must be >= 0"),
        (["--strength", "nan"], "finite"),
        (["--warmup", "12"], "warmup must be below the 12 epochs"),
        (["--ramp", "-1"], "ramp must be >= 0"),
        (["--pretrained", "/nowhere.pt"], "not of the perceptron"),
        (["--recipe", "digitz"], "unknown recipe 'digitz'"),
        (["--seed", "-1"], "seed must be >= 0"),
        (["--lr", "1000000", "--epochs", "2", "--penalty", "none"], "try a lower lr"),
        (["--device", "gpu"], "unknown device 'gpu'"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["tree-reg", "data", "digits", *arguments, "--out", str(tmp_path / "out")]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert words in line
    assert not (tmp_path / "out").exists()


def test_one_class_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part in ("train", "val"):
        folder = tmp_path / part / "only"
        folder.mkdir(parents=True)
        for index in range(3):
            Image.new("L", (8, 8), index).convert("RGB").save(folder / f"{index}.png")
    assert run(["tree-reg", "data", f"imagefolder:{tmp_path}"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "needs at least 2 classes, got 'only' only" in line
    data = dataset()
    with pytest.raises(UserError, match="training labels need at least 2 classes, got class 0 only"):
        trained(data=replace(data, train=data.train.of_classes([0])))
    assert run(["tree-reg", "data", "digitz"]) == 2
    assert "digitz" in capsys.readouterr().err


def test_a_regression_model_is_one_line() -> None:
    one_number = nn.Sequential(nn.Flatten(), nn.Linear(36, 1))
    with pytest.raises(UserError, match="the network has 1 outputs, but labels go up to 2"):
        trained(network=one_number)
    features = nn.Conv2d(1, 3, 3)
    with pytest.raises(UserError, match="outputs must be"):
        trained(network=features)
    with pytest.raises(UserError, match="does not take quarters's images of 6 pixels"):
        trained(network=nn.Linear(5, 3))


def test_a_module_of_ones_own() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    found = trained(network=module)
    assert found.name == "quarters, Sequential" and found.result.model is module
