"""How many trained candidates the predictor needs, with and without pretraining (thesis Fig. 4.4), on a collected table.

In every split 48 candidates at random are held out, and predictors are fitted to the first 20, 40, ... of the rest. A variant
is chosen, at each number of labels, by its mean squared error in the first half of the splits and reported on the second; both
stand in the table. `labels_without` is how many labels the same predictor needs without pretraining for the same error (all
splits, interpolated in the logarithm of the labels); `gain` is how many times more that is; the thesis has 5. Pretraining
sees no accuracies; its pool is the run's. A second table has what predictors of the rounds before make of each next round,
whose candidates were chosen by prediction: `bias` is predicted minus measured.

Each split is kept in a file under `--work` when it is done: started again, the script goes on where it was.

    python -m benchmarks.sample_efficiency
"""

import hashlib
import json
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from benchmarks.tables import parser, write_table
from nas.reporting.charts import Line, Panel, draw
from predictor.config import PRESETS, PredictorConfig
from predictor.features import STATISTICS
from predictor.fit import fit
from predictor.metrics import report
from predictor.pretrain import Pretrained, pretrain
from predictor.table import Curves, read_curves
from predictor.validation import BoostedTrees, tree_features
from recipes.space import JointSpace, load_joint
from search_spaces.limits import Limit
from search_spaces.seeding import numpy_rng
from search_spaces.serialisation import from_plain, read_json, require, to_plain, write_text_atomic

TABLE = Path("benchmarks/results/nars_cifar10.csv")
FIGURE = Path("docs/figures/sample_efficiency.svg")
METRICS = ("mse", "kendall_tau", "spearman", "r2")
SAMPLES = 200  # bootstrap samples of the splits, for the gain
WITHOUT = ", not pretrained"
TREES, PROCESS = "boosted trees", "Gaussian process"

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A predictor to compare.

    Attributes:
        config: of the predictor, or the name of a baseline.
        pretrained: whether its encoder is.
    """

    config: PredictorConfig | str
    pretrained: bool = False

    @property
    def key(self) -> str:
        """Tells whether a stored result is of this variant."""
        content = [to_plain(self.config), self.pretrained]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def variants() -> dict[str, Variant]:
    """The default, each of its parts left out or added, the published setting, and two baselines."""
    default, thesis = PRESETS["default"], PRESETS["thesis"]
    statistics = default.replace(statistics_as_inputs=True)
    frozen = statistics.replace(frozen_epochs=default.epochs // 2, epochs=default.epochs // 2, reduced=0.1)
    made = {}
    for name, config in (
        ("default", default),
        ("statistics as inputs", statistics),
        ("statistics, encoder at the full rate", statistics.replace(encoder_rate=1.0)),
        ("thesis", thesis),
    ):
        made[name] = Variant(config=config, pretrained=True)
        made[name + WITHOUT] = Variant(config=config, pretrained=False)
    made["statistics, one member"] = Variant(config=statistics.replace(members=1), pretrained=True)
    made["statistics, encoder frozen first"] = Variant(config=frozen, pretrained=True)
    made |= {name: Variant(config=name) for name in (TREES, PROCESS)}
    return made


@dataclass(frozen=True, kw_only=True, eq=False)
class Study:
    """A table and how it is split.

    Attributes:
        space: of the table.
        table: candidates.
        counting: ``num_classes`` and ``in_channels`` of the data.
        flops: range of the pool for pretraining.
        pool: its size.
        held_out: candidates of a split that are predicted.
        sizes: numbers of labels.
        seed: of splits, pretraining and fits.
    """

    space: JointSpace
    table: Curves
    counting: Mapping[str, int]
    flops: Limit
    pool: int
    held_out: int
    sizes: Sequence[int]
    seed: int

    @property
    def key(self) -> str:
        """Tells whether stored results are of this table and these settings."""
        digest = hashlib.sha256(self.table.rows.tobytes() + self.table.accuracies().tobytes())
        digest.update(
            json.dumps([dict(self.counting), to_plain(self.flops), self.pool, self.held_out, self.seed]).encode()
        )
        return digest.hexdigest()[:8]

    def split(self, number: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Positions to learn from, in the order of use, and `(held_out,)` to predict."""
        order = numpy_rng(self.seed, "sample efficiency", number).permutation(len(self.table))
        return order[self.held_out :], order[: self.held_out]

    @cache  # noqa: B019 a study lives as long as the script
    def pretrained(self, members: int, width: int) -> Pretrained:
        """An encoder of so many members and so wide."""
        config = PRESETS["default"].replace(members=members, embedding_width=width)
        return pretrain(
            self.space, flops=self.flops, config=config, pool=self.pool, seed=self.seed,
            num_classes=self.counting["num_classes"], in_channels=self.counting["in_channels"],
        )  # fmt: skip

    def predictions(
        self, variant: Variant, train: npt.NDArray[np.int64], test: npt.NDArray[np.int64], seed: int
    ) -> Floats:
        """Accuracies `(len(test),)` that a variant predicts, having seen those of ``train``."""
        rows, labels, config = self.table.rows, self.table.accuracies(), variant.config
        if isinstance(config, str):
            counted = self.space.statistics(rows, **self.counting)
            known, asked = ({name: counted[name][part] for name in STATISTICS} for part in (train, test))
            if config == TREES:
                trees = BoostedTrees(self.space, rows[train], labels[train], statistics=known, seed=seed)
                return trees.predict(rows[test], asked)
            features = [tree_features(self.space, rows[part], facts) for part, facts in ((train, known), (test, asked))]
            return gaussian_process(features[0], labels[train], features[1])
        encoder = self.pretrained(config.members, config.embedding_width) if variant.pretrained else None
        made = fit(
            self.space, rows[train], labels[train], seed=seed, config=config, pretrained=encoder,
            num_classes=self.counting["num_classes"], in_channels=self.counting["in_channels"],
        )  # fmt: skip
        return made.predict(rows[test])


