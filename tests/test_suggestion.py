"""What to label next: the choice by hand, its reasons, and the files for whoever labels."""

import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from conftest import CLASSES, COLORS, draw, options, write_set
from PIL import Image

from segue.config import Data
from segue.data.layouts import open_images, open_listing
from segue.data.training import open_training
from segue.models.encoder import Encoder, EncoderSpec
from segue.models.segmenter import Segmenter, SegmenterSpec
from segue.suggestion import (
    Chosen,
    Suggestion,
    balanced,
    class_uncertainty,
    coverage,
    farthest_first,
    nearest,
    write_suggestion,
)
from segue.weights import save_model

Cli = Callable[..., tuple[int, str, str]]
ANGLES = np.array([0.0, 10, 20, 90, 180, 205])
POINTS = np.stack([np.cos(np.radians(ANGLES)), np.sin(np.radians(ANGLES))], 1)


def chord(degrees: float) -> float:
    return float(2 * np.sin(np.radians(degrees) / 2))


def test_k_center_by_hand() -> None:
    # The mean points at about 47 degrees, so 20 is the most typical; then 205, 175 from it, then 90, then 180.
    found = farthest_first(POINTS, 4)
    assert [place for place, _ in found] == [2, 5, 3, 4]
    assert [d for _, d in found[1:]] == pytest.approx([chord(175), chord(70), chord(25)])


def test_what_is_labelled_is_covered_already() -> None:
    found = farthest_first(POINTS, 2, labelled=[4, 0])
    assert [place for place, _ in found] == [3, 5]
    assert [d for _, d in found] == pytest.approx([chord(90), chord(25)])


