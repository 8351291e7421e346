"""``segue serve``: it says what the model says, and takes nothing that could harm the machine."""

import asyncio
import base64
import io
import json
import logging
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CLASSES, COLORS, draw, turned, turned_late, untrained
from PIL import Image

pytest.importorskip("fastapi", reason="the extra serve is not installed")
from serving import TOKEN, Live, live

from segue.cli.serving import address_of, names_of, token_of
from segue.data.sample import read_image
from segue.errors import UsageError
from segue.models.segmenter import Segmenter, SegmenterSpec
from segue.prediction.pictures import predict_image
from segue.serve.app import Served
from segue.serve.limits import DISCARDED, Guard, Limits
from segue.serve.page import STATIC
from segue.serve.worker import Worker, decode
from segue.weights import save_model

Segue = Callable[..., tuple[int, str, str]]
SMALL = Limits(body=200_000, pixels=40_000, seconds=1.5, queue=3, batch=4)


def encoded(image: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def model() -> Segmenter:
    return untrained()


@pytest.fixture(scope="module")
def server(model: Segmenter) -> Iterator[Live]:
    with live(Served(model, "runs/first"), SMALL) as running:
        yield running


def test_an_answer_is_what_the_model_says(server: Live, model: Segmenter) -> None:
    picture = draw(1)[0][:41, :37]
    classes, _, uncertainty = predict_image(model, torch.from_numpy(picture).permute(2, 0, 1))
    status, content = server.ask("/predict?format=png", encoded(picture))
    assert status == 200
    with Image.open(io.BytesIO(content)) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), classes.numpy())
    found = server.json("/predict", encoded(picture))
    shares = [entry["share"] for entry in found["classes"]]  # type: ignore[attr-defined]
    np.testing.assert_allclose(shares, np.bincount(classes.flatten(), minlength=3) / classes.numel(), atol=1e-6)
    with Image.open(io.BytesIO(base64.b64decode(str(found["uncertainty_png"])))) as image:
        np.testing.assert_allclose(np.asarray(image) / 255, uncertainty, atol=0.01)


@pytest.mark.parametrize(("name", "write"), [("a.tif", turned), ("a.png", turned), ("a.png", turned_late)])
@pytest.mark.parametrize("turn", [6, 8])
def test_a_turned_picture_is_read_as_from_the_disk(
    tmp_path: Path, name: str, write: Callable[..., Path], turn: int
) -> None:
    path = write(np.arange(48, dtype=np.uint8).reshape(8, 6), tmp_path / name, turn)
    np.testing.assert_array_equal(decode(path.read_bytes(), SMALL), read_image(path))


def bomb(side: int) -> bytes:
    """A PNG whose header says side x side pixels and which holds none of them."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def deep() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


BAD: dict[str, tuple[bytes, int]] = {
    "nothing": (b"", 400),
    "text": (b"<html>", 400),
    "a program": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 400),
    "cut short": (encoded(draw(0)[0])[:500], 400),
    "too many pixels": (encoded(np.zeros((201, 201, 3), np.uint8)), 413),
    "a header of 900 MP": (bomb(30_000), 413),
    "16 bits": (deep(), 400),
    "too many bytes": (bytes(200_001), 413),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_pictures_are_refused_in_words_and_the_next_good_one_is_answered(server: Live, name: str) -> None:
    body, expected = BAD[name]
    status, content = server.ask("/predict", body, Content_Type="image/png")
    assert (status, "error" in json.loads(content)) == (expected, True)
    assert "Traceback" not in content.decode()
    assert str(Path(__file__).parent) not in content.decode()
    assert server.ask("/predict", encoded(draw(0)[0]))[0] == 200


def raw(server: Live, head: str, *parts: bytes, pause: float = 0.0) -> bytes:
    """What comes back for bytes as they are."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode())
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
            return connection.recv(65536)
        except (BrokenPipeError, ConnectionResetError):
            return connection.recv(65536)


def headers(server: Live, **more: str) -> str:
    lines = {"Host": f"127.0.0.1:{server.port}", "Authorization": f"Bearer {TOKEN}", **more}
    return "".join(f"{name.replace('_', '-')}: {value}\n" for name, value in lines.items())


