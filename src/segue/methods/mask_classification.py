"""Mask classification (Cheng et al., *Masked-attention Mask Transformer*, CVPR 2022, arXiv:2112.01527).

    (1)  sigma  =  argmin over assignments of queries to segments of
                   sum_n  5 BCE(m_sigma(n), g_n) + 5 Dice(m_sigma(n), g_n) - 2 p_sigma(n)(c_n)
    (2)  L  =  sum over layers of  2 CE(p, c) + 5 BCE(m, g) + 5 Dice(m, g)

p are class probabilities of the queries, m their masks, g and c masks and classes of the true segments. Queries without
a segment are to say no-object, with weight 0.1. Mask terms are taken at sampled points, most of them where a mask is
unsure. It gives the base model that ``segue extend`` teaches new classes.

Departs from the paper: sizes for a CPU by default; a cosine schedule; void pixels count as outside, as in its code.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from segue.bounds import Bound
from segue.config import Data, Views
from segue.data.panoptic import Annotation, PanopticViews, PanopticWhole
from segue.data.training import TrainingData
from segue.engine import Losses, Method, Run, cosine, endless, fit
from segue.models.mask_classifier import MaskClassifier, padded_size, parameter_groups
from segue.panoptic.evaluation import measure_panoptic
from segue.panoptic.loss import mask_losses, true_segments
from segue.starting import new_mask_classifier

VERB = "train"
BOUNDS = {"queries": Bound(lambda value: value >= 0, "a number of segments, or 0 for that of --size")}


@dataclass(frozen=True)
class MaskNetwork:
    """The network: a timm encoder under Mask2Former.

    Args:
        encoder: any timm model with feature maps at strides 4 to 32.
        init: what the encoder starts from: ``auto`` (ImageNet weights at hand, else random), ``random``, ``timm:``
            (downloads), ``hf:owner/name`` (downloads), a .safetensors file, or the folder of a run or model.
        size: of the decoders: ``tiny`` for a CPU, ``small``, or the paper's, ``full``.
        queries: most segments of a picture; 0 takes the number of ``size``.
    """

    encoder: str = "mobilenetv2_100"
    init: str = "auto"
    size: Literal["tiny", "small", "full"] = "tiny"
    queries: int = 0


@dataclass(frozen=True)
class Config:
    """Mask classification.

    Args:
        by_region: where a set does not number its objects, connected regions of a countable class are objects.
        steps: optimiser steps.
        lr: peak learning rate of AdamW; the paper's is 1e-4.
        encoder_lr: factor of the learning rate for the encoder.
        weight_decay: of all weights but those of norms and embeddings.
        clip: largest norm of the gradient; 0.01 in the paper.
        points: at which a mask is compared; 12544 in the paper.
        evaluate_every: steps between two evaluations on the validation split; 0 evaluates at the end only.
    """

    data: Data = field(default_factory=Data)
    network: MaskNetwork = field(default_factory=MaskNetwork)
    views: Views = field(default_factory=Views)
    by_region: bool = False
    steps: int = 2000
    lr: float = 5e-4
    encoder_lr: float = 1.0
    weight_decay: float = 0.05
    clip: float = 1.0
    points: int = 1024
    evaluate_every: int = 0


class MaskClassification(Method):
    """Eqs. 1 and 2. A batch holds ``image`` (B, 3, H, W), ``segments`` (B, H, W) and ``labels`` (B, N)."""

    def __init__(self, network: MaskClassifier, points: int) -> None:
        super().__init__()
        self.network = network
        self.points = points

    def forward(self, batch: dict[str, Any]) -> Losses:
        layers = self.network.layers(batch["image"])
        truths = true_segments(batch["segments"], batch["labels"], padded_size(batch["image"]))
        return mask_losses(layers, truths, points=self.points)


def train(config: Config, run: Run, data: TrainingData) -> MaskClassifier:
    """The trained network."""
    torch.manual_seed(run.seed)
    chosen = config.network
    network = new_mask_classifier(
        chosen.encoder, chosen.init, chosen.size, chosen.queries, data.listing, say=run.say
    ).to(memory_format=torch.channels_last)
    annotation = Annotation(data.listing, config.by_region)
    if not data.listing.things:
        run.say(
            "warning: no class is said to have objects, so none are told apart: give the ids of those that can be "
            'counted as "things" in dataset.json, and the numbers of objects in instances/ (or --by-region)'
        )
    most, queries = annotation.most_segments(data.labelled, data.paste), network.spec.queries
    if most > queries:
        run.say(f"warning: a picture has {most} segments and the network {queries} queries; give --queries {most}")
    views = PanopticViews(data.labelled, annotation, config.views.crop, config.views.scale, paste=data.paste)
    val = PanopticWhole(data.val, annotation)

    def batches(start: int) -> Iterator[dict[str, Any]]:
        return endless(views, config.views.batch, seed=run.seed, start=start, workers=run.workers)

    rates = {"lr": config.lr, "encoder_lr": config.encoder_lr, "weight_decay": config.weight_decay}
    fit(
        MaskClassification(network, config.points),
        batches,
        run=run,
        optimizer=torch.optim.AdamW(parameter_groups(network, **rates), fused=True),
        steps=config.steps,
        stage="mask_classification",
        schedule=cosine(config.steps),
        accumulate=config.views.accumulate,
        clip=config.clip,
        evaluate=(lambda: measure_panoptic(network, val).scores()) if config.evaluate_every else None,
        evaluate_every=config.evaluate_every,
    )
    return network
