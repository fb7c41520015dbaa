"""The best rows along a range of one quantity, in one run: score against FLOPs, for example.

The range is cut into bins and every bin keeps its own best rows, which have children with those of bins nearby. The answer is
everything scored on the way that nothing else beats in both, score and quantity.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from predictor.candidates import Candidates, RowFunction
from predictor.genetics import Scores
from predictor.neighbours import single_changes
from predictor.population import EvolutionConfig, Population, breed
from search_spaces.limits import Limit
from search_spaces.seeding import numpy_rng
from search_spaces.serialisation import require
from search_spaces.variables import Rows, VariableSet

# Front rows of which all single changes are tried at a standstill.
POLISHED = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class ParetoResult:
    """Rows none of which is beaten, from the smallest quantity and score to the largest.

    Attributes:
        rows: `(m, d)` canonical, all inside the limits.
        scores: `(m,)`, strictly increasing.
        values: `(m,)` of the quantity, strictly increasing.
        evaluations: rows scored.
        generations: of all populations together.
    """

    rows: Rows
    scores: Scores
    values: Scores
    evaluations: int
    generations: int


class _Front:
    """Non-dominated rows among all seen, and the bins of the quantity."""

    def __init__(self, candidates: Candidates, quantity: str, bins: int) -> None:
        self.candidates, self.quantity, self.bins = candidates, quantity, bins
        self.limit = candidates.limits[quantity]
        self.rows: Rows = np.empty((0, len(candidates.variables)), dtype=np.int64)
        self.scores = self.values = np.empty(0)

    def evaluate(self, rows: Rows) -> Population:
        """Those of the prepared rows that are inside the limits; the front takes up what belongs to it."""
        everyone = Population(rows, *self.candidates.evaluate(rows))
        inside = everyone.take(np.flatnonzero((everyone.violations == 0) & (everyone.scores > -np.inf)))
        all_rows = np.concatenate([self.rows, inside.rows])
        scores, values = np.concatenate([self.scores, inside.scores]), np.concatenate([self.values, self.value(inside)])
        chosen = nondominated(values, scores)
        self.rows, self.scores, self.values = all_rows[chosen], scores[chosen], values[chosen]
        return inside

    def value(self, population: Population) -> Scores:
        """The quantity `(n,)`."""
        return np.asarray(self.candidates.quantities[self.quantity](population.rows), dtype=np.float64)

    def bin_of(self, values: Scores) -> npt.NDArray[np.int64]:
        """Bin `(n,)` of values inside the limit."""
        width = (self.limit.high - self.limit.low) / self.bins
        if width <= 0:
            return np.zeros(len(values), dtype=np.int64)
        return np.clip(((values - self.limit.low) / width).astype(np.int64), 0, self.bins - 1)

    def height(self) -> Scores:
        """`(bins,)` best score up to the end of each bin; -inf where there is none."""
        best = np.full(self.bins, -np.inf)
        np.maximum.at(best, self.bin_of(self.values), self.scores)
        return np.asarray(np.maximum.accumulate(best))


def nondominated(values: Scores, scores: Scores) -> npt.NDArray[np.int64]:
    """Indices, by increasing value, of those with no other of at most the value and at least the score; one of equal ones.

    Args:
        values: `(n,)`, lower is better.
        scores: `(n,)`, higher is better.
    """
    order = np.lexsort((-scores, values))
    best_before = np.concatenate([[-np.inf], np.maximum.accumulate(scores[order])[:-1]])
    return np.asarray(order[scores[order] > best_before])


def pareto(
    variables: VariableSet,
    score: RowFunction,
    *,
    quantity: str,
    low: float,
    high: float,
    quantities: Mapping[str, RowFunction],
    config: EvolutionConfig,
    seed: int,
    bins: int = 32,
    limits: Mapping[str, Limit] | None = None,
    start: Rows | None = None,
    fixed: Mapping[str, int] | None = None,
    canonical: Callable[[Rows], Rows] | None = None,
) -> ParetoResult:
    """The non-dominated rows between two values of a quantity, the higher score and the lower quantity being better.

    Args:
        variables: of a row; what is not said here is as in `predictor.evolve.evolve`.
        score: `(n, d)` to `(n,)`, higher is better.
        quantity: name of the quantity.
        low: smallest value of interest; bins have equal width from here.
        high: largest value.
        quantities: `(n, d)` to `(n,)`, by name.
        config: settings; each bin keeps ``2 population / bins`` rows, at least 2. ``diversity``, ``relax`` and ``pairs`` have
            no meaning here, only that ``pairs=0`` leaves out the single changes at a standstill, too.
        seed: of all draws.
        bins: parts of the range.
        limits: of other quantities.
        start: `(m, d)` rows to inherit from.
        fixed: option index by variable name.
        canonical: maps rows that mean the same to the same row.

    Raises:
        UserError: wrong rows, names or numbers, or nothing inside the limits.
    """
    require(bins >= 1, f"bins must be at least 1, got {bins}")
    require(quantity not in (limits or {}), f"{quantity} is limited by low and high already")
    candidates = Candidates(
        variables, score, quantities=quantities, limits={**(limits or {}), quantity: Limit(high=high, low=low)},
        fixed=fixed, canonical=canonical, seed=seed, max_evaluations=config.max_evaluations,
    )  # fmt: skip
    front, generations = _Front(candidates, quantity, bins), 0
    if start is not None:
        front.evaluate(candidates.distinct(candidates.prepare(variables.check_rows(start))))
    for restart in range(config.restarts + 1 + bool(config.restarts and config.merge)):
        rng = numpy_rng(seed, "pareto", restart)
        rows, violations = candidates.random(max(config.first, 8 * bins), rng, sobol=restart == 0)
        if not len(front.rows) and not (violations == 0).any():
            rows = candidates.climb(rows, rng, config.population)
        if restart in (0, config.restarts + 1):  # the first one inherits, the last one unites
            rows = np.concatenate([front.rows, rows])
        generations += _evolve_bins(front, rows, config, rng)
        if candidates.exhausted:
            break
    require(len(front.rows) > 0, f"max_evaluations={config.max_evaluations} ended the search before any row was scored")
    return ParetoResult(
        rows=front.rows, scores=front.scores, values=front.values,
        evaluations=candidates.evaluations, generations=generations,
    )  # fmt: skip


def _evolve_bins(front: _Front, rows: Rows, config: EvolutionConfig, rng: np.random.Generator) -> int:
    """Generation after generation until no bin gains; returns how many."""
    per_bin = max(2, 2 * config.population // front.bins)
    population = _best_of_bins(front, front.evaluate(rows), per_bin)
    stalled, generation = 0, 0
    while generation < config.max_generations and not front.candidates.exhausted and len(population.rows):
        generation += 1
        before = front.height()
        children = front.evaluate(_children(front, population, per_bin, config, rng))
        population = _best_of_bins(front, population.and_also(children), per_bin)
        stalled = 0 if _gained(before, front.height(), config.tolerance) else stalled + 1
        if stalled < config.patience:
            continue
        if not config.pairs:
            break
        before = front.height()
        chosen = np.unique(np.linspace(0, len(front.rows) - 1, POLISHED).astype(np.int64))
        changed, _ = single_changes(front.candidates, front.rows[chosen])
        improved = front.evaluate(front.candidates.prepare(changed))
        population = _best_of_bins(front, population.and_also(improved), per_bin)
        if not _gained(before, front.height(), config.tolerance):
            break
        stalled = 0
    return generation


def _gained(before: Scores, after: Scores, tolerance: float) -> bool:
    """Whether a bin has a better score than before, or its first one."""
    known = np.isfinite(before)
    return bool((after[known] - before[known] > tolerance).any() or np.isfinite(after[~known]).any())


def _best_of_bins(front: _Front, population: Population, per_bin: int) -> Population:
    """The ``per_bin`` best different rows of every bin, by bin."""
    _, first = np.unique(population.keys, return_index=True)
    population = population.take(first)
    bins = front.bin_of(front.value(population))
    order = np.lexsort((-population.scores, bins))
    starts = np.searchsorted(bins[order], np.arange(front.bins))
    return population.take(order[np.arange(len(order)) - starts[bins[order]] < per_bin])


def _children(
    front: _Front, population: Population, per_bin: int, config: EvolutionConfig, rng: np.random.Generator
) -> Rows:
    """``children`` of every row, with mates from its own and neighbouring bins; f_max and f_avg are those of the bin."""
    n, scores = len(population.rows), population.scores
    bins = front.bin_of(front.value(population))
    best = np.full(front.bins, -np.inf)
    np.maximum.at(best, bins, scores)
    average = np.bincount(bins, scores, front.bins) / np.maximum(np.bincount(bins, minlength=front.bins), 1)
    parent = np.repeat(np.arange(n), config.children)
    mate = np.clip(parent + rng.integers(-2 * per_bin, 2 * per_bin + 1, size=len(parent)), 0, n - 1)
    return breed(front.candidates, population.rows, scores, best[bins], average[bins], parent, mate, config, rng)
