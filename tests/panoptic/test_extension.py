"""`segue extend`: from a base model to a release decision, and everything that is refused on the way."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from panoptic_sets import PAINT, TINY, write_objects
from PIL import Image

from segue.config import Data
from segue.data.panoptic_map import PanopticMap
from segue.errors import DataError
from segue.extension import open_extension
from segue.forgetting import ExtensionMeasured, decide
from segue.models.mask_classifier import MaskClassifier, MaskClassifierSpec
from segue.panoptic.evaluation import PanopticMeasured, measure_panoptic
from segue.panoptic.quality import PanopticQuality
from segue.runs.folder import Run
from segue.verbs import train
from segue.weights import load_panoptic, save_model

Segue = Callable[..., tuple[int, str, str]]
OLD = ("ground", "disc", "bar")


def base_folder(folder: Path, classes: tuple[str, ...] = OLD, things: tuple[int, ...] = (1, 2)) -> Path:
    """A panoptic model that says ground everywhere, and nothing else."""
    torch.manual_seed(0)
    spec = MaskClassifierSpec(
        "test_efficientnet", classes, tuple(PAINT.get(name, (9, 9, 9)) for name in classes), things,
        width=32, queries=8, pixel_layers=1, decoder_layers=1, feedforward=32,
    )  # fmt: skip
    model = MaskClassifier(spec)
    with torch.no_grad():
        model.head.bias.copy_(torch.tensor([9.0] + [0.0] * len(classes)))
        for parameter in model.query_decoder.decoder.mask_predictor.mask_embedder.parameters():
            parameter.zero_()
    return save_model(model, folder, method="mask_classification", metrics={})


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return base_folder(tmp_path / "base")


@pytest.fixture
def new(tmp_path: Path) -> Path:
    return write_objects(tmp_path / "new", ("square", "ground"))


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return write_objects(tmp_path / "old", OLD, shapes=OLD, first=100)


def extended(segue: Segue, model: Path, new: Path, out: Path, *more: object, **changes: object) -> tuple[int, str, str]:
    kept = {name: value for name, value in TINY.items() if name in ("points", "crop", "batch", "steps")}
    given = [f"--{name}={value}" for name, value in {**kept, **changes}.items()]
    return segue("extend", model, "--new", new, "--out", out, "--device=cpu", "--precision=fp32", *given, *more)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_from_a_base_model_to_a_decision(segue: Segue, base: Path, new: Path, old: Path, tmp_path: Path) -> None:
    before = {name: contents(folder) for name, folder in (("base", base), ("new", new), ("old", old))}
    out = tmp_path / "run"
    status, output, errors = extended(segue, base, new, out, "--json", keep_val=old, max_forget=100, lr=1e-5)
    assert status == 0, errors
    assert "model: " in errors
    assert "new classes: square (id 3)" in errors
    assert f"forgetting is measured on 2 images of {old}" in errors
    said = json.loads(output)
    assert said["release"] is True
    kept = json.loads((out / "evaluation.json").read_text())
    assert len(kept["new_before"]["scores"]) > 0
    assert "New set, before" in (out / "report.html").read_text()
    assert set(said["scores"]) >= {"pq_old_before", "pq_old", "pq_new", "pq", "pq/square"}
    assert said["forgotten"] == pytest.approx(100 * (said["scores"]["pq_old_before"] - said["scores"]["pq_old"]))
    model = load_panoptic(str(out))
    assert model.spec.classes == (*OLD, "square")
    assert (model.spec.things, model.spec.increments) == ((1, 2, 3), (3, 1))
    assert model.spec.colors[3] == PAINT["square"]
    page = (out / "report.html").read_text()
    for text in ("Released: PQ of the old classes", "Old and new classes", "What was kept of the historic model"):
        assert text in page
    for name, folder in (("base", base), ("new", new), ("old", old)):
        assert contents(folder) == before[name], name
    again = extended(segue, base, new, out, keep_val=old, max_forget=100, lr=1e-5)
    assert again[0] == 0
    assert "finished before" in again[2]
    record = json.loads((out / "run.json").read_text())["data"]
    assert record["found"] == record["labelled"] + record["unlabelled"] + sum(record["dropped"].values())

    status, _, errors = segue("evaluate", out, "--data", old, "--json")
    assert status == 0, errors
    third = write_objects(tmp_path / "third", ("ground", "disc"), shapes=("ground", "disc"))
    described = json.loads((third / "dataset.json").read_text())
    (third / "dataset.json").write_text(json.dumps({**described, "classes": ["ground", "wheel"]}))
    status, _, errors = extended(segue, out, third, tmp_path / "second")
    assert status == 0, errors
    assert load_panoptic(str(tmp_path / "second")).spec.increments == (3, 1, 1)


@pytest.mark.slow
def test_a_model_that_forgets_is_not_for_release(segue: Segue, base: Path, new: Path, tmp_path: Path) -> None:
    """The base model is right on a set that shows ground alone; wild steps ruin it."""
    old = write_objects(tmp_path / "old", OLD, shapes=("ground",), first=100)
    status, output, errors = extended(
        segue, base, new, tmp_path / "run", "--json", keep_val=old, lr=1.0, pseudo="false", distill=0, steps=4
    )
    assert status == 3, errors
    assert "not for release: PQ of the old classes" in errors
    said = json.loads(output)
    assert (said["release"], said["max_forget"]) == (False, 1.0)
    assert said["scores"]["pq_old_before"] > 0.9
    page = (tmp_path / "run" / "report.html").read_text()
    assert "not for release" in page
    assert "Plain fine-tuning" in page


@pytest.mark.slow
def test_without_an_old_set_nothing_is_said_of_release(segue: Segue, base: Path, new: Path, tmp_path: Path) -> None:
    status, output, errors = extended(segue, base, new, tmp_path / "run", "--json")
    assert status == 0
    assert "no --keep-val" in errors
    assert json.loads(output)["release"] is None


# -- what is refused ---------------------------------------------------------------------------------------------------


def renamed(root: Path, **changes: Any) -> Path:
    described = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps({**described, **changes}))
    return root


@pytest.mark.slow
def test_every_wrong_set_or_model_is_one_line(segue: Segue, base: Path, dataset: Path, tmp_path: Path) -> None:
    empty = write_objects(tmp_path / "empty", ("ground", "disc", "square"), shapes=("ground", "disc"))
    cases: list[tuple[Path, Path, dict[str, object], str]] = [
        (base, write_objects(tmp_path / "a", OLD), {}, "knows every class of"),
        (base, empty, {}, "shows an object of square; label some"),
        (base, renamed(write_objects(tmp_path / "b", ("ground", "disc")), classes=["ground", "Bar"]), {},
         "new class 'Bar': the model knows 'bar' already"),
        (base, renamed(write_objects(tmp_path / "c", ("square", "ground")), things=[0, 1]), {},
         "counts 'ground' among things and the model does not"),
        (base, tmp_path / "a", {"new_classes": "wheel"}, "--new-classes wheel: "),
        (base, write_objects(tmp_path / "d", ("square",)), {"keep_val": empty / "nowhere"}, "nowhere"),
        (base, tmp_path / "d", {"keep_val": renamed(write_objects(tmp_path / "e", ("square",)), classes=["wheel"])},
         "has none of the model's classes"),
        (base, tmp_path / "d", {"max_forget": -1}, "--max_forget -1.0: give the points that may be lost"),
        (base, write_objects(tmp_path / "f", ("square",), instances=False), {}, "does not tell objects apart"),
        (tmp_path / "missing", tmp_path / "d", {}, "holds no model"),
    ]  # fmt: skip
    for i, (model, data, changes, message) in enumerate(cases):
        status, _, errors = extended(segue, model, data, tmp_path / f"run{i}", **changes)
        assert (status, message in errors) == (2, True), f"{message}: {errors}"
        assert errors.count("\n") == 1, errors
        assert not (tmp_path / f"run{i}").exists(), message
    semantic = train(
        str(dataset), tmp_path / "semantic", method="supervised", quiet=True, device="cpu", steps=1,
        encoder="test_efficientnet", init="random", decoder_channels=16, crop=32, batch=2,
    )  # fmt: skip
    status, _, errors = extended(segue, semantic, tmp_path / "d", tmp_path / "run")
    assert (
        status,
        "is a semantic model and incremental_panoptic extends panoptic ones: add --task semantic" in errors,
    ) == (2, True)


@pytest.mark.slow
def test_images_without_a_new_object_are_left_out_and_said(segue: Segue, base: Path, tmp_path: Path) -> None:
    new = write_objects(tmp_path / "new", ("ground", "square"))
    for name in ("p0001", "p0004"):
        path = new / "labels" / f"{name}.png"
        with Image.open(path) as image:
            values = np.array(image)
        Image.fromarray(np.where(values == 1, 0, values).astype(np.uint8)).save(path)
    status, _, errors = extended(segue, base, new, tmp_path / "run")
    assert status == 0
    assert "note: 2 of 6 training images are left out, without an object of a new class" in errors
    record = json.loads((tmp_path / "run" / "run.json").read_text())["data"]
    assert (record["labelled"], record["dropped"]) == (4, {"without an object of a new class": 2})
    assert "p0001" not in record["labelled_names"]


@pytest.mark.slow
def test_images_of_the_old_scenes_are_replayed(segue: Segue, base: Path, new: Path, old: Path, tmp_path: Path) -> None:
    out, given = tmp_path / "run", {"unlabeled": old / "images", "min_score": 0.1}
    status, _, errors = extended(segue, base, new, out, **given)
    assert status == 0, errors
    record = json.loads((out / "run.json").read_text())["data"]
    assert (record["labelled"], record["unlabelled"]) == (6, 8)
    assert record["found"] == 14 + sum(record["dropped"].values())
    alone = extended(segue, base, new, tmp_path / "alone", min_score=0.1)
    assert alone[0] == 0
    losses = [Run(folder, quiet=True).read_log()[-1]["loss"] for folder in (out, tmp_path / "alone")]
    assert losses[0] != losses[1]
    for wrong in ({"pseudo": "false"}, {"replay_share": 0}, {"replay_share": 1}):
        status, _, errors = extended(segue, base, new, tmp_path / "wrong", **given, **wrong)
        assert (status, "images of old scenes need --pseudo true" in errors) == (2, True)
        assert not (tmp_path / "wrong").exists()


@pytest.mark.slow
def test_no_pseudo_label_at_all_is_warned_of(segue: Segue, base: Path, new: Path, tmp_path: Path) -> None:
    status, _, errors = extended(segue, base, new, tmp_path / "run", min_score=1.0)
    assert status == 0
    assert "warning: No pseudo-label was kept" in errors
    assert "No pseudo-label was kept" in (tmp_path / "run" / "report.html").read_text()


def coco(root: Path, **changes: Any) -> Path:
    """Four images in COCO's panoptic format, one square on a ground each; ``changes`` overwrite a segment's fields."""
    (root / "train2017").mkdir(parents=True)
    (root / "annotations" / "panoptic_train2017").mkdir(parents=True)
    images, annotations = [], []
    for i in range(4):
        pixels = np.full((64, 64, 3), 90, np.uint8)
        ids = np.ones((64, 64, 3), np.uint8) * (1, 0, 0)
        pixels[8 : 24 + i, 8:24], ids[8 : 24 + i, 8:24] = (40, 200, 60), (2, 0, 0)
        Image.fromarray(pixels).save(root / "train2017" / f"{i}.jpg")
        Image.fromarray(ids.astype(np.uint8)).save(root / "annotations" / "panoptic_train2017" / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 64})
        square = {"id": 2, "category_id": 7, "area": (16 + i) * 16, "iscrowd": 0, **changes}
        ground = {"id": 1, "category_id": 3, "area": 64 * 64 - (16 + i) * 16, "iscrowd": 0}
        annotations.append({"image_id": i, "file_name": f"{i}.png", "segments_info": [ground, square]})
    categories = [{"id": 3, "name": "ground", "isthing": 0}, {"id": 7, "name": "square", "isthing": 1}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / "panoptic_train2017.json").write_text(json.dumps(content))
    return root


@pytest.mark.slow
def test_coco_panoptic_is_learnt_and_its_faults_stop(segue: Segue, base: Path, tmp_path: Path) -> None:
    status, _, errors = extended(segue, base, coco(tmp_path / "good"), tmp_path / "run")
    assert status == 0, errors
    assert load_panoptic(str(tmp_path / "run")).spec.classes == (*OLD, "square")
    for name, changes, code in (("id", {"id": 9}, "E1"), ("category", {"category_id": 8}, "E120")):
        data = coco(tmp_path / name, **changes)
        status, _, errors = extended(segue, base, data, tmp_path / f"run_{name}")
        assert (status, code in errors) == (2, True), errors
    vague = coco(tmp_path / "vague")
    path = vague / "annotations" / "panoptic_train2017.json"
    content = json.loads(path.read_text())
    content["categories"][1].pop("isthing")
    path.write_text(json.dumps(content))
    status, _, errors = extended(segue, base, vague, tmp_path / "run_vague")
    assert (status, "isthing" in errors) == (2, True), errors


# -- numbers -----------------------------------------------------------------------------------------------------------


def measured(classes: tuple[str, ...], iou: list[float], hits: list[int], missed: list[int]) -> PanopticMeasured:
    quality = PanopticQuality(len(classes))
    quality.iou, quality.hits, quality.missed = np.array(iou), np.array(hits), np.array(missed)
    return PanopticMeasured(classes, (), quality)


@pytest.mark.parametrize(("others", "expected"), [(False, 1.0), (True, 0.75)])
def test_a_mask_that_spills_over_what_the_model_lacks_is_forgiven_or_not(
    others: bool, expected: float, tmp_path: Path
) -> None:
    """The model says road everywhere; a quarter of the picture is of a class that it does not know."""
    ids = np.ones((32, 32), np.int32)
    ids[:8] = 2 if others else 0
    truth = PanopticMap(ids, (0, 1) if others else (0,), (False,) * (1 + others))
    data: Any = [{"image": torch.zeros(3, 32, 32, dtype=torch.uint8), "truth": truth, "name": "a"}]
    model = load_panoptic(str(base_folder(tmp_path / "road", ("road",), ())))
    found = measure_panoptic(model, data, others=others)
    assert found.scores()["pq/road"] == pytest.approx(expected)
    assert found.by_image == [("a", pytest.approx(expected))]


def test_scores_by_hand() -> None:
    before = measured(("a", "b"), [0.8, 0.6], [1, 1], [0, 0])
    after = measured(("a", "b", "c"), [0.8, 0.0, 0.0], [1, 0, 0], [0, 1, 0])
    new = measured(("a", "b", "c"), [0.0, 0.0, 0.9], [0, 0, 1], [1, 0, 1])
    scores = ExtensionMeasured(new, before, after, 2, ("a", "b", "c")).scores()
    assert scores["pq_old_before"] == pytest.approx(0.7)
    assert scores["pq_old"] == pytest.approx(0.4)
    assert scores["pq_new"] == pytest.approx(0.9 / 1.5)
    assert scores["pq/a"] == pytest.approx(0.8 / 1.5)  # missed once in the new set
    assert scores["pq"] == pytest.approx((0.8 / 1.5 + 0 + 0.6) / 3)


@pytest.mark.parametrize("spurious", ["before", "after"])
def test_a_class_that_the_old_set_does_not_show_moves_neither_mean(spurious: str) -> None:
    before, after = measured(("a", "b"), [0.9, 0.0], [1, 0], [0, 0]), measured(("a", "b"), [0.6, 0.0], [1, 0], [0, 0])
    {"before": before, "after": after}[spurious].quality.false[1] = 1
    scores = ExtensionMeasured(None, before, after, 2, ("a", "b")).scores()
    assert (scores["pq_old_before"], scores["pq_old"]) == (pytest.approx(0.9), pytest.approx(0.6))
    assert decide(dict(scores), 1.0)["release"] is False


def test_the_gate_counts_points() -> None:
    assert decide({"pq_old_before": 0.5, "pq_old": 0.4901}, 1.0)["release"] is True
    failed = decide({"pq_old_before": 0.5, "pq_old": 0.4899}, 1.0)
    assert failed["release"] is False
    assert failed["forgotten"] == pytest.approx(1.01)
    assert "50.0 before, 49.0 after; 1 points may go" in failed["reason"]
    assert decide({"pq_old_before": 0.4, "pq_old": 0.6}, 0.0)["release"] is True
    assert (
        "of the new classes 0.0, so they were not learnt"
        in decide({"pq_old_before": 0.5, "pq_old": 0.5, "pq_new": 0.0}, 1.0)["reason"]
    )
    assert decide({"pq_old_before": 0.9, "pq_old": 0.89}, 1.0)["release"] is True  # 0.9 - 0.89 is above 0.01
    unsaid = decide({"pq_new": 0.5}, 1.0)
    assert unsaid["release"] is None
    assert "give --keep-val" in unsaid["reason"]
    assert "shows none of the old classes" in decide({"pq_old_before": None, "pq_old": None}, 1.0)["reason"]
    nothing = decide({"pq_old_before": 0.0, "pq_old": 0.0}, 1.0)
    assert nothing["release"] is False  # asked to measure, and could not
    assert "found nothing of the old classes before" in nothing["reason"]


def test_forgetting_is_not_measured_on_pictures_that_are_learnt_from(base: Path, new: Path, tmp_path: Path) -> None:
    how = {"new_classes": (), "by_region": False, "seed": 0}
    old = write_objects(tmp_path / "old", OLD, shapes=OLD, first=100)
    shutil.copytree(old / "images", tmp_path / "more")
    data = Data(data=str(new), unlabeled=(str(tmp_path / "more"),))
    apart = open_extension(str(base), data, keep_val=str(old), **how)
    assert apart.keep
    kept = {pair.image.name for pair in apart.keep[0]}
    replayed = {pair.image.name for pair in apart.training.unlabelled}
    assert kept
    assert not kept & replayed
    assert apart.training.dropped["of --unlabeled that --keep-val has too"] == len(kept)
    every = len(list((tmp_path / "more").iterdir()))
    assert len(replayed) == every - len(kept)

    for path in (old / "images").iterdir():
        shutil.copy(next((new / "images").iterdir()), path)  # a picture of the new set that is learnt from
    with pytest.raises(DataError, match="E125 --new and --keep-val share 2 images"):
        open_extension(str(base), Data(data=str(new)), keep_val=str(old), **how)


def test_faults_of_the_old_set_are_found_before_the_training(base: Path, new: Path, old: Path) -> None:
    how = {"new_classes": (), "by_region": False, "seed": 0}
    keep = open_extension(str(base), Data(data=str(new)), keep_val=str(old), **how).keep
    assert keep
    path = keep[0][-1].image
    with Image.open(path) as image:
        image.resize((image.width + 1, image.height)).save(path)
    with pytest.raises(DataError, match="E108"):
        open_extension(str(base), Data(data=str(new)), keep_val=str(old), **how)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=path.name):
        open_extension(str(base), Data(data=str(new)), keep_val=str(old), **how)
