from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from landscapes import Landscape

from predictor.candidates import Candidates
from predictor.evolve import EvolutionResult, evolve
from predictor.neighbours import neighbours
from predictor.population import EvolutionConfig, Population, survivors
from search_spaces.errors import UserError
from search_spaces.fbnetv3 import fbnetv3
from search_spaces.limits import Limit
from search_spaces.stage_tables import CanonicalTables, StageTables
from search_spaces.tables import SpaceTables
from search_spaces.variables import Choice, Range, Rows, VariableSet

QUICK = EvolutionConfig(first=60, population=20, children=8, restarts=1, pairs=200)


def search(land: Landscape, limits: dict[str, Limit] | None = None, **options: Any) -> EvolutionResult:
    quantities = {"flops": land.cost, "inverse": land.inverse}
    defaults: dict[str, Any] = {"quantities": quantities, "limits": limits or {}, "config": QUICK, "seed": 0}
    return evolve(land.variables, **{"score": land.score, **defaults, **options})


# What is found ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [None, 0.3, 0.02])
def test_default_finds_the_true_optimum(share: float | None) -> None:
    """46080 rows, by brute force."""
    for seed in range(3):
        land = Landscape((3, 8, 5, 2, 4, 6, 2, 4), seed)
        cost, score = land.cost(land.rows), land.score(land.rows)
        limit = None if share is None else Limit(high=float(np.quantile(cost, share)))
        best = score.max() if limit is None else score[limit.holds(cost)].max()
        found = search(land, {"flops": limit} if limit else None, config=EvolutionConfig(), seed=seed)
        np.testing.assert_allclose(found.scores, [best], rtol=1e-12)
        assert (found.scores == land.score(found.rows)).all()


def test_default_finds_the_best_of_a_narrow_band() -> None:
    """Few of 36864 rows are inside, random search meets none or one of them in its first batch."""
    land = Landscape((4, 4, 4, 4, 4, 6, 6), 7)
    cost, score = land.cost(land.rows), land.score(land.rows)
    low = float(np.quantile(cost, 0.01))
    band = Limit(low=low, high=low * 1.003)
    assert 2 <= band.holds(cost).sum() <= 40
    found = search(land, {"flops": band}, config=EvolutionConfig())
    np.testing.assert_allclose(found.scores, [score[band.holds(cost)].max()], rtol=1e-12)


@pytest.mark.parametrize("config", [QUICK, EvolutionConfig.thesis(), replace(QUICK, diversity=0.5, changes=None)])
def test_limits_always_hold(config: EvolutionConfig) -> None:
    land, rng = Landscape((3, 8, 5, 2, 4, 6), 1), np.random.default_rng(5)
    cost, inverse = land.cost(land.rows), land.inverse(land.rows)
    met = 0
    for seed in range(15):
        low, high = np.sort(rng.uniform(cost.min(), cost.max(), size=2))
        other = Limit(high=float(rng.uniform(inverse.min(), inverse.max())))
        limits = {"flops": Limit(low=low, high=high), "inverse": other}
        inside = limits["flops"].holds(cost) & other.holds(inverse)
        if not inside.any():
            with pytest.raises(UserError, match="0 of "):
                search(land, limits, config=config, seed=seed)
            continue
        found = search(land, limits, config=config, seed=seed, top=2 if inside.sum() > 100 else 1)
        met += 1
        assert limits["flops"].holds(land.cost(found.rows)).all() and other.holds(land.inverse(found.rows)).all()
        assert (found.quantities["flops"] == land.cost(found.rows)).all()
    assert met >= 5


def test_canonical_rows_are_what_functions_and_users_see() -> None:
    land, seen = Landscape((4, 6, 5, 6), 2), []

    def canonical(rows: Rows) -> Rows:
        return rows - rows % 2 * (rows[:, :1] > 1)  # where v0 > 1, odd options are even ones

    def score(rows: Rows) -> Any:
        seen.append(rows.copy())
        return land.score(rows)

    found = evolve(
        land.variables, score, quantities={}, limits={}, config=EvolutionConfig(), seed=0, canonical=canonical
    )
    rows = np.concatenate(seen)
    assert (canonical(rows) == rows).all() and (canonical(found.rows) == found.rows).all()
    assert len(np.unique(rows, axis=0)) == len(rows) == found.evaluations  # nothing is scored twice
    np.testing.assert_allclose(found.scores[0], land.score(canonical(land.rows)).max())


