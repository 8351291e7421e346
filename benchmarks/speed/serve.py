"""``segue serve`` under load: throughput against the same batches called in process, and memory over many requests.

    python benchmarks/speed/serve.py RUN PICTURE [--clients 16] [--requests 320] [--mixed 10000]

First part: good pictures from 16 clients, and the same pictures in batches of 4 through `predict_batch`, in turn; on
the wall, and as work of the process alone, which other work on the machine changes less (`ratio_of_cpu`). Goal: at
least 0.9 x. Second part: good, bad and hostile requests mixed. Goals: every one gets the status it should get (`lost`
is empty), and the resident memory stays where it is after the first tenth (`resident_mib`, one value a tenth).
The server is a process of its own, on the loopback. A server that never comes up ends the benchmark after 5 minutes.
"""

import argparse
import contextlib
import io
import json
import os
import random
import socket
import statistics
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from segue.bench import machine
from segue.export.delivery import refuse_unfit
from segue.processes.tuning import tune
from segue.serve.limits import Limits
from segue.serve.worker import decode, png, predict_batch
from segue.weights import Model, load_any

TOKEN = "a-token-of-the-benchmark"


def ask(port: int, body: bytes, token: str = TOKEN, path: str = "/predict?format=png") -> int:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, {"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            response.read()
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except urllib.error.URLError as error:
        # A refusal that came while the body was still being sent.
        return 413 if isinstance(error.reason, BrokenPipeError | ConnectionResetError) else -1


def ask_until_taken(port: int, body: bytes, path: str = "/predict?format=png") -> int:
    while (status := ask(port, body, path=path)) == 429:
        time.sleep(0.02)
    return status


def resident(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


@contextlib.contextmanager
def serving(run: str) -> Iterator[tuple[int, int]]:
    """``segue serve`` in a process of its own: (its port, its process id)."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--port", str(port), "--token", TOKEN, "--queue", "16"]
    server = subprocess.Popen([sys.executable, "-m", "segue", "serve", run, *options], stdout=subprocess.DEVNULL)
    until = time.monotonic() + 300
    try:
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            if server.poll() is not None or time.monotonic() > until:
                raise SystemExit("the server did not come up")
            time.sleep(0.1)
        yield port, server.pid
    finally:
        server.terminate()
        server.wait(60)


def cpu(pid: int) -> float:
    """Seconds that a process has worked, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rates(port: int, pid: int, model: Model, good: bytes, requests: int, clients: int) -> dict[str, float]:
    """Pictures a second and milliseconds of work a picture, in process and served."""
    started, worked = time.perf_counter(), time.process_time()
    for _ in range(requests // 4):
        for found in predict_batch(model, [decode(good, Limits()) for _ in range(4)]):
            png(found.classes, model.spec.colors)
    alone, alone_cpu = time.perf_counter() - started, time.process_time() - worked
    started, worked = time.perf_counter(), cpu(pid)
    with ThreadPoolExecutor(clients) as threads:
        statuses = Counter(threads.map(lambda _: ask_until_taken(port, good), range(requests)))
    served, served_cpu = time.perf_counter() - started, cpu(pid) - worked
    assert statuses == {200: requests}, statuses
    return {
        "in_process_per_s": requests / alone, "served_per_s": requests / served, "ratio": alone / served,
        "in_process_cpu_ms": 1000 * alone_cpu / requests, "served_cpu_ms": 1000 * served_cpu / requests,
        "ratio_of_cpu": alone_cpu / served_cpu,
    }  # fmt: skip


def resized(good: bytes, part: float) -> bytes:
    with Image.open(io.BytesIO(good)) as image:
        small = image.convert("RGB").resize((max(8, int(image.width * part)), max(8, int(image.height * part) - 3)))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG")
    return buffer.getvalue()


def of_16_bits() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG of 900 megapixels by its header."""
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    )
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def leave_early(port: int, good: bytes) -> int:
    """Promises more bytes than it sends, and goes; 0, for nobody is there to be answered."""
    with socket.create_connection(("127.0.0.1", port), 60) as connection:
        head = f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {TOKEN}\r\n"
        connection.sendall(f"{head}Content-Length: {2 * len(good)}\r\n\r\n".encode() + good[:100])
    return 0


def without_length(port: int) -> int:
    """More than may be, in chunks that never say how much will come."""
    with socket.create_connection(("127.0.0.1", port), 60) as connection:
        head = f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {TOKEN}\r\n"
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(33):
                connection.sendall(b"100000\r\n" + bytes(1 << 20) + b"\r\n")
        with contextlib.suppress(ConnectionResetError):
            return int(connection.recv(4096).split()[1])
    return 413


def kinds(port: int, good: bytes) -> dict[str, tuple[int, int, Callable[[], int]]]:
    """Name -> (how many of 500, the status it should get, how it is asked)."""
    sizes = [good, *(resized(good, part) for part in (0.5, 0.7, 0.9))]
    bad = {
        "cut short": (good[: len(good) // 2], 400), "nothing": (b"", 400), "a page": (b"<html>", 400),
        "zeros": (bytes(1000), 400), "a program": (b"%!PS-Adobe-3.0", 400), "16 bits": (of_16_bits(), 400),
        "a header of 900 MP": (bomb(), 413),
    }  # fmt: skip
    found: dict[str, tuple[int, int, Callable[[], int]]] = {
        f"good {i}": (50, 200, lambda body=body: ask_until_taken(port, body)) for i, body in enumerate(sizes)
    }
    for name, (body, status) in bad.items():
        found[name] = (35, status, lambda body=body: ask_until_taken(port, body))
    return {
        **found,
        "wrong token": (20, 401, lambda: ask(port, good, token="wrong")),
        "another path": (20, 404, lambda: ask_until_taken(port, good, "/..%2f..%2fetc/passwd")),
        "left early": (13, 0, lambda: leave_early(port, good)),
        "33 MB": (1, 413, lambda: ask(port, bytes(33 << 20))),
        "33 MB without a length": (1, 413, lambda: without_length(port)),
    }


def mixed(port: int, pid: int, good: bytes, number: int, clients: int) -> dict[str, object]:
    """All kinds in random order; what each got, and the resident memory after each tenth."""
    known = kinds(port, good)
    order = random.Random(0).choices(list(known), [share for share, _, _ in known.values()], k=number)
    got: Counter[tuple[str, int]] = Counter()
    memory = []
    with ThreadPoolExecutor(clients) as threads:
        for first in range(0, number, number // 10):
            chunk = order[first : first + number // 10]
            got += Counter(zip(chunk, threads.map(lambda name: known[name][2](), chunk), strict=True))
            memory.append(round(resident(pid)))
    return {
        "mixed": sum(got.values()),
        "statuses": dict(sorted(sum((Counter({str(s): n}) for (_, s), n in got.items()), Counter()).items())),
        "lost": [f"{n} x {name}: {status}" for (name, status), n in got.items() if status != known[name][1]],
        "resident_mib": memory,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mixed", type=int, default=10_000)
    options = parser.parse_args()
    good = options.picture.read_bytes()
    tune("cpu")
    model = refuse_unfit(load_any(options.run), options.run)
    with serving(options.run) as (port, pid):
        # In turn, so that other work on the machine meets both.
        rounds = [rates(port, pid, model, good, options.requests, options.clients) for _ in range(options.rounds)]
        under_load = mixed(port, pid, good, options.mixed, options.clients)
        lives = ask_until_taken(port, good) == 200
    medians = {name: round(statistics.median(entry[name] for entry in rounds), 3) for name in rounds[0]}
    print(json.dumps({
        "machine": machine(), "threads": os.environ.get("OMP_NUM_THREADS", "all"), "clients": options.clients,
        **medians, **under_load, "lives": lives,
    }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
