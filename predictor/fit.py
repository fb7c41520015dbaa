"""Stage 2: the predictor learns accuracies with the Huber loss (thesis 4.3)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from predictor.config import ModelShape, PredictorConfig, load_preset
from predictor.features import (
    STATISTICS,
    Scaling,
    Values,
    as_joint,
    canonical_rows,
    encoder_inputs,
    fit_scaling,
    network_columns,
    recipe_inputs,
)
from predictor.model import PredictorModel, predict_accuracy
from predictor.pool import first_of_each
from predictor.predictor import Predictor, TrainingFacts
from predictor.pretrain import Pretrained
from predictor.training import batches, train_phase
from search_spaces.errors import UserError
from search_spaces.seeding import numpy_rng, stream_seed
from search_spaces.serialisation import require
from search_spaces.variables import Rows, VariableSet

HEAD = ("hidden", "accuracy")


@dataclass(frozen=True, slots=True, eq=False)
class _Examples:
    """What is learnt from: canonical rows `(n, d)`, accuracies and weights `(n,)`, statistics `(n,)` each."""

    rows: Rows
    labels: Values
    weights: Values
    statistics: dict[str, Values]


def huber(error: Tensor, delta: float = 1.0) -> Tensor:
    """Element-wise error^2 / 2 where |error| < delta, else delta (|error| - delta / 2) (thesis 4.3, where delta is 1 point)."""
    size = error.abs()
    return torch.where(size < delta, 0.5 * error**2, delta * (size - 0.5 * delta))


def dropout_factors(size: tuple[int, ...], share: float, generator: torch.Generator) -> Tensor | None:
    """0 with probability ``share``, else 1 / (1 - share), so that the mean is 1; None where nothing is left out."""
    if share == 0:
        return None
    return (torch.rand(size, generator=generator) >= share) / (1 - share)


def fit(
    variables: VariableSet,
    rows: npt.ArrayLike,
    accuracies: npt.ArrayLike,
    *,
    seed: int,
    config: str | PredictorConfig = "default",
    pretrained: Pretrained | None = None,
    statistics: Mapping[str, npt.ArrayLike] | None = None,
    weights: npt.ArrayLike | None = None,
    num_classes: int | None = None,
    in_channels: int = 3,
    rounds: int = 0,
    command: str = "",
) -> Predictor:
    """Fit a predictor to trained candidates. Same arguments, same result, bit for bit (CPU, same number of threads).

    Args:
        variables: the space.
        rows: `(n, d)` option indices; made canonical.
        accuracies: `(n,)` percent.
        seed: of weights and order.
        config: preset (``"default"``, ``"thesis"``) or configuration.
        pretrained: encoder to start from; its image type and scaling are used as well.
        statistics: columns `(n,)` by name, where the space has no networks that can be counted.
        weights: `(n,)` > 0, of the rows in the loss, for example how many trainings a score is the mean of; default: alike.
        num_classes: of the classifier that is counted; needed where statistics are inputs and nothing was pretrained.
        in_channels: of the images.
        rounds: kept in the predictor's facts.
        command: kept in the predictor's facts.

    Raises:
        UserError: no rows, rows of another space or the same twice, a number that is not finite, or an encoder of another
            shape.
    """
    settings = load_preset(config)
    if pretrained is not None:
        num_classes, in_channels = pretrained.num_classes, pretrained.in_channels
    examples = _checked(variables, rows, accuracies, weights)
    examples.statistics.update(_statistics(variables, examples.rows, settings, statistics, num_classes, in_channels))
    scaling = fit_scaling(examples.statistics, len(examples.rows))
    if pretrained is not None and pretrained.scaling.names == scaling.names:
        scaling = pretrained.scaling
    model = _model(variables, settings, scaling, pretrained, seed)
    deviation = float(examples.labels.std())
    target = (float(examples.labels.mean()), deviation if deviation > 1e-6 else 1.0)
    _train(model, variables, examples, scaling, target, settings, seed, frozen_first=pretrained is not None)
    arrays = model.arrays("encoder", *HEAD)
    made = Predictor(
        variables, model.shape, arrays, scaling, target=target, num_classes=num_classes, in_channels=in_channels
    )
    error = made.predict(examples.rows, examples.statistics) - examples.labels
    metrics = {"train_mse": float((error**2).mean())}
    metrics |= {} if pretrained is None else {f"pretraining_r2_{name}": r2 for name, r2 in pretrained.r2.items()}
    made.facts = TrainingFacts(rows=len(error), rounds=rounds, seed=seed, command=command, metrics=metrics)
    return made


def _checked(
    variables: VariableSet, rows: npt.ArrayLike, accuracies: npt.ArrayLike, weights: npt.ArrayLike | None
) -> _Examples:
    """Examples without statistics."""
    chosen = canonical_rows(variables, rows)
    n = len(chosen)
    require(n > 0 and chosen.size > 0, "there are no rows to fit a predictor to")
    labels = np.asarray(accuracies, dtype=np.float64)
    importance = np.ones(n) if weights is None else np.asarray(weights, dtype=np.float64)
    for name, values in (("accuracies", labels), ("weights", importance)):
        require(values.shape == (n,), f"{name} must have shape ({n},), got {values.shape}")
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise UserError(f"{name} must be finite numbers, got {values[bad[0]]} in row {bad[0]}")
    require(bool((importance > 0).all()), f"weights must be > 0, got {importance.min()}")
    distinct = len(first_of_each(chosen))
    require(distinct == n, f"{n - distinct} of {n} rows repeat another one; give each candidate once")
    return _Examples(chosen, labels, importance / importance.mean(), {})


def _statistics(
    variables: VariableSet,
    rows: Rows,
    settings: PredictorConfig,
    given: Mapping[str, npt.ArrayLike] | None,
    num_classes: int | None,
    in_channels: int,
) -> dict[str, Values]:
    """The statistics that become inputs: given, counted, or none."""
    joint = as_joint(variables)
    if not settings.statistics_as_inputs or (given is None and joint is None):
        return {}
    if given is None and joint is not None:
        require(num_classes is not None, "num_classes is needed to count FLOPs; or set statistics_as_inputs false")
        given = joint.statistics(rows, num_classes=num_classes or 0, in_channels=in_channels)
    names = [name for name in STATISTICS if given is not None and name in given]
    return {name: np.asarray((given or {})[name], dtype=np.float64) for name in names}


def _model(
    variables: VariableSet, settings: PredictorConfig, scaling: Scaling, pretrained: Pretrained | None, seed: int
) -> PredictorModel:
    """A model for the space, with the pretrained encoder if there is one."""
    shape = ModelShape(
        members=settings.members,
        architecture=encoder_inputs(variables).feature_count,
        recipe=recipe_inputs(variables).feature_count,
        statistics=len(scaling.names),
        proxies=0,
        embedding=settings.embedding_width,
        hidden=settings.hidden_width,
    )
    model = PredictorModel(shape, torch.Generator().manual_seed(stream_seed(seed, "fit/weights")))
    if pretrained is not None:
        encoder = {name: values for name, values in pretrained.arrays.items() if name.startswith("encoder")}
        wanted, found = shape.arrays()["encoder_weight"], encoder["encoder_weight"].shape
        require(
            found == wanted, f"the pretrained encoder is (members, features, width) {found}, this predictor's {wanted}"
        )
        model.load(encoder)
    return model


def _train(
    model: PredictorModel,
    variables: VariableSet,
    examples: _Examples,
    scaling: Scaling,
    target: tuple[float, float],
    settings: PredictorConfig,
    seed: int,
    *,
    frozen_first: bool,
) -> None:
    """Both phases, in place; without a pretrained encoder the first one has nothing to keep, and all is trained alike."""
    n, columns = len(examples.rows), network_columns(variables)
    architecture = torch.from_numpy(encoder_inputs(variables).encode(examples.rows[:, :columns]))
    recipe = torch.from_numpy(recipe_inputs(variables).encode(examples.rows[:, columns:]))
    statistics = torch.from_numpy(scaling.standardise(examples.statistics, n))
    labels, weights = (torch.from_numpy(v.astype(np.float32)) for v in (examples.labels, examples.weights))

    values = model.values
    generator = torch.Generator().manual_seed(stream_seed(seed, "fit/dropout"))

    def loss(indices: Tensor) -> Tensor:  # indices (k, b): every member has its own order
        keep = dropout_factors((*indices.shape, model.shape.embedded), settings.embedding_dropout, generator)
        found = predict_accuracy(values, architecture[indices], recipe[indices], statistics[indices], keep)
        error = found * target[1] + target[0] - labels[indices]
        return (huber(error, settings.huber_delta) * weights[indices]).mean(dim=1).sum()

    def order(phase: str, epoch: int) -> Iterator[Tensor]:
        return batches(n, settings.batch_size, numpy_rng(seed, f"fit/order/{phase}", epoch), settings.members)

    head = {name: value for name, value in values.items() if name.startswith(HEAD)}
    everything = {name: value for name, value in values.items() if not name.startswith("proxy")}
    frozen = settings.frozen_epochs if frozen_first else 0
    rest = settings.epochs + settings.frozen_epochs - frozen
    phases = [("frozen", head, frozen, 1.0), ("all", everything, rest, settings.reduced if frozen else 1.0)]
    for name, trained, epochs, factor in phases:
        train_phase(
            trained,
            loss,
            partial(order, name),
            epochs=epochs,
            steps_per_epoch=-(-n // settings.batch_size),
            lr=settings.lr * factor,
            weight_decay=settings.weight_decay,
            factors={"encoder_weight": settings.encoder_rate, "encoder_bias": settings.encoder_rate},
        )
