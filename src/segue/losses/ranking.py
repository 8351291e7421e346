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
`relative_ranking_loss` are as exact, in n log n steps a pass and memory that grows with n. In order of t, j comes before
i; blocks are halved again and again, and an i of the upper half meets the whole lower half at once: in order of s those
that count are the last ones, so running sums of t^a s^b give them. Which ones they are is searched for once; from block
to half it is looked up. The gradient is found on the way: with c_i = w_i P_i / (N_i + P_i)^2 / sum w,

    (7)  dL/ds_k  =  c_k sum_j (t_k - t_j)+ l'(s_k - s_j)  -  sum_i c_i (t_i - t_k)+ l'(s_i - s_k)

and its second sum is the first one with s, t and the order turned round.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from segue.losses.once import once

Penalty = Callable[[Tensor, Tensor], Tensor]
"""l of eq. 2: (s_i - s_j, t_i - t_j), each of any one shape -> at least 0."""

_LARGEST_BLOCK = 32  # pairs within blocks of this size are compared one by one
_PAIRS_AT_ONCE = 1 << 17  # of those: few enough to stay in a core's cache


def margin_penalty(tau: float) -> Penalty:
    """Eq. 5."""
    return lambda student, teacher: _parabola_and_line(student, tau)


def relative_penalty(tau: float, kappa: float) -> Penalty:
    """Eq. 6."""
    return lambda student, teacher: _parabola_and_line(student - kappa * teacher + tau, tau)


def _parabola_and_line(difference: Tensor, tau: float) -> Tensor:
    y = (1 - difference / tau).clamp(min=0)
    bent = y.clamp(max=1)
    return bent * (2 * y - bent)


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
    s, t = torch.atleast_2d(student.to(dtype)), torch.atleast_2d(teacher.detach().to(dtype))

    def shares(rows: Tensor, row_teacher: Tensor, row_weights: Tensor, s: Tensor, t: Tensor) -> Tensor:
        ahead = row_teacher[:, :, None] - t[:, None]  # (B, chunk, n)
        behind = rows[:, :, None] - s[:, None]
        wrong = (ahead.clamp(min=0) * penalty(behind, ahead)).sum(2)
        right = ((ahead <= 0) & (behind <= 0)).sum(2)
        return (row_weights * wrong / (wrong + right)).sum(1)

    total = s.new_zeros(len(s))
    is_one = chunk >= s.shape[1]
    for rows, row_teacher, row_weights in zip(*(x.split(chunk, 1) for x in (s, t, weights)), strict=True):
        arguments = (rows, row_teacher, row_weights, s, t)
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


def _weights(teacher: Tensor, threshold: float, is_match: Tensor | None, alpha: float) -> Tensor:
    """Eq. 4: float64 (B, n)."""
    weights = (torch.atleast_2d(teacher.detach()).double() - threshold).clamp(min=0)
    return weights if is_match is None else weights * torch.where(torch.atleast_2d(is_match), 1.0, alpha)


# -- in n log n steps --------------------------------------------------------------------------------------------------


def _by_sorting(student: Tensor, teacher: Tensor, weights: Tensor, tau: float, kappa: float, offset: float) -> Tensor:
    """Eqs. 1 and 7. With u = (s - kappa t) / tau, the y of eqs. 5 and 6 is u_j - u_i - offset."""

    def find(wanted: tuple[bool], student: Tensor) -> tuple[Tensor, ...]:
        s, t = torch.atleast_2d(student.detach()).double(), torch.atleast_2d(teacher.detach()).double()
        order = _order(s, t)
        s, t, w = (x.gather(1, order) for x in (s, t, weights))
        u = (s - kappa * t) / tau
        count = s.shape[1]
        # Shifts change nothing but rounding: sums of small numbers are the more exact.
        u, t = _padded(u - u.mean(1, keepdim=True)), _padded(t - t.mean(1, keepdim=True))
        at_least, wrong, slope = _over_lower(t, u, None, offset, powers=(2, 1))
        if kappa:
            (at_least,) = _over_lower(t, _padded(s), None, offset, powers=())
        right = _count_not_below(s) - at_least[:, :count] + _double_ties(s, t[:, :count])
        mass = w.sum(1, keepdim=True)
        scale = w / torch.where(mass > 0, mass, 1) / len(s)
        wrong = wrong[:, :count]
        loss = (scale * wrong / (wrong + right)).sum().to(torch.promote_types(student.dtype, torch.float32))
        if not any(wanted):
            return (loss,)
        c = scale * right / (wrong + right).square()
        padded_c = torch.nn.functional.pad(c, (0, t.shape[1] - count))
        _, back = _over_lower(-t.flip(1), -u.flip(1), padded_c.flip(1), offset, powers=(1,))
        gradient = (back.flip(1)[:, :count] - c * slope[:, :count]) * (2 / tau)
        return loss, torch.zeros_like(gradient).scatter_(1, order, gradient).reshape(student.shape).to(student.dtype)

    return once(find, student)


def _order(s: Tensor, t: Tensor) -> Tensor:
    """Places of a list in order of t, and of s where t is equal; (B, n)."""
    by_s = s.argsort(dim=1)
    return by_s.gather(1, t.gather(1, by_s).argsort(dim=1, stable=True))


