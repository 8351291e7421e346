"""Mean teacher with per-pixel credibility (after the patent application CN111489365A, 2020; Tarvainen and Valpola,
*Mean teachers are better role models*, NeurIPS 2017, arXiv:1703.01780; Yu et al., *Uncertainty-aware self-ensembling*,
MICCAI 2019, arXiv:1907.07034).

x_s, y_s are a source picture and its labels, x_t is a target picture, f the student, g the teacher, s the softmax over
C classes, n is standard normal noise, i the step.

    (1)  x~     =  x_t + clip(e n, -c, c),    in units of the normalised picture, drawn anew for student and each pass
    (2)  P      =  1/K sum_k s(g_k(x~_k)),    K stochastic passes
    (3)  m      =  gate(entropy(P)),          eqs. 1 to 5 of segue.credibility
    (4)  L_con  =  sum m |s(f(x~)) - P|^2 / (C sum m),    over the pixels; 0 where no pixel is credible
    (5)  w(i)   =  w_max exp(-5 (1 - min(1, i / i_ramp))^2)
    (6)  L      =  CE(f(style(x_s, x_t)), y_s)  +  w(i) L_con
    (7)  g     <-  a g + (1 - a) f,    a = min(1 - 1 / (i + 1), a_max)
    (8)  M      =  the pixels of half of the classes of y_s;  M pastes x_s, y_s and m = 1 over x~, P and m of eq. 4

Departs from the documents: P serves as credibility and as target, where they take a further pass for the target. It is
averaged at the decoder's size and then upsampled. The teacher runs in evaluation mode with the student's batch-norm
statistics, and only its dropout is stochastic; ``trunk shared`` has one pass up to the classifier and K draws of
dropout before it. ``consistency cross_entropy`` puts CE(f(x~), argmax P) in the place of the square of (4); (8) and the
strong view are those of Olsson et al. (WACV 2021) and Tranheden et al. (WACV 2021). With w_max = 0 the target is seen
through its style alone. ``keep`` may return the teacher of an earlier look at the target than the last one.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.adaptation import show_styles, show_target
from segue.bounds import AT_LEAST_0, AT_LEAST_1, BELOW_1, POINTS, SHARE, Bound
from segue.config import Domains, Network, Views
from segue.credibility import SOFTNESS, Gate, credibility, ramp
from segue.data.domain_views import DomainViews
from segue.data.images import Middle, Whole
from segue.data.listing import spread
from segue.data.style import Style
from segue.data.two_domains import DomainData
from segue.engine import Losses, Method, Run, cosine, ema_update, endless, fit, only_first
from segue.errors import UsageError
from segue.evaluation import Samples
from segue.losses import pixel_cross_entropy
from segue.models.segmenter import Segmenter, upsample
from segue.processes.ranks import as_on_first
from segue.starting import new_segmenter
from segue.watch import watch

VERB = "adapt"
IGNORE = 255
LARGEST_NOISE = 2.0  # c over e, in the published form
WATCHED = 12  # pictures of the target, and of the validation set, at each look
BOUNDS = {
    "band": Bound(lambda value: 0 <= value < 0.5, "a share of the shorter side in [0, 0.5)"),
    "invert": SHARE,
    "noise": AT_LEAST_0,
    "passes": AT_LEAST_1,
    "dropout": BELOW_1,
    "gate_start": SHARE,
    "gate_softness": Bound(lambda value: value >= 1e-3, "at least 0.001"),
    "gate_shares": Bound(lambda value: len(value) == 2 and all(map(SHARE.holds, value)), "two shares, as [0.3,0.9]"),
    "weight": AT_LEAST_0,
    "ramp": SHARE,
    "ema_decay": BELOW_1,
    "looks": AT_LEAST_1,
    "limit": POINTS,
    "class_limit": POINTS,
}


@dataclass(frozen=True)
class Config:
    """Mean teacher with per-pixel credibility.

    Args:
        steps: optimiser steps; the source-only training takes as many.
        lr: peak learning rate of SGD with momentum 0.9.
        weight_decay: of all weights.
        style: of eq. 6; ``none``, ``fourier``, ``lab`` or ``covariance``.
        band: L of the Fourier style: share of the shorter side that its window reaches, in [0, 0.5);
            0.01, 0.05 and 0.09 in the paper of that style.
        invert: chance that the light of a source picture is inverted before it gets its style, for domains where
            bright and dark change places, as fluorescence and histology; the source-only training has it too.
        noise: e of eq. 1, in units of the normalised picture; it is clipped at twice that. 0.1 in the published form,
            for pictures of unit variance, which those of a domain are not: there it costs the teacher most of what it
            knows (docs/log.md).
        passes: K of eq. 2; 8 in the published form.
        trunk: ``full`` repeats the whole teacher, ``shared`` its dropout and classifier only.
        dropout: chance that a channel is dropped before the classifier, with ``trunk shared``.
        gate: eq. 3; ``none``, ``absolute``, ``quantile``, ``classwise`` or ``soft``.
        gate_start: b of the absolute gate; 0.75 in the published form.
        gate_shares: shares of the pixels that quantile and classwise keep at the first and at the last step.
        gate_softness: s of the soft gate, at least 0.001: the larger, the more an uncertain pixel counts.
        weight: w_max of eq. 5; 0 leaves the teacher out.
        ramp: i_ramp of eq. 5, as a share of the steps.
        consistency: eq. 4, ``squared`` or ``cross_entropy``.
        class_mix: eq. 8.
        strong: the student sees the target in other colours than the teacher.
        ema_decay: a_max of eq. 7.
        looks: how often the teacher is looked at on the target, evenly over the steps.
        keep: the teacher that is returned: ``last``, or that of the look with the best ``information``, ``agreement``,
            ``entropy`` or ``drift``, none of which needs a label (`segue.watch`).
    """

    domains: Domains = field(default_factory=Domains)
    network: Network = field(default_factory=Network)
    views: Views = field(default_factory=Views)
    steps: int = 600
    lr: float = 0.03
    weight_decay: float = 4e-5
    style: Style = "fourier"
    band: float = 0.05
    invert: float = 0.0
    noise: float = 0.02
    passes: int = 4
    trunk: Literal["full", "shared"] = "full"
    dropout: float = 0.5
    gate: Gate = "soft"
    gate_start: float = 0.75
    gate_shares: tuple[float, float] = (0.3, 0.9)
    gate_softness: float = SOFTNESS
    weight: float = 1.0
    ramp: float = 0.4
    consistency: Literal["squared", "cross_entropy"] = "squared"
    class_mix: bool = False
    strong: bool = False
    ema_decay: float = 0.99
    looks: int = 8
    keep: Literal["last", "information", "agreement", "entropy", "drift"] = "last"


def source_only(config: Config) -> Config:
    """The control: the same training that never sees the target."""
    domains = replace(config.domains, translated="")
    return replace(config, domains=domains, style="none", weight=0.0, class_mix=False, strong=False, keep="last")


def noisy(image: Tensor, deviation: Tensor, *, noise: float) -> Tensor:
    """Eq. 1: (B, bands, H, W) in the input's own range -> float32 of the same shape.

    Args:
        image: pictures of any dtype.
        deviation: what the network divides by, (1, bands, 1, 1): one unit of the normalised picture.
        noise: e >= 0; clipped at c = 2 e.
    """
    drawn = torch.randn(image.shape, device=image.device).mul_(noise)
    return image.float() + drawn.clamp_(-LARGEST_NOISE * noise, LARGEST_NOISE * noise) * deviation


def full_passes(teacher: Segmenter, image: Tensor, *, passes: int, noise: float, chunk: int = 1) -> Tensor:
    """Eq. 2 by K passes of the whole teacher: (B, bands, H, W) -> float32 (B, C, h, w) at the decoder's size.

    Args:
        teacher: in the mode that it is to run in.
        image: target pictures.
        passes: K.
        noise: e of eq. 1.
        chunk: passes that go through together; memory grows with it, the result does not change.
    """
    total = torch.zeros((), device=image.device)
    for first in range(0, passes, chunk):
        views = [noisy(image, teacher.normalise.std, noise=noise) for _ in range(first, min(first + chunk, passes))]
        found = teacher.head(teacher.features(torch.cat(views))).float().softmax(1)
        total = total + found.reshape(len(views), *image.shape[:1], *found.shape[1:]).sum(0)
    return total / passes


def shared_passes(teacher: Segmenter, image: Tensor, *, passes: int, noise: float, dropout: float) -> Tensor:
    """Eq. 2 by one pass of encoder and decoder and K draws of dropout; arguments and result as of `full_passes`.

    Whole channels are dropped, so a draw is a draw of the classifier's weights, and the K of them are one product.
    """
    features = teacher.features(noisy(image, teacher.normalise.std, noise=noise))
    return dropped_head(teacher.head, features, passes=passes, dropout=dropout)


def dropped_head(head: nn.Conv2d, features: Tensor, *, passes: int, dropout: float) -> Tensor:
    """Mean of the softmax of ``head`` over K draws of channel dropout: (B, D, h, w) -> float32 (B, C, h, w).

    Args:
        head: a 1 x 1 convolution to C classes.
        features: what it takes.
        passes: K.
        dropout: chance of each channel of each picture to be dropped, in [0, 1).
    """
    batch, channels, height, width = features.shape
    is_kept = torch.rand(batch, passes, 1, channels, device=features.device) >= dropout
    weights = is_kept * head.weight[:, :, 0, 0] / (1 - dropout)  # (B, K, C, D)
    pixels = features.permute(0, 2, 3, 1).flatten(1, 2)  # (B, h w, D), no copy where channels come last
    logits = (pixels @ weights.flatten(1, 2).transpose(1, 2)).float().reshape(batch, -1, passes, len(head.weight))
    if head.bias is not None:
        logits = logits + head.bias
    return logits.softmax(3).mean(2).transpose(1, 2).reshape(batch, -1, height, width)


def credible_mean(per_pixel: Tensor, mask: Tensor) -> Tensor:
    """sum m l / sum m over (B, H, W): a scalar; 0, with gradient, where all of m is 0."""
    return (per_pixel * mask).sum() / torch.where(mask.sum() > 0, mask.sum(), 1)


def squared_consistency(logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Eq. 4: a scalar in [0, 2 / C].

    Args:
        logits: of the student, (B, C, H, W).
        target: P, (B, C, H, W); no gradient flows into it.
        mask: m, (B, H, W) in [0, 1].
    """
    return credible_mean((logits.float().softmax(1) - target.detach()).square().mean(1), mask)


