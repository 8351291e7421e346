"""Data sets and weights from their public homes, or from a mirror in their place.

A *mirror* is a folder or an http(s) URL that holds ``NAME/SHA256SUMS`` and the files it lists. A folder that ``get``
has finished has the same form, so the folder above it is a mirror for others. Three promises hold for both sources: a
file bears its final name only once its checksum was right, the same command goes on where a broken one stopped, and no
file that was changed after it came is overwritten.
"""

import difflib
import errno
import hashlib
import json
import os
import re
import shutil
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

from segue.data.archive import check_path, members
from segue.data.catalogue import Entry, File, catalogue
from segue.data.transport import CHUNK, BrokenError, Log, check_whole, is_url, opened, retry
from segue.errors import DataError

SUMS = "SHA256SUMS"
MARKER = ".segue-data.json"  # what the folder holds and where it came from; written before anything else
PARTIAL = ".segue-partial"  # unfinished downloads; removed at the end
WORKERS = 8
MAX_BYTES = 64 << 30  # of a file whose size nobody has stated
MAX_WRONG = 10  # files with a wrong checksum after which a mirror is given up

Progress = Callable[[int, int | None], None]


class ChecksumError(DataError):
    """A file that is not, after a second try, what its checksum says."""


def in_mirror(mirror: str) -> tuple[str, ...]:
    """Names of the sets in a mirror's folder; none for a URL, which cannot be listed."""
    return () if is_url(mirror) else tuple(sorted(sums.parent.name for sums in Path(mirror).glob(f"*/{SUMS}")))


def to_stderr(line: str) -> None:
    """Writes ``line`` where it does not mix with a command's output."""
    sys.stderr.write(line + "\n")


def get(
    name: str,
    out: str | Path,
    *,
    mirror: str | None = None,
    log: Log = to_stderr,
    progress: Progress | None = None,
    backoff: float = 1.0,
) -> Path:
    """The folder ``out``, holding the set; what is already there and right is not fetched again.

    Args:
        name: of the catalogue, or of any folder in the mirror.
        out: a new or empty folder, or one where an earlier ``get`` of the same set stopped or finished.
        mirror: folder or URL; ``None`` reads ``SEGUE_MIRROR``, the empty string asks for the public home.
        log: takes a line: the licence before anything is fetched, retries, checksums, what came.
        progress: called with the bytes done and the bytes in all (``None`` if unknown), from several threads but one
            at a time; without it ``log`` gets a line every 5 s.
        backoff: seconds before the first retry of a failed connection; doubles each time.

    Raises:
        ChecksumError: some files are not what their checksum says; the others are in place.
        DataError: unknown name, another set in ``out``, no connection, an unsafe path or a full disk.
    """
    out, mirror = Path(out), os.environ.get("SEGUE_MIRROR", "") if mirror is None else mirror
    entry = next((entry for entry in catalogue() if entry.name == name), None)
    if mirror:
        sums = _read_sums(name, mirror, log, backoff)
        files = tuple(
            File(_join(mirror, name, path), path, digest) for path, digest in parse_sums(sums, f"{name}/{SUMS}").items()
        )
    else:
        sums, files = b"", _public_files(name, entry)
    if entry is not None:
        log(f"{name}: {entry.what}\nlicence: {entry.licence}")
    log(f"from: {mirror or (entry.home if entry else '')}")
    state = _claim(out, name, sums, files)
    fetch = partial(_fetch, out=out, log=log, backoff=backoff)
    try:
        _fill(out, files, sums, state, fetch=fetch, log=log, progress=progress)
    except OSError as error:
        hint = "; make room and run the same command again: it goes on" if error.errno == errno.ENOSPC else ""
        raise DataError(f"{out}: {error}{hint}") from error
    if entry is not None and entry.note and not mirror:
        log(f"{out} {entry.note}")
    return out


