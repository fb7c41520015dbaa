"""Mixup and the cross entropy with smoothed or soft targets."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, kw_only=True, slots=True)
class CrossEntropy:
    """The default loss of `recipes.trainer.fit`: cross entropy of the model's logits.

    Smoothing replaces targets t by (1 - s) t + s / k (arXiv:1512.00567, section 7). It is linear in t, so smoothing a
    mixture is mixing smoothed targets.
    """

    label_smoothing: float = 0.0

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor, progress: float, /) -> Tensor:
        """Mean over the batch, a scalar.

        Args:
            model: images to logits `(b, k)`.
            images: `(b, c, h, w)`.
            targets: `(b,)` int64 labels, or `(b, k)` probabilities.
            progress: unused; other losses follow a schedule.
        """
        return functional.cross_entropy(model(images), targets, label_smoothing=self.label_smoothing)


def draw_mixup(rng: np.random.Generator, batch_size: int, m: float) -> tuple[float, npt.NDArray[np.int64]]:
    """One mixing weight from Beta(m, m) and one permutation `(batch_size,)` for the batch (arXiv:1710.09412)."""
    return float(rng.beta(m, m)), rng.permutation(batch_size)


def mixup(images: Tensor, labels: Tensor, classes: int, weight: float, partners: Tensor) -> tuple[Tensor, Tensor]:
    """weight x_i + (1 - weight) x_partners(i), for images and one-hot labels alike (arXiv:1710.09412, Eq. 1).

    Args:
        images: `(b, c, h, w)` float.
        labels: `(b,)` int64 in [0, classes).
        classes: k, width of the targets.
        weight: in [0, 1].
        partners: `(b,)` int64, a permutation of the batch.

    Returns:
        Images `(b, c, h, w)` in the memory format given, targets `(b, classes)` float32 with rows that sum to 1.
    """
    targets = functional.one_hot(labels, classes).to(torch.float32)
    mixed = weight * images + (1 - weight) * images[partners]
    return mixed, weight * targets + (1 - weight) * targets[partners]
