"""The pool of candidates: quasi-Monte-Carlo points inside limits (thesis 4.3 and Algorithm 1)."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from scipy.stats import qmc

from recipes.space import JointSpace
from search_spaces.cost import Cost
from search_spaces.errors import UserError, closest
from search_spaces.limits import Limit, format_quantity
from search_spaces.seeding import numpy_rng
from search_spaces.serialisation import require
from search_spaces.variables import Rows

POOL_SIZE = 20_000  # thesis 4.4
HOPELESS = 1 << 16  # points of which none lies inside: no more are drawn
POOL_FLOPS = Limit(high=800e6, low=400e6)  # thesis 4.6, for the FBNetV3 space


def sobol_pool(
    space: JointSpace,
    n: int,
    limits: Mapping[str, Limit],
    *,
    seed: int,
    num_classes: int = 1000,
    in_channels: int = 3,
    max_tries: int = 1 << 22,
) -> Rows:
    """``n`` different candidates: the scrambled Sobol sequence is continued until so many lie inside the limits.

    Args:
        space: where to draw.
        n: how many.
        limits: by quantity: ``"flops"``, ``"params"`` or ``"params_all"``; empty where the network is fixed.
        seed: of the scrambling.
        num_classes: of the classifier that is counted.
        in_channels: of the images.
        max_tries: points drawn before giving up.

    Returns:
        Canonical rows `(n, d)`, in the order of the sequence.

    Raises:
        UserError: an unknown quantity, a limit without networks, or too few found; the message tells the range seen.
    """
    require(n >= 1, f"n must be >= 1, got {n}")
    require(n <= space.size, f"{space.name} has only {space.size} different candidates, {n} asked for")
    for name in limits:
        require(name in Cost._fields, f"unknown quantity {name!r}{closest(name, Cost._fields)}")
        require(space.architecture is not None, f"{space.name} has no networks whose {name} could be limited")
    sampler = qmc.Sobol(len(space), scramble=True, rng=numpy_rng(seed, "sobol_pool"))
    batch = 1 << max(8, (n - 1).bit_length())  # a power of two keeps the balance
    found: Rows = np.empty((0, len(space)), dtype=np.int64)
    seen, tried = dict.fromkeys(limits, (np.inf, -np.inf)), 0
    while len(found) < n and tried < max_tries:
        points = sampler.random(batch)
        rows = np.minimum((points * space.option_counts).astype(np.int64), space.option_counts - 1)
        rows = space.canonical(rows)
        inside = np.ones(batch, dtype=np.bool_)
        statistics = space.statistics(rows, num_classes=num_classes, in_channels=in_channels) if limits else {}
        for name, limit in limits.items():
            values = statistics[name]
            inside &= limit.holds(values)
            seen[name] = (min(seen[name][0], float(values.min())), max(seen[name][1], float(values.max())))
        found = first_of_each(np.concatenate([found, rows[inside]]))
        tried += batch
        if not len(found) and tried >= HOPELESS:
            break
    if len(found) < n:
        wanted = ", ".join(f"{name} {limit}" for name, limit in limits.items()) or "no limits"
        ranges = ", ".join(f"{k} {format_quantity(a)} to {format_quantity(b)}" for k, (a, b) in seen.items())
        raise UserError(
            f"{len(found)} of {tried} points of {space.name} differ and have {wanted}, {n} asked for"
            + (f"; the sample had {ranges}" if ranges else "")
        )
    return found[:n]


def first_of_each(rows: Rows) -> Rows:
    """The rows without repetitions, in the order of first appearance."""
    _, first = np.unique(row_keys(rows), return_index=True)
    return np.asarray(rows[np.sort(first)])


def row_keys(rows: Rows) -> npt.NDArray[np.void]:
    """`(n,)` one opaque value a row, equal where the rows are; sorting these is faster than sorting rows."""
    narrow = np.ascontiguousarray(rows, dtype=np.int32)
    return narrow.view(np.dtype((np.void, narrow.dtype.itemsize * narrow.shape[1]))).ravel()
