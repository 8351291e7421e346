"""Fixtures: small sets of pictures in the canonical layout, and settings that train in seconds."""

import fcntl
import json
import multiprocessing
import os
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

if TYPE_CHECKING:
    from segue.models.segmenter import Segmenter

torch.set_num_threads(1)
HERE = Path(__file__).parent
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH", "")]))  # of `Child`

pytest.register_assert_rewrite("browsing")  # helpers and fixtures of the tests of the page
CLASSES = ("ground", "disc", "bar")
COLORS = ((90, 90, 90), (200, 40, 40), (40, 40, 200))
# How often a run is killed in the slow test of each method.
KILLS = int(os.environ.get("SEGUE_KILLS", "50"))
# The smallest network and the shortest training that go through every line.
TINY = {"encoder": "test_efficientnet", "init": "random", "decoder_channels": 16, "crop": 32, "batch": 4, "steps": 8}


def draw(index: int, size: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """A picture with a disc and a bar whose colours vary, and its class ids."""
    rng = np.random.default_rng(index)
    y, x = np.mgrid[:size, :size]
    mask = np.zeros((size, size), np.uint8)
    cy, cx = rng.integers(size // 4, 3 * size // 4, 2)
    mask[(y - cy) ** 2 + (x - cx) ** 2 < (size // 6) ** 2] = 1
    left = int(rng.integers(0, size - size // 6))
    mask[:, left : left + size // 8] = 2
    paint = np.array(COLORS)[mask] + rng.normal(0, 12, (size, size, 3)) + rng.normal(0, 25, 3)
    return paint.clip(0, 255).astype(np.uint8), mask


def write_set(root: Path, *, train: int = 6, val: int = 2, test: int = 2, size: int = 48, splits: bool = True) -> Path:
    """A canonical data set."""
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True)
    names: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for i in range(train + val + test):
        split = "train" if i < train else "val" if i < train + val else "test"
        name = f"{split}_{i:03d}"
        image, mask = draw(i, size)
        Image.fromarray(image).save(root / "images" / f"{name}.png")
        Image.fromarray(mask).save(root / "labels" / f"{name}.png")
        names[split].append(name)
    described: dict[str, Any] = {"classes": CLASSES, "colors": COLORS, "ignore": 255}
    if splits:
        described["splits"] = names
    (root / "dataset.json").write_text(json.dumps(described))
    return root


def gloo_threads() -> list[str]:
    """Those of this process, which end with its group: one left could abort the process at its end. Of Linux alone."""
    names = (path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm"))
    return [name for name in names if "gloo" in name]


def untrained(encoder: str = "test_efficientnet", *, seed: int = 0, spread: float = 2.0, **changes: Any) -> "Segmenter":
    """A network whose classes lie far apart, as those of a trained one; the same for the same seed."""
    from segue.models.segmenter import Segmenter, SegmenterSpec

    torch.manual_seed(seed)
    model = Segmenter(SegmenterSpec(encoder, CLASSES, COLORS, decoder_channels=16, **changes)).eval()
    torch.nn.init.normal_(model.head.weight, std=spread)
    return model


def write_model(folder: Path, encoder: str = "test_efficientnet", **changes: Any) -> Path:
    """A model folder with an `untrained` network."""
    from segue.weights import save_model

    return save_model(untrained(encoder, **changes), folder, method="supervised", metrics={})


def turning(turn: int) -> bytes:
    """EXIF that says nothing but how a picture is turned."""
    from segue.data.sample import ORIENTATION

    exif = Image.Exif()
    exif[ORIENTATION] = turn
    return exif.tobytes()


def turned(pixels: np.ndarray, path: Path, turn: int = 6) -> Path:
    """A photo that is stored on its side, as telephones do."""
    Image.fromarray(pixels).save(path, exif=turning(turn))
    return path


def turned_late(pixels: np.ndarray, path: Path, turn: int = 6) -> Path:
    """A PNG whose orientation stands behind its pixels."""
    Image.fromarray(pixels).save(path)
    body = b"eXIf" + turning(turn).removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    whole = path.read_bytes()
    path.write_bytes(whole[:-12] + chunk + whole[-12:])
    return path


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Six training, two validation and two test pictures."""
    return write_set(tmp_path / "set")


@pytest.fixture
def segue(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """The command line: ``segue("train", ...)`` gives (exit status, output, errors)."""
    from segue.cli import main

    monkeypatch.delenv("SEGUE_MIRROR", raising=False)

    def call(*arguments: object) -> tuple[int, str, str]:
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = int(stop.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def options(**changes: object) -> list[str]:
    """`TINY` with changes, as command-line options."""
    return [f"--{name}={value}" for name, value in {**TINY, **changes}.items()]


def torchrun(*arguments: str, restarts: int = 0) -> subprocess.CompletedProcess[str]:
    """Two processes on this machine; one such launch at a time, so that launches do not take each other's port."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--max-restarts={restarts}"]
    command = [*launcher, "--nproc-per-node=2", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (Path(tempfile.gettempdir()) / "segue-torchrun.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)


class Child:
    """A process of its own for ``work``, forked from a server that has all imported and has run nothing yet.

    A copy of the test process would not do: once autograd or OpenMP have started threads there, a copy cannot use them.
    """

    context = multiprocessing.get_context("forkserver")
    # What a training imports on its way takes longer than the training; the last is torch's own, for several processes.
    context.set_forkserver_preload(
        ["test_checkpoints", "test_contract", "segue.search.trials", "segue.embeddings", "timm", "matplotlib.figure",
         "segmentation_models_pytorch", "transformers.models.mask2former.modeling_mask2former", "torch._dynamo"]
    )  # fmt: skip

    def __init__(self, work: Callable[..., Any], *arguments: Any) -> None:
        self.process = self.context.Process(target=_alone, args=(work, arguments))
        self.process.start()

    def signal(self, number: int) -> None:
        """Sends a signal, unless it has ended, even since it was asked: the fork server takes its end up at once."""
        if self.process.is_alive() and self.process.pid:
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, number)

    def status(self) -> int:
        """Exit status, or minus the signal that ended it."""
        self.process.join(100)
        assert self.process.exitcode is not None, "the process never came to an end"
        return self.process.exitcode


def _alone(work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    work(*arguments)
