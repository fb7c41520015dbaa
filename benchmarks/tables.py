"""What all benchmark scripts share: the table on the terminal, the CSV file, and where it was measured."""

import argparse
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
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
    table = pd.DataFrame(list(rows))
    path.parent.mkdir(parents=True, exist_ok=True)
    table.assign(**provenance()).to_csv(path, index=False, float_format="%.6g")
    print(table.to_string(index=False, float_format="%.4g"))
    print(f"written to {path}")
