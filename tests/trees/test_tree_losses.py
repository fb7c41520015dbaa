"""Tree supervision against sums by hand, and inside the one training loop."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from nas.trees.hierarchy import Hierarchy
from nas.trees.induced import flat_hierarchy, model_hierarchy
from nas.trees.losses import (
    FORMS,
    MidTrainingTrees,
    TreeSupervision,
    Weight,
    hard_tree_loss,
    soft_tree_loss,
    xent_on_probs,
)
from nas.trees.rules import SoftRule
from recipes.recipe import Recipe
from recipes.run_folder import RunFolder
from recipes.tensor_source import TensorSource
from recipes.trainer import Callback, TrainState, fit
from search_spaces.errors import UserError

HAND = Hierarchy(("plane", "cat", "car", "dog", "bird"), ((1, 3), (0, 4, 2), (5, 6)), ("pet", "", "all"))
LOGITS = torch.randn(6, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
LABELS = torch.tensor([1, 0, 4, 1, 3, 0])


def node_cross_entropies(logits: Tensor, label: int) -> dict[int, float]:
    """Cross entropy of each decision on the path of a label, by hand."""
    score = {node: float(logits[HAND.leaves_of(node)].mean()) for node in range(HAND.nodes)}
    node, found = label, {}
    while node != HAND.root:
        parent = int(HAND.parents[node])
        total = sum(math.exp(score[child]) for child in HAND.children_of(parent))
        found[parent] = -math.log(math.exp(score[node]) / total)
        node = parent
    return found


EACH = [node_cross_entropies(row, int(label)) for row, label in zip(LOGITS, LABELS, strict=True)]


@pytest.mark.parametrize("dense", [True, False])
def test_forms_of_the_tree_loss_by_hand(dense: bool) -> None:
    rule = SoftRule(HAND, dense=dense)
    log_p, choices = rule(LOGITS), rule.choices(rule.scores(LOGITS))
    by_path = np.mean([sum(each.values()) for each in EACH])
    assert float(soft_tree_loss(log_p, LABELS)) == pytest.approx(by_path, rel=1e-12)
    assert float(hard_tree_loss(rule, choices, LABELS)) == pytest.approx(by_path / 3, rel=1e-12)
    by_node = [np.mean([each[node] for each in EACH if node in each]) for node in (5, 6, 7)]
    alike = hard_tree_loss(rule, choices, LABELS, nodes_alike=True)
    assert float(alike) == pytest.approx(np.sum(by_node) / 3, rel=1e-12)
    again = np.mean([
        -math.log(math.exp(p[k]) / np.exp(p).sum()) for p, k in zip(log_p.exp().numpy(), LABELS, strict=True)
    ])  # fmt: skip
    assert float(xent_on_probs(log_p, LABELS)) == pytest.approx(again, rel=1e-12)


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_certain_soft_targets_are_labels(form: str, dense: bool) -> None:
    rule = SoftRule(HAND, dense=dense)
    hot = functional.one_hot(LABELS, 5).double()
    log_p, choices = rule(LOGITS), rule.choices(rule.scores(LOGITS))
    losses = {
        "nll": lambda t: soft_tree_loss(log_p, t),
        "xent_on_probs": lambda t: xent_on_probs(log_p, t),
        "hard": lambda t: hard_tree_loss(rule, choices, t),
        "hard_nodes": lambda t: hard_tree_loss(rule, choices, t, nodes_alike=True),
    }
    torch.testing.assert_close(losses[form](hot), losses[form](LABELS), rtol=1e-12, atol=0)
    if form != "hard_nodes":  # the others are linear in the targets
        other = functional.one_hot(LABELS.flip(0), 5).double()
        mixed = 0.3 * losses[form](hot) + 0.7 * losses[form](other)
        torch.testing.assert_close(losses[form](0.3 * hot + 0.7 * other), mixed, rtol=1e-12, atol=0)


def test_nodes_that_no_sample_passes_cost_nothing() -> None:
    rule = SoftRule(HAND)
    logits = LOGITS.clone().requires_grad_()
    cats = torch.ones(6, dtype=torch.int64)
    loss = hard_tree_loss(rule, rule.choices(rule.scores(logits)), cats, nodes_alike=True)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    expected = np.mean([sum(node_cross_entropies(row, 1).values()) for row in LOGITS]) / 3
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-12)


def test_a_perfect_prediction_costs_nothing_but_in_the_form_of_the_package() -> None:
    log_p = torch.log(torch.eye(10) + 1e-30)
    labels = torch.arange(10)
    assert float(soft_tree_loss(log_p, labels)) == pytest.approx(0, abs=1e-6)
    assert float(xent_on_probs(log_p, labels)) == pytest.approx(math.log(math.e + 9) - 1, rel=1e-6)  # 1.4612


@pytest.mark.parametrize(
    ("weight", "values"),
    [
        (Weight(0.0, 5.0), (0.0, 1.25, 5.0)),
        (Weight(1.0, 0.0), (1.0, 0.75, 0.0)),
        (Weight(0.5), (0.5, 0.5, 0.5)),
        (Weight(1.0, 2.0, power=2.0), (1.0, 1.0625, 2.0)),
    ],
)
def test_schedules(weight: Weight, values: tuple[float, ...]) -> None:
    assert [weight.at(t) for t in (0.0, 0.25, 1.0)] == pytest.approx(values)


@pytest.mark.parametrize("wrong", [(-1.0,), (0.0, -1.0), (0.0, 1.0, 0.0), (math.nan,)])
def test_wrong_schedules(wrong: Any) -> None:
    with pytest.raises(UserError):
        Weight(*wrong)


class Constant(nn.Module):
    """Gives the same logits for any images."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: Tensor) -> Tensor:
        return self.logits


