"""Panoptic maps: their quality against numbers by hand, a plain reference and panopticapi; merging by the rule."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from segue.data.panoptic_map import PanopticMap
from segue.data.sample import IGNORE
from segue.panoptic.merging import merge
from segue.panoptic.quality import PanopticQuality, quality_scores

CLASSES = 5


def random_map(rng: np.random.Generator, *, void: bool, crowd: bool, like: PanopticMap | None = None) -> PanopticMap:
    """Rectangles over each other; with ``like``, most of them moved a little, as a model's prediction of it."""
    size, count = (24, 31), int(rng.integers(3, 12))
    masks, labels = [], []
    for _ in range(count):
        y, x = rng.integers(0, 18, 2)
        mask = np.zeros(size, bool)
        mask[y : y + int(rng.integers(3, 14)), x : x + int(rng.integers(3, 18))] = True
        masks.append(mask)
        labels.append(int(rng.integers(CLASSES)))
    if like is not None:
        for i, label in enumerate(like.labels):
            if rng.random() < 0.8:
                masks.append(np.roll(like.ids == i + 1, tuple(rng.integers(-1, 2, 2)), (0, 1)))
                labels.append(label if rng.random() < 0.9 else int(rng.integers(CLASSES)))
    if not void:
        masks.insert(0, np.ones(size, bool))
        labels.insert(0, 0)
    stacked = np.stack(masks)
    for i in range(len(stacked)):  # what later ones cover is gone
        stacked[i] &= ~stacked[i + 1 :].any(0)
    kept = stacked.any((1, 2))
    chosen = [label for label, is_kept in zip(labels, kept, strict=True) if is_kept]
    return PanopticMap.of(stacked[kept], chosen, [crowd and rng.random() < 0.3 for _ in chosen])


def plain_quality(pairs: list[tuple[PanopticMap, PanopticMap]]) -> np.ndarray:
    """(K, 4) of IoU sum, hits, false and missed: the published rule, segment by segment, with pixel sets."""
    total = np.zeros((CLASSES, 4))
    for truth, prediction in pairs:
        true = [{tuple(p) for p in np.argwhere(truth.ids == i + 1)} for i in range(len(truth.labels))]
        said = [{tuple(p) for p in np.argwhere(prediction.ids == i + 1)} for i in range(len(prediction.labels))]
        void = {tuple(p) for p in np.argwhere(truth.ids == 0)}
        hit_true, hit_said = set(), set()
        for i, t in enumerate(true):
            for j, s in enumerate(said):
                if truth.is_crowd[i] or truth.labels[i] != prediction.labels[j] or not t & s:
                    continue
                iou = len(t & s) / (len(t) + len(s) - len(t & s) - len(void & s))
                if iou > 0.5:
                    total[truth.labels[i], :2] += (iou, 1)
                    hit_true.add(i)
                    hit_said.add(j)
        for i, label in enumerate(truth.labels):
            if i not in hit_true and not truth.is_crowd[i]:
                total[label, 3] += 1
        for j, s in enumerate(said):
            crowds = [i for i, label in enumerate(truth.labels) if truth.is_crowd[i] and label == prediction.labels[j]]
            free = len(void & s) + (len(true[crowds[-1]] & s) if crowds else 0)
            if j not in hit_said and free / len(s) <= 0.5:
                total[prediction.labels[j], 2] += 1
    return total


