"""Any listing as a canonical folder: images byte for byte, masks as 8-bit palette PNGs, instances as 16-bit PNGs.

``dataset.json`` is written last; ``.partial`` marks the folder until then, and the next conversion into it starts anew.
Images of no split go along without their masks. What could not be read is left out and named there, under
``left_out``; ``notes`` says what the layout did not take over, such as shapes that are no areas.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from segue.data.archive import check_path
from segue.data.check.inspection import indexed, palette_faults
from segue.data.decoder import Decoder, mask_image
from segue.data.finding import fixing
from segue.data.layouts.cityscapes import numbered_objects
from segue.data.listing import Listing, Pair, toned
from segue.data.outlines import Outline, Segment, draw, segment_ids
from segue.data.packed import copy_file
from segue.data.sample import (
    IGNORE,
    IMAGE_SUFFIXES,
    UNREADABLE,
    Array,
    Color,
    open_image,
    open_with_kind,
    write_label_map,
)
from segue.data.tones import read_eight_bit
from segue.data.unfinished import written_in_full
from segue.errors import DataError

WRITTEN = ("dataset.json", "images", "labels", "instances")


def convert(
    listing: Listing,
    out: Path,
    *,
    read: Callable[[Pair], Array] | None = None,
    fit: Callable[[Array, Pair, Path | None], Array] | None = None,
    options: str = "",
    tick: Callable[[], None] = lambda: None,
) -> dict[str, int]:
    """Writes the set into ``out``: how many pictures and stray masks were found, written and left out, and why.

    Args:
        listing: the set; images deeper than 8 bits that its ``tones`` name are written as 8-bit PNGs.
        out: an absent or empty folder, or one that an interrupted conversion left.
        read: gives class ids uint8 (H, W) of a pair; by default by the listing's own decoder.
        fit: brings numbers of objects to the size of a pair's picture; by default another size is a fault of the pair.
        options: with which the set was read, for the command that is shown: see `segue.data.finding.reading`.
        tick: called after each picture.

    Raises:
        DataError: ``out`` holds something else or cannot be written, no pair can be read, or the set has no class or
            more than 8 bits hold.
    """
    _refuse(listing)
    every = (*listing.splits.values(), toned(listing.unnamed, listing.tones))
    pairs = {pair.image: pair for split in every for pair in split}
    names, taken = dict[Path, str](), set[str]()
    left_out = {str(mask): ("mask_without_image", "no image has its name") for mask in listing.stray}
    read = read or _reader(listing)
    try:
        with written_in_full(out, listing.root, "a conversion", WRITTEN.__contains__):
            for image, pair in pairs.items():
                reason = "unsafe_name"
                try:
                    name = _name(pair, taken)
                    reason = "unreadable_image"
                    picture, kind = open_with_kind(image)
                    size = picture.size
                    reason = "unusable_mask"
                    mask = None if pair.mask is None else read(pair)
                    if mask is not None and mask.shape != size[::-1]:
                        raise DataError(
                            f"E108 {pair.mask} is {mask.shape[1]}x{mask.shape[0]}, {image} {size[0]}x{size[1]}"
                        )
                    instances = None if mask is None else _instances(pair, size, listing, fit, options)
                except UNREADABLE as error:
                    left_out[str(image)] = reason, str(error)
                else:
                    names[image] = name
                    _copy(pair, kind, out / "images" / name)
                    _write_labels(out, name, mask, instances, listing.colors)
                tick()
            if not names:
                _, why = next(iter(left_out.values()), ("", "it lists no image"))
                raise DataError(f"nothing of {listing.root} can be converted: {why}")
            _finish(listing, out, names, {file: message for file, (_, message) in left_out.items()})
    except OSError as error:
        raise DataError(f"{out} cannot be written ({error}); the same command starts anew") from None
    return _counts(len(names), [reason for reason, _ in left_out.values()])


def _counts(written: int, reasons: Sequence[str]) -> dict[str, int]:
    """How many files were found, written and left out, and these by their ``reasons``."""
    return {"found": written + len(reasons), "written": written, "left_out": len(reasons), **Counter(reasons)}


def _reader(listing: Listing) -> Callable[[Pair], Array]:
    """Reads class ids of a pair by the listing's decoder; refuses a mask whose palette says something else."""
    decoder = Decoder.of(listing)

    def read(pair: Pair) -> Array:
        image = mask_image(pair)
        is_stored = pair.mask is not None and pair.outlines is None and pair.segments is None and image.mode == "P"
        if pair.mask is not None and is_stored:
            values = np.flatnonzero(image.histogram()).tolist()
            by_color = decoder.by_color
            found = [indexed(pair.mask)] if by_color else palette_faults(pair.mask, values, decoder, listing.classes)
            if found:
                raise DataError(str(found[0]))
        return decoder.known(np.asarray(image), pair.mask)

    return read


def _refuse(listing: Listing) -> None:
    """Refuses classes that 8-bit masks cannot hold."""
    if not 1 <= len(listing.classes) <= IGNORE:
        raise DataError(f"{listing.root} has {len(listing.classes)} classes; 8-bit masks hold 1 to {IGNORE}")


