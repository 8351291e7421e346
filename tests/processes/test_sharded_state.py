"""``--shard``: a training that is divided over processes gives what it gives in one, from and into the same files."""

import json
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from conftest import gloo_threads, options, torchrun
from test_contract import CutError, settings, weights_after
from test_engine import Noise
from test_ranks import ended, saved_step, start, until
from torch import Tensor, nn

from segue.engine import Losses, Method, Run, ema_update, endless, fit
from segue.errors import UsageError
from segue.processes.ranks import RankError, leave, rank_and_world
from segue.processes.sharded_state import Shards
from segue.processes.surroundings import join_processes

STEPS = 4
CLOSE = {"rtol": 1e-5, "atol": 1e-6}  # sums of float32 in another order


class Network(nn.Module):
    """Blocks that are put together by themselves, and the rest; of sizes that two processes do not share evenly."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 7, 3, padding=1), nn.Sequential(nn.Conv2d(7, 9, 3), nn.ReLU()))
        self.head = nn.Conv2d(9, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(image[:, :, None, None].expand(-1, -1, 5, 5)))
        return logits


class Taught(Method):
    """Fits a student to pictures and to its own average. Some weights are used at some steps, by one process alone."""

    def __init__(self, *, cut: int = -1, poison: bool = False, pause: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.student = Network().to(memory_format=torch.channels_last)
        self.teacher = deepcopy(self.student).requires_grad_(False)
        self.rare = nn.Linear(3, 1)
        self.norm = nn.BatchNorm1d(3)
        self.cut, self.pause, self.factor = cut, pause, float("nan") if poison else 1.0
        self.counts: dict[str, int] = {}

    def forward(self, batch: dict[str, Any]) -> Losses:
        time.sleep(self.pause)
        image, is_rare = batch["image"], batch["index"] == 0
        self.norm(image)  # for its statistics
        with torch.inference_mode():
            taught = self.teacher(image)
        losses = {
            "square": (self.student(image) - 1).square().mean() * self.factor,
            "taught": (self.student(image + 0.1) - taught.clone()).abs().mean(),
        }
        if is_rare.any():
            losses["rare"] = ((self.rare(image)[:, 0] - 1).square() * is_rare).mean()
        return losses

    def after_step(self, step: int) -> None:
        ema_update(self.teacher, self.student, 0.9)
        if self.shards:
            parts = [parameter.to_local() for parameter in self.parameters()]
            own = max(self.counts.get("own", 0), numbers(self.shards.parts))
            self.counts |= {"own": own, "parts": sum(map(Tensor.numel, parts)), "held": numbers(parts)}
        if step == self.cut:
            raise CutError


def numbers(tensors: Iterable[Tensor]) -> int:
    """How many numbers the memory of tensors holds."""
    return sum(tensor.untyped_storage().nbytes() // tensor.element_size() for tensor in tensors)


def train(
    folder: Path,
    method: Taught,
    batch: int,
    *,
    shard: bool = False,
    accumulate: int = 2,
    adam: bool = False,
    steps: int = STEPS,
) -> Taught:
    """Four clipped steps; at every second one a score of the whole network, which halves a weight of the teacher."""
    groups: list[dict[str, Any]] = [{"params": list(method.student.parameters()), "weight_decay": 0.01}]
    if adam:
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, 1e-2)  # the others are not trained
    else:
        others = [*method.rare.parameters(), *method.norm.parameters()]
        optimizer = torch.optim.SGD([{**groups[0], "momentum": 0.9}, {"params": others}], 0.1)

    def score() -> dict[str, float]:
        kept = [value for own in optimizer.state.values() for value in own.values() if value is not None and value.ndim]
        if method.shards:
            method.counts["state"] = numbers(value.to_local() for value in kept)
        with torch.no_grad():
            found = float(method.student(torch.linspace(0, 1, 6).reshape(2, 3)).sum())
            method.teacher.head.weight *= 0.5
        assert not [module for module in method.modules() if type(module).__name__.startswith("FSDP")]
        assert deepcopy(method.student).encoder[0].weight.is_contiguous(memory_format=torch.channels_last)
        return {"score": found}

    every = 1e9 * rank_and_world()[0]  # by the clock of one process alone it is time for a checkpoint
    fit(
        method, lambda start: endless(Noise(10), batch, seed=0, start=start),
        run=Run(folder, quiet=True, shard=shard, checkpoint_every=every), optimizer=optimizer, steps=steps,
        accumulate=accumulate, clip=0.5, evaluate=score, evaluate_every=2,
    )  # fmt: skip
    return method


def cut(folder: Path, **changes: Any) -> None:
    with pytest.raises(CutError):
        train(folder, Taught(cut=1), 2, **changes)


def train_all(folder: Path) -> None:
    """Everything that the tests ask of two processes, in one start of them."""
    join_processes("cpu")
    rank = dist.get_rank()

    def keep(name: str, method: Taught) -> Taught:
        torch.save(method.state_dict(), folder / f"{name}_{rank}.pt")
        return method

    keep("together", train(folder / "together", Taught(), 2))
    method = keep("divided", train(folder / "divided", Taught(), 2, shard=True))
    (folder / f"counts_{rank}.json").write_text(json.dumps(method.counts))
    keep("again", train(folder / "again", method, 2, shard=True))  # a second stage, of the same networks
    keep("again_plain", train(folder / "again_plain", load(Taught(), folder / f"divided_{rank}.pt"), 2))
    keep("whole", train(folder / "whole", Taught(), 2, shard=True, adam=True))
    cut(folder / "cut", shard=True, adam=True)
    for copy in ("cut_together", "left"):
        if rank == 0:
            shutil.copytree(folder / "cut", folder / copy)
    dist.barrier()
    keep("cut", train(folder / "cut", Taught(), 2, shard=True, adam=True))
    keep("cut_together", train(folder / "cut_together", Taught(), 2, adam=True))
    cut(folder / "begun_together")
    keep("begun_together", train(folder / "begun_together", Taught(), 2, shard=True))
    with pytest.raises(FloatingPointError):
        train(folder / "poisoned", Taught(poison=True), 2, shard=True, steps=5)
    del method
    leave()
    (folder / f"threads_{rank}").write_text(" ".join(gloo_threads()))


def load(method: Taught, path: Path) -> Taught:
    method.load_state_dict(torch.load(path, weights_only=True))
    return method


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    assert ended(start(2, folder / "errors", train_all, folder)) == [0, 0], (folder / "errors_0").read_text()
    return folder


def found(folder: Path, name: str, rank: int = 0) -> dict[str, Tensor]:
    loaded: dict[str, Tensor] = torch.load(folder / f"{name}_{rank}.pt", weights_only=True)
    return loaded


@pytest.mark.slow
def test_divided_it_makes_the_steps_of_one_process(done: Path, tmp_path: Path) -> None:
    """Clipped, accumulated, with weights that only one process uses, a teacher, and scores of the whole network."""
    one = train(tmp_path / "one", Taught(), 4).state_dict()
    for name, value in found(done, "divided").items():
        if "running_" not in name and "num_batches" not in name:  # of each process's own images
            torch.testing.assert_close(value, one[name], **CLOSE)
    scores, expected = (
        [line["val/score"] for line in Run(folder, quiet=True).read_log() if "val/score" in line]
        for folder in (done / "divided", tmp_path / "one")
    )
    assert len(scores) == 2
    assert scores == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "like"), [("divided", "together"), ("again", "again_plain")])
def test_divided_it_makes_the_steps_of_whole_copies(name: str, like: str, done: Path) -> None:
    for key, value in found(done, name).items():
        torch.testing.assert_close(value, found(done, like)[key], **CLOSE)
        assert torch.equal(value, found(done, name, 1)[key]), f"{key} of process 1"
    ours, theirs = (Run(done / folder, quiet=True).read_log() for folder in (name, like))
    for line, expected in zip(ours, theirs, strict=True):
        assert line.keys() == expected.keys()
        for key in line.keys() - {"stage", "seconds"}:
            assert line[key] == pytest.approx(expected[key], rel=1e-5), key


@pytest.mark.slow
def test_divided_and_cut_it_ends_the_same_bit_for_bit(done: Path) -> None:
    for key, value in found(done, "whole").items():
        assert torch.equal(value, found(done, "cut")[key]), key


@pytest.mark.slow
@pytest.mark.parametrize(("name", "like"), [("cut_together", "whole"), ("begun_together", "divided")])
def test_a_run_goes_on_without_shard_and_with_it(name: str, like: str, done: Path) -> None:
    for key, value in found(done, name).items():
        torch.testing.assert_close(value, found(done, like)[key], **CLOSE)


@pytest.mark.slow
def test_the_checkpoint_is_that_of_one_process(done: Path, tmp_path: Path) -> None:
    """Names, shapes and kinds of everything in it; and one process goes on with it."""
    cut(tmp_path / "one", adam=True)
    ours, theirs = (torch.load(folder / "train.pt", weights_only=True) for folder in (done / "left", tmp_path / "one"))
    assert shape(ours) == shape(theirs)
    before = ours["optimizer"]["state"][0]["exp_avg"]
    torch.testing.assert_close(before, theirs["optimizer"]["state"][0]["exp_avg"], rtol=0.5, atol=0.1)
    assert before.abs().sum() > 0
    train(done / "left", Taught(), 4, adam=True)


def shape(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: shape(inner) for name, inner in value.items() if name not in ("meter", "world")}
    return (value.shape, value.dtype) if isinstance(value, Tensor) else type(value)


@pytest.mark.slow
def test_a_process_holds_its_part_alone(done: Path) -> None:
    first, second = (json.loads((done / f"counts_{rank}.json").read_text()) for rank in (0, 1))
    student = 7 * 27 + 7 + 9 * 63 + 9 + 9 + 1
    everything = 2 * student + 4 + 6
    assert first["parts"] + second["parts"] == everything
    for counts in (first, second):
        assert counts["own"] == 0
        assert counts["held"] <= 0.6 * everything  # the larger half of seven rows is four of them
        assert counts["state"] <= 0.6 * student


@pytest.mark.slow
def test_steps_that_are_not_finite_are_refused(done: Path) -> None:
    refused = torch.load(done / "poisoned" / "refused_train.pt", weights_only=True)
    assert refused["step"] == 4
    assert set(refused["norms"]) >= {"student.encoder.0.weight", "student.head.bias"}
    assert torch.tensor(refused["norms"]["student.head.bias"]).isnan()


@pytest.mark.slow
def test_no_thread_of_the_group_is_left(done: Path) -> None:
    assert [(done / f"threads_{rank}").read_text() for rank in (0, 1)] == ["", ""]


class Single(Method):
    """A temperature that is learnt, as one number."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(()))


