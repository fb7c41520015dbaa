"""Trees from the weights of a classifier, and the random and flat ones they are compared with."""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from nas.trees.hierarchy import Hierarchy
from search_spaces.errors import UserError, closest
from search_spaces.seeding import numpy_rng
from search_spaces.serialisation import require

Method = Literal["unit-ward", "unit-average", "raw-ward"]
METHODS: tuple[Method, ...] = ("unit-ward", "unit-average", "raw-ward")
Heads = dict[str, nn.Linear | nn.Conv2d]
AUXILIARY = "aux"  # how torchvision's extra classifiers, used in training only, are called


def induced_hierarchy(
    weights: Tensor | npt.NDArray[np.floating], classes: Sequence[str], method: Method = "unit-ward"
) -> Hierarchy:
    """The binary tree of agglomerative clustering on the last layer's rows (thesis 5.3, Figure 5.2).

    The thesis clusters unit rows w_k / |w_k| and names no linkage; the authors' package clusters the raw rows by Ward's.

    Args:
        weights: W, `(K, D)`: row k belongs to class k.
        classes: K names.
        method: ``unit-ward`` unit rows, Ward's linkage; ``unit-average`` unit rows, mean Euclidean distance; ``raw-ward``
            as the package.

    Raises:
        UserError: not one finite row a class, fewer than two classes, or an unknown method.
    """
    from scipy.cluster.hierarchy import linkage  # 0.2 s to import

    require(method in METHODS, f"unknown method {method!r}{closest(method, METHODS)}")
    rows = np.asarray(weights.detach().float().cpu() if isinstance(weights, Tensor) else weights, dtype=np.float64)
    require(rows.ndim == 2, f"weights must be (classes, features), got {rows.ndim} dimension(s)")
    require(len(rows) == len(classes), f"weights have {len(rows)} rows, there are {len(classes)} classes")
    require(len(rows) >= 2, f"a tree needs at least 2 classes, got {len(rows)}")
    require(bool(np.isfinite(rows).all()), "weights must be finite")
    if method.startswith("unit"):
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        rows = rows / np.where(norms > 0, norms, 1.0)
    merges = linkage(rows, "average" if method == "unit-average" else "ward")  # merge j makes node K + j
    children = tuple((int(left), int(right)) for left, right in merges[:, :2])
    return Hierarchy(tuple(classes), children, ("",) * len(children))


def random_hierarchy(classes: Sequence[str], seed: int) -> Hierarchy:
    """A binary tree made by joining two random nodes until one is left."""
    require(seed >= 0, f"seed must be >= 0, got {seed}")
    rng, loose = numpy_rng(seed, "hierarchy"), list(range(len(classes)))
    children: list[tuple[int, int]] = []
    while len(loose) > 1:
        left, right = (loose.pop(int(rng.integers(len(loose)))) for _ in range(2))
        loose.append(len(classes) + len(children))
        children.append((left, right))
    return Hierarchy(tuple(classes), tuple(children), ("",) * len(children))


def flat_hierarchy(classes: Sequence[str]) -> Hierarchy:
    """One inner node above all classes: with it the tree is the plain classifier."""
    return Hierarchy(tuple(classes), (tuple(range(len(classes))),), ("",))


def model_hierarchy(
    model: nn.Module, classes: Sequence[str], method: Method = "unit-ward", head: str | None = None
) -> Hierarchy:
    """`induced_hierarchy` of the weights of a module's head; see `find_head`."""
    return induced_hierarchy(head_weights(model, len(classes), head), classes, method)


def head_weights(model: nn.Module, num_classes: int, head: str | None = None) -> Tensor:
    """W, `(K, D)`, of the layer that `find_head` finds."""
    _, layer = find_head(model, num_classes, head)
    return layer.weight.detach().flatten(1)


def find_head(model: nn.Module, num_classes: int, head: str | None = None) -> tuple[str, nn.Linear | nn.Conv2d]:
    """Name and layer of the classifier's last layer: the one linear layer or 1x1 convolution with K outputs.

    Where there are several, auxiliary classifiers do not count, nor do convolutions beside one linear layer (those of
    squeeze-and-excite can have as many outputs).

    Args:
        model: any classifier.
        num_classes: K.
        head: name of the layer, as in ``named_modules``, where the rule finds none or several.

    Raises:
        UserError: no such layer, or several; the message names them.
    """
    layers = dict(_feature_maps(model))
    if head is not None:
        require(head in layers, f"{head!r} is no linear layer or 1x1 convolution{closest(head, [*layers][-5:])}")
        has = _outputs(layers[head])
        require(has == num_classes, f"head {head!r} has {has} outputs, there are {num_classes} classes")
        return head, layers[head]
    found: Heads = {name: layer for name, layer in layers.items() if _outputs(layer) == num_classes}
    if len(found) > 1:
        found = {name: layer for name, layer in found.items() if AUXILIARY not in name.lower()} or found
    linear: Heads = {name: layer for name, layer in found.items() if isinstance(layer, nn.Linear)}
    found = linear if len(linear) == 1 else found
    if not found:
        last = ", ".join(f"{name or 'the module'} ({_outputs(layer)})" for name, layer in [*layers.items()][-3:])
        raise UserError(
            f"no linear layer or 1x1 convolution has {num_classes} outputs; the last ones are {last or 'none at all'}"
        )
    require(len(found) == 1, f"several layers have {num_classes} outputs: {', '.join(found)}; name the head")
    ((name, layer),) = found.items()
    return name, layer


def _feature_maps(model: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    """Linear layers and 1x1 convolutions without groups, in the order of definition."""
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) or (
            isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.groups == 1
        ):
            yield name, layer


def _outputs(layer: nn.Linear | nn.Conv2d) -> int:
    return layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features
