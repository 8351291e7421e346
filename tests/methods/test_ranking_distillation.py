"""Soft-label ranking self-distillation, step by step, and the command."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, write_set
from PIL import Image
from torch import Tensor

from segue.config import build, leaves
from segue.data.candidates import Candidates, area_window, evenly
from segue.data.listing import Pair
from segue.data.unlabelled import open_image_set
from segue.embeddings import centred, most_similar, spherical_clusters
from segue.engine import Run
from segue.errors import DataError
from segue.health import history
from segue.losses import ranking_loss
from segue.losses.prototypes import even_codes
from segue.methods.ranking_distillation import (
    Config,
    RankingDistillation,
    image_loss,
    patch_loss,
    train,
    unit_images,
    unit_patches,
)
from segue.starting import new_encoder
from segue.weights import load_encoder

SMALL = {"encoder": "test_efficientnet", "init": "random", "crop": 32, "batch": 4, "steps": 6, "refresh": 4}
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Ten pictures without splits."""
    return write_set(tmp_path / "set", splits=False)


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def options(**changes: object) -> list[str]:
    return [f"--{name}={value}" for name, value in {**SMALL, **changes}.items()]


def test_a1_clusters_of_three_directions() -> None:
    directions = torch.eye(3).repeat_interleave(5, 0)
    points = F.normalize(directions + 0.1 * unit(15, 3), dim=1)
    found = spherical_clusters(points, 3, seed=0)
    assert len({tuple(found[k : k + 5].tolist()) for k in (0, 5, 10)}) == 3
    assert all(len(found[k : k + 5].unique()) == 1 for k in (0, 5, 10))
    assert torch.equal(found, spherical_clusters(points, 3, seed=0))


def test_a1_positives_are_the_nearest_of_the_same_cluster_by_hand() -> None:
    angles = torch.tensor([0.0, 10, 30, 31, 90]) * math.pi / 180
    points = torch.stack([angles.cos(), angles.sin()], 1)
    found = most_similar(points, torch.tensor([0, 0, 0, 1, 1]), 2)
    assert found.tolist() == [[1, 2], [0, 2], [1, 0], [4, -1], [3, -1]]  # 2 and 3 are near, but of two clusters
    alone = most_similar(points, torch.tensor([0, 0, 0, 0, 2]), 2)
    assert alone[4].tolist() == [3, -1]  # alone in its cluster: the nearest of all


