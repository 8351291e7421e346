"""What one sample is, and how images and label maps are read from disk and written to it.

A sample is a dict: ``image`` uint8 (3, H, W) RGB, ``name`` str, and where there are labels ``mask`` (H, W), class ids
of an integer dtype with ``IGNORE`` where nothing is known. What panoptic samples hold in place of ``mask`` stands with
`segue.data.panoptic.PanopticWhole` and `PanopticViews`. Absent keys are absent, never ``None``.
"""

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, TiffImagePlugin

from segue.data.packed import content
from segue.errors import DataError

IGNORE = 255
ORIENTATION = 0x0112  # of EXIF; 1 is upright, 5 to 8 lie on their side
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # what makes each orientation upright
EXIF_KEYS = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")  # where Pillow finds an orientation
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
UNREAD_SUFFIXES = (".heic", ".heif", ".avif", ".jxl", ".jp2", ".gif")  # of pictures too, and no set is to lack them

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")  # others are never opened: some of them start programs

Sample = dict[str, Any]
Array = npt.NDArray[Any]
Color = tuple[int, int, int]
Tones = tuple[tuple[str, float, float], ...]
"""(kind of pixels, what is black, what is white) of each kind deeper than 8 bits; see `segue.data.tones`."""


# What Pillow raises for files that are no sound picture; `DataError` is among them.
UNREADABLE = (
    *(OSError, SyntaxError, ValueError, Image.DecompressionBombError),
    *(struct.error, zlib.error, EOFError, LookupError, ArithmeticError, TypeError),  # of damaged chunks and tags
)


def open_image(path: Path) -> Image.Image:
    """The image at ``path``, fully decoded and turned upright by its EXIF tag, in the mode of the file.

    Raises:
        DataError: the file is missing, empty, no image, cut short or larger than Pillow's limit of pixels.
    """
    return open_with_kind(path)[0]


def open_with_kind(path: Path) -> tuple[Image.Image, str]:
    """The image as `open_image` gives it, and its kind of pixels as `kind_of` does.

    Raises:
        DataError: the file is missing, empty, no image, cut short or larger than Pillow's limit of pixels.
    """
    _refuse_special(path)
    try:
        with Image.open(content(path), formats=FORMATS) as image:
            kind = kind_of(image)
            return upright(image), kind
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: {error}") from None
    except UNREADABLE as error:
        size = path.stat().st_size
        if path.suffix.lower() in UNREAD_SUFFIXES:
            raise DataError(f"{path} is of a kind that is not read; convert it to PNG or JPEG") from None
        what = "is empty (0 bytes)" if size == 0 else f"cannot be read as an image ({error}; {size} bytes)"
        raise DataError(f"{path} {what}; export it again or take it out of the folder") from None


def upright(image: ImageFile.ImageFile) -> Image.Image:
    """An image that is opened and not decoded yet, decoded and turned as its `orientation` says."""
    turn = orientation(image)
    if image.format == "TIFF":
        turn = 1  # Pillow turns it, but confuses width and height of one that it maps into memory by its name
        image.filename = ""
    image.load()
    return image if turn == 1 else image.transpose(TURNS[turn])


def _refuse_special(path: Path) -> None:
    """Pipes and devices are never opened: reading one may never end.

    Raises:
        DataError: ``path`` is one.
    """
    if path.exists() and not path.is_file():
        raise DataError(f"{path} is no plain file but a folder, pipe or device")


def kind_of(header: Image.Image) -> str:
    """The kind of pixels of an image that is opened and not decoded yet.

    It is Pillow's mode, with ``;16`` where a band has 16 bits of which that mode keeps 8 (``RGB;16``), and with an X
    for each band beyond the third (``RGBX``), which Pillow drops.
    """
    tiles = header.tile if isinstance(header, ImageFile.ImageFile) else []
    arguments: object = tiles[0].args if tiles else ""
    raw = str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)
    bands, _, depth = raw.partition(";")
    if depth.startswith("16") and bands in ("RGB", "RGBX", "RGBA", "CMYK", "LA"):
        return f"{bands};16"
    if header.mode.startswith("I;16"):
        return "I;16"
    return bands if header.mode == "RGB" and bands.startswith("RGBX") else header.mode


