"""What is inside a zip or tar file from elsewhere, looked at before anything of it is written."""

import re
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from segue.errors import DataError

MAX_BYTES = 64 << 30  # of all members together


@dataclass(frozen=True)
class Member:
    """A plain file of an archive: a safe relative path, its size in bytes, and ``read``, which opens it."""

    path: str
    size: int
    read: Callable[[], IO[bytes]]


def check_path(path: str, source: str) -> str:
    """``path`` itself: relative, with forward slashes, and inside its folder.

    Raises:
        DataError: it is absolute, climbs out, names a drive, or holds a backslash or an invisible character.
    """
    unsafe = any(part in ("", ".", "..") for part in path.split("/")) or "\\" in path or re.match("[A-Za-z]:", path)
    if unsafe or any(unicodedata.category(character)[0] == "C" for character in path):
        raise DataError(f"{source}: refusing the path {path!r}; it could reach outside its folder or hide its name")
    return path


@contextmanager
def members(archive: Path, name: str) -> Iterator[list[Member]]:
    """The files of ``archive``, readable inside the block; ``name`` is what messages call it.

    Nothing here uses ``extract``: links, devices and every mode bit are refused or left behind, not filtered.

    Raises:
        DataError: it is damaged, larger than ``MAX_BYTES``, or any one member has an unsafe path or is no plain file.
    """
    try:
        with tarfile.open(archive) if tarfile.is_tarfile(archive) else zipfile.ZipFile(archive) as opened:
            found = _tar_members(opened) if isinstance(opened, tarfile.TarFile) else _zip_members(opened)
            for member, kind in found:
                check_path(member.path.rstrip("/"), name)
                if kind not in (stat.S_IFREG, stat.S_IFDIR):
                    raise DataError(f"{name}: refusing {member.path!r}, a link or device; nothing of it was unpacked")
            files = [member for member, kind in found if kind == stat.S_IFREG]
            total = sum(member.size for member in files)
            if total > MAX_BYTES:
                raise DataError(
                    f"{name} unpacks to {total:,} bytes, more than {MAX_BYTES:,}; nothing of it was unpacked"
                )
            yield files
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, RuntimeError) as error:
        raise DataError(f"{name} cannot be unpacked: {error}") from None


def _tar_members(opened: tarfile.TarFile) -> list[tuple[Member, int]]:
    def read(member: tarfile.TarInfo) -> Any:
        return opened.extractfile(member)

    kinds = {True: stat.S_IFREG, False: 0}
    return [
        (Member(tar.name, tar.size, partial(read, tar)), stat.S_IFDIR if tar.isdir() else kinds[tar.isreg()])
        for tar in opened
    ]


def _zip_members(opened: zipfile.ZipFile) -> list[tuple[Member, int]]:
    found = []
    for info in opened.infolist():
        # Zips made on Windows have no mode; the name before Python tidies it is what other tools would write.
        kind = stat.S_IFMT(info.external_attr >> 16) or (stat.S_IFDIR if info.is_dir() else stat.S_IFREG)
        found.append((Member(info.orig_filename, info.file_size, partial(opened.open, info)), kind))
    return found
