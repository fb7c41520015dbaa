"""Invariant 3: with one-hot weights the effective cost equals the exact cost; soft weights give the expected cost."""

import itertools

import numpy as np
import pytest
import torch
from small_spaces import three_layers

from search_spaces.cost import cost
from search_spaces.rows import Row, space_of_rows
from search_spaces.sampling import uniform_rows
from search_spaces.spaces import SPACES
from search_spaces.tables import SpaceTables
from supernets.effective import EffectiveCost, effective_channels
from supernets.supergraph import Supergraph


def random_weights(space: object, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        variable.name: torch.rand(len(variable.options), generator=generator, dtype=torch.float64).log_softmax(0).exp()
        for variable in space.variables  # type: ignore[attr-defined]
    }


@pytest.mark.parametrize("name", sorted(SPACES))
def test_one_hot_weights_give_the_exact_cost(name: str) -> None:
    space = SPACES[name]()
    effective = EffectiveCost(SpaceTables(space, num_classes=100, in_channels=3))
    for row in uniform_rows(space, 20, np.random.default_rng(5)):
        hot = {
            variable.name: torch.eye(len(variable.options))[int(option)]
            for variable, option in zip(space.variables, row, strict=True)
        }
        found = [float(entry) for entry in effective(hot)]
        assert found == list(cost(space.decode(row), num_classes=100, in_channels=3))


def test_thesis_example_of_effective_channels() -> None:
    """Thesis 3.3: 16 channels with weight 0.8 and 12 with 0.2 are 15.2 effective channels (Eq. 3.5)."""
    found = effective_channels(torch.tensor([0.8, 0.2]), torch.tensor([16, 12]))
    assert float(found) == pytest.approx(15.2)


def test_soft_weights_give_the_mean_over_all_networks() -> None:
    """Enumerates a whole space: effective cost = sum over networks of probability x exact cost (one resolution)."""
    rows = [
        Row(block=("ir_k3", "ir_k5_se_hs", "skip"), expansion=(0.75, 1.5), width=(8, 12)),
        Row(block=("ir_k5_se_hs", "skip"), expansion=(1.5, 3.0), width=(12, 16), stride=2),
    ]
    space = space_of_rows("enumerable", rows, resolutions=(11,), stem_width=12, head_width=16)
    tables = SpaceTables(space, num_classes=7, in_channels=2)
    weights = random_weights(space, seed=1)
    expected = np.zeros(3)
    for row in itertools.product(*(range(count) for count in space.option_counts)):
        probability = np.prod([float(weights[v.name][o]) for v, o in zip(space.variables, row, strict=True)])
        expected += probability * np.array(cost(space.decode(np.array(row)), num_classes=7, in_channels=2))
    np.testing.assert_allclose([float(entry) for entry in EffectiveCost(tables)(weights)], expected, rtol=1e-12)


def test_linear_in_every_channel_choice_and_quadratic_in_resolution() -> None:
    space = three_layers()
    effective = EffectiveCost(SpaceTables(space, num_classes=10, in_channels=3))
    weights = random_weights(space, seed=2)
    for variable in space.variables:
        a, b = (random_weights(space, seed)[variable.name] for seed in (3, 4))
        at = [
            float(effective({**weights, variable.name: (1 - t) * a + t * b}).flops) for t in (0.0, 0.25, 0.5, 0.75, 1.0)
        ]
        second, third = np.diff(at, 2), np.diff(at, 3)
        if variable.name == "resolution":
            assert abs(second).min() > 1e-6 * at[0]
            assert abs(third).max() < 1e-9 * at[0]
        else:
            assert abs(second).max() < 1e-9 * at[0]


def test_effective_sides_follow_equation_3_6() -> None:
    space = three_layers()
    effective = EffectiveCost(SpaceTables(space, num_classes=10, in_channels=3))
    weights = random_weights(space, seed=5)
    weights["resolution"] = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    expected = [  # image, stem (stride 2), layer 1, layer 2 (stride 2), layer 3; halves rounded up
        0.5 * 10 + 0.3 * 13 + 0.2 * 16,
        0.5 * 5 + 0.3 * 7 + 0.2 * 8,
        0.5 * 5 + 0.3 * 7 + 0.2 * 8,
        0.5 * 3 + 0.3 * 4 + 0.2 * 4,
        0.5 * 3 + 0.3 * 4 + 0.2 * 4,
    ]
    torch.testing.assert_close(effective.effective_sides(weights), torch.tensor(expected, dtype=torch.float64))


def test_gradient_reaches_every_alpha_and_matches_differences() -> None:
    space = three_layers()
    supergraph = Supergraph(space, 10, 3).double()
    supergraph.alpha.data.normal_(generator=torch.Generator().manual_seed(0))

    def flops() -> torch.Tensor:
        return supergraph.cost(supergraph.weights(0.5)).flops

    (gradient,) = torch.autograd.grad(flops(), supergraph.alpha)
    assert (gradient != 0).all()
    for index in range(len(gradient)):
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                supergraph.alpha[index] += step
                values.append(float(flops()))
                supergraph.alpha[index] -= step
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(float(gradient[index]), rel=1e-4, abs=1e-2)


def test_tied_widths_count_once() -> None:
    """FBNetV3 shares a width among the layers of a stage: its weights must not be squared."""
    space = SPACES["fbnetv3"]()
    tables = SpaceTables(space, num_classes=10, in_channels=3)
    hot = {v.name: torch.eye(len(v.options), dtype=torch.float64)[0] for v in space.variables}
    name, exact = "stage5.width", []
    count = len(space.variables[space.column[name]].options)
    for option in range(count):
        row = np.zeros(len(space), dtype=np.int64)
        row[space.column[name]] = option
        exact.append(int(tables.cost(row).flops[0]))
    uniform = torch.full((count,), 1 / count, dtype=torch.float64)
    found = float(EffectiveCost(tables)({**hot, name: uniform}).flops)
    assert found == pytest.approx(np.mean(exact), rel=1e-12)
