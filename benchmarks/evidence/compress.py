"""What distillation and the gate are worth to `segue compress`, and what a search finds: CamVid, equal seconds.

    python benchmarks/evidence/compress.py data/camvid --out runs/compress

One teacher serves all arms: DeepLabV3+ on EfficientNet-Lite0, from ImageNet weights. ``plain`` is DeepLabV3+ on
MobileNetV2; half of what it takes for 512 x 512 pixels, in ONNX Runtime on one thread here, is the target of every
search. Times are the least of `RUNS`, of the thread's computing, as in the search's table of parts: other work only
adds to them. An arm searches for so many seconds of computing and trains what it found with the steps, crops and seeds
of ``plain``:

- ``default``: logits are distilled, Metropolis's gate;
- ``none``, ``kl``, ``bounded``: the other forms of distillation;
- ``always``, ``never``: every candidate is trained end to end, or none; ``published``: the gate of the source;
- ``plain`` learns at 0.03, the best of 0.03, 0.1 and 0.3 on the validation images with seed 100, by which the rate of
  the found models was chosen, too;
- ``random``: no search; of 40 random genotypes the one whose estimated time is nearest to that of ``default``.

``--pareto`` adds one run with three trainings of two finalists, four random genotypes of the found one's size, LR-ASPP
and DeepLabV3+, for the picture of its report. A search sees training images alone; scores are on the test split. Every
arm is a run folder: the script goes on where it stopped.
"""

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from threading import Lock

from shared import difference, refuse_chance, segue, shrunk, spread

from segue.batches import mix
from segue.disk import write_atomically
from segue.models.compact import Genotype
from segue.processes.tuning import tune
from segue.runs.folder import Run
from segue.search.latency import Table, measured
from segue.search.runtime import model_runner
from segue.search.strategies import strategy
from segue.weights import load_model

SEARCHED: dict[str, dict[str, str]] = {
    "default": {},
    "none": {"distill": "none"},
    "kl": {"distill": "kl"},
    "bounded": {"distill": "bounded"},
    "always": {"gate": "always"},
    "never": {"gate": "never"},
    "published": {"gate": "published"},
}
ARMS = ("plain", *SEARCHED, "random")
SIDE, BLOCKS, DRAWS, RUNS = 512, 2, 40, 40
# Of the table of `search_table.py`: a training of a few seconds, whose reward is the genotype's by 94 %.
CANDIDATE = {"search_crop": 128, "search_channels": 32, "decoder_steps": 60, "decoder_batch": 8}
END_TO_END = {"end_steps": 20, "end_batch": 8}
PARETO = {"finalists": 2, "finalist_seeds": 3, "controls": 4, "lr_aspp": "true"}