def test_fixed_variables_keep_their_option() -> None:
    land = Landscape((4, 6, 5, 6, 3), 3)
    fixed = {"v1": 5, "v4": 0}
    found = search(land, fixed=fixed, config=EvolutionConfig())
    mask = (land.rows[:, 1] == 5) & (land.rows[:, 4] == 0)
    np.testing.assert_allclose(found.scores[0], land.score(land.rows[mask]).max())
    assert found.rows[0, 1] == 5 and found.rows[0, 4] == 0
    everything = {f"v{i}": 1 for i in range(5)}
    assert search(land, fixed=everything).rows.tolist() == [[1] * 5]


def test_fixed_comes_before_canonical() -> None:
    """A fixed expansion of a skipped layer reads 0 in a canonical row, and must come back when the layer does."""
    variables = VariableSet(
        [Choice("skip", (0, 1)), Range("e", (0, 1, 2))] + [Range(f"x{i}", (0, 1, 2)) for i in range(6)]
    )

    def canonical(rows: Rows) -> Rows:
        rows = rows.copy()
        rows[rows[:, 0] == 1, 1] = 0
        return rows

    seen = []

    def score(rows: Rows) -> Any:
        seen.append(rows)
        return rows.sum(axis=1) - 5.0 * rows[:, 0]

    found = evolve(
        variables, score, quantities={}, limits={}, config=QUICK, seed=0, canonical=canonical, fixed={"e": 1}
    )
    rows = np.concatenate(seen)
    assert found.rows.tolist() == [[0, 1, 2, 2, 2, 2, 2, 2]]
    assert (rows[:, 1] == 1 - rows[:, 0]).all() and (rows[:, 0] == 1).any()


def test_answers_differ_by_the_distance_asked() -> None:
    land = Landscape((3, 4, 5, 2, 4, 3), 4)
    found = search(land, config=EvolutionConfig(), top=4, min_distance=3)
    distances = (found.rows[:, None] != found.rows[None]).sum(axis=2)
    assert distances[~np.eye(4, dtype=bool)].min() >= 3
    score, allowed = land.score(land.rows), np.ones(len(land.rows), dtype=bool)
    for row, value in zip(found.rows, found.scores, strict=True):  # greedily the best of what is left
        np.testing.assert_allclose(value, score[allowed].max())
        allowed &= (land.rows != row).sum(axis=1) >= 3


def test_more_answers_than_there_are() -> None:
    land = Landscape((2, 2, 2), 0)
    assert len(search(land, top=8).rows) == 8
    with pytest.raises(UserError, match="only 8 of 9 answers that differ in at least 1 variables"):
        search(land, top=9)
    with pytest.raises(UserError, match="only 2 of 3 answers that differ in at least 3 variables"):
        search(land, top=3, min_distance=3)


def test_start_rows_are_inherited() -> None:
    """The score rewards one row alone: nothing leads to it."""
    variables = VariableSet([Range(f"v{i}", tuple(range(6))) for i in range(12)])
    needle = np.array([3, 1, 4, 1, 5, 2, 0, 5, 3, 5, 2, 4])

    def score(rows: Rows) -> Any:
        return (rows == needle).all(axis=1).astype(float)

    others = np.random.default_rng(0).integers(0, 6, size=(80, 12))
    start = np.concatenate([others, needle[None]])
    options: dict[str, Any] = {"quantities": {}, "limits": {}, "config": EvolutionConfig.thesis(), "seed": 0}
    assert evolve(variables, score, **options).scores[0] == 0
    assert evolve(variables, score, start=start, **options).rows.tolist() == [needle.tolist()]
    assert evolve(variables, score, start=start, **{**options, "config": QUICK}).rows.tolist() == [needle.tolist()]


# How it goes about it -----------------------------------------------------------------------------------------------------


