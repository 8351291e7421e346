"""Data Science Bowl 2018 (BBBC038): nuclei in microscopy, one class on a background, one mask a nucleus.

Caicedo et al., *Nucleus segmentation across imaging experiments: the 2018 Data Science Bowl*, Nature Methods 2019.

    ID/images/ID.png   ID/masks/*.png, one nucleus each   of stage 1; ID/images/ID.png alone has no labels

All images are the split ``train``. Every look at a label map opens the masks of all its nuclei, so convert the set
before training on it: ``segue data convert`` writes one label map and one map of instances an image.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np

from segue.data.layouts.exports import run_lengths
from segue.data.listing import Listing, Pair, identity
from segue.data.outlines import Outline
from segue.data.sample import open_image, picture_size
from segue.errors import DataError

CLASSES = ("background", "nucleus")
COLORS = ((0, 0, 0), (255, 200, 0))


@dataclass(frozen=True)
class MaskFiles(Sequence[Outline]):
    """The nuclei of an image, each in a file of its own that is opened when it is asked for.

    Args:
        image: its file.
        files: of the masks.
    """

    image: Path
    files: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.files)

    @overload
    def __getitem__(self, place: int) -> Outline: ...
    @overload
    def __getitem__(self, place: slice) -> "MaskFiles": ...
    def __getitem__(self, place: int | slice) -> "Outline | MaskFiles":
        if isinstance(place, slice):
            return MaskFiles(self.image, self.files[place])
        path, size = self.files[place], picture_size(self.image)
        mask = open_image(path)
        if mask.size != size:
            raise DataError(f"{path} is {mask.width}x{mask.height}, {self.image} {size[0]}x{size[1]}")
        return Outline(1, runs=run_lengths(np.asarray(mask.convert("L")) > 0))


class Dsb2018:
    """A folder an image, with ``images/`` and ``masks/`` in it."""

    @staticmethod
    def matches(root: Path) -> bool:
        """Whether a folder holds an image of its own name and a folder of masks."""
        return any((image.parent.parent / "masks").is_dir() for image in _images(root))

    @staticmethod
    def read(root: Path) -> Listing:
        """The set in ``root``.

        Raises:
            DataError: there is no image in a folder of its own name.
        """
        pairs = tuple(_pair(image) for image in sorted(_images(root)))
        if not pairs:
            raise DataError(f"{root} has no ID/images/ID.png: it is no stage 1 of the Data Science Bowl 2018")
        return Listing(
            root=root,
            layout="dsb2018",
            classes=CLASSES,
            colors=COLORS,
            splits={"train": pairs},
            ids=identity(len(CLASSES)),
            things=(1,),
        )


def _images(root: Path) -> Iterator[Path]:
    """The image of each folder that holds one of its own name."""
    named = (folder / f"{folder.parent.name}.png" for folder in root.glob("[!.]*/images"))
    return (path for path in named if path.is_file())


def _pair(image: Path) -> Pair:
    """An image and its nuclei; the first of their masks stands for all of them in messages."""
    name = image.parent.parent.name
    files = tuple(sorted((image.parent.parent / "masks").glob("[!.]*.png")))
    if not files:
        return Pair(name, image)
    return Pair(name, image, files[0], outlines=MaskFiles(image, files))
