"""Checkpoints: kept twice, checked to the last byte, written whole or not at all."""

import contextlib
import errno
import io
import os
import random
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import KILLS, Child
from test_engine import Line, Noise

from segue.engine import Losses, Run, endless, fit
from segue.processes.signals import stoppable
from segue.runs.folder import signed


def weight(folder: Path) -> torch.Tensor:
    return torch.load(folder / "train.pt", weights_only=True)["method"]["layer.weight"]


def train_and_save_each_step(folder: Path, steps: int = 60) -> None:
    torch.manual_seed(0)
    method = Line()
    fit(
        method,
        lambda start: endless(Noise(16), 4, seed=0, start=start),
        run=Run(folder, quiet=True, checkpoint_every=0.0),
        optimizer=torch.optim.SGD(method.parameters(), 0.1),
        steps=steps,
    )


@pytest.mark.slow
@pytest.mark.parametrize("kills", [3, KILLS])
def test_killed_at_random_moments_a_run_ends_as_if_it_had_not_been(kills: int, tmp_path: Path) -> None:
    train_and_save_each_step(tmp_path / "whole")
    draws = random.Random(0)
    folder, killed, whole_lives, steps_lost = tmp_path / "cut", 0, 0, 0
    while killed < kills:
        child = Child(train_and_save_each_step, folder)
        time.sleep(draws.uniform(0.0, 0.6))
        child.signal(signal.SIGKILL)
        if child.status() == -signal.SIGKILL:
            killed += 1
        else:
            assert torch.equal(weight(folder), weight(tmp_path / "whole"))
            whole_lives += 1
            folder = tmp_path / f"cut_{whole_lives}"
        state = Run(folder, quiet=True).checkpoint("train") or {"step": 0}
        written = [line["step"] for line in Run(folder).read_log()]
        steps_lost = max([steps_lost, *(step - state["step"] for step in written)])
    train_and_save_each_step(folder)
    assert torch.equal(weight(folder), weight(tmp_path / "whole"))
    assert steps_lost <= 1
    assert not list(folder.glob(".*.partial"))


def saved_step(folder: Path) -> int:
    return int((Run(folder, quiet=True).checkpoint("train") or {"step": 0})["step"])


@pytest.mark.slow
@pytest.mark.parametrize(("times", "steps"), [(3, 100), (20, 400)])
def test_each_sigterm_saves_and_exits_with_75(times: int, steps: int, tmp_path: Path) -> None:
    train_and_save_each_step(tmp_path / "whole", steps=steps)
    draws = random.Random(1)
    folder, saved, whole_lives = tmp_path / "cut", 0, 0
    while saved < times:
        before = saved_step(folder)
        child = Child(train_and_save_each_step, folder, steps)
        while child.process.is_alive() and saved_step(folder) <= before:
            time.sleep(0.005)
        time.sleep(draws.uniform(0.0, 0.02))
        child.signal(signal.SIGTERM)
        if child.status() == 0:  # it was done before
            whole_lives += 1
            folder = tmp_path / f"cut_{whole_lives}"
            continue
        assert child.status() == 75
        assert saved_step(folder) > before
        saved += 1
    train_and_save_each_step(folder, steps=steps)
    assert torch.equal(weight(folder), weight(tmp_path / "whole"))


class Endless(Line):
    """Its first step never ends."""

    def __init__(self, began: Path) -> None:
        super().__init__()
        self.began = began

    def forward(self, batch: dict[str, Any]) -> Losses:
        self.began.touch()
        time.sleep(60)
        return super().forward(batch)


def train_without_end(folder: Path) -> None:
    method = Endless(folder / "began")
    fit(
        method, lambda start: endless(Noise(16), 4, seed=0, start=start), run=Run(folder / "run", quiet=True),
        optimizer=torch.optim.SGD(method.parameters(), 0.1), steps=2,
    )  # fmt: skip


def test_a_second_signal_does_not_wait_for_the_step(tmp_path: Path) -> None:
    child = Child(train_without_end, tmp_path)
    while not (tmp_path / "began").exists():
        time.sleep(0.01)
    for _ in range(2):
        child.signal(signal.SIGTERM)
        time.sleep(0.1)
    started = time.monotonic()
    assert child.status() == -signal.SIGTERM
    assert time.monotonic() - started < 20


