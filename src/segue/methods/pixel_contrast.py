"""Label-based pixel contrast (Zhao et al., *Contrastive Learning for Label-Efficient Semantic Segmentation*,
ICCV 2021, arXiv:2012.06985).

f_p is the unit-length embedding of pixel p of crop I, g_q of pixel q of the same crop in other colours, I^; both carry
the class y_p. N is the number of labelled pixels, N_c of those of class c, t the temperature.

    (1)  L_W(I)  =  - 1/N sum_p 1/N_{y_p} sum_{q: y_q = y_p} log( e^{f_p.g_q/t} / sum_{k in I^} e^{f_p.g_k/t} )
    (2)  L_C(I)  =  as (1), with positives also from I^ of another crop J of the batch, negatives from I^ alone
    (3)  L_B     =  as (1), with all crops of the batch as one
    (4)  L_CE    =  cross-entropy of the classifier h(d(e(x))) that takes the projection head's place
    (5)  y^_p    =  argmax_c P_c(p)  where  P_c(p) >= T_c,  ignored elsewhere       `segue.prediction.pseudo_labels`

Contrast (1) first, then fine-tuning of the whole network (4). With unlabelled images the network so trained labels them
by (5), and a second round learns from labelled and pseudo-labelled images together.

Departs from the paper: a step of either stage passes ``batch`` crops through the network, so contrast takes half as
many crops, each in two views. The maps are compared at full resolution, with no pixel left out: the loss needs no N x N
matrix. ``negatives others`` takes the authors' released form, whose denominator holds one positive and the negatives
only. In the second round fine-tuning goes on under the same schedule, with pseudo-labelled images in other colours:
with both stages again and a new classifier, as in the paper (``second_round contrast``), a run of 800 steps lost 3
points. P_c of (5) is divided by the share of the class among the labels: else all that poles and signs got was the
class around them. Images on which (5) keeps nothing are left out, and labelled images are repeated: drawn as they come,
18 of 367, rare classes of which no pseudo-label is kept would be unlearnt.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset

from segue.bounds import ABOVE_0, AT_LEAST_0, AT_LEAST_1, BETWEEN_0_AND_1, SHARE, Bound
from segue.config import Data, Network, Views
from segue.data.balance import class_shares, class_weights
from segue.data.copy_paste import CopyPaste
from segue.data.decoder import Decoder
from segue.data.images import Middle, RandomViews, Whole
from segue.data.listing import Pair, identity
from segue.data.sample import IGNORE, Array
from segue.data.training import TrainingData
from segue.data.transforms import PLAIN, SIMCLR, ColorJitter
from segue.engine import Losses, Method, Run, cosine, endless, fit, mix
from segue.errors import DataError, UsageError
from segue.evaluation import pixel_embeddings, semantic
from segue.losses import pixel_contrast, pixel_contrast_negatives, pixel_cross_entropy, pixel_weight
from segue.models.heads import projection_head
from segue.models.segmenter import Segmenter
from segue.prediction.pseudo_labels import label_images
from segue.starting import new_segmenter

VERB = "train"
BOUNDS = {
    "contrast_share": BETWEEN_0_AND_1,
    "first_round": BETWEEN_0_AND_1,
    "threshold": SHARE,
    "background_threshold": SHARE,
    "temperature": ABOVE_0,
    "embedding": AT_LEAST_1,
    "distortion": AT_LEAST_0,
    "contrast_lr": AT_LEAST_0,
    "finetune_lr": AT_LEAST_0,
    "batch": Bound(
        lambda value: value >= 4 and value % 2 == 0, "an even number of at least 4: half of it in two views"
    ),
}


@dataclass(frozen=True)
class Config:
    """Label-based pixel contrast, then fine-tuning, then pseudo-labels.

    Args:
        steps: optimiser steps of all stages together.
        contrast_share: share of a round's steps spent on contrast, in (0, 1).
        first_round: share of the steps before pseudo-labels are made, in (0, 1); with unlabelled images only.
        second_round: ``finetune`` goes on with fine-tuning, ``contrast`` runs both stages again, as the paper does.
        contrast_lr: peak learning rate of contrast; 0 takes the paper's 0.1 for an encoder of random weights, and 0.02
            for one of given weights, whose features 0.1 destroys.
        finetune_lr: peak learning rate of fine-tuning; 0.007 in the paper, over 50,000 steps and more.
        weight_decay: of all weights; 4e-5 in the paper.
        balance: ``auto`` weights the classes of eq. 4 by how rare they are among the labels, ``none`` alike.
        temperature: t; 0.07 in the paper.
        embedding: length of f and g; 256 in the paper.
        positives: eq. 1 ``image``, eq. 2 ``pair``, eq. 3 ``batch``.
        negatives: ``all`` keys in the denominator as in eq. 1, or ``others``, the released form.
        distortion: strength of the second view's colour change; 1 is SimCLR's.
        threshold: T_c of eq. 5; 0.8 in the paper.
        background_threshold: T_c of the class ``background``; 0.97 in the paper.
        thresholds: T_c of single classes, as ``car:0.9,pole:0.6``.
        adjust: divides P_c of eq. 5 by the share of the class among the labels; not in the paper.
        evaluate_every: steps between two evaluations on the validation split; 0 evaluates at the end only.
    """

    data: Data = field(default_factory=Data)
    network: Network = field(default_factory=Network)
    views: Views = field(default_factory=Views)
    steps: int = 600
    contrast_share: float = 0.25
    first_round: float = 0.6
    second_round: Literal["finetune", "contrast"] = "finetune"
    contrast_lr: float = 0.0
    finetune_lr: float = 0.03
    weight_decay: float = 4e-5
    balance: Literal["none", "auto"] = "none"
    temperature: float = 0.07
    embedding: int = 256
    positives: Literal["image", "pair", "batch"] = "image"
    negatives: Literal["all", "others"] = "all"
    distortion: float = 1.0
    threshold: float = 0.8
    background_threshold: float = 0.97
    thresholds: str = ""
    adjust: bool = True
    evaluate_every: int = 0


def labels_at(mask: Tensor, height: int, width: int) -> Tensor:
    """Labels of feature pixels: each takes that of the mask pixel at its centre; (B, H, W) -> (B, height, width)."""
    down, across = mask.shape[-2] // height, mask.shape[-1] // width
    return mask[:, down // 2 :: down, across // 2 :: across]


def bags(embedding: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels as rows: (B, D, h, w), (B, h, w) -> (B, h w, D) of unit length, (B, h w)."""
    return F.normalize(embedding.float(), dim=1).flatten(2).transpose(1, 2), labels.flatten(1)


