"""A data set opened for training: what is labelled, what is not, what is for validation, and what was left out."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from segue.config import Data
from segue.data.check import check
from segue.data.check.leaks import shared_videos
from segue.data.copy_paste import CopyPaste, by_class, learn
from segue.data.decoder import Decoder
from segue.data.finding import Finding, reading
from segue.data.fingerprint import same_pictures
from segue.data.layouts import open_images, open_listing, validation_at
from segue.data.ledger import REDRAW, REJECT, read_ledger
from segue.data.listing import Listing, Pair, toned
from segue.data.sample import Tones
from segue.data.splits import amount, choose, is_list
from segue.data.stored_values import parse_map
from segue.data.unlabelled import OF_HELD_OUT, apart_from_held_out
from segue.errors import DataError

REST = "rest"
TWICE = "named twice, or also labelled or in validation"


@dataclass(frozen=True)
class TrainingData:
    """What a training method gets.

    Args:
        listing: the whole set.
        decoder: of its masks.
        labelled: pairs to learn from.
        unlabelled: images without labels, or whose labels were not asked for.
        val: pairs to validate on; empty if there are none.
        found: pairs of the training split and unlabelled images that were found.
        dropped: why how many of them are not used; used + dropped == found.
        warnings: findings that did not stop.
        validation_at: where the validation images are found again: see `segue.data.layouts.validation_at`.
        paste: puts objects of rare classes into labelled training images; None unless asked for.
        pasted: what it puts in, in words.
        by_object: files that number the objects are learnt from too.
    """

    listing: Listing
    decoder: Decoder
    labelled: tuple[Pair, ...]
    unlabelled: tuple[Pair, ...]
    val: tuple[Pair, ...]
    found: int
    dropped: dict[str, int]
    warnings: tuple[Finding, ...]
    validation_at: Mapping[str, str]
    paste: CopyPaste | None = None
    pasted: str = ""
    by_object: bool = False

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes by id."""
        return self.listing.classes

    def account(self) -> dict[str, object]:
        """What goes into ``run.json`` and the report."""
        return {
            "root": str(self.listing.root),
            "layout": self.listing.layout,
            "classes": list(self.classes),
            "tones": [list(rule) for rule in self.listing.tones],
            "found": self.found,
            "labelled": len(self.labelled),
            "unlabelled": len(self.unlabelled),
            "validation": len(self.val),
            "dropped": self.dropped,
            "labelled_names": [pair.name for pair in self.labelled],
            "validation_names": [pair.name for pair in self.val],
            "meaning": [self.decoder.meaning((*self.labelled, *self.val), self.listing.things * self.by_object)],
            "warnings": [str(finding) for finding in self.warnings],
            "validation_at": dict(self.validation_at),
        }

    def files(self) -> Iterator[tuple[str, tuple[Path | None, ...]]]:
        """(name, files) of every pair that is trained or validated on."""
        for pair in (*self.labelled, *self.unlabelled, *self.val):
            objects = self.listing.instance_path(pair) if self.by_object else None
            yield pair.name, (pair.image, pair.mask, objects)

    def lines(self) -> list[str]:
        """What the command understood, for the person who waits."""
        left_out = ", ".join(f"{count} {why}" for why, count in self.dropped.items()) or "nothing"
        return [
            f"data: {self.listing.root} ({self.listing.layout}), {len(self.classes)} classes: "
            + ", ".join(self.classes),
            f"using {len(self.labelled)} labelled and {len(self.unlabelled)} unlabelled images to train, "
            f"{len(self.val)} to validate; left out of {self.found} found: {left_out}",
            *([self.pasted] if self.pasted else []),
            *(f"note: {finding}" for finding in self.warnings),
        ]


