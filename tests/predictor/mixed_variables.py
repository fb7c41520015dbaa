"""A table's variables, of every kind of option, and made-up scores for them."""

import numpy as np

from search_spaces.variables import Choice, Range, VariableSet

MIXED = VariableSet(
    [
        Choice("op", ("conv", "skip", "pool")),
        Range("width", (8, 12, 20, 32)),
        Choice("flag", (True, False)),
        Range("rate", (0.001, 0.01, 0.1)),
        Choice("constant", ("only",)),
        Range("depth", tuple(range(1, 30))),
    ]
)


def mixed_scores(rows: np.ndarray) -> np.ndarray:
    """Percent; smooth in the numbers, with one interaction."""
    x = MIXED.encode(rows).astype(np.float64)
    return 70 + 3 * x[:, 0] - 2 * x[:, 2] + 4 * x[:, 3] - 3 * (x[:, 6] - 0.5) ** 2 + 2 * x[:, 3] * x[:, 8]
