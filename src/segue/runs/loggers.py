"""The lines of ``log.jsonl``, written to TensorBoard, MLflow or Weights & Biases as well.

``log.jsonl`` is the record; these are copies for whoever watches many runs. Each stage of each part of a run has
numbers and steps of its own. A writer that fails is said once and left out: a training does not end because of it.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from segue.config import did_you_mean
from segue.disk import write_atomically
from segue.errors import UsageError
from segue.extras import require
from segue.records import read_json

IDENTITIES = "loggers.json"  # in the run folder: what MLflow and W&B call this run
REFUSED = re.compile(r"[^\w\-. :/]|(?<![^/])\.{0,2}(?![^/])")  # by MLflow in a name: also a part "", "." or ".."
PROJECT = "segue"  # where W&B and MLflow put it, unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME says otherwise


class Logged(Protocol):
    """What is logged, as `segue.runs.folder.Run`."""

    out: Path

    def open(self) -> None:
        """Makes the folder with its records."""

    def say(self, text: str) -> None:
        """One line for the person who waits."""


class Writer(Protocol):
    """One place that lines are written to; ``run`` is what it calls the run, where it needs a name."""

    run: str

    def begin(self, stage: str, step: int) -> None:
        """What comes for ``stage`` lies behind ``step``: the line of a step that is there already comes again."""

    def write(self, stage: str, step: int, numbers: Mapping[str, float]) -> None:
        """Numbers of a step."""

    def close(self) -> None:
        """The run is over."""


class TensorBoard:
    """Event files in ``RUN/tensorboard``, a folder for each stage."""

    def __init__(self, out: Path, config: Mapping[str, Any], run: str = "") -> None:
        require("tensorboard", "loggers")
        from torch.utils.tensorboard import SummaryWriter

        self.run = ""
        self.new: Callable[..., Any] = SummaryWriter
        self.folder = out / "tensorboard"
        self.stages: dict[str, Any] = {}

    def begin(self, stage: str, step: int) -> None:
        """Opens the files of the stage; TensorBoard passes over what older ones hold behind ``step``."""
        if stage in self.stages:  # a line came before the stage began
            self.stages[stage].close()
        folder = self.folder / stage
        self.stages[stage] = self.new(str(folder), purge_step=step + 1 if folder.exists() else None)

    def write(self, stage: str, step: int, numbers: Mapping[str, float]) -> None:
        """A scalar for each number."""
        if stage not in self.stages:
            self.begin(stage, step - 1)
        for name, value in numbers.items():
            self.stages[stage].add_scalar(name, value, step)
        self.stages[stage].flush()

    def close(self) -> None:
        """Closes the files."""
        for writer in self.stages.values():
            writer.close()


class WeightsAndBiases:
    """A run of W&B that goes on when this one does; ``WANDB_MODE``, ``WANDB_PROJECT`` and ``WANDB_API_KEY`` count."""

    def __init__(self, out: Path, config: Mapping[str, Any], run: str = "") -> None:
        wandb = require("wandb", "loggers")
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        self.run = run or secrets.token_hex(8)
        try:
            self.opened = wandb.init(
                project=project, name=out.name, id=self.run, resume="allow", dir=str(out), config=dict(config),
                settings=wandb.Settings(silent=True, console="off", save_code=False),
            )  # fmt: skip
        except wandb.errors.Error as error:
            hint = "log in with 'wandb login', or set WANDB_MODE=offline"
            raise UsageError(f"--log-to wandb: {_first_line(error)}; {hint}") from None
        self.known: set[str] = set()

    def begin(self, stage: str, step: int) -> None:
        """The steps of a stage are an axis of their own."""
        if stage not in self.known:
            self.known.add(stage)
            self.opened.define_metric(f"{stage}/step")
            self.opened.define_metric(f"{stage}/*", step_metric=f"{stage}/step")

    def write(self, stage: str, step: int, numbers: Mapping[str, float]) -> None:
        """Numbers as ``stage/name``."""
        self.begin(stage, step)
        self.opened.log({f"{stage}/step": step, **{f"{stage}/{name}": value for name, value in numbers.items()}})

    def close(self) -> None:
        """Ends the run."""
        self.opened.finish()


class MLflow:
    """A run of the MLflow server or folder that ``MLFLOW_TRACKING_URI`` names, which goes on when this one does."""

    def __init__(self, out: Path, config: Mapping[str, Any], run: str = "") -> None:
        require("mlflow", "loggers")
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param
        from mlflow.exceptions import MlflowException

        address = os.environ.get("MLFLOW_TRACKING_URI")
        if not address:
            raise UsageError("--log-to mlflow: set MLFLOW_TRACKING_URI to a server, as http://localhost:5000")
        self.metric: Callable[..., Any] = Metric
        self.run = run
        try:
            self.client = MlflowClient(tracking_uri=address)
            if run:
                self.client.set_terminated(run, status="RUNNING")
                return
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            experiment = self.client.get_experiment_by_name(name)
            number = experiment.experiment_id if experiment else self.client.create_experiment(name)
            self.run = self.client.create_run(number, run_name=out.name).info.run_id
            fields = [Param(field, str(value)[:500]) for field, value in config.items()]
            self.client.log_batch(self.run, params=fields)
        except MlflowException as error:
            raise UsageError(f"--log-to mlflow: {address}: {_first_line(error)}") from None

    def begin(self, stage: str, step: int) -> None:
        """Nothing: MLflow keeps the last value of a step that comes again."""

    def write(self, stage: str, step: int, numbers: Mapping[str, float]) -> None:
        """Numbers as ``stage/name``, with "_" for what MLflow takes in no name, as the comma of a class."""
        import time

        now = int(1000 * time.time())
        found = [self.metric(REFUSED.sub("_", f"{stage}/{name}"), value, now, step) for name, value in numbers.items()]
        self.client.log_batch(self.run, metrics=found)

    def close(self) -> None:
        """Ends the run."""
        self.client.set_terminated(self.run)


WRITERS: dict[str, Callable[[Path, Mapping[str, Any], str], Writer]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}


class Loggers:
    """Writes each line to every writer that still works.

    Args:
        writers: by their names.
        say: told which one failed.
    """

    def __init__(self, writers: Mapping[str, Writer], say: Callable[[str], None]) -> None:
        self.writers, self.say = dict(writers), say

    def begin(self, stage: str, step: int) -> None:
        """A stage begins, or goes on behind ``step``."""
        self._each(lambda writer: writer.begin(stage, step))

    def write(self, stage: str, step: int, values: Mapping[str, float | str]) -> None:
        """The numbers among the values of a line, without its time."""
        numbers = {
            name: value for name, value in values.items() if isinstance(value, float | int) and name != "seconds"
        }
        if numbers:
            self._each(lambda writer: writer.write(stage, step, numbers))

    def close(self) -> None:
        """The run is over, or stops."""
        self._each(lambda writer: writer.close())

    def _each(self, do: Callable[[Writer], None]) -> None:
        for name, writer in list(self.writers.items()):
            try:
                do(writer)
            except Exception as error:  # whatever a foreign library raises
                del self.writers[name]
                told = f"{type(error).__name__}: {_first_line(error)}"
                self.say(f"warning: {name} is left out from here on ({told}); log.jsonl has all")


def refuse_unknown(names: Iterable[str]) -> None:
    """Refuses loggers that there are not.

    Raises:
        UsageError: the first of them.
    """
    for name in names:
        if name not in WRITERS:
            raise UsageError(f"--log-to {name}{did_you_mean(name, set(WRITERS))} (known: {', '.join(WRITERS)})")


@contextlib.contextmanager
def opened_loggers(names: Sequence[str], run: Logged, config: Mapping[str, Any]) -> Iterator[Loggers]:
    """The writers of these names for a run, closed when the block ends; a run goes on under the name that it has there.

    Args:
        names: of `WRITERS`.
        run: of a claimed folder, whose records are written before anything else is.
        config: what is told of the run.

    Raises:
        UsageError: a package is missing, nobody is logged in, or no server answers; nothing new is left then.
    """
    with contextlib.closing(Loggers({}, run.say)) as loggers:
        if names:
            with nothing_new_if_refused(run.out):
                run.open()
                path = run.out / IDENTITIES
                known = read_json(path, "what loggers call a run") if path.is_file() else {}
                for name in names:
                    loggers.writers[name] = WRITERS[name](run.out, config, str(known.get(name, "")))
                    if loggers.writers[name].run != known.get(name, ""):
                        known[name] = loggers.writers[name].run
                        write_atomically(path, json.dumps(known).encode())
        yield loggers


@contextlib.contextmanager
def nothing_new_if_refused(folder: Path) -> Iterator[None]:
    """Takes out of ``folder`` what a block put there that ends with a `UsageError`; another end leaves all as it is."""
    was_there = folder.is_dir()
    before = set(folder.iterdir()) if was_there else set()
    try:
        yield
    except UsageError:
        for path in set(folder.iterdir()) - before:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if not was_there:
            folder.rmdir()
        raise


def _first_line(error: Exception) -> str:
    """What a foreign library says, in short."""
    return (str(error).splitlines() or [type(error).__name__])[0]