def test_same_seed_same_result(fresh_python: Callable[[str], str]) -> None:
    land = Landscape((3, 8, 5, 2, 4, 6), 6)
    limits = {"flops": Limit(high=float(np.quantile(land.cost(land.rows), 0.2)))}
    np.random.seed(1)  # noqa: NPY002 - the global state must not matter
    first = search(land, limits, top=2)
    np.random.seed(2)  # noqa: NPY002
    second = search(land, limits, top=2)
    assert first.rows.tobytes() == second.rows.tobytes() and first.history.tobytes() == second.history.tobytes()
    assert (first.evaluations, first.checked) == (second.evaluations, second.checked)
    assert search(land, limits, seed=1).history.tolist() != first.history.tolist()
    printed = fresh_python(
        "import sys; sys.path.insert(0, 'tests/predictor')\nfrom test_evolve import *\n"
        "land = Landscape((3, 8, 5, 2, 4, 6), 6)\n"
        "limits = {'flops': Limit(high=float(np.quantile(land.cost(land.rows), 0.2)))}\n"
        "print(search(land, limits, top=2).history.tobytes().hex())"
    )
    assert printed.strip() == first.history.tobytes().hex()


def test_history_and_evaluation_budget() -> None:
    land = Landscape((3, 8, 5, 2, 4, 6), 6)
    found = search(land, config=replace(QUICK, max_evaluations=400))
    assert found.evaluations == 400
    assert len(found.history) == found.generations and (np.diff(found.history) >= 0).all()
    assert found.history[-1] <= found.scores[0]
    one = search(land, config=replace(QUICK, max_evaluations=1))
    assert one.evaluations == 1 and len(one.rows) == 1


def test_thesis_preset_is_the_published_loop() -> None:
    """One population of 40 with 24 children each that ends with the first generation without gain."""
    land = Landscape((3, 8, 5, 2, 4, 6, 4, 4), 8)
    config = EvolutionConfig.thesis()
    assert (config.first, config.inherited, config.population, config.children) == (100, 50, 40, 24)
    found = search(land, config=config)
    gains = np.diff(found.history)
    assert (gains[:-1] > 1e-6).all() and gains[-1] <= 1e-6
    assert found.evaluations <= 100 + found.generations * 40 * 24


@pytest.mark.parametrize("patience", [1, 3, 6])
def test_patience_is_generations_without_gain(patience: int) -> None:
    """One population without any other way on ends with the first so many in a row."""
    land, scored = Landscape((3, 8, 5, 2, 4, 6, 4, 4), 8), []

    def score(rows: Rows) -> Any:
        scored.append(land.score(rows))
        return scored[-1]

    config = EvolutionConfig(first=40, population=4, children=2, patience=patience, restarts=0, pairs=0, relax=False)
    options: dict[str, Any] = {"quantities": {}, "limits": {}, "config": config}
    for seed in range(5):
        scored.clear()
        history = evolve(land.variables, score, seed=seed, **options).history
        gains = np.diff(np.concatenate([[scored[0].max()], history]))  # from the first population on
        marks = "".join("+" if gain > config.tolerance else "-" for gain in gains)
        assert marks.find(patience * "-") == len(marks) - patience
    options["config"] = replace(config, tolerance=0.0, max_generations=20)
    assert evolve(land.variables, lambda rows: np.ones(len(rows)), seed=0, **options).generations == patience


