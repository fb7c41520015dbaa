"""Curves against loops, narrower networks as designs, and `nas filters`."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import nas
from nas.cli.main import run
from nas.designs import build_design, design_cost
from nas.lenet import LeNet5
from nas.loading import MODEL, save_model
from nas.trees.filters.channels import narrowed
from nas.trees.filters.importance import decision_tree, pruning_order, weight_norms
from nas.trees.filters.pruning import curve_counts, masked_accuracy, removal_masks, tree_curve
from nas.trees.sources import load_classifier
from recipes.datasets import Dataset
from search_spaces.architecture import Architecture, Block
from search_spaces.counting import fvcore_cost
from search_spaces.errors import UserError

ARCHITECTURE = Architecture(
    name="tiny",
    resolution=16,
    blocks=(
        Block(kind="conv", out_channels=8, kernel=3, stride=2, activation="hswish"),
        Block(kind="ir", out_channels=8, kernel=3, mid_channels=16, squeeze_channels=8, activation="hswish"),
        Block(kind="ir", out_channels=12, kernel=3, mid_channels=16, stride=2),
        Block(kind="pool_head", out_channels=16, mid_channels=24, activation="hswish"),
    ),
)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    data = nas.load_dataset("digits")
    return Dataset(
        name="digits", num_classes=10, in_channels=1, resolution=16, class_names=data.class_names,
        train=data.train.subset(np.arange(400)), test=data.test.subset(np.arange(100)),
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network after one epoch on digits, as a run folder."""
    folder = tmp_path_factory.mktemp("filters") / "run"
    nas.train(ARCHITECTURE, "digits", out=folder, epochs=1, seed=0)
    return folder


def test_tree_curves_are_those_of_trees_grown_every_time() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 1500)  # so many that no two splits tie
    values = (rng.normal(size=(1500, 9)) + (labels[:, None] == np.arange(9) % 6)).astype(np.float32)
    train, test = (values[:1400], labels[:1400]), (values[1400:], labels[1400:])
    order = pruning_order(decision_tree(*train, depth=3).importance())
    for way in (order, order[::-1]):
        expected = []
        for count in range(9):
            kept = sorted(way[count:].tolist())
            tree = decision_tree(train[0][:, kept], train[1], depth=3)
            expected.append(100 * sum(tree.predict(test[0][:, kept]) == test[1]) / 100)
        assert tree_curve(train, test, way, range(9), depth=3).tolist() == pytest.approx(expected)


def test_masks_and_counts() -> None:
    assert removal_masks(np.array([2, 0, 1]), [0, 1, 2]).tolist() == [[1, 1, 1], [1, 1, 0], [0, 1, 0]]
    assert curve_counts(6).tolist() == [0, 1, 2, 3, 4, 5]
    assert curve_counts(120, 8).tolist() == [0, 17, 34, 51, 68, 85, 102, 119]
    with pytest.raises(UserError, match="points must be >= 2, got 1"):
        curve_counts(6, 1)


def test_masked_accuracies_are_those_of_narrower_networks(trained: Path, digits: Dataset) -> None:
    network = nas.load_model(trained).network
    masks = removal_masks(np.random.default_rng(1).permutation(16), [0, 3, 9, 15])
    found = masked_accuracy(network, "blocks.1.dw.0", masks, digits.test, resolution=16, batch_size=32)
    for mask, accuracy in zip(masks, found, strict=True):
        small = narrowed(network, "blocks.1.pw.0", np.flatnonzero(mask).tolist())
        assert accuracy == pytest.approx(nas.evaluate(small, digits.test, resolution=16).accuracy)
    with pytest.raises(UserError, match=r"masks must be \(m, 16\)"):
        masked_accuracy(network, "blocks.1.dw.0", masks[:, :4], digits.test, resolution=16)


def test_curves_begin_with_the_network_and_repeat(trained: Path, digits: Dataset) -> None:
    curves, again = (nas.pruning_curves(trained, digits, layer="blocks.3.pw.0", points=4) for _ in range(2))
    assert curves.equals(again)
    assert curves["removed"].tolist() == [0, 8, 15, 23]
    whole = nas.evaluate(nas.load_model(trained).network, digits.test, resolution=16).accuracy
    assert curves.iloc[0]["network_best"] == curves.iloc[0]["network_worst"] == pytest.approx(whole)
    ranked = nas.filter_importance(trained, digits, layers=["blocks.3.pw.0"])
    assert curves.iloc[0]["tree_best"] == pytest.approx(ranked.tree_accuracy["blocks.3.pw.0"])
    assert ranked.depth["blocks.3.pw.0"] == 5
    best = ranked.table.sort_values("rank")
    assert best["importance"].is_monotonic_decreasing
    assert best["share"].sum() == pytest.approx(1)
    assert "tree_best" not in nas.pruning_curves(trained, digits, layer="blocks.3.pw.0", points=2, by="l1")


