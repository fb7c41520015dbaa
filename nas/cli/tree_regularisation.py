"""``nas tree-reg parabola|markov|table``."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nas.cli.options import Resume, Seed, Threads, set_threads

if TYPE_CHECKING:
    from nas.trees.regularisation.tasks import Task
    from nas.trees.regularisation.training import EpochDone

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


def _train(task: "Task", given: dict[str, Any]) -> None:
    from nas.cli.progress import ProgressBar
    from nas.trees.regularisation.path_length import TreeOptions
    from nas.trees.regularisation.penalty import TreePenalty
    from nas.trees.regularisation.tasks import regularise, tree_text
    from nas.trees.regularisation.training import TrainingOptions

    options = TrainingOptions(
        penalty=given["penalty"], strength=given["strength"], epochs=given["epochs"], batch_size=given["batch_size"],
        optimizer=given["optimizer"], lr=given["lr"],
        tree=TreePenalty(
            strength=given["strength"], warmup=given["warmup"], ramp=given["ramp"], every=given["every"],
            perturbation=given["perturbation"],
            tree=TreeOptions(min_samples_leaf=given["min_leaf"], max_depth=given["max_depth"]),
        ),
    )  # fmt: skip
    layers = None if given["layers"] is None else given["layers"].split(",")
    with ProgressBar(f"tree-reg {task.name}", seconds=SECONDS) as bar:

        def progress(done: "EpochDone") -> None:
            bar.on_step_end(done)
            bar.on_epoch_end(done)

        result = regularise(
            task, options, seed=given["seed"], layers=layers, out=given["out"], command=sys.argv[1:], progress=progress,
            resume=given["resume"],
        )  # fmt: skip
    found, numbers = result.mimic, result.numbers()
    typer.echo(tree_text(result, task).rstrip())
    typer.echo(
        f"{task.name}, {options.penalty} {options.strength:g}: {result.accuracy:.2f} % of the test labels, AUC"
        f" {result.auc:.4f}; path length {found.path_length:.2f} ({found.nodes} nodes, depth {found.depth}), tree and"
        f" network agree on {100 * result.test_fidelity:.1f} % of the test rows"
    )
    if result.history:
        costs = result.costs
        typer.echo(
            f"surrogate: off by {numbers['surrogate_rmse']:.2f} decisions on weights it had not seen; {result.seconds:.1f}"
            f" CPU-s, of these {costs.trees:.1f} for {costs.fitted_trees} trees and {costs.surrogates:.1f} for"
            f" {costs.fitted_surrogates} surrogates"
        )
    if given["out"] is not None:
        typer.echo(f"written to {given['out']}")