IMAGES = torch.zeros(6, 1, 2, 2)


@pytest.mark.parametrize("progress", [0.0, 0.3])
def test_equation_5_3(progress: float) -> None:
    loss = TreeSupervision(HAND, omega=Weight(0.0, 5.0), beta=Weight(1.0, 0.0))
    by_tree = np.mean([sum(each.values()) for each in EACH])
    original = float(functional.cross_entropy(LOGITS, LABELS))
    expected = (1 - progress) * original + 5 * progress * by_tree
    assert float(loss(Constant(LOGITS), IMAGES, LABELS, progress)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_smoothed_and_taught_targets(form: Any) -> None:
    """On the flat tree all is the plain cross entropy with the targets mixed by hand."""
    taught = torch.randn(6, 5, generator=torch.Generator().manual_seed(9))
    targets = 0.6 * (0.9 * functional.one_hot(LABELS, 5) + 0.1 / 5) + 0.4 * functional.softmax(taught / 2, dim=1)
    options: Any = {"teacher": Constant(taught), "distillation": 0.4, "temperature": 2.0, "label_smoothing": 0.1}
    loss = TreeSupervision(flat_hierarchy("abcde"), omega=Weight(1.0), beta=Weight(0.0), form=form, **options)
    expected = functional.cross_entropy(LOGITS.softmax(1) if form == "xent_on_probs" else LOGITS, targets.double())
    assert float(loss(Constant(LOGITS), IMAGES, LABELS, 0.0)) == pytest.approx(float(expected), rel=1e-6)


def test_wrong_settings() -> None:
    for options in ({"form": "nlll"}, {"label_smoothing": 1.0}, {"distillation": 0.5}, {"temperature": 0.0}):
        with pytest.raises(UserError):
            TreeSupervision(HAND, **options)  # type: ignore[arg-type]
    for plan in ({"start": 0}, {"start": 9, "end": 8}, {"start": 10}, {"period": 0}):
        with pytest.raises(UserError):
            MidTrainingTrees(("a", "b"), epochs=10, **({"start": 1, "end": 10} | plan))


CLASSES = ("a", "b", "c", "d")
RECIPE = Recipe(name="plain", epochs=5, batch_size=16, lr=0.1, schedule="linear", mixup=0.4)


def images(seed: int, count: int = 64) -> TensorSource:
    rng = np.random.default_rng(seed)
    labels = torch.as_tensor(rng.integers(0, 4, count))
    pixels = rng.integers(0, 60, size=(count, 8, 8, 1)) + 50 * labels.numpy()[:, None, None, None]
    return TensorSource(torch.as_tensor(pixels, dtype=torch.uint8), labels, mean=[0.5], std=[0.3])


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 4))
    return nn.Sequential(*layers)


def trained(**options: Any) -> Any:
    return fit(net(), images(0), images(1), RECIPE, resolution=8, seed=3, **options)


@pytest.mark.parametrize("form", FORMS)
def test_the_training_loop_takes_it_with_mixup(form: Any) -> None:
    tree = Hierarchy(CLASSES, ((0, 1), (2, 3), (4, 5)), ("", "", ""))
    result = trained(loss=TreeSupervision(tree, form=form, omega=Weight(0.5), beta=Weight(1.0)))
    assert result.evaluation.accuracy > 60
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]


class Watch(Callback):
    """Which tree each step used."""

    def __init__(self, trees: MidTrainingTrees) -> None:
        self.trees, self.used = trees, []

    def on_step_end(self, state: TrainState) -> None:
        rule = self.trees.rule_at((state.epoch + state.step / state.steps) / RECIPE.epochs)
        self.used.append((state.epoch, None if rule is None else rule.hierarchy.children))


def test_trees_are_rebuilt_from_the_weights_of_their_epoch() -> None:
    expected: dict[int, Any] = {}

    class Induced(Callback):
        def on_epoch_end(self, state: TrainState) -> None:
            expected[state.epoch + 1] = model_hierarchy(state.model, CLASSES).children

    trees = MidTrainingTrees(CLASSES, epochs=5, start=2, end=4, period=2)
    watch = Watch(trees)
    trained(loss=TreeSupervision(trees), callbacks=[trees, watch, Induced()])
    assert sorted(trees.rules) == [2, 4]
    for epoch, children in watch.used:
        assert children == (None if epoch < 2 else expected[2] if epoch < 4 else expected[4])


def test_before_there_is_a_tree_the_cross_entropy_stands_for_both() -> None:
    trees = MidTrainingTrees(tuple("abcde"), epochs=10, start=5, end=9)
    loss = TreeSupervision(trees, omega=Weight(3.0), beta=Weight(0.25))
    expected = 3.25 * float(functional.cross_entropy(LOGITS, LABELS))
    assert float(loss(Constant(LOGITS), IMAGES, LABELS, 0.2)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("killed", [1, 3, 4])
def test_a_resumed_run_uses_the_same_trees(killed: int, tmp_path: Path) -> None:
    class Kill(Callback):
        def on_epoch_end(self, state: TrainState) -> None:
            if state.epoch == killed:
                raise KeyboardInterrupt

    def run(name: str, *more: Callback, resume: bool = False) -> Any:
        with RunFolder(tmp_path / name, {}, seed=3, resume=resume) as folder:
            trees = MidTrainingTrees(CLASSES, epochs=5, start=1, end=4, period=3, folder=folder.path)
            return trained(loss=TreeSupervision(trees), callbacks=[trees, *more], run=folder, resume=resume)

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("part", Kill())
    resumed = run("part", resume=True)
    for a, b in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