def test_a_single_number_is_refused_by_name() -> None:
    method = Single()
    with pytest.raises(UsageError, match=r"^--shard: temperature is a single number, which cannot be divided"):
        Shards(method, torch.optim.SGD(method.parameters(), 0.1), torch.device("cpu"))


def test_one_process_is_told_that_it_changes_nothing(segue: Callable[..., Any], dataset: Path, tmp_path: Path) -> None:
    words = ["train", dataset, "--method", "supervised", "--device", "cpu", *options(steps=1)]
    status, _, errors = segue(*words, "--out", tmp_path / "run", "--shard")
    assert status == 0, errors
    assert errors.count("warning: --shard changes nothing in one process; torchrun starts several") == 1
    status, _, errors = segue("compress", "model", "--data", dataset, "--out", tmp_path / "small", "--shard")
    assert (status, "unknown option --shard" in errors) == (2, True)


def train_slowly(folder: Path, steps: int, pause: float) -> None:
    join_processes("cpu")
    method = Taught(pause=pause)
    try:
        train(folder, method, 2, shard=True, adam=True, steps=steps)
    except RankError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    torch.save(method.state_dict(), folder / f"state_{dist.get_rank()}.pt")


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_killed_and_started_again_it_ends_the_same_bit_for_bit(lost: int, tmp_path: Path) -> None:
    folder, steps = tmp_path / "run", 12
    children = start(2, tmp_path / "errors", train_slowly, folder, steps, 0.1)
    until(lambda: saved_step(folder) >= 3)
    children[lost].signal(signal.SIGKILL)
    statuses = ended(children)
    assert statuses[lost] == -signal.SIGKILL
    assert statuses[1 - lost] == 1
    assert "stops, for another one of this run has ended" in (tmp_path / f"errors_{1 - lost}").read_text()
    assert 3 <= saved_step(folder) < steps
    assert ended(start(2, tmp_path / "errors", train_slowly, folder, steps, 0.0)) == [0, 0]
    assert ended(start(2, tmp_path / "errors", train_slowly, tmp_path / "whole", steps, 0.0)) == [0, 0]
    for name, value in found(tmp_path / "whole", "state").items():
        assert torch.equal(found(folder, "state")[name], value), name


