"""How long a training took: all of its starts."""

import json
from pathlib import Path

import pytest
from conftest import TINY

from segue.runs.folder import Run
from segue.verbs import train


@pytest.mark.slow
def test_training_time_is_that_of_all_starts(dataset: Path, tmp_path: Path) -> None:
    out, fields = tmp_path / "run", {"method": "pixel_contrast", "quiet": True, **TINY, "steps": 4}

    def seconds_after_a_start() -> list[float]:
        train(str(dataset), out, compare=True, device="cpu", precision="fp32", **fields)
        return [json.loads((folder / "evaluation.json").read_text())["seconds"] for folder in (out, out / "baseline")]

    once = seconds_after_a_start()
    for folder, stage in ((out, "finetune"), (out / "baseline", "supervised")):
        run = Run(folder, quiet=True)
        state = run.checkpoint(stage)
        assert state is not None
        assert 0 < state["seconds"] <= once[folder != out]
        run.save(stage, {**state, "seconds": 1000.0})  # as after a long first start that ended here
        (folder / "evaluation.json").unlink()
    assert all(1000 < seconds < 1000 + 10 * sum(once) for seconds in seconds_after_a_start())
    settings = json.loads((out / "baseline" / "evaluation.json").read_text())["settings"]
    assert (settings["lr"], settings["crop"]) == (0.03, TINY["crop"])
