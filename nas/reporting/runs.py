"""What a run folder holds, for reports: read once, checked, nothing changed. No torch here."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nas.reporting.candidates import Candidate, read_candidates
from nas.reporting.number_table import EPOCH, Columns, read_number_table
from recipes.run_folder import ARCHITECTURE, CONFIG, METRICS, read_config
from search_spaces.architecture import MAX_RESOLUTION, Architecture
from search_spaces.errors import UserError
from search_spaces.options import as_number
from search_spaces.serialisation import read_json, require

ALPHA, RESULT, TRIALS, ANSWER, ANSWERS = "alpha.csv", "result.json", "trials.db", "answer.json", "answers.csv"
KINDS = ("search", "nars", "query", "train", "candidate", "run")  # in the order of reports
MOST_RUNS = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A run folder.

    Attributes:
        path: of the folder.
        name: the folder's name.
        kind: one of `KINDS`.
        config: everything that decided the result.
        seed: of the run, None where there is none.
        command: how it was started, without the program's name; empty where that is not known.
        versions: of the libraries by name.
        metrics: columns of `metrics.csv`.
        alpha: columns of `alpha.csv`.
        architecture: its network, where there is one of ours.
        result: content of `result.json`; empty before the run has ended.
        candidates: of the rounds of `nas nars`.
        answers: lines of a query's table by column, the texts.
        networks: of a query's answers, by their number.
    """

    path: Path
    name: str
    kind: str
    config: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    command: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    metrics: Columns = field(default_factory=dict)
    alpha: Columns = field(default_factory=dict)
    architecture: Architecture | None = None
    result: Mapping[str, Any] = field(default_factory=dict)
    candidates: tuple[Candidate, ...] = ()
    answers: tuple[Mapping[str, str], ...] = ()
    networks: Mapping[str, Architecture] = field(default_factory=dict)

    @property
    def epochs_done(self) -> int:
        """Rows of `metrics.csv`."""
        return len(self.metrics.get(EPOCH, ()))

    @property
    def epochs_planned(self) -> int | None:
        """Epochs of the whole run; None where that is not told."""
        settings = self.config.get("search" if self.kind == "search" else "recipe")
        if not isinstance(settings, Mapping):
            return None
        stop = self.config.get("epochs") if self.kind == "candidate" else None
        planned = stop or settings.get("early_stop_epoch") or settings.get("epochs")
        return planned if type(planned) is int else None

    @property
    def ended(self) -> bool:
        """Whether the run has come to its end."""
        if self.kind == "query":
            return True
        if self.kind in ("search", "train"):
            return bool(self.result)
        if self.kind == "nars":
            return bool(self.result) and not any(one.status == "waiting" for one in self.candidates)
        return self.epochs_planned is None or self.epochs_done >= self.epochs_planned

    @property
    def cpu_seconds(self) -> float:
        """CPU time; NaN where it is not told."""
        if self.kind == "nars":
            return sum(one.seconds for one in self.candidates)
        return sum(self.metrics["seconds"]) if "seconds" in self.metrics else math.nan

    @property
    def resolution(self) -> int | None:
        """Side of the images in pixels that the network was trained on, else its own."""
        given = self.config.get("resolution")
        if type(given) is int and 1 <= given <= MAX_RESOLUTION:
            return given
        return None if self.architecture is None else self.architecture.resolution

    @property
    def choices(self) -> Mapping[str, Any]:
        """Option taken, by variable, of a search that has ended.

        Raises:
            UserError: something else stands there.
        """
        found = self.result.get("choices", {})
        require(isinstance(found, Mapping), f"{self.path / RESULT} is damaged: choices must be a mapping")
        return dict(found)

    def number(self, *keys: str) -> float:
        """A number of the result, NaN where it is not there.

        Raises:
            UserError: something else stands there.
        """
        value: Any = self.result
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is None:
            return math.nan
        fits = isinstance(value, (int, float)) and not isinstance(value, bool)
        require(fits, f"{self.path / RESULT} is damaged: {'.'.join(keys)} must be a number, got {str(value)[:40]!r}")
        return as_number(value)

    @property
    def stop_epoch(self) -> int | None:
        """After which the trainings of later rounds of `nas nars` ended early; None: they did not."""
        told = self.number("stop_epoch")
        if math.isfinite(told) and told >= 1:
            return int(told)
        lengths = {len(one.curve) for one in self.candidates if one.curve}  # a result is written at the end only
        return min(lengths) if len(lengths) > 1 else None


