"""``nas tree-reg``: a toy or a table, a network, a penalty; the tree that mimics the result, in a run folder."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from sklearn.tree import export_text
from torch import Tensor, nn

from nas.reporting.charts import Line, Panel, draw
from nas.trees.regularisation.path_length import MAX_DEPTH, Mimic
from nas.trees.regularisation.series import GRUHMM, GRUClassifier, fit_markov
from nas.trees.regularisation.toys import STATES, Split, markov, parabola
from nas.trees.regularisation.training import (
    HIDDEN,
    SAVE_EVERY_S,
    EpochDone,
    RegularisationOptions,
    Regularised,
    check_labels,
    perceptron,
    seeded,
    train_regularised,
)
from recipes.checkpoint import save_checkpoint
from recipes.run_folder import RunFolder
from recipes.sources import split_indices
from search_spaces.errors import UserError, closest
from search_spaces.seeding import numpy_rng
from search_spaces.serialisation import require, to_plain, write_json, write_text_atomic

RESULT, TREE, WEIGHTS, CURVES = "result.json", "tree.txt", "weights.pt", "path_length.svg"
MOST_CLASSES = 100  # of a table's labels that are numbers; more are a quantity

Series = Literal["gru", "gru-hmm"]
SERIES: tuple[Series, ...] = ("gru", "gru-hmm")


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained on what.

    Attributes:
        name: of data and network.
        split: data.
        model: untrained.
        penalised: part of it whose path length counts; None for all of it.
        classes: names.
        settings: plain values that decide data and network besides the name and the seed.
    """

    name: str
    split: Split
    model: nn.Module
    penalised: nn.Module | None = None
    classes: tuple[str, ...] = ("0", "1")
    settings: Mapping[str, Any] = field(default_factory=dict)


class Standardise(nn.Module):
    """Features less their mean, divided by their deviation: trees see the features as they are, the network sees these."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, rows: Tensor) -> None:
        """Measure the training rows `(n, d)`."""
        super().__init__()
        self.register_buffer("mean", rows.mean(0))
        deviation = rows.std(0, correction=0)
        self.register_buffer("deviation", torch.where(deviation > 0, deviation, 1))

    def forward(self, rows: Tensor) -> Tensor:
        """Rows `(n, d)` of mean 0 and deviation 1."""
        return (rows - self.mean) / self.deviation


def parabola_task(seed: int) -> Task:
    """Document 002's toy: 350 points, 2-100-100-10-1."""
    return Task(name="parabola", split=parabola(seed), model=perceptron(2, 1, seed))


def markov_task(seed: int, network: str = "gru", hidden: int = 20) -> Task:
    """The hidden Markov series with a GRU of so many units, or with the residual GRU-HMM."""
    require(network in SERIES, f"unknown network {network!r}{closest(network, SERIES)}")
    require(hidden >= 1, f"hidden must be >= 1, got {hidden}")
    split = markov(seed)
    features = split.inputs.shape[2]
    if network == "gru":
        with seeded(seed, "weights"):
            return Task(
                name="markov, gru", split=split, model=GRUClassifier(features, hidden), settings={"hidden": hidden}
            )
    fitted, _ = fit_markov(split.inputs.numpy(), STATES, numpy_rng(seed, "markov fit"))
    with seeded(seed, "weights"):
        model = GRUHMM(fitted, hidden)
    return Task(name="markov, gru-hmm", split=split, model=model, penalised=model.residual, settings={"hidden": hidden})


def table_task(path: str | Path, label: str, *, seed: int, held_out: float = 0.3) -> Task:
    """A CSV file of numbers with a column of labels, and the toy's perceptron.

    Args:
        path: of the file; its first line names the columns.
        label: name of the column of classes; all others are features.
        seed: of the split and of the initial weights.
        held_out: share of the rows for testing, in (0, 1).

    Raises:
        UserError: a file that cannot be read, no such column, features that are no numbers, labels of one class or that are
            a quantity rather than classes.
    """
    require(seed >= 0, f"seed must be >= 0, got {seed}")
    require(0 < held_out < 1, f"held_out must be in (0, 1), got {held_out}")
    table = _read_table(Path(path), label)
    codes, classes = _classes_of(table[label], label)
    features = table.drop(columns=label)
    for name in features:
        require(
            pd.api.types.is_numeric_dtype(features[name]) and bool(features[name].notna().all()),
            f"column {name!r} must be numbers without gaps",
        )
    rows = torch.tensor(features.to_numpy(dtype="float32"))
    train, test = split_indices(codes, 1 - held_out, numpy_rng(seed, "table split"))
    split = Split(rows[train], codes[train], rows[test], codes[test], tuple(map(str, features)))
    check_labels(split.labels)
    outputs = 1 if len(classes) == 2 else len(classes)
    model = nn.Sequential(Standardise(split.inputs), *perceptron(rows.shape[1], outputs, seed, HIDDEN))
    settings = {"label": label, "held_out": held_out, "sha256": sha256(Path(path).read_bytes()).hexdigest()}
    return Task(name=Path(path).name, split=split, model=model, classes=classes, settings=settings)


