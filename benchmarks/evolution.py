"""The evolutionary search: is the optimum found, how fast, what each setting is worth, and against pymoo's genetic algorithm.

Seconds are CPU time of one thread, and what is compared ran in turn in one process, so that other work on the machine matters
little: it makes all of them slower alike, by the caches that it takes. Scores are made up (`benchmarks.evolution_scores`).

`optimum`: in spaces of at most a million rows, all of which are looked at, how many seeds end at the best row inside the limit.

`speed`: CPU seconds of `predictor.query.query` as a user calls it, on the joint space of FBNetV3, by a predictor just loaded:
the first query builds the look-up tables. And of the whole loop (variation, canonical form, FLOPs, prediction, selection)
against encoding, FLOPs and prediction alone on the same rows in the same batches, each the best of three; the predictor's
look-ups are the encoding. Which rows are the same ones can be read in three ways, from the strictest to the most generous:

- ``ratio_scored``: FLOPs and prediction of the rows that the loop scored, as if it had known which;
- ``ratio_as_used``: FLOPs of the rows that it measured, and prediction of those that it scored;
- ``ratio_made``: FLOPs and prediction of all rows that it made, a generation at a time, repetitions included.

`settings`: the gap to the best answer of any setting, in percent of the score's spread.

`pymoo`: same score, limit and number of rows looked at; population 40 with 960 children, duplicates eliminated (its default);
of our settings one, ``changes``, is not the default.

    OMP_NUM_THREADS=1 python -m benchmarks.evolution --part optimum
    OMP_NUM_THREADS=1 python -m benchmarks.evolution --part speed
    OMP_NUM_THREADS=1 python -m benchmarks.evolution --part settings
    OMP_NUM_THREADS=1 python -m benchmarks.evolution --part pymoo     (needs pip install pymoo)
"""

import importlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.evolution_scores import (
    KINDS,
    NUM_CLASSES,
    Enumerated,
    JointFBNetV3,
    RowFunction,
    Scores,
    part_of_fbnetv3,
    small_space,
)
from benchmarks.tables import parser, write_table
from predictor.evolve import EvolutionConfig, EvolutionResult, evolve
from predictor.predictor import Predictor
from predictor.query import query
from search_spaces.limits import Limit
from search_spaces.variables import Rows

Line = dict[str, Any]
BUDGETS = (450e6, 550e6, 650e6, 750e6)  # thesis 4.4
NARROW = Limit(low=400e6, high=401e6)
QUERIES: dict[str, Limit | None] = {f"at most {budget / 1e6:.0f}M": Limit(high=budget) for budget in BUDGETS}
QUERIES |= {"400M:401M": NARROW, "no limit": None}
# By name: width of the limit relative to its upper end (None: no lower end), and the upper end as a quantile of all costs.
QUANTILES = {
    "none": (None, 1.0), "cheapest 30 %": (None, 0.3), "cheapest 5 %": (None, 0.05), "cheapest 1 %": (None, 0.01),
    "2 % below the median": (0.02, 0.5), "0.2 % below the median": (0.002, 0.5),
}  # fmt: skip
LANDSCAPES = 3  # of a kind
PYMOO_GENERATIONS = 25
PYMOO_CHANGES = 1.0  # expected by mutation; with so few rows better than the default's 2 (chosen on seeds 100 to 119)
STEP = 1700  # rows that a search looks at in one step at most; a step that has begun is finished
PYMOO_LANDSCAPES = (("network", 0), ("network", 1), ("rugged", 2), ("rugged", 3), ("predictor", 4))
SETTINGS_LANDSCAPES = (("network", 0), ("rugged", 1), ("predictor", 2), ("predictor", 3))


def cpu_seconds(function: Callable[[], Any], repeats: int = 1) -> float:
    """CPU seconds of a call, the least of some."""
    taken = []
    for _ in range(repeats):
        started = time.process_time()
        function()
        taken.append(time.process_time() - started)
    return min(taken)


# Is the optimum found? ----------------------------------------------------------------------------------------------------


def optimum(seeds: Sequence[int]) -> list[Line]:
    """How often the true optimum is found, in spaces that can be enumerated."""
    joint = JointFBNetV3()
    cases = [(number, small_space(kind, number)) for kind in KINDS for number in range(LANDSCAPES)]
    cases += [(number, part_of_fbnetv3(joint, number)) for number in range(LANDSCAPES)]
    return [
        {"score": case.kind, "number": number, **line} for number, case in cases for line in _optimum_of(case, seeds)
    ]


