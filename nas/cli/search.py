"""``nas search``."""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from nas.cli.options import Data, DataDir, Device, Flops, Params, Resume, Seed, Threads, is_main_process, set_threads


def search_command(
    space: Annotated[str, typer.Option("--space", help="name (nas spaces), YAML file, or module:function")],
    data: Data,
    flops: Flops = None,
    params: Params = None,
    latency_ms: Annotated[str | None, typer.Option("--latency-ms", help="not for searches yet")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="run folder; default runs/SPACE-DATA-BUDGET")] = None,
    data_dir: DataDir = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="default: what suits the data set")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="of the weight steps")] = None,
    images: Annotated[
        int | None, typer.Option("--images", help="search on so many training images; default: what suits the data set")
    ] = None,
    classes: Annotated[
        int | None, typer.Option("--classes", help="search on so many classes, chosen by the seed; default all")
    ] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="of the weights")] = None,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = None,
    checkpoint_minutes: Annotated[
        float, typer.Option("--checkpoint-minutes", help="between checkpoints at most; also after every epoch")
    ] = 10.0,
    resume: Resume = False,
) -> None:
    """Search a space for the best network inside a budget (DMaskingNAS, FBNetV2); under torchrun in several processes."""
    from nas.cli.progress import ProgressBar
    from nas.loading import load_space
    from nas.searching import budget_label, parse_budgets, run_folders, search
    from recipes.datasets import load_dataset
    from search_spaces.limits import format_quantity, parse_limits
    from search_spaces.serialisation import require
    from search_spaces.tables import SpaceTables
    from supernets.config import preset

    if latency_ms is not None:
        parse_limits(latency_ms)
    require(latency_ms is None, "--latency-ms: a search knows no latency table; give --flops or --params")
    set_threads(threads)
    budgets = parse_budgets(flops, params)
    loaded = load_space(space)
    config = preset(data, epochs=epochs, batch_size=batch_size, images=images, lr=lr, seed=seed)
    dataset = load_dataset(data, data_dir)
    tables = SpaceTables(loaded, num_classes=dataset.num_classes, in_channels=dataset.in_channels)
    for budget in budgets:  # all of them before the first search starts
        budget.witness(tables)
    folders = run_folders(out, f"{loaded.name}-{data}", budgets)
    for budget, folder in zip(budgets, folders, strict=True):
        label = budget_label(budget)
        with ProgressBar(label, budget.quantity) if is_main_process() else nullcontext() as progress:
            result = search(
                loaded,
                dataset,
                **{budget.quantity: budget.limit},  # type: ignore[arg-type]
                out=folder,
                config=config,
                classes=classes,
                device=device,
                resume=resume,
                checkpoint_minutes=checkpoint_minutes,
                callbacks=[] if progress is None else [progress],
                command=sys.argv[1:],
            )
        if not is_main_process():
            continue
        cost = result.cost
        typer.echo(
            f"found {result.architecture.name}: {format_quantity(cost.flops)} FLOPs, {format_quantity(cost.params)} parameters"
            f" ({format_quantity(cost.params_all)} with norms and biases), resolution {result.architecture.resolution}"
        )
        if result.repaired:
            before = result.argmax_cost._asdict()[budget.quantity]
            typer.echo(
                f"the argmax network had {format_quantity(before)} {budget.quantity} and was repaired to the budget"
            )
        typer.echo(f"written to {folder}; train it with: nas train {folder} --data {data} --out {folder}-trained")
