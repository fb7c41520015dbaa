"""``nas predictor``."""

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nas.cli.options import Seed

if TYPE_CHECKING:
    from predictor.files import Header

app = typer.Typer(help="Predict scores from a table of candidates: fit, show.", no_args_is_help=True)


@app.command("fit")
def fit_command(
    space: Annotated[
        str, typer.Option("--space", help="name, YAML file (networks or bare variables), module:function")
    ],
    table: Annotated[Path, typer.Option("--table", help=".csv or .parquet: a column a variable, and the scores")],
    out: Annotated[Path, typer.Option("--out", help="file to write, for example my.npz")],
    score: Annotated[str, typer.Option("--score", help="column of the scores, higher is better")] = "accuracy",
    epoch: Annotated[int | None, typer.Option("--epoch", help="lines of which epoch count")] = None,
    classes: Annotated[int | None, typer.Option("--classes", help="outputs of the networks' classifier")] = None,
    in_channels: Annotated[int, typer.Option("--in-channels", help="channels of the image")] = 3,
    held_out: Annotated[float, typer.Option("--held-out", help="share of the candidates to compare on")] = 0.2,
    flops: Annotated[
        str | None, typer.Option("--flops", help="range to pretrain in: 2M:12M; default that of the table")
    ] = None,
    columns: Annotated[
        bool, typer.Option(help="read the table's flops and params where the space has no networks to count")
    ] = True,
    preset: Annotated[
        str | None, typer.Option("--preset", help="default, thesis or table; default table for bare variables")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Fit a predictor to a table; tell how well it ranks candidates that it has not seen."""
    from nas.predictors import REPORTED, fit_predictor
    from search_spaces.limits import parse_limits
    from search_spaces.serialisation import require

    limits = None if flops is None else parse_limits(flops)
    require(limits is None or len(limits) == 1, f"--flops must be one range, got {flops}")
    found = fit_predictor(
        space,
        table,
        out=out,
        score=score,
        epoch=epoch,
        num_classes=classes,
        in_channels=in_channels,
        share=held_out,
        preset=preset,
        seed=seed,
        flops=None if limits is None else limits[0],
        columns=columns,
        log=typer.echo,
        command=sys.argv[1:],
    )
    if found.report:
        _print_report(found.report, found.held_out)
    else:
        typer.echo(f"no comparison: {found.candidates} candidates, {REPORTED} are needed")
    typer.echo(f"written to {out}")


def _print_report(report: Mapping[str, Mapping[str, float]], held_out: int) -> None:
    typer.echo(f"{f'{held_out} held out':<14} {'MSE':>10} {'Kendall tau':>12} {'Spearman':>9} {'R2':>7}")
    for who, values in report.items():
        tau, spearman, r2 = (_figure(values[name]) for name in ("kendall_tau", "spearman", "r2"))
        typer.echo(f"{who:<14} {values['mse']:>10.4g} {tau:>12} {spearman:>9} {r2:>7}")
    if any(math.isnan(value) for values in report.values() for value in values.values()):
        typer.echo("- where scores or predictions are all the same and nothing can be ranked")


def _figure(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


@app.command("show")
def show_command(file: Annotated[Path, typer.Argument(help="what nas predictor fit or nas nars wrote")]) -> None:
    """What a predictor's file holds."""
    from predictor.files import read_header

    lines = _lines(read_header(file))
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        typer.echo(f"{_printable(name):<{width}}  {_printable(text)}")


def _lines(header: "Header") -> list[tuple[str, str]]:
    """Names and texts of a listing."""
    space, facts = header.space, header.facts
    variables = space.get("variables")
    count = len(variables) if isinstance(variables, list) else 0
    counted = "" if header.num_classes is None else f" of {header.num_classes} classes, {header.in_channels} channels"
    return [
        ("space", f"{space.get('name') or 'without a name'} ({space.get('kind')})"),
        ("reads", ", ".join([f"{count} variables", *header.scaling.names]) + counted),
        ("scores", f"{header.target_mean:.4g} ± {header.target_std:.4g} (standard deviation)"),
        ("candidates", str(facts.rows)),
        ("rounds", str(facts.rounds)),
        ("seed", str(facts.seed)),
        ("command", facts.command or "none"),
        *((name, f"{value:.4g}") for name, value in facts.metrics.items()),
    ]


def _printable(text: str) -> str:
    """A file may come from anywhere: nothing in it moves the cursor."""
    return text if text.isprintable() else repr(text)
