"""What panoptic training and `segue extend` are for, on shapes that are told apart by colour."""

import json
from pathlib import Path
from typing import Any

import pytest
from panoptic_sets import write_objects

from segue.runs.folder import Run
from segue.verbs import extend, train

pytestmark = pytest.mark.slow
OLD = ("ground", "disc", "bar")
SAME: dict[str, Any] = {
    "device": "cpu", "precision": "fp32", "quiet": True, "points": 256, "crop": 64, "batch": 8, "scale": (0.8, 1.25),
}  # fmt: skip


def scores(run: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((run / "evaluation.json").read_text())["scores"]
    return found


def test_objects_are_learnt_and_kept_while_a_new_class_comes(tmp_path: Path) -> None:
    """From random weights to a base model; then plain fine-tuning forgets it, and pseudo-labels keep 90 %."""
    old = str(write_objects(tmp_path / "old", OLD, shapes=OLD, train=48, val=16))
    new = str(write_objects(tmp_path / "new", ("square",), train=32, val=16, first=500))
    base = train(
        old, tmp_path / "base", method="mask_classification", encoder="test_efficientnet", init="random", queries=12,
        steps=200, lr=1e-3, **SAME,
    )  # fmt: skip
    assert scores(base)["pq/ground"] > 0.8
    assert scores(base)["pq/things"] > 0.5
    losses = [line["loss"] for line in Run(base, quiet=True).read_log()]
    assert losses[-1] < 0.5 * losses[0]

    plain = extend(base, new, tmp_path / "plain", keep_val=old, pseudo=False, distill=0.0, steps=60, lr=1e-3, **SAME)
    assert scores(plain)["pq_old"] < 0.2 * scores(plain)["pq_old_before"]
    assert json.loads((plain / "decision.json").read_text())["release"] is False
    kept = extend(base, new, tmp_path / "kept", keep_val=old, steps=160, lr=1e-3, max_forget=8, **SAME)
    assert scores(kept)["pq_old"] > 0.9 * scores(kept)["pq_old_before"]
    assert scores(kept)["pq_new"] > 0.4
    assert json.loads((kept / "decision.json").read_text())["release"] is True
