"""The candidates of `nas nars` as they stand in `trials.db`, read beside a running search. No torch here."""

import json
import math
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search_spaces.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One candidate.

    Attributes:
        id: counted from 1.
        round: counted from 1.
        status: waiting, done or failed.
        curve: accuracy in percent after every epoch.
        flops: multiply-adds; NaN where its space has none.
        params: weights, likewise.
        seconds: CPU time of its training.
    """

    id: int
    round: int
    status: str
    curve: tuple[float, ...]
    flops: float
    params: float
    seconds: float

    def accuracy(self, epoch: int | None) -> float:
        """Percent after so many epochs, None: at the end; NaN where it was not trained so long."""
        if not self.curve or (epoch is not None and len(self.curve) < epoch):
            return math.nan
        return self.curve[-1 if epoch is None else epoch - 1]


def read_candidates(path: Path) -> tuple[Candidate, ...]:
    """All candidates of the file in the order of choosing; nothing is written, and no writer is kept waiting.

    Raises:
        UserError: the file is damaged or no table of candidates.
    """
    question = "SELECT id, round, status, curve, statistics, seconds FROM trials ORDER BY id"
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=10)) as connection:
            rows = connection.execute(question).fetchall()
        return tuple(_candidate(*row) for row in rows)
    except (sqlite3.Error, ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{path} is damaged or no table of candidates: {error}") from error


def _candidate(id: int, round: int, status: str, curve: str, statistics: str, seconds: float) -> Candidate:
    accuracies, known = json.loads(curve), json.loads(statistics)
    if not isinstance(accuracies, list) or not isinstance(known, Mapping):
        raise ValueError(f"candidate {id} has no curve or no statistics")
    return Candidate(
        id=int(id), round=int(round), status=str(status), curve=tuple(float(value) for value in accuracies),
        flops=_number(known, "flops"), params=_number(known, "params"), seconds=float(seconds),
    )  # fmt: skip


def _number(known: Mapping[str, Any], name: str) -> float:
    return float(known.get(name, math.nan))
