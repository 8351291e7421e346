"""Pictures of a report, as data URIs."""

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from segue.data.sample import Array, open_image, to_rgb

SIDE = 480  # pixels, of a shown image's width at most


def jpeg(picture: Array) -> tuple[str, int, int]:
    """(data URI, width, height) of a picture uint8 (H, W, 3), made no wider than `SIDE`."""
    image = Image.fromarray(picture)
    image.thumbnail((SIDE, 2 * SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=78)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}", image.width, image.height


def picture_of(path: Path) -> tuple[str, int, int]:
    """`jpeg` of a picture on disk.

    Raises:
        DataError: it cannot be read.
    """
    return jpeg(np.array(to_rgb(open_image(path), path)))
