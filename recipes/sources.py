"""Labelled images that come in batches: what every kind of source gives, and the work on indices that all kinds share.

Images held in memory are in `recipes.tensor_source`, those that are decoded from folders as they are needed in
`recipes.folder_source`. Both draw an epoch's order first, then whatever augmentation needs, from the generator given, when
`batches` is called. Equal generators therefore give equal batches bit for bit; nothing global is read or changed.
"""
# n images, b batch, r resolution asked for, c channels; NHWC in store, NCHW when handed out

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from search_spaces.serialisation import require


class Source(Protocol):
    """Labelled images that come in batches."""

    def __len__(self) -> int: ...

    @property
    def labels(self) -> Tensor:
        """`(n,)` int64, on the CPU, in the order of `batches` without a generator."""
        ...

    def subset(self, indices: npt.NDArray[np.int64]) -> "Source":
        """The images at `indices`, in that order; pixels are shared, not copied.

        Raises:
            UserError: an index outside the source.
        """
        ...

    def of_classes(self, classes: Sequence[int]) -> "Source":
        """The images of some classes, in order; labels become places in ``classes``.

        Raises:
            UserError: a class without images, or one that stands twice.
        """
        ...

    def batches(
        self,
        batch_size: int,
        *,
        resolution: int,
        rng: np.random.Generator | None = None,
        augment: bool = False,
        auto_augment: bool = False,
        drop_last: bool = False,
        part: tuple[int, int] = (0, 1),
        start: int = 0,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass over the images.

        Args:
            batch_size: b, images at a time.
            resolution: r, side of the images in pixels.
            rng: shuffles, and is the only randomness of augmentation; without it images come in order.
            augment: random crops and flips, as the source defines them; needs `rng`.
            auto_augment: a policy of AutoAugment (arXiv:1805.09501) besides; needs `augment`.
            drop_last: leave out a last batch smaller than b.
            part: (k, n) hands out every n-th image of a batch, from the k-th on: n processes share its images, and each
                image is what it is with one. A batch without an image for k is left out.
            start: begin with this batch; the ones before it are not made, and those after are what they are anyway.

        Returns:
            Iterator over images `(b, c, r, r)` float32, normalised, channels_last, and labels `(b,)` int64.

        Raises:
            UserError: sizes below 1, `augment` without `rng`; while iterating, an image that cannot be read.
        """
        ...

    def normalise(self, pixels: Tensor) -> Tensor:
        """Other images as `batches` hands its own out.

        Args:
            pixels: `(b, r, r, c)` uint8.

        Returns:
            `(b, c, r, r)` float32, channels_last.
        """
        ...

    def pixels(self, images: Tensor) -> Tensor:
        """Inverse of `normalise`: images `(b, c, r, r)` of `batches` as `(b, r, r, c)` uint8."""
        ...


def split_indices(
    labels: Tensor, fraction: float, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Split at random, each class in the same proportion.

    Args:
        labels: `(n,)` integers.
        fraction: share of the first part, in (0, 1).
        rng: chooses within each class.

    Returns:
        Sorted indices of the first part, round(fraction * n) of them, and of the rest. Each class gives its share to
        the first part, rounded down or up; those with the largest remainder (ties: the smaller label) are rounded up.

    Raises:
        UserError: the fraction is outside (0, 1).
    """
    require(0 < fraction < 1, f"the fraction of a split must be between 0 and 1, got {fraction}")
    values, members = np.unique(labels.numpy(), return_inverse=True)
    shares = fraction * np.bincount(members, minlength=len(values))
    sizes = np.floor(shares).astype(np.int64)
    missing = round(fraction * len(labels)) - int(sizes.sum())
    sizes[np.argsort(sizes - shares, kind="stable")[:missing]] += 1
    first = np.zeros(len(labels), dtype=np.bool_)
    for label, size in enumerate(sizes):
        first[rng.permutation(np.flatnonzero(members == label))[:size]] = True
    return np.flatnonzero(first), np.flatnonzero(~first)


def check_request(
    batch_size: int,
    resolution: int,
    rng: np.random.Generator | None,
    augment: bool,
    auto_augment: bool,
    part: tuple[int, int],
    start: int,
) -> None:
    """Refuse what `Source.batches` cannot do; arguments are its.

    Raises:
        UserError: sizes below 1, augmentation without what it needs, or no such part.
    """
    require(start >= 0, f"start must be >= 0, got {start}")
    require(batch_size >= 1, f"batch_size must be >= 1, got {batch_size}")
    require(resolution >= 1, f"resolution must be >= 1 pixel, got {resolution}")
    require(rng is not None or not augment, "augment needs a random generator: pass rng")
    require(augment or not auto_augment, "auto_augment needs augment")
    require(0 <= part[0] < part[1], f"part must be (k, n) with 0 <= k < n, got {part}")


def checked_indices(indices: npt.NDArray[np.int64], length: int) -> Tensor:
    """The indices of a subset as `(m,)` int64.

    Args:
        indices: m of them, as `Source.subset` takes.
        length: images of the source.

    Raises:
        UserError: not a list, or one is outside 0..length - 1.
    """
    chosen = torch.from_numpy(np.array(indices, dtype=np.int64))
    inside = not len(chosen) or (int(chosen.min()) >= 0 and int(chosen.max()) < length)
    require(chosen.ndim == 1 and inside, f"a subset needs a list of indices in 0..{length - 1}")
    return chosen


def indices_of_classes(labels: Tensor, classes: Sequence[int]) -> tuple[npt.NDArray[np.int64], Tensor]:
    """Where the images of some classes are; see `Source.of_classes`.

    Args:
        labels: `(n,)` int64 of the source.
        classes: which, in the order of their new labels.

    Returns:
        Sorted indices `(m,)` of the images, and their new labels `(m,)`.

    Raises:
        UserError: a class without images, or one that stands twice.
    """
    require(len(set(classes)) == len(classes) > 0, f"classes must be different ones, got {list(classes)}")
    new = torch.full((max(int(labels.max()), *classes) + 1,), -1, dtype=torch.int64)
    new[list(classes)] = torch.arange(len(classes))
    renamed = new[labels]
    counts = torch.bincount(renamed[renamed >= 0], minlength=len(classes))
    empty = [number for number, count in zip(classes, counts.tolist(), strict=True) if count == 0]
    require(not empty, f"class {empty[0] if empty else ''} has no images")
    chosen = torch.nonzero(renamed >= 0).flatten()
    return chosen.numpy(), renamed[chosen]


def draw_order(length: int, rng: np.random.Generator | None) -> Tensor:
    """Order of an epoch's images: a permutation `(length,)` int64, or 0, 1, 2, ... without a generator."""
    return torch.arange(length) if rng is None else torch.from_numpy(rng.permutation(length))


def parts_of_batches(positions: Tensor, batch_size: int, drop_last: bool, part: tuple[int, int]) -> list[Tensor]:
    """One process's part of each batch; see `Source.batches`.

    Args:
        positions: `(n,)`, cut into batches in this order.
        batch_size: b of whole batches.
        drop_last: leave out a last batch smaller than b.
        part: (k, n) takes every n-th of a batch, from the k-th on.

    Returns:
        A tensor for each batch that has something for k.
    """
    end = len(positions) // batch_size * batch_size if drop_last else len(positions)
    batches = (positions[start : min(start + batch_size, end)] for start in range(0, end, batch_size))
    return [batch[part[0] :: part[1]] for batch in batches if len(batch) > part[0]]
