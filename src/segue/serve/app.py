"""The HTTP service: ``POST /predict``, ``GET /healthz``, ``GET /metrics``, the page and the review of pseudo-labels.

A picture is the body of a request; no path and no parameter names a file of the disk.
"""

import base64
import io
import sys
import time
import traceback
from dataclasses import dataclass
from typing import Any

import numpy as np

import segue
from segue.data.sample import DataError
from segue.extras import require
from segue.models.mask_classifier import MaskClassifier
from segue.panoptic.maps import PanopticMap
from segue.panoptic.prediction import segments_info, write_map
from segue.serve.checked import Checked, add_check
from segue.serve.limits import App, Guard, Limits
from segue.serve.page import STATIC, add_static
from segue.serve.review import Review, add_review
from segue.serve.runs import RunList, add_runs
from segue.serve.suggested import Suggested, add_suggested
from segue.serve.worker import Answer, Worker, png
from segue.weights import AnyModel


@dataclass(frozen=True)
class Served:
    """What is served.

    Args:
        model: the network.
        name: of the model.
        against: a second model to compare with.
        against_name: its name.
        review: pseudo-labels that wait for a decision.
        runs: to list, with their curves.
        checked: a data set and what is wrong with it.
        suggested: what to label next.
    """

    model: AnyModel
    name: str
    against: AnyModel | None = None
    against_name: str = ""
    review: Review | None = None
    runs: RunList | None = None
    checked: Checked | None = None
    suggested: Suggested | None = None


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


def create_app(served: Served, *, token: str, hosts: frozenset[str], limits: Limits | None = None) -> App:
    """The guarded application.

    Args:
        served: models and review.
        token: see `Guard`.
        hosts: see `Guard`.
        limits: what is taken; `Limits` if absent.
    """
    require("fastapi", "serve")
    prometheus = require("prometheus_client", "serve")
    from fastapi import FastAPI, Request, Response
    from fastapi.responses import JSONResponse

    limits = limits or Limits()
    workers = {"model": Worker(served.model, limits)}
    if served.against is not None:
        workers["against"] = Worker(served.against, limits)
    registry = prometheus.CollectorRegistry()
    requests = prometheus.Counter("segue_requests", "Requests by status", ["status"], registry=registry)
    seconds = prometheus.Histogram("segue_predict_seconds", "Time of predictions", registry=registry)
    waiting = prometheus.Gauge("segue_waiting", "Requests that wait or are worked on", registry=registry)
    waiting.set_function(lambda: sum(worker.waiting for worker in workers.values()))
    app: Any = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    def refuse(status: int, error: str) -> Any:
        return JSONResponse({"error": error}, status)

    async def count(request: Request, go_on: Any) -> Any:
        try:
            response = await go_on(request)
        except Exception:  # what went wrong inside is for the log, not for whoever asks
            traceback.print_exc(file=sys.stderr)
            response = refuse(500, "something went wrong in the server; its log says what")
        requests.labels(str(response.status_code)).inc()
        return response

    async def predict(request: Request, model: str = "model", format: str = "json") -> Any:
        if model not in workers or format not in ("json", "png", "panoptic"):
            return refuse(400, f"model is one of {', '.join(workers)}; format is json, png or panoptic")
        started = time.perf_counter()
        worker = workers[model]
        if format == "panoptic" and not isinstance(worker.model, MaskClassifier):
            return refuse(400, "this model is a semantic one and knows no segments; format is json or png")
        try:
            _, found = await worker.predict(await request.body())
        except DataError as error:
            return refuse(413 if str(error).startswith("too large") else 400, str(error))
        except TimeoutError:
            return refuse(503, f"no answer within {limits.seconds:g} s")
        seconds.observe(time.perf_counter() - started)
        if format == "png":
            return Response(png(found.classes, worker.model.spec.colors), media_type="image/png")
        if format == "panoptic" and found.segments is not None:
            return Response(panoptic_png(found.segments), media_type="image/png")
        return JSONResponse(plain(found, worker.model))

    async def health() -> dict[str, Any]:
        return {"status": "ok", "version": segue.__version__, "classes": len(served.model.spec.classes)}

    async def metrics() -> Any:
        return Response(prometheus.generate_latest(registry), media_type="text/plain; version=0.0.4")

    async def about() -> dict[str, Any]:
        return {
            "model": served.name, "against": served.against_name or None, "views": views,
            "classes": [
                {"name": name, "color": list(color)}
                for name, color in zip(served.model.spec.classes, served.model.spec.colors, strict=True)
            ],
            "limits": {"bytes": limits.body, "pixels": min(worker.limits.pixels for worker in workers.values())},
        }  # fmt: skip

    app.middleware("http")(count)
    app.add_api_route("/predict", predict, methods=["POST"])
    for path, give in (("/healthz", health), ("/metrics", metrics), ("/about", about)):
        app.add_api_route(path, give, methods=["GET"])
    add_static(app)
    views = add_views(app, served)
    return Guard(
        app,
        token=token,
        hosts=hosts,
        open_paths=frozenset({*STATIC, "/healthz"}),
        limits=limits,
        told=lambda status: requests.labels(str(status)).inc(),
    )


def add_views(app: Any, served: Served) -> list[str]:
    """Adds what the page shows beside a picture; the names of these views."""
    names = []
    if served.review is not None:
        add_review(app, served.review)
        names.append("review")
    if served.suggested is not None:
        add_suggested(app, served.suggested, served.model.spec.tones)
        names.append("suggested")
    if served.checked is not None:
        add_check(app, served.checked)
        names.append("check")
    if served.runs is not None:
        add_runs(app, served.runs)
        names.append("runs")
    return names