def test_a_body_without_a_length_is_counted_as_it_comes(server: Live) -> None:
    head = f"POST /predict HTTP/1.1\n{headers(server, Transfer_Encoding='chunked')}\n"
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    assert b"413" in raw(server, head, *[chunk] * 4).split(b"\r\n")[0]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("length", ["Content_Length", "Transfer_Encoding"])
def test_what_only_asks_may_send_nothing(server: Live, method: str, length: str) -> None:
    told = {length: "5" if length == "Content_Length" else "chunked"}
    body = b"hello" if length == "Content_Length" else b"5\r\nhello\r\n0\r\n\r\n"
    assert b"413" in raw(server, f"{method} /healthz HTTP/1.1\n{headers(server, **told)}\n", body).split(b"\r\n")[0]


def test_a_body_for_a_path_that_is_open_to_readers_needs_the_token(server: Live) -> None:
    assert server.ask("/healthz", Authorization="")[0] == 200
    assert server.ask("/healthz", bytes(1000), Authorization="")[0] == 401
    assert server.ask("/healthz", bytes(1000))[0] == 405


def test_a_slow_body_is_cut_off(server: Live) -> None:
    head = f"POST /predict HTTP/1.1\n{headers(server, Content_Length='1000')}\n"
    started = time.monotonic()
    assert b"408" in raw(server, head, *[b"x"] * 3, pause=0.3).split(b"\r\n")[0]
    assert time.monotonic() - started < 6


