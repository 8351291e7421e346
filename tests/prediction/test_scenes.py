"""``segue predict`` on scenes and large pictures: files that other programs read, and nothing lost on the way."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, COLORS, draw, untrained, write_set
from PIL import Image

from segue import calibration
from segue.calibration import calibrate, fit_temperature
from segue.data.tones import read_rgb
from segue.models.segmenter import Segmenter
from segue.prediction.pictures import How, find_images, predict_image, probabilities, write_predictions
from segue.prediction.scenes import Pixels, entropy, most_probable, open_scene
from segue.prediction.shapes import run_lengths
from segue.prediction.tiling import Grid
from segue.weights import save_model

pytest.importorskip("rasterio", reason="the extra tiles is not installed")
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.rpc import RPC

Segue = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model() -> Segmenter:
    return untrained()


@pytest.fixture
def source(model: Segmenter, tmp_path: Path) -> Path:
    return save_model(model, tmp_path / "model", method="supervised", metrics={})


def write_geotiff(path: Path, pixels: np.ndarray, **changes: object) -> Path:
    bands, height, width = pixels.shape
    profile = {
        "driver": "GTiff", "width": width, "height": height, "count": bands, "dtype": pixels.dtype.name,
        "crs": "EPSG:32632", "transform": rasterio.transform.from_origin(500000, 5400000, 0.2, 0.2), **changes,
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as file:
        file.write(pixels)
    return path


def picture(height: int, width: int) -> np.ndarray:
    return np.ascontiguousarray(draw(2, max(height, width))[0][:height, :width].transpose(2, 0, 1))


def test_a_scene_keeps_its_place_and_is_what_one_pass_gives(
    segue: Segue, source: Path, model: Segmenter, tmp_path: Path
) -> None:
    pixels = picture(70, 90)
    write_geotiff(tmp_path / "a.tif", pixels)
    status, output, errors = segue("predict", source, tmp_path / "a.tif", "--out", tmp_path / "out", "--maps", "--json")
    assert status == 0, errors
    assert json.loads(output)["written"] == 1
    classes, probability, uncertainty = (v.numpy() for v in predict_image(model, torch.from_numpy(pixels)))
    with rasterio.open(tmp_path / "out" / "labels" / "a.tif") as file:
        np.testing.assert_array_equal(file.read(1), classes)
        assert file.crs == "EPSG:32632"
        assert tuple(file.transform)[:6] == (0.2, 0, 500000, 0, -0.2, 5400000)
        assert file.colormap(1)[1] == (*COLORS[1], 255)
    for kind, expected in (("probability", probability), ("uncertainty", uncertainty)):
        with rasterio.open(tmp_path / "out" / kind / "a.tif") as file:
            np.testing.assert_allclose(file.read(1) / 255, expected, atol=0.503 / 255)
    assert not list((tmp_path / "out").rglob(".*"))


def test_a_scene_that_lies_by_control_points_keeps_them_and_its_polygons_lie_there(
    segue: Segue, source: Path, tmp_path: Path
) -> None:
    """In a system of their own, along an affine map: what the same scene with that map gives."""
    pixels, corners = picture(70, 90), [(0, 0), (0, 90), (70, 0), (70, 90), (35, 20)]
    write_geotiff(tmp_path / "mapped.tif", pixels)
    with rasterio.open(tmp_path / "mapped.tif") as mapped:
        points = [GroundControlPoint(row, column, *(mapped.transform * (column, row))) for row, column in corners]
    write_geotiff(tmp_path / "tied.tif", pixels, transform=None, gcps=points)
    words = ("predict", source, tmp_path / "*.tif", "--out", tmp_path / "out", "--polygons")
    status, _, errors = segue(*words)
    assert status == 0, errors
    with rasterio.open(tmp_path / "out" / "labels" / "tied.tif") as labels:
        found, crs = labels.gcps
        assert [(p.row, p.col, p.x, p.y) for p in found] == [(p.row, p.col, p.x, p.y) for p in points]
        assert crs == "EPSG:32632"
    expected, placed = (
        json.loads((tmp_path / "out" / "polygons" / f"{name}.geojson").read_text()) for name in ("mapped", "tied")
    )
    assert placed["crs_name"] == expected["crs_name"] == "EPSG:32632"
    assert len(placed["features"]) == len(expected["features"]) > 1
    for one, other in zip(placed["features"], expected["features"], strict=True):
        for ring, true in zip(one["geometry"]["coordinates"], other["geometry"]["coordinates"], strict=True):
            np.testing.assert_allclose(ring, true, rtol=0, atol=1e-3)  # metres


def test_a_world_file_beside_a_scene_places_it(segue: Segue, source: Path, tmp_path: Path) -> None:
    Image.fromarray(picture(70, 90).transpose(1, 2, 0)).save(tmp_path / "a.tif")
    (tmp_path / "a.tfw").write_text("0.5\n0\n0\n-0.5\n1000.25\n1999.75\n")
    words = ("predict", source, tmp_path / "a.tif", "--out", tmp_path / "out", "--tile", 64, "--overlap", 16)
    status, _, errors = segue(*words, "--polygons")
    assert status == 0, errors
    with rasterio.open(tmp_path / "out" / "labels" / "a.tif") as labels:
        assert labels.transform[:6] == (0.5, 0, 1000, 0, -0.5, 2000)
    polygons = json.loads((tmp_path / "out" / "polygons" / "a.geojson").read_text())
    assert polygons["crs_name"] == "unknown"  # on the ground, nobody knows in which system
    assert min(x for ring in polygons["features"][0]["geometry"]["coordinates"] for x, _ in ring) >= 1000


def test_control_points_in_no_known_system_are_kept(segue: Segue, source: Path, tmp_path: Path) -> None:
    points = [GroundControlPoint(row, column, 3.0 * column, 2.0 * row) for row, column in ((0, 0), (0, 90), (70, 0))]
    write_geotiff(tmp_path / "a.tif", picture(70, 90), transform=None, crs=rasterio.crs.CRS(), gcps=points)
    words = ("predict", source, tmp_path / "a.tif", "--out", tmp_path / "out", "--tile", 64, "--overlap", 16)
    status, _, errors = segue(*words, "--polygons")
    assert status == 0, errors
    with rasterio.open(tmp_path / "out" / "labels" / "a.tif") as labels:
        assert [(p.x, p.y) for p in labels.gcps[0]] == [(p.x, p.y) for p in points]
    assert json.loads((tmp_path / "out" / "polygons" / "a.geojson").read_text())["crs_name"] == "pixels"


def test_a_scene_that_lies_by_rational_polynomials_keeps_them(segue: Segue, source: Path, tmp_path: Path) -> None:
    line, unit = [0.0, 1.0, *[0.0] * 18], [1.0, *[0.0] * 19]
    rpcs = RPC(
        height_off=0.0, height_scale=1.0, lat_off=50.0, lat_scale=1.0, long_off=8.0, long_scale=1.0, line_off=35.0,
        line_scale=35.0, samp_off=45.0, samp_scale=45.0, line_num_coeff=line, line_den_coeff=unit, samp_num_coeff=line,
        samp_den_coeff=unit,
    )  # fmt: skip
    write_geotiff(tmp_path / "a.tif", picture(70, 90), crs=None, transform=None, rpcs=rpcs)
    assert segue("predict", source, tmp_path / "a.tif", "--out", tmp_path / "out")[0] == 0
    with rasterio.open(tmp_path / "out" / "labels" / "a.tif") as labels, rasterio.open(tmp_path / "a.tif") as scene:
        assert labels.rpcs == scene.rpcs
        assert labels.rpcs.lat_off == 50


def test_tiles_on_disk_and_in_memory_are_the_same(segue: Segue, source: Path, model: Segmenter, tmp_path: Path) -> None:
    pixels = picture(100, 130)
    write_geotiff(tmp_path / "a.tif", pixels)
    Image.fromarray(pixels.transpose(1, 2, 0)).save(tmp_path / "b.png")
    options = ("--tile", 64, "--overlap", 16, "--no-overlays")
    status, _, errors = segue(
        "predict", source, tmp_path / "a.tif", tmp_path / "b.png", "--out", tmp_path / "o", *options
    )
    assert status == 0, errors
    with (
        rasterio.open(tmp_path / "o" / "labels" / "a.tif") as file,
        Image.open(tmp_path / "o" / "labels" / "b.png") as b,
    ):
        np.testing.assert_array_equal(file.read(1), np.asarray(b))
    whole = predict_image(model, torch.from_numpy(pixels))[0].numpy()
    with rasterio.open(tmp_path / "o" / "labels" / "a.tif") as file:
        assert (file.read(1) != whole).any()  # tiles see less around them: this was not one pass


def test_pixels_without_data_get_no_class(segue: Segue, source: Path, tmp_path: Path) -> None:
    pixels = picture(40, 40)
    pixels[:, :10] = 0
    pixels[:, 10:] = pixels[:, 10:].clip(1)
    write_geotiff(tmp_path / "a.tif", pixels, nodata=0)
    assert segue("predict", source, tmp_path / "a.tif", "--out", tmp_path / "out")[0] == 0
    with rasterio.open(tmp_path / "out" / "labels" / "a.tif") as file:
        found = file.read(1)
    assert (found[:10] == 255).all()
    assert (found[10:] < 3).all()


@pytest.mark.parametrize("nodata", [-9999.0, 9999.0, np.nan])
def test_void_of_a_deep_scene_is_black_as_in_a_picture_of_it(tmp_path: Path, nodata: float) -> None:
    values = picture(40, 40)[:1].astype(np.float32)
    values[:, :10] = nodata
    path, rule = write_geotiff(tmp_path / "a.tif", values, nodata=nodata), (("F", 20.0, 200.0),)
    with open_scene(path, Grid(128, 0)) as source:
        shown = Pixels.of(path, source, 3, rule).read(source, rasterio.windows.Window(0, 0, 40, 40))
    np.testing.assert_array_equal(shown.transpose(1, 2, 0), np.asarray(read_rgb(path, rule)))
    assert not shown[:, :10].any() and shown[:, 10:].any()


def test_pixels_that_are_no_number_get_no_class_where_another_value_is_declared_void(tmp_path: Path) -> None:
    values = picture(40, 40)[:1].astype(np.float32)
    values[:, :10], values[:, 20, 20] = -9999, np.nan
    knowing = untrained()
    knowing.spec = replace(knowing.spec, tones=(("F", 20.0, 200.0),))
    write_geotiff(tmp_path / "a.tif", values, nodata=-9999)
    (failed,) = write_predictions(knowing, find_images([str(tmp_path / "a.tif")]), tmp_path / "out").failed.values()
    assert "E113" in failed and "no number" in failed
    values[:, 20, 20] = -9999
    write_geotiff(tmp_path / "a.tif", values, nodata=-9999)
    assert write_predictions(knowing, find_images([str(tmp_path / "a.tif")]), tmp_path / "out").written == 1
    with rasterio.open(tmp_path / "out" / "labels" / "a.tif") as file:
        np.testing.assert_array_equal(file.read(1) == 255, values[0] == -9999)


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_strips_that_a_row_of_tiles_shares_are_decoded_once(kind: type, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 128, 9000)).astype(kind)
    path, grid = write_geotiff(tmp_path / "strips.tif", pixels, compress="deflate"), Grid(128, 0)
    with open_scene(path, grid) as source:
        assert source.block_shapes[0][1] == 9000
        took = []
        for left in range(0, 1280, 128):
            started = time.process_time()
            source.read([1, 2, 3], window=rasterio.windows.Window(left, 0, 128, 128))
            took.append(time.process_time() - started)
    assert sorted(took[1:])[4] < took[0] / 5


def test_a_scene_in_one_huge_tile_is_refused_before_it_is_read(segue: Segue, source: Path, tmp_path: Path) -> None:
    huge = {"tiled": True, "blockxsize": 9_600, "blockysize": 9_600, "interleave": "pixel", "sparse_ok": True}
    (tmp_path / "my scenes").mkdir()
    write_geotiff(tmp_path / "small.tif", picture(32, 32))
    with rasterio.open(tmp_path / "small.tif") as small:
        profile = {**small.profile, **huge, "width": 9_400, "height": 9_400}
    path = tmp_path / "my scenes" / "a.tif"
    with rasterio.open(path, "w", **profile):
        pass
    status, _, errors = segue("predict", source, path, "--out", tmp_path / "out")
    assert (status, errors.count("\n")) == (2, 1)
    assert "stored in tiles of 9600 x 9600 pixels" in errors
    assert f"gdal_translate -co TILED=YES -co COMPRESS=DEFLATE '{path}' tiled.tif" in errors


@pytest.mark.parametrize(
    ("kind", "bands", "dtype", "meaning"),
    [
        ("L", 1, np.uint8, "minisblack"),
        ("L", 1, np.uint8, "miniswhite"),
        ("I;16", 1, np.uint16, "minisblack"),
        ("I;16", 1, np.uint16, "miniswhite"),
        ("RGB;16", 3, np.uint16, "rgb"),
        ("F", 1, np.float32, "minisblack"),
    ],
)
def test_a_scene_of_another_kind_is_read_as_training_reads_such_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, bands: int, dtype: type[np.generic], meaning: str
) -> None:
    """With and without a georeference the same classes come out, by the model's rule for such pixels."""
    rule = () if kind == "L" else ((kind, 300.0, 2500.0),)
    values = picture(70, 90)[:bands].astype(dtype) * (1 if kind == "L" else 10)
    knowing = untrained()
    knowing.spec = replace(knowing.spec, tones=rule)
    write_geotiff(tmp_path / "a.tif", values, interleave="pixel", photometric=meaning)
    shown = read_rgb(tmp_path / "a.tif", rule)
    expected = predict_image(knowing, torch.from_numpy(np.asarray(shown).transpose(2, 0, 1).copy()))[0].numpy()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # of scenes, no size is too large
    assert write_predictions(knowing, find_images([str(tmp_path / "a.tif")]), tmp_path / "out").written == 1
    with rasterio.open(tmp_path / "out" / "labels" / "a.tif") as file:
        np.testing.assert_array_equal(file.read(1), expected)


