"""Input that is wrong in odd ways: one line, exit code 2, and nothing half written."""

import json
import math
import os
import sys
from pathlib import Path

import pytest
import torch

from nas.cli.main import run
from nas.exporting.comparison import compare
from nas.exporting.formats import Task, load_onnx, make_onnx
from nas.loading import load_model, load_space, save_model
from recipes.checkpoint import load_checkpoint, save_checkpoint
from search_spaces.errors import UserError
from search_spaces.network import Network, build
from search_spaces.serialisation import to_plain

SPACE = str(Path(__file__).with_name("tiny_space.yaml"))
FACTS = {"data": "digits", "num_classes": 3, "in_channels": 1, "resolution": 8, "class_names": ["a", "b", "c"]}
CONSTANT = "resolutions: 8\nstem: 8\nrows: [{block: ir_k3, expansion: 2, width: 8}]\nhead: 16\n"


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a refused command."""
    capsys.readouterr()
    assert run(list(arguments)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def small_network() -> Network:
    space = load_space(SPACE)
    return build(space.decode([0] * len(space)), 3, 1, seed=0)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    space = load_space(SPACE)
    save_model(tmp_path / "model.pt", small_network(), space.decode([0] * len(space)), FACTS)
    return tmp_path / "model.pt"


def test_the_model_of_these_tests_is_a_good_one(model: Path) -> None:
    loaded = load_model(model)
    assert to_plain(loaded.facts) == FACTS and not loaded.network.training


@pytest.mark.parametrize("buffer", ["running_var", "running_mean", "weight"])
def test_models_with_nan_are_refused(model: Path, buffer: str, capsys: pytest.CaptureFixture[str]) -> None:
    stored = load_checkpoint(model)
    name = next(key for key in stored["state"] if key.endswith(buffer))
    stored["state"][name][0] = math.nan
    save_checkpoint(model, stored)
    assert f"{name} holds values that are not finite" in refusal(capsys, "export", str(model))
    assert [path.name for path in model.parent.iterdir()] == ["model.pt"]


def test_logits_that_are_not_finite_are_no_agreement(tmp_path: Path) -> None:
    network = small_network().eval()
    images = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    (tmp_path / "model.onnx").write_bytes(make_onnx(Task(network=network, shape=(1, 8, 8))).content)
    run = load_onnx(tmp_path / "model.onnx")
    assert compare(network, run, images, (1, 2), "ONNX").max_difference < 1e-4
    with pytest.raises(UserError, match="logits of ONNX are not finite"):
        compare(network, lambda part: run(part) * math.nan, images, (1, 2), "ONNX")
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.fill_(math.nan)
    with pytest.raises(UserError, match="logits of PyTorch are not finite"):
        compare(network, run, images, (3,), "ONNX")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": torch.ones(3)}, "schema must be 1, got tensor([1., 1., 1.])"),
        ({"schema": True}, "schema must be 1, got True"),
        ({"num_classes": 0}, "num_classes must be in 1..1000000, got 0"),
        ({"num_classes": 10**7}, "num_classes must be in 1..1000000, got 10000000"),
        ({"num_classes": math.inf}, "num_classes must be int, got inf"),
        ({"num_classes": "3"}, "num_classes must be int, got '3'"),
        ({"num_classes": 4}, "class_names must be 4 names, got 3"),
        ({"in_channels": 1025}, "in_channels must be in 1..1024, got 1025"),
        ({"in_channels": 2}, "damaged"),
        ({"resolution": 0}, "resolution must be in 1..4096, got 0"),
        ({"resolution": 4097}, "resolution must be in 1..4096, got 4097"),
        ({"class_names": None}, "class_names must be a list, got None"),
        ({"data": 7}, "data must be str, got 7"),
        ({"unknown": 1}, "unknown key 'unknown'"),
        ({"state": torch.ones(3)}, "damaged"),
        ({"state": {}}, "it holds 0 weights"),
        ({"architecture": None}, "schema must be 1"),
    ],
)
def test_damaged_models(model: Path, change: dict[str, object], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    save_checkpoint(model, load_checkpoint(model) | change)
    line = refusal(capsys, "export", str(model))
    assert words in line and str(model) in line


def test_models_without_a_fact(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for key in (*FACTS, "state", "architecture"):
        stored = load_checkpoint(model)
        del stored[key]
        save_checkpoint(model.with_name("other.pt"), stored)
        assert f"key '{key}' is missing" in refusal(capsys, "export", str(model.with_name("other.pt")))


@pytest.mark.parametrize("threads", ["0", "-1", "100000", str(4 * (os.cpu_count() or 1) + 1)])
def test_threads(threads: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(
        capsys, "search", "--space", SPACE, "--data", "digits", "--flops", "30K", "--threads", threads,
        "--out", str(tmp_path / "run"),
    )  # fmt: skip
    assert f"threads must be in 1..{4 * (os.cpu_count() or 1)}" in line and f"got {threads}" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def make():\n    return 1 / 0\n", "ZeroDivisionError: division by zero"),
        ("def make():\n    return {}['width']\n", "KeyError: 'width'"),
        ("def make(:\n", "SyntaxError: "),
        ("import sys\n\ndef make():\n    sys.exit('two\\nlines')\n", "SystemExit: two"),
        ("def make():\n    raise ValueError()\n", "ValueError: ValueError"),
        ("def make():\n    return 3\n", "returned int, not a SearchSpace"),
        ("make = 3\n", "TypeError: "),
        ("", "AttributeError: "),
    ],
)
def test_functions_that_fail(
    code: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_space", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "own_space.py").write_text(code)
    assert words in refusal(capsys, "spaces", "show", "own_space:make")
    sys.modules.pop("own_space", None)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seed", "-1"], "seed must be >= 0, got -1"),
        (["--classes", "0"], "num_classes must be in 1..1000000, got 0"),
        (["--classes", "-5"], "num_classes must be in 1..1000000, got -5"),
        (["--in-channels", "99999999999999999999"], "in_channels must be in 1..1024, got 99999999999999999999"),
        (["--n", "4000"], "tiny has only 3456 different networks, 4000 asked for"),
        (["--flops", "1"], "have flops at most 1; the sample had flops"),
    ],
)
def test_samples_out_of_range(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in refusal(capsys, "spaces", "sample", SPACE, "--out", str(tmp_path / "new"), *arguments)
    assert not (tmp_path / "new").exists()


def test_spaces_with_impossible_images(capsys: pytest.CaptureFixture[str]) -> None:
    assert "num_classes must be in 1..1000000, got 0" in refusal(capsys, "spaces", "--classes", "0")
    assert "in_channels must be in 1..1024, got -3" in refusal(capsys, "spaces", "--in-channels", "-3")


def test_samples_are_written_all_or_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("kept")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert "file" in refusal(capsys, "spaces", "sample", SPACE, "--out", str(out))
    (tmp_path / "random2.json").write_text("mine")
    assert "random2.json is there already" in refusal(
        capsys, "spaces", "sample", SPACE, "--n", "4", "--out", str(tmp_path)
    )
    assert {path.name for path in tmp_path.iterdir()} == {"file", "random2.json"}
    assert (tmp_path / "random2.json").read_text() == "mine" and (tmp_path / "file").read_text() == "kept"
    assert run(["spaces", "sample", SPACE, "--n", "2", "--out", str(tmp_path / "a" / "b")]) == 0
    assert {path.name for path in (tmp_path / "a" / "b").iterdir()} == {"random0.json", "random1.json"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tmp_path.chmod(0o500)
    assert "Permission denied" in refusal(capsys, "spaces", "sample", SPACE, "--out", str(tmp_path / "new"))
    tmp_path.chmod(0o700)


def test_a_space_of_constants_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "one.yaml"
    path.write_text(CONSTANT)
    assert run(["spaces", "show", str(path)]) == 0
    assert "10^0.0 networks, 0 variables" in capsys.readouterr().out
    assert run(["spaces", "sample", str(path), "--out", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "random0.json").read_text())["resolution"] == 8
    line = refusal(capsys, "spaces", "sample", str(path), "--n", "2", "--out", str(tmp_path / "two"))
    assert "one has only 1 different networks, 2 asked for" in line


def test_a_gpu_that_is_too_small_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def too_much(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nSee documentation")

    monkeypatch.setattr("nas.searching.search", too_much)
    line = refusal(capsys, "search", "--space", "digits", "--data", "digits", "--flops", "0.2M")
    assert line == "nas: out of GPU memory; try a smaller --batch-size, in a search --recompute"


@pytest.mark.parametrize(("local_rank", "lines"), [("0", 1), ("1", 0)])
def test_the_first_process_of_every_machine_says_what_is_wrong_there(
    local_rank: str, lines: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Data may be missing on one of them."""
    for name, value in (("RANK", "2"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", local_rank), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert run(["search", "--space", "digits", "--data", "imagefolder:/nowhere", "--flops", "0.2M"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == lines
