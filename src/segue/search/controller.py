"""A recurrent controller that proposes genotypes, trained by proximal policy optimisation.

Zoph & Le, *Neural Architecture Search with Reinforcement Learning*, ICLR 2017; Schulman et al., *Proximal Policy
Optimization Algorithms*, arXiv:1707.06347; constants after Nekrasov et al., CVPR 2019.

    (1)  pi(g)  =  prod_t softmax(head_t(h_t))_{g_t}      h_t from an LSTM that is fed its last token
    (2)  b  <-  0.95 b + 0.05 R,      A_k = R_k - b
    (3)  L  =  - mean_k min( rho_k A_k, clip(rho_k, 0.9, 1.1) A_k ),      rho_k = pi(g_k) / pi_old(g_k)

Departs from the source: the published controller feeds back its own output, never the token it sampled, so its
decisions are independent of each other (``feedback none``). A batch is 25 of the last 100 candidates, not one, at a
higher rate: 100 steps a candidate cost more than many candidates do, and at 1e-4 nothing is learnt in a few hundred.
"""

from collections import deque
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from segue.models.compact import OPERATIONS, choices_of, operations_of
from segue.search.runtime import alike

Feedback = Literal["token", "none"]
UNITS, LAYERS, WARM_UP = 100, 2, 4


class Controller(nn.Module):
    """Eq. 1 for genotypes of so many blocks.

    Args:
        blocks: B.
        feedback: ``token`` feeds an embedding of what was decided last; ``none`` feeds the last output.
    """

    def __init__(self, blocks: int, feedback: Feedback = "token") -> None:
        super().__init__()
        self.choices, self.is_operation, self.feedback = choices_of(blocks), operations_of(blocks), feedback
        self.start = nn.Parameter(torch.empty(UNITS))
        self.lstm = nn.LSTM(UNITS, UNITS, LAYERS)
        self.operation_head = nn.Linear(UNITS, len(OPERATIONS))
        indices = [n for n, is_operation in zip(self.choices, self.is_operation, strict=True) if not is_operation]
        self.index_heads = nn.ModuleList(nn.Linear(UNITS, n) for n in indices)
        if feedback == "token":
            self.operation_tokens = nn.Embedding(len(OPERATIONS), UNITS)
            self.index_tokens = nn.Embedding(max(indices), UNITS)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.1, 0.1)

    def sample(self, generator: torch.Generator) -> tuple[tuple[int, ...], float]:
        """A genotype's tokens and the logarithm of their probability."""
        tokens: list[int] = []
        total = 0.0
        with torch.no_grad():
            x, state = self._warm(1)
            for t in range(len(self.choices)):
                logits, x, state = self._decide(t, x, state)
                chosen = int(torch.multinomial(logits[0].softmax(0), 1, generator=generator))
                total += float(logits[0].log_softmax(0)[chosen])
                tokens.append(chosen)
                x = self._fed(t, torch.tensor([chosen]), x)
        return tuple(tokens), total

    def log_probability(self, tokens: Tensor) -> Tensor:
        """log pi of genotypes, int64 (N, T) -> (N,) in nats."""
        outputs = self._told(tokens) if self.feedback == "token" else self._untold().expand(-1, len(tokens), -1)
        found = [
            self._head(t)(outputs[t]).log_softmax(1).gather(1, tokens[:, t, None])[:, 0]
            for t in range(len(self.choices))
        ]
        return torch.stack(found).sum(0)

    def _told(self, tokens: Tensor) -> Tensor:
        """Outputs (T, N, `UNITS`) of a controller that is fed what was decided: known beforehand, so in one pass."""
        first, state = self._warm(len(tokens))
        fed = [first, *(self._fed(t, tokens[:, t], first) for t in range(len(self.choices) - 1))]
        outputs: Tensor = self.lstm(torch.cat(fed), state)[0]
        return outputs

    def _untold(self) -> Tensor:
        """Outputs (T, 1, `UNITS`) of a controller that is fed its own: the same whatever was decided."""
        x, state = self._warm(1)
        outputs = []
        for _ in self.choices:
            x, state = self.lstm(x, state)
            outputs.append(x)
        return torch.cat(outputs)

    def _head(self, t: int) -> nn.Module:
        """What turns an output into logits of decision t."""
        return self.operation_head if self.is_operation[t] else self.index_heads[self.is_operation[:t].count(False)]

    def _warm(self, count: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Input and state of the first decision, after `WARM_UP` steps that are each fed their own output."""
        x = self.start.expand(1, count, UNITS)
        state: tuple[Tensor, Tensor] | None = None
        for _ in range(WARM_UP):
            x, state = self.lstm(x, state)
        assert state is not None
        return x, state

    def _decide(self, t: int, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Logits (N, choices) of decision t, the output (1, N, `UNITS`), the new state."""
        output, state = self.lstm(x, state)
        logits: Tensor = self._head(t)(output[0])
        return logits, output, state

    def _fed(self, t: int, token: Tensor, output: Tensor) -> Tensor:
        """What the next step is fed: (1, N, `UNITS`)."""
        if self.feedback == "none":
            return output
        table = self.operation_tokens if self.is_operation[t] else self.index_tokens
        embedded: Tensor = table(token)[None]
        return embedded


class _Seen(NamedTuple):
    tokens: tuple[int, ...]
    log_probability: float
    reward: float


def clipped(ratio: Tensor, advantage: Tensor, clip: float = 0.1) -> Tensor:
    """Eq. 3: (N,), (N,) -> a scalar."""
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage).mean()


class Policy:
    """Eqs. 2 and 3: a controller that learns from the rewards of what it proposed.

    Args:
        blocks: B.
        feedback: see `Controller`.
        seed: of its initial weights and of every draw.
        lr: of Adam.
        memory: candidates that it learns from.
        batch: of them in a step.
        decay: of the baseline b.
    """

    def __init__(
        self, blocks: int, *, feedback: Feedback = "token", seed: int = 0, lr: float = 3e-3, memory: int = 100,
        batch: int = 25, decay: float = 0.95,
    ) -> None:  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.controller = Controller(blocks, feedback)
        self.generator = torch.Generator().manual_seed(seed)
        self.optimizer = torch.optim.Adam(self.controller.parameters(), lr)
        self.seen: deque[_Seen] = deque(maxlen=memory)
        self.batch, self.decay = batch, decay
        self.baseline: float | None = None

    @alike()
    def propose(self) -> tuple[tuple[int, ...], float]:
        """Tokens and the logarithm of their probability."""
        return self.controller.sample(self.generator)

    @alike()
    def learn(self, tokens: Sequence[int], log_probability: float, reward: float) -> None:
        """Takes one reward in: the baseline moves, then one pass over the memory in batches."""
        before = reward if self.baseline is None else self.baseline
        self.baseline = self.decay * before + (1 - self.decay) * reward
        self.seen.append(_Seen(tuple(tokens), log_probability, reward))
        order = torch.randperm(len(self.seen), generator=self.generator).tolist()
        for start in range(0, len(order), self.batch):
            batch = [self.seen[i] for i in order[start : start + self.batch]]
            found = self.controller.log_probability(torch.tensor([one.tokens for one in batch]))
            old = torch.tensor([one.log_probability for one in batch])
            advantage = torch.tensor([one.reward - self.baseline for one in batch])
            self.optimizer.zero_grad()
            torch.autograd.backward(clipped((found - old).exp(), advantage))
            nn.utils.clip_grad_norm_(self.controller.parameters(), 2.0)
            self.optimizer.step()
