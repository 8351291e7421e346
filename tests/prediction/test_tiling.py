"""Tiles: what is blended, that a picture is covered once, and how little is in memory."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.errors import UsageError
from segue.prediction.tiling import Grid, blended

SIZES = st.integers(1, 150)


def dense(predict, height: int, width: int, grid: Grid) -> np.ndarray:  # type: ignore[no-untyped-def]
    """The same with all of it in memory: weighted sums over sums of weights."""
    total = weight = 0.0
    for top in grid.starts(height):
        for left in grid.starts(width):
            first, begin = min(top, max(0, height - grid.tile)), min(left, max(0, width - grid.tile))
            rows, columns = min(grid.tile, height - first), min(grid.tile, width - begin)
            found = predict(first, begin, rows, columns)[:, top - first :, left - begin :]
            w = grid.weights(top, height)[:, None] * grid.weights(left, width)
            padding = ((top, height - top - found.shape[1]), (left, width - left - found.shape[2]))
            total = total + np.pad(found * w, ((0, 0), *padding))
            weight = weight + np.pad(w, padding)
    np.testing.assert_allclose(weight, 1, atol=1e-6)
    return total / weight


@settings(max_examples=40, deadline=None)
@given(SIZES, SIZES, st.sampled_from([(32, 0), (32, 16), (64, 16), (64, 32)]))
def test_windows_cover_a_picture_once_and_are_what_the_dense_form_gives(
    height: int, width: int, grid: tuple[int, int]
) -> None:
    def predict(top: int, left: int, rows: int, columns: int) -> np.ndarray:
        assert 0 <= top <= top + rows <= height
        assert 0 <= left <= left + columns <= width
        return np.random.default_rng((top, left)).random((2, rows, columns), np.float32)  # tiles that disagree

    result, seen = np.zeros((2, height, width)), np.zeros((height, width), int)
    for top, left, found in blended(predict, height, width, Grid(*grid)):
        result[:, top : top + found.shape[1], left : left + found.shape[2]] = found
        seen[top : top + found.shape[1], left : left + found.shape[2]] += 1
    assert (seen == 1).all()
    np.testing.assert_allclose(result, dense(predict, height, width, Grid(*grid)), atol=3e-4)  # rows shared in 16 bits


def test_seams_by_hand() -> None:
    """Two tiles of 32 over 48 columns that say 0 and 1: the change is a line over the 16 columns they share."""

    def predict(top: int, left: int, rows: int, columns: int) -> np.ndarray:
        return np.full((1, rows, columns), float(left > 0), np.float32)

    found = np.concatenate([w for _, _, w in blended(predict, 8, 48, Grid(32, 16))], 2)[0]
    expected = np.concatenate([np.zeros(16), (np.arange(16) + 0.5) / 16, np.ones(16)])
    np.testing.assert_allclose(found, np.tile(expected, (8, 1)), atol=1e-6)


@pytest.mark.parametrize(("tile", "overlap"), [(16, 0), (100, 16), (64, 48), (64, -16), (64, 10)])
def test_tiles_that_cannot_be_blended_are_refused(tile: int, overlap: int) -> None:
    with pytest.raises(UsageError, match=f"{overlap}"):
        Grid(tile, overlap)


MEASURE = """
import resource, sys
import numpy as np, rasterio, torch
from pathlib import Path
from segue.prediction.scenes import write_scene
from segue.prediction.tiling import Grid
torch.set_num_threads(1)
def run(size, name):
    folder = Path(sys.argv[1])
    profile = dict(driver="GTiff", width=size, height=size, count=3, dtype="uint8", tiled=True, compress="deflate")
    with rasterio.open(folder / name, "w", **profile) as file:
        for top in range(0, size, 256):
            rows = min(256, size - top)
            file.write(np.full((3, rows, size), top % 251, np.uint8), window=((top, top + rows), (0, size)))
    def probabilities(pixels):
        return np.stack([pixels[0] / 255.0, 1 - pixels[0] / 255.0, 0 * pixels[0]]).astype(np.float32)
    targets = {"labels": folder / ("out_" + name)}
    write_scene(folder / name, targets, probabilities, Grid(), bands=3, colors=((0, 0, 0),) * 3)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
run(600, "warm.tif")
before = run(1200, "small.tif")
print(run(7000, "large.tif") - before)
"""


@pytest.mark.slow
def test_a_scene_takes_no_more_memory_than_a_small_one(tmp_path: Path) -> None:
    """49 MP: 147 MB of pixels and 588 MB of probabilities, of which 7000 x 64 x 3 floats are kept at a time."""
    pytest.importorskip("rasterio", reason="the extra tiles is not installed")
    done = subprocess.run([sys.executable, "-c", MEASURE, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 24  # MiB: 15, and 31 when the class map was read back with all the cache GDAL likes


def test_one_tile_is_the_whole_picture() -> None:
    torch.manual_seed(0)
    found = list(blended(lambda *_: np.full((2, 20, 30), 0.5, np.float32), 20, 30, Grid(32, 16)))
    assert [(top, left, window.shape) for top, left, window in found] == [(0, 0, (2, 20, 30))]