def within_image(
    first: Tensor, second: Tensor, labels: Tensor, *, temperature: float, others: bool = False, fast: bool = False
) -> Tensor:
    """Eq. 1, averaged over the crops that have a labelled pixel: a scalar in nats.

    Args:
        first: f, (B, N, D).
        second: g, (B, N, D).
        labels: y, (B, N).
        temperature: t.
        others: the released form of the denominator.
        fast: products in bfloat16.
    """
    form = pixel_contrast_negatives if others else pixel_contrast
    losses = [
        form(f, y, g, y, temperature=temperature, low_precision=fast)
        for f, g, y in zip(first, second, labels, strict=True)
    ]
    return torch.stack(losses).sum() / _labelled(labels)


def with_partner(
    first: Tensor, second: Tensor, labels: Tensor, *, temperature: float, others: bool = False, fast: bool = False
) -> Tensor:
    """Eq. 2; the partner J of each crop is the one before it in the batch. Arguments as of eq. 1."""
    form = pixel_contrast_negatives if others else pixel_contrast
    images = torch.zeros_like(labels[0])
    losses = []
    for i in range(len(first)):
        keys, key_labels = torch.cat([second[i], second[i - 1]]), torch.cat([labels[i], labels[i - 1]])
        losses.append(
            form(
                first[i], labels[i], keys, key_labels, anchor_images=images, key_images=torch.cat([images, images + 1]),
                temperature=temperature, low_precision=fast,
            )
        )  # fmt: skip
    return torch.stack(losses).sum() / _labelled(labels)


def whole_batch(
    first: Tensor, second: Tensor, labels: Tensor, *, temperature: float, others: bool = False, fast: bool = False
) -> Tensor:
    """Eq. 3. Arguments as of eq. 1."""
    form = pixel_contrast_negatives if others else pixel_contrast
    flat = labels.flatten()
    return form(first.flatten(0, 1), flat, second.flatten(0, 1), flat, temperature=temperature, low_precision=fast)


def _labelled(labels: Tensor) -> Tensor:
    """How many crops have a labelled pixel, at least 1."""
    return (labels != IGNORE).any(1).sum().clamp(min=1)


CONTRASTS = {"image": within_image, "pair": with_partner, "batch": whole_batch}


