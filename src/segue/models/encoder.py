"""An encoder alone: the part of a segmenter that learns without labels, and what is compared when images are chosen.

Convolutional encoders are those of a `Segmenter`, so one that DeepLabV3+ cannot use is refused before any training.
Plain vision transformers of timm give one map, of their patches.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from segue.models.pixels import Normalise
from segue.models.segmenter import STRIDE, Segmenter, SegmenterSpec


@dataclass(frozen=True)
class EncoderSpec:
    """Everything needed to build an encoder.

    Args:
        encoder: name of a timm model.
        in_channels: bands of the input.
        value_range: what white is in the input; 255 for 8-bit pictures.
        mean: of each band, with white at 1.
        std: of each band, with white at 1.
        output_stride: of a convolutional encoder, 8 or 16; a transformer's is the side of its patches.
        tones: (kind of pixels, black, white) of each kind of images deeper than 8 bits that it was trained on.
    """

    encoder: str
    in_channels: int = 3
    value_range: float = 255.0
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    output_stride: int = 16
    tones: tuple[tuple[str, float, float], ...] = ()


class Encoder(nn.Module):
    """Pictures of any size -> their last feature map; ``spec`` says how it was built.

    Raises:
        ValueError: timm has no such model, or it gives no feature maps that can be used.
    """

    kind = "encoder"
    is_pretrained = False  # whether it started from given weights

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.encoder: nn.Module
        if is_transformer(spec.encoder):
            self.encoder = _Transformer(spec.encoder, spec.in_channels)
            self.stride = self.encoder.stride
        else:
            segmenter = Segmenter(
                SegmenterSpec(
                    spec.encoder, ("any",), ((0, 0, 0),), in_channels=spec.in_channels, mean=spec.mean, std=spec.std,
                    output_stride=spec.output_stride,
                )
            )  # fmt: skip
            self.encoder, self.stride = segmenter.encoder, STRIDE
        self.normalise = Normalise(spec.mean, spec.std, spec.value_range, self.stride)

    @property
    def channels(self) -> int:
        """C of the map."""
        if isinstance(self.encoder, _Transformer):
            return self.encoder.channels
        return int(self.encoder.out_channels[-1])  # type: ignore[index]

    def forward(self, image: Tensor) -> Tensor:
        """(B, bands, H, W) of any dtype in the input's own range -> (B, C, h, w)."""
        feature: Tensor = self.encoder(self.normalise(image))[-1]
        return feature


class _Transformer(nn.Module):
    """A vision transformer of timm whose patches are given as one map."""

    def __init__(self, name: str, in_channels: int) -> None:
        super().__init__()
        import timm

        model: Any = timm.create_model(name, in_chans=in_channels, num_classes=0, dynamic_img_size=True)
        self.stride, self.channels = int(model.patch_embed.patch_size[0]), int(model.embed_dim)
        self.model = model

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """The last layer's patches, normalised: a list of one map (B, C, h, w)."""
        found: list[Tensor] = self.model.forward_intermediates(pixels, indices=1, norm=True, intermediates_only=True)
        return found


def is_transformer(name: str) -> bool:
    """Whether timm's model of that name is a plain vision transformer."""
    import timm

    if not timm.is_model(name):
        return False
    return str(timm.model_entrypoint(name).__module__) == "timm.models.vision_transformer"


@torch.no_grad()
def decay_groups(network: nn.Module, weight_decay: float, held: Iterable[nn.Parameter] = ()) -> list[dict[str, Any]]:
    """Parameters for the optimiser: biases and norms do not decay, nor what is ``held``."""
    apart = {id(parameter) for parameter in held}
    decaying = [p for p in network.parameters() if p.ndim > 1 and id(p) not in apart]
    others = [p for p in network.parameters() if p.ndim <= 1 or id(p) in apart]
    return [{"params": decaying, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def settle_statistics(encoder: nn.Module, images: Tensor) -> None:
    """Sets the running statistics of batch normalisation to those of ``images``: new weights know none.

    What is compared before the first step would else be compared on statistics of 0 and 1, which fit no layer.
    """
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the passes: here of one
    training = encoder.training
    encoder.train()
    encoder(images)
    encoder.train(training)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
