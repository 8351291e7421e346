"""What several experiments do: sets at a fraction of their size, and Segue's commands in processes of their own."""

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev

from PIL import Image

from segue.starting import start_of

KINDS = {"images": Image.Resampling.BOX, "labels": Image.Resampling.NEAREST, "instances": Image.Resampling.NEAREST}


def shrunk(source: Path, target: Path, factor: int) -> Path:
    """A copy of a canonical set with sides divided by ``factor``, unless it is there; with 1 the set itself.

    Images are averaged, labels and instances taken by nearest neighbour.
    """
    if factor == 1:
        return source
    if (target / "dataset.json").is_file():
        return target
    for kind, resample in KINDS.items():
        if not (source / kind).is_dir():
            continue
        (target / kind).mkdir(parents=True, exist_ok=True)
        for path in sorted((source / kind).iterdir()):
            with Image.open(path) as image:
                small = image.resize((image.width // factor, image.height // factor), resample)
                small.save(target / kind / path.name, **({"quality": 95} if path.suffix in (".jpg", ".jpeg") else {}))
    shutil.copy(source / "dataset.json", target / "dataset.json")
    return target


def refuse_chance(init: str, *encoders: str) -> None:
    """Ends the script where ``auto`` finds no weights of an encoder: its figures would be those of random ones."""
    for encoder in encoders:
        if init == "auto" and start_of(init, encoder).content == "random":
            raise SystemExit(f"no weights of {encoder} at hand: set SEGUE_MIRROR, or name them by --init")


def segue(log: Path, *arguments: object) -> str:
    """Runs a command of Segue's; what it prints, its progress going to a file."""
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as said:
        command = [sys.executable, "-m", "segue", *map(str, arguments)]
        done = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, stderr=said, text=True)
    return done.stdout


def spread(values: Iterable[float]) -> str:
    """Mean ± standard deviation (number of seeds) of what is there; empty of nothing."""
    there = [value for value in values if not math.isnan(value)]
    if not there:
        return ""
    return f"{mean(there):.1f} ± {stdev(there) if len(there) > 1 else 0:.1f} ({len(there)})"


def difference(values: Sequence[float]) -> str:
    """Mean of paired differences ± its standard error; empty of nothing."""
    if not values:
        return ""
    return f"{mean(values):+.1f} ± {stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0:.1f}"
