"""A network, or a part of one, as it runs on a device: in ONNX Runtime where the extra ``export`` is installed, else in
torch. What a search aims at is measured here."""

import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segue.models.compact import GlobalAverage, Zero, enlarged

OPSET = 18


def runtime() -> str:
    """What networks are timed in, in words."""
    return "ONNX Runtime" if find_spec("onnx") and find_spec("onnxruntime") else "torch"


@contextmanager
def threads_of_torch(count: int) -> Iterator[None]:
    """So many threads of torch for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def alike() -> Iterator[None]:
    """One thread of torch and float32 products in full: every process of a search comes to the same numbers."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # which `segue.processes.tuning` lowers in the first process alone
    try:
        with threads_of_torch(1):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def on_cores(count: int) -> Iterator[None]:
    """Every thread that this process has now on the ``count`` cores that idle most, where the system can be told so.

    Only while something is timed: what is prepared there would wait for whoever chose the same cores.
    """
    tasks = Path("/proc/self/task")
    if not tasks.is_dir() or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = {int(task.name): os.sched_getaffinity(int(task.name)) for task in tasks.iterdir()}
    chosen = idlest(sorted(os.sched_getaffinity(0)))[:count]
    _bind(dict.fromkeys(before, chosen))
    try:
        yield
    finally:
        _bind(before)


def _bind(cores: Mapping[int, Iterable[int]]) -> None:
    """Binds threads, by their ids, to cores; one that has ended is passed over."""
    for thread, chosen in cores.items():
        with suppress(ProcessLookupError):
            os.sched_setaffinity(thread, chosen)


def idlest(cores: Sequence[int], *, seconds: float = 0.2) -> list[int]:
    """The cores, those first that idled most in the last moment; as they come where the system does not tell."""

    def idle() -> dict[str, int]:
        lines = map(str.split, Path("/proc/stat").read_text().splitlines())
        return {words[0]: int(words[4]) for words in lines if words[0].startswith("cpu")}

    try:
        first = idle()
        time.sleep(seconds)
        then = idle()
        return sorted(cores, key=lambda core: first[f"cpu{core}"] - then[f"cpu{core}"])
    except (OSError, LookupError, ValueError):
        return list(cores)


def part_runner(part: nn.Module, example: Tensor, threads: int, *, adds: bool = False) -> Callable[[], object]:
    """Runs a part of a decoder once.

    Args:
        part: convolutions, batch norms, ReLUs and global averages, one after the other.
        example: what it is run on, (1, C, h, w).
        threads: of the runtime.
        adds: adds what goes in to what comes out.
    """
    if runtime() == "torch":

        def in_torch() -> None:
            with threads_of_torch(threads), torch.inference_mode():
                found = part(example)
                _ = found + example if adds else found

        return in_torch
    return _session(chain(part, tuple(example.shape), adds=adds), threads, example)


def chain(part: nn.Module, shape: tuple[int, ...], *, adds: bool = False) -> bytes:
    """A part as ONNX, batch norms left out: a runtime folds them into the convolutions before them."""
    from onnx import helper, numpy_helper

    nodes: list[Any] = []
    weights: list[Any] = []
    last = "x"

    def add(kind: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, [last, *inputs], [f"y{len(nodes)}"], **attributes))
        return f"y{len(nodes) - 1}"

    average = any(isinstance(module, GlobalAverage) for module in part.modules())
    if average:
        last = add("GlobalAveragePool")
    for module in part.modules():
        if isinstance(module, nn.Conv2d):
            name = f"w{len(nodes)}"
            weights.append(numpy_helper.from_array(module.weight.detach().numpy(), name))
            (down, right), dilations = (int(side) for side in module.padding), list(module.dilation)
            last = add("Conv", name, pads=[down, right, down, right], dilations=dilations, group=module.groups)
        elif isinstance(module, nn.ReLU):
            last = add("Relu")
        elif isinstance(module, Zero):
            raise ValueError("a zero operation takes no time and is no graph")
    if average:
        weights.append(numpy_helper.from_array(torch.tensor(shape).numpy(), "shape"))
        last = add("Expand", "shape")
    if adds:
        last = add("Add", "x")
    return _serialised(nodes, weights, shape, last)


