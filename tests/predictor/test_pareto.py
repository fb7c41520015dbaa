from typing import Any

import numpy as np
import pytest
from landscapes import Landscape

from predictor.pareto import ParetoResult, nondominated, pareto
from predictor.population import EvolutionConfig
from search_spaces.errors import UserError
from search_spaces.limits import Limit


def front_of(land: Landscape, low: float, high: float, **options: Any) -> ParetoResult:
    quantities = {"flops": land.cost, "inverse": land.inverse}
    defaults: dict[str, Any] = {"quantity": "flops", "config": EvolutionConfig(), "seed": 0}
    return pareto(land.variables, land.score, low=low, high=high, quantities=quantities, **{**defaults, **options})


def brute_force(values: Any, scores: Any) -> set[tuple[float, float]]:
    """Pairs that no other pair beats, by comparing all with all."""
    pairs = set(zip(values.tolist(), scores.tolist(), strict=True))
    return {(v, s) for v, s in pairs if not any(w <= v and t >= s and (w, t) != (v, s) for w, t in pairs)}


def test_nondominated_against_all_pairs() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        values, scores = rng.integers(0, 12, size=60) * 1.0, rng.integers(0, 12, size=60) * 1.0
        chosen = nondominated(values, scores)
        assert set(zip(values[chosen].tolist(), scores[chosen].tolist(), strict=True)) == brute_force(values, scores)
        assert (np.diff(values[chosen]) > 0).all() and (np.diff(scores[chosen]) > 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_front_is_that_of_brute_force(seed: int) -> None:
    land = Landscape((3, 4, 5, 2, 4, 3), seed)
    cost = land.cost(land.rows)
    low, high = np.quantile(cost, [0.05, 0.9])
    inside = (cost >= low) & (cost <= high)
    found = front_of(land, low, high, seed=seed)
    assert set(zip(found.values.tolist(), found.scores.tolist(), strict=True)) == brute_force(
        cost[inside].astype(float), land.score(land.rows[inside])
    )
    assert (found.values == land.cost(found.rows)).all() and (found.scores == land.score(found.rows)).all()


def test_front_of_a_larger_space_misses_next_to_nothing() -> None:
    """184320 rows: the area under the front is within 0.1 % of the true one."""
    land = Landscape((3, 8, 5, 2, 4, 6, 4, 8), 5)
    cost, score = land.cost(land.rows), land.score(land.rows)
    low, high = np.quantile(cost, [0.01, 0.5])
    inside = (cost >= low) & (cost <= high)
    cost, score = cost[inside].astype(float), score[inside]

    def area(values: Any, scores: Any) -> float:
        return float((np.diff(np.append(values, high)) * (scores - score.min())).sum())

    true, found = nondominated(cost, score), front_of(land, low, high)
    assert 0.999 < area(found.values, found.scores) / area(cost[true], score[true]) <= 1.0


def test_other_limits_fixed_variables_and_the_seed() -> None:
    land = Landscape((3, 4, 5, 2, 4, 3), 4)
    cost = land.cost(land.rows)
    other = Limit(high=float(np.quantile(land.inverse(land.rows), 0.6)))
    options: dict[str, Any] = {"limits": {"inverse": other}, "fixed": {"v2": 3}}
    found = front_of(land, float(cost.min()), float(cost.max()), **options)
    assert (found.rows[:, 2] == 3).all() and other.holds(land.inverse(found.rows)).all()
    inside = other.holds(land.inverse(land.rows)) & (land.rows[:, 2] == 3)
    expected = brute_force(cost[inside].astype(float), land.score(land.rows[inside]))
    assert set(zip(found.values.tolist(), found.scores.tolist(), strict=True)) == expected
    again = front_of(land, float(cost.min()), float(cost.max()), **options)
    assert again.rows.tobytes() == found.rows.tobytes()
    inherited = front_of(
        land, 1.0, float(cost.max()), start=found.rows, config=EvolutionConfig(max_evaluations=len(found.rows))
    )
    assert inherited.rows.tobytes() == found.rows.tobytes()


def test_wrong_ranges() -> None:
    land = Landscape((3, 4, 5), 4)
    with pytest.raises(UserError, match="smallest flops was"):
        front_of(land, 0.0, 1.0)
    with pytest.raises(UserError, match="from low to high"):
        front_of(land, 10.0, 1.0)
    with pytest.raises(UserError, match="limited by low and high"):
        front_of(land, 0.0, 1e9, limits={"flops": Limit(high=1)})
    with pytest.raises(UserError, match="bins"):
        front_of(land, 0.0, 1e9, bins=0)
