"""``nas train``."""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nas.cli.options import (
    BatchSize,
    Data,
    DataDir,
    Device,
    Distillation,
    Epochs,
    LearningRate,
    Out,
    Pretrained,
    RecipeOption,
    Resolution,
    Resume,
    Seed,
    Teacher,
    TeacherWeights,
    Threads,
    is_main_process,
    set_threads,
)

if TYPE_CHECKING:
    from nas.training import TrainResult


def train_command(
    network: Annotated[
        str,
        typer.Argument(
            help="architecture file, run folder of a search, published network (nas zoo; NAME_low32: its variant for"
            " 32 pixels), torchvision:NAME or lenet5"
        ),
    ],
    data: Data,
    out: Out,
    recipe: RecipeOption = None,
    data_dir: DataDir = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    resolution: Resolution = None,
    pretrained: Pretrained = None,
    teacher: Teacher = None,
    teacher_weights: TeacherWeights = None,
    distillation: Distillation = None,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = None,
    resume: Resume = False,
) -> None:
    """Train a network with a recipe; under torchrun in several processes."""
    from nas.cli.progress import ProgressBar
    from nas.training import train

    set_threads(threads)
    with ProgressBar(Path(network).name) if is_main_process() else nullcontext() as progress:
        result = train(
            network,
            data,
            recipe=recipe,
            out=out,
            seed=seed,
            resolution=resolution,
            pretrained=pretrained,
            teacher=teacher,
            teacher_weights=teacher_weights,
            data_dir=data_dir,
            device=device,
            resume=resume,
            callbacks=[] if progress is None else [progress],
            command=sys.argv[1:],
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            distillation=distillation,
        )
    if is_main_process():
        _report(result, out)


def _report(result: "TrainResult", out: Path) -> None:
    from search_spaces.limits import format_quantity

    evaluation = result.evaluation
    typer.echo(
        f"{result.design.name}: {evaluation.accuracy:.2f} % ± {evaluation.standard_error:.2f}"
        f" ({evaluation.correct} of {evaluation.total} test images), {format_quantity(result.cost.flops)} FLOPs"
    )
    typer.echo(f"written to {out}; export it with: nas export {out} --format onnx")
