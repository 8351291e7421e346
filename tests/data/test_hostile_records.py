"""Damaged files of every other kind that is read: a named error or an answer, never a traceback, a hang or much memory.

Files of data sets are in `test_hostile.py`, whose ``SEGUE_HOSTILE_CASES=20000`` asks for the long run here too.
"""

import json
import re
import resource
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CLASSES, HERE, draw
from hypothesis import given, settings
from PIL import Image
from test_hostile import CASES, FAST, damaged

from segue.config import parse_fields
from segue.data.class_map import read_class_map
from segue.data.increments import Plan
from segue.data.ledger import read_ledger
from segue.data.listing import Pair
from segue.errors import DataError, UsageError
from segue.methods import load
from segue.runs.folder import Run, signed
from segue.search.trials import Trial, Trials
from segue.weights import KINDS, load_saved

Read = Callable[[Path], object]
IDENTITY = {"verb": "train", "method": "supervised", "seed": 0, "precision": "fp32", "config": {"steps": 8}}


def model_of(kind: str, name: str) -> tuple[Callable[[Path], Path], Read]:
    """A golden model folder, of which one file is damaged."""

    def write(root: Path) -> Path:
        shutil.copytree(HERE / "golden" / f"format_1_{kind}", root, dirs_exist_ok=True)
        return root / name

    return write, lambda path: load_saved(str(path.parent))


def checkpoint(root: Path) -> Path:
    Run(root, quiet=True).save("train", {"step": 3, "method": {"w": torch.arange(6.0)}, "done": False, "meter": {}})
    return root / "train.pt"


def resigned(path: Path) -> object:
    """The checksum put right, as by somebody who means harm."""
    path.write_bytes(signed(path.read_bytes()[:-66] + b"\0\0"))
    return Run(path.parent, quiet=True).checkpoint("train")


def record(root: Path) -> Path:
    at = {"data": str(root / "none"), "layout": "auto", "map": "", "split": "val"}
    data = {"validation_at": at, "labelled_names": ["a", "b"], "found": 2, "fingerprint": "0" * 64}
    (root / "run.json").write_text(json.dumps({"identity": IDENTITY, "versions": {"torch": "2"}, "data": data}))
    shutil.copytree(HERE / "golden" / "format_1_segmenter", root / "model")
    return root / "run.json"


def read_record(path: Path) -> None:
    from segue import using
    from segue.launch.claim import claim_folder
    from segue.suggestion import labelled_names

    for read in (
        lambda: claim_folder(path.parent, IDENTITY),
        lambda: labelled_names(str(path.parent)),
        lambda: using.evaluate(path.parent, device="cpu"),
    ):
        try:
            read()
        except (DataError, UsageError) as error:
            one_line(error)


