"""What the query adds to the table of candidates (thesis Table 4.7): its answers and the table's best, both trained anew.

For every budget the best answer of the query and the best candidate of the table inside the same budget are trained in full
with the same new seeds. Predicted is the accuracy after as many epochs as all candidates of the table have, and `measured` is
that too; `measured_whole` is after all epochs. The table's best was so with one seed; trained anew it loses that luck.

    python -m benchmarks.query_validation --run runs/nars-cifar10 --data-dir DIR
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.tables import parser, write_table
from benchmarks.trainings import (
    Run,
    Training,
    add_training_options,
    difference,
    new_seeds,
    over_seeds,
    read_run,
    train_by_options,
)
from search_spaces.limits import Limit, parse_limits


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A candidate for a budget.

    Attributes:
        budget: range of FLOPs.
        source: ``"query"`` or ``"table"``.
        row: option indices.
        flops: multiply-adds of its network.
        known: accuracy in the table, percent; NaN for the query's.
        trainings: one a seed.
    """

    budget: Limit
    source: str
    row: tuple[int, ...]
    flops: float
    known: float
    trainings: Sequence[Training]


def contenders(run: Run, budgets: Sequence[Limit], seeds: Sequence[int]) -> list[Contender]:
    """For every budget the query's answer, then the table's best."""
    made = []
    for budget in budgets:
        answer, (best,) = run.ask(budget), run.best(budget)
        for source, row, flops, known in (
            ("query", answer.row, answer.quantities["flops"], float("nan")),
            ("table", best.row, run.flops[best.id], run.accuracy(best)),
        ):
            trainings = [run.training(row, seed=seed) for seed in seeds]
            made.append(Contender(budget=budget, source=source, row=row, flops=flops, known=known, trainings=trainings))
    return made


def lines_of(run: Run, found: Sequence[Contender], results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A line a contender; the query's has its difference from the table's in the same budget, after all epochs."""
    rows = np.array([contender.row for contender in found])
    predicted, spread = run.predictor.predict(rows), run.predictor.spread(rows)
    curves = [[results[training.id]["curve"] for training in contender.trainings] for contender in found]
    lines = []
    for index, contender in enumerate(found):
        measured = over_seeds([curve[run.common_epoch - 1] for curve in curves[index]])
        last = [curve[-1] for curve in curves[index]]
        gain = difference(last, [curve[-1] for curve in curves[index + 1]]) if contender.source == "query" else {}
        lines.append(
            {
                "budget": str(contender.budget), "source": contender.source, "flops": int(contender.flops),
                "in_table": contender.known, "predicted": predicted[index], "predicted_spread": spread[index],
                "epochs": run.common_epoch, "measured": measured["mean"], "measured_std": measured["std"],
                "measured_minus_predicted": measured["mean"] - predicted[index],
                "whole_epochs": contender.trainings[0].recipe.epochs, "measured_whole": over_seeds(last)["mean"],
                "measured_whole_std": over_seeds(last)["std"], "whole_minus_table": gain.get("difference"),
                "whole_minus_table_standard_error": gain.get("difference_standard_error"), "seeds": len(last),
                "cpu_seconds": sum(results[training.id]["seconds"] for training in contender.trainings),
            }
        )  # fmt: skip
    return lines


def main() -> None:
    """Train, print and write the table."""
    options = add_training_options(parser(__doc__))
    options.add_argument("--budgets", default="4M,7M,10M", help="FLOPs at most, or ranges: 2M:4M,4M:7M")
    arguments = options.parse_args()
    run = read_run(arguments.run)
    found = contenders(run, parse_limits(arguments.budgets), new_seeds(run, arguments.seeds))
    results = train_by_options([training for contender in found for training in contender.trainings], arguments)
    write_table(lines_of(run, found, results), arguments.out / "query_validation.csv")


if __name__ == "__main__":
    main()
