import math

import numpy as np
import pytest
from small_spaces import three_layers

from nas.searching import parse_budgets
from search_spaces.errors import UserError
from search_spaces.fbnetv2 import fbnetv2_f
from search_spaces.limits import Limit
from search_spaces.rows import Row, space_of_rows
from search_spaces.sampling import extreme_cost
from search_spaces.tables import SpaceTables
from supernets.budget import Budget, CostWeight, filled, repair, repaired_row
from supernets.likeliest import count_residuals


def tables() -> SpaceTables:
    return SpaceTables(three_layers(), num_classes=10, in_channels=3)


def test_budgets_of_the_command_line() -> None:
    assert parse_budgets("6M", None) == [Budget("flops", Limit(high=6e6))]
    assert parse_budgets(None, "0.4M:0.5M,1K") == [Budget("params", Limit(5e5, 4e5)), Budget("params", Limit(1e3))]
    for flops, params in ((None, None), ("1M", "1M")):
        with pytest.raises(UserError, match="give one budget"):
            parse_budgets(flops, params)


def test_target_is_inside_the_limit() -> None:
    assert Budget("flops", Limit(high=100.0)).target == pytest.approx(95.0)
    assert Budget("flops", Limit(high=100.0, low=98.0)).target == pytest.approx(99.0)


@pytest.mark.parametrize("high", [10.0, 1e12])
def test_a_budget_outside_the_space_names_its_range(high: float) -> None:
    with pytest.raises(
        UserError, match=r"no network is that (small|large); networks of space three .* have \S+ to \S+ flops"
    ):
        Budget("flops", Limit(high=high)).witness(tables())


def test_cost_weight_is_proportional_plus_sum() -> None:
    weight = CostWeight(integral=1.0, gain=4.0, rate=0.5)
    error = math.log(2.0)
    assert weight.update(200.0, 100.0) == pytest.approx(1 + 0.5 * error + 4 * error)
    assert weight.update(50.0, 100.0) == pytest.approx(1 - 4 * error)
    assert CostWeight(integral=3.0, adapt=False).update(500.0, 100.0) == 3.0


@pytest.mark.parametrize("share", [0.15, 0.5, 0.9])
@pytest.mark.parametrize("start", ["smallest", "largest"])
def test_repair_reaches_the_limit(share: float, start: str) -> None:
    made = tables()
    space = made.space
    low, _ = extreme_cost(made, "flops", largest=False)
    high, _ = extreme_cost(made, "flops", largest=True)
    limit = low * (high / low) ** share
    budget = Budget("flops", Limit(high=limit, low=0.8 * limit))
    row = np.zeros(len(space), dtype=np.int64) if start == "smallest" else space.option_counts - 1
    alpha = np.random.default_rng(0).normal(size=int(space.option_counts.sum()))
    repaired = repair(space, made, budget, alpha, row)
    assert 0.8 * limit <= made.cost(repaired).flops[0] <= limit


def test_repair_gives_up_the_least_logit() -> None:
    """From the largest network just above a limit, one change suffices; it must be the cheapest in alpha of those near."""
    made = tables()
    space = made.space
    row = space.option_counts - 1
    (now,) = made.cost(row).flops
    alpha = np.random.default_rng(1).normal(size=int(space.option_counts.sum()))
    budget = Budget("flops", Limit(high=float(now) - 1))
    offsets = np.concatenate([[0], np.cumsum(space.option_counts)[:-1]])
    best = math.inf
    for column, count in enumerate(space.option_counts):
        for option in range(count):
            changed = row.copy()
            changed[column] = option
            if 0.85 * (now - 1) <= made.cost(changed).flops[0] < now:
                best = min(best, alpha[offsets[column] + row[column]] - alpha[offsets[column] + option])
    repaired = repair(space, made, budget, alpha, row)
    lost = sum(alpha[offsets[c] + row[c]] - alpha[offsets[c] + repaired[c]] for c in range(len(row)))
    assert (repaired != row).sum() == 1
    assert lost == pytest.approx(best)


def test_repair_keeps_a_residual_that_is_worth_more() -> None:
    """A narrower last width gives up 0.1 and the only residual, a smaller expansion 0.3."""
    made = tables()
    space = made.space
    offsets = np.concatenate([[0], np.cumsum(space.option_counts)[:-1]])
    row = space.option_counts - 1
    row[[space.column[slot.block.name] for slot in space.slots]] = 0  # none is a skip
    assert count_residuals(space, row[None])[0] == 1
    alpha = np.full(int(space.option_counts.sum()), -3.0)
    alpha[offsets + row] = 0.0
    width, expansion = (space.column[variable.name] for variable in (space.slots[2].width, space.slots[2].expansion))
    alpha[offsets[width] + 1], alpha[offsets[expansion] + 1] = -0.1, -0.3
    budget = Budget("flops", Limit(high=float(made.cost(row).flops[0]) - 1))
    for worth, column in ((0.0, width), (0.1, width), (0.3, expansion)):
        changed = row.copy()
        changed[column] = 1
        assert repair(space, made, budget, alpha, row, residual=worth).tolist() == changed.tolist()


