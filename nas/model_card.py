"""Model cards: what is known of an exported network, as JSON and as Markdown; what is not known is left out."""

import html
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nas.designs import Design, design_cost, design_from_json, design_to_json
from recipes.evaluation import Evaluation
from recipes.run_folder import CONFIG, read_config
from search_spaces.architecture import Architecture
from search_spaces.errors import UserError
from search_spaces.serialisation import read_json, to_plain

SCHEMA = 1
RESULT = "result.json"
CLASSES_SHOWN = 100  # in Markdown; the JSON has all

Card = Mapping[str, Any]


def network_facts(design: Design, *, num_classes: int, in_channels: int, resolution: int) -> dict[str, Any]:
    """Name, architecture, FLOPs (multiply-adds of one image) and parameters.

    Args:
        design: the network.
        num_classes: outputs.
        in_channels: channels of the image.
        resolution: side of the image in pixels.
    """
    exact = design_cost(design, num_classes=num_classes, in_channels=in_channels, resolution=resolution)
    return {"name": design.name, "architecture": design_to_json(design), "cost": exact._asdict()}


def run_facts(folder: Path, design: Design) -> dict[str, Any]:
    """How a run folder's network was made, and the accuracy that was measured at its end.

    Returns:
        Keys ``made`` and ``accuracy``, each only where the folder tells it: nothing for a folder that holds no training, or
        that of another network.

    Raises:
        UserError: a file of the run is damaged.
    """
    if not (folder / CONFIG).is_file():
        return {}
    stored = read_config(folder)
    config = stored["config"]
    if config.get("kind") != "train" or config.get("architecture") != design_to_json(design):
        return {}
    facts: dict[str, Any] = {
        "made": {
            **{key: stored[key] for key in ("command", "seed", "versions") if stored.get(key) not in (None, [])},
            **{
                key: value for key, value in config.items() if key not in ("kind", "architecture") and value is not None
            },
        }
    }
    path = folder / RESULT
    if path.is_file():
        facts["accuracy"] = accuracy_facts(*_counts(path), f"test images of {config.get('data')}")
    return facts


def _counts(path: Path) -> tuple[int, int]:
    """Images that were right, and all, of a run's result."""
    result = read_json(path)
    correct, total = (result.get(key) if isinstance(result, dict) else None for key in ("correct", "total"))
    if type(correct) is int and type(total) is int and 0 <= correct <= total > 0:
        return correct, total
    raise UserError(f"{path} is damaged: correct must be in 0..total, got {correct!r} of {total!r}")


def accuracy_facts(correct: int, total: int, images: str) -> dict[str, Any]:
    """Top-1 in percent with its binomial standard error in points, and on what."""
    measured = Evaluation(correct=correct, total=total, loss=0.0)
    return {
        "percent": measured.accuracy,
        "standard_error": measured.standard_error,
        "correct": correct,
        "total": total,
        "images": images,
    }


def card_markdown(card: Card) -> str:
    """The card as Markdown.

    Args:
        card: ``name``, ``architecture`` and ``cost`` of `network_facts`; where known ``made`` and ``accuracy`` of `run_facts`,
            ``weights``, ``file``, ``input``, ``output``, ``comparison`` and ``export``, plain values.
    """
    sections = [
        f"# {escape(card['name'])}",
        _table(("", ""), _summary(card)),
        *_section("Accuracy", _accuracy(card)),
        *_section("Input and output", _input_output(card)),
        *_section("File", _flat(card.get("file", {}))),
        *_section("Compared with PyTorch", _flat(card.get("comparison", {}))),
        *_made(card),
        *_layers(card),
    ]
    return "\n\n".join(sections) + "\n"


def escape(value: object) -> str:
    """Text that Markdown shows as it is, on one line, also inside a table."""
    text = "".join(character if character.isprintable() else " " for character in str(value))
    return html.escape(re.sub(r"([\\`*_{}\[\]<>|~#&:@$!])", r"\\\1", text), quote=False)


