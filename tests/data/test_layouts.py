"""Each layout is read as it lies on disk, on three pictures."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CLASSES, COLORS, draw, write_set
from panoptic_sets import write_objects
from PIL import Image

from segue.data.check import check
from segue.data.convert import convert
from segue.data.decoder import Decoder
from segue.data.images import Whole
from segue.data.layouts import open_images, open_listing
from segue.data.layouts.voc import voc_color
from segue.data.panoptic import Annotation
from segue.data.sample import IGNORE
from segue.data.unlabelled import open_image_set
from segue.errors import DataError


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def photo(path: Path, index: int = 0) -> None:
    save(path, draw(index)[0])


def masks_of(root: Path, split: str) -> list[np.ndarray]:
    listing = open_listing(str(root))
    data = Whole(listing.split(split), Decoder.of(listing))
    return [data[i]["mask"].numpy() for i in range(len(data))]


def test_canonical_folder_reads_classes_splits_and_masks(dataset: Path) -> None:
    listing = open_listing(str(dataset))
    assert listing.classes == CLASSES
    assert {split: len(pairs) for split, pairs in listing.splits.items()} == {"train": 6, "val": 2, "test": 2}
    np.testing.assert_array_equal(masks_of(dataset, "train")[3], draw(3)[1])
    assert list(open_listing(f"{dataset}:test").splits) == ["test"]


def test_plain_folder_with_classes_txt_has_one_split(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set")
    (root / "dataset.json").unlink()
    (root / "classes.txt").write_text("# of a toy\nground\ndisc\nbar\n")
    listing = open_listing(str(root))
    assert listing.classes == CLASSES
    assert list(listing.splits) == ["train"]
    (root / "splits").mkdir()
    (root / "splits" / "val.txt").write_text("val_006\nval_007\n")
    (root / "splits" / "train.txt").write_text("train_000\n")
    assert {k: len(v) for k, v in open_listing(str(root)).splits.items()} == {"train": 1, "val": 2}


def test_subfolders_are_splits(tmp_path: Path) -> None:
    for split, index in (("train", 0), ("train", 1), ("val", 2)):
        photo(tmp_path / "images" / split / f"{index}.jpg", index)
        save(tmp_path / "labels" / split / f"{index}.png", draw(index)[1])
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    assert {k: len(v) for k, v in open_listing(str(tmp_path)).splits.items()} == {"train": 2, "val": 1}


@pytest.mark.parametrize("listed", ["classes.txt", "labelmap.txt"])
def test_colour_coded_masks_are_read_by_their_colours(tmp_path: Path, listed: str) -> None:
    _, ids = draw(0)
    photo(tmp_path / "images" / "a.png")
    save(tmp_path / "labels" / "a.png", np.array(COLORS, np.uint8)[ids])
    rows = zip(CLASSES, COLORS, strict=True)
    lines = [f"{n} {r} {g} {b}" if listed == "classes.txt" else f"{n}:{r},{g},{b}::" for n, (r, g, b) in rows]
    (tmp_path / listed).write_text(
        "\n".join(["# label:color_rgb:parts:actions", *lines]) if listed[0] == "l" else "\n".join(lines)
    )
    np.testing.assert_array_equal(masks_of(tmp_path, "train")[0], ids)


def test_colour_coded_masks_without_colours_say_what_to_write(tmp_path: Path) -> None:
    photo(tmp_path / "images" / "a.png")
    save(tmp_path / "labels" / "a.png", np.array(COLORS, np.uint8)[draw(0)[1]])
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    (fault,) = open_listing(str(tmp_path)).faults
    assert re.match(r"E104 .*90, 90, 90.*a.png.*'name r g b'", str(fault))


def test_palette_masks_are_read_by_index(tmp_path: Path) -> None:
    _, ids = draw(0)
    photo(tmp_path / "images" / "a.png")
    (tmp_path / "labels").mkdir()
    picture = Image.fromarray(ids)
    picture.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    picture.save(tmp_path / "labels" / "a.png")
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    np.testing.assert_array_equal(masks_of(tmp_path, "train")[0], ids)


def test_camvid_as_segnet_publishes_it(tmp_path: Path) -> None:
    ids = np.array([[0, 11], [3, 10]], np.uint8)
    for split in ("train", "val", "test"):
        photo(tmp_path / split / "f1.png")
        save(tmp_path / f"{split}annot" / "f1.png", np.kron(ids, np.ones((24, 24), np.uint8)))
    listing = open_listing(str(tmp_path))
    assert listing.layout == "camvid"
    assert listing.classes[3] == "road"
    assert np.unique(masks_of(tmp_path, "val")[0]).tolist() == [0, 3, 10, IGNORE]  # 11 is unlabelled


@pytest.mark.parametrize("home", ["", "VOC2012", "VOCdevkit/VOC2012"])
def test_voc_as_it_is_unpacked(tmp_path: Path, home: str) -> None:
    root = tmp_path / home if home else tmp_path
    for name, values in (("2007_1", [[0, 15], [255, 20]]), ("2007_2", [[1, 1], [1, 1]])):
        photo(root / "JPEGImages" / f"{name}.jpg")
        save(
            root / "SegmentationClass" / f"{name}.png", np.kron(np.array(values, np.uint8), np.ones((24, 24), np.uint8))
        )
    photo(root / "JPEGImages" / "2007_3.jpg")
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_1\n")
    (lists / "val.txt").write_text("2007_2\n")
    (lists / "test.txt").write_text("2007_3\n")
    listing = open_listing(str(tmp_path))
    assert (listing.layout, len(listing.classes), listing.classes[15]) == ("voc", 21, "person")
    assert np.unique(masks_of(tmp_path, "train")[0]).tolist() == [0, 15, 20, IGNORE]
    assert listing.split("test")[0].mask is None


@pytest.mark.parametrize("home", ["", "VOCdevkit"])
def test_several_years_of_voc_are_refused_with_their_names(tmp_path: Path, home: str) -> None:
    for year in ("VOC2007", "VOC2012"):
        root = tmp_path / home / year
        photo(root / "JPEGImages" / f"{year}.jpg")
        save(root / "SegmentationClass" / f"{year}.png", np.zeros((48, 48), np.uint8))
        (root / "ImageSets" / "Segmentation").mkdir(parents=True)
        (root / "ImageSets" / "Segmentation" / "train.txt").write_text(f"{year}\n")
    first, last = Path(home) / "VOC2007", Path(home) / "VOC2012"
    with pytest.raises(DataError, match=f"several sets of VOC, {first} and {last}; name one: {tmp_path / last}"):
        open_listing(str(tmp_path))
    assert [pair.name for pair in open_listing(str(tmp_path / last)).split("train")] == ["VOC2012"]


def test_voc_palette_by_hand() -> None:
    # Published palette: aeroplane dark red, bicycle dark green, person (192, 128, 128), tvmonitor (0, 64, 128).
    assert [voc_color(i) for i in (0, 1, 2, 15, 20)] == [
        (0, 0, 0),
        (128, 0, 0),
        (0, 128, 0),
        (192, 128, 128),
        (0, 64, 128),
    ]


def test_cityscapes_maps_label_ids_and_prefers_training_ids(tmp_path: Path) -> None:
    stem = "aachen_000000_000019"
    photo(tmp_path / "leftImg8bit" / "train" / "aachen" / f"{stem}_leftImg8bit.png")
    raw = np.kron(np.array([[7, 26], [0, 33]], np.uint8), np.ones((24, 24), np.uint8))
    folder = tmp_path / "gtFine" / "train" / "aachen"
    save(folder / f"{stem}_gtFine_labelIds.png", raw)
    assert np.unique(masks_of(tmp_path, "train")[0]).tolist() == [0, 13, 18, IGNORE]  # road, car, bicycle, unlabelled
    save(folder / f"{stem}_gtFine_labelTrainIds.png", np.full((48, 48), 2, np.uint8))
    assert np.unique(masks_of(tmp_path, "train")[0]).tolist() == [2]
    assert open_listing(str(tmp_path)).split("train")[0].name == f"train/aachen/{stem}"


def write_nuclei(root: Path) -> np.ndarray:
    """Two images of stage 1 of the Data Science Bowl 2018, and the class ids of each."""
    ids = np.zeros((48, 48), np.uint8)
    ids[2:9, 3:8] = ids[20:30, 30:40] = 1
    for name in ("00ae", "0f1c"):
        photo(root / name / "images" / f"{name}.png")
        for number, area in enumerate((np.s_[2:9, 3:8], np.s_[20:30, 30:40])):
            nucleus = np.zeros_like(ids)
            nucleus[area] = 255
            save(root / name / "masks" / f"{number}.png", nucleus)
    return ids


def test_dsb2018_draws_the_nuclei_of_an_image_and_tells_them_apart(tmp_path: Path) -> None:
    ids = write_nuclei(tmp_path / "set")
    np.testing.assert_array_equal(masks_of(tmp_path / "set", "train")[0], ids)
    photo(tmp_path / "set" / "ff00" / "images" / "ff00.png")  # as in the test stage
    listing = open_listing(str(tmp_path / "set"))
    assert (listing.layout, listing.classes, listing.things) == ("dsb2018", ("background", "nucleus"), (1,))
    assert [(pair.name, pair.mask is None) for pair in listing.split("train")] == [
        ("00ae", False), ("0f1c", False), ("ff00", True)
    ]  # fmt: skip
    assert [pair.name for pair in open_images(str(tmp_path / "set"))] == [
        "00ae/images/00ae", "0f1c/images/0f1c", "ff00/images/ff00"
    ]  # fmt: skip
    convert(listing, tmp_path / "out")
    with Image.open(tmp_path / "out" / "instances" / "00ae.png") as stored:
        instances = np.array(stored)
    np.testing.assert_array_equal(instances > 0, ids)
    assert (instances[2, 3], instances[20, 30], instances.max()) == (1, 2, 2)


def test_a_mask_of_dsb2018_that_is_cut_short_or_turned_is_named_by_its_file(tmp_path: Path) -> None:
    write_nuclei(tmp_path)
    save(tmp_path / "00ae" / "masks" / "1.png", np.zeros((24, 96), np.uint8))
    (tmp_path / "0f1c" / "masks" / "1.png").write_bytes(b"\x89PNG")
    findings, facts = check(open_listing(str(tmp_path)))
    said = " ".join(map(str, findings))
    assert len(facts.bad) == 2
    assert f"{tmp_path}/00ae/masks/1.png is 96x24" in said
    assert f"{tmp_path}/0f1c/masks/1.png cannot be read" in said


def test_images_and_masks_of_a_split_are_not_taken_for_nuclei(tmp_path: Path) -> None:
    for kind in ("images", "masks"):
        photo(tmp_path / "train" / kind / "a.png")
    with pytest.raises(DataError, match="no data set"):
        open_listing(str(tmp_path))


def test_unlabelled_sets_are_plain_folders_or_splits_and_masks_are_left_alone(dataset: Path, tmp_path: Path) -> None:
    photo(tmp_path / "more" / "deep" / "x.jpg")
    (tmp_path / "more" / "notes.txt").write_text("not a picture")
    assert [pair.name for pair in open_images(str(tmp_path / "more"))] == ["deep/x"]
    assert len(open_images(f"{dataset}:train")) == 6
    assert all(pair.mask is None for pair in open_images(str(dataset)))


@pytest.mark.parametrize("first", ["ids", "colours"])
def test_a_mask_of_the_other_kind_is_named_and_not_read_by_its_red_channel(tmp_path: Path, first: str) -> None:
    """The first mask says whether a set's masks hold ids or colours."""
    _, ids = draw(0)
    kinds = {"ids": ids, "colours": np.array(COLORS, np.uint8)[ids]}
    other = next(kind for kind in kinds if kind != first)
    for name, kind in (("a", first), ("b", other)):
        photo(tmp_path / "images" / f"{name}.png")
        save(tmp_path / "labels" / f"{name}.png", kinds[kind])
    lines = [f"{name} {r} {g} {b}" for name, (r, g, b) in zip(CLASSES, COLORS, strict=True)]
    (tmp_path / "classes.txt").write_text("\n".join(lines))
    findings, _ = check(open_listing(str(tmp_path)))
    assert [(f.code, f.stop) for f in findings if "b.png" in " ".join(f.where)][:1] == [("E101", True)]
    with pytest.raises(DataError, match=r"b\.png"):
        masks_of(tmp_path, "train")


