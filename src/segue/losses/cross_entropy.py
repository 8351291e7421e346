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
    if class_weights is None:
        return total / (target != ignore).sum().clamp(min=1)
    padded = torch.cat([class_weights, class_weights.new_zeros(1)])
    weight = padded[torch.where(target == ignore, len(class_weights), target)].sum()
    return total / torch.where(weight > 0, weight, 1)
