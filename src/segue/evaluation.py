"""How a model is run over a labelled data set, and the scores that come of it."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from segue.data.sample import IGNORE, Array, Sample
from segue.metrics import Calibration, Confusion
from segue.models.segmenter import FEATURE_STRIDE, Segmenter
from segue.prediction.pictures import WHOLE, How, predict_image
from segue.text import percent
from segue.weights import Model


class Samples(Protocol):
    """A data set of samples."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


@dataclass
class Measured:
    """What a model did on a data set.

    Args:
        classes: names by id.
        confusion: over all pixels.
        calibration: over all pixels.
        by_image: (name, mean IoU over the classes in that image), in the order of the data.
        split: what was measured on, in words; empty where that is said elsewhere.
    """

    classes: tuple[str, ...]
    confusion: Confusion
    calibration: Calibration
    by_image: list[tuple[str, float]] = field(default_factory=list)
    split: str = ""

    def scores(self) -> dict[str, float]:
        """``miou``, ``accuracy``, ``mean_accuracy``, ``ece`` and ``iou/CLASS``, all in [0, 1]; absent classes NaN."""
        return {
            "miou": self.confusion.miou(),
            "accuracy": self.confusion.accuracy(),
            "mean_accuracy": _mean(self.confusion.class_accuracy()),
            "ece": self.calibration.ece(),
            **{f"iou/{name}": float(value) for name, value in zip(self.classes, self.confusion.iou(), strict=True)},
        }

    def present(self) -> int:
        """Classes that the mean is over."""
        return int(np.isfinite(self.confusion.iou()).sum())

    def line(self) -> str:
        """Mean IoU in words."""
        classes = f"{self.present()} of {len(self.classes)} classes"
        return f"mIoU {percent(self.confusion.miou())} % over {classes} on {len(self.by_image)} images"

    def plain(self) -> dict[str, Any]:
        """Everything as JSON can hold it; NaN is null."""
        return {
            "classes": list(self.classes),
            "scores": {name: none_for_nan(value) for name, value in self.scores().items()},
            "classes_present": self.present(),
            "confusion": self.confusion.counts.tolist(),
            "calibration": {
                "count": self.calibration.count.tolist(),
                "right": self.calibration.right.tolist(),
                "probability": self.calibration.probability.tolist(),
            },
            "images": [{"name": name, "miou": none_for_nan(value)} for name, value in self.by_image],
        }


def none_for_nan(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value


def _mean(values: Array) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients within the block; the model is left in the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def same_size_batches(data: Samples, batch: int, largest: int) -> Iterator[tuple[list[Sample], Tensor]]:
    """Samples in their order, gathered while they have one size and no more than ``largest`` pixels together.

    Yields:
        The samples, at least one, and their images (B, 3, H, W).
    """
    gathered: list[Sample] = []
    for i in range(len(data)):
        sample = data[i]
        count = min(batch, max(1, largest // sample["image"][0].numel()))
        if gathered and (len(gathered) >= count or sample["image"].shape != gathered[0]["image"].shape):
            yield gathered, torch.stack([s["image"] for s in gathered])
            gathered = []
        gathered.append(sample)
    if gathered:
        yield gathered, torch.stack([s["image"] for s in gathered])


def measure(model: Model, data: Samples, classes: Sequence[str], *, batch: int = 4, how: How = WHOLE) -> Measured:
    """Runs ``model`` over every sample of ``data``, at its own size, in float32; what is too large in tiles.

    Args:
        model: (B, 3, H, W) -> logits (B, K, H, W); left in the mode it was in.
        data: samples with ``image``, ``mask`` and ``name``.
        classes: names by id.
        batch: images of one size that go through together, fewer of large ones; each alone where ``how`` asks for more
            than one pass, or for a temperature.
        how: as of `segue.prediction.pictures.predict_image`, so that what is scored is what is predicted.
    """
    device, largest = next(model.parameters()).device, how.pixels(len(classes))
    measured = Measured(tuple(classes), Confusion(len(classes)), Calibration())
    with evaluating(model):
        for samples, images in same_size_batches(data, batch, largest):
            if how.is_once and images[0, 0].numel() <= largest:
                probabilities, predictions = model(images.to(device)).float().softmax(1).max(1)
            else:
                found = (predict_image(model, image, how)[:2] for image in images)
                predictions, probabilities = (torch.stack(part) for part in zip(*found, strict=True))
            for sample, probability, prediction in zip(samples, probabilities.cpu(), predictions.cpu(), strict=True):
                alone = Confusion(len(classes))
                alone.update(sample["mask"].numpy(), prediction.numpy())
                measured.confusion.counts += alone.counts
                measured.calibration.update(sample["mask"], prediction, probability)
                measured.by_image.append((sample["name"], alone.miou()))
    return measured


def semantic(model: Model, data: Samples, classes: Sequence[str]) -> dict[str, float]:
    """The scores of `Measured.scores`."""
    return measure(model, data, classes).scores()


def pixel_embeddings(
    model: Segmenter, data: Samples, *, seed: int, images: int = 24, per_class: int = 60
) -> dict[str, Array]:
    """Decoder features of random labelled pixels, about ``per_class`` of each class, from up to ``images`` images.

    Returns:
        ``features`` float16 (N, C) and ``labels`` uint8 (N,).
    """
    device = next(model.parameters()).device
    generator = np.random.default_rng(seed)
    chosen = sorted(generator.choice(len(data), min(images, len(data)), replace=False).tolist())
    features, labels = [], []
    with evaluating(model):
        for i in chosen:
            sample = data[i]
            mask = sample["mask"].numpy()
            feature = model.features(sample["image"][None].to(device))[0].float().cpu()
            step = FEATURE_STRIDE
            small = mask[step // 2 :: step, step // 2 :: step]
            for index in np.unique(small[small != IGNORE]):
                places = np.argwhere(small == index)
                picked = places[generator.permutation(len(places))[: -(-per_class * 2 // len(chosen))]]
                features.append(feature[:, picked[:, 0], picked[:, 1]].T.numpy().astype(np.float16))
                labels.append(np.full(len(picked), index, np.uint8))
    if not features:
        return {"features": np.zeros((0, model.spec.decoder_channels), np.float16), "labels": np.zeros(0, np.uint8)}
    return {"features": np.concatenate(features), "labels": np.concatenate(labels)}