class Contrast(Method):
    """Eqs. 1 to 3. A batch holds ``image`` and ``view`` (B, 3, H, W) and ``mask`` (B, H, W)."""

    def __init__(self, network: Segmenter, config: Config, *, fast: bool) -> None:
        super().__init__()
        self.network = network
        self.projection = projection_head(network.spec.decoder_channels, config.embedding)
        self.form = CONTRASTS[config.positives]
        self.couples_images = config.positives != "image"
        self.temperature, self.others, self.fast = config.temperature, config.negatives == "others", fast

    def forward(self, batch: dict[str, Any]) -> Losses:
        both = torch.cat([batch["image"], batch["view"]])
        embedding = self.projection(self.network.features(both))
        labels = labels_at(batch["mask"], *embedding.shape[-2:])
        pixels, twice = bags(embedding, torch.cat([labels, labels]))
        first, second = pixels.chunk(2)
        return {
            "contrast": self.form(
                first, second, twice[: len(labels)], temperature=self.temperature, others=self.others, fast=self.fast
            )
        }


class FineTune(Method):
    """Eq. 4, with weights of the classes (K,) if given. A batch holds ``image`` (B, 3, H, W), ``mask`` (B, H, W)."""

    class_weights: Tensor | None

    def __init__(self, network: nn.Module, class_weights: Tensor | None = None) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, batch: dict[str, Any]) -> Losses:
        logits = self.network(batch["image"])
        return {"cross_entropy": pixel_cross_entropy(logits, batch["mask"], class_weights=self.class_weights)}

    def normalisers(self, part: dict[str, Any]) -> dict[str, float]:
        """Labelled pixels, over which the loss is a mean."""
        return {"cross_entropy": float(pixel_weight(part["mask"], class_weights=self.class_weights))}


def class_thresholds(config: Config, classes: Sequence[str]) -> Array:
    """T of eq. 5: (K,) in [0, 1].

    Raises:
        DataError: ``thresholds`` names no class or no probability, or ``background_threshold`` is given of no class.
    """
    given = config.background_threshold
    if given != Config.background_threshold and "background" not in classes:
        raise DataError(
            f"--background-threshold {given}: none of the classes {', '.join(classes)} is called background; say it of "
            f"one of them: --thresholds CLASS:{given}"
        )
    found = {name: config.background_threshold if name == "background" else config.threshold for name in classes}
    for part in filter(None, config.thresholds.split(",")):
        name, _, value = part.rpartition(":")
        try:
            found[name] = float(value)
        except ValueError:
            raise DataError(f"--thresholds {part!r} is no class:probability") from None
        if name not in classes or not 0 <= found[name] <= 1:
            raise DataError(f"--thresholds {part!r}: give one of {', '.join(classes)} and a number in [0, 1]")
    return np.array([found[name] for name in classes], np.float32)


def rounds_of(config: Config, has_unlabelled: bool) -> list[tuple[int, int]]:
    """Steps of contrast and of fine-tuning in each round: at least one of fine-tuning, or its classifier stays random;
    a single step leaves none for a second round."""
    first = max(1, min(round(config.steps * config.first_round), config.steps - 1)) if has_unlabelled else config.steps
    rounds = list[tuple[int, int]]()
    for steps in filter(None, (first, config.steps - first)):
        contrasts = min(round(steps * config.contrast_share), steps - 1)
        contrasts = 0 if rounds and config.second_round == "finetune" else contrasts
        rounds.append((contrasts, steps - contrasts))
    return rounds


def train(config: Config, run: Run, data: TrainingData) -> Segmenter:
    """The fine-tuned network."""
    thresholds = class_thresholds(config, data.classes)
    torch.manual_seed(run.seed)
    network = new_segmenter(config.network, data.listing, say=run.say, crop=config.views.crop)
    network.to(run.device).to(memory_format=torch.channels_last)
    probes = Middle(Whole(data.val or data.labelled, data.decoder))
    run.keep("embeddings_before", lambda: pixel_embeddings(network, probes, seed=run.seed))
    goes_on, rounds = config.second_round == "finetune", rounds_of(config, bool(data.unlabelled))
    sets: list[Labels] = [(data.labelled, data.decoder, data.paste)]
    for number, (contrasts, tunings) in enumerate(rounds):
        suffix = "" if number == 0 else "_pseudo"
        if number:
            shares = class_shares(data) if config.adjust else np.ones(len(data.classes))
            pseudo = label_images(network, data.unlabelled, thresholds, shares, run)
            if not pseudo:
                run.say("pseudo-labels: none reached its threshold; the second round learns from the labels alone")
            sets.append((pseudo, Decoder(identity(len(data.classes)), data.listing.colors, by_color=False), None))
        if not (number and goes_on):
            contrast(network, sets, config, run, contrasts, f"contrast{suffix}")
            run.keep(f"embeddings_after{suffix}", lambda: pixel_embeddings(network, probes, seed=run.seed))
        begun = sum(steps for _, steps in rounds[:number]) if goes_on else 0
        total = sum(steps for _, steps in rounds) if goes_on else tunings
        fine_tune(network, sets, config, run, data, tunings, f"finetune{suffix}", begun=begun, total=total)
    return network