def train_methods(folder: Path, chosen: dict[str, Any]) -> None:
    """Methods with and without ``--shard``; each process draws a dropout of its own, so there is none."""
    join_processes("cpu")
    for name, config in chosen.items():
        for how in ("together", "divided"):
            run = Run(folder / f"{name}_{how}", quiet=True, shard=how == "divided")
            with mock.patch.object(nn.Dropout, "forward", lambda _, values: values):
                torch.save(weights_after(name, config, run), folder / f"{name}_{how}_{dist.get_rank()}.pt")


# A teacher that looks at whole pictures, clusters made anew between two steps, a historic network beside a grown one.
# Not pixel_contrast, whose first step multiplies rounding by 10,000 (docs/log.md); its seven stages are run below.
DIVIDED = ("mean_teacher", "ranking_distillation", "incremental_panoptic")


@pytest.mark.slow
def test_methods_make_the_steps_of_whole_copies(dataset: Path, tmp_path: Path) -> None:
    chosen = {name: settings(name, dataset, steps=3, refresh=2) for name in DIVIDED}
    assert ended(start(2, tmp_path / "errors", train_methods, tmp_path, chosen)) == [0, 0]
    for name in chosen:
        for key, value in found(tmp_path, f"{name}_together").items():
            divided = found(tmp_path, f"{name}_divided")[key]
            torch.testing.assert_close(divided, value, rtol=1e-3, atol=1e-3, msg=lambda text, n=name: f"{n}: {text}")
            assert torch.equal(divided, found(tmp_path, f"{name}_divided", 1)[key]), (name, key)


@pytest.mark.slow
def test_a_model_trained_in_parts_is_a_model_like_any(segue: Callable[..., Any], dataset: Path, tmp_path: Path) -> None:
    """Contrast, fine-tuning, pseudo-labels and the plain control: seven stages one after another."""
    out, words = tmp_path / "run", options(labels=3, unlabeled="rest", threshold=0.0, contrast_share=0.5)
    command = ("train", str(dataset), "--out", str(out), "--device", "cpu", "--compare", *words)
    done = torchrun("-m", "segue", *command, "--shard")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("; trained for ") == 2
    assert "changes nothing" not in done.stderr
    for folder in (out, out / "baseline"):
        status, output, errors = segue("evaluate", folder, "--data", dataset, "--split", "val", "--json")
        assert status == 0, errors
        known = json.loads((folder / "evaluation.json").read_text())["scores"]["miou"]
        assert json.loads(output)["scores"]["miou"] == pytest.approx(known)
    status, _, errors = segue(*command)  # finished; and the same run without the option
    assert status == 0, errors
    assert errors.count("finished before") == 2
