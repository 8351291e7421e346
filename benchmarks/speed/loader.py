"""The loader: CPU time per training image by stage, against torchvision's reader and v2 transforms doing the same, and
whether it keeps the network fed.

    python benchmarks/speed/loader.py FOLDER [--images 60] [--rounds 5]

FOLDER is a data set (CamVid's 480 x 360 pictures in the figures of docs/log.md). Both sides decode image and mask,
scale them by a factor from [0.5, 2], crop 256 x 256, flip, and change brightness, contrast, saturation and hue; in
turn, in one process with one thread, CPU time, medians.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torchvision import io, tv_tensors
from torchvision.transforms import v2

from segue.data.decoder import Decoder, mask_image
from segue.data.images import RandomViews
from segue.data.layouts import open_listing
from segue.data.sample import open_image, to_rgb
from segue.data.transforms import SIMCLR, ColorJitter, cut, draw_window, recolored
from segue.engine import endless, mix

CROP = 256
JITTER = ColorJitter(0.4, 0.4, 0.4, 0.1)


def cpu(work: Callable[[], object]) -> float:
    before = resource.getrusage(resource.RUSAGE_SELF)
    work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    listing = open_listing(options.data)
    pairs = listing.split("train")[: options.images]
    decoder = Decoder.of(listing)
    views = RandomViews(pairs, decoder, CROP, (0.5, 2.0), JITTER)
    transform = v2.Compose([
        v2.ScaleJitter((360, 480), (0.5, 2.0), antialias=True),
        v2.RandomCrop(CROP, pad_if_needed=True, fill={tv_tensors.Image: 0, tv_tensors.Mask: 255}),
        v2.RandomHorizontalFlip(),
        v2.ColorJitter(0.4, 0.4, 0.4, 0.1),
    ])  # fmt: skip

    def ours() -> None:
        for i in range(len(pairs)):
            torch.manual_seed(mix(i))
            views[i]

    def theirs() -> None:
        for i, pair in enumerate(pairs):
            torch.manual_seed(mix(i))
            image = tv_tensors.Image(io.decode_image(io.read_file(str(pair.image)), io.ImageReadMode.RGB))
            transform(image, tv_tensors.Mask(io.decode_image(io.read_file(str(pair.mask)))))

    opened = [open_image(pair.image) for pair in pairs]
    masks = [mask_image(pair) for pair in pairs]
    torch.manual_seed(0)
    windows = [draw_window(image.width, image.height, CROP, (0.5, 2.0)) for image in opened]
    pieces = [cut(image, window, CROP, smooth=True) for image, window in zip(opened, windows, strict=True)]
    stages: dict[str, Callable[[], Any]] = {
        "decode the JPEG": lambda: [to_rgb(open_image(pair.image), pair.image) for pair in pairs],
        "decode the PNG mask": lambda: [np.asarray(mask_image(pair)) for pair in pairs],
        "crop and scale the image": lambda: [
            cut(i, w, CROP, smooth=True) for i, w in zip(opened, windows, strict=True)
        ],
        "crop and scale the mask": lambda: [cut(m, w, CROP, smooth=False) for m, w in zip(masks, windows, strict=True)],
        "colour": lambda: [recolored(piece, JITTER) for piece in pieces],
        "colour, SimCLR": lambda: [recolored(piece, SIMCLR) for piece in pieces],
    }
    times: dict[str, list[float]] = {name: [] for name in ("segue", "torchvision", *stages)}
    for work in (ours, theirs):
        work()
    for _ in range(options.rounds):
        times["segue"].append(cpu(ours))
        times["torchvision"].append(cpu(theirs))
        for name, stage in stages.items():
            times[name].append(cpu(stage))
    for name, seconds in times.items():
        print(f"{name:28s} {1000 * statistics.median(seconds) / len(pairs):6.2f} ms an image")
    ratio = statistics.median(a / b for a, b in zip(times["segue"], times["torchvision"], strict=True))
    print(f"segue / torchvision          {ratio:6.2f}")
    waiting(views)


def waiting(views: RandomViews, *, batch: int = 8, steps: int = 20, workers: int = 2) -> None:
    """Share of a training step's time spent waiting for the loader: DeepLabV3+ MobileNetV2, 1 thread, 2 workers."""
    from segue.losses import pixel_cross_entropy
    from segue.models.segmenter import Segmenter, SegmenterSpec

    classes = 12
    model = Segmenter(SegmenterSpec("mobilenetv2_100", tuple(map(str, range(classes))), ((0, 0, 0),) * classes))
    model.to(memory_format=torch.channels_last).train()
    stream = endless(views, batch, seed=0, workers=workers)
    next(stream)
    waited, start = 0.0, time.perf_counter()
    for _ in range(steps):
        asked = time.perf_counter()
        sample = next(stream)
        waited += time.perf_counter() - asked
        with torch.autocast("cpu", torch.bfloat16):
            loss = pixel_cross_entropy(model(sample["image"]), sample["mask"])
        loss.backward()
    total = time.perf_counter() - start
    print(f"waiting for the loader: {100 * waited / total:.1f} % of {total / steps:.2f} s a step ({workers} workers)")


if __name__ == "__main__":
    main()
