"""Does the mean teacher help on images of another domain, and what of it does? Three pairs, and an unrelated one.

    python benchmarks/evidence/domains.py --out runs/domains                                        # drawn scenes alone
    python benchmarks/evidence/domains.py --out runs/domains --camvid data/camvid --dsb data/dsb2018

Pairs: ``scenes`` (drawn day to drawn dusk), ``camvid`` (day to dusk), ``dsb`` (DSB2018, fluorescence to histology), and
``unrelated``: drawn day, with microscopy for a target, measured on drawn dusk; it has to be refused.

Arms, all with the same steps, crops, seeds and initial weights: ``source_only``; ``style`` (labels on pictures in the
target's style, no teacher); ``ungated`` (every pixel of the teacher counts); then one arm for each gate (``quantile``,
``classwise``, ``soft``, ``absolute``, the published one), ``shared`` (the passes repeat dropout and classifier only),
``mixed`` (class mixing, strong views and cross-entropy, with the soft gate), ``mixed_ungated`` (the same, every
pixel counts); and ``oracle``, which learns from the target's own labels. The learning rate is that which served
``source_only`` best on drawn scenes with seed 100; gate and noise were chosen on held-out pictures of the target's
training split (``--held-out``: every third, which no arm sees then), where ``--fields`` changes settings; all others
were fixed before. In ``dsb`` every arm but ``oracle`` sees half of the source's pictures with inverted light:
nuclei are bright there and dark in the target. Scores are on a test split of the target that no arm learns from. Every
arm is a folder that is resumed where it was cut.

A second table holds the teacher of each look against rules that need no label: what it would have scored had the run
stopped there, on the test pictures that the looks saw.
"""

import argparse
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from shared import difference, refuse_chance, shrunk, spread

from segue.adaptation import decide, looks
from segue.config import Domains, build, flat
from segue.data import synthetic
from segue.data.images import Whole
from segue.data.two_domains import open_domains
from segue.disk import write_atomically
from segue.engine import Run
from segue.evaluation import measure
from segue.methods.mean_teacher import Config, source_only, train
from segue.processes.surroundings import pick_device, pick_precision
from segue.processes.tuning import tune
from segue.weights import save_model

GATED = ("quantile", "classwise", "soft", "absolute")
MIXING = {"class_mix": True, "strong": True, "consistency": "cross_entropy"}
ARMS: dict[str, dict[str, Any]] = {
    "source_only": {},
    "style": {"weight": 0.0},
    "ungated": {"gate": "none"},
    **{gate: {"gate": gate} for gate in GATED},
    "shared": {"gate": "soft", "trunk": "shared"},
    "mixed": {"gate": "soft", **MIXING},
    "mixed_ungated": {"gate": "none", **MIXING},
    "oracle": {},
}
FIRST = ("source_only", "style", "ungated", "soft", "quantile")
OF_A_PAIR: dict[str, dict[str, Any]] = {"dsb": {"invert": 0.5}}  # fields of all arms, chosen on held-out pictures
REFUSED = ("source_only", "soft")  # arms of the unrelated pair
RULES: dict[str, Callable[[dict[str, Any]], float]] = {  # of a look: the highest is taken
    "last": lambda look: look["step"],
    "information": lambda look: look["information"],
    "agreement": lambda look: look["agreement"],
    "entropy": lambda look: -look["entropy"],
    "drift": lambda look: -look["drift"],
    "best possible": lambda look: look["miou"],
}


