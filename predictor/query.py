"""Stage 3 of NARS: the best network and recipe inside limits, by the accuracy predictor (thesis 4.3, Algorithm 1).

A query evolves rows of option indices (`predictor.evolve`). What a generation needs of its rows, canonical form and exact
FLOPs, parameters, resolution and latency, comes from look-up tables that are built once for a space. No torch here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from predictor.candidates import NothingInside, RowFunction
from predictor.evolve import EvolutionConfig, evolve
from predictor.features import STATISTICS, Values, canonical_rows
from predictor.pareto import pareto
from predictor.predictor import Predictor
from predictor.quantities import LATENCY, SpaceQuantities
from recipes.recipe import Recipe
from recipes.space import JointSpace, RecipeSpace
from search_spaces.architecture import Architecture
from search_spaces.errors import UserError, closest
from search_spaces.limits import Limit, format_quantity
from search_spaces.options import option_index, option_text
from search_spaces.sampling import extreme_cost
from search_spaces.serialisation import require
from search_spaces.space import SearchSpace
from search_spaces.variables import Rows, VariableSet

if TYPE_CHECKING:
    import pandas as pd

PRESETS: Mapping[str, Callable[[], EvolutionConfig]] = MappingProxyType(
    {"default": EvolutionConfig, "thesis": EvolutionConfig.thesis}
)
MIN_DISTANCE = 3  # variables in which any two of several answers differ, where nothing else is asked for


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A candidate that a query found.

    Attributes:
        row: option index of every variable, canonical.
        values: option of every variable by name.
        predicted: accuracy in percent.
        spread: standard deviation over the predictor's members, percentage points.
        quantities: exact ``flops``, ``params``, ``resolution`` and what else is known, by name.
        architecture: None where the space has no networks, or a fixed one.
        recipe: None where the space has no recipes.
    """

    row: tuple[int, ...]
    values: dict[str, Any]
    predicted: float
    spread: float
    quantities: dict[str, float]
    architecture: Architecture | None
    recipe: Recipe | None


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryResult:
    """Answers to one question.

    Attributes:
        limits: that all answers are inside of.
        answers: best first; of a front from the cheapest to the best.
        scored: candidates whose accuracy was predicted.
        checked: candidates whose limited quantities were computed.
        generations: of all populations together.
    """

    limits: dict[str, Limit]
    answers: tuple[Answer, ...]
    scored: int
    checked: int = 0
    generations: int = 0

    def frame(self) -> "pd.DataFrame":
        """One line an answer: predicted, spread, quantities, every variable's value; a table that `read_table` reads."""
        import pandas as pd

        lines = [
            {
                "predicted": answer.predicted, "spread": answer.spread, **answer.quantities,
                **{name: option_text(value) for name, value in answer.values.items()},
            }
            for answer in self.answers
        ]  # fmt: skip
        return pd.DataFrame(lines)


def query(
    predictor: Predictor,
    *,
    limits: Mapping[str, Limit] | None = None,
    fixed: Mapping[str, Any] | None = None,
    top: int = 1,
    min_distance: int | None = None,
    preset: str | EvolutionConfig = "default",
    seed: int = 0,
    start: Rows | None = None,
    quantities: SpaceQuantities | None = None,
) -> QueryResult:
    """The candidates of the highest predicted accuracy inside all limits.

    Args:
        predictor: of the space that is searched.
        limits: by quantity, see `SpaceQuantities`.
        fixed: option by variable name, for variables that may not change.
        top: how many answers.
        min_distance: in how many variables any two answers differ at least; default 3, or all where fewer are free.
        preset: ``"default"``, ``"thesis"`` (the published settings), or a configuration.
        seed: of all draws; the same seed gives the same answers.
        start: `(m, d)` rows to inherit from, for example the best of a table of trained candidates.
        quantities: of the space; default those of the predictor's own classes and channels. A latency limit needs its own.

    Raises:
        UserError: a limit that nothing meets (the message tells the reachable range), an unknown quantity, variable or option,
            or a predictor whose inputs cannot be counted for new rows.
    """
    limits = dict(limits or {})
    question = _Question(predictor, quantities, limits, fixed)
    try:
        found = evolve(
            question.variables, question.score, quantities=question.functions, limits=limits,
            config=load_preset(preset), seed=seed, start=start, fixed=question.fixed, canonical=question.canonical, top=top,
            min_distance=question.distance(top, min_distance),
        )  # fmt: skip
    except NothingInside as error:
        raise UserError(f"{error}{question.reachable()}") from error
    return QueryResult(
        limits=limits, answers=question.answers(found.rows), scored=found.evaluations, checked=found.checked,
        generations=found.generations,
    )  # fmt: skip


