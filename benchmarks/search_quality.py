"""Are searched networks better than others of the same size? And does the supergraph rank networks as training alone does?

For every budget and seed: the searched network; one of a search that runs two sampled block types a layer; one found by the
same search whose alpha follows the budget alone (`blind`);
random networks of the same space in [0.9, 1] of the budget; MobileNetV2 and MobileNetV3-Small scaled to it. All are trained
from scratch with one recipe, the same images and the same seeds, and compared on the test images. Searching sees training
images only. search_quality_DATA.csv has a line a network, search_quality_DATA_summary.csv one a budget: ``gain`` is the
searched networks' mean accuracy minus that of the others, with its standard error over seeds; ``rank`` the searched network's
among the random ones, 1 for the best, by seed.

Ranking: every supergraph at its end scores all random networks by sliced weights with recalibrated batch norms;
search_quality_DATA_ranking.csv has the rank correlations with their accuracies when trained alone.

Every search and training is kept below `--work`; started again, the script goes on where it was.

    python -m benchmarks.search_quality --data digits
    python -m benchmarks.search_quality --data cifar10 --data-dir DIR
"""

import json
import multiprocessing
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import nn
from torch.optim.swa_utils import update_bn

import nas
from benchmarks.scaled_networks import BASELINES, Scaled, scaled_to, small_image_network
from benchmarks.tables import parser, write_table
from nas.process import tune_process
from nas.searching import search
from recipes.checkpoint import load_latest_checkpoint
from recipes.datasets import Dataset, load_dataset
from recipes.evaluation import evaluate
from recipes.recipe import Recipe, load_recipe
from recipes.run_folder import CHECKPOINT, METRICS, RunFolder
from recipes.sources import Source, split_indices
from recipes.trainer import fit
from search_spaces.architecture import Architecture
from search_spaces.cost import Cost
from search_spaces.limits import Limit, parse_quantity
from search_spaces.network import build
from search_spaces.sampling import rows_within
from search_spaces.seeding import numpy_rng, stream_seed
from search_spaces.serialisation import read_json, write_json
from search_spaces.space import SearchSpace
from search_spaces.tables import SpaceTables
from supernets.derive import sliced_network
from supernets.result import RESULT, read_result
from supernets.supergraph import Supergraph

RECALIBRATION_IMAGES, RECALIBRATION_BATCH = 2048, 128
# What differs between the searches that are compared.
SEARCHES: dict[str, dict[str, Any]] = {"searched": {}, "two sampled": {"sample": "two"}, "blind": {"alpha_loss": False}}
RANDOM = "random"


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """What is searched and how networks are trained afterwards: the compute allowance, the same for all.

    Attributes:
        data: name of the data set.
        space: that is searched.
        budgets: upper limits of FLOPs.
        search: changes to the data set's search settings.
        recipe: name of the recipe that trains all.
        epochs: of a training.
        images: training images of a training; None: all.
    """

    data: str
    space: str
    budgets: tuple[str, ...]
    search: Mapping[str, Any]
    recipe: str
    epochs: int
    images: int | None


