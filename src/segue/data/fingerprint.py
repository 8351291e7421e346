"""What a run learnt from, as one number."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path


def fingerprint(files: Iterable[tuple[str, Sequence[Path | None]]]) -> str:
    """A sha256 that changes with any byte of any of the files, their names and their order."""
    digest, last = hashlib.sha256(), (Path(), b"")  # masks may lie in one file, which is read once
    for name, paths in files:
        digest.update(name.encode("utf-8", "surrogateescape"))
        for path in filter(None, paths):
            if last[0] != path:
                last = path, hashlib.sha256(path.read_bytes()).digest()
            digest.update(last[1])
    return digest.hexdigest()
