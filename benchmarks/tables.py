"""What all benchmark scripts share: the table on the terminal, the CSV file, and where it was measured."""

import argparse
import csv
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch


def parser(description: str | None) -> argparse.ArgumentParser:
    """Options that every script takes."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the CSV file")
    made.add_argument("--seed", type=int, default=0)
    return made


def provenance() -> dict[str, str]:
    """Commit, torch version and machine, for the last columns of a table."""
    try:
        done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
        commit = done.stdout.strip()
    except OSError:
        commit = ""
    return {"commit": commit or "unknown", "torch": torch.__version__, "machine": platform.machine()}


def write_table(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Print the rows and write them to ``path``, with provenance columns."""
    if not rows:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0], *provenance()], lineterminator="\n")
        writer.writeheader()
        writer.writerows([{**row, **provenance()} for row in rows])
    shown = [
        {key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in row.items()} for row in rows
    ]
    widths = {key: max(len(key), *(len(row[key]) for row in shown)) for key in shown[0]}
    print("  ".join(f"{key:>{width}}" for key, width in widths.items()))
    for row in shown:
        print("  ".join(f"{row[key]:>{width}}" for key, width in widths.items()))
    print(f"written to {path}")
