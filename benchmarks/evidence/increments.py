"""Is what a panoptic model knew kept while it learns new classes without the old data?

    python benchmarks/evidence/increments.py --out runs/increments                          # drawn scenes
    python benchmarks/evidence/increments.py --out runs/increments --camvid data/camvid     # and CamVid

Arms, all from the same base model, with the same new images, labelled for the new classes alone, and the same steps:
``fine_tuning`` (neither), ``distillation``, ``pseudo`` (pseudo-labels), ``both``; on demand ``credible`` (both, and
pseudo-labels must be credible under noise); and ``joint``, trained on all classes at once with all labels, as long as
the base model. Drawn scenes number their objects; CamVid numbers none, so that its objects are connected regions of
countable classes, found at the size it is trained at.

Each cell is a set, an order of its classes and a seed; the last classes of the order are the new ones. PQ is of the
test split with all classes labelled. The base model is scored twice: what it does not know is void, as usual, which
forgives it old masks that spill over new objects; and counted as objects of another class (``counted``), as it is for
every model that knows them. Forgetting during a run is measured on the validation split. Every arm is a run
folder: the script goes on where it stopped.
"""

import argparse
import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from shared import shrunk, spread

import segue
from segue.data import synthetic
from segue.data.increments import PROTOCOLS, Plan, plan_increments, write_increments
from segue.data.layouts import open_listing
from segue.data.panoptic import Annotation, PanopticWhole
from segue.panoptic.evaluation import measure_panoptic
from segue.weights import load_panoptic

ARMS: dict[str, dict[str, Any]] = {
    "fine_tuning": {"pseudo": False, "distill": 0.0},
    "distillation": {"pseudo": False},
    "pseudo": {"distill": 0.0},
    "both": {},
    "credible": {"min_credibility": 0.5},  # both, and pseudo-labels of queries that noise does not move alone
}
SPLITS = Path(__file__).parents[2] / "splits"
CLASSES = {"scenes": (9, 3), "camvid": (8, 3)}


@dataclass(frozen=True)
class Cell:
    """One set, order of classes and seed."""

    set: str
    order: int
    seed: int

    def increments(self, out: Path) -> Path:
        """Where the increments lie, which all seeds share."""
        return out / self.set / f"order_{self.order}"

    def folder(self, out: Path) -> Path:
        """Where the runs lie."""
        return out / self.set / f"order_{self.order}_seed_{self.seed}"


