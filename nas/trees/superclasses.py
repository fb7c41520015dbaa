"""What a node means, tested on images of classes that the network has never seen (thesis 5.4 and 5.6, Table 5.6).

The four steps (5.6): 1. a hypothesis, what each child of the node stands for, such as *animal* and *vehicle*; 2. images of
unseen classes that belong to one of them; 3. each passes through the node; 4. the share that goes to the right child.

A class belongs to the child whose meaning is above it in WordNet; to the deepest of several (placental and vertebrate), and
to none where two are equally deep.
"""

from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from nas.trees.analyses import choice_counts, confusion
from nas.trees.hierarchy import Hierarchy, Ints
from nas.trees.nouns import WordNet
from nas.trees.page import label
from nas.trees.wordnet import Synsets, class_synsets, holding, node_synsets
from search_spaces.errors import UserError, closest
from search_spaces.serialisation import require

if TYPE_CHECKING:
    import pandas as pd

CONFIDENCE = 0.95
NOTHING = -1  # instead of a child, for a class that a hypothesis says nothing about


def node_meanings(hierarchy: Hierarchy, synsets: Synsets | None = None) -> tuple[str | None, ...]:
    """WNID of each node by number: of a class its synset, of an inner node the noun that covers 80 % of its classes.

    Args:
        hierarchy: the tree.
        synsets: of its classes; default `class_synsets` of their names.
    """
    synsets = class_synsets(hierarchy.classes) if synsets is None else synsets
    return (*synsets, *node_synsets(hierarchy, synsets))


def superclasses(
    hierarchy: Hierarchy, synsets: Synsets, meanings: Sequence[str | None] | None = None, wordnet: WordNet | None = None
) -> Ints:
    """To which child of each inner node each class belongs.

    Args:
        hierarchy: the tree.
        synsets: C, of the classes, seen or not.
        meanings: of each node by number; default `node_meanings`.
        wordnet: default: the shipped nouns, or the whole WordNet where they do not hold all synsets.

    Returns:
        `(C, J)`, numbers of nodes; -1 where no child's meaning is above the class, or two are equally deep.

    Raises:
        UserError: an unknown synset, or not one meaning a node.
    """
    meanings = node_meanings(hierarchy) if meanings is None else meanings
    require(len(meanings) == hierarchy.nodes, f"meanings must be {hierarchy.nodes}, got {len(meanings)}")
    wordnet = wordnet or holding([*synsets, *meanings])
    children = np.array([child for children in hierarchy.children for child in children])
    sizes = np.array([len(children) for children in hierarchy.children])
    first = np.cumsum(sizes) - sizes
    columns: dict[str, list[int]] = {}  # of each meaning
    for column, child in enumerate(children):
        meaning = meanings[child]
        if meaning is not None:
            columns.setdefault(meaning, []).append(column)
    depth = np.full((len(synsets), len(children)), -1)
    for row, synset in enumerate(synsets):
        for wnid in wordnet.above(synset) if synset is not None else ():
            depth[row, columns.get(wnid, ())] = wordnet.depth[wnid]
    deepest = np.maximum.reduceat(depth, first, axis=1)
    best = depth == np.repeat(deepest, sizes, axis=1)
    clear = (deepest >= 0) & (np.add.reduceat(best, first, axis=1) == 1)
    return np.where(clear, np.add.reduceat(np.where(best, children, 0), first, axis=1), NOTHING)


