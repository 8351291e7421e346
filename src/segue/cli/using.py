"""The commands that use models: evaluate, predict, suggest, compare."""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from segue.cli.parsing import USAGE_EXIT, Command, refuse_rest, whole_number
from segue.config import UsageError

if TYPE_CHECKING:
    from segue.panoptic.evaluation import PanopticMeasured


def add_commands(command: Command) -> None:
    """Adds them to the parser."""
    evaluate = command("evaluate", evaluate_command, "score a model on a labelled split")
    evaluate.add_argument("model", metavar="RUN", help="run or model folder, or hf:owner/name")
    evaluate.add_argument("--data", default="", help="the set's folder; that of the run if absent")
    evaluate.add_argument("--split", default="val", help="which part of it")
    evaluate.add_argument("--layout", default="auto", help="how the set lies on disk")
    evaluate.add_argument("--map", default="", help="stored mask values to map, as 77:ignore,255:1")
    evaluate.add_argument("--device", default="auto")
    evaluate.add_argument("--json", action="store_true", help="print everything as JSON")

    predict = command("predict", predict_command, "class maps and overlays of images")
    predict.add_argument("model", metavar="RUN", help="run or model folder, or hf:owner/name")
    predict.add_argument("images", nargs="+", metavar="IMAGES", help="files, folders or globs")
    predict.add_argument("--out", required=True, metavar="FOLDER", help="an empty or new folder")
    predict.add_argument("--maps", action="store_true", help="also write probability and uncertainty")
    predict.add_argument("--no-overlays", action="store_true", help="write class maps alone")
    predict.add_argument("--device", default="auto")
    predict.add_argument("--json", action="store_true", help="print what was written as JSON")

    suggest = command("suggest", suggest_command, "which images to label next, and why")
    suggest.add_argument("images", metavar="IMAGES", help="folder of images, or FOLDER:split; masks are left alone")
    suggest.add_argument("--model", required=True, metavar="RUN", help="of segue pretrain or train, or hf:owner/name")
    suggest.add_argument("--n", type=whole_number, default=30, help="how many images")
    suggest.add_argument("--out", required=True, metavar="FOLDER", help="an empty or new folder")
    suggest.add_argument("--skip_bad", "--skip-bad", action="store_true", help="go on without unreadable images")
    suggest.add_argument("--seed", type=whole_number, default=0, help="of the random draws that are compared with")
    suggest.add_argument("--device", default="auto")
    suggest.add_argument("--json", action="store_true", help="print the suggestion as JSON")

    compare = command("compare", compare_command, "where two models disagree on images without labels")
    compare.add_argument("old", metavar="OLD", help="run or model folder, or hf:owner/name")
    compare.add_argument("new", metavar="NEW", help="the other; classes are matched by name")
    compare.add_argument("--images", nargs="+", required=True, metavar="IMAGES", help="files, folders or globs")
    compare.add_argument("--out", required=True, metavar="FOLDER", help="an empty or new folder, for a page and JSON")
    compare.add_argument("--device", default="auto")
    compare.add_argument("--json", action="store_true", help="print everything as JSON")


def evaluate_command(arguments: argparse.Namespace, rest: list[str]) -> int:
    """``segue evaluate``."""
    from segue.verbs import evaluate

    refuse_rest(rest, "segue evaluate", ["--data", "--split", "--layout", "--map", "--device", "--json"])
    measured = evaluate(
        arguments.model, arguments.data, split=arguments.split, layout=arguments.layout,
        mapping=arguments.map, device=arguments.device,
    )  # fmt: skip
    if arguments.json:
        print(json.dumps(measured.plain()))  # noqa: T201
        return 0
    from rich.console import Console
    from rich.table import Table

    from segue.panoptic.evaluation import PanopticMeasured

    if isinstance(measured, PanopticMeasured):
        print_panoptic(measured, f"{arguments.model} on {arguments.split}")
        return 0
    scores = measured.scores()
    table = Table(title=f"{arguments.model} on {arguments.split}: {len(measured.by_image)} images")
    table.add_column("class")
    for column in ("IoU", "accuracy", "pixels"):
        table.add_column(column, justify="right")
    accuracy, pixels = measured.confusion.class_accuracy(), measured.confusion.counts.sum(1)
    for i, name in enumerate(measured.classes):
        table.add_row(name, percent(scores[f"iou/{name}"]), percent(accuracy[i]), f"{pixels[i]:,}")
    console = Console()
    console.print(table)
    console.print(
        f"mIoU {percent(scores['miou'])} over {measured.present()} of {len(measured.classes)} classes"
        f" · pixel accuracy {percent(scores['accuracy'])} · calibration error {percent(scores['ece'])}",
        highlight=False,
    )
    return 0


