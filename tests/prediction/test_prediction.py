"""Whole pictures: what is written, what is said, and that it is what was evaluated."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw, untrained, write_model
from PIL import Image

from segue.data.layouts import open_listing
from segue.data.listing import Pair, toned
from segue.errors import DataError
from segue.evaluation import Measured, measure, semantic
from segue.metrics import Calibration, Confusion
from segue.models.segmenter import Segmenter, SegmenterSpec
from segue.prediction.pictures import (
    How,
    Outputs,
    find_images,
    is_scene,
    overlay,
    predict,
    predict_image,
    save_jpeg,
    write_predictions,
)
from segue.prediction.tiling import Grid

Segue = Callable[..., tuple[int, str, str]]


class ByColor(torch.nn.Module):
    """Class 0, 1 or 2 by the brightest band: a model whose answers are known; others have no chance."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.spec = SegmenterSpec("none", tuple(map(str, range(classes))), ((0, 0, 0),) * classes)
        self.scale = torch.nn.Parameter(torch.tensor(0.1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(image.float() * self.scale, (0, 0, 0, 0, 0, len(self.spec.classes) - 3))


def pure(ids: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.eye(3, dtype=np.uint8)[ids] * 200).permute(2, 0, 1)


def test_scores_of_a_model_whose_answers_are_known() -> None:
    ids = np.array([[0, 1], [2, 1]], np.uint8)
    truth = torch.from_numpy(np.array([[0, 1], [1, 255]], np.uint8))
    data = [{"image": pure(ids), "mask": truth, "name": "x"}, {"image": pure(ids[:1]), "mask": truth[:1], "name": "y"}]
    model = ByColor().train()
    measured = measure(model, data, ("a", "b", "c"))
    scores = measured.scores()
    # truth a: 2 of 2 right; truth b: 2 of 3 right, one called c; c is not in the truth.
    assert scores["iou/a"] == 1.0
    assert scores["iou/b"] == pytest.approx(2 / 3)
    assert math.isnan(scores["iou/c"])
    assert scores["miou"] == pytest.approx(5 / 6)
    assert (measured.present(), measured.plain()["scores"]["iou/c"]) == (2, None)
    assert measured.by_image == [("x", pytest.approx(0.75)), ("y", 1.0)]
    assert model.training
    assert semantic(model, data, ("a", "b", "c"))["accuracy"] == pytest.approx(4 / 5)


@pytest.fixture(scope="module")
def model() -> Segmenter:
    torch.manual_seed(0)
    colors = ((10, 20, 30), (200, 0, 0), (0, 0, 200))
    return Segmenter(SegmenterSpec("test_efficientnet", ("a", "b", "c"), colors, decoder_channels=16)).eval()


class Counted(ByColor):
    """Remembers how many pixels each pass had."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__(classes)
        self.passes: list[int] = []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.passes.append(image[:, 0].numel())
        return super().forward(image)


def test_what_is_too_large_is_scored_in_tiles_as_it_is_predicted() -> None:
    """Small pictures go through together, up to the pixels of one pass."""
    draws = np.random.default_rng(0)
    ids = [draws.integers(0, 3, size) for size in ((200, 150), (200, 150), (60, 50), (60, 50), (60, 50), (60, 50))]
    data = [{"image": pure(one), "mask": torch.from_numpy(one), "name": str(i)} for i, one in enumerate(ids)]
    model = Counted()
    measured = measure(model, data, ("r", "g", "b"), how=How(grid=Grid(96, 16), largest=10_000))  # type: ignore[arg-type]
    assert measured.confusion.accuracy() == 1
    assert int(measured.confusion.counts.sum()) == sum(one.size for one in ids)
    assert max(model.passes) <= 10_000
    assert model.passes[-2:] == [9_000, 3_000]


def test_pictures_of_one_pass_are_scored_as_they_are_predicted(model: Segmenter) -> None:
    draws = np.random.default_rng(0)
    ids = [draws.integers(0, 3, (48, 40)) for _ in range(3)]
    data = [{"image": pure(one), "mask": torch.from_numpy(one), "name": str(i)} for i, one in enumerate(ids)]
    for how in (How(temperature=3.0), How(flips=True), How(scales=(0.5, 1.0))):
        expected = Measured(model.spec.classes, Confusion(3), Calibration())
        for sample in data:
            classes, probability, _ = predict_image(model, sample["image"], how)  # type: ignore[arg-type]
            expected.confusion.update(sample["mask"].numpy(), classes.numpy())  # type: ignore[union-attr]
            expected.calibration.update(sample["mask"], classes, probability)  # type: ignore[arg-type]
        found, plain = (measure(model, data, model.spec.classes, how=given) for given in (how, How()))  # type: ignore[arg-type]
        np.testing.assert_array_equal(found.confusion.counts, expected.confusion.counts)
        np.testing.assert_allclose(found.calibration.probability, expected.calibration.probability)
        assert not np.allclose(found.calibration.probability, plain.calibration.probability)


@pytest.mark.parametrize(
    ("classes", "passes"), [(3, [9216, 2304]), (21, [9216, 2304]), (150, [2304, 2304, 2304, 2304, 1152, 1152])]
)
def test_a_pass_has_fewer_pixels_where_a_model_has_many_classes(classes: int, passes: list[int]) -> None:
    """10,000 of up to 21 classes, and 1,400 of 150: a picture goes through in tiles, small ones apart."""
    model, how = Counted(classes), How(grid=Grid(48, 0), largest=10_000)
    large = np.random.default_rng(0).integers(0, 3, (96, 96))
    np.testing.assert_array_equal(predict_image(model, pure(large), how)[0], large)  # type: ignore[arg-type]
    small = large[:48, :24]
    data = [{"image": pure(small), "mask": torch.from_numpy(small), "name": name} for name in "ab"]
    assert measure(model, data, model.spec.classes, how=how).confusion.accuracy() == 1  # type: ignore[arg-type]
    assert model.passes == passes


def test_probability_and_uncertainty_by_hand(model: Segmenter) -> None:
    image = torch.from_numpy(draw(0)[0]).permute(2, 0, 1)
    classes, probability, uncertainty = predict_image(model, image)
    with torch.inference_mode():
        p = model(image[None])[0].softmax(0)
    torch.testing.assert_close(probability, p.max(0).values)
    assert torch.equal(classes.long(), p.argmax(0))
    torch.testing.assert_close(uncertainty, -(p * p.log()).sum(0) / math.log(3), rtol=1e-4, atol=1e-5)


def test_files_hold_ids_under_a_palette_and_maps(model: Segmenter, tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    picture = draw(0)[0][:40, :33]
    Image.fromarray(picture).save(tmp_path / "in" / "deep" / "a.png")
    pairs = find_images([str(tmp_path / "in")])
    account = write_predictions(model, pairs, tmp_path / "out", Outputs(maps=True))
    assert (account.written, account.failed) == (1, {})
    expected = predict_image(model, torch.from_numpy(picture).permute(2, 0, 1))[0].numpy()
    with Image.open(tmp_path / "out" / "labels" / "deep" / "a.png") as label:
        assert label.mode == "P"
        np.testing.assert_array_equal(np.asarray(label), expected)
        np.testing.assert_array_equal(np.asarray(label.convert("RGB")), np.array(model.spec.colors)[expected])
    for kind in ("overlays/deep/a.jpg", "probability/deep/a.png", "uncertainty/deep/a.png"):
        with Image.open(tmp_path / "out" / kind) as image:
            assert image.size == (33, 40)


def test_overlay_by_hand() -> None:
    image = np.full((1, 2, 3), 100, np.uint8)
    found = overlay(image, np.array([[0, 1]]), [(0, 0, 0), (200, 100, 0)], opacity=0.5)
    np.testing.assert_array_equal(found[0], [[50, 50, 50], [150, 100, 50]])


def test_unreadable_pictures_are_counted_and_the_others_written(model: Segmenter, tmp_path: Path) -> None:
    Image.fromarray(draw(0)[0]).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("no")
    pairs = find_images([str(tmp_path / "*.png")])
    account = write_predictions(model, pairs, tmp_path / "out")
    assert account.written == 1
    assert list(account.failed) == [str(tmp_path / "bad.png")]
    again = write_predictions(model, pairs, tmp_path / "out")
    assert (again.written, again.there, list(again.failed)) == (0, 1, list(account.failed))


def test_sources_are_files_folders_and_globs_each_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        Image.fromarray(draw(0)[0]).save(tmp_path / f"{name}.png")
    names = [pair.name for pair in find_images([str(tmp_path / "b.png"), str(tmp_path), str(tmp_path / "[ab].png")])]
    assert names == ["b", "a"]


def test_a_split_of_a_set_is_a_source(dataset: Path) -> None:
    found = find_images([f"{dataset}:test"])
    assert [pair.name for pair in found] == [pair.name for pair in open_listing(str(dataset)).split("test")]


def test_a_picture_is_scaled_by_the_rule_of_its_own_set(tmp_path: Path) -> None:
    """As unlabelled images are that a model labels which learnt from 8-bit ones."""
    pixels = (500 + 9 * draw(0)[0].mean(2)).astype(np.uint16)
    Image.fromarray(pixels).save(tmp_path / "deep.png")
    pair = Pair("deep", tmp_path / "deep.png", tones=(("I;16", 500.0, 2800.0),))
    (found,) = predict(untrained(), [pair])
    np.testing.assert_array_equal(found.image[..., 0], (255 * (pixels - 500.0) / 2300).round())


@pytest.mark.slow
def test_the_prediction_of_another_picture_is_not_taken_for_this_one(segue: Segue, tmp_path: Path) -> None:
    model, out = write_model(tmp_path / "model"), tmp_path / "out"
    for folder, index in (("a", 0), ("b", 1)):
        (tmp_path / folder).mkdir()
        Image.fromarray(draw(index)[0]).save(tmp_path / folder / "x.png")
    assert segue("predict", model, tmp_path / "a", "--out", out)[0] == 0
    first = (out / "labels" / "x.png").read_bytes()
    status, _, errors = segue("predict", model, tmp_path / "b", "--out", out)
    assert status == 2
    assert "holds what was predicted of another x, or" in errors
    Image.fromarray(draw(2)[0]).save(tmp_path / "a" / "y.png")
    assert "1 of 2 images written" in segue("predict", model, tmp_path / "a", "--out", out)[1]
    Image.fromarray(draw(3)[0]).save(tmp_path / "a" / "x.png")
    status, _, errors = segue("predict", model, tmp_path / "a", "--out", out)
    assert (status, f"of {tmp_path / 'a' / 'x.png'} before it changed; name another" in errors) == (2, True)
    assert (out / "labels" / "x.png").read_bytes() == first


def test_a_picture_that_could_not_be_read_is_mended_and_the_same_command_goes_on(segue: Segue, tmp_path: Path) -> None:
    model, out, images = write_model(tmp_path / "model"), tmp_path / "out", tmp_path / "images"
    images.mkdir()
    for index, name in enumerate(("good", "bad")):
        Image.fromarray(draw(index)[0]).save(images / f"{name}.png")
    whole = (images / "bad.png").read_bytes()
    (images / "bad.png").write_bytes(whole[:80])
    assert segue("predict", model, images, "--out", out)[0] == 2
    (images / "bad.png").write_bytes(whole)
    status, output, errors = segue("predict", model, images, "--out", out)
    assert (status, "1 of 2 images written" in output) == (0, True), errors
    (images / "bad.png").write_bytes((images / "good.png").read_bytes())
    assert segue("predict", model, images, "--out", out)[0] == 2  # now that it is done, it may not change


def test_sources_that_cannot_be_meant_are_named(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    Image.fromarray(draw(0)[0]).save(tmp_path / "a.png")
    Image.fromarray(draw(1)[0]).save(tmp_path / "x" / "a.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    for sources, message in (
        ([tmp_path / "gone.png"], "no such file"),
        ([tmp_path / "empty"], "holds no image"),
        ([tmp_path / "notes.txt"], "no image by its name"),
        ([tmp_path / "a.png", tmp_path / "x" / "a.png"], "would both be written"),
        ([tmp_path / "**" / "a.png"], "would both be written"),
    ):
        with pytest.raises(DataError, match=message):
            find_images([str(source) for source in sources])


def test_what_was_predicted_is_no_picture_to_predict(segue: Segue, tmp_path: Path) -> None:
    run = write_model(tmp_path / "model")
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a", "b"):
        Image.fromarray(draw(0, 32)[0]).save(folder / f"{name}.png")
    for there in (0, 2):
        status, output, errors = segue("predict", run, folder, "--out", folder / "predicted", "--json")
        assert status == 0, errors
        found = json.loads(output)
        assert (found["found"], found["written"], found["there"]) == (2, 2 - there, there)
    status, _, errors = segue("predict", run, folder / "predicted" / "overlays", "--out", folder / "predicted")
    assert (status, "no picture but those in" in errors) == (2, True)


def test_an_overlay_of_a_picture_too_wide_for_jpeg_is_smaller(tmp_path: Path) -> None:
    save_jpeg(np.zeros((16, 66_000, 3), np.uint8), tmp_path / "wide.jpg")
    with Image.open(tmp_path / "wide.jpg") as image:
        assert image.width == 65_500


def test_a_scene_without_the_extra_is_refused_before_anything_is_written(
    segue: Segue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, photos = write_model(tmp_path / "model"), tmp_path / "photos"
    photos.mkdir()
    Image.fromarray(draw(0)[0]).save(photos / "a.png")
    Image.fromarray(np.zeros((2100, 2000, 3), np.uint8)).save(photos / "b.tif")  # no georeference, but large
    monkeypatch.setitem(sys.modules, "rasterio", None)
    status, _, errors = segue("predict", source, photos, "--out", tmp_path / "out")
    assert (status, errors.count("\n")) == (2, 1)
    assert f"{photos / 'b.tif'} is a scene" in errors
    assert "[tiles]" in errors
    assert not (tmp_path / "out").exists()


def test_large_tiffs_of_other_kinds_are_pictures(model: Segmenter, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    colours, how = rng.integers(0, 256, (50, 70, 3), np.uint8), How(grid=Grid(64, 16), largest=1000)
    Image.fromarray(colours).save(tmp_path / "plain.tif")
    Image.fromarray(colours[..., 0]).save(tmp_path / "grey.tif")
    Image.fromarray(colours[..., 0].astype(np.uint16) * 257).save(tmp_path / "deep.tif")
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(colours).save(tmp_path / "turned.tif", exif=exif)
    pairs = find_images([str(tmp_path)])
    assert [pair.name for pair in pairs if is_scene(pair.image, how.largest)] == ["plain"]
    others = toned([pair for pair in pairs if pair.name != "plain"], (("I;16", 0.0, 65535.0),))
    account = write_predictions(model, others, tmp_path / "out", how=how)
    assert (account.written, account.failed) == (3, {})
    with Image.open(tmp_path / "out" / "labels" / "turned.png") as labels:
        assert labels.size == (50, 70)  # upright


def test_a_picture_of_another_format_named_tif_is_no_scene(tmp_path: Path) -> None:
    path = tmp_path / "photo.tif"
    Image.new("RGB", (8, 8)).save(path, "JPEG")
    assert not is_scene(path, 1)
    assert not is_scene(tmp_path / "missing.tif", 1)
    path.write_bytes(b"II*\0 and no more")
    assert is_scene(path, 1), "a TIFF that Pillow does not read may be one for GDAL"


def test_the_pixels_of_one_pass_are_those_at_the_largest_scale() -> None:
    assert How(largest=4000).pixels(2) == 4000
    assert How(largest=4000, scales=(0.5, 1.0)).pixels(2) == 4000
    assert How(largest=4000, scales=(0.5, 2.0)).pixels(2) == 1000


def test_a_temperature_of_single_passes_is_not_taken_for_a_mean_of_them(
    segue: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    model = write_model(tmp_path / "model")
    Image.new("RGB", (32, 32)).save(tmp_path / "photo.png")
    for option in (["--flips"], ["--scales", "1,2"]):
        status, _, errors = segue(
            "predict", model, tmp_path / "photo.png", "--out", tmp_path / "out", "--calibrate", tmp_path, *option
        )
        assert (status, "fitted to single passes" in errors) == (2, True), errors
    assert not (tmp_path / "out").exists()
