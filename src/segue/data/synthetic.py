"""Street scenes drawn on demand, for the demo, tests and comparisons that must need no download.

A scene is a street in metres (x to the right, y up, z away) before a pinhole camera. `draw` paints it from far to near
as *layers*: one number per surface, and a table of what each number is. `render` turns layers into an image under the
light, weather and camera of a domain, so that scene i has the same labels in each. Colour does not give a class away:
walls, cars, clothes and fences share theirs, and a poster looks like a sign. Shape, texture and place do.
"""

import colorsys
import json
import math
from collections.abc import Callable
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from torch.utils.data import Dataset

from segue.data.sample import IGNORE, Array, Color, Sample, write_label_map

SKY, ROAD, MARKING, PAVEMENT, BUILDING, VEGETATION, FENCE, POLE, SIGN, CAR, PERSON, BICYCLE = range(12)
THINGS = (SIGN, CAR, PERSON, BICYCLE)
DOMAINS = ("a", "b")
FAR, SMALLEST = 32.0, 8  # metres beyond which, pixels below which a thing is IGNORE
GROUND = 5  # layers 1 to 5 lie on the ground
GRAIN, ROUGH, LEAVES, SLABS, BRICKS = range(5)  # the order of `textures`

Size = tuple[int, int]  # height and width
Span = tuple[float, float]
Texture = tuple[int, float]  # which, and how strong
Rgb = tuple[float, float, float]
Item = tuple[float, Callable[[], None]]  # metres away, and a call that paints it
Hsv = tuple[float, float, float, float, float, float]  # from-to of hue, saturation and value, all in [0, 1]

PLAIN: Texture = (GRAIN, 0.0)
# fmt: off
CLASSES = ("sky", "road", "marking", "pavement", "building", "vegetation",
           "fence", "pole", "sign", "car", "person", "bicycle")
COLORS: tuple[Color, ...] = (
    (70, 130, 180), (128, 64, 128), (250, 240, 200), (244, 35, 232), (70, 70, 70), (107, 142, 35),
    (190, 153, 113), (153, 153, 153), (220, 220, 0), (0, 0, 142), (220, 20, 60), (119, 11, 32),
)
GREY: Hsv = (0, 1, 0, 0.08, 0.15, 0.85)
BRICK: Hsv = (0, 0.07, 0.3, 0.65, 0.25, 0.6)
CREAM: Hsv = (0.08, 0.16, 0.1, 0.45, 0.45, 0.95)
SLATE: Hsv = (0.5, 0.68, 0.08, 0.5, 0.2, 0.7)
MOSS: Hsv = (0.18, 0.4, 0.2, 0.65, 0.15, 0.6)
VIVID: Hsv = (0, 1, 0.5, 0.95, 0.35, 0.9)
WHITE: Hsv = (0.08, 0.15, 0, 0.1, 0.6, 1)
DARK: Hsv = (0, 1, 0, 0.1, 0.04, 0.16)
MATERIALS: dict[str, tuple[Hsv, ...]] = {  # a scene takes two rows of each
    "ground": ((0, 1, 0, 0.1, 0.15, 0.6), (0.06, 0.12, 0.1, 0.3, 0.25, 0.6), (0, 0.05, 0.1, 0.35, 0.25, 0.5)),
    "marking": (WHITE, WHITE, (0.1, 0.15, 0.3, 0.7, 0.6, 0.9)),
    "wall": (GREY, BRICK, CREAM, SLATE, MOSS),
    "leaf": (MOSS, MOSS, (0.18, 0.3, 0.3, 0.7, 0.12, 0.4), (0.02, 0.15, 0.35, 0.75, 0.25, 0.7)),
    "fence": (GREY, CREAM, MOSS, BRICK, SLATE),
    "glass": ((0.5, 0.65, 0.05, 0.4, 0.08, 0.45), (0.5, 0.6, 0.05, 0.2, 0.4, 0.8)),
}
BOARDS = (VIVID, WHITE, (0.58, 0.64, 0.6, 0.9, 0.4, 0.8), (0.97, 1, 0.7, 0.95, 0.5, 0.9))
CLOTHS = (GREY, VIVID, SLATE, MOSS, CREAM, BRICK)  # of people and of cars
SKIN: Hsv = (0.04, 0.09, 0.3, 0.6, 0.2, 0.95)
LOOKS: dict[str, tuple[Span, Span]] = {  # what a scene draws in domain "a" and in "b"
    "exposure": ((0.75, 1.25), (0.5, 0.85)), "contrast": ((0.85, 1.15), (0.75, 1.0)),
    "saturation": ((0.75, 1.2), (0.35, 0.75)), "warmth": ((-0.1, 0.12), (-0.25, 0.2)),
    "texture": ((0.7, 1.4), (0.4, 0.9)), "shadow": ((0.25, 0.6), (0.0, 0.25)), "lamps": ((0.0, 0.1), (0.4, 1.0)),
    "haze": ((0.0, 0.008), (0.006, 0.018)),  # per metre
    "noise": ((0.008, 0.03), (0.015, 0.04)),  # a standard deviation, in [0, 1]
    "blur": ((0.2, 0.5), (0.5, 0.9)), "vignette": ((0.0, 0.15), (0.15, 0.4)),  # blur: pixels at height 128
}
SKIES: dict[str, tuple[tuple[Hsv, Hsv], ...]] = {  # zenith and horizon: clear, or overcast
    "a": (((0.55, 0.63, 0.3, 0.7, 0.55, 0.9), (0.52, 0.6, 0.05, 0.25, 0.8, 1)),
          ((0.55, 0.65, 0, 0.12, 0.55, 0.9), (0.1, 0.6, 0, 0.06, 0.75, 0.95))),
    "b": (((0.6, 0.75, 0.2, 0.6, 0.2, 0.55), (0, 0.1, 0.2, 0.6, 0.5, 0.85)),
          ((0.55, 0.7, 0.05, 0.3, 0.25, 0.5), (0.5, 0.8, 0, 0.15, 0.4, 0.65))),
}
# fmt: on


