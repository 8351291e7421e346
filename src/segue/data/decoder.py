"""From what a label map stores to class ids. No torch here: the check of a data set starts without it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path

import numpy as np
from PIL import Image

from segue.data.finding import drawn_elsewhere
from segue.data.listing import Listing, Pair
from segue.data.outlines import class_map, draw, segment_ids
from segue.data.packed import content
from segue.data.sample import FORMATS, UNREADABLE, Array, Color, open_image, picture_size, upright
from segue.data.stored_values import STORED, ignoring, is_whole
from segue.errors import DataError

UNKNOWN = -1


class Decoder:
    """From what a label map stores, ids or colours, to class ids."""

    def __init__(self, ids: Mapping[int, int], colors: Sequence[Color], by_color: bool) -> None:
        self.by_color = by_color
        self.colors = tuple(colors)
        if by_color:
            keys = np.array([(r << 16) + (g << 8) + b for r, g, b in colors])
            self.order: Array = np.argsort(keys)
            self.keys = keys[self.order]
        else:
            self.table: Array = np.full(STORED + 1, UNKNOWN, np.int16)  # the last for all values beyond
            self.below = {raw: index for raw, index in ids.items() if raw < 0}  # as GIS marks pixels without data
            for raw, index in ids.items():
                if raw >= 0:
                    self.table[raw] = index

    @classmethod
    def of(cls, listing: Listing) -> "Decoder":
        """The decoder of a listing's label maps.

        Raises:
            DataError: a colour is none of 8 bits, or names two classes of masks that are read by colour.
        """
        _refuse_colors(listing)
        return cls(listing.ids, listing.colors, listing.by_color)

    def onto(self, ids: Mapping[int, int]) -> "Decoder":
        """The decoder that gives ``ids[i]`` where this one gives class ``i``; `IGNORE` stays."""
        table = np.arange(256, dtype=np.int16)
        for i, other in ids.items():
            table[i] = other
        mapped = copy(self)
        if self.by_color:
            mapped.order = table[self.order]
        else:
            mapped.table = np.where(self.table < 0, self.table, table[self.table])
            mapped.below = {raw: int(table[index]) for raw, index in self.below.items()}
        return mapped

    def meaning(self, pairs: Sequence[Pair], things: Sequence[int] = ()) -> str:
        """A sha256 that changes where a label of ``pairs`` comes to stand for another class.

        Args:
            pairs: whose masks it decodes; the segments of panoptic ones are told apart in a file of their own.
            things: ids of the countable classes, where objects are learnt.
        """
        keys = self.keys if self.by_color else np.flatnonzero(self.table != UNKNOWN)
        known = [*zip(keys.tolist(), (self.order if self.by_color else self.table[keys]).tolist(), strict=True)]
        known += [] if self.by_color else sorted(self.below.items())
        digest = hashlib.sha256(json.dumps([self.by_color, known, sorted(things)]).encode())
        for pair in pairs:
            if pair.segments is not None:
                segments = [(segment.id, segment.label, segment.is_crowd) for segment in pair.segments]
                digest.update(json.dumps([pair.name, segments]).encode())
        return digest.hexdigest()

    def __call__(self, stored: Array) -> Array:
        """Class ids int16 (H, W); `UNKNOWN` where the stored value belongs to no class."""
        if not self.by_color:
            values = stored[..., 0] if stored.ndim == 3 else stored
            if values.dtype.kind == "f":
                whole = is_whole(values)
                return np.where(whole, self(np.where(whole, values, 0).astype(np.int32)), np.int16(UNKNOWN))
            inside = values if values.dtype == np.uint8 else np.clip(values, 0, len(self.table) - 1)
            found: Array = self.table[inside]
            if values.dtype.kind == "i" and (values < 0).any():
                found[values < 0] = UNKNOWN
                for raw, index in self.below.items():
                    found[values == raw] = index
            if stored.ndim == 3:  # a colour in a set whose masks hold ids
                found = np.where((stored == stored[..., :1]).all(2), found, np.int16(UNKNOWN))
            return found
        if stored.ndim == 2:  # ids, or grey, in a set whose masks hold colours
            stored = np.repeat(stored[..., None], 3, 2)
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
            value, count = unknown_values(stored, decoded)[0]
            mend = (
                "or add the class with its colour"
                if self.by_color or "," in value
                else f"add the class, {ignoring(value)}"
            )
            raise DataError(
                f"E101 {where} holds {value} in {count} pixels, which is no class of the list; mend the mask, {mend}"
            )
        return decoded.astype(np.uint8)


def _refuse_colors(listing: Listing) -> None:
    """Refuses colours beyond 8 bits, and two classes of one colour where the colour says which of them it is."""
    named: dict[Color, str] = {}
    for name, color in zip(listing.classes, listing.colors, strict=False):
        text = ",".join(map(str, color))
        if not all(0 <= part <= 255 for part in color):
            raise DataError(f"{listing.root}: the colour {text} of {name} is not within 0 to 255; mend the class list")
        if listing.by_color and color in named:
            raise DataError(
                f"{listing.root}: {named[color]} and {name} have one colour, {text}, and masks are read by colour; "
                "give each class its own in the class list"
            )
        named[color] = name


def unknown_values(stored: Array, decoded: Array) -> list[tuple[str, int]]:
    """(stored value that belongs to no class, as text; how many pixels hold it) of each, the commonest first."""
    values, counts = np.unique(stored[decoded < 0], axis=0 if stored.ndim == 3 else None, return_counts=True)
    if stored.ndim == 3:
        texts = [",".join(map(str, value.tolist())) for value in values]
    else:
        texts = [f"{value:.9g}" if stored.dtype.kind == "f" else str(int(value)) for value in values]
    return [(texts[i], int(counts[i])) for i in np.argsort(-counts, kind="stable").tolist()]


def mask_image(pair: Pair) -> Image.Image:
    """The label map of ``pair`` in a mode whose pixels are its stored values; class ids where it is drawn.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    if pair.mask is None:
        raise DataError(f"E106 {pair.image} has no mask")
    if pair.outlines is not None:
        size = picture_size(pair.image)
        if pair.labelled_at is not None and pair.labelled_at != size:
            raise DataError(str(drawn_elsewhere(pair.image, size, pair.labelled_at)))
        return draw(size, pair.outlines, background=0)
    if pair.is_wide:
        return class_ids(pair.mask)
    image = open_image(pair.mask)
    if image.mode == "F" and is_whole(np.asarray(image)).all():
        return Image.fromarray(np.asarray(image).astype(np.int32))
    if pair.segments is not None:
        return class_map(segment_ids(image), pair.segments)
    return image.convert("RGB") if image.mode in ("RGBA", "CMYK", "YCbCr", "LA") else image


def class_ids(path: Path) -> Image.Image:
    """The first channel of the label map at ``path``: of a PNG of 16-bit RGB its lower bytes, else as Pillow reads it.

    PNG stores the upper byte first. A decoder told that the lower comes first keeps the second byte, not the first.

    Raises:
        DataError: the file is missing, no image or cut short.
    """
    try:
        with Image.open(content(path), formats=FORMATS) as image:
            if [tile.args for tile in image.tile] == ["RGB;16B"]:
                image.tile = [tile._replace(args="RGB;16L") for tile in image.tile]
                return upright(image).getchannel(0)
    except UNREADABLE:
        pass  # open_image says what is wrong
    other = open_image(path)
    return other.getchannel(0) if len(other.getbands()) > 1 else other
