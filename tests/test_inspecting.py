"""``segue bench``, ``segue compare`` and ``segue doctor``."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, COLORS, options
from torch import nn

from segue.bench import Candidate, measure, write_picture
from segue.export.graph import write_onnx
from segue.models.segmenter import Segmenter, SegmenterSpec
from segue.report.comparison import best
from segue.weights import save_model

Segue = Callable[..., tuple[int, str, str]]


class Bands(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.float() * 2


def test_every_candidate_runs_once_a_round_in_an_order_that_changes() -> None:
    calls: list[str] = []

    def runs(name: str) -> Callable[[np.ndarray], np.ndarray]:
        return lambda image: (calls.append(name), image)[1]

    rows = [Candidate(name, "test", 1, 8, 9, runs(name)) for name in "abc"]
    times = iter(range(1000))
    measure(rows, rounds=6, clock=lambda: float(next(times)) ** 2)
    timed = ["".join(calls[i : i + 3]) for i in range(6, len(calls), 3)]  # after two warm calls each
    assert len(timed) == 6
    assert {"".join(sorted(order)) for order in timed} == {"abc"}
    assert len(set(timed)) > 1
    assert all(len(row.seconds) == 6 for row in rows)


def test_percentiles_by_hand() -> None:
    row = Candidate("m", "r", 1, 8, 8, lambda image: image, seconds=[i / 1000 for i in range(1, 102)])
    plain = row.plain()
    assert (plain["p50_ms"], plain["p95_ms"], plain["per_second"], plain["calls"]) == (51.0, 96.0, 19.61, 101)


def test_a_runtime_that_fails_without_a_word_is_named_by_its_error() -> None:
    def fails(image: np.ndarray) -> np.ndarray:
        raise RuntimeError

    rows = [Candidate("m", "r", 1, 8, 8, fails)]
    measure(rows, rounds=1)
    assert rows[0].failure == "RuntimeError"


def test_files_of_one_name_have_bars_of_their_own(tmp_path: Path) -> None:
    """Every export is called model.onnx."""
    rows = [
        Candidate(f"runs/{run}/model.onnx", "r", 1, 8, 8, lambda image: image, seconds=[time]).plain()
        for run, time in (("first", 0.08), ("small", 0.02))
    ]
    write_picture(tmp_path / "bench.svg", rows, {})
    picture = (tmp_path / "bench.svg").read_text()
    assert ("runs/first/model.onnx" in picture, "runs/small/model.onnx" in picture) == (True, True)


PEAK = """
import numpy as np
from segue.bench import Candidate, measure
def hungry(image):
    np.ones(64 << 20, np.uint8)
    return image
