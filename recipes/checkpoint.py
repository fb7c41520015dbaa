"""Checkpoints: written whole or not at all, read without running anything that is in them."""

import io
import os
import warnings
from pathlib import Path
from typing import Any

import torch

from search_spaces.errors import UserError


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values under a temporary name, then rename; the file before stays until then.

    Raises:
        UserError: the disk is full or the folder cannot be written to; the file before is kept.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    buffer = io.BytesIO()  # torch turns a full disk into an unspecific RuntimeError if it writes itself
    torch.save(state, buffer)
    try:
        with temporary.open("wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}; the checkpoint before it is kept") from error


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
