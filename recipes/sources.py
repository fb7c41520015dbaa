"""Labelled images that come in batches: held as one uint8 tensor, or decoded from folders as they are needed.

Both kinds draw an epoch's order first, then whatever augmentation needs, from the generator given, when `batches` is
called. Equal generators therefore give equal batches bit for bit; nothing global is read or changed.
"""
# n images, b batch, h/w native size, r resolution asked for, p padding, c channels; NHWC in store, NCHW when handed out

import copy
import math
import os
import signal
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from search_spaces.errors import UserError, first_line
from search_spaces.seeding import stream_seed
from search_spaces.serialisation import require

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # RGB in [0, 1], of torchvision's published classification recipes
IMAGENET_STD = (0.229, 0.224, 0.225)
CACHED_SIZES = 4  # resized copies of a set kept at a time: enough for train and test during a search over resolutions
RESIZE_CHUNK = 1024  # images


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
        self._normalise = _Normalise(mean, std)
        self._flip, self._crop_padding = flip, crop_padding

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def labels(self) -> Tensor:
        """`(n,)` int64, on the CPU."""
        return self._labels

    def subset(self, indices: npt.NDArray[np.int64]) -> "TensorSource":
        """See `Source.subset`; resized images are shared as well."""
        chosen = _checked_indices(indices, len(self))
        view = copy.copy(self)
        view._indices, view._labels = self._indices[chosen], self._labels[chosen]
        return view

    def of_classes(self, classes: Sequence[int]) -> "TensorSource":
        """See `Source.of_classes`."""
        chosen, labels = _of_classes(self._labels, classes)
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
        _check_request(batch_size, resolution, rng, augment, auto_augment, part, start)
        order = _draw_order(len(self), rng)
        padding = round(self._crop_padding * resolution / self._images.native) if augment else 0
        corners = torch.zeros(len(self), 2, dtype=torch.int64)
        mirrored = torch.zeros(len(self), dtype=torch.bool)
        if augment and rng is not None:
            corners = torch.from_numpy(rng.integers(0, 2 * padding + 1, size=(len(self), 2)))
            if self._flip:
                mirrored = torch.from_numpy(rng.integers(0, 2, size=len(self)).astype(np.bool_))
        policy = _Policy(int(rng.integers(1 << 62))) if auto_augment and rng is not None else None
        stored = self._images.at(resolution, padding)
        positions = torch.arange(len(self))  # in the epoch: randomness belongs to the place, not to the image

        def produce() -> Iterator[tuple[Tensor, Tensor]]:
            for place in _split(positions, batch_size, drop_last, part)[start:]:
                chosen = order[place]
                crops = crop_and_flip(stored, self._indices[chosen], corners[place], mirrored[place], resolution)
                if policy is not None:
                    crops = policy(crops, place)
                yield self._normalise(crops), self._labels[chosen]

        return produce()


class FolderSource:
    """Image files in one folder per class, decoded as they are needed; AutoAugment's policy is ImageNet's.

    Augmentation is a crop of 8 % to 100 % of the area, resized, mirrored half of the time (torchvision's defaults).
    Otherwise the short side becomes r * 256 / 224, rounded up to a multiple of 8, and the centre is cut out.
    What is drawn for an image depends on the epoch's generator and the image alone, not on the number of workers.
    """

    def __init__(self, folder: str | Path, *, workers: int | None = None) -> None:
        """List the files; none is opened yet.

        Args:
            folder: holds one folder per class, as torchvision.datasets.ImageFolder wants it.
            workers: processes that decode; 0 decodes in this one. Default: as many as cores, at most 8.

        Raises:
            UserError: the folder is missing, has no class folders, or one of them has no images.
        """
        from torchvision.datasets import ImageFolder  # 2 s to import

        require(workers is None or workers >= 0, f"workers must be >= 0, got {workers}")
        folder = Path(folder)
        require(folder.is_dir(), f"{folder} is not a folder; images are expected in {folder}/CLASS/")
        try:
            listed = ImageFolder(str(folder))
        except OSError as error:  # torchvision names the classes without images
            raise UserError(f"{folder}: {first_line(error)}") from error
        self.class_names = tuple(listed.classes)
        self._paths = [path for path, _ in listed.samples]
        self._labels = torch.tensor(listed.targets, dtype=torch.int64)
        self._indices = torch.arange(len(self._paths))
        self._workers = min(8, os.cpu_count() or 1) if workers is None else workers
        self._normalise = _Normalise(IMAGENET_MEAN, IMAGENET_STD)

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def labels(self) -> Tensor:
        """`(n,)` int64, on the CPU."""
        return self._labels

    def subset(self, indices: npt.NDArray[np.int64]) -> "FolderSource":
        """See `Source.subset`."""
        chosen = _checked_indices(indices, len(self))
        view = copy.copy(self)
        view._indices, view._labels = self._indices[chosen], self._labels[chosen]
        return view

    def of_classes(self, classes: Sequence[int]) -> "FolderSource":
        """See `Source.of_classes`."""
        chosen, labels = _of_classes(self._labels, classes)
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
        _check_request(batch_size, resolution, rng, augment, auto_augment, part, start)
        chunks = _split(_draw_order(len(self), rng), batch_size, drop_last, part)[start:]
        seed = int(rng.integers(1 << 62)) if augment and rng is not None else 0
        files = _DecodedFiles(self._paths, _transform(resolution, augment, auto_augment), seed)
        loader: DataLoader[Tensor | str] = DataLoader(
            files,
            batch_sampler=[self._indices[chunk].tolist() for chunk in chunks],
            num_workers=self._workers,
            collate_fn=_stack,
            worker_init_fn=_ignore_interrupt,
            generator=torch.Generator().manual_seed(0),  # else the loader draws from the global one
        )

        def produce() -> Iterator[tuple[Tensor, Tensor]]:
            for chunk, pixels in zip(chunks, _surviving(loader), strict=True):
                if isinstance(pixels, str):
                    raise UserError(pixels)
                yield self._normalise(pixels), self._labels[chunk]

        return produce()


