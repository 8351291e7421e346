"""New classes for a deployed model, panoptic or semantic: what ``segue extend`` learns from."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segue.config import Data, Views
from segue.data.copy_paste import learn
from segue.data.decoder import Decoder
from segue.data.fingerprint import same_pictures
from segue.data.listing import Listing, Pair
from segue.data.panoptic import Annotation, PanopticViews, PanopticWhole, images_with
from segue.data.sample import IGNORE, Color
from segue.data.training import TrainingData, open_training
from segue.errors import DataError
from segue.held_out import masked, open_to_measure
from segue.models.mask_classifier import MaskClassifier
from segue.models.segmenter import Segmenter
from segue.weights import load_any, model_folder

WITHOUT = "without an object of a new class"


@dataclass(frozen=True)
class Extension:
    """What ``segue extend`` learns from.

    Args:
        base: the historic model, panoptic or semantic.
        source: where it came from.
        training: the new set.
        labelled: its training pictures that show a new class.
        annotation: of the new set, for training: new classes alone, as ids of the extended model. For a semantic model
            the set has no countable classes.
        known: of the new set, for validation: every class that the extended model knows.
        classes, colors: of the new classes.
        things: ids of the countable ones.
        keep: pictures of the old set, and their annotation.
    """

    base: MaskClassifier | Segmenter
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

    def views(self, size: Views) -> PanopticViews:
        """Random views of the pictures that show a new class."""
        return PanopticViews(self.labelled, self.annotation, size.crop, size.scale, paste=self.training.paste)

    def account(self) -> dict[str, Any]:
        """What goes into ``run.json`` and the report."""
        told = self.training.account()
        dropped = dict(self.training.dropped)
        sets = [((*self.labelled, *self.training.val), self.known), *([self.keep] if self.keep else [])]
        if len(self.labelled) < len(self.training.labelled):
            dropped[WITHOUT] = len(self.training.labelled) - len(self.labelled)
        return {
            **told,
            "classes": [*self.base.spec.classes, *self.classes],
            "labelled": len(self.labelled),
            "labelled_names": [pair.name for pair in self.labelled],
            "meaning": [Decoder.of(of.listing).meaning(pairs, of.listing.things) for pairs, of in sets],
            "dropped": dropped,
            "model": self.source,
            "old_validation": len(self.keep[0]) if self.keep else 0,
        }

    def files(self) -> Iterable[tuple[str, Sequence[Path | None]]]:
        """(name, files) of everything trained or validated on, the model among them."""
        folder = model_folder(self.source)
        yield "model", (folder / "model.safetensors", folder / "model.yaml")
        for pair in (*self.labelled, *self.training.unlabelled, *self.training.val):
            yield pair.name, (pair.image, pair.mask, self.training.listing.instance_path(pair))
        pairs, annotation = self.keep or ((), None)
        for pair in pairs:
            assert annotation is not None
            yield pair.name, (pair.image, pair.mask, annotation.listing.instance_path(pair))


def open_extension(
    model: str, data: Data, *, keep_val: str, new_classes: Sequence[str], by_region: bool, seed: int
) -> Extension:
    """Opens the model and both sets; classes are matched by their names.

    Raises:
        DataError: no model that can be extended, a fault of a set, or nothing new to learn.
    """
    base = load_any(model)
    if not isinstance(base, MaskClassifier | Segmenter):
        raise DataError(f"{model} is a {base.kind}, which cannot grow; name a model of segue train")
    training = open_training(replace(data, copy_paste=""), seed=seed, tones=base.spec.tones)
    if isinstance(base, Segmenter):
        training = replace(training, listing=replace(training.listing, things=()))
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
    paste, pasted = learn(labelled, annotation.objects, listing.classes, data.copy_paste, seed=seed, new=fresh)
    training = replace(training, paste=paste, pasted=pasted)
    keep = _old_set(keep_val, base, model, by_region, labelled) if keep_val else None
    for pair in training.val:  # a fault is found before the training, not after it
        known.read(pair)
    if keep:
        training = _without(training, keep[0])
        looked_at = PanopticWhole(*keep)
        for i in range(len(looked_at)):  # what nobody checked yet: pictures, masks, and whether their sizes agree
            looked_at[i]
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


def _refuse_names(fresh: Sequence[str], listing: Listing, base: MaskClassifier | Segmenter, model: str) -> None:
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


def _same_kind(base: MaskClassifier | Segmenter, listing: Listing) -> None:
    """Refuses a class that is countable in one place and not in the other; semantic models count nothing."""
    if isinstance(base, Segmenter):
        return
    for i, name in enumerate(listing.classes):
        if name in base.spec.classes and (i in listing.things) != (base.spec.classes.index(name) in base.spec.things):
            kind = "things" if i in listing.things else "stuff"
            raise DataError(f"{listing.root} counts {name!r} among {kind} and the model does not; make the two agree")


def _without(training: TrainingData, keep: Sequence[Pair]) -> TrainingData:
    """The set without unlabelled pictures on which forgetting is measured."""
    twice = {pair.image for pair in same_pictures(training.unlabelled, keep)}
    if not twice:
        return training
    left = tuple(pair for pair in training.unlabelled if pair.image not in twice)
    dropped = {**training.dropped, "of --unlabeled that --keep-val has too": len(twice)}
    return replace(training, unlabelled=left, dropped=dropped)


def _old_set(
    address: str, base: MaskClassifier | Segmenter, model: str, by_region: bool, learnt: Sequence[Pair]
) -> tuple[tuple[Pair, ...], Annotation]:
    """The pictures on which forgetting is measured, read as the model's run read them where they are its own; classes
    that the model lacks are unknown there."""
    opened = open_to_measure(model, address, tones=base.spec.tones)
    listing, by_region = opened.listing, by_region or opened.by_region
    if isinstance(base, Segmenter):
        listing = replace(listing, things=())
    pairs = masked(listing, opened.part, opened.pairs)
    twice = same_pictures(pairs, learnt)
    if twice:
        raise DataError(
            f"E125 --new and --keep-val share {len(twice)} images ({twice[0].image} and so on): what is forgotten "
            "would be measured on training images; take them out of one of the two"
        )
    shared = [name for name in listing.classes if name in base.spec.classes]
    if not shared:
        known = ", ".join(base.spec.classes)
        raise DataError(
            f"--keep-val {address} has none of the model's classes ({known}); name a set of the old classes"
        )
    _same_kind(base, listing)
    places = {i: base.spec.classes.index(name) if name in shared else IGNORE for i, name in enumerate(listing.classes)}
    return pairs, Annotation(listing, by_region, places)


def joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Two batches as one."""
    return {
        key: torch.cat([value, second[key]]) if isinstance(value, Tensor) else [*value, *second[key]]
        for key, value in first.items()
    }
