import itertools
import math

import numpy as np
import pytest
from tiny_spaces import TINY, all_rows, tiny_rows

from search_spaces.architecture import Block
from search_spaces.cost import block_cost, cost
from search_spaces.errors import UserError
from search_spaces.limits import Limit
from search_spaces.sampling import extreme_cost, rows_within, sobol_rows, uniform_rows
from search_spaces.space import SearchSpace
from search_spaces.spaces import SPACES
from search_spaces.tables import SpaceTables
from search_spaces.variables import Choice, Range, VariableSet

# Sobol and uniform pools --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPACES)
def test_sobol_marginals_are_balanced(name: str) -> None:
    """Every cell of 1/1024 holds one of 1024 points, so an option's count differs from its share by less than 2.

    Independent draws would miss this bound in almost every column (standard deviation 10 to 16).
    """
    space = SPACES[name]()
    rows = sobol_rows(space, 1024, seed=4)
    assert rows.shape == (1024, len(space)) and rows.dtype == np.int64
    for column, options in enumerate(space.option_counts):
        counts = np.bincount(rows[:, column], minlength=options)
        assert len(counts) == options
        assert np.abs(counts - 1024 / options).max() < 2


def test_sobol_points_fill_pairs_of_variables_evenly() -> None:
    """With 16 options in every variable, pairs of neighbours see far more of the 256 cells than random points would."""
    variables = VariableSet([Range(f"v{i}", tuple(range(16))) for i in range(2)])
    rows = sobol_rows(variables, 256, seed=1)
    assert len(np.unique(rows, axis=0)) == 256  # a (0, 8, 2)-net; random points see about 162


def test_sobol_depends_on_the_seed_alone() -> None:
    space = SPACES["cifar"]()
    np.random.seed(1)  # noqa: NPY002 - the global state must not matter
    first = sobol_rows(space, 100, seed=7)
    np.random.seed(2)  # noqa: NPY002
    assert (sobol_rows(space, 100, seed=7) == first).all()
    assert (sobol_rows(space, 100, seed=8) != first).any()


@pytest.mark.parametrize("n", [1, 2, 3, 1000])
def test_sobol_gives_as_many_rows_as_asked(n: int) -> None:
    space = SPACES["digits"]()
    assert space.check_rows(sobol_rows(space, n, seed=0)).shape == (n, len(space))


def test_uniform_rows_are_uniform_and_independent() -> None:
    """Counts within 4 standard errors of a binomial; so are counts of pairs."""
    variables = VariableSet([Choice("a", (0, 1, 2)), Choice("b", (0, 1, 2, 3, 4))])
    n = 20_000
    rows = uniform_rows(variables, n, np.random.default_rng(3))
    for options, values in ((3, rows[:, 0]), (5, rows[:, 1]), (15, rows[:, 0] * 5 + rows[:, 1])):
        share = 1 / options
        bound = 4 * math.sqrt(n * share * (1 - share))
        assert np.abs(np.bincount(values, minlength=options) - n * share).max() < bound


# under limits -------------------------------------------------------------------------------------------------------------


def test_rows_within_are_inside_distinct_canonical_and_reproducible() -> None:
    space = SPACES["cifar"]()
    tables = SpaceTables(space, num_classes=10, in_channels=3)
    limits = {"flops": Limit(low=3e6, high=4e6), "params": Limit(high=0.35e6)}
    rows = rows_within(space, 300, limits, tables=tables, seed=1)
    assert rows.shape == (300, len(space))
    assert len({tuple(row) for row in rows}) == 300
    assert (space.canonical(rows) == rows).all()
    for row in rows:
        found = cost(space.decode(row), num_classes=10, in_channels=3)
        assert 3e6 <= found.flops <= 4e6 and found.params <= 0.35e6
    assert (rows_within(space, 300, limits, tables=tables, seed=1) == rows).all()
    assert (rows_within(space, 20, limits, tables=tables, seed=1) == rows[:20]).all()
    assert (rows_within(space, 300, limits, tables=tables, seed=2) != rows).any()


def test_rows_within_says_how_tight_the_limits_are() -> None:
    space = SPACES["digits"]()
    tables = SpaceTables(space, num_classes=10, in_channels=1)
    with pytest.raises(UserError) as failure:
        rows_within(space, 5, {"flops": Limit(high=1000.0)}, tables=tables, seed=0, max_tries=20_000)
    message = str(failure.value)
    assert message.startswith("0 of 20000 random networks of digits have flops at most 1K; the sample had flops ")
    smallest, largest = (float(part.rstrip("K")) * 1e3 for part in message.split("flops ")[-1].split(" to "))
    low, high = (extreme_cost(tables, "flops", largest=end)[0] for end in (False, True))
    assert low <= smallest < largest <= high


def test_rows_within_finds_all_of_a_tiny_space_and_no_more() -> None:
    space = tiny_rows()
    tables = SpaceTables(space, num_classes=10, in_channels=3)
    every = np.unique(space.canonical(all_rows(space)), axis=0)
    found = rows_within(space, len(every), {}, tables=tables, seed=0)
    assert {tuple(row) for row in found} == {tuple(row) for row in every}
    with pytest.raises(UserError, match=f"{len(every)} of 40000 random networks of tiny-rows"):
        rows_within(space, len(every) + 1, {"flops": Limit(high=1e12)}, tables=tables, seed=0, max_tries=40_000)


