"""What `--shard` costs a step and saves a process, beside whole copies: two gloo processes, one thread each.

    python benchmarks/speed/shard.py [--encoder mobilenetv2_100 --batch 4 --crop 128 --steps 6 --rounds 5]

Rounds of `fit` with and without it take turns. ``step``: median wall time of a step, the first of each round left out;
``held``: numbers that a process holds between two steps, in millions: parameters, and momentum.
"""

import argparse
import os
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from scale import made_up, method_and_optimizer


def local(tensor: Any) -> Any:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def measure(rank: int, port: int, options: argparse.Namespace, folder: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    import torch

    from segue.engine import Run, fit
    from segue.processes.surroundings import join_processes

    torch.set_num_threads(1)
    join_processes("cpu")
    batch = made_up(options.batch, options.crop)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    held: dict[bool, tuple[float, float]] = {}
    for number in range(2 * options.rounds):
        shard = bool(number % 2)
        method, optimizer = method_and_optimizer(options.encoder, "cpu")
        ends: list[float] = []

        def after_step(step: int, ends: list[float] = ends, of: Any = (method, optimizer, shard)) -> None:
            method, optimizer, shard = of
            ends.append(time.perf_counter())
            kept = [value for own in optimizer.state.values() for value in own.values() if value is not None]
            held[shard] = tuple(sum(local(t).numel() for t in some) / 1e6 for some in (list(method.parameters()), kept))

        method.after_step = after_step
        run = Run(folder / str(number), quiet=True, shard=shard)
        fit(method, lambda start: iter(lambda: batch, None), run=run, optimizer=optimizer, steps=options.steps)
        seconds[shard] += [b - a for a, b in pairwise(ends)]
    if rank == 0:
        whole, divided = (statistics.median(seconds[shard]) for shard in (False, True))
        print(f"step: whole copies {1000 * whole:.0f} ms, --shard {1000 * divided:.0f} ms, ratio {divided / whole:.2f}")
    for shard, (parameters, momentum) in sorted(held.items()):
        told = f"{parameters:.2f} M parameters, {momentum:.2f} M of momentum"
        print(f"held by process {rank}, {'--shard' if shard else 'whole copies'}: {told}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="mobilenetv2_100")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    import socket

    import torch.multiprocessing as processes

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        processes.spawn(measure, (port, options, Path(folder)), nprocs=2)


if __name__ == "__main__":
    main()
