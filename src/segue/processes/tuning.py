"""Switches of the whole process that make torch faster on a CPU; each is checked where it could do harm.

``SEGUE_TUNE=0`` leaves the process as it is; ``SEGUE_TUNE=allocator,matmul,pow`` names the switches to set.

    allocator   glibc keeps freed tensors instead of giving them back to the kernel: fewer page faults, a little more
                memory. Linux with glibc only.
    matmul      ``torch.set_float32_matmul_precision("medium")``: on some CPUs float32 products take a faster path at
                the same accuracy; on others "medium" rounds to bfloat16. A trial product decides.
    pow         one vectorised power: until one has run, softplus and its kin may be ten times slower.

`benchmarks/speed/step.py` measures each. What holds for one training alone, `slow_layers_in_float32`, is no switch.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from segue.processes.allocator import keep_freed_memory

ALL = ("allocator", "matmul", "pow")
TOLERANCE = 1e-5  # largest relative error of a product that still counts as float32


def tune(device: str) -> list[str]:
    """Sets the switches that ``SEGUE_TUNE`` names, all of them by default, on a CPU; the names of those that hold."""
    wanted = os.environ.get("SEGUE_TUNE", ",".join(ALL))
    if not device.startswith("cpu"):
        return []
    switches = {"allocator": keep_freed_memory, "matmul": fast_products, "pow": first_power}
    return [name for name in ALL if name in wanted.split(",") and switches[name]()]


def fast_products() -> bool:
    """Whether "medium" products are still float32 here; else the setting is put back."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(256, 256, generator=generator) for _ in range(2))
    exact = left.double() @ right.double()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    error = float(((left @ right).double() - exact).abs().max() / exact.abs().max())
    if error > TOLERANCE:
        torch.set_float32_matmul_precision(before)
    return error <= TOLERANCE


def first_power() -> bool:
    """Runs one vectorised power."""
    torch.full((4096,), 2.0).pow(0.9)
    return True


@contextlib.contextmanager
def slow_layers_in_float32(module: nn.Module) -> Iterator[None]:
    """In it the layers of ``module`` whose bfloat16 gradient is slow on CPUs leave autocast, for this block.

    These are depthwise convolutions but those of 3 x 3 with stride and dilation 1: oneDNN has no fast gradient for them
    in bfloat16, and takes up to 20 times as long as in float32.
    """
    slow = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d) and _is_slow(layer)]
    for layer in slow:
        layer.forward = partial(_in_float32, layer.forward)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in slow:
            del layer.forward  # that of its class is back


def _is_slow(layer: nn.Conv2d) -> bool:
    is_depthwise = layer.groups == layer.in_channels > 1
    return is_depthwise and (layer.kernel_size, layer.stride, layer.dilation) != ((3, 3), (1, 1), (1, 1))


def _in_float32(forward: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    with torch.autocast(image.device.type, enabled=False):
        return forward(image.float())
