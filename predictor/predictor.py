"""A fitted accuracy predictor, in numpy: rows in, accuracies out. No torch here.

Axes: k members, n candidates, w embedding, h hidden, s statistics.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from predictor.bag import make_bag
from predictor.config import Arrays, ModelShape
from predictor.features import Scaling, Values, as_joint, encoder_inputs, network_columns, recipe_inputs
from predictor.quantities import SpaceQuantities
from search_spaces.errors import UserError
from search_spaces.serialisation import require, require_finite
from search_spaces.variables import Rows, VariableSet

CHUNK = 1024  # rows at a time, so that a layer's outputs stay in the processor's cache
BLOCK = 64  # a chunk is filled up to a multiple of this: a row's prediction must not depend on its neighbours


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingFacts:
    """Where a predictor comes from.

    Attributes:
        rows: candidates it was fitted on.
        rounds: of constrained iterative optimisation; 0 where there were none.
        seed: of the fit.
        command: that made it.
        metrics: by name.
    """

    rows: int = 0
    rounds: int = 0
    seed: int = 0
    command: str = ""
    metrics: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_finite(**self.metrics)


class Predictor:
    """Predicts accuracies in percent from rows of option indices.

    Args:
        variables: the space; rows should be canonical, as those it was fitted on.
        shape: sizes of the layers.
        arrays: ``encoder_*``, ``hidden_*`` and ``accuracy_*`` of all members.
        scaling: of the statistics that are inputs; empty: none are.
        target: mean and standard deviation by which accuracies were standardised, percent.
        num_classes: of the classifier that is counted; None: statistics are not counted but given.
        in_channels: of the images.
        facts: where it comes from.

    Raises:
        UserError: sizes that do not fit the space, arrays of another shape, or numbers that are not finite.
    """

    def __init__(
        self,
        variables: VariableSet,
        shape: ModelShape,
        arrays: Arrays,
        scaling: Scaling,
        *,
        target: tuple[float, float],
        num_classes: int | None,
        in_channels: int = 3,
        facts: TrainingFacts | None = None,
    ) -> None:
        require_finite(mean=target[0], std=target[1])
        encoder, recipe = encoder_inputs(variables), recipe_inputs(variables)
        sizes = (encoder.feature_count, recipe.feature_count, len(scaling.names))
        found = (shape.architecture, shape.recipe, shape.statistics)
        require(
            sizes == found,
            f"the predictor reads {found} network, recipe and statistics features, the space has {sizes}",
        )
        for name, size in shape.arrays().items():
            if not name.startswith("proxy"):
                require(name in arrays and arrays[name].shape == size, f"array {name} must have shape {size}")
                require(bool(np.isfinite(arrays[name]).all()), f"array {name} has numbers that are not finite")
        self.variables, self.shape, self.scaling, self.target = variables, shape, scaling, target
        self.arrays = {name: arrays[name] for name in shape.arrays() if not name.startswith("proxy")}
        self.num_classes, self.in_channels, self.facts = num_classes, in_channels, facts or TrainingFacts()
        self._columns = network_columns(variables)
        w, r = shape.embedded, shape.recipe
        hidden = self.arrays["hidden_weight"]
        self._encoder = make_bag(
            encoder.variables, _side_by_side(self.arrays["encoder_weight"]), self.arrays["encoder_bias"].ravel()
        )
        self._recipe = make_bag(
            recipe.variables, _side_by_side(hidden[:, w : w + r]), self.arrays["hidden_bias"].ravel()
        )
        self._embedding_weight = np.ascontiguousarray(hidden[:, :w])  # (k, w, h)
        self._statistics_weight = _side_by_side(hidden[:, w + r :])  # (s, k h)

    @property
    def statistics(self) -> tuple[str, ...]:
        """Names of the statistics it reads."""
        return self.scaling.names

    def predict(self, rows: npt.ArrayLike, statistics: Mapping[str, npt.ArrayLike] | None = None) -> Values:
        """Accuracies in percent `(n,)` float64, the mean of the members.

        Args:
            rows: `(n, d)` option indices, canonical.
            statistics: columns `(n,)` by name, if at hand; else they are counted.

        Raises:
            UserError: rows of another space, or statistics that are neither given nor can be counted.
        """
        return np.asarray(self.members(rows, statistics).mean(axis=1))

    def spread(self, rows: npt.ArrayLike, statistics: Mapping[str, npt.ArrayLike] | None = None) -> Values:
        """Standard deviation over the members in percentage points `(n,)`; zeros for a single one."""
        return np.asarray(self.members(rows, statistics).std(axis=1))

    def members(self, rows: npt.ArrayLike, statistics: Mapping[str, npt.ArrayLike] | None = None) -> Values:
        """Every member's accuracies in percent `(n, k)` float64; arguments as in `predict`."""
        array = self.variables.check_rows(rows)
        n, k = len(array), self.shape.members
        inputs = self._statistics(array, statistics)
        out = np.empty((n, k), dtype=np.float64)
        for start in range(0, n, CHUNK):
            stop = min(start + CHUNK, n)
            fill = -(stop - start) % BLOCK
            chunk, facts = array[start:stop], inputs[start:stop]
            if fill:
                chunk, facts = np.pad(chunk, ((0, fill), (0, 0))), np.pad(facts, ((0, fill), (0, 0)))
            out[start:stop] = self._standardised(chunk, facts)[: stop - start]
        return out * self.target[1] + self.target[0]

    def _standardised(self, rows: Rows, statistics: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Standardised accuracies `(n, k)` of rows `(n, d)` and standardised statistics `(n, s)`."""
        k, w, h = self.shape.members, self.shape.embedded, self.shape.hidden
        hidden = self._recipe(rows[:, self._columns :])  # (n, k h)
        if statistics.shape[1]:
            hidden += statistics @ self._statistics_weight
        if w:
            embedding = hardswish(self._encoder(rows[:, : self._columns]))  # (n, k w)
            for member in range(k):
                part = embedding[:, member * w : (member + 1) * w] @ self._embedding_weight[member]
                hidden[:, member * h : (member + 1) * h] += part
        hardswish(hidden)
        weights = self.arrays["accuracy_weight"][:, :, 0]
        return np.asarray((hidden.reshape(-1, k, h) * weights).sum(axis=2) + self.arrays["accuracy_bias"][:, 0])

    def _statistics(self, rows: Rows, given: Mapping[str, npt.ArrayLike] | None) -> npt.NDArray[np.float32]:
        """Standardised statistics `(n, s)`, given or counted."""
        if not self.statistics:
            return np.zeros((len(rows), 0), dtype=np.float32)
        return self.scaling.standardise(given if given is not None else self.count(rows), len(rows))

    def save(self, path: str | Path) -> None:
        """Write one ``.npz`` file, see `predictor.files.save_predictor`."""
        from predictor.files import save_predictor  # that file needs this class

        save_predictor(self, path)

    @classmethod
    def load(cls, path: str | Path, variables: VariableSet | None = None) -> "Predictor":
        """Read what `save` wrote, see `predictor.files.load_predictor`."""
        from predictor.files import load_predictor

        return load_predictor(path, variables)

    @cached_property
    def quantities(self) -> SpaceQuantities:
        """Fast canonical rows and exact quantities of the space, for its own classes and channels."""
        return SpaceQuantities(self.variables, num_classes=self.num_classes, in_channels=self.in_channels)

    def count(self, rows: npt.ArrayLike) -> dict[str, npt.NDArray[np.int64]]:
        """Exact statistics of the rows' networks, as `JointSpace.statistics`.

        Raises:
            UserError: the space has no networks that could be counted.
        """
        joint = as_joint(self.variables)
        if joint is None or self.num_classes is None:
            raise UserError(f"this predictor reads {', '.join(self.statistics)}, which must be given with the rows")
        return joint.statistics(rows, num_classes=self.num_classes, in_channels=self.in_channels)


def hardswish(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """x * clip(x + 3, 0, 6) / 6, in place."""
    gate = x + np.float32(3)
    np.clip(gate, np.float32(0), np.float32(6), out=gate)
    gate *= np.float32(1 / 6)
    x *= gate
    return x


def _side_by_side(weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """`(k, i, o)` to `(i, k o)`: the layers of all members as one."""
    members, inputs, outputs = weight.shape
    return np.ascontiguousarray(weight.transpose(1, 0, 2).reshape(inputs, members * outputs))
