"""How every training verb runs: the folder is claimed, the data opened and described, each arm trained, measured and
saved, and the report written. What the verbs do differently is theirs: `segue.verbs`."""

import atexit
import contextlib
import csv
import io
import json
import math
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
import torch.distributed as dist
import yaml
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

import segue
from segue import methods
from segue.bounds import refuse_impossible
from segue.config import UsageError, did_you_mean, flat
from segue.data.fingerprint import fingerprint
from segue.engine import Run, only_first, rank_and_world, write_atomically
from segue.loggers import open_loggers, refuse_unknown
from segue.ranks import STEP, leave
from segue.records import run_data
from segue.tuning import tune
from segue.weights import Saved, save_model


class MethodData(Protocol):
    """What a verb opens for its methods."""

    def lines(self) -> list[str]:
        """What the command understood, for the person who waits."""

    def account(self) -> dict[str, Any]:
        """What goes into ``run.json`` and the report; used + dropped == found."""

    def files(self) -> Iterable[tuple[str, Sequence[Path | None]]]:
        """(name, files) of everything trained or validated on."""


class Scores(Protocol):
    """What was measured of a model, as `segue.evaluation.Measured`."""

    def scores(self) -> dict[str, float]:
        """Numbers by name; NaN where one is not defined."""

    def plain(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""

    def line(self) -> str:
        """The most important numbers in words."""


D = TypeVar("D", bound=MethodData)


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What every training verb takes that is no field of a method.

    Args:
        seed: of everything random.
        device: ``auto``, ``cpu``, ``cuda``.
        precision: ``auto``, ``fp32`` or ``bf16``.
        workers: processes that load data; -1 takes 0 on a CPU and 4 on a GPU.
        quiet: print nothing.
        shard: divide parameters, gradients and optimiser state over the processes that ``torchrun`` started.
        log_to: what each line of the log is written to besides: ``tensorboard``, ``wandb``, ``mlflow``.
        command: the words of the command line; empty from Python.
    """

    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    workers: int = -1
    quiet: bool = False
    shard: bool = False
    log_to: Sequence[str] = ()
    command: tuple[str, ...] = ()

    def settled(self) -> "Surroundings":
        """The same with every ``auto`` decided; joins the processes that ``torchrun`` started."""
        device = join_processes(pick_device(self.device))
        workers = self.workers if self.workers >= 0 else (4 if device.startswith("cuda") else 0)
        return replace(self, device=device, precision=pick_precision(self.precision, device), workers=workers)


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


def pick_device(name: str) -> str:
    """``auto`` as cuda or cpu; another name as it is.

    Raises:
        UsageError: no such device here.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        here = "cpu, cuda" if torch.cuda.is_available() else "cpu"
        raise UsageError(f"--device {name}: {str(error).splitlines()[0]}; here is: {here}") from None
    return name


def pick_precision(name: str, device: str) -> str:
    """``auto`` as bf16 where the hardware multiplies it, else fp32.

    Raises:
        UsageError: no such precision.
    """
    if name not in ("auto", "fp32", "bf16"):
        raise UsageError(f"--precision {name}: give auto, fp32 or bf16")
    if name != "auto":
        return name
    if device.startswith("cuda"):
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"


def join_processes(device: str) -> str:
    """Joins the processes that ``torchrun`` started, if it did; the device of this one."""
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():
        return device
    if device.startswith("cuda"):
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    backend = "nccl" if device.startswith("cuda") else "gloo"
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and os.environ.get("GROUP_WORLD_SIZE") == "1":
        # On one machine torchrun keeps its store when it starts the processes again: they would read the addresses of
        # those before. On several each counts its own restarts: there docs/many_machines.md sets a variable of torch.
        store, rank, world = next(iter(rendezvous("env://")))
        own = PrefixStore(f"segue_{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
        dist.init_process_group(backend, store=own, rank=rank, world_size=world, timeout=STEP)
    else:
        dist.init_process_group(backend, timeout=STEP)
    atexit.register(leave)
    return device


def refuse_several(command: str, instead: str) -> None:
    """Refuses several processes for a command that one process does; the first of them says so.

    Args:
        command: of the command line.
        instead: what to do.

    Raises:
        SystemExit: in the others.
        UsageError: ``torchrun``, or what is like it, started several; they need not have been joined yet.
    """
    world = max(int(os.environ.get("WORLD_SIZE", "1")), rank_and_world()[1])
    if world > 1 and os.environ.get("RANK", "0") != "0":
        raise SystemExit(2)
    if world > 1:
        raise UsageError(f"segue {command} does not run in several processes ({world} were started): {instead}")


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
        UsageError: a number that the method cannot use, or ``out`` holds something else.
    """
    refuse_impossible(methods.load(method), config)
    refuse_unknown(around.log_to)
    around = around.settled()
    tuned = tune(around.device)
    identity = {
        "verb": verb, "method": method, "seed": around.seed, "precision": around.precision, "config": flat(config),
    }  # fmt: skip
    only_first(lambda: claim_folder(out, identity))
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
    told = f"{config.steps} steps, seed {around.seed}, on {around.device} in {around.precision}"
    run.say(f"{verb}: {method}, {told}, into {out}")
    names = around.log_to if rank_and_world()[0] == 0 else ()
    run.loggers = open_loggers(
        names, out, {**flat(config), "verb": verb, "method": method, "seed": around.seed}, run.say
    )
    with contextlib.closing(run.loggers):
        trained = [_train(arm, run.child(arm.folder) if arm.folder else run) for arm in arms(data)]
    if rank_and_world()[0] == 0:
        report = out / "report.html"
        if any(trained) or not report.is_file():
            conclude(run)
            from segue.card import write_card
            from segue.report import write_report

            write_report(out)
            write_card(out)
        run.say(f"model: {out / 'model'}   report: {report}")
    return out


def _train(arm: Arm[Any], run: Run) -> bool:
    """Trains one arm, measures and saves it, unless that was done before; whether it was not."""
    if (run.out / "evaluation.json").is_file():
        run.say(f"{arm.name}: finished before")
        return False
    started = time.monotonic()
    model = methods.load(arm.method).train(arm.config, run, arm.data)
    only_first(lambda: _finish(arm, model.eval(), run, time.monotonic() - started))
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
        **(measured.plain() if measured else {}),
    }
    write_metrics(run)
    write_atomically(run.out / "evaluation.json", json.dumps(written).encode())
    told = f"validation {measured.line()}" if measured else "no validation images, nothing is claimed of its accuracy"
    run.say(f"{arm.name}: {told}; trained for {seconds:.0f} s")


def with_seeds(run: Callable[[Path, Surroundings], Path], out: Path, around: Surroundings, seeds: int) -> Path:
    """Runs a training into ``out``, or with several seeds into folders of it, beside what they say together.

    Args:
        run: gives the folder of a run from where it is to lie and its surroundings.
        out: the run folder, or that of all seeds.
        around: its seed is the first.
        seeds: how many.

    Raises:
        UsageError: fewer than one, or ``out`` holds something else.
    """
    if seeds < 1:
        raise UsageError(f"--seeds {seeds}: give at least 1")
    if seeds == 1:
        return run(out, around)
    own = ("seed_", "seeds.")
    if out.exists() and (not out.is_dir() or any(not path.name.startswith(own) for path in out.iterdir())):
        raise UsageError(f"--out {out} is not empty and holds no runs of several seeds; name another folder")
    folders = [
        run(out / f"seed_{seed}", replace(around, seed=seed)) for seed in range(around.seed, around.seed + seeds)
    ]

    def conclude() -> None:
        from segue.report.seeds import write_seeds

        told = write_seeds(out, folders)
        if not around.quiet:
            print(f"{told}\nreport: {out / 'seeds.html'}", file=sys.stderr)  # noqa: T201

    only_first(conclude)
    return out


def claim_folder(out: Path, identity: dict[str, Any]) -> None:
    """Makes sure that ``out`` is free or holds this very run.

    Raises:
        UsageError: it holds something else; the message says what differs.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; name a folder")
    if not out.exists() or not any(out.iterdir()):
        return
    record = out / "run.json"
    if not record.is_file():
        raise UsageError(f"--out {out} is not empty and holds no run of Segue; name another folder")
    try:
        known = json.loads(record.read_text(encoding="utf-8")).get("identity", {})
        is_sound = isinstance(known, dict) and isinstance(known.get("config", {}), dict)
    except (ValueError, AttributeError, RecursionError):
        is_sound = False
    if not is_sound:
        raise UsageError(f"{record} is damaged; name another folder for --out") from None
    if known != identity:
        differs = sorted(
            f"{key}: {before!r} there, {now!r} here" for key, before, now in _pairs(known, identity) if before != now
        )
        raise UsageError(f"--out {out} holds another run ({'; '.join(differs[:3])}); name another folder")


def refuse_changed(out: Path, described: bytes, root: object) -> None:
    """Refuses to go on with a run whose data is not what it was: it would not end as it would have.

    Args:
        out: the run folder.
        described: ``run.json`` as it would be written now.
        root: the data, for the message.

    Raises:
        UsageError: an image, a mask or a list has changed.
    """
    before = run_data(str(out)).get("fingerprint")
    if before and before != json.loads(described)["data"]["fingerprint"]:
        raise UsageError(
            f"--out {out} holds a run on other data: images, masks or lists of {root} have changed since it began; "
            "bring them back, or name another folder"
        )


def _pairs(known: dict[str, Any], identity: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(name, value there, value here) of everything two identities state, config fields one by one."""
    there = {**{k: v for k, v in known.items() if k != "config"}, **known.get("config", {})}
    here = {**{k: v for k, v in identity.items() if k != "config"}, **identity["config"]}
    return [(key, there.get(key), here.get(key)) for key in {*there, *here}]


def describe_run(
    identity: dict[str, Any], data: MethodData, command: Sequence[str], tuned: Sequence[str], device: str
) -> dict[str, bytes]:
    """``run.json`` and ``config.yaml``."""
    described = {
        "identity": identity,
        "command": shlex.join(["segue", *command]) if command else f"segue.{identity['verb']}(...) from Python",
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": versions(),
        "git": _git(),
        "device": device,
        "tuning": list(tuned),
        "data": {**data.account(), "fingerprint": fingerprint(data.files())},
    }
    return {
        "config.yaml": yaml.safe_dump(identity["config"], sort_keys=False).encode(),
        "run.json": json.dumps(described, indent=1).encode(),
    }


def versions() -> dict[str, str]:
    """What a run depends on."""
    from importlib.metadata import version

    names = ("torch", "torchvision", "timm", "segmentation-models-pytorch", "numpy", "pillow")
    return {"segue": segue.__version__, "python": sys.version.split()[0], **{name: version(name) for name in names}}


def _git() -> str:
    """The commit of the folder Segue was started in, ``+`` behind it where files differ; empty without git."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
        dirty = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


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
