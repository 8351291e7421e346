"""Soft-label ranking self-distillation (Wen, Xu, Dai, Cong, Huang, *Semantic Concentration for Self-Supervised Dense
Representations Learning*, TPAMI 2025, arXiv:2509.09429, and the group's Chinese patent application of 2024-01-26).

x is an image, C_x its candidates, x+ one of them that resembles it. s are cosine similarities of the student's
embeddings of views in other colours and blurred (v1), t of the teacher's of the same places as they are (v2). l(s, t;
tau) is the ranking loss of `segue.losses.ranking`: s is to be in the order of t, with margin tau.

    (1)  C_x      =  {x+} and the images of the batch from other clusters than x's                     A1, A2
    (2)  L_img    =  mean_x  l( {s(x, c)}_{c in C_x}, {t(x, c)}_{c in C_x}; tau_image )                A3
    (3)  L_patch  =  mean_x  l( {s(x_i, x+_j)}_ij, {t(x_i, x+_j)}_ij; tau_patch )                      A3
    (4)  L        =  a L_img  +  b L_patch,  whose gradient goes to the student alone                  A3, A4
    (5)  teacher  <-  m teacher + (1 - m) student, statistics too,  m from m_0 to m_1, half a cosine   A5

``--variant cotap`` adds the paper's prototypes, p the softmax of a student's scores, q the teacher's even codes:

    (6)  L_inner  =  - mean over patches  q log p,  of the same place
    (7)  L_cross  =  - mean over images   q(x+) log p(x)
    (8)  L_use    =  1 - entropy of the mean use of the filter's prototypes, over its largest value

A1: the teacher embeds all images, spherical k-means divides them, and x+ is drawn anew at each step from the images of
x's cluster most like it; all of this again every ``refresh`` steps. A6: until the loss has not fallen for ``patience``
such spans, or ``steps``. A7, A8: ``segue train --init RUN``, with ``--linear_probe`` for a linear module on the frozen
encoder. So a soft label keeps patches of one kind together that a contrast of views would push apart.

Departs from the sources: one global crop; all anchors of a batch share its images as negatives; the image's embedding
is the mean of its patches, for want of a foreground. What the patent leaves open is taken from the released code
(margins, theta, weights) or chosen here (clusters, a = b = 1).
"""

import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.bounds import AT_LEAST_0, AT_LEAST_1, SHARE, Bound
from segue.data.candidates import Candidates, evenly, refuse_few
from segue.data.unlabelled import ImageSet
from segue.embeddings import centred, embed_images, most_similar, spherical_clusters
from segue.engine import Losses, Method, Run, cosine, ema_update, endless, fit, mix, only_first, wait_for_all
from segue.errors import DataError, UsageError
from segue.health import Watch, history, write_health
from segue.losses import ranking_loss
from segue.losses.prototypes import code_cross_entropy
from segue.models.encoder import Encoder, decay_groups, settle_statistics
from segue.models.heads import projection_head
from segue.models.object_filter import CodeQueue, ObjectFilter, PrototypeHead
from segue.starting import new_encoder

VERB = "pretrain"
STAGE = "distil"
PROBES = 8  # images that health is measured on
FALLEN = 0.995  # of the best loss: what counts as fallen
MARGIN = Bound(lambda value: value > 0, "a margin above 0")
BOUNDS = {
    "area": Bound(lambda value: len(value) == 2 and 0 < value[0] <= value[1] <= 1, "two shares, as [0.25,1]"),
    "batch": Bound(lambda value: value >= 2, "at least 2: the images of a batch are each other's negatives"),
    "tau_image": MARGIN,
    "tau_patch": MARGIN,
    "image_weight": AT_LEAST_0,
    "patch_weight": AT_LEAST_0,
    "alpha": AT_LEAST_0,
    "embedding": AT_LEAST_0,
    "positives": AT_LEAST_1,
    "clusters": Bound(lambda value: value >= 0 and value != 1, "at least 2, or 0 to decide"),
    "refresh": Bound(lambda value: value >= 0, "a number of steps, or 0 to decide"),
    "patience": AT_LEAST_0,
    "ema_start": SHARE,
    "ema_end": SHARE,
}


