"""Path lengths of trees that are known by hand, and the toy data."""

import numpy as np
import pytest
import torch
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor
from torch import nn

from nas.trees.regularisation.path_length import (
    TreeOptions,
    average_path_length,
    class_loss,
    fit_tree,
    mimic,
    path_length_of,
    path_lengths,
    predicted_classes,
    rows_of,
)
from nas.trees.regularisation.toys import (
    BAND,
    fresh_parabola,
    markov_series,
    parabola,
    parabola_height,
    toy_markov_model,
)
from search_spaces.errors import UserError

# Class 1 in the middle of a line: 8 rows below 8, then 2 rows of class 1, then 2 of class 0.
LINE = np.arange(12, dtype=np.float32)[:, None]
CLASSES = np.array([0] * 8 + [1] * 2 + [0] * 2)


def depth_by_walking(tree: DecisionTreeClassifier, row: np.ndarray) -> int:
    """Decisions of one row, followed from the root."""
    inner, node, depth = tree.tree_, 0, 0
    while inner.children_left[node] >= 0:
        left = row[inner.feature[node]] <= inner.threshold[node]
        node, depth = (inner.children_left if left else inner.children_right)[node], depth + 1
    return depth


def test_path_length_of_a_tree_by_hand() -> None:
    tree = fit_tree(LINE, CLASSES, TreeOptions(min_samples_leaf=1))
    # first decision x <= 7.5: 8 rows are done; the other 4 take a second one, x <= 9.5
    assert path_lengths(tree, LINE).tolist() == [1] * 8 + [2] * 4
    assert average_path_length(tree, LINE) == (8 * 1 + 4 * 2) / 12
    assert path_length_of(LINE, CLASSES, TreeOptions(min_samples_leaf=1)) == pytest.approx(16 / 12, rel=1e-12)
    assert average_path_length(tree, [[0.0], [20.0]]) == 1.5


def test_a_mirrored_tree_has_the_same_path_length() -> None:  # counted by leaf numbers it has not
    options = TreeOptions(min_samples_leaf=1)
    assert path_length_of(-LINE, CLASSES, options) == path_length_of(LINE, CLASSES, options)


@pytest.mark.parametrize(
    "options", [TreeOptions(min_samples_leaf=1), TreeOptions(), TreeOptions(max_depth=3, ccp_alpha=0.01)]
)
def test_path_lengths_are_the_depths_of_leaves(options: TreeOptions) -> None:
    rng = np.random.default_rng(0)
    rows = rng.random((200, 3)).astype(np.float32)
    classes = ((rows**2).sum(1) > 1).astype(np.int64) + (rows[:, 0] > 0.8)
    tree = fit_tree(rows, classes, options)
    walked = [depth_by_walking(tree, row) for row in rows]
    assert path_lengths(tree, rows).tolist() == walked
    assert path_length_of(rows, classes, options) == pytest.approx(np.mean(walked), rel=1e-12)


def test_one_class_takes_no_decision() -> None:
    assert path_length_of(LINE, np.zeros(12, dtype=np.int64)) == 0


def test_the_same_rows_give_the_same_tree() -> None:
    rows = np.repeat(LINE, 2, axis=1)  # both features split alike: scikit-learn draws which one it takes
    trees = [fit_tree(rows, CLASSES, TreeOptions(min_samples_leaf=1)).tree_.feature.tolist() for _ in range(5)]
    assert all(tree == trees[0] for tree in trees)


@pytest.mark.parametrize("depth", [0, 30, -1])
def test_depths_that_nobody_steps_through(depth: int) -> None:
    with pytest.raises(UserError, match=f"max_depth must be in 1..20, got {depth}"):
        TreeOptions(max_depth=depth)


def test_other_things_than_classification_trees() -> None:
    for tree in (DecisionTreeRegressor().fit(LINE, CLASSES), DecisionTreeClassifier()):
        with pytest.raises(UserError, match="fitted DecisionTreeClassifier"):
            path_lengths(tree, LINE)
    with pytest.raises(UserError, match="rows must be"):
        path_lengths(fit_tree(LINE, CLASSES), np.zeros((3, 2)))
    with pytest.raises(UserError, match="min_samples_leaf"):
        TreeOptions(min_samples_leaf=0)
    with pytest.raises(UserError, match="ccp_alpha"):
        TreeOptions(ccp_alpha=-1.0)


