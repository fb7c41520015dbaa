"""Fast exact cost and canonical rows of large batches, by look-up: what a search over millions of rows needs.

Every layer's cost depends on a handful of variables. Layers that read the same few variables (the blocks of a stage) are
added into one integer table over all combinations of those variables, small tables are merged further, and a row then costs
one look-up a table: FBNetV3's 46 layers become 7 tables. Equal to `SpaceTables.cost` to the last digit.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from search_spaces.cost import Cost
from search_spaces.errors import closest
from search_spaces.serialisation import require
from search_spaces.space import SearchSpace
from search_spaces.tables import SpaceTables, evaluate
from search_spaces.variables import Rows, VariableSet

# Tables are merged up to this many entries (512 KiB of int64, inside a second-level cache).
MERGED_ENTRIES = 1 << 16


@dataclass(frozen=True, slots=True)
class _Part:
    """Columns that something depends on, and the function `(m, d) -> int64 (m,)` of them."""

    columns: frozenset[int]
    value: Callable[[Rows], npt.NDArray[np.int64]]


class LookUp:
    """Sums or lists of integer functions of few variables each, tabulated over all combinations.

    Args:
        variables: of the rows.
        groups: of parts; the parts of a group are added into one table.
    """

    def __init__(self, variables: VariableSet, groups: Sequence[Sequence[_Part]]) -> None:
        self.variables = variables
        self.counts = variables.option_counts.astype(np.uint64)
        columns = [sorted(frozenset().union(*(part.columns for part in group))) for group in groups]
        tables = [self._tabulate(group, own) for group, own in zip(groups, columns, strict=True)]
        self.table = np.concatenate([*tables, np.zeros(0, dtype=np.int64)])
        self.offsets = np.cumsum([0, *(len(table) for table in tables)])[:-1].astype(np.int64)
        # Mixed-radix index of a combination as a product with this matrix: in float64, which BLAS does and is exact here.
        self.strides = np.zeros((len(variables), len(groups)))
        for index, own in enumerate(columns):
            counts = variables.option_counts[own]
            self.strides[own, index] = np.cumprod([1, *counts[:0:-1]])[::-1]

    def _tabulate(self, group: Sequence[_Part], columns: list[int]) -> npt.NDArray[np.int64]:
        """`(product of option counts,)` sum of the parts over all combinations of ``columns``, the last one fastest."""
        counts = [int(self.variables.option_counts[column]) for column in columns]
        rows = np.zeros((math.prod(counts), len(self.variables)), dtype=np.int64)
        if columns:
            rows[:, columns] = np.indices(counts).reshape(len(counts), -1).T
        total = np.zeros(len(rows), dtype=np.int64)
        for part in group:
            total += part.value(rows)
        return total

    def __call__(self, rows: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Entries `(n, n_groups)` of all tables.

        Args:
            rows: `(n, d)` option indices.
        """
        array = np.asarray(rows)
        if array.dtype != np.int64 or array.ndim != 2 or array.shape[1] != len(self.counts):
            array = self.variables.check_rows(array)
        if (array.view(np.uint64) >= self.counts).any():  # negative ones are huge here
            self.variables.check_rows(array)
        index = (array.astype(np.float64) @ self.strides).astype(np.int64)
        index += self.offsets
        return self.table.take(index)


