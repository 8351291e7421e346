"""COCO's annotation files and other JSON from elsewhere: whatever is in them gives a value, a finding, or a `DataError`
that says which file, entry and field to mend.
"""

import json
import math
import os
from array import array
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segue.data.archive import check_path
from segue.data.finding import Finding
from segue.data.listing import Pair, images_in
from segue.data.outlines import Outline, packed, parse_runs
from segue.data.sample import IGNORE, Color, palette
from segue.errors import DataError

MAX_BYTES = 2 << 30  # of one annotation file; COCO's largest has half a gibibyte
FARTHEST = 1e5  # pixels from the corner that a point may lie
TEXTS = {  # code, what, why, fix
    "category": ("E120", "category_id names no category", "Its pixels would have no class.",
                 "Add it to categories, or correct category_id."),
    "isthing": ("E121", "isthing is missing in categories", "Objects could not be told from background.",
                'Write "isthing": 1 into countable categories and "isthing": 0 into the others.'),
    "twice": ("E122", "two segments of one image share an id", "Their pixels cannot be told apart.",
              "Give each segment its own id, in the PNG and in segments_info."),
    "image": ("E123", "the annotation names an image that is not there", "Its labels would be lost.",
              "Put the image there, or take its annotation out of the JSON."),
    "shape": ("E129", "segmentation of an object is empty or missing", "It would be learnt as background.",
              "Outline the object, or take its annotation out of the JSON; boxes are no masks."),
    "png": ("E123", "the annotation names a PNG that is not there", "Its image would have no labels.",
            "Put the PNG there, or take its annotation out of the JSON."),
}  # fmt: skip


def load_json(path: Path, as_read: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """What the JSON file holds.

    Args:
        path: the file.
        as_read: takes each object as soon as it is read and gives what stands for it.

    Raises:
        DataError: it cannot be read, is larger than `MAX_BYTES`, not UTF-8, no JSON or nested too deeply.
    """
    if not is_file(path):
        raise DataError(f"{path} is no plain file; put the annotation file itself there")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise DataError(f"{path} has {size:,} bytes, more than {MAX_BYTES:,}; divide it into smaller files")
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"), object_hook=as_read)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); write it as UTF-8") from None
    except RecursionError:
        raise DataError(f"{path} is nested too deeply to be read; write it without the nesting") from None
    except ValueError as error:
        raise DataError(f"{path} is no valid JSON: {error}") from None


def inside(folder: Path, name: str, source: object) -> Path:
    """The file that ``source`` calls ``name``, which cannot lie outside ``folder``.

    Raises:
        DataError: the name is absolute, climbs out, names a drive, or holds a backslash or an invisible character.
    """
    return folder / check_path(name, str(source))


def is_file(path: Path) -> bool:
    """Whether there is such a file; False also for a name that no file can have."""
    return os.path.isfile(path)


