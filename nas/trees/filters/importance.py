"""How much each filter of a convolution tells of the classes: activation scores, trees over them, gain (document 004).

Du Toit (2024), "Pruning Convolutional Neural Networks with Decision Trees: An Experiment". A score is what is left of an
activation map as one number; a decision tree learns the classes from an image's scores; a filter is as important as the splits
on its score are good.
"""
# n images, C filters, K classes

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from nas.trees.filters.channels import activation_maps, find_convolution
from recipes.evaluation import evaluation_mode
from recipes.sources import Source
from search_spaces.errors import UserError, closest
from search_spaces.seeding import numpy_rng, stream_seed
from search_spaces.serialisation import require

if TYPE_CHECKING:
    from sklearn.tree import DecisionTreeClassifier

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

Score = Literal["mean", "max", "topk"]
Importance = Literal["gain", "total_gain"]
Method = Literal["tree", "boosted", "l1", "random"]
SCORES: tuple[Score, ...] = get_args(Score)
IMPORTANCES: tuple[Importance, ...] = get_args(Importance)
METHODS: tuple[Method, ...] = get_args(Method)
TOP_K = 10  # values of a map; the document names none
MAX_DEPTH = 20  # decisions
MAX_ESTIMATORS = 10_000
ESTIMATORS = 500  # Table 1
BATCH = 256


def map_scores(maps: Tensor, score: Score, top_k: int = TOP_K) -> Tensor:
    """One number for each activation map (document 004, section 3).

    ``mean`` is the document's; ``max`` and ``topk``, the mean magnitude of the k largest values (at most all of the map),
    are what it asks for as further research.

    Args:
        maps: `(B, C, H, W)`.
        score: which number.
        top_k: k.

    Returns:
        `(B, C)`.
    """
    values = maps.flatten(2)
    if score == "mean":
        return values.mean(2)
    if score == "max":
        return values.amax(2)
    return values.abs().topk(min(top_k, values.shape[2]), dim=2).values.mean(2)


@dataclass(frozen=True, kw_only=True, eq=False)
class FilterScores:
    """Activation scores of images.

    Attributes:
        values: by layer and score, `(n, C)` float32.
        labels: `(n,)` int64.
    """

    values: Mapping[tuple[str, Score], Floats]
    labels: Ints


def filter_scores(
    network: nn.Module,
    layers: Sequence[str],
    source: Source,
    *,
    resolution: int,
    scores: Sequence[Score] = ("mean",),
    top_k: int = TOP_K,
    batch_size: int = BATCH,
    device: torch.device | str = "cpu",
) -> FilterScores:
    """Scores of some convolutions for all images of a source, from one pass that ends at the last of them.

    Maps are taken behind the norm and activation of a convolution (`activation_maps`).

    Args:
        network: images `(b, c, r, r)` to logits; already on ``device``. Nothing of it is changed.
        layers: names of convolutions.
        source: n images, in order and not augmented.
        resolution: r, side of the images in pixels.
        scores: which of `SCORES`.
        top_k: k of ``topk``.
        batch_size: b, images at a time.
        device: where to compute.

    Raises:
        UserError: no images, no such layer or score, k below 1, or images that the network does not take.
    """
    require(len(source) > 0, "there are no scores: the source holds no images")
    require(len(layers) > 0, "name at least one convolution")
    require(len(set(layers)) == len(layers), f"a layer stands twice in {', '.join(layers)}")
    for score in scores:
        require(score in SCORES, f"unknown score {score!r}{closest(score, SCORES)}")
    require(top_k >= 1, f"top_k must be >= 1, got {top_k}")
    maps_of = activation_maps(network, layers)
    found: dict[tuple[str, Score], list[Floats]] = {(layer, score): [] for layer in layers for score in scores}
    with evaluation_mode(network), torch.no_grad():
        for images, _ in source.batches(batch_size, resolution=resolution):
            try:
                taken = maps_of(images.to(device))
            except RuntimeError as error:
                shape = tuple(images.shape[1:])
                raise UserError(f"the network does not take images of shape {shape}: {str(error)[:200]}") from error
            for layer, maps in zip(layers, taken, strict=True):
                for score in scores:
                    found[layer, score].append(map_scores(maps, score, top_k).float().cpu().numpy())
    return FilterScores(
        values={key: np.concatenate(parts) for key, parts in found.items()},
        labels=source.labels.numpy().astype(np.int64),
    )


