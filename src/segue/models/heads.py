"""Small networks on top of an encoder or decoder."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.models.segmenter import Segmenter, SegmenterSpec


class LinearProbe(nn.Module):
    """A 1 x 1 head on the last map of a segmenter's frozen encoder: how much its features say without being changed."""

    kind = "linear_probe"

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        self.spec = segmenter.spec
        self.segmenter = segmenter.requires_grad_(False)
        with torch.no_grad():
            segmenter.eval()
            blank = torch.zeros(1, segmenter.spec.in_channels, 64, 64)
            channels = segmenter.encoder(segmenter.normalise(blank))[-1].shape[1]
        self.head = nn.Conv2d(channels, len(segmenter.spec.classes), 1)

    @classmethod
    def build(cls, spec: SegmenterSpec) -> "LinearProbe":
        """A probe on a new segmenter."""
        return cls(Segmenter(spec))

    def train(self, mode: bool = True) -> "LinearProbe":
        """The frozen encoder stays in evaluation mode: its batch statistics do not move either."""
        super().train(mode)
        self.segmenter.eval()
        return self

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K, H, W) at the size of the image."""
        with torch.no_grad():
            pixels = self.segmenter.normalise(image)
            feature = self.segmenter.encoder(pixels)[-1]
        logits = F.interpolate(self.head(feature), size=pixels.shape[-2:], mode="bilinear", align_corners=False)
        return logits[..., : image.shape[-2], : image.shape[-1]]


def projection_head(channels: int, embedding: int) -> nn.Sequential:
    """Three 1 x 1 convolutions with batch norm and ReLU between: (B, C, h, w) -> (B, D, h, w), of any length."""
    return nn.Sequential(
        nn.Conv2d(channels, embedding, 1, bias=False),
        nn.BatchNorm2d(embedding),
        nn.ReLU(inplace=True),
        nn.Conv2d(embedding, embedding, 1, bias=False),
        nn.BatchNorm2d(embedding),
        nn.ReLU(inplace=True),
        nn.Conv2d(embedding, embedding, 1),
    )
