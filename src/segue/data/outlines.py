"""Label maps that are not stored as such: segments of a panoptic PNG, and objects given by polygons or run lengths.

Panoptic PNGs hold segment ids as R + 256 G + 65536 B (Kirillov et al., *Panoptic Segmentation*, CVPR 2019). Run lengths
count pixels column by column, first those outside, as COCO's (Lin et al., *Microsoft COCO*, ECCV 2014).
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

from segue.data.sample import IGNORE, Array
from segue.errors import DataError


@dataclass(frozen=True)
class Segment:
    """A region of a panoptic PNG.

    Args:
        id: what its pixels hold.
        label: its class id, `IGNORE` for none.
        is_crowd: a group of objects.
        area: its pixels as the annotation states them, None where it states none.
    """

    id: int
    label: int
    is_crowd: bool = False
    area: int | None = None


@dataclass(frozen=True)
class Outline:
    """One object: polygons, or run lengths.

    Args:
        label: its class id, `IGNORE` for none.
        polygons: each x0, y0, x1, y1, … in pixels; kept as arrays, which take a quarter of the memory.
        runs: lengths, in turn outside and inside, down the columns; used where there are no polygons.
        is_crowd: a group of objects.
        covers_centers: polygons cover the pixels whose centres they hold, as COCO's do; else all that Pillow draws,
            which are the pixels of their edges too.
    """

    label: int
    polygons: tuple[Sequence[float], ...] = field(default=(), hash=False)
    runs: Sequence[int] = field(default=(), hash=False)
    is_crowd: bool = False
    covers_centers: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "polygons", tuple(map(packed, self.polygons)))
        object.__setattr__(self, "runs", array("q", self.runs) if self.runs else ())


def packed(polygon: Sequence[float]) -> "array[float]":
    """A polygon's numbers, 8 bytes each."""
    return polygon if isinstance(polygon, array) else array("d", polygon)


def segment_ids(image: Image.Image) -> Array:
    """Segment ids int64 (H, W) of a panoptic PNG."""
    pixels = np.asarray(image.convert("RGB")).astype(np.int64)
    ids: Array = pixels[..., 0] + 256 * pixels[..., 1] + 65536 * pixels[..., 2]
    return ids


def class_map(ids: Array, segments: Sequence[Segment]) -> Image.Image:
    """Class ids of a panoptic PNG's segment ids (H, W); `IGNORE` for 0 and for ids that no segment has."""
    values, place = np.unique(ids, return_inverse=True)
    labels = {segment.id: segment.label for segment in segments}
    table = np.array([labels.get(int(value), IGNORE) for value in values], np.uint8)
    return Image.fromarray(table[place].reshape(ids.shape))


def draw(size: tuple[int, int], outlines: Sequence[Outline], background: int) -> Image.Image:
    """Class ids of outlined objects on a picture of ``size`` (width, height); later objects cover earlier ones."""
    canvas = Image.new("L", size, background)
    pen = ImageDraw.Draw(canvas)
    for outline in outlines:
        for polygon in outline.polygons:
            if outline.covers_centers:
                corner, mask = centers_inside(polygon, size)
                canvas.paste(outline.label, corner, mask=Image.fromarray(mask))
            else:
                pen.polygon(list(polygon), fill=outline.label, outline=outline.label)
        if not outline.polygons and outline.runs:
            canvas.paste(outline.label, mask=Image.fromarray(run_mask(outline.runs, size).astype(np.uint8) * 255))
    return canvas


def centers_inside(polygon: Sequence[float], size: tuple[int, int]) -> tuple[tuple[int, int], Array]:
    """Which pixels of a picture of ``size`` (width, height) have their centres in a polygon, by the even-odd rule.

    A centre on a left or an upper edge lies inside, on others it does not: polygons with a common edge share no pixel.

    Returns:
        (column, row) of the corner of the box around them, and that box, uint8 (h, w): 255 inside, 0 outside.
    """
    points = np.reshape(polygon, (-1, 2)) - 0.5  # centres have whole numbers now
    nexts = np.roll(points, -1, 0)
    is_upward = (points[:, 1] > nexts[:, 1])[:, None]
    upper, lower = np.where(is_upward, nexts, points), np.where(is_upward, points, nexts)
    first, last = (np.ceil(ends[:, 1]).clip(0, size[1]).astype(np.int64) for ends in (upper, lower))
    edge = np.repeat(np.arange(len(points)), last - first)  # once for each row of centres that it crosses
    if not len(edge):
        return (0, 0), np.zeros((0, 0), np.uint8)
    row = np.arange(len(edge)) - (np.cumsum(last - first) - last)[edge]
    slope = (lower - upper)[edge]
    crossing = upper[edge, 0] + (row - upper[edge, 1]) * slope[:, 0] / slope[:, 1]
    column = np.ceil(crossing).clip(0, size[0]).astype(np.int64)  # from here on the other side
    top, left = int(row.min()), int(column.min())
    height, width = int(row.max()) - top + 1, int(column.max()) - left
    crossed = np.bincount((row - top) * (width + 1) + column - left, minlength=height * (width + 1))
    parity = (crossed & 1).astype(np.uint8).reshape(height, width + 1)
    return (left, top), np.bitwise_xor.accumulate(parity, 1)[:, :-1] * np.uint8(255)


def run_mask(runs: Sequence[int], size: tuple[int, int]) -> Array:
    """Run lengths as bool (H, W) of a picture of ``size`` (width, height).

    Raises:
        DataError: the runs do not fill the picture.
    """
    width, height = size
    if min(runs, default=0) < 0 or sum(runs) != width * height:
        raise DataError(f"run lengths sum to {sum(runs)}, not to the {width * height} pixels of the picture")
    inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return inside.reshape(width, height).T


def parse_runs(text: str) -> tuple[int, ...]:
    """COCO's compressed run lengths: base-32 digits from '0' on, 5 bits each, later runs as differences.

    Raises:
        DataError: the text is cut short or holds another character.
    """
    runs: list[int] = []
    value, shift = 0, 0
    for character in text:
        digit = ord(character) - 48
        if not 0 <= digit < 64 or shift > 60:
            raise DataError(f"run lengths hold {character!r}, which is no digit of COCO's code")
        value |= (digit & 31) << shift
        shift += 5
        if not digit & 32:
            if digit & 16:
                value -= 1 << shift
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value, shift = 0, 0
    if shift:
        raise DataError("run lengths end in the middle of a number")
    return tuple(runs)
