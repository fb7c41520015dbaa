"""``nas filters layers|importance|curves|prune MODEL``."""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nas.cli.options import (
    DataDir,
    Device,
    LearningRate,
    RecipeOption,
    Resume,
    Seed,
    Threads,
    is_main_process,
    require_file_place,
    set_threads,
)

if TYPE_CHECKING:
    import pandas as pd

    from nas.trees.filters.ranking import RankBy

app = typer.Typer(
    no_args_is_help=True,
    help="Filters of a trained network: which ones a decision tree finds important, what the network can do without the"
    " others, and the network without them.",
)

Model = Annotated[
    str, typer.Argument(help="run folder of nas train or nas demo, a model.pt, or a network by name with --pretrained")
]
Data = Annotated[str | None, typer.Option("--data", help="data set; default the one it was trained on")]
Layers = Annotated[list[str] | None, typer.Option("--layer", help="name of a convolution; several times; default all")]
By = Annotated[str, typer.Option("--by", help="tree, boosted (needs XGBoost), l1 (sums of absolute weights) or random")]
Score = Annotated[str, typer.Option("--score", help="of an activation map: mean, max or topk")]
TopK = Annotated[int, typer.Option("--top-k", help="values of a map that topk takes")]
Importance = Annotated[str, typer.Option("--importance", help="gain (mean over a filter's splits) or total_gain")]
Depth = Annotated[int | None, typer.Option("--depth", help="of the trees; default log2 of the filters, 6 if boosted")]
Estimators = Annotated[int, typer.Option("--estimators", help="rounds of boosting")]
Images = Annotated[int | None, typer.Option("--images", help="training images for the trees; default all")]
Weights = Annotated[Path | None, typer.Option("--pretrained", help="weights of a network given by name")]
Resolution = Annotated[
    int | None, typer.Option("--resolution", help="side of the images in pixels; default that of training")
]
Table = Annotated[Path | None, typer.Option("--out", help="CSV file for the whole table")]


@app.command("layers")
def layers_command(model: Model, pretrained: Weights = None) -> None:
    """The convolutions by name, and whether their filters can be removed."""
    from nas.exporting.source import load_source
    from nas.loading import trained_folder
    from nas.trees.filters.channels import convolutions, filter_group
    from search_spaces.errors import UserError

    folder = trained_folder(model)
    network = load_source(str(folder) if folder.exists() else model, pretrained=pretrained).network
    rows = []
    for name, convolution in convolutions(network).items():
        try:
            group = filter_group(network, name)
            note = "removable" if group.layer == name else f"removable, with {group.layer}"
        except UserError as error:
            note = str(error).partition("cannot be removed: ")[2] or str(error)
        rows.append((name, convolution.out_channels, note))
    width = max((len(name) for name, _, _ in rows), default=0)
    for name, filters, note in rows:
        typer.echo(f"{name:<{width}}  {filters:>5}  {note}")


@app.command("importance")
def importance_command(
    model: Model,
    layer: Layers = None,
    data: Data = None,
    by: By = "tree",
    score: Score = "mean",
    top_k: TopK = 10,
    importance: Importance = "gain",
    depth: Depth = None,
    estimators: Estimators = 500,
    images: Images = None,
    top: Annotated[int, typer.Option("--top", help="filters of a layer to print")] = 10,
    out: Table = None,
    pretrained: Weights = None,
    resolution: Resolution = None,
    data_dir: DataDir = None,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = None,
) -> None:
    """Rank the filters of convolutions by trees over their activation scores."""
    from nas.trees.filters.ranking import filter_importance

    require_file_place(out)
    result = filter_importance(
        model, data, layers=layer or None,
        by=_by(by, score, importance, depth, estimators, top_k, images, seed, threads),
        pretrained=pretrained, resolution=resolution, data_dir=data_dir, device=device,
    )  # fmt: skip
    for name, rows in result.table.groupby("layer", sort=False):
        line = f"{name}: {len(rows)} filters"
        if name in result.tree_accuracy:
            accuracy, most = result.tree_accuracy[str(name)], result.depth[str(name)]
            line += f", {int((rows['splits'] > 0).sum())} used; depth {most}, {accuracy:.2f} % of the test images"
        typer.echo(line)
        best = rows.sort_values("rank").head(top)
        for number, value, share in zip(best["filter"], best["importance"], 100 * best["share"], strict=True):
            typer.echo(f"  filter {number:<5} {value:>12.6g}  {share:6.2f} %")
    if out is not None:
        _save(result.table, out)


