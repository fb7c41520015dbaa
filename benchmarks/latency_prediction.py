"""Latency predicted by tables of blocks beside the latency of whole networks.

For every table three sets of random networks of its space, drawn with a seed: ``random`` as they come, ``spread`` evenly over
the range of FLOPs, ``band`` within a band of FLOPs 4 % wide, where FLOPs tell little. Each network is measured whole, as
`nas latency` does, with the table's backend, threads and batch, in passes that take turns over all networks. Nothing is fitted.

    nas latency --space cifar --classes 10 --out benchmarks/results/latency_cifar_onnxruntime.json
    python -m benchmarks.latency_prediction
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import spearmanr

from benchmarks.tables import parser, write_table
from nas.latency import conditions_here, fresh_network, make_backend, quietest, time_in_turn
from nas.loading import load_space
from search_spaces.errors import UserError
from search_spaces.latency import LatencyTable, SpaceLatency
from search_spaces.sampling import rows_within, uniform_rows
from search_spaces.seeding import numpy_rng
from search_spaces.space import SearchSpace
from search_spaces.tables import SpaceTables
from search_spaces.variables import Rows

TABLES = ("latency_cifar_onnxruntime.json", "latency_digits_onnxruntime.json", "latency_digits_eager.json")
BAND = 0.04
FIGURE = Path("docs/figures/latency.svg")
COLOURS = {"random": "#1f6fb2", "spread": "#d1622b", "band": "#3a9a5b"}


def draw(space: SearchSpace, tables: SpaceTables, sides: Sequence[int], n: int, seed: int) -> dict[str, Rows]:
    """Rows `(n, d)` of the three sets, all at the table's resolutions."""
    pool = rows_within(space, 20_000, {}, tables=tables, seed=seed)
    pool = pool[np.isin(np.array(space.resolution.options)[space.picked(pool, space.resolution)], sides)]
    flops = tables.cost(pool).flops
    targets = np.linspace(flops.min(), flops.max(), n)
    spread = np.unique([np.abs(flops - target).argmin() for target in targets])
    middle = np.median(flops)
    band = np.flatnonzero(np.abs(flops / middle - 1) <= BAND / 2)
    return {"random": pool[:n], "spread": pool[spread], "band": pool[band[:n]]}


