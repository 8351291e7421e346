"""A network as an ONNX file with the preprocessing inside: 8-bit pictures of any size in, class maps out."""

import copy
import json
import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.data.sample import Array
from segue.extras import require

INPUT, OUTPUT = "image", "classes"
OPSET = 18
# Sides that no stride divides: padding is traced only where there is something to pad.
EXAMPLE = (2, 83, 117)

Classify = Callable[[Array], Array]
"""Pictures uint8 (B, H, W, bands) -> class ids uint8 (B, H, W)."""


class ImageToClasses(nn.Module):
    """A network as it is used: uint8 (B, H, W, bands) -> uint8 (B, H, W)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        """The most probable class of each pixel."""
        logits: Tensor = self.network(image.permute(0, 3, 1, 2))
        return logits.argmax(1).to(torch.uint8)


class PaddedConv(nn.Module):
    """One of timm's convolutions that pad as TensorFlow does, its padding worked out beforehand.

    timm works it out from the size of each map; where that size is free, the tracer takes minutes over it. It is the
    same for every side that the stride divides, and Segue's networks pad pictures so that all are.

    Args:
        conv: a `timm.layers.Conv2dSame`, whose weights it keeps.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        reach = zip(conv.kernel_size, conv.stride, conv.dilation, strict=True)
        down, right = (max(0, (kernel - 1) * dilation + 1 - stride) for kernel, stride, dilation in reach)
        self.sides = (right // 2, right - right // 2, down // 2, down - down // 2)

    def forward(self, x: Tensor) -> Tensor:
        """As the convolution: (B, C, h, w) -> (B, C', h / stride, w / stride)."""
        of = self.conv
        return F.conv2d(F.pad(x, self.sides), of.weight, of.bias, of.stride, 0, of.dilation, of.groups)


def with_padding_known(graph: nn.Module) -> nn.Module:
    """A copy whose convolutions are `PaddedConv` where they were timm's; the module itself where none is."""
    from timm.layers.conv2d_same import Conv2dSame

    if not any(isinstance(module, Conv2dSame) for module in graph.modules()):
        return graph
    graph = copy.deepcopy(graph)
    for module in list(graph.modules()):
        for name, child in module.named_children():
            if isinstance(child, Conv2dSame):
                setattr(module, name, PaddedConv(child))
    return graph


def write_onnx(network: nn.Module, path: Path, *, bands: int = 3, metadata: Mapping[str, Any] | None = None) -> None:
    """Writes ``network``, (B, bands, H, W) -> logits (B, K, H, W), as one ONNX file of free batch and image size.

    The network is left in evaluation mode, on the CPU's copy of its weights.

    Args:
        network: scales and normalises inside, as Segue's do.
        path: of the file.
        bands: of the pictures.
        metadata: written into the file, as JSON where a value is no string.

    Raises:
        UsageError: the extra ``export`` is not installed.
    """
    sides = ("batch", "height", "width")
    write_graph(
        ImageToClasses(network.cpu()), path, (*EXAMPLE, bands), {INPUT: sides, OUTPUT: sides}, metadata=metadata
    )


def write_graph(
    graph: nn.Module,
    path: Path,
    example: tuple[int, ...],
    free: Mapping[str, tuple[str, ...]],
    *,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Writes a module of one input, uint8 pictures, as one ONNX file with its metadata.

    Args:
        graph: the module.
        path: of the file.
        example: shape of the input that it is traced with.
        free: of the input `INPUT` and of each output the names of the first dimensions; all may be of any size but
            those named by a number.
        metadata: see `write_onnx`.

    Raises:
        UsageError: the extra ``export`` is not installed.
    """
    onnx = require("onnx", "export")
    require("onnxscript", "export")
    sizes = {i: torch.export.Dim.DYNAMIC for i, name in enumerate(free[INPUT]) if not name.isdigit()}
    logging.getLogger("onnxscript.optimizer").setLevel(logging.ERROR)  # what it leaves as it is concerns nobody
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own parts about each other
        program = torch.onnx.export(
            with_padding_known(graph),
            (torch.zeros(*example, dtype=torch.uint8),),
            dynamo=True,
            dynamic_shapes=(sizes,),
            input_names=[INPUT],
            output_names=[name for name in free if name != INPUT],
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export gave nothing back")
    written = program.model_proto
    for value in (*written.graph.input, *written.graph.output):
        for dimension, label in zip(value.type.tensor_type.shape.dim, free[value.name], strict=False):
            if not label.isdigit():
                dimension.Clear()
                dimension.dim_param = label
    del written.graph.value_info[:]  # sizes of inner maps in terms of symbols that no longer have their names
    for key, value in (metadata or {}).items():
        written.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
    onnx.save_model(written, path)


def onnx_session(path: Path, *, threads: int = 0) -> Any:
    """An ONNX file in ONNX Runtime on the CPU; ``threads`` 0 takes all cores.

    Raises:
        UsageError: the extra ``export`` is not installed.
    """
    runtime = require("onnxruntime", "export")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def onnx_classifier(path: Path, *, threads: int = 0) -> Classify:
    """An ONNX file in ONNX Runtime on the CPU; ``threads`` 0 takes all cores.

    Raises:
        UsageError: the extra ``export`` is not installed.
    """
    session = onnx_session(path, threads=threads)

    def classify(images: Array) -> Array:
        return np.asarray(session.run([OUTPUT], {INPUT: np.ascontiguousarray(images)})[0])

    return classify


def onnx_metadata(path: Path) -> dict[str, str]:
    """What `write_onnx` wrote into the file as metadata."""
    onnx = require("onnx", "export")
    return {entry.key: entry.value for entry in onnx.load_model(path, load_external_data=False).metadata_props}


def openvino_classifier(path: Path, *, threads: int = 0, precision: str = "") -> Classify:
    """An ONNX or OpenVINO file in OpenVINO on the CPU; ``threads`` 0 takes all cores.

    Args:
        path: ``.onnx`` or ``.xml``.
        threads: of the inference.
        precision: ``f32`` or ``bf16``; empty leaves it to OpenVINO, which takes bf16 where the hardware has it.

    Raises:
        UsageError: the extra ``openvino`` is not installed.
    """
    openvino = require("openvino", "openvino")
    settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads} if threads else {}
    if precision:
        settings["INFERENCE_PRECISION_HINT"] = precision
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)

    def classify(images: Array) -> Array:
        return np.array(compiled(np.ascontiguousarray(images))[0])

    return classify


def torch_classifier(network: nn.Module) -> Classify:
    """The network itself, in float32."""
    graph = ImageToClasses(network)

    def classify(images: Array) -> Array:
        with torch.inference_mode():
            return np.asarray(graph(torch.from_numpy(np.ascontiguousarray(images))).numpy())

    return classify
