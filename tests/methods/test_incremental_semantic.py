"""New classes for a semantic model: each equation by hand, and the command."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from panoptic_sets import SHAPES, write_objects

from segue.data.sample import IGNORE
from segue.evaluation import Measured
from segue.forgetting import ExtensionMeasured, decide
from segue.methods.incremental_semantic import IncrementalSemantic, class_masks, old_divergence, with_pseudo_labels
from segue.metrics import Calibration, Confusion
from segue.models.encoder import settle_statistics
from segue.models.segmenter import UNLIKELY, Segmenter, SegmenterSpec, grown_segmenter
from segue.verbs import extend, train
from segue.weights import load_model

Segue = Callable[..., tuple[int, str, str]]
OLD = SHAPES[:3]


def test_class_masks_by_hand() -> None:
    segments = torch.tensor([[[0, 1], [2, 2]], [[1, 0], [0, 0]]], dtype=torch.int16)
    labels = torch.tensor([[5, 3, -1], [4, -1, -1]])
    assert class_masks(segments, labels).tolist() == [[[IGNORE, 5], [3, 3]], [[4, IGNORE], [IGNORE, IGNORE]]]


def test_pseudo_labels_fill_what_is_unknown_and_sure() -> None:
    mask = torch.tensor([[[3, IGNORE, IGNORE]]])
    historic = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]]).T[None, :, None]  # (1, K, 1, 3)
    everywhere, nowhere = torch.ones(1, 1, 3, dtype=torch.bool), torch.zeros(1, 1, 3, dtype=torch.bool)
    assert with_pseudo_labels(mask, historic, 0.7, everywhere).tolist() == [[[3, 1, IGNORE]]]
    assert with_pseudo_labels(mask, historic, 0.7, nowhere).tolist() == [[[3, IGNORE, IGNORE]]]  # padding gets none


def test_divergence_is_of_old_classes_on_free_pixels() -> None:
    historic = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log().T[None, :, None]
    logits = torch.tensor([[0.25, 0.75, 5.0], [0.5, 0.5, 9.0]]).log().T[None, :, None].requires_grad_()
    mask = torch.tensor([[[IGNORE, 2]]])
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    inside = torch.ones(1, 1, 2, dtype=torch.bool)
    loss = old_divergence(historic, logits, mask, inside)
    assert float(loss) == pytest.approx(expected, abs=1e-6)
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad[0, 2].any()
    assert not logits.grad[..., 1].any()
    assert float(old_divergence(historic, logits, torch.zeros(1, 1, 2).long(), inside)) == 0
    assert float(old_divergence(historic, logits, mask, ~inside)) == 0


def segmenter() -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(SegmenterSpec("test_efficientnet", OLD, ((0, 0, 0),) * 3, decoder_channels=16)).eval()


def test_growth_keeps_old_logits_and_refuses_known_classes() -> None:
    model, image = segmenter(), torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    wider = grown_segmenter(model, ("square",), ((1, 2, 3),))
    with torch.inference_mode():
        torch.testing.assert_close(wider(image)[:, :3], model(image), rtol=0, atol=1e-6)
        assert (wider(image)[:, 3] == UNLIKELY).all()
    assert wider.spec.classes == SHAPES
    for wrong in (("disc",), (), ("a", "a")):
        with pytest.raises(ValueError, match=r"knows the class|each once"):
            grown_segmenter(model, wrong, ((0, 0, 0),) * len(wrong))


def test_distillation_starts_at_zero_and_the_historic_model_stays() -> None:
    model = segmenter()
    settle_statistics(model, torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8))  # else the decoder is near 0
    method = IncrementalSemantic(
        grown_segmenter(model, ("square",), ((0, 0, 0),)), model, pseudo=True, min_score=0.3, distill=1.0
    ).train()
    batch = {
        "image": torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8),
        "segments": torch.zeros(2, 32, 32, dtype=torch.int16),
        "labels": torch.tensor([[3, -1], [-1, -1]]),
        "inside": torch.ones(2, 32, 32, dtype=torch.bool),
    }
    batch["segments"][0, :8] = 1
    losses = method(batch)
    assert abs(float(losses["distillation"])) < 1e-6
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is None for p in method.historic.parameters())
    assert method.current.head.weight.grad is not None
    plain = IncrementalSemantic(method.current, model, pseudo=False, min_score=0.3, distill=0.0)
    assert set(plain(batch)) == {"cross_entropy"}


def test_scores_and_gate_by_hand() -> None:
    def part(counts: list[list[int]]) -> Measured:
        confusion = Confusion(len(counts))
        confusion.counts = np.array(counts)
        return Measured(tuple("abc")[: len(counts)], confusion, Calibration())

    before = part([[8, 2], [0, 10]])  # 8/10, 10/12
    after = part([[5, 0, 5], [0, 10, 0], [0, 0, 0]])  # 5/10, 10/10
    new = part([[0, 0, 0], [0, 0, 0], [1, 0, 3]])  # 3/4
    scores = ExtensionMeasured(new, before, after, 2, ("a", "b", "c"), "miou").scores()
    assert scores["miou_old_before"] == pytest.approx((0.8 + 10 / 12) / 2)
    assert scores["miou_old"] == pytest.approx(0.75)
    assert scores["miou_new"] == pytest.approx(0.75)
    assert scores["iou/c"] == pytest.approx(3 / 9)
    found = decide({**scores}, 5)
    assert found["release"] is False
    assert "mIoU of the old classes 81.7 before, 75.0 after; 5 points may go; of the new" in found["reason"]


@pytest.mark.slow
def test_a_semantic_model_is_extended_by_the_command(segue: Segue, tmp_path: Path) -> None:
    old = write_objects(tmp_path / "old", OLD, shapes=OLD, instances=False)
    new = write_objects(tmp_path / "new", ("square",), instances=False, first=50)
    same = {"device": "cpu", "precision": "fp32", "crop": 32, "batch": 4, "quiet": True}
    network = {name: TINY[name] for name in ("encoder", "init", "decoder_channels")}
    base = train(str(old), tmp_path / "base", method="supervised", steps=12, lr=0.1, **network, **same)
    given = ["extend", base, "--new", new, "--out", tmp_path / "run", "--keep-val", old, "--device=cpu", "--steps=3"]
    status, output, errors = segue(*given, "--task", "semantic", "--crop=32", "--batch=4", "--json", "--max-forget=100")
    assert status == 0, errors
    said = json.loads(output)
    assert said["release"] is True
    assert set(said["scores"]) >= {"miou_old_before", "miou_old", "miou_new", "miou", "iou/square"}
    assert load_model(str(tmp_path / "run")).spec.classes == SHAPES
    assert "mIoU of the old classes" in (tmp_path / "run" / "report.html").read_text()
    out = tmp_path / "replayed"
    extend(base, str(new), out, method="incremental_semantic", unlabeled=(str(old / "images"),), steps=1, **same)
    assert json.loads((out / "run.json").read_text())["data"]["unlabelled"] == 8
    status, _, errors = segue(*given[:5], tmp_path / "wrong", "--device=cpu")
    assert (
        status,
        "is a semantic model and incremental_panoptic extends panoptic ones: add --task semantic" in errors,
    ) == (2, True)


@pytest.mark.slow
def test_old_classes_are_kept_where_plain_fine_tuning_forgets_them(tmp_path: Path) -> None:
    old = str(write_objects(tmp_path / "old", OLD, shapes=OLD, train=32, val=12))
    new = str(write_objects(tmp_path / "new", ("square",), train=24, val=12, first=500))
    same = {"device": "cpu", "precision": "fp32", "crop": 64, "batch": 8, "quiet": True, "scale": (0.8, 1.25)}
    base = train(
        old, tmp_path / "base", method="supervised", steps=80, lr=0.1, encoder="test_efficientnet", init="random",
        decoder_channels=32, **same,
    )  # fmt: skip
    found = {}
    for name, changes in {"plain": {"pseudo": False, "distill": 0.0}, "kept": {}}.items():
        run = extend(
            base, new, tmp_path / name, method="incremental_semantic", keep_val=old, steps=40, lr=0.05,
            **same, **changes,
        )  # fmt: skip
        found[name] = json.loads((run / "evaluation.json").read_text())["scores"]
    assert found["kept"]["miou_old"] > 0.9 * found["kept"]["miou_old_before"]
    assert found["plain"]["miou_old"] < 0.5 * found["kept"]["miou_old"]
    assert found["kept"]["miou_new"] > 0.5
