"""``nas query``."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nas.cli.options import Flops, Params, Seed

if TYPE_CHECKING:
    from predictor.query import QueryResult


def query_command(
    space: Annotated[
        str | None, typer.Option("--space", help="space of the predictor: name, YAML file, or module:function")
    ] = None,
    predictor: Annotated[
        Path | None,
        typer.Option(
            "--predictor", help="file, or run folder of nas nars; default: the one that comes with the toolkit"
        ),
    ] = None,
    flops: Flops = None,
    params: Params = None,
    resolution: Annotated[
        str | None, typer.Option("--resolution", help="side of the images in pixels, the same grammar")
    ] = None,
    latency_ms: Annotated[
        str | None, typer.Option("--latency-ms", help="milliseconds, the same grammar; needs --latency-table")
    ] = None,
    latency_table: Annotated[
        Path | None, typer.Option("--latency-table", help="written by nas latency --space")
    ] = None,
    fix: Annotated[
        list[str] | None, typer.Option("--fix", help="NAME=VALUE of a variable that may not change; several times")
    ] = None,
    top: Annotated[int, typer.Option("--top", help="answers for each budget")] = 1,
    min_distance: Annotated[
        int | None, typer.Option("--min-distance", help="variables in which answers differ; default 3")
    ] = None,
    pareto: Annotated[
        str | None, typer.Option("--pareto", help="a front: 400M:800M of FLOPs, or params=1M:3M, latency_ms=2:6")
    ] = None,
    points: Annotated[int, typer.Option("--points", help="of a front, at most")] = 32,
    preset: Annotated[str, typer.Option("--preset", help="of the evolution: default or thesis")] = "default",
    classes: Annotated[
        int | None, typer.Option("--classes", help="outputs of the classifier that is counted; default the predictor's")
    ] = None,
    candidates: Annotated[
        Path | None, typer.Option("--candidates", help="table of all candidates that may be chosen (.csv, .parquet)")
    ] = None,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option("--out", help="new folder for networks and recipes")] = None,
) -> None:
    """Ask an accuracy predictor for the best network and recipe inside a budget."""
    from nas.querying import answer_folders, query
    from search_spaces.serialisation import require

    fixed = {}
    for text in fix or ():
        name, sign, value = text.partition("=")
        require(bool(sign), f"--fix takes NAME=VALUE, for example resolution=224, got {text!r}")
        require(name not in fixed, f"--fix {name} is given twice")
        fixed[name] = value
    started = time.perf_counter()
    results = query(
        predictor,
        space=space,
        flops=flops,
        params=params,
        resolution=resolution,
        latency_ms=latency_ms,
        latency_table=latency_table,
        fix=fixed,
        top=top,
        min_distance=min_distance,
        pareto=pareto,
        points=points,
        preset=preset,
        classes=classes,
        candidates=candidates,
        seed=seed,
        out=out,
    )
    seconds = time.perf_counter() - started
    _show(results)
    scored = sum(result.scored for result in results)
    typer.echo(f"{scored:,} candidates predicted in {seconds:.1f} s")
    if out is not None:
        first = answer_folders(results, out)[0]
        answer = results[0].answers[0]
        network = f"{first}" if answer.architecture is not None else "NETWORK"
        recipe = f" --recipe {first / 'recipe.json'}" if answer.recipe is not None else ""
        typer.echo(f"written to {out}; train the first with: nas train {network}{recipe} --data NAME --out DIR")


def _show(results: "list[QueryResult]") -> None:
    """One line an answer: number, prediction, quantities, recipe or variables."""
    from search_spaces.limits import format_quantity
    from search_spaces.options import option_text

    number = 0
    names = list(results[0].answers[0].quantities)
    typer.echo(f"{'#':>3} {'predicted':>16} {''.join(f'{name:>11}' for name in names)}  {_heading(results)}".rstrip())
    for result in results:
        for answer in result.answers:
            number += 1
            shown = "".join(f"{format_quantity(answer.quantities[name]):>11}" for name in names)
            own = answer.values if answer.architecture is None else {}
            if answer.architecture is not None and answer.recipe is not None:
                own = {name: getattr(answer.recipe, name) for name in answer.values if hasattr(answer.recipe, name)}
            text = " ".join(f"{name}={option_text(value)}" for name, value in own.items())
            typer.echo(f"{number:>3} {answer.predicted:>8.2f} ± {answer.spread:<5.2f} {shown}  {text}".rstrip())


def _heading(results: "list[QueryResult]") -> str:
    answer = results[0].answers[0]
    if answer.recipe is not None:
        return "recipe"
    return "" if answer.architecture is not None else "variables"
