"""Objects of rare classes cut out of their pictures and put into others, where they stand as large as perspective says
(after the abstract of CN114037637A; what it leaves open is decided here).

    (1)  v  =  argmin sum_p w_p (n_p . (v - p))^2      the vanishing point, of pixels p on slanted edges of normal n_p
    (2)  s  =  (y - v_y) / (y' - v'_y)                 scale of an object whose foot is at y, cut out at y' of a picture
                                                       with vanishing point v'; only s in [0.4, 2.5] are taken

An object is a connected component, or one by its number where objects are told apart, that the picture's border does
not cut. It is warped by moving the corners of its box, scaled by (2), and stands on a class that objects of its class
stand on in the labelled pictures. The farthest is put in first. Pictures get a soft edge, masks a hard one.
"""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageFilter
from scipy import ndimage

from segue.data.decoder import Decoder, mask_image
from segue.data.listing import Pair
from segue.data.sample import IGNORE, Array, to_rgb
from segue.data.tones import read_eight_bit
from segue.data.transforms import uniform
from segue.errors import DataError

AUTO = "auto"
SCANNED = 500  # pictures that objects are looked for in
COUNTED = 100  # pictures whose pixels are counted to tell what is rare
KEPT = 200  # objects of a class
SMALLEST = 32  # pixels of an object
SCALES = (0.4, 2.5)
JITTER = 0.1  # of the box, by which each corner moves at most
CHANCE = 0.5  # of a view to get any
MOST = 3  # objects a view
RIM = 10  # rows below a foot, in which what it stands on is looked for
RARE = 0.5  # of the median share of pixels, below which a class is rare
COMMON_GROUND = 0.1  # share of the objects of a class that stand on another, for that one to count
Reader = Callable[[Pair], tuple[Array, Array | None]]  # of class ids (H, W), and of the objects' numbers: see `objects`


@dataclass(frozen=True, eq=False)
class Cutout:
    """An object.

    Args:
        label: its class.
        picture: uint8 (h, w, 3), its box.
        shape: bool (h, w), its pixels.
        foot: rows from the vanishing point down to its lowest pixel, in the picture that it is from.
    """

    label: int
    picture: Array
    shape: Array
    foot: float


@dataclass(frozen=True, eq=False)
class Pasted:
    """A picture with objects put in.

    Args:
        picture: uint8 (H, W, 3).
        numbers: int32 (H, W), i + 1 where object i is seen, 0 where none is.
        labels: class id of each object.
    """

    picture: Array
    numbers: Array
    labels: tuple[int, ...] = ()

    def over(self, ids: Array) -> Array:
        """Class ids uint8 (H, W), the objects over them."""
        if not self.labels:
            return ids
        return np.where(self.numbers > 0, np.array([IGNORE, *self.labels], np.uint8)[self.numbers], ids)


@dataclass(frozen=True, eq=False)
class CopyPaste:
    """Puts objects into pictures; every draw comes from torch's generator.

    Args:
        cutouts: of each class.
        ground: of each class, those that it stands on.
    """

    cutouts: Mapping[int, tuple[Cutout, ...]]
    ground: Mapping[int, tuple[int, ...]]

    def __call__(self, picture: Array, ids: Array) -> Pasted:
        """Picture uint8 (H, W, 3) with class ids uint8 (H, W), with objects put in, or as it is."""
        numbers = np.zeros(ids.shape, np.int32)
        if uniform(0, 1) >= CHANCE:
            return Pasted(picture, numbers)
        horizon = vanishing_point(picture)[1]
        places = [self._place(ids, horizon) for _ in range(1 + _draw(MOST))]
        found = sorted((one for one in places if one), key=lambda one: one[1])
        picture = picture.copy()
        for number, (cutout, (y, x)) in enumerate(found, 1):
            _put(picture, numbers, cutout, number, (y, x), (y - horizon) / cutout.foot)
        return Pasted(picture, numbers, tuple(cutout.label for cutout, _ in found))

    def _place(self, ids: Array, horizon: float) -> tuple[Cutout, tuple[int, int]] | None:
        """An object and the (row, column) of its foot; None where nothing that it stands on is at a fit distance."""
        labels = sorted(self.cutouts)
        label = labels[_draw(len(labels))]
        cutout = self.cutouts[label][_draw(len(self.cutouts[label]))]
        low, high = (horizon + scale * cutout.foot for scale in SCALES)
        top, bottom = max(0, int(np.ceil(low))), min(len(ids), int(high) + 1)
        if top >= bottom:
            return None
        places = np.flatnonzero(np.isin(ids[top:bottom], self.ground[label]))
        if not len(places):
            return None
        row, column = divmod(int(places[_draw(len(places))]), ids.shape[1])
        return cutout, (top + row, column)


