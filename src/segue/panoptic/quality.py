"""Panoptic quality (Kirillov, He, Girshick, Rother and Dollár, *Panoptic Segmentation*, CVPR 2019)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from segue.data.panoptic_map import PanopticMap
from segue.data.sample import Array
from segue.metrics import nan_mean


@dataclass
class PanopticQuality:
    """Panoptic quality over pictures, with the void and crowd rules of COCO's panopticapi.

    A predicted and a true segment of one class match where their IoU is above 1/2, void pixels of the truth taken out
    of the union. True crowds are never missed. A predicted segment that nothing matches is no mistake where more than
    half of it is void or crowd of its class in the truth; of several crowds of one class the last one counts, as there.

    Args:
        classes: K.
    """

    classes: int
    iou: Array = field(init=False)  # summed over matches (K,)
    hits: Array = field(init=False)
    false: Array = field(init=False)
    missed: Array = field(init=False)

    def __post_init__(self) -> None:
        self.iou = np.zeros(self.classes)
        self.hits, self.false, self.missed = (np.zeros(self.classes, np.int64) for _ in range(3))

    def __iadd__(self, other: "PanopticQuality") -> "PanopticQuality":
        self.iou += other.iou
        self.hits += other.hits
        self.false += other.false
        self.missed += other.missed
        return self

    def first(self, count: int) -> "PanopticQuality":
        """That of the first ``count`` classes alone."""
        found = PanopticQuality(count)
        for name in ("iou", "hits", "false", "missed"):
            setattr(found, name, getattr(self, name)[:count].copy())
        return found

    def update(self, truth: PanopticMap, prediction: PanopticMap) -> None:
        """Adds one picture.

        Raises:
            ValueError: the two differ in size.
        """
        if truth.ids.shape != prediction.ids.shape:
            raise ValueError(f"truth {truth.ids.shape} and prediction {prediction.ids.shape} differ in size")
        true, said = np.array(truth.labels, np.int64), np.array(prediction.labels, np.int64)
        columns = len(said) + 1
        keys = truth.ids * np.int32(columns) + prediction.ids
        shared = np.bincount(keys.ravel(), minlength=(len(true) + 1) * columns).reshape(len(true) + 1, columns)
        area, said_area = shared[1:].sum(1), shared[:, 1:].sum(0)
        inner, void = shared[1:, 1:], shared[0, 1:]
        crowd = np.array(truth.is_crowd or [False] * len(true), bool)
        union = area[:, None] + said_area[None] - inner - void[None]
        iou = inner / np.maximum(union, 1)
        match = (true[:, None] == said[None]) & ~crowd[:, None] & (iou > 0.5)
        rows, found = np.nonzero(match)
        np.add.at(self.iou, true[rows], iou[rows, found])
        np.add.at(self.hits, true[rows], 1)
        np.add.at(self.missed, true[~crowd & ~match.any(1) & (area > 0)], 1)
        excused = void.astype(np.float64)
        last = {label: i for i, (label, is_crowd) in enumerate(zip(truth.labels, crowd, strict=True)) if is_crowd}
        for i, label in enumerate(prediction.labels):
            if label in last:
                excused[i] += inner[last[label], i]
        wrong = ~match.any(0) & (said_area > 0) & (excused <= 0.5 * said_area)
        np.add.at(self.false, said[wrong], 1)

    def by_class(self) -> dict[str, Array]:
        """``pq``, ``sq`` and ``rq`` of each class (K,) in [0, 1]; NaN where neither truth nor prediction has it."""
        size = self.hits + (self.false + self.missed) / 2
        seen, hit = size > 0, self.hits > 0
        pq = np.where(seen, self.iou / np.where(seen, size, 1), np.nan)
        sq = np.where(seen, self.iou / np.where(hit, self.hits, 1), np.nan)
        rq = np.where(seen, self.hits / np.where(seen, size, 1), np.nan)
        return {"pq": pq, "sq": sq, "rq": rq}

    def mean(self, chosen: Sequence[int] | None = None) -> dict[str, float]:
        """``pq``, ``sq`` and ``rq``, each the mean over those of the chosen classes that occur; NaN if none does."""
        index = list(range(self.classes)) if chosen is None else list(chosen)
        return {name: nan_mean(values[index]) for name, values in self.by_class().items()}


def quality_scores(
    quality: PanopticQuality, classes: Sequence[str], groups: Mapping[str, Sequence[int]]
) -> dict[str, float]:
    """``pq``, ``sq``, ``rq``, the same of each group as ``pq/GROUP``, and ``pq/CLASS``; all in [0, 1] or NaN."""
    scores = quality.mean()
    for name, chosen in groups.items():
        scores |= {f"{kind}/{name}": value for kind, value in quality.mean(chosen).items()}
    scores |= {f"pq/{name}": float(value) for name, value in zip(classes, quality.by_class()["pq"], strict=True)}
    return scores
