"""A model over pictures: class maps, overlays, and maps of probability and uncertainty."""

import glob
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from segue.data.layouts import open_images
from segue.data.listing import Pair, images_in
from segue.data.sample import IMAGE_SUFFIXES, Array, Color, DataError, write_label_map
from segue.data.tones import read_rgb
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


def find_images(sources: Sequence[str]) -> tuple[Pair, ...]:
    """Pictures named by files, folders and globs, each once, in the order named.

    Raises:
        DataError: a source is missing, is no picture, or holds none; or two pictures have one name.
    """
    found: dict[str, Path] = {}
    for source in sources:
        path = Path(source)
        if path.is_dir():
            pairs = {p.name: p.image for p in open_images(source)} if (path / "images").is_dir() else images_in(path)
            if not pairs:
                raise DataError(f"{path} holds no image")
        elif path.is_file():
            pairs = {path.stem: _image_file(path)}
        else:
            pairs = {Path(p).stem: _image_file(Path(p)) for p in sorted(glob.glob(source, recursive=True))}
            if not pairs:
                raise DataError(f"{source}: no such file, folder or match")
        for name, image in pairs.items():
            if name in found and found[name].resolve() != image.resolve():
                raise DataError(f"{found[name]} and {image} would both be written as {name}.png; predict them apart")
            found[name] = image
    return tuple(Pair(name, image) for name, image in found.items())


def _image_file(path: Path) -> Path:
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise DataError(f"{path} is no image by its name ({', '.join(IMAGE_SUFFIXES)})")
    return path


@torch.inference_mode()
def predict_image(model: Model, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(class ids, probability of the class, entropy over ln K), each (H, W), of one picture (bands, H, W)."""
    device = next(model.parameters()).device
    logits = model(image[None].to(device))[0].float()
    probabilities = logits.softmax(0)
    top, classes = probabilities.max(0)
    entropy = torch.special.entr(probabilities).sum(0) / math.log(max(2, len(probabilities)))
    return classes.to(torch.uint8).cpu(), top.cpu(), entropy.clamp(0, 1).cpu()


def predict(model: Model, pairs: Sequence[Pair]) -> Iterator[Prediction]:
    """What ``model``, put into evaluation mode, says of each picture, one at a time.

    Raises:
        DataError: a picture cannot be read.
    """
    model.eval()
    for pair in pairs:
        image = np.array(read_rgb(pair.image, model.spec.tones))
        classes, probability, uncertainty = predict_image(model, torch.from_numpy(image).permute(2, 0, 1))
        yield Prediction(pair.name, image, classes.numpy(), probability.numpy(), uncertainty.numpy())


def overlay(image: Array, classes: Array, colors: Sequence[Color], *, opacity: float = 0.5) -> Array:
    """The picture with each pixel tinted by its class: uint8 (H, W, 3)."""
    table = np.zeros((256, 3), np.float32)
    table[: len(colors)] = colors
    mixed = (1 - opacity) * image.astype(np.float32) + opacity * table[classes]
    return mixed.round().astype(np.uint8)


def gray(values: Array) -> Image.Image:
    """Values in [0, 1] as an 8-bit picture."""
    return Image.fromarray((values * 255).round().astype(np.uint8))


def write_predictions(
    model: Model,
    pairs: Sequence[Pair],
    out: Path,
    *,
    overlays: bool = True,
    maps: bool = False,
    tick: Callable[[], None] = lambda: None,
) -> tuple[int, dict[str, str]]:
    """Writes ``out/labels/NAME.png``, and on demand ``overlays/``, ``probability/`` and ``uncertainty/``.

    Returns:
        How many pictures were written, and why each of the others was not, by its path.
    """
    failed: dict[str, str] = {}
    written = 0
    for pair in pairs:
        try:
            found = next(predict(model, [pair]))
        except DataError as error:
            failed[str(pair.image)] = str(error)
            tick()
            continue
        write_label_map(place(out, "labels", found.name, ".png"), found.classes, model.spec.colors)
        if overlays:
            tinted = overlay(found.image, found.classes, model.spec.colors)
            Image.fromarray(tinted).save(place(out, "overlays", found.name, ".jpg"), quality=90)
        if maps:
            gray(found.probability).save(place(out, "probability", found.name, ".png"))
            gray(found.uncertainty).save(place(out, "uncertainty", found.name, ".png"))
        written += 1
        tick()
    return written, failed


def place(out: Path, kind: str, name: str, suffix: str) -> Path:
    """Where one file goes; makes its folder."""
    path = out / kind / f"{name}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
