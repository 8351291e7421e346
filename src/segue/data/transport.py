"""Bytes of a file or an http(s) URL, from any offset; what a network does to them is named, and tried again."""

import http.client
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, TypeVar

from segue.errors import DataError

ATTEMPTS = 4
TIMEOUT = 30  # seconds without a byte
CHUNK = 1 << 18

T = TypeVar("T")
Log = Callable[[str], None]


def is_url(where: str) -> bool:
    """Whether ``where`` is to be asked of a server; anything else is a path."""
    return where.startswith(("http://", "https://"))


class BrokenError(Exception):
    """A connection that failed in a way that another attempt may mend."""


def retry(action: Callable[[], T], where: str, log: Log, backoff: float) -> T:
    """What ``action`` gives, tried again after ``backoff`` seconds, then twice as many, while connections break."""
    for attempt in range(ATTEMPTS):
        try:
            return action()
        except BrokenError as error:
            trouble = error
        if attempt < ATTEMPTS - 1:
            log(f"{where}: {trouble}; again in {backoff * 2**attempt:g} s")
            time.sleep(backoff * 2**attempt)
    raise DataError(
        f"{where} cannot be fetched ({trouble}, {ATTEMPTS} attempts). What came is kept: the same command goes on from "
        "there. On a machine without this connection, set SEGUE_MIRROR to a folder or URL that holds the set"
    )


def check_whole(got: int, total: int | None) -> None:
    """Raises ``BrokenError`` where an answer ended early, which ``http.client`` does not say."""
    if total is not None and got < total:
        raise BrokenError(f"connection closed after {got:,} of {total:,} bytes")


@contextmanager
def opened(where: str, offset: int) -> Iterator[tuple[Iterator[bytes], int, int | None]]:
    """The bytes of ``where``, the offset they really start at, and the size of the whole if the server says it."""
    if not is_url(where):
        with open(where, "rb") as source:
            yield _chunks(source), 0, os.fstat(source.fileno()).st_size
        return
    headers = {"User-Agent": "segue", "Accept-Encoding": "identity"} | ({"Range": f"bytes={offset}-"} if offset else {})
    try:
        request = urllib.request.Request(where, headers=headers)  # noqa: S310  is_url lets http and https through
        response = urllib.request.urlopen(request, timeout=TIMEOUT)  # noqa: S310
    except urllib.error.HTTPError as error:
        error.close()
        if offset and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            with opened(where, 0) as whole:
                yield whole
            return
        if error.code in (408, 425, 429) or error.code >= 500:
            raise BrokenError(f"HTTP {error.code} {error.reason}") from None
        raise DataError(f"{where}: HTTP {error.code} {error.reason}; check the name and SEGUE_MIRROR") from None
    except (OSError, http.client.HTTPException) as error:
        raise BrokenError(str(getattr(error, "reason", error))) from None
    with response:
        if not response.url.startswith("https:" if where.startswith("https:") else ("http:", "https:")):
            raise DataError(f"{where} leads to {response.url}, which is less safe; refused")
        span = re.match(rf"bytes {offset}-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            yield _chunks(response), 0, response.length
        elif span:
            yield _chunks(response), offset, int(span[1])
        else:
            with opened(where, 0) as whole:
                yield whole


def _chunks(source: IO[bytes]) -> Iterator[bytes]:
    while True:
        try:
            chunk = source.read(CHUNK)
        except (OSError, http.client.HTTPException) as error:
            raise BrokenError(f"connection lost: {error or type(error).__name__}") from None
        if not chunk:
            return
        yield chunk
