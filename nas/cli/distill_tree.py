"""``nas distill-tree``."""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from nas.cli.options import (
    BatchSize,
    DataDir,
    Device,
    Epochs,
    LearningRate,
    RecipeOption,
    Resume,
    Seed,
    Threads,
    is_main_process,
    set_threads,
)


def distill_tree_command(
    model: Annotated[
        str | None,
        typer.Argument(
            help="the teacher: run folder of nas train or a model.pt; without one a small network is trained"
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="data set; default the one that the teacher was trained on, or mnist")
    ] = None,
    depth: Annotated[int, typer.Option("--depth", help="decisions on every way; 2^depth leaves")] = 4,
    beta: Annotated[float, typer.Option("--beta", help="inverse temperature of the decisions")] = 1.0,
    penalty: Annotated[
        float | None, typer.Option("--penalty", help="strength of the penalty for unbalanced decisions")
    ] = None,
    decay: Annotated[
        float | None, typer.Option("--decay", help="factor of the penalty from a level to the next")
    ] = None,
    form: Annotated[
        str | None, typer.Option("--form", help="loss: expected (cross entropy of the leaves), log (of it) or mixture")
    ] = None,
    tries: Annotated[
        int | None,
        typer.Option(
            "--tries",
            help="trees trained side by side for each target; the one that is best on the training images is kept; default: "
            "as many as have 512 leaves together, 32 at most",
        ),
    ] = None,
    temperature: Annotated[float, typer.Option("--temperature", help="divides the teacher's logits")] = 1.0,
    augment: Annotated[
        bool | None,
        typer.Option(
            "--augment/--no-augment",
            help="random crops and flips of the trees' images, of which the teacher is asked batch by batch",
        ),
    ] = None,
    recipe: RecipeOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="run folder; default soft_tree in the teacher's run folder")
    ] = None,
    teacher_epochs: Annotated[
        int | None, typer.Option("--teacher-epochs", help="of the teacher that is trained, instead of its recipe's")
    ] = None,
    data_dir: DataDir = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = None,
    resume: Resume = False,
) -> None:
    """Train soft decision trees on labels and on a network's probabilities; compare them with it."""
    from nas.cli.progress import ProgressBar
    from nas.trees.soft.distilling import LABELS, SOFT_LABELS, default_out, distill_tree
    from nas.trees.soft.loss import SoftTreeLoss
    from nas.trees.soft.page import PAGE

    set_threads(threads)
    out = default_out(model) if out is None else out
    given = {"penalty": penalty, "decay": decay, "form": form}
    loss = SoftTreeLoss(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    with ProgressBar("soft tree") if is_main_process() else nullcontext() as progress:
        result = distill_tree(
            model, data, depth=depth, beta=beta, loss=loss, tries=tries, temperature=temperature, recipe=recipe,
            teacher_epochs=teacher_epochs, out=out, seed=seed, data_dir=data_dir, device=device, resume=resume,
            callbacks=[] if progress is None else [progress], command=sys.argv[1:],
            epochs=epochs, batch_size=batch_size, lr=lr, augment=augment,
        )  # fmt: skip
    teacher = result.teacher
    typer.echo(
        f"{'teacher':<20} {teacher.accuracy:6.2f} % ± {teacher.standard_error:.2f} of {teacher.total} test images"
    )
    for name, said in ((LABELS, "tree on labels"), (SOFT_LABELS, "tree on soft labels")):
        tree = result.trees[name]
        typer.echo(
            f"{said:<20} {tree.evaluation.accuracy:6.2f} % ± {tree.evaluation.standard_error:.2f},"
            f" says what the teacher says of {result.agreement_percent[name]:.2f} %"
        )
    typer.echo(f"written to {out}; look at it: {out / SOFT_LABELS / PAGE}")
