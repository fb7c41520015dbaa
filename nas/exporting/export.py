"""``nas.export``: make, reload, compare; then give the files their names, all or none."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from nas.exporting.card import export_card, source_facts
from nas.exporting.comparison import batch_sizes, compare, measure, require_equal
from nas.exporting.formats import FORMATS, PHONE_BATCH, Format, Task, quiet, require_executorch
from nas.exporting.images import calibration_batches, comparison_images, find_dataset
from nas.exporting.result import CARD_JSON, CARD_MARKDOWN, ExportResult
from nas.exporting.source import ExportSource, load_source
from nas.exporting.staging import Stage, staged
from nas.loading import TrainedModel
from nas.model_card import card_markdown
from recipes.datasets import Dataset
from search_spaces.errors import UserError, closest, first_line
from search_spaces.serialisation import require

MAX_BATCH = 1024
CALIBRATION_IMAGES = 512
CALIBRATION_BATCH = 32  # images at a time, where the batch size is free


def export(
    source: str | Path | TrainedModel,
    *,
    format: str = "onnx",
    out: str | Path | None = None,
    batch: int | None = None,
    data: str | Dataset | None = None,
    data_dir: str | Path | None = None,
    calibration_images: int | None = None,
    pretrained: str | Path | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
    command: Sequence[str] = (),
) -> ExportResult:
    """Export a network, compare the file's outputs with PyTorch's on real images, and write a model card beside it.

    Args:
        source: run folder of `nas train` or its model.pt; a published network (`nas zoo`), ``torchvision:NAME`` or an
            architecture file, with fresh weights unless ``pretrained`` is given; or what `nas.load_model` returns.
        format: ``"onnx"``, ``"onnx-int8"``, ``"pt2"`` or ``"executorch"``.
        out: file or existing folder; default: beside the weights, or in the current folder.
        batch: fixed number of images, 1 to 1024; None for any number (ExecuTorch: 1).
        data: data set to compare, calibrate and measure on; default: the one that the network was trained on.
        data_dir: where data sets are.
        calibration_images: training images that int8 is calibrated with; default 512, or all if there are fewer.
        pretrained: a checkpoint as `nas.create_model` takes, or a run folder; not for a trained network.
        num_classes: outputs, default 1000; not for a trained network.
        in_channels: channels of the image, default 3; not for a trained network.
        command: how this was started, for the card.

    Raises:
        UserError: anything wrong with the input, outputs that differ by more than 1e-4 of the largest logit (int8 excepted),
            an unwritable place. No file is left or changed then.
    """
    (result,) = export_all(
        source, [format], out=out, batch=batch, data=data, data_dir=data_dir, calibration_images=calibration_images,
        pretrained=pretrained, num_classes=num_classes, in_channels=in_channels, command=command,
    )  # fmt: skip
    return result


def export_all(
    source: str | Path | TrainedModel | ExportSource,
    formats: Sequence[str],
    *,
    out: str | Path | None = None,
    batch: int | None = None,
    data: str | Dataset | None = None,
    data_dir: str | Path | None = None,
    calibration_images: int | None = None,
    pretrained: str | Path | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
    command: Sequence[str] = (),
) -> list[ExportResult]:
    """Several formats at once, all or none; see `export`. With several, ``out`` is an existing folder.

    Raises:
        UserError: as `export`.
    """
    formats = list(dict.fromkeys(formats))
    _check_request(formats, batch, calibration_images)
    if not isinstance(source, ExportSource):
        source = load_source(source, pretrained=pretrained, num_classes=num_classes, in_channels=in_channels)
    paths = [_destination(source, FORMATS[name], out, several=len(formats) > 1) for name in formats]
    int8 = [name for name in formats if not FORMATS[name].exact]
    dataset, note = find_dataset(source, data, data_dir, needed=bool(int8))
    if int8 and dataset is not None:
        _check_classes(source, dataset)
    facts = source_facts(source)
    results = []
    with staged() as stage:
        for name, path in zip(formats, paths, strict=True):
            size = PHONE_BATCH if batch is None and not FORMATS[name].free_batch else batch
            results.append(
                _write(
                    source, facts, name, path, stage, batch=size, dataset=dataset, note=note,
                    calibration_images=calibration_images, command=command,
                )
            )  # fmt: skip
    return results


def _write(
    source: ExportSource,
    facts: Mapping[str, Any],
    name: str,
    path: Path,
    stage: Stage,
    *,
    batch: int | None,
    dataset: Dataset | None,
    note: str,
    calibration_images: int | None,
    command: Sequence[str],
) -> ExportResult:
    """Make a file and its cards under temporary names; reload and compare."""
    form, sizes = FORMATS[name], batch_sizes(batch)
    images = comparison_images(source, dataset, sum(sizes), note)
    task = Task(network=source.network, shape=(source.in_channels, source.resolution, source.resolution), batch=batch)
    details = {}
    if dataset is not None and not form.exact:
        count = calibration_images or min(CALIBRATION_IMAGES, len(dataset.train))
        task = replace(task, calibration=calibration_batches(source, dataset, count, batch or CALIBRATION_BATCH))
        details["calibration_images"] = f"{count} training images of {dataset.name}, without augmentation"
    with quiet(), _one_line(source.design.name, form, batch):
        made = form.make(task)
        temporary = stage.write(path, made.content)
        run = form.load(temporary)
        compared = compare(source.network, run, images.pixels, sizes, form.words)
    if form.exact:
        require_equal(compared, form.words)
    accuracies = None
    if dataset is not None and not form.exact and not source.fresh:
        accuracies = measure(source.network, run, dataset.test, resolution=source.resolution, batch=batch)
    result = ExportResult(
        path=path, format=name, size_bytes=len(made.content), batch=batch, comparison=compared, images=images.words,
        weights=source.weights, fresh=source.fresh, accuracies=accuracies,
    )  # fmt: skip
    made = replace(made, details={**made.details, **details})
    card = export_card(source, facts, result, made, data=None if dataset is None else dataset.name, command=command)
    stage.write(result.card, (json.dumps(card, indent=2, allow_nan=False) + "\n").encode())
    stage.write(result.card_markdown, card_markdown(card).encode())
    return result


@contextmanager
def _one_line(network: str, form: Format, batch: int | None) -> Iterator[None]:
    """Whatever torch or a runtime raises becomes one line."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except OSError as error:
        raise UserError(f"cannot export {network} as {form.words}: {error.strerror or error}") from error
    except Exception as error:  # exporters raise almost anything on a network that they cannot express
        advice = "; a fixed --batch may help" if batch is None else ""
        raise UserError(f"cannot export {network} as {form.words}: {first_line(error)}{advice}") from error


