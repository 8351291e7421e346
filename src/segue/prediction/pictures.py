"""A model over pictures: class maps, overlays, and maps of probability and uncertainty."""

import contextlib
import glob
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from segue.data.labelling_files import labelme_file, offered_labels, write_cvat
from segue.data.layouts import open_images, split_address
from segue.data.listing import Pair
from segue.data.packed import Packed
from segue.data.sample import (
    IMAGE_SUFFIXES,
    UNREADABLE,
    Array,
    Color,
    kind_of,
    orientation,
    read_label_map,
    write_label_map,
)
from segue.data.tones import read_rgb
from segue.disk import whole, write_atomically
from segue.errors import DataError
from segue.prediction.tiling import Grid, blended
from segue.weights import Model


@dataclass(frozen=True)
class Prediction:
    """What a model says of one picture.

    Args:
        name: of the picture, without suffix; may hold a folder.
        image: uint8 (H, W, 3).
        classes: uint8 (H, W) ids.
        probability: float32 (H, W), of the predicted class.
        uncertainty: float32 (H, W) in [0, 1], entropy over its largest value.
    """

    name: str
    image: Array
    classes: Array
    probability: Array
    uncertainty: Array


def find_images(sources: Sequence[str], *, outside: Path | None = None) -> tuple[Pair, ...]:
    """Pictures named by files, folders, splits of data sets (``DIR:split``) and globs, each once, in the order named.

    Args:
        sources: names of them.
        outside: a folder whose pictures are left out: what comes of the others is written there.

    Raises:
        DataError: a source is missing, is no picture, or holds none; or two pictures have one name.
    """
    found: dict[str, Path] = {}
    written = outside.resolve() if outside else None
    for source in sources:
        path, split = split_address(source)
        pictures: Sequence[tuple[str, Path]]
        if path.is_dir():
            pictures = [(pair.name, pair.image) for pair in open_images(source)]
        elif path.is_file() and split is None:
            pictures = [(path.stem, _image_file(path))]
        else:
            pictures = [(Path(p).stem, _image_file(Path(p))) for p in sorted(glob.glob(source, recursive=True))]
            if not pictures:
                raise DataError(f"{source}: no such file, folder or match")
        for name, image in pictures:
            if written and not isinstance(image, Packed) and image.resolve().is_relative_to(written):
                continue
            if name in found and found[name].resolve() != image.resolve():
                raise DataError(f"{found[name]} and {image} would both be written as {name}.png; predict them apart")
            found[name] = image
    if not found:
        raise DataError(f"{', '.join(sources)}: no picture but those in {outside}, where predictions go")
    return tuple(Pair(name, image) for name, image in found.items())


def _image_file(path: Path) -> Path:
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise DataError(f"{path} is no image by its name ({', '.join(IMAGE_SUFFIXES)})")
    return path


FEW = 21  # classes whose probabilities take 0.35 GB where 4 MP go through in one pass