def print_panoptic(measured: "PanopticMeasured", title: str) -> None:
    """The scores of a panoptic model as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{title}: {len(measured.by_image)} images")
    table.add_column("class")
    for column in ("PQ", "SQ", "RQ", "found", "false", "missed"):
        table.add_column(column, justify="right")
    quality, by_class = measured.quality, measured.quality.by_class()
    counts = (quality.hits, quality.false, quality.missed)
    for i, name in enumerate(measured.classes):
        shares = (percent(by_class[kind][i]) for kind in ("pq", "sq", "rq"))
        table.add_row(name, *shares, *(f"{count[i]:,}" for count in counts))
    console = Console()
    console.print(table)
    console.print(measured.line(), highlight=False)


def percent(value: float) -> str:
    """A share in per cent; ``–`` where there is none."""
    return "–" if math.isnan(value) else f"{100 * value:.1f}"


def predict_command(arguments: argparse.Namespace, rest: list[str]) -> int:
    """``segue predict``."""
    from segue.launch import pick_device
    from segue.models.mask_classifier import MaskClassifier
    from segue.panoptic.prediction import write_panoptic
    from segue.prediction import find_images, write_predictions
    from segue.progress import track
    from segue.tuning import tune
    from segue.weights import load_any

    refuse_rest(rest, "segue predict", ["--out", "--maps", "--no-overlays", "--device", "--json"])
    out = empty_folder(arguments.out)
    pairs = find_images(arguments.images)
    device = pick_device(arguments.device)
    tune(device)
    model = load_any(arguments.model, device=device)
    overlays = not arguments.no_overlays
    if isinstance(model, MaskClassifier) and arguments.maps:
        raise UsageError("--maps: a panoptic model gives no probability of single pixels; leave the option out")
    with track("predict", len(pairs), quiet=arguments.json) as tick:
        if isinstance(model, MaskClassifier):
            written, failed = write_panoptic(model, pairs, out, overlays=overlays, tick=tick)
        else:
            written, failed = write_predictions(model, pairs, out, overlays=overlays, maps=arguments.maps, tick=tick)
    for reason in failed.values():
        print(f"segue predict: {reason}", file=sys.stderr)  # noqa: T201
    if arguments.json:
        print(json.dumps({"found": len(pairs), "written": written, "failed": failed, "out": str(out)}))  # noqa: T201
    else:
        print(f"{written} of {len(pairs)} images written to {out}; {len(failed)} could not be read")  # noqa: T201
    return USAGE_EXIT if failed else 0


def suggest_command(arguments: argparse.Namespace, rest: list[str]) -> int:
    """``segue suggest``."""
    from dataclasses import asdict

    from segue.data.unlabelled import open_image_set
    from segue.launch import pick_device
    from segue.progress import track
    from segue.suggestion import labelled_names, suggest, write_suggestion
    from segue.tuning import tune
    from segue.weights import describe, load_encoder, load_model

    known = ["--model", "--n", "--out", "--skip_bad", "--seed", "--device", "--json"]
    refuse_rest(rest, "segue suggest", known)
    out = empty_folder(arguments.out)
    images = open_image_set(arguments.images, skip_bad=arguments.skip_bad)
    device = pick_device(arguments.device)
    tune(device)
    encoder = load_encoder(arguments.model, device=device)
    is_trained = describe(arguments.model)["kind"] != "encoder"
    model = load_model(arguments.model, device=device) if is_trained else None
    with track("suggest", len(images.images) * (2 if is_trained else 1), quiet=arguments.json) as tick:
        found = suggest(
            images, encoder, model, arguments.n, labelled=labelled_names(Path(arguments.model)), seed=arguments.seed,
            tick=tick,
        )  # fmt: skip
    written = write_suggestion(found, out, model.spec.classes if model else (), images.images[0].tones)
    if arguments.json:
        print(json.dumps({**asdict(found), "out": str(out)}))  # noqa: T201
        return 0
    print("\n".join([*images.lines(), *found.lines()]))  # noqa: T201
    print(f"written to {out}: {', '.join(written)}. Label them, then: segue train DATA --out RUN")  # noqa: T201
    return 0


def empty_folder(name: str) -> Path:
    """The folder that ``--out`` names.

    Raises:
        UsageError: it holds something.
    """
    out = Path(name)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {out} is not an empty folder; name another")
    return out


def compare_command(arguments: argparse.Namespace, rest: list[str]) -> int:
    """``segue compare``."""
    from segue.comparison import compare_models
    from segue.launch import pick_device
    from segue.prediction import find_images
    from segue.progress import track
    from segue.tuning import tune
    from segue.weights import load_any

    refuse_rest(rest, "segue compare", ["--images", "--out", "--device", "--json"])
    out, pairs, device = empty_folder(arguments.out), find_images(arguments.images), pick_device(arguments.device)
    tune(device)
    old, new = (load_any(source, device=device) for source in (arguments.old, arguments.new))
    with track("compare", len(pairs), quiet=arguments.json) as tick:
        found = compare_models(old, new, pairs, out, tick=tick)
    for reason in found.failed.values():
        print(f"segue compare: {reason}", file=sys.stderr)  # noqa: T201
    if arguments.json:
        print(json.dumps({**found.plain(), "out": str(out)}))  # noqa: T201
    else:
        from rich.console import Console
        from rich.table import Table

        table = Table(title=f"{arguments.old} and {arguments.new} on {len(found.by_image)} images")
        table.add_column("class")
        for column in ("pixels, old", "pixels, new", "kept"):
            table.add_column(column, justify="right")
        for row in found.rows():
            kept = percent(math.nan if row["kept"] is None else row["kept"])
            table.add_row(row["name"], f"{row['old']:,}", f"{row['new']:,}", kept)
        console = Console()
        console.print(table)
        told = f"they disagree on {percent(found.disagreement())} % of the pixels; look at: {out / 'comparison.html'}"
        console.print(told, highlight=False, soft_wrap=True)
    return USAGE_EXIT if found.failed else 0
