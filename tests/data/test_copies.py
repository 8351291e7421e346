"""What ``segue check --fix`` writes, what it refuses to write, and what is printed to write it."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import draw
from PIL import Image

SQUARE = [[8, 8, 30, 8, 30, 30, 8, 30]]


def write_coco(root: Path, change: dict[str, Any]) -> Path:
    """COCO instances of four pictures with an object each; ``change`` is made to the last object."""
    (root / "images").mkdir(parents=True)
    for i in range(4):
        Image.fromarray(draw(i)[0]).save(root / "images" / f"{i}.png")
    objects = [{"id": i, "image_id": i, "category_id": 1, "segmentation": SQUARE} for i in range(4)]
    objects[-1] |= change
    told = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 48, "height": 48} for i in range(4)],
        "annotations": objects,
        "categories": [{"id": 1, "name": "car"}],
    }
    (root / "annotations").mkdir()
    (root / "annotations" / "batch.json").write_text(json.dumps(told))
    return root


def test_a_coco_file_without_a_fault_is_copied(tmp_path: Path, segue: Any) -> None:
    assert segue("check", write_coco(tmp_path / "set", {}), "--fix", tmp_path / "copy")[0] == 0


@pytest.mark.parametrize(
    ("change", "code"),
    [({"segmentation": []}, "E129"), ({"category_id": 9}, "E120"), ({"image_id": 9}, "E123")],
)
def test_objects_that_would_be_lost_are_no_background_in_a_copy(
    tmp_path: Path, segue: Any, change: dict[str, Any], code: str
) -> None:
    root = write_coco(tmp_path / "set", change)
    status, _, errors = segue("check", root, "--fix", tmp_path / "copy")
    assert status == 2
    assert "no rule mends" in errors and code in errors
    assert not (tmp_path / "copy").exists()
