"""The commands that train: pretrain, train, adapt, extend, compress, demo."""

import argparse
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from segue import methods
from segue.cli.parsing import GATE_EXIT, Command, add_fields, add_seeds, add_surroundings, whole_number
from segue.config import parse_fields
from segue.errors import UsageError

if TYPE_CHECKING:
    from segue.processes.surroundings import Surroundings

TASKS = {"semantic": "pixel_contrast", "panoptic": "mask_classification"}  # the method of each


def add_commands(command: Command) -> None:
    """Adds them to the parser."""
    train = command("train", train_command, "learn from a labelled folder, and unlabelled images if there are any")
    train.usage = "segue train DATA --out RUN [--method NAME] [--compare] [--FIELD VALUE ...]"
    train.add_argument("data", metavar="DATA", help="folder of the labelled set, or FOLDER:split")
    train.add_argument("--out", required=True, metavar="RUN", help="run folder; the same command on it resumes")
    train.add_argument(
        "--task", default="", choices=sorted(TASKS), help="what the model is to tell; semantic if absent"
    )
    train.add_argument(
        "--method", default="", help=f"one of {', '.join(methods.names('train'))}; by the task if absent"
    )
    train.add_argument(
        "--compare", action="store_true", help="also train the plain method with the same steps and seed"
    )
    add_seeds(train)
    add_surroundings(train, divisible=True)
    train.epilog = f"Every field of a method is an option: segue train --method {TASKS['semantic']} --fields"
    add_fields(train)

    _add_extend(command)
    _add_compress(command)

    adapt = command("adapt", adapt_command, "learn from labels of one domain for images of another")
    adapt.usage = "segue adapt --source LABELLED --target IMAGES --out RUN [--val LABELLED] [--FIELD VALUE ...]"
    adapt.add_argument("--source", nargs="+", default=[], metavar="DATA", help="labelled folders, or FOLDER:split")
    adapt.add_argument("--target", default="", metavar="IMAGES", help="images of the domain that matters")
    adapt.add_argument("--val", default="", metavar="DATA", help="labelled folder of that domain, to measure on")
    adapt.add_argument("--out", required=True, metavar="RUN", help="run folder; the same command on it resumes")
    adapt.add_argument("--method", default="mean_teacher", help=f"one of {', '.join(methods.names('adapt'))}")
    add_seeds(adapt)
    add_surroundings(adapt, divisible=True)
    adapt.epilog = "Exit status 3: the adapted model lost to source-only by more than --limit; that one was kept."
    add_fields(adapt)

    pretrain = command("pretrain", pretrain_command, "learn an encoder from images without labels")
    pretrain.usage = "segue pretrain IMAGES --out RUN [--FIELD VALUE ...]"
    pretrain.add_argument("images", metavar="IMAGES", help="folder of images, or FOLDER:split; masks are left alone")
    pretrain.add_argument("--out", required=True, metavar="RUN", help="run folder; the same command on it resumes")
    add_surroundings(pretrain, divisible=True)
    pretrain.epilog = "Every field of the method is an option: --fields lists them. Then: segue train DATA --init RUN"
    add_fields(pretrain)

    demo = command("demo", demo_command, "the whole path on drawn street scenes, in minutes on a CPU")
    demo.add_argument("--out", default="runs/demo", metavar="RUN")
    demo.add_argument("--steps", type=whole_number, default=None, help="optimiser steps of each arm")
    add_surroundings(demo)


def _add_compress(command: Command) -> None:
    compress = command("compress", compress_command, "search a small decoder under a teacher's guidance, and train it")
    compress.usage = (
        "segue compress TEACHER --data DATA --out RUN [--target 25ms@512x512] [--budget 3h] [--FIELD VALUE ...]"
    )
    compress.add_argument("teacher", metavar="TEACHER", help="run or model folder of a semantic model")
    compress.add_argument("--data", required=True, metavar="DATA", help="folder of the labelled set, or FOLDER:split")
    compress.add_argument("--out", required=True, metavar="RUN", help="run folder; the same command on it resumes")
    compress.add_argument("--method", default="compact_search", help=f"one of {', '.join(methods.names('compress'))}")
    compress.add_argument(
        "--compare", action="store_true", help="also train DeepLabV3+ on the same encoder with the same steps and seed"
    )
    compress.add_argument(
        "--ray", nargs="?", const="auto", default="", metavar="ADDRESS",
        help="try candidates over a Ray cluster, host:port; without an address that of this machine",
    )  # fmt: skip
    compress.add_argument("--budget", default="", help="CPU time of the search, as 90s, 20m or 3h")
    add_surroundings(compress)
    add_fields(compress)


