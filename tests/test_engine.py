"""The training loop: order, averages, accumulation, refusals, signals, several processes."""

import contextlib
import itertools
import json
import os
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import torchrun
from torch import nn
from torch.utils.data import Dataset

from segue import engine
from segue.batches import split
from segue.disk import write_atomically
from segue.engine import Losses, Method, Run, cosine, ema_update, endless, fit
from segue.methods.supervised import Supervised
from segue.processes.memory import bytes_to_come


class Noise(Dataset[dict[str, Any]]):
    """Samples that say which they are and draw a random number."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": torch.rand(3), "index": index, "name": f"sample_{index}"}


class Line(Method):
    """Fits w to the images: loss (w . x - 1)^2."""

    def __init__(self, poison: int = -1) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.poison = poison
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, batch: dict[str, Any]) -> Losses:
        loss = (self.layer(batch["image"]) - 1).square().mean()
        self.seen += 1
        if self.poison >= 0 and int(self.seen) > self.poison:
            loss = loss * float("nan")
        return {"square": loss}


def first(stream: Iterator[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    return list(itertools.islice(stream, count))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_workers_or_on_where_one_starts(workers: int) -> None:
    whole = first(endless(Noise(5), 2, seed=1), 9)
    late = first(endless(Noise(5), 2, seed=1, start=4, workers=workers), 5)
    for expected, found in zip(whole[4:], late, strict=True):
        assert torch.equal(expected["image"], found["image"])
        assert expected["name"] == found["name"]


def test_every_sample_comes_once_a_shuffle_and_looks_new_each_time() -> None:
    batches = first(endless(Noise(4), 2, seed=0), 4)
    order = [int(i) for batch in batches for i in batch["index"]]
    assert sorted(order[:4]) == sorted(order[4:]) == [0, 1, 2, 3]
    rows = {
        i: [batch["image"][j] for batch in batches for j, k in enumerate(batch["index"]) if k == i] for i in range(4)
    }
    assert all(not torch.equal(a, b) for a, b in rows.values())


def test_a_batch_larger_than_the_set_goes_through_it_more_than_once() -> None:
    (batch,) = first(endless(Noise(2), 5, seed=0), 1)
    assert len(batch["image"]) == 5
    assert set(batch["index"].tolist()) == {0, 1}


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        endless(Noise(0), 1, seed=0)


def test_loading_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first(endless(Noise(4), 2, seed=0), 3)
    assert torch.equal(torch.rand(1), expected)


def trained(folder: Path, *, steps: int = 6, batch: int = 4, accumulate: int = 1, **keywords: Any) -> Line:
    torch.manual_seed(0)
    method = keywords.pop("method", None) or Line()
    optimizer = torch.optim.SGD(method.parameters(), 0.1)
    fit(
        method, lambda start: endless(Noise(16), batch, seed=0, start=start), run=Run(folder, quiet=True),
        optimizer=optimizer, steps=steps, accumulate=accumulate, **keywords,
    )  # fmt: skip
    return method


def test_the_last_step_is_logged_whatever_their_number(tmp_path: Path) -> None:
    trained(tmp_path, steps=201)  # a line every second step
    assert [line["step"] for line in Run(tmp_path).read_log()][-2:] == [200, 201]


def test_scores_that_are_not_finite_are_left_out_of_the_log(tmp_path: Path) -> None:
    scores = {"miou": 0.5, "iou/absent": float("nan"), "ratio": float("inf")}
    trained(tmp_path, steps=2, evaluate=lambda: scores)
    assert Run(tmp_path).read_log()[-1] == {"stage": "train", "step": 2, "val/miou": 0.5}
    assert "NaN" not in (tmp_path / "log.jsonl").read_text()


def test_accumulated_batches_make_the_step_of_one_large_batch(tmp_path: Path) -> None:
    large, small = trained(tmp_path / "a", batch=4), trained(tmp_path / "b", batch=2, accumulate=2)
    torch.testing.assert_close(large.layer.weight, small.layer.weight, rtol=1e-6, atol=1e-7)


class Strided(Method):
    """Notes in what precision its layers answer."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise, self.dense = nn.Conv2d(4, 4, 3, 2, groups=4), nn.Conv2d(4, 1, 3)
        self.answers: set[tuple[torch.dtype, torch.dtype]] = set()

    def forward(self, batch: dict[str, Any]) -> Losses:
        middle = self.depthwise(batch["image"].mean().expand(1, 4, 9, 9))
        end = self.dense(middle)
        self.answers.add((middle.dtype, end.dtype))
        return {"square": end.float().square().mean()}


