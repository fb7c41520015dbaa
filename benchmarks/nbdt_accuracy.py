"""What a tree costs a network in accuracy, by tree and by training (thesis Tables 5.2, 5.3, 5.4 and 5.8), on CIFAR-10.

A network is trained; trees come from its weights, its features, and WordNet. Then the same network is trained from scratch
for each of them, with the same recipe and seed, by one of the losses. A line is a training wrapped with its tree: ``nn`` the
network's own accuracy, ``soft`` and ``hard`` the tree's, in percent. ``no extra loss`` is the first network itself behind each
tree. The lines ``decision tree`` are classic trees on its features (Table 5.2), grown fully and with leaves of 20 images.

Each training is a run folder below ``--work``; started again, the script goes on where it was. The default network is an
answer of `nas query --flops 6M`.

    OMP_NUM_THREADS=1 python -m benchmarks.nbdt_accuracy --data-dir DIR
"""

import multiprocessing
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import nas
from benchmarks.tables import parser, write_table
from nas.loading import MODEL, load_architecture, load_model
from nas.process import tune_process
from nas.trees.baselines.comparison import feature_baselines
from nas.trees.losses import BETA, OMEGA, Form, Weight
from nas.trees.training import train_nbdt
from nas.trees.wrapping import HARD, NETWORK, SOFT
from recipes.datasets import Dataset, load_dataset
from recipes.recipe import load_recipe
from recipes.run_folder import METRICS
from recipes.sources import split_indices
from search_spaces.seeding import numpy_rng

NETWORK_FILE, RECIPE = Path(__file__).with_name("results") / "nbdt_network.json", "cifar10-small"
TREES = ("unit-ward", "raw-ward", "wordnet", "info-gain", "oc1", "random")
MIN_LEAF = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """How a network is trained for a tree.

    Attributes:
        loss: name in the table.
        tree: kind of tree.
        omega: weight of the tree's loss.
        beta: weight of the network's own.
        form: of the tree's loss.
        rebuild: first and last epoch and period of trees rebuilt during training, as shares of all epochs; None for one tree.
    """

    loss: str
    tree: str = "unit-ward"
    omega: Weight = OMEGA
    beta: Weight = BETA
    form: Form = "nll"
    rebuild: tuple[float, float, float] | None = None


