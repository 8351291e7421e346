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

from segue.config import Data, Domains
from segue.data import copy_paste
from segue.data.copy_paste import CopyPaste, Cutout, homography, objects, vanishing_point, warped
from segue.data.images import RandomViews
from segue.data.sample import IGNORE
from segue.data.training import open_training
from segue.data.two_domains import open_domains
from segue.errors import DataError

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
        _, found = paste(picture, ids)
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
        ("pots", "pots: no such class; did you mean post"),
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


def test_panoptic_training_refuses_it(segue: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    root = write_streets(tmp_path / "set")
    status, _, errors = segue(
        "train", root, "--out", tmp_path / "run", "--task", "panoptic", "--copy-paste", "auto"
    )  # fmt: skip
    assert status == 2
    assert "--copy-paste: mask_classification makes no use of it" in errors
    assert not (tmp_path / "run").exists()


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
