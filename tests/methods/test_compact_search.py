"""Search under distillation: losses by hand, candidates, and the whole command on drawn pictures."""

import dataclasses
import errno
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, write_set
from PIL import Image
from test_contract import SEARCH, CutError, CutRun, semantic_teacher
from torch import nn

import segue
from segue.batches import mix
from segue.cli.learning import device_and_threads, minutes
from segue.config import build
from segue.data.copy_paste import by_class, learn
from segue.engine import Run
from segue.errors import DataError, UsageError
from segue.launch.claim import claim_folder
from segue.methods.compact_search import ANYHOW, Config, Distilled, cached, recipe_of, refuse, search, train
from segue.metrics import Confusion
from segue.models.compact import (
    GLOBAL,
    OPERATIONS,
    SKIP,
    ZERO,
    AuxiliaryHeads,
    CompactSegmenter,
    CompactSpec,
    Genotype,
    enlarged,
    feature_encoder,
    operation,
)
from segue.models.segmenter import Segmenter, SegmenterSpec
from segue.search import pool
from segue.search.cache import Cache
from segue.search.candidates import (
    Job,
    Recipe,
    draws,
    macs,
    measured_once,
    measured_reliability,
    opened,
    reliability,
    try_candidate,
)
from segue.search.data import divided, open_compression
from segue.search.finalists import read_outcomes
from segue.search.latency import STRIDES, Cost, Table, Target
from segue.search.objective import Reward, distilled, reward_of, segmentation_loss, soft_dice
from segue.search.runtime import enlarging_runner, idlest, maps_runners, on_cores, part_runner
from segue.search.strategies import strategy
from segue.search.trials import Trial, Trials
from segue.weights import save_model

FIELDS = {name: value for name, value in {**TINY, **SEARCH}.items() if name != "decoder_channels"}
ARCH1 = "[[2,[1,0,3,6],[0,1,2,8],[2,0,6,1]],[[2,3],[3,1]]]"


# -- losses and reward -------------------------------------------------------------------------------------------------


def test_dice_by_hand_without_background_and_ignored_pixels() -> None:
    # two pixels of class 1 with p = 0.8 and 0.6, one of class 0 with p_1 = 0.5, one ignored
    p1 = torch.tensor([[[0.8, 0.6], [0.5, 0.9]]])
    logits = torch.stack([(1 - p1).log(), p1.log()], 1)
    labels = torch.tensor([[[1, 1], [0, 255]]])
    one = 2 * 1.4 / (2 + 0.64 + 0.36 + 0.25)
    zero = 2 * 0.5 / (1 + 0.04 + 0.16 + 0.25)
    assert float(soft_dice(logits, labels, background=0)) == pytest.approx(1 - one, abs=1e-6)
    assert float(soft_dice(logits, labels)) == pytest.approx(1 - (one + zero) / 2, abs=1e-6)
    assert float(soft_dice(logits, torch.full_like(labels, 255))) == 0


def test_distillation_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 3, 4, 4, generator=generator) for _ in range(2))
    labels = torch.randint(0, 3, (2, 4, 4), generator=generator)
    plain = segmentation_loss(student, labels, "ce")
    assert float(plain) == pytest.approx(float(F.cross_entropy(student, labels)), abs=1e-6)

    def found(mode: Any) -> float:
        inside = torch.ones_like(labels, dtype=torch.bool)
        return float(distilled(student, teacher, labels, inside, mode=mode, weight=0.3, objective="ce"))

    assert found("none") == pytest.approx(float(plain))
    assert found("logits") == pytest.approx(float(plain + 0.3 * (student - teacher).square().mean()), abs=1e-6)
    told, said = (teacher / 4).softmax(1), (student / 4).softmax(1)
    divergence = (told * (told / said).log()).sum(1).mean()
    assert found("kl") == pytest.approx(float(0.7 * plain + 0.3 * 16 * divergence), abs=1e-5)
    each = [F.cross_entropy(student[i : i + 1], labels[i : i + 1]) for i in range(2)]
    of_teacher = [F.cross_entropy(teacher[i : i + 1], labels[i : i + 1]) for i in range(2)]
    bound = sum(max(float(s - t), 0.0) for s, t in zip(each, of_teacher, strict=True)) / 2
    assert found("bounded") == pytest.approx(float(plain) + 0.3 * bound, abs=1e-6)


def test_bounded_distillation_raises_the_gradient_by_coff_where_the_student_is_worse() -> None:
    student = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    perfect = torch.stack([torch.full((4, 4), 9.0), torch.zeros(4, 4), torch.zeros(4, 4)])[None]
    (plain,) = torch.autograd.grad(segmentation_loss(student, labels, "ce"), student)
    for teacher, factor in ((perfect, 1.3), (-perfect, 1.0)):
        inside = torch.ones_like(labels, dtype=torch.bool)
        loss = distilled(student, teacher, labels, inside, mode="bounded", weight=0.3, objective="ce")
        torch.testing.assert_close(torch.autograd.grad(loss, student)[0], factor * plain)


@pytest.mark.parametrize("mode", ["logits", "kl", "bounded"])
def test_nothing_is_learnt_of_a_teacher_where_a_small_picture_was_padded(mode: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(1, 3, 4, 6, generator=generator) for _ in range(2))
    labels = torch.randint(0, 3, (1, 4, 6), generator=generator)
    labels[..., 4:] = 255
    inside = labels != 255

    def loss_and_gradient(width: int) -> tuple[torch.Tensor, torch.Tensor]:
        said = student[..., :width].clone().requires_grad_()
        cut = (part[..., :width] for part in (teacher, labels, inside))
        loss = distilled(said, *cut, mode=mode, weight=0.3, objective="ce")
        return loss.detach(), torch.autograd.grad(loss, said)[0]

    (padded, on_padded), (alone, on_picture) = loss_and_gradient(6), loss_and_gradient(4)
    torch.testing.assert_close(padded, alone)
    torch.testing.assert_close(on_padded[..., :4], on_picture)
    assert not on_padded[..., 4:].any()


