"""The panoptic network: shapes, growth of its class head, and models on disk after any number of increments."""

import math
from pathlib import Path

import pytest
import torch

from segue.errors import DataError
from segue.models.mask_classifier import SIZES, Encoder, MaskClassifier, MaskClassifierSpec, grown
from segue.weights import describe, load_model, load_panoptic, save_model

pytest.importorskip("transformers")


def spec(**changes: object) -> MaskClassifierSpec:
    values = {
        "encoder": "test_efficientnet", "classes": ("ground", "disc"), "colors": ((0, 0, 0), (9, 9, 9)), "things": (1,),
        **SIZES["tiny"], "width": 32, "queries": 7,
    }  # fmt: skip
    return MaskClassifierSpec(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def model() -> MaskClassifier:
    torch.manual_seed(0)
    return MaskClassifier(spec()).eval()


def picture(height: int = 40, width: int = 72) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, height, width), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@torch.inference_mode()
def test_queries_of_every_layer_have_the_stated_shapes(model: MaskClassifier) -> None:
    layers = model.layers(picture())
    assert len(layers) == 1 + model.spec.decoder_layers
    for queries in layers:
        assert queries.classes.shape == (2, 7, 3)
        assert queries.masks.shape == (2, 7, 16, 24)  # a quarter of 64 x 96
    torch.testing.assert_close(model(picture()).masks, layers[-1].masks)


@torch.inference_mode()
def test_padding_is_with_the_mean_colour(model: MaskClassifier) -> None:
    image = picture(40, 72).float()
    padded = model.normalise.mean.expand(2, 3, 64, 96).clone()
    padded[..., :40, :72] = image
    torch.testing.assert_close(model(image).masks, model(padded).masks, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_growth_keeps_old_logits_and_shares_no_object(model: MaskClassifier) -> None:
    wider = grown(model, ("bar", "dot"), ((1, 2, 3), (4, 5, 6)), (3,))
    before, after = model(picture()).classes, wider(picture()).classes
    torch.testing.assert_close(after[..., :2], before[..., :2], rtol=0, atol=1e-6)
    old, new = before.softmax(-1), after.softmax(-1)
    torch.testing.assert_close(new[..., :2], old[..., :2], rtol=0, atol=1e-6)
    torch.testing.assert_close(new[..., 2:].sum(-1), old[..., 2], rtol=0, atol=1e-6)
    torch.testing.assert_close(new[..., 2], old[..., 2] / 3, rtol=0, atol=1e-6)  # bar, dot and no object alike
    assert wider.spec.classes == ("ground", "disc", "bar", "dot")
    assert wider.spec.things == (1, 3)
    assert wider.spec.increments == (2, 2)
    assert model.head.out_features == 3


def test_growth_refuses_known_and_missing_classes(model: MaskClassifier) -> None:
    with pytest.raises(ValueError, match="'disc' already"):
        grown(model, ("disc",), ((1, 1, 1),), ())
    with pytest.raises(ValueError, match="new classes"):
        grown(model, (), (), ())


@torch.inference_mode()
def test_models_survive_the_disk_after_every_increment(model: MaskClassifier, tmp_path: Path) -> None:
    current = model
    for i in range(4):
        folder = tmp_path / str(i)
        save_model(current, folder, method="x", metrics={"pq": 0.5})
        loaded = load_panoptic(str(folder))
        assert loaded.spec == current.spec
        assert describe(str(folder))["kind"] == "mask_classifier"
        torch.testing.assert_close(loaded(picture()).classes, current(picture()).classes, rtol=1e-5, atol=1e-5)
        current = grown(loaded, (f"new{i}",), ((i, i, i),), (2 + i,))
    assert current.spec.increments == (2, 1, 1, 1, 1)


def test_a_panoptic_model_is_no_semantic_one(model: MaskClassifier, tmp_path: Path) -> None:
    save_model(model, tmp_path, method="x", metrics={})
    with pytest.raises(DataError, match="panoptic model"):
        load_model(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": "mobilenet_v9"}, "no encoder 'mobilenet_v9'"),
        ({"encoder": "test_vit"}, "strides|feature maps"),
        ({"width": 48}, "multiple of 32"),
        ({"queries": 0}, "at least 1"),
    ],
)
def test_impossible_networks_are_refused_by_name(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskClassifier(spec(**changes))


@torch.inference_mode()
def test_transformer_encoders_with_channels_last_work() -> None:
    network = MaskClassifier(spec(encoder="swin_tiny_patch4_window7_224")).eval()
    assert network(picture(64, 64)).masks.shape == (2, 7, 16, 16)
    assert math.isfinite(float(network(picture(64, 64)).classes.sum()))


@torch.inference_mode()
def test_a_map_as_high_as_it_has_channels_is_still_channels_last() -> None:
    encoder = Encoder("swin_tiny_patch4_window7_224", 3).eval()
    pixels = torch.zeros(1, 3, 384, 352)
    shapes = [tuple(found.shape[1:]) for found in encoder(pixels)]
    assert shapes == [(96, 96, 88), (192, 48, 44), (384, 24, 22), (768, 12, 11)]
