"""The commands that measure and compare: ``segue bench``, ``segue compare`` and ``segue doctor``."""

import argparse
import json
import sys
from pathlib import Path

from segue.cli.parsing import USAGE_EXIT, Command, empty_folder, whole_number
from segue.errors import UsageError
from segue.text import percent


def add_commands(command: Command) -> None:
    """Adds them to the parser."""
    bench = command("bench", bench_command, "latency, throughput and memory of models on this machine")
    bench.add_argument("models", nargs="+", metavar="MODEL", help="runs, .onnx or .xml files")
    bench.add_argument("--sizes", default="512x512", help="widths and heights, as 512x512,1024x512")
    bench.add_argument("--threads", default="1", help="numbers of threads, as 1,2")
    bench.add_argument("--rounds", type=whole_number, default=30, help="calls of each candidate")
    bench.add_argument("--compiled", action="store_true", help="also torch.compile, which takes a minute to start")
    bench.add_argument("--openvino", action="store_true", help="also run .onnx files in OpenVINO, in f32 and bf16")
    bench.add_argument("--out", default="", metavar="FOLDER", help="a new or empty folder for bench.json and bench.svg")
    bench.add_argument("--json", action="store_true", help="print everything as JSON")

    compare = command("compare", compare_command, "runs side by side; with --images, where two models disagree on them")
    compare.add_argument("models", nargs="+", metavar="RUN", help="finished runs; with --images two models of any kind")
    compare.add_argument("--images", nargs="+", default=[], metavar="IMAGES", help="files, folders or globs")
    compare.add_argument("--out", required=True, metavar="FOLDER", help="a new or empty folder, for comparison.html")
    compare.add_argument("--device", default="auto")
    compare.add_argument("--json", action="store_true", help="print everything as JSON, with --images")

    doctor = command("doctor", doctor_command, "what this machine and installation can do")
    doctor.add_argument("--out", default=".", metavar="FOLDER", help="where runs will go")
    doctor.add_argument("--json", action="store_true", help="print everything as JSON")


def counts(text: str, option: str) -> list[int]:
    """Whole numbers above 0 between commas.

    Raises:
        UsageError: something else.
    """
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"{option} {text}: give whole numbers above 0, as 1,2")
    return [int(part) for part in parts]


def bench_command(arguments: argparse.Namespace) -> int:
    """``segue bench``."""
    from segue.bench import candidates, known_accuracy, machine, measure, write_picture
    from segue.disk import write_atomically
    from segue.progress import track

    sizes = []
    for part in arguments.sizes.split(","):
        sides = part.split("x")
        if len(sides) != 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
            raise UsageError(f"--sizes {arguments.sizes}: give widths and heights, as 512x512,1024x512")
        sizes.append((int(sides[1]), int(sides[0])))
    threads = counts(arguments.threads, "--threads")
    if arguments.rounds < 1:
        raise UsageError(f"--rounds {arguments.rounds}: at least one call is needed")
    out = empty_folder(arguments.out) if arguments.out else None
    rows = candidates(
        arguments.models, sizes=sizes, threads=threads, compiled=arguments.compiled, openvino=arguments.openvino
    )
    with track("bench", arguments.rounds, quiet=arguments.json) as tick:
        measure(rows, rounds=arguments.rounds, tick=tick)
    accuracy = {model: value for model in arguments.models if (value := known_accuracy(model)) is not None}
    plain = [row.plain() for row in rows]
    result = {"machine": machine(), "rounds": arguments.rounds, "accuracy": accuracy, "rows": plain}
    if out:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "bench.json", json.dumps(result, indent=1).encode())
        write_picture(out / "bench.svg", plain, accuracy)
    if arguments.json:
        print(json.dumps(result))  # noqa: T201
    else:
        _print_table(result)
    return USAGE_EXIT if any(row.failure for row in rows) else 0


