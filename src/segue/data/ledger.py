"""The ledger of a review: which pseudo-labels a person let pass. JSON lines; the last one about a picture counts."""

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from segue.errors import DataError

ACCEPT, REJECT, REDRAW, UNDECIDED = "accept", "reject", "redraw", "undecided"
DECISIONS = (ACCEPT, REJECT, REDRAW, UNDECIDED)


def read_ledger(path: Path) -> dict[str, str]:
    """Decision by resolved path of the picture; a half-written last line is left out.

    Raises:
        DataError: the file is missing or holds something else.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the ledger {path} cannot be read ({error})") from None
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.endswith("\n"):
            break
        try:
            entry = json.loads(line)
            image, decision = entry["image"], entry["decision"]
            if not isinstance(image, str):
                raise TypeError("an image is named by its path")
        except (ValueError, KeyError, TypeError, RecursionError):
            raise DataError(
                f"{path}:{number} is no decision of a review; restore the file or begin a new one"
            ) from None
        if decision not in DECISIONS:
            raise DataError(f"{path}:{number}: {decision!r} is none of {', '.join(DECISIONS)}")
        found[image] = decision
    return {image: decision for image, decision in found.items() if decision != UNDECIDED}


def append(path: Path, entry: Mapping[str, str]) -> None:
    """Adds one decision; it is on the disk when this returns. A half-written last line is taken out first.

    Raises:
        OSError: it does not fit; the ledger is as it was.
    """
    with path.open("a+b") as file:
        file.seek(0)
        sound = sum(len(line) for line in file if line.endswith(b"\n"))
        file.truncate(sound)
        try:
            file.write(json.dumps(entry).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):  # what waits to be written is not wanted any more
                file.close()
            os.truncate(path, sound)
            raise