def orientation(header: Image.Image) -> int:
    """The EXIF orientation, 1 to 8, of an image that is opened and not decoded yet; a PNG's from before its pixels."""
    if header.format != "TIFF" and header.info.keys().isdisjoint(EXIF_KEYS):
        return 1  # of a PNG Pillow would decode all pixels, to look for the tag behind them
    found = header.getexif().get(ORIENTATION, 1)
    return int(found) if found in range(1, 9) else 1


def upright_size(header: Image.Image) -> tuple[int, int]:
    """(width, height) of the upright picture of an image that is opened and not decoded yet."""
    if orientation(header) < 5:
        return header.size
    if isinstance(header, TiffImagePlugin.TiffImageFile):  # of which versions of Pillow give one size or the other
        return int(header.tag_v2[TiffImagePlugin.IMAGELENGTH]), int(header.tag_v2[TiffImagePlugin.IMAGEWIDTH])
    return header.size[::-1]


def picture_size(path: Path) -> tuple[int, int]:
    """(width, height) of the upright picture, by its header alone."""
    _refuse_special(path)
    with Image.open(content(path), formats=FORMATS) as header:
        return upright_size(header)


def read_image(path: Path) -> Array:
    """The image as uint8 (H, W, 3) RGB."""
    return np.array(to_rgb(open_image(path), path))


def to_rgb(image: Image.Image, path: Path) -> Image.Image:
    """``image`` as 8-bit RGB.

    Raises:
        DataError: the pixels are deeper than 8 bits, which a plain conversion would clip.
    """
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I") or image.mode == "F":
        raise DataError(f"{path} holds {image.mode} pixels (more than 8 bits); convert it to 8-bit RGB first")
    return image.convert("RGB")


def eight_bit(pixels: Array, low: float, high: float) -> Image.Image:
    """Deep pixels (H, W) or (H, W, 3) as an 8-bit image; see `in_eight_bit`."""
    return Image.fromarray(in_eight_bit(pixels, low, high))


def in_eight_bit(pixels: Array, low: float, high: float) -> Array:
    """Deep pixels as uint8 of the same shape: ``low`` and below black, ``high`` and above white, evenly between."""
    scaled = (pixels.astype(np.float64) - low) / max(high - low, np.finfo(np.float64).tiny)
    found: Array = (255 * scaled.clip(0, 1)).round().astype(np.uint8)
    return found


def read_label_map(path: Path) -> Array:
    """The label map as it is stored: (H, W) ids of an 8-bit, 16-bit or palette file, or (H, W, 3) colours."""
    image = open_image(path)
    if image.mode in ("L", "P", "1") or image.mode.startswith("I"):
        return np.array(image)
    return np.array(image.convert("RGB"))


def palette(count: int) -> list[Color]:
    """``count`` colours that are told apart from each other and from their neighbours, by the golden angle of hue."""
    import colorsys

    colors = []
    for i in range(count):
        red, green, blue = colorsys.hsv_to_rgb((i * 0.61803) % 1.0, 0.55 + 0.35 * (i % 2), 0.95 - 0.3 * ((i // 2) % 2))
        colors.append((round(red * 255), round(green * 255), round(blue * 255)))
    return colors


def write_label_map(path: Path, mask: Array, colors: Sequence[Color]) -> None:
    """Writes class ids (H, W) as a palette PNG: pixel values are the ids, colours only for the eye; 255 is black."""
    image = Image.fromarray(mask.astype(np.uint8), mode="P")
    table = np.zeros((256, 3), np.uint8)
    table[: len(colors)] = np.asarray(colors, np.uint8)
    image.putpalette(table.tobytes())
    image.save(path, optimize=False)
