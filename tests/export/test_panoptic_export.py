"""A panoptic model as a file: the picture goes in, its segments come out, and the gate stops what differs."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import turned
from panoptic_sets import SHAPES, draw, untrained_panoptic, write_objects
from PIL import Image

pytest.importorskip("onnxruntime", reason="the extra export is not installed")
import segue.export.panoptic as gate
from segue.data.outlines import segment_ids
from segue.data.panoptic_map import PanopticMap
from segue.data.sample import read_image
from segue.export.panoptic import compare_panoptic, onnx_segmenter, same_pixels, torch_segmenter
from segue.weights import load_panoptic, save_model

Segue = Callable[..., tuple[int, str, str]]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_model(untrained_panoptic(), tmp_path / "run" / "model", method="mask_classification", metrics={}).parent


@pytest.mark.slow
def test_from_a_panoptic_run_to_segments_without_segue(segue: Segue, source: Path, tmp_path: Path) -> None:
    data = write_objects(tmp_path / "set")
    status, output, errors = segue("export", source, "--onnx", "--verify", data, "--json")
    assert status == 0, errors
    found = json.loads(output)["files"]["model.onnx"]
    assert (found["images"], found["labelled"], found["kept"]) == (2, 2, True)
    assert found["agreement"] >= 0.995
    out = source / "export"
    assert {path.name for path in out.iterdir()} == {"model.onnx", "infer.py", "parity.json"}

    model = load_panoptic(str(source))
    run, reference = onnx_segmenter(out / "model.onnx", threads=1), torch_segmenter(model)
    sizes, counts = ((33, 70), (64, 64), (1, 1), (130, 97)), []
    for height, width in sizes:
        picture = draw(7, size=max(height, width, 16))[0][:height, :width]
        expected, exported = reference(picture), run(picture)
        assert exported.ids.shape == (height, width)
        assert exported.ids.dtype == np.int32
        assert same_pixels(expected, exported) / expected.ids.size > 0.99
        np.testing.assert_allclose(sorted(exported.scores), sorted(expected.scores), atol=0.02)
        counts.append(len(expected.labels))
    assert max(counts) > 1

    picture = turned(draw(3)[0][:41, :33], tmp_path / "new.png")
    subprocess.run([sys.executable, out / "infer.py", picture], check=True, cwd=tmp_path)
    expected = reference(read_image(picture))
    segments = json.loads((tmp_path / "new.panoptic.json").read_text())
    assert [entry["class"] for entry in segments] == [SHAPES[label] for label in expected.labels]
    ids = segment_ids(Image.open(tmp_path / "new.panoptic.png"))
    assert (ids == expected.ids).mean() > 0.99
    assert set(np.unique(ids)) - {0} <= {entry["id"] for entry in segments}


@pytest.mark.slow
def test_a_panoptic_file_that_fails_is_deleted_with_status_4(
    segue: Segue, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(draw(0)[0]).save(tmp_path / "a.png")
    monkeypatch.setattr(gate, "QUALITY", 1.01)  # which nothing reaches
    status, _, errors = segue("export", source, "--verify", tmp_path / "a.png")
    assert status == 4
    assert "model.onnx is not the model that was evaluated and was deleted: PQ with the model as truth is" in errors
    assert [path.name for path in (source / "export").iterdir()] == ["parity.json"]
    (source / "export" / "model.onnx").write_bytes(b"of an earlier export")
    status, _, errors = segue("export", source, "--verify", tmp_path / "a.png")
    assert status == 4
    assert (source / "export" / "model.onnx").read_bytes() == b"of an earlier export"
    assert (source / "export" / "parity.failed.json").is_file()


@pytest.mark.slow
def test_what_a_panoptic_model_has_no_file_for_is_said_in_a_line(segue: Segue, source: Path, tmp_path: Path) -> None:
    data = write_objects(tmp_path / "set")
    for options, message in (
        (("--int8",), "--int8: a panoptic model"),
        (("--openvino",), "--openvino: a panoptic model"),
        (("--calibrate", data), "--calibrate: a panoptic model"),
        (("--max-drop", 2), "--max-drop: a panoptic model"),
    ):
        status, _, errors = segue("export", source, "--verify", data, *options)
        assert (status, errors.count("\n")) == (2, 1), errors
        assert message in errors
    assert not (source / "export").exists()


def bands(image: np.ndarray) -> PanopticMap:
    """A stand-in for a model: a segment for each brightest band."""
    brightest = image.argmax(-1)
    present = np.unique(brightest).tolist()
    ids = np.searchsorted(present, brightest).astype(np.int32) + 1
    return PanopticMap(ids, tuple(present), (False,) * len(present), (1.0,) * len(present))


class Pictures:
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict[str, object]:
        image = draw(index)[0]
        return {"image": torch.from_numpy(image).permute(2, 0, 1), "name": str(index), "truth": bands(image)}


MUTANTS: dict[str, Callable[[np.ndarray], PanopticMap]] = {
    "bands swapped": lambda image: bands(image[..., ::-1]),
    "upside down": lambda image: bands(image[::-1]),
    "nothing found": lambda image: PanopticMap(np.zeros(image.shape[:2], np.int32), ()),
    "another size": lambda image: bands(image[1:]),
}


def test_the_same_passes_and_each_mutant_fails() -> None:
    same = compare_panoptic(bands, bands, Pictures(), classes=3, bands=3)
    assert (same.agreement, same.noise, same.quality, same.before, same.after) == (1, 1, 1, 1, 1)
    assert (same.faults, same.images, same.labelled) == ((), 2, 2)
    for name, mutant in MUTANTS.items():
        assert compare_panoptic(bands, mutant, Pictures(), classes=3, bands=3).faults, name


def test_a_file_that_stops_at_a_size_fails() -> None:
    def file(image: np.ndarray) -> PanopticMap:
        if image.shape[0] == 37:
            raise RuntimeError("only multiples of 16")
        return bands(image)

    found = compare_panoptic(bands, file, Pictures(), classes=3, bands=3)
    assert found.noise == 0
    assert len(found.faults) == 1

    def never(image: np.ndarray) -> PanopticMap:
        raise RuntimeError("a runtime's own")

    assert compare_panoptic(bands, never, Pictures(), classes=3, bands=3).agreement == 0


def test_pixels_that_agree_by_hand() -> None:
    expected = PanopticMap(np.array([[1, 1, 1, 2], [0, 0, 2, 2]], np.int32), (0, 1))
    # Numbers may differ; one pixel went from void to the first segment.
    found = PanopticMap(np.array([[2, 2, 2, 1], [0, 2, 1, 1]], np.int32), (1, 0))
    assert same_pixels(expected, found) == 7  # 3 of segment 1, 3 of segment 2, 1 void
    half = PanopticMap(np.array([[2, 2, 0, 1], [0, 2, 1, 1]], np.int32), (1, 0))
    assert same_pixels(expected, half) == 4  # segment 1 shares 2 of 4, which is not most
    assert same_pixels(expected, PanopticMap(found.ids, (1, 2))) == 4  # 3 + 1: the class of the other is wrong
    assert same_pixels(expected, PanopticMap(found.ids[:1], (1, 0))) == 0
