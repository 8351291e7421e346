"""Panoptic maps: a class and a number for every pixel.

Kirillov, He, Girshick, Rother and Dollár, *Panoptic Segmentation*, CVPR 2019, arXiv:1801.00868.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

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

    def with_objects(self, numbers: Array, labels: Sequence[int], things: Collection[int]) -> "PanopticMap":
        """The same map with objects over it; those of stuff join the segment of their class.

        Args:
            numbers: (H, W), i + 1 where object i is, 0 where none is.
            labels: class id of each object.
            things: the countable classes.
        """
        found, places = list(self.labels), [VOID]
        for label in labels:
            if label in things or label not in found:
                found.append(label)
                places.append(len(found))
            else:
                places.append(found.index(label) + 1)
        ids = np.where(numbers > 0, np.array(places, np.int32)[numbers], self.ids)
        crowd = (*self.is_crowd, *(False,) * (len(found) - len(self.is_crowd)))
        return PanopticMap(ids, tuple(found), crowd)

    def void(self, labels: Sequence[int]) -> "PanopticMap":
        """The same map with the segments of the given classes as void."""
        kept = [i for i, label in enumerate(self.labels) if label not in labels]
        table = np.zeros(len(self.labels) + 1, np.int32)
        table[[i + 1 for i in kept]] = np.arange(1, len(kept) + 1)
        crowd = tuple(self.is_crowd[i] for i in kept) if self.is_crowd else ()
        scores = tuple(self.scores[i] for i in kept) if self.scores else ()
        return PanopticMap(table[self.ids], tuple(self.labels[i] for i in kept), crowd, scores)
