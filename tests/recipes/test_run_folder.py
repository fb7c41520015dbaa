import json
import logging
import os
import re
import signal
import subprocess
import sys

import pytest

from recipes import run_folder
from recipes.run_folder import RunFolder, first_difference, read_config, versions
from search_spaces.errors import UserError

CONFIG = {"recipe": {"lr": 0.1, "epochs": 4}, "data": "digits"}
HOLD = """
import sys
from recipes.run_folder import RunFolder
with RunFolder(sys.argv[1], {}, seed=0):
    print("held", flush=True)
    sys.stdin.read()
"""


def made(path, **options):
    with RunFolder(path, CONFIG, seed=3, command=["nas", "train"], **options) as run:
        run.append_metrics({"epoch": 0})
    return run


def test_config_holds_everything(tmp_path):
    made(tmp_path / "a" / "b")
    stored = read_config(tmp_path / "a" / "b")
    assert (stored["config"], stored["seed"], stored["command"]) == (CONFIG, 3, ["nas", "train"])
    assert stored["versions"] == versions()
    assert set(stored["versions"]) == {"python", "toolkit", "torch", "torchvision", "numpy"}
    with pytest.raises(UserError, match="is not a run folder"):
        read_config(tmp_path)


def test_second_use_needs_resume(tmp_path):
    made(tmp_path / "run")
    before = sorted((tmp_path / "run").iterdir())
    with pytest.raises(UserError, match="already holds a run; use --resume to continue it or choose another folder"):
        made(tmp_path / "run")
    assert sorted((tmp_path / "run").iterdir()) == before
    made(tmp_path / "run", resume=True)


def test_resume_of_nothing_starts(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".lock").touch()  # a start that was killed at once
    (tmp_path / "empty" / ".config.json.17.tmp").touch()
    made(tmp_path / "empty", resume=True)
    assert sorted(entry.name for entry in (tmp_path / "empty").iterdir()) == [".lock", "config.json", "metrics.csv"]
    made(tmp_path / "new", resume=True)


@pytest.mark.parametrize(
    ("config", "seed", "message"),
    [
        ({**CONFIG, "recipe": {"lr": 0.2, "epochs": 5}}, 3, "recipe.lr was 0.1, now 0.2"),
        ({"recipe": CONFIG["recipe"]}, 3, "data was 'digits', now nothing"),
        ({**CONFIG, "more": 1}, 3, "more was nothing, now 1"),
        (CONFIG, 4, "seed was 3, now 4"),
    ],
)
def test_another_config_is_refused_by_its_first_key(tmp_path, config, seed, message):
    made(tmp_path / "run")
    with (
        pytest.raises(UserError, match=re.escape(f"run holds another run: {message};")),
        RunFolder(tmp_path / "run", config, seed=seed, resume=True),
    ):
        pass


def test_other_versions_only_warn(tmp_path, monkeypatch, caplog):
    made(tmp_path / "run")
    monkeypatch.setattr(run_folder, "versions", lambda: {**versions(), "torch": "0.1"})
    with caplog.at_level(logging.WARNING):
        made(tmp_path / "run", resume=True)
    assert re.search(r"was started with torch \S+, now 0\.1", caplog.text)