def measured(
    table: LatencyTable, space: SearchSpace, rows: Rows, repeats: int, passes: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Milliseconds `(n,)` of whole networks, and the distance of their quartiles `(n,)`."""
    conditions = replace(table.conditions, warmup=5, repeats=repeats, passes=passes)
    backend = make_backend(conditions)
    calls = []
    for row in rows:
        architecture = space.decode(row)
        side = architecture.resolution
        network = fresh_network(architecture, table.num_classes, table.in_channels, side)
        calls.append(backend.network(network, (conditions.batch, table.in_channels, side, side)))
    torch.set_num_threads(conditions.threads)
    times = np.stack([[time_in_turn([call], conditions)[0] for call in calls] for _ in range(passes)], axis=1)
    timings = [quietest(taken) for taken in times]
    return np.array([t.latency_ms for t in timings]), np.array([t.spread_ms for t in timings])


def compare(path: Path, n: int, repeats: int, passes: int, seed: int) -> tuple[list[Any], list[Any], dict[str, Any]]:
    """Rows of the summary, rows of all networks, and the speed of the pool's prediction, of one table."""
    table = LatencyTable.load(path)
    device = conditions_here(table.conditions.backend).device
    if table.conditions.device != device:
        raise UserError(f"{path} was measured on {table.conditions.device}; measure it on this {device} first")
    space = load_space(table.space)
    tables = SpaceTables(space, num_classes=table.num_classes, in_channels=table.in_channels)
    latency = SpaceLatency(space, table)
    sets = draw(space, tables, table.resolutions, n, seed)
    rows = np.concatenate(list(sets.values()))
    labels = np.repeat(list(sets), [len(drawn) for drawn in sets.values()])
    predicted, flops = latency.latency_ms(rows), tables.cost(rows).flops
    found, spread = measured(table, space, rows, repeats, passes)
    error = 100 * (predicted / found - 1)
    about = {"space": space.name, "backend": table.conditions.backend}
    networks = [
        {**about, "set": label, "flops": f, "predicted_ms": p, "measured_ms": m, "spread_ms": s, "error_percent": e}
        for label, f, p, m, s, e in zip(labels, flops, predicted, found, spread, error, strict=True)
    ]
    summary = [
        {
            **about,
            "set": label,
            "networks": int(chosen.sum()),
            "fastest_ms": found[chosen].min(),
            "slowest_ms": found[chosen].max(),
            "spearman": spearmanr(predicted[chosen], found[chosen]).statistic,
            "spearman_of_flops": spearmanr(flops[chosen], found[chosen]).statistic,
            "error_percent_median": np.median(error[chosen]),
            "error_percent_absolute_median": np.median(np.abs(error[chosen])),
            "error_percent_absolute_max": np.abs(error[chosen]).max(),
            "repeats": repeats,
            "passes": passes,
            "seed": seed,
            "device": device,
        }
        for label, chosen in ((name, labels == name) for name in sets)
    ]
    return summary, networks, {**about, "parts": len(table.timings), **pool_speed(space, table, seed)}


def pool_speed(space: SearchSpace, table: LatencyTable, seed: int) -> dict[str, float]:
    """Rows a second of a pool's prediction, median of five, and seconds to build its arrays."""
    started = time.perf_counter()
    latency = SpaceLatency(space, table)
    built = time.perf_counter() - started
    rows = uniform_rows(space, 100_000, numpy_rng(seed, "latency pool"))
    known = np.isin(np.array(space.resolution.options), table.resolutions)
    rows = rows[known[space.picked(rows, space.resolution)]]
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        latency.latency_ms(rows)
        seconds.append(time.perf_counter() - started)
    return {"build_seconds": built, "rows": len(rows), "rows_per_second": len(rows) / float(np.median(seconds))}


def picture(networks: Sequence[dict[str, Any]], path: Path) -> None:
    """SVG: one panel a table, predicted against measured milliseconds, both axes from zero and alike."""
    panels = list(dict.fromkeys((row["space"], row["backend"]) for row in networks))
    side, gap, margin = 260, 70, 50
    width = margin + len(panels) * (side + gap)
    words = '<text x="{:.1f}" y="{:.1f}" font-size="{}" text-anchor="{}" fill="#222" font-family="sans-serif">{}</text>'
    drawn = [f'<rect width="{width}" height="{side + 2 * margin + 20}" fill="#ffffff"/>']
    for index, panel in enumerate(panels):
        rows = [row for row in networks if (row["space"], row["backend"]) == panel]
        most = 1.05 * max(max(row["measured_ms"], row["predicted_ms"]) for row in rows)
        left, bottom = margin + index * (side + gap), margin + side
        drawn.append(f'<rect x="{left}" y="{margin}" width="{side}" height="{side}" fill="none" stroke="#555"/>')
        drawn.append(f'<path d="M{left} {bottom}L{left + side} {margin}" stroke="#bbb"/>')
        drawn.append(words.format(left + side / 2, margin - 12, 13, "middle", f"{panel[0]}, {panel[1]}"))
        drawn.append(words.format(left + side / 2, bottom + 34, 12, "middle", "measured, ms"))
        for tick in (most / 4, most / 2, 3 * most / 4):
            at = side * tick / most
            drawn.append(words.format(left + at, bottom + 16, 11, "middle", f"{tick:.2g}"))
            drawn.append(words.format(left - 6, bottom - at + 4, 11, "end", f"{tick:.2g}"))
        for row in rows:
            x, y = left + side * row["measured_ms"] / most, bottom - side * row["predicted_ms"] / most
            colour = COLOURS[row["set"]]
            drawn.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}" fill-opacity="0.7"/>')
    drawn.append(words.format(14, margin - 12, 12, "start", "predicted"))
    for index, (name, colour) in enumerate(COLOURS.items()):
        x, y = margin + 90 * index, 2 * margin + side + 6
        drawn.append(f'<circle cx="{x}" cy="{y - 4}" r="4" fill="{colour}"/>')
        drawn.append(words.format(x + 9, y, 12, "start", name))
    label = "Latency predicted from a table of blocks against measured latency of whole networks; points lie on the diagonal."
    box = f'viewBox="0 0 {width} {side + 2 * margin + 20}" width="{width}" height="{side + 2 * margin + 20}"'
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" {box} role="img" aria-label="{label}">{"".join(drawn)}</svg>\n',
        encoding="utf-8",
    )


def main() -> None:
    """Print and write the tables."""
    options = parser(__doc__)
    options.add_argument("tables", nargs="*", type=Path, help="latency tables; default the committed ones")
    options.add_argument("--networks", type=int, default=20, help="of each set")
    options.add_argument("--repeats", type=int, default=20)
    options.add_argument("--passes", type=int, default=30)
    options.add_argument("--figure", type=Path, default=FIGURE)
    arguments = options.parse_args()
    summary, networks, speeds = [], [], []
    for path in arguments.tables or [Path("benchmarks/results") / name for name in TABLES]:
        lines, points, speed = compare(path, arguments.networks, arguments.repeats, arguments.passes, arguments.seed)
        summary += lines
        networks += points
        speeds.append(speed)
    write_table(networks, arguments.out / "latency_networks.csv")
    write_table(speeds, arguments.out / "latency_pool.csv")
    write_table(summary, arguments.out / "latency_prediction.csv")
    picture(networks, arguments.figure)


if __name__ == "__main__":
    main()