def posit_hypothesis(
    hierarchy: Hierarchy,
    node: int,
    class_names: Sequence[str],
    *,
    means: Sequence[str] | None = None,
    expect: Mapping[str, int] | None = None,
    synsets: Mapping[str, str | None] | None = None,
) -> dict[str, int]:
    """Step 1: the child of a node to which the images of each unseen class should go, by WordNet.

    Args:
        hierarchy: the tree.
        node: an inner node.
        class_names: of the data; those that are classes of the tree, by name or synset, are not unseen and are left out.
        means: a noun or WNID for each child in order, instead of the nodes' own meanings (`node_meanings`).
        expect: children of some classes, WordNet or not: for what is no noun, such as a blue background.
        synsets: of some classes; see `class_synsets`.

    Returns:
        Child by class; without the classes that belong to none.

    Raises:
        UserError: a leaf, an unknown class or child, a noun that is not in WordNet, no unseen class that belongs to a child.
    """
    _check_inner(hierarchy, node)
    children, names = hierarchy.children_of(node), list(class_names)
    expect = dict(expect or {})
    for name, child in expect.items():
        require(name in names, f"{name!r} is none of the {len(names)} classes{closest(name, names[:1000])}")
        allowed = ", ".join(f"{one} ({label(hierarchy, one)})" for one in children[:10])
        require(child in children, f"{name!r} cannot go to node {child}; the children of node {node} are {allowed}")
    own = class_synsets(hierarchy.classes)
    found = class_synsets(names, {name: synset for name, synset in (synsets or {}).items() if name in names})
    unseen = unseen_classes(hierarchy, names, found)
    for name in expect:
        require(unseen[names.index(name)], f"{name!r} is a class of the tree: the test is of unseen classes")
    meanings = list(node_meanings(hierarchy, own))
    if means is not None:
        require(len(means) == len(children), f"node {node} has {len(children)} children, got {len(means)} meanings")
        for child, noun, synset in zip(children, means, class_synsets(means), strict=True):
            require(synset is not None, f"WordNet has no noun {noun!r} here; give a WNID such as n02084071")
            meanings[child] = synset
    belongs = superclasses(hierarchy, found, meanings)[:, node - len(hierarchy.classes)]
    posited = {
        name: int(child)
        for name, child, new in zip(names, belongs, unseen, strict=True)
        if new and (child != NOTHING or name in expect)
    }
    posited.update(expect)
    if not posited:
        raise UserError(_why_none(hierarchy, node, meanings, names, found, unseen))
    return posited


def node_hypothesis(
    hierarchy: Hierarchy,
    node: int,
    logits: Tensor,
    labels: Tensor,
    class_names: Sequence[str],
    expected: Mapping[str, int],
    *,
    threshold: float | None = None,
    confidence: float = CONFIDENCE,
) -> "pd.DataFrame":
    """Steps 3 and 4: do images of unseen classes go where the hypothesis says (thesis 5.6, Figure 5.9)?

    Every image passes through the node, whether or not its path would come there. The thesis calls an accuracy high or low;
    here a hypothesis about a child is accepted where the lower end of Wilson's interval for the share of images that go to
    it is above a threshold, and the node's where that of each child tested is, two at least: a node that sends everything
    one way is refused by the other child's images, or, where no class belongs to that child, for want of them (``children``).
    The interval is for more images of the same classes; images of one class are alike, so it says less about other classes.

    Args:
        hierarchy: the tree.
        node: an inner node.
        logits: `(n, K)`, finite; of images of ``class_names``.
        labels: `(n,)` places in ``class_names``.
        class_names: C names.
        expected: child by class; see `posit_hypothesis`. Images of other classes do not count.
        threshold: share in [0, 1); default that of guessing, one by the number of children.
        confidence: of the two-sided interval, in (0, 1).

    Returns:
        One row a class, then one a child, then one of the node: level (``class``, ``child``, ``node``), class, child
        (number; -1 for the node), means (name of the child), images, correct, accuracy, low, high (percent), children (how
        many of the node's children were tested), accepted. The node's accuracy is that of all images.

    Raises:
        UserError: a leaf; an unknown class or child; no images of these classes; a threshold or confidence outside.
    """
    import pandas as pd

    _check_inner(hierarchy, node)
    children, names = hierarchy.children_of(node), list(class_names)
    threshold = 1.0 / len(children) if threshold is None else threshold
    require(0.0 <= threshold < 1.0, f"threshold must be in [0, 1), got {threshold}")
    require(0.0 < confidence < 1.0, f"confidence must be in (0, 1), got {confidence}")
    for name, child in expected.items():
        require(name in names, f"{name!r} is none of the {len(names)} classes{closest(name, names[:1000])}")
        require(child in children, f"node {child} is no child of node {node}")
    counts = choice_counts(hierarchy, logits, labels, len(names))
    rows: list[dict[str, Any]] = []
    for name, child in expected.items():
        row = names.index(name)
        images, correct = int(counts[row, hierarchy.root]), int(counts[row, child])
        if images:
            rows.append({"level": "class", "class": name, "child": child, "images": images, "correct": correct})
    require(bool(rows), "there are no images of the classes that the hypothesis is about")
    frame = pd.DataFrame(rows).sort_values("child", kind="stable", key=lambda column: column.map(children.index))
    tested = frame.groupby("child", sort=False)[["images", "correct"]].sum().reset_index().assign(level="child")
    whole = pd.DataFrame([{"level": "node", "child": NOTHING, **tested[["images", "correct"]].sum().to_dict()}])
    frame = pd.concat([frame, tested, whole], ignore_index=True).fillna({"class": ""})
    frame.insert(3, "means", [label(hierarchy, node if one == NOTHING else one) for one in frame["child"]])
    low, high = wilson_interval(frame["correct"].to_numpy(), frame["images"].to_numpy(), confidence)
    frame["accuracy"] = 100.0 * frame["correct"] / frame["images"]
    frame["low"], frame["high"], frame["children"] = 100.0 * low, 100.0 * high, len(tested)
    accepted = low > threshold
    accepted[-1] = len(tested) > 1 and accepted[(frame["level"] == "child").to_numpy()].all()
    return frame.assign(accepted=accepted)


