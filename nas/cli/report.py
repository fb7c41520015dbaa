"""``nas report``."""

from pathlib import Path
from typing import Annotated

import typer


def report_command(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="run folders, ended or not; a folder of such folders stands for all in it"
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="page to write; default RUN/report.html, of several runs report.html")
    ] = None,
) -> None:
    """Gather runs into one HTML page: results, pictures, curves, configurations, commands; several side by side."""
    from nas.reporting.report import report

    typer.echo(f"written to {report(list(runs), out)}")
