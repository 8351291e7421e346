"""Whole scenes from disk to disk: windows are read, predicted and written; the file is never in memory as a whole."""

import contextlib
import errno
import os
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import TiffImagePlugin

from segue.data.finding import argument
from segue.data.sample import IGNORE, UNREADABLE, Array, Color, Tones, in_eight_bit, kind_of
from segue.data.tones import holds
from segue.disk import naming_a_full_disk
from segue.errors import DataError
from segue.extras import require
from segue.prediction.tiling import Grid, blended

DRIVER = "GTiff"  # others may open further files or addresses
CACHE = 16 << 20  # bytes of blocks that GDAL keeps, beside the rows that strips make necessary
LEVEL = 5  # of deflate; 6 takes twice as long, and class maps are a tenth smaller
GRAYS = ("L", "LA", "LA;16", "I", "I;16", "F")  # kinds of one band beside alpha
WHITE_IS_ZERO = 0  # of the TIFF tag that says what values mean
LARGEST_BLOCK = 256 << 20  # bytes of a block, which is read as a whole; GDAL takes large strips line by line
Probabilities = Callable[[Array], Array]
"""uint8 (bands, H, W) -> float32 (K, H, W)."""


@dataclass(frozen=True)
class Pixels:
    """How the bands of a scene become those of the model, as `segue.data.tones.read_eight_bit` does it with pictures.

    Args:
        bands: which are read, counted from 1; grey stands for all three.
        range: what is black and what is white; None of bands of 8 bits.
        is_negative: 0 is white, of 8-bit grey.
    """

    bands: tuple[int, ...]
    range: tuple[float, float] | None = None
    is_negative: bool = False

    @classmethod
    def of(cls, path: Path, source: Any, bands: int, tones: Tones) -> "Pixels":
        """Those of an open scene.

        Raises:
            DataError: the model takes no such pixels.
        """
        kind, is_negative = _kind(path)
        chosen = (1,) * bands if bands == 3 and kind in GRAYS else tuple(range(1, bands + 1))
        ranges = {name: (black, white) for name, black, white in tones}
        if max(chosen) <= source.count:
            if all(source.dtypes[band - 1] == "uint8" for band in chosen) and kind not in ("P", "1", "CMYK"):
                return cls(chosen, is_negative=is_negative)
            if kind in ranges:
                return cls(chosen, ranges[kind])
        has = f"{source.count} band{'' if source.count == 1 else 's'} of {', '.join(sorted(set(source.dtypes)))}"
        deep = "".join(f", or {name} pixels" for name in ranges)
        raise DataError(f"{path} has {has} ({kind or 'of a kind of its own'}); the model takes {bands} of uint8{deep}")

    def read(self, source: Any, window: Any) -> Array:
        """A window, uint8 (bands, H, W).

        Raises:
            DataError: the scene cannot be read to its end, or holds pixels that are no number.
        """
        rasterio = require("rasterio", "tiles")
        try:
            found: Array = source.read(list(self.bands), window=window)
        except rasterio.errors.RasterioIOError as error:
            raise DataError(f"{source.name} cannot be read to its end ({error}); copy it again") from None
        if self.range is None:
            return 255 - found if self.is_negative else found
        if source.nodata is not None:
            found[:, holds(found, source.nodata).all(0)] = self.range[0]  # void, and left out of what is written
        if not np.isfinite(found).all():
            raise DataError(f"E113 {source.name} holds pixels that are no number (NaN or infinite); export it again")
        return in_eight_bit(found, *self.range)


def _kind(path: Path) -> tuple[str, bool]:
    """The kind of a scene's pixels, see `kind_of`, and whether they are grey with white 0, which Pillow turns round.

    The kind is empty where Pillow does not know them: no model learnt from such.
    """
    try:
        header = TiffImagePlugin.TiffImageFile(str(path))  # which reads no pixels, and counts none
        with header:
            meaning = header.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION)
            return kind_of(header), header.mode == "L" and meaning == WHITE_IS_ZERO
    except UNREADABLE:
        return "", False


