"""``nas export``."""

from pathlib import Path
from typing import Annotated

import typer


def export_command(
    run: Annotated[Path, typer.Argument(help="run folder of nas train, or its model.pt")],
    format: Annotated[str, typer.Option("--format", help="onnx")] = "onnx",
    out: Annotated[Path | None, typer.Option("--out", help="file; default model.onnx in the run folder")] = None,
) -> None:
    """Export a trained network, checked against the PyTorch outputs."""
    from nas.exporting import export
    from search_spaces.limits import format_quantity

    result = export(run, out=out, format=format)
    typer.echo(
        f"{result.path}: {format_quantity(result.size_bytes)} bytes, batch size free,"
        f" largest difference from PyTorch {result.max_difference:.1e}"
    )