def _finish(listing: Listing, out: Path, names: dict[Path, str], left_out: dict[str, str]) -> None:
    """``dataset.json``."""
    splits = {  # an image that a list names twice is one
        split: list(dict.fromkeys(names[pair.image] for pair in pairs if pair.image in names))
        for split, pairs in listing.splits.items()
    }
    used = {split: found for split, found in splits.items() if found}
    head = {"classes": listing.classes, "colors": listing.colors, "things": listing.things, "ignore": IGNORE}
    described = {**head, "splits": used, "left_out": left_out, "notes": notes(listing)}
    (out / "dataset.json").write_text(json.dumps(described, indent=1), encoding="ascii")


def notes(listing: Listing) -> list[str]:
    """What is wrong with names and annotation files and stops nothing."""
    return [str(fault) for fault in listing.faults if not fault.stop]


def _name(pair: Pair, taken: set[str]) -> str:
    """The pair's name, numbered where another has it: some file systems know no upper and lower case."""
    hidden = any(part.startswith(".") for part in check_path(pair.name, str(pair.image)).split("/"))
    if hidden or pair.image.suffix.lower() not in IMAGE_SUFFIXES:
        raise DataError(f"{pair.image} ({pair.name!r}) would be passed over: it is hidden, or of another suffix")
    name, number = pair.name, 2
    while name.lower() in taken:
        name, number = f"{pair.name}_{number}", number + 1
    taken.add(name.lower())
    return name


def _ready(path: Path) -> Path:
    """``path`` in a folder that exists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _copy(pair: Pair, kind: str, target: Path) -> None:
    """The image byte for byte, or in 8 bits where the pair's rule names its kind; ``target`` has no suffix yet."""
    if any(name == kind for name, _, _ in pair.tones):
        read_eight_bit(pair.image, pair.tones).save(_ready(target.with_name(f"{target.name}.png")))
    else:
        copy_file(pair.image, _ready(target.with_name(target.name + pair.image.suffix.lower())))


def _write_labels(out: Path, name: str, mask: Array | None, instances: Array | None, colors: Sequence[Color]) -> None:
    """What there is of class ids and numbers of objects, in the folders of the copy."""
    if mask is not None:
        write_label_map(_ready(out / "labels" / f"{name}.png"), mask, colors)
    if instances is not None:
        Image.fromarray(instances).save(_ready(out / "instances" / f"{name}.png"))


def _instances(
    pair: Pair,
    size: tuple[int, int],
    listing: Listing,
    fit: Callable[[Array, Pair, Path | None], Array] | None,
    options: str,
) -> Array | None:
    """Numbers of objects uint16 (H, W) at the ``size`` of the picture; None where the annotation tells none apart."""
    found, where = _numbers(pair, size, listing), listing.instance_path(pair) or pair.mask
    if found is None or found.shape == size[::-1]:
        return found
    if fit is None:
        wrong = f"E108 {where} is {found.shape[1]}x{found.shape[0]}, {pair.image} {size[0]}x{size[1]}"
        raise DataError(f"{wrong}; a copy resizes it: {fixing(listing.root, options)}")
    return fit(found, pair, where)


def _in_16_bits(numbers: Array, where: Path) -> Array:
    """Numbers of objects uint16 (H, W): as they are, or from 1 on in their order where one is larger than that.

    Raises:
        DataError: they are no whole numbers from 0 on, or more than 16 bits tell apart.
    """
    if numbers.ndim != 2 or numbers.dtype.kind == "f" or int(numbers.min(initial=0)) < 0:
        raise DataError(f"{where} holds no numbers of objects: they are whole numbers from 0 on, one for each pixel")
    if int(numbers.max(initial=0)) >> 16:
        values, place = np.unique(numbers, return_inverse=True)
        if len(values) > 1 << 16 or (values[0] and len(values) == 1 << 16):
            raise DataError(f"{where} has {len(values)} objects; 16-bit masks hold {(1 << 16) - 1}")
        numbers = (np.arange(len(values)) + bool(values[0]))[place].reshape(numbers.shape)
    return numbers.astype(np.uint16)


def _numbers(pair: Pair, size: tuple[int, int], listing: Listing) -> Array | None:
    """Ids of single things uint16 (H, W), from 1 on and 0 elsewhere; None where the annotation tells none apart."""
    kept = listing.instance_path(pair)
    if kept is not None and listing.layout == "cityscapes":  # whose numbers say the class too
        classes, objects = numbered_objects(pair, listing.ids)
        return np.where(np.isin(classes, listing.things), objects, 0).astype(np.uint16)
    if kept is not None:
        return _in_16_bits(np.asarray(open_image(kept)), kept)
    parts: Sequence[Segment | Outline] = pair.segments or pair.outlines or ()
    if not parts or not listing.things or pair.mask is None:
        return None
    single = [i for i, part in enumerate(parts, 1) if part.label in listing.things and not part.is_crowd]
    if len(parts) >= 1 << 16:
        raise DataError(f"{pair.mask} has {len(parts)} objects; 16-bit masks hold {(1 << 16) - 1}")
    numbers = np.zeros(len(parts) + 1, np.uint16)
    numbers[single] = np.arange(1, len(single) + 1)
    if pair.segments:
        ids = segment_ids(open_image(pair.mask))
        values, place = np.unique(ids, return_inverse=True)
        order = {segment.id: i for i, segment in enumerate(pair.segments, 1)}
        return numbers[[order.get(int(value), 0) for value in values]][place].reshape(ids.shape)
    low, high = (  # the place of each object, in two bytes
        np.asarray(draw(size, [replace(o, label=i >> shift & 255) for i, o in enumerate(pair.outlines or (), 1)], 0))
        for shift in (0, 8)
    )
    return numbers[low + 256 * high.astype(np.int64)]
