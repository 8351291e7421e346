"""What an extended model lost and gained, and whether it may be released: the gate of ``segue extend``."""

import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

from segue.data.panoptic import ClassMaps, PanopticWhole
from segue.data.sample import IGNORE, Array
from segue.disk import write_atomically
from segue.evaluation import Measured, measure, none_for_nan
from segue.extension import Extension
from segue.metrics import nan_mean
from segue.models.mask_classifier import MaskClassifier
from segue.panoptic.evaluation import PanopticMeasured, measure_panoptic
from segue.runs.folder import Run
from segue.runs.sections import Block, write_headline, write_section
from segue.weights import AnyModel

DECISION = "decision.json"
Part = PanopticMeasured | Measured


@dataclass
class ExtensionMeasured:
    """What the extended model does, beside what the historic one did.

    Args:
        new: the extended model on the validation images of the new set.
        before, after: both models on the old set; None without one.
        new_before: the historic model on the new set, whose new objects are of no class that it knows; None of a
            semantic model.
        old: how many classes the historic model knew.
        classes: of the extended model.
        metric: ``pq`` or ``miou``.
    """

    new: Part | None
    before: Part | None
    after: Part | None
    old: int
    classes: tuple[str, ...]
    metric: str = "pq"
    new_before: Part | None = None

    def scores(self) -> dict[str, float]:
        """``pq_old_before``, ``pq_old``, ``pq_new``, ``pq``, ``pq/CLASS`` in [0, 1], or ``miou`` and ``iou/CLASS``.

        What was not measured is absent. ``pq``, ``miou`` and those of the classes are over both sets together. The two
        of the old classes are means over the same ones, those that the old set shows: another that one of the models
        sees there counts by the pixels that it takes from these alone.
        """
        found: dict[str, float] = {}
        if self.before and self.after:
            shown = in_truth(self.before)[: self.old]
            found[f"{self.metric}_old_before"] = nan_mean(by_class(self.before)[: self.old][shown])
            found[f"{self.metric}_old"] = nan_mean(by_class(self.after)[: self.old][shown])
        if self.new:
            found[f"{self.metric}_new"] = nan_mean(by_class(self.new)[self.old :])
        there = [part for part in (self.after, self.new) if part]
        if there:
            every = by_class(*there)
            found[self.metric] = nan_mean(every)
            short = self.metric.removeprefix("m")
            found |= {f"{short}/{name}": float(value) for name, value in zip(self.classes, every, strict=True)}
        return found

    def plain(self) -> dict[str, Any]:
        """Everything as JSON can hold it."""
        parts = {"new": self.new, "new_before": self.new_before, "before": self.before, "after": self.after}
        return {
            "classes": list(self.classes),
            "old": self.old,
            "metric": self.metric,
            "scores": {name: none_for_nan(value) for name, value in self.scores().items()},
            **{name: part.plain() for name, part in parts.items() if part},
        }

    def line(self) -> str:
        """The most important numbers in words."""
        scores, texts = self.scores(), {"_old_before": "old before", "_old": "old after", "_new": "new", "": "all"}
        shown = [
            f"{text} {100 * scores[f'{self.metric}{end}']:.1f}" for end, text in texts.items()
            if f"{self.metric}{end}" in scores
        ]  # fmt: skip
        return f"{NAMES[self.metric]} {', '.join(shown)}"


NAMES = {"pq": "PQ", "miou": "mIoU"}
COLUMNS = {
    "before": "Old set, before", "after": "Old set, after", "new_before": "New set, before", "new": "New set, after"
}  # fmt: skip


def by_class(first: Part, *others: Part) -> Array:
    """PQ or IoU of each class (K,) over what was measured, together; NaN where a class does not occur."""
    if isinstance(first, PanopticMeasured):
        quality = deepcopy(first.quality)
        for other in others:
            assert isinstance(other, PanopticMeasured)
            quality += other.quality
        return quality.by_class()["pq"]
    confusion = deepcopy(first.confusion)
    for other in others:
        assert isinstance(other, Measured)
        confusion.counts += other.confusion.counts
    return confusion.iou()


def in_truth(part: Part) -> Array:
    """Which classes the set that was measured on shows: bool (K,)."""
    shown: Array = (
        part.quality.hits + part.quality.missed if isinstance(part, PanopticMeasured) else part.confusion.counts.sum(1)
    )
    return shown > 0


