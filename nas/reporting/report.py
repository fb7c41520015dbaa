"""``nas.report``: run folders to one page that needs nothing else."""

from collections.abc import Sequence
from pathlib import Path

from nas.reporting.page import page
from nas.reporting.runs import KINDS, find_runs, read_run
from search_spaces.errors import UserError
from search_spaces.serialisation import require, write_text_atomic

REPORT = "report.html"


def report(runs: str | Path | Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Gather runs into one HTML page: results, pictures, curves, configurations, commands; several side by side.

    Args:
        runs: run folders of `nas search`, `nas train`, `nas nars` and `nas query`, ended or not; a folder of such folders
            stands for all in it.
        out: the page; default ``report.html`` in the folder, or for several runs in the present one. It is written whole or
            not at all, over an older report.

    Returns:
        Where the page is.

    Raises:
        UserError: no run folder, a damaged file in one, or a page that cannot be written.
    """
    paths = [runs] if isinstance(runs, (str, Path)) else list(runs)
    one = len(paths) == 1
    found = [read_run(path) for path in find_runs(paths)]
    if one:  # a folder of runs: in the order of the work
        found.sort(key=lambda run: KINDS.index(run.kind))
    path = Path(out) if out is not None else (Path(paths[0]) / REPORT if one else Path(REPORT))
    require(path.suffix in (".html", ".htm"), f"--out {path}: a report is a .html file")
    require(not path.is_dir(), f"--out {path} is a folder")
    require(path.parent.is_dir(), f"--out {path}: there is no folder {path.parent}")
    try:
        write_text_atomic(path, page(found))
    except RecursionError as error:
        raise UserError(f"{', '.join(map(str, paths))}: a file is nested too deeply") from error
    except UserError as error:
        if out is None:
            raise UserError(f"{error}; choose another place with --out") from error
        raise
    return path
