"""Which charts a run has: panels made of its numbers. No torch here."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nas.reporting.candidates import Candidate
from nas.reporting.charts import Line, Panel
from nas.reporting.number_table import EPOCH
from nas.reporting.runs import Run
from search_spaces.limits import format_quantity
from search_spaces.options import as_number

QUANTITIES = {"flops": "FLOPs (multiply-adds)", "params": "parameters"}
# Panels of an epoch's numbers: title, and columns with their names in the legend (none where the title says it).
SEARCH = (
    ("cross entropy", {"weights_loss": "of the weights' images", "alpha_loss": "of alpha's images"}),
    ("accuracy, %", {"weights_accuracy": "of the weights' images", "alpha_accuracy": "of alpha's images"}),
    ("temperature tau", {"tau": "temperature tau"}),
    ("weight of the cost, lambda", {"cost_weight": "weight of the cost, lambda"}),
)
TRAIN = (
    ("loss", {"train_loss": "training", "test_loss": "test"}),
    ("test accuracy, %", {"test_accuracy": "test accuracy, %"}),
    ("learning rate", {"lr": "learning rate"}),
)
# What is compared between runs, by the column and its title.
COMPARED = {
    "alpha_loss": "cross entropy of alpha's images",
    "alpha_accuracy": "accuracy of alpha's images, %",
    "expected_flops": "expected FLOPs",
    "expected_params": "expected parameters",
    "tau": "temperature tau",
    "train_loss": "training loss",
    "test_loss": "test loss",
    "test_accuracy": "test accuracy, %",
    "lr": "learning rate",
}


def panels(run: Run) -> list[Panel]:
    """All charts of one run that have something to show."""
    made = [*_epoch_panels(run), *_candidate_panels(run.candidates, run)]
    return [panel for panel in made if not panel.empty]


def compared_panels(runs: Sequence[tuple[str, Run]]) -> list[Panel]:
    """Charts with a line for every run, of numbers that at least two of them have.

    Args:
        runs: with the name of each.
    """
    made = []
    for column, title in COMPARED.items():
        having = [(name, run) for name, run in runs if column in run.metrics]
        lines = [
            Line(
                name=name, x=_epochs(run), y=run.metrics[column], dashed=index % 2 == 1
            )  # alike runs lie on one another
            for index, (name, run) in enumerate(having)
        ]
        if len([line for line in lines if line.points]) > 1:
            amounts = column.startswith("expected_")
            limit = _common_limit([run for _, run in having], column.removeprefix("expected_")) if amounts else None
            made.append(_of_epochs(title, lines, level=limit, amounts=amounts))
    collected = [(name, run) for name, run in runs if run.candidates]
    if len(collected) > 1:
        lines = [_cloud(name, run.candidates, run.stop_epoch) for name, run in collected]
        made.append(_scatter("accuracy of candidates, %", lines))
    return [panel for panel in made if not panel.empty]


def budget(run: Run) -> tuple[str, float] | None:
    """Quantity and upper limit of a search's budget."""
    given = run.config.get("budget")
    limit = given.get("limit") if isinstance(given, Mapping) else None
    high = limit.get("high") if isinstance(limit, Mapping) else None
    quantity = given.get("quantity") if isinstance(given, Mapping) else None
    fits = quantity in tuple(QUANTITIES) and math.isfinite(as_number(high))
    return (str(quantity), as_number(high)) if fits else None


def _epochs(run: Run) -> list[float]:
    """Counted from 1."""
    return [epoch + 1 for epoch in run.metrics[EPOCH]]


def _of_epochs(title: str, lines: Sequence[Line], **more: Any) -> Panel:
    level = more.pop("level", None)
    name = "" if level is None else f"budget {format_quantity(level)}"
    return Panel(title=title, x_label="epoch", lines=lines, level=level, level_name=name, **more)


