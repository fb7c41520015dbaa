"""The pieces of the study of search quality: a search, or a training from scratch, each in a process of its own.

A piece gives plain values for the study's ledger, and what decides them is its key: neither needs the folders that a piece
works in, so that a study goes on on another machine.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

import nas
from benchmarks.scaled_networks import Scaled, small_image_network
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
from search_spaces.network import build
from search_spaces.seeding import numpy_rng, stream_seed
from search_spaces.serialisation import to_plain
from supernets.config import SearchConfig, preset
from supernets.derive import sliced_network
from supernets.supergraph import Supergraph

RECALIBRATION_IMAGES, RECALIBRATION_BATCH = 2048, 128
# What differs between the searches that are compared: on the same images, in as many steps.
# Neither seeds nor images move a blind search's alpha: one on an eighth of the images, in as many steps, stands for all.
SEARCHED, BLIND, TWO_SAMPLED = "searched", "blind", "two sampled"
SEARCHES: dict[str, dict[str, Any]] = {
    SEARCHED: {},
    BLIND: {"alpha_loss": False},
    TWO_SAMPLED: {"sample": "two"},
}
PART = 8  # of the images of a blind search
# How networks follow from alpha; to be raised when that changes, so that the study searches anew.
DERIVATION = 3
Key = dict[str, Any]
Rows = Sequence[Sequence[int]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """What is searched and how networks are trained afterwards: the compute allowance, the same for all.

    Attributes:
        data: name of the data set.
        space: that is searched.
        budgets: upper limits of FLOPs.
        beside: kinds of searches that are shown beside plain and blind ones, with the budgets they are made for.
        search: changes to the data set's search settings.
        recipe: name of the recipe that trains all.
        epochs: of a training.
        images: training images of a training; None: all.
    """

    data: str
    space: str
    budgets: tuple[str, ...]
    beside: Mapping[str, tuple[str, ...]]
    search: Mapping[str, Any]
    recipe: str
    epochs: int
    images: int | None

    def settings(self, kind: str) -> dict[str, Any]:
        """Changes to the data set's search settings in a kind of search."""
        changes = {**self.search, **SEARCHES[kind]}
        return changes | fewer_images(preset(self.data, **changes)) if kind == BLIND else changes

    def kinds(self, budget: str) -> list[str]:
        """Kinds of searches that are made for a budget."""
        return [SEARCHED, BLIND, *(kind for kind, budgets in self.beside.items() if budget in budgets)]

    def trained_by(self) -> Recipe:
        """The recipe that trains all networks."""
        return load_recipe(self.recipe).with_epochs(self.epochs)


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """A network to train.

    Attributes:
        kind: name of a search, ``random``, or of a scaled network.
        name: of its results, unique in a case.
        budget: it was made for.
        network: an architecture, or a scaled network.
        cost: exact.
        resolution: side of its images in pixels.
        search_seconds: CPU-seconds of the search that found it; 0: none did.
    """

    kind: str
    name: str
    budget: str
    network: Architecture | Scaled
    cost: Cost
    resolution: int
    search_seconds: float = 0.0


def fewer_images(config: SearchConfig) -> dict[str, int]:
    """Settings of a search on a `PART` of the images and of every batch; none where one of these cannot be divided.

    It has as many steps where `PART` divides the images of each class in both of their shares, too.
    """
    sizes = {"images": config.images, "batch_size": config.batch_size, "alpha_batch_size": config.alpha_batch_size}
    parts = {name: size // PART for name, size in sizes.items() if size is not None and size % PART == 0}
    return parts if len(parts) == len(sizes) and min(parts.values()) >= 2 else {}


# Searches -----------------------------------------------------------------------------------------------------------------


def search_key(case: Case, kind: str, budget: str, seed: int) -> Key:
    """What decides a search."""
    config = to_plain(preset(case.data, **case.settings(kind)))
    return {"piece": "search", "kind": kind, "data": case.data, "space": case.space, "budget": budget, "seed": seed,
            "config": {**config, "seed": seed}, "derivation": DERIVATION}  # fmt: skip


def ranking_key(case: Case, budget: str, seed: int, rows: Rows) -> Key:
    """What decides the scores of networks by the weights of a plain search."""
    return {**search_key(case, SEARCHED, budget, seed), "piece": "ranking", "rows": [list(row) for row in rows]}


def run_search(
    case: Case, kind: str, budget: str, seed: int, rows: Rows, folder: Path, data_dir: Path | None
) -> list[tuple[Key, Any]]:
    """A search, or what is left of it in its folder; of a plain one its scores of the networks ``rows`` as well."""
    torch.set_num_threads(1)
    found = search(
        case.space,
        case.data,
        flops=budget,
        out=folder,
        data_dir=data_dir,
        resume=True,
        seed=seed,
        **case.settings(kind),
    )
    value = {
        "architecture": found.architecture.to_json(), "cost": found.cost._asdict(), "repaired": found.repaired,
        "seconds": float(pd.read_csv(folder / METRICS)["seconds"].sum()),
    }  # fmt: skip
    pieces: list[tuple[Key, Any]] = [(search_key(case, kind, budget, seed), value)]
    if kind == SEARCHED:
        scores = ranking_scores(case, folder, rows, data_dir)
        pieces.insert(0, (ranking_key(case, budget, seed, rows), scores))  # a search is finished when it has both
    return pieces


def ranking_scores(case: Case, folder: Path, rows: Rows, data_dir: Path | None) -> list[float]:
    """Test accuracy in percent of every row's network with the weights of a finished search, batch norms recalibrated."""
    space, dataset = nas.load_space(case.space), load_dataset(case.data, data_dir)
    config = preset(case.data, **case.settings(SEARCHED))
    supergraph = Supergraph(
        space, dataset.num_classes, dataset.in_channels, share_pointwise=config.share_pointwise,
        share_blocks=config.share_blocks,
    )  # fmt: skip
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


# Trainings ----------------------------------------------------------------------------------------------------------------


def training_key(case: Case, contender: Contender, seed: int) -> Key:
    """What decides a training; names decide nothing."""
    network = contender.network
    plain = {**network.to_json(), "name": ""} if isinstance(network, Architecture) else asdict(network)
    return {
        "piece": "training", "network": digest(plain), "recipe": digest({**case.trained_by().to_json(), "name": ""}),
        "data": case.data, "images": case.images, "epochs": case.epochs, "seed": seed,
    }  # fmt: skip


def run_training(
    case: Case, contender: Contender, seed: int, folder: Path, data_dir: Path | None
) -> list[tuple[Key, Any]]:
    """A training, or what is left of it in its folder."""
    torch.set_num_threads(1)
    dataset = load_dataset(case.data, data_dir)
    network = _built(contender.network, dataset, stream_seed(seed, "weights"))
    key = training_key(case, contender, seed)
    with RunFolder(folder, key, seed=seed, resume=True) as run:
        result = fit(
            network, training_images(dataset.train, case.images), dataset.test, case.trained_by(),
            resolution=contender.resolution, seed=seed, run=run, resume=True,
        )  # fmt: skip
        run.checkpoint.unlink(missing_ok=True)
    assert result.evaluation is not None
    seconds = sum(row["seconds"] for row in result.history)
    return [(key, {"accuracy": result.evaluation.accuracy, "seconds": seconds})]


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


def digest(plain: Mapping[str, Any]) -> str:
    """Sixteen digits that tell plain values from others."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]
