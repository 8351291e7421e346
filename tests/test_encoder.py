"""The encoder as a model of its own: saved, loaded, started from, and refused where it cannot do what is asked."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import CLASSES, COLORS, TINY

from segue.errors import DataError
from segue.models.encoder import Encoder, EncoderSpec, settle_statistics
from segue.models.heads import LinearProbe
from segue.models.segmenter import Segmenter, SegmenterSpec
from segue.starting import new_encoder
from segue.weights import load_encoder, load_model, save_model


@pytest.mark.parametrize(("name", "stride"), [("test_efficientnet", 16), ("test_resnet", 16), ("test_vit", 16)])
def test_saved_encoder_gives_the_same_map_when_loaded(name: str, stride: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = Encoder(EncoderSpec(name)).eval().to(memory_format=torch.channels_last)
    save_model(encoder, tmp_path / "model", method="x", metrics={})
    image = torch.randint(0, 256, (1, 3, 50, 64), dtype=torch.uint8)
    with torch.inference_mode():
        found = load_encoder(str(tmp_path))(image)
        torch.testing.assert_close(found, encoder(image), rtol=0, atol=0)
    assert found.shape == (1, encoder.channels, -(-50 // stride), 64 // stride)


@pytest.mark.parametrize(
    ("name", "advice"),
    [("test_efficientnet", "--init {} --encoder test_efficientnet"), ("test_vit", "it serves segue suggest")],
)
def test_an_encoder_predicts_nothing_and_says_what_can_be_done(name: str, advice: str, tmp_path: Path) -> None:
    save_model(Encoder(EncoderSpec(name)), tmp_path, method="x", metrics={})
    with pytest.raises(DataError, match=advice.format(tmp_path)):
        load_model(str(tmp_path))


def test_the_encoder_of_any_model_can_be_had(tmp_path: Path) -> None:
    spec = SegmenterSpec("test_efficientnet", CLASSES, COLORS, decoder_channels=16)
    segmenter = Segmenter(spec).eval()
    image = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        expected = segmenter.encoder(segmenter.normalise(image))[-1]
    for i, model in enumerate((segmenter, LinearProbe(segmenter))):
        save_model(model, tmp_path / str(i), method="x", metrics={})
        with torch.inference_mode():
            torch.testing.assert_close(load_encoder(str(tmp_path / str(i)))(image), expected)


@pytest.mark.slow
def test_training_takes_the_encoder_of_a_pretrained_folder(
    segue: Callable[..., tuple[int, str, str]], dataset: Path, tmp_path: Path
) -> None:
    encoder = Encoder(EncoderSpec("test_efficientnet"))
    save_model(encoder, tmp_path / "model", method="x", metrics={})
    fields = [f"--{name}={value}" for name, value in {**TINY, "init": tmp_path, "steps": 1, "lr": 0.0}.items()]
    status, _, said = segue("train", dataset, "--out", tmp_path / "run", "--method", "supervised", *fields)
    assert status == 0, said
    assert f"the encoder of {tmp_path}" in said
    trained = load_encoder(str(tmp_path / "run")).state_dict()
    for name, weight in encoder.named_parameters():
        torch.testing.assert_close(trained[name], weight.detach(), msg=name)


def test_a_transformer_is_refused_by_a_decoder_that_needs_four_strides(
    segue: Callable[..., tuple[int, str, str]], dataset: Path, tmp_path: Path
) -> None:
    status, _, said = segue("train", dataset, "--out", tmp_path / "run", "--encoder", "test_vit", "--init", "random")
    assert status == 2
    assert "test_vit" in said
    assert not (tmp_path / "run").exists()


def test_it_is_said_before_a_pretraining_that_no_decoder_takes_a_transformer() -> None:
    said: list[str] = []
    for name in ("test_efficientnet", "test_vit"):
        new_encoder(name, "random", output_stride=16, say=said.append)
    assert [line.startswith("note: no decoder takes") for line in said] == [False, False, True]


@pytest.mark.parametrize("name", ["no_such_net", "swin_tiny_patch4_window7_224"])
def test_an_encoder_that_cannot_be_used_is_named_before_training(name: str) -> None:
    with pytest.raises(DataError, match=f"--encoder: .*{name}"):
        new_encoder(name, "random", output_stride=16, say=lambda text: None)


def test_statistics_of_new_weights_are_those_of_the_images() -> None:
    torch.manual_seed(0)
    encoder = Encoder(EncoderSpec("test_efficientnet"))
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    settle_statistics(encoder, images)
    norm = encoder.get_submodule("encoder.model.bn1")
    stem = encoder.get_submodule("encoder.model.conv_stem")
    pixels = images.float().sub(encoder.normalise.mean).div(encoder.normalise.std)
    expected = stem(pixels).mean((0, 2, 3))
    torch.testing.assert_close(norm.running_mean, expected.detach(), rtol=1e-4, atol=1e-5)
    assert norm.momentum == pytest.approx(0.1)
    assert encoder.training
