"""How a panoptic model is run over a data set, and the scores that come of it."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from segue.data.panoptic import PanopticWhole
from segue.data.panoptic_map import PanopticMap
from segue.evaluation import evaluating, none_for_nan
from segue.models.mask_classifier import MaskClassifier, padded_size
from segue.panoptic.merging import merge
from segue.panoptic.quality import PanopticQuality, quality_scores
from segue.text import percent

# How `panoptic_map` merges masks, and exported files too; see `segue.panoptic.merging.merge`.
SCORE = 0.5  # the official 0.8 suits networks trained for days
MASK = 0.5
OVERLAP = 0.8


@dataclass
class PanopticMeasured:
    """What a panoptic model did on a data set.

    Args:
        classes: names by id.
        things: ids of the countable ones.
        quality: over all pictures.
        by_image: (name, panoptic quality of that picture), in the order of the data.
        split: what was measured on, in words; empty where that is said elsewhere.
    """

    classes: tuple[str, ...]
    things: tuple[int, ...]
    quality: PanopticQuality
    by_image: list[tuple[str, float]] = field(default_factory=list)
    split: str = ""

    def scores(self) -> dict[str, float]:
        """``pq``, ``sq``, ``rq``, the same of ``things`` and ``stuff``, and ``pq/CLASS``; in [0, 1]."""
        stuff = tuple(i for i in range(len(self.classes)) if i not in self.things)
        return quality_scores(self.quality, self.classes, {"things": self.things, "stuff": stuff})

    def plain(self) -> dict[str, Any]:
        """Everything as JSON can hold it; NaN is null."""
        parts = {name: getattr(self.quality, name).tolist() for name in ("iou", "hits", "false", "missed")}
        return {
            "classes": list(self.classes),
            "scores": {name: none_for_nan(value) for name, value in self.scores().items()},
            "quality": parts,
            "images": [{"name": name, "pq": none_for_nan(value)} for name, value in self.by_image],
        }

    def line(self) -> str:
        """The panoptic quality in words."""
        scores, count = self.scores(), len(self.by_image)
        shown = ", ".join(f"{name} {percent(scores[f'pq/{name}'])}" for name in ("things", "stuff"))
        return f"PQ {percent(scores['pq'])} ({shown}) on {count} image{'' if count == 1 else 's'}"


@torch.inference_mode()
def panoptic_map(model: MaskClassifier, image: Tensor, *, score: float = SCORE) -> PanopticMap:
    """The map of one picture (bands, H, W)."""
    found = model(image[None].to(next(model.parameters()).device))
    size, padded = (image.shape[-2], image.shape[-1]), padded_size(image)
    probabilities = found.classes[0].float().softmax(1)
    return merge(
        probabilities, found.masks[0], model.spec.things, size=size, padded=padded,
        score=score, mask=MASK, overlap=OVERLAP,
    )  # fmt: skip


def measure_panoptic(
    model: MaskClassifier,
    data: PanopticWhole,
    *,
    future: Collection[int] = (),
    others: bool = False,
) -> PanopticMeasured:
    """Runs ``model`` over every picture of ``data``, at its own size, in float32.

    Args:
        model: left in the mode it was in.
        data: pictures with their maps; class ids are the model's.
        future: class ids that the model does not know yet; their segments are void.
        others: the data's class id K, one beyond the model's, marks segments of classes that the model lacks. Pixels of
            them in a mask are wrong, as they would be of a model that knows these classes; void would forgive them.
    """
    count = len(model.spec.classes)
    measured = PanopticMeasured(model.spec.classes, model.spec.things, PanopticQuality(count))
    with evaluating(model):
        for i in range(len(data)):
            sample = data[i]
            alone = PanopticQuality(count + others)
            truth = sample["truth"].void(future) if future else sample["truth"]
            alone.update(truth, panoptic_map(model, sample["image"]))
            alone = alone.first(count)
            measured.quality += alone
            measured.by_image.append((sample["name"], alone.mean()["pq"]))
    return measured
