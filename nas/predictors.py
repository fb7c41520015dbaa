"""``nas.fit_predictor``: an accuracy predictor from anybody's space and table, with a report on candidates held out."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from predictor.config import PredictorConfig, load_preset
from predictor.features import STATISTICS, Values, as_joint
from predictor.pool import POOL_SIZE, first_of_each
from predictor.predictor import Predictor
from predictor.table import Table, read_table
from recipes.loading import load_variables
from recipes.space import JointSpace, RecipeSpace
from search_spaces.cost import check_image_and_classes
from search_spaces.limits import Limit, format_quantity
from search_spaces.sampling import uniform_rows
from search_spaces.seeding import numpy_rng
from search_spaces.serialisation import require
from search_spaces.space import SearchSpace
from search_spaces.variables import VariableSet

if TYPE_CHECKING:
    import pandas as pd

    from predictor.pretrain import Pretrained

REPORTED = 10  # candidates that a held-out comparison needs
LARGEST = 1e15  # of a score
FINEST = 1e-5  # standard deviation of the scores as a share of the largest: they are learnt in float32
TYPICAL = 3.0  # percentage points: standard deviation of accuracies that the presets' delta and rates are meant for
SAMPLE = 1 << 16  # rows that tell how many networks a range holds
FEW = 1000  # networks in a range that are worth being pretrained on alone
LEAST = 10  # networks to pretrain on

Log = Callable[[str], object]
Report = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class FittedPredictor:
    """What was fitted, and how well such a fit predicts.

    Attributes:
        predictor: fitted to all candidates.
        report: ``mse``, ``kendall_tau``, ``spearman`` and ``r2`` on held-out candidates of ``"predictor"`` and ``"boosted
            trees"``, both fitted to the others; a rank correlation is NaN where nothing varies. Empty for a table of fewer
            than 10.
        candidates: of the table, each counted once.
        held_out: how many of them were.
    """

    predictor: Predictor
    report: Report
    candidates: int
    held_out: int


def fit_predictor(
    space: str | Path | VariableSet,
    table: "str | Path | pd.DataFrame",
    *,
    out: str | Path | None = None,
    score: str = "accuracy",
    epoch: int | None = None,
    num_classes: int | None = None,
    in_channels: int = 3,
    share: float = 0.2,
    preset: str | PredictorConfig | None = None,
    seed: int = 0,
    flops: Limit | None = None,
    pool: int = POOL_SIZE,
    columns: bool = True,
    log: Log = lambda line: None,
    command: Sequence[str] = (),
) -> FittedPredictor:
    """Fit a predictor to a table of candidates and write it to a file.

    Args:
        space: by name, YAML file or function, see `recipes.loading.load_variables`; or a VariableSet.
        table: see `predictor.table.read_table`.
        out: file to write, which must not be there yet; None: nothing is written.
        score: column of the scores, higher is better; any unit.
        epoch: lines of which epoch count.
        num_classes: of the networks' classifier; their FLOPs and parameters are then counted, read by the predictor, and its
            encoder is pretrained on them. Needed where the space has networks, unless the table has columns of them.
        in_channels: of the images.
        share: of the candidates that is held out for the report.
        preset: of the predictor, see `predictor.config`; default ``"table"`` for bare variables, else ``"default"``. For bare
            variables Huber's delta of a preset by name is in thirds of the scores' standard deviation.
        seed: of everything random.
        flops: range of the networks to pretrain on; default that of the table, or all where it holds too few.
        pool: how many of them, at most.
        columns: whether the table's own columns ``flops`` and ``params`` are read where they cannot be counted. The
            predictor can then only be asked about candidates whose numbers are given, not about the whole space.
        log: called with a line before anything that takes long.
        command: recorded in the file.

    Raises:
        UserError: anything wrong with the input, in one line.
    """
    variables = load_variables(space)
    target = None if out is None else _checked_out(Path(out))
    require(seed >= 0, f"seed must be >= 0, got {seed}")
    require(0 < share < 1, f"share must be in (0, 1), got {share}")
    for name, what in ((score, "the score"), ("epoch", "the epoch of a line")):
        require(name not in variables.column, f"column {name!r} is {what}, but also a variable of the space")
    read = read_table(table, variables, score=score, epoch=epoch)
    found = read if columns else replace(read, statistics={})
    _check_scores(found, score)
    _check_counting(variables, found, num_classes, in_channels, flops)
    unit = _unit(found.scores)
    settings, scaled = _settings(preset, variables, unit), replace(found, scores=found.scores / unit)
    task = _Task(variables, scaled, settings, num_classes, in_channels, seed, log)
    held_out = _held_out(len(found), share)
    pretrained = None if num_classes is None else task.pretrained(flops, num_classes, pool)
    report = _in_unit(task.report(share, held_out, pretrained), unit) if held_out else {}
    predictor = task.fitted(pretrained, command)
    predictor.target = (predictor.target[0] * unit, predictor.target[1] * unit)
    metrics = {**predictor.facts.metrics, "train_mse": predictor.facts.metrics["train_mse"] * unit**2}
    predictor.facts = replace(predictor.facts, metrics=metrics | _metrics(report))
    if target is not None:
        predictor.save(target)
    return FittedPredictor(predictor=predictor, report=report, candidates=len(found), held_out=held_out)


def _unit(scores: Values) -> float:
    """What scores are divided by before they are learnt, so that the unit they come in does not matter."""
    deviation = float(scores.std())
    return deviation / TYPICAL if deviation > 0 else 1.0


def _settings(preset: str | PredictorConfig | None, variables: VariableSet, unit: float) -> PredictorConfig:
    """The preset that suits the space, with Huber's delta in units: of a bare table's scores nobody knows what a point is."""
    bare = not isinstance(variables, (SearchSpace, JointSpace, RecipeSpace))
    settings = load_preset(("table" if bare else "default") if preset is None else preset)
    relative = bare and not isinstance(preset, PredictorConfig)
    return settings if relative else settings.replace(huber_delta=settings.huber_delta / unit)


def _checked_out(path: Path) -> Path:
    require(not path.exists(), f"{path} is there already; choose another file")
    require(path.parent.is_dir(), f"cannot write {path}: there is no folder {path.parent}")
    require(os.access(path.parent, os.W_OK), f"cannot write {path}: {path.parent} is not writable")
    return path


def _held_out(candidates: int, share: float) -> int:
    """How many candidates `Table.split` holds out; 0 for a table too small."""
    if candidates < REPORTED:
        return 0
    count = min(max(round(share * candidates), 1), candidates - 1)
    require(count >= 2, f"a share of {share} holds out {count} of {candidates} candidates; a comparison needs 2")
    return count


def _check_scores(table: Table, score: str) -> None:
    """Refuse scores that float32 cannot tell apart; constant ones are allowed."""
    largest, spread = float(np.abs(table.scores).max()), float(table.scores.std())
    require(largest <= LARGEST, f"scores must be at most {LARGEST:g}, got {largest:g} in column {score!r}")
    require(
        spread <= 1e-12 * largest or spread >= FINEST * largest,
        f"scores must vary by {FINEST:g} of their size, or not at all; column {score!r} has a standard deviation of"
        f" {spread:.3g} at {largest:.3g}: subtract a constant",
    )


def _check_counting(
    variables: VariableSet, table: Table, num_classes: int | None, in_channels: int, flops: Limit | None
) -> None:
    """Networks need to be counted; what has none must not be."""
    networks, name = as_joint(variables) is not None, variables.name or "the space"
    if num_classes is not None:
        require(networks, f"{name} has no networks to count; leave out the number of classes")
        check_image_and_classes(num_classes, in_channels)
    elif networks:
        require(
            bool(table.statistics),
            f"{name} has networks: give the number of classes (--classes), so that FLOPs and parameters can be counted, or a"
            f" table with columns {' and '.join(STATISTICS)}",
        )
    require(flops is None or num_classes is not None, f"a range of FLOPs is of no use to {name} where none are counted")


@dataclass(frozen=True, slots=True)
class _Task:
    """One table to fit, checked; torch is imported by what uses it."""

    variables: VariableSet
    table: Table
    settings: PredictorConfig
    num_classes: int | None
    in_channels: int
    seed: int
    log: Log

    def pretrained(self, flops: Limit | None, num_classes: int, pool: int) -> "Pretrained | None":
        """An encoder that knows FLOPs and parameters; None where there are next to no networks to learn them from."""
        joint = as_joint(self.variables)
        assert joint is not None
        counting = {"num_classes": num_classes, "in_channels": self.in_channels}
        seen = joint.statistics(self.table.rows, **counting)["flops"]
        counted = _sampled_flops(joint, self.seed, **counting)
        spanned = flops or Limit(high=float(seen.max()), low=float(seen.min()))
        inside = int(spanned.holds(counted).sum())
        narrow = flops is None and inside < min(FEW, len(counted))
        limit, inside = (None, len(counted)) if narrow else (spanned, inside)
        size = min(pool, inside // 2)  # so many are found fast
        if size < LEAST:
            self.log(f"no pretraining: {inside} networks of {joint.name} were found in the range")
            return None
        from predictor.pretrain import pretrain

        within = "" if limit is None else f" of {format_quantity(limit.low)} to {format_quantity(limit.high)} FLOPs"
        self.log(f"pretraining on {size} networks{within}")
        return pretrain(joint, flops=limit, **counting, config=self.settings, pool=size, seed=self.seed)

    def report(self, share: float, held_out: int, pretrained: "Pretrained | None") -> Report:
        """Of a fit without the ``share`` that is held out, and of boosted trees."""
        from predictor.validation import held_out_report

        self.log(f"fitting to {len(self.table) - held_out} candidates, to be compared on {held_out} others")
        return held_out_report(
            self.variables, self.table, seed=self.seed, share=share, config=self.settings, pretrained=pretrained,
            num_classes=self.num_classes, in_channels=self.in_channels,
        )  # fmt: skip

    def fitted(self, pretrained: "Pretrained | None", command: Sequence[str]) -> Predictor:
        """To the whole table."""
        from predictor.fit import fit
        from predictor.validation import table_statistics

        statistics = table_statistics(self.variables, self.table, self.num_classes, self.in_channels)
        if statistics and self.num_classes is None and self.settings.statistics_as_inputs:
            self.log(f"{' and '.join(statistics)} stand in the table only: ask about candidates whose numbers you give")
        self.log(f"fitting to all {len(self.table)} candidates")
        return fit(
            self.variables, self.table.rows, self.table.scores, seed=self.seed, config=self.settings,
            pretrained=pretrained, statistics=statistics or None, weights=self.table.weights,
            num_classes=self.num_classes, in_channels=self.in_channels, command=" ".join(command),
        )  # fmt: skip


def _sampled_flops(joint: JointSpace, seed: int, *, num_classes: int, in_channels: int) -> npt.NDArray[np.int64]:
    """FLOPs of the different networks in a random sample."""
    networks = JointSpace(joint.name, joint.architecture, None)
    rows = uniform_rows(networks, SAMPLE, numpy_rng(seed, "fit_predictor/sample"))
    distinct = first_of_each(networks.canonical(rows))
    return networks.statistics(distinct, num_classes=num_classes, in_channels=in_channels)["flops"]


def _in_unit(report: Report, unit: float) -> Report:
    """The report of scores that were divided by ``unit``."""
    return {who: {**values, "mse": values["mse"] * unit**2} for who, values in report.items()}


def _metrics(report: Report) -> dict[str, float]:
    """The report as it stands in the file; NaN cannot."""
    prefixes = {"predictor": "held_out", "boosted trees": "held_out_boosted_trees"}
    named = {f"{prefixes[who]}_{name}": value for who, values in report.items() for name, value in values.items()}
    return {name: value for name, value in named.items() if math.isfinite(value)}