def _draw(count: int) -> int:
    """A number in 0 to count - 1, by torch's generator."""
    return int(torch.randint(count, ()))


def vanishing_point(picture: Array) -> tuple[float, float]:
    """Eq. 1: (x, y) in pixels; (W / 2, 0.4 H) unless what is found lies in the middle 60 % of both sides."""
    height, width = picture.shape[:2]
    default = (width / 2, 0.4 * height)
    scale = min(1.0, 160 / max(height, width))
    size = (max(8, round(width * scale)), max(8, round(height * scale)))
    small = np.asarray(Image.fromarray(picture).convert("L").resize(size, Image.Resampling.BOX), np.float64)
    down, right = np.gradient(ndimage.gaussian_filter(small, 1.0))
    strength = np.hypot(down, right)
    slanted = np.minimum(abs(down), abs(right)) > np.sin(np.radians(10)) * strength
    chosen = slanted & (strength > max(4.0, float(np.quantile(strength, 0.85))))
    if chosen.sum() < 16:
        return default
    y, x = np.nonzero(chosen)
    weight = strength[chosen]
    normal = np.stack([right[chosen], down[chosen]], 1) / weight[:, None]
    along = (normal * np.stack([x, y], 1)).sum(1)
    found = np.array([size[0] / 2, 0.4 * size[1]])
    for tolerance in np.geomspace(0.3, 0.02, 10) * max(size):  # first all edges, then those that agree
        robust = weight / (1 + ((normal @ found - along) / tolerance) ** 2) ** 2
        matrix = (normal * robust[:, None]).T @ normal
        if np.linalg.det(matrix) < 1e-6 * np.trace(matrix) ** 2:
            return default
        found = np.linalg.solve(matrix, (normal * robust[:, None]).T @ along)
    place = (found + 0.5) / size
    is_inside = bool((abs(place - 0.5) <= 0.3).all())
    return (float(place[0] * width), float(place[1] * height)) if is_inside else default


def objects(ids: Array, label: int, numbers: Array | None = None) -> list[tuple[slice, slice, Array]]:
    """Rows, columns and shape of each object of a class that is large enough and that the border does not cut.

    Args:
        ids: classes (H, W).
        label: of the class.
        numbers: of objects (H, W), from 1 on; classes that have none of them consist of connected components.
    """
    is_it = ids == label
    if numbers is None or not numbers[is_it].any():
        numbered, _ = ndimage.label(is_it, structure=np.ones((3, 3)))
    else:
        numbered = np.where(is_it, numbers, 0)
    found = []
    for number, box in enumerate(ndimage.find_objects(numbered), 1):
        if box is None:  # the number of an object of another class
            continue
        rows, columns = box
        is_cut = rows.start == 0 or columns.start == 0 or rows.stop == ids.shape[0] or columns.stop == ids.shape[1]
        shape = numbered[rows, columns] == number
        if not is_cut and shape.sum() >= SMALLEST:
            found.append((rows, columns, shape))
    return found


def by_class(decoder: Decoder) -> Reader:
    """Reads masks that tell no objects apart."""
    return lambda pair: (decoder.known(np.asarray(mask_image(pair)), pair.mask), None)


