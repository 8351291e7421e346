"""The card of a model: what a hub reads, what a person reads, and nothing of the machine it was made on."""

import json
from pathlib import Path

import pytest
import yaml
from conftest import TINY

from segue.launch.card import card_of, write_card
from segue.verbs import pretrain, train

HERE = {"device": "cpu", "precision": "fp32", "quiet": True}


def front_matter(card: str) -> dict[str, object]:
    _, header, _ = card.split("---\n", 2)
    loaded: dict[str, object] = yaml.safe_load(header)
    return loaded


def test_a_trained_model_has_a_card(dataset: Path, tmp_path: Path) -> None:
    described = json.loads((dataset / "dataset.json").read_text())
    described["classes"] = ["ground", "di|sc", "b\nar"]
    (dataset / "dataset.json").write_text(json.dumps(described))
    out = train(str(dataset), tmp_path / "run", method="supervised", **{**TINY, "steps": 3}, **HERE)
    card = (out / "model" / "README.md").read_text()
    header = front_matter(card)
    scores = json.loads((out / "evaluation.json").read_text())["scores"]
    (found,) = header["model-index"][0]["results"]  # type: ignore[index]
    assert found["metrics"][0] == {"type": "miou", "name": "mIoU", "value": round(100 * scores["miou"], 2)}
    assert header["pipeline_tag"] == "image-segmentation"
    assert "3 classes: 0 ground, 1 di|sc, 2 b\\nar." in card
    assert "6 labelled images, 3 steps" in card
    assert "On 2 validation images, in percent." in card
    assert f"| iou/di\\|sc | {100 * scores['iou/di|sc']:.1f} |" in card
    assert "segue predict hf:OWNER/NAME" in card
    assert str(tmp_path) not in card
    (out / "model" / "README.md").write_text("mine")
    write_card(out)
    assert (out / "model" / "README.md").read_text() == "mine"


def test_a_model_that_is_not_for_release_says_so(dataset: Path, tmp_path: Path) -> None:
    out = train(str(dataset), tmp_path / "run", method="supervised", val="none", **{**TINY, "steps": 1}, **HERE)
    assert "Nothing was measured" in card_of(out)
    assert "Not for release" not in card_of(out)
    (out / "decision.json").write_text('{"release": false, "reason": "mIoU fell"}')
    assert "**Not for release:** mIoU fell" in card_of(out)


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["test_efficientnet"])
def test_an_encoder_says_how_it_is_trained_on(dataset: Path, tmp_path: Path, encoder: str) -> None:
    fields = {"encoder": encoder, "init": "random", "crop": 32, "batch": 2, "steps": 1, "positives": 1, "clusters": 2}
    out = pretrain(str(dataset), tmp_path / "run", **fields, **HERE)
    card = (out / "model" / "README.md").read_text()
    assert front_matter(card)["pipeline_tag"] == "image-feature-extraction"
    assert f"segue train DATA --init hf:OWNER/NAME --encoder {encoder}" in card
