"""Both pixel contrast losses as they are defined, with (N, M) matrices: what tests and benchmarks compare with."""

import torch
from torch import Tensor


def _masks(
    labels: Tensor,
    key_labels: Tensor,
    images: Tensor | None,
    key_images: Tensor | None,
    *,
    ignore: int,
    excludes_self: bool,
) -> tuple[Tensor, Tensor]:
    """Which keys are positive and which negative for which anchor: bool, (N, M) each."""
    is_used = (labels[:, None] != ignore) & (key_labels != ignore)
    is_same = labels[:, None] == key_labels
    is_negative = is_used & ~is_same
    if images is not None and key_images is not None:
        is_negative &= images[:, None] == key_images
    is_positive = is_used & is_same
    if excludes_self:
        is_positive &= ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return is_positive, is_negative


def dense_pixel_contrast(
    anchors: Tensor,
    labels: Tensor,
    keys: Tensor | None = None,
    key_labels: Tensor | None = None,
    *,
    anchor_images: Tensor | None = None,
    key_images: Tensor | None = None,
    temperature: float = 0.07,
    ignore: int = 255,
    exclude_self: bool = False,
) -> Tensor:
    """``segue.losses.pixel_contrast``; NaN if no anchor has a positive."""
    if keys is None or key_labels is None:
        keys, key_labels, key_images = anchors, labels, anchor_images
    is_positive, is_negative = _masks(
        labels, key_labels, anchor_images, key_images, ignore=ignore, excludes_self=exclude_self
    )
    z = anchors @ keys.T / temperature
    is_anchor = is_positive.any(1)
    denominator = z.masked_fill(~(is_positive | is_negative), -torch.inf)[is_anchor].logsumexp(1)
    positive = (z * is_positive)[is_anchor].sum(1) / is_positive[is_anchor].sum(1)
    return (denominator - positive).mean()


def dense_pixel_contrast_negatives(
    anchors: Tensor,
    labels: Tensor,
    keys: Tensor | None = None,
    key_labels: Tensor | None = None,
    *,
    anchor_images: Tensor | None = None,
    key_images: Tensor | None = None,
    temperature: float = 0.07,
    ignore: int = 255,
    exclude_self: bool = False,
) -> Tensor:
    """``segue.losses.pixel_contrast_negatives``; NaN if no anchor has a positive."""
    if keys is None or key_labels is None:
        keys, key_labels, key_images = anchors, labels, anchor_images
    is_positive, is_negative = _masks(
        labels, key_labels, anchor_images, key_images, ignore=ignore, excludes_self=exclude_self
    )
    z = anchors @ keys.T / temperature
    negatives = z.masked_fill(~is_negative, torch.finfo(z.dtype).min).logsumexp(1, keepdim=True)
    each = torch.nn.functional.softplus(negatives - z) * is_positive
    is_anchor = is_positive.any(1)
    return (each.sum(1)[is_anchor] / is_positive.sum(1)[is_anchor]).mean()
