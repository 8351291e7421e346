"""``segue compare``: where two models disagree on images without labels, by class and in pictures; one offline page."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segue.data.listing import Pair
from segue.data.panoptic_map import PanopticMap
from segue.data.sample import Array, Color
from segue.data.tones import read_rgb
from segue.disk import write_atomically
from segue.errors import DataError
from segue.models.mask_classifier import MaskClassifier
from segue.panoptic.evaluation import panoptic_map
from segue.panoptic.prediction import outlined
from segue.prediction.pictures import overlay, predict_image
from segue.report.pictures import jpeg
from segue.text import page
from segue.weights import AnyModel

VOID = "(void)"  # pixels of no segment
SHOWN = 12  # pictures on the page


@dataclass
class Disagreement:
    """What two models say of the same images; classes are matched by name.

    Args:
        names: of both, the old model's first, `VOID` last.
        colors: of the names but the last.
        new: names that the old model lacks.
        pixels: by what the old and what the new model says (N, N).
        by_image: (name, share of pixels on which they disagree).
        failed: why images were not compared, by path.
    """

    names: tuple[str, ...]
    colors: tuple[Color, ...]
    new: tuple[str, ...]
    pixels: Array = field(init=False)
    by_image: list[tuple[str, float]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pixels = np.zeros((len(self.names), len(self.names)), np.int64)

    @classmethod
    def of(cls, old: AnyModel, new: AnyModel) -> "Disagreement":
        """Of two models, still without images.

        Raises:
            DataError: they share no class.
        """
        more = tuple(name for name in new.spec.classes if name not in old.spec.classes)
        if len(more) == len(new.spec.classes):
            raise DataError(
                f"the models share no class: {', '.join(old.spec.classes)} and {', '.join(new.spec.classes)}"
            )
        colors = dict(zip((*new.spec.classes, *old.spec.classes), (*new.spec.colors, *old.spec.colors), strict=True))
        names = (*old.spec.classes, *more)
        return cls((*names, VOID), tuple(colors[name] for name in names), more)

    def add(self, name: str, old: Array, new: Array) -> None:
        """Counts one image, from places in ``names`` (H, W) of both models."""
        count = len(self.names)
        self.pixels += np.bincount((old * count + new).ravel(), minlength=count**2).reshape(count, count)
        self.by_image.append((name, float((old != new).mean())))

    def share(self) -> float:
        """Share of all pixels on which the two disagree."""
        return 1 - float(np.trace(self.pixels)) / max(1, int(self.pixels.sum()))

    def rows(self) -> list[dict[str, Any]]:
        """Of each name that either model says: pixels of both, the share kept, and where most of the others went."""
        found = []
        for i, name in enumerate(self.names):
            old, new, same = int(self.pixels[i].sum()), int(self.pixels[:, i].sum()), int(self.pixels[i, i])
            if not old and not new:
                continue
            went, came = self.pixels[i].copy(), self.pixels[:, i].copy()
            went[i] = came[i] = 0
            found.append({
                "name": name, "is_new": name in self.new, "old": old, "new": new, "kept": same / old if old else None,
                "went": (self.names[int(went.argmax())], went.max() / old) if went.any() else None,
                "came": (self.names[int(came.argmax())], came.max() / new) if came.any() else None,
            })  # fmt: skip
        return found

    def plain(self) -> dict[str, Any]:
        """Everything as JSON can hold it."""
        return {
            "classes": list(self.names),
            "new": list(self.new),
            "disagreement": self.share(),
            "pixels": self.pixels.tolist(),
            "images": [{"name": name, "disagreement": share} for name, share in self.by_image],
            "failed": self.failed,
        }


def compare_models(
    old: AnyModel, new: AnyModel, pairs: Sequence[Pair], out: Path, *, tick: Callable[[], None] = lambda: None
) -> Disagreement:
    """Runs both models over the images and writes ``out/comparison.json`` and ``out/comparison.html``.

    Args:
        old, new: in evaluation mode.
        pairs: the images.
        out: made if missing.
        tick: called after each image.

    Raises:
        DataError: they share no class, or no image can be read.
    """
    found = Disagreement.of(old, new)
    for pair in pairs:
        try:
            images = read(pair, old, new)
        except DataError as error:
            found.failed[str(pair.image)] = str(error)
        else:
            found.add(pair.name, *(seen(*each, found) for each in zip((old, new), images, strict=True)))
        tick()
    if not found.by_image:
        raise DataError(next(iter(found.failed.values()), "there is no image to compare on"))
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "comparison.json", json.dumps(found.plain()).encode())
    write_atomically(out / "comparison.html", comparison(old, new, pairs, found).encode())
    return found


def read(pair: Pair, old: AnyModel, new: AnyModel) -> tuple[Array, Array]:
    """The image uint8 (H, W, 3) for each model: where it is deeper, scaled as those that the model learnt from."""
    first = np.array(read_rgb(pair.image, old.spec.tones))
    return first, first if new.spec.tones == old.spec.tones else np.array(read_rgb(pair.image, new.spec.tones))


def says(model: AnyModel, image: Array) -> tuple[PanopticMap | None, Array]:
    """What a model says of an image: its segments, if it tells them apart, and class ids uint8 (H, W)."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    if isinstance(model, MaskClassifier):
        found = panoptic_map(model, pixels)
        return found, found.classes()
    return None, predict_image(model, pixels)[0].numpy()


def seen(model: AnyModel, image: Array, found: Disagreement) -> Array:
    """The class that a model sees at each pixel of an image (H, W), as its place in the names of the comparison."""
    return placed(model, says(model, image)[1], found)


def placed(model: AnyModel, classes: Array, found: Disagreement) -> Array:
    """Class ids of a model (H, W) as places in the names of the comparison, int64."""
    table = np.full(256, len(found.names) - 1)
    table[: len(model.spec.classes)] = [found.names.index(name) for name in model.spec.classes]
    return table[classes]


def drawn(model: AnyModel, image: Array) -> Array:
    """The image tinted as the model sees it."""
    segments, classes = says(model, image)
    if segments is not None:
        return outlined(image, segments, model.spec.colors)
    return overlay(image, classes, model.spec.colors)


def comparison(old: AnyModel, new: AnyModel, pairs: Sequence[Pair], found: Disagreement) -> str:
    """The page: classes, then the images on which the two disagree most, each as both see it."""
    by_name = {pair.name: pair for pair in pairs}
    shown = []
    for name, share in sorted(found.by_image, key=lambda item: -item[1])[:SHOWN]:
        before, image = read(by_name[name], old, new)
        first, second = seen(old, before, found), seen(new, image, found)
        gray = image.mean(2, keepdims=True).repeat(3, 2)
        differs = np.where((first != second)[..., None], (213, 94, 0), 0.5 * gray + 100).astype(np.uint8)
        panels = {"image": image, "old": drawn(old, before), "new": drawn(new, image), "where they differ": differs}
        shown.append({"name": name, "share": share, "panels": [(what, *jpeg(p)) for what, p in panels.items()]})
    named = zip(found.names[:-1], found.colors, strict=True)
    colors = {name: "#{:02x}{:02x}{:02x}".format(*color) for name, color in named}
    return page(Path(__file__).with_suffix(".html.j2"), found=found, rows=found.rows(), shown=shown, colors=colors)
