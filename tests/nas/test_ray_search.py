"""Searches whose processes Ray Train starts: the same as torchrun's, gone on with after a loss, refused in one line."""

import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import spaces_for_workers
import torch
from ray.exceptions import RayActorError
from ray.train import ControllerError, TrainingFailedError, WorkerGroupError

from nas.cli.main import run
from nas.ray_search import Workers, _train, _work, ray_search
from recipes.distributed import SharedError
from search_spaces.errors import Stopped, UserError

SPACE = "spaces_for_workers:tiny"
SETTINGS: dict[str, Any] = {"flops": "60K", "epochs": 2, "batch_size": 32, "images": 160}
LOST = ControllerError(RayActorError(error_msg="the worker died"))
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """What workers need to find the space, and not to be starved."""
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_two_workers_do_what_torchrun_does_even_if_one_dies(
    tmp_path: Path, paths: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    monkeypatch.setenv(spaces_for_workers.MARKER, str(tmp_path / "marker"))
    result = ray_search(
        SPACE, "digits", workers=Workers(count=2, cpus=0.5), out=tmp_path / "ray",
        on_epoch=lambda row: told.append(int(row["epoch"])), **SETTINGS,
    )  # fmt: skip
    assert (tmp_path / "marker").exists()  # one was killed
    assert told == [0, 1]
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "nas", "search",
            "--space", SPACE, "--data", "digits", "--out", str(tmp_path / "torchrun"), "--threads", "1", *options,
        ],
        cwd=Path(__file__).parent, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name in ("alpha.csv", "architecture.json", "result.json"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "torchrun" / name).read_bytes()
    assert result.cost.flops <= 60e3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--workers", "0"], "workers must be at least 1"),
        (["--workers", "2", "--cpus-per-worker", "0"], "cpus of a worker must be > 0"),
        (["--workers", "9999"], "9999 workers ask for 9999 CPUs"),
        (["--ray-address", "127.0.0.1:9"], "Ray does not answer at 127.0.0.1:9"),
        (["--workers", "2", "--flops", "1"], "no network is that small"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["search", "--space", "digits", "--data", "digits", "--flops", "500K", "--out", str(out)]
    before = signal.getsignal(signal.SIGTERM)
    assert run([*arguments, *options]) == 2
    assert signal.getsignal(signal.SIGTERM) is before
    assert words in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("failures", "fits", "raised"),
    [
        ([], 1, None),
        ([LOST], 2, None),
        ([LOST, LOST, LOST], 3, "died"),
        ([ControllerError(RuntimeError("bug"))], 1, "bug"),
        ([WorkerGroupError("", {1: UserError("too few images"), 0: RuntimeError("a peer left")})], 1, "too few images"),
        ([WorkerGroupError("", {0: RuntimeError("out of memory")})], 1, "worker 0: out of memory"),
    ],
)
def test_workers_lost_while_they_start_are_started_anew(
    failures: list[TrainingFailedError], fits: int, raised: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[int] = []

    def fit(_: object) -> None:
        done.append(1)
        if len(done) <= len(failures):
            raise failures[len(done) - 1]

    monkeypatch.setattr("ray.train.torch.TorchTrainer.fit", fit)
    with nullcontext() if raised is None else pytest.raises((UserError, Stopped), match=raised) as caught:
        _train({}, Workers(count=2, retries=2), tmp_path)
    assert len(done) == fits
    assert caught is None or isinstance(caught.value, UserError) == ("images" in str(raised))


def test_a_sigterm_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(_: object) -> None:
        sys.exit(signal.SIGTERM)  # as Ray's handler does

    monkeypatch.setattr("ray.train.torch.TorchTrainer.fit", fit)
    with pytest.raises(Stopped, match="SIGTERM"):
        _train({}, Workers(count=2), tmp_path)


def test_wrong_input_is_met_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would start anew whoever raises."""
    searched: list[int] = []

    def search(*_: object, **__: object) -> None:
        searched.append(1)
        raise UserError("the loss is nan")

    def fit(_: object) -> None:
        for _ in range(2):  # of two workers the second one comes too late
            _work({"out": str(tmp_path), "threads": torch.get_num_threads(), "space": "digits", "data": "digits"})

    monkeypatch.setattr("nas.ray_search.search", search)
    monkeypatch.setattr("ray.train.torch.TorchTrainer.fit", fit)
    (tmp_path / "ray").mkdir()
    for times in (1, 2):  # what an attempt before has left there counts no more
        with pytest.raises(UserError, match="the loss is nan"):
            _train({}, Workers(count=2), tmp_path)
        assert len(searched) == times
    monkeypatch.setattr("nas.ray_search.write_text_atomic", search)  # a full disk
    with pytest.raises(UserError, match="the loss is nan"):
        _train({}, Workers(count=2), tmp_path)


@pytest.mark.parametrize(
    ("error", "told", "raises"),
    [
        (UserError("no such folder"), "no such folder", True),  # the others wait for this worker: Ray has to end them
        (SharedError("the loss is nan"), "the loss is nan", False),
        (torch.OutOfMemoryError("Tried to allocate 20 GiB"), "out of memory; try a smaller --batch-size", True),
    ],
)
def test_a_worker_alone_with_wrong_input_keeps_no_one_waiting(
    error: Exception, told: str, raises: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def search(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("nas.ray_search.search", search)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    (tmp_path / "ray").mkdir()
    task = {"out": str(tmp_path), "threads": torch.get_num_threads(), "space": "digits", "data": "digits"}
    with pytest.raises(type(error)) if raises else nullcontext():
        _work(task)
    assert (tmp_path / "ray" / "refused.txt").read_text() == told
    _work(task)  # started anew it ends


def test_wrong_workers() -> None:
    with pytest.raises(UserError, match=r"2 workers cannot share GPUs: give each 0, 1 or more, not 0\.5"):
        Workers(count=2, gpus=0.5)
    assert Workers(count=1, gpus=0.5).device == "cuda"
    with pytest.raises(UserError, match="retries"):
        Workers(count=2, retries=-1)
