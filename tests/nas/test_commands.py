"""The command line as a user meets it: the whole way once, and every kind of wrong input in one line with exit code 2."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from nas.cli.main import run
from nas.loading import load_architecture, load_model
from recipes.checkpoint import load_checkpoint
from search_spaces.cost import cost

ROOT = Path(__file__).resolve().parents[2]
SPACE = str(Path(__file__).with_name("tiny_space.yaml"))
SEARCH = ["search", "--space", SPACE, "--data", "digits", "--flops", "30K", "--threads", "1"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a search, and a training of what it found."""
    folder = tmp_path_factory.mktemp("runs")
    assert run([*SEARCH, "--epochs", "2", "--out", str(folder / "search")]) == 0
    train = ["train", str(folder / "search"), "--data", "digits", "--epochs", "1", "--threads", "1"]
    assert run([*train, "--out", str(folder / "train")]) == 0
    return folder


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str], *words: str) -> str:
    """Exit code 2 and one line on stderr that holds all ``words``."""
    capsys.readouterr()
    assert run(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    for word in words:
        assert word in lines[0]
    return lines[0]


def test_search_leaves_a_record(finished: Path) -> None:
    folder = finished / "search"
    assert {path.name for path in folder.iterdir()} >= {
        "config.json", "metrics.csv", "alpha.csv", "checkpoint.pt", "architecture.json", "result.json"
    }  # fmt: skip
    result = json.loads((folder / "result.json").read_text())
    exact = cost(load_architecture(folder), num_classes=10, in_channels=1)
    assert result["cost"] == exact._asdict()
    assert exact.flops <= 30_000
    header = (folder / "metrics.csv").read_text().splitlines()[0]
    assert {"expected_flops", "argmax_flops", "tau", "cost_weight"} <= set(header.split(","))
    config = json.loads((folder / "config.json").read_text())
    assert config["seed"] == 0
    assert torch.__version__.startswith(config["versions"]["torch"])


def test_block_types_with_one_set_of_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*SEARCH, "--epochs", "1", "--out", str(tmp_path / "run")]
    assert run([*arguments, "--share-blocks"]) == 0
    stored = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert stored["search"]["share_blocks"] is True
    refused(capsys, [*arguments, "--no-share-blocks", "--resume"], "share_blocks was True, now False")