def parse_sums(sums: bytes, source: str) -> dict[str, str]:
    """Path -> hex digest of the lines of a SHA256SUMS file, each path safe to join to a folder."""
    listing: dict[str, str] = {}
    for number, line in enumerate(sums.decode("utf-8", "surrogateescape").split("\n"), 1):
        if not line.strip():
            continue
        match = re.fullmatch(r"([0-9a-fA-F]{64}) [ *](.+?)\r?", line, re.DOTALL)
        if match is None:
            raise DataError(f"{source} line {number}: {line[:80]!r} is not '<sha256>  <path>'")
        path = _check_path(match[2], f"{source} line {number}")
        if path in listing:
            raise DataError(f"{source} line {number}: {path} is listed twice")
        listing[path] = match[1].lower()
    if not listing:
        raise DataError(f"{source} lists no files")
    return listing


def _check_path(path: str, source: str) -> str:
    if path.partition("/")[0] in (MARKER, PARTIAL, SUMS):
        raise DataError(f"{source}: refusing the path {path!r}; the name is used for the set's own records")
    return check_path(path, source)


def _public_files(name: str, entry: Entry | None) -> tuple[File, ...]:
    if entry is None:
        raise DataError(_unknown(name, "the catalogue", [entry.name for entry in catalogue()]))
    if not entry.files:
        raise DataError(
            f"{name} cannot be downloaded without an account at {entry.home} ({entry.licence}). {entry.note}. "
            f"Or set SEGUE_MIRROR to a folder or URL that holds {name}/{SUMS}"
        )
    return entry.files


