"""The commands that bring a model into use: ``segue export``."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from segue.cli.parsing import PARITY_EXIT, Command, refuse_idle, whole_number
from segue.errors import UsageError

if TYPE_CHECKING:
    from segue.evaluation import Samples
    from segue.models.mask_classifier import MaskClassifier


def add_commands(command: Command) -> None:
    """Adds them to the parser."""
    export = command("export", export_command, "write a model as a file that runs without Segue, and check it")
    export.add_argument("model", metavar="RUN", help="run or model folder, or hf:owner/name")
    export.add_argument("--onnx", action="store_true", help="for ONNX Runtime; always written")
    export.add_argument("--int8", action="store_true", help="also with 8-bit weights and activations")
    export.add_argument("--openvino", action="store_true", help="also for OpenVINO")
    export.add_argument(
        "--verify", required=True, metavar="DATA", help="a labelled set, SET:split, or pictures to check the files on"
    )
    export.add_argument(
        "--calibrate", default="", metavar="DATA", help="pictures for --int8; those of --verify if absent"
    )
    export.add_argument("--map", default="", help="stored mask values to map, as 77:ignore,255:1; else as in training")
    export.add_argument("--images", type=whole_number, default=100, help="how many pictures to check on, at most")
    export.add_argument("--max-drop", type=float, default=1.0, help="points of mean IoU that --int8 may cost")
    export.add_argument(
        "--out",
        default="",
        metavar="FOLDER",
        help="a new or empty folder, or an export to replace; RUN/export if absent",
    )
    export.add_argument("--json", action="store_true", help="print what was measured as JSON")


def export_command(arguments: argparse.Namespace) -> int:
    """``segue export``."""
    from segue.export.delivery import deliver, deliver_panoptic, is_own, open_check, refuse_deep
    from segue.models.mask_classifier import MaskClassifier
    from segue.weights import load_any

    if not arguments.out and not Path(arguments.model).is_dir() and arguments.model.startswith("hf:"):
        raise UsageError("--out: name a folder for the files of a model from a hub")
    out = Path(arguments.out or Path(arguments.model) / "export")
    if out.exists() and (not out.is_dir() or any(not is_own(path) for path in out.iterdir())):
        raise UsageError(f"--out {out} holds something else than an export; name another folder")
    if arguments.images < 1:
        raise UsageError(f"--images {arguments.images}: at least one picture is needed to check on")
    model = load_any(arguments.model)
    refuse_deep(model, arguments.model)

    def say(text: str) -> None:
        print(f"segue export: {text}", file=sys.stderr)  # noqa: T201

    if isinstance(model, MaskClassifier):
        for option in ("int8", "openvino", "calibrate", "max_drop"):
            if getattr(arguments, option) != arguments.parser.get_default(option):
                name = option.replace("_", "-")
                raise UsageError(f"--{name}: a panoptic model is written in float32 for ONNX Runtime; leave it out")
        truths = open_panoptic_check(
            arguments.verify, model, arguments.model, limit=arguments.images, mapping=arguments.map
        )
        say(f"verifying on {len(truths)} images of {arguments.verify}")
        found = deliver_panoptic(model, arguments.model, out, truths, say=say)
    else:
        if not arguments.int8:
            refuse_idle(arguments, "calibrate", "max_drop", without="--int8")
        how = {"limit": arguments.images, "mapping": arguments.map}
        data = open_check(arguments.verify, model, arguments.model, **how)
        calibration = None
        if arguments.calibrate:
            calibration = open_check(arguments.calibrate, model, arguments.model, **how)
        say(f"verifying on {len(data)} images of {arguments.verify}")
        found = deliver(
            model, arguments.model, out, data, int8=arguments.int8, openvino=arguments.openvino,
            calibration=calibration, drop=arguments.max_drop, say=say,
        )  # fmt: skip
    kept = [str(out / entry.file) for entry in found if entry.is_kept]
    failed = [entry for entry in found if not entry.is_kept]
    if arguments.json:
        files = {entry.file: {**entry.parity.plain(), "kept": entry.is_kept} for entry in found}
        print(json.dumps({"out": str(out), "files": files}))  # noqa: T201
    else:
        print("written: " + (", ".join(kept) or "nothing"))  # noqa: T201
    for entry in failed:
        say(
            f"error: {entry.file} is not the model that was evaluated and was deleted: {'; '.join(entry.parity.faults)}"
        )
    return PARITY_EXIT if failed else 0


def open_panoptic_check(
    address: str, model: "MaskClassifier", source: str, *, limit: int, mapping: str = ""
) -> "Samples":
    """The pictures a panoptic file is checked on, with their truth where there are masks; see `open_check`.

    Where a set does not number its objects, connected regions count as objects: both are held against the same.

    Raises:
        DataError: nothing there, or none of the model's classes.
    """
    from segue.data.panoptic import PanopticWhole
    from segue.export.delivery import is_labelled, open_check
    from segue.held_out import masked, open_to_measure
    from segue.using import panoptic_set

    if not is_labelled(address):
        return open_check(address, model, source, limit=limit)
    listing, name, pairs, _ = open_to_measure(source, address, mapping=mapping)
    found = panoptic_set(listing, model, source, masked(listing, name, pairs), by_region=True)
    return PanopticWhole(found.pairs[:limit], found.annotation)