def learn(
    pairs: Sequence[Pair], read: Reader, classes: Sequence[str], wanted: str, *, seed: int, new: Sequence[str] = ()
) -> tuple[CopyPaste | None, str]:
    """Objects of labelled pictures, and what they are in words; neither where nothing is wanted.

    Args:
        pairs: with masks.
        read: of their class ids and objects.
        classes: names by id.
        wanted: names of classes with commas between, or ``auto`` for those that are rare; empty for none.
        seed: of which pictures and objects, where there are many.
        new: classes that ``auto`` takes instead, and besides which none can be named. Where they alone are labelled,
            so that nothing known is below them, pixels of no known class are their ground.

    Raises:
        DataError: no such class, none that is rare, or no object of them to cut out.
    """
    if not wanted:
        return None, ""
    shuffled = list(pairs)
    random.Random(f"copy_paste {seed}").shuffle(shuffled)
    chosen = shuffled[:SCANNED]
    if wanted == AUTO:
        labels = [classes.index(name) for name in new] if new else rare(chosen, read, classes)
    else:
        labels = _named(wanted, classes, new)
    cutouts: dict[int, list[Cutout]] = {label: [] for label in labels}
    under: dict[int, Counter[int]] = {label: Counter() for label in labels}
    for pair in chosen:
        wanting = [label for label in labels if len(cutouts[label]) < KEPT]
        if not wanting:
            break
        ids, numbers = read(pair)
        here = [(label, one) for label in wanting for one in objects(ids, label, numbers)]
        if not here:
            continue
        picture = np.asarray(to_rgb(read_eight_bit(pair.image, pair.tones), pair.image))
        horizon = vanishing_point(picture)[1]
        for label, (rows, columns, shape) in here:
            foot = rows.stop - 1
            if foot - horizon < 1:  # it hangs in the sky: how far away it is, nobody knows
                continue
            cutouts[label].append(Cutout(label, picture[rows, columns].copy(), shape, foot - horizon))
            column = columns.start + int(np.flatnonzero(shape[-1]).mean())
            under[label].update(_below(ids[rows.stop :, column], label))
    ground = {label: _common(under[label], len(cutouts[label])) or ((IGNORE,) if new else ()) for label in labels}
    usable = [label for label in labels if cutouts[label] and ground[label]]
    if not usable:
        names = ", ".join(classes[label] for label in labels)
        raise DataError(
            f"--copy-paste {wanted}: no object of {names} stands free in {len(chosen)} labelled images "
            f"({SMALLEST} pixels or more, not cut by the border, below the horizon, on another class); leave it out, "
            "or name others"
        )
    told = ", ".join(f"{classes[label]} ({len(cutouts[label][:KEPT])} objects)" for label in usable)
    paste = CopyPaste(
        {label: tuple(cutouts[label][:KEPT]) for label in usable}, {label: ground[label] for label in usable}
    )
    return paste, f"copy-paste: {told}"


def rare(pairs: Sequence[Pair], read: Reader, classes: Sequence[str]) -> list[int]:
    """Classes with less than `RARE` of the median share of pixels, among those that there are.

    Raises:
        DataError: there is none.
    """
    pixels = np.zeros(256, np.int64)
    for pair in pairs[:COUNTED]:
        pixels += np.bincount(read(pair)[0].ravel(), minlength=256)
    shares = pixels[: len(classes)]
    median = float(np.median(shares[shares > 0])) if (shares > 0).any() else 0.0
    found = [label for label, count in enumerate(shares.tolist()) if 0 < count < RARE * median]
    if not found:
        raise DataError(
            f"--copy-paste {AUTO}: no class is rare (all have at least {RARE:.0%} of the median share of pixels); "
            f"name some, as --copy-paste {classes[-1]}, or leave the option out"
        )
    return found


