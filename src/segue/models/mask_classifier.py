"""A panoptic network: any timm encoder under transformers' Mask2Former, with a class head that can grow.

Cheng, Misra, Schwing, Kirillov and Girdhar, *Masked-attention Mask Transformer for Universal Image Segmentation*, CVPR
2022, arXiv:2112.01527. Pixel decoder and masked attention are transformers'; encoder, head and the rest are here. The
network takes pictures as they are, of any size, and scales and normalises inside.
"""

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from segue.data.sample import Color, Tones
from segue.data.tones import joined_tones
from segue.models.pixels import Normalise, padded_side
from segue.models.segmenter import no_such_encoder

STRIDES = (4, 8, 16, 32)  # of the encoder's maps
SMALLEST = 64  # pixels of a side: one feature cell at stride 32 has nothing to be normalised with

# Width, queries, layers of the pixel decoder and of the query decoder, width of the feed-forward layers.
SIZES: dict[str, dict[str, int]] = {
    "tiny": {"width": 64, "queries": 50, "pixel_layers": 2, "decoder_layers": 3, "feedforward": 128},
    "small": {"width": 128, "queries": 100, "pixel_layers": 3, "decoder_layers": 6, "feedforward": 512},
    "full": {"width": 256, "queries": 100, "pixel_layers": 6, "decoder_layers": 9, "feedforward": 1024},
}


@dataclass(frozen=True)
class MaskClassifierSpec:
    """Everything needed to build a mask classifier and to read what it says.

    Args:
        encoder: name of a timm model with maps at strides 4, 8, 16 and 32.
        classes: names by id.
        colors: one RGB colour a class.
        things: ids of countable classes.
        increments: how many classes came in each round, the base model's first; empty where there was one round.
        in_channels: bands of the input.
        value_range: what white is in the input; 255 for 8-bit pictures.
        mean: of each band, with white at 1.
        std: of each band, with white at 1.
        width: channels of decoder and queries; a multiple of 32.
        queries: Q, the most segments that a picture can have.
        pixel_layers: of the pixel decoder.
        decoder_layers: of the query decoder.
        feedforward: channels of the feed-forward layers.
        tones: (kind of pixels, black, white) of each kind of images deeper than 8 bits that it was trained on.
    """

    encoder: str
    classes: tuple[str, ...]
    colors: tuple[Color, ...]
    things: tuple[int, ...]
    increments: tuple[int, ...] = ()
    in_channels: int = 3
    value_range: float = 255.0
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    width: int = 256
    queries: int = 100
    pixel_layers: int = 6
    decoder_layers: int = 9
    feedforward: int = 1024
    tones: tuple[tuple[str, float, float], ...] = ()


@dataclass(frozen=True)
class Queries:
    """What the queries of one layer say.

    Args:
        classes: logits (B, Q, K + 1), no-object last.
        masks: logits (B, Q, h, w) at a quarter of the padded picture.
    """

    classes: Tensor
    masks: Tensor


class Encoder(nn.Module):
    """A timm model that gives its maps at `STRIDES`, channels first.

    Raises:
        ValueError: timm has no such model, or it gives no such maps.
    """

    def __init__(self, name: str, in_channels: int) -> None:
        super().__init__()
        import timm

        if not timm.is_model(name):
            raise ValueError(no_such_encoder(name))
        sizes: dict[str, Any] = {"strict_img_size": False} if name.startswith("swin") else {}
        try:
            self.model: nn.Module = timm.create_model(name, features_only=True, in_chans=in_channels, **sizes)
            info: Any = self.model.feature_info
            strides, channels = list(info.reduction()), list(info.channels())
        except (RuntimeError, TypeError, AttributeError, KeyError, AssertionError, ValueError) as error:
            raise ValueError(f"the encoder {name!r} gives no feature maps: {error}") from None
        missing = [stride for stride in STRIDES if stride not in strides]
        if missing:
            raise ValueError(f"the encoder {name!r} gives maps at strides {strides}; {missing[0]} is missing")
        self.is_last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"  # as Swin's
        self.chosen = [len(strides) - 1 - strides[::-1].index(stride) for stride in STRIDES]
        self.channels = [channels[i] for i in self.chosen]

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """(B, bands, H, W), sides multiples of 32, -> maps (B, C, H / s, W / s)."""
        maps = self.model(pixels)
        return [maps[i].permute(0, 3, 1, 2).contiguous() if self.is_last else maps[i] for i in self.chosen]


def _mask2former(spec: MaskClassifierSpec, channels: Sequence[int]) -> tuple[nn.Module, nn.Module]:
    """transformers' pixel decoder and query decoder, with their own initial weights."""
    from transformers import Mask2FormerConfig
    from transformers.models.mask2former import modeling_mask2former as theirs

    class Parts(theirs.Mask2FormerPreTrainedModel):  # type: ignore[no-untyped-call]
        """Both decoders; a model of transformers', because such a model sets its initial weights."""

        def __init__(self, config: Mask2FormerConfig) -> None:
            super().__init__(config)
            self.pixels = theirs.Mask2FormerPixelDecoder(config, feature_channels=list(channels))
            self.queries = theirs.Mask2FormerTransformerModule(in_features=spec.width, config=config)
            self.post_init()  # type: ignore[no-untyped-call]

    parts = Parts(
        Mask2FormerConfig(
            feature_size=spec.width, mask_feature_size=spec.width, hidden_dim=spec.width,
            encoder_feedforward_dim=spec.feedforward, dim_feedforward=spec.feedforward,
            encoder_layers=spec.pixel_layers, decoder_layers=spec.decoder_layers + 1, num_queries=spec.queries,
            num_attention_heads=8, dropout=0.0, feature_strides=list(STRIDES), common_stride=STRIDES[0],
        )
    )  # fmt: skip
    return parts.pixels, parts.queries


