"""From a model folder to files that run without Segue. Each takes its name only after the parity gate has passed it."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import segue
from segue.data.decoder import Decoder
from segue.data.images import Whole
from segue.data.layouts import layout_of, split_address
from segue.data.listing import spread, toned
from segue.disk import ROOM, alone_in, naming_a_full_disk, write_atomically
from segue.errors import DataError, UsageError
from segue.evaluation import Samples
from segue.export.graph import (
    Classify,
    onnx_classifier,
    openvino_classifier,
    torch_classifier,
    write_onnx,
)
from segue.export.panoptic import (
    PanopticParity,
    compare_panoptic,
    onnx_segmenter,
    torch_segmenter,
    write_panoptic_onnx,
)
from segue.export.parity import Limits, Parity, compare
from segue.export.scripts import CLASSES, SEGMENTS, infer_script
from segue.extras import require
from segue.held_out import open_to_measure
from segue.models.mask_classifier import MaskClassifier
from segue.prediction.pictures import find_images
from segue.weights import AnyModel, Model, model_fingerprint

FLOAT, INT8, OPENVINO = "model.onnx", "model.int8.onnx", "model.openvino.xml"
FAILED = "parity.failed.json"  # of an export of which no file passed
OWN = frozenset({FLOAT, INT8, OPENVINO, OPENVINO.replace(".xml", ".bin"), "infer.py", "parity.json", FAILED})
PARTIAL = ".partial-"  # what the folder of an export at work is called
QUANTISED = ["Conv", "Add", "Concat"]  # the operations that take the time; the rest stays in float32
CALIBRATION = 32  # pictures at most
COPIES = 4  # of the weights that may lie on the disk at once, half-made ones among them


@dataclass(frozen=True)
class Delivered:
    """What became of one file.

    Args:
        file: its name.
        parity: what the gate measured.
        is_kept: whether the file is there.
    """

    file: str
    parity: Parity | PanopticParity
    is_kept: bool


def described(model: AnyModel, source: str) -> dict[str, Any]:
    """What an exported file says of itself."""
    is_panoptic = isinstance(model, MaskClassifier)
    segments = (
        "ids: int32 (1, height, width), segment i + 1 or 0 for none; labels: int64 (segments,), class ids; scores: "
        "float32 (segments,)"
    )
    return {
        "classes": list(model.spec.classes),
        "colors": [list(color) for color in model.spec.colors],
        "tones": [list(rule) for rule in model.spec.tones],
        "fingerprint": model_fingerprint(source),
        "segue": segue.__version__,
        "input": f"image: uint8 ({'1' if is_panoptic else 'batch'}, height, width, 3), RGB, upright; any size",
        "output": segments if is_panoptic else "classes: uint8 (batch, height, width), class ids",
        **({"things": list(model.spec.things)} if isinstance(model, MaskClassifier) else {}),
    }


def is_labelled(address: str) -> bool:
    """Whether an address is of a set in a known layout, and not of pictures alone."""
    root, split = split_address(address)
    return root.is_dir() and (split is not None or layout_of(root) is not None)


def open_check(address: str, model: AnyModel, source: str, *, limit: int, mapping: str = "") -> Whole:
    """The pictures a file is checked on: of a labelled set those of `part_for`, or plain pictures.

    Where they are deeper than 8 bits, they are scaled as those that ``model`` learnt from.

    Args:
        address: of the set, or of pictures.
        model: what is checked.
        source: its run or model folder.
        limit: most pictures; of a set those with masks, evenly over it.
        mapping: stored mask values to map; of the set that the run validated on, as there if absent.

    Raises:
        DataError: nothing there, or other classes than the model's.
    """
    if not is_labelled(address):
        pairs = toned(find_images([address]), model.spec.tones)
        return Whole(pairs[:limit], Decoder({}, (), False))
    listing, name, pairs, _ = open_to_measure(source, address, mapping=mapping, tones=model.spec.tones)
    root = listing.root
    if listing.classes != model.spec.classes:
        raise DataError(
            f"{root} has the classes {', '.join(listing.classes)}; the model knows {', '.join(model.spec.classes)}: "
            "verify on a set of the same classes, or on plain pictures"
        )
    if not pairs:
        raise DataError(f"split {name!r} of {root} holds no picture to verify with")
    masked = tuple(pair for pair in pairs if pair.mask is not None)
    return Whole(spread(masked or pairs, limit), Decoder.of(listing))


def quantise(source: Path, target: Path, data: Samples) -> None:
    """Writes ``source`` with 8-bit weights and activations, their ranges taken from ``data``."""
    require("onnxruntime", "export")
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Hands out the pictures one by one."""

        def __init__(self) -> None:
            self.images = iter(
                data[i]["image"].permute(1, 2, 0).numpy()[None] for i in range(min(len(data), CALIBRATION))
            )

        def get_next(self) -> dict[str, Any] | None:
            image = next(self.images, None)
            return None if image is None else {"image": image}

    prepared = target.with_name(f"prepared.{target.name}")
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared), str(target), Reader(), quant_format=QuantFormat.QDQ, op_types_to_quantize=QUANTISED,
        per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    prepared.unlink()


