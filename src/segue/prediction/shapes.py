"""Class maps as run lengths (COCO), as polygons with holes (GeoJSON), and as polygons for LabelMe and CVAT.

LabelMe and CVAT know no holes. There a hole is joined to the outline by a line that is walked to and fro, and polygons
run through the centres of the outermost pixels: drawn as these tools and Pillow draw, they give the class map back
pixel by pixel.
"""

import contextlib
import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segue.data.labelling_files import Polygon
from segue.data.sample import IGNORE, Array
from segue.disk import write_atomically
from segue.extras import require


def run_lengths(mask: Array) -> list[int]:
    """COCO's uncompressed run lengths of a bool mask (H, W): down the columns, zeros first."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    edges = np.concatenate([[0], changes, [flat.size]])
    lengths: list[int] = np.diff(edges).tolist()
    return [0, *lengths] if flat.size and flat[0] else lengths


def write_run_lengths(path: Path, labels: Array, classes: Sequence[str]) -> None:
    """One entry for each class that is there: ``category``, ``segmentation`` (COCO), ``area`` in pixels."""
    size = list(labels.shape)
    entries: list[dict[str, Any]] = [
        {
            "category": classes[i],
            "category_id": int(i),
            "area": int((labels == i).sum()),
            "segmentation": {"size": size, "counts": run_lengths(labels == i)},
        }
        for i in np.unique(labels[labels != IGNORE])
    ]
    write_atomically(path, json.dumps(entries).encode())


def write_polygons(path: Path, source: Path, classes: Sequence[str]) -> None:
    """The regions of the label map at ``source`` as GeoJSON: polygons with holes, in its coordinates or in pixels.

    Where it lies by ground control points, corners are placed by a polynomial through them, as GDAL warps by default.

    Raises:
        UsageError: the extra ``tiles`` is not installed.
    """
    rasterio = require("rasterio", "tiles")
    from rasterio.features import shapes
    from rasterio.transform import GCPTransformer

    warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning)  # then they are in pixels
    with contextlib.ExitStack() as stack:
        raster = stack.enter_context(rasterio.open(source))
        points, crs = ([], raster.crs) if raster.crs else raster.gcps
        ground = stack.enter_context(GCPTransformer(points)) if points and crs else None
        found = [
            {
                "type": "Feature",
                "geometry": _placed(outline, ground) if ground else outline,
                "properties": {"class": classes[int(i)], "class_id": int(i)},
            }
            for outline, i in shapes(rasterio.band(raster, 1), transform=raster.transform)
            if i != IGNORE
        ]
        unnamed = "pixels" if raster.transform.is_identity and not ground else "unknown"
    name = crs.to_string() if crs else unnamed
    content = {"type": "FeatureCollection", "crs_name": name, "features": found}
    write_atomically(path, json.dumps(content).encode())


def _placed(outline: dict[str, Any], ground: Any) -> dict[str, Any]:
    """A polygon in pixels as one on the ground."""
    rings = []
    for ring in outline["coordinates"]:
        columns, rows = zip(*ring, strict=True)
        x, y = ground.xy(rows, columns, offset="ul")
        rings.append(np.stack([x, y], 1).tolist())
    return {**outline, "coordinates": rings}


# -- for labelling tools -----------------------------------------------------------------------------------------------


def outlined(labels: Array) -> Iterator[tuple[int, Array]]:
    """(class id, polygon int (V, 2) of x and y) of each region of a class map (H, W) whose pixels share sides.

    Raises:
        UsageError: the extra ``tiles`` is not installed.
    """
    require("rasterio", "tiles")
    from rasterio.features import shapes

    inside = {int(label): labels == label for label in np.unique(labels)}
    for region, label in shapes(labels, mask=labels != IGNORE, connectivity=4):
        outer, *holes = (
            centred(np.array(ring[:-1], np.int64), inside[int(label)], is_hole=i > 0)
            for i, ring in enumerate(region["coordinates"])
        )
        yield int(label), keyholed(outer, holes)


def centred(ring: Array, is_inside: Array, *, is_hole: bool) -> Array:
    """The ring (V, 2) along the edges of pixels, moved by half a pixel into the region: through centres of pixels."""
    ahead = np.sign(np.roll(ring, -1, 0) - ring)
    is_corner = (ahead != np.roll(ahead, 1, 0)).any(1)
    ring, ahead = ring[is_corner], ahead[is_corner]
    (x, y), (next_x, next_y) = ring.T, np.roll(ring, -1, 0).T
    side = 1 if ((x * next_y - next_x * y).sum() > 0) != is_hole else -1
    inward = side * np.stack([-ahead[:, 1], ahead[:, 0]], 1)
    behind, before = np.roll(ahead, 1, 0), np.roll(inward, 1, 0)
    # A pixel's centre is numbered like the pixel, half a pixel before the numbers of its far edges.
    moved: Array = ring + (before + inward - 1) // 2
    # Where the region touches itself with a corner only, the line goes straight from the one pixel to the other.
    leaving, arriving = ring + (before - behind - 1) // 2, ring + (inward + ahead - 1) // 2
    is_whole = is_inside[moved[:, 1], moved[:, 0]][:, None]
    both = np.stack([np.where(is_whole, moved, leaving), np.where(is_whole, moved, arriving)], 1)
    return both.reshape(-1, 2)


def keyholed(outer: Array, holes: Sequence[Array]) -> Array:
    """One polygon (V, 2): each hole is reached by a level line from its leftmost point to what lies left of it."""
    polygon = outer
    for hole in sorted(holes, key=lambda ring: int(ring[:, 0].min())):
        start = int(np.lexsort((hole[:, 1], hole[:, 0]))[0])
        x, y = hole[start]
        following = np.roll(polygon, -1, 0)
        low, high = np.minimum(polygon[:, 1], following[:, 1]), np.maximum(polygon[:, 1], following[:, 1])
        is_met = (polygon[:, 0] == following[:, 0]) & (polygon[:, 0] <= x) & (low <= y) & (y <= high)
        at = int(np.where(is_met, polygon[:, 0], -1).argmax())
        door = np.array([[polygon[at, 0], y]])
        around = np.concatenate([door, np.roll(hole, -start, 0), hole[start : start + 1], door])
        polygon = np.concatenate([polygon[: at + 1], around, polygon[at + 1 :]])
    is_new = (polygon != np.roll(polygon, 1, 0)).any(1)
    kept = polygon[is_new] if is_new.any() else polygon[:1]
    return np.concatenate([kept, np.repeat(kept[-1:], max(0, 3 - len(kept)), 0)])  # a polygon has three points


def named_polygons(labels: Array, classes: Sequence[str]) -> list[Polygon]:
    """`outlined` regions by the names of their classes."""
    return [(classes[label], polygon.tolist()) for label, polygon in outlined(labels)]
