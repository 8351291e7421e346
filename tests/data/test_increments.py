"""Protocols of class increments: who comes when, by hand; and the folders that they are written as."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from panoptic_sets import OBJECTS, SHAPES, write_objects
from PIL import Image

from segue.data.increments import Plan, assign, class_order, contents, parts, plan_increments, write_increments
from segue.data.layouts import open_listing
from segue.data.listing import Pair
from segue.data.panoptic import Annotation
from segue.data.sample import IGNORE
from segue.errors import DataError

Segue = Callable[..., tuple[int, str, str]]
SHOWN = {"1": frozenset("a"), "2": frozenset("ab"), "3": frozenset("bc"), "4": frozenset("acd"), "5": frozenset("d")}


def test_overlap_and_disjoint_by_hand() -> None:
    increments = (("a", "b"), ("c",), ("d",))
    assert assign(SHOWN, increments, "overlap") == (("1", "2", "3", "4"), ("3", "4"), ("4", "5"))
    assert assign(SHOWN, increments, "disjoint") == (("1", "2"), ("3",), ("4", "5"))


def test_parts_and_orders() -> None:
    assert parts("abcdef", 3, 2) == (("a", "b", "c"), ("d", "e"), ("f",))
    assert class_order("abcdef", None) == tuple("abcdef")
    orders = {class_order("abcdef", seed) for seed in range(8)}
    assert len(orders) > 6
    assert all(sorted(order) == list("abcdef") for order in orders)
    assert class_order("abcdef", 3) == class_order("abcdef", 3)
    for base, more in ((6, 1), (0, 1), (2, 0)):
        with pytest.raises(DataError, match="leave no increment"):
            parts("abcdef", base, more)


def test_folders_hold_the_increment_to_train_and_all_seen_to_validate(tmp_path: Path) -> None:
    root = write_objects(tmp_path / "set")
    listing = open_listing(str(root))
    annotation = Annotation(listing)
    plan = plan_increments(listing, annotation, base=2, more=1, order=1, protocol="overlap")
    folders = write_increments(listing, annotation, plan, tmp_path / "out")
    assert Plan.read(tmp_path / "out" / "plan.json") == plan
    assert len(folders) == len(plan.increments) == 3
    for number, folder in enumerate(folders):
        found, seen = open_listing(str(folder)), plan.seen(number)
        assert found.classes == seen
        assert {found.classes[i] for i in found.things} == set(seen) & set(OBJECTS)
        assert [pair.name for pair in found.split("train")] == list(plan.images[number])
        for split, kept in (("train", plan.increments[number]), ("val", seen)):
            for pair in found.split(split):
                whole, part = annotation.read(original(root, pair.name)), Annotation(found).read(pair)
                names = [found.classes[i] for i in part.labels]
                assert set(names) <= set(kept)
                assert sorted(names) == sorted(n for i in whole.labels if (n := SHAPES[i]) in kept)
                for i in range(len(found.classes)):
                    is_there = whole.classes() == SHAPES.index(found.classes[i])
                    assert ((part.classes() == i) == (is_there & (found.classes[i] in kept))).all()
                assert pair.image.read_bytes() == (root / "images" / pair.image.name).read_bytes()


def test_what_was_interrupted_starts_anew_and_nothing_else_is_removed(tmp_path: Path) -> None:
    root = write_objects(tmp_path / "set")
    listing, out = open_listing(str(root)), tmp_path / "out"
    annotation = Annotation(listing)
    plan = plan_increments(listing, annotation, base=2, more=1, order=1, protocol="overlap")
    total = sum(len(pairs) for splits in contents(listing, plan) for pairs in splits.values())
    ticks: list[int] = []

    def stop() -> None:
        ticks.append(1)
        if len(ticks) == total - 1:  # in the last increment
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_increments(listing, annotation, plan, out, tick=stop)
    assert not (out / "plan.json").exists()
    for folder in (out, out / "increment_0", out / "increment_1"):
        with pytest.raises(DataError, match="out is unfinished"):
            open_listing(str(folder))
    (out / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="is not an empty folder"):
        write_increments(listing, annotation, plan, out)
    assert (out / "increment_0" / "dataset.json").is_file()
    (out / "mine.txt").unlink()
    (out / "increment_0" / "images" / "stale.png").write_bytes(b"of another set")
    ticks.clear()
    write_increments(listing, annotation, plan, out, tick=lambda: ticks.append(1))
    assert len(ticks) == total  # what the progress bar is told to expect
    write_increments(listing, annotation, plan, tmp_path / "whole")
    found, whole = (
        {str(path.relative_to(at)): path.read_bytes() for path in at.rglob("*") if path.is_file()}
        for at in (out, tmp_path / "whole")
    )
    assert found == whole


def original(root: Path, name: str) -> Pair:
    listing = open_listing(str(root))
    return next(pair for split in listing.splits.values() for pair in split if pair.name == name)


def test_the_command_writes_them_and_reads_a_plan(segue: Segue, tmp_path: Path) -> None:
    root = write_objects(tmp_path / "set")
    status, output, errors = segue("data", "increments", root, tmp_path / "a", "--classes", "3-1", "--order", "2")
    assert status == 0, errors
    assert "increment 1: " in output
    status, _, errors = segue("data", "increments", root, tmp_path / "b", "--plan", tmp_path / "a" / "plan.json")
    assert status == 0, errors
    for path in sorted((tmp_path / "a").rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes(), path


@pytest.mark.slow
def test_the_printed_option_for_a_set_that_numbers_no_objects_can_be_pasted(segue: Segue, tmp_path: Path) -> None:
    root = write_objects(tmp_path / "set", instances=False)
    command = ("data", "increments", root, tmp_path / "out", "--classes", "2-1")
    status, _, errors = segue(*command)
    assert status == 2
    printed = errors.partition("instances, or ")[2].partition(" to take")[0].split()
    status, _, errors = segue(*command, *printed)
    assert status == 0, errors


@pytest.mark.slow
def test_what_cannot_be_planned_is_one_line(segue: Segue, tmp_path: Path) -> None:
    root, bad = write_objects(tmp_path / "set"), tmp_path / "bad.json"
    bad.write_text(json.dumps({"protocol": "overlap", "increments": [["ground"], ["wheel"]], "images": [[], []]}))
    broken = tmp_path / "broken.json"
    broken.write_text("[1")
    cases = [
        (["--classes", "three"], "--classes 'three': give two counts"),
        (["--classes", "4-1"], "leave no increment"),
        (["--classes", "3-1", "--protocol", "sequential"], "give overlap or disjoint"),
        (["--classes", "3-1", "--order", "x"], "--order x: give a whole number"),
        (["--plan", bad], "names the class 'wheel'"),
        (["--plan", broken], "is no plan of increments"),
    ]
    for more, message in cases:
        status, _, errors = segue("data", "increments", root, tmp_path / "out", *more)
        assert (status, message in errors) == (2, True), f"{message}: {errors}"
        assert not (tmp_path / "out").exists()
    status, _, errors = segue("data", "increments", root, root, "--classes", "3-1")
    assert (status, "lies in the data set itself" in errors) == (2, True)


def test_names_that_splits_of_camvid_share_are_told_apart(tmp_path: Path) -> None:
    names = {"train": ("0000", "0001"), "val": ("0000", "only")}
    for split, stems in names.items():
        for i, stem in enumerate(stems):
            for folder, pixels in ((split, np.full((8, 8, 3), 100 + i, np.uint8)),
                                   (f"{split}annot", np.full((8, 8), 2 * i + (split == "val"), np.uint8))):  # fmt: skip
                (tmp_path / "set" / folder).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(tmp_path / "set" / folder / f"{stem}.png")
    whole = open_listing(str(tmp_path / "set"))
    assert {split: [pair.name for pair in pairs] for split, pairs in whole.splits.items()} == {
        "train": ["train/0000", "0001"], "val": ["val/0000", "only"]
    }  # fmt: skip
    listing = replace(whole, things=())
    plan = Plan("overlap", (whole.classes[:2], whole.classes[2:]), (("train/0000",), ("0001",)))
    folders = write_increments(listing, Annotation(listing), plan, tmp_path / "out")
    found = open_listing(str(folders[1]))
    read = {pair.name: Annotation(found).read(pair).labels for split in ("train", "val") for pair in found.split(split)}
    assert read == {"0001": (2,), "val/0000": (1,), "only": (3,)}


@pytest.mark.parametrize("is_one", [True, False])
def test_two_pairs_of_one_name_are_refused(tmp_path: Path, is_one: bool) -> None:
    listing = open_listing(str(write_objects(tmp_path / "set")))
    (first, *_), (last, *_) = listing.split("train"), listing.split("val")
    twice = first if is_one else replace(last, name=first.name)
    listing = replace(listing, splits={**listing.splits, "val": (twice,)})
    plan = plan_increments(listing, Annotation(listing), base=2, more=1, order=1, protocol="overlap")
    with pytest.raises(DataError, match=rf"the name '{first.name}' stands for two pairs \({first.image} "):
        write_increments(listing, Annotation(listing), plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_increment_without_an_image_is_named(tmp_path: Path) -> None:
    root = write_objects(tmp_path / "set", shapes=("ground", "disc", "bar"))
    listing = open_listing(str(root))
    with pytest.raises(DataError, match=r"increment 1 \(square\) has no image"):
        plan_increments(listing, Annotation(listing), base=3, more=1, order=None, protocol="overlap")


def test_masks_keep_their_colours(tmp_path: Path) -> None:
    root = write_objects(tmp_path / "set")
    listing = open_listing(str(root))
    plan = plan_increments(listing, Annotation(listing), base=2, more=2, order=1, protocol="overlap")
    folders = write_increments(listing, Annotation(listing), plan, tmp_path / "out")
    found = open_listing(str(folders[1]))
    for pair in found.split("val"):
        assert pair.mask is not None
        with Image.open(pair.mask) as image:
            ids, shown = np.array(image), np.array(image.convert("RGB"))
        for i in np.unique(ids[ids != IGNORE]):
            assert tuple(shown[ids == i][0].tolist()) == found.colors[i]


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "splits").rglob("increments_*.json")), ids=lambda path: path.stem
)
def test_committed_plans_are_sound(path: Path) -> None:
    plan = Plan.read(path)
    base, more = (int(part) for part in path.stem.split("_")[1].split("-"))
    assert [len(part) for part in plan.increments] == [base, more]
    assert all(plan.images)
