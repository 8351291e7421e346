"""Random, cut and changed files in every place that is read: a named error or a right answer, never a traceback."""

import importlib.util
import io
import json
import os
import re
import resource
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import test_exports as exports
import test_readers as readers
from conftest import draw, write_set
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from segue.config import Data
from segue.data.check.audit import Audit, audit
from segue.data.layouts import open_listing
from segue.data.sample import open_image, picture_size
from segue.data.sharding import write_shards
from segue.data.training import open_training
from segue.errors import DataError

FAST = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("hostile") / "set", train=3, val=2, test=1, size=32)


def encoded(form: str, values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, form)
    return buffer.getvalue()


IMAGES = {form: encoded(form, draw(0, 32)[0]) for form in ("PNG", "JPEG", "TIFF", "BMP", "WEBP")}
MASKS = {form: encoded(form, draw(0, 32)[1]) for form in ("PNG", "TIFF", "BMP")}


CASES = int(os.environ.get("SEGUE_HOSTILE_CASES", "0"))  # of the long run, over all layouts
HOSTILE = [
    b"-1", b"0", b"1e999", b"NaN", b"9" * 20, b"null", b"[]", b"{}", b"true", b'"../../x"', b'"/etc/hosts"', b"[" * 8,
    b'"a\\u0000b"', b"<!DOCTYPE a>", b"&amp;", b"\xff\xfe",
]  # fmt: skip


@st.composite
def damaged(draw_from: st.DrawFn, sound: Sequence[bytes]) -> bytes:
    """A sound file cut short, with bytes changed, inserted or repeated, with hostile numbers and names, or random."""
    data = bytearray(draw_from(st.sampled_from(sound)))
    how = draw_from(st.sampled_from(["cut", "change", "insert", "repeat", "value", "random"]))
    if how == "random" or not data:
        return draw_from(st.binary(max_size=200))
    place = draw_from(st.integers(0, len(data) - 1))
    if how == "cut":
        return bytes(data[:place])
    if how == "repeat":
        return bytes(data[:place] + data[max(0, place - 50) :])
    values = list(re.finditer(rb'"[^"]*"|-?[0-9][0-9.]*', data)) if how == "value" else []
    if values:
        value = values[place % len(values)]
        return bytes(data[: value.start()] + draw_from(st.sampled_from(HOSTILE)) + data[value.end() :])
    piece = draw_from(st.binary(min_size=1, max_size=8))
    data[place : place + (len(piece) if how == "change" else 0)] = piece
    return bytes(data)


def looked(root: Path, layout: str = "auto") -> Audit:
    """What ``segue check`` finds."""
    return audit(str(root), layout=layout, mapping="", allow_missing=False, workers=0, track=quietly)


@contextmanager
def quietly(what: str, total: int) -> Iterator[Callable[[], None]]:
    """No progress bar."""
    yield lambda: None


def outcome(root: Path, layout: str = "auto") -> int:
    """How many findings the audit has; what is used and dropped must sum to what was found, in both ways to look."""
    quiet = looked(root, layout)
    account = quiet.account()
    assert account["used"] + account["dropped"] == account["found"]
    json.dumps(quiet.plain(), default=str)
    assert all(line.isprintable() for line in quiet.lines())
    try:
        data = open_training(Data(data=str(root), layout=layout, skip_bad=True), seed=0)
        assert data.found == len(data.labelled) + len(data.unlabelled) + sum(data.dropped.values())
    except DataError:
        pass
    return len(quiet.findings)


def with_content(path: Path, content: bytes, root: Path) -> None:
    """Looks at the set while ``path`` holds ``content``."""
    before = path.read_bytes()
    try:
        path.write_bytes(content)
        outcome(root)
    finally:
        path.write_bytes(before)


@FAST
@given(content=damaged(list(IMAGES.values())))
def test_any_bytes_as_an_image(root: Path, content: bytes) -> None:
    with_content(root / "images" / "train_000.png", content, root)


@FAST
@given(content=damaged(list(MASKS.values())))
def test_any_bytes_as_a_mask(root: Path, content: bytes) -> None:
    with_content(root / "labels" / "train_000.png", content, root)


