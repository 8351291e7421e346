"""Which images are labelled, and which are kept for validation: reproducible choices by seed, or lists in files."""

import random
from collections.abc import Sequence
from pathlib import Path

from segue.data.listing import Pair, lines_of
from segue.errors import DataError


def amount(text: str, total: int, what: str) -> int:
    """``5%``, ``20`` or ``all`` of ``total`` as a count; a share is rounded to the nearest, at least 1.

    Raises:
        DataError: no such amount, or more than there are.
    """
    try:
        if text == "all":
            return total
        if text.endswith("%"):
            share = float(text[:-1])
            if not 0 < share <= 100:
                raise ValueError("no share")
            count = max(1, round(total * share / 100))
        else:
            count = int(text)
    except ValueError:
        raise DataError(
            f"{what} {text!r} is no amount; give a share (5%), a count (20), 'all', or a list (names.txt)"
        ) from None
    if not 1 <= count <= total:
        raise DataError(f"{what} {text} asks for {count} of {total} images; give 1 to {total}")
    return count


def is_list(text: str) -> bool:
    """Whether this is a file that names images, and no amount."""
    return text.endswith(".txt")


def choose(
    pairs: Sequence[Pair],
    text: str,
    seed: int,
    what: str = "--labels",
    *,
    held: Sequence[Pair] = (),
    bare: Sequence[Pair] = (),
) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """(chosen, rest) of ``pairs``, both in their order: so many by seed, or those that a list file names.

    The same seed chooses nested sets: 5 % is part of 10 %.

    Args:
        pairs: to choose from.
        text: an amount, or the file of a list.
        seed: of the choice.
        what: the option, for messages.
        held: pairs that a list may name and that are not to be had any more.
        bare: images that have no mask, and that a list may not name.

    Raises:
        DataError: no such amount, or the list names an image that is not there, or none that is to be had.
    """
    if is_list(text):
        path = Path(text)
        if not path.is_file():
            raise DataError(f"{what} {text}: no such file")
        wanted = set(lines_of(path))
        missing = wanted - {pair.name for pair in (*pairs, *held)}
        without = missing & {pair.name for pair in bare}
        if without:
            first, count = sorted(without)[0], len(without)
            raise DataError(
                f"{what} {text} names {first!r} ({count} such), which has no mask; take it off, or label it"
            )
        if missing:
            first, count = sorted(missing)[0], len(missing)
            there = next((f", which are called like {pair.name!r}" for pair in pairs), "")
            raise DataError(
                f"{what} {text} names {first!r} ({count} such), which is none of the images to train on{there}"
            )
        if wanted.isdisjoint(pair.name for pair in pairs):
            why = f"the {len(wanted)} that it names are validated on" if wanted else "it is empty"
            raise DataError(f"{what} {text} leaves no image to train on: {why}")
    else:
        order = sorted(pair.name for pair in pairs)
        random.Random(f"labels {seed}").shuffle(order)
        wanted = set(order[: amount(text, len(pairs), what)])
    chosen = tuple(pair for pair in pairs if pair.name in wanted)
    return chosen, tuple(pair for pair in pairs if pair.name not in wanted)
