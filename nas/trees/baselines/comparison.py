"""Decision trees on a network's features beside the network itself (Table 5.2, columns Original, Info Gain and OC1)."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from nas.loading import TrainedModel
from nas.trees.baselines.feature_trees import FeatureTree, check_limits, info_gain_tree
from nas.trees.baselines.features import features_of
from nas.trees.baselines.oblique import oc1_tree
from nas.trees.sources import load_classifier
from nas.trees.split_hierarchies import SPLIT_METHODS, SplitMethod
from recipes.datasets import Dataset
from recipes.evaluation import Evaluation
from search_spaces.errors import closest
from search_spaces.serialisation import require, write_json

RESULT = "baselines.json"


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

    def numbers(self) -> dict[str, Any]:
        """Plain values of `RESULT`."""
        trees = {
            method: {
                "accuracy": one.evaluation.accuracy, "standard_error": one.evaluation.standard_error,
                "agreement": one.agreement, "leaves": one.tree.leaves, "depth": one.tree.depth,
                "settings": dict(one.tree.settings),
            }
            for method, one in self.trees.items()
        }  # fmt: skip
        return {"accuracy": self.accuracy, "correct": self.correct, "total": self.total, "trees": trees}

    def save(self, folder: str | Path) -> None:
        """Write `RESULT` and the trees, METHOD.npz, into a folder.

        Raises:
            UserError: the folder is a file.
        """
        folder = checked_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for method, one in self.trees.items():
            one.tree.save(folder / f"{method}.npz")
        write_json(folder / RESULT, self.numbers())


def checked_folder(folder: str | Path) -> Path:
    """A folder that may be written, there or not.

    Raises:
        UserError: it is a file.
    """
    require(not Path(folder).exists() or Path(folder).is_dir(), f"{folder} is a file; a folder is needed")
    return Path(folder)


def feature_baselines(
    model: str | Path | TrainedModel | nn.Module,
    data: str | Dataset | None = None,
    methods: tuple[SplitMethod, ...] = SPLIT_METHODS,
    *,
    seed: int,
    pretrained: str | Path | None = None,
    resolution: int | None = None,
    head: str | None = None,
    data_dir: str | Path | None = None,
    device: str = "cpu",
    max_depth: int | None = None,
    max_leaves: int | None = None,
    min_leaf: int = 1,
    oc1: Mapping[str, Any] | None = None,
) -> Baselines:
    """Grow decision trees on the features of the training images and compare them with the network on the test images.

    Args:
        model: run folder of `nas train` or `nas demo`, a model.pt, a network by name with ``pretrained``, or a module.
        data: name of a data set, or a Dataset, whose training images, not augmented, the trees grow on; default the one
            that the network was trained on.
        methods: ``info-gain`` and ``oc1``.
        seed: of both trees.
        pretrained: weights of a network given by name.
        resolution: side of the images in pixels; default that of training, of the data for a module.
        head: name of the last layer, where `find_head` needs it.
        data_dir: where data sets are.
        device: where the network computes, ``"cpu"`` or ``"cuda"``.
        max_depth: largest number of decisions of both trees; None for any.
        max_leaves: their largest number of leaves, best splits first; None for any.
        min_leaf: smallest number of training images in a leaf.
        oc1: ``restarts``, ``jumps``, ``impurity`` and ``searched`` of `oc1_tree`.

    Raises:
        UserError: an unknown method, or what `load_classifier`, `features_of`, `info_gain_tree` and `oc1_tree` refuse.
    """
    require(len(methods) > 0, "name at least one method: " + ", ".join(SPLIT_METHODS))
    for method in methods:
        require(method in SPLIT_METHODS, f"unknown method {method!r}{closest(method, SPLIT_METHODS)}")
    check_limits(seed, max_depth, max_leaves, min_leaf)
    limits: dict[str, Any] = {"seed": seed, "max_depth": max_depth, "max_leaves": max_leaves, "min_leaf": min_leaf}
    found = load_classifier(
        model, data, pretrained=pretrained, resolution=resolution, data_dir=data_dir, device=device
    )  # fmt: skip
    dataset = found.dataset
    train, test = (
        features_of(
            found.network, source, dataset.num_classes, resolution=found.resolution, head=head, device=device
        )
        for source in (dataset.train, dataset.test)
    )  # fmt: skip
    trees: dict[str, Baseline] = {}
    for method in methods:
        grow: Any = partial(oc1_tree, **(oc1 or {})) if method == "oc1" else info_gain_tree
        tree: FeatureTree = grow(train.values, train.labels, dataset.class_names, **limits)
        agreement = 100.0 * float((tree.predict(test.values) == test.predicted).mean())
        trees[method] = Baseline(tree=tree, evaluation=tree.evaluate(test.values, test.labels), agreement=agreement)
    return Baselines(correct=int((test.predicted == test.labels).sum()), total=len(test.labels), trees=trees)
