"""The files of the page, each under a path of its own: nothing is looked up by a name that a request holds."""

import math
from importlib import resources
from typing import Any

from segue.data.finding import printable

SCRIPTS = ("app", "chart", "check", "colors", "core", "look", "maps", "review", "runs", "suggested")
STATIC = {
    "/": ("index.html", "text/html"),
    "/style.css": ("style.css", "text/css"),
    **{f"/{name}.js": (f"{name}.js", "text/javascript") for name in SCRIPTS},
}


def add_static(app: Any) -> None:
    """Adds them to the FastAPI application."""
    from fastapi import Response

    folder = resources.files("segue.serve").joinpath("static")

    def add(path: str, content: bytes, kind: str) -> None:
        async def give() -> Any:
            return Response(content, media_type=kind)

        app.add_api_route(path, give, methods=["GET"])

    for path, (name, kind) in STATIC.items():
        add(path, folder.joinpath(name).read_bytes(), kind)


def sendable(value: Any) -> Any:
    """``value`` as JSON can hold it: names on disk need not be UTF-8, and numbers need not be finite."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(str(key)): sendable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [sendable(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
