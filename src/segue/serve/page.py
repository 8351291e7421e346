"""The files of the page, each under a path of its own: nothing is looked up by a name that a request holds."""

from importlib import resources
from typing import Any

SCRIPTS = ("app", "chart", "colors", "core", "look", "maps", "review", "runs")
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
