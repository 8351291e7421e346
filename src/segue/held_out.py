"""Which labelled images a model is measured on: never in silence those that it learnt from."""

from pathlib import Path
from typing import Any

from segue.data.listing import Listing, Pair
from segue.errors import DataError
from segue.records import run_data


def to_measure(listing: Listing, source: str, split: str = "") -> tuple[str, tuple[Pair, ...]]:
    """`part_for` without the images that have no mask.

    Raises:
        DataError: as there, or none has a mask.
    """
    name, pairs = part_for(listing, source, split)
    masked = tuple(pair for pair in pairs if pair.mask is not None)
    if not masked:
        raise DataError(f"split {name!r} of {listing.root} has no mask to compare with")
    return name, masked


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
    data = run_data(source)
    at = data.get("validation_at", {})
    is_own = bool(at.get("data")) and Path(str(at["data"])).resolve() == listing.root.resolve()
    if is_own and (not split or (split == "val" and "val" not in listing.splits)):
        return _held_out(listing, source, data)
    if not split and "val" not in listing.splits and len(listing.splits) > 1:
        raise DataError(f"{listing.root} has no split 'val' but {', '.join(listing.splits)}; name one of them")
    name = split or ("val" if "val" in listing.splits else next(iter(listing.splits)))
    return name, listing.split(name)


def _held_out(listing: Listing, source: str, data: dict[str, Any]) -> tuple[str, tuple[Pair, ...]]:
    """The images that a run validated on."""
    part, names = str(data["validation_at"]["split"]), set(data.get("validation_names", ()))
    if not names:
        raise DataError(f"{source} held back no image of {listing.root}; name a split that it did not learn from")
    whole = listing.split(part)
    pairs = tuple(pair for pair in whole if pair.name in names)
    if not pairs:
        raise DataError(f"{listing.root} no longer has the images that {source} held back; name a split")
    return (part if len(pairs) == len(whole) else f"what it held back of {part}"), pairs
