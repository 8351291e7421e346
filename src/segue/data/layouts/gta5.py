"""GTA5 (Playing for Data): ``images/NNNNN.png`` and ``labels/NNNNN.png``, the 19 classes of Cityscapes.

Richter et al., *Playing for Data: Ground Truth from Computer Games*, ECCV 2016. Labels are palette PNGs of Cityscapes'
label ids 0 to 34, mapped here to the 19 training ids. ``split.mat`` is not read: all images are the split ``train``.
"""

import re
from pathlib import Path

from segue.data.finding import Finding
from segue.data.layouts.cityscapes import CLASSES, COLORS, LABEL_IDS
from segue.data.layouts.folder import has_class_list
from segue.data.listing import Listing, images_in, pair_up
from segue.data.sample import IGNORE


class Gta5:
    """Two folders of PNGs with names of five digits, without a class list."""

    @staticmethod
    def matches(root: Path) -> bool:
        """Whether all of the labels are named by five digits and no class list says what they hold."""
        if not (root / "images").is_dir() or has_class_list(root):
            return False
        names = [path.name for path in (root / "labels").glob("[!.]*")]
        return bool(names) and all(re.fullmatch(r"\d{5}\.png", name, re.ASCII) for name in names)

    @staticmethod
    def read(root: Path) -> Listing:
        """The set in ``root``."""
        faults: list[Finding] = []
        pairs, stray = pair_up(images_in(root / "images", faults), images_in(root / "labels", faults))
        return Listing(
            root=root,
            layout="gta5",
            classes=CLASSES,
            colors=COLORS,
            splits={"train": pairs},
            ids={**dict.fromkeys(range(35), IGNORE), **{raw: i for i, raw in enumerate(LABEL_IDS)}},
            stray=stray,
            things=tuple(range(11, 19)),
            faults=tuple(faults),
        )
