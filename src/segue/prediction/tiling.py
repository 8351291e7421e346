"""Pictures of any size through a network in overlapping tiles whose seams are blended, with a small part in memory.

Weights fall linearly to 0 over the overlap of two tiles, so that they add up to 1 in every pixel: where tiles agree the
result is what each of them says, and it changes nowhere at once.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from segue.data.sample import Array
from segue.errors import UsageError


@dataclass(frozen=True)
class Grid:
    """How a picture is cut.

    Args:
        tile: side of a tile, in pixels.
        overlap: pixels that neighbours share, at most half of ``tile``.

    Raises:
        UsageError: tiles that cannot be blended.
    """

    tile: int = 512
    overlap: int = 64

    def __post_init__(self) -> None:
        if self.tile < 32 or self.tile % 16 or self.overlap % 16:
            raise UsageError(f"--tile {self.tile} --overlap {self.overlap}: both must be multiples of 16, --tile >= 32")
        if not 0 <= 2 * self.overlap <= self.tile:
            raise UsageError(f"--overlap {self.overlap}: give at most half of --tile {self.tile}")

    @property
    def step(self) -> int:
        """From one tile to the next."""
        return self.tile - self.overlap

    def starts(self, size: int) -> list[int]:
        """Where tiles begin along a side of ``size`` pixels."""
        return [0] if size <= self.tile else list(range(0, size - self.overlap, self.step))

    def weights(self, start: int, size: int) -> Array:
        """Of the pixels of the tile at ``start`` along a side of ``size`` pixels: float32, up to ``tile`` of them."""
        weights = np.ones(min(self.tile, size - start), np.float32)
        ramp = (np.arange(self.overlap, dtype=np.float32) + 0.5) / max(self.overlap, 1)
        if start > 0:
            weights[: self.overlap] = ramp
        if self.overlap and start + self.tile < size:
            weights[-self.overlap :] = ramp[::-1]
        return weights


Predict = Callable[[int, int, int, int], Array]
"""Probabilities float32 (K, rows, columns) of the window (top, left, rows, columns); the array is written to."""


def blended(predict: Predict, height: int, width: int, grid: Grid) -> Iterator[tuple[int, int, Array]]:
    """Finished windows, row by row: (top, left, probabilities (K, rows, columns)). They cover the picture once.

    In memory are one tile and, over the width of the picture, the rows that two rows of tiles share: a window takes
    what the row above left in its columns, and leaves its own lower rows in their place, in 16 bits: rounded by less
    than 0.0003.
    """
    tops, lefts = grid.starts(height), grid.starts(width)
    shared: Array | None = None
    for top in tops:
        rows = grid.weights(top, height)
        beside: Array | None = None
        for left in lefts:
            found = _whole_tile(predict, top, left, height, width, grid)
            _fade(found, rows, grid.weights(left, width), grid.overlap)
            if beside is not None:
                found[:, :, : grid.overlap] += beside
            if left != lefts[-1]:
                beside, found = found[:, :, grid.step :].copy(), found[:, :, : grid.step]
            columns = slice(left, left + found.shape[2])
            if top > 0 and shared is not None:
                found[:, : grid.overlap] += shared[:, : found.shape[1], columns]
            if top != tops[-1]:
                if shared is None:
                    shared = np.empty((len(found), grid.overlap, width), np.float16)
                shared[:, :, columns] = found[:, grid.step :]
                found = found[:, : grid.step]
            yield top, left, found
            del found  # not kept while the next one is predicted


def _fade(found: Array, rows: Array, columns: Array, overlap: int) -> None:
    """Weighs a tile in place. Only what is shared with a neighbour weighs less than 1."""
    for part in (slice(0, overlap), slice(max(overlap, len(rows) - overlap), None)):
        if (rows[part] < 1).any():
            found[:, part] *= rows[part, None]
    for part in (slice(0, overlap), slice(max(overlap, len(columns) - overlap), None)):
        if (columns[part] < 1).any():
            found[:, :, part] *= columns[part]


def _whole_tile(predict: Predict, top: int, left: int, height: int, width: int, grid: Grid) -> Array:
    """The tile at (top, left). At the far edges it is predicted with what lies before it, so that it has context."""
    first, begin = min(top, max(0, height - grid.tile)), min(left, max(0, width - grid.tile))
    rows, columns = min(grid.tile, height - first), min(grid.tile, width - begin)
    found = predict(first, begin, rows, columns)
    return np.asarray(found[:, top - first :, left - begin :], np.float32)
