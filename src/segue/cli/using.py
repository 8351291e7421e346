"""The commands that use models: evaluate, predict, suggest."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from segue.cli.parsing import USAGE_EXIT, Command, empty_folder, refuse_idle, whole_number
from segue.disk import alone_in, held, write_atomically
from segue.errors import UsageError
from segue.text import percent

if TYPE_CHECKING:
    from rich.console import Console

    from segue.data.listing import Pair
    from segue.evaluation import Measured
    from segue.models.mask_classifier import MaskClassifier
    from segue.panoptic.evaluation import PanopticMeasured
    from segue.prediction.bulk import Work
    from segue.prediction.pictures import Account, How
    from segue.weights import AnyModel, Model

MATRIX = 12  # classes whose confusion matrix has room in a terminal


def add_commands(command: Command) -> None:
    """Adds them to the parser."""
    evaluate = command("evaluate", evaluate_command, "score a model on a labelled split")
    evaluate.add_argument("model", metavar="RUN", help="run or model folder, or hf:owner/name")
    evaluate.add_argument("--data", default="", help="the set's folder; that of the run if absent")
    evaluate.add_argument("--split", default="", help="which part of it; else what the run validated on, or val")
    evaluate.add_argument("--layout", default="auto", help="how the set lies on disk")
    evaluate.add_argument("--map", default="", help="stored mask values to map, as 77:ignore,255:1")
    told = "connected regions are objects where the set numbers none"
    evaluate.add_argument("--by_region", "--by-region", action="store_true", help=told)
    evaluate.add_argument("--device", default="auto")
    evaluate.add_argument("--json", action="store_true", help="print everything as JSON")

    predict = command("predict", predict_command, "class maps and overlays of images")
    predict.add_argument("model", metavar="RUN", help="run or model folder, or hf:owner/name")
    predict.add_argument("images", nargs="+", metavar="IMAGES", help="files, folders or globs")
    predict.add_argument("--out", required=True, metavar="FOLDER", help="an empty or new folder")
    predict.add_argument("--maps", action="store_true", help="also write probability and uncertainty")
    predict.add_argument("--no-overlays", action="store_true", help="write class maps alone")
    predict.add_argument("--run-lengths", action="store_true", help="also write COCO run lengths of each class as JSON")
    predict.add_argument("--polygons", action="store_true", help="also write polygons with holes as GeoJSON")
    predict.add_argument("--labelme", action="store_true", help="also write LabelMe files beside copies of the images")
    predict.add_argument("--cvat", action="store_true", help="also write polygons for a CVAT task of the same images")
    predict.add_argument("--tile", type=whole_number, default=0, help="side of a tile; 0 tiles pictures above 4 MP")
    predict.add_argument("--overlap", type=whole_number, default=64, help="pixels that neighbouring tiles share")
    predict.add_argument("--flips", action="store_true", help="average with the mirrored picture")
    predict.add_argument("--scales", default="1", help="average over these sizes, as 0.75,1,1.25")
    predict.add_argument(
        "--calibrate", default="", metavar="DATA", help="fit the temperature on this labelled set, as photos:val"
    )
    predict.add_argument("--map", default="", help="stored mask values of --calibrate's set to map, as 77:ignore")
    predict.add_argument(
        "--ray", nargs="?", const="auto", default="", metavar="ADDRESS",
        help="spread the images over a Ray cluster; without an address one of this machine's",
    )  # fmt: skip
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


def evaluate_command(arguments: argparse.Namespace) -> int:
    """``segue evaluate``."""
    from segue.using import evaluate

    measured = evaluate(
        arguments.model, arguments.data, split=arguments.split, layout=arguments.layout,
        mapping=arguments.map, by_region=arguments.by_region, device=arguments.device,
    )  # fmt: skip
    if arguments.json:
        print(json.dumps({**measured.plain(), "split": measured.split}))  # noqa: T201
        return 0
    from segue.panoptic.evaluation import PanopticMeasured

    title = f"{arguments.model} on {measured.split}"
    if isinstance(measured, PanopticMeasured):
        print_panoptic(measured, title)
    else:
        print_semantic(measured, title)
    return 0


def print_semantic(measured: "Measured", title: str) -> None:
    """The scores of a semantic model as a table, and what it takes for what."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    scores = measured.scores()
    table = Table(title=escape(f"{title}: {len(measured.by_image)} images"))
    table.add_column("class")
    for column in ("IoU, %", "accuracy, %", "pixels"):
        table.add_column(column, justify="right")
    accuracy, pixels = measured.confusion.class_accuracy(), measured.confusion.counts.sum(1)
    for i, name in enumerate(measured.classes):
        table.add_row(escape(name), percent(scores[f"iou/{name}"]), percent(accuracy[i]), f"{pixels[i]:,}")
    console = Console()
    console.print(table)
    print_confusion(console, measured)
    console.print(
        f"mIoU {percent(scores['miou'])} % over {measured.present()} of {len(measured.classes)} classes"
        f" · pixel accuracy {percent(scores['accuracy'])} % · calibration error {percent(scores['ece'])} %",
        highlight=False,
    )


