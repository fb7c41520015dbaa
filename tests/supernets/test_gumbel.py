import math

import pytest
import torch
from small_spaces import three_layers

from supernets.gumbel import gumbel_noise, gumbel_weights, temperature
from supernets.supergraph import Supergraph


def test_weights_match_equation_3_4_away_from_tau_one() -> None:
    alpha, noise, tau = [0.3, -1.0, 0.7], [0.1, 0.9, -0.4], 0.5
    exponentials = [math.exp((a + e) / tau) for a, e in zip(alpha, noise, strict=True)]
    expected = torch.tensor([value / sum(exponentials) for value in exponentials])
    torch.testing.assert_close(gumbel_weights(torch.tensor(alpha), tau, torch.tensor(noise)), expected)


def test_weights_approach_one_hot_of_the_noisy_maximum() -> None:
    weights = gumbel_weights(torch.tensor([0.0, 0.2, 0.0]), 0.01, torch.tensor([0.5, 0.0, 0.1]))
    torch.testing.assert_close(weights, torch.tensor([1.0, 0.0, 0.0]))


def test_masks_of_channels_may_have_a_temperature_of_their_own() -> None:
    supergraph = Supergraph(three_layers(), 10, 3)
    noise = gumbel_noise(len(supergraph.alpha), torch.Generator().manual_seed(0))
    warm, cold = (supergraph.weights(tau, noise) for tau in (3.0, 0.5))
    mixed = supergraph.weights(3.0, noise, mask_tau=0.5)
    for name in supergraph.space.column:
        kind = name.split(".")[-1]  # resolution, block, expansion, width
        assert torch.equal(mixed[name], (cold if kind in ("expansion", "width") else warm)[name])
        assert not torch.equal(warm[name], cold[name])


@pytest.mark.parametrize("tau", [0.0, -1.0, float("nan")])
def test_temperature_must_be_positive(tau: float) -> None:
    with pytest.raises(ValueError, match="tau must be > 0"):
        gumbel_weights(torch.zeros(2), tau)


def test_noise_has_the_moments_of_a_standard_gumbel() -> None:
    n = 200_000
    noise = gumbel_noise(n, torch.Generator().manual_seed(3))
    deviation = math.pi / math.sqrt(6)
    assert abs(noise.mean().item() - 0.5772156649) < 4 * deviation / math.sqrt(n)
    # the variance of the sample variance of a Gumbel (kurtosis 5.4) is (5.4 - 1) sigma^4 / n
    assert abs(noise.var().item() - deviation**2) < 4 * math.sqrt(4.4 / n) * deviation**2


def test_noise_is_seeded() -> None:
    draws = [gumbel_noise(5, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_temperature_is_annealed_as_in_ninety_epochs() -> None:
    assert temperature(0.0) == 5.0
    assert temperature(1 / 90) == pytest.approx(5.0 * 0.956)
    assert temperature(1.0) == pytest.approx(0.0871, abs=1e-4)
