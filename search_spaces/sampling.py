"""Pools of candidates: quasi-Monte-Carlo, uniform, and under limits. Every function takes a seed and returns canonical rows."""

import numpy as np
import numpy.typing as npt
from scipy.stats import qmc

from search_spaces.cost import Cost
from search_spaces.errors import UserError, closest
from search_spaces.limits import Limit, format_quantity
from search_spaces.seeding import numpy_rng
from search_spaces.serialisation import require
from search_spaces.space import SearchSpace
from search_spaces.tables import SpaceTables, Table, evaluate
from search_spaces.variables import Rows, VariableSet


def sobol_rows(variables: VariableSet, n: int, seed: int) -> Rows:
    """Scrambled Sobol points as option indices `(n, d)` (thesis 4.3: quasi-Monte-Carlo pool)."""
    sampler = qmc.Sobol(len(variables), scramble=True, rng=numpy_rng(seed, "sobol"))
    points = sampler.random_base2(max(1, (n - 1).bit_length()))[:n]  # powers of two keep the balance
    return np.minimum((points * variables.option_counts).astype(np.int64), variables.option_counts - 1)


def uniform_rows(variables: VariableSet, n: int, rng: np.random.Generator) -> Rows:
    """Independent uniform option indices `(n, d)`."""
    return rng.integers(0, variables.option_counts, size=(n, len(variables)))


def rows_within(
    space: SearchSpace,
    n: int,
    limits: dict[str, Limit],
    *,
    tables: SpaceTables,
    seed: int,
    max_tries: int = 1_000_000,
) -> Rows:
    """``n`` different random networks inside all limits.

    Args:
        space: where to draw.
        n: how many.
        limits: by quantity: ``"flops"``, ``"params"`` or ``"params_all"``; may be empty.
        tables: of the space, for the image type and number of classes meant.
        seed: of the draws.
        max_tries: rows drawn before giving up.

    Returns:
        Canonical rows `(n, d)`, in the order found.

    Raises:
        UserError: an unknown quantity, or too few found; the message tells the range that was seen.
    """
    for name in limits:
        _require_quantity(name)
    require(n <= space.size, f"{space.name} has only {space.size} different networks, {n} asked for")
    rng = numpy_rng(seed, "rows_within")
    found: Rows = np.empty((0, len(space)), dtype=np.int64)
    seen = dict.fromkeys(limits, (np.inf, -np.inf))
    tried, batch = 0, 20_000
    while len(found) < n and tried < max_tries:
        rows = space.canonical(uniform_rows(space, batch, rng))
        cost = tables.cost(rows)._asdict()
        inside = np.ones(batch, dtype=bool)
        for name, limit in limits.items():
            inside &= limit.holds(cost[name])
            low, high = seen[name]
            seen[name] = (min(low, float(cost[name].min())), max(high, float(cost[name].max())))
        merged = np.concatenate([found, rows[inside]])
        _, first = np.unique(merged, axis=0, return_index=True)
        found = merged[np.sort(first)]
        tried += batch
    if len(found) < n and not limits:
        raise UserError(
            f"only {len(found)} different networks among {tried} random ones of {space.name}, {n} asked for"
        )
    if len(found) < n:
        wanted = ", ".join(f"{name} {limit}" for name, limit in limits.items())
        ranges = ", ".join(f"{k} {format_quantity(a)} to {format_quantity(b)}" for k, (a, b) in seen.items())
        raise UserError(
            f"{len(found)} of {tried} random networks of {space.name} have {wanted}; the sample had {ranges}"
        )
    return found[:n]


