"""Design variables: a candidate is a row of option indices, a pool is an int array `(n, d)`.

`encode` turns rows into the features a predictor sees. Nothing here knows what a network is, so the same class carries
recipes and spaces of other people's tables.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from search_spaces.errors import UserError, closest
from search_spaces.serialisation import require

Rows = npt.NDArray[np.int64]


@overload
def span(low: int, high: int, step: int) -> tuple[int, ...]: ...


@overload
def span(low: float, high: float, step: float) -> tuple[float, ...]: ...


def span(low: float, high: float, step: float) -> tuple[float, ...]:
    """The closed range low, low + step, ..., high of the papers' three-value tuples (thesis Tables 3.2 and 4.2).

    Integers stay integers.

    Raises:
        UserError: a step that is not positive, or high not reached from low by whole steps.
    """
    require(step > 0 and high >= low, f"a range needs low <= high and step > 0, got ({low}, {high}, {step})")
    count = (high - low) / step
    require(abs(count - round(count)) < 1e-9, f"range ({low}, {high}, {step}) does not reach {high} in whole steps")
    require(count < 10_000, f"range ({low}, {high}, {step}) has more than 10000 options")
    values = [low + index * step for index in range(round(count) + 1)]
    return tuple(values if all(isinstance(v, int) for v in (low, high, step)) else [round(v, 12) for v in values])


@dataclass(frozen=True, slots=True)
class Choice:
    """Unordered options; one-hot features."""

    name: str
    options: tuple[Any, ...]

    def __post_init__(self) -> None:
        _check_options(self.name, self.options)


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers in increasing order; one feature, scaled to [0, 1]."""

    name: str
    options: tuple[float, ...]

    def __post_init__(self) -> None:
        _check_options(self.name, self.options)
        increasing = all(a < b for a, b in zip(self.options, self.options[1:], strict=False))
        require(increasing, f"options of {self.name} must increase, got {self.options}")


Variable = Choice | Range


def _check_options(name: str, options: tuple[Any, ...]) -> None:
    require(len(options) > 0, f"{name} has no options")
    require(len(set(options)) == len(options), f"options of {name} must differ, got {options}")


class VariableSet:
    """Named variables in a fixed order.

    Args:
        variables: in the order of a row's columns.
        name: what the set is called; may be empty.

    Raises:
        UserError: two variables of one name.
    """

    def __init__(self, variables: Sequence[Variable], *, name: str = "") -> None:
        self.name = name
        self.variables = tuple(variables)
        self.column = {variable.name: index for index, variable in enumerate(self.variables)}
        require(len(self.column) == len(self.variables), "two variables have the same name")

    def __len__(self) -> int:
        return len(self.variables)

    @cached_property
    def option_counts(self) -> npt.NDArray[np.int64]:
        """`(d,)` options of each variable."""
        return np.array([len(variable.options) for variable in self.variables], dtype=np.int64)

    @property
    def size(self) -> int:
        """Number of rows, an exact integer."""
        return math.prod(int(count) for count in self.option_counts)

    def check_rows(self, rows: npt.ArrayLike) -> Rows:
        """Rows as an int64 array `(n, d)`.

        Raises:
            UserError: another shape, or an index outside its variable's options.
        """
        array = np.atleast_2d(np.asarray(rows))
        require(array.dtype.kind in "iu" or array.size == 0, f"rows must hold integers, got {array.dtype}")
        require(array.shape[1] == len(self), f"rows must have {len(self)} columns, got {array.shape[1]}")
        wrong = np.argwhere((array < 0) | (array >= self.option_counts))
        if len(wrong):
            row, column = wrong[0]
            variable = self.variables[column]
            raise UserError(
                f"row {row}: option {array[row, column]} of {variable.name} is not in 0..{len(variable.options) - 1}"
            )
        return array.astype(np.int64)

    def values(self, row: npt.ArrayLike) -> dict[str, Any]:
        """The chosen option of every variable by name."""
        (indices,) = self.check_rows(row)
        return {variable.name: variable.options[i] for variable, i in zip(self.variables, indices, strict=True)}

    def row(self, values: dict[str, Any]) -> Rows:
        """Inverse of `values`, shape `(d,)`.

        Raises:
            UserError: an unknown name, a missing one, or a value that is no option.
        """
        for name in values:
            if name not in self.column:
                raise UserError(f"unknown variable {name!r}{closest(name, self.column)}")
        indices = []
        for variable in self.variables:
            require(variable.name in values, f"variable {variable.name!r} is missing")
            value = values[variable.name]
            require(value in variable.options, f"{variable.name} must be one of {variable.options}, got {value!r}")
            indices.append(variable.options.index(value))
        return np.array(indices, dtype=np.int64)

    @cached_property
    def feature_count(self) -> int:
        """Width of `encode`."""
        return sum(len(v.options) if isinstance(v, Choice) else 1 for v in self.variables)

    def encode(self, rows: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Features `(n, feature_count)` float32: one-hot for choices, min-max scaled numbers for ranges."""
        array = self.check_rows(rows)
        columns = []
        for index, variable in enumerate(self.variables):
            chosen = array[:, index]
            if isinstance(variable, Choice):
                columns.append(np.eye(len(variable.options), dtype=np.float32)[chosen])
            else:
                options = np.asarray(variable.options, dtype=np.float64)
                scaled = (options - options[0]) / max(options[-1] - options[0], np.finfo(np.float64).tiny)
                columns.append(scaled.astype(np.float32)[chosen, None])
        return np.concatenate(columns, axis=1) if columns else np.zeros((len(array), 0), dtype=np.float32)
