"""Trees as data: numbering, checks, files."""

import copy
import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nas.trees.hierarchy import Hierarchy
from search_spaces.errors import UserError

# root 7 = (5, 6), 5 = (cat, dog), 6 = (plane, 4th class, bird); the numbers do not follow the depth
CLASSES = ("plane", "cat", "car", "dog", "bird")
TREE = Hierarchy(CLASSES, ((1, 3), (0, 4, 2), (5, 6)), ("pet", "", "all"))


def test_numbers_of_a_hand_made_tree() -> None:
    assert (TREE.root, TREE.nodes) == (7, 8)
    assert TREE.parents.tolist() == [6, 5, 6, 5, 6, 7, 7, -1]
    assert TREE.depth.tolist() == [2, 2, 2, 2, 2, 1, 1, 0]
    assert TREE.preorder.tolist() == [7, 5, 1, 3, 6, 0, 4, 2]
    assert TREE.paths.tolist() == [[7, 6, 0], [7, 5, 1], [7, 6, 2], [7, 5, 3], [7, 6, 4]]
    assert TREE.leaf_counts.tolist() == [1, 1, 1, 1, 1, 2, 3, 5]
    assert [TREE.leaves_of(node).tolist() for node in (7, 6, 5, 3)] == [[0, 1, 2, 3, 4], [0, 2, 4], [1, 3], [3]]
    assert [TREE.name_of(node) for node in (0, 5, 6, 7)] == ["plane", "pet", "", "all"]
    assert TREE.children_of(6) == (0, 4, 2)
    assert TREE.children_of(3) == ()


def test_paths_of_unequal_length_end_in_minus_one() -> None:
    chain = Hierarchy(("a", "b", "c"), ((1, 2), (0, 3)), ("", ""))
    assert chain.paths.tolist() == [[4, 0, -1], [4, 3, 1], [4, 3, 2]]
    assert chain.depth.tolist() == [1, 2, 2, 1, 0]


def test_a_chain_of_thousands_of_nodes() -> None:
    k = 5000
    children = ((0, 1), *((i + 1, k + i - 1) for i in range(1, k - 1)))
    chain = Hierarchy(tuple(map(str, range(k))), children, ("",) * (k - 1))
    assert chain.depth.max() == k - 1
    assert chain.leaves_of(chain.root).tolist() == list(range(k))
    assert len(pickle.loads(pickle.dumps(chain)).children) == len(copy.deepcopy(chain).children) == k - 1


