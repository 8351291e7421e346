"""What the report says of panoptic models: quality by class, the worst pictures, what an extension kept of the old."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from segue.data.panoptic import PanopticWhole
from segue.data.panoptic_map import PanopticMap
from segue.data.sample import Array, palette
from segue.panoptic.evaluation import panoptic_map
from segue.panoptic.prediction import outlined
from segue.prediction.pictures import overlay
from segue.runs.folder import Run
from segue.runs.sections import Block, write_headline, write_section
from segue.text import percent
from segue.weights import load_panoptic

SHOWN = 4  # pictures
FOLDER, PSEUDO = "worst", "pseudo_labels"  # of the run folder, for pictures


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


def historic_section(
    run: Run,
    *,
    queries: int,
    fates: Mapping[str, int],
    weights: Sequence[int],
    is_distilled: bool,
    shown: Sequence[tuple[str, Array, PanopticMap, PanopticMap]],
) -> None:
    """What became of the historic model's masks, how distillation was weighted, and pictures of pseudo-labels.

    Args:
        run: whose report.
        queries: that the historic model answered in all steps; 0 where no pseudo-labels were asked for.
        fates: of those that said an old class: how many were kept, and dropped for each reason; the kept first.
        weights: a histogram of distillation weights over [0, 1]; all 0 where none was computed.
        is_distilled: whether the weights were used.
        shown: (name, image uint8 (H, W, 3), true map, pseudo-labels) of some training images.
    """
    blocks: list[Block] = []
    if queries:
        total = sum(fates.values())
        rows = [[name, str(count), f"{100 * count / max(1, total):.1f}"] for name, count in fates.items()]
        text = f"In all steps, {total} of {queries} queries of the historic model said an old class; of those:"
        blocks += [{"text": text}, {"table": {"head": ["Mask", "Count", "%"], "rows": rows}}]
        if not next(iter(fates.values())):
            held = "nothing but distillation" if is_distilled else "nothing"
            text = f"No pseudo-label was kept: {held} held the old classes."
            if total:
                why = max(list(fates)[1:], key=lambda name: fates[name])
                text += f" Most of the {total} masks of old classes were dropped as {why!r}; lower that threshold."
            blocks.append({"warning": text})
            run.say(f"warning: {text}")
        blocks.append({"pictures": pseudo_pictures(run, shown)})
    if sum(weights):
        shares = [[(i + 0.5) / len(weights), 100 * count / sum(weights)] for i, count in enumerate(weights)]
        text = f"Weights w of eq. 7, over all queries{'' if is_distilled else '; none was used'}."
        chart = {"title": "distillation weights", "x": "w", "y": "queries (%)", "series": {"queries": shares}}
        blocks += [{"text": text}, {"lines": chart}]
    if not blocks:
        blocks = [{"text": "Plain fine-tuning: neither pseudo-labels nor distillation were asked for."}]
    write_section(run, "20_historic", "What was kept of the historic model", blocks)


def pseudo_pictures(run: Run, shown: Sequence[tuple[str, Array, PanopticMap, PanopticMap]]) -> list[list[str]]:
    """True masks and pseudo-labels beside them, a colour a segment, as files of the run."""
    found: list[list[str]] = []
    (run.out / PSEUDO).mkdir(exist_ok=True)
    for i, (name, image, truth, pseudo) in enumerate(shown):
        for what, segments in (("true masks of new classes", truth), ("pseudo-labels of old classes", pseudo)):
            tinted = overlay(image, segments.ids % 256, palette(256), opacity=0.6)
            path = f"{PSEUDO}/{i}_{what.split()[0]}.jpg"
            Image.fromarray(np.where(segments.ids[..., None] > 0, tinted, image)).save(run.out / path, quality=85)
            found.append([path, f"{name}: {what} ({len(segments.labels)})"])
    return found
