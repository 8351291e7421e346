"""Compact segmenters: a mobile encoder under a small decoder that a genotype describes (Nekrasov et al., *Fast Neural
Architecture Search of Compact Semantic Segmentation Models via Auxiliary Cells*, CVPR 2019, arXiv:1810.10804).

With E = 4 encoder outputs (strides 4, 8, 16, 32), a genotype is a cell and, for each of B blocks, two maps to join:

    cell     n_0 = x,  n_1 = op_0(n_0);  layer l adds  n_{2+3l} = a_l(n_{p_l}),  n_{3+3l} = c_l(n_{q_l}),  and their sum
             n_{4+3l};  its output is the sum of those of {n_1, n_4, n_7, n_10} that no p or q takes
    block b  x_{E+b} = up(P(cell(x_i))) + up(P'(cell'(x_j)))      the same cell with weights of its own
    output   Conv3x3(ConvBNReLU1x1(ReLU(concat of the blocks that no later block takes)))
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.models.pixels import Normalise, drop_unreached, padded_side
from segue.models.segmenter import no_such_encoder

MAPS = 4  # encoder outputs
LAYERS = 3  # of a cell
STRIDE = 32
OPERATIONS = (
    "conv 1x1", "conv 3x3", "separable 3x3", "separable 5x5", "global average", "conv 3x3, dilation 3",
    "conv 3x3, dilation 12", "separable 3x3, dilation 3", "separable 5x5, dilation 6", "skip", "zero",
)  # fmt: skip
GLOBAL, SKIP, ZERO = 4, 9, 10
_CONVOLUTIONS = {0: (1, 1), 1: (3, 1), 5: (3, 3), 6: (3, 12)}  # (kernel, dilation)
_SEPARABLES = {2: (3, 1), 3: (5, 1), 7: (3, 3), 8: (5, 6)}
_COLLECTED = (1, *(4 + 3 * layer for layer in range(LAYERS)))  # nodes whose sum is a cell's output


@dataclass(frozen=True)
class Genotype:
    """A cell and where it is used.

    Args:
        first: op_0, an index of `OPERATIONS`.
        layers: (p, q, a, c) of each of the `LAYERS` layers.
        blocks: (i, j) of each block.

    Raises:
        ValueError: an index out of its range.
    """

    first: int
    layers: tuple[tuple[int, int, int, int], ...]
    blocks: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        if len(self.layers) != LAYERS or not self.blocks:
            raise ValueError(f"a genotype has {LAYERS} layers and at least one block")
        for token, choices in zip(self.tokens(), choices_of(len(self.blocks)), strict=True):
            if not 0 <= token < choices:
                raise ValueError(f"{self}: {token} is not in 0 to {choices - 1}")

    def tokens(self) -> tuple[int, ...]:
        """The decisions in the order they are taken in: blocks, op_0, layers."""
        return (*(t for block in self.blocks for t in block), self.first, *(t for layer in self.layers for t in layer))

    @classmethod
    def from_tokens(cls, tokens: Sequence[int], blocks: int) -> "Genotype":
        """The inverse of `tokens`."""
        pairs = tuple((tokens[2 * b], tokens[2 * b + 1]) for b in range(blocks))
        first, rest = tokens[2 * blocks], tokens[2 * blocks + 1 :]
        layers = tuple((rest[k], rest[k + 1], rest[k + 2], rest[k + 3]) for k in range(0, len(rest), 4))
        return cls(first, layers, pairs)

    @classmethod
    def parse(cls, text: str) -> "Genotype":
        """A genotype in its text form, ``[[op0, [p, q, a, c], ...], [[i, j], ...]]``.

        Raises:
            ValueError: it is none.
        """
        try:
            if not re.fullmatch(r"[\s\d,\[\]]*", text):
                raise ValueError("it holds other things than numbers and brackets")
            (first, *layers), blocks = json.loads(text)
            return cls(first, tuple(tuple(layer) for layer in layers), tuple(tuple(block) for block in blocks))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{text!r} is no genotype: {error}") from None

    @classmethod
    def sound(cls, text: str) -> "Genotype":
        """One that can learn, in its text form.

        Raises:
            ValueError: it is none, or has a `fault`.
        """
        found = cls.parse(text)
        if fault := found.fault():
            raise ValueError(f"{text} can learn nothing: {fault}")
        return found

    def __str__(self) -> str:
        return json.dumps([[self.first, *self.layers], self.blocks])

    def loose(self) -> tuple[int, ...]:
        """Blocks (counted from 0) that no later block takes: the decoder's output."""
        taken = {index for block in self.blocks for index in block}
        return tuple(b for b in range(len(self.blocks)) if MAPS + b not in taken)

    def levels(self) -> tuple[int, ...]:
        """The map of the encoder at whose size each cell runs, two a block: 0 is the finest."""
        levels, found = list(range(MAPS)), []
        for i, j in self.blocks:
            found += [levels[i], levels[j]]
            levels.append(min(levels[i], levels[j]))
        return tuple(found)

    def collected(self) -> tuple[int, ...]:
        """Nodes whose sum is the cell's output."""
        taken = {index for layer in self.layers for index in layer[:2]}
        return tuple(node for node in _COLLECTED if node not in taken)

    def fault(self) -> str:
        """Why no training can help: the output is zero, or the same everywhere; empty for a sound genotype."""
        maps = [_VARIES] * MAPS
        for i, j in self.blocks:
            maps.append(max(self._carried(maps[i]), self._carried(maps[j])))
        found = max(maps[MAPS + b] for b in self.loose())
        return ("its output is zero", "its output is the same everywhere", "")[found]

    def _carried(self, of_input: int) -> int:
        """What a cell's output carries of a picture, for an input that carries ``of_input``."""
        nodes = [of_input, _through(self.first, of_input)]
        for p, q, a, c in self.layers:
            one, other = _through(a, nodes[p]), _through(c, nodes[q])
            nodes += [one, other, max(one, other)]
        return max(nodes[node] for node in self.collected())


