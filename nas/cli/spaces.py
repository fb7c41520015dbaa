"""``nas spaces``."""

import math
from pathlib import Path
from typing import Annotated

import typer

from nas.cli.options import Flops, Params, Seed

app = typer.Typer(help="Search spaces: list, show, sample.")
Classes = Annotated[int, typer.Option("--classes", help="outputs of the classifier")]
Channels = Annotated[int, typer.Option("--in-channels", help="channels of the image")]


@app.callback(invoke_without_command=True)
def list_command(context: typer.Context, classes: Classes = 1000, in_channels: Channels = 3) -> None:
    """Without a command: every space with its size and range of FLOPs."""
    if context.invoked_subcommand is not None:
        return
    from search_spaces.cost import check_image_and_classes
    from search_spaces.limits import format_quantity
    from search_spaces.sampling import extreme_cost
    from search_spaces.spaces import SPACES
    from search_spaces.tables import SpaceTables

    check_image_and_classes(classes, in_channels)
    typer.echo(f"{'name':<10} {'networks':>8} {'variables':>9} {'FLOPs':>16} {'parameters':>16}  ({classes} classes)")
    for name, make in SPACES.items():
        space = make()
        tables = SpaceTables(space, num_classes=classes, in_channels=in_channels)
        ranges = []
        for quantity in ("flops", "params"):
            low, high = (extreme_cost(tables, quantity, largest=largest)[0] for largest in (False, True))
            ranges.append(f"{format_quantity(low)}:{format_quantity(high)}")
        typer.echo(
            f"{name:<10} {f'10^{math.log10(space.size):.1f}':>8} {len(space):>9} {ranges[0]:>16} {ranges[1]:>16}"
            f"  {space.description}"
        )


@app.command("show")
def show_command(space: Annotated[str, typer.Argument(help="name, YAML file, or module:function")]) -> None:
    """Every variable of a space and its options."""
    from nas.loading import load_space

    loaded = load_space(space)
    typer.echo(
        f"{loaded.name}: {loaded.description}; 10^{math.log10(loaded.size):.1f} networks, {len(loaded)} variables"
    )
    width = max((len(variable.name) for variable in loaded.variables), default=0)
    for variable in loaded.variables:
        options = ", ".join(str(getattr(option, "name", option)) for option in variable.options)
        typer.echo(f"{variable.name:<{width}}  {options}")


@app.command("sample")
def sample_command(
    space: Annotated[str, typer.Argument(help="name, YAML file, or module:function")],
    out: Annotated[Path, typer.Option("--out", help="folder for the architecture files")],
    n: Annotated[int, typer.Option("--n", help="how many networks")] = 1,
    flops: Flops = None,
    params: Params = None,
    seed: Seed = 0,
    classes: Classes = 1000,
    in_channels: Channels = 3,
) -> None:
    """Random networks inside limits, as architecture files."""
    from nas.loading import load_space, save_architectures
    from search_spaces.limits import parse_limits
    from search_spaces.sampling import rows_within
    from search_spaces.serialisation import require
    from search_spaces.tables import SpaceTables

    require(1 <= n <= 100_000, f"n must be in 1..100000, got {n}")
    require(seed >= 0, f"seed must be >= 0, got {seed}")
    loaded = load_space(space)
    tables = SpaceTables(loaded, num_classes=classes, in_channels=in_channels)
    answers = max(len(parse_limits(text)) for text in (flops, params, "1") if text is not None)
    chosen = []
    for answer in range(answers):
        limits = {}
        for quantity, text in (("flops", flops), ("params", params)):
            if text is not None:
                given = parse_limits(text)
                limits[quantity] = given[min(answer, len(given) - 1)]
        chosen += list(rows_within(loaded, n, limits, tables=tables, seed=seed))
    files = {out / f"random{index}.json": loaded.decode(row) for index, row in enumerate(chosen)}
    save_architectures(files)
    for path, row in zip(files, chosen, strict=True):
        typer.echo(f"{path}  {int(tables.cost(row).flops[0])} FLOPs")