def _serialised(
    nodes: list[Any], weights: list[Any], shape: tuple[int, ...], last: str, *, is_float: bool = True
) -> bytes:
    """A graph from ``x`` of a shape to the value named ``last``."""
    from onnx import TensorProto, helper

    kind = TensorProto.FLOAT if is_float else TensorProto.INT64
    graph = helper.make_graph(
        nodes, "part",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(last, kind, None)],
        weights,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    content: bytes = model.SerializeToString()
    return content


def enlarging_runner(
    example: Tensor, size: tuple[int, int], threads: int, *, picks: bool = False
) -> Callable[[], object]:
    """Brings ``example`` (1, C, h, w) to (height, width) ``size``, bilinearly.

    Args:
        example: what is enlarged.
        size: what it is enlarged to.
        threads: of the runtime.
        picks: finds the largest channel of each pixel, too, where a model as it is exported does: in ONNX Runtime.
    """
    if runtime() == "torch":

        def in_torch() -> None:
            with threads_of_torch(threads), torch.inference_mode():
                enlarged(example, size)

        return in_torch
    from onnx import helper, numpy_helper

    target = numpy_helper.from_array(torch.tensor([*example.shape[:2], *size]).numpy(), "size")
    how = {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"}
    nodes = [helper.make_node("Resize", ["x", "", "", "size"], ["large"], **how)]
    if picks:
        nodes.append(helper.make_node("ArgMax", ["large"], ["class"], axis=1, keepdims=0))
    content = _serialised(nodes, [target], tuple(example.shape), "class" if picks else "large", is_float=not picks)
    return _session(content, threads, example)


def model_runner(model: nn.Module, height: int, width: int, threads: int) -> tuple[Callable[[], object], float]:
    """Runs a whole model on one picture of a size, and the MiB it takes at most (NaN in torch); preprocessing and class
    map are included where ONNX Runtime is there."""
    image = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8)
    if runtime() == "torch":

        def in_torch() -> None:
            with threads_of_torch(threads), torch.inference_mode():
                model(image)

        return in_torch, math.nan
    from segue.export.graph import onnx_classifier, write_onnx

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_onnx(model.eval(), path)
        run = onnx_classifier(path, threads=threads)
        memory = peak_memory(path, height, width, threads)
    picture = image.permute(0, 2, 3, 1).contiguous().numpy()
    return lambda: run(picture), memory


_ALONE = """
import sys
import numpy as np
import onnxruntime

def peak():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))

path, height, width, threads = sys.argv[1], *map(int, sys.argv[2:])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = threads
before = peak()
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
session.run(None, {session.get_inputs()[0].name: np.zeros((1, height, width, 3), np.uint8)})
print(peak() - before)
"""


def peak_memory(path: Path, height: int, width: int, threads: int) -> float:
    """MiB that loading and running an exported model add to a process of ONNX Runtime's own; NaN where none tells."""
    words = [sys.executable, "-c", _ALONE, str(path), *map(str, (height, width, threads))]
    done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603  this interpreter
    return float(done.stdout) if done.returncode == 0 else math.nan


def maps_runners(encoder: nn.Module, example: Tensor, threads: int) -> list[Callable[[], object]]:
    """What runs an encoder that gives several maps, as far as the first of them, the second, and so on.

    An exported model holds no layer that nothing comes of, so one whose decoder takes no coarse map ends at a finer
    one. In torch all layers run, whatever is taken.
    """
    if runtime() == "torch":

        def in_torch() -> None:
            with threads_of_torch(threads), torch.inference_mode():
                encoder(example)

        return [in_torch] * len(encoder(example))
    from onnx.utils import Extractor

    program = torch.onnx.export(encoder.eval(), (example,), dynamo=True, opset_version=OPSET, verbose=False)
    if program is None:
        raise RuntimeError("torch.onnx.export gave nothing back")
    parts = Extractor(program.model_proto)
    given = [value.name for value in parts.graph.input]
    maps = [value.name for value in parts.graph.output]
    cut = [parts.extract_model(given, maps[: number + 1]) for number in range(len(maps))]
    return [_session(part.SerializeToString(), threads, example) for part in cut]


def _session(content: bytes, threads: int, example: Tensor) -> Callable[[], object]:
    """Runs an ONNX model on ``example``, on so many threads of the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    given = {session.get_inputs()[0].name: example.contiguous().numpy()}
    return lambda: session.run(None, given)
