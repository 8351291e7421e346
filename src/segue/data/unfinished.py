"""A folder that a command writes in full, or leaves marked as unfinished: then the same command starts it anew."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from segue.disk import write_atomically
from segue.errors import DataError

MARK = ".partial"
BEGINNING = b"segue: unfinished, "


@contextmanager
def written_in_full(out: Path, root: Path, what: str, is_ours: Callable[[str], bool]) -> Iterator[None]:
    """Within, ``out`` is marked as unfinished, and empty but for the mark at the start.

    Args:
        out: an absent or empty folder, or one that an interrupted call of the same kind left.
        root: of the set that is read, outside of which it lies.
        what: is written, as ``a conversion``.
        is_ours: whether a name within ``out`` is one that a call of this kind writes; nothing else is removed.

    Raises:
        DataError: ``out`` lies in ``root`` or holds something else.
    """
    if out.resolve().is_relative_to(root.resolve()):
        raise DataError(f"{out} lies in the data set itself, which is left as it is; name a folder outside {root}")
    mark, note = out / MARK, BEGINNING + f"{what}; the same command starts it anew\n".encode()
    held = sorted(path.name for path in out.iterdir()) if out.is_dir() else ["a file"] if out.exists() else []
    left = [name for name in held if not name.startswith((MARK, f".{MARK}."))]  # and a mark that was being written
    is_begun = mark.is_file() and mark.read_bytes() == note
    if left and not (is_begun and all(map(is_ours, left))):
        raise DataError(f"{out} is not an empty folder; name another")
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(mark, note)
    for path in (out / name for name in left):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    yield
    mark.unlink()


def refuse_unfinished(root: Path) -> None:
    """Refuses a folder that is marked as unfinished, or lies in one.

    Raises:
        DataError: it is.
    """
    for folder in (root, root.absolute().parent):
        mark = folder / MARK
        if mark.is_file() and mark.read_bytes().startswith(BEGINNING):
            raise DataError(f"{folder} is unfinished: the command that wrote it was interrupted, and starts it anew")
