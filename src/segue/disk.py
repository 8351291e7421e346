"""Files that are whole or not there, folders that one command at a time writes to, and a full disk by its name."""

import contextlib
import errno
import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from segue.errors import UsageError

ROOM = 1 << 20  # bytes; a disk with less is full for all that Segue writes
HALF = re.compile(r"\.partial\..+|\..+\.\d+\.partial")  # names that `whole` and `write_atomically` write under
PATIENCE = 10.0  # seconds; the data workers of a process that was killed notice it within 5


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keeps other commands that ask the same out of a folder, which is made if missing, while the block runs.

    The folder itself is locked: no file is left, and the lock ends with the process however that ends. Where the file
    system knows no such locks, nobody is kept out.

    Raises:
        UsageError: another process is in it and does not leave within `PATIENCE`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            _locked(lock, folder)
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_UN)  # also for the workers that share it
        os.close(lock)


def _locked(lock: int, folder: Path) -> None:
    """Takes a lock, and waits for it.

    Raises:
        OSError: the file system knows no locks.
        UsageError: see `alone_in`.
    """
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise UsageError(
                    f"another segue command is writing to {folder}; wait for its end, or name another folder"
                ) from None
        time.sleep(0.1)


def held(folder: Path) -> list[Path]:
    """What a folder holds, but for files that a kill left before they took their names."""
    return [path for path in folder.iterdir() if not HALF.fullmatch(path.name)]


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