def print_confusion(console: "Console", measured: "Measured") -> None:
    """The largest mistakes, and where classes are few the whole matrix."""
    from rich.markup import escape
    from rich.table import Table

    from segue.report import confusion_table

    found = confusion_table(measured.confusion, measured.classes)
    if len(measured.classes) <= MATRIX:
        matrix = Table("true class", title="confusion, in % of the true class")
        for i in range(len(measured.classes)):
            matrix.add_column(str(i + 1), justify="right")
        for i, row in enumerate(found["rows"]):
            cells = ("–" if share is None else f"{100 * share:.0f}" for share in row["cells"])
            matrix.add_row(escape(f"{i + 1} {row['name']}"), *cells)
        console.print(matrix)
    if found["mistakes"]:
        mistakes = Table("true class", "taken for", title="largest mistakes")
        for column in ("% of the class", "pixels"):
            mistakes.add_column(column, justify="right")
        for true, taken, share, pixels in found["mistakes"]:
            mistakes.add_row(escape(true), escape(taken), percent(share), f"{pixels:,}")
        console.print(mistakes)


def print_panoptic(measured: "PanopticMeasured", title: str) -> None:
    """The scores of a panoptic model as a table."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(f"{title}: {len(measured.by_image)} images"))
    table.add_column("class")
    for column in ("PQ", "SQ", "RQ", "found", "false", "missed"):
        table.add_column(column, justify="right")
    quality, by_class = measured.quality, measured.quality.by_class()
    counts = (quality.hits, quality.false, quality.missed)
    for i, name in enumerate(measured.classes):
        shares = (percent(by_class[kind][i]) for kind in ("pq", "sq", "rq"))
        table.add_row(escape(name), *shares, *(f"{count[i]:,}" for count in counts))
    console = Console()
    console.print(table)
    console.print(measured.line(), highlight=False)


def claim(
    out: Path, identity: dict[str, object], pairs: "Sequence[Pair]", made: "Callable[[Pair], Path]"
) -> dict[str, list[object]]:
    """Makes sure that ``out`` is free or holds predictions of these settings, which then go on where they stopped.

    Args:
        out: the folder.
        identity: the settings.
        pairs: what is to be predicted.
        made: the file that is there once a picture is done; until then the picture may change.

    Returns:
        What is known of each picture, by its name, for `write_records`.

    Raises:
        UsageError: it holds something else, predictions of other settings, or of another picture of the same name.
    """
    from segue.records import read_json

    record, pictures = out / "predict.json", out / "pictures.json"
    if record.is_file():
        known = read_json(record, "the record of predictions")
        differing = [name for name in identity if known.get(name) != identity[name]]
        if differing:
            raise UsageError(f"--out {out} holds predictions of other settings ({', '.join(differing)}); name another")
    elif out.exists() and (not out.is_dir() or held(out)):
        raise UsageError(f"--out {out} is not an empty folder; name another")
    before: dict[str, list[object]] = {}
    if pictures.is_file():
        before = read_json(pictures, "the record of predicted pictures")
    now = {pair.name: _state(pair.image) for pair in pairs}
    for pair in pairs:
        state = now[pair.name]
        if before.get(pair.name, state) != state and made(pair).exists():
            raise UsageError(
                f"--out {out} holds what was predicted of another {pair.name}, or of {state[0]} before it changed; "
                "name another folder"
            )
    return {**before, **now}


def _state(picture: Path) -> list[object]:
    """What tells a picture from another and from what it was: path, bytes, and time of the last change in ns."""
    from segue.data.packed import Packed

    file = picture.shard if isinstance(picture, Packed) else picture
    known = file.stat() if file.exists() else None  # a link to nothing is told of when it is read
    return [str(picture.absolute()), *((known.st_size, known.st_mtime_ns) if known else (0, 0))]


def known_pairs(pictures: dict[str, list[object]]) -> "list[Pair]":
    """Every picture of a folder of predictions, those of earlier calls before those of this one."""
    from segue.data.listing import Pair

    return [Pair(name, Path(str(state[0]))) for name, state in pictures.items()]


def write_records(out: Path, record: dict[str, object], pictures: dict[str, list[object]]) -> None:
    """Writes what `claim` looks for the next time."""
    write_atomically(out / "predict.json", json.dumps(record, indent=1).encode())
    write_atomically(out / "pictures.json", json.dumps(pictures).encode())


def numbers(text: str, option: str) -> tuple[float, ...]:
    """Positive numbers between commas.

    Raises:
        UsageError: something else.
    """
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(0 < value < 16 for value in found):
        raise UsageError(f"{option} {text}: give numbers above 0 and below 16, as 0.75,1,1.25")
    return found


def predict_command(arguments: argparse.Namespace) -> int:
    """``segue predict``."""
    from segue.models.mask_classifier import MaskClassifier
    from segue.prediction.pictures import find_images
    from segue.processes.cluster import connect
    from segue.processes.surroundings import pick_device
    from segue.processes.tuning import tune
    from segue.weights import load_any

    out = Path(arguments.out)
    pairs = find_images(arguments.images, outside=out)
    if arguments.ray:
        connect(arguments.ray)  # before anything is written
    device = pick_device(arguments.device)
    tune(device)
    model = load_any(arguments.model, device=device)
    if isinstance(model, MaskClassifier):
        account = _predict_panoptic(model, pairs, out, arguments)
    else:
        account = _predict_semantic(model, pairs, out, arguments)
    for reason in account.failed.values():
        print(f"segue predict: {reason}", file=sys.stderr)  # noqa: T201
    counts = {"found": len(pairs), "written": account.written, "there": account.there, "failed": account.failed}
    if arguments.json:
        print(json.dumps({**counts, "out": str(out)}))  # noqa: T201
    else:
        before = f", {account.there} were there" if account.there else ""
        print(  # noqa: T201
            f"{account.written} of {len(pairs)} images written to {out}{before}; "
            f"{len(account.failed)} could not be read"
        )
    return USAGE_EXIT if account.failed else 0


def _write(model: "AnyModel", pairs: "Sequence[Pair]", work: "Work", arguments: argparse.Namespace) -> "Account":
    """All files of all pictures, here or over a cluster, to which other processes run in other folders."""
    from segue.prediction.bulk import over_cluster, write_batch
    from segue.processes.cluster import connect
    from segue.progress import track

    with track("predict", len(pairs), quiet=arguments.json) as tick:
        if arguments.ray:
            ray = connect(arguments.ray)
            source = work.source if work.source.startswith("hf:") else str(Path(work.source).absolute())
            shared = replace(work, source=source, out=work.out.absolute())
            plain = [replace(pair, image=pair.image.absolute()) for pair in pairs]
            return over_cluster(ray, model, plain, shared, device=arguments.device, tick=tick)
        return write_batch(model, pairs, work, tick=tick)


def _predict_panoptic(
    model: "MaskClassifier", pairs: "Sequence[Pair]", out: Path, arguments: argparse.Namespace
) -> "Account":
    """COCO's panoptic PNGs and JSON, and overlays."""
    from segue.panoptic.prediction import write_coco
    from segue.prediction.bulk import Work, target
    from segue.prediction.pictures import Outputs
    from segue.weights import model_fingerprint

    for option in (
        "maps",
        "flips",
        "scales",
        "tile",
        "overlap",
        "calibrate",
        "map",
        "run_lengths",
        "polygons",
        "labelme",
        "cvat",
    ):
        if getattr(arguments, option) != arguments.parser.get_default(option):
            raise UsageError(f"--{option.replace('_', '-')}: a panoptic model cannot; leave the option out")
    overlays = not arguments.no_overlays
    identity: dict[str, object] = {"model": model_fingerprint(arguments.model), "panoptic": True, "overlays": overlays}
    work = Work(arguments.model, out, Outputs(overlays=overlays))

    def made(pair: "Pair") -> Path:
        return target(model, pair, work)

    claim(out, identity, pairs, made)
    with alone_in(out):
        pictures = claim(out, identity, pairs, made)  # again: another command may have been there meanwhile
        write_records(out, identity, pictures)
        account = _write(model, pairs, work, arguments)
        write_coco(known_pairs(pictures), out, model.spec)
    return account


