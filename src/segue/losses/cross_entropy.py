"""Cross-entropy of pixels."""

import torch
import torch.nn.functional as F
from torch import Tensor


def pixel_cross_entropy(
    logits: Tensor, mask: Tensor, *, class_weights: Tensor | None = None, ignore: int = 255
) -> Tensor:
    """Cross-entropy over the labelled pixels, weighted by class.

    Args:
        logits: (B, K, H, W), any real numbers.
        mask: (B, H, W) class ids of any integer dtype, ``ignore`` where nothing is known.
        class_weights: (K,), at least 0; all 1 if absent.
        ignore: the id that is left out.

    Returns:
        A scalar in nats per (weighted) pixel; 0, with gradient, if every pixel is ignored.
    """
    target = mask.long()
    total = F.cross_entropy(logits.float(), target, weight=class_weights, ignore_index=ignore, reduction="sum")
    weight = pixel_weight(target, class_weights=class_weights, ignore=ignore)
    return total / torch.where(weight > 0, weight, 1)


def pixel_weight(mask: Tensor, *, class_weights: Tensor | None = None, ignore: int = 255) -> Tensor:
    """What `pixel_cross_entropy` divides by: the labelled pixels, or the sum of their weights; a scalar."""
    if class_weights is None:
        return (mask != ignore).sum()
    padded = torch.cat([class_weights, class_weights.new_zeros(1)])
    return padded[torch.where(mask == ignore, len(class_weights), mask.long())].sum()
