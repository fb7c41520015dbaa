"""Soft labels of the very images that a tree sees: a network that is asked batch by batch."""
# B images, C channels, R side of the images, K classes

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256

import torch
from torch import Tensor, nn
from torch.nn import functional

from nas.trees.soft.loss import SoftTreeLoss
from recipes.datasets import Dataset
from recipes.evaluation import evaluation_mode
from search_spaces.errors import UserError, first_line
from search_spaces.serialisation import require


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A trained network as the source of targets for images that change from epoch to epoch, as augmentation makes them.

    Attributes:
        network: images `(B, C, R, R)` to logits `(B, K)`; asked in evaluation mode.
        resolution: R, side in pixels at which images go through the network; others are resized.
        temperature: divides the logits.

    Raises:
        UserError: a number out of its range.
    """

    network: nn.Module
    resolution: int
    temperature: float = 1.0

    def __post_init__(self) -> None:
        require(self.resolution >= 1, f"resolution must be >= 1 pixel, got {self.resolution}")
        require_temperature(self.temperature)

    def __call__(self, images: Tensor) -> Tensor:
        """softmax(logits / temperature), `(B, K)` float32, of images `(B, C, S, S)`; no gradient."""
        if images.shape[-1] != self.resolution:
            images = functional.interpolate(images, (self.resolution,) * 2, mode="bilinear", antialias=True)
        with evaluation_mode(self.network), torch.no_grad():
            return probabilities(self.network(images), self.temperature)

    def fingerprint(self) -> str:
        """SHA-256 of its weights, resolution and temperature."""
        digest = sha256(f"{self.resolution} {float(self.temperature)}".encode())
        for name, tensor in self.network.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class TaughtTreeLoss:
    """`SoftTreeLoss` with a teacher's probabilities for the images of the batch as targets; their labels are not looked at.

    Attributes:
        loss: of the tree.
        teacher: on the tree's device.
    """

    loss: SoftTreeLoss
    teacher: Teacher

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor, progress: float, /) -> Tensor:
        """See `recipes.trainer.Loss`."""
        return self.loss(model, images, self.teacher(images), progress)


def checked_teacher(teacher: Teacher, dataset: Dataset, device: torch.device) -> Teacher:
    """The teacher on a device, if it gives a logit for each class of the data; the first training image shows.

    Raises:
        UserError: a network that does not take the images, or gives something else than K finite numbers for each.
    """
    teacher.network.to(device)
    images, _ = next(dataset.train.batches(1, resolution=teacher.resolution))
    with evaluation_mode(teacher.network), torch.no_grad(), refusals(dataset, teacher.resolution):
        require_logits(teacher.network(images.to(device)), dataset)
    return teacher


@contextmanager
def refusals(dataset: Dataset, resolution: int) -> Iterator[None]:
    """What torch says where a network does not take images, in one line.

    Raises:
        UserError: there was a RuntimeError inside.
    """
    try:
        yield
    except RuntimeError as error:
        what = first_line(error)
        raise UserError(f"the teacher does not take {dataset.name}'s images of {resolution} pixels: {what}") from error


def require_logits(logits: Tensor, dataset: Dataset) -> None:
    """Refuse outputs `(B, ...)` that are not K finite numbers for each image.

    Raises:
        UserError: they are not.
    """
    classes = dataset.num_classes
    require(
        logits.ndim == 2 and logits.shape[1] == classes,
        f"the teacher must be a classifier of {dataset.name}'s {classes} classes, one logit each;"
        f" its output for an image has shape {tuple(logits.shape[1:])}",
    )
    require(bool(logits.isfinite().all()), "the teacher's outputs must be finite")


def probabilities(logits: Tensor, temperature: float) -> Tensor:
    """softmax(logits / temperature) over the last axis; computed in float64, given as float32."""
    return functional.softmax(logits.double() / temperature, dim=-1).float()


def require_temperature(temperature: float) -> None:
    """Refuse what logits cannot be divided by.

    Raises:
        UserError: not in (0, inf).
    """
    require(0 < temperature < float("inf"), f"temperature must be > 0, got {temperature}")