def query_front(
    predictor: Predictor,
    quantity: str,
    limit: Limit,
    *,
    limits: Mapping[str, Limit] | None = None,
    fixed: Mapping[str, Any] | None = None,
    points: int = 32,
    preset: str | EvolutionConfig = "default",
    seed: int = 0,
    start: Rows | None = None,
    quantities: SpaceQuantities | None = None,
) -> QueryResult:
    """The Pareto front of predicted accuracy against one quantity, in one run.

    Args:
        predictor: of the space that is searched; what is not said here is as in `query`.
        quantity: name of the quantity.
        limit: range of it.
        limits: of other quantities.
        fixed: option by variable name.
        points: equal parts of the range; the front keeps the best answer of each, and none that another one beats in both.
        preset: of the evolution.
        seed: of all draws.
        start: rows to inherit from.
        quantities: of the space.

    Returns:
        ``points`` answers at most, from the cheapest to the most accurate.

    Raises:
        UserError: as `query`.
    """
    require(points >= 1, f"points must be at least 1, got {points}")
    asked = {**(limits or {}), quantity: limit}
    question = _Question(predictor, quantities, asked, fixed)
    low = limit.low or question.smallest(quantity)
    require(low <= limit.high, f"{quantity} of {question.name} starts at {format_quantity(low)}, asked for {limit}")
    try:
        front = pareto(
            question.variables, question.score, quantity=quantity, low=low, high=limit.high, bins=points,
            quantities=question.functions, config=load_preset(preset), seed=seed,
            limits={name: other for name, other in asked.items() if name != quantity}, start=start, fixed=question.fixed,
            canonical=question.canonical,
        )  # fmt: skip
    except NothingInside as error:
        raise UserError(f"{error}{question.reachable()}") from error
    width = (limit.high - low) / points
    part = np.zeros(len(front.rows)) if width <= 0 else np.minimum((front.values - low) // width, points - 1)
    best = np.flatnonzero(np.append(part[1:] != part[:-1], True))  # scores rise along the front
    return QueryResult(
        limits=asked, answers=question.answers(front.rows[best]), scored=front.evaluations,
        generations=front.generations,
    )  # fmt: skip


def query_among(
    predictor: Predictor,
    rows: Rows,
    given: Mapping[str, npt.ArrayLike],
    *,
    limits: Mapping[str, Limit] | None = None,
    fixed: Mapping[str, Any] | None = None,
    top: int = 1,
    min_distance: int | None = None,
) -> QueryResult:
    """The best of given candidates: for tabular benchmarks, whose FLOPs stand in the table and cannot be counted.

    Args:
        predictor: of the space.
        rows: `(n, d)` candidates.
        given: quantities `(n,)` by name; those that the predictor reads must be among them, unless it counts them itself.
        limits: by quantity.
        fixed: option by variable name.
        top: how many answers.
        min_distance: in how many variables any two answers differ at least; default 3, or all where fewer are free.

    Raises:
        UserError: a limit that no candidate meets, fewer than ``top`` candidates so far apart, or missing quantities.
    """
    limits, variables = dict(limits or {}), predictor.variables
    rows = canonical_rows(variables, rows)
    known = {name: np.asarray(function(rows)) for name, function in predictor.quantities.functions.items()}
    known |= {name: np.asarray(values) for name, values in given.items()}
    inside = np.ones(len(rows), dtype=np.bool_)
    for name, limit in limits.items():
        require(name in known, f"the candidates have no {name} to limit{closest(name, known)}")
        inside &= limit.holds(known[name])
    options = fixed_options(variables, fixed or {})
    for name, option in options.items():
        inside &= rows[:, variables.column[name]] == option
    if not inside.any():
        wanted = " and ".join(
            [*(f"{k} {v}" for k, v in limits.items()), *(f"{k}={v}" for k, v in (fixed or {}).items())]
        )
        ranges = [f"{k} from {format_quantity(known[k].min())} to {format_quantity(known[k].max())}" for k in limits]
        raise UserError(
            f"none of {len(rows)} candidates has {wanted}; they have {', '.join(ranges) or 'other options'}"
        )
    chosen = np.flatnonzero(inside)
    read = {name: known[name][chosen] for name in predictor.statistics if name in known}
    scores = predictor.predict(rows[chosen], read or None)
    order = chosen[np.argsort(-scores, kind="stable")]
    far = _far_apart(rows[order], top, _distance(variables, options, top, min_distance))
    require(len(far) == top, f"only {len(far)} of {top} answers differ in so many variables; lower top or min_distance")
    picked = order[far]
    extras = {name: values[picked] for name, values in known.items()}
    return QueryResult(
        limits=limits, answers=_answers(predictor, rows[picked], extras), scored=len(chosen), checked=len(rows)
    )


def load_preset(name: str | EvolutionConfig) -> EvolutionConfig:
    """Settings of the evolution by name; an EvolutionConfig is returned as it is.

    Raises:
        UserError: nothing of that name.
    """
    if isinstance(name, EvolutionConfig):
        return name
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}{closest(name, PRESETS)}")
    return PRESETS[name]()


