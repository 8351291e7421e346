"""The ledger of a review: which pseudo-labels a person let pass. JSON lines; the last one about a picture counts."""

import json
from pathlib import Path

from segue.data.sample import DataError

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
        except (ValueError, KeyError, TypeError):
            raise DataError(
                f"{path}:{number} is no decision of a review; restore the file or begin a new one"
            ) from None
        if decision not in DECISIONS:
            raise DataError(f"{path}:{number}: {decision!r} is none of {', '.join(DECISIONS)}")
        found[image] = decision
    return {image: decision for image, decision in found.items() if decision != UNDECIDED}
