"""Decision trees on a network's features beside the network itself (Table 5.2, columns Original, Info Gain and OC1)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nas.trees.baselines.feature_trees import FeatureTree, info_gain_tree
from nas.trees.baselines.features import features_of
from nas.trees.baselines.oblique import oc1_tree
from nas.trees.split_hierarchies import SPLIT_METHODS, SplitMethod
from recipes.datasets import Dataset
from recipes.evaluation import Evaluation
from search_spaces.errors import closest
from search_spaces.serialisation import require


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A tree over features, on the test images.

    Attributes:
        tree: grown on the training images.
        evaluation: its accuracy.
        agreement: images for which it says what the network says, in percent.
    """

    tree: FeatureTree
    evaluation: Evaluation
    agreement: float


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """A network and trees over its features.

    Attributes:
        correct: test images that the network itself gets right.
        total: test images.
        trees: by method.
    """

    correct: int
    total: int
    trees: Mapping[str, Baseline]

    @property
    def accuracy(self) -> float:
        """Of the network, in percent."""
        return 100.0 * self.correct / self.total


def feature_baselines(
    model: nn.Module,
    data: Dataset,
    methods: tuple[SplitMethod, ...] = SPLIT_METHODS,
    *,
    seed: int,
    resolution: int | None = None,
    head: str | None = None,
    device: torch.device | str = "cpu",
    oc1: Mapping[str, Any] | None = None,
    **limits: int | None,
) -> Baselines:
    """Grow decision trees on the features of the training images and compare them with the network on the test images.

    Args:
        model: images to logits `(b, K)`; already on ``device``.
        data: whose training images, not augmented, the trees grow on.
        methods: ``info-gain`` and ``oc1``.
        seed: of both trees.
        resolution: side of the images in pixels; default that of the data.
        head: name of the last layer, where `find_head` needs it.
        device: where the network computes.
        oc1: ``restarts``, ``jumps``, ``impurity`` and ``searched`` of `oc1_tree`.
        **limits: ``max_depth``, ``max_leaves`` and ``min_leaf`` of both trees.

    Raises:
        UserError: an unknown method, or what `features_of`, `info_gain_tree` and `oc1_tree` refuse.
    """
    for method in methods:
        require(method in SPLIT_METHODS, f"unknown method {method!r}{closest(method, SPLIT_METHODS)}")
    side = resolution or data.resolution
    train, test = (
        features_of(model, source, data.num_classes, resolution=side, head=head, device=device)
        for source in (data.train, data.test)
    )
    trees: dict[str, Baseline] = {}
    for method in methods:
        grow: Any = oc1_tree if method == "oc1" else info_gain_tree
        options = {**limits, **(oc1 or {})} if method == "oc1" else limits
        tree: FeatureTree = grow(train.values, train.labels, data.class_names, seed=seed, **options)
        agreement = 100.0 * float((tree.predict(test.values) == test.predicted).mean())
        trees[method] = Baseline(tree=tree, evaluation=tree.evaluate(test.values, test.labels), agreement=agreement)
    return Baselines(correct=int((test.predicted == test.labels).sum()), total=len(test.labels), trees=trees)
