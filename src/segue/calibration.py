"""Probabilities that mean what they say: one temperature for all logits, fitted on labelled pictures.

Guo et al., *On Calibration of Modern Neural Networks*, ICML 2017:  p = softmax(logits / T), T the least cross-entropy.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segue.data.sample import IGNORE
from segue.errors import DataError
from segue.evaluation import Samples
from segue.metrics import Calibration
from segue.prediction.pictures import WHOLE
from segue.weights import Model

PIXELS = 20_000  # of each picture, at most
LOGITS = 20_000_000  # of all pictures, at most: a fit takes some ten bytes for each
RANGE = (0.05, 20.0)  # of T


@dataclass(frozen=True)
class Fitted:
    """A temperature and what it does on the pictures it was fitted on.

    Args:
        temperature: T.
        before: expected calibration error with T = 1, in [0, 1].
        after: the same with T.
        images: labelled pictures.
    """

    temperature: float
    before: float
    after: float
    images: int


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """T of least cross-entropy, within `RANGE`: logits (N, K), labels (N,)."""
    from scipy.optimize import minimize_scalar

    logits = logits.double()

    def cost(logarithm: float) -> float:
        return float(F.cross_entropy(logits / math.exp(logarithm), labels))

    found = minimize_scalar(cost, bounds=[math.log(t) for t in RANGE], method="bounded", options={"xatol": 1e-4})
    return math.exp(float(found.x))


@torch.inference_mode()
def calibrate(model: Model, data: Samples) -> Fitted:
    """The temperature of ``model`` on labelled pictures.

    Raises:
        DataError: no pixel has a label.
    """
    model.eval()
    pieces = [piece for piece in _pixels(model, data) if len(piece[1])]
    if not pieces:
        raise DataError("--calibrate: no pixel of these pictures has a label; name a labelled set, as photos:val")
    logits, labels = (torch.cat([piece[i] for piece in pieces]) for i in (0, 1))
    temperature = fit_temperature(logits, labels)
    before, after = (_error(logits / t, labels) for t in (1.0, temperature))
    return Fitted(temperature, before, after, len(pieces))


def _pixels(model: Model, data: Samples) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits (N, K) and labels (N,) of random labelled pixels of each picture, or of its middle: up to `PIXELS`, or
    fewer where those of all pictures would have more logits than `LOGITS`."""
    device, classes = next(model.parameters()).device, len(model.spec.classes)
    pixels, largest = max(1, min(PIXELS, LOGITS // (classes * max(1, len(data))))), WHOLE.pixels(classes)
    for i in range(len(data)):
        sample = data[i]
        if "mask" not in sample:
            continue
        image, mask = _middle(sample["image"], largest), _middle(sample["mask"], largest)
        labels = mask.flatten().long()
        places = torch.nonzero(labels != IGNORE)[:, 0].numpy()
        chosen = torch.from_numpy(np.random.default_rng(i).permutation(places)[:pixels])
        logits = model(image[None].to(device))[0].float().flatten(1).T.cpu()
        yield logits[chosen], labels[chosen]


def _middle(values: Tensor, largest: int) -> Tensor:
    """The middle of a picture or mask (..., H, W) that has more than ``largest`` pixels; a smaller one as it is."""
    side = math.isqrt(largest)
    if values.shape[-1] * values.shape[-2] <= largest:
        return values
    top, left = (max(0, (size - side) // 2) for size in values.shape[-2:])
    return values[..., top : top + side, left : left + side]


def _error(logits: Tensor, labels: Tensor) -> float:
    calibration = Calibration()
    probability, prediction = logits.softmax(1).max(1)
    calibration.update(labels, prediction, probability)
    return calibration.ece()
