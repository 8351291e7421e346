"""New classes for a deployed model: the data of ``segue extend``, what is measured, and whether it may be released."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segue.config import Data
from segue.data.layouts import open_listing, split_address
from segue.data.listing import Listing, Pair
from segue.data.panoptic import Annotation, PanopticWhole, images_with, instance_path
from segue.data.sample import IGNORE, Color, DataError
from segue.data.training import TrainingData, open_training
from segue.evaluation import none_for_nan
from segue.models.mask_classifier import MaskClassifier
from segue.panoptic.evaluation import PanopticMeasured, measure_panoptic
from segue.panoptic.maps import PanopticQuality
from segue.run import Run, write_atomically
from segue.sections import write_headline, write_section
from segue.weights import load_panoptic, model_folder

DECISION = "decision.json"
WITHOUT = "without an object of a new class"


@dataclass(frozen=True)
class Extension:
    """What ``segue extend`` learns from.

    Args:
        base: the historic model.
        source: where it came from.
        training: the new set.
        labelled: its training pictures that show a new class.
        annotation: of the new set, for training: new classes alone, as ids of the extended model.
        known: of the new set, for validation: every class that the extended model knows.
        classes, colors: of the new classes.
        things: ids of the countable ones.
        keep: pictures of the old set, and their annotation.
    """

    base: MaskClassifier
    source: str
    training: TrainingData
    labelled: tuple[Pair, ...]
    annotation: Annotation
    known: Annotation
    classes: tuple[str, ...]
    colors: tuple[Color, ...]
    things: tuple[int, ...]
    keep: tuple[tuple[Pair, ...], Annotation] | None = None

    def lines(self) -> list[str]:
        """What the command understood, for the person who waits."""
        before = self.base.spec.classes
        dropped = len(self.training.labelled) - len(self.labelled)
        found = [
            f"model: {self.source}, {len(before)} classes: {', '.join(before)}",
            *self.training.lines(),
            f"new classes: {', '.join(f'{name} (id {len(before) + i})' for i, name in enumerate(self.classes))}",
        ]
        if dropped:
            found.append(f"note: {dropped} of {len(self.training.labelled)} training images are left out, {WITHOUT}")
        if self.keep is None:
            found.append(
                "warning: no --keep-val: what the model forgets is not measured, so nothing is said of release"
            )
        else:
            found.append(f"forgetting is measured on {len(self.keep[0])} images of {self.keep[1].listing.root}")
        return found

    def account(self) -> dict[str, Any]:
        """What goes into ``run.json`` and the report."""
        told = self.training.account()
        dropped = dict(self.training.dropped)
        if len(self.labelled) < len(self.training.labelled):
            dropped[WITHOUT] = len(self.training.labelled) - len(self.labelled)
        return {
            **told,
            "classes": [*self.base.spec.classes, *self.classes],
            "labelled": len(self.labelled),
            "labelled_names": [pair.name for pair in self.labelled],
            "dropped": dropped,
            "model": self.source,
            "old_validation": len(self.keep[0]) if self.keep else 0,
        }

    def files(self) -> Iterable[tuple[str, Sequence[Path | None]]]:
        """(name, files) of everything trained or validated on, the model among them."""
        folder = model_folder(self.source)
        yield "model", (folder / "model.safetensors", folder / "model.yaml")
        for pair in (*self.labelled, *self.training.unlabelled, *self.training.val):
            yield pair.name, (pair.image, pair.mask, instance_path(self.training.listing, pair))
        pairs, annotation = self.keep or ((), None)
        for pair in pairs:
            assert annotation is not None
            yield pair.name, (pair.image, pair.mask, instance_path(annotation.listing, pair))


def open_extension(
    model: str, data: Data, *, keep_val: str, new_classes: Sequence[str], by_region: bool, seed: int
) -> Extension:
    """Opens the model and both sets; classes are matched by their names.

    Raises:
        DataError: no panoptic model, a fault of a set, or nothing new to learn.
    """
    base = load_panoptic(model)
    training = open_training(data, seed=seed)
    # What it says of classes that only validation has: the model knows them.
    training = replace(training, warnings=tuple(found for found in training.warnings if found.code != "W115"))
    listing, old = training.listing, base.spec.classes
    fresh = tuple(new_classes) or tuple(name for name in listing.classes if name not in old)
    _refuse_names(fresh, listing, base, model)
    ids = {name: i for i, name in enumerate((*old, *fresh))}
    places = {i: ids.get(name, IGNORE) for i, name in enumerate(listing.classes)}
    _same_kind(base, listing)
    only_new = {i: index if index >= len(old) else IGNORE for i, index in places.items()}
    annotation, known = Annotation(listing, by_region, only_new), Annotation(listing, by_region, places)
    labelled = images_with(training.labelled, annotation, range(len(old), len(ids)))
    if not labelled:
        raise DataError(f"no training image of {listing.root} shows an object of {', '.join(fresh)}; label some")
    keep = _old_set(keep_val, base, by_region) if keep_val else None
    for pairs, of_them in ((training.val, known), *((keep,) if keep else ())):
        for pair in pairs:  # a fault is found before the training, not after it
            of_them.read(pair)
    chosen = [listing.classes.index(name) for name in fresh]
    return Extension(
        base=base,
        source=model,
        training=training,
        labelled=labelled,
        annotation=annotation,
        known=known,
        classes=fresh,
        colors=tuple(listing.colors[i] for i in chosen),
        things=tuple(ids[listing.classes[i]] for i in chosen if i in listing.things),
        keep=keep,
    )


def _refuse_names(fresh: Sequence[str], listing: Listing, base: MaskClassifier, model: str) -> None:
    """Refuses new classes that are none."""
    known = {name.casefold(): name for name in base.spec.classes}
    for name in fresh:
        if name.casefold() in known:
            said = known[name.casefold()]
            raise DataError(f"new class {name!r}: the model knows {said!r} already; rename it, or give --new-classes")
        if name not in listing.classes:
            has = ", ".join(listing.classes)
            raise DataError(f"--new-classes {name}: {listing.root} has no such class; it has {has}")
    if not fresh:
        has = ", ".join(base.spec.classes)
        raise DataError(f"{model} knows every class of {listing.root} already ({has}): there is nothing new")
    if len(base.spec.classes) + len(fresh) > IGNORE:
        raise DataError(f"{len(base.spec.classes) + len(fresh)} classes are more than the {IGNORE} that a map can hold")


def _same_kind(base: MaskClassifier, listing: Listing) -> None:
    """Refuses a class that is countable in one place and not in the other."""
    for i, name in enumerate(listing.classes):
        if name in base.spec.classes and (i in listing.things) != (base.spec.classes.index(name) in base.spec.things):
            kind = "things" if i in listing.things else "stuff"
            raise DataError(f"{listing.root} counts {name!r} among {kind} and the model does not; make the two agree")


def _old_set(address: str, base: MaskClassifier, by_region: bool) -> tuple[tuple[Pair, ...], Annotation]:
    """The pictures on which forgetting is measured; classes that the model lacks are unknown there."""
    folder, split = split_address(address)
    listing = open_listing(str(folder), "auto")
    split = split or ("val" if "val" in listing.splits else next(iter(listing.splits)))
    pairs = tuple(pair for pair in listing.split(split) if pair.mask is not None)
    shared = [name for name in listing.classes if name in base.spec.classes]
    if not pairs or not shared:
        what = "no masks" if not pairs else f"none of the model's classes ({', '.join(base.spec.classes)})"
        raise DataError(f"--keep-val {address}: split {split!r} has {what}; name a set of the old classes")
    _same_kind(base, listing)
    places = {i: base.spec.classes.index(name) if name in shared else IGNORE for i, name in enumerate(listing.classes)}
    return pairs, Annotation(listing, by_region, places)


def joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Two batches as one."""
    return {
        key: torch.cat([value, second[key]]) if isinstance(value, Tensor) else [*value, *second[key]]
        for key, value in first.items()
    }