def gaussian_process(features: Floats, labels: Floats, asked: Floats) -> Floats:
    """What a Gaussian process predicts: one length for all standardised features, and noise, both by likelihood.

    Args:
        features: `(n, f)`.
        labels: `(n,)`.
        asked: `(m, f)`.

    Returns:
        `(m,)`.
    """
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    mean, std = features.mean(axis=0), features.std(axis=0)
    varied = std > 0
    width = float(np.sqrt(varied.sum()))
    kernel = ConstantKernel() * RBF(width, (0.3 * width, 30 * width)) + WhiteKernel(0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a length ends at its bound
        process = GaussianProcessRegressor(kernel, normalize_y=True, n_restarts_optimizer=1, random_state=0)
        process.fit((features - mean)[:, varied] / std[varied], labels)
        return np.asarray(process.predict((asked - mean)[:, varied] / std[varied]), dtype=np.float64)


def measure(
    study: Study,
    train: npt.NDArray[np.int64],
    test: npt.NDArray[np.int64],
    sizes: Sequence[int],
    number: int,
    path: Path,
) -> pd.DataFrame:
    """A line a variant and number of labels; what is in the file already is not measured again.

    Args:
        study: see there.
        train: positions to learn from, in the order of use.
        test: positions to predict.
        sizes: how many of the first.
        number: of the split, or round.
        path: of the file.
    """
    lines: list[dict[Any, Any]] = pd.read_csv(path).to_dict("records") if path.is_file() else []
    known, labels = {(line["key"], line["labels"]) for line in lines}, study.table.accuracies()[test]
    for name, variant in variants().items():
        fresh = [size for size in sizes if (variant.key, size) not in known]
        if fresh and variant.pretrained and not isinstance(variant.config, str):
            study.pretrained(variant.config.members, variant.config.embedding_width)  # not in the time of the first fit
        for size in fresh:
            started = time.process_time()
            predicted = study.predictions(variant, train[:size], test, study.seed + number)
            found = report(predicted, labels)
            found = {
                name: 0.0 if math.isnan(value) else value for name, value in found.items()
            }  # equal ones rank nothing
            lines.append(
                {
                    "split": number, "variant": name, "key": variant.key, "labels": size, **found,
                    "bias": float((predicted - labels).mean()), "cpu_seconds": round(time.process_time() - started, 3),
                }
            )  # fmt: skip
        if fresh:
            write_text_atomic(path, pd.DataFrame(lines).to_csv(index=False))
    keys = [variant.key for variant in variants().values()]
    frame = pd.DataFrame(lines)
    return frame[frame["key"].isin(keys) & frame["labels"].isin(sizes)]


def measure_split(study: Study, number: int, folder: Path) -> pd.DataFrame:
    """One split, all numbers of labels."""
    train, test = study.split(number)
    return measure(study, train, test, study.sizes, number, folder / f"split-{number:03d}.csv")


def next_rounds(study: Study, folder: Path) -> list[dict[str, Any]]:
    """A line a variant and round: predictors of all rounds before, on the candidates of the next one."""
    rounds = study.table.facts["round"].astype(np.int64)
    rows: list[dict[str, Any]] = []
    for number in np.unique(rounds)[1:].tolist():
        train, test = np.flatnonzero(rounds < number), np.flatnonzero(rounds == number)
        if len(test) < 2:
            continue
        frame = measure(study, train, test, [len(train)], number, folder / f"round-{number}.csv")
        for line in frame.to_dict("records"):
            shown = {str(name): value for name, value in line.items() if name not in ("split", "key")}
            rows.append({"round": number, "candidates": len(test), **shown, "seed": study.seed})
    return rows


def labels_needed(sizes: Sequence[int], errors: Sequence[float], target: float) -> tuple[float, str]:
    """Number of labels at which an error is reached.

    Between two sizes the error is a straight line over the logarithm of the labels; where it rises with more labels, the
    smaller one of before is kept.

    Args:
        sizes: increasing numbers of labels.
        errors: at these.
        target: the error to reach.

    Returns:
        The number, and ``"="``; or the first size and ``"<"`` where that is better already; or the last and ``">"`` where none
        is good enough.
    """
    best = np.minimum.accumulate(np.asarray(errors, dtype=np.float64))
    reached = np.flatnonzero(best <= target)
    if not len(reached):
        return float(sizes[-1]), ">"
    after = int(reached[0])
    if after == 0:
        return float(sizes[0]), "=" if best[0] == target else "<"
    share = (best[after - 1] - target) / (best[after - 1] - best[after])
    low, high = np.log(sizes[after - 1]), np.log(sizes[after])
    return float(np.exp(low + share * (high - low))), "="


def gains(
    sizes: Sequence[int], pretrained: Floats, without: Floats, rng: np.random.Generator
) -> list[dict[str, float | str]]:
    """What pretraining saves, at every number of labels.

    Args:
        sizes: `(k,)` numbers of labels.
        pretrained: mean squared errors `(splits, k)` with pretraining.
        without: the same without.
        rng: of the bootstrap over splits.

    Returns:
        ``labels_without``, ``gain``, ``gain_is`` ("=", "<" or ">") and the 95 % interval ``gain_low``, ``gain_high``.
    """
    made: list[dict[str, float | str]] = []
    samples = [rng.integers(0, len(pretrained), len(pretrained)) for _ in range(SAMPLES)]
    for index, size in enumerate(sizes):
        labels, relation = labels_needed(sizes, without.mean(axis=0).tolist(), float(pretrained[:, index].mean()))
        again = [
            labels_needed(sizes, without[sample].mean(axis=0).tolist(), float(pretrained[sample, index].mean()))[0]
            for sample in samples
        ]
        low, high = np.quantile(again, (0.025, 0.975)) / size
        made.append(
            {
                "labels_without": labels, "gain": labels / size, "gain_is": relation, "gain_low": float(low),
                "gain_high": float(high),
            }
        )  # fmt: skip
    return made


def summary(frame: pd.DataFrame, seed: int) -> list[dict[str, Any]]:
    """A line a variant and number of labels: means and standard errors over splits, and the gain of pretraining."""
    numbers, sizes = sorted(frame["split"].unique()), sorted(frame["labels"].unique())
    half = numbers[: len(numbers) // 2]
    found = {
        (variant, metric): frame[frame["variant"] == variant].pivot(index="split", columns="labels", values=metric)
        for variant in frame["variant"].unique()
        for metric in METRICS
    }
    rows = []
    for variant in frame["variant"].unique():
        gained: list[dict[str, float | str]] = [{} for _ in sizes]
        if (variant + WITHOUT, "mse") in found:
            ours, theirs = (found[name, "mse"].to_numpy(dtype=np.float64) for name in (variant, variant + WITHOUT))
            gained = gains(sizes, ours, theirs, numpy_rng(seed, "gains"))
        for size, gain in zip(sizes, gained, strict=True):
            values = {metric: found[variant, metric][size] for metric in METRICS}
            row: dict[str, Any] = {"variant": variant, "labels": size, "splits": len(numbers)}
            for metric, value in values.items():
                row |= {metric: value.mean(), f"{metric}_se": value.sem()}
            for metric in ("mse", "kendall_tau"):
                chosen, reported = values[metric].loc[half], values[metric].drop(half)
                row |= {f"{metric}_choosing": chosen.mean(), f"{metric}_reporting": reported.mean()}
                row |= {f"{metric}_reporting_se": reported.sem()}
            here = frame[(frame["variant"] == variant) & (frame["labels"] == size)]
            rows.append({**row, **gain, "cpu_seconds": here["cpu_seconds"].mean()})
    best = {size: min((row for row in rows if row["labels"] == size), key=_choosing)["variant"] for size in sizes}
    return [{**row, "best_in_first_half": best[row["labels"]] == row["variant"], "seed": seed} for row in rows]


def _choosing(row: Mapping[str, Any]) -> float:
    return float(row["mse_choosing"])


def picture(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Error and rank correlation against labels."""
    shown = ["default", "default" + WITHOUT, "thesis", "thesis" + WITHOUT, TREES, PROCESS]
    panels = []
    for metric, title in (("mse", "mean squared error, squared percentage points"), ("kendall_tau", "Kendall's tau")):
        lines = []
        for variant in shown:
            here = [row for row in rows if row["variant"] == variant]
            lines.append(
                Line(
                    name=variant, x=[row["labels"] for row in here], y=[row[metric] for row in here],
                    low=[row[metric] - row[f"{metric}_se"] for row in here],
                    high=[row[metric] + row[f"{metric}_se"] for row in here], dashed=variant.endswith(WITHOUT),
                    group=variant.removesuffix(WITHOUT),
                )
            )  # fmt: skip
        panels.append(Panel(title=title, x_label="trained candidates", lines=lines))
    draw(
        panels,
        path,
        "Error of the accuracy predictor on held-out candidates falls with the candidates it was fitted to.",
    )


def load_study(path: Path, arguments: Any) -> Study:
    """The study of a table of `benchmarks.collected_table`.

    Raises:
        UserError: too few candidates, or other FLOPs than the table's.
    """
    config = read_json(path.with_suffix(".json"))["config"]
    space = load_joint(config["space"])
    table = read_curves(path, space)
    counting = {"num_classes": arguments.classes, "in_channels": arguments.in_channels}
    counted = space.statistics(table.rows, **counting)["flops"]
    require(bool((counted == table.facts["flops"]).all()), f"FLOPs of {path} are of other --classes or --in-channels")
    left = len(table) - arguments.held_out
    sizes = sorted({left if size == "all" else int(size) for size in arguments.labels.split(",")})
    require(0 < sizes[0] <= sizes[-1] <= left, f"labels must be in 1..{left}, all that are not held out, got {sizes}")
    return Study(
        space=space, table=table, counting=counting, flops=from_plain(Limit, config["flops"], "flops"),
        pool=config["pool"], held_out=arguments.held_out, sizes=sizes, seed=arguments.seed,
    )  # fmt: skip


def main() -> None:
    """Print and write table and figure."""
    options = parser(__doc__)
    options.add_argument("table", nargs="?", type=Path, default=TABLE, help="of benchmarks.collected_table")
    options.add_argument("--labels", default="20,40,80,120,all")
    options.add_argument("--held-out", type=int, default=48)
    options.add_argument("--splits", type=int, default=20, help="an even number")
    options.add_argument("--classes", type=int, default=10)
    options.add_argument("--in-channels", type=int, default=3)
    options.add_argument("--work", type=Path, default=Path("runs/sample_efficiency"))
    options.add_argument("--figure", type=Path, default=FIGURE)
    arguments = options.parse_args()
    torch.set_num_threads(1)
    study = load_study(arguments.table, arguments)
    folder = arguments.work / study.key
    folder.mkdir(parents=True, exist_ok=True)
    frames = []
    for number in range(arguments.splits):
        frames.append(measure_split(study, number, folder))
        print(f"split {number + 1} of {arguments.splits}", flush=True)
    rounds = next_rounds(study, folder)
    if rounds:
        write_table(rounds, arguments.out / "sample_efficiency_rounds.csv")
    rows = summary(pd.concat(frames), arguments.seed)
    write_table(rows, arguments.out / "sample_efficiency.csv")
    picture(rows, arguments.figure)


if __name__ == "__main__":
    main()