@pytest.mark.parametrize(("precision", "end"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_in_bf16_on_a_cpu_the_layers_that_would_be_slow_stay_in_float32(
    precision: str, end: torch.dtype, tmp_path: Path
) -> None:
    method = Strided()
    run, optimizer = Run(tmp_path, precision=precision, quiet=True), torch.optim.SGD(method.parameters(), 0.1)
    fit(method, lambda start: endless(Noise(4), 2, seed=0, start=start), run=run, optimizer=optimizer, steps=2)
    assert method.answers == {(torch.float32, end)}
    with torch.autocast("cpu", torch.bfloat16):
        assert method.depthwise(torch.ones(1, 4, 9, 9)).dtype == torch.bfloat16  # as it was


def test_schedule_scales_the_learning_rate_by_step(tmp_path: Path) -> None:
    trained(tmp_path, steps=4, schedule=cosine(4))
    rates = [line["lr"] for line in Run(tmp_path).read_log()]
    assert rates == pytest.approx([0.1, 0.1 * 0.853553, 0.05, 0.1 * 0.146447], rel=1e-5)


def test_clipping_bounds_the_step(tmp_path: Path) -> None:
    torch.manual_seed(0)
    start = Line()
    torch.manual_seed(0)
    moved = trained(tmp_path, steps=1, clip=1e-3)
    distance = sum((a - b).square().sum() for a, b in zip(start.parameters(), moved.parameters(), strict=True)).sqrt()
    assert float(distance.detach()) == pytest.approx(0.1 * 1e-3, rel=1e-3)


def test_ema_by_hand_and_buffers_copied() -> None:
    teacher, student = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    nn.init.constant_(teacher.weight, 1.0)
    nn.init.constant_(student.weight, 3.0)
    student.running_mean.fill_(7.0)
    ema_update(teacher, student, 0.75)
    assert float(teacher.weight) == 1.5  # 0.75 * 1 + 0.25 * 3
    assert float(teacher.running_mean) == 7.0
    teacher.running_mean.fill_(3.0)
    student.num_batches_tracked += 5
    ema_update(teacher, student, 0.75, averages_buffers=True)
    assert float(teacher.running_mean) == 4.0  # 0.75 * 3 + 0.25 * 7
    assert int(teacher.num_batches_tracked) == 5  # a count is no average


def test_nan_steps_are_not_taken_and_stop_the_run_with_the_samples_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    method = Line(poison=2)
    with pytest.raises(FloatingPointError, match=r"sample_\d") as caught:
        trained(tmp_path, steps=20, method=method)
    assert "5 in a row" in str(caught.value)
    assert str(caught.value).endswith("into another --out")  # this one holds a run of other settings
    torch.testing.assert_close(method.layer.weight, trained(tmp_path / "clean", steps=2).layer.weight)
    assert [line["step"] for line in Run(tmp_path).read_log() if "refused" in line] == [3, 4, 5, 6, 7]


class Normed(Method):
    """A network with batch statistics that meets an image of NaN at its fourth step."""

    def __init__(self, largest: int = 99) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))
        self.largest, self.sizes = largest, list[int]()
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, batch: dict[str, Any]) -> Losses:
        self.sizes.append(len(batch["image"]))
        self.seen += 1
        if len(batch["image"]) > self.largest:
            raise torch.OutOfMemoryError("made up")
        image = batch["image"] * float("nan") if batch.get("poison") else batch["image"]
        return {"square": (self.layer(image) - 1).square().mean()}


def test_a_refused_step_leaves_batch_statistics_as_they_were(tmp_path: Path) -> None:
    def batches(start: int) -> Iterator[dict[str, Any]]:
        for number, batch in enumerate(endless(Noise(16), 4, seed=0)):
            yield {**batch, "poison": number == 3} if number >= start else batch

    torch.manual_seed(0)
    method = Normed()
    fit(method, batches, run=Run(tmp_path, quiet=True), optimizer=torch.optim.SGD(method.parameters(), 0.1), steps=6)
    assert all(torch.isfinite(value).all() for value in method.state_dict().values())
    assert int(method.seen) == 5


