"""What a search asks of a space's rows, by look-up tables that are built once: canonical form and exact quantities."""

from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt

from predictor.candidates import RowFunction
from predictor.features import STATISTICS, as_joint
from search_spaces.cost import check_image_and_classes
from search_spaces.latency import SpaceLatency
from search_spaces.serialisation import require
from search_spaces.stage_tables import CanonicalTables, StageTables
from search_spaces.tables import SpaceTables
from search_spaces.variables import Rows, VariableSet

LATENCY = "latency_ms"


class SpaceQuantities:
    """What a query asks of a space's rows, by look-up: canonical form and exact quantities.

    Args:
        variables: the space.
        num_classes: of the classifier that is counted; None: nothing is counted.
        in_channels: of the images.
        latency: of the space's networks; adds ``latency_ms``.

    Attributes:
        functions: rows `(n, d)` to values `(n,)`, by name: ``flops``, ``params``, ``resolution``, ``latency_ms``; none where
            the space has no networks.
        canonical: rows to rows; None where every row stands for itself.
        tables: cost tables of the networks; None where nothing is counted.

    Raises:
        UserError: a latency table for a space without networks.
    """

    def __init__(
        self,
        variables: VariableSet,
        *,
        num_classes: int | None,
        in_channels: int = 3,
        latency: SpaceLatency | None = None,
    ) -> None:
        self.variables, self.functions = variables, dict[str, RowFunction]()
        self.canonical: Callable[[Rows], Rows] | None = None
        self.tables: SpaceTables | None = None
        joint = as_joint(variables)
        network = None if joint is None else joint.architecture
        require(latency is None or network is not None, "a latency table is of no use to a space without networks")
        if joint is None or network is None:
            return
        self.canonical = partial(_canonical, CanonicalTables(network), len(network))
        if num_classes is not None:
            check_image_and_classes(num_classes, in_channels)
            self.tables = joint.tables(num_classes=num_classes, in_channels=in_channels)
            for name in STATISTICS:
                self.functions[name] = _of_network(StageTables(self.tables, name), len(network))
        column = network.column[network.resolution.name]
        sides = np.array(network.resolution.options, dtype=np.int64)
        self.functions["resolution"] = lambda rows: sides[rows[:, column]]
        if latency is not None:
            self.functions[LATENCY] = _of_network(latency.latency_ms, len(network))


def _canonical(network: CanonicalTables, columns: int, rows: Rows) -> Rows:
    """Canonical `rows` `(n, d)`, in place; a recipe's columns stand for themselves."""
    rows[:, :columns] = network(rows[:, :columns])
    return rows


def _of_network(function: Callable[[Rows], npt.ArrayLike], columns: int) -> RowFunction:
    """A function of the network's columns as one of whole rows."""
    return lambda rows: function(rows[:, :columns])
