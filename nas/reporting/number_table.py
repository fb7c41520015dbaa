"""Tables of numbers with one row an epoch, as searches and trainings write them. No torch here."""

import csv
import itertools
import math
from pathlib import Path

from search_spaces.errors import UserError
from search_spaces.serialisation import require

Columns = dict[str, tuple[float, ...]]
EPOCH = "epoch"
MOST_EPOCHS = 10**9


def read_number_table(path: Path) -> Columns:
    """Columns `(n,)` by name, the column ``epoch`` first; empty where there is no file or no whole row yet.

    A last line without its end is what a process is just writing, or was when it was killed; it is left out.

    Raises:
        UserError: the file is damaged; the message names the line.
    """
    if not path.exists():
        return {}
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged: it is no text") from error
    lines = text.split("\n")[:-1]
    if not lines:
        return {}
    try:
        header, *rows = csv.reader(lines)
    except csv.Error as error:
        raise UserError(f"{path} is damaged: {error}") from error
    require(header[:1] == [EPOCH], f"{path} is damaged: its first column must be {EPOCH!r}")
    require(len(set(header)) == len(header), f"{path} is damaged: two columns have the same name")
    numbers = [_row(row, len(header), f"{path} is damaged at line {line}") for line, row in enumerate(rows, start=2)]
    epochs = [row[0] for row in numbers]
    whole = all(math.isfinite(epoch) and epoch == int(epoch) and 0 <= epoch < MOST_EPOCHS for epoch in epochs)
    rising = whole and all(a < b for a, b in itertools.pairwise(epochs))
    require(rising, f"{path} is damaged: epochs must be whole numbers and rise")
    return dict(zip(header, zip(*numbers, strict=True), strict=True)) if numbers else {}


def _row(row: list[str], width: int, where: str) -> tuple[float, ...]:
    require(len(row) == width, f"{where}: it has {len(row)} values, the header {width}")
    try:
        return tuple(float(value) for value in row)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error