@dataclass(frozen=True, slots=True)
class Entry:
    """An object of an annotation file; what its fields do not hold as they should is a `DataError`.

    Args:
        where: the file and the place in it, for messages.
        values: the fields.
    """

    where: str
    values: dict[str, Any]

    @classmethod
    def of(cls, path: Path, as_read: Callable[[dict[str, Any]], Any] | None = None) -> "Entry":
        """The whole of a file whose outermost value is an object; ``as_read`` as of `load_json`."""
        return as_entry(load_json(path, as_read), str(path))

    def text(self, field: str) -> str:
        """A field that must be a text with at least one character."""
        value = self.values.get(field)
        if not isinstance(value, str) or not value:
            raise self.wrong(field, "a text")
        return value

    def key(self, field: str) -> Hashable:
        """A field that must be an id: a whole number or a text."""
        value = self.values.get(field)
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise self.wrong(field, "an id, a whole number or a text")
        return value

    def integer(self, field: str) -> int:
        """A field that must be a whole number from 0 on."""
        value = self.values.get(field)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self.wrong(field, "a whole number from 0 on")
        return value

    def flag(self, field: str) -> bool | None:
        """A field that must be 0, 1, false or true; None where it is missing."""
        value = self.values.get(field)
        if value is None:
            return None
        if not isinstance(value, bool | int) or value not in (0, 1):
            raise self.wrong(field, "0 or 1")
        return bool(value)

    def number(self, field: str) -> float | None:
        """A field that must be a number from 0 on; None where it is missing."""
        value = self.values.get(field)
        if value is None:
            return None
        if not is_number(value) or value < 0:
            raise self.wrong(field, "a number from 0 on")
        return float(value)

    def color(self, field: str) -> Color | None:
        """A field that must be three numbers from 0 to 255; None where it is missing."""
        value = self.values.get(field)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != 3 or not all(type(v) is int and 0 <= v <= 255 for v in value):
            raise self.wrong(field, "[r, g, b], each from 0 to 255")
        return value[0], value[1], value[2]

    def entries(self, field: str, limit: int | None = None) -> list["Entry"]:
        """A field that must be a list of objects, or its first ``limit``."""
        value = self.values.get(field)
        if not isinstance(value, list):
            raise self.wrong(field, "a list of objects")
        return [as_entry(item, f"{self.where}: {field}[{i}]") for i, item in enumerate(value[:limit])]

    def consumed(self, field: str) -> Iterator["Entry"]:
        """The objects of a list, one after the other; each is let go once the next is asked for."""
        self.entries(field, 0)
        items = self.values.pop(field)
        for i in range(len(items)):
            item, items[i] = items[i], None
            yield as_entry(item, f"{self.where}: {field}[{i}]")

    def by_id(self, field: str) -> dict[Hashable, "Entry"]:
        """A field that must be a list of objects with different ids."""
        found: dict[Hashable, Entry] = {}
        for entry in self.entries(field):
            if found.setdefault(entry.key("id"), entry) is not entry:
                raise DataError(f"{entry.where}: id {entry.key('id')!r} is used twice; give each entry its own")
        return found

    def wrong(self, field: str, expected: str) -> DataError:
        """The error of a field that is missing or of another type than expected."""
        what = f"is {_short(self.values[field])}" if field in self.values else "is missing"
        return DataError(f"{self.where}: {field} {what}; it must be {expected}")


def as_entry(value: object, where: str) -> Entry:
    """``value`` if it is an object."""
    if not isinstance(value, dict):
        raise DataError(f"{where} is {_short(value)}; it must be an object")
    return Entry(where, value)


