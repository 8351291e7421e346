"""What labelling tools export: CVAT for images 1.1, LabelMe (the program, not the website) and Label Studio.

    annotations.xml and images/NAME.jpg                         CVAT
    NAME.json beside NAME.jpg, and labels.txt if there is one   LabelMe
    project-….json and images/NAME.jpg                          Label Studio

XML is screened here, then read by datumaro (``pip install "segue[formats]"``), which knows neither JSON. Class 0 is
what no shape covers; where ``labels.txt`` has ``__ignore__`` and no background, that is not labelled. Polygons of one
label and group are one object. A picture that CVAT lists without a shape or tag has no mask, nor has one without a
submitted Label Studio annotation: nobody said that it is all background.
"""

import base64
import importlib
import io
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from PIL import Image

from segue.data.archive import check_path
from segue.data.finding import Finding, merged, printable
from segue.data.labelling_files import BACKGROUND, UNLABELLED, leaves_free
from segue.data.layouts.annotations import load_json
from segue.data.layouts.folder import has_class_list
from segue.data.listing import Listing, Pair, identity, images_in, lines_of
from segue.data.outlines import Outline
from segue.data.sample import IGNORE, IMAGE_SUFFIXES, UNREADABLE, Array, Color, palette, picture_size
from segue.data.split_names import split_folders
from segue.errors import DataError
from segue.extras import install

FARTHEST = 1e5  # pixels from the corner that a point may lie
DEEPEST = 32  # elements within each other
CORNERS, UNFINISHED = 3, "polygon of fewer than three points"
SPLITS = {"": "train", "default": "train", "train": "train", "validation": "val", "test": "test"}
NOT_AREAS = ("points", "polyline", "skeleton", "cuboid", "tag")  # types of CVAT's labels

NOWHERE = Outline(IGNORE, ((-1, -1, FARTHEST, -1, FARTHEST, FARTHEST, -1, FARTHEST),))  # all pixels, below the others

Size = tuple[int, int]
Shape = tuple[str, object, tuple[float, ...], tuple[int, ...]]  # label, group, polygon, run lengths
Row = tuple[Path, Path | None, list[Shape], str, Size | None]  # picture, annotation file, shapes, split, labelled at


class Cvat:
    """``annotations.xml`` and ``images/``, of a task or a project."""

    @staticmethod
    def matches(root: Path) -> bool:
        """Whether there is an ``annotations.xml``."""
        return (root / "annotations.xml").is_file()

    @staticmethod
    def read(root: Path) -> Listing:
        """The set in ``root``; boxes count as areas, as in CVAT's own export of masks.

        Raises:
            DataError: the XML is unsound, a picture that it names is not there, or datumaro is missing.
        """
        path, faults = root / "annotations.xml", list[Finding]()
        library = _library("datumaro.plugins.data_formats.cvat.base")
        with _border(path):
            colors, pictures = _screen_cvat(path, faults)
            subsets = {picture.subset for picture in pictures.values()}
            items = [item for subset in subsets for item in _items(library.CvatBase(str(path), subset=subset or None))]
            shapes = {image: _areas(found, pictures[image].size) for image, found in items}
            if len(shapes) != len(pictures):
                raise DataError(f"{path} uses an image id or a subset in two ways")
            rows: list[Row] = [
                (image, path if found.is_annotated else None, shapes[image], found.subset, found.labelled_at)
                for image, found in pictures.items()
            ]
        return _listing(root, "cvat", root / "images", rows, colors, faults)


class LabelMe:
    """Pictures with JSON files beside them, in any folder; ``labels.txt`` may give the order of the labels."""

    @staticmethod
    def matches(root: Path) -> bool:
        """Whether a JSON file in ``root``, or in a folder below it that is no set, has the name of a picture beside."""
        for place, below, names in os.walk(root):
            if has_class_list(Path(place)):
                below.clear()
                continue
            below[:] = [name for name in below if not name.startswith(".")]
            labelled = {name.removesuffix(".json") for name in names if name.endswith(".json")}
            beside = (os.path.splitext(name) for name in names) if labelled else ()
            if any(stem in labelled and suffix.lower() in IMAGE_SUFFIXES for stem, suffix in beside):
                return True
        return False

    @staticmethod
    def read(root: Path) -> Listing:
        """The set in ``root``: polygons, rectangles, circles and masks; pictures without a file have no mask.

        Raises:
            DataError: a file is unsound or names a picture that is not there.
        """
        rows: dict[Path, Row] = {}
        faults: list[Finding] = []
        for path in sorted(root.rglob("*.json")):
            if any(part.startswith(".") for part in path.relative_to(root).parts):
                continue
            with _border(path):
                said = load_json(path)
                if not isinstance(said, dict) or "shapes" not in said:
                    continue
                image = _labelled_picture(path, said["imagePath"])
                if image in rows:
                    raise DataError(f"{path} and another file have labels for {image}; keep one of them")
                size, at = _sizes(image, said.get("imageWidth"), said.get("imageHeight"))
                shapes = [_labelme(shape, size, path, faults) for shape in said["shapes"]] if size else []
                rows[image] = (image, path, [shape for shape in shapes if shape], "", at)
        bare: list[Row] = [
            (image, None, [], "", None) for image in images_in(root, faults).values() if image not in rows
        ]
        declared: dict[str, Color | None] = {}
        with _border(root / "labels.txt"):
            if (root / "labels.txt").is_file():
                declared = dict.fromkeys(lines_of(root / "labels.txt"))
        every, base = [*rows.values(), *bare], root / "images"
        if not all(row[0].is_relative_to(base) for row in every):
            base = root  # else they are called as in a set that has them in images/
        return _listing(root, "labelme", base, every, declared, faults, has_background=not leaves_free(declared))


