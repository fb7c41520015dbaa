"""Labelled images in one folder per class, decoded as they are needed by worker processes; see `recipes.sources`."""
# b batch, r resolution asked for; NHWC as decoded, NCHW when handed out

import copy
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from recipes.pixels import IMAGENET_MEAN, IMAGENET_STD, Normalise
from recipes.sources import check_request, checked_indices, draw_order, indices_of_classes, parts_of_batches
from search_spaces.errors import UserError, first_line
from search_spaces.seeding import stream_seed
from search_spaces.serialisation import require


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
        self._normalise = Normalise(IMAGENET_MEAN, IMAGENET_STD)

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def labels(self) -> Tensor:
        """`(n,)` int64, on the CPU."""
        return self._labels

    def subset(self, indices: npt.NDArray[np.int64]) -> "FolderSource":
        """See `Source.subset`."""
        chosen = checked_indices(indices, len(self))
        view = copy.copy(self)
        view._indices, view._labels = self._indices[chosen], self._labels[chosen]
        return view

    def of_classes(self, classes: Sequence[int]) -> "FolderSource":
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
        chunks = parts_of_batches(draw_order(len(self), rng), batch_size, drop_last, part)[start:]
        seed = int(rng.integers(1 << 62)) if augment and rng is not None else 0
        files = _DecodedFiles(self._paths, _transform(resolution, augment, auto_augment), seed)
        loader: DataLoader[Tensor | str] = DataLoader(
            files,
            batch_sampler=[self._indices[chunk].tolist() for chunk in chunks],
            num_workers=self._workers,
            collate_fn=_stack,
            worker_init_fn=_obey_parent_alone,
            generator=torch.Generator().manual_seed(0),  # else the loader draws from the global one
        )

        def produce() -> Iterator[tuple[Tensor, Tensor]]:
            for chunk, pixels in zip(chunks, _surviving(loader), strict=True):
                if isinstance(pixels, str):
                    raise UserError(pixels)
                yield self._normalise(pixels), self._labels[chunk]

        return produce()


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


def _obey_parent_alone(worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach workers too; they stay until the main process, which saves first, ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait_for_parent() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=wait_for_parent, daemon=True).start()


def _surviving(loader: "DataLoader[Tensor | str]") -> Iterator[Tensor | str]:
    try:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            batches = iter(loader)  # starts the processes, which are born with it blocked
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        yield from batches
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise UserError(f"a process that reads images died ({first_line(error)}); try fewer workers") from error
