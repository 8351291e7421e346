"""Class maps as run lengths (COCO) and as polygons with holes (GeoJSON)."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segue.data.sample import IGNORE, Array
from segue.extras import require
from segue.run import write_atomically


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

    Raises:
        UsageError: the extra ``tiles`` is not installed.
    """
    rasterio = require("rasterio", "tiles")
    from rasterio.features import shapes

    warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning)  # then they are in pixels
    with rasterio.open(source) as raster:
        found = [
            {"type": "Feature", "geometry": outline, "properties": {"class": classes[int(i)], "class_id": int(i)}}
            for outline, i in shapes(rasterio.band(raster, 1), transform=raster.transform)
            if i != IGNORE
        ]
        crs = raster.crs.to_string() if raster.crs else "pixels"
    content = {"type": "FeatureCollection", "crs_name": crs, "features": found}
    write_atomically(path, json.dumps(content).encode())
