"""Stage 2 of NARS, constrained iterative optimisation (thesis 4.3 and Algorithm 1; settings of 4.4 and 4.6).

T rounds: cut the range of a quantity (FLOPs) into m bins, choose in each bin of the pool the candidate of the best predicted
accuracy, train these, fit the predictor to all that is known. In round 1 nothing is known, and the choice is random. After
it the epoch is found from which on accuracies rank the candidates as final ones do; later rounds train so long only.

Everything that was decided follows from the table of candidates and the seed: after a kill the same call goes on where it was.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

from predictor.trials import Trial, Trials
from search_spaces.errors import UserError
from search_spaces.seeding import numpy_rng
from search_spaces.serialisation import require
from search_spaces.variables import Rows

logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.float64]
Scores = Callable[[Rows], Floats]  # predicted accuracy (n,) of rows (n, d)
Fit = Callable[[Rows, Floats], Scores]  # rows (n, d) and their accuracies (n,) in percent
LEAST_TRIALS = 20  # with fewer a rank correlation says little, and there is no early stop


class Evaluate(Protocol):
    """Trains candidates and records each in the table, failed ones too."""

    def __call__(self, trials: Sequence[Trial], epochs: int | None, /) -> None:
        """Train.

        Args:
            trials: waiting in the table.
            epochs: after which training ends, with the schedules of a whole run; None: the whole run.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class IterationConfig:
    """Settings of the optimisation; the defaults are the joint search's (thesis 4.4).

    Attributes:
        rounds: T.
        candidates: m, candidates of a round and bins of the quantity.
        threshold: rank correlation with the final accuracy from which on an epoch will do (4.6).
    """

    rounds: int = 5
    candidates: int = 48
    threshold: float = 0.92

    def __post_init__(self) -> None:
        require(self.rounds >= 1, f"rounds must be >= 1, got {self.rounds}")
        require(self.candidates >= 1, f"candidates must be >= 1, got {self.candidates}")
        require(0 < self.threshold <= 1, f"threshold must be in (0, 1], got {self.threshold}")


def bin_indices(values: npt.ArrayLike, low: float, high: float, bins: int) -> npt.NDArray[np.int64]:
    """Which of `bins` equal parts of [low, high] each value lies in; `high` belongs to the last.

    Args:
        values: `(n,)` within the range.
        low: smallest value.
        high: largest value.
        bins: m.

    Returns:
        `(n,)` in [0, bins).
    """
    width = (high - low) / bins
    if width <= 0:
        return np.zeros(len(np.asarray(values)), dtype=np.int64)
    return np.clip(((np.asarray(values) - low) / width).astype(np.int64), 0, bins - 1)


