"""The report of a run: one HTML file that fetches nothing, with what went in, what came out, and where it fails.

Everything in it is read from the run folder; only the pictures are opened again, and the page says so where they are
gone. What a method has to say beyond losses and scores it writes itself: `segue.runs.sections`.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segue.data.decoder import Decoder
from segue.data.images import Whole
from segue.data.layouts import address_of, open_listing
from segue.data.listing import Pair, toned
from segue.data.sample import Array, Color
from segue.data.stored_values import parse_map
from segue.disk import write_atomically
from segue.errors import DataError
from segue.metrics import Confusion
from segue.prediction.pictures import overlay, predict_image
from segue.records import BASELINE, REJECTED
from segue.report.arm import Arm, run_file
from segue.report.pictures import jpeg, picture_of
from segue.report.plots import curves, graph, lines, points_of, reliability, tsne
from segue.runs.sections import read_headline, read_sections
from segue.text import page
from segue.weights import describe, load_model

WORST, BEST = 6, 3  # images shown
POINTS = 900  # pixels in one t-SNE, so that the panels take seconds on one core
FEWEST = 10  # pixels that a t-SNE is worth drawing for
NEIGHBOURS = 10
MATRIX = 32  # classes that a confusion matrix stays readable with
EMBEDDINGS = {
    "embeddings_before": "before contrast",
    "embeddings_after": "after contrast",
    "embeddings_after_pseudo": "after contrast with pseudo-labels",
}


def write_report(out: Path) -> Path:
    """Writes ``report.html`` into a finished run folder; its path.

    Raises:
        DataError: the folder holds no finished run.
    """
    record = run_file(out / "run.json")
    arms = [Arm.read("method", out)]
    if (out / BASELINE / "evaluation.json").is_file():
        arms.append(Arm.read(BASELINE, out / BASELINE))
    classes = record["data"]["classes"]
    colors = [(r, g, b) for r, g, b in describe(str(out))["spec"].get("colors", [])]
    is_measured = all("confusion" in arm.evaluation for arm in arms)
    shown, missing = examples(record, arms, colors) if is_measured else ([], "")
    content = page(
        Path(__file__).with_name("page.html.j2"),
        record=record,
        arms=arms,
        is_measured=is_measured,
        by_image=by_image(arms) if is_measured and len(arms) > 1 else None,
        legend=[(name, f"rgb{color}") for name, color in zip(classes, colors, strict=True)],
        rows=class_rows(arms) if is_measured else [],
        matrix=confusion_table(arms[0].confusion(), classes) if is_measured else None,
        reliability=reliability(arms) if is_measured else "",
        curves=curves(arms),
        examples=shown,
        missing=missing,
        embeddings=embeddings(out, classes, colors),
        neighbours=NEIGHBOURS,
        headline=read_headline(out),
        sections=[section_view(out, name, section) for name, section in read_sections(out).items()],
        pseudo=run_file(out / "pseudo_labels.json") if (out / "pseudo_labels.json").is_file() else None,
    )
    write_atomically(out / "report.html", content.encode())
    return out / "report.html"


def section_view(out: Path, name: str, section: Mapping[str, Any]) -> dict[str, Any]:
    """A section of the report with its plots drawn and its pictures inlined; pictures that are gone are named."""
    blocks: list[tuple[str, Any]] = []
    for block in section["blocks"]:
        ((kind, content),) = block.items()
        if kind == "lines":
            plot = lines(content["x"], content["y"], content["series"])
            blocks.append((kind, {"title": content["title"], "plot": plot}))
        elif kind == "points":
            plot = points_of(content["x"], content["y"], content["groups"])
            blocks.append(("lines", {"title": content["title"], "plot": plot}))
        elif kind == "graph":
            plot = graph(content["nodes"], content["edges"])
            blocks.append(("lines", {"title": content["title"], "plot": plot}))
        elif kind == "pictures":
            shown = []
            for path, caption in content:
                try:
                    shown.append((caption, *picture_of(out / path)))
                except DataError as error:
                    blocks.append(("warning", str(error)))
            blocks.append((kind, shown))
        else:
            blocks.append((kind, content))
    return {"id": f"section-{name}", "title": section["title"], "blocks": blocks}


# -- what came out -----------------------------------------------------------------------------------------------------


def by_image(arms: Sequence[Arm]) -> tuple[int, int, int]:
    """On how many validation images the first arm beats the second, is beaten, and how many were measured."""
    measured = [[i for i in arm.evaluation["images"] if i["miou"] is not None] for arm in arms]
    second = {image["name"]: image["miou"] for image in measured[1]}
    gains = [image["miou"] - second[image["name"]] for image in measured[0]]
    return sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains), len(gains)


def class_rows(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """Of each class: IoU of each arm, and the share of pixels in the truth and in the first arm's prediction."""
    ious = [arm.confusion().iou() for arm in arms]
    counts = arms[0].confusion().counts
    total = max(int(counts.sum()), 1)
    return [
        {
            "iou": [float(iou[i]) for iou in ious],
            "truth": float(counts[i].sum() / total),
            "predicted": float(counts[:, i].sum() / total),
        }
        for i in range(len(counts))
    ]


