"""Candidates and what became of them: one SQLite file, from which everything else is derived, so that a kill loses nothing."""

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from search_spaces.errors import UserError
from search_spaces.serialisation import require
from search_spaces.variables import Rows, VariableSet

SCHEMA = 1
Status = Literal["waiting", "done", "failed"]
_TABLE = """
CREATE TABLE trials (
    id INTEGER PRIMARY KEY,
    round INTEGER NOT NULL,
    options TEXT NOT NULL,
    seed INTEGER NOT NULL,
    statistics TEXT NOT NULL,
    status TEXT NOT NULL,
    curve TEXT NOT NULL,
    seconds REAL NOT NULL,
    error TEXT,
    UNIQUE (options, seed)
)
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One candidate of one round.

    Attributes:
        id: counted from 1 in the order of choosing.
        round: t, counted from 1.
        row: option index of every variable.
        seed: of its training.
        status: waiting to be trained, done, or failed.
        curve: accuracy in percent after every epoch.
        seconds: CPU time of its training.
        error: why it failed.
    """

    id: int
    round: int
    row: tuple[int, ...]
    seed: int
    status: Status
    curve: tuple[float, ...] = ()
    seconds: float = 0.0
    error: str | None = None

    def accuracy(self, epoch: int | None = None) -> float:
        """Percent after so many epochs; None: at the end."""
        return self.curve[-1 if epoch is None else min(epoch, len(self.curve)) - 1]