def superclass_accuracy(
    hierarchy: Hierarchy,
    logits: Tensor,
    labels: Tensor,
    class_names: Sequence[str],
    *,
    network_logits: Tensor | None = None,
    nodes: Sequence[int] | None = None,
    synsets: Mapping[str, str | None] | None = None,
) -> "pd.DataFrame":
    """Zero-shot superclass accuracy of the tree's nodes and of the network (thesis 5.4, Table 5.6).

    For a node whose children mean *animal* and *vehicle*, images of unseen animals and vehicles are passed through it; right
    is the child they belong to. The network without a tree may predict any class; right is one of that superclass, by
    WordNet. A node is left out unless unseen classes belong to at least two of its children.

    Args:
        hierarchy: the tree.
        logits: `(n, K)`, finite; of images of ``class_names``.
        labels: `(n,)` places in ``class_names``.
        class_names: C names; those that are classes of the tree, by name or synset, are left out.
        network_logits: `(n, K)` of the network to compare with, where it is another one (the thesis: one that was not
            trained for the tree).
        nodes: only these inner nodes.
        synsets: of some classes; see `class_synsets`.

    Returns:
        One row a node, most classes first: node, superclasses, classes (how many unseen ones), images, network, tree,
        difference (tree minus network; all in percent), majority (percent: share of the largest superclass, what a node
        that sends everything one way can reach).

    Raises:
        UserError: no unseen class is in WordNet; no node tells any of them apart; a leaf.
    """
    import pandas as pd

    leaves, names = len(hierarchy.classes), list(class_names)
    for node in nodes or ():
        _check_inner(hierarchy, node)
    own = class_synsets(hierarchy.classes)
    found = class_synsets(names, {name: synset for name, synset in (synsets or {}).items() if name in names})
    unseen = unseen_classes(hierarchy, names, found) & np.array([one is not None for one in found])
    require(bool(unseen.any()), _why_unknown(names, unseen_classes(hierarchy, names, found)))
    meanings = node_meanings(hierarchy, own)
    belongs = np.where(unseen[:, None], superclasses(hierarchy, found, meanings), NOTHING)  # (C, J)
    predicted = (logits if network_logits is None else network_logits).argmax(1).cpu()
    taken = confusion(labels, predicted, len(names), leaves)  # (C, K)
    counts = choice_counts(hierarchy, logits, labels, len(names))
    images = counts[:, hierarchy.root]
    tested = (belongs != NOTHING) & (images[:, None] > 0)
    right = np.take_along_axis(counts, np.where(tested, belongs, 0), axis=1)
    of_classes = superclasses(hierarchy, own, meanings)  # (K, J)
    lines = []
    for column in range(len(hierarchy.children)):
        at = tested[:, column]
        groups = np.unique(belongs[at, column])
        if len(groups) < 2 or (nodes is not None and column + leaves not in nodes):
            continue
        total = images[at].sum()
        same = belongs[at, column, None] == of_classes[None, :, column]
        shares = [images[at & (belongs[:, column] == child)].sum() for child in groups]
        ordered = [child for child in hierarchy.children[column] if child in groups]
        tree, network = right[at, column].sum(), (taken[at] * same).sum()
        lines.append(
            {
                "node": column + leaves,
                "superclasses": " vs. ".join(label(hierarchy, child) for child in ordered),
                "classes": int(at.sum()),
                "images": int(total),
                "network": 100.0 * network / total,
                "tree": 100.0 * tree / total,
                "difference": 100.0 * (tree - network) / total,
                "majority": 100.0 * max(shares) / total,
            }
        )
    asked = "" if nodes is None else " of those asked for"
    require(bool(lines), f"no node{asked} has unseen classes below two of its children: their names do not say which")
    return pd.DataFrame(lines).sort_values(["classes", "node"], ascending=[False, True], ignore_index=True)


