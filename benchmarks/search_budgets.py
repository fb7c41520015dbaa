"""Searches on digits against their budget: three budgets, three seeds; the argmax network is counted before any repair.

Each finished search is kept under ``--runs``; started again, the script goes on where it was.

    python -m benchmarks.search_budgets
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.tables import parser, write_table
from nas.searching import search
from recipes.run_folder import METRICS

BUDGETS = ("0.12M", "0.2M", "0.3M")
SEEDS = (0, 1, 2)


def run(budget: str, seed: int, epochs: int | None, runs: str) -> dict[str, Any]:
    """One search, as a row of the table."""
    torch.set_num_threads(1)
    folder = Path(runs) / f"{budget}-seed{seed}"
    result = search("digits", "digits", flops=budget, out=folder, seed=seed, epochs=epochs, resume=True)
    high = float(budget.rstrip("M")) * 1e6
    share = result.argmax_cost.flops / high
    lines = (folder / METRICS).read_text(encoding="utf-8").splitlines()
    seconds = sum(float(line.split(",")[-1]) for line in lines[1:])
    return {
        "budget": budget,
        "seed": seed,
        "argmax_flops": result.argmax_cost.flops,
        "argmax_share": share,
        "inside_0.85_1.00": 0.85 <= share <= 1.0,
        "repaired": result.repaired,
        "final_flops": result.cost.flops,
        "final_share": result.cost.flops / high,
        "resolution": result.architecture.resolution,
        "epochs": len(lines) - 1,
        "cpu_seconds": round(seconds, 1),
    }


def main() -> None:
    """Print and write the table."""
    options = parser(__doc__)
    options.add_argument("--epochs", type=int, default=None)
    options.add_argument("--processes", type=int, default=2)
    options.add_argument("--runs", type=Path, default=Path("runs/search_budgets"))
    arguments = options.parse_args()
    with ProcessPoolExecutor(arguments.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [
            pool.submit(run, budget, seed, arguments.epochs, str(arguments.runs))
            for budget in BUDGETS
            for seed in SEEDS
        ]
        rows = [job.result() for job in jobs]
    write_table(rows, arguments.out / "search_budgets.csv")


if __name__ == "__main__":
    main()