def _predict_semantic(model: "Model", pairs: "Sequence[Pair]", out: Path, arguments: argparse.Namespace) -> "Account":
    """Settings, the temperature, and the pictures."""
    from segue.extras import require
    from segue.prediction.bulk import Work, target
    from segue.prediction.pictures import How, Outputs, write_cvat_task
    from segue.prediction.tiling import Grid
    from segue.weights import model_fingerprint

    if not arguments.calibrate:
        refuse_idle(arguments, "map", without="--calibrate")
    grid = Grid(arguments.tile or Grid.tile, arguments.overlap)
    how = How(arguments.flips, numbers(arguments.scales, "--scales"), 1.0, grid)
    if arguments.calibrate and not how.is_once:
        raise UsageError(
            "--calibrate: the temperature is fitted to single passes; it does not hold for the mean of --flips or "
            "--scales: leave either out"
        )
    if arguments.tile:
        how = replace(how, largest=arguments.tile**2)
    if arguments.polygons or arguments.labelme or arguments.cvat:
        require("rasterio", "tiles")
    outputs = Outputs(
        overlays=not arguments.no_overlays, maps=arguments.maps, run_lengths=arguments.run_lengths,
        polygons=arguments.polygons, labelme=arguments.labelme,
    )  # fmt: skip
    _refuse_scenes(pairs, how, arguments)
    identity = {
        "model": model_fingerprint(arguments.model), "how": json.loads(json.dumps(asdict(how))),
        "calibrate": arguments.calibrate, "map": arguments.map, "outputs": asdict(outputs),
    }  # fmt: skip
    work = Work(arguments.model, out, outputs, how)

    def made(pair: "Pair") -> Path:
        return target(model, pair, work)

    claim(out, identity, pairs, made)
    record: dict[str, object] = dict(identity)
    calibration = _calibration(model, out, arguments) if arguments.calibrate else {}
    with alone_in(out):
        pictures = claim(out, identity, pairs, made)  # again: another command may have been there meanwhile
        if calibration:
            record["calibration"] = calibration = known_calibration(out) or calibration
            how = replace(how, temperature=calibration["temperature"])
        write_records(out, record, pictures)
        account = _write(model, pairs, replace(work, how=how), arguments)
        if arguments.cvat:
            write_cvat_task(known_pairs(pictures), out, model.spec.classes)
    return account