def test_a1_many_images_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another size of parts the same, but for sums in another order."""
    points = F.normalize(torch.eye(3).repeat_interleave(30, 0) + 0.1 * unit(90, 3), dim=1)
    clusters, near = spherical_clusters(points, 3, seed=0), most_similar(points, torch.arange(90) % 2, 5)
    assert all(len(own.unique()) == 5 and own.min() >= 0 for own in near)
    for part in (1, 7, 89):
        monkeypatch.setattr("segue.embeddings.PART", part)
        assert torch.equal(spherical_clusters(points, 3, seed=0), clusters)
        assert torch.equal(most_similar(points, torch.arange(90) % 2, 5), near)


def test_a1_embeddings_are_compared_about_their_mean() -> None:
    found = centred(torch.tensor([[10.0, 1], [10, -1], [11, 0], [9, 0]]))
    torch.testing.assert_close(found, torch.tensor([[0.0, 1], [0, -1], [1, 0], [-1, 0]]))
    with pytest.raises(DataError, match="look alike"):
        centred(torch.ones(5, 3))
    with pytest.raises(DataError, match="look alike"):  # one image, in batches of different size
        centred(torch.tensor([[10.0, 1], [10, 1], [10.0001, 1]]))
    assert centred(torch.tensor([[10.0, 1], [10, 1], [10.01, 1]])).shape == (3, 2)
    with pytest.raises(DataError, match="no numbers"):
        centred(torch.tensor([[1.0], [math.nan]]))


def method_of(**fields: Any) -> RankingDistillation:
    torch.manual_seed(0)
    config = build(Config, {**SMALL, **fields})
    encoder = new_encoder("test_efficientnet", "random", output_stride=16, say=lambda text: None)
    method = RankingDistillation(encoder, 6, config.refresh, config)
    method.clusters = torch.tensor([0, 0, 1, 1, 2, 2])
    return method


def test_eq_1_candidates_are_the_positive_and_images_of_other_clusters() -> None:
    found = method_of().candidates(torch.tensor([0, 2, 1]), torch.tensor([1, 3, 4]))
    # Anchors of clusters 0, 1, 0; positives of 0, 1, 2 (the last one crosses, as where an image is alone in its own).
    assert found.int().tolist() == [[0, 1, 0, 1, 1, 1], [1, 0, 1, 1, 1, 1], [0, 1, 0, 0, 1, 1]]


@pytest.mark.parametrize("objective", ["ranking", "mse"])
def test_eq_2_ranks_the_candidates_of_each_anchor_and_no_others(objective: str) -> None:
    config = build(Config, {**SMALL, "objective": objective, "tau_image": 0.3})
    student, teacher = unit(6, 5), unit(6, 5, seed=1)
    may = torch.tensor([[0, 1, 0, 1, 1, 1], [1, 0, 1, 1, 1, 1], [0, 1, 0, 0, 0, 1]], dtype=torch.bool)
    rows, every = [], []
    for i in range(3):
        places = [j for j in range(6) if may[i, j]]
        s = torch.tensor([float(student[i] @ student[j]) for j in places])
        t = torch.tensor([float(teacher[i] @ teacher[j]) for j in places])
        rows.append(float(ranking_loss(s, t, tau=0.3)))
        every += ((s - t) ** 2).tolist()
    expected = sum(rows) / 3 if objective == "ranking" else sum(every) / len(every)
    assert float(image_loss(student, teacher, may, config)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("lists", ["pair", "row", "batch"])
def test_eq_3_ranks_the_patches_of_an_image_and_its_positive(lists: str) -> None:
    config = build(Config, {**SMALL, "lists": lists, "others": 1, "alpha": 0.3, "tau_patch": 0.2})
    student, teacher = unit(6, 4, 5), unit(6, 4, 5, seed=1)
    s_all, t_all, match_all = [], [], []
    for x in range(3):
        s, t, match = [], [], []
        for i in range(4):
            for other in (3 + x, 3 + (x - 1) % 3):  # the positive, then that of another anchor
                for j in range(4):
                    s.append(float(student[x, i] @ student[other, j]))
                    t.append(float(teacher[x, i] @ teacher[other, j]))
                    match.append(other == 3 + x)
        s_all.append(s), t_all.append(t), match_all.append(match)
    shape = {"pair": (3, 32), "row": (12, 8), "batch": (1, 96)}[lists]
    expected = ranking_loss(
        torch.tensor(s_all).reshape(shape), torch.tensor(t_all).reshape(shape),
        is_match=torch.tensor(match_all).reshape(shape), alpha=0.3, tau=0.2,
    )  # fmt: skip
    torch.testing.assert_close(patch_loss(student, teacher, config), expected, rtol=1e-5, atol=0)


def batch_of(method: RankingDistillation) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    size = (4, 2, 3, 32, 32)
    strong, image = (torch.randint(0, 256, size, generator=generator, dtype=torch.uint8) for _ in range(2))
    return {
        "strong": strong,
        "image": image,
        "index": torch.tensor([0, 2, 4, 1]),
        "positive": torch.tensor([1, 3, 5, 0]),
    }


def test_maps_become_unit_patches_and_images_in_the_order_of_the_places() -> None:
    maps = torch.arange(1.0, 13).reshape(1, 2, 2, 3)
    patches = unit_patches(maps)
    torch.testing.assert_close(patches[0, 4], torch.tensor([5.0, 11]) / math.hypot(5, 11))  # second row, second column
    torch.testing.assert_close(unit_images(maps)[0], torch.tensor([3.5, 9.5]) / math.hypot(3.5, 9.5))


def test_eq_4_weighs_both_losses_and_a4_only_the_student_learns() -> None:
    method = method_of(image_weight=2.0, patch_weight=0.0, embedding=8)
    batch = batch_of(method)
    losses = method.train()(batch)
    assert losses["patch"] == 0
    assert not method.teacher.training
    images = unit_images(method.student(batch["strong"].transpose(0, 1).flatten(0, 1))[1])
    teacher = unit_images(method.teacher(batch["image"].transpose(0, 1).flatten(0, 1))[1])
    may = method.candidates(batch["index"], batch["positive"])
    torch.testing.assert_close(losses["image"], 2 * image_loss(images, teacher, may, method.config))
    losses["image"].backward()
    assert all(p.grad is not None for p in method.student.parameters())
    assert all(p.grad is None for p in method.teacher.parameters())


def test_eq_5_the_teacher_follows_on_its_schedule() -> None:
    method = method_of(ema_start=0.5, ema_end=0.9, steps=4)
    for step, decay in ((0, 0.5), (2, 0.7), (3, 0.9 - 0.4 * (1 + math.cos(0.75 * math.pi)) / 2)):
        teacher, student = (next(branch.parameters()) for branch in (method.teacher, method.student))
        with torch.no_grad():
            student.add_(1.0)
            expected = decay * teacher + (1 - decay) * student
        method.after_step(step)
        torch.testing.assert_close(teacher, expected)


def test_a6_stops_when_the_loss_has_not_fallen_for_a_while() -> None:
    method = method_of(patience=2, refresh=2, steps=100)
    told = []
    for step, loss in enumerate((5.0, 3.0, 2.0, 2.0, 2.0, 2.0, 1.9, 2.1)):  # spans: 4, 2, 2, 2
        method.recent += torch.tensor([loss, 1.0], dtype=torch.float64)
        method.after_step(step)
        told.append(method.has_converged())
    assert told == [False] * 7 + [True]
    method, falling = method_of(patience=3, refresh=1), [0.9955**i for i in range(20)]  # by less than 0.5 % a span
    for step, loss in enumerate(falling):
        method.recent += torch.tensor([loss, 1.0], dtype=torch.float64)
        method.after_step(step)
        assert not method.has_converged()
    method = method_of(patience=0, refresh=1)
    for step in range(20):
        method.after_step(step)
    assert not method.has_converged()


def test_a6_a_span_ends_though_its_last_step_is_refused() -> None:
    method = method_of(patience=1, refresh=2, steps=100)
    for step, loss in ((0, 2.0), (2, 2.0), (3, 2.0)):  # step 1 is not taken
        method.recent += torch.tensor([loss, 1.0], dtype=torch.float64)
        method.after_step(step)
    assert method.has_converged()
    assert method.recent.tolist() == [0, 0]


def test_a_look_after_a_refused_step_has_the_number_that_is_logged(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def loss(*arguments: Any, **options: Any) -> Tensor:
        calls.append(len(calls) // 2)  # two lists a step
        return ranking_loss(*arguments, **options) * (math.nan if calls[-1] == 1 else 1.0)

    monkeypatch.setattr("segue.methods.ranking_distillation.ranking_loss", loss)
    run = Run(tmp_path / "run", quiet=True)
    train(build(Config, {**SMALL, "steps": 5, "refresh": 2}), run, open_image_set(str(dataset)))
    assert [line["step"] for line in run.read_log() if "refused" in line] == [2]
    assert [step for step, _ in history(run)] == [0, 2, 4, 5]
    assert {int(path.name.split("_")[0]) for path in (run.out / "panels").iterdir()} == {0, 2, 4, 5}


def test_probes_are_even_over_the_whole_set(tmp_path: Path) -> None:
    pairs = []
    for i in range(15):
        Image.new("RGB", (16, 16), (i, i, i)).save(tmp_path / f"{i:02d}.png")
        pairs.append(Pair(str(i), tmp_path / f"{i:02d}.png"))
    assert evenly(pairs, 8, 16)[:, 0, 0, 0].tolist() == [0, 1, 3, 5, 7, 9, 11, 13]
    assert evenly(pairs[:3], 8, 16)[:, 0, 0, 0].tolist() == [0, 1, 2]


def test_v1_and_v2_show_the_same_places(dataset: Path) -> None:
    images = open_image_set(str(dataset)).images
    neighbours = np.full((10, 2), -1)
    neighbours[:, 0] = np.arange(10)[::-1]
    torch.manual_seed(1)
    views = Candidates(images, neighbours, 32, (0.25, 1.0))
    moved, changed = [], 0
    for i in range(10):
        sample = views[i]
        assert sample["positive"] == 9 - i
        assert sample["image"].shape == sample["strong"].shape == (2, 3, 32, 32)
        weak, strong = (sample[key].float().mean(1).flatten(1) for key in ("image", "strong"))
        moved.append(abs(float(torch.corrcoef(torch.stack([weak[0], strong[0]]))[0, 1])))
        changed += not torch.equal(sample["image"], sample["strong"])
    assert changed >= 7  # one in twelve keeps its colours and is not blurred
    assert np.median(moved) > 0.6  # the same picture under other colours; blur takes the fixture's noise


def test_pictures_of_a_run_among_the_images_are_no_images(dataset: Path) -> None:
    images = dataset / "images"
    before = open_image_set(str(images)).images
    (images / "run" / "panels").mkdir(parents=True)
    shutil.copy(before[0].image, images / "run" / "panels" / "step_1.png")
    assert len(open_image_set(str(images)).images) == len(before) + 1
    (images / "run" / "run.json").write_text("{}")
    assert open_image_set(str(images)).images == before


def test_windows_hold_the_share_asked_for_and_stay_within() -> None:
    torch.manual_seed(0)
    for _ in range(200):
        left, top, right, bottom = area_window(90, 60, 32, (0.25, 0.8)).box
        assert left >= 0
        assert top >= 0
        assert right <= 90 + 1e-9
        assert bottom <= 60 + 1e-9
        assert 0.2 < (right - left) * (bottom - top) / 5400 <= 0.8 + 1e-9  # cut where it would stick out


@pytest.mark.slow
def test_the_command_leaves_a_model_folder_and_a_report(segue: Cli, dataset: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in dataset.rglob("*") if path.is_file()}
    out = tmp_path / "run"
    status, output, said = segue("pretrain", dataset, "--out", out, *options(), "--json")
    assert status == 0, said
    assert json.loads(output)["scores"] is None
    assert "using 10 images" in said
    assert "health at step 4: spread" in said
    encoder = load_encoder(str(out))
    assert encoder.spec.encoder == "test_efficientnet"
    record = json.loads((out / "run.json").read_text())["data"]
    assert record["found"] == record["unlabelled"] + sum(record["dropped"].values()) == 10
    page = (out / "report.html").read_text()
    assert "The encoder learnt from 10 images" in page
    for text in ("effective rank", "Nearest patches over time", "ranking loss and its floor"):
        assert text in page
    assert page.count("data:image/jpeg") >= 9
    assert {path: path.read_bytes() for path in dataset.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_it_stops_early_and_says_so(segue: Cli, dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    fields = options(steps=40, refresh=2, lr=0.0, patience=2)
    status, _, said = segue("pretrain", dataset, "--out", out, *fields)
    assert status == 0, said
    assert "converged: the loss has not fallen for 2 spans" in said
    steps = max(line["step"] for line in Run(out).read_log())
    assert 6 <= steps < 40
    status, _, said = segue("pretrain", dataset, "--out", out, *fields)
    assert "finished before" in said


def few(dataset: Path, root: Path, count: int) -> Path:
    root.mkdir()
    for path in sorted((dataset / "images").iterdir())[:count]:
        shutil.copy(path, root)
    return root


@pytest.mark.slow
def test_too_few_images_are_refused(segue: Cli, dataset: Path, tmp_path: Path) -> None:
    root = few(dataset, tmp_path / "few", 8)
    status, _, said = segue("pretrain", root, "--out", tmp_path / "run", *options())
    assert status == 2
    assert f"{root} holds 8 images; a candidate set needs 9" in said
    assert not (tmp_path / "run").exists()
    assert segue("pretrain", root, "--out", tmp_path / "run", *options(positives=6, steps=1))[0] == 0


@pytest.mark.slow
def test_images_all_alike_are_refused_before_anything_is_written(segue: Cli, dataset: Path, tmp_path: Path) -> None:
    root = tmp_path / "alike"
    root.mkdir()
    first = sorted((dataset / "images").iterdir())[0]
    for i in range(10):
        shutil.copy(first, root / f"{i}.png")
    status, _, said = segue("pretrain", root, "--out", tmp_path / "run", *options())
    assert status == 2
    assert "all images look alike to the encoder" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_corrupted_image_is_named_or_left_out_on_demand(segue: Cli, dataset: Path, tmp_path: Path) -> None:
    root = few(dataset, tmp_path / "bad", 10)
    broken = root / "train_003.png"
    broken.write_bytes(broken.read_bytes()[:200])
    status, _, said = segue("pretrain", root, "--out", tmp_path / "run", *options())
    assert status == 2
    assert str(broken) in said
    assert not (tmp_path / "run").exists()
    status, _, said = segue("pretrain", root, "--out", tmp_path / "run", *options(steps=1), "--skip_bad")
    assert status == 0, said
    assert "using 9 images" in said
    assert "left out of 10 found: 1 unreadable" in said


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("steps", 0, "at least 1"),
        ("crop", 40, "a multiple of 16"),
        ("area", "[0.5,0.2]", "two shares"),
        ("batch", 1, "each other's negatives"),
        ("tau_patch", 0.0, "above 0"),
        ("clusters", 1, "at least 2"),
        ("others", 4, "fewer than --batch"),
        ("ema_end", 1.5, "a share from 0 to 1"),
        ("encoder", "swin_tiny_patch4_window7_224", "DeepLabV3+ can use"),
    ],
)
def test_impossible_settings_are_refused_by_name(
    segue: Cli, dataset: Path, tmp_path: Path, field: str, value: object, wanted: str
) -> None:
    status, _, said = segue("pretrain", dataset, "--out", tmp_path / "run", *options(**{field: value}))
    assert status == 2
    assert f"--{field}" in said
    assert wanted in said
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_no_numbers_is_refused(segue: Cli, dataset: Path, tmp_path: Path) -> None:
    from segue.weights import save_model

    encoder = new_encoder("test_efficientnet", "random", output_stride=16, say=lambda text: None)
    with torch.no_grad():
        next(encoder.parameters()).fill_(math.nan)
    save_model(encoder, tmp_path / "broken", method="x", metrics={})
    status, _, said = segue("pretrain", dataset, "--out", tmp_path / "run", *options(init=tmp_path / "broken"))
    assert status == 2
    assert "embeddings are no numbers" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("changes", [{"encoder": "test_vit"}, {"embedding": 8, "others": 1}, {"objective": "mse"}])
def test_every_choice_trains(changes: dict[str, Any], dataset: Path, tmp_path: Path) -> None:
    config = build(Config, {**SMALL, **changes, "steps": 2})
    run = Run(tmp_path, quiet=True)
    encoder = train(config, run, open_image_set(str(dataset)))
    assert encoder(torch.zeros(1, 3, 32, 32)).isfinite().all()
    assert all(math.isfinite(line["loss"]) for line in run.read_log() if "loss" in line)


def test_masks_may_lie_beside_the_images_and_tiny_settings_are_fields(dataset: Path, tmp_path: Path) -> None:
    assert {"encoder", "init", "crop", "batch", "steps"} <= set(leaves(Config)) & set(TINY)
    divided = write_set(tmp_path / "divided")
    sizes = [len(open_image_set(f"{divided}{split}").images) for split in ("", ":train", ":test", "/images")]
    assert sizes == [6, 6, 2, 10]  # val and test are there to be measured on
    with Image.open(open_image_set(str(dataset)).images[0].image) as image:
        assert image.mode == "RGB"


@pytest.mark.slow
def test_eqs_6_to_8_join_the_losses_of_the_cotap_variant() -> None:
    method = method_of(variant="cotap").train()
    batch = batch_of(method)
    images = batch["image"].transpose(0, 1).flatten(0, 1)
    method.start_filter(images, seed=0)
    assert torch.equal(method.student.filter.prototypes, method.teacher.filter.prototypes)
    losses = method(batch)
    assert set(losses) == {"image", "patch", "inner", "cross", "use"}
    _, student = method.student(batch["strong"].transpose(0, 1).flatten(0, 1))
    assert student.shape[1] == 512
    assert student.abs().max() <= 1 + 1e-5
    teacher = method.teacher(images)[1]
    # Eq. 6 by hand: the queues were empty, so the codes are those of the batch alone.
    rows, targets = (scores.permute(0, 2, 3, 1).reshape(-1, 512) for scores in (student, teacher))
    codes = even_codes(targets, temperature=0.05)
    expected = -(codes * (rows / 0.1).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(losses["inner"], expected, rtol=1e-4, atol=1e-5)
    # Eq. 7: the first anchor learns the code of the first positive, which is image 4.
    whole, code = student.mean((2, 3)), even_codes(teacher.mean((2, 3)), temperature=0.05)
    expected = -(code[[4, 5, 6, 7, 0, 1, 2, 3]] * (whole / 0.2).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(losses["cross"], expected, rtol=1e-4, atol=1e-5)
    gradient = torch.autograd.grad(losses["use"], method.student.filter.prototypes, retain_graph=True)[0]
    assert gradient.abs().sum() > 0
    others = torch.stack([losses[name] for name in ("image", "patch", "inner", "cross")]).sum()
    assert torch.autograd.grad(others, method.student.filter.prototypes, allow_unused=True)[0] is None


@pytest.mark.slow
def test_weight_decay_leaves_the_filters_prototypes_alone(dataset: Path, tmp_path: Path) -> None:
    images, found = open_image_set(str(dataset)), []
    for decay in (0.0, 0.5):
        run = Run(tmp_path / f"{decay}", quiet=True)
        train(build(Config, {**SMALL, "variant": "cotap", "steps": 1, "weight_decay": decay}), run, images)
        state = run.checkpoint("distil")
        assert state is not None
        found.append(state["method"])
    plain, decayed = found
    assert torch.equal(plain["student.filter.prototypes"], decayed["student.filter.prototypes"])
    name = next(name for name, value in plain.items() if name.startswith("student.encoder") and value.ndim == 4)
    assert not torch.equal(plain[name], decayed[name])


@pytest.mark.slow
def test_the_cotap_variant_resumes_with_its_queues(segue: Cli, dataset: Path, tmp_path: Path) -> None:
    images = open_image_set(str(dataset))
    config = build(Config, {**SMALL, "variant": "cotap", "steps": 4, "refresh": 2})
    whole = train(config, Run(tmp_path / "whole", quiet=True), images).state_dict()

    class Cut(Run):
        lives = 3

        def log(self, *arguments: Any) -> None:
            super().log(*arguments)
            self.lives -= 1
            if self.lives == 0:
                raise InterruptedError

    with pytest.raises(InterruptedError):
        train(config, Cut(tmp_path / "cut", quiet=True, checkpoint_every=0.0), images)
    resumed = train(config, Run(tmp_path / "cut", quiet=True), images).state_dict()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
