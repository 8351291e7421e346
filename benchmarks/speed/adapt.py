"""A step of `segue adapt` against the passes it cannot do without; the teacher's passes, average and styles against it.

    python benchmarks/speed/adapt.py [--threads 1] [--rounds 5] [--crop 256] [--batch 8] [--json FILE]

DeepLabV3+ MobileNetV2, 19 classes. Each row is timed beside its floor in turns of random order; a ratio is the median
of the ratios of one round, in CPU time of the process (user and system), which other work disturbs least.

- ``whole step``: forward, backward, optimiser, average of the teacher; its floor is the student forward and backward on
  source and target with losses that cost nothing, the optimiser, and K teacher forwards in inference mode.
- ``shared trunk``: K = 4 draws of dropout before the classifier, against one whole teacher pass. ``full, K`` beside it.
- ``average``: of the teacher, against the whole step.
- ``style``: what one style adds to loading a batch, against the whole step; from pictures on disk.
- memory: what the peak of a fresh process grows by over one step, against the student's own step on both pictures.
"""

import argparse
import ctypes
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segue.data import synthetic
from segue.data.decoder import Decoder
from segue.data.domain_views import DomainViews
from segue.data.layouts import open_images, open_listing
from segue.engine import ema_update, endless
from segue.methods.mean_teacher import Config, MeanTeacher, full_passes, shared_passes
from segue.models.segmenter import Segmenter, SegmenterSpec
from segue.processes.tuning import tune

CLASSES, PASSES = 19, 4
GOALS = {
    "whole step, full K=4": 1.15, "whole step, shared K=4": 1.15, "shared trunk, K=4": 1.3, "average": 0.02,
    "style fourier": 0.05, "style lab": 0.05, "style covariance": 0.05, "memory": 1.2,
}  # fmt: skip
Work = Callable[[], object]


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def network() -> Segmenter:
    torch.manual_seed(0)
    spec = SegmenterSpec("mobilenetv2_100", tuple(map(str, range(CLASSES))), ((0, 0, 0),) * CLASSES)
    return Segmenter(spec).to(memory_format=torch.channels_last)


