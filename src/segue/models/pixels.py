"""How every network takes pictures in: as they are, of any size."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Normalise(nn.Module):
    """Pictures to numbers about 0: (B, bands, H, W) of any dtype in the input's own range -> float32, padded.

    Args:
        mean: of each band, with white at 1.
        std: of each band, with white at 1.
        value_range: what white is in the input.
        stride: sides are padded, right and below, to a multiple of it, with the mean.
        smallest: sides are padded to at least this.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], value_range: float, stride: int, smallest: int = 0
    ) -> None:
        super().__init__()
        self.stride, self.smallest = stride, smallest
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1) * value_range, persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(1, -1, 1, 1) * value_range, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """See the class.

        Raises:
            ValueError: the picture has another number of bands.
        """
        bands = self.mean.shape[1]
        if image.shape[1] != bands:
            raise ValueError(f"the image has {image.shape[1]} bands; this model takes {bands}")
        pixels = image.to(memory_format=torch.channels_last).float().sub(self.mean).div(self.std)
        down, right = (self._missing(side) for side in image.shape[-2:])
        return F.pad(pixels, (0, right, 0, down)) if down or right else pixels

    def _missing(self, side: int) -> int:
        """Pixels to add to a side."""
        return padded_side(side, self.stride, self.smallest) - side


def padded_side(side: int, stride: int, smallest: int = 0) -> int:
    """What a side is padded to: the next multiple of ``stride``, and at least ``smallest``."""
    return max(side + -side % stride, smallest)


@torch.no_grad()
def drop_unreached(module: nn.Module, side: int) -> None:
    """Sets to 0 the taps of convolutions that meet nothing but padding on square maps.

    No training on such maps moves them: they would stay at random, and add noise wherever a larger picture is
    predicted. With dilation 12 on a map of 8 x 8 that is 8 of 9 taps.

    Args:
        module: all its convolutions, whose stride is 1.
        side: of the maps, in pixels.
    """
    for conv in (part for part in module.modules() if isinstance(part, nn.Conv2d)):
        taps = torch.arange(conv.kernel_size[0], device=conv.weight.device) - conv.kernel_size[0] // 2
        is_reached = (taps * conv.dilation[0]).abs() < side
        conv.weight *= is_reached[:, None] & is_reached
