"""What ``segue check --fix`` writes, what it refuses to write, and what is printed to write it."""

import json
import random
import re
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import draw
from PIL import Image

from segue.config import Data
from segue.data.check import likely_names
from segue.data.listing import Pair
from segue.data.training import open_training

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


def pasted(told: str, out: Path) -> list[str]:
    """The words of the command that ``told`` prints to write a mended copy, which goes to ``out``."""
    (found,) = set(re.findall(r"segue (check .*?--fix OUT)", told))
    return [str(out) if word == "OUT" else word for word in shlex.split(found)]


def foreground(root: Path) -> None:
    """Masks of two classes that store 0, 1 and, for the second class too, 255; one of half the size."""
    told = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps({**told, "classes": ["a", "b"], "colors": [[0, 0, 0], [9, 9, 9]]}))
    for path in (root / "labels").iterdir():
        mask = np.array(Image.open(path))
        Image.fromarray(np.array([0, 1, 255], np.uint8)[mask]).save(path)
    Image.fromarray(np.array([0, 1, 255], np.uint8)[draw(2)[1][::2, ::2]]).save(root / "labels" / "train_002.png")


@pytest.mark.parametrize("command", ["check", "train"])
def test_the_printed_command_of_a_copy_reads_the_set_as_it_was_read(
    dataset: Path, tmp_path: Path, segue: Any, command: str
) -> None:
    foreground(dataset)
    more = ["--out", tmp_path / "run"] if command == "train" else []
    status, output, errors = segue(command, dataset, "--map", "255:1", "--layout", "folder", *more)
    assert status == 2
    assert segue(*pasted(output + errors, tmp_path / "copy"))[0] == 0
    for i in range(2, 4):
        copied = np.array(Image.open(tmp_path / "copy" / "labels" / f"train_00{i}.png"))
        expected = draw(2)[1][::2, ::2].repeat(2, 0).repeat(2, 1) if i == 2 else draw(i)[1]
        np.testing.assert_array_equal(copied, np.minimum(expected, 1))


def test_conversions_print_commands_that_read_the_set_as_it_was_read(dataset: Path, tmp_path: Path, segue: Any) -> None:
    (dataset / "instances").mkdir()
    Image.fromarray(draw(2)[1][::2, ::2]).save(dataset / "instances" / "train_002.png")
    errors = segue("data", "convert", dataset, tmp_path / "out", "--map", "255:1", "--layout", "folder")[2]
    assert pasted(errors, tmp_path)[:-2] == ["check", str(dataset), "--layout", "folder", "--map", "255:1"]
    coco = write_coco(tmp_path / "coco", {})
    errors = segue("data", "shard", coco, "--out", tmp_path / "shards", "--layout", "coco_instances")[2]
    assert f"segue data convert {coco} DST --layout coco_instances, and" in errors


def test_a_copy_may_lack_the_masks_that_its_set_may_lack(dataset: Path, tmp_path: Path, segue: Any) -> None:
    (dataset / "labels" / "train_001.png").unlink()
    Image.fromarray(draw(3)[1]).save(dataset / "labels" / "stray.png")
    Image.fromarray(draw(2)[1][::2, ::2]).save(dataset / "labels" / "train_002.png")
    out = tmp_path / "copy"
    status, output, _ = segue("check", dataset, "--allow-missing", "--fix", out)
    assert status == 0
    assert f"segue train {out} --out RUN --allow-missing" in output
    assert "left out of the copy, masks without an image: " in output and "stray.png (1)" in output
    assert "10 pairs written" in output and "1 files left out" in output
    data = open_training(Data(data=str(out), allow_missing=True, unlabeled=("rest",)), seed=0)
    assert (len(data.labelled), [pair.name for pair in data.unlabelled]) == (5, ["train_001"])


def likely_names_by_comparing(pairs: Sequence[Pair], stray: Sequence[Path]) -> dict[Path, Path]:
    """`likely_names` as an image and a mask at a time say it."""
    bare = sorted(
        (pair for pair in pairs if pair.mask is None), key=lambda pair: (-len(pair.image.stem), -pair.name.count("/"))
    )
    owners = ((mask, next((p.image for p in bare if belongs(mask, p)), None)) for mask in stray)
    found = {mask: owner for mask, owner in owners if owner is not None}
    endings = {mask.stem.removeprefix(owner.stem) for mask, owner in found.items()}
    return found if len(endings) == 1 and len(set(found.values())) == len(found) else {}


def belongs(mask: Path, pair: Pair) -> bool:
    is_longer = mask.stem.startswith(pair.image.stem) and mask.stem != pair.image.stem
    folders = pair.name.rpartition("/")[0]
    return is_longer and (not folders or f"/{mask.parent}".endswith(f"/{folders}"))


def test_frames_of_other_videos_with_one_number_are_not_confused() -> None:
    bare = [Pair("seq3/000002", Path("set/images/seq3/000002.png")), Pair("seq1/7", Path("set/images/seq1/7.png"))]
    other, own = Path("set/labels/seq7/000002.png"), Path("set/labels/seq3/000002_mask.png")
    assert likely_names(bare, [other]) == {}
    assert likely_names(bare, [Path("set/labels/seq7/000002_mask.png")]) == {}
    assert likely_names(bare, [other, own]) == {own: bare[0].image}
    flat = Pair("7", Path("set/images/7.png"))
    assert likely_names([flat], [Path("set/labels/7_mask.png")]) == {Path("set/labels/7_mask.png"): flat.image}


def test_masks_are_given_to_the_images_that_a_comparison_with_each_gives_them_to() -> None:
    draw, some = random.Random(0), 0
    for _ in range(300):
        names = draw.sample(["a", "ab", "aba", "b", "ba", "bab", "c/a", "c/ab"], 4)
        pairs = [Pair(name, Path(f"{name}.png"), Path("mask") if draw.random() < 0.2 else None) for name in names]
        stray = [Path(f"labels/{name}{draw.choice(['_m', '_m', 'b'])}.png") for name in draw.sample(names, 2)]
        found = likely_names(pairs, stray)
        assert found == likely_names_by_comparing(pairs, stray)
        some += bool(found)
    assert 30 < some < 270


def test_names_of_large_sets_are_compared_in_no_time() -> None:
    pairs = [Pair(f"{i:05d}", Path(f"{i:05d}.png")) for i in range(5_000)]
    stray = [Path(f"{i:05d}_mask.png") for i in range(5_000)]
    began = time.process_time()
    assert len(likely_names(pairs, stray)) == 5_000
    assert time.process_time() - began < 3  # each with each takes several times that
