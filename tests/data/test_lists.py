"""Lists decide: the class list in the root over what folders look like, and the lists of splits over their names."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import CLASSES, COLORS, draw
from PIL import Image

from segue.data.decoder import Decoder
from segue.data.images import Whole
from segue.data.layouts import open_images, open_listing
from segue.data.split_names import split_folders
from segue.errors import DataError

Segue = Callable[..., tuple[int, str, str]]


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def sizes(address: Path) -> dict[str, int]:
    return {split: len(pairs) for split, pairs in open_listing(str(address)).splits.items()}


def first_mask(root: Path, split: str) -> np.ndarray:
    listing = open_listing(str(root))
    return np.asarray(Whole(listing.split(split), Decoder.of(listing))[0]["mask"])


def write_pairs(root: Path, images: str, labels: str, *, mask: np.ndarray | None = None, suffix: str = "png") -> None:
    """One pair; both folders end in the name of a split."""
    save(root / images / f"a.{suffix}", draw(0)[0])
    save(root / labels / "a.png", draw(0)[1] if mask is None else mask)


def write_voc(root: Path, mask: np.ndarray) -> None:
    write_pairs(root, "JPEGImages", "SegmentationClass", mask=mask, suffix="jpg")
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("a\n")


def labelmap(root: Path) -> None:
    """As CVAT writes it."""
    rows = [f"{name}:{r},{g},{b}::" for name, (r, g, b) in zip(CLASSES, COLORS, strict=True)]
    (root / "labelmap.txt").write_text("\n".join(["# label:color_rgb:parts:actions", *rows]))


@pytest.mark.parametrize("kind", ["ids", "colours"])
def test_a_class_list_decides_over_the_classes_of_voc(tmp_path: Path, kind: str) -> None:
    ids = draw(0)[1]
    write_voc(tmp_path, ids if kind == "ids" else np.array(COLORS, np.uint8)[ids])
    labelmap(tmp_path)
    listing = open_listing(str(tmp_path))
    assert (listing.layout, listing.classes, listing.colors) == ("voc", CLASSES, COLORS)
    np.testing.assert_array_equal(first_mask(tmp_path, "train"), ids)


def test_coloured_masks_of_voc_and_a_list_without_colours_are_a_fault(tmp_path: Path) -> None:
    write_voc(tmp_path, np.array(COLORS, np.uint8)[draw(0)[1]])
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    assert [fault.code for fault in open_listing(str(tmp_path)).faults] == ["E104"]


def test_a_class_list_decides_over_the_classes_of_camvid(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_pairs(tmp_path, split, f"{split}annot")
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    listing = open_listing(str(tmp_path))
    assert (listing.layout, listing.classes, sizes(tmp_path)) == ("camvid", CLASSES, {"train": 1, "val": 1})
    np.testing.assert_array_equal(first_mask(tmp_path, "val"), draw(0)[1])
    (tmp_path / "classes.txt").unlink()
    (tmp_path / "dataset.json").write_text('{"about": "nothing of classes"}')
    assert len(open_listing(str(tmp_path)).classes) == 11


def test_a_class_list_decides_over_the_classes_of_ade20k(tmp_path: Path) -> None:
    for split in ("training", "validation"):
        write_pairs(tmp_path, f"images/{split}", f"annotations/{split}", mask=np.minimum(draw(0)[1], 1))
    (tmp_path / "classes.txt").write_text("background\nvessel\n")
    assert open_listing(str(tmp_path)).classes == ("background", "vessel")
    assert sizes(tmp_path) == {"train": 1, "val": 1}
    np.testing.assert_array_equal(first_mask(tmp_path, "val"), np.minimum(draw(0)[1], 1))
    assert len(open_listing(str(tmp_path), "ade20k").classes) == 150


@pytest.mark.parametrize(
    ("layout", "images", "labels"),
    [
        ("cityscapes", "leftImg8bit/train/aachen", "gtFine/train/aachen"),
        ("bdd100k", "seg/images/train", "seg/labels/train"),
        ("synthia", "RGB", "GT/LABELS"),
        ("mapillary", "training/images", "training/labels"),
    ],
)
def test_a_class_list_beside_a_set_that_has_its_own_is_refused(
    layout: str, images: str, labels: str, tmp_path: Path, segue: Segue
) -> None:
    write_pairs(tmp_path, images, labels)
    (tmp_path / "config.json").write_text(json.dumps({"labels": [{"name": "a", "readable": "a"}]}))
    (tmp_path / "classes.txt").write_text("a\nb\n")
    with pytest.raises(DataError, match=rf"--layout {layout} to read it with those, or take classes.txt away"):
        open_listing(str(tmp_path))
    if layout != "cityscapes":  # whose names say which files are images
        assert len(open_images(str(tmp_path))) == 1  # without labels it does not matter which classes they have
    status, _, errors = segue("check", tmp_path)
    assert (status, errors.count("\n")) == (2, 1)
    assert open_listing(str(tmp_path), layout).layout == layout


@pytest.mark.parametrize("name", ["valid", "validation", "dev"])
@pytest.mark.parametrize("said", ["folders", "lists", "dataset.json"])
def test_other_names_of_the_validation_split_are_it(tmp_path: Path, name: str, said: str) -> None:
    for split in ("train", name):
        write_pairs(tmp_path, f"images/{split}", f"labels/{split}")
        if said == "lists":
            (tmp_path / "splits").mkdir(exist_ok=True)
            (tmp_path / "splits" / f"{split}.txt").write_text(f"{split}/a\n")
    splits = {split: [f"{split}/a"] for split in ("train", name)}
    described = {"classes": CLASSES, **({"splits": splits} if said == "dataset.json" else {})}
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    assert sizes(tmp_path) == {"train": 1, "val": 1}
    for address in (f"{tmp_path}:val", f"{tmp_path}:{name}"):
        assert [pair.name for pair in next(iter(open_listing(address).splits.values()))] == [f"{name}/a"]


@pytest.mark.parametrize("said", ["folders", "lists"])
def test_two_names_of_one_split_are_refused(tmp_path: Path, said: str) -> None:
    for split in ("train", "val", "valid"):
        write_pairs(tmp_path, f"images/{split}", f"labels/{split}")
        if said == "lists":
            (tmp_path / "splits").mkdir(exist_ok=True)
            (tmp_path / "splits" / f"{split}.txt").write_text(f"{split}/a\n")
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    with pytest.raises(DataError, match="has val and valid, which are one split, val"):
        open_listing(str(tmp_path))


@pytest.mark.parametrize("names", [("Train", "Val"), ("train2017", "val2017"), ("TRAINING_2020", "valid-2020")])
@pytest.mark.parametrize("said", ["folders", "lists", "dataset.json"])
def test_capitals_and_years_of_split_names_do_not_matter(tmp_path: Path, names: tuple[str, str], said: str) -> None:
    for split in names:
        write_pairs(tmp_path, f"images/{split}", f"labels/{split}")
        if said == "lists":
            (tmp_path / "splits").mkdir(exist_ok=True)
            (tmp_path / "splits" / f"{split}.txt").write_text(f"{split}/a\n")
    splits = {split: [f"{split}/a"] for split in names}
    described = {"classes": CLASSES, **({"splits": splits} if said == "dataset.json" else {})}
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    assert sizes(tmp_path) == {"train": 1, "val": 1}
    assert len(open_listing(f"{tmp_path}:{names[1]}").splits[names[1]]) == 1


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("learn", "val", "test"), "images has test and val, which look like splits, and none of them is train"),
        (("train_images", "val_images"), "has train_images and val_images, which look like splits, and none of them"),
        (("train2014", "train2017", "val2017"), "has train2014 and train2017 and val2017, which look like splits"),
        (("Train", "train"), "has Train and train, which are one split, train"),
        (("train", "val", "."), "which look like splits, and a lies in none of them"),
    ],
)
def test_folders_that_look_like_splits_are_not_learnt_from_as_one(
    tmp_path: Path, folders: tuple[str, ...], message: str
) -> None:
    for folder in folders:
        write_pairs(tmp_path, f"images/{folder}", f"labels/{folder}")
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    with pytest.raises(DataError, match=message):
        open_listing(str(tmp_path))


def test_folders_that_are_no_splits_are_one(tmp_path: Path) -> None:
    for folder in ("berlin", "trainstation", "ulm2017", "test"):
        write_pairs(tmp_path, f"images/{folder}", f"labels/{folder}")
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    assert sizes(tmp_path) == {"train": 4}


def test_a_description_may_give_both_names(tmp_path: Path) -> None:
    """A converted set has the splits that its source had."""
    splits = {split: [f"{split}/a"] for split in ("train", "val", "dev")}
    for split in splits:
        write_pairs(tmp_path, f"images/{split}", f"labels/{split}")
    (tmp_path / "dataset.json").write_text(json.dumps({"classes": CLASSES, "splits": splits}))
    assert sizes(tmp_path) == {"train": 1, "val": 1, "dev": 1}


def test_the_mended_copy_has_no_training_image_that_val_names_too_nor_a_copy_of_one(
    dataset: Path, tmp_path: Path, segue: Segue
) -> None:
    described = json.loads((dataset / "dataset.json").read_text())
    described["splits"]["val"].append("train_000")
    described["splits"]["train"].remove("train_005")  # of no split now
    (dataset / "dataset.json").write_text(json.dumps(described))
    (dataset / "images" / "train_001.png").write_bytes((dataset / "images" / "train_000.png").read_bytes())
    status, output, errors = segue("check", dataset, "--fix", tmp_path / "copy")
    assert status == 0, output + errors
    assert "mended: 1 images that val or test name too taken out of train" in output
    copy = open_listing(str(tmp_path / "copy"))
    assert [pair.name for pair in copy.split("train")] == ["train_002", "train_003", "train_004"]
    assert "train_000" in [pair.name for pair in copy.split("val")]
    assert [pair.name for pair in copy.unnamed] == ["train_005"]


def test_lists_of_voc_may_give_paths_and_images_without_an_augmented_mask_have_the_other(tmp_path: Path) -> None:
    for name, folder in (("a", "SegmentationClassAug"), ("b", "SegmentationClass")):
        save(tmp_path / "JPEGImages" / f"{name}.jpg", draw(0)[0])
        save(tmp_path / folder / f"{name}.png", draw(0)[1])
    save(tmp_path / "SegmentationClass" / "a.png", np.zeros((48, 48), np.uint8))
    (tmp_path / "ImageSets" / "Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Segmentation" / "train_aug.txt").write_text(
        "/JPEGImages/a.jpg /SegmentationClassAug/a.png\n/JPEGImages/b.jpg /SegmentationClassAug/b.png\n"
    )
    pairs = open_listing(str(tmp_path)).split("train_aug")
    assert [pair.name for pair in pairs] == ["a", "b"]
    assert [pair.mask and pair.mask.parent.name for pair in pairs] == ["SegmentationClassAug", "SegmentationClass"]
    (tmp_path / "SegmentationClass" / "b.png").rename(tmp_path / "SegmentationClassAug" / "b.png")
    (tmp_path / "ImageSets" / "Segmentation" / "val.txt").write_text(
        "a\nb\n"
    )  # masks as they were published come first
    pairs = open_listing(str(tmp_path)).split("val")
    assert [pair.mask and pair.mask.parent.name for pair in pairs] == ["SegmentationClass", "SegmentationClassAug"]
    (tmp_path / "ImageSets" / "Segmentation" / "val.txt").write_text("/JPEGImages/../a.jpg x\n")
    with pytest.raises(DataError, match="refusing the path"):
        open_listing(str(tmp_path))


def test_names_of_voc_may_hold_spaces(tmp_path: Path) -> None:
    for name in ("my photo 1", "plain", "other photo"):
        save(tmp_path / "JPEGImages" / f"{name}.jpg", draw(0)[0])
        save(tmp_path / "SegmentationClass" / f"{name}.png", draw(0)[1])
    (tmp_path / "ImageSets" / "Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Segmentation" / "train.txt").write_text(
        "my photo 1\nplain -1\n/JPEGImages/other photo.jpg /SegmentationClass/other photo.png\n"
    )
    pairs = open_listing(str(tmp_path)).split("train")
    assert [(pair.name, pair.mask and pair.mask.stem) for pair in pairs] == [
        (name, name) for name in ("my photo 1", "plain", "other photo")
    ]


@pytest.mark.parametrize("is_used", [False, True])
def test_the_heading_of_roboflows_categories_is_a_class_only_where_it_is_used(tmp_path: Path, is_used: bool) -> None:
    square = [[4, 0, 8, 0, 8, 8, 4, 8]]
    content = {
        "images": [{"id": 0, "file_name": "a.jpg"}],
        "annotations": [{"id": 5, "image_id": 0, "category_id": 2, "segmentation": square}],
        "categories": [
            {"id": 0, "name": "cells", "supercategory": "none"},
            {"id": 1, "name": "red", "supercategory": "cells"},
            {"id": 2, "name": "white", "supercategory": "cells"},
        ],
    }
    for split in ("train", "valid"):
        save(tmp_path / split / "a.jpg", draw(0)[0])
        (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(content))
        if is_used:  # in one of the splits
            content["annotations"] = [{"id": 5, "image_id": 0, "category_id": 0, "segmentation": square}]
    listing = open_listing(str(tmp_path))
    headed = ("cells",) if is_used else ()
    assert listing.classes == ("background", *headed, "red", "white")
    assert first_mask(tmp_path, "train").max() == listing.classes.index("white")
    assert len(listing.colors) == len(listing.classes)


def test_many_folders_are_told_apart_in_no_time() -> None:
    began = time.process_time()
    assert split_folders({f"patient_{i:06d}/a" for i in range(30_000)}, "set") == {}
    assert time.process_time() - began < 3  # each with each takes minutes