class StageTables:
    """One quantity of a space for one image type and number of classes; a function `(n, d) -> int64 (n,)`.

    Args:
        tables: of the space, for the image type and number of classes meant.
        quantity: ``"flops"``, ``"params"`` or ``"params_all"``.

    Raises:
        UserError: an unknown quantity.
    """

    def __init__(self, tables: SpaceTables, quantity: str = "flops") -> None:
        require(quantity in Cost._fields, f"unknown quantity {quantity!r}{closest(quantity, Cost._fields)}")
        self.quantity = quantity
        self.look_up = LookUp(tables.space, _merge(tables.space, _cost_parts(tables, quantity)))

    def __call__(self, rows: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Exact quantity `(n,)` of `rows` `(n, d)`."""
        return np.asarray(self.look_up(rows).sum(axis=1))


class CanonicalTables:
    """`SearchSpace.canonical` by look-up; a function `(n, d) -> (n, d)`.

    Args:
        space: the space.
    """

    def __init__(self, space: SearchSpace) -> None:
        parts = {column: _canonical_part(space, column) for column in range(len(space))}
        changing = [column for column, part in parts.items() if part is not None]
        self.changing = np.array(changing, dtype=np.int64)
        self.look_up = LookUp(space, [[part] for part in parts.values() if part is not None])

    def __call__(self, rows: npt.ArrayLike) -> Rows:
        """Canonical `rows` `(n, d)`; a new array."""
        canonical = np.array(rows, dtype=np.int64, ndmin=2)
        canonical[:, self.changing] = self.look_up(canonical)
        return canonical


def _cost_parts(tables: SpaceTables, quantity: str) -> list[_Part]:
    """One part for the first convolution, every slot, and the last stage with the classifier."""
    space, positions = tables.space, tables.sides**2
    resolution = [space.resolution] if quantity == "flops" else []
    last = len(space.slots) + 1

    def stem(rows: Rows) -> npt.NDArray[np.int64]:
        return _entry(tables.stem[:, space.picked(rows, space.stem.width)], rows, 0, 1)

    def head(rows: Rows) -> npt.NDArray[np.int64]:
        return _entry(tables.head[:, space.picked(rows, space.slots[-1].width)], rows, last, last)

    def slot_at(index: int) -> Callable[[Rows], npt.NDArray[np.int64]]:
        slot = space.slots[index]
        read = (slot.block, space.in_width(index), slot.expansion, slot.width)

        def value(rows: Rows) -> npt.NDArray[np.int64]:
            kind, before, expansion, width = (space.picked(rows, variable) for variable in read)
            coefficients = tables.slots[index].cost[:, kind, before, expansion, width]
            return _entry(coefficients, rows, index + 1, index + 2) * space.present(rows, slot)

        return value

    def _entry(coefficients: npt.NDArray[np.int64], rows: Rows, before: int, after: int) -> npt.NDArray[np.int64]:
        pixels = positions[space.picked(rows, space.resolution)]
        entry = evaluate(coefficients, pixels[:, before], pixels[:, after])._asdict()[quantity]
        return np.asarray(entry, dtype=np.int64)

    def columns(*variables: object) -> frozenset[int]:
        names = {getattr(variable, "name", "") for variable in (*resolution, *variables)}
        return frozenset(space.column[name] for name in names if name in space.column)

    parts = [_Part(columns(space.stem.width), stem), _Part(columns(space.slots[-1].width), head)]
    for index, slot in enumerate(space.slots):
        reads = columns(slot.depth, slot.block, space.in_width(index), slot.expansion, slot.width)
        parts.append(_Part(reads, slot_at(index)))
    return parts


def _merge(variables: VariableSet, parts: Sequence[_Part]) -> list[list[_Part]]:
    """Parts in few groups: always together where one's columns contain the other's, else while the table stays small."""

    def entries(columns: frozenset[int]) -> int:
        return math.prod(int(variables.option_counts[column]) for column in columns)

    groups: list[tuple[frozenset[int], list[_Part]]] = []
    for part in sorted(parts, key=lambda part: -len(part.columns)):
        home = next((members for columns, members in groups if part.columns <= columns), None)
        if home is None:
            groups.append((part.columns, [part]))
        else:
            home.append(part)
    while len(groups) > 1:
        size, i, j = min((entries(groups[i][0] | groups[j][0]), i, j) for j in range(len(groups)) for i in range(j))
        if size > MERGED_ENTRIES:
            break
        (columns, members), (more_columns, more_members) = groups[i], groups.pop(j)
        groups[i] = (columns | more_columns, members + more_members)
    return [members for _, members in groups]


def _canonical_part(space: SearchSpace, column: int) -> _Part | None:
    """What the canonical option of one variable depends on; None where it is always the chosen one.

    A width's depends on itself; a block type's and an expansion's on everything that decides what the layers that read them
    build. The table is filled by `SearchSpace.canonical`.
    """
    variable, names = space.variables[column], {space.variables[column].name}
    for index, slot in enumerate(space.slots):
        if variable in (slot.block, slot.expansion):
            names |= {v.name for v in (slot.depth, slot.block, space.in_width(index)) if v is not None}
    part = _Part(frozenset(space.column[name] for name in names if name in space.column), lambda rows: rows[:, column])
    before = LookUp(space, [[part]]).table
    part = _Part(part.columns, lambda rows: space.canonical_column(rows, column))
    return None if (LookUp(space, [[part]]).table == before).all() else part
