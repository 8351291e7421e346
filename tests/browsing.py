"""A real browser for the tests of the page, models that it looks at, and what a test asks of it."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import draw, untrained
from PIL import Image

from segue.models.segmenter import Segmenter
from segue.prediction.pictures import predict_image

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SHOTS = os.environ.get("SEGUE_SHOTS")  # a folder for screenshots, to be looked at
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine: the page is not tested")
HOSTILE = "<img src=x onerror=document.body.dataset.harmed=1>"


def made(seed: int) -> Segmenter:
    return untrained(seed=seed, spread=20.0)  # sure of itself, so that thresholds matter


@pytest.fixture
def more(tmp_path: Path) -> Path:
    """Ten unlabelled pictures."""
    folder = tmp_path / "more"
    folder.mkdir()
    for i in range(10):
        Image.fromarray(draw(100 + i, 96)[0]).save(folder / f"new_{i}.png")
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: the page is not tested")
    with api.sync_playwright() as tool:
        started = tool.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.faults = []
    opened.on("pageerror", lambda error: opened.faults.append(str(error)))
    opened.on("console", lambda line: opened.faults.append(line.text) if line.type == "error" else None)
    opened.on("request", lambda request: opened.faults.append(request.url) if elsewhere(request.url) else None)
    yield opened
    opened.close()


def elsewhere(url: str) -> bool:
    return not url.startswith(("http://127.0.0.1:", "data:", "blob:"))


def shoot(page: Any, name: str) -> None:
    if SHOTS:
        page.screenshot(path=str(Path(SHOTS) / f"{name}.png"), full_page=True)


def wait(page: Any, claim: str) -> None:
    """Until ``claim`` is true; playwright's own way evaluates a string, which the page's policy forbids."""
    until = time.monotonic() + 30
    while not page.evaluate(claim):
        assert time.monotonic() < until, (claim, page.faults, page.locator("#message").inner_text())
        page.wait_for_timeout(30)


def canvas(page: Any, name: str) -> np.ndarray:
    """What a canvas shows: uint8 (H, W, 3)."""
    found = page.evaluate(
        "name => { const c = document.getElementById(name); const d = c.getContext('2d').getImageData(0, 0, c.width,"
        " c.height); return [c.height, c.width, Array.from(d.data)]; }",
        name,
    )
    return np.array(found[2], np.uint8).reshape(found[0], found[1], 4)[..., :3]


def said(model: Segmenter, path: Path) -> list[np.ndarray]:
    """(ids, uncertainty) of a model for a picture."""
    pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)
    classes, _, uncertainty = predict_image(model, pixels)
    return [classes.numpy(), uncertainty.numpy()]
