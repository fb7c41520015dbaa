"""Made-up scores and quantities on spaces small enough to enumerate."""

import numpy as np
import numpy.typing as npt

from search_spaces.variables import Choice, Range, Rows, VariableSet


class Landscape:
    """Random pairwise terms: many local optima; and an additive quantity that rises with every option.

    Attributes:
        variables: choices and ranges in turn.
        rows: `(size, d)` all of them.
    """

    def __init__(self, counts: tuple[int, ...], seed: int) -> None:
        rng, d = np.random.default_rng(seed), len(counts)
        made = [(Choice if i % 2 else Range)(f"v{i}", tuple(range(count))) for i, count in enumerate(counts)]
        self.variables = VariableSet(made)
        self.pairs = [(i, j, rng.normal(size=(counts[i], counts[j]))) for i in range(d) for j in range(i)]
        self.costs = [np.sort(rng.integers(1, 1000, size=count)) for count in counts]
        self.rows: Rows = np.indices(counts).reshape(d, -1).T.astype(np.int64)

    def score(self, rows: Rows) -> npt.NDArray[np.float64]:
        total = np.zeros(len(rows))
        for i, j, table in self.pairs:  # one after the other: the same sum to the bit for one row and for many
            total += table[rows[:, i], rows[:, j]]
        return total

    def cost(self, rows: Rows) -> npt.NDArray[np.int64]:
        return np.sum([costs[rows[:, i]] for i, costs in enumerate(self.costs)], axis=0)

    def inverse(self, rows: Rows) -> npt.NDArray[np.float64]:
        """A second quantity that pulls the other way."""
        return 1e6 / self.cost(rows)
