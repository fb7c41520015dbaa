"""A tree over classes, and the node-link JSON files that hold one.

Nodes have numbers: leaf i is class i of the classifier, for i in 0..K-1; inner node j is number K + j. Nothing here
recurses, so a chain of a thousand nodes is no problem.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from search_spaces.errors import UserError, closest
from search_spaces.serialisation import read_json, require, write_json

MAX_CLASSES = 100_000
MAX_FILE_BYTES = 100_000_000
MAX_LABEL = 1_000  # characters
UNNAMED = "(generated)"  # label of an inner node without a name, in the files of the authors' package

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Hierarchy:
    """A tree whose leaves are the classes of a classifier.

    Attributes:
        classes: K names, in the order of the classifier's outputs; leaf i is node i.
        children: of inner node number K + j: numbers of its children, leaves or inner nodes, at least two.
        names: of the inner nodes; "" where there is none.

    Raises:
        UserError: it is no tree: a node with two parents or none, a cycle, fewer than two classes or children.
    """

    classes: tuple[str, ...]
    children: tuple[tuple[int, ...], ...]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_texts("class", self.classes)
        _check_texts("inner node", self.names)
        require(
            2 <= len(self.classes) <= MAX_CLASSES, f"a tree needs 2..{MAX_CLASSES} classes, got {len(self.classes)}"
        )
        require(
            len(self.names) == len(self.children),
            f"names must be one for each of {len(self.children)} inner nodes, got {len(self.names)}",
        )
        _check_tree(self)

    @property
    def nodes(self) -> int:
        """Number of nodes, leaves and inner ones."""
        return len(self.classes) + len(self.children)

    @cached_property
    def parents(self) -> Ints:
        """`(nodes,)`, the parent of each node; -1 for the root."""
        parents = np.full(self.nodes, -1, dtype=np.int64)
        for number, children in enumerate(self.children, len(self.classes)):
            parents[list(children)] = number
        return parents

    @cached_property
    def root(self) -> int:
        """The one node that is nobody's child."""
        return int(np.flatnonzero(self.parents < 0)[0])

    @cached_property
    def preorder(self) -> Ints:
        """`(nodes,)`, each node before its descendants, children in their order."""
        order, waiting = [], [self.root]
        while waiting:
            node = waiting.pop()
            order.append(node)
            waiting += reversed(self.children_of(node))
        return np.array(order, dtype=np.int64)

    @cached_property
    def depth(self) -> Ints:
        """`(nodes,)`, edges from the root."""
        depth = np.zeros(self.nodes, dtype=np.int64)
        for node in self.preorder[1:]:
            depth[node] = depth[self.parents[node]] + 1
        return depth

    @cached_property
    def paths(self) -> Ints:
        """`(K, 1 + largest depth)`, nodes from the root to each leaf, both included, then -1."""
        leaves = np.arange(len(self.classes))
        paths = np.full((len(leaves), 1 + int(self.depth.max())), -1, dtype=np.int64)
        node = leaves.copy()
        for _ in range(paths.shape[1]):
            going = node >= 0
            paths[leaves[going], self.depth[node[going]]] = node[going]
            node = np.where(going, self.parents[node], -1)
        return paths

    @cached_property
    def leaf_counts(self) -> Ints:
        """`(nodes,)`, |L(i)|: leaves below each node; 1 for a leaf."""
        counts = np.zeros(self.nodes, dtype=np.int64)
        counts[: len(self.classes)] = 1
        for node in self.preorder[:0:-1]:
            counts[self.parents[node]] += counts[node]
        return counts

    @cached_property
    def _leaf_order(self) -> Ints:
        """`(K,)`, leaves from left to right: those below a node stand together."""
        return self.preorder[self.preorder < len(self.classes)]

    @cached_property
    def _leaf_start(self) -> Ints:
        """`(nodes,)`, where each node's leaves start in `_leaf_order`."""
        start = np.zeros(self.nodes, dtype=np.int64)
        is_leaf = self.preorder < len(self.classes)
        start[self.preorder] = np.cumsum(is_leaf) - is_leaf
        return start

    def children_of(self, node: int) -> tuple[int, ...]:
        """Children of any node; none for a leaf."""
        return self.children[node - len(self.classes)] if node >= len(self.classes) else ()

    def leaves_of(self, node: int) -> Ints:
        """L(i): classes below a node in ascending order; the leaf itself for a leaf."""
        start = self._leaf_start[node]
        return np.sort(self._leaf_order[start : start + self.leaf_counts[node]])

    def name_of(self, node: int) -> str:
        """Class of a leaf, name of an inner node; "" where it has none."""
        return self.classes[node] if node < len(self.classes) else self.names[node - len(self.classes)]

    def with_names(self, names: Sequence[str] | Mapping[int, str]) -> "Hierarchy":
        """The same tree with other names.

        Args:
            names: one for each inner node in order, or by node number for some of them.

        Raises:
            UserError: the wrong number of names, or a number that is no inner node's.
        """
        if isinstance(names, Mapping):
            given = dict(names)
            inner = range(len(self.classes), self.nodes)
            for node in given:
                require(node in inner, f"node {node} is no inner node; those are {inner[0]}..{inner[-1]}")
            names = [given.get(node, name) for node, name in zip(inner, self.names, strict=True)]
        return replace(self, names=tuple(names))

    def to_json(self, ids: Sequence[str] | None = None) -> dict[str, Any]:
        """Node-link JSON as networkx and the authors' package write it, leaves first, in the order of the classes.

        Args:
            ids: identifier of each class, such as its WNID; default ``f`` and the node's number.
        """
        require(ids is None or len(ids) == len(self.classes), f"ids must be {len(self.classes)}, got {len(ids or ())}")
        made = [f"f{node:08d}" for node in range(self.nodes)]
        made[: len(ids or ())] = ids or ()
        require(len(set(made)) == len(made), "ids must differ from each other and from f00000000 and following")
        labels = [*self.classes, *(name or UNNAMED for name in self.names)]
        return {
            "directed": True,
            "multigraph": False,
            "graph": {},
            "nodes": [{"id": name, "label": label} for name, label in zip(made, labels, strict=True)],
            "links": [
                {"source": made[number], "target": made[child]}
                for number, children in enumerate(self.children, len(self.classes))
                for child in children
            ],
        }

    @staticmethod
    def from_json(
        data: Any, classes: Sequence[str] | None = None, ids: Sequence[str] | None = None, where: str = "tree"
    ) -> "Hierarchy":
        """Inverse of `to_json`; also reads the files of the authors' package.

        Args:
            data: node-link JSON.
            classes: names in the order of the classifier's outputs; default the leaves' labels.
            ids: identifier of each leaf in the order of the classifier's outputs, as in a WNID file; default: matched by
                label to ``classes``, or the order of the file.
            where: named in errors.

        Raises:
            UserError: no such JSON, no tree, or leaves that are not the classes.
        """
        labels, links = _nodes_and_links(data, where)
        _check_links(labels, links, where)
        below: dict[str, list[str]] = {}
        for source, target in links:
            below.setdefault(source, []).append(target)
        leaves = [name for name in labels if name not in below]
        ordered = _ordered_leaves(leaves, labels, classes, ids, where)
        inner = [name for name in labels if name in below]
        number = {name: i for i, name in enumerate([*ordered, *inner])}
        try:
            return Hierarchy(
                classes=tuple(classes) if classes is not None else tuple(labels[name] for name in ordered),
                children=tuple(tuple(number[child] for child in below[name]) for name in inner),
                names=tuple("" if labels[name] == UNNAMED else labels[name] for name in inner),
            )
        except UserError as error:
            raise UserError(f"{where}: {error}") from error

    def save(self, path: str | Path, ids: Sequence[str] | None = None) -> None:
        """Write `to_json` to a file, whole or not at all."""
        write_json(path, self.to_json(ids))

    @staticmethod
    def load(path: str | Path, classes: Sequence[str] | None = None, ids: Sequence[str] | None = None) -> "Hierarchy":
        """Read a file as `from_json` does; nothing in it is run.

        Raises:
            UserError: missing, too large, no JSON, or what `from_json` refuses.
        """
        path = Path(path)
        try:
            size = path.stat().st_size
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        require(size <= MAX_FILE_BYTES, f"{path} holds {size} bytes; a tree has at most {MAX_FILE_BYTES}")
        return Hierarchy.from_json(read_json(path), classes, ids, str(path))