def test_reward_by_hand() -> None:
    confusion = Confusion(3)
    confusion.counts = np.array([[4, 0, 0], [1, 2, 1], [0, 0, 0]])
    # class 0: IoU 4/5, class 1: 2/4; accuracy 1 and 1/2; class 2 is not in the truth
    found = reward_of(confusion)
    assert found.parts == pytest.approx({"miou": 0.65, "fwiou": 0.65, "mpa": 0.75})
    assert found.value == pytest.approx((0.65 * 0.65 * 0.75) ** (1 / 3))
    assert reward_of(confusion, background=0).parts["miou"] == pytest.approx(0.5)


def test_reliability_by_hand() -> None:
    # means 1, 3: variance 2; within 1 (ddof 1): between = 2 - 1 / 2
    assert reliability([[0.29289322, 1.70710678], [2.29289322, 3.70710678]]) == pytest.approx(1.5 / 2.5)
    assert reliability([[0.5, 0.5], [0.5, 0.5]]) == 0


# -- candidates --------------------------------------------------------------------------------------------------------


def config_for(root: Path, **changes: Any) -> Config:
    values = {**FIELDS, "data": str(root), "teacher": str(semantic_teacher(root.parent / "teacher")), **changes}
    return build(Config, values)


@pytest.fixture
def prepared(tmp_path: Path) -> tuple[Config, Run, Cache, Recipe]:
    config = config_for(write_set(tmp_path / "set", train=10, size=64))
    run = Run(tmp_path / "run", quiet=True)
    run.open()
    data = open_compression(config.teacher, config.data, seed=0)
    return config, run, cached(config, run, data, None), recipe_of(config, data.training.classes, 0)


def test_cached_maps_and_logits_are_those_of_encoder_and_teacher(
    prepared: tuple[Config, Run, Cache, Recipe],
) -> None:
    config, _, cache, _ = prepared
    encoder, normalise = cache.new_encoder()
    teacher = open_compression(config.teacher, config.data, seed=0).teacher
    with torch.inference_mode():
        image = torch.from_numpy(cache.train.images[[0, 3]])
        for known, maps in zip(cache.train.maps([0, 3]), encoder(normalise(image)), strict=True):
            torch.testing.assert_close(known, maps, rtol=2e-3, atol=2e-3)  # kept in float16
        logits = F.interpolate(teacher(image), scale_factor=0.25, mode="bilinear", align_corners=False)
        torch.testing.assert_close(torch.from_numpy(cache.train.logits[[0, 3]]).float(), logits, rtol=2e-3, atol=2e-3)
    assert len(cache.train) == 9
    assert cache.val.images.shape[0::3] == (1, 128)  # the image that is held out, at twice the side of the crops
    assert cache.val.logits.shape[:2] == (1, 0)  # the reward asks no teacher


def test_without_distillation_no_teacher_is_run(prepared: tuple[Config, Run, Cache, Recipe], tmp_path: Path) -> None:
    config = replace(prepared[0], distill="none")
    data = open_compression(config.teacher, config.data, seed=0)

    def asked(*_: Any) -> None:
        raise AssertionError("the teacher was run")

    data.teacher.register_forward_pre_hook(asked)
    run = Run(tmp_path / "alone", quiet=True)
    run.open()
    cache = cached(config, run, data, None)
    assert cache.train.logits.shape[:2] == (9, 0)
    trial = try_candidate(Job(cache.folder, recipe_of(config, data.training.classes, 0), 0, ARCH1))
    assert (trial.state, trial.error) == ("done", "")


def test_the_cache_is_the_same_whatever_was_drawn_before_it(
    prepared: tuple[Config, Run, Cache, Recipe], tmp_path: Path
) -> None:
    """A run that goes on does not measure the table of times again, which draws weights and pictures."""
    config, _, cache, _ = prepared
    run = Run(tmp_path / "again", quiet=True)
    run.open()
    torch.rand(7)
    again = cached(config, run, open_compression(config.teacher, config.data, seed=0), None)
    for first, second in zip(cache.train.features, again.train.features, strict=True):
        np.testing.assert_array_equal(first, second)


def test_a_cache_of_another_version_is_not_taken(prepared: tuple[Config, Run, Cache, Recipe]) -> None:
    config, run, cache, _ = prepared
    path = cache.folder / "cache.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 1}))
    with pytest.raises(DataError, match="of another version of Segue"):
        cached(config, run, open_compression(config.teacher, config.data, seed=0), None)


def test_multiplications_are_those_of_a_training_crop(prepared: tuple[Config, Run, Cache, Recipe]) -> None:
    _, _, cache, _ = prepared
    channels = [feature.shape[1] for feature in cache.train.features]

    class Finest(nn.Conv2d):
        def forward(self, maps: Any) -> torch.Tensor:
            return super().forward(maps[0])

    height, width = cache.train.features[0].shape[-2:]
    assert cache.val.features[0].shape[-1] == 2 * width, "held-out pictures are larger"
    counted = macs(Finest(channels[0], 5, 1), cache)
    assert counted == height * width * channels[0] * 5