def split_gain(
    gradient_left: npt.ArrayLike,
    hessian_left: npt.ArrayLike,
    gradient_right: npt.ArrayLike,
    hessian_right: npt.ArrayLike,
    *,
    reg_lambda: float = 0.0,
    gamma: float = 0.0,
) -> Doubles:
    """Gain = 1/2 [G_L^2/(H_L+λ) + G_R^2/(H_R+λ) - (G_L+G_R)^2/(H_L+H_R+λ)] - γ (Chen & Guestrin 2016, Eq. 7).

    The document prints a plus before the last square, which would call a split good that separates nothing; the cited paper and
    XGBoost have the minus. XGBoost reports twice this number, without γ.

    Args:
        gradient_left: G_L, sums of first derivatives of the loss in the left child, any shape.
        hessian_left: H_L, sums of second derivatives.
        gradient_right: G_R.
        hessian_right: H_R.
        reg_lambda: λ, regularises leaf values.
        gamma: γ, what a leaf costs.

    Returns:
        Of the same shape, in units of the loss.
    """
    left, right = np.asarray(gradient_left, np.float64), np.asarray(gradient_right, np.float64)
    below_left, below_right = np.asarray(hessian_left, np.float64), np.asarray(hessian_right, np.float64)
    parts = left**2 / (below_left + reg_lambda) + right**2 / (below_right + reg_lambda)
    whole = (left + right) ** 2 / (below_left + below_right + reg_lambda)
    gain: Doubles = 0.5 * (parts - whole) - gamma
    return gain


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreTrees:
    """One tree or a boosted forest over scores.

    Attributes:
        method: ``tree`` or ``boosted``.
        depth: largest number of decisions.
        total_gain: `(C,)`, sum of the gains of a filter's splits, 0 where there are none.
        splits: `(C,)` int64, number of its splits.
        predict: scores `(n, C)` to classes `(n,)`.
    """

    method: Method
    depth: int
    total_gain: Doubles
    splits: Ints
    predict: Callable[[Floats], Ints]

    def importance(self, kind: Importance = "gain") -> Doubles:
        """`(C,)`: ``gain`` is the mean over a filter's splits, what XGBoost calls so; ``total_gain`` their sum."""
        require(kind in IMPORTANCES, f"unknown importance {kind!r}{closest(kind, IMPORTANCES)}")
        return self.total_gain if kind == "total_gain" else self.total_gain / np.maximum(self.splits, 1)

    def accuracy(self, values: Floats, labels: Ints) -> float:
        """In percent, on scores `(n, C)` with labels `(n,)`."""
        return 100.0 * float(np.mean(self.predict(values) == labels))


def tree_depth(filters: int) -> int:
    """The whole number closest to log2(C), at least 1 (document 004, section 3): 3, 4 and 7 for 6, 16 and 120 filters."""
    return max(1, round(float(np.log2(filters))))


def decision_tree(values: Floats, labels: Ints, *, depth: int | None = None, seed: int = 0) -> ScoreTrees:
    """A single decision tree over scores: scikit-learn's, with Gini impurity.

    Its gains are those of the squared loss 1/2 |y - p|^2 on one-hot labels with λ = γ = 0, summed over classes: G is minus the
    images of the class, H all images. The gain is then half the images of the node times the fall of their Gini impurity, so
    this tree, too, takes the split of the largest gain everywhere.

    Args:
        values: `(n, C)` scores.
        labels: `(n,)` int64.
        depth: largest number of decisions; default `tree_depth`.
        seed: breaks ties between equally good splits.

    Raises:
        UserError: one class only, scores that are not finite, a depth out of range.
    """
    from sklearn.tree import DecisionTreeClassifier  # 1 s to import

    values = _checked(values, labels)
    depth = _checked_depth(tree_depth(values.shape[1]) if depth is None else depth)
    fitted = DecisionTreeClassifier(max_depth=depth, random_state=stream_seed(seed, "score tree") % 2**32)
    fitted.fit(values, labels)
    total, splits = _tree_gains(fitted, values.shape[1])
    return ScoreTrees(
        method="tree", depth=depth, total_gain=total, splits=splits, predict=lambda scores: fitted.predict(scores)
    )


def _tree_gains(fitted: "DecisionTreeClassifier", filters: int) -> tuple[Doubles, Ints]:
    """Sum of gains and number of splits of each filter."""
    tree = fitted.tree_
    inner = np.flatnonzero(tree.children_left >= 0)
    left, right, used = tree.children_left[inner], tree.children_right[inner], tree.feature[inner]
    images = tree.weighted_n_node_samples
    gradient = -tree.value[:, 0, :] * images[:, None]  # (nodes, K): shares times images
    hessian = np.broadcast_to(images[:, None], gradient.shape)
    gain = split_gain(gradient[left], hessian[left], gradient[right], hessian[right]).sum(1)
    splits = np.bincount(used, minlength=filters).astype(np.int64)
    total: Doubles = np.bincount(used, weights=gain, minlength=filters).astype(np.float64)
    return total, splits


