"""Random reads of a set as files, as tar shards read by place, and as Parquet: CPU time and wall time of an image.

    python benchmarks/speed/shards.py [--images 2000] [--rounds 5]

The images are random bytes of the size of photos; what decodes them is not part of it. Parquet (`pyarrow`, of the extra
formats) is read by row groups, the smallest thing that it reads: of 1, 16 and 128 images.
"""

import argparse
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow
from pyarrow import parquet

from segue.data.layouts.shards import all_images
from segue.data.listing import Listing, Pair
from segue.data.sharding import write_shards


def clocked(work: Callable[[], object]) -> tuple[float, float]:
    """(CPU time, wall time) of a call, in seconds."""
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    work()
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def write_parquet(path: Path, files: Sequence[Path], rows: int) -> None:
    """One column of the files' bytes, in row groups of ``rows``, uncompressed as the JPEGs in it are."""
    schema = pyarrow.schema([("image", pyarrow.binary())])
    with parquet.ParquetWriter(path, schema, compression="NONE", use_dictionary=False) as writer:
        for i in range(0, len(files), rows):
            writer.write_table(pyarrow.table({"image": [file.read_bytes() for file in files[i : i + rows]]}, schema))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bytes", type=int, default=80_000, help="of an image, on average")
    options = parser.parse_args()
    draws, order = np.random.default_rng(0), random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "files").mkdir()
        files = [folder / "files" / f"{i:06d}.jpg" for i in range(options.images)]
        for file in files:
            file.write_bytes(draws.bytes(int(draws.uniform(0.5, 1.5) * options.bytes)))
        pairs = tuple(Pair(file.stem, file) for file in files)
        write_shards(Listing(folder / "files", "images", (), (), {"images": pairs}, {}), folder / "shards")
        packed = [pair.image for pair in all_images(folder / "shards")]
        ways: dict[str, Callable[[int], object]] = {
            "files": lambda i: files[i].read_bytes(),
            "tar shards by place": lambda i: packed[i].read_bytes(),
        }
        for rows in (1, 16, 128):
            path = folder / f"{rows}.parquet"
            write_parquet(path, files, rows)
            opened = parquet.ParquetFile(path, memory_map=False)
            ways[f"Parquet, {rows} in a row group"] = lambda i, opened=opened, rows=rows: opened.read_row_group(
                i // rows
            )["image"][i % rows].as_py()
        for i in (0, options.images // 2, options.images - 1):
            assert len({bytes(read(i)) for read in ways.values()}) == 1  # type: ignore[call-overload]
        found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for _ in range(options.rounds):
            chosen = order.sample(range(options.images), min(200, options.images))
            for way in order.sample(list(ways), len(ways)):
                found[way].append(clocked(lambda way=way, chosen=chosen: [ways[way](i) for i in chosen]))
    print(f"{options.images} images of {options.bytes} bytes, {options.rounds} rounds of 200 random reads, medians")
    print("| Way | CPU, us an image | wall, us an image |\n|---|---|---|")
    for way, times in found.items():
        cpu, wall = (1e6 * statistics.median(part) / 200 for part in zip(*times, strict=True))
        print(f"| {way} | {cpu:.0f} | {wall:.0f} |")


if __name__ == "__main__":
    main()
