"""Protocols of class-incremental learning on any labelled set: which classes come when, and on which images.

A plan ``B-I`` has B classes first and I more in each increment, in an order of the classes that a seed gives: results
in one order mislead. An image is in increment t if it shows a class of it (``overlap``), and with ``disjoint`` if all
it shows are classes seen by then (Cermelli et al., *Modeling the Background*, CVPR 2020). To train, masks hold the
classes of the increment alone; to validate, all classes seen so far, and what comes later is unknown.
"""

import itertools
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segue.data.archive import check_path
from segue.data.listing import Listing, Pair
from segue.data.packed import copy_file
from segue.data.panoptic import Annotation
from segue.data.panoptic_map import PanopticMap
from segue.data.sample import IGNORE, write_label_map
from segue.data.unfinished import written_in_full
from segue.disk import write_atomically
from segue.errors import DataError

PROTOCOLS = ("overlap", "disjoint")
PLAN, FOLDER = "plan.json", "increment_"


@dataclass(frozen=True)
class Plan:
    """Which classes come when, and the training images of each increment.

    Args:
        protocol: one of `PROTOCOLS`.
        increments: names of the classes of each, those of the base model first.
        images: names of the training images of each.
    """

    protocol: str
    increments: tuple[tuple[str, ...], ...]
    images: tuple[tuple[str, ...], ...]

    def seen(self, number: int) -> tuple[str, ...]:
        """The classes of increments 0 to ``number``, in the order of their ids."""
        return tuple(name for increment in self.increments[: number + 1] for name in increment)

    def lines(self) -> list[str]:
        """The plan in words."""
        return [
            f"increment {i}: {len(images)} images for {', '.join(classes)}"
            for i, (classes, images) in enumerate(zip(self.increments, self.images, strict=True))
        ]

    def text(self) -> str:
        """The plan as a file holds it."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def read(cls, path: Path) -> "Plan":
        """The plan in a file.

        Raises:
            DataError: it is missing or no plan.
        """
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            plan = cls(held["protocol"], *(tuple(map(tuple, held[name])) for name in ("increments", "images")))
            names = [name for part in (*plan.increments, *plan.images) for name in part]
            seen = plan.seen(len(plan.increments))
            is_sound = len(plan.increments) == len(plan.images) and len(set(seen)) == len(seen)
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise DataError(f"{path} is no plan of increments ({type(error).__name__}: {error})") from None
        if plan.protocol not in PROTOCOLS or not is_sound or not all(isinstance(name, str) for name in names):
            raise DataError(f"{path} is no plan of increments; write one with segue data increments")
        return plan


def class_order(classes: Sequence[str], seed: int | None) -> tuple[str, ...]:
    """The classes as they are, or shuffled by a seed."""
    order = list(classes)
    if seed is not None:
        random.Random(f"class order {seed}").shuffle(order)
    return tuple(order)


def parts(order: Sequence[str], base: int, more: int) -> tuple[tuple[str, ...], ...]:
    """``base`` classes, then ``more`` in each increment; the last one takes what is left.

    Raises:
        DataError: there is no increment.
    """
    if base < 1 or more < 1 or base >= len(order):
        raise DataError(
            f"increments {base}-{more} of {len(order)} classes leave no increment; give a smaller first number"
        )
    cuts = [0, *range(base, len(order), more), len(order)]
    return tuple(tuple(order[a:b]) for a, b in itertools.pairwise(cuts))


def assign(
    shown: Mapping[str, frozenset[str]], increments: Sequence[Sequence[str]], protocol: str
) -> tuple[tuple[str, ...], ...]:
    """The images of each increment, from the classes that each image shows."""
    found, seen = [], set[str]()
    for increment in increments:
        seen |= set(increment)
        chosen = [name for name, classes in shown.items() if classes & set(increment)]
        found.append(tuple(name for name in chosen if protocol == "overlap" or shown[name] <= seen))
    return tuple(found)


def plan_increments(
    listing: Listing,
    annotation: Annotation,
    *,
    base: int,
    more: int,
    order: int | None,
    protocol: str,
    tick: Callable[[], None] = lambda: None,
) -> Plan:
    """The plan of the training split of a set, or of its only one.

    Raises:
        DataError: no such protocol, no increment, or an increment without an image.
    """
    if protocol not in PROTOCOLS:
        raise DataError(f"--protocol {protocol}: give {' or '.join(PROTOCOLS)}")
    increments = parts(class_order(listing.classes, order), base, more)
    shown = {}
    for pair in training_pairs(listing):
        shown[pair.name] = frozenset(listing.classes[label] for label in annotation.read(pair).labels)
        tick()
    images = assign(shown, increments, protocol)
    for i, (classes, found) in enumerate(zip(increments, images, strict=True)):
        if not found:
            raise DataError(f"increment {i} ({', '.join(classes)}) has no image; take another --order or --protocol")
    return Plan(protocol, increments, images)


def training_pairs(listing: Listing) -> tuple[Pair, ...]:
    """The pairs with masks of the split ``train``, or of the first."""
    pairs = listing.split("train" if "train" in listing.splits else next(iter(listing.splits)))
    return tuple(pair for pair in pairs if pair.mask is not None)


def contents(listing: Listing, plan: Plan) -> list[dict[str, tuple[Pair, ...]]]:
    """The pairs of each split of each increment: of ``train`` those of the plan, of ``val`` and ``test`` all.

    Raises:
        DataError: two pairs have one name, or the plan names a class or an image that the set lacks.
    """
    pairs = {pair.name: pair for pair in training_pairs(listing)}
    for kind, known, wanted in (
        ("class", listing.classes, plan.seen(len(plan.increments))),
        ("image", pairs, tuple(name for images in plan.images for name in images)),
    ):
        missing = [name for name in wanted if name not in known]
        if missing:
            raise DataError(f"the plan names the {kind} {missing[0]!r} ({len(missing)} such), which the set lacks")
    further = {
        split: tuple(pair for pair in listing.split(split) if pair.mask is not None)
        for split in ("val", "test") if split in listing.splits
    }  # fmt: skip
    _refuse_repeated((*training_pairs(listing), *(pair for chosen in further.values() for pair in chosen)))
    return [{"train": tuple(pairs[name] for name in images), **further} for images in plan.images]


def write_increments(
    listing: Listing, annotation: Annotation, plan: Plan, out: Path, *, tick: Callable[[], None] = lambda: None
) -> list[Path]:
    """Writes a canonical folder for each increment, and the plan; the folders.

    ``train`` holds the plan's images with the classes of that increment alone, ``val`` and ``test`` all images of those
    splits with every class seen so far; whatever else is unknown there.

    Raises:
        DataError: ``out`` holds something else than what an interrupted call left, or see `contents`.
    """
    every = contents(listing, plan)
    folders = [out / f"{FOLDER}{number}" for number in range(len(every))]
    with written_in_full(out, listing.root, "increments", lambda name: name.startswith(FOLDER) or PLAN in name):
        for number, (folder, taken) in enumerate(zip(folders, every, strict=True)):
            seen = plan.seen(number)
            numbers = {name: i for i, name in enumerate(seen)}
            for split, chosen in taken.items():
                kept = plan.increments[number] if split == "train" else seen
                labels = {i: numbers[name] if name in kept else IGNORE for i, name in enumerate(listing.classes)}
                for pair in chosen:
                    write_pair(folder, pair, annotation.read(pair), labels, listing)
                    tick()
            write_atomically(folder / "dataset.json", json.dumps(described(listing, seen, taken)).encode())
        write_atomically(out / PLAN, plan.text().encode())
    return folders


def _refuse_repeated(pairs: Sequence[Pair]) -> None:
    """Refuses two pairs of one name: the second would be written over the first."""
    taken: dict[str, Pair] = {}
    for pair in pairs:
        if (first := taken.get(pair.name)) is not None:
            what = f"{first.image} is there twice" if first.image == pair.image else f"{first.image} and {pair.image}"
            raise DataError(
                f"the name {pair.name!r} stands for two pairs ({what}), which would be one file; rename one, or take "
                "it out of one of the splits"
            )
        taken[pair.name] = pair


def described(listing: Listing, seen: Sequence[str], taken: Mapping[str, Sequence[Pair]]) -> dict[str, Any]:
    """``dataset.json`` of one increment."""
    places = [listing.classes.index(name) for name in seen]
    return {
        "classes": list(seen),
        "colors": [list(listing.colors[i]) for i in places],
        "things": [number for number, i in enumerate(places) if i in listing.things],
        "ignore": IGNORE,
        "splits": {split: [pair.name for pair in chosen] for split, chosen in taken.items() if chosen},
    }


def write_pair(folder: Path, pair: Pair, found: PanopticMap, labels: Mapping[int, int], listing: Listing) -> None:
    """The image byte for byte, its class ids and the numbers of its objects; crowds have the number 0."""
    check_path(pair.name, str(pair.image))
    classes = np.array([IGNORE, *(labels[label] for label in found.labels)], np.uint8)
    single = [
        label in listing.things and not crowd for label, crowd in zip(found.labels, found.is_crowd, strict=True)
    ]  # fmt: skip
    objects = np.array([0, *(i * is_single for i, is_single in enumerate(single, 1))], np.uint16)
    image = folder / "images" / f"{pair.name}{pair.image.suffix.lower()}"
    mask, numbers = (folder / kind / f"{pair.name}.png" for kind in ("labels", "instances"))
    for path in (image, mask, numbers):
        path.parent.mkdir(parents=True, exist_ok=True)
    copy_file(pair.image, image)
    kept = [labels.get(i, IGNORE) for i in range(len(listing.classes))]
    colors = {number: listing.colors[i] for i, number in enumerate(kept) if number != IGNORE}
    write_label_map(mask, classes[found.ids], [colors.get(i, (0, 0, 0)) for i in range(max(colors, default=-1) + 1)])
    Image.fromarray(np.where(classes[found.ids] == IGNORE, 0, objects[found.ids]).astype(np.uint16)).save(numbers)
