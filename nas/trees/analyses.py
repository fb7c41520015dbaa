"""What a tree's decisions tell of images: ambiguous labels, typical images, the ways that classes take (thesis 5.5, 5.6).

All of it from the network's logits, as `nas.trees.outputs` gives them; nothing here loops over images.

Axes: n images, K classes of the tree, C classes of the images (other ones, perhaps), J inner nodes, E choices (`rules`).
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nas.trees.hierarchy import Hierarchy, Ints
from nas.trees.page import label
from nas.trees.rules import RULES, HardRule, Rule, SoftRule, TreeRule
from search_spaces.errors import closest
from search_spaces.serialisation import require

if TYPE_CHECKING:
    import pandas as pd

Floats = npt.NDArray[np.float64]
CHUNK = 1 << 22  # numbers in one (choices, images) tensor
ROOT = "root"  # how the root can be called


@dataclass(frozen=True, slots=True)
class PathEntropies:
    """Entropies of the decisions on the way of each image to its prediction, in nats; arrays `(n,)`.

    Attributes:
        predicted: the class.
        probability: p(k) of it (Eq. 5.1).
        largest: entropy of the least certain decision on the path.
        smallest: entropy of the most certain one.
        node: where the largest is; the one nearest to the root of several.
        first, second: the two likeliest children there.
        first_probability, second_probability: theirs.
        network: entropy of the softmax of the logits, without a tree.
    """

    predicted: Ints
    probability: Floats
    largest: Floats
    smallest: Floats
    node: Ints
    first: Ints
    second: Ints
    first_probability: Floats
    second_probability: Floats
    network: Floats

    @property
    def path_entropy(self) -> Floats:
        """Largest minus smallest."""
        return self.largest - self.smallest


def path_entropies(hierarchy: Hierarchy, logits: Tensor, *, rule: Rule = "soft") -> PathEntropies:
    """Certain and uncertain decisions on each image's way; see `path_entropy`.

    Args:
        hierarchy: the tree.
        logits: `(n, K)`, finite.
        rule: what predicts, ``soft`` or ``hard``.

    Raises:
        UserError: logits of another shape.
    """
    decide = _rule(hierarchy, rule)
    siblings, exists = _siblings(decide)
    paths = torch.from_numpy(hierarchy.paths)
    leaves = len(hierarchy.classes)
    parts: list[tuple[Tensor, ...]] = []
    for part in _parts(decide, logits):
        chances = decide.choices(decide.scores(part))  # (E, b), logarithms
        entropy = chances.new_zeros(len(hierarchy.children), len(part))
        entropy.index_add_(0, decide.parent, -chances.exp() * chances).clamp_(min=0.0)
        predicted = decide(part).argmax(1)
        nodes = paths[predicted]  # (b, depth + 1)
        on_path = entropy.T.gather(1, (nodes - leaves).clamp(min=0))
        inner = nodes >= leaves
        largest, step = on_path.masked_fill(~inner, -torch.inf).max(1)
        smallest = on_path.masked_fill(~inner, torch.inf).amin(1)
        node = nodes.gather(1, step[:, None])[:, 0]
        rows = siblings[node - leaves]  # (b, most children)
        among = chances.T.gather(1, rows).masked_fill(~exists[node - leaves], -torch.inf)
        two, places = among.topk(2, dim=1)
        children = _choice_nodes(decide)[rows.gather(1, places)]
        probability = decide.along_paths(chances).gather(1, predicted[:, None])[:, 0].exp()
        plain = torch.log_softmax(part, 1)
        network = -(plain.exp() * plain).sum(1).clamp(max=0.0)
        first, second = two.exp().unbind(1)
        parts.append((predicted, probability, largest, smallest, node, *children.unbind(1), first, second, network))
    return PathEntropies(*(torch.cat(column).numpy() for column in zip(*parts, strict=True)))


def path_entropy(
    hierarchy: Hierarchy,
    logits: Tensor,
    labels: Tensor | None = None,
    class_names: Sequence[str] | None = None,
    *,
    rule: Rule = "soft",
) -> "pd.DataFrame":
    """Images by path entropy, the most ambiguous first (thesis 5.5, Figure 5.6).

    Path entropy is the largest minus the smallest entropy of the decisions on the predicted path: an image that may be two
    things has one uncertain decision among certain ones. A tree with one decision a path (``flat``) gives 0 for all; equal
    ones are ordered by their largest entropy, then by number.

    Args:
        hierarchy: the tree.
        logits: `(n, K)`, finite.
        labels: `(n,)` places in ``class_names``; None where there are none.
        class_names: of the labels; default the tree's classes.
        rule: what predicts, ``soft`` or ``hard``.

    Returns:
        n rows: image (number), label, predicted (names), probability p(k) (Eq. 5.1), path_entropy, largest and smallest
        (nats), node and name of the largest, first and second (the two likeliest children there), first_probability and
        second_probability, network_entropy (nats; of the softmax without a tree: the comparison of Figure 5.6).

    Raises:
        UserError: no images; logits or labels of other shapes; a label that is no class.
    """
    import pandas as pd

    names = _checked(hierarchy, logits, labels, class_names)
    found = path_entropies(hierarchy, logits, rule=rule)
    called = distinct_labels(hierarchy)
    frame = pd.DataFrame(
        {
            "image": np.arange(len(logits)),
            "label": "" if labels is None else names[labels.numpy()],
            "predicted": called[found.predicted],
            "probability": found.probability,
            "path_entropy": found.path_entropy,
            "largest": found.largest,
            "smallest": found.smallest,
            "node": found.node,
            "name": called[found.node],
            "first": called[found.first],
            "first_probability": found.first_probability,
            "second": called[found.second],
            "second_probability": found.second_probability,
            "network_entropy": found.network,
        }
    )
    order = np.lexsort((frame["image"], -found.largest, -found.path_entropy))
    return frame.iloc[order].reset_index(drop=True)


def max_similarity(
    hierarchy: Hierarchy,
    logits: Tensor,
    labels: Tensor | None = None,
    class_names: Sequence[str] | None = None,
    *,
    nodes: Sequence[int] | None = None,
    count: int = 10,
) -> "pd.DataFrame":
    """The images most like a node's representative: maximum-similarity examples (thesis 5.6, Figure 5.8).

    Similarity is what the tree decides by, the inner product <n_i, x> of the node's representative and the image's
    features (and the mean bias, which is the same for all images): the mean logit of the classes below it (Eq. 5.5).

    Args:
        hierarchy: the tree.
        logits: `(n, K)`, finite; of images of any classes.
        labels: `(n,)` places in ``class_names``; None where there are none.
        class_names: of the labels; default the tree's classes.
        nodes: which nodes, leaves or inner ones; default all inner nodes from the root down.
        count: images of each node; fewer where there are not so many.

    Returns:
        For each node, the most similar first: node, name, rank (from 1), image (number), label (name), similarity, seen
        (whether the label is a class of the tree), below (whether it is one below the node). Equal ones by number.

    Raises:
        UserError: no images, an unknown node, a count below 1, labels as in `path_entropy`.
    """
    import pandas as pd

    names = _checked(hierarchy, logits, labels, class_names)
    require(count >= 1, f"count must be >= 1, got {count}")
    chosen = (
        [node for node in hierarchy.preorder.tolist() if node >= len(hierarchy.classes)] if nodes is None else nodes
    )
    for node in chosen:
        require(0 <= node < hierarchy.nodes, f"node {node} is none of the tree's, 0..{hierarchy.nodes - 1}")
    rule = SoftRule(hierarchy)
    row_of = torch.full((hierarchy.nodes,), len(rule.parent))  # the root's row stands after those of the choices
    row_of[_choice_nodes(rule)] = torch.arange(len(rule.parent))
    rows = row_of[torch.tensor(list(chosen), dtype=torch.int64)]
    best, images, start = torch.empty(len(rows), 0), torch.empty(len(rows), 0, dtype=torch.int64), 0
    for part in _parts(rule, logits):
        scores = torch.cat([rule.scores(part), part.mean(1)[None]])[rows]
        numbers = torch.arange(start, start + len(part)).expand(len(rows), -1)
        start += len(part)
        best, order = torch.cat([best.to(scores.dtype), scores], 1).sort(dim=1, descending=True, stable=True)
        images = torch.cat([images, numbers], 1).gather(1, order)[:, :count]
        best = best[:, :count]
    image, node = images.flatten().numpy(), np.repeat(np.array(list(chosen)), images.shape[1])
    frame = pd.DataFrame(
        {
            "node": node,
            "name": distinct_labels(hierarchy)[node],
            "rank": np.tile(np.arange(1, images.shape[1] + 1), len(chosen)),
            "image": image,
            "label": "" if labels is None else names[labels.numpy()[image]],
            "similarity": best.flatten().numpy(),
        }
    )
    if labels is not None:
        place = {name: leaf for leaf, name in enumerate(hierarchy.classes)}
        leaf = np.array([place.get(name, -1) for name in names])[labels.numpy()[image]]
        above = np.zeros((hierarchy.nodes, len(hierarchy.classes)), dtype=bool)
        at, step = np.nonzero(hierarchy.paths >= 0)
        above[hierarchy.paths[at, step], at] = True
        frame["seen"], frame["below"] = leaf >= 0, above[node, leaf] & (leaf >= 0)
    return frame


def traversals(
    hierarchy: Hierarchy,
    logits: Tensor,
    labels: Tensor,
    class_names: Sequence[str] | None = None,
    *,
    rule: Rule = "soft",
) -> "pd.DataFrame":
    """How often the images of each class went through each node (thesis 5.6, Figure 5.11).

    Args:
        hierarchy: the tree.
        logits: `(n, K)`, finite; of images of any classes.
        labels: `(n,)` places in ``class_names``.
        class_names: of the labels; default the tree's classes.
        rule: what predicts, ``soft`` or ``hard``.

    Returns:
        For each class with images, each node that some of them went through, parents first: label (name), seen (whether it
        is a class of the tree), node, name, parent (-1 at the root), depth, images, share (in percent of the class's).

    Raises:
        UserError: as in `path_entropy`.
    """
    import pandas as pd

    names = _checked(hierarchy, logits, labels, class_names)
    decide = _rule(hierarchy, rule)
    predicted = torch.cat([decide(part).argmax(1) for part in _parts(decide, logits)])
    counts = path_frequencies(hierarchy, confusion(labels, predicted, len(names), len(hierarchy.classes)))
    ordered = counts[:, hierarchy.preorder]
    kind, step = np.nonzero(ordered)
    node, images = hierarchy.preorder[step], ordered[kind, step]
    called = distinct_labels(hierarchy)
    return pd.DataFrame(
        {
            "label": names[kind],
            "seen": np.isin(names[kind].astype(str), hierarchy.classes),
            "node": node,
            "name": called[node],
            "parent": hierarchy.parents[node],
            "depth": hierarchy.depth[node],
            "images": images,
            "share": 100.0 * images / counts[kind, hierarchy.root],
        }
    )


def path_frequencies(hierarchy: Hierarchy, predictions: Ints) -> Ints:
    """How many images of each class went through each node (thesis, Figure 5.11).

    Args:
        hierarchy: the tree.
        predictions: `(C, K)`, of the images of class i, how many ended in leaf j.

    Returns:
        `(C, nodes)`; at the root all of the class.
    """
    paths = hierarchy.paths
    frequencies = np.zeros((hierarchy.nodes, len(predictions)), dtype=np.int64)
    leaf, step = np.nonzero(paths >= 0)
    np.add.at(frequencies, paths[leaf, step], predictions.T[leaf])
    return frequencies.T


def choice_counts(hierarchy: Hierarchy, logits: Tensor, labels: Tensor, classes: int) -> Ints:
    """How many images of each class each node would send to each child if all passed through it.

    Args:
        hierarchy: the tree.
        logits: `(n, K)`, finite.
        labels: `(n,)` in 0..C-1.
        classes: C.

    Returns:
        `(C, nodes)`, at each node the images that its parent prefers it for, the first child among equals; at the root all.
    """
    rule = HardRule(hierarchy)
    counts = torch.zeros(classes, len(rule.parent), dtype=torch.int64)
    start = 0
    for part in _parts(rule, logits):
        taken = rule.chosen(rule.scores(part)).T  # (b, E)
        counts.index_add_(0, labels[start : start + len(part)], taken.long())
        start += len(part)
    found = np.zeros((classes, hierarchy.nodes), dtype=np.int64)
    found[:, _choice_nodes(rule).numpy()] = counts.numpy()
    found[:, hierarchy.root] = np.bincount(labels.numpy(), minlength=classes)
    return found


def confusion(labels: Tensor, predicted: Tensor, classes: int, leaves: int) -> Ints:
    """`(C, K)`: of the images of class i, how many were taken for class j; from `(n,)` and `(n,)`."""
    pairs = labels.numpy() * leaves + predicted.numpy()
    return np.bincount(pairs, minlength=classes * leaves).reshape(classes, leaves).astype(np.int64)


def distinct_labels(hierarchy: Hierarchy) -> npt.NDArray[Any]:
    """What each node is called, `(nodes,)` text: a name that several nodes have is followed by their first classes."""
    plain = [label(hierarchy, node) for node in range(hierarchy.nodes)]
    often = Counter(plain)
    bare = hierarchy.with_names([""] * len(hierarchy.children))  # called by their classes
    called = [
        f"{name} ({label(bare, node)})" if often[name] > 1 and node >= len(hierarchy.classes) else name
        for node, name in enumerate(plain)
    ]
    return np.array(called, dtype=object)


def find_node(hierarchy: Hierarchy, text: str) -> int:
    """Number of a node that a user names: a class, its number, ``root``, or its name.

    Raises:
        UserError: no such node, or several of that name; the message has their numbers.
    """
    if text in hierarchy.classes:
        return hierarchy.classes.index(text)
    if text.isascii() and text.isdecimal():
        require(int(text) < hierarchy.nodes, f"node {text} is none of the tree's, 0..{hierarchy.nodes - 1}")
        return int(text)
    if text == ROOT:
        return hierarchy.root
    wanted = text.casefold()
    found = [
        node
        for node, name in enumerate(distinct_labels(hierarchy).tolist())
        if wanted in (name.casefold(), label(hierarchy, node).casefold())
    ]
    known = sorted({label(hierarchy, node) for node in range(len(hierarchy.classes), hierarchy.nodes)})
    require(bool(found), f"the tree has no node {text!r}{closest(text, [ROOT, *known[:30]])}")
    require(
        len(found) == 1, f"{len(found)} nodes are called {text!r}: {', '.join(map(str, found[:20]))}; give a number"
    )
    return found[0]


def _checked(
    hierarchy: Hierarchy, logits: Tensor, labels: Tensor | None, class_names: Sequence[str] | None
) -> npt.NDArray[Any]:
    """Names of the labels' classes `(C,)`, after a look at what came with them."""
    names = hierarchy.classes if class_names is None else class_names
    require(len(logits) > 0, "there are no images to analyse")
    require(bool(torch.isfinite(logits).all()), "logits must be finite")
    if labels is not None:
        require(labels.shape == logits.shape[:1], f"{len(logits)} images need a label each, got {tuple(labels.shape)}")
        low, high = int(labels.min()), int(labels.max())
        require(0 <= low <= high < len(names), f"labels must be in 0..{len(names) - 1}, got {low}..{high}")
    return np.array(list(names), dtype=object)


def _rule(hierarchy: Hierarchy, rule: Rule) -> TreeRule:
    require(rule in RULES, f"unknown rule {rule!r}{closest(rule, RULES)}")
    return RULES[rule](hierarchy)


def _parts(rule: TreeRule, logits: Tensor) -> Iterator[Tensor]:
    """Logits `(b, K)` in float64, so many at a time that all choices fit into memory."""
    step = max(1, CHUNK // len(rule.parent))
    for start in range(0, len(logits), step):
        yield logits[start : start + step].detach().cpu().double()


def _choice_nodes(rule: TreeRule) -> Tensor:
    """`(E,)`, the node that each choice goes to."""
    return torch.tensor([child for children in rule.hierarchy.children for child in children])


def _siblings(rule: TreeRule) -> tuple[Tensor, Tensor]:
    """`(J, most children)`: the choices of each inner node, and whether there are so many."""
    sizes = torch.tensor([len(children) for children in rule.hierarchy.children])
    places = torch.arange(int(sizes.max()))
    exists = places < sizes[:, None]
    return torch.where(exists, (sizes.cumsum(0) - sizes)[:, None] + places, 0), exists
