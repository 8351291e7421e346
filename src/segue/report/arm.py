"""One training of a run, as its folder tells it."""

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segue.engine import Run
from segue.errors import DataError
from segue.metrics import Confusion
from segue.records import SEARCH, expecting, read_json


@dataclass(frozen=True)
class Arm:
    """One training of the run, as its folder tells it.

    Args:
        key: ``method`` or ``baseline``; names its ink.
        title: the method's name.
        folder: of this training.
        evaluation: what evaluation.json holds.
        log: the lines of log.jsonl that count steps.
    """

    key: str
    title: str
    folder: Path
    evaluation: dict[str, Any]
    log: list[dict[str, Any]]

    @classmethod
    def read(cls, key: str, folder: Path) -> "Arm":
        """The finished training in ``folder``."""
        path = folder / "evaluation.json"
        evaluation = run_file(path)
        with expecting(path, "the evaluation of a training"):
            steps = [line for line in Run(folder, quiet=True).read_log() if line["stage"] != SEARCH]
            return cls(key, evaluation["method"], folder, evaluation, steps)

    def score(self, name: str) -> float | None:
        """One of `Measured.scores`; None where it was not measured or is not defined."""
        value: float | None = self.evaluation.get("scores", {}).get(name)
        return value

    def confusion(self) -> Confusion:
        """Of the validation pixels; there must be scores."""
        counts = np.array(self.evaluation["confusion"], np.int64)
        confusion = Confusion(len(counts))
        confusion.counts = counts
        return confusion

    def stages(self) -> dict[str, tuple[int, int]]:
        """(steps of this arm before it, its own steps) of each stage, in the order they ran."""
        lengths: dict[str, int] = {}
        for line in self.log:
            lengths[line["stage"]] = max(lengths.get(line["stage"], 0), line["step"])
        starts = itertools.accumulate(lengths.values(), initial=0)
        return {stage: (start, steps) for start, (stage, steps) in zip(starts, lengths.items(), strict=False)}

    def trace(self, name: str) -> list[list[tuple[int, float]]]:
        """(step of the whole arm, value) of what was logged as ``name``, one list a stage; only what is finite."""
        found = []
        for stage, (start, _) in self.stages().items():
            lines = [line for line in self.log if line["stage"] == stage and "refused" not in line]
            points = [(start + line["step"], line[name]) for line in lines if math.isfinite(line.get(name, math.nan))]
            found += [points] if points else []
        return found


def run_file(path: Path) -> dict[str, Any]:
    """What a JSON file of a finished run holds.

    Raises:
        DataError: it is missing or damaged.
    """
    if not path.exists():
        if (path.parent.parent / path.name).is_file() and (path.parent / "model").is_dir():
            whole = path.parent.parent
            raise DataError(f"{path.parent} is one arm of the run {whole}: {whole / 'report.html'} compares them")
        raise DataError(f"{path} does not exist: a report needs a finished run")
    return read_json(path, "a file of a run")
