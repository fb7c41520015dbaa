"""`nas nbdt`: from a trained network to a tree on disk, and training for a tree."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import nas
from nas.cli.main import run
from nas.trees.analyses import path_frequencies
from nas.trees.hierarchy import Hierarchy
from nas.trees.training import train_nbdt
from nas.trees.wrapping import compare
from recipes.evaluation import evaluate
from search_spaces.errors import UserError

SPACE = "digits"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a small network on digits."""
    folder = tmp_path_factory.mktemp("trees")
    assert run(["spaces", "sample", SPACE, "--flops", "0.1M:0.2M", "--out", str(folder / "arch"), "--classes", "10",
                "--in-channels", "1"]) == 0  # fmt: skip
    (architecture,) = (folder / "arch").glob("*.json")
    nas.train(architecture, "digits", out=folder / "train", epochs=2)
    return folder / "train"


def test_the_command_writes_the_tree_that_python_gives(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["nbdt", str(trained.parent), "--threads", "1"]) == 0  # as the folder of a demo
    printed = capsys.readouterr().out
    result = nas.nbdt(trained)
    stored = json.loads((trained / "nbdt" / "nbdt.json").read_text())
    for name in ("NN", "NBDT-S", "NBDT-H"):
        assert stored[name]["correct"] == result.evaluations[name].correct
        assert f"{stored[name]['accuracy']:.2f} %" in printed
    tree = Hierarchy.load(trained / "nbdt" / "hierarchy.json")
    assert (tree.classes, tree.children, tree.names) == (
        result.hierarchy.classes, result.hierarchy.children, result.hierarchy.names,
    )  # fmt: skip
    assert (trained / "nbdt" / "page.html").read_text().startswith("<!DOCTYPE html>")
    again = nas.nbdt(trained, tree=trained / "nbdt" / "hierarchy.json")
    assert again.evaluations == result.evaluations


def test_accuracies_are_those_of_the_modules(trained: Path) -> None:
    result = nas.nbdt(trained, tree="raw-ward", names=False)
    data = nas.load_dataset("digits")
    side = nas.load_model(trained).facts.resolution
    soft = evaluate(result.model, data.test, resolution=side)
    plain = evaluate(result.model.model, data.test, resolution=side)
    hard = evaluate(nas.NBDT(result.model.model, result.hierarchy, "hard"), data.test, resolution=side)
    assert [e.correct for e in (plain, soft, hard)] == [e.correct for e in result.evaluations.values()]
    assert result.evaluations["NBDT-S"].loss == pytest.approx(soft.loss, rel=1e-5)
    assert int(np.trace(result.predictions)) == soft.correct
    assert result.predictions.sum(1).tolist() == np.bincount(data.test.labels).tolist()


def test_flat_and_wordnet_trees_and_a_module(trained: Path) -> None:
    network = nas.load_model(trained).network
    side = nas.load_model(trained).facts.resolution
    flat = nas.nbdt(network, "digits", tree="flat", resolution=side)
    assert {e.correct for e in flat.evaluations.values()} == {flat.evaluations["NN"].correct}
    assert flat.out is None
    assert nas.nbdt(network, "digits", tree="random", seed=1, resolution=side).hierarchy.nodes == 19


def test_path_frequencies_by_hand() -> None:
    tree = Hierarchy(("a", "b", "c"), ((0, 2), (3, 1)), ("", ""))
    predictions = np.array([[5, 1, 2], [0, 7, 0], [3, 0, 4]])
    expected = [[5, 1, 2, 7, 8], [0, 7, 0, 0, 7], [3, 0, 4, 7, 7]]
    assert path_frequencies(tree, predictions).tolist() == expected


def test_an_empty_source_is_refused() -> None:
    model = nas.NBDT(nn.Linear(2, 3), Hierarchy(("a", "b", "c"), ((0, 1, 2),), ("",)))
    empty = nas.load_dataset("digits").test.subset(np.array([], dtype=np.int64))
    with pytest.raises(UserError, match="no images"):
        compare(model, empty, resolution=8)


