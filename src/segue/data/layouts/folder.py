"""The canonical folder, and any folder with ``images/``, ``labels/`` and a class list.

    images/NAME.{jpg,png,tif}   labels/NAME.{png,tif}   [instances/NAME.{png,tif}]
    dataset.json                {"classes": [...], "colors": [[r, g, b], ...], "things": [...], "ignore": 255,
                                 "splits": {"train": [NAME, ...], ...}}
    or classes.txt              one class a line: ``name``, or ``name r g b`` where masks are coloured
    or labelmap.txt             as CVAT writes it: ``name:r,g,b:parts:actions``

Splits come from dataset.json, from ``splits/NAME.txt``, or from subfolders that images/ and labels/ share.
``valid``, ``validation`` and ``dev`` are the split ``val``, ``training`` is ``train`` and ``testing`` is ``test``, in
capitals and with a year behind them too.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from segue.data.finding import Finding
from segue.data.listing import Listing, Pair, colors_or_palette, identity, images_in, lines_of, pair_up
from segue.data.sample import FORMATS, IGNORE, UNREADABLE, Color
from segue.data.split_names import split_folders, split_names, told_apart
from segue.errors import DataError

MASK_FOLDERS = ("labels", "masks", "annotations")
CLASS_LISTS = ("dataset.json", "classes.txt", "labelmap.txt")
Classes = tuple[tuple[str, ...], list[Color] | None]


class Folder:
    """``images/`` and ``labels/`` side by side."""

    @staticmethod
    def matches(root: Path) -> bool:
        """Whether there is an ``images/`` or a ``dataset.json``."""
        return (root / "images").is_dir() or (root / "dataset.json").is_file()

    @staticmethod
    def read(root: Path) -> Listing:
        """The set in ``root``.

        Raises:
            DataError: no image, no class list, or a split that names an image twice or one that is not there.
        """
        if not (root / "images").is_dir():
            raise DataError(f"{root}/images does not exist; put the images there")
        faults: list[Finding] = []
        images = images_in(root / "images", faults)
        if not images:
            raise DataError(f"{root / 'images'} holds no image")
        folder = next((root / name for name in MASK_FOLDERS if (root / name).is_dir()), root / MASK_FOLDERS[0])
        masks = images_in(folder, faults) if folder.is_dir() else {}
        described = _described(root)
        classes, colors = _classes(root, described, next(iter(masks.values()), None))
        things = _things(root, described, len(classes))
        ids = identity(len(classes))
        numbered = images_in(root / "instances", faults) if (root / "instances").is_dir() else {}
        if not folder.is_dir() and numbered and (len(classes), things) == (2, (1,)):
            masks = numbered  # one kind of thing on a background: an id is a class
            ids = {0: 0, **{i: 1 for i in range(1, 1 << 16)}}
        pairs, stray = pair_up(images, masks)
        pairs = _numbered(pairs, numbered)
        if described.get("ignore") not in (None, IGNORE):
            raise DataError(f"{root / 'dataset.json'}: ignore is {described['ignore']!r}; Segue's is {IGNORE}")
        by_color = _is_colored(masks)
        if by_color and colors is None:
            faults.append(_colorless(masks, root))
        splits = _splits(root, described, pairs)
        named = {pair.name for split in splits.values() for pair in split}
        unnamed = tuple(Pair(pair.name, pair.image) for pair in pairs if pair.name not in named)
        return Listing(
            root=root,
            layout="folder",
            classes=classes,
            colors=colors_or_palette(colors, len(classes)),
            splits=splits,
            ids=ids,
            by_color=by_color,
            stray=stray,
            unnamed=unnamed,
            things=things,
            faults=tuple(faults),
        )


def _numbered(pairs: tuple[Pair, ...], numbered: Mapping[str, Path]) -> tuple[Pair, ...]:
    """The pairs with the files that number their objects, where these are called otherwise than ``NAME.png``."""
    others = {name: path for name, path in numbered.items() if path.suffix != ".png"}
    return tuple(replace(pair, instances=others.get(pair.name)) for pair in pairs) if others else pairs


def has_class_list(root: Path) -> bool:
    """Whether a class list lies in ``root``: it says what the masks hold, whatever set the folders look like."""
    return any((root / name).exists() for name in CLASS_LISTS)


def relisted(listing: Listing) -> Listing:
    """The same pairs with the classes of the list in the root, where one is there.

    Raises:
        DataError: the list is unsound.
    """
    root, described = listing.root, _described(listing.root)
    if not described.get("classes") and not any((root / name).is_file() for name in CLASS_LISTS[1:]):
        return listing
    masks = {pair.name: pair.mask for split in listing.splits.values() for pair in split if pair.mask}
    classes, colors = _classes(root, described, next(iter(masks.values()), None))
    by_color = _is_colored(masks)
    return replace(
        listing,
        classes=classes,
        colors=colors_or_palette(colors, len(classes)),
        ids=identity(len(classes)),
        by_color=by_color,
        things=_things(root, described, len(classes)),
        faults=(*listing.faults, *([_colorless(masks, root)] if by_color and colors is None else [])),
    )


def _described(root: Path) -> dict[str, Any]:
    """What dataset.json says; nothing where there is none."""
    path = root / "dataset.json"
    if not path.is_file():
        return {}
    try:
        described = json.loads(path.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError, ValueError) as error:
        raise DataError(f"{path} is no valid JSON: {error}") from None
    if not isinstance(described, dict):
        raise DataError(f"{path} must hold an object with classes and splits, not a {type(described).__name__}")
    return described


def _classes(root: Path, described: dict[str, Any], example: Path | None) -> Classes:
    """Names and colours of the classes, from the first list that is there."""
    if described.get("classes"):
        origin = root / "dataset.json"
        found = _described_classes(origin, described)
    elif (root / "classes.txt").is_file():
        origin = root / "classes.txt"
        found = _parse_lines(origin, [line.rsplit(maxsplit=3) for line in _said(origin)])
    elif (root / "labelmap.txt").is_file():
        origin = root / "labelmap.txt"
        rows = [line.split(":") for line in _said(origin)]
        found = _parse_lines(
            origin, [[row[0], *row[1].split(",")] if len(row) > 1 and row[1] else row[:1] for row in rows]
        )
    else:
        raise DataError(
            f"{root} has no class list; write {root / 'classes.txt'} with one class a line{_guess(example)}"
        )
    names, colors = found
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{origin} names the class {twice[0]!r} twice")
    if not 1 <= len(names) <= IGNORE:
        raise DataError(f"{origin} lists {len(names)} classes; 1 to {IGNORE} are possible")
    if colors is not None and len(colors) != len(names):
        raise DataError(f"{origin} gives {len(colors)} colours for {len(names)} classes")
    return found


def _described_classes(origin: Path, described: dict[str, Any]) -> Classes:
    """Names and colours as dataset.json gives them."""
    names, colors = described["classes"], described.get("colors")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{origin}: classes must be a list of names")
    if not colors:
        return tuple(names), None
    sound = isinstance(colors, list) and all(
        isinstance(c, list) and len(c) == 3 and all(isinstance(v, int) and 0 <= v <= 255 for v in c) for c in colors
    )
    if not sound:
        raise DataError(f"{origin}: colors must be a list of [r, g, b], each from 0 to 255")
    return tuple(names), [(c[0], c[1], c[2]) for c in colors]


def _said(path: Path) -> list[str]:
    """Lines that are no remark."""
    return [line for line in lines_of(path) if not line.startswith("#")]


def _parse_lines(path: Path, rows: list[list[str]]) -> Classes:
    """Names, and colours where every row has three numbers behind its name."""
    if rows and all(len(row) >= 4 and all(part.strip().isdigit() for part in row[-3:]) for row in rows):
        colors: list[Color] = [(int(row[-3]), int(row[-2]), int(row[-1])) for row in rows]
        return tuple(" ".join(row[:-3]).strip() for row in rows), colors
    return tuple(" ".join(row).strip() for row in rows), None


def _guess(example: Path | None) -> str:
    """The values of one mask, to help somebody write the class list."""
    if example is None or not example.is_file():
        return ""
    try:
        with Image.open(example, formats=FORMATS) as image:
            counted = image.getcolors(maxcolors=256) or []
    except UNREADABLE:
        return ""
    values = sorted((value for _, value in counted), key=str)[:12]
    return f" ({example.name} holds the values {', '.join(map(str, values))})" if values else ""


def _is_colored(masks: dict[str, Path]) -> bool:
    """Whether the first mask is an RGB picture; then the class list must give colours."""
    first = next(iter(masks.values()), None)
    if first is None or not first.is_file():
        return False
    try:
        with Image.open(first, formats=FORMATS) as image:
            return image.mode in ("RGB", "RGBA")
    except UNREADABLE:
        return False  # the check names unreadable files


def _colorless(masks: dict[str, Path], root: Path) -> Finding:
    """E104: coloured masks, and no colour for any class."""
    first = next(iter(masks.values()))
    described = root / "dataset.json"
    mend = f"Give each class its colour in {root / 'classes.txt'}: one line 'name r g b' a class."
    if described.is_file():
        mend = f'Give each class its colour in {described}: "colors": [[r, g, b], …], in the order of classes.'
    return Finding(
        "E104",
        f"masks are RGB pictures and the class list has no colours{_guess(first)}",
        (str(first),),
        "A colour does not say which class it is.",
        mend,
    )


def _things(root: Path, described: dict[str, Any], count: int) -> tuple[int, ...]:
    """Ids of countable classes, as dataset.json gives them."""
    things = described.get("things") or []
    if not isinstance(things, list) or not all(isinstance(i, int) and 0 <= i < count for i in things):
        raise DataError(f"{root / 'dataset.json'}: things must be a list of class ids from 0 to {count - 1}")
    return tuple(things)


def _splits(root: Path, described: dict[str, Any], pairs: tuple[Pair, ...]) -> dict[str, tuple[Pair, ...]]:
    """Pairs by split: from dataset.json, from splits/*.txt, from shared subfolders, or all of them as ``train``."""
    by_name = {pair.name: pair for pair in pairs}
    lists: dict[str, list[str]] = {}
    if described.get("splits"):
        origin = str(root / "dataset.json")
        given = described["splits"]
        if not isinstance(given, dict) or not all(isinstance(names, list) for names in given.values()):
            raise DataError(f"{origin}: splits must be an object of lists of names")
        lists = {str(name): list(map(str, names)) for name, names in given.items()}
    elif (root / "splits").is_dir():
        origin = str(root / "splits")
        lists = {path.stem: _said(path) for path in sorted((root / "splits").glob("*.txt"))}
    if lists:
        for split, names in lists.items():
            missing = [name for name in names if name not in by_name]
            if missing:
                raise DataError(
                    f"{origin}: split {split!r} names {missing[0]!r} ({len(missing)} such), "
                    f"which is not in {root / 'images'}"
                )
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise DataError(f"{origin}: split {split!r} names {twice!r} more than once")
        meant = split_names(lists) if described.get("splits") else told_apart(lists, origin)
        return {meant[split]: tuple(by_name[name] for name in names) for split, names in lists.items()}
    meant = split_folders(by_name, str(root / "images"))
    if not meant:
        return {"train": pairs}
    return {split: tuple(p for p in pairs if p.name.startswith(f"{head}/")) for head, split in meant.items()}