def open_training(config: Data, *, seed: int, tones: Tones = ()) -> TrainingData:
    """The set that ``config`` names, checked and divided.

    Args:
        config: of the set.
        seed: of what is drawn.
        tones: the rules of a model for deep images, which hold here too; other kinds get one of their own.

    Raises:
        DataError: the set has a fault that stops training; each such fault is one line of the message.
    """
    listing, bad, warnings = _checked(config, tones)
    train = listing.splits.get("train") or _only(listing)
    masked = tuple(pair for pair in train if pair.mask is not None)
    if not masked:
        raise DataError(f"the training split of {listing.root} has no mask at all")
    masked, val, split_off, shared, unmasked = _validation(listing, config, masked, seed)
    if split_off:
        warnings += tuple(shared_videos({"train": masked, "val": val}))
    bare = tuple(pair for pair in train if pair.mask is None)
    labelled, rest = choose(masked, config.labels, seed, held=val if split_off or shared else (), bare=bare)
    dropped: dict[str, int] = {}
    found = len(train) + len(listing.stray) + len(listing.unnamed) + bad
    if listing.stray:
        dropped["masks without an image"] = len(listing.stray)
    unlabelled, more, unsound = _unlabelled(config, listing, (*rest, *bare), (*labelled, *val), dropped)
    found, bad = found + more, bad + unsound
    if config.ledger and not config.unlabeled:
        raise DataError(f"--ledger {config.ledger} is the review of unlabelled images; name them: --unlabeled FOLDER")
    if config.ledger:
        unlabelled, refused = _reviewed(unlabelled, Path(config.ledger))
        if refused:
            dropped["rejected or to be redrawn by the review"] = refused
    if config.unlabeled and not unlabelled:
        raise DataError(f"--unlabeled {','.join(config.unlabeled)} adds no image: all of them are labelled or left out")
    if bad:
        dropped["unreadable (--skip_bad)"] = bad
    if REST not in config.unlabeled:
        spare = {"whose labels were not asked for": rest, "without a mask": bare, "in no split": listing.unnamed}
        dropped |= {f"{why} (--unlabeled rest would use the images)": len(them) for why, them in spare.items() if them}
    if unmasked:
        found += unmasked
        dropped["of the validation split without a mask"] = unmasked
    if split_off:
        dropped["of the training split kept for validation"] = split_off
    if shared:
        dropped["of the training split that are of the validation split too"] = shared
    wanted = "val" if config.val == "auto" else listing.meant(config.val)  # a share is one of the training split
    split = next((name for name in (wanted, "train") if name in listing.splits), next(iter(listing.splits)))
    at = validation_at(config.data, config.layout, config.map, split, val)
    decoder = Decoder.of(listing)
    pasted = learn(labelled, by_class(decoder), listing.classes, config.copy_paste, seed=seed)
    return TrainingData(listing, decoder, labelled, unlabelled, val, found, dropped, warnings, at, *pasted)


def _unlabelled(
    config: Data, listing: Listing, spare: Sequence[Pair], used: Sequence[Pair], dropped: dict[str, int]
) -> tuple[tuple[Pair, ...], int, int]:
    """(images of ``--unlabeled``, how many were found outside the set, how many cannot be read).

    Args:
        config: names them.
        listing: the labelled set.
        spare: pairs of its training split that ``rest`` stands for.
        used: pairs that are used already.
        dropped: takes why how many others are left out.
    """
    chosen: tuple[Pair, ...] = ()
    found = bad = 0
    for source in config.unlabeled:
        if source == REST:
            own = tuple(replace(pair, mask=None, segments=None, outlines=None) for pair in spare)
            unnamed, unsound = _sound(str(listing.root), listing.unnamed, listing.tones, skip_bad=config.skip_bad)
            pairs = (*own, *unnamed)
        else:
            named, held = apart_from_held_out(source, open_images(source))
            pairs, unsound = _sound(source, named, listing.tones, skip_bad=config.skip_bad)
            found += len(pairs) + unsound + held
            if held:
                dropped[f"of --unlabeled {source}, {OF_HELD_OUT}"] = held
        bad += unsound
        fresh = _without(pairs, (*used, *chosen))
        if len(fresh) < len(pairs):
            dropped[TWICE] = dropped.get(TWICE, 0) + len(pairs) - len(fresh)
        chosen += fresh
    return chosen, found, bad


def _checked(config: Data, tones: Tones) -> tuple[Listing, int, tuple[Finding, ...]]:
    """The set without pairs at fault, how many those are, and what did not stop it."""
    if not config.data:
        raise DataError("no data set named; give its folder: segue train DATA --out RUN")
    listing = open_listing(config.data, config.layout)
    listing = listing.extended(parse_map(config.map, listing))
    missing, skip_bad = config.allow_missing, config.skip_bad
    options = reading(config.layout, config.map, allow_missing=missing, skip_bad=skip_bad)
    findings, facts = check(listing, allow_missing=missing, skip_bad=skip_bad, tones=tones, options=options)
    stops = [finding for finding in findings if finding.stop]
    if stops:
        raise DataError("\n".join(str(finding) for finding in stops))
    sound, bad = _without_bad(listing.toned(facts.tones), facts.bad)
    return sound, bad, tuple(finding for finding in findings if not finding.stop)


def _reviewed(pairs: tuple[Pair, ...], ledger: Path) -> tuple[tuple[Pair, ...], int]:
    """The pictures that a review did not refuse, and how many it did.

    Raises:
        DataError: it decided of none of them.
    """
    decisions = read_ledger(ledger)
    if decisions and not any(str(pair.image.resolve()) in decisions for pair in pairs):
        raise DataError(
            f"--ledger {ledger} decides of other images than those of --unlabeled, as {next(iter(decisions))}; "
            "name the review of these, or bring them back to where they were reviewed"
        )
    kept = tuple(pair for pair in pairs if decisions.get(str(pair.image.resolve())) not in (REJECT, REDRAW))
    return kept, len(pairs) - len(kept)


