"""The HTTP service: ``POST /predict``, ``GET /healthz``, ``GET /metrics``, the page and the review of pseudo-labels.

A picture is the body of a request; no path and no parameter names a file of the disk.
"""

import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import segue
from segue.extras import require
from segue.serve.checked import Checked, add_check
from segue.serve.limits import App, Guard, Limits
from segue.serve.metrics import Metrics, add_metrics
from segue.serve.page import STATIC, add_static
from segue.serve.predicted import add_predict
from segue.serve.review import Review, add_review
from segue.serve.runs import RunList, add_runs
from segue.serve.suggested import Suggested, add_suggested
from segue.serve.worker import Worker
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


def create_app(served: Served, *, token: str, hosts: frozenset[str], limits: Limits | None = None) -> App:
    """The guarded application.

    Args:
        served: models and review.
        token: see `Guard`.
        hosts: see `Guard`.
        limits: what is taken; `Limits` if absent.
    """
    fastapi = require("fastapi", "serve")
    from fastapi import Request
    from fastapi.responses import JSONResponse

    limits = limits or Limits()
    workers = {"model": Worker(served.model, limits)}
    if served.against is not None:
        workers["against"] = Worker(served.against, limits)
    metrics = Metrics(lambda: sum(worker.waiting for worker in workers.values()))
    app: Any = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    async def count(request: Request, go_on: Any) -> Any:
        try:
            response = await go_on(request)
        except Exception:  # what went wrong inside is for the log, not for whoever asks
            traceback.print_exc(file=sys.stderr)
            response = JSONResponse({"error": "something went wrong in the server; its log says what"}, 500)
        metrics.answered(response.status_code)
        return response

    app.middleware("http")(count)
    add_predict(app, workers, metrics)
    add_metrics(app, metrics)
    add_static(app)
    add_about(app, served, add_views(app, served), workers)
    return Guard(
        app,
        token=token,
        hosts=hosts,
        open_paths=frozenset({*STATIC, "/healthz"}),
        limits=limits,
        told=metrics.answered,
    )


def add_about(app: Any, served: Served, views: list[str], workers: Mapping[str, Worker]) -> None:
    """``GET /healthz``, and ``GET /about``: what the page has to know before the first picture."""
    spec = served.model.spec

    async def health() -> dict[str, Any]:
        return {"status": "ok", "version": segue.__version__, "classes": len(spec.classes)}

    async def about() -> dict[str, Any]:
        return {
            "model": served.name, "against": served.against_name or None, "views": views,
            "classes": [
                {"name": name, "color": list(color)} for name, color in zip(spec.classes, spec.colors, strict=True)
            ],
            "limits": {
                "bytes": workers["model"].limits.body,
                "pixels": min(worker.limits.pixels for worker in workers.values()),
            },
        }  # fmt: skip

    app.add_api_route("/healthz", health, methods=["GET"])
    app.add_api_route("/about", about, methods=["GET"])


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
