"""Data sets by name. Nothing is downloaded here: `recipes.fetch` gets what is missing.

The decoded arrays of a downloaded set are checked against SHA-256 sums whenever it is loaded, so a damaged or different
file is refused rather than trained on. No pickle is read but torchvision's own CIFAR-10 batches, after its md5 check.
"""

import hashlib
import os
import shlex
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch

from recipes.folder_source import FolderSource
from recipes.pixels import resize_images
from recipes.sources import Source, split_indices
from recipes.tensor_source import TensorSource
from search_spaces.errors import UserError, closest
from search_spaces.seeding import numpy_rng
from search_spaces.serialisation import require

Arrays = dict[str, npt.NDArray[np.uint8]]  # x_train (n, h, h[, 3]), y_train (n,), x_test, y_test

DATASETS: Mapping[str, str] = MappingProxyType(
    {
        "digits": "1,797 handwritten digits, 8x8 grey (shown at 16x16), 10 classes; comes with scikit-learn",
        "mnist": "70,000 handwritten digits, 28x28 grey, 10 classes",
        "fashion-mnist": "70,000 pieces of clothing, 28x28 grey, 10 classes",
        "cifar10": "60,000 photographs, 32x32 colour, 10 classes",
        "imagefolder:PATH": "your own images in PATH/train/CLASS/ and PATH/val/CLASS/, trained at 224x224",
    }
)
FOLDER_PREFIX = "imagefolder:"

DIGITS_TRAIN = 1437  # of 1,797, four fifths
DIGITS_RESOLUTION = 16  # 8x8 is too small for networks that halve the resolution a few times
DIGITS_MEAN, DIGITS_STD = 0.3045, 0.3184  # of the training part at 16x16, in [0, 1]


@dataclass(frozen=True)
class Dataset:
    """Labelled images for training and for testing."""

    name: str
    num_classes: int
    in_channels: int
    resolution: int  # native side in pixels, the default to train at
    class_names: tuple[str, ...]
    train: Source
    test: Source

    def of_classes(self, count: int, seed: int) -> "Dataset":
        """So many of the classes, chosen at random, with all their images; the order of classes stays.

        Raises:
            UserError: fewer than two, or more than there are.
        """
        require(2 <= count <= self.num_classes, f"classes must be in 2..{self.num_classes}, got {count}")
        chosen = sorted(numpy_rng(seed, "classes").permutation(self.num_classes)[:count].tolist())
        return replace(
            self,
            num_classes=count,
            class_names=tuple(self.class_names[index] for index in chosen),
            train=self.train.of_classes(chosen),
            test=self.test.of_classes(chosen),
        )


@dataclass(frozen=True, kw_only=True)
class Download:
    """What is known of a set that has to be downloaded."""

    folder: str  # below the data folder
    class_names: tuple[str, ...]
    mean: tuple[float, ...]  # of the training images, in [0, 1]
    std: tuple[float, ...]
    flip: bool
    crop_padding: int  # pixels
    shape: tuple[int, ...]  # of an image
    images: Mapping[str, int]  # of "train" and "test"
    sha256: Mapping[str, str]  # of the bytes of each of `Arrays`


IDX_FILES: Mapping[str, str] = MappingProxyType(
    {
        "x_train": "train-images-idx3-ubyte",
        "y_train": "train-labels-idx1-ubyte",
        "x_test": "t10k-images-idx3-ubyte",
        "y_test": "t10k-labels-idx1-ubyte",
    }
)
CIFAR10_FILE = "cifar10.npz"

DOWNLOADS: Mapping[str, Download] = MappingProxyType(
    {
        "mnist": Download(
            folder="MNIST/raw",
            class_names=tuple("0123456789"),
            mean=(0.1307,),
            std=(0.3081,),
            flip=False,
            crop_padding=2,
            shape=(28, 28),
            images={"train": 60_000, "test": 10_000},
            sha256={
                "x_train": "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
                "y_train": "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
                "x_test": "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
                "y_test": "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
            },
        ),
        "fashion-mnist": Download(
            folder="FashionMNIST/raw",
            class_names=(
                "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
                "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
            ),
            mean=(0.2860,),
            std=(0.3530,),
            flip=True,
            crop_padding=2,
            shape=(28, 28),
            images={"train": 60_000, "test": 10_000},
            sha256={
                "x_train": "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
                "y_train": "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
                "x_test": "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
                "y_test": "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
            },
        ),
        "cifar10": Download(
            folder="cifar10",
            class_names=(
                "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
            ),
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
            flip=True,
            crop_padding=4,
            shape=(32, 32, 3),
            images={"train": 50_000, "test": 10_000},
            sha256={
                "x_train": "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
                "y_train": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
                "x_test": "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
                "y_test": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
            },
        ),
    }
)  # fmt: skip


