"""Losses that two or more methods use: pure functions of tensors that import nothing else of ours."""

from segue.losses.contrast import pixel_contrast, pixel_contrast_negatives
from segue.losses.cross_entropy import pixel_cross_entropy, pixel_weight
from segue.losses.ranking import (
    margin_penalty,
    ranking_loss,
    ranking_loss_chunked,
    ranking_loss_dense,
    relative_penalty,
    relative_ranking_loss,
)

__all__ = [
    "margin_penalty",
    "pixel_contrast",
    "pixel_contrast_negatives",
    "pixel_cross_entropy",
    "pixel_weight",
    "ranking_loss",
    "ranking_loss_chunked",
    "ranking_loss_dense",
    "relative_penalty",
    "relative_ranking_loss",
]