def _check_texts(what: str, names: tuple[str, ...]) -> None:
    for i, name in enumerate(names):
        require(isinstance(name, str), f"name of {what} {i} must be text, got {type(name).__name__}")
        require(len(name) <= MAX_LABEL, f"name of {what} {i} has {len(name)} characters; at most {MAX_LABEL}")


def _check_tree(tree: Hierarchy) -> None:
    leaves = len(tree.classes)
    parents: dict[int, int] = {}
    for number, children in enumerate(tree.children, leaves):
        require(len(children) >= 2, f"inner node {number} has {len(children)} child(ren); at least 2 are needed")
        for child in children:
            require(0 <= child < tree.nodes, f"inner node {number} has child {child}; nodes are 0..{tree.nodes - 1}")
            require(child not in parents, f"node {child} has two parents: {parents.get(child)} and {number}")
            parents[child] = number
    roots = [node for node in range(tree.nodes) if node not in parents]
    lost = [node for node in roots if node < leaves]
    require(not lost, f"class {tree.classes[lost[0]]!r} is not in the tree" if lost else "")
    require(len(roots) > 0, "the tree has no root: its nodes are in a cycle")
    require(len(roots) == 1, f"the tree has {len(roots)} roots: nodes {', '.join(map(str, roots[:5]))}")
    require(len(tree.preorder) == tree.nodes, f"{tree.nodes - len(tree.preorder)} nodes are in a cycle or below one")