class LabelStudio:
    """One JSON file of tasks; Label Studio keeps the pictures, so they are put into ``images/`` by hand."""

    @staticmethod
    def matches(root: Path) -> bool:
        """Whether there is a ``project-….json`` under the name that the tool gives it."""
        return any(root.glob("project-*-at-*.json"))

    @staticmethod
    def read(root: Path) -> Listing:
        """The set in ``root``: polygons and brush strokes of the ground truth, or else of the last annotation.

        Raises:
            DataError: there is not one export, it is unsound, or a picture of it is not there.
        """
        found = sorted(root.glob("project-*-at-*.json")) or sorted(root.glob("*.json"))
        if len(found) != 1:
            raise DataError(f"{root} holds {len(found)} exports of Label Studio; keep one, of the kind 'JSON'")
        path, faults = found[0], list[Finding]()
        rows: list[Row] = []
        with _border(path):
            for task in load_json(path):
                if "data" not in task:
                    raise DataError(f"{path} is no full export of Label Studio; export again as 'JSON', not 'JSON-MIN'")
                image = _uploaded(root, task["data"], path)
                done = [a for a in task.get("annotations") or [] if not a.get("was_cancelled")]
                chosen = next((a for a in done if a.get("ground_truth")), done[-1] if done else None)
                if len(done) > 1:
                    faults.append(_twice(image))
                results = chosen["result"] if chosen else []
                sizes = [(r["original_width"], r["original_height"]) for r in results if "original_width" in r]
                size, at = _sizes(image, *(sizes or [(None, None)])[0])
                shapes = [_labelstudio(result, size, image, faults) for result in results] if size else []
                rows.append((image, path if chosen else None, [shape for shape in shapes if shape], "", at))
        return _listing(root, "labelstudio", root / "images", rows, {}, faults)


def _listing(
    root: Path, layout: str, base: Path, rows: list[Row], declared: Mapping[str, Color | None], faults: list[Finding],
    *, has_background: bool = True,
) -> Listing:  # fmt: skip
    """The set of ``rows``: declared labels in their order, others behind them by name; pairs named below ``base``."""
    colors = {name.strip(): color for name, color in declared.items() if name.strip()}
    colors |= dict.fromkeys(sorted({shape[0] for row in rows for shape in row[2]} - set(colors)))
    objects = [name for name in colors if name.lower() not in BACKGROUND and name != UNLABELLED]
    odd = [name for name in objects if not name or not name.isprintable()]
    if not rows or odd or len(objects) >= IGNORE:
        raise DataError(
            f"{root} has {len(rows)} pictures and {len(objects)} labels ({len(odd)} empty, unprintable or undeclared); "
            f"up to {IGNORE - 1} labels are possible"
        )
    blank = next((color for name, color in colors.items() if name.lower() in BACKGROUND and color), None)
    ground = ["background"] if has_background else []
    ids = {name: IGNORE if name == UNLABELLED else 0 for name in colors}
    ids |= {name: i for i, name in enumerate(objects, len(ground))}
    given = [*(blank for _ in ground), *(colors[name] for name in objects)]
    bare = () if ground else (NOWHERE,)
    twice = [image for image, count in Counter(row[0] for row in rows).items() if count > 1]
    if twice:
        raise DataError(f"{root} has labels for {twice[0]} in more than one place")
    pairs: dict[str, tuple[Pair, str]] = {}
    for image, mask, shapes, split, at in rows:
        relative = image.relative_to(base if image.is_relative_to(base) else root)
        name = relative.with_suffix("").as_posix()
        name = relative.as_posix() if name in pairs else name  # another picture differs in its suffix only
        outlines = (*bare, *_objects(shapes, ids)) if mask else None
        pairs[name] = Pair(name, image, mask, outlines=outlines, labelled_at=at if mask else None), split
    folders = split_folders([name for name, (_, split) in pairs.items() if not split], str(base))
    splits: dict[str, list[Pair]] = {}
    for name, (pair, split) in sorted(pairs.items()):
        key = SPLITS.get(split.lower(), split) if split or not folders else folders[name.partition("/")[0]]
        splits.setdefault(key, []).append(pair)
    return Listing(
        root=root,
        layout=layout,
        classes=(*ground, *objects),
        colors=tuple(color or spare for color, spare in zip(given, palette(len(given)), strict=True)),
        splits={key: tuple(found) for key, found in splits.items()},
        ids=identity(len(given)),
        things=tuple(range(len(ground), len(given))),
        faults=tuple(merged(faults)),
    )


