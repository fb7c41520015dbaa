"""How cost enters the search loss, and how its weight follows the budget.

The papers do not print this. Ours: loss = cross entropy + lambda x (expected cost / budget), where the expected cost is the
effective cost at softmax(alpha), that is the mean over draws, free of noise. lambda is set by an augmented Lagrangian for the
constraint cost = target inside the budget: a part proportional to the logarithmic error, which pulls at once, and its sum over
time, which removes what the cross entropy pushes back. lambda may turn negative where the derived network is too small.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from search_spaces.errors import UserError
from search_spaces.limits import Limit, format_quantity
from search_spaces.sampling import extreme_cost, sobol_rows
from search_spaces.serialisation import require
from search_spaces.space import SearchSpace
from search_spaces.tables import SpaceTables
from search_spaces.variables import Rows
from supernets.likeliest import count_residuals

NEAR = 0.85  # share of the upper limit that counts as making use of it
DECIDED = 1e6  # logits between an option that is decided and the others
AIM = 0.95  # where between 0 and the upper limit the search aims, so that the argmax network ends inside


@dataclass(frozen=True, slots=True)
class Budget:
    """One limit that the derived network must meet.

    Attributes:
        quantity: ``"flops"`` or ``"params"`` (published convention).
        limit: allowed range.
    """

    quantity: str
    limit: Limit

    @property
    def target(self) -> float:
        """Where the search aims: 0.95 of the upper limit, or the middle of a range that does not contain that."""
        aim = AIM * self.limit.high
        return aim if aim >= self.limit.low else (self.limit.low + self.limit.high) / 2

    def witness(self, tables: SpaceTables) -> Rows:
        """Some row `(d,)` inside the limit, found before any training.

        Raises:
            UserError: there is none, or none was found in a very narrow range; the message gives the range of the space.
        """
        low, smallest = extreme_cost(tables, self.quantity, largest=False)
        high, largest = extreme_cost(tables, self.quantity, largest=True)
        where = (
            f"networks of space {tables.space.name} for {tables.num_classes} classes have"
            f" {format_quantity(low)} to {format_quantity(high)} {self.quantity}"
        )
        require(self.limit.high >= low, f"--{self.quantity} {self.limit}: no network is that small; {where}")
        require(
            max(self.limit.low, AIM * self.limit.high) <= high,
            f"--{self.quantity} {self.limit}: no network is that large; {where}",
        )
        indifferent = np.zeros(int(tables.space.option_counts.sum()))
        for start in (smallest, largest, *sobol_rows(tables.space, 64, seed=0)):
            try:
                return repair(tables.space, tables, self, indifferent, start)
            except UserError:
                continue
        raise UserError(f"--{self.quantity} {self.limit}: no network was found in that range; {where}")


@dataclass(slots=True)
class CostWeight:
    """lambda and its control.

    Attributes:
        integral: the summed part of lambda; the whole of it when ``adapt`` is false.
        adapt: whether lambda follows the budget.
        gain: proportional gain per unit of log(cost / target).
        rate: share of the error that is added to the integral in each step.
        bound: largest magnitude of the integral.
    """

    integral: float
    adapt: bool = True
    gain: float = 4.0
    rate: float = 0.2
    bound: float = 20.0

    def update(self, measured: float, target: float) -> float:
        """lambda for the next step, given the measured and the wanted cost."""
        if not self.adapt:
            return self.integral
        error = math.log(measured / target)
        self.integral = min(self.bound, max(-self.bound, self.integral + self.rate * error))
        return self.integral + self.gain * error


def repaired_row(
    tables: SpaceTables,
    budget: Budget,
    alpha: npt.NDArray[np.float64],
    row: Rows,
    witness: Rows,
    *,
    residual: float = 0.0,
) -> Rows:
    """`repair` of ``row``; where that gets stuck, the ``witness`` improved in alpha as far as the limit allows."""
    space = tables.space
    try:
        return repair(space, tables, budget, alpha, row, residual=residual)
    except UserError:
        row = witness.copy()
    logits = np.split(alpha, np.cumsum(space.option_counts)[:-1])
    improved = True
    while improved:  # every pass raises the value of the row, so this ends
        improved = False
        for column, own in enumerate(logits):
            changed = np.repeat(row[None], len(own), axis=0)
            changed[:, column] = np.arange(len(own))
            values = own + residual * count_residuals(space, changed)
            inside = budget.limit.holds(tables.cost(changed)._asdict()[budget.quantity])
            best = int(np.where(inside, values, -np.inf).argmax())
            if values[best] > values[row[column]]:
                row, improved = changed[best], True
    return row


def repair(
    space: SearchSpace,
    tables: SpaceTables,
    budget: Budget,
    alpha: npt.NDArray[np.float64],
    row: Rows,
    *,
    residual: float = 0.0,
) -> Rows:
    """The row inside the limit that is reached from ``row`` by giving up the least of alpha and of residual connections.

    Changes one choice at a time: the smallest loss among changes that end inside (near the upper limit if any do), else the
    smallest loss per unit of log cost gained. What is decided stays, see `DECIDED`.

    Args:
        space: the space.
        tables: its cost tables.
        budget: what must hold.
        alpha: flat logits `(sum of options,)`.
        row: `(d,)` start, usually `likeliest_row`.
        residual: what a residual connection is worth in logits.

    Raises:
        UserError: a point from which no single change leads on (a chain of skips can be one); see `Budget.witness`.
    """
    low, high = budget.limit.low, budget.limit.high
    for _ in range(2 * len(alpha)):
        (now,) = tables.cost(row)._asdict()[budget.quantity]
        if low <= now <= high:
            return row.copy()
        changed = _single_changes(space, row)
        after = tables.cost(changed)._asdict()[budget.quantity]
        lost = _worth(space, alpha, row[None], residual) - _worth(space, alpha, changed, residual)
        gained = np.log(now / after) if now > high else np.log(after / now)
        useful = (gained > 0) & ((after >= low) if now > high else (after <= high)) & (lost < DECIDED)
        require(bool(useful.any()), f"no single change brings {budget.quantity} {now} into {budget.limit}")
        ratio = np.where(useful, lost / np.maximum(gained, 1e-9), np.inf)
        score = ratio
        for least in (max(low, NEAR * high), low):  # the least loss among changes that end near the limit, else inside
            inside = useful & (after >= least) & (after <= high)
            if inside.any():
                score = np.where(inside, lost, np.inf)
                break
        row = changed[int(score.argmin())]
    raise UserError(f"{budget.quantity} {now} did not come into {budget.limit}")


def filled(
    tables: SpaceTables,
    budget: Budget,
    alpha: npt.NDArray[np.float64],
    row: Rows,
    *,
    reach: float,
    residual: float = 0.0,
) -> Rows:
    """A row that makes use of what ``row`` `(d,)` leaves of the budget, by choices that alpha does not tell apart.

    Changes one choice at a time to one that costs more: the smallest loss per unit of log cost, as long as one ends inside the
    limit and has a logit at most ``reach`` below that in ``row``.

    Args:
        tables: cost tables of the space.
        budget: what must hold.
        alpha: flat logits `(sum of options,)`.
        row: `(d,)` start, inside the limit.
        reach: how far apart logits must be to tell options apart, >= 0.
        residual: what a residual connection is worth in logits.
    """
    space = tables.space
    column = np.repeat(np.arange(len(space)), space.option_counts)
    near = alpha >= _logits(space, alpha, row[None])[0, column] - reach
    while True:  # every pass raises the cost, so this ends
        (now,) = tables.cost(row)._asdict()[budget.quantity]
        changed = _single_changes(space, row)[near]
        after = tables.cost(changed)._asdict()[budget.quantity]
        lost = _worth(space, alpha, row[None], residual) - _worth(space, alpha, changed, residual)
        useful = (after > now) & (after <= budget.limit.high) & (lost <= reach)
        if not useful.any():
            return row.copy()
        gained = np.log(np.where(useful, after, math.e * now) / now)
        row = changed[int(np.where(useful, lost / gained, np.inf).argmin())]


def _single_changes(space: SearchSpace, row: Rows) -> Rows:
    """`(sum of options, d)`: ``row`` with every option of every choice, one choice at a time."""
    counts = space.option_counts
    changed = np.repeat(row[None], counts.sum(), axis=0)
    options = np.concatenate([np.arange(count) for count in counts])
    changed[np.arange(len(changed)), np.repeat(np.arange(len(space)), counts)] = options
    return changed


def _logits(space: SearchSpace, alpha: npt.NDArray[np.float64], rows: Rows) -> npt.NDArray[np.float64]:
    """`(n, d)` logits of the options of ``rows``."""
    return alpha[np.concatenate([[0], np.cumsum(space.option_counts)[:-1]]) + rows]


def _worth(space: SearchSpace, alpha: npt.NDArray[np.float64], rows: Rows, residual: float) -> npt.NDArray[np.float64]:
    """`(n,)` sum of logits, and of ``residual`` for every residual connection."""
    return np.asarray(_logits(space, alpha, rows).sum(axis=1) + residual * count_residuals(space, rows))
