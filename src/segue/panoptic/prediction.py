"""A panoptic model over pictures: COCO's panoptic format, and overlays."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter

from segue.data.listing import Pair
from segue.data.sample import Array, Color, DataError
from segue.data.tones import read_rgb
from segue.disk import whole
from segue.engine import write_atomically
from segue.models.mask_classifier import MaskClassifier
from segue.panoptic.evaluation import panoptic_map
from segue.panoptic.maps import PanopticMap
from segue.prediction import overlay, place


@dataclass(frozen=True)
class PanopticPrediction:
    """What a panoptic model says of one picture.

    Args:
        name: of the picture, without suffix; may hold a folder.
        image: uint8 (H, W, 3).
        map: its segments.
    """

    name: str
    image: Array
    map: PanopticMap


def predict_panoptic(model: MaskClassifier, pairs: Sequence[Pair]) -> Iterator[PanopticPrediction]:
    """What ``model``, put into evaluation mode, says of each picture, one at a time.

    Raises:
        DataError: a picture cannot be read.
    """
    model.eval()
    for pair in pairs:
        image = np.array(read_rgb(pair.image, model.spec.tones))
        yield PanopticPrediction(pair.name, image, panoptic_map(model, torch.from_numpy(image).permute(2, 0, 1)))


def write_panoptic(
    model: MaskClassifier,
    pairs: Sequence[Pair],
    out: Path,
    *,
    overlays: bool = True,
    tick: Callable[[], None] = lambda: None,
) -> tuple[int, dict[str, str]]:
    """Writes ``out/panoptic.json`` and ``out/panoptic/NAME.png`` in COCO's format, and overlays.

    Category ids are the model's class ids, from 0 on.

    Returns:
        How many pictures were written, and why each of the others was not, by its path.
    """
    failed: dict[str, str] = {}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for pair in pairs:
        try:
            found = next(predict_panoptic(model, [pair]))
        except DataError as error:
            failed[str(pair.image)] = str(error)
            tick()
            continue
        number, (height, width) = len(images) + 1, found.map.ids.shape
        with whole(place(out, "panoptic", pair.name, ".png")) as path:
            Image.fromarray(as_colors(found.map.ids)).save(path)
        images.append({"id": number, "file_name": f"{pair.name}{pair.image.suffix}", "width": width, "height": height})
        segments = segments_info(found.map)
        annotations.append({"image_id": number, "file_name": f"{pair.name}.png", "segments_info": segments})
        if overlays:
            tinted = outlined(found.image, found.map, model.spec.colors)
            with whole(place(out, "overlays", pair.name, ".jpg")) as path:
                Image.fromarray(tinted).save(path, quality=90)
        tick()
    categories = [
        {"id": i, "name": name, "isthing": int(i in model.spec.things), "color": list(model.spec.colors[i])}
        for i, name in enumerate(model.spec.classes)
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "panoptic.json", json.dumps(content).encode())
    return len(images), failed


def as_colors(ids: Array) -> Array:
    """Segment numbers (H, W) as R + 256 G + 65536 B: uint8 (H, W, 3)."""
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)


def segments_info(found: PanopticMap) -> list[dict[str, Any]]:
    """COCO's description of each segment; boxes are x, y, width and height."""
    described = []
    for i, label in enumerate(found.labels, 1):
        rows, columns = np.nonzero(found.ids == i)
        box = [columns.min(), rows.min(), columns.max() - columns.min() + 1, rows.max() - rows.min() + 1]
        described.append(
            {
                "id": i,
                "category_id": label,
                "area": len(rows),
                "bbox": [int(value) for value in box],
                "iscrowd": 0,
                "score": round(found.scores[i - 1], 4) if found.scores else 1.0,
            }
        )
    return described


def outlined(image: Array, found: PanopticMap, colors: Sequence[Color]) -> Array:
    """The picture tinted by class, with a white line between segments: uint8 (H, W, 3); void is left as it is."""
    tinted = np.where(found.ids[..., None] > 0, overlay(image, found.classes(), colors), image)
    coded = Image.fromarray((found.ids % 251).astype(np.uint8))
    is_edge = np.asarray(coded.filter(ImageFilter.MaxFilter(3))) != np.asarray(coded.filter(ImageFilter.MinFilter(3)))
    return np.where(is_edge[..., None], 255, tinted).astype(np.uint8)