_NOTHING, _CONSTANT, _VARIES = 0, 1, 2  # what a map carries of the picture; the larger survives a sum


def _through(operation: int, carried: int) -> int:
    """What an operation leaves of what its input carries."""
    return _NOTHING if operation == ZERO else min(carried, _CONSTANT) if operation == GLOBAL else carried


def choices_of(blocks: int) -> tuple[int, ...]:
    """How many values each decision of a genotype with so many blocks has, in the order of `Genotype.tokens`."""
    heads = [MAPS + b for b in range(blocks) for _ in range(2)]
    layers = [n for layer in range(LAYERS) for n in (2 + 3 * layer, 2 + 3 * layer, len(OPERATIONS), len(OPERATIONS))]
    return (*heads, len(OPERATIONS), *layers)


def operations_of(blocks: int) -> tuple[bool, ...]:
    """Which decisions choose an operation, the others choose an index; in the order of `Genotype.tokens`."""
    return (*[False] * (2 * blocks), True, *[False, False, True, True] * LAYERS)


# -- modules -----------------------------------------------------------------------------------------------------------


def conv_bn_relu(into: int, out: int, kernel: int = 1, dilation: int = 1) -> nn.Sequential:
    """Convolution that keeps the size, batch normalisation, ReLU."""
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(into, out, kernel, padding=padding, dilation=dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out), nn.ReLU())


