"""A model is measured on what its training held back, unless something else is asked for by name."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import options, write_set
from PIL import Image

from segue.calibration import calibrate
from segue.cli import main
from segue.data.layouts import open_listing
from segue.data.layouts.voc import CLASSES
from segue.data.listing import Listing, Pair
from segue.data.sample import palette
from segue.errors import DataError
from segue.export.delivery import is_labelled, open_check
from segue.held_out import open_to_measure, part_for
from segue.weights import load_model

Segue = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def undivided(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A set without splits, and a run on it, which held back a fifth."""
    folder = tmp_path_factory.mktemp("undivided")
    data = write_set(folder / "set", splits=False)
    words = ["train", str(data), "--out", str(folder / "run"), "--method", "supervised", "--device", "cpu"]
    assert main([*words, *options(steps=1)]) == 0
    return data, folder / "run"


@pytest.mark.slow
def test_of_a_set_without_splits_it_is_what_the_run_validated_on(undivided: tuple[Path, Path], segue: Segue) -> None:
    data, run = undivided
    validated = [image["name"] for image in json.loads((run / "evaluation.json").read_text())["images"]]
    learnt = json.loads((run / "run.json").read_text())["data"]["labelled_names"]
    assert (len(validated), set(validated) & set(learnt)) == (2, set())
    for asked in ([], ["--split", "val"], ["--data", data]):
        status, output, errors = segue("evaluate", run, "--json", *asked)
        assert status == 0, errors
        found = json.loads(output)
        assert [image["name"] for image in found["images"]] == validated
        assert found["split"] == "what it held back of train"
    status, _, errors = segue("evaluate", run, "--split", "test")
    assert (status, "has no split 'test': it has train" in errors) == (2, True)
    assert len(json.loads(segue("evaluate", run, "--split", "train", "--json")[1])["images"]) == len(learnt) + 2
    assert [open_check(str(data), load_model(str(run)), str(run), limit=9).pairs[i].name for i in (0, 1)] == validated
    assert calibrate(load_model(str(run)), open_check(str(data), load_model(str(run)), str(run), limit=9)).images == 2


def another(root: Path) -> Path:
    """A set of other images under the same names."""
    for image in sorted((root / "images").iterdir()):
        with Image.open(image) as opened:
            turned = opened.transpose(Image.Transpose.ROTATE_180)
        turned.save(image)
    return root


def test_of_another_set_it_is_val_or_all_there_is(undivided: tuple[Path, Path], dataset: Path, tmp_path: Path) -> None:
    _, run = undivided
    _, name, pairs, _ = open_to_measure(str(run), str(dataset))
    assert (name, len(pairs)) == ("val", 2)
    other = another(write_set(tmp_path / "other", splits=False))
    _, name, pairs, _ = open_to_measure(str(run), str(other))
    assert (name, len(pairs)) == ("train", 10)
    described = json.loads((dataset / "dataset.json").read_text())
    described["splits"]["sunny"] = described["splits"].pop("val")
    (dataset / "dataset.json").write_text(json.dumps(described))
    with pytest.raises(DataError, match="has no split 'val' but"):
        part_for(open_listing(str(dataset)), str(run))


def test_a_run_that_held_back_nothing_says_so(undivided: tuple[Path, Path], tmp_path: Path) -> None:
    data, run = undivided
    record = json.loads((run / "run.json").read_text())
    record["data"]["validation_names"] = []
    (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match=r"held back no image of .*; name a split that it did not learn from"):
        open_to_measure(str(tmp_path), str(data))


def test_images_of_large_sets_are_found_in_no_time(tmp_path: Path) -> None:
    names = [f"{i:05d}" for i in range(30_000)]
    at = {"data": str(tmp_path), "layout": "folder", "map": "", "split": "train"}
    record = {"identity": {"config": {}}, "data": {"validation_at": at, "validation_names": names}}
    (tmp_path / "run.json").write_text(json.dumps(record))
    pairs = tuple(Pair(name, tmp_path / f"{name}.png") for name in names)
    began = time.process_time()
    assert part_for(Listing(tmp_path, "folder", (), (), {"train": pairs}, {}), str(tmp_path)) == ("train", pairs)
    assert time.process_time() - began < 3  # each with each takes several times that