def refuse(config: Config) -> None:
    """Refuses what is said of pseudo-labels where no image gets any.

    Raises:
        UsageError: the first such field.
    """
    for name in ("first_round", "second_round", "threshold", "background_threshold", "thresholds", "adjust"):
        if not config.data.unlabeled and getattr(config, name) != getattr(Config, name):
            option = name.replace("_", "-")
            raise UsageError(f"--{option}: there are no images to give pseudo-labels to; name them: --unlabeled FOLDER")


Labels = tuple[tuple[Pair, ...], Decoder, CopyPaste | None]
Sets = Sequence[Labels]


def _views(
    sets: Sets, config: Config, *, second: ColorJitter | None = None, pseudo_jitter: ColorJitter = PLAIN
) -> Dataset[Any]:
    """Training views; labelled images are repeated until they are drawn about as often as pseudo-labelled ones."""
    crop, scale = config.views.crop, config.views.scale
    jitters = (PLAIN, pseudo_jitter)
    labelled, *pseudo = (
        RandomViews(pairs, decoder, crop, scale, jitter=jitter, second=second, paste=paste)
        for (pairs, decoder, paste), jitter in zip(sets, jitters, strict=False)
    )
    return ConcatDataset([*[labelled] * max(1, round(sum(map(len, pseudo)) / len(labelled))), *pseudo])


def contrast(network: Segmenter, sets: Sets, config: Config, run: Run, steps: int, stage: str) -> None:
    """Eqs. 1 to 3 on the whole network without its classifier; the projection head is dropped at the end."""
    torch.manual_seed(mix(run.seed, stage))
    method = Contrast(network, config, fast=run.precision == "bf16")
    weights = [*network.encoder.parameters(), *network.decoder.parameters(), *method.projection.parameters()]
    lr = config.contrast_lr or (0.02 if network.is_pretrained else 0.1)
    optimizer = torch.optim.SGD(weights, lr, momentum=0.9, weight_decay=config.weight_decay, fused=True)
    views = _views(sets, config, second=SIMCLR.scaled(config.distortion))

    def batches(start: int) -> Iterator[dict[str, Any]]:
        return endless(views, config.views.batch // 2, seed=mix(run.seed, stage), start=start, workers=run.workers)

    fit(
        method, batches, run=run, optimizer=optimizer, steps=steps, stage=stage,
        schedule=cosine(steps), accumulate=config.views.accumulate,
    )  # fmt: skip


def fine_tune(
    network: Segmenter, sets: Sets, config: Config, run: Run, data: TrainingData, steps: int, stage: str,
    *, begun: int, total: int,
) -> None:  # fmt: skip
    """Eq. 4 on the whole network: ``steps`` of ``total``, with a new classifier where none were ``begun`` before."""
    torch.manual_seed(mix(run.seed, stage))
    if not begun:
        network.head.reset_parameters()
    method = FineTune(network, class_weights(data) if config.balance == "auto" else None)
    optimizer = torch.optim.SGD(
        network.parameters(), config.finetune_lr, momentum=0.9, weight_decay=config.weight_decay, fused=True
    )
    # Labels of its own say little to a network that sees the same again.
    jitter = SIMCLR.scaled(config.distortion) if begun else PLAIN
    views, val = _views(sets, config, pseudo_jitter=jitter), Whole(data.val, data.decoder)

    def batches(start: int) -> Iterator[dict[str, Any]]:
        return endless(views, config.views.batch, seed=mix(run.seed, stage), start=start, workers=run.workers)

    fit(
        method, batches, run=run, optimizer=optimizer, steps=steps, stage=stage,
        schedule=lambda step: cosine(total)(begun + step), accumulate=config.views.accumulate,
        evaluate=(lambda: semantic(network, val, data.classes)) if config.evaluate_every else None,
        evaluate_every=config.evaluate_every,
    )  # fmt: skip