def _optimum_of(case: Enumerated, seeds: Sequence[int]) -> Iterator[Line]:
    """A line a limit and configuration."""
    scores, costs = case.everything()
    close = 1e-6 * float(scores.max() - scores.min())
    for name, (width, quantile) in QUANTILES.items():
        high = float(np.quantile(costs, quantile))
        limit = Limit(high=high, low=0.0 if width is None else high * (1 - width))
        inside = limit.holds(costs)
        best = scores[inside].max()
        for label, config in (("default", EvolutionConfig()), ("thesis", EvolutionConfig.thesis())):
            found, evaluations, seconds = 0, [], []
            for seed in seeds:
                started = time.process_time()
                result = evolve(
                    case.variables, case.score, quantities={"cost": case.cost},
                    limits={} if name == "none" else {"cost": limit}, config=config, seed=seed, canonical=case.canonical,
                    fixed=case.fixed,
                )  # fmt: skip
                seconds.append(time.process_time() - started)
                found += bool(result.scores[0] >= best - close)
                evaluations.append(result.evaluations)
            yield {
                "free_variables": len(case.variables) - len(case.fixed), "rows": len(scores),
                "limit": name, "rows_inside": int(inside.sum()), "config": label, "found": found, "of_seeds": len(seeds),
                "rows_scored_mean": statistics.mean(evaluations), "cpu_seconds_median": statistics.median(seconds),
            }  # fmt: skip


# How fast? ----------------------------------------------------------------------------------------------------------------


def speed(seeds: Sequence[int]) -> list[Line]:
    """CPU seconds of queries, the loop against its functions alone on the same rows, and the look-up tables."""
    joint = JointFBNetV3()
    predictor = joint.predictor(seeds[0])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "predictor.npz"
        predictor.save(path)
        times = [_query_seconds(path, seed) for seed in seeds]
    lines = [
        {"what": f"query, {name}", **_summary([own[name] for own in times]), **_ratios(joint, predictor, limit, seeds)}
        for name, limit in QUERIES.items()
    ]
    lines.append({"what": "query, four budgets", **_summary([own["four"] for own in times])})
    return [*lines, *_tables(joint)]


def _query_seconds(path: Path, seed: int) -> dict[str, float]:
    """CPU seconds by query, each by a predictor just loaded; and of four budgets one after the other by the same one."""

    def ask(predictor: Predictor, *limits: Limit | None) -> None:
        for limit in limits:
            query(predictor, limits={} if limit is None else {"flops": limit}, seed=seed)

    seconds = {name: cpu_seconds(partial(ask, Predictor.load(path), limit)) for name, limit in QUERIES.items()}
    four = partial(ask, Predictor.load(path), *(Limit(high=budget) for budget in BUDGETS))
    return {**seconds, "four": cpu_seconds(four)}


def _summary(seconds: Sequence[float]) -> Line:
    """Median and largest."""
    return {"cpu_seconds_median": statistics.median(seconds), "cpu_seconds_max": max(seconds)}


class Recorded:
    """A function of rows that keeps the batches that it was given, or those that it returned."""

    def __init__(self, function: RowFunction, *, results: bool = False) -> None:
        self.function, self.results, self.batches = function, results, list[Rows]()

    def __call__(self, rows: Rows) -> Any:
        """The function's result."""
        result = self.function(rows)
        self.batches.append(np.array(result if self.results else rows))
        return result


def _ratios(joint: JointFBNetV3, predictor: Predictor, limit: Limit | None, seeds: Sequence[int]) -> Line:
    """Median ratios over seeds and mean numbers of rows, see the top of the file."""

    def score(rows: Rows) -> Scores:
        return joint.predict(predictor, rows)

    def predict_counted(pair: tuple[Rows, npt.ArrayLike]) -> None:
        predictor.predict(pair[0], {"flops": pair[1], "params": joint.params(pair[0])})

    def run(seed: int, score: RowFunction, flops: RowFunction, canonical: Callable[[Rows], Rows]) -> None:
        evolve(
            joint.space, score, quantities={"flops": flops}, limits={} if limit is None else {"flops": limit},
            config=EvolutionConfig(), seed=seed, canonical=canonical,
        )  # fmt: skip

    lines = []
    for seed in seeds:
        scored, measured, made = Recorded(score), Recorded(joint.flops), Recorded(joint.canonical, results=True)
        run(seed, scored, measured, made)
        pairs = [(rows, joint.flops(rows)) for rows in scored.batches]
        counted = scored.batches if limit is None else measured.batches
        timed: list[Callable[[], None]] = [
            partial(run, seed, score, joint.flops, joint.canonical),
            partial(_each, score, scored.batches), partial(_each, joint.flops, counted),
            partial(_each, predict_counted, pairs), partial(_each, score, made.batches),
        ]  # fmt: skip
        loop, both, flops, prediction, everything = np.min([[cpu_seconds(f) for f in timed] for _ in range(3)], axis=0)
        lines.append({
            "ratio_scored": loop / both, "ratio_as_used": loop / (flops + prediction), "ratio_made": loop / everything,
            "rows_scored": sum(map(len, scored.batches)), "rows_measured": sum(map(len, counted)),
            "rows_made": sum(map(len, made.batches)),
        })  # fmt: skip
    return {name: statistics.median(line[name] for line in lines) for name in lines[0]}


