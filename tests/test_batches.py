"""Processes that load: what happens when one dies, hangs or meets a file that cannot be read."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset

from segue.batches import WorkerError, endless, name_of_sample
from segue.errors import DataError


class Fatal(Dataset[dict[str, Any]]):
    """Twelve samples, one of which does something terrible, as often as ``flag`` has not seen it happen."""

    def __init__(self, what: str, flag: Path, times: int = 1) -> None:
        self.what, self.flag, self.times = what, flag, times
        self.pairs = [SimpleNamespace(image=Path(f"images/{i}.png")) for i in range(12)]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        seen = self.flag.read_text() if self.flag.exists() else ""
        if index == 7 and len(seen) < self.times:
            self.flag.write_text(seen + "x")
            if self.what == "refuse":
                raise DataError("images/7.png is empty")
            if self.what == "hang":
                time.sleep(30)
            os.kill(os.getpid(), signal.SIGKILL)
        return {"image": torch.rand(2), "index": index}


def drawn(dataset: Dataset[Any], workers: int, **options: Any) -> list[dict[str, Any]]:
    return list(itertools.islice(endless(dataset, 3, seed=1, workers=workers, **options), 6))


@pytest.mark.parametrize(("what", "options"), [("kill", {}), ("hang", {"timeout": 1.0})])
def test_a_worker_that_dies_or_hangs_once_is_named_and_no_batch_is_lost(
    what: str, options: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match=r"images/7\.png") as told:
        found = drawn(Fatal(what, tmp_path / "flag"), 2, **options)
    told_of = str(told[0].message)
    assert ("SIGKILL" in told_of) if what == "kill" else ("nothing for 1 s" in told_of)
    assert "going on with 1 of 2 loading processes" in told_of
    expected = drawn(Fatal("nothing", tmp_path / "none", times=0), 0)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one["index"], other["index"])
        assert torch.equal(one["image"], other["image"])


def test_a_worker_that_dies_twice_stops_the_run_with_what_to_do(tmp_path: Path) -> None:
    with pytest.warns(UserWarning), pytest.raises(WorkerError, match=r"images/7\.png.*--workers 0"):
        drawn(Fatal("kill", tmp_path / "flag", times=9), 2)


@pytest.mark.slow
def test_processes_that_load_leave_no_temporary_folder(tmp_path: Path) -> None:
    """In a process of its own, for such folders are removed when it ends."""
    code = (
        "import test_batches as t, pathlib as p, glob, tempfile\n"
        "found = t.drawn(t.Fatal('nothing', p.Path('none'), times=0), 2)\n"
        "print(len(glob.glob(tempfile.gettempdir() + '/pymp-*')))"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), list(tmp_path.iterdir())) == ("1", [])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_that_cannot_be_loaded_is_the_same_line_with_and_without_processes(
    workers: int, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as told:
        drawn(Fatal("refuse", tmp_path / "flag", times=9), workers)
    assert str(told.value) == "images/7.png is empty"


def test_samples_of_joined_sets_are_named_by_their_own_file(tmp_path: Path) -> None:
    one, other = Fatal("", tmp_path), Fatal("", tmp_path)
    other.pairs = [SimpleNamespace(image=Path("more/0.png"))]
    joined: ConcatDataset[Any] = ConcatDataset([one, other])
    assert [name_of_sample(joined, i) for i in (0, 11, 12)] == ["images/0.png", "images/11.png", "more/0.png"]