def _calibration(model: "Model", out: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """The temperature of the predictions that are there, or the one that fits the set of ``--calibrate``, and what it
    does there; said too."""
    from segue.calibration import calibrate
    from segue.export.delivery import open_check

    if known := known_calibration(out):
        print(f"segue predict: temperature {known['temperature']:.3f}, that of what is in {out}", file=sys.stderr)  # noqa: T201
        return known
    fitted = calibrate(model, open_check(arguments.calibrate, model, arguments.model, limit=200, mapping=arguments.map))
    print(  # noqa: T201
        f"segue predict: temperature {fitted.temperature:.3f} from {fitted.images} images; calibration error there "
        f"{percent(fitted.before)} % before, {percent(fitted.after)} % after",
        file=sys.stderr,
    )
    return asdict(fitted)


def known_calibration(out: Path) -> dict[str, float]:
    """What the predictions in ``out`` were calibrated with, which holds for all that are added; empty where none are.

    Raises:
        DataError: their record is damaged.
    """
    from segue.records import expecting, read_json

    path = out / "predict.json"
    if not path.is_file():
        return {}
    with expecting(path, "the record of predictions"):
        found = read_json(path, "the record of predictions").get("calibration", {})
        return {**found, "temperature": float(found["temperature"])} if found else {}


def _refuse_scenes(pairs: "Sequence[Pair]", how: "How", arguments: argparse.Namespace) -> None:
    """Looks for scenes before anything is written.

    Raises:
        UsageError: there is one, and the extra ``tiles`` is not installed or labelling tools are to open it.
    """
    from importlib.util import find_spec

    from segue.extras import require
    from segue.prediction.pictures import is_scene

    if find_spec("rasterio") and not (arguments.labelme or arguments.cvat):
        return  # scenes are welcome, and no header need be read
    scene = next((pair.image for pair in pairs if is_scene(pair.image, how.largest)), None)
    if scene is None:
        return
    if arguments.labelme or arguments.cvat:
        option = "--labelme" if arguments.labelme else "--cvat"
        raise UsageError(f"{option}: {scene} is a scene, which these tools do not open; take --polygons")
    try:
        require("rasterio", "tiles")
    except UsageError as error:
        raise UsageError(f"{scene} is a scene, which is read window by window: {error}") from None


def suggest_command(arguments: argparse.Namespace) -> int:
    """``segue suggest``."""
    from dataclasses import asdict

    from segue.data.finding import argument
    from segue.data.layouts import split_address
    from segue.data.layouts.shards import RECORD
    from segue.suggestion import write_suggestion
    from segue.using import suggest

    out = empty_folder(arguments.out)
    if (split_address(arguments.images)[0] / RECORD).is_file():
        raise UsageError(
            f"segue suggest: {arguments.images} is a set in shards, whose pictures cannot be handed out one by one; "
            f"name the folder it was packed from, or bring it back: segue data convert {argument(arguments.images)} DST"
        )
    found = suggest(
        arguments.images, arguments.model, n=arguments.n, skip_bad=arguments.skip_bad, seed=arguments.seed,
        device=arguments.device, quiet=arguments.json,
    )  # fmt: skip
    written = write_suggestion(found, out)
    if arguments.json:
        print(json.dumps({**asdict(found), "out": str(out)}))  # noqa: T201
        return 0
    print("\n".join(found.lines()))  # noqa: T201
    print(f"written to {out}: {', '.join(written)}")  # noqa: T201
    print("label them, then: segue train DATA --out RUN (--allow-missing if others without a mask lie there)")  # noqa: T201
    return 0