def _each(function: Callable[[Any], Any], batches: Sequence[Any]) -> None:
    """Call it with every one."""
    for batch in batches:
        function(batch)


def _tables(joint: JointFBNetV3) -> Iterator[Line]:
    """What the look-up tables save, for the rows of a generation."""
    tables, rows = joint.space.tables(num_classes=NUM_CLASSES, in_channels=3), joint.random_rows(960)
    networks = rows[:, : joint.space.architecture_columns]
    for name, plain, fast in (
        ("FLOPs of 960 rows", partial(tables.cost, networks), partial(joint.flops, rows)),
        ("canonical form of 960 rows", partial(joint.space.canonical, rows), partial(joint.canonical, rows.copy())),
    ):
        slow_seconds, fast_seconds = (cpu_seconds(function, repeats=50) for function in (plain, fast))
        yield {"what": name, "cpu_seconds_median": fast_seconds, "times_faster": slow_seconds / fast_seconds}


# What is each setting worth? ----------------------------------------------------------------------------------------------


def settings(seeds: Sequence[int]) -> list[Line]:
    """What each part of the default is worth: gap to the best answer of any setting, in percent of the score's spread."""
    default, joint = EvolutionConfig(), JointFBNetV3()
    configs = {
        "default": default, "thesis": EvolutionConfig.thesis(),
        "mutation probability per variable": replace(default, changes=None),
        "1 change expected": replace(default, changes=1.0), "4 changes expected": replace(default, changes=4.0),
        "without crossover": replace(default, k1=0.0, k3=0.0), "without slack": replace(default, relax=False),
        "without neighbours": replace(default, pairs=0), "without restarts": replace(default, restarts=0),
        "without the merged population": replace(default, merge=False),
        "half the survivors by family": replace(default, diversity=0.5),
    }  # fmt: skip
    scores = [joint.score(kind, number) for kind, number in SETTINGS_LANDSCAPES]
    lines = []
    for limit in (Limit(high=550e6), NARROW):
        gaps: dict[str, list[float]] = {name: [] for name in configs}
        seconds: dict[str, list[float]] = {name: [] for name in configs}
        for score in scores:
            runs = {name: [_best(joint, score, limit, c, seed) for seed in seeds] for name, c in configs.items()}
            best, spread = max(found.scores[0] for own in runs.values() for found, _ in own), joint.spread(score)
            for name, own in runs.items():
                gaps[name] += [100 * float(best - found.scores[0]) / spread for found, _ in own]
                seconds[name] += [taken for _, taken in own]
        lines += [
            {
                "limit": str(limit), "setting": name, "gap_percent_median": statistics.median(gaps[name]),
                "gap_percent_mean": statistics.mean(gaps[name]), "gap_percent_max": max(gaps[name]),
                "cpu_seconds_median": statistics.median(seconds[name]), "landscapes": len(scores),
            }
            for name in configs
        ]  # fmt: skip
    return lines


def _best(
    joint: JointFBNetV3, score: RowFunction, limit: Limit, config: EvolutionConfig, seed: int
) -> tuple[EvolutionResult, float]:
    """What `evolve` finds, and CPU seconds."""
    started = time.process_time()
    found = evolve(
        joint.space, score, quantities={"flops": joint.flops}, limits={"flops": limit}, config=config, seed=seed,
        canonical=joint.canonical,
    )  # fmt: skip
    return found, time.process_time() - started


# Against pymoo ------------------------------------------------------------------------------------------------------------


