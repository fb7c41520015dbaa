"""`nas distill-tree`: teacher and trees on digits, from the terminal and from Python."""

import copy
import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import nas
from nas.cli.main import run
from nas.trees.soft.distilling import distill_tree
from nas.trees.soft.loss import SoftTreeLoss
from nas.trees.soft.teaching import Teacher
from nas.trees.soft.training import TREE_RECIPE, checked_tries, default_tries, train_soft_tree
from recipes.checkpoint import load_checkpoint
from recipes.evaluation import evaluate
from recipes.sources import Source
from search_spaces.errors import UserError

COMMAND = ["distill-tree", "--data", "digits", "--depth", "3", "--epochs", "3", "--threads", "1"]


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of the command on digits, its teacher trained for two epochs."""
    folder = tmp_path_factory.mktemp("distilled") / "run"
    assert run([*COMMAND, "--teacher-epochs", "2", "--out", str(folder)]) == 0
    return folder


class Stop:
    """Stops the training of a tree as Ctrl-C would, after its first epoch."""

    def __init__(self, tree: str = "labels") -> None:
        self.wanted, self.seen = ("labels", "soft_labels").index(tree), -1

    def on_step_end(self, state: Any) -> None:
        """Nothing."""

    def on_epoch_end(self, state: Any) -> None:
        if state.recipe.name == TREE_RECIPE.name and state.epoch == 0:
            self.seen += 1
        if state.recipe.name == TREE_RECIPE.name and state.epoch == 1 and self.seen == self.wanted:
            raise KeyboardInterrupt


def test_files_hold_what_was_measured(distilled: Path) -> None:
    result = json.loads((distilled / "result.json").read_text())
    data = nas.load_dataset("digits")
    for name in ("labels", "soft_labels"):
        tree = nas.SoftDecisionTree.load(distilled / name / "tree.pt")
        found = evaluate(tree, data.test, resolution=data.resolution)
        assert (result[name]["correct"], result[name]["total"]) == (found.correct, found.total)
        agreement = result[name].pop("agreement_percent")
        assert json.loads((distilled / name / "result.json").read_text()) == result[name]
        assert 0 <= agreement <= 100
        assert (distilled / name / "page.html").read_text().count("<svg") > 1
        assert len((distilled / name / "metrics.csv").read_text().splitlines()) == 4
    teacher = nas.load_model(distilled / "teacher")
    assert result["teacher"]["correct"] == evaluate(teacher.network, data.test, resolution=16).correct


def test_a_stopped_run_goes_on_to_the_same_trees(distilled: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"data": "digits", "depth": 3, "epochs": 3, "teacher_epochs": 2}
    with pytest.raises(KeyboardInterrupt):
        distill_tree(None, out=tmp_path / "run", callbacks=[Stop()], **options)
    distill_tree(None, out=tmp_path / "run", resume=True, **options)
    for name in ("labels", "soft_labels"):
        states = [load_checkpoint(folder / name / "tree.pt")["state"] for folder in (tmp_path / "run", distilled)]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[1])
    assert (tmp_path / "run" / "result.json").read_bytes() == (distilled / "result.json").read_bytes()


def test_a_trained_teacher_is_used_as_it_is(distilled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its data are the default, and its folder is the place; the same teacher and seed give the same trees."""
    command = ["distill-tree", str(distilled / "teacher"), "--depth", "3", "--epochs", "3", "--threads", "1"]
    assert run(command) == 0
    made = distilled / "teacher" / "soft_tree"
    printed = capsys.readouterr().out
    first, again = (json.loads((folder / "result.json").read_text()) for folder in (distilled, made))
    assert again == first
    for name in ("teacher", "labels", "soft_labels"):
        assert f"{first[name]['accuracy']:.2f} %" in printed
    assert not (made / "teacher").exists()
    assert run([*command, "--resume"]) == 0
    assert run([*command, "--depth", "2", "--resume"]) == 2  # another run
    assert run(command) == 2


