"""Options that several commands share."""

import os
from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[str, typer.Option("--data", help="digits, mnist, fashion-mnist, cifar10 or imagefolder:PATH")]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="where data sets are; default $NAS_DATA or the cache")]
Out = Annotated[Path, typer.Option("--out", help="run folder")]
Seed = Annotated[int, typer.Option("--seed", help="of everything random")]
Device = Annotated[str, typer.Option("--device", help="cpu or cuda")]
Resume = Annotated[bool, typer.Option("--resume", help="continue the run in --out")]
Threads = Annotated[int | None, typer.Option("--threads", help="CPU threads; default torch's own choice")]
RecipeOption = Annotated[str | None, typer.Option("--recipe", help="name or file; default: what suits the data set")]
Epochs = Annotated[int | None, typer.Option("--epochs", help="instead of the recipe's")]
BatchSize = Annotated[int | None, typer.Option("--batch-size", help="of one machine, instead of the recipe's")]
LearningRate = Annotated[float | None, typer.Option("--lr", help="instead of the recipe's")]
Resolution = Annotated[
    int | None, typer.Option("--resolution", help="side of the images in pixels; default: the network's")
]
Pretrained = Annotated[
    Path | None, typer.Option("--pretrained", help="weights to start from: a checkpoint or a run folder")
]
Teacher = Annotated[str | None, typer.Option("--teacher", help="run folder of a network to learn from, or its name")]
TeacherWeights = Annotated[Path | None, typer.Option("--teacher-weights", help="checkpoint of a teacher given by name")]
Distillation = Annotated[
    float | None, typer.Option("--distillation", help="weight of the teacher in the loss, instead of the recipe's")
]
Flops = Annotated[
    str | None, typer.Option("--flops", help="multiply-adds: 6M (at most), 5M:6M (range), 4M,6M (several)")
]
Params = Annotated[str | None, typer.Option("--params", help="conv and linear weights, the same grammar")]


def is_main_process() -> bool:
    """Whether this process speaks: the only one, or the first of those that `torchrun` started."""
    return os.environ.get("RANK", "0") == "0"


def is_first_here() -> bool:
    """Whether this process is the only one, or the first of those that `torchrun` started on this machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def set_threads(threads: int | None) -> None:
    """Use so many CPU threads.

    Raises:
        UserError: fewer than one, or so many that memory would run out.
    """
    import torch

    from search_spaces.serialisation import require

    if threads is not None:
        most = 4 * (os.cpu_count() or 1)
        require(1 <= threads <= most, f"threads must be in 1..{most} (four for each core), got {threads}")
        torch.set_num_threads(threads)


def require_file_place(path: Path | None) -> None:
    """Refuse a file in a folder that is not there, before anything takes time."""
    from search_spaces.serialisation import require

    good = path is None or (path.absolute().parent.is_dir() and not path.is_dir())
    require(good, f"cannot write {path}: a file in a folder that exists is needed")
