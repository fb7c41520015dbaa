import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_spaces import three_layers

from recipes.checkpoint import load_checkpoint
from recipes.run_folder import RunFolder
from recipes.tensor_source import TensorSource
from search_spaces.cost import cost
from search_spaces.errors import Stopped, UserError
from search_spaces.limits import Limit
from search_spaces.options import option_index
from search_spaces.tables import SpaceTables
from supernets.budget import Budget
from supernets.config import SearchConfig, preset
from supernets.learned import Learned
from supernets.progress import Partial, SearchState
from supernets.result import SearchResult, read_result
from supernets.search import Searching, search


def images(n: int = 120) -> TensorSource:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (n, 16, 16, 3), dtype=torch.uint8, generator=generator)
    y = torch.arange(n) % 4
    for label in range(4):  # a bright quarter tells the class
        x[y == label, 8 * (label // 2) : 8 * (label // 2) + 8, 8 * (label % 2) : 8 * (label % 2) + 8] |= 192
    return TensorSource(x, y, mean=(0.5,) * 3, std=(0.25,) * 3)


def config(**changes: Any) -> SearchConfig:
    return SearchConfig(**{"epochs": 4, "batch_size": 24, "alpha_batch_size": 12, "lr": 0.05, **changes})


def run(settings: SearchConfig, high: float = 1e5, source: TensorSource | None = None, **options: Any) -> SearchResult:
    return search(
        three_layers(),
        source or images(),
        Budget("flops", Limit(high=high)),
        settings,
        num_classes=4,
        in_channels=3,
        **options,
    )


class Stop(Exception):
    pass


class StopAfter:
    def __init__(self, epoch: int, step: int) -> None:
        self.at = (epoch, step)

    def on_step_end(self, state: SearchState) -> None:
        if (state.epoch, state.step) == self.at:
            raise Stop

    def on_epoch_end(self, state: SearchState) -> None:
        pass


def test_result_is_inside_the_budget_and_costs_what_it_says() -> None:
    result = run(config())
    tables = SpaceTables(three_layers(), num_classes=4, in_channels=3)
    assert result.cost.flops <= 1e5
    assert result.architecture.name.startswith("three-")
    from search_spaces.membership import row_of

    row = row_of(three_layers(), result.architecture)
    assert int(tables.cost(row).flops[0]) == result.cost.flops


def test_choices_are_those_of_the_network() -> None:
    space, result = three_layers(), run(config())
    options = [option_index(result.choices[variable.name], variable.options) for variable in space.variables]
    assert list(result.choices) == [variable.name for variable in space.variables]
    assert space.decode(np.array(options)).blocks == result.architecture.blocks


def test_higher_cost_weight_gives_fewer_flops() -> None:
    """The cost has a gradient: with lambda fixed and no other difference, more of it gives a smaller network."""
    flops = [
        run(config(adapt_cost_weight=False, cost_weight=weight, alpha_lr=0.2), high=2e5).argmax_cost.flops
        for weight in (-5.0, 0.0, 5.0)
    ]
    assert flops[0] > flops[1] > flops[2]
    assert flops[2] < 0.5 * flops[0]


def test_same_seed_same_alpha_and_other_seed_another(tmp_path: Path) -> None:
    alphas = []
    for index, seed in enumerate((0, 0, 1)):
        with RunFolder(tmp_path / str(index), {}, seed=seed) as folder:
            run(config(seed=seed, epochs=2), run=folder)
            alphas.append(load_checkpoint(folder.checkpoint)["supergraph"]["alpha"])
    assert torch.equal(alphas[0], alphas[1])
    assert not torch.equal(alphas[0], alphas[2])


def test_masks_follow_their_own_temperature(tmp_path: Path) -> None:
    """One that is tau's changes nothing, another one does."""
    alphas = []
    for index, mask_tau in enumerate((None, 5.0, 0.5)):
        with RunFolder(tmp_path / str(index), {}, seed=0) as folder:
            run(config(epochs=2, tau_decay=1.0, mask_tau=mask_tau), run=folder)
            alphas.append(load_checkpoint(folder.checkpoint)["supergraph"]["alpha"])
    assert torch.equal(alphas[0], alphas[1])
    assert not torch.equal(alphas[0], alphas[2])


@pytest.mark.parametrize("stop", [(1, 2), (3, 0)])
def test_resumed_search_ends_with_the_same_bits(tmp_path: Path, stop: tuple[int, int]) -> None:
    settings = config()
    with RunFolder(tmp_path / "whole", {}, seed=0) as folder:
        whole = run(settings, run=folder)
    with pytest.raises(Stop), RunFolder(tmp_path / "cut", {}, seed=0) as folder:
        run(settings, run=folder, callbacks=[StopAfter(*stop)])
    with RunFolder(tmp_path / "cut", {}, seed=0, resume=True) as folder:
        resumed = run(settings, run=folder, resume=True)
    assert resumed == whole
    a, b = (load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("whole", "cut"))
    for name, tensor in a["supergraph"].items():
        assert torch.equal(tensor, b["supergraph"][name]), name
    for name in ("alpha.csv", "architecture.json", "result.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    rows = [(tmp_path / name / "metrics.csv").read_text().splitlines() for name in ("whole", "cut")]
    assert [line.rsplit(",", 1)[0] for line in rows[0]] == [
        line.rsplit(",", 1)[0] for line in rows[1]
    ]  # all but seconds
    assert len(rows[0]) == 1 + settings.epochs


def test_warm_up_leaves_alpha_alone(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", {}, seed=0) as folder:
        run(config(warmup=0.5), run=folder)
        history = load_checkpoint(folder.checkpoint)["alpha_history"]
    assert (history[:2] == 0).all()
    assert (history[2] != 0).any()


def test_decided_resolution_rests_and_is_that_of_the_network(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", {}, seed=0) as folder:
        result = run(config(epochs=6, commit_resolution=0.3, alpha_lr=0.2), run=folder)
        stored = load_checkpoint(folder.checkpoint)
    logits = stored["alpha_history"][:, :3]
    assert (logits[2:] == logits[-1]).all() and (logits[-1] != 0).any()
    assert result.architecture.resolution == three_layers().resolution.options[stored["committed"]["resolution"]]


@pytest.mark.parametrize(
    ("logits", "steps", "high", "decided"),
    [
        ([0.0, 1.0, 0.5], 0, 1e5, 1),  # apart
        ([0.0, 1.0, 0.5], 3, 1e5, 1),  # 2 x 0.1 x sqrt(2 x 3) < 0.5
        ([0.0, 1.0, 0.5], 4, 1e5, 2),
        ([0.0, 1.0, -0.5], 4, 1e5, 1),
        ([1.0, 0.9, 0.0], 4, 1e5, 1),
        ([0.0, 0.0, 0.0], 0, 1e5, 2),  # nothing is known
        ([0.5, 1.0, 0.9], 4, 1e5, 2),
        ([0.5, 1.0, 0.9], 4, 1.8e4, 1),  # the smallest network at 16 pixels is larger
        ([1.0, 0.5, 0.9], 4, 1e5, 2),
        ([0.9, 0.5, 1.0], 4, 1e5, 2),  # never a smaller one than the likeliest
    ],
)
def test_resolutions_that_alpha_cannot_tell_apart(logits: list[float], steps: int, high: float, decided: int) -> None:
    learned = Searching(
        three_layers(), images(), Budget("flops", Limit(high=high)), config(alpha_lr=0.1, commit_resolution=0.5),
        num_classes=4, in_channels=3, device=torch.device("cpu"),
    ).learned  # fmt: skip
    for _ in range(steps):
        learned.supergraph.alpha.grad = torch.zeros_like(learned.supergraph.alpha)
        learned.alpha_optimizer.step()
    learned.logits("resolution").copy_(torch.tensor(logits))
    learned.commit(0.49)
    assert not learned.committed
    learned.commit(0.5)
    assert learned.committed == {"resolution": decided}


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("machines", 2, "of a search on 2 machines, now 1: its batches and rates would change"),
        ("buffers", torch.zeros(1, 3), "does not fit this search: "),
        ("schema", 1, "of another search: its schema is 1, not 2"),
    ],
)
def test_checkpoint_of_other_processes_is_refused(tmp_path: Path, entry: str, value: Any, message: str) -> None:
    with RunFolder(tmp_path, {}, seed=0) as folder:
        run(config(epochs=1), run=folder)
    path = tmp_path / "checkpoint.pt"
    torch.save({**load_checkpoint(path), entry: value}, path)
    with RunFolder(tmp_path, {}, seed=0, resume=True) as folder, pytest.raises(UserError) as refused:
        run(config(epochs=1), run=folder, resume=True)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def take_steps(learned: Learned, count: int) -> None:
    """Steps of alpha that move nothing."""
    for _ in range(count):
        learned.supergraph.alpha.grad = torch.zeros_like(learned.supergraph.alpha)
        learned.alpha_optimizer.step()


@pytest.mark.parametrize(("difference", "steps", "taken"), [(3.5, 9, 1), (3.6, 9, 0), (3.6, 441, 1)])
def test_widths_that_alpha_hardly_tells_apart_allow_a_residual(difference: float, steps: int, taken: int) -> None:
    """A residual is worth 2: logits 3.5, 0, 0 smoothed are 1.90 apart, 3.6, 0, 0 are 2.04; 2.1 after 441 random steps."""
    learned = Searching(
        three_layers(), images(), Budget("flops", Limit(high=1e5)), config(alpha_lr=0.1),
        num_classes=4, in_channels=3, device=torch.device("cpu"),
    ).learned  # fmt: skip
    take_steps(learned, steps)
    before, after = (slot.width.name for slot in learned.space.slots[1:])
    learned.logits(before)[1] = 5
    learned.logits(after)[0] = difference
    row = learned.argmax_row()
    assert [row[learned.space.column[name]] for name in (before, after)] == [1, taken]


@pytest.mark.parametrize("share", [0.5, 0.7, 1.5])
def test_what_is_decided_stays_in_a_repair_and_when_the_budget_is_filled(share: float) -> None:
    made = SpaceTables(three_layers(), num_classes=4, in_channels=3)

    def learned(budget: Budget) -> Learned:
        found = Searching(
            three_layers(), images(), budget, config(), num_classes=4, in_channels=3, device=torch.device("cpu"),
        ).learned  # fmt: skip
        take_steps(found, 9)
        found.committed = {"resolution": 1}
        for name in made.space.column:
            found.logits(name)[1] = 0.01
        found.logits("resolution")[0] = 9.0
        return found

    argmax = cost(made.space.decode(learned(Budget("flops", Limit(high=1e5))).argmax_row()), num_classes=4)
    budget = Budget("flops", Limit(high=share * argmax.flops))
    result = learned(budget).result()
    assert result.architecture.resolution == made.space.resolution.options[1]
    assert result.argmax_cost == argmax
    assert result.repaired == (share < 1) and result.cost.flops <= budget.limit.high
    assert share < 1 or result.cost.flops > result.argmax_cost.flops


def test_without_the_loss_alpha_follows_the_budget_alone(tmp_path: Path) -> None:
    """Other images, other weights: the same alpha to the bit, which the plain search's is not."""
    other = TensorSource(
        torch.zeros(120, 16, 16, 3, dtype=torch.uint8), torch.arange(120) % 4, mean=(0.5,) * 3, std=(0.25,) * 3
    )

    def alpha(name: str, source: TensorSource, blind: bool, **changes: Any) -> bytes:
        with RunFolder(tmp_path / name, {}, seed=0) as folder:
            run(config(alpha_loss=not blind, **changes), run=folder, source=source)
        return (tmp_path / name / "alpha.csv").read_bytes()

    assert alpha("a", images(), True) == alpha("b", other, True)
    assert alpha("f", images(), True) == alpha("e", images(), True, sample="two", share_pointwise=True)
    assert (tmp_path / "f" / "alpha.csv").read_bytes() == alpha("g", images(), True, share_blocks=True)
    assert alpha("c", images(), False) != alpha("d", other, False)


def test_weights_rest_while_alpha_learns_and_the_other_way_round() -> None:
    settings = config(warmup=0.0)
    searching = Searching(
        three_layers(), images(), Budget("flops", Limit(high=1e5)), settings, num_classes=4, in_channels=3,
        device=torch.device("cpu"),
    )  # fmt: skip
    parameters = dict(searching.supergraph.named_parameters())

    def changed(phase: str) -> set[bool]:
        before = {name: value.detach().clone() for name, value in parameters.items()}
        searching.learned.partial = Partial(phase=phase)
        searching._phase(None, [], 0.0)
        return {name == "alpha" for name, value in parameters.items() if not torch.equal(before[name], value)}

    assert changed("weights") == {False}
    assert changed("alpha") == {True}


def test_a_loss_that_is_not_finite_is_one_line() -> None:
    with pytest.raises(UserError, match=r"the loss is nan at epoch \d+, step \d+ .*--lr"):
        run(config(lr=1e30, clip_grad_norm=1e30))


def test_checkpoint_of_another_search_is_refused(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", {}, seed=0) as folder:
        run(config(epochs=1), run=folder)
    from search_spaces.rows import Row, space_of_rows

    other = space_of_rows("three", [Row(expansion=(1,), width=(8,))], resolutions=(16,), stem_width=8, head_width=8)
    with (
        RunFolder(tmp_path / "run", {}, seed=0, resume=True) as folder,
        pytest.raises(UserError, match="does not fit this search"),
    ):
        search(
            other, images(), Budget("flops", Limit(high=5e4)), config(epochs=1), num_classes=4, in_channels=3, run=folder,
            resume=True,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("lr", float("nan")),
        ("weights_share", 1.0),
        ("tau_decay", 0.0),
        ("mask_tau", 0.0),
        ("warmup", 0.9),
        ("seed", -1),
    ],
)
def test_config_names_the_field(field: str, value: float) -> None:
    with pytest.raises(UserError, match=field):
        config(**{field: value})


@pytest.mark.parametrize(
    "change",
    [{"epochs": 1.5}, {"epochs": "1"}, {"mask_position": "bogus"}, {"batch_size": 1}, {"amp": 1}, {"images": 3}],
)
def test_config_refuses_wrong_types_and_values(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(change))):
        SearchConfig(**change)


def test_misspelt_setting_names_the_closest() -> None:
    with pytest.raises(UserError, match="unknown search setting 'epoch'; did you mean 'epochs'"):
        preset("digits", epoch=3)


def test_preset_takes_changes() -> None:
    assert preset("digits", epochs=3, lr=None).epochs == 3
    assert preset("digits", lr=None).lr == SearchConfig().lr
    assert preset("imagefolder:/x") == SearchConfig()


def test_alpha_table_has_a_column_for_every_option(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", {}, seed=0) as folder:
        run(config(epochs=2), run=folder)
    header, *rows = (tmp_path / "run" / "alpha.csv").read_text().splitlines()
    assert len(header.split(",")) == 1 + int(np.sum(three_layers().option_counts))
    assert len(rows) == 2
    assert "layer2.block=skip" in header


class Counting:
    """Counts steps, and does something at one of them."""

    def __init__(self, at: tuple[int, int] | None = None, act: Callable[[], None] = lambda: None) -> None:
        self.at, self.act, self.steps = at, act, 0

    def on_step_end(self, state: SearchState) -> None:
        self.steps += 1
        if (state.epoch, state.step) == self.at:
            self.act()

    def on_epoch_end(self, state: SearchState) -> None:
        pass


def stop() -> None:
    raise Stop


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("how", ["terminated", "killed"])
@pytest.mark.parametrize("at", [(1, 1), (2, 4)])  # a step of the weights, a step of alpha
def test_a_search_that_ends_within_an_epoch_goes_on_there(tmp_path: Path, how: str, at: tuple[int, int]) -> None:
    settings = config(epochs=3, warmup=0.0)
    whole = Counting()
    with RunFolder(tmp_path / "whole", {}, seed=0) as folder:
        run(settings, run=folder, callbacks=[whole])
    first = Counting(at, terminate if how == "terminated" else stop)
    minutes = 10.0 if how == "terminated" else 1e-9  # a checkpoint after every step
    ended, before = Stopped if how == "terminated" else Stop, signal.getsignal(signal.SIGTERM)
    with RunFolder(tmp_path / "cut", {}, seed=0) as folder, pytest.raises(ended):
        run(settings, run=folder, callbacks=[first], checkpoint_minutes=minutes)
    assert signal.getsignal(signal.SIGTERM) is before
    second = Counting()
    with RunFolder(tmp_path / "cut", {}, seed=0, resume=True) as folder:
        run(settings, run=folder, callbacks=[second], resume=True)
    repeated = 0 if how == "terminated" else 1  # the killed step had ended, but not its checkpoint
    assert first.steps + second.steps == whole.steps + repeated
    a, b = (load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("whole", "cut"))
    assert torch.equal(a["alpha_history"], b["alpha_history"])
    assert all(torch.equal(a["supergraph"][key], b["supergraph"][key]) for key in a["supergraph"])
    for one, other in zip(a["history"], b["history"], strict=True):
        del one["seconds"], other["seconds"]
        assert one == pytest.approx(other, rel=0, abs=0, nan_ok=True)


def test_a_stopped_command_ends_with_75_and_goes_on(tmp_path: Path) -> None:
    """As a scheduler does it, from outside."""
    asked = [sys.executable, "-m", "nas", "search", "--space", "digits", "--data", "digits", "--flops", "0.2M"]
    asked += ["--epochs", "3", "--images", "300", "--threads", "1", "--resume"]
    metrics = tmp_path / "cut" / "metrics.csv"
    with subprocess.Popen([*asked, "--out", str(tmp_path / "cut")], stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not metrics.is_file():
            time.sleep(0.05)
        process.terminate()
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait() == 75, said
    assert (
        said.splitlines()[-1].startswith("nas: stopped in epoch") and "the same command goes on, with --resume" in said
    )
    for name in ("cut", "whole"):
        subprocess.run([*asked, "--out", str(tmp_path / name)], check=True, capture_output=True)
    first, second = ((tmp_path / name / "alpha.csv").read_text() for name in ("cut", "whole"))
    assert first == second


def test_a_search_on_some_classes_counts_all(tmp_path: Path) -> None:
    from nas.searching import search as search_by_name

    out = tmp_path / "run"
    found = search_by_name("digits", "digits", flops="0.2M", classes=3, epochs=1, images=60, out=out)
    assert found.cost == cost(found.architecture, num_classes=10, in_channels=1)
    stored = load_checkpoint(out / "checkpoint.pt")["supergraph"]
    assert len(stored["classifier.weight"]) == 3
    assert json.loads((out / "config.json").read_text())["config"]["classes"] == 3


@pytest.mark.parametrize("text", ["{}", "[]", '{"cost": {"flops": "many"}, "argmax_cost": {}, "repaired": false}', "{"])
def test_a_damaged_result_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(UserError, match=r"result\.json"):
        read_result(tmp_path)
