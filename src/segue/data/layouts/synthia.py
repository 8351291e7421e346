"""SYNTHIA-RAND-CITYSCAPES: ``RGB/*.png`` and ``GT/LABELS/*.png``, the 16 classes that it shares with Cityscapes.

Ros et al., *The SYNTHIA Dataset: A Large Collection of Synthetic Images for Semantic Segmentation of Urban Scenes*,
CVPR 2016. Labels are PNGs of three 16-bit channels: class id, instance id, nothing. Pillow keeps the upper 8 bits,
all 0, so `segue.data.decoder.class_ids` reads the lower 8. Parking, road works, terrain, trucks, trains and lane
markings are ignored, as is usual.
"""

from dataclasses import replace
from pathlib import Path

from segue.data.finding import Finding
from segue.data.layouts import cityscapes
from segue.data.listing import Listing, images_in, pair_up
from segue.data.sample import IGNORE

LABEL_IDS = {  # of SYNTHIA by name in Cityscapes, in the order of Cityscapes
    "road": 3, "sidewalk": 4, "building": 2, "wall": 21, "fence": 5, "pole": 7, "traffic light": 15, "traffic sign": 9,
    "vegetation": 6, "sky": 1, "person": 10, "rider": 17, "car": 8, "bus": 19, "motorcycle": 12, "bicycle": 11,
}  # fmt: skip
CLASSES = tuple(LABEL_IDS)
COLORS = tuple(cityscapes.COLORS[cityscapes.CLASSES.index(name)] for name in CLASSES)
COUNTABLE = ("person", "rider", "car", "bus", "motorcycle", "bicycle")


class Synthia:
    """``RGB/`` and ``GT/LABELS/``."""

    @staticmethod
    def matches(root: Path) -> bool:
        """Whether both folders are there."""
        return (root / "RGB").is_dir() and (root / "GT" / "LABELS").is_dir()

    @staticmethod
    def read(root: Path) -> Listing:
        """The set in ``root``; all of it is the split ``train``."""
        faults: list[Finding] = []
        pairs, stray = pair_up(images_in(root / "RGB", faults), images_in(root / "GT" / "LABELS", faults))
        return Listing(
            root=root,
            layout="synthia",
            classes=CLASSES,
            colors=COLORS,
            splits={"train": tuple(replace(pair, is_wide=True) for pair in pairs)},
            ids={**dict.fromkeys(range(23), IGNORE), **{raw: i for i, raw in enumerate(LABEL_IDS.values())}},
            stray=stray,
            things=tuple(CLASSES.index(name) for name in COUNTABLE),
            faults=tuple(faults),
        )
