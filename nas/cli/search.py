"""``nas search``."""

import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

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
    tau_decay: Annotated[
        float | None, typer.Option("--tau-decay", help="factor on the temperature in each ninetieth of the search")
    ] = None,
    mask_tau: Annotated[
        float | None,
        typer.Option("--mask-tau", help="temperature of widths and expansions; default: that of the block types"),
    ] = None,
    sample: Annotated[
        str | None, typer.Option("--sample", help="block types a layer runs in a step: all, or two drawn (faster)")
    ] = None,
    share_pointwise: Annotated[
        bool, typer.Option("--share-pointwise", help="block types of a layer share their 1x1 convolutions (faster)")
    ] = False,
    share_blocks: Annotated[
        bool | None,
        typer.Option(
            "--share-blocks/--no-share-blocks",
            help="block types of a layer share all weights and run as one (fastest); default: what suits the data set",
        ),
    ] = None,
    sync_batch_norm: Annotated[
        bool, typer.Option("--sync-batch-norm", help="several processes: batch norms see the images of all of them")
    ] = False,
    same_noise: Annotated[
        bool,
        typer.Option("--same-noise", help="several processes: all draw the same Gumbel noise; default each its own"),
    ] = False,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="memory of one resolution for all of them, same result, more time")
    ] = False,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = None,
    checkpoint_minutes: Annotated[
        float, typer.Option("--checkpoint-minutes", help="between checkpoints at most; also after every epoch")
    ] = 10.0,
    ray_address: Annotated[
        str | None, typer.Option("--ray-address", help="Ray cluster that searches, HOST:PORT or auto")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", help="processes that Ray starts; without --ray-address on this machine")
    ] = None,
    cpus_per_worker: Annotated[float, typer.Option("--cpus-per-worker", help="cores of each of them")] = 1.0,
    gpus_per_worker: Annotated[
        float | None, typer.Option("--gpus-per-worker", help="GPUs of each; default 1 with --device cuda, else 0")
    ] = None,
    retries: Annotated[int, typer.Option("--retries", help="starts anew after Ray lost one of them")] = 3,
    resume: Resume = False,
) -> None:
    """Search a space for the best network inside a budget (DMaskingNAS, FBNetV2); in several processes by torchrun or Ray."""
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
    config = preset(
        data, epochs=epochs, batch_size=batch_size, images=images, lr=lr, tau_decay=tau_decay, mask_tau=mask_tau,
        sample=sample, share_pointwise=share_pointwise, share_blocks=share_blocks, sync_batch_norm=sync_batch_norm,
        noise_per_rank=not same_noise, recompute_resolutions=recompute, seed=seed,
    )  # fmt: skip
    dataset = load_dataset(data, data_dir)
    tables = SpaceTables(loaded, num_classes=dataset.num_classes, in_channels=dataset.in_channels)
    for budget in budgets:  # all of them before the first search starts
        budget.witness(tables)
    folders = run_folders(out, f"{loaded.name}-{data}", budgets)
    gpus = (1.0 if device == "cuda" else 0.0) if gpus_per_worker is None else gpus_per_worker
    for budget, folder in zip(budgets, folders, strict=True):
        label = budget_label(budget)
        given: dict[str, Any] = {
            budget.quantity: budget.limit, "out": folder, "config": config, "classes": classes, "resume": resume,
            "checkpoint_minutes": checkpoint_minutes, "command": sys.argv[1:],
        }  # fmt: skip
        if workers is not None or ray_address is not None:
            from nas.ray_search import Workers, ray_search

            told = _Told(label, budget.quantity, config.epochs)
            placed = Workers(
                count=1 if workers is None else workers,
                cpus=cpus_per_worker,
                gpus=gpus,
                address=ray_address,
                retries=retries,
            )
            result = ray_search(space, data, workers=placed, data_dir=data_dir, on_epoch=told, threads=threads, **given)
        else:
            with ProgressBar(label, budget.quantity) if is_main_process() else nullcontext() as progress:
                callbacks = [] if progress is None else [progress]
                result = search(loaded, dataset, device=device, callbacks=callbacks, **given)
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


class _Told:
    """A line an epoch, with an estimate, for a search that runs elsewhere."""

    def __init__(self, label: str, quantity: str, epochs: int) -> None:
        self.label, self.quantity, self.epochs = label, quantity, epochs
        self.started, self.before = time.monotonic(), 0

    def __call__(self, row: Mapping[str, str]) -> None:
        from search_spaces.limits import format_quantity

        done = int(row["epoch"]) + 1
        self.before = self.before or done - 1
        left = (time.monotonic() - self.started) / max(1, done - self.before) * (self.epochs - done)
        expected = format_quantity(float(row[f"expected_{self.quantity}"]))
        typer.echo(
            f"{self.label}: epoch {done} of {self.epochs}, weights' accuracy {float(row['weights_accuracy']):.1f} %,"
            f" expected {expected}; about {left / 60:.0f} min left"
        )
