"""The verbs as functions: what the command line and Python both call. A verb opens its data, says what it understood,
keeps the run folder, hands over to a method, and evaluates and saves what comes back."""

import csv
import io
import json
import math
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml

import segue
from segue import methods
from segue.config import UsageError, did_you_mean, flat
from segue.data.decoder import Decoder
from segue.data.images import Whole
from segue.data.layouts import open_listing
from segue.data.sample import DataError
from segue.data.training import TrainingData, open_training
from segue.engine import Run, only_first, rank_and_world, write_atomically
from segue.evaluation import Measured, measure
from segue.prediction import Prediction, find_images
from segue.prediction import predict as run_over
from segue.tuning import tune
from segue.weights import Model, load_model, save_model

BASELINE = "baseline"


def pick_device(name: str) -> str:
    """``auto`` as cuda, mps or cpu; another name as it is.

    Raises:
        UsageError: no such device here.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name}: {str(error).splitlines()[0]}; here is: cpu") from None
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
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return device


def train(
    data: str,
    out: str | Path,
    *,
    method: str = "pixel_contrast",
    compare: bool = False,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    workers: int = -1,
    quiet: bool = False,
    **fields: Any,
) -> Path:
    """Trains a segmenter; the run folder.

    Args:
        data: folder of the labelled set, or ``FOLDER:split``.
        out: the run folder; a run of the same settings in it goes on where it stopped.
        method: one of ``segue.methods.names("train")``.
        compare: also train ``supervised`` with the same steps and seed, in ``out/baseline``.
        seed: of everything random.
        device: ``auto``, ``cpu``, ``cuda``.
        precision: ``auto``, ``fp32`` or ``bf16``.
        workers: processes that load data; -1 takes 0 on a CPU and 4 on a GPU.
        quiet: print nothing.
        fields: any field of the method's ``Config``, by its own name.

    Raises:
        DataError: a fault of the data.
        UsageError: an unknown method, field or device, or ``out`` holds something else.
    """
    from segue.config import build, leaves

    known = leaves(method_module(method).Config)
    unknown = [name for name in fields if name not in known]
    if unknown:
        raise UsageError(f"{method} has no field {unknown[0]!r}{did_you_mean(unknown[0], set(known))}")
    config = build(method_module(method).Config, {**fields, "data": data})
    return run_training(
        method,
        config,
        Path(out),
        compare=compare,
        seed=seed,
        device=device,
        precision=precision,
        workers=workers,
        quiet=quiet,
    )


def method_module(name: str, verb: str = "train") -> Any:
    """The module of a method that serves ``verb``.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in methods.names(verb):
        close = did_you_mean(name, methods.names(verb))
        raise UsageError(f"unknown method {name!r}{close} (known: {', '.join(methods.names(verb))})")
    return methods.load(name)


def run_training(
    method: str,
    config: Any,
    out: Path,
    *,
    compare: bool,
    seed: int,
    device: str,
    precision: str,
    workers: int,
    quiet: bool = False,
    command: Sequence[str] = (),
) -> Path:
    """What `train` does, from a built config."""
    device = join_processes(pick_device(device))
    tuned = tune(device)
    precision = pick_precision(precision, device)
    _validate(config)
    identity = {"verb": "train", "method": method, "seed": seed, "precision": precision, "config": flat(config)}
    only_first(lambda: claim_folder(out, identity))
    data = open_training(config.data, seed=seed)
    workers = workers if workers >= 0 else (4 if device.startswith("cuda") else 0)
    records = describe_run(identity, data, command, tuned, device)
    run = Run(out, seed=seed, device=device, precision=precision, workers=workers, quiet=quiet, records=records)
    for line in data.lines():
        run.say(line)
    run.say(f"training: {method}, {config.steps} steps, seed {seed}, on {device} in {precision}, into {out}")
    arms = [(method, config, run)]
    if compare and method != "supervised":
        arms.append(("supervised", control(config), run.child(BASELINE)))
    trained = False
    for name, settings, arm in arms:
        if (arm.out / "evaluation.json").is_file():
            run.say(f"{name}: finished before")
            continue
        trained = True
        started = time.monotonic()
        model = methods.load(name).train(settings, arm, data)
        if rank_and_world()[0] == 0:
            _finish(name, model, arm, data, time.monotonic() - started)
    if rank_and_world()[0] == 0:
        report = out / "report.html"
        if trained or not report.is_file():
            from segue.report import write_report

            write_report(out)
        run.say(f"model: {out / 'model'}   report: {report}")
    return out


def control(config: Any) -> Any:
    """The plain training that a method is measured against: same data, network, views and number of steps."""
    shared = {"data": config.data, "network": config.network, "views": config.views, "steps": config.steps}
    return methods.load("supervised").Config(**shared, evaluate_every=config.evaluate_every)


