"""The ledger of a review: which pseudo-labels a person let pass. JSON lines; the last one about a picture counts."""

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from segue.errors import DataError

ACCEPT, REJECT, REDRAW, UNDECIDED = "accept", "reject", "redraw", "undecided"
DECISIONS = (ACCEPT, REJECT, REDRAW, UNDECIDED)
BEGINNING = '{"image": "'  # of every line that `append` writes


def read_ledger(path: Path) -> dict[str, str]:
    """Decision by resolved path of the picture; a last line whose end is missing is left out.

    Raises:
        DataError: the file is missing or holds something else.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the ledger {path} cannot be read ({error})") from None
    last = lines.pop()
    lines += [last] if last and not is_cut(last) else []
    found = dict(_decision(line, f"{path}:{number}") for number, line in enumerate(lines, 1))
    return {image: decision for image, decision in found.items() if decision != UNDECIDED}


def is_cut(line: str) -> bool:
    """Whether a line without its newline is a decision of which only the beginning was written."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return line.startswith(BEGINNING) or BEGINNING.startswith(line)
    return False


def _decision(line: str, where: str) -> tuple[str, str]:
    """(picture, decision) of a line.

    Raises:
        DataError: it is no decision.
    """
    try:
        entry = json.loads(line)
        image, decision = entry["image"], entry["decision"]
        if not isinstance(image, str):
            raise TypeError("an image is named by its path")
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DataError(f"{where} is no decision of a review; restore the file or begin a new one") from None
    if decision not in DECISIONS:
        raise DataError(f"{where}: {decision!r} is none of {', '.join(DECISIONS)}")
    return image, decision


def append(path: Path, entry: Mapping[str, str]) -> None:
    """Adds one decision; it is on the disk when this returns. A last line whose end is missing is taken out first.

    Raises:
        OSError: it does not fit; the ledger is as it was.
        DataError: the last line is no decision; the file is as it was.
    """
    with path.open("a+b") as file:
        file.seek(0)
        lines = file.readlines()
        last = lines.pop() if lines and not lines[-1].endswith(b"\n") else b""
        sound = sum(map(len, lines))
        newline = b""
        if last and not is_cut(text := last.decode("utf-8", "replace")):
            _decision(text, f"{path}:{len(lines) + 1}")
            sound, newline = sound + len(last), b"\n"
        file.truncate(sound)
        try:
            file.write(newline + json.dumps(entry).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):  # what waits to be written is not wanted any more
                file.close()
            os.truncate(path, sound)
            raise