def test_one_writer_at_a_time(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        for resume in (False, True):
            with (
                pytest.raises(UserError, match="run is in use by another process"),
                RunFolder(tmp_path / "run", {}, seed=0, resume=resume),
            ):
                pass
        holder.kill()  # the lock goes with the process
        holder.wait()
        with RunFolder(tmp_path / "run", {}, seed=0, resume=True):
            pass
    finally:
        holder.kill()
        holder.communicate()


FORK = """
import multiprocessing, os, sys, time
from recipes.run_folder import RunFolder
with RunFolder(sys.argv[1], {}, seed=0):
    reading, writing = os.pipe()
    child = multiprocessing.get_context("fork").Process(target=lambda: (os.write(writing, b"."), time.sleep(60)))
    child.start()
    os.read(reading, 1)  # it has begun
    print(child.pid, flush=True)
    os.kill(os.getpid(), 9)
"""


def test_a_forked_process_does_not_keep_the_lock_of_a_killed_one(tmp_path):
    """As processes that read images do for some seconds."""
    done = subprocess.Popen([sys.executable, "-c", FORK, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    child = int(done.stdout.readline())
    assert done.wait() == -signal.SIGKILL
    try:
        with RunFolder(tmp_path / "run", {}, seed=0, resume=True):
            os.kill(child, 0)  # it still lives
    finally:
        os.kill(child, signal.SIGKILL)
        done.stdout.close()


def test_an_early_error_leaves_no_trace(tmp_path):
    with pytest.raises(UserError, match="bad input"), RunFolder(tmp_path / "a" / "b", CONFIG, seed=0) as run:
        run.recipe.write_text("{}")
        raise UserError("bad input")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="bad input"), RunFolder(tmp_path / "mine", CONFIG, seed=0):
        raise UserError("bad input")
    assert list((tmp_path / "mine").iterdir()) == []


@pytest.mark.parametrize("name", ["metrics.csv", "checkpoint.pt", "trials.sqlite"])
def test_an_error_after_a_result_keeps_it(tmp_path, name):
    with pytest.raises(UserError, match="later"), RunFolder(tmp_path / "run", CONFIG, seed=0) as run:
        (run.path / name).touch()
        raise UserError("later")
    assert {"config.json", name} <= {entry.name for entry in run.path.iterdir()}


def test_unusable_folders_are_named(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").touch()
    for path, message in [
        (tmp_path / "file", "is a file; a run needs a folder"),
        (tmp_path / "file" / "run", "cannot use .* Not a directory"),
        (tmp_path / "photos", "is not empty and holds no run; choose another folder"),
    ]:
        for resume in (False, True):
            with pytest.raises(UserError, match=message):
                made(path, resume=resume)
    assert [entry.name for entry in (tmp_path / "photos").iterdir()] == ["cat.png"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_parent(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match=r"cannot use .* Permission denied"):
        made(tmp_path / "run")
    tmp_path.chmod(0o700)


def test_damaged_config(tmp_path):
    run = made(tmp_path / "run")
    run.config.write_text(json.dumps({"seed": 0}))
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        made(tmp_path / "run", resume=True)


@pytest.mark.parametrize("damaged", [3, ["torch"], {"torch": 2}, None])
def test_damaged_versions(tmp_path, damaged):
    run = made(tmp_path / "run")
    run.config.write_text(json.dumps(json.loads(run.config.read_text()) | {"versions": damaged}))
    with pytest.raises(UserError, match=r"config\.json is damaged: key 'versions'"):
        made(tmp_path / "run", resume=True)


def test_leftovers_of_any_writer_go(tmp_path):
    run = made(tmp_path / "run")
    (run.path / ".model.pt.77.tmp").write_text("half")
    (run.path / ".folder.tmp").mkdir()
    made(tmp_path / "run", resume=True)
    assert not (run.path / ".model.pt.77.tmp").exists() and (run.path / ".folder.tmp").is_dir()


@pytest.mark.parametrize("epochs_done", [0, 2])
def test_metrics_that_are_a_folder(tmp_path, epochs_done):
    with RunFolder(tmp_path / "run", {}, seed=0) as run:
        run.metrics.mkdir()
        with pytest.raises(UserError, match=r"metrics\.csv is damaged: it must be a file"):
            run.truncate_metrics(epochs_done)
        with pytest.raises(UserError, match=r"cannot write .*metrics\.csv"):
            run.append_metrics({"epoch": 0})


def test_first_difference_goes_by_stored_order():
    assert first_difference({"a": 1, "b": {"c": [1, 2]}}, {"b": {"c": [1, 3]}, "a": 1}) == ("b.c", [1, 2], [1, 3])
    assert first_difference({"a": {}}, {"a": {}}) is None


def test_metrics_survive_a_torn_line(tmp_path):
    with RunFolder(tmp_path / "run", {}, seed=0) as run:
        run.truncate_metrics(0)
        for epoch in range(4):
            run.append_metrics({"epoch": epoch, "loss": 0.1 + 0.2})
        with pytest.raises(ValueError, match="columns must be epoch,loss, got epoch"):
            run.append_metrics({"epoch": 4})
        whole = run.metrics.read_text()
        assert whole == "epoch,loss\n" + "".join(f"{epoch},0.30000000000000004\n" for epoch in range(4))
        run.metrics.write_bytes(whole.encode()[:-3])
        run.truncate_metrics(4)
        assert run.metrics.read_text() == "".join(whole.splitlines(keepends=True)[:4])
        run.truncate_metrics(2)
        run.append_metrics({"epoch": 2, "loss": 1.0})
        assert run.metrics.read_text().splitlines()[2:] == ["1,0.30000000000000004", "2,1.0"]
        run.truncate_metrics(0)
        assert not run.metrics.exists()
