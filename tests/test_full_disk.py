"""A disk that is really full: a small tmpfs, mounted where nobody else sees it, filled up, and later given room.

Each test runs one function of this file as the only work of a process that has a mount namespace of its own.
"""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import HERE, options, write_model, write_set

BALLAST = "ballast"


def in_namespace(*command: str) -> subprocess.CompletedProcess[str]:
    """Runs a command where it may mount what others do not see."""
    return subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", *command],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


def on_small_disk(work: str, tmp_path: Path, size: str = "64m") -> None:
    """Runs ``work``, a function of this file, with a disk of that size and a folder on a large one.

    The tests are skipped where the system gives no such namespace.
    """
    disk, roomy = tmp_path / "disk", tmp_path / "roomy"
    disk.mkdir()
    roomy.mkdir()
    mount = f"mount -t tmpfs -o size={size} tmpfs {disk}"
    if shutil.which("unshare") is None or in_namespace("sh", "-c", mount).returncode:
        pytest.skip("this system lets nobody mount a tmpfs of their own (unshare --map-root-user --mount)")
    call = f"import test_full_disk as t, pathlib as p; t.{work}(p.Path({str(disk)!r}), p.Path({str(roomy)!r}))"
    path = os.pathsep.join([str(HERE), str(HERE.parent / "src")])
    done = in_namespace("sh", "-c", f'{mount} && PYTHONPATH={path} exec {sys.executable} -c "$0"', call)
    assert done.returncode == 0, done.stderr[-4000:]


def command(*words: object) -> tuple[int, str]:
    """(exit status, what was said on the error stream)."""
    from segue.cli import main

    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            status = main([str(word) for word in words])
        except SystemExit as stop:
            status = int(stop.code or 0)
    return status, said.getvalue()


