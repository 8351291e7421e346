"""Pseudo-labels before they are trained on: the least certain first, and a ledger of what a person decided.

The ledger is a file of JSON lines, one a decision, appended and synced; the last line about a picture counts.
``segue train --unlabeled IMAGES --ledger FILE`` obeys it.
"""

import asyncio
import io
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from segue.data.finding import printable
from segue.data.ledger import DECISIONS, UNDECIDED, append, read_ledger
from segue.data.listing import Pair
from segue.data.sample import Array
from segue.data.tones import read_rgb
from segue.errors import DataError
from segue.prediction.pictures import overlay, predict_image
from segue.serve.worker import png
from segue.weights import Model

BINS = 100  # of a probability, for the live share of kept pixels
SIDE = 1024  # longest side of the pictures that the page shows
THUMB = 160  # of those in the gallery
KEPT = 8  # pictures whose files are kept ready: the page asks for three of each, and for the next picture ahead
KINDS = {"image": "image/jpeg", "labels": "image/png", "probability": "image/png"}


@dataclass
class Item:
    """A picture and what the network says of it.

    Args:
        pair: its file.
        uncertainty: mean of its pixels; 1 where it cannot be read.
        histogram: (K, BINS) pixels of each class by probability.
        fault: why it cannot be read.
        thumbnail: a small JPEG of it under its pseudo-labels.
        is_measured: whether the network has said it.
    """

    pair: Pair
    uncertainty: float = 1.0
    histogram: list[list[int]] = field(default_factory=list)
    fault: str = ""
    thumbnail: bytes = b""
    is_measured: bool = False


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
        self.ready: OrderedDict[int, dict[str, bytes]] = OrderedDict()
        self.network, self.writing = threading.Lock(), threading.Lock()

    def progress(self) -> dict[str, int]:
        """How many pictures the network has seen."""
        return {"measured": sum(item.is_measured for item in self.items), "of": len(self.items)}

    def listing(self) -> dict[str, Any]:
        """All pictures, the least certain first; they are predicted when this is asked for the first time."""
        for item in self.items:
            with self.network:
                if not item.is_measured:
                    self._measure(item)
                    item.is_measured = True
        order = sorted(range(len(self.items)), key=lambda i: (-self.items[i].uncertainty, self.items[i].pair.name))
        return {
            "classes": [printable(name) for name in self.model.spec.classes],
            "items": [
                {
                    "item": i, "name": printable(self.items[i].pair.name),
                    "uncertainty": round(self.items[i].uncertainty, 4), "histogram": self.items[i].histogram,
                    "fault": printable(self.items[i].fault),
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
            pixels, classes, probability, uncertainty = self._predict(item)
        except DataError as error:
            item.fault = str(error)
            return
        item.uncertainty = float(uncertainty.mean())
        bins = (probability * BINS).astype(int).clip(0, BINS - 1)
        count = len(self.model.spec.classes)
        table = np.bincount(classes.ravel().astype(int) * BINS + bins.ravel(), minlength=count * BINS)
        item.histogram = table.reshape(count, BINS).tolist()
        small = Image.fromarray(overlay(pixels, classes, self.model.spec.colors))
        small.thumbnail((THUMB, THUMB))
        item.thumbnail = jpeg(small)

    def picture(self, number: int, kind: str) -> bytes:
        """The picture itself, its class map, or its probability, as a file.

        Raises:
            DataError: it cannot be read.
        """
        with self.network:
            if number not in self.ready:
                pixels, classes, probability, _ = self._predict(self.items[number])
                self.ready[number] = {
                    "image": jpeg(Image.fromarray(pixels)), "labels": png(classes, self.model.spec.colors),
                    "probability": png((255 * probability).round().astype(np.uint8)),
                }  # fmt: skip
                if len(self.ready) > KEPT:
                    self.ready.popitem(last=False)
            return self.ready[number][kind]

    def decide(self, number: int, decision: str) -> None:
        """Appends a decision to the ledger; it is on the disk when this returns.

        Raises:
            OSError: it does not fit there; it is not taken.
            DataError: the ledger holds something else by now; it is not taken.
        """
        image = str(self.items[number].pair.image.resolve())
        line = {"image": image, "decision": decision, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        with self.writing:
            append(self.ledger, line)
            if decision == UNDECIDED:
                self.decisions.pop(image, None)
            else:
                self.decisions[image] = decision


def jpeg(image: Image.Image) -> bytes:
    """The picture as a JPEG file."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def add_review(app: Any, review: Review) -> None:
    """``GET /review``, how far it is, its pictures by number, and ``POST /review/decision``."""
    from fastapi import Request, Response
    from fastapi.responses import JSONResponse

    def is_item(item: object) -> bool:
        return type(item) is int and 0 <= item < len(review.items)

    async def items() -> dict[str, Any]:
        return await asyncio.to_thread(review.listing)

    async def progress() -> dict[str, int]:
        return review.progress()

    async def thumbnail(item: int) -> Any:
        if not is_item(item) or not review.items[item].thumbnail:
            return JSONResponse({"error": "no such picture"}, 404)
        return Response(review.items[item].thumbnail, media_type="image/jpeg")

    async def picture(item: int, kind: str = "image") -> Any:
        if not is_item(item) or kind not in KINDS:
            return JSONResponse({"error": "no such picture"}, 404)
        try:
            content = await asyncio.to_thread(review.picture, item, kind)
        except DataError as error:
            return JSONResponse({"error": printable(str(error))}, 404)
        return Response(content, media_type=KINDS[kind])

    async def decide(request: Request) -> Any:
        try:
            asked: Mapping[str, Any] = json.loads(await request.body())
            item, decision = asked["item"], asked["decision"]
        except (ValueError, KeyError, TypeError):
            item, decision = None, None
        if not is_item(item) or decision not in DECISIONS:
            return JSONResponse({"error": f"send an item's number and one of {', '.join(DECISIONS)}"}, 400)
        try:
            await asyncio.to_thread(review.decide, item, decision)
        except OSError as error:
            told = f"the decision is not kept ({error}); make room for {review.ledger.name} and try again"
            return JSONResponse({"error": told}, 507)
        except DataError as error:
            return JSONResponse({"error": printable(str(error))}, 409)
        return JSONResponse({"item": item, "decision": decision})

    for path, give in (("", items), ("/progress", progress), ("/thumbnail", thumbnail), ("/picture", picture)):
        app.add_api_route(f"/review{path}", give, methods=["GET"])
    app.add_api_route("/review/decision", decide, methods=["POST"])
