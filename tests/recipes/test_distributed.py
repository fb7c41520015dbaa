"""Two processes that train one model: the same as one, the same in both, the same after a restart."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import two_processes

from recipes.distributed import Ranks, own_device, ranks
from search_spaces.errors import UserError

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


def test_two_processes_do_what_one_does(stored: list[dict[str, Any]]) -> None:
    alone = two_processes.train_plain()
    for state, history in (ranked["plain"] for ranked in stored):
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
    assert own_device(torch.device("cuda"), place) == torch.device("cuda", 1)
    assert own_device(torch.device("cuda", 3), place) == torch.device("cuda", 3)
    assert own_device(torch.device("cpu"), place) == torch.device("cpu")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(UserError, match="every machine needs the same number of processes"):
        ranks()
    monkeypatch.delenv("RANK")
    with pytest.raises(UserError, match="RANK must be a whole number, got ''; use torchrun"):
        ranks()