def cross_entropy_consistency(logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Eq. 4 with CE(f(x~), argmax P) for the square, in nats; arguments as of `squared_consistency`."""
    return credible_mean(F.cross_entropy(logits.float(), target.detach().argmax(1), reduction="none"), mask)


CONSISTENCIES = {"squared": squared_consistency, "cross_entropy": cross_entropy_consistency}


def consistency_weight(step: int, *, largest: float, ramp_steps: float) -> float:
    """Eq. 5."""
    return largest * ramp(step / ramp_steps if ramp_steps > 0 else 1.0)


def ema_decay(step: int, *, largest: float) -> float:
    """a of eq. 7: 0 at step 0, so that the teacher starts as the student's copy."""
    return min(1 - 1 / (step + 1), largest)


def half_of_the_classes(mask: Tensor) -> Tensor:
    """M of eq. 8: bool (B, H, W), True on the pixels of ceil(n / 2) of the n classes of each label map."""
    chosen = torch.zeros_like(mask, dtype=torch.bool)
    for one, where in zip(mask, chosen, strict=True):
        present = one[one != IGNORE].unique()
        drawn = present[torch.randperm(len(present), device=mask.device)[: -(-len(present) // 2)]]
        where |= torch.isin(one, drawn)
    return chosen


class MeanTeacher(Method):
    """Eqs. 1 to 8. A batch holds ``source`` (``image``, ``mask``) and ``target`` (``image``, ``view``, ``inside``).

    ``image`` and ``view`` are (B, 3, H, W): what the teacher sees of the target, and the student. ``inside`` is bool
    (B, H, W): False where a small picture was padded.
    """

    step: Tensor
    best: Tensor

    def __init__(self, student: Segmenter, config: Config) -> None:
        super().__init__()
        self.student = student
        self.teacher: Segmenter = deepcopy(student).requires_grad_(False)
        self.config = config
        self.kept: Segmenter | None = deepcopy(self.teacher) if config.keep != "last" else None
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("best", torch.tensor(-torch.inf, dtype=torch.float64))

    def train(self, mode: bool = True) -> "MeanTeacher":
        """The teacher stays in evaluation mode, but for its dropout where several passes are to differ."""
        super().train(mode)
        self.teacher.eval()
        if mode and self.config.trunk == "full" and self.config.passes > 1:
            for module in self.teacher.modules():
                if isinstance(module, nn.modules.dropout._DropoutNd):
                    module.train()
        return self

    def progress(self) -> float:
        """Share of the steps that is done."""
        return int(self.step) / self.config.steps

    def teach(self, image: Tensor) -> Tensor:
        """P of eq. 2 at the size of the pictures: float32 (B, C, H, W)."""
        with torch.inference_mode():
            if self.config.trunk == "shared":
                small = shared_passes(
                    self.teacher, image, passes=self.config.passes, noise=self.config.noise, dropout=self.config.dropout
                )
            else:
                small = full_passes(self.teacher, image, passes=self.config.passes, noise=self.config.noise)
            probabilities = upsample(small, image.shape[-2], image.shape[-1])
        return probabilities.clone()  # a tensor that a loss may keep for its gradient

    def credible(self, probabilities: Tensor, inside: Tensor) -> Tensor:
        """m of eq. 3 at this step: float32 (B, H, W)."""
        return credibility(
            probabilities, self.config.gate, progress=self.progress(), is_valid=inside,
            start=self.config.gate_start, shares=self.config.gate_shares, softness=self.config.gate_softness,
        )  # fmt: skip

    def forward(self, batch: dict[str, dict[str, Any]]) -> Losses:
        source = batch["source"]
        losses = {"source": pixel_cross_entropy(self.student(source["image"]), source["mask"])}
        if self.config.weight == 0:
            return losses
        target = batch["target"]
        probabilities = self.teach(target["image"])
        mask = self.credible(probabilities, target["inside"])
        view = noisy(target["view"], self.student.normalise.std, noise=self.config.noise)
        if self.config.class_mix:
            view, probabilities, mask = self.mixed(source, view, probabilities, mask)
        weight = consistency_weight(
            int(self.step), largest=self.config.weight, ramp_steps=self.config.ramp * self.config.steps
        )
        consistency = CONSISTENCIES[self.config.consistency](self.student(view), probabilities, mask)
        return {**losses, "consistency": weight * consistency}

    def mixed(
        self, source: dict[str, Any], view: Tensor, probabilities: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Eq. 8: view, target and credibility with classes of the source pasted in."""
        pasted = half_of_the_classes(source["mask"])
        labels = torch.where(pasted, source["mask"], 0).long()
        known = F.one_hot(labels, probabilities.shape[1]).movedim(3, 1).to(probabilities)
        where = pasted[:, None]
        return (
            torch.where(where, source["image"].float(), view),
            torch.where(where, known, probabilities),
            torch.where(pasted, 1.0, mask),
        )

    def after_step(self, step: int) -> None:
        """Eq. 7."""
        ema_update(self.teacher, self.student, ema_decay(step, largest=self.config.ema_decay))
        self.step.fill_(step + 1)

    def trusted(self, probabilities: Tensor) -> Tensor:
        """`credible` of whole pictures, which have no padding."""
        return self.credible(probabilities, torch.ones_like(probabilities[:, 0], dtype=torch.bool))

    def look(self, target: Samples, val: Samples, data: DomainData) -> dict[str, float]:
        """What `segue.watch` tells of the teacher; it is kept if that is the best so far by ``keep``."""
        self.student.eval()
        scores = watch(self.teach, self.trusted, self.student, target, val, data.classes, data.shares)
        self.student.train()
        if self.kept is not None:
            sign = -1 if self.config.keep in ("entropy", "drift") else 1
            score = self.best.new_tensor(sign * scores[self.config.keep])
            as_on_first([score])  # each process looks with noise of its own, and all have to keep the same teacher
            if score > self.best:
                self.best.copy_(score)
                self.kept.load_state_dict(self.teacher.state_dict())
        return scores

    def result(self) -> Segmenter:
        """The teacher that ``keep`` chose."""
        return self.kept if self.kept is not None else self.teacher


def train(config: Config, run: Run, data: DomainData) -> Segmenter:
    """The adapted teacher."""
    torch.manual_seed(run.seed)
    network = new_segmenter(config.network, data.listing, say=run.say, crop=config.views.crop)
    method = MeanTeacher(network.to(memory_format=torch.channels_last), config)
    translated = bool(config.domains.translated)
    views = DomainViews(
        tuple(source.labelled(translated=translated) for source in data.sources),
        data.target, config.views.crop, config.views.scale, "none" if translated else config.style, config.band,
        config.strong, config.weight > 0, config.invert,
    )  # fmt: skip

    def batches(start: int) -> Iterator[dict[str, Any]]:
        return endless(views, config.views.batch, seed=run.seed, start=start, workers=run.workers)

    target, val = (Middle(Whole(spread(pairs, WATCHED), data.decoder)) for pairs in (data.target, data.val))
    fit(
        method,
        batches,
        run=run,
        optimizer=torch.optim.SGD(
            network.parameters(), config.lr, momentum=0.9, weight_decay=config.weight_decay, fused=True
        ),
        steps=config.steps,
        stage="adapt",
        schedule=cosine(config.steps),
        accumulate=config.views.accumulate,
        evaluate=lambda: method.look(target, val, data),
        evaluate_every=-(-config.steps // config.looks),
    )
    if config.weight or views.style != "none" or translated:
        learnt = tuple(pair for pairs, _, _ in views.sources for pair in pairs)
        shown = partial(show_styles, style=views.style, band=views.band, invert=views.invert > 0)
        only_first(lambda: shown(run, data.labelled(), learnt, data.target))
        only_first(lambda: show_target(run, method.result(), method.trusted, data.target))
    return method.result()


def refuse(config: Config) -> None:
    """Refuses a style beside pictures that have one already.

    Raises:
        UsageError: there is one.
    """
    if config.domains.translated and (config.style not in (Config.style, "none") or config.band != Config.band):
        raise UsageError("--style and --band: pictures of --translated have the target's style already; leave one out")
