"""Stage 1: the architecture encoder learns to predict what costs nothing to know (thesis 4.3, Fig. 4.4)."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from predictor.config import Arrays, ModelShape, PredictorConfig, load_preset
from predictor.features import STATISTICS, Scaling, as_joint, encoder_inputs, fit_scaling
from predictor.metrics import r2_score
from predictor.model import PredictorModel, predict_statistics
from predictor.pool import POOL_SIZE, sobol_pool
from predictor.training import batches, train_phase
from recipes.space import JointSpace
from search_spaces.errors import UserError
from search_spaces.limits import Limit
from search_spaces.seeding import numpy_rng, stream_seed
from search_spaces.serialisation import require
from search_spaces.space import SearchSpace

logger = logging.getLogger(__name__)
VALIDATION = 0.2  # thesis 4.4: 80/20
ENCODER = ("encoder", "proxy")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Pretrained:
    """A pretrained encoder.

    Attributes:
        arrays: ``encoder_*`` and ``proxy_*`` of all members.
        scaling: of the statistics, by the pool.
        num_classes: of the classifier that was counted.
        in_channels: of the images.
        r2: by statistic, on the fifth of the pool that was held out: mean prediction of the members against the statistic
            itself, not its logarithm.
        pool: how many networks.
        seconds: wall clock of pool and training.
    """

    arrays: Arrays
    scaling: Scaling
    num_classes: int
    in_channels: int
    r2: Mapping[str, float]
    pool: int
    seconds: float


def pretrain(
    space: SearchSpace | JointSpace,
    *,
    flops: Limit | None,
    num_classes: int,
    in_channels: int = 3,
    config: str | PredictorConfig = "default",
    pool: int = POOL_SIZE,
    epochs: int = 80,
    batch_size: int = 256,
    lr: float = 0.03,
    seed: int,
) -> Pretrained:
    """Train encoder and proxy head on FLOPs and parameters of a Sobol pool; loss: squared error of standardised logarithms.

    Args:
        space: with networks; recipes play no part.
        flops: range of the pool (thesis 4.6: 400M to 800M); None: all.
        num_classes: of the classifier that is counted.
        in_channels: of the images.
        config: preset or configuration; its members and embedding width count here.
        pool: n, number of networks (thesis 4.4).
        epochs: over four fifths of the pool.
        batch_size: networks a step.
        lr: of Adam, falling to 0 along a half cosine.
        seed: of pool, split, weights and order.

    Raises:
        UserError: a space without networks, or too few inside the range.
    """
    start = time.perf_counter()
    joint = as_joint(space)
    if joint is None:
        raise UserError(f"{space.name} has no networks to pretrain on")
    require(pool >= 10, f"pool must be >= 10, got {pool}")
    networks, inputs = JointSpace(joint.name, joint.architecture, None), encoder_inputs(space)
    counting = {"num_classes": num_classes, "in_channels": in_channels}
    rows = sobol_pool(networks, pool, {} if flops is None else {"flops": flops}, seed=seed, **counting)
    counted = networks.statistics(rows, **counting)
    statistics = {name: counted[name].astype(np.float64) for name in STATISTICS}
    scaling = fit_scaling(statistics, pool)
    order = numpy_rng(seed, "pretrain/split").permutation(pool)
    held_out, used = np.split(order, [round(VALIDATION * pool)])

    model = _encoder(inputs.feature_count, load_preset(config), seed)
    features, targets = inputs.encode(rows), scaling.standardise(statistics, pool)
    mean, std = features[used].mean(axis=0), features[used].std(axis=0)
    std[std < 1e-6] = 1.0  # an option that the range of FLOPs never takes
    centred = (features[used] - mean) / std  # trains faster; the layer is then written for the features as they are
    _train(model, centred, targets[used], epochs=epochs, batch_size=batch_size, lr=lr, seed=seed)
    model.load(unscaled_encoder(model.arrays("encoder"), mean, std))
    restored = scaling.restore(_predict(model, features[held_out]))
    r2 = {name: r2_score(restored[:, i], statistics[name][held_out]) for i, name in enumerate(STATISTICS)}
    seconds = time.perf_counter() - start
    logger.info("pretrained on %d networks of %s in %.1f s: R2 %s", pool, space.name, seconds, r2)
    return Pretrained(arrays=model.arrays(*ENCODER), scaling=scaling, **counting, r2=r2, pool=pool, seconds=seconds)


def unscaled_encoder(arrays: Arrays, mean: npt.NDArray[np.float32], std: npt.NDArray[np.float32]) -> Arrays:
    """The encoder of features `(n, f)` that does what ``arrays`` do with (features - mean) / std."""
    weight = arrays["encoder_weight"].astype(np.float64) / std.astype(np.float64)[:, None]
    bias = arrays["encoder_bias"] - np.einsum("f,kfw->kw", mean.astype(np.float64), weight)
    return {"encoder_weight": weight.astype(np.float32), "encoder_bias": bias.astype(np.float32)}


def _encoder(features: int, config: PredictorConfig, seed: int) -> PredictorModel:
    """A model of which encoder and proxy head are used."""
    shape = ModelShape(
        members=config.members,
        architecture=features,
        recipe=0,
        statistics=0,
        proxies=len(STATISTICS),
        embedding=config.embedding_width,
        hidden=1,
    )
    return PredictorModel(shape, torch.Generator().manual_seed(stream_seed(seed, "pretrain/weights")))


def _train(
    model: PredictorModel,
    features: npt.NDArray[np.float32],
    targets: npt.NDArray[np.float32],
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    seed: int,
) -> None:
    """Fit encoder and proxy head to targets `(n, s)` of features `(n, f)`."""
    inputs, wanted, values = torch.from_numpy(features), torch.from_numpy(targets), model.values

    def loss(indices: Tensor) -> Tensor:
        found = predict_statistics(values, inputs[indices])
        return mse_loss(found, wanted[indices].expand_as(found)) * len(found)

    train_phase(
        {name: value for name, value in values.items() if name.startswith(ENCODER)},
        loss,
        lambda epoch: batches(len(inputs), batch_size, numpy_rng(seed, "pretrain/order", epoch)),
        epochs=epochs,
        steps_per_epoch=-(-len(inputs) // batch_size),
        lr=lr,
    )


def _predict(model: PredictorModel, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Standardised statistics `(n, s)`, mean of the members."""
    with torch.no_grad():
        return np.asarray(predict_statistics(model.values, torch.from_numpy(features)).mean(dim=0).numpy())
