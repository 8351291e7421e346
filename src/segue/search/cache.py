"""What every candidate of a search has in common, computed once: crops, encoder maps, labels, teacher logits.

Arrays lie in a folder as memory-mapped ``.npy`` files, so that every process shares the pages. An encoder that is not
trained need not be run again, and a teacher's logits are by far the dearest part of distillation.
"""

import functools
import json
import math
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.utils.data import Dataset

from segue.batches import drawn, mix
from segue.data.sample import Array
from segue.errors import DataError
from segue.models.compact import MAPS, feature_encoder
from segue.models.pixels import Normalise
from segue.progress import track
from segue.records import expecting, read_json
from segue.search.trials import FORMAT

Teacher = Callable[[Tensor], Tensor]
LABEL_STRIDE = 4  # labels and logits are kept at a quarter of the crop


@dataclass(frozen=True)
class Part:
    """The cached crops of one part of the data; N crops of side S.

    Args:
        images: uint8 (N, 3, S, S).
        labels: uint8 (N, S / 4, S / 4).
        inside: bool (N, S / 4, S / 4), False where a small picture was padded.
        features: float16 (N, C_e, S / stride_e, S / stride_e), of each encoder output.
        logits: float16 (N, K, S / 4, S / 4) of the teacher; (N, 0, S / 4, S / 4) where nothing is distilled.
    """

    images: Array
    labels: Array
    inside: Array
    features: tuple[Array, ...]
    logits: Array

    def __len__(self) -> int:
        return len(self.labels)

    def maps(self, chosen: Sequence[int]) -> list[Tensor]:
        """The encoder's maps of some crops, float32, channels last."""
        return [
            torch.from_numpy(feature[chosen]).float().to(memory_format=torch.channels_last) for feature in self.features
        ]


@dataclass(frozen=True)
class Cache:
    """Both parts, and the encoder they were made with."""

    folder: Path
    train: Part
    val: Part
    encoder: str
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str = ""

    @classmethod
    def open(cls, folder: Path) -> "Cache":
        """A finished cache.

        Raises:
            FileNotFoundError: there is none.
            DataError: it is damaged.
        """
        folder = folder.resolve()  # workers of a cluster start in other folders
        if not (folder / "cache.json").exists():
            raise FileNotFoundError(folder / "cache.json")
        with expecting(folder, "a cache of a search: remove the folder, and it is made again"):
            described = read_json(folder / "cache.json", "the description of a cache")
            train, val = (_open_part(folder / name) for name in ("train", "val"))
            mean, std = tuple(described["mean"]), tuple(described["std"])
            encoder, classes, source = (described[name] for name in ("encoder", "classes", "source"))
            return cls(folder, train, val, encoder, classes, mean, std, source)

    def new_encoder(self) -> tuple[nn.Module, Normalise]:
        """The encoder as it was cached, and what comes before it."""
        encoder = feature_encoder(self.encoder)
        encoder.load_state_dict(load_file(self.folder / "encoder.safetensors"))
        return encoder.to(memory_format=torch.channels_last).eval(), Normalise(self.mean, self.std, 255.0, 32)


def _open_part(folder: Path) -> Part:
    features = tuple(_opened(folder / f"features_{e}.npy") for e in range(MAPS))
    images, labels, inside, logits = (
        _opened(folder / f"{name}.npy") for name in ("images", "labels", "inside", "logits")
    )
    return Part(images, labels, inside, features, logits)


