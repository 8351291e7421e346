"""Panoptic samples of a data set on disk: which pixels belong to which object, and training views of that.

Objects are told apart by segments of a panoptic PNG (COCO, ADE20K), by ``instances/NAME.png`` of the canonical folder
(16-bit, 0 where there is none), by Cityscapes' ``_gtFine_instanceIds.png``, or, where a set numbers none and it is
asked for, as connected regions. Pixels of a countable class that no object owns are a crowd.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from segue.data.copy_paste import MOST, CopyPaste
from segue.data.decoder import Decoder, mask_image
from segue.data.images import tensor_of
from segue.data.layouts.cityscapes import numbered_objects
from segue.data.listing import Listing, Pair
from segue.data.outlines import segment_ids
from segue.data.panoptic_map import VOID, PanopticMap
from segue.data.sample import IGNORE, Array, Sample, open_image
from segue.data.tones import read_rgb
from segue.data.transforms import PLAIN, ColorJitter, cut, draw_window, inside_of, recolored
from segue.errors import DataError

SEGMENTS = 255  # of one view; the smallest of more are left out
LOOKED_AT = 200  # pairs that are opened to count segments


@dataclass(frozen=True)
class Annotation:
    """How the objects of a set are told apart.

    Args:
        listing: the set.
        by_region: connected regions of a countable class are its objects where the set numbers none.
        labels: class id of each class of the set, `IGNORE` for classes that count as unknown; as they are if empty.
    """

    listing: Listing
    by_region: bool = False
    labels: Mapping[int, int] = field(default_factory=dict)

    def read(self, pair: Pair) -> PanopticMap:
        """The panoptic map of a pair.

        Raises:
            DataError: there is no mask, it holds a value of no class, or nothing tells the objects apart.
        """
        return self.known(self.stored(pair))

    def stored(self, pair: Pair) -> PanopticMap:
        """The same by the classes of the set."""
        classes, objects, crowds = self._stored(pair)
        return numbered(classes, objects, self.listing.things, crowds)

    def known(self, stored: PanopticMap) -> PanopticMap:
        """A map by the classes of the set, by `labels`."""
        if not self.labels:
            return stored
        known = stored.void([label for label in stored.labels if self.labels.get(label, IGNORE) == IGNORE])
        return PanopticMap(known.ids, tuple(self.labels[label] for label in known.labels), known.is_crowd)

    def objects(self, pair: Pair) -> tuple[Array, Array]:
        """Class ids of the set, `IGNORE` where a crowd is, and the numbers of countable objects, 0 elsewhere (H, W)."""
        stored = self.stored(pair)
        is_thing = [label in self.listing.things for label in stored.labels]
        classes = np.where(np.array([False, *stored.is_crowd])[stored.ids], IGNORE, stored.classes())
        return classes, np.where(np.array([False, *is_thing])[stored.ids], stored.ids, 0)

    def refuse_untold(self, pairs: Sequence[Pair]) -> None:
        """Looks, before any training, whether objects are told apart; pairs that have a file for that are not opened.

        Raises:
            DataError: as of `read`, or objects are numbered and no class has any.
        """
        numbered = next((path for pair in pairs if (path := self.listing.instance_path(pair))), None)
        if numbered and not self.listing.things:
            last = len(self.listing.classes) - 1
            example = f'"things": [{last}] for {self.listing.classes[last]}'
            raise DataError(
                f"{numbered.parent} numbers objects, and no class is said to have any: a panoptic model would learn no "
                f"object; give the ids of classes that can be counted in dataset.json, as {example}"
            )
        for pair in pairs:
            if pair.segments is None and self.listing.things and self.listing.instance_path(pair) is None:
                self.read(pair)

    def most_segments(self, pairs: Sequence[Pair], paste: CopyPaste | None) -> int:
        """The most segments, crowds aside, that one of the first `LOOKED_AT` pairs has, and those that are put in."""
        counts = [len(truth.labels) - sum(truth.is_crowd) for truth in map(self.read, pairs[:LOOKED_AT])]
        return max(counts, default=0) + (MOST if paste else 0)

    def _stored(self, pair: Pair) -> tuple[Array, Array, Collection[int]]:
        """Class ids, object numbers, both (H, W), and the numbers that are crowds."""
        if pair.mask is None:
            raise DataError(f"E106 {pair.image} has no mask")
        if pair.segments is not None:
            return _of_segments(pair)
        if self.listing.layout == "cityscapes" and self.listing.things:
            return (*numbered_objects(pair, self.listing.ids), ())
        classes = Decoder.of(self.listing).known(np.asarray(mask_image(pair)), pair.mask)
        path = self.listing.instance_path(pair)
        if path is not None:
            objects = np.asarray(open_image(path)).astype(np.int64)
            if objects.shape != classes.shape:
                raise DataError(f"E108 {path} is {objects.shape[::-1]}, {pair.mask} is {classes.shape[::-1]}")
            return classes, objects, ()
        if not self.listing.things or not np.isin(classes, self.listing.things).any():
            return classes, np.zeros_like(classes, np.int64), ()
        if not self.by_region:
            raise DataError(
                f"{pair.mask} does not tell objects apart and there is no "
                f"{self.listing.root / 'instances' / f'{pair.name}.png'}; give instances, or --by-region "
                "to take connected regions as objects (outlines: segue data convert writes instances/)"
            )
        return classes, regions(classes, self.listing.things), ()


def _of_segments(pair: Pair) -> tuple[Array, Array, Collection[int]]:
    """Of a panoptic PNG; an id that no segment has is unknown."""
    assert pair.mask is not None
    segments = pair.segments or ()
    ids = segment_ids(open_image(pair.mask))
    values, place = np.unique(ids, return_inverse=True)
    order = {segment.id: i for i, segment in enumerate(segments, 1)}
    numbers = np.array([order.get(int(value), 0) for value in values], np.int64)[place.reshape(ids.shape)]
    labels = np.array([IGNORE, *(segment.label for segment in segments)], np.uint8)
    return labels[numbers], numbers, {i for i, segment in enumerate(segments, 1) if segment.is_crowd}


def regions(classes: Array, things: Sequence[int]) -> Array:
    """Numbers from 1 on of the connected regions, corners included, of each countable class; 0 elsewhere (H, W)."""
    from scipy.ndimage import label

    numbers, total = np.zeros(classes.shape, np.int64), 0
    for thing in things:
        found, count = label(classes == thing, structure=np.ones((3, 3)))
        numbers = np.where(found > 0, found + total, numbers)
        total += count
    return numbers


def numbered(classes: Array, objects: Array, things: Sequence[int], crowds: Collection[int] = ()) -> PanopticMap:
    """The map of class ids and object numbers (H, W): a segment for each object, and for each class of stuff.

    Args:
        classes: `IGNORE` where unknown.
        objects: 0 where no object is; those of stuff are not looked at.
        things: class ids whose objects are told apart.
        crowds: numbers of objects that are crowds; so is what is 0 of a thing.
    """
    is_thing = np.isin(classes, list(things))
    keys = np.where(classes == IGNORE, -1, (classes.astype(np.int64) << 32) + np.where(is_thing, objects, 0))
    values, place = np.unique(keys, return_inverse=True)
    known = values >= 0
    table = np.where(known, np.cumsum(known), VOID).astype(np.int32)
    labels, numbers = (values[known] >> 32).tolist(), (values[known] & ((1 << 32) - 1)).tolist()
    chosen = set(things)
    is_crowd = tuple(
        label in chosen and (number == 0 or number in crowds) for label, number in zip(labels, numbers, strict=True)
    )
    return PanopticMap(table[place].reshape(classes.shape), tuple(labels), is_crowd)


class PanopticWhole(Dataset[Sample]):
    """Pictures as they are: ``image`` uint8 (3, H, W), ``truth`` (a `PanopticMap`), ``name``."""

    def __init__(self, pairs: Sequence[Pair], annotation: Annotation) -> None:
        self.pairs, self.annotation = tuple(pairs), annotation

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        pair = self.pairs[index]
        image, truth = read_rgb(pair.image, pair.tones), self.annotation.read(pair)
        _refuse_sizes(pair, image, truth)
        return {"image": tensor_of(image), "truth": truth, "name": pair.name}


class ClassMaps(Dataset[Sample]):
    """The same for semantic models: ``image``, ``mask`` uint8 (H, W) and ``name``."""

    def __init__(self, whole: PanopticWhole) -> None:
        self.whole = whole

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, index: int) -> Sample:
        sample = self.whole[index]
        return {"image": sample["image"], "mask": torch.from_numpy(sample["truth"].classes()), "name": sample["name"]}


@dataclass(frozen=True)
class PanopticViews(Dataset[Sample]):
    """Random training views: scaled, cropped, mirrored, recoloured.

    A sample is ``image`` uint8 (3, crop, crop), ``segments`` int16 (crop, crop) of numbers from 1 on with `VOID` where
    nothing is known, ``inside`` bool (crop, crop) that is False where a small picture was padded, ``labels`` int64
    (`SEGMENTS`,) of the segments' class ids, -1 behind the last, ``is_labelled`` bool (), and ``name``. Crowds are
    unknown.

    Args:
        pairs: pictures; of those without masks nothing is known.
        annotation: of their objects.
        crop: side of the views, in pixels.
        scale: smallest and largest factor the pictures are scaled by.
        jitter: of the colours.
        paste: puts objects into pictures with masks before all else, None for none.
    """

    pairs: tuple[Pair, ...]
    annotation: Annotation
    crop: int
    scale: tuple[float, float] = (0.5, 2.0)
    jitter: ColorJitter = PLAIN
    paste: CopyPaste | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        pair = self.pairs[index]
        image, truth = self._labelled(pair)
        window = draw_window(image.width, image.height, self.crop, self.scale)
        piece = cut(image, window, self.crop, smooth=True)
        ids = np.asarray(cut(Image.fromarray(truth.ids), window, self.crop, smooth=False))
        segments, labels = in_view(ids, truth)
        return {
            "image": tensor_of(recolored(piece, self.jitter)),
            "segments": torch.from_numpy(segments),
            "inside": inside_of(window, self.crop),
            "labels": torch.from_numpy(labels),
            "is_labelled": torch.tensor(pair.mask is not None),
            "name": pair.name,
        }

    def _labelled(self, pair: Pair) -> tuple[Image.Image, PanopticMap]:
        """A picture and what is known of it, with objects put in."""
        image = read_rgb(pair.image, pair.tones)
        if pair.mask is None:
            return image, PanopticMap(np.zeros((image.height, image.width), np.int32), ())
        stored = self.annotation.stored(pair)
        _refuse_sizes(pair, image, stored)
        if self.paste is not None:
            pasted = self.paste(np.asarray(image), stored.classes())
            if pasted.labels:
                stored = stored.with_objects(pasted.numbers, pasted.labels, self.annotation.listing.things)
                image = Image.fromarray(pasted.picture)
        return image, self.annotation.known(stored)


def in_view(ids: Array, truth: PanopticMap) -> tuple[Array, Array]:
    """Numbers int16 (H, W) of the segments that a piece ``ids`` of the truth shows, and their labels (`SEGMENTS`,)."""
    areas = np.bincount(ids.ravel(), minlength=len(truth.labels) + 1)
    areas[VOID] = 0
    areas[1:][np.array(truth.is_crowd, bool)] = 0
    shown = np.sort(np.argsort(-areas, kind="stable")[:SEGMENTS])
    shown = shown[areas[shown] > 0]
    table = np.zeros(len(areas), np.int16)
    table[shown] = np.arange(1, len(shown) + 1)
    labels = np.full(SEGMENTS, -1, np.int64)
    labels[: len(shown)] = np.array(truth.labels, np.int64)[shown - 1]
    return table[ids], labels


def _refuse_sizes(pair: Pair, image: Image.Image, truth: PanopticMap) -> None:
    """Refuses a picture and a map that do not lie on each other."""
    height, width = truth.ids.shape
    if image.size != (width, height):
        raise DataError(
            f"E108 {pair.name}: {pair.image} is {image.width}x{image.height}, {pair.mask} is {width}x{height}; "
            "export the mask at the size of its image"
        )


def images_with(pairs: Sequence[Pair], annotation: Annotation, wanted: Collection[int]) -> tuple[Pair, ...]:
    """The pairs whose map has a segment, crowds aside, of one of the wanted classes."""
    found = []
    for pair in pairs:
        truth = annotation.read(pair)
        if any(label in wanted and not crowd for label, crowd in zip(truth.labels, truth.is_crowd, strict=True)):
            found.append(pair)
    return tuple(found)