@pytest.mark.parametrize("seed", range(3))
def test_relaxed_limits_tighten_and_the_answer_is_inside(seed: int) -> None:
    """The score is the limited quantity itself: all rows outside are better than all inside.

    Quantities are computed once a generation, so counting their calls numbers the generations of the scores.
    """
    land = Landscape((3, 8, 5, 2, 4, 6, 4, 4), seed)
    limit = Limit(high=float(np.quantile(land.cost(land.rows), 0.002)))
    calls, scored = [0], []

    def cost(rows: Rows) -> Any:
        calls[0] += 1
        return land.cost(rows)

    def score(rows: Rows) -> Any:
        scored.append((calls[0], float((land.cost(rows) / limit.high - 1).max())))
        return land.cost(rows).astype(float)

    def found(config: EvolutionConfig) -> EvolutionResult:
        calls[0] = 0
        scored.clear()
        return evolve(
            land.variables, score, quantities={"flops": cost}, limits={"flops": limit}, config=config, seed=seed
        )

    config = EvolutionConfig(first=60, population=20, children=8, restarts=0, pairs=0)
    answer = found(config)
    first, slack = scored[0]  # of the first population: as far as its farthest row
    assert slack > 0.02
    assert all(violation <= slack * config.shrink ** (call - first) for call, violation in scored)
    assert sum(violation > 0 for _, violation in scored) > 5
    assert limit.holds(land.cost(answer.rows)).all()
    for quick in (replace(config, max_generations=2), replace(config, max_generations=2, restarts=2, pairs=50)):
        assert limit.holds(land.cost(found(quick).rows)).all()  # stopped while rows outside take part
    assert limit.holds(land.cost(found(replace(config, relax=False)).rows)).all()
    assert all(violation <= 0 for _, violation in scored)


def test_few_rows_are_planned_with() -> None:
    """Half of those that are left may be looked at with a slack; changes of the best row are tried among the last fifth.

    A population that never stands still scores rows outside the limit for these two reasons only.
    """
    land = Landscape((3, 8, 5, 2, 4, 6, 4, 4), 2)
    limit = Limit(high=float(np.quantile(land.cost(land.rows), 0.1)))
    looked, outside = [0], []

    def cost(rows: Rows) -> Any:
        looked[0] += len(rows)
        return land.cost(rows)

    def score(rows: Rows) -> Any:
        outside.extend([looked[0]] * int((~limit.holds(land.cost(rows))).sum()))
        return land.score(rows)

    def run(**options: Any) -> None:
        looked[0] = 0
        outside.clear()
        config = EvolutionConfig(population=20, children=8, restarts=0, patience=1000, max_evaluations=5000, **options)
        search(land, {"flops": limit}, score=score, quantities={"flops": cost}, config=config)
        assert outside and looked[0] >= 5000

    run(first=400, pairs=0)
    first, generation = outside[0], 20 * 8
    assert first < 2500 and max(outside) <= first + (5000 - first) / 2 + generation
    run(first=150, relax=False, pairs=50)
    assert min(outside) >= 0.8 * 5000


def test_survivors_by_hand() -> None:
    """Inside first, by score, once each; then the closest outside; never what is infinitely far."""
    scores = np.array([1.0, 5.0, 5.0, 3.0, 9.0, -np.inf, 2.0, 8.0])
    violations = np.array([0.0, 0.0, 0.0, 0.0, 0.2, 0.1, 0.0, np.inf])
    keys = np.array([1, 2, 2, 3, 4, 5, 6, 7], dtype=np.uint64)
    population = Population(np.arange(8)[:, None], scores, violations, keys)
    family = np.array([0, 1, 1, 1, 0, 0, 2, 0])

    def kept(n: int, slack: float, diversity: float) -> list[int]:
        return survivors(population, family, n, slack, diversity).rows[:, 0].tolist()

    assert kept(2, 0.0, 0.0) == [1, 3]
    assert kept(9, 0.0, 0.0) == [1, 3, 6, 0, 5, 4]
    assert kept(9, 0.3, 0.0) == [4, 1, 3, 6, 0, 5]
    assert kept(3, 0.0, 1.0) == [1, 6, 0]  # the best of families 1, 2 and 0
    assert kept(3, 0.0, 1 / 3) == [1, 3, 6]


def test_neighbours_are_all_single_changes_and_exchanges() -> None:
    """With room for every pair, the best neighbour is the best of all rows at distance one or two."""
    land = Landscape((3, 4, 5, 2, 4), 9)
    cost, score = land.cost(land.rows), land.score(land.rows)
    limit = Limit(high=float(np.quantile(cost, 0.5)))
    row = land.rows[np.flatnonzero(limit.holds(cost))[100]]
    candidates = Candidates(
        land.variables,
        land.score,
        quantities={"flops": land.cost},
        limits={"flops": limit},
        fixed=None,
        canonical=None,
        seed=0,
    )
    rows, scores = neighbours(candidates, row, 10_000)
    distance = (land.rows != row).sum(axis=1)
    near = (distance >= 1) & (distance <= 2)
    np.testing.assert_allclose(scores.max(), score[near & limit.holds(cost)].max())
    assert {tuple(r) for r in land.rows[near & limit.holds(cost)].tolist()} <= {tuple(r) for r in rows.tolist()}
    few, _ = neighbours(candidates, row, 5)
    assert len(few) == (distance == 1).sum() + 5


