"""How rare each class of a training set is."""

import numpy as np
import torch
from torch import Tensor

from segue.data.images import Whole
from segue.data.sample import IGNORE, Array
from segue.data.training import TrainingData


def class_shares(data: TrainingData) -> Array:
    """Share of each class of the labelled pixels: float64 (K,), which add up to 1."""
    pixels = np.zeros(len(data.classes))
    masks = Whole(data.labelled, data.decoder)
    for i in range(len(masks)):
        mask = masks[i]["mask"].numpy()
        pixels += np.bincount(mask[mask != IGNORE], minlength=len(pixels))
    return np.asarray(pixels / max(1.0, pixels.sum()))


def class_weights(data: TrainingData) -> Tensor:
    """Median-frequency balancing (Eigen & Fergus, ICCV 2015) over the labelled masks.

        w_c  =  median(q) / q_c,    q_c the share of labelled pixels of class c

    Returns:
        float32 (K,), kept within [0.1, 10]; 1 for a class that no mask holds.
    """
    shares = class_shares(data)
    present = shares > 0
    weights = np.where(present, np.median(shares[present]) / np.where(present, shares, 1.0), 1.0)
    return torch.tensor(weights, dtype=torch.float32).clamp(0.1, 10.0)
