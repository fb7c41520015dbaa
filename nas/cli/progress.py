"""Progress of searches and trainings on the terminal: a bar with an estimate, or a line an epoch where there is no terminal."""

import math
import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from search_spaces.limits import format_quantity


class ProgressBar:
    """Callback for both loops; use as a context manager.

    Args:
        title: shown in front.
        quantity: what ``expected`` of a search counts.
        seconds: between lines at least, where epochs are short.
    """

    def __init__(self, title: str, quantity: str = "flops", seconds: float = 0.0) -> None:
        self.title, self.quantity, self.seconds = title, quantity, seconds
        self.due = time.monotonic() + seconds
        self.console = Console(stderr=True)
        self.interactive = self.console.is_terminal
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.interactive,
            transient=True,
        )
        self.task = self.progress.add_task(title, total=None, numbers="")
        self.phase = ""

    def __enter__(self) -> Self:
        self.progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.progress.__exit__(kind, error, traceback)

    def on_step_end(self, state: Any) -> None:
        """One step of either loop."""
        if not self.interactive:
            return
        searching, epochs = _loop(state)
        label = f"{self.title}: {'search' if searching else 'train'}"
        if label != self.phase:
            self.phase = label
            self.progress.reset(self.task, description=label, total=epochs)
        numbers = [f"epoch {state.epoch + 1}/{epochs}", f"loss {state.loss:.3f}"]
        if searching:
            numbers += [f"accuracy {state.accuracy:.1f}%", f"tau {state.tau:.2f}"]
            if not math.isnan(state.expected):
                numbers.append(f"expected {format_quantity(state.expected)} {self.quantity}")
        done = state.epoch + (state.step + 1) / state.steps
        self.progress.update(self.task, completed=done, numbers="  ".join(numbers))

    def on_epoch_end(self, state: Any) -> None:
        """One line an epoch where no bar can be drawn."""
        if self.interactive or time.monotonic() < self.due:
            return
        self.due = time.monotonic() + self.seconds
        searching, epochs = _loop(state)
        shown = " ".join(
            f"{key}={format_quantity(value) if abs(value) >= 1000 else f'{value:.4g}'}"
            for key, value in state.row.items()
            if key != "epoch" and not math.isnan(value)
        )
        line = f"{self.title}: {'search' if searching else 'train'} epoch {state.epoch + 1}/{epochs} {shown}"
        self.console.print(line, soft_wrap=True, highlight=False)


def _loop(state: Any) -> tuple[bool, int]:
    """Whether the state is a search's, and its number of epochs."""
    searching = hasattr(state, "tau")
    return searching, state.config.epochs if hasattr(state, "config") else state.recipe.last_epoch
