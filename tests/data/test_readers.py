"""Public data sets in their true layouts on disk, on three pictures each; and their annotation files at their worst."""

import copy
import json
import random
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segue.data.check import check
from segue.data.check.mend import mended
from segue.data.convert import convert
from segue.data.decoder import Decoder, class_ids, mask_image
from segue.data.images import Whole
from segue.data.layouts import open_listing
from segue.data.layouts.annotations import inside, load_json
from segue.data.listing import Listing
from segue.data.outlines import Outline, draw, parse_runs, run_mask
from segue.data.sample import IGNORE
from segue.errors import DataError

SIDE = 8
SAMPLE = Path(__file__).parents[3] / "shared" / "data" / "coco_panoptic_sample"


def save(path: Path, values: Any, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values, np.uint8))
    if palette:
        image.putpalette([(7 * i) % 256 for i in range(768)])
    image.save(path)


def photo(path: Path) -> None:
    save(path, np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3)))


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def quarters(*values: int) -> np.ndarray:
    """Four values in the four quarters of a picture."""
    return np.kron(np.array(values, np.int64).reshape(2, 2), np.ones((SIDE // 2, SIDE // 2), np.int64))


def masks(listing: Listing, split: str) -> list[np.ndarray]:
    data = Whole(listing.split(split), Decoder.of(listing))
    return [data[i]["mask"].numpy() for i in range(len(data))]


def counts(listing: Listing) -> dict[str, int]:
    return {split: len(pairs) for split, pairs in listing.splits.items()}


def codes(listing: Listing) -> list[str]:
    return [fault.code for fault in listing.faults]


def write_ade(root: Path) -> None:
    for split, name, values in (
        ("training", "ADE_train_00000001", (0, 1, 2, 150)),
        ("training", "ADE_train_00000002", (13, 13, 0, 0)),
        ("validation", "ADE_val_00000001", (3, 4, 5, 6)),
    ):
        photo(root / "images" / split / f"{name}.jpg")
        save(root / "annotations" / split / f"{name}.png", quarters(*values))


@pytest.mark.parametrize("home", ["", "ADEChallengeData2016"])
def test_ade20k_shifts_ids_and_ignores_zero(tmp_path: Path, home: str) -> None:
    write_ade(tmp_path / home)
    save(tmp_path / home / "annotations" / "training" / "ADE_train_00000009.png", quarters(1, 1, 1, 1))
    listing = open_listing(str(tmp_path))
    assert (listing.layout, len(listing.classes), counts(listing)) == ("ade20k", 150, {"train": 2, "val": 1})
    assert [listing.classes[i] for i in (0, 12, 89, 149)] == ["wall", "person", "television receiver", "flag"]
    assert [listing.colors[i] for i in (0, 12, 149)] == [(120, 120, 120), (150, 5, 61), (92, 0, 255)]
    assert len(set(listing.classes)) == len(listing.colors) == 150
    assert len(listing.things) == 100
    np.testing.assert_array_equal(masks(listing, "train")[0], quarters(IGNORE, 0, 1, 149))
    np.testing.assert_array_equal(masks(listing, "val")[0], quarters(2, 3, 4, 5))
    assert [path.name for path in listing.stray] == ["ADE_train_00000009.png"]


def test_ade20k_reads_segments_where_mask2former_wrote_them(tmp_path: Path) -> None:
    write_ade(tmp_path)
    categories = [{"id": i, "name": f"c{i}", "isthing": int(i == 12), "color": [i, 0, 0]} for i in range(150)]
    for split, folder in (("train", "training"), ("val", "validation")):
        names = [path.stem for path in sorted((tmp_path / "images" / folder).iterdir())]
        for name in names:
            save(tmp_path / f"ade20k_panoptic_{split}" / f"{name}.png", rgb_of(quarters(0, 9, 70000, 9)))
        segments = [{"id": 9, "category_id": 0, "iscrowd": 0, "area": 32}, {"id": 70000, "category_id": 12, "area": 16}]
        content = {
            "images": [{"id": name, "file_name": f"{name}.jpg"} for name in names],
            "annotations": [{"image_id": n, "file_name": f"{n}.png", "segments_info": segments} for n in names],
            "categories": categories,
        }
        write_json(tmp_path / f"ade20k_panoptic_{split}.json", content)
    listing = open_listing(str(tmp_path))
    assert (listing.layout, counts(listing), listing.things) == ("ade20k", {"train": 2, "val": 1}, (12,))
    assert listing.classes[12] == "person"
    np.testing.assert_array_equal(masks(listing, "val")[0], quarters(IGNORE, 0, 12, 0))
    assert not [found for found in check(listing)[0] if found.code in ("E122", "E124")]
    (tmp_path / "ade20k_panoptic_val.json").unlink()  # only for one split: label maps are read
    np.testing.assert_array_equal(masks(open_listing(str(tmp_path)), "val")[0], quarters(2, 3, 4, 5))


def rgb_of(ids: np.ndarray) -> np.ndarray:
    """Segment ids as the colours of a panoptic PNG."""
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1)


def panoptic_content(names: list[str]) -> dict[str, Any]:
    """Category ids 1, 7 and 200; two segments an image."""
    segments = [
        {"id": 9, "category_id": 200, "iscrowd": 0, "area": 32},
        {"id": 70000, "category_id": 7, "iscrowd": 1, "area": 16},
    ]
    return {
        "images": [{"id": i, "file_name": f"{n}.jpg", "height": SIDE, "width": SIDE} for i, n in enumerate(names)],
        "annotations": [
            {"image_id": i, "file_name": f"{n}.png", "segments_info": copy.deepcopy(segments)}
            for i, n in enumerate(names)
        ],
        "categories": [
            {"id": 200, "name": "rug-merged", "isthing": 0},
            {"id": 1, "name": "person", "isthing": 1, "color": [220, 20, 60]},
            {"id": 7, "name": "train", "isthing": 1, "color": [0, 80, 100]},
        ],
    }


def write_panoptic(root: Path, *, at_root: bool = False) -> Path:
    """COCO panoptic of two training pictures and one for validation; the JSON of the former."""
    for split, names in (("val", ["000000000139"]), ("train", ["000000000009", "000000000025"])):
        for name in names:
            photo(root / f"{split}2017" / f"{name}.jpg")
            folder = root if at_root else root / "annotations"
            save(folder / f"panoptic_{split}2017" / f"{name}.png", rgb_of(quarters(0, 9, 70000, 9)))
        path = write_json(root / "annotations" / f"panoptic_{split}2017.json", panoptic_content(names))
    return path


@pytest.mark.parametrize("at_root", [False, True])
def test_coco_panoptic_closes_gaps_of_category_ids(tmp_path: Path, at_root: bool) -> None:
    write_panoptic(tmp_path, at_root=at_root)
    write_json(tmp_path / "annotations" / "instances_train2017.json", {})  # lies there, too, and is left alone
    photo(tmp_path / "train2017" / "bare.jpg")
    pngs = (tmp_path if at_root else tmp_path / "annotations") / "panoptic_train2017"
    save(pngs / "left.png", quarters(0, 0, 0, 0))
    listing = open_listing(str(tmp_path))
    assert (listing.layout, listing.classes) == ("coco_panoptic", ("person", "train", "rug-merged"))
    assert listing.colors[:2] == ((220, 20, 60), (0, 80, 100))
    assert (listing.things, counts(listing)) == ((0, 1), {"train": 3, "val": 1})
    assert listing.split("train")[0].name == "train/000000000009"
    assert listing.split("train")[2].mask is None
    assert [path.name for path in listing.stray] == ["left.png"]
    np.testing.assert_array_equal(masks(listing, "val")[0], quarters(IGNORE, 2, 1, 2))
    segments = listing.split("val")[0].segments
    assert segments is not None
    assert [(s.id, s.label, s.is_crowd, s.area) for s in segments] == [(9, 2, False, 32), (70000, 1, True, 16)]
    assert listing.faults == ()


def test_coco_panoptic_takes_missing_colours_from_the_categories_file_and_passes_over_missing_images(
    tmp_path: Path,
) -> None:
    write_panoptic(tmp_path)
    colored = [{"id": 200, "name": "rug-merged", "isthing": 0, "color": [1, 2, 3]}]
    write_json(tmp_path / "annotations" / "panoptic_coco_categories.json", colored)
    for path in (tmp_path / "train2017").iterdir():
        path.unlink()
    (tmp_path / "train2017").rmdir()
    listing = open_listing(str(tmp_path))
    assert (counts(listing), listing.colors[2]) == ({"val": 1}, (1, 2, 3))


def test_coco_panoptic_says_which_pngs_to_unpack(tmp_path: Path) -> None:
    write_panoptic(tmp_path, at_root=True)
    (tmp_path / "panoptic_val2017").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"panoptic_val2017 does not exist; unpack the PNGs of panoptic_val2017.json"):
        open_listing(str(tmp_path))


def test_the_real_sample_of_panopticapi() -> None:
    if not SAMPLE.is_dir():
        pytest.skip("no sample of COCO panoptic here")
    listing = open_listing(str(SAMPLE))
    assert (listing.layout, len(listing.classes), len(listing.things)) == ("coco_panoptic", 133, 80)
    assert (listing.classes[0], listing.classes[132], listing.colors[0]) == ("person", "rug-merged", (220, 20, 60))
    assert (listing.faults, listing.stray) == ((), ())
    assert not [found for found in check(listing)[0] if found.stop and found.code != "E126"]
    said = json.loads((SAMPLE / "panoptic_examples.json").read_text())
    first = masks(listing, "examples")[0]
    wanted = sum(s["area"] for s in said["annotations"][0]["segments_info"] if s["category_id"] == 1)
    assert (first == 0).sum() == wanted  # pixels of persons in 000000142238, as the annotation states them


def test_faults_of_panoptic_annotations_name_image_segment_and_field(tmp_path: Path) -> None:
    path = write_panoptic(tmp_path)
    content = json.loads(path.read_text())
    content["annotations"][0]["segments_info"][0]["category_id"] = 999
    content["annotations"][1]["segments_info"][1]["id"] = 9
    del content["categories"][0]["isthing"]
    content["images"] += [{"id": i, "file_name": f"{i}.jpg"} for i in (2, 3)]
    content["annotations"] += [
        {"image_id": i, "file_name": name, "segments_info": []} for i, name in ((2, "2.png"), (3, "3.png"), (4, "4"))
    ]
    photo(tmp_path / "train2017" / "3.jpg")
    write_json(path, content)
    listing = open_listing(str(tmp_path))
    told = {(fault.code, where) for fault in listing.faults for where in fault.where}
    assert told == {
        ("E120", f"{path} (image 000000000009.jpg, segment 9, category_id 999)"),
        ("E121", f"{path} (category rug-merged, isthing)"),
        ("E122", f"{path} (image 000000000025.jpg, segment 9, id)"),
        ("E123", f"{path} (image 2.jpg, file_name)"),
        ("E123", f"{path} (image 3.jpg, file_name 3.png)"),
        ("E123", f"{path} (image of image_id 4, image_id)"),
    }
    assert all(fault.stop and fault.why and fault.fix for fault in listing.faults)
    assert counts(listing)["train"] == 2
    np.testing.assert_array_equal(masks(listing, "train")[0], quarters(IGNORE, IGNORE, 1, IGNORE))


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../out.png", "a/../../out.png", "C:/out.png", "a\0b.png", "a\\b.png", "a//b.png", "\ud800"]
)
def test_names_in_annotations_cannot_leave_their_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"notes.json: refusing the path"):
        inside(tmp_path, name, "notes.json")
    path = write_panoptic(tmp_path)
    for field in ("images", "annotations"):
        content = panoptic_content(["000000000009", "000000000025"])
        content[field][0]["file_name"] = name
        write_json(path, content)
        with pytest.raises(DataError, match=r"panoptic_train2017.json.*refusing the path"):
            open_listing(str(tmp_path))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no valid JSON"),
        (b'{"images": [', "no valid JSON"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b"[" * 200_000, "nested too deeply"),
        (b"1" * 5000, "no valid JSON"),
    ],
)
def test_what_is_no_json_is_refused_with_the_name_of_the_file(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(DataError, match=rf"a\.json .*{message}"):
        load_json(tmp_path / "a.json")


def test_annotation_files_that_are_too_large_or_no_files_are_refused(tmp_path: Path) -> None:
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate((2 << 30) + 1)  # sparse
    with pytest.raises(DataError, match="more than 2,147,483,648"):
        load_json(tmp_path / "a.json")
    with pytest.raises(DataError, match="no plain file"):
        load_json(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": [{"image_id": 0, "file_name": "a", "segments_info": "no"}]}, r"\[0\]: segments_info is 'no'"),
        ({"annotations": [{"image_id": 0, "file_name": 3, "segments_info": []}]}, r"annotations\[0\]: file_name is 3"),
        ({"annotations": {}}, "annotations is a dict of 0; it must be a list"),
        ({"images": [3]}, r"images\[0\] is 3; it must be an object"),
        ({"images": [{"id": 1, "file_name": "a"}] * 2}, r"images\[1\]: id 1 is used twice"),
        ({"categories": []}, "0 categories"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}, "2 categories.*own id and name"),
        ({"categories": [{"id": i, "name": str(i)} for i in range(256)]}, "256 categories; 1 to 255"),
    ],
)  # fmt: skip
def test_wrong_types_are_named_with_file_entry_and_field(tmp_path: Path, change: Any, message: str) -> None:
    path = write_panoptic(tmp_path)
    write_json(path, {**json.loads(path.read_text()), **change})
    with pytest.raises(DataError, match=rf"panoptic_train2017\.json.*{message}"):
        open_listing(str(tmp_path))


