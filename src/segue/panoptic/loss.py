"""The loss of mask classification: queries matched with segments, then class, mask and Dice terms on sampled points.

Cheng et al., *Masked-attention Mask Transformer for Universal Image Segmentation*, CVPR 2022, arXiv:2112.01527,
sections 3.3 and 4.1. The terms are the paper's; what makes them cheap is how they are computed: one product gives both
mask terms of all pairs, the queries of a picture are sampled as channels of one map, and its segments once for all
layers.

Departs from the published code: a point within half a cell of the border takes the border's value. There it is mixed
with zeros, which makes the border look unsure and draws the points there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segue.engine import Losses
from segue.models.mask_classifier import Queries

CLASS, MASK, DICE = 2.0, 5.0, 5.0  # weights of the terms, in the matching and in the loss
NO_OBJECT = 0.1  # weight of the class no-object
OVERSAMPLE, UNSURE = 3, 0.75  # points drawn for each one kept, and the share chosen where the mask is unsure


@dataclass(frozen=True)
class Segments:
    """What is to be found in one picture.

    Args:
        labels: class ids (N,).
        masks: float32 0 or 1 (N, H, W), at the size the picture is padded to.
        is_complete: a query without a segment is to say no-object; otherwise nothing is asked of it.
    """

    labels: Tensor
    masks: Tensor
    is_complete: bool = True


def true_segments(numbers: Tensor, labels: Tensor, size: tuple[int, int]) -> list[Segments]:
    """The segments of each picture of a batch, on the padded picture.

    Args:
        numbers: of segments (B, H, W), from 1 on, 0 where nothing is known.
        labels: class ids (B, N), -1 behind the last.
        size: height and width of the padded picture.
    """
    found = []
    for row, known in zip(numbers, labels, strict=True):
        count = int((known >= 0).sum())
        order = torch.arange(1, count + 1, device=row.device, dtype=row.dtype)
        masks = torch.zeros(count, *size, device=row.device)
        masks[:, : row.shape[0], : row.shape[1]] = row == order[:, None, None]
        found.append(Segments(known[:count], masks))
    return found


def mask_losses(
    layers: Sequence[Queries],
    truths: Sequence[Segments],
    *,
    points: int,
) -> Losses:
    """``class``, ``mask`` and ``dice``, weighted and summed over the layers.

    Args:
        layers: what the queries of each layer say of B pictures.
        truths: the segments of each picture.
        points: sampled of each mask.
    """
    device = layers[0].masks.device
    places = [torch.rand(points, 2, device=device) for _ in truths]
    sampled = [at_points(truth.masks, place) for truth, place in zip(truths, places, strict=True)]
    count = max(1, sum(len(truth.labels) for truth in truths))
    losses = {name: layers[0].masks.new_zeros((), dtype=torch.float32) for name in ("class", "mask", "dice")}
    for layer in layers:
        found = [
            match(layer.classes[b], at_points(layer.masks[b].detach().float(), places[b]), truth.labels, sampled[b])
            for b, truth in enumerate(truths)
        ]
        losses["class"] = losses["class"] + CLASS * class_loss(layer.classes, truths, found)
        for name, loss in point_losses(layer.masks, truths, found, points, count).items():
            losses[name] = losses[name] + loss
    return losses


def at_points(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear values of maps (N, h, w) at points (P, 2) of [0, 1], x first: (N, P)."""
    if not len(maps):
        return maps.new_zeros(0, len(points))
    return F.grid_sample(maps[None], 2 * points[None, None] - 1, padding_mode="border", align_corners=False)[0, :, 0]


def at_own_points(maps: Tensor, points: Tensor) -> Tensor:
    """As `at_points`, each map at points of its own (N, P, 2)."""
    return F.grid_sample(maps[:, None], 2 * points[:, None] - 1, padding_mode="border", align_corners=False)[:, 0, 0]


