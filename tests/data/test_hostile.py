"""Random, cut and changed files in every place that is read: a named error or a right answer, never a traceback."""

import io
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import draw, write_set
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from segue.config import Data
from segue.data.audit import audit
from segue.data.layouts import open_listing
from segue.data.sample import DataError
from segue.data.training import open_training
from segue.progress import track

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


@st.composite
def damaged(draw_from: st.DrawFn, sound: dict[str, bytes]) -> bytes:
    """A sound file cut short, with bytes changed, or random bytes."""
    data = bytearray(sound[draw_from(st.sampled_from(sorted(sound)))])
    how = draw_from(st.sampled_from(["cut", "change", "random", "insert"]))
    if how == "random":
        return draw_from(st.binary(max_size=200))
    place = draw_from(st.integers(0, len(data) - 1))
    if how == "cut":
        return bytes(data[:place])
    piece = draw_from(st.binary(min_size=1, max_size=8))
    data[place : place + (len(piece) if how == "change" else 0)] = piece
    return bytes(data)


def outcome(root: Path) -> int:
    """How many findings the audit has; what is used and dropped must sum to what was found, in both ways to look."""
    quiet = audit(
        str(root), layout="auto", mapping="", allow_missing=False, workers=0, track=lambda w, n: track(w, n, quiet=True)
    )
    account = quiet.account()
    assert account["used"] + account["dropped"] == account["found"]
    json.dumps(quiet.plain(), default=str)
    assert all(line.isprintable() for line in quiet.lines())
    try:
        data = open_training(Data(data=str(root), skip_bad=True), seed=0)
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
@given(content=damaged(IMAGES))
def test_any_bytes_as_an_image(root: Path, content: bytes) -> None:
    with_content(root / "images" / "train_000.png", content, root)


@FAST
@given(content=damaged(MASKS))
def test_any_bytes_as_a_mask(root: Path, content: bytes) -> None:
    with_content(root / "labels" / "train_000.png", content, root)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


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


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff\xfe", b'{"classes": 1e999}', b"1" * 5000])
def test_a_hostile_description_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    root = write_set(tmp_path / "set", train=2, val=1, test=1)
    (root / "dataset.json").write_bytes(content)
    with pytest.raises(DataError, match=r"dataset\.json"):
        open_listing(str(root))


def test_a_bomb_in_a_text_chunk_and_a_long_animation_are_cheap(tmp_path: Path) -> None:
    import resource
    import struct
    import time

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    root = write_set(tmp_path / "set", train=4, val=2, test=1)
    sound = (root / "images" / "train_000.png").read_bytes()
    bomb = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"\0" * (200 << 20), 9))
    (root / "images" / "train_000.png").write_bytes(sound[:33] + bomb + sound[33:])
    frames = [Image.fromarray(draw(i % 2, 48)[0]) for i in range(2)]
    frames[0].save(root / "images" / "train_001.png", save_all=True, append_images=[frames[1]] * 2000)
    frames[0].save(root / "images" / "train_002.tif", save_all=True, append_images=[frames[1]] * 2000)
    (root / "images" / "train_002.png").unlink()
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    assert outcome(root) >= 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10
    assert time.monotonic() - started < 10
