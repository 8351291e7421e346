"""Files that are whole or not there, and a full disk by its name, also where libraries do the writing."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

ROOM = 1 << 20  # bytes; a disk with less is full for all that Segue writes


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A hidden file beside ``path`` to write to: it takes the name when the block ends, and is gone if that fails."""
    partial = path.with_name(f".partial.{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Writes ``path`` through a temporary file beside it, synced to disk before it takes the name.

    Raises:
        OSError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def naming_a_full_disk(folder: Path, need: int = ROOM) -> Iterator[None]:
    """Makes of whatever a library raises while ``folder`` lacks room the error that Python itself would raise.

    Args:
        folder: where the library writes.
        need: bytes that it may want there at once.

    Raises:
        OSError: the disk is full; ``errno`` is ENOSPC.
    """
    try:
        yield
    except Exception as error:  # libraries in C++ have no common one
        if getattr(error, "errno", None) == errno.ENOSPC or shutil.disk_usage(folder).free >= need:
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