def drawn(folder: Path, domain: str, options: argparse.Namespace) -> Path:
    """Drawn scenes of one domain; the domains share no scene."""
    if not (folder / "dataset.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        seed, (height, width) = {"a": 0, "b": 1}[domain], options.scene
        synthetic.write(folder, train=options.scenes, test=options.scenes // 2, size=(height, width), domain=domain,
                        seed=seed)  # fmt: skip
    return folder


def pairs(options: argparse.Namespace) -> dict[str, dict[str, str]]:
    """Source, target and test split of each pair whose sets are at hand."""
    day, dusk = (drawn(options.out / "data" / f"scenes_{domain}", domain, options) for domain in "ab")
    found = {"scenes": {"source": f"{day}:train", "target": f"{dusk}:train", "val": f"{dusk}:test"}}
    if options.camvid:
        root = shrunk(options.camvid, options.out / "data" / "camvid", options.shrink_camvid)
        found["camvid"] = {"source": f"{root}:da_source_day", "target": f"{root}:da_target_dusk_train",
                           "val": f"{root}:da_target_dusk_test"}  # fmt: skip
    if options.dsb:
        root = shrunk(options.dsb, options.out / "data" / "dsb", options.shrink_dsb)
        found["dsb"] = {"source": f"{root}:fluorescence_train", "target": f"{root}:histology_train",
                        "val": f"{root}:histology_test"}  # fmt: skip
        bare = options.out / "data" / "microscopy"
        if not bare.is_dir():
            shutil.copytree(root / "images", bare)
        found["unrelated"] = {"source": f"{day}:train", "target": str(bare), "val": f"{dusk}:test"}
    return found


def held_out(sets: dict[str, str], out: Path) -> dict[str, str]:
    """The same pair with every third target picture measured on in place of the test split: to choose settings by."""
    root, _, split = sets["target"].rpartition(":")
    if not Path(root).is_relative_to(out):
        raise SystemExit(f"{root} is no copy that splits may be written to; shrink it by 2 or more")
    path = Path(root) / "dataset.json"
    described = json.loads(path.read_text())
    names = described["splits"][split]
    described["splits"] |= {f"{split}_held": names[::3], f"{split}_fit": [n for i, n in enumerate(names) if i % 3]}
    path.write_text(json.dumps(described))
    return {**sets, "target": f"{root}:{split}_fit", "val": f"{root}:{split}_held"}


def config_of(arm: str, name: str, sets: dict[str, str], options: argparse.Namespace) -> Config:
    """What one arm of a pair learns from, and how."""
    if arm == "oracle":  # the target's own labels; the source's pictures stand where a target has to be
        sets = {"source": sets["target"], "target": sets["source"], "val": sets["val"]}
    domains = Domains(source=(sets["source"],), target=sets["target"], val=sets["val"])
    given = dict(field.split("=", 1) for field in options.fields)
    fields = {name: json.loads(value) if value[:1] in "[0123456789" else value for name, value in given.items()}
    shared = {"encoder": options.encoder, "init": options.init, "decoder_channels": options.decoder_channels,
              "crop": options.crop, "batch": options.batch, "steps": options.steps, "passes": options.passes,
              "lr": options.lr,
              "style": options.style, "looks": options.looks,
              **(OF_A_PAIR.get(name, {}) if arm != "oracle" else {}), **fields}  # fmt: skip
    config = replace(build(Config, {**shared, **ARMS[arm]}), domains=domains)
    return source_only(config) if arm in ("source_only", "oracle") else config


def run_arm(folder: Path, config: Config, seed: int, options: argparse.Namespace) -> None:
    """Trains one arm and measures it on the test split, unless that is done."""
    settings, path = json.dumps(flat(config), indent=1, default=str), folder / "settings.json"
    if path.is_file() and path.read_text() != settings:
        raise SystemExit(f"{folder} holds an arm of other settings; name another --out")
    if (folder / "evaluation.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(settings)
    device = pick_device(options.device)
    precision = pick_precision(options.precision, device)
    run = Run(folder, seed=seed, device=device, precision=precision, workers=options.workers, quiet=options.quiet)
    data = open_domains(config.domains, crop=config.views.crop)
    model = train(config, run, data).eval()
    measured = measure(model, Whole(data.val, data.decoder), data.classes)
    save_model(model, folder / "model", method="mean_teacher", metrics={"miou": measured.scores()["miou"]})
    write_atomically(folder / "evaluation.json", json.dumps(measured.plain()).encode())


def scores(folder: Path) -> dict[str, float | None]:
    """The scores of an arm; none while it is not done."""
    path = folder / "evaluation.json"
    return json.loads(path.read_text())["scores"] if path.is_file() else {}


def table(out: Path, names: list[str], arms: list[str], seeds: list[int], config: Domains, against: str) -> str:
    """mIoU of each arm on each pair, its mean paired difference to ``against`` with the standard error, and how often
    the limits of `segue adapt` would refuse it, were that the model it is held against."""
    lines = [
        f"| pair | arm | mIoU, test | minus {against} | of which better | not for release |",
        "|---|---|---|---|---|---|",
    ]
    for name in names:
        for arm in [arm for arm in arms if name != "unrelated" or arm in REFUSED]:
            found = [(scores(out / name / f"{against}_{s}"), scores(out / name / f"{arm}_{s}")) for s in seeds]
            done = [(a, b) for a, b in found if b.get("miou") is not None]
            paired = [100 * (b["miou"] - a["miou"]) for a, b in done if a.get("miou") is not None]  # type: ignore[operator]
            decisions = [
                decide(a, b, limit=config.limit, class_limit=config.class_limit)["release"] for a, b in done if a
            ]
            cells = [name, arm, spread([100 * float(b["miou"] or 0) for _, b in done])]
            cells += [difference(paired), f"{sum(p > 0 for p in paired)} of {len(paired)}"]
            cells += [f"{decisions.count(False)} of {len(decisions)}"]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def rules(out: Path, names: list[str], arms: list[str], seeds: list[int]) -> str:
    """Over all runs with a teacher: mIoU of the look that each label-free rule takes, less that of the last look."""
    lines = [
        "| rule | mIoU of its look | minus the last | runs in which it is worse than the last |",
        "|---|---|---|---|",
    ]
    logs = [looks(Run(out / name / f"{arm}_{seed}", quiet=True)) for name in names for arm in arms for seed in seeds]
    logs = [log for log in ([look for look in log if "miou" in look] for log in logs) if log]
    for rule, key in RULES.items():
        taken = [max(log, key=key)["miou"] for log in logs]
        gains = [100 * (value - log[-1]["miou"]) for value, log in zip(taken, logs, strict=True)]
        level = f"{100 * mean(taken):.1f}" if taken else ""
        worse = sum(gain < -0.05 for gain in gains)
        lines.append(
            f"| {rule} | {level} | {mean(gains):+.2f} | {worse} of {len(gains)} |" if gains else f"| {rule} | | | |"
        )
    return "\n".join(lines)


def trust(out: Path, names: list[str], arms: list[str], seeds: list[int]) -> str:
    """How often the teacher is right inside and outside of what each gate calls credible, at first and last look."""
    lines = ["| pair | arm | look | credible | right inside | right outside |", "|---|---|---|---|---|---|"]
    for name in names:
        for arm in arms:
            logs = [log for s in seeds if (log := looks(Run(out / name / f"{arm}_{s}", quiet=True)))]
            for title, place in (("first", 0), ("last", -1)):
                cells = []
                for key in ("credible", "right_inside", "right_outside"):
                    values = [100 * log[place][key] for log in logs if math.isfinite(log[place].get(key, math.nan))]
                    cells.append(f"{mean(values):.1f}" if values else "–")
                if logs:
                    lines.append(f"| {name} | {arm} | {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def options_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--camvid", type=Path)
    parser.add_argument("--dsb", type=Path)
    parser.add_argument("--pairs", nargs="+", default=["scenes", "camvid", "dsb", "unrelated"])
    parser.add_argument("--arms", nargs="+", default=list(FIRST), choices=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--against", default="source_only", choices=list(ARMS), help="what the table compares with")
    parser.add_argument("--held-out", action="store_true", help="measure on a part of the target's training split")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--crop", type=int, default=96)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--passes", type=int, default=1)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--looks", type=int, default=5)
    parser.add_argument("--style", default="fourier")
    parser.add_argument("--encoder", default="tf_efficientnet_lite0")
    parser.add_argument("--init", default="auto")
    parser.add_argument("--decoder-channels", type=int, default=128)
    parser.add_argument(
        "--scenes", type=int, default=120, help="drawn to train on, in each domain; half as many to test"
    )
    parser.add_argument("--scene", nargs=2, type=int, default=[96, 144], help="height and width")
    parser.add_argument("--shrink-camvid", type=int, default=4)
    parser.add_argument("--shrink-dsb", type=int, default=2)
    parser.add_argument("--fields", nargs="*", default=[], help="further fields of every arm, as lr=0.1")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--quiet", action="store_true")
    return parser.parse_args()


def main() -> None:
    options = options_of()
    refuse_chance(options.init, options.encoder)
    tune(pick_device(options.device))
    known = {name: sets for name, sets in pairs(options).items() if name in options.pairs}
    if options.held_out:
        known = {name: held_out(sets, options.out) for name, sets in known.items() if name != "unrelated"}
    for seed in options.seeds:
        for name, sets in known.items():
            for arm in [arm for arm in options.arms if name != "unrelated" or arm in REFUSED]:
                folder = options.out / name / f"{arm}_{seed}"
                run_arm(folder, config_of(arm, name, sets, options), seed, options)
                print(f"{folder}: test mIoU {100 * float(scores(folder)['miou'] or 0):.1f}", flush=True)
    gates = [arm for arm in options.arms if ARMS[arm].get("gate")]
    related = [name for name in known if name != "unrelated"]
    report = "\n\n".join(
        (
            table(options.out, list(known), options.arms, options.seeds, Domains(), options.against),
            rules(options.out, related, gates, options.seeds),
            trust(options.out, related, gates, options.seeds),
        )
    )
    (options.out / "table.md").write_text(report + "\n")
    print(report)


if __name__ == "__main__":
    main()