def crop_and_flip(images: Tensor, chosen: Tensor, corners: Tensor, mirrored: Tensor, resolution: int) -> Tensor:
    """Cut a square out of each chosen image and mirror it where asked, all in one gather.

    Args:
        images: `(n, s, s, c)`, contiguous.
        chosen: `(b,)` int64 index into the images.
        corners: `(b, 2)` int64 top and left of the squares, each in [0, s - r].
        mirrored: `(b,)` bool.
        resolution: r, side of the squares.

    Returns:
        `(b, r, r, c)` of the images' type.
    """
    side, channels = images.shape[1], images.shape[3]
    steps = torch.arange(resolution)
    rows = (chosen * side + corners[:, 0])[:, None] + steps  # (b, r), counted over all images
    columns = corners[:, 1, None] + torch.where(mirrored[:, None], resolution - 1 - steps, steps)
    pixels = rows[:, :, None] * side + columns[:, None, :]
    gathered = images.view(-1, channels).index_select(0, pixels.flatten())
    return gathered.view(len(chosen), resolution, resolution, channels)


def resize_images(images: Tensor, resolution: int) -> Tensor:
    """Bilinear resize with antialiasing, rounded to whole values.

    Args:
        images: `(n, h, w, c)` uint8.
        resolution: r.

    Returns:
        `(n, r, r, c)` uint8, contiguous.
    """
    resized = torch.empty(len(images), resolution, resolution, images.shape[3], dtype=torch.uint8)
    for start in range(0, len(images), RESIZE_CHUNK):
        planes = images[start : start + RESIZE_CHUNK].permute(0, 3, 1, 2)
        planes = functional.interpolate(planes, (resolution, resolution), mode="bilinear", antialias=True)
        resized[start : start + RESIZE_CHUNK] = planes.permute(0, 2, 3, 1)
    return resized


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


class _Normalise:
    """uint8 `(b, r, r, c)` to `((x / 255) - mean) / std`, `(b, c, r, r)` float32 in channels_last."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.scale = (1.0 / (255.0 * torch.tensor(std, dtype=torch.float64))).float().view(1, -1, 1, 1)
        self.shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]).view(1, -1, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        # NHWC seen as NCHW is channels_last already, and the conversion keeps the strides
        return images.permute(0, 3, 1, 2).to(torch.float32).mul_(self.scale).add_(self.shift)

    def undone(self, images: Tensor) -> Tensor:
        """`(b, r, r, c)` uint8 of what was normalised, to the bit; values outside are cut off."""
        pixels = (images.detach().cpu().float() - self.shift) / self.scale
        return pixels.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


class _Policy:
    """AutoAugment's CIFAR-10 policy; what is drawn for an image depends on the seed and its place in the epoch alone."""

    def __init__(self, seed: int) -> None:
        from torchvision.transforms import v2

        self.seed, self.transform = seed, v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)

    def __call__(self, images: Tensor, places: Tensor) -> Tensor:
        """Changed copies of images `(b, r, r, c)` uint8 at `places` `(b,)` of the epoch."""
        changed = torch.empty_like(images)
        with torch.random.fork_rng(devices=[]):
            for index, (image, place) in enumerate(zip(images, places.tolist(), strict=True)):
                torch.default_generator.manual_seed(stream_seed(self.seed, "image", place))
                changed[index] = self.transform(image.permute(2, 0, 1)).permute(1, 2, 0)
        return changed


