"""What a data set on disk holds: its layout, classes and splits, and every file that was found but cannot be used.

`segue.data.layouts` opens one: it reads names and class lists only; pixels are read by `segue.data.check` and by the
data sets in `segue.data.images`.
"""

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from segue.data.finding import Finding
from segue.data.outlines import Outline, Segment
from segue.data.sample import IGNORE, IMAGE_SUFFIXES, UNREAD_SUFFIXES, Color, Tones, palette
from segue.data.split_names import split_names
from segue.errors import DataError

INSTANCE_IDS = "_gtFine_instanceIds.png"  # of Cityscapes
WRITTEN = ("run.json", "predict.json", "suggestion.json")  # what tells folders that Segue wrote from those of a set


@dataclass(frozen=True, slots=True)
class Pair:
    """An image and the label map that belongs to it.

    Args:
        name: unique in the set.
        image: its file.
        mask: the file with its labels, None where it has none.
        segments: ``mask`` is a panoptic PNG of these segments.
        outlines: ``mask`` is an annotation file that gives these objects; class 0 is all that they leave free.
        is_wide: ``mask`` is a PNG of three 16-bit channels, the first of which holds class ids.
        tones: how ``image`` becomes 8-bit, where it is deeper.
        instances: the file that numbers its objects, where it is called otherwise than the layout says.
        labelled_at: (width, height) of the picture that ``outlines`` were drawn on, where the annotation file says it.
    """

    name: str
    image: Path
    mask: Path | None = None
    segments: tuple[Segment, ...] | None = None
    outlines: Sequence[Outline] | None = None
    is_wide: bool = False
    tones: Tones = ()
    instances: Path | None = None
    labelled_at: tuple[int, int] | None = None


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
        unnamed: images of its folder that no split names, without their masks.
        things: ids of countable classes.
        faults: what was wrong with names and annotation files.
        tones: how images deeper than 8 bits become 8-bit; that of each pair too.
    """

    root: Path
    layout: str
    classes: tuple[str, ...]
    colors: tuple[Color, ...]
    splits: Mapping[str, tuple[Pair, ...]]
    ids: Mapping[int, int]
    by_color: bool = False
    stray: tuple[Path, ...] = ()
    unnamed: tuple[Pair, ...] = ()
    things: tuple[int, ...] = ()
    faults: tuple[Finding, ...] = ()
    tones: Tones = ()

    def split(self, name: str) -> tuple[Pair, ...]:
        """The pairs of one split.

        Raises:
            DataError: there is no such split.
        """
        name = self.meant(name)
        if name not in self.splits:
            close = difflib.get_close_matches(name, self.splits, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise DataError(f"{self.root} has no split {name!r}: it has {', '.join(self.splits)}{hint}")
        return self.splits[name]

    def meant(self, name: str) -> str:
        """The split that a name stands for: its own, or the one that the name is another word for."""
        return name if name in self.splits else split_names([name])[name]

    def instance_path(self, pair: Pair) -> Path | None:
        """The file that numbers the objects of ``pair``, if there is one."""
        if pair.instances is not None:
            return pair.instances
        if pair.mask is not None and self.layout == "cityscapes":
            path = pair.mask.with_name(f"{pair.mask.name.split('_gtFine_')[0]}{INSTANCE_IDS}")
        elif pair.segments is None and pair.outlines is None:
            path = self.root / "instances" / f"{pair.name}.png"
        else:
            return None
        return path if path.is_file() else None

    def extended(self, ids: Mapping[int, int]) -> "Listing":
        """The same set with further stored values mapped to classes."""
        return replace(self, ids={**self.ids, **ids})

    def toned(self, tones: Tones) -> "Listing":
        """The same set with this rule for images deeper than 8 bits."""
        splits = {name: toned(pairs, tones) for name, pairs in self.splits.items()}
        return replace(self, splits=splits, tones=tones)


def toned(pairs: Sequence[Pair], tones: Tones) -> tuple[Pair, ...]:
    """The pairs with this rule for images deeper than 8 bits."""
    return tuple(replace(pair, tones=tones) for pair in pairs) if tones else tuple(pairs)


def identity(count: int) -> dict[int, int]:
    """Stored values that are class ids already, with `IGNORE` kept."""
    return {**{i: i for i in range(count)}, IGNORE: IGNORE}


def lines_of(path: Path) -> list[str]:
    """Lines of a text file that say something, without spaces around them.

    Raises:
        DataError: it cannot be read, or is not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path} cannot be read as a list of lines in UTF-8: {error}") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def images_in(folder: Path, faults: list[Finding] | None = None) -> dict[str, Path]:
    """Image files below ``folder`` by their path without suffix, sorted; hidden files are passed over.

    Those of kinds that are not read are among them, for who opens one says so; not those that lie beside one file of
    their name that is read, as a photo of a telephone beside what it was converted to.

    Args:
        folder: searched with its subfolders; a link to a folder is a fault.
        faults: takes what is wrong; the first fault is raised where there is no list for it.

    Raises:
        DataError: two files differ in their suffix only, so a mask would belong to both, or a folder is not searched.
    """
    by_name: dict[str, list[Path]] = {}
    closed: list[str] = []
    links: list[str] = []
    for parts in _files_below(folder, closed, links):
        stem, suffix = os.path.splitext(parts[-1])
        if suffix.lower() not in IMAGE_SUFFIXES + UNREAD_SUFFIXES or any(part.startswith(".") for part in parts):
            continue
        by_name.setdefault("/".join((*parts[:-1], stem)), []).append(folder.joinpath(*parts))
    found: dict[str, Path] = {}
    twice: list[str] = []
    for name, paths in by_name.items():
        read = [path for path in paths if path.suffix.lower() not in UNREAD_SUFFIXES]
        found[name], *others = read if len(read) == 1 else paths
        twice += (f"{found[name]} and {path}" for path in others)
    wrong = []
    if twice:
        wrong.append(Finding("E118", "two files have the same name", tuple(twice), "A mask would belong to both.",
                             "Rename or remove one of them."))  # fmt: skip
    if closed:
        wrong.append(Finding("E130", "no permission to look into a folder", tuple(closed), "What it holds is not used.",
                             "Make the folder readable, or take it out of the set."))  # fmt: skip
    if links:
        wrong.append(Finding("E130", "a link to a folder", tuple(links), "What it holds is not used.",
                             "Put the folder itself there, or name it in the command."))  # fmt: skip
    if wrong and faults is None:
        raise DataError("\n".join(map(str, wrong)))
    if faults is not None:
        faults += wrong
    return found


