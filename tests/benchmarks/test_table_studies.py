"""The arithmetic of the studies of a collected table, against loops and made-up tables; nothing is trained here."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import benchmarks.early_stopping
import benchmarks.sample_efficiency
import benchmarks.trainings
from benchmarks.collected_table import facts, table, without_places
from benchmarks.early_stopping import rows_of, saved_percent
from benchmarks.query_validation import contenders
from benchmarks.query_validation import lines_of as query_lines
from benchmarks.recipe_swap import matrix, networks_of_table, predictions
from benchmarks.recipe_swap import trainings_of as swapped
from benchmarks.sample_efficiency import (
    WITHOUT,
    Study,
    Variant,
    gains,
    gaussian_process,
    labels_needed,
    measure_split,
    next_rounds,
    summary,
    variants,
)
from benchmarks.seed_noise import chosen_candidates, noise, rank_agreement, spread_over
from benchmarks.trainings import Run, difference, over_seeds, read_run, train_all
from nas.reporting.charts import Line, Panel, draw, ticks
from predictor.config import PredictorConfig
from predictor.fit import fit
from predictor.parallel import Resources
from predictor.table import read_curves
from predictor.trials import Trials
from recipes.run_folder import RunFolder
from recipes.space import load_joint
from search_spaces.errors import UserError
from search_spaces.limits import Limit
from search_spaces.sampling import uniform_rows

CONFIG: dict[str, Any] = {
    "kind": "nars", "space": "digits-joint", "data": "digits", "flops": {"high": 5e5, "low": 1e5}, "candidates": 24,
    "threshold": 0.92, "epochs": 6, "images": 200, "held_out": 100, "device": "cpu",
}  # fmt: skip


def collected(path: Path, *, waiting: int = 0) -> Path:
    """A run folder of two rounds of 24; the first has curves of six epochs, the second of four; the last candidates wait."""
    space, rng = load_joint("digits-joint"), np.random.default_rng(0)
    rows = np.unique(space.canonical(uniform_rows(space, 500, rng)), axis=0)
    flops = space.statistics(rows, num_classes=10, in_channels=1)["flops"]
    rows = rng.permutation(rows[(flops >= 1e5) & (flops <= 5e5)])[:48]
    counted = space.statistics(rows, num_classes=10, in_channels=1)
    order = np.concatenate([24 * half + np.argsort(counted["flops"][24 * half :][:24]) for half in (0, 1)])
    with RunFolder(path, CONFIG, seed=3, command=["nars", "--data-dir", "/data/of mine", "--out", "/home/me/run"]):
        trials = Trials(path / "trials.db", space, CONFIG)
    for number in (1, 2):
        part = order[24 * number - 24 : 24 * number]
        trials.add(number, rows[part], 3, {name: values[part] for name, values in counted.items()})
    for trial in trials.read()[: 48 - waiting]:
        if trial.id == 5:
            trials.fail(5, "diverged")
            continue
        final = 40 + trial.id / 3
        early = rng.normal(size=6) * np.array([30, 30, 0.1, 0.1, 0.1, 0])  # ranks are kept from the third epoch on
        curve = (final + early)[: 6 if trial.round == 1 else 4]
        trials.record(trial.id, curve.tolist(), 10.06 * len(curve))
    return path


def test_the_table_keeps_what_is_done(tmp_path: Path) -> None:
    run = read_run(collected(tmp_path / "run", waiting=2))
    frame = table(run)
    assert len(frame) == 45 and set(frame["status"]) == {"done"} and 5 not in set(frame["id"])
    frame.to_csv(tmp_path / "t.csv", index=False)
    again = read_curves(tmp_path / "t.csv", run.space)
    assert again.rows.tolist() == [list(trial.row) for trial in run.done]
    assert set(again.epochs) == {4, 6} and again.accuracies() == pytest.approx(frame["accuracy"])
    expected = [trial.curve[3] for trial in run.done]
    assert frame["accuracy"].to_numpy() == pytest.approx(np.array(expected), abs=6e-5)
    assert frame["seconds"].tolist()[0] == 60.4
    found = facts(run, frame)
    assert found["candidates"] == {"done": 45, "failed": 1, "waiting": 2}
    assert (found["stop_epoch"], found["common_epoch"], found["candidates_by_round"]) == (3, 4, {"1": 23, "2": 22})
    assert found["command"] == ["nas", "nars", "--out", "run"]
    assert str(tmp_path) not in json.dumps(found) and "/" not in json.dumps(found["command"])


def test_commands_lose_their_places() -> None:
    given = [
        "nars",
        "--data-dir",
        "/a/b",
        "--out",
        "runs/x",
        "--data-dir=/c",
        "--network",
        "/home/me/net.json",
        "--data-dir",
    ]
    assert without_places(given) == ["nars", "--out", "runs/x", "--network", "net.json"]


def test_read_run_refuses_other_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        read_run(tmp_path)
    with RunFolder(tmp_path / "other", {"kind": "train"}, seed=0), pytest.raises(UserError, match="no run of nas nars"):
        read_run(tmp_path / "other")
    with RunFolder(tmp_path / "fresh", CONFIG, seed=0):
        with pytest.raises(UserError, match=r"has no trials\.db"):
            read_run(tmp_path / "fresh")
        Trials(tmp_path / "fresh" / "trials.db", load_joint("digits-joint"), CONFIG)
        with pytest.raises(UserError, match="has no trained candidate yet"):
            read_run(tmp_path / "fresh")


def test_every_second_bin_of_rounds_in_turn() -> None:
    rng = np.random.default_rng(0)
    rounds = np.repeat([1, 2, 3, 4], 48)
    flops = np.concatenate([rng.permutation(48) for _ in range(4)])  # bin = FLOPs
    chosen = spread_over(rounds, flops, 24)
    assert flops[chosen].tolist() == list(range(1, 48, 2))
    assert rounds[chosen].tolist() == [1, 2, 3, 4] * 6
    assert (spread_over(rounds, flops, 24) == chosen).all()
    uneven = spread_over([1] * 30 + [2] * 20, rng.random(50), 10)
    assert len(set(uneven.tolist())) == 10 and [int(at >= 30) for at in uneven] == [0, 1] * 5
    with pytest.raises(UserError, match="50 candidates in 2 rounds are too few to choose 60"):
        spread_over([1] * 30 + [2] * 20, rng.random(50), 60)


def test_chosen_candidates_are_trained_ones(tmp_path: Path) -> None:
    run = read_run(collected(tmp_path / "run"))
    chosen = chosen_candidates(run, 12)
    assert len({trial.id for trial in chosen}) == 12 and all(trial.status == "done" for trial in chosen)
    flops = [run.flops[trial.id] for trial in chosen]
    counted = run.space.statistics([trial.row for trial in chosen], num_classes=10, in_channels=1)["flops"]
    assert flops == counted.tolist() and [trial.round for trial in chosen] == [1, 2] * 6
    for number in (1, 2):
        assert flops[number - 1 :: 2] == sorted(flops[number - 1 :: 2])


def test_agreement_of_seeds_is_counted_pair_by_pair() -> None:
    accuracies = np.array([[50, 52, 51], [55, 50, 54], [60, 61, 53], [58, 66, 70]], dtype=float)
    taus = []
    for a, b in ((0, 1), (0, 2), (1, 2)):
        signs = [
            np.sign(accuracies[i, a] - accuracies[j, a]) * np.sign(accuracies[i, b] - accuracies[j, b])
            for i in range(4)
            for j in range(i)
        ]
        taus.append(sum(signs) / 6)
    found = rank_agreement(accuracies)
    assert found["kendall_tau"] == pytest.approx(sum(taus) / 3) and found["kendall_tau_lowest"] == pytest.approx(
        min(taus)
    )
    assert rank_agreement(accuracies[:, [0, 0, 0]])["spearman"] == pytest.approx(1)


def test_noise_is_taken_apart() -> None:
    """Many candidates of deviation 3 with seeds of deviation 1.5: both come back, and the share of the first."""
    rng = np.random.default_rng(1)
    accuracies = 50 + rng.normal(size=(20_000, 1)) * 3 + rng.normal(size=(20_000, 3)) * 1.5
    found = noise(accuracies)
    error = 4 * 3 / np.sqrt(2 * 20_000)  # 4 standard errors of a standard deviation
    assert found["std_over_seeds"] == pytest.approx(1.5, abs=error)
    assert found["std_over_candidates"] == pytest.approx(3, abs=error)
    assert found["r2_ceiling"] == pytest.approx(9 / (9 + 2.25), abs=0.01)
    assert noise(np.array([[50.0, 50.0], [60.0, 60.0]]))["r2_ceiling"] == 1
    assert noise(np.array([[40.0, 60.0], [60.0, 40.0]]))["std_over_candidates"] == 0


@pytest.mark.parametrize(
    ("target", "labels", "relation"),
    [
        (8.0, 20, "="),
        (9.0, 20, "<"),
        (6.0, np.sqrt(20 * 40), "="),  # half-way, in logarithms
        (4.0, 40, "="),
        (3.5, np.sqrt(80 * 160), "="),
        (3.0, 160, "="),
        (2.9, 160, ">"),
    ],
)
def test_labels_needed(target: float, labels: float, relation: str) -> None:
    found, how = labels_needed([20, 40, 80, 160], [8.0, 4.0, 5.0, 3.0], target)  # rises once: 80 labels count as 4.0
    assert (found, how) == (pytest.approx(labels), relation)


def test_gains_of_a_known_law() -> None:
    """Errors 100 / n without and 100 / (4 n) with pretraining: four times fewer labels, up to the end of the table."""
    sizes = [10 * 2**k for k in range(6)]
    without = np.array([100 / n for n in sizes])[None].repeat(8, axis=0)
    found = gains(sizes, without / 4, without, np.random.default_rng(0))
    assert [line["gain"] for line in found[:4]] == pytest.approx([4] * 4)
    assert [line["gain_is"] for line in found] == ["=", "=", "=", "=", ">", ">"]
    assert found[0]["gain_low"] == found[0]["gain_high"] == pytest.approx(4)
    assert [line["gain"] for line in found[4:]] == pytest.approx([2, 1])


def test_the_best_variant_is_chosen_on_one_half_and_reported_on_the_other() -> None:
    lines = []
    for variant, first, second in (("default", 3.0, 1.0), ("default" + WITHOUT, 4.0, 4.0), ("thesis", 2.0, 6.0)):
        for split in range(6):
            value = (first if split < 3 else second) + 0.1 * (split % 3)
            metrics = {"mse": value, "kendall_tau": -value, "spearman": 0.5, "r2": 0.1}
            lines.append({"split": split, "variant": variant, "labels": 20, "cpu_seconds": 1.0, **metrics})
    rows = {row["variant"]: row for row in summary(pd.DataFrame(lines), seed=0)}
    assert [name for name, row in rows.items() if row["best_in_first_half"]] == ["thesis"]
    assert rows["thesis"]["mse_choosing"] == pytest.approx(2.1) and rows["thesis"]["mse_reporting"] == pytest.approx(
        6.1
    )
    assert rows["thesis"]["mse"] == pytest.approx(4.1) and "gain" not in rows["thesis"]
    assert rows["default"]["gain_is"] == ">" and rows["default"]["mse_reporting_se"] == pytest.approx(0.1 / np.sqrt(3))


@pytest.fixture
def study(tmp_path: Path) -> Study:
    run = read_run(collected(tmp_path / "run"))
    table(run).to_csv(tmp_path / "t.csv", index=False)
    return Study(
        space=run.space, table=read_curves(tmp_path / "t.csv", run.space), counting={"num_classes": 10, "in_channels": 1},
        flops=run.flops_range, pool=100, held_out=12, sizes=[10, 35], seed=0,
    )  # fmt: skip


def test_splits_are_measured_once(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-in predictors of the baselines' names: the mean, and one that knows the answer but for 1 point."""
    calls = []

    def predictions(self: Study, variant: Variant, train: Any, test: Any, seed: int) -> Any:
        calls.append((variant.config, len(train)))
        labels = self.table.accuracies()
        return np.full(len(test), labels[train].mean()) if variant.config == "boosted trees" else labels[test] + 1

    monkeypatch.setattr(Study, "predictions", predictions)
    chosen = {name: variant for name, variant in variants().items() if isinstance(variant.config, str)}
    monkeypatch.setattr(benchmarks.sample_efficiency, "variants", lambda: chosen)
    train, test = study.split(3)
    assert sorted([*train, *test]) == list(range(47)) and len(test) == 12
    assert (study.split(3)[0] == train).all() and (study.split(4)[1] != test).any()
    frame = measure_split(study, 3, tmp_path)
    assert len(calls) == 4 and {(line.variant, line.labels) for line in frame.itertuples()} == {
        (name, size) for name in chosen for size in (10, 35)
    }
    known = frame[frame["variant"] == "Gaussian process"]
    assert known["mse"].tolist() == pytest.approx([1, 1]) and known["bias"].tolist() == pytest.approx([1, 1])
    assert known["kendall_tau"].tolist() == pytest.approx([1, 1])
    mean = frame[(frame["variant"] == "boosted trees") & (frame["labels"] == 10)].iloc[0]
    labels = study.table.accuracies()
    assert mean["kendall_tau"] == 0 and mean["mse"] == pytest.approx(
        ((labels[train[:10]].mean() - labels[test]) ** 2).mean()
    )
    again = measure_split(replace(study, sizes=[10, 20]), 3, tmp_path)
    assert len(calls) == 6 and set(again["labels"]) == {10, 20}
    rounds = next_rounds(study, tmp_path)
    assert [(line["round"], line["labels"], line["candidates"]) for line in rounds] == [(2, 23, 24)] * 2
    assert rounds[1]["bias"] == pytest.approx(1)