def _summary(card: Card) -> list[tuple[str, str]]:
    cost, rows = card["cost"], []
    rows.append(("FLOPs (multiply-adds of one image)", f"{cost['flops']:,}"))
    rows.append(("parameters (weights of convolutions and linear layers)", f"{cost['params']:,}"))
    rows.append(("parameters with biases and norms", f"{cost['params_all']:,}"))
    if "weights" in card:
        rows.append(("weights", escape(card["weights"])))
    return rows


def _accuracy(card: Card) -> list[tuple[str, str]]:
    rows = []
    for key, words in (("accuracy", "after training"), ("float32", "float32, in PyTorch"), ("int8", "this file, int8")):
        measured = card.get(key)
        if measured is not None:
            share = f"{measured['percent']:.2f} % ± {measured['standard_error']:.2f}"
            rows.append(
                (words, f"{share} ({measured['correct']:,} of {measured['total']:,} {escape(measured['images'])})")
            )
    if "drop" in card:
        rows.append(("drop", f"{card['drop']['points']:.2f} ± {card['drop']['standard_error']:.2f} points"))
    return rows


def _input_output(card: Card) -> list[tuple[str, str]]:
    rows = []
    for part in ("input", "output"):
        for key, value in card.get(part, {}).items():
            if key == "class_names":
                shown = ", ".join(escape(name) for name in value[:CLASSES_SHOWN])
                more = len(value) - CLASSES_SHOWN
                rows.append(("classes, in order", shown + (f" and {more:,} more in the JSON" if more > 0 else "")))
            else:
                rows.append((f"{part} {key.replace('_', ' ')}", _words(value)))
    return rows


def _made(card: Card) -> list[str]:
    made, export = dict(card.get("made", {})), dict(card.get("export", {}))
    commands = [facts.pop("command", None) for facts in (made, export)]
    versions = export.pop("versions", {})
    rows = _flat(made) + [(f"export {key}", value) for key, value in _flat({**export, "versions": versions})]
    lines = [f"    nas {shlex.join(map(str, command))}" for command in commands if command]
    shown = ["\n".join("".join(c if c.isprintable() else " " for c in line) for line in lines)] if lines else []
    return [*_section("How it was made", rows), *shown]


def _layers(card: Card) -> list[str]:
    design = design_from_json(card["architecture"], "architecture")
    if not isinstance(design, Architecture):
        return []
    channels = card.get("input", {}).get("shape", (None, 3))[1]
    head = ("", "block", "kernel", "stride", "in", "middle", "out", "squeeze", "activation", "")
    rows = []
    for index, (entering, block) in enumerate(design.layers(channels)):
        extras = [f"groups {block.groups}"] if block.groups > 1 else []
        extras += [f"group width {block.group_width}"] if block.group_width > 1 else []
        extras += [f"padding {block.padding}"] if block.padding is not None else []
        extras += ["biases"] if block.bias else []
        cells = (
            index, block.kind, block.kernel, block.stride, entering, block.mid_channels or "", block.out_channels,
            block.squeeze_channels or "", block.activation, ", ".join(extras),
        )  # fmt: skip
        rows.append(tuple(map(str, cells)))
    return ["## Layers", "Then the average over the image and the linear classifier.", _table(head, rows)]


def _section(title: str, rows: Sequence[tuple[str, ...]]) -> list[str]:
    return [f"## {title}", _table(("", ""), rows)] if rows else []


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _flat(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Rows of nested facts; a mapping's keys follow the name of the mapping. What is None is left out."""
    rows: list[tuple[str, str]] = []
    for key, value in facts.items():
        name = prefix + escape(str(key).replace("_", " "))
        if isinstance(value, Mapping):
            rows += _flat(value, f"{name}: ")
        elif value is not None:
            rows.append((name, _words(value)))
    return rows


def _words(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(_words(item) for item in value)
    return f"{value:.6g}" if isinstance(value, float) else escape(to_plain(value))
