"""Several runs side by side on one offline page: settings that differ, scores, and validation curves."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segue.errors import DataError
from segue.records import expecting, kept_part
from segue.report.arm import Arm, run_file
from segue.report.plots import lines
from segue.text import page

GENERAL = ("miou", "accuracy", "mean_accuracy", "ece")


@dataclass(frozen=True)
class Entry:
    """One run.

    Args:
        name: its folder, as it was named.
        arm: what was trained; the plain training where the run's own model was rejected.
        record: its run.json.
    """

    name: str
    arm: Arm
    record: dict[str, Any]


def read_entries(runs: Sequence[str]) -> list[Entry]:
    """The finished runs.

    Raises:
        DataError: fewer than two, one twice, or one that is not finished.
    """
    if len(runs) < 2:
        raise DataError("segue compare needs two runs or more")
    if len({Path(run).resolve() for run in runs}) < len(runs):
        raise DataError("a run is named twice")
    return [Entry(run, Arm.read("method", kept_part(Path(run))), run_file(Path(run) / "run.json")) for run in runs]


def differing(entries: Sequence[Entry]) -> list[tuple[str, list[str]]]:
    """(setting, its value in each run) of every setting that is not the same in all."""
    flat = [{**e.record["identity"].get("config", {}), **_rest(e.record)} for e in entries]
    names = dict.fromkeys(name for settings in flat for name in settings)
    rows = [(name, [str(settings.get(name, "–")) for settings in flat]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def _rest(record: dict[str, Any]) -> dict[str, Any]:
    """What a run depends on beside its config."""
    identity = {name: value for name, value in record["identity"].items() if name != "config"}
    data = record["data"]
    trained = f"{data.get('labelled', '–')} labelled, {data.get('unlabelled', '–')} unlabelled"
    return {**identity, "images trained on": trained, "data fingerprint": str(data.get("fingerprint", ""))[:12]}


def validated_on(record: dict[str, Any]) -> tuple[object, ...]:
    """What tells apart the images that runs validated on, and their masks; all of its data in records without that."""
    data = record["data"]
    at = data.get("validation_at", {})
    if not at.get("digest"):
        return (data.get("fingerprint"),)
    return (*data.get("validation_names", ()), at["digest"], at.get("masks"), at.get("map"))


def score_rows(entries: Sequence[Entry]) -> list[tuple[str, list[float | None]]]:
    """(score, its value in each run): general ones first, then those of classes."""
    scores = [entry.arm.evaluation.get("scores", {}) for entry in entries]
    names = dict.fromkeys(name for found in scores for name in found)
    order = [*(n for n in GENERAL if n in names), *(n for n in names if n not in GENERAL)]
    return [(name, [found.get(name) for found in scores]) for name in order]


def best(name: str, values: Sequence[float | None]) -> int | None:
    """Which run has the best value; None where none stands out."""
    known = [(value, i) for i, value in enumerate(values) if value is not None]
    if len(known) < 2:
        return None
    top = (min if name == "ece" else max)(known)[0]
    places = [i for value, i in known if value == top]
    return places[0] if len(places) == 1 else None


def comparison_page(entries: Sequence[Entry]) -> str:
    """The page.

    Raises:
        DataError: a file of one of the runs does not hold what it should.
    """
    with expecting(Path(", ".join(entry.name for entry in entries)), "runs that can be compared"):
        return _page(entries)


def _page(entries: Sequence[Entry]) -> str:
    """The page."""
    series = {
        entry.name: [[step, 100 * value] for stage in entry.arm.trace("val/miou") for step, value in stage]
        for entry in entries
    }
    val = {validated_on(entry.record) for entry in entries}
    rows = [(name, values, best(name, values)) for name, values in score_rows(entries)]
    return page(
        Path(__file__).with_name("comparison.html.j2"),
        entries=entries, rows=rows, settings=differing(entries), is_same_val=len(val) == 1,
        curves=lines("step", "validation mIoU, %", series) if any(series.values()) else "",
    )  # fmt: skip
