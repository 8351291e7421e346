"""Any image becomes 8-bit RGB by one rule: found from the set, said, stored in the model, and used when it predicts."""

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import CLASSES, COLORS, TINY, draw, options, write_model, write_set
from PIL import Image

from segue.config import Data, build, leaves
from segue.data.check import check
from segue.data.images import Whole
from segue.data.layouts import open_listing
from segue.data.listing import Pair
from segue.data.sample import ORIENTATION, Array, kind_of, picture_size
from segue.data.tones import NODATA, deep_pixels, percentiles, read_rgb, tones_of, void_pixels
from segue.data.training import open_training
from segue.data.unlabelled import open_image_set
from segue.engine import Run
from segue.errors import DataError
from segue.extension import open_extension
from segue.methods.ranking_distillation import Config, train
from segue.models.segmenter import Segmenter, SegmenterSpec, grown_segmenter
from segue.using import suggest
from segue.weights import load_encoder, save_model

NO_VOID = np.zeros((48, 48), bool)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png16(values: Array) -> bytes:
    """A PNG of 16 bits a band; Pillow writes none of more than one."""
    height, width, bands = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[bands], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(values: Array, order: str) -> bytes:
    """An uncompressed TIFF of 8 or 16 bits a band, its bytes in the order ``<`` or ``>``."""
    height, width, bands = values.shape
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()  # type: ignore[arg-type]
    extra = max(0, bands - 3)
    tags = 9 + (extra > 0)
    lists = 8 + 2 + 12 * tags + 4
    further = lists + 2 * bands
    start = further + 2 * extra

    def short(number: int) -> bytes:
        return struct.pack(order + "HH", number, 0)

    def long(number: int) -> bytes:
        return struct.pack(order + "I", number)

    rows = [
        (256, 4, 1, long(width)), (257, 4, 1, long(height)), (258, 3, bands, long(lists)), (259, 3, 1, short(1)),
        (262, 3, 1, short(2)), (273, 4, 1, long(start)), (277, 3, 1, short(bands)), (278, 4, 1, long(height)),
        (279, 4, 1, long(len(data))),
        (338, 3, extra, long(further) if extra > 2 else struct.pack(order + "HH", 0, 0)),
    ][:tags]  # fmt: skip
    body = b"".join(struct.pack(order + "HHI", *row[:3]) + row[3] for row in rows)
    depths = struct.pack(order + "H", 8 * values.dtype.itemsize) * bands + struct.pack(order + "H", 0) * extra
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + long(8) + struct.pack(order + "H", tags) + body + long(0) + depths + data


def values(bands: int, dtype: type = np.uint16) -> Array:
    top = np.iinfo(dtype).max
    return np.random.default_rng(bands).integers(0, top, (5, 7, bands)).astype(dtype)


@pytest.mark.parametrize("bands", [1, 2, 3, 4])
def test_sixteen_bits_of_a_png_are_read_in_full(tmp_path: Path, bands: int) -> None:
    stored = values(bands)
    (tmp_path / "a.png").write_bytes(png16(stored))
    np.testing.assert_array_equal(deep_pixels(tmp_path / "a.png"), stored[..., :3] if bands > 2 else stored[..., 0])


@pytest.mark.parametrize("place", [33, -12])  # before the pixels, and behind them, where no file is turned by it
@pytest.mark.parametrize("bands", [1, 2, 3, 4])
def test_sixteen_bits_are_turned_as_eight_are(tmp_path: Path, bands: int, place: int) -> None:
    stored, path = values(bands), tmp_path / "a.png"
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    body = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    whole = png16(stored)
    path.write_bytes(whole[:place] + chunk + whole[place:])
    expected = stored[..., :3] if bands > 2 else stored[..., 0]
    np.testing.assert_array_equal(deep_pixels(path), np.rot90(expected, -1) if place == 33 else expected)
    assert picture_size(path) == deep_pixels(path).shape[1::-1]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bands", [3, 4])
