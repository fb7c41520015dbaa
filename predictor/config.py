"""Numbers of the accuracy predictor: its shape, how it is pretrained and how it is fitted. No torch here."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from search_spaces.errors import UserError, closest
from search_spaces.serialisation import require, require_finite

Arrays = dict[str, npt.NDArray[np.float32]]  # parameters by name, see `ModelShape.arrays`


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """Sizes of the predictor's layers.

    Attributes:
        members: k, predictors side by side.
        architecture: f, features of the network; 0 where it is fixed, and then there is no embedding.
        recipe: r, features of the recipe.
        statistics: s, inputs of the accuracy head.
        proxies: outputs of the proxy head; 0 where there is none.
        embedding: w.
        hidden: h.
    """

    members: int
    architecture: int
    recipe: int
    statistics: int
    proxies: int
    embedding: int
    hidden: int

    @property
    def embedded(self) -> int:
        """Width of the embedding that there is."""
        return self.embedding if self.architecture else 0

    def arrays(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter by name; weights are (inputs, outputs) behind the members' axis."""
        k, w = self.members, self.embedded
        return {
            "encoder_weight": (k, self.architecture, w),
            "encoder_bias": (k, w),
            "proxy_weight": (k, w, self.proxies),
            "proxy_bias": (k, self.proxies),
            "hidden_weight": (k, w + self.recipe + self.statistics, self.hidden),
            "hidden_bias": (k, self.hidden),
            "accuracy_weight": (k, self.hidden, 1),
            "accuracy_bias": (k, 1),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictorConfig:
    """Shape and training of the predictor; checked on construction.

    Raises:
        UserError: a number out of its range.
    """

    members: int = 5  # predictors that are averaged; they differ in initial weights and order of batches
    embedding_width: int = 24  # thesis 4.6; no embedding where the network is fixed
    hidden_width: int = 32  # of the accuracy head, not printed
    statistics_as_inputs: bool = True  # FLOPs and parameters, where the space has them, beside the embedding
    frozen_epochs: int = 0  # first with the pretrained encoder frozen; all is trained where nothing was pretrained
    epochs: int = 200  # then with everything
    lr: float = 0.02  # of Adam, falling to 0 along a half cosine in each of the two phases
    reduced: float = 1.0  # factor on the rate of the second phase where there is a first
    encoder_rate: float = 0.3  # factor on the rate of the encoder, which has most of the weights
    embedding_dropout: float = 0.5  # share of the embedding that is left out at random in fitting
    weight_decay: float = 0.1  # decoupled (a step shrinks weights by lr times it); biases are left alone
    batch_size: int = 16
    huber_delta: float = 1.0  # percentage points (thesis 4.3)

    def __post_init__(self) -> None:
        for name, low, high in (
            ("members", 1, 100), ("embedding_width", 1, 1024), ("hidden_width", 1, 1024), ("frozen_epochs", 0, 10**6),
            ("epochs", 1, 10**6), ("batch_size", 1, 10**6),
        ):  # fmt: skip
            value = getattr(self, name)
            require(type(value) is int and low <= value <= high, f"{name} must be in {low}..{high}, got {value!r}")
        for name in ("lr", "reduced", "encoder_rate", "embedding_dropout", "weight_decay", "huber_delta"):
            require_finite(**{name: getattr(self, name)})
        require(
            self.lr > 0 and self.huber_delta > 0, f"lr and huber_delta must be > 0, got {self.lr}, {self.huber_delta}"
        )
        for name in ("reduced", "encoder_rate"):
            require(0 < getattr(self, name) <= 1, f"{name} must be in (0, 1], got {getattr(self, name)}")
        require(0 <= self.embedding_dropout < 1, f"embedding_dropout must be in [0, 1), got {self.embedding_dropout}")
        require(self.weight_decay >= 0, f"weight_decay must be >= 0, got {self.weight_decay}")

    def replace(self, **changes: Any) -> "PredictorConfig":
        """The configuration with some numbers changed.

        Raises:
            UserError: an unknown name or a number out of its range.
        """
        for name in changes:
            if name not in self.__dataclass_fields__:
                raise UserError(f"predictor: unknown key {name!r}{closest(name, self.__dataclass_fields__)}")
        return replace(self, **changes)


# "thesis": 4.3 (50 epochs with the encoder frozen, 50 more at a reduced rate, Huber) and 4.6 (one embedding layer of width
# 24, one hidden layer). How much the rate is reduced, the optimizer and the batch are not printed.
# "default": several members and no freezing were better on public tables of trained networks from 50 labels on, and on our
# own table; there the pretrained encoder made statistics as inputs superfluous (docs/nars.md). Dropout and the slower encoder
# keep it from learning a table by heart through the many features of networks: on made-up accuracies that depend mostly on
# FLOPs and the recipe, Kendall's tau at 240 labels rose from 0.5 to above 0.85.
# "table": bare variables have few features and nothing else is known of them; there dropout and the slower encoder only hide
# what is to be learnt. Mean held-out tau, "default" and this: 0.65 and 0.71 on 200 support vector machines (docs/predictor.md),
# 0.62 and 0.92 on 80 noiseless scores of five variables; at most 0.03 lower on other made-up tables, where scores are noisy.
PRESETS: Mapping[str, PredictorConfig] = MappingProxyType(
    {
        "default": PredictorConfig(statistics_as_inputs=False),
        "table": PredictorConfig(encoder_rate=1.0, embedding_dropout=0.0, weight_decay=0.03),
        "thesis": PredictorConfig(
            members=1, statistics_as_inputs=False, frozen_epochs=50, epochs=50, lr=0.01, reduced=0.1, encoder_rate=1.0,
            embedding_dropout=0.0, weight_decay=0.0,
        ),
    }
)  # fmt: skip


def load_preset(name: str | PredictorConfig) -> PredictorConfig:
    """A configuration by name; a PredictorConfig is returned as it is.

    Raises:
        UserError: nothing of that name.
    """
    if isinstance(name, PredictorConfig):
        return name
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}{closest(name, PRESETS)}")
    return PRESETS[name]
