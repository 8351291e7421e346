"""The named faults of a data set: each with a code, where it is, why it matters and what mends it.

`segue.data.check.inspection` looks at one pair at a time; what can only be said of the whole set is here. All of it
comes in one pass, in parallel processes where asked for, and what is kept of a pair does not grow with its pixels. A
fault whose code begins with E keeps every training command from starting.
"""

import multiprocessing
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from segue.data.check import leaks
from segue.data.check.facts import BAD_FILES, Facts
from segue.data.check.inspection import MANY_VALUES, Inspector
from segue.data.decoder import Decoder
from segue.data.finding import Finding, fixing, merged
from segue.data.listing import Listing, Pair
from segue.data.sample import IGNORE, Tones
from segue.data.tones import drops_bands
from segue.errors import DataError
from segue.processes.allocator import keep_freed_memory

SAMPLE = 1000  # pairs whose masks the check before training reads
PAD = 4 << 20  # bytes by which the memory of a process grows
CHUNK = 64  # pairs that a process looks at before it reports


def check(
    listing: Listing,
    *,
    allow_missing: bool = False,
    skip_bad: bool = False,
    sample: int | None = SAMPLE,
    hashes: bool = False,
    tones: Tones = (),
    options: str = "",
    workers: int = 0,
    tick: Callable[[], None] = lambda: None,
) -> tuple[list[Finding], Facts]:
    """Every fault of the set that shows in its names, its headers and its masks.

    Args:
        listing: the set.
        allow_missing: images without masks and masks without images are all right.
        skip_bad: unreadable pairs are warned of, since whoever asks goes on without them.
        sample: masks to read in full, evenly spread over the set; None reads all.
        hashes: look for the same or nearly the same image in two places.
        tones: rules for deep images that hold whatever is read, as those of a model are.
        options: with which the set was read, for commands that are shown; see `segue.data.finding.reading`.
        workers: processes; 0 looks in this one.
        tick: called after each pair.

    Raises:
        DataError: a process died.
    """
    pairs = list({pair.image: pair for split in listing.splits.values() for pair in split}.values())
    owner: dict[Path, list[str]] = {}
    for name, split in listing.splits.items():
        for pair in split:
            owner.setdefault(pair.image, []).append(name)
    every = 1 if sample is None else max(1, -(-len(pairs) // sample))
    root, facts, findings = str(listing.root), Facts.none(len(listing.classes), tones), list(listing.faults)
    mend = fixing(root, options)
    look = Look(Inspector(root, mend, Decoder.of(listing), listing.classes, hashes), pairs, owner, every)
    for count, found, part in _chunks(look, workers):
        findings += found
        facts.add_all(part)
        for _ in range(count):
            tick()
    findings = _whole_masks(merged(findings), facts, listing, mend) + _missing(listing, pairs, allow_missing, mend)
    findings += _classes(facts, listing) + _modes(facts, root, mend) + _few(listing)
    findings += _one_class(facts, listing) + _rare(facts, listing) if every == 1 else []
    findings += _same_but_for_case(pairs)
    findings += leaks.named_twice(listing.splits) + leaks.shared_videos(listing.splits)
    if hashes:
        split_of = {str(image): names[-1] for image, names in owner.items()}
        findings += leaks.equal_images(facts.digests, split_of, mend)
        distinct = {facts.digests[path]: (path, look) for path, look in facts.looks.items()}
        findings += leaks.near_images(dict(distinct.values()), split_of)
    if skip_bad:
        findings = [_skipped(f) if f.code in BAD_FILES else f for f in findings]
    return merged(findings), facts


def _skipped(finding: Finding) -> Finding:
    """The same fault as a warning, for whoever goes on without such files."""
    return Finding("W" + finding.code[1:], finding.what, finding.where, finding.why, "Left out, as asked.")


@dataclass(frozen=True)
class Look:
    """All there is to look at; a process of the pool gets it once and then only numbers.

    Args:
        inspector: looks at one pair.
        pairs: each image once.
        owner: the splits that name an image.
        every: the masks of every so many pairs are read in full.
    """

    inspector: Inspector
    pairs: Sequence[Pair]
    owner: Mapping[Path, Sequence[str]]
    every: int

    def chunk(self, start: int) -> tuple[int, list[Finding], Facts]:
        """Of `CHUNK` pairs from ``start`` on: how many they are, the faults of single pairs, and the facts."""
        facts, findings = Facts.none(len(self.inspector.classes)), list[Finding]()
        chunk = self.pairs[start : start + CHUNK]
        for i, pair in enumerate(chunk, start):
            seen = self.inspector(pair, pixels=i % self.every == 0, ranged=facts.deep)
            findings += seen.findings
            facts.add(seen, self.owner[pair.image])
        return len(chunk), findings, facts


def _chunks(look: Look, workers: int) -> Iterator[tuple[int, list[Finding], Facts]]:
    """What each chunk shows, in the order of the pairs."""
    starts = range(0, len(look.pairs), CHUNK)
    if workers < 2 or len(starts) < 2:
        yield from map(look.chunk, starts)
        return
    # A process with torch in it has threads, and forking it may hang; without, a fork is quick and needs no guard.
    can_fork = sys.platform == "linux" and "torch" not in sys.modules
    context = multiprocessing.get_context("fork" if can_fork else "spawn")
    try:
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(look,)) as pool:
            yield from pool.map(_chunk, starts)
    except BrokenProcessPool as error:
        raise DataError(f"a process that looked at {look.inspector.root} died (out of memory?): {error}") from None


_work: dict[str, Look] = {}  # of a process of the pool: what `_begin` gave it


def _begin(look: Look) -> None:
    """Prepares a process of the pool; the parent alone answers Ctrl-C."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_freed_memory(PAD)  # every mask asks for the same few blocks again
    _work["look"] = look


def _chunk(start: int) -> tuple[int, list[Finding], Facts]:
    """What the chunk shows that begins at ``start``."""
    return _work["look"].chunk(start)


def _whole_masks(findings: list[Finding], facts: Facts, listing: Listing, mend: str) -> list[Finding]:
    """Faults of single masks that are one fault of the whole set: 0/255, ids from 1 on, instance ids, no label."""
    count, root = len(listing.classes), str(listing.root)
    mended = f"A mended copy: {mend}"

    def replaced(whole: Finding, *codes: str) -> list[Finding]:
        return [whole, *(found for found in findings if found.code not in codes)]

    if any(fault.code == "E104" for fault in listing.faults):
        return [found for found in findings if found.code not in ("E101", "E105")]
    values = sorted(facts.values)
    if values == [0, IGNORE] and count > 1 and listing.ids.get(IGNORE) == IGNORE:  # of one class 255 is the rest
        whole = Finding("E102", "masks hold only 0 and 255, and 255 is the ignore value", (root,),
                        "All of the foreground would be ignored.",
                        "If 255 is the second class: --map 255:1." + (f" {mended}" if count == 2 else ""))  # fmt: skip
        return replaced(whole, "W116")
    ids = [value for value in values if value != IGNORE]
    if ids and ids[0] >= 1 and ids[-1] == count and listing.ids.get(count) is None:
        whole = Finding("E103", f"ids are {ids[0]}-{count} with {count} classes", (root,),
                        "Every label would name the class after its own.",
                        f"If 1 is the first class: --map 1-{count}:0. {mended}")  # fmt: skip
        return replaced(whole, "E101", "E104")
    if ids and ids[0] == 0 and ids[-1] == count and listing.ids.get(count) is None:
        whole = Finding("E101", f"ids are 0-{count} with {count} classes (0-{count - 1})", (root,),
                        f"The value {count} is no class, or 0 is none and every label names the class after its own.",
                        f"If 0 says unlabelled and 1 is the first class: --map 0:ignore,1-{count}:0. If {count} says "
                        f"unlabelled: --map {count}:ignore. Else add the class")  # fmt: skip
        return replaced(whole, "E101")
    if facts.read and facts.many > facts.read / 2 and count <= MANY_VALUES:
        whole = Finding("E151", f"masks hold up to {len(values)} ids, more than the {count} classes", (root,),
                        "They look like instance ids, where class ids are expected.",
                        "Put them into instances/ and class ids into labels/, or export class masks.")  # fmt: skip
        return replaced(whole, "E101", "E105")
    unknown = any(found.code in ("E101", "E105") for found in findings)
    if facts.read and not facts.pixels.any() and not unknown:
        where = next((found.where for found in findings if found.code == "W116"), (root,))
        whole = Finding("E116", "every pixel of every mask is ignored", where, "There is nothing to learn from.",
                        "Check that the masks hold class ids.")  # fmt: skip
        return replaced(whole, "W116")
    return findings


def _missing(listing: Listing, pairs: Sequence[Pair], allow_missing: bool, mend: str) -> list[Finding]:
    """Images without masks, masks without images, splits without either."""
    found, root = [], str(listing.root)
    labelled = [split for split in listing.splits.values() if any(pair.mask for pair in split)]
    bare = [str(pair.image) for split in labelled for pair in split if pair.mask is None]
    renamed = likely_names(pairs, listing.stray)
    renaming = f"A copy with the names put right: {mend}"
    if pairs and not labelled and listing.classes:
        guess = f"{renaming}. " if renamed else ""
        found.append(
            Finding("E107", f"{len(pairs)} images and not one mask with the same name", (root,),
                    "There is nothing to learn from.", guess + _nearest(listing, pairs))
        )  # fmt: skip
    elif bare and not allow_missing:
        hint = f"{len(renamed)} look renamed. {renaming}. " if renamed else ""
        found.append(
            Finding("E106", f"{len(bare)} of {len(pairs)} images have no mask", tuple(bare), "They would be left out.",
                    f"{hint}Label them, or say so: --allow-missing leaves them out, with --unlabeled rest "
                    "they are learnt from without labels")
        )  # fmt: skip
    if listing.stray and not allow_missing:
        found.append(
            Finding("E106", f"{len(listing.stray)} masks have no image", tuple(map(str, listing.stray)),
                    "They would be left out.",
                    "Add the images, remove the masks, or say so: --allow-missing")
        )  # fmt: skip
    if listing.unnamed:
        found.append(
            Finding("W117", f"{len(listing.unnamed)} images are in no split",
                    tuple(str(pair.image) for pair in listing.unnamed), "They are neither learnt from nor measured on.",
                    "Put them into a split; --unlabeled rest learns from them without their masks.")
        )  # fmt: skip
    maskless = [name for name, split in listing.splits.items() if split and split not in labelled] if labelled else []
    if "train" in maskless and not allow_missing:
        found.append(
            Finding("E107", "no image of the split train has a mask", (f"{root}:train",),
                    "There is nothing to learn from.",
                    "Put the masks there, or take the split out, and one is made by seed")
        )  # fmt: skip
    if "val" in maskless:
        found.append(
            Finding("W107", "no image of the split val has a mask", (f"{root}:val",), "There is nothing to measure on.",
                    "Put the masks there, or train with --val none or --val of another split.")
        )  # fmt: skip
    for name in [name for name, split in listing.splits.items() if not split]:
        found.append(
            Finding("E117" if name in ("train", "val") else "W117", f"the split {name} names no image",
                    (f"{root}:{name}",), "There is nothing to train on or to measure.",
                    f"Take the split out, and one is made by seed; or a copy: {mend}")
        )  # fmt: skip
    return found


def likely_names(pairs: Sequence[Pair], stray: Sequence[Path]) -> dict[Path, Path]:
    """Image by mask, for masks left over whose name is an image's with one ending that all of them share.

    An image whose name has folders is given masks of such folders alone: frames of other videos may have its number.
    """
    bare: dict[tuple[tuple[str, ...], str], Path] = {}
    for pair in pairs:
        if pair.mask is None:
            bare.setdefault((PurePosixPath(pair.name).parts[:-1], pair.image.stem), pair.image)
    depths = sorted({len(folders) for folders, _ in bare}, reverse=True)
    found, endings = {}, set()
    for mask in stray:
        folders = mask.parts[:-1]
        places = [folders[len(folders) - depth :] for depth in depths if depth <= len(folders)]
        beginnings = (mask.stem[:length] for length in range(len(mask.stem) - 1, 0, -1))
        beginning = next((key for stem in beginnings for place in places if (key := (place, stem)) in bare), None)
        if beginning is not None:
            found[mask] = bare[beginning]
            endings.add(mask.stem.removeprefix(beginning[1]))
    return found if len(endings) == 1 and len(set(found.values())) == len(found) else {}


def _nearest(listing: Listing, pairs: Sequence[Pair]) -> str:
    """A guess at how the masks are named."""
    if listing.stray:
        mask, image = listing.stray[0].name, pairs[0].image.name
        return f"Masks are named like {mask}, images like {image}; give them the same names."
    return f"Put the masks into {listing.root / 'labels'}, each with the name of its image."


def _classes(facts: Facts, listing: Listing) -> list[Finding]:
    """W115: classes that no mask holds, or that only some of the splits hold."""
    if not facts.read or not facts.pixels.any():
        return []
    found, names = [], listing.classes
    never = tuple(names[i] for i in np.flatnonzero(facts.images == 0))
    if never:
        found.append(
            Finding("W115", "classes that no mask read holds", never, "They cannot be learnt.",
                    "Add images of them, or take them off the class list.")
        )  # fmt: skip
    held = {name: seen > 0 for name, seen in facts.by_split.items() if seen.any()}
    if "train" in held:
        for other in sorted(set(held) & {"val", "test"}):
            only = tuple(names[i] for i in np.flatnonzero(held["train"] & ~held[other]))
            unseen = tuple(names[i] for i in np.flatnonzero(held[other] & ~held["train"]))
            if only:
                found.append(
                    Finding("W115", f"classes that {other} does not hold", only, "Their IoU cannot be measured there.",
                            "The mean is over the other classes and says so; move some images if that matters.")
                )  # fmt: skip
            if unseen:
                found.append(
                    Finding("W115", f"classes that {other} holds and train does not", unseen, "They cannot be learnt.",
                            f"Move images of them from {other} to train.")
                )  # fmt: skip
    return found


def _one_class(facts: Facts, listing: Listing) -> list[Finding]:
    """E116: one class covers every pixel of all masks, of which there are several and each was read."""
    held = np.flatnonzero(facts.pixels)
    if facts.read < 2 or len(listing.classes) < 2 or len(held) != 1 or facts.ignored or len(facts.values) > 1:
        return []
    return [
        Finding("E116", f"every pixel of every mask is {listing.classes[held[0]]}", (str(listing.root),),
                "There is nothing to tell apart.", "Check that the masks hold what was labelled, and are not empty.")
    ]  # fmt: skip


def _rare(facts: Facts, listing: Listing) -> list[Finding]:
    """W126: classes that only one of several training images holds; each mask was read."""
    held = facts.by_split.get("train")
    if held is None or sum(pair.mask is not None for pair in listing.splits["train"]) < 2:
        return []
    once = tuple(listing.classes[i] for i in np.flatnonzero(held == 1))
    if not once:
        return []
    return [
        Finding("W126", "classes that one training image alone holds", once,
                "They are learnt by heart, if at all, and a share held out to validate takes that image away.",
                "Label more images of them.")
    ]  # fmt: skip


def _same_but_for_case(pairs: Sequence[Pair]) -> list[Finding]:
    """W131: images that are one file where systems do not tell upper from lower case."""
    by_name: dict[str, list[str]] = {}
    for pair in pairs:
        by_name.setdefault(str(pair.image).casefold(), []).append(str(pair.image))
    clashes = tuple(" and ".join(paths) for paths in by_name.values() if len(paths) > 1)
    if not clashes:
        return []
    return [
        Finding("W131", "names that differ in upper and lower case alone", clashes,
                "On Windows and macOS they are one file.", "Rename one of each, before the set moves there.")
    ]  # fmt: skip


def _modes(facts: Facts, root: str, mend: str) -> list[Finding]:
    """W109 and W114: what is done to images that are turned, not RGB, or deeper than 8 bits."""
    found = []
    ranges = facts.ranges
    for kind, black, white in (rule for rule in facts.tones if rule[0] in ranges):
        bands = "; ".join(", ".join(f"{value:g}" for value in band) for band in ranges[kind])
        found.append(
            Finding("W114", f"{kind} images hold more than 8 bits (percentiles 0, 1, 50, 99, 100: {bands})",
                    (f"{root} ({facts.modes[kind]} images)",),
                    f"All of them are read with {black:g} black and {white:g} white; the model keeps the rule.",
                    f"Nothing to do, if that is meant. A copy in 8 bits: {mend}")
        )  # fmt: skip
    if facts.turned:
        found.append(
            Finding("W109", f"{len(facts.turned)} images are turned by EXIF", tuple(facts.turned),
                    "They are read upright, as a viewer shows them.", "Nothing to do.")
        )  # fmt: skip
    if len(facts.modes) > 1 or any(drops_bands(kind) for kind in facts.modes):
        counted = tuple(f"{mode} ({count} images)" for mode, count in facts.modes.most_common())
        found.append(
            Finding("W114", "images that are not all RGB", counted,
                    "All are read as 8-bit RGB; alpha and bands beyond the third are dropped.",
                    "Nothing to do, if that is meant.")
        )  # fmt: skip
    return found


def _few(listing: Listing) -> list[Finding]:
    """E126 and W126: too few labelled images to train on or to measure with."""
    found = []
    train = listing.splits.get("train", ())
    labelled = sum(pair.mask is not None for pair in train)
    if train and labelled == 1:
        found.append(
            Finding("E126", "1 labelled image to train on; at least 2 are needed", (str(listing.root),),
                    "One more is needed to validate on, and two to train on.", "Label at least two more images.")
        )  # fmt: skip
    for name in ("val", "test"):
        if len(listing.splits.get(name, ())) == 1:
            found.append(
                Finding("W126", f"the split {name} has one image", (f"{listing.root}:{name}",),
                        "A score on one image is chance.", "Move some images there.")
            )  # fmt: skip
    return found
