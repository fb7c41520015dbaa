"""What is told of a search while it runs: the state that callbacks see, the sums of an epoch, and `alpha.csv`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from search_spaces.options import option_text
from search_spaces.serialisation import write_text_atomic
from search_spaces.space import SearchSpace
from supernets.config import SearchConfig

ALPHA = "alpha.csv"


@dataclass(kw_only=True)
class SearchState:
    """What callbacks see."""

    config: SearchConfig
    steps: int  # an epoch: of the weights, and of alpha once it learns
    epoch: int = 0  # counted from 0
    step: int = 0  # within the epoch, counted from 0
    phase: str = "weights"
    loss: float = math.nan  # cross entropy of the last step
    accuracy: float = math.nan  # in percent, of the phase so far
    tau: float = math.nan
    expected: float = math.nan  # expected cost in the budget's quantity
    row: dict[str, float] = field(default_factory=dict)  # of the last finished epoch, as in metrics.csv


class SearchCallback(Protocol):
    """Called during a search; subclass it and override what is needed."""

    def on_step_end(self, state: SearchState) -> None:
        """After every step."""

    def on_epoch_end(self, state: SearchState) -> None:
        """After every epoch, before its checkpoint is written."""


@dataclass(kw_only=True, slots=True)
class Partial:
    """How far an epoch is.

    Attributes:
        phase: ``"weights"`` or ``"alpha"``.
        steps: done in the phase.
        loss: sum of the cross entropy over the images of the phase.
        correct: of these.
        seen: images.
        row: of the phase before, as in metrics.csv.
        seconds: CPU time of the epoch so far.
    """

    phase: str = "weights"
    steps: int = 0
    loss: float = 0.0
    correct: int = 0
    seen: int = 0
    row: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    def means(self) -> dict[str, float]:
        """Mean cross entropy and accuracy in percent of the phase; NaN where it had no steps."""
        loss, accuracy = (self.loss / self.seen, 100 * self.correct / self.seen) if self.seen else (math.nan, math.nan)
        return {f"{self.phase}_loss": loss, f"{self.phase}_accuracy": accuracy}


def write_alpha(folder: Path, space: SearchSpace, history: Sequence[Tensor]) -> None:
    """`alpha.csv`: one row an epoch, one column an option.

    Args:
        folder: of the run.
        space: whose variables name the columns.
        history: logits `(sum of options,)` at the end of each epoch so far, on the CPU; at least one.
    """
    names = [f"{variable.name}={option_text(option)}" for variable in space.variables for option in variable.options]
    table = np.stack([alpha.numpy() for alpha in history])
    lines = [",".join(["epoch", *names])]
    lines += [",".join([str(epoch), *(repr(float(x)) for x in row)]) for epoch, row in enumerate(table)]
    write_text_atomic(folder / ALPHA, "\n".join(lines) + "\n")
