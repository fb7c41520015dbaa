"""From which epoch on candidates rank as they will at the end, and what stopping there saves (thesis 4.3, Fig. 4.5).

Round 1 of a collected table is trained in full; an epoch's accuracies are compared with the last ones by Spearman's rank
correlation. The interval holds 95 % of 1000 bootstrap samples of the candidates. `table_saved_percent` is of the CPU time of
all candidates if those after round 1 stop at this epoch; the time of a training is taken to grow evenly with its epochs.

    python -m benchmarks.early_stopping
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.tables import parser, write_table
from nas.reporting.charts import Line, Panel, draw
from predictor.iterate import early_stop_epoch, rank_correlations
from predictor.table import Curves, read_curves
from recipes.space import load_joint
from search_spaces.seeding import numpy_rng
from search_spaces.serialisation import read_json, require

TABLE = Path("benchmarks/results/nars_cifar10.csv")
FIGURE = Path("docs/figures/early_stopping.svg")
SAMPLES = 1000

Floats = npt.NDArray[np.float64]


def interval(curves: Floats, seed: int) -> tuple[Floats, Floats]:
    """Ends of the 95 % bootstrap interval of `rank_correlations`, `(epochs,)` each, over the candidates `(n, epochs)`."""
    rng = numpy_rng(seed, "early stopping")
    samples = [rank_correlations(curves[rng.integers(0, len(curves), len(curves))]) for _ in range(SAMPLES)]
    low, high = np.quantile(samples, (0.025, 0.975), axis=0)
    return low, high


def saved_percent(seconds: Floats, epochs: npt.NDArray[np.int64], first: npt.NDArray[np.bool_]) -> Floats:
    """CPU time that stopping after each epoch saves, percent of what whole trainings of all candidates take.

    Args:
        seconds: `(n,)` CPU time of every training.
        epochs: `(n,)` that it had.
        first: `(n,)` whether it is of round 1, which is trained in full.

    Returns:
        `(E,)`, E the epochs of a whole training.
    """
    whole = int(epochs[first].max())
    each = seconds / epochs
    later = float(each[~first].sum())
    total = whole * (float(each[first].sum()) + later)
    return np.array([100 * later * (whole - epoch) / total for epoch in range(1, whole + 1)])


def rows_of(table: Curves, threshold: float, seed: int) -> list[dict[str, Any]]:
    """A line an epoch."""
    first = table.facts["round"] == 1
    curves = table.curves[first]
    require(bool(np.isfinite(curves).all()), "candidates of round 1 have different numbers of epochs")
    low, high = interval(curves, seed)
    stop, whole = early_stop_epoch(curves, threshold), curves.shape[1]
    saved = saved_percent(table.facts["seconds"], table.epochs, first)
    return [
        {
            "epoch": epoch, "spearman": value, "spearman_low": low[epoch - 1], "spearman_high": high[epoch - 1],
            "threshold": threshold, "chosen": epoch == stop, "training_saved_percent": 100 * (1 - epoch / whole),
            "table_saved_percent": saved[epoch - 1], "candidates": len(curves), "all_candidates": len(table),
            "cpu_seconds": table.facts["seconds"].sum(), "seed": seed,
        }
        for epoch, value in enumerate(rank_correlations(curves), start=1)
    ]  # fmt: skip


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Rank correlation against epochs."""
    line = Line(
        name="Spearman's rho with the last epoch",
        x=[row["epoch"] for row in rows], y=[row["spearman"] for row in rows],
        low=[row["spearman_low"] for row in rows], high=[row["spearman_high"] for row in rows],
    )  # fmt: skip
    threshold = rows[0]["threshold"]
    title = f"{rows[0]['candidates']} candidates of round 1"
    panel = Panel(title=title, x_label="epochs", lines=[line], level=threshold, level_name=f"{threshold:g}")
    draw([panel], path, "Rank correlation of accuracies with the final ones rises with the epochs.")


def main() -> None:
    """Print and write table and figure."""
    options = parser(__doc__)
    options.add_argument("table", nargs="?", type=Path, default=TABLE, help="of benchmarks.collected_table")
    options.add_argument("--figure", type=Path, default=FIGURE)
    arguments = options.parse_args()
    config = read_json(arguments.table.with_suffix(".json"))["config"]
    table = read_curves(arguments.table, load_joint(config["space"]))
    rows = rows_of(table, config["threshold"], arguments.seed)
    write_table(rows, arguments.out / "early_stopping.csv")
    picture(rows, arguments.figure)


if __name__ == "__main__":
    main()
