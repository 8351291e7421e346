"""What the exact ranking loss costs: sorted against dense and chunked, over two sorts; and its share of a step.

    python benchmarks/speed/ranking.py [--rounds 5] [--no-memory] [--json FILE]               the loss
    python benchmarks/speed/ranking.py --step [--encoder resnet18] [--batch 4] [--rounds 5]   a step of pre-training

The floor of the loss is two sorts of n numbers, which no exact form can do without. Variants do forward and backward
on float32 lists with one thread, take turns in random order, and a ratio is the median of the ratios of one round.
Times are CPU time of the process; memory is what the peak of a fresh process grows by over one pass.

The floor of a step is the passes that no self-distillation can do without: forward and backward of the student, forward
of the teacher, on the same pictures. The loss is what the step spends on eqs. 2 and 3 with 196 x 196 similarities a
pair, gradients included. On a GPU (``--device cuda``) times are wall time.

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
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from segue.losses import margin_penalty, ranking_loss, ranking_loss_chunked, ranking_loss_dense, relative_ranking_loss

CASES = {
    1_024: ("sorted", "sorted relative", "chunked", "dense"),
    9_216: ("sorted", "sorted relative", "chunked", "dense"),
    38_416: ("sorted", "sorted relative"),
    262_144: ("sorted",),
}


def pass_of(variant: str, count: int) -> Callable[[], object]:
    """One forward and backward pass over a list of similarities."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (2 * torch.rand(count, generator=generator) - 1 for _ in range(2))
    student.requires_grad_()
    losses: dict[str, Callable[[], torch.Tensor]] = {
        "sorted": lambda: ranking_loss(student, teacher),
        "sorted relative": lambda: relative_ranking_loss(student, teacher),
        "chunked": lambda: ranking_loss_chunked(student, teacher, margin_penalty(0.5)),
        "dense": lambda: ranking_loss_dense(student, teacher, margin_penalty(0.5)),
    }
    if variant == "two sorts":
        return lambda: [x.detach().sort() for x in (student, teacher)]
    return lambda: torch.autograd.grad(losses[variant](), student)


@dataclass(frozen=True)
class Row:
    """One line of the table; CPU milliseconds and ratios are medians."""

    count: int
    variant: str
    cpu_ms: float
    over_floor: float
    over_sorted: float
    extra_mib: float | None


