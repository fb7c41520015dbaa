"""Gumbel-softmax weights and their temperature (FBNetV2, thesis Eq. 3.4 and section 3.4)."""

import torch
from torch import Tensor


def gumbel_noise(size: int, generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise epsilon, `(size,)` float64, drawn as -log of an exponential variate."""
    exponential = torch.empty(size, dtype=torch.float64).exponential_(generator=generator)
    return -exponential.clamp_min(torch.finfo(torch.float64).tiny).log()


def gumbel_weights(alpha: Tensor, tau: float, noise: Tensor | float = 0.0) -> Tensor:
    """g_i = exp((alpha_i + epsilon_i) / tau) / sum (thesis Eq. 3.4).

    Args:
        alpha: `(n_choices,)` logits.
        tau: temperature, > 0.
        noise: `(n_choices,)` Gumbel noise, or 0 for none.

    Returns:
        `(n_choices,)`, non-negative, sums to 1.

    Raises:
        ValueError: tau is not positive.
    """
    if not tau > 0:
        raise ValueError(f"tau must be > 0, got {tau}")
    return torch.softmax((alpha + noise) / tau, dim=0)


def keep_two(weights: Tensor) -> Tensor:
    """The two largest weights, made to sum to 1; the others become 0 and get no gradient.

    The largest of Gumbel weights are draws without replacement in proportion to exp(alpha), so this runs two sampled choices,
    as ProxylessNAS does (Cai et al., ICLR 2019, section 3.2.2). It is biased: what is left out does not count in the mixture.
    The bias vanishes as tau goes to 0, where two weights have all there is.

    Args:
        weights: `(n_choices,)`, non-negative.

    Returns:
        `(n_choices,)`; the weights themselves where there are two or fewer.
    """
    if len(weights) <= 2:
        return weights
    kept, chosen = weights.topk(2)
    return torch.zeros_like(weights).scatter(0, chosen, kept / kept.sum())


def temperature(progress: float, tau_start: float = 5.0, decay: float = 0.956, horizon: float = 90.0) -> float:
    """Annealed temperature tau_start * decay ** (horizon * progress).

    The thesis lowers tau from 5.0 by exp(-0.045), about 0.956, in each of 90 epochs; as a function of progress in [0, 1] a
    shorter search ends just as cold (0.087).
    """
    return float(tau_start * decay ** (horizon * progress))