def places(content: Any) -> list[tuple[Any, Any]]:
    """Every container in ``content`` with each of its keys."""
    keys = list(content) if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    return [place for key in keys for place in [(content, key), *places(content[key])]]


@pytest.mark.parametrize("kind", ["panoptic", "instances", "mapillary"])
def test_hostile_annotations_give_a_data_error_or_a_listing(tmp_path: Path, kind: str) -> None:
    write = {"panoptic": write_panoptic, "instances": write_instances, "mapillary": write_mapillary}[kind]
    path = write(tmp_path)
    sound = json.loads(path.read_text())
    values = [
        None,
        True,
        -1,
        3,
        10**40,
        1.5,
        float("nan"),
        1e308,
        "",
        "x",
        "../a",
        [],
        [[]],
        [None],
        [1, "a"],
        {},
        {"a": 1},
    ]
    for number in range(len(places(sound))):
        for value in random.Random(number).sample(values, 4):
            content = copy.deepcopy(sound)
            container, key = places(content)[number]
            container[key] = value
            write_json(path, content)
            try:
                listing = open_listing(str(tmp_path))
            except DataError as error:
                assert path.name in str(error) or "images" in str(error)
            else:
                check(listing)


def write_instances(root: Path) -> Path:
    """COCO instances of two training pictures and one for validation; the JSON of the former."""
    shapes = {
        "large": {"segmentation": [[0, 0, 8, 0, 8, 8, 0, 8]], "area": 64, "category_id": 3, "iscrowd": 0},
        "small": {"segmentation": [[2, 2, 4, 2, 4, 4, 2, 4]], "area": 4, "category_id": 1, "iscrowd": 0},
        "runs": {"segmentation": {"size": [8, 8], "counts": [0, 8, 56]}, "area": 8, "category_id": 1, "iscrowd": 0},
        "crowd": {"segmentation": {"size": [8, 8], "counts": "h18"}, "area": 8, "category_id": 3, "iscrowd": 1},
    }
    for split, per_image in (("val", [["crowd"]]), ("train", [["small", "large"], ["crowd", "runs"]])):
        rows = [{"image_id": i, **shapes[kind]} for i, kinds in enumerate(per_image) for kind in kinds]
        images = [{"id": i, "file_name": f"{i}.jpg", "height": SIDE, "width": SIDE} for i in range(len(per_image))]
        for image in images:
            photo(root / f"{split}2017" / str(image["file_name"]))
        content = {
            "images": images,
            "annotations": [{"id": i, **row} for i, row in enumerate(rows)],
            "categories": [{"id": 3, "name": "car"}, {"id": 1, "name": "person"}],
        }
        path = write_json(root / "annotations" / f"instances_{split}2017.json", content)
    return path


