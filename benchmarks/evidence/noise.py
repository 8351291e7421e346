"""What the noise of eq. 1 costs a model: test mIoU of the arms of `domains.py`, their pictures noisy as a teacher's.

python benchmarks/evidence/domains.py --out runs/domains --camvid data/camvid --dsb data/dsb2018
python benchmarks/evidence/noise.py --out runs/domains --seed 0
"""

import argparse
from pathlib import Path

from domains import pairs
from torch import Tensor, nn

from segue.data.decoder import Decoder
from segue.data.images import Whole
from segue.data.layouts import open_listing, split_address
from segue.evaluation import measure
from segue.methods.mean_teacher import noisy
from segue.weights import load_model

LEVELS = (0.0, 0.02, 0.05, 0.1)  # e


class Noisy(nn.Module):
    """A model whose pictures get noise of ``level``, as `segue.methods.mean_teacher.noisy` draws it."""

    def __init__(self, model: nn.Module, level: float) -> None:
        super().__init__()
        self.model, self.level = model, level

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.model(noisy(image, self.model.normalise.std, noise=self.level))
        return logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--arms", nargs="+", default=["source_only", "style"])
    options = parser.parse_args()
    options.camvid = options.dsb = options.out  # copied there already
    options.scenes, options.scene, options.shrink_camvid, options.shrink_dsb = 0, (0, 0), 4, 2
    print("| pair | arm | " + " | ".join(f"e = {level:g}" for level in LEVELS) + " |")
    print("|---" * (2 + len(LEVELS)) + "|")
    for name, sets in pairs(options).items():
        root, split = split_address(sets["val"])
        listing = open_listing(str(root))
        pictures = Whole(listing.split(split or ""), Decoder.of(listing))
        for arm in options.arms:
            folder = options.out / name / f"{arm}_{options.seed}"
            if (folder / "model").is_dir():
                model = load_model(str(folder / "model"))
                found = [measure(Noisy(model, level).eval(), pictures, listing.classes).scores() for level in LEVELS]
                scores = " | ".join(f"{100 * score['miou']:.1f}" for score in found)
                print(f"| {name} | {arm} | {scores} |", flush=True)


if __name__ == "__main__":
    main()
