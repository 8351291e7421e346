"""New classes without old data: each equation against numbers by hand or a plain reference, and what is claimed."""

import math
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from torch import Tensor

from segue.extension import joined
from segue.methods.incremental_panoptic import (
    FATES,
    IncrementalPanoptic,
    Rules,
    distillation_loss,
    distillation_weight,
    enough_left,
    historic_labels,
    matches_true,
    old_masks,
    pixel_owners,
    pseudo_labels,
    unbiased_divergence,
)
from segue.models.mask_classifier import MaskClassifier, MaskClassifierSpec, Queries, grown, on_padded
from segue.panoptic.loss import Segments

RULES = Rules()
EVERYWHERE = torch.ones(16, 16, dtype=torch.bool)


def random_case(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Class probabilities (7, 5), blurred masks that overlap (7, 9, 11), and up to three true masks that do not."""
    generator = torch.Generator().manual_seed(seed)
    probabilities = (3 * torch.randn(7, 5, generator=generator)).softmax(1)
    centres = torch.rand(7, 2, generator=generator) * torch.tensor([9.0, 11.0])
    places = torch.cartesian_prod(torch.arange(9.0), torch.arange(11.0))
    masks = (4 - 1.2 * torch.cdist(centres, places)).reshape(7, 9, 11)
    masks = (masks + 0.7 * torch.randn(7, 9, 11, generator=generator)).sigmoid()
    truth = torch.zeros(seed % 4, 9, 11, dtype=torch.bool)
    if len(truth):
        truth[0] = masks[0] > 0.45  # matches, so that eq. 2 has something to say
    for j in range(1, len(truth)):
        truth[j, 2 * j : 2 * j + 3, 1:9] = True
        truth[j] &= ~truth[:j].any(0)
    return probabilities, masks, truth


def plain_pseudo_labels(p: Tensor, s: Tensor, g: Tensor, rules: Rules) -> list[tuple[int, set[tuple[int, int]]]]:
    """Eqs. 1 to 5 mask by mask and pixel by pixel, with sets of pixels."""
    queries, none = range(len(p)), p.shape[1] - 1
    pixels = list(product(range(s.shape[1]), range(s.shape[2])))
    true = [{x for x in pixels if g[j][x]} for j in range(len(g))]
    covered = set().union(*true)
    on = [{x for x in pixels if s[i][x] >= rules.min_pixel} for i in queries]

    def measure(i: int, j: set[tuple[int, int]]) -> float:
        if rules.match == "iou":
            return len(on[i] & j) / max(1, len(on[i] | j))
        if rules.match == "ioa":
            return len(on[i] & j) / max(1, len(on[i]))
        return 2 * len(on[i] & covered) / max(1, len(on[i]) + len(covered))

    kept = []
    for i in queries:
        label = int(p[i].argmax())
        if label == none or float(p[i].max()) <= rules.min_score:
            continue
        if rules.match != "none" and any(measure(i, j) > rules.max_match for j in true):
            continue
        kept.append(i)
    won: dict[int, set[tuple[int, int]]] = {i: set() for i in kept}
    for x in pixels:
        if x in covered:
            continue
        rivals = [i for i in kept if x in on[i]] if rules.order == "claim" else kept
        if rivals:
            best = max(rivals, key=lambda i: (float(p[i].max() * s[i][x]), -i))
            won[best].add(x)
    found = []
    for i in kept:
        left = won[i] & on[i]
        if left and len(won[i]) >= rules.min_ratio * len(on[i]):
            found.append((int(p[i].argmax()), left))
    return found


VARIANTS = [
    RULES,
    Rules(order="comformer", min_score=0.0, match="none"),
    Rules(match="ioa", min_ratio=0.8),
    Rules(match="dice_union", max_match=0.3, order="comformer"),
    Rules(match="none", min_pixel=0.3, min_ratio=0.2),
]


@pytest.mark.parametrize("rules", VARIANTS, ids=range(len(VARIANTS)))
def test_pseudo_labels_equal_the_plain_reference(rules: Rules) -> None:
    kept = 0
    for seed in range(24):
        p, s, g = random_case(seed)
        labels, masks, fates = pseudo_labels(p, s, g, rules)
        expected = plain_pseudo_labels(p, s, g, rules)
        found = [(int(c), {tuple(x) for x in m.nonzero().tolist()}) for c, m in zip(labels, masks, strict=True)]
        assert found == expected
        assert int((fates == 0).sum()) == len(found)
        kept += len(found)
    assert kept > 10


def test_the_two_orders_differ_where_a_faint_mask_wins_a_pixel() -> None:
    """At the second pixel the faint mask of a sure class wins before noise is taken out, and then nobody has it."""
    p = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5 - 1e-3]])
    s = torch.tensor([[[0.9, 0.45, 0.0, 0.0]], [[0.0, 0.6, 0.9, 0.9]]])
    none = torch.zeros(0, 1, 4, dtype=torch.bool)
    claim, official = (pseudo_labels(p, s, none, replace(RULES, order=order))[1] for order in ("claim", "comformer"))
    assert claim[:, 0].tolist() == [[True, False, False, False], [False, True, True, True]]
    assert official[:, 0].tolist() == [[True, False, False, False], [False, False, True, True]]


@pytest.mark.parametrize("order", ["claim", "comformer"])
def test_padding_decides_over_no_pseudo_label(order: Any) -> None:
    """Below 0 outside of the picture, as `historic_labels` gives them: there nobody has won a pixel."""
    rules, none = replace(RULES, order=order), torch.zeros(0, 6, 6, dtype=torch.bool)
    for seed in range(24):
        p, s, _ = random_case(seed)
        s = s[:, :6, :6]
        padded = F.pad(s, (0, 20, 0, 20), value=-1.0)
        labels, masks, fates = pseudo_labels(p, s, none, rules)
        more, wider, same = pseudo_labels(p, padded, torch.zeros(0, 26, 26, dtype=torch.bool), rules)
        assert (labels.tolist(), fates.tolist()) == (more.tolist(), same.tolist())
        assert torch.equal(masks, wider[:, :6, :6])


def test_no_pixel_is_in_two_pseudo_masks_or_in_a_true_one() -> None:
    for seed in range(40):
        p, s, g = random_case(seed)
        masks = pseudo_labels(p, s, g, replace(RULES, match="none", min_ratio=0.0))[1]
        assert masks.sum(0).max() <= 1
        assert not (masks & g.any(0)).any() if len(g) else True


def test_old_masks_are_sure_classes() -> None:
    probabilities = torch.tensor([[0.6, 0.1, 0.3], [0.3, 0.1, 0.6], [0.34, 0.33, 0.33], [0.5, 0.5, 0.0]])
    assert old_masks(probabilities, 0.35).tolist() == [True, False, False, True]


def test_matching_a_true_mask_by_hand() -> None:
    row = torch.arange(10)
    on = (row < 6)[None, None]  # 6 pixels
    truth = torch.stack([(row < 3)[None], ((row >= 3) & (row < 9))[None]])  # 3 and 6 pixels, 3 shared with each
    # IoU 3/6 and 3/9; share 3/6 and 3/6; Dice with the union 2 * 6 / (6 + 9).
    for match, value in (("iou", 3 / 6), ("ioa", 3 / 6), ("dice_union", 12 / 15)):
        assert matches_true(on, truth, match, value - 1e-4).item(), match  # type: ignore[arg-type]
        assert not matches_true(on, truth, match, value + 1e-4).item(), match  # type: ignore[arg-type]
    assert not matches_true(on, truth, "none", 0.0).item()
    assert matches_true(on, truth[:0], "iou", 0.0).tolist() == [False]
    assert matches_true(on[:0], truth, "iou", 0.0).tolist() == []


def test_of_equals_the_first_mask_owns_the_pixel() -> None:
    masks = torch.full((3, 1, 2), 0.5)
    allowed = torch.tensor([[[False, True]], [[True, True]], [[True, False]]])
    owners = pixel_owners(masks, allowed, torch.tensor([0.9, 0.8, 0.8]))
    assert owners[:, 0].tolist() == [[False, True], [True, False], [False, False]]


def test_ratio_rule_by_hand() -> None:
    counted, target, left = torch.tensor([5, 4, 0, 9]), torch.tensor([10, 10, 4, 10]), torch.tensor([5, 4, 0, 0])
    assert enough_left(counted, target, left, 0.5).tolist() == [True, False, False, False]
    assert enough_left(counted, target, left, 0.0).tolist() == [True, True, False, False]


def test_each_dropped_mask_has_its_reason() -> None:
    p = torch.eye(3)[[2, 0, 0, 0, 1]] * 0.9 + 0.03
    s = torch.zeros(5, 1, 10)
    s[0, 0, :2] = 0.9  # no object
    s[1, 0, :4] = 0.9  # a true mask
    s[2, 0, 2:4] = 0.9  # within the true mask, and small: nothing left
    s[3, 0, 3:9] = 0.6  # covered by the true mask and by the next one: 1 of 6 left
    s[4, 0, 4:8] = 0.9
    truth = torch.zeros(1, 1, 10, dtype=torch.bool)
    truth[0, 0, :4] = True
    labels, masks, fates = pseudo_labels(p, s, truth, RULES)
    assert [FATES[i] for i in fates.tolist()] == [FATES[1], FATES[2], FATES[3], FATES[4], FATES[0]]
    assert labels.tolist() == [1]
    assert masks[0, 0].nonzero().flatten().tolist() == [4, 5, 6, 7]


def test_historic_labels_are_those_of_the_enlarged_masks() -> None:
    generator = torch.Generator().manual_seed(0)
    classes = 3 * torch.randn(1, 6, 4, generator=generator)
    logits = 4 * torch.randn(1, 6, 4, 4, generator=generator)
    truth = torch.zeros(1, 16, 16, dtype=torch.bool)
    truth[0, :8, :8] = True
    labels, masks, fates = historic_labels(
        Queries(classes, logits), 0, truth, torch.ones(6, dtype=torch.bool), EVERYWHERE, RULES
    )
    full = torch.nn.functional.interpolate(logits, size=(16, 16), mode="bilinear").sigmoid()[0]
    expected = pseudo_labels(classes[0].softmax(1), full, truth, RULES)
    for found, wanted in zip((labels, masks, fates), expected, strict=True):
        assert torch.equal(found, wanted)
    nothing = historic_labels(
        Queries(torch.tensor([[[0.0, 9.0]]]), torch.zeros(1, 1, 4, 4)),
        0,
        truth,
        torch.tensor([True]),
        EVERYWHERE,
        RULES,
    )
    assert nothing[1].shape == (0, 16, 16)


def test_queries_that_noise_changes_are_dropped_as_not_credible() -> None:
    classes = torch.tensor([[[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0]]])
    masks = torch.full((1, 3, 8, 8), -9.0)
    masks[0, 0, :4], masks[0, 1, 4:] = 9.0, 9.0
    is_credible = torch.tensor([True, False, False])
    none = torch.zeros(0, 8, 8, dtype=torch.bool)
    labels, _, fates = historic_labels(Queries(classes, masks), 0, none, is_credible, EVERYWHERE[:8, :8], RULES)
    assert labels.tolist() == [0]
    assert [FATES[i] for i in fates.tolist()] == ["kept", "not credible", FATES[1]]
    torch.manual_seed(0)
    image = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    shares = [
        method_of(base_model(), rules=replace(RULES, min_credibility=t)).credible(image).float().mean().item()
        for t in (0.0, 0.001, 1.1)
    ]
    assert shares[0] == 1
    assert shares[2] == 0
    assert shares[0] >= shares[1] >= shares[2]


# -- distillation ------------------------------------------------------------------------------------------------------


def test_distillation_weight_falls_with_no_object() -> None:
    none = torch.tensor([0.0, 0.25, 0.5, 1.0])
    logits = torch.stack([1 - none, none], 1).log()
    torch.testing.assert_close(distillation_weight(logits, 2.0), torch.tensor([1.0, 0.5625, 0.25, 0.0]))
    steps = distillation_weight(torch.stack([torch.zeros(50), torch.linspace(-4, 4, 50)], 1), 2.0)
    assert (steps.diff() < 0).all()


def test_divergence_by_hand() -> None:
    old = torch.tensor([[0.5, 0.5]]).log()  # one old class, and none
    new = torch.tensor([[0.25, 0.5, 0.25]]).log()  # the old class, a new one, none
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    torch.testing.assert_close(unbiased_divergence(old, new), torch.tensor([expected]))


def test_divergence_matches_a_loop_and_is_never_below_zero() -> None:
    generator = torch.Generator().manual_seed(1)
    old, new = torch.randn(2, 5, 4, generator=generator), torch.randn(2, 5, 7, generator=generator)
    found = unbiased_divergence(old, new)
    p, q = old.softmax(-1), new.softmax(-1)
    for b, i in product(range(2), range(5)):
        total = sum(float(p[b, i, c]) * math.log(p[b, i, c] / q[b, i, c]) for c in range(3))
        total += float(p[b, i, 3]) * math.log(p[b, i, 3] / q[b, i, 3:].sum())
        assert float(found[b, i]) == pytest.approx(total, abs=1e-5)
    assert (found >= 0).all()


def test_queries_without_an_object_give_no_gradient() -> None:
    old = torch.tensor([[[-40.0, 40.0], [2.0, 0.0]]])
    new = torch.randn(1, 2, 3, requires_grad=True)
    distillation_loss(old, new, 2.0).backward()
    assert new.grad is not None
    assert new.grad[0, 0].abs().max() < 1e-12
    assert new.grad[0, 1].abs().max() > 1e-3
    sure = torch.tensor([[[-200.0, 200.0]]])
    loss = distillation_loss(sure, torch.randn(1, 1, 3, requires_grad=True), 2.0)
    assert loss.item() == 0
    assert loss.requires_grad


# -- the method --------------------------------------------------------------------------------------------------------


def base_model(seed: int = 0) -> MaskClassifier:
    torch.manual_seed(seed)
    spec = MaskClassifierSpec(
        "test_efficientnet", ("ground", "disc"), ((9, 9, 9), (200, 0, 0)), (1,),
        width=32, queries=6, pixel_layers=1, decoder_layers=2, feedforward=32,
    )  # fmt: skip
    return MaskClassifier(spec).eval()


def method_of(model: MaskClassifier, **changes: Any) -> IncrementalPanoptic:
    chosen = {"points": 32, "pseudo": True, "distill": 10.0, "gamma": 2.0, **changes}
    current = grown(model, ("bar", "square"), ((0, 0, 9), (0, 9, 0)), (2, 3))
    return IncrementalPanoptic(current, model, chosen.pop("rules", RULES), **chosen).train()


def batch_of(labels: list[int], size: int = 64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    segments = torch.zeros(2, size, size, dtype=torch.int16)
    for i in range(len(labels)):
        segments[0, 8 * i : 8 * i + 8] = i + 1
    padded = torch.full((2, 10), -1)
    padded[0, : len(labels)] = torch.tensor(labels, dtype=torch.long)
    images = torch.randint(0, 256, (2, 3, size, size), generator=generator, dtype=torch.uint8)
    return {
        "image": images, "segments": segments, "labels": padded, "is_labelled": torch.ones(2, dtype=torch.bool),
        "inside": torch.ones_like(segments, dtype=torch.bool),
    }  # fmt: skip


def test_nothing_of_the_current_model_is_dropped() -> None:
    model = base_model()
    model.encoder.add_module("path", DropPath(0.5))
    model.encoder.add_module("drop", torch.nn.Dropout(0.5))
    method = method_of(model)
    assert method.current.training
    assert not method.current.encoder.path.training
    assert not method.current.encoder.drop.training


def test_distillation_starts_at_zero_and_grows_with_change() -> None:
    method = method_of(base_model())
    batch = batch_of([2, 3])
    assert method(batch)["distillation"].item() < 1e-5
    with torch.no_grad():
        method.current.head.bias[0] += 0.5
    assert method(batch)["distillation"].item() > 1e-3


def test_the_historic_model_gets_no_gradient_and_statistics_stay() -> None:
    method = method_of(base_model())
    before = {name: tensor.clone() for name, tensor in method.historic.state_dict().items()}
    statistics = {n: t.clone() for n, t in method.current.state_dict().items() if "running" in n}
    sum(method(batch_of([2])).values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is None for p in method.historic.parameters())
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in method.current.encoder.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in method.historic.state_dict().items())
    assert statistics
    assert all(torch.equal(t, method.current.state_dict()[n]) for n, t in statistics.items())


def test_pseudo_labels_join_the_true_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the loss is asked for: the true bar, and a disc of the historic model beside it."""
    import segue.methods.incremental_panoptic as module

    asked: list[Any] = []

    def losses(layers: Any, truths: Any, *, points: int) -> dict[str, Tensor]:
        asked.extend(truths)
        return {"mask": layers[-1].masks.mean()}

    monkeypatch.setattr(module, "mask_losses", losses)
    model = base_model()
    method = method_of(model)

    class Says(torch.nn.Module):
        spec = model.spec

        def forward(self, image: Tensor) -> Queries:
            classes = torch.full((2, 6, 3), -5.0)
            classes[..., 2] = 5.0
            classes[0, 1] = torch.tensor([-5.0, 5.0, -5.0])
            masks = torch.full((2, 6, 16, 16), -9.0)
            masks[0, 1, 8:12, 4:12] = 9.0
            return Queries(classes, masks)

    method.historic = Says()  # type: ignore[assignment]
    method(batch_of([2]))
    assert asked[0].labels.tolist() == [2, 1]
    assert asked[0].masks[0].sum() == 8 * 64
    assert 16 * 32 * 0.9 < asked[0].masks[1].sum() < 16 * 32 * 1.3
    assert not (asked[0].masks[0] * asked[0].masks[1]).any()
    assert asked[1].labels.tolist() == []
    assert method.fates.tolist()[:2] == [1, 11]


def test_images_without_any_object_or_pseudo_label_have_finite_losses() -> None:
    method = method_of(base_model(), rules=replace(RULES, min_score=1.0))
    losses = method(batch_of([]))
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert method.fates[0] == 0
    plain = method_of(base_model(), pseudo=False, distill=0.0)
    assert set(plain(batch_of([2]))) == {"class", "mask", "dice"}
    assert plain.weights.sum() == 0


def test_batches_of_new_and_old_images_are_joined() -> None:
    first, second = ({"image": torch.full((n, 1), n), "name": [str(n)] * n} for n in (2, 3))
    found = joined(first, second)
    assert found["image"][:, 0].tolist() == [2, 2, 3, 3, 3]
    assert found["name"] == ["2", "2", "3", "3", "3"]


def test_of_images_without_labels_pseudo_labels_alone_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import segue.methods.incremental_panoptic as module

    asked: list[Any] = []

    def losses(layers: Any, truths: Any, *, points: int) -> dict[str, Tensor]:
        asked.extend(truths)
        return {"mask": layers[-1].masks.mean()}

    monkeypatch.setattr(module, "mask_losses", losses)
    method_of(base_model())({**batch_of([2]), "is_labelled": torch.tensor([True, False])})
    assert [truth.is_complete for truth in asked] == [True, False]


def test_padding_is_in_no_pseudo_label() -> None:
    model = base_model()
    with torch.no_grad():
        model.head.bias.copy_(torch.tensor([9.0, 0.0, 0.0]))
    method = method_of(model, rules=Rules(min_pixel=0.0, min_ratio=0.0))
    truth = torch.zeros(0, 64, 64)
    image = torch.zeros(1, 3, 40, 40, dtype=torch.uint8)
    inside = on_padded(torch.ones(1, 40, 40, dtype=torch.bool), (64, 64))[0]
    inside[:, :4] = False  # of a view whose picture is smaller than the crop
    found = method._with_pseudo(
        model(image), 0, Segments(torch.zeros(0, dtype=torch.long), truth), torch.ones(6, dtype=torch.bool), inside
    )
    assert found.masks[:, :40, :40].any()
    assert not found.masks[:, 40:].any()
    assert not found.masks[:, :, 40:].any()
    assert not found.masks[:, :, :4].any()
