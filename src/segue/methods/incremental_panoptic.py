"""New classes for a panoptic model without its old data (a patent document; Cermelli et al., *CoMFormer*, CVPR 2023).

The historic model is the model as it was, the current model learns from it. Images are labelled for new classes only;
G is what the true masks g_j cover. For query i, p'_i and s'_i are the historic model's class probabilities and mask,
p_i and s_i the current model's; queries correspond by number, for both models started from the same ones.

    (1)  K  =  { i : argmax p'_i is a class,  max p'_i > t_s }                              old masks
    (2)  i is dropped  if  max_j IoU({s'_i >= t_b}, g_j) > t_m                              it matches a true mask
    (3)  M_i  =  {s'_i >= t_b} \\ G                                                         noise pixels removed
    (4)  P_i  =  {x in M_i : i = argmax over k with x in M_k of max p'_k s'_k(x)}           each pixel to one mask
    (5)  i is dropped  if  |P_i| = 0  or  |P_i| / |{s'_i >= t_b}| < r                       too little is left
    (6)  L_m  =  loss of mask classification of (p, s) against true masks and pseudo-labels (P_i, argmax p'_i)
    (7)  w_i  =  (1 - p'_i(none))^g
    (8)  KL_i  =  sum_old c p'_i(c) ln(p'_i(c) / p_i(c)) + p'_i(none) ln(p'_i(none) / [p_i(none) + sum_new c p_i(c)])
    (9)  L_d  =  sum_i w_i KL_i / sum_i w_i
   (10)  L  =  L_m + l L_d

As an option, a query must be credible: of T views with noise, as the mean-teacher method asks of pixels,

   (11)  c_i  =  certainty of the T views (eq. 6 of segue.credibility),   i is dropped if c_i < t_c

With ``order="comformer"``, (4) takes the best mask over all of K before (3), and (5) counts the pixels so won.

Departs from the documents: new rows of the class head start from the no-object row (`segue.models.mask_classifier`), so
that (9) is 0 at first; batch statistics stay the historic model's; nothing is dropped; (8) is of the last layer.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from segue.bounds import AT_LEAST_0, BELOW_1, SHARE
from segue.config import Data, Views
from segue.credibility import certainty
from segue.data.panoptic import PanopticWhole
from segue.data.panoptic_map import PanopticMap
from segue.data.sample import Array
from segue.engine import Losses, Method, Run, cosine, endless, fit, hold_still, rank_and_world
from segue.extension import Extension, joined
from segue.models.mask_classifier import MaskClassifier, Queries, grown, on_padded, padded_size, parameter_groups
from segue.panoptic.loss import Segments, mask_losses, true_segments
from segue.panoptic.report import historic_section

VERB = "extend"
BINS = 10  # of the histogram of distillation weights
VIEWS, NOISE = 4, 0.05  # T of eq. 11, and the standard deviation of the noise, white being 1
SHOWN = 4  # pictures of pseudo-labels in the report
UNSURE = "no-object, or below min_score"
FATES = ("kept", UNSURE, "matches a true mask", "nothing left", "below min_ratio", "not credible")
BOUNDS = {
    **dict.fromkeys(("min_score", "max_match", "min_pixel", "min_ratio", "min_credibility"), SHARE),
    "gamma": AT_LEAST_0,
    "replay_share": BELOW_1,
}
Order = Literal["claim", "comformer"]
Match = Literal["iou", "ioa", "dice_union", "none"]


@dataclass(frozen=True)
class Rules:
    """Which masks of the historic model become pseudo-labels.

    Args:
        min_score: t_s of eq. 1; 0 in CoMFormer, 0.35 in SimCIS.
        min_pixel: t_b of eqs. 2, 3 and 5, the probability from which a pixel is in a mask.
        match: measure of eq. 2; ``iou``, ``ioa`` (share of the old mask in a true one), ``dice_union``, ``none``.
        max_match: t_m of eq. 2.
        min_ratio: r of eq. 5; 0.5 in CoMFormer, 0.8 in SimCIS.
        order: of eqs. 3 and 4.
        min_credibility: t_c of eq. 11; 0 turns it off.
    """

    min_score: float = 0.35
    min_pixel: float = 0.5
    match: Match = "iou"
    max_match: float = 0.5
    min_ratio: float = 0.5
    order: Order = "claim"
    min_credibility: float = 0.0


@dataclass(frozen=True)
class Config:
    """New classes for a panoptic model.

    Args:
        model: run or model folder of the historic model.
        keep_val: panoptic set with old classes, on which forgetting is measured, as ``FOLDER`` or ``FOLDER:split``.
        max_forget: largest loss of the old classes' PQ, in points, that is released.
        new_classes: the classes of the new set to learn; all that the model does not know if empty.
        by_region: where a set does not number its objects, connected regions of a countable class are objects.
        steps: optimiser steps.
        lr: peak learning rate of AdamW.
        encoder_lr: factor of the learning rate for the encoder.
        weight_decay: of all weights but those of norms and embeddings.
        clip: largest norm of the gradient.
        points: at which a mask is compared.
        pseudo: learn from pseudo-labels, eqs. 1 to 5.
        distill: l of eq. 10, 1 in the paper and 10 in its code; 0 turns distillation off.
        gamma: g of eq. 7.
        replay_share: of each batch, where ``unlabeled`` names images of the old scenes; they get pseudo-labels alone.
    """

    data: Data = field(default_factory=Data)
    views: Views = field(default_factory=Views)
    rules: Rules = field(default_factory=Rules)
    model: str = ""
    keep_val: str = ""
    max_forget: float = 1.0
    new_classes: tuple[str, ...] = ()
    by_region: bool = False
    steps: int = 1000
    lr: float = 2e-4
    encoder_lr: float = 1.0
    weight_decay: float = 0.05
    clip: float = 1.0
    points: int = 1024
    pseudo: bool = True
    distill: float = 1.0
    gamma: float = 2.0
    replay_share: float = 0.25


# -- pseudo-labels -----------------------------------------------------------------------------------------------------


def old_masks(probabilities: Tensor, min_score: float) -> Tensor:
    """Eq. 1: which queries say an old class (Q,), from class probabilities (Q, K + 1), no-object last."""
    score, label = probabilities.max(1)
    return (label < probabilities.shape[1] - 1) & (score > min_score)


def matches_true(on: Tensor, truth: Tensor, match: Match, max_match: float) -> Tensor:
    """Eq. 2: which masks bool (Q, H, W) match one of the true masks bool (J, H, W): (Q,)."""
    if match == "none" or not len(truth) or not len(on):
        return torch.zeros(len(on), dtype=torch.bool, device=on.device)
    old, true = on.flatten(1).float(), truth.flatten(1).float()
    if match == "dice_union":
        true = true.amax(0, keepdim=True)
    shared, area = old @ true.T, old.sum(1)[:, None]
    if match == "iou":
        value = shared / (area + true.sum(1)[None] - shared).clamp(min=1)
    elif match == "ioa":
        value = shared / area.clamp(min=1)
    else:
        value = 2 * shared / (area + true.sum(1)[None]).clamp(min=1)
    return (value > max_match).any(1)


def without_noise(on: Tensor, covered: Tensor) -> Tensor:
    """Eq. 3: masks bool (Q, H, W) without the pixels (H, W) that true masks cover."""
    return on & ~covered


def pixel_owners(masks: Tensor, allowed: Tensor, scores: Tensor) -> Tensor:
    """Eq. 4: of the masks allowed at a pixel the most certain owns it, the first of equals: bool (Q, H, W).

    Args:
        masks: probabilities (Q, H, W).
        allowed: bool (Q, H, W).
        scores: of the masks' classes (Q,).
    """
    certainty = torch.where(allowed, scores[:, None, None] * masks, -1.0)
    is_owner = allowed & (certainty == certainty.amax(0))  # twenty times as fast as argmax on a CPU
    if (is_owner.sum(0, dtype=torch.int32) > 1).any():
        is_owner &= is_owner.cumsum(0) == 1
    return is_owner


def enough_left(counted: Tensor, target: Tensor, left: Tensor, min_ratio: float) -> Tensor:
    """Eq. 5: which pseudo masks stay (Q,): pixels counted for the ratio, of the target mask, and left, all (Q,)."""
    return (left > 0) & (counted >= min_ratio * target)


def pseudo_labels(probabilities: Tensor, masks: Tensor, truth: Tensor, rules: Rules) -> tuple[Tensor, Tensor, Tensor]:
    """Eqs. 1 to 5: class ids (N,), masks bool (N, H, W), and what became of the queries (Q,), as places in `FATES`.

    Args:
        probabilities: historic class probabilities (Q, K + 1), no-object last.
        masks: historic mask probabilities (Q, H, W), below 0 where there is no picture.
        truth: true masks bool (J, H, W).
        rules: the thresholds.
    """
    fates = torch.ones(len(probabilities), dtype=torch.long, device=probabilities.device)
    chosen = old_masks(probabilities, rules.min_score).nonzero()[:, 0]
    found = masks[chosen] >= rules.min_pixel
    is_true = matches_true(found, truth, rules.match, rules.max_match)
    fates[chosen[is_true]] = 2
    chosen, found = chosen[~is_true], found[~is_true]
    if not len(chosen):
        return chosen, found, fates
    scores, labels = probabilities[chosen].max(1)
    covered = truth.any(0) if len(truth) else torch.zeros_like(found[0])
    clean = without_noise(found, covered)
    if rules.order == "claim":
        left = pixel_owners(masks[chosen], clean, scores)
        counted = left
    else:
        counted = pixel_owners(masks[chosen], ~covered & (masks[chosen] >= 0), scores)
        left = counted & found
    remaining = left.flatten(1).sum(1)
    stays = enough_left(counted.flatten(1).sum(1), found.flatten(1).sum(1), remaining, rules.min_ratio)
    fates[chosen] = torch.where(stays, 0, torch.where(remaining > 0, 4, 3))
    return labels[stays], left[stays], fates


# -- distillation ------------------------------------------------------------------------------------------------------


def distillation_weight(old: Tensor, gamma: float) -> Tensor:
    """Eq. 7: falls with the historic no-object probability; logits (..., K + 1) -> (...) in [0, 1]."""
    return (1 - old.float().softmax(-1)[..., -1]).clamp(min=0) ** gamma


def unbiased_divergence(old: Tensor, new: Tensor) -> Tensor:
    """Eq. 8: nats, from logits (..., K + 1) and (..., K + k + 1), no-object last in both; new classes count as it."""
    total = old.shape[-1] - 1
    historic, current = old.float().log_softmax(-1), new.float().log_softmax(-1)
    none = current[..., total:].logsumexp(-1, keepdim=True)
    joined = torch.cat([current[..., :total], none], -1)
    return (historic.exp() * (historic - joined)).sum(-1)


def distillation_loss(old: Tensor, new: Tensor, gamma: float) -> Tensor:
    """Eq. 9 over all queries of a batch; 0, with gradient, where all weights are."""
    weight = distillation_weight(old, gamma)
    return (weight * unbiased_divergence(old, new)).sum() / weight.sum().clamp(min=1e-6)


# -- the method --------------------------------------------------------------------------------------------------------


class IncrementalPanoptic(Method):
    """Eq. 10. A batch is one of `segue.data.panoptic.PanopticViews` with new classes alone: of images that are not
    labelled the pseudo-labels are all that is asked for."""

    counters = ("fates", "weights")
    fates: Tensor
    weights: Tensor

    def __init__(
        self,
        current: MaskClassifier,
        historic: MaskClassifier,
        rules: Rules,
        *,
        points: int,
        pseudo: bool,
        distill: float,
        gamma: float,
    ) -> None:
        super().__init__()
        self.current = current
        self.historic = historic.requires_grad_(False)
        self.rules, self.points, self.pseudo, self.distill, self.gamma = rules, points, pseudo, distill, gamma
        self.register_buffer("fates", torch.zeros(len(FATES), dtype=torch.long))
        self.register_buffer("weights", torch.zeros(BINS, dtype=torch.long))

    def train(self, mode: bool = True) -> "IncrementalPanoptic":
        """The historic model and all batch statistics stay as they are; nothing is dropped."""
        super().train(mode)
        self.historic.eval()
        hold_still(self.current)
        return self

    def forward(self, batch: dict[str, Any]) -> Losses:
        size = padded_size(batch["image"])
        layers = self.current.layers(batch["image"])
        truths = true_segments(batch["segments"], batch["labels"], size)
        truths = [replace(t, is_complete=bool(known)) for t, known in zip(truths, batch["is_labelled"], strict=True)]
        old = self._historic(batch["image"]) if self.pseudo or self.distill else None
        if old and self.pseudo:
            is_credible, inside = self.credible(batch["image"]), on_padded(batch["inside"], size)
            truths = [self._with_pseudo(old, b, t, is_credible[b], inside[b]) for b, t in enumerate(truths)]
        losses = mask_losses(layers, truths, points=self.points)
        if old and self.distill:
            losses["distillation"] = self.distill * distillation_loss(old.classes, layers[-1].classes, self.gamma)
        return losses

    @torch.no_grad()
    def _historic(self, image: Tensor) -> Queries:
        """What the historic model says, its distillation weights counted."""
        old: Queries = self.historic(image)
        weight = distillation_weight(old.classes, self.gamma).flatten()
        self.weights += torch.bincount((weight * BINS).long().clamp(max=BINS - 1), minlength=BINS)
        return old

    @torch.no_grad()
    def credible(self, image: Tensor) -> Tensor:
        """Which historic queries eq. 11 leaves (B, Q)."""
        if not self.rules.min_credibility:
            return torch.ones(len(image), self.historic.spec.queries, dtype=torch.bool, device=image.device)
        spread = NOISE * self.historic.spec.value_range
        noisy = (image + spread * torch.randn(image.shape, device=image.device) for _ in range(VIEWS))
        views = torch.stack([self.historic(view).classes.float().softmax(-1) for view in noisy])
        return certainty(views) >= self.rules.min_credibility

    @torch.no_grad()
    def _with_pseudo(self, old: Queries, b: int, truth: Segments, is_credible: Tensor, inside: Tensor) -> Segments:
        """True segments and pseudo-labels of one picture; the padding is in none of them."""
        labels, masks, fates = historic_labels(old, b, truth.masks > 0.5, is_credible, inside, self.rules)
        self.fates += torch.bincount(fates, minlength=len(FATES))
        both = torch.cat([truth.labels, labels]), torch.cat([truth.masks, masks.float()])
        return Segments(*both, is_complete=truth.is_complete)


def historic_labels(
    old: Queries, b: int, truth: Tensor, is_credible: Tensor, inside: Tensor, rules: Rules
) -> tuple[Tensor, Tensor, Tensor]:
    """`pseudo_labels` of picture ``b`` at the size of the true masks (J, H, W); only masks that matter are enlarged.

    Nothing is found outside of ``inside``, bool (H, W), where the picture was padded.
    """
    probabilities = old.classes[b].float().softmax(1)
    is_old = old_masks(probabilities, rules.min_score)
    chosen = (is_old & is_credible).nonzero()[:, 0]
    logits = old.masks[b, chosen].float()
    size = (truth.shape[-2], truth.shape[-1])
    if len(chosen):
        logits = F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]
    else:
        logits = logits.new_zeros(0, *size)
    labels, masks, fates = pseudo_labels(
        probabilities[chosen], torch.where(inside, logits.sigmoid(), -1.0), truth, rules
    )
    all_fates = torch.ones(len(probabilities), dtype=torch.long, device=probabilities.device)
    all_fates[is_old & ~is_credible] = FATES.index("not credible")
    all_fates[chosen] = fates
    return labels, masks, all_fates


def train(config: Config, run: Run, data: Extension) -> MaskClassifier:
    """The extended network."""
    torch.manual_seed(run.seed)
    if not isinstance(data.base, MaskClassifier):
        raise TypeError(f"{data.source} is no panoptic model")
    historic = deepcopy(data.base).to(memory_format=torch.channels_last)
    tones = data.training.listing.tones
    current = grown(historic, data.classes, data.colors, data.things, tones).to(memory_format=torch.channels_last)
    method = IncrementalPanoptic(
        current, historic, config.rules,
        points=config.points, pseudo=config.pseudo, distill=config.distill, gamma=config.gamma,
    )  # fmt: skip
    most, queries = data.known.most_segments(data.labelled, data.training.paste), current.spec.queries
    if most > queries:
        run.say(f"warning: an image has {most} segments and the model {queries} queries; what is over is not learnt")
    views = data.views(config.views)
    batch = config.views.batch
    replayed = max(1, min(batch - 1, round(config.replay_share * batch))) if data.training.unlabelled else 0
    replay = replace(views, pairs=data.training.unlabelled)

    def batches(start: int) -> Iterator[dict[str, Any]]:
        stream = partial(endless, seed=run.seed, start=start, workers=run.workers)
        own = stream(views, batch - replayed)
        return map(joined, own, stream(replay, replayed)) if replayed else own

    rates = {"lr": config.lr, "encoder_lr": config.encoder_lr, "weight_decay": config.weight_decay}
    fit(
        method,
        batches,
        run=run,
        optimizer=torch.optim.AdamW(parameter_groups(current, **rates), fused=True),
        steps=config.steps,
        stage="incremental_panoptic",
        schedule=cosine(config.steps),
        accumulate=config.views.accumulate,
        clip=config.clip,
    )
    if rank_and_world()[0] == 0:
        fates = dict(zip(FATES, method.fates.tolist(), strict=True))
        unsure = fates.pop(UNSURE)
        historic_section(
            run, queries=unsure + sum(fates.values()), fates=fates, weights=method.weights.tolist(),
            is_distilled=config.distill > 0, shown=tuple(examples(method, data)) if config.pseudo else (),
        )  # fmt: skip
    return current


@torch.inference_mode()
def examples(method: IncrementalPanoptic, data: Extension) -> Iterator[tuple[str, Array, PanopticMap, PanopticMap]]:
    """(name, image, true map of new classes, pseudo-labels) of the first training images."""
    method.eval()
    torch.manual_seed(0)  # eq. 11 draws noise: the same wherever the run was cut
    whole = PanopticWhole(data.labelled[:SHOWN], data.annotation)
    for i in range(len(whole)):
        sample = whole[i]
        image, truth = sample["image"].to(method.fates.device)[None], sample["truth"]
        numbers, labels = torch.from_numpy(truth.ids)[None].to(image.device), torch.tensor([truth.labels])
        masks = true_segments(numbers, labels, padded_size(image))[0].masks > 0.5
        inside = on_padded(torch.ones_like(image[0, :1], dtype=torch.bool), masks.shape[-2:])[0]
        old, is_credible = method.historic(image), method.credible(image)[0]
        labels, pseudo, _ = historic_labels(old, 0, masks, is_credible, inside, method.rules)
        kept = PanopticMap.of(pseudo[:, : image.shape[-2], : image.shape[-1]].cpu().numpy(), labels.tolist())
        yield sample["name"], sample["image"].permute(1, 2, 0).numpy(), truth, kept