def test_classes_and_rows_of_every_kind_of_output() -> None:
    binary, several = torch.tensor([[-1.0], [2.0], [0.0]]), torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 1.0]])
    assert predicted_classes(binary).tolist() == predicted_classes(binary[:, 0]).tolist() == [0, 1, 0]
    assert predicted_classes(several).tolist() == [1, 0]
    series = torch.arange(24.0).view(2, 3, 4)
    assert predicted_classes(several[None].expand(3, 2, 3)).tolist() == [1, 0] * 3
    assert rows_of(series, torch.zeros(2, 3, 1)).tolist() == series.view(6, 4).tolist()
    assert rows_of(series, torch.zeros(2, 5)).tolist() == series.view(2, 12).tolist()
    for inputs, outputs in (
        (series, torch.zeros(3, 1)),
        (series, torch.zeros(2, 4, 1)),
        (series[:0], torch.zeros(0, 1)),
    ):
        with pytest.raises(UserError):
            rows_of(inputs, outputs)
    with pytest.raises(UserError, match="outputs must be"):
        predicted_classes(torch.zeros(1, 2, 3, 4))


def test_the_loss_is_the_mean_negative_log_likelihood() -> None:
    logits, labels = torch.tensor([[0.3], [-1.2]], dtype=torch.float64), torch.tensor([1, 0])
    expected = -(np.log(1 / (1 + np.exp(-0.3))) + np.log(1 - 1 / (1 + np.exp(1.2)))) / 2
    assert float(class_loss(logits, labels)) == pytest.approx(expected, rel=1e-12)
    assert float(class_loss(logits.view(1, 2, 1), labels[None])) == pytest.approx(expected, rel=1e-12)
    pair = torch.cat([torch.zeros_like(logits), logits], 1)  # two logits that say the same
    assert float(class_loss(pair, labels)) == pytest.approx(expected, rel=1e-12)
    assert float(class_loss(pair, torch.eye(2, dtype=torch.float64)[labels])) == pytest.approx(expected, rel=1e-12)


def test_a_network_that_is_a_tree_is_mimicked_without_error() -> None:
    step = nn.Linear(1, 1)
    step.weight.data.fill_(1.0), step.bias.data.fill_(-7.5)
    found = mimic(step, torch.from_numpy(LINE), TreeOptions(min_samples_leaf=1))
    assert (found.path_length, found.nodes, found.depth, found.fidelity) == (1.0, 3, 1, 1.0)
    assert step.training  # left as it was


def test_the_parabola_data() -> None:
    split = parabola(3)
    assert split.inputs.shape == (350, 2) and split.test_inputs.shape == (150, 2)
    points, labels = fresh_parabola(3)
    above = points[:, 1].numpy() - parabola_height(points[:, 0].double().numpy())
    wrong = (above > 0) != labels.numpy().astype(bool)
    near = np.abs(above) < BAND
    assert not wrong[~near].any()
    assert abs(wrong[near].mean() - 0.1) < 4 * (0.09 / near.sum()) ** 0.5
    assert torch.equal(parabola(3).inputs, split.inputs) and not torch.equal(parabola(4).inputs, split.inputs)


def test_the_markov_series() -> None:
    rng = np.random.default_rng(0)
    states, features = toy_markov_model().draw(400, 30, rng)
    stayed = (states[:, 1:] == states[:, :-1]).mean()
    assert abs(stayed - 0.8) < 4 * (0.16 / states[:, 1:].size) ** 0.5
    own = features[np.arange(400)[:, None], np.arange(30), states + 1].mean()
    assert abs(own - 0.8) < 4 * (0.16 / states.size) ** 0.5
    series, labels = markov_series(200, 10, np.random.default_rng(1))
    assert series.shape == (200, 10, 14) and labels.shape == (200, 10)
    with_feature = labels[series[..., 0] == 1].float().mean()  # the state is 1 of 5, the label then almost sure
    assert abs(float(with_feature) - 0.2) < 0.05
    assert float(labels[series[..., 0] == 0].float().mean()) < 0.02
    with pytest.raises(UserError, match="stay"):
        toy_markov_model(stay=1.0)
