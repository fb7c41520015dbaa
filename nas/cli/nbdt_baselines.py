"""``nas nbdt baselines MODEL``."""

from pathlib import Path
from typing import Annotated

import typer

from nas.cli.options import DataDir, Device, Seed, Threads, set_threads


def baselines_command(
    model: Annotated[str, typer.Argument(help="run folder of nas train or nas demo, a model.pt, or torchvision:NAME")],
    data: Annotated[str | None, typer.Option("--data", help="data set; default the one it was trained on")] = None,
    method: Annotated[
        list[str] | None, typer.Option("--method", help="info-gain or oc1; several times; default both")
    ] = None,
    max_depth: Annotated[int | None, typer.Option("--max-depth", help="decisions of a tree at most")] = None,
    max_leaves: Annotated[int | None, typer.Option("--max-leaves", help="leaves at most, best splits first")] = None,
    min_leaf: Annotated[int, typer.Option("--min-leaf", help="training images that a leaf needs")] = 1,
    restarts: Annotated[int, typer.Option("--restarts", help="of oc1, climbs a node: 1 is fast, 20 the default")] = 20,
    impurity: Annotated[str, typer.Option("--impurity", help="of oc1: entropy or twoing (published)")] = "entropy",
    head: Annotated[str | None, typer.Option("--head", help="name of the last layer, where it cannot be told")] = None,
    pretrained: Annotated[Path | None, typer.Option("--pretrained", help="weights of a network given by name")] = None,
    resolution: Annotated[
        int | None, typer.Option("--resolution", help="side of the images in pixels; default that of training")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="folder for the trees and baselines.json")] = None,
    data_dir: DataDir = None,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = None,
) -> None:
    """Classic decision trees on what the last layer sees, beside the network (Table 5.2): info gain and OC1."""
    from nas.trees.baselines.comparison import checked_folder, feature_baselines
    from nas.trees.split_hierarchies import SPLIT_METHODS

    set_threads(threads)
    if out is not None:
        checked_folder(out)
    found = feature_baselines(
        model, data, tuple(method) if method else SPLIT_METHODS, seed=seed,  # type: ignore[arg-type]
        max_depth=max_depth, max_leaves=max_leaves, min_leaf=min_leaf,
        oc1={"restarts": restarts, "impurity": impurity}, head=head, pretrained=pretrained, resolution=resolution,
        data_dir=data_dir, device=device,
    )  # fmt: skip
    typer.echo(f"{'network':<10} {found.accuracy:6.2f} % ({found.correct} of {found.total} test images)")
    for name, one in found.trees.items():
        typer.echo(
            f"{name:<10} {one.evaluation.accuracy:6.2f} % ± {one.evaluation.standard_error:.2f}; {one.tree.leaves} leaves,"
            f" depth {one.tree.depth}; says what the network says for {one.agreement:.2f} %"
        )
    if out is not None:
        found.save(out)
        typer.echo(f"written to {out}")
