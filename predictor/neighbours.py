"""The last step of a search: one and two changes of a row, tried systematically rather than at random."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from predictor.candidates import Candidates
from search_spaces.variables import Rows

# How far outside the limits two changes may lie by the sum of their single effects, relative to the limit. The sum is exact
# only where effects add, and near misses are worth a look.
MARGIN = 0.01
# Pairs are made of this many times sqrt(pairs) single changes, the best ones.
PARTNERS = 4
MAX_STEPS = 1000


def improve(candidates: Candidates, row: Rows, score: float, *, pairs: int) -> tuple[Rows, float]:
    """Climb until none of the neighbours tried is better.

    Args:
        candidates: of the search.
        row: `(d,)` prepared; it may lie outside the limits, then ``score`` is -inf.
        score: to beat.
        pairs: how many two-variable changes are tried in a step.

    Returns:
        The row `(d,)` reached and its score; those given where nothing better lies inside the limits.
    """
    for _ in range(MAX_STEPS):
        rows, scores = neighbours(candidates, row, pairs)
        if not len(rows) or scores.max() <= score:
            break
        best = int(scores.argmax())
        row, score = rows[best], float(scores[best])
        if candidates.exhausted:
            break
    return row, score


def single_changes(candidates: Candidates, rows: Rows) -> tuple[Rows, npt.NDArray[np.int64]]:
    """All rows that differ from one of ``rows`` `(n, d)` in one free variable.

    Returns:
        `(n * m, d)` as written, not prepared; and the changed column `(m,)`, the same for every row.
    """
    counts = candidates.variables.option_counts
    columns = np.flatnonzero(candidates.free)
    column = np.repeat(columns, counts[columns] - 1)
    starts = np.cumsum(counts[columns] - 1) - (counts[columns] - 1)
    step = np.arange(len(column)) - np.repeat(starts, counts[columns] - 1) + 1
    changed = np.repeat(rows[:, None], len(column), axis=1)
    changed[:, np.arange(len(column)), column] = (rows[:, column] + step) % counts[column]
    return changed.reshape(-1, rows.shape[1]), column


def neighbours(candidates: Candidates, row: Rows, pairs: int) -> tuple[Rows, npt.NDArray[np.float64]]:
    """Rows with one change, and the ``pairs`` most promising ones with two; with scores, -inf outside the limits.

    The promise of two changes is the sum of their single gains; pairs whose summed quantities lie clearly outside the limits
    are left out. This finds the exchange of one thing for another that a full budget asks for.
    """
    changed, column = single_changes(candidates, row[None])
    around = candidates.prepare(np.concatenate([row[None], changed]))
    scores, violations, _ = candidates.evaluate(around, slack=np.inf)
    inside = np.where(violations == 0, scores, -np.inf)
    if pairs <= 0 or len(column) < 2 or candidates.exhausted:
        return around[1:], inside[1:]
    partners = np.argsort(-scores[1:], kind="stable")[: PARTNERS * math.isqrt(pairs)]
    first, second = (partners[index] for index in np.triu_indices(len(partners), 1))
    possible = (column[first] != column[second]) & _stays(candidates, around, first, second)
    first, second = first[possible], second[possible]
    promise = scores[1:][first] + scores[1:][second]
    if len(promise) > pairs:
        chosen = np.argpartition(-promise, pairs)[:pairs]
        first, second = first[chosen], second[chosen]
    both = changed[first]
    both[np.arange(len(first)), column[second]] = changed[second, column[second]]
    both = candidates.prepare(both)
    both_scores, both_violations, _ = candidates.evaluate(both)
    both_scores = np.where(both_violations == 0, both_scores, -np.inf)
    return np.concatenate([around[1:], both]), np.concatenate([inside[1:], both_scores])


def _stays(candidates: Candidates, around: Rows, first: Any, second: Any) -> npt.NDArray[np.bool_]:
    """`(m,)` whether the summed changes ``first`` and ``second`` of row 0 of ``around`` lie about inside the limits."""
    stays = np.ones(len(first), dtype=np.bool_)
    for name, values in candidates.measure(around).items() if candidates.limits else ():
        limit = candidates.limits[name]
        total = values[1:][first] + values[1:][second] - values[0]
        slack = MARGIN * limit.high
        stays &= (total <= limit.high + slack) & (total >= limit.low - slack)
    return stays