def test_a_gaussian_process_learns_a_line_in_any_unit() -> None:
    rng = np.random.default_rng(0)
    features = np.column_stack([rng.normal(size=(80, 3)), np.ones(80)])  # one feature never varies
    labels = 50 + features[:, :3] @ [2.0, -1.0, 0.5] + 0.1 * rng.normal(size=80)
    found = gaussian_process(features[:60], labels[:60], features[60:])
    assert ((found - labels[60:]) ** 2).mean() < 0.05 * labels.var()
    scaled = features * [1000, 1e-3, 1, 1] + 7
    assert gaussian_process(scaled[:60], labels[:60], scaled[60:]) == pytest.approx(found, abs=1e-3)


def test_variants_differ_and_the_thesis_is_as_printed() -> None:
    found = variants()
    assert len({variant.key for variant in found.values()}) == len(found)
    config = found["thesis"].config
    assert isinstance(config, PredictorConfig) and (config.frozen_epochs, config.epochs, config.members) == (50, 50, 1)
    assert all(name.removesuffix(WITHOUT) in found for name in found)


def test_the_early_stop_and_what_it_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarks.early_stopping, "SAMPLES", 50)
    run = read_run(collected(tmp_path / "run"))
    frame = table(run)
    frame.to_csv(tmp_path / "t.csv", index=False)
    rows = rows_of(read_curves(tmp_path / "t.csv", run.space), 0.92, seed=0)
    assert [row["epoch"] for row in rows if row["chosen"]] == [3] and rows[-1]["spearman"] == pytest.approx(1)
    assert rows[0]["candidates"] == 23 and rows[2]["training_saved_percent"] == 50
    assert all(row["spearman_low"] <= row["spearman"] <= row["spearman_high"] + 1e-9 for row in rows)
    saved = saved_percent(np.array([60.0, 30.0, 20.0]), np.array([6, 3, 2]), np.array([True, False, False]))
    assert saved == pytest.approx([100 * (2 * 10 * (6 - epoch)) / 180 for epoch in range(1, 7)])


