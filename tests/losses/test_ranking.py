"""Soft-label ranking: numbers by hand and from the spec, a loop as slow as it is plain, three ways that agree."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from segue.losses import (
    margin_penalty,
    ranking_loss,
    ranking_loss_chunked,
    ranking_loss_dense,
    relative_penalty,
    relative_ranking_loss,
)

KAPPAS = [None, 0.5, 1.0]  # None: the margin of eq. 5


def lists(count: int, *, rows: int = 0, grid: bool = True, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """s, t and is_match in float64; on a grid most values are there several times, pairs of them too."""
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, count) if rows else (count,)
    s, t = (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1 for _ in range(2))
    if grid:
        s, t = (8 * s).round() / 8, (4 * t).round() / 4
    return s.requires_grad_(), t, torch.rand(shape, generator=generator) < 0.5


def by_loop(s: Tensor, t: Tensor, is_match: Tensor, *, tau: float, kappa: float | None) -> float:
    """Eq. 1 of one list pair by pair, with theta = 0.1 and alpha = 0.3."""

    def penalty(behind: float, ahead: float) -> float:
        x = behind if kappa is None else behind - kappa * ahead + tau
        return 0.0 if x >= tau else (1 - x / tau) ** 2 if x >= 0 else 1 - 2 * x / tau

    s_, t_ = s.tolist(), t.tolist()
    total = mass = 0.0
    for i in range(len(s_)):
        wrong = sum(max(t_[i] - t_[j], 0) * penalty(s_[i] - s_[j], t_[i] - t_[j]) for j in range(len(s_)))
        right = sum(t_[i] <= t_[j] and s_[i] <= s_[j] for j in range(len(s_)))
        weight = max(t_[i] - 0.1, 0) * (1 if is_match[i] else 0.3)
        total, mass = total + weight * wrong / (wrong + right), mass + weight
    return total / mass


def three_ways(tau: float, kappa: float | None) -> list[Callable[..., Tensor]]:
    """Sorted, dense and in chunks of 7 rows."""

    def by_sorting(s: Tensor, t: Tensor, **keywords: Any) -> Tensor:
        if kappa is None:
            return ranking_loss(s, t, tau=tau, **keywords)
        return relative_ranking_loss(s, t, tau=tau, kappa=kappa, **keywords)

    penalty = margin_penalty(tau) if kappa is None else relative_penalty(tau, kappa)
    return [
        by_sorting,
        lambda s, t, **keywords: ranking_loss_dense(s, t, penalty, **keywords),
        lambda s, t, **keywords: ranking_loss_chunked(s, t, penalty, chunk=7, **keywords),
    ]


@pytest.mark.parametrize("way", range(3))
def test_two_pairs_by_hand(way: int) -> None:
    s = torch.tensor([0.1, 0.3], dtype=torch.float64, requires_grad=True)
    loss = three_ways(0.5, None)[way](s, torch.tensor([0.9, 0.2], dtype=torch.float64))
    loss.backward()
    # The first stands 0.2 below the second: l = 1 + 2 * 0.2 / 0.5 = 1.8, N = 0.7 * 1.8, P = 1. Of the second N = 0.
    assert loss.item() == pytest.approx(1.1 / 1.5 * 1.26 / 2.26, rel=1e-12)
    # dL/dN = 1.1 / 1.5 / 2.26^2 and dN/ds = 0.7 * 2 / 0.5, P being no function of s: the spec's 0.402.
    assert s.grad is not None
    assert s.grad.tolist() == pytest.approx([-1.1 / 1.5 / 2.26**2 * 2.8, 1.1 / 1.5 / 2.26**2 * 2.8], rel=1e-12)
    assert s.grad[1].item() == pytest.approx(0.402, abs=5e-4)


@pytest.mark.parametrize("way", range(3))
def test_three_pairs_within_the_margin_by_hand(way: int) -> None:
    s = torch.tensor([0.4, 0.2, 0.1], dtype=torch.float64)
    t = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    loss = three_ways(0.4, None)[way](s, t, threshold=0.0)
    # In order, but nearer than tau: l(0.2) = 1/4, l(0.3) = 1/16, l(0.1) = 9/16; P = 1, 2 and 3.
    first, second = 0.5 / 4 + 1 / 16, 0.5 * 9 / 16
    assert loss.item() == pytest.approx((first / (first + 1) + 0.5 * second / (second + 2)) / 1.5, rel=1e-12)


@pytest.mark.parametrize("kappa", KAPPAS)
@pytest.mark.parametrize("grid", [True, False])
def test_each_way_equals_a_loop_over_the_pairs(grid: bool, kappa: float | None) -> None:
    s, t, is_match = lists(40, grid=grid)
    expected = by_loop(s, t, is_match, tau=0.5, kappa=kappa)
    for way in three_ways(0.5, kappa):
        found = way(s, t, is_match=is_match, threshold=0.1, alpha=0.3)
        assert found.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kappa", KAPPAS)
@pytest.mark.parametrize("tau", [0.05, 0.5, 3.0])
@pytest.mark.parametrize("count", [1, 2, 33, 64, 100, 300])
def test_three_ways_agree_to_1e_10_with_heavy_ties(count: int, tau: float, kappa: float | None) -> None:
    for grid, rows in ((True, 0), (True, 3), (False, 2)):
        found = []
        for way in three_ways(tau, kappa):
            s, t, is_match = lists(count, rows=rows, grid=grid, seed=count)
            loss = way(s, t, is_match=is_match, threshold=0.1)
            loss.backward()
            found.append((loss.detach(), s.grad))
        for loss, gradient in found[1:]:
            torch.testing.assert_close(loss, found[0][0], rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(gradient, found[0][1], rtol=1e-10, atol=1e-10)


def test_binary_labels_give_one_minus_average_precision() -> None:
    generator = torch.Generator().manual_seed(1)
    s = torch.randn(200, generator=generator, dtype=torch.float64)
    labels = (torch.rand(200, generator=generator) < 0.2).double()
    expected = 1 - average_precision_score(labels.numpy(), s.numpy())
    for found in (
        ranking_loss_dense(s, labels, lambda behind, ahead: (behind < 0).double(), threshold=0.0),
        ranking_loss_chunked(s, labels, lambda behind, ahead: (behind < 0).double(), threshold=0.0, chunk=64),
    ):
        assert found.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kappa", KAPPAS)
@pytest.mark.parametrize("way", range(3))
def test_gradient_is_the_numeric_derivative(way: int, kappa: float | None) -> None:
    s, t, is_match = lists(45, grid=False, seed=3)
    loss = three_ways(0.3, kappa)[way]
    # P jumps where two s are equal: gradcheck's steps of 1e-6 stay clear of that.
    assert s.detach().sort()[0].diff().min() > 1e-5
    assert torch.autograd.gradcheck(lambda s: loss(s, t, is_match=is_match), (s,))


@pytest.mark.parametrize("kappa", KAPPAS)
def test_the_count_of_those_in_order_gets_no_gradient(kappa: float | None) -> None:
    """Eq. 7 from sums written out, with P a number: were P to move, so would the gradient."""
    tau = 0.5
    s, t, _ = lists(50)
    three_ways(tau, kappa)[0](s, t).backward()
    ahead, behind = t[:, None] - t, s.detach()[:, None] - s.detach()
    x = behind if kappa is None else behind - kappa * ahead + tau
    slope = torch.where(x >= tau, 0.0, torch.where(x >= 0, 2 / tau * (x / tau - 1), -2 / tau))
    value = torch.where(x >= tau, 0.0, torch.where(x >= 0, (1 - x / tau) ** 2, 1 - 2 * x / tau))
    wrong, right = (ahead.clamp(min=0) * value).sum(1), ((ahead <= 0) & (behind <= 0)).sum(1)
    weight = (t + 0.2).clamp(min=0)
    c = weight * right / (wrong + right) ** 2 / weight.sum()
    pulls = ahead.clamp(min=0) * slope
    torch.testing.assert_close(s.grad, c * pulls.sum(1) - (c[:, None] * pulls).sum(0), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("kappa", KAPPAS)
def test_gradient_sums_to_zero_and_shifts_change_nothing(kappa: float | None) -> None:
    loss = three_ways(0.5, kappa)[0]
    s, t, is_match = lists(500)
    before = loss(s, t, is_match=is_match)
    before.backward()
    assert s.grad is not None
    assert abs(s.grad.sum().item()) < 1e-14
    assert s.grad.abs().max() > 1e-4
    shifted = loss(s.detach() + 3, t - 5, is_match=is_match, threshold=-5.2)
    torch.testing.assert_close(shifted, before.detach(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("kappa", [None, 0.5])
def test_a_constant_student_is_worse_than_one_in_order(kappa: float | None) -> None:
    loss = three_ways(0.5, kappa)[0]
    t = torch.linspace(-1, 1, 400, dtype=torch.float64)
    constant, same = loss(torch.zeros_like(t), t), loss(t, t)
    # All s equal: l = 1 for eq. 5, N = (t + 1)^2 / 4 n, P = (1 - t) / 2 n. The spec measured 0.752.
    x = torch.linspace(-0.2, 1, 100_001, dtype=torch.float64)
    wrong, right = (x + 1) ** 2 / 4, (1 - x) / 2
    expected = float(((x + 0.2) * wrong / (wrong + right)).sum() / (x + 0.2).sum())
    if kappa is None:
        assert constant.item() == pytest.approx(expected, abs=2e-3)
        assert expected == pytest.approx(0.752, abs=2e-3)
    assert same.item() < 0.15
    assert constant.item() > 0.7
    assert loss(-t, t).item() == pytest.approx(0.999, abs=2e-3)


def test_sharper_than_the_teacher_costs_less_until_all_margins_are_kept() -> None:
    t = torch.linspace(-1, 1, 400, dtype=torch.float64)
    dull, same, sharp = (ranking_loss(k * t, t).item() for k in (0.1, 1.0, 10.0))
    assert dull > 0.6
    assert 0.15 > same > 0.05 > sharp > 0
    assert 0 <= ranking_loss(0.5 * torch.arange(400.0), t).item() < 1e-12  # neighbours tau apart
    nearly = [ranking_loss(t, t, tau=tau).item() for tau in (0.1, 0.02, 0.001)]
    assert nearly == sorted(nearly, reverse=True)
    assert nearly[0] == pytest.approx(7e-3, abs=2e-3)
    assert nearly[2] < 1e-5


@pytest.mark.parametrize("kappa", [0.5, 1.0])
def test_the_relative_margin_is_zero_at_the_teacher(kappa: float) -> None:
    _, t, _ = lists(200)
    for student in (t, 2 * t, t + 1):
        leaf = student.clone().requires_grad_()
        loss = relative_ranking_loss(leaf, t, kappa=kappa)
        loss.backward()
        assert 0 <= loss.item() < 1e-14
        assert leaf.grad is not None
        assert leaf.grad.abs().max() < 1e-12
    assert relative_ranking_loss(0.4 * t, t, kappa=kappa).item() > 1e-3
    with pytest.raises(ValueError, match="kappa 0 must be above 0"):
        relative_ranking_loss(t, t, kappa=0)


def test_a_hopeless_pair_pulls_little() -> None:
    """1 / (1 + N/P)^2: what is far out of order is nearly left alone, so a few wrong labels do not rule."""
    t = torch.tensor([1.0, 0.0], dtype=torch.float64)
    pulls = []
    for gap in (0.0, 1.0, 10.0):
        s = torch.tensor([-gap, 0.0], dtype=torch.float64, requires_grad=True)
        ranking_loss(s, t, threshold=0.0).backward()
        assert s.grad is not None
        pulls.append(s.grad[1].item())
    assert pulls == pytest.approx([4 / 4, 4 / 36, 4 / 42**2])  # N = 1, 5 and 41


def test_float32_lists_are_summed_in_float64() -> None:
    s, t, _ = lists(3000, grid=False)
    exact, single = s.detach().float().double().requires_grad_(), s.detach().float().requires_grad_()
    ranking_loss(exact, t.float().double(), tau=0.05).backward()
    loss = ranking_loss(single, t.float(), tau=0.05)
    loss.backward()
    assert exact.grad is not None
    assert single.grad is not None
    assert loss.dtype == single.grad.dtype == torch.float32
    error = (single.grad - exact.grad).norm() / exact.grad.norm()
    assert error < 1e-7  # one rounding; sums in float32 are off by 5e-4 here


def test_half_precision_is_taken_and_the_loss_is_float32() -> None:
    s, t, _ = lists(50)
    half = s.detach().bfloat16().requires_grad_()
    loss = ranking_loss(half, t.bfloat16())
    loss.backward()
    assert loss.dtype == torch.float32
    assert half.grad is not None
    assert half.grad.dtype == torch.bfloat16
    torch.testing.assert_close(loss.double(), ranking_loss(s, t), rtol=1e-6, atol=0)  # eighths are exact


def test_rows_are_lists_of_their_own_and_a_whole_list_is_another_loss() -> None:
    s, t, is_match = lists(60, rows=3, seed=5)
    t[2] = -0.5  # no weight
    alone = [ranking_loss(s[i], t[i], is_match=is_match[i]) for i in range(2)]
    together = ranking_loss(s, t, is_match=is_match)
    torch.testing.assert_close(together, (alone[0] + alone[1]) / 3)
    whole = ranking_loss(s.flatten(), t.flatten(), is_match=is_match.flatten())
    assert abs(whole.item() - together.item()) > 1e-3


def test_pairs_that_do_not_match_weigh_alpha_and_stay_below_the_others() -> None:
    s, t, _ = lists(60, seed=6)
    is_match = torch.arange(60) < 30
    zero = ranking_loss(s, t, is_match=is_match, alpha=0.0)
    zero.backward()
    assert s.grad is not None
    assert s.grad[30:].abs().sum() > 0  # no anchors, and yet pushed down
    without = ranking_loss(s.detach()[:30], t[:30])
    assert abs(zero.item() - without.item()) > 1e-3
    torch.testing.assert_close(ranking_loss(s, t, is_match=is_match, alpha=1.0), ranking_loss(s, t))


def test_the_teacher_gets_no_gradient() -> None:
    for way in three_ways(0.5, None):
        s, t, _ = lists(30)
        t.requires_grad_()
        way(s, t).backward()
        assert t.grad is None


def test_lists_without_weight_cost_nothing_and_have_a_gradient() -> None:
    for way in three_ways(0.5, None):
        s = torch.randn(20, requires_grad=True)
        loss = way(s, torch.full((20,), -1.0))
        loss.backward()
        assert loss.item() == 0
        assert s.grad is not None
        assert s.grad.abs().sum() == 0


@pytest.mark.slow
def test_the_gradient_descent_puts_scores_in_order() -> None:
    generator = torch.Generator().manual_seed(0)
    t = 2 * torch.rand(150, generator=generator, dtype=torch.float64) - 1
    s = torch.randn(150, generator=generator, dtype=torch.float64).mul(0.1).requires_grad_()
    above = t[:, None] > t

    def in_order() -> float:
        return float((s.detach()[:, None] > s.detach())[above].double().mean())

    before = in_order()
    optimizer = torch.optim.Adam([s], 0.02)
    for _ in range(250):
        optimizer.zero_grad()
        ranking_loss(s, t, threshold=-1.0).backward()
        optimizer.step()
    assert before < 0.6
    assert in_order() > 0.98  # Kendall's tau above 0.96; the spec reached 0.982 in 400 steps on 400 scores


class LargestTensor(TorchDispatchMode):
    """The number of elements of the largest tensor any operation returned."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for part in result if isinstance(result, tuple | list) else [result]:
            if isinstance(part, Tensor):
                self.size = max(self.size, part.untyped_storage().nbytes() // part.element_size())
        return result


@pytest.mark.parametrize("kappa", [None, 1.0])
def test_no_tensor_grows_with_the_square_of_the_list(kappa: float | None) -> None:
    for count in (20_000, 40_000):
        s, t, _ = lists(count)
        with LargestTensor() as mode:
            three_ways(0.5, kappa)[0](s, t).backward()
        assert mode.size <= 10 * max(count, 1 << 17)


def test_a_second_derivative_is_refused() -> None:
    s, t, _ = lists(10)
    with pytest.raises(RuntimeError, match="differentiated once"):
        torch.autograd.grad(ranking_loss(s, t), s, create_graph=True)


def test_wrong_shapes_and_margins_are_named() -> None:
    s, t = torch.zeros(4), torch.zeros(4)
    for call, message in (
        (lambda: ranking_loss(s, t[:3]), r"teacher is \(3,\), the student \(4,\)"),
        (lambda: ranking_loss(s, t, is_match=torch.ones(2, dtype=torch.bool)), r"is_match is \(2,\)"),
        (lambda: ranking_loss(s[None, None], t[None, None]), r"expected a list \(n,\) or lists"),
        (lambda: ranking_loss(s[:0], t[:0]), "expected a list"),
        (lambda: ranking_loss(s, t, tau=0), "tau 0 must be above 0"),
        (lambda: relative_ranking_loss(s, t, kappa=-1), "kappa -1 must be above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_not_a_number_comes_through() -> None:
    """A NaN is for the training loop to refuse, not for the sorting to hide."""
    s, t, _ = lists(100)
    with torch.no_grad():
        s[3] = math.nan
    assert math.isnan(ranking_loss(s, t).item())
    t[5] = math.nan
    assert math.isnan(ranking_loss(lists(100)[0], t).item())