def test_a_run_that_stops_keeps_the_batch_that_it_refused(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"refused_train\.pt"):
        trained(tmp_path, steps=20, method=Line(poison=2))
    kept = torch.load(tmp_path / "refused_train.pt", weights_only=True)
    assert kept["batches"][0]["image"].shape == (4, 3)
    assert kept["batches"][0]["name"][0].startswith("sample_")
    assert kept["rates"] == [0.1]
    assert set(kept["norms"]) == {"layer.weight", "layer.bias"}


def test_a_batch_too_large_for_memory_is_taken_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_REHEARSED", ("cpu",))

    def run(folder: str, largest: int, batch: int, accumulate: int) -> Normed:
        torch.manual_seed(0)
        method = Normed(largest)
        fit(
            method, lambda start: endless(Noise(16), batch, seed=0, start=start),
            run=Run(tmp_path / folder, quiet=True),
            optimizer=torch.optim.SGD(method.parameters(), 0.1), steps=3, accumulate=accumulate,
        )  # fmt: skip
        return method

    parts, accumulated = run("parts", 2, 8, 1), run("accumulated", 2, 2, 4)
    assert parts.sizes == [8, 4, 2, 2, 2, 2] + [2] * 12  # the step is tried, then taken
    for name, value in accumulated.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, msg=name)
    with pytest.raises(MemoryError, match="two images do not fit"):
        run("never", 1, 8, 1)


@pytest.mark.parametrize(
    ("batch", "sizes"), [(6, [6, 3, 2, 2, 2]), (10, [10, 5, 2, 3, *[2] * 5]), (11, [11, 6, 3, 3, 2, 3])]
)
def test_what_two_images_allow_is_tried_before_the_crop_is_blamed(
    batch: int, sizes: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_REHEARSED", ("cpu",))
    method = Normed(largest=batch % 2 + 2)
    fit(
        method, lambda start: endless(Noise(16), batch, seed=0, start=start), run=Run(tmp_path, quiet=True),
        optimizer=torch.optim.SGD(method.parameters(), 0.1), steps=1,
    )  # fmt: skip
    assert method.sizes[: len(sizes)] == sizes


def test_parts_count_for_what_their_losses_are_means_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four images that are labelled throughout and four with one pixel: the gradient of all at once."""

    class Sparse(Supervised):
        def forward(self, batch: dict[str, Any]) -> Losses:
            if len(batch["image"]) > largest:
                raise torch.OutOfMemoryError("made up")
            return super().forward(batch)

    generator = torch.Generator().manual_seed(0)
    image = torch.rand(8, 3, 5, 5, generator=generator)
    mask = torch.randint(0, 2, (8, 5, 5), generator=generator)
    mask[4:].view(4, 25)[:, 1:] = 255
    found = []
    for largest, weights in itertools.product((8, 4, 2), ([1.0, 1.0], [0.25, 2.0])):
        torch.manual_seed(0)
        method = Sparse(nn.Conv2d(3, 2, 1), torch.tensor(weights))
        monkeypatch.setattr(engine, "_REHEARSED", ("cpu",))
        fit(
            method, lambda start: itertools.repeat({"image": image, "mask": mask}),
            run=Run(tmp_path / f"{largest}_{weights[0]}", quiet=True),
            optimizer=torch.optim.SGD(method.parameters(), 1.0), steps=1,
        )  # fmt: skip
        found.append(method.network.weight.detach().clone())
    for i, weight in enumerate(found):
        torch.testing.assert_close(weight, found[i % 2], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found[0], found[1])


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, 0.1), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
        lambda p: torch.optim.AdamW(p, 0.1),
    ],
)  # fmt: skip
def test_the_memory_of_an_optimiser_is_known_before_its_first_step(make: Callable[..., torch.optim.Optimizer]) -> None:
    layer = nn.Linear(30, 20)
    optimizer, told = make(layer.parameters()), bytes_to_come(make(layer.parameters()))
    layer(torch.ones(1, 30)).sum().backward()
    optimizer.step()
    held = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    assert told == sum(value.numel() * value.element_size() for value in held if value.dim())
    assert bytes_to_come(optimizer) == (told if not held else 0)


def test_a_rehearsed_run_goes_on_with_the_buffers_of_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: batch statistics and counters are those of the run, not of a model that has seen nothing."""
    monkeypatch.setattr(engine, "_REHEARSED", ("cpu",))

    def run(folder: str, last: int) -> Normed:
        torch.manual_seed(0)
        method = Normed()

        def batches(start: int) -> Iterator[dict[str, Any]]:
            for number, batch in enumerate(endless(Noise(16), 4, seed=0, start=start), start):
                if number == last:
                    raise KeyboardInterrupt
                yield batch

        with contextlib.suppress(KeyboardInterrupt):
            fit(
                method, batches, run=Run(tmp_path / folder, quiet=True, checkpoint_every=0.0),
                optimizer=torch.optim.SGD(method.parameters(), 0.1), steps=8,
            )  # fmt: skip
        return method

    whole = run("whole", 99).state_dict()
    assert run("cut", 5).seen == 5
    resumed = run("cut", 99).state_dict()
    assert whole["seen"] == 8
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_a_sample_is_drawn_without_touching_the_generators_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("a step on a GPU draws from it"))
    first(endless(Noise(5), 2, seed=1), 2)


