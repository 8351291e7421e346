"""`segue data get`: against folders and servers on this machine; no test reaches further."""

import hashlib
import io
import itertools
import json
import os
import re
import shutil
import socket
import stat
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from segue.data import fetch, transport
from segue.data.archive import members
from segue.data.catalogue import Entry, File, catalogue
from segue.data.fetch import ChecksumError, get, in_mirror, parse_sums
from segue.errors import DataError

BIG = bytes(range(256)) * 8192  # 2 MiB
SET = {"dataset.json": b"{}", "images/a b.png": b"first", "images/ä#1.png": b"second", "labels/a b.png": b"first"}


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def sums(files: dict[str, bytes]) -> bytes:
    return "".join(f"{sha(content)}  {path}\n" for path, content in files.items()).encode()


def as_set(files: dict[str, bytes], name: str = "toy") -> dict[str, bytes]:
    return {f"{name}/SHA256SUMS": sums(files)} | {f"{name}/{path}": content for path, content in files.items()}


def write(root: Path, files: dict[str, bytes]) -> Path:
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


def visible(out: Path) -> dict[str, bytes]:
    """What lies in ``out`` under a final name."""
    files = {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    return {path: content for path, content in files.items() if not path.startswith(".segue") and path != "SHA256SUMS"}


class Server(ThreadingHTTPServer):
    """Serves ``files``; what goes wrong is said by path, and each answer's bytes are counted."""

    request_queue_size = 64  # with the default of 5, eight workers wait for a lost SYN now and then

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.delay = 0.0  # seconds before each answer
        self.has_range = True
        self.wrong_range = False
        self.has_length = True
        self.cut: dict[str, list[int]] = {}  # bytes after which the connection breaks, one a request
        self.status: dict[str, list[int]] = {}  # statuses to answer first
        self.redirect: dict[str, str] = {}
        self.requests: list[tuple[str, str]] = []
        self.sent: dict[str, int] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        from urllib.parse import unquote

        path, server = unquote(self.path[1:]), self.server
        wanted = self.headers.get("Range", "")
        server.requests.append((path, wanted))
        time.sleep(server.delay)
        if path in server.redirect:
            self.send_response(302)
            self.send_header("Location", server.redirect[path])
            return self.end_headers()
        status = server.status[path].pop(0) if server.status.get(path) else 200 if path in server.files else 404
        content, start = server.files.get(path, b""), 0
        if status == 200 and wanted and server.has_range:
            start = 1 if server.wrong_range else int(wanted.removeprefix("bytes=").removesuffix("-"))
            status = 206 if start < len(content) else 416
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        body = content[start:] if status in (200, 206) else b""
        if server.has_length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if server.cut.get(path):
            body = body[: server.cut[path].pop(0)]
        server.sent[path] = server.sent.get(path, 0) + len(body)
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def public(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts one set called ``toy`` into the catalogue, whose own homes no test may call."""

    def add(*files: File, note: str = "") -> None:
        entry = Entry("toy", "a toy", "CC0", "https://example.org", files, note)
        monkeypatch.setattr(fetch, "catalogue", lambda: (entry,))

    return add


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)
    return buffer.getvalue()


# The mirror


@pytest.mark.parametrize("kind", ["folder", "url"])
def test_a_mirror_gives_every_file_and_becomes_a_mirror_itself(
    tmp_path: Path, server: Server, lines: list[str], kind: str
) -> None:
    server.files = as_set(SET)
    mirror = server.url + "/" if kind == "url" else str(write(tmp_path / "mirror", as_set(SET)))
    out = get("toy", tmp_path / "data" / "toy", mirror=mirror, log=lines.append)
    assert visible(out) == SET
    assert not list(out.rglob("*.tmp"))
    assert not (out / ".segue-partial").exists()
    again = get("toy", tmp_path / "again", mirror=str(tmp_path / "data"), log=lines.append)
    assert visible(again) == SET
    assert in_mirror(str(tmp_path / "data")) == ("toy",)
    assert in_mirror(server.url) == ()


def test_the_mirror_is_read_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGUE_MIRROR", str(write(tmp_path / "mirror", as_set(SET))))
    assert visible(get("toy", tmp_path / "out")) == SET
    with pytest.raises(DataError, match="the catalogue has no 'toy'"):
        get("toy", tmp_path / "other", mirror="")


def test_a_second_run_does_nothing(tmp_path: Path, server: Server, lines: list[str]) -> None:
    server.files = as_set(SET)
    out = get("toy", tmp_path / "out", mirror=server.url, log=lines.append)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    server.requests.clear()
    get("toy", out, mirror=server.url, log=lines.append)
    assert [path for path, _ in server.requests] == ["toy/SHA256SUMS"]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert "nothing to do" in lines[-1]


def test_only_what_is_missing_is_fetched(tmp_path: Path, server: Server) -> None:
    server.files = as_set(SET)
    out = get("toy", tmp_path / "out", mirror=server.url)
    (out / "images/a b.png").unlink()
    server.requests.clear()
    get("toy", out, mirror=server.url)
    assert [path for path, _ in server.requests] == ["toy/SHA256SUMS", "toy/images/a b.png"]
    assert visible(out) == SET


def test_a_file_changed_by_its_owner_is_never_overwritten(tmp_path: Path, server: Server) -> None:
    server.files = as_set(SET)
    out = get("toy", tmp_path / "out", mirror=server.url)
    (out / "labels/a b.png").write_bytes(b"corrected by hand")
    with pytest.raises(DataError, match=r"labels/a b\.png was changed after it came"):
        get("toy", out, mirror=server.url)
    assert (out / "labels/a b.png").read_bytes() == b"corrected by hand"


def test_a_folder_with_anything_else_is_refused(tmp_path: Path) -> None:
    mirror = write(tmp_path / "mirror", as_set(SET) | as_set({"x": b"1"}, "other"))
    with pytest.raises(DataError, match="not empty and holds something else; choose another --out"):
        get("toy", write(tmp_path / "mine", {"thesis.txt": b"x"}), mirror=str(mirror))
    assert sorted(p.name for p in (tmp_path / "mine").iterdir()) == ["thesis.txt"]
    out = get("other", tmp_path / "out", mirror=str(mirror))
    with pytest.raises(DataError, match="holds other from another source"):
        get("toy", out, mirror=str(mirror))
    with pytest.raises(DataError, match="is a file"):
        get("toy", tmp_path / "mine" / "thesis.txt", mirror=str(mirror))


def test_a_copy_made_by_hand_is_taken_as_the_set(tmp_path: Path, lines: list[str]) -> None:
    mirror = write(tmp_path / "mirror", as_set(SET))
    shutil.copytree(mirror / "toy", tmp_path / "out")
    (tmp_path / "out" / "dataset.json").unlink()
    assert visible(get("toy", tmp_path / "out", mirror=str(mirror), log=lines.append)) == SET


def test_unknown_names_are_answered_with_the_nearest(tmp_path: Path, server: Server) -> None:
    with pytest.raises(DataError, match="did you mean camvid"):
        get("canvid", tmp_path / "out", mirror="")
    mirror = str(write(tmp_path / "mirror", as_set(SET)))
    with pytest.raises(DataError, match="has no 'toi'; did you mean toy"):
        get("toi", tmp_path / "out", mirror=mirror)
    with pytest.raises(DataError, match="HTTP 404"):
        get("toy", tmp_path / "out", mirror=server.url)
    for name in ("../toy", "a/b", "", ".", "..", "a\\b"):
        with pytest.raises(DataError, match="not the name of a set"):
            get(name, tmp_path / "out", mirror=mirror)
    with pytest.raises(DataError, match="no folder on this machine"):
        get("toy", tmp_path / "out", mirror=str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"folder or an http\(s\) URL"):
        get("toy", tmp_path / "out", mirror="ftp://127.0.0.1/")
    assert not (tmp_path / "out").exists()


def test_the_licence_is_said_before_anything_is_fetched(tmp_path: Path, server: Server, lines: list[str]) -> None:
    server.files = as_set(SET, "camvid")
    seen: list[int] = []
    get(
        "camvid",
        tmp_path / "out",
        mirror=server.url,
        log=lambda line: (lines.append(line), seen.append(len(server.requests))),
    )
    first = next(i for i, line in enumerate(lines) if "CC BY-NC 4.0" in line)
    assert seen[first] == 1  # SHA256SUMS alone


# Broken connections


def test_a_broken_download_goes_on_where_it_stopped(tmp_path: Path, server: Server, lines: list[str]) -> None:
    server.files = as_set({"big": BIG})
    server.cut["toy/big"] = [300_000, 500_000]
    done: list[tuple[int, int | None]] = []
    out = get(
        "toy",
        tmp_path / "out",
        mirror=server.url,
        log=lines.append,
        progress=lambda *now: done.append(now),
        backoff=0.01,
    )
    assert visible(out) == {"big": BIG}
    assert done[-1] == (len(BIG), None)
    assert [wanted for path, wanted in server.requests if path == "toy/big"] == ["", "bytes=300000-", "bytes=800000-"]
    assert server.sent["toy/big"] == len(BIG)  # not one byte twice
    assert any("connection closed after 300,000 of 2,097,152 bytes" in line for line in lines)


def test_a_later_run_goes_on_where_the_first_gave_up(tmp_path: Path, server: Server) -> None:
    server.files = as_set({"big": BIG})
    server.cut["toy/big"] = [1_000_000, 0, 0, 0]
    with pytest.raises(DataError, match=r"What came is kept.*SEGUE_MIRROR"):
        get("toy", tmp_path / "out", mirror=server.url, backoff=0.01)
    assert visible(tmp_path / "out") == {}
    get("toy", tmp_path / "out", mirror=server.url)
    assert visible(tmp_path / "out") == {"big": BIG}
    assert server.sent["toy/big"] == len(BIG)


@pytest.mark.parametrize("fault", ["ignores ranges", "answers another range"])
def test_a_server_without_ranges_sends_the_whole_again(
    tmp_path: Path, server: Server, lines: list[str], fault: str
) -> None:
    server.files = as_set({"big": BIG})
    server.cut["toy/big"] = [300_000]
    server.has_range, server.wrong_range = fault != "ignores ranges", fault != "ignores ranges"
    done: list[int] = []
    out = tmp_path / "out"
    get("toy", out, mirror=server.url, log=lines.append, progress=lambda now, _: done.append(now), backoff=0.01)
    assert visible(out) == {"big": BIG}
    assert server.sent["toy/big"] >= len(BIG) + 300_000
    assert done[-1] == len(BIG)
    assert not any("wrong checksum" in line for line in lines)


def test_a_partial_that_is_already_whole_is_not_fetched_again(tmp_path: Path, server: Server) -> None:
    server.files = as_set({"big": BIG})
    server.cut["toy/big"] = [1000, 0, 0, 0]
    with pytest.raises(DataError):
        get("toy", tmp_path / "out", mirror=server.url, backoff=0.01)
    next((tmp_path / "out" / ".segue-partial").iterdir()).write_bytes(BIG)  # killed between the last byte and the name
    server.requests.clear()
    get("toy", tmp_path / "out", mirror=server.url)
    assert [path for path, _ in server.requests] == ["toy/SHA256SUMS"]
    assert visible(tmp_path / "out") == {"big": BIG}


def test_a_partial_of_another_content_is_thrown_away(tmp_path: Path, server: Server, lines: list[str]) -> None:
    server.files = as_set({"big": BIG})
    server.cut["toy/big"] = [1000, 0, 0, 0]
    with pytest.raises(DataError):
        get("toy", tmp_path / "out", mirror=server.url, backoff=0.01)
    next((tmp_path / "out" / ".segue-partial").iterdir()).write_bytes(b"x" * len(BIG))  # as long as the whole: HTTP 416
    get("toy", tmp_path / "out", mirror=server.url, log=lines.append)
    assert visible(tmp_path / "out") == {"big": BIG}


def test_a_busy_server_is_asked_again_and_a_refusal_is_not(tmp_path: Path, server: Server, lines: list[str]) -> None:
    server.files = as_set(SET)
    server.status = {"toy/SHA256SUMS": [503], "toy/dataset.json": [429]}
    assert visible(get("toy", tmp_path / "out", mirror=server.url, log=lines.append, backoff=0.01)) == SET
    assert sum("again in" in line for line in lines) == 2
    server.status = {"toy/SHA256SUMS": [403, 403]}
    server.requests.clear()
    with pytest.raises(DataError, match="HTTP 403 Forbidden"):
        get("toy", tmp_path / "new", mirror=server.url)
    assert len(server.requests) == 1


def test_waits_double(tmp_path: Path, server: Server, lines: list[str]) -> None:
    server.files = as_set(SET)
    server.status = {"toy/SHA256SUMS": [500] * 9}
    start = time.monotonic()
    with pytest.raises(DataError, match="4 attempts"):
        get("toy", tmp_path / "out", mirror=server.url, log=lines.append, backoff=0.02)
    assert time.monotonic() - start >= 0.02 + 0.04 + 0.08
    assert [re.search("again in (.*) s", line)[1] for line in lines] == ["0.02", "0.04", "0.08"]


def test_an_unreachable_host_is_named_with_the_way_out(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    with pytest.raises(DataError, match=f"{url}/toy/SHA256SUMS cannot be fetched.*refused.*SEGUE_MIRROR"):
        get("toy", tmp_path / "out", mirror=url, backoff=0.01)


def test_a_silent_server_does_not_hold_us_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "TIMEOUT", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(DataError, match="timed out"):
        get("toy", tmp_path / "out", mirror=f"http://127.0.0.1:{silent.getsockname()[1]}", backoff=0.01)


def test_a_server_that_states_no_length_is_read_to_its_end(tmp_path: Path, server: Server) -> None:
    server.files, server.has_length = as_set(SET), False
    assert visible(get("toy", tmp_path / "out", mirror=server.url)) == SET


# Checksums and hostile content


@pytest.mark.parametrize("kind", ["folder", "url"])
def test_a_wrong_file_never_gets_its_name(tmp_path: Path, server: Server, lines: list[str], kind: str) -> None:
    files = as_set(SET) | {"toy/images/ä#1.png": b"secand"}
    server.files = files
    mirror = server.url if kind == "url" else str(write(tmp_path / "mirror", files))
    with pytest.raises(ChecksumError) as caught:
        get("toy", tmp_path / "out", mirror=mirror, log=lines.append)
    for part in ("images/ä#1.png", f"sha256 is {sha(b'secand')}", f"expected {sha(b'second')}"):
        assert part in str(caught.value)
    assert visible(tmp_path / "out") == {path: content for path, content in SET.items() if path != "images/ä#1.png"}
    assert not (tmp_path / "out" / "SHA256SUMS").exists()
    assert sum("once more" in line for line in lines) == 1
    if kind == "url":
        assert [path for path, _ in server.requests].count("toy/images/ä#1.png") == 2
    server.files["toy/images/ä#1.png"] = b"second"
    if kind == "url":
        assert visible(get("toy", tmp_path / "out", mirror=mirror)) == SET


def test_every_wrong_file_is_named_at_once_and_a_wrong_mirror_is_given_up(tmp_path: Path, server: Server) -> None:
    server.files = as_set({f"{i:03}": b"right" for i in range(200)}) | {f"toy/{i:03}": b"wrong" for i in (3, 150)}
    with pytest.raises(ChecksumError, match=r"003: sha256(.|\n)*150: sha256(.|\n)*is incomplete"):
        get("toy", tmp_path / "few", mirror=server.url)
    assert len(visible(tmp_path / "few")) == 198
    server.files |= {f"toy/{i:03}": b"wrong" for i in range(200)}
    server.requests.clear()
    server.delay = 0.01
    with pytest.raises(ChecksumError, match=r"\d\d\d: sha256"):
        get("toy", tmp_path / "all", mirror=server.url)
    assert len(server.requests) < 200  # of 401


def test_one_wrong_answer_is_mended_by_the_second(tmp_path: Path, server: Server, lines: list[str]) -> None:
    server.files, server.has_length = as_set({"big": BIG}), False
    server.cut["toy/big"] = [5]  # without a length, an end too early looks like the end
    done: list[tuple[int, int | None]] = []
    get("toy", tmp_path / "out", mirror=server.url, log=lines.append, progress=lambda *now: done.append(now))
    assert visible(tmp_path / "out") == {"big": BIG}
    assert done[-1] == (len(BIG), None)


def test_progress_counts_each_byte_once(tmp_path: Path) -> None:
    mirror = write(tmp_path / "mirror", as_set(SET | {"big": BIG}))
    done: list[tuple[int, int | None]] = []
    get("toy", tmp_path / "out", mirror=str(mirror), progress=lambda *now: done.append(now))
    total = sum(len(content) for content in SET.values()) + len(BIG)
    assert done[-1] == (total, total)
    assert all(one[0] <= next[0] for one, next in itertools.pairwise(done))


@pytest.mark.parametrize(
    "path",
    ["../evil", "/evil", "a/../../evil", "C:/evil", "C:evil", "..\\evil", "a//b", "./a", "a/.", "a\0b", "a\x1bb",
     "a\u202eb", ".segue-data.json", ".segue-partial/x", "SHA256SUMS"],
)  # fmt: skip
def test_paths_that_could_escape_or_deceive_are_refused(tmp_path: Path, path: str) -> None:
    mirror = write(tmp_path / "mirror", {"toy/SHA256SUMS": sums({"good": b"1", path: b"2"}), "toy/good": b"1"})
    with pytest.raises(DataError, match="line 2: refusing the path"):
        get("toy", tmp_path / "out", mirror=str(mirror))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "lists no files"),
        (b"d41d8cd98f00b204e9800998ecf8427e  md5.png\n", "line 1"),
        (b"<html>404</html>", "line 1"),
        (sums({"a": b"1"}) * 2, "line 2: a is listed twice"),
        (f"{'0' * 64}  caf\xe9\n".encode("latin-1"), "refusing the path"),
    ],
)
def test_lists_that_are_no_lists_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_sums(content, "SHA256SUMS")


def test_lists_of_other_tools_are_read() -> None:
    text = f"{'A' * 64} *binary mode.png\r\n\n{'b' * 64}  x/y\n"
    assert parse_sums(text.encode(), "SHA256SUMS") == {"binary mode.png": "a" * 64, "x/y": "b" * 64}


def test_a_link_inside_the_folder_is_not_followed_out_of_it(tmp_path: Path) -> None:
    mirror, elsewhere = write(tmp_path / "mirror", as_set(SET)), tmp_path / "elsewhere"
    out = get("toy", tmp_path / "out", mirror=str(mirror))
    shutil.rmtree(out / "images")
    elsewhere.mkdir()
    (out / "images").symlink_to(elsewhere)
    with pytest.raises(DataError, match="leads out of"):
        get("toy", out, mirror=str(mirror))
    assert not list(elsewhere.iterdir())


def test_a_mirror_that_lacks_a_listed_file_says_which(tmp_path: Path) -> None:
    mirror = write(tmp_path / "mirror", as_set(SET))
    (mirror / "toy" / "dataset.json").unlink()
    with pytest.raises(DataError, match=r"lists .*toy/dataset\.json but does not have it"):
        get("toy", tmp_path / "out", mirror=str(mirror))


def test_a_redirect_to_another_scheme_is_refused(tmp_path: Path, server: Server) -> None:
    server.redirect["toy/SHA256SUMS"] = "file:///etc/hostname"
    with pytest.raises(DataError):
        get("toy", tmp_path / "out", mirror=server.url, backoff=0.01)
    server.redirect = {"toy/SHA256SUMS": f"{server.url}/moved"}
    server.files = as_set(SET) | {"moved": sums(SET)}
    assert visible(get("toy", tmp_path / "out", mirror=server.url)) == SET


def test_an_encrypted_address_does_not_lead_to_an_open_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Response(io.BytesIO):  # as of a server that redirects; one with a certificate is out of a test's reach
        url, status, headers, length = "http://example.org/x", 200, {}, None

    monkeypatch.setattr("urllib.request.urlopen", lambda request, timeout: Response(sums(SET)))
    with pytest.raises(DataError, match=r"leads to http://example\.org/x, which is less safe; refused"):
        get("toy", tmp_path / "out", mirror="https://example.org")


# Space


def test_too_little_space_is_said_before_the_first_byte(
    tmp_path: Path, server: Server, public: Callable[..., None]
) -> None:
    free = shutil.disk_usage(tmp_path).free
    public(File(f"{server.url}/huge.tar", "huge.tar", "0" * 64, free * 2 // 3, unpack=""))
    with pytest.raises(DataError, match=r"needs [\d.,]+ MB, its disk has [\d.,]+; choose another --out"):
        get("toy", tmp_path / "out", mirror="")  # the archive alone would fit, with its contents it does not
    assert server.requests == []


def test_a_broken_download_goes_on_where_the_disk_has_room_for_the_rest(
    tmp_path: Path, server: Server, public: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files, server.cut["big"] = {"big": BIG}, [1_500_000, 0, 0, 0]
    public(File(f"{server.url}/big", "big", sha(BIG), len(BIG)))
    with pytest.raises(DataError, match="What came is kept"):
        get("toy", tmp_path / "out", mirror="", backoff=0.01)
    used, rest = shutil.disk_usage(tmp_path), len(BIG) - 1_500_000
    monkeypatch.setattr(shutil, "disk_usage", lambda path: used._replace(free=rest - 1))
    with pytest.raises(DataError, match=r"needs 0\.6 MB"):
        get("toy", tmp_path / "out", mirror="")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: used._replace(free=rest))
    assert visible(get("toy", tmp_path / "out", mirror="")) == {"big": BIG}


def test_a_server_that_sends_more_than_it_said_is_stopped(
    tmp_path: Path, server: Server, public: Callable[..., None]
) -> None:
    server.files, server.has_length = {"big": BIG}, False
    public(File(f"{server.url}/big", "big", sha(BIG), 1000))
    with pytest.raises(DataError, match="sends more than the 1,000 bytes of big"):
        get("toy", tmp_path / "out", mirror="")
    assert sum(p.stat().st_size for p in (tmp_path / "out" / ".segue-partial").iterdir()) <= 1000


# The public home


def test_every_entry_of_the_catalogue_is_complete() -> None:
    assert [entry.name for entry in catalogue()] == [
        "camvid", "dsb2018", "bbbc038", "voc2012", "cityscapes", "coco_panoptic_sample", "weights",
    ]  # fmt: skip
    for entry in catalogue():
        assert entry.what and entry.licence and entry.home.startswith("https://")
        assert entry.files or "Register" in entry.note
        for file in entry.files:
            assert file.where.startswith("https://")
            assert file.sha256 is None or re.fullmatch("[0-9a-f]{64}", file.sha256)


def test_a_set_behind_a_login_is_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"without an account.*Register at .*leftImg8bit/.*gtFine/.*SEGUE_MIRROR"):
        get("cityscapes", tmp_path / "out", mirror="")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["zip", "tar", "tar.gz"])
def test_an_archive_is_unpacked_from_the_wanted_folder(
    tmp_path: Path, server: Server, lines: list[str], public: Callable[..., None], form: str
) -> None:
    inside = {
        "top/README": b"no",
        "top/CamVid/train/1.png": b"one",
        "top/CamVid/test/2.png": b"two",
        "top/CamVidX/3": b"",
    }
    content = zipped(inside) if form == "zip" else tarred(inside, "w:gz" if form == "tar.gz" else "w")
    server.files = {"a": content}
    server.cut["a"] = [100]
    public(File(f"{server.url}/a", "a", sha(content), len(content), unpack="top/CamVid"), note="holds train and test")
    out = get("toy", tmp_path / "out", mirror="", log=lines.append, backoff=0.01)
    assert visible(out) == {"train/1.png": b"one", "test/2.png": b"two"}
    assert parse_sums((out / "SHA256SUMS").read_bytes(), "") == {"train/1.png": sha(b"one"), "test/2.png": sha(b"two")}
    assert server.sent["a"] == len(content)
    assert lines[-1].endswith("holds train and test")
    assert not stat.S_IMODE((out / "train/1.png").stat().st_mode) & 0o111
    server.requests.clear()
    get("toy", out, mirror="", log=lines.append)
    assert server.requests == []
    (out / "test/2.png").unlink()
    get("toy", out, mirror="", log=lines.append)
    assert visible(out) == {"train/1.png": b"one", "test/2.png": b"two"}


def test_without_a_published_checksum_what_came_is_said_and_stored(
    tmp_path: Path, server: Server, lines: list[str], public: Callable[..., None]
) -> None:
    server.files = {"a": BIG}
    server.cut["a"] = [1000]
    public(File(f"{server.url}/a", "weights.bin"))
    out = get("toy", tmp_path / "out", mirror="", log=lines.append, backoff=0.01)
    assert visible(out) == {"weights.bin": BIG}
    assert any("no published checksum" in line for line in lines)
    assert f"sha256 {sha(BIG)}  weights.bin" in lines
    assert [wanted for _, wanted in server.requests] == ["", ""]  # halves of unknown files are not put together
    stored = json.loads((out / ".segue-data.json").read_text())["sources"]
    assert stored == {f"{server.url}/a": {"sha256": sha(BIG), "published": False}}


def test_an_archive_without_the_wanted_folder_is_said_to_have_changed(
    tmp_path: Path, server: Server, public: Callable[..., None]
) -> None:
    server.files = {"a": zipped({"other/x": b""})}
    public(File(f"{server.url}/a", "a.zip", unpack="top"))
    with pytest.raises(DataError, match="holds no folder top; its layout has changed"):
        get("toy", tmp_path / "out", mirror="")


def test_a_page_in_place_of_an_archive_is_named(tmp_path: Path, server: Server, public: Callable[..., None]) -> None:
    server.files = {"a": b"<html>please log in</html>"}
    public(File(f"{server.url}/a", "a.zip", unpack="top"))
    with pytest.raises(DataError, match=r"a\.zip from .* cannot be unpacked: File is not a zip file"):
        get("toy", tmp_path / "out", mirror="")


# Archives


def tarred(files: dict[str, bytes], mode: str = "w", *special: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for path, content in files.items():
            info = tarfile.TarInfo(path)
            info.size, info.mode = len(content), 0o4777
            archive.addfile(info, io.BytesIO(content))
        for info in special:
            archive.addfile(info)
    return buffer.getvalue()


def special(kind: bytes, name: str = "top/link", target: str = "/etc/passwd") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def zip_link() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("top/link")
        info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr("top/good", b"1")
        archive.writestr(info, "/etc/passwd")
    return buffer.getvalue()


HOSTILE = {
    "zip climbs": zipped({"top/good": b"1", "top/../../evil": b"2"}),
    "zip is absolute": zipped({"top/good": b"1", "/evil": b"2"}),
    "zip names a drive": zipped({"top/good": b"1", "C:/evil": b"2"}),
    "zip has a backslash": zipped({"top/good": b"1", "top\\..\\evil": b"2"}),
    "zip climbs outside the wanted folder": zipped({"top/good": b"1", "../evil": b"2"}),
    "zip holds a link": zip_link(),
    "tar climbs": tarred({"top/good": b"1", "top/../../evil": b"2"}),
    "tar is absolute": tarred({"top/good": b"1", "/evil": b"2"}),
    "tar holds a symbolic link": tarred({"top/good": b"1"}, "w", special(tarfile.SYMTYPE)),
    "tar holds a link that stays inside": tarred({"top/good": b"1"}, "w", special(tarfile.SYMTYPE, target="good")),
    "tar holds a hard link": tarred({"top/good": b"1"}, "w", special(tarfile.LNKTYPE)),
    "tar holds a device": tarred({"top/good": b"1"}, "w", special(tarfile.CHRTYPE)),
    "tar holds a pipe": tarred({"top/good": b"1"}, "w", special(tarfile.FIFOTYPE)),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_nothing_of_a_hostile_archive_is_unpacked(
    tmp_path: Path, server: Server, public: Callable[..., None], case: str
) -> None:
    server.files = {"a": HOSTILE[case]}
    public(File(f"{server.url}/a", "a.archive", sha(HOSTILE[case]), unpack="top"))
    with pytest.raises(DataError, match=r"a\.archive from .*refusing"):
        get("toy", tmp_path / "in" / "out", mirror="")
    assert visible(tmp_path / "in" / "out") == {}
    assert [p.name for p in tmp_path.iterdir()] == ["in"]
    assert [p.name for p in (tmp_path / "in").iterdir()] == ["out"]


def test_an_archive_cannot_replace_our_own_records(tmp_path: Path, server: Server, public: Callable[..., None]) -> None:
    server.files = {"a": zipped({"top/.segue-data.json": b"{}"})}
    public(File(f"{server.url}/a", "a.zip", unpack="top"))
    with pytest.raises(DataError, match="used for the set's own records"):
        get("toy", tmp_path / "out", mirror="")


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(5_000_000))
    assert len(bomb.getvalue()) < 10_000
    (tmp_path / "bomb.zip").write_bytes(bomb.getvalue())
    monkeypatch.setattr("segue.data.archive.MAX_BYTES", 4_000_000)
    with pytest.raises(DataError, match="unpacks to 5,000,000 bytes"), members(tmp_path / "bomb.zip", "bomb"):
        pass


def test_unpacking_again_does_not_overwrite_what_was_changed(
    tmp_path: Path, server: Server, public: Callable[..., None]
) -> None:
    content = zipped({"top/first": b"1", "top/second": b"payload"})
    public(File(f"{server.url}/a", "a.zip", unpack="top"))
    server.files = {"a": content.replace(b"payload", b"paXload")}
    with pytest.raises(DataError, match="Bad CRC-32"):
        get("toy", tmp_path / "out", mirror="")
    (tmp_path / "out" / "first").write_bytes(b"mine")
    server.files = {"a": content}
    with pytest.raises(DataError, match="first was changed after it came"):
        get("toy", tmp_path / "out", mirror="")
    assert (tmp_path / "out" / "first").read_bytes() == b"mine"


def test_a_damaged_member_is_named(tmp_path: Path, server: Server, public: Callable[..., None]) -> None:
    content = zipped({"top/x": b"payload"}).replace(b"payload", b"paXload")
    server.files = {"a": content}
    public(File(f"{server.url}/a", "a.zip", sha(content), unpack="top"))
    with pytest.raises(DataError, match="cannot be unpacked: Bad CRC-32 for file 'top/x'"):
        get("toy", tmp_path / "out", mirror="")
    assert visible(tmp_path / "out") == {}


def test_the_real_mirror_gives_what_the_catalogue_says(tmp_path: Path) -> None:
    mirror = os.environ.get("SEGUE_MIRROR", "")
    if not mirror:
        pytest.skip("SEGUE_MIRROR is not set: no mirror with coco_panoptic_sample to read")
    out = get("coco_panoptic_sample", tmp_path / "out", mirror=mirror)
    entry = next(entry for entry in catalogue() if entry.name == "coco_panoptic_sample")
    for file in entry.files:
        content = (out / file.path).read_bytes()
        assert (sha(content), len(content)) == (file.sha256, file.size)


def test_a_readme_that_was_edited_is_left_out_and_said_and_the_set_is_whole(tmp_path: Path) -> None:
    files = SET | {"README.md": b"as listed"}
    mirror = write(tmp_path / "mirror", as_set(files))
    (mirror / "toy" / "README.md").write_bytes(b"edited since")
    lines: list[str] = []
    get("toy", tmp_path / "out", mirror=str(mirror), log=lines.append)
    assert visible(tmp_path / "out") == SET
    assert any("README.md" in line and "Left out" in line for line in lines)
    lines.clear()
    get("toy", tmp_path / "out", mirror=str(mirror), log=lines.append)
    assert any("nothing to do" in line for line in lines)
