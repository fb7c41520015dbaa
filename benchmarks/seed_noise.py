"""How far candidates would be ranked the same, trained with other seeds: what no predictor of a table can exceed.

24 candidates of a collected table, spread over FLOPs and rounds, are trained again with two more seeds and exactly the run's
settings. seed_noise.csv is the summary, seed_noise_candidates.csv has a line a candidate.

    python -m benchmarks.seed_noise --run runs/nars-cifar10 --data-dir DIR
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from benchmarks.tables import parser, write_table
from benchmarks.trainings import Run, Training, add_training_options, new_seeds, read_run, train_by_options
from predictor.trials import Trial
from search_spaces.serialisation import require

Floats = npt.NDArray[np.float64]


def spread_over(rounds: npt.ArrayLike, flops: npt.ArrayLike, count: int) -> npt.NDArray[np.int64]:
    """Candidates over the whole range of FLOPs that take turns over the rounds.

    Each round is sorted by FLOPs and cut into `count` parts; the j-th chosen one is the middle of part j of round j mod T. Of
    48 candidates a round and 24 parts that is every second bin.

    Args:
        rounds: `(n,)` round of every candidate.
        flops: `(n,)`.
        count: how many to choose.

    Returns:
        `(count,)` positions, all different.

    Raises:
        UserError: rounds that are too small.
    """
    number, size = np.asarray(rounds), np.asarray(flops)
    parts = [np.flatnonzero(number == each) for each in np.unique(number)]
    parts = [part[np.argsort(size[part], kind="stable")] for part in parts]
    chosen = [part[(2 * j + 1) * len(part) // (2 * count)] for j in range(count) for part in [parts[j % len(parts)]]]
    require(len(set(chosen)) == count, f"{len(number)} candidates in {len(parts)} rounds are too few to choose {count}")
    return np.array(chosen, dtype=np.int64)


def rank_agreement(accuracies: Floats) -> dict[str, float]:
    """Mean rank correlations of all pairs of seeds.

    Args:
        accuracies: `(n, seeds)` percent.

    Returns:
        ``kendall_tau`` (tau-b), ``kendall_tau_lowest`` and ``spearman``.
    """
    pairs = list(combinations(accuracies.T, 2))
    taus = [float(stats.kendalltau(a, b).statistic) for a, b in pairs]
    rhos = [float(stats.spearmanr(a, b).statistic) for a, b in pairs]
    return {"kendall_tau": float(np.mean(taus)), "kendall_tau_lowest": min(taus), "spearman": float(np.mean(rhos))}


def noise(accuracies: Floats) -> dict[str, float]:
    """Standard deviations, in percentage points, of seeds and of what is left without them.

    Args:
        accuracies: `(n, seeds)` percent.

    Returns:
        ``std_over_seeds``: of one candidate, root of the mean variance; ``std_over_candidates``: of the candidates' true
        means, by subtracting the seeds' share from the variance of the means; ``r2_ceiling``: share of one training's
        variance that is the candidate's.
    """
    within = float(accuracies.var(axis=1, ddof=1).mean())
    between = max(0.0, float(accuracies.mean(axis=1).var(ddof=1)) - within / accuracies.shape[1])
    total = within + between
    return {
        "std_over_seeds": within**0.5,
        "std_over_candidates": between**0.5,
        "r2_ceiling": between / total if total else 0.0,
    }


def chosen_candidates(run: Run, count: int) -> list[Trial]:
    """Candidates of the run, see `spread_over`."""
    flops = [run.flops[trial.id] for trial in run.done]
    return [run.done[index] for index in spread_over([trial.round for trial in run.done], flops, count)]


def trainings_of(run: Run, candidates: Sequence[Trial], seeds: Sequence[int]) -> list[list[Training]]:
    """By candidate one training a seed, with the run's settings."""
    return [[run.training(trial.row, seed=seed, stop=run.common_epoch) for seed in seeds] for trial in candidates]


def lines_of(
    run: Run,
    candidates: Sequence[Trial],
    trainings: Sequence[Sequence[Training]],
    results: Mapping[str, Mapping[str, Any]],
) -> tuple[list[dict[str, Any]], Floats]:
    """A line a candidate, and its accuracies with all seeds `(n, seeds)`, the table's own first."""
    lines, accuracies = [], []
    for trial, again in zip(candidates, trainings, strict=True):
        found = [run.accuracy(trial), *(results[training.id]["curve"][run.common_epoch - 1] for training in again)]
        seeds = [trial.seed, *(training.seed for training in again)]
        lines.append(
            {
                "id": trial.id, "round": trial.round, "flops": run.flops[trial.id], "epochs": run.common_epoch,
                **{f"accuracy_seed_{seed}": value for seed, value in zip(seeds, found, strict=True)},
                "mean": np.mean(found), "std_over_seeds": np.std(found, ddof=1),
                "cpu_seconds": sum(results[training.id]["seconds"] for training in again),
            }
        )  # fmt: skip
        accuracies.append(found)
    return lines, np.array(accuracies)


def main() -> None:
    """Train, print and write the table."""
    options = add_training_options(parser(__doc__))
    options.add_argument("--candidates", type=int, default=24)
    options.set_defaults(seeds=2)
    arguments = options.parse_args()
    run = read_run(arguments.run)
    candidates = chosen_candidates(run, arguments.candidates)
    trainings = trainings_of(run, candidates, new_seeds(run, arguments.seeds))
    results = train_by_options([training for again in trainings for training in again], arguments)
    lines, accuracies = lines_of(run, candidates, trainings, results)
    write_table(lines, arguments.out / "seed_noise_candidates.csv")
    summary = {**rank_agreement(accuracies), **noise(accuracies)}
    about = {"candidates": len(lines), "seeds": accuracies.shape[1], "epochs": run.common_epoch}
    write_table([{**about, **summary}], arguments.out / "seed_noise.csv")


if __name__ == "__main__":
    main()
