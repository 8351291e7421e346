"""One embedding an image: how images of a set are compared with each other, divided into clusters and matched."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from sklearn.cluster import kmeans_plusplus
from torch import Tensor
from torch.utils.data import DataLoader

from segue.data.candidates import Squeezed
from segue.data.listing import Pair
from segue.errors import DataError

ROUNDS = 25  # of k-means
PART = 4096  # points that are compared at once: memory grows with them times clusters, not with all
# Share of its length by which an embedding of one image may differ between batches of different size: 1e-6 was seen on
# CPUs, and 1e-4 leaves room for GPUs that round products to 10 bits; drawn scenes are 1.0 apart.
ROUNDING = 1e-4


@torch.no_grad()
def embed_images(
    embed: Callable[[Tensor], Tensor],
    images: Sequence[Pair],
    *,
    side: int,
    batch: int,
    device: torch.device,
    workers: int = 0,
    tick: Callable[[], None] = lambda: None,
) -> Tensor:
    """Embeddings (M, D) of whole images, each squeezed into a square of ``side`` pixels.

    Args:
        embed: uint8 (B, 3, side, side) on ``device`` -> (B, D).
        images: M of them.
        side, batch: of what goes through at once.
        device: where ``embed`` computes.
        workers: processes that load.
        tick: called after each image.
    """
    generator = torch.Generator().manual_seed(0)  # else the loader draws from the global one
    found = []
    for pixels in DataLoader(Squeezed(images, side), batch, num_workers=workers, generator=generator):
        found.append(embed(pixels.to(device)).float())
        for _ in range(len(pixels)):
            tick()
    return torch.cat(found)


def centred(embeddings: Tensor) -> Tensor:
    """Embeddings (M, D) about their mean, of unit length: what all images share says nothing of any.

    Raises:
        DataError: they are no numbers, or all alike.
    """
    if not embeddings.isfinite().all():
        raise DataError("the encoder's embeddings are no numbers: the weights it has, or a --lr that was too high")
    apart = embeddings.double() - embeddings.double().mean(0)
    if apart.norm(dim=1).max() < ROUNDING * embeddings.norm(dim=1).max():
        raise DataError("all images look alike to the encoder: nothing tells them apart; give images that differ")
    return F.normalize(apart, dim=1).float()


def spherical_clusters(points: Tensor, count: int, *, seed: int) -> Tensor:
    """The cluster of each of M unit-length points (M, D) by spherical k-means: int64 (M,), some may be empty."""
    start = kmeans_plusplus(points.cpu().numpy(), count, random_state=seed % 2**32)[0]
    centres = torch.from_numpy(start).to(points)
    for _ in range(ROUNDS):
        sums = torch.zeros_like(centres)
        for part in torch.split(points, PART):
            sums += F.one_hot(nearest_centres(part, centres), count).to(points).T @ part
        centres = F.normalize(sums, dim=1)
    return nearest_centres(points, centres)


def nearest_centres(points: Tensor, centres: Tensor) -> Tensor:
    """The most similar of K centres (K, D) for each of M points (M, D): int64 (M,)."""
    return torch.cat([(part @ centres.T).argmax(1) for part in torch.split(points, PART)])


def most_similar(points: Tensor, clusters: Tensor, count: int) -> Tensor:
    """Places of the ``count`` points of its own cluster nearest to each, -1 where there are fewer: (M, count).

    A point alone in its cluster gets the one nearest of all.
    """
    found = torch.full((len(points), count), -1, dtype=torch.int64, device=points.device)
    for cluster in torch.unique(clusters):
        members = (clusters == cluster).nonzero()[:, 0]
        for own in torch.split(torch.arange(len(members), device=points.device), PART):
            similarity = points[members[own]] @ points[members].T
            similarity[torch.arange(len(own), device=points.device), own] = -math.inf
            best = similarity.topk(min(count, len(members) - 1), dim=1).indices
            found[members[own], : best.shape[1]] = members[best]
    for alone in (found[:, 0] < 0).nonzero()[:, 0]:
        similarity = points @ points[alone]
        similarity[alone] = -math.inf
        found[alone, 0] = similarity.argmax()
    return found