@pytest.mark.parametrize(
    ("classes", "children", "names", "message"),
    [
        (("a",), ((0,),), ("",), "2..100000 classes, got 1"),
        (("a", "b"), ((0, 1), (2,)), ("", ""), "node 3 has 1 child"),
        (("a", "b"), ((0, 1),), (), "names must be one for each of 1"),
        (("a", "b", "c"), ((0, 1), (0, 2)), ("", ""), "node 0 has two parents: 3 and 4"),
        (("a", "b", "c"), ((0, 1),), ("",), "class 'c' is not in the tree"),
        (("a", "b"), ((0, 9),), ("",), "child 9; nodes are 0..2"),
        (("a", "b", "c", "d"), ((0, 1), (2, 3)), ("", ""), "2 roots: nodes 4, 5"),
        (("a", "b"), ((0, 3), (1, 2)), ("", ""), "no root"),
        (("a", "b", "c", "d"), ((0, 1), (2, 5), (3, 4 + 2)), ("", "", ""), "node 6 has|cycle"),
        (("a", "b", 3), ((0, 1, 2),), ("",), "class 2 must be text"),
    ],
)
def test_what_is_no_tree_is_refused(classes: Any, children: Any, names: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Hierarchy(classes, children, names)


def test_a_cycle_beside_a_tree_is_refused() -> None:
    with pytest.raises(UserError, match="4 nodes are in a cycle"):
        Hierarchy(("a", "b", "c", "d"), ((0, 1), (2, 6), (3, 5)), ("", "", ""))


@pytest.mark.parametrize(
    ("links", "message"),
    [
        ("r-a r-n n-b n-c m-a m-b", "t.json: node 'a' (ant) has two parents, 'r' and 'm'"),
        ("r-a r-n n-b m-c", "t.json: 2 nodes have no parent, where only the root has none: 'r', 'm'"),
        ("n-b n-c m-n r-m c-r a-a", "t.json: there is no root"),
        (
            "r-a r-b n-m n-c m-n",
            "node 'n' (pets) has two parents, 'm'|t.json: 3 nodes are in a cycle or below one, node 'c'",
        ),
        ("r-a r-b n-m m-n m-c", "t.json: 3 nodes are in a cycle or below one, node 'c' (cat) among them"),
    ],
)
def test_a_file_that_is_no_tree_is_told_by_its_own_ids(links: str, message: str) -> None:
    labels = {"a": "ant", "b": "bee", "c": "cat", "r": "(generated)", "n": "pets", "m": "(generated)"}
    pairs = [link.split("-") for link in links.split()]
    used = {end for pair in pairs for end in pair}
    data = {
        "nodes": [{"id": name, "label": label} for name, label in labels.items() if name in used],
        "links": [{"source": source, "target": target} for source, target in pairs],
    }
    with pytest.raises(UserError, match="|".join(re.escape(one) for one in message.split("|"))):
        Hierarchy.from_json(data, where="t.json")


def test_names_by_list_and_by_number() -> None:
    assert TREE.with_names(["x", "y", "z"]).names == ("x", "y", "z")
    assert TREE.with_names({6: "<b>"}).names == ("pet", "<b>", "all")
    for wrong in (["x"], {3: "x"}, {8: "x"}):
        with pytest.raises(UserError):
            TREE.with_names(wrong)


def same(a: Hierarchy, b: Hierarchy) -> bool:
    return (a.classes, a.children, a.names) == (b.classes, b.children, b.names)


def test_file_and_back(tmp_path: Path) -> None:
    TREE.save(tmp_path / "tree.json")
    assert same(Hierarchy.load(tmp_path / "tree.json"), TREE)
    assert same(Hierarchy.load(tmp_path / "tree.json", CLASSES), TREE)
    stored = json.loads((tmp_path / "tree.json").read_text())
    assert (stored["directed"], stored["multigraph"], stored["graph"]) == (True, False, {})
    assert stored["nodes"][6] == {"id": "f00000006", "label": "(generated)"}


def test_networkx_reads_what_is_written() -> None:
    networkx = pytest.importorskip("networkx")
    graph = networkx.node_link_graph(TREE.to_json(), edges="links")
    assert networkx.is_arborescence(graph)
    assert [graph.nodes[n]["label"] for n in graph if graph.out_degree(n) == 0] == list(CLASSES)


def test_a_file_of_the_authors_package_with_another_order() -> None:
    """Leaves by WNID, in the order of a WNID file; a contracted node keeps its extra key."""
    data = {
        "directed": True, "multigraph": False, "graph": {},
        "nodes": [
            {"id": "n02084071", "label": "dog"},
            {"id": "f00000000", "label": "(generated)", "contraction": {"n1": {"label": "x"}}},
            {"id": "n02121620", "label": "cat"},
            {"id": "n02958343", "label": "car"},
            {"id": "n00001740", "label": "entity"},
        ],
        "links": [
            {"source": "n00001740", "target": "f00000000"},
            {"source": "f00000000", "target": "n02084071"},
            {"source": "f00000000", "target": "n02121620"},
            {"source": "n00001740", "target": "n02958343"},
        ],
    }  # fmt: skip
    ids = ["n02121620", "n02958343", "n02084071"]
    tree = Hierarchy.from_json(data, ids=ids)
    assert tree.classes == ("cat", "car", "dog")
    assert tree.children == ((2, 0), (3, 1))
    assert tree.names == ("", "entity")
    assert Hierarchy.from_json(data, classes=("Katze", "Auto", "Hund"), ids=ids).children == tree.children
    assert same(Hierarchy.from_json(data, classes=("cat", "car", "dog")), tree)
    assert Hierarchy.from_json(data).classes == ("dog", "cat", "car")
    assert same(Hierarchy.from_json(tree.to_json(ids), ids=ids), tree)
    with pytest.raises(UserError, match="'cow' is no leaf"):
        Hierarchy.from_json(data, classes=("cat", "car", "cow"))
    with pytest.raises(UserError, match="3 leaves, the classifier 2"):
        Hierarchy.from_json(data, classes=("cat", "car"))


def test_classes_of_the_same_name_keep_the_order_of_the_file() -> None:
    """ImageNet has two cranes."""
    cranes = Hierarchy(("crane", "crane", "boat"), ((0, 2), (1, 3)), ("", ""))
    assert same(Hierarchy.from_json(cranes.to_json(), classes=cranes.classes), cranes)
    with pytest.raises(UserError, match="same label"):
        Hierarchy.from_json(cranes.to_json(), classes=("boat", "crane", "crane"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: [], "expected a mapping"),
        (lambda data: {**data, "nodes": 3}, "nodes must be a list"),
        (lambda data: {**data, "links": None}, "links must be a list"),
        (lambda data: {**data, "directed": False}, "directed"),
        (lambda data: {**data, "nodes": [*data["nodes"], {"id": 3}]}, r"nodes\[8\] has no id"),
        (lambda data: {**data, "nodes": [*data["nodes"], data["nodes"][0]]}, "two nodes have the id"),
        (lambda data: {**data, "nodes": [{"id": "x", "label": 3}]}, "label must be text"),
        (lambda data: {**data, "links": [*data["links"], {"source": "f00000000"}]}, r"links\[7\] names None"),
        (lambda data: {**data, "links": [*data["links"], {"source": "f00000005", "target": "f00000007"}]}, "no root"),
        (lambda data: {**data, "links": data["links"][:-2]}, "nodes have no parent"),
        (lambda data: {**data, "links": data["links"][1:]}, "2 nodes have no parent"),
    ],
)
def test_a_wrong_file_is_one_line(change: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(json.dumps(change(TREE.to_json())))
    with pytest.raises(UserError, match=message) as caught:
        Hierarchy.load(tmp_path / "t.json")
    assert "t.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_json(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        Hierarchy.load(tmp_path / "none.json")
    (tmp_path / "deep.json").write_text("[" * 200_000)
    with pytest.raises(UserError, match="not valid JSON"):
        Hierarchy.load(tmp_path / "deep.json")


def test_arrays_against_a_walk_up_the_tree() -> None:
    rng = np.random.default_rng(0)
    k, open_nodes, children = 40, list(range(40)), []
    while len(open_nodes) > 1:
        taken = [open_nodes.pop(int(rng.integers(len(open_nodes)))) for _ in range(min(len(open_nodes), 2 + k % 3))]
        open_nodes.append(k + len(children))
        children.append(tuple(taken))
    tree = Hierarchy(tuple(map(str, range(k))), tuple(children), ("",) * len(children))
    for leaf in range(k):
        path, node = [leaf], leaf
        while any(node in c for c in children):
            node = next(k + j for j, c in enumerate(children) if node in c)
            path.append(node)
        assert [node for node in tree.paths[leaf] if node >= 0] == path[::-1]
        assert tree.depth[leaf] == len(path) - 1
        assert all(leaf in tree.leaves_of(node) for node in path)
    assert tree.leaf_counts.tolist() == [len(tree.leaves_of(node)) for node in range(tree.nodes)]