def _check_request(formats: Sequence[str], batch: int | None, calibration_images: int | None) -> None:
    require(bool(formats), f"name a format: {', '.join(FORMATS)}")
    for name in formats:
        require(name in FORMATS, f"unknown format {name!r}{closest(name, FORMATS)}")
    require(batch is None or 1 <= batch <= MAX_BATCH, f"batch must be in 1..{MAX_BATCH}, got {batch}")
    if calibration_images is not None:
        require("onnx-int8" in formats, "--calibration-images is for the format onnx-int8")
        require(calibration_images >= 1, f"--calibration-images must be >= 1, got {calibration_images}")
    if "executorch" in formats:
        require_executorch()


def _check_classes(source: ExportSource, dataset: Dataset) -> None:
    """Accuracy needs the same classes; networks with fresh weights have none to lose."""
    require(
        source.fresh or dataset.num_classes == source.num_classes,
        f"{dataset.name} has {dataset.num_classes} classes, the network {source.num_classes}",
    )


def _destination(source: ExportSource, format: Format, out: str | Path | None, *, several: bool) -> Path:
    """Where the file goes; nothing is there yet, or a file that may be replaced."""
    given = source.folder if out is None else Path(out)
    inside = out is None or given.is_dir()
    require(inside or not several, f"several formats need an existing folder, {given} is none")
    path = given / f"{source.stem}{format.ending}" if inside else given
    require(path.suffix == format.suffix, f"a file of {format.words} must end in {format.suffix}, got {path.name!r}")
    require(path.parent.is_dir(), f"cannot write {path}: folder {path.parent} does not exist")
    for place in (path, path.with_name(path.name + CARD_JSON), path.with_name(path.name + CARD_MARKDOWN)):
        require(not place.is_dir(), f"cannot write {place}: it is a folder; name a file")
    return path
