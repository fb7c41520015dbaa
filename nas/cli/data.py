"""``nas data``."""

from typing import Annotated

import typer

from nas.cli.options import DataDir

app = typer.Typer(help="Data sets by name.", no_args_is_help=True)


@app.command("list")
def list_command() -> None:
    """Names and what they are."""
    from recipes.datasets import DATASETS

    width = max(len(name) for name in DATASETS)
    for name, description in DATASETS.items():
        typer.echo(f"{name:<{width}}  {description}")


@app.command("get")
def get_command(
    name: Annotated[str, typer.Argument(help="mnist, fashion-mnist or cifar10")], data_dir: DataDir = None
) -> None:
    """Put a data set in place and check it."""
    from recipes.datasets import resolve_data_dir
    from recipes.fetch import get_dataset

    get_dataset(name, resolve_data_dir(data_dir), log=typer.echo)
