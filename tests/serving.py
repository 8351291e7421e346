"""A server for tests: the real one, on a free port of the loopback, in a thread."""

import contextlib
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

from segue.cli.serving import names_of, open_socket
from segue.serve.app import Served, create_app
from segue.serve.limits import Limits

TOKEN = "a-token-of-the-tests"


@dataclass
class Live:
    port: int

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        """(status, body); ``headers`` with _ for -, and ``Authorization`` of the right token if absent."""
        sent = {"Authorization": f"Bearer {TOKEN}", **{k.replace("_", "-"): v for k, v in headers.items()}}
        request = urllib.request.Request(self.address + path, data=body, headers=sent)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def json(self, path: str, body: bytes | None = None) -> dict[str, object]:
        status, content = self.ask(path, body)
        assert status == 200, content
        found: dict[str, object] = json.loads(content)
        return found


@contextlib.contextmanager
def live(served: Served, limits: Limits | None = None, names: str = "") -> Iterator[Live]:
    import uvicorn

    bound = open_socket("127.0.0.1", 0)
    port = bound.getsockname()[1]
    app = create_app(served, token=TOKEN, hosts=names_of("127.0.0.1", names, port), limits=limits)
    config = uvicorn.Config(app, log_level="critical", log_config=None, access_log=False, lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    until = time.monotonic() + 30
    while not server.started:
        assert time.monotonic() < until, "the server never started"
        time.sleep(0.01)
    try:
        yield Live(port)
    finally:
        server.should_exit = True
        thread.join(20)
        bound.close()
