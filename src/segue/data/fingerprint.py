"""What a run learnt from, as one number; which pictures are the same."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from segue.data.listing import Pair


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


def same_pictures(pairs: Sequence[Pair], others: Sequence[Pair]) -> list[Pair]:
    """Those of ``pairs`` whose picture is one of ``others``: the same file, or a copy of it byte for byte."""
    sizes: dict[int, list[Path]] = {}
    for pair in others:
        sizes.setdefault(pair.image.stat().st_size, []).append(pair.image)
    digests: dict[Path, bytes] = {}

    def digest(path: Path) -> bytes:
        if path not in digests:
            digests[path] = hashlib.sha256(path.read_bytes()).digest()
        return digests[path]

    return [
        pair
        for pair in pairs
        if any(digest(pair.image) == digest(other) for other in sizes.get(pair.image.stat().st_size, ()))
    ]
