"""Whose a run folder is: what must be the same for a run to go on in it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
from conftest import CLASSES, COLORS, options, write_model, write_set
from PIL import Image
from safetensors.torch import save_file

Segue = Callable[..., tuple[int, str, str]]
CPU = ("--device", "cpu", "--precision", "fp32")


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """A set with coloured masks, a class list and lists of its splits."""
    root = write_set(tmp_path / "listed")
    described = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").unlink()
    for path in (root / "labels").iterdir():
        with Image.open(path) as image:
            Image.fromarray(np.array(COLORS, np.uint8)[np.array(image)]).save(path)
    write_classes(root, COLORS)
    (root / "splits").mkdir()
    for split, names in described["splits"].items():
        (root / "splits" / f"{split}.txt").write_text("\n".join(names))
    return root


def write_classes(root: Path, colors: tuple[tuple[int, ...], ...]) -> None:
    rows = zip(CLASSES, colors, strict=True)
    (root / "classes.txt").write_text("\n".join(f"{name} {' '.join(map(str, color))}" for name, color in rows))


@pytest.mark.slow
def test_a_run_goes_on_only_where_labels_mean_and_teach_what_they_did(
    segue: Segue, listed: Path, tmp_path: Path
) -> None:
    words = ("train", listed, "--out", tmp_path / "run", "--method", "supervised", *CPU, *options(steps=1))
    status, _, errors = segue(*words)
    assert status == 0, errors
    assert segue(*words)[0] == 0

    write_classes(listed, (COLORS[0], COLORS[2], COLORS[1]))
    status, _, errors = segue(*words)
    assert (status, f"which class a label of {listed} stands for has changed" in errors) == (2, True)
    write_classes(listed, COLORS)

    lists = [listed / "splits" / f"{split}.txt" for split in ("train", "val")]
    train, val = ([path.read_text().splitlines(), path] for path in lists)
    lists[0].write_text("\n".join(train[0][:-1]))
    lists[1].write_text("\n".join([train[0][-1], *val[0]]))  # the same images and masks in the same order
    status, _, errors = segue(*words)
    assert (status, "trained on and which are validated on has changed" in errors) == (2, True)
    for names, path in (train, val):
        path.write_text("\n".join(names))
    assert segue(*words)[0] == 0

    record = tmp_path / "run" / "run.json"
    known = json.loads(record.read_text())
    del known["data"]["meaning"], known["data"]["validation_names"]
    record.write_text(json.dumps(known))  # as earlier versions wrote it
    assert segue(*words)[0] == 0


@pytest.mark.slow
def test_an_adaptation_goes_on_only_with_the_same_class_map(segue: Segue, dataset: Path, tmp_path: Path) -> None:
    other, maps = tmp_path / "other", tmp_path / "maps.yaml"
    shutil.copytree(dataset, other)
    for path in (other / "images").iterdir():
        with Image.open(path) as image:
            Image.fromarray(255 - np.array(image)).save(path)
    maps.write_text("".join(f"{name}: {name}\n" for name in CLASSES))
    words = ("adapt", "--source", dataset, "--target", f"{other}:train", "--out", tmp_path / "run", *CPU,
             *options(passes=1, map=maps, steps=1, looks=1))  # fmt: skip
    status, _, errors = segue(*words)
    assert status == 0, errors
    maps.write_text("".join(f"{a}: {b}\n" for a, b in zip(CLASSES, (CLASSES[0], *CLASSES[:0:-1]), strict=True)))
    status, _, errors = segue(*words)
    assert (status, "stands for has changed" in errors) == (2, True)
    maps.write_text("# the same\n" + "".join(f"{name}: {name}\n" for name in CLASSES))
    assert segue(*words)[0] == 0


@pytest.mark.slow
def test_what_a_kill_left_of_a_file_is_no_other_content(segue: Segue, dataset: Path, tmp_path: Path) -> None:
    """Between a file's opening and its renaming there is its content under another name."""
    folders = {name: tmp_path / name for name in ("train", "seeds", "predict", "mine")}
    fields = ("--method", "supervised", *CPU, *options(steps=1))
    words = {
        "train": ("train", dataset, *fields),
        "seeds": ("train", dataset, "--seeds", 2, *fields),
        "predict": ("predict", write_model(tmp_path / "model"), dataset / "images"),
        "mine": ("train", dataset, *fields),
    }
    for name, left in (("train", "run.json"), ("seeds", "seeds.json"), ("predict", "predict.json")):
        folders[name].mkdir()
        (folders[name] / f".{left}.4711.partial").write_text("{")
    folders["mine"].mkdir()
    (folders["mine"] / ".thesis.partial").write_text("years")
    found = {name: segue(*words[name], "--out", folder) for name, folder in folders.items()}
    assert {name: status for name, (status, _, _) in found.items()} == {"train": 0, "seeds": 0, "predict": 0, "mine": 2}


@pytest.mark.slow
def test_a_run_goes_on_only_from_the_weights_that_it_began_with(
    segue: Segue, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = timm.create_model("test_resnet").state_dict()
    mirror = tmp_path / "mirror" / "weights"
    mirror.mkdir(parents=True)
    save_file(state, mirror / "test_resnet_in1k.safetensors")
    words = ("train", dataset, "--method", "supervised", *CPU, *options(steps=1, encoder="test_resnet", init="auto"))
    monkeypatch.setenv("SEGUE_MIRROR", str(mirror.parent))
    status, _, errors = segue(*words, "--out", tmp_path / "run")
    assert status == 0, errors
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["start"] == f"ImageNet weights {mirror / 'test_resnet_in1k.safetensors'}"
    assert "test_resnet_in1k.safetensors" in (tmp_path / "run" / "report.html").read_text()

    monkeypatch.delenv("SEGUE_MIRROR")
    status, _, errors = segue(*words, "--out", tmp_path / "run")
    assert (status, "now it would from random weights" in errors) == (2, True)
    status, _, errors = segue(*words, "--out", tmp_path / "other")
    assert (status, "warning: network: test_resnet" in errors) == (0, True)
    moved = mirror.parent.rename(tmp_path / "elsewhere")
    monkeypatch.setenv("SEGUE_MIRROR", str(moved))
    assert segue(*words, "--out", tmp_path / "run")[0] == 0  # the same weights in another place

    file = tmp_path / "own.safetensors"
    words = (*words[:-1], f"--init={file}") if str(words[-1]).startswith("--init") else (*words, f"--init={file}")
    save_file(state, file)
    assert segue(*words, "--out", tmp_path / "third")[0] == 0
    save_file({name: tensor + 1 for name, tensor in state.items()}, file)
    status, _, errors = segue(*words, "--out", tmp_path / "third")
    assert (status, "sha256" in errors) == (2, True)
