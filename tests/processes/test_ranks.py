"""Several processes: the steps of one, what they agree on, what becomes of the others when one is lost.

The processes are started as ``torchrun`` starts them, by the same variables; where it does more, it is itself run.
"""

import os
import re
import signal
import socket
import sys
import textwrap
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from conftest import Child, torchrun
from test_engine import Noise
from torch import nn

from segue import methods
from segue.cli import main, parser
from segue.config import leaves
from segue.engine import Losses, Method, Run, endless, fit
from segue.processes.ranks import RankError, only_first
from segue.processes.surroundings import join_processes

LONG = 60.0  # seconds that nothing here may take
HERE = Path(__file__).parent


def as_rank(
    rank: int, world: int, port: int, errors: Path, work: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    """Process ``rank`` of ``world``, which says on ``errors`` what it has to say."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip
    file = errors.with_name(f"{errors.name}_{rank}").open("w", buffering=1)
    sys.stderr = file
    os.dup2(file.fileno(), 2)
    work(*arguments)


def start(world: int, errors: Path, work: Callable[..., Any], *arguments: Any) -> list[Child]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [Child(as_rank, rank, world, port, errors, work, arguments) for rank in range(world)]


def ended(children: list[Child]) -> list[int]:
    """Exit statuses, once all have ended; none is left behind."""
    try:
        return [child.status() for child in children]
    finally:
        for child in children:
            child.signal(signal.SIGKILL)


class Normed(Method):
    """A line fitted to pictures, beside batch statistics that each process has of its own images, and their count."""

    counters = ("seen",)

    def __init__(self, pause: float = 0.0) -> None:
        super().__init__()
        self.layer, self.norm, self.pause = nn.Linear(3, 1), nn.BatchNorm1d(3), pause
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, batch: dict[str, Any]) -> Losses:
        time.sleep(self.pause)
        self.norm(batch["image"])
        self.seen += len(batch["image"])
        return {"square": (self.layer(batch["image"]) - 1).square().mean()}


def train_line(folder: Path, batch: int, steps: int = 9, pause: float = 0.0) -> None:
    """Nine steps through ten samples: the last batch of no shuffle is whole, with any number of processes."""
    join_processes("cpu")
    torch.manual_seed(0)
    method = Normed(pause)
    optimizer = torch.optim.SGD(method.parameters(), 0.1, momentum=0.9)
    run = Run(folder, quiet=True, checkpoint_every=0.0)
    fit(
        method, lambda start: endless(Noise(10), batch, seed=0, start=start), run=run, optimizer=optimizer, steps=steps,
    )  # fmt: skip
    rank = dist.get_rank() if dist.is_initialized() else 0
    torch.save(method.state_dict(), folder / f"state_{rank}.pt")


def state(folder: Path, rank: int = 0) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.load(folder / f"state_{rank}.pt", weights_only=True)
    return loaded


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_several_processes_make_the_steps_of_one_though_no_shuffle_divides_by_them(world: int, tmp_path: Path) -> None:
    assert ended(start(world, tmp_path / "errors", train_line, tmp_path / "many", 2)) == [0] * world
    train_line(tmp_path / "one", 2 * world)
    for name in ("layer.weight", "layer.bias"):  # sums of float32 in another order
        torch.testing.assert_close(state(tmp_path / "many")[name], state(tmp_path / "one")[name], rtol=1e-5, atol=1e-6)
    assert state(tmp_path / "many")["seen"] == state(tmp_path / "one")["seen"] == 9 * 2 * world
    for rank in range(1, world):
        for name, value in state(tmp_path / "many").items():
            assert torch.equal(state(tmp_path / "many", rank)[name], value), f"{name} of process {rank}"


def until(claim: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG
    while not claim():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.01)


def saved_step(folder: Path) -> int:
    return int((Run(folder, quiet=True).checkpoint("train") or {"step": 0})["step"])


def train_and_tell(folder: Path, steps: int, pause: float) -> None:
    try:
        train_line(folder, 2, steps, pause)
    except RankError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


class Poisoned(Method):
    """The second process meets NaN in every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, batch: dict[str, Any]) -> Losses:
        return {"square": (self.layer(batch["image"]) * (float("nan") if dist.get_rank() else 1.0)).square().mean()}