def _unknown(name: str, where: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"{where} has no {name!r}; " + (
        f"did you mean {near[0]}?" if near else f"it has {', '.join(known) or 'none'}"
    )


def _join(mirror: str, name: str, path: str) -> str:
    if is_url(mirror):
        return f"{mirror.rstrip('/')}/{name}/{urllib.parse.quote(path)}"
    return str(Path(mirror) / name / path)


def _read_sums(name: str, mirror: str, log: Log, backoff: float) -> bytes:
    if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
        raise DataError(f"{name!r} is not the name of a set: letters, digits, '.', '_' and '-' only")
    if "://" in mirror and not is_url(mirror):
        raise DataError(f"SEGUE_MIRROR is {mirror}: give a folder or an http(s) URL")
    where = _join(mirror, name, SUMS)
    if not is_url(mirror) and not Path(where).is_file():
        if not Path(mirror).is_dir():
            raise DataError(f"the mirror {mirror} is no folder on this machine; check SEGUE_MIRROR")
        raise DataError(_unknown(name, f"the mirror {mirror}", list(in_mirror(mirror))))

    def read() -> bytes:
        with opened(where, 0) as (chunks, _, total):
            sums = bytearray()
            for chunk in chunks:
                sums += chunk
                if len(sums) > 1 << 28:
                    raise DataError(f"{where} is larger than 256 MiB; is it a list of checksums?")
        check_whole(len(sums), total)
        return bytes(sums)

    return retry(read, where, log, backoff)


def _claim(out: Path, name: str, sums: bytes, files: tuple[File, ...]) -> dict[str, Any]:
    """The state of ``out``, which is from now on this set's; refuses a folder that holds anything else."""
    identity = hashlib.sha256(sums or repr(files).encode()).hexdigest()
    state = {"name": name, "identity": identity, "complete": False, "sources": {}}
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file; --out needs a folder")
    if out.is_dir() and any(out.iterdir()):
        try:
            found = json.loads((out / MARKER).read_bytes())
        except (OSError, ValueError):
            found = None
        if isinstance(found, dict) and found.get("identity") == identity:
            return {**state, **found}
        if not (sums and (out / SUMS).is_file() and (out / SUMS).read_bytes() == sums):
            held = f"{found.get('name')} from another source" if isinstance(found, dict) else "something else"
            raise DataError(f"{out} is not empty and holds {held}; choose another --out, or empty it first")
    out.mkdir(parents=True, exist_ok=True)
    _write(out / MARKER, json.dumps(state, indent=1).encode())
    return state


def _write(path: Path, content: bytes) -> None:
    scratch = path.with_name(f"{path.name}.tmp")
    with scratch.open("wb") as sink:
        sink.write(content)
        sink.flush()
        os.fsync(sink.fileno())
    scratch.replace(path)


def _fill(
    out: Path,
    files: tuple[File, ...],
    sums: bytes,
    state: dict[str, Any],
    *,
    fetch: Callable[..., str],
    log: Log,
    progress: Progress | None,
) -> None:
    """Fetches what is missing, unpacks archives, and writes SHA256SUMS and the finished marker last."""
    if state["complete"] and (out / SUMS).is_file():
        here = parse_sums((out / SUMS).read_bytes(), str(out / SUMS))
        if all([_is_right(out / path, digest) for path, digest in here.items()]):
            log(f"{out} is complete, every checksum right: nothing to do")
            return
    missing = [file for file in files if file.unpack is not None or not _is_right(out / file.path, file.sha256)]
    (out / PARTIAL).mkdir(exist_ok=True)
    archives = [file for file in missing if file.unpack is not None]
    total, unpacked = _total(missing), _total(archives)
    held = sum(path.stat().st_size for file in missing if (path := _scratch(out, file)).exists())
    _check_space(out, (total or 0) + (unpacked or 0) - held)
    tick = _meter(total, log, progress)
    wrong: list[str] = []
    pool = ThreadPoolExecutor(WORKERS)
    try:
        fetched = {pool.submit(fetch, file, tick=tick): file for file in missing}
        for coming in as_completed(fetched):
            file = fetched[coming]
            try:
                state["sources"][file.where] = {"sha256": coming.result(), "published": file.sha256 is not None}
            except ChecksumError as error:
                if file.path.upper().startswith("README"):  # a note for people: the set is whole without it
                    log(f"warning: {error}. Left out; the data is not affected")
                    files = tuple(other for other in files if other is not file)
                    sums = b""
                    continue
                wrong.append(str(error))
                if len(wrong) == MAX_WRONG:
                    break
    finally:
        pool.shutdown(cancel_futures=True)
    if wrong:
        raise ChecksumError(
            "\n".join(sorted(wrong)) + f"\n{out} is incomplete without what is named here, which is damaged at its "
            "source or newer than its list of checksums: tell the owner, or use another mirror"
        )
    listing = {file.path: file.sha256 or _digest(out / file.path) for file in files if file.unpack is None}
    for file in archives:
        listing |= _unpack(_scratch(out, file), file, out)
    if archives and sys.platform != "win32":
        os.sync()  # one for the thousands of members, before anything says that they are there
    _write(out / SUMS, sums or "".join(f"{digest}  {path}\n" for path, digest in sorted(listing.items())).encode())
    sources = {} if sums else state["sources"]  # of a mirror, SHA256SUMS says it all
    _write(out / MARKER, json.dumps({**state, "sources": sources, "complete": True}, indent=1).encode())
    shutil.rmtree(out / PARTIAL)
    log(f"{out}: {len(listing)} files, every checksum right")


def _total(files: list[File]) -> int | None:
    """Bytes of all ``files``; ``None`` where one of them is known only to its server."""
    try:
        sizes = [file.size if is_url(file.where) else Path(file.where).stat().st_size for file in files]
    except FileNotFoundError as error:
        raise DataError(f"the mirror lists {error.filename} but does not have it; tell its owner") from None
    return None if None in sizes else sum(size or 0 for size in sizes)


def _meter(total: int | None, log: Log, progress: Progress | None) -> Callable[[int], None]:
    lock, done, shown = threading.Lock(), 0, time.monotonic()

    def tick(size: int) -> None:
        nonlocal done, shown
        with lock:
            done += size
            if progress is not None:
                progress(done, total)
            elif time.monotonic() - shown > 5:
                shown = time.monotonic()
                log(f"  {done / 1e6:,.1f} MB" + (f" of {total / 1e6:,.1f} MB" if total else ""))

    return tick


def _scratch(out: Path, file: File) -> Path:
    """Where ``file`` grows: named after what it has to be, so that a partial of another version is never continued."""
    return out / PARTIAL / hashlib.sha256(f"{file.sha256} {file.path}".encode()).hexdigest()[:32]


def _digest(path: Path) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def _is_right(path: Path, digest: str | None) -> bool:
    """Whether the file is there with this checksum; False where it is missing, an error where it is another."""
    if not path.exists():
        return False
    if digest is None or (found := _digest(path)) == digest:
        return True
    raise DataError(
        f"{path} was changed after it came (sha256 is {found}, expected {digest}); it is left as it is: "
        "choose another --out, or move the file away and run again"
    )


def _fetch(file: File, *, out: Path, log: Log, backoff: float, tick: Callable[[int], None]) -> str:
    """The digest of ``file``, now in its place; an archive stays in the folder of partials."""
    scratch = _scratch(out, file)
    if file.sha256 is None:
        log(f"no published checksum for {file.where}: the sha256 of what comes is printed and stored in {out / MARKER}")
    for last in (False, True):
        if file.sha256 and scratch.exists() and _digest(scratch) == file.sha256:
            tick(scratch.stat().st_size)
        else:
            retry(partial(_download, file, scratch, tick, keep=file.sha256 is not None), file.where, log, backoff)
        digest = _digest(scratch)
        if file.sha256 in (None, digest):
            break
        tick(-scratch.stat().st_size)
        scratch.unlink()
        if last:
            raise ChecksumError(f"{file.path}: sha256 is {digest}, expected {file.sha256} (twice, from {file.where})")
        log(f"{file.path}: wrong checksum, fetching it once more")
    if file.sha256 is None:
        log(f"sha256 {digest}  {file.path}")
    if file.unpack is None:
        _place(scratch, out, file.path, digest)
    return digest


def _place(scratch: Path, out: Path, path: str, digest: str) -> None:
    """Gives a finished file its name below ``out``, unless the same or another file has it."""
    target = out / path
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.parent.resolve().is_relative_to(out.resolve()):
        raise DataError(f"{target.parent} is a link that leads out of {out}; remove it and run again")
    if not _is_right(target, digest):
        scratch.replace(target)


def _check_space(out: Path, size: int) -> None:
    free = shutil.disk_usage(out).free
    if size > free:
        raise DataError(f"{out} needs {size / 1e6:,.1f} MB, its disk has {free / 1e6:,.1f}; choose another --out")


def _download(file: File, scratch: Path, tick: Callable[[int], None], *, keep: bool) -> None:
    """Appends to ``scratch`` what it lacks of ``file``; without ``keep``, from its start."""
    limit = MAX_BYTES if file.size is None else file.size
    offset = scratch.stat().st_size if keep and scratch.exists() else 0
    with opened(file.where, offset) as (chunks, at, total):
        _check_space(scratch.parent, (total or 0) - at)
        tick(at)
        try:
            with scratch.open("ab" if at else "wb") as sink:
                for chunk in chunks:
                    if at + len(chunk) > limit:
                        raise DataError(f"{file.where} sends more than the {limit:,} bytes of {file.path}; stopped")
                    sink.write(chunk)
                    at += len(chunk)
                    tick(len(chunk))
                sink.flush()
                os.fsync(sink.fileno())
            check_whole(at, total)
        except BrokenError:
            tick(-at)
            raise


def _unpack(archive: Path, file: File, out: Path) -> dict[str, str]:
    """Path -> digest of what lies in the wanted folder of the archive, now in ``out``."""
    listing: dict[str, str] = {}
    scratch, folder = archive.with_suffix(".member"), f"{file.unpack}/" if file.unpack else ""
    with members(archive, f"{file.path} from {file.where}") as found:
        wanted = [member for member in found if member.path.startswith(folder)]
        _check_space(out, sum(member.size for member in wanted))
        for member in wanted:
            path = _check_path(member.path.removeprefix(folder), file.path)
            with member.read() as source, scratch.open("wb") as sink:
                shutil.copyfileobj(source, sink, CHUNK)
            listing[path] = _digest(scratch)
            _place(scratch, out, path, listing[path])
    if not listing:
        raise DataError(f"{file.path} from {file.where} holds no folder {file.unpack}; its layout has changed")
    return listing
