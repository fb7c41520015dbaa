"""Jobs in Ray's worker processes: results, retries, refusals; and addresses at which nobody answers."""

import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import OutOfMemoryError

import predictor.parallel
from predictor.parallel import Cluster, Resources, run_jobs
from search_spaces.errors import Stopped, UserError


def work(job: Mapping[str, Any], report: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
    """Succeeds, or fails in the way that the job asks for; leaves a mark for every attempt."""
    marks = Path(job["folder"])
    attempt = len(list(marks.glob(f"{job['id']}-*")))
    (marks / f"{job['id']}-{attempt}").touch()
    report({"epoch": 0, "accuracy": 50.0})
    if job["fate"] == "once" and attempt == 0:
        raise RuntimeError("the first attempt fails")
    if job["fate"] == "always":
        raise ValueError("bad\nluck")
    if job["fate"] == "input":
        raise UserError("the loss is nan")
    if job["fate"] == "killed" and attempt == 0:
        os.kill(os.getpid(), 9)
    return {"curve": [50.0, 60.0], "seconds": float(job["id"])}


def test_every_job_is_settled_once(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    fates = ["fine", "once", "always", "input", "killed"]
    jobs = [{"id": number, "fate": fate, "folder": str(marks)} for number, fate in enumerate(fates)]
    done: dict[int, Mapping[str, Any]] = {}
    failed: dict[int, str] = {}
    run_jobs(
        jobs, work, resources=Resources(cpus_per_trial=0.5, retries=1), folder=tmp_path,
        done=lambda job, result: done.update({job["id"]: result}),
        failed=lambda job, error: failed.update({job["id"]: error}),
    )  # fmt: skip
    assert done == {number: {"curve": [50.0, 60.0], "seconds": float(number)} for number in (0, 1, 4)}
    assert failed == {2: "ValueError: bad", 3: "the loss is nan"}
    attempts = [len(list(marks.glob(f"{number}-*"))) for number in range(5)]
    assert attempts == [1, 2, 2, 1, 2], "wrong input is not tried again"
    with pytest.raises(UserError, match="a training asks for 1000 GPUs, Ray has 0"):
        run_jobs(
            jobs[:1], work, resources=Resources(gpus_per_trial=1000), folder=tmp_path,
            done=lambda job, result: None, failed=lambda job, error: None,
        )  # fmt: skip


def test_what_cannot_be_recorded_ends_all_and_is_no_failure_of_a_training(tmp_path: Path) -> None:
    marks, told = tmp_path / "marks", list[int]()
    marks.mkdir()
    jobs = [{"id": number, "fate": "fine", "folder": str(marks)} for number in range(6)]

    def full(job: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        told.append(job["id"])
        raise UserError("no space left")

    with pytest.raises(UserError, match="no space left"):
        run_jobs(
            jobs, work, resources=Resources(concurrent=1), folder=tmp_path,
            done=full, failed=lambda job, error: told.append(-1),
        )  # fmt: skip
    assert told == [0]
    assert not list(marks.glob("0-1")) and not list(marks.glob("5-*")), "none is tried again, the last not begun"


def test_a_tune_that_ends_before_all_is_done_is_not_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attempt(jobs: list[Any], *others: Any) -> None:
        others[3](jobs[0], {"seconds": 1.0})

    monkeypatch.setattr(predictor.parallel, "_attempt", attempt)
    with pytest.raises(Stopped, match="stopped with 2 trainings to do"):
        run_jobs(
            [{"id": number} for number in range(3)], work, resources=Resources(), folder=tmp_path,
            done=lambda job, result: None, failed=lambda job, error: None,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("nowhere", "a Ray address is HOST:PORT"),
        ("127.0.0.1:x", "a Ray address is HOST:PORT"),
        (None, "does not answer"),
    ],
)
def test_addresses_that_do_not_answer(address: str | None, words: str, tmp_path: Path) -> None:
    if address is None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
            address = f"127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(UserError, match=words):
        run_jobs(
            [{"id": 0}], work, resources=Resources(address=address), folder=tmp_path,
            done=lambda job, result: None, failed=lambda job, error: None,
        )  # fmt: skip


def test_a_ray_that_ends_everything_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two at a time; whenever job 2 runs, memory runs out and Tune ends as a whole."""
    attempts: list[tuple[list[int], int | None]] = []

    def attempt(
        jobs: list[Any], work: Any, resources: Resources, folder: Path, done: Any, failed: Any, running: dict[int, Any]
    ) -> None:
        attempts.append(([job["id"] for job in jobs], resources.concurrent))
        while jobs:
            running.update({job["id"]: job for job in jobs[: resources.concurrent or 2]})
            if 2 in running:
                raise RuntimeError("Caught unexpected exception") from OutOfMemoryError("workers were killed")
            job = jobs.pop(0)
            done(job, {"seconds": 1.0})

    monkeypatch.setattr(predictor.parallel, "_attempt", attempt)
    outcome: dict[int, Any] = {}
    jobs = [{"id": number} for number in range(5)]
    run_jobs(
        jobs, work, resources=Resources(retries=1), folder=tmp_path,
        done=lambda job, result: outcome.update({job["id"]: "done"}),
        failed=lambda job, error: outcome.update({job["id"]: error}),
    )  # fmt: skip
    assert outcome == dict.fromkeys((0, 1, 3, 4), "done") | {2: "Ray ended it: workers were killed"}
    assert attempts == [
        ([0, 1, 2, 3, 4], None), ([1, 2, 3, 4], None), ([1, 2, 3, 4], 1), ([2, 3, 4], 1), ([2, 3, 4], 1), ([3, 4], None)
    ]  # fmt: skip
    assert "5 go on" not in caplog.text and "4 go on from their checkpoints" in caplog.text

    def broken(*_: Any) -> None:
        raise RuntimeError("a defect of ours")

    monkeypatch.setattr(predictor.parallel, "_attempt", broken)
    with pytest.raises(RuntimeError, match="a defect of ours"):
        run_jobs(
            jobs, work, resources=Resources(), folder=tmp_path,
            done=lambda job, result: None, failed=lambda job, error: None,
        )  # fmt: skip


def test_no_jobs_start_nothing(tmp_path: Path) -> None:
    run_jobs(
        [], work, resources=Resources(), folder=tmp_path, done=lambda job, result: None, failed=lambda job, error: None
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change", [{"cpus_per_trial": 0.0}, {"gpus_per_trial": -1.0}, {"retries": -1}, {"concurrent": 0}]
)
def test_wrong_resources(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(change))):
        Resources(**change)


@pytest.mark.parametrize(
    ("kept", "mode", "expected"), [(True, None, "token"), (True, "disabled", "disabled"), (False, None, None)]
)
def test_a_cluster_is_shown_the_token_that_ray_keeps(
    kept: bool, mode: str | None, expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("HOME", str(tmp_path)), ("RAY_AUTH_MODE", mode or "")):
        monkeypatch.setenv(name, value)
    if mode is None:
        monkeypatch.delenv("RAY_AUTH_MODE")
    if kept:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("0123")
    with pytest.raises(UserError, match="does not answer"), Cluster("127.0.0.1:9"):
        pass
    assert os.environ.get("RAY_AUTH_MODE") == expected
