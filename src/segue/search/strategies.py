"""Who proposes the next candidate: a learnt controller, evolution, or chance. All behind ``ask`` and ``tell``.

A strategy is a function of its seed, of what it was told, in order, and of the table of times where there is a target;
so a search that was cut is built again from its ledger and its table, and nothing of a strategy is saved.
"""

import itertools
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

from segue.models.compact import Genotype, choices_of
from segue.search.controller import Feedback, Policy

Name = Literal["controller", "evolution", "random"]
NEAR = 0.9  # share of its reward that the time of a genotype near the target leaves it
DRAWS, DRAWS_LEARNT = 1000, 100  # of a candidate, at most; a controller takes 500 times as long for one


class Proposal(NamedTuple):
    """A candidate, and the logarithm of its probability where the strategy has one."""

    genotype: Genotype
    log_probability: float | None = None


class Strategy(Protocol):
    """Proposes genotypes, none of which is degenerate."""

    def ask(self) -> Proposal:
        """The next candidate."""

    def tell(self, proposal: Proposal, reward: float) -> None:
        """What it came to; never called for one that failed."""


class RandomSearch:
    """Every decision uniformly at random."""

    def __init__(self, blocks: int, seed: int) -> None:
        self.blocks, self.choices, self.draws = blocks, choices_of(blocks), random.Random(seed)

    def ask(self) -> Proposal:
        """See `Strategy`."""
        return Proposal(_sound(lambda: [self.draws.randrange(n) for n in self.choices], self.blocks))

    def tell(self, proposal: Proposal, reward: float) -> None:
        """Learns nothing."""


class Evolution:
    """Regularised evolution (Real et al., *Regularized Evolution for Image Classifier Architecture Search*, AAAI 2019).

    The best of a random tournament gets a child with one decision changed; the oldest of the population dies.

    Args:
        blocks: B.
        seed: of every draw.
        population: how many live.
        tournament: how many compete to be the parent.
    """

    def __init__(self, blocks: int, seed: int, *, population: int = 20, tournament: int = 5) -> None:
        self.blocks, self.choices, self.draws = blocks, choices_of(blocks), random.Random(seed)
        self.living: deque[tuple[tuple[int, ...], float]] = deque(maxlen=population)
        self.tournament, self.population = tournament, population

    def ask(self) -> Proposal:
        """See `Strategy`."""
        if len(self.living) < self.population:
            return Proposal(_sound(lambda: [self.draws.randrange(n) for n in self.choices], self.blocks))
        return Proposal(_sound(self._child, self.blocks))

    def _child(self) -> list[int]:
        """The winner of a tournament with one decision changed."""
        rivals = self.draws.sample(list(self.living), self.tournament)
        tokens = list(max(rivals, key=lambda rival: rival[1])[0])
        place = self.draws.randrange(len(tokens))
        others = [value for value in range(self.choices[place]) if value != tokens[place]]
        tokens[place] = self.draws.choice(others)
        return tokens

    def tell(self, proposal: Proposal, reward: float) -> None:
        """See `Strategy`."""
        self.living.append((proposal.genotype.tokens(), reward))


class LearntController:
    """A controller trained by PPO, `segue.search.controller`."""

    def __init__(self, blocks: int, seed: int, *, feedback: Feedback = "token", lr: float = 3e-3) -> None:
        self.blocks, self.policy = blocks, Policy(blocks, feedback=feedback, seed=seed, lr=lr)

    def ask(self) -> Proposal:
        """See `Strategy`."""
        while True:
            tokens, log_probability = self.policy.propose()
            genotype = Genotype.from_tokens(tokens, self.blocks)
            if not genotype.fault():
                return Proposal(genotype, log_probability)

    def tell(self, proposal: Proposal, reward: float) -> None:
        """See `Strategy`."""
        assert proposal.log_probability is not None
        self.policy.learn(proposal.genotype.tokens(), proposal.log_probability, reward)


class InTime:
    """Another strategy, asked again for what misses the target of time by far: nothing is trained in vain.

    Args:
        asked: the other.
        draws: of a candidate, at most.
        share: what its time leaves of the reward of a genotype in text form, as `segue.search.latency.Cost.charge`.
    """

    def __init__(self, asked: Strategy, share: Callable[[str], float], draws: int = DRAWS) -> None:
        self.asked, self.share, self.draws, self.missing = asked, share, draws, set[str]()

    def ask(self) -> Proposal:
        """See `Strategy`; where all miss the target, the one that misses it least of those not given yet."""
        first = self.asked.ask()
        best, left = first, -1.0
        for proposal in itertools.chain([first], (self.asked.ask() for _ in range(self.draws - 1))):
            genotype = str(proposal.genotype)
            share = self.share(genotype)
            if share >= NEAR:
                return proposal
            if share > left and genotype not in self.missing:
                best, left = proposal, share
        self.missing.add(str(best.genotype))
        return best

    def tell(self, proposal: Proposal, reward: float) -> None:
        """See `Strategy`."""
        self.asked.tell(proposal, reward)


def _sound(draw: Callable[[], Sequence[int]], blocks: int) -> Genotype:
    """What ``draw`` gives, drawn again while it is degenerate."""
    while True:
        genotype = Genotype.from_tokens(draw(), blocks)
        if not genotype.fault():
            return genotype


def strategy(
    name: Name, blocks: int, seed: int, *, feedback: Feedback = "token", share: Callable[[str], float] = lambda _: 1.0
) -> Strategy:
    """A strategy by its name.

    Args:
        name: ``controller``, ``evolution`` or ``random``.
        blocks: B.
        seed: of all that it draws.
        feedback: of the controller.
        share: as of `InTime`; 1 of every genotype where no time is asked for.
    """
    if name == "controller":
        return InTime(LearntController(blocks, seed, feedback=feedback), share, DRAWS_LEARNT)
    return InTime(Evolution(blocks, seed) if name == "evolution" else RandomSearch(blocks, seed), share)
