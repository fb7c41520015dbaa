"""Trees over features: splits worked by hand, against brute force and scikit-learn, files, and the hierarchies from splits."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.tree import DecisionTreeClassifier
from torch import nn

import nas
from nas.cli.main import run
from nas.trees import split_hierarchies
from nas.trees.baselines.comparison import feature_baselines
from nas.trees.baselines.feature_trees import FeatureTree, heights_of, info_gain_tree
from nas.trees.baselines.features import Features, features_of
from nas.trees.baselines.oblique import IMPURITIES, best_split, impurity_of, line_search, oc1_tree
from nas.trees.split_hierarchies import split_hierarchy
from nas.trees.wrapping import tree_of
from search_spaces.errors import UserError
from search_spaces.seeding import stream_seed

AB = ("a", "b")


def entropy_by_hand(*counts: int) -> float:
    return -sum(c / sum(counts) * math.log2(c / sum(counts)) for c in counts if c)


def twoing_by_hand(above: list[int], below: list[int]) -> float:
    n, m = len(above), len(below)
    distance = sum(abs(above.count(k) / n - below.count(k) / m) for k in {*above, *below})
    return -n * m / (n + m) ** 2 / 4 * distance**2


def oblique_data(count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Two classes on both sides of x + 1.3 y = 0.2, with a gap."""
    values = np.random.default_rng(0).uniform(-1, 1, (4 * count, 2)).astype(np.float32)
    height = values @ np.array([1.0, 1.3], np.float32) - 0.2
    values, height = values[np.abs(height) > 0.1][:count], height[np.abs(height) > 0.1][:count]
    return values, (height > 0).astype(np.int64)