# -- what came out -----------------------------------------------------------------------------------------------------


@dataclass
class ExtensionMeasured:
    """What the extended model does, beside what the historic one did.

    Args:
        new: the extended model on the validation images of the new set.
        before, after: both models on the old set; None without one.
        old: how many classes the historic model knew.
    """

    new: PanopticMeasured | None
    before: PanopticMeasured | None
    after: PanopticMeasured | None
    old: int
    classes: tuple[str, ...] = field(default=())

    def scores(self) -> dict[str, float]:
        """``pq_old_before``, ``pq_old``, ``pq_new``, ``pq``, ``pq/CLASS`` in [0, 1]; absent where unmeasured."""
        found: dict[str, float] = {}
        total = PanopticQuality(len(self.classes))
        ids = range(self.old)
        if self.before and self.after:
            found["pq_old_before"] = self.before.quality.mean(ids)["pq"]
            found["pq_old"] = self.after.quality.mean(ids)["pq"]
            total += self.after.quality
        if self.new:
            found["pq_new"] = self.new.quality.mean(range(self.old, len(self.classes)))["pq"]
            total += self.new.quality
        found["pq"] = total.mean()["pq"]
        by_class = total.by_class()["pq"]
        return found | {f"pq/{name}": float(value) for name, value in zip(self.classes, by_class, strict=True)}

    def plain(self) -> dict[str, Any]:
        """Everything as JSON can hold it."""
        parts = {"new": self.new, "before": self.before, "after": self.after}
        scores = {name: none_for_nan(value) for name, value in self.scores().items()}
        return {
            "classes": list(self.classes),
            "old": self.old,
            "scores": scores,
            **{name: part.plain() for name, part in parts.items() if part},
        }

    def line(self) -> str:
        """The most important numbers in words."""
        scores = self.scores()
        names = {"pq_old_before": "old before", "pq_old": "old after", "pq_new": "new", "pq": "all"}
        return "PQ " + ", ".join(f"{text} {100 * scores[name]:.1f}" for name, text in names.items() if name in scores)