def measure_extension(model: AnyModel, data: Extension) -> ExtensionMeasured:
    """Measures the extended model on both sets, and the historic one on the old set."""

    def run(network: AnyModel, whole: PanopticWhole) -> Part:
        if isinstance(network, MaskClassifier):
            return measure_panoptic(network, whole)
        return measure(network, ClassMaps(whole), network.spec.classes)

    val, base = data.training.val, data.base.to(next(model.parameters()).device).eval()
    new = run(model, PanopticWhole(val, data.known)) if val else None
    new_before = before = after = None
    if val and isinstance(base, MaskClassifier):
        count = len(base.spec.classes)
        others = {i: known if known == IGNORE else min(known, count) for i, known in data.known.labels.items()}
        new_before = measure_panoptic(base, PanopticWhole(val, replace(data.known, labels=others)), others=True)
    if data.keep:
        old = PanopticWhole(*data.keep)
        before, after = run(base, old), run(model, old)
    metric = "pq" if isinstance(model, MaskClassifier) else "miou"
    classes = model.spec.classes
    return ExtensionMeasured(new, before, after, len(base.spec.classes), classes, metric, new_before)


def conclude(run: Run, max_forget: float) -> None:
    """Decides on release, from what the run measured, and writes decision and report."""
    found = json.loads((run.out / "evaluation.json").read_text(encoding="utf-8"))
    decision = decide(found["scores"], max_forget)
    write_atomically(run.out / DECISION, json.dumps(decision).encode())
    write_headline(run, decision["reason"], is_warning=decision["release"] is not True)
    name = NAMES[found["metric"]]
    text = f"{name.removeprefix('m')} (%) of each class. On the old set, what the old model lacks counts as unknown"
    if "new_before" in found:
        text += ", which forgives it masks that spill over new objects. On the new set such pixels are wrong"
    shown = {part: title for part, title in COLUMNS.items() if part != "new_before" or part in found}
    table = {"head": ["Class", "Kind", *shown.values()], "rows": class_rows(found, tuple(shown))}
    blocks: list[Block] = [{"text": f"{text}."}, {"table": table}]
    write_section(run, "10_forgetting", "Old and new classes", blocks)
    run.say(decision["reason"])


def class_rows(found: dict[str, Any], parts: Sequence[str]) -> list[list[str]]:
    """Of each class: name, old or new, and its quality in each of the parts that were measured."""
    rows = []
    for i, name in enumerate(found["classes"]):
        key = f"{found['metric'].removeprefix('m')}/{name}"
        values = [found.get(part, {}).get("scores", {}).get(key) for part in parts]
        cells = ["–" if value is None else f"{100 * value:.1f}" for value in values]
        rows.append([name, "old" if i < found["old"] else "new", *cells])
    return rows


def decide(scores: dict[str, float | None], max_forget: float) -> dict[str, Any]:
    """Whether the extended model may be released: ``release`` (None where it cannot be said), numbers and a reason."""
    metric = "miou" if "miou_old_before" in scores else "pq"
    before, after, new = (scores.get(f"{metric}_{part}") for part in ("old_before", "old", "new"))
    told: dict[str, Any] = {"release": None, "forgotten": None, "max_forget": max_forget}
    if before is None or after is None:
        is_given = f"{metric}_old" in scores
        why = "give --keep-val with the old classes" if not is_given else "--keep-val shows none of the old classes"
        reason = f"Forgetting was not measured, so nothing is said of release: {why}."
        return {**told, "reason": reason}
    name = NAMES[metric]
    if before == 0:
        reason = f"the model found nothing of the old classes before ({name} 0), so what it forgets cannot be measured."
        return {**told, "release": False, "reason": f"not for release: {reason}"}
    told["forgotten"] = 100 * (before - after)
    told["release"] = told["forgotten"] <= max_forget + 1e-9  # a loss of just as much may be rounded up
    numbers = f"{name} of the old classes {100 * before:.1f} before, {100 * after:.1f} after"
    numbers += f"; {max_forget:g} points may go" + ("" if new is None else f"; of the new classes {100 * new:.1f}")
    numbers += ", so they were not learnt" if new == 0 else ""
    return {**told, "reason": f"{'Released' if told['release'] else 'not for release'}: {numbers}."}
