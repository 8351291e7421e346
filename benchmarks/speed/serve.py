"""``segue serve`` under load: throughput against the same batches called in process, and memory over many requests.

    python benchmarks/speed/serve.py RUN PICTURE [--clients 16] [--requests 320] [--mixed 10000]

First part: good pictures from 16 clients, and the same pictures in batches of 4 through `predict_batch`. Goal: at least
0.9 x. Second part: good, bad and hostile requests mixed; every one gets an answer, and the resident memory after the
first tenth is compared with that at the end. The server is a process of its own, on the loopback.
"""

import argparse
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from segue.export.delivery import refuse_unfit
from segue.latency import machine
from segue.serve.limits import Limits
from segue.serve.worker import decode, png, predict_batch
from segue.weights import load_any

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


def ask_until_taken(port: int, body: bytes) -> int:
    while (status := ask(port, body)) == 429:
        time.sleep(0.02)
    return status


def resident(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=320)
    parser.add_argument("--mixed", type=int, default=10_000)
    options = parser.parse_args()
    good = options.picture.read_bytes()
    model = refuse_unfit(load_any(options.run), options.run)

    def in_process() -> float:
        started = time.perf_counter()
        for _ in range(options.requests // 4):
            for found in predict_batch(model, [decode(good, Limits()) for _ in range(4)]):
                png(found.classes, model.spec.colors)
        return options.requests // 4 * 4 / (time.perf_counter() - started)

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "segue",
        "serve",
        options.run,
        "--port",
        str(port),
        "--token",
        TOKEN,
        "--queue",
        "16",
    ]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.1)
        torch.set_num_threads(torch.get_num_threads())
        rates = []
        for _ in range(3):  # in turn: other work on the machine meets both
            alone = in_process()
            started = time.perf_counter()
            with ThreadPoolExecutor(options.clients) as clients:
                statuses = Counter(clients.map(lambda _: ask_until_taken(port, good), range(options.requests)))
            rates.append((alone, options.requests / (time.perf_counter() - started)))
        kinds = [good, good[: len(good) // 2], b"", b"<html>", bytes(1000), good, b"%!PS-Adobe-3.0", good]
        mixed: Counter[int] = Counter()
        early = 0.0
        with ThreadPoolExecutor(options.clients) as clients:
            for first in range(0, options.mixed, options.mixed // 10):
                chunk = range(first, first + options.mixed // 10)

                def one(i: int) -> int:
                    if i % 97 == 0:
                        return ask(port, good, token="wrong")
                    if i % 501 == 0:
                        return ask(port, bytes(33 << 20))
                    return ask(port, kinds[i % len(kinds)])

                mixed += Counter(clients.map(one, chunk))
                early = early or resident(server.pid)
        late = resident(server.pid)
    finally:
        server.terminate()
        server.wait(20)
    ratio = sorted(served / alone for alone, served in rates)[1]
    print(json.dumps({
        "machine": machine(), "in_process_per_s": [round(a, 1) for a, _ in rates],
        "served_per_s": [round(s, 1) for _, s in rates], "ratio": round(ratio, 3), "statuses": statuses,
        "mixed_statuses": {str(k): v for k, v in sorted(mixed.items())},
        "answered": sum(v for k, v in mixed.items() if k > 0),
        "asked": sum(mixed.values()), "resident_mib": [round(early), round(late)],
    }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
