"""Small panoptic sets for tests: discs, bars and squares that are told apart, on a ground, in the canonical folder."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

if TYPE_CHECKING:
    from segue.models.mask_classifier import MaskClassifier

SHAPES = ("ground", "disc", "bar", "square")
OBJECTS = SHAPES[1:]
PAINT = {"ground": (90, 90, 90), "disc": (210, 40, 40), "bar": (40, 40, 210), "square": (40, 200, 60)}
# The smallest network and the shortest training that go through every line.
TINY = {
    "encoder": "test_efficientnet",
    "init": "random",
    "queries": 8,
    "points": 64,
    "crop": 64,
    "batch": 2,
    "steps": 3,
}


def untrained_panoptic() -> "MaskClassifier":
    """A network of `SHAPES` that finds segments: no object is rare."""
    from segue.models.mask_classifier import MaskClassifier, MaskClassifierSpec

    torch.manual_seed(0)
    sizes = {"width": 32, "queries": 7, "pixel_layers": 1, "decoder_layers": 1, "feedforward": 32}
    colors = tuple(PAINT[name] for name in SHAPES)
    model = MaskClassifier(MaskClassifierSpec("test_efficientnet", SHAPES, colors, (1, 2, 3), **sizes)).eval()  # type: ignore[arg-type]
    torch.nn.init.normal_(model.head.weight, std=2.0)
    with torch.no_grad():
        model.head.bias[-1] = -4.0
    return model


def draw(index: int, shapes: Sequence[str] = SHAPES, size: int = 64) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A picture of two discs, a bar and a square, of those asked for: image, class ids by `SHAPES`, object numbers."""
    rng = np.random.default_rng(index)
    y, x = np.mgrid[:size, :size]
    mask, objects = np.zeros((size, size), np.uint8), np.zeros((size, size), np.uint16)
    number = 0
    for shape in ("disc", "disc", "bar", "square"):
        cy, cx = rng.integers(size // 5, 4 * size // 5, 2)
        tall = size // 4 if shape == "bar" else size // 8
        inside = (
            (y - cy) ** 2 + (x - cx) ** 2 < (size // 7) ** 2
            if shape == "disc"
            else (abs(y - cy) < tall) & (abs(x - cx) < size // 9)
        )
        if shape in shapes:
            number += 1
            mask[inside], objects[inside] = SHAPES.index(shape), number
    paint = np.array([PAINT[shape] for shape in SHAPES])[mask] + rng.normal(0, 12, (size, size, 3))
    return paint.clip(0, 255).astype(np.uint8), mask, objects


def write_objects(
    root: Path,
    classes: Sequence[str] = SHAPES,
    *,
    shapes: Sequence[str] = SHAPES,
    train: int = 6,
    val: int = 2,
    size: int = 64,
    instances: bool = True,
    first: int = 0,
) -> Path:
    """A set whose masks hold ``classes`` alone: what else is drawn is unknown there.

    Args:
        root: new.
        classes: in the order of their ids; all but the ground are things.
        shapes: that the pictures show.
        train, val: numbers of pictures.
        size: of their sides.
        instances: whether objects are numbered.
        first: number of the first picture; another gives other pictures.
    """
    for kind in ("images", "labels", *["instances"] * instances):
        (root / kind).mkdir(parents=True)
    table = np.array([classes.index(shape) if shape in classes else 255 for shape in SHAPES], np.uint8)
    names = [f"p{first + i:04d}" for i in range(train + val)]
    for i, name in enumerate(names):
        image, mask, objects = draw(first + i, shapes, size)
        Image.fromarray(image).save(root / "images" / f"{name}.png")
        Image.fromarray(table[mask]).save(root / "labels" / f"{name}.png")
        if instances:
            Image.fromarray(objects).save(root / "instances" / f"{name}.png")
    described = {
        "classes": list(classes),
        "colors": [PAINT[name] for name in classes],
        "things": [i for i, name in enumerate(classes) if name != "ground"],
        "splits": {"train": names[:train], "val": names[train:]},
    }
    (root / "dataset.json").write_text(json.dumps(described))
    return root


def options(**changes: object) -> list[str]:
    """`TINY` with changes, as command-line options."""
    return [f"--{name}={value}" for name, value in {**TINY, **changes}.items()]
