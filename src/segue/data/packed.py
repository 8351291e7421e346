"""A file inside a tar shard, wherever Segue expects a file; its bytes are read by their place, without the tar around.

Each read is one read of the disk, of the member's own header and its content, and holds nothing when it is done: the
memory of reading is that of one file. A process keeps some shards open, since opening is what network disks are slow
at; reading by place does not move anything that processes or threads share.
"""

import functools
import io
import os
import shutil
import stat
import tarfile
from pathlib import Path
from typing import Any

from segue.errors import DataError

OPEN = 64  # shards that a process keeps open
BLOCK = tarfile.BLOCKSIZE  # bytes of a header, which lies right before the content


class _Shard:
    """A shard that is open for reading, until nobody reads it any more."""

    number = -1

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


@functools.lru_cache(maxsize=OPEN)
def _opened(path: Path) -> _Shard:
    """The shard at ``path``."""
    return _Shard(path)


def look_again() -> None:
    """Forgets which shards are open: a set that is opened anew may have been written anew."""
    _opened.cache_clear()


class Packed(type(Path())):  # type: ignore[misc]  # the class of this system's paths
    """``SHARD.tar/NAME``, which no other program can open by that path."""

    __slots__ = ("offset", "shard", "size")  # there may be millions of them
    shard: Path
    offset: int
    size: int

    @classmethod
    def at(cls, shard: Path, member: str, offset: int, size: int) -> "Packed":
        """The file whose content begins at byte ``offset`` of the tar and has ``size`` bytes."""
        found = cls(shard, member)
        found.shard, found.offset, found.size = shard, offset, size
        return found

    @property
    def member(self) -> str:
        """Its name in the tar."""
        return "/".join(self.parts[len(self.shard.parts) :])

    def __reduce__(self) -> tuple[Any, ...]:
        return Packed.at, (self.shard, self.member, self.offset, self.size)

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """A plain file of so many bytes."""
        return os.stat_result((stat.S_IFREG | 0o444, 0, 0, 1, 0, 0, self.size, 0, 0, 0))

    def lstat(self) -> os.stat_result:
        return self.stat()

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        return True

    def is_file(self) -> bool:
        return True

    def is_symlink(self) -> bool:
        return False

    def resolve(self, strict: bool = False) -> Path:
        """The same place by the shard's real path."""
        return self.shard.resolve(strict) / self.member

    def absolute(self) -> "Packed":
        """The same file, by the shard's absolute path."""
        return Packed.at(self.shard.absolute(), self.member, self.offset, self.size)

    def read_bytes(self) -> bytes:
        """The content.

        Raises:
            DataError: the shard is missing or cut short, or holds something else there.
        """
        try:
            shard = _opened(self.shard)
            found_bytes = os.pread(shard.number, BLOCK + self.size, self.offset - BLOCK)
        except OSError as error:
            raise DataError(f"{self.shard} cannot be read ({error.strerror}); copy it again") from None
        header, content = found_bytes[:BLOCK], found_bytes[BLOCK:]
        if len(header) < BLOCK or len(content) < self.size:
            raise DataError(f"{self.shard} is cut short before the end of {self.member}; copy it again")
        try:
            found = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            found = None
        named = header[:100].rstrip(b"\0") == self.member.encode("utf-8", "surrogateescape")[:100]
        if found is None or not named or found.size != self.size or not found.isfile():
            raise DataError(
                f"{self.shard} does not hold {self.member} where the index says; copy shard and index again, or write "
                "the shards anew"
            )
        return content

    def open(self, mode: str = "r", *arguments: Any, **named: Any) -> io.BytesIO:
        """The content, for reading as bytes."""
        if mode != "rb":
            raise ValueError(f"{self} is a part of a shard: it is read as bytes and never written")
        return io.BytesIO(self.read_bytes())


def content(path: Path) -> Path | io.BytesIO:
    """What Pillow can open: the path itself, or the bytes of a packed file."""
    return io.BytesIO(path.read_bytes()) if isinstance(path, Packed) else path


def copy_file(source: Path, target: Path) -> None:
    """The file byte for byte."""
    if isinstance(source, Packed):
        target.write_bytes(source.read_bytes())
    else:
        shutil.copyfile(source, target)
