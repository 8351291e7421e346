"""What may share a folder in the comparison of searches."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "evidence"))
import compress as script


def test_a_folder_takes_runs_of_one_setting_alone(tmp_path: Path) -> None:
    script.refuse_others(tmp_path, {"steps": 300})  # nothing is there yet
    config = {"steps": 300, "lr_aspp": True, "lr": 0.03}
    (tmp_path / "run.json").write_text(json.dumps({"identity": {"config": config}}))
    script.refuse_others(tmp_path, {"steps": 300, "lr_aspp": "true", "lr": 0.03, "budget": "300s"})
    with pytest.raises(SystemExit, match="steps is 300 there and 600 now"):
        script.refuse_others(tmp_path, {"lr": 0.03, "steps": 600})


def test_the_target_is_that_of_the_first_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = script.Experiment.__new__(script.Experiment)
    experiment.options, experiment.out = Namespace(seeds=[0, 1]), tmp_path
    times = {0: 100.0, 1: 140.0, 2: 30.0}
    monkeypatch.setattr(script, "milliseconds", times.__getitem__)
    monkeypatch.setattr(experiment, "plain", lambda seed: seed)
    assert experiment.target() == "60ms@512x512"
    experiment.options = Namespace(seeds=[2])
    assert experiment.target() == "60ms@512x512"