def batch_of(size: int, crop: int) -> dict[str, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, size, 3, crop, crop), generator=generator, dtype=torch.uint8)
    coarse = torch.randint(0, CLASSES, (size, crop // 32, crop // 32), generator=generator)
    mask = coarse.repeat_interleave(32, 1).repeat_interleave(32, 2).to(torch.uint8)
    inside = torch.ones(size, crop, crop, dtype=torch.bool)
    return {
        "source": {"image": images[0], "mask": mask},
        "target": {"image": images[1], "view": images[2], "inside": inside},
    }


def stepper(method: MeanTeacher, loss: Callable[[], Tensor], precision: str, *, averages: bool) -> Work:
    """A step with the given loss over the student."""
    optimizer = torch.optim.SGD(method.student.parameters(), 0.01, momentum=0.9, weight_decay=4e-5)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            value = loss()
        value.backward()
        optimizer.step()
        if averages:
            ema_update(method.teacher, method.student, 0.99)

    return step


def whole(trunk: str, batch: dict[str, Any], precision: str) -> tuple[Work, Work]:
    """(the step of the method, its floor)."""
    config = Config(passes=PASSES, trunk=trunk, steps=100, ramp=0.0)  # type: ignore[arg-type]
    ours, bare = (MeanTeacher(network(), config).train() for _ in range(2))
    passes = PASSES if trunk == "full" else 1

    def floor() -> Tensor:
        with torch.inference_mode():
            for _ in range(passes):
                bare.teacher(batch["target"]["image"])
        return bare.student(batch["source"]["image"]).mean() + bare.student(batch["target"]["view"]).mean()

    def losses() -> Tensor:
        return torch.stack([*ours(batch).values()]).sum()

    return stepper(ours, losses, precision, averages=True), stepper(bare, floor, precision, averages=False)


def teachers(batch: dict[str, Any], precision: str) -> dict[str, tuple[Work, Work]]:
    """The teacher's passes alone, K = 4, each against one whole pass."""
    teacher, image = network().eval(), batch["target"]["image"]

    def run(work: Callable[[], Tensor]) -> Work:
        def timed() -> None:
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                work()

        return timed

    one = run(lambda: full_passes(teacher, image, passes=1, noise=0.1))
    shared = run(lambda: shared_passes(teacher, image, passes=PASSES, noise=0.1, dropout=0.5))
    full = run(lambda: full_passes(teacher, image, passes=PASSES, noise=0.1))
    together = run(lambda: full_passes(teacher, image, passes=PASSES, noise=0.1, chunk=PASSES))
    return {
        f"shared trunk, K={PASSES}": (shared, one),
        f"full, K={PASSES}": (full, one),
        f"full, K={PASSES} in one chunk": (together, one),
    }


def loaders(folder: Path, size: int, crop: int) -> dict[str, Work]:
    """Loading one batch with each style."""
    for domain in ("a", "b"):
        synthetic.write(folder / domain, train=16, size=(360, 480), domain=domain)
    listing = open_listing(str(folder / "a"))
    target = open_images(f"{folder / 'b'}:train")
    plain = DomainViews(((listing.split("train"), Decoder.of(listing), None),), target, crop)
    found = {}
    for style in ("none", "fourier", "lab", "covariance"):
        views = replace(plain, style=style)  # type: ignore[arg-type]
        # The same batch each time: views of other sizes would be compared else.
        found[style] = lambda views=views: next(endless(views, size, seed=0))  # type: ignore[misc]
    return found


def times(works: dict[str, Work], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each piece of work in each round, in turns of random order; the first turn is a warm-up."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name in random.sample(list(works), len(works)):
            start = cpu()
            works[name]()
            if turn:
                found[name].append(cpu() - start)
    return found


def ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def memory_mib(options: argparse.Namespace, what: str) -> float:
    """What one step adds to the peak memory of a fresh process, MiB."""
    sizes = [f"--{name}={getattr(options, name)}" for name in ("crop", "batch", "threads", "precision")]
    command = [sys.executable, __file__, "--memory-of", what, *sizes]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_own_memory(options: argparse.Namespace) -> None:
    """Prints what `memory_mib` reads: of ``student`` (its passes on source and target) or of ``whole`` step."""

    def status(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name))

    batch = batch_of(options.batch, options.crop)
    method = MeanTeacher(network(), Config(passes=PASSES, steps=100, ramp=0.0)).train()

    def student() -> Tensor:
        return method.student(batch["source"]["image"]).mean() + method.student(batch["target"]["view"]).mean()

    is_whole = options.memory_of == "whole"
    loss = (lambda: torch.stack([*method(batch).values()]).sum()) if is_whole else student
    small = batch_of(2, 64)
    stepper(method, lambda: torch.stack([*method(small).values()]).sum(), options.precision, averages=True)()
    step = stepper(method, loss, options.precision, averages=is_whole)
    ctypes.CDLL(None).malloc_trim(0)  # or freed memory that is still resident would be used again, uncounted
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    step()
    print((status("VmHWM") - before) / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--crop", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--no-memory", action="store_true", help="skip the fresh processes that measure memory")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory-of", choices=("student", "whole"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print_own_memory(options)
        return
    switches = tune("cpu")
    batch = batch_of(options.batch, options.crop)
    rows: dict[str, float] = {}
    step_seconds = 1.0
    for trunk in ("full", "shared"):
        ours, floor = whole(trunk, batch, options.precision)
        found = times({"ours": ours, "floor": floor}, options.rounds)
        rows[f"whole step, {trunk} K={PASSES}"] = ratio(found["ours"], found["floor"])
        step_seconds = statistics.median(found["ours"]) if trunk == "full" else step_seconds
    for name, (above, below) in teachers(batch, options.precision).items():
        found = times({"ours": above, "floor": below}, options.rounds)
        rows[name] = ratio(found["ours"], found["floor"])
    method = MeanTeacher(network(), Config())
    seconds = times({"average": lambda: ema_update(method.teacher, method.student, 0.99)}, 10 * options.rounds)
    rows["average"] = statistics.median(seconds["average"]) / step_seconds
    with tempfile.TemporaryDirectory() as folder:
        seconds = times(loaders(Path(folder), options.batch, options.crop), 2 * options.rounds)
    for style in ("fourier", "lab", "covariance"):
        added = statistics.median(a - b for a, b in zip(seconds[style], seconds["none"], strict=True))
        rows[f"style {style}"] = added / step_seconds
    rows["loading without a style"] = statistics.median(seconds["none"]) / step_seconds
    if not options.no_memory:
        rows["memory"] = memory_mib(options, "whole") / memory_mib(options, "student")
    sizes = f"{options.threads} threads, {options.precision}, {options.batch} crops of {options.crop}"
    print(f"torch {torch.__version__}, {sizes}, {options.rounds} rounds, tuned {', '.join(switches)}")
    print(f"a whole step takes {step_seconds:.2f} CPU seconds\n")
    print(f"{'what':<28}{'ratio':>8}{'goal':>8}")
    for name, value in rows.items():
        goal = GOALS.get(name)
        missed = goal is not None and value > goal
        print(f"{name:<28}{value:>8.3f}{'' if goal is None else f'{goal:>8.2f}'}{'  missed' if missed else ''}")
    if options.json:
        facts = {k: v for k, v in vars(options).items() if k not in ("json", "memory_of", "no_memory")}
        options.json.write_text(json.dumps(facts | {"step_seconds": step_seconds, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
