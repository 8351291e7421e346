"""Copy-paste: the vanishing point by construction, sizes by hand, what is cut out, where it stands, what is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import options
from PIL import Image, ImageDraw
from scipy import ndimage

from segue.config import Data, Domains, Views
from segue.data import copy_paste
from segue.data.copy_paste import CopyPaste, Cutout, by_class, homography, learn, objects, vanishing_point, warped
from segue.data.decoder import Decoder
from segue.data.images import RandomViews
from segue.data.layouts import open_listing
from segue.data.listing import Listing
from segue.data.panoptic import Annotation, PanopticViews
from segue.data.panoptic_map import PanopticMap
from segue.data.sample import IGNORE
from segue.data.training import open_training
from segue.data.two_domains import open_domains
from segue.errors import DataError
from segue.extension import open_extension
from segue.models.segmenter import Segmenter, SegmenterSpec
from segue.weights import save_model

ROAD, SKY, POST, WALL = range(4)
NAMES = ("road", "sky", "post", "wall")
GENOTYPE = "[[0,[0,0,0,0],[0,0,0,0],[0,0,0,0]],[[0,1],[2,4]]]"


def street(point: tuple[float, float], size: tuple[int, int] = (240, 180)) -> np.ndarray:
    """A picture whose edges meet in ``point``."""
    width, height = size
    image = Image.new("RGB", size, (110, 110, 110))
    draw = ImageDraw.Draw(image)
    for left, right, color in ((-160, -60, 30), (20, 60, 220), (150, 190, 240), (300, 420, 60)):
        draw.polygon([point, (left, height), (right, height)], fill=(color,) * 3)
    draw.polygon([point, (0, 20), (0, 60)], fill=(200, 150, 90))
    draw.polygon([point, (width, 10), (width, 50)], fill=(90, 150, 200))
    noise = np.random.default_rng(0).normal(0, 3, (height, width, 3))
    return (np.asarray(image) + noise).clip(0, 255).astype(np.uint8)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every view gets objects, none of them warped."""
    monkeypatch.setattr(copy_paste, "CHANCE", 1.0)
    monkeypatch.setattr(copy_paste, "JITTER", 0.0)


def write_streets(root: Path, count: int = 5) -> Path:
    """Road under sky with a few posts on the road; a wall that the border cuts."""
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True)
    names: dict[str, list[str]] = {"train": [], "val": []}
    for i in range(count):
        mask = np.full((90, 120), SKY, np.uint8)
        mask[40:] = ROAD
        mask[30:60, :20] = WALL
        left = 40 + 8 * i
        mask[50:66, left : left + 6] = POST
        paint = np.array([(80, 80, 80), (120, 160, 220), (220, 40, 40), (150, 120, 90)])[mask]
        split = "val" if i == count - 1 else "train"
        Image.fromarray(paint.astype(np.uint8)).save(root / "images" / f"{i}.png")
        Image.fromarray(mask).save(root / "labels" / f"{i}.png")
        names[split].append(str(i))
    colors = [[80, 80, 80], [120, 160, 220], [220, 40, 40], [150, 120, 90]]
    (root / "dataset.json").write_text(json.dumps({"classes": NAMES, "colors": colors, "splits": names}))
    return root


# -- eq. 1 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", [(120.0, 70.0), (80.0, 60.0), (165.0, 90.0)])
def test_the_point_where_edges_meet_is_found(point: tuple[float, float]) -> None:
    assert vanishing_point(street(point)) == pytest.approx(point, abs=8)


def test_without_edges_and_far_outside_the_default_is_taken() -> None:
    assert vanishing_point(np.full((90, 120, 3), 127, np.uint8)) == (60, 36)
    assert vanishing_point(street((120.0, -400.0))) == (120, 72)


# -- eq. 2 and the warp ------------------------------------------------------------------------------------------------


def test_homography_takes_four_points_to_four_points() -> None:
    points, images = [(0, 0), (4, 0), (4, 2), (0, 2)], [(1, 1), (5, 0), (6, 3), (0, 2)]
    a, b, c, d, e, f, g, h = homography(points, images)
    for (x, y), image in zip(points, images, strict=True):
        w = g * x + h * y + 1
        assert ((a * x + b * y + c) / w, (d * x + e * y + f) / w) == pytest.approx(image)


