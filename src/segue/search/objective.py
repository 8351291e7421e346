"""What candidates and the found network are trained by, and what a candidate is worth.

z_s are logits of the student, z_t of the teacher, p = softmax(z_s), y the one-hot labels, C' the classes of the batch
without background.

    (1)  L_dice  =  1 - 1/|C'| sum_{c in C'} 2 sum_p y_c p_c / ( sum_p y_c^2 + sum_p p_c^2 )
    (2)  logits    L  =  L_seg + coff mean (z_s - z_t)^2
         kl        L  =  (1 - coff) L_seg + coff T^2 KL( softmax(z_t / T) || softmax(z_s / T) ),   T = 4
         bounded   L  =  L_seg + coff mean_i max( L_i(z_s) - L_i(z_t), 0 )       over the pictures i of the batch
    (3)  R  =  ( mIoU fwIoU mPA )^{1/3}
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segue.data.sample import IGNORE
from segue.losses import pixel_cross_entropy
from segue.metrics import Confusion

Objective = Literal["dice+ce", "dice", "ce"]
Distill = Literal["logits", "kl", "bounded", "none"]
TEMPERATURE = 4.0


def soft_dice(logits: Tensor, labels: Tensor, background: int = -1) -> Tensor:
    """Eq. 1: (B, K, H, W), (B, H, W) -> a scalar in [0, 1]; 0, with gradient, if no class is left."""
    classes = logits.shape[1]
    valid = (labels != IGNORE)[:, None]
    probability = logits.float().softmax(1) * valid
    truth = F.one_hot(torch.where(labels == IGNORE, 0, labels), classes).movedim(-1, 1) * valid
    hit = (probability * truth).sum((0, 2, 3))
    size = truth.sum((0, 2, 3)) + probability.square().sum((0, 2, 3))
    counted = truth.sum((0, 2, 3)) > 0
    if background >= 0:
        counted[background] = False
    if not counted.any():
        return logits.sum() * 0
    return 1 - (2 * hit / size.clamp(min=1e-6))[counted].mean()


def background_of(classes: Sequence[str]) -> int:
    """The id of the class called background, which counts in no mean; -1 where there is none."""
    return list(classes).index("background") if "background" in classes else -1


def segmentation_loss(logits: Tensor, labels: Tensor, objective: Objective, background: int = -1) -> Tensor:
    """L_seg: ``dice``, ``ce`` or their sum; arguments as of `soft_dice`."""
    loss = logits.sum() * 0
    if "dice" in objective:
        loss = loss + soft_dice(logits, labels, background)
    if "ce" in objective.split("+"):
        loss = loss + pixel_cross_entropy(logits, labels)
    return loss


def distilled(
    student: Tensor, teacher: Tensor, labels: Tensor, inside: Tensor, *, mode: Distill, weight: float,
    objective: Objective, background: int = -1,
) -> Tensor:  # fmt: skip
    """Eq. 2.

    Args:
        student: z_s, (B, K, H, W).
        teacher: z_t, (B, K, H, W), without gradient.
        labels: (B, H, W).
        inside: bool (B, H, W), False where a small picture was padded: nothing is to be learnt of a teacher there.
        mode: which of the readings; ``none`` is L_seg alone.
        weight: coff.
        objective: of L_seg.
        background: class left out of Dice.
    """
    loss = segmentation_loss(student, labels, objective, background)
    if mode == "logits":
        return loss + weight * _mean((student.float() - teacher).square().mean(1), inside)
    if mode == "kl":
        told = (teacher / TEMPERATURE).log_softmax(1)
        said = (student.float() / TEMPERATURE).log_softmax(1)
        divergence = _mean(F.kl_div(said, told, reduction="none", log_target=True).sum(1), inside)
        return (1 - weight) * loss + weight * TEMPERATURE**2 * divergence
    if mode == "bounded":
        worse = [
            (segmentation_loss(s[None], y[None], objective, background)
             - segmentation_loss(t[None], y[None], objective, background)).clamp(min=0)
            for s, t, y in zip(student, teacher, labels, strict=True)
        ]  # fmt: skip
        return loss + weight * torch.stack(worse).mean()
    return loss


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """Of (B, H, W) over the pixels of a bool (B, H, W); 0 over none."""
    return (values * where).sum() / where.sum().clamp(min=1)


class Reward(NamedTuple):
    """R of eq. 3, and what it is made of."""

    value: float
    parts: dict[str, float]


def reward_of(confusion: Confusion, background: int = -1) -> Reward:
    """Eq. 3 over the classes in the truth, without ``background``; 0 if there is none."""
    counts = confusion.counts.astype(np.float64)
    truth = counts.sum(1)
    counted = truth > 0
    if background >= 0:
        counted[background] = False
    if not counted.any():
        return Reward(0.0, {"miou": 0.0, "fwiou": 0.0, "mpa": 0.0})
    iou, accuracy = confusion.iou()[counted], confusion.class_accuracy()[counted]
    share = truth[counted] / truth[counted].sum()
    parts = {"miou": float(iou.mean()), "fwiou": float((share * iou).sum()), "mpa": float(accuracy.mean())}
    return Reward(float(np.prod(list(parts.values())) ** (1 / 3)), parts)
