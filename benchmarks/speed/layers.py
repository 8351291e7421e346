"""Which convolutions are slower in bfloat16 than in float32 on this CPU, and what a training step makes of it.

    python benchmarks/speed/layers.py [--rounds 8] [--json FILE]

CPU time of one thread, medians. ``layers``: forward and backward of one convolution, batch 8, channels last, with and
without autocast. ``steps``: a training step of `supervised` with AdamW by float32, by bfloat16, and by bfloat16 with
`segue.processes.tuning.slow_layers_in_float32`, in turns.
"""

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from scale import made_up, method_and_optimizer
from torch import nn

from segue.processes.tuning import slow_layers_in_float32

BATCH = 8
LAYERS: dict[str, tuple[dict[str, int], int]] = {  # fields of the convolution, side of the picture
    "depthwise": ({"in_channels": 144, "groups": 144}, 64),
    "depthwise, stride 2": ({"in_channels": 144, "groups": 144, "stride": 2}, 64),
    "depthwise, stride 2, small": ({"in_channels": 384, "groups": 384, "stride": 2}, 16),
    "depthwise, dilation 2": ({"in_channels": 576, "groups": 576, "dilation": 2}, 16),
    "depthwise 5 x 5": ({"in_channels": 144, "groups": 144, "kernel_size": 5}, 32),
    "depthwise 5 x 5, stride 2": ({"in_channels": 144, "groups": 144, "kernel_size": 5, "stride": 2}, 32),
    "depthwise 7 x 7": ({"in_channels": 96, "groups": 96, "kernel_size": 7}, 32),
    "32 groups, stride 2": ({"in_channels": 128, "groups": 32, "stride": 2}, 32),
    "4 groups, stride 2": ({"in_channels": 128, "groups": 4, "stride": 2}, 32),
    "dense": ({"in_channels": 256}, 16),
    "dense, dilation 12": ({"in_channels": 256, "dilation": 12}, 16),
    "dense 1 x 1": ({"in_channels": 144, "kernel_size": 1}, 64),
}
NETWORKS = (("mobilenetv2_100", 96), ("mobilenetv2_100", 256), ("tf_efficientnet_lite0", 96), ("resnet50", 256))


def in_turns(ways: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Milliseconds of each, the first two rounds left out."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(2 + rounds):
        for name, work in ways.items():
            start = time.process_time()
            work()
            times[name].append(1000 * (time.process_time() - start))
    return {name: statistics.median(values[2:]) for name, values in times.items()}


def layer(fields: dict[str, int], side: int, rounds: int) -> dict[str, float]:
    """Forward and backward of one convolution."""
    whole = {"kernel_size": 3, "stride": 1, "dilation": 1, "groups": 1, **fields}
    padding = whole["dilation"] * (whole["kernel_size"] // 2)
    made: Any = nn.Conv2d(out_channels=whole["in_channels"], padding=padding, bias=False, **whole)
    made.to(memory_format=torch.channels_last)
    image = torch.randn(BATCH, whole["in_channels"], side, side).to(memory_format=torch.channels_last)

    def work(precision: torch.dtype) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            found = made(image.to(precision).requires_grad_())
        found.backward(torch.ones_like(found))

    return in_turns({"fp32": lambda: work(torch.float32), "bf16": lambda: work(torch.bfloat16)}, rounds)


def step(encoder: str, crop: int, rounds: int) -> dict[str, float]:
    """A training step."""
    method, optimizer = method_and_optimizer(encoder, "cpu", "AdamW", fused=True)
    batch = made_up(BATCH, crop)

    def work(*, rounded: bool, kept: bool = False) -> None:
        optimizer.zero_grad()
        setting = slow_layers_in_float32(method) if kept else contextlib.nullcontext()
        with setting, torch.autocast("cpu", torch.bfloat16, enabled=rounded):
            loss = method(batch)["cross_entropy"]
        loss.backward()
        optimizer.step()

    ways = {
        "fp32": lambda: work(rounded=False),
        "bf16": lambda: work(rounded=True),
        "bf16, slow layers in fp32": lambda: work(rounded=True, kept=True),
    }
    return in_turns(ways, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {name: layer(*given, options.rounds) for name, given in LAYERS.items()}
    found |= {f"{encoder}, {crop}": step(encoder, crop, options.rounds) for encoder, crop in NETWORKS}
    for name, times in found.items():
        shown = "  ".join(f"{way} {value:8.2f} ({value / times['fp32']:5.2f})" for way, value in times.items())
        print(f"{name:28s} {shown}")
    if options.json:
        Path(options.json).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