def test_what_the_brush_of_cvat_drew_is_no_crowd(tmp_path: Path) -> None:
    """It writes ``iscrowd`` 1 for all of it, and ``attributes``, which COCO's own files lack."""
    path = write_instances(tmp_path)
    content = json.loads(path.read_text())
    crowd = next(row for row in content["annotations"] if row["iscrowd"])
    assert (255 in drawn_of(tmp_path), 2 in drawn_of(tmp_path, 1)) == (True, False)
    crowd["attributes"] = {"occluded": False}
    path.write_text(json.dumps(content))
    assert (255 in drawn_of(tmp_path), 2 in drawn_of(tmp_path, 1)) == (False, True)


def drawn_of(root: Path, only: int | None = None) -> set[int]:
    """Class ids in the training pictures of a set, or in one of them."""
    listing = open_listing(str(root))
    pairs = listing.split("train")[slice(only, None if only is None else only + 1)]
    return {int(value) for pair in pairs for value in np.unique(np.asarray(mask_image(pair)))}


def test_coco_instances_draws_small_objects_over_large_ones_and_ignores_crowds(tmp_path: Path) -> None:
    write_instances(tmp_path)
    for name in ("captions_train2017", "person_keypoints_train2017"):
        write_json(tmp_path / "annotations" / f"{name}.json", {})
    listing = open_listing(str(tmp_path))
    assert (listing.layout, listing.classes) == ("coco_instances", ("background", "person", "car"))
    assert (counts(listing), listing.things, listing.faults) == ({"train": 2, "val": 1}, (1, 2), ())
    square = np.full((SIDE, SIDE), 2)
    square[2:4, 2:4] = 1
    first, second = masks(listing, "train")
    np.testing.assert_array_equal(first, square)
    columns = np.zeros((SIDE, SIDE), int)
    columns[:, 7], columns[:, 0] = IGNORE, 1  # "h18" is 56 pixels outside and 8 inside, down the columns
    np.testing.assert_array_equal(second, columns)
    columns[:, 0] = 0
    np.testing.assert_array_equal(masks(listing, "val")[0], columns)


