"""Which split the name of a folder, a list or an annotation file stands for: ``Train``, ``training``, ``train2017``."""

import re
from collections import Counter
from collections.abc import Collection, Iterable

from segue.errors import DataError

OTHER_NAMES = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "testing": "test"}
WORDS = "|".join(("train", "val", "test", *OTHER_NAMES))
NAME = re.compile(rf"({WORDS})([-_]?\d{{4}})?", re.IGNORECASE)  # a word and, for some, a year
LIKE = re.compile(rf"({WORDS})(?![a-z])", re.IGNORECASE)  # what such a name, or a longer one, begins with


def split_names(names: Iterable[str]) -> dict[str, str]:
    """The split that each name stands for: ``train`` for ``train2017``; itself where two would stand for one."""
    short = {name: _word(found[1]) if (found := NAME.fullmatch(name)) else name for name in names}
    counts = Counter(short.values())
    return {name: word if counts[word] == 1 else name for name, word in short.items()}


def told_apart(names: Iterable[str], origin: str) -> dict[str, str]:
    """`split_names` of folders or lists; two of one split may differ in their year, not in their word.

    Raises:
        DataError: two names in ``origin`` stand for one split.
    """
    meant = split_names(names)
    called: dict[str, list[str]] = {}
    for name in meant:
        called.setdefault(_word(name), []).append(name)
    for split, same in called.items():
        if len(same) > 1:
            together = " and ".join(sorted(same))
            raise DataError(f"{origin} has {together}, which are one split, {split}; put them together")
    return meant


def split_folders(names: Collection[str], origin: str) -> dict[str, str]:
    """The split that each outermost folder of the images ``names`` stands for; empty where folders are no splits.

    Raises:
        DataError: folders in ``origin`` look like splits, and it is not clear what is learnt from.
    """
    heads = sorted({name.partition("/")[0] for name in names if "/" in name})
    meant, like = told_apart(heads, origin), [head for head in heads if LIKE.match(head)]
    outside = next((name for name in names if "/" not in name), None)
    if outside is None and "train" in meant.values():
        return meant
    if len(like) > 1:
        why = "none of them is train" if outside is None else f"{outside} lies in none of them"
        raise DataError(
            f"{origin} has {' and '.join(like)}, which look like splits, and {why}; what is learnt from must lie in "
            f"{origin}/train, and no image beside the folders of the splits"
        )
    return {}


def _word(name: str) -> str:
    """The word that is used here in place of ``name``; a name that is none, as it is."""
    word = name.lower()
    return OTHER_NAMES.get(word, word if word in ("train", "val", "test") else name)