def pymoo_best(joint: JointFBNetV3, score: RowFunction, high: float, seed: int) -> tuple[float, int, float]:
    """Best score inside the limit by pymoo's GA, rows evaluated, CPU seconds; -inf where it finds nothing."""
    problem_class: Any = importlib.import_module("pymoo.core.problem").Problem
    ga: Any = importlib.import_module("pymoo.algorithms.soo.nonconvex.ga").GA
    repair: Any = importlib.import_module("pymoo.operators.repair.rounding").RoundingRepair
    crossover: Any = importlib.import_module("pymoo.operators.crossover.sbx").SBX
    mutation: Any = importlib.import_module("pymoo.operators.mutation.pm").PM
    sampling: Any = importlib.import_module("pymoo.operators.sampling.rnd").IntegerRandomSampling
    minimize: Any = importlib.import_module("pymoo.optimize").minimize

    def evaluate(_: Any, rows: npt.NDArray[Any], out: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        canonical = joint.canonical(rows.astype(np.int64))
        out["F"], out["G"] = -np.asarray(score(canonical)), (np.asarray(joint.flops(canonical)) - high) / high

    problem = type("Query", (problem_class,), {"_evaluate": evaluate})(
        n_var=len(joint.space), n_obj=1, n_ieq_constr=1, xl=0, xu=joint.space.option_counts - 1, vtype=int
    )
    algorithm = ga(
        pop_size=40, n_offsprings=960, sampling=sampling(), crossover=crossover(repair=repair()),
        mutation=mutation(repair=repair()), eliminate_duplicates=True,
    )  # fmt: skip
    started = time.process_time()
    result = minimize(problem, algorithm, ("n_gen", PYMOO_GENERATIONS), seed=seed, verbose=False)
    seconds = time.process_time() - started
    return (-float(result.F[0]) if result.F is not None else -np.inf), result.algorithm.evaluator.n_eval, seconds


def against_pymoo(seeds: Sequence[int]) -> list[Line]:
    """Same score, limit and settings; ours may look at no more rows than pymoo, those outside the limit included."""
    try:
        version = importlib.import_module("pymoo").__version__
    except ImportError:
        sys.exit("pymoo is not installed, so there is nothing to compare with: pip install pymoo")
    joint, lines = JointFBNetV3(), []
    for kind, number in PYMOO_LANDSCAPES:
        score = joint.score(kind, number)
        spread, runs = joint.spread(score), []
        for seed in seeds:
            theirs, rows, their_seconds = pymoo_best(joint, score, BUDGETS[1], seed)
            config = EvolutionConfig(max_evaluations=rows - STEP, changes=PYMOO_CHANGES)
            found, our_seconds = _best(joint, score, Limit(high=BUDGETS[1]), config, seed)
            ours, looked = float(found.scores[0]), max(found.checked, found.evaluations)
            assert looked <= rows
            runs.append((ours, theirs, looked, rows, our_seconds, their_seconds))
        ours_all, theirs_all, looked_all, rows_all, our_times, their_times = zip(*runs, strict=True)
        gains = [100 * (ours - theirs) / spread for ours, theirs, *_ in runs]
        lines.append({
            "score": kind, "number": number, "limit": "at most 550M",
            "gain_of_medians_percent_of_spread": 100 * (statistics.median(ours_all) - statistics.median(theirs_all)) / spread,
            "gain_percent_median": statistics.median(gains), "gain_percent_min": min(gains), "rows_ours_max": max(looked_all),
            "rows_pymoo": min(rows_all), "cpu_seconds_ours": statistics.median(our_times),
            "cpu_seconds_pymoo": statistics.median(their_times),
            "times_faster_median": statistics.median(b / a for *_, a, b in runs),
            "times_faster_min": min(b / a for *_, a, b in runs), "pymoo": version,
        })  # fmt: skip
    return lines


PARTS: dict[str, tuple[Callable[[Sequence[int]], list[Line]], int]] = {
    "optimum": (optimum, 20), "speed": (speed, 10), "settings": (settings, 5), "pymoo": (against_pymoo, 20),
}  # fmt: skip


def main() -> None:
    """Print and write one table."""
    options = parser(__doc__)
    options.add_argument("--part", choices=PARTS, required=True)
    options.add_argument("--seeds", type=int, default=None, help="how many, from --seed on")
    arguments = options.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != "1":
        sys.exit("set OMP_NUM_THREADS=1: the table is for one thread")
    torch.set_num_threads(1)
    part, usual = PARTS[arguments.part]
    seeds = range(arguments.seed, arguments.seed + (arguments.seeds or usual))
    facts = {
        "seeds": f"{seeds[0]}..{seeds[-1]}", "scale": "full" if len(seeds) >= usual else "tiny", "threads": 1,
        "numpy": np.__version__,
    }  # fmt: skip
    write_table([{**line, **facts} for line in part(seeds)], arguments.out / f"evolution_{arguments.part}.csv")


if __name__ == "__main__":
    main()
