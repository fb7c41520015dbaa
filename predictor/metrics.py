"""How good a predictor is."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from scipy import stats

from search_spaces.serialisation import require


def r2_score(predicted: npt.ArrayLike, actual: npt.ArrayLike) -> float:
    """Share of the variance that is explained, 1 - sum (y - y')^2 / sum (y - mean y)^2, of two arrays `(n,)`.

    Where nothing varies: 1 for a perfect prediction, else 0.
    """
    found, true = np.asarray(predicted, dtype=np.float64), np.asarray(actual, dtype=np.float64)
    left, whole = float(((true - found) ** 2).sum()), float(((true - true.mean()) ** 2).sum())
    if whole == 0:
        return float(left == 0)
    return 1.0 - left / whole


def report(predicted: npt.ArrayLike, actual: npt.ArrayLike) -> Mapping[str, float]:
    """``mse``, ``kendall_tau`` (tau-b), ``spearman`` and ``r2`` of two arrays `(n,)`, n >= 2.

    A rank correlation is NaN where one of the arrays is constant.
    """
    found, true = np.asarray(predicted, dtype=np.float64), np.asarray(actual, dtype=np.float64)
    require(
        found.shape == true.shape and found.ndim == 1 and len(found) >= 2,
        f"two arrays of one length >= 2 are compared, got {found.shape} and {true.shape}",
    )
    constant = bool((found == found[0]).all() or (true == true[0]).all())
    return {
        "mse": float(((found - true) ** 2).mean()),
        "kendall_tau": float("nan") if constant else float(stats.kendalltau(found, true).statistic),
        "spearman": float("nan") if constant else float(stats.spearmanr(found, true).statistic),
        "r2": r2_score(found, true),
    }
