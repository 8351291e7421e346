"""What several seeds of one training say together: means, spreads, and paired differences to the plain arm.

    (1)  interval  =  mean d  ±  t_{0.975, n-1} s / sqrt(n)

d are the differences of the n seeds, s is their standard deviation, t is Student's (*The Probable Error of a Mean*,
Biometrika 1908). It covers what the seed decides, which is the initial weights, the order, the augmentation, and which
images are labelled where a share is asked for; and, of a set without a validation split, which images are held out to
measure on, for each seed draws its own. Else it does not cover that other validation images would say something else.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from segue.disk import write_atomically
from segue.records import BASELINE
from segue.report.arm import Arm, run_file
from segue.report.comparison import validated_on
from segue.text import SCORES, page

MAIN = ("miou", "pq")  # the score that a method is judged by: the first that there is


@dataclass(frozen=True)
class Row:
    """One score, in [0, 1].

    Args:
        name: as of `Measured.scores`.
        values: of each arm, the method first, one of each seed in which every arm has it.
    """

    name: str
    values: tuple[tuple[float, ...], ...]

    @property
    def seeds(self) -> int:
        """How many seeds count."""
        return len(self.values[0])

    def spread(self, arm: int) -> tuple[float, float]:
        """Mean and standard deviation of an arm; NaN where there are too few seeds."""
        values = self.values[arm]
        return (mean(values) if values else math.nan), (stdev(values) if len(values) > 1 else math.nan)

    @property
    def title(self) -> str:
        """Its name as people read it."""
        kind, _, of = self.name.partition("/")
        return f"{SCORES.get(kind, kind)} of {of}" if of else SCORES.get(kind, kind)

    @property
    def better(self) -> int:
        """With how many seeds the method is better than the plain arm: for a calibration error where it is less."""
        return sum(difference < 0 if self.name == "ece" else difference > 0 for difference in self.differences)

    @property
    def differences(self) -> list[float]:
        """The method less the plain arm, seed by seed; empty without that arm."""
        return [a - b for a, b in zip(*self.values, strict=True)] if len(self.values) > 1 else []

    def interval(self) -> tuple[float, float]:
        """Eq. 1 of the differences; NaN below two of them."""
        from scipy.stats import t

        found = self.differences
        if len(found) < 2:
            return math.nan, math.nan
        middle, half = mean(found), float(t.ppf(0.975, len(found) - 1)) * stdev(found) / math.sqrt(len(found))
        return middle - half, middle + half


def rows_of(runs: Sequence[Sequence[Arm]]) -> list[Row]:
    """A row for each score that the first run's method has; ``runs`` holds the arms of each seed, as many of each."""
    found = []
    for name in runs[0][0].evaluation.get("scores", {}):
        scores = [[arm.score(name) for arm in arms] for arms in runs]
        whole = [[value for value in row if value is not None] for row in scores if None not in row]
        found.append(Row(name, tuple(zip(*whole, strict=True)) if whole else ((),) * len(runs[0])))
    return found


def judged(rows: Sequence[Row]) -> Row | None:
    """The score that the method is judged by, None where nothing was measured."""
    return next((row for name in MAIN for row in rows if row.name == name and row.seeds), None)


def sentence(titles: Sequence[str], rows: Sequence[Row]) -> str:
    """What the seeds say of the main score, in words."""
    row = judged(rows)
    if row is None:
        return "Nothing was measured: there are no validation images."
    middle, deviation = row.spread(0)
    told = f"{titles[0]} reaches {row.title} {100 * middle:.1f}"
    told += f" ± {100 * deviation:.1f} % over {row.seeds} seeds" if row.seeds > 1 else " % with one seed"
    if not row.differences:
        return f"{told}."
    low, high = row.interval()
    told += f", {100 * mean(row.differences):+.1f} points against {titles[1]}"
    if row.seeds < 2:
        return f"{told}: one seed does not tell the two apart."
    told += f" (95 % interval {100 * low:+.1f} to {100 * high:+.1f}; better with {row.better} of {row.seeds})"
    return f"{told}: {'these seeds do not tell the two apart.' if low <= 0 <= high else 'that is more than chance.'}"


def write_seeds(out: Path, folders: Sequence[Path]) -> str:
    """Writes ``seeds.html`` and ``seeds.json`` into ``out``; what they say of the main score, in words.

    Args:
        out: the folder of all seeds.
        folders: a finished run of each.

    Raises:
        DataError: a run is not finished, or a file of one is damaged.
    """
    runs = [[Arm.read("method", folder), *_baseline(folder)] for folder in folders]
    runs = [arms[: min(map(len, runs))] for arms in runs]  # the plain arm counts where every seed has it
    titles, rows = [arm.title for arm in runs[0]], rows_of(runs)
    told = sentence(titles, rows)
    plain: dict[str, Any] = {
        "runs": [str(folder) for folder in folders],
        "arms": titles,
        "scores": {row.name: {title: list(row.values[i]) for i, title in enumerate(titles)} for row in rows},
        "differences": {row.name: _described(row) for row in rows if row.differences},
        "sentence": told,
    }
    write_atomically(out / "seeds.json", json.dumps(plain, indent=1).encode())
    records, main = [run_file(folder / "run.json") for folder in folders], judged(rows)
    each = [[arm.score(main.name) for arm in arms] if main else [] for arms in runs]
    seeds = [record["identity"]["seed"] for record in records]
    content = page(
        Path(__file__).with_name("seeds.html.j2"), titles=titles, rows=rows, told=told, main=main,
        runs=list(zip([folder.name for folder in folders], seeds, each, strict=True)),
        is_same_val=len({validated_on(record) for record in records}) == 1,
    )  # fmt: skip
    write_atomically(out / "seeds.html", content.encode())
    return told


def _baseline(folder: Path) -> list[Arm]:
    """The plain arm of a run, where it has one."""
    return [Arm.read(BASELINE, folder / BASELINE)] if (folder / BASELINE / "evaluation.json").is_file() else []


def _described(row: Row) -> dict[str, Any]:
    """Differences of a score, ready for JSON."""
    low, high = row.interval()
    return {"each": row.differences, "mean": mean(row.differences), "interval": [low, high] if row.seeds > 1 else None}
