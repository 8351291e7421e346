"""What a mask on disk may look like: palettes of its own, colours that name classes, and orientation."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import COLORS, turned_late, turning
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from segue.config import Data
from segue.data.check import check
from segue.data.convert import convert
from segue.data.decoder import UNKNOWN, Decoder
from segue.data.finding import Finding
from segue.data.images import Whole
from segue.data.layouts import open_listing
from segue.data.sample import IGNORE, ORIENTATION, TURNS, open_image, orientation, picture_size, write_label_map
from segue.data.training import open_training
from segue.errors import DataError


def ids_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


@pytest.fixture
def colored(dataset: Path) -> Path:
    """The same set with masks in colours."""
    for path in sorted((dataset / "labels").iterdir()):
        Image.fromarray(np.array(COLORS, np.uint8)[ids_of(path)]).save(path)
    return dataset


def save_compact(path: Path, ids: np.ndarray, bits: int = 8) -> None:
    """Writes a palette of the classes that occur and no others, as optimisers of PNGs do."""
    held, place = np.unique(ids, return_inverse=True)
    image = Image.fromarray(place.reshape(ids.shape).astype(np.uint8), "P")
    image.putpalette(np.array(COLORS, np.uint8)[held].tobytes())
    image.save(path, bits=bits)


def stops(root: Path) -> list[Finding]:
    return [finding for finding in check(open_listing(str(root)))[0] if finding.stop]


@pytest.mark.parametrize("bits", [2, 8])
def test_palettes_that_differ_from_file_to_file_stop_training(dataset: Path, bits: int) -> None:
    for path in sorted((dataset / "labels").iterdir()):
        ids = ids_of(path)
        save_compact(path, np.where(ids == 1, 0, ids) if path.stem == "train_002" else ids, bits)
    path = dataset / "labels" / "train_002.png"
    (found,) = stops(dataset)
    assert (found.code, found.where) == ("E104", (f"{path} (index 1: colour of bar, class disc)",))
    with pytest.raises(DataError, match=r"E104 .*train_002.*save every mask as RGB"):
        open_training(Data(data=str(dataset)), seed=0)


def test_a_conversion_leaves_out_masks_whose_palette_says_another_class(dataset: Path, tmp_path: Path) -> None:
    for path in sorted((dataset / "labels").iterdir()):
        ids = ids_of(path)
        save_compact(path, np.where(ids == 1, 0, ids) if path.stem == "train_002" else ids)
    found = convert(open_listing(str(dataset)), tmp_path / "out")
    assert (found["written"], found["unusable_mask"]) == (9, 1)
    ((file, why),) = json.loads((tmp_path / "out" / "dataset.json").read_text())["left_out"].items()
    assert file == str(dataset / "images" / "train_002.png")
    assert "index 1: colour of bar, class disc" in why


def test_a_conversion_leaves_out_palette_masks_among_coloured_ones(colored: Path, tmp_path: Path) -> None:
    listed = [*COLORS[:2], (1, 1, 1)]  # an index would be taken for this grey
    list_colors(colored, listed)
    for path in sorted((colored / "labels").iterdir()):
        Image.fromarray(np.zeros((48, 48, 3), np.uint8) + np.array(listed[1], np.uint8)).save(path)
    write_label_map(colored / "labels" / "train_002.png", np.ones((48, 48)), listed)
    found = convert(open_listing(str(colored)), tmp_path / "out")
    assert (found["written"], found["unusable_mask"]) == (9, 1)


def test_a_palette_mask_among_coloured_ones_stops_training(colored: Path) -> None:
    assert stops(colored) == []
    write_label_map(colored / "labels" / "train_002.png", np.zeros((48, 48)), COLORS)
    (found,) = stops(colored)
    assert (found.code, found.where) == ("E104", (str(colored / "labels" / "train_002.png"),))


def greys(path: Path, ids: np.ndarray) -> None:
    write_label_map(path, ids, [(i, i, i) for i in range(256)])


def foreign(path: Path, ids: np.ndarray) -> None:
    write_label_map(path, ids, [(128, 0, 0), (0, 128, 0), (128, 128, 0)])


def ignored(path: Path, ids: np.ndarray) -> None:
    """The ignored index in the colour of a class, as `write_label_map` leaves it where a class is black."""
    write_label_map(path, np.where(ids == 2, 255, ids), [*COLORS, *[COLORS[0]] * 253])


@pytest.mark.parametrize("save", [greys, foreign, ignored])
def test_palettes_that_contradict_no_class_are_for_the_eye(dataset: Path, save: Any) -> None:
    for path in sorted((dataset / "labels").iterdir()):
        save(path, ids_of(path))
    assert stops(dataset) == []


def test_an_index_that_is_mapped_keeps_its_colour(dataset: Path) -> None:
    for path in sorted((dataset / "labels").iterdir()):
        write_label_map(path, ids_of(path), COLORS)
    data = open_training(Data(data=str(dataset), map="2:1"), seed=0)
    assert len(data.labelled) == 6


def save_tiff(path: Path, ids: np.ndarray, bits: int) -> None:
    """Signed whole numbers, as GIS programs write masks."""
    rows = ids.astype(f"<i{bits // 8}").tobytes()
    tags = [(256, 3, ids.shape[1]), (257, 3, ids.shape[0]), (258, 3, bits), (259, 3, 1), (262, 3, 1), (273, 4, 8),
            (277, 3, 1), (278, 3, ids.shape[0]), (279, 4, len(rows)), (339, 3, 2)]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    head = b"II*\0" + struct.pack("<I", 8 + len(rows))
    path.write_bytes(head + rows + struct.pack("<H", len(tags)) + entries + bytes(4))


@pytest.mark.parametrize(("bits", "value"), [(16, -1), (16, -9999), (32, -9999), (32, -(1 << 31))])
def test_negative_values_are_no_class_until_they_are_mapped(dataset: Path, bits: int, value: int, segue: Any) -> None:
    for path in sorted((dataset / "labels").iterdir()):
        ids = ids_of(path).astype(int)
        path.unlink()
        save_tiff(path.with_suffix(".tif"), np.where(np.arange(48) < 5, value, ids), bits)
    (found,) = stops(dataset)
    assert (found.code, found.what) == ("E101", f"the value {value} is no class (classes are 0-2)")
    option = found.fix.split()[-1]
    assert option == f"--map={value}:ignore"
    with pytest.raises(DataError, match=f"E101 .*{option}"):
        open_training(Data(data=str(dataset)), seed=0)
    status, output, _ = segue("check", dataset, option)
    assert (status, "E101" in output) == (0, False)
    assert output.splitlines()[-1].endswith(f"--out RUN {option}")
    data = open_training(Data(data=str(dataset), map=f"{value}:ignore"), seed=0)
    mask = Whole(data.labelled, data.decoder)[0]["mask"].numpy()
    assert (mask[:, :5] == 255).all()
    assert (mask[:, 5:] < 3).all()


def save_floats(root: Path, value: float = 0.0) -> dict[str, np.ndarray]:
    """Every mask as a TIFF of floats, with ``value`` in its first 5 columns; gives the ids there were."""
    before = {}
    for path in sorted((root / "labels").iterdir()):
        before[path.stem] = np.where(np.arange(48) < 5, 0, ids_of(path))
        path.unlink()
        floats = np.where(np.arange(48) < 5, value, before[path.stem]).astype(np.float32)
        Image.fromarray(floats).save(path.with_suffix(".tif"))
    return before


def test_ids_that_a_mask_stores_as_floats_are_read(dataset: Path) -> None:
    before = save_floats(dataset)
    assert stops(dataset) == []
    data = open_training(Data(data=str(dataset)), seed=0)
    for pair, shown in zip(data.labelled, Whole(data.labelled, data.decoder), strict=True):
        np.testing.assert_array_equal(shown["mask"].numpy(), before[pair.name])


def test_a_value_without_data_in_a_mask_of_floats_can_be_mapped(dataset: Path, segue: Any) -> None:
    save_floats(dataset, -9999.0)
    assert stops(dataset)[0].fix.endswith("--map=-9999:ignore")
    assert segue("check", dataset, "--map=-9999:ignore")[0] == 0


@pytest.mark.parametrize("value", [1.5, float("nan"), float("inf"), -3.4028235e38])
def test_fractions_and_what_is_no_number_are_no_class(dataset: Path, tmp_path: Path, segue: Any, value: float) -> None:
    before = save_floats(dataset, value)
    (found,) = stops(dataset)
    assert (found.code, found.what) == ("E101", f"the value {np.float32(value):.9g} is no class (classes are 0-2)")
    assert "--map" not in found.fix
    assert found.where[0].endswith("(240 pixels)")
    assert segue("train", dataset, "--out", tmp_path / "run", "--steps", 1)[0] == 2
    assert segue("check", dataset, "--fix", tmp_path / "copy")[0] == 0
    for name, ids in before.items():
        mended = ids_of(tmp_path / "copy" / "labels" / f"{name}.png")
        np.testing.assert_array_equal(mended, np.where(np.arange(48) < 5, 255, ids))


def list_colors(root: Path, colors: Any) -> None:
    path = root / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "colors": colors}))


def list_lines(root: Path, *lines: str) -> None:
    (root / "dataset.json").unlink()
    (root / "classes.txt").write_text("\n".join(lines))


def test_one_colour_for_two_classes_is_refused_where_it_names_them(colored: Path, segue: Any) -> None:
    list_colors(colored, [*COLORS[:2], COLORS[0]])
    for command in (("check", colored), ("data", "convert", colored, colored.parent / "out")):
        status, _, errors = segue(*command)
        assert status == 2
        assert "ground and bar have one colour, 90,90,90" in errors


def test_one_colour_for_two_classes_is_all_right_where_ids_name_them(dataset: Path) -> None:
    list_colors(dataset, [COLORS[0]] * 3)
    assert stops(dataset) == []


def test_a_colour_beyond_8_bits_is_refused(dataset: Path, segue: Any) -> None:
    list_lines(dataset, "ground 90 90 90", "disc 300 40 40", "bar 40 40 200")
    for command in (("check", dataset), ("data", "convert", dataset, dataset.parent / "out")):
        status, _, errors = segue(*command)
        assert status == 2
        assert "300,40,40 of disc is not within 0 to 255" in errors


def test_a_colour_of_no_class_is_not_advised_to_be_mapped(colored: Path) -> None:
    path = colored / "labels" / "train_002.png"
    pixels = ids_of(path)
    pixels[:2] = 10, 20, 30
    Image.fromarray(pixels).save(path)
    listing = open_listing(str(colored))
    with pytest.raises(DataError, match=r"holds 10,20,30 in 96 pixels.*or add the class with its colour$"):
        Decoder.of(listing).known(pixels, path)


def test_a_map_of_values_is_refused_where_masks_hold_colours(colored: Path, segue: Any) -> None:
    for command in (("check", colored), ("train", colored, "--out", colored.parent / "run")):
        status, _, errors = segue(*command, "--map", "77:ignore")
        assert status == 2
        assert "--map 77:ignore has no effect" in errors
    assert segue("check", colored)[0] == 0


ROWS = np.arange(48, dtype=np.uint8).reshape(8, 6)


def save_raw_profile(path: Path, turn: int, *, zipped: bool) -> None:
    """Writes the orientation as ImageMagick does, in a chunk of text before the pixels."""
    told = PngInfo()
    told.add_text("Raw profile type exif", f"\nexif\n{len(turning(turn)):8}\n{turning(turn).hex()}\n", zip=zipped)
    Image.fromarray(ROWS).save(path, pnginfo=told)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(("turn", "upright"), [(3, ROWS[::-1, ::-1]), (6, np.rot90(ROWS, -1)), (8, np.rot90(ROWS))])
def test_an_orientation_in_a_raw_profile_is_seen_by_the_header_too(
    tmp_path: Path, turn: int, upright: np.ndarray, zipped: bool
) -> None:
    path = tmp_path / "a.png"
    save_raw_profile(path, turn, zipped=zipped)
    np.testing.assert_array_equal(np.asarray(open_image(path)), upright)
    assert picture_size(path) == upright.shape[::-1]
    with Image.open(path) as header:
        assert orientation(header) == turn


@pytest.mark.parametrize("turn", [3, 6])
def test_an_orientation_behind_the_pixels_is_passed_over_by_all(tmp_path: Path, turn: int) -> None:
    path = tmp_path / "a.png"
    turned_late(ROWS, path, turn)
    with Image.open(path) as header:
        assert header.getexif()[ORIENTATION] == turn
    with Image.open(path) as header:
        assert orientation(header) == 1
    np.testing.assert_array_equal(np.asarray(open_image(path)), ROWS)
    assert picture_size(path) == (6, 8)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "tif"])
def test_every_orientation_is_turned_upright_at_the_size_that_the_header_says(
    tmp_path: Path, ending: str, turn: int
) -> None:
    path = tmp_path / f"a.{ending}"
    stored = Image.fromarray(np.full((8, 6), 100, np.uint8) + (ending != "jpg") * ROWS)
    stored.save(path, exif=turning(turn))
    expected = np.asarray(stored if turn == 1 else stored.transpose(TURNS[turn]))
    np.testing.assert_array_equal(np.asarray(open_image(path)), expected)
    assert picture_size(path) == expected.shape[::-1]


def test_a_lying_tiff_fits_its_upright_mask(dataset: Path) -> None:
    (dataset / "images" / "train_002.png").unlink()
    Image.fromarray(np.tile(ROWS, (3, 8))).save(dataset / "images" / "train_002.tif", exif=turning(6))
    Image.fromarray(np.zeros((48, 24), np.uint8)).save(dataset / "labels" / "train_002.png")
    assert stops(dataset) == []


def test_a_map_of_the_largest_value_takes_no_larger_ones() -> None:
    decoder = Decoder({0: 0, 1: 1, 65535: IGNORE}, (), by_color=False)
    stored = np.array([[0, 65535, 65536, 100_000, 2**31 - 1]], np.int32)
    assert decoder(stored).tolist() == [[0, IGNORE, UNKNOWN, UNKNOWN, UNKNOWN]]
    assert decoder.onto({1: 3})(stored).tolist() == [[0, IGNORE, UNKNOWN, UNKNOWN, UNKNOWN]]
    assert decoder(stored[:, :2].astype(np.uint16)).tolist() == [[0, IGNORE]]
