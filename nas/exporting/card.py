"""The model card of an exported file."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from nas.exporting.comparison import TOLERANCE, Accuracies
from nas.exporting.formats import FORMATS, INPUT, OUTPUT, Content
from nas.exporting.images import normalisation
from nas.exporting.result import ExportResult
from nas.exporting.source import ExportSource
from nas.model_card import SCHEMA, accuracy_facts, network_facts, run_facts
from recipes.run_folder import versions


def source_facts(source: ExportSource) -> dict[str, Any]:
    """What the cards of all formats say of the network and of how it was made.

    Raises:
        UserError: a file of the run is damaged.
    """
    size = {"num_classes": source.num_classes, "in_channels": source.in_channels, "resolution": source.resolution}
    return {
        "schema": SCHEMA,
        **network_facts(source.design, **size),
        "weights": source.weights,
        **({} if source.data is None else run_facts(source.folder, source.design)),
    }


def export_card(
    source: ExportSource,
    facts: Mapping[str, Any],
    result: ExportResult,
    made: Content,
    *,
    data: str | None,
    command: Sequence[str],
) -> dict[str, Any]:
    """Plain values for the JSON and for `nas.model_card.card_markdown`.

    Args:
        source: the network.
        facts: of `source_facts`.
        result: of its export.
        made: the file's bytes and facts.
        data: name of the data set that int8 was calibrated and measured on.
        command: how the export was started.
    """
    batch, channels, side = result.batch or "any", source.in_channels, source.resolution
    scale = None if source.data is None else normalisation(source.data)
    return {
        **facts,
        **({} if result.accuracies is None else _measured(result.accuracies, f"test images of {data}")),
        "input": {
            "name": INPUT,
            "shape": [batch, channels, side, side],
            "type": "float32",
            **({} if scale is None else {"mean": list(scale[0]), "standard_deviation": list(scale[1])}),
        },
        "output": {
            "name": OUTPUT,
            "shape": [batch, source.num_classes],
            "type": "float32",
            **({} if source.class_names is None else {"class_names": list(source.class_names)}),
        },
        "file": {
            "name": result.path.name,
            "format": FORMATS[result.format].words,
            "size_bytes": result.size_bytes,
            "sha256": hashlib.sha256(made.content).hexdigest(),
            **made.details,
        },
        "comparison": {
            "images": result.images,
            "images_at_a_time": sorted(set(result.comparison.batches)),
            "largest_difference": result.comparison.max_difference,
            "largest_logit": result.comparison.largest_logit,
            **({"allowed_difference": f"{TOLERANCE:g} of the largest logit"} if FORMATS[result.format].exact else {}),
            "same_class": f"{result.comparison.same_class} of {result.comparison.images}",
        },
        "export": {**({"command": list(command)} if command else {}), "versions": versions()},
    }


def _measured(got: Accuracies, images: str) -> dict[str, Any]:
    return {
        "float32": accuracy_facts(got.correct, got.total, images),
        "int8": accuracy_facts(got.correct - got.lost + got.gained, got.total, images),
        "drop": {
            "points": got.drop,
            "standard_error": got.drop_standard_error,
            "same_class": f"{got.same_class} of {got.total}",
        },
    }