rows = [Candidate("a", "t", 1, 8, 8, hungry), Candidate("b", "t", 1, 8, 8, lambda image: image)]
measure(rows, rounds=2)
print(rows[0].memory, rows[1].memory)
"""


@pytest.mark.slow
def test_peak_memory_of_a_call_is_what_it_takes() -> None:
    """In a process of its own: where freed memory is kept, as `tune` lets it, a call takes nothing new."""
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    hungry, modest = map(float, done.stdout.split())
    if np.isnan(hungry):
        pytest.skip("this system does not tell a process's peak")
    assert 60 < hungry < 80
    assert modest < 16


@pytest.mark.slow
def test_a_table_a_picture_and_a_model_that_fails(segue: Segue, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the extra export is not installed")
    torch.manual_seed(0)
    model = Segmenter(SegmenterSpec("test_efficientnet", CLASSES, COLORS, decoder_channels=16)).eval()
    save_model(model, tmp_path / "run" / "model", method="supervised", metrics={"miou": 0.5})
    write_onnx(Bands(), tmp_path / "bands.onnx")
    models = (tmp_path / "run", tmp_path / "bands.onnx")
    sizes = ("--sizes", "32x32,48x64", "--threads", "1", "--rounds", 3)
    status, output, errors = segue("bench", *models, *sizes, "--out", tmp_path / "out", "--json")
    torch.set_num_threads(1)
    assert status == 0, errors
    found = json.loads(output)
    assert len(found["rows"]) == 2 * 2
    assert {row["runtime"] for row in found["rows"]} == {"torch eager", "ONNX Runtime"}
    assert {(row["width"], row["height"]) for row in found["rows"]} == {(32, 32), (48, 64)}  # as written
    assert all(0 < row["p50_ms"] <= row["p95_ms"] for row in found["rows"])
    assert "cores" in found["machine"]
    assert found["accuracy"] == {str(tmp_path / "run"): 0.5}
    assert json.loads((tmp_path / "out" / "bench.json").read_text()) == found
    assert ET.parse(tmp_path / "out" / "bench.svg").getroot().tag.endswith("svg")
    (tmp_path / "broken.onnx").write_bytes(b"no")
    status, _, errors = segue("bench", tmp_path / "broken.onnx")
    assert status == 2
    assert "broken.onnx cannot be opened" in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bench", "GONE"), "holds no model"),
        (("bench", "x.onnx"), "x.onnx: no such file"),
        (("bench", "GONE", "--sizes", "512"), "--sizes 512"),
        (("bench", "GONE", "--threads", "0"), "--threads 0"),
        (("bench", "GONE", "--rounds", "0"), "--rounds 0"),
        (("compare", "GONE", "--out", "x"), "two runs or more"),
        (("compare", "GONE", "GONE", "--out", "x"), "named twice"),
        (("compare", "GONE", "GONE2", "--out", "x"), "GONE/evaluation.json does not exist"),
        (("compare", "GONE", "--images", "x.png", "--out", "x"), "compares two models"),
        (("doctor", "--jsn"), "--json"),
    ],
)
def test_what_cannot_be_meant_is_one_line(
    segue: Segue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, errors = segue(*arguments)
    assert (status, errors.count("\n")) == (2, 1), errors
    assert message in errors
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_two_runs_side_by_side(segue: Segue, dataset: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        call = ("train", dataset, "--out", tmp_path / f"run{seed}", "--method", "supervised", "--seed", seed)
        call = (*call, "--labels", 3 + seed)
        assert segue(*call, "--device", "cpu", *options(steps=4, evaluate_every=2))[0] == 0
    status, _, errors = segue("compare", tmp_path / "run0", tmp_path / "run1", "--out", tmp_path / "page")
    assert status == 0, errors
    page = (tmp_path / "page" / "comparison.html").read_text()
    for text in ("run0", "run1", "iou/disc", "seed", "<svg", "One run each"):
        assert text in page
    assert "may not be compared" not in page  # other training images, the same to validate on
    assert "images trained on" in page.partition("What differs")[2]
    assert "http://" not in page.replace("http://www.w3.org", "")
    record = json.loads((tmp_path / "run1" / "run.json").read_text())
    record["data"]["validation_at"]["masks"] = "other"
    (tmp_path / "run1" / "run.json").write_text(json.dumps(record))
    _, output, _ = segue("compare", tmp_path / "run0", tmp_path / "run1", "--out", tmp_path / "other", "--json")
    measured = json.loads((tmp_path / "run1" / "evaluation.json").read_text())
    assert json.loads(output)["scores"][str(tmp_path / "run1")] == measured["scores"]
    assert "may not be compared" in (tmp_path / "other" / "comparison.html").read_text()


def test_the_best_value_stands_out_and_a_small_calibration_error_is_best() -> None:
    assert best("miou", [0.1, None, 0.3]) == 2
    assert best("ece", [0.1, None, 0.3]) == 0
    assert best("miou", [0.1, 0.1]) is None
    assert best("miou", [None, 0.1]) is None
    assert best("miou", [0.3, 0.1, 0.3]) is None
    assert best("ece", [0.1, 0.3, 0.1]) is None


def test_doctor_names_versions_extras_and_what_to_do(
    segue: Segue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, output, _ = segue("doctor", "--out", tmp_path / "runs", "--json")
    found = {line["name"]: line for line in json.loads(output)}
    assert status == 0
    assert found["torch"]["value"] == torch.__version__.split("+")[0] or found["torch"]["value"] == torch.__version__
    assert {"cpu", "disk", "extra export", "extra serve", "precision"} <= set(found)
    monkeypatch.setenv("SEGUE_MIRROR", str(tmp_path / "gone"))
    from segue.cli import main

    assert main(["doctor"]) == 2


def test_names_that_look_like_markup_are_shown_as_they_are(segue: Segue, dataset: Path, tmp_path: Path) -> None:
    names = ("ground", "car [/x]", "[bold]bar")
    described = json.loads((dataset / "dataset.json").read_text())
    (dataset / "dataset.json").write_text(json.dumps({**described, "classes": list(names)}))
    spec = SegmenterSpec("test_efficientnet", names, COLORS, decoder_channels=16)
    model = save_model(Segmenter(spec), tmp_path / "model", method="supervised", metrics={})
    status, output, errors = segue("evaluate", model, "--data", dataset)
    assert status == 0, errors
    assert "car [/x]" in output
    assert "[bold]bar" in output
    call = ("compare", model, model, "--images", dataset / "images", "--out", tmp_path / "out")
    assert segue(*call)[0] == 0  # of the classes that were seen
