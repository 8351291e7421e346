"""The report of a run: one HTML file that fetches nothing, with what went in, what came out, and where it fails.

Everything in it is read from the run folder; only the pictures are opened again, and the page says so where they are
gone. Plots are SVG whose inks are the page's CSS variables, so that they follow its light and dark colours.
"""

import base64
import io
import itertools
import json
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segue.data.decoder import Decoder
from segue.data.images import Whole
from segue.data.layouts import open_listing
from segue.data.listing import Pair
from segue.data.sample import Array, Color, DataError
from segue.data.training import parse_map
from segue.engine import Run, write_atomically
from segue.metrics import Confusion
from segue.prediction import overlay, predict_image
from segue.weights import describe, load_model

BASELINE = "baseline"
WORST, BEST = 6, 3  # images shown
SIDE = 480  # pixels, of a shown image's width at most
POINTS = 900  # pixels in one t-SNE, so that the panels take seconds on one core
FEWEST = 10  # pixels that a t-SNE is worth drawing for
NEIGHBOURS = 10
MATRIX = 32  # classes that a confusion matrix stays readable with
EMBEDDINGS = {
    "embeddings_before": "before contrast",
    "embeddings_after": "after contrast",
    "embeddings_after_pseudo": "after contrast with pseudo-labels",
}
NO_LOSS = {"stage", "step", "loss", "gradient_norm", "norm", "lr", "seconds", "refused"}
# Matplotlib wants colours that it knows: these stand for CSS variables, and are replaced in the finished SVG.
INKS = {f"#01020{i}": f"var(--{name})" for i, name in enumerate(("ink", "line", "paper", "method", "baseline"))}
INK, LINE, PAPER, METHOD_INK, BASELINE_INK = INKS
STROKES = {"method": (METHOD_INK, "-", "o"), BASELINE: (BASELINE_INK, "--", "s")}
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "segue",
    "text.parse_math": False,  # a class may be called $x$
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": LINE,
    "grid.linewidth": 0.5,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Arm:
    """One training of the run, as its folder tells it.

    Args:
        key: ``method`` or ``baseline``; names its ink.
        title: the method's name.
        folder: of this training.
        evaluation: what evaluation.json holds.
        log: the lines of log.jsonl.
    """

    key: str
    title: str
    folder: Path
    evaluation: dict[str, Any]
    log: list[dict[str, Any]]

    @classmethod
    def read(cls, key: str, folder: Path) -> "Arm":
        """The finished training in ``folder``."""
        evaluation = _json(folder / "evaluation.json")
        return cls(key, evaluation["method"], folder, evaluation, Run(folder, quiet=True).read_log())

    def score(self, name: str) -> float | None:
        """One of `Measured.scores`; None where it was not measured or is not defined."""
        value: float | None = self.evaluation.get("scores", {}).get(name)
        return value

    def confusion(self) -> Confusion:
        """Of the validation pixels; there must be scores."""
        counts = np.array(self.evaluation["confusion"], np.int64)
        confusion = Confusion(len(counts))
        confusion.counts = counts
        return confusion

    def stages(self) -> dict[str, tuple[int, int]]:
        """(steps of this arm before it, its own steps) of each stage, in the order they ran."""
        lengths: dict[str, int] = {}
        for line in self.log:
            lengths[line["stage"]] = max(lengths.get(line["stage"], 0), line["step"])
        starts = itertools.accumulate(lengths.values(), initial=0)
        return {stage: (start, steps) for start, (stage, steps) in zip(starts, lengths.items(), strict=False)}

    def trace(self, name: str) -> list[list[tuple[int, float]]]:
        """(step of the whole arm, value) of what was logged as ``name``, one list a stage; only what is finite."""
        found = []
        for stage, (start, _) in self.stages().items():
            lines = [line for line in self.log if line["stage"] == stage and "refused" not in line]
            points = [(start + line["step"], line[name]) for line in lines if math.isfinite(line.get(name, math.nan))]
            found += [points] if points else []
        return found


def write_report(out: Path) -> Path:
    """Writes ``report.html`` into a finished run folder; its path.

    Raises:
        DataError: the folder holds no finished run.
    """
    record = _json(out / "run.json")
    arms = [Arm.read("method", out)]
    if (out / BASELINE / "evaluation.json").is_file():
        arms.append(Arm.read(BASELINE, out / BASELINE))
    classes = record["data"]["classes"]
    colors = [(r, g, b) for r, g, b in describe(str(out))["spec"]["colors"]]
    is_measured = all("scores" in arm.evaluation for arm in arms)
    shown, missing = examples(record, arms, colors) if is_measured else ([], "")
    page = _template().render(
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
        pseudo=_json(out / "pseudo_labels.json") if (out / "pseudo_labels.json").is_file() else None,
    )
    write_atomically(out / "report.html", page.encode())
    return out / "report.html"


