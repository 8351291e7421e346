"""Whole scenes from disk to disk: windows are read, predicted and written; the file is never in memory as a whole."""

import contextlib
import errno
import os
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segue.data.sample import IGNORE, Array, Color, DataError
from segue.disk import naming_a_full_disk
from segue.extras import require
from segue.tiling import Grid, blended

DRIVER = "GTiff"  # others may open further files or addresses
CACHE = 64  # MiB of blocks that GDAL keeps
Probabilities = Callable[[Array], Array]
"""uint8 (bands, H, W) -> float32 (K, H, W)."""


@contextlib.contextmanager
def open_scene(path: Path, bands: int) -> Iterator[Any]:
    """A raster opened for reading by windows.

    Raises:
        DataError: it cannot be read, is not of 8 bits, or has too few bands.
        UsageError: the extra ``tiles`` is not installed.
    """
    rasterio = require("rasterio", "tiles")
    warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning)  # plain pictures have no place
    with rasterio.Env(GDAL_CACHEMAX=CACHE, GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"):
        try:
            source = rasterio.open(path, driver=DRIVER)
        except rasterio.errors.RasterioIOError as error:
            raise DataError(f"{path} cannot be read as a scene ({error})") from None
        with source:
            if source.count < bands or any(kind != "uint8" for kind in source.dtypes[:bands]):
                kinds = ", ".join(sorted(set(source.dtypes)))
                raise DataError(f"{path} has {source.count} bands of {kinds}; the model takes {bands} of uint8")
            yield source


def write_scene(
    path: Path,
    targets: dict[str, Path],
    probabilities: Probabilities,
    grid: Grid,
    *,
    bands: int,
    colors: tuple[Color, ...],
) -> tuple[int, int]:
    """Predicts the scene at ``path`` and writes ``targets``, each whole or not at all, with its georeference.

    Args:
        path: of a raster.
        targets: where ``labels``, ``probability`` and ``uncertainty`` go; those absent are not written.
        probabilities: of a window.
        grid: of the tiles.
        bands: that the model takes; the first ones of the scene.
        colors: of the classes.

    Returns:
        (width, height) of the scene.

    Raises:
        DataError: the scene cannot be read to its end.
    """
    rasterio = require("rasterio", "tiles")
    partial = {kind: target.with_name(f".{target.name}.partial") for kind, target in targets.items()}
    try:
        with open_scene(path, bands) as source, contextlib.ExitStack() as stack:
            profile = {
                "driver": "GTiff", "dtype": "uint8", "count": 1, "width": source.width, "height": source.height,
                "crs": source.crs, "transform": source.transform, "tiled": True, "blockxsize": grid.step,
                "blockysize": grid.step, "compress": "deflate", "BIGTIFF": "IF_SAFER",
            }  # fmt: skip
            writers = {k: stack.enter_context(rasterio.open(p, "w", **profile)) for k, p in partial.items()}
            if "labels" in writers:
                writers["labels"].write_colormap(1, dict(enumerate(colors)))
            with naming_a_full_disk(partial["labels"].parent):
                written = _stream(source, writers, probabilities, grid, bands)
            size = (source.width, source.height)
        for kind, file in partial.items():
            _refuse_other(file, written[kind])
        for kind in sorted(targets, key=lambda k: k == "labels"):  # labels last: they say that the scene is done
            os.replace(partial[kind], targets[kind])
        return size
    finally:
        for left in partial.values():
            left.unlink(missing_ok=True)


def _refuse_other(file: Path, written: Sequence[tuple[Any, int]]) -> None:
    """Reads a raster back: GDAL closes a file that it could not write to its end without a word.

    Raises:
        OSError: it does not hold what was written.
    """
    rasterio = require("rasterio", "tiles")
    with naming_a_full_disk(file.parent):
        with rasterio.open(file, driver=DRIVER) as raster:
            is_same = all(zlib.crc32(raster.read(1, window=window).tobytes()) == digest for window, digest in written)
        if not is_same:
            raise OSError(errno.EIO, "the disk does not hold what was written", str(file))


def _stream(
    source: Any, writers: dict[str, Any], probabilities: Probabilities, grid: Grid, bands: int
) -> dict[str, list[tuple[Any, int]]]:
    """Windows in, rows of blocks out: each block is written once; the windows and checksums of what was written.

    Raises:
        DataError: the scene cannot be read to its end.
    """
    rasterio = require("rasterio", "tiles")
    from rasterio.windows import Window

    def predict(top: int, left: int, rows: int, columns: int) -> Array:
        try:
            pixels = source.read(list(range(1, bands + 1)), window=Window(left, top, columns, rows))
        except rasterio.errors.RasterioIOError as error:
            raise DataError(f"{source.name} cannot be read to its end ({error}); copy it again") from None
        return probabilities(pixels)

    written: dict[str, list[tuple[Any, int]]] = {kind: [] for kind in writers}
    gathered: dict[str, list[Array]] = {kind: [] for kind in writers}
    for top, left, found in blended(predict, source.height, source.width, grid):
        window = Window(left, top, found.shape[2], found.shape[1])
        valid = source.dataset_mask(window=window) > 0
        for kind, values in summarised(found).items():
            if kind in writers:
                gathered[kind].append(np.where(valid, values, IGNORE if kind == "labels" else 0).astype(np.uint8))
        if left + found.shape[2] == source.width:
            for kind, writer in writers.items():
                rows, place = np.hstack(gathered[kind]), Window(0, top, source.width, found.shape[1])
                writer.write(rows, 1, window=place)
                written[kind].append((place, zlib.crc32(rows.tobytes())))
                gathered[kind] = []
    return written


def summarised(probabilities: Array) -> dict[str, Array]:
    """Class ids, and probability and uncertainty in steps of 1/255: uint8 (H, W) each, of (K, H, W)."""
    entropy = -(probabilities * np.log(np.maximum(probabilities, 1e-12))).sum(0) / np.log(max(2, len(probabilities)))
    return {
        "labels": probabilities.argmax(0).astype(np.uint8),
        "probability": (255 * probabilities.max(0)).round().clip(0, 255).astype(np.uint8),
        "uncertainty": (255 * entropy).round().clip(0, 255).astype(np.uint8),
    }
