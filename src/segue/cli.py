"""The command line. Parsers are built from plain tables; torch is imported only by a command that needs it."""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from segue import __version__, methods
from segue.config import UsageError, did_you_mean, parse_fields

if TYPE_CHECKING:
    from segue.data.audit import Audit

USAGE_EXIT = 2


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are one line with a hint, and whose exit status for them is 2."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}")


def whole_number(text: str) -> int:
    """An argument that counts something."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None


def parser() -> Parser:
    """Every command with its options; the fields of a method are added by `train_command`."""
    top = Parser(
        prog="segue", allow_abbrev=False, description="From images and few labels to a trained segmentation model."
    )
    top.add_argument("--version", action="version", version=f"segue {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")

    def command(name: str, run: Callable[..., int], text: str) -> Parser:
        added: Parser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.set_defaults(run=run)
        return added

    train = command("train", train_command, "learn from a labelled folder, and unlabelled images if there are any")
    train.usage = "segue train DATA --out RUN [--method NAME] [--compare] [--FIELD VALUE ...]"
    train.add_argument("data", metavar="DATA", help="folder of the labelled set, or FOLDER:split")
    train.add_argument("--out", required=True, metavar="RUN", help="run folder; the same command on it resumes")
    train.add_argument("--method", default="pixel_contrast", help=f"one of {', '.join(methods.names('train'))}")
    train.add_argument(
        "--compare", action="store_true", help="also train the plain method with the same steps and seed"
    )
    _surroundings(train)
    train.epilog = f"Every field of a method is an option: segue train --method {methods.names('train')[0]} --fields"
    train.add_argument("--fields", action="store_true", help="list the fields of the method and stop")

    _check_options(command("check", check_command, "every fault of a data set, with the command that mends it"))

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

    demo = command("demo", demo_command, "the whole path on drawn street scenes, in minutes on a CPU")
    demo.add_argument("--out", default="runs/demo", metavar="RUN")
    demo.add_argument("--steps", type=whole_number, default=None, help="optimiser steps of each arm")
    _surroundings(demo)

    data = command("data", lambda arguments, rest: _no_command(data), "data sets: list, get, convert")
    _data_commands(data)
    return top


def _data_commands(data: Parser) -> None:
    """The commands below ``segue data``."""
    of_data = data.add_subparsers(dest="data_command", metavar="list|get|convert")
    listing = of_data.add_parser("list", help="what can be had, from where, under which terms")
    listing.set_defaults(run=list_command)
    listing.add_argument("--json", action="store_true")
    get = of_data.add_parser("get", help="download a set; SEGUE_MIRROR names a folder or URL to take it from instead")
    get.set_defaults(run=get_command)
    get.add_argument("name")
    get.add_argument("--out", required=True, metavar="FOLDER")
    convert = of_data.add_parser("convert", help="bring a set of any layout into the canonical folder")
    convert.set_defaults(run=convert_command)
    convert.add_argument("source", metavar="SRC", help="the set's folder, or FOLDER:split")
    convert.add_argument("out", metavar="DST", help="an empty or new folder")
    convert.add_argument("--layout", default="auto", help="how the set lies on disk")
    convert.add_argument("--map", default="", help="stored mask values to map, as 77:ignore,255:1")
    convert.add_argument("--json", action="store_true", help="print what was written as JSON")


def _check_options(check: Parser) -> None:
    """The options of ``segue check``."""
    check.add_argument("data", nargs="*", metavar="DATA", help="folders, or FOLDER:split; without labels too")
    check.add_argument("--source", default="", help="labelled set of a pair of domains; with --target")
    check.add_argument("--target", default="", help="set of the domain that matters; with --source")
    check.add_argument("--maps", default="", metavar="FILE", help="write the proposed class map of the domains there")
    check.add_argument("--model", default="", metavar="RUN", help="also compare the classes with a model's")
    check.add_argument("--layout", default="auto", help="how the set lies on disk")
    check.add_argument("--map", default="", help="stored mask values to map, as 77:ignore,255:1")
    check.add_argument("--allow_missing", "--allow-missing", action="store_true", help="images may lack masks")
    check.add_argument("--json", action="store_true", help="print every occurrence as JSON")
    check.add_argument("--html", default="", metavar="FILE", help="write a page with pictures of what was found")
    check.add_argument("--fix", default="", metavar="OUT", help="write a mended copy into a new folder")


def _surroundings(command: Parser) -> None:
    """Options of every training command that are no field of a method."""
    command.add_argument("--seed", type=whole_number, default=0, help="of everything random")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda")
    command.add_argument("--precision", default="auto", help="auto, fp32, bf16")
    command.add_argument(
        "--workers", type=whole_number, default=-1, help="processes that load data; -1 decides by device"
    )
    command.add_argument("--json", action="store_true", help="print the result as JSON")


def _no_command(of: Parser) -> int:
    of.print_help()
    return USAGE_EXIT


def train_command(arguments: argparse.Namespace, rest: list[str]) -> int:
    """``segue train``."""
    from segue.verbs import method_module, run_training

    name = arguments.method
    kind = method_module(name).Config
    prog = f"segue train --method {name}"
    config = parse_fields(kind, ["--help"] if arguments.fields else rest, prog, data=arguments.data)
    out = run_training(
        name,
        config,
        Path(arguments.out),
        compare=arguments.compare,
        seed=arguments.seed,
        device=arguments.device,
        precision=arguments.precision,
        workers=arguments.workers,
        command=arguments.words,
    )
    if arguments.json:
        found = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
        print(json.dumps({"run": str(out), "model": str(out / "model"), "scores": found.get("scores")}))  # noqa: T201
    return 0


CHECK_OPTIONS = [
    *("--source", "--target", "--maps", "--model", "--layout", "--map"),
    *("--allow_missing", "--json", "--html", "--fix"),
]


def check_command(arguments: argparse.Namespace, rest: list[str]) -> int:
    """``segue check``."""
    from segue.data.audit import as_json, audit, audit_domains
    from segue.progress import track

    _refuse_rest(rest, "segue check", CHECK_OPTIONS)
    if bool(arguments.source) != bool(arguments.target):
        raise UsageError("segue check: --source and --target are given together")
    domains = [arguments.source, arguments.target] if arguments.source else []
    addresses = [*arguments.data, *domains]
    if not addresses:
        raise UsageError("segue check: name a data set: segue check DATA, or --source A --target B")
    if arguments.fix and len(addresses) != 1:
        raise UsageError("segue check: --fix mends one set; name one")
    quiet = arguments.json
    audits = [
        audit(
            address, layout=arguments.layout, mapping=arguments.map, allow_missing=arguments.allow_missing,
            track=lambda what, total: track(what, total, quiet=quiet),
        )
        for address in addresses
    ]  # fmt: skip
    further, text = audit_domains(audits[-2], audits[-1], _path(arguments.maps)) if domains else ([], "")
    if arguments.model:
        from segue.data.domains import model_faults
        from segue.weights import describe

        classes = describe(arguments.model)["spec"]["classes"]
        further += [
            f for one in audits if one.listing.classes for f in model_faults(one.listing, arguments.model, classes)
        ]
    if arguments.json:
        print(as_json(audits, further))  # noqa: T201
    else:
        lines = [line for one in audits for line in one.lines()] + [str(finding) for finding in further]
        print("\n".join([*lines, *text.splitlines()]))  # noqa: T201
    if arguments.html:
        from segue.data.page import write_page

        write_page(Path(arguments.html), audits, further)
    if arguments.fix:
        return fix_command(audits[0], Path(arguments.fix), quiet=quiet)
    return USAGE_EXIT if any(one.stops for one in audits) or any(f.stop for f in further) else 0


def _path(text: str) -> Path | None:
    """The path, or None for none."""
    return Path(text) if text else None


def fix_command(found: "Audit", out: Path, *, quiet: bool) -> int:
    """``segue check --fix``: writes the mended copy and checks it again."""
    from segue.data.audit import audit
    from segue.data.convert import convert
    from segue.data.mend import mended, reader
    from segue.progress import track

    if not found.listing.classes:
        raise UsageError(
            f"{found.address} has no labels, so there is no labelled copy to write; name the set's own folder"
        )
    mend = mended(found.listing, found.findings, found.facts)
    with track("write", sum(map(len, mend.listing.splits.values())), quiet=quiet) as tick:
        written = convert(mend.listing, out, read=reader(mend.listing), ranges=mend.ranges, tick=tick)
    again = audit(str(out), layout="folder", mapping="", allow_missing=False, track=lambda *_: track("", 0, quiet=True))
    lines = [f"mended: {act}" for act in mend.acts]
    lines += [
        f"left out of the copy, {why}: {', '.join(files[:3])} ({len(files)})" for why, files in mend.dropped.items()
    ]
    lines += left_out_lines(out)
    dropped = sum(map(len, mend.dropped.values()))
    lines.append(f"{written['written']} pairs written to {out}, {dropped + written['left_out']} files left out")
    lines += (
        again.lines() if again.stops else [f"the copy has no fault that stops training: segue train {out} --out RUN"]
    )
    print("\n".join(lines), file=sys.stderr if quiet else sys.stdout)
    return USAGE_EXIT if again.stops else 0


def left_out_lines(out: Path) -> list[str]:
    """The files that a conversion into ``out`` left out, each with its reason."""
    from segue.data.finding import printable

    left_out = json.loads((out / "dataset.json").read_text(encoding="utf-8"))["left_out"]
    return [printable(f"left out: {file}: {reason}") for file, reason in left_out.items()]


def convert_command(arguments: argparse.Namespace, rest: list[str]) -> int:
    """``segue data convert``."""
    from segue.data.convert import convert
    from segue.data.layouts import open_listing
    from segue.data.training import parse_map
    from segue.progress import track

    _refuse_rest(rest, "segue data convert", ["--layout", "--map", "--json"])
    listing = open_listing(arguments.source, arguments.layout)
    stops = [str(fault) for fault in listing.faults if fault.stop]
    if stops:
        raise UsageError("\n".join(stops))
    listing = listing.extended(parse_map(arguments.map, listing))
    total = sum(map(len, listing.splits.values()))
    with track("convert", total, quiet=arguments.json) as tick:
        written = convert(listing, Path(arguments.out), tick=tick)
    if arguments.json:
        print(json.dumps({**written, "out": arguments.out}))  # noqa: T201
    else:
        told = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in written.items())
        print(f"{arguments.source} ({listing.layout}) to {arguments.out}: {told}")  # noqa: T201
        for line in left_out_lines(Path(arguments.out)):
            print(line, file=sys.stderr)  # noqa: T201
    return USAGE_EXIT if written["left_out"] else 0


def evaluate_command(arguments: argparse.Namespace, rest: list[str]) -> int:
    """``segue evaluate``."""
    from segue.verbs import evaluate

    _refuse_rest(rest, "segue evaluate", ["--data", "--split", "--layout", "--map", "--device", "--json"])
    measured = evaluate(
        arguments.model, arguments.data, split=arguments.split, layout=arguments.layout,
        mapping=arguments.map, device=arguments.device,
    )  # fmt: skip
    if arguments.json:
        print(json.dumps(measured.plain()))  # noqa: T201
        return 0
    from rich.console import Console
    from rich.table import Table

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


def percent(value: float) -> str:
    """A share in per cent; ``–`` where there is none."""
    return "–" if math.isnan(value) else f"{100 * value:.1f}"


def predict_command(arguments: argparse.Namespace, rest: list[str]) -> int:
    """``segue predict``."""
    from segue.prediction import find_images, write_predictions
    from segue.progress import track
    from segue.tuning import tune
    from segue.verbs import pick_device
    from segue.weights import load_model

    _refuse_rest(rest, "segue predict", ["--out", "--maps", "--no-overlays", "--device", "--json"])
    out = Path(arguments.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {out} is not an empty folder; name another")
    pairs = find_images(arguments.images)
    device = pick_device(arguments.device)
    tune(device)
    model = load_model(arguments.model, device=device)
    with track("predict", len(pairs), quiet=arguments.json) as tick:
        written, failed = write_predictions(
            model, pairs, out, overlays=not arguments.no_overlays, maps=arguments.maps, tick=tick
        )
    for reason in failed.values():
        print(f"segue predict: {reason}", file=sys.stderr)  # noqa: T201
    if arguments.json:
        print(json.dumps({"found": len(pairs), "written": written, "failed": failed, "out": str(out)}))  # noqa: T201
    else:
        print(f"{written} of {len(pairs)} images written to {out}; {len(failed)} could not be read")  # noqa: T201
    return USAGE_EXIT if failed else 0


def demo_command(arguments: argparse.Namespace, rest: list[str]) -> int:
    """``segue demo``."""
    from segue.demo import run_demo

    _refuse_rest(rest, "segue demo", ["--out", "--steps", "--seed", "--device", "--precision", "--workers", "--json"])
    scores = run_demo(
        Path(arguments.out), steps=arguments.steps, seed=arguments.seed, device=arguments.device,
        precision=arguments.precision, workers=arguments.workers,
    )  # fmt: skip
    if arguments.json:
        print(json.dumps(scores))  # noqa: T201
    return 0


def list_command(arguments: argparse.Namespace, rest: list[str]) -> int:
    """``segue data list``."""
    from segue.data.catalogue import catalogue
    from segue.data.fetch import in_mirror

    _refuse_rest(rest, "segue data list", ["--json"])
    mirror = os.environ.get("SEGUE_MIRROR", "")
    names = in_mirror(mirror) if mirror else ()
    rows = [
        {"name": e.name, "what": e.what, "licence": e.licence, "home": e.home, "in_mirror": e.name in names}
        for e in catalogue()
    ]
    rows += [
        {"name": name, "what": "a set of the mirror", "licence": "see its README", "home": mirror, "in_mirror": True}
        for name in names
        if name not in {row["name"] for row in rows}
    ]
    if arguments.json:
        print(json.dumps(rows))  # noqa: T201
        return 0
    for row in rows:
        there = "  (in the mirror)" if row["in_mirror"] else ""
        print(f"{row['name']}{there}\n    {row['what']}\n    licence: {row['licence']}\n    {row['home']}")  # noqa: T201
    return 0


def get_command(arguments: argparse.Namespace, rest: list[str]) -> int:
    """``segue data get``."""
    from segue.data.fetch import get

    _refuse_rest(rest, "segue data get", ["--out"])
    path = get(arguments.name, Path(arguments.out))
    print(f"{arguments.name} is in {path}")  # noqa: T201
    return 0


def _refuse_rest(rest: list[str], prog: str, known: list[str]) -> None:
    """Unknown options of a command whose options are all known."""
    if rest:
        raise UsageError(f"{prog}: unknown {rest[0]!r}{did_you_mean(rest[0], known)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; the exit status."""
    from segue.data.sample import DataError

    arguments = list(sys.argv[1:] if argv is None else argv)
    top = parser()
    try:
        commands = next(iter(a.choices for a in top._actions if isinstance(a, argparse._SubParsersAction)))
        if arguments and not arguments[0].startswith("-") and arguments[0] not in (commands or {}):
            raise UsageError(
                f"segue: unknown command {arguments[0]!r}{did_you_mean(arguments[0], list(commands or {}))}"
            )
        known, rest = top.parse_known_args(arguments)
        known.words = arguments
        if known.command is None:
            return _no_command(top)
        return int(known.run(known, rest))
    except (UsageError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return USAGE_EXIT
    except BrokenPipeError:  # whoever read the output has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  nothing more can be flushed to the old one
        return 0


if __name__ == "__main__":
    raise SystemExit(main())
