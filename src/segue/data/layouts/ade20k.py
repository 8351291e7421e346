"""ADE20K's scene parsing benchmark (ADEChallengeData2016): 150 classes, semantic or panoptic.

Zhou et al., *Scene Parsing through ADE20K Dataset*, CVPR 2017. Names, palette and the 100 countable classes are the
benchmark's.

    images/{training,validation}/*.jpg   annotations/{training,validation}/*.png   0 is no class, 1 to 150 are classes
    ade20k_panoptic_{train,val}.json     ade20k_panoptic_{train,val}/*.png         as Mask2Former's script writes them

Where the second line is there for every split, segments are used.
"""

from pathlib import Path

from segue.data.layouts.annotations import Categories, Entry, Found
from segue.data.layouts.coco_panoptic import read_segments
from segue.data.layouts.folder import has_class_list
from segue.data.listing import Listing, Pair, identity, images_in, pair_up
from segue.data.sample import IGNORE
from segue.errors import DataError

SPLITS = {"train": "training", "val": "validation"}
CLASSES = (
    "wall", "building", "sky", "floor", "tree", "ceiling", "road", "bed", "windowpane", "grass", "cabinet", "sidewalk",
    "person", "earth", "door", "table", "mountain", "plant", "curtain", "chair", "car", "water", "painting", "sofa",
    "shelf", "house", "sea", "mirror", "rug", "field", "armchair", "seat", "fence", "desk", "rock", "wardrobe", "lamp",
    "bathtub", "railing", "cushion", "base", "box", "column", "signboard", "chest of drawers", "counter", "sand",
    "sink", "skyscraper", "fireplace", "refrigerator", "grandstand", "path", "stairs", "runway", "case", "pool table",
    "pillow", "screen door", "stairway", "river", "bridge", "bookcase", "blind", "coffee table", "toilet", "flower",
    "book", "hill", "bench", "countertop", "stove", "palm", "kitchen island", "computer", "swivel chair", "boat", "bar",
    "arcade machine", "hovel", "bus", "towel", "light", "truck", "tower", "chandelier", "awning", "streetlight",
    "booth", "television receiver", "airplane", "dirt track", "apparel", "pole", "land", "bannister", "escalator",
    "ottoman", "bottle", "buffet", "poster", "stage", "van", "ship", "fountain", "conveyer belt", "canopy", "washer",
    "plaything", "swimming pool", "stool", "barrel", "basket", "waterfall", "tent", "bag", "minibike", "cradle", "oven",
    "ball", "food", "step", "tank", "trade name", "microwave", "pot", "animal", "bicycle", "lake", "dishwasher",
    "screen", "blanket", "sculpture", "hood", "sconce", "vase", "traffic light", "tray", "ashcan", "fan", "pier",
    "crt screen", "plate", "monitor", "bulletin board", "shower", "radiator", "glass", "clock", "flag",
)  # fmt: skip
COLORS = (
    (120, 120, 120), (180, 120, 120), (6, 230, 230), (80, 50, 50), (4, 200, 3), (120, 120, 80), (140, 140, 140),
    (204, 5, 255), (230, 230, 230), (4, 250, 7), (224, 5, 255), (235, 255, 7), (150, 5, 61), (120, 120, 70),
    (8, 255, 51), (255, 6, 82), (143, 255, 140), (204, 255, 4), (255, 51, 7), (204, 70, 3), (0, 102, 200),
    (61, 230, 250), (255, 6, 51), (11, 102, 255), (255, 7, 71), (255, 9, 224), (9, 7, 230), (220, 220, 220),
    (255, 9, 92), (112, 9, 255), (8, 255, 214), (7, 255, 224), (255, 184, 6), (10, 255, 71), (255, 41, 10),
    (7, 255, 255), (224, 255, 8), (102, 8, 255), (255, 61, 6), (255, 194, 7), (255, 122, 8), (0, 255, 20), (255, 8, 41),
    (255, 5, 153), (6, 51, 255), (235, 12, 255), (160, 150, 20), (0, 163, 255), (140, 140, 140), (250, 10, 15),
    (20, 255, 0), (31, 255, 0), (255, 31, 0), (255, 224, 0), (153, 255, 0), (0, 0, 255), (255, 71, 0), (0, 235, 255),
    (0, 173, 255), (31, 0, 255), (11, 200, 200), (255, 82, 0), (0, 255, 245), (0, 61, 255), (0, 255, 112),
    (0, 255, 133), (255, 0, 0), (255, 163, 0), (255, 102, 0), (194, 255, 0), (0, 143, 255), (51, 255, 0), (0, 82, 255),
    (0, 255, 41), (0, 255, 173), (10, 0, 255), (173, 255, 0), (0, 255, 153), (255, 92, 0), (255, 0, 255), (255, 0, 245),
    (255, 0, 102), (255, 173, 0), (255, 0, 20), (255, 184, 184), (0, 31, 255), (0, 255, 61), (0, 71, 255),
    (255, 0, 204), (0, 255, 194), (0, 255, 82), (0, 10, 255), (0, 112, 255), (51, 0, 255), (0, 194, 255), (0, 122, 255),
    (0, 255, 163), (255, 153, 0), (0, 255, 10), (255, 112, 0), (143, 255, 0), (82, 0, 255), (163, 255, 0),
    (255, 235, 0), (8, 184, 170), (133, 0, 255), (0, 255, 92), (184, 0, 255), (255, 0, 31), (0, 184, 255),
    (0, 214, 255), (255, 0, 112), (92, 255, 0), (0, 224, 255), (112, 224, 255), (70, 184, 160), (163, 0, 255),
    (153, 0, 255), (71, 255, 0), (255, 0, 163), (255, 204, 0), (255, 0, 143), (0, 255, 235), (133, 255, 0),
    (255, 0, 235), (245, 0, 255), (255, 0, 122), (255, 245, 0), (10, 190, 212), (214, 255, 0), (0, 204, 255),
    (20, 0, 255), (255, 255, 0), (0, 153, 255), (0, 41, 255), (0, 255, 204), (41, 0, 255), (41, 255, 0), (173, 0, 255),
    (0, 245, 255), (71, 0, 255), (122, 0, 255), (0, 255, 184), (0, 92, 255), (184, 255, 0), (0, 133, 255),
    (255, 214, 0), (25, 194, 194), (102, 255, 0), (92, 0, 255),
)  # fmt: skip
STUFF = (
    0, 1, 2, 3, 4, 5, 6, 9, 11, 13, 16, 17, 21, 25, 26, 28, 29, 34, 40, 46, 48, 51, 52, 54, 59, 60, 61, 63, 68, 77, 79,
    84, 91, 94, 96, 99, 100, 101, 105, 106, 109, 113, 114, 117, 122, 128, 131, 140, 141, 145,
)  # fmt: skip


