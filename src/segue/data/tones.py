"""How any image becomes 8-bit RGB: one rule for a data set, found from its images and stored in the model.

    8 bits a band    as Pillow converts them: grey is repeated, a palette looked up, CMYK converted
    deeper           black and white are one pair of values for all images of a kind of pixels, evenly between; the set
                     gives them: percentile 1 of the darkest band and percentile 99 of the brightest
    void             pixels that hold in all bands the value that a TIFF declares to stand for nothing, as GDAL writes
                     it, are left out of those percentiles, and black
    more bands       the first three are red, green and blue; alpha and the others are dropped

Kinds of pixels are those of `segue.data.sample.kind_of`: ``I;16``, ``RGB;16``, ``F`` and so on.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

from segue.data.packed import content
from segue.data.sample import FORMATS, UNREADABLE, Array, Tones, eight_bit, open_with_kind, upright
from segue.errors import DataError

Ranges = tuple[tuple[float, ...], ...]
"""`PERCENTILES` of each band."""

PERCENTILES = (0, 1, 50, 99, 100)
NODATA = 42113  # TIFF tag of the value that stands for nothing measured, as text
LOWER_BYTE = {"L": "B", "B": "L", "N": "B" if np.little_endian else "L"}  # the decoder that keeps the other byte


def is_deep(kind: str) -> bool:
    """Whether pixels of this kind hold more than 8 bits a band."""
    return kind.endswith(";16") or kind in ("I", "F")


def drops_bands(kind: str) -> bool:
    """Whether such images hold more than three bands, or transparency."""
    return kind.partition(";")[0] in ("LA", "PA", "RGBA") or kind.startswith("RGBX")


def deep_pixels(path: Path) -> Array:
    """Pixels of an image deeper than 8 bits, upright, without alpha and bands beyond the third: (H, W) or (H, W, 3).

    Raises:
        DataError: the file cannot be read.
    """
    whole, kind = open_with_kind(path)
    if kind in ("I", "I;16", "F"):
        return np.asarray(whole)
    lower = _lower_bytes(path)
    if kind == "LA;16":  # four bytes a pixel: grey, its lower byte, alpha, its lower byte
        return (lower[..., 0].astype(np.uint16) << 8) + lower[..., 1]
    upper = np.asarray(whole)[..., :3].astype(np.uint16)
    return (upper << 8) + lower[..., :3]


def nodata_of(path: Path) -> float | None:
    """The value that the TIFF at ``path`` declares to stand for nothing measured, or None; it may be NaN."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        return None
    with Image.open(content(path), formats=FORMATS) as header:
        declared = header.tag_v2.get(NODATA) if isinstance(header, TiffImagePlugin.TiffImageFile) else None
    try:
        return None if declared is None else float(declared)
    except (TypeError, ValueError):
        return None


def holds(pixels: Array, nodata: float) -> Array:
    """Whether each value of ``pixels`` is the one that stands for nothing measured: bool of the same shape."""
    return np.asarray(np.isnan(pixels) if np.isnan(nodata) else pixels == nodata)


def void_pixels(path: Path, pixels: Array) -> Array:
    """Which of the `deep_pixels` at ``path`` hold nothing measured in any band: bool (H, W)."""
    nodata = nodata_of(path)
    if nodata is None:
        return np.zeros(pixels.shape[:2], bool)
    return np.asarray(holds(pixels.reshape(*pixels.shape[:2], -1), nodata).all(2))


def _lower_bytes(path: Path) -> Array:
    """The image at ``path``, upright, its decoder told to keep the byte of each 16-bit value that it drops."""
    try:
        with Image.open(content(path), formats=FORMATS) as image:
            image.tile = [tile._replace(args=_other_byte(tile.args)) for tile in image.tile]
            return np.asarray(upright(image))
    except UNREADABLE as error:
        raise DataError(f"{path} cannot be read in 16 bits ({error}); export it again") from None


def _other_byte(arguments: Any) -> Any:
    """A decoder's arguments, of which the first is the order of bytes in the file."""
    if isinstance(arguments, tuple):
        return (_other_byte(arguments[0]), *arguments[1:])
    raw, _, order = str(arguments).partition(";16")
    return "RGBA" if raw == "LA" else f"{raw};16{LOWER_BYTE[order]}"


def percentiles(pixels: Array, is_void: Array) -> Ranges:
    """`PERCENTILES` of each band of pixels (H, W) or (H, W, 3), the void ones (H, W) left out; none of void alone."""
    known = pixels[~is_void]
    bands = known.reshape(len(known), -1).T if len(known) else ()
    return tuple(tuple(np.percentile(band, PERCENTILES).tolist()) for band in bands)


def tones_of(ranges: Mapping[str, Ranges]) -> Tones:
    """The rule, from `PERCENTILES` of each band by kind."""
    return tuple(
        (kind, min(band[1] for band in bands), max(band[3] for band in bands)) for kind, bands in sorted(ranges.items())
    )


def joined_tones(first: Tones, second: Tones) -> Tones:
    """The rules of ``first``, and those of ``second`` for kinds that it does not name."""
    known = {kind for kind, _, _ in first}
    return (*first, *(rule for rule in second if rule[0] not in known))


def read_eight_bit(path: Path, tones: Tones) -> Image.Image:
    """The image at ``path``, upright, in 8 bits a band.

    Raises:
        DataError: it cannot be read, or is deeper and ``tones`` says nothing of its kind.
    """
    picture, kind = open_with_kind(path)
    if not is_deep(kind):
        return picture
    rule = {name: (black, white) for name, black, white in tones}
    if kind not in rule:
        known = ", ".join(rule) or "8 bits only"
        raise DataError(
            f"E114 {path} holds {kind} pixels, deeper than 8 bits, and the training images had none such ({known}); "
            "write it in 8 bits, or train on images like it"
        )
    black, white = rule[kind]
    stored = deep_pixels(path)
    pixels = stored.astype(np.float64)
    pixels[void_pixels(path, stored)] = black
    if not np.isfinite(pixels).all():
        raise DataError(f"E113 {path} holds pixels that are no number (NaN or infinite); export it again")
    return eight_bit(pixels, black, white)


def read_rgb(path: Path, tones: Tones = ()) -> Image.Image:
    """`read_eight_bit` with three bands, alpha dropped."""
    picture = read_eight_bit(path, tones)
    return picture if picture.mode == "RGB" else picture.convert("RGB")
