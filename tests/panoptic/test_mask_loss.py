"""Matching and losses of mask classification: numbers by hand, plain references, and transformers as the oracle."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from segue.models.mask_classifier import Queries
from segue.panoptic.loss import (
    CLASS,
    DICE,
    MASK,
    NO_OBJECT,
    Segments,
    at_points,
    class_loss,
    mask_losses,
    match,
    point_losses,
    unsure_points,
)


def scene(seed: int, queries: int = 6, segments: int = 3) -> tuple[Queries, Segments]:
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randn(1, queries, 8, 8, generator=generator, requires_grad=True)
    classes = torch.randn(1, queries, 5, generator=generator, requires_grad=True)
    owner = torch.randint(0, segments + 1, (32, 32), generator=generator)
    truth = torch.stack([owner == i for i in range(segments)]).float() if segments else torch.zeros(0, 32, 32)
    labels = torch.randint(0, 4, (segments,), generator=generator)
    return Queries(classes, masks), Segments(labels, truth)


def pair_cost(classes: torch.Tensor, logits: torch.Tensor, label: int, truth: torch.Tensor) -> float:
    """One query against one segment, point by point."""
    bce, product, total = 0.0, 0.0, 0.0
    for x, t in zip(logits.tolist(), truth.tolist(), strict=True):
        p = 1 / (1 + math.exp(-x))
        bce -= (t * math.log(p) + (1 - t) * math.log(1 - p)) / len(logits)
        product, total = product + p * t, total + p + t
    return MASK * bce + DICE * (1 - (2 * product + 1) / (total + 1)) - CLASS * float(classes.softmax(0)[label])


@pytest.mark.parametrize("seed", range(4))
def test_matching_finds_the_cheapest_of_all_assignments(seed: int) -> None:
    queries, segments = scene(seed, queries=4)
    points = torch.rand(20, 2, generator=torch.Generator().manual_seed(seed))
    logits, truth = at_points(queries.masks[0].detach(), points), at_points(segments.masks, points)
    classes = queries.classes[0].detach()
    cost = [[pair_cost(classes[q], logits[q], int(segments.labels[n]), truth[n]) for n in range(3)] for q in range(4)]
    best = min(itertools.permutations(range(4), 3), key=lambda chosen: sum(cost[q][n] for n, q in enumerate(chosen)))
    rows, columns = match(classes, logits, segments.labels, truth)
    assert {int(n): int(q) for q, n in zip(rows, columns, strict=True)} == dict(enumerate(best))


def test_more_segments_than_queries_and_none_at_all() -> None:
    queries, segments = scene(0, queries=2, segments=5)
    rows, columns = match(queries.classes[0], torch.randn(2, 9), segments.labels, torch.rand(5, 9).round())
    assert len(rows) == len(columns) == 2
    nothing = Segments(torch.zeros(0, dtype=torch.long), torch.zeros(0, 32, 32))
    losses = mask_losses([queries], [nothing], points=16)
    sum(losses.values()).backward()
    assert losses["mask"].item() == losses["dice"].item() == 0
    expected = CLASS * F.cross_entropy(queries.classes[0], torch.full((2,), 4))
    torch.testing.assert_close(losses["class"], expected)


def test_class_loss_by_hand() -> None:
    classes = torch.tensor([[[2.0, 0.0, 0.0], [0.0, 0.0, 1.0]]])
    truth = Segments(torch.tensor([1]), torch.zeros(1, 2, 2))
    found = class_loss(classes, [truth], [(torch.tensor([0]), torch.tensor([0]))])
    hit = -math.log(1 / (math.exp(2) + 2))
    empty = -math.log(math.e / (math.e + 2))
    assert float(found) == pytest.approx((hit + NO_OBJECT * empty) / (1 + NO_OBJECT), rel=1e-6)


def test_nothing_is_asked_of_queries_without_a_segment_where_the_truth_is_a_part() -> None:
    classes = torch.tensor([[[0.0, 1.0, 2.0], [1.0, 0.0, 0.0]]], requires_grad=True)
    part = [Segments(torch.tensor([1]), torch.ones(1, 4, 4), is_complete=False)]
    matched = [(torch.tensor([0]), torch.tensor([0]))]
    loss = class_loss(classes, part, matched)
    torch.testing.assert_close(loss, -classes[0, 0].log_softmax(0)[1])
    loss.backward()
    assert classes.grad is not None
    assert not classes.grad[0, 1].any()
    none = [(torch.tensor([], dtype=torch.long),) * 2]
    assert class_loss(classes, [Segments(torch.zeros(0).long(), torch.zeros(0, 4, 4), False)], none).item() == 0


def test_point_losses_on_a_constant_mask_by_hand() -> None:
    """Constant logit and constant truth: every point gives the same, wherever it lies."""
    masks = torch.full((1, 2, 4, 4), math.log(3.0))  # probability 3/4
    truth = Segments(torch.tensor([0]), torch.ones(1, 16, 16))
    found = point_losses(masks, [truth], [(torch.tensor([1]), torch.tensor([0]))], 20, 1)
    assert float(found["mask"]) == pytest.approx(-MASK * math.log(3 / 4), rel=1e-5)
    assert float(found["dice"]) == pytest.approx(DICE * (1 - (2 * 15 + 1) / (15 + 20 + 1)), rel=1e-5)


def test_unsure_points_lie_where_the_mask_is_near_one_half() -> None:
    torch.manual_seed(0)
    logits = torch.linspace(-8, 8, 16).expand(3, 16, 16)  # unsure about the middle columns
    points = unsure_points(logits, 40)
    assert points.shape == (3, 40, 2)
    near = ((points[..., 0] - 0.5).abs() < 0.2).float()
    assert near[:, :30].mean() > 0.95
    assert near[:, 30:].mean() < 0.7


@pytest.mark.parametrize("seed", range(3))
def test_terms_equal_those_of_transformers_at_the_same_points(seed: int) -> None:
    """Its matcher costs and its losses, given sampled values, are functions of their own."""
    theirs = pytest.importorskip("transformers.models.mask2former.modeling_mask2former")
    torch.manual_seed(seed)
    logits, truth = torch.randn(6, 50), torch.rand(3, 50).round()
    labels, classes = torch.tensor([0, 2, 2]), torch.randn(6, 4)
    cost = MASK * theirs.pair_wise_sigmoid_cross_entropy_loss(logits, truth)
    cost = cost + DICE * theirs.pair_wise_dice_loss(logits, truth) - CLASS * classes.softmax(1)[:, labels]
    rows, columns = match(classes, logits, labels, truth)
    ours = sum(float(cost[q, n]) for q, n in zip(rows, columns, strict=True))
    cheapest = min(sum(float(cost[q, n]) for n, q in enumerate(c)) for c in itertools.permutations(range(6), 3))
    assert ours == pytest.approx(cheapest, rel=1e-5)
    maps = torch.full((1, 3, 4, 4), 0.3)
    whole = [Segments(torch.arange(3), torch.ones(3, 16, 16))]
    found = point_losses(maps, whole, [(torch.arange(3), torch.arange(3))], 50, 3)
    flat = (torch.full((3, 50), 0.3), torch.ones(3, 50))
    torch.testing.assert_close(found["dice"], DICE * theirs.dice_loss(*flat, 3), rtol=1e-5, atol=0)
    torch.testing.assert_close(found["mask"], MASK * theirs.sigmoid_cross_entropy_loss(*flat, 3), rtol=1e-5, atol=0)


def test_loss_falls_to_nothing_for_a_right_answer() -> None:
    """A mask and class that say the truth cost little, and a wrong class costs more."""
    truth = torch.zeros(1, 32, 32)
    truth[:, :, :16] = 1
    masks = F.interpolate(truth[None], size=(8, 8), mode="area").repeat(1, 3, 1, 1) * 40 - 20
    classes = torch.full((1, 3, 3), -12.0)
    classes[0, 0, 1], classes[0, 1, 2], classes[0, 2, 2] = 12.0, 12.0, 12.0
    torch.manual_seed(0)
    right = mask_losses([Queries(classes, masks)], [Segments(torch.tensor([1]), truth)], points=64)
    wrong = mask_losses([Queries(classes, masks)], [Segments(torch.tensor([0]), truth)], points=64)
    assert float(right["class"]) < 1e-3
    assert float(wrong["class"]) > 5
    assert float(sum(right.values())) < 2.0
