"""``nas.query``: from a predictor and budgets to networks and recipes, in files that `nas train` takes."""

import dataclasses
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from predictor.evolve import EvolutionConfig
from predictor.predictor import Predictor
from predictor.quantities import LATENCY, SpaceQuantities
from predictor.query import Answer, QueryResult, query_among, query_front
from predictor.query import query as query_predictor
from predictor.shipped import SHIPPED, shipped_predictor
from recipes.loading import load_variables
from recipes.run_folder import ARCHITECTURE, RECIPE
from recipes.space import JointSpace
from search_spaces.errors import UserError
from search_spaces.latency import LatencyTable, SpaceLatency
from search_spaces.limits import Limit, format_quantity, parse_limits
from search_spaces.options import option_text
from search_spaces.serialisation import require, write_json, write_text_atomic
from search_spaces.space import SearchSpace
from search_spaces.variables import Rows, VariableSet

ANSWER, ANSWERS = "answer.json", "answers.csv"
PREDICTOR, TRIALS = "predictor.npz", "trials.csv"  # in a run folder of `nas nars`
INHERITED = 50  # best of a table of trained candidates that a search starts from (thesis 4.4)
Limits = str | Limit | None


def query(
    predictor: str | Path | Predictor | None = None,
    *,
    space: str | Path | VariableSet | None = None,
    flops: Limits = None,
    params: Limits = None,
    resolution: Limits = None,
    latency_ms: Limits = None,
    latency_table: str | Path | LatencyTable | None = None,
    fix: Mapping[str, Any] | None = None,
    top: int = 1,
    min_distance: int | None = None,
    pareto: str | None = None,
    points: int = 32,
    preset: str | EvolutionConfig = "default",
    classes: int | None = None,
    candidates: str | Path | None = None,
    seed: int = 0,
    out: str | Path | None = None,
) -> list[QueryResult]:
    """The best networks and recipes inside budgets, by an accuracy predictor.

    Args:
        predictor: file, run folder of `nas nars` (whose best candidates the search starts from), or Predictor; None: the one
            that comes with the toolkit for ``space``.
        space: the predictor's space, where the file's name of it is not enough (your own), or to make sure.
        flops: limit on multiply-adds in the grammar of limits; one of the limits may have several, which are answered one by
            one.
        params: limit on weights in the published convention.
        resolution: limit on the side of the images in pixels.
        latency_ms: limit on milliseconds.
        latency_table: file of `nas latency --space`, or a table; without a limit its milliseconds are shown.
        fix: option by variable name, for variables that may not change.
        top: answers for each budget.
        min_distance: in how many variables any two of them differ; default 3.
        pareto: ``400M:800M`` for a front along FLOPs, or ``params=1M:3M`` along another quantity, in place of its limit.
        points: of a front, at most.
        preset: of the evolution, ``"default"`` or ``"thesis"``.
        classes: of the classifier that is counted; default the predictor's.
        candidates: table (.csv, .parquet) of all candidates that may be chosen, for spaces whose FLOPs cannot be counted.
        seed: of the evolution.
        out: folder to write, which must not exist: ``answers.csv``, and of every answer ``answer.json``, ``architecture.json``
            and ``recipe.json``, in the folder itself where there is one answer, else in numbered folders.

    Returns:
        One result a budget.

    Raises:
        UserError: anything wrong with the input, in one line; a budget that nothing meets (with the reachable range).
    """
    require(out is None or not Path(out).exists(), f"{out} is there already; choose another folder")
    loaded, start = _load(predictor, space)
    quantities = _quantities(loaded, classes, latency_table)
    given = {"flops": flops, "params": params, "resolution": resolution, LATENCY: latency_ms}
    questions = _questions(given)
    require(pareto is None or len(questions) == 1, "a front takes no limit with several values")
    require(pareto is None or top == 1, "a front has one answer for each part of its range; leave out top")
    if candidates is not None:
        require(pareto is None, "a front among given candidates is not there; give limits")
        require(
            latency_table is None and classes is None, "given candidates bring their own numbers: leave out the others"
        )
        rows, known = _candidates(candidates, loaded.variables)
        results = [
            query_among(loaded, rows, known, limits=limits, fixed=fix, top=top, min_distance=min_distance)
            for limits in questions
        ]
    elif pareto is not None:
        along, limit = _front(pareto)
        require(along not in questions[0], f"{along} is the front's own: leave out its limit")
        results = [
            query_front(
                loaded, along, limit, limits=questions[0], fixed=fix, points=points, preset=preset, seed=seed, start=start,
                quantities=quantities,
            )
        ]  # fmt: skip
    else:
        results = [
            query_predictor(
                loaded, limits=limits, fixed=fix, top=top, min_distance=min_distance, preset=preset, seed=seed, start=start,
                quantities=quantities,
            )
            for limits in questions
        ]  # fmt: skip
    results = [_named(result, loaded.variables) for result in results]
    if out is not None:
        write_answers(results, out)
    return results


def answer_folders(results: Sequence[QueryResult], out: Path) -> list[Path]:
    """Folder of every answer, in order: ``out`` itself for a single one, else ``out/1``, ``out/2`` and so on."""
    count = sum(len(result.answers) for result in results)
    return [out] if count == 1 else [out / str(number) for number in range(1, count + 1)]


