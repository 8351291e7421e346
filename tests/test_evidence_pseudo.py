"""The comparison of pseudo-labels with labels, by hand."""

import json
import sys
from pathlib import Path

import numpy as np
from conftest import COLORS
from PIL import Image

from segue.data.sample import write_label_map

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "evidence"))
import pseudo_labels as script


def test_shares_by_hand(dataset: Path, tmp_path: Path) -> None:
    with Image.open(dataset / "labels" / "train_000.png") as image:
        truth = np.array(image)
    said = np.where(truth == 2, 0, truth)  # every bar is taken for ground
    said[:, :5] = 255
    (tmp_path / "pseudo_labels").mkdir()
    write_label_map(tmp_path / "pseudo_labels" / "000000.png", said, COLORS)
    found = {"images": {"000000.png": str(dataset / "images" / "train_000.png")}}
    (tmp_path / "pseudo_labels.json").write_text(json.dumps(found))
    classes, counts = script.compared(tmp_path, str(dataset))
    assert counts.shape == (3, 4)
    assert counts.sum() == truth.size
    assert counts[2].tolist() == [(truth[:, 5:] == 2).sum(), 0, 0, (truth[:, :5] == 2).sum()]
    rows = script.table(classes, counts).splitlines()[2:]
    cells = [row.strip("| ").split(" | ") for row in rows]
    assert cells[2][3:] == ["0.0", "–"]
    right = (truth[:, 5:] == 0).sum() / ((truth[:, 5:] == 0) | (truth[:, 5:] == 2)).sum()
    assert cells[0][2:] == [
        f"{100 * (truth[:, 5:] == 0).sum() / (truth == 0).sum():.1f}",
        "100.0",
        f"{100 * right:.1f}",
    ]
