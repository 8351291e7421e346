"""What came of an adaptation: the decision whether it helped, and what its report shows.

Where the target has labels to validate on, the adapted model is held against the source-only one. A whole or a class
that lost more than its limit is negative transfer: the source-only model takes the place of the adapted one. Without
labels nothing is said of accuracy.
"""

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from segue.data.decoder import Decoder
from segue.data.images import Middle, Whole
from segue.data.listing import Pair, spread
from segue.data.sample import Array
from segue.data.style import Style, styled
from segue.data.tones import read_rgb
from segue.disk import write_atomically
from segue.engine import Run
from segue.models.segmenter import Segmenter
from segue.prediction.pictures import overlay
from segue.records import BASELINE, REJECTED
from segue.runs.sections import Block, write_headline, write_section

DECISION = "decision.json"
SOURCE_ONLY = "source_only"  # what the baseline is called
CURVES = 8  # classes that have a curve of their own
PANELS = "panels"
STYLES, PICTURES = 6, 24  # examples shown
WIDTH = 480  # pixels, of a picture that is kept for the report
NO_MASKS = Decoder({}, (), by_color=False)  # of pictures whose labels nobody reads
Scores = Mapping[str, float | None]


def decide(before: Scores, after: Scores, *, limit: float, class_limit: float) -> dict[str, Any]:
    """Whether the adapted model may be released: ``release`` (None where it cannot be said), ``lost`` and ``reason``.

    Args:
        before: of the source-only model, as `segue.evaluation.Measured.scores` names them; in [0, 1].
        after: of the adapted model.
        limit: points of mIoU that may go.
        class_limit: points of IoU that each class may lose.
    """
    pairs = {name: (before.get(name), after.get(name)) for name in ("miou", *sorted(before)) if _is_iou(name)}
    points = {name: 100 * (b - a) for name, (b, a) in pairs.items() if b is not None and a is not None}
    if "miou" not in points:
        why = "The labels of --val show no class" if "miou" in after else "No labels of the target were given"
        reason = (
            f"{why}, so nothing is claimed of accuracy on it, and negative transfer could not be noticed: "
            "--val LABELLED measures both."
        )
        return {"release": None, "lost": {}, "kept": "adapted", "reason": reason}
    allowed = {name: limit if name == "miou" else class_limit for name in points}
    lost = {name.removeprefix("iou/"): loss for name, loss in points.items() if loss > allowed[name] + 1e-9}
    told = f"mIoU on the target {100 * (before['miou'] or 0):.1f} source-only, {100 * (after['miou'] or 0):.1f} adapted"
    if not lost:
        return {"release": True, "lost": {}, "kept": "adapted", "reason": f"Released: {told}."}
    named = ", ".join(f"{'mIoU' if name == 'miou' else name} by {loss:.1f}" for name, loss in lost.items())
    reason = (
        f"NEGATIVE TRANSFER, not for release: {told}; lost more than allowed ({limit:g} points of mIoU, "
        f"{class_limit:g} of a class): {named}. "
        f"The source-only model is the one kept, in model/; the adapted one is in {REJECTED}/."
    )
    return {"release": False, "lost": lost, "kept": SOURCE_ONLY, "reason": reason}


def _is_iou(name: str) -> bool:
    """Whether a score is one that the decision looks at."""
    return name == "miou" or name.startswith("iou/")


def conclude(run: Run, *, limit: float, class_limit: float) -> None:
    """Decides, keeps the right model, and writes what the report says of it."""
    after, before = (_read(folder / "evaluation.json") for folder in (run.out, run.out / BASELINE))
    decision = decide(before.get("scores", {}), after.get("scores", {}), limit=limit, class_limit=class_limit)
    if decision["release"] is False:
        keep_source_only(run.out)
    write_atomically(run.out / DECISION, json.dumps(decision).encode())
    write_headline(run, decision["reason"], is_warning=decision["release"] is not True)
    data = _read(run.out / "run.json")["data"]
    classes = data["classes"]
    logs = {"adapted": looks(run), SOURCE_ONLY: looks(run.child(BASELINE))}
    notes: list[Block] = [{"text": f"{note[:1].upper()}{note[1:]}."} for note in data["notes"]]
    write_section(run, "05_domains", "The two domains", notes)
    write_section(run, "10_target", "What the target shows", target_blocks(logs, data["shares"]))
    write_section(run, "20_gate", "What the gate kept", gate_blocks(logs["adapted"], classes))
    run.say(decision["reason"])