def write_answers(results: Sequence[QueryResult], out: str | Path) -> None:
    """Write a new folder, whole or not at all; see `query`.

    Raises:
        UserError: the folder is there, or cannot be written.
    """
    import pandas as pd

    out = Path(out)
    require(not out.exists(), f"{out} is there already; choose another folder")
    answers = [answer for result in results for answer in result.answers]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            for answer, folder in zip(answers, answer_folders(results, made), strict=True):
                folder.mkdir(exist_ok=True)
                _write_answer(answer, folder)
            frame = pd.concat([result.frame() for result in results], ignore_index=True)
            frame.insert(0, "answer", range(1, len(frame) + 1))
            write_text_atomic(made / ANSWERS, frame.to_csv(index=False, lineterminator="\n"))
            made.chmod(0o755)
            made.rename(out)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
    except OSError as error:
        raise UserError(f"cannot write {error.filename or out}: {error.strerror}") from error


def _write_answer(answer: Answer, folder: Path) -> None:
    values = {name: option_text(value) for name, value in answer.values.items()}
    shown = {"predicted": answer.predicted, "spread": answer.spread, **answer.quantities}
    write_json(folder / ANSWER, {**shown, "values": values})
    if answer.architecture is not None:
        answer.architecture.save(folder / ARCHITECTURE)
    if answer.recipe is not None:
        answer.recipe.save(folder / RECIPE)


def _load(
    predictor: str | Path | Predictor | None, space: str | Path | VariableSet | None
) -> tuple[Predictor, Rows | None]:
    """The predictor, and the best rows of the table it was fitted to, where that lies beside it."""
    variables = None if space is None else load_variables(space)
    if predictor is None:
        name = SHIPPED[0] if variables is None else str(getattr(variables, "name", "of your own"))
        return Predictor.load(shipped_predictor(name), variables), None
    if isinstance(predictor, Predictor):
        require(
            variables is None or variables.variables == predictor.variables.variables,
            f"the predictor is of {_name(predictor.variables)}, not of {space}",
        )
        return predictor, None
    path = Path(predictor)
    if not path.is_dir():
        return Predictor.load(path, variables), None
    require((path / PREDICTOR).is_file(), f"{path} holds no {PREDICTOR}; have its rounds (nas nars) ended?")
    loaded = Predictor.load(path / PREDICTOR, variables)
    return loaded, _best_rows(path / TRIALS, loaded.variables) if (path / TRIALS).is_file() else None


def _best_rows(path: Path, variables: VariableSet) -> Rows:
    """The best candidates of a table of trials `(m, d)`."""
    import numpy as np

    from predictor.table import read_table

    table = read_table(path, variables, score="accuracy")
    return table.rows[np.argsort(-table.scores, kind="stable")[:INHERITED]]


def _candidates(path: str | Path, variables: VariableSet) -> tuple[Rows, dict[str, Any]]:
    from predictor.table import read_table

    table = read_table(path, variables, score=None)
    return table.rows, dict(table.statistics)


def _quantities(
    predictor: Predictor, classes: int | None, latency_table: str | Path | LatencyTable | None
) -> SpaceQuantities | None:
    """None where the predictor's own will do."""
    if classes is None and latency_table is None:
        return None
    latency = None
    if latency_table is not None:
        table = latency_table if isinstance(latency_table, LatencyTable) else LatencyTable.load(latency_table)
        network = _network(predictor.variables)
        require(
            network is not None, f"a latency table is of no use to {_name(predictor.variables)}, which has no networks"
        )
        assert network is not None
        latency = SpaceLatency(network, table)
    counted = predictor.num_classes if classes is None else classes
    return SpaceQuantities(predictor.variables, num_classes=counted, in_channels=predictor.in_channels, latency=latency)


def _network(variables: VariableSet) -> SearchSpace | None:
    return (
        variables.architecture
        if isinstance(variables, JointSpace)
        else (variables if isinstance(variables, SearchSpace) else None)
    )


def _questions(given: Mapping[str, Limits]) -> list[dict[str, Limit]]:
    """Limits of every question, by quantity.

    Raises:
        UserError: two options with several limits each.
    """
    parsed = {
        name: [limit] if isinstance(limit, Limit) else parse_limits(limit)
        for name, limit in given.items()
        if limit is not None
    }
    several = [name for name, limits in parsed.items() if len(limits) > 1]
    require(len(several) <= 1, f"only one limit may have several values, got {' and '.join(several)}")
    count = max((len(limits) for limits in parsed.values()), default=1)
    return [{name: limits[min(i, len(limits) - 1)] for name, limits in parsed.items()} for i in range(count)]


def _front(text: str) -> tuple[str, Limit]:
    """Quantity and range of ``400M:800M`` or ``params=1M:3M``."""
    name, sign, rest = text.partition("=")
    limits = parse_limits(rest if sign else text)
    require(len(limits) == 1, f"a front has one range, such as 400M:800M, got {text!r}")
    return (name.strip() if sign else "flops"), limits[0]


def _named(result: QueryResult, variables: VariableSet) -> QueryResult:
    """Networks and recipes called after the space and the network's FLOPs."""
    return dataclasses.replace(result, answers=tuple(_named_answer(answer, variables) for answer in result.answers))


def _named_answer(answer: Answer, variables: VariableSet) -> Answer:
    flops = answer.quantities.get("flops")
    name = _name(variables) if flops is None else f"{_name(variables)}-{format_quantity(flops)}"
    return dataclasses.replace(
        answer,
        architecture=None if answer.architecture is None else dataclasses.replace(answer.architecture, name=name),
        recipe=None if answer.recipe is None else answer.recipe.replace(name=name),
    )


def _name(variables: VariableSet) -> str:
    return str(getattr(variables, "name", "") or "a space without a name")