@pytest.mark.parametrize("factor", [1.0, 1.03, 1.1])
def test_budgets_near_the_smallest_network_are_met(factor: float) -> None:
    """Single changes get stuck there (a chain of skips is cheap, one skip is not): then the witness is improved."""
    made = SpaceTables(fbnetv2_f(), num_classes=10, in_channels=3)
    low, _ = extreme_cost(made, "flops", largest=False)
    budget = Budget("flops", Limit(high=low * factor))
    witness = budget.witness(made)
    assert made.cost(witness).flops[0] <= low * factor
    rng = np.random.default_rng(0)
    for _ in range(5):
        alpha = rng.normal(size=int(made.space.option_counts.sum()))
        start = np.array([part.argmax() for part in np.split(alpha, np.cumsum(made.space.option_counts)[:-1])])
        row = repaired_row(made, budget, alpha, start, witness)
        assert made.cost(row).flops[0] <= low * factor


@pytest.mark.parametrize("reach", [0.0, 0.5, 2.0])
def test_what_is_left_of_a_budget_is_filled_with_choices_that_alpha_does_not_tell_apart(reach: float) -> None:
    """No further such choice fits; checked one by one."""
    made = tables()
    space, grown = made.space, list[float]()
    for seed in range(3):
        alpha = np.random.default_rng(seed).normal(size=int(space.option_counts.sum()))
        logits = np.split(alpha, np.cumsum(space.option_counts)[:-1])
        start = np.array([part.argmax() for part in logits])
        high = 1.4 * float(made.cost(start).flops[0])
        row = filled(made, Budget("flops", Limit(high=high)), alpha, start, reach=reach, residual=reach)
        (now,) = made.cost(row).flops
        assert made.cost(start).flops[0] <= now <= high
        assert reach > 0 or row.tolist() == start.tolist()
        grown.append(now / made.cost(start).flops[0])
        for column, own in enumerate(logits):
            assert own[row[column]] >= own[start[column]] - reach
            for option in range(len(own)):
                changed = row.copy()
                changed[column] = option
                lost = own[row[column]] - own[option]
                lost += reach * (count_residuals(space, row[None]) - count_residuals(space, changed[None]))[0]
                near = own[option] >= own[start[column]] - reach and lost <= reach
                assert not (near and now < made.cost(changed).flops[0] <= high)
    assert (max(grown) > 1.1) == (reach > 0)


def test_a_budget_is_filled_by_what_costs_least_of_alpha() -> None:
    """Of two expansions that double a layer, the one that alpha gives up 0.1 for and not 0.2; both where there is room."""
    layer = Row(block=("ir_k3",), expansion=(1.0, 2.0), width=(8,))
    space = space_of_rows("two", [layer, layer], resolutions=(16,), stem_width=8, head_width=8)
    made = SpaceTables(space, num_classes=10, in_channels=3)
    alpha, start = np.array([0.0, -0.2, 0.0, -0.1]), np.zeros(2, dtype=np.int64)
    costs = {row: float(made.cost(np.array(row)).flops[0]) for row in ((1, 0), (0, 1), (1, 1))}
    assert costs[1, 0] == costs[0, 1]
    for high, reach, expected in (
        (costs[0, 1], 0.3, [0, 1]), (costs[1, 1], 0.3, [1, 1]), (costs[1, 1], 0.15, [0, 1]), (costs[0, 1] - 1, 0.3, [0, 0])
    ):  # fmt: skip
        assert filled(made, Budget("flops", Limit(high=high)), alpha, start, reach=reach).tolist() == expected


def test_filling_goes_no_further_than_alpha_reaches_in_all() -> None:
    """Steps of 0.2 each: the first is within 0.3 of the start, the second is not."""
    layer = Row(block=("ir_k3",), expansion=(1.0, 2.0, 3.0), width=(8,))
    space = space_of_rows("steps", [layer], resolutions=(16,), stem_width=8, head_width=8)
    made, budget = SpaceTables(space, num_classes=10, in_channels=3), Budget("flops", Limit(high=1e9))
    alpha, start = np.array([0.0, -0.2, -0.4]), np.zeros(1, dtype=np.int64)
    for reach, expected in ((0.1, 0), (0.3, 1), (0.5, 2)):
        assert filled(made, budget, alpha, start, reach=reach).tolist() == [expected]


def test_filling_counts_a_residual_that_goes() -> None:
    """A wider layer loses 0.1 of alpha and its residual."""
    layer = Row(block=("ir_k3",), expansion=(2.0,), width=(8, 16))
    space = space_of_rows("wider", [layer], resolutions=(16,), stem_width=8, head_width=8)
    made, budget = SpaceTables(space, num_classes=10, in_channels=3), Budget("flops", Limit(high=1e9))
    alpha, start = np.array([0.0, -0.1]), np.zeros(1, dtype=np.int64)
    for residual, expected in ((0.1, 1), (0.25, 0)):
        assert filled(made, budget, alpha, start, reach=0.3, residual=residual).tolist() == [expected]


def test_a_range_that_no_network_meets_is_refused_before_the_search() -> None:
    made = tables()
    cost = int(made.cost(made.space.option_counts // 2).flops[0])
    with pytest.raises(UserError, match=r"no network was found in that range"):
        Budget("flops", Limit(high=cost + 0.6, low=cost + 0.5)).witness(made)