@dataclass(frozen=True)
class Config:
    """Soft-label ranking self-distillation.

    Args:
        data: folder of images, or ``FOLDER:split``; masks in it are left alone.
        skip_bad: go on without images that cannot be read.
        encoder: any timm model that DeepLabV3+ can use, or a plain vision transformer.
        init: what it starts from: ``auto``, ``random``, ``timm:``, a file or a run's folder, as of ``segue train``.
        output_stride: of a convolutional encoder, 8 or 16.
        steps: optimiser steps at most.
        lr: peak learning rate of AdamW; 3e-5 in the released code, for transformers trained before and 210,000 steps.
        weight_decay: of weights that are no bias, norm or prototype of the filter; 0.024 to 0.24 in the released code.
        crop: side of the views, in pixels; a multiple of 16.
        area: smallest and largest share of an image that a view shows.
        batch: anchors x a step; as many positives go through the networks with them.
        tau_image: margin of eq. 2; 0.5 in the released code, whose similarities are those of prototype scores.
        tau_patch: margin of eq. 3; as tau_image.
        threshold: theta of the ranking loss.
        image_weight: a of eq. 4.
        patch_weight: b of eq. 4.
        lists: what is ranked in eq. 3: all patches of a ``pair`` of images, each ``row`` of it, or the whole ``batch``.
        others: images that do not match whose patches join the lists of eq. 3.
        alpha: weight of those.
        objective: ``ranking``, or ``mse``: the mean of (s - t)^2 in its place, a control.
        embedding: length of a projection that is compared in place of the encoder's features; 0 compares those.
        variant: ``cotap`` puts the later paper's object filter and prototypes between features and similarities, and
            adds eqs. 6 to 8; ``patent`` has none of them.
        ema_start: m_0 of eq. 5; 0.9997 in the released code.
        ema_end: m_1 of eq. 5; 0.9999 in the released code.
        clusters: of k-means; 0 takes one for 20 images, from 2 to 1,000.
        positives: images of its cluster that x+ is drawn from.
        refresh: steps between two clusterings; 0 takes 100, or more where the set is large.
        patience: spans of ``refresh`` steps without a lower loss that end the training; 0 goes on to the last step.
    """

    data: str = ""
    skip_bad: bool = False
    encoder: str = "mobilenetv2_100"
    init: str = "auto"
    output_stride: int = 16
    steps: int = 1000
    lr: float = 1e-3
    weight_decay: float = 0.05
    crop: int = 224
    area: tuple[float, float] = (0.25, 1.0)
    batch: int = 8
    tau_image: float = 0.1
    tau_patch: float = 0.1
    threshold: float = -0.2
    image_weight: float = 1.0
    patch_weight: float = 1.0
    lists: Literal["pair", "row", "batch"] = "pair"
    others: int = 0
    alpha: float = 0.1
    objective: Literal["ranking", "mse"] = "ranking"
    embedding: int = 0
    variant: Literal["patent", "cotap"] = "patent"
    ema_start: float = 0.9995
    ema_end: float = 0.9999
    clusters: int = 0
    positives: int = 7
    refresh: int = 0
    patience: int = 5


# -- A2, A3: similarities and losses -----------------------------------------------------------------------------------


def image_loss(student: Tensor, teacher: Tensor, may_compare: Tensor, config: Config) -> Tensor:
    """Eq. 2.

    Args:
        student: (2 B, D) unit-length embeddings of the anchors, then of their positives.
        teacher: of the same images.
        may_compare: bool (B, 2 B), which of them are candidates of each anchor.
        config: gives margin and theta.
    """
    anchors = len(may_compare)
    s, t = student[:anchors] @ student.T, teacher[:anchors] @ teacher.T
    if config.objective == "mse":
        return (s - t).square()[may_compare].mean()
    # What is no candidate stands so low in both lists that it weighs nothing and is out of order with nothing.
    s = torch.where(may_compare, s, -2.0 - 2 * config.tau_image)
    t = torch.where(may_compare, t, min(-2.0, config.threshold - 1))
    return ranking_loss(s, t, tau=config.tau_image, threshold=config.threshold)


