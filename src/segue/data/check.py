"""The named faults of a data set: each with a code, where it is, why it matters and what mends it.

A finding whose ``stop`` is true keeps every training command from starting. The reader of one pair is `inspect`; what
can only be said of the whole set is in `_whole`; both give plain findings, so a new fault is one more function.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from segue.data.images import Decoder, first_unknown, mask_image
from segue.data.listing import Listing, Pair
from segue.data.sample import IGNORE, ORIENTATION, Array, DataError, open_image, to_rgb

SHOWN = 3  # example paths in a message
SAMPLE = 1000  # pairs whose pixels the cheap check reads


@dataclass(frozen=True)
class Finding:
    """One kind of fault and every place it was found in.

    Args:
        code: E101 and so on; stable.
        what: the fault, with its value.
        where: the files.
        why: what would happen if it went unnoticed.
        fix: the command or the act that mends it.
        stop: training must not start.
    """

    code: str
    what: str
    where: tuple[str, ...]
    why: str
    fix: str
    stop: bool = True

    def __str__(self) -> str:
        shown = ", ".join(self.where[:SHOWN]) + (
            f" and {len(self.where) - SHOWN} more" if len(self.where) > SHOWN else ""
        )
        return f"{self.code} {self.what}: {shown}. {self.why} {self.fix}"


@dataclass
class Facts:
    """What was read of the pairs.

    Args:
        pixels: labelled pixels of each class.
        images: images in which each class occurs.
        stored: how many masks hold each set of stored values.
        read: pairs whose pixels were read.
        sizes: how many images have each (width, height).
    """

    pixels: Array
    images: Array
    stored: Counter[tuple[int, ...]] = field(default_factory=Counter)
    read: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)


def check(
    listing: Listing, *, allow_missing: bool = False, sample: int = SAMPLE, tick: Callable[[], None] = lambda: None
) -> tuple[list[Finding], Facts]:
    """Every fault of the set that can be found in its names, its headers and the pixels of ``sample`` pairs.

    Args:
        listing: the set.
        allow_missing: images without masks and masks without images are all right.
        sample: pairs to read in full, evenly spread over each split.
        tick: called after each pair.
    """
    pairs = {pair.image: pair for split in listing.splits.values() for pair in split}
    ordered = list(pairs.values())
    every = max(1, -(-len(ordered) // sample))
    facts = Facts(np.zeros(len(listing.classes), np.int64), np.zeros(len(listing.classes), np.int64))
    decoder = Decoder.of(listing)
    gathered: dict[tuple[str, str, str, str, bool], list[str]] = {}
    for i, pair in enumerate(ordered):
        for found in inspect(pair, decoder, listing, facts, pixels=i % every == 0):
            key = (found.code, found.what, found.why, found.fix, found.stop)
            gathered.setdefault(key, []).extend(found.where)
        tick()
    findings = [
        Finding(code, what, tuple(where), why, fix, stop) for (code, what, why, fix, stop), where in gathered.items()
    ]
    return sorted(
        [*_whole(listing, ordered, facts, allow_missing), *_merged(findings, facts, listing)], key=_order
    ), facts


def _order(finding: Finding) -> tuple[bool, str]:
    return not finding.stop, finding.code


def inspect(pair: Pair, decoder: Decoder, listing: Listing, facts: Facts, *, pixels: bool) -> list[Finding]:
    """The faults of one pair; adds what it saw to ``facts``."""
    sizes = []
    found = []
    for path in (pair.image, pair.mask):
        if path is None:
            continue
        try:
            with Image.open(path) as header:
                lies = header.getexif().get(ORIENTATION, 1) >= 5
                sizes.append(header.size[::-1] if lies else header.size)
            if pixels and path == pair.image:
                to_rgb(open_image(path), path)
        except DataError as error:
            return [_unreadable(path, str(error))]
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            return [_unreadable(path, str(error))]
    facts.sizes[sizes[0]] += 1
    if pair.mask is None:
        return []
    if sizes[0] != sizes[1]:
        found.append(
            Finding(
                "E108",
                f"image {sizes[0][0]}x{sizes[0][1]}, mask {sizes[1][0]}x{sizes[1][1]}",
                (f"{pair.image} and {pair.mask}",),
                "Labels would lie beside what they name.",
                "Export the mask at the size of its image.",
            )
        )
    return found + (_mask_faults(pair, decoder, listing, facts) if pixels else [])


def _unreadable(path: Path, reason: str) -> Finding:
    size = path.stat().st_size if path.exists() else 0
    if "decompression bomb" in reason.lower():
        return Finding(
            "E112",
            "image is larger than the limit of pixels",
            (f"{path} ({reason})",),
            "It could exhaust the machine.",
            "Cut it into pieces, or take it out.",
        )
    code = "E110" if "truncated" in reason.lower() or "broken" in reason.lower() else "E111"
    what = "file is empty" if size == 0 else ("file is cut short" if code == "E110" else "file is no image Segue reads")
    return Finding(
        code,
        what,
        (f"{path} ({size} bytes)",),
        f"It holds no whole picture ({reason}).",
        "Export it again, or take it out of the folder.",
    )


def _mask_faults(pair: Pair, decoder: Decoder, listing: Listing, facts: Facts) -> list[Finding]:
    """Faults of one mask's pixels."""
    try:
        stored = np.asarray(mask_image(pair.mask))
    except DataError as error:
        return [_unreadable(Path(str(pair.mask)), str(error))]
    facts.read += 1
    decoded = decoder(stored)
    if not decoder.by_color:
        facts.stored[tuple(np.unique(stored).tolist())] += 1
    found = []
    if (decoded < 0).any():
        value, count = first_unknown(stored, decoded)
        found.append(
            Finding(
                "E101",
                f"the value {value} is no class (classes are 0-{len(listing.classes) - 1})"
                if not decoder.by_color
                else f"the colour {value} is no class",
                (f"{pair.mask} ({count} pixels)",),
                "It would be trained as something it is not.",
                f"Mend the mask, add the class, or map it: --map {value}:ignore"
                if not decoder.by_color
                else "Mend the mask, or add the class with its colour.",
            )
        )
    counts = np.bincount(decoded[(decoded >= 0) & (decoded != IGNORE)].ravel(), minlength=len(listing.classes))
    facts.pixels += counts[: len(listing.classes)]
    facts.images += counts[: len(listing.classes)] > 0
    if not found and counts.sum() == 0:
        found.append(
            Finding(
                "W116",
                "every pixel is ignored",
                (str(pair.mask),),
                "Nothing is learnt from it.",
                "Label it, or take it out.",
                stop=False,
            )
        )
    return found


