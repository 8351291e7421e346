"""Are suggested images worth more than random ones? Training on 20 chosen images of CamVid against 20 drawn at random.

    python benchmarks/evidence/suggest.py data/camvid --out runs/suggest [--steps 800] [--n 20] [--draws 5]

Arms, all trained by ``segue train --method supervised`` with the same network, steps and seed on n labelled images of
the training split: ``random`` (drawn by seed 0 to draws - 1), ``coverage`` (chosen by the encoder of --model, or of the
weights as they came), ``doubt`` (half drawn at random, the others chosen by the model trained on those). Scores are on
the test split; no choice sees a mask but those it was given. Everything is kept in --out: the script goes on where it
stopped.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

from shared import refuse_chance, segue, shrunk

from segue.data.layouts import open_listing
from segue.data.splits import choose
from segue.starting import new_encoder
from segue.weights import save_model


def names_of(data: Path, count: int, seed: int) -> list[str]:
    """A random draw of the training split."""
    chosen, _ = choose(open_listing(str(data)).split("train"), str(count), seed)
    return [pair.name for pair in chosen]


def train(data: Path, folder: Path, names: list[str], options: argparse.Namespace, seed: int) -> Path:
    """A model trained on the named images, unless that is done; its run folder."""
    listed = folder.with_suffix(".txt")
    listed.parent.mkdir(parents=True, exist_ok=True)
    listed.write_text("".join(f"{name}\n" for name in names))
    if not (folder / "evaluation.json").is_file():
        fields = {"encoder": options.encoder, "init": options.init, "steps": options.steps, "crop": options.crop}
        given = [f"--{name}={value}" for name, value in fields.items()]
        given += ["--labels", listed, "--method", "supervised", "--out", folder, "--seed", seed]
        segue(folder.with_suffix(".log"), "train", data, *given)
    return folder


def score(data: Path, folder: Path) -> float:
    """mIoU on the test split, per cent; read once a finished model."""
    kept = folder.with_suffix(".json")
    if not kept.is_file():
        kept.write_text(
            segue(folder.with_suffix(".log"), "evaluate", folder, "--data", data, "--split", "test", "--json")
        )
    return 100 * float(json.loads(kept.read_text())["scores"]["miou"])


def suggested(data: Path, model: Path, out: Path, count: int) -> list[str]:
    """The names that ``segue suggest`` gives, unless it was asked before."""
    if not (out / "chosen.txt").is_file():
        arguments = (f"{data}:train", "--model", model, "--n", count, "--out", out)
        segue(out.with_suffix(".log"), "suggest", *arguments)
    return (out / "chosen.txt").read_text().split()


def encoder_folder(options: argparse.Namespace) -> Path:
    """The encoder that coverage is measured by: --model, or the weights as they came."""
    if options.model:
        return Path(options.model)
    folder: Path = options.out / "encoder"
    if not (folder / "model.yaml").is_file():
        save_model(
            new_encoder(options.encoder, options.init, output_stride=16, say=print), folder, method="", metrics={}
        )
    return folder


def main() -> None:
    """Trains what is not trained yet and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shrink", type=int, default=4)
    parser.add_argument("--model", default="", help="run of segue pretrain")
    parser.add_argument("--n", type=int, default=20)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--crop", type=int, default=96)
    parser.add_argument("--encoder", default="mobilenetv2_100")
    parser.add_argument("--init", default="auto")
    options = parser.parse_args()
    refuse_chance(options.init, options.encoder)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    options.out.mkdir(parents=True, exist_ok=True)
    data = shrunk(options.data, options.out / "data", options.shrink)
    scores: dict[str, list[float]] = {"random": [], "coverage": [], "doubt": []}
    covering = suggested(data, encoder_folder(options), options.out / "covering", options.n)
    for seed in range(options.draws):  # the choice of coverage is one, its trainings differ in their seed
        half = names_of(data, options.n // 2, seed)
        first = train(data, options.out / f"half_{seed}", half, options, seed)
        more = suggested(data, first, options.out / f"more_{seed}", options.n - len(half))
        for arm, names in (
            ("random", names_of(data, options.n, seed)),
            ("coverage", covering),
            ("doubt", [*half, *more]),
        ):
            scores[arm].append(score(data, train(data, options.out / f"{arm}_{seed}", names, options, seed)))
            print(f"{arm} seed {seed}: test mIoU {scores[arm][-1]:.1f}", flush=True)
    lines = [f"| arm | test mIoU with {options.n} labels | difference to random |", "|---|---|---|"]
    for arm, found in scores.items():
        gaps = [a - b for a, b in zip(found, scores["random"], strict=True)]
        spread = stdev(found) if len(found) > 1 else 0
        lines.append(f"| {arm} | {mean(found):.1f} ± {spread:.1f} ({len(found)}) | {mean(gaps):+.1f} |")
    (options.out / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"{' '.join(map(str, error.cmd))} failed; its log is beside its folder in --out")
