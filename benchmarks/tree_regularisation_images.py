"""Tree regularisation of digits' images: accuracy and path length of the tree over pixels, beside L2 and no penalty.

A perceptron, and a network of the size that searches on digits find (0.2 MFLOPs). Every training has a run folder of its own
in ``--work``; after a kill the same command goes on where it was. Document 002 has no images: there is no paper column.

    python -m benchmarks.tree_regularisation_images
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import nas
from benchmarks.tables import parser, write_table
from nas.trees.regularisation.images import PERCEPTRON, RegularisedImages, regularise_images
from nas.trees.regularisation.penalty import TreePenalty
from search_spaces.architecture import Architecture
from search_spaces.limits import Limit
from search_spaces.tables import SpaceTables

DATA = "digits"
INPUTS, EVERY = 300, 2  # images that the tree is fitted to, epochs between surrogates
PENALTIES = {"none": (0.0,), "l2": (1e-3,), "tree": (0.1, 0.3)}
SMALL_FLOPS = Limit(low=180_000, high=220_000)
SHOWN = ("accuracy", "train_accuracy", "path_length", "nodes", "fidelity", "test_fidelity", "surrogate_rmse", "seconds")


def small_network() -> Architecture:
    """Of the space `digits`, chosen at random among those of 0.18 to 0.22 MFLOPs."""
    space = nas.load_space("digits")
    tables = SpaceTables(space, num_classes=10, in_channels=1)
    (row,) = nas.rows_within(space, 1, {"flops": SMALL_FLOPS}, tables=tables, seed=0)
    return space.decode(row)


def runs(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Numbers of every training, trained where they are missing."""
    for name, network in ((PERCEPTRON, None), ("0.2 MFLOPs", small_network())):
        for penalty, strengths in PENALTIES.items():
            for strength in strengths:
                for seed in range(arguments.seed, arguments.seed + arguments.seeds):
                    out = arguments.work / f"{name.replace(' ', '-')}-{penalty}-{strength:g}-{seed}"
                    found: RegularisedImages = regularise_images(
                        DATA, network, penalty=penalty, strength=strength, tree=TreePenalty(every=EVERY), inputs=INPUTS,
                        out=out, seed=seed, resume=True,
                    )  # fmt: skip
                    numbers = found.result.numbers()
                    yield {
                        "network": name, "penalty": penalty, "strength": strength, "seed": seed,
                        **{column: numbers[column] for column in SHOWN},
                    }  # fmt: skip


def main() -> None:
    """Print and write every training, and means and standard deviations over seeds."""
    options = parser(__doc__)
    options.add_argument(
        "--work", type=Path, default=Path("runs/tree_regularisation_images"), help="keeps what has been trained"
    )
    options.add_argument("--seeds", type=int, default=2, help="from --seed on")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    rows = list(runs(arguments))
    write_table(rows, arguments.out / "tree_regularisation_images.csv")
    means = pd.DataFrame(rows).groupby(["network", "penalty", "strength"], sort=False)[list(SHOWN)].agg(["mean", "std"])
    print(means.to_string(float_format="%.4g"))


if __name__ == "__main__":
    main()
