"""Callbacks whose state belongs to a run are kept in its checkpoint."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from recipes.checkpoint import load_checkpoint, save_checkpoint
from recipes.recipe import Recipe
from recipes.run_folder import RunFolder
from recipes.tensor_source import TensorSource
from recipes.trainer import Callback, Stateful, TrainState, fit
from search_spaces.errors import UserError

RECIPE = Recipe(name="plain", epochs=4, batch_size=16, lr=0.1)


class Counts(Callback):
    """Remembers how many steps there were, and a sum of weights an epoch; may end the training as a kill does."""

    def __init__(self, kill_in: int | None = None) -> None:
        self.steps, self.sums, self.kill_in = 0, torch.zeros(0), kill_in

    def on_step_end(self, state: TrainState) -> None:
        self.steps += 1
        if state.epoch == self.kill_in:
            raise KeyboardInterrupt

    def on_epoch_end(self, state: TrainState) -> None:
        total = torch.stack([p.detach().sum() for p in state.model.parameters()]).sum()
        self.sums = torch.cat([self.sums, total[None]])

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "sums": self.sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps, self.sums = state["steps"], state["sums"]


def trained(out: Path, *callbacks: Callback, resume: bool = False) -> None:
    images = torch.randint(0, 256, (64, 4, 4, 1), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    source = TensorSource(images, (images[:, 0, 0, 0] > 127).long(), mean=(0.5,), std=(0.3,))
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.1)
    with RunFolder(out, {}, seed=0, resume=resume) as run:
        fit(model, source, None, RECIPE, resolution=4, seed=0, run=run, callbacks=callbacks, resume=resume)


def test_a_callback_goes_on_where_it_was(tmp_path: Path) -> None:
    whole, cut, resumed = Counts(), Counts(kill_in=2), Counts()
    trained(tmp_path / "whole", whole)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "cut", Stateless(), cut)
    assert load_checkpoint(tmp_path / "cut" / "checkpoint.pt")["callbacks"][0]["steps"] == 8  # not that of epoch 2
    trained(tmp_path / "cut", Stateless(), resumed, resume=True)
    assert (whole.steps, resumed.steps) == (16, 16)
    assert torch.equal(whole.sums, resumed.sums) and len(resumed.sums) == 4


class Stateless(Callback):
    """Has no state."""


def test_callbacks_without_state_are_not_kept(tmp_path: Path) -> None:
    assert isinstance(Counts(), Stateful) and not isinstance(Stateless(), Stateful)
    trained(tmp_path / "run", Stateless())
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt")["callbacks"] == []


@pytest.mark.parametrize(
    ("change", "callbacks", "words"),
    [
        ({}, [Counts(), Counts()], "it holds the state of 1 callbacks, here are 2"),
        ({}, [], "it holds the state of 1 callbacks, here are 0"),
        ({"callbacks": [{}]}, [Counts()], "key 'steps' is missing"),
        ({"callbacks": 3}, [Counts()], "does not fit this network"),
    ],
)
def test_other_callbacks_than_the_checkpoints(
    change: dict[str, Any], callbacks: list[Callback], words: str, tmp_path: Path
) -> None:
    trained(tmp_path / "run", Counts())
    path = tmp_path / "run" / "checkpoint.pt"
    save_checkpoint(path, {**load_checkpoint(path), **change})
    with pytest.raises(UserError, match=words):
        trained(tmp_path / "run", *callbacks, resume=True)


def test_a_checkpoint_from_before_they_were_kept(tmp_path: Path) -> None:
    trained(tmp_path / "run")
    path = tmp_path / "run" / "checkpoint.pt"
    state = load_checkpoint(path)
    assert state.pop("callbacks") == []
    save_checkpoint(path, state)
    trained(tmp_path / "run", resume=True)
    with pytest.raises(UserError, match="state of 0 callbacks, here are 1"):
        trained(tmp_path / "run", Counts(), resume=True)
