"""`segue train --task panoptic` and what is done with its model, as a person meets them."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from panoptic_sets import SHAPES, options, write_objects
from PIL import Image

import segue as package
from segue.data.layouts import open_listing
from segue.data.listing import Pair
from segue.data.outlines import segment_ids
from segue.data.panoptic import Annotation, PanopticViews, PanopticWhole, images_with, numbered, regions
from segue.data.panoptic_map import PanopticMap
from segue.data.sample import IGNORE
from segue.errors import DataError
from segue.models.mask_classifier import MaskClassifier, MaskClassifierSpec
from segue.panoptic.evaluation import measure_panoptic
from segue.panoptic.prediction import PanopticPrediction, as_colors, outlined, segments_info
from segue.panoptic.quality import PanopticQuality

Segue = Callable[..., tuple[int, str, str]]


def trained(segue: Segue, data: Path, out: Path, *more: object, **changes: object) -> tuple[int, str, str]:
    return segue(
        "train", data, "--task", "panoptic", "--out", out, "--device", "cpu", "--precision", "fp32", *more,
        *options(**changes),
    )  # fmt: skip


@pytest.mark.slow
def test_from_a_panoptic_folder_to_coco_json(segue: Segue, tmp_path: Path) -> None:
    data, out = write_objects(tmp_path / "set"), tmp_path / "run"
    status, output, errors = trained(segue, data, out, "--json")
    assert status == 0, errors
    assert set(json.loads(output)["scores"]) >= {"pq", "sq", "rq", "pq/things", "pq/stuff", "pq/disc"}
    assert "mask_classification: validation PQ" in errors
    page = (out / "report.html").read_text()
    assert "mask_classification reaches PQ" in page
    assert "Panoptic quality" in page
    assert page.count("data:image/jpeg") == 4  # truth and prediction of two pictures

    status, output, errors = segue("evaluate", out, "--json")
    assert status == 0, errors
    again, first = json.loads(output), json.loads((out / "evaluation.json").read_text())
    assert again["quality"] == first["quality"]
    assert "square" in segue("evaluate", out)[1]

    status, output, errors = segue("predict", out, data / "images", "--out", tmp_path / "predicted")
    assert status == 0, errors
    assert "8 of 8 images written" in output
    described = json.loads((tmp_path / "predicted" / "panoptic.json").read_text())
    assert [category["name"] for category in described["categories"]] == list(SHAPES)
    assert [category["isthing"] for category in described["categories"]] == [0, 1, 1, 1]
    for annotation in described["annotations"]:
        with Image.open(tmp_path / "predicted" / "panoptic" / annotation["file_name"]) as image:
            ids = segment_ids(image)
        areas = {segment["id"]: segment["area"] for segment in annotation["segments_info"]}
        assert {i: int((ids == i).sum()) for i in set(ids.ravel().tolist()) - {0}} == areas
    assert len(list((tmp_path / "predicted" / "overlays").glob("*.jpg"))) == 8

    # Cut in the middle, the same call goes on; the JSON describes what was there as well.
    (tmp_path / "predicted" / "panoptic" / "p0003.png").unlink()
    (tmp_path / "predicted" / "panoptic.json").unlink()
    call = ("predict", out, data / "images", "--out", tmp_path / "predicted", "--json")
    status, output, errors = segue(*call)
    counts = json.loads(output)
    assert (status, counts["found"], counts["written"], counts["there"], counts["failed"]) == (0, 8, 1, 7, {})
    assert json.loads((tmp_path / "predicted" / "panoptic.json").read_text()) == described
    status, _, errors = segue(*call, "--no-overlays")
    assert (status, "predictions of other settings (overlays)" in errors) == (2, True)
    (data / "images" / "p0009.png").write_bytes(b"none")
    status, output, errors = segue(*call)
    assert (status, json.loads(output)["there"], list(json.loads(output)["failed"])) == (
        2, 8, [str(data / "images" / "p0009.png")]
    )  # fmt: skip
    assert errors.count("\n") == 1
    Image.new("RGB", (64, 64)).save(tmp_path / "predicted" / "panoptic" / "p0003.png")  # somebody's own
    status, _, errors = segue(*call)
    assert (status, "p0003.png is damaged or was not written here" in errors) == (2, True)

    found = next(iter(package.predict(out, [data / "images" / "p0006.png"], device="cpu")))
    assert isinstance(found, PanopticPrediction)
    assert found.map.ids.shape == (64, 64)


@pytest.mark.parametrize("kind", ["labelIds", "labelTrainIds"])
def test_objects_of_cityscapes_by_hand(tmp_path: Path, kind: str) -> None:
    stem = "aachen_000000_000019"
    image = tmp_path / "leftImg8bit" / "train" / "aachen" / f"{stem}_leftImg8bit.png"
    gt = tmp_path / "gtFine" / "train" / "aachen"
    for folder in (image.parent, gt):
        folder.mkdir(parents=True)
    Image.new("RGB", (6, 1)).save(image)
    raw = np.array([[7, 26, 26, 26, 9, 0]], np.uint8)  # road, two cars, a group of cars, parking, unlabelled
    Image.fromarray(raw).save(gt / f"{stem}_gtFine_labelIds.png")
    if kind == "labelTrainIds":
        Image.fromarray(np.array([[0, 13, 13, 13, 255, 255]], np.uint8)).save(gt / f"{stem}_gtFine_{kind}.png")
    listing = open_listing(str(tmp_path))
    (pair,) = listing.split("train")
    flat = Annotation(replace(listing, things=())).read(
        pair
    )  # as semantic models take it: no file of objects is needed
    assert (flat.ids.tolist(), flat.labels) == ([[1, 2, 2, 2, 0, 0]], (0, 13))
    with pytest.raises(DataError, match=r"instanceIds.png does not exist"):
        Annotation(listing).read(pair)
    ids = np.array([[7, 26000, 26001, 26, 9, 0]], np.uint16)
    Image.fromarray(ids).save(gt / f"{stem}_gtFine_instanceIds.png")
    found = Annotation(listing).read(pair)
    by_pixel = [(found.labels[i - 1], found.is_crowd[i - 1]) if i else None for i in found.ids[0]]
    assert by_pixel == [(0, False), (13, False), (13, False), (13, True), None, None]
    assert len(set(found.ids[0, :4].tolist())) == 4
    mapped = listing.extended({9: 1, 26: 14} if kind == "labelIds" else {0: 1, 13: 14})  # as --map has it
    found = Annotation(mapped).read(pair)
    assert [found.labels[i - 1] for i in found.ids[0, :4]] == [0 if kind == "labelIds" else 1, 14, 14, 14]
    assert found.ids[0, 4] == 0 if kind == "labelTrainIds" else found.labels[found.ids[0, 4] - 1] == 1


WRONG: list[tuple[list[object], str]] = [
    (["--method", "supervised"], "--task panoptic: supervised trains semantic models; leave --method or --task out"),
    (["--compare"], "mask_classification is itself the plain training; leave the option out"),
    (["--size", "huge"], "size"),
    (["--encoder", "resnet19"], "timm has no encoder 'resnet19'"),
]


@pytest.mark.parametrize(("more", "message"), WRONG)
def test_what_cannot_be_meant_is_one_line(segue: Segue, tmp_path: Path, more: list[object], message: str) -> None:
    data = write_objects(tmp_path / "set")
    status, _, errors = segue("train", data, "--task", "panoptic", "--out", tmp_path / "run", "--init=random", *more)
    assert status == 2
    assert message in errors
    assert not (tmp_path / "run").exists()


def test_a_semantic_task_with_a_panoptic_method_is_refused(segue: Segue, tmp_path: Path) -> None:
    status, _, errors = segue(
        "train", tmp_path, "--task", "semantic", "--method", "mask_classification", "--out", tmp_path / "run"
    )
    assert (status, "--task semantic: mask_classification trains panoptic models" in errors) == (2, True)


@pytest.mark.slow
def test_a_set_that_tells_no_objects_apart_says_what_to_do(segue: Segue, tmp_path: Path) -> None:
    data = write_objects(tmp_path / "set", instances=False)
    status, _, errors = trained(segue, data, tmp_path / "run")
    assert status == 2
    assert "p0000.png does not tell objects apart" in errors
    assert "or --by-region to take" in errors
    assert not (tmp_path / "run").exists()
    status, _, errors = trained(segue, data, tmp_path / "run", by_region="true")
    assert status == 0, errors


@pytest.mark.slow
def test_fewer_queries_than_objects_are_warned_of(segue: Segue, tmp_path: Path) -> None:
    status, _, errors = trained(segue, write_objects(tmp_path / "set"), tmp_path / "run", queries=3)
    assert status == 0
    assert "warning: a picture has 5 segments and the network 3 queries; give --queries 5" in errors


@pytest.mark.slow
def test_probability_maps_of_a_panoptic_model_are_refused(segue: Segue, tmp_path: Path) -> None:
    data, out = write_objects(tmp_path / "set"), tmp_path / "run"
    assert trained(segue, data, out)[0] == 0
    status, _, errors = segue("predict", out, data / "images", "--out", tmp_path / "predicted", "--maps")
    assert (status, "--maps" in errors) == (2, True)
    for option, value in (("--tile", 32), ("--overlap", 8), ("--scales", "0.5,1")):
        status, _, errors = segue("predict", out, data / "images", "--out", tmp_path / "predicted", option, value)
        assert (status, f"{option}: a panoptic model cannot" in errors) == (2, True)
    assert not (tmp_path / "predicted").exists()
    other = write_objects(tmp_path / "other", ("ground",))
    described = json.loads((other / "dataset.json").read_text())
    (other / "dataset.json").write_text(json.dumps({**described, "classes": ["sea"]}))
    status, _, errors = segue("evaluate", out, "--data", other)
    assert (status, "has none of the classes of" in errors) == (2, True)


# -- samples -----------------------------------------------------------------------------------------------------------


def test_objects_are_numbered_by_class_and_number() -> None:
    classes = np.array([[0, 0, 1, 1], [IGNORE, 0, 1, 2], [1, 1, 1, 2]])
    objects = np.array([[9, 9, 1, 1], [0, 9, 2, 0], [2, 2, 2, 3]])
    found = numbered(classes, objects, things=(1, 2))
    np.testing.assert_array_equal(found.ids, [[1, 1, 2, 2], [0, 1, 3, 4], [3, 3, 3, 5]])
    assert found.labels == (0, 1, 1, 2, 2)
    assert found.is_crowd == (False, False, False, True, False)  # a thing of no object is a crowd


def test_regions_join_corners_and_split_classes() -> None:
    found = regions(np.array([[1, 0, 1], [0, 1, 0], [2, 0, 1]]), (1, 2))
    assert len(np.unique(found[found > 0])) == 2
    assert found[0, 0] == found[0, 2] == found[1, 1] == found[2, 2] > 0
    assert found[2, 0] not in (0, found[0, 0])


def test_a_view_shows_whole_objects_with_their_labels(tmp_path: Path) -> None:
    listing = open_listing(str(write_objects(tmp_path / "set")))
    views = PanopticViews(listing.split("train"), Annotation(listing), 64, (1.0, 1.0))
    torch.manual_seed(0)
    sample = views[0]
    count = int((sample["labels"] >= 0).sum())
    shown = sample["segments"].unique().tolist()
    assert shown == list(range(1, count + 1))
    areas = PanopticWhole(listing.split("train"), Annotation(listing))[0]["truth"]
    assert sorted(areas.labels) == [0, 1, 1, 2, 3]
    assert set(sample["labels"][:count].tolist()) <= set(areas.labels)


def test_classes_are_matched_by_name_and_missing_ones_are_void(tmp_path: Path) -> None:
    listing = open_listing(str(write_objects(tmp_path / "set")))
    pair = listing.split("train")[0]
    whole, part = Annotation(listing).read(pair), Annotation(listing, labels={0: 3, 2: 1}).read(pair)
    expected = np.where(whole.classes() == 0, 3, np.where(whole.classes() == 2, 1, IGNORE))
    np.testing.assert_array_equal(part.classes(), expected)
    assert images_with((pair,), Annotation(listing, labels={0: 3}), (1,)) == ()
    assert images_with((pair,), Annotation(listing), (3,)) == (pair,)


def test_instances_of_another_size_are_named(tmp_path: Path) -> None:
    listing = open_listing(str(write_objects(tmp_path / "set")))
    pair: Pair = listing.split("train")[0]
    Image.fromarray(np.zeros((3, 4), np.uint16)).save(tmp_path / "set" / "instances" / f"{pair.name}.png")
    with pytest.raises(DataError, match=r"instances/p0000.png is \(4, 3\)"):
        Annotation(listing).read(pair)


def test_the_two_coco_samples_are_read_and_scored() -> None:
    """Truth against itself, and against itself without one of its people."""
    root = Path(os.environ.get("SEGUE_MIRROR", ""), "coco_panoptic_sample")
    if not os.environ.get("SEGUE_MIRROR") or not root.is_dir():
        pytest.skip("SEGUE_MIRROR with coco_panoptic_sample is not there")
    listing = open_listing(str(root))
    quality = PanopticQuality(len(listing.classes))
    person = listing.classes.index("person")
    for pair in listing.split("examples"):
        truth = Annotation(listing).read(pair)
        quality.update(truth, truth)
    assert quality.mean()["pq"] == 1
    people = int(quality.hits[person])
    assert people == 26
    first = Annotation(listing).read(listing.split("examples")[0])
    quality = PanopticQuality(len(listing.classes))
    gone = np.where(first.ids == 1 + first.labels.index(person), 0, first.ids)
    quality.update(first, PanopticMap(gone, first.labels))
    alone = sum(label == person and not crowd for label, crowd in zip(first.labels, first.is_crowd, strict=True))
    assert quality.by_class()["pq"][person] == pytest.approx((alone - 1) / (alone - 0.5))


# -- a model over pictures ---------------------------------------------------------------------------------------------


def test_measuring_sums_what_single_pictures_give(tmp_path: Path) -> None:
    listing = open_listing(str(write_objects(tmp_path / "set", val=3)))
    torch.manual_seed(0)
    spec = MaskClassifierSpec(
        "test_efficientnet", SHAPES, ((0, 0, 0),) * 4, (1, 2, 3),
        width=32, queries=6, pixel_layers=1, decoder_layers=1, feedforward=32,
    )  # fmt: skip
    model = MaskClassifier(spec).train()
    measured = measure_panoptic(model, PanopticWhole(listing.split("val"), Annotation(listing)))
    assert model.training
    assert [name for name, _ in measured.by_image] == ["p0006", "p0007", "p0008"]
    assert measured.quality.hits.sum() + measured.quality.missed.sum() == 3 * 5
    known = measure_panoptic(model, PanopticWhole(listing.split("val"), Annotation(listing)), future=(3,))
    assert known.quality.hits[3] + known.quality.missed[3] == 0
    assert json.loads(json.dumps(measured.plain()))["scores"]["pq/disc"] is not None


def test_segments_are_described_as_coco_does() -> None:
    found = PanopticMap(np.array([[0, 1, 1], [0, 1, 2]]), (4, 7), scores=(0.9, 0.75))
    assert segments_info(found) == [
        {"id": 1, "category_id": 4, "area": 3, "bbox": [1, 0, 2, 2], "iscrowd": 0, "score": 0.9},
        {"id": 2, "category_id": 7, "area": 1, "bbox": [2, 1, 1, 1], "iscrowd": 0, "score": 0.75},
    ]
    ids = np.array([[0, 255, 256, 70000]])
    np.testing.assert_array_equal(segment_ids(Image.fromarray(as_colors(ids))), ids)


def test_an_overlay_leaves_void_and_draws_edges() -> None:
    image = np.full((8, 8, 3), 100, np.uint8)
    ids = np.zeros((8, 8), np.int32)
    ids[:, 4:] = 1
    shown = outlined(image, PanopticMap(ids, (0,)), ((200, 0, 0),))
    assert (shown[:, :3] == 100).all()
    assert (shown[:, 3:5] == 255).all()
    assert (shown[:, 6] == (150, 50, 50)).all()


@pytest.mark.slow
def test_the_fingerprint_changes_with_the_number_of_an_object(segue: Segue, tmp_path: Path) -> None:
    def fingerprint(out: Path) -> str:
        assert trained(segue, data, out, steps=1)[0] == 0
        return str(json.loads((out / "run.json").read_text())["data"]["fingerprint"])

    data = write_objects(tmp_path / "set")
    before = fingerprint(tmp_path / "before")
    path = min((data / "instances").iterdir())
    numbers = np.asarray(Image.open(path))
    Image.fromarray(numbers * 2).save(path)
    assert fingerprint(tmp_path / "after") != before
