"""COCO instances: a JSON of objects as polygons or run lengths; class 0 is the background that they leave free.

Lin et al., *Microsoft COCO: Common Objects in Context*, ECCV 2014.

    annotations/instances_{train,val}2017.json   {train,val}2017/*.jpg      COCO
    annotations/NAME.json                        images/*.jpg               exports of many tools; NAME is the split
    {train,valid,test}/_annotations.coco.json    beside its images          Roboflow

Captions, keypoints and panoptic files are passed over, and so is a split whose images are not there. Larger objects are
drawn first, so that they cover no smaller ones; crowds are ignored. Images that a JSON lists without an object are all
background; others have no mask.
"""

from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from segue.data.layouts.annotations import (
    Categories,
    Entry,
    Found,
    inside,
    is_file,
    is_number,
    outline_area,
    outline_of,
    packed_shape,
)
from segue.data.layouts.folder import has_class_list
from segue.data.listing import Listing, Pair, identity
from segue.data.outlines import Outline
from segue.data.sample import IGNORE
from segue.data.split_names import split_names
from segue.errors import DataError

OTHER_KINDS = ("panoptic_", "captions_", "person_keypoints_", "stuff_", "image_info_")  # of COCO's own files
BACKGROUND = ("background", "_background_", "__background__")
SOME = 100  # images by which the folder of a split is known


class CocoInstances:
    """JSON files in ``annotations/``, or ``_annotations.coco.json`` beside the images."""

    @staticmethod
    def matches(root: Path) -> bool:
        """Whether there is such a JSON, and no class list of the canonical folder."""
        return bool(_sources(root)) and not has_class_list(root)

    @staticmethod
    def read(root: Path) -> Listing:
        """The set in ``root``.

        Raises:
            DataError: an annotation file is unsound, or no split has its images.
        """
        sources = _sources(root)
        contents = {stem: Entry.of(path, packed_shape) for stem, path in sources.items()}
        folders = {s: place for s in sources if (place := _image_folder(root, s, sources[s], contents[s])) is not None}
        if not folders:
            wanted = " and ".join(str(root / stem) for stem in sources) or f"{root}/images"
            raise DataError(f"{root} has none of the images that its annotations name; put them into {wanted}")
        names, found = split_names(folders), dict[str, Found]()
        lists = {stem: Categories.of(contents[stem]) for stem in folders}
        first = next(iter(lists.values()))
        no_class = {*BACKGROUND, *_headings([contents[stem] for stem in folders])}
        for stem, folder in folders.items():
            if (lists[stem].names, lists[stem].positions) != (first.names, first.positions):
                other = sources[next(iter(lists))]
                raise DataError(f"{sources[stem]} and {other} have different categories; make them the same")
            found[names[stem]] = _read(contents[stem], folder, _labels(first, no_class), names[stem])
            if list(folders.values()).count(folder) == 1 and folder != root:
                found[names[stem]].add_bare(folder, names[stem])
        kept = [i for i, name in enumerate(first.names) if name not in no_class]
        classes = ("background", *(first.names[i] for i in kept))
        return Listing(
            root=root,
            layout="coco_instances",
            classes=classes,
            colors=((0, 0, 0), *(first.colors[i] for i in kept)),
            splits={split: one.sorted() for split, one in found.items()},
            ids=identity(len(classes)),
            things=tuple(range(1, len(classes))),
            faults=tuple(fault for one in found.values() for fault in one.findings()),
        )


def _sources(root: Path) -> dict[str, Path]:
    """Annotation files by the name of their split, before a year is cut off."""
    paths = sorted((root / "annotations").glob("*.json"))
    official = [path for path in paths if path.name.startswith("instances_")]
    others = [path for path in paths if not path.name.startswith(OTHER_KINDS)]
    found = {path.stem.removeprefix("instances_"): path for path in official or others}
    beside = {path.parent.name: path for path in sorted(root.glob("*/_annotations.coco.json"))}
    return found or {"val" if name == "valid" else name: path for name, path in beside.items()}


def _image_folder(root: Path, stem: str, source: Path, content: Entry) -> Path | None:
    """Where the images of a split lie: the first folder that holds one of them."""
    names = [entry.text("file_name") for entry in content.entries("images", SOME)]
    candidates = (root / stem, root / "images" / stem, root / "images", source.parent, root)
    return next((f for f in candidates if any(is_file(inside(f, name, source)) for name in names)), None)


def _headings(contents: Sequence[Entry]) -> set[str]:
    """Names of categories that no object has and that others give as ``supercategory``: Roboflow adds one."""
    entries = [entry for content in contents for entry in content.entries("categories")]
    pairs = [(entry.text("name"), entry.values.get("supercategory")) for entry in entries]
    above = [heading for name, heading in pairs if heading != name]
    found = {entry.integer("id"): entry.text("name").strip() for entry in entries if entry.text("name") in above}
    if found:
        for entry in (entry for content in contents for entry in content.entries("annotations")):
            found.pop(entry.integer("category_id"), None)
    return set(found.values())


def _labels(categories: Categories, no_class: Collection[str]) -> dict[int, int]:
    """Class ids by category id; a category that is no class is 0."""
    objects = [n for n, place in categories.positions.items() if categories.names[place] not in no_class]
    return {**dict.fromkeys(categories.positions, 0), **{number: i for i, number in enumerate(objects, 1)}}


def _read(content: Entry, folder: Path, labels: dict[int, int], split: str) -> Found:
    """The pairs of one annotation file and what is wrong with it."""
    found, source = Found(), Path(content.where)
    images = content.by_id("images")
    shapes: dict[Any, list[tuple[float, Outline]]] = {key: [] for key in images}
    for entry in content.consumed("annotations"):
        key, category = entry.key("image_id"), entry.integer("category_id")
        if key not in images:
            found.places["image"].append(f"{entry.where} (image_id {key!r})")
            continue
        where = f"{source} (image {images[key].text('file_name')}, annotation {entry.values.get('id')!r:.40}"
        if category not in labels:
            found.places["category"].append(f"{where}, category_id {category})")
        elif not entry.values.get("segmentation"):
            found.places["shape"].append(f"{where}, segmentation)")
        else:
            is_crowd = bool(entry.flag("iscrowd")) and not _is_brushed(entry)
            outline = outline_of(entry, images[key], IGNORE if is_crowd else labels[category], is_crowd)
            shapes[key].append((entry.number("area") or outline_area(outline), outline))
    for key, entry in images.items():
        name = entry.text("file_name")
        path = inside(folder, name, entry.where)
        shown = sorted(shapes[key], key=lambda sized: (not sized[1].is_crowd, -sized[0]))
        if is_file(path):
            stem, outlines = PurePosixPath(name).with_suffix(""), tuple(outline for _, outline in shown)
            at = _labelled_at(entry) if outlines else None
            found.add(Pair(f"{split}/{stem}", path, source, outlines=outlines, labelled_at=at), entry.where)
        else:
            found.places["image"].append(f"{source} (image {name}, file_name)")
    return found


def _is_brushed(entry: Entry) -> bool:
    """Whether an object is what CVAT calls a crowd: all that its brush drew. COCO's own have no ``attributes``."""
    return "attributes" in entry.values and isinstance(entry.values.get("segmentation"), dict)


def _labelled_at(image: Entry) -> tuple[int, int] | None:
    """(width, height) of a picture as its entry gives them; None where it does not."""
    sides: list[Any] = [image.values.get(name) for name in ("width", "height")]
    if not all(is_number(side) and side > 0 for side in sides):
        return None
    return round(sides[0]), round(sides[1])
