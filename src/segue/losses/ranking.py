"""Soft-label ranking: the student's similarities s are to be in the order of the teacher's similarities t.

For one list of n pairs, with d+ = max(d, 0):

    (1)  L    =  sum_i w_i N_i / (N_i + P_i)  /  sum_i w_i
    (2)  N_i  =  sum_j (t_i - t_j)+ l(s_i - s_j),    how far j is from standing below i as it should
    (3)  P_i  =  number of j with t_j >= t_i and s_j >= s_i,    a constant, at least 1
    (4)  w_i  =  (t_i - theta)+,    times alpha where pair i is of images that do not match
    (5)  l(d) =  y+^2 - (y - 1)+^2  with  y = 1 - d / tau:    0 from tau on, a parabola down to 0, then a line
    (6)  l    =  (5) of  (s_i - s_j) - kappa (t_i - t_j) + tau:    0 at s = t for kappa <= 1, and not at s constant

With labels 0 and 1, theta = 0 and l(d) = [d < 0], L is 1 - average precision.

Written down, (2) and (3) take n^2 numbers: 11 GiB a matrix for all pairs of 196 by 196 patches. `ranking_loss` and
`relative_ranking_loss` are as exact, in n log n steps and with memory that grows with n. In order of t, j comes before
i. The list is halved again and again, and an i of an upper half meets its whole lower half at once: in order of s those
that count are the last ones, so running sums of t^a s^b give them. Which ones they are is searched for once; from a
list to its halves it is looked up. The gradient comes along: with c_i = w_i P_i / (N_i + P_i)^2 / sum w,

    (7)  dL/ds_k  =  c_k sum_j (t_k - t_j)+ l'(s_k - s_j)  -  sum_i c_i (t_i - t_k)+ l'(s_i - s_k)

and its second sum is the first one with s, t and the order turned round.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from segue.losses.once import once

Penalty = Callable[[Tensor, Tensor], Tensor]
"""l of eq. 2: (s_i - s_j, t_i - t_j), each of any one shape -> at least 0."""

_LARGEST_BLOCK = 32  # pairs within blocks of this size are compared one by one
_PAIRS_AT_ONCE = 1 << 17  # of those: few enough to stay in a core's cache
_AT_ONCE = 1 << 16  # similarities of lists that a core goes through together, for the same reason


def margin_penalty(tau: float) -> Penalty:
    """Eq. 5."""
    return lambda student, teacher: _parabola_and_line(student, tau)


def relative_penalty(tau: float, kappa: float) -> Penalty:
    """Eq. 6."""
    return lambda student, teacher: _parabola_and_line(student - kappa * teacher + tau, tau)


def _parabola_and_line(difference: Tensor, tau: float) -> Tensor:
    y = (1 - difference / tau).clamp(min=0)
    bent = y.clamp(max=1)
    return bent * (2 * y - bent)  # y^2 up to 1, then 2 y - 1


def ranking_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    tau: float = 0.5,
    threshold: float = -0.2,
    is_match: Tensor | None = None,
    alpha: float = 0.1,
) -> Tensor:
    """Eq. 1 with the margin of eq. 5, exact, in O(n log n) time and O(n) memory a list.

    Args:
        student: s, (n,) or (B, n): one list or many of equal length, any real numbers.
        teacher: t, of the same shape; gets no gradient.
        tau: margin, > 0, in units of s.
        threshold: theta; pairs whose t is below are never to stand high, only low.
        is_match: bool, of the same shape; the pair is of images that match. Default: all do.
        alpha: weight of pairs that do not match.

    Returns:
        A scalar in [0, 1), the mean over the lists; a list without weight counts 0. Computed in float64, of the type of
        ``student`` or float32. It can be differentiated once.

    Raises:
        ValueError: shapes differ, or tau is not positive.
    """
    _check(student, teacher, is_match, tau)
    return _by_sorting(student, teacher, _weights(teacher, threshold, is_match, alpha), tau, kappa=0.0, offset=-1.0)


def relative_ranking_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    tau: float = 0.5,
    kappa: float = 1.0,
    threshold: float = -0.2,
    is_match: Tensor | None = None,
    alpha: float = 0.1,
) -> Tensor:
    """Eq. 1 with the margin of eq. 6: 0 where every difference of s is at least kappa times that of t.

    Arguments, result and cost are those of `ranking_loss`; tau is how far below that a difference costs a square.

    Raises:
        ValueError: as `ranking_loss`, or kappa is not positive: a constant s would be as good as any.
    """
    _check(student, teacher, is_match, tau)
    if kappa <= 0:
        raise ValueError(f"kappa {kappa} must be above 0: at 0 a constant student costs nothing")
    return _by_sorting(student, teacher, _weights(teacher, threshold, is_match, alpha), tau, kappa, offset=0.0)


def ranking_loss_dense(
    student: Tensor,
    teacher: Tensor,
    penalty: Penalty,
    *,
    threshold: float = -0.2,
    is_match: Tensor | None = None,
    alpha: float = 0.1,
) -> Tensor:
    """Eq. 1 as it is written, with any penalty: O(n^2) time and memory. Arguments as of `ranking_loss`."""
    return ranking_loss_chunked(
        student, teacher, penalty, threshold=threshold, is_match=is_match, alpha=alpha, chunk=student.shape[-1]
    )


def ranking_loss_chunked(
    student: Tensor,
    teacher: Tensor,
    penalty: Penalty,
    *,
    threshold: float = -0.2,
    is_match: Tensor | None = None,
    alpha: float = 0.1,
    chunk: int = 256,
) -> Tensor:
    """Eq. 1 with any penalty in O(n^2) time, ``chunk`` rows of pairs in memory at a time: the backward pass computes
    them again. Other arguments as of `ranking_loss`; computed in the type of ``student``, at least float32."""
    _check(student, teacher, is_match, tau=1.0)
    dtype = torch.promote_types(student.dtype, torch.float32)
    weights = _weights(teacher, threshold, is_match, alpha).to(dtype)
    s, t = _rows(student.to(dtype)), _rows(teacher.detach().to(dtype))

    def shares(rows: Tensor, row_teacher: Tensor, row_weights: Tensor, s: Tensor, t: Tensor) -> Tensor:
        ahead = row_teacher[:, :, None] - t[:, None]  # (B, chunk, n)
        behind = rows[:, :, None] - s[:, None]
        wrong = (ahead.clamp(min=0) * penalty(behind, ahead)).sum(2)
        right = ((ahead <= 0) & (behind <= 0)).sum(2)
        return (row_weights * wrong / (wrong + right)).sum(1)

    total = s.new_zeros(len(s))
    is_one = chunk >= s.shape[1]
    for start in range(0, s.shape[1], chunk):
        arguments = (*(x[:, start : start + chunk] for x in (s, t, weights)), s, t)
        total = total + (shares(*arguments) if is_one else checkpoint(shares, *arguments, use_reentrant=False))
    mass = weights.sum(1)
    return (total / torch.where(mass > 0, mass, 1)).mean()


def _check(student: Tensor, teacher: Tensor, is_match: Tensor | None, tau: float) -> None:
    for name, other in (("teacher", teacher), ("is_match", is_match)):
        if other is not None and other.shape != student.shape:
            raise ValueError(f"{name} is {tuple(other.shape)}, the student {tuple(student.shape)}")
    if student.ndim not in (1, 2) or student.numel() == 0:
        raise ValueError(f"the student is {tuple(student.shape)}, expected a list (n,) or lists (B, n)")
    if tau <= 0:
        raise ValueError(f"tau {tau} must be above 0")


def _rows(values: Tensor) -> Tensor:
    """(n,) or (B, n) -> (B, n)."""
    return values.reshape(-1, values.shape[-1])


def _weights(teacher: Tensor, threshold: float, is_match: Tensor | None, alpha: float) -> Tensor:
    """Eq. 4: float64 (B, n)."""
    weights = (_rows(teacher.detach()).double() - threshold).clamp(min=0)
    return weights if is_match is None else torch.where(_rows(is_match), weights, alpha * weights)


# -- in n log n steps --------------------------------------------------------------------------------------------------


def _by_sorting(student: Tensor, teacher: Tensor, weights: Tensor, tau: float, kappa: float, offset: float) -> Tensor:
    """Eqs. 1 and 7. With u = (s - kappa t) / tau, the y of eqs. 5 and 6 is u_j - u_i - offset."""
    lists = len(_rows(student))

    def find_some(wanted: bool, rows: slice) -> tuple[Tensor, Tensor | None]:
        s, t = _rows(student.detach())[rows].double(), _rows(teacher.detach())[rows].double()
        order, not_below = _order(s, t)
        s, t, w = (x.gather(1, order) for x in (s, t, weights[rows]))
        u = (s - kappa * t) / tau
        count = s.shape[1]
        # Shifts change nothing but rounding: sums of small numbers are the more exact.
        u, t = _padded(u - u.mean(1, keepdim=True)), _padded(t - t.mean(1, keepdim=True))
        in_order = _sorted(u)
        at_least, wrong, slope = _over_lower(t, u, torch.ones_like(t), in_order, offset, powers=(2, 1))
        if kappa:
            padded = _padded(s)
            (at_least,) = _over_lower(t, padded, t, _sorted(padded), offset, powers=())
        right = not_below - at_least[:, :count] + _double_ties(s, t[:, :count])
        mass = w.sum(1, keepdim=True)
        scale = w / torch.where(mass > 0, mass, 1) / lists
        wrong = wrong[:, :count].clamp(min=0)  # sums of zeros may round below
        loss = (scale * wrong / (wrong + right)).sum()
        if not wanted:
            return loss, None
        c = scale * right / (wrong + right).square()
        padded_c = F.pad(c, (0, t.shape[1] - count))
        turned = -in_order[0].flip(1), t.shape[1] - 1 - in_order[1].flip(1)
        _, back = _over_lower(-t.flip(1), -u.flip(1), padded_c.flip(1), turned, offset, powers=(1,))
        gradient = (back.flip(1)[:, :count] - c * slope[:, :count]) * (2 / tau)
        return loss, torch.zeros_like(gradient).scatter_(1, order, gradient)

    def find(wanted: tuple[bool], student: Tensor) -> tuple[Tensor, ...]:
        at_once = max(1, _AT_ONCE // student.shape[-1]) if student.device.type == "cpu" else lists
        parts = [find_some(any(wanted), slice(start, start + at_once)) for start in range(0, lists, at_once)]
        loss = torch.stack([part for part, _ in parts]).sum().to(torch.promote_types(student.dtype, torch.float32))
        gradients = [gradient for _, gradient in parts if gradient is not None]
        return (loss, torch.cat(gradients).reshape(student.shape).to(student.dtype)) if gradients else (loss,)

    return once(find, student)


def _order(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """(places of a list in order of t, and of s where t is equal; how many s are not below each), (B, n)."""
    rising, by_s = s.sort(dim=1)
    by_t = t.gather(1, by_s).argsort(dim=1, stable=True)
    return by_s.gather(1, by_t), (s.shape[1] - torch.searchsorted(rising, rising)).gather(1, by_t)


def _padded(values: Tensor) -> Tensor:
    """``values`` (B, n) with the last one repeated, for a length that can be halved until blocks are small."""
    missing = -values.shape[1] % (1 << _halvings(values.shape[1]))
    return torch.cat([values, values[:, -1:].expand(-1, missing)], 1) if missing else values


def _halvings(count: int) -> int:
    """How often a list is cut in halves."""
    return (-(-count // _LARGEST_BLOCK) - 1).bit_length()


def _double_ties(s: Tensor, t: Tensor) -> Tensor:
    """How many before each, in order of (t, s), are equal to it in both; (B, n)."""
    places = torch.arange(s.shape[1], device=s.device).expand_as(s)
    is_first = torch.ones_like(s, dtype=torch.bool)
    is_first[:, 1:] = (s.diff(dim=1) != 0) | (t.diff(dim=1) != 0)
    return places - torch.where(is_first, places, 0).cummax(1)[0]


def _sorted(u: Tensor) -> tuple[Tensor, Tensor]:
    """(values in rising order, their places; equal ones in falling order of place), each (B, n)."""
    upper, places = u.flip(1).sort(dim=1, stable=True)
    return upper, u.shape[1] - 1 - places


def _over_lower(
    t: Tensor, u: Tensor, a: Tensor, in_order: tuple[Tensor, Tensor], offset: float, *, powers: tuple[int, ...]
) -> tuple[Tensor, ...]:
    """Sums over all j that stand before i, for each i of lists in order of t.

    Args:
        t: (B, n), n as `_padded` gives it.
        u: (B, n).
        a: weights, (B, n).
        in_order: ``u`` as `_sorted` gives it.
        offset: -1 or 0.
        powers: of y.

    Returns:
        The number of j with u_j >= u_i, and for each power p  sum_j a_j (t_i - t_j) (y+^p - (y - 1)+^p)  with
        y = u_j - u_i - offset; each (B, n).
    """
    count, width = t.shape
    block = width >> _halvings(width)
    values = torch.stack([t, u, a])
    results = _within_blocks(values.view(3, -1, block), offset, powers).view(-1, count * width)
    if block < width:
        results += _across_blocks(values, *in_order, offset, powers, block)
    return tuple(x.view(count, width) for x in results)


def _across_blocks(
    values: Tensor, upper: Tensor, places: Tensor, offset: float, powers: tuple[int, ...], block: int
) -> Tensor:
    """What `_over_lower` returns, from pairs that are not of one block: (1 + powers, B n).

    ``places`` come to be those in the own part of the list. ``state`` is in order of u within each half: t, u, a, then
    the sums. So whatever is read is read from front to back.
    """
    _, count, size = values.shape
    rows, every = 4 + len(powers), torch.arange(count * size, device=values.device)
    # y+ counts u_j above u_i + offset, (y - 1)+ those above u_i + offset + 1. One of both ends is u_i, the other far.
    apart = offset if offset else 1.0
    far = torch.searchsorted(upper, upper + apart)
    state = values.new_zeros(rows, count, size)
    torch.gather(values, 2, places.expand(3, -1, -1), out=state[:3])
    while size > block:
        half = size // 2
        is_low = places < half
        before = F.pad(is_low.cumsum(1), (1, 0))  # how many of the lower half stand before each
        far_low, own_low = before.gather(1, far), before[:, :-1]
        target = torch.where(is_low, own_low, every[:size] + half - own_low) + every[::size, None]
        order = torch.empty_like(every).scatter_(0, target.flatten(), every)
        state = state.view(rows, -1).gather(1, order.expand(rows, -1))
        halves = state.view(rows, -1, 2, half)
        places, far, far_low, own_low = (
            x.flatten().gather(0, order).view(-1, 2, half) for x in (places, far, far_low, own_low)
        )
        (t_low, u_low, a_low), (t, u, _) = halves[:3].unbind(2)
        sums, far_high, own_high = halves[3:, :, 1], far_low[:, 1], own_low[:, 1]
        sums[0] += half - own_high
        moments = _Moments(t_low, u_low, a_low, max(powers, default=-1))
        for i, power in enumerate(powers, 1):
            far_sum = moments.after(far_high, t, u + apart, power)
            own_sum = moments.after(own_high, t, u, power)
            sums[i] += far_sum - own_sum if offset else own_sum - far_sum
        far = torch.stack([far_low[:, 0], far[:, 1] - far_high], 1).view(-1, half)
        places, size = (places % half).view(-1, half), half
    where = places + every[::size, None]
    return torch.zeros_like(state[3:]).scatter_(1, where.flatten().expand(rows - 3, -1), state[3:])


def _within_blocks(values: Tensor, offset: float, powers: tuple[int, ...]) -> Tensor:
    """What `_over_lower` returns, from pairs of one block alone: (3, blocks, size) -> (1 + powers, blocks, size)."""
    size = values.shape[2]
    is_before = torch.ones(size, size, dtype=torch.bool, device=values.device).tril(-1)
    parts = []
    step = max(1, _PAIRS_AT_ONCE // size**2)
    for start in range(0, values.shape[1], step):
        t, u, a = values[:, start : start + step].unbind()
        above = u[:, None, :] - u[:, :, None]  # (blocks, i, j): u_j - u_i
        sums = [((above >= 0) & is_before).sum(2, dtype=t.dtype)]
        if powers:
            y = (above - offset).clamp_(min=0)
            bent = y.clamp(max=1)  # y+ - (y - 1)+
            gap = (t[:, :, None] - t[:, None, :]).clamp_(min=0) * a[:, None, :]
            sums += [(gap * (bent if power == 1 else bent * (2 * y - bent))).sum(2) for power in powers]
        parts.append(torch.stack(sums))
    return torch.cat(parts, 1)


class _Moments:
    """Running sums over lower halves in order of u, of a t^p u^q; each (blocks, half + 1), the first 0."""

    def __init__(self, t: Tensor, u: Tensor, a: Tensor, highest: int) -> None:
        self.powers = torch.zeros(highest + 1, 2, len(t), t.shape[1] + 1, dtype=t.dtype, device=t.device)
        term = a
        for power in range(highest + 1):
            torch.cumsum(term, 1, out=self.powers[power, 0, :, 1:])
            torch.cumsum(term * t, 1, out=self.powers[power, 1, :, 1:])
            term = term * u

    def after(self, place: Tensor, t: Tensor, v: Tensor, power: int) -> Tensor:
        """sum a_j (t_i - t_j) (u_j - v_i)^power over the j from ``place`` on; all (blocks, half)."""
        sums = [
            t * (of_a[:, -1:] - of_a.gather(1, place)) - (of_at[:, -1:] - of_at.gather(1, place))
            for of_a, of_at in self.powers[: power + 1].unbind(0)
        ]
        linear: Tensor = sums[1] - v * sums[0]
        return linear if power == 1 else sums[2] - v * (sums[1] + linear)