def test_sixteen_bits_of_a_tiff_are_read_in_full(tmp_path: Path, bands: int, order: str) -> None:
    stored = values(bands)
    (tmp_path / "a.tif").write_bytes(tiff(stored, order))
    np.testing.assert_array_equal(deep_pixels(tmp_path / "a.tif"), stored[..., :3])


@pytest.mark.parametrize(("bands", "kind"), [(3, "RGB"), (4, "RGBX"), (5, "RGBXX"), (6, "RGBXXX")])
def test_the_first_three_of_many_bands_are_kept_and_the_kind_says_so(tmp_path: Path, bands: int, kind: str) -> None:
    stored = values(bands, np.uint8)
    (tmp_path / "a.tif").write_bytes(tiff(stored, "<"))
    with Image.open(tmp_path / "a.tif") as header:
        assert kind_of(header) == kind
    np.testing.assert_array_equal(np.asarray(read_rgb(tmp_path / "a.tif")), stored[..., :3])


def test_the_rule_by_hand(tmp_path: Path) -> None:
    rule = tones_of({"RGB;16": ((0, 10, 50, 90, 100), (0, 20, 60, 110, 500)), "F": ((-1.0, 0.0, 0.5, 1.0, 2.0),)})
    assert rule == (("F", 0.0, 1.0), ("RGB;16", 10, 110))
    Image.fromarray(np.array([[-3.0, 0.0, 0.5, 1.0, 7.0]], np.float32)).save(tmp_path / "a.tif")
    assert np.asarray(read_rgb(tmp_path / "a.tif", rule))[0, :, 1].tolist() == [0, 0, 128, 255, 255]
    (tmp_path / "b.png").write_bytes(png16(np.array([[[5, 10, 60], [110, 111, 60000]]])))
    assert np.asarray(read_rgb(tmp_path / "b.png", rule)).tolist() == [[[0, 0, 128], [255, 255, 255]]]


def with_nodata(root: Path, nodata: float, declared: bool = True) -> Path:
    """The same set with float images of 0 to 0.4, a third of each of which is void, as GDAL writes them."""
    for path in sorted((root / "images").iterdir()):
        values = (draw(int(path.stem[-3:]))[0][..., 0] / 640).astype(np.float32)
        values[:16] = nodata
        told = {NODATA: f"{nodata:g}"} if declared else {}
        Image.fromarray(values).save(path.with_suffix(".tif"), tiffinfo=told)
        path.unlink()
    return root


@pytest.mark.parametrize("nodata", [-9999.0, 9999.0, np.nan])
def test_what_a_file_declares_to_be_void_is_black_and_takes_no_part_in_the_rule(
    dataset: Path, segue: Any, nodata: float
) -> None:
    with_nodata(dataset, nodata)
    status, output, _ = segue("check", dataset)
    assert status == 0 and "E113" not in output
    ((kind, black, white),) = open_training(Data(data=str(dataset)), seed=0).listing.tones
    assert kind == "F" and 0 <= black < 0.2 < white <= 0.4
    shown = np.asarray(read_rgb(dataset / "images" / "train_000.tif", (("F", black, white),)))
    assert not shown[:16].any()
    known = draw(0)[0][16:, :, 0] / 640
    np.testing.assert_allclose(shown[16:, :, 0], 255 * ((known - black) / (white - black)).clip(0, 1), atol=0.51)


def test_what_no_file_declares_to_be_void_is_a_value_or_a_fault(dataset: Path, segue: Any) -> None:
    (tones,) = open_training(Data(data=str(with_nodata(dataset, -9999.0, declared=False))), seed=0).listing.tones
    assert tones[1] == -9999
    images = sorted((dataset / "images").iterdir())
    Image.fromarray(np.full((48, 48), np.nan, np.float32)).save(images[0], tiffinfo={NODATA: "-9999"})
    status, output, _ = segue("check", dataset)
    assert status == 2 and "E113" in output


