"""The surrogate, the penalty, its schedule, series models against sums over all state paths, and the command."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import nas
from nas.cli.main import run
from nas.trees.regularisation.path_length import TreeOptions, class_loss, mimic
from nas.trees.regularisation.penalty import (
    PERTURBATIONS,
    Observation,
    TreePenalty,
    TreeRegularisation,
    penalised_parameters,
)
from nas.trees.regularisation.series import GRUHMM, GRUClassifier, fit_markov
from nas.trees.regularisation.surrogate import Surrogate, SurrogateOptions, fit_surrogate, principal_directions
from nas.trees.regularisation.tasks import markov_task, parabola_task, regularise, table_task
from nas.trees.regularisation.toys import MarkovModel, Split, parabola, toy_markov_model
from nas.trees.regularisation.training import (
    RegularisationOptions,
    check_labels,
    perceptron,
    tracking,
    train_regularised,
    weight_norm,
)
from recipes.recipe import Recipe
from recipes.tensor_source import TensorSource
from recipes.trainer import fit
from search_spaces.errors import UserError

SMALL = TreePenalty(
    strength=0.1, warmup=2, ramp=0, every=2, perturbed=8, stored=24, surrogate=SurrogateOptions(steps=20)
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_principal_directions_are_those_of_the_covariance() -> None:
    weights = torch.randn(9, 30, generator=generator(), dtype=torch.float64) * torch.arange(1, 31)
    centre, projection = principal_directions(weights, 4)
    centred = (weights - weights.mean(0)).numpy()
    _, sizes, rows = np.linalg.svd(centred, full_matrices=False)
    expected = centred @ rows[:4].T / (sizes[0] / 3)  # of 9 vectors: the largest deviation is sizes[0] / sqrt(9)
    found = ((weights - centre) @ projection).numpy()
    assert np.allclose(np.abs(found), np.abs(expected), rtol=1e-8, atol=1e-10)
    assert found[:, 0].std() == pytest.approx(1, rel=1e-9)
    assert principal_directions(weights, 100)[1].shape == (30, 8)  # 9 vectors differ in 8 directions
    assert principal_directions(weights[:1].expand(5, -1), 4)[1].abs().sum() == 0


def test_a_surrogate_learns_a_length_that_depends_on_weights() -> None:
    slope = torch.randn(40, generator=generator(1)) / 40**0.5
    base = torch.randn(6, 40, generator=generator(2))
    seen, unseen = (torch.randn(count, 6, generator=generator(count)) @ base for count in (100, 20))
    length = lambda weights: 3 + torch.tanh(weights @ slope)  # noqa: E731
    surrogate, error = fit_surrogate(seen, length(seen), SurrogateOptions(steps=300), generator())
    away = surrogate(unseen) - length(unseen)
    assert error < 0.2 * float(length(seen).std())
    assert float(away.square().mean().sqrt()) < 0.5 * float(length(unseen).std())
    assert surrogate(unseen[0]).shape == () and not any(p.requires_grad for p in surrogate.parameters())
    assert float(surrogate(100 * unseen).min()) >= 0


def test_an_untrained_surrogate_is_the_same_for_the_same_generator() -> None:
    weights = torch.randn(5, 7, generator=generator())
    one, two = (Surrogate(weights, SurrogateOptions(), generator(3)) for _ in range(2))
    assert torch.equal(one(weights), two(weights))


def test_layers_by_name() -> None:
    model = perceptron(2, 1, 0, (4, 3))
    assert sum(p.numel() for p in penalised_parameters(perceptron(2, 1, 0), None).values()) == 11_421
    assert list(penalised_parameters(model, ["2", "4.bias"])) == ["2.weight", "2.bias", "4.bias"]
    for layers, words in (
        (["2.weigth"], "no layer '2.weigth'; did you mean '2.weight'"),
        (["1"], "no trainable weights"),
    ):
        with pytest.raises(UserError, match=words):
            penalised_parameters(model, layers)


def regularisation(config: TreePenalty = SMALL, layers: list[str] | None = None) -> TreeRegularisation:
    split = parabola(0)
    model = perceptron(2, 1, 0, (8, 8))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        class_loss(model(split.inputs), split.labels).backward()
        optimizer.step()
    optimizer.zero_grad()
    return TreeRegularisation(model, split.inputs, config, seed=0, layers=layers)


def test_path_lengths_of_other_weights() -> None:
    tree = regularisation(layers=["2", "4"])
    weights = tree.weights().detach() + 0.1 * torch.randn(tree.weights().shape, generator=generator())
    kept = tree.weights().detach().clone()
    found = tree.path_length(weights)
    assert torch.equal(tree.weights(), kept)  # the network is as it was
    nn.utils.vector_to_parameters(weights, [*tree.model[2].parameters(), *tree.model[4].parameters()])
    assert found == pytest.approx(mimic(tree.model, tree.inputs).path_length, rel=1e-12)
    assert tree.mimic().path_length == pytest.approx(found, rel=1e-12)
    assert tree.path_length(weights) == found  # the second time from memory


def test_the_schedule() -> None:
    tree = regularisation()
    assert float(tree.penalty()) == 0
    for epoch, surrogates in enumerate([0, 1, 1, 2, 2, 3], start=1):  # warm-up of 2, then every 2nd epoch
        seen = tree.epoch_done()
        assert (seen.epoch, tree.costs.fitted_surrogates) == (epoch, surrogates)
        assert math.isnan(seen.predicted) == (epoch <= 2)
    assert len(tree._weights) == len(tree._lengths) == 24
    assert tree.costs.trees > 0 and tree.costs.surrogates > 0
    assert tree.history[0].path_length == pytest.approx(mimic(tree.model, tree.inputs).path_length, rel=1e-12)


@pytest.mark.parametrize("perturbation", PERTURBATIONS)
def test_the_penalty_and_its_gradient(perturbation: str) -> None:
    tree = regularisation(replace(SMALL, perturbation=perturbation, strength=0.5))
    tree.epoch_done(), tree.epoch_done()
    assert len(tree._weights) == 2 + 8
    penalty = tree.penalty()
    assert tree.surrogate is not None
    weights = tree.weights().detach()
    assert float(penalty.detach()) == pytest.approx(0.5 * float(tree.surrogate(weights)), rel=1e-6)
    penalty.backward()
    gradient = torch.cat([p.grad.flatten() for p in tree.parameters.values()]).double()
    surrogate = tree.surrogate.double()
    step = gradient / gradient.norm() * 1e-4
    slope = (surrogate(weights.double() + step) - surrogate(weights.double() - step)) / 2e-4
    assert 0.5 * float(slope) == pytest.approx(float(gradient.norm()), rel=1e-3)


def test_the_strength_grows() -> None:
    tree = regularisation(replace(SMALL, ramp=3, every=100))
    found = []
    for _ in range(7):
        tree.epoch_done()
        length = 0.1 if tree.surrogate is None else float(tree.surrogate(tree.weights().detach()))
        found.append(float(tree.penalty().detach()) / length)
    assert found == pytest.approx([0, 0.025, 0.05, 0.075, 0.1, 0.1, 0.1], rel=1e-5)


def test_pulls_lead_towards_smaller_trees() -> None:
    tree = regularisation(replace(SMALL, perturbed=14))
    before = tree.mimic().path_length
    moved = [tree.path_length(weights) for weights in tree._pulled(tree.weights().detach())]
    assert len(moved) == 14 and before > 1.5
    assert np.mean(moved[-3:]) < before  # the last step of each way


def test_output_directions_change_outputs_alike() -> None:
    tree = regularisation()
    weights = tree.weights().detach()
    directions = tree._output_directions(weights, generator())
    size = float(tree._outputs(weights).square().mean().sqrt())
    changes = [tree._outputs(weights + 0.01 * d) - tree._outputs(weights - 0.01 * d) for d in directions[:4]]
    for change in changes:
        assert 0.2 < float(change.square().mean().sqrt()) / 0.02 / size < 5  # the singular values are estimates


def test_weights_of_another_run_may_be_added() -> None:
    tree = regularisation()
    other = torch.zeros_like(tree.weights())
    assert tree.add(other) == 0  # outputs are 0: one class
    assert tree._lengths == [0]


SHORT = RegularisationOptions(penalty="tree", strength=0.05, epochs=5, tree=SMALL)


def test_the_same_seed_gives_the_same_network_bit_for_bit() -> None:
    first, second, other = (
        train_regularised(perceptron(2, 1, 0, (8, 8)), parabola(0), SHORT, seed=seed) for seed in (0, 0, 1)
    )
    pairs = zip(first.model.parameters(), second.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs) and repr(first.history) == repr(second.history)
    assert not torch.equal(next(first.model.parameters()), next(other.model.parameters()))


def test_norms_by_hand() -> None:
    """A step of full-batch Adam has the sign of the gradient: after the warm-up the weights move towards 0."""
    first = RegularisationOptions(epochs=1, batch_size=350, lr=1e-9, tree=replace(SMALL, warmup=1))
    plain = train_regularised(perceptron(2, 1, 0, (8, 8)), parabola(0), first, seed=0).model
    before = torch.cat([p.detach().flatten() for p in plain.parameters()])
    for penalty, norm in (("l1", before.abs().sum()), ("l2", before.square().sum())):
        assert float(weight_norm([before], penalty)) == pytest.approx(float(norm), rel=1e-6)
        options = replace(first, penalty=penalty, strength=1e6, epochs=2, optimizer="adam", lr=1e-4,
                          tree=replace(SMALL, warmup=1))  # fmt: skip
        model = perceptron(2, 1, 0, (8, 8))
        middle: list[Tensor] = []
        train_regularised(model, parabola(0), options, seed=0, progress=lambda done, m=model, kept=middle: kept.append(
            torch.cat([p.detach().flatten().clone() for p in m.parameters()])))  # fmt: skip
        moved, clear = middle[1] - middle[0], middle[0].abs() > 1e-3
        towards = (moved[clear].sign() == -middle[0][clear].sign()).float().mean()
        assert float(towards) > 0.95  # all but what Adam's memory of the first epoch moves
        first_epoch = ((middle[0] - before)[clear].sign() == -before[clear].sign()).float().mean()
        assert 0.2 < float(first_epoch) < 0.8  # no penalty yet


def test_tracking_by_hand() -> None:
    seen = [
        Observation(epoch=i, path_length=t, predicted=p, nodes=1, fidelity=1.0)
        for i, (t, p) in enumerate([(9.0, math.nan), (1.0, 2.0), (3.0, 3.0)])
    ]
    assert tracking(seen) == {"surrogate_rmse": pytest.approx(0.5**0.5), "surrogate_r2": pytest.approx(0.5)}
    assert math.isnan(tracking(seen[:2])["surrogate_r2"])


def test_several_classes_and_a_series() -> None:
    rows = torch.rand(120, 3, generator=generator())
    labels = (rows[:, 0] > 0.4).long() + (rows[:, 1] > 0.7).long()
    split = Split(rows[:80], labels[:80], rows[80:], labels[80:], ("a", "b", "c"))
    result = train_regularised(perceptron(3, 3, 0, (8,)), split, SHORT, seed=0)
    assert math.isnan(result.auc) and 0 <= result.accuracy <= 100 and len(result.history) == 5
    task = markov_task(0, "gru-hmm", hidden=3)
    short = replace(SHORT, epochs=3, batch_size=50, tree=replace(SMALL, tree=TreeOptions(min_samples_leaf=25)))
    found = regularise(task, short, seed=0)
    assert found.mimic.tree.n_features_in_ == 14 and 0 < found.auc < 1
    assert (
        found.mimic.path_length
        == mimic(task.model.residual, task.split.inputs, TreeOptions(min_samples_leaf=25)).path_length
    )


def test_inside_the_one_training_loop() -> None:
    images = torch.randint(0, 256, (64, 4, 4, 1), generator=generator(), dtype=torch.uint8)
    labels = (images[:, 0, 0, 0] > 127).long()
    source = TensorSource(images, labels, mean=(0.5,), std=(0.3,))
    inputs, _ = next(source.batches(64, resolution=4))
    recipe = Recipe(name="short", epochs=4, batch_size=16, lr=0.05, mixup=0.2)

    def trained(strength: float | None) -> tuple[list[Tensor], TreeRegularisation | None]:
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        with torch.no_grad():
            for index, parameter in enumerate(model.parameters()):
                parameter.copy_(torch.randn(parameter.shape, generator=generator(index)) * 0.3)
        tree = (
            None if strength is None else TreeRegularisation(model, inputs, replace(SMALL, strength=strength), seed=0)
        )
        fit(model, source, None, recipe, resolution=4, seed=0, loss=tree, callbacks=[] if tree is None else [tree])
        return [p.detach().clone() for p in model.parameters()], tree

    plain, _ = trained(None)
    nothing, tree = trained(0.0)
    assert tree is not None and len(tree.history) == 4 and tree.costs.fitted_surrogates == 0
    assert all(torch.equal(a, b) for a, b in zip(plain, nothing, strict=True))
    strong, tree = trained(1.0)
    assert tree is not None and tree.costs.fitted_surrogates == 2
    assert not all(torch.equal(a, b) for a, b in zip(plain, strong, strict=True))


# Two states, two features, three steps: all 8 state paths.
HAND = MarkovModel(
    np.array([0.6, 0.4]), np.array([[0.7, 0.3], [0.2, 0.8]]), np.array([[0.9, 0.4], [0.2, 0.5]])
)  # fmt: skip
SEEN = np.array([[1, 0], [0, 0], [1, 1]])


def path_probability(path: tuple[int, ...], steps: int) -> float:
    """p(path, features of the first steps) by hand."""
    found = HAND.start[path[0]]
    for step in range(steps):
        found *= HAND.transition[path[step - 1], path[step]] if step else 1.0
        found *= np.prod(np.where(SEEN[step] == 1, HAND.emission[path[step]], 1 - HAND.emission[path[step]]))
    return float(found)


def test_the_filter_sums_over_all_state_paths() -> None:
    filtered = GRUHMM(HAND, hidden=2).filtered(torch.from_numpy(SEEN)[None].float())[0]
    for step in range(3):
        joint = [sum(path_probability(p, step + 1) for p in itertools.product((0, 1), repeat=step + 1) if p[-1] == s)
                 for s in (0, 1)]  # fmt: skip
        assert filtered[step].tolist() == pytest.approx([value / sum(joint) for value in joint], rel=1e-5)


def test_expectation_maximisation() -> None:
    from nas.trees.regularisation.series import _posteriors

    state, pair, log_likelihood = _posteriors(HAND, SEEN[None].astype(np.float64))
    paths = list(itertools.product((0, 1), repeat=3))
    chances = np.array([path_probability(path, 3) for path in paths])
    assert log_likelihood == pytest.approx(math.log(chances.sum()), rel=1e-10)
    chances /= chances.sum()
    for step, which in itertools.product(range(3), (0, 1)):
        expected = sum(c for c, path in zip(chances, paths, strict=True) if path[step] == which)
        assert state[0, step, which] == pytest.approx(expected, rel=1e-10)
    for before, after in itertools.product((0, 1), repeat=2):
        count = sum(
            c * sum(q == (before, after) for q in itertools.pairwise(p)) for c, p in zip(chances, paths, strict=True)
        )
        assert pair[before, after] == pytest.approx(count, rel=1e-10)
    _, features = toy_markov_model(clear=0.95).draw(200, 10, np.random.default_rng(0))
    fitted, curve = fit_markov(features, 5, np.random.default_rng(1), iterations=15)
    assert (np.diff(curve) > -1e-3).all() and curve[-1] > curve[0]
    assert np.allclose(fitted.transition.sum(1), 1) and fitted.start.sum() == pytest.approx(1)
    with pytest.raises(UserError, match="0 or 1"):
        fit_markov(np.full((1, 2, 3), 0.5), 2, np.random.default_rng(0))


def test_a_series_is_read_from_its_past_alone() -> None:
    markov = toy_markov_model()
    series = torch.randint(0, 2, (3, 6, 7), generator=generator()).float()
    changed = series.clone()
    changed[:, 4:] = 1 - changed[:, 4:]
    for model in (GRUClassifier(7, 5), GRUHMM(markov, 5)):
        assert torch.equal(model(series)[:, :4], model(changed)[:, :4])
        assert not torch.equal(model(series)[:, 4:], model(changed)[:, 4:])
    residual = GRUHMM(markov, 5)
    whole = residual.residual(series) + residual.states(residual.filtered(series))
    assert torch.equal(residual(series), whole)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.tensor([1, 1, 1]), "at least 2 classes, got class 1 only"),
        (torch.tensor([0.5, 1.25]), "got 0.5: tree regularisation is for classifiers, not for regression"),
        (torch.tensor([-1, 1]), ">= 0"),
    ],
)
def test_labels_that_are_no_classes(labels: Tensor, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_labels(labels)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """120 rows of two numbers, a class by name, one constant and one quantity."""
    rng = np.random.default_rng(0)
    rows = [f"{a:.3f},{b:.3f},{'high' if a > 0.5 else 'low'},yes,{a + b:.3f}" for a, b in rng.random((120, 2))]
    path = tmp_path / "table.csv"
    path.write_text("\n".join(["a,b,kind,constant,amount", *rows]))
    return path


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    command = ["tree-reg", "parabola", "--epochs", "3", "--warmup", "1", "--every", "1", "--max-depth", "3"]
    assert run([*command, "--out", str(out), "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    stored = json.loads((out / "result.json").read_text())
    options = RegularisationOptions(
        penalty="tree", strength=0.1, epochs=3, tree=TreePenalty(warmup=1, every=1, tree=TreeOptions(max_depth=3))
    )  # fmt: skip
    expected = regularise(parabola_task(0), options, seed=0)
    assert stored["accuracy"] == expected.accuracy and stored["path_length"] == expected.mimic.path_length
    assert f"{expected.accuracy:.2f} % of the test labels" in printed and "surrogate" in printed
    assert {p.name for p in out.iterdir()} >= {
        "config.json",
        "metrics.csv",
        "tree.txt",
        "weights.pt",
        "path_length.svg",
    }
    assert len((out / "metrics.csv").read_text().splitlines()) == 4


def test_a_table_of_ones_own(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = table.read_text().splitlines()
    mine = tmp_path / "mine.csv"
    mine.write_text("\n".join(",".join(line.split(",")[:3]) for line in text))
    assert (
        run(["tree-reg", "table", str(mine), "--label", "kind", "--penalty", "l2", "--epochs", "20", "--warmup", "5"])
        == 0
    )
    printed = capsys.readouterr().out
    assert "class: high" in printed and "a <=" in printed
    task = table_task(mine, "kind", seed=0)
    assert (len(task.split.inputs), len(task.split.test_inputs), task.classes) == (84, 36, ("high", "low"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["parabola", "--max-depth", "0"], "max_depth must be in 1..20, got 0"),
        (["parabola", "--max-depth", "30"], "max_depth must be in 1..20, got 30"),
        (["parabola", "--layers", "conv1"], "no layer 'conv1'"),
        (["parabola", "--penalty", "l3"], "unknown penalty 'l3'"),
        (["parabola", "--strength", "-1"], "strength must be >= 0"),
        (["parabola", "--strength", "nan"], "finite"),
        (["parabola", "--epochs", "20"], "warmup must be below"),
        (["parabola", "--seed", "-1"], "seed must be >= 0"),
        (["parabola", "--perturbation", "weigths"], "did you mean 'weights'"),
        (["markov", "--network", "lstm"], "unknown network 'lstm'"),
        (["table", "TABLE", "--label", "kinds"], "no column 'kinds'; did you mean 'kind'"),
        (["table", "TABLE", "--label", "constant"], "at least 2 classes, got 'yes' only"),
        (["table", "TABLE", "--label", "amount"], "not for regression"),
        (["table", "TABLE", "--label", "kind"], "column 'constant' must be numbers"),
        (["table", "/nowhere.csv", "--label", "kind"], "cannot read"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: list[str], words: str, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(table) if argument == "TABLE" else argument for argument in arguments]
    assert run(["tree-reg", *given, "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line
    assert not (tmp_path / "out").exists()


def test_the_facade() -> None:
    assert nas.UserError is UserError