def write_cityscapes(root: Path) -> None:
    for split, name in (("train", "aachen"), ("val", "ulm")):
        image = root / "leftImg8bit" / split / name / f"{name}_000000_000019_leftImg8bit.png"
        readers.photo(image)
        place = Path(*("gtFine" if part == "leftImg8bit" else part for part in image.relative_to(root).parts))
        mask = image.name.replace("leftImg8bit", "gtFine_labelIds")
        readers.save(root / place.with_name(mask), readers.quarters(7, 8, 26, 0))


def write_voc(root: Path) -> None:
    for name in ("2007_1", "2007_2"):
        readers.photo(root / "JPEGImages" / f"{name}.jpg")
        readers.save(root / "SegmentationClass" / f"{name}.png", readers.quarters(0, 15, 255, 20), palette=True)
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("2007_1\n")
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("2007_2\n")


def write_camvid(root: Path) -> None:
    for split in ("train", "val"):
        readers.photo(root / split / "f1.png")
        readers.save(root / f"{split}annot" / "f1.png", readers.quarters(0, 11, 3, 10))


def write_gta5(root: Path) -> None:
    for name in ("00001", "00002"):
        readers.photo(root / "images" / f"{name}.png")
        readers.save(root / "labels" / f"{name}.png", readers.quarters(0, 7, 26, 34), palette=True)


def write_bdd100k(root: Path) -> None:
    for split in ("train", "val"):
        readers.photo(root / "images" / "10k" / split / "0004a4c0-d4dff0ad.jpg")
        readers.save(root / "labels/sem_seg/masks" / split / "0004a4c0-d4dff0ad.png", readers.quarters(0, 18, 255, 13))


def write_labelme(root: Path) -> None:
    for name in ("a", "b"):
        exports.labelme(root, [exports.shape("dog", exports.BOX, group=1)], name)


def write_studio(root: Path) -> None:
    exports.photo(root / "images" / "a.png")
    polygon = exports.region("polygonlabels", "tree", points=exports.percent(exports.BOX), closed=True)
    brush = exports.region("brushlabels", "sky", format="rle", rle=exports.packed(exports.COLORED))
    exports.studio(root, [exports.task("/data/upload/3/a.png", {"result": [polygon, brush]})])


def write_colored(root: Path) -> None:
    for name in ("a", "b"):
        readers.photo(root / "images" / f"{name}.tif")
        readers.save(root / "masks" / f"{name}.png", readers.rgb_of(readers.quarters(0, 1, 2, 1)))
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nx:0,0,0::\ny:1,0,0::\nz:2,0,0::\n")


def write_packed(root: Path) -> None:
    files = write_set(root.with_name(f"{root.name}_files"), train=2, val=1, test=1, size=32)
    write_shards(open_listing(str(files)), root, size=4000)
    assert len(list(root.glob("*.tar"))) > 1