def _files_below(folder: Path, closed: list[str], links: list[str]) -> list[list[str]]:
    """Every file below ``folder``, but in hidden folders, as the parts of its path from there, sorted.

    Folders of runs, predictions and suggestions are no part of a set, though they hold pictures: they may lie among the
    images that they are of. ``closed`` takes folders that are kept shut, ``links`` links to folders: none is followed.
    """
    found: list[list[str]] = []
    for place, below, names in os.walk(folder, onerror=lambda error: closed.append(str(error.filename))):
        below[:] = [
            name
            for name in below
            if not name.startswith(".") and not any(os.path.isfile(os.path.join(place, name, own)) for own in WRITTEN)
        ]
        links += filter(os.path.islink, (os.path.join(place, name) for name in below))
        inner = list(Path(place).relative_to(folder).parts)
        found += [[*inner, name] for name in names]
    return sorted(found)


def pair_up(images: Mapping[str, Path], masks: Mapping[str, Path]) -> tuple[tuple[Pair, ...], tuple[Path, ...]]:
    """Images with their masks by name, and the masks left over."""
    pairs = tuple(Pair(name, path, masks.get(name)) for name, path in images.items())
    return pairs, tuple(path for name, path in masks.items() if name not in images)


def colors_or_palette(colors: list[Color] | None, count: int) -> tuple[Color, ...]:
    """The given colours, or told-apart ones where none are given."""
    return tuple(colors) if colors else tuple(palette(count))


def spread(pairs: Sequence[Pair], count: int) -> tuple[Pair, ...]:
    """At most ``count`` of the pairs, evenly over their order."""
    total = min(count, len(pairs))
    return tuple(pairs[i * len(pairs) // total] for i in range(total))
