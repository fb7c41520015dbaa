"""Two processes that train one model: the same as one, the same in both, the same after a restart."""

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import two_processes
from torch import distributed as dist

from recipes import distributed
from recipes.distributed import Ranks, SharedError, meet, own_device, ranks
from recipes.trainer import checked_device
from search_spaces.errors import Stopped, UserError

ROOT = Path(__file__).resolve().parents[2]


def torchrun(*arguments: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """Run a script or module in several processes on this machine."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return subprocess.run(
        [*command, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes ended with."""
    folder = tmp_path_factory.mktemp("ranks")
    done = torchrun(str(Path(two_processes.__file__)), str(folder))
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def without_time(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history]


@pytest.mark.parametrize(("kind", "batch_size"), [("plain", 16), ("odd", 15)])
def test_two_processes_do_what_one_does(kind: str, batch_size: int, stored: list[dict[str, Any]]) -> None:
    alone = two_processes.train_plain(batch_size)
    for state, history in (ranked[kind] for ranked in stored):
        for name, tensor in alone.model.state_dict().items():
            torch.testing.assert_close(state[name], tensor, rtol=0, atol=1e-12)
        for row, expected in zip(without_time(history), without_time(list(alone.history)), strict=True):
            assert row == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("kind", ["plain", "norm", "resumed", "stopped"])
def test_processes_stay_equal(stored: list[dict[str, Any]], kind: str) -> None:
    """Weights, moving average and running statistics, to the bit."""
    (first, its_history), (second, other_history) = (ranked[kind] for ranked in stored)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert without_time(its_history) == without_time(other_history)
    assert len(its_history) == (1 if kind == "stopped" else 3)


def test_all_stop_where_one_is_asked_to(stored: list[dict[str, Any]]) -> None:
    """Else the others would wait in a step for the one that has left."""
    assert [ranked["asked"] for ranked in stored] == [(0, 3), (0, 3)]


def test_a_restart_repeats_to_the_bit(stored: list[dict[str, Any]]) -> None:
    for ranked in stored:
        (whole, history), (resumed, other) = ranked["norm"], ranked["resumed"]
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)
        assert without_time(history) == without_time(other)


def test_ranks_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert ranks() == Ranks() and ranks().key() == () and ranks().nodes == 1
    for name, value in (("WORLD_SIZE", "8"), ("RANK", "5"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    place = ranks()
    assert (place.nodes, place.key(), place.main) == (2, (5,), False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(UserError, match="every machine needs the same number of processes"):
        ranks()
    monkeypatch.delenv("RANK")
    with pytest.raises(UserError, match="RANK must be a whole number, got ''; use torchrun"):
        ranks()


def test_every_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    cuda, place = torch.device("cuda"), Ranks(rank=5, world=8, local_rank=1, local_world=4)
    assert own_device(cuda, place) == torch.device("cuda", 1)
    assert own_device(torch.device("cpu"), place) == torch.device("cpu")
    assert own_device(torch.device("cuda", 3), Ranks()) == torch.device("cuda", 3)
    one_a_machine = Ranks(rank=1, world=2)
    assert own_device(torch.device("cuda", 3), one_a_machine) == torch.device("cuda", 3)
    with pytest.raises(UserError, match="4 processes cannot share device cuda:3; use cuda"):
        own_device(torch.device("cuda", 3), place)
    with pytest.raises(UserError, match="8 processes need a CUDA device each, torch sees 4 here"):
        own_device(cuda, Ranks(world=8, local_world=8))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert checked_device("cuda:3") == torch.device("cuda", 3)
    with pytest.raises(UserError, match="device cuda:4: torch sees 4 CUDA devices here"):
        checked_device("cuda:4")


UNEVEN = """
import torch
from recipes.distributed import SharedError, process_group, ranks
try:
    with process_group(torch.device("cpu"), ranks()):
        print("joined")
except SharedError as error:
    print(error)
"""


def test_machines_with_different_numbers_of_processes_are_refused() -> None:
    """As of machines with two, one and one: each has a number of machines in mind that is a whole one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = [
        subprocess.Popen(
            [sys.executable, "-c", UNEVEN], cwd=ROOT, stdout=subprocess.PIPE, text=True,
            env={
                **os.environ, "PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2",
                "RANK": str(rank), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": str(2 - rank),
            },
        )
        for rank in (0, 1)
    ]  # fmt: skip
    for process in started:
        said, _ = process.communicate(timeout=120)
        assert said == "every machine needs the same number of processes, got 1 on one and 2 on another\n"


@pytest.mark.parametrize(
    ("error", "backend", "taken_down"),
    [
        (None, "nccl", True),
        (SharedError("the loss is nan"), "nccl", True),
        (Stopped("asked"), "nccl", True),
        (UserError("disk full"), "nccl", False),
        (torch.OutOfMemoryError(), "nccl", False),
        (UserError("disk full"), "gloo", True),
    ],
)
def test_a_process_that_fails_alone_does_not_wait_for_the_others(
    error: Exception | None, backend: str, taken_down: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To take a group of NCCL down needs all of them, and the others wait in a step for this one."""
    calls: list[str] = []
    monkeypatch.setattr(distributed, "_join", lambda *_: calls.append("join"))
    monkeypatch.setattr(distributed, "_require_even", lambda _: None)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: calls.append("destroy"))
    device = torch.device("cuda" if backend == "nccl" else "cpu")
    with (
        nullcontext() if error is None else pytest.raises(type(error)),
        distributed.process_group(device, Ranks(world=2, local_world=2)),
    ):
        if error is not None:
            raise error
    assert calls == ["join", "destroy"] if taken_down else calls == ["join"]


def test_processes_meet_whatever_others_have_left() -> None:
    """Three processes, as threads: after attempts that died on the way, and one group after the other."""
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=20))
    with ThreadPoolExecutor(3) as pool:

        def group(late: int) -> set[str]:
            """The names that each finds, one process later than the others."""
            first = [pool.submit(meet, store, rank, 3) for rank in range(3) if rank != late]
            with pytest.raises(TimeoutError):
                first[0].result(timeout=0.3)
            last = pool.submit(meet, store, late, 3)
            return {process.result(timeout=10) for process in (*first, last)}

        store.set("group", "died")  # process 0 of an attempt, with one process that it met and one that it did not
        store.set("died here 1", "gone")
        store.set("died met 1", "gone")
        store.set("died here 2", "gone")
        names = [group(late) for late in (0, 1, 2)]
    assert all(len(name) == 1 for name in names)
    assert len(set.union(*names, {"died"})) == 4


def test_processes_do_not_wait_for_ever() -> None:
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=0.3))
    for rank in (1, 0):
        with pytest.raises(RuntimeError):
            meet(store, rank, 2)
    with pytest.raises(RuntimeError, match="has waited"):
        meet(store, 1, 2)  # process 0 announced a group and went
