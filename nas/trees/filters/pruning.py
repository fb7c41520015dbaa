"""What trees and the network itself can do without filters: ``nas.pruning_curves`` (document 004, Figure 4).

The document drops scores from what its trees see. Here filters are switched off in the network as well, exactly as if they were
not there.
"""
# n images, C filters of a layer, m masks

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from nas.loading import TrainedModel
from nas.trees.filters.channels import filter_group, masked
from nas.trees.filters.importance import BATCH, Doubles, Floats, Ints, Method, decision_tree, tree_depth
from nas.trees.filters.ranking import RankBy, rank_filters
from nas.trees.sources import load_classifier
from recipes.datasets import Dataset
from recipes.evaluation import evaluation_mode
from recipes.sources import Source
from search_spaces.serialisation import require

POINTS = 31  # of a curve, at most
CHUNK = 16  # masks at a time


def curve_counts(filters: int, points: int = POINTS) -> Ints:
    """Numbers of removed filters, from 0 to C - 1, evenly spaced: at most so many."""
    require(points >= 2, f"points must be >= 2, got {points}")
    return np.unique(np.rint(np.linspace(0, filters - 1, min(filters, points))).astype(np.int64))


def tree_curve(
    train: tuple[Floats, Ints],
    test: tuple[Floats, Ints],
    order: Ints,
    counts: Sequence[int] | Ints,
    *,
    depth: int,
    seed: int = 0,
) -> Doubles:
    """Accuracy of a decision tree, grown anew, without the scores of the first filters in an order (document 004, Figure 4).

    Where none of the filters removed since the last tree is used by it, it is the tree that would be grown again, for what is
    best without them was best with them (where splits tie, another may be taken). It is then kept, which saves most of the
    work of best-case pruning.

    Args:
        train: scores `(n, C)` and labels `(n,)` that trees are grown on.
        test: those that they are measured on.
        order: `(C,)`, filters in the order of removal.
        counts: `(m,)` ascending numbers of removed filters, each below C.
        depth: of all trees; the document does not say whether its depth falls with the filters.
        seed: see `decision_tree`.

    Returns:
        `(m,)` in percent.
    """
    found = np.zeros(len(counts))
    used: set[int] | None = None
    before = 0
    for place, count in enumerate(counts):
        if used is None or used & set(order[before:count].tolist()):
            kept = np.sort(order[count:])
            tree = decision_tree(train[0][:, kept], train[1], depth=depth, seed=seed)
            found[place] = tree.accuracy(test[0][:, kept], test[1])
            used = set(kept[tree.splits > 0].tolist())
        else:
            found[place] = found[place - 1]
        before = count
    return found


def removal_masks(order: Ints, counts: Sequence[int] | Ints) -> Floats:
    """`(m, C)`: row i is 0 for the first ``counts[i]`` filters in ``order`` `(C,)`, else 1."""
    rank = np.argsort(order)
    return (rank[None, :] >= np.asarray(counts)[:, None]).astype(np.float32)


def masked_accuracy(
    network: nn.Module,
    layer: str,
    masks: Floats,
    source: Source,
    *,
    resolution: int,
    batch_size: int = BATCH,
    device: torch.device | str = "cpu",
) -> Doubles:
    """Accuracy of the network with filters of a convolution switched off, for many masks in one pass over the images.

    All masks go through the network together (`torch.vmap`): what comes before the layer is computed once for `CHUNK` of them.

    Args:
        network: images `(b, c, r, r)` to logits; already on ``device``.
        layer: name of the convolution.
        masks: `(m, C)`, 1 for filters that stay, 0 for those that do not.
        source: n images.
        resolution: r, side of the images in pixels.
        batch_size: b, images at a time.
        device: where to compute.

    Returns:
        `(m,)` in percent.

    Raises:
        UserError: no images, or filters that cannot be removed (`filter_group`).
    """
    require(len(source) > 0, "there is nothing to evaluate on: the source holds no images")
    together, group = masked(network, layer)
    require(
        masks.ndim == 2 and masks.shape[1] == group.filters, f"masks must be (m, {group.filters}), got {masks.shape}"
    )
    rows = torch.from_numpy(masks).to(device)
    correct = torch.zeros(len(rows), dtype=torch.int64)
    with evaluation_mode(network), torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")  # of one cheap operation of a pool
        for images, labels in source.batches(batch_size, resolution=resolution):
            every = torch.vmap(together, in_dims=(None, 0), chunk_size=CHUNK)
            logits: Tensor = every(images.to(device), rows)
            correct += (logits.argmax(2).cpu() == labels).sum(1)
    return 100.0 * correct.double().numpy() / len(source)


def pruning_curves(
    model: str | Path | TrainedModel | nn.Module,
    data: str | Dataset | None = None,
    *,
    layer: str,
    by: RankBy | Method = "tree",
    points: int = POINTS,
    pretrained: str | Path | None = None,
    resolution: int | None = None,
    data_dir: str | Path | None = None,
    device: str = "cpu",
) -> pd.DataFrame:
    """Best- and worst-case pruning of a convolution's filters, of trees and of the network itself.

    Best case: the least important filters go first. Worst case: the most important ones. The network is not trained again.

    Args:
        model: as `filter_importance` takes.
        data: as `filter_importance` takes.
        layer: name of the convolution.
        by: how filters are ranked.
        points: of the curves, at most.
        pretrained: weights of a network given by name.
        resolution: side of the images in pixels; default that of training.
        data_dir: where data sets are.
        device: ``"cpu"`` or ``"cuda"``.

    Returns:
        A row a number of filters: ``removed``, ``kept``, and accuracies on the test images in percent: ``tree_best`` and
        ``tree_worst`` of single trees over the scores of what is left (where trees rank), ``network_best`` and
        ``network_worst``.

    Raises:
        UserError: anything wrong with the input, in one line; filters that cannot be removed (`filter_group`).
    """
    by = RankBy.of(by)
    found = load_classifier(model, data, pretrained=pretrained, resolution=resolution, data_dir=data_dir, device=device)
    filter_group(found.network, layer)  # refused before any work
    ranked = rank_filters(found, [layer], by, device)
    best = ranked.layers[0].order
    counts = curve_counts(len(best), points)
    table = pd.DataFrame({"removed": counts, "kept": len(best) - counts})
    if ranked.train is not None and ranked.test is not None:
        train, test = ((part.values[layer, by.score], part.labels) for part in (ranked.train, ranked.test))
        depth = tree_depth(len(best)) if by.depth is None else by.depth
        for name, order in (("tree_best", best), ("tree_worst", best[::-1])):
            table[name] = tree_curve(train, test, order, counts, depth=depth, seed=by.seed)
    masks = np.concatenate([removal_masks(best, counts), removal_masks(best[::-1], counts)])
    accuracies = masked_accuracy(
        found.network, layer, masks, found.dataset.test, resolution=found.resolution, device=device
    )
    table["network_best"], table["network_worst"] = accuracies[: len(counts)], accuracies[len(counts) :]
    return table
