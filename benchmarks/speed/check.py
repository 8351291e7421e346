"""``segue check`` on many pairs against the floor: decoding the same masks and reading the same image headers.

    python benchmarks/speed/check.py --pairs 10000 [--rounds 3] [--grey]

Draws 60 street scenes of 480 x 360 and repeats them, each copy with bytes of its own behind its JPEG, so that no two
are equal. Floor, check without and check with the search for equal and near images take turns in two processes each;
figures are medians of wall and CPU time, and the peak memory of a process that does nothing but check. Masks are
palette PNGs without row filters, as Segue writes them; ``--grey`` writes them grey, which Pillow filters row by row.
"""

import argparse
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from segue.data.check import CHUNK, check
from segue.data.layouts import open_listing

SCENES, SIZE = 60, (360, 480)


def generate(root: Path, pairs: int, grey: bool = False) -> Path:
    """A canonical set of ``pairs`` pairs, JPEG and PNG, the masks in a palette or grey."""
    from segue.data import synthetic  # which brings torch: generation has a process of its own

    with tempfile.TemporaryDirectory() as drawn:
        synthetic.write(Path(drawn) / "set", train=SCENES, size=SIZE)
        source = Path(drawn) / "set"
        for kind in ("images", "labels"):
            (root / kind).mkdir(parents=True)
        masks = sorted((source / "labels").iterdir())
        for path in masks if grey else []:
            with Image.open(path) as mask:
                ids = Image.fromarray(np.asarray(mask))
            ids.save(path)
        images = []
        for path in sorted((source / "images").iterdir()):
            jpeg = Path(drawn) / f"{path.stem}.jpg"
            with Image.open(path) as image:
                image.convert("RGB").save(jpeg, quality=90)
            images.append(jpeg.read_bytes())
        for i in range(pairs):
            name = f"p{i:06d}x"
            (root / "images" / f"{name}.jpg").write_bytes(images[i % SCENES] + b"%08d" % i)
            shutil.copyfile(masks[i % SCENES], root / "labels" / f"{name}.png")
        classes = "\n".join(open_listing(str(source)).classes)
        (root / "classes.txt").write_text(classes + "\n")
    return root


def bare(chunk: list[tuple[Path, Path]]) -> int:
    """The floor: headers of images, pixels of masks."""
    area = 0
    for image, mask in chunk:
        with Image.open(image) as header:
            area += header.width * header.height
        with Image.open(mask) as pixels:
            pixels.load()
    return area


def floor(root: Path) -> None:
    images, labels = sorted((root / "images").iterdir()), sorted((root / "labels").iterdir())
    pairs = list(zip(images, labels, strict=True))
    chunks = [pairs[i : i + CHUNK] for i in range(0, len(pairs), CHUNK)]
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        sum(pool.map(bare, chunks))


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds, those of finished child processes with them."""

    def cpu() -> float:
        both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(use.ru_utime + use.ru_stime for use in both)

    started, used = time.perf_counter(), cpu()
    work()
    return time.perf_counter() - started, cpu() - used


def peak(root: Path) -> float:
    """Largest resident memory in MiB of ``segue check``, of its own process and of its largest worker together."""
    code = """import resource, sys
from segue.cli import main
main(["check", sys.argv[1], "--json"])
used = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(sum(used), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=False)
    return int(done.stderr.split()[-1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--grey", action="store_true", help="masks in grey instead of a palette")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "set"
        with ProcessPoolExecutor(1, mp_context=get_context("fork")) as drawing:
            drawing.submit(generate, root, options.pairs, options.grey).result()
        cases: dict[str, Callable[[], object]] = {
            "floor": lambda: floor(root),
            "check": lambda: check(open_listing(str(root)), sample=None, workers=2),
            "check, equal and near images too": lambda: check(
                open_listing(str(root)), sample=None, workers=2, hashes=True
            ),
        }
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
        for _ in range(options.rounds):
            for name, work in cases.items():
                times[name].append(timed(work))
        base = [statistics.median(row[i] for row in times["floor"]) for i in (0, 1)]
        print("| Case | wall s | x floor | CPU s | x floor |\n|---|---|---|---|---|")
        for name, rows in times.items():
            wall, used = (statistics.median(row[i] for row in rows) for i in (0, 1))
            print(f"| {name} | {wall:.1f} | {wall / base[0]:.2f} | {used:.1f} | {used / base[1]:.2f} |")
        print(f"peak memory of segue check, its process and one worker: {peak(root):.0f} MiB")


if __name__ == "__main__":
    main()