@pytest.mark.parametrize("suffix", [".tif", ".PNG"])
def test_numbers_of_objects_are_found_under_every_suffix_of_an_image(tmp_path: Path, segue: Any, suffix: str) -> None:
    root = write_objects(tmp_path / "set")
    before = open_listing(str(root))
    expected = [Annotation(before).read(pair).ids for pair in before.split("train")]
    for path in sorted((root / "instances").iterdir())[1:]:
        with Image.open(path) as image:
            image.save(path.with_suffix(suffix))
        path.unlink()
    listing = open_listing(str(root))
    for pair, ids in zip(listing.split("train"), expected, strict=True):
        np.testing.assert_array_equal(Annotation(listing).read(pair).ids, ids)
    assert segue("data", "convert", root, tmp_path / "copy")[0] == 0
    assert len(list((tmp_path / "copy" / "instances").iterdir())) == 8


def test_images_beside_a_folder_called_images_count_unless_it_is_a_set(tmp_path: Path) -> None:
    root = tmp_path / "ph"
    for name in ("images/c", "images/deep/d"):
        photo(root / f"{name}.png")
    assert [pair.name for pair in open_images(str(root))] == ["c", "deep/d"]
    for name in ("a", "more/b"):
        photo(root / f"{name}.png")
    every = ["a", "images/c", "images/deep/d", "more/b"]
    assert [pair.name for pair in open_images(str(root))] == every
    assert [pair.name for pair in open_image_set(str(root)).images] == every
    (root / "labels").mkdir()
    assert [pair.name for pair in open_images(str(root))] == ["c", "deep/d"]
    (root / "labels").rmdir()
    (root / "classes.txt").write_text("a\nb\n")
    assert [pair.name for pair in open_images(str(root))] == ["c", "deep/d"]