@pytest.mark.parametrize("kind", ["images", "beside", "roboflow"])
def test_coco_instances_as_other_tools_export_it(tmp_path: Path, kind: str) -> None:
    content = {
        "images": [{"id": i, "file_name": f"{name}.jpg"} for i, name in enumerate("abc")],
        "annotations": [{"id": 5, "image_id": 1, "category_id": 4, "segmentation": [[4, 0, 8, 0, 8, 8, 4, 8]]}],
        "categories": [{"id": 0, "name": "_background_"}, {"id": 4, "name": "cell"}],
    }
    if kind == "roboflow":
        write_json(tmp_path / "valid" / "_annotations.coco.json", content)
    else:
        write_json(tmp_path / "annotations" / "batch_1.json", content)
    folder = {"images": "images", "beside": "annotations", "roboflow": "valid"}[kind]
    for name in "abc":
        photo(tmp_path / folder / f"{name}.jpg")
    listing = open_listing(str(tmp_path))
    split = "val" if kind == "roboflow" else "batch_1"
    assert (listing.classes, counts(listing)) == (("background", "cell"), {split: 3})
    assert listing.split(split)[1].name == f"{split}/b"
    np.testing.assert_array_equal(masks(listing, split)[1], quarters(0, 1, 0, 1))
    assert not masks(listing, split)[0].any()  # listed without an object