class Ade20k:
    """``images/`` and ``annotations/`` with the folders ``training/`` and ``validation/``."""

    @staticmethod
    def matches(root: Path) -> bool:
        """Whether there are images and annotations of one of the two splits, and no class list: see `Folder`."""
        return _home(root) is not None and not has_class_list(root)

    @staticmethod
    def read(root: Path) -> Listing:
        """The set in ``root``.

        Raises:
            DataError: there are no such folders, or a panoptic annotation file is unsound.
        """
        home = _home(root)
        if home is None:
            raise DataError(f"{root} has no images/training and annotations/training: it is no ADEChallengeData2016")
        folders = {split: name for split, name in SPLITS.items() if (home / "images" / name).is_dir()}
        things = tuple(i for i in range(len(CLASSES)) if i not in STUFF)
        found: dict[str, Found] = {}
        is_panoptic = all((home / f"ade20k_panoptic_{split}.json").is_file() for split in folders)
        for split, name in folders.items():
            if is_panoptic:
                found[split], things = _panoptic(home, split)
                found[split].add_bare(home / "images" / name, split)
            else:
                found[split] = _semantic(home, split)
        return Listing(
            root=root,
            layout="ade20k",
            classes=CLASSES,
            colors=COLORS,
            splits={split: one.sorted() for split, one in found.items()},
            ids=identity(len(CLASSES)) if is_panoptic else {0: IGNORE, **{i + 1: i for i in range(len(CLASSES))}},
            stray=tuple(path for one in found.values() for path in one.stray),
            things=things,
            faults=tuple(fault for one in found.values() for fault in one.findings()),
        )


def _home(root: Path) -> Path | None:
    """The folder with the images: ``root``, or the one that the official archive makes in it."""
    for home in (root, root / "ADEChallengeData2016"):
        if any((home / "images" / n).is_dir() and (home / "annotations" / n).is_dir() for n in SPLITS.values()):
            return home
    return None


def _semantic(home: Path, split: str) -> Found:
    """Images and label maps of a split."""
    found = Found()
    images = images_in(home / "images" / SPLITS[split], found.faults)
    pairs, found.stray = pair_up(images, images_in(home / "annotations" / SPLITS[split], found.faults))
    found.pairs = {pair.name: Pair(f"{split}/{pair.name}", pair.image, pair.mask) for pair in pairs}
    return found


def _panoptic(home: Path, split: str) -> tuple[Found, tuple[int, ...]]:
    """Images and segments of a split, and the countable classes."""
    source = home / f"ade20k_panoptic_{split}.json"
    content, pngs = Entry.of(source), source.with_suffix("")
    if not pngs.is_dir():
        raise DataError(f"{pngs} does not exist; put the PNGs of {source.name} there")
    categories = Categories.of(content)
    if list(categories.positions) != list(range(len(CLASSES))):
        raise DataError(
            f"{source}: categories must have the ids 0 to {len(CLASSES) - 1}, as Mask2Former's script writes"
        )
    found = read_segments(content, home / "images" / SPLITS[split], pngs, categories.positions, split)
    found.places["isthing"] = [f"{source} (category {name}, isthing)" for name in categories.vague]
    return found, categories.things
