"""BDD100K's semantic segmentation (10K): the 19 classes of Cityscapes, stored as training ids 0 to 18 and 255.

Yu et al., *BDD100K: A Diverse Driving Dataset for Heterogeneous Multitask Learning*, CVPR 2020.

    images/10k/{train,val,test}/NAME.jpg   labels/sem_seg/masks/{train,val}/NAME.png
    seg/images/{train,val,test}/NAME.jpg   seg/labels/{train,val}/NAME_train_id.png    as first published

The split ``test`` has no labels.
"""

from pathlib import Path

from segue.data.finding import Finding
from segue.data.layouts.cityscapes import CLASSES, COLORS
from segue.data.listing import Listing, Pair, identity, images_in, pair_up
from segue.errors import DataError

FOLDERS = (("images/10k", "labels/sem_seg/masks", ""), ("seg/images", "seg/labels", "_train_id"))
SPLITS = ("train", "val", "test")


class Bdd100k:
    """``images/10k/`` and ``labels/sem_seg/``, or ``seg/``."""

    @staticmethod
    def matches(root: Path) -> bool:
        """Whether the folders of one of the two forms are there."""
        return _form(root) is not None

    @staticmethod
    def read(root: Path) -> Listing:
        """The set in ``root``.

        Raises:
            DataError: the folders are not there.
        """
        form = _form(root)
        if form is None:
            raise DataError(f"{root} has neither images/10k with labels/sem_seg/masks nor seg/images with seg/labels")
        images, labels, ending = form
        splits: dict[str, tuple[Pair, ...]] = {}
        stray: tuple[Path, ...] = ()
        faults: list[Finding] = []
        for split in SPLITS:
            if (root / images / split).is_dir():
                found = images_in(root / labels / split, faults) if (root / labels / split).is_dir() else {}
                masks = {name.removesuffix(ending): path for name, path in found.items() if name.endswith(ending)}
                pairs, left = pair_up(images_in(root / images / split, faults), masks)
                splits[split] = tuple(Pair(f"{split}/{pair.name}", pair.image, pair.mask) for pair in pairs)
                stray += left
        return Listing(
            root=root,
            layout="bdd100k",
            classes=CLASSES,
            colors=COLORS,
            splits=splits,
            ids=identity(len(CLASSES)),
            stray=stray,
            things=tuple(range(11, 19)),
            faults=tuple(faults),
        )


def _form(root: Path) -> tuple[str, str, str] | None:
    """Folders of images and labels, and the ending of label names."""
    return next((form for form in FOLDERS if (root / form[0]).is_dir() and (root / form[1]).is_dir()), None)