def fixed_options(variables: VariableSet, fixed: Mapping[str, Any]) -> dict[str, int]:
    """Option index by variable name of options given as values or texts, ``{"resolution": 224}``.

    Raises:
        UserError: an unknown variable, or a value that is none of its options.
    """
    found = {}
    for name, value in fixed.items():
        if name not in variables.column:
            raise UserError(f"unknown variable {name!r}{closest(name, variables.column)}")
        options = variables.variables[variables.column[name]].options
        found[name] = option_index(value, options)
        if found[name] < 0:
            allowed = ", ".join(option_text(option) for option in options)
            raise UserError(f"{name} must be one of {allowed}, got {option_text(value)!r}")
    return found


class _Question:
    """A predictor and what is asked of it, as `evolve` takes it."""

    def __init__(
        self,
        predictor: Predictor,
        quantities: SpaceQuantities | None,
        limits: Mapping[str, Limit],
        fixed: Mapping[str, Any] | None,
    ) -> None:
        self.predictor, self.variables, self.limits = predictor, predictor.variables, limits
        own = predictor.quantities
        self.read = {name: own.functions[name] for name in predictor.statistics if name in own.functions}
        if len(self.read) < len(predictor.statistics):
            raise UserError(
                f"this predictor reads {' and '.join(predictor.statistics)}, which cannot be counted for new candidates of its"
                " space; ask it about a table of candidates"
            )
        self.quantities = quantities or own
        self.functions, self.canonical = self.quantities.functions, self.quantities.canonical
        self.fixed = fixed_options(self.variables, fixed or {})
        for name in limits:
            if name == LATENCY and name not in self.functions and self.functions:
                raise UserError("a limit of latency_ms needs a latency table (nas latency --space makes one)")
            known = ", ".join(self.functions) or "nothing"
            require(name in self.functions, f"{name} of {self.name} cannot be limited; known are: {known}")

    @property
    def name(self) -> str:
        """What the space is called."""
        return str(getattr(self.variables, "name", "") or "the space")

    def score(self, rows: Rows) -> Values:
        """Predicted accuracies `(n,)`."""
        return self.predictor.predict(rows, {name: function(rows) for name, function in self.read.items()} or None)

    def distance(self, top: int, min_distance: int | None) -> int:
        """Variables in which answers differ."""
        return _distance(self.variables, self.fixed, top, min_distance)

    def smallest(self, quantity: str) -> float:
        """Lower end of a quantity over the whole space, where it can be told."""
        tables = self.quantities.tables
        if tables is None or quantity not in STATISTICS:
            raise UserError(f"a front along {quantity} needs both ends of its range, low:high")
        return extreme_cost(tables, quantity, largest=False)[0]

    def reachable(self) -> str:
        """For the message: the whole range of the limited quantities that can be counted, where all networks may be chosen."""
        tables = self.quantities.tables
        if tables is None or any(name in tables.space.column for name in self.fixed):
            return ""
        parts = []
        for name in self.limits:
            if name in STATISTICS:
                low, high = (extreme_cost(tables, name, largest=largest)[0] for largest in (False, True))
                parts.append(f"{name} from {format_quantity(low)} to {format_quantity(high)}")
        return f"; networks of {self.name} have {', '.join(parts)}" if parts else ""

    def answers(self, rows: Rows) -> tuple[Answer, ...]:
        """Answers of rows `(n, d)`."""
        return _answers(
            self.predictor, rows, {name: np.asarray(f(rows)) for name, f in self.functions.items()}, self.read
        )