def _objects(shapes: list[Shape], ids: Mapping[str, int]) -> tuple[Outline, ...]:
    """Shapes in their order; polygons of one label and group together, where the first of them was."""
    together: dict[tuple[object, ...], list[Shape]] = {}
    for i, shape in enumerate(shapes):
        key = (shape[0], str(shape[1])) if shape[1] is not None and shape[2] else (i,)
        together.setdefault(key, []).append(shape)
    groups = together.values()
    return tuple(Outline(ids[same[0][0]], tuple(s[2] for s in same if s[2]), same[0][3]) for same in groups)


def _library(module: str) -> Any:
    """A module of datumaro or of what it needs."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(f"reading XML exports needs datumaro ({error}): {install('formats')}") from None


@contextmanager
def _border(path: Path) -> Iterator[None]:
    """Whatever goes wrong with the content of ``path``, here or in datumaro, as a `DataError`."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # datumaro raises whatever its parsing runs into
        raise DataError(printable(f"{path} is no sound export ({type(error).__name__}: {str(error)[:200]})")) from None


def _is_file(path: Path) -> bool:
    """Whether ``path`` is a file; names too long for the file system are none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _sizes(image: Path, width: object, height: object) -> tuple[Size | None, Size | None]:
    """(width, height) of the picture, and what the file with labels says of it instead.

    The first is None where the picture cannot be read or is not as large: its shapes are not to be read either, and
    the check names it. The second is None where the two agree or nothing is said.
    """
    try:
        size = picture_size(image)
    except UNREADABLE:
        return None, None
    stated = size if None in (width, height) else (int(float(str(width))), int(float(str(height))))
    return (size, None) if stated == size else (None, stated)


def _lost(kind: object, where: Path) -> Finding:
    """W127: shapes that are no areas, or of a kind that is not read."""
    why = "Their pixels count as background."
    what = f"shapes of the kind {str(kind)[:40]!r} are left out"
    return Finding("W127", what, (str(where),), why, "Draw them as polygons or with the brush.")


def _twice(image: Path) -> Finding:
    """W128: several annotations of one picture."""
    why = "Only the ground truth, or else the last, is used."
    return Finding("W128", "tasks are annotated more than once", (str(image),), why, "Mark one as ground truth.")


def _polygon(points: Iterable[Iterable[Any]], scale: tuple[float, float] = (1, 1)) -> tuple[float, ...]:
    """x0, y0, x1, y1, … in pixels; raises ValueError where a point is not finite or far outside."""
    flat = tuple(float(v) * s for point in points for v, s in zip(point, scale, strict=True))
    if len(flat) < 6 or not all(abs(v) <= FARTHEST for v in flat):
        raise ValueError(f"a polygon of {len(flat) // 2} points, or one with a point far outside the picture")
    return flat


def run_lengths(mask: Array) -> tuple[int, ...]:
    """Run lengths down the columns of a mask (H, W)."""
    flat = np.asarray(mask, bool).T.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths = np.diff(np.concatenate([[0], edges, [flat.size]]))
    return (*([0] if flat[0] else []), *lengths.tolist())


def _elements(path: Path) -> Iterator[Any]:
    """Elements of an XML file as they end; refuses a DOCTYPE, and so every entity, before datumaro sees the file."""
    depth = 0
    for event, element in _library("defusedxml.ElementTree").iterparse(path, ("start", "end"), forbid_dtd=True):
        depth += 1 if event == "start" else -1
        if depth > DEEPEST:
            raise DataError(f"{path} nests elements more than {DEEPEST} deep")
        if event == "end":
            yield element


class Picture(NamedTuple):
    """What CVAT's file says of a picture; ``size`` and ``labelled_at`` as of `_sizes`."""

    subset: str
    is_annotated: bool
    size: Size | None
    labelled_at: Size | None


