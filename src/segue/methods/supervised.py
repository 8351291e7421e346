"""Plain supervised training (Long, Shelhamer, Darrell, *Fully Convolutional Networks*, CVPR 2015, arXiv:1411.4038).

    (1)  L  =  sum_p w_{y_p} CE(f(x)_p, y_p) / sum_p w_{y_p},    over the pixels p that have a label
    (2)  w_c  =  median(q) / q_c,    q_c the share of labelled pixels of class c  (Eigen & Fergus, ICCV 2015)

It is the control of every other method, and with ``linear_probe`` it measures a frozen encoder.

Departs from the paper: eq. 2 is optional, and w is kept within [0.1, 10].
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from segue.config import Data, Network, Views
from segue.data.balance import class_weights
from segue.data.images import RandomViews, Whole
from segue.data.training import TrainingData
from segue.engine import Losses, Method, Run, cosine, endless, fit
from segue.errors import UsageError
from segue.evaluation import Samples, semantic
from segue.losses import pixel_cross_entropy, pixel_weight
from segue.models.heads import LinearProbe
from segue.starting import new_segmenter
from segue.weights import Model

VERB = "train"


@dataclass(frozen=True)
class Config:
    """Plain supervised training.

    Args:
        steps: optimiser steps.
        lr: peak learning rate of SGD with momentum 0.9, for ``batch`` crops.
        weight_decay: of all weights.
        balance: ``auto`` weights classes by eq. 2, ``none`` alike.
        linear_probe: train a 1 x 1 head alone, on the frozen encoder's last map.
        evaluate_every: steps between two evaluations on the validation split; 0 evaluates at the end only.
    """

    data: Data = field(default_factory=Data)
    network: Network = field(default_factory=Network)
    views: Views = field(default_factory=Views)
    steps: int = 600
    lr: float = 0.03
    weight_decay: float = 4e-5
    balance: Literal["none", "auto"] = "none"
    linear_probe: bool = False
    evaluate_every: int = 0


class Supervised(Method):
    """Eq. 1. A batch holds ``image`` (B, 3, H, W) and ``mask`` (B, H, W)."""

    class_weights: Tensor

    def __init__(self, network: nn.Module, class_weights: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("class_weights", class_weights)

    def forward(self, batch: dict[str, Any]) -> Losses:
        logits = self.network(batch["image"])
        return {"cross_entropy": pixel_cross_entropy(logits, batch["mask"], class_weights=self.class_weights)}

    def normalisers(self, part: dict[str, Any]) -> dict[str, float]:
        """Labelled pixels, over which the loss is a mean."""
        return {"cross_entropy": float(pixel_weight(part["mask"], class_weights=self.class_weights))}


def train(config: Config, run: Run, data: TrainingData) -> Model:
    """The trained network."""
    torch.manual_seed(run.seed)
    segmenter = new_segmenter(config.network, data.listing, say=run.say, crop=config.views.crop)
    network: Model = LinearProbe(segmenter) if config.linear_probe else segmenter
    weights = class_weights(data) if config.balance == "auto" else torch.ones(len(data.classes))
    method = Supervised(network.to(memory_format=torch.channels_last), weights)
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, config.lr, momentum=0.9, weight_decay=config.weight_decay, fused=True)
    views = RandomViews(data.labelled, data.decoder, config.views.crop, config.views.scale, paste=data.paste)
    val: Samples = Whole(data.val, data.decoder)

    def batches(start: int) -> Iterator[dict[str, Any]]:
        return endless(views, config.views.batch, seed=run.seed, start=start, workers=run.workers)

    fit(
        method,
        batches,
        run=run,
        optimizer=optimizer,
        steps=config.steps,
        stage="supervised",
        schedule=cosine(config.steps),
        accumulate=config.views.accumulate,
        evaluate=(lambda: semantic(network, val, data.classes)) if config.evaluate_every else None,
        evaluate_every=config.evaluate_every,
    )
    return network


def refuse(config: Config) -> None:
    """Refuses what is said of the decoder, which a linear probe does without.

    Raises:
        UsageError: it is.
    """
    if config.linear_probe and config.network.decoder_channels != Network.decoder_channels:
        raise UsageError("--decoder-channels: --linear-probe trains without a decoder; leave one of them out")