def _answers(
    predictor: Predictor,
    rows: Rows,
    quantities: Mapping[str, npt.NDArray[Any]],
    read: Mapping[str, RowFunction] | None = None,
) -> tuple[Answer, ...]:
    """Answers of rows `(n, d)` with quantities `(n,)` by name; ``read`` are the predictor's own."""
    inputs = {name: function(rows) for name, function in (read or {}).items()}
    inputs |= {name: quantities[name] for name in predictor.statistics if name not in inputs and name in quantities}
    members = predictor.members(rows, inputs or None)
    made = []
    for index, row in enumerate(rows):
        architecture, recipe = _decoded(predictor.variables, row)
        made.append(
            Answer(
                row=tuple(map(int, row)), values=predictor.variables.values(row),
                predicted=float(members[index].mean()), spread=float(members[index].std()),
                quantities={name: values[index].item() for name, values in quantities.items()},
                architecture=architecture, recipe=recipe,
            )
        )  # fmt: skip
    return tuple(made)


def _decoded(variables: VariableSet, row: Rows) -> tuple[Architecture | None, Recipe | None]:
    """Network and recipe of one row `(d,)`, None for what the space does not have."""
    if isinstance(variables, JointSpace):
        return variables.decode(row)
    if isinstance(variables, SearchSpace):
        return variables.decode(row), None
    return None, variables.decode(row) if isinstance(variables, RecipeSpace) else None


def _distance(variables: VariableSet, fixed: Mapping[str, int], top: int, min_distance: int | None) -> int:
    """In how many variables answers differ."""
    if min_distance is not None or top <= 1:
        return min_distance or 1
    free = sum(len(variable.options) > 1 and variable.name not in fixed for variable in variables.variables)
    return max(1, min(MIN_DISTANCE, free))


def _far_apart(rows: Rows, top: int, distance: int) -> list[int]:
    """Positions of up to ``top`` rows, the first ones first, that differ from all chosen before in so many variables."""
    chosen: list[int] = []
    free = np.ones(len(rows), dtype=np.bool_)
    while len(chosen) < top and free.any():
        chosen.append(int(free.argmax()))
        free &= np.count_nonzero(rows != rows[chosen[-1]], axis=1) >= distance
    return chosen
