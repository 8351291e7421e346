"""A mended copy of a set: what a rule puts right is put right, the rest is left out by name; the original stays."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from segue.data.check import likely_names
from segue.data.check.facts import Facts
from segue.data.decoder import UNKNOWN, Decoder, mask_image
from segue.data.finding import Finding
from segue.data.listing import Listing, Pair
from segue.data.packed import content
from segue.data.sample import FORMATS, IGNORE, UNREADABLE, Array, orientation, picture_size
from segue.data.splits import choose
from segue.errors import DataError

CONTRADICTING = {"E120", "E121", "E122", "E123", "E124", "E129"}  # of annotation files: objects would be lost
HOPELESS = {"E104", "E116", "E126", "E151", *CONTRADICTING}  # what a person has to mend


@dataclass(frozen=True)
class Mended:
    """What a mended copy is to hold.

    Args:
        listing: its pairs.
        dropped: why which files are left out.
        acts: what was put right, in words.
    """

    listing: Listing
    dropped: dict[str, tuple[str, ...]]
    acts: tuple[str, ...]


def mended(listing: Listing, findings: Sequence[Finding], facts: Facts) -> Mended:
    """The set with every fault put right that a rule can mend; see the table of codes in ``docs/data.md``.

    Images without a mask stay where they are no fault among the ``findings``.
    """
    codes = {finding.code for finding in findings}
    acts: list[str] = []
    dropped: dict[str, tuple[str, ...]] = {}
    splits, stray = {name: tuple(pairs) for name, pairs in listing.splits.items()}, tuple(listing.stray)
    if codes & {"E106", "E107"}:
        splits, stray = _renamed(splits, stray, acts)
        bare = tuple(str(p.image) for split in splits.values() for p in split if p.mask is None)
        splits = {name: tuple(p for p in split if p.mask is not None) for name, split in splits.items()}
        _note(dropped, "images without a mask", bare)
    _note(dropped, "masks without an image", tuple(map(str, stray)))
    pairs = {pair.image: pair for split in splits.values() for pair in split}
    bad = {image for image, faults in facts.bad.items() if faults != {"E108"} or not _fits_by_rule(pairs.get(image))}
    _note(dropped, "unreadable, or of a size no rule mends", tuple(map(str, sorted(bad))))
    splits = {name: tuple(p for p in split if p.image not in bad) for name, split in splits.items()}
    if any("E108" in faults and image not in bad for image, faults in facts.bad.items()):
        acts.append("masks resized or turned to their images' sizes (nearest neighbour)")
    splits = _without_leaks(_divided(splits, acts), findings, dropped)
    ids = dict(listing.ids)
    count = len(listing.classes)
    if "E102" in codes and count == 2:
        ids[IGNORE] = 1
        acts.append("255 read as class 1")
    if "E103" in codes:
        ids = {**{i: i - 1 for i in range(1, count + 1)}, IGNORE: IGNORE}
        acts.append(f"ids 1-{count} read as 0-{count - 1}")
    if codes & {"E101", "E105"}:
        acts.append("pixels that hold no class set to ignore (255)")
    empty = [name for name, split in splits.items() if not split]
    for name in empty:
        del splits[name]
        acts.append(f"split {name} named no image and was taken out")
    if "val" in empty and len(splits.get("train", ())) > 1:
        splits["val"], splits["train"] = choose(splits["train"], "20%", 0, "--val")
        acts.append(f"{len(splits['val'])} training images chosen by seed 0 for validation")
    is_lost = "train" in empty and len(listing.splits["train"]) > 0  # what is left is not to be trained on
    if codes & HOPELESS or ("E102" in codes and count != 2) or not any(splits.values()) or is_lost:
        raise DataError(f"no rule mends {listing.root}: " + "; ".join(str(f) for f in findings if f.stop))
    acts += [f"{kind} images written in 8 bits, {black:g} black, {white:g} white" for kind, black, white in facts.tones]
    notes = tuple(fault for fault in listing.faults if not fault.stop)
    whole = replace(listing, splits=splits, ids=ids, stray=(), faults=notes)
    return Mended(whole.toned(facts.tones), dropped, tuple(acts))


def _note(dropped: dict[str, tuple[str, ...]], why: str, files: tuple[str, ...]) -> None:
    """Adds files that are left out, if there are any."""
    if files:
        dropped[why] = files


Splits = dict[str, tuple[Pair, ...]]


def _renamed(splits: Splits, stray: Sequence[Path], acts: list[str]) -> tuple[Splits, tuple[Path, ...]]:
    """Pairs with the masks whose names differ by one shared ending; the masks still left over."""
    owners = likely_names([pair for split in splits.values() for pair in split], stray)
    if not owners:
        return splits, tuple(stray)
    masks = {image: mask for mask, image in owners.items()}
    acts.append(f"{len(owners)} masks given the names of their images")
    paired = {
        name: tuple(replace(p, mask=masks[p.image]) if p.mask is None and p.image in masks else p for p in split)
        for name, split in splits.items()
    }
    return paired, tuple(mask for mask in stray if mask not in owners)


def _fits_by_rule(pair: Pair | None) -> bool:
    """Whether the only fault of a pair is a mask size that nearest-neighbour resizing or turning mends."""
    if pair is None or pair.mask is None:
        return False
    try:
        read_mask(pair, None)
    except UNREADABLE:
        return False
    return True


def _divided(splits: Splits, acts: list[str]) -> Splits:
    """Training images that val or test name too are left to those."""
    held = {pair.image for name in ("val", "test") for pair in splits.get(name, ())}
    train = tuple(pair for pair in splits.get("train", ()) if pair.image not in held)
    count = len(splits.get("train", ())) - len(train)
    if not count:
        return splits
    acts.append(f"{count} images that val or test name too taken out of train")
    return {**splits, "train": train}


def _without_leaks(splits: Splits, findings: Sequence[Finding], dropped: dict[str, tuple[str, ...]]) -> Splits:
    """Training images that are byte for byte in another split are left out."""
    groups = [path.split(" = ") for f in findings if f.code in ("W118", "W119") for path in f.where if " = " in path]
    train = {str(p.image) for p in splits.get("train", ())}
    out = {path for group in groups for path in group if path in train and any(o not in train for o in group)}
    _note(dropped, "in the training split and in another", tuple(sorted(out)))
    return {
        name: tuple(p for p in split if name != "train" or str(p.image) not in out) for name, split in splits.items()
    }


def read_mask(pair: Pair, decoder: Decoder | None) -> Array:
    """Class ids uint8 (H, W) at the size of the image, `IGNORE` for no class; stored values without a decoder.

    Raises:
        DataError: the sizes differ by neither a quarter turn nor a whole factor.
    """
    image = fitted(mask_image(pair), pair, pair.mask)
    stored = np.asarray(image)
    if decoder is None:
        return stored
    decoded = decoder(stored)
    return np.where(decoded == UNKNOWN, IGNORE, decoded).astype(np.uint8)


def fitted(image: Image.Image, pair: Pair, where: Path | None) -> Image.Image:
    """What lies at ``where``, ids or numbers of objects, resized or turned to the picture of ``pair``.

    Raises:
        DataError: the sizes differ by neither a quarter turn nor a whole factor.
    """
    size, (width, height) = picture_size(pair.image), image.size
    if image.size == size:
        return image
    if size == (height, width):
        return image.transpose(_turn_of(pair.image))
    if size[0] * height == size[1] * width and 0 in (size[0] % width, width % size[0]):
        return image.resize(size, Image.Resampling.NEAREST)
    raise DataError(f"{where} is {width}x{height}, {pair.image} {size[0]}x{size[1]}: no rule mends that")


def fit_instances(numbers: Array, pair: Pair, where: Path | None) -> Array:
    """Numbers of objects uint16 (H, W) as `fitted` gives them."""
    return np.asarray(fitted(Image.fromarray(numbers.astype(np.int32)), pair, where)).astype(np.uint16)


def _turn_of(image: Path) -> Image.Transpose:
    """The quarter turn that EXIF asks for.

    Raises:
        DataError: it asks for none.
    """
    with Image.open(content(image), formats=FORMATS) as header:
        turn = orientation(header)
    turns = {5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
             8: Image.Transpose.ROTATE_90}  # fmt: skip
    if turn not in turns:
        raise DataError(f"the mask of {image} lies on its side, and EXIF does not say which way")
    return turns[turn]


def reader(listing: Listing) -> Callable[[Pair], Array]:
    """What `segue.data.convert.convert` reads masks with when it writes a mended copy."""
    decoder = Decoder.of(listing)
    return lambda pair: read_mask(pair, decoder)
