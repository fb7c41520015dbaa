"""What a report says of a run in words: result, rounds, answers, configuration, commands. No torch here."""

import math
import shlex
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from nas.reporting.architecture_picture import drawn_blocks
from nas.reporting.curves import QUANTITIES, budget
from nas.reporting.runs import Run
from search_spaces.architecture import Architecture
from search_spaces.limits import format_quantity
from search_spaces.options import as_number

Rows = list[tuple[str, str]]
KIND_NAMES = {
    "search": "search (DMaskingNAS)",
    "nars": "rounds of candidates (NARS)",
    "query": "query of a predictor",
    "train": "training",
    "candidate": "candidate of NARS",
    "run": "run",
}
LONGEST = 160  # characters of a value in a table
HEAVY = ("space", "architecture", "network", "recipe")  # shown by name; all of them is in the JSON


def duration(seconds: float) -> str:
    """``12.3 s``, ``4 min 05 s`` or ``2 h 03 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def state(run: Run) -> str:
    """Whether the run has ended, and if not how far it is."""
    if run.ended:
        return "ended"
    if run.kind == "nars":
        done = sum(one.status != "waiting" for one in run.candidates)
        return f"not ended: {done} of {len(run.candidates)} candidates chosen so far are done"
    planned = run.epochs_planned
    of = "" if planned is None else f" of {planned}"
    return f"not ended: {run.epochs_done}{of} epochs done"


def result_rows(run: Run) -> Rows:
    """The result of a run, (what, value); what is not known is left out."""
    rows: Rows = [("kind", KIND_NAMES[run.kind]), ("state", state(run))]
    rows += _accuracy(run)
    if run.architecture is not None:
        rows.append(("network", f"{run.architecture.name}, {len(run.architecture.blocks)} blocks"))
    limit = budget(run)
    if limit is not None:
        rows.append(("budget", f"{format_quantity(limit[1])} {QUANTITIES[limit[0]]}"))
    rows += _cost(run, limit)
    if run.resolution is not None:
        rows.append(("resolution", f"{run.resolution} pixels"))
    rows += _candidates(run)
    if isinstance(run.config.get("data"), str):
        rows.append(("data", run.config["data"]))
    if run.epochs_done:
        rows.append(("epochs", str(run.epochs_done)))
    if math.isfinite(run.cpu_seconds):
        rows.append(("CPU time", duration(run.cpu_seconds)))
    if run.seed is not None:
        rows.append(("seed", str(run.seed)))
    return rows


def _accuracy(run: Run) -> Rows:
    measured = run.number("accuracy")
    if math.isfinite(measured):
        error, correct, total = (run.number(key) for key in ("standard_error", "correct", "total"))
        spread = f" ± {error:.2f}" if math.isfinite(error) else ""
        images = f" ({correct:,.0f} of {total:,.0f} test images)" if math.isfinite(correct + total) else ""
        return [("test accuracy", f"{measured:.2f} %{spread}{images}")]
    rows = []
    for column, name in (("test_accuracy", "test accuracy"), ("alpha_accuracy", "accuracy of alpha's images")):
        known = [value for value in run.metrics.get(column, ()) if math.isfinite(value)]
        if known:
            rows.append((name, f"{known[-1]:.2f} % at the last epoch"))
    if run.kind == "query" and len(run.answers) == 1:
        rows.append(("predicted accuracy", predicted(run.answers[0])))
    return rows


def _cost(run: Run, limit: tuple[str, float] | None) -> Rows:
    """Of the network that was found or trained, or that a query answered with."""
    nested = isinstance(run.result.get("cost"), Mapping)
    rows = []
    for key, name in (*QUANTITIES.items(), ("params_all", "parameters with biases and norms")):
        value = run.number("cost", key) if nested else run.number(key)
        if not math.isfinite(value) and len(run.answers) == 1:
            value = as_number(run.answers[0].get(key, ""))
        if math.isfinite(value):
            share = f", {value / limit[1]:.3f} of the budget" if limit and limit[0] == key and limit[1] > 0 else ""
            rows.append((name, f"{value:,.0f}{share}"))
    if run.result.get("repaired") is True and limit is not None:
        before = run.number("argmax_cost", limit[0])
        rows.append(("before the repair", f"{before:,.0f} {QUANTITIES[limit[0]]} of the argmax network"))
    return rows


def _candidates(run: Run) -> Rows:
    done = [one for one in run.candidates if math.isfinite(one.accuracy(run.stop_epoch))]
    if not done:
        return []
    best = max(done, key=lambda one: one.accuracy(run.stop_epoch))
    cost = f" with {format_quantity(best.flops)} FLOPs" if math.isfinite(best.flops) else ""
    stop = "none" if run.stop_epoch is None else f"after epoch {run.stop_epoch}"
    return [
        ("best candidate", f"number {best.id}: {best.accuracy(run.stop_epoch):.2f} %{cost}"),
        ("candidates", f"{len(done)} trained, {len(run.candidates)} chosen"),
        ("early stop", stop),
    ]


def round_table(run: Run) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and lines of a table of the rounds of `nas nars`."""
    head = ("round", "trained", "failed", "waiting", "best accuracy, %", "its FLOPs", "median accuracy, %")
    lines = []
    for number in sorted({one.round for one in run.candidates}):
        those = [one for one in run.candidates if one.round == number]
        known = [one for one in those if math.isfinite(one.accuracy(run.stop_epoch))]
        count = [str(sum(one.status == status for one in those)) for status in ("done", "failed", "waiting")]
        best = max(known, key=lambda one: one.accuracy(run.stop_epoch), default=None)
        shown = ("", "", "")
        if best is not None:
            median = statistics.median(one.accuracy(run.stop_epoch) for one in known)
            flops = format_quantity(best.flops) if math.isfinite(best.flops) else ""
            shown = (f"{best.accuracy(run.stop_epoch):.2f}", flops, f"{median:.2f}")
        lines.append((str(number), *count, *shown))
    return head, lines


