"""Settings of soft decision trees on MNIST, compared without its test images.

Trees learn from five sixths of the training images (`recipes.sources.split_indices`); the accuracies are of the others, by the
likeliest leaf, of the tree that was chosen by the images it learned from. The teacher of soft labels has seen the same images.

    python -m benchmarks.soft_tree_settings --data-dir DIR
"""

import dataclasses
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import nas
from benchmarks.tables import parser, write_table
from nas.trees.soft.distilling import TEACHER_RECIPE, taught_targets, teacher_network
from nas.trees.soft.loss import SoftTreeLoss
from nas.trees.soft.training import TREE_RECIPE, train_soft_tree
from recipes.datasets import Dataset
from recipes.run_folder import METRICS
from recipes.sources import split_indices
from search_spaces.seeding import numpy_rng

HELD_OUT = 1 / 6
# What differs from the default, by depth.
SETTINGS: dict[int, list[dict[str, Any]]] = {
    4: [
        {},
        {"tries": 1},
        {"momentum": 0.9},
        {"batch_size": 512, "lr": 1e-2, "epochs": 30},
        {"batch_size": 128, "lr": 3e-4, "epochs": 10, "momentum": 0.9},
        {"beta": 0.3},
        {"loss": SoftTreeLoss(penalty=0.03)},
        {"loss": SoftTreeLoss(form="mixture")},
        {"soft": True},
    ],
    8: [
        {},
        {"momentum": 0.9},
        {"beta": 0.3},
        {"loss": SoftTreeLoss(form="mixture")},
        {"soft": True},
        {"soft": True, "augment": True},
    ],
}


def main() -> None:
    """Print and write the table."""
    options = parser(__doc__)
    options.add_argument("--data-dir", type=Path, default=None)
    options.add_argument(
        "--work", type=Path, default=Path("runs/soft_tree_settings"), help="keeps what has been trained"
    )
    options.add_argument("--depths", type=int, nargs="+", choices=SETTINGS, default=list(SETTINGS))
    arguments = options.parse_args()
    torch.set_num_threads(1)
    data = split(nas.load_dataset("mnist", arguments.data_dir))
    network = nas.train(
        teacher_network(data.resolution), data, recipe=TEACHER_RECIPE, out=arguments.work / f"seed{arguments.seed}-teacher",
        seed=arguments.seed, resume=True,
    ).model  # fmt: skip
    rows = []
    for depth in arguments.depths:
        for changes in SETTINGS[depth]:
            folder = (
                arguments.work / f"seed{arguments.seed}-depth{depth}-{said(changes).replace(' ', '_') or 'default'}"
            )
            given = dict(changes)
            soft = given.pop("soft", False)
            recipe = TREE_RECIPE.replace(augment=given.get("augment", False))
            targets = taught_targets(network, data, data.resolution, recipe) if soft else None
            found = train_soft_tree(
                data, targets=targets, depth=depth, out=folder, seed=arguments.seed, resume=True, **given
            )
            rows.append({
                "depth": depth, "changed": said(changes), "held_out_percent": found.evaluation.accuracy,
                "mixed_percent": found.mixed.accuracy, "training_percent": max(found.training_percent),
                "training_percent_worst": min(found.training_percent), "tries": len(found.training_percent),
                "cpu_seconds": float(pd.read_csv(folder / METRICS)["seconds"].sum()), "seed": arguments.seed,
            })  # fmt: skip
            print(rows[-1], flush=True)
    write_table(rows, arguments.out / "soft_tree_settings.csv")


def split(data: Dataset) -> Dataset:
    """The same data with a part of the training images as test images."""
    held_out, rest = split_indices(data.train.labels, HELD_OUT, numpy_rng(0, "soft tree settings"))
    return dataclasses.replace(data, train=data.train.subset(rest), test=data.train.subset(held_out))


def said(changes: dict[str, Any]) -> str:
    """The changes in words."""
    words = []
    for name, value in changes.items():
        if isinstance(value, SoftTreeLoss):
            default = SoftTreeLoss()
            words += [
                f"{field.name} {getattr(value, field.name)}"
                for field in dataclasses.fields(value)
                if getattr(value, field.name) != getattr(default, field.name)
            ]
        else:
            words.append(name if value is True else f"{name} {value:g}")
    return " ".join(words)


if __name__ == "__main__":
    main()