def test_area_goes_with_the_square_of_the_scale() -> None:
    torch.manual_seed(0)
    cutout = Cutout(1, np.zeros((40, 24, 3), np.uint8), np.ones((40, 24), bool), 10.0)
    for scale in (0.5, 1.0, 2.0):
        areas = [warped(cutout, scale)[1].sum() for _ in range(40)]
        assert np.mean(areas) == pytest.approx(40 * 24 * scale**2, rel=0.06)


@pytest.mark.usefixtures("always")
def test_an_object_is_as_large_as_its_distance_says_and_stands_on_its_ground(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy_paste, "MOST", 1)
    shape, foot = np.ones((16, 6), bool), 20.0
    paste = CopyPaste({POST: (Cutout(POST, np.full((16, 6, 3), 255, np.uint8), shape, foot),)}, {POST: (ROAD,)})
    picture, ids = np.full((200, 100, 3), 30, np.uint8), np.full((200, 100), SKY, np.uint8)
    ids[100:] = ROAD
    horizon = 80.0  # 0.4 of the height: there are no edges
    scales = []
    for seed in range(40):
        torch.manual_seed(seed)
        found = paste(picture, ids).over(ids)
        rows, columns = np.nonzero(found == POST)
        assert rows.max() >= 100, "its foot is on the road"
        scale = (rows.max() - horizon) / foot
        scales.append(scale)
        assert rows.max() - rows.min() + 1 == pytest.approx(16 * scale, abs=2)
        if columns.min() > 0 and columns.max() < 99:
            assert columns.max() - columns.min() + 1 == pytest.approx(6 * scale, abs=2)
    assert min(scales) >= 0.4
    assert max(scales) <= 2.5


# -- what is cut out ---------------------------------------------------------------------------------------------------


def test_objects_are_whole_large_enough_and_apart() -> None:
    ids = np.zeros((40, 40), np.uint8)
    ids[0:10, 5:15] = 1  # cut by the border
    ids[15:19, 5:9] = 1  # 16 pixels
    ids[20:30, 20:30] = 1
    ids[30:36, 30:36] = 1  # touches the last by a corner: one object
    found = objects(ids, 1)
    assert [(rows, columns, int(shape.sum())) for rows, columns, shape in found] == [
        (slice(20, 36), slice(20, 36), 136)
    ]


def test_objects_that_are_numbered_are_those_of_their_numbers() -> None:
    ids = np.zeros((40, 40), np.uint8)
    ids[10:20, 10:30] = 1
    numbers = np.zeros((40, 40), np.int32)
    numbers[10:20, 10:20], numbers[10:20, 20:30] = 2, 5  # two objects side by side
    numbers[30:38, 2:10] = 3  # of another class
    ids[22:26, 10:20], numbers[22:26, 10:20] = 1, 2  # the other part of the first
    assert [(rows, columns, int(shape.sum())) for rows, columns, shape in objects(ids, 1, numbers)] == [
        (slice(10, 26), slice(10, 20), 140), (slice(10, 20), slice(20, 30), 100)
    ]  # fmt: skip
    assert len(objects(ids, 1)) == 2, "without numbers a connected region is an object"
    ids[30:38, 20:28] = 4
    assert len(objects(ids, 4, numbers)) == 1, "a class without numbers consists of regions"


def test_rare_classes_are_found_and_stand_where_they_stood(tmp_path: Path) -> None:
    data = open_training(Data(data=str(write_streets(tmp_path / "set")), copy_paste="auto"), seed=0)
    assert data.paste is not None
    assert set(data.paste.cutouts) == {POST}
    assert data.paste.ground == {POST: (ROAD,)}
    assert len(data.paste.cutouts[POST]) == 4
    assert data.pasted in data.lines()
    for cutout in data.paste.cutouts[POST]:
        assert (cutout.picture == (220, 40, 40)).all()
        assert cutout.foot == pytest.approx(65 - 0.4 * 90, abs=2)


