"""The accuracy predictor as a torch module, several members at once (thesis Fig. 4.3).

Axes: k members, n candidates, f features of the network, r features of the recipe, s statistics, w embedding, h hidden.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import hardswish

from predictor.config import Arrays, ModelShape


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x W + b for every member.

    Args:
        x: `(n, i)`, the same for all members, or `(k, n, i)`.
        weight: `(k, i, o)`.
        bias: `(k, o)`.

    Returns:
        `(k, n, o)`.
    """
    return torch.matmul(x, weight) + bias[:, None]


def embed(p: Mapping[str, Tensor], architecture: Tensor) -> Tensor:
    """Embedding `(k, n, w)` of network features `(n, f)` or `(k, n, f)`: one linear layer and h-swish.

    Thesis 4.6 has one layer and no word on the non-linearity; ReLU explains less of the FLOPs.
    """
    return hardswish(linear(architecture, p["encoder_weight"], p["encoder_bias"]))


def predict_statistics(p: Mapping[str, Tensor], architecture: Tensor) -> Tensor:
    """Proxy head: standardised logarithms of the statistics `(k, n, s)` from network features."""
    return linear(embed(p, architecture), p["proxy_weight"], p["proxy_bias"])


def predict_accuracy(
    p: Mapping[str, Tensor], architecture: Tensor, recipe: Tensor, statistics: Tensor, keep: Tensor | None = None
) -> Tensor:
    """Accuracy head: one hidden layer over embedding, recipe features and statistics.

    Args:
        p: parameters by name, see `ModelShape.arrays`.
        architecture: `(n, f)` or `(k, n, f)`.
        recipe: `(n, r)` or `(k, n, r)`.
        statistics: standardised, `(n, s)` or `(k, n, s)`; zero columns where they are no inputs.
        keep: factors on the embedding `(k, n, w)`, for dropout; None: all 1.

    Returns:
        Standardised accuracies `(k, n)`.
    """
    embedding = embed(p, architecture) if keep is None else embed(p, architecture) * keep
    rest = torch.cat([recipe, statistics], dim=-1)
    joint = torch.cat([embedding, rest.expand(*embedding.shape[:2], rest.shape[-1])], dim=-1)
    hidden = hardswish(linear(joint, p["hidden_weight"], p["hidden_bias"]))
    return linear(hidden, p["accuracy_weight"], p["accuracy_bias"])[..., 0]


class PredictorModel(nn.Module):
    """Parameters of all members, `(k, ...)` each; uniform in ±1/sqrt(inputs) at first.

    Args:
        shape: sizes of the layers.
        generator: of the initial values.
    """

    def __init__(self, shape: ModelShape, generator: torch.Generator) -> None:
        super().__init__()
        self.shape = shape
        self.store = nn.ParameterDict()
        inputs = 1
        for name, size in shape.arrays().items():
            inputs = size[1] if name.endswith("weight") else inputs
            initial = 2 * torch.rand(size, generator=generator, dtype=torch.float32) - 1
            self.store[name] = nn.Parameter(initial / max(inputs, 1) ** 0.5)

    @property
    def values(self) -> dict[str, nn.Parameter]:
        """All parameters by name."""
        return dict(self.store.items())

    def forward(self, architecture: Tensor, recipe: Tensor, statistics: Tensor) -> Tensor:
        """`predict_accuracy` with the module's parameters."""
        return predict_accuracy(self.values, architecture, recipe, statistics)

    def load(self, arrays: Mapping[str, npt.NDArray[np.float32]]) -> None:
        """Take over some of the parameters by name."""
        with torch.no_grad():
            for name, values in arrays.items():
                self.store[name].copy_(torch.from_numpy(values))

    def arrays(self, *layers: str) -> Arrays:
        """Copies of the parameters of some layers (``encoder``, ``proxy``, ``hidden``, ``accuracy``)."""
        return {
            name: values.detach().numpy().copy()
            for name, values in self.values.items()
            if name.removesuffix("_weight").removesuffix("_bias") in layers
        }
