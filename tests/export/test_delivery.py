"""``segue export`` from a model folder to the files, and from the files to class maps."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, COLORS, draw, turned, write_model, write_set
from PIL import Image
from torch import nn

from segue import predict
from segue.export.graph import onnx_classifier, onnx_metadata
from segue.models.compact import LR_ASPP, CompactSegmenter, CompactSpec
from segue.prediction.pictures import predict_image
from segue.weights import save_model

pytest.importorskip("onnxruntime", reason="the extra export is not installed")
pytest.importorskip("openvino", reason="the extra openvino is not installed")
Segue = Callable[..., tuple[int, str, str]]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_model(tmp_path / "run" / "model").parent


@pytest.mark.slow
def test_from_a_run_to_class_maps_without_segue(segue: Segue, source: Path, dataset: Path, tmp_path: Path) -> None:
    status, output, errors = segue(
        "export", source, "--onnx", "--int8", "--openvino", "--verify", dataset, "--max-drop", 100, "--json"
    )
    assert status == 0, errors
    out = source / "export"
    found = json.loads(output)["files"]
    assert set(found) == {"model.onnx", "model.int8.onnx", "model.openvino.xml"}
    assert found["model.onnx"]["agreement"] >= 0.999
    assert found["model.onnx"]["labelled"] == 2  # the validation split
    names = {path.name for path in out.iterdir()}
    assert names == {*found, "model.openvino.bin", "infer.py", "parity.json"}
    described = onnx_metadata(out / "model.onnx")
    assert json.loads(described["classes"]) == list(CLASSES)
    assert json.loads(described["colors"]) == [list(color) for color in COLORS]
    assert len(described["fingerprint"]) == 64
    assert (out / "model.int8.onnx").stat().st_size < 0.6 * (out / "model.onnx").stat().st_size

    (out / "infer.py").write_text((out / "infer.py").read_text().replace("model.int8.onnx", "model.onnx"))
    new = turned(draw(3)[0][:41, :33], tmp_path / "new.png")
    watched = (
        "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0]);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'segue', 'onnx')))"
    )
    subprocess.run([sys.executable, "-c", watched, out / "infer.py", new], check=True, cwd=tmp_path)
    expected = segue_says(source, new)
    with Image.open(tmp_path / "new.classes.png") as image:
        assert (np.asarray(image) == expected).mean() > 0.999
        assert image.getpalette()[:9] == [value for color in COLORS for value in color]  # type: ignore[index]
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copy(new, tmp_path / folder / "x.png")
    subprocess.run([sys.executable, out / "infer.py", "a/x.png", "./b/x.png"], check=True, cwd=tmp_path)
    assert all((tmp_path / f"{folder}_x.png.classes.png").is_file() for folder in ("a", "b"))


def segue_says(model: Path, picture: Path) -> np.ndarray:
    """The class map that ``segue predict`` gives."""
    (found,) = predict(model, [picture])
    return found.classes


@pytest.mark.slow
def test_a_model_of_deep_pictures_is_verified_and_used_on_deep_pictures(segue: Segue, tmp_path: Path) -> None:
    source = write_model(tmp_path / "deep", tones=(("I;16", 500.0, 3000.0),))
    (tmp_path / "photos").mkdir()
    gray = draw(3)[0][:41, :33].mean(2)
    deep = tmp_path / "photos" / "deep.png"
    Image.fromarray((600 + 9 * gray).astype(np.uint16)).save(deep)
    status, _, errors = segue("export", source, "--verify", tmp_path / "photos", "--out", tmp_path / "out")
    assert status == 0, errors
    subprocess.run([sys.executable, tmp_path / "out" / "infer.py", deep], check=True, cwd=tmp_path)
    with Image.open(tmp_path / f"{deep.stem}.classes.png") as image:
        assert (np.asarray(image) == segue_says(source, deep)).mean() > 0.99
    Image.fromarray(gray.astype(np.float32)).save(tmp_path / "float.tiff")
    ended = subprocess.run(
        [sys.executable, tmp_path / "out" / "infer.py", tmp_path / "float.tiff"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.strip().endswith("which the model did not learn from or this script does not read")


# Together they hold every operation of the search; the third is the decoder that searched ones are compared with.
GENOTYPES = {
    "local": "[[0,[0,0,1,2],[0,2,3,4],[0,5,5,9]],[[0,3],[1,2],[4,5]]]",
    "wide": "[[6,[1,0,7,8],[0,1,10,6],[2,0,4,3]],[[3,2],[4,1],[0,5]]]",
    "baseline": LR_ASPP,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", GENOTYPES)
def test_searched_decoders_are_exported(segue: Segue, dataset: Path, tmp_path: Path, name: str) -> None:
    torch.manual_seed(1)
    model = CompactSegmenter(CompactSpec("test_efficientnet", CLASSES, COLORS, GENOTYPES[name], channels=16)).eval()
    last = [module for module in model.modules() if isinstance(module, nn.Conv2d)][-1]
    torch.nn.init.normal_(last.weight, std=3.0)  # classes far apart, as of a trained head
    save_model(model, tmp_path / "model", method="compact_search", metrics={})
    small = ("--int8", "--max-drop", 100) if name == "local" else ()
    options = (*small, "--out", tmp_path / "out", "--json")
    status, output, errors = segue("export", tmp_path / "model", "--verify", dataset, *options)
    assert status == 0, errors
    found = json.loads(output)["files"]
    assert found["model.onnx"]["agreement"] >= 0.999
    assert all(entry["kept"] for entry in found.values())
    run, picture = onnx_classifier(tmp_path / "out" / "model.onnx", threads=1), draw(5)[0][:41, :33]
    expected = predict_image(model, torch.from_numpy(picture).permute(2, 0, 1))[0].numpy()
    assert len(np.unique(expected)) > 1
    assert (run(picture[None])[0] == expected).mean() > 0.999


@pytest.mark.slow
def test_eight_bits_that_cost_too_much_exit_4_and_leave_only_the_good_file(
    segue: Segue, source: Path, dataset: Path
) -> None:
    (source / "export" / ".partial-dead" / "kept").mkdir(parents=True)  # of an export that was killed
    options = ("export", source, "--int8", "--verify", dataset, "--max-drop", -100)  # nothing can gain 100 points
    status, _, errors = segue(*options)
    assert status == 4
    assert "model.int8.onnx is not the model that was evaluated and was deleted: mIoU falls by" in errors
    assert {path.name for path in (source / "export").iterdir()} == {"model.onnx", "infer.py", "parity.json"}
    assert not json.loads((source / "export" / "parity.json").read_text())["model.int8.onnx"]["kept"]


@pytest.mark.slow
def test_what_cannot_be_exported_is_said_in_a_line_and_writes_nothing(
    segue: Segue, source: Path, dataset: Path, tmp_path: Path
) -> None:
    deep = write_model(tmp_path / "deep", value_range=65535.0)
    other = write_set(tmp_path / "other")
    described = json.loads((other / "dataset.json").read_text())
    (other / "dataset.json").write_text(json.dumps({**described, "classes": ["x", "y", "z"]}))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    for arguments, message in (
        ((source,), "--verify"),
        ((source, "--verify", tmp_path / "gone"), "gone"),
        ((source, "--verify", f"{dataset}:vall"), "did you mean 'val'?"),
        ((source, "--verify", other), "has the classes x, y, z; the model knows ground"),
        ((source, "--verify", dataset, "--images", 0), "--images 0"),
        ((source, "--verify", dataset, "--out", tmp_path / "mine"), "holds something else"),
        ((deep, "--verify", dataset), "only 8-bit pictures"),
        ((tmp_path, "--verify", dataset), "holds no model"),
        ((source, "--verify", dataset, "--onxx"), "--onnx"),
    ):
        status, _, errors = segue("export", *arguments)
        assert (status, errors.count("\n")) == (2, 1), errors
        assert message in errors
    assert not (source / "export").exists()
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
