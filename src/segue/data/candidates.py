"""Views for learning without labels: an image and one that resembles it, each as student and teacher see it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.utils.data import Dataset

from segue.data.listing import Pair
from segue.data.sample import Array, Sample
from segue.data.tones import read_rgb
from segue.data.transforms import SIMCLR, Window, cut, recolored, uniform
from segue.data.unlabelled import ImageSet
from segue.errors import DataError

SQUEEZE = 4 / 3  # a window is at most so much wider than high, or higher than wide
BLUR = (0.1, 2.0)  # smallest and largest sigma, pixels
BLUR_CHANCE = 0.5


def area_window(width: int, height: int, crop: int, area: tuple[float, float]) -> Window:
    """A random piece of a picture that fills the crop.

    Args:
        width, height: of the picture.
        crop: side of the square it becomes.
        area: smallest and largest share of the picture, in (0, 1].
    """
    share = uniform(*area) * width * height
    squeeze = math.exp(uniform(-math.log(SQUEEZE), math.log(SQUEEZE)))
    across, down = min(float(width), math.sqrt(share * squeeze)), min(float(height), math.sqrt(share / squeeze))
    left, top = uniform(0, width - across), uniform(0, height - down)
    return Window((left, top, left + across, top + down), (crop, crop), (0, 0), flip=False)


def strong(picture: Image.Image) -> Image.Image:
    """What the student sees: other colours, and blurred every other time."""
    changed = recolored(picture, SIMCLR)
    if float(torch.rand(())) < BLUR_CHANCE:
        changed = changed.filter(ImageFilter.GaussianBlur(uniform(*BLUR)))
    return changed


@dataclass(frozen=True)
class Candidates(Dataset[Sample]):
    """Images with one of those that resemble them.

    A sample is ``strong`` and ``image`` uint8 (2, 3, crop, crop): the image and its positive, as the student and as
    the teacher see them, pixel for pixel the same places; ``index`` and ``positive``: their places in ``images``; and
    ``name``.

    Args:
        images: all of them.
        neighbours: (M, P) places of the images that each resembles; -1 where there are fewer.
        crop: side of the views, in pixels.
        area: smallest and largest share of an image that a view shows.
    """

    images: tuple[Pair, ...]
    neighbours: Array
    crop: int
    area: tuple[float, float]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        known = self.neighbours[index][self.neighbours[index] >= 0]
        positive = int(known[int(torch.randint(len(known), ()))])
        weak, changed = [], []
        for place in (index, positive):
            image = read_rgb(self.images[place].image, self.images[place].tones)
            piece = cut(image, area_window(image.width, image.height, self.crop, self.area), self.crop, smooth=True)
            weak.append(_tensor(piece))
            changed.append(_tensor(strong(piece)))
        return {
            "strong": torch.stack(changed),
            "image": torch.stack(weak),
            "index": index,
            "positive": positive,
            "name": self.images[index].name,
        }


class Squeezed(Dataset[Tensor]):
    """Whole images, squeezed into squares: uint8 (3, side, side)."""

    def __init__(self, images: Sequence[Pair], side: int) -> None:
        self.images, self.side = tuple(images), side

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        pair = self.images[index]
        return _tensor(read_rgb(pair.image, pair.tones).resize((self.side, self.side), Image.Resampling.BILINEAR))


def evenly(images: Sequence[Pair], count: int, side: int) -> Tensor:
    """At most ``count`` images, evenly from the whole set, squeezed: uint8 (K, 3, side, side)."""
    count = min(count, len(images))
    squeezed = Squeezed([images[i * len(images) // count] for i in range(count)], side)
    return torch.stack([squeezed[i] for i in range(len(squeezed))])


def _tensor(picture: Image.Image) -> Tensor:
    """uint8 (3, H, W)."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def refuse_few(data: ImageSet, positives: int) -> None:
    """Refuses a set that is too small for a candidate set.

    Raises:
        DataError: it is.
    """
    fewest = positives + 2
    if len(data.images) < fewest:
        raise DataError(
            f"{data.root} holds {len(data.images)} images; a candidate set needs {fewest}: an image, --positives "
            f"{positives} that resemble it, and one that does not"
        )
