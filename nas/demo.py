"""``nas demo``: the whole way on scikit-learn's digits, beside random networks of the same cost, in one table."""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from nas.exporting import ExportResult, export
from nas.loading import load_space
from nas.searching import search
from nas.training import default_recipe, train
from recipes.datasets import load_dataset
from recipes.recipe import Recipe, load_recipe
from recipes.trainer import Callback
from search_spaces.limits import Limit, format_quantity, parse_limits
from search_spaces.sampling import rows_within
from search_spaces.serialisation import require
from search_spaces.tables import SpaceTables
from supernets.budget import Budget
from supernets.config import preset
from supernets.progress import SearchCallback

SPACE = DATA = "digits"
RANDOM_NETWORKS = 3
TRAIN_EPOCHS = 30  # as in the study of search quality: after the recipe's 12 the order hangs on the seed of a training


@dataclass(frozen=True, slots=True)
class DemoRow:
    """One network of the table: cost, and accuracy in percent with its binomial standard error in points."""

    name: str
    flops: int
    params: int
    resolution: int
    accuracy: float
    standard_error: float


@dataclass(frozen=True, slots=True)
class DemoResult:
    """The searched network first, then the random ones; and the exported file."""

    rows: list[DemoRow]
    test_images: int
    exported: ExportResult


def demo(
    out: str | Path,
    *,
    flops: str = "0.2M",
    seed: int = 0,
    epochs: int | None = None,
    train_epochs: int | None = None,
    search_callbacks: Sequence[SearchCallback] = (),
    train_callbacks: Sequence[Callback] = (),
    log: Callable[[str], None] = lambda line: None,
) -> DemoResult:
    """Search, retrain, export; meanwhile train random networks of 0.9 to 1.0 of the budget alike, in a second process.

    Args:
        out: folder for all runs; started again, the demo goes on where it was.
        flops: one budget.
        seed: of the search, the draws and all trainings.
        epochs: of the search; None for the preset.
        train_epochs: of each training; None for 30.
        search_callbacks: see `supernets.progress.SearchCallback`.
        train_callbacks: see `recipes.trainer.Callback`.
        log: told what happens.

    Raises:
        UserError: an impossible budget or a folder that holds something else.
    """
    out = Path(out)
    limits = parse_limits(flops)
    require(len(limits) == 1, f"the demo takes one budget, got {flops!r}")
    space, data = load_space(SPACE), load_dataset(DATA)
    tables = SpaceTables(space, num_classes=data.num_classes, in_channels=data.in_channels)
    Budget("flops", limits[0]).witness(tables)
    recipe = load_recipe(default_recipe(DATA)).with_epochs(TRAIN_EPOCHS if train_epochs is None else train_epochs)
    require(not out.exists() or out.is_dir(), f"{out} is a file; the demo needs a folder")
    near = {"flops": Limit(high=limits[0].high, low=0.9 * limits[0].high)}
    config = preset(DATA, epochs=epochs, seed=seed)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_start_worker) as pool:
        rows = rows_within(space, RANDOM_NETWORKS, near, tables=tables, seed=seed)
        randoms = [
            pool.submit(_train_random, space.decode(row).to_json(), str(out / f"random{index}"), seed, recipe)
            for index, row in enumerate(rows)
        ]
        try:
            log(f"searching {space.name} (10^{len(str(space.size)) - 1} networks) for at most {flops} FLOPs")
            found = search(
                space, data, flops=limits[0], out=out / "search", config=config, resume=True, callbacks=search_callbacks
            )
            log(f"found {found.architecture.name}; training it")
            trained = train(
                found.architecture, data, recipe=recipe, out=out / "train", seed=seed, resume=True,
                callbacks=train_callbacks,
            )  # fmt: skip
            exported = export(out / "train")
            log(f"exported {exported.path}; waiting for the random networks")
            others = [random.result() for random in randoms]
        except BaseException:
            _terminate(pool)
            raise
    searched = DemoRow(
        name="searched",
        flops=trained.cost.flops,
        params=trained.cost.params,
        resolution=found.architecture.resolution,
        accuracy=trained.evaluation.accuracy,
        standard_error=trained.evaluation.standard_error,
    )
    return DemoResult([searched, *others], trained.evaluation.total, exported)


def demo_table(result: DemoResult) -> str:
    """The result as text."""
    lines = [
        f"{'network':<10} {'FLOPs':>8} {'parameters':>10} {'resolution':>10}  accuracy on {result.test_images} test images"
    ]
    lines += [
        f"{row.name:<10} {format_quantity(row.flops):>8} {format_quantity(row.params):>10} {row.resolution:>10}"
        f"  {row.accuracy:.2f} % ± {row.standard_error:.2f}"
        for row in result.rows
    ]
    return "\n".join(lines)


def _terminate(pool: ProcessPoolExecutor) -> None:
    """Stop the second process at once; what it has trained so far is in its checkpoints."""
    for process in multiprocessing.active_children():
        process.terminate()
    pool.shutdown(wait=False, cancel_futures=True)


def _start_worker() -> None:
    """One thread for the second process: two processes share the cores."""
    import torch

    torch.set_num_threads(1)


def _train_random(architecture: dict[str, object], out: str, seed: int, recipe: Recipe) -> DemoRow:
    from search_spaces.architecture import Architecture

    result = train(Architecture.from_json(architecture), DATA, recipe=recipe, out=out, seed=seed, resume=True)
    return DemoRow(
        name=Path(out).name,
        flops=result.cost.flops,
        params=result.cost.params,
        resolution=result.design.resolution,
        accuracy=result.evaluation.accuracy,
        standard_error=result.evaluation.standard_error,
    )
