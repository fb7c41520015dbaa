"""Several processes that search together: the same as one with all images, the same in each, the same after a kill."""

import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import several_searches
import torch
from PIL import Image
from several_searches import KILLS, OWN_NOISE, VARIANTS, sampling, whole_batch
from torch import nn

import nas
from recipes.checkpoint import load_checkpoint
from recipes.distributed import Ranks, SharedError, require_equal

ROOT = Path(__file__).resolve().parents[2]


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def command(processes: int) -> list[str]:
    """`torchrun` on this machine."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]


def torchrun(*arguments: str, processes: int) -> subprocess.CompletedProcess[str]:
    """Run a script or module in several processes."""
    return subprocess.run(
        [*command(processes), *arguments],
        env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module", params=[2, 4])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What each of two or four processes ended with."""
    made = tmp_path_factory.mktemp("ranks")
    done = torchrun(str(Path(several_searches.__file__)), str(made), processes=request.param)
    assert done.returncode == 0, done.stderr
    return made


def stored(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(path, weights_only=True) for path in sorted(folder.glob("*.pt"))]


@pytest.mark.parametrize("name", VARIANTS)
def test_several_processes_do_what_one_does(folder: Path, name: str) -> None:
    """With frozen norms, or with synchronised ones against one process that has all images; not with noise of their own."""
    if name not in stored(folder)[0]:
        pytest.skip("two processes show it")
    kind, dtype, steps = VARIANTS[name]
    alone, bound = whole_batch(kind, dtype, steps, **sampling(name)), 1e-8 if dtype == torch.float64 else 1e-5
    if name == OWN_NOISE:
        assert all(float((ranked[name]["alpha"] - alone["alpha"]).abs().max()) > 1e-6 for ranked in stored(folder))
        return
    assert float(alone["alpha"].abs().max()) > (0.05 if steps is None else -1)
    for ranked in stored(folder):
        for key, tensor in alone.items():
            if tensor.is_floating_point():
                scale = float(tensor.abs().max().clamp(min=1))
                assert float((ranked[name][key] - tensor).abs().max()) <= bound * scale, key


def test_processes_stay_equal_and_a_kill_changes_nothing(folder: Path) -> None:
    ranked = stored(folder)
    for name in VARIANTS.keys() & ranked[0].keys():
        for other in ranked[1:]:
            assert all(torch.equal(other[name][key], tensor) for key, tensor in ranked[0][name].items())
    assert all(other[name] == ranked[0]["undisturbed"] for other in ranked for name in KILLS)
    whole, *killed = (load_checkpoint(folder / name / "checkpoint.pt") for name in KILLS)
    assert len(whole["alpha_history"]) == 2 and len(killed) == 2
    for checkpoint, name in zip(killed, list(KILLS)[1:], strict=True):
        assert torch.equal(checkpoint["alpha_history"], whole["alpha_history"])
        assert all(torch.equal(checkpoint["supergraph"][key], x) for key, x in whole["supergraph"].items())
        assert (folder / name / "alpha.csv").read_text() == (folder / "undisturbed" / "alpha.csv").read_text()


def test_processes_that_differ_in_one_bit_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums of this process against those of another, whose weight differs in its last bit."""
    module = nn.Linear(3, 2)
    other = nn.Linear(3, 2)
    other.load_state_dict(module.state_dict())
    with torch.no_grad():
        other.weight[1, 2] = torch.nextafter(other.weight[1, 2], torch.tensor(10.0))
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor, op: seen.append(tensor.clone()))
    place = Ranks(world=2, local_world=2)
    require_equal(module, place, "epoch 3")
    require_equal(other, place, "epoch 3")
    theirs = seen[2]

    def with_other(tensor: torch.Tensor, op: Any) -> None:
        both = torch.stack([tensor, theirs])
        tensor.copy_(both.amin(0) if op == torch.distributed.ReduceOp.MIN else both.amax(0))

    monkeypatch.setattr(torch.distributed, "all_reduce", with_other)
    with pytest.raises(SharedError, match=r"2 processes no longer have the same weights at epoch 3: weight$"):
        require_equal(module, place, "epoch 3")
    require_equal(other, place, "epoch 3")


ASKED = [
    "-m", "nas", "search", "--space", "digits", "--data", "digits", "--flops", "0.2M", "--epochs", "3",
    "--images", "200", "--checkpoint-minutes", "0.001", "--resume",
]  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Run folder of a search by so many processes."""

    @functools.cache
    def made(processes: int) -> Path:
        out = tmp_path_factory.mktemp("undisturbed") / "run"
        done = torchrun(*ASKED, "--out", str(out), processes=processes)
        assert done.returncode == 0, done.stderr
        return out

    return made


