"""A linear layer of encoded rows without encoding them: every option adds its vector (an embedding bag).

`VariableSet.encode(rows) @ weight` is a sum over variables of a vector that depends on the chosen option alone. Neighbouring
variables are taken together as long as their options multiply to few, so that FBNetV3's 36 variables need 10 look-ups.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from search_spaces.variables import Choice, Rows, Variable

Table = npt.NDArray[np.float32]
MAX_OPTIONS = 256  # of a group; tables then stay in the processor's cache


def option_vectors(variable: Variable, weight: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """What each option of a variable adds `(options, o)`: rows of ``weight`` `(features, o)`, or its scaled number times it."""
    if isinstance(variable, Choice):
        return weight
    options = np.asarray(variable.options, dtype=np.float64)
    scaled = (options - options[0]) / max(options[-1] - options[0], np.finfo(np.float64).tiny)
    return np.asarray(scaled.astype(np.float32).astype(np.float64)[:, None] * weight)


@dataclass(frozen=True, slots=True)
class Bag:
    """The layer as tables.

    Attributes:
        bias: `(o,)`.
        index: `(d, groups)`; rows times it are each group's option.
        tables: `(options, o)` a group.
    """

    bias: Table
    index: Table
    tables: tuple[Table, ...]

    def __call__(self, rows: Rows) -> Table:
        """The layer's outputs `(n, o)` of option indices `(n, d)` that are known to exist."""
        if not self.tables:
            return np.repeat(self.bias[None], len(rows), axis=0)
        options = (rows.astype(np.float32) @ self.index).astype(np.int64)  # whole numbers below 2**24: exact
        total = self.tables[0].take(options[:, 0], axis=0)  # its bias is in the first table
        for group in range(1, len(self.tables)):
            total += self.tables[group].take(options[:, group], axis=0)
        return total


def make_bag(variables: Sequence[Variable], weight: Table, bias: Table, *, max_options: int = MAX_OPTIONS) -> Bag:
    """Tables of a linear layer of encoded rows.

    Args:
        variables: d variables, the columns of the rows.
        weight: `(features, o)` of the layer that follows `VariableSet.encode`.
        bias: `(o,)`.
        max_options: of a group of variables; a variable with more stands alone.
    """
    index = np.zeros((len(variables), len(variables)), dtype=np.float32)
    tables: list[npt.NDArray[np.float64]] = []
    start = 0
    for column, variable in enumerate(variables):
        stop = start + (len(variable.options) if isinstance(variable, Choice) else 1)
        vectors = option_vectors(variable, weight[start:stop].astype(np.float64))
        start = stop
        if tables and len(tables[-1]) * len(vectors) <= max_options:
            index[:, len(tables) - 1] *= len(vectors)
            tables[-1] = (tables[-1][:, None] + vectors).reshape(-1, weight.shape[1])
        else:
            tables.append(vectors)
        index[column, len(tables) - 1] = 1
    if tables:
        tables[0] = tables[0] + bias
    return Bag(bias, index[:, : len(tables)], tuple(np.ascontiguousarray(table, dtype=np.float32) for table in tables))