def test_a_batch_whose_images_are_compared_is_not_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_REHEARSED", ("cpu",))
    method = Normed(largest=4)
    method.couples_images = True
    with pytest.raises(MemoryError, match=r"train: a batch of 8 does not fit.*lower --batch, for the losses compare"):
        fit(
            method, lambda start: endless(Noise(16), 8, seed=0, start=start), run=Run(tmp_path, quiet=True),
            optimizer=torch.optim.SGD(method.parameters(), 0.1), steps=3,
        )  # fmt: skip
    assert method.sizes == [8]


def test_no_part_has_a_single_image_of_any_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_REHEARSED", ("cpu",))
    method = Normed(largest=1)
    stream = ({"image": b["image"], "target": {"image": b["image"][:4]}} for b in endless(Noise(16), 8, seed=0))
    with pytest.raises(MemoryError, match="two images do not fit"):
        fit(
            method, lambda start: stream, run=Run(tmp_path, quiet=True),
            optimizer=torch.optim.SGD(method.parameters(), 0.1), steps=3,
        )  # fmt: skip
    assert method.sizes == [8, 4]  # of the target 4 and 2 went through


def test_batches_are_cut_by_the_images_of_each_of_their_parts() -> None:
    batch = {"source": {"image": torch.arange(4), "name": list("abcd")}, "target": {"image": torch.arange(2)}, "x": 1}
    one, two = split(batch, 2)
    assert one["source"]["name"] == ["a", "b"]
    assert two["source"]["image"].tolist() == [2, 3]
    assert (one["target"]["image"].tolist(), two["target"]["image"].tolist(), two["x"]) == ([0], [1], 1)


def test_a_finished_stage_is_taken_from_disk(tmp_path: Path) -> None:
    once = trained(tmp_path)
    before = (tmp_path / "log.jsonl").read_bytes()
    assert torch.equal(trained(tmp_path).layer.weight, once.layer.weight)
    assert (tmp_path / "log.jsonl").read_bytes() == before


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


RANKS = """
    import sys
    sys.path.insert(0, {tests!r})
    from pathlib import Path
    import torch, torch.distributed as dist
    from conftest import gloo_threads
    from test_engine import Line, Noise
    from segue.engine import Run, endless, fit
    from segue.processes.ranks import leave
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    method = Line()
    fit(method, lambda start: endless(Noise(16), 2, seed=0, start=start), run=Run(Path({folder!r}), quiet=True),
        optimizer=torch.optim.SGD(method.parameters(), 0.1), steps=6)
    leave()
    assert gloo_threads() == []
"""


@pytest.mark.slow
def test_two_processes_make_the_steps_of_one(tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(textwrap.dedent(RANKS.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "two"))))
    done = torchrun(str(script))
    assert done.returncode == 0, done.stderr
    two = torch.load(tmp_path / "two" / "train.pt", weights_only=True)["method"]["layer.weight"]
    torch.testing.assert_close(two, trained(tmp_path / "one", batch=4).layer.weight, rtol=1e-5, atol=1e-7)


def test_a_half_written_log_line_is_left_out(tmp_path: Path) -> None:
    run = Run(tmp_path, quiet=True)
    run.log("train", 1, {"loss": 1.0})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write(json.dumps({"stage": "train", "step": 2})[:9])
    assert run.read_log() == [{"stage": "train", "step": 1, "loss": 1.0}]
