"""Pictures and TensorBoard events of a run while it goes on: callbacks for the search loop and for the training loop.

They only show; whatever goes wrong with them is logged, and the run goes on. No torch here before it is needed.
"""

import importlib.util
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nas.reporting.architecture_picture import architecture_picture
from nas.reporting.charts import chart
from nas.reporting.curves import panels
from nas.reporting.heatmap import heat_map, histories
from nas.reporting.runs import read_run
from search_spaces.serialisation import write_text_atomic

logger = logging.getLogger(__name__)

CURVES, NETWORK, HEAT_MAP = "curves.svg", "architecture.svg", "alpha.svg"
SHARE = 0.01  # of the run's time that drawing may take before its end


def draw_run(path: str | Path) -> list[Path]:
    """Write the pictures of a run folder: its curves, its network, alpha over time, each where there is something to show.

    Args:
        path: the folder.

    Returns:
        The files.

    Raises:
        UserError: no run folder, a damaged file, or no room.
    """
    run = read_run(path)
    figures = {}
    if shown := panels(run):
        title = f"Curves of {run.name}"
        figures[CURVES] = chart(shown, title, "; ".join(panel.title for panel in shown), columns=3)
    if run.architecture is not None:
        figures[NETWORK] = architecture_picture(run.architecture, resolution=run.resolution)
    if variables := histories(run.alpha, run.choices):
        figures[HEAT_MAP] = heat_map(variables, f"Alpha of {run.name} over time")
    files = {run.path / name: figure.file() for name, figure in figures.items()}
    for file, text in files.items():
        write_text_atomic(file, text)
    return list(files)


class Pictures:
    """Draws the pictures of a run after its epochs, as often as takes a hundredth of the time.

    Args:
        path: the run folder.
        clock: in seconds.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.path, self.clock = path, clock
        self.due = -math.inf

    def on_step_end(self, state: Any) -> None:
        """Nothing."""

    def on_epoch_end(self, state: Any) -> None:
        """Draw, if it is time; metrics.csv and alpha.csv have their rows by now."""
        started = self.clock()
        if started >= self.due:
            self.draw()
            self.due = self.clock() + (self.clock() - started) / SHARE

    def draw(self) -> None:
        """Draw now."""
        with _harmless("pictures of %s", self.path):
            draw_run(self.path)


class Events:
    """Writes the numbers of every epoch as TensorBoard scalars, called as the columns of metrics.csv; needs `tensorboard`.

    Args:
        path: folder of the event files: the run's own, so that `tensorboard --logdir runs` calls it by its name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writer: Any = None
        self.broken = False  # told once, then left

    def on_step_end(self, state: Any) -> None:
        """Nothing."""

    def on_epoch_end(self, state: Any) -> None:
        """Write; epochs that an earlier process wrote and did not save are replaced."""
        if self.broken:
            return
        self.broken = True
        with _harmless("TensorBoard events in %s", self.path):
            if self.writer is None:
                from torch.utils.tensorboard import SummaryWriter  # 1 s to import

                self.writer = SummaryWriter(str(self.path), purge_step=state.epoch)
            for name, value in state.row.items():
                if name != "epoch" and math.isfinite(value):
                    self.writer.add_scalar(name, value, state.epoch)
            self.writer.flush()
            self.broken = False

    def close(self) -> None:
        """End the file."""
        with _harmless("TensorBoard events in %s", self.path):
            if self.writer is not None:
                self.writer.close()


@contextmanager
def shown_live(path: Path | None) -> Iterator[list[Any]]:
    """Callbacks that show a run in its folder; on leaving without an error the pictures are drawn a last time.

    Args:
        path: the run folder; None for a run without one, which has no such callbacks.
    """
    if path is None:
        yield []
        return
    pictures = Pictures(path)
    events = [Events(path)] if has_tensorboard() else []
    try:
        yield [pictures, *events]
        pictures.draw()
    finally:
        for writer in events:
            writer.close()


def has_tensorboard() -> bool:
    """Whether the extra is installed."""
    return importlib.util.find_spec("tensorboard") is not None


@contextmanager
def _harmless(what: str, *values: object) -> Iterator[None]:
    """What a run needs not must not end it: a full disk, a damaged file, a library of the wrong version."""
    try:
        yield
    except Exception as error:
        logger.warning(f"{what} not written: %s: %s", *values, type(error).__name__, error)
