"""Are searched networks better than others of the same size? And does the supergraph rank networks as training alone does?

For every budget and seed: the searched network; one found by the same search whose alpha follows the budget alone (`blind`:
neither seeds nor images change it, so one short search stands for all); random networks of the same space in [0.9, 1] of the
budget; MobileNetV2 and MobileNetV3-Small scaled to it. Some budgets also have a search that samples two block types a layer
(which saves time on digits alone, where every type has weights of its own). All are trained from scratch with one recipe, the
same images and all seeds, and compared on the test images. Searching sees training images only.
search_quality_DATA.csv has a line a network, search_quality_DATA_summary.csv one a budget: ``gain`` is the searched networks'
mean accuracy minus that of the others, with its standard error (over networks; over trainings where a kind has one network);
``rank`` a searched network's among the random ones by mean accuracy, 1 for the best, by seed of the search.

Ranking: every supergraph at its end scores all random networks by sliced weights with recalibrated batch norms;
search_quality_DATA_ranking.csv has the rank correlations with their accuracies when trained alone.

Every finished search and training is a line of search_quality_DATA_pieces.jsonl beside the tables: started again, the script
goes on with what is missing, on another machine too; pieces under way are kept below `--work`. With ``--minutes`` nothing new
is started after so long. The tables are written when all pieces are there.

    python -m benchmarks.search_quality --data digits
    python -m benchmarks.search_quality --data cifar10 --data-dir DIR --figure docs/figures/search_quality.svg
"""

import itertools
import json
import math
import multiprocessing
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

import nas
from benchmarks.ledger import Ledger
from benchmarks.scaled_networks import BASELINES, scaled_to
from benchmarks.search_quality_pieces import (
    BLIND,
    SEARCHED,
    TWO_SAMPLED,
    Case,
    Contender,
    Key,
    digest,
    ranking_key,
    run_search,
    run_training,
    search_key,
    training_key,
)
from benchmarks.tables import parser, write_table
from nas.process import tune_process
from nas.reporting.charts import Line, Panel, draw
from recipes.datasets import load_dataset
from search_spaces.architecture import Architecture
from search_spaces.cost import Cost
from search_spaces.limits import Limit, parse_quantity
from search_spaces.sampling import rows_within
from search_spaces.space import SearchSpace
from search_spaces.tables import SpaceTables

RANDOM = "random"


class Job(NamedTuple):
    """A piece to do: its name, unique in a case, and a call that gives entries of the ledger."""

    name: str
    piece: Callable[..., list[tuple[Key, Any]]]
    arguments: tuple[Any, ...]