def _validate(config: Any) -> None:
    """Refuses numbers that no method can use."""
    views = config.views
    if config.steps < 1:
        raise UsageError(f"--steps {config.steps}: give at least 1")
    if views.crop < 32 or views.crop % 16:
        raise UsageError(f"--crop {views.crop}: give a multiple of 16, at least 32")
    if views.batch < 2:
        raise UsageError(f"--batch {views.batch}: give at least 2; batch normalisation needs them")
    if views.accumulate < 1:
        raise UsageError(f"--accumulate {views.accumulate}: give at least 1")
    if len(views.scale) != 2 or not 0 < views.scale[0] <= views.scale[1]:
        raise UsageError(f"--scale {list(views.scale)}: give a smallest and a largest factor, as [0.5,2]")


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
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError):
        raise UsageError(f"{record} is damaged; name another folder for --out") from None
    if known != identity:
        differs = sorted(
            f"{key}: {before!r} there, {now!r} here" for key, before, now in _pairs(known, identity) if before != now
        )
        raise UsageError(f"--out {out} holds another run ({'; '.join(differs[:3])}); name another folder")


def _pairs(known: dict[str, Any], identity: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(name, value there, value here) of everything two identities state, config fields one by one."""
    there = {**{k: v for k, v in known.items() if k != "config"}, **known.get("config", {})}
    here = {**{k: v for k, v in identity.items() if k != "config"}, **identity["config"]}
    return [(key, there.get(key), here.get(key)) for key in {*there, *here}]


def describe_run(
    identity: dict[str, Any], data: TrainingData, command: Sequence[str], tuned: Sequence[str], device: str
) -> dict[str, bytes]:
    """``run.json`` and ``config.yaml``."""
    described = {
        "identity": identity,
        "command": shlex.join(["segue", *command]) if command else "segue.train(...) from Python",
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": versions(),
        "git": _git(),
        "device": device,
        "tuning": list(tuned),
        "data": {**data.account(), "fingerprint": fingerprint(data)},
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


def fingerprint(data: TrainingData) -> str:
    """A number that changes with any byte of any file used to train or validate."""
    import hashlib

    digest = hashlib.sha256()
    for pair in (*data.labelled, *data.unlabelled, *data.val):
        digest.update(pair.name.encode())
        for path in (pair.image, pair.mask):
            if path is not None:
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _finish(name: str, model: Model, run: Run, data: TrainingData, seconds: float) -> None:
    """Evaluates and saves what a method gave."""
    model.eval()
    val = Whole(data.val, data.decoder)
    measured = measure(model, val, data.classes) if data.val else None
    scores = measured.scores() if measured else {}
    save_model(
        model, run.out / "model", method=name, metrics={name: v for name, v in scores.items() if math.isfinite(v)}
    )
    written = {"method": name, "seconds": seconds, "split": "validation", **(measured.plain() if measured else {})}
    write_metrics(run)
    write_atomically(run.out / "evaluation.json", json.dumps(written).encode())
    if measured:
        mean = f"mIoU {100 * scores['miou']:.1f} over {measured.present()} of {len(data.classes)} classes"
        run.say(f"{name}: {mean} on {len(data.val)} validation images, after {seconds:.0f} s")
    else:
        run.say(f"{name}: trained for {seconds:.0f} s; no validation images, so nothing is claimed of its accuracy")


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


def evaluate(
    model: str | Path,
    data: str = "",
    *,
    split: str = "val",
    layout: str = "auto",
    mapping: str = "",
    device: str = "auto",
) -> Measured:
    """Scores of a saved model on a labelled split.

    Args:
        model: a run or model folder, or ``hf:owner/name``.
        data: the set's folder; that of the run if absent.
        split: which part of it.
        layout: how the set lies on disk.
        mapping: stored mask values to map, as ``77:ignore``.
        device: ``auto``, ``cpu``, ``cuda``.

    Raises:
        DataError: no model, no such split, no masks, or classes that are not the model's.
    """
    from segue.data.training import parse_map

    device = pick_device(device)
    tune(device)
    network = load_model(str(model), device=device)
    if not data:
        record = Path(model) / "run.json"
        if not record.is_file():
            raise DataError(f"{model} does not say what it was trained on; name the data set: --data FOLDER")
        trained = json.loads(record.read_text(encoding="utf-8"))["identity"]["config"]
        data, layout, mapping = trained["data"], trained["layout"], mapping or trained["map"]
    listing = open_listing(data, layout)
    listing = listing.extended(parse_map(mapping, listing))
    if listing.classes != network.spec.classes:
        raise DataError(
            f"{model} knows the classes {', '.join(network.spec.classes)}; "
            f"{data} has {', '.join(listing.classes)}: the same names in the same order are needed"
        )
    name = split if split in listing.splits or len(listing.splits) > 1 else next(iter(listing.splits))
    pairs = tuple(pair for pair in listing.split(name) if pair.mask is not None)
    if not pairs:
        raise DataError(f"split {name!r} of {data} has no mask to compare with")
    return measure(network, Whole(pairs, Decoder.of(listing)), listing.classes)


def predict(model: str | Path, images: Sequence[str | Path], *, device: str = "auto") -> Iterator[Prediction]:
    """What a saved model says of pictures, one at a time.

    Args:
        model: a run or model folder, or ``hf:owner/name``.
        images: files, folders or globs.
        device: ``auto``, ``cpu``, ``cuda``.

    Raises:
        DataError: no model, no such picture, or one that cannot be read.
    """
    device = pick_device(device)
    tune(device)
    return run_over(load_model(str(model), device=device), find_images([str(image) for image in images]))