def test_soft_labels_are_the_teacher_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the second tree is trained on: softmax(logits / temperature) of the training images."""
    from nas.trees.soft import training as soft_training

    seen: dict[str, Source] = {}

    class Seen(soft_training.SoftLabelled):
        def __init__(self, source: Source, targets: torch.Tensor) -> None:
            super().__init__(source, targets)
            seen["made"] = self

    monkeypatch.setattr(soft_training, "SoftLabelled", Seen)
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(256, 10))
    result = distill_tree(teacher, "digits", depth=2, epochs=1, temperature=2.5)
    images, targets = next(seen["made"].batches(50, resolution=16))
    assert torch.allclose(targets, torch.softmax(teacher(images) / 2.5, 1), atol=1e-6)
    assert result.out is None and set(result.trees) == {"labels", "soft_labels"}
    assert result.trees["labels"].tree.depth == 2


class Seen(SoftTreeLoss):
    """Keeps what each step is given."""

    steps: ClassVar[list[tuple[Tensor, Tensor]]] = []

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor, progress: float, /) -> Tensor:
        self.steps.append((images.clone(), targets))
        return super().__call__(model, images, targets, progress)


def test_of_augmented_images_the_teacher_is_asked_batch_by_batch() -> None:
    """Both trees see the same shifted images, one with labels, the other with the teacher's word on the shifted ones."""
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(256, 10))
    Seen.steps.clear()
    distill_tree(teacher, "digits", depth=2, epochs=2, temperature=2.5, augment=True, batch_size=128, loss=Seen())
    half = len(Seen.steps) // 2
    labelled, taught = Seen.steps[:half], Seen.steps[half:]
    assert half == 2 * (1437 // 128)
    assert not torch.equal(
        labelled[0][0].sum((0, 1)), labelled[half // 2][0].sum((0, 1))
    )  # another epoch, other images
    teacher.eval()
    for (images, labels), (shown, targets) in zip(labelled, taught, strict=True):
        assert labels.ndim == 1 and torch.equal(images, shown)
        assert torch.allclose(targets, torch.softmax(teacher(images) / 2.5, 1), atol=1e-6)
        assert not targets.requires_grad
    assert teacher[2].weight.grad is None
    stored = {
        tuple(image.flatten().tolist())
        for image in next(nas.load_dataset("digits").train.batches(1437, resolution=16))[0]
    }
    moved = sum(tuple(image.flatten().tolist()) not in stored for image in taught[0][0])
    assert moved > 64


def test_a_stopped_run_on_augmented_images_goes_on_to_the_same_trees(tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run([*COMMAND, "--teacher-epochs", "1", "--augment", "--out", str(whole)]) == 0
    options: dict[str, Any] = {"data": "digits", "depth": 3, "epochs": 3, "teacher_epochs": 1, "augment": True}
    with pytest.raises(KeyboardInterrupt):
        distill_tree(None, out=stopped, callbacks=[Stop("soft_labels")], **options)
    assert load_checkpoint(stopped / "labels" / "tree.pt") and not (stopped / "soft_labels" / "tree.pt").exists()
    distill_tree(None, out=stopped, resume=True, **options)
    for name in ("labels", "soft_labels"):
        states = [load_checkpoint(folder / name / "tree.pt")["state"] for folder in (stopped, whole)]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[1])
    assert not torch.equal(states[0]["leaves"], load_checkpoint(whole / "labels" / "tree.pt")["state"]["leaves"])


def test_another_teacher_is_another_run(tmp_path: Path) -> None:
    """Weights, resolution and temperature are told in config.json; the same ones go on."""
    torch.manual_seed(0)
    network, options = nn.Sequential(nn.Flatten(), nn.Linear(256, 10)), {"depth": 2, "epochs": 1, "augment": True}
    teacher = Teacher(network=network, resolution=16)
    train_soft_tree("digits", targets=teacher, out=tmp_path / "run", **options)  # type: ignore[arg-type]
    train_soft_tree("digits", targets=teacher, out=tmp_path / "run", resume=True, **options)  # type: ignore[arg-type]
    other = copy.deepcopy(network)
    with torch.no_grad():
        other[1].bias[3] += 1e-3
    for wrong in (Teacher(network=other, resolution=16), Teacher(network=network, resolution=16, temperature=2.0)):
        with pytest.raises(UserError, match="targets"):
            train_soft_tree("digits", targets=wrong, out=tmp_path / "run", resume=True, **options)  # type: ignore[arg-type]


def test_a_teacher_of_larger_images_gets_them_larger() -> None:
    """Each 2x2 pixels become 4x4 by bilinear interpolation: a constant image stays what it is."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    images = torch.full((2, 1, 2, 2), 0.5)
    found = Teacher(network=network, resolution=4, temperature=0.5)(images)
    assert torch.allclose(found, torch.softmax(network(torch.full((2, 1, 4, 4), 0.5)) / 0.5, 1), atol=1e-6)
    with pytest.raises(UserError, match="resolution must be >= 1 pixel, got 0"):
        Teacher(network=network, resolution=0)
    with pytest.raises(UserError, match="temperature must be > 0, got -1"):
        Teacher(network=network, resolution=4, temperature=-1)
    for wrong, message in (
        (nn.Linear(3, 10), "does not take digits's images of 16 pixels"),
        (nn.Sequential(nn.Flatten(), nn.Linear(256, 9)), r"digits's 10 classes.*shape \(9,\)"),
    ):
        with pytest.raises(UserError, match=message):
            train_soft_tree("digits", targets=Teacher(network=wrong, resolution=16), depth=2)


def test_trees_learn_digits() -> None:
    """Far above chance after a few epochs: a guard against a loss of the wrong sign."""
    assert train_soft_tree("digits", depth=4, epochs=20, batch_size=32, lr=2e-3).evaluation.accuracy > 60


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--depth", "0"], "depth must be in 1..12, got 0"),
        (["--depth", "30"], "depth must be in 1..12, got 30"),
        (["--beta", "0"], "beta must be > 0"),
        (["--penalty", "-1"], "penalty must be >= 0"),
        (["--form", "expectd"], "did you mean 'expected'?"),
        (["--temperature", "0"], "temperature must be > 0"),
        (["--data", "mnits"], "unknown dataset 'mnits'"),
        (["--epochs", "0"], "epochs must be"),
        (["no/such/run"], "teacher 'no/such/run' is no run folder of nas train"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*COMMAND, "--out", str(tmp_path / "run"), *options]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_tree_cannot_teach(distilled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for tree in (distilled / "labels", distilled / "labels" / "tree.pt"):
        assert run(["distill-tree", str(tree), "--out", str(tmp_path / "run")]) == 2
        assert f"{tree} is a soft tree and cannot teach" in capsys.readouterr().err
    assert run(["distill-tree", str(distilled), "--out", str(tmp_path / "run")]) == 2
    assert f"{distilled} holds trees; give their teacher: {distilled / 'teacher'}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_place_is_needed_without_a_teacher(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(COMMAND) == 2
    assert "--out" in capsys.readouterr().err


def test_networks_and_data_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    data = nas.load_dataset("digits")
    regression = nn.Sequential(nn.Flatten(), nn.Linear(256, 1))
    with pytest.raises(UserError, match=r"must be a classifier of digits's 10 classes.*shape \(1,\)"):
        distill_tree(regression, data, out=tmp_path / "run", epochs=1)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="does not take digits's images"):
        distill_tree(nn.Linear(3, 10), data, epochs=1)
    import dataclasses

    only = data.train.subset(np.flatnonzero(data.train.labels.numpy() == 3))
    with pytest.raises(UserError, match="at least 2 classes"):
        distill_tree(regression, dataclasses.replace(data, train=only), epochs=1)
    for wrong in (torch.ones(3, 10) / 10, torch.ones(len(data.train), 10)):
        with pytest.raises(UserError, match="targets must be"):
            train_soft_tree(data, targets=wrong)
    with pytest.raises(UserError, match="mixup of a soft tree's recipe must be 0"):
        distill_tree(regression, data, epochs=1, mixup=0.2)
    with pytest.raises(UserError, match="clip_grad_norm of a soft tree's recipe must be null, got 1"):
        train_soft_tree(data, epochs=1, clip_grad_norm=1.0)


def test_of_several_tries_the_one_that_learned_best_is_kept(tmp_path: Path) -> None:
    """By the training images, never by test images; another number of tries is another run."""
    common: dict[str, Any] = {"depth": 2, "epochs": 2, "seed": 5}
    kept = train_soft_tree("digits", tries=3, out=tmp_path / "run", **common)
    data = nas.load_dataset("digits")
    shares = kept.training_percent
    assert len(set(shares)) == 3
    assert evaluate(kept.tree, data.train, resolution=16).accuracy == pytest.approx(max(shares))
    assert json.loads((tmp_path / "run" / "result.json").read_text())["training_accuracies"] == list(shares)
    with pytest.raises(UserError, match="tries"):
        train_soft_tree("digits", tries=2, out=tmp_path / "run", resume=True, **common)
    for call in (train_soft_tree, lambda data, **given: distill_tree(None, data, **given)):
        for wrong in (0, 2.5, True):
            with pytest.raises(UserError, match=f"tries must be a whole number >= 1, got {wrong}"):
                call("digits", tries=wrong, **common)
        with pytest.raises(UserError, match=r"1024 tries of depth 12 on digits have 1,073,479,680 weights"):
            call("digits", tries=1024, **{**common, "depth": 12})


def test_deep_trees_are_tried_less_often() -> None:
    assert [default_tries(depth) for depth in (1, 4, 5, 8, 9, 12)] == [32, 32, 16, 2, 1, 1]
    assert len(train_soft_tree("digits", depth=6, epochs=1).training_percent) == 8


def test_trees_on_large_images_are_tried_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tree of depth 4 on digits has 15 x 256 weights; a single one is always possible."""
    data = nas.load_dataset("digits")
    for room, tries in ((100, 1), (3 * 15 * 256, 3), (40 * 15 * 256, 32)):
        monkeypatch.setattr("nas.trees.soft.training.MAX_WEIGHTS", room)
        assert checked_tries(data, 4, None) == tries
        assert checked_tries(data, 4, 1) == 1
        with pytest.raises(UserError, match="41 tries of depth 4 on digits have 157,440 weights"):
            checked_tries(data, 4, 41)
