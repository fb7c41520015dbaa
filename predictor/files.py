"""A predictor as one ``.npz`` file: arrays and a JSON header, read without running or trusting anything in it."""

import contextlib
import io
import json
import math
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from predictor.config import ModelShape
from predictor.description import describe, difference, space_of
from predictor.features import Scaling
from predictor.predictor import Predictor, TrainingFacts
from search_spaces.errors import UserError
from search_spaces.serialisation import from_versioned, require, to_plain
from search_spaces.variables import VariableSet

T = TypeVar("T")
SCHEMA = 1
HEADER = "header"
MAX_BYTES = 1 << 24  # a predictor of the FBNetV3 space has 0.1 MB


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """What stands beside the arrays.

    Attributes:
        space: see `predictor.description.describe`.
        shape: sizes of the layers.
        scaling: of the statistics.
        target_mean: of the accuracies, percent.
        target_std: of the accuracies, percentage points.
        num_classes: that were counted; None: statistics were given.
        in_channels: that were counted.
        facts: where the predictor comes from.
    """

    space: dict[str, Any]
    shape: ModelShape
    scaling: Scaling
    target_mean: float
    target_std: float
    num_classes: int | None
    in_channels: int
    facts: TrainingFacts


def save_predictor(predictor: Predictor, path: str | Path) -> None:
    """Write the file atomically; the same predictor gives the same bytes.

    Raises:
        UserError: a space whose options cannot be written as JSON, or a folder that cannot be written to.
    """
    header = Header(
        space=describe(predictor.variables, predictor.num_classes, predictor.in_channels),
        shape=predictor.shape,
        scaling=predictor.scaling,
        target_mean=predictor.target[0],
        target_std=predictor.target[1],
        num_classes=predictor.num_classes,
        in_channels=predictor.in_channels,
        facts=predictor.facts,
    )
    text = json.dumps({"schema": SCHEMA, **to_plain(header)}, allow_nan=False)
    buffer = io.BytesIO()
    content = {HEADER: np.frombuffer(text.encode(), dtype=np.uint8), **predictor.arrays}
    np.savez(buffer, allow_pickle=False, **content)  # type: ignore[arg-type]
    _write_atomic(Path(path), buffer.getvalue())


def load_predictor(path: str | Path, variables: VariableSet | None = None) -> Predictor:
    """What `save_predictor` wrote, bit for bit.

    Args:
        path: the file.
        variables: the space it must be of; None: a joint space of the toolkit by its name, or the bare variables as they
            stand in the file.

    Raises:
        UserError: a missing, damaged or foreign file, or a predictor of another space; the message names the first difference.
    """
    path = Path(path)
    members = _members(path)
    header = _header(path, members.pop(HEADER, b""))
    space = variables if variables is not None else _placed(path, lambda: space_of(header.space))
    own = _placed(path, lambda: describe(space, header.num_classes, header.in_channels))
    found = difference(header.space, own)
    require(not found, f"{path} is a predictor of another space: {found}")
    sizes = {name: size for name, size in header.shape.arrays().items() if not name.startswith("proxy")}
    require(members.keys() == sizes.keys(), f"{path} must hold {', '.join(sizes)}; it holds {_short(sorted(members))}")
    arrays = {name: _array(path, name, members[name], size) for name, size in sizes.items()}
    return _placed(
        path,
        lambda: Predictor(
            space,
            header.shape,
            arrays,
            header.scaling,
            target=(header.target_mean, header.target_std),
            num_classes=header.num_classes,
            in_channels=header.in_channels,
            facts=header.facts,
        ),
    )


def read_header(path: str | Path) -> Header:
    """What stands beside the arrays of a file; the space itself is not needed.

    Raises:
        UserError: a missing, damaged or foreign file.
    """
    path = Path(path)
    return _header(path, _members(path).pop(HEADER, b""))


def _members(path: Path) -> dict[str, bytes]:
    """Contents of the archive by name, without ``.npy``."""
    try:
        require(path.stat().st_size <= MAX_BYTES, f"{path} is larger than {MAX_BYTES} bytes; that is no predictor")
        content = io.BytesIO(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    try:
        with zipfile.ZipFile(content) as archive:
            entries = archive.infolist()
            large = sum(entry.file_size for entry in entries) > MAX_BYTES or len(entries) > 100
            require(not large, f"{path} unpacks to more than {MAX_BYTES} bytes or 100 parts; that is no predictor")
            names = [entry.filename.removesuffix(".npy") for entry in entries]
            require(len(set(names)) == len(names), f"{path} holds one name twice")
            return {name: archive.read(entry) for name, entry in zip(names, entries, strict=True)}
    except UserError:
        raise
    except Exception as error:  # a damaged or hostile file may raise anything at all
        raise UserError(f"{path} is damaged or no predictor of this toolkit ({type(error).__name__})") from error


def _content(path: Path, name: str, part: bytes) -> tuple[tuple[int, ...], np.dtype[Any], bytes]:
    """Shape, type and raw numbers of one ``.npy`` part; nothing is allocated by what it claims."""
    stream = io.BytesIO(part)
    try:
        version = np.lib.format.read_magic(stream)
        require(version == (1, 0), f"{path}: {name} has version {version} of NumPy's format, expected (1, 0)")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    except UserError:
        raise
    except Exception as error:  # the header is a text that NumPy parses
        raise UserError(f"{path} is damaged or no predictor of this toolkit: {name} is no array") from error
    raw = stream.read()
    size = math.prod(shape) * dtype.itemsize
    require(
        not dtype.hasobject and not fortran and len(raw) == size, f"{path} is damaged: {name} is not what it claims"
    )
    return shape, dtype, raw


def _array(path: Path, name: str, part: bytes, size: tuple[int, ...]) -> npt.NDArray[np.float32]:
    shape, dtype, raw = _content(path, name, part)
    wanted = shape == size and dtype == np.dtype("<f4")
    require(wanted, f"{path}: {name} must be float32 {size}, got {dtype} {shape}")
    return np.frombuffer(raw, dtype="<f4").reshape(size).astype(np.float32)


def _header(path: Path, part: bytes) -> Header:
    require(bool(part), f"{path} is no predictor of this toolkit: it has no {HEADER}")
    shape, dtype, raw = _content(path, HEADER, part)
    require(dtype == np.dtype(np.uint8) and len(shape) == 1, f"{path} is damaged: its {HEADER} is no text")
    try:
        data = json.loads(raw.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: its {HEADER} is not JSON ({type(error).__name__})") from error
    return from_versioned(Header, data, SCHEMA, str(path))


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _placed(path: Path, make: Callable[[], T]) -> T:
    """``make()``, its errors placed at the file."""
    try:
        return make()
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _write_atomic(path: Path, content: bytes) -> None:
    """Write under a temporary name beside ``path``, then rename: the file is whole or absent."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):  # gone after the rename, or never there
            temporary.unlink()
