"""Path entropy, maximum-similarity examples, path frequencies: by hand, and against loops."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from nas.trees import analyses
from nas.trees.analyses import (
    choice_counts,
    distinct_labels,
    find_node,
    max_similarity,
    path_entropies,
    path_entropy,
    traversals,
)
from nas.trees.hierarchy import Hierarchy
from search_spaces.errors import UserError

ln = math.log
# root 6 = (4, 5); 4 = (a, b), 5 = (c, d)
TREE = Hierarchy(("a", "b", "c", "d"), ((0, 1), (2, 3), (4, 5)), ("left", "right", ""))
LOGITS = torch.tensor(
    [
        [ln(3), ln(3), ln(3), -ln(3)],  # root .75/.25; left .5/.5; right .9/.1
        [-ln(4), -ln(4), ln(2), -ln(2)],  # root .2/.8; left .5/.5; right .8/.2
        [ln(99) / 2 + ln(9 / 11), -ln(99) / 2 + ln(9 / 11), 0, 0],  # root .45/.55; left .99/.01; right .5/.5
    ],
    dtype=torch.float64,
)


def entropy(*shares: float) -> float:
    return -sum(p * ln(p) for p in shares)


def test_path_entropy_by_hand() -> None:
    frame = path_entropy(TREE, LOGITS, torch.tensor([1, 2, 3]))
    assert frame["image"].tolist() == [2, 0, 1]  # by path entropy
    ranges = [entropy(0.45, 0.55) - entropy(0.99, 0.01), ln(2) - entropy(0.75, 0.25), 0.0]
    np.testing.assert_allclose(frame["path_entropy"], ranges, atol=1e-12)
    np.testing.assert_allclose(frame["largest"], [entropy(0.45, 0.55), ln(2), entropy(0.2, 0.8)], rtol=1e-12)
    np.testing.assert_allclose(
        frame["smallest"], [entropy(0.99, 0.01), entropy(0.75, 0.25), entropy(0.2, 0.8)], rtol=1e-12
    )
    np.testing.assert_allclose(frame["probability"], [0.45 * 0.99, 0.75 * 0.5, 0.8 * 0.8], rtol=1e-12)
    assert frame["predicted"].tolist() == ["a", "a", "c"] and frame["label"].tolist() == ["d", "b", "c"]
    assert frame["node"].tolist()[:2] == [6, 4] and frame["name"].tolist()[:2] == ["a, b, +2", "left"]
    assert frame["first"].tolist()[:2] == ["right", "a"] and frame["second"].tolist()[:2] == ["left", "b"]
    np.testing.assert_allclose(frame["first_probability"], [0.55, 0.5, 0.8], rtol=1e-12)
    np.testing.assert_allclose(frame["second_probability"], [0.45, 0.5, 0.2], rtol=1e-12)
    assert frame["network_entropy"][2] == pytest.approx(entropy(1 / 12, 1 / 12, 2 / 3, 1 / 6), rel=1e-12)


def test_path_entropy_of_hard_inference_is_that_of_its_own_path() -> None:
    frame = path_entropy(TREE, LOGITS, rule="hard").set_index("image")
    assert frame["predicted"].tolist() == ["a", "c", "c"] and set(frame["label"]) == {""}
    assert frame["path_entropy"][2] == pytest.approx(ln(2) - entropy(0.45, 0.55), abs=1e-12)
    assert frame["node"][2] == 5 and frame["probability"][2] == pytest.approx(0.55 * 0.5, rel=1e-12)


def test_one_decision_has_no_path_entropy() -> None:
    flat = Hierarchy(("a", "b", "c"), ((0, 1, 2),), ("",))
    frame = path_entropy(flat, torch.tensor([[5.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    assert frame["path_entropy"].tolist() == [0.0, 0.0]
    assert frame["image"].tolist() == [1, 0], "the less certain one first"
    assert frame["largest"][0] == pytest.approx(ln(3)) and frame["network_entropy"][0] == pytest.approx(ln(3))


def uneven() -> Hierarchy:
    """Nodes with two to four children, leaves at depths one to four."""
    children = ((0, 1, 2), (10, 3), (4, 5), (6, 7, 8, 12), (11, 9, 13))
    return Hierarchy(tuple("ABCDEFGHIJ"), children, ("",) * 5)


@pytest.mark.parametrize("rule", ["soft", "hard"])
def test_path_entropies_against_loops(rule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = uneven()
    logits = torch.randn(50, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    monkeypatch.setattr(analyses, "CHUNK", 100)  # several chunks
    found = path_entropies(tree, logits, rule=rule)
    for i, row in enumerate(logits.tolist()):
        shares: dict[int, float] = {}
        entropies: dict[int, float] = {}
        for node in range(10, tree.nodes):
            scores = [np.mean([row[leaf] for leaf in tree.leaves_of(child)]) for child in tree.children_of(node)]
            total = sum(math.exp(one) for one in scores)
            parts = [math.exp(one) / total for one in scores]
            shares.update(zip(tree.children_of(node), parts, strict=True))
            entropies[node] = entropy(*parts)
        ways = [[int(node) for node in tree.paths[leaf] if node >= 0] for leaf in range(10)]
        products = [math.prod(shares[node] for node in way[1:]) for way in ways]
        leaf = int(np.argmax(products))
        if rule == "hard":
            leaf = tree.root
            while leaf >= 10:
                leaf = max(tree.children_of(leaf), key=shares.__getitem__)
        on_path = [entropies[node] for node in ways[leaf][:-1]]
        assert found.predicted[i] == leaf
        assert found.path_entropy[i] == pytest.approx(max(on_path) - min(on_path), abs=1e-10)
        worst = ways[leaf][int(np.argmax(on_path))]
        two = sorted(tree.children_of(worst), key=shares.__getitem__, reverse=True)[:2]
        assert (found.node[i], found.first[i], found.second[i]) == (worst, *two)
        assert found.second_probability[i] == pytest.approx(shares[two[1]], rel=1e-9)
        assert found.probability[i] == pytest.approx(products[leaf], rel=1e-9)


SIMILAR = torch.tensor([[4.0, 0, 0, 0], [1, 1, 1, 1], [0, 6, 0, 0], [2, 2, 9, 9]])


@pytest.mark.parametrize("chunk", [6, 1 << 20])
def test_max_similarity_by_hand(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean logits: left 2, 1, 3, 2; root 1, 1, 1.5, 5.5; a 4, 1, 0, 2."""
    monkeypatch.setattr(analyses, "CHUNK", chunk)
    names = ("a", "b", "new")
    frame = max_similarity(TREE, SIMILAR, torch.tensor([0, 1, 2, 2]), names, nodes=[4, 6, 0], count=3)
    assert frame["node"].tolist() == [4, 4, 4, 6, 6, 6, 0, 0, 0] and frame["rank"].tolist() == [1, 2, 3] * 3
    assert frame["image"].tolist() == [2, 0, 3, 3, 2, 0, 0, 3, 1], "equal ones in order"
    assert frame["similarity"].tolist() == [3, 2, 2, 5.5, 1.5, 1, 4, 2, 1]
    assert frame["label"].tolist() == ["new", "a", "new", "new", "new", "a", "a", "new", "b"]
    assert frame["seen"].tolist() == [False, True, False, False, False, True, True, False, True]
    assert frame["below"].tolist() == [False, True, False, False, False, True, True, False, False]
    whole = max_similarity(TREE, SIMILAR, count=9)
    assert whole["node"].unique().tolist() == [6, 4, 5] and len(whole) == 12 and "seen" not in whole