def test_a_candidate_comes_to_the_same_numbers_in_a_process_with_other_switches(
    prepared: tuple[Config, Run, Cache, Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, cache, recipe = prepared
    seen = list[str]()

    def train(*_: Any) -> Reward:
        seen.append(torch.get_float32_matmul_precision())
        return Reward(0.5, {})

    monkeypatch.setattr("segue.search.candidates.train_decoder", train)
    monkeypatch.setattr("segue.search.candidates.train_end_to_end", train)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert try_candidate(Job(cache.folder, recipe, 0, ARCH1)).error == ""
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert set(seen) == {"highest"}


def test_a_candidate_that_fails_has_an_error_and_no_reward(
    prepared: tuple[Config, Run, Cache, Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, cache, recipe = prepared

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("no room\nmore")

    monkeypatch.setattr("segue.search.candidates.train_decoder", full)
    trial = try_candidate(Job(cache.folder, recipe, 0, ARCH1))
    assert (trial.state, trial.reward1, trial.error) == ("failed", None, "OutOfMemoryError: no room")
    assert (trial.error_type, trial.verdict) == ("OutOfMemoryError", "")
    assert trial.seconds1 > 0  # a search that is limited in time ends, even if all its candidates fail


def test_what_the_short_training_came_to_is_kept_where_the_second_fails(
    prepared: tuple[Config, Run, Cache, Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, cache, recipe = prepared

    def diverges(*_: Any, **__: Any) -> None:
        raise FloatingPointError("the loss is not finite")

    monkeypatch.setattr("segue.search.candidates.train_end_to_end", diverges)
    trial = try_candidate(Job(cache.folder, replace(recipe, gate="always"), 0, ARCH1))
    assert (trial.state, trial.reward2, trial.error_type) == ("failed", None, "FloatingPointError")
    assert trial.reward1 is not None
    assert trial.seconds2 > 0


@pytest.mark.slow
def test_the_same_candidates_with_one_process_and_with_two(prepared: tuple[Config, Run, Cache, Recipe]) -> None:
    _, _, cache, recipe = prepared
    jobs = [Job(cache.folder, recipe, n, ARCH1.replace("[[2,", f"[[{n},", 1)) for n in range(3)]
    alone, together = (
        {t.trial: (t.reward1, t.reward2, t.state) for t in all_tried(jobs, parallel)} for parallel in (1, 2)
    )
    assert alone == together


def all_tried(jobs: list[Job], parallel: int, work: Callable[[Job], Trial] = try_candidate) -> list[Trial]:
    with pool.Workers(parallel, work) as workers:
        return list(workers.tried(jobs))


def dies(job: Job) -> Trial:
    """Kills its process, always for candidate 1, once for candidate 2."""
    flag = job.cache / f"died_{job.trial}"
    if job.trial == 1 or (job.trial == 2 and not flag.exists()):
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return Trial(job.trial, job.genotype, "done", reward1=0.5)


def presses(job: Job) -> Trial:
    """Ctrl-C, which a terminal sends to every process of the group."""
    os.kill(os.getpid(), signal.SIGINT)
    return Trial(job.trial, job.genotype, "done", reward1=0.5)


@pytest.mark.slow
def test_a_search_that_is_killed_leaves_no_process_behind(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, time\n"
        "from segue.search import pool\n"
        "from segue.search.candidates import Job\n"
        "if __name__ == '__main__':\n"
        "    with pool.Workers(2, pool.died) as workers:\n"
        "        list(workers.tried([Job(None, None, n, '') for n in range(2)]))\n"
        "        print(*workers._pool._processes, flush=True)\n"
        "        time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        workers = [int(word) for word in driver.stdout.readline().split()]
        assert workers
        assert all(map(alive, workers))
        driver.kill()
    deadline = time.monotonic() + 20
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, workers))


def alive(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"  # one that nobody waited for is not alive
    except OSError:
        return False


@pytest.mark.slow
def test_ctrl_c_is_left_to_the_process_that_searches(prepared: tuple[Config, Run, Cache, Recipe]) -> None:
    _, _, cache, recipe = prepared
    found = all_tried([Job(cache.folder, recipe, n, ARCH1) for n in range(2)], 2, presses)
    assert [trial.state for trial in found] == ["done", "done"]


@pytest.mark.slow
@pytest.mark.parametrize("order", [(2, 0, 3, 1), (1, 2, 0, 3)])
def test_a_process_that_dies_costs_its_candidate_alone(
    prepared: tuple[Config, Run, Cache, Recipe], order: tuple[int, ...]
) -> None:
    _, _, cache, recipe = prepared
    found = {t.trial: t for t in all_tried([Job(cache.folder, recipe, n, ARCH1) for n in order], 2, dies)}
    assert [found[n].state for n in range(4)] == ["done", "failed", "done", "done"]
    assert found[1].error.startswith("ProcessDied")
    assert found[1].reward1 is None


@pytest.mark.slow
def test_a_search_goes_on_from_its_ledger(prepared: tuple[Config, Run, Cache, Recipe], tmp_path: Path) -> None:
    config, run, cache, recipe = prepared
    whole = search(config, run, cache, recipe, Cost())
    part = Run(tmp_path / "part", quiet=True)
    part.open()
    identity = repr((config.search, recipe, cache.encoder, cache.source))
    ledger = Trials(part.out / "trials.sqlite", identity)
    for trial in (whole[0], whole[2], whole[5]):  # what two processes may leave behind
        ledger.add(trial)
    typed = replace(config, teacher=f"{config.teacher}/")  # the same weights
    again = search(typed, part, cache, recipe, Cost())
    assert [(t.trial, t.genotype, t.reward1, t.reward2) for t in again] == [
        (t.trial, t.genotype, t.reward1, t.reward2) for t in whole
    ]
    assert [line["step"] for line in part.read_log()] == list(range(1, 11))


def test_a_limit_in_minutes_ends_a_search_where_it_would_have_ended_uncut(
    prepared: tuple[Config, Run, Cache, Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, _, cache, recipe = prepared
    limited = replace(config, search=replace(config.search, minutes=1.0))
    identity = repr((limited.search, recipe, cache.encoder, cache.source))
    done: list[int] = []

    def tries(_: pool.Workers, jobs: list[Job]) -> Iterator[Trial]:
        """Candidates of 15 s each, one after the other."""
        for job in jobs:
            done.append(job.trial)
            yield Trial(job.trial, job.genotype, "done", reward1=0.5, cpu1=10.0, cpu2=5.0)

    monkeypatch.setattr(pool.Workers, "tried", tries)
    run = Run(tmp_path / "uncut", quiet=True)
    run.open()
    whole = search(limited, run, cache, recipe, Cost())
    assert [trial.trial for trial in whole] == [0, 1, 2, 3, 4]  # the fifth begins at the sixtieth second
    assert done == [0, 1, 2, 3, 4]  # within a generation of 8
    for name, there in (("cut", (0, 1, 2)), ("beside", (0, 1, 2, 3, 4, 5, 7)), ("ended", (0, 1, 2, 3, 4))):
        done.clear()
        part = Run(tmp_path / name, quiet=True)
        part.open()
        ledger = Trials(part.out / "trials.sqlite", identity)
        found = strategy(limited.search.strategy, 2, mix(part.seed, "strategy"), feedback=limited.search.feedback)
        drawn = [str(found.ask().genotype) for _ in range(8)]
        for number in there:
            ledger.add(Trial(number, drawn[number], "done", reward1=0.5, cpu1=10.0, cpu2=5.0))
        again = search(limited, part, cache, recipe, Cost())
        assert [(t.trial, t.genotype) for t in again] == [(t.trial, t.genotype) for t in whole], name
        assert done == [number for number in range(5) if number not in there], name


@pytest.mark.slow
def test_the_gate_decides_by_the_reward_that_is_left_of_it_for_its_time(
    prepared: tuple[Config, Run, Cache, Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run, cache, recipe = prepared
    jobs: list[Job] = []

    def tries(_: pool.Workers, asked: list[Job]) -> Iterator[Trial]:
        for job in asked:
            jobs.append(job)
            yield Trial(job.trial, job.genotype, "done", reward1=0.5, reward2=0.5)

    monkeypatch.setattr(pool.Workers, "tried", tries)
    parts = tuple((0.1 * n,) * 11 for n in range(1, 5))
    cost = Cost(Table((10.0,) * 4, (0.0,) * 4, parts, (0.5,) * 4, (0.0,) * 4, (2.0,) * 4), target=5.0)
    for trial, job in zip(search(config, run, cache, recipe, cost), jobs, strict=True):
        assert job.charge == pytest.approx(5.0 / trial.latency)  # type: ignore[operator]
    assert jobs[9].before == pytest.approx([0.5 * job.charge for job in jobs[:8]])

    reward = reward_of(Confusion(2))
    monkeypatch.setattr("segue.search.candidates.train_decoder", lambda *_: reward._replace(value=0.6))
    monkeypatch.setattr("segue.search.candidates.train_end_to_end", lambda *_: reward)
    before = (0.5, 0.4, 0.5, 0.4)
    verdicts = [
        try_candidate(Job(cache.folder, recipe, 9_999, ARCH1, before, charge=charge)).verdict for charge in (1.0, 0.25)
    ]
    assert verdicts == ["accepted", "stopped"]


def test_a_run_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    identity = {"verb": "compress", "seed": 0, "config": {"parallel": 8, "ray": "", "blocks": 2}}
    (tmp_path / "run.json").write_text(json.dumps({"identity": identity}))
    config = identity["config"]
    assert isinstance(config, dict)
    claim_folder(tmp_path, {**identity, "config": {**config, "parallel": 1, "ray": "auto"}}, ANYHOW)
    with pytest.raises(UsageError, match="blocks: 2 there, 3 here"):
        claim_folder(tmp_path, {**identity, "config": {**config, "blocks": 3}}, ANYHOW)
    fields = {field.name for field in dataclasses.fields(config_for(tmp_path).search)}
    assert set(ANYHOW) <= fields


def test_what_is_pasted_in_a_search_is_of_images_that_it_trains_on(dataset: Path) -> None:
    config = config_for(dataset, copy_paste="disc")
    data = open_compression(config.teacher, config.data, seed=0)
    kept, held, paste = divided(data.training, "disc", 0, 4000)
    assert paste is not None
    assert not {pair.name for pair in kept} & {pair.name for pair in held}
    decoder, classes = data.training.decoder, data.training.classes
    alone, _ = learn(kept, by_class(decoder), classes, "disc", seed=0)
    of_all, _ = learn(data.training.labelled, by_class(decoder), classes, "disc", seed=0)
    sizes = [sum(map(len, found.cutouts.values())) for found in (paste, alone, of_all)]
    assert sizes[0] == sizes[1] < sizes[2]
    assert [len(part) for part in divided(data.training, "", 0, 5)[:2]] == [4, 1]


def test_room_for_a_cache_is_taken_at_once(
    prepared: tuple[Config, Run, Cache, Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run, cache, _ = prepared
    shutil.rmtree(cache.folder)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        cached(config, run, open_compression(config.teacher, config.data, seed=0), None)
    assert [path.name for path in run.out.iterdir() if "cache" in path.name] == []


def test_the_cache_is_found_from_another_folder(
    prepared: tuple[Config, Run, Cache, Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, cache, _ = prepared
    monkeypatch.chdir(cache.folder.parent)
    assert Cache.open(Path("cache")).folder == cache.folder.resolve()


def test_a_cache_made_anew_in_its_folder_is_the_one_that_candidates_see(
    prepared: tuple[Config, Run, Cache, Recipe], tmp_path: Path
) -> None:
    config, run, cache, _ = prepared
    np.testing.assert_array_equal(opened(cache.folder).train.images, cache.train.images)
    shutil.rmtree(cache.folder)
    made = cached(config, Run(run.out, seed=1, quiet=True), open_compression(config.teacher, config.data, seed=0), None)
    assert not np.array_equal(made.train.images, cache.train.images)  # other crops
    np.testing.assert_array_equal(opened(cache.folder).train.images, made.train.images)


def test_reliability_is_measured_once_a_run_and_by_short_trainings_alone(
    prepared: tuple[Config, Run, Cache, Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run, cache, recipe = prepared
    tries: list[str] = []

    def tried_once(job: Job) -> Trial:
        tries.append(job.recipe.gate)
        return Trial(job.trial, job.genotype, "stopped", reward1=0.1 * len(tries))

    monkeypatch.setattr("segue.search.candidates.try_candidate", tried_once)
    first, again = (measured_once(run.out, cache, recipe, config.search.blocks, run.say) for _ in range(2))
    assert first == again
    assert tries == ["never"] * 9


@pytest.mark.slow
def test_reliability_is_measured_and_told(prepared: tuple[Config, Run, Cache, Recipe]) -> None:
    _, _, cache, recipe = prepared
    told: list[str] = []
    assert 0 <= measured_reliability(cache, recipe, 2, told.append) <= 1
    assert "variance is the genotype's" in told[0]


def test_slower_candidates_are_worth_less() -> None:
    table = Table(
        (5.0, 6.0, 9.0, 10.0), (0.1, 0.2, 0.4, 0.8), ((1.0,) * 11,) * 4, (0.5,) * 4, (8.0, 0.25, 0.125, 8.0),
        (9.0, 2.0, 9.0, 9.0),
    )  # fmt: skip
    cost = Cost(table, target=20.0, power=1.0)
    # maps 1 to 3: 10 + 1.4
    # two blocks of two cells of (7 + 0.5); block 4 of maps 2 and 3 brings one to 2, block 5 of 3 and 1 one to 1;
    # both are loose: two projections at 1, block 4 is brought there, and one classifier at 1
    assert cost.latency(ARCH1) == pytest.approx(10 + 1.4 + 30 + 0.125 + 0.25 + 2 * 0.5 + 0.25 + 2.0)
    assert table.fastest(2) == pytest.approx(5 + 0.1 + 30 + 0.5 + 2.0)
    finer = Genotype.parse(ARCH1)
    finer = replace(finer, blocks=((0, 1), (1, 4)))  # takes maps 0 and 1 alone: the encoder ends there
    assert table.maps({0, 1}) == pytest.approx(6.0 + 0.3)
    assert table.estimate(finer) == pytest.approx(6.3 + 30 + 8.0 + 8.0 + 0.5 + 9.0)
    trial = Trial(0, ARCH1, "stopped", reward1=0.6, latency=40.0)
    assert cost.worth(trial) == pytest.approx(0.3)
    assert Cost().worth(Trial(0, ARCH1, "done", reward1=0.6, reward2=0.7)) == 0.7
    assert len(STRIDES) == len(table.operations)


@pytest.mark.parametrize("index", [i for i in range(len(OPERATIONS)) if i not in (SKIP, ZERO)])
def test_a_part_as_it_is_timed_computes_what_it_computes(index: int) -> None:
    pytest.importorskip("onnxruntime")
    torch.manual_seed(index)
    part, x = operation(index, 8, 2).eval(), torch.rand(1, 8, 16, 12)
    for norm in (module for module in part.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        norm.eps = 0.0  # with mean 0 and variance 1 it is then the identity that the graph takes it for
    (found,) = part_runner(part, x, 1, adds=True)()  # type: ignore[misc]
    with torch.inference_mode():
        torch.testing.assert_close(torch.from_numpy(found), part(x) + x, atol=1e-5, rtol=1e-5)


def test_the_end_of_a_model_as_it_is_timed_computes_what_it_computes() -> None:
    pytest.importorskip("onnxruntime")
    x = torch.rand(1, 5, 4, 6)
    large = enlarged(x, (16, 24))
    (found,) = enlarging_runner(x, (16, 24), 1)()  # type: ignore[misc]
    torch.testing.assert_close(torch.from_numpy(found), large, atol=1e-5, rtol=1e-5)
    (picked,) = enlarging_runner(x, (16, 24), 1, picks=True)()  # type: ignore[misc]
    assert (torch.from_numpy(picked) == large.argmax(1)).float().mean() > 0.99  # rounding decides a tie


@pytest.mark.slow
def test_an_exported_model_ends_with_the_coarsest_map_that_is_taken(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    from segue.export.graph import write_onnx

    encoder, x = feature_encoder("test_resnet").eval(), torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        maps = encoder(x)
    for number, run in enumerate(maps_runners(encoder, x, 1)):
        found = run()
        assert len(found) == number + 1  # type: ignore[arg-type]
        for one, other in zip(found, maps, strict=False):  # type: ignore[call-overload]
            torch.testing.assert_close(torch.from_numpy(one), other, atol=1e-4, rtol=1e-4)

    def convolutions(blocks: tuple[tuple[int, int], ...]) -> int:
        genotype = replace(Genotype.parse(ARCH1), blocks=blocks)
        spec = CompactSpec("test_resnet", ("a", "b"), ((0, 0, 0), (9, 9, 9)), str(genotype), channels=4)
        write_onnx(CompactSegmenter(spec).eval(), tmp_path / "model.onnx")
        return sum(node.op_type == "Conv" for node in onnx.load(tmp_path / "model.onnx").graph.node)

    assert convolutions(((0, 1), (1, 4))) < convolutions(((0, 1), (3, 4)))


@pytest.mark.skipif(sys.platform == "win32", reason="its clock of a thread is coarse")
def test_a_table_counts_no_time_in_which_a_thread_waits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def waits(*_: Any, **__: Any) -> Callable[[], object]:
        return lambda: time.sleep(0.001)

    for runner in ("part_runner", "enlarging_runner"):
        monkeypatch.setattr(f"segue.search.latency.{runner}", waits)
    monkeypatch.setattr("segue.search.latency.maps_runners", lambda *_: [waits()] * 4)
    encoder = torch.nn.Identity()
    monkeypatch.setattr(encoder, "forward", lambda _: [torch.rand(1, 4, 8 >> i, 8 >> i) for i in range(4)])
    one, two = (
        Table.made(tmp_path / f"{n}.json", encoder, height=32, width=32, channels=4, repeats=1, classes=2, threads=n)
        for n in (1, 2)
    )
    assert one.fastest(2) < 5 < two.fastest(2)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system pins no thread")
def test_a_time_is_taken_on_as_many_cores_as_were_asked_for() -> None:
    before = os.sched_getaffinity(0)
    with on_cores(1):
        bound = {thread.native_id: os.sched_getaffinity(thread.native_id or 0) for thread in threading.enumerate()}
        assert all(len(cores) == 1 for cores in bound.values())
    assert os.sched_getaffinity(0) == before
    assert sorted(idlest(sorted(before), seconds=0.02)) == sorted(before)
    assert idlest([7_000, 8_000], seconds=0.0) == [7_000, 8_000]  # of which the system says nothing


@pytest.mark.parametrize("text", ["25@512x512", "0ms@512x512", "25ms", "25ms@8x512", "ms@1x1"])
def test_a_target_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="as 25ms@512x512"):
        Target.parse(text)


def test_width_and_height_of_a_target_are_told_apart() -> None:
    assert Target.parse("25.5ms@640x480") == Target(25.5, 480, 640)


# -- the model ---------------------------------------------------------------------------------------------------------


def test_frozen_statistics_do_not_move_and_the_teacher_is_not_saved() -> None:
    spec = CompactSpec("test_efficientnet", ("a", "b"), ((0, 0, 0), (9, 9, 9)), ARCH1, channels=8, repeats=1)
    network = CompactSegmenter(spec)
    teacher = CompactSegmenter(spec).eval()
    method = Distilled(
        network, AuxiliaryHeads(network.decoder), teacher, Config(), aux_weight=0.15, frozen=True, background=-1
    ).train()
    before = {name: tensor.clone() for name, tensor in method.state_dict().items() if "running" in name}
    image = torch.randint(0, 256, (2, 3, 80, 64), dtype=torch.uint8)
    batch = {"image": image, "mask": torch.zeros(2, 80, 64), "inside": torch.ones(2, 80, 64, dtype=torch.bool)}
    losses = method(batch)
    torch.autograd.backward(torch.stack(list(losses.values())).sum())
    assert all(torch.equal(method.state_dict()[name], tensor) for name, tensor in before.items())
    assert all(p.grad is None for p in teacher.parameters())
    assert not any("teacher" in name for name in method.state_dict())


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_from_teacher_to_a_small_model(segue: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", train=10, size=64)
    teacher, out = semantic_teacher(tmp_path / "teacher"), tmp_path / "run"
    fields = [f"--{n}={str(v).lower() if isinstance(v, bool) else v}" for n, v in FIELDS.items()]
    given = ["compress", teacher, "--data", root, "--out", out, "--device", "cpu", "--precision", "fp32", *fields]
    more = ("--finalists", 2, "--finalist-seeds", 2, "--controls", 2, "--lr-aspp", "true", "--compare")
    status, output, errors = segue(*given, "--target", "400ms@96x64", "--reliable", "true", *more, "--json")
    assert status == 0, errors
    assert "search 10/10" in errors
    assert json.loads(output)["model"] == str(out / "model")
    numbers = json.loads((out / "compression.json").read_text())
    controls = {"DeepLabV3+ on the same encoder", "LR-ASPP", "random 1", "random 2"}
    assert set(numbers) == {"teacher", "found", "finalist 1", "finalist 2", *controls}
    outcomes, chosen = read_outcomes(out)
    assert len(outcomes) == 7  # two finalists twice, and three controls
    mine = [o for o in outcomes if o.name == chosen]
    assert max(o.miou for o in mine) == pytest.approx(
        json.loads((out / "evaluation.json").read_text())["scores"]["miou"]
    )
    assert numbers[chosen]["miou"] == pytest.approx(sum(o.miou for o in mine) / 2)
    assert all(row["memory"] > 1 for row in numbers.values())
    assert numbers["found"]["milliseconds"] < 400
    page = (out / "report.html").read_text()
    assert "What was won and lost" in page
    assert "Search: of 10 candidates number" in page
    status, output, _ = segue("predict", out, root / "images", "--out", tmp_path / "found")
    assert status == 0
    with Image.open(tmp_path / "found" / "labels" / "test_012.png") as image:
        assert image.size == (64, 64)
    assert all(name in page for name in ("Accuracy against time", "their mean", "The cell that was found", "LR-ASPP"))
    status, _, errors = segue(*given, "--target", "400ms@96x64", "--reliable", "true", *more)
    assert status == 0
    assert errors.count("finished before") == 2


@pytest.mark.slow
def test_finalists_cut_short_end_as_if_they_had_not_been(tmp_path: Path) -> None:
    config = config_for(write_set(tmp_path / "set", train=10, size=64), finalists=2, steps=6, end_steps=0)
    data = open_compression(config.teacher, config.data, seed=0)
    whole = train(config, Run(tmp_path / "whole", quiet=True), data).state_dict()
    for lines in (5, config.search.candidates, 2):  # written before the next cut
        with pytest.raises(CutError):
            train(config, CutRun(tmp_path / "cut", quiet=True, lines=lines), data)
    resumed = train(config, Run(tmp_path / "cut", quiet=True), data).state_dict()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    steps = [[(line["stage"], line["step"]) for line in Run(tmp_path / n).read_log()] for n in ("whole", "cut")]
    assert steps[0] == steps[1]


@pytest.mark.slow
def test_what_cannot_be_searched_is_one_line(
    segue: Callable[..., tuple[int, str, str]], dataset: Path, tmp_path: Path
) -> None:
    teacher = semantic_teacher(tmp_path / "teacher")
    fields = [f"--{n}={str(v).lower() if isinstance(v, bool) else v}" for n, v in FIELDS.items()]

    def refused(*changes: object, teacher: Path = teacher) -> str:
        out = tmp_path / f"x{len(list(tmp_path.iterdir()))}"
        status, _, errors = segue("compress", teacher, "--data", dataset, "--out", out, *fields, *changes)
        assert status == 2
        assert not out.exists()
        return errors.splitlines()[-1]

    assert "--encoder: timm has no encoder 'mobilenetv2_10O'; near it: mobilenetv2_" in refused(
        "--encoder", "mobilenetv2_10O"
    )
    assert "--encoder: the encoder 'convnext_atto' gives no feature maps" in refused("--encoder", "convnext_atto")
    assert "no such file or folder" in refused("--init", "gone.safetensors")
    assert "is no genotype" in refused("--genotype", "[[1]]")
    dead = f"[[2,[1,0,{ZERO},{ZERO}],[0,1,{ZERO},{ZERO}],[2,0,{ZERO},{ZERO}]],[[2,3],[3,1]]]".replace(
        "[[2,", f"[[{ZERO},", 1
    )
    assert "can learn nothing: its output is zero" in refused("--genotype", dead)
    assert "with kl it is a share" in refused("--distill", "kl", "--distill_weight", "3")
    assert "--output_stride is of the DeepLabV3+ that --compare trains" in refused("--output_stride", "8")
    assert "give at least 1" in refused("--candidates", "0")
    assert "--finalists 0: give at least 1" in refused("--finalists", "0")
    assert "write milliseconds" in refused("--target", "fast")
    assert "holds no model" in refused(teacher=dataset)
    assert "multiple of 32" in refused("--search_crop", "50")
    described = json.loads((dataset / "dataset.json").read_text())
    described["classes"] = ["ground", "disc", "bus"]
    (dataset / "dataset.json").write_text(json.dumps(described))
    assert "same names in the same order" in refused()


@pytest.mark.slow
def test_a_genotype_that_is_given_is_trained_without_a_search(dataset: Path, tmp_path: Path) -> None:
    fields = {name: value for name, value in TINY.items() if name != "decoder_channels"}
    out = segue.compress(
        semantic_teacher(tmp_path / "teacher"), str(dataset), tmp_path / "run", genotype=ARCH1, quiet=True,
        device="cpu", precision="fp32", channels=8, **fields,
    )  # fmt: skip
    assert segue.load_model(str(out)).spec.genotype == str(Genotype.parse(ARCH1))  # type: ignore[union-attr]
    assert not (out / "trials.sqlite").exists()


def test_what_is_said_of_a_search_is_refused_beside_a_genotype(
    segue: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    given = ["compress", "teacher", "--data", tmp_path, "--out", tmp_path / "run", "--genotype", ARCH1]
    status, _, errors = segue(*given, "--encoder=test_efficientnet", "--budget=3h")
    assert status == 2
    assert "--minutes or --budget: with --genotype nothing is searched" in errors
    plain: dict[str, Any] = {"encoder": "test_efficientnet", "genotype": ARCH1}
    for field, value in (
        ("candidates", 9), ("strategy", "random"), ("gate", "never"), ("ray", "auto"), ("parallel", 2),
        ("finalists", 3), ("controls", 1), ("decoder_steps", 7), ("cost", 2.0), ("reliable", False),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=f"--{field.replace('_', '-')}: with --genotype nothing is searched"):
            refuse(build(Config, {**plain, field: value}))
    refuse(build(Config, {**plain, "target": "20ms@64x64", "threads": 2}))


def test_a_panoptic_teacher_is_refused(dataset: Path, tmp_path: Path) -> None:
    from test_contract import historic

    with pytest.raises(DataError, match="is a panoptic model"):
        open_compression(
            str(historic(tmp_path / "historic", is_panoptic=True)), build(Config, {"data": str(dataset)}).data, seed=0
        )


# -- options of the command line ---------------------------------------------------------------------------------------


def test_budget_and_device_are_read() -> None:
    assert [minutes(text) for text in ("90s", "20m", "3h")] == [1.5, 20, 180]
    for text in ("3", "0h", "-1h", "3d"):
        with pytest.raises(UsageError, match="write a time, as 90s, 20m or 3h"):
            minutes(text)
    assert device_and_threads("cpu:1thread") == ("cpu", ["--threads=1"])
    assert device_and_threads("cpu:4threads") == ("cpu", ["--threads=4"])
    assert device_and_threads("cuda:1") == ("cuda:1", [])


def test_a_search_does_not_go_on_with_other_data(prepared: tuple[Config, Run, Cache, Recipe]) -> None:
    config, run, _, _ = prepared
    path = Path(config.data.data) / "labels" / "train_000.png"
    with Image.open(path) as image:
        image.putpixel((0, 0), (image.getpixel((0, 0)) + 1) % 3)
        image.save(path)
    data = open_compression(config.teacher, config.data, seed=0)
    with pytest.raises(DataError, match="the data or the teacher changed since this search began"):
        cached(config, run, data, None)


@pytest.mark.slow
def test_a_ledger_does_not_go_on_with_other_data_though_its_cache_is_gone(
    prepared: tuple[Config, Run, Cache, Recipe],
) -> None:
    config, run, cache, recipe = prepared
    search(config, run, cache, recipe, Cost())
    with pytest.raises(DataError, match="ledger of another search, of other data or of another version"):
        search(config, run, replace(cache, source="other pixels"), recipe, Cost())


@pytest.mark.slow
def test_the_ledger_says_how_every_candidate_came_about(prepared: tuple[Config, Run, Cache, Recipe]) -> None:
    config, run, cache, recipe = prepared
    before = time.time()
    trials = search(config, run, cache, recipe, Cost())
    for trial in trials:
        assert trial.tokens == Genotype.parse(trial.genotype).tokens()
        assert trial.policy_version == 8 * (trial.trial // 8)  # asked for in groups of 8
        assert trial.verdict == {"done": "accepted", "stopped": "stopped"}[trial.state]
        assert before < trial.started < trial.finished < time.time()
        assert trial.cpu1 > 0
        assert trial.host
    with closing(sqlite3.connect(run.out / "trials.sqlite")) as ledger:
        about = json.loads(ledger.execute("SELECT about FROM search").fetchone()[0])
    assert about["strategy"] == "evolution"
    assert about["data"] == cache.source != ""
    assert about["segue"] == segue.__version__


@pytest.mark.slow
def test_a_target_that_cannot_be_met_is_said_before_a_candidate_is_tried(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tried(*_: Any) -> None:
        raise AssertionError("a candidate was tried, or the teacher asked")

    monkeypatch.setattr("segue.search.candidates.train_decoder", tried)
    monkeypatch.setattr("segue.methods.compact_search.build_cache", tried)
    config = config_for(dataset, target="0.01ms@64x64", reliable=True)
    data = open_compression(config.teacher, config.data, seed=0)
    with pytest.raises(UsageError, match="comes below"):
        train(config, Run(tmp_path / "run", quiet=True), data)


@pytest.mark.slow
def test_fewer_images_than_a_batch_are_searched_and_trained_on(tmp_path: Path) -> None:
    config = config_for(write_set(tmp_path / "set", train=3, size=64), batch=8, decoder_batch=16, candidates=2, steps=3)
    run = Run(tmp_path / "run", quiet=True)
    train(config, run, open_compression(config.teacher, config.data, seed=0))
    assert [line["step"] for line in run.read_log() if line["stage"] != "search"] == [1, 1, 1]
    assert {line["step"] for line in run.read_log() if "reward1" in line} == {1, 2}


def test_two_images_with_one_crop_each_are_enough_for_a_genotype_with_global_averages(tmp_path: Path) -> None:
    config = config_for(write_set(tmp_path / "set", train=2, size=64), draws=1, images=2)
    run = Run(tmp_path / "run", quiet=True)
    run.open()
    data = open_compression(config.teacher, config.data, seed=0)
    cache = cached(config, run, data, None)
    assert list(draws(cache.train, 4, 2)) == [[0, 0], [0, 0]]
    recipe = replace(recipe_of(config, data.training.classes, 0), gate="always")
    trial = try_candidate(Job(cache.folder, recipe, 0, ARCH1.replace("[[2,", f"[[{GLOBAL},", 1)))
    assert (trial.state, trial.error) == ("done", "")


def test_one_class_is_refused_in_a_line(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", train=4, size=64)
    described = json.loads((root / "dataset.json").read_text())
    described |= {"classes": ["ground"], "colors": [[0, 0, 0]]}
    (root / "dataset.json").write_text(json.dumps(described))
    for path in (root / "labels").iterdir():
        with Image.open(path) as image:
            pixels = np.array(image)
        Image.fromarray(np.where(pixels > 0, 255, 0).astype(np.uint8)).save(path)
    torch.manual_seed(0)
    spec = SegmenterSpec("test_efficientnet", ("ground",), ((0, 0, 0),), decoder_channels=16)
    save_model(Segmenter(spec), tmp_path / "teacher", method="none", metrics={})
    with pytest.raises(DataError, match="has one class, ground: every decoder is right everywhere"):
        open_compression(str(tmp_path / "teacher"), build(Config, {"data": str(root)}).data, seed=0)
