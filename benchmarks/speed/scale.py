"""What `fit` costs beside a bare loop, what several processes give, and what a checkpoint takes.

    python benchmarks/speed/scale.py [--device cpu] [--rounds 7] [--json FILE]

All in the same run, interleaved step by step or round by round; ratios and differences are medians.
- ``overhead``: a step of `fit`, with an optimiser as Segue's methods have it, less a step of a bare loop over the same
  method, in one process, in turns: one with ``torch.optim.SGD`` as it is by default, one with the same optimiser as
  `fit`, and one that takes the norm of the gradient too, as every loop does that clips or looks for NaN;
- ``optimiser``: the same step with SGD and AdamW as torch has them by default, ``foreach`` and ``fused``, and in it the
  optimiser alone;
- ``network``: the same step against forward and backward of its network alone, with a loss that costs nothing: on a GPU
  this is the throughput of one GPU against the bare network;
- ``processes`` (CPU alone): images per second of two gloo processes with one thread each over that of one, and the
  share of a step that goes into averaging gradients: the same loop with and without it, in turns;
- ``checkpoint``: time and size, over writing as many bytes and syncing them.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

CLASSES = 12
NETWORKS = ("mobilenetv2_100", "resnet50")


def method_and_optimizer(encoder: str, device: str, kind: str = "SGD", **fields: Any) -> tuple[Any, Any]:
    import torch

    from segue.methods.supervised import Supervised
    from segue.models.segmenter import Segmenter, SegmenterSpec

    torch.manual_seed(0)
    network = Segmenter(SegmenterSpec(encoder, tuple(map(str, range(CLASSES))), ((0, 0, 0),) * CLASSES)).train()
    method = Supervised(network, torch.ones(CLASSES)).to(device, memory_format=torch.channels_last)
    fields |= {"momentum": 0.9} if kind == "SGD" else {}
    return method, getattr(torch.optim, kind)(method.parameters(), lr=1e-3, weight_decay=4e-5, **fields)


def made_up(batch: int, crop: int) -> dict[str, Any]:
    import torch

    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (batch, 3, crop, crop), generator=generator, dtype=torch.uint8)
    return {"image": image, "mask": torch.randint(0, CLASSES, (batch, crop, crop), generator=generator).byte()}


def bare_step(loss: Callable[[], Any], optimizer: Any, device: str, precision: str, *, norm: bool = False) -> None:
    import torch

    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
        value = loss()
    value.backward()
    if norm:
        float(torch.nn.utils.get_total_norm([p.grad for g in optimizer.param_groups for p in g["params"]]))
    optimizer.step()


def clock(device: str, *, wall: bool) -> float:
    """Seconds: of this process's CPU time, or on the wall once the GPU has nothing left to do."""
    import torch

    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() if wall else time.process_time()


