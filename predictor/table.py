"""A user's table of candidates: one column a variable, with values, and a column of scores.

CSV (commas, UTF-8), Parquet or a DataFrame. Nothing is unpickled.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from predictor.features import Values, canonical_rows
from predictor.pool import row_keys
from predictor.trials import Status
from search_spaces.errors import UserError, closest, first_line
from search_spaces.options import as_number, option_index, option_text
from search_spaces.seeding import numpy_rng
from search_spaces.serialisation import require
from search_spaces.variables import Rows, Variable, VariableSet

OPTIONAL = ("flops", "params")
FACTS = ("id", "round", "seed", "seconds", *OPTIONAL)  # of a table of curves, beside the rows


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Table:
    """Trained candidates, each once.

    Attributes:
        rows: `(n, d)` canonical.
        scores: `(n,)`; accuracies in percent for the predictor. Of a candidate trained several times the mean.
        weights: `(n,)` how many lines each is the mean of.
        statistics: ``flops`` and ``params`` `(n,)`, where the table has them.
    """

    rows: Rows
    scores: Values
    weights: Values
    statistics: dict[str, Values]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: npt.NDArray[np.int64]) -> "Table":
        """Some of the candidates."""
        return replace(
            self,
            rows=self.rows[indices],
            scores=self.scores[indices],
            weights=self.weights[indices],
            statistics={name: values[indices] for name, values in self.statistics.items()},
        )

    def split(self, share: float, seed: int) -> tuple["Table", "Table"]:
        """At random in two, the second with a ``share`` of the candidates; both have some.

        Raises:
            UserError: a share outside (0, 1), or fewer than two candidates.
        """
        require(0 < share < 1, f"share must be in (0, 1), got {share}")
        require(len(self) >= 2, f"a table of {len(self)} candidates cannot be split")
        order = numpy_rng(seed, "table/split").permutation(len(self))
        held_out = min(max(round(share * len(self)), 1), len(self) - 1)
        return self.take(np.sort(order[held_out:])), self.take(np.sort(order[:held_out]))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Curves:
    """Trained candidates with their accuracy after every epoch, line by line.

    Attributes:
        rows: `(n, d)` canonical; a candidate that was trained twice stands twice.
        curves: `(n, epochs)` percent; NaN after the epoch at which a training ended.
        facts: ``id``, ``round``, ``seed``, ``seconds``, ``flops`` and ``params`` `(n,)`, where the table has them.
    """

    rows: Rows
    curves: Values
    facts: dict[str, Values]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def epochs(self) -> npt.NDArray[np.int64]:
        """How many every training had, `(n,)`."""
        return np.asarray(np.isfinite(self.curves).sum(axis=1), dtype=np.int64)

    def accuracies(self, epoch: int | None = None) -> Values:
        """Percent `(n,)` after so many epochs; None: after as many as all trainings had."""
        common = int(self.epochs.min())
        epoch = common if epoch is None else epoch
        require(1 <= epoch <= common, f"epoch must be in 1..{common}, which all trainings had, got {epoch}")
        return self.curves[:, epoch - 1].copy()


def read_table(
    source: str | Path | pd.DataFrame, variables: VariableSet, *, score: str | None, epoch: int | None = None
) -> Table:
    """Rows and scores from values.

    A candidate that stands there several times (also as another row that builds the same network) gets the mean of its scores.

    Args:
        source: ``.csv``, ``.parquet`` or a DataFrame. Columns: every variable of the space by name; values are its options,
            block types by their name; variables with one option may be missing. Other columns are ignored, but for the
            ``status`` of `nas nars`: candidates that failed or wait are left out.
        variables: the space.
        score: column of the scores, higher is better; None: candidates without scores, which are 0.
        epoch: lines of which epoch count, where the table has a column ``epoch`` with several.

    Raises:
        UserError: an unreadable file, a missing column, a value that is no option, a score that is no number, or no lines; the
            message names column and line (counted from 1, without the heading).
    """
    frame, label = _headed_frame(source)
    lines = _trained(frame, variables, _lines_of_epoch(frame, epoch, label))
    require(len(lines) > 0, f"{label} has no lines")
    rows = _rows(frame, variables, lines, label)
    scores = (
        np.zeros(len(lines)) if score is None else _numbers(_cells(frame, score, lines, label), score, lines, label)
    )
    statistics = {
        name: _numbers(_cells(frame, name, lines, label), name, lines, label)
        for name in OPTIONAL
        if name in frame.columns and name not in variables.column and name != score
    }
    return _merged(canonical_rows(variables, rows), scores, statistics)


def read_curves(source: str | Path | pd.DataFrame, variables: VariableSet) -> Curves:
    """Rows and accuracies of all epochs from a table of candidates, as `nas nars` writes it.

    Args:
        source: ``.csv``, ``.parquet`` or a DataFrame. Columns: every variable of the space, as in `read_table`, and ``curve``,
            the accuracies after each epoch with blanks between. Lines with an empty curve were not trained and are left out.
        variables: the space.

    Raises:
        UserError: as `read_table`; a curve that is no list of numbers; no line with a curve.
    """
    frame, label = _headed_frame(source)
    cells = _cells(frame, "curve", np.arange(len(frame), dtype=np.int64), label)
    texts = [[] if pd.isna(cell) else str(cell).split() for cell in cells]  # pandas reads an empty cell as NaN
    lines = np.flatnonzero([len(text) > 0 for text in texts])
    require(len(lines) > 0, f"{label} has no lines with a curve")
    curves = np.full((len(lines), max(len(texts[line]) for line in lines)), np.nan)
    for index, line in enumerate(lines):
        values = np.array([as_number(word) for word in texts[line]])
        bad = not np.isfinite(values).all()
        require(not bad, f"{label}, line {line + 1}: curve must be numbers with blanks between")
        curves[index, : len(values)] = values
    facts = {
        name: _numbers(_cells(frame, name, lines, label), name, lines, label)
        for name in FACTS
        if name in frame.columns and name not in variables.column
    }
    return Curves(rows=canonical_rows(variables, _rows(frame, variables, lines, label)), curves=curves, facts=facts)


def _headed_frame(source: str | Path | pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """A table with column names that are texts and differ, and what messages call it."""
    frame = source if isinstance(source, pd.DataFrame) else _read(Path(source))
    label = "table" if isinstance(source, pd.DataFrame) else str(source)
    names = [str(name) for name in frame.columns]
    twice = sorted({name for name in names if names.count(name) > 1})
    require(not twice, f"{label}: column {', '.join(map(repr, twice))} stands twice")
    return frame.set_axis(names, axis=1), label


def _rows(frame: pd.DataFrame, variables: VariableSet, lines: npt.NDArray[np.int64], label: str) -> Rows:
    """Option indices `(n, d)` of the lines' values."""
    rows = np.zeros((len(lines), len(variables)), dtype=np.int64)
    for column, variable in enumerate(variables.variables):
        if variable.name not in frame.columns and len(variable.options) == 1:
            continue
        rows[:, column] = _options(_cells(frame, variable.name, lines, label), variable, lines, label)
    return rows


