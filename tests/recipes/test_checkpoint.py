import errno
import os
import pickle
import re
import resource
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from recipes.checkpoint import (
    load_checkpoint,
    load_latest_checkpoint,
    previous_checkpoint,
    require_room,
    save_checkpoint,
)
from search_spaces.errors import UserError


class Bomb:
    """Creates a file when unpickled by a careless reader."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_round_trip(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"weights": {"a": torch.arange(3.0)}, "history": [{"epoch": 0, "lr": 0.1}], "ema": None})
    state = load_checkpoint(path)
    assert state["weights"]["a"].tolist() == [0, 1, 2]
    assert state["history"] == [{"epoch": 0, "lr": 0.1}]
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_truncated_file_is_named(tmp_path, share):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"weights": torch.zeros(1000)})
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match=re.escape(f"{path} is damaged or not a checkpoint")) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_nothing_in_a_file_is_run(tmp_path, writer):
    path, harm = tmp_path / "checkpoint.pt", tmp_path / "harm"
    if writer == "torch":
        torch.save({"model": Bomb(harm)}, path)
    else:
        path.write_bytes(pickle.dumps({"model": Bomb(harm)}))
    with pytest.raises(UserError, match="is damaged or not a checkpoint"):
        load_checkpoint(path)
    assert not harm.exists()
    pickle.loads(pickle.dumps(Bomb(harm)))  # the bomb works
    assert harm.exists()


def test_other_content_and_missing_file(tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match="it holds a list"):
        load_checkpoint(tmp_path / "list.pt")
    with pytest.raises(UserError, match="No such file"):
        load_checkpoint(tmp_path / "none.pt")
    with pytest.raises(UserError, match="cannot write"):
        save_checkpoint(tmp_path / "none" / "checkpoint.pt", {})


def test_full_disk_keeps_the_checkpoint_before(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"epoch": 1})
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .* File too large; the checkpoint before it is kept"):
            save_checkpoint(path, {"epoch": 2, "weights": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert load_checkpoint(path) == {"epoch": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_the_one_before_is_kept_and_read_where_the_last_is_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "checkpoint.pt"
    for number in range(3):
        save_checkpoint(path, {"number": number}, keep_previous=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["checkpoint-previous.pt", "checkpoint.pt"]
    assert load_checkpoint(previous_checkpoint(path)) == {"number": 1}
    assert load_latest_checkpoint(path) == {"number": 2} and not caplog.records
    path.write_bytes(path.read_bytes()[:50])
    assert load_latest_checkpoint(path) == {"number": 1} and "going on from" in caplog.text
    previous_checkpoint(path).unlink()
    with pytest.raises(UserError, match="is damaged"):
        load_latest_checkpoint(path)


def test_disks_without_links_keep_the_one_before_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    path = tmp_path / "checkpoint.pt"
    for number in range(3):
        save_checkpoint(path, {"number": number}, keep_previous=True)
    assert load_checkpoint(path) == {"number": 2} and load_checkpoint(previous_checkpoint(path)) == {"number": 1}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["checkpoint-previous.pt", "checkpoint.pt"]

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(UserError, match="No space left on device; the checkpoint before it is kept"):
        save_checkpoint(path, {"number": 3}, keep_previous=True)
    assert load_checkpoint(path) == {"number": 2}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["checkpoint-previous.pt", "checkpoint.pt"]


def test_a_disk_too_full_is_noticed_before_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.pt"
    require_room(path, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5e6))
    require_room(path, 1_600_000)
    with pytest.raises(UserError, match=r"checkpoints of 2 MB need 6 MB in .*, 5 MB are free"):
        require_room(path, 2_000_000)
    path.write_bytes(bytes(2_000_000))  # there already: two more are needed
    require_room(path, 2_000_000)
    previous_checkpoint(path).write_bytes(bytes(2_000_000))
    require_room(path, 3_000_000)
    with pytest.raises(UserError, match=r"checkpoints of 4 MB need 8 MB in .*, 5 MB are free"):
        require_room(path, 4_000_000)