def _print_table(result: dict[str, object]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title=f"{result['machine']}; {result['rounds']} calls each, in random order")
    for column in ("model", "runtime", "threads", "size", "p50 ms", "p95 ms", "images/s", "MiB"):
        table.add_column(column, justify="left" if column in ("model", "runtime") else "right")
    rows = result["rows"]
    assert isinstance(rows, list)
    for row in rows:
        size = f"{row['width']}x{row['height']}"
        if row["failure"]:
            table.add_row(row["model"], row["runtime"], str(row["threads"]), size, "failed", row["failure"], "", "")
            continue
        memory = "–" if row["memory"] is None else f"{row['memory']:.0f}"
        table.add_row(
            row["model"], row["runtime"], str(row["threads"]), size, f"{row['p50_ms']:.1f}", f"{row['p95_ms']:.1f}",
            f"{row['per_second']:.1f}", memory,
        )  # fmt: skip
    console.print(table)


def compare_command(arguments: argparse.Namespace) -> int:
    """``segue compare``."""
    from segue.disk import write_atomically
    from segue.report.comparison import comparison_page, read_entries

    if arguments.images:
        return _compare_on_images(arguments)
    out = empty_folder(arguments.out)
    entries = read_entries(arguments.models)
    content = comparison_page(entries)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "comparison.html", content.encode())
    if arguments.json:
        scores = {entry.name: entry.arm.evaluation.get("scores", {}) for entry in entries}
        print(json.dumps({"out": str(out / "comparison.html"), "scores": scores}))  # noqa: T201
    else:
        print(f"look at: {out / 'comparison.html'}")  # noqa: T201
    return 0


def _compare_on_images(arguments: argparse.Namespace) -> int:
    """Where two models disagree on images without labels."""
    from segue.disagreement import compare_models
    from segue.prediction.pictures import find_images
    from segue.processes.surroundings import pick_device
    from segue.processes.tuning import tune
    from segue.progress import track
    from segue.weights import load_any

    if len(arguments.models) != 2:
        raise UsageError("segue compare --images compares two models: segue compare OLD NEW --images IMAGES --out OUT")
    out, pairs, device = empty_folder(arguments.out), find_images(arguments.images), pick_device(arguments.device)
    tune(device)
    old, new = (load_any(source, device=device) for source in arguments.models)
    with track("compare", len(pairs), quiet=arguments.json) as tick:
        found = compare_models(old, new, pairs, out, tick=tick)
    for reason in found.failed.values():
        print(f"segue compare: {reason}", file=sys.stderr)  # noqa: T201
    if arguments.json:
        print(json.dumps({**found.plain(), "out": str(out)}))  # noqa: T201
    else:
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        table = Table(title=escape(f"{' and '.join(arguments.models)} on {len(found.by_image)} images"))
        table.add_column("class")
        for column in ("pixels, old", "pixels, new", "kept"):
            table.add_column(column, justify="right")
        for row in found.rows():
            kept = percent(row["kept"])
            table.add_row(escape(row["name"]), f"{row['old']:,}", f"{row['new']:,}", kept)
        console = Console()
        console.print(table)
        told = f"they disagree on {percent(found.share())} % of the pixels; look at: {out / 'comparison.html'}"
        console.print(told, highlight=False, soft_wrap=True)
    return USAGE_EXIT if found.failed else 0


def doctor_command(arguments: argparse.Namespace) -> int:
    """``segue doctor``."""
    from dataclasses import asdict

    from segue.doctor import examine

    lines = examine(Path(arguments.out))
    if arguments.json:
        print(json.dumps([asdict(line) for line in lines]))  # noqa: T201
    else:
        for line in lines:
            sign = "✘" if line.is_fault else "!" if line.advice else "✔"
            print(f"{sign} {line.name:<28} {line.value}" + (f"  ({line.advice})" if line.advice else ""))  # noqa: T201
    return USAGE_EXIT if any(line.is_fault for line in lines) else 0
