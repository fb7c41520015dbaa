"""``nas zoo``."""

from typing import Annotated

import typer

app = typer.Typer(help="Published networks: list, show.")


@app.callback(invoke_without_command=True)
def list_command(context: typer.Context) -> None:
    """Without a command: every published network with its cost, resolution and ImageNet top-1."""
    if context.invoked_subcommand is not None:
        return
    from search_spaces.cost import cost
    from search_spaces.zoo import load, names, published

    typer.echo(
        f"{'name':<12} {'MFLOPs':>11} {'M weights':>10} {'M parameters':>12} {'resolution':>10}  published top-1"
    )
    for name in names():
        architecture, figures = load(name), published(name)
        exact = cost(architecture)
        top1 = "-" if figures is None else f"{figures.top1:.2f} %"
        typer.echo(
            f"{name:<12} {exact.flops / 1e6:>11.6f} {exact.params / 1e6:>10.6f} {exact.params_all / 1e6:>12.6f}"
            f" {architecture.resolution:>10}  {top1}"
        )


@app.command("show")
def show_command(name: Annotated[str, typer.Argument(help="published network")]) -> None:
    """Every block of a published network."""
    from search_spaces.zoo import load

    architecture = load(name)
    typer.echo(f"{architecture.name}, input {architecture.resolution}x{architecture.resolution}")
    typer.echo(
        f"{'#':>3} {'kind':<9} {'kernel':>6} {'stride':>6} {'in':>5} {'middle':>6} {'out':>5} {'squeeze':>7}  activation"
    )
    for index, (channels, block) in enumerate(architecture.layers(3)):
        extras = [f"groups {block.groups}"] if block.groups > 1 else []
        extras += [f"padding {block.padding}"] if block.padding is not None else []
        typer.echo(
            f"{index:>3} {block.kind:<9} {block.kernel:>6} {block.stride:>6} {channels:>5} {block.mid_channels:>6}"
            f" {block.out_channels:>5} {block.squeeze_channels:>7}  {block.activation} {' '.join(extras)}".rstrip()
        )