def mix(rng: Random, *rows: Hsv) -> Rgb:
    """A colour from one of the rows."""
    h0, h1, s0, s1, v0, v1 = rng.choice(rows)
    return colorsys.hsv_to_rgb(rng.uniform(h0, h1), rng.uniform(s0, s1), rng.uniform(v0, v1))


def phase(values: Array) -> Array:
    """The fractional part; several times as fast as ``% 1``."""
    return values - np.floor(values)


class Scene:
    """A street, its camera, and what is painted so far; in fractions of the image, so the same at any size."""

    def __init__(self, rng: Random, height: int, width: int) -> None:
        self.rng, self.height, self.width = rng, height, width
        self.focal, self.eye = rng.uniform(0.55, 1.05) * width, rng.uniform(1.2, 2.8)  # pixels; metres up
        self.horizon, self.vanishing = rng.uniform(0.34, 0.56) * height, rng.uniform(0.3, 0.7) * width
        self.bend = rng.choice((0.0, rng.uniform(-0.003, 0.003)))  # the street runs at x + bend z^2
        self.centre, self.half, self.lanes = rng.uniform(-2.5, 2.5), rng.uniform(3, 6.5), rng.choice((1, 2, 2, 3))
        self.walks = {side: rng.uniform(1.5, 4.5) for side in (-1, 1)}  # widths of the pavements, left and right
        self.verges = {side: rng.choice((0.0, 0.5, rng.uniform(1, 5))) for side in (-1, 1)}
        self.facades = {s: self.centre + s * (self.half + self.walks[s] + self.verges[s]) for s in (-1, 1)}
        self.sun = rng.uniform(-1, 1)  # from the left, from the right
        self.palette = {name: (rng.choice(rows), rng.choice(rows)) for name, rows in MATERIALS.items()}
        self.labels, self.things, self.counter = [SKY], [0], count(1)  # class and instance of each layer
        self.looks = [(0.0,) * 7]  # red, green, blue, metres away, glow, texture and its strength
        self.z, self.x, ids = ground(self)
        self.image, self.shadows = Image.fromarray(ids), Image.new("L", (width, height))
        self.pen, self.shadow_pen = ImageDraw.Draw(self.image), ImageDraw.Draw(self.shadows)

    def layer(self, label: int, material: str | Rgb, z: float, thing: int = 0, texture: Texture = PLAIN, *,
              gain: float = 0.85, glow: float = 0.0) -> int:  # fmt: skip
        """The number of a new layer of a colour, or of one that ``material`` has here; things have numbers from 1."""
        red, green, blue = mix(self.rng, *self.palette[material]) if isinstance(material, str) else material
        is_far = thing > 0 and z > FAR
        self.labels.append(IGNORE if is_far else label)
        self.things.append(0 if is_far else thing)
        self.looks.append((gain * red, gain * green, gain * blue, z, glow, *texture))
        return len(self.looks) - 1

    def project(self, x: float, y: float, z: float) -> Span:
        """The pixel (x, y) of a point."""
        scale = self.focal / z
        return self.vanishing + scale * (x + self.bend * z * z), self.horizon + scale * (self.eye - y)

    def face(self, layer: int, *corners: tuple[float, float, float]) -> None:
        """Paints a polygon."""
        self.pen.polygon([self.project(*corner) for corner in corners], fill=layer)

    def wall(self, layer: int, x: float, z: Span, y: Span) -> None:
        """Paints a rectangle that runs along the street."""
        self.face(layer, (x, y[0], z[0]), (x, y[1], z[0]), (x, y[1], z[1]), (x, y[0], z[1]))

    def bar(self, layer: int, z: float, low: Span, high: Span, thick: float) -> None:
        """Paints a band from one point (x, y) to another, facing the camera; ``thick`` is half its width."""
        (a, b), (c, d) = low, high
        self.face(layer, (a - thick, b, z), (a + thick, b, z), (c + thick, d, z), (c - thick, d, z))

    def blob(self, layer: int, z: float, centre: Span, radii: Span, corners: int = 10, *, ragged: float = 0.0) -> None:
        """Paints an ellipse or a polygon in it, facing the camera."""
        (x, y), (rx, ry), first = centre, radii, 0.5 * (corners == 4)
        turns = [(2 * math.pi * (i + first) / corners, 1 - ragged * self.rng.random()) for i in range(corners)]
        self.face(layer, *((x + rx * r * math.sin(t), y + ry * r * math.cos(t), z) for t, r in turns))

    def shadow(self, x: float, wide: float, z: Span, height: float) -> None:
        """Darkens the ground below and on the side away from the sun."""
        left, right = x - wide - max(self.sun, 0) * height, x + wide - min(self.sun, 0) * height
        corners = ((left, z[0]), (right, z[0]), (right, z[1]), (left, z[1]))
        self.shadow_pen.polygon([self.project(a, 0, b) for a, b in corners], fill=255)


