"""What no line of Segue may do: run code from a file, or call the network unasked."""

import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import options

SOURCES = sorted((Path(__file__).parents[1] / "src").rglob("*.py"))
FORBIDDEN = (
    r"weights_only\s*=\s*False", r"\byaml\.(unsafe_|full_)?load\(", r"allow_pickle\s*=\s*True", r"(?<![\w.])eval\(",
    r"(?<![\w.])exec\(", r"\bpickle\.loads?\(", r"\bos\.system\(", r"shell\s*=\s*True", r"trust_remote_code\s*=\s*True",
    r"MAX_IMAGE_PIXELS\s*=\s*None", r"\bextractall\(", r"\bjoblib\.load\(",
)  # fmt: skip


@pytest.mark.parametrize("pattern", FORBIDDEN)
def test_no_source_file_holds_what_could_run_a_strangers_code(pattern: str) -> None:
    found = [path.name for path in SOURCES if re.search(pattern, path.read_text(encoding="utf-8"))]
    assert not found


def test_the_patterns_find_what_they_are_for() -> None:
    guilty = (
        "torch.load(p, weights_only=False)", "yaml.load(f)", "np.load(p, allow_pickle=True)", "x = eval(text)",
        "exec(text)", "pickle.load(f)", "os.system(c)", "run(c, shell=True)", "f(trust_remote_code=True)",
        "Image.MAX_IMAGE_PIXELS = None", "archive.extractall(p)", "joblib.load(p)",
    )  # fmt: skip
    assert all(re.search(pattern, line) for pattern, line in zip(FORBIDDEN, guilty, strict=True))
    innocent = "yaml.safe_load(f); model.eval(); load_any(p)"
    assert not any(re.search(pattern, innocent) for pattern in FORBIDDEN)


def test_no_socket_is_opened_by_what_does_not_ask_for_the_network(
    segue: Callable[..., tuple[int, str, str]], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    out = tmp_path / "run"
    given = {"init": "auto", "steps": 2}  # weights at hand, or none: never a download
    fields = options(**given)
    assert segue("check", dataset)[0] == 0
    assert segue("train", dataset, "--method", "supervised", "--out", out, "--device", "cpu", *fields)[0] == 0
    assert segue("evaluate", out)[0] == 0
    assert segue("predict", out, dataset / "images", "--out", tmp_path / "found")[0] == 0
    assert segue("suggest", f"{dataset}:test", "--model", out, "--n", "1", "--out", tmp_path / "next")[0] == 0


def without_network(*command: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in a network namespace of its own, in which there is no interface."""
    return subprocess.run(
        ["unshare", "--user", "--map-root-user", "--net", *command],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


@pytest.mark.slow
def test_training_works_where_there_is_no_network(dataset: Path, tmp_path: Path) -> None:
    if shutil.which("unshare") is None or without_network("true").returncode:
        pytest.skip("this system gives no network namespace")
    assert without_network(sys.executable, "-c", "import socket; socket.create_connection(('127.0.0.1', 9))").returncode
    fields = options(init="auto", steps=2)
    command = ["-m", "segue", "train", str(dataset), "--out", str(tmp_path / "run"), "--device", "cpu", *fields]
    done = without_network(sys.executable, *command)
    assert done.returncode == 0, done.stderr