def test_a_searched_network_gets_narrower_and_stays_an_architecture(
    trained: Path, digits: Dataset, tmp_path: Path
) -> None:
    keep: dict[str, int | float] = {"blocks.1.dw.0": 5, "blocks.2.pw.0": 0.25, "blocks.3.pwl": 7}
    result = nas.prune_filters(trained, "digits", keep=keep, by="l1", out=tmp_path / "out", epochs=1)
    design = result.design
    assert isinstance(design, Architecture)
    assert [(b.mid_channels, b.out_channels) for b in design.blocks] == [(0, 8), (5, 8), (4, 12), (24, 7)]
    network = nas.load_model(trained).network
    norms = weight_norms(network, "blocks.2.pw.0")
    assert set(result.kept["blocks.2.pw.0"]) == set(np.argsort(norms)[-4:].tolist())
    counted = fvcore_cost(nas.load_model(tmp_path / "out" / "pruned").network, in_channels=1, resolution=16)
    assert result.cost == counted
    assert result.cost.flops < result.cost_before.flops == nas.cost(ARCHITECTURE, num_classes=10, in_channels=1).flops
    for layer, numbers in result.kept.items():
        network = narrowed(network, layer, list(numbers))
    image = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        stored = nas.load_model(tmp_path / "out" / "pruned").network
        assert torch.allclose(stored(image), network(image), atol=1e-5)
    tuned = nas.load_model(tmp_path / "out" / "tuned")
    assert tuned.design == design
    assert result.tuned is not None and result.tuned.total == 360
    written = json.loads((tmp_path / "out" / "filters.json").read_text())
    assert written["kept"]["blocks.3.pwl"] == list(result.kept["blocks.3.pwl"])
    assert written["cost"]["flops"] == result.cost.flops
    with pytest.raises(UserError, match="is there already; choose another folder, or resume"):
        nas.prune_filters(trained, keep=keep, out=tmp_path / "out")


def test_lenet_gets_narrower(tmp_path: Path, digits: Dataset) -> None:
    network = build_design(LeNet5(), 10, 1, seed=0)
    facts = {"data": "digits", "num_classes": 10, "in_channels": 1, "resolution": 32, "class_names": list("0123456789")}
    save_model(tmp_path / MODEL, network, LeNet5(), facts)
    result = nas.prune_filters(tmp_path / MODEL, digits, keep={"convnet.c1": 3, "convnet.c5": 0.1}, by="tree")
    assert result.design == LeNet5((3, 16, 12, 84)) == LeNet5.parse("lenet5:3-16-12-84")
    assert result.tuned is None and result.out is None
    # 28² x 25 x 3 + 10² x 75 x 16 + 400 x 12 + 12 x 84 + 840 multiply-adds
    assert result.cost.flops == 58800 + 120000 + 4800 + 1008 + 840
    assert design_cost(LeNet5(), num_classes=10, in_channels=1).params_all == 61706
    with pytest.raises(UserError, match=r"lenet5 is written lenet5 or lenet5:6-16-120-84, got 'lenet5:6-x'"):
        LeNet5.parse("lenet5:6-x")


def test_modules_and_networks_by_name_lose_filters_in_python(digits: Dataset) -> None:
    module = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10))
    result = nas.prune_filters(module, digits, keep={"0": 2}, by=nas.RankBy("random", seed=3))
    assert result.design is None
    assert result.model.get_parameter("0.weight").shape[0] == 2
    assert result.cost.params_all == 2 * 9 + 2 + 20 + 10
    with pytest.raises(UserError, match="only networks of this toolkit and LeNet-5 are fine-tuned"):
        nas.prune_filters(module, digits, keep={"0": 2}, epochs=1)