def _padded(values: Tensor) -> Tensor:
    """``values`` (B, n) with the last one repeated, for a length that can be halved until blocks are small."""
    count = values.shape[1]
    halvings = max(0, -(-count // _LARGEST_BLOCK) - 1).bit_length()
    missing = -count % (1 << halvings)
    return torch.cat([values, values[:, -1:].expand(-1, missing)], 1) if missing else values


def _count_not_below(s: Tensor) -> Tensor:
    """How many of a list are at least as high as each, itself included; (B, n)."""
    return s.shape[1] - torch.searchsorted(s.sort(dim=1)[0], s.contiguous())


def _double_ties(s: Tensor, t: Tensor) -> Tensor:
    """How many before each, in order of (t, s), are equal to it in both; (B, n)."""
    places = torch.arange(s.shape[1], device=s.device).expand_as(s)
    is_first = torch.ones_like(s, dtype=torch.bool)
    is_first[:, 1:] = (s.diff(dim=1) != 0) | (t.diff(dim=1) != 0)
    return places - torch.where(is_first, places, 0).cummax(1)[0]


def _over_lower(
    t: Tensor, u: Tensor, weights: Tensor | None, offset: float, *, powers: tuple[int, ...]
) -> tuple[Tensor, ...]:
    """Sums over all j that stand before i, for each i of lists in order of t.

    Args:
        t: (B, n), n as `_padded` gives it.
        u: (B, n).
        weights: a_j, (B, n); None counts each j once.
        offset: -1 or 0.
        powers: of y.

    Returns:
        The number of j with u_j >= u_i, and for each power p  sum_j a_j (t_i - t_j) (y+^p - (y - 1)+^p)  with
        y = u_j - u_i - offset; each (B, n).
    """
    width = t.shape[1]
    block = width >> max(0, -(-width // _LARGEST_BLOCK) - 1).bit_length()
    shape = (-1, block)
    within = _within_blocks(
        t.reshape(shape), u.reshape(shape), None if weights is None else weights.reshape(shape), offset, powers
    )
    results = [x.reshape(-1) for x in within]
    t_flat, u_flat = t.reshape(-1), u.reshape(-1)
    a_flat = None if weights is None else weights.reshape(-1)
    for level in _levels(u, offset, block):
        low, high = level.low, level.high
        results[0][high] += low.shape[1] - level.own
        if not powers:
            continue
        t_low, u_low, t_high, u_high = t_flat[low], u_flat[low], t_flat[high], u_flat[high]
        a = torch.ones_like(t_low) if a_flat is None else a_flat[low]
        moments = _Moments(t_low, u_low, a, max(powers))
        # y+ counts those with u_j > u_i + offset, (y - 1)+ those with u_j > u_i + offset + 1: one of them is u_i.
        for result, power in zip(results[1:], powers, strict=True):
            far = moments.after(level.far, t_high, u_high + (offset if offset else 1), power)
            own = moments.after(level.own, t_high, u_high, power)
            result[high] += far - own if offset else own - far
    return tuple(x.reshape(t.shape) for x in results)


def _within_blocks(
    t: Tensor, u: Tensor, weights: Tensor | None, offset: float, powers: tuple[int, ...]
) -> list[Tensor]:
    """What `_over_lower` returns, from pairs of one block alone; all (blocks, size)."""
    size = t.shape[1]
    is_before = torch.ones(size, size, dtype=torch.bool, device=t.device).tril(-1)
    parts: list[list[Tensor]] = [[] for _ in range(1 + len(powers))]
    step = max(1, _PAIRS_AT_ONCE // size**2)
    for start in range(0, len(t), step):
        rows = slice(start, start + step)
        above = u[rows, None, :] - u[rows, :, None]  # (step, i, j): u_j - u_i
        parts[0].append(((above >= 0) & is_before).sum(2))
        if not powers:
            continue
        y = (above - offset).clamp_(min=0)
        bent = y.clamp(max=1)
        gap = (t[rows, :, None] - t[rows, None, :]).clamp_(min=0)
        if weights is not None:
            gap *= weights[rows, None, :]
        for part, power in zip(parts[1:], powers, strict=True):
            part.append((gap * (bent if power == 1 else bent * (2 * y - bent))).sum(2))
    return [torch.cat(part) for part in parts]


class _Level(NamedTuple):
    """Blocks cut in halves: flat places of either half in order of u, (blocks, half); and, of each in the upper half,
    how many of the lower half stand before it in order of u, and before the place that its ``far`` neighbour has."""

    low: Tensor
    high: Tensor
    own: Tensor
    far: Tensor


def _levels(u: Tensor, offset: float, block: int) -> Iterator[_Level]:
    """From whole lists (B, n) down to halves of size ``block``; equal u stand in falling order of place."""
    count, size = u.shape
    if size == block:
        return
    backward, places = u.flip(1).sort(dim=1, stable=True)
    far = torch.searchsorted(backward, backward + (offset if offset else 1))
    places = size - 1 - places + size * torch.arange(count, device=u.device)[:, None]
    while size > block:
        half = size // 2
        is_low = places % size < half
        before = torch.zeros(len(places), size + 1, dtype=torch.int64, device=u.device)
        torch.cumsum(is_low, 1, out=before[:, 1:])
        low_before_far = before.gather(1, far)
        low, high = (chosen.flatten().nonzero().view(-1, half) for chosen in (is_low, ~is_low))
        flat_places, flat_far, flat_before = places.flatten(), low_before_far.flatten(), before[:, :-1].flatten()
        yield _Level(flat_places[low], flat_places[high], flat_before[high], flat_far[high])
        both = torch.stack([low, high], 1)  # (blocks, 2, half)
        far = torch.stack([flat_far[low], far.flatten()[high] - flat_far[high]], 1).view(-1, half)
        places, size = flat_places[both].view(-1, half), half


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
        if power == 1:
            return sums[1] - v * sums[0]
        return sums[2] - v * (2 * sums[1] - v * sums[0])
