"""How every training verb runs: the folder is claimed, the data opened and described, each arm trained, measured and
saved, and the report written. What the verbs do differently is theirs: `segue.verbs`."""

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from segue import methods
from segue.bounds import refuse_impossible
from segue.config import did_you_mean, flat
from segue.disk import write_atomically
from segue.engine import Run, only_first, rank_and_world
from segue.errors import UsageError
from segue.launch.claim import MethodData, claim_folder, describe_run, refuse_changed
from segue.processes.surroundings import Surroundings
from segue.processes.tuning import tune
from segue.runs.folder import Clock
from segue.runs.loggers import opened_loggers, refuse_unknown
from segue.weights import Saved, save_model

REPORT = "report.html"
ENDING = (REPORT, "model/README.md")  # what a run writes last


class Scores(Protocol):
    """What was measured of a model, as `segue.evaluation.Measured`."""

    def scores(self) -> dict[str, float]:
        """Numbers by name; NaN where one is not defined."""

    def plain(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""

    def line(self) -> str:
        """The most important numbers in words."""


D = TypeVar("D", bound=MethodData)


@dataclass(frozen=True)
class Arm(Generic[D]):
    """One training of a run.

    Args:
        method: its name.
        config: of the method.
        data: what it learns from.
        measure: gives scores of the trained model; None where there is nothing to measure on.
        folder: below the run folder; empty for the run folder itself.
        title: what it is called, where that is not its method's name.
    """

    method: str
    config: Any
    data: D
    measure: Callable[[Any], Scores | None] = lambda model: None
    folder: str = ""
    title: str = ""

    @property
    def name(self) -> str:
        """What it is called."""
        return self.title or self.method


def method_module(name: str, verb: str) -> Any:
    """The module of a method that serves ``verb``.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in methods.names(verb):
        close = did_you_mean(name, methods.names(verb))
        raise UsageError(f"unknown method {name!r}{close} (known: {', '.join(methods.names(verb))})")
    return methods.load(name)


def launch(
    verb: str,
    config: Any,
    out: Path,
    around: Surroundings,
    *,
    method: str,
    open_data: Callable[[], D],
    arms: Callable[[D], Sequence[Arm[Any]]],
    conclude: Callable[[Run], None] = lambda run: None,
) -> Path:
    """Runs a training verb; the run folder. A run of the same settings in it goes on where it stopped.

    Args:
        verb: its name.
        config: of the method, as the user gave it.
        out: the run folder.
        around: seed, device and the like.
        method: the method's name.
        open_data: opens and checks the data; called once the folder is known to be free.
        arms: the trainings, in their order; the one whose folder is empty is the run's own.
        conclude: called when all arms are done, before the report is written.

    Raises:
        DataError: a fault of the data.
        UsageError: a number that the method cannot use, ``out`` holds something else, or another command writes to it.
    """
    refuse_impossible(methods.load(method), config)
    refuse_unknown(around.log_to)
    around = around.settled()
    identity = {
        "verb": verb, "method": method, "seed": around.seed, "precision": around.precision, "config": flat(config),
    }  # fmt: skip
    run, data = _begin(out, identity, around, open_data, getattr(methods.load(method), "ANYHOW", ()))
    told = f"{config.steps} steps, seed {around.seed}, on {around.device} in {around.precision}"
    run.say(f"{verb}: {method}, {told}, into {out}")
    names = around.log_to if rank_and_world()[0] == 0 else ()
    described = {**flat(config), "verb": verb, "method": method, "seed": around.seed}
    with run.alone():
        with opened_loggers(names, run, described) as run.loggers:
            trained = [_train(arm, run.child(arm.folder) if arm.folder else run, out) for arm in arms(data)]
        if rank_and_world()[0] == 0 and (any(trained) or not all((out / name).is_file() for name in ENDING)):
            conclude(run)
            from segue.launch.card import write_card
            from segue.report import write_report

            write_report(out)
            write_card(out)
    if rank_and_world()[0] == 0:
        run.say(f"model: {out / 'model'}   report: {out / REPORT}")
    return out


def _begin(
    out: Path, identity: dict[str, Any], around: Surroundings, open_data: Callable[[], D], anyhow: Sequence[str]
) -> tuple[Run, D]:
    """Claims the folder and opens the data: the run, which has written nothing yet, and what it learns from."""
    tuned = tune(around.device)
    only_first(lambda: claim_folder(out, identity, anyhow))
    data = open_data()
    records = describe_run(identity, data, around.command, tuned, around.device)
    only_first(lambda: refuse_changed(out, records["run.json"], data.account()["root"]))
    run = Run(
        out, seed=around.seed, device=around.device, precision=around.precision, workers=around.workers,
        quiet=around.quiet, shard=around.shard, records=records,
    )  # fmt: skip
    if around.shard and rank_and_world()[1] == 1:
        run.say("warning: --shard changes nothing in one process; torchrun starts several (docs/many_machines.md)")
    for line in data.lines():
        run.say(line)
    return run, data


def _train(arm: Arm[Any], run: Run, out: Path) -> bool:
    """Trains one arm of the run in ``out``, measures and saves it, unless that was done before; whether it was not."""
    if (run.out / "evaluation.json").is_file():
        run.say(f"{arm.name}: finished before")
        return False
    run.clock = Clock()
    model = methods.load(arm.method).train(arm.config, run, arm.data)

    def finish() -> None:
        (out / REPORT).unlink(missing_ok=True)  # it lacks this arm: a run that is cut before the next one writes it
        _finish(arm, model.eval(), run, run.clock.seconds())

    only_first(finish)
    return True


def _finish(arm: Arm[Any], model: Saved, run: Run, seconds: float) -> None:
    """Measures and saves what a method gave."""
    measured = arm.measure(model)
    scores = measured.scores() if measured else {}
    finite = {name: value for name, value in scores.items() if math.isfinite(value)}
    save_model(model, run.out / "model", method=arm.method, metrics=finite)
    written = {
        "method": arm.name,
        "seconds": seconds,
        "split": "validation",
        **({"settings": flat(arm.config)} if arm.folder else {}),  # those of the run itself are in run.json
        **(measured.plain() if measured else {}),
    }
    write_metrics(run)
    write_atomically(run.out / "evaluation.json", json.dumps(written).encode())
    told = f"validation {measured.line()}" if measured else "no validation images, nothing is claimed of its accuracy"
    run.say(f"{arm.name}: {told}; trained for {seconds:.0f} s")


def write_metrics(run: Run) -> None:
    """``metrics.csv`` from the log: one row a number, with its stage and step."""
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(("stage", "step", "name", "value"))
    for line in run.read_log():
        for name, value in line.items():
            if name not in ("stage", "step", "seconds"):
                writer.writerow((line["stage"], line["step"], name, value))
    write_atomically(run.out / "metrics.csv", table.getvalue().encode())
