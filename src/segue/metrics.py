"""Numbers that are reported: the confusion matrix and what follows from it, and calibration."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from segue.data.sample import IGNORE, Array

BINS = 15


@dataclass
class Confusion:
    """Counts of pixels by true class (row) and predicted class (column): int64 (K, K).

    Args:
        classes: K.
    """

    classes: int
    counts: Array = field(init=False)

    def __post_init__(self) -> None:
        self.counts = np.zeros((self.classes, self.classes), np.int64)

    def update(self, truth: Array, prediction: Array) -> None:
        """Adds the pixels of one label map; both uint8 (H, W), `IGNORE` in ``truth`` left out.

        Raises:
            ValueError: the two differ in size.
        """
        if truth.shape != prediction.shape:
            raise ValueError(f"label map {truth.shape} and prediction {prediction.shape} differ in size")
        # Ignored pixels go to a row of their own, which is cut off: no boolean indexing.
        row = np.where(truth == IGNORE, self.classes, truth).astype(np.int64)
        size = self.classes * (self.classes + 1)
        counted = np.bincount((row * self.classes + prediction).ravel(), minlength=size)
        self.counts += counted[: self.classes**2].reshape(self.classes, self.classes)

    def iou(self) -> Array:
        """Intersection over union of each class (K,) in [0, 1]; NaN where the class is not in the truth."""
        hit = np.diag(self.counts).astype(np.float64)
        truth = self.counts.sum(1)
        union = truth + self.counts.sum(0) - hit
        return np.where(truth > 0, hit / np.maximum(union, 1), np.nan)

    def miou(self) -> float:
        """Mean IoU over the classes in the truth; NaN if there is none."""
        return nan_mean(self.iou())

    def accuracy(self) -> float:
        """Share of pixels that are right; NaN if there is no pixel."""
        total = self.counts.sum()
        return float(np.diag(self.counts).sum() / total) if total else float("nan")

    def class_accuracy(self) -> Array:
        """Share of each class's pixels that are right (K,); NaN where the class is not in the truth."""
        truth = self.counts.sum(1)
        return np.where(truth > 0, np.diag(self.counts) / np.maximum(truth, 1), np.nan)


@dataclass
class Calibration:
    """How often predictions of each probability are right: `BINS` equal bins of the highest probability.

    Guo et al., *On Calibration of Modern Neural Networks*, ICML 2017.
    """

    count: Array = field(default_factory=lambda: np.zeros(BINS))
    right: Array = field(default_factory=lambda: np.zeros(BINS))
    probability: Array = field(default_factory=lambda: np.zeros(BINS))

    def update(self, truth: Tensor, prediction: Tensor, probability: Tensor) -> None:
        """Adds pixels: class ids and the probability of the predicted class, each (H, W); ignored ones left out."""
        valid = truth != IGNORE
        chosen = probability[valid].double()
        bins = (chosen * BINS).long().clamp_(0, BINS - 1)
        hit = (truth[valid] == prediction[valid]).double()
        self.count += torch.bincount(bins, minlength=BINS).numpy()
        self.right += torch.bincount(bins, hit, minlength=BINS).numpy()
        self.probability += torch.bincount(bins, chosen, minlength=BINS).numpy()

    def ece(self) -> float:
        """Expected calibration error in [0, 1]: mean gap of probability and accuracy; NaN without pixels."""
        total = self.count.sum()
        return float(np.abs(self.right - self.probability).sum() / total) if total else float("nan")


def spread(features: Tensor) -> float:
    """How differently features (N, D) are directed: 0 where all are alike, 1 where they point evenly all ways."""
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    return float(1 - unit.mean(0).square().sum())


def effective_rank(features: Tensor) -> float:
    """How many directions features (N, D) use: exp of the entropy of the shares of their singular values, centred.

    Roy and Vetterli, *The effective rank*, EUSIPCO 2007. From 1 to D; 1 where all features are alike.
    """
    centred = features.double() - features.double().mean(0)
    values = torch.linalg.eigvalsh(centred.T @ centred).clamp(min=0).sqrt()
    total = values.sum()
    return float(torch.special.entr(values / total).sum().exp()) if total > 0 else 1.0


def rank_agreement(first: Tensor, second: Tensor) -> float:
    """Spearman's rank correlation of two lists (n,), in [-1, 1]; 0 where one of them is constant. Ties by place."""
    ranks = torch.stack([first.argsort(stable=True).argsort(), second.argsort(stable=True).argsort()]).double()
    if len(first) < 2 or first.min() == first.max() or second.min() == second.max():
        return 0.0
    return float(torch.corrcoef(ranks)[0, 1])


def nan_mean(values: Array) -> float:
    """The mean of what is not NaN; NaN if nothing is."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
