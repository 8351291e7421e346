"""Two domains opened for adaptation: labelled sources, a target whose labels nobody reads, and perhaps labelled
pictures of the target's domain to validate on.

Pictures deeper than 8 bits are read by the rule of their own set (`segue.data.tones`); the model keeps the target's."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from segue.config import Domains
from segue.data.check import check
from segue.data.check.facts import Facts
from segue.data.class_map import read_class_map
from segue.data.copy_paste import CopyPaste, by_class, learn
from segue.data.decoder import Decoder
from segue.data.finding import Finding, printable, proposing, reading
from segue.data.fingerprint import same_pictures
from segue.data.layouts import is_plain, open_images, open_listing, split_address, validation_at
from segue.data.listing import Listing, Pair, images_in, toned
from segue.data.sample import IGNORE, Array, Tones, picture_size
from segue.data.tones import joined_tones
from segue.data.unlabelled import OF_HELD_OUT, apart_from_held_out
from segue.errors import DataError

UNREADABLE = "unreadable (--skip_bad)"


@dataclass(frozen=True)
class Source:
    """One labelled set of the source domain.

    Args:
        root: its folder.
        pairs: to learn from.
        decoder: from what its masks store to class ids of the model.
        translated: for each pair the same picture in the target's style; empty where there are none.
        ids: class id of the model by that of the set.
        paste: puts objects of the pairs into them; none where that was not asked for.
    """

    root: Path
    pairs: tuple[Pair, ...]
    decoder: Decoder
    translated: tuple[Path, ...]
    ids: Mapping[int, int]
    paste: CopyPaste | None = None

    def styled(self) -> tuple[Pair, ...]:
        """The pairs, with the translated pictures where there are any."""
        if not self.translated:
            return self.pairs
        return tuple(replace(pair, image=path) for pair, path in zip(self.pairs, self.translated, strict=True))

    def labelled(self, *, translated: bool) -> tuple[tuple[Pair, ...], Decoder, CopyPaste | None]:
        """What is learnt from: `styled` or the pairs as they are, their decoder, and what is pasted."""
        return self.styled() if translated else self.pairs, self.decoder, self.paste


@dataclass(frozen=True)
class DomainData:
    """What a method of adaptation gets.

    Args:
        listing: the classes and colours of the model.
        sources: the labelled sets.
        target: pictures of the domain that matters.
        val: labelled pictures of that domain, to validate on; empty if there are none.
        decoder: of the masks of ``val``.
        shares: of each class among the labelled pixels of the sources that were read, float64 (K,).
        found: pairs and pictures found in sources and target.
        dropped: why how many of them are not used; used + dropped == found.
        notes: what was decided, in words.
        warnings: findings that did not stop.
        validation_at: where the validation images are found again; see `segue.data.training.TrainingData`.
    """

    listing: Listing
    sources: tuple[Source, ...]
    target: tuple[Pair, ...]
    val: tuple[Pair, ...]
    decoder: Decoder
    shares: Array
    found: int
    dropped: dict[str, int]
    notes: tuple[str, ...]
    warnings: tuple[Finding, ...]
    validation_at: Mapping[str, str]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of the model by id."""
        return self.listing.classes

    def labelled(self) -> tuple[Pair, ...]:
        """The pairs of all sources."""
        return tuple(pair for source in self.sources for pair in source.pairs)

    def account(self) -> dict[str, object]:
        """What goes into ``run.json`` and the report."""
        return {
            "root": f"{' and '.join(str(source.root) for source in self.sources)} to {self.listing.root}",
            "layout": self.listing.layout,
            "classes": list(self.classes),
            "found": self.found,
            "labelled": len(self.labelled()),
            "unlabelled": len(self.target),
            "validation": len(self.val),
            "dropped": self.dropped,
            "labelled_names": [pair.name for pair in self.labelled()],
            "validation_names": [pair.name for pair in self.val],
            "meaning": [
                *(source.decoder.meaning(source.pairs) for source in self.sources),
                *([self.decoder.meaning(self.val)] if self.val else []),
            ],
            "warnings": [str(finding) for finding in self.warnings],
            "notes": list(self.notes),
            "tones": [list(rule) for rule in self.listing.tones],
            "shares": dict(zip(self.classes, self.shares.tolist(), strict=True)),
            "validation_at": dict(self.validation_at),
        }

    def files(self) -> Iterator[tuple[str, tuple[Path | None, ...]]]:
        """(name, files) of everything trained or validated on."""
        for source in self.sources:
            for pair, styled in zip(source.pairs, source.styled(), strict=True):
                yield pair.name, (pair.image, pair.mask, *([styled.image] if source.translated else []))
        for pair in (*self.target, *self.val):
            yield pair.name, (pair.image, pair.mask)

    def lines(self) -> list[str]:
        """What the command understood, for the person who waits."""
        left_out = ", ".join(f"{count} {why}" for why, count in self.dropped.items()) or "nothing"
        sources = ", ".join(f"{source.root} ({len(source.pairs)} labelled)" for source in self.sources)
        return [
            printable(f"source: {sources}; target: {self.listing.root} ({len(self.target)} images)"),
            printable(f"{len(self.classes)} classes: {', '.join(self.classes)}"),
            f"{len(self.val)} labelled images of the target to validate; left out of {self.found} found: {left_out}",
            *(f"note: {note}" for note in (*self.notes, *self.warnings)),
        ]