def test_a_residual_that_was_not_trained_is_refused(tmp_path: Path, digits: Dataset) -> None:
    architecture = Architecture(
        name="meets", resolution=16,
        blocks=(
            Block(kind="conv", out_channels=8, kernel=3, stride=2), Block(kind="ir", out_channels=6, kernel=3, mid_channels=8),
            Block(kind="pool_head", out_channels=16, mid_channels=24),
        ),
    )  # fmt: skip
    facts = {"data": "digits", "num_classes": 10, "in_channels": 1, "resolution": 16, "class_names": list("0123456789")}
    save_model(tmp_path / MODEL, build_design(architecture, 10, 1), architecture, facts)
    with pytest.raises(UserError, match="would get 6 channels in and out, and with them a residual"):
        nas.prune_filters(tmp_path / MODEL, digits, keep={"blocks.0.0": 6}, by="l1")
    result = nas.prune_filters(tmp_path / MODEL, digits, keep={"blocks.0.0": 5}, by="l1")
    assert isinstance(result.design, Architecture)
    assert result.design.blocks[0].out_channels == 5


def test_what_is_no_classifier_is_refused(digits: Dataset) -> None:
    regression = nn.Sequential(nn.Conv2d(1, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 1))
    with pytest.raises(
        UserError, match=r"a classifier is needed, one output for each of the 10 classes.*gives \(1, 1\)"
    ):
        load_classifier(regression, digits)
    single = Dataset(
        name="ones", num_classes=10, in_channels=1, resolution=16, class_names=digits.class_names,
        train=digits.train.subset(np.flatnonzero(digits.train.labels.numpy() == 1)), test=digits.test,
    )  # fmt: skip
    with pytest.raises(UserError, match="training images of ones are all of one class"):
        load_classifier(regression, single)


def test_the_commands(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(trained)
    assert run(["filters", "layers", model]) == 0
    lines = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert lines["blocks.1.dw.0"] == "   16  removable, with blocks.1.pw.0".strip()
    assert "their channels reach the operation add" in lines["blocks.0.0"]
    table = tmp_path / "importance.csv"
    options = ["--threads", "1", "--layer", "blocks.3.pw.0"]
    assert run(["filters", "importance", model, *options, "--score", "max", "--top", "2", "--out", str(table)]) == 0
    printed = capsys.readouterr().out
    assert "blocks.3.pw.0: 24 filters" in printed and "depth 5" in printed
    assert len(table.read_text().splitlines()) == 25
    assert run(["filters", "curves", model, *options, "--by", "random", "--points", "3"]) == 0
    assert "network_worst" in capsys.readouterr().out
    out = tmp_path / "narrow"
    assert run(["filters", "prune", model, "--keep", "blocks.3.pw.0=0.5", "--by", "l1", "--out", str(out)]) == 0
    assert f"go on with {out / 'pruned'}" in capsys.readouterr().out
    assert run(["filters", "layers", str(out / "pruned")]) == 0
    assert dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())["blocks.3.pw.0"].startswith("12")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["importance", "--depth", "0"], "depth must be in 1..20, got 0"),
        (["importance", "--depth", "30"], "depth must be in 1..20, got 30"),
        (["importance", "--layer", "blocks.1.pw.9"], "no layer 'blocks.1.pw.9'; a convolution is needed; did you mean"),
        (["importance", "--by", "tre"], "unknown method 'tre'; did you mean 'tree'?"),
        (["importance", "--score", "sum"], "unknown score 'sum'; allowed: max, mean, topk"),
        (["importance", "--data", "mnits"], "unknown dataset 'mnits'; did you mean 'mnist'?"),
        (
            ["importance", "--out", "no/table.csv"],
            "cannot write no/table.csv: a file in a folder that exists is needed",
        ),
        (["curves", "--layer", "blocks.1.pw.0", "--out", "."], "cannot write .: a file in a folder"),
        (["curves", "--layer", "blocks.0.0"], "filters of blocks.0.0 cannot be removed: their channels reach"),
        (["prune", "--keep", "blocks.3.pw.0", "--out", "x"], "--keep must be LAYER=NUMBER or LAYER=SHARE"),
        (
            ["prune", "--keep", "blocks.3.pw.0=0", "--out", "x"],
            "filters to keep of blocks.3.pw.0 must be in 1..24, got 0",
        ),
        (["prune", "--keep", "blocks.3.pw.0=1.5", "--out", "x"], "the share of filters to keep"),
        (["prune", "--keep", "blocks.1.pw.0=4", "--keep", "blocks.1.dw.0=4", "--out", "x"], "have the same filters"),
    ],
)
def test_wrong_input_is_one_line(
    trained: Path, arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run(["filters", arguments[0], str(trained), *arguments[1:]]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not (tmp_path / "x").exists()
