"""Labelled images held in memory as one uint8 tensor, cropped and flipped a batch at a time; see `recipes.sources`."""
# n images, b batch, h native size, r resolution asked for, p padding, c channels; NHWC in store, NCHW when handed out

import copy
from collections import OrderedDict
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from recipes.pixels import CifarAutoAugment, Normalise, crop_and_flip, resize_images
from recipes.sources import check_request, checked_indices, draw_order, indices_of_classes, parts_of_batches
from search_spaces.serialisation import require

CACHED_SIZES = 4  # resized copies of a set kept at a time: enough for train and test during a search over resolutions


class TensorSource:
    """Images held in memory, cropped and flipped a batch at a time; AutoAugment's policy is CIFAR-10's, image by image."""

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        flip: bool = False,
        crop_padding: int = 0,
    ) -> None:
        """Keep the tensors.

        Args:
            images: `(n, h, h, c)` uint8.
            labels: `(n,)` integers, not negative.
            mean: c values in [0, 1], subtracted.
            std: c values > 0 in the same unit, divided by.
            flip: augmentation may mirror left to right.
            crop_padding: black pixels on each side at native size, within which augmentation crops at random; scaled
                with the resolution.

        Raises:
            UserError: shapes, types or values other than these.
        """
        require(
            images.dtype == torch.uint8 and images.ndim == 4 and images.shape[1] == images.shape[2] > 0,
            f"images must be uint8 of shape (n, h, h, c), got {images.dtype} {tuple(images.shape)}",
        )
        require(labels.shape == images.shape[:1], f"{len(images)} images need a label each, got {tuple(labels.shape)}")
        require(not labels.is_floating_point() and bool((labels >= 0).all()), "labels must be integers >= 0")
        channels = images.shape[3]
        require(
            len(mean) == len(std) == channels and min(std, default=0.0) > 0,
            f"mean and std need {channels} values each, std > 0, got {tuple(mean)} and {tuple(std)}",
        )
        require(crop_padding >= 0, f"crop_padding must be >= 0, got {crop_padding}")
        self._images = _SizedImages(images.contiguous())
        self._indices = torch.arange(len(images))
        self._labels = labels.to(torch.int64)
        self._normalise = Normalise(mean, std)
        self._flip, self._crop_padding = flip, crop_padding

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def labels(self) -> Tensor:
        """`(n,)` int64, on the CPU."""
        return self._labels

    def subset(self, indices: npt.NDArray[np.int64]) -> "TensorSource":
        """See `Source.subset`; resized images are shared as well."""
        chosen = checked_indices(indices, len(self))
        view = copy.copy(self)
        view._indices, view._labels = self._indices[chosen], self._labels[chosen]
        return view

    def of_classes(self, classes: Sequence[int]) -> "TensorSource":
        """See `Source.of_classes`."""
        chosen, labels = indices_of_classes(self._labels, classes)
        view = self.subset(chosen)
        view._labels = labels
        return view

    def normalise(self, pixels: Tensor) -> Tensor:
        """See `Source.normalise`."""
        return self._normalise(pixels)

    def pixels(self, images: Tensor) -> Tensor:
        """See `Source.pixels`."""
        return self._normalise.undone(images)

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
        """See `Source.batches`."""
        check_request(batch_size, resolution, rng, augment, auto_augment, part, start)
        order = draw_order(len(self), rng)
        padding = round(self._crop_padding * resolution / self._images.native) if augment else 0
        corners = torch.zeros(len(self), 2, dtype=torch.int64)
        mirrored = torch.zeros(len(self), dtype=torch.bool)
        if augment and rng is not None:
            corners = torch.from_numpy(rng.integers(0, 2 * padding + 1, size=(len(self), 2)))
            if self._flip:
                mirrored = torch.from_numpy(rng.integers(0, 2, size=len(self)).astype(np.bool_))
        policy = CifarAutoAugment(int(rng.integers(1 << 62))) if auto_augment and rng is not None else None
        stored = self._images.at(resolution, padding)
        positions = torch.arange(len(self))  # in the epoch: randomness belongs to the place, not to the image

        def produce() -> Iterator[tuple[Tensor, Tensor]]:
            for place in parts_of_batches(positions, batch_size, drop_last, part)[start:]:
                chosen = order[place]
                crops = crop_and_flip(stored, self._indices[chosen], corners[place], mirrored[place], resolution)
                if policy is not None:
                    crops = policy(crops, place)
                yield self._normalise(crops), self._labels[chosen]

        return produce()


class _SizedImages:
    """uint8 images `(n, h, h, c)` at every size asked for; shared by a source and its subsets."""

    def __init__(self, images: Tensor) -> None:
        self.images, self.native = images, images.shape[1]
        self._recent: OrderedDict[tuple[int, int], Tensor] = OrderedDict()

    def at(self, resolution: int, padding: int) -> Tensor:
        """`(n, r + 2p, r + 2p, c)` uint8: resized, then padded with zeros."""
        if (resolution, padding) == (self.native, 0):
            return self.images
        if (resolution, padding) not in self._recent:
            if padding:
                made = functional.pad(self.at(resolution, 0), (0, 0, padding, padding, padding, padding))
                self._recent.pop((resolution, 0), None)  # one copy a size while training
            else:
                made = resize_images(self.images, resolution)
            self._recent[resolution, padding] = made
            while len(self._recent) > CACHED_SIZES:
                self._recent.popitem(last=False)
        self._recent.move_to_end((resolution, padding))
        return self._recent[resolution, padding]
