"""``nas demo``."""

from pathlib import Path
from typing import Annotated

import typer

from nas.cli.options import Seed


def demo_command(
    out: Annotated[Path, typer.Option("--out", help="folder for all runs; called again, the demo goes on")] = Path(
        "runs/demo"
    ),
    flops: Annotated[str, typer.Option("--flops", help="budget")] = "0.2M",
    seed: Seed = 0,
    epochs: Annotated[int | None, typer.Option("--epochs", help="of the search")] = None,
    train_epochs: Annotated[int | None, typer.Option("--train-epochs", help="of each training; default 30")] = None,
) -> None:
    """The whole way on scikit-learn's digits: search, retrain, export, and compare with random networks."""
    import torch

    from nas.cli.progress import ProgressBar
    from nas.demo import demo, demo_table
    from nas.reporting.report import report

    torch.set_num_threads(1)
    with ProgressBar("demo") as progress:
        result = demo(
            out,
            flops=flops,
            seed=seed,
            epochs=epochs,
            train_epochs=train_epochs,
            search_callbacks=[progress],
            train_callbacks=[progress],
            log=lambda line: typer.echo(line, err=True),
        )
    typer.echo(demo_table(result))
    typer.echo(f"ONNX: {result.exported.path} (largest difference from PyTorch {result.exported.max_difference:.1e})")
    typer.echo(
        f"record of the search: {out / 'search'} (config.json, metrics.csv, alpha.csv, architecture.json, result.json)"
    )
    typer.echo(f"all of it on one page: {report(out)}")
