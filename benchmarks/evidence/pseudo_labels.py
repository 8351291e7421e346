"""What the pseudo-labels of a run say of images whose labels are there after all, and were not shown to it.

    segue train data/camvid --labels 5% --unlabeled rest --out runs/first
    python benchmarks/evidence/pseudo_labels.py runs/first data/camvid

Of each class: how many of its pixels got a label, how many of those the right one, and how many of the pixels that got
the label of the class are of it.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from segue.data.decoder import Decoder, mask_image
from segue.data.layouts import open_listing
from segue.data.sample import IGNORE

Counts = npt.NDArray[np.int64]


def compared(run: Path, data: str) -> tuple[list[str], Counts]:
    """The classes, and pixels by true class (row) and pseudo-label (column, the last one for none): (K, K + 1).

    Raises:
        SystemExit: an image has no label in ``data``.
    """
    listing = open_listing(data)
    decoder, classes = Decoder.of(listing), list(listing.classes)
    labelled = {pair.image.resolve(): pair for split in listing.splits.values() for pair in split if pair.mask}
    images = json.loads((run / "pseudo_labels.json").read_text())["images"]
    counts = np.zeros((len(classes) + 1, len(classes) + 1), np.int64)
    for name, image in images.items():
        pair = labelled.get(Path(image).resolve())
        if pair is None:
            raise SystemExit(f"{image} has no label in {data}")
        truth = decoder.known(np.asarray(mask_image(pair)), pair.mask)
        with Image.open(run / "pseudo_labels" / name) as picture:
            said = np.asarray(picture)
        rows, columns = (np.where(ids == IGNORE, len(classes), ids) for ids in (truth, said))
        np.add.at(counts, (rows, columns), 1)
    return classes, counts[:-1]


def table(classes: list[str], counts: Counts) -> str:
    """Shares in per cent, as rows of Markdown."""
    lines = ["| class | of all pixels | labelled | of those right | right where it is said |", "|---|---|---|---|---|"]
    labels = counts[:, :-1]
    for i, name in enumerate(classes):
        shares = (
            (counts[i].sum(), counts.sum()),
            (labels[i].sum(), counts[i].sum()),
            (labels[i, i], labels[i].sum()),
            (labels[i, i], labels[:, i].sum()),
        )
        lines.append(f"| {name} | " + " | ".join(f"{100 * a / b:.1f}" if b else "–" for a, b in shares) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("data")
    options = parser.parse_args()
    print(table(*compared(options.run, options.data)))


if __name__ == "__main__":
    main()