class _DecodedFiles(Dataset["Tensor | str"]):
    """Image files as `(r, r, 3)` uint8. One that cannot be read gives a message: an exception would reach the caller
    from a worker process wrapped in that process's traceback.
    """

    def __init__(self, paths: list[str], transform: Callable[[Image.Image], Image.Image], seed: int) -> None:
        self.paths, self.transform, self.seed = paths, transform, seed

    def __getitem__(self, index: int) -> Tensor | str:
        path = self.paths[index]
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
        except Exception as error:  # Pillow's readers raise almost anything on damaged files
            return f"cannot read image {path}: {first_line(error)}"
        with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's global generator only
            torch.default_generator.manual_seed(stream_seed(self.seed, "image", index))
            return torch.from_numpy(np.array(self.transform(image)))


def _transform(resolution: int, augment: bool, auto_augment: bool) -> Callable[[Image.Image], Image.Image]:
    from torchvision.transforms import v2

    if not augment:
        short_side = math.ceil(resolution * 256 / 224 / 8) * 8
        return v2.Compose([v2.Resize(short_side), v2.CenterCrop(resolution)])  # type: ignore[no-any-return]
    steps: list[Any] = [v2.RandomResizedCrop(resolution), v2.RandomHorizontalFlip()]
    if auto_augment:
        steps.append(v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET))
    return v2.Compose(steps)  # type: ignore[no-any-return]


def _stack(samples: list[Tensor | str]) -> Tensor | str:
    """`(b, r, r, 3)` uint8, or the first message among the samples."""
    images: list[Tensor] = []
    for sample in samples:
        if isinstance(sample, str):
            return sample
        images.append(sample)
    return torch.stack(images)


def _ignore_interrupt(worker: int) -> None:
    """Ctrl-C reaches the whole process group; a worker leaves when the loader of the main process ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _surviving(loader: "DataLoader[Tensor | str]") -> Iterator[Tensor | str]:
    try:
        yield from loader
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise UserError(f"a process that reads images died ({first_line(error)}); try fewer workers") from error


def _check_request(
    batch_size: int,
    resolution: int,
    rng: np.random.Generator | None,
    augment: bool,
    auto_augment: bool,
    part: tuple[int, int],
    start: int,
) -> None:
    require(start >= 0, f"start must be >= 0, got {start}")
    require(batch_size >= 1, f"batch_size must be >= 1, got {batch_size}")
    require(resolution >= 1, f"resolution must be >= 1 pixel, got {resolution}")
    require(rng is not None or not augment, "augment needs a random generator: pass rng")
    require(augment or not auto_augment, "auto_augment needs augment")
    require(0 <= part[0] < part[1], f"part must be (k, n) with 0 <= k < n, got {part}")


def _checked_indices(indices: npt.NDArray[np.int64], length: int) -> Tensor:
    chosen = torch.from_numpy(np.array(indices, dtype=np.int64))
    inside = not len(chosen) or (int(chosen.min()) >= 0 and int(chosen.max()) < length)
    require(chosen.ndim == 1 and inside, f"a subset needs a list of indices in 0..{length - 1}")
    return chosen


def _of_classes(labels: Tensor, classes: Sequence[int]) -> tuple[npt.NDArray[np.int64], Tensor]:
    """Indices of the images of the classes, and their new labels."""
    require(len(set(classes)) == len(classes) > 0, f"classes must be different ones, got {list(classes)}")
    new = torch.full((max(int(labels.max()), *classes) + 1,), -1, dtype=torch.int64)
    new[list(classes)] = torch.arange(len(classes))
    renamed = new[labels]
    counts = torch.bincount(renamed[renamed >= 0], minlength=len(classes))
    empty = [number for number, count in zip(classes, counts.tolist(), strict=True) if count == 0]
    require(not empty, f"class {empty[0] if empty else ''} has no images")
    chosen = torch.nonzero(renamed >= 0).flatten()
    return chosen.numpy(), renamed[chosen]


def _draw_order(length: int, rng: np.random.Generator | None) -> Tensor:
    return torch.arange(length) if rng is None else torch.from_numpy(rng.permutation(length))


def _split(positions: Tensor, batch_size: int, drop_last: bool, part: tuple[int, int]) -> list[Tensor]:
    """This part of each batch; see `Source.batches`."""
    end = len(positions) // batch_size * batch_size if drop_last else len(positions)
    batches = (positions[start : min(start + batch_size, end)] for start in range(0, end, batch_size))
    return [batch[part[0] :: part[1]] for batch in batches if len(batch) > part[0]]