CASES = {
    "digits": Case(
        data="digits", space="digits", budgets=("0.2M", "0.3M"), search={}, recipe="digits", epochs=30, images=None
    ),
    "cifar10": Case(
        data="cifar10", space="cifar", budgets=("4M", "8M"), search={}, recipe="cifar10-small", epochs=8, images=12_800
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """A network to train.

    Attributes:
        kind: name of a search, `RANDOM`, or of a scaled network.
        name: of its results, unique in a case.
        budget: it was made for.
        seeds: of its trainings; a searched network has its own alone.
        network: an architecture as JSON, or a scaled network.
        cost: exact.
        resolution: side of its images in pixels.
    """

    kind: str
    name: str
    budget: str
    seeds: tuple[int, ...]
    network: Architecture | Scaled
    cost: Cost
    resolution: int


# One search or training, in a process of its own ---------------------------------------------------------------------------


def run_search(case: Case, kind: str, budget: str, seed: int, folder: Path, data_dir: Path | None) -> None:
    """A search, or what is left of it."""
    torch.set_num_threads(1)
    search(
        case.space, case.data, flops=budget, out=folder, data_dir=data_dir, resume=True, seed=seed,
        **{**case.search, **SEARCHES[kind]},
    )  # fmt: skip


def run_training(
    contender: Contender, recipe: Recipe, case: Case, seed: int, folder: Path, data_dir: Path | None
) -> None:
    """A training, or what is left of it; `RESULT` in its folder is written at the end."""
    torch.set_num_threads(1)
    dataset = load_dataset(case.data, data_dir)
    network = _built(contender.network, dataset, stream_seed(seed, "weights"))
    config = {"network": contender.name, "budget": contender.budget, "epochs": case.epochs, "images": case.images}
    with RunFolder(folder, config, seed=seed, resume=True) as run:
        result = fit(
            network, training_images(dataset.train, case.images), dataset.test, recipe, resolution=contender.resolution,
            seed=seed, run=run, resume=True,
        )  # fmt: skip
        assert result.evaluation is not None
        seconds = sum(row["seconds"] for row in result.history)
        write_json(run.path / RESULT, {"accuracy": result.evaluation.accuracy, "seconds": seconds})
        run.checkpoint.unlink(missing_ok=True)


def training_images(train: Source, images: int | None) -> Source:
    """The same part of the training images for all, each class in proportion."""
    if images is None or images >= len(train):
        return train
    return train.subset(split_indices(train.labels, images / len(train), numpy_rng(0, "search quality"))[0])


def _built(network: Architecture | Scaled, dataset: Dataset, seed: int) -> nn.Module:
    classes, channels = dataset.num_classes, dataset.in_channels
    if isinstance(network, Architecture):
        return build(network, classes, channels, seed=seed)
    return small_image_network(network.name, network.width, num_classes=classes, in_channels=channels, seed=seed)


def run_ranking(case: Case, folder: Path, rows: Sequence[Sequence[int]], data_dir: Path | None) -> list[float]:
    """Test accuracy in percent of every row's network with the weights of a finished search, batch norms recalibrated."""
    torch.set_num_threads(1)
    space, dataset = nas.load_space(case.space), load_dataset(case.data, data_dir)
    supergraph = Supergraph(space, dataset.num_classes, dataset.in_channels)
    supergraph.load_state_dict(load_latest_checkpoint(folder / CHECKPOINT)["supergraph"])
    accuracies = []
    for row in rows:
        network = sliced_network(supergraph, row)
        recalibrate(network, dataset.train, space.decode(row).resolution)
        accuracies.append(evaluate(network, dataset.test, resolution=space.decode(row).resolution).accuracy)
    return accuracies


def recalibrate(network: nn.Module, train: Source, resolution: int) -> None:
    """Batch norms take the mean statistics of some training images, without augmentation.

    Args:
        network: changed in place; its mode is left as found.
        train: where images come from; the same ones for every network.
        resolution: side of the images in pixels.
    """
    chosen = train.subset(numpy_rng(0, "recalibration").permutation(len(train))[:RECALIBRATION_IMAGES])
    update_bn(chosen.batches(RECALIBRATION_BATCH, resolution=resolution), network)


# The study ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Study:
    """A case, its seeds, and where its results are kept."""

    case: Case
    seeds: tuple[int, ...]
    randoms: int
    work: Path
    data_dir: Path | None
    processes: int

    def search_folder(self, kind: str, budget: str, seed: int) -> Path:
        """Run folder of a search."""
        return self.work / "searches" / f"{kind.replace(' ', '-')}-{budget}-seed{seed}"

    def training_folder(self, contender: Contender, seed: int) -> Path:
        """Run folder of a training."""
        return self.work / "trainings" / f"{contender.name}-seed{seed}"

    def run(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
        """Lines of the three tables: networks, budgets, rankings."""
        self.search_all()
        contenders = [contender for budget in self.case.budgets for contender in self.contenders(budget)]
        self.train_all(contenders)
        networks = [self._line(contender) for contender in contenders]
        summary = [self._summary(budget, networks) for budget in self.case.budgets]
        return networks, summary, self._rankings(networks)

    def search_all(self) -> None:
        """All searches that are not finished."""
        jobs = [
            (run_search, self.case, kind, budget, seed, folder, self.data_dir)
            for kind in SEARCHES
            for budget in self.case.budgets
            for seed in self.seeds
            for folder in [self.search_folder(kind, budget, seed)]
            if not (folder / RESULT).is_file()
        ]
        self._do("search", jobs)

    def contenders(self, budget: str) -> list[Contender]:
        """All networks of a budget."""
        case, (space, counting) = self.case, self._space()
        made = []
        for kind in SEARCHES:
            for seed in self.seeds:
                found = read_result(self.search_folder(kind, budget, seed))
                name = f"{kind.replace(' ', '-')}-{budget}-{seed}"
                made.append(_of_space(kind, name, budget, (seed,), found.architecture, found.cost))
        tables = SpaceTables(space, **counting)
        for index, row in enumerate(self.random_rows(budget)):
            cost = Cost(*(int(entry[0]) for entry in tables.cost(np.array(row))))
            name = f"{RANDOM}-{budget}-{index}"
            made.append(_of_space(RANDOM, name, budget, self.seeds, space.decode(row), cost))
        for name in BASELINES:
            side = int(max(space.resolution.options))
            scaled = scaled_to(name, parse_quantity(budget), resolution=side, **counting)
            if scaled is None:
                print(f"{case.data}: no {name} is as small as {budget}")
                continue
            made.append(
                Contender(
                    kind=name, name=f"{name}-{budget}", budget=budget, seeds=self.seeds, network=scaled,
                    cost=scaled.cost, resolution=scaled.resolution,
                )
            )  # fmt: skip
        return made

    def random_rows(self, budget: str) -> list[list[int]]:
        """Networks of the space in [0.9, 1] of the budget."""
        space, counting = self._space()
        high = parse_quantity(budget)
        limits = {"flops": Limit(low=0.9 * high, high=high)}
        rows = rows_within(space, self.randoms, limits, tables=SpaceTables(space, **counting), seed=self.seeds[0])
        return [[int(option) for option in row] for row in rows]

    def train_all(self, contenders: Sequence[Contender]) -> None:
        """All trainings that are not finished."""
        recipe: Recipe = load_recipe(self.case.recipe).with_epochs(self.case.epochs)
        jobs = [
            (run_training, contender, recipe, self.case, seed, folder, self.data_dir)
            for contender in contenders
            for seed in contender.seeds
            for folder in [self.training_folder(contender, seed)]
            if not (folder / RESULT).is_file()
        ]
        self._do("training", jobs)

    def _space(self) -> tuple[SearchSpace, dict[str, int]]:
        dataset = load_dataset(self.case.data, self.data_dir)
        counting = {"num_classes": dataset.num_classes, "in_channels": dataset.in_channels}
        return nas.load_space(self.case.space), counting

    def _do(self, what: str, jobs: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Run functions with their arguments in processes of their own; results in the order of the jobs."""
        tune_process()
        results: dict[int, Any] = {}
        with ProcessPoolExecutor(self.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
            futures = {pool.submit(*job): index for index, job in enumerate(jobs)}
            for future in as_completed(futures):
                results[futures[future]] = future.result()
                print(f"{what} {len(results)} of {len(jobs)} done", flush=True)
        return [results[index] for index in range(len(jobs))]

    def _line(self, contender: Contender) -> dict[str, Any]:
        results = [read_json(self.training_folder(contender, seed) / RESULT) for seed in contender.seeds]
        accuracies = [float(result["accuracy"]) for result in results]
        spent = self._search_seconds(contender) if contender.kind in SEARCHES else 0.0
        return {
            "budget": contender.budget, "kind": contender.kind, "name": contender.name, "flops": contender.cost.flops,
            "params": contender.cost.params, "resolution": contender.resolution,
            "accuracy_mean": np.mean(accuracies), "accuracy_std": np.std(accuracies, ddof=1) if len(accuracies) > 1 else 0,
            "seeds": json.dumps(contender.seeds), "accuracies": json.dumps(accuracies),
            "train_cpu_seconds": np.mean([result["seconds"] for result in results]), "search_cpu_seconds": spent,
            "epochs": self.case.epochs, "images": self.case.images or "all",
        }  # fmt: skip

    def _search_seconds(self, contender: Contender) -> float:
        folder = self.search_folder(contender.kind, contender.budget, contender.seeds[0])
        return float(pd.read_csv(folder / METRICS)["seconds"].sum())

    def _summary(self, budget: str, networks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        here = [line for line in networks if line["budget"] == budget]
        by_kind = {kind: by_seed(here, kind, self.seeds) for kind in dict.fromkeys(line["kind"] for line in here)}
        searched = by_kind["searched"].mean(axis=0)
        randoms = by_kind[RANDOM]
        line: dict[str, Any] = {"budget": budget, "seeds": json.dumps(self.seeds), "searched": searched.mean()}
        line["searched_std"] = searched.std(ddof=1) if len(searched) > 1 else 0.0
        line["rank"] = json.dumps([1 + int((randoms[:, i] > value).sum()) for i, value in enumerate(searched)])
        line["of"] = len(randoms) + 1
        line["best_random"] = randoms.mean(axis=1).max()
        for kind, found in by_kind.items():
            if kind != "searched":
                gains = searched - found.mean(axis=0)
                line |= {kind: found.mean(), f"gain_over_{kind}": gains.mean(), f"gain_over_{kind}_se": _error(gains)}
        return line

    def _rankings(self, networks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """A line a supergraph of a plain search: does it rank all random networks as training alone does?"""
        rows = [row for budget in self.case.budgets for row in self.random_rows(budget)]
        alone = [line["accuracy_mean"] for line in networks if line["kind"] == RANDOM]
        budgets = [line["budget"] for line in networks if line["kind"] == RANDOM]
        chosen = [(budget, seed) for budget in self.case.budgets for seed in self.seeds]
        jobs = []
        for budget, seed in chosen:
            folder = self.search_folder("searched", budget, seed)
            jobs.append((run_ranking, self.case, folder, rows, self.data_dir))
        lines = []
        for (budget, seed), scores in zip(chosen, self._do("ranking", jobs), strict=True):
            own = [index for index, of in enumerate(budgets) if of == budget]
            lines.append({
                "supergraph_of": budget, "seed": seed, "networks": len(rows), **correlations(scores, alone),
                **{f"own_budget_{name}": value for name, value in correlations(
                    [scores[i] for i in own], [alone[i] for i in own]).items()},
                "supergraph_accuracy_mean": np.mean(scores), "alone_accuracy_mean": np.mean(alone),
            })  # fmt: skip
        return lines


def _of_space(
    kind: str, name: str, budget: str, seeds: tuple[int, ...], architecture: Architecture, cost: Cost
) -> Contender:
    return Contender(
        kind=kind, name=name, budget=budget, seeds=seeds, network=architecture, cost=cost,
        resolution=architecture.resolution,
    )  # fmt: skip


def by_seed(
    lines: Iterable[Mapping[str, Any]], kind: str, seeds: Sequence[int]
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Accuracies `(n, seeds)` of a kind: of networks that have all seeds, or one row of networks that have one each."""
    found = [(json.loads(line["seeds"]), json.loads(line["accuracies"])) for line in lines if line["kind"] == kind]
    if all(len(own) == len(seeds) for own, _ in found):
        return np.array([accuracies for _, accuracies in found])
    of_seed = {own[0]: accuracies[0] for own, accuracies in found}
    return np.array([[of_seed[seed] for seed in seeds]])


def _error(values: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    """Standard error of the mean; NaN for a single value."""
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("nan")


def correlations(scores: Sequence[float], alone: Sequence[float]) -> dict[str, float]:
    """Rank correlations; 0 where all numbers of either are the same."""
    if min(np.ptp(scores), np.ptp(alone)) == 0:
        return {"kendall_tau": 0.0, "spearman": 0.0}
    tau, rho = stats.kendalltau(scores, alone), stats.spearmanr(scores, alone)
    return {"kendall_tau": float(tau.statistic), "spearman": float(rho.statistic)}


def main() -> None:
    """Search, train, print and write the tables."""
    options = parser(__doc__)
    options.add_argument("--data", choices=CASES, required=True)
    options.add_argument("--data-dir", type=Path, default=None)
    options.add_argument("--budgets", default=None, help="FLOPs, for example 4M,8M")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--randoms", type=int, default=8)
    options.add_argument("--epochs", type=int, default=None, help="of a training")
    options.add_argument("--images", type=int, default=None, help="of a training")
    options.add_argument("--search-epochs", type=int, default=None)
    options.add_argument("--search-images", type=int, default=None)
    options.add_argument("--processes", type=int, default=2)
    options.add_argument("--work", type=Path, default=Path("runs/search_quality"))
    arguments = options.parse_args()
    case = CASES[arguments.data]
    given = {"epochs": arguments.search_epochs, "images": arguments.search_images}
    case = Case(
        data=case.data, space=case.space, recipe=case.recipe,
        budgets=case.budgets if arguments.budgets is None else tuple(arguments.budgets.split(",")),
        search={**case.search, **{name: value for name, value in given.items() if value is not None}},
        epochs=arguments.epochs or case.epochs, images=arguments.images or case.images,
    )  # fmt: skip
    seeds = tuple(range(arguments.seed, arguments.seed + arguments.seeds))
    study = Study(
        case=case, seeds=seeds, randoms=arguments.randoms, work=arguments.work / arguments.data,
        data_dir=arguments.data_dir, processes=arguments.processes,
    )  # fmt: skip
    networks, summary, rankings = study.run()
    for lines, name in ((networks, ""), (summary, "_summary"), (rankings, "_ranking")):
        write_table(lines, arguments.out / f"search_quality_{arguments.data}{name}.csv")


if __name__ == "__main__":
    main()
