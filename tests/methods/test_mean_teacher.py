"""The mean teacher: each equation by hand, each known fault of published code, and the whole loss against loops."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import CLASSES, COLORS, TINY

from segue.config import build
from segue.engine import ema_update
from segue.methods.mean_teacher import (
    IGNORE,
    Config,
    MeanTeacher,
    consistency_weight,
    credible_mean,
    cross_entropy_consistency,
    dropped_head,
    ema_decay,
    full_passes,
    half_of_the_classes,
    noisy,
    squared_consistency,
)
from segue.models.segmenter import Segmenter, SegmenterSpec, upsample


def tiny() -> Segmenter:
    torch.manual_seed(0)
    network = Segmenter(SegmenterSpec("test_efficientnet", CLASSES, COLORS, decoder_channels=16))
    with torch.no_grad():
        network.head.weight.mul_(128)  # else every pixel is as unsure as any other
    return network


def batch(seed: int = 0, size: int = 32) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (3, 2, 3, size, size), generator=generator, dtype=torch.uint8)
    mask = torch.randint(0, 3, (2, size, size), generator=generator, dtype=torch.uint8)
    mask[:, :3] = IGNORE
    inside = torch.ones(2, size, size, dtype=torch.bool)
    inside[1, :, -7:] = False
    return {
        "source": {"image": images[0], "mask": mask},
        "target": {"image": images[1], "view": images[2], "inside": inside},
    }


def method(**fields: Any) -> MeanTeacher:
    config = build(Config, {**TINY, "passes": 2, **fields})
    return MeanTeacher(tiny(), config).train()


# -- equations ---------------------------------------------------------------------------------------------------------


def test_noise_is_in_units_of_the_normalised_picture_and_clipped() -> None:
    torch.manual_seed(0)
    network = tiny()
    image = torch.full((4, 3, 32, 32), 100, dtype=torch.uint8)
    moved = network.normalise(noisy(image, network.normalise.std, noise=0.1)) - network.normalise(image)
    assert float(moved.abs().max()) == pytest.approx(0.2, abs=1e-5)
    assert float(moved.std()) == pytest.approx(0.0959, abs=0.002)  # a normal of 0.1, clipped at two deviations
    assert float(noisy(image, network.normalise.std, noise=0.0).sub(100).abs().max()) == 0


def test_student_and_teacher_get_independent_noise() -> None:
    torch.manual_seed(0)
    image = torch.zeros(1, 3, 64, 64)
    first, second = (noisy(image, torch.ones(1, 3, 1, 1), noise=1.0).flatten() for _ in range(2))
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 0.05


@pytest.mark.parametrize("chunk", [2, 3, 5])
def test_chunks_of_passes_give_what_single_passes_give(chunk: int) -> None:
    teacher = tiny().eval()
    image = batch()["target"]["image"]
    found = []
    for size in (1, chunk):
        torch.manual_seed(4)
        with torch.inference_mode():
            found.append(full_passes(teacher, image, passes=5, noise=0.5, chunk=size))
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)
    torch.testing.assert_close(found[0].sum(1), torch.ones(2, 8, 8))


def test_dropped_head_is_the_mean_over_dropped_features() -> None:
    """One product of K drawn weights, against K draws of dropout on the features, in a loop."""
    torch.manual_seed(0)
    head, features, passes, dropout = torch.nn.Conv2d(6, 3, 1), torch.randn(2, 6, 4, 5), 4, 0.5
    torch.manual_seed(9)
    found = dropped_head(head, features, passes=passes, dropout=dropout)
    torch.manual_seed(9)
    kept = torch.rand(2, passes, 1, 6) >= dropout
    expected = torch.zeros(2, 3, 4, 5)
    for k in range(passes):
        expected += head(features * kept[:, k, 0, :, None, None] / (1 - dropout)).softmax(1) / passes
    torch.testing.assert_close(found, expected)
    assert 0 < int(kept.sum()) < kept.numel()


def test_squared_consistency_by_hand() -> None:
    logits = torch.tensor([[[[0.0, math.log(3)]], [[0.0, 0.0]]]])  # (1/2, 1/2) and (3/4, 1/4)
    target = torch.tensor([[[[1.0, 0.75]], [[0.0, 0.25]]]])
    mask = torch.tensor([[[1.0, 1.0]]])
    assert float(squared_consistency(logits, target, mask)) == pytest.approx(0.25 / 2)
    assert float(squared_consistency(logits, target, torch.tensor([[[1.0, 0.0]]]))) == pytest.approx(0.25)


def test_cross_entropy_consistency_by_hand() -> None:
    logits = torch.tensor([[[[0.0, math.log(3)]], [[0.0, 0.0]]]])
    target = torch.tensor([[[[0.6, 0.3]], [[0.4, 0.7]]]])  # argmax 0 and 1
    mask = torch.tensor([[[1.0, 0.5]]])
    expected = (math.log(2) + 0.5 * math.log(4)) / 1.5
    assert float(cross_entropy_consistency(logits, target, mask)) == pytest.approx(expected)


@pytest.mark.parametrize("loss", [squared_consistency, cross_entropy_consistency])
def test_the_mask_changes_loss_and_gradient_which_is_zero_where_masked(loss: Any) -> None:
    """In published code it changed neither: a scalar mean was multiplied by the mask and divided by its sum."""
    torch.manual_seed(0)
    logits, target = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 3, 4, 4).softmax(1)
    mask = (torch.rand(2, 4, 4) > 0.5).float()
    found = []
    for m in (mask, torch.ones_like(mask)):
        value = loss(logits, target, m)
        (gradient,) = torch.autograd.grad(value, logits)
        found.append((float(value.detach()), gradient))
    assert found[0][0] != pytest.approx(found[1][0], rel=1e-3)
    outside = (mask == 0)[:, None].expand_as(logits)
    assert (found[0][1][outside] == 0).all()
    assert (found[0][1][~outside] != 0).any()
    assert (found[1][1][outside] != 0).any()


@pytest.mark.parametrize("loss", [squared_consistency, cross_entropy_consistency])
def test_all_masked_is_zero_with_gradient(loss: Any) -> None:
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    value = loss(logits, torch.full((1, 3, 2, 2), 1 / 3), torch.zeros(1, 2, 2))
    value.backward()
    assert float(value.detach()) == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_no_gradient_flows_into_the_target() -> None:
    target = torch.full((1, 3, 2, 2), 1 / 3, requires_grad=True)
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    squared_consistency(logits, target, torch.ones(1, 2, 2)).backward()
    assert target.grad is None


def test_credible_mean_weights_pixels() -> None:
    assert float(credible_mean(torch.tensor([[[3.0, 9.0]]]), torch.tensor([[[1.0, 0.5]]]))) == pytest.approx(5.0)


def test_weight_by_hand() -> None:
    at = [consistency_weight(step, largest=2.0, ramp_steps=100) for step in (0, 50, 100, 400)]
    assert at == pytest.approx([2 * math.exp(-5), 2 * math.exp(-1.25), 2, 2])
    assert consistency_weight(0, largest=2.0, ramp_steps=0) == 2


def test_the_first_average_copies_the_student_buffers_too() -> None:
    assert [ema_decay(t, largest=0.99) for t in (0, 1, 3)] == [0, 0.5, 0.75]
    assert ema_decay(10**6, largest=0.99) == 0.99
    ours = method()
    with torch.no_grad():
        for tensor in ours.student.parameters():
            tensor.add_(1)
    ours.student(batch()["source"]["image"])  # moves the batch-norm statistics
    ours.after_step(0)
    for name, tensor in ours.student.state_dict().items():
        assert torch.equal(tensor, ours.teacher.state_dict()[name]), name
    assert int(ours.step) == 1


def test_buffers_follow_and_the_teacher_predicts_with_them_in_evaluation() -> None:
    ours = method()
    for step in range(3):
        ours.student(batch(step)["source"]["image"])
        ours.after_step(step)
    means = [name for name in ours.student.state_dict() if name.endswith("running_mean")]
    assert means
    for name in means:
        assert torch.equal(ours.teacher.state_dict()[name], ours.student.state_dict()[name])
        assert ours.student.state_dict()[name].abs().sum() > 0
    image = batch()["source"]["image"]
    ours.eval()
    with torch.no_grad():
        torch.testing.assert_close(ours.teacher(image), ours.teacher(torch.cat([image, 255 - image]))[:2])


def test_half_of_the_classes_rounds_up_and_never_takes_unlabelled_pixels() -> None:
    torch.manual_seed(0)
    mask = torch.tensor([[[0, 0, 1, 2, IGNORE]], [[3, 3, 3, 3, IGNORE]], [[IGNORE] * 5]], dtype=torch.uint8)
    for _ in range(20):
        chosen = half_of_the_classes(mask)
        assert len(mask[0][chosen[0]].unique()) == 2
        assert chosen[1].tolist() == [[True, True, True, True, False]]
        assert not chosen[2].any()
        assert not chosen[mask == IGNORE].any()
    assert len({tuple(half_of_the_classes(mask)[0, 0].tolist()) for _ in range(40)}) == 3  # each pair of three classes


def test_class_mix_pastes_picture_label_and_trust_together() -> None:
    ours = method(class_mix=True)
    source = {"image": torch.full((1, 3, 1, 4), 9, dtype=torch.uint8), "mask": torch.tensor([[[0, 0, 2, IGNORE]]])}
    torch.manual_seed(0)
    view, target, mask = ours.mixed(
        source, torch.zeros(1, 3, 1, 4), torch.full((1, 3, 1, 4), 1 / 3), torch.full((1, 1, 4), 0.2)
    )
    pasted = view[0, 0, 0] == 9
    assert pasted.any()
    assert not pasted[3]
    labels = source["mask"][0, 0]
    for x in range(4):
        expected = F.one_hot(labels[x], 3).float() if pasted[x] else torch.full((3,), 1 / 3)
        torch.testing.assert_close(target[0, :, 0, x], expected)
        assert float(mask[0, 0, x]) == pytest.approx(1.0 if pasted[x] else 0.2)


# -- the whole method --------------------------------------------------------------------------------------------------


def slow_losses(ours: MeanTeacher, given: dict[str, Any], seed: int, step: int) -> tuple[float, float, int]:
    """Eqs. 1 to 6 pixel by pixel: cross-entropy, weighted consistency, and how many pixels were credible."""
    config, (source, target) = ours.config, (given["source"], given["target"])
    torch.manual_seed(seed)
    with torch.no_grad():
        logits = ours.student(source["image"])
        labelled = [
            -float(logits[b, :, y, x].log_softmax(0)[int(k)])
            for b, rows in enumerate(source["mask"])
            for y, row in enumerate(rows)
            for x, k in enumerate(row)
            if k != IGNORE
        ]
        passes = []
        for _ in range(config.passes):
            drawn = (torch.randn(target["image"].shape) * config.noise).clamp(-2 * config.noise, 2 * config.noise)
            features = ours.teacher.features(target["image"].float() + drawn * ours.teacher.normalise.std)
            passes.append(upsample(ours.teacher.head(features).softmax(1), 32, 32))
        mean = sum(passes) / config.passes
        drawn = (torch.randn(target["view"].shape) * config.noise).clamp(-2 * config.noise, 2 * config.noise)
        student = ours.student(target["view"].float() + drawn * ours.student.normalise.std)
    limit = (0.75 + 0.25 * math.exp(-5 * (1 - step / config.steps) ** 2)) * math.log(3)
    total, kept = 0.0, 0
    for b, y, x in [(b, y, x) for b in range(2) for y in range(32) for x in range(32)]:
        p, q = mean[b, :, y, x].double(), student[b, :, y, x].double().softmax(0)
        u = -sum(float(v) * math.log(float(v)) for v in p if v > 0)
        if target["inside"][b, y, x] and u < limit:
            total += float(((p - q) ** 2).sum()) / 3
            kept += 1
    weight = config.weight * math.exp(-5 * (1 - min(1, step / (config.ramp * config.steps))) ** 2)
    return sum(labelled) / len(labelled), weight * total / kept, kept


@pytest.mark.parametrize("step", [0, 3])
def test_the_whole_loss_matches_loops(step: int) -> None:
    ours, given = method(gate="absolute", weight=3.0, steps=10), batch()
    ours.step.fill_(step)
    source, consistency, kept = slow_losses(ours, given, 5, step)
    torch.manual_seed(5)
    found = ours(given)
    assert 0.05 * 2048 < kept < 0.95 * 2048  # the gate is neither open nor closed
    assert float(found["source"].detach()) == pytest.approx(source, rel=1e-4)
    assert float(found["consistency"].detach()) == pytest.approx(consistency, rel=1e-3)


def test_the_softness_reaches_the_gate() -> None:
    even, inside = torch.full((1, 3, 2, 2), 1 / 3), torch.ones(1, 2, 2, dtype=torch.bool)
    for softness in (0.25, 2.0):
        mask = method(gate="soft", gate_softness=softness).credible(even, inside)
        torch.testing.assert_close(mask, torch.full((1, 2, 2), math.exp(-1 / softness)))


@pytest.mark.parametrize("trunk", ["full", "shared"])
@pytest.mark.parametrize("consistency", ["squared", "cross_entropy"])
def test_padding_takes_no_part(trunk: str, consistency: str) -> None:
    """What the padded pixels of the student's view hold decides nothing but through the network's own reach."""
    ours, given = method(trunk=trunk, consistency=consistency, gate="none", weight=1.0, ramp=0.0), batch()
    given["target"]["inside"][:] = False
    assert float(ours(given)["consistency"].detach()) == 0


def test_weight_0_leaves_the_teacher_out() -> None:
    assert set(method(weight=0.0)(batch())) == {"source"}


def test_the_teacher_has_no_gradient_and_stays_in_evaluation_but_for_its_dropout() -> None:
    ours = method(passes=3)
    sum(ours(batch()).values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is None for p in ours.teacher.parameters())
    assert any(p.grad is not None for p in ours.student.parameters())
    norms = [m for m in ours.teacher.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms
    assert not any(m.training for m in norms)
    dropouts = [m for m in ours.teacher.modules() if isinstance(m, torch.nn.Dropout)]
    assert dropouts
    assert all(m.training for m in dropouts)
    assert not any(m.training for m in method(trunk="shared").teacher.modules())
    assert not any(m.training for m in method(passes=1).teacher.modules())


@pytest.mark.parametrize("trunk", ["full", "shared"])
def test_passes_differ_and_their_mean_is_a_distribution(trunk: str) -> None:
    ours, image = method(trunk=trunk, passes=3, noise=0.0), batch()["target"]["image"]
    first, second = ours.teach(image), ours.teach(image)
    assert not torch.equal(first, second)  # dropout alone: there is no noise
    torch.testing.assert_close(first.sum(1), torch.ones(2, 32, 32))
    assert not first.is_inference()


def test_a_teacher_that_is_not_finite_is_named() -> None:
    ours = method()
    with torch.no_grad():
        ours.teacher.head.bias[0] = math.nan  # type: ignore[index]
    with pytest.raises(FloatingPointError, match="teacher"):
        ours(batch())


def test_in_bfloat16_the_target_and_the_entropy_stay_float32() -> None:
    for trunk in ("full", "shared"):
        ours = method(trunk=trunk)
        with torch.autocast("cpu", torch.bfloat16):
            probabilities = ours.teach(batch()["target"]["image"])
            losses = ours(batch())
        assert probabilities.dtype == torch.float32
        assert losses["consistency"].dtype == torch.float32
        torch.testing.assert_close(probabilities.sum(1), torch.ones(2, 32, 32), atol=1e-4, rtol=0)


def test_ema_update_is_the_average_of_eq_7() -> None:
    teacher, student = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    before = [p.clone() for p in teacher.parameters()]
    ema_update(teacher, student, 0.75)
    for old, new, other in zip(before, teacher.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * other)
