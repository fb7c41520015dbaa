"""``nas latency``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import typer

from nas.cli.options import Resume, require_file_place

if TYPE_CHECKING:
    from nas.latency import SpaceProgress


def latency_command(
    model: Annotated[
        str | None,
        typer.Argument(
            help="run folder or model.pt of nas train; architecture file, run folder of a search, published network (nas"
            " zoo) or torchvision:NAME"
        ),
    ] = None,
    space: Annotated[
        str | None, typer.Option("--space", help="measure all blocks of a space: name, YAML file, or module:function")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="latency table of --space to write")] = None,
    backend: Annotated[
        str | None,
        typer.Option("--backend", help="eager, onnxruntime or both; default both, for a space onnxruntime"),
    ] = None,
    threads: Annotated[int, typer.Option("--threads", help="CPU threads")] = 1,
    batch: Annotated[int, typer.Option("--batch", help="images in one call")] = 1,
    resolution: Annotated[
        str | None, typer.Option("--resolution", help="side of the images in pixels; for a space also several: 192,224")
    ] = None,
    classes: Annotated[int | None, typer.Option("--classes", help="outputs of the classifier; default 1000")] = None,
    in_channels: Annotated[int | None, typer.Option("--in-channels", help="channels of the image; default 3")] = None,
    warmup: Annotated[
        int | None, typer.Option("--warmup", help="untimed calls before every pass; default 5, for a space 3")
    ] = None,
    repeats: Annotated[
        int | None, typer.Option("--repeats", help="timed calls in a pass; default 20, for a space 5")
    ] = None,
    passes: Annotated[
        int | None,
        typer.Option(
            "--passes", help="times that everything is measured, the quietest counts; default 5, for a space 10"
        ),
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", help="write the figures of a model to a file")] = None,
    resume: Resume = False,
) -> None:
    """Measure the latency of a network, or of every distinct block of a space."""
    from search_spaces.serialisation import require

    require((model is None) != (space is None), "give a MODEL or --space, one of them")
    given = {"warmup": warmup, "repeats": repeats, "passes": passes, "num_classes": classes, "in_channels": in_channels}
    numbers = {"threads": threads, "batch": batch} | {name: value for name, value in given.items() if value is not None}
    sides = None if resolution is None else _sides(resolution)
    if model is not None:
        require(out is None and not resume, "--out and --resume are for --space; a model's figures go to --json FILE")
        require(sides is None or len(sides) == 1, f"--resolution of a model must be one number, got {resolution}")
        _measure_model(model, backend or "both", sides[0] if sides else None, numbers, json)
    elif space is not None:
        require(json is None, "--json is for a MODEL; the table of a space goes to --out FILE")
        require(out is not None, "--out is missing: the file of the latency table")
        assert out is not None
        require(backend != "both", "a latency table is of one backend: --backend eager or onnxruntime")
        _measure_space(space, out, backend or "onnxruntime", sides, numbers, resume=resume)


def _sides(text: str) -> list[int]:
    from search_spaces.serialisation import require

    parts = [part.strip() for part in text.split(",")]
    require(
        all(part.isdecimal() for part in parts),
        f"--resolution must be whole numbers such as 224 or 192,224, got {text!r}",
    )
    return [int(part) for part in parts]


def _measure_model(
    model: str, backend: str, resolution: int | None, numbers: dict[str, int], json: Path | None
) -> None:
    from nas.latency import BACKENDS, measure_latency, save_latencies
    from search_spaces.limits import format_quantity

    require_file_place(json)
    backends = BACKENDS if backend == "both" else (backend,)
    results = measure_latency(model, backends=backends, resolution=resolution, **numbers)  # type: ignore[arg-type]
    first = results[0]
    typer.echo(
        f"{first.model}: images of {first.in_channels}x{first.resolution}x{first.resolution}, {first.num_classes} classes,"
        f" {format_quantity(first.flops)} FLOPs"
    )
    typer.echo(
        f"{'backend':<12} {'threads':>7} {'batch':>5} {'median ms':>10} {'p10 ms':>10} {'p90 ms':>10} {'quietest ms':>11}"
        f" {'calls':>6}"
    )
    for result in results:
        how = result.conditions
        typer.echo(
            f"{how.backend:<12} {how.threads:>7} {how.batch:>5} {result.median_ms:>10.4g} {result.p10_ms:>10.4g}"
            f" {result.p90_ms:>10.4g} {result.quietest_ms:>11.4g} {how.repeats * how.passes:>6}"
        )
    versions = {name: version for result in results for name, version in result.conditions.versions.items()}
    how = first.conditions
    typer.echo(
        f"on {how.device}, {_listed(versions)}; {how.passes} passes of {how.repeats} calls, each after {how.warmup} to warm up;"
        f" {first.interruptions} interruptions"
    )
    if json is not None:
        save_latencies(json, results)
        typer.echo(f"written to {json}")


def _measure_space(
    space: str, out: Path, backend: str, sides: list[int] | None, numbers: dict[str, int], *, resume: bool
) -> None:
    from nas.latency import measure_space

    with _Progress(Path(space).name, out) as progress:
        table = measure_space(
            space, out=out, backend=backend, resolutions=sides, resume=resume, progress=progress, **numbers  # type: ignore[arg-type]
        )  # fmt: skip
    how = table.conditions
    typer.echo(
        f"{out}: {len(table.timings)} parts of {table.space} in {how.backend}, {how.threads} threads, batch {how.batch}, on"
        f" {how.device}, {_listed(how.versions)}"
    )


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


class _Progress:
    """A line with the number of blocks, one with the estimated time, then a bar, or a line at every tenth without terminal."""

    def __init__(self, title: str, out: Path) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self.title, self.out = title, out
        self.console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )
        self.task = self.bar.add_task(f"{title}: blocks", total=None)
        self.estimated, self.tenth = False, 0

    def __enter__(self) -> Self:
        self.bar.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.__exit__(*error)  # type: ignore[arg-type]

    def __call__(self, state: "SpaceProgress") -> None:
        """After every turn."""
        if state.turns_here == 0:
            again = f", {state.turns_done} of {state.turns} turns done before" if state.turns_done else ""
            self._say(f"{state.blocks} distinct blocks and classifiers, {state.others} seams and calls{again}")
        elif not self.estimated and (state.seconds > 3 or state.turns_here == 20):
            self.estimated = True
            self._say(f"about {_duration(state.seconds_left)} left; a stopped run goes on with --resume")
        self.bar.update(self.task, completed=state.turns_done, total=state.turns)
        tenth = 10 * state.turns_done // state.turns
        if not self.console.is_terminal and self.estimated and tenth > self.tenth:
            self._say(f"{10 * tenth} %, about {_duration(state.seconds_left)} left")
        self.tenth = tenth

    def _say(self, line: str) -> None:
        self.console.print(f"{self.title}: {line}", soft_wrap=True, highlight=False)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
