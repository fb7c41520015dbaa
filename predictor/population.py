"""A generation and the next one: settings, children and survivors of the adaptive genetic algorithm."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from predictor.candidates import Candidates
from predictor.genetics import Scores, adaptive_probability, crossover
from predictor.row_memory import Keys
from search_spaces.serialisation import require
from search_spaces.variables import Rows


@dataclass(frozen=True, kw_only=True, slots=True)
class EvolutionConfig:
    """Settings of `evolve`; the defaults are ours, `thesis` gives the published ones.

    Attributes:
        first: rows of a first generation, ``inherited`` ones included.
        inherited: best of the rows given as ``start`` that join it.
        population: survivors of a generation.
        children: of each survivor.
        tolerance: a gain of the best score counts if it is larger.
        patience: generations without gain before a population counts as standing still.
        restarts: further populations, each from random rows.
        merge: whether a last population is made of all survivors; without restarts there is none.
        diversity: share of the survivors that are the best of their family, a parent and its children. Measured to help
            neither on smooth nor on rugged scores, where restarts are better.
        changes: expected number of variables that mutation changes in a candidate below the average; None: the mutation
            probability holds for every single variable, as in the 1994 paper.
        k1: crossover factor at or above the average, as are k2 to k4 of Srinivas & Patnaik 1994.
        k2: mutation factor at or above the average.
        k3: crossover probability below the average.
        k4: mutation probability below the average.
        relax: whether rows outside the limits by a slack may take part at first.
        shrink: factor of the slack a generation.
        pairs: two-variable changes tried in a step at a standstill; 0: no such step.
        max_evaluations: rows scored at most, with limits also rows measured, up to the end of a generation; None: no bound.
        max_generations: of one population.
    """

    first: int = 400
    inherited: int = 50
    population: int = 40
    children: int = 24
    tolerance: float = 1e-6
    patience: int = 5
    restarts: int = 5
    merge: bool = True
    diversity: float = 0.0
    changes: float | None = 2.0
    k1: float = 1.0
    k2: float = 0.5
    k3: float = 1.0
    k4: float = 0.5
    relax: bool = True
    shrink: float = 0.85
    pairs: int = 1000
    max_evaluations: int | None = None
    max_generations: int = 10_000

    def __post_init__(self) -> None:
        for name in ("first", "population", "children", "patience", "max_generations"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("inherited", "restarts", "pairs", "tolerance"):
            require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("diversity", "k1", "k2", "k3", "k4"):
            require(0 <= getattr(self, name) <= 1, f"{name} must be in [0, 1], got {getattr(self, name)}")
        require(0 < self.shrink < 1, f"shrink must be in (0, 1), got {self.shrink}")
        require(self.changes is None or self.changes > 0, f"changes must be > 0, got {self.changes}")
        evaluations = self.max_evaluations
        require(evaluations is None or evaluations >= 1, f"max_evaluations must be at least 1, got {evaluations}")

    @classmethod
    def thesis(cls) -> "EvolutionConfig":
        """As in FBNetV3 (thesis 4.4, Algorithm 1): 50 + 50 rows first, 24 children of each, 40 survive, gains of 1e-6 count."""
        return cls(
            first=100, inherited=50, population=40, children=24, tolerance=1e-6, patience=1,
            restarts=0, diversity=0.0, changes=None, relax=False, pairs=0,
        )  # fmt: skip


class Population(NamedTuple):
    """Rows `(n, d)`, best first, with scores, violations and keys, each `(n,)`."""

    rows: Rows
    scores: Scores
    violations: Scores
    keys: Keys

    def take(self, index: npt.NDArray[np.int64]) -> "Population":
        """Some of them."""
        return Population(self.rows.take(index, axis=0), self.scores[index], self.violations[index], self.keys[index])

    def and_also(self, other: "Population") -> "Population":
        """Both."""
        return Population(
            np.concatenate([self.rows, other.rows]),
            np.concatenate([self.scores, other.scores]),
            np.concatenate([self.violations, other.violations]),
            np.concatenate([self.keys, other.keys]),
        )


def children(
    candidates: Candidates, population: Population, config: EvolutionConfig, rng: np.random.Generator
) -> tuple[Rows, npt.NDArray[np.int64]]:
    """Prepared children of a population, and the parent `(n,)` of each; the number does not depend on the population's."""
    n = len(population.rows)
    parent = np.repeat(np.arange(n), -(-config.population * config.children // n))
    mate = rng.integers(0, n, size=len(parent))
    fitness, known = population.scores, np.isfinite(population.scores)
    if not known.all():
        fitness = np.where(known, fitness, fitness[known].min() if known.any() else 0.0)
    return breed(
        candidates, population.rows, fitness, float(fitness.max()), float(fitness.mean()), parent, mate, config, rng
    ), parent


def breed(
    candidates: Candidates,
    rows: Rows,
    fitness: Scores,
    best: Scores | float,
    average: Scores | float,
    parent: npt.NDArray[np.int64],
    mate: npt.NDArray[np.int64],
    config: EvolutionConfig,
    rng: np.random.Generator,
) -> Rows:
    """One prepared child `(n, d)` of every pair; at least one of its variables is mutated, for copies are thrown away.

    Args:
        candidates: of the search.
        rows: `(p, d)` of the population.
        fitness: `(p,)`.
        best: f_max, `(p,)` where each row has its own.
        average: f_avg, likewise.
        parent: `(n,)` indices into the population.
        mate: `(n,)` likewise.
        config: settings.
        rng: of the draws.
    """
    fitter = np.maximum(fitness[parent], fitness[mate])
    pair_best, pair_average = (v[parent] if isinstance(v, np.ndarray) else v for v in (best, average))
    crossing = adaptive_probability(fitter, pair_best, pair_average, config.k1, config.k3)
    mutating = adaptive_probability(fitness, best, average, config.k2, config.k4)
    if config.changes is not None:
        changes = mutating * (config.changes / max(config.k2, config.k4, 1e-12))
        mutating = np.minimum(np.maximum(changes, 1.0) / max(1, len(candidates.mutation.columns)), 1.0)
    short = rows.astype(np.uint16)  # a quarter of the memory to move; options are below 2^16
    crossed = crossover(short.take(parent, axis=0), short.take(mate, axis=0), crossing, rng)
    mutated = candidates.mutation(crossed, mutating[parent], rng, at_least_one=True)
    return candidates.prepare(mutated.astype(np.int64))


def survivors(
    population: Population, family: npt.NDArray[np.int64], n: int, slack: float, diversity: float
) -> Population:
    """The ``n`` best different ones: rows inside the limits (or the slack) by score, then the others, closest first.

    Args:
        population: parents and children.
        family: `(m,)` the parent each belongs to.
        n: how many.
        slack: violation up to which a row counts as inside.
        diversity: share of ``n`` for the best of each family, as far as there are families with a row inside.
    """
    inside = np.flatnonzero(population.violations <= slack)
    order = _best_of_each(population, inside, len(inside) if diversity else n)
    champions = round(diversity * n)
    if len(order) > n and champions:
        _, best = np.unique(family[order], return_index=True)
        rank = np.arange(len(order))
        rank[np.sort(best)[:champions]] -= len(order)
        order = order[np.sort(np.argpartition(rank, n)[:n])]
    order = order[:n]
    if len(order) < n:
        outside = np.flatnonzero((population.violations > slack) & (population.violations < np.inf))
        outside = outside[np.argsort(population.violations[outside], kind="stable")]
        order = np.concatenate([order, _first_of_each(population.keys, outside)[: n - len(order)]])
    return population.take(order)


def _best_of_each(population: Population, index: npt.NDArray[np.int64], n: int) -> npt.NDArray[np.int64]:
    """At least the ``n`` best of the rows ``index``, as far as there are so many different ones, best first."""
    scores = population.scores[index]
    if len(index) > 4 * n:  # rarely are three in four the same; then look at all
        head = np.argpartition(-scores, 4 * n)[: 4 * n]
        order = _first_of_each(population.keys, index[head[np.argsort(-scores[head], kind="stable")]])
        if len(order) >= n:
            return order
    return _first_of_each(population.keys, index[np.argsort(-scores, kind="stable")])


def _first_of_each(keys: Keys, order: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """``order`` `(m,)` without rows whose key came before."""
    own = keys[order]
    by_key = own.argsort(kind="stable")
    own = own[by_key]
    repeated = np.zeros(len(order), dtype=np.bool_)
    repeated[by_key[1:]] = own[1:] == own[:-1]
    return order[~repeated]
