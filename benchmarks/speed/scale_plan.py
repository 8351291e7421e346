"""What very many images and GPUs need: costs measured here, a simulation of the steps, and the first bottleneck.

    python benchmarks/speed/scale_plan.py [--images 400] [--seed 0]

Measured: what Segue itself costs an image (list, check, fingerprint, shuffle, read, decode and cut). Assumed, and
marked so in what is printed: the GPUs, the networks between them, the storage. docs/scale.md shows what came out.
"""

import argparse
import math
import resource
import tempfile
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

GIGA, YEAR = 1e9, 365 * 24 * 3600.0


@dataclass(frozen=True)
class Image:
    """What one image costs.

    Args:
        size: bytes on the storage, its mask included.
        load: seconds of one core to read, decode, cut and recolour it.
        compute: seconds of a GPU, forward and backward.
    """

    size: float
    load: float
    compute: float


@dataclass(frozen=True)
class Cluster:
    """Where it runs.

    Args:
        gpus: all of them.
        cores: of a CPU that load for each GPU.
        storage: bytes a second that all processes together read.
        link: bytes a second that a GPU sends to its neighbour in the ring.
        latency: seconds of one message.
        disk: bytes a second at which the first process writes a checkpoint.
        jitter: deviation of the time of a step on one GPU, as a share of its mean.
        life: mean seconds until one GPU, or what it stands in, fails.
        restart: seconds from a failure until the next step.
    """

    gpus: int
    cores: float
    storage: float
    link: float
    latency: float
    disk: float
    jitter: float = 0.0
    life: float = math.inf
    restart: float = 0.0


@dataclass(frozen=True)
class Training:
    """How it is trained.

    Args:
        batch: images of a GPU in a step.
        gradients: bytes that GPUs average in a step.
        checkpoint: bytes of one.
        every: seconds between two checkpoints.
        queue: images that wait, loaded, before each GPU.
        overlap: share of the computing during which gradients are already on their way.
    """

    batch: int
    gradients: float
    checkpoint: float
    every: float
    queue: int
    overlap: float = 0.6


@dataclass(frozen=True)
class Outcome:
    """What a simulated run does.

    Args:
        rate: images a second, of all GPUs together.
        shares: of the time, by what it went to: compute, stragglers, loader, storage, gradients, checkpoint, failures.
    """

    rate: float
    shares: dict[str, float]

    def bottleneck(self) -> str:
        """What, after computing, takes the most time."""
        return max((name for name in self.shares if name != "compute"), key=lambda name: self.shares[name])


def ring(size: float, gpus: int, link: float, latency: float) -> float:
    """Seconds in which a ring of GPUs averages ``size`` bytes: each sends 2 (n - 1) pieces of 1/n of it."""
    return 2 * (gpus - 1) * (size / gpus / link + latency)


def lost_to_failures(cluster: Cluster, every: float) -> float:
    """Share of the time that failures cost: half a checkpoint's interval and the restart, each time."""
    if math.isinf(cluster.life):
        return 0.0
    between = cluster.life / cluster.gpus
    lost = every / 2 + cluster.restart
    return lost / (between + lost)


