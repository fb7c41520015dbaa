"""``nas tree-reg parabola|markov|table|data``."""

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nas.cli.options import BatchSize as RecipeBatchSize
from nas.cli.options import (
    DataDir,
    Device,
    LearningRate,
    Pretrained,
    RecipeOption,
    Resolution,
    Resume,
    Seed,
    Threads,
    set_threads,
)
from nas.cli.options import Epochs as RecipeEpochs

if TYPE_CHECKING:
    from nas.trees.regularisation.tasks import Task
    from nas.trees.regularisation.training import EpochDone, Regularised

SECONDS = 10.0  # between lines where there is no terminal: epochs take milliseconds

app = typer.Typer(
    no_args_is_help=True,
    help="Tree regularisation: train a classifier so that a small decision tree mimics it.",
)

Penalty = Annotated[str, typer.Option("--penalty", help="tree, l1, l2 or none")]
Strength = Annotated[float, typer.Option("--strength", help="lambda, weight of the penalty in the loss")]
Epochs = Annotated[int, typer.Option("--epochs", help="of training")]
BatchSize = Annotated[int, typer.Option("--batch-size", help="rows, or sequences, a step")]
Rate = Annotated[float, typer.Option("--lr", help="learning rate")]
Optimizer = Annotated[str, typer.Option("--optimizer", help="sgd, with momentum, or adam")]
Warmup = Annotated[int, typer.Option("--warmup", help="epochs before the tree penalty acts")]
Ramp = Annotated[int, typer.Option("--ramp", help="epochs after the warm-up over which its strength grows")]
Every = Annotated[int, typer.Option("--every", help="epochs between surrogates: more is cheaper")]
Perturbation = Annotated[
    str, typer.Option("--perturbation", help="of weights for the surrogate: trees, outputs or weights")
]
MinLeaf = Annotated[int, typer.Option("--min-leaf", help="rows that a leaf of the tree needs")]
MaxDepth = Annotated[int | None, typer.Option("--max-depth", help="decisions of the tree at most, 1 to 20")]
Layers = Annotated[str | None, typer.Option("--layers", help="names of the penalised layers, with commas; default all")]
Out = Annotated[Path | None, typer.Option("--out", help="run folder for numbers, weights, tree and chart")]


@app.command("parabola")
def parabola_command(
    penalty: Penalty = "tree",
    strength: Strength = 0.1,
    epochs: Epochs = 250,
    batch_size: BatchSize = 100,
    optimizer: Optimizer = "sgd",
    lr: Rate = 0.1,
    warmup: Warmup = 50,
    ramp: Ramp = 80,
    every: Every = 2,
    perturbation: Perturbation = "trees",
    min_leaf: MinLeaf = 5,
    max_depth: MaxDepth = None,
    layers: Layers = None,
    out: Out = None,
    seed: Seed = 0,
    threads: Threads = None,
    resume: Resume = False,
) -> None:
    """350 points on both sides of a parabola, and a network that is too large for them."""
    from nas.trees.regularisation.tasks import parabola_task

    given = locals()
    set_threads(threads)
    _train(parabola_task(seed), given)


@app.command("markov")
def markov_command(
    network: Annotated[str, typer.Option("--network", help="gru or gru-hmm")] = "gru",
    hidden: Annotated[int, typer.Option("--hidden", help="units of the GRU")] = 20,
    penalty: Penalty = "tree",
    strength: Strength = 0.1,
    epochs: Epochs = 100,
    batch_size: BatchSize = 10,
    optimizer: Optimizer = "sgd",
    lr: Rate = 0.2,
    warmup: Warmup = 20,
    ramp: Ramp = 40,
    every: Every = 2,
    perturbation: Perturbation = "trees",
    min_leaf: MinLeaf = 25,
    max_depth: MaxDepth = None,
    layers: Layers = None,
    out: Out = None,
    seed: Seed = 0,
    threads: Threads = None,
    resume: Resume = False,
) -> None:
    """Time series of a hidden Markov model beside one of noise; a GRU, or the residual GRU-HMM."""
    from nas.trees.regularisation.tasks import markov_task

    given = locals()
    set_threads(threads)
    _train(markov_task(seed, network, hidden), given)


@app.command("table")
def table_command(
    file: Annotated[Path, typer.Argument(help="CSV file of numbers; the first line names the columns")],
    label: Annotated[str, typer.Option("--label", help="column of the classes")],
    held_out: Annotated[float, typer.Option("--held-out", help="share of the rows to test on")] = 0.3,
    penalty: Penalty = "tree",
    strength: Strength = 0.1,
    epochs: Epochs = 250,
    batch_size: BatchSize = 100,
    optimizer: Optimizer = "sgd",
    lr: Rate = 0.1,
    warmup: Warmup = 50,
    ramp: Ramp = 80,
    every: Every = 2,
    perturbation: Perturbation = "trees",
    min_leaf: MinLeaf = 5,
    max_depth: MaxDepth = None,
    layers: Layers = None,
    out: Out = None,
    seed: Seed = 0,
    threads: Threads = None,
    resume: Resume = False,
) -> None:
    """A table of your own, of two classes or more."""
    from nas.trees.regularisation.tasks import table_task

    given = locals()
    set_threads(threads)
    _train(table_task(file, label, seed=seed, held_out=held_out), given)