@dataclass(frozen=True)
class How:
    """How a picture goes through a model.

    Args:
        flips: also mirrored, and averaged.
        scales: sizes it goes through at, and averaged; 1 is its own.
        temperature: divides the logits; see `segue.calibration`.
        grid: of the tiles of pictures that are too large for one pass.
        largest: pixels that go through in one pass, of a model with at most `FEW` classes; see `pixels`.
    """

    flips: bool = False
    scales: tuple[float, ...] = (1.0,)
    temperature: float = 1.0
    grid: Grid = field(default_factory=Grid)
    largest: int = 1 << 22

    @property
    def is_once(self) -> bool:
        """Whether the model's own probabilities of one pass are what is asked for."""
        return not self.flips and self.scales == (1.0,) and self.temperature == 1

    def pixels(self, classes: int) -> int:
        """Those of a picture that goes through whole: ``largest``, or as many as take the memory of that with `FEW`
        classes, at the largest of `scales`."""
        return int(self.largest * FEW // max(FEW, classes) / max(1.0, *self.scales) ** 2)


WHOLE = How()
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # how its files begin
JPEG_SIDE = 65_500  # most pixels of a side in a JPEG file


@torch.inference_mode()
def probabilities(model: Model, image: Tensor, how: How = WHOLE) -> Tensor:
    """Of each class, in one pass a view: (bands, H, W) -> float32 (K, H, W) on the CPU."""
    device = next(model.parameters()).device
    height, width = image.shape[-2:]
    views = []
    for scale in how.scales:
        view = image[None].to(device)
        if scale != 1:
            size = (max(1, round(height * scale)), max(1, round(width * scale)))
            view = F.interpolate(view.float(), size, mode="bilinear", align_corners=False, antialias=scale < 1)
        for is_mirrored in (False, True) if how.flips else (False,):
            logits = model(view.flip(-1) if is_mirrored else view).float()
            logits = logits.flip(-1) if is_mirrored else logits
            if scale != 1:
                logits = F.interpolate(logits, (height, width), mode="bilinear", align_corners=False)
            logits = logits if how.temperature == 1 else logits / how.temperature
            views.append(logits[0].softmax(0))
    return (torch.stack(views).mean(0) if len(views) > 1 else views[0]).cpu()


def predict_image(model: Model, image: Tensor, how: How = WHOLE) -> tuple[Tensor, Tensor, Tensor]:
    """(class ids, probability of the class, entropy over ln K), each (H, W), of one picture (bands, H, W)."""
    height, width = image.shape[-2:]
    if height * width <= how.pixels(len(model.spec.classes)):
        return _read(probabilities(model, image, how))
    classes = torch.zeros(height, width, dtype=torch.uint8)
    top_probability, uncertainty = torch.zeros(height, width), torch.zeros(height, width)

    def window(top: int, left: int, rows: int, columns: int) -> Array:
        return probabilities(model, image[:, top : top + rows, left : left + columns], how).numpy()

    for top, left, found in blended(window, height, width, how.grid):
        there = (slice(top, top + found.shape[1]), slice(left, left + found.shape[2]))
        classes[there], top_probability[there], uncertainty[there] = _read(torch.from_numpy(found))
    return classes, top_probability, uncertainty


def _read(found: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities (K, H, W) as class, its probability, and entropy over ln K."""
    top, classes = found.max(0)
    entropy = torch.special.entr(found).sum(0) / math.log(max(2, len(found)))
    return classes.to(torch.uint8), top, entropy.clamp(0, 1)


def predict(model: Model, pairs: Sequence[Pair], how: How = WHOLE) -> Iterator[Prediction]:
    """What ``model``, put into evaluation mode, says of each picture, one at a time.

    Raises:
        DataError: a picture cannot be read.
    """
    model.eval()
    for pair in pairs:
        image = np.array(read_rgb(pair.image, pair.tones or model.spec.tones))
        classes, probability, uncertainty = predict_image(model, torch.from_numpy(image).permute(2, 0, 1), how)
        yield Prediction(pair.name, image, classes.numpy(), probability.numpy(), uncertainty.numpy())


def overlay(image: Array, classes: Array, colors: Sequence[Color], *, opacity: float = 0.5) -> Array:
    """The picture with each pixel tinted by its class: uint8 (H, W, 3)."""
    table = np.zeros((256, 3), np.float32)
    table[: len(colors)] = colors
    mixed = (1 - opacity) * image.astype(np.float32) + opacity * table[classes]
    return mixed.round().astype(np.uint8)


def save_jpeg(picture: Array, path: Path) -> None:
    """Writes uint8 (H, W, 3), made smaller where JPEG has no room for its sides."""
    image = Image.fromarray(picture)
    image.thumbnail((JPEG_SIDE, JPEG_SIDE))
    with whole(path) as file:
        image.save(file, quality=90)


def gray(values: Array) -> Image.Image:
    """Values in [0, 1] as an 8-bit picture."""
    return Image.fromarray((values * 255).round().astype(np.uint8))


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What is written of each picture beside its class map.

    Args:
        overlays: the picture tinted by class.
        maps: probability and uncertainty.
        run_lengths: COCO's run lengths as JSON.
        polygons: GeoJSON, with holes; needs the extra ``tiles``.
        labelme: a copy of the picture with LabelMe's file beside it; needs the extra ``tiles``. Not of scenes.
    """

    overlays: bool = True
    maps: bool = False
    run_lengths: bool = False
    polygons: bool = False
    labelme: bool = False


@dataclass
class Account:
    """What became of the pictures: written + there + failed = found.

    Args:
        written: how many were predicted now.
        there: how many an earlier call with the same settings had written.
        failed: why, by path.
    """

    written: int = 0
    there: int = 0
    failed: dict[str, str] = field(default_factory=dict)


PLAIN_KINDS = ("RGB", "RGBX", "RGBA")  # whose first three bands are the picture
GEOREFERENCES = (34735, 50844)  # TIFF tags that say where on Earth a picture lies; the second of them holds RPCs


def is_scene(path: Path, largest: int) -> bool:
    """A TIFF that has a georeference, that Pillow does not read, or one of 8-bit colours too large for one pass.

    Those of other kinds, and those that are not upright, are turned into pictures as all other files are.
    """
    if path.suffix.lower() not in (".tif", ".tiff") or isinstance(path, Packed):
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # of a header no more is read
            header = Image.open(path, formats=("TIFF",))
        with header:
            is_plain = kind_of(header) in PLAIN_KINDS and orientation(header) == 1
            is_large = header.width * header.height > largest
            return (is_large and is_plain) or any(tag in header.tag_v2 for tag in GEOREFERENCES)  # type: ignore[attr-defined]
    except UNREADABLE:  # of another kind of TIFF, or no TIFF at all but its name
        with contextlib.suppress(OSError), path.open("rb") as file:
            return file.read(4) in TIFF
        return False


def write_predictions(
    model: Model,
    pairs: Sequence[Pair],
    out: Path,
    outputs: Outputs | None = None,
    how: How = WHOLE,
    *,
    tick: Callable[[], None] = lambda: None,
) -> Account:
    """Writes ``out/labels/NAME.png`` (of scenes ``.tif``) and what ``outputs`` asks for.

    A picture whose class map is there already is passed over: the class map is written last.
    """
    outputs = outputs or Outputs()
    account = Account()
    model.eval()
    for pair in pairs:
        scene = is_scene(pair.image, how.largest)
        target = place(out, "labels", pair.name, ".tif" if scene else ".png")
        try:
            if target.exists():
                account.there += 1
            else:
                (_write_scene if scene else _write_picture)(model, pair, target, out, outputs, how)
                account.written += 1
        except DataError as error:
            account.failed[str(pair.image)] = str(error)
        tick()
    return account


def _write_picture(model: Model, pair: Pair, target: Path, out: Path, outputs: Outputs, how: How) -> None:
    """All files of a picture, the class map last."""
    found = next(predict(model, [pair], how))
    if outputs.overlays:
        save_jpeg(overlay(found.image, found.classes, model.spec.colors), place(out, "overlays", found.name, ".jpg"))
    if outputs.maps:
        for kind, values in (("probability", found.probability), ("uncertainty", found.uncertainty)):
            with whole(place(out, kind, found.name, ".png")) as path:
                gray(values).save(path)
    with whole(target) as path:
        write_label_map(path, found.classes, model.spec.colors)
        _write_shapes(model, path, pair.name, out, outputs, found.classes)
        if outputs.labelme:
            _write_labelme(pair, out, found.classes, model.spec.classes)


def _write_scene(model: Model, pair: Pair, target: Path, out: Path, outputs: Outputs, how: How) -> None:
    """The same of a scene, window by window; overlays are left out: the class map has a palette."""
    from segue.prediction.scenes import write_scene

    kinds = ("probability", "uncertainty") if outputs.maps else ()
    maps = {kind: place(out, kind, pair.name, ".tif") for kind in kinds}

    def window(pixels: Array) -> Array:
        return probabilities(model, torch.from_numpy(pixels), how).numpy()

    with whole(target) as path:
        write_scene(
            pair.image, {"labels": path, **maps}, window, how.grid, bands=model.spec.in_channels,
            tones=model.spec.tones, colors=model.spec.colors,
        )  # fmt: skip
        if outputs.run_lengths or outputs.polygons:
            _write_shapes(model, path, pair.name, out, outputs, None)


def _write_shapes(model: Model, labels: Path, name: str, out: Path, outputs: Outputs, classes: Array | None) -> None:
    """Run lengths and polygons of a label map; of a scene it is read from its file."""
    from segue.prediction.scenes import read_labels
    from segue.prediction.shapes import write_polygons, write_run_lengths

    if outputs.run_lengths:
        ids = read_labels(labels) if classes is None else classes
        write_run_lengths(place(out, "run_lengths", name, ".json"), ids, model.spec.classes)
    if outputs.polygons:
        write_polygons(place(out, "polygons", name, ".geojson"), labels, model.spec.classes)


def _write_labelme(pair: Pair, out: Path, labels: Array, classes: Sequence[str]) -> None:
    """``out/labelme``: the picture, its file, and ``labels.txt``, which keeps the order of the classes."""
    from segue.prediction.shapes import named_polygons

    file = place(out, "labelme", pair.name, ".json")
    names = file.parents[pair.name.count("/")] / "labels.txt"
    if not names.exists():
        write_atomically(names, "".join(f"{name}\n" for name in offered_labels(classes)).encode())
    image = file.with_suffix(pair.image.suffix)
    with whole(image) as path:
        path.write_bytes(pair.image.read_bytes())
    write_atomically(file, labelme_file(image.name, labels.shape[::-1], named_polygons(labels, classes)))


def write_cvat_task(pairs: Sequence[Pair], out: Path, classes: Sequence[str]) -> None:
    """``out/cvat/annotations.xml`` of the class maps in ``out/labels``, those of earlier calls among them."""
    from segue.prediction.shapes import named_polygons

    done = ((pair, out / "labels" / f"{pair.name}.png") for pair in pairs)
    maps = ((f"{pair.name}{pair.image.suffix}", read_label_map(file)) for pair, file in done if file.is_file())
    images = ((name, labels.shape[::-1], named_polygons(labels, classes)) for name, labels in maps)
    with whole(place(out, "cvat", "annotations", ".xml")) as partial, partial.open("w", encoding="utf-8") as file:
        write_cvat(file, classes, images)


def place(out: Path, kind: str, name: str, suffix: str) -> Path:
    """Where one file goes; makes its folder."""
    path = out / kind / f"{name}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