# In the order in which they are trained: first what the thesis's tables have.
VARIANTS = {
    "growing": Variant(loss="growing weight"),
    "constant": Variant(loss="constant weight", omega=Weight(0.5), beta=Weight(1.0)),
    "hard": Variant(loss="hard, nodes alike", form="hard_nodes"),
    "wordnet": Variant(loss="growing weight", tree="wordnet"),
    "info-gain": Variant(loss="growing weight", tree="info-gain"),
    "oc1": Variant(loss="growing weight", tree="oc1"),
    "rebuilt": Variant(
        loss="growing weight, trees rebuilt", rebuild=(67 / 200, 120 / 200, 10 / 200)
    ),  # Table 5.4, row 1
    "package": Variant(loss="growing weight, form of the package", form="xent_on_probs"),
    "added": Variant(loss="growing weight, own loss kept", beta=Weight(1.0)),
    "raw-ward": Variant(loss="growing weight", tree="raw-ward"),
    "random": Variant(loss="growing weight", tree="random"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """What is trained where.

    Attributes:
        network: name or architecture file.
        epochs: of every training.
        images: training images; None for all.
        work: folder of the run folders.
        data_dir: where data sets are.
        variants: names in `VARIANTS`.
    """

    network: str
    epochs: int
    images: int | None
    work: Path
    data_dir: Path | None
    variants: tuple[str, ...] = tuple(VARIANTS)

    def folder(self, what: str, seed: int) -> Path:
        """Run folder of a training."""
        return self.work / f"{what}-{seed}"

    def dataset(self) -> Dataset:
        """CIFAR-10, or as many of its training images."""
        found = load_dataset("cifar10", self.data_dir)
        if self.images is None:
            return found
        share = self.images / len(found.train)
        chosen, _ = split_indices(found.train.labels, share, numpy_rng(0, "images"))
        return replace(found, train=found.train.subset(chosen))


def run_training(study: Study, what: str, seed: int) -> str:
    """Train the network itself (``network``) or a variant, unless it is done; what was done, in words."""
    torch.set_num_threads(1)
    folder = study.folder(what, seed)
    if not (folder / MODEL).is_file():
        dataset = study.dataset()
        recipe = load_recipe(RECIPE).with_epochs(study.epochs)
        design = load_architecture(study.network)
        common: dict[str, Any] = {"recipe": recipe, "out": folder, "seed": seed, "resume": True}
        if what == "network":
            nas.train(design, dataset, **common)
        else:
            variant = VARIANTS[what]
            tree = None if variant.rebuild else _tree(study, variant.tree, seed)
            train_nbdt(
                design, dataset, tree=tree, rebuild=_epochs(variant.rebuild, study.epochs), omega=variant.omega,
                beta=variant.beta, form=variant.form, **common,
            )  # fmt: skip
    return f"{what}, seed {seed}"


def _tree(study: Study, kind: str, seed: int) -> Any:
    """The tree of the network trained with this seed; made once."""
    out = study.folder("network", seed) / f"tree-{kind}"
    if not (out / "hierarchy.json").is_file():
        found = nas.nbdt(
            study.folder("network", seed), tree=kind, out=out, seed=seed, thumbnails=0, data_dir=study.data_dir
        )
        return found.hierarchy
    return out / "hierarchy.json"


def _epochs(shares: tuple[float, float, float] | None, epochs: int) -> tuple[int, int, int] | None:
    if shares is None:
        return None
    start, end, period = (max(1, round(share * epochs)) for share in shares)
    return start, end, period


def lines_of(study: Study, seed: int) -> Iterable[dict[str, Any]]:
    """What the trainings of a seed gave."""
    network = study.folder("network", seed)
    for kind in TREES:
        yield _line(study, network, "no extra loss", kind, seed, _tree(study, kind, seed))
    for what in study.variants:
        variant = VARIANTS[what]
        kind = f"{variant.tree}, rebuilt" if variant.rebuild else variant.tree
        yield _line(study, study.folder(what, seed), variant.loss, kind, seed, None)
    trained = load_model(network)
    dataset = study.dataset()
    for leaf in (1, MIN_LEAF):
        found = feature_baselines(
            trained.network, dataset, seed=seed, resolution=trained.facts.resolution, oc1={"restarts": 1}, min_leaf=leaf
        )
        for method, baseline in found.trees.items():
            grown = "fully" if leaf == 1 else f"leaves of {leaf}"
            yield {
                "training": "decision tree", "tree": f"{method}, {grown}", "seed": seed, "nn": found.accuracy,
                "soft": np.nan, "hard": baseline.evaluation.accuracy, "soft_minus_nn": np.nan,
                "agreement": baseline.agreement,
            }  # fmt: skip


def _line(study: Study, folder: Path, training: str, kind: str, seed: int, tree: Any) -> dict[str, Any]:
    found = nas.nbdt(folder, tree=tree, names=False, seed=seed, data_dir=study.data_dir).evaluations
    accuracies = {name: found[key].accuracy for name, key in (("nn", NETWORK), ("soft", SOFT), ("hard", HARD))}
    return {
        "training": training, "tree": kind, "seed": seed, **accuracies,
        "soft_minus_nn": accuracies["soft"] - accuracies["nn"],
        "epochs": study.epochs, "cpu_seconds": float(pd.read_csv(folder / METRICS)["seconds"].sum()),
    }  # fmt: skip


def _train_all(study: Study, jobs: Iterable[tuple[str, int]], processes: int) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=tune_process) as pool:
        futures = [pool.submit(run_training, study, *job) for job in jobs]
        for number, future in enumerate(as_completed(futures), start=1):
            print(f"{number} of {len(futures)}: {future.result()}", flush=True)


def summary(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds, and the standard error of ``soft_minus_nn``: one network's tree against its own accuracy."""
    frame = pd.DataFrame(list(lines))
    made = []
    for (training, tree), part in frame.groupby(["training", "tree"], sort=False):
        gains = part["soft_minus_nn"]
        error = gains.std(ddof=1) / len(gains) ** 0.5 if len(gains) > 1 else np.nan
        means = {name: part[name].mean() for name in ("nn", "soft", "hard", "soft_minus_nn")}
        made.append({"training": training, "tree": tree, "seeds": len(part), **means, "standard_error": error})
    return made


def main() -> None:
    """Train, print and write the tables."""
    options = parser(__doc__)
    options.add_argument("--network", default=str(NETWORK_FILE))
    options.add_argument("--epochs", type=int, default=10)
    options.add_argument("--images", type=int, default=None)
    options.add_argument("--seeds", type=int, default=1)
    options.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    options.add_argument("--processes", type=int, default=2)
    options.add_argument("--data-dir", type=Path, default=None)
    options.add_argument("--work", type=Path, default=Path("runs/nbdt_accuracy"))
    arguments = options.parse_args()
    study = Study(
        network=arguments.network, epochs=arguments.epochs, images=arguments.images, work=arguments.work,
        data_dir=arguments.data_dir, variants=tuple(arguments.variants),
    )  # fmt: skip
    seeds = range(arguments.seed, arguments.seed + arguments.seeds)
    _train_all(study, [("network", seed) for seed in seeds], arguments.processes)
    for seed in seeds:
        for kind in dict.fromkeys(VARIANTS[what].tree for what in study.variants):
            _tree(study, kind, seed)
    _train_all(study, [(what, seed) for what in study.variants for seed in seeds], arguments.processes)
    lines = [line for seed in seeds for line in lines_of(study, seed)]
    write_table(lines, arguments.out / "nbdt_accuracy.csv")
    write_table(summary(lines), arguments.out / "nbdt_accuracy_summary.csv")


if __name__ == "__main__":
    main()
