"""Lines of the log in TensorBoard, W&B and MLflow: the same numbers, where a run was cut too; no run fails by them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY

from segue import loggers
from segue.config import UsageError
from segue.loggers import Loggers, open_loggers, refuse_unknown
from segue.run import Run
from segue.verbs import train

FIELDS = {"method": "supervised", "device": "cpu", "precision": "fp32", "quiet": True, **TINY, "steps": 4}


class Kept:
    """Keeps what it is told, and fails when it is told to."""

    def __init__(self, fails: bool = False) -> None:
        self.told: list[Any] = []
        self.fails = fails

    def begin(self, stage: str, step: int) -> None:
        self.told.append((stage, step))

    def write(self, stage: str, step: int, numbers: dict[str, float]) -> None:
        if self.fails:
            raise ConnectionError("no route\nto host")
        self.told.append((stage, step, dict(numbers)))

    def close(self) -> None:
        self.told.append("closed")


def test_parts_have_names_of_their_own_and_a_writer_that_fails_is_left_out(tmp_path: Path) -> None:
    good, bad, said = Kept(), Kept(fails=True), list[str]()
    run = Run(tmp_path, quiet=True, loggers=Loggers({"bad": bad, "good": good}, said.append))
    run.rewind("a", 0)
    run.log("a", 1, {"loss": 2.0, "seconds": 9.0, "refused": "not finite"})
    run.child("baseline").log("a", 1, {"loss": 3.0})
    run.loggers.close()  # type: ignore[union-attr]
    assert good.told == [("a", 0), ("a", 1, {"loss": 2.0}), ("baseline/a", 1, {"loss": 3.0}), "closed"]
    assert bad.told == [("a", 0)]
    assert said == ["warning: bad is left out from here on (ConnectionError: no route); log.jsonl has all"]


def test_names_that_there_are_not_are_refused_before_anything(
    segue: Callable[..., tuple[int, str, str]], dataset: Path, tmp_path: Path
) -> None:
    status, _, errors = segue("train", dataset, "--out", tmp_path / "run", "--log-to", "tensorbord")
    assert (status, (tmp_path / "run").exists()) == (2, False)
    assert "--log-to tensorbord; did you mean tensorboard? (known: tensorboard, wandb, mlflow)" in errors
    refuse_unknown(("wandb", "mlflow"))


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str, extra: str) -> Any:
        raise UsageError(f"{package} {extra}")

    monkeypatch.setattr(loggers, "require", missing)
    for name, package in (("tensorboard", "tensorboard"), ("wandb", "wandb"), ("mlflow", "mlflow")):
        with pytest.raises(UsageError, match=f"{package} loggers"):
            open_loggers((name,), tmp_path, {}, print)


def logged(out: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def events(folder: Path) -> dict[int, float]:
    """Losses by step, as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder))
    read.Reload()
    return {event.step: event.value for event in read.Scalars("loss")}


def test_tensorboard_shows_the_log_and_of_a_cut_run_each_step_once(dataset: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    out = train(str(dataset), tmp_path / "run", log_to=("tensorboard",), **FIELDS)
    assert events(out / "tensorboard" / "supervised") == pytest.approx(logged(out))
    again = Loggers({"tensorboard": loggers.TensorBoard(out, {})}, print)
    again.begin("supervised", 2)  # the checkpoint was of step 2
    again.write("supervised", 3, {"loss": 7.0})
    again.close()
    first = {step: loss for step, loss in logged(out).items() if step <= 2}
    assert events(out / "tensorboard" / "supervised") == pytest.approx({**first, 3: 7.0})


def test_wandb_gets_every_stage_with_its_own_steps(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    out = train(str(dataset), tmp_path / "run", log_to=("wandb",), **{**FIELDS, "quiet": False})
    assert "warning: wandb" not in capsys.readouterr().err
    (file,) = (out / "wandb").glob("offline-run-*/run-*.wandb")
    content = file.read_bytes()
    for name in ("supervised/loss", "supervised/step", "gradient_norm", "weight_decay"):  # the last of the config
        assert name.encode() in content, name


def test_mlflow_has_the_log_and_the_run_goes_on_as_the_same(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UsageError, match="set MLFLOW_TRACKING_URI"):
        open_loggers(("mlflow",), tmp_path, {}, print)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "tracked").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    out = train(str(dataset), tmp_path / "run", log_to=("mlflow",), **FIELDS)
    from mlflow import MlflowClient

    client, number = MlflowClient(), (out / loggers.IDENTITY).read_text()
    history = client.get_metric_history(number, "supervised/loss")
    assert {metric.step: metric.value for metric in history} == pytest.approx(logged(out))
    run = client.get_run(number)
    assert (run.info.status, run.data.params["steps"], run.data.params["method"]) == ("FINISHED", "4", "supervised")
    again = loggers.MLflow(out, {})
    again.write("supervised", 5, {"loss": 1.0})
    again.close()
    assert len(client.get_metric_history(number, "supervised/loss")) == len(history) + 1