def _named(wanted: str, classes: Sequence[str], new: Sequence[str]) -> list[int]:
    """Ids of the classes that are named."""
    found, known = [], new or classes
    names = [wanted] if wanted in classes else [part.strip() for part in wanted.split(",")]
    for name in filter(None, names):
        if new and name in classes and name not in new:
            raise DataError(f"--copy-paste {name}: only new classes are learnt from labels; name of {', '.join(new)}")
        if name not in classes:
            raise DataError(f"--copy-paste {name}: no such class; name of {', '.join(known)}, or give {AUTO}")
        found.append(classes.index(name))
    if not found:
        raise DataError(f"--copy-paste {wanted!r} names no class; name of {', '.join(known)}, or give {AUTO}")
    return sorted(set(found))


def _below(column: Array, label: int) -> set[int]:
    """What the first known pixels below a foot are; masks may leave a rim around objects unknown."""
    known = column[:RIM]
    return set(known[(known != IGNORE) & (known != label)][:3].tolist())


def _common(under: Counter[int], total: int) -> tuple[int, ...]:
    """What enough of the objects stand on."""
    return tuple(sorted(label for label, count in under.items() if count >= COMMON_GROUND * total))


# -- putting one in ----------------------------------------------------------------------------------------------------


def _put(
    picture: Array, numbers: Array, cutout: Cutout, number: int, foot: tuple[int, int], scale: float
) -> None:  # fmt: skip
    """Draws an object into a picture, and its number into ``numbers``, its lowest pixel at ``foot``."""
    colors, shape = warped(cutout, scale)
    if not shape.any():
        return
    lowest = int(np.flatnonzero(shape.any(1))[-1])
    middle = int(np.flatnonzero(shape[lowest]).mean())
    soft = np.asarray(Image.fromarray(shape.astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(1)), np.float32)
    top, left = foot[0] - lowest, foot[1] - middle
    height, width = numbers.shape
    rows, columns = (
        slice(max(0, a), min(b, a + n)) for a, b, n in zip((top, left), (height, width), shape.shape, strict=True)
    )
    inner = (slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left))
    opacity = soft[inner][..., None] / 255
    mixed = opacity * colors[inner] + (1 - opacity) * picture[rows, columns]
    picture[rows, columns] = mixed.round().astype(np.uint8)
    numbers[rows, columns][shape[inner]] = number


def warped(cutout: Cutout, scale: float) -> tuple[Array, Array]:
    """An object scaled and seen a little from elsewhere: colours float32 (h, w, 3) and shape bool (h, w)."""
    height, width = cutout.shape.shape
    margin = [(max(2, round(2 * JITTER * side)),) * 2 for side in (height, width)]
    colors = Image.fromarray(np.pad(cutout.picture, (*margin, (0, 0)), mode="edge"))
    shape = Image.fromarray(np.pad(cutout.shape.astype(np.uint8) * 255, margin))
    size = (max(1, round(colors.width * scale)), max(1, round(colors.height * scale)))
    moved = [(uniform(-JITTER, JITTER) * width * scale, uniform(-JITTER, JITTER) * height * scale) for _ in range(4)]
    corners = [(0, 0), (size[0], 0), (size[0], size[1]), (0, size[1])]
    matrix = homography(corners, [(x + dx, y + dy) for (x, y), (dx, dy) in zip(corners, moved, strict=True)])
    bilinear, perspective = Image.Resampling.BILINEAR, Image.Transform.PERSPECTIVE
    seen, solid = (
        image.resize(size, bilinear).transform(size, perspective, matrix, bilinear) for image in (colors, shape)
    )
    return np.asarray(seen, np.float32), np.asarray(solid) >= 128


def homography(
    points: Sequence[tuple[float, float]], images: Sequence[tuple[float, float]]
) -> tuple[float, ...]:  # fmt: skip
    """a to h with  x' = (a x + b y + c) / (g x + h y + 1),  y' = (d x + e y + f) / (g x + h y + 1)  for four points."""
    rows, values = [], []
    for (x, y), (u, v) in zip(points, images, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return tuple(np.linalg.solve(np.array(rows, np.float64), np.array(values, np.float64)).tolist())
