"""Pixels of each value of a mask, counted by runs: label maps are flat, and one look a run is enough.

Masks as many tools write them, PNG of 8-bit ids or palette indices without row filters, are counted as they are
inflated, without the image that Pillow would make of them and the copy of it that NumPy needs. Everything that is not
plainly such a file is left to Pillow, and so are all complaints.
"""

import zlib
from pathlib import Path

import numpy as np

from segue.data.sample import Array

SIGNATURE = b"\x89PNG\r\n\x1a\n"
LARGEST = 1 << 26  # pixels and bytes; larger masks are Pillow's, which knows the limit
HEAD = 1024  # bytes that a palette of 256 colours ends within, where nothing large stands before it
PASSED = {b"PLTE", b"tRNS", b"gAMA", b"sRGB", b"pHYs", b"cHRM", b"sBIT", b"bKGD"}  # chunks that change no index
FIRST = 16  # rows that are looked at before all of them: a mask with filters has one among them
COLOR_TYPES = (0, 3)  # grey, palette


def histogram(values: Array) -> Array:
    """How often each value occurs: uint8, flat, not empty -> int64 (256,)."""
    ends = (values[1:] != values[:-1]).nonzero()[0]
    last = np.empty(len(ends) + 2, np.int64)
    last[0], last[1:-1], last[-1] = -1, ends, values.size - 1
    return np.bincount(values[last[1:]], last[1:] - last[:-1], 256).astype(np.int64)


def flat_histogram(path: Path, size: int) -> tuple[tuple[int, int], Array] | None:
    """(width, height) and `histogram` of the mask at ``path``; None where Pillow has to look.

    Args:
        path: a plain file.
        size: its bytes.
    """
    if size > LARGEST:
        return None
    with path.open("rb") as file:
        data = file.read(size)
    if data[:8] != SIGNATURE or len(data) < 33 or data[24] != 8 or data[25] not in COLOR_TYPES or any(data[26:29]):
        return None
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    packed = _packed(data, has_palette=data[25] == 3)
    if not 0 < width * height <= LARGEST or packed is None:
        return None
    unpack = zlib.decompressobj()
    try:
        if any(zlib.decompressobj().decompress(packed, (width + 1) * FIRST)[:: width + 1]):
            return None
        pixels = unpack.decompress(packed, (width + 1) * height)
        beyond = unpack.decompress(unpack.unconsumed_tail, 1)
    except zlib.error:
        return None
    rows = np.frombuffer(pixels, np.uint8)
    # Each row begins with the kind of its filter, 0 for none.
    if beyond or not unpack.eof or rows.size != (width + 1) * height or rows[:: width + 1].any():
        return None
    counts = histogram(rows)
    counts[0] -= height
    return (width, height), counts


def palette_at_head(path: Path) -> bytes | None:
    """The palette of the PNG at ``path``, three bytes an index; empty of one without; None where Pillow has to look."""
    with path.open("rb") as file:
        data = file.read(HEAD)
    if data[:8] != SIGNATURE or len(data) < 33:
        return None
    place = 33 if data[25] == 3 else len(data)
    while place + 8 <= len(data):
        kind, end = data[place + 4 : place + 8], place + 8 + int.from_bytes(data[place : place + 4], "big")
        if kind == b"PLTE":
            return data[place + 8 : end] if end <= len(data) else None
        place = end + 4
    return None if data[25] == 3 else b""


def _packed(data: bytes, *, has_palette: bool) -> bytes | None:
    """The bytes of all IDAT chunks; None where a chunk is damaged, unknown or out of its place."""
    place, parts, kinds = 8, list[bytes](), list[bytes]()
    while place < len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        if zlib.crc32(data[place + 4 : end]) != int.from_bytes(data[end : end + 4], "big") or end + 4 > len(data):
            return None
        kinds.append(data[place + 4 : place + 8])
        if kinds[-1] == b"IDAT":
            parts.append(data[place + 8 : end])
        place = end + 4
    if kinds[0] != b"IHDR" or kinds[-1] != b"IEND" or not parts:
        return None
    first = kinds.index(b"IDAT")
    in_place = set(kinds[1:first]) <= PASSED and set(kinds[first:-1]) == {b"IDAT"}
    return b"".join(parts) if in_place and (not has_palette or b"PLTE" in kinds) else None