def load_dataset(name: str, data_dir: str | Path | None = None, *, workers: int | None = None) -> Dataset:
    """A data set of `DATASETS`.

    Args:
        name: for example `cifar10` or `imagefolder:~/photos`.
        data_dir: folder of downloaded sets; default: see `default_data_dir`.
        workers: processes that decode an image folder; see `FolderSource`. The other sets are held in memory.

    Raises:
        UserError: an unknown name, a set that is missing or damaged.
    """
    if name.startswith(FOLDER_PREFIX):
        return _load_folder(name, workers)
    if name == "digits":
        return _load_digits()
    download = download_facts(name)
    arrays = read_arrays(name, resolve_data_dir(data_dir))
    sources = []
    for part in ("train", "test"):
        images = torch.from_numpy(arrays[f"x_{part}"])
        sources.append(
            TensorSource(
                images if images.ndim == 4 else images[..., None],
                torch.from_numpy(arrays[f"y_{part}"]),
                mean=download.mean,
                std=download.std,
                flip=download.flip,
                crop_padding=download.crop_padding,
            )
        )
    return Dataset(
        name=name,
        num_classes=len(download.class_names),
        in_channels=len(download.mean),
        resolution=download.shape[0],
        class_names=download.class_names,
        train=sources[0],
        test=sources[1],
    )


def resolve_data_dir(data_dir: str | Path | None) -> Path:
    """The folder given, else that of the environment variable NAS_DATA, else `~/.cache/nas-toolkit/data`.

    Raises:
        UserError: it starts with the home folder of a user who does not exist.
    """
    return _expand(data_dir or os.environ.get("NAS_DATA") or "~/.cache/nas-toolkit/data")


def download_facts(name: str) -> Download:
    """What is known of the set `name`.

    Raises:
        UserError: the name is unknown.
    """
    if name not in DOWNLOADS:
        raise UserError(f"unknown dataset {name!r}{closest(name, DATASETS)}")
    return DOWNLOADS[name]


def read_arrays(name: str, data_dir: Path) -> Arrays:
    """The checked arrays of a downloaded set.

    Raises:
        UserError: the set is missing, a file is damaged or holds something else.
    """
    folder = data_dir / download_facts(name).folder
    if name == "cifar10":
        if (folder / CIFAR10_FILE).is_file():
            return check_arrays(name, _read_npz(folder / CIFAR10_FILE), lambda key: folder / CIFAR10_FILE)
        original = data_dir / "cifar-10-batches-py"
        if original.is_dir():
            return check_arrays(name, read_original_cifar10(data_dir), lambda key: original)
    elif all((folder / file).is_file() for file in IDX_FILES.values()):
        return check_arrays(name, read_idx_arrays(folder), lambda key: folder / IDX_FILES[key])
    raise UserError(
        f"dataset {name!r} is not in {data_dir}; "
        f"get it with: nas data get {name} --data-dir {shlex.quote(str(data_dir))}"
    )


def check_arrays(name: str, arrays: Arrays, where: Callable[[str], object]) -> Arrays:
    """The arrays, if they are those of the set `name`: types, shapes and SHA-256.

    Args:
        name: of `DOWNLOADS`.
        arrays: to be checked; keys that do not belong to a set are dropped.
        where: the file that an array is from, for the message.

    Raises:
        UserError: they are not.
    """
    facts = download_facts(name)
    checked = {}
    for key, sha256 in facts.sha256.items():
        kind, part = key.split("_")
        shape = (facts.images[part], *(facts.shape if kind == "x" else ()))
        array = arrays[key]
        require(
            array.dtype == np.uint8 and array.shape == shape,
            f"{where(key)} is not {name}'s {key}: it holds {array.dtype} {array.shape} instead of uint8 {shape}",
        )
        checked[key] = np.ascontiguousarray(array)
        found = hashlib.sha256(checked[key].data).hexdigest()
        require(found == sha256, f"{where(key)} is damaged or not {name}'s {key}: its SHA-256 is {found}, not {sha256}")
    return checked