@app.command("data")
def data_command(
    data: Annotated[str, typer.Argument(help="digits, mnist, fashion-mnist, cifar10 or imagefolder:PATH")],
    network: Annotated[
        str | None,
        typer.Option("--network", help="as nas train takes; default a perceptron with 100, 100 and 10 hidden units"),
    ] = None,
    penalty: Penalty = "tree",
    strength: Strength = 0.1,
    inputs: Annotated[int, typer.Option("--inputs", help="training images that the tree is fitted to")] = 1000,
    layers: Layers = None,
    warmup: Annotated[int | None, typer.Option("--warmup", help="epochs before penalties act; default a sixth")] = None,
    ramp: Annotated[
        int | None, typer.Option("--ramp", help="epochs after these over which the strength grows; default a third")
    ] = None,
    every: Every = 1,
    stored: Annotated[int, typer.Option("--stored", help="copies of the weights that a surrogate learns from")] = 128,
    perturbation: Perturbation = "trees",
    min_leaf: MinLeaf = 5,
    max_depth: MaxDepth = None,
    recipe: RecipeOption = None,
    data_dir: DataDir = None,
    epochs: RecipeEpochs = None,
    batch_size: RecipeBatchSize = None,
    lr: LearningRate = None,
    resolution: Resolution = None,
    pretrained: Pretrained = None,
    out: Out = None,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = None,
    resume: Resume = False,
) -> None:
    """Images of a data set: the tree decides by pixels. In the training loop of nas train, with its recipes."""
    from nas.cli.progress import ProgressBar
    from nas.trees.regularisation.images import regularise_images
    from nas.trees.regularisation.path_length import TreeOptions
    from nas.trees.regularisation.penalty import TreePenalty

    set_threads(threads)
    tree = TreePenalty(
        every=every, stored=stored, perturbation=perturbation,  # type: ignore[arg-type]  # checked there
        tree=TreeOptions(min_samples_leaf=min_leaf, max_depth=max_depth),
    )  # fmt: skip
    with ProgressBar("tree-reg") as progress:
        found = regularise_images(
            data, network, penalty=penalty, strength=strength, tree=tree, warmup=warmup, ramp=ramp, inputs=inputs,
            layers=_names(layers), recipe=recipe, resolution=resolution, pretrained=pretrained, out=out, seed=seed,
            data_dir=data_dir, device=device, resume=resume, callbacks=[progress], command=sys.argv[1:], epochs=epochs,
            batch_size=batch_size, lr=lr,
        )  # fmt: skip
    _report(f"{found.name}, {penalty} {strength:g}", found.tree, found.result, out)


def _names(layers: str | None) -> list[str] | None:
    return None if layers is None else layers.split(",")


def _train(task: "Task", given: dict[str, Any]) -> None:
    from nas.cli.progress import ProgressBar
    from nas.trees.regularisation.path_length import TreeOptions
    from nas.trees.regularisation.penalty import TreePenalty
    from nas.trees.regularisation.tasks import regularise, tree_text
    from nas.trees.regularisation.training import RegularisationOptions

    options = RegularisationOptions(
        penalty=given["penalty"], strength=given["strength"], epochs=given["epochs"], batch_size=given["batch_size"],
        optimizer=given["optimizer"], lr=given["lr"],
        tree=TreePenalty(
            strength=given["strength"], warmup=given["warmup"], ramp=given["ramp"], every=given["every"],
            perturbation=given["perturbation"],
            tree=TreeOptions(min_samples_leaf=given["min_leaf"], max_depth=given["max_depth"]),
        ),
    )  # fmt: skip
    with ProgressBar(f"tree-reg {task.name}", seconds=SECONDS) as bar:

        def progress(done: "EpochDone") -> None:
            bar.on_step_end(done)
            bar.on_epoch_end(done)

        result = regularise(
            task, options, seed=given["seed"], layers=_names(given["layers"]), out=given["out"], command=sys.argv[1:],
            progress=progress, resume=given["resume"],
        )  # fmt: skip
    _report(f"{task.name}, {options.penalty} {options.strength:g}", tree_text(result, task), result, given["out"])


def _report(name: str, tree: str, result: "Regularised", out: Path | None) -> None:
    found, numbers, costs = result.mimic, result.numbers(), result.costs
    typer.echo(tree.rstrip())
    typer.echo(
        f"{name}: {result.accuracy:.2f} % of the test labels"
        + ("" if math.isnan(result.auc) else f", AUC {result.auc:.4f}")
        + f"; path length {found.path_length:.2f} ({found.nodes} nodes, depth {found.depth}), tree and network agree on"
        f" {100 * result.test_fidelity:.1f} % of the test rows"
    )
    if result.history:
        typer.echo(
            f"surrogate: off by {numbers['surrogate_rmse']:.2f} decisions on weights it had not seen; {result.seconds:.1f}"
            f" CPU-s, of these {costs.trees:.1f} for {costs.fitted_trees} trees and {costs.surrogates:.1f} for"
            f" {costs.fitted_surrogates} surrogates"
        )
    if out is not None:
        typer.echo(f"written to {out}")