def blobs(classes: int, width: int, each: int, spread: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    labels = np.repeat(np.arange(classes), each)
    values = rng.normal(size=(classes, width))[labels] + spread * rng.normal(size=(len(labels), width))
    return values.astype(np.float32), labels


def test_impurity_of_a_known_split() -> None:
    """9 and 5 into 6 + 2 and 3 + 3: the gain of the textbook example of wind and tennis, 0.048 bits."""
    labels = np.array([0] * 6 + [1] * 2 + [0] * 3 + [1] * 3)
    above = np.arange(14) < 8
    expected = 8 / 14 * entropy_by_hand(6, 2) + 6 / 14 * entropy_by_hand(3, 3)
    assert impurity_of(above, labels) == pytest.approx(expected, rel=1e-12)
    assert entropy_by_hand(9, 5) - expected == pytest.approx(0.048, abs=5e-4)
    expected = twoing_by_hand(labels[above].tolist(), labels[~above].tolist())
    assert impurity_of(above, labels, "twoing") == pytest.approx(expected, rel=1e-12)
    assert impurity_of(above, above.astype(np.int64), "twoing") == pytest.approx(-8 * 6 / 14**2, rel=1e-12)


@pytest.mark.parametrize("impurity", ["entropy", "twoing"])
@pytest.mark.parametrize("min_leaf", [1, 3])
def test_line_search_is_the_best_of_all_t(impurity: str, min_leaf: int) -> None:
    """All t, tried one by one; positive, negative and zero slopes, ties, images on the plane."""
    rng = np.random.default_rng(3)
    for _ in range(40):
        count, classes = int(rng.integers(2, 13)), int(rng.integers(2, 5))
        offsets, slopes = rng.integers(-3, 4, count) / 2, rng.integers(-2, 3, count) / 2
        labels = rng.integers(0, classes, count) * 3  # classes without images between them
        turns = sorted({-v / s for v, s in zip(offsets, slopes, strict=True) if s})
        tried = [(a + b) / 2 for a, b in itertools.pairwise([turns[0] - 9, *turns, turns[-1] + 9])] if turns else []
        least = math.inf
        for t in tried:
            above, below = ([int(k) for v, s, k in zip(offsets, slopes, labels, strict=True) if (v + t * s > 0) == up]
                            for up in (True, False))  # fmt: skip
            if min(len(above), len(below)) < min_leaf:
                continue
            if impurity == "twoing":
                least = min(least, twoing_by_hand(above, below))
            else:
                parts = [len(side) * entropy_by_hand(*(side.count(k) for k in set(side))) for side in (above, below)]
                least = min(least, sum(parts) / count)
        t, reached = line_search(offsets, slopes, labels, min_leaf=min_leaf, impurity=impurity)  # type: ignore[arg-type]
        assert reached == pytest.approx(least, abs=1e-12)
        if math.isfinite(least):
            above_t = offsets + t * slopes > 0
            assert impurity_of(above_t, labels, impurity) == pytest.approx(least, abs=1e-12)  # type: ignore[arg-type]


def best_plane_by_hand(values: np.ndarray, labels: np.ndarray) -> float:
    """Least entropy of all planes in 2-D: through every two images, moved and turned a little to either side."""
    least = math.inf
    for i, j in itertools.combinations(range(len(values)), 2):
        direction = values[j] - values[i]
        for turn in (-1e-6, 1e-6):
            normal = np.array([-direction[1], direction[0]]) + turn * direction
            for shift in (-1e-6, 1e-6, normal @ (values[j] - values[i]) / 2):
                above = values @ normal > normal @ values[i] + shift
                if 0 < above.sum() < len(values):
                    sides = [np.bincount(labels[side]) for side in (above, ~above)]
                    total = sum(side.sum() * entropy_by_hand(*side.tolist()) for side in sides)
                    least = min(least, total / len(values))
    return least


def test_oblique_splits_against_all_planes() -> None:
    rng = np.random.default_rng(5)
    for case in range(4):
        values = rng.normal(size=(14, 2)).astype(np.float32)
        labels = (values[:, 0] * 0.8 - values[:, 1] + rng.normal(size=14) * 0.4 * case > 0).astype(np.int64)
        split = best_split(values, labels, np.random.default_rng(0), impurity="entropy")
        assert split is not None
        above = values.astype(np.float64) @ split.normal > split.threshold
        assert impurity_of(above, labels) == pytest.approx(split.impurity, abs=1e-12)
        best = best_plane_by_hand(values.astype(np.float64), labels)
        assert best - 1e-9 <= split.impurity <= best + 1e-3  # climbing may stop a tolerance short


@pytest.mark.parametrize("impurity", ["entropy", "twoing"])
def test_one_oblique_split_does_what_many_parallel_ones_do(impurity: str) -> None:
    values, labels = oblique_data()
    oblique = oc1_tree(values, labels, AB, seed=0, impurity=impurity)  # type: ignore[arg-type]
    assert (oblique.leaves, oblique.depth, len(oblique.normals)) == (2, 1, 1)
    assert oblique.evaluate(values, labels).accuracy == 100
    parallel = info_gain_tree(values, labels, AB, seed=0)
    assert parallel.leaves >= 5
    assert parallel.evaluate(values, labels).accuracy == 100


@pytest.mark.parametrize("limits", [{}, {"max_depth": 2}, {"max_leaves": 5}, {"min_leaf": 4}])
def test_info_gain_tree_is_scikit_learns(limits: dict[str, int]) -> None:
    values, labels = blobs(4, 3, 20, spread=1.0)
    tree = info_gain_tree(values, labels, "abcd", seed=1, **limits)
    named = {"max_leaves": "max_leaf_nodes", "min_leaf": "min_samples_leaf"}
    theirs = DecisionTreeClassifier(
        criterion="entropy",
        random_state=stream_seed(1, "info-gain") % 2**32,
        **{named.get(name, name): value for name, value in limits.items()},
    ).fit(values, labels)
    others = np.random.default_rng(8).normal(size=(50, 3)).astype(np.float32)
    assert (tree.leaves, tree.depth) == (theirs.get_n_leaves(), theirs.get_depth())
    assert np.array_equal(tree.predict(others), theirs.predict(others))
    shares = tree.counts[tree.leaf_of(others)] / tree.counts.sum(1)[tree.leaf_of(others)][:, None]
    np.testing.assert_allclose(shares, theirs.predict_proba(others), atol=1e-12)
    assert tree.counts.sum(0).tolist() == [20] * 4


def walked(tree: FeatureTree, row: np.ndarray) -> int:
    """Leaf of one image, node by node."""
    node = 0 if len(tree.feature) else -1
    while node >= 0:
        feature = tree.feature[node]
        value = row[feature] if feature >= 0 else heights_of(row[None, :], tree.normals[-1 - feature])[0]
        node = tree.children[node, int(value > tree.threshold[node])]
    return -1 - node


def test_limits_cut_an_oblique_tree_and_images_come_to_their_leaves() -> None:
    values, labels = blobs(5, 3, 16, spread=0.8)
    whole = oc1_tree(values, labels, "abcde", seed=4, restarts=2)
    assert (whole.feature < 0).any()
    assert (whole.feature >= 0).any()  # below 2 D images splits are axis-parallel
    leaf = whole.leaf_of(values)
    assert [walked(whole, row) for row in values] == leaf.tolist()
    assert np.array_equal(whole.counts, [np.bincount(labels[leaf == i], minlength=5) for i in range(whole.leaves)])
    for limited in (
        oc1_tree(values, labels, "abcde", seed=4, restarts=2, **{name: 3}) for name in ("max_depth", "max_leaves")
    ):
        assert limited.threshold[0] == whole.threshold[0]
        assert set(limited.threshold.tolist()) < set(whole.threshold.tolist())
        assert limited.leaves == 3 or limited.depth == 3
    fat = oc1_tree(values, labels, "abcde", seed=4, restarts=2, min_leaf=6)
    assert fat.counts.sum(1).min() >= 6
    sampled = oc1_tree(values, labels, "abcde", seed=4, restarts=1, searched=20)
    assert sampled.evaluate(values, labels).accuracy > 90


def test_trees_repeat_and_survive_their_files(tmp_path: Path) -> None:
    values, labels = blobs(4, 3, 12, spread=0.9)
    trees = [oc1_tree(values, labels, "abcd", seed=seed, restarts=2, max_leaves=5) for seed in (0, 0, 1)]
    same, other = ([np.array_equal(getattr(trees[0], name), getattr(tree, name)) for name in ("threshold", "normals")]
                   for tree in trees[1:])  # fmt: skip
    assert same == [True, True]
    assert other != [True, True]
    for tree in (trees[0], info_gain_tree(values, labels, "abcd", seed=3)):
        tree.save(tmp_path / "tree.npz")
        again = FeatureTree.load(tmp_path / "tree.npz")
        assert (again.classes, again.settings) == (tree.classes, tree.settings)
        for name in ("feature", "threshold", "normals", "children", "counts"):
            assert np.array_equal(getattr(again, name), getattr(tree, name))
            assert getattr(again, name).dtype == getattr(tree, name).dtype
    assert [path.name for path in tmp_path.iterdir()] == ["tree.npz"]


def test_probabilities_count_one_more_of_each() -> None:
    tree = info_gain_tree(np.array([[0.0], [1.0], [1.0]]), np.array([0, 1, 0]), "abc", seed=0)
    assert tree.counts.tolist() == [[1, 0, 0], [1, 1, 0]]
    np.testing.assert_allclose(tree.probabilities(np.array([[2.0], [0.2]])), [[0.4, 0.4, 0.2], [0.5, 0.25, 0.25]])
    result = tree.evaluate(np.array([[2.0], [0.2]]), np.array([2, 0]))
    assert (result.correct, result.loss) == (1, pytest.approx(-(math.log(0.2) + math.log(0.5)) / 2))


def test_features_that_tell_nothing_give_one_leaf() -> None:
    for grow in (info_gain_tree, oc1_tree):
        tree = grow(np.zeros((9, 2), np.float32), np.arange(9) % 2, AB, seed=0)
        assert (tree.leaves, tree.depth, tree.predict(np.ones((2, 2))).tolist()) == (1, 0, [0, 0])


def test_oc1_stops_where_no_split_gains() -> None:
    """Exclusive or of four images: too few for oblique splits, and every parallel one leaves both classes on both sides."""
    values = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    for impurity in IMPURITIES:
        assert oc1_tree(values, np.array([0, 1, 1, 0]), AB, seed=0, impurity=impurity).leaves == 1


@pytest.mark.parametrize("grow", [info_gain_tree, oc1_tree])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.zeros(6, np.int64)}, "at least 2 classes, got 1"),
        ({"labels": np.array([0, 1, 0, 1, 0, 2])}, "labels must be in 0..1, got 2"),
        ({"labels": np.zeros(5, np.int64)}, "labels must be 6 integers"),
        ({"labels": np.zeros(6)}, "integers, got float64"),
        ({"values": np.full((6, 2), np.nan)}, "finite"),
        ({"values": np.full((6, 2), 1e300)}, "finite in float32"),
        ({"values": np.ones(6)}, r"\(images, features\)"),
        ({"values": np.ones((6, 2), np.int64)}, "floating-point"),
        ({"max_depth": 0}, "max_depth must be >= 1, got 0"),
        ({"max_leaves": 1}, "max_leaves must be >= 2"),
        ({"min_leaf": 0}, "min_leaf must be >= 1"),
        ({"seed": -1}, "seed"),
    ],
)
def test_wrong_input_is_one_line(grow: object, change: dict[str, object], message: str) -> None:
    given = {"values": np.ones((6, 2)), "labels": np.array([0, 1] * 3), "classes": AB, "seed": 0, **change}
    with pytest.raises(UserError, match=message) as raised:
        grow(**given)  # type: ignore[operator]
    assert "\n" not in str(raised.value)


