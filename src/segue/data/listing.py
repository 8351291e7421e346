"""What a data set on disk holds: its layout, classes and splits, and every file that was found but cannot be used.

`segue.data.layouts` opens one: it reads names and class lists only; pixels are read by `segue.data.check` and by the
data sets in `segue.data.images`.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

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


def colors_or_palette(colors: list[Color] | None, count: int) -> tuple[Color, ...]:
    """The given colours, or told-apart ones where none are given."""
    return tuple(colors) if colors else tuple(palette(count))