def simulate(image: Image, cluster: Cluster, training: Training, *, steps: int, seed: int = 0) -> Outcome:
    """Step by step, with every GPU's own queue and its own luck; all wait for the slowest.

    Loaders fill the queues at the rate of their cores or of their part of the storage, whichever is less. A step begins
    on a GPU when its batch is there. Gradients are averaged in a ring, partly behind the computing.
    """
    draws = np.random.default_rng(seed)
    by_cores, by_storage = cluster.cores / image.load, cluster.storage / cluster.gpus / image.size
    rate, starved = min(by_cores, by_storage), "loader" if by_cores <= by_storage else "storage"
    mean = training.batch * image.compute
    sent = ring(training.gradients, cluster.gpus, cluster.link, cluster.latency)
    queue = float(max(training.queue, training.batch))
    ready = np.full(cluster.gpus, queue)
    spent = dict.fromkeys(("compute", "stragglers", "loader", "storage", "gradients", "checkpoint"), 0.0)
    since = 0.0
    for _ in range(steps):
        wait = np.maximum(0.0, training.batch - ready) / rate
        luck = np.maximum(0.1, 1 + cluster.jitter * draws.standard_normal(cluster.gpus))
        slowest = int((wait + mean * luck).argmax())
        busy, exposed = float(wait[slowest] + mean * luck[slowest]), max(0.0, sent - training.overlap * mean)
        stall = training.checkpoint / cluster.disk if since + busy + exposed >= training.every else 0.0
        length = busy + exposed + stall
        since = 0.0 if stall else since + length
        ready = np.maximum(ready + rate * wait, training.batch) - training.batch
        ready = np.minimum(queue, ready + rate * (length - wait))
        spent["compute"] += mean
        spent["stragglers"] += mean * (float(luck[slowest]) - 1)
        spent[starved] += float(wait[slowest])
        spent["gradients"] += exposed
        spent["checkpoint"] += stall
    total = sum(spent.values())
    failed = lost_to_failures(cluster, training.every)
    shares = {name: (1 - failed) * seconds / total for name, seconds in spent.items()} | {"failures": failed}
    return Outcome((1 - failed) * steps * training.batch * cluster.gpus / total, shares)


def needs(image: Image, cluster: Cluster, rate: float) -> dict[str, float]:
    """What ``rate`` images a second ask for: cores of a GPU, and bytes a second of the storage."""
    return {"cores of a GPU": rate / cluster.gpus * image.load, "storage, bytes/s": rate * image.size}


# -- measured ----------------------------------------------------------------------------------------------------------


def seconds_of(work: Callable[[], object], times: int = 3) -> float:
    """The least CPU time of some calls."""
    found = []
    for _ in range(times):
        before = resource.getrusage(resource.RUSAGE_SELF)
        work()
        after = resource.getrusage(resource.RUSAGE_SELF)
        found.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(found)


def write_photos(root: Path, count: int, seed: int) -> None:
    """Photos of 640 x 480 with the frequencies of real ones, and masks of a few regions."""
    from PIL import Image as Pillow

    draws = np.random.default_rng(seed)
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True)
    for i in range(count):
        sizes = [(20, 15), (80, 60), (320, 240), (640, 480)]
        layers = [
            np.asarray(Pillow.fromarray(draws.integers(0, 256, (h, w, 3), np.uint8)).resize((640, 480)), np.float32)
            for w, h in sizes
        ]
        photo = sum(weight * layer for weight, layer in zip((0.6, 0.25, 0.1, 0.05), layers, strict=True))
        Pillow.fromarray(np.asarray(photo).astype(np.uint8)).save(root / "images" / f"{i:06d}.jpg", quality=90)
        mask = Pillow.fromarray(draws.integers(0, 12, (6, 8), np.uint8)).resize((640, 480), Pillow.Resampling.NEAREST)
        mask.save(root / "labels" / f"{i:06d}.png")
    (root / "classes.txt").write_text("".join(f"class{i}\n" for i in range(12)))


def measure(count: int, seed: int) -> dict[str, float]:
    """What Segue costs an image on this machine, in seconds of one core and in bytes."""
    import torch

    from segue.config import Data
    from segue.data.check import check
    from segue.data.decoder import Decoder
    from segue.data.fingerprint import fingerprint
    from segue.data.images import RandomViews
    from segue.data.layouts import open_listing
    from segue.data.sharding import write_shards
    from segue.data.training import open_training
    from segue.data.transforms import SIMCLR

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        files, shards = Path(folder) / "files", Path(folder) / "shards"
        write_photos(files, count, seed)
        packing = seconds_of(lambda: write_shards(open_listing(str(files)), shards), 1)
        tracemalloc.start()
        listing = open_listing(str(shards))
        listed = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        pairs = listing.splits["train"]
        views = RandomViews(pairs, Decoder.of(listing), 256, jitter=SIMCLR)
        data = open_training(Data(data=str(shards)), seed=0)

        def load() -> None:
            for i in range(count):
                views[i]

        found = {
            "bytes of an image and its mask": sum(path.stat().st_size for path in files.rglob("*.*g")) / count,
            "pack, s": packing / count,
            "list, s": seconds_of(lambda: open_listing(str(shards))) / count,
            "list, bytes of memory": listed / count,
            "check before training, s": seconds_of(lambda: check(listing, sample=1)) / count,
            "fingerprint, s": seconds_of(lambda: fingerprint(data.files())) / count,
            "read, s": seconds_of(lambda: [pair.image.read_bytes() for pair in pairs]) / count,
            "read, decode, cut, recolour, s": seconds_of(load) / count,
        }
    size = 2_000_000
    found["shuffle, s"] = seconds_of(lambda: torch.randperm(size)) / size
    found["shuffle, bytes of memory"] = 8.0
    return found


