"""New classes for a semantic model without its old data (after Cermelli et al., *Modeling the Background*, CVPR 2020,
and Douillard et al., *PLOP*, CVPR 2021; Hinton et al., *Distilling the Knowledge in a Neural Network*, 2015).

The historic model is the model as it was, the current model learns from it. Images are labelled for new classes only: y
is the new class of a pixel, or unknown. p' are the historic model's class probabilities, z the current model's logits.

    (1)  y'  =  y where it is known,  argmax p' where it is not and max p' > t_s,  unknown elsewhere
    (2)  L_c  =  mean over pixels with y' of CE(z, y')
    (3)  L_d  =  mean over pixels without y of KL(p' || softmax of z over the old classes)
    (4)  L  =  L_c + l L_d

It is what ``segue extend --task semantic`` runs. Departs from the papers: there is no background class, so that (3)
compares old classes with each other; one threshold for all classes; statistics of batch norm stay the historic model's,
and nothing is dropped, so that (3) is 0 at first.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from segue.bounds import BELOW_1, SHARE
from segue.config import Data, Views
from segue.data.sample import IGNORE
from segue.engine import Losses, Method, Run, cosine, endless, fit, hold_still
from segue.errors import UsageError
from segue.extension import Extension, joined
from segue.losses import pixel_cross_entropy
from segue.models.segmenter import Segmenter, grown_segmenter

VERB = "extend"
BOUNDS = {"min_score": SHARE, "replay_share": BELOW_1}


@dataclass(frozen=True)
class Config:
    """New classes for a semantic model.

    Args:
        model: run or model folder of the historic model.
        keep_val: set with old classes, on which forgetting is measured, as ``FOLDER`` or ``FOLDER:split``.
        max_forget: largest loss of the old classes' mIoU, in points, that is released.
        new_classes: the classes of the new set to learn; all that the model does not know if empty.
        by_region: of panoptic models; semantic ones tell no objects apart, and it is refused.
        steps: optimiser steps.
        lr: peak learning rate of SGD with momentum 0.9.
        weight_decay: of all weights.
        pseudo: learn from pseudo-labels, eq. 1.
        min_score: t_s of eq. 1.
        distill: l of eq. 4; 0 turns distillation off.
        replay_share: of each batch, where ``unlabeled`` names images of the old scenes; they get pseudo-labels alone.
    """

    data: Data = field(default_factory=Data)
    views: Views = field(default_factory=Views)
    model: str = ""
    keep_val: str = ""
    max_forget: float = 1.0
    new_classes: tuple[str, ...] = ()
    by_region: bool = False
    steps: int = 600
    lr: float = 0.01
    weight_decay: float = 4e-5
    pseudo: bool = True
    min_score: float = 0.7
    distill: float = 1.0
    replay_share: float = 0.25


def class_masks(segments: Tensor, labels: Tensor) -> Tensor:
    """Class ids (B, H, W), `IGNORE` where unknown, of segment numbers (B, H, W), from 1 on, and their labels (B, N)."""
    table = torch.cat([torch.full_like(labels[:, :1], IGNORE), labels], 1)
    return torch.stack([row[numbers.long()] for row, numbers in zip(table, segments, strict=True)])


def with_pseudo_labels(mask: Tensor, historic: Tensor, min_score: float, inside: Tensor) -> Tensor:
    """Eq. 1: (B, H, W) from known new classes (B, H, W) and historic probabilities (B, K, H, W); padding gets none."""
    score, label = historic.max(1)
    return torch.where(mask != IGNORE, mask, torch.where((score > min_score) & inside, label, IGNORE))


def old_divergence(historic: Tensor, logits: Tensor, mask: Tensor, inside: Tensor) -> Tensor:
    """Eq. 3 in nats.

    Args:
        historic: logits of the old classes (B, K, H, W).
        logits: those of the current model (B, K + k, H, W).
        mask: known new classes (B, H, W), `IGNORE` elsewhere.
        inside: bool (B, H, W), False where a small picture was padded.
    """
    before = historic.float().log_softmax(1)
    now = logits[:, : historic.shape[1]].float().log_softmax(1)
    per_pixel = (before.exp() * (before - now)).sum(1)
    free = (mask == IGNORE) & inside
    return (per_pixel * free).sum() / free.sum().clamp(min=1)


class IncrementalSemantic(Method):
    """Eq. 4. A batch is one of `segue.data.panoptic.PanopticViews` with new classes alone."""

    def __init__(
        self, current: Segmenter, historic: Segmenter, *, pseudo: bool, min_score: float, distill: float
    ) -> None:
        super().__init__()
        self.current = current
        self.historic = historic.requires_grad_(False)
        self.pseudo, self.min_score, self.distill = pseudo, min_score, distill

    def train(self, mode: bool = True) -> "IncrementalSemantic":
        """The historic model and all batch statistics stay as they are; nothing is dropped."""
        super().train(mode)
        self.historic.eval()
        hold_still(self.current)
        return self

    def forward(self, batch: dict[str, Any]) -> Losses:
        mask, logits = class_masks(batch["segments"], batch["labels"]), self.current(batch["image"])
        with torch.no_grad():
            historic = self.historic(batch["image"])
        inside, target = batch["inside"], mask
        if self.pseudo:
            target = with_pseudo_labels(mask, historic.float().softmax(1), self.min_score, inside)
        losses = {"cross_entropy": pixel_cross_entropy(logits, target)}
        if self.distill:
            losses["distillation"] = self.distill * old_divergence(historic, logits, mask, inside)
        return losses


def train(config: Config, run: Run, data: Extension) -> Segmenter:
    """The extended network."""
    torch.manual_seed(run.seed)
    if not isinstance(data.base, Segmenter):
        raise TypeError(f"{data.source} is no semantic model")
    historic = deepcopy(data.base).to(memory_format=torch.channels_last)
    tones = data.training.listing.tones
    current = grown_segmenter(historic, data.classes, data.colors, tones).to(memory_format=torch.channels_last)
    method = IncrementalSemantic(
        current, historic, pseudo=config.pseudo, min_score=config.min_score, distill=config.distill
    )
    views = data.views(config.views)
    replay = replace(views, pairs=data.training.unlabelled)
    batch = config.views.batch
    replayed = max(1, min(batch - 1, round(config.replay_share * batch))) if len(replay) else 0

    def batches(start: int) -> Iterator[dict[str, Any]]:
        stream = partial(endless, seed=run.seed, start=start, workers=run.workers)
        own = stream(views, batch - replayed)
        return map(joined, own, stream(replay, replayed)) if replayed else own

    fit(
        method,
        batches,
        run=run,
        optimizer=torch.optim.SGD(
            current.parameters(), config.lr, momentum=0.9, weight_decay=config.weight_decay, fused=True
        ),
        steps=config.steps,
        stage="incremental_semantic",
        schedule=cosine(config.steps),
        accumulate=config.views.accumulate,
    )
    return current


def refuse(config: Config) -> None:
    """Refuses what is said of objects.

    Raises:
        UsageError: ``by_region`` was given.
    """
    if config.by_region:
        raise UsageError("--by-region: semantic models tell no objects apart; leave the option out")
