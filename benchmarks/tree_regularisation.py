"""Tree regularisation against L1 and L2: accuracy at path lengths (document 002, Figs. 8, 9, 12, 14), and what it costs.

Every training is kept in ``--work`` under its content and done once; killed at any moment, the same command goes on. Shares
of the work may run side by side: ``--share 0/3``, ``--share 1/3``, ``--share 2/3``; without ``--share`` what is missing is
trained and the tables and figures are written.

    python -m benchmarks.tree_regularisation
"""

import argparse
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from sklearn.tree import DecisionTreeClassifier

from benchmarks.tables import parser, provenance, write_table
from nas.reporting.charts import Line, Panel, draw
from nas.trees.regularisation.path_length import TreeOptions, average_path_length
from nas.trees.regularisation.penalty import TreePenalty
from nas.trees.regularisation.tasks import Task, markov_task, parabola_task, regularise
from nas.trees.regularisation.toys import fresh_parabola
from nas.trees.regularisation.training import RegularisationOptions, accuracy, auc
from search_spaces.serialisation import read_json, to_plain, write_json

FIGURE, TRACKING = Path("docs/figures/tree_regularisation.svg"), Path("docs/figures/tree_surrogate.svg")
STRENGTHS: dict[str, dict[str, tuple[float, ...]]] = {
    "parabola": {
        "none": (0.0,),
        "l1": (1e-3, 4e-3, 9e-3, 1.4e-2, 2e-2, 3e-2),
        "l2": (1e-3, 5e-3, 1e-2, 1.4e-2, 1.8e-2, 2.1e-2),
        "tree": (0.1, 0.2, 0.3, 0.4, 0.8),
    },
    "markov, gru": {"none": (0.0,), "l2": (1e-3, 3e-3, 1e-2), "tree": (0.1, 0.3, 1.0)},
    "markov, gru-hmm": {"none": (0.0,), "l2": (1e-3, 3e-3, 1e-2), "tree": (0.1, 0.3, 1.0)},
}
PARABOLA = RegularisationOptions(epochs=150, tree=TreePenalty(warmup=40))
MARKOV = RegularisationOptions(
    epochs=60, batch_size=10, lr=0.2, tree=TreePenalty(warmup=15, ramp=25, tree=TreeOptions(min_samples_leaf=25))
)
EVERY = (1, 2, 5, 25)  # epochs between surrogates, for the cost (document 002: 25)
COST_STRENGTH = 0.2
TRACKED = (0.1, 0.4)  # strengths whose path length is drawn by epoch
RANGES = ((0, 1), (1, 2), (2, 3), (3, 4), (4, 5))
# Seconds an epoch on TIMIT: L2; tree; tree with a surrogate every 25 epochs (document 002).
PAPER_SECONDS = {"l2": 2116, 1: 3977, 25: 2191}
DEPTHS, LEAVES = (1, 2, 3, 4, 5, 6), (1, 5, 15)  # of plain decision trees, document 002's yellow line


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training."""

    task: str
    options: RegularisationOptions
    seed: int

    def plain(self) -> dict[str, Any]:
        """All of it as JSON takes it."""
        options = to_plain(self.options)
        if self.options.penalty != "tree":  # of the tree penalty they only have these
            options["tree"] = {name: options["tree"][name] for name in ("warmup", "tree")}
        return {"task": self.task, "seed": self.seed, "options": options}

    def path(self, work: Path) -> Path:
        """Where its numbers are kept."""
        digest = hashlib.sha256(json.dumps(self.plain(), sort_keys=True).encode()).hexdigest()[:16]
        return work / f"{digest}.json"

    def make(self) -> Task:
        """Its data and untrained network."""
        if self.task == "parabola":
            return parabola_task(self.seed)
        return markov_task(self.seed, self.task.removeprefix("markov, "))

    def train(self) -> dict[str, Any]:
        """Its numbers."""
        task = self.make()
        result = regularise(task, self.options, seed=self.seed)
        numbers: dict[str, Any] = dict(result.numbers())
        if self.task == "parabola":
            points, labels = fresh_parabola(self.seed)
            with torch.no_grad():
                outputs = result.model(points)
            numbers |= {"fresh_accuracy": accuracy(outputs, labels), "fresh_auc": auc(outputs, labels)}
        history = [[seen.epoch, seen.path_length, seen.predicted, seen.nodes] for seen in result.history]
        return {"job": self.plain(), "numbers": _finite(numbers), "history": [_finite_row(row) for row in history]}


def _finite(numbers: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value if np.isfinite(value) else None for name, value in numbers.items()}


def _finite_row(row: Sequence[float]) -> list[float | None]:
    return [value if np.isfinite(value) else None for value in row]


def jobs(seeds: int) -> Iterator[Job]:
    """All trainings: of each task the sweep of the first seed first."""
    for task, penalties in STRENGTHS.items():
        base = PARABOLA if task == "parabola" else MARKOV
        for seed in range(seeds):
            for penalty, strengths in penalties.items():
                for strength in strengths:
                    yield Job(task=task, options=replace(base, penalty=penalty, strength=strength), seed=seed)  # type: ignore[arg-type]
        if task == "parabola":
            yield from (cost_job(every) for every in EVERY)


def cost_job(every: int) -> Job:
    """The training whose cost is measured, with a surrogate every so many epochs."""
    tree = replace(PARABOLA.tree, every=every)
    return Job(task="parabola", options=replace(PARABOLA, penalty="tree", strength=COST_STRENGTH, tree=tree), seed=0)


def decision_trees(seeds: int) -> list[dict[str, Any]]:
    """Plain trees fitted to the parabola's labels, measured like the networks."""
    rows = []
    for seed in range(seeds):
        split = parabola_task(seed).split
        points, labels = fresh_parabola(seed)
        for depth in DEPTHS:
            for leaf in LEAVES:
                tree = DecisionTreeClassifier(max_depth=depth, min_samples_leaf=leaf, random_state=0)
                tree.fit(split.inputs.numpy(), split.labels.numpy())
                sure = tree.predict_proba(points.numpy())[:, 1]
                rows.append({
                    "task": "parabola", "penalty": "decision tree", "strength": depth + leaf / 100, "seed": seed,
                    "path_length": average_path_length(tree, split.inputs.numpy()), "nodes": int(tree.tree_.node_count),
                    "train_accuracy": 100 * tree.score(split.inputs.numpy(), split.labels.numpy()),
                    "accuracy": 100 * tree.score(split.test_inputs.numpy(), split.test_labels.numpy()),
                    "fresh_accuracy": 100 * float((tree.predict(points.numpy()) == labels.numpy()).mean()),
                    "fresh_auc": float(roc_auc_score(labels.numpy(), sure)),
                })  # fmt: skip
    return rows


