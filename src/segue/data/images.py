"""Data sets of pictures on disk: as they are, for evaluation, or as random training views."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from segue.data.copy_paste import CopyPaste
from segue.data.decoder import Decoder, mask_image
from segue.data.listing import Pair
from segue.data.sample import Array, Sample, to_rgb
from segue.data.tones import read_eight_bit, read_rgb
from segue.data.transforms import (
    PLAIN,
    ColorJitter,
    Window,
    cut,
    draw_window,
    inside_of,
    on_canvas,
    piece_of,
    recolored,
)
from segue.errors import DataError

SHOWN = 1 << 20  # pixels of a picture that is looked at during a training


class Whole(Dataset[Sample]):
    """Pictures as they are: ``image`` uint8 (3, H, W), ``mask`` uint8 (H, W) where there is one, ``name``."""

    def __init__(self, pairs: Sequence[Pair], decoder: Decoder) -> None:
        self.pairs, self.decoder = tuple(pairs), decoder

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        pair = self.pairs[index]
        image = read_rgb(pair.image, pair.tones)
        sample: Sample = {"image": tensor_of(image), "name": pair.name}
        if pair.mask is not None:
            mask = self.decoder.known(np.asarray(mask_image(pair)), pair.mask)
            if mask.shape != (image.height, image.width):
                raise DataError(_sizes(pair, image.size, (mask.shape[1], mask.shape[0])))
            sample["mask"] = torch.from_numpy(mask)
        return sample


class Middle(Dataset[Sample]):
    """Samples of ``whole``, cut down to their middle, of the same aspect, where they have more pixels than `SHOWN`."""

    def __init__(self, whole: Whole) -> None:
        self.whole = whole

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, index: int) -> Sample:
        sample = self.whole[index]
        height, width = sample["image"].shape[-2:]
        factor = min(1.0, math.sqrt(SHOWN / (height * width)))
        rows, columns = max(1, int(height * factor)), max(1, int(width * factor))
        top, left = (height - rows) // 2, (width - columns) // 2
        cut_down = {
            name: sample[name][..., top : top + rows, left : left + columns] for name in sample if name != "name"
        }
        return {**cut_down, "name": sample["name"]}


@dataclass(frozen=True)
class RandomViews(Dataset[Sample]):
    """Random training views: scaled, cropped, mirrored, recoloured.

    A sample is ``image`` uint8 (3, crop, crop), ``mask`` uint8 (crop, crop), ``name``, with ``second`` a further
    ``view`` uint8 (3, crop, crop), the same crop in other colours, and with ``tells_inside`` a further ``inside`` bool
    (crop, crop) that is False where a small picture was padded.

    Args:
        pairs: pictures with masks.
        decoder: of their masks.
        crop: side of the views, in pixels.
        scale: smallest and largest factor the pictures are scaled by.
        jitter: colours of ``image``.
        second: colours of ``view``, None for no second view.
        paste: puts objects in before all else, None for none.
        tells_inside: whether a sample has ``inside``.
    """

    pairs: tuple[Pair, ...]
    decoder: Decoder
    crop: int
    scale: tuple[float, float] = (0.5, 2.0)
    jitter: ColorJitter = PLAIN
    second: ColorJitter | None = None
    paste: CopyPaste | None = None
    tells_inside: bool = False

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        pair = self.pairs[index]
        piece, ids, window = labelled_piece(pair, self.decoder, self.crop, self.scale, self.paste)
        sample: Sample = {
            "image": tensor_of(recolored(piece, self.jitter)),
            "mask": torch.from_numpy(ids),
            "name": pair.name,
        }
        if self.second is not None:
            sample["view"] = tensor_of(recolored(piece, self.second))
        if self.tells_inside:
            sample["inside"] = inside_of(window, self.crop)
        return sample


def labelled_piece(
    pair: Pair, decoder: Decoder, crop: int, scale: tuple[float, float], paste: CopyPaste | None = None
) -> tuple[Image.Image, Array, Window]:
    """A random piece of a picture on a (crop, crop) canvas, its class ids uint8 (crop, crop), and where it was cut."""
    image, mask = read_eight_bit(pair.image, pair.tones), mask_image(pair)
    if image.size != mask.size:
        raise DataError(_sizes(pair, image.size, mask.size))
    window = draw_window(image.width, image.height, crop, scale)
    picture = to_rgb(image, pair.image)
    if paste is None:
        ids = decoder.known(np.asarray(piece_of(mask, window, smooth=False)), pair.mask)
    else:
        known = decoder.known(np.asarray(mask), pair.mask)
        pasted = paste(np.asarray(picture), known)
        picture, whole = Image.fromarray(pasted.picture), Image.fromarray(pasted.over(known))
        ids = np.array(piece_of(whole, window, smooth=False))
    piece = to_rgb(cut(picture, window, crop, smooth=True), pair.image)
    return piece, on_canvas(ids, window, crop), window


def _sizes(pair: Pair, image: tuple[int, int], mask: tuple[int, int]) -> str:
    """The message for a picture and a mask that do not lie on each other."""
    return (
        f"E108 {pair.name}: {pair.image} is {image[0]}x{image[1]}, {pair.mask} is {mask[0]}x{mask[1]}; "
        "export the mask at the size of its image"
    )


def tensor_of(image: Image.Image) -> torch.Tensor:
    """uint8 (3, H, W), laid out as Pillow does: collating copies it anyway."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