def test_training_for_a_tree_keeps_it_and_goes_on(trained: Path, tmp_path: Path) -> None:
    architecture = str(next(trained.parent.glob("arch/*.json")))
    command = ["nbdt", "train", architecture, "--data", "digits", "--epochs", "2", "--tree", str(trained),
               "--out", str(tmp_path / "s"), "--omega", "0:1:2", "--beta", "1", "--threads", "1"]  # fmt: skip
    assert run(command) == 0
    expected = nas.model_hierarchy(nas.load_model(trained).network, nas.load_model(trained).facts.class_names)
    assert Hierarchy.load(tmp_path / "s" / "hierarchy.json").children == expected.children
    recorded = json.loads((tmp_path / "s" / "config.json").read_text())["config"]["loss"]
    assert recorded["omega"] == {"start": 0.0, "end": 1.0, "power": 2.0}
    assert nas.nbdt(tmp_path / "s").hierarchy.children == expected.children  # the tree it was trained with
    assert run([*command, "--resume"]) == 0
    assert run([*command[:-4], "--beta", "0.5", "--threads", "1", "--resume"]) == 2  # another run


def test_a_teacher_softens_the_targets(trained: Path, tmp_path: Path) -> None:
    architecture = str(next(trained.parent.glob("arch/*.json")))
    command = ["nbdt", "train", architecture, "--data", "digits", "--epochs", "1", "--tree", "flat", "--threads", "1"]
    teacher = ["--teacher", str(trained), "--distillation"]
    for name, options in {"alone": [], "some": [*teacher, "0.1"], "all": [*teacher, "1"]}.items():
        assert run([*command, "--out", str(tmp_path / name), *options]) == 0
    losses = [(tmp_path / name / "metrics.csv").read_text() for name in ("alone", "some", "all")]
    assert len(set(losses)) == 3
    recorded = json.loads((tmp_path / "some" / "config.json").read_text())["config"]
    assert recorded["teacher"] == str(trained) and recorded["recipe"]["distillation"] == 0.1