@contextlib.contextmanager
def open_scene(path: Path, grid: Grid) -> Iterator[Any]:
    """A raster opened for reading by windows.

    Raises:
        DataError: it cannot be read, or has tiles that are too large.
        UsageError: the extra ``tiles`` is not installed.
    """
    rasterio = require("rasterio", "tiles")
    warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning)  # plain pictures have no place
    with contextlib.ExitStack() as stack:
        # A world file beside it is looked for by its name, in a folder that may hold a million others.
        stack.enter_context(rasterio.Env(GDAL_CACHEMAX=CACHE, GDAL_DISABLE_READDIR_ON_OPEN="TRUE"))
        try:
            source = stack.enter_context(rasterio.open(path, driver=DRIVER))
        except rasterio.errors.RasterioIOError as error:
            raise DataError(f"{path} cannot be read as a scene ({error})") from None
        rows, columns = source.block_shapes[0]
        size = source.count * max(np.dtype(kind).itemsize for kind in source.dtypes)  # bytes of a pixel
        if rows * columns * size > LARGEST_BLOCK:
            raise DataError(
                f"{path} is stored in tiles of {columns} x {rows} pixels, which would fill the memory; write it in "
                f"small ones: gdal_translate -co TILED=YES -co COMPRESS=DEFLATE {argument(path)} tiled.tif"
            )
        if columns >= source.width:  # a row of tiles comes back to each strip, once a tile
            kept = CACHE + (grid.tile + 2 * rows) * source.width * size
            stack.enter_context(rasterio.Env(GDAL_CACHEMAX=kept))
        yield source


def write_scene(
    path: Path,
    targets: dict[str, Path],
    probabilities: Probabilities,
    grid: Grid,
    *,
    bands: int,
    colors: tuple[Color, ...],
    tones: Tones = (),
) -> tuple[int, int]:
    """Predicts the scene at ``path`` and writes ``targets``, each whole or not at all, with its georeference.

    Args:
        path: of a raster.
        targets: where ``labels``, ``probability`` and ``uncertainty`` go; those absent are not written.
        probabilities: of a window.
        grid: of the tiles.
        bands: that the model takes; the first ones of the scene.
        colors: of the classes.
        tones: the model's rules for deep pixels.

    Returns:
        (width, height) of the scene.

    Raises:
        DataError: the scene cannot be read to its end, or the model takes no such pixels.
    """
    rasterio = require("rasterio", "tiles")
    partial = {kind: target.with_name(f".{target.name}.partial") for kind, target in targets.items()}
    try:
        with open_scene(path, grid) as source, contextlib.ExitStack() as stack:
            pixels = Pixels.of(path, source, bands, tones)
            profile = {
                "driver": "GTiff", "dtype": "uint8", "count": 1, "width": source.width, "height": source.height,
                "tiled": True, "blockxsize": grid.step, "blockysize": grid.step, "compress": "deflate",
                "zlevel": LEVEL, "BIGTIFF": "IF_SAFER", **_place(source),
            }  # fmt: skip
            writers = {k: stack.enter_context(rasterio.open(p, "w", **profile)) for k, p in partial.items()}
            if "labels" in writers:
                writers["labels"].write_colormap(1, dict(enumerate(colors)))
            with naming_a_full_disk(partial["labels"].parent):
                written = _stream(source, writers, probabilities, grid, pixels)
            size = (source.width, source.height)
        for kind, file in partial.items():
            _refuse_other(file, written[kind])
        for kind in sorted(targets, key=lambda k: k == "labels"):  # labels last: they say that the scene is done
            os.replace(partial[kind], targets[kind])
        return size
    finally:
        for left in partial.values():
            left.unlink(missing_ok=True)


