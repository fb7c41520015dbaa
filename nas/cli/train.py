"""``nas train``."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from nas.cli.options import Data, DataDir, Device, Out, Resume, Seed, Threads, set_threads


def train_command(
    architecture: Annotated[
        str, typer.Argument(help="architecture file, run folder of a search, or published network (nas zoo)")
    ],
    data: Data,
    out: Out,
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="name or file; default: what suits the data set")
    ] = None,
    data_dir: DataDir = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="instead of the recipe's")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="instead of the recipe's")] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="instead of the recipe's")] = None,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = None,
    resume: Resume = False,
) -> None:
    """Train a network with a recipe, from scratch."""
    from nas.cli.progress import ProgressBar
    from nas.training import train
    from search_spaces.limits import format_quantity

    set_threads(threads)
    with ProgressBar(Path(architecture).name) as progress:
        result = train(
            architecture,
            data,
            recipe=recipe,
            out=out,
            seed=seed,
            data_dir=data_dir,
            device=device,
            resume=resume,
            callbacks=[progress],
            command=sys.argv[1:],
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
        )
    evaluation = result.evaluation
    typer.echo(
        f"{result.design.name}: {evaluation.accuracy:.2f} % ± {evaluation.standard_error:.2f}"
        f" ({evaluation.correct} of {evaluation.total} test images), {format_quantity(result.cost.flops)} FLOPs"
    )
    typer.echo(f"written to {out}; export it with: nas export {out} --format onnx")
