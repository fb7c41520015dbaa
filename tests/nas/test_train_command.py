"""`nas train` of published and torchvision's networks: image folders, torchrun, teachers, pretrained weights."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nas.cli.main import run
from nas.designs import TorchvisionModel, build_design
from nas.loading import load_model
from nas.training import train
from recipes.recipe import RECIPES
from search_spaces.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SMALL = "torchvision:shufflenet_v2_x0_5"


def write_images(folder: Path, count: int, names: tuple[str, ...] = ("ant", "bee")) -> None:
    rng = np.random.default_rng(0)
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 120, (40, 36, 3)) + 100 * number
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{index}.png")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    write_images(folder / "train", 12)
    write_images(folder / "val", 5)
    return folder


@pytest.fixture(scope="module")
def taught(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a torchvision model trained by the searched recipe."""
    out = tmp_path_factory.mktemp("runs") / "taught"
    command = ["train", SMALL, "--data", f"imagefolder:{photos}", "--recipe", "nars", "--epochs", "1"]
    assert run([*command, "--resolution", "32", "--batch-size", "8", "--threads", "1", "--out", str(out)]) == 0
    return out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert run([*arguments, "--threads", "1"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_torchvision_models_are_trained_and_reloaded(taught: Path) -> None:
    config = json.loads((taught / "config.json").read_text())["config"]
    assert config["architecture"] == SMALL and config["recipe"]["name"] == "nars" and config["recipe"]["auto_augment"]
    assert not (taught / "architecture.json").exists()
    model = load_model(taught)
    assert model.design == TorchvisionModel("shufflenet_v2_x0_5")
    assert model.facts.class_names == ("ant", "bee") and model.facts.resolution == 32
    with torch.no_grad():
        assert model.network(torch.zeros(2, 3, 32, 32)).shape == (2, 2)
    result = json.loads((taught / "result.json").read_text())
    assert result["total"] == 10 and result["params_all"] == sum(p.numel() for p in model.network.parameters())


def test_torchrun_trains_a_published_network(photos: Path, tmp_path: Path) -> None:
    """Two processes, one run folder; the second start goes on and changes nothing."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "nas", "train",
        "fbnetv2_f1", "--data", f"imagefolder:{photos}", "--resolution", "32", "--epochs", "1", "--batch-size", "8",
        "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    options = {"env": environment, "cwd": ROOT, "capture_output": True, "text": True, "timeout": 300}
    done = subprocess.run(command, check=False, **options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("written to") == 1 and done.stderr.count("train epoch 1/1") == 1, "one process speaks"
    assert json.loads((tmp_path / "run" / "result.json").read_text())["total"] == 10
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 2
    before = load_model(tmp_path / "run").network.state_dict()
    done = subprocess.run(command, check=False, **options)
    assert done.returncode != 0 and [line for line in done.stderr.splitlines() if line.startswith("nas:")] == [
        f"nas: {tmp_path / 'run'} already holds a run; use --resume to continue it or choose another folder"
    ]
    done = subprocess.run([*command, "--resume"], check=False, **options)
    assert done.returncode == 0, done.stderr
    after = load_model(tmp_path / "run").network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_teacher_changes_what_is_learnt(photos: Path, taught: Path) -> None:
    recipe = RECIPES["cifar10-small"].replace(batch_size=8).with_epochs(1)
    states = []
    for teacher in (None, taught, load_model(taught).network):
        result = train("fbnetv2_f1", f"imagefolder:{photos}", recipe=recipe, resolution=32, teacher=teacher)
        states.append(result.model.state_dict()["classifier.weight"])
    assert not torch.equal(states[0], states[1]) and torch.equal(states[1], states[2])


def test_a_teacher_by_name_needs_weights(
    photos: Path, taught: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "fbnetv2_f1", "--data", f"imagefolder:{photos}", "--out", str(tmp_path / "x"), "--epochs", "1"]
    command += ["--resolution", "32", "--batch-size", "8"]
    line = refused(capsys, *command, "--teacher", SMALL)
    assert "is no run folder of nas train; a teacher given by name needs teacher weights" in line
    line = refused(capsys, *command, "--recipe", "fbnetv3-distilled")
    assert line == "nas: recipe fbnetv3-distilled learns from a teacher (distillation 0.8); give one, or distillation 0"
    torch.save(load_model(taught).network.state_dict(), tmp_path / "teacher.pth")
    given = ["--teacher", SMALL, "--teacher-weights", str(tmp_path / "teacher.pth")]
    assert run([*command, *given, "--threads", "1"]) == 0
    config = json.loads((tmp_path / "x" / "config.json").read_text())["config"]
    assert config["recipe"]["distillation"] == 0.8
    assert config["teacher"] == f"{SMALL} with {tmp_path / 'teacher.pth'}"
    torch.save(build_design(TorchvisionModel("shufflenet_v2_x0_5"), 5).state_dict(), tmp_path / "other.pth")
    given = ["--teacher", SMALL, "--teacher-weights", str(tmp_path / "other.pth")]
    line = refused(capsys, *command[:4], "--out", str(tmp_path / "y"), *given)
    assert "is of 5 classes, not 2: the classifier is left fresh, but all weights are needed here" in line
    digits = ["train", "fbnetv2_f1", "--data", "digits", "--out", str(tmp_path / "y"), "--teacher", str(taught)]
    assert "has 2 classes and 3 channels, digits has 10 and 1" in refused(capsys, *digits)
    assert not (tmp_path / "y").exists()


def test_pretrained_weights(
    photos: Path, taught: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a run, of a state dict, with a fresh classifier for other classes; a rate of almost 0 keeps them."""
    still = RECIPES["cifar10-small"].replace(batch_size=8, lr=1e-12, weight_decay=0.0).with_epochs(1)
    data = f"imagefolder:{photos}"
    started = train(SMALL, data, recipe=still, resolution=32, pretrained=taught)
    given = load_model(taught).network.state_dict()
    for name, tensor in started.model.state_dict().items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(tensor, given[name], rtol=0, atol=1e-6)
    torch.save({"state_dict": build_design(TorchvisionModel("shufflenet_v2_x0_5"), 5).state_dict()}, tmp_path / "a.pth")
    with caplog.at_level(logging.WARNING):
        train(SMALL, data, recipe=still, resolution=32, pretrained=tmp_path / "a.pth")
    assert caplog.messages == [f"{tmp_path / 'a.pth'} is of 5 classes, not 2: the classifier is left fresh"]
    command = ["train", "--data", data, "--out", str(tmp_path / "x"), "--epochs", "1", "--pretrained"]
    line = refused(capsys, *command, str(tmp_path / "a.pth"), "torchvision:resnet18")
    assert "a.pth is of another network: conv1.weight" in line
    line = refused(capsys, *command, str(taught), "fbnetv3_a")
    assert "nas:" in line and str(taught) in line
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["torchvision:resnet51", "--data", "digits"], "torchvision has no classifier 'resnet51'"),
        (["torchvision:resnet18", "--data", "digits"], "takes images of 3 channels, the data has 1"),
        (["fbnetv3_z", "--data", "digits"], "unknown network 'fbnetv3_z'; did you mean 'fbnetv3_"),
        (["fbnetv3_a", "--data", "digits", "--recipe", "narz"], "unknown recipe 'narz'; did you mean 'nars'?"),
        (["fbnetv3_a", "--data", "digits", "--teacher", "runs/none"], "teacher 'runs/none' is no run folder"),
        (["fbnetv3_a", "--data", "digits", "--distillation", "2"], "distillation must be in [0, 1], got 2.0"),
        (["fbnetv3_a", "--data", "digits", "--pretrained", "none.pth"], "cannot read none.pth"),
        (["fbnetv3_a", "--data", "digits", "--resolution", "0"], "resolution must be in 1..4096, got 0"),
    ],
)
def test_wrong_train(arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert words in refused(capsys, "train", *arguments, "--out", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_resolution_is_checked_for_torchvision(photos: Path) -> None:
    with pytest.raises(UserError, match=r"resolution must be in 1..4096, got -3"):
        train(SMALL, f"imagefolder:{photos}", resolution=-3)