CASES = {
    "digits": Case(
        data="digits", space="digits", budgets=("0.2M", "0.3M"), beside={TWO_SAMPLED: ("0.2M", "0.3M")}, search={},
        recipe="digits", epochs=30, images=None,
    ),
    "cifar10": Case(
        data="cifar10", space="cifar", budgets=("4M", "8M"), beside={TWO_SAMPLED: ("4M",)}, search={},
        recipe="cifar10-small", epochs=8, images=12_800,
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Study:
    """A case, its seeds, and where its results are kept."""

    case: Case
    seeds: tuple[int, ...]
    randoms: int
    ledger: Ledger
    work: Path
    data_dir: Path | None
    processes: int

    def run(self, minutes: float = math.inf) -> bool:
        """Search and train what is missing, in processes of its own; whether all is there now.

        Args:
            minutes: after which nothing new is started.
        """
        until = time.monotonic() + 60 * minutes
        tune_process()
        running, begun = set[Future[list[tuple[Key, Any]]]](), set[str]()
        with ProcessPoolExecutor(self.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
            while True:
                waiting = [job for job in self._missing() if job.name not in begun] if time.monotonic() < until else []
                for job in waiting[: self.processes - len(running)]:
                    begun.add(job.name)
                    running.add(pool.submit(job.piece, *job.arguments))
                    print(f"begins: {job.name}", flush=True)
                if not running:
                    return not self._missing()
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    for key, value in future.result():
                        self.ledger.add(key, value)
                print(f"{len(self.ledger)} pieces done, {len(self._missing())} can follow", flush=True)

    def tables(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
        """Lines of the three tables, of a study that is done: networks, budgets, rankings."""
        contenders = [
            contender
            for budget in self.case.budgets
            for contender in (*self.found_contenders(budget), *self.fixed_contenders[budget])
        ]
        networks = [self._line(contender) for contender in contenders]
        summary = [summary_of(budget, networks) for budget in self.case.budgets]
        return networks, summary, self._rankings(networks)

    def found_contenders(self, budget: str) -> list[Contender]:
        """The networks that finished searches found."""
        made = []
        for kind in self.case.kinds(budget):
            for seed in self._search_seeds(kind):
                key = search_key(self.case, kind, budget, seed)
                if key in self.ledger:
                    found = self.ledger[key]
                    name = f"{kind.replace(' ', '-')}-{budget}-{seed}"
                    architecture, cost = Architecture.from_json(found["architecture"]), Cost(**found["cost"])
                    made.append(_of_space(kind, name, budget, architecture, cost, search_seconds=found["seconds"]))
        return made

    @cached_property
    def fixed_contenders(self) -> dict[str, list[Contender]]:
        """Random networks of the space and scaled ones, by budget."""
        space, counting = self._space()
        tables = SpaceTables(space, **counting)
        side = int(max(space.resolution.options))
        made: dict[str, list[Contender]] = {}
        for budget in self.case.budgets:
            made[budget] = []
            for index, row in enumerate(self.random_rows[budget]):
                cost = Cost(*(int(entry[0]) for entry in tables.cost(np.array(row))))
                name = f"{RANDOM}-{budget}-{index}"
                made[budget].append(_of_space(RANDOM, name, budget, space.decode(row), cost))
            for name in BASELINES:
                scaled = scaled_to(name, parse_quantity(budget), resolution=side, **counting)
                if scaled is None:
                    print(f"{self.case.data}: no {name} is as small as {budget}")
                    continue
                made[budget].append(
                    Contender(
                        kind=name, name=f"{name}-{budget}", budget=budget, network=scaled, cost=scaled.cost,
                        resolution=scaled.resolution,
                    )
                )  # fmt: skip
        return made

    @cached_property
    def random_rows(self) -> dict[str, list[list[int]]]:
        """Networks of the space in [0.9, 1] of each budget."""
        space, counting = self._space()
        tables = SpaceTables(space, **counting)
        made = {}
        for budget in self.case.budgets:
            high = parse_quantity(budget)
            limits = {"flops": Limit(low=0.9 * high, high=high)}
            rows = rows_within(space, self.randoms, limits, tables=tables, seed=self.seeds[0])
            made[budget] = [[int(option) for option in row] for row in rows]
        return made

    def all_random_rows(self) -> list[list[int]]:
        """Those of every budget, in order."""
        return list(itertools.chain(*self.random_rows.values()))

    def _missing(self) -> list[Job]:
        """What can be done now: first what the aim is about, last the searches that are shown beside it."""
        found = [contender for budget in self.case.budgets for contender in self.found_contenders(budget)]
        return [
            *self._trainings(found),
            *self._searches(SEARCHED),
            *self._searches(BLIND),
            *self._trainings(list(itertools.chain(*self.fixed_contenders.values()))),
            *itertools.chain(*map(self._searches, self.case.beside)),
        ]

    def _searches(self, kind: str) -> list[Job]:
        """All searches of a kind that are not finished."""
        rows = self.all_random_rows()
        jobs = []
        budgets = [budget for budget in self.case.budgets if kind in self.case.kinds(budget)]
        for seed, budget in itertools.product(self._search_seeds(kind), budgets):
            keys = [search_key(self.case, kind, budget, seed)]
            if kind == SEARCHED:
                keys.append(ranking_key(self.case, budget, seed, rows))
            if not all(key in self.ledger for key in keys):
                name = f"searches/{kind.replace(' ', '-')}-{budget}-seed{seed}-{digest(keys[0])}"
                given = (self.case, kind, budget, seed, rows, self.work / name, self.data_dir)
                jobs.append(Job(name, run_search, given))
        return jobs

    def _search_seeds(self, kind: str) -> tuple[int, ...]:
        """Of all searches of a kind for a budget; one stands for all that seeds cannot change."""
        return self.seeds[:1] if kind == BLIND else self.seeds

    def _trainings(self, contenders: Sequence[Contender]) -> list[Job]:
        """All trainings that are not finished; networks that were found twice are trained once."""
        jobs: dict[str, Job] = {}
        for contender in contenders:
            for seed in self.seeds:
                key = training_key(self.case, contender, seed)
                if key not in self.ledger:
                    name = f"trainings/{contender.name}-seed{seed}-{digest(key)}"
                    given = (self.case, contender, seed, self.work / name, self.data_dir)
                    jobs.setdefault(json.dumps(key), Job(name, run_training, given))
        return list(jobs.values())

    def _space(self) -> tuple[SearchSpace, dict[str, int]]:
        dataset = load_dataset(self.case.data, self.data_dir)
        counting = {"num_classes": dataset.num_classes, "in_channels": dataset.in_channels}
        return nas.load_space(self.case.space), counting

    def _line(self, contender: Contender) -> dict[str, Any]:
        results = [self.ledger[training_key(self.case, contender, seed)] for seed in self.seeds]
        found = [float(result["accuracy"]) for result in results]
        return {
            "budget": contender.budget, "kind": contender.kind, "name": contender.name, "flops": contender.cost.flops,
            "params": contender.cost.params, "resolution": contender.resolution,
            "accuracy_mean": np.mean(found), "accuracy_std": np.std(found, ddof=1) if len(found) > 1 else 0,
            "seeds": json.dumps(self.seeds), "accuracies": json.dumps(found),
            "train_cpu_seconds": np.mean([result["seconds"] for result in results]),
            "search_cpu_seconds": contender.search_seconds,
            "epochs": self.case.epochs, "images": self.case.images or "all",
        }  # fmt: skip

    def _rankings(self, networks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """A line a supergraph of a plain search: does it rank all random networks as training alone does?"""
        rows = self.all_random_rows()
        alone = [line["accuracy_mean"] for line in networks if line["kind"] == RANDOM]
        budgets = [line["budget"] for line in networks if line["kind"] == RANDOM]
        lines = []
        for budget in self.case.budgets:
            own = [index for index, of in enumerate(budgets) if of == budget]
            for seed in self.seeds:
                scores = self.ledger[ranking_key(self.case, budget, seed, rows)]
                lines.append({
                    "supergraph_of": budget, "seed": seed, "networks": len(rows), **correlations(scores, alone),
                    **{f"own_budget_{name}": value for name, value in correlations(
                        [scores[i] for i in own], [alone[i] for i in own]).items()},
                    "supergraph_accuracy_mean": np.mean(scores), "alone_accuracy_mean": np.mean(alone),
                })  # fmt: skip
        return lines


def summary_of(budget: str, networks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The line of a budget; its lines of `networks` have every kind."""
    here = [line for line in networks if line["budget"] == budget]
    found = {kind: accuracies(here, kind) for kind in dict.fromkeys(line["kind"] for line in here)}
    searched, randoms = found[SEARCHED].mean(axis=1), found[RANDOM].mean(axis=1)
    line: dict[str, Any] = {"budget": budget, "seeds": here[0]["seeds"], "searched": searched.mean()}
    line["searched_std"] = searched.std(ddof=1) if len(searched) > 1 else 0.0
    line["rank"] = json.dumps([1 + int((randoms > value).sum()) for value in searched])
    line["of"] = len(randoms) + 1
    line["best_random"] = randoms.max()
    for kind, others in found.items():
        if kind != SEARCHED:
            gain = searched.mean() - others.mean()
            error = math.hypot(standard_error(found[SEARCHED]), standard_error(others))
            column = kind.replace(" ", "_")
            line |= {column: others.mean(), f"gain_over_{column}": gain, f"gain_over_{column}_se": error}
    return line


def _of_space(
    kind: str, name: str, budget: str, architecture: Architecture, cost: Cost, search_seconds: float = 0.0
) -> Contender:
    return Contender(
        kind=kind, name=name, budget=budget, network=architecture, cost=cost, resolution=architecture.resolution,
        search_seconds=search_seconds,
    )  # fmt: skip


def accuracies(lines: Iterable[Mapping[str, Any]], kind: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Of a kind: `(networks, seeds)`."""
    return np.array([json.loads(line["accuracies"]) for line in lines if line["kind"] == kind])


def standard_error(found: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    """Of the mean of accuracies `(networks, seeds)`: over networks, over the trainings of a single one; NaN for one number."""
    values = found.mean(axis=1) if len(found) > 1 else found[0]
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("nan")


def correlations(scores: Sequence[float], alone: Sequence[float]) -> dict[str, float]:
    """Rank correlations; 0 where all numbers of either are the same."""
    if min(np.ptp(scores), np.ptp(alone)) == 0:
        return {"kendall_tau": 0.0, "spearman": 0.0}
    tau, rho = stats.kendalltau(scores, alone), stats.spearmanr(scores, alone)
    return {"kendall_tau": float(tau.statistic), "spearman": float(rho.statistic)}


def panel(budget: str, networks: Sequence[Mapping[str, Any]]) -> Panel:
    """Accuracies of a budget's networks against their FLOPs, bars over the seeds; its lines of `networks` have every kind."""
    here = [line for line in networks if line["budget"] == budget]
    points = []
    for kind in dict.fromkeys(line["kind"] for line in here):
        own = [line for line in here if line["kind"] == kind]
        found = accuracies(own, kind)
        points.append(
            Line(
                name=kind, x=[line["flops"] for line in own], y=[line["accuracy_mean"] for line in own],
                low=found.min(axis=1).tolist(), high=found.max(axis=1).tolist(), scattered=True,
            )
        )  # fmt: skip
    return Panel(title=f"test accuracy in percent, at most {budget}", x_label="FLOPs", lines=points, x_amounts=True)


def main() -> None:
    """Search, train, print and write the tables."""
    options = parser(__doc__)
    options.add_argument("--data", choices=CASES, required=True)
    options.add_argument("--data-dir", type=Path, default=None)
    options.add_argument("--budgets", default=None, help="FLOPs, for example 4M,8M")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--randoms", type=int, default=8)
    options.add_argument("--epochs", type=int, default=None, help="of a training")
    options.add_argument("--images", type=int, default=None, help="of a training")
    options.add_argument("--search-epochs", type=int, default=None)
    options.add_argument("--search-images", type=int, default=None)
    options.add_argument("--processes", type=int, default=2)
    options.add_argument("--minutes", type=float, default=math.inf, help="start nothing new after so long")
    options.add_argument("--figure", type=Path, default=None, help="an SVG of the networks")
    options.add_argument("--work", type=Path, default=Path("runs/search_quality"), help="of what is under way")
    arguments = options.parse_args()
    case = CASES[arguments.data]
    given = {"epochs": arguments.search_epochs, "images": arguments.search_images}
    case = replace(
        case,
        budgets=case.budgets if arguments.budgets is None else tuple(arguments.budgets.split(",")),
        search={**case.search, **{name: value for name, value in given.items() if value is not None}},
        epochs=arguments.epochs or case.epochs,
        images=arguments.images or case.images,
    )
    seeds = tuple(range(arguments.seed, arguments.seed + arguments.seeds))
    ledger = Ledger(arguments.out / f"search_quality_{arguments.data}_pieces.jsonl")
    study = Study(
        case=case, seeds=seeds, randoms=arguments.randoms, ledger=ledger, work=arguments.work / arguments.data,
        data_dir=arguments.data_dir, processes=arguments.processes,
    )  # fmt: skip
    if not study.run(arguments.minutes):
        print(f"{len(ledger)} pieces are in {ledger.path}; the same command goes on")
        return
    tables = study.tables()
    for lines, name in zip(tables, ("", "_summary", "_ranking"), strict=True):
        write_table(lines, arguments.out / f"search_quality_{arguments.data}{name}.csv")
    if arguments.figure is not None:
        panels = [panel(budget, tables[0]) for budget in case.budgets]
        draw(
            panels, arguments.figure, f"Accuracy of searched networks and of others inside the same budget: {case.data}"
        )


if __name__ == "__main__":
    main()