def test_k_center_is_within_twice_the_best_radius() -> None:
    import itertools

    points = np.random.default_rng(0).normal(size=(11, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    best = min(coverage(points, chosen)[0] for chosen in itertools.combinations(range(11), 3))
    assert best <= coverage(points, [place for place, _ in farthest_first(points, 3)])[0] <= 2 * best


def test_doubt_and_distance_are_multiplied_by_hand() -> None:
    weights = np.array([0.1, 0.5, 0.45, 0.2, 0.1, 0.05])
    found = [place for place, _ in farthest_first(POINTS, 3, weights=weights)]
    # 1 is the most doubtful. Then u d: 2 is near it, 0.45 * 0.17 = 0.08; 3 gives 0.2 * 1.29 = 0.26; 4 0.1 * 1.99 = 0.2.
    # Last: 4 is 90 degrees from 3, 0.1 * 1.41 = 0.14, above 2.
    assert found == [1, 3, 4]


def test_each_class_counts_alike_by_hand() -> None:
    # Class 0 is common, class 1 rare, class 2 never predicted. Half of all doubt about each known class is 1/4.
    sums = np.array([[50.0, 0, 0], [40, 0, 0], [10, 2, 0]])
    np.testing.assert_allclose(balanced(sums), [[0.25, 0, 0], [0.2, 0, 0], [0.05, 0.5, 0]])
    assert balanced(sums).sum() == pytest.approx(1)
    assert (balanced(np.zeros((2, 3))) == 0).all()


def test_coverage_by_hand() -> None:
    far, mean = coverage(POINTS, [0, 4])
    assert far == pytest.approx(chord(90))
    assert mean == pytest.approx((chord(10) + chord(20) + chord(90) + chord(25)) / 6)
    covered, owner = nearest(POINTS, [0])
    assert covered.tolist() == pytest.approx([chord(a) for a in (0, 10, 20, 90, 180, 155)], abs=1e-6)
    assert owner.tolist() == [0] * 6
    assert coverage(POINTS, [4], covered) == pytest.approx((far, mean))  # what was covered before counts as well
    assert nearest(POINTS, [4, 5], covered)[1].tolist() == [-1, -1, -1, -1, 0, 1]


def test_a_contact_sheet_of_many_images_is_a_jpeg(dataset: Path, tmp_path: Path) -> None:
    image = str(dataset / "images" / "train_000.png")
    chosen = tuple(Chosen(f"{i}", image, "first; stands for 1", None, 1, None) for i in range(1161))
    write_suggestion(Suggestion(chosen, {}, 0, len(chosen)), tmp_path / "out")
    with Image.open(tmp_path / "out" / "contact.jpg") as sheet:
        assert sheet.size == (5 * 248 + 8, 100 * 282 + 8)
    with zipfile.ZipFile(tmp_path / "out" / "images.zip") as archive:
        assert sum(name.startswith("images/") and name.endswith(".png") for name in archive.namelist()) == len(chosen)


def test_uncertainty_is_summed_over_the_pixels_taken_for_a_class(dataset: Path) -> None:
    torch.manual_seed(0)
    model = Segmenter(SegmenterSpec("test_efficientnet", CLASSES, COLORS, decoder_channels=16)).eval()
    pairs = open_images(str(dataset))[:2]
    found = class_uncertainty(model, pairs, lambda: None)
    for i, pair in enumerate(pairs):
        with Image.open(pair.image) as image:
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        with torch.inference_mode():
            p = model(pixels)[0].softmax(0)
        entropy = -(p * p.log()).sum(0) / np.log(3)
        expected = [float(entropy[p.argmax(0) == k].sum()) for k in range(3)]
        np.testing.assert_allclose(found[i], expected, rtol=1e-3, atol=1e-2)


@pytest.fixture
def encoder_run(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_model(Encoder(EncoderSpec("test_efficientnet")), tmp_path / "encoder" / "model", method="x", metrics={})
    return tmp_path / "encoder"


def test_a_pretrained_encoder_suggests_what_covers_the_set(
    segue: Cli, dataset: Path, encoder_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "next"
    status, output, said = segue("suggest", dataset, "--model", encoder_run, "--n", 4, "--out", out)
    assert status == 0, said
    assert (
        f"using 6 images of {dataset}, none of their masks; left out of 10 found: 4 of the splits val and test"
        in output
    )
    assert "the most typical image" in output
    assert "as many drawn at random" in output
    told = json.loads((out / "suggestion.json").read_text())
    assert told["coverage"]["farthest"] < told["coverage"]["random_farthest"]
    assert sum(one["stands_for"] for one in told["chosen"]) == 6
    assert [one["distance"] is None for one in told["chosen"]] == [True, False, False, False]  # there is none before
    names = (out / "chosen.txt").read_text().split()
    assert names == [one["name"] for one in told["chosen"]]
    assert len(set(names)) == 4
    assert (out / "suggestion.csv").read_text().splitlines()[0].startswith("name,image,reason,distance")
    with Image.open(out / "contact.jpg") as sheet:
        assert sheet.width > 4 * 240
    assert segue("suggest", dataset, "--model", encoder_run, "--n", 4, "--out", out)[0] == 2  # not empty any more


def test_a_list_is_shown_from_any_folder(
    segue: Cli, dataset: Path, encoder_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from segue.serve.suggested import Suggested

    monkeypatch.chdir(dataset.parent)
    status, _, said = segue("suggest", dataset.name, "--model", encoder_run, "--n", 2, "--out", tmp_path / "next")
    assert status == 0, said
    monkeypatch.chdir(tmp_path / "next")
    found = Suggested.read(tmp_path / "next")
    assert found.missing() == ""
    with Image.open(io.BytesIO(found.picture(1, 320, ()))) as picture:
        assert picture.size == (48, 48)


def test_python_suggests_what_the_command_does(segue: Cli, dataset: Path, encoder_run: Path, tmp_path: Path) -> None:
    import segue as package

    assert segue("suggest", dataset, "--model", encoder_run, "--n", 4, "--out", tmp_path / "next")[0] == 0
    found = package.suggest(str(dataset), encoder_run, n=4)
    assert [one.name for one in found.chosen] == (tmp_path / "next" / "chosen.txt").read_text().split()


def test_the_zip_opens_in_labelling_tools(segue: Cli, dataset: Path, encoder_run: Path, tmp_path: Path) -> None:
    out, unpacked = tmp_path / "next", tmp_path / "unpacked"
    assert segue("suggest", dataset, "--model", encoder_run, "--n", 3, "--out", out)[0] == 0
    names = (out / "chosen.txt").read_text().split()
    with zipfile.ZipFile(out / "images.zip") as archive:
        archive.extractall(unpacked)
    for name in names:
        assert (unpacked / "images" / f"{name}.png").read_bytes() == (dataset / "images" / f"{name}.png").read_bytes()
        task = json.loads((unpacked / "images" / f"{name}.json").read_text())
        assert task["imagePath"] == f"{name}.png"
        assert (task["imageWidth"], task["imageHeight"], task["shapes"]) == (48, 48, [])
        square = {"label": "disc", "points": [[4, 4], [30, 4], [30, 30], [4, 30]], "shape_type": "polygon"}
        (unpacked / "images" / f"{name}.json").write_text(json.dumps({**task, "shapes": [square]}))
    assert open_listing(str(unpacked)).layout == "labelme"  # labelled there, it is a set to train on
    # Its masks go into the set that the images came from, and its list names them.
    assert segue("data", "convert", unpacked, tmp_path / "converted")[0] == 0
    assert all((tmp_path / "converted" / "labels" / f"{name}.png").is_file() for name in names)
    data = open_training(Data(data=str(unpacked), labels=str(out / "chosen.txt"), val="none"), seed=0)
    assert sorted(pair.name for pair in data.labelled) == sorted(names)
    assert sum(pair.mask is not None for pair in open_listing(str(unpacked)).split("train")) == 3
    root = ElementTree.parse(unpacked / "cvat" / "annotations.xml").getroot()
    assert [image.get("name") for image in root.iter("image")] == [f"{name}.png" for name in names]


@pytest.mark.slow
def test_a_trained_model_suggests_by_doubt_and_leaves_out_what_it_learnt_from(
    segue: Cli, dataset: Path, tmp_path: Path
) -> None:
    run, out = tmp_path / "run", tmp_path / "next"
    fields = options(labels=3, val="none", steps=2)
    assert segue("train", dataset, "--out", run, "--method", "supervised", *fields)[0] == 0
    learnt = json.loads((run / "run.json").read_text())["data"]["labelled_names"]
    status, output, said = segue("suggest", dataset, "--model", run, "--n", 3, "--out", out, "--json")
    assert status == 0, said
    told = json.loads(output)
    assert (told["labelled"], told["learnt_from"]) == (3, str(dataset))
    assert not {one["name"] for one in told["chosen"]} & set(learnt)
    assert len({one["name"] for one in told["chosen"]}) == 3
    assert "of all doubt about" in told["chosen"][0]["reason"]
    assert told["chosen"][0]["uncertainty"] > 0
    with zipfile.ZipFile(out / "images.zip") as archive:
        assert archive.read("labels.txt").decode().split() == ["__ignore__", *CLASSES]
        root = ElementTree.fromstring(archive.read("cvat/annotations.xml"))
    assert [label.text for label in root.iterfind(".//label/name")] == list(CLASSES)
    # The list is what training takes.
    again = options(labels=out / "chosen.txt", val="none", steps=1)
    assert all(one["name"].startswith("train") for one in told["chosen"])
    status, _, said = segue("train", dataset, "--out", tmp_path / "again", "--method", "supervised", *again)
    assert status == 0, said
    assert "using 3 labelled" in said


@pytest.mark.slow
def test_images_held_out_of_the_labelled_ones_are_not_suggested_either(segue: Cli, tmp_path: Path) -> None:
    root, run = write_set(tmp_path / "set", splits=False), tmp_path / "run"
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"train_{i:03d}" for i in range(5)))
    for i in range(5, 10):  # these are not labelled
        next((root / "labels").glob(f"*_{i:03d}.png")).unlink()
    fields = options(allow_missing="true", steps=1)
    assert segue("train", root, "--out", run, "--method", "supervised", *fields)[0] == 0
    status, output, said = segue("suggest", root, "--model", run, "--n", 5, "--out", tmp_path / "next", "--json")
    assert status == 0, said
    told = json.loads(output)
    assert (told["labelled"], {one["name"] for one in told["chosen"]} & set(names.read_text().split())) == (5, set())


@pytest.mark.slow
def test_images_of_a_published_layout_count_as_labelled_and_the_list_is_taken(segue: Cli, tmp_path: Path) -> None:
    root, run, out = tmp_path / "set", tmp_path / "run", tmp_path / "next"
    for split, numbers in (("train", range(5)), ("val", range(5, 7))):
        for i in numbers:
            for folder, picture in zip((split, f"{split}annot"), draw(i), strict=True):
                (root / folder).mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(root / folder / f"{i}.png")
    fields = options(steps=1)
    assert segue("train", root, "--out", run, "--method", "supervised", "--labels=2", *fields)[0] == 0
    learnt = json.loads((run / "run.json").read_text())["data"]
    assert learnt["layout"] == "camvid"
    status, output, said = segue("suggest", root, "--model", run, "--n", 3, "--out", out, "--json")
    assert status == 0, said
    told = json.loads(output)
    assert told["labelled"] == 2
    assert {one["name"] for one in told["chosen"]} == {*"01234"} - set(learnt["labelled_names"])
    more = ("--labels", out / "chosen.txt", "--val=none", *fields)
    assert "using 3 labelled" in segue("train", root, "--out", tmp_path / "again", "--method", "supervised", *more)[2]


@pytest.mark.parametrize("n", [0, 7, -3])
def test_a_count_that_is_not_there_is_refused(
    segue: Cli, dataset: Path, encoder_run: Path, tmp_path: Path, n: int
) -> None:
    status, _, said = segue("suggest", dataset, "--model", encoder_run, f"--n={n}", "--out", tmp_path / "next")
    assert status == 2
    assert f"--n {n}: {dataset} holds 6 images without labels; give 1 to 6" in said
    assert not (tmp_path / "next").exists()


def test_a_set_that_is_labelled_already_is_said_to_be(segue: Cli, dataset: Path, tmp_path: Path) -> None:
    fields = options(val="none", steps=1)
    assert segue("train", dataset, "--out", tmp_path / "run", "--method", "supervised", *fields)[0] == 0
    status, _, said = segue("suggest", dataset, "--model", tmp_path / "run", "--n", 1, "--out", tmp_path / "next")
    assert (status, "learnt from all of its 6 images" in said) == (2, True)


@pytest.mark.slow
def test_bad_input_is_named_and_nothing_is_written(
    segue: Cli, dataset: Path, encoder_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "next"
    alike, broken, empty = tmp_path / "alike", tmp_path / "broken", tmp_path / "empty"
    for folder in (alike, broken, empty):
        folder.mkdir()
    first = sorted((dataset / "images").iterdir())[0]
    for i in range(3):
        shutil.copy(first, alike / f"{i}.png")
        shutil.copy(sorted((dataset / "images").iterdir())[i], broken / f"{i}.png")
    (broken / "1.png").write_bytes(b"no picture")
    for images, model, text in (
        (alike, encoder_run, "all images look alike"),
        (broken, encoder_run, str(broken / "1.png")),
        (empty, encoder_run, f"{empty} holds no image"),
        (tmp_path / "nowhere", encoder_run, "does not exist"),
        (dataset, empty, f"{empty} holds no model"),
    ):
        status, _, said = segue("suggest", images, "--model", model, "--n", 1, "--out", out)
        assert status == 2
        assert text in said
        assert said.count("\n") == 1
        assert not out.exists()
    status, output, _ = segue("suggest", broken, "--model", encoder_run, "--n", 1, "--out", out, "--skip_bad")
    assert status == 0
    assert "1 unreadable" in output


def test_old_files_and_names_in_other_encodings_come_into_the_zip(
    segue: Cli, encoder_run: Path, tmp_path: Path
) -> None:
    folder, out = tmp_path / "old", tmp_path / "next"
    folder.mkdir()
    for i, name in enumerate((b"a.png", b"caf\xe9.png")):
        path = folder / os.fsdecode(name)
        Image.fromarray(draw(i, 32)[0]).save(path)
        os.utime(path, (0, 0))  # 1970; a zip begins in 1980
    status, _, said = segue("suggest", folder, "--model", encoder_run, "--n", 2, "--out", out)
    assert status == 0, said
    with zipfile.ZipFile(out / "images.zip") as archive:
        assert archive.testzip() is None
        assert sum(name.endswith(".png") for name in archive.namelist()) == 2


def test_images_of_sixteen_bits_are_suggested_too(segue: Cli, encoder_run: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    (tmp_path / "deep").mkdir()
    for i in range(4):
        pixels = (generator.random((32, 32)) * 60000).astype(np.uint16)
        Image.fromarray(pixels).save(tmp_path / "deep" / f"{i}.png")
    out = tmp_path / "next"
    status, _, said = segue("suggest", tmp_path / "deep", "--model", encoder_run, "--n", 2, "--out", out)
    assert status == 0, said
    with Image.open(out / "contact.jpg") as sheet:
        grey = np.asarray(sheet.convert("L"))[8 + 104 : 8 + 136, 8 + 104 : 8 + 136]  # the first picture, in its cell
    assert grey.std() > 20  # neither black nor clipped


def test_masks_are_left_alone(segue: Cli, dataset: Path, encoder_run: Path, tmp_path: Path) -> None:
    (dataset / "labels" / "train_000.png").write_bytes(b"not looked at")
    assert len(open_listing(str(dataset)).classes) == 3
    assert segue("suggest", dataset, "--model", encoder_run, "--n", 2, "--out", tmp_path / "next")[0] == 0