def ground(scene: Scene) -> tuple[Array, Array, Array]:
    """Per pixel (H, W): metres to the point on the ground, metres from the road's middle, and the layer."""
    rng, half = scene.rng, scene.half
    below = np.arange(scene.height)[:, None] + 0.5 - scene.horizon
    z = np.repeat(scene.focal * scene.eye / np.maximum(below, 0.02), scene.width, 1)
    x = (np.arange(scene.width) + 0.5 - scene.vanishing) * z / scene.focal - scene.bend * z * z - scene.centre
    beside, walk = np.abs(x) - half, np.where(x > 0, scene.walks[1], scene.walks[-1])
    strip = rng.choice((0.0, 0.0, rng.uniform(1.2, 2.2)))  # of another surface: a cycle lane or a gutter
    ids = np.select([below < 0, beside < -strip, beside < 0, beside < walk], [0, 1, 2, 4], 5).astype(np.int32)
    wide, (dash, period) = rng.uniform(0.08, 0.16), rng.choice(((3.0, 6.0), (2.0, 5.0), (1.0, 2.0), (9.0, 9.0)))
    places = [half * (2 * i / scene.lanes - 1) for i in range(1, scene.lanes)]
    lines = (np.min([np.abs(x - place) for place in (99, *places)], 0) < wide) & (phase(z / period) < dash / period)
    lines |= (np.abs(beside + rng.uniform(0.3, 0.6)) < wide) & (rng.random() < 0.5)
    zebra, stripe = rng.choice((500, rng.uniform(5, 22))), rng.uniform(0.8, 1.3)
    lines |= (z > zebra) & (z < zebra + 3) & (phase(x / stripe) < 0.5) & (beside < -0.2)
    ids[(below > 0) & (z < 90) & lines] = 3
    paving: Texture = (rng.choice((GRAIN, SLABS, SLABS, ROUGH)), rng.uniform(0.1, 0.35))
    scene.layer(ROAD, "ground", 0, 0, (rng.choice((GRAIN, ROUGH, ROUGH)), rng.uniform(0.1, 0.3)))
    scene.layer(ROAD, "ground", 0, 0, (ROUGH, 0.2))
    scene.layer(MARKING, "marking", 0, 0, (ROUGH, rng.uniform(0.1, 0.35)))
    scene.layer(PAVEMENT, "ground", 0, 0, paving)
    scene.layer(*rng.choice(((VEGETATION, "leaf", 0, 0, (LEAVES, 0.3)), (PAVEMENT, "ground", 0, 0, paving))))
    return np.minimum(z, 300).astype(np.float32), x.astype(np.float32), ids


