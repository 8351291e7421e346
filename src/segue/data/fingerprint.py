"""What a run learnt from, as one number."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path


def fingerprint(files: Iterable[tuple[str, Sequence[Path | None]]]) -> str:
    """A sha256 that changes with any byte of any of the files, their names and their order."""
    digest = hashlib.sha256()
    for name, paths in files:
        digest.update(name.encode())
        for path in paths:
            if path is not None:
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
