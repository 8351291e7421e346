"""The demo, short: every part of the whole path, and that it can be run again."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest


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
