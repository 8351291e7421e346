"""A set of images without labels, opened for training: what is used, what is left out and why."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from segue.data.check import check
from segue.data.finding import Finding
from segue.data.layouts import LAYOUTS, is_plain, layout_of, open_images, split_address
from segue.data.listing import Listing, Pair, toned
from segue.data.sample import Tones
from segue.errors import DataError

LABELS = {"E107"}  # codes that ask for masks
HELD_OUT = ("val", "test")  # splits that models are measured on
OF_HELD_OUT = f"of the splits {' and '.join(HELD_OUT)}"  # why images are left out


@dataclass(frozen=True)
class ImageSet:
    """What a method that needs no labels gets.

    Args:
        root: the folder as it was named.
        images: to learn from.
        found: images that were found.
        dropped: why how many of them are not used; used + dropped == found.
        warnings: findings that did not stop.
    """

    root: str
    images: tuple[Pair, ...]
    found: int
    dropped: dict[str, int] = field(default_factory=dict)
    warnings: tuple[Finding, ...] = ()

    def account(self) -> dict[str, object]:
        """What goes into ``run.json`` and the report."""
        return {
            "root": self.root,
            "layout": "images",
            "classes": [],
            "found": self.found,
            "labelled": 0,
            "unlabelled": len(self.images),
            "validation": 0,
            "dropped": self.dropped,
            "labelled_names": [],
            "warnings": [str(finding) for finding in self.warnings],
        }

    def files(self) -> Iterator[tuple[str, tuple[Path | None, ...]]]:
        """(name, files) of every image."""
        return ((pair.name, (pair.image,)) for pair in self.images)

    def lines(self) -> list[str]:
        """What the command understood, for the person who waits."""
        left_out = ", ".join(f"{count} {why}" for why, count in self.dropped.items()) or "nothing"
        used = f"using {len(self.images)} images of {self.root}, none of their masks"
        return [f"{used}; left out of {self.found} found: {left_out}", *(f"note: {found}" for found in self.warnings)]


def open_image_set(address: str, *, skip_bad: bool = False, tones: Tones = ()) -> ImageSet:
    """Every image of a folder, or of a data set's split, once its header and its end have been looked at; of a data set
    named without a split, those that no model is to be measured on.

    Args:
        address: the folder, or ``FOLDER:split``; masks in it are left alone.
        skip_bad: go on without images that cannot be read.
        tones: the rules of a model for deep images, which hold here too; other kinds get one of their own.

    Raises:
        DataError: no image, or one that cannot be read; each kind of fault is one line of the message.
    """
    if not address:
        raise DataError("no images named; give their folder: segue pretrain IMAGES --out RUN")
    every = open_images(address)
    pairs, held = apart_from_held_out(address, every)
    listing = Listing(Path(address), "images", (), (), {"images": pairs}, {})
    findings, facts = check(listing, allow_missing=True, skip_bad=skip_bad, tones=tones)
    findings = [finding for finding in findings if finding.code not in LABELS]
    stops = [finding for finding in findings if finding.stop]
    if stops:
        raise DataError("\n".join(str(finding) for finding in stops))
    sound = tuple(pair for pair in pairs if pair.image not in facts.bad)
    if not sound:
        raise DataError(f"{address}: none of its {len(pairs)} images can be read")
    unused = {"unreadable (--skip_bad)": len(pairs) - len(sound), OF_HELD_OUT: held}
    dropped = {why: count for why, count in unused.items() if count}
    return ImageSet(address, toned(sound, facts.tones), len(every), dropped, tuple(f for f in findings if not f.stop))


def apart_from_held_out(address: str, pairs: tuple[Pair, ...]) -> tuple[tuple[Pair, ...], int]:
    """The images of an address that no model is to be measured on, and how many others there are: of a data set that
    is named without a split those of `HELD_OUT`. They get the names that the set has for them, where these differ.

    Raises:
        DataError: the set cannot be read, or has no other images.
    """
    root, split = split_address(address)
    layout = layout_of(root)
    if split is not None or layout is None or is_plain(root):
        return pairs, 0
    splits = LAYOUTS[layout].read(root).splits
    there = [name for name in HELD_OUT if splits.get(name)]
    held = {pair.image for name in there for pair in splits[name]}
    kept = tuple(pair for pair in pairs if pair.image not in held)
    if not kept:
        raise DataError(f"{root}: every image is of {' and '.join(there)}, to measure on; name it as {root}:{there[0]}")
    names = {pair.image: pair.name for split in splits.values() for pair in split}
    named = tuple(replace(pair, name=names.get(pair.image, pair.name)) for pair in kept)
    is_clear = len({pair.name for pair in named}) == len(named)
    return named if is_clear else kept, len(pairs) - len(kept)
