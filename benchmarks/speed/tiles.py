"""Tiled prediction from disk to disk against the bare network passes over the same windows.

    python benchmarks/speed/tiles.py [--height 2048] [--width 4096] [--rounds 3] [--encoder mobilenetv2_100]
    python benchmarks/speed/tiles.py --height 30000 --width 30000 --rounds 1 --encoder test_efficientnet

CPU time and resident memory at the peak, which includes PyTorch's own, given as that after one bare pass. Every window
is passed through the network once more, bare, beside its prediction. Goals: at most 1.15 x the bare passes; under 1 GiB
for 30,000 x 30,000. The height of a scene changes nothing in memory: 30,000 wide and 3,000 high shows the peak.
"""

import argparse
import json
import resource
import statistics
import tempfile
import warnings
from pathlib import Path

import numpy as np
import rasterio
import torch

from segue.bench import machine
from segue.data.sample import Array, palette
from segue.models.segmenter import Segmenter, SegmenterSpec
from segue.prediction.pictures import probabilities
from segue.prediction.scenes import write_scene
from segue.prediction.tiling import Grid
from segue.processes.tuning import tune


def cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def write(path: Path, height: int, width: int) -> None:
    profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "tiled": True, "compress": "deflate", "zlevel": 1}
    generator = np.random.default_rng(0)
    with rasterio.Env(GDAL_CACHEMAX=16), rasterio.open(path, "w", height=height, width=width, **profile) as file:
        for top in range(0, height, 256):
            rows = min(256, height - top)
            small = generator.integers(0, 256, (3, -(-rows // 8), -(-width // 8)), np.uint8)
            block = small.repeat(8, 1).repeat(8, 2)[:, :rows, :width]
            file.write(block, window=((top, top + rows), (0, width)))


def peak() -> int:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--height", type=int, default=2048)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--encoder", default="mobilenetv2_100")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tune("cpu")  # as `segue predict` does
    spec = SegmenterSpec(options.encoder, tuple(map(str, range(19))), tuple(palette(19)))
    model = Segmenter(spec).eval()
    grid, passes = Grid(), [0.0]

    @torch.inference_mode()
    def bare(image: torch.Tensor) -> None:
        before = cpu()
        model(image[None])
        passes.append(cpu() - before)

    def window(pixels: Array) -> Array:
        image = torch.from_numpy(pixels)
        found = probabilities(model, image).numpy()
        bare(image)
        return found

    bare(torch.zeros(3, grid.tile, grid.tile, dtype=torch.uint8))
    kinds = {"labels": ("labels",), "labels and uncertainty": ("labels", "uncertainty")}
    after_one_pass, rows = peak(), {name: [] for name in kinds}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        path = Path(folder, "scene.tif")
        write(path, options.height, options.width)
        for _ in range(options.rounds):
            for name, written in kinds.items():
                passes.clear()
                before = cpu()
                targets = {kind: Path(folder, f"{kind}.tif") for kind in written}
                write_scene(path, targets, window, grid, bands=3, colors=spec.colors)
                rows[name].append((cpu() - before - sum(passes), sum(passes)))
    print(json.dumps({
        "machine": machine(), **vars(options), "windows": len(passes), "peak_mib": peak(),
        "peak_mib_after_one_pass": after_one_pass,
        "rows": {
            name: {
                "ratio_to_passes": round(statistics.median(whole / bare for whole, bare in times), 3),
                "cpu_ms_a_window": round(1000 * statistics.median(whole for whole, _ in times) / len(passes), 1),
                "cpu_ms_a_pass": round(1000 * statistics.median(bare for _, bare in times) / len(passes), 1),
            }
            for name, times in rows.items()
        },
    }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