def test_export_equals_pytorch_with_any_batch(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", str(finished / "train"), "--format", "onnx"]) == 0
    import numpy as np
    import onnxruntime

    model = load_model(finished / "train")
    session = onnxruntime.InferenceSession((finished / "train" / "model.onnx").read_bytes())
    side = model.facts.resolution
    for batch in (1, 7):
        images = torch.rand(batch, model.facts.in_channels, side, side)
        (logits,) = session.run(None, {"images": images.numpy()})
        with torch.no_grad():
            assert np.abs(logits - model.network(images).numpy()).max() < 1e-4


def test_finished_runs_can_be_resumed(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (finished / "search" / "architecture.json").read_bytes()
    assert run([*SEARCH, "--epochs", "2", "--out", str(finished / "search"), "--resume"]) == 0
    assert (finished / "search" / "architecture.json").read_bytes() == before


def test_several_budgets_are_several_searches(tmp_path: Path) -> None:
    arguments = [argument if argument != "30K" else "25K,20K:40K" for argument in SEARCH]
    assert run([*arguments, "--epochs", "1", "--out", str(tmp_path / "both")]) == 0
    assert {path.name for path in (tmp_path / "both").iterdir()} == {"25K-flops", "20K-40K-flops"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--space", "digitz"], ["unknown space 'digitz'", "did you mean 'digits'?"]),
        (["--data", "cifar11"], ["cifar11", "cifar10"]),
        (["--flops", "1K"], ["no network is that small", "tiny", " to "]),
        (["--flops", "9G"], ["no network is that large", "tiny", " to "]),
        (["--flops", "12Q"], ["'12Q' is not a quantity"]),
        (["--params", "1M"], ["one budget"]),
        (["--latency-ms", "8"], ["--latency-ms"]),
        (["--epochs", "0"], ["epochs must be >= 1, got 0"]),
        (["--epochs", "many"], ["many"]),
        (["--lr", "1e30"], ["loss is nan", "--lr"]),
        (["--tau-decay", "1.5"], ["tau_decay must be in (0, 1], got 1.5"]),
        (["--mask-tau", "0"], ["mask_tau must be > 0, got 0.0"]),
        (["--device", "cuda:99"], ["cuda:99"]),
        (["--threads", "0"], ["threads must be in 1.."]),
        (["--seed", "-1"], ["seed must be >= 0"]),
        (["--no-such-option"], ["--no-such-option"]),
    ],
)
def test_wrong_search(change: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if "--device" in change and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    out = tmp_path / "run"
    refused(capsys, [*SEARCH, "--epochs", "1", "--out", str(out), *change], *words)
    assert not out.exists(), "nothing half written"


def test_missing_data_set_names_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["search", "--space", "cifar", "--data", "cifar10", "--data-dir", str(tmp_path), "--flops", "6M"]
    refused(capsys, arguments, "nas data get cifar10", str(tmp_path))


def test_folder_of_another_run(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(finished / "search")]
    refused(capsys, [*SEARCH, "--epochs", "2", *out], "--resume")
    refused(capsys, [*SEARCH, "--epochs", "3", *out, "--resume"], "epochs was 2, now 3")
    refused(capsys, [*SEARCH, "--epochs", "2", "--seed", "4", *out, "--resume"], "seed was 0, now 4")


def copied(source: Path, target: Path) -> Path:
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_changed_space_is_another_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A stride is no searched variable, but it makes another space."""
    space = tmp_path / "mine.yaml"
    space.write_text(Path(SPACE).read_text())
    command = ["search", "--space", str(space), "--data", "digits", "--flops", "30K", "--threads", "1", "--epochs", "1"]
    assert run([*command, "--out", str(tmp_path / "run")]) == 0
    space.write_text(space.read_text().replace("stride: 2", "stride: 1"))
    refused(capsys, [*command, "--out", str(tmp_path / "run"), "--resume"], "stride was 2, now 1")


def test_budgets_are_checked_before_the_first_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for budgets, words in (("30K,9G", "no network is that large"), ("30K,30K", "alike")):
        arguments = [argument if argument != "30K" else budgets for argument in SEARCH]
        refused(capsys, [*arguments, "--epochs", "1", "--out", str(tmp_path / "both")], words)
        assert not (tmp_path / "both").exists()


def test_damaged_checkpoint(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    resume = [*SEARCH, "--epochs", "2", "--resume", "--out"]
    folder = copied(finished / "search", tmp_path / "truncated")
    checkpoint = folder / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    again = copied(folder, tmp_path / "again")
    assert run([*resume, str(again)]) == 0, "the checkpoint before it is there"
    assert (again / "alpha.csv").read_text() == (finished / "search" / "alpha.csv").read_text()
    (folder / "checkpoint-previous.pt").write_bytes(b"")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    refused(capsys, [*resume, str(folder)], "checkpoint.pt", "damaged")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

    folder = copied(finished / "search", tmp_path / "nan")
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    state["supergraph"]["alpha"][0] = float("nan")
    torch.save(state, folder / "checkpoint.pt")
    refused(capsys, [*resume, str(folder)], "checkpoint.pt", "not finite")

    folder = copied(finished / "search", tmp_path / "evil")
    trap = tmp_path / "trap"
    for path in folder.glob("checkpoint*.pt"):
        path.write_bytes(pickle.dumps({"schema": 1, "history": Evil(trap)}))
    refused(capsys, [*resume, str(folder)], "checkpoint.pt", "damaged")
    assert not trap.exists()


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


def test_files_run_no_code(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trap = tmp_path / "trap"
    model = tmp_path / "model.pt"
    model.write_bytes(pickle.dumps({"schema": 1, "state": Evil(trap)}))
    refused(capsys, ["export", str(model)], "model.pt")
    torch.save({"schema": 1, "state": Evil(trap)}, model)
    refused(capsys, ["export", str(model)], "model.pt")
    space = tmp_path / "space.yaml"
    space.write_text(f"resolutions: !!python/object/apply:os.system ['touch {trap}']\nstem: 8\n")
    refused(capsys, ["spaces", "show", str(space)], "space.yaml, line 1")
    assert not trap.exists()


def test_wrong_space_file_names_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = tmp_path / "mine.yaml"
    space.write_text(Path(SPACE).read_text().replace("ir_k5,", "ir_k7,"))
    refused(capsys, ["spaces", "show", str(space)], "mine.yaml, line 9", "ir_k7")


def test_wrong_architecture(tmp_path: Path, capsys: pytest.CaptureFixture[str], finished: Path) -> None:
    path = tmp_path / "net.json"
    data = json.loads((finished / "search" / "architecture.json").read_text())
    data["blocks"][0]["kernel"] = 4
    path.write_text(json.dumps(data))
    train = ["train", str(path), "--data", "digits", "--out", str(tmp_path / "out")]
    refused(capsys, train, "net.json", "kernel", "odd", "4")
    path.write_text("{")
    refused(capsys, train, "net.json", "not valid JSON")
    refused(
        capsys, ["train", str(tmp_path / "none.json"), "--data", "digits", "--out", str(tmp_path / "out")], "none.json"
    )
    refused(
        capsys, ["train", str(finished / "search"), "--data", "digits", "--recipe", "digitz", "--out", "x"], "digits"
    )
    refused(capsys, ["export", str(finished / "search")], "nas train")
    refused(
        capsys, ["train", "fbnetv3_z", "--data", "digits", "--out", str(tmp_path / "out")], "did you mean 'fbnetv3_"
    )
    assert not (tmp_path / "out").exists()


def test_corrupt_image_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    for split in ("train", "val"):
        for label in ("cat", "dog"):
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for index in range(8):
                Image.new("RGB", (20, 20), (30 * index, 0, 0)).save(folder / f"{index}.png")
    bad = tmp_path / "images" / "train" / "dog" / "3.png"
    bad.write_bytes(bad.read_bytes()[:40])
    data = f"imagefolder:{tmp_path / 'images'}"
    arguments = ["search", "--space", SPACE, "--data", data, "--flops", "30K", "--epochs", "1", "--batch-size", "8"]
    refused(capsys, [*arguments, "--out", str(tmp_path / "run")], "3.png")


def test_spaces_are_listed_and_sampled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["spaces"]) == 0
    listing = capsys.readouterr().out
    for name in ("digits", "cifar", "fbnetv2-f", "fbnetv2-p", "fbnetv2-l", "fbnetv3"):
        assert name in listing
    sample = [
        "spaces",
        "sample",
        "digits",
        "--flops",
        "0.18M:0.2M",
        "--n",
        "3",
        "--classes",
        "10",
        "--in-channels",
        "1",
    ]
    assert run([*sample, "--out", str(tmp_path)]) == 0
    for index in range(3):
        flops = cost(load_architecture(tmp_path / f"random{index}.json"), num_classes=10, in_channels=1).flops
        assert 180_000 <= flops <= 200_000


def test_help_is_quick_and_imports_no_torch() -> None:
    code = "import sys; from nas.cli.main import run; run(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "search" in done.stdout


def test_killed_search_resumes_to_the_same_result(tmp_path: Path) -> None:
    """kill -9 in the middle of a real process; then --resume; compared with an undisturbed run."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "nas", *SEARCH, "--epochs", "5", "--out"]
    subprocess.run([*command, str(tmp_path / "whole")], cwd=ROOT, env=environment, check=True, capture_output=True)
    with subprocess.Popen(
        [*command, str(tmp_path / "cut")], cwd=ROOT, env=environment, stderr=subprocess.PIPE
    ) as process:
        deadline = time.monotonic() + 120
        metrics = tmp_path / "cut" / "metrics.csv"
        while time.monotonic() < deadline and (not metrics.exists() or metrics.read_text().count("\n") < 3):
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "cut" / "architecture.json").exists()
    subprocess.run(
        [*command, str(tmp_path / "cut"), "--resume"], cwd=ROOT, env=environment, check=True, capture_output=True
    )
    a, b = (load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("whole", "cut"))
    assert all(torch.equal(tensor, b["supergraph"][name]) for name, tensor in a["supergraph"].items())
    for name in ("alpha.csv", "architecture.json", "result.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


def test_networks_of_a_file_become_architectures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = tmp_path / "mine.yaml"
    facts.write_text(
        "networks:\n  mine:\n    family: v3\n    input: 64\n    lines:\n"
        "      - [conv, k3, -, c16, s2, 1, se0, hs]\n      - [mb, k5, e3, c24, s2, 1, se1, hs]\n"
    )
    assert run(["zoo", "--file", str(facts)]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("mine ")
    out = tmp_path / "new" / "net.json"
    assert run(["zoo", "show", "mine_low32", "--file", str(facts), "--out", str(out)]) == 0
    assert [block.stride for block in load_architecture(out).blocks] == [2, 1]
    refused(capsys, ["zoo", "show", "mine", "--file", str(facts), "--out", str(out)], "is there already")
    refused(capsys, ["zoo", "show", "yours", "--file", str(facts)], "unknown network 'yours'")
    refused(capsys, ["zoo", "--file", str(tmp_path / "none.yaml")], "cannot read")