def random_pairs(seed: int) -> list[tuple[PanopticMap, PanopticMap]]:
    rng = np.random.default_rng(seed)
    truths = [random_map(rng, void=bool(seed % 2), crowd=bool(seed // 2 % 2)) for _ in range(6)]
    return [(truth, random_map(rng, void=bool(seed // 4 % 2), crowd=False, like=truth)) for truth in truths]


@pytest.mark.parametrize("seed", range(8))
def test_quality_equals_the_plain_rule_with_void_and_crowds(seed: int) -> None:
    quality = PanopticQuality(CLASSES)
    pairs = random_pairs(seed)
    for truth, prediction in pairs:
        quality.update(truth, prediction)
    expected = plain_quality(pairs)
    np.testing.assert_allclose(quality.iou, expected[:, 0], atol=1e-9)
    np.testing.assert_array_equal(np.stack([quality.hits, quality.false, quality.missed], 1), expected[:, 1:])
    assert quality.hits.sum() > 3


def test_quality_by_hand() -> None:
    truth = PanopticMap(np.array([[1, 1, 1, 2], [1, 3, 3, 2], [0, 3, 3, 2]]), (0, 1, 1), (False, False, False))
    said = PanopticMap(np.array([[1, 1, 1, 2], [1, 3, 0, 2], [1, 3, 3, 3]]), (0, 1, 1))
    quality = PanopticQuality(3)
    quality.update(truth, said)
    # Class 0: 4 shared, the void pixel is out of the union. Class 1: 2 of 3, and 3 of 5.
    np.testing.assert_allclose(quality.iou, [1, 2 / 3 + 3 / 5, 0])
    scores = quality_scores(quality, ("a", "b", "c"), {"things": [1, 2], "stuff": [0]})
    assert scores["pq"] == pytest.approx((1 + (2 / 3 + 3 / 5) / 2) / 2)
    assert scores["pq/things"] == pytest.approx((2 / 3 + 3 / 5) / 2)
    assert scores["rq"] == scores["pq/stuff"] == 1
    assert math.isnan(scores["pq/c"])


def test_a_class_only_predicted_lowers_the_mean_and_nothing_at_all_is_nan() -> None:
    quality = PanopticQuality(2)
    assert math.isnan(quality.mean()["pq"])
    quality.update(PanopticMap(np.ones((2, 2), int), (0,)), PanopticMap(np.array([[1, 1], [1, 2]]), (0, 1)))
    assert quality.mean()["pq"] == pytest.approx(0.75 / 2)
    with pytest.raises(ValueError, match="differ in size"):
        quality.update(PanopticMap(np.ones((2, 2), int), (0,)), PanopticMap(np.ones((2, 3), int), (0,)))


def test_future_classes_become_void() -> None:
    found = PanopticMap(np.array([[1, 2, 3, 0]]), (4, 2, 4), (False, True, False)).void([2])
    np.testing.assert_array_equal(found.ids, [[1, 0, 2, 0]])
    assert (found.labels, found.is_crowd) == ((4, 4), (False, False))
    np.testing.assert_array_equal(found.classes(), [[4, IGNORE, 4, IGNORE]])


@pytest.mark.parametrize("seed", range(8))
def test_quality_equals_panopticapi(seed: int, tmp_path: Path) -> None:
    evaluation = pytest.importorskip("panopticapi.evaluation")
    annotations: list[list[dict[str, Any]]] = [[], []]
    quality = PanopticQuality(CLASSES)
    for number, pair in enumerate(random_pairs(seed)):
        quality.update(*pair)
        for kind, found, rows in zip(("truth", "said"), pair, annotations, strict=True):
            (tmp_path / kind).mkdir(exist_ok=True)
            pixels = np.stack([found.ids % 256, found.ids // 256, np.zeros_like(found.ids)], 2).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / kind / f"{number}.png")
            areas = [int((found.ids == i + 1).sum()) for i in range(len(found.labels))]
            segments = [
                {"id": i + 1, "category_id": label, "area": areas[i], "iscrowd": int(found.is_crowd[i])}
                for i, label in enumerate(found.labels)
            ]
            rows.append({"image_id": number, "file_name": f"{number}.png", "segments_info": segments})
    categories = [{"id": i, "name": str(i), "isthing": i % 2} for i in range(CLASSES)]
    for kind, rows in zip(("truth", "said"), annotations, strict=True):
        content = {"images": [], "annotations": rows, "categories": categories}
        (tmp_path / f"{kind}.json").write_text(json.dumps(content))
    theirs = evaluation.pq_compute(
        str(tmp_path / "truth.json"), str(tmp_path / "said.json"), str(tmp_path / "truth"), str(tmp_path / "said")
    )
    names = tuple(map(str, range(CLASSES)))
    scores = quality_scores(quality, names, {"things": range(1, CLASSES, 2), "stuff": range(0, CLASSES, 2)})
    for group, ours in (("All", ""), ("Things", "/things"), ("Stuff", "/stuff")):
        for kind in ("pq", "sq", "rq"):
            assert scores[f"{kind}{ours}"] == pytest.approx(theirs[group][kind], abs=1e-6)


@pytest.mark.parametrize("seed", (0, 1))
def test_quality_equals_torchmetrics_where_predictions_have_no_void(seed: int) -> None:
    """With void in predictions theirs leaves the rule: it takes that out of the union, too."""
    from torchmetrics.detection import PanopticQuality as Theirs

    theirs = Theirs(things=set(range(CLASSES)), stuffs={CLASSES}, allow_unknown_preds_category=False)
    ours = PanopticQuality(CLASSES)
    for truth, said in random_pairs(seed):
        ours.update(truth, said)
        theirs.update(*(torch.from_numpy(np.stack([m.classes(), m.ids], -1)).int()[None] for m in (said, truth)))
    assert ours.mean()["pq"] == pytest.approx(float(theirs.compute()), abs=1e-5)


# -- merging -----------------------------------------------------------------------------------------------------------


def plain_merge(
    probabilities: torch.Tensor, masks: torch.Tensor, things: tuple[int, ...]
) -> tuple[np.ndarray, list[int]]:
    """The official rule query by query and pixel by pixel; masks are probabilities (Q, H, W)."""
    count, height, width = masks.shape
    taking = [q for q in range(count) if probabilities[q].argmax() < len(probabilities[q]) - 1]
    taking = [q for q in taking if probabilities[q].max() > 0.8]
    ids, labels, of_stuff = np.zeros((height, width), np.int32), list[int](), dict[int, int]()
    for q in taking:
        label, pixels, won, area = int(probabilities[q].argmax()), [], 0, 0
        for y in range(height):
            for x in range(width):
                area += bool(masks[q, y, x] >= 0.5)
                best = max(taking, key=lambda o: float(probabilities[o].max() * masks[o, y, x]))
                if best == q:
                    won += 1
                    if masks[q, y, x] >= 0.5:
                        pixels.append((y, x))
        if not pixels or won / area < 0.8:
            continue
        if label in of_stuff:
            number = of_stuff[label]
        else:
            labels.append(label)
            number = len(labels)
            if label not in things:
                of_stuff[label] = number
        for pixel in pixels:
            ids[pixel] = number
    return ids, labels


@pytest.mark.parametrize("seed", range(12))
def test_merging_equals_the_plain_rule(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(9, 2, generator=generator) * 12
    places = torch.cartesian_prod(torch.arange(12.0), torch.arange(12.0))
    logits = 6 - 2 * torch.cdist(centres, places).reshape(9, 12, 12) + torch.randn(9, 12, 12, generator=generator)
    classes = (8 * torch.rand(9, 4, generator=generator)).softmax(1)
    found = merge(classes, logits, (0,), size=(12, 12))
    ids, labels = plain_merge(classes, logits.sigmoid(), (0,))
    np.testing.assert_array_equal(found.ids, ids)
    assert list(found.labels) == labels
    assert len(found.scores) == len(labels)


def test_stuff_that_appears_again_keeps_numbers_unique() -> None:
    """Segments after a fused one used to take its number in the usual implementation."""
    logits = torch.full((4, 1, 8), -9.0)
    for q in range(4):
        logits[q, 0, 2 * q : 2 * q + 2] = 9.0
    classes = torch.eye(4)[[1, 0, 1, 0]] * 0.9 + 0.025  # stuff, thing, stuff, thing
    found = merge(classes, logits, (0,), size=(1, 8))
    np.testing.assert_array_equal(found.ids, [[1, 1, 2, 2, 1, 1, 3, 3]])
    assert found.labels == (1, 0, 0)


def test_unsure_pixels_are_void_and_covered_queries_go() -> None:
    logits = torch.tensor([[[5.0, 5.0, 5.0, 5.0, -0.1]], [[4.0, 4.0, 4.0, -5.0, -5.0]]])
    classes = torch.tensor([[0.9, 0.05, 0.05], [0.05, 0.9, 0.05]])
    found = merge(classes, logits, (0, 1), size=(1, 5))
    np.testing.assert_array_equal(found.ids, [[1, 1, 1, 1, 0]])  # the second query won none of its three pixels
    assert found.labels == (0,)
    nothing = merge(torch.tensor([[0.1, 0.1, 0.8]]), logits[:1], (0,), size=(3, 4))
    assert nothing.ids.shape == (3, 4)
    assert not nothing.ids.any()


def test_a_probable_mask_with_a_modest_score_is_kept() -> None:
    """Mask probability 0.6 times class probability 0.7 is below one half; the mask itself is not."""
    logits = torch.full((1, 2, 2), math.log(0.6 / 0.4))
    found = merge(torch.tensor([[0.7, 0.2, 0.1]]), logits, (0,), size=(2, 2), score=0.5)
    assert (found.ids == 1).all()


def test_padding_is_cut_before_areas_are_counted() -> None:
    logits = torch.full((1, 2, 2), 5.0)
    found = merge(torch.tensor([[0.9, 0.1]]), logits, (0,), size=(5, 3), padded=(8, 8))
    assert found.ids.shape == (5, 3)
    assert (found.ids == 1).all()