@app.command("curves")
def curves_command(
    model: Model,
    layer: Annotated[str, typer.Option("--layer", help="name of a convolution")],
    data: Data = None,
    by: By = "tree",
    score: Score = "mean",
    top_k: TopK = 10,
    importance: Importance = "gain",
    depth: Depth = None,
    estimators: Estimators = 500,
    images: Images = None,
    points: Annotated[int, typer.Option("--points", help="of a curve, at most")] = 31,
    out: Table = None,
    pretrained: Weights = None,
    resolution: Resolution = None,
    data_dir: DataDir = None,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = None,
) -> None:
    """Accuracy when the least (best case) or the most important filters (worst case) are left out first."""
    from nas.trees.filters.pruning import pruning_curves

    require_file_place(out)
    table = pruning_curves(
        model, data, layer=layer, by=_by(by, score, importance, depth, estimators, top_k, images, seed, threads),
        points=points, pretrained=pretrained, resolution=resolution, data_dir=data_dir, device=device,
    )  # fmt: skip
    typer.echo(table.to_string(index=False, float_format="%.2f"))
    if out is not None:
        _save(table, out)


@app.command("prune")
def prune_command(
    model: Model,
    keep: Annotated[
        list[str], typer.Option("--keep", help="LAYER=12 filters or LAYER=0.25 of them stay; several times")
    ],
    out: Annotated[Path, typer.Option("--out", help="folder for the narrower network")],
    data: Data = None,
    by: By = "tree",
    score: Score = "mean",
    top_k: TopK = 10,
    importance: Importance = "gain",
    depth: Depth = None,
    estimators: Estimators = 500,
    images: Images = None,
    epochs: Annotated[int, typer.Option("--epochs", help="of fine-tuning; 0: none")] = 0,
    recipe: RecipeOption = None,
    lr: LearningRate = None,
    pretrained: Weights = None,
    resolution: Resolution = None,
    data_dir: DataDir = None,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = None,
    resume: Resume = False,
) -> None:
    """Remove the least important filters from the network, and fine-tune what is left."""
    from nas.cli.progress import ProgressBar
    from nas.trees.filters.removal import PRUNED, TUNED, prune_filters
    from search_spaces.limits import format_quantity

    how = _by(by, score, importance, depth, estimators, top_k, images, seed, threads)
    with ProgressBar(Path(model).name) if is_main_process() else nullcontext() as progress:
        result = prune_filters(
            model, data, keep=dict(_kept(text) for text in keep), by=how, epochs=epochs, recipe=recipe, lr=lr, out=out,
            pretrained=pretrained, resolution=resolution, data_dir=data_dir, seed=seed, device=device, resume=resume,
            callbacks=[] if progress is None else [progress], command=sys.argv[1:],
        )  # fmt: skip
    before, after = result.cost_before, result.cost
    for name, evaluation, cost in (
        ("before", result.before, before), ("pruned", result.pruned, after), ("tuned", result.tuned, after),
    ):  # fmt: skip
        if evaluation is not None:
            typer.echo(
                f"{name:<7} {format_quantity(cost.flops):>8} FLOPs {format_quantity(cost.params_all):>8} parameters"
                f"  {evaluation.accuracy:6.2f} % ± {evaluation.standard_error:.2f}"
            )
    typer.echo(f"written to {out}; go on with {out / (PRUNED if result.tuned is None else TUNED)}")


def _by(
    method: str,
    score: str,
    importance: str,
    depth: int | None,
    estimators: int,
    top_k: int,
    images: int | None,
    seed: int,
    threads: int | None,
) -> "RankBy":
    from nas.trees.filters.ranking import RankBy

    set_threads(threads)
    return RankBy(
        method=method,  # type: ignore[arg-type]  # checked there, as the next two
        score=score,  # type: ignore[arg-type]
        importance=importance,  # type: ignore[arg-type]
        depth=depth,
        estimators=estimators,
        top_k=top_k,
        images=images,
        seed=seed,
        threads=threads or 1,
    )


def _kept(text: str) -> tuple[str, int | float]:
    from search_spaces.errors import UserError

    layer, _, number = text.rpartition("=")
    try:
        return layer, int(number) if number.isdecimal() else float(number)
    except ValueError as error:
        raise UserError(f"--keep must be LAYER=NUMBER or LAYER=SHARE, got {text!r}") from error


def _save(table: "pd.DataFrame", path: Path) -> None:
    from search_spaces.serialisation import write_text_atomic

    write_text_atomic(path, table.to_csv(index=False))
    typer.echo(f"written to {path}")