def train_poisoned(folder: Path) -> None:
    join_processes("cpu")
    method = Poisoned()
    try:
        fit(
            method, lambda start: endless(Noise(10), 2, seed=0, start=start), run=Run(folder, quiet=True),
            optimizer=torch.optim.SGD(method.parameters(), 0.1), steps=9,
        )  # fmt: skip
    except FloatingPointError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


@pytest.mark.slow
def test_the_process_whose_loss_is_not_finite_names_and_keeps_its_samples(tmp_path: Path) -> None:
    assert ended(start(2, tmp_path / "errors", train_poisoned, tmp_path / "run")) == [1, 1]
    sound, faulty = ((tmp_path / f"errors_{rank}").read_text() for rank in range(2))
    assert "Another process of the run says which" in sound and "sample_" not in sound
    assert "Samples: sample_" in faulty and f"{tmp_path / 'run' / 'refused_train_1'}.pt" in faulty
    assert [path.name for path in (tmp_path / "run").glob("refused*")] == ["refused_train_1.pt"]
    kept = torch.load(tmp_path / "run" / "refused_train_1.pt", weights_only=True)
    assert len(kept["batches"]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_when_one_is_killed_the_others_end_and_the_same_command_goes_on(lost: int, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    children = start(2, tmp_path / "errors", train_and_tell, folder, 30, 0.05)
    until(lambda: saved_step(folder) >= 3)
    children[lost].signal(signal.SIGKILL)
    killed = time.monotonic()
    statuses = ended(children)
    assert time.monotonic() - killed < 30
    assert (statuses[lost], statuses[1 - lost]) == (-signal.SIGKILL, 1)
    told = (tmp_path / f"errors_{1 - lost}").read_text().splitlines()
    assert f"process {1 - lost} stops, for another one of this run has ended" in told[-1]
    assert "the same command goes on from the last checkpoint" in told[-1]
    assert saved_step(folder) >= 3
    assert ended(start(2, tmp_path / "errors", train_line, folder, 2, 30)) == [0, 0]
    assert ended(start(2, tmp_path / "errors", train_line, tmp_path / "whole", 2, 30)) == [0, 0]
    for name, value in state(tmp_path / "whole").items():
        assert torch.equal(state(folder)[name], value), name


@pytest.mark.slow
def test_processes_agree_on_the_step_at_a_signal_to_one_of_them(tmp_path: Path) -> None:
    """It comes twice, as from SLURM and from ``torchrun``: that is one wish to stop."""
    folder = tmp_path / "run"
    children = start(2, tmp_path / "errors", train_and_tell, folder, 200, 0.05)
    until(lambda: saved_step(folder) >= 2)
    children[1].signal(signal.SIGTERM)
    time.sleep(0.02)
    children[1].signal(signal.SIGTERM)
    assert ended(children) == [75, 75]
    step = saved_step(folder)
    assert 2 <= step < 200
    assert ended(start(2, tmp_path / "errors", train_line, folder, 2, step + 3)) == [0, 0]
    assert ended(start(2, tmp_path / "errors", train_line, tmp_path / "whole", 2, step + 3)) == [0, 0]
    for name, value in state(tmp_path / "whole").items():
        assert torch.equal(state(folder)[name], value), name


def train_apart(folder: Path) -> None:
    """Each process with a folder of its own, as on machines that share no disk."""
    join_processes("cpu")
    train_and_tell(folder / str(dist.get_rank()), 6, 0.0)


@pytest.mark.slow
def test_machines_that_share_no_disk_are_told_so(tmp_path: Path) -> None:
    train_line(tmp_path / "0", 2, 3)
    state = torch.load(tmp_path / "0" / "train.pt", weights_only=True)
    Run(tmp_path / "0", quiet=True).save("train", {**state, "done": False, "optimizer": optimizer_state()})
    assert ended(start(2, tmp_path / "errors", train_apart, tmp_path)) == [1, 1]
    for rank in (0, 1):
        assert "must lie on a disk that all machines share" in (tmp_path / f"errors_{rank}").read_text()


def optimizer_state() -> dict[str, Any]:
    return torch.optim.SGD(Normed().parameters(), 0.1, momentum=0.9).state_dict()


def test_another_number_of_processes_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_line(tmp_path, 2, 3)
    kept = torch.load(tmp_path / "train.pt", weights_only=True)
    Run(tmp_path, quiet=True).save("train", {**kept, "done": False, "world": 4, "optimizer": optimizer_state()})
    method = Normed()
    optimizer = torch.optim.SGD(method.parameters(), 0.1, momentum=0.9)
    fit(method, lambda n: endless(Noise(10), 2, seed=0, start=n), run=Run(tmp_path), optimizer=optimizer, steps=5)
    assert "4 processes before and 1 now, so a step takes 0.25 times the images" in capsys.readouterr().err


def wait_for_first(folder: Path) -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=1))
    only_first(lambda: time.sleep(3))
    (folder / f"done_{dist.get_rank()}").touch()