def _nodes_and_links(data: Any, where: str) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Label of each node by id, and (parent, child) of each link, both in the order of the file."""
    require(isinstance(data, dict), f"{where}: expected a mapping, got {type(data).__name__}")
    links = data.get("links", data.get("edges"))  # networkx >= 3.4 writes edges
    for key, value in (("nodes", data.get("nodes")), ("links", links)):
        require(isinstance(value, list), f"{where}: {key} must be a list; node-link JSON is needed")
        require(len(value) <= 2 * MAX_CLASSES, f"{where}: {len(value)} {key}; at most {2 * MAX_CLASSES}")
    require(data.get("directed", True) is True, f"{where}: the graph must be directed")
    labels: dict[str, str] = {}
    for i, node in enumerate(data["nodes"]):
        name = node.get("id") if isinstance(node, dict) else None
        if not isinstance(name, str) or len(name) > MAX_LABEL:
            raise UserError(f"{where}: nodes[{i}] has no id that is text")
        require(name not in labels, f"{where}: two nodes have the id {name!r}")
        label = node.get("label", UNNAMED)
        require(isinstance(label, str), f"{where}: nodes[{i}].label must be text, got {label!r:.60}")
        labels[name] = label
    pairs = []
    for i, link in enumerate(links):
        source, target = (link.get("source"), link.get("target")) if isinstance(link, dict) else (None, None)
        for end in (source, target):
            known = isinstance(end, str) and end in labels
            require(known, f"{where}: links[{i}] names {end!r:.60}, which is no node")
        pairs.append((str(source), str(target)))
    return labels, pairs


def _check_links(labels: Mapping[str, str], links: Sequence[tuple[str, str]], where: str) -> None:
    """Refuse links that make no tree, with the ids and labels of the file.

    Raises:
        UserError: a node with two parents, several roots, or a cycle.
    """

    def told(name: str) -> str:
        return f"{name!r:.60}" + ("" if labels[name] in (UNNAMED, name) else f" ({labels[name]:.60})")

    parents: dict[str, str] = {}
    for source, target in links:
        require(
            target not in parents,
            f"{where}: node {told(target)} has two parents, {told(parents.get(target, target))} and {told(source)}",
        )
        parents[target] = source
    roots = [name for name in labels if name not in parents]
    require(len(roots) > 0, f"{where}: there is no root: all nodes are in a cycle or below one")
    require(
        len(roots) == 1, f"{where}: {len(roots)} nodes have no parent, where only the root has none: "
        + ", ".join(told(name) for name in roots[:3]),
    )  # fmt: skip
    below: dict[str, list[str]] = {}
    for source, target in links:
        below.setdefault(source, []).append(target)
    reached, waiting = set(roots), list(roots)
    while waiting:
        children = below.get(waiting.pop(), [])
        reached.update(children)
        waiting += children
    lost = [name for name in labels if name not in reached]
    require(
        not lost,
        f"{where}: {len(lost)} nodes are in a cycle or below one, node {told(lost[0])} among them" if lost else "",
    )


def _ordered_leaves(
    leaves: list[str], labels: dict[str, str], classes: Sequence[str] | None, ids: Sequence[str] | None, where: str
) -> list[str]:
    """Ids of the leaves in the order of the classifier's outputs."""
    wanted = ids if ids is not None else classes
    if wanted is None:
        return leaves
    require(classes is None or len(classes) == len(wanted), f"{where}: {len(classes or ())} classes, {len(wanted)} ids")
    require(
        len(wanted) == len(leaves), f"{where}: the tree has {len(leaves)} leaves, the classifier {len(wanted)} classes"
    )
    if ids is None and [labels[name] for name in leaves] == list(wanted):
        return leaves
    keys = leaves if ids is not None else [labels[name] for name in leaves]
    found = dict(zip(keys, leaves, strict=True))
    require(len(found) == len(leaves), f"{where}: two leaves have the same label; give the ids of the classes")
    require(len(set(wanted)) == len(wanted), f"{where}: two classes have the same name; give the ids of the classes")
    for name in wanted:
        if name not in found:
            raise UserError(f"{where}: class {name!r} is no leaf of the tree{closest(name, list(found)[:20])}")
    return [found[name] for name in wanted]
