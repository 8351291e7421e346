"""The object-aware filter and the prototype head of CoTAP (Wen et al., TPAMI 2025, arXiv:2509.09429).

A patch attends to 64 prototypes of 3 x 3 cells: its neighbourhood is compared with each, and the means of those it
resembles are put beside its own feature. So what a patch says depends on the kind of thing it is part of.
"""

import math

import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from torch import Tensor, nn

from segue.losses.prototypes import even_codes, uneven_use

SIDE = 3  # cells of a prototype
CACHED = 1024  # neighbourhoods that prototypes start from
HIDDEN, BOTTLENECK = 2048, 256
SHARPNESS = 0.1  # temperature at which use is measured


class ObjectFilter(nn.Module):
    """Maps (B, C, h, w) -> (B, 2 C, h, w): each patch, and what it takes from the prototypes, normalised."""

    def __init__(self, channels: int, prototypes: int = 64) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.randn(prototypes, channels, SIDE, SIDE))
        self.norm = nn.LayerNorm(2 * channels)

    def forward(self, maps: Tensor) -> Tensor:
        """The prototypes get no gradient here: they move by `use_loss` alone, and do not decay."""
        kernel = self.prototypes.detach()
        keys = F.conv2d(maps, kernel, padding=SIDE // 2) / math.sqrt(kernel[0].numel())  # (B, P, h, w)
        filtered = torch.einsum("bphw,pc->bchw", keys.softmax(1), kernel.mean((2, 3)))
        both: Tensor = self.norm(torch.cat([maps, filtered], 1).movedim(1, -1))
        return both.movedim(-1, 1)

    def use_loss(self, maps: Tensor) -> Tensor:
        """How unevenly the prototypes are used by the neighbourhoods of ``maps``, which get no gradient."""
        windows = F.normalize(neighbourhoods(maps.detach().float()), dim=1)
        cosine = windows @ F.normalize(self.prototypes.flatten(1).float(), dim=1).T
        return uneven_use((cosine / SHARPNESS).softmax(1))

    @torch.no_grad()
    def start_from(self, maps: Tensor, *, seed: int) -> None:
        """Puts the prototypes at the centres of k-means of some neighbourhoods of ``maps``."""
        windows = neighbourhoods(maps.float())
        generator = torch.Generator().manual_seed(seed)
        chosen = windows.cpu()[torch.randint(len(windows), (CACHED,), generator=generator)]
        chosen = chosen + 1e-3 * chosen.std() * torch.randn(chosen.shape, generator=generator)  # no two alike
        found = KMeans(len(self.prototypes), n_init=1, random_state=seed % 2**32).fit(chosen.numpy())
        self.prototypes.copy_(torch.from_numpy(found.cluster_centers_).reshape(self.prototypes.shape))


def neighbourhoods(maps: Tensor) -> Tensor:
    """All windows of SIDE x SIDE cells: (B, C, h, w) -> (B h w, C SIDE^2), 0 beyond the edge."""
    windows = F.unfold(maps, SIDE, padding=SIDE // 2)  # (B, C SIDE^2, h w)
    return windows.transpose(1, 2).flatten(0, 1)


class PrototypeHead(nn.Module):
    """Maps (B, C, h, w) -> scores (B, K, h, w) in [-1, 1]: cosines of an embedding with K directions."""

    def __init__(self, channels: int, scores: int = 512) -> None:
        super().__init__()
        self.embed = nn.Sequential(
            nn.Conv2d(channels, HIDDEN, 1), nn.GELU(), nn.Conv2d(HIDDEN, HIDDEN, 1), nn.GELU(),
            nn.Conv2d(HIDDEN, BOTTLENECK, 1),
        )  # fmt: skip
        self.directions = nn.Parameter(torch.randn(scores, BOTTLENECK))

    def forward(self, maps: Tensor) -> Tensor:
        embedding = F.normalize(self.embed(maps), dim=1)
        return F.conv2d(embedding, F.normalize(self.directions, dim=1)[:, :, None, None])


class CodeQueue(nn.Module):
    """Even codes of a batch's scores, together with those of the batches before: one alone is too small to be even."""

    kept: Tensor
    filled: Tensor

    def __init__(self, size: int, scores: int = 512) -> None:
        super().__init__()
        self.register_buffer("kept", torch.zeros(size, scores))
        self.register_buffer("filled", torch.tensor(0))

    @torch.no_grad()
    def forward(self, scores: Tensor, *, temperature: float) -> Tensor:
        """Teacher's scores (N, K) -> codes (N, K); the scores are kept, the oldest go."""
        others = self.kept[: int(self.filled)]
        codes = even_codes(torch.cat([scores, others]), temperature=temperature)[: len(scores)]
        self.kept.copy_(torch.cat([scores, self.kept])[: len(self.kept)])
        self.filled.fill_(min(len(self.kept), int(self.filled) + len(scores)))
        return codes