@pytest.mark.parametrize(
    ("sent", "processes", "restarts"),
    [(signal.SIGKILL, 2, 1), (signal.SIGKILL, 4, 1), (signal.SIGKILL, 2, 0), (signal.SIGTERM, 2, 0)],
)
def test_a_signal_to_one_process_costs_nothing(
    sent: signal.Signals, processes: int, restarts: int, tmp_path: Path, undisturbed: Callable[[int], Path]
) -> None:
    """`torchrun` starts all anew, or ends and is called again: the same alpha as of processes that were left alone."""
    out = tmp_path / "run"
    with subprocess.Popen(
        [*command(processes), "--max-restarts", str(restarts), *ASKED, "--out", str(out)],
        env=ENVIRONMENT, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        while process.poll() is None and not (out / "metrics.csv").is_file():
            time.sleep(0.05)
        workers = [child for child in children(process.pid) if "nas" in child[1]]
        assert len(workers) == processes
        os.kill(workers[1][0], sent)
        printed, said = process.communicate(timeout=300)
    if restarts:
        assert process.returncode == 0 and printed.count("found digits-") == 1, said
    else:
        assert process.returncode != 0 and "found" not in printed
        if sent == signal.SIGTERM:
            codes = set(re.findall(r"exitcode *: (-?\d+)", said))
            assert "75" in codes and codes <= {"75", "-15"}, said  # torchrun may end the other one as it leaves
        again = torchrun(*ASKED, "--out", str(out), processes=processes)
        assert again.returncode == 0, again.stderr
    assert (out / "alpha.csv").read_text() == (undisturbed(processes) / "alpha.csv").read_text()


def children(parent: int) -> list[tuple[int, list[str]]]:
    """Processes that a process has started, with their command lines, the first one first."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(path.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append((int(path.parent.name), (path.parent / "cmdline").read_text().split("\0")))
        except OSError:  # gone meanwhile
            continue
    return sorted(found)


def test_a_folder_that_cannot_be_written_is_one_line_before_the_search(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    out = str(tmp_path / "file" / "run")
    arguments = ["--space", "digits", "--data", "digits", "--flops", "0.2M", "--epochs", "1", "--out", out]
    done = torchrun("-m", "nas", "search", *arguments, processes=2)
    assert "2" in re.findall(r"exitcode *: (-?\d+)", done.stderr)  # torchrun ends the others
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("nas: ")]
    assert f"cannot use {out} as run folder" in line
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_budgets_are_searched_one_after_the_other(tmp_path: Path) -> None:
    """Each search has a process group of its own, and nothing of the one before is taken for it."""
    arguments = [
        "--space",
        "digits",
        "--data",
        "digits",
        "--epochs",
        "1",
        "--images",
        "60",
        "--out",
        str(tmp_path / "run"),
    ]
    done = torchrun("-m", "nas", "search", *arguments, "--flops", "0.2M,0.25M,0.3M", processes=2)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "run").glob("*/result.json"))) == 3


def test_what_all_processes_meet_is_said_once(tmp_path: Path) -> None:
    arguments = [
        "--space",
        "digits",
        "--data",
        "digits",
        "--flops",
        "0.2M",
        "--batch-size",
        "3",
        "--out",
        str(tmp_path / "run"),
    ]
    done = torchrun("-m", "nas", "search", *arguments, processes=2)
    lines = [line for line in done.stderr.splitlines() if line.startswith("nas: ")]
    assert lines == ["nas: 2 processes need 4 images a step, batch_size gives 3"]
    assert not (tmp_path / "run").exists()


def test_another_number_of_processes_goes_on_with_a_warning(
    tmp_path: Path, undisturbed: Callable[[int], Path], caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(undisturbed(2), tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    nas.search(
        "digits",
        "digits",
        flops="0.2M",
        epochs=3,
        images=200,
        out=tmp_path / "run",
        resume=True,
        checkpoint_minutes=0.001,
    )
    assert "in 2 processes, now 1: numbers will differ" in caplog.text


def test_a_signal_to_all_processes_of_a_job_saves_too(tmp_path: Path) -> None:
    """As schedulers send it: those that read images get it as well."""
    for index in range(160):
        folder = tmp_path / "photos" / ("val" if index < 16 else "train") / f"{index % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 20, 3), index, dtype=np.uint8)).save(folder / f"{index}.png")
    out = tmp_path / "run"
    asked = [
        sys.executable, "-m", "nas", "search", "--space", "digits", "--data", f"imagefolder:{tmp_path / 'photos'}",
        "--flops", "0.3M", "--epochs", "3", "--batch-size", "8", "--out", str(out), "--resume",
    ]  # fmt: skip
    with subprocess.Popen(
        asked, env=ENVIRONMENT, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        while process.poll() is None and not ((out / "metrics.csv").is_file() and children(process.pid)):
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGTERM)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 75 and "the same command goes on, with --resume" in said.splitlines()[-1], said
    assert "Traceback" not in said and load_checkpoint(out / "checkpoint.pt")["history"]
