"""The demo, short: every part of the whole path, and that it can be run again."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from segue.demo import draw_scenes


@pytest.mark.slow
def test_the_demo_goes_the_whole_path_and_is_safe_to_repeat(
    segue: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    out = tmp_path / "demo"
    status, output, errors = segue("demo", "--out", out, "--steps", 8, "--json", "--device", "cpu")
    assert status == 0, errors
    scores = json.loads(output)
    assert set(scores) == {"pixel_contrast", "supervised"}
    assert all(0 <= score <= 1 for score in scores.values())
    assert (out / "run" / "report.html").stat().st_size > 50_000
    assert len(list((out / "predictions" / "overlays").iterdir())) == 8
    before = (out / "run" / "model" / "model.safetensors").stat().st_mtime_ns
    status, output, errors = segue("demo", "--out", out, "--steps", 8, "--json", "--device", "cpu")
    assert status == 0, errors
    assert json.loads(output) == scores
    assert "finished before" in errors
    assert (out / "run" / "model" / "model.safetensors").stat().st_mtime_ns == before


def test_a_folder_with_something_else_is_left_alone(segue: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years")
    status, _, errors = segue("demo", "--out", tmp_path)
    assert (status, [path.name for path in tmp_path.iterdir()]) == (2, ["thesis.txt"])
    assert "holds no demo" in errors


def test_a_demo_with_other_settings_is_refused(
    segue: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LABELLED", "UNLABELLED", "VALIDATION", "TEST"):
        monkeypatch.setattr(f"segue.demo.{name}", 1)
    out = tmp_path / "demo"
    draw_scenes(out, 0)
    status, _, errors = segue("demo", "--out", out, "--seed", 1)  # nothing is trained yet
    assert (status, "holds another demo (seed: 0 there, 1 here)" in errors) == (2, True)
    (out / "run").mkdir()
    identity = {"seed": 0, "config": {"steps": 8}}
    (out / "run" / "run.json").write_text(json.dumps({"identity": identity}))
    (out / "scores.json").write_text(json.dumps({"pixel_contrast": 0.5, "supervised": 0.25}))
    status, _, errors = segue("demo", "--out", out, "--steps", 9, "--seed", 1)
    assert (status, "(seed: 0 there, 1 here, steps: 8 there, 9 here)" in errors) == (2, True)
    assert segue("demo", "--out", out, "--steps", 8)[0] == 0
