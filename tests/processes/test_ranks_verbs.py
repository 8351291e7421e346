"""Every training verb in two processes, through the command line: it learns what one process learns, and goes on.

``--batch 4`` in two processes is ``--batch 4 --accumulate 2`` in one. That holds of the losses of every method but one:
the ranking distillation of ``segue pretrain`` takes no part batches, and its eq. 2 ranks the images of a batch, of
which each process has its own. So there its eq. 3 alone is held against one process, on an encoder without batch
statistics: a mean over pairs of images, whoever has them.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY
from test_contract import historic, semantic_teacher
from test_ranks import call, ended, start
from torch import Tensor, nn

from segue import launch, methods
from segue.cli import main
from segue.config import leaves
from segue.engine import Run, rank_and_world

VERBS = ("train", "adapt", "pretrain", "extend")
METHODS = [name for verb in VERBS for name in methods.names(verb)]


def words(name: str, dataset: Path, **changes: object) -> list[str]:
    """The command that trains by a method, without its ``--out``: three steps, each stage and pseudo-labels in them."""
    values: dict[str, object] = {**TINY, "steps": 3, "queries": 6, "points": 32}
    if name == "pixel_contrast":
        values |= {"steps": 8, "labels": "3", "unlabeled": "rest", "threshold": 0.0, "contrast_share": 0.5}
        values |= {"first_round": 0.5, "second_round": "contrast"}  # each stage twice
    if name == "mean_teacher":
        values |= {"looks": 3, "keep": "information", "passes": 2, "limit": 100, "class_limit": 100}
    if name == "ranking_distillation":
        values |= {"refresh": 2}
    if name.startswith("incremental"):
        values |= {"min_score": 0.3, "min_ratio": 0.0}
    known = leaves(methods.load(name).Config)
    fields = [f"--{field}={value}" for field, value in {**values, **changes}.items() if field in known]
    kind = "panoptic" if name == "incremental_panoptic" else "semantic"
    model = historic(dataset.parent / kind, is_panoptic=kind == "panoptic") if name.startswith("incremental") else ""
    own: dict[str, list[str]] = {
        "train": ["train", f"{dataset}", f"--method={name}"],
        "adapt": ["adapt", "--source", f"{dataset}:train", "--target", f"{dataset}:test", "--val", f"{dataset}:val"],
        "pretrain": ["pretrain", f"{dataset}/images"],
        "extend": ["extend", f"{model}", "--new", f"{dataset}", "--task", kind],
    }
    return [*own[methods.verb_of(name)], "--device=cpu", "--precision=fp32", "--json", *fields]


@contextmanager
def steady() -> Iterator[None]:
    """Nothing that each process draws or counts for itself: no dropout, fixed points of masks, fixed statistics."""
    drawn, normed = torch.rand, F.batch_norm

    def fixed(*size: Any, **keywords: Any) -> Tensor:
        if size[-1:] != (2,):
            return drawn(*size, **keywords)
        return drawn(*size, **keywords, generator=torch.Generator().manual_seed(0))

    def held(
        values: Tensor, mean: Any, var: Any, weight: Any, bias: Any, training: bool, _: float, eps: float
    ) -> Tensor:
        return normed(values, mean, var, weight, bias, training, 0.0, eps)

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(nn.Dropout, "forward", lambda _, values: values))
        stack.enter_context(mock.patch.object(torch, "rand", fixed))
        stack.enter_context(mock.patch.object(F, "batch_norm", held))
        yield


class Mortal(Run):
    """A run that saves after every step, and whose last process is killed once it has logged so many lines."""

    lines = 0

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **{**keywords, "checkpoint_every": 0.0})

    def log(self, *arguments: Any) -> None:
        super().log(*arguments)
        rank, world = rank_and_world()
        Mortal.lines -= 1
        if Mortal.lines == 0 and rank == world - 1:
            os.kill(os.getpid(), signal.SIGKILL)


def train_there(name: str, folder: Path, given: list[str], lines: int = 0) -> int:
    """The command into ``folder/run``; the weights that the method gave in this process are put beside that."""
    module, Mortal.lines = methods.load(name), lines
    train = module.train

    def noted(config: Any, run: Run, data: Any) -> nn.Module:
        model: nn.Module = train(config, run, data)
        torch.save(model.state_dict(), folder / f"{run.out.name}_{rank_and_world()[0]}.pt")
        return model

    folder.mkdir(exist_ok=True)
    with mock.patch.object(launch, "Run", Mortal), mock.patch.object(module, "train", noted):
        return main([*given, "--out", str(folder / "run")])


def as_process(name: str, folder: Path, given: list[str], lines: int = 0) -> None:
    """`train_there`, with what is printed and what is written, opened or moved in the run folder, noted beside it."""
    rank, written = os.environ["RANK"], []

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        opens = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (opens or event in ("os.rename", "os.remove", "os.rmdir")) and str(folder / "run") in str(arguments[0]):
            written.append([event, str(arguments[1] if event == "os.rename" else arguments[0])])

    sys.addaudithook(note)
    folder.mkdir(exist_ok=True)
    sys.stdout = (folder / f"said_{rank}").open("w")
    status = train_there(name, folder, given, lines)
    (folder / f"written_{rank}.json").write_text(json.dumps(written))
    sys.stdout.close()
    sys.exit(status)


def as_steady_process(name: str, folder: Path, given: list[str]) -> None:
    with steady():
        as_process(name, folder, given)


def means(folder: Path) -> dict[str, list[Tensor]]:
    """Running means of the gradients, by stage, as the optimiser had them a step before the end."""
    found = {}
    for path in sorted((folder / "run").glob("*.previous.pt")):
        state = torch.load(path, weights_only=True)["optimizer"]["state"].values()
        found[path.name] = [held.get("momentum_buffer", held.get("exp_avg")) for held in state]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_two_processes_take_the_gradients_of_one(name: str, dataset: Path, tmp_path: Path) -> None:
    fixed: dict[str, object] = {"mean_teacher": {"noise": 0, "passes": 1}}.get(name, {})
    more = ["--accumulate=2"]
    if name == "ranking_distillation":
        fixed, more = {"encoder": "test_vit", "image_weight": 0}, ["--batch=8"]
    given = words(name, dataset, **fixed)
    assert ended(start(2, tmp_path / "errors", as_steady_process, name, tmp_path / "two", given)) == [0, 0]
    with steady():
        assert train_there(name, tmp_path / "one", [*given, *more]) == 0
    two, one = means(tmp_path / "two"), means(tmp_path / "one")
    assert two.keys() == one.keys()
    for stage, expected in one.items():
        scale = max(float(mean.abs().max()) for mean in expected)
        assert scale > 0
        for mine, theirs in zip(two[stage], expected, strict=True):  # sums of float32 in another order
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4 * scale)


def same(folder: Path, other: Path) -> None:
    """Both processes of either run ended with the same weights, in every arm."""
    first = sorted(folder.glob("*_0.pt"))
    assert first
    for path in first:
        weights = torch.load(path, weights_only=True)
        for place in (path.with_name(path.name.replace("_0", "_1")), other / path.name):
            for key, value in torch.load(place, weights_only=True).items():
                assert torch.equal(value, weights[key]), f"{place}: {key}"


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_two_processes_make_one_model_and_go_on_when_one_is_killed(name: str, dataset: Path, tmp_path: Path) -> None:
    given, whole, cut = words(name, dataset), tmp_path / "whole", tmp_path / "cut"
    assert ended(start(2, tmp_path / "errors", as_process, name, whole, given)) == [0, 0]
    (line,) = (whole / "said_0").read_text().splitlines()
    assert json.loads(line)["run"] == str(whole / "run")
    assert (whole / "said_1").read_text() == ""
    told = (tmp_path / "errors_1").read_text().splitlines()
    assert [line for line in told if not line.startswith("[rank1]:[W")] == []  # a warning of torch's own
    arms = len(list((whole / "run").rglob("evaluation.json")))
    assert (tmp_path / "errors_0").read_text().count("; trained for ") == arms
    written = [json.loads((whole / f"written_{rank}.json").read_text()) for rank in (0, 1)]
    assert written[0].count(["os.rename", str(whole / "run" / "model" / "model.safetensors")]) == 1
    assert written[1] == []

    lines = 6 if name == "pixel_contrast" else 3  # after its pseudo-labels
    assert ended(start(2, tmp_path / "killed", as_process, name, cut, given, lines)) == [1, -signal.SIGKILL]
    assert "the same command goes on from the last checkpoint" in (tmp_path / "killed_0").read_text().splitlines()[-1]
    assert ended(start(2, tmp_path / "again", as_process, name, cut, given)) == [0, 0]
    assert "resumed at step" in (tmp_path / "again_0").read_text()
    same(whole, cut)
    steps = [[(line["stage"], line["step"]) for line in Run(folder / "run").read_log()] for folder in (whole, cut)]
    assert steps[0] == steps[1]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["compress", "demo"])
def test_what_does_not_divide_refuses_several_processes(command: str, dataset: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    given = ["compress", str(semantic_teacher(tmp_path / "teacher")), "--data", str(dataset), "--out", out]
    statuses = ended(start(2, tmp_path / "errors", call, *(given if command == "compress" else ["demo", "--out", out])))
    assert statuses == [2, 2]
    assert f"error: segue {command} does not run in several processes (2 were" in (tmp_path / "errors_0").read_text()
    assert (tmp_path / "errors_1").read_text() == ""
    assert not (tmp_path / "run").exists()
