"""Schedules as pure functions of progress p in [0, 1], so that a short run ends as annealed as a long one."""

import math
from bisect import bisect_right
from collections.abc import Sequence

from recipes.recipe import Recipe

WARMUP_START = 0.01  # first factor of the warm-up: above 0, so that no step is wasted


def linear(progress: float) -> float:
    """From 1 down to 0 in a straight line."""
    return 1.0 - progress


def cosine(progress: float) -> float:
    """Half a cosine from 1 down to 0 (arXiv:1608.03983, Eq. 5 with eta_min = 0)."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def exponential(progress: float, decay_per_epoch: float, decay_epochs: float) -> float:
    """decay_per_epoch ** (decay_epochs * p); thesis 4.4 has 0.963 in 150 epochs."""
    return float(decay_per_epoch ** (decay_epochs * progress))


def step(progress: float, milestones: Sequence[float], factor: float) -> float:
    """`factor` to the power of the number of ascending `milestones` reached, a milestone itself included."""
    return float(factor ** bisect_right(milestones, progress))


def warmup(progress: float, length: float) -> float:
    """Straight rise from `WARMUP_START` at p = 0 to 1 at p = `length`, 1 from there on."""
    if progress >= length:
        return 1.0
    return WARMUP_START + (1.0 - WARMUP_START) * progress / length


def lr_factor(recipe: Recipe, progress: float) -> float:
    """Learning rate at progress p, as a factor of `recipe.lr`.

    Linear and cosine start when the warm-up ends and reach 0 at p = 1. Exponential and step are counted from the
    beginning, as published, and multiplied by the warm-up.

    Args:
        recipe: its `schedule`, that schedule's parameters, and its `warmup_epochs`.
        progress: (epoch + step / steps) / epochs, in [0, 1].

    Returns:
        In [0, 1].
    """
    length = recipe.warmup_epochs / recipe.epochs
    rest = max(0.0, (progress - length) / (1.0 - length))
    if recipe.schedule == "linear":
        factor = linear(rest)
    elif recipe.schedule == "cosine":
        factor = cosine(rest)
    elif recipe.schedule == "exponential":
        factor = exponential(progress, recipe.decay_per_epoch, recipe.decay_epochs)
    elif recipe.schedule == "step":
        factor = step(progress, recipe.milestones, recipe.step_factor)
    else:
        factor = 1.0
    return warmup(progress, length) * factor


def ema_decay(decay: float, updates: int) -> float:
    """Decay of a moving average after t updates, min(decay, (1 + t) / (10 + t)): a short run forgets its start."""
    return min(decay, (1 + updates) / (10 + updates))
