"""Which labelled images a model is measured on, and how their masks are read: as the run did that it comes from, and
never in silence those that it learnt from."""

from pathlib import Path
from typing import NamedTuple

from segue.data.layouts import DIGESTED, address_of, digest_of, open_listing, split_address
from segue.data.listing import Listing, Pair
from segue.data.sample import Tones
from segue.data.stored_values import parse_map
from segue.errors import DataError
from segue.records import expecting, record_of, run_record


class _Own(NamedTuple):
    """How a run read the set that it validated on.

    Args:
        root: its folder; None of a run that validated on nothing, and of a model that is no run's.
        layout: how it lies on disk.
        mapping: stored mask values that were mapped.
        by_region: whether connected regions were objects.
        part: the split that the images are of.
        names: of these images, in the run's order.
        digest: of the first of them, see `digest_of`; empty in older records.
        masks: the same of their masks.
    """

    root: Path | None = None
    layout: str = "auto"
    mapping: str = ""
    by_region: bool = False
    part: str = ""
    names: tuple[str, ...] = ()
    digest: str = ""
    masks: str = ""

    @classmethod
    def of(cls, source: str) -> "_Own":
        """That of the run that a model comes from.

        Raises:
            DataError: the record of the run is damaged.
        """
        record = run_record(source)
        with expecting(record_of(source) or Path(source), "the record of a run"):
            at = record["data"].get("validation_at", {}) if record else {}
            if not at or not at["data"]:
                return cls()
            by_region = bool(record["identity"]["config"].get("by_region", False))
            names = tuple(map(str, record["data"].get("validation_names", ())))
            root = split_address(address_of(at))[0]
            layout, mapping, split = (str(at[key]) for key in ("layout", "map", "split"))
            digest, masks = (str(at.get(key, "")) for key in ("digest", "masks"))
            return cls(root, layout, mapping, by_region, split, names, digest, masks)

    def is_at(self, root: Path) -> bool:
        """Whether it is the set in ``root``."""
        return self.root is not None and self.root.resolve() == root.resolve()

    def is_listed(self, listing: Listing) -> bool:
        """Whether it is this set: in its place, or moved or copied with the images that the run validated on."""
        if self.is_at(listing.root):
            return True
        first = self._first(listing)
        return bool(self.digest and first) and digest_of(first) == self.digest

    def is_read_alike(self, listing: Listing) -> bool:
        """Whether a set elsewhere has the masks that the run read too: a converted copy has the same images alone."""
        is_known = self.is_listed(listing) and bool(self.masks)
        return is_known and digest_of(self._first(listing), masks=True) == self.masks

    def _first(self, listing: Listing) -> list[Pair]:
        """The images that were digested, of those that are there."""
        there = {pair.name: pair for pair in listing.splits.get(listing.meant(self.part), ())}
        return [there[name] for name in self.names[:DIGESTED] if name in there]


class Opened(NamedTuple):
    """A labelled set to measure a model on.

    Args:
        listing: the set.
        part: a name for the images that are measured on.
        pairs: these; they may lack masks.
        by_region: whether connected regions are objects where the set numbers none.
    """

    listing: Listing
    part: str
    pairs: tuple[Pair, ...]
    by_region: bool


def open_to_measure(
    source: str, address: str = "", *, split: str = "", layout: str = "auto", mapping: str = "", tones: Tones = ()
) -> Opened:
    """Opens a labelled set for a model; the set that its run validated on is read as the run read it.

    Args:
        source: run or model folder.
        address: of the set, ``DIR`` or ``DIR:split``; that of the run if absent.
        split: which part of it; if absent, see `part_for`.
        layout: how the set lies on disk.
        mapping: stored mask values to map, as ``77:ignore``.
        tones: the model's rules for deep images.

    Raises:
        DataError: the model is no run's and no set is named, or the set cannot be opened.
    """
    own = _Own.of(source)
    if not address and own.root is None:
        why = "was trained without a set to validate on" if record_of(source) else "does not say what it was trained on"
        raise DataError(f"{source} {why}; name the data set: --data FOLDER")
    root, part = split_address(address or str(own.root))
    if part and split and part != split:
        raise DataError(f"{address} names the split {part!r}, and {split!r} was asked for; name one of them")
    listing = None if own.is_at(root) else open_listing(str(root), layout)
    is_own = listing is None or own.is_read_alike(listing)
    if is_own:
        layout, mapping = own.layout if layout == "auto" else layout, mapping or own.mapping
    if listing is None or is_own:
        listing = open_listing(str(root), layout)  # as the run did
    listing = listing.extended(parse_map(mapping, listing)).toned(tones)
    return Opened(listing, *part_for(listing, source, split or part or ""), is_own and own.by_region)


def masked(listing: Listing, part: str, pairs: tuple[Pair, ...]) -> tuple[Pair, ...]:
    """Those of the pairs that have a mask.

    Raises:
        DataError: none has.
    """
    found = tuple(pair for pair in pairs if pair.mask is not None)
    if not found:
        raise DataError(f"split {part!r} of {listing.root} has no mask to compare with")
    return found


def part_for(listing: Listing, source: str, split: str = "") -> tuple[str, tuple[Pair, ...]]:
    """A name for the images that a model is looked at on, and these.

    Args:
        listing: the set.
        source: run or model folder; of the set that a run validated on, it gets the images that it validated on.
        split: the part of the set that was asked for. If absent: the images just said, or the split ``val``, or the
            only one.

    Raises:
        DataError: no such split, or none that the model did not learn from.
    """
    own = _Own.of(source)
    if own.is_listed(listing) and (not split or (split == "val" and "val" not in listing.splits)):
        return _held_out(listing, source, own)
    if not split and "val" not in listing.splits and len(listing.splits) > 1:
        raise DataError(f"{listing.root} has no split 'val' but {', '.join(listing.splits)}; name one of them")
    name = split or ("val" if "val" in listing.splits else next(iter(listing.splits)))
    return name, listing.split(name)


def _held_out(listing: Listing, source: str, own: _Own) -> tuple[str, tuple[Pair, ...]]:
    """The images that a run validated on."""
    if not own.names:
        raise DataError(f"{source} held back no image of {listing.root}; name a split that it did not learn from")
    whole, names = listing.split(own.part), set(own.names)
    pairs = tuple(pair for pair in whole if pair.name in names)
    if not pairs:
        raise DataError(f"{listing.root} no longer has the images that {source} held back; name a split")
    return (own.part if len(pairs) == len(whole) else f"what it held back of {own.part}"), pairs