def test_faults_of_instances_name_image_annotation_and_field(tmp_path: Path) -> None:
    path = write_instances(tmp_path)
    content = json.loads(path.read_text())
    content["annotations"][0]["category_id"] = 9
    content["annotations"][1]["segmentation"] = []
    content["annotations"][2]["image_id"] = 77
    content["images"].append({"id": 5, "file_name": "gone.jpg"})
    write_json(path, content)
    told = {(fault.code, where) for fault in open_listing(str(tmp_path)).faults for where in fault.where}
    assert told == {
        ("E120", f"{path} (image 0.jpg, annotation 0, category_id 9)"),
        ("E129", f"{path} (image 0.jpg, annotation 1, segmentation)"),
        ("E123", f"{path}: annotations[2] (image_id 77)"),
        ("E123", f"{path} (image gone.jpg, file_name)"),
    }


@pytest.mark.parametrize("pixels", [True, False])
def test_objects_of_another_size_of_picture_are_a_fault(tmp_path: Path, pixels: bool) -> None:
    write_instances(tmp_path / "set")
    small = tmp_path / "set" / "train2017" / "1.jpg"
    save(small, np.zeros((4, 8, 3)))
    listing = open_listing(str(tmp_path / "set"))
    stops = [found for found in check(listing, sample=None if pixels else 1)[0] if found.stop]
    assert [(found.code, found.where) for found in stops] == [("E108", (f"{small} is 8x4, labelled at 8x8",))]
    with pytest.raises(DataError, match="E108 picture is not of the size it was labelled at"):
        masks(listing, "train")
    findings, facts = check(listing)
    mend = mended(listing, findings, facts)
    assert list(mend.dropped.values()) == [(str(small),)]
    assert not any("resized" in act for act in mend.acts)
    found = convert(listing, tmp_path / "out")
    assert (found["left_out"], found["unusable_mask"]) == (1, 1)


@pytest.mark.parametrize("size", [{}, {"width": None, "height": 8}, {"width": 0, "height": 0}, {"width": "8"}])
def test_a_size_that_the_annotation_does_not_give_is_not_compared(tmp_path: Path, size: dict[str, Any]) -> None:
    path = write_instances(tmp_path)
    content = json.loads(path.read_text())
    del content["images"][0]["width"], content["images"][0]["height"]
    content["images"][0] |= size
    write_json(path, content)
    assert not [found for found in check(open_listing(str(tmp_path)))[0] if found.stop]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([[0, 0, 1]], "segmentation is a list of 1"),
        ([[0, 0, 1, 1, 1e9, 3]], "within 100,000 pixels"),
        ([0, 0, 1, 1, 2, 3], "list of polygons"),
        ({"size": [8, 8], "counts": [1, 2]}, "sum to 3, not to the 64 pixels"),
        ({"size": [4, 16], "counts": [64]}, "that of the image, 8 x 8"),
        ({"size": [8, 8], "counts": "h"}, "end in the middle"),
        ({"size": [8, 8]}, "counts is missing"),
    ],
)
def test_shapes_that_cannot_be_drawn_are_refused_with_their_place(tmp_path: Path, shape: Any, message: str) -> None:
    path = write_instances(tmp_path)
    content = json.loads(path.read_text())
    content["annotations"][1]["segmentation"] = shape
    write_json(path, content)
    with pytest.raises(DataError, match=rf"instances_train2017\.json: annotations\[1\].*{message}"):
        open_listing(str(tmp_path))


