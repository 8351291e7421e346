"""Training views of two domains: a labelled piece of a source picture in the style of the target picture beside it."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from segue.data.copy_paste import CopyPaste
from segue.data.decoder import Decoder
from segue.data.images import labelled_piece, tensor_of
from segue.data.listing import Pair
from segue.data.sample import Sample
from segue.data.style import Style, styled
from segue.data.tones import read_rgb
from segue.data.transforms import PLAIN, ColorJitter, Window, cut, draw_window, filled, inside_of, recolored

# What a network must not be moved by: colours change about as much as between cameras and hours of a day.
STRONG = ColorJitter(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.1, chance=0.8, gray=0.2)


Labelled = tuple[tuple[Pair, ...], Decoder, CopyPaste | None]


@dataclass(frozen=True)
class DomainViews(Dataset[Sample]):
    """Random views of the sources, each with one of the target.

    A sample holds ``source`` (``image`` uint8 (3, crop, crop), ``mask`` uint8 (crop, crop), ``name``) and, where
    ``gives_target``, ``target`` (``image`` and ``view`` uint8 (3, crop, crop), ``inside`` bool (crop, crop) that is
    False where a small picture is padded, ``name``).

    Args:
        sources: labelled pairs, the decoder of their masks and what is pasted into them, set by set.
        target: pictures of the other domain; one is drawn for each sample.
        crop: side of the views, in pixels.
        scale: smallest and largest factor the pictures are scaled by.
        style: of the source pictures; ``none`` leaves them as they are.
        band: of the Fourier style.
        strong: ``view`` has other colours than ``image``; else they are the same.
        gives_target: whether the views of the target are wanted too, or only their style.
        invert: chance that the light of a source picture is inverted before it gets its style.
    """

    sources: tuple[Labelled, ...]
    target: tuple[Pair, ...]
    crop: int
    scale: tuple[float, float] = (0.5, 2.0)
    style: Style = "none"
    band: float = 0.05
    strong: bool = False
    gives_target: bool = True
    invert: float = 0.0

    def __len__(self) -> int:
        return sum(len(pairs) for pairs, _, _ in self.sources)

    def __getitem__(self, index: int) -> Sample:
        pair, decoder, paste = self.at(index)
        piece, mask, window = labelled_piece(pair, decoder, self.crop, self.scale, paste)
        if self.invert and float(torch.rand(())) < self.invert:
            piece = inverted(piece, window, self.crop)
        sample: Sample = {}
        if self.gives_target or self.style != "none":
            other = self.target[int(torch.randint(len(self.target), ()))]
            theirs, other_window = random_piece(other, self.crop, self.scale)
            piece = in_style(piece, window, theirs, other_window, self.crop, style=self.style, band=self.band)
            if self.gives_target:
                sample["target"] = self.target_view(other, theirs, other_window)
        source = {"image": tensor_of(recolored(piece, PLAIN)), "mask": torch.from_numpy(mask), "name": pair.name}
        return {"source": source, **sample}

    def at(self, index: int) -> tuple[Pair, Decoder, CopyPaste | None]:
        """The pair at a place in the row of all sets, its decoder and what is pasted."""
        for pairs, decoder, paste in self.sources:
            if index < len(pairs):
                return pairs[index], decoder, paste
            index -= len(pairs)
        raise IndexError(f"sample {index + len(self)} of {len(self)}")

    def target_view(self, pair: Pair, piece: Image.Image, window: Window) -> Sample:
        """What teacher and student get to see of a piece of the target."""
        view = recolored(piece, STRONG) if self.strong else piece
        return {
            "image": tensor_of(piece),
            "view": tensor_of(view),
            "inside": inside_of(window, self.crop),
            "name": pair.name,
        }


def random_piece(pair: Pair, crop: int, scale: tuple[float, float]) -> tuple[Image.Image, Window]:
    """A random piece of a picture on a (crop, crop) canvas, and where it was cut."""
    image = read_rgb(pair.image, pair.tones)
    window = draw_window(image.width, image.height, crop, scale)
    return cut(image, window, crop, smooth=True), window


def inverted(piece: Image.Image, window: Window, crop: int) -> Image.Image:
    """``piece`` with bright and dark exchanged, on a (crop, crop) canvas whose padding stays black."""
    canvas = np.array(piece)
    canvas[filled(window, crop)] ^= 255
    return Image.fromarray(canvas)


def in_style(
    piece: Image.Image,
    window: Window,
    other: Image.Image,
    other_window: Window,
    crop: int,
    *,
    style: Style,
    band: float,
) -> Image.Image:
    """``piece`` in the style of ``other``, both on canvases whose padding takes no part; padding stays black.

    Args:
        piece, other: RGB pictures (crop, crop).
        window, other_window: what of each canvas is picture.
        crop: side of the canvases.
        style, band: as of `segue.data.style.styled`.
    """
    if style == "none":
        return piece
    canvas = np.array(piece)
    own, theirs = canvas[filled(window, crop)], np.asarray(other)[filled(other_window, crop)]
    if style == "fourier" and own.shape != theirs.shape:  # spectra of one size are needed
        size = (own.shape[1], own.shape[0])
        theirs = np.asarray(Image.fromarray(theirs).resize(size, Image.Resampling.BILINEAR))
    canvas[filled(window, crop)] = styled(own, theirs, style, band=band)
    return Image.fromarray(canvas)
