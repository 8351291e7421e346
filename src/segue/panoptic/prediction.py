"""A panoptic model over pictures: COCO's panoptic format, and overlays."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from PIL.PngImagePlugin import PngInfo

from segue.data.listing import Pair
from segue.data.panoptic_map import PanopticMap
from segue.data.sample import UNREADABLE, Array, Color
from segue.data.tones import read_rgb
from segue.disk import whole, write_atomically
from segue.errors import DataError
from segue.models.mask_classifier import MaskClassifier, MaskClassifierSpec
from segue.panoptic.evaluation import panoptic_map
from segue.prediction.pictures import Account, overlay, place, save_jpeg

SEGMENTS = "segue:segments"  # name of the text in a PNG: COCO's segments_info


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
) -> Account:
    """Writes ``out/panoptic/NAME.png`` in COCO's format, with its segments as a text of the PNG, and overlays.

    A picture whose PNG is there already is passed over: the PNG is written last. Category ids are the model's class
    ids, from 0 on.
    """
    account = Account()
    for pair in pairs:
        target = place(out, "panoptic", pair.name, ".png")
        try:
            if target.exists():
                account.there += 1
            else:
                _write_picture(model, pair, target, out, overlays)
                account.written += 1
        except DataError as error:
            account.failed[str(pair.image)] = str(error)
        tick()
    return account


def _write_picture(model: MaskClassifier, pair: Pair, target: Path, out: Path, overlays: bool) -> None:
    """Both files of a picture, the map last."""
    found = next(predict_panoptic(model, [pair]))
    if overlays:
        save_jpeg(outlined(found.image, found.map, model.spec.colors), place(out, "overlays", pair.name, ".jpg"))
    with whole(target) as path:
        write_map(found.map, path)


def write_map(found: PanopticMap, target: Path | IO[bytes], *, level: int = 6) -> None:
    """The map as a PNG in COCO's format, its segments as a text in it; ``level`` of zlib."""
    text = PngInfo()
    text.add_text(SEGMENTS, json.dumps(segments_info(found)))
    Image.fromarray(as_colors(found.ids)).save(target, "PNG", pnginfo=text, compress_level=level)


def write_coco(pairs: Sequence[Pair], out: Path, spec: MaskClassifierSpec) -> None:
    """Writes ``out/panoptic.json``, COCO's description of the maps in ``out/panoptic``, earlier ones among them.

    Raises:
        DataError: a map there is damaged or none of ours.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for pair in pairs:
        path = out / "panoptic" / f"{pair.name}.png"
        if not path.is_file():
            continue
        try:
            with Image.open(path, formats=("PNG",)) as image:
                (width, height), segments = image.size, json.loads(image.info[SEGMENTS])
        except (*UNREADABLE, KeyError, TypeError):
            raise DataError(f"{path} is damaged or was not written here; delete it and predict again") from None
        number = len(images) + 1
        images.append({"id": number, "file_name": f"{pair.name}{pair.image.suffix}", "width": width, "height": height})
        annotations.append({"image_id": number, "file_name": f"{pair.name}.png", "segments_info": segments})
    categories = [
        {"id": i, "name": name, "isthing": int(i in spec.things), "color": list(spec.colors[i])}
        for i, name in enumerate(spec.classes)
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_atomically(out / "panoptic.json", json.dumps(content).encode())


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