def _without_bad(listing: Listing, bad: Collection[Path]) -> tuple[Listing, int]:
    """The set without pairs that have a fault of their own, and how many those are in the splits that training uses."""
    if not bad:
        return listing, 0
    splits = {name: tuple(p for p in split if p.image not in bad) for name, split in listing.splits.items()}
    used: list[str] = [name for name in ("train", "val") if name in splits] or list(splits)
    return replace(listing, splits=splits), sum(len(listing.splits[name]) - len(splits[name]) for name in used)


def _sound(source: str, pairs: tuple[Pair, ...], tones: Tones, *, skip_bad: bool) -> tuple[tuple[Pair, ...], int]:
    """Sound ones of images without labels, and how many others there are; kinds of their own get a rule of their own.

    Raises:
        DataError: one cannot be read and ``skip_bad`` does not say to go on without it.
    """
    listing = Listing(Path(source), "images", (), (), {"images": pairs}, {})
    findings, facts = check(listing, skip_bad=skip_bad, tones=tones)
    stops = [str(finding) for finding in findings if finding.stop]
    if stops:
        raise DataError("\n".join(stops))
    sound = tuple(pair for pair in pairs if pair.image not in facts.bad)
    return toned(sound, facts.tones), len(pairs) - len(sound)


def _only(listing: Listing) -> tuple[Pair, ...]:
    """The one split of a set that has no ``train``; not one to measure on, where images beside it are to be had."""
    if len(listing.splits) != 1:
        raise DataError(
            f"{listing.root} has no split 'train' but {', '.join(listing.splits)}; name one: {listing.root}:SPLIT"
        )
    ((name, pairs),) = listing.splits.items()
    if name in ("val", "test") and listing.unnamed:
        raise DataError(
            f"{listing.root} has no split 'train' but {name}, and {len(listing.unnamed)} images in none; list those to "
            f"train on as the split train, or name {listing.root}:{name} to train on that"
        )
    return pairs


class _Division(NamedTuple):
    """What is trained and what is validated on.

    Args:
        masked: pairs left to train on.
        val: validation pairs.
        split_off: how many of these the training split gave by seed.
        shared: how many pairs of the training split the validation split names too.
        unmasked: how many pairs of the validation split have no mask.
    """

    masked: tuple[Pair, ...]
    val: tuple[Pair, ...] = ()
    split_off: int = 0
    shared: int = 0
    unmasked: int = 0


def _validation(listing: Listing, config: Data, masked: tuple[Pair, ...], seed: int) -> _Division:
    """No image is on both sides: of those that both splits name, none is trained on."""
    wanted = config.val
    if wanted == "none":
        return _Division(masked)
    name = "val" if wanted == "auto" else listing.meant(wanted)
    if name not in listing.splits:
        if wanted != "auto" and not wanted.endswith("%"):
            listing.split(wanted)
        return _split_off(listing, config, masked, seed)
    val = tuple(pair for pair in listing.splits[name] if pair.mask is not None)
    if not val:
        raise DataError(f"split {name!r} of {listing.root} has no mask; give --val none, or another split")
    measured = {pair.image for pair in val}
    kept = tuple(pair for pair in masked if pair.image not in measured)
    if not kept and wanted == "auto":
        return _split_off(listing, config, masked, seed)
    if not kept:
        raise DataError(
            f"--val {wanted}: the split {name!r} of {listing.root} holds all {len(masked)} labelled images to train "
            "on; name another split, or a share of them to hold out: --val 20%"
        )
    return _Division(kept, val, shared=len(masked) - len(kept), unmasked=len(listing.splits[name]) - len(val))


def _split_off(listing: Listing, config: Data, masked: tuple[Pair, ...], seed: int) -> _Division:
    """A share of ``masked`` by seed; what a list of labels names is left to train on, unless it names everything."""
    if len(masked) < 2:
        raise DataError(
            f"{listing.root} has {len(masked)} labelled image; at least 2 are needed, one of them to validate"
        )
    named, others = choose(masked, config.labels, seed) if is_list(config.labels) else ((), masked)
    pool, wanted = others or named, config.val
    count = amount(wanted if wanted.endswith("%") else "20%", len(masked), "--val")
    val, _ = choose(pool, str(min(count, len(pool))), seed, "--val")
    held = {pair.name for pair in val}
    kept = tuple(pair for pair in masked if pair.name not in held)
    if not kept:
        raise DataError(f"--val {wanted} of {len(masked)} labelled images leaves none to train on; give a smaller one")
    return _Division(kept, val, split_off=len(val))


def _without(pairs: Sequence[Pair], used: Sequence[Pair]) -> tuple[Pair, ...]:
    """Pairs whose image is not used already, under that path or as a copy."""
    taken = {pair.image for pair in same_pictures(pairs, used)}
    return tuple(pair for pair in pairs if pair.image not in taken)