def take_turns(
    runs: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.process_time
) -> dict[str, list[float]]:
    """Seconds of each run in each round; one more round before them warms up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name in random.sample(list(runs), len(runs)):
            started = clock()
            runs[name]()
            if turn:
                times[name].append(clock() - started)
    return times


def ratio(first: list[float], second: list[float]) -> float:
    """Median of the ratios of single rounds."""
    return statistics.median(a / b for a, b in zip(first, second, strict=True))


def measure(count: int, rounds: int, with_memory: bool) -> list[Row]:
    """The rows of lists of ``count`` pairs."""
    times = take_turns({name: pass_of(name, count) for name in ("two sorts", *CASES[count])}, rounds)
    return [
        Row(
            count, name, 1000 * statistics.median(own), ratio(own, times["two sorts"]), ratio(own, times["sorted"]),
            memory_mib(name, count) if with_memory and name != "two sorts" else None,
        )
        for name, own in times.items()
    ]  # fmt: skip


def measure_step(encoder_name: str, batch: int, device: str, precision: str, rounds: int) -> None:
    """Prints what a step, its passes alone and its loss alone cost."""
    from segue.config import build
    from segue.engine import ema_update
    from segue.methods.ranking_distillation import Config, RankingDistillation, image_loss, patch_loss
    from segue.starting import new_encoder

    config = build(Config, {"encoder": encoder_name, "init": "random", "batch": batch})
    encoder = new_encoder(encoder_name, "random", output_stride=16, say=print).to(memory_format=torch.channels_last)
    method = RankingDistillation(encoder, 2 * batch, 100, config).to(device).train()
    method.clusters = torch.arange(2 * batch) % batch
    optimizer = torch.optim.AdamW(method.student.parameters(), 1e-4)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, 2, 3, 224, 224), generator=generator, dtype=torch.uint8).to(device)
    places = torch.arange(batch, device=device)
    sample = {"strong": images, "image": images, "index": places, "positive": places + batch}
    flat = images.transpose(0, 1).flatten(0, 1)
    autocast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")

    def step() -> None:
        optimizer.zero_grad()
        with autocast:
            losses = method(sample)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        ema_update(method.teacher, method.student, 0.996)

    def passes() -> None:
        optimizer.zero_grad()
        with autocast:
            feature = method.student.encoder(flat)
            with torch.no_grad():
                method.teacher.encoder(flat)
        feature.backward(torch.ones_like(feature))

    with torch.no_grad():
        (patches, embeddings), (t_patches, t_embeddings) = method.student(flat), method.teacher(flat)
    may_compare = method.candidates(places, places + batch)

    def loss() -> None:
        own, whole = patches.clone().requires_grad_(), embeddings.clone().requires_grad_()
        first = image_loss(whole, t_embeddings, may_compare, config)
        torch.autograd.backward(first + patch_loss(own, t_patches, config))

    def timed(run: Callable[[], None]) -> Callable[[], object]:
        return run if device == "cpu" else lambda: (run(), torch.cuda.synchronize())

    clock = time.process_time if device == "cpu" else time.perf_counter
    runs = {name: timed(run) for name, run in (("step", step), ("passes", passes), ("loss", loss))}
    times = take_turns(runs, rounds, clock)
    for name, own in times.items():
        over = f"{ratio(own, times['passes']):.2f} x passes, {100 * ratio(own, times['step']):.1f} % of the step"
        print(f"{encoder_name}, {batch} pairs, {precision}: {name:<7}{1000 * statistics.median(own):>8.1f} ms, {over}")


def memory_mib(variant: str, count: int) -> float:
    """What one pass adds to the peak memory of a fresh process, MiB."""
    command = [sys.executable, __file__, "--memory-of", variant, str(count)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_own_memory(variant: str, count: int) -> None:
    """Prints what `memory_mib` reads."""

    def status(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name))

    run = pass_of(variant, count)
    pass_of(variant, 64)()  # libraries allocate at the first call
    ctypes.CDLL(None).malloc_trim(0)  # or freed memory that is still resident would be used again, uncounted
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    run()
    print((status("VmHWM") - before) / 1024)


def main() -> None:
    """Prints the table and, if asked to, writes it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-memory", action="store_true", help="skip the fresh processes that measure memory")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--step", action="store_true", help="measure a step of pre-training instead")
    parser.add_argument("--encoder", default="resnet18", help="of the step")
    parser.add_argument("--batch", type=int, default=4, help="of the step")
    parser.add_argument("--device", default="cpu", help="of the step")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"], help="of the step")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory_of:
        print_own_memory(options.memory_of[0], int(options.memory_of[1]))
        return
    if options.step:
        measure_step(options.encoder, options.batch, options.device, options.precision, options.rounds)
        return
    print(f"torch {torch.__version__}, {platform.processor() or platform.machine()}, 1 thread, {options.rounds} rounds")
    print(f"{'n':>8}  {'variant':<16}{'cpu ms':>9}{'x two sorts':>13}{'x sorted':>10}{'extra MiB':>11}")
    rows = []
    for count in CASES:
        for row in measure(count, options.rounds, not options.no_memory):
            rows.append(row)
            print(f"{row.count:>8}  {row.variant:<16}{row.cpu_ms:>9.1f}{row.over_floor:>13.1f}", end="")
            print(f"{row.over_sorted:>10.2f}{'' if row.extra_mib is None else f'{row.extra_mib:.0f}':>11}", flush=True)
    of = {row.count: row.cpu_ms for row in rows if row.variant == "sorted"}
    print(f"sorted, n 38,416 -> 262,144 (x 6.8): time x {of[262_144] / of[38_416]:.1f}")
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