def is_number(value: object) -> bool:
    """Whether ``value`` is a finite number that a float can hold."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def _short(value: object) -> str:
    """``value`` as a message can show it."""
    if isinstance(value, list | dict):
        return f"a {type(value).__name__} of {len(value)}"
    shown = ascii(value)
    return shown if len(shown) <= 40 else f"{shown[:40]}…"


@dataclass(frozen=True)
class Categories:
    """COCO's categories in the order of their ids; gaps between ids are closed.

    Args:
        names: one a category, all different.
        colors: as given, else by name from a file of official ones, else told-apart ones.
        positions: place of each category by its id.
        things: places of countable categories.
        vague: names of categories that do not say whether they are countable.
    """

    names: tuple[str, ...]
    colors: tuple[Color, ...]
    positions: Mapping[int, int]
    things: tuple[int, ...]
    vague: tuple[str, ...]

    @classmethod
    def of(cls, content: Entry, official: Sequence[Entry] = ()) -> "Categories":
        """The categories of an annotation file, or the official ones where it has none."""
        entries = list(official) if official and "categories" not in content.values else content.entries("categories")
        by_id = {entry.integer("id"): entry for entry in entries}
        sorted_entries = [by_id[number] for number in sorted(by_id)]
        names = tuple(entry.text("name").strip() for entry in sorted_entries)
        if not 1 <= len(names) <= IGNORE or len(set(names)) < len(entries):
            many = f"{content.where}: {len(entries)} categories"
            raise DataError(f"{many}; 1 to {IGNORE} are possible, each with its own id and name")
        known = {entry.text("name"): entry.color("color") for entry in official}
        given = [entry.color("color") or known.get(name) for entry, name in zip(sorted_entries, names, strict=True)]
        countable = [entry.flag("isthing") for entry in sorted_entries]
        return cls(
            names=names,
            colors=tuple(color or other for color, other in zip(given, palette(len(names)), strict=True)),
            positions={number: i for i, number in enumerate(sorted(by_id))},
            things=tuple(i for i, value in enumerate(countable) if value),
            vague=tuple(name for name, value in zip(names, countable, strict=True) if value is None),
        )


@dataclass
class Found:
    """What an annotation file gave.

    Args:
        pairs: by name.
        seen: images that need no second look.
        stray: masks that it does not name.
        places: of faults, by their kind in `TEXTS`.
        faults: others.
    """

    pairs: dict[str, Pair] = field(default_factory=dict)
    seen: set[Path] = field(default_factory=set)
    stray: tuple[Path, ...] = ()
    places: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    faults: list[Finding] = field(default_factory=list)

    def add(self, pair: Pair, where: str) -> None:
        """Adds a pair that the entry ``where`` gives."""
        if pair.name in self.pairs:
            raise DataError(f"{where} is the second for the image {pair.image}; keep one of them")
        self.pairs[pair.name] = pair
        self.seen.add(pair.image)

    def add_bare(self, folder: Path, split: str) -> None:
        """Adds the images of ``folder`` that no annotation names."""
        for name, path in images_in(folder, self.faults).items():
            if path not in self.seen:
                self.pairs.setdefault(f"{split}/{name}", Pair(f"{split}/{name}", path))

    def findings(self) -> tuple[Finding, ...]:
        """All faults."""
        rows = [(TEXTS[kind], tuple(places)) for kind, places in self.places.items() if places]
        return (*self.faults, *(Finding(code, what, where, why, fix) for (code, what, why, fix), where in rows))

    def sorted(self) -> tuple[Pair, ...]:
        """The pairs by name."""
        return tuple(self.pairs[name] for name in sorted(self.pairs))


def packed_shape(values: dict[str, Any]) -> dict[str, Any]:
    """An object of an annotation file as it is read, the numbers of its polygons packed where they are numbers."""
    shape = values.get("segmentation")
    if isinstance(shape, list):
        values["segmentation"] = [_packed(polygon) for polygon in shape]
    return values


def _packed(polygon: Any) -> Any:
    """A list of numbers as an array; anything else as it is, for `outline_of` to name."""
    if isinstance(polygon, list) and set(map(type, polygon)) <= {int, float}:
        try:
            return packed(polygon)
        except OverflowError:
            return polygon
    return polygon


def outline_of(entry: Entry, image: Entry, label: int, is_crowd: bool) -> Outline:
    """The object of an annotation with a ``segmentation``; polygons of fewer than three points cover nothing."""
    shape = entry.values["segmentation"]
    if isinstance(shape, dict):
        return Outline(label, runs=_runs(Entry(f"{entry.where}: segmentation", shape), image), is_crowd=is_crowd)
    polygons: list[Any] = shape if isinstance(shape, list) else [None]
    for polygon in polygons:
        numbers: Sequence[Any] = polygon if isinstance(polygon, list | array) else [None]
        if len(numbers) % 2 or not all(
            type(value) in (int, float) and -FARTHEST <= value <= FARTHEST for value in numbers
        ):
            raise entry.wrong("segmentation", f"a list of polygons [x, y, x, y, …] within {FARTHEST:,.0f} pixels")
    kept = tuple(packed(polygon) for polygon in polygons if len(polygon) >= 6)
    return Outline(label, kept, is_crowd=is_crowd, covers_centers=True)


def _runs(shape: Entry, image: Entry) -> tuple[int, ...]:
    """Run lengths, as text or as a list; they must fill the picture."""
    size, counts = shape.values.get("size"), shape.values.get("counts")
    if not isinstance(size, list) or len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
        raise shape.wrong("size", "[height, width]")
    stated = [image.values.get("height", size[0]), image.values.get("width", size[1])]
    if stated != size:
        raise shape.wrong("size", f"that of the image, {stated[0]!r:.20} x {stated[1]!r:.20}")
    if isinstance(counts, list) and all(type(run) is int and run >= 0 for run in counts):
        runs = tuple(counts)
    elif isinstance(counts, str):
        try:
            runs = parse_runs(counts)
        except DataError as error:
            raise DataError(f"{shape.where}: {error}; export it again") from None
    else:
        raise shape.wrong("counts", "run lengths, as a text or as a list of whole numbers from 0 on")
    if min(runs, default=0) < 0 or sum(runs) != size[0] * size[1]:
        raise DataError(f"{shape.where}: counts sum to {sum(runs)}, not to the {size[0] * size[1]} pixels of size")
    return runs


def outline_area(outline: Outline) -> float:
    """Pixels of an object: of its runs, or of its polygons by Gauss's formula."""
    total = float(sum(outline.runs[1::2]))
    for polygon in outline.polygons:
        x, y = polygon[::2], polygon[1::2]
        total += abs(sum(x[i - 1] * y[i] - x[i] * y[i - 1] for i in range(len(x)))) / 2
    return total