def prepare(cell: Cell, options: argparse.Namespace) -> None:
    """The set, its increments, and the same with all classes at once, each unless it is there."""
    data, where = options.out / cell.set / "data", cell.increments(options.out)
    if cell.set == "camvid":
        shrunk(options.camvid, data, 4)
    elif not (data / "dataset.json").is_file():
        shutil.rmtree(data, ignore_errors=True)
        counts = {"train": options.images, "val": options.images // 4, "test": options.images // 2}
        synthetic.write(data, **counts, size=(96, 144), seed=0, instances=True)
    listing = open_listing(str(data))
    annotation = Annotation(listing, by_region=cell.set == "camvid")
    base, more = CLASSES[cell.set]
    if not (where / "plan.json").is_file():
        shutil.rmtree(where, ignore_errors=True)
        committed = SPLITS / cell.set / f"increments_{base}-{more}_order_{cell.order}.json"
        if committed.is_file() and options.protocol == "overlap":
            plan = Plan.read(committed)
        else:
            plan = plan_increments(
                listing, annotation, base=base, more=more, order=cell.order, protocol=options.protocol
            )
        write_increments(listing, annotation, plan, where)
    if not (where / "joint" / "plan.json").is_file():
        shutil.rmtree(where / "joint", ignore_errors=True)
        plan, names = Plan.read(where / "plan.json"), tuple(pair.name for pair in listing.split("train"))
        everything = Plan(plan.protocol, (plan.seen(len(plan.increments)),), (names,))
        write_increments(listing, annotation, everything, where / "joint")


def train(folder: Path, data: Path, cell: Cell, options: argparse.Namespace) -> None:
    """A panoptic model from scratch or ImageNet weights, unless it is there."""
    if not (folder / "report.html").is_file():
        fields = {"encoder": options.encoder, "queries": 40, "steps": options.base_steps, "lr": 1e-3, **views(options)}
        segue.train(str(data), folder, method="mask_classification", seed=cell.seed, **fields)


def views(options: argparse.Namespace) -> dict[str, Any]:
    """Fields that all arms share."""
    return {"crop": options.crop, "batch": 8, "scale": (0.75, 1.5), "points": 512}


def run_arm(cell: Cell, arm: str, options: argparse.Namespace) -> None:
    """Extends the base model through all increments with one arm, and scores it on the test split."""
    where, runs = cell.increments(options.out), cell.folder(options.out)
    model = runs / "base"
    count = len(Plan.read(where / "plan.json").increments)
    for number in range(1, count):
        out = runs / (arm if number == count - 1 else f"{arm}_{number}")
        if not (out / "report.html").is_file():
            fields = {"steps": options.steps, "lr": options.lr, **views(options), **ARMS[arm]}
            new, old = str(where / f"increment_{number}"), str(where / "increment_0")
            segue.extend(model, new, out, keep_val=old, seed=cell.seed, **fields)
        model = out


def score(run: Path, cell: Cell, options: argparse.Namespace) -> None:
    """Writes ``test.json`` beside the model: PQ of every class on the test split with all classes labelled."""
    if (run / "test.json").is_file():
        return
    last = sorted(cell.increments(options.out).glob("increment_*"))[-1]
    (run / "test.json").write_text(json.dumps(segue.evaluate(run, str(last), split="test").plain()))


def score_counted(run: Path, cell: Cell, options: argparse.Namespace) -> None:
    """Writes ``counted.json`` beside a model: PQ of its classes, objects of classes that it lacks being no void."""
    if (run / "counted.json").is_file():
        return
    listing = open_listing(str(sorted(cell.increments(options.out).glob("increment_*"))[-1]))
    model = load_panoptic(str(run))
    known = {name: i for i, name in enumerate(model.spec.classes)}
    labels = {i: known.get(name, len(known)) for i, name in enumerate(listing.classes)}
    data = PanopticWhole(listing.split("test"), Annotation(listing, cell.set == "camvid", labels))
    (run / "counted.json").write_text(json.dumps(measure_panoptic(model, data, others=True).plain()))


def classes_of(run: Path, names: tuple[str, ...], file: str = "test.json") -> float:
    """Mean PQ, in per cent, over those of the classes that occur; NaN while the run is not done."""
    path = run / file
    scores = json.loads(path.read_text())["scores"] if path.is_file() else {}
    found = [100 * scores[f"pq/{name}"] for name in names if scores.get(f"pq/{name}") is not None]
    return mean(found) if found else math.nan


def share(value: float, whole: float) -> float:
    """In per cent; NaN of nothing."""
    return 100 * value / whole if whole else math.nan


def table(cells: list[Cell], options: argparse.Namespace) -> str:
    """Of each set and order, over the seeds: PQ of old, new and all classes, and what the targets compare."""
    lines = [
        "| set | order | arm | old | new | all | old, % of the base model's | of the same counted | all, % of joint |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for key in dict.fromkeys((cell.set, cell.order) for cell in cells):
        group = [cell for cell in cells if (cell.set, cell.order) == key]
        plan = Plan.read(group[0].increments(options.out) / "plan.json")
        old, every = plan.increments[0], plan.seen(len(plan.increments))
        new = tuple(name for name in every if name not in old)
        base, counted = (
            [classes_of(cell.folder(options.out) / "base", old, file) for cell in group]
            for file in ("test.json", "counted.json")
        )
        joint = [classes_of(cell.folder(options.out) / "joint", every) for cell in group]
        for arm in ("base", *options.arms, "joint"):
            runs = [cell.folder(options.out) / arm for cell in group]
            olds, news, alls = ([classes_of(run, names) for run in runs] for names in (old, new, every))
            kept, kept_counted = (
                [share(a, b) for a, b in zip(olds, before, strict=True)] for before in (base, counted)
            )
            reached = [share(a, b) for a, b in zip(alls, joint, strict=True)]
            if arm == "base":
                parts = [f"{spread(olds)}; counted {spread(counted)}", "", "", spread(kept), "", ""]
            else:
                parts = [spread(values) for values in (olds, news, alls, kept, kept_counted, reached)]
            lines.append(" | ".join([f"| {key[0]}", str(key[1]), arm, *parts]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--camvid", type=Path, help="the canonical folder of CamVid; without it, drawn scenes alone")
    parser.add_argument(
        "--sets", nargs="+", choices=list(CLASSES), help="default: scenes, and camvid where it is given"
    )
    parser.add_argument("--orders", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS)[:4], choices=list(ARMS))
    parser.add_argument("--protocol", default="overlap", choices=PROTOCOLS)
    parser.add_argument("--encoder", default="tf_efficientnet_lite0")
    parser.add_argument("--crop", type=int, default=96)
    parser.add_argument("--images", type=int, default=160, help="drawn training scenes")
    parser.add_argument("--base-steps", type=int, default=1500, help="of the base model and of joint training")
    parser.add_argument("--steps", type=int, default=350, help="of each increment")
    parser.add_argument("--lr", type=float, default=5e-4, help="of each increment")
    options = parser.parse_args()
    sets = options.sets or (["scenes", "camvid"] if options.camvid else ["scenes"])
    if "camvid" in sets and not options.camvid:
        parser.error("--sets camvid needs --camvid FOLDER")
    cells = [Cell(name, order, seed) for seed in options.seeds for name in sets for order in options.orders]
    for cell in cells:
        prepare(cell, options)
        where, runs = cell.increments(options.out), cell.folder(options.out)
        train(runs / "base", where / "increment_0", cell, options)
        train(runs / "joint", where / "joint" / "increment_0", cell, options)
        for arm in options.arms:
            run_arm(cell, arm, options)
        for name in ("base", "joint", *options.arms):
            score(runs / name, cell, options)
        score_counted(runs / "base", cell, options)
        report = table([one for one in cells if one.folder(options.out).exists()], options)
        (options.out / "table.md").write_text(report + "\n")
        print(f"{cell} done\n{report}", flush=True)


if __name__ == "__main__":
    main()
