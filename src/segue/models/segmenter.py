"""A semantic segmenter: any timm encoder under SMP's DeepLabV3+ decoder and a 1 x 1 head.

Chen et al., *Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation*, ECCV 2018. The network
takes pictures as they are, of any size, and scales and normalises inside.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.data.sample import Color, Tones
from segue.data.tones import joined_tones
from segue.models.pixels import Normalise

STRIDE = 16  # sides are padded to a multiple of it
FEATURE_STRIDE = 4  # of the decoder's output
UNLIKELY = -4.0  # logit of a class that was added, everywhere


@dataclass(frozen=True)
class SegmenterSpec:
    """Everything needed to build a segmenter and to read what it says.

    Args:
        encoder: name of a timm model.
        classes: names by id.
        colors: one RGB colour a class.
        in_channels: bands of the input.
        value_range: what white is in the input; 255 for 8-bit pictures.
        mean: of each band, with white at 1.
        std: of each band, with white at 1.
        output_stride: of the encoder, 8 or 16.
        decoder_channels: channels of the decoder's output.
        tones: (kind of pixels, black, white) of each kind of images deeper than 8 bits that it was trained on.
        rates: dilations of the decoder's pyramid. Models that say nothing of them have those of output stride 8.
    """

    encoder: str
    classes: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    in_channels: int = 3
    value_range: float = 255.0
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    output_stride: int = 16
    decoder_channels: int = 256
    tones: tuple[tuple[str, float, float], ...] = ()
    rates: tuple[int, ...] = (12, 24, 36)


class Segmenter(nn.Module):
    """Encoder, decoder and head; ``spec`` says how it was built.

    Raises:
        ValueError: timm has no such encoder, or it gives no feature maps that the decoder can use.
    """

    kind = "segmenter"
    is_pretrained = False  # whether the encoder started from given weights

    def __init__(self, spec: SegmenterSpec) -> None:
        super().__init__()
        import segmentation_models_pytorch as smp
        import timm

        if not timm.is_model(spec.encoder):
            raise ValueError(no_such_encoder(spec.encoder))
        if spec.output_stride not in (8, 16):
            raise ValueError(f"output stride {spec.output_stride} is not possible; give 8 or 16")
        try:
            network = smp.DeepLabV3Plus(
                encoder_name=f"tu-{spec.encoder}",
                encoder_weights=None,
                encoder_output_stride=spec.output_stride,
                decoder_channels=spec.decoder_channels,
                decoder_atrous_rates=spec.rates,
                in_channels=spec.in_channels,
                classes=1,
            )
        except (ValueError, RuntimeError, TypeError, AttributeError, KeyError) as error:
            raise ValueError(
                f"the encoder {spec.encoder!r} gives no feature maps that DeepLabV3+ can use: {error}"
            ) from None
        self.spec = spec
        self.encoder: nn.Module = network.encoder
        self.decoder: nn.Module = network.decoder
        self.head = nn.Conv2d(spec.decoder_channels, len(spec.classes), 1)
        self.normalise = Normalise(spec.mean, spec.std, spec.value_range, STRIDE)

    def features(self, image: Tensor) -> Tensor:
        """The decoder's output: (B, bands, H, W) -> (B, C, h, w) at a quarter of the padded size."""
        decoded: Tensor = self.decoder(self.encoder(self.normalise(image)))
        return decoded

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K, H, W) at the size of the image."""
        logits = self.head(self.features(image))
        return upsample(logits, image.shape[-2], image.shape[-1])


def no_such_encoder(name: str) -> str:
    """That timm has no encoder of that name, and which come near it."""
    import timm

    close = timm.list_models(f"*{name.partition('_')[0]}*")[:3]
    return f"timm has no encoder {name!r}" + (f"; near it: {', '.join(close)}" if close else "")


def grown_segmenter(model: Segmenter, classes: Sequence[str], colors: Sequence[Color], tones: Tones = ()) -> Segmenter:
    """A copy that knows further classes, whose ids follow the old ones; old logits stay, new ones start at `UNLIKELY`.

    Args:
        model: left as it is.
        classes: names of the new classes.
        colors: one each.
        tones: rules for deep images of kinds that the model has none for.

    Raises:
        ValueError: nothing new, or a class that is known already.
    """
    old = model.spec
    known = [name for name in classes if name in old.classes]
    if known:
        raise ValueError(f"the model knows the class {known[0]!r} already")
    if not classes or len(set(classes)) < len(classes) or len(colors) != len(classes):
        raise ValueError("give new classes, each once and with one colour")
    wider, total = deepcopy(model), len(old.classes)
    wider.spec = replace(
        old,
        classes=(*old.classes, *classes),
        colors=(*old.colors, *colors),
        tones=joined_tones(old.tones, tones),
    )
    head = nn.Conv2d(old.decoder_channels, total + len(classes), 1).to(model.head.weight)
    weight, bias = torch.zeros_like(head.weight), torch.full((total + len(classes),), UNLIKELY)
    weight[:total] = model.head.weight.detach()
    bias[:total] = model.head.state_dict()["bias"]
    head.load_state_dict({"weight": weight, "bias": bias})
    wider.head = head
    return wider


def upsample(logits: Tensor, height: int, width: int) -> Tensor:
    """Logits (B, K, h, w) of the padded picture, bilinearly at its full size and cut to (B, K, height, width)."""
    full = F.interpolate(logits, scale_factor=FEATURE_STRIDE, mode="bilinear", align_corners=False)
    return full[..., :height, :width]


def encoder_statistics(encoder: str, bands: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the pictures an encoder's published weights were trained on, white at 1, for each band.

    Args:
        encoder: name of a timm model; one with a tag, as ``vit_small_patch16_224.dino``, names the weights.
        bands: of the input; see `of_bands`.
    """
    import timm

    known = timm.get_pretrained_cfg(encoder)
    mean, std = (known.mean, known.std) if known else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return of_bands(mean, bands), of_bands(std, bands)


def of_bands(values: Sequence[float], bands: int) -> tuple[float, ...]:
    """One value for each band: ``values``, or their average where there are more or fewer bands than values."""
    return tuple(values) if bands == len(values) else (sum(values) / len(values),) * bands