def test_what_an_object_stands_on_is_found_behind_a_rim_of_unknown_pixels(tmp_path: Path) -> None:
    root = write_streets(tmp_path / "set")
    for path in (root / "labels").iterdir():
        mask = np.asarray(Image.open(path)).copy()
        rim = ndimage.binary_dilation(mask == POST, iterations=3) & (mask != POST)
        mask[rim] = IGNORE
        Image.fromarray(mask).save(path)
    listing = open_listing(str(root))
    for new in ((), ("post",)):
        paste, _ = learn(listing.split("train"), by_class(Decoder.of(listing)), NAMES, "post", seed=0, new=new)
        assert paste
        assert paste.ground == {POST: (ROAD,)}


def test_a_class_may_have_a_comma_in_its_name(tmp_path: Path) -> None:
    listing = open_listing(str(write_streets(tmp_path / "set")))
    names = ("road", "sky", "post, iron", "wall")
    paste, told = learn(listing.split("train"), by_class(Decoder.of(listing)), names, "post, iron", seed=0)
    assert paste
    assert told == "copy-paste: post, iron (4 objects)"


# -- views -------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("always")
def test_views_hold_known_classes_repeat_by_seed_and_show_more_posts(tmp_path: Path) -> None:
    data = open_training(Data(data=str(write_streets(tmp_path / "set")), copy_paste="post"), seed=0)
    with_it = RandomViews(data.labelled, data.decoder, 64, (1.0, 1.0), paste=data.paste)
    without = RandomViews(data.labelled, data.decoder, 64, (1.0, 1.0))
    posts = {with_it: 0, without: 0}
    for seed in range(30):
        for views in posts:
            torch.manual_seed(seed)
            sample = views[seed % len(views)]
            assert set(sample["mask"].unique().tolist()) <= {ROAD, SKY, POST, WALL, IGNORE}
            posts[views] += int((sample["mask"] == POST).sum())
            red = (sample["image"][0].int() - sample["image"][2].int() > 90) & (sample["mask"] != IGNORE)
            posts_here = sample["mask"] == POST
            assert (red == posts_here).float().mean() > 0.97, "picture and mask lie on each other"
            torch.manual_seed(seed)
            assert torch.equal(views[seed % len(views)]["image"], sample["image"])
    assert posts[with_it] > 1.5 * posts[without]


def test_the_pictures_that_objects_come_from_stay_as_they_are() -> None:
    paste = CopyPaste({1: (Cutout(1, np.zeros((8, 8, 3), np.uint8), np.ones((8, 8), bool), 9.0),)}, {1: (0,)})
    picture, ids = np.full((60, 60, 3), 90, np.uint8), np.zeros((60, 60), np.uint8)
    for seed in range(6):
        torch.manual_seed(seed)
        paste(picture, ids)
    assert (picture == 90).all()
    assert (ids == 0).all()


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_what_cannot_be_pasted_is_said(tmp_path: Path) -> None:
    root = write_streets(tmp_path / "set")
    for wanted, message in (
        ("pots", "pots: no such class; name of road, sky, post, wall, or give auto"),
        (" , ", "' , ' names no class; name of road"),
        ("wall", "no object of wall stands free in 4 labelled images"),
    ):
        with pytest.raises(DataError, match=message):
            open_training(Data(data=str(root), copy_paste=wanted), seed=0)


def test_no_rare_class_is_said(tmp_path: Path) -> None:
    root = write_streets(tmp_path / "set")
    for path in (root / "labels").iterdir():
        Image.fromarray(np.repeat(np.arange(4, dtype=np.uint8), 30 * 90).reshape(120, 90).T.copy()).save(path)
    with pytest.raises(DataError, match="no class is rare"):
        open_training(Data(data=str(root), copy_paste="auto"), seed=0)