def test_gta5_maps_label_ids_and_is_told_from_the_canonical_folder(tmp_path: Path) -> None:
    for name, values in (("00001", (0, 7, 26, 34)), ("00002", (33, 8, 4, 11)), ("00003", (24, 23, 1, 1))):
        photo(tmp_path / "images" / f"{name}.png")
        save(tmp_path / "labels" / f"{name}.png", quarters(*values), palette=True)
    (tmp_path / "split.mat").write_bytes(b"MATLAB")
    listing = open_listing(str(tmp_path))
    assert (listing.layout, len(listing.classes), counts(listing)) == ("gta5", 19, {"train": 3})
    assert (listing.classes[0], listing.colors[13]) == ("road", (0, 0, 142))
    np.testing.assert_array_equal(masks(listing, "train")[0], quarters(IGNORE, 0, 13, IGNORE))
    np.testing.assert_array_equal(masks(listing, "train")[1], quarters(18, 1, IGNORE, 2))
    (tmp_path / "classes.txt").write_text("\n".join(f"c{i}" for i in range(35)))
    assert open_listing(str(tmp_path)).layout == "folder"


def png_of_16_bits(channels: np.ndarray) -> bytes:
    """A PNG of 16-bit RGB, which Pillow does not write; (H, W, 3)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = channels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    # Every other row as differences to the one above (filter 2): the filter works on bytes, whatever they mean.
    raw = channels.astype(">u2").tobytes()
    rows = [np.frombuffer(raw, np.uint8).reshape(height, -1)[i] for i in range(height)]
    lines = [b"\2" + (rows[i] - rows[i - 1]).tobytes() if i % 2 else b"\0" + rows[i].tobytes() for i in range(height)]
    data = zlib.compress(b"".join(lines))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def write_synthia(root: Path) -> None:
    for name, values in (("0000000", (0, 3, 8, 22)), ("0000001", (21, 1, 11, 16)), ("0000002", (2, 4, 19, 20))):
        photo(root / "RGB" / f"{name}.png")
        channels = np.stack([quarters(*values), quarters(300, 2, 65535, 0), quarters(0, 0, 0, 0)], axis=-1)
        path = root / "GT" / "LABELS" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png_of_16_bits(channels))


def test_synthia_has_class_ids_in_the_lower_bytes(tmp_path: Path) -> None:
    write_synthia(tmp_path)
    listing = open_listing(str(tmp_path))
    assert (listing.layout, len(listing.classes), counts(listing)) == ("synthia", 16, {"train": 3})
    assert listing.classes[-3:] == ("bus", "motorcycle", "bicycle")
    assert (listing.colors[0], listing.colors[15]) == ((128, 64, 128), (119, 11, 32))
    decoder = Decoder.of(listing)
    found = [decoder.known(np.asarray(class_ids(p.mask)), p.mask) for p in listing.split("train") if p.mask is not None]
    np.testing.assert_array_equal(found[0], quarters(IGNORE, 0, 12, IGNORE))
    np.testing.assert_array_equal(found[1], quarters(3, 9, 15, IGNORE))
    np.testing.assert_array_equal(found[2], quarters(2, 1, 13, IGNORE))
    save(tmp_path / "plain.png", quarters(1, 2, 3, 4))
    np.testing.assert_array_equal(np.asarray(class_ids(tmp_path / "plain.png")), quarters(1, 2, 3, 4))
    (tmp_path / "cut.png").write_bytes((tmp_path / "GT" / "LABELS" / "0000000.png").read_bytes()[:60])
    with pytest.raises(DataError, match=r"cut.png cannot be read"):
        class_ids(tmp_path / "cut.png")


def test_synthia_is_read_by_every_data_set(tmp_path: Path) -> None:
    write_synthia(tmp_path)
    np.testing.assert_array_equal(masks(open_listing(str(tmp_path)), "train")[0], quarters(IGNORE, 0, 12, IGNORE))


def write_mapillary(root: Path, config: str = "config.json", labels: str = "labels") -> Path:
    for split, name, values in (
        ("training", "a", (0, 1, 3, 2)),
        ("training", "b", (2, 2, 2, 2)),
        ("validation", "c", (3, 3, 0, 0)),
    ):
        photo(root / split / "images" / f"{name}.jpg")
        save(root / split / labels / f"{name}.png", quarters(*values), palette=True)
    photo(root / "testing" / "images" / "d.jpg")
    listed = [("Bird", True, True), ("Ego Vehicle", False, False), ("Curb", False, True), ("Car", True, True)]
    content = [
        {"name": f"x--{name}", "readable": name, "color": [i, 40, 50], "instances": is_thing, "evaluate": is_class}
        for i, (name, is_thing, is_class) in enumerate(listed)
    ]
    return write_json(root / config, {"labels": content, "version": "1.1", "mapping": "public", "folder_structure": {}})


@pytest.mark.parametrize(
    ("config", "labels"),
    [("config.json", "labels"), ("config_v2.0.json", "v2.0/labels"), ("config_v1.2.json", "v1.2/labels")],
)
def test_mapillary_takes_classes_from_its_config(tmp_path: Path, config: str, labels: str) -> None:
    write_mapillary(tmp_path, config, labels)
    listing = open_listing(str(tmp_path))
    assert (listing.layout, listing.classes) == ("mapillary", ("Bird", "Curb", "Car"))
    assert (listing.colors[2], listing.things) == ((3, 40, 50), (0, 2))
    assert counts(listing) == {"train": 2, "val": 1, "test": 1}
    np.testing.assert_array_equal(masks(listing, "train")[0], quarters(0, IGNORE, 2, 1))
    np.testing.assert_array_equal(masks(listing, "val")[0], quarters(2, 2, 0, 0))


def test_mapillary_tells_labels_of_one_readable_name_apart_and_prefers_the_newer_version(tmp_path: Path) -> None:
    write_mapillary(tmp_path, "config_v1.2.json", "v1.2/labels")
    path = write_mapillary(tmp_path, "config_v2.0.json", "v2.0/labels")
    content = json.loads(path.read_text())
    content["labels"][2]["readable"] = "Bird"
    write_json(path, content)
    assert open_listing(str(tmp_path)).classes == ("Bird (x--Bird)", "Bird (x--Curb)", "Car")


@pytest.mark.parametrize(
    ("images", "labels", "ending"),
    [("images/10k", "labels/sem_seg/masks", ""), ("seg/images", "seg/labels", "_train_id")],
)
def test_bdd100k_in_both_forms(tmp_path: Path, images: str, labels: str, ending: str) -> None:
    for split, name, values in (
        ("train", "0004a4c0-d4dff0ad", (0, 18, 255, 13)),
        ("val", "7d06fefd-f7be05a6", (1, 1, 2, 3)),
    ):
        photo(tmp_path / images / split / f"{name}.jpg")
        save(tmp_path / labels / split / f"{name}{ending}.png", quarters(*values))
    photo(tmp_path / images / "test" / "cabc30fc-e7726578.jpg")
    save(tmp_path / labels / "val" / f"left{ending}.png", quarters(0, 0, 0, 0))
    listing = open_listing(str(tmp_path))
    assert (listing.layout, len(listing.classes)) == ("bdd100k", 19)
    assert counts(listing) == {"train": 1, "val": 1, "test": 1}
    assert (listing.classes[13], listing.colors[0]) == ("car", (128, 64, 128))
    np.testing.assert_array_equal(masks(listing, "train")[0], quarters(0, 18, IGNORE, 13))
    assert listing.split("test")[0].mask is None
    assert [path.name for path in listing.stray] == [f"left{ending}.png"]


@pytest.mark.parametrize(
    ("text", "runs"),
    [
        ("", ()),
        ("613", (6, 1, 3)),
        ("6131", (6, 1, 3, 2)),  # from the fourth on differences to the run before the last: 2 = 1 + 1
        ("6131N", (6, 1, 3, 2, 1)),  # N is 30, of 5 bits: -2
        ("`0", (16,)),  # 16 has the bit of the sign set, so a further digit follows
        ("T3", (100,)),  # 4 + 3 * 32
        ("`0T3`0", (16, 100, 16)),
    ],
)
def test_run_lengths_by_hand(text: str, runs: tuple[int, ...]) -> None:
    assert parse_runs(text) == runs


@pytest.mark.parametrize("text", ["é", " ", "`", "p" * 20])
def test_run_lengths_that_are_no_code_are_refused(text: str) -> None:
    with pytest.raises(DataError, match="run lengths"):
        parse_runs(text)


def test_runs_go_down_the_columns() -> None:
    assert run_mask((1, 2, 3), (3, 2)).astype(int).tolist() == [[0, 1, 0], [1, 0, 0]]
    assert run_mask((0, 6), (3, 2)).all()
    for runs in ((1, 2), (7,), (8, -2), ()):
        with pytest.raises(DataError, match="run lengths sum to"):
            run_mask(runs, (3, 2))


def test_run_lengths_agree_with_pycocotools() -> None:
    coco = pytest.importorskip("pycocotools.mask")
    for seed in range(20):
        mask = np.random.default_rng(seed).random((13, 41)) < 0.1 + 0.04 * seed
        text = coco.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()
        np.testing.assert_array_equal(run_mask(parse_runs(text), (41, 13)), mask)


def test_polygons_by_hand() -> None:
    triangle = Outline(1, ((0, 0, 4, 0, 0, 4),))
    assert np.asarray(draw((5, 5), (triangle,), 0)).tolist() == [
        [1, 1, 1, 1, 1],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 0, 0, 0, 0],
    ]
    two = Outline(2, ((0, 0, 1, 0, 1, 1, 0, 1), (3, 3, 4, 3, 4, 4, 3, 4)))
    later = Outline(3, runs=(4, 1, 20))
    drawn = np.asarray(draw((5, 5), (triangle, two, later), 7))
    assert drawn[0].tolist() == [2, 2, 1, 1, 1]
    assert drawn[4].tolist() == [3, 7, 7, 2, 2]  # polygons of one object, and runs over what was there


def centers_of(size: tuple[int, int], *polygons: Sequence[float]) -> np.ndarray:
    return np.asarray(draw(size, [Outline(1, polygons, covers_centers=True)], 0))


@pytest.mark.parametrize("side", [3, 10])
def test_a_square_has_as_many_pixels_as_its_area(side: int) -> None:
    square = (1, 1, 1 + side, 1, 1 + side, 1 + side, 1, 1 + side)
    expected = np.zeros((12, 12), int)
    expected[1 : 1 + side, 1 : 1 + side] = 1
    np.testing.assert_array_equal(centers_of((12, 12), square), expected)


def test_centres_in_polygons_by_hand() -> None:
    triangle = (0, 0, 5, 0, 0, 5)
    assert centers_of((6, 5), triangle).tolist() == [
        [1, 1, 1, 1, 0, 0],  # the centre at 4.5, 0.5 lies on the slanted edge, which is a right one
        [1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
    ]
    part = (4, 3, 6, 3, 6, 5, 4, 5)
    np.testing.assert_array_equal(
        centers_of((6, 5), triangle, part), centers_of((6, 5), triangle) + centers_of((6, 5), part)
    )
    within = (0, 0, 2, 0, 2, 2, 0, 2)
    np.testing.assert_array_equal(centers_of((6, 5), triangle, within), centers_of((6, 5), triangle))
    hole = (0, 0, 4, 0, 4, 4, 0, 4, 0, 0, 1, 1, 1, 3, 3, 3, 3, 1, 1, 1)  # two rings of one polygon
    assert centers_of((4, 4), hole).tolist() == [[1, 1, 1, 1], [1, 0, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1]]


def test_a_disc_has_nearly_the_area_of_a_circle() -> None:
    angle = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    disc = np.stack([32.3 + 20 * np.cos(angle), 30.8 + 20 * np.sin(angle)], 1).ravel().tolist()
    assert abs(centers_of((64, 64), disc).sum() / (np.pi * 20**2) - 1) < 0.02


def test_polygons_of_a_common_edge_share_no_pixel_and_leave_none() -> None:
    left, right = (0, 0, 7, 0, 2, 9, 0, 9), (2, 9, 7, 0, 9, 0, 9, 9)
    assert (centers_of((9, 9), left) + centers_of((9, 9), right) == 1).all()


def test_centres_in_polygons_match_a_loop() -> None:
    rng = np.random.default_rng(0)
    for count in range(3, 30):
        points = rng.uniform(-6, 18, (count, 2))
        expected = np.zeros((9, 12), int)
        for y, x in np.ndindex(9, 12):
            for (ax, ay), (bx, by) in zip(points, np.roll(points, -1, 0), strict=True):
                if (ay > y + 0.5) != (by > y + 0.5) and ax + (y + 0.5 - ay) * (bx - ax) / (by - ay) < x + 0.5:
                    expected[y, x] ^= 1
        np.testing.assert_array_equal(centers_of((12, 9), points.ravel().tolist()), expected)


@pytest.mark.parametrize("polygon", [(1, 1) * 3, (20, 0, 30, 0, 30, 9), (-9, 0, -3, 0, -3, 9), (0, -9, 5, -3, 9, -9)])
def test_polygons_without_area_or_beside_the_picture_cover_nothing(polygon: Sequence[float]) -> None:
    assert not centers_of((9, 9), polygon).any()
