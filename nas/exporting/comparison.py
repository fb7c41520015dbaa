"""Outputs of an exported file beside PyTorch's: differences on some images, accuracy on all test images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nas.exporting.formats import Run
from recipes.sources import Source
from search_spaces.serialisation import require

TOLERANCE = 1e-4  # largest allowed difference of a logit in float32, in units of the largest logit
BATCHES = (1, 3, 8)  # compared where the batch size is free; 12 images in all
TEST_BATCH = 64  # images at a time, of accuracies, where the batch size is free


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """An exported file against PyTorch.

    Attributes:
        max_difference: largest difference of a logit.
        largest_logit: largest magnitude of a logit of PyTorch's.
        same_class: images whose largest logit is the same in both.
        batches: numbers of images run at a time.
    """

    max_difference: float
    largest_logit: float
    same_class: int
    batches: tuple[int, ...]

    @property
    def images(self) -> int:
        """How many were compared."""
        return sum(self.batches)

    @property
    def relative(self) -> float:
        """The difference in units of the largest logit."""
        return self.max_difference / self.largest_logit if self.max_difference else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracies:
    """Top-1 of the network in PyTorch and of the exported file on the same images.

    Attributes:
        total: images.
        correct: that PyTorch's network gets right.
        lost: that only it gets right.
        gained: that only the exported file gets right.
        same_class: to which both give the same class.
    """

    total: int
    correct: int
    lost: int
    gained: int
    same_class: int

    @property
    def float32(self) -> float:
        """Of PyTorch's network, in percent."""
        return 100.0 * self.correct / self.total

    @property
    def exported(self) -> float:
        """Of the exported file, in percent."""
        return 100.0 * (self.correct - self.lost + self.gained) / self.total

    @property
    def drop(self) -> float:
        """Points of accuracy lost."""
        return self.float32 - self.exported

    @property
    def drop_standard_error(self) -> float:
        """Of `drop`, in points: the images are the same, so only those that change sides count."""
        changed, difference = self.lost + self.gained, self.lost - self.gained
        return 100.0 * math.sqrt(changed - difference**2 / self.total) / self.total


def batch_sizes(batch: int | None) -> tuple[int, ...]:
    """Numbers of images to compare at a time: 12 in all, or as many whole batches as that needs."""
    return BATCHES if batch is None else (batch,) * math.ceil(sum(BATCHES) / batch)


def compare(network: nn.Module, run: Run, images: Tensor, batches: Sequence[int], name: str) -> Comparison:
    """Run both on the same images.

    Args:
        network: in eval mode.
        run: the exported file.
        images: `(n, c, r, r)` float32.
        batches: sizes that sum to n.
        name: of what runs the file, for messages.

    Raises:
        UserError: a logit of either is not finite, or their shapes differ, so that there is nothing to compare.
    """
    worst = largest = 0.0
    same = 0
    for part in torch.split(images, list(batches)):
        found = run(part)
        with torch.no_grad():
            expected: Tensor = network(part)
        require(
            found.shape == expected.shape,
            f"{name} gives logits of shape {tuple(found.shape)}, PyTorch {tuple(expected.shape)}",
        )
        for whose, values in (("PyTorch", expected), (name, found)):
            require(bool(values.isfinite().all()), f"the network is not usable: logits of {whose} are not finite")
        worst = max(worst, float((expected - found).abs().max()))
        largest = max(largest, float(expected.abs().max()))
        same += int((expected.argmax(1) == found.argmax(1)).sum())
    return Comparison(max_difference=worst, largest_logit=largest, same_class=same, batches=tuple(batches))


def require_equal(compared: Comparison, name: str) -> None:
    """Refuse outputs that differ by more than float32 arithmetic in another order explains.

    Raises:
        UserError: the difference is above `TOLERANCE`.
    """
    worst, largest = compared.max_difference, compared.largest_logit
    require(
        worst <= TOLERANCE * largest,
        f"outputs of {name} differ from PyTorch's by {worst:.2g} where the largest is {largest:.2g};"
        f" allowed: {TOLERANCE:g} of it",
    )


def measure(network: nn.Module, run: Run, test: Source, *, resolution: int, batch: int | None) -> Accuracies:
    """Accuracy of both on all test images.

    Args:
        network: in eval mode.
        run: the exported file.
        test: what to measure on.
        resolution: r, side of the images in pixels.
        batch: images that the file takes at a time; None for any number. A last smaller batch is filled up.
    """
    correct = lost = gained = same = total = 0
    for images, labels in test.batches(batch or TEST_BATCH, resolution=resolution):
        images, count = images.contiguous(), len(labels)
        filled = images if batch is None else images[torch.arange(batch) % count]
        with torch.no_grad():
            expected = network(images).argmax(1)
        found = run(filled)[:count].argmax(1)
        right, found_right = expected == labels, found == labels
        correct += int(right.sum())
        lost += int((right & ~found_right).sum())
        gained += int((found_right & ~right).sum())
        same += int((expected == found).sum())
        total += count
    return Accuracies(total=total, correct=correct, lost=lost, gained=gained, same_class=same)