def unseen_classes(hierarchy: Hierarchy, class_names: Sequence[str], synsets: Synsets) -> npt.NDArray[np.bool_]:
    """`(C,)`, whether each class is none of the tree's, neither by its name nor by its synset."""
    own = {synset for synset in class_synsets(hierarchy.classes) if synset is not None}
    pairs = zip(class_names, synsets, strict=True)
    return np.array([name not in hierarchy.classes and synset not in own for name, synset in pairs], dtype=np.bool_)


def wilson_interval(
    correct: npt.ArrayLike, total: npt.ArrayLike, confidence: float = CONFIDENCE
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Wilson's score interval of proportions (E. B. Wilson, J. Am. Stat. Assoc. 22, 1927): lower and upper ends in [0, 1].

    Args:
        correct: counts.
        total: counts > 0, of the same shape.
        confidence: of the two-sided interval.
    """
    n, share = np.asarray(total, dtype=np.float64), np.asarray(correct) / np.asarray(total)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return np.clip(centre - half, 0.0, 1.0), np.clip(centre + half, 0.0, 1.0)


def _check_inner(hierarchy: Hierarchy, node: int) -> None:
    inner = range(len(hierarchy.classes), hierarchy.nodes)
    require(node in inner, f"node {node} is no inner node; those are {inner[0]}..{inner[-1]}")


def _why_unknown(names: Sequence[str], unseen: npt.NDArray[np.bool_]) -> str:
    if not unseen.any():
        return f"there are no unseen classes: all {len(names)} of the data are classes of the tree"
    lost = [name for name, new in zip(names, unseen, strict=True) if new]
    return f"none of the {len(lost)} unseen classes is in WordNet, such as {lost[0]!r}; give synsets, such as n02084071"


def _why_none(
    hierarchy: Hierarchy,
    node: int,
    meanings: Sequence[str | None],
    names: Sequence[str],
    found: Synsets,
    unseen: npt.NDArray[np.bool_],
) -> str:
    if not (unseen & np.array([one is not None for one in found])).any():
        return _why_unknown(names, unseen)
    children = hierarchy.children_of(node)
    wordnet = holding(meanings)
    words = ", ".join(wordnet.name(one) if (one := meanings[child]) else "nothing" for child in children[:10])
    return f"none of the {int(unseen.sum())} unseen classes belongs to one child of node {node}; they mean {words}"
