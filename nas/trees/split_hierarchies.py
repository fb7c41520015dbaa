"""Trees over classes from splits of a network's features: what `--tree info-gain` and `--tree oc1` build.

Table 5.2 names its data-dependent columns hierarchies, though their numbers are those of classifiers of features (see
`feature_trees`). Here is the other reading: the same splits decide which classes stand together, and the rules of the NBDT
decide by the network's own weights, so that trees differ in shape alone.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import nn

from nas.trees.baselines.feature_trees import Ints, Values, checked
from nas.trees.baselines.features import features_of
from nas.trees.baselines.oblique import RESTARTS, SEARCHED, axis_split, best_split, sides_of
from nas.trees.hierarchy import Hierarchy
from recipes.sources import Source, split_indices
from search_spaces.errors import closest
from search_spaces.seeding import numpy_rng
from search_spaces.serialisation import require

SplitMethod = Literal["info-gain", "oc1"]
SPLIT_METHODS: tuple[SplitMethod, ...] = ("info-gain", "oc1")
MOST_IMAGES = 50_000  # as many as CIFAR has; more change the splits of whole classes little


def split_hierarchy(
    values: Values,
    labels: Ints,
    classes: Sequence[str],
    method: SplitMethod = "info-gain",
    *,
    seed: int,
    restarts: int = RESTARTS,
    searched: int = SEARCHED,
) -> Hierarchy:
    """A binary tree over classes: the best split of the images of a node's classes, by information gain, parts the classes.

    A class goes to the side that most of its images are on. Where that leaves a side empty, the class with the largest share
    beyond the split goes there alone.

    Args:
        values: `(n, D)` features, compared as float32.
        labels: `(n,)`, in 0..K-1; every class needs an image.
        classes: K names.
        method: ``info-gain``, axis-parallel splits; ``oc1``, oblique ones.
        seed: of ties and, with ``oc1``, of the search.
        restarts: of the oblique search; see `oc1_tree`, as the following.
        searched: images of a node that it looks at.

    Raises:
        UserError: features that are not finite, a class without images, or an unknown method.
    """
    require(method in SPLIT_METHODS, f"unknown method {method!r}{closest(method, SPLIT_METHODS)}")
    require(seed >= 0, f"seed must be >= 0, got {seed}")
    values, labels = checked(values, labels, len(classes))
    missing = np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0)
    require(len(missing) == 0, f"class {classes[missing[0]]!r} has no images" if len(missing) else "")
    children: list[list[int]] = []
    waiting = [(np.arange(len(classes)), -1, 0)]  # classes, parent, which child of it
    while waiting:
        part, parent, side = waiting.pop()
        number = int(part[0]) if len(part) == 1 else len(classes) + len(children)
        if parent >= 0:
            children[parent][side] = number
        if len(part) > 1:
            rng = numpy_rng(seed, "split-hierarchy", len(children))
            above = _above(values, labels, part, method, rng, restarts, searched)
            waiting += [(part[above], len(children), 1), (part[~above], len(children), 0)]
            children.append([-1, -1])
    return Hierarchy(tuple(classes), tuple(map(tuple, children)), ("",) * len(children))


def model_split_hierarchy(
    model: nn.Module,
    source: Source,
    classes: Sequence[str],
    method: SplitMethod = "info-gain",
    *,
    seed: int,
    resolution: int,
    head: str | None = None,
    device: torch.device | str = "cpu",
) -> Hierarchy:
    """`split_hierarchy` of a network's features of training images, 50,000 of them at most, each class in proportion.

    Args:
        model: images to logits `(b, K)`; already on ``device``.
        source: training images.
        classes: K names.
        method: see `split_hierarchy`.
        seed: of the images chosen, of ties and of the search.
        resolution: side of the images in pixels.
        head: name of the last layer, where `find_head` needs it.
        device: where the network computes.

    Raises:
        UserError: what `features_of` and `split_hierarchy` refuse.
    """
    require(seed >= 0, f"seed must be >= 0, got {seed}")
    if len(source) > MOST_IMAGES:
        chosen, _ = split_indices(source.labels, MOST_IMAGES / len(source), numpy_rng(seed, "split-hierarchy-images"))
        source = source.subset(chosen)
    found = features_of(model, source, len(classes), resolution=resolution, head=head, device=device)
    return split_hierarchy(found.values, found.labels, classes, method, seed=seed)


def _above(
    values: Values,
    labels: Ints,
    part: Ints,
    method: SplitMethod,
    rng: np.random.Generator,
    restarts: int,
    searched: int,
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """`(k,)` whether each of k classes goes to the second child; some do and some do not."""
    images = np.isin(labels, part)
    values, places = values[images], np.searchsorted(part, labels[images])
    if method == "oc1":
        split = best_split(values, places, rng, restarts=restarts, searched=searched)
    else:
        split = axis_split(values, places, int(rng.integers(2**32)))
    if split is None:  # all features are the same
        return np.arange(len(part)) >= len(part) // 2
    shares = np.bincount(places, sides_of(values, split), minlength=len(part)) / np.bincount(places)
    above = shares > 0.5
    if not above.any():
        above[shares.argmax()] = True
    elif above.all():
        above[shares.argmin()] = False
    return above