def scenarios(image: Image) -> dict[str, tuple[Cluster, Training]]:
    """Machines that people have; every number is assumed.

    26.7 million float32 weights (DeepLabV3+ on ResNet-50), 16 images of 256 x 256 on each GPU.
    """
    training = Training(
        batch=16, gradients=4 * 26.7e6, checkpoint=8 * 26.7e6, every=600.0, queue=64
    )  # fmt: skip
    month = YEAR / 12
    one = Cluster(1, 8, 2 * GIGA, math.inf, 0.0, GIGA, 0.02, 60 * month, 300.0)
    fast = replace(one, gpus=256, storage=50 * GIGA, link=50 * GIGA, latency=5e-6, disk=2 * GIGA)
    return {
        "1 GPU, local disk": (one, training),
        "8 GPUs, local disk": (replace(one, gpus=8, link=200 * GIGA, latency=5e-6), training),
        "256 GPUs, 400 Gbit/s each, storage 50 GB/s": (fast, training),
        "the same, 2 cores a GPU": (replace(fast, cores=2), training),
        "the same, storage 5 GB/s": (replace(fast, storage=5 * GIGA), training),
        "the same, 100 Gbit/s for each 8 GPUs": (replace(fast, link=12.5 * GIGA / 8, latency=2e-5), training),
        "that with batches of 64": (
            replace(fast, link=12.5 * GIGA / 8, latency=2e-5), replace(training, batch=64, queue=256)
        ),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400, help="to measure with")
    parser.add_argument("--total", type=float, default=1e8, help="of the set that is planned for")
    parser.add_argument("--compute", type=float, default=1 / 1000, help="assumed seconds of a GPU for an image")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found = measure(options.images, options.seed)
    print(f"measured here, of one image (CPU time of one core; {options.images} images in shards):")
    for name, value in found.items():
        whole = value * options.total
        unit = f"{whole / 1e9:,.1f} GB" if "bytes" in name else f"{whole / 3600:,.2f} core-hours"
        amount = f"{value:,.0f}" if "bytes" in name else f"{1e6 * value:,.2f} us"
        print(f"| {name.removesuffix(', s')} | {amount} | {options.total:.0e} images: {unit} |")
    image = Image(found["bytes of an image and its mask"], found["read, decode, cut, recolour, s"], options.compute)
    print(f"\nassumed: {1 / image.compute:.0f} images/s of a GPU, and everything the scenarios name")
    print(
        f"| Where | images/s | passes of {options.total:.0e} a day | of the time: compute | next | cores a GPU | GB/s |"
    )
    for name, (cluster, training) in scenarios(image).items():
        outcome = simulate(image, cluster, training, steps=options.steps, seed=options.seed)
        asked, second = needs(image, cluster, outcome.rate), outcome.bottleneck()
        passes = outcome.rate * 86400 / options.total
        print(
            f"| {name} | {outcome.rate:,.0f} | {passes:,.1f} | {outcome.shares['compute']:.0%} | "
            f"{second} {outcome.shares[second]:.0%} | {asked['cores of a GPU']:.1f} | "
            f"{asked['storage, bytes/s'] / GIGA:.1f} |"
        )


if __name__ == "__main__":
    main()