def _epoch_panels(run: Run) -> Iterator[Panel]:
    """Charts of `metrics.csv`: of a search, of a training, or of whatever numbers another loop wrote."""
    known = {column for _, columns in (*SEARCH, *TRAIN) for column in columns} & run.metrics.keys()
    for number, (title, columns) in enumerate((*SEARCH, *TRAIN)):
        if columns.keys() & run.metrics.keys():
            yield _of_epochs(
                title, [_line(run, column, name) for column, name in columns.items() if column in run.metrics]
            )
        if number == 1:
            yield from _cost_panel(run)
    if not known:
        for column in run.metrics:
            if column not in (EPOCH, "seconds"):
                yield _of_epochs(column, [_line(run, column, column)])


def _line(run: Run, column: str, name: str, *, dashed: bool = False) -> Line:
    return Line(name=name, x=_epochs(run), y=run.metrics[column], dashed=dashed)


def _cost_panel(run: Run) -> Iterator[Panel]:
    """Expected cost and that of the argmax network, in the budget's quantity."""
    quantity, limit = budget(run) or ("flops", None)
    columns = {f"expected_{quantity}": "expected", f"argmax_{quantity}": "argmax network"}
    lines = [_line(run, column, name) for column, name in columns.items() if column in run.metrics]
    if lines:
        yield _of_epochs(QUANTITIES[quantity], lines, level=limit, amounts=True)


def _common_limit(runs: Sequence[Run], quantity: str) -> float | None:
    """The budget that all of these runs have."""
    limits = {budget(run) for run in runs}
    (only,) = limits if len(limits) == 1 else (None,)
    return only[1] if only is not None and only[0] == quantity else None


def _candidate_panels(candidates: Sequence[Candidate], run: Run) -> Iterator[Panel]:
    """Of `nas nars`: accuracy against FLOPs, median learning curve of every round, rank correlations by epoch."""
    if not candidates:
        return
    rounds = sorted({one.round for one in candidates})
    of_round = {number: [one for one in candidates if one.round == number] for number in rounds}
    stop = run.stop_epoch
    when = "" if stop is None else f" after epoch {stop}"
    yield _scatter(
        f"accuracy of candidates{when}, %", [_cloud(f"round {number}", of_round[number], stop) for number in rounds]
    )
    yield Panel(
        title="median accuracy by epoch, %",
        x_label="epoch",
        lines=[_median_line(f"round {number}", of_round[number]) for number in rounds],
    )
    correlations = run.result.get("rank_correlations")
    if isinstance(correlations, list):
        title, epochs = "rank correlation with the final accuracy", range(1, len(correlations) + 1)
        line = Line(name=title, x=epochs, y=[as_number(value) for value in correlations])
        threshold = as_number(run.config.get("threshold"))
        level = threshold if math.isfinite(threshold) else None
        yield Panel(
            title=title, x_label="epoch", lines=[line], level=level,
            level_name="" if level is None else f"{level:g}",
        )  # fmt: skip


def _scatter(title: str, lines: Sequence[Line]) -> Panel:
    """Against FLOPs, or where no candidate has them against the number of the candidate."""
    counted = any(math.isfinite(x) for line in lines for x in line.x)
    if not counted:
        lines = [Line(name=line.name, x=range(1, len(line.y) + 1), y=line.y, scattered=True) for line in lines]
    return Panel(title=title, x_label="FLOPs" if counted else "candidate", lines=lines, x_amounts=counted)


def _cloud(name: str, candidates: Sequence[Candidate], stop: int | None) -> Line:
    x, y = [one.flops for one in candidates], [one.accuracy(stop) for one in candidates]
    return Line(name=name, x=x, y=y, scattered=True)


def _median_line(name: str, candidates: Sequence[Candidate]) -> Line:
    """Median over the candidates that were trained as long as any of the round."""
    longest = max((len(one.curve) for one in candidates), default=0)
    curves = [one.curve for one in candidates if len(one.curve) == longest]
    medians = [statistics.median(values) for values in zip(*curves, strict=True)]
    return Line(name=name, x=range(1, len(medians) + 1), y=medians)
