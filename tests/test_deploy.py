"""docs/deploy.md, command by command, from a small run to files and a service."""

import os
import re
import runpy
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import options, write_set

PAGE = Path(__file__).parents[1] / "docs" / "deploy.md"
TOKEN = "a-token-of-the-tests"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + 60
    while True:
        assert process.poll() is None, "segue serve ended"
        assert time.monotonic() < until, "segue serve never listened"
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.1)


@pytest.mark.slow
def test_every_command_of_the_page_does_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("onnxruntime", "openvino", "fastapi"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    if not shutil.which("curl"):
        pytest.skip("no curl on this machine")
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path / "photos")
    from segue.cli import main

    assert main(["train", "photos", "--out", "runs/first", "--method", "supervised", *options(steps=20)]) == 0
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines() if line]
    assert len(commands) == 9
    port = free_port()
    server = None
    environment = {**os.environ, "SEGUE_TOKEN": TOKEN}
    try:
        for command in commands:
            words = shlex.split(command.replace("$SEGUE_TOKEN", TOKEN).replace("8765", str(port)), comments=True)
            if words[0] == "python":
                words[0] = sys.executable
            if words[0] != "segue":
                subprocess.run(words, check=True, env=environment, timeout=120)
            elif words[1] == "serve":
                server = subprocess.Popen([sys.executable, "-m", "segue", *words[1:]], env=environment)
                wait_for(port, server)
            else:
                assert main([w if w != "2" else "100" for w in words[1:]]) == 0, (
                    command
                )  # 20 steps: 8 bits may cost more
    finally:
        if server is not None:
            server.terminate()
            assert server.wait(20) in (0, -15)
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "example.py").write_text(example)
    found = runpy.run_path("example.py")
    assert (found["classes"].shape, found["classes"].dtype) == ((48, 48), "uint8")
    assert found["network"].get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"
    for name in ("predicted/labels/val_006.png", "exported/model.int8.onnx", "exported/model.openvino.xml",
                 "latency/bench.svg", "val_006.classes.png", "classes.png"):  # fmt: skip
        assert (tmp_path / name).stat().st_size > 0, name