def test_traversals_by_hand() -> None:
    """Predictions of soft inference: a, c, a."""
    frame = traversals(TREE, LOGITS, torch.tensor([2, 2, 0]), ("new", "none", "c"))
    assert frame["label"].tolist() == ["new"] * 3 + ["c"] * 5
    assert frame["node"].tolist() == [6, 4, 0, 6, 4, 0, 5, 2]
    assert frame["images"].tolist() == [1, 1, 1, 2, 1, 1, 1, 1]
    assert frame["share"].tolist() == [100.0] * 4 + [50.0] * 4
    assert frame["parent"].tolist() == [-1, 6, 4, -1, 6, 4, 6, 5] and frame["depth"].tolist() == [
        0,
        1,
        2,
        0,
        1,
        2,
        1,
        2,
    ]
    assert frame["seen"].tolist() == [False] * 3 + [True] * 5
    hard = traversals(TREE, LOGITS, torch.tensor([2, 2, 0]), ("new", "none", "c"), rule="hard")
    assert hard["node"].tolist() == [6, 5, 2, 6, 4, 0, 5, 2]


def test_choice_counts_by_hand() -> None:
    """Each node is asked for every image: root left, right, right; left a (first of equals), a, a; right c, c, c."""
    counts = choice_counts(TREE, LOGITS, torch.tensor([0, 1, 1]), 3)
    assert counts.tolist() == [[1, 0, 1, 0, 1, 0, 1], [2, 0, 2, 0, 0, 2, 2], [0] * 7]


def test_nodes_are_found_by_what_they_are_called() -> None:
    tree = Hierarchy(tuple("abcd"), ((0, 1), (2, 3), (4, 5)), ("thing", "thing", ""))
    assert distinct_labels(tree).tolist() == ["a", "b", "c", "d", "thing (a, b)", "thing (c, d)", "a, b, +2"]
    assert [find_node(tree, text) for text in ("root", "b", "5", "Thing (c, d)", "a, b, +2")] == [6, 1, 5, 5, 6]
    digits = Hierarchy(("1", "0"), ((0, 1),), ("",))
    assert [find_node(digits, text) for text in ("1", "0", "2")] == [0, 1, 2], "a class before a number"
    for text, message in (("thing", "2 nodes.*4, 5; give a number"), ("rot", "did you mean 'root'"), ("7", r"0\.\.6")):
        with pytest.raises(UserError, match=message):
            find_node(tree, text)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: path_entropy(TREE, LOGITS[:0]), "no images"),
        (lambda: path_entropy(TREE, LOGITS[:, :3]), r"\(batch, 4\)"),
        (lambda: path_entropy(TREE, LOGITS * torch.inf), "finite"),
        (lambda: path_entropy(TREE, LOGITS, torch.tensor([0, 1])), "3 images need a label each"),
        (lambda: path_entropy(TREE, LOGITS, torch.tensor([0, 1, 4])), r"0\.\.3, got 0\.\.4"),
        (lambda: path_entropy(TREE, LOGITS, rule="sof"), "did you mean 'soft'"),  # type: ignore[arg-type]
        (lambda: max_similarity(TREE, LOGITS, count=0), "count must be >= 1"),
        (lambda: max_similarity(TREE, LOGITS, nodes=[7]), "node 7 is none"),
        (lambda: traversals(TREE, LOGITS, torch.tensor([0, -1, 1])), "labels must be"),
    ],
)
def test_wrong_input(call: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
