"""What a long study keeps survives kills and goes on elsewhere."""

from pathlib import Path

import pytest

from benchmarks.ledger import Ledger
from search_spaces.errors import UserError


def test_pieces_are_found_again_by_what_decides_them(tmp_path: Path) -> None:
    path = tmp_path / "new" / "runs.jsonl"
    ledger = Ledger(path)
    assert len(ledger) == 0 and {"seed": 0} not in ledger
    ledger.add({"kind": "search", "seed": 0}, {"accuracy": 1.5, "rows": [1, 2]})
    ledger.add({"kind": "search", "seed": 1}, 2.5)
    for known in (ledger, Ledger(path)):
        assert len(known) == 2
        assert known[{"seed": 0, "kind": "search"}] == {"accuracy": 1.5, "rows": [1, 2]}  # in any order of the names
        assert {"kind": "search", "seed": 2} not in known
    Ledger(path).add({"seed": 3}, 3.5)
    assert Ledger(path)[{"seed": 3}] == 3.5 and len(Ledger(path)) == 3


def test_a_line_cut_short_by_a_kill_is_left_out_and_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    Ledger(path).add({"seed": 0}, "whole")
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"key": {"seed": 1}, "value": "a very long one that was being writt')
    ledger = Ledger(path)
    assert len(ledger) == 1
    ledger.add({"seed": 2}, 1)
    assert path.read_bytes() == whole + b'{"key": {"seed": 2}, "value": 1}\n'
    path.write_bytes(b"[]\n" + whole)
    with pytest.raises(UserError, match="is no finished piece of a study"):
        Ledger(path)