def test_a_matrix_of_recipes() -> None:
    measured = {
        ("a", "a"): [80.0, 82.0], ("a", "b"): [79.0, 80.0], ("a", "base"): [70.0, 75.0],
        ("b", "a"): [60.0, 60.0], ("b", "b"): [59.0, 63.0], ("b", "base"): [61.0, 61.0],
    }  # fmt: skip
    lines = {(line["network"], line["recipe"]): line for line in matrix(measured)}
    assert list(lines) == [("a", "own"), ("a", "b"), ("a", "base"), ("b", "a"), ("b", "own"), ("b", "base")]
    assert lines["a", "own"]["mean"] == 81 and lines["a", "own"]["std"] == pytest.approx(np.sqrt(2))
    assert "own_minus_this" not in lines["a", "own"] and lines["a", "b"]["own_minus_this"] == 1.5
    assert lines["a", "b"]["own_minus_this_standard_error"] == pytest.approx(0.5)
    assert lines["b", "a"]["own_minus_this"] == 1 and lines["b", "base"]["own_minus_this"] == 0


def test_over_seeds() -> None:
    assert over_seeds([1.0, 2.0, 6.0]) == {
        "mean": 3,
        "std": pytest.approx(np.sqrt(7)),
        "standard_error": pytest.approx(np.sqrt(7 / 3)),
    }
    assert over_seeds([1.0])["mean"] == 1 and np.isnan(over_seeds([1.0])["std"])
    assert difference([3.0, 5.0], [1.0, 1.0])["difference"] == 3