@contextlib.contextmanager
def filled(disk: Path, free: int) -> Iterator[None]:
    """The disk with ``free`` bytes left, until somebody makes room."""
    left = shutil.disk_usage(disk).free - free
    with (disk / BALLAST).open("wb") as file:
        for _ in range(left // 4096):
            file.write(bytes(4096))
    try:
        yield
    finally:
        (disk / BALLAST).unlink()


def refused_in_a_line(status: int, said: str) -> None:
    """The exit status, and the one line, that README promises for a full disk."""
    assert status == 1, said
    assert "Traceback" not in said
    last = said.strip().splitlines()[-1]
    assert last.startswith("error: "), said
    assert "No space left on device" in last, said
    assert "make room" in last, said


def weights_of(run: Path) -> dict[str, Any]:
    import torch

    found: dict[str, Any] = torch.load(run / "supervised.pt", weights_only=True)["method"]
    return found


def terminate_once_logged(log: Path, lines: int) -> threading.Thread:
    """SIGTERM for this process when the log has so many lines."""

    def wait() -> None:
        while not log.is_file() or log.read_bytes().count(b"\n") < lines:
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def training(disk: Path, roomy: Path) -> None:
    import torch

    from segue.runs.folder import Run

    data = write_set(roomy / "set")
    given = ("--device", "cpu", "--precision", "fp32", *options(method="supervised", steps=30))
    assert command("train", data, "--out", roomy / "run", *given)[0] == 0
    out = disk / "run"
    watcher = terminate_once_logged(out / "log.jsonl", 5)
    status, said = command("train", data, "--out", out, *given)
    watcher.join()
    assert status == 75, said
    saved = Run(out, quiet=True).checkpoint("supervised")
    assert saved is not None
    with filled(disk, free=(out / "supervised.pt").stat().st_size // 2):
        for _ in range(2):  # a second try must not cost it either
            refused_in_a_line(*command("train", data, "--out", out, *given))
            kept = Run(out, quiet=True).checkpoint("supervised")
            assert kept is not None
            assert kept["step"] == saved["step"]
            assert all(torch.equal(kept["method"][name], tensor) for name, tensor in saved["method"].items())
            assert not list(out.rglob("*.partial"))
    status, said = command("train", data, "--out", out, *given)
    assert status == 0, said
    assert f"resumed at step {saved['step']}" in said
    whole, resumed = weights_of(roomy / "run"), weights_of(out)
    assert all(torch.equal(whole[name], tensor) for name, tensor in resumed.items())
    ours, theirs = (json.loads((run / "evaluation.json").read_text()) for run in (out, roomy / "run"))
    assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


@pytest.mark.slow
def test_a_checkpoint_that_does_not_fit_costs_nothing_and_the_run_goes_on_where_there_is_room(tmp_path: Path) -> None:
    on_small_disk("training", tmp_path)


def pictures(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def predicting(disk: Path, roomy: Path) -> None:
    model, data = write_model(roomy / "model"), write_set(roomy / "set")
    words = ("predict", model, data / "images", "--maps")
    assert command(*words, "--out", roomy / "found")[0] == 0
    with filled(disk, free=6 * 4096):
        refused_in_a_line(*command(*words, "--out", disk / "found"))
        for name, content in pictures(disk / "found").items():
            assert "partial" not in name
            assert (roomy / "found" / name).read_bytes() == content, name
        assert 0 < len(pictures(disk / "found")) < len(pictures(roomy / "found"))
    status, said = command(*words, "--out", disk / "found")
    assert status == 0, said
    assert pictures(disk / "found") == pictures(roomy / "found")


@pytest.mark.slow
def test_predictions_on_a_full_disk_are_whole_or_not_there_and_go_on(tmp_path: Path) -> None:
    on_small_disk("predicting", tmp_path)


def predicting_a_scene(disk: Path, roomy: Path) -> None:
    import rasterio

    model = write_model(roomy / "model")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 600, 600), np.uint8)
    where = rasterio.transform.from_origin(0, 0, 1, 1)
    profile = {"driver": "GTiff", "width": 600, "height": 600, "count": 3, "dtype": "uint8"}
    with rasterio.open(roomy / "scene.tif", "w", crs="EPSG:32632", transform=where, **profile) as file:
        file.write(pixels)
    words = ("predict", model, roomy / "scene.tif", "--maps", "--tile", "256", "--overlap", "64")
    assert command(*words, "--out", roomy / "found")[0] == 0
    for blocks in (3, 10, 20, 60):
        with filled(disk, free=blocks * 4096):
            refused_in_a_line(*command(*words, "--out", disk / "found"))
            assert set(pictures(disk / "found")) <= {"predict.json", "pictures.json"}
    status, said = command(*words, "--out", disk / "found")
    assert status == 0, said
    for name, content in pictures(roomy / "found").items():
        if name.endswith(".tif"):
            with rasterio.open(disk / "found" / name) as ours, rasterio.open(roomy / "found" / name) as whole:
                np.testing.assert_array_equal(ours.read(), whole.read())
        else:
            assert (disk / "found" / name).read_bytes() == content


@pytest.mark.slow
def test_a_scene_on_a_full_disk_is_whole_or_not_there(tmp_path: Path) -> None:
    pytest.importorskip("rasterio", reason="the extra tiles is not installed")
    on_small_disk("predicting_a_scene", tmp_path)


def exporting(disk: Path, roomy: Path) -> None:
    model, data = write_model(roomy / "model"), write_set(roomy / "set")
    words = ("export", model, "--verify", data, "--images", "2", "--openvino", "--int8", "--max-drop", "100")
    out = disk / "export"
    status, said = command(*words, "--out", out)
    assert status == 0, said
    before = pictures(out)
    assert {"model.onnx", "model.int8.onnx", "model.openvino.xml", "parity.json"} <= set(before)
    whole = (out / "model.onnx").stat().st_size
    for free in (whole // 2, int(1.2 * whole), 3 * whole):  # ends in ONNX, OpenVINO, quantisation
        with filled(disk, free=free):
            refused_in_a_line(*command(*words, "--out", out))
            assert pictures(out) == before
            refused_in_a_line(*command(*words, "--out", disk / "other"))
            assert not pictures(disk / "other")
    status, said = command(*words, "--out", out)
    assert status == 0, said


@pytest.mark.slow
def test_an_export_on_a_full_disk_leaves_the_one_before_it(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the extra export is not installed")
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    on_small_disk("exporting", tmp_path)


def reviewing(disk: Path, roomy: Path) -> None:
    from serving import live

    from segue.data.ledger import read_ledger
    from segue.prediction.pictures import find_images
    from segue.serve.app import Served
    from segue.serve.review import Review
    from segue.weights import load_model

    model = load_model(str(write_model(roomy / "model")))
    data, ledger = write_set(roomy / "set"), disk / "ledger.jsonl"
    review = Review(model, find_images([str(data / "images")]), ledger)
    names = [str(item.pair.image.resolve()) for item in review.items]

    def sent(item: int, decision: str) -> tuple[int, bytes]:
        return server.ask("/review/decision", json.dumps({"item": item, "decision": decision}).encode())

    with live(Served(model, "model", None, "", review)) as server:
        assert sent(0, "accept")[0] == 200
        with contextlib.suppress(OSError), (disk / BALLAST).open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        filling = [sent(1, "reject") for _ in range(100)]  # to the end of the block that the ledger has begun
        (disk / BALLAST).unlink()
        status, content = filling[-1]
        assert status == 507, filling[-1]
        assert b"No space left on device" in content
        assert b"make room" in content
        kept = sum(status == 200 for status, _ in filling)
        assert kept + 1 == ledger.read_bytes().count(b"\n")
        assert ledger.read_bytes().endswith(b"\n")  # nothing of the line that did not fit
        assert sent(2, "redraw")[0] == 200
    assert read_ledger(ledger) == {names[0]: "accept", names[1]: "reject", names[2]: "redraw"}
    assert Review(model, (), ledger).decisions == review.decisions


@pytest.mark.slow
def test_a_decision_that_does_not_fit_is_refused_and_the_ledger_stays_whole(tmp_path: Path) -> None:
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    on_small_disk("reviewing", tmp_path, size="1m")


@pytest.mark.slow
def test_the_ballast_fills_the_disk_but_for_what_is_asked(tmp_path: Path) -> None:
    on_small_disk("filling", tmp_path, size="1m")


def filling(disk: Path, roomy: Path) -> None:
    with filled(disk, free=3 * 4096):
        assert shutil.disk_usage(disk).free == 3 * 4096
        with pytest.raises(OSError, match="No space left"):
            (disk / "file").write_bytes(bytes(4 * 4096))
    (disk / "file").write_bytes(bytes(4 * 4096))
