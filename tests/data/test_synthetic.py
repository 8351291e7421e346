import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segue.data.layouts.folder import Folder
from segue.data.sample import IGNORE, read_label_map
from segue.data.synthetic import CLASSES, COLORS, THINGS, Scenes, write

SMALL = (64, 96)


@pytest.fixture(scope="module")
def fifty() -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Image, class ids and instance ids of fifty scenes at the size they are drawn for."""
    scenes = Scenes(50)
    return [scenes.arrays(i) for i in range(50)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes") / "set"
    write(root, train=3, val=1, test=2, unlabelled=2, size=SMALL, seed=5, instances=True)
    return root


def test_a_sample_has_the_documented_types() -> None:
    sample = Scenes(3, SMALL)[2]
    assert sample["image"].dtype == torch.uint8
    assert sample["image"].shape == (3, *SMALL)
    assert sample["mask"].dtype == torch.int64
    assert sample["mask"].shape == SMALL
    assert sample["name"] == "scene_00002"
    assert set(sample) == {"image", "mask", "name"}


def test_a_scene_depends_only_on_seed_domain_and_index() -> None:
    few, many = Scenes(5, SMALL, seed=3), Scenes(500, SMALL, seed=3)
    many[17]
    for key in ("image", "mask"):
        assert torch.equal(few[4][key], many[4][key])
        assert not torch.equal(few[4][key], few[3][key])
        assert not torch.equal(few[4][key], Scenes(5, SMALL, seed=4)[4][key])


@pytest.mark.slow
def test_another_process_draws_the_same_scene() -> None:
    script = "import sys; from segue.data.synthetic import Scenes; scene = Scenes(9, (64, 96)).arrays(8); "
    script += "sys.stdout.buffer.write(b''.join(part.tobytes() for part in scene))"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    there = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=True).stdout
    assert there == b"".join(part.tobytes() for part in Scenes(9, SMALL).arrays(8))


def test_domains_share_labels_and_differ_in_look() -> None:
    day, dusk = Scenes(8, domain="a"), Scenes(8, domain="b")
    for i in range(8):
        (image_a, mask_a, things_a), (image_b, mask_b, things_b) = day.arrays(i), dusk.arrays(i)
        np.testing.assert_array_equal(mask_a, mask_b)
        np.testing.assert_array_equal(things_a, things_b)
        assert np.abs(image_a.astype(int) - image_b).mean() > 10


def test_a_scene_keeps_its_layout_at_another_size() -> None:
    for i in range(5):
        large = Scenes(5, (128, 192)).arrays(i)[1][::2, ::2]
        small = Scenes(5, SMALL).arrays(i)[1]
        assert (large == small).mean() > 0.85  # what differs is a pixel along borders


def test_all_classes_occur_in_fifty_scenes(fifty) -> None:
    images_with = [sum((mask == k).any() for _, mask, _ in fifty) for k in range(len(CLASSES))]
    assert min(images_with) >= 10, dict(zip(CLASSES, images_with, strict=True))
    ignored = np.mean([(mask == IGNORE).mean() for _, mask, _ in fifty])
    assert 0.001 < ignored < 0.05
    assert set(np.unique([mask for _, mask, _ in fifty])) == {*range(len(CLASSES)), IGNORE}


def test_every_instance_is_of_one_thing_and_every_thing_has_an_instance(fifty) -> None:
    for _, mask, things in fifty:
        np.testing.assert_array_equal(things > 0, np.isin(mask, THINGS))
        for i in np.unique(things[things > 0]):
            assert len(np.unique(mask[things == i])) == 1


def test_panoptic_masks_tile_the_mask() -> None:
    scenes = Scenes(6, SMALL, panoptic=True)
    for sample in (scenes[i] for i in range(6)):
        masks, labels = sample["masks"], sample["labels"]
        assert masks.dtype == torch.bool
        assert labels.shape == sample["is_crowd"].shape == masks.shape[:1]
        assert not sample["is_crowd"].any()
        assert torch.equal(masks.sum(0), (sample["mask"] != IGNORE).long())
        for label in labels.unique():
            assert torch.equal(masks[labels == label].any(0), sample["mask"] == label)
        stuff = [label for label in labels.tolist() if label not in THINGS]
        assert len(stuff) == len(set(stuff))


def test_colour_alone_does_not_tell_classes(fifty) -> None:
    pixels = [(image.reshape(-1, 3)[::37], mask.ravel()[::37]) for image, mask, _ in fifty]
    known, seen = (np.concatenate(parts) for parts in zip(*pixels[:25], strict=True))
    asked, truth = (np.concatenate(parts) for parts in zip(*pixels[25:], strict=True))
    # The commonest class of each of 8 x 8 x 8 colours is the best that colour alone could say of the first half.
    table = np.zeros((512, 256), int)
    np.add.at(table, ((known >> 5) @ (64, 8, 1), seen), 1)
    said = table[:, : len(CLASSES)].argmax(1)[(asked >> 5) @ (64, 8, 1)]
    iou = []
    for k in range(len(CLASSES)):
        either = ((said == k) | (truth == k)) & (truth != IGNORE)
        iou.append(((said == k) & (truth == k)).sum() / max(either.sum(), 1))
    assert np.mean(iou) < 0.2, dict(zip(CLASSES, np.round(iou, 2), strict=True))


def test_written_set_reads_back(folder) -> None:
    described = json.loads((folder / "dataset.json").read_text())
    names = [f"scene_{i:05d}" for i in range(6)]
    assert described["splits"] == {"train": names[:3], "val": names[3:4], "test": names[4:]}
    assert described["classes"] == list(CLASSES)
    assert described["things"] == list(THINGS)
    assert described["colors"] == [list(color) for color in COLORS]
    assert described["ignore"] == IGNORE
    scenes = Scenes(8, SMALL, seed=5)
    for i, name in enumerate(names):
        image, mask, things = scenes.arrays(i)
        np.testing.assert_array_equal(read_label_map(folder / "labels" / f"{name}.png"), mask)
        np.testing.assert_array_equal(np.array(Image.open(folder / "instances" / f"{name}.png")), things)
        read = np.array(Image.open(folder / "images" / f"{name}.jpg")).astype(int)
        assert np.abs(read - image).mean() < 6  # JPEG at quality 92 on noise


def test_unlabelled_images_lie_apart(folder) -> None:
    assert sorted(path.name for path in (folder / "unlabelled").iterdir()) == ["scene_00006.jpg", "scene_00007.jpg"]
    assert len(list((folder / "images").iterdir())) == len(list((folder / "labels").iterdir())) == 6


def test_folder_layout_recognises_a_written_set(folder) -> None:
    listing = Folder.read(folder)
    assert listing.classes == CLASSES
    assert {split: len(pairs) for split, pairs in listing.splits.items()} == {"train": 3, "val": 1, "test": 2}


def test_write_never_overwrites(folder) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(ValueError, match="is not empty"):
        write(folder, train=1, size=SMALL)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"length": -1}, "length -1"),
        ({"length": 1, "size": (8, 64)}, r"size \(8, 64\)"),
        ({"length": 1, "domain": "c"}, "domain 'c'"),
    ],
)
def test_bad_arguments_are_named(arguments, says) -> None:
    with pytest.raises(ValueError, match=says):
        Scenes(**arguments)


def test_negative_counts_are_named(tmp_path) -> None:
    with pytest.raises(ValueError, match="'val': -2"):
        write(tmp_path / "new", train=1, val=-2)
    assert not (tmp_path / "new").exists()


def test_indexing_ends() -> None:
    assert len(list(Scenes(3, SMALL))) == 3
    with pytest.raises(IndexError, match="scene 3 of 3"):
        Scenes(3, SMALL)[3]
