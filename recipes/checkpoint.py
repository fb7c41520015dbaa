"""Checkpoints: written whole or not at all, read without running anything that is in them."""

import io
import logging
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch

from search_spaces.errors import UserError

logger = logging.getLogger(__name__)


def save_checkpoint(path: str | Path, state: dict[str, Any], *, keep_previous: bool = False) -> None:
    """Write tensors and plain values under a temporary name, then rename; the file before stays until then.

    Args:
        path: of the file.
        state: to write.
        keep_previous: leave the file before as `previous_checkpoint`.

    Raises:
        UserError: the disk is full or the folder cannot be written to; the file before is kept.
    """
    path = Path(path)
    previous = previous_checkpoint(path)
    temporary, link = (file.with_name(f".{file.name}.{os.getpid()}.tmp") for file in (path, previous))
    buffer = io.BytesIO()  # torch turns a full disk into an unspecific RuntimeError if it writes itself
    torch.save(state, buffer)
    try:
        with temporary.open("wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        if keep_previous and path.exists():  # at no moment is there no whole file called path
            try:
                os.link(path, link)
            except OSError:  # some shared disks know no links
                shutil.copyfile(path, link)
            link.replace(previous)
        temporary.replace(path)
    except OSError as error:
        for leftover in (temporary, link):
            leftover.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}; the checkpoint before it is kept") from error


def previous_checkpoint(path: Path) -> Path:
    """The file that `save_checkpoint` keeps of the one before."""
    return path.with_name(f"{path.stem}-previous{path.suffix}")


def load_latest_checkpoint(path: Path) -> dict[str, Any]:
    """`load_checkpoint`; where the file is damaged, the one before it, with a warning.

    Raises:
        UserError: neither can be read.
    """
    try:
        return load_checkpoint(path)
    except UserError as error:
        previous = previous_checkpoint(path)
        if not previous.is_file():
            raise
        try:
            state = load_checkpoint(previous)
        except UserError:
            raise UserError(f"{error}; the one before it cannot be read either") from error
        logger.warning("%s; going on from %s", error, previous)
        return state


def require_room(path: Path, size: int) -> None:
    """Refuse to start what could not be saved.

    Args:
        path: of the checkpoint; it and the one before may be there already.
        size: bytes of one.

    Raises:
        UserError: less room on the disk than three of them take: the last two and the one being written.
    """
    there = sum(file.stat().st_size for file in (path, previous_checkpoint(path)) if file.is_file())
    free, needed = shutil.disk_usage(path.parent).free, 3 * size - there
    if free < needed:
        raise UserError(
            f"checkpoints of {size / 1e6:.0f} MB need {needed / 1e6:.0f} MB in {path.parent}, {free / 1e6:.0f} MB are free"
        )


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """What `save_checkpoint` wrote, on the CPU. Only tensors and plain values are read, never code.

    Raises:
        UserError: the file is missing, damaged, or holds something else.
    """
    path = Path(path)
    try:
        content = io.BytesIO(path.read_bytes())  # torch reports a truncated file as an OSError too
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # guesses about a foreign file; it is refused in one line below
            state = torch.load(content, weights_only=True, map_location="cpu")
    except Exception as error:  # a damaged or hostile file may raise anything at all
        raise UserError(f"{path} is damaged or not a checkpoint of this toolkit ({type(error).__name__})") from error
    if not isinstance(state, dict):
        raise UserError(f"{path} is not a checkpoint of this toolkit: it holds a {type(state).__name__}")
    return state
