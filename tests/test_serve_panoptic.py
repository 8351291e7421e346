"""``segue serve`` of a panoptic model: what it answers is what the model says, over HTTP and on the page."""

import base64
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browsing import canvas, needs_browser, shoot, wait
from conftest import untrained
from panoptic_sets import PAINT, SHAPES, draw, untrained_panoptic
from PIL import Image

pytest.importorskip("fastapi", reason="the extra serve is not installed")
from serving import TOKEN, Live, live

from segue.data.panoptic_map import PanopticMap
from segue.models.mask_classifier import MaskClassifier
from segue.panoptic.evaluation import panoptic_map
from segue.panoptic.prediction import SEGMENTS, segments_info
from segue.serve.app import Served
from segue.serve.limits import Limits
from segue.weights import save_model

pytest_plugins = ["browsing"]
Segue = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model() -> MaskClassifier:
    return untrained_panoptic()


@pytest.fixture(scope="module")
def server(model: MaskClassifier) -> Iterator[Live]:
    with live(Served(model, "runs/base", untrained(), "runs/semantic")) as running:
        yield running


def encoded(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def opened(content: str | bytes) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(content) if isinstance(content, str) else content))


def ids_of(image: Image.Image) -> np.ndarray:
    red, green, blue = np.moveaxis(np.asarray(image).astype(int), -1, 0)
    return red + 256 * green + 65536 * blue


def expected_of(model: MaskClassifier, picture: np.ndarray) -> PanopticMap:
    found = panoptic_map(model, torch.from_numpy(picture).permute(2, 0, 1))
    assert len(found.labels) > 1
    return found


def test_segments_classes_and_doubt_are_those_of_the_model(server: Live, model: MaskClassifier) -> None:
    picture = draw(9, size=131)[0][:125]
    expected = expected_of(model, picture)
    found: dict[str, Any] = server.json("/predict", encoded(picture))
    assert found["segments"] == segments_info(expected)
    np.testing.assert_array_equal(ids_of(opened(found["panoptic_png"])), expected.ids)
    np.testing.assert_array_equal(np.asarray(opened(found["labels_png"])), expected.classes())
    assert (found["things"], [entry["name"] for entry in found["classes"]]) == ([1, 2, 3], list(SHAPES))
    shares = [entry["share"] for entry in found["classes"]]
    np.testing.assert_allclose(shares, [(expected.classes() == i).mean() for i in range(4)], atol=1e-6)
    doubt = np.asarray(opened(found["uncertainty_png"])) / 255
    for number, score in enumerate(expected.scores, 1):
        np.testing.assert_allclose(doubt[expected.ids == number], 1 - score, atol=0.003)
    assert (doubt[expected.ids == 0] == 1).all()


def test_a_map_is_the_file_that_predict_writes(
    server: Live, model: MaskClassifier, segue: Segue, tmp_path: Path
) -> None:
    picture = tmp_path / "new.png"
    Image.fromarray(draw(2, size=131)[0]).save(picture)
    run = save_model(model, tmp_path / "model", method="mask_classification", metrics={})
    assert segue("predict", run, picture, "--out", tmp_path / "out")[0] == 0
    status, content = server.ask("/predict?format=panoptic", picture.read_bytes())
    assert status == 200
    with Image.open(tmp_path / "out" / "panoptic" / "new.png") as written, opened(content) as answered:
        np.testing.assert_array_equal(np.asarray(answered), np.asarray(written))
        assert json.loads(answered.info[SEGMENTS]) == json.loads(written.info[SEGMENTS])
    status, content = server.ask("/predict?format=png", picture.read_bytes())
    assert status == 200
    classes = expected_of(model, np.array(Image.open(picture))).classes()
    np.testing.assert_array_equal(np.asarray(opened(content)), classes)


def test_a_semantic_model_beside_it_has_no_segments(server: Live) -> None:
    picture = encoded(draw(0)[0])
    status, content = server.ask("/predict?model=against&format=panoptic", picture)
    assert status == 400
    assert "knows no segments; format is json or png" in json.loads(content)["error"]
    assert "segments" not in server.json("/predict?model=against", picture)


def test_a_picture_that_its_masks_make_too_large_is_refused(model: MaskClassifier) -> None:
    with live(Served(model, "runs/base"), Limits(pixels=64_000_000)) as running:
        status, content = running.ask("/predict", encoded(np.zeros((2049, 2049, 3), np.uint8)))
        assert status == 413
        assert json.loads(content)["error"] == "too large: 2049 x 2049 pixels, 4194304 are allowed"
        limits: dict[str, Any] = running.json("/about")
        assert limits["limits"]["pixels"] == 1 << 22


def test_what_a_panoptic_model_does_not_serve_is_said_in_a_line(
    model: MaskClassifier, segue: Segue, tmp_path: Path
) -> None:
    run = save_model(model, tmp_path / "model", method="mask_classification", metrics={})
    status, _, said = segue("serve", run, "--review", tmp_path, "--ledger", tmp_path / "ledger.jsonl")
    assert status == 2
    assert said.strip().splitlines()[-1].endswith("segue serve --review take semantic models")


@needs_browser
@pytest.mark.slow
def test_the_page_outlines_segments_and_counts_objects(page: Any, model: MaskClassifier, tmp_path: Path) -> None:
    picture = draw(0, size=131)[0]
    Image.fromarray(picture).save(tmp_path / "new.png")
    expected = expected_of(model, picture)
    with live(Served(model, "runs/base")) as server:
        page.goto(f"{server.address}/#{TOKEN}")
        wait(page, "document.body.dataset.ready")
        page.set_input_files("#file", str(tmp_path / "new.png"))
        wait(page, "document.querySelectorAll('#legend tbody tr').length == 4")
        bare = 100 * (expected.ids == 0).mean()
        assert f"{len(expected.labels)} segments, none on {bare:.1f} %" in page.locator("#summary").inner_text()
        rows = page.locator("#legend tbody tr").all_inner_texts()
        for i, name in enumerate(SHAPES[1:], 1):
            assert any(row.startswith(f"{name} × {expected.labels.count(i)}\t") for row in rows), (name, rows)
        assert not any(row.startswith("ground ×") for row in rows)
        page.locator("#opacity").fill("100")
        shoot(page, "look_panoptic")
        ids = np.pad(expected.ids, ((0, 1), (0, 1)), mode="edge")
        border = (ids[:-1, :-1] != ids[:-1, 1:]) | (ids[:-1, :-1] != ids[1:, :-1])
        painted = np.array([*(PAINT[name] for name in SHAPES)])[np.minimum(expected.classes(), 3)]
        painted[border] = 255
        painted[expected.ids == 0] = picture[expected.ids == 0]
        np.testing.assert_array_equal(canvas(page, "canvas"), painted)
        x, y = (int(value) for value in np.argwhere((expected.ids == 1) & ~border)[0][::-1])
        box = page.locator("#canvas").bounding_box()
        page.mouse.move(box["x"] + (x + 0.5) * box["width"] / 131, box["y"] + (y + 0.5) * box["height"] / 131)
        assert f"{SHAPES[expected.labels[0]]} (segment 1)" in page.locator("#here").inner_text()
        assert page.faults == []
