"""Predictor-based evolutionary search (FBNetV3, thesis 4.3, Algorithm 1, stage 3) over rows of option indices.

Every generation gives each survivor a number of children by adaptive crossover and mutation (`predictor.genetics`), scores
those inside the limits, and keeps the best. The default adds to the thesis' loop what makes it reliable:

- limits that few random rows meet are approached: at first rows may lie outside by a *slack*, which shrinks to 0 (the epsilon
  constraint of Takahama & Sakai, "Constrained optimization by the epsilon constrained differential evolution", CEC 2006);
- a population that stands still has one- and two-variable changes of its best row tried (`predictor.neighbours`);
- the search starts anew several times, and a last population is made of the survivors of all of them;
- a search that may look at so many rows only plans with them: the slack ends in time, and the end is kept for changes of the
  best row.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from predictor.candidates import RANDOM_BATCHES, Candidates, NothingInside, RowFunction
from predictor.genetics import Scores
from predictor.neighbours import improve
from predictor.population import EvolutionConfig, Population, children, survivors
from search_spaces.errors import UserError
from search_spaces.limits import Limit
from search_spaces.seeding import numpy_rng
from search_spaces.serialisation import require
from search_spaces.variables import Rows, VariableSet

__all__ = ["EvolutionConfig", "EvolutionResult", "evolve"]

SMALLEST_SLACK = 1e-3  # of the first one; below it there is none
# With max_evaluations: a population's slack is gone after this share of the rows that are left to it, and when this share of
# all rows is left, the best row is polished, standstill or not. Measured on FBNetV3's joint space with 10000 to 50000 rows.
WITH_SLACK, FOR_POLISHING = 0.5, 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class EvolutionResult:
    """What a search found.

    Attributes:
        rows: `(top, d)` canonical, all inside the limits, best first.
        scores: `(top,)`.
        quantities: `(top,)` by name, of every quantity given.
        evaluations: rows scored.
        checked: rows whose limited quantities were computed.
        generations: of all populations together.
        history: best score inside the limits after every generation of the search for the first answer; -inf while there is
            none.
    """

    rows: Rows
    scores: Scores
    quantities: dict[str, npt.NDArray[np.generic]]
    evaluations: int
    checked: int
    generations: int
    history: Scores


@dataclass(slots=True)
class _Search:
    """State of a search: best row and score, history, survivors of finished populations, generations for more answers."""

    candidates: Candidates
    config: EvolutionConfig
    row: Rows | None = None
    score: float = -np.inf
    history: list[float] = field(default_factory=list)
    archive: list[Population] = field(default_factory=list)
    more_generations: int = 0

    def offer(self, population: Population) -> None:
        """Remember the best row inside the limits."""
        scores = np.where(population.violations == 0, population.scores, -np.inf)
        if len(scores) and scores.max() > self.score:
            best = int(scores.argmax())
            self.row, self.score = population.rows[best], float(scores[best])


def evolve(
    variables: VariableSet,
    score: RowFunction,
    *,
    quantities: Mapping[str, RowFunction],
    limits: Mapping[str, Limit],
    config: EvolutionConfig,
    seed: int,
    start: Rows | None = None,
    fixed: Mapping[str, int] | None = None,
    canonical: Callable[[Rows], Rows] | None = None,
    top: int = 1,
    min_distance: int = 1,
) -> EvolutionResult:
    """The best rows inside all limits.

    All functions are given canonical rows `(n, d)` int64 and must not keep state: a row's score is computed once.

    Args:
        variables: of a row.
        score: `(n, d)` to `(n,)`, higher is better, finite.
        quantities: `(n, d)` to `(n,)`, by name.
        limits: by name of a quantity; may be empty.
        config: settings.
        seed: of all draws; the same seed gives the same result to the bit.
        start: `(m, d)` rows to inherit from, for example the best of the table of trials.
        fixed: option index by variable name, for variables that may not change. They are set before ``canonical`` is applied.
        canonical: maps rows that mean the same to the same row.
        top: how many answers.
        min_distance: in how many variables any two answers differ at least. One is the best row found, each further one the
            best found among rows so far from all before it.

    Raises:
        UserError: wrong rows, names or numbers; nothing inside the limits (the message tells the range that was seen); fewer
            than ``top`` answers so far apart.
    """
    require(top >= 1, f"top must be at least 1, got {top}")
    free = len(variables) - len(fixed or {})
    require(min_distance >= 1, f"min_distance must be at least 1, got {min_distance}")
    require(top == 1 or min_distance <= free, f"min_distance is {min_distance}, but only {free} variables may change")
    candidates = Candidates(
        variables, score, quantities=quantities, limits=limits, fixed=fixed, canonical=canonical, seed=seed,
        max_evaluations=config.max_evaluations,
    )  # fmt: skip
    search = _Search(candidates, config)
    given = None if start is None else candidates.prepare(variables.check_rows(start))
    _all_populations(search, given, seed)
    rows, scores = [_found(search)], [search.score]
    while len(rows) < top:
        row, value = _another(search, np.stack(rows), min_distance, top, seed)
        rows.append(row)
        scores.append(value)
    order = np.argsort(-np.array(scores), kind="stable")
    answers = np.stack(rows)[order]
    return EvolutionResult(
        rows=answers,
        scores=np.array(scores)[order],
        quantities={name: np.asarray(quantity(answers)) for name, quantity in quantities.items()},
        evaluations=candidates.evaluations,
        checked=candidates.checked,
        generations=len(search.history) + search.more_generations,
        history=np.array(search.history),
    )


def _found(search: _Search) -> Rows:
    """The best row `(d,)`; max_evaluations can end a search before there is one."""
    if search.row is None:
        raise UserError(
            f"max_evaluations={search.config.max_evaluations} ended the search before a row inside was found"
        )
    return search.row


def _all_populations(search: _Search, given: Rows | None, seed: int) -> None:
    """The first population, the restarts and the merged one."""
    config, candidates = search.config, search.candidates
    for restart in range(config.restarts + 1):
        rng = numpy_rng(seed, "evolution", restart)
        search.archive.append(_one_population(search, given if restart == 0 else None, rng, sobol=restart == 0))
        if candidates.exhausted:
            return
    if config.restarts and config.merge:
        together = search.archive[0]
        for more in search.archive[1:]:
            together = together.and_also(more)
        rng = numpy_rng(seed, "evolution", config.restarts + 1)
        search.archive.append(_evolve_population(search, together, 0.0, rng))


def _one_population(search: _Search, given: Rows | None, rng: np.random.Generator, *, sobol: bool) -> Population:
    """Evolve one population from inherited and random rows, until it stands still."""
    config, candidates = search.config, search.candidates
    first = _inherited(candidates, given, config.inherited) if given is not None and config.inherited else None
    wanted = max(1, config.first - (0 if first is None else len(first.rows)))
    # With a slack it is enough to be near, and a batch has that many.
    rows, violations = candidates.random(wanted, rng, sobol=sobol, batches=1 if config.relax else RANDOM_BATCHES)
    if not config.relax and not (violations == 0).any():
        rows = candidates.climb(rows, rng, wanted)[:wanted]
    slack = float(violations[violations < np.inf].max(initial=0.0)) if config.relax else 0.0
    population = Population(rows, *candidates.evaluate(rows, slack))
    if first is not None:
        population = first.and_also(population)
    last = _evolve_population(search, population, slack, rng)
    if search.row is None and not candidates.exhausted:
        rows = candidates.climb(last.rows if len(last.rows) else rows, rng, config.population)
        last = _evolve_population(search, Population(rows, *candidates.evaluate(rows)), 0.0, rng)
    return last


def _inherited(candidates: Candidates, given: Rows, n: int) -> Population:
    """The ``n`` best of the rows given; those inside the limits first, then the closest."""
    given = candidates.distinct(given)
    population = Population(given, *candidates.evaluate(given))
    return survivors(population, np.arange(len(given)), n, 0.0, 0.0)


def _evolve_population(search: _Search, population: Population, slack: float, rng: np.random.Generator) -> Population:
    """Generation after generation until nothing is gained; returns the last survivors."""
    config, candidates = search.config, search.candidates
    mine = _Search(candidates, config)
    mine.offer(population)
    own = np.arange(len(population.rows))
    population = survivors(population, own, config.population, slack, config.diversity)
    if not len(population.rows):  # all too close to other answers
        return population
    relaxed, stalled, polished = population, 0, False
    shrink, smallest_slack = _shrink(candidates, config), slack * SMALLEST_SLACK
    for _ in range(config.max_generations):
        if candidates.exhausted:
            break
        if slack:
            relaxed, slack = population, slack * shrink if slack > smallest_slack else 0.0
        before, closest = mine.score, population.violations.min()
        rows, family = children(candidates, population, config, rng)
        everyone = population.and_also(Population(rows, *candidates.evaluate(rows, slack)))
        mine.offer(everyone)
        family = np.concatenate([np.arange(len(population.rows)), family])
        population = survivors(everyone, family, config.population, slack, config.diversity)
        search.history.append(max(search.score, mine.score))
        gained = mine.score - before > config.tolerance or (mine.row is None and population.violations.min() < closest)
        stalled = 0 if gained or slack else stalled + 1
        ending = candidates.left < FOR_POLISHING and mine.score > search.score and config.pairs > 0 and not polished
        if stalled >= config.patience or ending:
            before, polished = mine.score, True
            population = _polish(mine, population, relaxed)
            if stalled >= config.patience and not mine.score - before > config.tolerance:
                break
            relaxed, stalled = population, 0
    search.offer(population)
    if mine.score > search.score:
        search.row, search.score = mine.row, mine.score
    return population


def _shrink(candidates: Candidates, config: EvolutionConfig) -> float:
    """The factor of the slack a generation; smaller where the rows that may still be looked at are few."""
    if config.max_evaluations is None:
        return config.shrink
    rows = WITH_SLACK * candidates.left * config.max_evaluations
    return min(config.shrink, float(SMALLEST_SLACK ** (config.population * config.children / max(rows, 1.0))))


def _polish(mine: _Search, population: Population, relaxed: Population) -> Population:
    """Neighbours of the best row and of the best one when limits were last relaxed; what is found leads the population."""
    if not mine.config.pairs:
        return population
    starts = [(population.rows[0], mine.score)]
    if relaxed is not population and relaxed.keys[0] != population.keys[0]:
        starts.append((relaxed.rows[0], -np.inf))
    for row, score in starts:
        row, score = improve(mine.candidates, row, score, pairs=mine.config.pairs)
        if score > mine.score:
            leader = Population(row[None], *mine.candidates.evaluate(row[None]))
            mine.offer(leader)
            population = leader.and_also(population)
    return population


def _another(search: _Search, taken: Rows, min_distance: int, top: int, seed: int) -> tuple[Rows, float]:
    """The best row `(d,)` found that differs from all ``taken`` ones, and its score; by one more population, which inherits."""
    candidates = search.candidates
    candidates.taken, candidates.min_distance = taken, min_distance
    more = _Search(candidates, search.config)
    given = np.concatenate([population.rows for population in search.archive])
    try:
        survived = _one_population(more, given, numpy_rng(seed, "evolution another", len(taken)), sobol=False)
    except NothingInside:  # that is far enough away
        survived = None
    if survived is None or more.row is None:
        raise UserError(
            f"only {len(taken)} of {top} answers that differ in at least {min_distance} variables were found; "
            "lower top or min_distance"
        )
    search.archive.append(survived)
    search.more_generations += len(more.history)
    return more.row, more.score
