"""Held-out comparison of the predictor with boosted trees, the baseline to beat."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from predictor.config import PredictorConfig
from predictor.features import STATISTICS, Values, as_joint
from predictor.fit import fit
from predictor.metrics import report
from predictor.pretrain import Pretrained
from predictor.table import Table
from search_spaces.serialisation import require
from search_spaces.variables import VariableSet


class _Regressor(Protocol):
    def predict(self, features: npt.NDArray[np.float64]) -> Any: ...


def tree_features(
    variables: VariableSet, rows: npt.ArrayLike, statistics: Mapping[str, npt.ArrayLike]
) -> npt.NDArray[np.float64]:
    """What the predictor sees: encoded options and the statistics' logarithms, `(n, features + s)`."""
    encoded = variables.encode(rows).astype(np.float64)
    logs = [
        np.log(np.asarray(statistics[name], dtype=np.float64))[:, None] for name in STATISTICS if name in statistics
    ]
    return np.concatenate([encoded, *logs], axis=1)


class BoostedTrees:
    """scikit-learn's histogram gradient boosting on the predictor's features.

    Args:
        variables: the space.
        rows: `(n, d)`.
        scores: `(n,)`.
        statistics: by name, `(n,)`; may be empty.
        weights: `(n,)`.
        seed: of the trees.
    """

    def __init__(
        self,
        variables: VariableSet,
        rows: npt.ArrayLike,
        scores: npt.ArrayLike,
        *,
        statistics: Mapping[str, npt.ArrayLike],
        weights: npt.ArrayLike | None = None,
        seed: int,
    ) -> None:
        from sklearn.ensemble import HistGradientBoostingRegressor

        self.variables = variables
        features, labels = tree_features(variables, rows, statistics), np.asarray(scores, dtype=np.float64)
        require(len(labels) > 0, "there are no rows to fit trees to")
        trees = HistGradientBoostingRegressor(
            max_iter=200, learning_rate=0.05, max_leaf_nodes=8, min_samples_leaf=min(5, len(labels)), random_state=seed
        )
        self.trees: _Regressor = trees.fit(features, labels, sample_weight=weights)

    def predict(self, rows: npt.ArrayLike, statistics: Mapping[str, npt.ArrayLike]) -> Values:
        """Scores `(n,)`."""
        return np.asarray(self.trees.predict(tree_features(self.variables, rows, statistics)), dtype=np.float64)


def table_statistics(
    variables: VariableSet, table: Table, num_classes: int | None, in_channels: int
) -> dict[str, Values]:
    """FLOPs and parameters of a table: counted where the space has networks, else the table's own columns."""
    joint = as_joint(variables)
    if joint is None or num_classes is None:
        return table.statistics
    counted = joint.statistics(table.rows, num_classes=num_classes, in_channels=in_channels)
    return {name: counted[name].astype(np.float64) for name in STATISTICS}


def held_out_report(
    variables: VariableSet,
    table: Table,
    *,
    seed: int,
    share: float = 0.2,
    config: str | PredictorConfig = "default",
    pretrained: Pretrained | None = None,
    num_classes: int | None = None,
    in_channels: int = 3,
) -> dict[str, Mapping[str, float]]:
    """Fit on a part of a table, compare on the rest.

    Args:
        variables: the space.
        table: at least 10 candidates.
        seed: of split, predictor and trees.
        share: that is held out.
        config: of the predictor.
        pretrained: encoder to start from.
        num_classes: of the classifier that is counted.
        in_channels: of the images.

    Returns:
        `predictor.metrics.report` by ``"predictor"`` and ``"boosted trees"``.

    Raises:
        UserError: too small a table.
    """
    require(len(table) >= 10, f"a held-out comparison needs 10 candidates or more, the table has {len(table)}")
    if pretrained is not None:
        num_classes, in_channels = pretrained.num_classes, pretrained.in_channels
    train, test = table.split(share, seed)
    known, asked = (table_statistics(variables, part, num_classes, in_channels) for part in (train, test))
    fitted = fit(
        variables,
        train.rows,
        train.scores,
        seed=seed,
        config=config,
        pretrained=pretrained,
        statistics=known or None,
        weights=train.weights,
        num_classes=num_classes,
        in_channels=in_channels,
    )
    trees = BoostedTrees(variables, train.rows, train.scores, statistics=known, weights=train.weights, seed=seed)
    return {
        "predictor": report(fitted.predict(test.rows, asked or None), test.scores),
        "boosted trees": report(trees.predict(test.rows, asked), test.scores),
    }
