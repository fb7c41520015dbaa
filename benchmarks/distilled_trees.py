"""Soft decision trees on MNIST, from labels and from a network's probabilities, beside the published accuracies.

Depth 4: the table of document 003. Depth 8: Frosst & Hinton (arXiv:1711.09784). Every training has a run folder of its own in
``--work``; after a kill the same command goes on where it was, and parts may be trained by several processes (``--depths``,
``--targets``) before one command makes the table. The published depth 4 is of batches of 4 images and 40 epochs.
With ``--augment`` the trees see shifted images; tables of other settings than the default ones say so in their names.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

import nas
from benchmarks.tables import parser, write_table
from nas.trees.soft.distilling import LABELS, SOFT_LABELS, TEACHER_RECIPE, taught_targets, teacher_network
from nas.trees.soft.training import TREE_RECIPE, train_soft_tree
from recipes.datasets import Dataset
from recipes.evaluation import Evaluation, network_outputs
from recipes.recipe import Recipe
from recipes.run_folder import METRICS

DATA = "mnist"
PUBLISHED = {
    (4, "network"): 99.29, (4, LABELS): 80.88, (4, SOFT_LABELS): 90.71,  # document 003
    (8, "network"): 99.21, (8, LABELS): 94.45, (8, SOFT_LABELS): 96.76,  # arXiv:1711.09784, section 4
}  # fmt: skip
SOURCES = {4: "document 003", 8: "arXiv:1711.09784"}


def main() -> None:
    """Print and write the table."""
    options = parser(__doc__)
    options.add_argument("--data-dir", type=Path, default=None)
    options.add_argument("--work", type=Path, default=Path("runs/distilled_trees"), help="keeps what has been trained")
    options.add_argument("--seeds", type=int, default=1, help="from --seed on")
    options.add_argument("--depths", type=int, nargs="+", default=[4, 8])
    options.add_argument("--tries", type=int, default=None, help="trees side by side; default that of the depth")
    options.add_argument("--epochs", type=int, default=TREE_RECIPE.epochs, help="of the trees")
    options.add_argument("--augment", action="store_true", help="shift the trees' images")
    options.add_argument("--targets", nargs="+", choices=[LABELS, SOFT_LABELS], default=[LABELS, SOFT_LABELS])
    arguments = options.parse_args()
    torch.set_num_threads(1)
    dataset = nas.load_dataset(DATA, arguments.data_dir)
    recipe = TREE_RECIPE.with_epochs(arguments.epochs).replace(augment=arguments.augment)
    rows = []
    for seed in range(arguments.seed, arguments.seed + arguments.seeds):
        rows += rows_of(dataset, arguments.work, seed, arguments.depths, arguments.targets, arguments.tries, recipe)
    rows.sort(key=lambda row: (row["seed"], row["depth"]))
    write_table(rows, arguments.out / f"distilled_trees{_kind(recipe, arguments.tries)}.csv")


def rows_of(
    dataset: Dataset,
    work: Path,
    seed: int,
    depths: Sequence[int],
    targets: Sequence[str],
    tries: int | None,
    recipe: Recipe,
) -> list[dict[str, Any]]:
    """The network and all trees of one seed."""
    folder = work / f"teacher_seed{seed}"
    trained = nas.train(
        teacher_network(dataset.resolution), dataset, recipe=TEACHER_RECIPE, out=folder, seed=seed, resume=True
    )
    taught = _predictions(trained.model, dataset)
    settings = {
        "epochs": TEACHER_RECIPE.epochs, "batch_size": TEACHER_RECIPE.batch_size, "lr": TEACHER_RECIPE.lr
    }  # fmt: skip
    rows = [_row("network", depth, trained.evaluation, folder, seed) | settings for depth in depths]
    taught_by = None
    for depth in depths:
        for name in targets:
            folder = work / f"depth{depth}_{name}_seed{seed}{_kind(recipe, tries)}"
            if name == SOFT_LABELS and taught_by is None:
                taught_by = taught_targets(trained.model, dataset, dataset.resolution, recipe)
            tree = train_soft_tree(
                dataset, targets=taught_by if name == SOFT_LABELS else None, depth=depth, out=folder, seed=seed,
                tries=tries, recipe=recipe, resume=True,
            )  # fmt: skip
            rows.append(
                _row(name, depth, tree.evaluation, folder, seed)
                | {
                    "mixed_accuracy_percent": tree.mixed.accuracy,
                    "agreement_percent": 100 * float((tree.predicted == taught).double().mean()),
                    "epochs": recipe.epochs,
                    "batch_size": recipe.batch_size,
                    "lr": recipe.lr,
                    "tries": len(tree.training_percent),
                    "training_percent_worst": min(tree.training_percent),
                    "training_percent_best": max(tree.training_percent),
                }
            )
            print(rows[-1], flush=True)
    return rows


def _kind(recipe: Recipe, tries: int | None) -> str:
    """End of the names of what other settings than the default ones gave."""
    epochs = "" if recipe.epochs == TREE_RECIPE.epochs else f"_{recipe.epochs}epochs"
    return ("" if tries is None else f"_tries{tries}") + epochs + ("_augmented" if recipe.augment else "")


def _predictions(network: nn.Module, dataset: Dataset) -> Tensor:
    logits, _ = network_outputs(network, dataset.test, resolution=dataset.resolution)
    return logits.argmax(1)


def _row(model: str, depth: int, evaluation: Evaluation, folder: Path, seed: int) -> dict[str, Any]:
    published = PUBLISHED.get((depth, model))
    return {
        "depth": depth,
        "model": model if model == "network" else f"tree on {model.replace('_', ' ')}",
        "accuracy_percent": evaluation.accuracy,
        "standard_error_points": evaluation.standard_error,
        "published_percent": published,
        "difference_points": None if published is None else evaluation.accuracy - published,
        "published_in": SOURCES.get(depth, ""),
        "mixed_accuracy_percent": None,
        "agreement_percent": None,
        "epochs": None,
        "batch_size": None,
        "lr": None,
        "tries": None,
        "training_percent_worst": None,
        "training_percent_best": None,
        "test_images": evaluation.total,
        "cpu_seconds": sum(float(pd.read_csv(metrics)["seconds"].sum()) for metrics in sorted(folder.rglob(METRICS))),
        "seed": seed,
    }


if __name__ == "__main__":
    main()