def write_openvino(source: Path, target: Path) -> None:
    """Writes an ONNX file as OpenVINO's ``.xml`` and ``.bin``, in float32."""
    openvino = require("openvino", "openvino")
    openvino.save_model(openvino.Core().read_model(str(source)), str(target), compress_to_fp16=False)


def gated(file: Path, kept: Path, parity: Parity | PanopticParity) -> Delivered:
    """Moves ``file``, with what lies beside it under its name, into ``kept`` if it passed; if not, it is deleted."""
    stem = file.name.removesuffix(file.suffix)
    for part in sorted(file.parent.glob(f"{stem}.*")):
        if part.name.removesuffix(part.suffix) != stem:
            continue
        if parity.faults:
            part.unlink()
        else:
            os.replace(part, kept / part.name)
    return Delivered(file.name, parity, not parity.faults)


def is_own(path: Path) -> bool:
    """Whether something in a folder is of an export there, finished or killed."""
    return path.name in OWN or path.name.startswith(PARTIAL)


@contextlib.contextmanager
def replacing(out: Path, model: AnyModel) -> Iterator[tuple[Path, Path]]:
    """Folders (to work in, of what is good) whose second takes the place of an earlier export when the block ends.

    Where no model file is good, the export before it stays, and what was measured is written beside it as `FAILED`.

    Raises:
        UsageError: another command is in it.
    """
    with alone_in(out):
        for left in out.glob(f"{PARTIAL}*"):  # by an export that was killed
            shutil.rmtree(left, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=out))
        kept = work / "kept"
        kept.mkdir()
        need = ROOM + COPIES * sum(tensor.nbytes for tensor in model.state_dict().values())
        try:
            with naming_a_full_disk(work, need):
                yield work, kept
            if holds_model(out) and not holds_model(kept):  # there is nothing to put in its place
                os.replace(kept / "parity.json", out / FAILED)
                return
            for name in OWN:  # only now: until all of it is there, the export before it stays
                (out / name).unlink(missing_ok=True)
            for path in kept.iterdir():
                os.replace(path, out / path.name)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def holds_model(folder: Path) -> bool:
    """Whether an exported model lies there."""
    return any((folder / name).is_file() for name in (FLOAT, INT8, OPENVINO))


def report(found: Sequence[Delivered], kept: Path, infer: str) -> None:
    """Writes ``parity.json``, and ``infer.py`` where there is a file for it."""
    if infer:
        write_atomically(kept / "infer.py", infer.encode())
    measured = {entry.file: {**entry.parity.plain(), "kept": entry.is_kept} for entry in found}
    write_atomically(kept / "parity.json", json.dumps(measured, indent=1).encode())


