"""`segue compare`: counts by hand, and the command with panoptic and semantic models."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, COLORS, draw, write_model
from PIL import Image

from segue.data.sample import IGNORE
from segue.disagreement import VOID, Disagreement, placed
from segue.models.mask_classifier import MaskClassifier, MaskClassifierSpec
from segue.models.segmenter import Segmenter, SegmenterSpec
from segue.weights import save_model

Segue = Callable[..., tuple[int, str, str]]


def panoptic(classes: tuple[str, ...], says: int) -> MaskClassifier:
    """A model that says one class everywhere."""
    torch.manual_seed(0)
    spec = MaskClassifierSpec(
        "test_efficientnet", classes, ((9, 9, 9),) * len(classes), (),
        width=32, queries=4, pixel_layers=1, decoder_layers=1, feedforward=32,
    )  # fmt: skip
    model = MaskClassifier(spec)
    with torch.no_grad():
        model.head.bias.zero_()[says] = 9.0
        for parameter in model.query_decoder.decoder.mask_predictor.mask_embedder.parameters():
            parameter.zero_()
    return model


def test_classes_are_matched_by_name_and_pixels_counted() -> None:
    old, new = panoptic(("road", "car"), 0), panoptic(("car", "bicycle", "road"), 0)
    found = Disagreement.of(old, new)
    assert found.names == ("road", "car", "bicycle", VOID)
    assert found.new == ("bicycle",)
    first = placed(old, np.array([[0, 0, 0, 1, IGNORE]], np.uint8), found)
    second = placed(new, np.array([[2, 1, 1, 0, 0]], np.uint8), found)
    assert first.tolist() == [[0, 0, 0, 1, 3]]
    assert second.tolist() == [[0, 2, 2, 1, 1]]
    found.add("a", first, second)
    assert found.pixels.tolist() == [[1, 0, 2, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]
    assert found.share() == pytest.approx(3 / 5)
    rows = {row["name"]: row for row in found.rows()}
    assert rows["road"]["kept"] == pytest.approx(1 / 3)
    assert rows["road"]["went"] == ("bicycle", pytest.approx(2 / 3))
    assert rows["bicycle"]["kept"] is None
    assert rows["bicycle"]["came"] == ("road", 1.0)
    assert rows["car"]["came"] == (VOID, 0.5)


@pytest.mark.slow
def test_the_page_shows_where_two_models_disagree(segue: Segue, dataset: Path, tmp_path: Path) -> None:
    for name, says in (("old", 0), ("new", 2)):
        classes = ("ground", "disc", "<bar>")[: 2 + (name == "new")]
        save_model(panoptic(classes, says), tmp_path / name, method="mask_classification", metrics={})
    (dataset / "images" / "broken.png").write_bytes(b"no image")
    images, out = dataset / "images", tmp_path / "out"
    given = ["compare", tmp_path / "old", tmp_path / "new", "--images", images, "--out"]
    status, output, errors = segue(*given, out, "--json")
    assert status == 2  # one image could not be read
    assert "broken.png" in errors
    said = json.loads(output)
    assert said["disagreement"] == 1.0
    assert said["pixels"][0][2] == 10 * 48 * 48
    text = (out / "comparison.html").read_text()
    assert "disagree on 100.0 % of the pixels of 10 images" in text
    assert text.count("data:image/jpeg") == 10 * 4
    assert "<bar>" not in text
    assert "&lt;bar&gt; (new)" in text
    assert "http" not in text.replace("http-equiv", "")
    status, _, errors = segue(*given, out)
    assert (status, "is not an empty folder" in errors) == (2, True)


@pytest.mark.slow
def test_a_semantic_and_a_panoptic_model_are_compared(segue: Segue, tmp_path: Path) -> None:
    torch.manual_seed(0)
    semantic = Segmenter(SegmenterSpec("test_efficientnet", CLASSES, COLORS, decoder_channels=16)).eval()
    save_model(semantic, tmp_path / "old", method="supervised", metrics={})
    save_model(panoptic(CLASSES, 1), tmp_path / "new", method="mask_classification", metrics={})
    save_model(panoptic(("sea",), 0), tmp_path / "sea", method="mask_classification", metrics={})
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)).save(tmp_path / "a.png")
    status, output, errors = segue(
        "compare", tmp_path / "old", tmp_path / "new", "--images", tmp_path / "a.png", "--out", tmp_path / "out"
    )
    assert status == 0, errors
    assert "they disagree on" in output
    pixels = np.array(json.loads((tmp_path / "out" / "comparison.json").read_text())["pixels"])
    assert pixels[:, 1].sum() == pixels.sum() == 40 * 48
    status, _, errors = segue(
        "compare", tmp_path / "old", tmp_path / "sea", "--images", tmp_path / "a.png", "--out", tmp_path / "out2"
    )
    assert (status, "the models share no class" in errors) == (2, True)
    assert not (tmp_path / "out2").exists()


@pytest.mark.slow
def test_a_deep_picture_is_scaled_as_each_model_learnt_it(segue: Segue, tmp_path: Path) -> None:
    """Of two copies of a model, one that saw the darker half of the values in training: the two must not agree."""
    (tmp_path / "photos").mkdir()
    gray = draw(3)[0].mean(2)
    Image.fromarray((500 + 9 * gray).astype(np.uint16)).save(tmp_path / "photos" / "deep.png")
    models = [
        write_model(tmp_path / name, tones=(("I;16", 500.0, white),)) for name, white in (("a", 2800.0), ("b", 900.0))
    ]
    status, _, errors = segue("compare", models[0], models[0], "--images", tmp_path / "photos", "--out", tmp_path / "c")
    assert status == 0, errors
    assert json.loads((tmp_path / "c" / "comparison.json").read_text())["disagreement"] == 0
    status, _, errors = segue("compare", *models, "--images", tmp_path / "photos", "--out", tmp_path / "d")
    assert status == 0, errors
    assert json.loads((tmp_path / "d" / "comparison.json").read_text())["disagreement"] > 0.05
