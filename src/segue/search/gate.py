"""Gate A: whether a candidate goes on from the short training of its decoder to training end to end.

r_k is the reward of candidate k after the short training, charged for its time where there is a target; mu and s are
mean and deviation of those known when it was asked for, exponentially weighted with bias correction.

    (1)  z  =  (r - mu) / s
    (2)  T_k  =  T_0 (T_1 / T_0)^{min(k, K) / K},      T = 1 / ln(1 / p):  T_0 for p = 0.9, T_1 for p = 0.1
    (3)  accept with probability 1 if z >= 0 or k <= 10, else e^{z / T_k}

The rule is Metropolis's, on standardised rewards (Kirkpatrick et al., *Optimization by Simulated Annealing*, 1983). The
published rule (``published``) compares with a running mean that starts at 0.01 and needs 200 candidates to rise: with
the budgets people have it lets everything through. The draw comes from (seed, trial), so a decision can be replayed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from segue.batches import mix

Rule = Literal["metropolis", "published", "always", "never"]
FREE = 10  # candidates that all pass, while there is nothing to compare with
DECAY = 0.95


@dataclass(frozen=True)
class Verdict:
    """A decision and all that it was made of.

    Args:
        accepted: whether the candidate goes on.
        mu: mean of the rewards before it.
        s: their deviation, at least 1e-3.
        temperature: T of eq. 2.
        u: the draw, in [0, 1).
    """

    accepted: bool
    mu: float
    s: float
    temperature: float
    u: float


def statistics(rewards: Sequence[float]) -> tuple[float, float]:
    """mu and s of rewards in their order."""
    first = second = 0.0
    for reward in rewards:
        first = DECAY * first + (1 - DECAY) * reward
        second = DECAY * second + (1 - DECAY) * reward**2
    weight = 1 - DECAY ** len(rewards)
    mu = first / weight if rewards else 0.0
    spread = second / weight - mu**2 if rewards else 0.0
    return mu, max(math.sqrt(max(spread, 0.0)), 1e-3)


def temperature(k: int, planned: int, *, start: float = 0.9, end: float = 0.1) -> float:
    """Eq. 2 for candidate k of ``planned``, from 1; one deviation below passes with ``start``, at last ``end``."""
    first, last = 1 / math.log(1 / start), 1 / math.log(1 / end)
    return float(first * (last / first) ** (min(k, planned) / max(planned, 1)))


def chance(z: float, temperature: float) -> float:
    """Eq. 3 for a candidate after the first `FREE`."""
    return 1.0 if z >= 0 else math.exp(z / temperature)


def decide(rule: Rule, reward: float, before: Sequence[float], *, trial: int, planned: int, seed: int) -> Verdict:
    """Whether candidate ``trial`` passes.

    Args:
        rule: ``metropolis`` (eqs. 1 to 3), ``published``, ``always`` or ``never``.
        reward: of its short training, its time charged.
        before: such rewards known when it was asked for, in order of their trials.
        trial: its number, from 0.
        planned: candidates of the whole search, K.
        seed: of the run.
    """
    mu, s = statistics(before)
    t = temperature(trial + 1, planned)
    u = mix(seed, "gate", trial) / 2**63
    if rule == "published":
        passed = u < _published(reward, before)
    elif rule == "metropolis":
        passed = trial < FREE or not before or u < chance((reward - mu) / s, t)
    else:
        passed = rule == "always"
    return Verdict(passed, mu, s, t, u)


def _published(reward: float, before: Sequence[float]) -> float:
    """The base method's probability: 1 above a running mean m from 0.01, else 1 - (1 - R / m) / delta, at least 0."""
    m, delta = 0.01, 0.9
    for k, known in enumerate(before, 1):
        m = 0.99 * m + 0.01 * known
        delta *= {100: 0.9, 200: 0.8, 300: 0.7, 400: 0.6}.get(k, 1.0)
    return 1.0 if reward > m else max(0.0, 1 - (1 - reward / m) / delta)
