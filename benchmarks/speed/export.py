"""Exported files against torch eager on the CPU: DeepLabV3+ MobileNetV2, 19 classes, 512 x 512, random weights.

    python benchmarks/speed/export.py [--size 512] [--rounds 15] [--threads 1] [--encoder mobilenetv2_100]

CPU time of the process is compared, interleaved in random order, and the ratio is the median of the ratios within a
round, so that other work on the machine matters less. Goals: ONNX at most 0.5, 8 bits and OpenVINO bf16 at most 0.25.
"""

import argparse
import json
import random
import resource
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch

from segue.bench import machine
from segue.data.sample import palette
from segue.export.delivery import quantise
from segue.export.graph import Classify, onnx_classifier, openvino_classifier, torch_classifier, write_onnx
from segue.models.segmenter import Segmenter, SegmenterSpec


class Noise:
    """Pictures that calibrate; of random weights no accuracy is claimed."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(index)
        return {"image": torch.randint(0, 256, (3, self.size, self.size), dtype=torch.uint8, generator=generator)}


def cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--encoder", default="mobilenetv2_100")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    spec = SegmenterSpec(options.encoder, tuple(map(str, range(19))), tuple(palette(19)))
    model = Segmenter(spec).eval()
    image = np.random.default_rng(0).integers(0, 256, (1, options.size, options.size, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path, small = Path(folder, "model.onnx"), Path(folder, "model.int8.onnx")
        write_onnx(model, path)
        quantise(path, small, Noise(options.size))
        last = {"torch eager channels_last": torch_classifier(model.to(memory_format=torch.channels_last))}
        runs: dict[str, Classify] = {
            "torch eager": torch_classifier(Segmenter(spec)),
            **last,
            "ONNX Runtime": onnx_classifier(path, threads=options.threads),
            "ONNX Runtime int8": onnx_classifier(small, threads=options.threads),
            "OpenVINO f32": openvino_classifier(path, threads=options.threads, precision="f32"),
            "OpenVINO bf16": openvino_classifier(path, threads=options.threads, precision="bf16"),
            "OpenVINO int8": openvino_classifier(small, threads=options.threads),
        }
        order, times = random.Random(0), {name: [] for name in runs}
        for _ in range(2 + options.rounds):
            for name in order.sample(list(runs), len(runs)):
                before = cpu()
                runs[name](image)
                times[name].append(cpu() - before)
    rows = {
        name: {
            "ms": round(1000 * statistics.median(values[2:]), 1),
            "ratio": round(
                statistics.median(v / e for v, e in zip(values[2:], times["torch eager"][2:], strict=True)), 3
            ),
        }
        for name, values in times.items()
    }
    print(json.dumps({"machine": machine(), **vars(options), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
