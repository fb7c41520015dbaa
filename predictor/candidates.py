"""What an evolutionary search asks of its candidates: canonical rows, limits, scores, each computed once."""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from predictor.genetics import Mutation, Options, Scores, crossover
from predictor.row_memory import Keys, RowMemory
from search_spaces.errors import UserError, closest
from search_spaces.limits import Limit, format_quantity
from search_spaces.sampling import sobol_rows, uniform_rows
from search_spaces.seeding import numpy_rng, stream_seed
from search_spaces.serialisation import require
from search_spaces.variables import Rows, VariableSet

RowFunction = Callable[[Rows], npt.ArrayLike]

RANDOM_BATCH, RANDOM_BATCHES = 2048, 4
# Search for any row inside the limits at all, where nothing else found one: a (64 + 64 x 24) evolution on the violation.
CLIMBERS, CLIMB_CHILDREN, CLIMB_PATIENCE, CLIMB_GENERATIONS = 64, 24, 20, 500


class NothingInside(UserError):
    """No row inside the limits was found."""


class Candidates:
    """The rows a search may use, and what it has learnt about them.

    *Prepared* rows have the fixed variables set and are canonical; all methods but `prepare` take such rows. The *violation* of
    a row is how far outside the limits it is, relative to each limit's upper end and summed: 0 inside.

    Args:
        variables: of a row.
        score: `(n, d)` to `(n,)`, higher is better; the same row must always give the same score.
        quantities: `(n, d)` to `(n,)`, by name.
        limits: by quantity.
        fixed: option index by variable name, for variables that may not change.
        canonical: maps rows that mean the same to the same row; by default every row stands for itself.
        seed: of all draws.
        max_evaluations: rows scored at most; with limits also rows measured, up to the end of a generation.

    Attributes:
        evaluations: rows scored so far.
        checked: rows so far whose quantities were computed.
        seen: by limited quantity the smallest and largest value so far.
        taken: `(k, d)` rows that others must differ from, by at least ``min_distance`` variables.

    Raises:
        UserError: a limit of an unknown quantity, an unknown fixed variable or an option it does not have.
    """

    def __init__(
        self,
        variables: VariableSet,
        score: RowFunction,
        *,
        quantities: Mapping[str, RowFunction],
        limits: Mapping[str, Limit],
        fixed: Mapping[str, int] | None,
        canonical: Callable[[Rows], Rows] | None,
        seed: int,
        max_evaluations: int | None = None,
    ) -> None:
        for name in limits:
            require(name in quantities, f"no quantity {name!r} to limit{closest(name, quantities)}")
        self.variables, self.score, self.quantities, self.limits = variables, score, dict(quantities), dict(limits)
        self.canonical, self.seed = canonical, seed
        self.fixed_columns, self.fixed_options = _fixed(variables, fixed or {})
        self.free = np.ones(len(variables), dtype=np.bool_)
        self.free[self.fixed_columns] = False
        self.mutation = Mutation(variables, self.free)
        self.memory = RowMemory(len(variables), numpy_rng(seed, "evolution keys"))
        self.evaluations = self.checked = 0
        self.max_evaluations = np.iinfo(np.int64).max if max_evaluations is None else max_evaluations
        self.seen = dict.fromkeys(limits, (np.inf, -np.inf))
        self.taken, self.min_distance = np.empty((0, len(variables)), dtype=np.int64), 1

    @property
    def exhausted(self) -> bool:
        """Whether no more rows may be looked at."""
        return max(self.evaluations, self.checked) >= self.max_evaluations

    @property
    def left(self) -> float:
        """Share of the rows that may be looked at that have not been."""
        return max(0.0, 1.0 - max(self.evaluations, self.checked) / self.max_evaluations)

    def prepare(self, rows: Rows) -> Rows:
        """Prepared rows `(n, d)`; may write into ``rows``."""
        if len(self.fixed_columns):
            rows[:, self.fixed_columns] = self.fixed_options
        return rows if self.canonical is None else np.ascontiguousarray(self.canonical(rows), dtype=np.int64)

    def measure(self, rows: Rows) -> dict[str, Scores]:
        """All limited quantities, each `(n,)` float64."""
        self.checked += len(rows)
        values = {name: np.asarray(self.quantities[name](rows), dtype=np.float64) for name in self.limits}
        for name, value in values.items():
            require(value.shape == (len(rows),), f"{len(rows)} rows need as many {name}, got shape {value.shape}")
            low, high = self.seen[name]
            if len(value):
                self.seen[name] = (min(low, float(np.fmin.reduce(value))), max(high, float(np.fmax.reduce(value))))
        return values

    def violation(self, rows: Rows) -> Scores:
        """Violations `(n,)`, infinite where a quantity is not a number."""
        total = np.zeros(len(rows))
        for name, value in self.measure(rows).items() if self.limits else ():
            limit = self.limits[name]
            outside = np.maximum(np.maximum(value - limit.high, limit.low - value), 0.0) / limit.high
            total += np.where(np.isnan(outside), np.inf, outside)
        return total

    def evaluate(self, rows: Rows, slack: float = 0.0) -> tuple[Scores, Scores, Keys]:
        """Scores, violations and keys, each `(n,)`, of rows; nothing is computed twice for a row.

        Rows whose violation exceeds ``slack`` are not scored and get -inf, unless they were scored before. Rows too close to
        `taken` ones get an infinite violation.
        """
        keys = self.memory.keys(rows)
        places, new = self.memory.add(keys)
        fresh = np.flatnonzero(new)
        self.memory.put_violations(places[fresh], self.violation(rows.take(fresh, axis=0)))
        scores, violations = self.memory.get(places)
        self._fill(rows, places, scores, fresh[violations[fresh] <= slack])
        # A row that is twice in the batch, or was measured before under a smaller slack.
        again = np.flatnonzero(np.isnan(scores) & (violations <= slack))
        if len(again):
            scores[again], _ = self.memory.get(places[again])
            again = again[np.isnan(scores[again])]
        if len(again) and not self.exhausted:
            self._fill(rows, places, scores, again[np.unique(places[again], return_index=True)[1]])
            scores[again], _ = self.memory.get(places[again])
        return np.where(np.isnan(scores), -np.inf, scores), self._with_distance(rows, violations), keys

    def _with_distance(self, rows: Rows, violations: Scores) -> Scores:
        """Violations `(n,)`, infinite for rows too close to `taken` ones."""
        for taken in self.taken:
            close = np.count_nonzero(rows != taken, axis=1) < self.min_distance
            violations = np.where(close, np.inf, violations)
        return violations

    def _fill(self, rows: Rows, places: npt.NDArray[np.int64], scores: Scores, chosen: npt.NDArray[np.int64]) -> None:
        """Score the rows ``chosen``, as many as may be; ``scores`` and the memory take them."""
        chosen = chosen[: max(0, self.max_evaluations - self.evaluations)]
        if len(chosen):
            scores[chosen] = self._scores(rows.take(chosen, axis=0))
            self.memory.put_scores(places[chosen], scores[chosen])

    def _scores(self, rows: Rows) -> Scores:
        """Scores `(n,)`.

        Raises:
            UserError: a score that is not a finite number.
        """
        self.evaluations += len(rows)
        scores = np.asarray(self.score(rows), dtype=np.float64)
        require(scores.shape == (len(rows),), f"{len(rows)} rows need as many scores, got shape {scores.shape}")
        bad = len(rows) - int(np.isfinite(scores).sum())
        require(bad == 0, f"the score of {bad} of {len(rows)} rows is not a finite number")
        return scores

    def random(
        self, n: int, rng: np.random.Generator, *, sobol: bool, batches: int = RANDOM_BATCHES
    ) -> tuple[Rows, Scores]:
        """Up to ``n`` different random rows, those inside the limits and then the closest, with their violations `(n,)`.

        Draws ``batches`` at most, fewer where enough rows are inside. Half of the first one can come from a Sobol sequence.
        """
        pools, violations, inside = [], [], 0
        for batch in range(batches if self.limits else 1):
            rows = uniform_rows(self.variables, max(n, RANDOM_BATCH) if self.limits else n, rng)
            if batch == 0 and sobol:
                half = (len(rows) + 1) // 2
                rows[:half] = sobol_rows(self.variables, half, stream_seed(self.seed, "evolution sobol"))
                rng.shuffle(rows)
            pools.append(self.distinct(self.prepare(rows)))
            violations.append(self.violation(pools[-1]))
            inside += int(np.count_nonzero(violations[-1] == 0))
            if inside >= n:
                break
        violation = np.concatenate(violations)
        order = np.argsort(violation, kind="stable")[:n]
        return np.concatenate(pools)[order], violation[order]

    def climb(self, rows: Rows, rng: np.random.Generator, wanted: int = 1) -> Rows:
        """Rows `(m, d)` inside the limits, 64 at most, by evolution towards a smaller violation.

        Args:
            rows: `(n, d)` to start from.
            rng: of the draws.
            wanted: how many to stop at.

        Raises:
            NothingInside: none found; the message tells the range that was seen.
        """
        violation, best, stalled = self._with_distance(rows, self.violation(rows)), np.inf, 0
        for _ in range(CLIMB_GENERATIONS):
            parents = np.repeat(rows, CLIMB_CHILDREN, axis=0)
            mates = rows[rng.integers(0, len(rows), size=len(parents))]
            children: Options = crossover(parents, mates, np.full(len(parents), 0.5), rng)
            rate = np.full(len(parents), 1.0 / max(1, len(self.mutation.columns)))
            children = self.mutation(children, rate, rng, at_least_one=True)
            children = self.prepare(children.astype(np.int64))
            rows, violation = (
                np.concatenate([rows, children]),
                np.concatenate([violation, self._with_distance(children, self.violation(children))]),
            )
            _, first = np.unique(self.memory.keys(rows), return_index=True)
            order = first[np.argsort(violation[first], kind="stable")][:CLIMBERS]
            rows, violation = rows[order], violation[order]
            if np.count_nonzero(violation == 0) >= min(wanted, len(rows)):
                break
            total = float(violation[np.isfinite(violation)].sum()) if violation[0] else 0.0
            stalled, best = (0, total) if total < best else (stalled + 1, best)
            if stalled > CLIMB_PATIENCE:
                break
        if violation[0] > 0:
            raise NothingInside(self._nothing_inside())
        return np.asarray(rows[violation == 0])

    def distinct(self, rows: Rows) -> Rows:
        """Rows without repetitions, in the order of their first appearance."""
        _, first = np.unique(self.memory.keys(rows), return_index=True)
        return rows[np.sort(first)]

    def _nothing_inside(self) -> str:
        """The rule, the value and the way out, in one line."""
        wanted = " and ".join(f"{name} {limit}" for name, limit in self.limits.items())
        parts = []
        for name, (low, high) in self.seen.items():
            if low > self.limits[name].high:
                parts.append(f"smallest {name} was {format_quantity(low)}")
            elif high < self.limits[name].low:
                parts.append(f"largest {name} was {format_quantity(high)}")
            else:
                parts.append(f"{name} went from {format_quantity(low)} to {format_quantity(high)}")
        return f"0 of {self.checked} candidates have {wanted}; {', '.join(parts)}"


def _fixed(variables: VariableSet, fixed: Mapping[str, int]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Columns and options `(k,)` of the fixed variables."""
    for name, option in fixed.items():
        require(name in variables.column, f"unknown variable {name!r}{closest(name, variables.column)}")
        count = len(variables.variables[variables.column[name]].options)
        require(0 <= option < count, f"{name} has options 0..{count - 1}, got {option}")
    columns = np.array([variables.column[name] for name in fixed], dtype=np.int64)
    return columns, np.array(list(fixed.values()), dtype=np.int64)
