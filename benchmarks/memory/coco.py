"""Memory of opening COCO instances: peak, and what stays, over the bytes of the annotation file.

    python benchmarks/memory/coco.py --images 20000

Each image has 7 objects of 30 points, about what COCO has; pictures are one file under many names.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

OBJECTS, POINTS = 7, 30


def generate(root: Path, images: int) -> Path:
    """A set in COCO's layout; the path of its annotation file."""
    (root / "annotations").mkdir(parents=True)
    (root / "train2017").mkdir()
    Image.new("RGB", (640, 480)).save(root / "one.jpg")
    rng = np.random.default_rng(0)
    path = root / "annotations" / "instances_train2017.json"
    with path.open("w") as file:
        file.write('{"categories": [{"id": 1, "name": "thing"}], "images": [')
        for i in range(images):
            os.link(root / "one.jpg", root / "train2017" / f"{i:012d}.jpg")
            told = {"id": i, "file_name": f"{i:012d}.jpg", "width": 640, "height": 480}
            file.write(("," if i else "") + json.dumps(told))
        file.write('], "annotations": [')
        for i in range(images * OBJECTS):
            points = (rng.random(2 * POINTS) * 480).round(2).tolist()
            told = {"id": i, "image_id": i // OBJECTS, "category_id": 1, "iscrowd": 0, "segmentation": [points]}
            file.write(("," if i else "") + json.dumps({**told, "area": 100.0, "bbox": [1.0, 2.0, 3.0, 4.0]}))
        file.write("]}")
    return path


CODE = """import resource, sys
from segue.data.layouts import open_listing
def now():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
before = now()
listing = open_listing(sys.argv[1], "coco_instances")
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(len(listing.splits["train"]), peak - before, now() - before)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = generate(Path(folder) / "coco", options.images)
        size = path.stat().st_size
        done = subprocess.run(
            [sys.executable, "-c", CODE, str(path.parent.parent)], capture_output=True, text=True, check=True
        )
        pairs, peak, kept = map(int, done.stdout.split())
        print(f"{pairs} images, file {size >> 20} MiB: peak {peak >> 20} MiB ({peak / size:.1f} x the file), ", end="")
        print(f"afterwards {kept >> 20} MiB ({kept / size:.1f} x)")


if __name__ == "__main__":
    main()
