"""What ``segue suggest`` wrote, for the page: which images to label next, why, and how they look.

The folder is named on the command line. A request names an image by its place in the list that is read at the start.
"""

import asyncio
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segue.data.finding import printable
from segue.data.sample import Tones
from segue.data.tones import read_rgb
from segue.errors import DataError
from segue.serve.page import sendable
from segue.serve.review import SIDE, jpeg

THUMB = 320  # longest side of a picture in the list
COVERAGE = ("farthest", "mean", "random_farthest", "random_mean")


@dataclass(frozen=True)
class Suggested:
    """A list of images to label.

    Args:
        folder: that ``segue suggest`` wrote.
        images: their files, in the order of the list.
        told: what the page gets.
    """

    folder: Path
    images: tuple[Path, ...]
    told: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "Suggested":
        """The list in ``folder``.

        Raises:
            DataError: ``folder`` holds no such list.
        """
        path = folder / "suggestion.json"
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            rows = [_row(one, number) for number, one in enumerate(kept["chosen"])]
            images = tuple(Path(str(one["image"])) for one in kept["chosen"])
            coverage = {name: float(kept["coverage"][name]) for name in COVERAGE}
            counts = {name: int(kept[name]) for name in ("labelled", "found")}
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}); name what segue suggest --out wrote") from None
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is no list of segue suggest ({error}); make it again") from None
        told = {"folder": str(folder), "names": str(folder / "chosen.txt"), "archive": str(folder / "images.zip")}
        return cls(folder, images, sendable({**told, "items": rows, "coverage": coverage, **counts}))

    def missing(self) -> str:
        """A line about images that are not where the list says; empty where all are there."""
        gone = [image for image in self.images if not os.path.isfile(image)]
        if not gone:
            return ""
        return printable(
            f"{len(gone)} of {len(self.images)} images of {self.folder} are not there, as {gone[0]}; put them back, "
            "start segue serve in the folder that segue suggest was run in, or make the list again"
        )

    def picture(self, number: int, side: int, tones: Tones) -> bytes:
        """One of the images as a JPEG no longer than ``side``.

        Raises:
            DataError: it cannot be read.
        """
        image = read_rgb(self.images[number], tones)
        image.thumbnail((side, side))
        return jpeg(image)


def _row(one: dict[str, Any], number: int) -> dict[str, Any]:
    """An image of the list as the page gets it."""
    distance, uncertainty = (
        None if (value := one.get(name)) is None else float(value) for name in ("distance", "uncertainty")
    )
    return {
        "item": number, "name": str(one["name"]), "reason": str(one["reason"]), "stands_for": int(one["stands_for"]),
        "distance": distance, "uncertainty": uncertainty,
    }  # fmt: skip


def add_suggested(app: Any, suggested: Suggested, tones: Tones) -> None:
    """``GET /suggested`` and its pictures by number, small or large."""
    from fastapi import Response
    from fastapi.responses import JSONResponse

    async def listing() -> dict[str, Any]:
        return suggested.told

    async def picture(item: int, size: str = "small") -> Any:
        if not 0 <= item < len(suggested.images) or size not in ("small", "large"):
            return JSONResponse({"error": "no such picture"}, 404)
        try:
            side = THUMB if size == "small" else SIDE
            content = await asyncio.to_thread(suggested.picture, item, side, tones)
        except DataError as error:
            return JSONResponse({"error": printable(str(error))}, 404)
        return Response(content, media_type="image/jpeg")

    app.add_api_route("/suggested", listing, methods=["GET"])
    app.add_api_route("/suggested/picture", picture, methods=["GET"])