def open_domains(config: Domains, *, crop: int) -> DomainData:
    """The sets that ``config`` names, checked, their classes matched.

    Args:
        config: the domains.
        crop: side of the training crops; smaller pictures are said.

    Raises:
        DataError: a set has a fault that stops training, or the sets do not fit each other.
    """
    if not config.source or not config.target:
        raise DataError("name both domains: segue adapt --source LABELLED --target IMAGES --out RUN")
    if len(set(config.source)) < len(config.source):
        raise DataError(f"--source names a set twice: {', '.join(config.source)}")
    if config.copy_paste and config.translated:
        raise DataError(
            "--copy-paste: objects would have another style than the pictures of --translated; leave one out"
        )
    if len(config.map) not in (0, 1, len(config.source)):
        raise DataError(f"--map names {len(config.map)} files for {len(config.source)} sources; give one, or one each")
    _refuse_one_set(config)
    bookkeeping = _Bookkeeping(config)
    listings = [bookkeeping.labelled(address, "--source") for address in config.source]
    val = bookkeeping.labelled(config.val, "--val") if config.val else None
    target, wanted = bookkeeping.target(config.target)
    known, origin = _model_classes(val, wanted, listings[0], config)
    bookkeeping.notes.append(f"the model's classes are those of {origin}")
    sources, shares = [], np.zeros(len(known.classes))
    for number, listing in enumerate(listings):
        ids = _matched(listing, known, origin, _map_of(config, number), bookkeeping.notes)
        pairs = _only_split(listing)
        translated = _translated(pairs, config.translated) if config.translated else ()
        decoder = Decoder.of(listing).onto(ids)
        paste = bookkeeping.pasted(pairs, decoder, known.classes)
        sources.append(Source(listing.root, pairs, decoder, translated, ids, paste))
        np.add.at(shares, [i for i in ids.values() if i != IGNORE],
                  bookkeeping.pixels[number][[i for i, other in ids.items() if other != IGNORE]])  # fmt: skip
    if config.translated:
        _one_name_each(sources, config.translated)
    bookkeeping.never_seen(known.classes, shares)
    pairs = toned(bookkeeping.val, bookkeeping.tones)
    target = bookkeeping.apart(target, sources, pairs)
    bookkeeping.small(target, sources, crop)
    return DomainData(
        listing=replace(known, root=split_address(config.target)[0], tones=bookkeeping.tones),
        sources=tuple(sources), target=target, val=pairs, decoder=Decoder.of(val or known),
        shares=shares / max(shares.sum(), 1), found=bookkeeping.found, dropped=bookkeeping.dropped,
        notes=tuple(bookkeeping.notes), warnings=tuple(bookkeeping.warnings),
        validation_at=validation_at(config.val, config.layout, "", bookkeeping.val_split, pairs),
    )  # fmt: skip


