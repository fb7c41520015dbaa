"""A run is a folder: its configuration, what was trained and how, its numbers, its checkpoint. One writer at a time."""

import csv
import fcntl
import importlib.metadata
import io
import json
import logging
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from search_spaces.errors import UserError
from search_spaces.serialisation import read_json, to_plain, write_json, write_text_atomic

logger = logging.getLogger(__name__)

CONFIG, ARCHITECTURE, RECIPE = "config.json", "architecture.json", "recipe.json"
METRICS, CHECKPOINT, LOCK = "metrics.csv", "checkpoint.pt", ".lock"

_locks: set[int] = set()  # descriptors that this process holds a lock with


def _forget_locks() -> None:
    """A forked process must not hold the lock of one that is killed: processes that read images live seconds longer."""
    while _locks:
        os.close(_locks.pop())


os.register_at_fork(after_in_child=_forget_locks)


class _Absent:
    """Stands for a missing key in a comparison."""

    def __repr__(self) -> str:
        return "nothing"


_ABSENT = _Absent()


def versions() -> dict[str, str]:
    """Versions of Python, of this toolkit and of the libraries that decide its numbers."""
    found = {"python": platform.python_version()}
    for label, distribution in (("toolkit", "nas-toolkit"), ("torch",) * 2, ("torchvision",) * 2, ("numpy",) * 2):
        try:
            found[label] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            found[label] = "not installed"  # the toolkit itself, run from a clone
    return found


def read_config(path: str | Path) -> dict[str, Any]:
    """Content of the run folder's `config.json`: the keys `config`, `versions`, `seed`, `command`.

    Raises:
        UserError: the folder is missing or holds no run, or the file is damaged.
    """
    file = Path(path) / CONFIG
    if not file.is_file():
        raise UserError(f"{path} is not a run folder: it holds no {CONFIG}")
    stored = read_json(file)
    if not isinstance(stored, dict) or not isinstance(stored.get("config"), dict):
        raise UserError(f"{file} is damaged: key 'config' is missing")
    known = stored.get("versions", {})
    if not isinstance(known, dict) or not all(isinstance(version, str) for version in known.values()):
        raise UserError(f"{file} is damaged: key 'versions' must be a mapping of names to versions")
    return stored


def first_difference(stored: Any, given: Any, where: str = "") -> tuple[str, Any, Any] | None:
    """(dotted key, stored value, given value) of the first place where two plain values differ."""
    if isinstance(stored, dict) and isinstance(given, dict):
        for key in [*stored, *(key for key in given if key not in stored)]:
            inner = f"{where}.{key}" if where else str(key)
            found = first_difference(stored.get(key, _ABSENT), given.get(key, _ABSENT), inner)
            if found is not None:
                return found
        return None
    return None if stored == given else (where, stored, given)


