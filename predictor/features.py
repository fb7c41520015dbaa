"""What the predictor reads of a candidate: columns of its network and its recipe, and statistics of its network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recipes.space import JointSpace, RecipeSpace
from search_spaces.errors import UserError, closest
from search_spaces.serialisation import require
from search_spaces.space import SearchSpace
from search_spaces.variables import Choice, Rows, VariableSet

STATISTICS = ("flops", "params")  # thesis 4.3; multiply-adds, and weights in the published convention
Values = npt.NDArray[np.float64]


def network_columns(variables: VariableSet) -> int:
    """How many of the first columns are the network's; the others are the recipe's.

    All columns of a space without recipes, and of a table whose variables have no known meaning.
    """
    if isinstance(variables, JointSpace):
        return variables.architecture_columns
    return 0 if isinstance(variables, RecipeSpace) else len(variables)


def encoder_inputs(variables: VariableSet) -> VariableSet:
    """The network's columns as the encoder reads them: as `VariableSet.encode` does, but the resolution is one-hot.

    Sides of feature maps are rounded up at every stride, so FLOPs jump between neighbouring resolutions: with a min-max
    scaled resolution R2 on FBNetV3's FLOPs ends at 0.986, with a one-hot one above 0.99.
    """
    joint = as_joint(variables)
    name = joint.architecture.resolution.name if joint is not None and joint.architecture is not None else None
    return VariableSet(
        [Choice(v.name, v.options) if v.name == name else v for v in variables.variables[: network_columns(variables)]]
    )


def recipe_inputs(variables: VariableSet) -> VariableSet:
    """The recipe's columns."""
    return VariableSet(variables.variables[network_columns(variables) :])


def canonical_rows(variables: VariableSet, rows: npt.ArrayLike) -> Rows:
    """Rows that mean the same become the same row `(n, d)`, where the space knows."""
    if isinstance(variables, (SearchSpace, JointSpace)):
        return variables.canonical(rows)
    return variables.check_rows(rows)


def as_joint(variables: VariableSet) -> JointSpace | None:
    """The space as one whose networks can be counted; None where it has none."""
    if isinstance(variables, SearchSpace):
        return JointSpace(variables.name, variables, None)
    return variables if isinstance(variables, JointSpace) and variables.architecture is not None else None


@dataclass(frozen=True, slots=True)
class Scaling:
    """Mean and standard deviation of the natural logarithm of every statistic."""

    names: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        require(
            len(self.names) == len(self.mean) == len(self.std) and all(std > 0 for std in self.std),
            f"every statistic needs a mean and a standard deviation > 0, got {self.names}, {self.mean}, {self.std}",
        )

    def standardise(self, statistics: Mapping[str, npt.ArrayLike], n: int) -> npt.NDArray[np.float32]:
        """(log value - mean) / std, `(n, s)`.

        Raises:
            UserError: a statistic that is missing, of another length, or not a positive number.
        """
        scaled = [
            (np.log(column) - mean) / std
            for column, mean, std in zip(checked_columns(statistics, self.names, n), self.mean, self.std, strict=True)
        ]
        return np.stack(scaled, axis=1).astype(np.float32) if scaled else np.zeros((n, 0), dtype=np.float32)

    def restore(self, standardised: npt.NDArray[np.float32]) -> Values:
        """Inverse of `standardise`, `(n, s)` to `(n, s)`."""
        return np.asarray(np.exp(standardised.astype(np.float64) * self.std + self.mean))


def fit_scaling(statistics: Mapping[str, npt.ArrayLike], n: int) -> Scaling:
    """Scaling by a table's own statistics; a constant one is only shifted."""
    logs = [np.log(column) for column in checked_columns(statistics, tuple(statistics), n)]
    deviations = [float(log.std()) for log in logs]
    return Scaling(
        tuple(statistics),
        tuple(float(log.mean()) for log in logs),
        tuple(std if std > 1e-9 else 1.0 for std in deviations),
    )


def checked_columns(statistics: Mapping[str, npt.ArrayLike], names: Sequence[str], n: int) -> list[Values]:
    """Positive finite columns `(n,)` in the order of ``names``.

    Raises:
        UserError: a statistic that is missing, of another length, or not a positive number.
    """
    columns = []
    for name in names:
        if name not in statistics:
            raise UserError(f"the predictor reads {name}, which is not given{closest(name, statistics)}")
        column = np.asarray(statistics[name], dtype=np.float64)
        require(column.shape == (n,), f"{name} must have shape ({n},), got {column.shape}")
        bad = np.flatnonzero(~(np.isfinite(column) & (column > 0)))
        if len(bad):
            raise UserError(f"{name} must be a number > 0, got {column[bad[0]]:g} in row {bad[0]}")
        columns.append(column)
    return columns
