"""The commands about data sets: ``segue check`` and ``segue data``."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from segue.cli.parsing import USAGE_EXIT, Command, Parser, refuse_idle, whole_number
from segue.errors import UsageError

if TYPE_CHECKING:
    from segue.data.check.audit import Audit
    from segue.data.listing import Listing


def add_commands(command: Command) -> None:
    """Adds them to the parser."""
    _check_options(command("check", check_command, "every fault of a data set, with the command that mends it"))
    data = command("data", lambda arguments: print_help(data), "data sets: list, get, convert, shard")
    _data_commands(data)


def print_help(of: Parser) -> int:
    """What there is below a command that needs another word."""
    of.print_help()
    return USAGE_EXIT


def _data_commands(data: Parser) -> None:
    """The commands below ``segue data``."""
    of_data = data.add_subparsers(dest="data_command", metavar="list|get|convert|shard|increments")
    listing = of_data.add_parser("list", help="what can be had, from where, under which terms")
    listing.set_defaults(run=list_command, parser=listing)
    listing.add_argument("--json", action="store_true")
    get = of_data.add_parser("get", help="download a set; SEGUE_MIRROR names a folder or URL to take it from instead")
    get.set_defaults(run=get_command, parser=get)
    get.add_argument("name")
    get.add_argument("--out", required=True, metavar="FOLDER")
    increments = of_data.add_parser(
        "increments", help="a set as increments of classes, to measure what segue extend forgets"
    )
    increments.set_defaults(run=increments_command, parser=increments)
    increments.add_argument("source", metavar="SRC", help="the set's folder")
    increments.add_argument("out", metavar="DST", help="an empty or new folder")
    increments.add_argument("--classes", default="", metavar="B-I", help="B classes first, then I in each increment")
    increments.add_argument("--order", default="", metavar="SEED", help="shuffle the classes; as they are if absent")
    increments.add_argument(
        "--protocol", default="", help="which images an increment has: overlap (if absent), disjoint"
    )
    increments.add_argument("--plan", default="", metavar="FILE", help="a plan written before, in place of these three")
    increments.add_argument("--by_region", "--by-region", action="store_true", help="connected regions are objects")
    increments.add_argument("--layout", default="auto", help="how the set lies on disk")
    convert = of_data.add_parser("convert", help="bring a set of any layout into the canonical folder")
    convert.set_defaults(run=convert_command, parser=convert)
    convert.add_argument("source", metavar="SRC", help="the set's folder, or FOLDER:split")
    convert.add_argument("out", metavar="DST", help="an empty or new folder")
    convert.add_argument("--layout", default="auto", help="how the set lies on disk")
    convert.add_argument("--map", default="", help="stored mask values to map, as 77:ignore,255:1")
    convert.add_argument("--json", action="store_true", help="print what was written as JSON")
    shard = of_data.add_parser("shard", help="pack a set into tar shards, which every command reads like any other set")
    shard.set_defaults(run=shard_command, parser=shard)
    shard.add_argument("data", metavar="DATA", help="the set's folder, or FOLDER:split; images without labels too")
    shard.add_argument("--out", required=True, metavar="SHARDS", help="an empty or new folder")
    shard.add_argument("--layout", default="auto", help="how the set lies on disk")
    shard.add_argument("--shard-mb", type=whole_number, default=256, help="megabytes after which a shard ends")
    shard.add_argument("--json", action="store_true", help="print what was written as JSON")


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
    check.add_argument("--skip_bad", "--skip-bad", action="store_true", help="go on without pairs that are unreadable")
    check.add_argument("--json", action="store_true", help="print every occurrence as JSON")
    check.add_argument("--html", default="", metavar="FILE", help="write a page with pictures of what was found")
    check.add_argument("--fix", default="", metavar="OUT", help="write a mended copy into a new folder")


def check_command(arguments: argparse.Namespace) -> int:
    """``segue check``."""
    from segue.data.check.audit import as_json, audit, audit_domains
    from segue.progress import track

    if bool(arguments.source) != bool(arguments.target):
        raise UsageError("segue check: --source and --target are given together")
    domains = [arguments.source, arguments.target] if arguments.source else []
    if not domains:
        refuse_idle(arguments, "maps", without="--source and --target")
    addresses = [*arguments.data, *domains]
    if not addresses:
        raise UsageError("segue check: name a data set: segue check DATA, or --source A --target B")
    if arguments.fix and len(addresses) != 1:
        raise UsageError("segue check: --fix mends one set; name one")
    quiet = arguments.json
    audits = [
        audit(
            address, layout=arguments.layout, mapping=arguments.map, allow_missing=arguments.allow_missing,
            skip_bad=arguments.skip_bad, track=lambda what, total: track(what, total, quiet=quiet),
        )
        for address in addresses
    ]  # fmt: skip
    further, text = audit_domains(audits[-2], audits[-1], _path(arguments.maps)) if domains else ([], "")
    if arguments.model:
        from segue.data.check.domains import model_faults
        from segue.weights import describe

        described = describe(arguments.model)
        classes = described["spec"].get("classes")
        if classes is None:
            raise UsageError(f"segue check: --model {arguments.model} is an encoder, which knows no classes")
        for one in audits:
            if one.listing.classes:
                further += model_faults(one.listing, arguments.model, classes, described["kind"])
    if arguments.json:
        print(as_json(audits, further))  # noqa: T201
    else:
        lines = [line for one in audits for line in one.lines()] + [str(finding) for finding in further]
        print("\n".join([*lines, *text.splitlines()]))  # noqa: T201
    if arguments.html:
        from segue.data.check.page import write_page

        write_page(Path(arguments.html), audits, further)
    if arguments.fix:
        return fix_command(audits[0], Path(arguments.fix), allow_missing=arguments.allow_missing, quiet=quiet)
    return USAGE_EXIT if any(one.stops for one in audits) or any(f.stop for f in further) else 0


def _path(text: str) -> Path | None:
    """The path, or None for none."""
    return Path(text) if text else None


def fix_command(found: "Audit", out: Path, *, allow_missing: bool, quiet: bool) -> int:
    """``segue check --fix``: writes the mended copy and checks it again."""
    from segue.data.check.audit import audit
    from segue.data.check.mend import fit_instances, mended, reader
    from segue.data.convert import convert
    from segue.data.finding import argument, reading
    from segue.progress import track

    if not found.listing.classes:
        raise UsageError(
            f"{found.address} has no labels, so there is no labelled copy to write; name the set's own folder"
        )
    mend = mended(found.listing, found.findings, found.facts)
    with track("write", count_of(mend.listing), quiet=quiet) as tick:
        written = convert(mend.listing, out, read=reader(mend.listing), fit=fit_instances, tick=tick)
    again = audit(
        str(out), layout="folder", mapping="", allow_missing=allow_missing, track=lambda *_: track("", 0, quiet=True)
    )
    lines = [f"mended: {act}" for act in mend.acts]
    lines += [
        f"left out of the copy, {why}: {', '.join(files[:3])} ({len(files)})" for why, files in mend.dropped.items()
    ]
    lines += left_out_lines(out)
    dropped = sum(map(len, mend.dropped.values()))
    lines.append(f"{written['written']} pairs written to {out}, {dropped + written['left_out']} files left out")
    allowed = reading("auto", "", allow_missing=allow_missing)
    sound = f"the copy has no fault that stops training: segue train {argument(out)} --out RUN{allowed}"
    lines += again.lines() if again.stops else [sound]
    print("\n".join(lines), file=sys.stderr if quiet else sys.stdout)
    return USAGE_EXIT if again.stops else 0


def count_of(listing: "Listing") -> int:
    """Pairs of all splits and images of none."""
    return sum(map(len, listing.splits.values())) + len(listing.unnamed)


def left_out_lines(out: Path) -> list[str]:
    """The files that a conversion into ``out`` left out, each with its reason."""
    from segue.data.finding import printable

    left_out = json.loads((out / "dataset.json").read_text(encoding="utf-8"))["left_out"]
    return [printable(f"left out: {file}: {reason}") for file, reason in left_out.items()]


def convert_command(arguments: argparse.Namespace) -> int:
    """``segue data convert``."""
    from segue.data.convert import convert, notes
    from segue.data.finding import reading
    from segue.data.layouts import open_listing
    from segue.data.stored_values import parse_map
    from segue.progress import track

    listing = open_listing(arguments.source, arguments.layout)
    stops = [str(fault) for fault in listing.faults if fault.stop]
    if stops:
        raise UsageError("\n".join(stops))
    listing = listing.extended(parse_map(arguments.map, listing))
    with track("convert", count_of(listing), quiet=arguments.json) as tick:
        written = convert(
            listing, Path(arguments.out), options=reading(arguments.layout, arguments.map), tick=tick
        )  # fmt: skip
    for note in notes(listing):
        print(f"note: {note}", file=sys.stderr)  # noqa: T201
    if arguments.json:
        print(json.dumps({**written, "out": arguments.out, "notes": notes(listing)}))  # noqa: T201
    else:
        told = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in written.items())
        print(f"{arguments.source} ({listing.layout}) to {arguments.out}: {told}")  # noqa: T201
        for line in left_out_lines(Path(arguments.out)):
            print(line, file=sys.stderr)  # noqa: T201
    return USAGE_EXIT if written["left_out"] else 0


def shard_command(arguments: argparse.Namespace) -> int:
    """``segue data shard``."""
    from segue.data.check.audit import open_any
    from segue.data.finding import reading
    from segue.data.layouts import open_images, split_address
    from segue.data.sharding import write_shards
    from segue.progress import track

    if arguments.shard_mb < 1:
        raise UsageError(f"--shard-mb {arguments.shard_mb}: give at least 1")
    listing = open_any(arguments.data, arguments.layout)
    is_whole = listing.layout == "folder" and split_address(arguments.data)[1] is None
    further = open_images(arguments.data) if is_whole else ()
    total = len({pair.image for split in (*listing.splits.values(), further) for pair in split})
    with track("shard", total, quiet=arguments.json) as tick:
        written = write_shards(
            listing, Path(arguments.out), further=further, size=arguments.shard_mb << 20,
            options=reading(arguments.layout, ""), tick=tick,
        )  # fmt: skip
    if arguments.json:
        print(json.dumps({**written, "out": arguments.out}))  # noqa: T201
    else:
        told = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in written.items())
        print(f"{arguments.data} ({listing.layout}) to {arguments.out}: {told}")  # noqa: T201
    return 0


def increments_command(arguments: argparse.Namespace) -> int:
    """``segue data increments``."""
    from segue.data.increments import Plan, contents, plan_increments, training_pairs, write_increments
    from segue.data.layouts import open_listing
    from segue.data.panoptic import Annotation
    from segue.progress import track

    for option in ("classes", "order", "protocol"):
        if arguments.plan and getattr(arguments, option):
            raise UsageError(f"segue data increments: --plan says what --{option} would; leave one of them out")
    listing = open_listing(arguments.source, arguments.layout)
    annotation = Annotation(listing, arguments.by_region)
    if arguments.plan:
        plan = Plan.read(Path(arguments.plan))
    else:
        base, more = _two_numbers(arguments.classes)
        order = int(arguments.order) if arguments.order.isdecimal() else None
        if arguments.order and order is None:
            raise UsageError(f"segue data increments: --order {arguments.order}: give a whole number")
        with track("read", len(training_pairs(listing)), quiet=False) as tick:
            plan = plan_increments(
                listing,
                annotation,
                base=base,
                more=more,
                order=order,
                protocol=arguments.protocol or "overlap",
                tick=tick,
            )
    total = sum(len(pairs) for splits in contents(listing, plan) for pairs in splits.values())
    with track("write", total, quiet=False) as tick:
        folders = write_increments(listing, annotation, plan, Path(arguments.out), tick=tick)
    print("\n".join([*plan.lines(), f"written to {', '.join(map(str, folders))}"]))  # noqa: T201
    return 0


def _two_numbers(text: str) -> tuple[int, int]:
    """``B-I`` as two counts."""
    base, dash, more = text.partition("-")
    if not dash or not base.isdecimal() or not more.isdecimal():
        raise UsageError(f"segue data increments: --classes {text!r}: give two counts, as 8-3, or --plan FILE")
    return int(base), int(more)


def list_command(arguments: argparse.Namespace) -> int:
    """``segue data list``."""
    from segue.data.catalogue import catalogue
    from segue.data.fetch import in_mirror

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


def get_command(arguments: argparse.Namespace) -> int:
    """``segue data get``."""
    from segue.data.fetch import get

    path = get(arguments.name, Path(arguments.out))
    print(f"{arguments.name} is in {path}")  # noqa: T201
    return 0