class Inline:
    """Takes the place of Ray: does jobs one after the other, made up; can be interrupted, and can fail."""

    def __init__(self, interrupt: int = 10**6, fails: Sequence[str] = (), epochs: int = 2) -> None:
        self.interrupt, self.fails, self.epochs, self.trained = interrupt, fails, epochs, list[str]()

    def __call__(
        self, jobs: Sequence[Mapping[str, Any]], work: Callable[..., Any], *, done: Any, failed: Any, **options: Any
    ) -> None:
        for job in jobs:
            if len(self.trained) == self.interrupt:
                raise KeyboardInterrupt
            if job["id"] in self.fails:
                failed(job, "out of memory")
                continue
            self.trained.append(job["id"])
            json.dumps(job)
            curve = [10.0 * epoch + job["seed"] - 10 for epoch in range(1, self.epochs + 1)]
            done(job, {"curve": curve, "seconds": 1.5})


def trainings_of(run: Run) -> list[Any]:
    first, second = run.done[:2]
    return [run.training(row, seed=seed) for row in (first.row, second.row) for seed in (1, 2)]


def test_killed_trainings_go_on_and_shared_ones_are_done_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainings = trainings_of(read_run(collected(tmp_path / "run")))
    tries = [Inline(3), Inline(), Inline()]
    for attempt in tries:
        monkeypatch.setattr(benchmarks.trainings, "run_jobs", attempt)
        try:
            given = [*trainings, *trainings[:2]]
            found = train_all(given, tmp_path / "work", data_dir=None, resources=Resources())
        except KeyboardInterrupt:
            continue
    assert tries[0].trained + tries[1].trained == [training.id for training in trainings] and tries[2].trained == []
    assert [found[training.id]["curve"] for training in trainings] == [[1, 11], [2, 12], [1, 11], [2, 12]]


