"""Files that appear together or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from search_spaces.errors import UserError


class Stage:
    """Files under temporary names beside those they will have."""

    def __init__(self) -> None:
        self.moves: list[tuple[Path, Path]] = []

    def write(self, path: Path, content: bytes) -> Path:
        """Write what will be called ``path``.

        Returns:
            Where it is meanwhile.

        Raises:
            UserError: the disk is full, or the folder cannot be written to.
        """
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self.moves.append((temporary, path))
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from error
        return temporary


@contextmanager
def staged() -> Iterator[Stage]:
    """What was written in it gets its names at the end; after an error it vanishes.

    Raises:
        UserError: a name cannot be given.
    """
    stage = Stage()
    try:
        yield stage
        for temporary, path in stage.moves:
            try:
                temporary.replace(path)
            except OSError as error:
                raise UserError(f"cannot write {path}: {error.strerror}") from error
    finally:
        for temporary, _ in stage.moves:
            temporary.unlink(missing_ok=True)