class MaskClassifier(nn.Module):
    """Encoder, pixel decoder, query decoder and head; ``spec`` says how it was built.

    Raises:
        ValueError: no such encoder, or a size that cannot be.
    """

    kind = "mask_classifier"
    is_pretrained = False  # whether the encoder started from given weights

    def __init__(self, spec: MaskClassifierSpec) -> None:
        super().__init__()
        sizes = (spec.width, spec.queries, spec.pixel_layers, spec.decoder_layers, spec.feedforward)
        if not all(isinstance(size, int) for size in sizes):
            raise ValueError(f"a size is no whole number among {sizes}")
        if spec.width < 32 or spec.width % 32:
            raise ValueError(f"width {spec.width} is not possible; give a multiple of 32")
        if min(sizes) < 1:
            raise ValueError("queries, layers and feedforward must be at least 1")
        self.spec = spec
        self.encoder = Encoder(spec.encoder, spec.in_channels)
        self.decoder, self.query_decoder = _mask2former(spec, self.encoder.channels)
        self.head = nn.Linear(spec.width, len(spec.classes) + 1)
        self.normalise = Normalise(spec.mean, spec.std, spec.value_range, STRIDES[-1], SMALLEST)

    def layers(self, image: Tensor) -> list[Queries]:
        """What the queries say before the first and after each layer of the query decoder; the last is `forward`'s."""
        pixels = self.decoder(self.encoder(self.normalise(image)))
        found = self.query_decoder(pixels.multi_scale_features, pixels.mask_features)
        states = [state.transpose(0, 1) for state in found.intermediate_hidden_states]  # (B, Q, C) each
        return [
            Queries(self.head(state), masks) for state, masks in zip(states, found.masks_queries_logits, strict=True)
        ]

    def forward(self, image: Tensor) -> Queries:
        """What the queries say of pictures (B, bands, H, W)."""
        return self.layers(image)[-1]


def padded_size(image: Tensor) -> tuple[int, int]:
    """Height and width that a picture is padded to."""
    height, width = (padded_side(side, STRIDES[-1], SMALLEST) for side in image.shape[-2:])
    return height, width


def on_padded(inside: Tensor, size: Sequence[int]) -> Tensor:
    """Bool (B, H, W) on pictures that are padded to ``size``."""
    return nn.functional.pad(inside, (0, size[1] - inside.shape[2], 0, size[0] - inside.shape[1]))


def grown(
    model: MaskClassifier,
    classes: Sequence[str],
    colors: Sequence[Color],
    things: Sequence[int],
    tones: Tones = (),
) -> MaskClassifier:
    """A copy that knows further classes, whose ids follow the old ones.

    Old logits stay as they are. The new classes share the no-object probability evenly with it, so that together they
    are as probable as no object was (Cermelli et al., *Modeling the Background*, CVPR 2020): a distillation that counts
    them as no object starts at 0.

    Args:
        model: left as it is.
        classes: names of the new classes.
        colors: one each.
        things: ids of those that are countable, counted in the grown model.
        tones: rules for deep images of kinds that the model has none for.

    Raises:
        ValueError: nothing new, or a class that is known already.
    """
    old, count = model.spec, len(classes)
    known = [name for name in classes if name in old.classes]
    if known:
        raise ValueError(f"the model knows the class {known[0]!r} already")
    if not classes or len(set(classes)) < count or len(colors) != count:
        raise ValueError("give new classes, each once and with one colour")
    total = len(old.classes)
    wider = deepcopy(model)
    wider.spec = replace(
        old,
        classes=(*old.classes, *classes),
        colors=(*old.colors, *colors),
        things=(*old.things, *(i for i in things if i >= total)),
        tones=joined_tones(old.tones, tones),
        increments=(*(old.increments or (total,)), count),
    )
    head = nn.Linear(old.width, total + count + 1).to(model.head.weight)
    with torch.no_grad():
        head.weight[:total], head.bias[:total] = model.head.weight[:-1], model.head.bias[:-1]
        head.weight[total:] = model.head.weight[-1]
        head.bias[total:] = model.head.bias[-1] - math.log(count + 1)
    wider.head = head
    return wider


def parameter_groups(
    network: MaskClassifier, *, lr: float, encoder_lr: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Encoder and the rest, each with and without weight decay, for an optimiser.

    Args:
        network: whose parameters.
        lr: of all but the encoder.
        encoder_lr: factor of it for the encoder.
        weight_decay: of all weights but those of norms and embeddings.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, module in network.named_modules():
        is_encoder = name.startswith("encoder")
        is_plain = not isinstance(module, nn.Embedding | nn.LayerNorm | nn.GroupNorm | nn.BatchNorm2d)
        for parameter in module.parameters(recurse=False):
            groups.setdefault((is_encoder, is_plain and parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": lr * (encoder_lr if is_encoder else 1.0),
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (is_encoder, decays), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]
