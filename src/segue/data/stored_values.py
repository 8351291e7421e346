"""What ``--map`` says: which class each stored value of a mask is."""

from segue.data.listing import Listing
from segue.data.sample import IGNORE
from segue.errors import DataError

STORED = 1 << 16  # values that a mask can store


def parse_map(text: str, listing: Listing) -> dict[int, int]:
    """``77:ignore,255:1,3:road,1-19:0`` as stored value -> class id; a range goes to as many classes.

    Raises:
        DataError: a part is no ``value:class``, or masks are read by colour and store no value.
    """
    found = {}
    if text and listing.by_color:
        raise DataError(
            f"--map {text} has no effect: the masks of {listing.root} are read by colour; "
            "leave it out, and give each class its colour in the class list"
        )
    for part in filter(None, text.split(",")):
        raw, _, target = part.partition(":")
        names = {"ignore": IGNORE, **{name: i for i, name in enumerate(listing.classes)}}
        index = names.get(target, int(target) if target.isdecimal() else -1)
        first, dash, last = raw.strip().partition("-")
        last = last if dash else first
        sound = all(text.isdecimal() and len(text) <= len(str(STORED)) for text in (first, last))
        span = int(last) - int(first) if sound and int(last) < STORED else -1
        fits = index == IGNORE or 0 <= index < len(listing.classes) - span
        if span < 0 or not fits:
            raise DataError(
                f"--map {part!r} is no value:class; write 77:ignore, 255:1, 3:{listing.classes[0]} or 1-19:0"
            )
        found.update({int(first) + i: IGNORE if index == IGNORE else index + i for i in range(span + 1)})
    return found
