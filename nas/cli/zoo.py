"""``nas zoo``."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Published networks: list, show.")

File = Annotated[
    Path | None, typer.Option("--file", help="networks of a YAML file in the format of the published ones instead")
]


@app.callback(invoke_without_command=True)
def list_command(context: typer.Context, file: File = None) -> None:
    """Without a command: every published network with its cost, resolution and ImageNet top-1."""
    if context.invoked_subcommand is not None:
        return
    from search_spaces.cost import cost
    from search_spaces.zoo import load_networks

    networks = load_networks() if file is None else load_networks(file)
    width = max(12, *map(len, networks))
    typer.echo(
        f"{'name':<{width}} {'MFLOPs':>11} {'M weights':>10} {'M parameters':>12} {'resolution':>10}  published top-1"
    )
    for name, entry in networks.items():
        exact = cost(entry.architecture)
        top1 = "-" if entry.published is None else f"{entry.published.top1:.2f} %"
        typer.echo(
            f"{name:<{width}} {exact.flops / 1e6:>11.6f} {exact.params / 1e6:>10.6f} {exact.params_all / 1e6:>12.6f}"
            f" {entry.architecture.resolution:>10}  {top1}"
        )


@app.command("show")
def show_command(
    name: Annotated[str, typer.Argument(help="published network; NAME_low32 is its variant for 32 pixels")],
    file: File = None,
    out: Annotated[Path | None, typer.Option("--out", help="write the architecture to this JSON file as well")] = None,
) -> None:
    """Every block of a published network."""
    from nas.loading import save_architectures
    from search_spaces.zoo import find, load_networks

    architecture = find(name, load_networks() if file is None else load_networks(file)).architecture
    if out is not None:
        save_architectures({out: architecture})
    typer.echo(f"{architecture.name}, input {architecture.resolution}x{architecture.resolution}")
    typer.echo(
        f"{'#':>3} {'kind':<9} {'kernel':>6} {'stride':>6} {'in':>5} {'middle':>6} {'out':>5} {'squeeze':>7}  activation"
    )
    for index, (channels, block) in enumerate(architecture.layers(3)):
        extras = [f"groups {block.groups}"] if block.groups > 1 else []
        extras += [f"group width {block.group_width}"] if block.group_width > 1 else []
        extras += [f"padding {block.padding}"] if block.padding is not None else []
        typer.echo(
            f"{index:>3} {block.kind:<9} {block.kernel:>6} {block.stride:>6} {channels:>5} {block.mid_channels:>6}"
            f" {block.out_channels:>5} {block.squeeze_channels:>7}  {block.activation} {' '.join(extras)}".rstrip()
        )
    if out is not None:
        typer.echo(f"written to {out}; train it with: nas train {out} --data NAME --out DIR")