@pytest.mark.slow
def test_the_set_is_known_again_from_elsewhere_and_for_every_model_of_the_run(
    undivided: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, _ = undivided
    here, work = tmp_path / "here", tmp_path / "work"
    here.mkdir()
    shutil.copytree(data.parent, work)
    monkeypatch.chdir(work)
    words = ["train", "set:train", "--out", "again", "--method", "pixel_contrast", "--compare", "--device", "cpu"]
    assert main([*words, *options(steps=2)]) == 0
    held = "what it held back of train"
    monkeypatch.chdir(here)
    for model in ("again", "again/model", "again/baseline", "again/baseline/model"):
        for address in ("", "../work/set"):
            assert open_to_measure(f"../work/{model}", address).part == held, (model, address)
    monkeypatch.chdir(work / "again")
    assert open_to_measure("model", "../set").part == held
    monkeypatch.chdir(here)
    shutil.move(work, tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    assert open_to_measure("again").part == held  # as it was named, from where both lie now
    monkeypatch.chdir(here)
    shutil.move(tmp_path / "moved" / "set", tmp_path / "copy")  # apart from the run: known by its images
    found = open_to_measure("../moved/again", "../copy")
    assert (found.part, len(found.pairs)) == (held, 2)
    assert open_to_measure("../moved/again", str(another(tmp_path / "copy"))).part == "train"


def test_a_split_may_be_named_with_the_folder(undivided: tuple[Path, Path], dataset: Path, segue: Segue) -> None:
    _, run = undivided
    found = json.loads(segue("evaluate", run, "--data", f"{dataset}:test", "--json")[1])
    assert found["split"] == "test"
    status, _, errors = segue("evaluate", run, "--data", f"{dataset}:test", "--split", "val")
    assert (status, "names the split 'test', and 'val' was asked for" in errors) == (2, True)


@pytest.mark.slow
def test_stored_values_are_mapped_afterwards_as_they_were_in_training(
    undivided: tuple[Path, Path], tmp_path: Path, segue: Segue
) -> None:
    data, run = tmp_path / "set", tmp_path / "run"
    shutil.copytree(undivided[0], data)
    for mask in sorted((data / "labels").iterdir()):
        with Image.open(mask) as image:
            ids = np.array(image)
        ids[:2] = 77
        Image.fromarray(ids).save(mask)
    status, _, errors = segue("train", data, "--out", run, "--method", "supervised", "--device", "cpu",
                              *options(steps=1), "--map", "77:ignore")  # fmt: skip
    assert status == 0, errors
    assert segue("evaluate", run, "--data", data)[0] == 0
    status, _, errors = segue("predict", run, data / "images", "--out", tmp_path / "out", "--calibrate", data)
    assert status == 0, errors
    other = tmp_path / "other"
    shutil.copytree(data, other)
    another(other)
    words = ("predict", run, data / "images", "--calibrate", other)
    status, _, errors = segue(*words, "--out", tmp_path / "bad")
    assert (status, "77" in errors) == (2, True)
    assert segue(*words, "--out", tmp_path / "good", "--map", "77:ignore")[0] == 0


@pytest.mark.slow
def test_a_converted_copy_is_not_mapped_twice(undivided: tuple[Path, Path], tmp_path: Path, segue: Segue) -> None:
    """Its images are those that the run held back, and its masks hold the class ids already."""
    data, run = tmp_path / "set", tmp_path / "run"
    shutil.copytree(undivided[0], data)
    for path in (data / "labels").iterdir():
        with Image.open(path) as mask:
            Image.fromarray(np.array(mask) + np.uint8(1)).save(path)
    mapped = ("--map", "1-3:0")
    words = ("train", data, "--out", run, "--method", "supervised", "--device", "cpu", *options(steps=1), *mapped)
    assert segue(*words)[0] == 0
    assert segue("data", "convert", data, tmp_path / "converted", *mapped)[0] == 0
    shutil.copytree(data, tmp_path / "copy")
    scores = [
        json.loads(segue("evaluate", run, "--json", *asked)[1])
        for asked in ([], ["--data", tmp_path / "converted"], ["--data", tmp_path / "copy"])
    ]
    assert scores[0]["scores"] == scores[1]["scores"] == scores[2]["scores"]
    assert len(scores[1]["images"]) == 2


def test_a_set_in_any_layout_is_verified_with_its_masks(undivided: tuple[Path, Path], tmp_path: Path) -> None:
    data, run = undivided
    voc = tmp_path / "voc"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (voc / folder).mkdir(parents=True)
    pairs = open_listing(str(data)).split("train")
    for pair in pairs:
        with Image.open(pair.image) as image:
            image.save(voc / "JPEGImages" / f"{pair.name}.jpg")
        shutil.copy(str(pair.mask), voc / "SegmentationClass" / f"{pair.name}.png")
    for split in ("train", "val"):
        part = pairs[:7] if split == "train" else pairs[7:]
        (voc / f"ImageSets/Segmentation/{split}.txt").write_text("".join(f"{pair.name}\n" for pair in part))
    model = load_model(str(run))
    model.spec = replace(model.spec, classes=CLASSES, colors=palette(len(CLASSES)))
    assert is_labelled(str(voc))
    found = open_check(str(voc), model, str(run), limit=9)
    assert [pair.name for pair in found.pairs] == [pair.name for pair in pairs[7:]]
    assert all(pair.mask is not None for pair in found.pairs)
    for pair in pairs[7:-1]:  # a picture without a mask verifies less than one with
        (voc / "SegmentationClass" / f"{pair.name}.png").unlink()
    assert [pair.name for pair in open_check(str(voc), model, str(run), limit=1).pairs] == [pairs[-1].name]
    plain = tmp_path / "plain"
    shutil.copytree(voc / "JPEGImages", plain)
    assert not is_labelled(str(plain))
    assert len(open_check(str(plain), model, str(run), limit=9).pairs) == 9
