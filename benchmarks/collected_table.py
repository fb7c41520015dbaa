"""The table of trained candidates that `nas nars` collected, as files of the repository: everything else is derived from it.

    nas nars --space fbnetv3-cifar --data cifar10 --flops 2M:12M --rounds 4 --candidates 48 --epochs 6 --images 8000 \
        --held-out 4000 --out runs/nars-cifar10
    python -m benchmarks.collected_table runs/nars-cifar10

Candidates that are not done are left out and counted; of a run that is still going on, it takes what there is.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.tables import parser
from benchmarks.trainings import Run, read_run
from predictor.iterate import rank_correlations
from recipes.run_folder import read_config
from search_spaces.options import option_text
from search_spaces.serialisation import write_json, write_text_atomic

FIRST = ("id", "round", "seed", "status", "accuracy", "epochs", "curve", "seconds", "flops", "params", "resolution")
DIGITS = 4  # of accuracies in percent: one image of a million


def table(run: Run) -> pd.DataFrame:
    """One line a candidate that is done: `FIRST`, then every other variable's value."""
    frame = run.trials.frame(run.common_epoch)
    frame = frame[frame["status"] == "done"]
    columns = [name for name in FIRST if name in frame.columns]
    columns += [variable.name for variable in run.space.variables if variable.name not in columns]
    frame = frame[columns].copy()
    for variable in run.space.variables:
        frame[variable.name] = [option_text(value) for value in frame[variable.name]]
    frame["accuracy"] = frame["accuracy"].round(DIGITS)
    frame["curve"] = [" ".join(f"{round(float(word), DIGITS):g}" for word in text.split()) for text in frame["curve"]]
    frame["seconds"] = frame["seconds"].round(1)
    return frame.reset_index(drop=True)


def facts(run: Run, frame: pd.DataFrame) -> dict[str, Any]:
    """What the table is of, as plain values."""
    stored = read_config(run.path)
    counts = pd.Series([trial.status for trial in run.trials.read()]).value_counts()
    first = np.array([trial.curve for trial in run.trials.read(round=1, status="done")])
    return {
        "command": without_places(["nas", *stored["command"]]),
        "config": run.config,
        "seed": run.seed,
        "candidates": {str(status): int(count) for status, count in counts.sort_index().items()},
        "candidates_by_round": {str(number): int(count) for number, count in frame.groupby("round").size().items()},
        "stop_epoch": run.stop_epoch,
        "common_epoch": run.common_epoch,
        "rank_correlations_of_round_1": [round(float(value), 4) for value in rank_correlations(first)],
        "cpu_seconds": round(float(frame["seconds"].sum()), 1),
        "versions": stored["versions"],
    }


def without_places(command: Sequence[str]) -> list[str]:
    """A command line without what belongs to one machine: no data folder, and of absolute paths the last part only."""
    kept: list[str] = []
    words = iter(command)
    for word in words:
        if word == "--data-dir":
            next(words, None)
        elif not word.startswith("--data-dir="):
            kept.append(Path(word).name if Path(word).is_absolute() else word)
    return kept


def main() -> None:
    """Write both files and say what is in them."""
    options = parser(__doc__)
    options.add_argument("run", type=Path, help="run folder of nas nars")
    options.add_argument("--name", default="nars_cifar10", help="of the two files, without suffix")
    arguments = options.parse_args()
    run = read_run(arguments.run)
    frame = table(run)
    content = facts(run, frame)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"{arguments.name}.csv"
    write_text_atomic(path, frame.to_csv(index=False, lineterminator="\n"))
    write_json(path.with_suffix(".json"), content)
    asked = run.config["candidates"]
    print(
        f"{len(frame)} candidates in {content['candidates_by_round']} by round of {asked}; all: {content['candidates']}"
    )
    print(f"accuracy after epoch {run.common_epoch}, {content['cpu_seconds'] / 3600:.2f} CPU-hours")
    print(f"written to {path} and {path.with_suffix('.json')}")


if __name__ == "__main__":
    main()