def _opened(path: Path) -> Array:
    """The array on disk, as `build_cache` wrote it.

    Raises:
        ValueError: its header is damaged, though NumPy would make something of it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            opened: Array = np.load(path, mmap_mode="r")
        except Warning as told:
            raise ValueError(f"{path.name}: {told}") from None
    return opened


@torch.inference_mode()
def build_cache(
    folder: Path,
    parts: dict[str, tuple[Dataset[Any], int]],
    *,
    encoder: nn.Module,
    encoder_name: str,
    normalise: Normalise,
    statistics: tuple[tuple[float, ...], tuple[float, ...]],
    teacher: Teacher | None,
    classes: int,
    seed: int,
    device: torch.device,
    source: str = "",
    batch: int = 8,
    quiet: bool = True,
) -> Cache:
    """Makes the cache in ``folder``, whole or not at all; one that is there is taken.

    Args:
        folder: where it goes.
        parts: for ``train`` and ``val`` a data set of square crops with ``image``, ``mask`` and ``inside``, and how
            many draws of each of its samples to keep.
        encoder: gives `MAPS` maps of normalised pictures; in evaluation mode.
        encoder_name: timm's name of it.
        normalise: what comes before the encoder.
        statistics: mean and deviation of its input, white at 1.
        teacher: pictures (B, 3, S, S) -> logits (B, K, S, S), kept of ``train``; or none.
        classes: K.
        seed: of the draws.
        device: where networks run.
        source: changes with the data and the teacher.
        batch: crops at a time.
        quiet: shows no progress.

    Raises:
        DataError: the cache that is there is of another ``source``.
        OSError: the disk has no room.
    """
    if (folder / "cache.json").is_file():
        return _taken(folder, source)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    total = sum(math.ceil(len(data) * draws / batch) for data, draws in parts.values())  # type: ignore[arg-type, misc]
    try:
        with track("cache", total, quiet=quiet) as tick:
            for name, (data, draws) in parts.items():
                computed = functools.partial(
                    _computed, encoder=encoder, normalise=normalise, teacher=teacher if name == "train" else None,
                    device=device,
                )  # fmt: skip
                _fill(partial / name, data, draws, computed, seed=seed, batch=batch, tick=tick)
        state = {name: tensor.cpu().contiguous() for name, tensor in encoder.state_dict().items()}
        (partial / "encoder.safetensors").write_bytes(save(state))  # safetensors' own writing hides a full disk
        about = {"encoder": encoder_name, "classes": classes, "mean": statistics[0], "std": statistics[1]}
        described = json.dumps({**about, "source": source, "format": FORMAT})
        (partial / "cache.json").write_text(described, encoding="utf-8")
    except OSError:  # a full disk: what was begun is of no use, and takes room
        shutil.rmtree(partial, ignore_errors=True)
        raise
    os.replace(partial, folder)
    return Cache.open(folder)


def _fill(
    folder: Path,
    data: Dataset[Any],
    draws: int,
    computed: Callable[[Sequence[dict[str, Tensor]]], dict[str, Array]],
    *,
    seed: int,
    batch: int,
    tick: Callable[[], None],
) -> None:
    """One part of a cache, named as its ``folder``; arguments as of `build_cache`."""
    folder.mkdir(parents=True)
    order = [(i, k) for k in range(draws) for i in range(len(data))]  # type: ignore[arg-type]
    arrays: dict[str, Array] = {}
    for start in range(0, len(order), batch):
        samples = [drawn(data, i, mix(seed, "cache", folder.name, i, k)) for i, k in order[start : start + batch]]
        for key, value in computed(samples).items():
            if key not in arrays:
                arrays[key] = _reserved(folder / f"{key}.npy", value, len(order))
            arrays[key][start : start + len(value)] = value
        tick()
    for array in arrays.values():
        array.flush()  # type: ignore[attr-defined]


def _reserved(path: Path, first: Array, count: int) -> Array:
    """An array of ``count`` rows like those of ``first`` in a file whose room on the disk is taken at once.

    Raises:
        OSError: there is not so much. A page that finds no room when it is written would end the process.
    """
    array: Array = np.lib.format.open_memmap(path, mode="w+", dtype=first.dtype, shape=(count, *first.shape[1:]))
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def _taken(folder: Path, source: str) -> Cache:
    """The cache that is there.

    Raises:
        DataError: it is of another ``source`` or version.
    """
    about = read_json(folder / "cache.json", "the description of a cache")
    if about.get("format") != FORMAT:
        raise DataError(f"{folder} is of another version of Segue; name another --out")
    if about.get("source") != source:
        raise DataError(f"{folder}: the data or the teacher changed since this search began; name another --out")
    return Cache.open(folder)


def _computed(
    samples: Sequence[dict[str, Tensor]],
    encoder: nn.Module,
    normalise: Normalise,
    teacher: Teacher | None,
    device: torch.device,
) -> dict[str, Array]:
    """The arrays of some samples, by name."""
    images = torch.stack([sample["image"] for sample in samples])
    masks, inside = (torch.stack([sample[name] for sample in samples]) for name in ("mask", "inside"))
    middle = LABEL_STRIDE // 2
    on_device = images.to(device)
    maps = encoder(normalise(on_device))
    labels = masks[:, middle::LABEL_STRIDE, middle::LABEL_STRIDE].to(torch.uint8)
    if teacher is None:
        logits = torch.empty(len(labels), 0, *labels.shape[1:])
    else:
        logits = F.interpolate(
            teacher(on_device).float(), scale_factor=1 / LABEL_STRIDE, mode="bilinear", align_corners=False
        )
    return {
        "images": images.numpy(),
        "labels": labels.numpy(),
        "inside": inside[:, middle::LABEL_STRIDE, middle::LABEL_STRIDE].numpy(),
        "logits": logits.half().cpu().numpy(),
        **{f"features_{e}": m.half().cpu().numpy() for e, m in enumerate(maps)},
    }
