"""Pictures as they are looked at and evaluated."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segue.data import images
from segue.data.decoder import Decoder
from segue.data.images import Middle, Whole
from segue.data.listing import Pair


def test_what_is_looked_at_is_the_middle_of_a_large_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "SHOWN", 48)
    values = np.arange(8 * 24, dtype=np.uint8).reshape(8, 24)
    Image.fromarray(np.stack([values] * 3, 2)).save(tmp_path / "a.png")
    Image.fromarray(values % 2).save(tmp_path / "b.png")
    pair = Pair("a", tmp_path / "a.png", tmp_path / "b.png")
    whole = Whole([pair, Pair("a", pair.image)], Decoder({0: 0, 1: 1}, (), by_color=False))
    sample, bare = Middle(whole)[0], Middle(whole)[1]
    assert (sample["image"][0] == torch.from_numpy(values[2:6, 6:18])).all()  # half of each side
    assert (sample["mask"] == torch.from_numpy(values[2:6, 6:18] % 2)).all()
    assert (sample["image"].shape, set(bare)) == ((3, 4, 12), {"image", "name"})
    monkeypatch.setattr(images, "SHOWN", 8 * 24)
    assert (Middle(whole)[0]["image"] == whole[0]["image"]).all()