def extreme_cost(tables: SpaceTables, quantity: str, *, largest: bool, starts: int = 32) -> tuple[int, Rows]:
    """The smallest or largest value of ``quantity`` in a space, and the row `(d,)` that has it.

    Exact, by dynamic programming over widths, where every layer chooses for itself (all FBNetV2 spaces; a single skip is not
    cheaper, a chain of them is, so local search gets stuck). Where layers share choices (FBNetV3: no skips, so every choice
    pulls the same way) coordinate descent on the exact cost from both corners and Sobol starts.

    Args:
        tables: of the space.
        quantity: ``"flops"``, ``"params"`` or ``"params_all"``.
        largest: which end.
        starts: Sobol starting points of the descent.

    Raises:
        UserError: an unknown quantity.
    """
    _require_quantity(quantity)
    sign = -1 if largest else 1
    value, row = (
        _by_dynamic_programming(tables, quantity, sign)
        if _layers_choose_alone(tables.space)
        else _by_descent(tables, quantity, sign, starts)
    )
    return sign * value, row


def _require_quantity(name: str) -> None:
    require(name in Cost._fields, f"unknown quantity {name!r}{closest(name, Cost._fields)}")


def _layers_choose_alone(space: SearchSpace) -> bool:
    """Whether no two layers read one variable and none can be absent."""
    read = [space.stem.width, *(v for slot in space.slots for v in (slot.block, slot.expansion, slot.width))]
    names = [variable.name for variable in read if len(variable.options) > 1]
    return len(set(names)) == len(names) and all(slot.depth is None for slot in space.slots)


def _by_dynamic_programming(tables: SpaceTables, quantity: str, sign: int) -> tuple[int, Rows]:
    """Smallest ``sign * quantity`` and its row: for each resolution the best way to every width, layer after layer."""
    space, found = tables.space, []
    for resolution, positions in enumerate(tables.sides**2):

        def value(coefficients: Table, step: int, positions: Table = positions) -> Table:
            after = min(step + 1, len(positions) - 1)
            cost = evaluate(coefficients, positions[step], positions[after])
            return sign * np.asarray(cost._asdict()[quantity])

        best, choices = value(tables.stem, 0), []  # (J,): best way to every width so far
        for index, table in enumerate(tables.slots):
            ways = value(table.cost, index + 1) + best[:, None, None]  # (T, J, E, K)
            choices.append((ways.reshape(-1, ways.shape[-1]).argmin(axis=0), ways.shape[:-1]))
            best = ways.min(axis=(0, 1, 2))
        best = best + value(tables.head, len(space.slots) + 1)
        width, chosen = int(best.argmin()), {space.resolution.name: resolution}
        total = int(best[width])
        for slot, (choice, shape) in zip(reversed(space.slots), reversed(choices), strict=True):
            chosen[slot.width.name] = width
            kind, width, expansion = (int(i) for i in np.unravel_index(choice[width], shape))
            chosen |= {slot.block.name: kind, slot.expansion.name: expansion}
        chosen[space.stem.width.name] = width
        found.append((total, np.array([chosen[variable.name] for variable in space.variables], dtype=np.int64)))
    return min(found, key=lambda pair: pair[0])


def _by_descent(tables: SpaceTables, quantity: str, sign: int, starts: int) -> tuple[int, Rows]:
    """Smallest ``sign * quantity`` found by changing one variable at a time until none helps."""
    space = tables.space

    def value(rows: Rows) -> npt.NDArray[np.int64]:
        return sign * np.asarray(tables.cost(rows)._asdict()[quantity])

    corners = np.stack([np.zeros(len(space), dtype=np.int64), space.option_counts - 1])
    rows = np.concatenate([corners, sobol_rows(space, starts, seed=0)])
    best = value(rows)
    while True:
        before = best.copy()
        for column, count in enumerate(space.option_counts):
            changed = np.repeat(rows, count, axis=0)
            changed[:, column] = np.tile(np.arange(count), len(rows))
            values = value(changed).reshape(len(rows), count)
            rows[:, column], best = values.argmin(axis=1), values.min(axis=1)
        if (best == before).all():
            break
    winner = int(best.argmin())
    return int(best[winner]), rows[winner]