@pytest.mark.slow
def test_the_others_wait_for_the_first_longer_than_for_a_step(tmp_path: Path) -> None:
    assert ended(start(2, tmp_path / "errors", wait_for_first, tmp_path)) == [0, 0]
    assert (tmp_path / "done_1").is_file()


def call(*words: str) -> None:
    sys.exit(main(words))


@pytest.mark.slow
def test_what_the_first_refuses_is_said_once_and_all_end(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").touch()
    words = ("train", str(dataset), "--out", str(tmp_path / "taken"), "--method", "supervised", "--device", "cpu")
    assert ended(start(2, tmp_path / "errors", call, *words)) == [2, 1]
    assert (tmp_path / "errors_0").read_text().count("\n") == 1
    assert "is not empty and holds no run of Segue" in (tmp_path / "errors_0").read_text()
    assert (tmp_path / "errors_1").read_text() == ""
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["thesis.tex"]


DIES_ONCE = """
    import os, signal, sys
    sys.path[:0] = {tests!r}
    from pathlib import Path
    import test_ranks
    folder = Path({folder!r})

    class Mortal(test_ranks.Normed):
        def after_step(self, step):
            if step == 5 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
                os.kill(os.getpid(), signal.SIGKILL)

    test_ranks.Normed = Mortal
    test_ranks.train_line(folder, 2, 9, 0.05)
"""


@pytest.mark.slow
def test_torchrun_starts_a_group_again_that_lost_one_and_it_ends_the_same(tmp_path: Path) -> None:
    script = tmp_path / "dies_once.py"
    tests = [str(HERE), str(HERE.parent)]
    script.write_text(textwrap.dedent(DIES_ONCE.format(tests=tests, folder=str(tmp_path / "run"))))
    (tmp_path / "run").mkdir()
    done = torchrun(str(script), restarts=1)
    assert done.returncode == 0, done.stderr
    assert "exitcode: -9" in done.stderr  # or nothing was restarted
    assert ended(start(2, tmp_path / "errors", train_line, tmp_path / "whole", 2)) == [0, 0]
    for name, value in state(tmp_path / "whole").items():
        assert torch.equal(state(tmp_path / "run")[name], value), name


def test_the_commands_of_the_page_are_those_of_the_command_line() -> None:
    text = (HERE.parents[1] / "docs" / "many_machines.md").read_text(encoding="utf-8")
    lines = re.findall(r"^ {4}.*\bsegue ((?:train|pretrain|adapt|extend|compress) [^'\n]*)", text, re.MULTILINE)
    assert len(lines) >= 5
    for line in lines:
        known, rest = parser().parse_known_args(line.split())
        assert known.command == "train", line
        fields = [word[2:].replace("-", "_") for word in rest if word.startswith("--")]
        assert set(fields) <= set(leaves(methods.load("pixel_contrast").Config)), line
