"""How alpha settled: softmax(alpha) of every variable, an option a row, an epoch a column, the darker the likelier."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nas.reporting.number_table import EPOCH
from nas.reporting.svg import FRAME, Figure, printable, shortened, text_width, words

HEAT = "#2f7ed8"
LEVELS = 20  # shades from 0 to 1
MOST_COLUMNS = 90  # epochs that are shown; of more, every second, third, ...
LABELS, MAP, CELL, HEAD, GAP = (
    96,
    170,
    13,
    20,
    14,
)  # pixels: option names, map, height of an option, title, between maps
COLUMNS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class VariableHistory:
    """One variable of a search.

    Attributes:
        name: of the variable.
        options: their names.
        epochs: `(n,)` that are shown, counted from 0.
        weights: `(n, n_options)`, softmax of alpha; every row sums to 1.
        taken: index of the option that the network found has; None while there is none.
    """

    name: str
    options: tuple[str, ...]
    epochs: tuple[int, ...]
    weights: npt.NDArray[np.float64]
    taken: int | None = None

    @property
    def marked(self) -> int:
        """Index of the option that is taken, else of the one with the largest weight at the last epoch."""
        return int(self.weights[-1].argmax()) if self.taken is None else self.taken


def softmax(alpha: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Weights `(n, k)` of logits `(n, k)`: exp(alpha) by its sum over the last axis."""
    powers = np.exp(alpha - alpha.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def histories(
    alpha: Mapping[str, Sequence[float]], choices: Mapping[str, object] | None = None
) -> list[VariableHistory]:
    """The variables of `alpha.csv`, whose columns are called ``variable=option``, in its order.

    Args:
        alpha: its columns.
        choices: option taken, by variable, of a search that has ended.
    """
    options: dict[str, list[str]] = {}
    for column in alpha:
        variable, sign, option = column.partition("=")
        if sign:
            options.setdefault(variable, []).append(option)
    epochs = np.asarray(alpha.get(EPOCH, ()), dtype=np.int64)
    shown = np.unique([*range(0, len(epochs), max(1, math.ceil(len(epochs) / MOST_COLUMNS))), len(epochs) - 1])
    found = []
    for variable, names in options.items():
        logits = np.array([alpha[f"{variable}={name}"] for name in names], dtype=np.float64).T
        if len(logits) and bool(np.isfinite(logits).all()):
            weights = softmax(logits[shown])
            chosen = (choices or {}).get(variable)
            taken = names.index(chosen) if isinstance(chosen, str) and chosen in names else None
            found.append(
                VariableHistory(
                    name=variable, options=tuple(names), epochs=tuple(epochs[shown]), weights=weights, taken=taken
                )
            )
    return found


def heat_map(
    variables: Sequence[VariableHistory], title: str, *, columns: int = COLUMNS, explained: bool = True
) -> Figure:
    """Maps side by side, filled column by column to about the same height.

    Args:
        variables: at least one.
        title: what the figure shows.
        columns: maps side by side.
        explained: whether a line on top says what shades mean.
    """
    heights = [HEAD + CELL * len(variable.options) + CELL + GAP for variable in variables]
    columns = max(1, min(columns, len(variables)))
    most = max(sum(heights) / columns, *heights)
    above = 30.0 if explained else 0.0
    drawn = _explanation(marks(variables)) if explained else []
    column, top, bottom = 0, above, 0.0
    for variable, height in zip(variables, heights, strict=True):
        if top > above and top - above + height / 2 > most and column < columns - 1:
            column, top = column + 1, above
        drawn += _map(variable, 12 + column * (LABELS + MAP + 24), top)
        top += height
        bottom = max(bottom, top)
    ends = [f"{variable.name}: {variable.options[variable.marked]}" for variable in variables]
    return Figure(
        width=(column + 1) * (LABELS + MAP + 24), height=bottom, drawn=tuple(drawn), title=title,
        description=f"In bold {marks(variables)}: {'; '.join(ends)}.",
    )  # fmt: skip


def marks(variables: Sequence[VariableHistory]) -> str:
    """What the marked options are, in words."""
    ended = all(variable.taken is not None for variable in variables)
    return "the option of the network found" if ended else "the likeliest option at the last epoch"


def _explanation(marked: str) -> list[str]:
    drawn = [words(12, 19, 11, "start", "softmax(alpha): 0", faint=True)]
    for index in range(11):
        cell = f'x="{118 + 10 * index}" y="10" width="10" height="11"'
        drawn.append(f'<rect {cell} fill="{HEAT}" fill-opacity="{index / 10:g}"/>')
    drawn.append(f'<rect class="frame" x="118" y="10" width="110" height="11" fill="none" stroke="{FRAME}"/>')
    return [*drawn, words(234, 19, 11, "start", f"1; in bold {marked}", faint=True)]


def _map(variable: VariableHistory, left: float, top: float) -> list[str]:
    """One variable: its name, a row an option, the first and the last epoch below."""
    start, upper = left + LABELS, top + HEAD
    wide, high = MAP / len(variable.epochs), CELL * len(variable.options)
    drawn = [words(left, top + 14, 11, "start", shortened(printable(variable.name), 42), bold=True)]
    for index, option in enumerate(variable.options):
        chosen = index == variable.marked
        shown = shortened(printable(option), 15)
        while text_width(shown, 9.5) > LABELS - 6:
            shown = shortened(shown, len(shown) - 1)
        drawn.append(
            words(start - 5, upper + CELL * index + 10, 9.5, "end", shown, faint=not chosen, bold=chosen)
        )  # fmt: skip
    drawn += heat_cells(variable.weights, start, upper, wide)
    size = f'width="{MAP}" height="{high}"'
    drawn.append(f'<rect class="frame" x="{start:.1f}" y="{upper:.1f}" {size} fill="none" stroke="{FRAME}"/>')
    first, last = variable.epochs[0] + 1, variable.epochs[-1] + 1
    drawn.append(words(start, upper + high + 11, 9, "start", f"epoch {first}", faint=True))
    if last > first:
        drawn.append(words(start + MAP, upper + high + 11, 9, "end", last, faint=True))
    return drawn


def heat_cells(weights: npt.NDArray[np.float64], left: float, top: float, wide: float) -> list[str]:
    """One path for every shade but white, of rectangles that reach over epochs of the same shade.

    Args:
        weights: `(n, n_options)` in [0, 1].
        left: of the first epoch.
        top: of the first option.
        wide: width of an epoch.
    """
    shades = np.rint(weights * LEVELS).astype(int)
    corners: dict[int, list[str]] = {}
    for option, row in enumerate(shades.T):
        borders = [0, *(np.flatnonzero(np.diff(row)) + 1).tolist(), len(row)]
        for start, end in itertools.pairwise(borders):
            if row[start]:
                x, y = left + start * wide, top + option * CELL
                across = (end - start) * wide
                corners.setdefault(int(row[start]), []).append(f"M{x:.2f} {y:g}h{across:.2f}v{CELL}h{-across:.2f}z")
    return [
        f'<path class="heat" fill="{HEAT}" fill-opacity="{shade / LEVELS:g}" d="{"".join(rectangles)}"/>'
        for shade, rectangles in sorted(corners.items())
    ]