class Trials:
    """The table of candidates in a file; one process writes at a time.

    Args:
        path: the file; it is created.
        variables: of the space; options are stored by their index, with a description of the space beside.
        facts: plain values that a table belongs to: the space, the data, the image type. Another table's are refused.

    Raises:
        UserError: a damaged file, one that is no table of candidates, or one of other facts.
    """

    def __init__(self, path: str | Path, variables: VariableSet, facts: Mapping[str, Any]) -> None:
        self.path, self.variables = Path(path), variables
        own = json.loads(json.dumps(dict(facts)))
        fresh = not self.path.exists()
        with self._open() as connection:
            if fresh:
                connection.execute("CREATE TABLE facts (schema INTEGER NOT NULL, content TEXT NOT NULL)")
                connection.execute("INSERT INTO facts VALUES (?, ?)", (SCHEMA, json.dumps(own)))
                connection.execute(_TABLE)
        stored = self._facts()
        for key in own.keys() | stored.keys():
            require(
                stored.get(key) == own.get(key),
                f"{self.path} is a table of another search: its {key} is {_short(stored.get(key))}, not {_short(own.get(key))}",
            )

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A connection whose changes are on disk, all or none, when this ends."""
        try:
            with closing(sqlite3.connect(self.path, timeout=60)) as connection, connection:
                yield connection
        except sqlite3.IntegrityError:
            raise
        except sqlite3.Error as error:
            raise UserError(f"cannot use the table of candidates {self.path}: {error}") from error

    def _facts(self) -> dict[str, Any]:
        with self._open() as connection:
            rows = connection.execute("SELECT schema, content FROM facts").fetchall()
        require(
            len(rows) == 1 and rows[0][0] == SCHEMA, f"{self.path} is no table of candidates that this version can read"
        )
        try:
            facts = json.loads(rows[0][1])
        except ValueError as error:
            raise UserError(f"{self.path} is damaged: its facts are not JSON") from error
        require(isinstance(facts, dict), f"{self.path} is damaged: its facts are no mapping")
        return dict(facts)

    def add(self, round: int, rows: Rows, seed: int, statistics: Mapping[str, Any] | None = None) -> None:
        """Candidates of a round, all or none, waiting.

        Args:
            round: t, from 1.
            rows: canonical rows `(m, d)`.
            seed: of their trainings.
            statistics: arrays `(m,)` by name, for example FLOPs; kept beside for readers of the table.

        Raises:
            UserError: a row that is in the table with the same seed.
        """
        rows = self.variables.check_rows(rows)
        columns = {name: np.asarray(values).tolist() for name, values in (statistics or {}).items()}
        entries = [
            (round, json.dumps(row.tolist()), seed, json.dumps({name: columns[name][index] for name in columns}))
            for index, row in enumerate(rows)
        ]
        try:
            with self._open() as connection:
                connection.executemany(
                    "INSERT INTO trials (round, options, seed, statistics, status, curve, seconds)"
                    " VALUES (?, ?, ?, ?, 'waiting', '[]', 0)",
                    entries,
                )
        except sqlite3.IntegrityError as error:
            raise UserError(f"a candidate of round {round} is in {self.path} already") from error

    def record(self, id: int, curve: Sequence[float], seconds: float) -> None:
        """The result of a candidate: accuracy in percent after every epoch, CPU time."""
        values = [float(value) for value in curve]
        require(
            bool(values) and bool(np.isfinite(values).all()), f"candidate {id} has no finite accuracy: {values[-3:]}"
        )
        self._settle(id, "done", json.dumps(values), float(seconds), None)

    def fail(self, id: int, error: str) -> None:
        """A candidate that could not be trained."""
        self._settle(id, "failed", "[]", 0.0, " ".join(error.split())[:500])

    def _settle(self, id: int, status: Status, curve: str, seconds: float, error: str | None) -> None:
        with self._open() as connection:
            done = connection.execute(
                "UPDATE trials SET status = ?, curve = ?, seconds = ?, error = ? WHERE id = ? AND status = 'waiting'",
                (status, curve, seconds, error, id),
            )
            require(done.rowcount == 1, f"candidate {id} is not waiting in {self.path}")

    def read(self, *, round: int | None = None, status: Status | None = None) -> list[Trial]:
        """Candidates in the order of choosing.

        Raises:
            UserError: the file is damaged.
        """
        with self._open() as connection:
            found = connection.execute(
                "SELECT id, round, options, seed, status, curve, seconds, error FROM trials ORDER BY id"
            ).fetchall()
        trials = [self._trial(*row) for row in found]
        return [trial for trial in trials if round in (None, trial.round) and status in (None, trial.status)]

    def _trial(
        self, id: int, round: int, options: str, seed: int, status: str, curve: str, seconds: float, error: str | None
    ) -> Trial:
        try:
            row, accuracies = json.loads(options), json.loads(curve)
            self.variables.check_rows(row)
            require(status in get_args(Status), f"unknown status {status!r}")
            values = tuple(float(value) for value in accuracies)
        except (ValueError, TypeError) as broken:
            raise UserError(f"{self.path} is damaged at candidate {id}: {broken}") from broken
        return Trial(
            id=id, round=round, row=tuple(row), seed=seed, status=status, curve=values, seconds=seconds, error=error  # type: ignore[arg-type]
        )  # fmt: skip

    def frame(self, epoch: int | None = None) -> pd.DataFrame:
        """One line a candidate: id, round, seed, status, accuracy, epochs, curve, seconds, error, statistics, variables.

        ``curve`` is text, the accuracy after every epoch with blanks between; `predictor.table.read_curves` reads it.

        Args:
            epoch: accuracy after so many epochs instead of the last.
        """
        with self._open() as connection:
            statistics = [
                json.loads(text) for (text,) in connection.execute("SELECT statistics FROM trials ORDER BY id")
            ]
        lines = []
        for trial, extras in zip(self.read(), statistics, strict=True):
            values = {name: getattr(value, "name", value) for name, value in self.variables.values(trial.row).items()}
            lines.append(
                {
                    "id": trial.id, "round": trial.round, "seed": trial.seed, "status": trial.status,
                    "accuracy": trial.accuracy(epoch) if trial.curve else float("nan"), "epochs": len(trial.curve),
                    "curve": " ".join(map(str, trial.curve)), "seconds": trial.seconds, "error": trial.error,
                    **extras, **values,
                }
            )  # fmt: skip
        return pd.DataFrame(lines)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
