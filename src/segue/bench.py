"""How long a model takes on this machine: every candidate in turn, in random order, so that none is favoured."""

import json
import os
import platform
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from segue.data.sample import Array
from segue.errors import DataError, UsageError
from segue.export.graph import Classify, onnx_classifier, openvino_classifier, torch_classifier
from segue.records import MISREAD

WARM = 2  # calls before the first that counts


@dataclass
class Candidate:
    """One model in one runtime, with so many threads, on one size.

    Args:
        model: its path.
        runtime: what runs it.
        threads: of the inference.
        height: of the picture.
        width: of the picture.
        run: the model, loaded.
        seconds: of each call.
        memory: MiB beyond what was taken before, at the peak of a call; NaN where the system does not tell.
        failure: why it cannot be run, in a line.
    """

    model: str
    runtime: str
    threads: int
    height: int
    width: int
    run: Classify
    seconds: list[float] = field(default_factory=list)
    memory: float = float("nan")
    failure: str = ""

    def plain(self) -> dict[str, Any]:
        """A row of the table; times in ms."""
        times = 1000 * np.array(self.seconds or [float("nan")])
        p50, p95 = (round(float(np.percentile(times, q)), 3) for q in (50, 95))
        row = {name: getattr(self, name) for name in ("model", "runtime", "threads", "height", "width", "failure")}
        memory = None if np.isnan(self.memory) else round(self.memory, 1)
        if not self.seconds:
            return {**row, "p50_ms": None, "p95_ms": None, "per_second": None, "memory": memory, "calls": 0}
        rate = round(1000 / p50, 2)
        return {**row, "p50_ms": p50, "p95_ms": p95, "per_second": rate, "memory": memory, "calls": len(self.seconds)}


def candidates(
    models: Sequence[str], *, sizes: Sequence[tuple[int, int]], threads: Sequence[int], compiled: bool, openvino: bool
) -> list[Candidate]:
    """Every model in every runtime that takes it, with every number of threads, on every size.

    Raises:
        DataError: a model that cannot be opened.
    """
    found = []
    for model in models:
        for count in threads:
            for runtime, run in _runtimes(model, count, compiled=compiled, openvino=openvino):
                found += [Candidate(model, runtime, count, height, width, run) for height, width in sizes]
    return found


def _runtimes(model: str, threads: int, *, compiled: bool, openvino: bool) -> list[tuple[str, Classify]]:
    """(name, model) of the runtimes that take the file or folder."""
    import torch

    path = Path(model)
    if path.suffix in (".onnx", ".xml"):
        if not path.is_file():
            raise DataError(f"{model}: no such file")
        rows: list[tuple[str, Classify]] = []
        try:
            if path.suffix == ".onnx":
                rows.append(("ONNX Runtime", onnx_classifier(path, threads=threads)))
            if openvino or path.suffix == ".xml":
                rows += [
                    (f"OpenVINO {precision}", openvino_classifier(path, threads=threads, precision=precision))
                    for precision in ("f32", "bf16")
                ]
        except UsageError:
            raise
        except Exception as error:  # each runtime raises its own
            raise DataError(f"{model} cannot be opened ({str(error).splitlines()[0]})") from None
        return rows
    from segue.export.delivery import refuse_unfit
    from segue.weights import load_any

    network = refuse_unfit(load_any(model), model)
    rows = [("torch eager", _with_threads(torch_classifier(network), threads))]
    if compiled:
        rows.append(("torch compiled", _with_threads(torch_classifier(torch.compile(network)), threads)))  # type: ignore[arg-type]
    return rows


def _with_threads(run: Classify, threads: int) -> Classify:
    """The same with torch's number of threads."""
    import torch

    def classify(images: Array) -> Array:
        torch.set_num_threads(threads)
        return run(images)

    return classify


def measure(
    rows: Sequence[Candidate], *, rounds: int, seed: int = 0, clock: Callable[[], float] = time.perf_counter,
    tick: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    """Runs every candidate once a round, in a new random order each round; fills in its times and memory."""
    order = random.Random(seed)
    images = {(c.height, c.width): _picture(c.height, c.width, seed) for c in rows}
    for row in rows:
        try:
            for _ in range(WARM):
                row.run(images[row.height, row.width])
        except Exception as error:  # each runtime raises its own; the others go on
            row.failure = next(iter(str(error).splitlines()), type(error).__name__)[:200]
    running = [row for row in rows if not row.failure]
    for _ in range(rounds):
        for row in order.sample(running, len(running)):
            before = _reset_peak()
            started = clock()
            row.run(images[row.height, row.width])
            row.seconds.append(clock() - started)
            row.memory = np.nanmax([row.memory, _peak() - before]) if not np.isnan(before) else row.memory
        tick()


def _picture(height: int, width: int, seed: int) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (1, height, width, 3), np.uint8)


def _reset_peak() -> float:
    """Resident MiB now, after setting the peak to it; NaN where the system does not let one."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return float("nan")
    return _peak()


def _peak() -> float:
    """Resident MiB at the peak."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    return float("nan")


def machine() -> str:
    """This machine in words."""
    name = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} logical cores, {platform.system()}"


def write_picture(path: Path, rows: Sequence[dict[str, Any]], accuracy: dict[str, float]) -> None:
    """Accuracy against latency of the models whose accuracy is known, as SVG; without any, latencies alone."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib.figure import Figure

    shown = [row for row in rows if row["p50_ms"] is not None]
    figure = Figure(figsize=(7, 0.35 * len(shown) + 1.4 if not accuracy else 4.2), layout="constrained")
    axes = figure.subplots()
    if accuracy:
        for row, marker in zip([r for r in shown if r["model"] in accuracy], "osD^vPX*<>" * len(shown), strict=False):
            label = f"{row['model']}, {row['runtime']}, {row['threads']} thr., {row['width']}x{row['height']}"
            axes.plot(row["p50_ms"], 100 * accuracy[row["model"]], marker, color="#0072b2", label=label)
        axes.set(xlabel="p50 latency, ms", ylabel="mIoU, %", xlim=(0, None))
        axes.legend(fontsize=7, loc="best")
    else:
        names = [
            f"{row['model']} · {row['runtime']} · {row['threads']} · {row['width']}x{row['height']}" for row in shown
        ]
        axes.barh(range(len(shown)), [row["p50_ms"] for row in shown], color="#0072b2", tick_label=names)
        axes.invert_yaxis()
        axes.set(xlabel="p50 latency, ms")
    axes.grid(visible=True, alpha=0.3)
    figure.savefig(path)


def known_accuracy(model: str) -> float | None:
    """mIoU of a run (``model.yaml``) or of an exported file (``parity.json`` beside it); None where it is not known."""
    path = Path(model)
    if path.suffix in (".onnx", ".xml"):
        with suppress(OSError, *MISREAD):
            entry = json.loads((path.parent / "parity.json").read_text(encoding="utf-8"))[path.name]
            return float(entry["after"]) if entry["labelled"] else None
        return None
    from segue.weights import describe

    value = describe(model)["metrics"].get("miou")
    return None if value is None or np.isnan(value) else float(value)