def log(root: Path) -> Path:
    lines = [{"stage": "train", "step": i, "loss": 0.5, "lr": 0.1} for i in range(1, 5)]
    (root / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root / "log.jsonl"


def evaluation(root: Path) -> Path:
    written = {"method": "supervised", "seconds": 1.5, "split": "validation", "scores": {"miou": 0.5, "iou/disc": 0.25}}
    (root / "evaluation.json").write_text(json.dumps(written))
    record(root)
    shutil.copytree(root, root / "other")
    return root / "evaluation.json"


def compared(path: Path) -> str:
    from segue.report.comparison import comparison_page, read_entries

    return comparison_page(read_entries([str(path.parent), str(path.parent / "other")]))


def config(root: Path) -> Path:
    values = {
        "steps": 8,
        "lr": 0.01,
        "crop": 64,
        "scale": [0.5, 2.0],
        "encoder": "test_efficientnet",
        "balance": "auto",
    }
    (root / "config.yaml").write_text("".join(f"{name}: {json.dumps(value)}\n" for name, value in values.items()))
    return root / "config.yaml"


def read_config(path: Path) -> object:
    return parse_fields(load("supervised").Config, ["--config", str(path)], "segue train")


def class_map(root: Path) -> Path:
    (root / "maps.yaml").write_text("# a map\nground: road\ndisc: car\nbar: ignore\n")
    return root / "maps.yaml"


def ledger(root: Path) -> Path:
    lines = [{"image": f"/{i}.png", "decision": "accept", "time": "2026-01-01"} for i in range(4)]
    (root / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root / "ledger.jsonl"


def plan(root: Path) -> Path:
    (root / "plan.json").write_text(Plan("overlap", (("ground", "disc"), ("bar",)), (("a", "b"), ("c",))).text())
    return root / "plan.json"


def trials(root: Path) -> Path:
    found = Trials(root / "trials.sqlite", "a search")
    for i in range(20):
        found.add(Trial(i, "[[0, [1, 2, 0, 1]], [[0, 1]]]", "done", -1.5, reward1=0.5, parts1={"miou": 0.5}))
    with sqlite3.connect(found.path) as opened:  # all of it in the one file
        opened.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        opened.execute("PRAGMA journal_mode = DELETE")
    opened.close()
    return found.path


def read_trials(path: Path) -> object:
    try:
        return Trials(path, "a search").all()
    finally:
        for suffix in ("-wal", "-shm", "-journal"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)


def predictions(root: Path) -> Path:
    (root / "predict.json").write_text(json.dumps({"model": "0" * 64, "how": {"flips": False}, "outputs": {}}))
    return root / "predict.json"


def claimed(path: Path) -> None:
    from segue.cli.using import claim

    picture = path.parent / "x.png"
    identity = {"model": "0" * 64, "how": {"flips": False}, "outputs": {}}
    claim(path.parent, identity, [Pair("x", picture)], lambda pair: picture)


def predicted(root: Path) -> Path:
    predictions(root)
    (root / "pictures.json").write_text(json.dumps({"x": [str(root / "x.png"), 0, 0]}))
    return root / "pictures.json"


def parity(root: Path) -> Path:
    (root / "parity.json").write_text(json.dumps({"model.onnx": {"after": 0.5, "labelled": 2, "kept": True}}))
    return root / "parity.json"


def accuracy(path: Path) -> object:
    from segue.bench import known_accuracy

    return known_accuracy(str(path.parent / "model.onnx"))


def cache(root: Path) -> Path:
    described = {"encoder": "test", "classes": 3, "mean": [0.5], "std": [0.5], "source": ""}
    (root / "cache.json").write_text(json.dumps(described))
    for part in ("train", "val"):
        (root / part).mkdir()
        for name in ("images", "labels", "inside", "logits", *(f"features_{i}" for i in range(4))):
            np.save(root / part / f"{name}.npy", np.arange(24, dtype=np.float16).reshape(2, 3, 4))
    return root / "train" / "features_0.npy"


def opened_cache(path: Path) -> object:
    from segue.search.cache import Cache

    folder = path.parent if (path.parent / "cache.json").exists() else path.parent.parent
    return Cache.open(folder)


def scene(root: Path) -> Path:
    Image.fromarray(draw(0, 32)[0]).save(root / "scene.tif", compression="tiff_lzw")
    return root / "scene.tif"


def read_scene(path: Path) -> object:
    from segue.prediction.pictures import is_scene
    from segue.prediction.scenes import open_scene
    from segue.prediction.tiling import Grid

    is_scene(path, 100)
    import rasterio

    with open_scene(path, Grid()) as source:
        if source.width * source.height > 1 << 20:
            return None  # it is read in windows
        try:
            return source.read()
        except rasterio.errors.RasterioIOError as error:  # `write_scene` says it as a DataError
            raise DataError(str(error).splitlines()[0]) from None


FILES: dict[str, tuple[Callable[[Path], Path], Read]] = {
    **{f"model.yaml of {kind}": model_of(kind, "model.yaml") for kind in KINDS},
    **{f"model.safetensors of {kind}": model_of(kind, "model.safetensors") for kind in KINDS},
    "checkpoint": (checkpoint, lambda path: Run(path.parent, quiet=True).checkpoint("train")),
    "checkpoint signed anew": (checkpoint, resigned),
    "run.json": (record, read_record),
    "log.jsonl": (log, lambda path: Run(path.parent, quiet=True).rewind("train", 2)),
    "evaluation.json": (evaluation, compared),
    "config.yaml": (config, read_config),
    "maps.yaml": (class_map, lambda path: read_class_map(path, CLASSES, ("road", "car"))),
    "ledger": (ledger, read_ledger),
    "plan.json": (plan, Plan.read),
    "trials.sqlite": (trials, read_trials),
    "predict.json": (predictions, claimed),
    "pictures.json": (predicted, claimed),
    "parity.json": (parity, accuracy),
    "features.npy": (cache, opened_cache),
    "cache.json": (lambda root: cache(root).parents[1] / "cache.json", opened_cache),
    "scene.tif": (scene, read_scene),
}
# Building a network takes as long as many files of the other kinds: there are fewer cases of it.
SLOW = {name: 8 for name in FILES if name.startswith("model.")} | {"run.json": 2, "evaluation.json": 4}


def one_line(error: Exception) -> None:
    text = str(error)
    assert text
    assert "\n" not in text, text


def survives(name: str, path: Path, sound: bytes, content: bytes) -> None:
    """``content`` in place of the file is read, or refused in one line that names something of it."""
    started = time.process_time()
    try:
        path.write_bytes(content)
        try:
            FILES[name][1](path)
        except (DataError, UsageError) as error:
            one_line(error)
    finally:
        path.write_bytes(sound)
    assert time.process_time() - started < 30


def cases(name: str, root: Path, count: int) -> None:
    if name == "scene.tif":
        pytest.importorskip("rasterio", reason="the extra tiles is not installed")
    path = FILES[name][0](root)
    sound = path.read_bytes()
    FILES[name][1](path)  # it is sound
    sound = path.read_bytes()

    @settings(FAST, max_examples=count, database=None, derandomize=not CASES)
    @given(content=damaged([sound]))
    def run(content: bytes) -> None:
        survives(name, path, sound, content)

    run()


@pytest.mark.parametrize("name", FILES)
def test_any_damage_to_any_file_that_is_read(name: str, tmp_path: Path) -> None:
    cases(name, tmp_path, max(2, 16 // SLOW.get(name, 1)))


@pytest.mark.skipif(not CASES, reason="SEGUE_HOSTILE_CASES=20000 is the long run")
@pytest.mark.parametrize("name", FILES)
def test_the_long_run_over_every_file(name: str, tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cases(name, tmp_path, CASES // 20 // SLOW.get(name, 1))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20


def bomb(depth: int = 12) -> str:
    """A few hundred bytes of YAML that stand for 10^depth values."""
    lines = ["a0: &a0 [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, depth)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", ["model.yaml of segmenter", "config.yaml", "maps.yaml"])
def test_aliases_that_grow_without_end_are_refused(name: str, tmp_path: Path) -> None:
    path = FILES[name][0](tmp_path)
    path.write_text(bomb() + path.read_text())
    started = time.process_time()
    with pytest.raises((DataError, UsageError), match=path.name):
        FILES[name][1](path)
    assert time.process_time() - started < 10


@pytest.mark.parametrize("encoder", ["hf-hub:timm/resnet18.a1_in1k", "local-dir:/etc", "hf_hub:x/y", "../../resnet18"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_names_an_encoder_elsewhere_asks_nobody(
    kind: str, encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    path = FILES[f"model.yaml of {kind}"][0](tmp_path)
    path.write_text(re.sub(r"encoder: \S+", f"encoder: {encoder}", path.read_text()))
    with pytest.raises(DataError, match="model"):
        load_saved(str(tmp_path))


@pytest.mark.parametrize("field", ["decoder_channels", "in_channels", "width", "queries", "feedforward"])
def test_a_model_that_claims_to_be_huge_takes_no_memory(field: str, tmp_path: Path) -> None:
    done = 0
    for kind in KINDS:
        path = FILES[f"model.yaml of {kind}"][0](tmp_path / kind)
        text = path.read_text()
        if f"{field}:" in text:
            done += 1
            path.write_text(re.sub(rf"{field}: \d+", f"{field}: 400000000", text))
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            with pytest.raises(DataError, match="model"):
                load_saved(str(path.parent))
            assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20
    assert done


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plan.json", b'{"protocol": "overlap", "increments": [[[], "a"], ["b"]], "images": [["a"], ["c"]]}'),
        ("parity.json", b'{"model.onnx": []}'),
        ("ledger", b'{"image": [], "decision": "accept"}\n'),
        ("log.jsonl", b'{"stage": "train"}\n'),
        ("checkpoint signed anew", b"Q" * 100),  # no archive, so it is read as a bare pickle, which takes from nothing
        ("features.npy", b"\x93NUMPY\x01\x004\x00{'descr':'<f2','fortran_order':False,'shape':(1,)}\n  \n\0\0"),
    ],
)
def test_what_the_long_run_found_stays_mended(name: str, content: bytes, tmp_path: Path) -> None:
    path = FILES[name][0](tmp_path)
    survives(name, path, path.read_bytes(), content)


@pytest.mark.parametrize("value", ["null", "1.5", "0", "[1]"])
@pytest.mark.parametrize("field", ["width", "queries", "pixel_layers", "decoder_layers", "feedforward"])
def test_a_panoptic_model_of_no_size_is_refused(field: str, value: str, tmp_path: Path) -> None:
    """transformers says of one field that it is no number, by an error that is no TypeError."""
    path = FILES["model.yaml of mask_classifier"][0](tmp_path)
    changed, count = re.subn(rf"\b{field}: \d+", f"{field}: {value}", path.read_text())
    assert count == 1
    path.write_text(changed)
    with pytest.raises(DataError, match="cannot be loaded"):
        load_saved(str(tmp_path))


def test_a_payload_in_any_numpy_file_is_not_unpickled(tmp_path: Path) -> None:
    marker = tmp_path / "marker"

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return exec, (f"open({str(marker)!r}, 'w')",)

    path = cache(tmp_path)
    np.save(path, np.array([Payload()], object), allow_pickle=True)
    with pytest.raises(DataError, match="damaged"):
        opened_cache(path)
    assert not marker.exists()
