"""What a data set on disk holds: its layout, classes and splits, and every file that was found but cannot be used.

A layout is a class with ``matches(root)`` and ``read(root)``; `LAYOUTS` lists them. Opening a set reads names and class
lists only; pixels are read by `segue.data.check` and by the data sets in `segue.data.images`.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from segue.data.sample import IGNORE, IMAGE_SUFFIXES, Color, DataError, palette


@dataclass(frozen=True)
class Pair:
    """An image and the label map that belongs to it, or None where it has none."""

    name: str
    image: Path
    mask: Path | None = None


@dataclass(frozen=True)
class Listing:
    """A data set as it lies on disk.

    Args:
        root: its folder.
        layout: name of the layout it was read with.
        classes: names, in the order of their ids.
        colors: one RGB colour a class.
        splits: pairs of each split, sorted by name; an image may have no mask.
        ids: class id of each stored value; values that are not in it are faults.
        by_color: masks are RGB pictures whose colours name the classes.
        stray: masks that no image belongs to.
        things: ids of countable classes.
    """

    root: Path
    layout: str
    classes: tuple[str, ...]
    colors: tuple[Color, ...]
    splits: Mapping[str, tuple[Pair, ...]]
    ids: Mapping[int, int]
    by_color: bool = False
    stray: tuple[Path, ...] = ()
    things: tuple[int, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def split(self, name: str) -> tuple[Pair, ...]:
        """The pairs of one split.

        Raises:
            DataError: there is no such split.
        """
        if name not in self.splits:
            close = difflib.get_close_matches(name, self.splits, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise DataError(f"{self.root} has no split {name!r}: it has {', '.join(self.splits)}{hint}")
        return self.splits[name]

    def extended(self, ids: Mapping[int, int]) -> "Listing":
        """The same set with further stored values mapped to classes."""
        return replace(self, ids={**self.ids, **ids})


class Layout(Protocol):
    """How one kind of data set lies on disk."""

    @staticmethod
    def matches(root: Path) -> bool:
        """Whether ``root`` looks like this layout; looks at names only."""

    @staticmethod
    def read(root: Path) -> Listing:
        """The set in ``root``."""


def identity(count: int) -> dict[int, int]:
    """Stored values that are class ids already, with `IGNORE` kept."""
    return {**{i: i for i in range(count)}, IGNORE: IGNORE}


def images_in(folder: Path) -> dict[str, Path]:
    """Image files below ``folder`` by their path without suffix, sorted; hidden files are passed over.

    Raises:
        DataError: two files differ in their suffix only, so a mask would belong to both.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.suffix.lower() not in IMAGE_SUFFIXES or any(part.startswith(".") for part in relative.parts):
            continue
        name = relative.with_suffix("").as_posix()
        if name in found:
            raise DataError(f"E118 {found[name]} and {path} have the same name; rename or remove one of them")
        found[name] = path
    return found


def pair_up(images: Mapping[str, Path], masks: Mapping[str, Path]) -> tuple[tuple[Pair, ...], tuple[Path, ...]]:
    """Images with their masks by name, and the masks left over."""
    pairs = tuple(Pair(name, path, masks.get(name)) for name, path in images.items())
    return pairs, tuple(path for name, path in masks.items() if name not in images)


def layouts() -> dict[str, type[Layout]]:
    """Every layout by its name, the most particular first."""
    from segue.data.camvid import CamVid
    from segue.data.cityscapes import Cityscapes
    from segue.data.folder import Folder
    from segue.data.voc import Voc

    return {"cityscapes": Cityscapes, "voc": Voc, "camvid": CamVid, "folder": Folder}


def split_address(address: str) -> tuple[Path, str | None]:
    """``DIR:split`` as (DIR, split); the split is None where none is named."""
    folder, colon, split = address.rpartition(":")
    if colon and folder and not Path(address).exists() and "/" not in split:
        return Path(folder), split
    return Path(address), None


def open_listing(address: str, layout: str = "auto") -> Listing:
    """The data set in a folder; ``DIR:split`` keeps that split alone.

    Raises:
        DataError: the folder is missing, or no layout fits what is in it.
    """
    root, split = split_address(address)
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise DataError(f"{root} {what}; name a folder with images/ and labels/")
    known = layouts()
    if layout != "auto" and layout not in known:
        raise DataError(f"unknown layout {layout!r}; known are {', '.join(known)}")
    name = layout if layout != "auto" else next((n for n, kind in known.items() if kind.matches(root)), None)
    if name is None:
        inside = ", ".join(sorted(p.name for p in root.iterdir())[:6]) or "nothing"
        raise DataError(
            f"{root} holds no data set that Segue knows (in it: {inside}); "
            "expected images/ and labels/ with the same file names, and a classes.txt"
        )
    listing = known[name].read(root)
    return replace(listing, splits={split: listing.split(split)}) if split else listing


def open_images(address: str) -> tuple[Pair, ...]:
    """An unlabelled set: every image of a plain folder, or of a data set's split; masks are left alone.

    Raises:
        DataError: the folder is missing or holds no image.
    """
    root, split = split_address(address)
    if not root.is_dir():
        raise DataError(f"{root} does not exist or is no folder; name a folder of images")
    if split is not None:
        return tuple(Pair(pair.name, pair.image) for pair in open_listing(address).split(split))
    folder = root / "images" if (root / "images").is_dir() else root
    pairs = tuple(Pair(name, path) for name, path in images_in(folder).items())
    if not pairs:
        raise DataError(f"{folder} holds no image ({', '.join(IMAGE_SUFFIXES)})")
    return pairs


def colors_or_palette(colors: list[Color] | None, count: int) -> tuple[Color, ...]:
    """The given colours, or told-apart ones where none are given."""
    return tuple(colors) if colors else tuple(palette(count))
