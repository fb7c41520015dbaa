"""Toy data of tree regularisation: the parabola and the signal-and-noise hidden Markov series (document 002)."""
# N sequences, T time steps, S states, D binary features of one Markov model

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from search_spaces.seeding import numpy_rng
from search_spaces.serialisation import require

POINTS, HELD_OUT = 500, 0.3  # document 002: 500 points, "a random 30% split was held out"
FLIPPED = 0.1  # share of the labels near the boundary, document 002
BAND = 0.2  # half the height of the region near it; not printed, see docs/tree_regularisation.md
FRESH = 10_000  # further points of the same distribution: the published 150 test points tell accuracies to 2 % only
STATES, FEATURES = 5, 7  # of each of both Markov models (the public code)


@dataclass(frozen=True, eq=False)
class Split:
    """Inputs and labels for training and testing.

    Attributes:
        inputs: `(n, d)`, or `(N, T, d)` of series; float32.
        labels: `(n,)` or `(N, T)` int64.
        test_inputs: the same of the test part.
        test_labels: the same.
        features: d names.
    """

    inputs: Tensor
    labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor
    features: tuple[str, ...]


def parabola_height(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The boundary, 5 (x - 0.5)^2 + 0.4, at `(n,)`; document 002 draws it without a formula."""
    height: npt.NDArray[np.float64] = 5 * (x - 0.5) ** 2 + 0.4
    return height


def parabola_points(count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Points uniform in the unit square, class 1 above the parabola; one in ten flipped within 0.2 above or below it.

    Args:
        count: n.
        rng: of points and flips.

    Returns:
        Points `(n, 2)` float32 and labels `(n,)` int64.
    """
    points = rng.random((count, 2))
    above = points[:, 1] - parabola_height(points[:, 0])
    flipped = (np.abs(above) < BAND) & (rng.random(count) < FLIPPED)
    return torch.from_numpy(points.astype(np.float32)), torch.from_numpy(((above > 0) ^ flipped).astype(np.int64))


def parabola(seed: int) -> Split:
    """350 training points and 150 test points (document 002)."""
    require(seed >= 0, f"seed must be >= 0, got {seed}")
    points, labels = parabola_points(POINTS, numpy_rng(seed, "parabola"))
    train = round(POINTS * (1 - HELD_OUT))
    return Split(points[:train], labels[:train], points[train:], labels[train:], ("x", "y"))


def fresh_parabola(seed: int, count: int = FRESH) -> tuple[Tensor, Tensor]:
    """More points of the same distribution, none of them `parabola`'s."""
    return parabola_points(count, numpy_rng(seed, "fresh parabola"))


@dataclass(frozen=True, eq=False)
class MarkovModel:
    """A hidden Markov model with binary features.

    Attributes:
        start: `(S,)`, probability of each state at the first step.
        transition: `(S, S)`, row: state before, sums to 1.
        emission: `(S, D)`, probability of each feature's being 1.
    """

    start: npt.NDArray[np.float64]
    transition: npt.NDArray[np.float64]
    emission: npt.NDArray[np.float64]

    def draw(
        self, sequences: int, steps: int, rng: np.random.Generator
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """States `(N, T)` and features `(N, T, D)`; the loop is over time steps, sequences are drawn together."""
        states = np.empty((sequences, steps), dtype=np.int64)
        likely = np.broadcast_to(self.start, (sequences, len(self.start)))
        for step in range(steps):
            below = likely.cumsum(1)[:, :-1] < rng.random((sequences, 1))
            states[:, step] = below.sum(1)
            likely = self.transition[states[:, step]]
        features = rng.random((sequences, steps, self.emission.shape[1])) < self.emission[states]
        return states, features.astype(np.int64)


def toy_markov_model(stay: float = 0.8, clear: float = 0.8) -> MarkovModel:
    """A Markov model of 5 states and 7 features: state s shows in feature s + 1, feature 0 is a fair coin in all of them.

    Args:
        stay: probability of staying in a state, in (0, 1); else any other one follows.
        clear: probability of a state's own feature, in (0, 1); the others have 1 - it.
    """
    require(0 < stay < 1 and 0 < clear < 1, f"stay and clear must be in (0, 1), got {stay} and {clear}")
    transition = np.full((STATES, STATES), (1 - stay) / (STATES - 1))
    np.fill_diagonal(transition, stay)
    emission = np.full((STATES, FEATURES), 1 - clear)
    emission[np.arange(STATES), np.arange(STATES) + 1] = clear
    emission[:, 0] = 0.5
    return MarkovModel(np.full(STATES, 1 / STATES), transition, emission)


def markov_series(sequences: int, steps: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Signal and noise side by side; a step's label is drawn with probability sigmoid(10 s + 10 x - 15).

    s is 1 in the signal's first state and x is the signal's first feature (the public code): both must be 1. The noise model
    is another one of the same kind and decides nothing. Transitions and emissions are our own.

    Args:
        sequences: N.
        steps: T.
        rng: of everything.

    Returns:
        Features `(N, T, 14)` float32 and labels `(N, T)` int64.
    """
    require(sequences >= 1 and steps >= 1, f"sequences and steps must be >= 1, got {sequences} and {steps}")
    states, signal = toy_markov_model().draw(sequences, steps, rng)
    _, noise = toy_markov_model().draw(sequences, steps, rng)
    logit = 10.0 * (states == 0) + 10.0 * signal[..., 0] - 15.0
    labels = rng.random((sequences, steps)) < 1 / (1 + np.exp(-logit))
    features = np.concatenate([signal, noise], axis=2).astype(np.float32)
    return torch.from_numpy(features), torch.from_numpy(labels.astype(np.int64))


def markov(seed: int, sequences: int = 100, steps: int = 10, test_sequences: int = 1000) -> Split:
    """Series for training and testing; the public code has 10 sequences of 10 steps for each, too few to tell methods apart.

    Args:
        seed: of everything.
        sequences: for training.
        steps: of each sequence.
        test_sequences: for testing.
    """
    require(seed >= 0, f"seed must be >= 0, got {seed}")
    inputs, labels = markov_series(sequences, steps, numpy_rng(seed, "markov"))
    test_inputs, test_labels = markov_series(test_sequences, steps, numpy_rng(seed, "markov test"))
    names = [f"{kind}{index + 1}" for kind in ("signal", "noise") for index in range(FEATURES)]
    return Split(inputs, labels, test_inputs, test_labels, tuple(names))
