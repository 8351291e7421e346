"""Switches of the whole process that make torch faster on a CPU; each is checked where it could do harm.

``SEGUE_TUNE=0`` leaves the process as it is; ``SEGUE_TUNE=allocator,matmul,pow`` names the switches to set.

    allocator   glibc keeps freed tensors instead of giving them back to the kernel: fewer page faults, a little more
                memory. Linux with glibc only.
    matmul      ``torch.set_float32_matmul_precision("medium")``: on some CPUs float32 products take a faster path at
                the same accuracy; on others "medium" rounds to bfloat16. A trial product decides.
    pow         one vectorised power: until one has run, softplus and its kin may be ten times slower.

`benchmarks/speed/step.py` measures each.
"""

import os

import torch

from segue.allocator import keep_freed_memory

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