class Signalled(Line):
    """Gets SIGTERM in its last step."""

    def forward(self, batch: dict[str, Any]) -> Losses:
        os.kill(os.getpid(), signal.SIGTERM)
        return super().forward(batch)


def train_signalled(folder: Path) -> None:
    method = Signalled()
    fit(
        method, lambda start: endless(Noise(16), 4, seed=0, start=start), run=Run(folder, quiet=True),
        optimizer=torch.optim.SGD(method.parameters(), 0.1), steps=1,
    )  # fmt: skip


def test_a_signal_in_the_last_step_stops_after_it(tmp_path: Path) -> None:
    """What comes behind a stage, another one or the report, may take hours."""
    assert Child(train_signalled, tmp_path).status() == 75
    state = Run(tmp_path, quiet=True).checkpoint("train")
    assert state is not None
    assert state["done"]


def work_without_steps(folder: Path) -> None:
    with stoppable():
        (folder / "began").touch()
        time.sleep(60)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_outside_steps_ends_with_75_too(tmp_path: Path, number: int) -> None:
    child = Child(work_without_steps, tmp_path)
    while not (tmp_path / "began").exists():
        time.sleep(0.01)
    child.signal(number)
    assert child.status() == 75


def test_what_went_before_a_damaged_checkpoint_is_kept_until_a_good_one_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        Run(tmp_path, quiet=True).save("train", {"step": step})
    (tmp_path / "train.pt").write_bytes(b"damaged")
    run = Run(tmp_path, quiet=True)
    assert run.checkpoint("train") == {"step": 1}

    def full(path: Path, content: memoryview) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr("segue.runs.folder.write_atomically", full)
        run.save("train", {"step": 3})
    assert Run(tmp_path, quiet=True).checkpoint("train") == {"step": 1}
    run.save("train", {"step": 3})
    assert [torch.load(tmp_path / f"train{kept}.pt")["step"] for kept in ("", ".previous")] == [3, 1]


def test_a_change_of_any_byte_is_noticed_and_the_checkpoint_before_is_taken(tmp_path: Path) -> None:
    run = Run(tmp_path, quiet=True)
    for step in (1, 2, 3):
        run.save("train", {"step": step, "weights": torch.full((50,), float(step))})
    path = tmp_path / "train.pt"
    sound = path.read_bytes()
    assert (run.checkpoint("train") or {})["step"] == 3
    for place in range(0, len(sound), 3):
        path.write_bytes(sound[:place] + bytes([sound[place] ^ (1 + place % 255)]) + sound[place + 1 :])
        found = run.checkpoint("train")
        assert found is not None
        assert found["step"] == 2, place
        assert torch.equal(found["weights"], torch.full((50,), 2.0))
    for length in range(0, len(sound), 101):
        path.write_bytes(sound[:length])
        assert (run.checkpoint("train") or {})["step"] == 2, length


def test_with_both_damaged_the_stage_begins_again_and_ends_the_same(tmp_path: Path) -> None:
    train_and_save_each_step(tmp_path / "run", steps=8)
    whole = weight(tmp_path / "run")
    for name in ("train.pt", "train.previous.pt"):
        (tmp_path / "run" / name).write_bytes(b"PK\x03\x04 no longer a checkpoint")
    train_and_save_each_step(tmp_path / "run", steps=8)
    assert torch.equal(weight(tmp_path / "run"), whole)


def save_until_full(folder: Path) -> None:
    run = Run(folder, quiet=True)
    run.save("train", {"fits": torch.zeros(10)})
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # a write beyond fails as on a full disk
    with contextlib.suppress(OSError):
        run.save("train", {"does not": torch.zeros(100_000)})
        os._exit(3)


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    assert Child(save_until_full, folder).status() == 0
    found = Run(folder, quiet=True).checkpoint("train")
    assert found is not None
    assert list(found) == ["fits"]
    assert not list(folder.glob(".*partial"))


@pytest.mark.parametrize("code", ["os.system('touch {marker}')", "open({marker!r}, 'w')"])
def test_a_crafted_checkpoint_runs_no_code(code: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"

    class Payload:
        def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
            return exec, (f"import os; {code.format(marker=str(marker))}",)

    buffer = io.BytesIO()
    torch.save({"step": 1, "method": Payload()}, buffer)
    (tmp_path / "train.pt").write_bytes(signed(buffer.getvalue()))
    assert Run(tmp_path, quiet=True).checkpoint("train") is None
    assert not marker.exists()
