"""A tree-regularised training that is killed goes on from its checkpoint and ends with the bits of one that was not."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nas.cli.main import run
from nas.trees.regularisation.penalty import TreePenalty, TreeRegularisation
from nas.trees.regularisation.surrogate import SurrogateOptions
from nas.trees.regularisation.tasks import Task, markov_task, parabola_task, regularise
from nas.trees.regularisation.toys import parabola
from nas.trees.regularisation.training import EpochDone, RegularisationOptions, Regularised, perceptron
from recipes.checkpoint import load_checkpoint, save_checkpoint
from recipes.recipe import Recipe
from recipes.run_folder import RunFolder
from recipes.tensor_source import TensorSource
from recipes.trainer import Callback, Stateful, TrainState, fit
from search_spaces.errors import UserError

ROOT = Path(__file__).parents[2]
TREE = TreePenalty(warmup=2, ramp=2, every=2, perturbed=6, stored=24, surrogate=SurrogateOptions(steps=20))
OPTIONS = RegularisationOptions(penalty="tree", strength=0.1, epochs=9, tree=TREE)


class Killed(BaseException):
    """Ends a training as a kill does: nothing is tidied up after it."""


def killed_after(epochs: int) -> Callable[[EpochDone], None]:
    def progress(done: EpochDone) -> None:
        if done.epoch == epochs:  # the epoch after is not saved any more
            raise Killed

    return progress


def same(first: Regularised, second: Regularised) -> bool:
    """Weights, history, trees and their number, bit for bit; seconds differ."""
    pairs = zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True)
    counts = [
        (r.costs.fitted_trees, r.costs.fitted_surrogates, r.accuracy, r.mimic.path_length) for r in (first, second)
    ]
    return (
        all(torch.equal(a, b) for a, b in pairs)
        and repr(first.history) == repr(second.history)
        and counts[0] == counts[1]
    )


@pytest.mark.parametrize("epochs", [1, 3, 4, 8])  # before the first surrogate, between two, at one, before the end
@pytest.mark.parametrize(
    "options",
    [
        OPTIONS,
        replace(OPTIONS, optimizer="adam", lr=0.01, tree=replace(TREE, perturbation="outputs", every=1)),
        replace(OPTIONS, penalty="l2", strength=1e-3),
    ],
    ids=["tree", "outputs", "l2"],
)
def test_killed_and_resumed_is_undisturbed(options: RegularisationOptions, epochs: int, tmp_path: Path) -> None:
    whole = regularise(parabola_task(0), options, seed=0, out=tmp_path / "whole", save_every_s=0)
    with pytest.raises(Killed):
        regularise(
            parabola_task(0), options, seed=0, out=tmp_path / "cut", save_every_s=0, progress=killed_after(epochs)
        )
    assert load_checkpoint(tmp_path / "cut" / "checkpoint.pt")["epochs_done"] == epochs
    assert not (tmp_path / "cut" / "result.json").exists()
    told: list[int] = []
    resumed = regularise(
        parabola_task(0),
        options,
        seed=0,
        out=tmp_path / "cut",
        resume=True,
        progress=lambda done: told.append(done.epoch),
    )
    assert told == list(range(epochs, 9)) and same(whole, resumed)
    for name in ("metrics.csv", "tree.txt"):
        a, b = (tmp_path / folder / name for folder in ("whole", "cut"))
        assert (a.read_bytes() if a.exists() else None) == (b.read_bytes() if b.exists() else None)


def test_a_series_resumes_too(tmp_path: Path) -> None:
    def task() -> Task:
        return markov_task(0, "gru-hmm", hidden=3)

    options = replace(OPTIONS, epochs=5, batch_size=50)
    whole = regularise(task(), options, seed=0)
    with pytest.raises(Killed):
        regularise(task(), options, seed=0, out=tmp_path / "cut", save_every_s=0, progress=killed_after(3))
    assert same(whole, regularise(task(), options, seed=0, out=tmp_path / "cut", resume=True))
    with pytest.raises(UserError, match=r"holds another run: settings\.hidden was 3, now 4"):
        regularise(markov_task(0, "gru-hmm", hidden=4), options, seed=0, out=tmp_path / "cut", resume=True)


def test_kill_minus_nine(tmp_path: Path) -> None:
    """A real process, killed while it trains."""
    script = (
        "import sys\nsys.path.insert(0, sys.argv[2])\n"
        "from test_tree_regularisation_resume import OPTIONS, parabola_task, regularise, replace, torch\n"
        "torch.set_num_threads(int(sys.argv[3]))\n"
        "regularise(parabola_task(0), replace(OPTIONS, epochs=40), seed=0, out=sys.argv[1], resume=True, save_every_s=0)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    out = tmp_path / "run"
    arguments = [sys.executable, "-c", script, str(out), str(Path(__file__).parent), str(torch.get_num_threads())]
    with subprocess.Popen(arguments, cwd=ROOT, env=environment) as process:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and epochs_of(out) < 5:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert 5 <= epochs_of(out) < 40 and not (out / "result.json").exists()
    options = replace(OPTIONS, epochs=40)
    resumed = regularise(parabola_task(0), options, seed=0, out=out, resume=True)
    assert same(regularise(parabola_task(0), options, seed=0), resumed)


def epochs_of(out: Path) -> int:
    path = out / "checkpoint.pt"
    return int(load_checkpoint(path)["epochs_done"]) if path.exists() else 0


def test_checkpoints_are_as_far_apart_as_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nas.trees.regularisation.training as training

    saved: list[int] = []
    monkeypatch.setattr(training, "save_checkpoint", lambda path, state: saved.append(state["epochs_done"]))
    clock = iter(range(0, 1000, 4))  # every look at it is 4 s later
    monkeypatch.setattr(training.time, "monotonic", lambda: float(next(clock)))
    options = replace(OPTIONS, penalty="none")
    training.train_regularised(
        perceptron(2, 1, 0, (4,)), parabola(0), options, seed=0, checkpoint=tmp_path / "checkpoint.pt", save_every_s=12
    )
    assert saved == [3, 6, 9]


def test_a_finished_run_says_what_it_found_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["tree-reg", "parabola", "--epochs", "4", "--warmup", "1", "--out", str(tmp_path / "run")]
    assert run(command) == 0
    printed = capsys.readouterr().out
    files = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert run(command) == 2
    assert "already holds a run; use --resume" in capsys.readouterr().err
    assert run([*command, "--resume"]) == 0
    assert capsys.readouterr().out == printed
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == files


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (["--seed", "1"], "seed was 0, now 1"),
        (["--strength", "0.2"], "strength was 0.1, now 0.2"),
        (["--max-depth", "3"], "tree.tree.max_depth was None, now 3"),
        (["--epochs", "5"], "epochs was 4, now 5"),
        (["--layers", "0"], "layers was None, now ['0']"),
    ],
)
def test_another_run_is_not_resumed(
    changed: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["tree-reg", "parabola", "--epochs", "4", "--warmup", "1", "--out", str(tmp_path / "run")]
    assert run(command) == 0
    kept = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    capsys.readouterr()
    assert run([*command, *changed, "--resume"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "holds another run" in line and words in line
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == kept


def test_a_table_that_has_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "table.csv"
    table.write_text("a,kind\n" + "".join(f"{index},{'high' if index > 20 else 'low'}\n" for index in range(40)))
    command = ["tree-reg", "table", str(table), "--label", "kind", "--epochs", "3", "--warmup", "1"]
    command += ["--out", str(tmp_path / "run")]
    assert run(command) == 0
    assert run([*command, "--resume", "--held-out", "0.4"]) == 2
    assert "settings.held_out was 0.3, now 0.4" in capsys.readouterr().err
    table.write_text(table.read_text().replace("39,", "39.5,"))
    assert run([*command, "--resume"]) == 2
    assert "settings.sha256 was" in capsys.readouterr().err


def damaged(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        state = load_checkpoint(path)
        change(state)
        save_checkpoint(path, state)

    return apply


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncated, "is damaged or not a checkpoint"),
        (lambda path: path.write_bytes(b"nothing"), "is damaged or not a checkpoint"),
        (damaged(lambda state: state.pop("model")), "key 'model' is missing"),
        (damaged(lambda state: state.update(seed=1)), "of another run: its seed is 1, not 0"),
        (damaged(lambda state: state.update(epochs_done=99)), "epochs_done is 99"),
        (damaged(lambda state: state.update(epochs_done=2)), "9 path lengths after 2 epochs"),
        (damaged(lambda state: state["model"].update({"0.bias": torch.zeros(3)})), "does not fit this training"),
        (damaged(lambda state: state["regularisation"].update(lengths=[1.0])), "stored weights have 1 path lengths"),
        (damaged(lambda state: state["regularisation"].update(weights=torch.zeros(3, 5))), "must be (n, 11421), got (3, 5)"),
        (damaged(lambda state: state["regularisation"]["surrogate"].pop("centre")), "state of a tree penalty is damaged"),
        (
            damaged(lambda state: state["regularisation"]["surrogate"].update(centre=torch.zeros(4))),
            "state of a tree penalty is damaged",
        ),
        (damaged(lambda state: state["regularisation"]["history"][0].pop("epoch")), "state of a tree penalty is damaged"),
        (
            damaged(lambda state: state["optimizer"]["state"][0].update(momentum_buffer=torch.zeros(7))),
            "optimizer's state has other shapes",
        ),
        (damaged(lambda state: state.update(optimizer=[])), "does not fit this training"),
    ],
)  # fmt: skip
def test_a_damaged_checkpoint_is_one_line(
    damage: Callable[[Path], None], words: str, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    for name in ("config.json", "checkpoint.pt"):
        (out / name).write_bytes((finished / name).read_bytes())
    damage(out / "checkpoint.pt")
    with pytest.raises(UserError) as caught:
        regularise(parabola_task(0), OPTIONS, seed=0, out=out, resume=True)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    regularise(parabola_task(0), OPTIONS, seed=0, out=out)
    return out


def test_resume_needs_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tree-reg", "parabola", "--resume"]) == 2
    assert "resume needs a run folder" in capsys.readouterr().err


def test_a_sigterm_saves_and_the_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def terminate(done: EpochDone) -> None:
        if done.epoch == 4:
            signal.raise_signal(signal.SIGTERM)

    from search_spaces.errors import Stopped

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="stopped after epoch 5 of 9"):
        regularise(parabola_task(0), OPTIONS, seed=0, out=tmp_path / "run", progress=terminate)
    assert signal.getsignal(signal.SIGTERM) is before and epochs_of(tmp_path / "run") == 5
    resumed = regularise(parabola_task(0), OPTIONS, seed=0, out=tmp_path / "run", resume=True)
    assert same(regularise(parabola_task(0), OPTIONS, seed=0), resumed)


@pytest.mark.parametrize("lr", ["1e30", "1e15"])
def test_a_training_that_diverges_is_one_line(lr: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["tree-reg", "parabola", "--epochs", "4", "--warmup", "1", "--every", "1", "--lr", lr]
    assert run([*command, "--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "try a lower lr" in line
    assert not (tmp_path / "run").exists()


# In the one training loop.
class Watched(Callback):
    """Ends the training at a step, as a kill does."""

    def __init__(self, epoch: int | None) -> None:
        self.epoch = epoch

    def on_step_end(self, state: TrainState) -> None:
        if state.epoch == self.epoch:
            raise Killed


def trained(out: Path | None, kill_in: int | None, *, resume: bool = False) -> tuple[list[Tensor], TreeRegularisation]:
    images = torch.randint(0, 256, (64, 4, 4, 1), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    source = TensorSource(images, (images[:, 0, 0, 0] > 127).long(), mean=(0.5,), std=(0.3,))
    inputs, _ = next(source.batches(64, resolution=4))
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)) * 0.3)
    tree = TreeRegularisation(model, inputs, replace(TREE, strength=1.0), seed=0)
    recipe = Recipe(name="short", epochs=7, batch_size=16, lr=0.05, mixup=0.2)
    callbacks = [tree, Watched(kill_in)]
    if out is None:
        fit(model, source, None, recipe, resolution=4, seed=0, loss=tree, callbacks=callbacks)
    else:
        with RunFolder(out, {}, seed=0, resume=resume) as folder:
            fit(
                model,
                source,
                None,
                recipe,
                resolution=4,
                seed=0,
                loss=tree,
                callbacks=callbacks,
                run=folder,
                resume=resume,
            )
    return [parameter.detach() for parameter in model.parameters()], tree


@pytest.mark.parametrize("kill_in", [1, 3, 4, 6])
def test_the_one_training_loop_keeps_the_penalty(kill_in: int, tmp_path: Path) -> None:
    whole, tree = trained(None, None)
    with pytest.raises(Killed):
        trained(tmp_path / "run", kill_in)
    resumed, again = trained(tmp_path / "run", None, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
    assert repr(tree.history) == repr(again.history) and len(again.history) == 7
    assert tree.costs.fitted_trees == again.costs.fitted_trees
    assert isinstance(tree, Stateful) and not isinstance(Watched(None), Stateful)


def test_the_state_of_another_network(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        trained(tmp_path / "run", 5)
    path = tmp_path / "run" / "checkpoint.pt"
    state = load_checkpoint(path)
    kept = state["callbacks"]
    for callbacks, words in (
        ([], "state of 0 callbacks, here are 1"),
        ([{**kept[0], "weights": torch.zeros(2, 3)}], "stored weights must be"),
        ([{}], "state of a tree penalty is damaged"),
    ):
        save_checkpoint(path, {**state, "callbacks": callbacks})
        with pytest.raises(UserError, match=words):
            trained(tmp_path / "run", None, resume=True)
