"""Tiled prediction from disk to disk against the bare network passes over the same windows.

    python benchmarks/speed/tiles.py [--height 2048] [--width 4096] [--rounds 3] [--encoder mobilenetv2_100]
    python benchmarks/speed/tiles.py --height 30000 --width 30000 --rounds 1 --encoder test_efficientnet

CPU time and resident memory at the peak. Goals: at most 1.15 x the bare passes; under 1 GiB for 30,000 x 30,000.
"""

import argparse
import json
import resource
import statistics
import tempfile
from pathlib import Path

import numpy as np
import rasterio
import torch

from segue.data.sample import Array, palette
from segue.latency import machine
from segue.models.segmenter import Segmenter, SegmenterSpec
from segue.prediction import probabilities
from segue.scenes import write_scene
from segue.tiling import Grid


def cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def write(path: Path, height: int, width: int) -> None:
    profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "tiled": True, "compress": "deflate", "zlevel": 1}
    generator = np.random.default_rng(0)
    with rasterio.open(path, "w", height=height, width=width, **profile) as file:
        for top in range(0, height, 256):
            rows = min(256, height - top)
            small = generator.integers(0, 256, (3, -(-rows // 8), -(-width // 8)), np.uint8)
            block = small.repeat(8, 1).repeat(8, 2)[:, :rows, :width]
            file.write(block, window=((top, top + rows), (0, width)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--height", type=int, default=2048)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--encoder", default="mobilenetv2_100")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    spec = SegmenterSpec(options.encoder, tuple(map(str, range(19))), tuple(palette(19)))
    model = Segmenter(spec).eval().to(memory_format=torch.channels_last)
    grid = Grid()
    ratios, seconds = [], []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "scene.tif")
        write(path, options.height, options.width)
        passes: list[float] = []

        @torch.inference_mode()
        def window(pixels: Array) -> Array:
            image = torch.from_numpy(pixels)
            found = probabilities(model, image).numpy()
            before = cpu()
            model(image[None])
            passes.append(cpu() - before)
            return found

        for _ in range(options.rounds):
            passes.clear()
            before = cpu()
            targets = {kind: Path(folder, f"{kind}.tif") for kind in ("labels", "uncertainty")}
            write_scene(path, targets, window, grid, bands=3, colors=spec.colors)
            seconds.append(cpu() - before - sum(passes))
            ratios.append(seconds[-1] / sum(passes))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({
        "machine": machine(), **vars(options), "windows": len(passes),
        "cpu_seconds": round(statistics.median(seconds), 2),
        "ratio_to_passes": round(statistics.median(ratios), 3), "peak_mib": round(peak),
    }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
