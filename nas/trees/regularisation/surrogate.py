"""The surrogate of tree regularisation: a network's weights to the path length of the tree that mimics it (document 002).

A path length has no gradient: trees are fitted, not differentiated. A small perceptron of the flattened weights has one.
"""
# D weights of the network, J stored weight vectors, r directions that they span

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from search_spaces.serialisation import require, require_finite

SMALL = 1e-6  # of the largest eigenvalue: directions without variance are left out
ALIKE = 1e-12  # of the weights' squares: what differs by less differs by rounding


@dataclass(frozen=True, kw_only=True, slots=True)
class SurrogateOptions:
    """How a surrogate is fitted.

    Attributes:
        hidden: units of its one layer; 25 (document 002).
        steps: of Adam, each on all stored weight vectors.
        lr: of Adam.
        weight_decay: epsilon, weight of the squared norm of the surrogate's own weights in its loss.
        directions: r at most.
    """

    hidden: int = 25
    steps: int = 60
    lr: float = 0.02
    weight_decay: float = 1e-2
    directions: int = 12

    def __post_init__(self) -> None:
        for name in ("hidden", "steps", "directions"):
            require(getattr(self, name) >= 1, f"{name} must be >= 1, got {getattr(self, name)}")
        require_finite(lr=self.lr, weight_decay=self.weight_decay)
        require(
            self.lr > 0 and self.weight_decay >= 0,
            f"lr must be > 0 and weight_decay >= 0, got {self.lr} and {self.weight_decay}",
        )


class Surrogate(nn.Module):
    """Omega-hat: weights `(m, D)` or `(D,)` to path lengths `(m,)` or `()`.

    Weights are normalised first: their mean is subtracted, and what is left is projected on the r directions in which the
    stored weight vectors differ most, in units of the largest spread. So the first layer has r instead of D inputs, of which
    nothing could be learned from J < D vectors in any other direction. Then `hidden` tanh units and a softplus.
    """

    centre: Tensor
    projection: Tensor

    def __init__(self, weights: Tensor, options: SurrogateOptions, generator: torch.Generator) -> None:
        """Untrained, normalised for the weight vectors that it will be fitted to.

        Args:
            weights: `(J, D)`, J >= 2.
            options: see there.
            generator: of the initial weights; on the CPU.
        """
        super().__init__()
        centre, projection = principal_directions(weights, options.directions)
        self.register_buffer("centre", centre)
        self.register_buffer("projection", projection)
        directions = projection.shape[1]
        self.hidden, self.output = blank_linear(directions, options.hidden), blank_linear(options.hidden, 1)
        for layer in (self.hidden, self.output):
            bound = layer.in_features**-0.5
            for parameter in layer.parameters():
                drawn = torch.rand(parameter.shape, generator=generator) * 2 * bound - bound
                parameter.data.copy_(drawn)
        self.to(weights.device)

    @classmethod
    def restored(cls, state: Mapping[str, Tensor], device: torch.device) -> "Surrogate":
        """Inverse of `state_dict`, frozen as `fit_surrogate` leaves it.

        Raises:
            KeyError: something is missing.
            RuntimeError: shapes that do not fit together.
        """
        directions, units = state["projection"].shape[1], len(state["hidden.bias"])
        pair = torch.zeros(2, len(state["centre"]))
        made = cls(pair, SurrogateOptions(hidden=units), torch.Generator())
        made.projection = torch.empty_like(state["projection"])
        made.hidden = blank_linear(directions, units)
        made.load_state_dict(state)
        return made.to(device).requires_grad_(False)

    def forward(self, weights: Tensor) -> Tensor:
        """Predicted path lengths."""
        return self.head((weights - self.centre) @ self.projection)

    def head(self, coordinates: Tensor) -> Tensor:
        """The same of normalised weights `(m, r)`."""
        lengths: Tensor = functional.softplus(self.output(torch.tanh(self.hidden(coordinates)))).squeeze(-1)
        return lengths


def blank_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer whose weights are yet to be set: torch's global generator is not drawn from."""
    made: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs)  # type: ignore[no-untyped-call]
    return made


def principal_directions(weights: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Mean `(D,)` of weight vectors `(J, D)` and the map `(D, r)` to coordinates, the first of which has variance 1.

    All are in its unit: in units of their own the surrogate would make much of directions in which the vectors hardly differ.

    By the eigenvectors of the J x J matrix of inner products, as J is far below D.
    """
    centre = weights.mean(0)
    centred = weights - centre
    products = (centred @ centred.T).double()
    require(
        bool(products.isfinite().all()), "the network's weights have become too large for a surrogate; try a lower lr"
    )
    values, vectors = torch.linalg.eigh(products)
    kept = torch.arange(len(values) - 1, -1, -1, device=weights.device)[:most]
    rounding = ALIKE * weights.double().square().sum()
    kept = kept[values[kept] > torch.maximum(SMALL * values[-1], rounding)]
    if len(kept) == 0:  # all alike
        return centre, weights.new_zeros(weights.shape[1], 1)
    scaled = vectors[:, kept] / values[kept].sqrt()
    spread = (values[-1] / len(weights)).sqrt()
    return centre, (centred.T @ scaled.to(weights.dtype)) / spread.to(weights.dtype)


def fit_surrogate(
    weights: Tensor, lengths: Tensor, options: SurrogateOptions, generator: torch.Generator
) -> tuple[Surrogate, float]:
    """A surrogate with the least mean squared error on stored weight vectors, frozen.

    Args:
        weights: `(J, D)`, J >= 2.
        lengths: `(J,)`, path lengths.
        options: see there.
        generator: of the initial weights; on the CPU.

    Returns:
        The surrogate, and the root of its mean squared error on these vectors.
    """
    surrogate = Surrogate(weights, options, generator)
    coordinates = (weights - surrogate.centre) @ surrogate.projection
    mean = lengths.mean().clamp(min=0.05)
    surrogate.output.bias.data.fill_(float(mean.expm1().log()))  # softplus of it is the mean
    optimizer = torch.optim.Adam(surrogate.parameters(), lr=options.lr)
    error = torch.zeros(())
    for _ in range(options.steps):
        error = functional.mse_loss(surrogate.head(coordinates), lengths)
        size = torch.stack([parameter.square().sum() for parameter in surrogate.parameters()]).sum()
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(error + options.weight_decay * size)
        optimizer.step()
    return surrogate.requires_grad_(False), float(error.detach().sqrt())
