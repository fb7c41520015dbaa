"""Document 004: trees over the scores of LeNet-5's filters on MNIST (Table 1, Figure 4), and the network without filters.

    python -m benchmarks.filter_importance --data-dir DIR

Four parts, each a table; ``--part`` chooses. Every line is kept in ``--work`` as soon as it is measured, so that a run that
was stopped goes on.

- ``trees``: accuracy of a single tree and of XGBoost with 500 estimators on the scores of each convolution (Table 1), also with
  the maximum and the mean of the ten largest values as scores, which the document asks for.
- ``curves``: best- and worst-case pruning (Figure 4) of single trees and of the network itself.
- ``lenet``: filters really removed from LeNet-5, ranked by trees, by weights and at random, before and after fine-tuning.
- ``found``: the same with a network that a search found (digits, 0.2 MFLOPs), trained on digits and on MNIST.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

import nas
from benchmarks.tables import parser, write_table
from nas.lenet import LeNet5
from nas.loading import MODEL
from nas.reporting.charts import Line, Panel, draw
from nas.trees.filters.importance import SCORES, Method, Score
from nas.trees.filters.ranking import RankBy
from recipes.recipe import Recipe
from search_spaces.serialisation import read_json, write_json

LAYERS = {"conv 1": "convnet.c1", "conv 2": "convnet.c3", "conv 3": "convnet.c5"}
TABLE_1 = {
    ("tree", "conv 1"): 44.95, ("tree", "conv 2"): 76.3, ("tree", "conv 3"): 78.05,
    ("boosted", "conv 1"): 53.65, ("boosted", "conv 2"): 90.2, ("boosted", "conv 3"): 92.95,
}  # fmt: skip
LENET_ACCURACY = 99.07
FIGURE_4 = "about 80 with over 90 % of the maps of conv 3 removed"  # all that the text says of the curve in numbers
# The document trains nothing itself and does not say how its LeNet-5 was trained.
LENET_RECIPE = Recipe(
    name="lenet5",
    epochs=8,
    batch_size=128,
    lr=0.05,
    nesterov=True,
    weight_decay=5e-4,
    schedule="linear",
    warmup_epochs=0.5,
)
FOUND_EPOCHS = {"digits": 12, "mnist": 5}  # by data; all of the recipe's, and 5 of 24
SEARCH_EPOCHS = 14
TUNING_EPOCHS = {"digits": 6, "mnist": 1}  # 132 and 468 steps
RANKINGS: tuple[Method, ...] = ("tree", "l1", "random")
LENET_KEEPS: Mapping[str, Mapping[str, int | float]] = {
    "conv 3: 60": {"convnet.c5": 60},
    "conv 3: 12": {"convnet.c5": 12},
    "all: half": {"convnet.c1": 0.5, "convnet.c3": 0.5, "convnet.c5": 0.5},
}
FOUND_SHARES = (0.75, 0.5)
FIGURE = Path("docs/figures/filter_pruning.svg")

Row = dict[str, Any]


def measured(folder: Path, key: str, measure: Callable[[], Row | list[Row]]) -> list[Row]:
    """Rows of one measurement, from its file where it was made before."""
    file = folder / f"{key}.json"
    if not file.is_file():
        made = measure()
        write_json(file, made if isinstance(made, list) else [made])
        print(f"measured {key}", flush=True)
    rows: list[Row] = read_json(file)
    return rows


def lenet(work: Path, seed: int, data_dir: Path | None) -> Path:
    """Run folder of LeNet-5 on MNIST; about a CPU-minute."""
    folder = work / f"lenet-{seed}"
    if not (folder / MODEL).is_file():
        nas.train(LeNet5(), "mnist", recipe=LENET_RECIPE, out=folder, seed=seed, data_dir=data_dir, resume=True)
    return folder


def found_network(work: Path, data: str, seed: int, data_dir: Path | None) -> Path:
    """Run folder of the network that a search on digits found, trained on digits or MNIST."""
    search, folder = work / "digits-search", work / f"found-{data}-{seed}"
    if not (search / "architecture.json").is_file():
        nas.search("digits", "digits", flops="0.2M", epochs=SEARCH_EPOCHS, out=search, seed=0, resume=True)
    if not (folder / MODEL).is_file():
        nas.train(search, data, epochs=FOUND_EPOCHS[data], out=folder, seed=seed, data_dir=data_dir, resume=True)
    return folder


def tree_row(folder: Path, name: str, by: RankBy, data_dir: Path | None) -> Row:
    """One accuracy of Table 1."""
    layer, boosted = LAYERS[name], by.method == "boosted"
    found = nas.filter_importance(folder, layers=[layer], by=by, data_dir=data_dir)
    accuracy = found.tree_accuracy[layer]
    published = TABLE_1[by.method, name] if by.score == "mean" and (not boosted or by.estimators == 500) else None
    return {
        "layer": name, "filters": len(found.table), "trees": by.method, "score": by.score, "depth": found.depth[layer],
        "estimators": by.estimators if boosted else 1, "accuracy_percent": accuracy, "paper_percent": published,
        "difference": None if published is None else accuracy - published,
        "filters_used": int((found.table["splits"] > 0).sum()),
        "largest_share": float(found.table["share"].max()),
        "network_percent": read_json(folder / "result.json")["accuracy"], "network_paper_percent": LENET_ACCURACY,
        "seed": by.seed,
    }  # fmt: skip


def part_trees(
    work: Path, seeds: Sequence[int], data_dir: Path | None, layers: Sequence[str], boosted: Sequence[str],
    scores: Sequence[Score], estimators: int,
) -> list[Row]:  # fmt: skip
    """Table 1, also with other scores; boosted trees of the layers ``boosted`` only, over mean scores."""
    rows = []
    for seed in seeds:
        folder = lenet(work, seed, data_dir)
        wanted = [(name, RankBy("tree", score, seed=seed)) for score, name in product(scores, layers)]
        wanted += [(name, RankBy("boosted", estimators=estimators, seed=seed)) for name in boosted]
        for name, by in wanted:
            size = f"-{estimators}" if by.method == "boosted" else ""
            key = f"trees-{seed}-{by.method}-{by.score}-{LAYERS[name]}{size}"
            rows += measured(work, key, partial(tree_row, folder, name, by, data_dir))
    return rows


def curve_rows(
    folder: Path, name: str, method: Method, seed: int, points: int, images: int | None, data_dir: Path | None
) -> list[Row]:
    """Best and worst case of one layer."""
    by = RankBy(method, images=images, seed=seed)
    frame = nas.pruning_curves(folder, layer=LAYERS[name], by=by, points=points, data_dir=data_dir)
    facts = {"layer": name, "by": method, "images": images or "all", "seed": seed}
    return [{**facts, **line} for line in json.loads(frame.to_json(orient="records"))]


def part_curves(
    work: Path, seeds: Sequence[int], data_dir: Path | None, layers: Sequence[str], rankings: Sequence[Method],
    points: int, images: int | None,
) -> list[Row]:  # fmt: skip
    """Figure 4, and the network without filters by three rankings."""
    rows = []
    for seed in seeds:
        folder = lenet(work, seed, data_dir)
        for name, method in product(layers, rankings):
            used = images if method == "tree" else None  # the others look at no images
            key = f"curve-{seed}-{LAYERS[name]}-{method}-{points}" + ("" if used is None else f"-{used}")
            rows += measured(work, key, partial(curve_rows, folder, name, method, seed, points, used, data_dir))
    columns = (
        "layer",
        "by",
        "images",
        "seed",
        "removed",
        "kept",
        "tree_best",
        "tree_worst",
        "network_best",
        "network_worst",
    )
    return [{column: row.get(column) for column in columns} for row in rows]


def removal_row(
    folder: Path, network: str, data: str, title: str, keep: Mapping[str, int | float], method: Method, seed: int,
    data_dir: Path | None,
) -> Row:  # fmt: skip
    """One network without filters, before and after fine-tuning."""
    result = nas.prune_filters(
        folder, keep=keep, by=RankBy(method, seed=seed), epochs=TUNING_EPOCHS[data], seed=seed, data_dir=data_dir,
        recipe=LENET_RECIPE if network == "LeNet-5" else None,
    )  # fmt: skip
    assert result.tuned is not None
    return {
        "network": network, "data": data, "keep": title, "by": method, "flops_before": result.cost_before.flops,
        "flops": result.cost.flops, "params_all_before": result.cost_before.params_all, "params_all": result.cost.params_all,
        "before_percent": result.before.accuracy, "pruned_percent": result.pruned.accuracy,
        "tuned_percent": result.tuned.accuracy, "standard_error": result.tuned.standard_error,
        "tuning_epochs": TUNING_EPOCHS[data], "seed": seed,
    }  # fmt: skip


def part_lenet(
    work: Path, seeds: Sequence[int], data_dir: Path | None, titles: Sequence[str], rankings: Sequence[Method]
) -> list[Row]:
    """Filters removed from LeNet-5."""
    rows = []
    for seed in seeds:
        folder = lenet(work, seed, data_dir)
        for title, method in product(titles, rankings):
            row = partial(removal_row, folder, "LeNet-5", "mnist", title, LENET_KEEPS[title], method, seed, data_dir)
            rows += measured(work, f"lenet-{seed}-{title.replace(': ', '-')}-{method}", row)
    return rows


def part_found(
    work: Path, data: str, seeds: Sequence[int], data_dir: Path | None, shares: Sequence[float], rankings: Sequence[Method],
) -> list[Row]:  # fmt: skip
    """Expanded channels removed from a network that a search found."""
    rows = []
    for seed in seeds:
        folder = found_network(work, data, seed, data_dir)
        design = nas.load_model(folder).design
        assert isinstance(design, nas.Architecture)
        expanding = [
            f"blocks.{index}.pw.0"
            for index, block in enumerate(design.blocks)
            if (block.kind == "ir" and block.pointwise) or block.kind == "pool_head"
        ]
        for share, method in product(shares, rankings):
            keep, title = dict.fromkeys(expanding, share), f"expanded channels: {share:g}"
            row = partial(removal_row, folder, design.name, data, title, keep, method, seed, data_dir)
            rows += measured(work, f"found-{data}-{seed}-{share}-{method}", row)
    return rows


def picture(rows: Sequence[Row], seed: int, path: Path) -> None:
    """Figure 4 for one seed, beside the network itself."""
    panels = []
    for name in dict.fromkeys(row["layer"] for row in rows):
        here = [row for row in rows if row["layer"] == name and row["by"] == "tree" and row["seed"] == seed]
        lines = [
            Line(
                name=f"{what}, {case} case", x=[row["removed"] for row in here],
                y=[row[f"{what}_{case}"] for row in here], dashed=case == "worst", group=what,
            )
            for what in ("tree", "network")
            for case in ("best", "worst")
        ]  # fmt: skip
        panels.append(Panel(title=f"{name}: accuracy, %", x_label="filters removed", lines=lines, from_zero=True))
    draw(panels, path, "Accuracy of trees over LeNet-5's filters, and of the network, as filters are removed.")


def main() -> None:
    """Measure the parts asked for; print and write their tables."""
    options = parser(__doc__)
    options.add_argument("--part", choices=("trees", "curves", "lenet", "found"), action="append", help="default: all")
    options.add_argument("--seeds", type=numbers, default=[0, 1, 2])
    options.add_argument("--layers", type=names, default=list(LAYERS), help="of trees and curves")
    options.add_argument("--boosted", type=names, default=list(LAYERS), help="layers that XGBoost is fitted to")
    options.add_argument("--scores", type=names, default=list(SCORES), help="that single trees are grown on")
    options.add_argument("--estimators", type=int, default=500)
    options.add_argument("--rankings", type=names, default=list(RANKINGS))
    options.add_argument("--keeps", type=names, default=list(LENET_KEEPS), help="what stays of LeNet-5")
    options.add_argument("--found-data", type=names, default=list(FOUND_EPOCHS), help="of the found network")
    options.add_argument("--shares", type=names, default=list(map(str, FOUND_SHARES)), help="of its expanded channels")
    options.add_argument("--points", type=int, default=31, help="of a curve, at most")
    options.add_argument("--images", type=int, help="training images that the curves' trees are grown on; default all")
    options.add_argument("--data-dir", type=Path)
    options.add_argument("--work", type=Path, default=Path("runs/filter_importance"))
    options.add_argument("--figure", type=Path, default=FIGURE)
    given = options.parse_args()
    torch.set_num_threads(1)
    work, data_dir, seeds, rankings = given.work, given.data_dir, given.seeds, given.rankings
    work.mkdir(parents=True, exist_ok=True)
    parts = given.part or ["trees", "curves", "lenet", "found"]
    if "trees" in parts:
        table = part_trees(work, seeds, data_dir, given.layers, given.boosted, given.scores, given.estimators)
        write_table(table, given.out / "filter_importance.csv")
    if "curves" in parts:
        curves = part_curves(work, seeds, data_dir, given.layers, rankings, given.points, given.images)
        write_table(curves, given.out / "filter_importance_curves.csv")
        print(f"document 004, Figure 4: {FIGURE_4}")
        picture(curves, seeds[0], given.figure)
    if "lenet" in parts:
        write_table(part_lenet(work, seeds, data_dir, given.keeps, rankings), given.out / "filter_importance_lenet.csv")
    if "found" in parts:
        shares = [float(share) for share in given.shares]
        rows = [row for data in given.found_data for row in part_found(work, data, seeds, data_dir, shares, rankings)]
        write_table(rows, given.out / "filter_importance_found.csv")


def names(text: str) -> list[str]:
    """Names with commas between them; none where the text is empty."""
    return [name for name in text.split(",") if name]


def numbers(text: str) -> list[int]:
    """Whole numbers with commas between them."""
    return [int(number) for number in text.split(",")]


if __name__ == "__main__":
    main()