class Experiment:
    """Runs of all arms, below one folder."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.out, self.clock = options, options.out, Lock()
        self.data = shrunk(options.data, options.out / "data", options.shrink)

    def run(self, verb: str, name: str, *arguments: object, **fields: object) -> Path:
        """A run of ``segue VERB``, unless it is done, with its scores on the test split and its time."""
        folder, log = self.out / name, self.out / f"{name}.log"
        fields = {"init": self.options.init, **fields}
        refuse_others(folder, fields)
        given = [f"--{name}={value}" for name, value in fields.items()]
        if not (folder / "evaluation.json").is_file():
            segue(log, verb, *arguments, "--out", folder, *given)
        if not (folder / "test.json").is_file():
            scores = segue(log, "evaluate", folder, "--data", self.data, "--split", "test", "--json")
            write_atomically(folder / "test.json", scores.encode())
        if not (folder / "speed.json").is_file():
            with self.clock:  # torch exports one model at a time, and no two are to be timed beside each other
                work, _ = model_runner(load_model(str(folder)).eval(), SIDE, SIDE, 1)
                least = min(measured(work, runs=RUNS, seconds=60.0, clock=time.thread_time))
            write_atomically(folder / "speed.json", json.dumps({"least": least}).encode())
        return folder

    def teacher(self) -> Path:
        """The model that knows."""
        of = self.options
        return self.run("train", "teacher", self.data, "--method", "supervised", encoder=of.teacher_encoder,
                        steps=of.teacher_steps, crop=of.teacher_crop, batch=of.batch)  # fmt: skip

    def plain(self, seed: int) -> Path:
        """DeepLabV3+ on the encoder that the searches take."""
        of = self.options
        return self.run("train", f"plain_{seed}", self.data, "--method", "supervised", "--seed", seed,
                        encoder=of.encoder, steps=of.steps, crop=of.crop, batch=of.batch, lr=of.plain_lr)  # fmt: skip

    def target(self) -> str:
        """Half of the time of the trained plain models, once and for all arms of this folder."""
        path = self.out / "target"
        if not path.is_file():
            times = [milliseconds(self.plain(seed)) for seed in self.options.seeds]
            write_atomically(path, f"{mean(times) / 2:.0f}ms@{SIDE}x{SIDE}".encode())
        return path.read_text()

    def compressed(self, name: str, seed: int, *flags: str, **fields: object) -> Path:
        """What `segue compress` makes."""
        of = self.options
        shared = {"encoder": of.encoder, "steps": of.steps, "crop": of.crop, "batch": of.batch}
        return self.run("compress", name, self.teacher(), "--data", self.data, "--seed", seed, *flags,
                        **{**shared, **fields})  # fmt: skip

    def searched(self, name: str, seed: int, *flags: str, **fields: object) -> Path:
        """The same, after a search."""
        of = self.options
        limit = {"budget": f"{of.seconds}s", "candidates": of.candidates, "target": self.target()}
        rest = {"finalists": 1, "reliable": "false", **CANDIDATE}
        second = {} if fields.get("gate") == "never" else END_TO_END
        return self.compressed(name, seed, *flags, **{**limit, **rest, **second, **fields})

    def chance(self, seed: int) -> Path:
        """A random genotype about as fast as the found one."""
        found = self.searched(f"default_{seed}", seed)
        table = Table.read(found / "latency.json")
        aim = table.estimate(Genotype.parse(load_model(str(found)).spec.genotype))
        draws = strategy("random", BLOCKS, mix("compress", seed))
        drawn = [draws.ask().genotype for _ in range(DRAWS)]
        nearest = min(drawn, key=lambda genotype: abs(table.estimate(genotype) - aim))
        return self.compressed(f"random_{seed}", seed, genotype=nearest)

    def arm(self, arm: str, seed: int) -> Path:
        """One arm with one seed."""
        if arm == "plain":
            return self.plain(seed)
        return self.chance(seed) if arm == "random" else self.searched(f"{arm}_{seed}", seed, **SEARCHED[arm])

    def table(self) -> str:
        """Scores, times and sizes of each arm over the seeds."""
        lines = [
            "| arm | mIoU, test | minus plain | ms | candidates | trained end to end | best reward |",
            "|---|---|---|---|---|---|---|",
        ]
        seeds = self.options.seeds
        plain = {seed: miou(self.out / f"plain_{seed}") for seed in seeds}
        for arm in ARMS:
            there = [seed for seed in seeds if (self.out / f"{arm}_{seed}" / "speed.json").is_file()]
            if not there:
                continue
            runs = [self.out / f"{arm}_{seed}" for seed in there]
            gains = [miou(run) - plain[seed] for run, seed in zip(runs, there, strict=True)]
            cells = [arm, spread([miou(run) for run in runs]), difference(gains)]
            cells += [spread([milliseconds(run) for run in runs]), *tried([candidates(run) for run in runs])]
            lines.append("| " + " | ".join(cells) + " |")
        teacher = self.out / "teacher"
        lines.append(f"| teacher | {miou(teacher):.1f} | | {milliseconds(teacher):.1f} | | | |")
        return "\n".join(lines)


def refuse_others(folder: Path, fields: dict[str, object]) -> None:
    """Ends the script where a folder holds a run of other settings than those that are asked for."""
    if not (folder / "run.json").is_file():
        return
    known = json.loads((folder / "run.json").read_text())["identity"]["config"]
    for name, value in fields.items():
        if name in known and str(known[name]).lower() != str(value).lower():
            raise SystemExit(f"{folder}: {name} is {known[name]} there and {value} now; give another --out")


def miou(run: Path) -> float:
    """On the test split, in per cent."""
    return 100 * float(json.loads((run / "test.json").read_text())["scores"]["miou"])


def milliseconds(run: Path) -> float:
    """Of a picture."""
    return float(json.loads((run / "speed.json").read_text())["least"])


def candidates(run: Path) -> list[dict[str, float]]:
    """The candidates of a run's search, as its log has them."""
    return [line for line in Run(run, quiet=True).read_log() if line["stage"] == "search"]


def tried(searches: list[list[dict[str, float]]]) -> list[str]:
    """Of some searches, the means: candidates, those trained end to end, the best reward of a short training."""
    if not all(searches):
        return ["", "", ""]
    ended = [sum("reward2" in line for line in lines) for lines in searches]
    best = [max(line.get("reward1", 0.0) for line in lines) for lines in searches]
    return [f"{mean(len(lines) for lines in searches):.0f}", f"{mean(ended):.0f}", f"{mean(best):.3f}"]


def options_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--pareto", action="store_true", help="one more run, with everything on its picture")
    parser.add_argument("--seconds", type=int, default=180, help="of computing in a search")
    parser.add_argument("--candidates", type=int, default=40, help="at most; the gate cools over so many")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--plain-lr", type=float, default=0.03, help="see above")
    parser.add_argument("--teacher-steps", type=int, default=1500)
    parser.add_argument("--teacher-crop", type=int, default=128)
    parser.add_argument("--encoder", default="mobilenetv2_100")
    parser.add_argument("--teacher-encoder", default="tf_efficientnet_lite0")
    parser.add_argument("--init", default="auto")
    parser.add_argument("--shrink", type=int, default=2, help="sides of the pictures are divided by it")
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one thread each")
    return parser.parse_args()


def main() -> None:
    options = options_of()
    tune("cpu")
    refuse_chance(options.init, options.encoder, options.teacher_encoder)
    experiment = Experiment(options)
    experiment.teacher()
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(experiment.plain, options.seeds))
        experiment.target()  # before two of the pool would write it at once
        for arms in ([arm for arm in options.arms if arm != "random"], ["random"]):  # which needs `default`
            jobs = [(arm, seed) for seed in options.seeds for arm in arms if arm in options.arms]
            for run in pool.map(lambda job: experiment.arm(*job), jobs):
                print(f"{run}: test mIoU {miou(run):.1f}, {milliseconds(run):.0f} ms", flush=True)
    if options.pareto:
        run = experiment.searched("pareto", options.seeds[0], "--compare", **PARETO)
        print(f"{run / 'report.html'}: test mIoU {miou(run):.1f}, {milliseconds(run):.0f} ms", flush=True)
    report = experiment.table()
    (options.out / "table.md").write_text(report + "\n")
    print(report)


if __name__ == "__main__":
    main()