def test_trees_rebuilt_during_training(trained: Path, tmp_path: Path) -> None:
    architecture = str(next(trained.parent.glob("arch/*.json")))
    assert run(["nbdt", "train", architecture, "--data", "digits", "--epochs", "3", "--rebuild", "1:2:1", "--form", "hard",
                "--out", str(tmp_path / "m"), "--threads", "1"]) == 0  # fmt: skip
    trees = [(tmp_path / "m" / name).read_text() for name in ("hierarchy-epoch2.json", "hierarchy.json")]
    assert trees[0] == trees[1]
    assert (tmp_path / "m" / "hierarchy-epoch1.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["RUN", "--tree", "unit-wrd"], "did you mean 'unit-ward'"),
        (["RUN", "--data", "nothing"], "nothing"),
        (["RUN", "--head", "stem"], "no linear layer"),
        (["/nowhere/run"], "no run folder"),
        (["torchvision:resnet18", "--data", "digits", "--out", "OUT"], "no trained weights"),
        (["train", "fbnet_a", "--data", "digits", "--out", "OUT"], "a tree is needed"),
        (["train", "fbnet_a", "--data", "digits", "--tree", "flat", "--rebuild", "1:2:1", "--out", "OUT"], "not both"),
        (["train", "fbnet_a", "--data", "digits", "--rebuild", "1:2", "--out", "OUT"], "START:END:PERIOD"),
        (["train", "fbnet_a", "--data", "digits", "--rebuild", "500:600:1", "--out", "OUT"], "never be used"),
        (["train", "fbnet_a", "--data", "digits", "--tree", "flat", "--omega", "a:b", "--out", "OUT"], "--omega"),
        (
            ["train", "fbnet_a", "--data", "digits", "--tree", "flat", "--omega", "0:nan", "--out", "OUT"],
            "--omega 0:nan: ",
        ),
        (
            ["train", "fbnet_a", "--data", "digits", "--tree", "flat", "--omega", "0", "--beta", "0", "--out", "OUT"],
            "are 0",
        ),
        (["RUN", "--tree", ""], "no tree file ''"),
        (["RUN", "--tree", "/"], "no tree file '/'"),
        (["RUN", "--synsets", "/nowhere.json"], "/nowhere.json"),
        (
            ["train", "fbnet_a", "--data", "digits", "--tree", "flat", "--form", "nl", "--out", "OUT"],
            "did you mean 'nll'",
        ),
    ],
)
def test_wrong_input_is_one_line(
    arguments: list[str], words: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(trained) if a == "RUN" else str(tmp_path / "o") if a == "OUT" else a for a in arguments]
    capsys.readouterr()
    assert run(["nbdt", *given]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line
    assert not (tmp_path / "o").exists()


def test_a_tree_of_other_classes_is_refused(trained: Path, tmp_path: Path) -> None:
    Hierarchy(tuple("abcdefghij"), (tuple(range(10)),), ("",)).save(tmp_path / "t.json")
    with pytest.raises(UserError, match="class '0' is no leaf"):
        nas.nbdt(trained, tree=tmp_path / "t.json")
    with pytest.raises(UserError, match="first 'a' and '0'"):
        nas.nbdt(trained, tree=Hierarchy.load(tmp_path / "t.json"))


@pytest.mark.parametrize("call", [nas.nbdt, nas.tree_outputs])
def test_networks_and_data_that_do_not_fit_are_refused(call: Callable[..., object], trained: Path) -> None:
    """As analyses of filters refuse them: all go through `load_classifier`."""
    network, digits = nas.load_model(trained).network, nas.load_dataset("digits")
    ones = np.flatnonzero(digits.test.labels.numpy() == 1)
    empty = np.array([], dtype=np.int64)
    for words, given in {
        "a module needs data": (network, None),
        "the test images of digits are all of one class": (trained, replace(digits, test=digits.test.subset(ones))),
        "digits has no training images": (trained, replace(digits, train=digits.train.subset(empty))),
        "the network does not take images of shape": (nn.Conv2d(3, 10, 3), digits),
        r"one output for each of the 10 classes.*gives \(1, 3\)": (nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), digits),
        "the network has 10 classes and 1 channels, digits has 9 and 1": (
            trained, replace(digits, num_classes=9, class_names=digits.class_names[:9]),
        ),
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=words) as caught:
            call(*given)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"resolution must be in 1\.\.\d+, got 0"):
        call(trained, resolution=0)


def test_data_whose_classes_have_other_names_are_refused(trained: Path, tmp_path: Path) -> None:
    """As many classes are not the same classes: each name would stand at another one's output."""
    digits = nas.load_dataset("digits")
    swapped = replace(digits, class_names=("1", "0", *digits.class_names[2:]))
    message = "output 0 of the network was trained for class '0', class 0 of digits is '1'"
    for call in (nas.nbdt, nas.tree_outputs, nas.filter_importance):
        with pytest.raises(UserError, match=message):
            call(trained, swapped)
    with pytest.raises(UserError, match=message):
        train_nbdt(next(trained.parent.glob("arch/*.json")), swapped, tree=trained, epochs=1)