def test_a_length_that_is_a_lie_costs_nobody_else_anything(server: Live) -> None:
    picture = encoded(draw(0)[0])
    for length, expected in ((len(picture) // 2, b"400"), (-1, b"400"), ("many", b"400"), (10**12, b"408")):
        head = f"POST /predict HTTP/1.1\n{headers(server, Content_Length=str(length))}\n"
        assert expected in raw(server, head, picture).split(b"\r\n")[0], length
        assert server.ask("/predict", picture)[0] == 200
    head = f"POST /predict HTTP/1.1\n{headers(server, Content_Length=str(2 * len(picture)))}\n".replace("\n", "\r\n")
    for _ in range(2 * SMALL.queue):  # they promise more than they send, and go
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            connection.sendall(head.encode() + picture)
    until = time.monotonic() + 1.2  # less than it takes to give up waiting for a body
    while (status := server.ask("/predict", picture)[0]) == 429 and time.monotonic() < until:
        time.sleep(0.02)
    assert status == 200
    assert b"segue_waiting 0.0" in server.ask("/metrics")[1]


def test_only_its_own_name_origin_and_token(server: Live) -> None:
    picture = encoded(draw(0)[0])
    assert server.ask("/predict", picture, Authorization="Bearer wrong")[0] == 401
    assert server.ask("/predict", picture, Authorization="")[0] == 401
    assert server.ask("/predict", picture, Origin="http://evil.example")[0] == 403
    for origin in (server.address, server.address.replace("http://", "https://")):  # behind a proxy with TLS
        assert server.ask("/predict", picture, Origin=origin)[0] == 200
    assert server.ask("/about", Host="evil.example")[0] == 403  # another name that leads here
    assert server.ask("/healthz", Authorization="")[0] == 200
    assert server.ask("/metrics", Authorization="")[0] == 401


@pytest.mark.parametrize(
    ("headers", "chunks", "reads"),
    [
        ([], [1000] * 3, 3),
        ([], [], 1),  # no body
        ([(b"Expect", b"100-continue")], [1000] * 3, 0),  # who asks first need not send
        ([], [DISCARDED // 4] * 100, 4),
    ],
)
def test_a_refused_request_is_read_before_it_is_answered(
    headers: list[tuple[bytes, bytes]], chunks: list[int], reads: int
) -> None:
    """Else the connection is reset under who still sends, and the answer is lost."""
    events, left = list[str](), list(chunks)

    async def receive() -> dict[str, Any]:
        events.append("read")
        size = left.pop(0) if left else 0
        return {"type": "http.request", "body": bytes(size), "more_body": bool(left)}

    async def send(message: MutableMapping[str, Any]) -> None:
        events.append(f"{message['type']} {message.get('status', '')}".strip())

    async def never(*_: Any) -> None:
        raise AssertionError("it was passed on")

    guard = Guard(never, token="t", hosts=frozenset({"here:1"}), open_paths=frozenset(), limits=Limits())
    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": headers}
    asyncio.run(guard(scope, receive, send))
    assert events == ["read"] * reads + ["http.response.start 403", "http.response.body"]


def test_a_browser_behind_a_proxy_needs_the_name_that_it_shows(server: Live, model: Segmenter) -> None:
    picture, origin = encoded(draw(0)[0]), "https://macbook.local"  # browsers write names in lower case
    status, content = server.ask("/predict", picture, Origin=origin)  # the proxy passes Host: 127.0.0.1 on
    assert (status, b"--names" in content) == (403, True)
    with live(Served(model, "runs/first"), names="MacBook.local") as named:
        assert named.ask("/predict", picture, Origin=origin)[0] == 200
        assert named.ask("/predict", picture, Origin=origin, Host="macbook.local")[0] == 200
        assert named.ask("/predict", picture, Host=f"MACBOOK.local:{named.port}")[0] == 200
        assert named.ask("/predict", picture, Origin="https://macbook.lan")[0] == 403


@pytest.mark.parametrize(
    "path",
    [
        "/..%2f..%2fetc/passwd",
        "/static/../app.py",
        "/%2e%2e/x",
        "/app.py",
        "/docs",
        "/openapi.json",
        "/review",
        "//etc/passwd",
    ],
)
def test_no_path_reads_the_disk(server: Live, path: str) -> None:
    head = f"GET {path} HTTP/1.1\n{headers(server, Connection='close')}\n"
    assert b"404" in raw(server, head).split(b"\r\n")[0]


def test_the_page_loads_nothing_from_elsewhere(server: Live) -> None:
    for path in STATIC:
        status, content = server.ask(path, Authorization="")
        assert status == 200
        assert b"http://" not in content.replace(b"http://www.w3.org/2000/svg", b"")  # what SVG is called
        assert b"https://" not in content
    answer = raw(server, f"GET / HTTP/1.1\n{headers(server, Connection='close')}\n")
    assert b"default-src 'none'" in answer


def test_a_hundred_at_once_are_answered_or_told_to_come_again(server: Live) -> None:
    picture = encoded(draw(0, 120)[0])
    with ThreadPoolExecutor(100) as threads:
        found = [status for status, _ in threads.map(lambda _: server.ask("/predict", picture), range(100))]
    assert len(found) == 100
    assert set(found) <= {200, 429}
    assert found.count(200) >= 3
    assert 429 in found
    assert server.ask("/predict", picture)[0] == 200
    status, metrics = server.ask("/metrics")
    assert status == 200
    assert 'segue_requests_total{status="429"}' in metrics.decode()
    assert "segue_waiting 0.0" in metrics.decode()
    assert "segue_predict_seconds_count" in metrics.decode()


class Slow(torch.nn.Module):
    """Counts what goes through it together."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = SegmenterSpec("none", CLASSES, COLORS)
        self.scale = torch.nn.Parameter(torch.tensor(0.1))
        self.sizes: list[int] = []
        self.gate = threading.Event()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(image))
        assert self.gate.wait(20)
        return image.float() * self.scale


@pytest.mark.slow
@pytest.mark.parametrize(("side", "passes"), [(8, [1, 4, 1]), (1200, [1, 2, 2, 1])])  # a pass has 4 MP at most
def test_what_waits_together_goes_through_together_and_each_gets_its_own(side: int, passes: list[int]) -> None:
    model = Slow()
    pictures = [np.eye(3, dtype=np.uint8)[np.full((side, side), i % 3)] * 200 for i in range(6)]
    with live(Served(model, "slow"), Limits(queue=8, batch=4)) as server, ThreadPoolExecutor(6) as threads:  # type: ignore[arg-type]
        first = threads.submit(server.ask, "/predict?format=png", encoded(pictures[0]))
        while not model.sizes:
            time.sleep(0.01)
        rest = [threads.submit(server.ask, "/predict?format=png", encoded(picture)) for picture in pictures[1:]]
        time.sleep(1.0)
        model.gate.set()
        for i, answer in enumerate([first, *rest]):
            status, content = answer.result()
            assert status == 200
            assert (np.asarray(Image.open(io.BytesIO(content))) == i % 3).all()
    assert model.sizes == passes


def test_the_time_limit_holds_for_decoding_too() -> None:
    model = Slow()
    model.gate.set()
    worker = Worker(model, Limits(seconds=0.2))  # type: ignore[arg-type]
    for _ in range(2):  # all that decode
        worker.decoders.submit(time.sleep, 2)
    with pytest.raises(TimeoutError):
        asyncio.run(worker.predict(encoded(draw(0)[0])))


@pytest.mark.parametrize("form", ["json", "png"])
def test_others_are_answered_while_an_answer_is_written(
    server: Live, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    picture, save = encoded(draw(0)[0]), Image.Image.save
    begun, gate = threading.Event(), threading.Event()

    def held(*arguments: object, **options: object) -> None:
        begun.set()
        assert gate.wait(5)
        save(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Image.Image, "save", held)
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(server.ask, f"/predict?format={form}", picture)
        assert begun.wait(20)
        assert server.ask("/healthz")[0] == 200
        gate.set()
        assert answer.result()[0] == 200


def test_a_fault_inside_is_500_without_a_trace_and_the_server_lives_on() -> None:
    model = Slow()
    model.gate.set()
    model.scale = None  # type: ignore[assignment]
    with live(Served(model, "broken")) as server:  # type: ignore[arg-type]
        model.register_parameter("other", torch.nn.Parameter(torch.zeros(1)))
        status, content = server.ask("/predict", encoded(draw(0)[0]))
        assert (status, b"Traceback" in content, b"log" in content) == (500, False, True)
        assert server.ask("/healthz")[0] == 200


def test_the_names_of_a_server_by_hand() -> None:
    local = {"127.0.0.1", "localhost", "[::1]"}
    assert names_of("127.0.0.1", "", 80) == local | {f"{name}:80" for name in local}
    assert names_of("127.0.0.1", "", 8765) == {f"{name}:8765" for name in local}
    found = names_of("127.0.0.1", "box.lan, box.lan:8080", 8765)
    assert {"box.lan", "box.lan:8765", "box.lan:8080"} < found
    assert not {"127.0.0.1", "box.lan:443", "evil.example"} & found
    assert {"[fe80::1]:9", "[fe80::2]:9"} < names_of("fe80::1", "[fe80::2]", 9)
    assert address_of("box.lan", 9) == "http://box.lan:9/"
    assert address_of("::1", 8765) == "http://[::1]:8765/"


def test_the_logging_of_other_libraries_is_left_alone(
    segue: Segue, model: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Handler(logging.Handler):
        is_closed = False

        def close(self) -> None:  # absl's closes the file below it, which may be the one that stderr stands for
            self.is_closed = True
            super().close()

    theirs, served = Handler(), []
    monkeypatch.setattr("uvicorn.Server.run", lambda server, sockets: served.append(server.config))
    source = save_model(model, tmp_path / "model", method="supervised", metrics={})
    assert segue("serve", source, "--port", 0)[0] == 0
    assert (len(served), theirs.is_closed) == (1, False)


def test_the_token_comes_from_the_option_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEGUE_TOKEN", raising=False)
    made = token_of("")
    assert (len(made) >= 16, made != token_of("")) == (True, True)
    monkeypatch.setenv("SEGUE_TOKEN", "of-the-environment")
    assert token_of("") == "of-the-environment"
    assert token_of("of-the-option+/=?") == "of-the-option+/=?"
    monkeypatch.setenv("SEGUE_TOKEN", "short")
    with pytest.raises(UsageError, match="SEGUE_TOKEN: at least 16"):
        token_of("")


@pytest.mark.slow
def test_what_cannot_be_served_is_one_line(segue: Segue, model: Segmenter, tmp_path: Path) -> None:
    source = save_model(model, tmp_path / "model", method="supervised", metrics={})
    half = save_model(model, tmp_path / "half", method="supervised", metrics={})
    (half / "model.safetensors").write_bytes((half / "model.safetensors").read_bytes()[:1000])
    unwritten = {}
    for name in ("model.safetensors", "model.yaml"):
        unwritten[name] = save_model(model, tmp_path / f"no_{name}", method="supervised", metrics={})
        (unwritten[name] / name).unlink()
    cut = save_model(model, tmp_path / "cut", method="supervised", metrics={})
    (cut / "model.yaml").write_bytes((cut / "model.yaml").read_bytes()[:60])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments, message in (
            ((tmp_path / "gone",), "holds no model"),
            ((half,), "cannot be loaded"),
            ((unwritten["model.safetensors"],), "model.safetensors"),
            ((unwritten["model.yaml"],), "holds no model"),
            ((cut,), "model.yaml"),
            ((source, "--port", port), "name another port"),
            ((source, "--token", "short"), "--token"),
            ((source, "--token", "a token with spaces"), "--token: the address of the page"),
            ((source, "--token", "ein-schlüssel-von-hier"), "--token: the address of the page"),
            ((source, "--queue", 0), "--queue 0"),
            ((source, "--host", "0.0.0.0"), "--names"),
            ((source, "--review", tmp_path), "belong together"),
            ((source, "--review", tmp_path / "none", "--ledger", tmp_path / "l"), "no such file"),
            ((source, "--prot", 1), "--port"),
        ):
            status, _, errors = segue("serve", *arguments)
            assert (status, errors.count("\n")) == (2, 1), errors
            assert message in errors