def measure_extension(model: MaskClassifier, data: Extension) -> ExtensionMeasured:
    """Measures the extended model on both sets, and the historic one on the old set."""
    val = data.training.val
    new = measure_panoptic(model, PanopticWhole(val, data.known)) if val else None
    before = after = None
    if data.keep:
        old = PanopticWhole(*data.keep)
        device = next(model.parameters()).device
        before, after = measure_panoptic(data.base.to(device), old), measure_panoptic(model, old)
    return ExtensionMeasured(new, before, after, len(data.base.spec.classes), model.spec.classes)


def conclude(run: Run, max_forget: float) -> None:
    """Decides on release, from what the run measured, and writes decision and report."""
    found = json.loads((run.out / "evaluation.json").read_text(encoding="utf-8"))
    decision = decide(found["scores"], max_forget)
    write_atomically(run.out / DECISION, json.dumps(decision).encode())
    write_headline(run, decision["reason"], is_warning=decision["release"] is not True)
    rows = []
    for i, name in enumerate(found["classes"]):
        values = [found.get(part, {}).get("scores", {}).get(f"pq/{name}") for part in ("before", "after", "new")]
        cells = ["–" if value is None else f"{100 * value:.1f}" for value in values]
        rows.append([name, "old" if i < found["old"] else "new", *cells])
    head = ["Class", "Kind", "Old set, before", "Old set, after", "New set"]
    text = "Panoptic quality (%) of each class. On the old set, regions of classes that the old model lacks are void."
    write_section(
        run, "10_forgetting", "Old and new classes", [{"text": text}, {"table": {"head": head, "rows": rows}}]
    )
    run.say(decision["reason"])


def decide(scores: dict[str, float | None], max_forget: float) -> dict[str, Any]:
    """Whether the extended model may be released: ``release`` (None where it cannot be said), numbers and a reason."""
    before, after = scores.get("pq_old_before"), scores.get("pq_old")
    if before is None or after is None:
        reason = "Forgetting was not measured, so nothing is said of release: give --keep-val with the old classes."
        return {"release": None, "forgotten": None, "max_forget": max_forget, "reason": reason}
    if before == 0:
        reason = "The model found nothing of the old classes before (PQ 0), so what it forgets cannot be measured."
        return {"release": None, "forgotten": None, "max_forget": max_forget, "reason": reason}
    forgotten = 100 * (before - after)
    numbers = f"PQ of the old classes {100 * before:.1f} before, {100 * after:.1f} after; {max_forget:g} points may go"
    new = scores.get("pq_new")
    numbers += "" if new is None else f"; of the new classes {100 * new:.1f}"
    is_kept = forgotten <= max_forget
    reason = f"{'Released' if is_kept else 'not for release'}: {numbers}."
    return {"release": is_kept, "forgotten": forgotten, "max_forget": max_forget, "reason": reason}
