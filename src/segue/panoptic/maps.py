"""Panoptic maps: a class and a number for every pixel, how they come from a network's masks, and their quality.

Kirillov, He, Girshick, Rother and Dollár, *Panoptic Segmentation*, CVPR 2019, arXiv:1801.00868; masks are merged as by
Cheng, Schwing and Kirillov, *Per-Pixel Classification is Not All You Need for Semantic Segmentation*, NeurIPS 2021.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segue.data.sample import IGNORE, Array

VOID = 0  # of segment numbers


@dataclass(frozen=True)
class PanopticMap:
    """One number for every pixel, and what the numbers are.

    Args:
        ids: int32 (H, W); `VOID`, or i + 1 for segment i.
        labels: class id of each segment (N,).
        is_crowd: whether a segment is a group of objects (N,).
        scores: probability of each segment's class (N,); 1 in the truth.
    """

    ids: Array
    labels: tuple[int, ...]
    is_crowd: tuple[bool, ...] = ()
    scores: tuple[float, ...] = ()

    @classmethod
    def of(cls, masks: Array, labels: Sequence[int], is_crowd: Sequence[bool] = ()) -> "PanopticMap":
        """The map of masks bool (N, H, W) that do not overlap; of two on one pixel the later one has it."""
        ids = np.zeros(masks.shape[1:], np.int32)
        for i, mask in enumerate(masks, 1):
            ids[mask] = i
        return cls(ids, tuple(map(int, labels)), tuple(map(bool, is_crowd)) or (False,) * len(labels))

    def classes(self) -> Array:
        """Class ids uint8 (H, W), `IGNORE` where void."""
        table: Array = np.array([IGNORE, *self.labels], np.uint8)
        return table[self.ids]

    def void(self, labels: Sequence[int]) -> "PanopticMap":
        """The same map with the segments of the given classes as void."""
        kept = [i for i, label in enumerate(self.labels) if label not in labels]
        table = np.zeros(len(self.labels) + 1, np.int32)
        table[[i + 1 for i in kept]] = np.arange(1, len(kept) + 1)
        crowd = tuple(self.is_crowd[i] for i in kept) if self.is_crowd else ()
        scores = tuple(self.scores[i] for i in kept) if self.scores else ()
        return PanopticMap(table[self.ids], tuple(self.labels[i] for i in kept), crowd, scores)


# -- from masks to a map -----------------------------------------------------------------------------------------------


def merge(
    class_probabilities: Tensor,
    mask_logits: Tensor,
    things: Sequence[int],
    *,
    size: tuple[int, int],
    padded: tuple[int, int] | None = None,
    score: float = 0.8,
    mask: float = 0.5,
    overlap: float = 0.8,
) -> PanopticMap:
    """The map of one picture's queries, by the official rule.

    A query takes part where its best class is a class and its probability is above ``score``. Each pixel goes to the
    query with the highest class times mask probability. A query keeps of its pixels those where its own mask is at
    least ``mask``; it is dropped where the pixels it won are less than ``overlap`` of its mask. Segments of one class
    of stuff become one.

    Args:
        class_probabilities: (Q, K + 1), no-object last.
        mask_logits: (Q, h, w).
        things: class ids whose segments stay apart.
        size: height and width of the map, in pixels.
        padded: height and width that the mask logits stand for; ``size`` where the picture was not padded.
        score: smallest probability of a class.
        mask: smallest probability of a pixel.
        overlap: smallest share of its own mask that a query must win.
    """
    is_thing = torch.zeros(class_probabilities.shape[1], dtype=torch.bool, device=class_probabilities.device)
    is_thing[list(things)] = True
    ids, labels, scores = segments(
        class_probabilities, mask_logits, is_thing, size=size, padded=padded or size, score=score, mask=mask,
        overlap=overlap,
    )  # fmt: skip
    return PanopticMap(ids.cpu().numpy(), tuple(labels.tolist()), (False,) * len(labels), tuple(scores.tolist()))


def segments(
    class_probabilities: Tensor,
    mask_logits: Tensor,
    is_thing: Tensor,
    *,
    size: tuple[int, int],
    padded: tuple[int, int],
    score: float,
    mask: float,
    overlap: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """`merge` in tensors alone, so that exported graphs hold it: ids int32 (H, W), labels (N,), scores (N,).

    ``is_thing`` is bool (K + 1,). The others are as there.
    """
    void = class_probabilities.shape[1] - 1
    scores, labels = class_probabilities.float().max(1)
    kept = ((labels < void) & (scores > score)).nonzero()[:, 0]
    # One more, of no class, that wins no pixel: there is always one, also in an exported graph.
    scores = torch.cat([scores[kept], scores.new_zeros(1)])  # (N,)
    labels = torch.cat([labels[kept], labels.new_full((1,), void)])
    masks = torch.cat([mask_logits[kept].float(), mask_logits.new_full((1, *mask_logits.shape[1:]), -1e4).float()])
    full = F.interpolate(masks[None], size=padded, mode="bilinear", align_corners=False)[0]
    probabilities = full[:, : size[0], : size[1]].sigmoid()
    winner = (probabilities * scores[:, None, None]).argmax(0)  # (H, W)
    is_on = probabilities >= mask
    own = is_on.gather(0, winner[None])[0]
    none = torch.zeros_like(labels)
    won = none.scatter_add(0, winner.flatten(), torch.ones_like(winner).flatten())
    left = none.scatter_add(0, winner.flatten(), own.flatten().to(none.dtype))
    is_sound = (left > 0) & (won >= overlap * is_on.flatten(1).sum(1))
    # The first sound query of a class of stuff stands for all of them, a thing for itself.
    places = torch.arange(labels.shape[0], device=labels.device)
    is_same = (labels[:, None] == labels[None]) & is_sound[None]
    first = torch.where(is_same, places[None], labels.shape[0] - 1).amin(1)
    first = torch.where(is_thing[labels], places, first)
    leads = is_sound & (first == places)
    numbers = torch.where(is_sound, leads.cumsum(0)[first], VOID)
    chosen = leads.nonzero()[:, 0]
    return torch.where(own, numbers[winner], VOID).to(torch.int32), labels[chosen], scores[chosen]


# -- quality -----------------------------------------------------------------------------------------------------------


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


def nan_mean(values: Array) -> float:
    """The mean of what is not NaN; NaN if nothing is."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan


def quality_scores(
    quality: PanopticQuality, classes: Sequence[str], groups: Mapping[str, Sequence[int]]
) -> dict[str, float]:
    """``pq``, ``sq``, ``rq``, the same of each group as ``pq/GROUP``, and ``pq/CLASS``; all in [0, 1] or NaN."""
    scores = quality.mean()
    for name, chosen in groups.items():
        scores |= {f"{kind}/{name}": value for kind, value in quality.mean(chosen).items()}
    scores |= {f"pq/{name}": float(value) for name, value in zip(classes, quality.by_class()["pq"], strict=True)}
    return scores
