"""How well a model does on a source."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from recipes.distributed import joined, sum_over_ranks
from recipes.sources import Source
from search_spaces.serialisation import require


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """How a model does on a source."""

    correct: int
    total: int
    loss: float  # mean cross entropy, no smoothing

    @property
    def accuracy(self) -> float:
        """In percent."""
        return 100.0 * self.correct / self.total

    @property
    def standard_error(self) -> float:
        """Binomial standard error of `accuracy`, in points."""
        share = self.correct / self.total
        return 100.0 * math.sqrt(share * (1.0 - share) / self.total)


def evaluate(
    model: nn.Module, source: Source, *, resolution: int, batch_size: int = 512, device: torch.device | str = "cpu"
) -> Evaluation:
    """Top-1 accuracy and cross entropy in evaluation mode; every module's mode is left as found.

    Where several processes train together, each looks at its part of every batch, and all get the same numbers.

    Args:
        model: images `(b, c, r, r)` to logits `(b, k)`; already on `device`.
        source: what to evaluate on, every image once.
        resolution: r, side of the images in pixels.
        batch_size: images at a time.
        device: where to compute.

    Raises:
        UserError: the source is empty.
    """
    require(len(source) > 0, "there is nothing to evaluate on: the source holds no images")
    place = joined()
    correct, loss = 0, 0.0
    with evaluation_mode(model), torch.no_grad():  # not inference mode: modules may cache what they compute
        for images, labels in source.batches(batch_size, resolution=resolution, part=(place.rank, place.world)):
            labels = labels.to(device)
            logits: Tensor = model(images.to(device))
            correct += int((logits.argmax(1) == labels).sum())
            loss += float(functional.cross_entropy(logits, labels, reduction="sum"))
    if place.world > 1:
        sums = sum_over_ranks(torch.tensor([correct, loss], dtype=torch.float64, device=device), place)
        correct, loss = int(sums[0]), float(sums[1])
    return Evaluation(correct=correct, total=len(source), loss=loss / len(source))


def network_outputs(
    model: nn.Module,
    source: Source,
    *,
    resolution: int,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    prepared_as: Source | None = None,
) -> tuple[Tensor, Tensor]:
    """Logits of all images of a source in evaluation mode, kept: 4 n K bytes.

    Args:
        model: images `(b, c, r, r)` to logits `(b, K)`; already on `device`.
        source: the images.
        resolution: r, side of the images in pixels.
        batch_size: images at a time.
        device: where to compute.
        prepared_as: the source that the model was trained on, whose normalisation replaces that of ``source``.

    Returns:
        Logits `(n, K)` and labels `(n,)`, on the CPU.

    Raises:
        UserError: the source is empty.
        TypeError: the model gives no tensor.
    """
    require(len(source) > 0, "there is nothing to evaluate on: the source holds no images")
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    with evaluation_mode(model), torch.no_grad():
        for images, label in source.batches(batch_size, resolution=resolution):
            if prepared_as is not None:
                images = prepared_as.normalise(source.pixels(images))
            out = model(images.to(device))
            if not isinstance(out, Tensor):
                raise TypeError(f"the model must give logits as one tensor, got {type(out).__name__}")
            logits.append(out.cpu())
            labels.append(label)
    return torch.cat(logits), torch.cat(labels)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; every module's own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