@pytest.mark.slow
def test_training_with_it(segue: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    root = write_streets(tmp_path / "set")
    status, _, errors = segue(
        "train", root, "--out", tmp_path / "run", "--method", "supervised", "--copy-paste", "post", *options(steps=3)
    )
    assert status == 0, errors
    assert "copy-paste: post (4 objects)" in errors


@pytest.mark.slow
def test_other_methods_and_verbs_take_it(segue: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    root, teacher = write_streets(tmp_path / "set"), tmp_path / "teacher"
    given = options(steps=3)
    of_compact = [option for option in given if not option.startswith("--decoder_channels")]
    for command in (
        ["train", root, "--out", teacher, "--method", "pixel_contrast", *given],
        ["compress", teacher, "--data", root, "--out", tmp_path / "small", "--channels=8", f"--genotype={GENOTYPE}",
         *of_compact],
    ):  # fmt: skip
        status, _, errors = segue(*command, "--copy-paste", "post")
        assert status == 0, errors
        assert "copy-paste: post (4 objects)" in errors


# -- panoptic maps -----------------------------------------------------------------------------------------------------


def test_an_object_is_a_segment_of_its_own_and_stuff_joins_its_kind() -> None:
    truth = PanopticMap(np.array([[1, 1, 2, 2]], np.int32), (ROAD, POST), (False, True))
    numbers, things = np.array([[0, 1, 2, 3]]), (POST,)
    found = truth.with_objects(numbers, (POST, POST, ROAD), things)
    assert found.labels == (ROAD, POST, POST, POST)
    assert found.is_crowd == (False, True, False, False)
    assert found.ids.tolist() == [[1, 3, 4, 1]]
    assert truth.with_objects(numbers, (WALL, WALL, WALL), things).labels == (ROAD, POST, WALL), "one segment of stuff"
    same = truth.with_objects(np.zeros((1, 4), np.int32), (), things)
    assert (same.ids.tolist(), same.labels, same.is_crowd) == ([[1, 1, 2, 2]], truth.labels, truth.is_crowd)


def numbered_streets(root: Path) -> Listing:
    """`write_streets` with two posts side by side in each picture, numbered."""
    write_streets(root)
    (root / "instances").mkdir()
    for path in sorted((root / "labels").iterdir()):
        mask = np.asarray(Image.open(path)).copy()
        numbers = np.zeros(mask.shape, np.uint16)
        first = int(np.flatnonzero((mask == POST).any(0))[0])
        mask[50:66, first + 6 : first + 12] = POST
        numbers[50:66, first : first + 6], numbers[50:66, first + 6 : first + 12] = 1, 2
        Image.fromarray(mask).save(path)
        Image.fromarray(numbers).save(root / "instances" / path.name)
    described = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps({**described, "things": [POST]}))
    return open_listing(str(root))


@pytest.mark.usefixtures("always")
def test_panoptic_views_show_new_objects_one_by_one(tmp_path: Path) -> None:
    listing = numbered_streets(tmp_path / "set")
    pairs, annotation = listing.split("train"), Annotation(listing)
    paste, told = learn(pairs, annotation.objects, listing.classes, "post", seed=0)
    assert told == "copy-paste: post (8 objects)", "four pictures of two"
    views = PanopticViews(pairs, annotation, 96, (1.0, 1.0), paste=paste)
    most = 0
    for seed in range(20):
        torch.manual_seed(seed)
        sample = views[seed % len(views)]
        posts = [i for i, label in enumerate(sample["labels"].tolist(), 1) if label == POST]
        most = max(most, len(posts))
        shown = torch.isin(sample["segments"], torch.tensor(posts, dtype=torch.int16))
        red = (sample["image"][0].int() - sample["image"][2].int() > 90) & (sample["segments"] > 0)
        assert (red == shown).float().mean() > 0.95
    assert most > 2, "some view has more than the two of its picture"


def test_a_crowd_is_not_cut_out(tmp_path: Path) -> None:
    listing = numbered_streets(tmp_path / "set")
    pair = listing.split("train")[0]
    numbers = np.asarray(Image.open(listing.root / "instances" / f"{pair.name}.png")).copy()
    numbers[numbers == 2] = 0  # a countable class without a number
    Image.fromarray(numbers).save(listing.root / "instances" / f"{pair.name}.png")
    ids, found = Annotation(listing).objects(pair)
    assert len(objects(ids, POST, found)) == 1
    assert (ids[numbers == 1] == POST).all()
    numbers[:] = 0
    Image.fromarray(numbers).save(listing.root / "instances" / f"{pair.name}.png")
    ids, found = Annotation(listing).objects(pair)
    assert objects(ids, POST, found) == []


@pytest.mark.slow
def test_panoptic_training_takes_it(segue: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    numbered_streets(tmp_path / "set")
    status, _, errors = segue(
        "train", tmp_path / "set", "--out", tmp_path / "run", "--task", "panoptic", "--copy-paste", "auto",
        "--encoder", "test_efficientnet", "--init", "random", "--size", "tiny", "--steps", "2", "--crop", "64",
        "--batch", "2",
    )  # fmt: skip
    assert status == 0, errors
    assert "copy-paste: post (8 objects)" in errors


# -- new classes -------------------------------------------------------------------------------------------------------


def new_posts(root: Path) -> Path:
    """`write_streets` with posts alone labelled."""
    write_streets(root)
    for path in (root / "labels").iterdir():
        mask = np.asarray(Image.open(path))
        Image.fromarray(np.where(mask == POST, 0, IGNORE).astype(np.uint8)).save(path)
    described = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps({**described, "classes": ["post"], "colors": [[220, 40, 40]]}))
    return root


def old_model(folder: Path) -> Path:
    spec = SegmenterSpec("test_resnet", ("road", "sky"), ((80, 80, 80), (120, 160, 220)), decoder_channels=16)
    return save_model(Segmenter(spec), folder, method="supervised", metrics={})


@pytest.mark.usefixtures("always")
def test_where_only_new_classes_are_labelled_objects_stand_on_what_is_not(tmp_path: Path) -> None:
    root, model = new_posts(tmp_path / "set"), old_model(tmp_path / "old")
    how = {"keep_val": "", "new_classes": (), "by_region": False, "seed": 0}
    with_it, without = (
        open_extension(str(model), Data(data=str(root), copy_paste=wanted), **how) for wanted in ("auto", "")
    )
    assert "copy-paste: post (4 objects)" in with_it.lines()
    assert with_it.training.paste
    assert with_it.training.paste.ground == {0: (IGNORE,)}
    posts = []
    for data in (with_it, without):
        views, count = data.views(Views(crop=64, scale=(1.0, 1.0))), 0
        for seed in range(20):
            torch.manual_seed(seed)
            sample = views[seed % len(views)]
            assert set(sample["labels"].tolist()) <= {-1, 2}, "the new class has the id behind the old ones"
            count += int((sample["segments"] > 0).sum())
        posts.append(count)
    assert posts[0] > 1.5 * posts[1]
    with pytest.raises(DataError, match="--copy-paste pots: no such class; name of post, or give auto"):
        open_extension(str(model), Data(data=str(root), copy_paste="pots"), **how)


def test_of_a_set_with_old_classes_new_ones_alone_are_pasted(tmp_path: Path) -> None:
    root, model = write_streets(tmp_path / "set"), old_model(tmp_path / "old")
    how = {"keep_val": "", "new_classes": ("post",), "by_region": False, "seed": 0}
    data = open_extension(str(model), Data(data=str(root), copy_paste="auto"), **how)
    assert data.training.paste
    assert data.training.paste.ground == {POST: (ROAD,)}, "by the ids of the set"
    with pytest.raises(DataError, match="--copy-paste road: only new classes are learnt from labels; name of post"):
        open_extension(str(model), Data(data=str(root), copy_paste="road"), **how)


def test_objects_are_pasted_within_each_source_by_the_classes_of_the_model(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    for i in range(2):
        Image.new("RGB", (96, 96), (i, 90, 0)).save(target / f"{i}.png")
    first, second = (str(write_streets(tmp_path / name)) for name in ("one", "two"))
    how = Domains(source=(first, second), target=str(target), copy_paste="post")
    data = open_domains(how, crop=32)
    post = data.classes.index("post")
    assert [set(source.paste.cutouts) for source in data.sources if source.paste] == [{post}] * 2
    assert sum("copy-paste: post" in note for note in data.notes) == 2
    assert all(source.paste is None for source in open_domains(replace(how, copy_paste=""), crop=32).sources)
    with pytest.raises(DataError, match="leave one out"):
        open_domains(replace(how, translated=str(target)), crop=32)
