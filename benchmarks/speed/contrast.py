"""How far the pixel contrast loss is from the matrix products it cannot do without, and from other ways to compute it.

    python benchmarks/speed/contrast.py [--threads 2] [--rounds 5] [--json FILE]

The floor of a case is two bare float32 products of (N, D) by (D, N) an image, in tiles. Each variant does forward and
backward. Variants take turns in random order; a ratio is the median of the ratios of one round, so that other work on
the machine hits both sides. CPU time counts all threads and is steadier than wall time on a shared machine. Memory is
what the peak of a fresh process grows by over one forward and backward pass. The error is that of the gradient of one
image against float64, relative, for the variants of eq. 1 that count the self pair.

Switches that act on the whole process, and are therefore the user's:

- ``torch.set_float32_matmul_precision("medium")`` sends float32 products on a CPU to oneDNN, on AMD faster than MKL
  and, where oneDNN takes no bfloat16 short cut, as accurate. Rows marked "medium" have it for floor and loss alike;
  their error shows whether accuracy was kept on this machine.
- ``OMP_WAIT_POLICY=passive`` where other work shares the cores: waiting threads then give theirs up.
"""

import argparse
import ctypes
import json
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from dense_contrast import dense_pixel_contrast, dense_pixel_contrast_negatives

from segue.losses import pixel_contrast, pixel_contrast_negatives

CHANNELS, CLASSES, TEMPERATURE = 256, 5, 0.07


@dataclass(frozen=True)
class Case:
    """``side`` x ``side`` pixels of each of ``images`` images, alone or with a second view."""

    side: int
    images: int
    has_view: bool
    variants: tuple[str, ...]


CASES = {
    "self 65x65, 4 images": Case(
        65, 4, False, ("ours", "ours low_precision", "ours negatives", "dense", "dense negatives", "SupConLoss")
    ),
    "self 129x129, 1 image": Case(129, 1, False, ("ours", "ours low_precision")),
    "view 64x64, 4 images": Case(64, 4, True, ("ours", "ours low_precision", "ours negatives", "dense")),
}