@torch.no_grad()
def match(classes: Tensor, logits: Tensor, labels: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """(queries, segments) that belong together at the smallest total cost.

    Args:
        classes: logits (Q, K + 1).
        logits: of the masks at points (Q, P).
        labels: class ids (N,).
        truth: of the segments at the same points (N, P).
    """
    from scipy.optimize import linear_sum_assignment

    if not len(labels):
        none = labels.new_zeros(0)
        return none, none
    probabilities = logits.sigmoid()
    both = torch.cat([logits, probabilities]) @ truth.T  # (2 Q, N)
    per_logit, per_probability = both.chunk(2)
    bce = (F.softplus(logits).sum(1)[:, None] - per_logit) / logits.shape[1]
    dice = 1 - (2 * per_probability + 1) / (probabilities.sum(1)[:, None] + truth.sum(1)[None] + 1)
    cost = MASK * bce + DICE * dice - CLASS * classes.float().softmax(1)[:, labels]
    rows, columns = linear_sum_assignment(cost.nan_to_num(1e6).cpu().numpy())
    device = labels.device
    return torch.from_numpy(rows).to(device), torch.from_numpy(columns).to(device)


def class_loss(classes: Tensor, truths: Sequence[Segments], found: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Cross-entropy of all queries; those without a segment say no-object, with weight `NO_OBJECT`, or none at all."""
    last = classes.shape[2] - 1
    target = torch.full(classes.shape[:2], last, device=classes.device)
    weight = torch.full(classes.shape[:2], NO_OBJECT, device=classes.device)
    for b, (queries, segments) in enumerate(found):
        target[b, queries] = truths[b].labels[segments]
        if not truths[b].is_complete:
            weight[b] = 0.0
        weight[b, queries] = 1.0
    losses = F.cross_entropy(classes.float().flatten(0, 1), target.flatten(), reduction="none")
    return (weight.flatten() * losses).sum() / weight.sum().clamp(min=NO_OBJECT)


def point_losses(
    masks: Tensor, truths: Sequence[Segments], found: Sequence[tuple[Tensor, Tensor]], points: int, count: int
) -> Losses:
    """``mask`` (binary cross-entropy) and ``dice`` of matched masks, at points where the masks are unsure.

    Args:
        masks: logits (B, Q, h, w).
        truths: the segments of each picture.
        found: (queries, segments) of each picture.
        points: of each mask.
        count: what the sums over masks are divided by.
    """
    if not sum(len(queries) for queries, _ in found):
        return {"mask": 0.0 * masks.float().sum(), "dice": 0.0 * masks.float().sum()}
    logits = torch.cat([masks[b, queries].float() for b, (queries, _) in enumerate(found)])  # (M, h, w)
    truth = torch.cat([truths[b].masks[segments] for b, (_, segments) in enumerate(found)])
    with torch.no_grad():
        places = unsure_points(logits, points)
        target = at_own_points(truth, places)
    said = at_own_points(logits, places)
    probabilities = said.sigmoid()
    bce = F.binary_cross_entropy_with_logits(said, target, reduction="none").mean(1).sum() / count
    dice = 1 - (2 * (probabilities * target).sum(1) + 1) / (probabilities.sum(1) + target.sum(1) + 1)
    return {"mask": MASK * bce, "dice": DICE * dice.sum() / count}


def unsure_points(logits: Tensor, points: int) -> Tensor:
    """Points of masks (M, h, w): most of them where the mask is nearest one half, the rest anywhere: (M, P, 2)."""
    drawn = torch.rand(len(logits), OVERSAMPLE * points, 2, device=logits.device)
    certainty = at_own_points(logits, drawn).abs()
    kept = int(UNSURE * points)
    if kept == 0:
        return drawn[:, :points]
    if logits.device.type == "cpu":  # ten times as fast as topk there
        chosen = torch.from_numpy(np.argpartition(certainty.numpy(), kept - 1, axis=1)[:, :kept].copy())
    else:
        chosen = certainty.topk(kept, dim=1, largest=False, sorted=False).indices
    unsure = drawn.gather(1, chosen[..., None].expand(-1, -1, 2))
    return torch.cat([unsure, torch.rand(len(logits), points - kept, 2, device=logits.device)], 1)