class RunFolder:
    """A locked run folder; use it as a context manager, after all other input has been checked.

    A new run needs a new or empty folder. With `resume` the folder may hold the same run (same configuration and seed;
    other library versions are logged as a warning), or nothing yet. When an error leaves before there is any result,
    the inputs and folders stored since entering are removed again.

    Args:
        path: the folder; it and its parents are created.
        config: a mapping or dataclass of plain values: everything that decides the result.
        seed: of the run.
        command: how the run was started, for the record.
        resume: continue the run that the folder holds.

    Raises:
        UserError: on entering, if the folder cannot be used; the message says why and what to do.
    """

    def __init__(
        self, path: str | Path, config: Any, *, seed: int, command: Sequence[str] = (), resume: bool = False
    ) -> None:
        self.path = Path(path)
        self.resume = resume
        self._config: dict[str, Any] = json.loads(json.dumps(to_plain(config)))
        self._seed = seed
        self._command = list(command)
        self._lock: int | None = None
        self._made: list[Path] = []  # folders created here, innermost first
        self._fresh = False  # whether this object wrote config.json

    @property
    def config(self) -> Path:
        """Path of `config.json`."""
        return self.path / CONFIG

    @property
    def architecture(self) -> Path:
        """Path of `architecture.json`."""
        return self.path / ARCHITECTURE

    @property
    def recipe(self) -> Path:
        """Path of `recipe.json`."""
        return self.path / RECIPE

    @property
    def metrics(self) -> Path:
        """Path of `metrics.csv`, one row an epoch."""
        return self.path / METRICS

    @property
    def checkpoint(self) -> Path:
        """Path of `checkpoint.pt`."""
        return self.path / CHECKPOINT

    def __enter__(self) -> Self:
        try:
            self._refuse_foreign_folder()
            self._make()
            self._acquire()
            if self.config.exists():
                self._continue_run()
            else:
                self._fresh = True
                write_json(
                    self.config,
                    {
                        "config": self._config, "seed": self._seed, "command": self._command, "versions": versions()
                    },
                )  # fmt: skip
            for leftover in self.path.glob(".*.tmp"):  # a killed writer's: nobody else writes under our lock
                if leftover.is_file():
                    leftover.unlink(missing_ok=True)
        except OSError as error:
            self._leave(undo=True)
            raise UserError(f"cannot use {self.path} as run folder: {error.strerror}") from error
        except BaseException:
            self._leave(undo=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._leave(undo=kind is not None)

    def _refuse_foreign_folder(self) -> None:
        """Nothing is written, not even a lock, into a folder that holds something else."""
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise UserError(f"{self.path} is a file; a run needs a folder")
        entries = [entry.name for entry in self.path.iterdir()]
        leftovers = {name for name in entries if name == LOCK or (name.startswith(".") and name.endswith(".tmp"))}
        if CONFIG not in entries and leftovers != set(entries):
            raise UserError(f"{self.path} is not empty and holds no run; choose another folder")

    def _make(self) -> None:
        missing = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
            self._made.insert(0, folder)

    def _acquire(self) -> None:
        path = self.path / LOCK
        self._lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = os.fstat(self._lock).st_ino == path.stat().st_ino  # else its owner has just removed the run
        except (BlockingIOError, FileNotFoundError):
            held = False
        if not held:
            os.close(self._lock)
            self._lock = None
            raise UserError(f"{self.path} is in use by another process")
        _locks.add(self._lock)

    def _continue_run(self) -> None:
        if not self.resume:
            raise UserError(f"{self.path} already holds a run; use --resume to continue it or choose another folder")
        stored = read_config(self.path)
        difference = first_difference(
            {"config": stored["config"], "seed": stored.get("seed", _ABSENT)},
            {"config": self._config, "seed": self._seed},
        )
        if difference is not None:
            key, before, now = difference
            raise UserError(
                f"{self.path} holds another run: {key.removeprefix('config.')} was {before!r}, now {now!r}; "
                "use the same value to resume or choose another folder"
            )
        changed = first_difference(stored.get("versions", {}), versions())
        if changed is not None:
            logger.warning("%s was started with %s %s, now %s; numbers may differ", self.path, *changed)

    def _leave(self, *, undo: bool) -> None:
        """Release the lock; with `undo` remove what this object made, unless there is more than a run's inputs."""
        if self._lock is not None:
            inputs = {CONFIG, ARCHITECTURE, RECIPE, LOCK}
            if undo and self._fresh and {entry.name for entry in self.path.iterdir()} <= inputs:
                for name in inputs:
                    (self.path / name).unlink(missing_ok=True)
            _locks.discard(self._lock)
            fcntl.flock(
                self._lock, fcntl.LOCK_UN
            )  # closing alone would leave it to processes that a library has forked
            os.close(self._lock)
            self._lock = None
        if undo:
            for folder in self._made:
                try:
                    folder.rmdir()
                except OSError:  # no longer empty: somebody else uses it
                    break

    def append_metrics(self, row: Mapping[str, float]) -> None:
        """Append a row to `metrics.csv`; the first row's keys are the header. On disk when this returns.

        Raises:
            ValueError: other keys than the header's.
            UserError: the file cannot be written to.
        """
        try:
            with self.metrics.open("a+", encoding="utf-8", newline="") as file:
                file.seek(0)
                header = file.readline().rstrip("\n")
                if header and header.split(",") != list(row):
                    raise ValueError(f"columns must be {header}, got {','.join(row)}")
                lines = [] if header else [list(row)]
                csv.writer(file, lineterminator="\n").writerows([*lines, [repr(value) for value in row.values()]])
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"cannot write {self.metrics}: {error.strerror}") from error

    def truncate_metrics(self, epochs_done: int) -> None:
        """Keep the rows of epochs < `epochs_done`; drop later ones and whatever a killed process left half-written.

        Raises:
            UserError: the file is damaged, or cannot be read or written.
        """
        if not self.metrics.exists():
            return
        if not self.metrics.is_file():
            raise UserError(f"{self.metrics} is damaged: it must be a file")
        try:
            if epochs_done == 0:
                self.metrics.unlink()
                return
            content = self.metrics.read_bytes()
        except OSError as error:
            raise UserError(f"cannot use {self.metrics}: {error.strerror}") from error
        lines = content.decode("utf-8", errors="replace").splitlines(keepends=True)
        whole = list(csv.reader(io.StringIO("".join(line for line in lines if line.endswith("\n")))))
        if not whole or "epoch" not in whole[0]:
            raise UserError(f"{self.metrics} is damaged: its header has no column 'epoch'")
        header, *rows = whole
        at = header.index("epoch")
        kept = [row for row in rows if len(row) == len(header) and row[at].isdigit() and int(row[at]) < epochs_done]
        write_text_atomic(self.metrics, "".join(",".join(row) + "\n" for row in [header, *kept]))