def _add_extend(command: Command) -> None:
    """``segue extend`` with its options."""
    extend = command("extend", extend_command, "teach a model new classes without its old data")
    extend.usage = "segue extend MODEL --new DATA --out RUN [--keep-val OLD] [--max-forget 1.0] [--FIELD VALUE ...]"
    extend.add_argument("model", metavar="MODEL", help="run or model folder; it is not touched")
    extend.add_argument("--new", required=True, metavar="DATA", help="folder of the set that shows the new classes")
    extend.add_argument("--out", required=True, metavar="RUN", help="run folder; the same command on it resumes")
    extend.add_argument("--task", default="panoptic", choices=sorted(TASKS), help="what the model tells")
    extend.add_argument(
        "--method", default="", help=f"one of {', '.join(methods.names('extend'))}; by the task if absent"
    )
    add_surroundings(extend, divisible=True)
    add_fields(extend)


def field_options(arguments: argparse.Namespace, *own: str) -> list[str]:
    """Options that set a method's fields: the command's own, then what was given; ``--help`` lists the fields.

    Raises:
        UsageError: a field that the command has set is given by its name too.
    """
    values = {name: value for name, _, value in (option.partition("=") for option in own)}
    for word in arguments.rest:
        option = f"--{word.partition('=')[0][2:].replace('-', '_')}" if word.startswith("--") else ""
        if option in values and not arguments.fields:
            raise UsageError(
                f"{arguments.parser.prog}: {option} is given twice, the command itself says {values[option]}; "
                f"leave {option} out"
            )
    file = [f"--config={arguments.config}"] if arguments.config else []
    return ["--help"] if arguments.fields else [*file, *own, *arguments.rest]


def train_command(arguments: argparse.Namespace) -> int:
    """``segue train``."""
    from segue.launch import method_module
    from segue.launch.seeds import with_seeds
    from segue.verbs import run_training

    name = arguments.method or TASKS[arguments.task or "semantic"]
    trains = "panoptic" if name == TASKS["panoptic"] else "semantic"
    if arguments.task not in ("", trains):
        raise UsageError(f"--task {arguments.task}: {name} trains {trains} models; leave --method or --task out")
    kind = method_module(name, "train").Config
    prog = f"segue train --method {name}"
    config = parse_fields(kind, field_options(arguments), prog, data=arguments.data)
    out = with_seeds(
        lambda out, around: run_training(name, config, out, around, compare=arguments.compare),
        Path(arguments.out), surroundings(arguments), arguments.seeds,
    )  # fmt: skip
    if arguments.json:
        print_result(out)
    return 0


def extend_command(arguments: argparse.Namespace) -> int:
    """``segue extend``; `GATE_EXIT` where the model forgot too much."""
    from segue.launch import method_module
    from segue.verbs import run_extension

    name = arguments.method or f"incremental_{arguments.task}"
    kind = method_module(name, "extend").Config
    given = field_options(arguments, f"--model={arguments.model}")
    config = parse_fields(kind, given, f"segue extend --method {name}", data=arguments.new)
    out = run_extension(name, config, Path(arguments.out), surroundings(arguments))
    return report_decision(out, as_json=arguments.json)


def compress_command(arguments: argparse.Namespace) -> int:
    """``segue compress``."""
    from segue.launch import method_module
    from segue.verbs import run_compression

    name = arguments.method
    kind = method_module(name, "compress").Config
    budget = [f"--minutes={minutes(arguments.budget)}"] if arguments.budget else []
    cluster = [f"--ray={arguments.ray}"] if arguments.ray else []
    device, threads = device_and_threads(arguments.device)
    arguments.device = device
    given = field_options(arguments, f"--teacher={arguments.teacher}", *threads, *budget, *cluster)
    config = parse_fields(kind, given, f"segue compress --method {name}", data=arguments.data)
    out = run_compression(name, config, Path(arguments.out), surroundings(arguments), compare=arguments.compare)
    if arguments.json:
        print_result(out)
    return 0


