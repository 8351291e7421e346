"""Opening a set: which layout it has, and what that layout finds.

A layout is a class with ``matches(root)`` and ``read(root)``, in a file of its own; `LAYOUTS` lists them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from segue.data.fingerprint import fingerprint
from segue.data.layouts.ade20k import Ade20k
from segue.data.layouts.bdd100k import Bdd100k
from segue.data.layouts.camvid import CamVid
from segue.data.layouts.cityscapes import Cityscapes
from segue.data.layouts.coco_instances import CocoInstances
from segue.data.layouts.coco_panoptic import CocoPanoptic
from segue.data.layouts.dsb2018 import Dsb2018
from segue.data.layouts.exports import Cvat, LabelMe, LabelStudio
from segue.data.layouts.folder import CLASS_LISTS, MASK_FOLDERS, Folder, has_class_list
from segue.data.layouts.gta5 import Gta5
from segue.data.layouts.mapillary import Mapillary
from segue.data.layouts.shards import Shards, all_images
from segue.data.layouts.synthia import Synthia
from segue.data.layouts.voc import Voc
from segue.data.listing import Listing, Pair, images_in
from segue.data.sample import IMAGE_SUFFIXES
from segue.data.unfinished import refuse_unfinished
from segue.errors import DataError


class Layout(Protocol):
    """How one kind of data set lies on disk."""

    @staticmethod
    def matches(root: Path) -> bool:
        """Whether ``root`` looks like this layout; looks at names only."""

    @staticmethod
    def read(root: Path) -> Listing:
        """The set in ``root``."""


# The most particular first: the first that matches is taken.
LAYOUTS: dict[str, type[Layout]] = {
    "shards": Shards,
    "cityscapes": Cityscapes,
    "voc": Voc,
    "camvid": CamVid,
    "ade20k": Ade20k,
    "mapillary": Mapillary,
    "bdd100k": Bdd100k,
    "synthia": Synthia,
    "gta5": Gta5,
    "dsb2018": Dsb2018,
    "coco_panoptic": CocoPanoptic,
    "cvat": Cvat,
    "labelme": LabelMe,
    "labelstudio": LabelStudio,
    "coco_instances": CocoInstances,
    "folder": Folder,
}


DIGESTED = 16  # images: enough to tell sets apart whose files have the same names
FIXED = ("cityscapes", "mapillary", "bdd100k", "synthia", "dsb2018")  # sets whose files cannot hold other classes
OUTLINES = ("cvat", "labelme", "labelstudio", "coco_instances")  # in annotation files; none of their masks is a picture


def split_address(address: str) -> tuple[Path, str | None]:
    """``DIR:split`` as (DIR, split); the split is None where none is named."""
    folder, colon, split = address.rpartition(":")
    if colon and folder and not Path(address).exists() and "/" not in split:
        return Path(folder), split
    return Path(address), None


def validation_at(data: str, layout: str, mapping: str, split: str, pairs: Sequence[Pair]) -> dict[str, str]:
    """What a run notes of the set that it validates on: for `address_of`, where relative paths hold from where it
    began; and what `digest_of` says, so that the set is known again where it was moved or copied to."""
    at = {"data": data, "layout": layout, "map": mapping, "split": split, "from": str(Path.cwd())}
    return {**at, "digest": digest_of(pairs), "masks": digest_of(pairs, masks=True)}


def digest_of(pairs: Sequence[Pair], *, masks: bool = False) -> str:
    """A sha256 of names and bytes of the first `DIGESTED` images, or of their masks; empty where any is no file."""
    files = [(pair.name, pair.mask if masks else pair.image) for pair in pairs[:DIGESTED]]
    if not all(path is not None and path.is_file() for _, path in files):
        return ""
    return fingerprint((name, (path,)) for name, path in files)


def address_of(at: Mapping[str, Any]) -> str:
    """Where the set of `validation_at` lies: as it was named, from where it was named or from here; empty for none."""
    data = str(at.get("data", ""))
    there = str(Path(str(at.get("from", "")), data)) if data else ""
    return there if there and split_address(there)[0].exists() else data


def open_listing(address: str, layout: str = "auto") -> Listing:
    """The data set in a folder; ``DIR:split`` keeps that split alone.

    Raises:
        DataError: the folder is missing, or no layout fits what is in it.
    """
    root, split = split_address(address)
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise DataError(f"{root} {what}; name a folder with images/ and labels/")
    refuse_unfinished(root)
    known = LAYOUTS
    if layout != "auto" and layout not in known:
        raise DataError(f"unknown layout {layout!r}; known are {', '.join(known)}")
    name = layout if layout != "auto" else layout_of(root)
    if layout == "auto":
        _refuse_second_list(root, name)
    if name is None:
        inside = ", ".join(sorted(p.name for p in root.iterdir())[:6]) or "nothing"
        raise DataError(
            f"{root} holds no data set that Segue knows (in it: {inside}); "
            "expected images/ and labels/ with the same file names, and a classes.txt"
        )
    listing = known[name].read(root)
    return replace(listing, splits={split: listing.split(split)}, unnamed=()) if split else listing


def _refuse_second_list(root: Path, layout: str | None) -> None:
    """Refuses a class list in the folder of a set whose classes are known without one: nobody can say which hold."""
    found = next((name for name in CLASS_LISTS if (root / name).exists()), None)
    if layout in FIXED and found is not None:
        raise DataError(
            f"{root} lies like a set of the layout {layout}, which has its own classes, and holds {found}; say "
            f"--layout {layout} to read it with those, or take {found} away"
        )


def layout_of(root: Path) -> str | None:
    """The name of the layout that fits what is in a folder; None where none does."""
    return next((name for name, layout in LAYOUTS.items() if layout.matches(root)), None)


def is_plain(root: Path) -> bool:
    """Whether nothing in a folder speaks for a labelled set, a folder called ``images`` aside."""
    if any((root / name).is_dir() for name in (*MASK_FOLDERS, "instances", "splits")) or has_class_list(root):
        return False
    return layout_of(root) in (None, "folder")


def open_images(address: str) -> tuple[Pair, ...]:
    """An unlabelled set: every image of a plain folder, or of a data set's split; masks are left alone.

    Of a labelled set they are those in ``images/`` where there is such a folder; a plain folder has others beside it.

    Raises:
        DataError: the folder is missing or holds no image.
    """
    root, split = split_address(address)
    if not root.is_dir():
        raise DataError(f"{root} does not exist or is no folder; name a folder of images")
    refuse_unfinished(root)
    if split is not None:
        return tuple(Pair(pair.name, pair.image) for pair in open_listing(address).split(split))
    if Shards.matches(root):
        return all_images(root)
    folder = root / "images" if (root / "images").is_dir() else root
    if folder == root:
        is_mask = _mask_test(root)
        found = {name: path for name, path in images_in(root).items() if not is_mask(path)}
    else:
        every = images_in(root) if is_plain(root) else {}
        are_beside = any(not path.is_relative_to(folder) for path in every.values())
        found = every if are_beside else images_in(folder)
    if not found:
        raise DataError(f"{folder} holds no image ({', '.join(IMAGE_SUFFIXES)})")
    return tuple(Pair(name, path) for name, path in found.items())


def _mask_test(root: Path) -> Callable[[Path], bool]:
    """Tells masks from images below ``root``, if it is a data set whose masks are pictures too."""
    name = layout_of(root)
    if name is None or name in OUTLINES:
        return lambda path: False
    pairs = [pair for split in LAYOUTS[name].read(root).splits.values() for pair in split]
    images = {pair.image for pair in pairs}
    folders = {path.parent for path in images} - {pair.mask.parent for pair in pairs if pair.mask}
    return lambda path: path not in images and path.parent not in folders  # images that no list names count too