def separable(channels: int, kernel: int, dilation: int, repeats: int) -> nn.Sequential:
    """Depthwise and 1 x 1 convolution, batch normalisation, ReLU; ``repeats`` times."""
    padding = dilation * (kernel // 2)
    layers: list[nn.Module] = []
    for _ in range(repeats):
        depthwise = nn.Conv2d(
            channels, channels, kernel, padding=padding, dilation=dilation, groups=channels, bias=False
        )
        layers += [depthwise, nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers)


class GlobalAverage(nn.Module):
    """Mean over the map, 1 x 1 convolution, batch normalisation, ReLU, and back to the size of the map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.project = conv_bn_relu(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> the same shape, constant over (h, w)."""
        mean: Tensor = self.project(x.mean((2, 3), keepdim=True))
        return mean.expand_as(x)


class Zero(nn.Module):
    """Nothing."""

    def forward(self, x: Tensor) -> Tensor:
        """Zeros of the shape of ``x``."""
        return torch.zeros_like(x)


def operation(index: int, channels: int, repeats: int) -> nn.Module:
    """One of `OPERATIONS`: (B, C, h, w) -> the same shape."""
    if index in _CONVOLUTIONS:
        return conv_bn_relu(channels, channels, *_CONVOLUTIONS[index])
    if index in _SEPARABLES:
        return separable(channels, *_SEPARABLES[index], repeats)
    return {GLOBAL: GlobalAverage(channels), SKIP: nn.Identity(), ZERO: Zero()}[index]


class Cell(nn.Module):
    """The cell of a genotype: (B, C, h, w) -> the same shape."""

    def __init__(self, genotype: Genotype, channels: int, repeats: int) -> None:
        super().__init__()
        self.genotype = genotype
        chosen = (genotype.first, *(index for layer in genotype.layers for index in layer[2:]))
        self.operations = nn.ModuleList(operation(index, channels, repeats) for index in chosen)

    def forward(self, x: Tensor) -> Tensor:
        """The sum of the nodes that no layer takes."""
        nodes: list[Tensor] = [x, self.operations[0](x)]
        for layer, (p, q, _, _) in enumerate(self.genotype.layers):
            one, other = self.operations[1 + 2 * layer](nodes[p]), self.operations[2 + 2 * layer](nodes[q])
            nodes += [one, other, one + other]
        output, *rest = (nodes[node] for node in self.genotype.collected())
        for node in rest:
            output = output + node
        return output


def enlarged(x: Tensor, size: Sequence[int]) -> Tensor:
    """``x`` at (height, width) ``size``, bilinearly."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


class Block(nn.Module):
    """Two cells, each followed by a 1 x 1 convolution, summed at the larger size."""

    def __init__(self, genotype: Genotype, channels: int, repeats: int) -> None:
        super().__init__()
        self.cells = nn.ModuleList(Cell(genotype, channels, repeats) for _ in range(2))
        self.projections = nn.ModuleList(conv_bn_relu(channels, channels) for _ in range(2))

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """(B, C, h, w), (B, C, h', w') -> (B, C, max(h, h'), max(w, w'))."""
        first, second = (
            project(cell(x)) for project, cell, x in zip(self.projections, self.cells, (one, other), strict=True)
        )
        size = max(tuple(first.shape[-2:]), tuple(second.shape[-2:]))
        return enlarged(first, size) + enlarged(second, size)


class CompactDecoder(nn.Module):
    """The decoder of a genotype.

    Args:
        genotype: what it looks like.
        feature_channels: of the four encoder outputs.
        classes: how many.
        channels: C of every map within.
        repeats: how often the two convolutions of a separable operation come one after the other.
    """

    def __init__(
        self, genotype: Genotype, feature_channels: Sequence[int], classes: int, *, channels: int, repeats: int
    ) -> None:
        super().__init__()
        self.genotype, self.channels, self.repeats, self.classes = genotype, channels, repeats, classes
        self.adaptations = nn.ModuleList(conv_bn_relu(count, channels) for count in feature_channels)
        self.blocks = nn.ModuleList(Block(genotype, channels, repeats) for _ in genotype.blocks)
        self.join = conv_bn_relu(channels * len(genotype.loose()), channels)
        self.head = nn.Conv2d(channels, classes, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def block_outputs(self, features: Sequence[Tensor]) -> list[Tensor]:
        """x_4, x_5, ... of the encoder's outputs (B, C_e, h_e, w_e)."""
        maps = [adapt(feature) for adapt, feature in zip(self.adaptations, features, strict=True)]
        for block, (i, j) in zip(self.blocks, self.genotype.blocks, strict=True):
            maps.append(block(maps[i], maps[j]))
        return maps[MAPS:]

    def drop_unreached(self, crop: int) -> None:
        """`segue.models.pixels.drop_unreached` of the cells, for pictures of side ``crop``."""
        cells = [module for module in self.blocks.modules() if isinstance(module, Cell)]
        for cell, level in zip(cells, self.genotype.levels(), strict=True):
            drop_unreached(cell, padded_side(crop, STRIDE) // (4 << level))

    def classify(self, blocks: Sequence[Tensor]) -> Tensor:
        """Logits (B, K, h, w) at the size of the largest block that no other takes."""
        loose = [blocks[b] for b in self.genotype.loose()]
        size = max(tuple(x.shape[-2:]) for x in loose)
        joined = torch.cat([enlarged(x, size) for x in loose], 1)
        logits: Tensor = self.head(self.join(F.relu(joined)))
        return logits

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Logits (B, K, h, w) of the encoder's outputs."""
        return self.classify(self.block_outputs(features))


LR_ASPP = "lr-aspp"  # in place of a genotype: the decoder that a found one is compared with


class LiteDecoder(nn.Module):
    """LR-ASPP (Howard et al., *Searching for MobileNetV3*, ICCV 2019) over the maps of stride 32 and 8.

    Args:
        feature_channels: of the four encoder outputs.
        classes: how many.
        channels: of the map within; 128 in the paper.
    """

    def __init__(self, feature_channels: Sequence[int], classes: int, *, channels: int = 128) -> None:
        super().__init__()
        self.channels, self.classes = channels, classes
        self.project = conv_bn_relu(feature_channels[3], channels)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(feature_channels[3], channels, 1, bias=False))
        self.deep = nn.Conv2d(channels, classes, 1)
        self.fine = nn.Conv2d(feature_channels[1], classes, 1)

    def block_outputs(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The encoder's outputs as they are."""
        return list(features)

    def classify(self, blocks: Sequence[Tensor]) -> Tensor:
        """Logits (B, K, h, w) at stride 8."""
        _, fine, _, deep = blocks
        gated = self.project(deep) * self.gate(deep).sigmoid()
        logits: Tensor = self.deep(enlarged(gated, fine.shape[-2:])) + self.fine(fine)
        return logits

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Logits (B, K, h, w) of the encoder's outputs."""
        return self.classify(features)


class AuxiliaryHeads(nn.Module):
    """A classifier for each block, for training only: it reads the blocks and never feeds the output.

    Args:
        decoder: whose blocks are read; a `LiteDecoder` has none.
        cells: a cell of the genotype, with weights of its own, before the 3 x 3 classifier.
    """

    def __init__(self, decoder: "CompactDecoder | LiteDecoder", *, cells: bool = True) -> None:
        super().__init__()
        self.heads = nn.ModuleList()
        if not isinstance(decoder, CompactDecoder):
            return
        for _ in decoder.genotype.blocks:
            cell = Cell(decoder.genotype, decoder.channels, decoder.repeats) if cells else nn.Identity()
            self.heads.append(nn.Sequential(cell, nn.Conv2d(decoder.channels, decoder.classes, 3, padding=1)))

    def forward(self, blocks: Sequence[Tensor]) -> list[Tensor]:
        """Logits (B, K, h_b, w_b) of each block."""
        return [head(block) for head, block in zip(self.heads, blocks, strict=bool(self.heads))]


@dataclass(frozen=True)
class CompactSpec:
    """Everything needed to build a compact segmenter; fields as of `segue.models.segmenter.SegmenterSpec`.

    Args:
        encoder: name of a timm model with maps at strides 4, 8, 16 and 32.
        classes: names by id.
        colors: one RGB colour a class.
        genotype: in its text form, or `LR_ASPP`.
        in_channels: bands of the input.
        value_range: what white is in the input.
        mean: of each band, with white at 1.
        std: of each band, with white at 1.
        channels: C of the decoder's maps; 64 in training, 48 in the search.
        repeats: of separable operations; 2 in training, 1 in the search.
        tones: (kind of pixels, black, white) of each kind of images deeper than 8 bits that it was trained on.
    """

    encoder: str
    classes: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    genotype: str
    in_channels: int = 3
    value_range: float = 255.0
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    channels: int = 64
    repeats: int = 2
    tones: tuple[tuple[str, float, float], ...] = ()


def feature_encoder(name: str, bands: int = 3) -> nn.Module:
    """A timm encoder that gives maps at strides 4, 8, 16 and 32; ``feature_info.channels()`` says how wide.

    Raises:
        ValueError: timm has none of that name, or it gives no such maps.
    """
    import timm

    if not timm.is_model(name):
        raise ValueError(no_such_encoder(name))
    try:
        encoder: nn.Module = timm.create_model(
            name, pretrained=False, features_only=True, out_indices=(1, 2, 3, 4), in_chans=bands
        )
        strides = encoder.feature_info.reduction()  # type: ignore[union-attr, operator]
    except (RuntimeError, AttributeError, IndexError, AssertionError, TypeError) as error:
        raise ValueError(f"the encoder {name!r} gives no feature maps: {error}") from None
    if list(strides) != [4, 8, 16, 32]:
        raise ValueError(f"the encoder {name!r} has strides {list(strides)}; the decoder needs 4, 8, 16, 32")
    return encoder


class CompactSegmenter(nn.Module):
    """Encoder and searched decoder; ``spec`` says how it was built.

    Raises:
        ValueError: no such encoder, or no such genotype.
    """

    kind = "compact"

    def __init__(self, spec: CompactSpec) -> None:
        super().__init__()
        self.spec = spec
        self.encoder = feature_encoder(spec.encoder, spec.in_channels)
        channels = self.encoder.feature_info.channels()  # type: ignore[union-attr, operator]
        self.decoder: CompactDecoder | LiteDecoder
        if spec.genotype == LR_ASPP:
            self.decoder = LiteDecoder(channels, len(spec.classes))
        else:
            self.decoder = CompactDecoder(
                Genotype.parse(spec.genotype), channels, len(spec.classes), channels=spec.channels, repeats=spec.repeats
            )
        self.normalise = Normalise(spec.mean, spec.std, spec.value_range, STRIDE)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K, H, W) at the size of the image (B, bands, H, W)."""
        pixels = self.normalise(image)
        logits = enlarged(self.decoder(self.encoder(pixels)), pixels.shape[-2:])
        return logits[..., : image.shape[-2], : image.shape[-1]]