def read_idx_arrays(folder: Path) -> Arrays:
    """The four files of MNIST's format, as torchvision reads them.

    Raises:
        UserError: one of them is not such a file; the message names it.
    """
    from torchvision.datasets.mnist import read_image_file, read_label_file  # 2 s to import

    arrays = {}
    for key, file in IDX_FILES.items():
        read = read_image_file if key.startswith("x") else read_label_file
        try:
            arrays[key] = read(str(folder / file)).numpy().astype(np.uint8)
        except (OSError, ValueError, TypeError, LookupError, AssertionError, RuntimeError) as error:
            raise UserError(f"{folder / file} is damaged: it is not a whole idx file") from error
    return arrays


def read_original_cifar10(root: Path) -> Arrays:
    """CIFAR-10 as torchvision keeps it in `root`; unpickled only after torchvision's md5 check of every file.

    Raises:
        UserError: the check fails.
    """
    from torchvision.datasets import CIFAR10

    arrays = {}
    for part in ("train", "test"):
        try:
            batches = CIFAR10(str(root), train=part == "train", download=False)
        except (OSError, RuntimeError) as error:
            raise UserError(f"{root / CIFAR10.base_folder} is incomplete or damaged: its md5 check fails") from error
        arrays[f"x_{part}"] = np.asarray(batches.data, dtype=np.uint8)
        arrays[f"y_{part}"] = np.array(batches.targets, dtype=np.uint8)
    return arrays


def _read_npz(path: Path) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in ("x_train", "y_train", "x_test", "y_test")}
    except (
        OSError, ValueError, LookupError, TypeError, EOFError, RuntimeError, MemoryError, AttributeError, zlib.error,
        zipfile.BadZipFile,
    ) as error:  # fmt: skip
        raise UserError(f"{path} is damaged: it is not a whole npz file of plain arrays") from error


def _load_digits() -> Dataset:
    """scikit-learn's digits: 8x8 values 0..16 scaled to 0..255, upsampled once to 16x16, split the same way always."""
    from sklearn.datasets import load_digits

    stored = load_digits()
    images = torch.from_numpy(np.rint(stored.images * (255 / 16)).astype(np.uint8))[..., None]
    source = TensorSource(
        resize_images(images, DIGITS_RESOLUTION),
        torch.from_numpy(stored.target),
        mean=(DIGITS_MEAN,),
        std=(DIGITS_STD,),
        crop_padding=1,
    )
    train, test = split_indices(source.labels, DIGITS_TRAIN / len(source), numpy_rng(0, "digits split"))
    return Dataset(
        name="digits",
        num_classes=10,
        in_channels=1,
        resolution=DIGITS_RESOLUTION,
        class_names=tuple("0123456789"),
        train=source.subset(train),
        test=source.subset(test),
    )


def _load_folder(name: str, workers: int | None) -> Dataset:
    given = name.removeprefix(FOLDER_PREFIX)
    require(bool(given), f"{FOLDER_PREFIX}PATH needs the path of a folder with train/ and val/ in it")
    path = _expand(given).absolute()
    train, test = (FolderSource(path / part, workers=workers) for part in ("train", "val"))
    differing = sorted(set(train.class_names) ^ set(test.class_names))
    require(not differing, f"{path}: train and val need the same classes; in one only: {', '.join(differing[:5])}")
    require(
        len(train.class_names) >= 2, f"{path}: training needs at least 2 classes, got {train.class_names[0]!r} only"
    )
    return Dataset(
        name=f"{FOLDER_PREFIX}{path}",  # of a run started in any folder
        num_classes=len(train.class_names),
        in_channels=3,
        resolution=224,
        class_names=train.class_names,
        train=train,
        test=test,
    )


def _expand(path: str | Path) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"cannot find the home folder of {path}") from error