def said(entry: Delivered) -> str:
    """What a file measured, in a line."""
    return f"{entry.file}: {entry.parity.line()}" + "".join(f"; FAILED: {fault}" for fault in entry.parity.faults)


def deliver(
    model: Model,
    source: str,
    out: Path,
    data: Samples,
    *,
    int8: bool = False,
    openvino: bool = False,
    calibration: Samples | None = None,
    drop: float = 1.0,
    say: Callable[[str], None] = lambda text: None,
) -> list[Delivered]:
    """Writes the files that were asked for and pass, ``parity.json`` and ``infer.py``.

    Args:
        model: the network.
        source: its folder, for the fingerprint.
        out: a folder; an earlier export in it is replaced.
        data: pictures the files are checked on.
        int8: also with 8-bit weights and activations.
        openvino: also for OpenVINO.
        calibration: pictures that give the ranges of the activations; ``data`` if absent.
        drop: points of mean IoU that 8 bits may cost.
        say: told what each file measured.
    """
    settings = {"classes": len(model.spec.classes), "bands": model.spec.in_channels}
    reference = torch_classifier(model)
    found: list[Delivered] = []
    with replacing(out, model) as (work, kept):

        def passed(name: str, run: Classify, limits: Limits) -> bool:
            found.append(gated(work / name, kept, compare(reference, run, data, limits=limits, **settings)))
            say(said(found[-1]))
            return found[-1].is_kept

        write_onnx(model, work / FLOAT, bands=model.spec.in_channels, metadata=described(model, source))
        if passed(FLOAT, onnx_classifier(work / FLOAT), Limits()):
            if openvino:
                write_openvino(kept / FLOAT, work / OPENVINO)
                passed(OPENVINO, openvino_classifier(work / OPENVINO, precision="f32"), Limits())
            if int8:
                quantise(kept / FLOAT, work / INT8, calibration or data)
                passed(INT8, onnx_classifier(work / INT8), Limits(agreement=0, noise=1e-9, drop=drop))
        best = [entry.file for entry in found if entry.is_kept and entry.file.endswith(".onnx")]
        report(found, kept, infer_script(CLASSES, best[-1]) if best else "")
    return found


def deliver_panoptic(
    model: MaskClassifier, source: str, out: Path, data: Samples, *, say: Callable[[str], None] = lambda text: None
) -> list[Delivered]:
    """The same of a panoptic model, in float32 for ONNX Runtime; ``data`` may hold ``truth``, a `PanopticMap`."""
    classes, bands = len(model.spec.classes), model.spec.in_channels
    with replacing(out, model) as (work, kept):
        write_panoptic_onnx(model, work / FLOAT, metadata=described(model, source))
        run = onnx_segmenter(work / FLOAT)
        parity = compare_panoptic(torch_segmenter(model), run, data, classes=classes, bands=bands)
        found = gated(work / FLOAT, kept, parity)
        say(said(found))
        report([found], kept, infer_script(SEGMENTS, FLOAT) if found.is_kept else "")
    return [found]


def refuse_deep(model: AnyModel, source: str) -> None:
    """Refuses a model that cannot be exported or served.

    Raises:
        UsageError: it takes no 8-bit pictures.
    """
    if model.spec.value_range != 255:
        raise UsageError(
            f"{source} takes values up to {model.spec.value_range:g}; only 8-bit pictures are exported and served"
        )


def refuse_unfit(model: AnyModel, source: str) -> Model:
    """A model that gives classes of 8-bit pictures.

    Raises:
        UsageError: it takes no 8-bit pictures, or gives segments instead of classes.
    """
    if isinstance(model, MaskClassifier):
        raise UsageError(f"{source} is a panoptic model; segue bench and segue serve --review take semantic models")
    refuse_deep(model, source)
    return model
