"""One command at a time writes to a folder, and the lock ends with whoever held it."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import options

from segue import disk
from segue.disk import alone_in
from segue.errors import UsageError

HOLDS = """
import sys, time
from pathlib import Path
from segue.disk import alone_in
with alone_in(Path(sys.argv[1])):
    print("in", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "PATIENCE", 0.0)


def holding(folder: Path) -> "subprocess.Popen[str]":
    """Another process that is in the folder."""
    other = subprocess.Popen([sys.executable, "-c", HOLDS, str(folder)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "in\n"
    return other


@pytest.mark.usefixtures("impatient")
def test_a_second_command_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    other = holding(tmp_path / "new")
    with pytest.raises(UsageError, match="another segue command is writing to"), alone_in(tmp_path / "new"):
        pass
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    with alone_in(tmp_path / "new"):
        pass
    assert not any((tmp_path / "new").iterdir())


@pytest.mark.usefixtures("impatient")
def test_a_child_that_outlives_the_block_holds_nothing(tmp_path: Path) -> None:
    with alone_in(tmp_path):
        if not (child := os.fork()):
            signal.pause()
    try:
        with alone_in(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_train_predict_and_export_leave_a_folder_alone_that_another_writes_to(
    segue: Callable[..., tuple[int, str, str]], dataset: Path, tmp_path: Path
) -> None:
    train = ("train", dataset, "--method", "supervised", *options(steps=1))
    run, new, out = tmp_path / "run", tmp_path / "new", tmp_path / "out"
    assert segue(*train, "--out", run)[0] == 0
    others = [holding(folder) for folder in (run, new, out)]
    try:
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        for words in (
            (*train, "--out", run),
            (*train, "--out", new),
            ("predict", run, dataset / "images", "--out", out),
            ("export", run, "--verify", dataset, "--out", out),
        ):
            status, _, errors = segue(*words)
            assert (status, "another segue command is writing to" in errors) == (2, True), (words, errors)
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    finally:
        for other in others:
            other.kill()
            other.wait()
