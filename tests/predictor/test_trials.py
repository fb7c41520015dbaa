"""The table of candidates: what is stored comes back, in another process too, and foreign or damaged files are refused."""

import sqlite3
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from predictor.table import read_curves
from predictor.trials import Trials
from search_spaces.errors import UserError
from search_spaces.variables import Choice, Range, VariableSet

VARIABLES = VariableSet([Choice("kind", ("a", "b", "c")), Range("width", (8, 16, 24, 32))])
FACTS = {"space": "tiny", "data": "digits"}


def filled(path: Path) -> Trials:
    trials = Trials(path, VARIABLES, FACTS)
    trials.add(1, np.array([[0, 3], [2, 1], [1, 1]]), 5, {"flops": np.array([10, 20, 30])})
    trials.record(1, [50.0, 61.5], 12.5)
    trials.fail(3, "out of\nmemory")
    return trials


def test_what_is_stored_comes_back(tmp_path: Path) -> None:
    filled(tmp_path / "trials.db")
    first, second, third = Trials(tmp_path / "trials.db", VARIABLES, FACTS).read()
    assert (first.id, first.round, first.row, first.seed, first.status) == (1, 1, (0, 3), 5, "done")
    assert (first.curve, first.seconds, first.accuracy(), first.accuracy(1), first.accuracy(9)) == (
        (50.0, 61.5), 12.5, 61.5, 50.0, 61.5
    )  # fmt: skip
    assert (second.status, second.curve) == ("waiting", ())
    assert (third.status, third.error) == ("failed", "out of memory")
    trials = Trials(tmp_path / "trials.db", VARIABLES, FACTS)
    assert [trial.id for trial in trials.read(status="waiting")] == [2] and trials.read(round=2) == []
    frame = trials.frame(epoch=1)
    assert frame["accuracy"].tolist()[0] == 50.0 and frame["flops"].tolist() == [10, 20, 30]
    assert frame["kind"].tolist() == ["a", "c", "b"] and frame["width"].tolist() == [32, 16, 16]
    assert frame["curve"].tolist() == ["50.0 61.5", "", ""]


@pytest.mark.parametrize("way", ["frame", "csv", "pandas' csv"])
def test_the_frame_keeps_every_epoch(way: str, tmp_path: Path) -> None:
    trials = filled(tmp_path / "trials.db")
    trials.record(2, [100 / 3], 1.0)
    frame, file = trials.frame(), tmp_path / "trials.csv"
    frame.to_csv(file, index=False)
    table = read_curves({"frame": frame, "csv": file}.get(way, pd.read_csv(file)), VARIABLES)
    assert table.rows.tolist() == [[0, 3], [2, 1]] and table.epochs.tolist() == [2, 1]
    assert table.curves[0].tolist() == [50.0, 61.5] and table.curves[1, 0] == 100 / 3 and np.isnan(table.curves[1, 1])
    assert table.accuracies().tolist() == [50.0, 100 / 3]
    facts = {"id": [1, 2], "round": [1, 1], "seed": [5, 5], "seconds": [12.5, 1.0], "flops": [10, 20]}
    assert {name: values.tolist() for name, values in table.facts.items()} == facts


def test_a_round_is_added_whole_or_not_at_all(tmp_path: Path) -> None:
    trials = filled(tmp_path / "trials.db")
    with pytest.raises(UserError, match=r"a candidate of round 2 is in .* already"):
        trials.add(2, np.array([[1, 2], [2, 1]]), 5)
    assert len(trials.read()) == 3
    trials.add(2, np.array([[2, 1]]), 6)  # with another seed it is another candidate
    with pytest.raises(UserError, match="option 4 of width"):
        trials.add(3, np.array([[1, 4]]), 5)


def test_results_are_recorded_once_and_finite(tmp_path: Path) -> None:
    trials = filled(tmp_path / "trials.db")
    for call in (lambda: trials.record(1, [1.0], 1.0), lambda: trials.fail(3, "again"), lambda: trials.fail(9, "none")):
        with pytest.raises(UserError, match="is not waiting"):
            call()
    with pytest.raises(UserError, match="candidate 2 has no finite accuracy"):
        trials.record(2, [50.0, float("nan")], 1.0)
    with pytest.raises(UserError, match="candidate 2 has no finite accuracy"):
        trials.record(2, [], 1.0)


def test_other_facts_and_damage_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "trials.db"
    filled(path)
    with pytest.raises(UserError, match="its data is 'digits', not 'cifar10'"):
        Trials(path, VARIABLES, {**FACTS, "data": "cifar10"})
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE trials SET options = '[7, 0]' WHERE id = 2")
    with pytest.raises(UserError, match="damaged at candidate 2"):
        Trials(path, VARIABLES, FACTS).read()
    for content in (b"", b"nonsense" * 1000, path.read_bytes()[:2000]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="cannot use the table of candidates"):
            Trials(path, VARIABLES, FACTS)
    with pytest.raises(UserError, match="cannot use the table of candidates"):
        Trials(tmp_path / "none" / "trials.db", VARIABLES, FACTS)
