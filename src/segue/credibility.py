"""How far to trust each pixel of a prediction: plain functions of class probabilities, for every method that learns
from what a network says. They import nothing of ours.

P (B, K, H, W) are probabilities, u (B, H, W) is their entropy in nats, t in [0, 1] the share of training that is done,
r(t) = exp(-5 (1 - t)^2). Each gate gives m (B, H, W) in [0, 1]; m is 0 where ``is_valid`` is not.

    (1)  none       m  =  1
    (2)  absolute   m  =  1[ u < (b + (1 - b) r(t)) ln K ]
    (3)  quantile   m  =  1 for the share q(t) of the pixels with the smallest u,   q(t) = q_0 + (q_1 - q_0) t
    (4)  classwise  m  =  as (3), among the pixels of each predicted class
    (5)  soft       m  =  exp( -u / (s ln K) )

Eq. 6 is for T noisy views of one input, whose classes are the last dimension, as those of queries.

    (6)  certainty  =  1 - H(mean over the views of P) / ln K

(2) is the published form (Yu et al., MICCAI 2019, for K = 2). Its b = 0.75 is a gate for two classes only: with 19,
0.75 ln K is the entropy of a uniform guess among 9 of them, and nearly every pixel passes. (3) and (4) do not depend on
K, nor on how sure the network is of itself.
"""

import math
from typing import Literal

import torch
from torch import Tensor

Gate = Literal["none", "absolute", "quantile", "classwise", "soft"]
SOFTNESS = 1.0  # s of eq. 5


def entropy(probabilities: Tensor) -> Tensor:
    """u in nats, float32, 0 where one class has it all: (B, K, H, W) -> (B, H, W)."""
    u: Tensor = torch.special.entr(probabilities.float()).sum(1)
    return u


def certainty(views: Tensor) -> Tensor:
    """Eq. 6: 1 where all views are sure of one class, 0 where they say all alike; (T, ..., K) -> (...)."""
    mean = views.mean(0)
    sure: Tensor = 1 - torch.special.entr(mean).sum(-1) / largest_entropy(mean.shape[-1])
    return sure


def largest_entropy(classes: int) -> float:
    """ln K; of one class, whose entropy is 0 anyway, that of two, which can be divided by."""
    return math.log(max(classes, 2))


def ramp(progress: float) -> float:
    """r(t): from exp(-5) at 0 to 1 at 1 and beyond."""
    return math.exp(-5 * (1 - min(max(progress, 0.0), 1.0)) ** 2)


def absolute(u: Tensor, *, classes: int, progress: float, start: float = 0.75) -> Tensor:
    """Eq. 2: (B, H, W) -> (B, H, W) of 0 and 1.

    Args:
        u: entropy in nats.
        classes: K.
        progress: t in [0, 1].
        start: b in [0, 1].
    """
    return (u < (start + (1 - start) * ramp(progress)) * largest_entropy(classes)).float()


def quantile(u: Tensor, is_valid: Tensor, *, share: float) -> Tensor:
    """Eq. 3 over the whole batch: exactly round(share * valid pixels) of 1, the most certain ones; (B, H, W).

    Args:
        u: entropy in nats.
        is_valid: bool (B, H, W); other pixels are neither counted nor kept.
        share: q in [0, 1].
    """
    places = is_valid.flatten().nonzero().squeeze(1)
    kept = round(share * len(places))
    mask = torch.zeros(u.numel(), device=u.device)
    if kept:
        mask[places[u.flatten()[places].argsort(stable=True)[:kept]]] = 1
    return mask.reshape(u.shape)


def classwise(u: Tensor, prediction: Tensor, is_valid: Tensor, *, share: float) -> Tensor:
    """Eq. 4: `quantile` among the pixels of each predicted class, so that no class is crowded out; (B, H, W).

    Args:
        u: entropy in nats.
        prediction: class ids (B, H, W).
        is_valid: bool (B, H, W).
        share: q in [0, 1].
    """
    mask = torch.zeros_like(u)
    for index in torch.unique(prediction[is_valid]).tolist():
        mask += quantile(u, is_valid & (prediction == index), share=share)
    return mask


def soft(u: Tensor, *, classes: int, softness: float = SOFTNESS) -> Tensor:
    """Eq. 5: 1 at a one-hot pixel; (B, H, W) -> (B, H, W) in (0, 1].

    Args:
        u: entropy in nats.
        classes: K.
        softness: s > 0.
    """
    return (-u / (softness * largest_entropy(classes))).exp()


def credibility(
    probabilities: Tensor,
    gate: Gate,
    *,
    progress: float,
    is_valid: Tensor | None = None,
    start: float = 0.75,
    shares: tuple[float, float] = (0.3, 0.9),
    softness: float = SOFTNESS,
) -> Tensor:
    """m of eqs. 1 to 5, whichever ``gate`` names: (B, K, H, W) -> float32 (B, H, W) in [0, 1].

    Args:
        probabilities: P, as a teacher gives them; sums of 1 over the classes.
        gate: which equation.
        progress: t in [0, 1].
        is_valid: bool (B, H, W), False for padding; every pixel if absent.
        start: b of eq. 2.
        shares: q_0 and q_1 of eqs. 3 and 4.
        softness: s of eq. 5.

    Raises:
        FloatingPointError: a probability of a valid pixel is not finite; every comparison with it would be False, and
            the gate would close without a word.
    """
    u = entropy(probabilities)
    is_valid = torch.ones_like(u, dtype=torch.bool) if is_valid is None else is_valid
    if not bool(u[is_valid].isfinite().all()):
        raise FloatingPointError("the teacher's probabilities are not finite")
    classes = probabilities.shape[1]
    share = shares[0] + (shares[1] - shares[0]) * min(max(progress, 0.0), 1.0)
    if gate == "absolute":
        mask = absolute(u, classes=classes, progress=progress, start=start)
    elif gate == "quantile":
        mask = quantile(u, is_valid, share=share)
    elif gate == "classwise":
        mask = classwise(u, probabilities.argmax(1), is_valid, share=share)
    elif gate == "soft":
        mask = soft(u, classes=classes, softness=softness)
    else:
        mask = torch.ones_like(u)
    return torch.where(is_valid, mask, 0.0)