def test_rows_within_without_limits_and_with_unknown_ones() -> None:
    space = tiny_rows()
    tables = SpaceTables(space, num_classes=10, in_channels=3)
    every = len(np.unique(space.canonical(all_rows(space)), axis=0))
    assert every < space.size
    with pytest.raises(UserError, match=f"only {every} different networks among 40000 random ones of tiny-rows"):
        rows_within(space, every + 1, {}, tables=tables, seed=0, max_tries=40_000)
    with pytest.raises(UserError, match=f"has only {space.size} different networks, {space.size + 1} asked for"):
        rows_within(space, space.size + 1, {}, tables=tables, seed=0)
    with pytest.raises(UserError, match="unknown quantity 'flop'; did you mean 'flops'"):
        rows_within(space, 1, {"flop": Limit(high=1.0)}, tables=tables, seed=0)
    with pytest.raises(UserError, match="unknown quantity 'latency'; allowed: flops, params, params_all"):
        extreme_cost(tables, "latency", largest=True)


# extremes -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "quantity", "largest"), list(itertools.product(TINY, ("flops", "params", "params_all"), (False, True)))
)
def test_extreme_cost_equals_enumeration(name: str, quantity: str, largest: bool) -> None:
    space = TINY[name]()
    tables = SpaceTables(space, num_classes=10, in_channels=3)
    rows = np.unique(space.canonical(all_rows(space)), axis=0)
    values = [getattr(cost(space.decode(row), num_classes=10), quantity) for row in rows]
    value, row = extreme_cost(tables, quantity, largest=largest)
    assert value == (max if largest else min)(values)
    assert getattr(cost(space.decode(row), num_classes=10), quantity) == value


def extremes_layer_by_layer(space: SearchSpace) -> dict[str, int]:
    """Exact extremes of a space whose layers choose for themselves: the best ways to every width, by loops over blocks."""
    ends = {"flops smallest": min, "flops largest": max, "params smallest": min, "params largest": max}

    def values(block: Block, channels: int, before: int, after: int) -> list[int]:
        found = block_cost(block, channels, before**2, after**2)
        return [found.flops, found.flops, found.params, found.params]

    whole = []
    for resolution in space.resolution.options:
        side = -(-resolution // 2)
        stem = Block(kind="conv", out_channels=space.stem.width.options[0], kernel=3, stride=2)
        ways = {stem.out_channels: values(stem, 3, resolution, side)}
        for slot in space.slots:
            after, extended = -(-side // slot.stride), {}
            for (width, totals), out in itertools.product(ways.items(), slot.width.options):
                for block_type, expansion in itertools.product(slot.block_types, slot.expansion.options):
                    block = space.build_block(slot, block_type, width, expansion, out)
                    new = [a + b for a, b in zip(totals, values(block, width, side, after), strict=True)]
                    old = extended.get(out, new)
                    extended[out] = [pick(a, b) for pick, a, b in zip(ends.values(), old, new, strict=True)]
            ways, side = extended, after
        for width, totals in ways.items():
            out, mid = space.head.out_channels, space.head_mid_channels(width)
            head = Block(kind="pool_head", out_channels=out, mid_channels=mid)
            classifier = [11 * out, 11 * out, 10 * out, 10 * out]  # ten classes; the last pool counts one a channel
            whole.append([sum(c) for c in zip(totals, values(head, width, side, 1), classifier, strict=True)])
    return {name: pick(column) for (name, pick), column in zip(ends.items(), zip(*whole, strict=True), strict=True)}


@pytest.mark.parametrize(
    "name", [name for name in SPACES if not name.startswith("fbnetv3")]
)  # whose layers share choices
def test_extreme_cost_equals_the_best_layer_by_layer(name: str) -> None:
    space = SPACES[name]()
    tables = SpaceTables(space, num_classes=10, in_channels=3)
    for label, expected in extremes_layer_by_layer(space).items():
        quantity, end = label.split()
        value, row = extreme_cost(tables, quantity, largest=end == "largest")
        assert value == expected, label
        assert getattr(cost(space.decode(row), num_classes=10), quantity) == value


@pytest.mark.parametrize("name", ["fbnetv3", "fbnetv3-cifar"])
@pytest.mark.parametrize("largest", [False, True])
def test_extreme_flops_of_fbnetv3_are_those_of_its_corner(name: str, largest: bool) -> None:
    """No skips, so every choice at its smallest or largest is cheapest or dearest, except where narrow layers may pay."""
    space = SPACES[name]()
    value, _ = extreme_cost(SpaceTables(space, num_classes=10, in_channels=3), "flops", largest=largest)
    corner = space.row({v.name: v.options[-1 if largest else 0] for v in space.variables})
    sample = uniform_rows(space, 20_000, np.random.default_rng(0))
    seen = SpaceTables(space, num_classes=10, in_channels=3).cost(sample).flops
    at_corner = cost(space.decode(corner), num_classes=10).flops
    assert value == at_corner
    assert value >= seen.max() if largest else value <= seen.min()
