"""What a request may be, checked before anything of it is believed: an ASGI layer around the application."""

import asyncio
import contextlib
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

DISCARDED, PATIENCE = 1 << 20, 2.0  # bytes and seconds of a refused request that are read and forgotten
BODILESS = ("GET", "HEAD")  # whose requests are one line and headers

# The page loads nothing from anywhere else, and nobody may show it in a frame.
HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        b"frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    ),
]


@dataclass(frozen=True)
class Limits:
    """What the server takes.

    Args:
        body: bytes of a request.
        pixels: of a picture.
        seconds: until the whole body must be there, and until an answer must be.
        queue: requests that are worked on or wait at one time; the next one is told to come again.
        batch: pictures of one size that go through the network together; fewer where they are large.
    """

    body: int = 32 << 20
    pixels: int = 64_000_000
    seconds: float = 30.0
    queue: int = 8
    batch: int = 4


class Guard:
    """Refuses by name, origin, token, number, size and time: 403, 401, 429, 413 and 408.

    Args:
        app: what is guarded.
        token: asked for in ``Authorization: Bearer``, but where ``open_paths`` are only read.
        hosts: names with port that a request may come under; upper and lower case are one.
        open_paths: that need no token to be read.
        limits: see there.
        told: called with the status of each refusal.
    """

    def __init__(
        self,
        app: App,
        *,
        token: str,
        hosts: frozenset[str],
        open_paths: frozenset[str],
        limits: Limits,
        told: Callable[[int], None] = lambda status: None,
    ) -> None:
        self.app, self.token, self.open_paths, self.limits = app, token, open_paths, limits
        self.hosts = frozenset(name.lower() for name in hosts)  # as browsers send them
        self.told = told
        self.bodies = 0  # requests with a body that are read, wait or are worked on

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = self.refusal(scope)
        if refusal:
            await discard(scope, receive)
            await self.refuse(send, *refusal)
            return
        has_body = scope["method"] not in BODILESS
        if has_body and self.bodies >= self.limits.queue:  # before the body is read: it would be kept in memory
            await discard(scope, receive)
            await self.refuse(send, 429, f"{self.limits.queue} requests are waiting; come again in a second")
            return
        self.bodies += has_body
        try:
            await self.read_and_pass(scope, receive, send)
        finally:
            self.bodies -= has_body

    async def refuse(self, send: Send, status: int, error: str) -> None:
        """Tells the metrics and whoever asked."""
        self.told(status)
        await answer(send, status, error)

    async def read_and_pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reads the body and hands it on with the request."""
        most = 0 if scope["method"] in BODILESS else self.limits.body
        try:
            async with asyncio.timeout(self.limits.seconds):
                body = await read_body(receive, most)
        except TimeoutError:
            await self.refuse(send, 408, f"the request was not there after {self.limits.seconds:g} s")
            return
        if body is None:
            await self.refuse(send, 413, f"a {scope['method']} request may have {most} bytes")
            return
        is_given = False

        async def given() -> MutableMapping[str, Any]:
            nonlocal is_given
            if is_given:
                return await receive()
            is_given = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        await self.app(scope, given, guarded)

    def refusal(self, scope: Scope) -> tuple[int, str] | None:
        """(status, why) of a request that is refused by its head."""
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if headers.get(b"host", "").lower() not in self.hosts:
            return 403, "the request was sent to a name that this server does not have"
        origin = headers.get(b"origin")
        if origin is not None and origin.partition("://")[2].lower() not in self.hosts:
            return 403, "the request comes from another site; behind a proxy, start segue serve with --names PROXY"
        if scope["path"] not in self.open_paths or scope["method"] not in BODILESS:
            given = headers.get(b"authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), self.token.encode()):
                return 401, "send the token that segue serve printed: Authorization: Bearer TOKEN"
        return None


async def read_body(receive: Receive, most: int) -> bytes | None:
    """All of the body, counted as it comes; None where it has more than ``most`` bytes, whatever its head says."""
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b""
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            return None
        if not message.get("more_body"):
            return b"".join(parts)


async def discard(scope: Scope, receive: Receive) -> None:
    """Reads and forgets the body of a request that is refused: who still sends when the connection is closed may never
    see the answer. Of a large or slow one it is no more than `DISCARDED` bytes and `PATIENCE` seconds, of one that asks
    before it sends nothing."""
    size, asks = 0, any(name.lower() == b"expect" for name, _ in scope["headers"])
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE):
            while not asks and size < DISCARDED:
                message = await receive()
                size += len(message.get("body", b""))
                if not message.get("more_body"):
                    return


async def answer(send: Send, status: int, error: str) -> None:
    """A refusal as JSON; the connection is closed, for not all of the body may have been read."""
    content = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close"), *HEADERS]
    if status == 429:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