def boosted_trees(
    values: Floats,
    labels: Ints,
    *,
    estimators: int = ESTIMATORS,
    depth: int | None = None,
    learning_rate: float = 0.3,
    reg_lambda: float = 1.0,
    gamma: float = 0.0,
    threads: int = 1,
    seed: int = 0,
) -> ScoreTrees:
    """Gradient-boosted trees over scores by XGBoost (extra ``xgboost``); its gains as it reports them.

    The document says "500 estimators" and nothing more: 500 rounds of a tree for each class, XGBoost's own defaults besides.

    Args:
        values: `(n, C)` scores.
        labels: `(n,)` int64.
        estimators: rounds of boosting.
        depth: largest number of decisions of a tree; default 6, XGBoost's.
        learning_rate: factor of every tree.
        reg_lambda: λ of `split_gain`.
        gamma: γ.
        threads: of the CPU; another number may give other bits.
        seed: XGBoost's; nothing is drawn with these settings.

    Raises:
        UserError: XGBoost is missing, or as `decision_tree`.
    """
    try:
        import xgboost
    except ImportError as error:
        raise UserError(
            "boosted trees need XGBoost: pip install 'nas-toolkit[xgboost]'; a single tree does not"
        ) from error
    values = _checked(values, labels)
    require(1 <= estimators <= MAX_ESTIMATORS, f"estimators must be in 1..{MAX_ESTIMATORS}, got {estimators}")
    depth = _checked_depth(6 if depth is None else depth)
    classes, places = np.unique(labels, return_inverse=True)
    data = xgboost.DMatrix(values, label=places)
    settings: dict[str, Any] = {
        "objective": "multi:softprob", "num_class": len(classes), "tree_method": "hist", "max_depth": depth,
        "eta": learning_rate, "lambda": reg_lambda, "gamma": gamma, "nthread": threads, "verbosity": 0,
        "seed": stream_seed(seed, "boosted trees") % 2**31,
    }  # fmt: skip
    booster = xgboost.train(settings, data, num_boost_round=estimators)

    def found(kind: str) -> Doubles:
        by_name = booster.get_score(importance_type=kind)
        return np.array([by_name.get(f"f{index}", 0.0) for index in range(values.shape[1])], dtype=np.float64)

    def predict(scores: Floats) -> Ints:
        likely: Ints = classes[booster.predict(xgboost.DMatrix(scores)).argmax(1)]
        return likely

    return ScoreTrees(
        method="boosted", depth=depth, total_gain=found("total_gain"), splits=found("weight").astype(np.int64),
        predict=predict,
    )  # fmt: skip


def weight_norms(network: nn.Module, layer: str) -> Doubles:
    """`(C,)`, sums of the absolute weights of each filter: the ranking of Li et al. 2017 (arXiv:1608.08710), for comparison.

    Raises:
        UserError: no such convolution.
    """
    weight = find_convolution(network, layer).weight.detach()
    return weight.abs().flatten(1).sum(1).double().cpu().numpy()


def pruning_order(importance: npt.ArrayLike) -> Ints:
    """Numbers of the filters from the least to the most important; of equal ones the lower first.

    Args:
        importance: `(C,)`.
    """
    order: Ints = np.argsort(np.asarray(importance), kind="stable").astype(np.int64)
    return order


def random_importance(filters: int, layer: str, seed: int) -> Doubles:
    """`(C,)` in [0, 1), for comparison; the same for equal seed, layer and C."""
    return numpy_rng(seed, f"random filters of {layer}").random(filters)


def _checked(values: Floats, labels: Ints) -> Floats:
    values, labels = np.asarray(values), np.asarray(labels)
    require(values.ndim == 2 and min(values.shape) > 0, f"scores must be (images, filters), got shape {values.shape}")
    require(
        labels.shape == values.shape[:1] and bool(np.issubdtype(labels.dtype, np.integer)),
        f"labels must be {len(values)} whole numbers, one for each image, got {labels.dtype} {labels.shape}",
    )
    require(bool(np.isfinite(values).all()), "scores must be finite; the network gives NaN or infinite values")
    require(len(np.unique(labels)) >= 2, "trees need images of at least 2 classes, got 1")
    return values.astype(np.float32, copy=False)


def _checked_depth(depth: int) -> int:
    require(1 <= depth <= MAX_DEPTH, f"depth must be in 1..{MAX_DEPTH} decisions, got {depth}")
    return depth
