"""Soft assignment of samples to prototypes: codes of the teacher that the student predicts, and evenly used prototypes.

    (1)  Q  =  diag(u) exp(S / T) diag(v)   whose rows, one a sample, add up to 1 and whose columns are alike in sum
    (2)  L  =  - mean_i sum_k Q_ik log softmax(s_i / T)_k
    (3)  H  =  1 - entropy(mean_i a_i) / log K,    0 where all prototypes are used alike

Caron et al., *Unsupervised Learning of Visual Features by Contrasting Cluster Assignments*, NeurIPS 2020 (1 and 2).
"""

import math

import torch
from torch import Tensor


@torch.no_grad()
def even_codes(scores: Tensor, *, temperature: float, rounds: int = 3) -> Tensor:
    """Eq. 1 by ``rounds`` of Sinkhorn and Knopp: scores (N, K) -> codes (N, K), whose rows add up to 1."""
    log_q = scores.double() / temperature
    for _ in range(rounds):
        log_q = log_q - log_q.logsumexp(0, keepdim=True)  # columns alike
        log_q = log_q - log_q.logsumexp(1, keepdim=True)  # rows add up to 1
    return log_q.exp().to(scores.dtype)


def code_cross_entropy(scores: Tensor, codes: Tensor, *, temperature: float) -> Tensor:
    """Eq. 2: scores and codes (N, K) -> a scalar in nats."""
    return -(codes * (scores.float() / temperature).log_softmax(1)).sum(1).mean()


def uneven_use(assignments: Tensor) -> Tensor:
    """Eq. 3: probabilities (N, K) -> a scalar in [0, 1]."""
    entropy: Tensor = torch.special.entr(assignments.float().mean(0)).sum()
    return 1 - entropy / math.log(assignments.shape[1])