def test_failed_trainings_are_told_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainings = trainings_of(read_run(collected(tmp_path / "run")))
    for fails, done in (([trainings[1].id], 3), ([], 1)):
        attempt = Inline(fails=fails)
        monkeypatch.setattr(benchmarks.trainings, "run_jobs", attempt)
        if fails:
            with pytest.raises(
                UserError, match="1 of 4 trainings failed; the same command tries them again; the first: out"
            ):
                train_all(trainings, tmp_path / "work", data_dir=None, resources=Resources())
        else:
            assert len(train_all(trainings, tmp_path / "work", data_dir=None, resources=Resources())) == 4
        assert len(attempt.trained) == done


@pytest.fixture(scope="module")
def predicted(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with a predictor, hardly trained."""
    run = read_run(collected(tmp_path_factory.mktemp("predicted") / "run"))
    config = PredictorConfig(members=2, epochs=5)
    rows, labels = [trial.row for trial in run.done], [run.accuracy(trial) for trial in run.done]
    fit(run.space, rows, labels, seed=0, config=config, num_classes=10, in_channels=1).save(run.path / "predictor.npz")
    return run


def test_answers_and_the_table_meet_in_the_same_budgets(
    predicted: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets = [Limit(high=3e5), Limit(high=5e5, low=3e5)]
    found = contenders(predicted, budgets, [4, 6])
    assert [(entry.source, entry.budget) for entry in found] == [
        (source, budget) for budget in budgets for source in ("query", "table")
    ]
    for entry in found:
        counted = predicted.space.statistics([entry.row], num_classes=10, in_channels=1)["flops"]
        assert entry.flops == counted[0] and max(entry.budget.low, 1e5) <= counted[0] <= entry.budget.high
        assert [training.seed for training in entry.trainings] == [4, 6] and entry.trainings[0].recipe.epochs == 6
    known = {trial.row for trial in predicted.done}
    assert (
        found[1].row in known
        and found[3].row in known
        and found[1].known == predicted.accuracy(predicted.best(budgets[0])[0])
    )
    monkeypatch.setattr(benchmarks.trainings, "run_jobs", Inline(epochs=6))
    trainings = [training for entry in found for training in entry.trainings]
    results = train_all(trainings, tmp_path / "work", data_dir=None, resources=Resources())
    lines = query_lines(predicted, found, results)
    for line, entry in zip(lines, found, strict=True):
        assert line["predicted"] == pytest.approx(predicted.predictor.predict([entry.row])[0])
        assert (line["epochs"], line["measured"], line["whole_epochs"], line["measured_whole"]) == (4, 35.0, 6, 55.0)
        assert line["measured_minus_predicted"] == pytest.approx(35 - line["predicted"]) and line["cpu_seconds"] == 3
        assert line["whole_minus_table"] == (0 if entry.source == "query" else None)


def test_every_network_is_trained_with_every_recipe(predicted: Run) -> None:
    ids = [predicted.done[3].id, predicted.done[30].id]
    networks = networks_of_table(predicted, ids)
    columns = predicted.space.architecture_columns
    for network, id in zip(networks, ids, strict=True):
        (trial,) = (trial for trial in predicted.done if trial.id == id)
        assert network.row[:columns].tolist() == list(trial.row[:columns]) and network.flops == predicted.flops[id]
        assert predicted.predictor.predict([network.row])[0] >= predicted.predictor.predict([trial.row])[0] - 1e-9
    trainings = swapped(predicted, networks, [1, 2])
    names = [network.name for network in networks]
    assert list(trainings) == [(a, b) for a in names for b in (*names, "base")]
    for (network, recipe), several in trainings.items():
        assert [training.seed for training in several] == [1, 2]
        own = next(each for each in networks if each.name == network)
        assert several[0].architecture == predicted.space.decode(own.row)[0]
        wanted = next((each.recipe for each in networks if each.name == recipe), predicted.space.recipe.base)
        assert several[0].recipe == wanted.with_epochs(6)
    found = predictions(predicted, networks)
    assert found[names[0], names[0]] >= found[names[0], names[1]] and len(found) == 4
    with pytest.raises(UserError, match="has no trained candidate 5"):
        networks_of_table(predicted, [5])


def test_a_training_is_called_after_what_decides_it(tmp_path: Path) -> None:
    run = read_run(collected(tmp_path / "run"))
    row = run.done[0].row
    own = run.training(row, seed=1)
    assert own.recipe.epochs == 6 and own.settings["split_seed"] == 3
    longer = own.recipe.replace(name="other", epochs=24, warmup_epochs=4 * own.recipe.warmup_epochs)
    renamed = run.training(row, seed=1, recipe=longer)
    assert own.id == renamed.id == run.training(row, seed=1, stop=6).id
    others = [
        run.training(row, seed=2), run.training(row, seed=1, stop=3), run.training(run.done[1].row, seed=1),
        run.training(row, seed=1, recipe=own.recipe.replace(lr=own.recipe.lr / 2)),
    ]  # fmt: skip
    assert len({own.id, *(training.id for training in others)}) == 5


def test_the_best_of_the_table_keeps_the_budget(tmp_path: Path) -> None:
    run = read_run(collected(tmp_path / "run"))
    sizes = sorted(run.flops[trial.id] for trial in run.done)
    limit = Limit(high=sizes[20], low=sizes[4])
    (best,) = run.best(limit)
    inside = [trial for trial in run.done if sizes[4] <= run.flops[trial.id] <= sizes[20]]
    assert best.id == max(inside, key=lambda trial: trial.curve[3]).id and len(run.best(limit, 5)) == 5
    with pytest.raises(UserError, match=r"no trained candidate of .* has FLOPs at most 1"):
        run.best(Limit(high=1))


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0.03, 0.97) == [0.2, 0.4, 0.6, 0.8] and ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert ticks(-3.1, 12.4) == [0, 5, 10] and ticks(51.2, 51.9) == [51.2, 51.4, 51.6, 51.8]


def test_a_chart_is_well_formed(tmp_path: Path) -> None:
    from xml.etree import ElementTree

    line = Line(name="a < b", x=[1, 2, 4], y=[0.5, 0.7, 0.9], low=[0.4, 0.6, 0.8], high=[0.6, 0.8, 1.0], dashed=True)
    level = Panel(title="one", x_label="epochs", lines=[line], level=0.92, level_name="0.92")
    missing = Line(
        name="b", group="a < b", x=[1, 2, 4], y=[0.3, float("nan"), 0.3], low=[0.1, float("nan"), 0.1], high=[1] * 3
    )
    other = Panel(title="two", x_label="labels", lines=[missing])
    draw([level, other], tmp_path / "new" / "chart.svg", "what it shows")
    assert "nan" not in (tmp_path / "new" / "chart.svg").read_text()
    root = ElementTree.parse(tmp_path / "new" / "chart.svg").getroot()
    tags = [element.tag.rsplit("}")[-1] for element in root]
    assert tags.count("circle") == 5 and "a < b" in [element.text for element in root]
    heights = [float(element.attrib["cy"]) for element in root if element.tag.endswith("circle")][:3]
    assert heights == sorted(heights, reverse=True), "higher values stand higher"
    assert len({element.attrib["fill"] for element in root if element.tag.endswith("circle")}) == 1, (
        "one group, one colour"
    )