class _Bookkeeping:
    """Opens the sets and keeps what has to be said of them; used + dropped == found."""

    def __init__(self, config: Domains) -> None:
        self.config = config
        self.found, self.dropped = 0, dict[str, int]()
        self.notes: list[str] = []
        self.warnings: list[Finding] = []
        self.pixels: list[Array] = []  # of each class, by source
        self.val: tuple[Pair, ...] = ()
        self.val_split = ""
        self.val_tones: Tones = ()
        self.tones: Tones = ()  # of the target, and so of the model

    def drop(self, why: str, count: int) -> None:
        """Notes pictures that are not used."""
        if count:
            self.dropped[why] = self.dropped.get(why, 0) + count

    def checked(self, listing: Listing, *, has_labels: bool = True) -> Facts:
        """Facts of a set whose stopping faults are raised and whose others are kept."""
        allowed = self.config.allow_missing or not has_labels
        skip_bad, layout = self.config.skip_bad, self.config.layout if has_labels else "auto"
        options = reading(layout, "", allow_missing=self.config.allow_missing, skip_bad=skip_bad)
        findings, facts = check(listing, allow_missing=allowed, skip_bad=skip_bad, options=options)
        findings = [f for f in findings if f.code != "W115" and (has_labels or f.code != "E107")]
        stops = [str(finding) for finding in findings if finding.stop]
        if stops:
            raise DataError("\n".join(stops))
        self.warnings += findings
        return facts

    def labelled(self, address: str, option: str) -> Listing:
        """A labelled set, cut down to the pairs that are used: of the split that is named, or of train or val."""
        listing = open_listing(address, self.config.layout)
        usual = "train" if option == "--source" else "val"
        if usual not in listing.splits and len(listing.splits) > 1:
            raise DataError(
                f"{option} {address} has no split {usual!r} but {', '.join(listing.splits)}; "
                f"name one: {listing.root}:SPLIT"
            )
        name = usual if usual in listing.splits else next(iter(listing.splits))
        listing = replace(listing, splits={name: listing.splits[name]})
        facts = self.checked(listing)
        pairs = tuple(p for p in toned(listing.splits[name], facts.tones) if p.image not in facts.bad)
        masked = tuple(pair for pair in pairs if pair.mask is not None)
        if not masked:
            raise DataError(f"{option} {address}: the split {name!r} has no mask that can be used")
        if option == "--source":
            self.found += len(listing.splits[name]) + len(listing.stray)
            self.drop(UNREADABLE, len(facts.bad))
            self.drop("masks without an image", len(listing.stray))
            self.drop("of a source without a mask", len(pairs) - len(masked))
            self.pixels.append(facts.pixels)
        else:
            self.val, self.val_split, self.val_tones = masked, name, facts.tones
        return replace(listing, splits={name: masked})

    def target(self, address: str) -> tuple[tuple[Pair, ...], Listing | None]:
        """The pictures of the target, and the set they are of where it has a class list."""
        root, split = split_address(address)
        listing = _set_with_classes(root)
        if listing is None:
            pairs = open_images(address)
        else:
            splits = [listing.split(split)] if split else list(listing.splits.values())
            pairs = tuple({pair.image: Pair(pair.name, pair.image) for part in splits for pair in part}.values())
            pairs, held = apart_from_held_out(address, pairs)
            self.found += held
            self.drop(f"of the target, {OF_HELD_OUT}", held)
        if not pairs:
            raise DataError(f"--target {address} holds no image")
        facts = self.checked(Listing(root, "images", (), (), {"target": pairs}, {}), has_labels=False)
        self.found += len(pairs)
        self.drop(UNREADABLE, len(facts.bad))
        self.tones = joined_tones(facts.tones, self.val_tones)
        kept = tuple(pair for pair in toned(pairs, self.tones) if pair.image not in facts.bad)
        if not kept:
            raise DataError(f"--target {address} holds no image that can be read")
        if listing is not None and any(pair.mask for part in listing.splits.values() for pair in part):
            self.notes.append(f"{root} holds masks: they are left alone; --val FOLDER:split would measure on a split")
        return kept, listing

    def pasted(self, pairs: tuple[Pair, ...], decoder: Decoder, classes: Sequence[str]) -> CopyPaste | None:
        """What is put into the pictures of a source: objects of its own."""
        paste, told = learn(pairs, by_class(decoder), classes, self.config.copy_paste, seed=0)
        self.notes += [told] if told else []
        return paste

    def never_seen(self, classes: Sequence[str], pixels: Array) -> None:
        """W115 for classes of the model that no source shows."""
        never = tuple(classes[i] for i in np.flatnonzero(pixels == 0).tolist())
        if never:
            self.warnings.append(
                Finding("W115", "classes that no source mask read holds", never, "They cannot be learnt.",
                        "Map a source class to them, add a source that shows them, or expect an IoU of 0.")
            )  # fmt: skip

    def apart(self, target: tuple[Pair, ...], sources: Sequence[Source], val: Sequence[Pair]) -> tuple[Pair, ...]:
        """The target without pictures that are also labelled ones of a source or of ``val``.

        Raises:
            DataError: none is left, or a validation picture is trained on.
        """
        labelled = tuple(pair for source in sources for pair in source.pairs)
        learnt = same_pictures(val, labelled)
        if learnt:
            raise DataError(
                f"E125 --source and --val share {len(learnt)} images ({learnt[0].image} and so on): "
                "the score would be that of training images; name different sets or splits"
            )
        for others, option, why in ((labelled, "--source", "its labels are known"),
                                    (val, "--val", "it would be adapted to and measured on")):  # fmt: skip
            twice = same_pictures(target, others)
            if len(twice) == len(target):
                raise DataError(
                    f"E125 every image of --target is in {option} too ({twice[0].image} and so on): {why}; "
                    "name two different sets, or two different splits: DIR:split"
                )
            self.drop(f"of the target that {option} has too", len(twice))
            taken = {pair.image for pair in twice}
            target = tuple(pair for pair in target if pair.image not in taken)
        return target

    def small(self, target: Sequence[Pair], sources: Sequence[Source], crop: int) -> None:
        """Says how many pictures are smaller than a crop."""
        pairs = {"target": target, "source": [pair for source in sources for pair in source.pairs]}
        for what, among in pairs.items():
            small = [pair for pair in among if min(picture_size(pair.image)) < crop]
            if small:
                self.notes.append(
                    f"{len(small)} of {len(among)} {what} images are smaller than --crop {crop} (as {small[0].name}): "
                    "they are padded, and padding takes no part in any loss"
                )