def by_range(runs: pd.DataFrame, task: str, column: str) -> list[dict[str, Any]]:
    """Of each penalty and seed the run with the highest training accuracy inside a range of path lengths: its test accuracy.

    No test label takes part in the choice. Standard errors are over seeds.

    Args:
        runs: a row a training.
        task: of these.
        column: what is reported.
    """
    rows = []
    mine = runs[runs["task"] == task]
    for low, high in RANGES:
        inside = mine[
            (mine["path_length"] >= low) & (mine["path_length"] < high + (1e-9 if high == RANGES[-1][1] else 0))
        ]
        for penalty in dict.fromkeys(mine["penalty"]):
            group = inside[inside["penalty"] == penalty]
            best = group.loc[group.groupby("seed")["train_accuracy"].idxmax()] if len(group) else group
            values = best[column].to_numpy(dtype=float)
            rows.append({
                "task": task, "path_length": f"{low} to {high}", "penalty": penalty, "seeds": len(values),
                "runs": len(group), "accuracy": values.mean() if len(values) else np.nan,
                "standard_error": values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan,
                "mean_path_length": best["path_length"].mean() if len(values) else np.nan,
                "mean_nodes": best["nodes"].mean() if len(values) else np.nan,
                "paper": "tree above L1 and L2 (Fig. 8, no numbers)" if task == "parabola" and low >= 1 else "",
            })  # fmt: skip
    return rows


def by_strength(runs: pd.DataFrame) -> list[dict[str, Any]]:
    """Means and spreads over seeds of every penalty and strength: accuracy, path length, stability, surrogate."""
    rows = []
    for (task, penalty, strength), group in runs.groupby(["task", "penalty", "strength"], sort=False):
        if penalty == "decision tree":
            continue
        shown = "fresh_accuracy" if task == "parabola" else "accuracy"
        rows.append({
            "task": task, "penalty": penalty, "strength": strength, "seeds": len(group),
            "accuracy": group[shown].mean(), "accuracy_std": group[shown].std(ddof=1),
            "auc": group["fresh_auc" if task == "parabola" else "auc"].mean(),
            "path_length": group["path_length"].mean(), "path_length_std": group["path_length"].std(ddof=1),
            "nodes": group["nodes"].mean(), "nodes_std": group["nodes"].std(ddof=1),
            "test_fidelity": group["test_fidelity"].mean(), "surrogate_rmse": group["surrogate_rmse"].mean(),
            "surrogate_r2": group["surrogate_r2"].mean(), "cpu_seconds": group["seconds"].mean(),
        })  # fmt: skip
    return rows


def costs(work: Path) -> list[dict[str, Any]]:
    """CPU seconds an epoch, and their ratio to the same training with an L2 penalty, beside TIMIT's."""
    plain = Job(
        task="parabola", options=replace(PARABOLA, penalty="l2", strength=STRENGTHS["parabola"]["l2"][0]), seed=0
    )
    found: list[tuple[str | int, Job]] = [("l2", plain), *((every, cost_job(every)) for every in EVERY)]
    rows, first = [], 0.0
    for name, job in found:
        if not job.path(work).is_file():
            return []
        numbers = read_json(job.path(work))["numbers"]
        seconds = numbers["seconds"] / PARABOLA.epochs
        first = first or seconds
        paper = PAPER_SECONDS.get(name)
        rows.append({
            "penalty": "l2" if name == "l2" else f"tree, surrogate every {name} epochs", "ms_an_epoch": 1e3 * seconds,
            "ratio": seconds / first, "paper_ratio_timit": np.nan if paper is None else paper / PAPER_SECONDS["l2"],
            "trees": numbers["fitted_trees_cost"], "surrogates": numbers["fitted_surrogates_cost"],
            "tree_seconds": numbers["trees_cost"], "surrogate_seconds": numbers["surrogates_cost"],
            "path_length": numbers["path_length"], "fresh_accuracy": numbers["fresh_accuracy"],
        })  # fmt: skip
    return rows


