"""Networks for time series: a GRU, and the residual GRU-HMM (document 002, "A residual GRU-HMM model")."""
# N sequences, T time steps, S states, D binary features

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from nas.trees.regularisation.toys import MarkovModel
from search_spaces.serialisation import require

SMOOTHING = 1e-2  # pseudo-count of every event, so that no probability becomes 0


class GRUClassifier(nn.Module):
    """A GRU with a learned initial state and one linear output: series `(N, T, D)` to logits `(N, T, k)`."""

    def __init__(self, features: int, hidden: int = 20, outputs: int = 1) -> None:
        """Freshly initialised from torch's generator.

        Args:
            features: D.
            hidden: units; 20 in the public code.
            outputs: k; 1 for two classes.
        """
        super().__init__()
        self.start = nn.Parameter(torch.zeros(hidden))
        self.gru = nn.GRU(features, hidden, batch_first=True)
        self.output = nn.Linear(hidden, outputs)

    def forward(self, series: Tensor) -> Tensor:
        """Logits of every step, from the steps up to it."""
        start = self.start.expand(1, len(series), -1).contiguous()
        states, _ = self.gru(series, start)
        logits: Tensor = self.output(states)
        return logits


class GRUHMM(nn.Module):
    """The HMM's state probabilities and a GRU add up to the logits: the GRU models what the states leave unexplained.

    The path length is that of ``residual``, the GRU with its output, alone: give that part to `TreeRegularisation`. The
    HMM stays free (document 002); it is fitted beforehand and only the weights of its states train with the GRU.

    Attributes:
        residual: series to the GRU's share of the logits.
        states: S state probabilities to theirs.
    """

    start: Tensor
    transition: Tensor
    emission: Tensor

    def __init__(self, markov: MarkovModel, hidden: int = 20, outputs: int = 1) -> None:
        """Put a GRU beside a fitted HMM.

        Args:
            markov: of the series' features.
            hidden: units of the GRU.
            outputs: k; 1 for two classes.
        """
        super().__init__()
        for name in ("start", "transition", "emission"):
            self.register_buffer(name, torch.from_numpy(getattr(markov, name)).float())
        self.residual = GRUClassifier(markov.emission.shape[1], hidden, outputs)
        self.states = nn.Linear(len(markov.start), outputs)

    def forward(self, series: Tensor) -> Tensor:
        """Logits `(N, T, k)` of series `(N, T, D)`."""
        logits: Tensor = self.states(self.filtered(series)) + self.residual(series)
        return logits

    def filtered(self, series: Tensor) -> Tensor:
        """p(state | features up to the step), `(N, T, S)`."""
        log_likelihood = series @ self.emission.log().T + (1 - series) @ (1 - self.emission).log().T
        likelihood = (log_likelihood - log_likelihood.amax(-1, keepdim=True)).exp()
        before, found = self.start.expand(len(series), -1), []
        for step in range(series.shape[1]):
            joint = before * likelihood[:, step]
            now = joint / joint.sum(1, keepdim=True)
            found.append(now)
            before = now @ self.transition
        return torch.stack(found, 1)


def fit_markov(
    series: npt.ArrayLike, states: int, rng: np.random.Generator, *, iterations: int = 50
) -> tuple[MarkovModel, list[float]]:
    """Hidden Markov model with binary features by expectation maximisation (Baum-Welch), all sequences at once.

    Args:
        series: `(N, T, D)` of 0 and 1.
        states: S >= 2.
        rng: of the first guess.
        iterations: >= 1.

    Returns:
        The model, and the log-likelihood of a sequence before each iteration, which never falls but for the smoothing.

    Raises:
        UserError: features that are not binary, or sizes below these.
    """
    x = np.asarray(series, dtype=np.float64)
    require(x.ndim == 3 and x.size > 0, f"series must be (sequences, steps, features), got {x.shape}")
    require(bool(np.isin(x, (0, 1)).all()), "the features of a hidden Markov model must be 0 or 1")
    require(states >= 2 and iterations >= 1, f"states must be >= 2 and iterations >= 1, got {states} and {iterations}")
    mean = x.mean((0, 1))
    emission = np.clip(mean + rng.uniform(-0.25, 0.25, (states, x.shape[2])), 0.05, 0.95)
    model = MarkovModel(
        np.full(states, 1 / states), (np.full((states, states), 0.5 / states) + np.eye(states) * 0.5), emission
    )
    curve = []
    for _ in range(iterations):
        state, pair, log_likelihood = _posteriors(model, x)
        curve.append(log_likelihood / len(x))
        start = state[:, 0].sum(0) + SMOOTHING
        transition = pair + SMOOTHING
        shown, count = np.einsum("nts,ntd->sd", state, x), state.sum((0, 1))[:, None]
        model = MarkovModel(
            start / start.sum(), transition / transition.sum(1, keepdims=True),
            (shown + SMOOTHING) / (count + 2 * SMOOTHING),
        )  # fmt: skip
    return model, curve


def _posteriors(
    model: MarkovModel, x: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], float]:
    """p(state | all features) `(N, T, S)`, expected transitions `(S, S)` and the log-likelihood; scaled forward-backward."""
    log_seen = x @ np.log(model.emission).T + (1 - x) @ np.log(1 - model.emission).T
    largest = log_seen.max(-1, keepdims=True)
    seen = np.exp(log_seen - largest)
    steps = x.shape[1]
    forward, scale = np.empty_like(seen), np.empty(seen.shape[:2])
    before = np.broadcast_to(model.start, seen[:, 0].shape)
    for step in range(steps):
        joint = before * seen[:, step]
        scale[:, step] = joint.sum(1)
        forward[:, step] = joint / scale[:, step, None]
        before = forward[:, step] @ model.transition
    backward = np.ones_like(seen)
    for step in range(steps - 2, -1, -1):
        after = backward[:, step + 1] * seen[:, step + 1] / scale[:, step + 1, None]
        backward[:, step] = after @ model.transition.T
    after = backward[:, 1:] * seen[:, 1:] / scale[:, 1:, None]
    pair = model.transition * np.einsum("nti,ntj->ij", forward[:, :-1], after)
    return forward * backward, pair, float(np.log(scale).sum() + largest.sum())
