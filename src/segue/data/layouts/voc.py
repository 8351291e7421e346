"""PASCAL VOC: ``JPEGImages/``, ``SegmentationClass/`` and ``ImageSets/Segmentation/*.txt``, 21 classes.

Everingham et al., *The PASCAL Visual Object Classes Challenge*, IJCV 2010. Labels are palette PNGs; 255 is the border
of objects. Masks that ``SegmentationClass/`` lacks are those of ``SegmentationClassAug/``, if there. A line of a list
is a name, which may hold spaces, a name and more, or an image and a mask, as in
``/JPEGImages/NAME.jpg /SegmentationClassAug/NAME.png``, whose folder then comes first.
A class list in the root, such as CVAT's ``labelmap.txt``, takes the place of the 21 classes.
"""

import os
import re
from pathlib import Path

from segue.data.archive import check_path
from segue.data.layouts.folder import relisted
from segue.data.listing import Listing, Pair, identity, lines_of
from segue.data.sample import Color
from segue.errors import DataError

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
MASK_FOLDERS = ("SegmentationClass", "SegmentationClassAug")  # the finer first: published scores are of those


def voc_color(index: int) -> Color:
    """The colour of the VOC palette: bits of the index dealt to red, green and blue from the highest bit down."""
    red = green = blue = 0
    for bit in range(8):
        red |= ((index >> (3 * bit)) & 1) << (7 - bit)
        green |= ((index >> (3 * bit + 1)) & 1) << (7 - bit)
        blue |= ((index >> (3 * bit + 2)) & 1) << (7 - bit)
    return red, green, blue


class Voc:
    """A ``VOC2012`` folder, or a ``VOCdevkit`` with one year in it."""

    @staticmethod
    def matches(root: Path) -> bool:
        """Whether the lists of the segmentation task are there."""
        return bool(_homes(root))

    @staticmethod
    def read(root: Path) -> Listing:
        """The set in ``root``.

        Raises:
            DataError: no list, lists of several years, or a list names an image that is not there.
        """
        homes = _homes(root)
        if not homes:
            raise DataError(f"{root} has no ImageSets/Segmentation: it is no VOC folder")
        home, splits = homes[0], {}
        if home != root and len(homes) > 1:
            years = " and ".join(str(other.relative_to(root)) for other in homes)
            raise DataError(f"{root} holds several sets of VOC, {years}; name one: {homes[-1]}")
        for path in sorted((home / "ImageSets" / "Segmentation").glob("*.txt")):
            splits[path.stem] = tuple(_pair(home, line, path) for line in lines_of(path))
        listing = Listing(
            root=root,
            layout="voc",
            classes=CLASSES,
            colors=tuple(voc_color(i) for i in range(len(CLASSES))),
            splits=splits,
            ids=identity(len(CLASSES)),
            things=tuple(range(1, len(CLASSES))),
        )
        return relisted(listing)


def _homes(root: Path) -> list[Path]:
    """The folders with the lists: ``root`` itself, or the years below it."""
    years = [*sorted(root.glob("VOC20*")), *sorted(root.glob("VOCdevkit/VOC20*"))]
    return [home for home in (root, *years) if (home / "ImageSets" / "Segmentation").is_dir()]


def _name(line: str, home: Path) -> str:
    """The name of the image that a line is about: of the path it begins with, or all of it, or else its first word."""
    path = re.match(r"/?JPEGImages/(.+?)\.jpg(?:\s|$)", line)
    if path:
        return path[1]
    first = line.split(maxsplit=1)[0]
    return line if first != line and os.path.isfile(home / "JPEGImages" / f"{line}.jpg") else first


def _pair(home: Path, line: str, origin: Path) -> Pair:
    """The image of a line and its mask, in the folder that the line names or the first; the test split has none."""
    name = check_path(_name(line, home), str(origin))
    image = home / "JPEGImages" / f"{name}.jpg"
    if not image.is_file():
        raise DataError(f"{origin} names {name!r}, but {image} does not exist")
    folders = sorted(MASK_FOLDERS, key=lambda folder: f"/{folder}/" not in line)
    masks = (home / folder / f"{name}.png" for folder in folders)
    return Pair(name, image, next((mask for mask in masks if mask.is_file()), None))
