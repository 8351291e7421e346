"""CamVid as the SegNet authors publish it: folders ``train/`` and ``trainannot/``, and so on, 480 x 360, 11 classes.

Brostow, Fauqueur, Cipolla, *Semantic object classes in video*, Pattern Recognition Letters 2009. Labels are 8-bit ids;
11 is unlabelled. A class list in the root takes the place of the 11 classes. Where two splits use a name, the pairs are
called ``SPLIT/NAME``.
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path

from segue.data.layouts.folder import relisted
from segue.data.listing import Listing, Pair, images_in, pair_up
from segue.data.sample import IGNORE

CLASSES = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
COLORS = (
    (128, 128, 128),
    (128, 0, 0),
    (192, 192, 128),
    (128, 64, 128),
    (60, 40, 222),
    (128, 128, 0),
    (192, 128, 128),
    (64, 64, 128),
    (64, 0, 128),
    (64, 64, 0),
    (0, 128, 192),
)


class CamVid:
    """``SPLIT/NAME.png`` and ``SPLITannot/NAME.png``."""

    @staticmethod
    def matches(root: Path) -> bool:
        """Whether there are ``train/`` and ``trainannot/``."""
        return (root / "train").is_dir() and (root / "trainannot").is_dir()

    @staticmethod
    def read(root: Path) -> Listing:
        """The set in ``root``."""
        splits: dict[str, tuple[Pair, ...]] = {}
        stray: tuple[Path, ...] = ()
        counts: Counter[str] = Counter()
        for split in ("train", "val", "test"):
            if (root / split).is_dir():
                masks = images_in(root / f"{split}annot") if (root / f"{split}annot").is_dir() else {}
                splits[split], left = pair_up(images_in(root / split), masks)
                stray += left
                counts.update(pair.name for pair in splits[split])
        for split, pairs in splits.items():
            splits[split] = tuple(replace(p, name=f"{split}/{p.name}") if counts[p.name] > 1 else p for p in pairs)
        listing = Listing(
            root=root,
            layout="camvid",
            classes=CLASSES,
            colors=COLORS,
            splits=splits,
            ids={**{i: i for i in range(len(CLASSES))}, len(CLASSES): IGNORE, IGNORE: IGNORE},
            stray=stray,
            things=(6, 8, 9, 10),
        )
        return relisted(listing)
