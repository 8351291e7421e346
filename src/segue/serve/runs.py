"""The runs beneath a folder: what each is, its scores, and its curves as they are logged.

The folder is named on the command line. A request names a run by its number in a table that is made here.
"""

import asyncio
import json
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segue.data.finding import printable
from segue.errors import DataError
from segue.records import BASELINE, kept_part, record_of
from segue.report.arm import Arm, run_file
from segue.runs.folder import Run

DEEPEST = 6  # folders below the one that is named
MOST = 500  # runs, and a hundred times as many folders, that are looked at
POINTS = 400  # of a curve; more are thinned out
LARGEST = 256 << 20  # bytes of a log that curves are drawn from
TAIL = 1 << 16  # bytes at the end of a log that hold its last line
HEADLINES = ("miou", "pq")  # the score that stands for a run: the first of these that it has


@dataclass
class RunList:
    """The runs beneath ``root``.

    Args:
        root: as it was named.
    """

    root: Path

    def __post_init__(self) -> None:
        self.table: list[Path] = []
        self.is_cut = False
        self.finding = threading.Lock()  # two that look at the same time would each add what is new
        self.find()

    def find(self) -> None:
        """Adds runs that are new; the numbers of the others stay."""
        known, looked = set(self.table), 0
        for folder, below, files in os.walk(self.root):
            path, looked = Path(folder), looked + 1
            deep = len(path.relative_to(self.root).parts)
            below[:] = [] if deep >= DEEPEST else sorted(name for name in below if not name.startswith("."))
            is_run = "run.json" in files or (path.name == BASELINE and "log.jsonl" in files)
            if is_run and path not in known:
                self.table.append(path)
            self.is_cut = len(self.table) > MOST or looked >= 100 * MOST
            if self.is_cut:
                del self.table[MOST:]
                return

    def listing(self) -> dict[str, Any]:
        """Every run, the one started last first."""
        with self.finding:
            self.find()
            count = len(self.table)
        rows = [self.row(number) for number in range(count)]
        rows.sort(key=lambda row: str(row["started"]), reverse=True)
        return {"root": printable(str(self.root)), "runs": rows, "is_cut": self.is_cut, "most": MOST}

    def row(self, number: int) -> dict[str, Any]:
        """What is known of a run; ``fault`` says why not more."""
        path = self.table[number]
        name = path.relative_to(self.root).as_posix() if path != self.root else path.resolve().name
        row: dict[str, Any] = {
            "run": number, "name": printable(name), "verb": "", "method": "", "seed": None,
            "started": "", "command": "", "score": None, "scores": {}, "seconds": None, "is_finished": False, "at": "",
            "report": "", "fault": "",
        }  # fmt: skip
        try:
            record = run_file(record_of(str(path)) or path / "run.json")
            row |= _described(record)
            if (path / "evaluation.json").is_file():
                row |= _measured(run_file(kept_part(path) / "evaluation.json"))
            row["is_finished"] = row["is_finished"] or (path / "model" / "model.yaml").is_file()
            row["at"] = _last(path / "log.jsonl")
        except (DataError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            why = str(error) if isinstance(error, DataError) else f"{path} is no sound run: {error}"
            row["fault"] = printable(why)
        if (path / "report.html").is_file():
            row["report"] = printable(str(path / "report.html"))
        return row

    def curves(self, number: int) -> dict[str, Any]:
        """(step, value) of everything that was logged, by name and stage; steps count on from stage to stage.

        Raises:
            DataError: the log is damaged or too large.
        """
        path = self.table[number]
        log = path / "log.jsonl"
        if log.is_file() and log.stat().st_size > LARGEST:
            raise DataError(f"{log} has more than {LARGEST >> 20} MB; too much to draw here")
        try:
            arm = Arm("method", path.name, path, {}, Run(path, quiet=True).read_log())
            stages = {printable(str(name)): start for name, (start, _) in arm.stages().items()}
            names = dict.fromkeys(k for line in arm.log for k, v in line.items() if type(v) in (int, float))
            for name in ("step", "seconds"):
                names.pop(name, None)
            curves = {printable(name): [_thinned(points) for points in arm.trace(name)] for name in names}
        except (ValueError, TypeError, KeyError, AttributeError, UnicodeDecodeError) as error:
            raise DataError(f"{log} is damaged: {error}") from None
        return {"run": number, "stages": stages, "curves": {name: found for name, found in curves.items() if found}}


def _described(record: dict[str, Any]) -> dict[str, Any]:
    """What run.json says."""
    identity = record["identity"]
    told = {"verb": identity["verb"], "method": identity["method"], "command": record["command"]}
    texts = {key: printable(str(value)) for key, value in {**told, "started": record["started"]}.items()}
    return {**texts, "seed": identity["seed"] if isinstance(identity["seed"], int) else None}


def _measured(evaluation: dict[str, Any]) -> dict[str, Any]:
    """What evaluation.json says: general scores in [0, 1], and the one that stands for the run."""
    given = evaluation.get("scores") or {}
    scores = {printable(k): v for k, v in given.items() if "/" not in k and type(v) in (int, float) and 0 <= v <= 1}
    score = next(([name, scores[name]] for name in HEADLINES if name in scores), None)
    method = printable(str(evaluation["method"]))
    seconds = evaluation.get("seconds")
    is_time = isinstance(seconds, int | float) and 0 <= seconds < 1e9
    told = {"method": method, "scores": scores, "score": score, "is_finished": True}
    return {**told, "seconds": seconds if is_time else None}


def _last(log: Path) -> str:
    """``STAGE STEP`` of the last whole line of a log; empty where there is none."""
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL))
        lines = file.read().split(b"\n")[:-1]
    if not lines:
        return ""
    line = json.loads(lines[-1])
    return printable(f"{line['stage']} {line['step']}")


def _thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most about `POINTS` of them, evenly, the last one always."""
    every = -(-len(points) // POINTS)
    kept = points[::every]
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def add_runs(app: Any, runs: RunList) -> None:
    """``GET /runs`` and, of one run by its number, ``GET /runs/curves``."""
    from fastapi.responses import JSONResponse

    async def listing() -> dict[str, Any]:
        return await asyncio.to_thread(runs.listing)

    async def curves(run: int) -> Any:
        if not 0 <= run < len(runs.table):
            return JSONResponse({"error": "no such run"}, 404)
        try:
            return JSONResponse(await asyncio.to_thread(runs.curves, run))
        except DataError as error:
            return JSONResponse({"error": printable(str(error))}, 404)

    app.add_api_route("/runs", listing, methods=["GET"])
    app.add_api_route("/runs/curves", curves, methods=["GET"])