def _read(path: Path) -> pd.DataFrame:
    suffix = path.suffix.lower()
    require(suffix in (".csv", ".parquet"), f"{path} must be a .csv or .parquet file, or give a DataFrame")
    try:
        if suffix == ".parquet":
            return pd.read_parquet(path)
        return pd.read_csv(path, dtype=str, keep_default_na=False, header=None, encoding="utf-8-sig").pipe(_headed)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or first_line(error)}") from error
    except ImportError as error:
        raise UserError(f"{path}: reading Parquet needs pyarrow; write the table as .csv instead") from error
    except pd.errors.EmptyDataError as error:
        raise UserError(f"{path} is empty") from error
    except Exception as error:  # readers of foreign files raise many things
        raise UserError(f"{path} is not a readable {suffix[1:]} table: {first_line(error)}") from error


def _headed(raw: pd.DataFrame) -> pd.DataFrame:
    """The first line becomes the heading; pandas would rename a column that stands twice."""
    return raw.iloc[1:].set_axis([str(name).strip() for name in raw.iloc[0]], axis=1)


def _lines_of_epoch(frame: pd.DataFrame, epoch: int | None, label: str) -> npt.NDArray[np.int64]:
    """Positions of the lines that count."""
    lines = np.arange(len(frame), dtype=np.int64)
    if "epoch" not in frame.columns:
        require(epoch is None, f"{label} has no column 'epoch' to look for epoch {epoch}")
        return lines
    epochs = _numbers(frame["epoch"].tolist(), "epoch", lines, label)
    found = sorted(set(epochs)) or [0.0]
    seen = f"{found[0]:g} to {found[-1]:g}"
    if epoch is None:
        require(len(found) == 1, f"{label} has lines of {len(found)} epochs, {seen}; say which one counts")
        return lines
    require(epoch in found, f"{label} has no lines of epoch {epoch}; it has {seen}")
    return np.flatnonzero(epochs == epoch)


