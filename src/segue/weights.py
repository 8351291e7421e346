"""Models on disk: a folder with ``model.safetensors`` and ``model.yaml``. Loading one cannot run code.

``model.yaml`` holds the format number, the kind of network, its spec (classes and palette in it), the method that made
it and its scores. Format 1 is the first; a later Segue reads every earlier one.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from segue.data.finding import argument
from segue.disk import write_atomically
from segue.errors import DataError
from segue.models.compact import CompactSegmenter, CompactSpec
from segue.models.encoder import Encoder, EncoderSpec, is_transformer
from segue.models.heads import LinearProbe
from segue.models.mask_classifier import MaskClassifier, MaskClassifierSpec
from segue.models.segmenter import Segmenter, SegmenterSpec
from segue.records import MISREAD, read_yaml

FORMAT = 1
Model = Segmenter | LinearProbe | CompactSegmenter  # semantic: logits for every pixel
AnyModel = Model | MaskClassifier  # what predicts
Saved = AnyModel | Encoder
KINDS: dict[str, tuple[Callable[[Any], Saved], type[Any]]] = {
    "segmenter": (Segmenter, SegmenterSpec),
    "compact": (CompactSegmenter, CompactSpec),
    "linear_probe": (LinearProbe.build, SegmenterSpec),
    "mask_classifier": (MaskClassifier, MaskClassifierSpec),
    "encoder": (Encoder, EncoderSpec),
}


def save_model(model: Saved, folder: Path, *, method: str, metrics: Mapping[str, float]) -> Path:
    """Writes the model folder.

    Args:
        model: any network of Segue's.
        folder: made if missing; its two files are replaced whole or not at all.
        method: what trained it.
        metrics: its scores, by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_atomically(folder / "model.safetensors", save(state))
    described = {
        "format": FORMAT,
        "kind": model.kind,
        "spec": _plain(dataclasses.asdict(model.spec)),
        "method": method,
        "metrics": {name: float(value) for name, value in metrics.items()},
    }
    write_atomically(folder / "model.yaml", yaml.safe_dump(described, sort_keys=False).encode())
    return folder


def _plain(value: Any) -> Any:
    """Tuples as lists, for YAML."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _frozen(value: Any) -> Any:
    """Lists as tuples, for specs."""
    return tuple(_frozen(inner) for inner in value) if isinstance(value, list) else value


def model_folder(source: str) -> Path:
    """The folder with ``model.yaml`` that a run folder, a model folder or ``hf:owner/name`` (downloaded) stands for.

    Raises:
        DataError: there is no model.
    """
    if source.startswith("hf:"):
        from huggingface_hub import snapshot_download

        wanted = ["model.yaml", "model.safetensors"]
        try:
            return Path(snapshot_download(source.removeprefix("hf:"), allow_patterns=wanted))
        except (OSError, ValueError) as error:  # no network, no such model, no name of one
            raise DataError(f"{source} cannot be had ({str(error).splitlines()[0][:200]})") from None
    folder = Path(source)
    for candidate in (folder, folder / "model"):
        if (candidate / "model.yaml").is_file():
            return candidate
    raise DataError(f"{source} holds no model (no model.yaml in it or in its model/); name a run or a model folder")


def model_fingerprint(source: str) -> str:
    """The sha256 of a model's weights."""
    return hashlib.sha256((model_folder(source) / "model.safetensors").read_bytes()).hexdigest()


def describe(source: str) -> dict[str, Any]:
    """What ``model.yaml`` says.

    Raises:
        DataError: it is no valid YAML, or of a format this version does not know.
    """
    path = model_folder(source) / "model.yaml"
    described = read_yaml(path, "the description of a model")
    if not isinstance(described, dict) or str(described.get("kind")) not in KINDS:
        raise DataError(f"{path} names no kind of model that this version knows ({', '.join(KINDS)})")
    if described.get("format") != FORMAT:
        raise DataError(f"{path} has format {described.get('format')!r}; this version reads {FORMAT}: update Segue")
    if not isinstance(described.get("spec"), dict):
        raise DataError(f"{path} is damaged: its spec is no list of names and values")
    return described


def load_model(source: str, *, device: str = "cpu") -> Model:
    """The semantic model of a run folder, a model folder or ``hf:owner/name``, ready to predict.

    Raises:
        DataError: no semantic model there, or its two files do not belong together.
    """
    model = load_any(source, device=device)
    if isinstance(model, MaskClassifier):
        raise DataError(f"{source} is a panoptic model; a semantic one is needed here")
    return model


def load_panoptic(source: str, *, device: str = "cpu") -> MaskClassifier:
    """The panoptic model of a run folder, a model folder or ``hf:owner/name``, ready to predict.

    Raises:
        DataError: no panoptic model there, or its two files do not belong together.
    """
    model = load_any(source, device=device)
    if not isinstance(model, MaskClassifier):
        raise DataError(f"{source} is a semantic model; a panoptic one is needed: segue train DATA --task panoptic")
    return model


def load_any(source: str, *, device: str = "cpu") -> AnyModel:
    """The model of a run folder, a model folder or ``hf:owner/name``, ready to predict.

    Raises:
        DataError: no model there, its two files do not belong together, or it is an encoder, which predicts nothing.
    """
    model = load_saved(source, device=device)
    if isinstance(model, Encoder):
        name = model.spec.encoder
        advice = (
            "no decoder takes a vision transformer, it serves segue suggest and load_encoder of segue.weights"
            if is_transformer(name)
            else f"train on it first: segue train DATA --init {argument(source)} --encoder {name} --out RUN"
        )
        raise DataError(f"{source} holds an encoder, which labels no pixel; {advice}")
    return model


def load_encoder(source: str, *, device: str = "cpu") -> Encoder:
    """The encoder of a saved encoder or semantic model, ready to be run.

    Raises:
        DataError: no model there, or its two files do not belong together.
    """
    model = load_saved(source, device=device)
    if isinstance(model, Encoder):
        return model
    if isinstance(model, MaskClassifier | CompactSegmenter):
        kind = "panoptic" if isinstance(model, MaskClassifier) else "compact"
        raise DataError(f"{source} is a {kind} model; an encoder or a model of segue train is needed here")
    inner = model.segmenter if isinstance(model, LinearProbe) else model
    spec = inner.spec
    encoder = Encoder(
        EncoderSpec(
            spec.encoder, spec.in_channels, spec.value_range, spec.mean, spec.std, spec.output_stride, spec.tones
        )
    )  # fmt: skip
    encoder.encoder = inner.encoder
    return encoder.to(device).eval()


def load_saved(source: str, *, device: str = "cpu") -> Saved:
    """Whatever kind of network a run folder, a model folder or ``hf:owner/name`` holds, in evaluation mode.

    Raises:
        DataError: no model there, or its two files do not belong together.
    """
    described = describe(source)
    network, spec = KINDS[described["kind"]]
    path = model_folder(source) / "model.safetensors"
    try:
        model = network(spec(**{name: _frozen(value) for name, value in described["spec"].items()}))
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError, MemoryError, AssertionError, *MISREAD) as error:
        first = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DataError(f"{path} cannot be loaded as model.yaml describes it ({first})") from None
    model.to(device).to(memory_format=torch.channels_last)  # as trained: other layouts round differently
    model.eval()
    return model
