"""From a network's masks to a panoptic map (Cheng, Schwing and Kirillov, *Per-Pixel Classification is Not All You Need
for Semantic Segmentation*, NeurIPS 2021, arXiv:2107.06278)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from segue.data.panoptic_map import VOID, PanopticMap


def merge(
    class_probabilities: Tensor,
    mask_logits: Tensor,
    things: Sequence[int],
    *,
    size: tuple[int, int],
    padded: tuple[int, int] | None = None,
    score: float = 0.8,
    mask: float = 0.5,
    overlap: float = 0.8,
) -> PanopticMap:
    """The map of one picture's queries, by the official rule.

    A query takes part where its best class is a class and its probability is above ``score``. Each pixel goes to the
    query with the highest class times mask probability. A query keeps of its pixels those where its own mask is at
    least ``mask``; it is dropped where the pixels it won are less than ``overlap`` of its mask. Segments of one class
    of stuff become one.

    Args:
        class_probabilities: (Q, K + 1), no-object last.
        mask_logits: (Q, h, w).
        things: class ids whose segments stay apart.
        size: height and width of the map, in pixels.
        padded: height and width that the mask logits stand for; ``size`` where the picture was not padded.
        score: smallest probability of a class.
        mask: smallest probability of a pixel.
        overlap: smallest share of its own mask that a query must win.
    """
    is_thing = torch.zeros(class_probabilities.shape[1], dtype=torch.bool, device=class_probabilities.device)
    is_thing[list(things)] = True
    ids, labels, scores = segments(
        class_probabilities, mask_logits, is_thing, size=size, padded=padded or size, score=score, mask=mask,
        overlap=overlap,
    )  # fmt: skip
    return PanopticMap(ids.cpu().numpy(), tuple(labels.tolist()), (False,) * len(labels), tuple(scores.tolist()))


def segments(
    class_probabilities: Tensor,
    mask_logits: Tensor,
    is_thing: Tensor,
    *,
    size: tuple[int, int],
    padded: tuple[int, int],
    score: float,
    mask: float,
    overlap: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """`merge` in tensors alone, so that exported graphs hold it: ids int32 (H, W), labels (N,), scores (N,).

    ``is_thing`` is bool (K + 1,). The others are as there.
    """
    void = class_probabilities.shape[1] - 1
    scores, labels = class_probabilities.float().max(1)
    kept = ((labels < void) & (scores > score)).nonzero()[:, 0]
    # One more, of no class, that wins no pixel: there is always one, also in an exported graph.
    scores = torch.cat([scores[kept], scores.new_zeros(1)])  # (N,)
    labels = torch.cat([labels[kept], labels.new_full((1,), void)])
    masks = torch.cat([mask_logits[kept].float(), mask_logits.new_full((1, *mask_logits.shape[1:]), -1e4).float()])
    full = F.interpolate(masks[None], size=padded, mode="bilinear", align_corners=False)[0]
    probabilities = full[:, : size[0], : size[1]].sigmoid()
    winner = (probabilities * scores[:, None, None]).argmax(0)  # (H, W)
    is_on = probabilities >= mask
    own = is_on.gather(0, winner[None])[0]
    none = torch.zeros_like(labels)
    won = none.scatter_add(0, winner.flatten(), torch.ones_like(winner).flatten())
    left = none.scatter_add(0, winner.flatten(), own.flatten().to(none.dtype))
    is_sound = (left > 0) & (won >= overlap * is_on.flatten(1).sum(1))
    # The first sound query of a class of stuff stands for all of them, a thing for itself.
    places = torch.arange(labels.shape[0], device=labels.device)
    is_same = (labels[:, None] == labels[None]) & is_sound[None]
    first = torch.where(is_same, places[None], labels.shape[0] - 1).amin(1)
    first = torch.where(is_thing[labels], places, first)
    leads = is_sound & (first == places)
    numbers = torch.where(is_sound, leads.cumsum(0)[first], VOID)
    chosen = leads.nonzero()[:, 0]
    return torch.where(own, numbers[winner], VOID).to(torch.int32), labels[chosen], scores[chosen]
