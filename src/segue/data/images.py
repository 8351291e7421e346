"""Data sets of pictures on disk: as they are, for evaluation, or as random training views."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from segue.data.listing import Listing, Pair
from segue.data.sample import IGNORE, Array, Color, DataError, Sample, open_image, to_rgb
from segue.data.transforms import PLAIN, ColorJitter, blank_outside, cut, draw_window, recolored

UNKNOWN = -1


class Decoder:
    """From what a label map stores, ids or colours, to class ids."""

    def __init__(self, ids: Mapping[int, int], colors: Sequence[Color], by_color: bool) -> None:
        self.by_color = by_color
        if by_color:
            keys = np.array([(r << 16) + (g << 8) + b for r, g, b in colors])
            self.order = np.argsort(keys)
            self.keys = keys[self.order]
        else:
            self.table = np.full(1 << 16, UNKNOWN, np.int16)
            for raw, index in ids.items():
                if raw >= 0:
                    self.table[raw] = index

    @classmethod
    def of(cls, listing: Listing) -> "Decoder":
        """The decoder of a listing's label maps."""
        return cls(listing.ids, listing.colors, listing.by_color)

    def __call__(self, stored: Array) -> Array:
        """Class ids int16 (H, W); `UNKNOWN` where the stored value belongs to no class."""
        if not self.by_color:
            if stored.ndim == 3:
                stored = stored[..., 0]
            inside = stored if stored.dtype == np.uint8 else np.clip(stored, 0, len(self.table) - 1)
            found: Array = self.table[inside]
            return found
        keys = (stored[..., 0].astype(np.int64) << 16) + (stored[..., 1].astype(np.int64) << 8) + stored[..., 2]
        place = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[place] == keys, self.order[place], UNKNOWN).astype(np.int16)

    def known(self, stored: Array, where: object) -> Array:
        """Class ids uint8 (H, W).

        Raises:
            DataError: a value that belongs to no class; the message names ``where``, the value and its pixels.
        """
        decoded = self(stored)
        if (decoded < 0).any():
            value, count = first_unknown(stored, decoded)
            raise DataError(
                f"E101 {where} holds {value} in {count} pixels, which is no class of the list; "
                f"mend the mask, add the class, or map it: --map {value}:ignore"
            )
        return decoded.astype(np.uint8)


def first_unknown(stored: Array, decoded: Array) -> tuple[str, int]:
    """The commonest stored value that belongs to no class, as text, and how many pixels hold it."""
    values, counts = np.unique(stored[decoded < 0], axis=0, return_counts=True)
    top = counts.argmax()
    value = values[top]
    return (",".join(map(str, value.tolist())) if value.ndim else str(int(value))), int(counts[top])


def mask_image(path: object) -> Image.Image:
    """The label map at ``path`` in a mode whose pixels are its stored values."""
    image = open_image(path)  # type: ignore[arg-type]
    return image.convert("RGB") if image.mode in ("RGBA", "CMYK", "YCbCr", "LA") else image


class Whole(Dataset[Sample]):
    """Pictures as they are: ``image`` uint8 (3, H, W), ``mask`` uint8 (H, W) where there is one, ``name``."""

    def __init__(self, pairs: Sequence[Pair], decoder: Decoder) -> None:
        self.pairs, self.decoder = tuple(pairs), decoder

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        pair = self.pairs[index]
        image = to_rgb(open_image(pair.image), pair.image)
        sample: Sample = {"image": _tensor(image), "name": pair.name}
        if pair.mask is not None:
            mask = self.decoder.known(np.asarray(mask_image(pair.mask)), pair.mask)
            if mask.shape != (image.height, image.width):
                raise DataError(_sizes(pair, image.size, (mask.shape[1], mask.shape[0])))
            sample["mask"] = torch.from_numpy(mask)
        return sample


@dataclass(frozen=True)
class RandomViews(Dataset[Sample]):
    """Random training views: scaled, cropped, mirrored, recoloured.

    A sample is ``image`` uint8 (3, crop, crop), ``mask`` uint8 (crop, crop), ``name``, and with ``second`` a further
    ``view`` uint8 (3, crop, crop): the same crop in other colours.

    Args:
        pairs: pictures with masks.
        decoder: of their masks.
        crop: side of the views, in pixels.
        scale: smallest and largest factor the pictures are scaled by.
        jitter: colours of ``image``.
        second: colours of ``view``, None for no second view.
    """

    pairs: tuple[Pair, ...]
    decoder: Decoder
    crop: int
    scale: tuple[float, float] = (0.5, 2.0)
    jitter: ColorJitter = PLAIN
    second: ColorJitter | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        pair = self.pairs[index]
        if pair.mask is None:
            raise DataError(f"E106 {pair.image} has no mask")
        image, mask = open_image(pair.image), mask_image(pair.mask)
        if image.size != mask.size:
            raise DataError(_sizes(pair, image.size, mask.size))
        window = draw_window(image.width, image.height, self.crop, self.scale)
        piece = to_rgb(cut(to_rgb(image, pair.image), window, self.crop, smooth=True), pair.image)
        stored = cut(mask, window, self.crop, smooth=False)
        ids = self.decoder.known(np.asarray(stored), pair.mask)
        sample: Sample = {
            "image": _tensor(recolored(piece, self.jitter)),
            "mask": torch.from_numpy(blank_outside(ids, window, self.crop)),
            "name": pair.name,
        }
        if self.second is not None:
            sample["view"] = _tensor(recolored(piece, self.second))
        return sample


def _sizes(pair: Pair, image: tuple[int, int], mask: tuple[int, int]) -> str:
    """The message for a picture and a mask that do not lie on each other."""
    return (
        f"E108 {pair.name}: {pair.image} is {image[0]}x{image[1]}, {pair.mask} is {mask[0]}x{mask[1]}; "
        "export the mask at the size of its image"
    )


def _tensor(image: Image.Image) -> torch.Tensor:
    """uint8 (3, H, W), laid out as Pillow does: collating copies it anyway."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


__all__ = ["IGNORE", "Decoder", "RandomViews", "Whole", "first_unknown", "mask_image"]
