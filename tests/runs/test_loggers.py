"""Lines of the log in TensorBoard, W&B and MLflow: the same numbers, where a run was cut too; no run fails by them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from conftest import TINY

from segue.errors import UsageError
from segue.runs import loggers
from segue.runs.folder import Run
from segue.runs.loggers import Loggers, opened_loggers, refuse_unknown
from segue.verbs import train

FIELDS = {"method": "supervised", "device": "cpu", "precision": "fp32", "quiet": True, **TINY, "steps": 4}


class Kept:
    """Keeps what it is told, and fails when it is told to."""

    run = ""

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
        with (
            pytest.raises(UsageError, match=f"{package} loggers"),
            opened_loggers((name,), Run(tmp_path, quiet=True), {}),
        ):
            pass


class Named(Kept):
    """Lies in the run folder and has a name for the run, as W&B."""

    opened: ClassVar[list[str]] = []

    def __init__(self, out: Path, config: Any, run: str) -> None:
        super().__init__()
        (out / "named").mkdir(parents=True, exist_ok=True)
        self.run = run or f"name {len(self.opened)}"
        self.opened.append(self.run)


@pytest.mark.slow
def test_a_run_keeps_the_name_it_got_and_a_new_run_in_its_place_gets_another(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(loggers.WRITERS, "named", Named)
    monkeypatch.setattr(Named, "opened", [])
    out = tmp_path / "run"
    for _ in range(2):
        train(str(dataset), out, log_to=("named",), **FIELDS)
    shutil.rmtree(out)
    train(str(dataset), out, log_to=("named",), **FIELDS)
    assert Named.opened == ["name 0", "name 0", "name 2"]
    assert json.loads((out / loggers.IDENTITIES).read_text()) == {"named": "name 2"}


def test_cut_while_it_opens_a_run_goes_on(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(out: Path, config: Any, run: str) -> Any:
        Named(out, config, run)
        raise SystemExit(75)

    monkeypatch.setitem(loggers.WRITERS, "named", cut)
    with pytest.raises(SystemExit):
        train(str(dataset), tmp_path / "run", log_to=("named",), **FIELDS)
    monkeypatch.setitem(loggers.WRITERS, "named", Named)
    assert (train(str(dataset), tmp_path / "run", log_to=("named",), **FIELDS) / "model").is_dir()


def test_nobody_logged_in_leaves_no_folder_of_a_new_run_and_all_of_an_old_one(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(out: Path, config: Any, run: str) -> Any:
        raise UsageError("log in")

    monkeypatch.setitem(loggers.WRITERS, "named", Named)
    monkeypatch.setitem(loggers.WRITERS, "refused", refused)
    out = tmp_path / "run"
    with pytest.raises(UsageError, match="log in"):
        train(str(dataset), out, log_to=("named", "refused"), **FIELDS)
    assert not out.exists()
    out.mkdir()
    with pytest.raises(UsageError, match="log in"):
        train(str(dataset), out, log_to=("named", "refused"), **FIELDS)
    assert not any(out.iterdir())
    train(str(dataset), out, **FIELDS)
    before = (out / "log.jsonl").read_bytes()
    with pytest.raises(UsageError, match="log in"):
        train(str(dataset), out, log_to=("refused",), **FIELDS)
    assert (out / "log.jsonl").read_bytes() == before


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_mlflow_has_the_log_and_the_run_goes_on_as_the_same(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = Run(tmp_path, quiet=True)
    with pytest.raises(UsageError, match="set MLFLOW_TRACKING_URI"), opened_loggers(("mlflow",), run, {}):
        pass
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "tracked").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    out = train(str(dataset), tmp_path / "run", log_to=("mlflow",), **FIELDS)
    from mlflow import MlflowClient

    client, number = MlflowClient(), json.loads((out / loggers.IDENTITIES).read_text())["mlflow"]
    history = client.get_metric_history(number, "supervised/loss")
    assert {metric.step: metric.value for metric in history} == pytest.approx(logged(out))
    run = client.get_run(number)
    assert (run.info.status, run.data.params["steps"], run.data.params["method"]) == ("FINISHED", "4", "supervised")
    again = loggers.MLflow(out, {}, number)
    again.write("supervised", 5, {"loss": 1.0})
    for name in ("car (parked)", "wall; partition", "sand, soil", "n/a", "road/", ".."):
        again.write("supervised", 5, {f"val/iou/{name}": 0.5})
    again.close()
    named = {name.removeprefix("supervised/val/iou/") for name in client.get_run(number).data.metrics}
    assert named >= {"car _parked_", "wall_ partition", "sand_ soil", "n/a", "road/_", "_"}
    assert len(client.get_metric_history(number, "supervised/loss")) == len(history) + 1