def test_an_image_that_is_void_everywhere_says_nothing_of_the_rule(tmp_path: Path) -> None:
    Image.fromarray(np.full((2, 2), -1.0, np.float32)).save(tmp_path / "a.tif", tiffinfo={NODATA: "-1"})
    pixels = deep_pixels(tmp_path / "a.tif")
    assert void_pixels(tmp_path / "a.tif", pixels).all()
    assert percentiles(pixels, void_pixels(tmp_path / "a.tif", pixels)) == ()
    assert not np.asarray(read_rgb(tmp_path / "a.tif", (("F", -5.0, 1.0),))).any()


def test_kinds_without_a_rule_and_pixels_that_are_no_number_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png16(values(3)))
    with pytest.raises(DataError, match=r"E114 .*a\.png holds RGB;16 pixels.*\(8 bits only\)"):
        read_rgb(tmp_path / "a.png")
    Image.fromarray(np.array([[np.nan, 1.0]], np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"E113 .*a\.tif"):
        read_rgb(tmp_path / "a.tif", (("F", 0.0, 1.0),))


def deepened(root: Path) -> Path:
    """The same set with 12-bit images in 16 bits."""
    for path in sorted((root / "images").iterdir()):
        path.write_bytes(png16(draw(int(path.stem[-3:]))[0].astype(np.uint16) * 16))
    return root


def test_a_set_of_12_bit_images_is_said_scaled_and_nothing_is_clipped(dataset: Path, segue: Any) -> None:
    status, output, _ = segue("check", deepened(dataset))
    assert status == 0
    assert "W114 RGB;16 images hold more than 8 bits" in output and "percentiles 0, 1, 50, 99, 100: " in output
    data = open_training(Data(data=str(dataset)), seed=0)
    ((kind, black, white),) = data.listing.tones
    assert kind == "RGB;16"
    pair = data.labelled[0]
    scaled = (draw(int(pair.name[-3:]))[0] * 16.0 - black) / (white - black)
    expected = (255 * scaled.clip(0, 1)).transpose(2, 0, 1)
    np.testing.assert_allclose(Whole([pair], data.decoder)[0]["image"].numpy(), expected, atol=0.51)


@pytest.mark.slow
def test_the_model_keeps_the_rule_and_predicts_by_it(dataset: Path, tmp_path: Path, segue: Any) -> None:
    run = tmp_path / "run"
    deepened(dataset)
    tiny = options(steps=2)
    assert segue("train", dataset, "--out", run, "--method", "supervised", "--workers", 0, *tiny)[0] == 0
    rule = open_training(Data(data=str(dataset)), seed=0).listing.tones
    told = yaml.safe_load((run / "model" / "model.yaml").read_text())
    assert told["spec"]["tones"] == [list(row) for row in rule]
    assert segue("evaluate", run)[0] == 0
    one = dataset / "images" / "test_008.png"
    assert segue("predict", run, one, "--out", tmp_path / "deep", "--no-overlays")[0] == 0
    read_rgb(one, rule).save(tmp_path / "test_008.png")
    assert segue("predict", run, tmp_path / "test_008.png", "--out", tmp_path / "plain", "--no-overlays")[0] == 0
    deep, plain = (np.array(Image.open(tmp_path / out / "labels" / "test_008.png")) for out in ("deep", "plain"))
    np.testing.assert_array_equal(deep, plain)
    Image.fromarray(np.ones((32, 32), np.float32)).save(tmp_path / "float.tif")
    status, output, errors = segue("predict", run, tmp_path / "float.tif", "--out", tmp_path / "no", "--no-overlays")
    assert status != 0
    assert "E114" in output + errors and "RGB;16" in output + errors


def test_suggest_reads_by_the_rule_of_the_model(dataset: Path, tmp_path: Path) -> None:
    rule = (("RGB;16", 0.0, 65535.0),)  # of the set itself it would end at 4,080
    spec = SegmenterSpec("test_efficientnet", CLASSES, COLORS, decoder_channels=16, tones=rule)
    save_model(Segmenter(spec), tmp_path / "model", method="none", metrics={})
    found = suggest(str(deepened(dataset)), tmp_path / "model", n=2, device="cpu")
    assert found.tones == load_encoder(str(tmp_path / "model")).spec.tones == rule


def test_an_encoder_keeps_the_rule_of_the_images_that_it_learnt_from(dataset: Path, tmp_path: Path) -> None:
    given = {**TINY, "steps": 1, "positives": 2}
    config = build(Config, {name: value for name, value in given.items() if name in leaves(Config)})
    images = open_image_set(str(deepened(dataset)))
    assert images.images[0].tones
    assert train(config, Run(tmp_path / "run", quiet=True), images).spec.tones == images.images[0].tones


def test_a_deep_kind_gets_its_rule_from_images_whose_masks_are_not_read(dataset: Path) -> None:
    deep = sorted((dataset / "images").glob("train_*"))[1:3]  # of every third pair the mask is read
    for path in deep:
        path.write_bytes(png16(draw(int(path.stem[-3:]))[0].astype(np.uint16) * 16))
    listing = open_listing(str(dataset))
    (one,) = check(listing, sample=4)[1].tones
    assert one[0] == "RGB;16"
    assert one in {tones_of({"RGB;16": percentiles(deep_pixels(path), NO_VOID)})[0] for path in deep}
    assert one[1:] != check(listing, sample=None)[1].tones[0][1:]  # one of them spoke for both


def test_an_extended_model_keeps_its_rule_and_gets_that_of_new_kinds(dataset: Path, tmp_path: Path) -> None:
    own = ("RGB;16", 0.0, 65535.0)
    described = json.loads((dataset / "dataset.json").read_text())
    described["classes"][2] = "square"
    (dataset / "dataset.json").write_text(json.dumps(described))
    given = {"keep_val": "", "new_classes": (), "by_region": False, "seed": 0}
    plain, deep = write_model(tmp_path / "plain"), write_model(tmp_path / "deep", tones=(own,))
    data = open_extension(str(deep), Data(data=str(deepened(dataset))), **given)
    assert {pair.tones for pair in (*data.labelled, *data.training.val)} == {(own,)}
    assert any(
        "W114" in str(finding) and "0 black and 65535 white" in str(finding) for finding in data.training.warnings
    )
    data = open_extension(str(plain), Data(data=str(dataset)), **given)
    assert isinstance(data.base, Segmenter)
    (new,) = data.training.listing.tones
    wider = grown_segmenter(data.base, data.classes, data.colors, data.training.listing.tones)
    assert wider.spec.tones == (new,) != (own,)
    assert grown_segmenter(wider, ("disk",), COLORS[:1], (own, ("F", 0.0, 1.0))).spec.tones == (new, ("F", 0.0, 1.0))


def test_unlabelled_images_are_checked_and_deep_ones_get_a_rule(dataset: Path, tmp_path: Path) -> None:
    more = deepened(write_set(tmp_path / "more", train=3, val=0, test=0)) / "images"
    data = open_training(Data(data=str(dataset), unlabeled=(str(more),)), seed=0)
    assert [pair.tones[0][0] for pair in data.unlabelled] == ["RGB;16"] * 3
    assert data.labelled[0].tones == () == data.listing.tones
    assert Whole([Pair("a", data.unlabelled[0].image, tones=data.unlabelled[0].tones)], data.decoder)[0]["image"].any()
    (more / "train_000.png").write_text("no")
    with pytest.raises(DataError, match=r"E111 .*train_000\.png"):
        open_training(Data(data=str(dataset), unlabeled=(str(more),)), seed=0)
    data = open_training(Data(data=str(dataset), unlabeled=(str(more),), skip_bad=True), seed=0)
    assert (len(data.unlabelled), data.dropped["unreadable (--skip_bad)"]) == (2, 1)
    assert data.found == len(data.labelled) + len(data.unlabelled) + sum(data.dropped.values())
