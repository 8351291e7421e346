"""COCO panoptic: a JSON of segments and PNGs of their ids, 133 classes or whatever its categories are.

Lin et al., *Microsoft COCO: Common Objects in Context*, ECCV 2014; Kirillov et al., *Panoptic Segmentation*, CVPR 2019.

    annotations/panoptic_{train,val}2017.json   annotations/panoptic_{train,val}2017/*.png   {train,val}2017/*.jpg
    panoptic_examples.json   panoptic_examples/*.png   input_images/*.jpg   panoptic_coco_categories.json

The second is panopticapi's sample. In the first, PNGs may lie at the root, too, and images in ``images/``. Classes are
in the order of category ids. A split whose images are not there is passed over.
"""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from segue.data.layouts.annotations import Categories, Entry, Found, inside, is_file, load_json
from segue.data.listing import Listing, Pair, identity, images_in
from segue.data.outlines import Segment
from segue.data.sample import IGNORE
from segue.data.split_names import split_names
from segue.errors import DataError

CATEGORIES = "panoptic_coco_categories.json"  # names and official colours, beside the annotations or at the root


class CocoPanoptic:
    """A JSON named ``panoptic_*.json`` and its folders."""

    @staticmethod
    def matches(root: Path) -> bool:
        """Whether there is a ``panoptic_*.json`` at the root or in ``annotations/``."""
        return bool(_sources(root))

    @staticmethod
    def read(root: Path) -> Listing:
        """The set in ``root``.

        Raises:
            DataError: an annotation file is unsound, its PNGs are not unpacked, or no split has its images.
        """
        sources = _sources(root)
        names = split_names(sources)
        folders = {stem: folder for stem in sources if (folder := _image_folder(root, stem)) is not None}
        if not folders:
            wanted = " and ".join(str(root / stem) for stem in sources) or f"{root}/train2017"
            raise DataError(f"{root} has no images that its annotations belong to; put them into {wanted}")
        contents = {stem: Entry.of(sources[stem]) for stem in folders}
        lists = {stem: _categories(content, (sources[stem].parent, root)) for stem, content in contents.items()}
        first = next(iter(lists.values()))
        found: dict[str, Found] = {}
        for stem, content in contents.items():
            source, other = sources[stem], lists[stem]
            if (other.names, other.positions) != (first.names, first.positions):
                raise DataError(
                    f"{source} and {sources[next(iter(lists))]} have different categories; make them the same"
                )
            pngs = next((p / source.stem for p in (source.parent, root) if (p / source.stem).is_dir()), None)
            if pngs is None:
                raise DataError(f"{source.with_suffix('')} does not exist; unpack the PNGs of {source.name} there")
            found[names[stem]] = read_segments(content, folders[stem], pngs, first.positions, names[stem])
            found[names[stem]].places["isthing"] = [f"{source} (category {name}, isthing)" for name in other.vague]
            if list(folders.values()).count(folders[stem]) == 1:
                found[names[stem]].add_bare(folders[stem], names[stem])
        return Listing(
            root=root,
            layout="coco_panoptic",
            classes=first.names,
            colors=first.colors,
            splits={split: one.sorted() for split, one in found.items()},
            ids=identity(len(first.names)),
            stray=tuple(path for one in found.values() for path in one.stray),
            things=first.things,
            faults=tuple(fault for one in found.values() for fault in one.findings()),
        )


def _sources(root: Path) -> dict[str, Path]:
    """Annotation files by what follows ``panoptic_`` in their names."""
    paths = [*sorted((root / "annotations").glob("panoptic_*.json")), *sorted(root.glob("panoptic_*.json"))]
    return {path.stem.removeprefix("panoptic_"): path for path in paths if path.name != CATEGORIES}


def _image_folder(root: Path, stem: str) -> Path | None:
    """Where the images of a split lie."""
    candidates = (root / stem, root / "images" / stem, root / "input_images", root / "images")
    return next((folder for folder in candidates if folder.is_dir()), None)


def _categories(content: Entry, folders: tuple[Path, ...]) -> Categories:
    """The categories of an annotation file; the separate list gives what it leaves out."""
    path = next((folder / CATEGORIES for folder in folders if is_file(folder / CATEGORIES)), None)
    return Categories.of(content, Entry(str(path), {"list": load_json(path)}).entries("list") if path else ())


def read_segments(content: Entry, images: Path, pngs: Path, positions: Mapping[int, int], split: str) -> Found:
    """The pairs of one annotation file and what is wrong with it.

    Args:
        content: the file.
        images: folder of its images.
        pngs: folder of its PNGs.
        positions: class ids by category id.
        split: what the names of its pairs begin with.
    """
    found, used = Found(), set[Path]()
    files = {key: entry.text("file_name") for key, entry in content.by_id("images").items()}
    for entry in content.entries("annotations"):
        key, png = entry.key("image_id"), inside(pngs, entry.text("file_name"), entry.where)
        name = files.get(key, f"of image_id {key!r}")
        image = inside(images, name, entry.where) if key in files else None
        where = f"{content.where} (image {name}"
        used.add(png)
        segments = _segments(entry, where, positions, found)
        if image is None or not is_file(image):
            found.places["image"].append(f"{where}, {'image_id' if image is None else 'file_name'})")
        elif not is_file(png):
            found.places["png"].append(f"{where}, file_name {entry.text('file_name')})")
            found.seen.add(image)
        else:
            found.add(Pair(f"{split}/{PurePosixPath(name).with_suffix('')}", image, png, segments), entry.where)
    found.stray = tuple(path for path in images_in(pngs, found.faults).values() if path not in used)
    return found


def _segments(entry: Entry, where: str, positions: Mapping[int, int], found: Found) -> tuple[Segment, ...]:
    """The segments of one image; of two with one id the first."""
    segments: dict[int, Segment] = {}
    for info in entry.entries("segments_info"):
        number, category, area = info.integer("id"), info.integer("category_id"), info.number("area")
        if category not in positions:
            found.places["category"].append(f"{where}, segment {number}, category_id {category})")
        if number in segments:
            found.places["twice"].append(f"{where}, segment {number}, id)")
            continue
        label, is_crowd = positions.get(category, IGNORE), bool(info.flag("iscrowd"))
        segments[number] = Segment(number, label, is_crowd, None if area is None else round(area))
    return tuple(segments.values())