def find_runs(paths: Sequence[str | Path]) -> list[Path]:
    """The run folders meant: each path itself, or where it is a folder of run folders, these; none twice.

    Raises:
        UserError: a path that is neither.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        require(path.exists(), f"{path}: there is no such folder")
        require(path.is_dir(), f"{path} is a file; a report needs run folders")
        inner = [path] if _is_run(path) else sorted(child for child in path.iterdir() if _is_run(child))
        require(bool(inner), f"{path} is not a run folder: it holds no {CONFIG}, nor folders that do")
        for folder in inner:
            found.setdefault(folder.resolve(), folder)
    require(bool(found), "a report needs at least one run folder")
    require(len(found) <= MOST_RUNS, f"a report shows at most {MOST_RUNS} runs, got {len(found)}")
    return list(found.values())


def _is_run(path: Path) -> bool:
    return path.is_dir() and any((path / name).is_file() for name in (CONFIG, ANSWERS, ANSWER))


def read_run(path: str | Path) -> Run:
    """Everything in a run folder, finished or not.

    Raises:
        UserError: no run folder, or a damaged file in it.
    """
    path = Path(path)
    if not (path / CONFIG).is_file() and _is_run(path):
        return _read_query(path)
    stored = read_config(path)
    config = stored["config"]
    kind = config.get("kind", "candidate" if {"id", "architecture", "recipe"} <= config.keys() else "run")
    seed, command = stored.get("seed"), stored.get("command", [])
    require(isinstance(command, list), f"{path / CONFIG} is damaged: key 'command' must be a list")
    result = read_json(path / RESULT) if (path / RESULT).is_file() else {}
    require(isinstance(result, dict), f"{path / RESULT} is damaged: it must hold a mapping")
    return Run(
        path=path,
        name=folder_name(path),
        kind=kind if kind in KINDS else "run",
        config=config,
        seed=seed if type(seed) is int else None,
        command=tuple(map(str, command)),
        versions=stored.get("versions", {}),
        metrics=read_number_table(path / METRICS),
        alpha=read_number_table(path / ALPHA),
        architecture=_architecture(path, config),
        result=result,
        candidates=read_candidates(path / TRIALS) if (path / TRIALS).is_file() else (),
    )


def folder_name(path: Path) -> str:
    """Last part of the folder's path, as given where that says it."""
    return path.name if path.name not in ("", "..") else path.resolve().name or str(path)


def _architecture(path: Path, config: Mapping[str, Any]) -> Architecture | None:
    """The run's network: its file, else the one in its configuration (candidates of `nas nars`)."""
    if (path / ARCHITECTURE).is_file():
        return Architecture.load(path / ARCHITECTURE)
    plain = config.get("architecture")
    return Architecture.from_json(plain, f"{path / CONFIG}: architecture") if isinstance(plain, dict) else None


def _read_query(path: Path) -> Run:
    """A folder that `nas query` wrote, or that of one of several answers."""
    lines = _lines(path / ANSWERS) if (path / ANSWERS).is_file() else [_answer(path / ANSWER)]
    folders = {line["answer"]: path / line["answer"] for line in lines if line.get("answer", "").isdigit()}
    networks = {number: folder / ARCHITECTURE for number, folder in folders.items()}
    if (path / ARCHITECTURE).is_file():
        networks = {"1": path / ARCHITECTURE}
    loaded = {number: Architecture.load(file) for number, file in networks.items() if file.is_file()}
    return Run(
        path=path, name=folder_name(path), kind="query", answers=tuple(lines), networks=loaded,
        architecture=loaded["1"] if len(lines) == 1 and "1" in loaded else None,
    )  # fmt: skip


def _lines(path: Path) -> list[dict[str, str]]:
    """Lines of a table of texts.

    Raises:
        UserError: the file is damaged.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    whole = bool(lines) and all(None not in line and None not in line.values() for line in lines)
    require(whole, f"{path} is damaged: it must hold a line for every answer, each with all columns")
    return lines


def _answer(path: Path) -> dict[str, str]:
    """The one line of `answers.csv` that an `answer.json` stands for."""
    plain = read_json(path)
    require(isinstance(plain, dict), f"{path} is damaged: it must hold a mapping")
    values = plain.pop("values", {})
    require(isinstance(values, dict), f"{path} is damaged: key 'values' must be a mapping")
    return {"answer": "1", **{str(key): str(value) for key, value in {**plain, **values}.items()}}