def test_nothing_is_written_for_a_network_that_gives_no_numbers(tmp_path: Path) -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(64, 10)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.head(images.flatten(1))
            return logits.where(images.flatten(1).sum(1, keepdim=True) > 0, torch.nan)

    with pytest.raises(UserError, match=r"outputs for \d+ of 360 images are not finite"):
        nas.nbdt(Broken(), "digits", resolution=8, out=tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_training_for_the_tree_of_the_weights_it_starts_from(trained: Path, tmp_path: Path) -> None:
    """Of a checkpoint as of a run folder; a run folder that was trained for a tree has that one."""
    network, common = next(trained.parent.glob("arch/*.json")), {"epochs": 1, "seed": 1}
    expected = nas.nbdt(trained, names=False).hierarchy.children
    for name, weights in {"folder": trained, "file": trained / "model.pt"}.items():
        train_nbdt(network, "digits", pretrained=weights, out=tmp_path / name, **common)
        assert Hierarchy.load(tmp_path / name / "hierarchy.json").children == expected
    train_nbdt(network, "digits", tree="random", out=tmp_path / "random", **common)
    train_nbdt(network, "digits", tree=tmp_path / "random", out=tmp_path / "again", **common)
    trees = [(tmp_path / name / "hierarchy.json").read_text() for name in ("random", "again")]
    assert trees[0] == trees[1]
    assert nas.nbdt(trained, tree=tmp_path / "random", names=False).hierarchy.to_json() == json.loads(trees[0])


def test_synsets_say_what_names_do_not(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network, digits = nas.load_model(trained).network, nas.load_dataset("digits")
    meanings = ("dog", "cat", "truck", "car", "ship", "frog", "horse", "bird", "deer", "airplane")
    renamed = replace(digits, class_names=tuple(f"Klasse{i}" for i in range(10)))
    synsets = dict(zip(renamed.class_names, meanings, strict=True))
    side = nas.load_model(trained).facts.resolution
    with pytest.raises(UserError, match="not in WordNet"):
        nas.nbdt(network, renamed, tree="wordnet", resolution=side)
    tree = nas.nbdt(network, renamed, tree="wordnet", synsets=synsets, resolution=side).hierarchy
    assert tree.classes == renamed.class_names and all(tree.names)
    assert any(sorted(tree.leaves_of(node)) == [2, 3] for node in range(10, tree.nodes)), "truck and car"
    file = tmp_path / "synsets.tsv"
    file.write_text("".join(f"{i}\t{meaning}\n" for i, meaning in enumerate(meanings)))
    assert run(["nbdt", str(trained), "--tree", "wordnet", "--synsets", str(file), "--out", str(tmp_path / "o")]) == 0
    assert Hierarchy.load(tmp_path / "o" / "hierarchy.json").children == tree.children
    train = ["nbdt", "train", str(next(trained.parent.glob("arch/*.json"))), "--data", "digits", "--epochs", "1"]
    assert run([*train, "--tree", "wordnet", "--synsets", str(file), "--out", str(tmp_path / "t")]) == 0
    assert Hierarchy.load(tmp_path / "t" / "hierarchy.json").children == tree.children
    capsys.readouterr()


def test_a_folder_of_ones_own_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three classes, one with markup in its name; a network of torchvision's."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 6), ("val", 3)):
        for number, name in enumerate(("ant", "<b>bee<", "tabby cat")):
            (tmp_path / "photos" / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 90, (40, 36, 3)) + 80 * number
                file = tmp_path / "photos" / part / name / f"{index}.png"
                Image.fromarray(pixels.astype(np.uint8)).save(file)
    out = tmp_path / "run"
    command = [
        "train",
        "torchvision:shufflenet_v2_x0_5",
        "--data",
        f"imagefolder:{tmp_path / 'photos'}",
        "--recipe",
        "nars",
    ]
    more = ["--epochs", "1", "--resolution", "32", "--batch-size", "8", "--threads", "1", "--out", str(out)]
    assert run([*command, *more]) == 0
    capsys.readouterr()
    assert run(["nbdt", str(out), "--threads", "1"]) == 0
    assert "tree over 3 classes: 2 inner nodes" in capsys.readouterr().out
    page = (out / "nbdt" / "page.html").read_text()
    assert "&lt;b&gt;bee&lt;" in page
    assert "<b>bee" not in page
    assert "over photos<" in page and str(tmp_path) not in page, "pages are passed on: no path of this machine's"
    assert nas.NBDT(nas.load_model(out).network, Hierarchy.load(out / "nbdt" / "hierarchy.json")).hierarchy.nodes == 5
