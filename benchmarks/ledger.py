"""Finished pieces of a long study: a line of JSON each, in a file that is committed, so that any machine can go on with it.

A piece is known by its key, plain values that decide its result. Pieces may be added in any order, by one process at a time.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from search_spaces.serialisation import require


class Ledger:
    """Pieces by key, in a file of lines ``{"key": ..., "value": ...}``."""

    def __init__(self, path: Path) -> None:
        """Read what is there. What a kill has cut short at the end is left out, and overwritten by the next piece.

        Args:
            path: of the file; need not exist.

        Raises:
            UserError: a whole line that is no piece.
        """
        self.path = path
        self._pieces: dict[str, Any] = {}
        text = path.read_bytes() if path.is_file() else b""
        self._length = text.rfind(b"\n") + 1
        for number, line in enumerate(text[: self._length].splitlines(), start=1):
            piece = _piece(line)
            require(piece is not None, f"line {number} of {path} is no finished piece of a study")
            assert piece is not None
            self._pieces[_text(piece["key"])] = piece["value"]

    def __len__(self) -> int:
        return len(self._pieces)

    def __contains__(self, key: Mapping[str, Any]) -> bool:
        return _text(key) in self._pieces

    def __getitem__(self, key: Mapping[str, Any]) -> Any:
        """What `add` was given for the key.

        Raises:
            KeyError: it is not there.
        """
        return self._pieces[_text(key)]

    def add(self, key: Mapping[str, Any], value: Any) -> None:
        """Keep a piece; on disk when this returns.

        Args:
            key: plain values that decide the result.
            value: the result, plain values.
        """
        line = json.dumps({"key": key, "value": value}, sort_keys=True, allow_nan=False).encode() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("r+b" if self.path.exists() else "wb") as file:
            file.seek(self._length)
            file.write(line)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        self._length += len(line)
        self._pieces[_text(key)] = json.loads(line)["value"]


def _text(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True, allow_nan=False)


def _piece(line: bytes) -> dict[str, Any] | None:
    try:
        piece = json.loads(line)
    except ValueError:
        return None
    return piece if isinstance(piece, dict) and piece.keys() == {"key", "value"} else None