def _refuse_one_set(config: Domains) -> None:
    """Refuses a target that is a source: the same folder, and no split of its own."""
    root, split = split_address(config.target)
    for address in config.source:
        if root.resolve() == split_address(address)[0].resolve() and (split is None or address == config.target):
            raise DataError(
                f"E125 --source and --target are one set, {root}: there is nothing to adapt to; "
                "name two different sets, or two different splits: DIR:split"
            )


def _set_with_classes(root: Path) -> Listing | None:
    """The data set in a folder, None where it is a folder of images and nothing more.

    Raises:
        DataError: it is more, and cannot be read: nobody knows which of its images are held out to measure on.
    """
    if root.is_dir() and is_plain(root):
        return None
    listing = open_listing(str(root), "auto")
    return listing if listing.classes else None


def _model_classes(
    val: Listing | None, target: Listing | None, source: Listing, config: Domains
) -> tuple[Listing, str]:
    """The set whose class list is the model's, and what it is called in messages."""
    if val is not None:
        return val, f"--val {config.val}"
    return (target, f"--target {config.target}") if target is not None else (source, f"--source {config.source[0]}")


def _map_of(config: Domains, number: int) -> str:
    """The class map of one source; empty where there is none."""
    if not config.map:
        return ""
    return config.map[number] if len(config.map) > 1 else config.map[0]


def _matched(source: Listing, known: Listing, origin: str, map_file: str, notes: list[str]) -> dict[int, int]:
    """Class id of the model, or `IGNORE`, by that of ``source``: by its map, or by name where all names agree.

    Raises:
        DataError: the names differ and there is no map, or it does not fit.
    """
    if map_file:
        ids = read_class_map(Path(map_file), source.classes, known.classes)
        ignored = [source.classes[i] for i, other in ids.items() if other == IGNORE]
        if ignored:
            notes.append(f"{source.root}: {map_file} leaves out {', '.join(ignored)}")
        return ids
    if source.classes == known.classes:
        return {i: i for i in range(len(known.classes))}
    if sorted(source.classes) == sorted(known.classes):
        notes.append(f"{source.root} has the model's classes in another order; they are matched by name")
        return {i: known.classes.index(name) for i, name in enumerate(source.classes)}
    ours, theirs = set(source.classes) - set(known.classes), set(known.classes) - set(source.classes)
    raise DataError(
        f"E125 the classes of --source {source.root} and of {origin} differ (only there: {_some(ours)}; only here: "
        f"{_some(theirs)}); say which is which: {proposing(source.root, known.root)} "
        "writes a proposal, --map maps.yaml takes it"
    )


def _some(names: set[str]) -> str:
    """A few names, or ``none``."""
    return ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "") if names else "none"


def _only_split(listing: Listing) -> tuple[Pair, ...]:
    """The pairs of a set that was cut down to one split."""
    return next(iter(listing.splits.values()))


def _translated(pairs: Sequence[Pair], folder: str) -> tuple[Path, ...]:
    """For each pair the picture of its name in ``folder``.

    Raises:
        DataError: there is none, or its size is another.
    """
    if not Path(folder).is_dir():
        raise DataError(f"--translated {folder} is no folder; name one with a picture for each source image")
    there = images_in(Path(folder))
    missing = [pair.name for pair in pairs if pair.name not in there]
    if missing:
        raise DataError(
            f"--translated {folder} has no picture {missing[0]!r} ({len(missing)} of {len(pairs)} are missing); "
            "each source image needs one of its name"
        )
    for pair in pairs:
        ours, theirs = picture_size(pair.image), picture_size(there[pair.name])
        if ours != theirs:
            raise DataError(
                f"{there[pair.name]} is {theirs[0]}x{theirs[1]}, {pair.image} is {ours[0]}x{ours[1]}: "
                "labels would not lie on it; translate the images at their size"
            )
    return tuple(there[pair.name] for pair in pairs)


def _one_name_each(sources: Sequence[Source], folder: str) -> None:
    """Refuses sources that share names: one translated picture cannot be of two images."""
    names = [pair.name for source in sources for pair in source.pairs]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(sources) > 1 else []
    if twice:
        raise DataError(f"--translated {folder}: two sources have an image {twice[0]!r}; give one source, or rename")
