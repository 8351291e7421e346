"""One network, many requests: pictures that wait at the same time and have one size go through it together."""

import asyncio
import io
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from segue.data.panoptic_map import PanopticMap
from segue.data.sample import FORMATS, UNREADABLE, Array, Color, kind_of, to_rgb, upright
from segue.data.tones import is_deep
from segue.errors import DataError
from segue.models.mask_classifier import MaskClassifier
from segue.panoptic.evaluation import panoptic_map
from segue.prediction.pictures import WHOLE, predict_image
from segue.serve.limits import Limits
from segue.weights import AnyModel, Model


@dataclass(frozen=True)
class Answer:
    """What the network says of a picture.

    Args:
        classes: uint8 (H, W) ids; `IGNORE` where a panoptic model sees no segment.
        probability: float32 (H, W) of the class; of a segment's class in all of its pixels, 0 where there is none.
        uncertainty: float32 (H, W) in [0, 1]; what is missing of the probability, of a panoptic model.
        segments: of a panoptic model.
    """

    classes: Array
    probability: Array
    uncertainty: Array
    segments: PanopticMap | None = None


def decode(body: bytes, limits: Limits) -> Array:
    """The picture in ``body`` as uint8 (H, W, 3), upright. Its header is judged before a pixel is read.

    Raises:
        DataError: no picture, or too many pixels (then the message begins with ``too large``).
    """
    try:
        with Image.open(io.BytesIO(body), formats=FORMATS) as image:
            if image.width * image.height > limits.pixels:
                raise DataError(f"too large: {image.width} x {image.height} pixels, {limits.pixels} are allowed")
            if is_deep(kind := kind_of(image)):
                raise DataError(f"the picture holds {kind} pixels, deeper than 8 bits; send it in 8 bits")
            return np.array(to_rgb(upright(image), Path("the picture")))
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise DataError(f"too large: {limits.pixels} pixels are allowed") from None
    except UNREADABLE:
        raise DataError("this is no JPEG, PNG, TIFF, BMP or WebP picture, or it is cut short") from None


def png(values: Array, colors: tuple[Color, ...] = ()) -> bytes:
    """uint8 (H, W) as a PNG, with a palette where there are colours."""
    image = Image.fromarray(values, mode="P" if colors else "L")
    if colors:
        table = np.zeros((256, 3), np.uint8)
        table[: len(colors)] = colors
        image.putpalette(table.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


@torch.inference_mode()
def predict_batch(model: Model, images: list[Array]) -> list[Answer]:
    """Pictures of one size in one pass; one that is too large for a pass goes through in tiles."""
    height, width = images[0].shape[:2]
    if height * width > WHOLE.pixels(len(model.spec.classes)):
        tiled = (predict_image(model, torch.from_numpy(image).permute(2, 0, 1)) for image in images)
        return [Answer(a.numpy(), b.numpy(), c.numpy()) for a, b, c in tiled]
    device = next(model.parameters()).device
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(device)
    probabilities = model(stacked).float().softmax(1)
    top, classes = probabilities.max(1)
    entropy = torch.special.entr(probabilities).sum(1) / math.log(max(2, probabilities.shape[1]))
    parts = zip(classes.to(torch.uint8).cpu(), top.cpu(), entropy.clamp(0, 1).cpu(), strict=True)
    return [Answer(a.numpy(), b.numpy(), c.numpy()) for a, b, c in parts]


@torch.inference_mode()
def segment_batch(model: MaskClassifier, images: list[Array]) -> list[Answer]:
    """The segments of pictures, one after the other: their masks take more memory than the rest of a pass."""
    answers = []
    for image in images:
        found = panoptic_map(model, torch.from_numpy(image).permute(2, 0, 1))
        probability = np.array([0.0, *found.scores], np.float32)[found.ids]
        answers.append(Answer(found.classes(), probability, 1 - probability, found))
    return answers


@dataclass
class Worker:
    """Runs a network over pictures as they come.

    Args:
        model: the network.
        limits: of pictures, queue and batch; a panoptic model takes no picture that is too large for one pass.
        batches: how many pictures each pass had, for the metrics.
        waiting: requests that are worked on or wait.
    """

    model: AnyModel
    limits: Limits
    batches: list[int] = field(default_factory=list)
    waiting: int = 0

    def __post_init__(self) -> None:
        self.answer: Callable[[list[Array]], list[Answer]]
        if isinstance(self.model, MaskClassifier):
            self.answer = partial(segment_batch, self.model)
            self.limits = replace(self.limits, pixels=min(self.limits.pixels, WHOLE.largest))
        else:
            self.answer = partial(predict_batch, self.model)
        self.queue: asyncio.Queue[tuple[Array, asyncio.Future[Answer]]] = asyncio.Queue()
        self.network = ThreadPoolExecutor(1, "network")
        self.decoders = ThreadPoolExecutor(2, "decode")
        self.task: asyncio.Task[None] | None = None

    async def predict(self, body: bytes) -> tuple[Array, Answer]:
        """(the picture, what the network says of it).

        Raises:
            DataError: no picture.
            TimeoutError: no answer in time.
        """
        self.waiting += 1
        try:
            loop = asyncio.get_running_loop()
            if self.task is None:
                self.task = loop.create_task(self.work())
            async with asyncio.timeout(self.limits.seconds):
                image = await loop.run_in_executor(self.decoders, decode, body, self.limits)
                answered: asyncio.Future[Answer] = loop.create_future()
                self.queue.put_nowait((image, answered))
                return image, await answered
        finally:
            self.waiting -= 1

    async def work(self) -> None:
        """Takes what waits, in the order it came, while the sizes are the same and a pass holds them."""
        loop = asyncio.get_running_loop()
        held: tuple[Array, asyncio.Future[Answer]] | None = None
        while True:
            batch = [held or await self.queue.get()]
            held = None
            height, width = batch[0][0].shape[:2]
            most = min(self.limits.batch, WHOLE.pixels(len(self.model.spec.classes)) // (height * width))
            while len(batch) < most and not self.queue.empty():
                following = self.queue.get_nowait()
                if following[0].shape != batch[0][0].shape:
                    held = following
                    break
                batch.append(following)
            batch = [entry for entry in batch if not entry[1].done()]  # whoever gave up is not worked for
            if not batch:
                continue
            self.batches.append(len(batch))
            del self.batches[:-1000]
            try:
                images = [image for image, _ in batch]
                answers = await loop.run_in_executor(self.network, self.answer, images)
            except Exception as error:  # the loop must go on whatever a picture does to the network
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), found in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(found)
