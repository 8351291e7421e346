"""What can be said of a teacher on pictures of a domain without labels, and how far to trust it where there are some.

P are the teacher's probabilities over K classes, m is its credibility, H the entropy; means are over pixels.

    (1)  entropy      =  mean H(P) / ln K                    low: sure of itself, right or wrong
    (2)  information  =  (H(mean P) - mean H(P)) / ln K      high: sure, and not of one class alone
    (3)  agreement    =  share of pixels where student and teacher say the same class
    (4)  drift        =  1/2 sum_k |share of k predicted - share of k among the source's labels|

None of them is an accuracy. (1) falls and (3) rises in every self-training, while a network collapses onto one class
too; (2) and (4) notice that. Which of them finds the best step is measured in `benchmarks/evidence/domains.py`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from segue.credibility import entropy, largest_entropy
from segue.data.sample import IGNORE, Array
from segue.evaluation import Samples
from segue.metrics import Confusion

Teach = Callable[[Tensor], Tensor]  # (1, bands, H, W) -> P (1, K, H, W)
Credible = Callable[[Tensor], Tensor]  # P -> m (1, H, W)


@dataclass
class Look:
    """Sums over the pixels that were looked at.

    Args:
        classes: K.
    """

    classes: int
    pixels: int = 0
    entropy: float = 0.0
    agreeing: float = 0.0
    mean: Array = field(init=False)
    predicted: Array = field(init=False)
    kept: Array = field(init=False)

    def __post_init__(self) -> None:
        self.mean, self.predicted, self.kept = (np.zeros(self.classes) for _ in range(3))

    def update(self, probabilities: Tensor, credible: Tensor, student: Tensor) -> None:
        """Adds pictures: P (B, K, H, W), m (B, H, W) and the student's classes (B, H, W)."""
        prediction = probabilities.argmax(1).flatten()
        weights = credible.flatten().double()
        self.pixels += len(prediction)
        self.entropy += float(entropy(probabilities).sum())
        self.agreeing += float((prediction == student.flatten()).sum())
        self.mean += probabilities.sum((0, 2, 3)).double().cpu().numpy()
        self.predicted += torch.bincount(prediction, minlength=self.classes).cpu().numpy()
        self.kept += torch.bincount(prediction, weights, minlength=self.classes).cpu().numpy()

    def scores(self, names: Sequence[str], source_shares: Array) -> dict[str, float]:
        """Eqs. 1 to 4, ``credible``, and ``share/CLASS`` and ``credible/CLASS`` of each class that was predicted."""
        scale, total = largest_entropy(self.classes), max(self.pixels, 1)
        mean, shares = self.mean / total, self.predicted / total
        average = float(-(mean * np.log(np.maximum(mean, 1e-12))).sum()) / scale
        found = {
            "entropy": self.entropy / total / scale,
            "information": average - self.entropy / total / scale,
            "agreement": self.agreeing / total,
            "drift": 0.5 * float(np.abs(shares - source_shares).sum()),
            "credible": float(self.kept.sum()) / total,
        }
        for i, name in enumerate(names):
            found[f"share/{name}"] = float(shares[i])
            if self.predicted[i]:
                found[f"credible/{name}"] = float(self.kept[i] / self.predicted[i])
        return found


@dataclass
class Trust:
    """How right the teacher is inside and outside of what it calls credible.

    Args:
        inside, outside: right pixels and all pixels, weighted by m and by 1 - m.
        confusion: of the teacher's classes.
    """

    confusion: Confusion
    inside: Array = field(default_factory=lambda: np.zeros(2))
    outside: Array = field(default_factory=lambda: np.zeros(2))

    def update(self, prediction: Tensor, credible: Tensor, mask: Tensor) -> None:
        """Adds one picture: classes, m and labels, each (H, W)."""
        self.confusion.update(mask.numpy(), prediction.cpu().numpy())
        valid = mask != IGNORE
        right, weight = (prediction.cpu() == mask)[valid].double(), credible.cpu()[valid].double()
        self.inside += [float((right * weight).sum()), float(weight.sum())]
        self.outside += [float((right * (1 - weight)).sum()), float((1 - weight).sum())]

    def scores(self) -> dict[str, float]:
        """``miou``, ``right_inside`` and ``right_outside`` in [0, 1]; those that have no pixel are left out."""
        found = {} if math.isnan(self.confusion.miou()) else {"miou": self.confusion.miou()}
        for name, (right, total) in (("right_inside", self.inside), ("right_outside", self.outside)):
            if total > 0:
                found[name] = float(right / total)
        return found


@torch.inference_mode()
def watch(
    teach: Teach,
    credible: Credible,
    student: nn.Module,
    target: Samples,
    val: Samples,
    classes: Sequence[str],
    source_shares: Array,
) -> dict[str, float]:
    """Scores of `Look` on ``target``, and of `Trust` on ``val`` if that holds any picture.

    Args:
        teach: gives P of one picture.
        credible: gives m of P.
        student: (1, bands, H, W) -> logits (1, K, H, W); in the mode that it is to run in.
        target: pictures without labels.
        val: pictures with labels.
        classes: names by id.
        source_shares: of each class among the source's labels (K,).
    """
    device = next(student.parameters()).device
    look, trust = Look(len(classes)), Trust(Confusion(len(classes)))
    for i in range(len(target)):
        image = target[i]["image"][None].to(device)
        probabilities = teach(image)
        look.update(probabilities, credible(probabilities), student(image).argmax(1))
    for i in range(len(val)):
        sample = val[i]
        probabilities = teach(sample["image"][None].to(device))
        trust.update(probabilities[0].argmax(0), credible(probabilities)[0], sample["mask"])
    return look.scores(classes, source_shares) | trust.scores()
