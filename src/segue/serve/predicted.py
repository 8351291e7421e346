"""``POST /predict``: the body is a picture, the answer what a model says of it, as JSON or as a map."""

import asyncio
import base64
import io
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from segue.data.panoptic_map import PanopticMap
from segue.errors import DataError
from segue.models.mask_classifier import MaskClassifier
from segue.panoptic.prediction import segments_info, write_map
from segue.serve.metrics import Metrics
from segue.serve.worker import Answer, Worker, png
from segue.weights import AnyModel


def plain(found: Answer, model: AnyModel) -> dict[str, Any]:
    """An answer as JSON: shares of the classes, mean uncertainty, and the maps as PNG in base64.

    Of a panoptic model also the segments, as COCO describes them, and their map.
    """
    counts = np.bincount(found.classes.ravel(), minlength=len(model.spec.classes)) / found.classes.size
    encoded = [png(found.classes, model.spec.colors), png((255 * found.uncertainty).round().astype(np.uint8))]
    labels, uncertainty = (base64.b64encode(content).decode() for content in encoded)
    more: dict[str, Any] = {}
    if found.segments is not None and isinstance(model, MaskClassifier):
        map_png = base64.b64encode(panoptic_png(found.segments)).decode()
        things = list(model.spec.things)
        more = {"things": things, "segments": segments_info(found.segments), "panoptic_png": map_png}
    return {
        "height": found.classes.shape[0], "width": found.classes.shape[1],
        "classes": [
            {"id": i, "name": name, "color": list(model.spec.colors[i]), "share": round(float(counts[i]), 6)}
            for i, name in enumerate(model.spec.classes)
        ],
        "uncertainty": round(float(found.uncertainty.mean()), 6), "labels_png": labels, "uncertainty_png": uncertainty,
        **more,
    }  # fmt: skip


def panoptic_png(found: PanopticMap) -> bytes:
    """The map as `segue predict` writes it."""
    buffer = io.BytesIO()
    write_map(found, buffer, level=1)
    return buffer.getvalue()


def add_predict(app: Any, workers: Mapping[str, Worker], metrics: Metrics) -> None:
    """The path; ``model`` in a request names one of ``workers``."""
    from fastapi import Request, Response
    from fastapi.responses import JSONResponse

    def refuse(status: int, error: str) -> Any:
        return JSONResponse({"error": error}, status)

    def written(found: Answer, model: AnyModel, format: str) -> Any:
        if format == "png":
            return Response(png(found.classes, model.spec.colors), media_type="image/png")
        if format == "panoptic" and found.segments is not None:
            return Response(panoptic_png(found.segments), media_type="image/png")
        return JSONResponse(plain(found, model))

    async def predict(request: Request, model: str = "model", format: str = "json") -> Any:
        if model not in workers or format not in ("json", "png", "panoptic"):
            return refuse(400, f"model is one of {', '.join(workers)}; format is json, png or panoptic")
        worker = workers[model]
        if format == "panoptic" and not isinstance(worker.model, MaskClassifier):
            return refuse(400, "this model is a semantic one and knows no segments; format is json or png")
        started = time.perf_counter()
        try:
            _, found = await worker.predict(await request.body())
        except DataError as error:
            return refuse(413 if str(error).startswith("too large") else 400, str(error))
        except TimeoutError:
            return refuse(503, f"no answer within {worker.limits.seconds:g} s")
        metrics.seconds.observe(time.perf_counter() - started)
        return await asyncio.to_thread(written, found, worker.model, format)  # seconds, of a large picture

    app.add_api_route("/predict", predict, methods=["POST"])
