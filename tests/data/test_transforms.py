"""Views: geometry moves image and mask together, and colour is one exact matrix."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_set
from PIL import Image

from segue.config import Data
from segue.data.images import RandomViews
from segue.data.sample import IGNORE
from segue.data.training import open_training
from segue.data.transforms import (
    GRAY,
    PLAIN,
    SIMCLR,
    ColorJitter,
    Window,
    color_matrix,
    cut,
    draw_window,
    hue_rotation,
    on_canvas,
    piece_of,
    recolored,
)


def coordinates(width: int, height: int) -> Image.Image:
    """A picture whose red is x and whose green is y."""
    y, x = np.mgrid[:height, :width].astype(np.uint8)
    return Image.fromarray(np.stack([x, y, np.zeros_like(x)], -1))


@pytest.mark.parametrize("seed", range(20))
def test_image_and_mask_stay_on_each_other(seed: int) -> None:
    torch.manual_seed(seed)
    picture = coordinates(100, 80)
    mask = Image.fromarray(np.asarray(picture)[..., 0])
    window = draw_window(100, 80, 64, (0.5, 2.0))
    smooth = np.asarray(cut(picture, window, 64, smooth=True)).astype(int)
    stored = on_canvas(np.asarray(piece_of(mask, window, smooth=False)), window, 64).astype(int)
    inside = stored != IGNORE
    assert inside.mean() >= min(1, (50 * 40) / 64**2) * 0.9
    assert np.abs(smooth[..., 0] - stored)[inside].max() <= 2  # x by bilinear and by nearest agree to a pixel or two
    assert (smooth[~inside] == 0).all()


def test_colours_without_black_are_masks_of_small_pictures_too(tmp_path: Path) -> None:
    """The canvas around a picture that is smaller than the crop is no stored value."""
    root = write_set(tmp_path / "set")
    (root / "dataset.json").unlink()
    (root / "classes.txt").write_text("road 128 64 128\nsky 70 130 180\n")
    for path in (root / "labels").iterdir():
        with Image.open(path) as mask:
            Image.fromarray(np.array([(128, 64, 128), (70, 130, 180)], np.uint8)[np.array(mask) % 2]).save(path)
    data = open_training(Data(data=str(root)), seed=0)
    views = RandomViews(data.labelled, data.decoder, 128, (0.5, 1.0), tells_inside=True)
    for sample in (views[i] for i in range(len(views))):
        assert (sample["mask"][~sample["inside"]] == IGNORE).all()
        assert set(sample["mask"][sample["inside"]].tolist()) == {0, 1}


def test_a_crop_at_scale_1_copies_pixels() -> None:
    torch.manual_seed(0)
    picture = coordinates(100, 80)
    window = draw_window(100, 80, 32, (1.0, 1.0))
    window = Window((10.0, 20.0, 42.0, 52.0), window.size, window.at, flip=False)
    found = np.asarray(cut(picture, window, 32, smooth=True))
    np.testing.assert_array_equal(found, np.asarray(picture)[20:52, 10:42])
    mirrored = np.asarray(cut(picture, Window(window.box, window.size, window.at, flip=True), 32, smooth=True))
    np.testing.assert_array_equal(mirrored, found[:, ::-1])


def test_scales_and_mirroring_are_drawn_evenly() -> None:
    torch.manual_seed(0)
    windows = [draw_window(1000, 1000, 100, (0.5, 2.0)) for _ in range(2000)]
    factors = np.array([100 / (w.box[2] - w.box[0]) for w in windows])
    assert 0.5 <= factors.min() <= factors.max() <= 2.01
    assert abs(np.log(factors).mean()) < 0.03
    assert abs(np.mean([w.flip for w in windows]) - 0.5) < 0.04


def test_hue_rotation_by_hand() -> None:
    np.testing.assert_allclose(hue_rotation(0), np.eye(3), atol=1e-12)
    np.testing.assert_allclose(hue_rotation(1 / 3) @ [1, 0, 0], [0, 1, 0], atol=1e-12)  # red becomes green
    np.testing.assert_allclose(hue_rotation(0.2) @ [1, 1, 1], [1, 1, 1], atol=1e-12)  # grey stays


def test_one_matrix_equals_the_changes_one_after_the_other() -> None:
    jitter = ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    torch.manual_seed(3)
    torch.rand(())
    draws = [float(torch.rand(())) for _ in range(4)]
    brightness, contrast, saturation = (0.6 + 0.8 * d for d in draws[:3])
    turns = -0.1 + 0.2 * draws[3]
    pixel, mean = np.array([200.0, 30.0, 90.0]), np.array([120.0, 110.0, 100.0])
    step = saturation * pixel + (1 - saturation) * (GRAY @ pixel)
    step = hue_rotation(turns) @ step
    step = contrast * step + (1 - contrast) * (GRAY @ mean)
    expected = brightness * step
    torch.manual_seed(3)
    matrix = color_matrix(jitter, mean)
    np.testing.assert_allclose(matrix @ [*pixel, 1], expected, rtol=1e-9)


def test_no_strength_changes_nothing_and_grey_is_grey() -> None:
    picture = coordinates(40, 30)
    np.testing.assert_array_equal(np.asarray(recolored(picture, ColorJitter())), np.asarray(picture))
    gray = np.asarray(recolored(picture, ColorJitter(gray=1.0)))
    assert (gray == gray[..., :1]).all()
    assert SIMCLR.scaled(0.5).hue == pytest.approx(0.1)


def test_views_blank_what_lies_outside_and_give_a_second_look(tmp_path: Path) -> None:
    data = open_training(Data(data=str(write_set(tmp_path / "set", size=40))), seed=0)
    torch.manual_seed(1)
    views = RandomViews(data.labelled, data.decoder, 64, (0.5, 1.0), PLAIN, SIMCLR, tells_inside=True)
    sample = views[0]
    assert sample["image"].shape == sample["view"].shape == (3, 64, 64)
    assert sample["image"].dtype == sample["mask"].dtype == torch.uint8
    assert (sample["mask"] == IGNORE).float().mean() > 0.5  # a 40-pixel picture cannot fill 64
    assert torch.equal(sample["inside"], sample["mask"] != IGNORE)  # every pixel of the picture has a label
    assert not torch.equal(sample["image"], sample["view"])
