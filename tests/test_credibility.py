"""Credibility of pixels: each gate by hand, and what must hold of every gate."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.credibility import Gate, absolute, certainty, classwise, credibility, entropy, quantile, ramp, soft

GATES: tuple[Gate, ...] = ("none", "absolute", "quantile", "classwise", "soft")
ALL = torch.ones(1, 1, 4, dtype=torch.bool)


def pixels(*rows: list[float]) -> torch.Tensor:
    """Probabilities of pixels in a row: (1, K, 1, N)."""
    return torch.tensor(rows).T[None, :, None]


def test_entropy_by_hand() -> None:
    found = entropy(pixels([1.0, 0.0], [0.5, 0.5], [0.75, 0.25]))[0, 0]
    expected = [0.0, math.log(2), -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_entropy_of_one_hot_is_zero_and_float32(dtype: torch.dtype) -> None:
    one_hot = pixels([0.0, 1.0, 0.0]).to(dtype)
    found = entropy(one_hot)
    assert found.dtype == torch.float32
    assert float(found) == 0
    for gate in GATES:  # the most certain pixel of all passes each gate
        assert float(credibility(one_hot, gate, progress=1.0)) == 1, gate


def test_ramp_by_hand() -> None:
    assert ramp(0) == pytest.approx(math.exp(-5))
    assert ramp(0.5) == pytest.approx(math.exp(-1.25))
    assert ramp(1) == ramp(7) == 1


@pytest.mark.parametrize(
    ("progress", "share"), [(0.0, 0.752), (0.1, 0.754), (0.25, 0.765), (0.5, 0.822), (0.75, 0.933)]
)
def test_absolute_threshold_as_published(progress: float, share: float) -> None:
    """Shares of ln 19 over the training, to three decimals."""
    below, above = ((share + d) * math.log(19) for d in (-0.001, 0.001))
    found = absolute(torch.tensor([[[below, above]]]), classes=19, progress=progress)
    assert found.tolist() == [[[1, 0]]]


def test_absolute_is_no_gate_for_19_classes_and_one_for_2() -> None:
    """The fault of the published constant: a guess among 9 classes of 19 passes, one among 2 of 2 does not."""
    nine = torch.tensor([[[math.log(9)]]])
    assert float(absolute(nine, classes=19, progress=0.0)) == 1
    assert float(absolute(torch.tensor([[[math.log(2)]]]), classes=2, progress=0.0)) == 0


def test_quantile_keeps_the_most_certain_valid_pixels() -> None:
    u = torch.tensor([[[0.4, 0.1, 0.3, 0.2]]])
    assert quantile(u, ALL, share=0.5).tolist() == [[[0, 1, 0, 1]]]
    inside = torch.tensor([[[True, False, True, True]]])
    assert quantile(u, inside, share=0.34).tolist() == [[[0, 0, 0, 1]]]
    assert quantile(u, ALL, share=0.0).sum() == 0


@given(st.integers(1, 60), st.floats(0, 1))
@settings(deadline=None, max_examples=40)
def test_quantile_keeps_exactly_its_share_even_with_ties(count: int, share: float) -> None:
    u = torch.zeros(1, 1, count)
    assert float(quantile(u, torch.ones(1, 1, count, dtype=torch.bool), share=share).sum()) == round(share * count)


def test_classwise_keeps_some_of_a_rare_and_unsure_class() -> None:
    u = torch.tensor([[[0.1, 0.2, 0.8, 0.9]]])
    prediction = torch.tensor([[[0, 0, 1, 1]]])
    assert classwise(u, prediction, ALL, share=0.5).tolist() == [[[1, 0, 1, 0]]]
    assert quantile(u, ALL, share=0.5).tolist() == [[[1, 1, 0, 0]]]


def test_soft_by_hand() -> None:
    found = soft(torch.tensor([[[0.0, 0.1 * math.log(4)]]]), classes=4, softness=0.1)
    torch.testing.assert_close(found, torch.tensor([[[1.0, math.exp(-1)]]]))
    even = torch.full((1, 4, 1, 1), 0.25)  # u = ln K
    mask = credibility(even, "soft", progress=0.0, softness=0.5)
    torch.testing.assert_close(mask, torch.full((1, 1, 1), math.exp(-2)))


@pytest.mark.parametrize("gate", GATES)
def test_every_gate_is_in_range_leaves_padding_out_and_falls_with_entropy(gate: Gate) -> None:
    torch.manual_seed(0)
    probabilities = (4 * torch.randn(2, 5, 8, 8)).softmax(1)
    inside = torch.rand(2, 8, 8) > 0.3
    mask = credibility(probabilities, gate, progress=0.3, is_valid=inside)
    assert mask.dtype == torch.float32
    assert ((mask >= 0) & (mask <= 1)).all()
    assert (mask[~inside] == 0).all()
    assert mask.sum() > 0
    if gate not in ("none", "classwise"):
        u = entropy(probabilities)[inside]
        kept = mask[inside][u.argsort()]
        assert (kept[:-1] >= kept[1:]).all()


@pytest.mark.parametrize("gate", ["absolute", "quantile", "classwise"])
def test_gates_open_as_training_goes_on(gate: Gate) -> None:
    torch.manual_seed(1)
    probabilities = (1.2 * torch.randn(2, 5, 16, 16)).softmax(1)
    kept = [float(credibility(probabilities, gate, progress=t).mean()) for t in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert kept == sorted(kept)
    assert kept[-1] > kept[0]


@pytest.mark.parametrize("gate", GATES)
def test_not_finite_is_an_error_unless_it_is_padding(gate: Gate) -> None:
    probabilities = torch.full((1, 2, 1, 4), 0.5)
    probabilities[0, 0, 0, 2] = math.nan
    with pytest.raises(FloatingPointError, match="teacher's probabilities"):
        credibility(probabilities, gate, progress=0.0)
    inside = torch.tensor([[[True, True, False, True]]])
    assert credibility(probabilities, gate, progress=1.0, is_valid=inside)[0, 0, 2] == 0


@pytest.mark.parametrize("gate", GATES)
def test_one_class_is_certain(gate: Gate) -> None:
    mask = credibility(torch.ones(1, 1, 2, 2), gate, progress=1.0, shares=(1.0, 1.0))
    assert mask.tolist() == [[[1, 1], [1, 1]]]


@pytest.mark.parametrize("gate", GATES)
def test_a_batch_of_padding_alone_keeps_nothing(gate: Gate) -> None:
    mask = credibility(torch.full((1, 3, 2, 2), 1 / 3), gate, progress=0.5, is_valid=torch.zeros(1, 2, 2).bool())
    assert mask.tolist() == [[[0, 0], [0, 0]]]


def test_certainty_by_hand() -> None:
    sure, other = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])
    views = torch.stack([torch.stack([sure, sure]), torch.stack([sure, other])])  # (T, Q, K + 1)
    expected = torch.tensor([1.0, 1 - math.log(2) / math.log(3)])
    torch.testing.assert_close(certainty(views), expected)
    assert certainty(torch.full((4, 1, 3), 1 / 3)).abs().item() < 1e-6