WRITERS: dict[str, Callable[[Path], object]] = {
    "cityscapes": write_cityscapes, "voc": write_voc, "camvid": write_camvid, "ade20k": readers.write_ade,
    "mapillary": readers.write_mapillary, "bdd100k": write_bdd100k, "synthia": readers.write_synthia,
    "gta5": write_gta5, "coco_panoptic": readers.write_panoptic, "cvat": exports.cvat, "labelme": write_labelme,
    "labelstudio": write_studio, "coco_instances": readers.write_instances, "folder": write_colored,
    "shards": write_packed,
}  # fmt: skip


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small sound set of each layout; that of CVAT where datumaro is installed."""
    found = {}
    for name, write in WRITERS.items():
        if name == "cvat" and importlib.util.find_spec("datumaro") is None:
            continue
        found[name] = tmp_path_factory.mktemp(name)
        write(found[name])
        assert open_listing(str(found[name])).layout == name
        assert not {finding.code for finding in looked(found[name]).findings if finding.stop} - {"E106", "E126"}
    return found


def damage_any_file(samples: dict[str, Path], data: st.DataObject) -> None:
    """One file of one set is damaged; the set is looked at, by force with its own layout, and put right again."""
    name = data.draw(st.sampled_from(sorted(samples)))
    files = sorted(path for path in samples[name].rglob("*") if path.is_file())
    path = data.draw(st.sampled_from(files))
    before = path.read_bytes()
    others = [before] * 4 + [IMAGES["JPEG"], IMAGES["TIFF"], MASKS["PNG"]]
    started = time.process_time()
    try:
        path.write_bytes(data.draw(damaged(others)))
        try:
            outcome(samples[name], name)
        except DataError as error:
            assert "\n" not in str(error) or "E1" in str(error)
    finally:
        path.write_bytes(before)
    assert time.process_time() - started < 30


@FAST
@given(data=st.data())
def test_any_damage_to_any_file_of_any_layout(samples: dict[str, Path], data: st.DataObject) -> None:
    damage_any_file(samples, data)


@pytest.mark.skipif(not CASES, reason="SEGUE_HOSTILE_CASES=20000 is the long run")
def test_the_long_run(samples: dict[str, Path]) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @settings(FAST, max_examples=CASES, database=None)
    @given(data=st.data())
    def run(data: st.DataObject) -> None:
        damage_any_file(samples, data)

    run()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.slow
@FAST
@given(
    key=st.sampled_from(["classes", "colors", "things", "ignore", "splits"]),
    value=ANYTHING
    | st.lists(st.text(max_size=3), max_size=4)
    | st.dictionaries(st.just("train"), ANYTHING, max_size=1),
)
def test_any_json_as_the_description(root: Path, key: str, value: object) -> None:
    path = root / "dataset.json"
    before = path.read_text()
    try:
        path.write_text(json.dumps({**json.loads(before), key: value}))
        try:
            open_listing(str(root))
        except DataError:
            return
        outcome(root)
    finally:
        path.write_text(before)


def test_an_empty_chunk_behind_the_pixels_is_a_named_fault(root: Path) -> None:
    path = root / "images" / "train_000.png"
    before = path.read_bytes()
    empty = b"\0\0\0\0gAMA\xaeB`\x82"  # Pillow unpacks four bytes of it
    try:
        path.write_bytes(before[:-12] + empty + before[-12:])
        assert [finding.code for finding in looked(root).findings if finding.stop] == ["E111"]
        with pytest.raises(DataError, match=r"train_000\.png cannot be read"):
            open_image(path)
    finally:
        path.write_bytes(before)


def test_a_pipe_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    for read in (open_image, picture_size):
        with pytest.raises(DataError, match=r"a\.png is no plain file"):
            read(tmp_path / "a.png")


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff\xfe", b'{"classes": 1e999}', b"1" * 5000])
def test_a_hostile_description_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    root = write_set(tmp_path / "set", train=2, val=1, test=1)
    (root / "dataset.json").write_bytes(content)
    with pytest.raises(DataError, match=r"dataset\.json"):
        open_listing(str(root))


def of_many_pages(page: bytes, count: int) -> bytes:
    """A TIFF whose one page comes ``count`` times: Pillow takes seconds to write it so long."""
    (first,) = struct.unpack("<I", page[4:8])
    entries = page[first : first + 2 + 12 * struct.unpack("<H", page[first : first + 2])[0]]
    places = [len(page) + i * (len(entries) + 4) for i in range(count)]
    directories = b"".join(entries + struct.pack("<I", after) for after in [*places[1:count], 0])
    return page[:4] + struct.pack("<I", places[0]) + page[8:] + directories


@pytest.mark.slow
def test_a_bomb_in_a_text_chunk_and_a_long_animation_are_cheap(tmp_path: Path) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    root = write_set(tmp_path / "set", train=4, val=2, test=1)
    sound = (root / "images" / "train_000.png").read_bytes()
    bomb = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"\0" * (200 << 20), 9))
    (root / "images" / "train_000.png").write_bytes(sound[:33] + bomb + sound[33:])
    frames = [Image.fromarray(draw(i % 2, 48)[0]) for i in range(2)]
    frames[0].save(root / "images" / "train_001.png", save_all=True, append_images=[frames[1]] * 2000)
    (root / "images" / "train_002.tif").write_bytes(of_many_pages(encoded("TIFF", draw(0, 48)[0]), 2000))
    with Image.open(root / "images" / "train_002.tif") as pages:
        assert pages.n_frames == 2000  # type: ignore[attr-defined]
    (root / "images" / "train_002.png").unlink()
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    assert outcome(root) >= 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10
    assert time.process_time() - started < 10


@pytest.mark.slow
def test_a_file_larger_than_the_memory_allowed_is_read_in_pieces(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", train=3, val=2, test=1)
    with (root / "images" / "train_000.png").open("r+b") as file:
        file.truncate(1 << 30)  # a sound picture, and holes behind it
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcome(root)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10