def overhead(options: argparse.Namespace) -> dict[str, float]:
    """`fit` beside bare loops in one process: while `fit` asks for a batch, they take their steps."""
    import torch

    from segue.engine import Run, fit

    device, steps = options.device, options.steps * options.rounds
    precision = "bf16" if device != "cpu" else "fp32"
    batch = made_up(options.batch, options.crop)
    near = {name: tensor.to(device) for name, tensor in batch.items()}
    (ours, ours_by), (loop, loop_by), (normed, normed_by), (alone, alone_by) = (
        method_and_optimizer(NETWORKS[0], device, fused=True) for _ in range(4)
    )
    plain, plain_by = method_and_optimizer(NETWORKS[0], device)
    others: dict[str, Callable[[], None]] = {
        "plain": lambda: bare_step(lambda: plain(near)["cross_entropy"], plain_by, device, precision),
        "loop": lambda: bare_step(lambda: loop(near)["cross_entropy"], loop_by, device, precision),
        "normed": lambda: bare_step(lambda: normed(near)["cross_entropy"], normed_by, device, precision, norm=True),
        "network": lambda: bare_step(lambda: alone.network(near["image"]).mean(), alone_by, device, precision),
    }
    times: dict[str, list[float]] = {"fit": [], **{name: [] for name in others}}
    wall = device != "cpu"

    def batches(_: int) -> Iterator[dict[str, Any]]:
        returned = 0.0
        while True:
            now = clock(device, wall=wall)
            if returned:
                times["fit"].append(now - returned)
            for name, step in others.items():
                start = clock(device, wall=wall)
                step()
                times[name].append(clock(device, wall=wall) - start)
            returned = clock(device, wall=wall)
            yield batch

    torch.full((4096,), 2.0).pow(0.9)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), quiet=True, device=device, precision=precision, checkpoint_every=1e9)
        fit(  # as many steps as make it log as seldom as it does in a long run
            ours, batches, run=run, optimizer=ours_by, steps=5000, converged=lambda: len(times["fit"]) >= steps,
        )  # fmt: skip
    warm = min(20, steps // 4)
    kept = {name: values[warm:steps] for name, values in times.items()}
    over = {
        name: 1000 * statistics.median(a - b for a, b in zip(kept["fit"], kept[name], strict=True)) for name in others
    }
    ratio = [a / b for a, b in zip(kept["fit"], kept["network"], strict=True)]
    return {
        "steps": len(kept["fit"]),
        "fit, ms a step": 1000 * statistics.median(kept["fit"]),
        "bare loop, ms a step": 1000 * statistics.median(kept["loop"]),
        "fit less a loop by default, ms": over["plain"],
        "fit less a bare loop, ms": over["loop"],
        "the same, norm in both": over["normed"],
        "fit, images a second": options.batch / statistics.median(kept["fit"]),
        "fit over its bare network": statistics.median(ratio),
    }


def optimisers(options: argparse.Namespace) -> dict[str, float]:
    """A step by each optimiser and the optimiser's part of it, in turns; each has a network of its own."""
    near = {name: tensor.to(options.device) for name, tensor in made_up(options.batch, options.crop).items()}
    ways: tuple[dict[str, bool], ...] = ({}, {"foreach": True}, {"fused": True})
    rows = {
        f"{kind}, {next(iter(way), 'default')}": method_and_optimizer(NETWORKS[0], options.device, kind, **way)
        for kind in ("SGD", "AdamW")
        for way in ways
    }
    times: dict[str, list[tuple[float, float]]] = {title: [] for title in rows}
    wall = options.device != "cpu"
    for _ in range(5 + options.steps * options.rounds // 2):
        for title, (method, optimizer) in rows.items():
            start = clock(options.device, wall=wall)
            optimizer.zero_grad()
            method(near)["cross_entropy"].backward()
            middle = clock(options.device, wall=wall)
            optimizer.step()
            end = clock(options.device, wall=wall)
            times[title].append((end - start, end - middle))
    found = {}
    for title, values in times.items():
        steps, alone = zip(*values[5:], strict=True)
        found[f"{title}: step, ms"] = 1000 * statistics.median(steps)
        found[f"{title}: optimiser, ms"] = 1000 * statistics.median(alone)
    return found


def rank(connection: Connection, number: int, world: int, store: str, options: argparse.Namespace) -> None:
    """One of ``world`` processes: on demand some steps of `fit`, or of bare loops with and without averaging."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    from segue.engine import Run, fit
    from segue.processes.tuning import tune

    torch.set_num_threads(1)
    tune("cpu")
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=world)
    method, optimizer = method_and_optimizer(NETWORKS[0], "cpu")
    other, other_by = method_and_optimizer(NETWORKS[0], "cpu")
    together = DistributedDataParallel(other) if world > 1 else None
    batch = made_up(options.batch, options.crop)

    def seconds_of(*, averaged: bool) -> tuple[float, float]:
        assert together is not None
        start, used = time.perf_counter(), time.process_time()
        for _ in range(options.steps):
            if averaged:
                bare_step(lambda: together(batch)["cross_entropy"], other_by, "cpu", "fp32")
            else:
                with together.no_sync():
                    bare_step(lambda: together(batch)["cross_entropy"], other_by, "cpu", "fp32")
        return time.perf_counter() - start, time.process_time() - used

    def batches(_: int) -> Iterator[dict[str, Any]]:
        for _ in range(3):
            yield batch  # warm
        while True:
            connection.send(None)
            while (asked := connection.recv()) != "fit":
                connection.send(seconds_of(averaged=asked == "averaged"))
            start, used = time.perf_counter(), time.process_time()
            for _ in range(options.steps):
                yield batch
            connection.send((time.perf_counter() - start, time.process_time() - used))

    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), quiet=True, checkpoint_every=1e9)
        fit(method, batches, run=run, optimizer=optimizer, steps=3 + options.rounds * options.steps + 1)
    connection.close()


def processes(options: argparse.Namespace) -> dict[str, float]:
    """One process and two, in turns."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        worlds: dict[int, list[tuple[Any, Connection]]] = {}
        for world in (1, 2):
            worlds[world] = []
            for number in range(world):
                ours, theirs = context.Pipe()
                process = context.Process(target=rank, args=(theirs, number, world, f"{folder}/store", options))
                process.start()
                worlds[world].append((process, ours))

        def ask(world: int, what: str) -> tuple[float, float]:
            for _, connection in worlds[world]:
                connection.send(what)
            walls, used = zip(*(connection.recv() for _, connection in worlds[world]), strict=True)
            return max(walls), sum(used)

        rows: list[tuple[tuple[float, float], ...]] = []
        for _ in range(options.rounds):
            for world in (1, 2):
                for _, connection in worlds[world]:
                    connection.recv()
            silent, averaged = ask(2, "silent"), ask(2, "averaged")
            rows.append((silent, averaged, ask(1, "fit"), ask(2, "fit")))
        for members in worlds.values():
            for _, connection in members:
                connection.recv()
                connection.send("fit")  # the last step of all
        for members in worlds.values():
            for process, _ in members:
                process.join()
    images = options.batch * options.steps
    return {
        "1 process, images a second": images / statistics.median(one[0] for *_, one, _ in rows),
        "2 processes, images a second": 2 * images / statistics.median(two[0] for *_, two in rows),
        "2 processes over 1": statistics.median(2 * one[0] / two[0] for *_, one, two in rows),
        "the same by CPU time, 2 is ideal": statistics.median(4 * one[1] / two[1] for *_, one, two in rows),
        "share of averaging gradients": statistics.median(1 - quiet[0] / told[0] for quiet, told, *_ in rows),
        "the same by CPU time": statistics.median(1 - quiet[1] / told[1] for quiet, told, *_ in rows),
    }


def checkpoint(encoder: str, rounds: int) -> dict[str, float]:
    """A checkpoint of a training with momentum, and as many bytes written and synced."""
    from segue.engine import Run

    method, optimizer = method_and_optimizer(encoder, "cpu")
    bare_step(lambda: method(made_up(2, 64))["cross_entropy"], optimizer, "cpu", "fp32")
    state = {"step": 1, "method": method.state_dict(), "optimizer": optimizer.state_dict()}
    taken: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory(dir=".") as folder:
        run = Run(Path(folder), quiet=True)
        for _ in range(rounds):
            start = time.perf_counter()
            run.save("train", state)
            middle = time.perf_counter()
            size = (Path(folder) / "train.pt").stat().st_size
            content = bytes(size)
            begun = time.perf_counter()
            with (Path(folder) / "plain").open("wb") as file:
                file.write(content)
                os.fsync(file.fileno())
            taken.append((middle - start, time.perf_counter() - begun))
    return {
        "checkpoint, MiB": size / 2**20,
        "checkpoint, ms": 1000 * statistics.median(row[0] for row in taken),
        "checkpoint over a plain write": statistics.median(row[0] / row[1] for row in taken),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20, help="a round")
    parser.add_argument("--crop", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4, help="of each process")
    parser.add_argument("--json")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    found = {"overhead": overhead(options), "optimiser": optimisers(options)}
    if options.device == "cpu":
        found["processes"] = processes(options)
    for encoder in NETWORKS:
        found[encoder] = checkpoint(encoder, options.rounds)
    name = torch.cuda.get_device_name() if options.device == "cuda" else "cpu, a thread a process"
    print(f"{name}: batch {options.batch}, {options.crop} x {options.crop}, {options.rounds} rounds of {options.steps}")
    for part, values in found.items():
        for title, value in values.items():
            print(f"{part:18s} {title:32s} {value:9.3f}")
    if options.json:
        Path(options.json).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
