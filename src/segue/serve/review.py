"""Pseudo-labels before they are trained on: the least certain first, and a ledger of what a person decided.

The ledger is a file of JSON lines, one a decision, appended and synced; the last line about a picture counts.
``segue train --unlabeled IMAGES --ledger FILE`` obeys it.
"""

import io
import json
import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from segue.data.ledger import DECISIONS, read_ledger
from segue.data.listing import Pair
from segue.data.sample import Array, Color, DataError
from segue.data.tones import read_rgb
from segue.prediction import predict_image
from segue.serve.worker import png
from segue.weights import Model

BINS = 100  # of a probability, for the live share of kept pixels
SIDE = 1024  # longest side of the pictures that the page shows

__all__ = ["DECISIONS", "Review"]


@dataclass
class Item:
    """A picture and what the network says of it.

    Args:
        pair: its file.
        uncertainty: mean of its pixels; 1 where it cannot be read.
        histogram: (K, BINS) pixels of each class by probability.
        fault: why it cannot be read.
    """

    pair: Pair
    uncertainty: float = 1.0
    histogram: list[list[int]] = field(default_factory=list)
    fault: str = ""


class Review:
    """Pictures that wait for a decision.

    Args:
        model: makes the pseudo-labels.
        pairs: the unlabelled pictures.
        ledger: file of the decisions; made with the first one.
    """

    def __init__(self, model: Model, pairs: tuple[Pair, ...], ledger: Path) -> None:
        self.model, self.ledger = model, ledger
        self.items = [Item(pair) for pair in pairs]
        self.decisions = read_ledger(ledger) if ledger.exists() else {}
        self.is_measured = False
        self.lock = threading.Lock()

    def listing(self) -> dict[str, Any]:
        """All pictures, the least certain first; they are predicted when this is asked for the first time."""
        with self.lock:
            if not self.is_measured:
                for item in self.items:
                    self._measure(item)
                self.is_measured = True
        order = sorted(range(len(self.items)), key=lambda i: (-self.items[i].uncertainty, self.items[i].pair.name))
        return {
            "classes": list(self.model.spec.classes),
            "items": [
                {
                    "item": i, "name": self.items[i].pair.name, "uncertainty": round(self.items[i].uncertainty, 4),
                    "histogram": self.items[i].histogram, "fault": self.items[i].fault,
                    "decision": self.decisions.get(str(self.items[i].pair.image.resolve())),
                }
                for i in order
            ],
        }  # fmt: skip

    def _predict(self, item: Item) -> tuple[Array, Array, Array, Array]:
        """(picture, ids, probability, uncertainty), the picture made smaller where it is large."""
        image = read_rgb(item.pair.image, self.model.spec.tones)
        image.thumbnail((SIDE, SIDE))
        pixels = np.array(image)
        found = predict_image(self.model, torch.from_numpy(pixels).permute(2, 0, 1))
        classes, probability, uncertainty = (part.numpy() for part in found)
        return pixels, classes, probability, uncertainty

    def _measure(self, item: Item) -> None:
        try:
            _, classes, probability, uncertainty = self._predict(item)
        except DataError as error:
            item.fault = str(error)
            return
        item.uncertainty = float(uncertainty.mean())
        bins = (probability * BINS).astype(int).clip(0, BINS - 1)
        count = len(self.model.spec.classes)
        table = np.bincount(classes.ravel().astype(int) * BINS + bins.ravel(), minlength=count * BINS)
        item.histogram = table.reshape(count, BINS).tolist()

    def picture(self, number: int, kind: str, colors: tuple[Color, ...]) -> bytes:
        """The picture itself, its class map, or its probability, as a file.

        Raises:
            DataError: it cannot be read.
        """
        with self.lock:
            pixels, classes, probability, _ = self._predict(self.items[number])
        if kind == "labels":
            return png(classes, colors)
        if kind == "probability":
            return png((255 * probability).round().astype(np.uint8))
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=88)
        return buffer.getvalue()

    def decide(self, number: int, decision: str) -> None:
        """Appends a decision to the ledger; it is on the disk when this returns."""
        image = str(self.items[number].pair.image.resolve())
        line = {"image": image, "decision": decision, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        with self.lock:
            with self.ledger.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
            self.decisions[image] = decision