def adapt_command(arguments: argparse.Namespace) -> int:
    """``segue adapt``; `GATE_EXIT` where adaptation did harm, with any of several seeds."""
    from segue.launch import method_module
    from segue.launch.seeds import with_seeds
    from segue.verbs import run_adaptation

    name = arguments.method
    kind = method_module(name, "adapt").Config
    given = {"source": arguments.source, "target": arguments.target, "val": arguments.val}
    options = [f"--{option}={json.dumps(v) if option == 'source' else v}" for option, v in given.items() if v]
    config = parse_fields(kind, field_options(arguments, *options), f"segue adapt --method {name}")
    out = with_seeds(
        lambda out, around: run_adaptation(name, config, out, around),
        Path(arguments.out), surroundings(arguments), arguments.seeds,
    )  # fmt: skip
    if arguments.seeds == 1:
        return report_decision(out, as_json=arguments.json)
    runs = json.loads((out / "seeds.json").read_text(encoding="utf-8"))["runs"]  # not what more seeds left before
    statuses = [report_decision(Path(run), as_json=False) for run in runs]
    if arguments.json:
        print_result(out)
    return max(statuses)


def report_decision(out: Path, *, as_json: bool) -> int:
    """The exit status that ``decision.json`` asks for; prints it with the kept model's scores as JSON on demand."""
    from segue.processes.ranks import rank_and_world
    from segue.records import kept_part

    if rank_and_world()[0]:
        return 0  # the first process decides, and may still be measuring
    decision = json.loads((out / "decision.json").read_text(encoding="utf-8"))
    if as_json:
        kept = kept_part(out) / "evaluation.json"
        scores = json.loads(kept.read_text(encoding="utf-8")).get("scores")
        print(json.dumps({"run": str(out), "model": str(out / "model"), "scores": scores, **decision}))  # noqa: T201
    return GATE_EXIT if decision["release"] is False else 0


def pretrain_command(arguments: argparse.Namespace) -> int:
    """``segue pretrain``."""
    from segue.launch import method_module
    from segue.verbs import PRETRAINING, run_pretraining

    kind = method_module(PRETRAINING, "pretrain").Config
    config = parse_fields(kind, field_options(arguments), "segue pretrain", data=arguments.images)
    out = run_pretraining(config, Path(arguments.out), surroundings(arguments))
    if arguments.json:
        print_result(out)
    return 0


def minutes(text: str) -> float:
    """``90s``, ``20m`` or ``3h`` in minutes.

    Raises:
        UsageError: it is no such thing.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if not found or not float(found[1]):
        raise UsageError(f"--budget {text}: write a time, as 90s, 20m or 3h")
    return float(found[1]) * {"s": 1 / 60, "m": 1, "h": 60}[found[2]]


def device_and_threads(text: str) -> tuple[str, list[str]]:
    """``cpu:2threads`` as device and the option for its threads; another device as it is."""
    found = re.fullmatch(r"cpu:([1-9]\d*)threads?", text)
    return ("cpu", [f"--threads={found[1]}"]) if found else (text, [])


def surroundings(arguments: argparse.Namespace) -> "Surroundings":
    """What `add_surroundings` asked for."""
    from segue.processes.surroundings import Surroundings

    return Surroundings(
        seed=arguments.seed, device=arguments.device, precision=arguments.precision, workers=arguments.workers,
        shard="shard" in arguments and arguments.shard, command=tuple(arguments.words),
        log_to=tuple(filter(None, arguments.log_to.split(","))),
    )  # fmt: skip


def print_result(out: Path) -> None:
    """The result of a run as JSON, by the first of several processes."""
    from segue.processes.ranks import rank_and_world

    if rank_and_world()[0]:
        return
    if (out / "seeds.json").is_file():
        print(json.dumps(json.loads((out / "seeds.json").read_text(encoding="utf-8"))))  # noqa: T201
        return
    found = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    print(json.dumps({"run": str(out), "model": str(out / "model"), "scores": found.get("scores")}))  # noqa: T201


def demo_command(arguments: argparse.Namespace) -> int:
    """``segue demo``."""
    from segue.demo import run_demo

    steps = {} if arguments.steps is None else {"steps": arguments.steps}
    scores = run_demo(Path(arguments.out), surroundings(arguments), **steps)
    if arguments.json:
        print(json.dumps(scores))  # noqa: T201
    return 0
