"""``nas nbdt MODEL``, ``nas nbdt train NETWORK``, ``nas nbdt analyse WHAT MODEL`` and ``nas nbdt baselines MODEL``."""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from nas.cli import nbdt_analyse, nbdt_baselines
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
    from nas.trees.losses import Weight

Head = Annotated[str | None, typer.Option("--head", help="name of the last layer, where it cannot be told")]
Synsets = Annotated[
    Path | None, typer.Option("--synsets", help="file of the classes' WordNet synsets, where their names do not tell")
]
WRAP = "tree"  # the command that `nas nbdt MODEL` stands for


class _ModelOrCommand(TyperGroup):
    """`nas nbdt MODEL` is `nas nbdt tree MODEL`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = [WRAP, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_ModelOrCommand, no_args_is_help=True,
    help="Neural-backed decision trees: nas nbdt MODEL turns a trained network into a tree; train trains one for it;"
    " analyse looks at its decisions; baselines grows classic trees on its features.",
)  # fmt: skip
app.add_typer(nbdt_analyse.app, name="analyse")
app.command("baselines")(nbdt_baselines.baselines_command)


@app.command(WRAP)
def tree_command(
    model: Annotated[
        str,
        typer.Argument(help="run folder of nas train or nas demo, a model.pt, or torchvision:NAME with --pretrained"),
    ],
    data: Annotated[str | None, typer.Option("--data", help="data set; default the one it was trained on")] = None,
    tree: Annotated[
        str | None,
        typer.Option(
            "--tree",
            help="unit-ward (thesis), unit-average, raw-ward (the authors' package), info-gain, oc1, wordnet, random,"
            " flat, or a hierarchy file; default the one it was trained with, or unit-ward",
        ),
    ] = None,
    names: Annotated[bool, typer.Option(help="name the inner nodes by WordNet")] = True,
    synsets: Synsets = None,
    head: Head = None,
    pretrained: Annotated[Path | None, typer.Option("--pretrained", help="weights of a network given by name")] = None,
    resolution: Annotated[
        int | None, typer.Option("--resolution", help="side of the images in pixels; default that of training")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="folder for the tree; default nbdt in the run folder")
    ] = None,
    thumbnails: Annotated[
        int,
        typer.Option("--thumbnails", help="images of each class on the page, fewer of many classes; 0: none at all"),
    ] = 4,
    data_dir: DataDir = None,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = None,
) -> None:
    """Put a tree behind a trained network; compare both on the test images."""
    from nas.trees.wrapping import PAGE, TREE, default_out, nbdt

    set_threads(threads)
    result = nbdt(
        model, data, tree=tree, names=names, synsets=synsets, head=head, pretrained=pretrained, resolution=resolution,
        out=default_out(model) if out is None else out, thumbnails=thumbnails, seed=seed, data_dir=data_dir, device=device,
    )  # fmt: skip
    hierarchy = result.hierarchy
    typer.echo(
        f"tree over {len(hierarchy.classes)} classes: {len(hierarchy.children)} inner nodes,"
        f" {sum(map(bool, hierarchy.names))} named, depth {int(hierarchy.depth.max())}"
    )
    for name, evaluation in result.evaluations.items():
        typer.echo(
            f"{name:<6} {evaluation.accuracy:6.2f} % ± {evaluation.standard_error:.2f}"
            f" ({evaluation.correct} of {evaluation.total} test images)"
        )
    assert result.out is not None
    typer.echo(f"written to {result.out / TREE}; look at it: {result.out / PAGE}")


@app.command("train")
def train_command(
    network: Annotated[str, typer.Argument(help="as nas train takes")],
    data: Data,
    out: Out,
    tree: Annotated[
        str | None,
        typer.Option(
            "--tree",
            help="run folder of a trained network: the tree it was trained for, or that of its weights; a hierarchy file;"
            " wordnet, random or flat; default the network of --pretrained",
        ),
    ] = None,
    synsets: Synsets = None,
    head: Head = None,
    rebuild: Annotated[
        str | None,
        typer.Option("--rebuild", help="START:END:PERIOD in epochs: trees from the network's own weights instead"),
    ] = None,
    omega: Annotated[
        str, typer.Option("--omega", help="weight of the tree's loss: START:END, START:END:POWER or a constant")
    ] = "0:0.5",
    beta: Annotated[str, typer.Option("--beta", help="weight of the network's own loss, the same grammar")] = "1:0",
    form: Annotated[
        str, typer.Option("--form", help="nll, xent_on_probs (the authors' package), hard or hard_nodes")
    ] = "nll",
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
    """Train a network with tree supervision; then: nas nbdt OUT."""
    from nas.cli.progress import ProgressBar
    from nas.trees.training import train_nbdt

    set_threads(threads)
    with ProgressBar(Path(network).name) if is_main_process() else nullcontext() as progress:
        result = train_nbdt(
            network, data, tree=tree, synsets=synsets, head=head, rebuild=None if rebuild is None else _epochs(rebuild),
            omega=_weight("--omega", omega), beta=_weight("--beta", beta), form=form,  # type: ignore[arg-type]
            recipe=recipe, out=out, seed=seed, resolution=resolution, pretrained=pretrained, teacher=teacher,
            teacher_weights=teacher_weights, data_dir=data_dir, device=device, resume=resume,
            callbacks=[] if progress is None else [progress], command=sys.argv[1:],
            epochs=epochs, batch_size=batch_size, lr=lr, distillation=distillation,
        )  # fmt: skip
    if is_main_process():
        evaluation = result.evaluation
        typer.echo(
            f"{result.design.name}: {evaluation.accuracy:.2f} % ± {evaluation.standard_error:.2f}"
            f" ({evaluation.correct} of {evaluation.total} test images)"
        )
        typer.echo(f"written to {out}; its tree: nas nbdt {out}")


def _numbers(option: str, text: str) -> list[float]:
    from search_spaces.errors import UserError

    try:
        return [float(part) for part in text.split(":")]
    except ValueError as error:
        raise UserError(f"{option} must be numbers with colons between them, got {text!r}") from error


def _weight(option: str, text: str) -> "Weight":
    from nas.trees.losses import Weight
    from search_spaces.errors import UserError
    from search_spaces.serialisation import require

    numbers = _numbers(option, text)
    require(len(numbers) <= 3, f"{option} must be WEIGHT, START:END or START:END:POWER, got {text!r}")
    try:
        return Weight(*numbers)
    except UserError as error:
        raise UserError(f"{option} {text}: {error}") from error


def _epochs(text: str) -> tuple[int, int, int]:
    from search_spaces.serialisation import require

    numbers = _numbers("--rebuild", text)
    whole = len(numbers) == 3 and all(number.is_integer() for number in numbers)
    require(whole, f"--rebuild must be START:END:PERIOD in whole epochs, got {text!r}")
    start, end, period = (int(number) for number in numbers)
    return start, end, period