def patch_loss(student: Tensor, teacher: Tensor, config: Config) -> Tensor:
    """Eq. 3; arguments (2 B, N, D): unit-length patches of the anchors, then of their positives."""

    def lists(patches: Tensor) -> Tensor:
        anchors, positives = patches.chunk(2)
        shifted = [positives.roll(k, 0) for k in range(1 + config.others)]
        return anchors @ torch.cat(shifted, 1).transpose(1, 2)  # (B, N, (1 + others) N)

    s, t = lists(student), lists(teacher)
    if config.objective == "mse":
        return (s - t).square().mean()
    is_match = torch.zeros_like(s, dtype=torch.bool)
    is_match[..., : student.shape[1]] = True
    shape = {"pair": (len(s), -1), "row": (-1, s.shape[2]), "batch": (1, -1)}[config.lists]
    return ranking_loss(
        s.reshape(shape), t.reshape(shape), tau=config.tau_patch, threshold=config.threshold,
        is_match=is_match.reshape(shape) if config.others else None, alpha=config.alpha,
    )  # fmt: skip


class Branch(nn.Module):
    """Student or teacher: an encoder, and what stands between its features and what is compared."""

    def __init__(self, encoder: Encoder, config: Config) -> None:
        super().__init__()
        self.encoder = encoder
        self.filter: ObjectFilter | None = None
        self.projection: nn.Module = nn.Identity()
        if config.variant == "cotap":
            self.filter = ObjectFilter(encoder.channels)
            self.projection = nn.Sequential(self.filter, PrototypeHead(2 * encoder.channels))
        elif config.embedding:
            self.projection = projection_head(encoder.channels, config.embedding)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures (B, 3, H, W) -> features (B, C, h, w) and what is compared (B, D, h, w), float32."""
        features = self.encoder(image)
        return features, self.projection(features).float()


def unit_patches(maps: Tensor) -> Tensor:
    """(B, D, h, w) -> (B, N, D), each of unit length."""
    return F.normalize(maps.flatten(2).transpose(1, 2), dim=2)


def unit_images(maps: Tensor) -> Tensor:
    """(B, D, h, w) -> (B, D): means over the patches, of unit length."""
    return F.normalize(maps.mean((2, 3)), dim=1)


class RankingDistillation(Method):
    """Eqs. 1 to 5. A batch is a collated sample of `Candidates`."""

    couples_images = True
    recent: Tensor
    best: Tensor
    stale: Tensor
    done: Tensor

    def __init__(self, encoder: Encoder, images: int, refresh: int, config: Config) -> None:
        super().__init__()
        self.student = Branch(encoder, config)
        self.teacher = deepcopy(self.student).requires_grad_(False).eval()
        self.config, self.refresh = config, refresh
        queues = {"patches": CodeQueue(8192), "images": CodeQueue(1024)} if config.variant == "cotap" else {}
        self.codes = nn.ModuleDict(queues)
        # No buffers: the loop puts those back when it does not take a step.
        self.clusters = torch.zeros(images, dtype=torch.int64)
        self.neighbours = torch.full((images, config.positives), -1)
        self.register_buffer("recent", torch.zeros(2, dtype=torch.float64))  # sum and number of losses of this span
        self.register_buffer("best", torch.tensor(math.inf, dtype=torch.float64))
        self.register_buffer("stale", torch.tensor(0))
        self.register_buffer("done", torch.tensor(0))  # steps

    @torch.no_grad()
    def start_filter(self, images: Tensor, seed: int) -> None:
        """Puts the filter's prototypes, where there are any, among neighbourhoods of some images (K, 3, H, W)."""
        for branch in (self.student, self.teacher):
            if branch.filter is not None:
                branch.filter.start_from(self.teacher.encoder(images.to(self.best.device)), seed=seed)

    def train(self, mode: bool = True) -> "RankingDistillation":
        """The teacher stays in evaluation mode: it is an average, and must not depend on the batch."""
        super().train(mode)
        self.teacher.eval()
        return self

    def get_extra_state(self) -> dict[str, Tensor]:
        """What a checkpoint holds besides weights and buffers."""
        return {"clusters": self.clusters, "neighbours": self.neighbours}

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """Takes it back."""
        self.clusters, self.neighbours = state["clusters"], state["neighbours"]

    def forward(self, batch: dict[str, Any]) -> Losses:
        features, student = self.student(batch["strong"].transpose(0, 1).flatten(0, 1))
        with torch.no_grad():  # A4
            _, teacher = self.teacher(batch["image"].transpose(0, 1).flatten(0, 1))
        config, may_compare = self.config, self.candidates(batch["index"], batch["positive"])
        with torch.autocast(student.device.type, enabled=False):
            image = image_loss(unit_images(student), unit_images(teacher), may_compare, config)
            patch = patch_loss(unit_patches(student), unit_patches(teacher), config)
            losses = {"image": config.image_weight * image, "patch": config.patch_weight * patch}
            if self.student.filter is not None:
                losses |= self.prototype_losses(student, teacher)
                losses["use"] = self.student.filter.use_loss(features)
        total = torch.stack(list(losses.values())).sum().detach().double()
        self.recent += torch.where(total.isfinite(), torch.stack([total, torch.ones_like(total)]), 0)
        return losses

    def prototype_losses(self, student: Tensor, teacher: Tensor) -> Losses:
        """Eqs. 6 and 7; scores (2 B, K, h, w) of the anchors, then of their positives."""
        patches, targets = (scores.movedim(1, -1).flatten(0, 2) for scores in (student, teacher))
        codes = self.codes["patches"](targets, temperature=0.05)
        # x learns the code of x+, and x+ that of x.
        images = self.codes["images"](teacher.mean((2, 3)), temperature=0.05).roll(len(teacher) // 2, 0)
        return {
            "inner": code_cross_entropy(patches, codes, temperature=0.1),
            "cross": code_cross_entropy(student.mean((2, 3)), images, temperature=0.2),
        }

    def candidates(self, anchors: Tensor, positives: Tensor) -> Tensor:
        """Eq. 1: bool (B, 2 B), over the anchors and then the positives of the batch."""
        clusters = self.clusters.to(anchors.device)
        other_cluster = clusters[anchors][:, None] != clusters[torch.cat([anchors, positives])]
        own = torch.eye(len(anchors), dtype=torch.bool, device=anchors.device)
        return other_cluster | torch.cat([torch.zeros_like(own), own], 1)

    def after_step(self, step: int) -> None:
        """A5, and every ``refresh`` steps whether the loss still falls."""
        config = self.config
        share = cosine(config.steps)(step)
        decay = config.ema_end - (config.ema_end - config.ema_start) * share
        ema_update(self.teacher, self.student, decay, averages_buffers=True)  # else its statistics are of strong views
        ends = (step + 1) // self.refresh > int(self.done) // self.refresh  # a span's last step may be refused
        self.done.fill_(step + 1)
        if ends:
            mean = self.recent[0] / self.recent[1].clamp(min=1)
            has_fallen = mean < FALLEN * self.best
            self.stale = torch.where(has_fallen, 0, self.stale + 1)
            self.best = torch.where(has_fallen, mean, self.best)  # so that slow progress adds up
            self.recent = torch.zeros_like(self.recent)

    def has_converged(self) -> bool:
        """A6: whether the loss has not fallen for ``patience`` spans; without labels, as everything here."""
        return 0 < self.config.patience <= int(self.stale)

    @torch.no_grad()
    def patches(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What student and teacher make of whole images (K, 3, H, W): patches (K, N, D) of either."""
        self.eval()
        student, teacher = (unit_patches(branch(images)[1]) for branch in (self.student, self.teacher))
        self.train()
        return student, teacher

    @torch.no_grad()
    def recluster(self, data: ImageSet, seed: int, workers: int) -> None:
        """A1: clusters and positives of all images by the teacher as it is now."""
        config, teacher = self.config, self.teacher
        with self.whole():
            embedded = embed_images(
                lambda images: teacher.encoder(images).mean((2, 3)), data.images,
                side=config.crop, batch=2 * config.batch, device=self.best.device, workers=workers,
            )  # fmt: skip
        points = centred(embedded)
        count = config.clusters or min(1000, max(2, len(points) // 20))
        self.clusters = spherical_clusters(points, min(count, len(points)), seed=seed)
        if (self.clusters == self.clusters[0]).all():
            raise DataError("all images fall into one cluster: no negatives to rank below; give images that differ")
        self.neighbours = most_similar(points, self.clusters, config.positives)


def train(config: Config, run: Run, data: ImageSet) -> Encoder:
    """The student's encoder."""
    refuse_few(data, config.positives)
    torch.manual_seed(run.seed)
    stride, tones = config.output_stride, data.images[0].tones
    encoder = new_encoder(config.encoder, config.init, output_stride=stride, say=run.say, tones=tones)
    encoder.to(memory_format=torch.channels_last)
    refresh = config.refresh or max(100, math.ceil(1.25 * len(data.images) / config.batch))
    probes = evenly(data.images, PROBES, config.crop)
    if not encoder.is_pretrained:
        settle_statistics(encoder, probes)
    method = RankingDistillation(encoder, len(data.images), refresh, config).to(run.device)
    method.start_filter(probes, mix(run.seed, "filter"))
    is_new = not history(run)
    wait_for_all()  # all have looked before the first one writes
    if is_new:  # before anything is written: images that cannot be divided leave no run folder behind
        method.recluster(data, mix(run.seed, "clusters", 0), run.workers)

    def batches(start: int) -> Iterator[dict[str, Any]]:
        step = start
        while True:
            if step % refresh == 0 and not (step == 0 and is_new):
                method.recluster(data, mix(run.seed, "clusters", step), run.workers)
            views = Candidates(data.images, method.neighbours.cpu().numpy(), config.crop, config.area)
            span = refresh - step % refresh
            seed = mix(run.seed, STAGE)
            yield from islice(endless(views, config.batch, seed=seed, start=step, workers=run.workers), span)
            step += span

    watch = Watch(run, tau=config.tau_patch, threshold=config.threshold)

    def health() -> dict[str, float]:
        step = min(len(history(run)) * refresh, config.steps)  # as it is logged, though its step may be refused
        return watch(probes, *method.patches(probes.to(run.device)), step=step)

    if is_new:
        run.log(STAGE, 0, {f"val/{name}": value for name, value in health().items()})
    held = method.student.filter.parameters() if method.student.filter else ()  # its prototypes move by eq. 8 alone
    groups = decay_groups(method.student, config.weight_decay, held)
    optimizer = torch.optim.AdamW(groups, config.lr, fused=True)
    fit(
        method, batches, run=run, optimizer=optimizer, steps=config.steps, stage=STAGE, schedule=cosine(config.steps),
        evaluate=health, evaluate_every=refresh, converged=method.has_converged,
    )  # fmt: skip
    if method.has_converged():
        run.say(f"converged: the loss has not fallen for {config.patience} spans of {refresh} steps")
    only_first(lambda: write_health(run, len(data.images)))
    return method.student.encoder


def refuse(config: Config) -> None:
    """Refuses fields that do not go together.

    Raises:
        UsageError: the first of them.
    """
    if not 0 <= config.others < config.batch:
        raise UsageError(f"--others {config.others}: give fewer than --batch {config.batch}")
    if config.embedding and config.variant == "cotap":
        raise UsageError(f"--embedding {config.embedding}: --variant cotap compares scores of prototypes: leave one")
    if config.ema_start > config.ema_end:
        raise UsageError(f"--ema_start {config.ema_start:g}: give at most --ema_end {config.ema_end:g}")
