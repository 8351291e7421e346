"""Whole scenes from disk to disk: windows are read, predicted and written; the file is never in memory as a whole."""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from segue.data.sample import IGNORE, Array, Color, DataError
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
            try:
                _stream(source, writers, probabilities, grid, bands)
            except rasterio.errors.RasterioIOError as error:
                raise DataError(f"{path} cannot be read to its end ({error}); copy it again") from None
            size = (source.width, source.height)
        for kind in sorted(targets, key=lambda k: k == "labels"):  # labels last: they say that the scene is done
            os.replace(partial[kind], targets[kind])
        return size
    finally:
        for left in partial.values():
            left.unlink(missing_ok=True)


def _stream(source: Any, writers: dict[str, Any], probabilities: Probabilities, grid: Grid, bands: int) -> None:
    """Windows in, rows of blocks out: each block is written once."""
    from rasterio.windows import Window

    def predict(top: int, left: int, rows: int, columns: int) -> Array:
        return probabilities(source.read(list(range(1, bands + 1)), window=Window(left, top, columns, rows)))

    gathered: dict[str, list[Array]] = {kind: [] for kind in writers}
    for top, left, found in blended(predict, source.height, source.width, grid):
        window = Window(left, top, found.shape[2], found.shape[1])
        valid = source.dataset_mask(window=window) > 0
        for kind, values in summarised(found).items():
            if kind in writers:
                gathered[kind].append(np.where(valid, values, IGNORE if kind == "labels" else 0).astype(np.uint8))
        if left + found.shape[2] == source.width:
            for kind, writer in writers.items():
                writer.write(np.hstack(gathered[kind]), 1, window=Window(0, top, source.width, found.shape[1]))
                gathered[kind] = []


def summarised(probabilities: Array) -> dict[str, Array]:
    """Class ids, and probability and uncertainty in steps of 1/255: uint8 (H, W) each, of (K, H, W)."""
    entropy = -(probabilities * np.log(np.maximum(probabilities, 1e-12))).sum(0) / np.log(max(2, len(probabilities)))
    return {
        "labels": probabilities.argmax(0).astype(np.uint8),
        "probability": (255 * probabilities.max(0)).round().clip(0, 255).astype(np.uint8),
        "uncertainty": (255 * entropy).round().clip(0, 255).astype(np.uint8),
    }