@pytest.mark.parametrize("record", ["run.json", "predict.json", "suggestion.json"])
def test_what_was_written_among_the_images_is_no_image_unless_it_is_named(tmp_path: Path, record: str) -> None:
    root = tmp_path / "more"
    for name in ("a", "deep/b", "written/labels/a", "deep/written/contact"):
        photo(root / f"{name}.png")
    for folder in ("written", "deep/written"):
        (root / folder / record).write_text("{}")
    assert [pair.name for pair in open_images(str(root))] == ["a", "deep/b"]
    assert [pair.name for pair in open_image_set(str(root)).images] == ["a", "deep/b"]
    assert [pair.name for pair in open_images(str(root / "written"))] == ["labels/a"]


def test_masks_are_no_images_in_sets_that_lie_as_they_were_published(tmp_path: Path) -> None:
    """Images that no list names count; masks, instance maps and coloured masks do not, wherever they lie."""
    stem, city = "aachen_000000_000019", Path("train") / "aachen"
    photo(tmp_path / "cityscapes" / "leftImg8bit" / city / f"{stem}_leftImg8bit.png")
    for kind in ("labelIds", "instanceIds", "color"):
        save(tmp_path / "cityscapes" / "gtFine" / city / f"{stem}_gtFine_{kind}.png", draw(0)[1])
    for name in ("2007_1", "2007_2"):
        photo(tmp_path / "voc" / "JPEGImages" / f"{name}.jpg")
    for kind in ("Class", "Object"):
        save(tmp_path / "voc" / f"Segmentation{kind}" / "2007_1.png", draw(0)[1])
    (tmp_path / "voc" / "ImageSets" / "Segmentation").mkdir(parents=True)
    (tmp_path / "voc" / "ImageSets" / "Segmentation" / "train.txt").write_text("2007_1\n")
    photo(tmp_path / "camvid" / "train" / "f1.png")
    save(tmp_path / "camvid" / "trainannot" / "f1.png", draw(0)[1])
    found = {
        name: [pair.name for pair in open_images(str(tmp_path / name))] for name in ("cityscapes", "voc", "camvid")
    }
    assert found == {
        "cityscapes": [f"leftImg8bit/{city}/{stem}_leftImg8bit"],
        "voc": ["JPEGImages/2007_1", "JPEGImages/2007_2"],
        "camvid": ["train/f1"],
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "dataset.json").write_text("{"), "no valid JSON"),
        (lambda root: (root / "dataset.json").write_text("[]"), "must hold an object"),
        (lambda root: (root / "dataset.json").write_text('{"classes": ["a", "a"]}'), "'a' twice"),
        (lambda root: (root / "dataset.json").unlink(), "no class list"),
        (
            lambda root: (root / "dataset.json").write_text(
                json.dumps({"classes": CLASSES, "splits": {"train": ["gone"]}})
            ),
            "names 'gone'",
        ),
        (
            lambda root: (root / "dataset.json").write_text(
                json.dumps({"classes": CLASSES, "splits": {"train": ["val_006", "val_006"]}})
            ),
            "'val_006' more than once",
        ),
    ],
)
def test_a_set_that_contradicts_itself_is_refused_with_the_name(dataset: Path, change: object, message: str) -> None:
    change(dataset)  # type: ignore[operator]
    with pytest.raises(DataError, match=message):
        open_listing(str(dataset))


def test_missing_things_are_named(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        open_listing(str(tmp_path / "gone"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"in it: nothing.*expected images/"):
        open_listing(str(tmp_path / "empty"))
    with pytest.raises(DataError, match="did you mean 'train'"):
        open_listing(f"{dataset}:trian")
    with pytest.raises(DataError, match="unknown layout"):
        open_listing(str(dataset), "coco")
    with pytest.raises(DataError, match="holds no image"):
        open_images(str(tmp_path / "empty"))