def _trained(frame: pd.DataFrame, variables: VariableSet, lines: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Those of the lines that a table of `nas nars` calls done; all, where it is another table."""
    if "status" not in frame.columns or "status" in variables.column:
        return lines
    status = frame["status"].to_numpy(dtype=object)[lines]
    known = set(get_args(Status))
    return lines[status == "done"] if set(status) <= known else lines


def _cells(frame: pd.DataFrame, name: str, lines: npt.NDArray[np.int64], label: str) -> list[Any]:
    """The cells of a column."""
    if name not in frame.columns:
        raise UserError(f"{label} has no column {name!r}{closest(name, frame.columns)}")
    return list(frame[name].iloc[lines].tolist())


def _numbers(cells: list[Any], name: str, lines: npt.NDArray[np.int64], label: str) -> Values:
    values = np.array([as_number(cell) for cell in cells], dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise UserError(f"{label}, line {lines[bad[0]] + 1}: {name} must be a number, got {_show(cells[bad[0]])}")
    return values


def _options(cells: list[Any], variable: Variable, lines: npt.NDArray[np.int64], label: str) -> npt.NDArray[np.int64]:
    """Index of every cell's option; every different cell is looked up once."""
    known: dict[tuple[type, Any], int] = {}
    chosen = np.empty(len(cells), dtype=np.int64)
    for index, cell in enumerate(cells):
        key = (type(cell), cell if isinstance(cell, (str, bool, int, float)) else repr(cell))
        if key not in known:
            known[key] = option_index(cell, variable.options)
        chosen[index] = known[key]
        if chosen[index] < 0:
            allowed = ", ".join(option_text(option) for option in variable.options)
            raise UserError(
                f"{label}, line {lines[index] + 1}: {variable.name} must be one of {_cut(allowed)}, got {_show(cell)}"
            )
    return chosen


def _show(cell: Any) -> str:
    return _cut(repr(cell))


def _cut(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:117]}..."


def _merged(rows: Rows, scores: Values, statistics: Mapping[str, Values]) -> Table:
    """Each candidate once, in the order of first appearance, with the means of its lines."""
    _, first, group = np.unique(row_keys(rows), return_index=True, return_inverse=True)
    order = np.argsort(first)  # groups in the order of first appearance
    count = np.bincount(group)

    def mean(values: Values) -> Values:
        return np.asarray((np.bincount(group, weights=values) / count)[order])

    return Table(
        rows=rows[first[order]],
        scores=mean(scores),
        weights=count[order].astype(np.float64),
        statistics={name: mean(values) for name, values in statistics.items()},
    )