def building(scene: Scene, side: int, z0: float, z1: float, height: float) -> None:
    """A house along the street: windows, perhaps a gable, a poster in the colours of cars and signs."""
    rng, x, middle = scene.rng, scene.facades[side], scene.facades[side] + side * scene.rng.uniform(3, 6)
    color, ridge = mix(rng, *scene.palette["wall"]), height + max(rng.uniform(-4, 4), 0)
    texture, back = (rng.choice((GRAIN, ROUGH, BRICKS, BRICKS)), rng.random() / 3), 2 * middle - x
    cover = partial(scene.layer, BUILDING, texture=texture)
    front, near = cover(color, z0), cover(color, (z0 + z1) / 2, gain=0.8 - 0.28 * side * scene.sun)
    scene.face(front, (x, 0, z0), (x, height, z0), (middle, ridge, z0), (back, height, z0), (back, 0, z0))
    scene.face(cover("wall", z0), (x, height, z0), (middle, ridge, z0), (middle, ridge, z1), (x, height, z1))
    scene.wall(near, x, (z0, z1), (0, height))
    if z0 > FAR:
        return
    glass, lamp = scene.layer(BUILDING, "glass", z0), scene.layer(BUILDING, (0.6, 0.5, 0.3), z0, glow=1.6)
    rows, columns = math.ceil(height / rng.uniform(2.6, 3.6)), math.ceil((z1 - z0) / rng.uniform(1.8, 3.5))
    wide, tall, inset, sill = (z1 - z0) / columns, height / rows, rng.uniform(0.12, 0.35), rng.uniform(0.15, 0.4)
    for i in range(rows * columns):
        z, y, pane = z0 + wide * (i % columns), tall * (i // columns), rng.choice((glass, glass, glass, lamp))
        scene.wall(pane, x, (z + wide * inset, z + wide * (1 - inset)), (y + tall * sill, y + tall * 0.88))
    for z in [rng.uniform(z0, z1 - 1)] * rng.randint(0, 1):
        y, poster = rng.uniform(0.3, 2.5), scene.layer(BUILDING, mix(rng, *BOARDS), z0)
        scene.wall(poster, x, (z, min(z1, z + rng.uniform(1, 5))), (y, y + rng.uniform(0.5, 1.8)))


def tree(scene: Scene, x: float, z: float) -> None:
    """A trunk below a ragged crown, round or pointed, brighter towards the sun."""
    rng, height, wide = scene.rng, scene.rng.uniform(3, 9), scene.rng.uniform(1.0, 2.6)
    trunk, corners, color = height * rng.uniform(0.2, 0.45), rng.choice((18, 18, 3)), mix(rng, *scene.palette["leaf"])
    y, tall, leaves = (height + trunk) / 2, (height - trunk) / 2, (LEAVES, rng.uniform(0.3, 0.6))
    scene.shadow(x, wide, (z - wide / 2, z + wide / 2), 0.4 * height)
    scene.bar(scene.layer(VEGETATION, mix(rng, DARK, BRICK), z), z, (x, 0), (x, y), 0.14)
    for scale, gain in ((1.0, 0.65), (0.72, 0.9)):
        layer, across = scene.layer(VEGETATION, color, z, 0, leaves, gain=gain), x + (1 - scale) * wide * scene.sun
        scene.blob(layer, z, (across, y), (wide * scale, tall * scale), corners, ragged=0.35)


def fence(scene: Scene, x: float, z: float) -> list[Item]:
    """Rails, boards or a hedge, in sections, for people may stand before and behind."""
    rng, height, long = scene.rng, scene.rng.uniform(0.7, 1.6), scene.rng.uniform(0.6, 1.8)
    kinds = ((FENCE, "fence", GRAIN, 0.0), (FENCE, "fence", GRAIN, 0.25), (VEGETATION, "leaf", LEAVES, 0.0))
    label, material, texture, gap = rng.choice(kinds)
    rail, post = (scene.layer(label, material, z, 0, (texture, 0.3)) for _ in range(2))
    items: list[Item] = []
    for near in (z + i * long for i in range(rng.randint(4, 14))):
        items.append((near, partial(scene.bar, post, near, (x, 0), (x, height), 0.06)))
        items.append((near, partial(scene.wall, rail, x, (near, near + long), (0.1, height * (0.5 - gap)))))
        items.append((near, partial(scene.wall, rail, x, (near, near + long), (height * (0.5 + gap), height))))
    return items


def pole(scene: Scene, x: float, z: float) -> None:
    """A lamp post, a bollard, or a post with one or two signs."""
    rng, thick, layer = scene.rng, scene.rng.uniform(0.08, 0.14), scene.layer(POLE, mix(scene.rng, GREY, MOSS), z)
    height, signs = rng.choice(((rng.uniform(5, 9), 0), (0.9, 0), (rng.uniform(2.2, 3.2), 1), (2.9, 2)))
    scene.bar(layer, z, (x, 0), (x, height), thick)
    if height > 4:
        scene.face(layer, (x, height, z), (0.8 * x, height, z), (0.8 * x, height - 0.2, z))
        scene.blob(scene.layer(POLE, (1.0, 0.9, 0.7), z, glow=1.2), z, (0.8 * x, height - 0.2), (0.28, 0.14))
    for i in range(signs):
        size, corners, thing = rng.uniform(0.38, 0.65), rng.choice((3, 4, 4, 12)), next(scene.counter)
        wide = size * rng.uniform(1.0, 1.7) if corners == 4 else size
        for scale in (1.0, 0.72, 0.3):  # rim, board, symbol
            board = scene.layer(SIGN, mix(rng, *BOARDS), z, thing)
            scene.blob(board, z, (x, height - i), (wide * scale, size * scale), corners)


def car(scene: Scene, x: float, z: float, oncoming: bool) -> None:
    """A car, van or bus: a side view drawn out to a width, the farthest surfaces first."""
    rng, side, body = scene.rng, math.copysign(1, x), mix(scene.rng, *CLOTHS, GREY)
    layer = partial(scene.layer, CAR, z=z, thing=next(scene.counter), texture=(ROUGH, 0.06))
    bus = 1.1, rng.uniform(4.5, 8), 0, rng.uniform(2, 3)
    wide, long, boot, top = rng.choice(((0.88, 4, 0.15, rng.uniform(1.35, 1.75)), (0.88, 4.4, 0.9, 1.45), bus))
    nose = long - 0.8 if boot else long - 0.1
    shape = [(0, 0.3), (0, 0.9), (boot, 1), (boot + 0.4, top), (nose - 0.7, top), (nose, 1), (long, 0.85), (long, 0.3)]
    if oncoming:
        shape = [(long - a, b) for a, b in reversed(shape)]
    rear, roof, glass, dark = layer(body), layer(body, gain=1.0), layer("glass"), layer(mix(rng, DARK))
    scene.shadow(x, wide, (z, z + long), 0.8)
    for (a, b), (c, d) in reversed(list(pairwise(shape))):
        paint = roof if abs(d - b) < 0.2 else glass if min(b, d) > 0.9 else rear
        scene.face(paint, (x - wide, b, z + a), (x + wide, b, z + a), (x + wide, d, z + c), (x - wide, d, z + c))
    flank = x - side * wide
    scene.face(layer(body, gain=0.8 - 0.28 * side * scene.sun), *((flank, b, z + a) for a, b in shape))
    scene.face(glass, *((flank, min(max(b, 0.98), top - 0.12), z + a) for a, b in shape[2:6]))
    for axle in (0.75, long - 0.85):
        scene.face(dark, *((flank, 0.32 + 0.32 * math.sin(t), z + axle + 0.34 * math.cos(t)) for t in range(6)))
    lights = layer((1.0, 0.95, 0.8) if oncoming else (0.75, 0.08, 0.05), glow=1.2)
    for place in (x - 0.75 * wide, x + 0.75 * wide):
        scene.blob(dark, z, (place, 0.25), (0.12, 0.25))
        scene.blob(lights, z, (place, 0.72), (0.2, 0.12), 4)


def person(scene: Scene, x: float, z: float, lift: float = 0.0) -> None:
    """Somebody standing, walking or, ``lift`` metres up, riding."""
    rng, size, lean = scene.rng, scene.rng.uniform(0.65, 1.1), scene.rng.uniform(-0.06, 0.06)
    layer = partial(scene.layer, PERSON, z=z, thing=next(scene.counter), texture=(GRAIN, 0.12))
    trousers, coat, hair = (layer(mix(rng, *CLOTHS), gain=gain) for gain in (0.6, 0.9, 0.4))
    stride, reach, hem = rng.uniform(0.02, 0.35), rng.uniform(0.2, 0.5), rng.choice((0.5, 0.82, 0.85))
    legs = [(trousers, side * stride, 0, side * 0.06, 0.9, 0.09) for side in (-1, 1)]
    arms = [(coat, side * reach, 0.8, side * 0.15, 1.4, 0.07) for side in (-1, 1)]
    for paint, a, b, c, d, thick in (*legs, *arms, (coat, 0, hem, lean, 1.48, 0.21)):
        scene.bar(paint, z, (x + size * a, lift + size * b), (x + size * c, lift + size * d), size * thick)
    scene.shadow(x, 0.25, (z - 0.2, z + 0.2), 1.0)
    scene.blob(layer(mix(rng, SKIN)), z, (x + size * lean, lift + size * 1.62), (size * 0.12, size * 0.15))
    scene.blob(hair, z, (x + size * lean, lift + size * 1.7), (size * 0.13, size * 0.09))


def bicycle(scene: Scene, x: float, z: float, ridden: bool) -> None:
    """Two wheels and a frame from the side, perhaps with a rider."""
    turn, layer = scene.rng.uniform(0.5, 1.0), partial(scene.layer, BICYCLE, z=z, thing=next(scene.counter))
    tyre, frame, spokes = layer(mix(scene.rng, DARK)), layer(mix(scene.rng, *CLOTHS)), layer("ground", gain=0.65)
    scene.shadow(x, 0.6, (z - 0.1, z + 0.1), 0.5)
    for radius, paint in ((0.34, tyre), (0.24, spokes)):
        for place in (x - 0.52 * turn, x + 0.52 * turn):
            scene.blob(paint, z, (place, 0.34), (radius * turn, radius))
    joints = ((-0.52, 0.34), (-0.2, 0.85), (0.4, 0.85), (0.0, 0.34), (-0.2, 0.85), (0.35, 1.0), (0.52, 0.34))
    width = max(round(scene.focal / z * 0.07), 1)
    scene.pen.line([scene.project(x + a * turn, b, z) for a, b in joints], fill=frame, width=width)
    if ridden:
        person(scene, x, z, lift=0.3)


def along(scene: Scene, side: int) -> list[Item]:
    """What stands on one side of the street."""
    rng, kerb, wall, walk = scene.rng, scene.centre + side * scene.half, scene.facades[side], scene.walks[side]
    items: list[Item] = []
    built, height, z = rng.uniform(0.2, 1.0), rng.uniform(3, 12), rng.uniform(0.8, 6)
    while z < 85:
        end = z + rng.uniform(5, 14)
        if rng.random() < built:
            items.append((end, partial(building, scene, side, z, end, height * rng.uniform(0.6, 1.5))))
        elif rng.random() < 0.7:
            items.append((z + 2, partial(tree, scene, wall + side * rng.uniform(0, 4), z + 2)))
        z = end + rng.choice((0.0, 0.0, rng.uniform(1, 8)))
    for x in (wall - side * 0.15, kerb + side * 0.3):
        items += fence(scene, x, rng.uniform(2, 14)) if rng.random() < 0.4 else []

    def add(paint: Callable[..., None], numbers: tuple[int, ...], low: float, high: float, *extra: bool) -> None:
        for z in (4 + 30 * rng.random() ** 2 for _ in range(rng.choice(numbers))):
            items.append((z, partial(paint, scene, kerb + side * rng.uniform(low, high), z, *extra)))

    add(tree, (0, 1, 2, 4), 0.5, 1.2)
    add(pole, (0, 1, 2, 3, 4), 0.3, 0.6)
    add(person, (0, 1, 2, 4, 6), 0.5, walk)
    add(bicycle, (0, 1, 1, 2), -0.8, walk, rng.random() < 0.4)
    parked, z = rng.choice((0.0, rng.uniform(0.2, 0.9))), rng.uniform(4, 12)
    while z < 60:
        if rng.random() < parked:
            items.append((z, partial(car, scene, kerb - side * rng.uniform(1.0, 1.3), z, side < 0)))
        z += rng.uniform(8.5, 13)
    return items


def draw(rng: Random, height: int, width: int) -> Scene:
    """A whole scene, painted from far to near."""
    scene = Scene(rng, height, width)
    for _ in range(rng.randint(3, 14)):  # houses and woods that close the street
        x, z, wide, tall = rng.uniform(-80, 80), rng.uniform(85, 130), rng.uniform(5, 14), rng.uniform(4, 24)
        if rng.random() < 0.5:
            scene.bar(scene.layer(BUILDING, "wall", z, 0, (ROUGH, 0.1)), z, (x, 0), (x, tall), wide)
        else:
            scene.blob(scene.layer(VEGETATION, "leaf", z, 0, (LEAVES, 0.2)), z, (x, 0), (wide * 2, tall / 3))
    items = along(scene, -1) + along(scene, 1)
    for _ in range(rng.randint(0, 3)):
        x, z = scene.centre + rng.uniform(-0.6, 0.6) * scene.half, rng.uniform(5, 40)
        traffic = partial(car, oncoming=x < scene.centre), partial(bicycle, ridden=True), person
        items.append((z, partial(rng.choices(traffic, (3, 1, 1))[0], scene, x, z)))
    for _, paint in sorted(items, key=lambda item: -item[0]):
        paint()
    if rng.random() < 0.2:
        bonnet = scene.layer(IGNORE, mix(rng, *CLOTHS), 1)  # of the car that carries the camera
        scene.pen.ellipse((-0.2 * width, height * rng.uniform(0.86, 0.95), 1.2 * width, 2 * height), fill=bonnet)
    return scene


def annotate(scene: Scene) -> tuple[Array, Array]:
    """Class ids and instance ids, (H, W): IGNORE and 0 on slivers of things and on the borders of every fourth."""
    mask, things = np.array((scene.labels, scene.things))[:, np.asarray(scene.image)]
    border = (np.diff(things, axis=0, prepend=things[:1]) != 0) | (np.diff(things, prepend=things[:, :1]) != 0)
    sliver = (np.bincount(things.ravel()) < SMALLEST)[things]
    unknown = (things > 0) & (sliver | (border & (things % 4 == 0)))
    return np.where(unknown, IGNORE, mask), np.where(unknown, 0, things)


def smooth(rng: np.random.Generator, scene: Scene, bumps: float) -> Array:
    """Smooth noise (H, W) in [-1, 1] with about ``bumps`` bumps across."""
    cells = rng.random((max(round(bumps * scene.height / scene.width), 2), max(round(bumps), 2)), np.float32) * 2 - 1
    return np.asarray(Image.fromarray(cells).resize((scene.width, scene.height), Image.Resampling.BICUBIC))


def textures(scene: Scene, rng: np.random.Generator) -> Array:
    """All textures (T, H, W), about in [-1, 1]; slabs and bricks follow the perspective and fade with distance."""
    grain = rng.random((scene.height, scene.width), np.float32) * 2 - 1
    patches, specks = smooth(rng, scene, rng.uniform(5, 20)), smooth(rng, scene, rng.uniform(30, 60))
    rough = patches + 0.5 * specks + 0.3 * grain - (np.abs(patches) < 0.02)  # cracks
    leaves = smooth(rng, scene, scene.width / rng.uniform(2.5, 6)) + 0.5 * grain
    slab, course = rng.uniform(0.7, 1.6), rng.uniform(0.3, 0.6)
    joints = (phase(scene.x / slab) < 0.12) | (phase(scene.z / slab) < 0.12)
    slabs = np.where(joints, np.float32(-1), np.float32(0.3)) * np.clip(1.3 - scene.z / 15, 0, 1)
    right = np.arange(scene.width, dtype=np.float32) + (0.5 - scene.vanishing)
    facade = np.where(right < 0, np.float32(scene.facades[-1]), np.float32(scene.facades[1]))
    z = np.clip(scene.focal * facade / right, 1, 100)
    y = scene.eye - (np.arange(scene.height, dtype=np.float32)[:, None] + 0.5 - scene.horizon) * (z / scene.focal)
    joints = (phase(y / course) < 0.2) | (phase((z / course + np.floor(y / course)) / 2) < 0.12)
    bricks = np.where(joints, np.float32(1), np.float32(-0.2)) * np.clip(1.3 - z / 18, 0, 1) + 0.2 * grain
    return np.stack([grain, rough, leaves, slabs, bricks])


def sky(scene: Scene, domain: str, pick: Random, rng: np.random.Generator) -> tuple[Array, Array]:
    """The sky (3, H, W) with its clouds, and the colour (3, 1, 1) of the haze."""
    zenith, haze = (np.array(mix(pick, row), np.float32)[:, None, None] for row in pick.choice(SKIES[domain]))
    up = np.clip(1 - np.arange(scene.height, dtype=np.float32) / scene.horizon, 0, 1)[:, None]
    clouds = smooth(rng, scene, pick.uniform(2, 6)) + 0.5 * smooth(rng, scene, pick.uniform(8, 20))
    cover = np.clip(clouds * pick.uniform(0, 1.5) + pick.uniform(-0.8, 0.4), 0, 1)
    return haze + (zenith - haze) * up + ((0.4 * haze + 0.55) * haze.mean() - haze) * cover, haze


def render(scene: Scene, domain: str, seed: str) -> Array:
    """The image uint8 (H, W, 3) under one domain's light, weather and camera."""
    pick = Random(f"{seed} {domain}")
    rng = np.random.default_rng(pick.getrandbits(64))
    look = {name: pick.uniform(*spans[DOMAINS.index(domain)]) for name, spans in LOOKS.items()}
    ids = np.asarray(scene.image)
    surface, on_ground = np.array(scene.looks, np.float32).T.take(ids, 1), ids <= GROUND
    z, glow, texture, strength = surface[3:]
    pattern = np.take_along_axis(textures(scene, rng), texture[None].astype(int), 0)[0] * strength
    shade = np.asarray(scene.shadows.filter(ImageFilter.BoxBlur(1)), np.float32) / 255 * on_ground
    light = (1 + pattern * look["texture"]) * (1 - shade * look["shadow"]) * look["exposure"]
    clear = np.exp(-look["haze"] * np.where(on_ground, scene.z, z))
    above, haze = sky(scene, domain, pick, rng)
    color = haze + (surface[:3] * np.maximum(light, glow * look["lamps"]) - haze) * clear
    color = np.where(ids == 0, above, color).reshape(3, -1)
    grading = look["saturation"] * np.eye(3) + (1 - look["saturation"]) / 3
    grading *= look["contrast"] * (1 + look["warmth"] * np.array([[1], [0], [-1]]))
    color = (grading.astype(np.float32) @ color + 0.45 * (1 - look["contrast"])).reshape(3, *ids.shape)
    corner = np.linspace(-1, 1, scene.height)[:, None] ** 2 + np.linspace(-1, 1, scene.width) ** 2
    color *= (255 - 127 * look["vignette"] * corner).astype(np.float32)
    sharp = Image.fromarray(color.clip(0, 255).astype(np.uint8).transpose(1, 2, 0).copy())
    soft = np.asarray(sharp.filter(ImageFilter.BoxBlur(look["blur"] * scene.height / 128)))
    noise = (rng.random(soft.shape, np.float32) - 0.5) * (255 * math.sqrt(12) * look["noise"])
    return np.asarray((soft + noise).clip(0, 255), np.uint8)


class Scenes(Dataset[Sample]):
    """Scenes drawn when they are asked for; scene i depends on nothing but (seed, domain, i).

    Args:
        length: how many.
        size: height and width in pixels; scene i has the same layout at any size.
        domain: "a" (day) or "b" (dusk, haze, a poorer camera): the same labels, another look.
        seed: another seed, other scenes.
        panoptic: samples hold ``masks``, ``labels`` and ``is_crowd`` too: a row per thing, then one per class of stuff.
    """

    def __init__(
        self, length: int, size: Size = (128, 192), *, domain: str = "a", seed: int = 0, panoptic: bool = False
    ) -> None:
        if length < 0:
            raise ValueError(f"length {length} is negative")
        if len(size) != 2 or min(size) < 16:
            raise ValueError(f"size {size} is no height and width of 16 pixels or more")
        if domain not in DOMAINS:
            raise ValueError(f"domain {domain!r} is none of {', '.join(DOMAINS)}")
        self.length, self.size, self.domain, self.seed, self.panoptic = length, size, domain, seed, panoptic

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        image, mask, things = self.arrays(index)
        picture = torch.from_numpy(image).permute(2, 0, 1).contiguous()
        sample: Sample = {"image": picture, "mask": torch.from_numpy(mask), "name": f"scene_{index:05d}"}
        if self.panoptic:
            keys = np.where(things > 0, things, mask + 10**6)  # things first, then stuff
            rows = np.unique(keys[mask != IGNORE])
            sample["masks"] = torch.from_numpy(keys == rows[:, None, None])
            sample["labels"] = torch.tensor([int(mask[keys == row][0]) for row in rows])
            sample["is_crowd"] = torch.zeros(len(rows), dtype=torch.bool)
        return sample

    def arrays(self, index: int) -> tuple[Array, Array, Array]:
        """Image uint8 (H, W, 3), class ids int64 (H, W) and instance ids (H, W), 0 where there is no thing."""
        if not 0 <= index < self.length:
            raise IndexError(f"scene {index} of {self.length}")
        rng = Random(f"{self.seed} {index}")
        scene = draw(rng, *self.size)
        return render(scene, self.domain, f"{self.seed} {index}"), *annotate(scene)


def write(folder: Path, *, train: int, val: int = 0, test: int = 0, unlabelled: int = 0,
          size: Size = (128, 192), domain: str = "a", seed: int = 0, instances: bool = False) -> None:  # fmt: skip
    """Writes a data set: scenes for ``train``, then ``val``, then ``test``, and more as images alone.

    Args:
        folder: new or empty.
        train, val, test: numbers of labelled scenes.
        unlabelled: number of images in ``folder/unlabelled``, which holds nothing else.
        size, domain, seed: as of `Scenes`.
        instances: whether to write ``instances/NAME.png`` too: 16-bit, 0 where there is no thing.
    """
    counts = {"train": train, "val": val, "test": test, "unlabelled": unlabelled}
    if min(counts.values()) < 0:
        raise ValueError(f"a number of scenes is negative: {counts}")
    scenes, labelled = Scenes(sum(counts.values()), size, domain=domain, seed=seed), train + val + test
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty; name a new folder")
    for part in ("images", "labels", *["instances"] * instances, *["unlabelled"] * (unlabelled > 0)):
        (folder / part).mkdir(parents=True)
    names = [f"scene_{i:05d}" for i in range(len(scenes))]
    for i, name in enumerate(names):
        image, mask, things = scenes.arrays(i)
        part = "images" if i < labelled else "unlabelled"
        Image.fromarray(image).save(folder / part / f"{name}.jpg", quality=92, subsampling=0)
        if i < labelled:
            write_label_map(folder / "labels" / f"{name}.png", mask, COLORS)
        if i < labelled and instances:
            Image.fromarray(things.astype(np.uint16)).save(folder / "instances" / f"{name}.png")
    splits = {"train": names[:train], "val": names[train : train + val], "test": names[train + val : labelled]}
    classes = {"classes": CLASSES, "colors": COLORS, "things": THINGS, "ignore": IGNORE}
    (folder / "dataset.json").write_text(json.dumps({"name": "scenes", **classes, "splits": splits}), encoding="utf-8")