def _read_table(path: Path, label: str) -> pd.DataFrame:
    try:
        table = pd.read_csv(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, pd.errors.ParserError) as error:
        raise UserError(f"{path} is no CSV table: {error}") from error
    require(label in table.columns, f"{path} has no column {label!r}{closest(label, map(str, table.columns))}")
    require(len(table.columns) >= 2 and len(table) >= 4, f"{path} needs a feature and 4 rows, got {table.shape}")
    return table


def _classes_of(column: "pd.Series[Any]", name: str) -> tuple[Tensor, tuple[str, ...]]:
    require(bool(column.notna().all()), f"column {name!r} has gaps")
    if pd.api.types.is_numeric_dtype(column):
        numbers = column.to_numpy(dtype="float64")
        broken = numbers[numbers != numbers.round()]
        require(
            len(broken) == 0 and column.nunique() <= MOST_CLASSES,
            f"column {name!r} is a quantity ({broken[0] if len(broken) else numbers[0]:g}, {column.nunique()} different"
            " values), not classes: tree regularisation is for classifiers, not for regression",
        )
    codes, classes = pd.factorize(column, sort=True)
    require(len(classes) >= 2, f"column {name!r} needs at least 2 classes, got {classes[0]!r} only")
    return torch.tensor(codes), tuple(map(str, classes))


def regularise(
    task: Task,
    options: RegularisationOptions,
    *,
    seed: int,
    layers: Sequence[str] | None = None,
    out: str | Path | None = None,
    command: Sequence[str] = (),
    progress: Callable[[EpochDone], None] | None = None,
    resume: bool = False,
    save_every_s: float = SAVE_EVERY_S,
) -> Regularised:
    """Train the task's network with a penalty.

    Killed at any moment, a run goes on from its last checkpoint with ``resume``, and ends as if it had not been.

    Args:
        task: data and network.
        options: of training and penalty.
        seed: of the order of rows and of the penalty's surrogates.
        layers: names of the penalised layers; None for all.
        out: run folder for `checkpoint.pt`, `result.json`, `tree.txt`, `weights.pt`, and of a tree penalty `metrics.csv`
            and `path_length.svg`; None writes nothing.
        command: recorded in the folder.
        progress: told after every epoch.
        resume: continue the run in ``out``.
        save_every_s: seconds between checkpoints at least, see `train_regularised`.

    Raises:
        UserError: see `train_regularised`; a folder that is not empty, or holds another run.
    """
    require(not resume or out is not None, "resume needs a run folder")
    recorded = {
        "kind": "tree-reg",
        "task": task.name,
        "settings": to_plain(task.settings),
        "layers": None if layers is None else list(layers),
        "threads": torch.get_num_threads(),
        **to_plain(options),
    }
    folder: RunFolder | nullcontext[None] = nullcontext()
    if out is not None:
        folder = RunFolder(out, recorded, seed=seed, command=command, resume=resume)
    with folder as run:
        result = train_regularised(
            task.model, task.split, options, seed=seed, penalised=task.penalised, layers=layers, progress=progress,
            checkpoint=None if run is None else run.checkpoint, save_every_s=save_every_s,
        )  # fmt: skip
        if run is not None:
            _write(run, result, task)
    return result


def tree_text(result: Regularised, task: Task) -> str:
    """The tree that mimics the network, as indented text."""
    return mimic_text(result.mimic, task.split.features, task.classes)


def mimic_text(mimic: Mimic, features: Sequence[str], classes: Sequence[str]) -> str:
    """A tree as indented text.

    Args:
        mimic: the tree.
        features: d names.
        classes: k names.
    """
    names = [classes[index] for index in mimic.tree.classes_]
    text: str = export_text(mimic.tree, feature_names=list(features), class_names=names, max_depth=MAX_DEPTH)
    return text


def _write(run: RunFolder, result: Regularised, task: Task) -> None:
    write_json(run.path / RESULT, {"classes": list(task.classes), **plain_numbers(result)})
    write_text_atomic(run.path / TREE, tree_text(result, task))
    save_checkpoint(run.path / WEIGHTS, {"model": result.model.state_dict()})
    run.truncate_metrics(0)  # of a run that was killed here
    for seen in result.history:
        run.append_metrics({**asdict(seen), "epoch": seen.epoch - 1})
    if result.history:
        draw([tracking_panel(result)], run.path / CURVES, "Path length by epoch, and what the surrogate foretold.")


def plain_numbers(result: Regularised) -> dict[str, float | None]:
    """All that is a number, by name; None for NaN, which JSON has not."""
    found: dict[str, float | None] = json.loads(pd.Series(result.numbers()).to_json(double_precision=15))
    return found


def tracking_panel(result: Regularised, title: str = "average path length") -> Panel:
    """True and foretold path length by epoch (document 002, Fig. 12)."""
    epochs = [seen.epoch for seen in result.history]
    return Panel(
        title=title, x_label="epoch", from_zero=True,
        lines=[
            Line(name="of a fitted tree", x=epochs, y=[seen.path_length for seen in result.history]),
            Line(name="foretold by the surrogate", x=epochs, y=[seen.predicted for seen in result.history], dashed=True),
        ],
    )  # fmt: skip
