"""What ``--map`` says: which class each stored value of a mask is."""

import re

import numpy as np

from segue.data.finding import option
from segue.data.listing import Listing
from segue.data.sample import IGNORE, Array
from segue.errors import DataError

STORED = 1 << 16  # values from 0 on that a class can be mapped from
LOWEST = -1 << 31  # that a mask can store: GIS marks pixels without data by -9999, -32768 or this
WHOLE = re.compile(r"-?\d+")
SPAN = re.compile(r"(-?\d{1,10})(?:-(-?\d{1,10}))?")


def ignoring(value: str) -> str:
    """The end of a message about a stored value that is no class: the option that maps it, as a shell takes it."""
    if not WHOLE.fullmatch(value) or not LOWEST <= int(value) < STORED:
        return f"or write 255 in place of it: what is mapped are whole numbers up to {STORED - 1}"
    return f"or map it: {option('map', f'{value}:ignore')}"


def is_whole(values: Array) -> Array:
    """Where floats, in which GIS programs write ids too, are whole numbers that a mask of integers could store."""
    found: Array = (np.abs(values) < -LOWEST) & (values == np.rint(values))  # neither holds for NaN
    return found


def parse_map(text: str, listing: Listing) -> dict[int, int]:
    """``77:ignore,255:1,3:road,1-19:0,-9999:ignore`` as stored value -> class id; a range goes to as many classes.

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
        spelt = SPAN.fullmatch(raw.strip())
        first, last = (int(spelt[1]), int(spelt[2] or spelt[1])) if spelt else (0, -1)
        span = last - first if first >= LOWEST and last < STORED and last - first < STORED else -1
        fits = index == IGNORE or 0 <= index < len(listing.classes) - span
        if span < 0 or not fits:
            raise DataError(
                f"--map {part!r} is no value:class; write 77:ignore, 255:1, 3:{listing.classes[0]} or 1-19:0"
            )
        found.update({first + i: IGNORE if index == IGNORE else index + i for i in range(span + 1)})
    return found