def best_of_bins(scores: Floats, bins: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """The best of each bin (thesis 4.6); where bins are empty, the best of the rest fill up.

    Args:
        scores: `(n,)`.
        bins: `(n,)` bin of each, see `bin_indices`; all equal where there are no bins.
        count: m, how many to choose; at most n.

    Returns:
        `(count,)` positions, bins in order, then the best of the rest.
    """
    order = np.lexsort((-scores, bins))
    first = np.ones(len(order), dtype=bool)
    first[1:] = bins[order][1:] != bins[order][:-1]
    chosen = order[first][:count]
    rest = np.setdiff1d(np.argsort(-scores, kind="stable"), chosen, assume_unique=True)
    return np.concatenate([chosen, rest[: count - len(chosen)]])


def rank_correlations(curves: Floats) -> Floats:
    """Spearman's rank correlation of the accuracies after each epoch with the last ones (thesis Fig. 4.5).

    Args:
        curves: `(n, epochs)` percent.

    Returns:
        `(epochs,)`; 0 where all accuracies of an epoch are equal.
    """
    final = curves[:, -1]
    if np.ptp(final) == 0:
        return np.zeros(curves.shape[1])
    return np.array([0.0 if np.ptp(epoch) == 0 else spearmanr(epoch, final).statistic for epoch in curves.T])


def early_stop_epoch(curves: Floats, threshold: float) -> int | None:
    """The first epoch whose rank correlation with the final accuracy exceeds the threshold (thesis 4.3).

    Args:
        curves: `(n, epochs)` percent, of whole runs.
        threshold: 0.92 in the thesis.

    Returns:
        Number of epochs, from 1; None where no epoch before the last exceeds it, or with fewer than 20 candidates.
    """
    if len(curves) < LEAST_TRIALS:
        return None
    exceeding = np.flatnonzero(rank_correlations(curves)[:-1] > threshold)
    return int(exceeding[0]) + 1 if len(exceeding) else None


def labels(trials: Sequence[Trial], epochs: int | None) -> tuple[Rows, Floats]:
    """What the predictor is fitted to: rows `(n, d)` and their accuracies `(n,)`, all after the same number of epochs."""
    done = [trial for trial in trials if trial.status == "done"]
    rows = np.array([trial.row for trial in done], dtype=np.int64).reshape(len(done), -1)
    return rows, np.array([trial.accuracy(epochs) for trial in done])


def iterate(
    pool: Rows,
    bins: npt.NDArray[np.int64] | None,
    trials: Trials,
    *,
    evaluate: Evaluate,
    fit: Fit,
    config: IterationConfig,
    seed: int,
    statistics: Mapping[str, npt.ArrayLike] | None = None,
) -> tuple[Scores, int | None]:
    """All rounds, from wherever the table of candidates stands.

    Args:
        pool: canonical rows `(n, d)`, all different.
        bins: `(n,)` bin of each row by its FLOPs, see `bin_indices`; None for no bins (recipe-only search): the best m rows.
        trials: table of candidates; decides what has been done.
        evaluate: trains candidates.
        fit: makes a predictor.
        config: settings.
        seed: of the random choice, and of the candidates' trainings.
        statistics: arrays `(n,)` by name that the table keeps beside its candidates, for example FLOPs.

    Returns:
        The predictor of all candidates, and the early-stop epoch, if one was found.

    Raises:
        UserError: a pool smaller than the rounds need, or a round in which every candidate failed.
    """
    needed = config.rounds * config.candidates
    require(
        len(pool) >= needed, f"{config.rounds} rounds of {config.candidates} need a pool of {needed}, got {len(pool)}"
    )
    bins = np.zeros(len(pool), dtype=np.int64) if bins is None else bins
    kept = {name: np.asarray(values) for name, values in (statistics or {}).items()}
    scores: Scores | None = None
    stop: int | None = None
    for number in range(1, config.rounds + 1):
        if not trials.read(round=number):
            chosen = _choose(pool, bins, trials, scores, config, numpy_rng(seed, "round", number))
            trials.add(number, pool[chosen], seed, {name: values[chosen] for name, values in kept.items()})
        waiting = trials.read(round=number, status="waiting")
        if waiting:
            logger.info("round %d of %d: %d candidates to train", number, config.rounds, len(waiting))
            evaluate(waiting, stop)
        _require_results(trials, number)
        if number == 1:
            curves = [trial.curve for trial in trials.read(round=1, status="done")]
            stop = early_stop_epoch(np.array(curves), config.threshold)
        rows, accuracies = labels(trials.read(), stop)
        scores = fit(rows, accuracies)
    assert scores is not None, "there is at least one round"
    return scores, stop


def _choose(
    pool: Rows,
    bins: npt.NDArray[np.int64],
    trials: Trials,
    scores: Scores | None,
    config: IterationConfig,
    rng: np.random.Generator,
) -> npt.NDArray[np.int64]:
    """Positions `(m,)` in the pool of the candidates of a round, none of which is in the table."""
    known = {trial.row for trial in trials.read()}
    fresh = np.array([index for index, row in enumerate(map(tuple, pool.tolist())) if row not in known])
    predicted = rng.random(len(fresh)) if scores is None else np.asarray(scores(pool[fresh]), dtype=np.float64)
    return fresh[best_of_bins(predicted, bins[fresh], config.candidates)]


def _require_results(trials: Trials, number: int) -> None:
    found = trials.read(round=number)
    waiting = sum(trial.status == "waiting" for trial in found)
    if waiting:
        raise UserError(
            f"{waiting} candidates of round {number} have not been trained; the same command goes on with them"
        )
    if all(trial.status == "failed" for trial in found):
        raise UserError(f"all {len(found)} candidates of round {number} failed; the first: {found[0].error}")
