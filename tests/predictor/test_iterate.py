"""Constrained iterative optimisation with made-up trainings: bins and early stop by hand, rounds, kills, failures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from predictor.iterate import (
    IterationConfig,
    best_of_bins,
    bin_indices,
    early_stop_epoch,
    iterate,
    labels,
    rank_correlations,
)
from predictor.trials import Trial, Trials
from search_spaces.errors import UserError
from search_spaces.variables import Range, Rows, VariableSet

VARIABLES = VariableSet([Range("x", tuple(range(20))), Range("y", tuple(range(20)))])
POOL = np.stack(np.meshgrid(np.arange(20), np.arange(20), indexing="ij"), axis=-1).reshape(-1, 2)
FLOPS = 100 + 10 * POOL[:, 0]
CONFIG = IterationConfig(rounds=3, candidates=4)


def truth(rows: Rows) -> np.ndarray:
    """Best at y = 13, better for larger x."""
    return 60.0 + rows[:, 0] - 0.1 * (rows[:, 1] - 13.0) ** 2


class Training:
    """Records the truth, epoch by epoch closer to it; can be interrupted after some trainings, or fail for some rows."""

    def __init__(
        self, trials: Trials, *, interrupt: int = 10**6, failing: tuple[int, ...] = (), epochs: int = 6
    ) -> None:
        self.trials, self.interrupt, self.failing, self.epochs = trials, interrupt, failing, epochs
        self.trained: list[int] = []
        self.stops: list[int | None] = []

    def __call__(self, trials: Sequence[Trial], epochs: int | None) -> None:
        self.stops.append(epochs)
        for trial in trials:
            if len(self.trained) == self.interrupt:
                raise KeyboardInterrupt
            self.trained.append(trial.id)
            if trial.id in self.failing:
                self.trials.fail(trial.id, "no memory")
                continue
            (final,) = truth(np.array([trial.row]))
            rng = np.random.default_rng(trial.id)
            noise = rng.normal(size=self.epochs) * np.linspace(3, 0, self.epochs)
            self.trials.record(trial.id, (final + noise)[:epochs], 1.0)


def nearest(rows: Rows, accuracies: np.ndarray):
    """A predictor: the accuracy of the nearest known row."""

    def scores(asked: Rows) -> np.ndarray:
        distances = np.abs(asked[:, None] - rows[None]).sum(-1)
        return accuracies[distances.argmin(1)] - 0.01 * distances.min(1)

    return scores


def run(trials: Trials, training: Training, config: IterationConfig = CONFIG, seed: int = 0):
    bins = bin_indices(FLOPS, 100, 300, config.candidates)
    return iterate(
        POOL, bins, trials, evaluate=training, fit=nearest, config=config, seed=seed, statistics={"flops": FLOPS}
    )


def test_bins_by_hand() -> None:
    """400 to 800 in four bins of 100; the upper end belongs to the last."""
    values = [400, 499, 500, 650, 799, 800]
    assert bin_indices(values, 400, 800, 4).tolist() == [0, 0, 1, 2, 3, 3]
    assert bin_indices([5, 5], 5, 5, 4).tolist() == [0, 0]


def test_best_of_bins_by_hand() -> None:
    scores = np.array([1.0, 3.0, 2.0, 9.0, 8.0, 7.0])
    bins = np.array([0, 0, 1, 3, 3, 3])
    assert best_of_bins(scores, bins, 3).tolist() == [1, 2, 3]
    assert best_of_bins(scores, bins, 5).tolist() == [1, 2, 3, 4, 5], "bin 2 is empty: the best of the rest fill up"
    assert best_of_bins(scores, np.zeros(6, dtype=int), 3).tolist() == [3, 4, 5], "no bins: the best"


def test_best_of_bins_against_a_loop() -> None:
    rng = np.random.default_rng(0)
    scores, bins = rng.normal(size=500), rng.integers(0, 12, 500)
    chosen = best_of_bins(scores, bins, 12)
    for number, index in enumerate(chosen):
        assert bins[index] == number and scores[index] == scores[bins == number].max()


def test_rank_correlation_by_hand() -> None:
    """Four candidates: reversed, one exchanged pair of neighbours (1 - 6 x 2 / 60 = .8), the same order."""
    curves = np.array([[4.0, 1.0, 1.0], [3.0, 3.0, 2.0], [2.0, 2.0, 3.0], [1.0, 4.0, 4.0]])
    np.testing.assert_allclose(rank_correlations(curves), [-1.0, 0.8, 1.0])
    assert rank_correlations(np.ones((4, 2))).tolist() == [0.0, 0.0]


def test_early_stop_is_the_first_epoch_above_the_threshold() -> None:
    final = np.arange(30.0)
    almost = final.copy()
    almost[[0, 1]] = almost[[1, 0]]  # 1 - 6 x 2 / (30 x 899) = 0.99956
    curves = np.stack([final[::-1], np.roll(final, 7), almost, final, final], axis=1)
    assert early_stop_epoch(curves, 0.92) == 3
    assert early_stop_epoch(curves, 0.9996) == 4
    assert early_stop_epoch(curves[:, [0, 1, 4]], 0.92) is None, "never crossed before the last"
    assert early_stop_epoch(curves[:19], 0.92) is None, "fewer than 20 candidates"


def test_labels_are_of_one_epoch(tmp_path: Path) -> None:
    trials = Trials(tmp_path / "t.db", VARIABLES, {})
    trials.add(1, POOL[:3], 0)
    trials.record(1, [1.0, 2.0, 3.0], 0)
    trials.fail(2, "no")
    trials.record(3, [4.0, 5.0], 0)
    rows, accuracies = labels(trials.read(), 2)
    assert rows.tolist() == POOL[[0, 2]].tolist() and accuracies.tolist() == [2.0, 5.0]
    assert labels(trials.read(), None)[1].tolist() == [3.0, 5.0]


def test_rounds_take_the_best_of_each_bin(tmp_path: Path) -> None:
    trials = Trials(tmp_path / "t.db", VARIABLES, {})
    training = Training(trials)
    scores, stop = run(trials, training)
    assert stop is None and training.stops == [None] * 3, "4 candidates are too few for an early stop"
    known = trials.read()
    assert [trial.round for trial in known] == [1] * 4 + [2] * 4 + [3] * 4
    assert len({trial.row for trial in known}) == 12
    for number in (1, 2, 3):
        flops = [100 + 10 * trial.row[0] for trial in known if trial.round == number]
        assert bin_indices(flops, 100, 300, 4).tolist() == [0, 1, 2, 3]
    second = nearest(*labels(known[:4], None))
    for bin_number, trial in enumerate(known[4:8]):
        others = [
            row for row, b in zip(map(tuple, POOL.tolist()), bin_indices(FLOPS, 100, 300, 4), strict=True)
            if b == bin_number and row not in {t.row for t in known[:4]}
        ]  # fmt: skip
        assert second(np.array([trial.row]))[0] == pytest.approx(second(np.array(others)).max())
    assert trials.frame()["flops"].tolist() == [100 + 10 * trial.row[0] for trial in known]
    assert scores(POOL).shape == (400,)


def test_early_stop_is_used_from_the_second_round_on(tmp_path: Path) -> None:
    trials = Trials(tmp_path / "t.db", VARIABLES, {})
    training = Training(trials)
    config = IterationConfig(rounds=2, candidates=20)
    _, stop = run(trials, training, config)
    assert stop is not None and 1 <= stop < 6 and training.stops == [None, stop]
    assert {len(trial.curve) for trial in trials.read(round=2)} == {stop}


@pytest.mark.parametrize("killed_after", [0, 1, 4, 5, 11])
def test_a_kill_loses_and_repeats_nothing(tmp_path: Path, killed_after: int) -> None:
    whole = Trials(tmp_path / "whole.db", VARIABLES, {})
    run(whole, Training(whole))
    path = tmp_path / "killed.db"
    first = Training(Trials(path, VARIABLES, {}), interrupt=killed_after)
    with pytest.raises(KeyboardInterrupt):
        run(first.trials, first)
    second = Training(Trials(path, VARIABLES, {}))
    run(second.trials, second)
    assert first.trained + second.trained == list(range(1, 13))
    assert second.trials.read() == whole.read()


def test_failed_candidates_are_left_out(tmp_path: Path) -> None:
    trials = Trials(tmp_path / "t.db", VARIABLES, {})
    run(trials, Training(trials, failing=(2, 7)))
    assert [trial.id for trial in trials.read(status="failed")] == [2, 7]
    again = Training(trials)
    run(trials, again)
    assert again.trained == []


def test_what_cannot_go_on_says_so(tmp_path: Path) -> None:
    trials = Trials(tmp_path / "a.db", VARIABLES, {})
    with pytest.raises(UserError, match="all 4 candidates of round 1 failed; the first: no memory"):
        run(trials, Training(trials, failing=(1, 2, 3, 4)))
    trials = Trials(tmp_path / "b.db", VARIABLES, {})
    with pytest.raises(UserError, match="4 candidates of round 1 have not been trained"):
        iterate(POOL, None, trials, evaluate=lambda waiting, epochs: None, fit=nearest, config=CONFIG, seed=0)
    with pytest.raises(UserError, match="3 rounds of 4 need a pool of 12, got 11"):
        iterate(POOL[:11], None, trials, evaluate=lambda waiting, epochs: None, fit=nearest, config=CONFIG, seed=0)
    with pytest.raises(UserError, match=r"threshold must be in \(0, 1\], got 2"):
        IterationConfig(threshold=2.0)