def _screen_cvat(path: Path, faults: list[Finding]) -> tuple[dict[str, Color | None], dict[Path, Picture]]:
    """Colours of the labels, and the pictures."""
    colors: dict[str, Color | None] = {}
    pictures: dict[Path, Picture] = {}
    missing: list[str] = []
    for element in _elements(path):
        if element.tag == "track":
            raise DataError(f"{path} is an export of the kind 'CVAT for video'; export as 'CVAT for images 1.1'")
        if element.tag == "label" and element.findtext("type") not in NOT_AREAS:
            code = re.fullmatch("#([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})", element.findtext("color") or "")
            red, green, blue = (int(part, 16) for part in code.groups()) if code else (0, 0, 0)
            colors[element.findtext("name") or ""] = (red, green, blue) if code else None
        if element.tag != "image":
            continue
        name, subset = check_path(element.get("name"), str(path)), element.get("subset", "")
        folder = path.parent / "images"
        inside = folder / check_path(subset, str(path)) / name if subset else folder / name
        image = folder / name if _is_file(folder / name) else inside
        if not _is_file(image):
            missing.append(name)
        size, at = (None, None) if missing else _sizes(image, element.get("width"), element.get("height"))
        for shape in element:
            if shape.tag not in ("polygon", "box", "mask", "tag"):
                faults.append(_lost(shape.tag, image))
            if shape.tag == "mask" and size:
                _screen_mask(shape, size)
        if image in pictures:
            raise DataError(f"{path} lists the picture {image} twice")
        pictures[image] = Picture(subset, len(element) > 0, size, at)
        element.clear()
    if missing:
        raise DataError(
            f"{path} names {len(missing)} pictures that are not in {path.parent / 'images'}, such as {missing[0]}; "
            "export again with 'Save images'"
        )
    return colors, pictures


def _screen_mask(shape: Any, size: Size) -> None:
    """Raises ValueError where a mask of CVAT does not lie in its picture, or its run lengths do not fill it."""
    left, top, width, height = (int(shape.get(key)) for key in ("left", "top", "width", "height"))
    runs = [int(run) for run in shape.get("rle").split(",")]
    inside = 0 <= left < left + width <= size[0] and 0 <= top < top + height <= size[1]
    if not inside or min(runs) < 0 or sum(runs) != width * height:
        raise ValueError(f"a mask of {width}x{height} at {left},{top} of {sum(runs)} pixels in a picture of {size}")


def _items(extractor: Any) -> list[tuple[Path, list[tuple[str, Any]]]]:
    """Pictures that datumaro found, with (label, annotation) of each."""
    names = [name for kind, found in extractor.categories().items() if kind.name == "label" for name in found]
    return [
        (Path(item.media.path), [("" if a.label is None else names[a.label].name.strip(), a) for a in item.annotations])
        for item in extractor
    ]


def _areas(found: list[tuple[str, Any]], size: Size | None) -> list[Shape]:
    """Areas among the annotations of a picture, from the lowest up; the group 0 of CVAT is none."""
    shapes: list[Shape] = []
    areas = [(label, a) for label, a in found if type(a).__name__ in ("Polygon", "Bbox", "RotatedBbox", "Mask")]
    for label, area in sorted(areas, key=lambda pair: pair[1].z_order) if size else ():
        if type(area).__name__ == "Mask":
            shapes.append((label, area.group or None, (), run_lengths(area.image)))
        else:
            flat = np.asarray(area.as_polygon(), float).reshape(-1, 2).tolist()
            shapes.append((label, area.group or None, _polygon(flat), ()))
    return shapes


def _labelled_picture(path: Path, named: Any) -> Path:
    """The picture of a file of the LabelMe program: the one it names, else the one beside it with its own name.

    Raises:
        DataError: neither is there, or there is only one that must not be opened.
    """
    beside = next((f for suffix in IMAGE_SUFFIXES if _is_file(f := path.with_suffix(suffix))), None)
    try:
        found = path.parent / check_path(named, str(path))
    except DataError:  # where the labels were drawn, the picture lay elsewhere
        if beside is None:
            raise
        return beside
    if _is_file(found):
        return found
    if beside is None:
        raise DataError(f"{path} names the picture {found}, which is not there; put it beside {path.name}")
    return beside


