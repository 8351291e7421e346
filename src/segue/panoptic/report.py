"""What the report says of a panoptic model: its quality by class, and the pictures where it is worst."""

import json
from collections.abc import Sequence
from typing import Any

from PIL import Image

from segue.data.panoptic import PanopticWhole
from segue.panoptic.evaluation import panoptic_map
from segue.panoptic.prediction import outlined
from segue.run import Run
from segue.sections import Block, write_headline, write_section
from segue.weights import load_panoptic

SHOWN = 4  # pictures
FOLDER = "worst"  # of the run folder, for pictures


def percent(value: float | None) -> str:
    """A share in [0, 1] in per cent; "–" where there is none."""
    return "–" if value is None else f"{100 * value:.1f}"


def conclude_training(run: Run, val: PanopticWhole) -> None:
    """Writes headline and section of a panoptic model that was trained in ``run`` and measured on ``val``."""
    found = json.loads((run.out / "evaluation.json").read_text(encoding="utf-8"))
    if "scores" not in found:
        write_headline(run, f"{found['method']} was trained; without validation images nothing is said of its quality.")
        return
    scores, count = found["scores"], len(found["images"])
    parts = ", ".join(f"{name} {percent(scores[f'pq/{name}'])}" for name in ("things", "stuff"))
    shown = f"{count} validation image{'' if count == 1 else 's'}"
    write_headline(run, f"{found['method']} reaches PQ {percent(scores['pq'])} % on {shown} ({parts}).")
    blocks: list[Block] = [{"text": "A class that neither truth nor prediction has counts in no mean."}]
    blocks += [{"table": quality_table(found)}, {"pictures": worst_pictures(run, val, found["images"])}]
    write_section(run, "10_quality", "Panoptic quality", blocks)


def quality_table(found: dict[str, Any]) -> dict[str, Any]:
    """PQ and the counts behind it of each class, from what `PanopticMeasured.plain` gave."""
    counts = found["quality"]
    rows = [
        [name, percent(found["scores"][f"pq/{name}"]), *(str(counts[kind][i]) for kind in ("hits", "false", "missed"))]
        for i, name in enumerate(found["classes"])
    ]
    return {"head": ["Class", "PQ, %", "Found", "False", "Missed"], "rows": rows}


def worst_pictures(run: Run, val: PanopticWhole, images: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Truth and prediction of the pictures with the lowest quality, as files of the run."""
    measured = [(image["pq"], i) for i, image in enumerate(images) if image["pq"] is not None]
    model = load_panoptic(str(run.out), device=str(run.device))
    (run.out / FOLDER).mkdir(exist_ok=True)
    shown: list[list[str]] = []
    for quality, i in sorted(measured)[:SHOWN]:
        sample = val[i]
        photo = sample["image"].permute(1, 2, 0).numpy()
        maps = {"truth": sample["truth"], "prediction": panoptic_map(model, sample["image"])}
        for what, found in maps.items():
            path = f"{FOLDER}/{i:05d}_{what}.jpg"
            Image.fromarray(outlined(photo, found, model.spec.colors)).save(run.out / path, quality=85)
            segments = f"{len(found.labels)} segment{'' if len(found.labels) == 1 else 's'}"
            shown.append([path, f"{sample['name']}, PQ {percent(quality)}: {what}, {segments}"])
    return shown
