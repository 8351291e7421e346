"""How long until the page of ``segue serve`` can be used, in a real browser. Goal: under 1 s.

    python benchmarks/speed/page.py RUN PICTURE [--runs FOLDER] [--rounds 9]

Each round opens the page in a fresh browser window without cache: ``ready`` is the time from opening the address until
the page has heard what the server has and takes a picture, ``browser_cpu`` the processor time that the page's own
process took for it, whatever else the machine does; ``runs`` from a click on that tab until the curves are
drawn. The same picture is then predicted on the page and by an HTTP request alone: ``shown`` is what the page adds.
The server is a process of its own, on the loopback; the browser is the system's Chromium.
"""

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from segue.bench import machine

TOKEN = "a-token-of-the-benchmark"


def until(page: Any, there: str) -> None:
    page.wait_for_selector(there, state="attached")


def listens(port: int) -> None:
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.1)


def milliseconds(work: Any) -> float:
    started = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - started)


def main() -> None:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--runs", default="")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    more = ["--runs", options.runs] if options.runs else []
    command = [sys.executable, "-m", "segue", "serve", options.run, "--port", str(port), "--token", TOKEN, *more]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    body = options.picture.read_bytes()
    found: dict[str, list[float]] = {"ready": [], "browser_cpu": [], "predict": [], "shown": [], "runs": []}

    def predict() -> None:
        request = urllib.request.Request(f"{address}/predict", body, {"Authorization": f"Bearer {TOKEN}"})
        urllib.request.urlopen(request, timeout=60).read()

    try:
        listens(port)
        predict()  # the first pass through a network is slower than the others
        with sync_playwright() as tool:
            chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
            browser = tool.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            for _ in range(options.rounds):
                page = browser.new_context().new_page()
                session = page.context.new_cdp_session(page)
                session.send("Performance.enable", {"timeDomain": "threadTicks"})
                page.goto(f"{address}/#{TOKEN}")
                until(page, "body[data-ready]")
                found["ready"].append(float(page.get_attribute("body", "data-ready")))
                metrics = session.send("Performance.getMetrics")["metrics"]
                found["browser_cpu"].append(1000 * next(m["value"] for m in metrics if m["name"] == "ProcessTime"))
                alone = milliseconds(predict)

                def choose(page: Any = page) -> None:
                    page.set_input_files("#file", str(options.picture))
                    until(page, "#legend tbody tr")

                found["predict"].append(alone)
                found["shown"].append(milliseconds(choose) - alone)
                if options.runs:
                    page.locator("#tab-runs").click(no_wait_after=True)
                    found["runs"].append(milliseconds(lambda page=page: until(page, "body[data-drawn]")))
                page.context.close()
            browser.close()
    finally:
        server.terminate()
        server.wait(20)
    rows = {name: [round(statistics.median(v)), round(max(v))] for name, v in found.items() if v}
    print(json.dumps({"machine": machine(), "load": os.getloadavg()[0], "median_and_most_ms": rows}, indent=1))


if __name__ == "__main__":
    main()
