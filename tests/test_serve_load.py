"""The load test of `benchmarks/speed/serve.py`, small: it runs, loses nothing, and sees what is lost."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import CLASSES, COLORS, draw
from PIL import Image

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from segue.models.segmenter import Segmenter, SegmenterSpec
from segue.weights import save_model

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "speed" / "serve.py"
GROWTH = 12  # MiB over the last 700 requests; 3 as it is, 23 where the answers are kept


@pytest.mark.slow
def test_a_mixed_load_loses_nothing_and_keeps_no_memory(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Segmenter(SegmenterSpec("test_efficientnet", CLASSES, COLORS, decoder_channels=16)).eval()
    save_model(model, tmp_path / "model", method="supervised", metrics={})
    Image.fromarray(draw(0, 96)[0]).save(tmp_path / "picture.png")
    options = ("--requests", "16", "--rounds", "1", "--mixed", "1000", "--clients", "8")
    command = [sys.executable, str(SCRIPT), str(tmp_path / "model"), str(tmp_path / "picture.png"), *options]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=500, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert (found["lost"], found["mixed"], found["lives"]) == ([], 1000, True)
    assert {"200", "400", "401", "404", "413"} <= set(found["statuses"])
    assert found["served_per_s"] > 0
    assert found["resident_mib"][-1] - found["resident_mib"][2] < GROWTH, found["resident_mib"]