def confusion_table(confusion: Confusion, classes: Sequence[str]) -> dict[str, Any]:
    """Shares of each true class by predicted class, for the `MATRIX` commonest classes, and the largest mistakes."""
    counts, truth = confusion.counts, confusion.counts.sum(1)
    chosen = np.sort(np.argsort(-truth, kind="stable")[:MATRIX])
    shares = counts / np.maximum(truth, 1)[:, None]
    rows = [
        {
            "name": classes[i],
            "cells": [float(shares[i, j]) if truth[i] else None for j in chosen],
            "others": float(1 - shares[i, chosen].sum()) if truth[i] else None,
            "hit": int(np.flatnonzero(chosen == i)[0]),
        }
        for i in chosen
    ]
    wrong = counts * ~np.eye(len(counts), dtype=bool)
    order = [divmod(int(flat), len(counts)) for flat in np.argsort(-wrong, axis=None, kind="stable")[:8]]
    mistakes = [(classes[i], classes[j], float(shares[i, j]), int(wrong[i, j])) for i, j in order if wrong[i, j]]
    return {"rows": rows, "is_cut": len(chosen) < len(classes), "mistakes": mistakes}


# -- embeddings --------------------------------------------------------------------------------------------------------


def separation(features: Array, labels: Array) -> tuple[float, float]:
    """Share of each pixel's `NEIGHBOURS` nearest by cosine that are of its class, and what chance would give.

    Args:
        features: (N, C) of unit length.
        labels: (N,).

    Returns:
        Two numbers in [0, 1]; NaN below two pixels.
    """
    total = len(labels)
    if total < 2:
        return math.nan, math.nan
    similarity = features @ features.T
    np.fill_diagonal(similarity, -np.inf)
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, : min(NEIGHBOURS, total - 1)]
    sizes = np.unique(labels, return_counts=True)[1]
    chance = (sizes * (sizes - 1)).sum() / (total * (total - 1))
    return float((labels[nearest] == labels[:, None]).mean()), float(chance)


def embeddings(out: Path, classes: Sequence[str], colors: Sequence[Color]) -> list[dict[str, Any]]:
    """A t-SNE of each kept set of pixel embeddings, and how far apart the classes are in all dimensions."""
    panels = []
    for name, title in EMBEDDINGS.items():
        if not (out / f"{name}.npz").is_file():
            continue
        with np.load(out / f"{name}.npz", allow_pickle=False) as kept:
            features, labels = kept["features"].astype(np.float32), kept["labels"]
        # One draw for every panel: they show the same pixels.
        picked = np.sort(np.random.default_rng(0).permutation(len(labels))[:POINTS])
        picked = picked[np.isfinite(features[picked]).all(1)]
        features, labels = features[picked], labels[picked]
        features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
        purity, chance = separation(features, labels)
        plot = tsne(features, labels, classes, colors) if len(np.unique(features, axis=0)) >= FEWEST else ""
        panels.append({"title": title, "pixels": len(labels), "purity": purity, "chance": chance, "plot": plot})
    return panels


# -- pictures ----------------------------------------------------------------------------------------------------------


def examples(
    record: Mapping[str, Any], arms: Sequence[Arm], colors: Sequence[Color]
) -> tuple[list[dict[str, Any]], str]:
    """The worst and the best validation images with overlays, and why any of them is not there."""
    images = [image for image in arms[0].evaluation["images"] if image["miou"] is not None]
    ranked = sorted(images, key=lambda image: float(image["miou"]))
    chosen = [("worst", image) for image in ranked[:WORST]]
    chosen += [("best", image) for image in ranked[WORST:][: -BEST - 1 : -1]]
    scores = [{image["name"]: image["miou"] for image in arm.evaluation["images"]} for arm in arms]
    shown: list[dict[str, Any]] = []
    missing = ""
    try:
        pairs, decoder = _validation(record["data"]["validation_at"])
        models = [load_model(str(model_of(arm))) for arm in arms]
    except DataError as error:
        return shown, str(error)
    for kind, image in chosen:
        if image["name"] not in pairs:
            missing = f"{image['name']} is no longer in the data set"
            continue
        try:
            sample = Whole(toned([pairs[image["name"]]], models[0].spec.tones), decoder)[0]
        except DataError as error:
            missing = str(error)
            continue
        photo, mask = sample["image"].permute(1, 2, 0).numpy(), sample["mask"].numpy()
        panels = [("photo", None, *jpeg(photo)), ("truth", None, *jpeg(overlay(photo, mask, colors, opacity=0.6)))]
        for arm, model, score in zip(arms, models, scores, strict=True):
            predicted = overlay(photo, predict_image(model, sample["image"])[0].numpy(), colors, opacity=0.6)
            panels.append((arm.title, score.get(image["name"]), *jpeg(predicted)))
        shown.append({"kind": kind, "name": image["name"], "miou": image["miou"], "panels": panels})
    return shown, missing


def model_of(arm: Arm) -> Path:
    """Where the model of an arm lies: of a run that is not for release, beside the one that was kept."""
    return arm.folder / REJECTED if (arm.folder / REJECTED).is_dir() else arm.folder


def _validation(at: Mapping[str, str]) -> tuple[dict[str, Pair], Decoder]:
    """The masked pairs that validation images are among, by name, and the decoder of their masks."""
    listing = open_listing(address_of(at), at["layout"])
    listing = listing.extended(parse_map(at["map"], listing))
    return {pair.name: pair for pair in listing.split(at["split"]) if pair.mask is not None}, Decoder.of(listing)