def _labelme(shape: Any, size: Size, path: Path, faults: list[Finding]) -> Shape | None:
    """A shape of the LabelMe program; None where it is no area."""
    kind, points = shape.get("shape_type") or "polygon", shape["points"]
    label, group = shape["label"].strip(), shape.get("group_id")
    if kind == "mask":
        with Image.open(io.BytesIO(base64.b64decode(shape["mask"])), formats=("PNG",)) as stamp:
            (left, top), (width, height) = map(round, points[0]), stamp.size
            if not (0 <= left < left + width <= size[0] and 0 <= top < top + height <= size[1]):
                raise ValueError(f"a mask of {width}x{height} at {left},{top} in a picture of {size}")
            canvas = np.zeros((size[1], size[0]), bool)
            canvas[top : top + height, left : left + width] = np.asarray(stamp.convert("L")) > 0
        return label, None, (), run_lengths(canvas)
    if kind == "rectangle":
        (x0, y0), (x1, y1) = points
        points = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    elif kind == "circle":
        (x, y), edge = points
        radius, turns = math.dist((x, y), edge), (math.tau * i / 64 for i in range(64))
        points = [(x + radius * math.cos(turn), y + radius * math.sin(turn)) for turn in turns]
    elif kind != "polygon" or len(points) < CORNERS:
        faults.append(_lost(UNFINISHED if kind == "polygon" else str(kind), path))
        return None
    return label, group, _polygon(points), ()


def _uploaded(root: Path, data: Mapping[str, Any], path: Path) -> Path:
    """The picture of a task: the end of its address below ``images/``, without the number that an upload gets."""
    values = [value for value in data.values() if isinstance(value, str)]
    parts = [urlsplit(f"/{value}" if value[1:2] == ":" else value) for value in values]  # C: is a drive, no scheme
    names = [unquote(parse_qs(part.query).get("d", [part.path])[0]).lstrip("/") for part in parts]
    names = [name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES]
    if len(names) != 1 or len(names[0]) > 4096:
        raise DataError(f"{path} has a task with {len(names)} pictures instead of one")
    words = check_path(names[0], str(path)).split("/")
    ends = ["/".join(words[i:]) for i in range(len(words))] + [re.sub("^[0-9a-f]{8}-", "", words[-1])]
    found = next((f / end for end in ends for f in (root / "images", root) if _is_file(f / end)), None)
    if found is None:
        raise DataError(f"{path} names the picture {names[0]}, which is not there; put it into {root / 'images'}")
    return found


def _labelstudio(result: Mapping[str, Any], size: Size, image: Path, faults: list[Finding]) -> Shape | None:
    """A region of Label Studio; None for what is no area, or not labelled."""
    kind, value = str(result["type"]), result.get("value")
    if not kind.endswith("labels") or not isinstance(value, dict):  # a relation, say
        return None
    labels, is_area = value.get(kind), kind in ("polygonlabels", "brushlabels", "labels")
    if not is_area or result.get("image_rotation") or not labels or not {"points", "rle"} & set(value):
        faults.append(_lost(f"{kind}, turned or without a label" if is_area else kind, image))
        return None
    if isinstance(labels, str):
        raise TypeError(f"labels are {labels[:40]!r}, not a list")
    if "rle" in value:
        return labels[0].strip(), None, (), run_lengths(_brush(value["rle"], size))
    if len(value["points"]) < CORNERS:
        faults.append(_lost(UNFINISHED, image))
        return None
    return labels[0].strip(), None, _polygon(value["points"], (size[0] / 100, size[1] / 100)), ()


def _brush(code: list[int], size: Size) -> Array:
    """Strokes (H, W) of Label Studio's run lengths: the alpha of RGBA values, packed as bits.

    A header gives the number of values (32 bits), the bits of a value (5, less one) and four widths of lengths (4 each,
    less one). Chunks follow: whether a value is repeated (1), which width (2), the length less one, value or values.
    """
    bits = "".join(f"{byte:08b}" for byte in bytes([*code]))
    place = 0

    def take(count: int) -> int:
        nonlocal place
        place += count
        if place > len(bits):
            raise ValueError("a brush stroke is cut short")
        return int(bits[place - count : place], 2)

    total, depth = take(32), take(5) + 1
    widths = [take(4) + 1 for _ in range(4)]
    if total != 4 * size[0] * size[1]:
        raise ValueError(f"a brush stroke has {total} values, its picture {size} needs {4 * size[0] * size[1]}")
    marked = np.zeros(total, bool)
    start = 0
    while start < total:
        is_repeated = take(1)
        end = start + take(widths[take(2)]) + 1
        marked[start:end] = (
            take(depth) > 0 if is_repeated else [take(depth) > 0 for _ in range(min(end, total) - start)]
        )
        start = end
    return marked.reshape(size[1], size[0], 4)[..., 3]