def collected(work: Path, seeds: int) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """A row a training that is done, and all that is kept of it."""
    rows, kept = [], []
    for job in {job.path(work): job for job in jobs(seeds)}.values():  # one of the cost is one of the sweep too
        if job.path(work).is_file():
            stored = read_json(job.path(work))
            kept.append(stored)
            if job.options.tree.every == PARABOLA.tree.every:
                options = job.options
                rows.append({
                    "task": job.task, "penalty": options.penalty, "strength": options.strength, "seed": job.seed,
                    **stored["numbers"],
                })  # fmt: skip
    frame = pd.DataFrame(rows).drop_duplicates(["task", "penalty", "strength", "seed"])
    return pd.concat([frame, pd.DataFrame(decision_trees(seeds))], ignore_index=True), kept


def pictures(runs: pd.DataFrame, kept: Sequence[Mapping[str, Any]], arguments: argparse.Namespace) -> None:
    """Accuracy against path length, and what the surrogate foretold in the first tree-regularised training."""
    panels = []
    for task in STRENGTHS:
        mine = runs[(runs["task"] == task) & (runs["path_length"] < 8)]
        column = "fresh_accuracy" if task == "parabola" else "accuracy"
        lines = []
        for penalty in ("tree", "l1", "l2", "none", "decision tree"):
            group = mine[mine["penalty"] == penalty]
            x, y = group["path_length"].tolist(), group[column].tolist()
            lines.append(Line(name=penalty, x=x, y=y, scattered=True))
        panels.append(Panel(title=f"{task}: test accuracy, %", x_label="average path length", lines=lines))
    draw(panels, arguments.figure, "Test accuracy against average path length for every penalty, strength and seed.")
    histories = [one for one in kept if one["history"] and one["job"]["seed"] == 0]
    shown = []
    for one in histories:
        options = one["job"]["options"]  # of a tree penalty: others have no history
        if (
            one["job"]["task"] == "parabola"
            and options["strength"] in TRACKED
            and options["tree"]["every"] == PARABOLA.tree.every
        ):
            epochs, true, foretold, _ = zip(*one["history"], strict=True)
            shown.append(
                Panel(
                    title=f"path length, strength {options['strength']:g}", x_label="epoch", from_zero=True,
                    lines=[
                        Line(name="of a fitted tree", x=epochs, y=true),
                        Line(
                            name="foretold by the surrogate", x=epochs, dashed=True,
                            y=[float("nan") if value is None else value for value in foretold],
                        ),
                    ],
                )
            )  # fmt: skip
    if shown:
        draw(shown, arguments.tracking, "Path length by epoch, true and foretold by the surrogate.")


def main() -> None:
    """Train what is missing; print and write tables and figures."""
    options = parser(__doc__)
    options.add_argument(
        "--work", type=Path, default=Path("runs/tree_regularisation"), help="keeps what has been trained"
    )
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument(
        "--share", help="K/N: train every N-th of the missing ones, from the K-th on, and write nothing"
    )
    options.add_argument("--penalties", help="with commas: train these only")
    options.add_argument("--tables-only", action="store_true", help="of what has been trained so far")
    options.add_argument("--figure", type=Path, default=FIGURE)
    options.add_argument("--tracking", type=Path, default=TRACKING)
    arguments = options.parse_args()
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    part, parts = (int(number) for number in (arguments.share or "0/1").split("/"))
    wanted = None if arguments.penalties is None else arguments.penalties.split(",")
    everything = [job for job in jobs(arguments.seeds) if wanted is None or job.options.penalty in wanted]
    todo = [] if arguments.tables_only else everything[part::parts]
    for job in todo:
        if not job.path(arguments.work).is_file():
            write_json(job.path(arguments.work), job.train())
            print(job.task, job.options.penalty, job.options.strength, "seed", job.seed, flush=True)
    if arguments.share:
        return
    runs, kept = collected(arguments.work, arguments.seeds)
    path: Path = arguments.out / "tree_regularisation_runs.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    runs.assign(**provenance()).to_csv(path, index=False, float_format="%.6g")
    tables = [by_range(runs, task, "fresh_accuracy" if task == "parabola" else "accuracy") for task in STRENGTHS]
    write_table([row for table in tables for row in table], arguments.out / "tree_regularisation.csv")
    write_table(by_strength(runs), arguments.out / "tree_regularisation_strengths.csv")
    if cost := costs(arguments.work):
        write_table(cost, arguments.out / "tree_regularisation_cost.csv")
    pictures(runs, kept, arguments)


if __name__ == "__main__":
    main()