def _json(path: Path) -> dict[str, Any]:
    """What a JSON file of the run holds.

    Raises:
        DataError: it is missing or damaged.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: a report needs a finished run") from None
    except ValueError as error:
        raise DataError(f"{path} is no valid JSON: {error}") from None
    return found


def _template() -> Any:
    """The page, with its filters."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": percent, "points": points, "count": count, "duration": duration}
    return environment.from_string(resources.files("segue").joinpath("report.html.j2").read_text(encoding="utf-8"))


# -- numbers as text ---------------------------------------------------------------------------------------------------


def percent(value: float | None) -> str:
    """A share in [0, 1] in percent; "–" where it is not defined."""
    if value is None or math.isnan(value):
        return "–"
    return "<0.1" if 0 < value < 0.0005 else f"{100 * value:.1f}"


def points(first: float | None, second: float | None) -> str:
    """How much ``first`` is above ``second``, two shares, in percentage points with its sign."""
    if first is None or second is None or math.isnan(first - second):
        return "–"
    text = f"{100 * (first - second):+.1f}"
    return "0.0" if text[1:] == "0.0" else text.replace("-", "−")


def count(value: int) -> str:
    """A count with its thousands apart."""
    return f"{value:,}".replace(",", "\u202f")


def duration(seconds: float) -> str:
    """Seconds as hours, minutes and seconds."""
    hours, rest = divmod(round(seconds), 3600)
    parts = ((hours, "h"), (rest // 60, "min"), (rest % 60 if not hours else 0, "s"))
    return " ".join(f"{number} {unit}" for number, unit in parts if number) or "0 s"


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


# -- plots -------------------------------------------------------------------------------------------------------------


def _svg(paint: Callable[[Any], None], *, height: float = 2.8) -> str:
    """What ``paint`` draws on the axes it is given, as an SVG element; height in inches."""
    import matplotlib
    from markupsafe import Markup
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # glyphs that matplotlib's font lacks: the browser has them
        figure = Figure(figsize=(3.8, height), layout="constrained", facecolor="none")
        paint(figure.subplots())
        figure.savefig(buffer, format="svg", dpi=160)
    text = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue().decode(), flags=re.DOTALL)
    head, tail = text[text.index("<svg") :].split(">", 1)
    text = re.sub(r' (width|height)="[^"]*"', "", head) + ">" + tail  # its box alone: the page gives the width
    for ink, variable in INKS.items():
        text = text.replace(ink, variable)
    return Markup(text)  # matplotlib has escaped the names in it


def curves(arms: Sequence[Arm]) -> list[tuple[str, str]]:
    """(title, SVG) of each named loss, and of the validation mIoU where it was logged, over the steps of each arm."""
    names = [name for arm in arms for line in arm.log for name in line if name not in NO_LOSS and "/" not in name]
    traces = [*dict.fromkeys(names), "val/miou"]
    last = max((start + steps for arm in arms for start, steps in arm.stages().values()), default=1)

    def panel(name: str) -> Callable[[Any], None]:
        def paint(axes: Any) -> None:
            for arm in arms:
                color, line, marker = STROKES[arm.key]
                for i, stage in enumerate(arm.trace(name)):
                    steps, values = zip(*stage, strict=True)
                    scaled = [100 * value for value in values] if name == "val/miou" else values
                    few = marker if len(steps) < 12 else ""
                    label = arm.title if i == 0 else None
                    axes.plot(steps, scaled, line, color=color, marker=few, markersize=3, label=label)
            for start, _ in arms[0].stages().values():
                if start:
                    axes.axvline(start, color=INK, linewidth=0.8, linestyle=":")
            axes.set(xlabel="step", xlim=(0, 1.02 * last), ylabel="mIoU (%)" if name == "val/miou" else "loss")
            axes.legend(loc="best")

        return paint

    shown = [name for name in traces if any(arm.trace(name) for arm in arms)]
    return [("validation mIoU" if name == "val/miou" else name.replace("_", " "), _svg(panel(name))) for name in shown]


def reliability(arms: Sequence[Arm]) -> str:
    """Accuracy over predicted probability, one point a bin; its area is the share of pixels."""

    def paint(axes: Any) -> None:
        axes.plot([0, 100], [0, 100], color=INK, linewidth=0.8, linestyle=":")
        for arm in arms:
            color, line, marker = STROKES[arm.key]
            bins = {name: np.array(values) for name, values in arm.evaluation["calibration"].items()}
            filled = bins["count"] > 0
            total = bins["count"][filled]
            x, y = 100 * bins["probability"][filled] / total, 100 * bins["right"][filled] / total
            axes.plot(x, y, line, color=color, linewidth=1, marker=marker, markersize=3, label=arm.title)
            area = 400 * total / max(total.sum(), 1)
            axes.scatter(x, y, s=area, color=color, marker=marker, alpha=0.35, linewidths=0)
        axes.set(xlabel="predicted probability (%)", ylabel="right (%)", xlim=(0, 105), ylim=(0, 105), aspect="equal")
        axes.legend(loc="upper left")

    return _svg(paint, height=3.8)


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
        plot = _tsne(features, labels, classes, colors) if len(np.unique(features, axis=0)) >= FEWEST else ""
        panels.append({"title": title, "pixels": len(labels), "purity": purity, "chance": chance, "plot": plot})
    return panels


def _tsne(features: Array, labels: Array, classes: Sequence[str], colors: Sequence[Color]) -> str:
    """A t-SNE as SVG, each class named where it lies densest."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(labels) - 1) / 3)
    places = TSNE(perplexity=perplexity, init="pca", random_state=0, max_iter=500).fit_transform(features)

    def paint(axes: Any) -> None:
        rgb = np.array(colors)[labels] / 255
        axes.set_facecolor(PAPER)
        axes.scatter(*places.T, s=9, c=rgb, edgecolors="#00000066", linewidths=0.25, rasterized=True)
        box = {"boxstyle": "round,pad=0.15", "facecolor": "#ffffff", "alpha": 0.75, "linewidth": 0}
        for index in np.unique(labels):
            own = places[labels == index]
            apart = np.sort(np.linalg.norm(own[:, None] - own[None], axis=2), axis=1)[:, : len(own) // 3 + 2]
            x, y = own[apart.mean(1).argmin()]
            axes.text(x, y, classes[index], color="#111111", fontsize=9, ha="center", va="center", bbox=box)
        axes.set(xticks=[], yticks=[])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)

    return _svg(paint, height=3.6)


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
        pairs, decoder = _validation(record["identity"]["config"])
        models = [load_model(str(arm.folder)) for arm in arms]
    except DataError as error:
        return shown, str(error)
    for kind, image in chosen:
        if image["name"] not in pairs:
            missing = f"{image['name']} is no longer in the data set"
            continue
        try:
            sample = Whole([pairs[image["name"]]], decoder)[0]
        except DataError as error:
            missing = str(error)
            continue
        photo, mask = sample["image"].permute(1, 2, 0).numpy(), sample["mask"].numpy()
        panels = [("photo", None, *_jpeg(photo)), ("truth", None, *_jpeg(overlay(photo, mask, colors, opacity=0.6)))]
        for arm, model, score in zip(arms, models, scores, strict=True):
            predicted = overlay(photo, predict_image(model, sample["image"])[0].numpy(), colors, opacity=0.6)
            panels.append((arm.title, score.get(image["name"]), *_jpeg(predicted)))
        shown.append({"kind": kind, "name": image["name"], "miou": image["miou"], "panels": panels})
    return shown, missing


def _validation(config: Mapping[str, Any]) -> tuple[dict[str, Pair], Decoder]:
    """The masked pairs that validation images can be among, by name, and the decoder of their masks."""
    listing = open_listing(config["data"], config["layout"])
    listing = listing.extended(parse_map(config["map"], listing))
    wanted = "val" if config["val"] == "auto" else config["val"]  # a share is one of the training split
    split = next((name for name in (wanted, "train") if name in listing.splits), next(iter(listing.splits)))
    return {pair.name: pair for pair in listing.splits[split] if pair.mask is not None}, Decoder.of(listing)


def _jpeg(picture: Array) -> tuple[str, int, int]:
    """(data URI, width, height) of a picture uint8 (H, W, 3), made no wider than `SIDE`."""
    image = Image.fromarray(picture)
    image.thumbnail((SIDE, 2 * SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=78)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}", image.width, image.height