def test_wrong_searches_and_files(tmp_path: Path) -> None:
    values, labels = oblique_data(20)
    for wrong, message in (({"restarts": 0}, "restarts"), ({"impurity": "twoin"}, "did you mean 'twoing'"),
                           ({"jumps": -1}, "jumps"), ({"searched": 1}, "searched")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            oc1_tree(values, labels, AB, seed=0, **wrong)  # type: ignore[arg-type]
    tree = info_gain_tree(values, labels, AB, seed=0)
    with pytest.raises(UserError, match="over 2 features, the values have 3"):
        tree.predict(np.ones((4, 3)))
    with pytest.raises(UserError, match="cannot read"):
        FeatureTree.load(tmp_path / "none.npz")
    tree.save(tmp_path / "tree.npz")
    content = (tmp_path / "tree.npz").read_bytes()
    for number, damaged in enumerate((b"", b"no archive", content[: len(content) // 2])):
        (tmp_path / f"{number}.npz").write_bytes(damaged)
        with pytest.raises(UserError, match="damaged"):
            FeatureTree.load(tmp_path / f"{number}.npz")
    with np.load(tmp_path / "tree.npz") as arrays:
        parts = {name: arrays[name] for name in arrays}
    looped = {**parts, "children": np.zeros_like(parts["children"])}  # the root its own child
    foreign = {**parts, "header": np.array(["x"], dtype=object)}
    for changed, message in ((looped, "after its parent"), (foreign, "damaged")):
        np.savez(tmp_path / "changed.npz", **changed)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=message):
            FeatureTree.load(tmp_path / "changed.npz")
    with pytest.raises(UserError, match="cannot write"):
        tree.save(tmp_path / "nowhere" / "tree.npz")


class Net(nn.Module):
    """Features are ReLU(5 of the 6 numbers); the head may be a convolution with positions averaged behind it."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.drop, self.head = nn.Dropout(0.5), head

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return self.drop(images.flatten(2)[:, 0, :5].relu())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if isinstance(self.head, nn.Linear):
            return self.head(self.features(images))
        return self.head(images.relu()).mean((2, 3))


def test_features_are_what_the_head_is_given() -> None:
    source = nas.load_dataset("digits").test.subset(np.arange(23))
    ((images, labels),) = source.batches(23, resolution=8)
    for net in (Net(nn.Linear(5, 10)), Net(nn.Conv2d(1, 10, 1))):
        net.train()
        found = features_of(net, source, 10, resolution=8, batch_size=7)
        assert net.training and not net.head._forward_pre_hooks
        with torch.no_grad():
            net.eval()
            expected = net.features(images) if isinstance(net.head, nn.Linear) else images.relu().mean((2, 3))
            logits = net(images)
        np.testing.assert_allclose(found.values, expected.numpy(), rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(  # the head is linear: of the mean it gives the mean
            nn.functional.linear(torch.tensor(found.values), net.head.weight.flatten(1), net.head.bias).detach(),
            logits, rtol=1e-4, atol=1e-6,
        )  # fmt: skip
        assert found.predicted.tolist() == logits.argmax(1).tolist()
        assert found.labels.tolist() == labels.tolist()
    with pytest.raises(UserError, match="no images"):
        features_of(net, source.subset(np.array([], np.int64)), 10, resolution=8)
    with pytest.raises(UserError, match="ran 2 times"):
        twice = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.ReLU())
        again = nn.Linear(10, 10)
        features_of(nn.Sequential(twice, again, again), source, 10, resolution=8, head="1")


@pytest.mark.parametrize("method", ["info-gain", "oc1"])
def test_hierarchies_of_splits_keep_together_what_is_together(method: str) -> None:
    """Classes 0, 3 against 1, 2, 4 far apart along one direction; within them nearer."""
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(5), 12)
    centres = np.array([[9, 9], [-9, -8], [-9, -9], [8, 9], [-9, -11]], dtype=np.float64)
    values = (centres[labels] + 0.1 * rng.normal(size=(60, 2))).astype(np.float32)
    tree = split_hierarchy(values, labels, "abcde", method, seed=0, restarts=2)  # type: ignore[arg-type]
    sets = {frozenset(tree.leaves_of(node).tolist()) for node in range(5, 9)}
    assert {frozenset([0, 3]), frozenset([1, 2, 4])} <= sets
    assert all(len(children) == 2 for children in tree.children)
    again = split_hierarchy(values, labels, "abcde", method, seed=0, restarts=2)  # type: ignore[arg-type]
    assert again.children == tree.children


def test_a_split_that_no_class_has_its_majority_beyond() -> None:
    """Half of class 1 and less than half of class 0 lie beyond the only split; then equal features."""
    values = np.array([[0.0], [0.0], [0.0], [0.0], [0.0], [1.0], [0.0], [1.0]])
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    tree = split_hierarchy(values, labels, "abc", seed=0)
    assert sorted(len(tree.leaves_of(child)) for child in tree.children_of(tree.root)) == [1, 2]
    assert split_hierarchy(np.ones((8, 1)), labels, "abc", seed=0).nodes == 5
    with pytest.raises(UserError, match="class 'd' has no images"):
        split_hierarchy(values, labels, "abcd", seed=0)
    with pytest.raises(UserError, match="did you mean 'oc1'"):
        split_hierarchy(values, labels, "abc", "oc2", seed=0)  # type: ignore[arg-type]


def test_baselines_beside_the_network() -> None:
    data = nas.load_dataset("digits")
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 10))
    result = feature_baselines(
        net, data, seed=0, resolution=8, oc1={"restarts": 1, "searched": 100, "jumps": 1}, max_leaves=12
    )
    assert result.total == len(data.test)
    assert result.accuracy == nas.evaluate(net, data.test, resolution=8).accuracy
    for name, found in result.trees.items():
        assert found.tree.settings["method"] == name
        assert found.tree.leaves <= 12
        assert found.evaluation.accuracy > 30  # untrained features of digits tell much more than chance
        assert 0 <= found.agreement <= 100
    values = features_of(net, data.test, 10, resolution=8)
    expected = np.mean(result.trees["info-gain"].tree.predict(values.values) == values.predicted)
    assert result.trees["info-gain"].agreement == pytest.approx(100 * expected)
    with pytest.raises(UserError, match="did you mean 'oc1'"):
        feature_baselines(net, data, ("oc",), seed=0)  # type: ignore[arg-type]


def test_baselines_from_the_shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command says and keeps what Python gives; wrong input is one line before anything is trained or written."""
    nas.train("lenet5:2-3-8-6", "digits", out=tmp_path / "run", epochs=1, resolution=32)
    out, settings = tmp_path / "trees", ["--max-leaves", "8", "--restarts", "1", "--seed", "3"]
    assert run(["nbdt", "baselines", str(tmp_path / "run"), *settings, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    expected = feature_baselines(tmp_path / "run", seed=3, max_leaves=8, oc1={"restarts": 1})
    stored = json.loads((out / "baselines.json").read_text())
    assert stored == json.loads(json.dumps(expected.numbers()))
    assert stored["total"] == 360
    for name, one in expected.trees.items():
        kept = FeatureTree.load(out / f"{name}.npz")
        assert (kept.leaves, kept.depth) == (one.tree.leaves, one.tree.depth) == (
            stored["trees"][name]["leaves"], stored["trees"][name]["depth"],
        )  # fmt: skip
        assert f"{one.evaluation.accuracy:6.2f} %" in printed
    (tmp_path / "file").write_text("")
    for wrong, message in {
        ("--method", "oc2"): "did you mean 'oc1'",
        ("--max-depth", "0"): "max_depth must be >= 1, got 0",
        ("--impurity", "gini"): "impurity",
        ("--data", "mnistt"): "mnist",
        ("--out", str(tmp_path / "file")): "is a file",
        ("--seed", "-1"): "seed must be >= 0, got -1",
    }.items():
        assert run(["nbdt", "baselines", str(tmp_path / "run"), *wrong]) == 2
        assert message in (error := capsys.readouterr().err) and error.count("\n") == 1


@pytest.mark.parametrize("method", ["info-gain", "oc1"])
def test_a_kind_of_tree_for_any_network(method: str) -> None:
    data = nas.load_dataset("digits")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.ReLU(), nn.Linear(3, 10))
    result = nas.nbdt(net, "digits", tree=method, resolution=8, names=False)
    found = features_of(net, data.train, 10, resolution=8)
    expected = split_hierarchy(found.values, found.labels, data.class_names, method, seed=0)  # type: ignore[arg-type]
    assert result.hierarchy.children == expected.children
    assert result.evaluations["NN"].accuracy == nas.evaluate(net, data.test, resolution=8).accuracy
    with pytest.raises(UserError, match="needs a trained network and images"):
        tree_of(method, data.class_names, net)


def test_large_sources_give_a_share_of_each_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_hierarchies, "MOST_IMAGES", 200)
    seen = []

    def spied(*given: object, **named: object) -> Features:
        seen.append(given[1])
        return features_of(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(split_hierarchies, "features_of", spied)
    data = nas.load_dataset("digits")
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    tree = split_hierarchies.model_split_hierarchy(net, data.train, data.class_names, seed=0, resolution=8)
    shares = np.bincount(seen[0].labels) / 200
    assert len(seen[0]) == 200
    np.testing.assert_allclose(shares, np.bincount(data.train.labels) / len(data.train), atol=1 / 200)
    assert tree.nodes == 19
