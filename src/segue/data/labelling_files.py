"""What labelling tools open: LabelMe's file of a picture, CVAT's task of many; with shapes, or to be labelled.

`segue.data.layouts.exports` reads what they make of it.
"""

import json
from collections.abc import Iterable, Sequence
from typing import IO, Any
from xml.etree import ElementTree

from segue.data.finding import printable

BACKGROUND, UNLABELLED = ("background", "_background_"), "__ignore__"

Size = tuple[int, int]  # width, height
Polygon = tuple[str, list[list[int]]]  # label; points of x and y


def offered_labels(classes: Sequence[str]) -> list[str]:
    """``labels.txt`` for LabelMe: ``classes``, or background where nobody knows them yet, behind `UNLABELLED`."""
    return [UNLABELLED, *(classes or BACKGROUND[-1:])]


def leaves_free(offered: Iterable[str]) -> bool:
    """Whether a pixel without a shape is not labelled; else it is background. A set without a background stays one."""
    names = {name.lower() for name in offered}
    return UNLABELLED in names and not names & set(BACKGROUND)


def labelme_file(image: str, size: Size, polygons: Iterable[Polygon] = ()) -> bytes:
    """LabelMe's file for a picture called ``image`` that lies beside it."""
    shapes: list[dict[str, Any]] = [
        {
            "label": label, "points": points, "group_id": None, "description": "", "shape_type": "polygon", "flags": {},
            "mask": None,
        }
        for label, points in polygons
    ]  # fmt: skip
    content: dict[str, Any] = {
        "version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": printable(image), "imageData": None,
        "imageHeight": size[1], "imageWidth": size[0],
    }  # fmt: skip
    return json.dumps(content).encode()


def write_cvat(file: IO[str], classes: Sequence[str], images: Iterable[tuple[str, Size, Iterable[Polygon]]]) -> None:
    """CVAT for images 1.1: the labels of a task, and its images one after the other."""
    file.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n')
    task = ElementTree.Element("task")
    ElementTree.SubElement(task, "name").text = "segue"
    labels = ElementTree.SubElement(task, "labels")
    for name in classes:
        ElementTree.SubElement(ElementTree.SubElement(labels, "label"), "name").text = printable(name)
    file.write(f"<meta>{ElementTree.tostring(task, encoding='unicode')}</meta>\n")
    for i, (name, size, polygons) in enumerate(images):
        width, height = map(str, size)
        image = ElementTree.Element("image", id=str(i), name=printable(name), width=width, height=height)
        for label, points in polygons:
            drawn = ";".join(f"{x},{y}" for x, y in points)
            ElementTree.SubElement(
                image, "polygon", label=printable(label), points=drawn, source="auto", occluded="0", z_order="0"
            )
        file.write(ElementTree.tostring(image, encoding="unicode") + "\n")
    file.write("</annotations>\n")
