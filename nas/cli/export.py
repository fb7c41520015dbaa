"""``nas export``."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nas.cli.options import DataDir, Threads, set_threads

if TYPE_CHECKING:
    from nas.exporting import ExportResult


def export_command(
    source: Annotated[
        str,
        typer.Argument(
            help="run folder of nas train or its model.pt; published network (nas zoo), torchvision:NAME or architecture"
            " file, with fresh weights unless --pretrained is given"
        ),
    ],
    format: Annotated[
        str, typer.Option("--format", help="onnx, onnx-int8, pt2, executorch; several as onnx,pt2")
    ] = "onnx",
    batch: Annotated[int | None, typer.Option("--batch", help="fixed number of images; default any number")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="file or existing folder; default the run folder, or here")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="data set to compare and calibrate on; default the network's own")
    ] = None,
    data_dir: DataDir = None,
    calibration_images: Annotated[
        int | None, typer.Option("--calibration-images", help="of onnx-int8; default 512")
    ] = None,
    pretrained: Annotated[
        Path | None,
        typer.Option("--pretrained", help="weights of a network given by name: a checkpoint or a run folder"),
    ] = None,
    classes: Annotated[int | None, typer.Option("--classes", help="of a network given by name; default 1000")] = None,
    in_channels: Annotated[
        int | None, typer.Option("--in-channels", help="of a network given by name; default 3")
    ] = None,
    threads: Threads = None,
) -> None:
    """Export a network, compared with PyTorch on real images, with a model card beside it."""
    from nas.exporting import export_all

    set_threads(threads)
    results = export_all(
        source,
        [name.strip() for name in format.split(",")],
        out=out,
        batch=batch,
        data=data,
        data_dir=data_dir,
        calibration_images=calibration_images,
        pretrained=pretrained,
        num_classes=classes,
        in_channels=in_channels,
        command=sys.argv[1:],
    )
    if results[0].fresh:
        typer.echo(f"{source} has fresh weights: good for measuring speed and size; trained ones come by --pretrained")
    for result in results:
        _report(result)


def _report(result: "ExportResult") -> None:
    from search_spaces.limits import format_quantity

    compared = result.comparison
    batch = "any batch size" if result.batch is None else f"batch size {result.batch}"
    typer.echo(f"{result.path}: {result.format}, {format_quantity(result.size_bytes)} bytes, {batch}")
    typer.echo(
        f"  largest difference from PyTorch {compared.max_difference:.1e}, {compared.relative:.1e} of the largest logit;"
        f" same class for {compared.same_class} of {result.images}"
    )
    got = result.accuracies
    if got is not None:
        typer.echo(
            f"  accuracy on {got.total} test images: float32 {got.float32:.2f} %, this file {got.exported:.2f} %,"
            f" drop {got.drop:.2f} ± {got.drop_standard_error:.2f} points"
        )
    typer.echo(f"  model card: {result.card_markdown} and {result.card.name}")