def predicted(answer: Mapping[str, str]) -> str:
    """``75.32 ± 0.21`` of an answer's line."""
    value, spread = (as_number(answer.get(key, "")) for key in ("predicted", "spread"))
    return f"{value:.2f} ± {spread:.2f}"


def answer_table(run: Run) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and lines of a table of a query's answers: prediction and quantities."""
    known = [key for key in ("flops", "params", "resolution", "latency_ms") if key in run.answers[0]]
    head = ("answer", "predicted", *known)
    lines = []
    for line in run.answers:
        quantities = (as_number(line[key]) for key in known)
        lines.append((line.get("answer", ""), predicted(line), *(format_quantity(value) for value in quantities)))
    return head, lines


def layer_table(architecture: Architecture, resolution: int | None) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and lines of a table of the network's blocks."""
    head = ("", "block", "kernel", "stride", "middle", "out", "squeeze", "activation", "groups", "pixels out")
    lines = []
    for shown in drawn_blocks(architecture, resolution=resolution):
        block = shown.block
        cells = (
            shown.index, block.kind, block.kernel, block.stride, block.mid_channels or "", block.out_channels,
            block.squeeze_channels or "", "" if block.kind == "skip" else block.activation,
            block.groups if block.groups > 1 else "", f"{shown.size}x{shown.size}",
        )  # fmt: skip
        lines.append(tuple(map(str, cells)))
    return head, lines


def config_rows(run: Run) -> Rows:
    """Settings by dotted name; of whole spaces, networks and recipes the name only."""
    rows: Rows = []
    for key, value in run.config.items():
        if key in HEAVY and isinstance(value, Mapping):
            rows.append((key, str(value.get("name", "given in full in config.json"))))
            if key == "recipe":
                rows += [(f"{key}.{name}", text) for name, text in _flat(value) if name not in ("name", "schema")]
        elif key != "kind":
            rows += _flat(value, key)
    return [(name, text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…") for name, text in rows]


def _flat(value: Any, name: str = "") -> Rows:
    if isinstance(value, Mapping) and value:
        return [row for key, inner in value.items() for row in _flat(inner, f"{name}.{key}" if name else str(key))]
    return [(name, _text(value))]


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(item) for item in value)
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def differing_rows(runs: Sequence[Run]) -> list[tuple[str, tuple[str, ...]]]:
    """Settings, and the seed, in which runs differ: name, and the value of each, empty where it has none."""
    settings = [{**dict(config_rows(run)), **({} if run.seed is None else {"seed": str(run.seed)})} for run in runs]
    names = dict.fromkeys(name for one in settings for name in one)
    table = [(name, tuple(one.get(name, "") for one in settings)) for name in names]
    return [(name, values) for name, values in table if len(set(values)) > 1]


def environment_rows(run: Run) -> Rows:
    """Versions and machine, as far as recorded."""
    return [(f"{name} version", version) for name, version in run.versions.items()]


def commands(run: Run) -> list[tuple[str, str]]:
    """(what for, command line): how the run was started, and what to do next with it."""
    made = []
    if run.command:
        made.append(("This run was started with", _line(run.command)))
        if not run.ended:
            again = run.command if run.kind == "nars" or "--resume" in run.command else (*run.command, "--resume")
            made.append(("It goes on with", _line(again)))
    if run.ended:
        made += _next(run)
    return made


def _next(run: Run) -> list[tuple[str, str]]:
    path, data = str(run.path), run.config.get("data")
    data = data if isinstance(data, str) else "NAME"
    if run.kind == "search":
        return [("Train the network with", _line(("train", path, "--data", data, "--out", f"{path}-trained")))]
    if run.kind == "train":
        return [("Export the network with", _line(("export", path, "--format", "onnx")))]
    if run.kind == "nars":
        return [("Ask for the best inside a budget with", _line(("query", "--predictor", path, "--flops", "6M")))]
    if run.kind == "query" and run.networks:
        folder = run.path if run.architecture is not None else run.path / next(iter(run.networks))
        recipe = ("--recipe", str(folder / "recipe.json")) if (folder / "recipe.json").is_file() else ()
        return [
            (
                "Train the first with",
                _line(("train", str(folder), *recipe, "--data", data, "--out", f"{folder}-trained")),
            )
        ]
    return []


def _line(arguments: Sequence[str]) -> str:
    return f"nas {shlex.join(arguments)}"