def _place(source: Any) -> dict[str, Any]:
    """Where on Earth an open scene lies, as a raster is told when it is written."""
    rasterio = require("rasterio", "tiles")
    points, crs = source.gcps  # ground control points, in a system of their own or in none
    if points and source.crs is None:
        return {"gcps": points, "crs": crs or rasterio.crs.CRS(), "rpcs": source.rpcs}
    return {"crs": source.crs, "transform": source.transform, "rpcs": source.rpcs}


def read_labels(path: Path) -> Array:
    """The class map that `write_scene` wrote: uint8 (H, W), whole, of any size."""
    rasterio = require("rasterio", "tiles")
    with rasterio.Env(GDAL_CACHEMAX=CACHE), rasterio.open(path, driver=DRIVER) as raster:
        labels: Array = raster.read(1)
    return labels


def _refuse_other(file: Path, written: Sequence[tuple[Any, int]]) -> None:
    """Reads a raster back: GDAL closes a file that it could not write to its end without a word.

    Raises:
        OSError: it does not hold what was written.
    """
    rasterio = require("rasterio", "tiles")
    with naming_a_full_disk(file.parent):
        with rasterio.Env(GDAL_CACHEMAX=CACHE), rasterio.open(file, driver=DRIVER) as raster:
            is_same = all(zlib.crc32(raster.read(1, window=window).tobytes()) == digest for window, digest in written)
        if not is_same:
            raise OSError(errno.EIO, "the disk does not hold what was written", str(file))


def _stream(
    source: Any, writers: dict[str, Any], probabilities: Probabilities, grid: Grid, pixels: Pixels
) -> dict[str, list[tuple[Any, int]]]:
    """Windows in, windows out: whole blocks of the files, so that each is written once; windows and checksums of them.

    Raises:
        DataError: the scene cannot be read to its end.
    """
    rasterio = require("rasterio", "tiles")
    from rasterio.windows import Window

    def predict(top: int, left: int, rows: int, columns: int) -> Array:
        return probabilities(pixels.read(source, Window(left, top, columns, rows)))

    written: dict[str, list[tuple[Any, int]]] = {kind: [] for kind in writers}
    is_full = all(rasterio.enums.MaskFlags.all_valid in flags for flags in source.mask_flag_enums)
    for top, left, found in blended(predict, source.height, source.width, grid):
        window = Window(left, top, found.shape[2], found.shape[1])
        is_void = None if is_full else source.dataset_mask(window=window) == 0
        for kind, writer in writers.items():
            values = SUMMARIES[kind](found)
            if is_void is not None:
                values[is_void] = IGNORE if kind == "labels" else 0
            writer.write(values, 1, window=window)
            written[kind].append((window, zlib.crc32(values.tobytes())))
        del found  # a whole tile, which would be kept while the next one is predicted
    return written


def most_probable(probabilities: Array) -> Array:
    """Class ids uint8 (H, W) of (K, H, W), the first of equals. Twice as fast as `argmax` over the first axis."""
    top = probabilities.max(0)
    ids = np.zeros(top.shape, np.uint8)
    for i in range(len(probabilities) - 1, 0, -1):
        np.copyto(ids, i, where=probabilities[i] == top)
    ids[probabilities[0] == top] = 0
    return ids


def entropy(probabilities: Array) -> Array:
    """Over ln K, of (K, H, W); one class at a time, so that little is in memory."""
    total = np.zeros(probabilities.shape[1:], np.float32)
    for probability in probabilities:
        total -= probability * np.log(np.maximum(probability, 1e-12))
    return total / np.float32(np.log(max(2, len(probabilities))))


def in_steps(values: Array) -> Array:
    """Values in [0, 1] in steps of 1/255."""
    steps: Array = (255 * values).round().clip(0, 255).astype(np.uint8)
    return steps


SUMMARIES: dict[str, Callable[[Array], Array]] = {
    "labels": most_probable,
    "probability": lambda probabilities: in_steps(probabilities.max(0)),
    "uncertainty": lambda probabilities: in_steps(entropy(probabilities)),
}
"""What is written of the probabilities (K, H, W) of a window: uint8 (H, W) each."""
