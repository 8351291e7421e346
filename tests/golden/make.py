"""Writes a small model of each kind, with what it says of a drawn picture. Run once a format: it must load for ever.

python tests/golden/make.py
"""

import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import CLASSES, COLORS, draw
from torch import nn

from segue.models.compact import CompactSegmenter, CompactSpec
from segue.models.encoder import Encoder, EncoderSpec
from segue.models.heads import LinearProbe
from segue.models.mask_classifier import MaskClassifier, MaskClassifierSpec
from segue.models.segmenter import Segmenter, SegmenterSpec
from segue.weights import KINDS, save_model

HERE = Path(__file__).parent
ENCODER = "test_efficientnet"
GENOTYPE = "[[2, [1, 0, 3, 6], [0, 1, 2, 8], [2, 0, 6, 1]], [[2, 3], [3, 1]]]"


def models() -> dict[str, nn.Module]:
    """One of each kind, with running statistics that are not those of a new one."""
    spec = SegmenterSpec(ENCODER, CLASSES, COLORS, decoder_channels=16)
    small = {"width": 32, "queries": 4, "pixel_layers": 1, "decoder_layers": 1, "feedforward": 32}
    return {
        "segmenter": Segmenter(spec),
        "linear_probe": LinearProbe.build(spec),
        "compact": CompactSegmenter(CompactSpec(ENCODER, CLASSES, COLORS, GENOTYPE, channels=8, repeats=1)),
        "mask_classifier": MaskClassifier(MaskClassifierSpec(ENCODER, CLASSES, COLORS, (1, 2), **small)),  # type: ignore[arg-type]
        "encoder": Encoder(EncoderSpec(ENCODER)),
    }


def picture() -> torch.Tensor:
    """uint8 (1, 3, 48, 48)."""
    return torch.from_numpy(draw(7)[0]).permute(2, 0, 1)[None]


@torch.no_grad()
def said(model: nn.Module) -> np.ndarray:
    """What it says of the picture: logits, features, or the classes of queries."""
    model.eval()
    found = model(picture())
    return (found if isinstance(found, torch.Tensor) else found.classes).numpy()


def main() -> None:
    torch.manual_seed(0)
    for kind, model in models().items():
        model.train()
        with torch.no_grad():
            model(torch.cat([picture(), picture().flip(3)]).repeat(2, 1, 1, 1))
        folder = HERE / f"format_1_{kind}"
        save_model(model, folder, method="golden", metrics={"miou": 0.5})  # type: ignore[arg-type]
        np.save(folder / "said.npy", said(model).astype(np.float16))
    assert set(models()) == set(KINDS)


if __name__ == "__main__":
    main()