# What users get wrong -----------------------------------------------------------------------------------------------------


def test_impossible_budget_tells_what_is_reachable() -> None:
    land = Landscape((3, 8, 5, 2, 4, 6), 1)
    cost = land.cost(land.rows)
    for config in (QUICK, EvolutionConfig.thesis()):
        with pytest.raises(
            UserError, match=rf"0 of \d+ candidates have flops at most .*smallest flops was {cost.min()}$"
        ):
            search(land, {"flops": Limit(high=cost.min() - 0.5)}, config=config)
        with pytest.raises(UserError, match=r"largest flops was"):
            search(land, {"flops": Limit(low=cost.max() + 1.0, high=cost.max() * 2.0)}, config=config)
    tight = {"flops": Limit(high=float(cost.min())), "inverse": Limit(high=1e6 / cost.max())}
    with pytest.raises(UserError, match=r"flops at most .* and inverse at most .*; flops went from"):
        search(land, tight)


def test_low_budget_in_fbnetv3_is_reached() -> None:
    """No random network has so few FLOPs: the smallest of 20000 had 379M."""
    space = fbnetv3()
    tables = SpaceTables(space, num_classes=1000, in_channels=3)
    flops, canonical = StageTables(tables), CanonicalTables(space)
    limits = {"flops": Limit(low=250e6, high=252e6)}
    found = evolve(
        space,
        lambda rows: rows[:, 0] * 1.0,
        quantities={"flops": flops},
        limits=limits,
        config=QUICK,
        seed=0,
        canonical=canonical,
    )
    assert limits["flops"].holds(tables.cost(found.rows).flops).all()
    assert (space.canonical(found.rows) == found.rows).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"limits": {"flop": Limit(high=1)}}, "did you mean 'flops'"),
        ({"fixed": {"v9": 0}}, "unknown variable 'v9'"),
        ({"fixed": {"v0": 3}}, "v0 has options 0..2, got 3"),
        ({"top": 0}, "top must be at least 1"),
        ({"top": 2, "min_distance": 7}, "only 6 variables may change"),
        ({"start": np.zeros((2, 3), dtype=np.int64)}, "rows must have 6 columns"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        search(Landscape((3, 8, 5, 2, 4, 6), 1), **change)


def test_rows_without_a_quantity_are_never_inside() -> None:
    """A latency table with holes: NaN for half of the rows, the good ones."""
    land = Landscape((3, 8, 5, 2, 4, 6), 1)

    def holes(rows: Rows) -> Any:
        return np.where(land.score(rows) > 0, np.nan, 1.0)

    for config in (QUICK, EvolutionConfig.thesis()):
        found = evolve(
            land.variables, land.score, quantities={"ms": holes}, limits={"ms": Limit(high=2)}, config=config, seed=0
        )
        assert found.scores[0] <= 0
    with pytest.raises(UserError, match=r"0 of \d+ candidates have ms"):
        search(land, limits={"ms": Limit(high=0.5)}, quantities={"ms": holes})


def test_scores_must_be_finite() -> None:
    land = Landscape((3, 8, 5), 1)
    with pytest.raises(UserError, match="not a finite number"):
        evolve(land.variables, lambda rows: np.full(len(rows), np.nan), quantities={}, limits={}, config=QUICK, seed=0)


@pytest.mark.parametrize(
    "setting", [{"population": 0}, {"diversity": 1.5}, {"shrink": 1.0}, {"changes": 0.0}, {"restarts": -1}]
)
def test_wrong_settings(setting: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(setting))):
        EvolutionConfig(**setting)
