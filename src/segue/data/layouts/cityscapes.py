"""Cityscapes: ``leftImg8bit/SPLIT/CITY/*_leftImg8bit.png`` and ``gtFine/SPLIT/CITY/*_gtFine_labelIds.png``, 19 classes.

Cordts et al., *The Cityscapes Dataset for Semantic Urban Scene Understanding*, CVPR 2016. Masks hold label ids 0 to 33
(mapped here to the 19 training ids) or, named ``_labelTrainIds``, the training ids themselves.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from segue.data.listing import INSTANCE_IDS, Listing, Pair, identity
from segue.data.sample import IGNORE, Array, open_image
from segue.errors import DataError

CLASSES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
COLORS = (
    (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153), (250, 170, 30),
    (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142),
    (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
)  # fmt: skip
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
TRAIN_IDS, LABELS = "_gtFine_labelTrainIds.png", "_gtFine_labelIds.png"


class Cityscapes:
    """The two folders of the packages ``leftImg8bit_trainvaltest`` and ``gtFine_trainvaltest``."""

    @staticmethod
    def matches(root: Path) -> bool:
        """Whether ``leftImg8bit/`` is there."""
        return (root / "leftImg8bit").is_dir()

    @staticmethod
    def read(root: Path) -> Listing:
        """The set in ``root``; training ids are used where the official script has written them for every image."""
        splits = {}
        images = {p.name: sorted(p.glob("*/*_leftImg8bit.png")) for p in sorted((root / "leftImg8bit").iterdir())}
        labelled = [_mask(root, path, LABELS) for name in ("train", "val") for path in images.get(name, [])]
        trained = [_mask(root, path, TRAIN_IDS) for name in ("train", "val") for path in images.get(name, [])]
        suffix = TRAIN_IDS if trained and all(path.is_file() for path in trained) else LABELS
        for split, paths in images.items():
            if paths:
                splits[split] = tuple(_pair(root, path, suffix) for path in paths)
        used = set(labelled)
        ids = {i: IGNORE for i in range(-1, 34)} | {raw: i for i, raw in enumerate(LABEL_IDS)}
        return Listing(
            root=root,
            layout="cityscapes",
            classes=CLASSES,
            colors=COLORS,
            splits=splits,
            ids=identity(len(CLASSES)) if suffix == TRAIN_IDS else {**ids, IGNORE: IGNORE},
            stray=tuple(
                p for p in sorted((root / "gtFine").glob(f"*/*/*{LABELS}")) if p not in used and "test" not in p.parts
            ),
            things=tuple(range(11, 19)),
        )


def _mask(root: Path, image: Path, suffix: str) -> Path:
    """Where the mask of ``image`` lies."""
    stem = image.name.removesuffix("_leftImg8bit.png")
    return root / "gtFine" / image.parent.parent.name / image.parent.name / f"{stem}{suffix}"


def _pair(root: Path, image: Path, suffix: str) -> Pair:
    """An image and its mask; the test split's masks are empty pictures and are not used."""
    split, mask = image.parent.parent.name, _mask(root, image, suffix)
    name = f"{split}/{image.parent.name}/{image.name.removesuffix('_leftImg8bit.png')}"
    return Pair(name, image, mask if split != "test" and mask.is_file() else None)


def numbered_objects(pair: Pair, ids: Mapping[int, int]) -> tuple[Array, Array]:
    """Class ids and object numbers, both (H, W), of instance ids: 0 where no single object is.

    An instance id is 1000 times the label id plus a number, or the label id alone, which for things is a group.

    Args:
        pair: with a mask of label ids or of training ids.
        ids: class of each value that such a mask holds.

    Raises:
        DataError: there is no file of instance ids, or it cannot be read.
    """
    assert pair.mask is not None
    stem = pair.mask.name.split("_gtFine_")[0]
    path = pair.mask.with_name(f"{stem}{INSTANCE_IDS}")
    if not path.is_file():
        raise DataError(f"{path} does not exist; panoptic training needs the instance ids of gtFine")
    stored = np.asarray(open_image(path)).astype(np.int64)
    values: Sequence[int] = range(1000)  # what the mask holds for each label id
    if pair.mask.name.endswith(TRAIN_IDS):
        values = [LABEL_IDS.index(raw) if raw in LABEL_IDS else IGNORE for raw in values]
    table = np.array([ids.get(value, IGNORE) for value in values], np.uint8)
    is_single = stored >= 1000
    return table[np.where(is_single, stored // 1000, stored).clip(0, 999)], np.where(is_single, stored, 0)