def keep_source_only(out: Path) -> None:
    """Puts the baseline's model into ``model/``; the adapted one goes to `REJECTED`. A second call changes nothing."""
    if not (out / REJECTED).exists():
        os.rename(out / "model", out / REJECTED)
    if not (out / "model").exists():
        partial = out / ".model.partial"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(out / BASELINE / "model", partial)
        os.rename(partial, out / "model")


def _read(path: Path) -> dict[str, Any]:
    """A JSON file of the run."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


# -- what the looks logged ---------------------------------------------------------------------------------------------


def looks(run: Run) -> list[dict[str, Any]]:
    """The lines that `segue.watch` gave to the log, with ``step`` and the scores by their own names."""
    lines = [line for line in run.read_log() if "val/entropy" in line]
    return [{key.removeprefix("val/"): value for key, value in line.items()} for line in lines]


def curve(lines: Sequence[Mapping[str, Any]], name: str) -> list[list[float]]:
    """(step, per cent) of a score, where it was logged and is finite."""
    return [[line["step"], 100 * line[name]] for line in lines if math.isfinite(line.get(name, math.nan))]


def plot(title: str, series: Mapping[str, list[list[float]]]) -> list[Block]:
    """A block with the curves that have points; none if no curve has."""
    drawn = {name: points for name, points in series.items() if points}
    return [{"lines": {"title": title, "x": "step", "y": "%", "series": drawn}}] if drawn else []


def target_blocks(logs: Mapping[str, Sequence[Mapping[str, Any]]], shares: Mapping[str, float]) -> list[Block]:
    """Label-free numbers of both models over the steps, and the classes that they predict at the end.

    Args:
        logs: the looks of each model.
        shares: of each class among the source's labels.
    """
    blocks: list[Block] = [
        {
            "text": "Measured on target pictures without any label; none of it is an accuracy. Entropy is low where "
            "the model is sure, right or wrong. Information is high where it is sure and does not say one class "
            "everywhere. Agreement is between student and teacher. Drift is how far the shares of the predicted "
            "classes are from those of the source's labels; a jump says that the model collapses, or that the domains "
            "differ."
        }
    ]
    for name in ("entropy", "information", "agreement", "drift"):
        blocks += plot(name, {arm: curve(lines, name) for arm, lines in logs.items()})
    ends = {arm: lines[-1] for arm, lines in logs.items() if lines}
    head = ["Class", "Among the source's labels, %", *(f"Predicted by {arm}, %" for arm in ends)]
    rows = [
        [name, _percent(share), *(_percent(end.get(f"share/{name}")) for end in ends.values())]
        for name, share in shares.items()
    ]
    return [*blocks, {"table": {"head": head, "rows": rows}}]


def gate_blocks(lines: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> list[Block]:
    """Credible shares over the steps, and how right the teacher is inside and outside of what is credible."""
    if not lines:
        return [{"text": "The target was not looked at."}]
    common = sorted(classes, key=lambda name: -lines[-1].get(f"share/{name}", 0.0))[:CURVES]
    blocks = plot("credible share of all pixels", {"all classes": curve(lines, "credible")})
    blocks += plot("credible share by predicted class", {name: curve(lines, f"credible/{name}") for name in common})
    inside = {"inside": curve(lines, "right_inside"), "outside": curve(lines, "right_outside")}
    right = plot("right pixels inside and outside of what is credible", inside)
    if right:
        text = "A gate is worth its place where the teacher is right more often inside than outside."
        blocks += [{"text": text}, *right]
    rows = [[name, *(_percent(lines[i].get(f"credible/{name}")) for i in (0, -1))] for name in classes]
    head = ["Class", "Credible at the first look, %", "Credible at the last, %"]
    return [*blocks, {"table": {"head": head, "rows": rows}}]


def _percent(value: float | None) -> str:
    """A share in per cent; "–" where there is none."""
    return "–" if value is None else f"{100 * value:.1f}"


# -- pictures ----------------------------------------------------------------------------------------------------------


def show_styles(
    run: Run,
    sources: Sequence[Pair],
    learnt: Sequence[Pair],
    target: Sequence[Pair],
    *,
    style: Style,
    band: float,
    invert: bool = False,
) -> None:
    """Pictures of the source as they were and as they are learnt from, each beside a picture of the target.

    Args:
        run: whose report.
        sources: pictures as they were.
        learnt: the same ones as they are loaded: translated, or not yet in any style.
        target: pictures of the target.
        style, band: as of `segue.data.style.styled`.
        invert: show them with inverted light too.
    """
    blocks: list[Block] = [
        {"text": "What the student learns the labels on. Objects must be where they were, and nothing may look torn."}
    ]
    rows = zip(spread(sources, STYLES), spread(learnt, STYLES), cycle(spread(target, STYLES)), strict=False)
    for i, pairs in enumerate(rows):
        before, after, theirs = (read_rgb(pair.image, pair.tones) for pair in pairs)
        reference = np.asarray(theirs.resize(after.size, Image.Resampling.BILINEAR))
        own = np.asarray(after)
        panels = {"source": before, "target": theirs,
                  "learnt from": Image.fromarray(styled(own, reference, style, band=band))}  # fmt: skip
        if invert:
            panels["learnt from, inverted"] = Image.fromarray(styled(255 - own, reference, style, band=band))
        shown = [[_panel(run, f"style_{i:02d}_{j}", panel), what] for j, (what, panel) in enumerate(panels.items())]
        blocks.append({"pictures": shown})
    write_section(run, "30_styles", "The source in the target's style", blocks)


@torch.inference_mode()
def show_target(run: Run, model: Segmenter, credible: Callable[[Tensor], Tensor], target: Sequence[Pair]) -> None:
    """Predictions on pictures of the target; what is not credible is darkened.

    Args:
        run: whose report.
        model: put into evaluation mode.
        credible: probabilities (1, K, H, W) -> m (1, H, W).
        target: pictures without masks.
    """
    model.eval()
    device = next(model.parameters()).device
    shown = []
    samples = Middle(Whole(spread(target, PICTURES), NO_MASKS))
    for i in range(len(samples)):
        sample = samples[i]
        probabilities = model(sample["image"][None].to(device)).float().softmax(1)
        mask, classes = credible(probabilities)[0].cpu().numpy(), probabilities[0].argmax(0).cpu().numpy()
        tinted = overlay(sample["image"].permute(1, 2, 0).numpy(), classes, model.spec.colors)
        panel = Image.fromarray(darkened(tinted, mask))
        shown.append([_panel(run, f"target_{i:02d}", panel), f"{sample['name']}: {100 * mask.mean():.0f} % credible"])
    text = "Tinted by the class that the adapted model predicts; the darker, the less the gate calls it credible."
    write_section(run, "40_pictures", "Pictures of the target", [{"text": text}, {"pictures": shown}])


def darkened(picture: Array, credible: Array) -> Array:
    """The picture (H, W, 3) at 40 % of its light where m (H, W) is 0, and as it is where m is 1."""
    return (picture * (0.4 + 0.6 * credible)[..., None]).round().astype(np.uint8)


def _panel(run: Run, name: str, image: Image.Image) -> str:
    """Writes a picture of the report; its path within the run folder."""
    run.open()
    (run.out / PANELS).mkdir(exist_ok=True)
    image.thumbnail((WIDTH, 2 * WIDTH), Image.Resampling.LANCZOS)
    image.save(run.out / PANELS / f"{name}.jpg", quality=85)
    return f"{PANELS}/{name}.jpg"
