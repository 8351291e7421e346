"""Encoders that pad as TensorFlow does are exported with padding that is known beforehand."""

import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import nn

from segue.export.graph import PaddedConv, onnx_classifier, torch_classifier, with_padding_known, write_onnx
from segue.models.pixels import Normalise
from segue.models.segmenter import upsample


class Small(nn.Module):
    """A picture through five such convolutions of several sizes, as EfficientNet-Lite0 has them, and back."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.normalise = Normalise((0.5,) * 3, (0.2,) * 3, 255.0, 32)
        kernels = ((3, 2, 1), (5, 2, 1), (3, 2, 2), (1, 2, 1), (4, 2, 1))
        layers = [
            nn.Sequential(Conv2dSame(3, 3, kernel, stride, dilation=dilation), nn.ReLU6())
            for kernel, stride, dilation in kernels
        ]
        self.body = nn.Sequential(*layers)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return upsample(self.body(self.normalise(image)), image.shape[-2], image.shape[-1])


@pytest.mark.parametrize("sides", [(64, 64), (96, 128), (32, 160)])
def test_known_padding_gives_the_same_maps(sides: tuple[int, int]) -> None:
    torch.manual_seed(0)
    encoder = timm.create_model("tf_efficientnet_lite0", features_only=True, output_stride=16).eval()
    pictures = torch.randn(1, 3, *sides)
    with torch.no_grad():
        before = encoder(pictures)
        found = with_padding_known(encoder)(pictures)
    assert any(isinstance(module, Conv2dSame) for module in encoder.modules()), "the network itself stays as it is"
    for a, b in zip(before, found, strict=True):
        assert torch.equal(a, b)


def test_a_network_without_such_layers_is_not_copied() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 3))
    assert with_padding_known(network) is network


@pytest.mark.slow
def test_the_file_pads_as_the_network_does_and_is_soon_written(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the extra export is not installed")
    network, path = Small(), tmp_path / "model.onnx"
    started = time.process_time()
    write_onnx(network, path)
    assert time.process_time() - started < 60
    file, model = onnx_classifier(path, threads=1), torch_classifier(network)
    for shape in ((1, 32, 32), (2, 83, 117), (1, 50, 200)):
        image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
        np.testing.assert_array_equal(file(image), model(image))
    assert not any(isinstance(module, PaddedConv) for module in network.modules())
