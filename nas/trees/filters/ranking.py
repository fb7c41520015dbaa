"""Filters ranked by what trees say of them: ``nas.filter_importance`` (document 004, Table 1 and Figure 3)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from nas.loading import TrainedModel
from nas.trees.filters.channels import convolutions, find_convolution
from nas.trees.filters.importance import (
    ESTIMATORS,
    IMPORTANCES,
    MAX_DEPTH,
    MAX_ESTIMATORS,
    METHODS,
    SCORES,
    TOP_K,
    Doubles,
    FilterScores,
    Importance,
    Ints,
    Method,
    Score,
    ScoreTrees,
    boosted_trees,
    decision_tree,
    filter_scores,
    pruning_order,
    random_importance,
    weight_norms,
)
from nas.trees.sources import Classifier, load_classifier
from recipes.datasets import Dataset
from recipes.sources import Source
from search_spaces.errors import closest
from search_spaces.seeding import numpy_rng
from search_spaces.serialisation import require


@dataclass(frozen=True, slots=True)
class RankBy:
    """How filters are ranked.

    Attributes:
        method: ``tree`` (`decision_tree`), ``boosted`` (`boosted_trees`), ``l1`` (`weight_norms`) or ``random``.
        score: of an activation map, ``mean``, ``max`` or ``topk`` (`map_scores`).
        importance: ``gain`` or ``total_gain`` (`ScoreTrees.importance`).
        depth: decisions of a tree at most; None: `tree_depth` of the filters, or 6 for boosted trees.
        estimators: rounds of boosting.
        top_k: values of a map that ``topk`` takes.
        images: training images that trees are grown on, drawn at random; None: all of them.
        seed: of ties, of those images and of a random ranking.
        threads: of boosting.

    Raises:
        UserError: a name or number that is not allowed.
    """

    method: Method = "tree"
    score: Score = "mean"
    importance: Importance = "gain"
    depth: int | None = None
    estimators: int = ESTIMATORS
    top_k: int = TOP_K
    images: int | None = None
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        for name, allowed in (("method", METHODS), ("score", SCORES), ("importance", IMPORTANCES)):
            value = getattr(self, name)
            require(value in allowed, f"unknown {name} {value!r}{closest(str(value), allowed)}")
        for name, low, high in (
            ("depth", 1, MAX_DEPTH), ("estimators", 1, MAX_ESTIMATORS), ("top_k", 1, 1 << 24), ("images", 2, 1 << 40),
            ("seed", 0, 1 << 62), ("threads", 1, 1024),
        ):  # fmt: skip
            value = getattr(self, name)
            require(value is None or low <= value <= high, f"{name} must be in {low}..{high}, got {value}")

    @classmethod
    def of(cls, by: "RankBy | Method") -> "RankBy":
        """A name stands for that method with all defaults."""
        return by if isinstance(by, RankBy) else cls(by)

    @property
    def uses_trees(self) -> bool:
        """Whether images are looked at."""
        return self.method in ("tree", "boosted")


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """How a convolution's filters were ranked.

    Attributes:
        layer: its name.
        importance: `(C,)`.
        trees: what the importance is of; None for ``l1`` and ``random``.
        tree_accuracy: of the trees on the test images, in percent; None without trees.
    """

    layer: str
    importance: Doubles
    trees: ScoreTrees | None
    tree_accuracy: float | None

    @property
    def order(self) -> Ints:
        """`(C,)`, from the least to the most important."""
        return pruning_order(self.importance)


@dataclass(frozen=True, kw_only=True)
class Rankings:
    """Rankings of some layers, and the scores that they come from.

    Attributes:
        layers: one for each.
        train: scores of the training images; None where no images were looked at.
        test: of the test images.
    """

    layers: tuple[Ranking, ...]
    train: FilterScores | None = None
    test: FilterScores | None = None


def rank_filters(found: Classifier, layers: Sequence[str], by: RankBy, device: torch.device | str = "cpu") -> Rankings:
    """Importance of the filters of some convolutions, from the training images.

    Args:
        found: network and data.
        layers: names of convolutions.
        by: how.
        device: where the network computes.

    Raises:
        UserError: no such layer, XGBoost is missing, scores that are not finite.
    """
    if not by.uses_trees:
        made = []
        for layer in layers:
            filters = find_convolution(found.network, layer).out_channels
            drawn = by.method == "random"
            importance = random_importance(filters, layer, by.seed) if drawn else weight_norms(found.network, layer)
            made.append(Ranking(layer=layer, importance=importance, trees=None, tree_accuracy=None))
        return Rankings(layers=tuple(made))
    chosen = found.dataset.train if by.images is None else _some(found.dataset.train, by.images, by.seed)
    train, test = (
        filter_scores(
            found.network,
            layers,
            source,
            resolution=found.resolution,
            scores=(by.score,),
            top_k=by.top_k,
            device=device,
        )
        for source in (chosen, found.dataset.test)
    )
    rankings = []
    for layer in layers:
        values, labels = train.values[layer, by.score], train.labels
        if by.method == "tree":
            trees = decision_tree(values, labels, depth=by.depth, seed=by.seed)
        else:
            trees = boosted_trees(
                values, labels, estimators=by.estimators, depth=by.depth, threads=by.threads, seed=by.seed
            )
        accuracy = trees.accuracy(test.values[layer, by.score], test.labels)
        rankings.append(
            Ranking(layer=layer, importance=trees.importance(by.importance), trees=trees, tree_accuracy=accuracy)
        )
    return Rankings(layers=tuple(rankings), train=train, test=test)


def _some(source: Source, count: int, seed: int) -> Source:
    """So many images, drawn at random, in their order."""
    require(count <= len(source), f"images must be at most the {len(source)} that there are, got {count}")
    drawn = numpy_rng(seed, "images for trees").permutation(len(source))[:count]
    return source.subset(np.sort(drawn).astype(np.int64))


@dataclass(frozen=True, kw_only=True)
class ImportanceResult:
    """Importance of filters.

    Attributes:
        table: a row a filter: ``layer``, ``filter``, ``importance``, ``share`` (of the layer's sum), ``splits``, ``rank``
            (1: the most important).
        tree_accuracy: by layer, of the trees on the test images in percent; empty where there are none.
        depth: by layer, of the trees.
    """

    table: pd.DataFrame
    tree_accuracy: Mapping[str, float]
    depth: Mapping[str, int]


def filter_importance(
    model: str | Path | TrainedModel | nn.Module,
    data: str | Dataset | None = None,
    *,
    layers: Sequence[str] | None = None,
    by: RankBy | Method = "tree",
    pretrained: str | Path | None = None,
    resolution: int | None = None,
    data_dir: str | Path | None = None,
    device: str = "cpu",
) -> ImportanceResult:
    """How much each filter of a trained network tells of the classes.

    Trees are grown on the training images and measured on the test images.

    Args:
        model: run folder of `nas train` or `nas demo`, a model.pt, a network by name with ``pretrained``, or a module that
            gives logits.
        data: name of a data set, or a Dataset; default the one that the network was trained on.
        layers: names of convolutions; default all.
        by: how filters are ranked.
        pretrained: weights of a network given by name.
        resolution: side of the images in pixels; default that of training.
        data_dir: where data sets are.
        device: ``"cpu"`` or ``"cuda"``.

    Raises:
        UserError: anything wrong with the input, in one line.
    """
    by = RankBy.of(by)
    found = load_classifier(model, data, pretrained=pretrained, resolution=resolution, data_dir=data_dir, device=device)
    chosen = list(convolutions(found.network)) if layers is None else list(layers)
    rankings = rank_filters(found, chosen, by, device).layers
    parts = []
    for ranking in rankings:
        filters = len(ranking.importance)
        whole = float(ranking.importance.sum())
        rank = np.empty(filters, dtype=np.int64)
        rank[ranking.order] = np.arange(filters, 0, -1)
        columns = {
            "layer": ranking.layer,
            "filter": np.arange(filters),
            "importance": ranking.importance,
            "share": ranking.importance / whole if whole > 0 else np.zeros(filters),
            "splits": np.zeros(filters, np.int64) if ranking.trees is None else ranking.trees.splits,
            "rank": rank,
        }
        parts.append(pd.DataFrame(columns))
    return ImportanceResult(
        table=pd.concat(parts, ignore_index=True),
        tree_accuracy={r.layer: r.tree_accuracy for r in rankings if r.tree_accuracy is not None},
        depth={r.layer: r.trees.depth for r in rankings if r.trees is not None},
    )
