"""Masks are counted as Pillow reads them, by runs or as they are inflated; what is not plain is left to Pillow."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from segue.data.check import flat_png
from segue.data.check.flat_png import flat_histogram, histogram, palette_at_head
from segue.data.sample import Array, write_label_map

COLORS = [(0, 0, 0), (200, 40, 40), (40, 40, 200)]


def counted(path: Path) -> tuple[tuple[int, int], Array] | None:
    return flat_histogram(path, path.stat().st_size)


def by_pillow(data: bytes) -> tuple[tuple[int, int], list[int]]:
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode in ("L", "P")
        return image.size, image.histogram()[:256]


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def grey(width: int, height: int, rows: bytes, *extra: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return flat_png.SIGNATURE + header + b"".join(extra) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_runs_by_hand() -> None:
    counts = histogram(np.array([7, 7, 0, 255, 7], np.uint8))
    assert {value: int(n) for value, n in enumerate(counts) if n} == {0: 1, 7: 3, 255: 1}
    assert histogram(np.array([3], np.uint8))[3] == 1


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(1, 9)), min_size=1, max_size=40))
def test_runs_equal_a_plain_count(runs: list[tuple[int, int]]) -> None:
    values = np.concatenate([np.full(length, value, np.uint8) for value, length in runs])
    np.testing.assert_array_equal(histogram(values), np.bincount(values, minlength=256))


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (64, 48)])
def test_a_label_map_as_segue_writes_it_is_counted_without_pillow(tmp_path: Path, size: tuple[int, int]) -> None:
    mask = np.random.default_rng(0).integers(0, 3, size, dtype=np.uint8)
    mask[0, 0] = 255
    write_label_map(tmp_path / "a.png", mask, COLORS)
    found = counted(tmp_path / "a.png")
    assert found is not None
    assert found[0] == (size[1], size[0])
    np.testing.assert_array_equal(found[1], np.bincount(mask.ravel(), minlength=256))


def test_files_that_are_not_plain_are_left_to_pillow(tmp_path: Path) -> None:
    ramp = Image.fromarray(np.arange(48 * 48, dtype=np.int64).reshape(48, 48).astype(np.uint8))
    buffers = [io.BytesIO() for _ in range(4)]
    ramp.save(buffers[0], "PNG")  # with row filters
    ramp.convert("1").save(buffers[1], "PNG")  # of another depth
    ramp.convert("RGB").save(buffers[2], "PNG")
    ramp.save(buffers[3], "JPEG")
    rows = b"\0\1\2" * 2
    turned = chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0")
    odd = [
        grey(2, 2, rows, turned),
        grey(2, 2, rows, chunk(b"acTL", b"\0\0\0\2\0\0\0\0")),
        grey(2, 2, rows[:-1]),
        grey(2, 2, rows + b"\0"),
        grey(2, 2, rows) + b"more",
        grey(2, 2, rows)[:-12],
        grey(2, 40, b"\0\1\2" * 39 + b"\1\1\2"),
        grey(2, 2, rows).replace(b"IDAT", b"IDAU"),
        grey(0, 2, b"\0\0"),
        grey(1 << 15, 1 << 15, rows),
        b"",
    ]
    for content in (*(buffer.getvalue() for buffer in buffers), *odd):
        (tmp_path / "a.png").write_bytes(content)
        assert counted(tmp_path / "a.png") is None
    (tmp_path / "a.png").write_bytes(grey(2, 2, rows))
    assert counted(tmp_path / "a.png") is not None


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_changed_file_is_counted_as_pillow_reads_it_or_left_to_pillow(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    rows = bytearray(b"".join(b"\0" + bytes([i % 3] * 6) for i in range(5)))
    rows[data.draw(st.integers(0, len(rows) - 1))] = data.draw(st.integers(0, 255))
    content = bytearray(grey(data.draw(st.sampled_from([6, 6, 6, 5])), 5, bytes(rows)))
    if data.draw(st.booleans()):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("png") / "a.png"
    path.write_bytes(content)
    found = counted(path)
    if found is not None:
        size, pixels = by_pillow(bytes(content))
        assert found[0] == size
        assert found[1].tolist() == pixels


def test_the_palette_is_pillows_or_left_to_it(tmp_path: Path) -> None:
    path, ids = tmp_path / "mask.png", np.zeros((4, 4), np.uint8)
    colors = [(7 * i % 256, i, 255 - i) for i in range(256)]
    for count in (1, 3, 256):
        image = Image.fromarray(ids)
        image.putpalette([part for color in colors[:count] for part in color])
        image.save(path)
        with Image.open(path) as saved:
            assert palette_at_head(path) == bytes(saved.getpalette() or ()), count
    Image.fromarray(ids).save(path)
    assert palette_at_head(path) == b""
    image.save(path, pnginfo=long_text())
    assert palette_at_head(path) is None  # it lies further on
    image.save(tmp_path / "mask.tif")
    assert palette_at_head(tmp_path / "mask.tif") is None


def long_text() -> PngInfo:
    """A chunk before the palette that is longer than what is read."""
    info = PngInfo()
    info.add(b"tEXt", b"Comment\0" + bytes(4000))
    return info