def _merged(findings: list[Finding], facts: Facts, listing: Listing) -> list[Finding]:
    """Faults of single masks that are one fault of the whole set: 0/255, ids that start at 1, nothing labelled."""
    values = sorted({value for held in facts.stored for value in held})
    count = len(listing.classes)
    if values == [0, IGNORE] and listing.ids.get(IGNORE) == IGNORE:
        whole = Finding(
            "E102",
            "masks hold only 0 and 255, and 255 is the ignore value",
            (str(listing.root),),
            "All of the foreground would be ignored.",
            "If 255 is the second class, map it: --map 255:1",
        )
        return [whole, *(f for f in findings if f.code != "W116")]
    ids = [value for value in values if value != IGNORE]
    unknown = any(finding.code == "E101" for finding in findings)
    if unknown and ids == list(range(1, count + 1)):
        shift = ",".join(f"{i}:{i - 1}" for i in range(1, count + 1))
        whole = Finding(
            "E103",
            f"ids are 1-{count} with {count} classes",
            (str(listing.root),),
            "Every label would name the class after its own.",
            f"If 1 is the first class: --map {shift}",
        )
        return [whole, *(f for f in findings if f.code != "E101")]
    if facts.read and facts.pixels.sum() == 0 and not unknown:
        blank = [f for f in findings if f.code == "W116"]
        where = blank[0].where if blank else (str(listing.root),)
        whole = Finding(
            "E116",
            "every pixel of every mask is ignored",
            where,
            "There is nothing to learn from.",
            "Check that the masks hold class ids.",
        )
        return [whole, *(f for f in findings if f.code != "W116")]
    return findings


def _whole(listing: Listing, pairs: Sequence[Pair], facts: Facts, allow_missing: bool) -> list[Finding]:
    """Faults of the set as a whole."""
    found = []
    labelled_splits = [split for split in listing.splits.values() if any(pair.mask for pair in split)]
    bare = [str(pair.image) for split in labelled_splits for pair in split if pair.mask is None]
    if pairs and not labelled_splits:
        found.append(
            Finding(
                "E107",
                f"{len(pairs)} images and not one mask with the same name",
                (str(listing.root),),
                "There is nothing to learn from.",
                _nearest(listing, pairs),
            )
        )
    elif bare and not allow_missing:
        found.append(
            Finding(
                "E106",
                f"{len(bare)} of {len(pairs)} images have no mask",
                tuple(bare),
                "They would be left out.",
                "Label them, or say so: --allow-missing true",
            )
        )
    if listing.stray and not allow_missing:
        found.append(
            Finding(
                "E106",
                f"{len(listing.stray)} masks have no image",
                tuple(map(str, listing.stray)),
                "They would be left out.",
                "Add the images, remove the masks, or say so: --allow-missing true",
            )
        )
    if facts.read and facts.pixels.sum():
        never = [listing.classes[i] for i in np.flatnonzero(facts.images == 0)]
        if never:
            found.append(
                Finding(
                    "W115",
                    "classes that no mask read holds",
                    tuple(never),
                    "They cannot be learnt.",
                    "Add images of them, or take them off the class list.",
                    stop=False,
                )
            )
    return found


def _nearest(listing: Listing, pairs: Sequence[Pair]) -> str:
    """A guess at how the masks are named."""
    if listing.stray:
        mask, image = listing.stray[0].name, pairs[0].image.name
        return f"Masks are named like {mask}, images like {image}; give them the same names."
    return f"Put the masks into {listing.root / 'labels'}, each with the name of its image."
