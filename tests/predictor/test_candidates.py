import re
from typing import Any

import numpy as np
import pytest
from landscapes import Landscape

from predictor.candidates import CLIMBERS, Candidates, NothingInside
from search_spaces.limits import Limit, format_quantity
from search_spaces.variables import Rows


def candidates_of(land: Landscape, limit: Limit, **options: Any) -> Candidates:
    defaults: dict[str, Any] = {"quantities": {"flops": land.cost}, "fixed": None, "canonical": None, "seed": 0}
    return Candidates(land.variables, land.score, limits={"flops": limit}, **{**defaults, **options})


def outside(land: Landscape, limit: Limit, n: int, seed: int) -> Rows:
    """Random rows, none inside."""
    rows = land.rows[~limit.holds(land.cost(land.rows))]
    return rows[np.random.default_rng(seed).integers(0, len(rows), size=n)]


@pytest.mark.parametrize("seed", range(5))
def test_climb_gets_from_far_outside_to_different_rows_inside(seed: int) -> None:
    """22 of 36864 rows are inside; three of them are asked for, from one row and from many."""
    land = Landscape((4, 4, 4, 4, 4, 6, 6), 7)
    cost = np.sort(land.cost(land.rows))
    limit = Limit(low=float(cost[1000]), high=float(cost[1000]) * 1.002)
    inside = int(limit.holds(cost).sum())
    assert inside == 22
    for n in (1, 40):
        candidates = candidates_of(land, limit)
        found = candidates.climb(outside(land, limit, n, seed), np.random.default_rng(seed), wanted=3)
        assert limit.holds(land.cost(found)).all()
        assert 3 <= len(found) <= min(inside, CLIMBERS) and len(np.unique(found, axis=0)) == len(found)
        assert candidates.evaluations == 0 and candidates.checked > n


def test_climb_keeps_its_distance_and_what_is_fixed() -> None:
    land = Landscape((4, 4, 4, 4, 4, 6, 6), 7)
    cost = land.cost(land.rows)
    limit = Limit(high=float(np.quantile(cost, 0.1)))
    candidates = candidates_of(land, limit, fixed={"v2": 1})
    start = outside(land, limit, 40, 0)
    start[:, 2] = 1
    candidates.taken = land.rows[limit.holds(cost) & (land.rows[:, 2] == 1)][:2]
    candidates.min_distance = 3
    found = candidates.climb(start, np.random.default_rng(0), wanted=20)
    assert len(found) >= 20 and limit.holds(land.cost(found)).all() and (found[:, 2] == 1).all()
    assert (found[:, None] != candidates.taken).sum(axis=2).min() >= 3


@pytest.mark.parametrize("where", ["below", "above", "between"])
def test_climb_tells_what_is_reachable_where_nothing_is_inside(where: str) -> None:
    """Costs are whole numbers: none lies between two of them."""
    land = Landscape((3, 8, 5, 2, 4, 6), 1)
    cost = land.cost(land.rows)
    low, high = int(cost.min()), int(cost.max())
    limit, reachable = {
        "below": (Limit(high=low - 0.5), f"smallest flops was {format_quantity(low)}"),
        "above": (Limit(low=high + 0.5, high=2.0 * high), f"largest flops was {format_quantity(high)}"),
        "between": (Limit(low=low + 100.25, high=low + 100.75), "flops went from "),
    }[where]
    seen = []

    def flops(rows: Rows) -> Any:
        seen.append(land.cost(rows))
        return seen[-1]

    candidates = candidates_of(land, limit, quantities={"flops": flops})
    with pytest.raises(NothingInside) as caught:
        candidates.climb(outside(land, limit, 20, 0), np.random.default_rng(0))
    values = np.concatenate(seen)
    wanted = re.escape(f"0 of {len(values)} candidates have flops {limit}; {reachable}")
    assert re.match(wanted, str(caught.value))
    if where == "between":
        assert str(caught.value).endswith(f"{format_quantity(values.min())} to {format_quantity(values.max())}")
