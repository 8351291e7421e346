"""Does pixel contrast help where labels are few? CamVid with 5 % and 10 % of its training labels.

    python benchmarks/evidence/few_labels.py data/camvid --out runs/few_labels            # small, for two cores
    python benchmarks/evidence/few_labels.py data/camvid --out runs/few_labels --full     # the paper's sizes, for a GPU

Arms, all with the same number of optimiser steps, the same crops a step through the network, the same seeds and the
same labelled images: ``plain`` (cross-entropy), ``contrast`` (contrast, then fine-tuning), ``pseudo`` (the same, then
again with pseudo-labels on the unlabelled rest). Settings were chosen on the validation split with seed 100; the test
split is read once a finished arm, with seeds 0 to 2. Every arm is a run folder: the script goes on where it stopped.
"""

import argparse
import itertools
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from shared import difference, refuse_chance, segue, shrunk, spread

from segue.config import Network

ARMS = ("plain", "contrast", "pseudo")
LITTLE = {"crop": 96, "batch": 8, "scale": "[0.5,2.0]"}
FULL = {"crop": 352, "batch": 16, "scale": "[0.5,2.0]"}
# From scratch, two cores can saturate a network of 0.4 M parameters only; ImageNet weights are at hand for MobileNetV2.
LITTLE_NETWORK = {"random": {"encoder": "test_resnet", "decoder_channels": 64}, "auto": {"encoder": "mobilenetv2_100"}}
SETTINGS: dict[str, dict[str, object]] = {
    "plain": {"lr": 0.1},
    "contrast": {"finetune_lr": 0.1, "contrast_share": 0.25, "distortion": 0.5},
    "pseudo": {"finetune_lr": 0.1, "contrast_share": 0.25, "distortion": 0.5, "unlabeled": "rest"},
}
CONTRAST_LR = {"random": 0.1, "auto": 0.02}  # ImageNet features do not survive 0.1


def run_arm(
    data: Path,
    folder: Path,
    arm: str,
    labels: str,
    init: str,
    seed: int,
    steps: int,
    sizes: dict[str, object],
    extra: list[str],
) -> None:
    """Trains one arm and scores it on the test split, each unless it is done."""
    log = folder.parent / f"{folder.name}.log"
    if not (folder / "evaluation.json").is_file():
        options = {**sizes, **SETTINGS[arm], "labels": labels, "init": init, "steps": steps}
        if arm != "plain":
            options["contrast_lr"] = CONTRAST_LR[init]
        method = "supervised" if arm == "plain" else "pixel_contrast"
        fields = [f"--{name}={value}" for name, value in options.items()]
        segue(log, "train", data, "--out", folder, "--method", method, "--seed", seed, *fields, *extra)
    if not (folder / "test.json").is_file():
        scores = segue(log, "evaluate", folder, "--data", data, "--split", "test", "--json")
        (folder / "test.json").write_text(scores)


def score(folder: Path, name: str = "test.json") -> float | None:
    """mIoU in per cent, or None while the arm is not done."""
    path = folder / name
    return 100 * json.loads(path.read_text())["scores"]["miou"] if path.is_file() else None


def table(out: Path, cells: list[tuple[str, str, int]], seeds: list[int]) -> str:
    """Mean and spread of each arm in each cell, and the mean of the paired differences to ``plain``."""
    lines = [
        "| labels | from | steps | plain | contrast | pseudo | contrast - plain | pseudo - plain |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for labels, init, steps in cells:
        found = {arm: [score(out / folder_name(labels, init, steps, arm, seed)) for seed in seeds] for arm in ARMS}
        row = [labels, init, str(steps)]
        row += [spread([v for v in found[arm] if v is not None]) for arm in ARMS]
        for arm in ARMS[1:]:
            pairs = [(a, b) for a, b in zip(found[arm], found["plain"], strict=True) if a is not None and b is not None]
            row.append(difference([a - b for a, b in pairs]))
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def folder_name(labels: str, init: str, steps: int, arm: str, seed: int) -> str:
    """Where one arm's run lies."""
    return f"{labels.rstrip('%')}_{init}_{steps}/{arm}_{seed}"


def sizes_of(options: argparse.Namespace, init: str) -> dict[str, object]:
    """Fields of views and network that all arms share."""
    if options.full:
        return FULL
    network: dict[str, object] = {"encoder": options.encoder} if options.encoder else LITTLE_NETWORK[init]
    return {**LITTLE, **network}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--labels", nargs="+", default=["5%", "10%"])
    parser.add_argument("--init", nargs="+", default=["random", "auto"], choices=["random", "auto"])
    parser.add_argument("--steps", nargs="+", type=int, default=[2000])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--encoder", default="", help="another timm encoder in place of the small one; its own --out")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--jobs", type=int, default=2, help="arms trained at once, one thread each")
    parser.epilog = "Further fields for every arm follow a --, as: -- --evaluate_every 500"
    own, _, extra = " ".join(sys.argv[1:]).partition(" -- ")
    options = parser.parse_args(own.split())
    named = [field.removeprefix("--encoder=") for field in extra.split() if field.startswith("--encoder=")]
    for init in options.init:
        refuse_chance(init, str([sizes_of(options, init).get("encoder", Network().encoder), *named][-1]))
    data = options.data if options.full else shrunk(options.data, options.out / "data", 4)
    cells = list(itertools.product(options.labels, options.init, options.steps))
    jobs = [(cell, arm, seed) for seed in options.seeds for cell in cells for arm in options.arms]

    def work(job: tuple[tuple[str, str, int], str, int]) -> None:
        (labels, init, steps), arm, seed = job
        folder = options.out / folder_name(labels, init, steps, arm, seed)
        run_arm(data, folder, arm, labels, init, seed, steps, sizes_of(options, init), extra.split())
        print(f"{folder}: test mIoU {score(folder):.1f}, val {score(folder, 'evaluation.json'):.1f}", flush=True)

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(work, jobs))
    report = table(options.out, cells, options.seeds)
    (options.out / "table.md").write_text(report + "\n")
    print(report)


if __name__ == "__main__":
    main()