def pixels(case: Case, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Embeddings, those of a second view, and labels, per image; sorted by class, 2 % ignored."""
    generator = torch.Generator().manual_seed(0)
    count = case.side**2
    anchors, views, labels = [], [], []
    for _ in range(case.images):
        label = torch.arange(count) * CLASSES // count
        x = (
            torch.randn(count, CHANNELS, generator=generator)
            + torch.randn(CLASSES, CHANNELS, generator=generator)[label]
        )
        y = x + 0.3 * torch.randn(count, CHANNELS, generator=generator)
        label[torch.rand(count, generator=generator) < 0.02] = 255
        anchors.append(F.normalize(x, dim=1).to(dtype).requires_grad_())
        views.append(F.normalize(y, dim=1).to(dtype).requires_grad_())
        labels.append(label)
    return anchors, views, labels


def floor(case: Case) -> Callable[[], None]:
    """Two products of all pixels with all pixels, 256 rows at a time."""
    anchors, views, _ = pixels(case)

    @torch.no_grad()
    def run() -> None:
        for anchor, view in zip(anchors, views, strict=True):
            for rows in anchor.split(256):
                (rows @ view.T) @ view

    return run


def loss_of(variant: str, anchors: Tensor, labels: Tensor, view: Tensor | None) -> Tensor:
    """The loss of one image."""
    key_labels = None if view is None else labels
    match variant:
        case "ours" | "ours low_precision":
            low_precision = variant != "ours"
            return pixel_contrast(
                anchors, labels, view, key_labels, temperature=TEMPERATURE, low_precision=low_precision
            )
        case "ours negatives":
            return pixel_contrast_negatives(anchors, labels, view, key_labels, temperature=TEMPERATURE)
        case "dense":
            return dense_pixel_contrast(anchors, labels, view, key_labels, temperature=TEMPERATURE)
        case "dense negatives":
            return dense_pixel_contrast_negatives(anchors, labels, view, key_labels, temperature=TEMPERATURE)
        case "SupConLoss":  # leaves the self pair out, as it always does
            from pytorch_metric_learning.losses import SupConLoss

            is_used = labels != 255
            loss: Tensor = SupConLoss(temperature=TEMPERATURE)(anchors[is_used], labels[is_used])
            return loss
    raise ValueError(f"variant {variant!r} is none of those in CASES")


def gradients_of(case: Case, variant: str, dtype: torch.dtype = torch.float32) -> Callable[[], list[Tensor]]:
    """Forward and backward over the images one by one; the gradients of the first."""
    anchors, views, labels = pixels(case, dtype)

    def run() -> list[Tensor]:
        first: list[Tensor] = []
        for anchor, view, label in zip(anchors, views, labels, strict=True):
            sources = [anchor, view] if case.has_view else [anchor]
            found = torch.autograd.grad(loss_of(variant, anchor, label, view if case.has_view else None), sources)
            first = first or list(found)
        return first

    return run


def memory_mib(case_name: str, variant: str, threads: int) -> float:
    """What one forward and backward pass adds to the peak memory of a fresh process, MiB."""
    command = [sys.executable, __file__, "--threads", str(threads), "--memory-of", case_name, variant]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_own_memory(case_name: str, variant: str) -> None:
    """Prints what ``memory_mib`` reads."""

    def status(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name))

    case = CASES[case_name]
    run = gradients_of(case, variant)
    gradients_of(Case(8, 1, case.has_view, ()), variant)()  # libraries allocate at the first call
    ctypes.CDLL(None).malloc_trim(0)  # or freed memory that is still resident would be used again, uncounted
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    run()
    print((status("VmHWM") - before) / 1024)


@dataclass(frozen=True)
class Row:
    """One line of the table; times are medians in milliseconds, ratios medians over rounds."""

    case: str
    variant: str
    precision: str
    wall_ms: float
    cpu_ms: float
    wall_ratio: float
    cpu_ratio: float
    error: float | None
    extra_mib: float | None


def measure(case_name: str, precision: str, rounds: int, threads: int, with_memory: bool) -> list[Row]:
    """Rows of a case at one ``torch.set_float32_matmul_precision``."""
    case = CASES[case_name]
    one_image = replace(case, images=1)
    exact = torch.cat(gradients_of(one_image, "ours", torch.float64)())
    torch.set_float32_matmul_precision(precision)
    is_default = precision == "highest"
    variants = case.variants if is_default else tuple(v for v in case.variants if v in ("ours", "dense", "SupConLoss"))
    runs: dict[str, Callable[[], object]] = {"floor": floor(case)}
    runs |= {variant: gradients_of(case, variant) for variant in variants}
    errors: dict[str, float] = {}
    for variant in ("ours", "ours low_precision", "dense"):
        if variant in variants:
            found = torch.cat(gradients_of(one_image, variant)())
            errors[variant] = float((found - exact).norm() / exact.norm())
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name in random.sample(list(runs), len(runs)):
            wall, cpu = time.perf_counter(), time.process_time()
            runs[name]()
            if turn:  # the first is a warm-up
                times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    rows = []
    for name, found_times in times.items():
        ratios = [(w / fw, c / fc) for (w, c), (fw, fc) in zip(found_times, times["floor"], strict=True)]
        rows.append(
            Row(
                case_name,
                name,
                precision,
                *(1000 * statistics.median(t[i] for t in found_times) for i in (0, 1)),
                *(statistics.median(r[i] for r in ratios) for i in (0, 1)),
                errors.get(name),
                memory_mib(case_name, name, threads) if with_memory and is_default and name != "floor" else None,
            )
        )
    return rows


def main() -> None:
    """Prints the table and, if asked to, writes it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--case", choices=list(CASES), action="append", help="default: all")
    parser.add_argument("--no-memory", action="store_true", help="skip the fresh processes that measure memory")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.full((4096,), 2.0).pow(0.9)  # torch's log1p is ten times slower until some pow has run: not what is compared
    if options.memory_of:
        print_own_memory(*options.memory_of)
        return
    print(
        f"torch {torch.__version__}, {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads,"
    )
    print(f"D = {CHANNELS}, {CLASSES} classes, {options.rounds} rounds; floor = 2 products of N x N x D an image\n")
    print(f"{'case':<23}{'variant':<20}{'fp32 mm':<9}{'wall ms':>8}{'cpu ms':>8}{'x wall':>8}{'x cpu':>8}", end="")
    print(f"{'error':>9}{'extra MiB':>11}")
    rows = []
    for case_name in options.case or CASES:
        for precision in ("highest", "medium"):
            for row in measure(case_name, precision, options.rounds, options.threads, not options.no_memory):
                rows.append(row)
                print(f"{row.case:<23}{row.variant:<20}{row.precision:<9}{row.wall_ms:>8.0f}{row.cpu_ms:>8.0f}", end="")
                print(f"{row.wall_ratio:>8.2f}{row.cpu_ratio:>8.2f}", end="")
                print(" " * 9 if row.error is None else f"{row.error:>9.0e}", end="")
                print("" if row.extra_mib is None else f"{row.extra_mib:>11.0f}", flush=True)
    if options.json:
        facts = {"torch": torch.__version__, "threads": options.threads, "rounds": options.rounds}
        options.json.write_text(json.dumps(facts | {"rows": [asdict(row) for row in rows]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
