"""``infer.py`` reads pictures as Segue does."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import turned, turned_late
from PIL import Image
from torch import nn

from segue.data.tones import NODATA, read_rgb
from segue.export.graph import write_onnx
from segue.export.scripts import CLASSES, infer_script

pytest.importorskip("onnxruntime", reason="the extra export is not installed")
ROWS = 5 * np.arange(48, dtype=np.uint8).reshape(8, 6)
TONES = (("I;16", 0.0, 235.0),)


class Bright(nn.Module):
    """Class 1 where a picture is brighter than 100, else class 0."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        brightness = image.float().mean(1, keepdim=True) - 100
        return torch.cat([-brightness, brightness], 1)


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    write_onnx(Bright(), folder / "model.onnx", metadata={"tones": TONES, "colors": [(0, 0, 0), (255, 255, 255)]})
    (folder / "infer.py").write_text(infer_script(CLASSES, "model.onnx"))
    return folder / "infer.py"


@pytest.mark.parametrize(
    ("name", "write", "dtype"),
    [
        ("grey.tif", turned, np.uint8),
        ("deep.tif", turned, np.uint16),
        ("early.png", turned, np.uint8),
        ("photo.jpg", turned, np.uint8),
        ("late.png", turned_late, np.uint8),
    ],
)
@pytest.mark.parametrize("turn", [6, 8])
def test_a_turned_picture_comes_out_as_segue_reads_it(
    script: Path, tmp_path: Path, name: str, write: Callable[..., Path], dtype: type, turn: int
) -> None:
    path = write(ROWS.astype(dtype), tmp_path / name, turn)
    subprocess.run([sys.executable, script, path], check=True, cwd=tmp_path)
    expected = np.asarray(read_rgb(path, TONES))[..., 0] > 100
    assert 0 < expected.mean() < 1
    with Image.open(tmp_path / f"{path.stem}.classes.png") as found:
        np.testing.assert_array_equal(np.asarray(found), expected)


def test_what_a_deep_picture_declares_not_to_be_measured_is_black(script: Path, tmp_path: Path) -> None:
    values = np.full((8, 6), 200, np.uint16)
    values[:3] = 65535
    Image.fromarray(values).save(tmp_path / "deep.tif", tiffinfo={NODATA: "65535"})
    subprocess.run([sys.executable, script, "deep.tif"], check=True, cwd=tmp_path)
    expected = np.asarray(read_rgb(tmp_path / "deep.tif", TONES))[..., 0] > 100
    assert not expected[:3].any()
    assert expected[3:].all()
    with Image.open(tmp_path / "deep.classes.png") as found:
        np.testing.assert_array_equal(np.asarray(found), expected)
