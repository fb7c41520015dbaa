"""Spaces that workers of another process load by `module:function`."""

import os
from pathlib import Path

from search_spaces.rows import Row, space_of_rows
from search_spaces.space import SearchSpace

MARKER = "SPACE_WITH_ONE_KILL"  # names a file; where it is missing the second worker makes it and dies


def tiny() -> SearchSpace:
    """Two blocks for 16 x 16 images; see `MARKER`."""
    marker = Path(os.environ[MARKER]) if MARKER in os.environ else None
    if marker is not None and os.environ.get("RANK") == "1" and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), 9)
    rows = [Row(block=("ir_k3_hs", "skip"), expansion=(1, 2), width=(8, 12)) for _ in range(2)]
    return space_of_rows("tiny", rows, resolutions=(16,), stem_width=8, head_width=16, head_expansion=2.0)
