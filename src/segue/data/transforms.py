"""From a picture and its mask to training views: crop first, then resize only what is kept, one matrix for all colour.

Every draw comes from torch's generator, which `segue.engine.endless` seeds for each sample. Images stay 8-bit; the
network scales and normalises. Cropping before resizing and folding brightness, contrast, saturation and hue into one
3 x 4 matrix is what makes a view cheap (`benchmarks/speed/loader.py`).
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from segue.data.sample import IGNORE, Array

GRAY = np.array([0.299, 0.587, 0.114])  # luma of ITU-R BT.601, as Pillow's "L"


@dataclass(frozen=True)
class ColorJitter:
    """Strengths of a random colour change; factors are drawn from [1 - s, 1 + s], the hue angle from [-h, h] turns.

    Args:
        brightness, contrast, saturation: strengths, each in [0, 1].
        hue: largest turn of the hue, in [0, 0.5].
        chance: of changing the colours at all.
        gray: chance of a grey picture.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    chance: float = 1.0
    gray: float = 0.0

    def scaled(self, strength: float) -> "ColorJitter":
        """The same kind of change, ``strength`` times as strong; its chances stay."""
        brightness, contrast = strength * self.brightness, strength * self.contrast
        saturation, hue = strength * self.saturation, strength * self.hue
        return ColorJitter(brightness, contrast, saturation, hue, self.chance, self.gray)


# For cross-entropy: hue and saturation slightly hurt there. For the second view: SimCLR's distortion at full strength.
PLAIN = ColorJitter(brightness=0.3, contrast=0.3)
SIMCLR = ColorJitter(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, chance=0.8, gray=0.2)


def uniform(low: float, high: float) -> float:
    """A number from [low, high) by torch's generator."""
    return low + (high - low) * float(torch.rand(()))


def color_matrix(jitter: ColorJitter, mean: Array) -> Array:
    """A random affine change of RGB: (3, 4), the last column in [0, 255] units.

    Args:
        jitter: strengths.
        mean: mean colour of the picture (3,), about which contrast stretches.
    """
    matrix = np.eye(3, 4)
    if float(torch.rand(())) < jitter.chance:
        brightness, contrast, saturation = (
            uniform(max(0.0, 1 - s), 1 + s) for s in (jitter.brightness, jitter.contrast, jitter.saturation)
        )
        linear = saturation * np.eye(3) + (1 - saturation) * GRAY[None, :]
        linear = contrast * brightness * hue_rotation(uniform(-jitter.hue, jitter.hue)) @ linear
        offset = (1 - contrast) * brightness * float(GRAY @ mean)
        matrix = np.concatenate([linear, np.full((3, 1), offset)], axis=1)
    if float(torch.rand(())) < jitter.gray:
        matrix = np.repeat(GRAY[None, :] @ matrix, 3, axis=0)
    return matrix


def hue_rotation(turns: float) -> Array:
    """Rotation of RGB about its grey axis by ``turns`` of a full circle: (3, 3); grey stays grey."""
    cos, sin = math.cos(2 * math.pi * turns), math.sin(2 * math.pi * turns)
    third, root = (1 - cos) / 3, sin / math.sqrt(3)
    return np.array(
        [
            [cos + third, third - root, third + root],
            [third + root, cos + third, third - root],
            [third - root, third + root, cos + third],
        ]
    )


def recolored(image: Image.Image, jitter: ColorJitter) -> Image.Image:
    """``image`` under a random colour change; mode RGB."""
    mean = np.asarray(image.reduce(max(1, min(image.size) // 8)), np.float64).mean((0, 1))
    return image.convert("RGB", tuple(color_matrix(jitter, mean).ravel().tolist()))


@dataclass(frozen=True)
class Window:
    """A piece of a picture and where it goes in a crop; all of it in pixels.

    Args:
        box: left, upper, right, lower edge in the picture.
        size: width and height it is resized to.
        at: its left upper corner in the crop; the rest of the crop is empty.
        flip: mirror the crop.
    """

    box: tuple[float, float, float, float]
    size: tuple[int, int]
    at: tuple[int, int]
    flip: bool


def draw_window(width: int, height: int, crop: int, scale: tuple[float, float]) -> Window:
    """A random window: the picture scaled by a log-uniform factor from ``scale``, a crop of that, maybe mirrored."""
    factor = math.exp(uniform(math.log(scale[0]), math.log(scale[1])))
    spans, sizes, places = [], [], []
    for length in (width, height):
        scaled = max(1, round(length * factor))
        if scaled >= crop:
            start = uniform(0, scaled - crop) / scaled * length
            spans.append((start, min(length, start + crop / scaled * length)))
            sizes.append(crop)
            places.append(0)
        else:
            spans.append((0.0, float(length)))
            sizes.append(scaled)
            places.append(int(uniform(0, crop - scaled + 1)))
    box = (spans[0][0], spans[1][0], spans[0][1], spans[1][1])
    return Window(box, (sizes[0], sizes[1]), (places[0], places[1]), float(torch.rand(())) < 0.5)


def piece_of(image: Image.Image, window: Window, *, smooth: bool) -> Image.Image:
    """The window of a picture, scaled and mirrored; bilinear for pictures, nearest for masks."""
    resample = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    piece = image.resize(window.size, resample, box=window.box)
    return piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if window.flip else piece


def cut(image: Image.Image, window: Window, crop: int, *, smooth: bool) -> Image.Image:
    """The window of a picture on a (crop, crop) canvas, which is black around it; see `piece_of`."""
    piece = piece_of(image, window, smooth=smooth)
    if window.size == (crop, crop):
        return piece
    canvas = Image.new(piece.mode, (crop, crop))
    canvas.paste(piece, _corner(window, crop))
    return canvas


def _corner(window: Window, crop: int) -> tuple[int, int]:
    """Where the piece lies on the canvas, mirrored with it."""
    x, y = window.at
    return (crop - x - window.size[0] if window.flip else x), y


def on_canvas(ids: Array, window: Window, crop: int) -> Array:
    """Class ids uint8 (h, w) of a piece on a (crop, crop) canvas, which is `IGNORE` around it."""
    if window.size == (crop, crop):
        return ids
    canvas = np.full((crop, crop), IGNORE, np.uint8)
    canvas[filled(window, crop)] = ids
    return canvas


def inside_of(window: Window, crop: int) -> Tensor:
    """Bool (crop, crop): where the canvas holds the piece."""
    inside = torch.zeros(crop, crop, dtype=torch.bool)
    inside[filled(window, crop)] = True
    return inside


def filled(window: Window, crop: int) -> tuple[slice, slice]:
    """Rows and columns of the canvas that the piece covers."""
    x, y = _corner(window, crop)
    return slice(y, y + window.size[1]), slice(x, x + window.size[0])
