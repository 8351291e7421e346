"""Losses that two or more methods use: pure functions of tensors that import nothing else of ours."""

from segue.losses.contrast import pixel_contrast, pixel_contrast_negatives
from segue.losses.cross_entropy import pixel_cross_entropy

__all__ = ["pixel_contrast", "pixel_contrast_negatives", "pixel_cross_entropy"]