def test_classes_and_entropy_of_a_window_by_hand() -> None:
    found = np.array([[0.5, 0.2, 1.0], [0.5, 0.5, 0.0], [0.0, 0.3, 0.0]], np.float32)[:, None]  # (K, 1, 3)
    np.testing.assert_array_equal(most_probable(found), [[0, 1, 0]])  # of equals the first
    expected = -np.array([2 * 0.5 * np.log(0.5), sum(p * np.log(p) for p in (0.2, 0.5, 0.3)), 0]) / np.log(3)
    np.testing.assert_allclose(entropy(found)[0], expected, atol=1e-6)
    random = np.random.default_rng(0).random((5, 40, 30), np.float32)
    np.testing.assert_array_equal(most_probable(random), random.argmax(0))


def test_bad_scenes_are_named_the_rest_is_written_and_nothing_half_done_stays(
    segue: Segue, source: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_geotiff(folder / "good.tif", picture(40, 40))
    write_geotiff(folder / "deep.tif", picture(40, 40).astype(np.uint16))
    write_geotiff(folder / "two.tif", picture(40, 40)[:2].astype(np.uint16))
    cut = write_geotiff(folder / "cut.tif", picture(300, 300), tiled=True, blockxsize=128, blockysize=128)
    cut.write_bytes(cut.read_bytes()[:100_000])
    (folder / "vrt.tif").write_text("<VRTDataset rasterXSize='9' rasterYSize='9'></VRTDataset>")
    (folder / "empty.tif").write_bytes(b"")
    status, output, errors = segue("predict", source, folder, "--out", tmp_path / "out", "--json")
    found = json.loads(output)
    assert status == 2
    assert (found["found"], found["written"], len(found["failed"])) == (6, 1, 5)
    assert errors.count("\n") == 5
    for message in (
        "deep.tif has 3 bands of uint16",
        "two.tif has 2 bands",
        "vrt.tif",
        "empty.tif is empty",
        "cut.tif",
    ):
        assert message in errors
    assert [path.name for path in (tmp_path / "out").rglob("*.[tp]*") if path.is_file()] == ["good.tif"]


def test_a_cut_run_goes_on_and_other_settings_are_refused(
    segue: Segue, source: Path, dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    call = ("predict", source, dataset / "images", "--out", out, "--json")
    assert segue(*call)[0] == 0
    (out / "labels" / "val_006.png").unlink()
    kept = (out / "labels" / "val_007.png").stat().st_mtime_ns
    status, output, _ = segue(*call)
    found = json.loads(output)
    assert (status, found["written"], found["there"], found["found"]) == (0, 1, 9, 10)
    assert (out / "labels" / "val_007.png").stat().st_mtime_ns == kept
    status, _, errors = segue(*call, "--flips")
    assert status == 2
    assert "predictions of other settings (how)" in errors


def test_views_are_averaged(model: Segmenter) -> None:
    image = torch.from_numpy(picture(48, 64))
    flipped = probabilities(model, image.flip(-1)).flip(-1)
    expected = (probabilities(model, image) + flipped) / 2
    torch.testing.assert_close(probabilities(model, image, How(flips=True)), expected)
    scaled = probabilities(model, image, How(scales=(0.5, 1.0)))
    assert scaled.shape == (3, 48, 64)
    torch.testing.assert_close(scaled.sum(0), torch.ones(48, 64))
    assert not torch.allclose(scaled, probabilities(model, image))


def test_one_large_tile_is_one_pass(model: Segmenter) -> None:
    image = torch.from_numpy(picture(50, 60))
    tiled = predict_image(model, image, How(grid=Grid(64, 16), largest=1))
    for found, expected in zip(tiled, predict_image(model, image), strict=True):
        torch.testing.assert_close(found, expected)


def test_the_temperature_of_logits_that_are_three_times_too_large() -> None:
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(20_000, 4, generator=generator)
    labels = torch.multinomial(true.softmax(1), 1, generator=generator)[:, 0]
    assert fit_temperature(3 * true, labels) == pytest.approx(3, rel=0.05)


def test_a_fit_takes_as_many_logits_as_memory_allows(monkeypatch: pytest.MonkeyPatch, model: Segmenter) -> None:
    """Of two pictures of 1,024 pixels with so many classes, a quarter of each."""
    samples = [
        {"image": torch.from_numpy(picture(32, 32)), "mask": torch.zeros(32, 32, dtype=torch.uint8), "name": str(i)}
        for i in range(2)
    ]
    monkeypatch.setattr(calibration, "LOGITS", 2 * 256 * len(model.spec.classes))
    fitted: list[int] = []
    monkeypatch.setattr(calibration, "fit_temperature", lambda logits, labels: fitted.append(len(logits)) or 1.0)
    calibrate(model, samples)
    assert fitted == [512]


def test_calibration_lowers_the_error_and_is_applied(
    segue: Segue, source: Path, model: Segmenter, dataset: Path, tmp_path: Path
) -> None:
    status, _, errors = segue("predict", source, dataset / "images", "--out", tmp_path / "out", "--calibrate", dataset)
    assert status == 0, errors
    record = json.loads((tmp_path / "out" / "predict.json").read_text())["calibration"]
    assert record["images"] == 2
    assert record["temperature"] > 1.1  # random weights, sure of themselves
    assert record["after"] < record["before"]
    with pytest.raises(ValueError, match="no pixel of these pictures has a label"):
        calibrate(model, [{"image": torch.from_numpy(picture(32, 32)), "name": "x"}])


def test_pictures_that_are_added_have_the_temperature_of_those_that_are_there(
    segue: Segue, source: Path, dataset: Path, tmp_path: Path
) -> None:
    photos, out = sorted((dataset / "images").iterdir()), tmp_path / "out"
    words = ("--calibrate", dataset, "--maps", "--no-overlays", "--out")
    assert segue("predict", source, *photos, *words, tmp_path / "whole")[0] == 0
    assert segue("predict", source, *photos[:3], *words, out)[0] == 0
    record = (out / "predict.json").read_bytes()
    for mask in (dataset / "labels").iterdir():  # another temperature would fit
        Image.fromarray(np.zeros((48, 48), np.uint8)).save(mask)
    status, _, errors = segue("predict", source, *photos, *words, out)
    assert (status, (out / "predict.json").read_bytes() == record) == (0, True)
    assert f"temperature {json.loads(record)['calibration']['temperature']:.3f}, that of what is in" in errors
    for kind in ("probability", "labels"):
        found, expected = ({p.name: p.read_bytes() for p in (at / kind).iterdir()} for at in (out, tmp_path / "whole"))
        assert found == expected


def test_run_lengths_and_polygons_by_hand(segue: Segue, source: Path, dataset: Path, tmp_path: Path) -> None:
    assert run_lengths(np.array([[0, 1], [1, 1]], bool)) == [1, 3]  # down the columns: 0 1 1 1
    assert run_lengths(np.array([[1, 1], [0, 1]], bool)) == [0, 1, 1, 2]
    options = ("--run-lengths", "--polygons", "--no-overlays")
    assert segue("predict", source, dataset / "images" / "val_006.png", "--out", tmp_path / "out", *options)[0] == 0
    with Image.open(tmp_path / "out" / "labels" / "val_006.png") as image:
        labels = np.asarray(image)
    outlines = json.loads((tmp_path / "out" / "polygons" / "val_006.geojson").read_text())["features"]
    shapes = [(feature["geometry"], feature["properties"]["class_id"]) for feature in outlines]
    drawn = rasterio.features.rasterize(shapes, labels.shape, fill=255, dtype="uint8")
    np.testing.assert_array_equal(drawn, labels)
    for entry in json.loads((tmp_path / "out" / "run_lengths" / "val_006.json").read_text()):
        counts = entry["segmentation"]["counts"]
        values = np.repeat(np.arange(len(counts)) % 2, counts).reshape(labels.shape, order="F")
        np.testing.assert_array_equal(values, labels == entry["category_id"])
        assert entry["category"] == CLASSES[entry["category_id"]]


@pytest.mark.slow
def test_settings_that_cannot_be_meant(segue: Segue, source: Path, dataset: Path, tmp_path: Path) -> None:
    bare = write_set(tmp_path / "bare")
    for path in (bare / "labels").iterdir():
        path.unlink()
    for options, message in (
        (("--tile", 100), "--tile 100"),
        (("--overlap", 400), "--overlap 400"),
        (("--scales", "0.5,x"), "--scales 0.5,x"),
        (("--scales", "0"), "--scales 0"),
        (("--calibrate", tmp_path / "gone"), "gone"),
    ):
        status, _, errors = segue("predict", source, dataset / "images", "--out", tmp_path / "out", *options)
        assert (status, errors.count("\n")) == (2, 1), errors
        assert message in errors
    assert not (tmp_path / "out").exists()


def test_run_lengths_of_a_scene_larger_than_pillow_opens(
    segue: Segue, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_geotiff(tmp_path / "a.tif", picture(70, 90))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # 6,300 pixels are more than twice that
    words = ("predict", source, tmp_path / "a.tif", "--out", tmp_path / "out", "--run-lengths")
    status, _, errors = segue(*words)
    assert status == 0, errors
    found = json.loads((tmp_path / "out" / "run_lengths" / "a.json").read_text())
    assert len(str(found)) > 50
