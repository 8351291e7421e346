"""A training step of DeepLabV3+ MobileNetV2: Segue's against plain eager float32, and each method against its network.

    python benchmarks/speed/step.py [--threads 2] [--rounds 5] [--crop 256] [--json FILE]

Floors, timed in the same run, interleaved, medians of the ratios in each round, as CPU time of the process (user and
system) and as wall time:
- ``plain``: eager float32, NCHW, torch's SGD and allocator as they come (its own process);
- ``network``: forward and backward of the very network of a method in Segue's setting, with a loss that costs nothing.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

CLASSES = 12


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def network(channels_last: bool) -> Any:
    import torch

    from segue.models.segmenter import Segmenter, SegmenterSpec

    torch.manual_seed(0)
    spec = SegmenterSpec("mobilenetv2_100", tuple(map(str, range(CLASSES))), ((0, 0, 0),) * CLASSES)
    model = Segmenter(spec).train()
    return model.to(memory_format=torch.channels_last) if channels_last else model


def data(batch: int, crop: int) -> dict[str, Any]:
    import torch

    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (batch, 3, crop, crop), generator=generator, dtype=torch.uint8)
    coarse = torch.randint(0, CLASSES, (batch, crop // 32, crop // 32), generator=generator)
    mask = coarse.repeat_interleave(32, 1).repeat_interleave(32, 2).to(torch.uint8)
    return {"image": image, "view": image.flip(0), "mask": mask}


def cases(batch: int, crop: int) -> dict[str, Callable[[], Callable[[], float]]]:
    """What can be timed: a function that prepares and gives the step."""
    import torch

    from segue.methods.pixel_contrast import Config, Contrast
    from segue.methods.supervised import Supervised
    from segue.processes.tuning import slow_layers_in_float32

    def stepper(
        modules: Any, parameters: Any, loss: Callable[[], Any], kind: str, precision: str
    ) -> Callable[[], float]:
        fused = {"fused": True} if kind == "ours" else {}
        optimizer = torch.optim.SGD(parameters, 0.01, momentum=0.9, weight_decay=4e-5, **fused)
        setting = contextlib.ExitStack()
        if (kind, precision) == ("ours", "bf16"):
            setting.enter_context(slow_layers_in_float32(modules))

        def step(setting: contextlib.ExitStack = setting) -> float:  # which holds as long as the function lives
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                value = loss()
            value.backward()
            optimizer.step()
            return float(value.detach())

        return step

    full = data(batch, crop)
    half = {name: tensor[: batch // 2] for name, tensor in full.items()}

    def plain(kind: str, precision: str) -> Callable[[], float]:
        model = network(kind == "ours")
        method = Supervised(model, torch.ones(CLASSES))
        return stepper(method, model.parameters(), lambda: method(full)["cross_entropy"], kind, precision)

    def bare() -> Callable[[], float]:
        model = network(True)
        return stepper(model, model.parameters(), lambda: model(full["image"]).mean(), "ours", "bf16")

    def contrast(free: bool) -> Callable[[], float]:
        model = network(True)
        method = Contrast(model, Config(), fast=True).to(memory_format=torch.channels_last)
        used = [*model.encoder.parameters(), *model.decoder.parameters(), *method.projection.parameters()]
        both = torch.cat([half["image"], half["view"]])
        loss = (lambda: method.projection(model.features(both)).mean()) if free else (lambda: method(half)["contrast"])
        return stepper(method, used, loss, "ours", "bf16")

    return {
        "plain fp32 NCHW": lambda: plain("plain", "fp32"),
        "plain bf16 NCHW": lambda: plain("plain", "bf16"),
        "supervised fp32": lambda: plain("ours", "fp32"),
        "supervised bf16": lambda: plain("ours", "bf16"),
        "network bf16": bare,
        "pixel contrast bf16": lambda: contrast(False),
        "network and projection bf16": lambda: contrast(True),
    }


def serve(connection: Connection, name: str, batch: int, crop: int, threads: int, tuned: bool) -> None:
    """One case in its own process, so that the allocator's setting is its own: a step on demand."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)
    if tuned:
        from segue.processes.tuning import tune

        tune("cpu")
    torch.full((4096,), 2.0).pow(0.9)
    step = cases(batch, crop)[name]()
    losses = [step(), step()]
    connection.send(None)
    while connection.recv():
        start, wall = cpu(), time.perf_counter()
        losses.append(step())
        connection.send((cpu() - start, time.perf_counter() - wall))
    connection.send(losses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--crop", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--json")
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    context = multiprocessing.get_context("spawn")
    rows = {
        "plain fp32 NCHW": False, "plain bf16 NCHW": False, "supervised fp32": True, "supervised bf16": True,
        "network bf16": True, "pixel contrast bf16": True, "network and projection bf16": True,
    }  # fmt: skip
    workers: dict[str, tuple[Any, Connection]] = {}
    for name, tuned in rows.items():
        ours, theirs = context.Pipe()
        arguments = (theirs, name, options.batch, options.crop, options.threads, tuned)
        process = context.Process(target=serve, args=arguments)
        process.start()
        ours.recv()
        workers[name] = (process, ours)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in rows}
    for _ in range(options.rounds):
        for name, (_, connection) in workers.items():
            connection.send(True)
            times[name].append(connection.recv())
    losses = {}
    for name, (process, connection) in workers.items():
        connection.send(False)
        losses[name] = connection.recv()
        process.join()

    def ratio(name: str, floor: str, which: int) -> float:
        return statistics.median(a[which] / b[which] for a, b in zip(times[name], times[floor], strict=True))

    print(f"batch {options.batch}, {options.crop} x {options.crop}, {options.threads} threads, {options.rounds} rounds")
    for name in rows:
        seconds = [statistics.median(t[i] for t in times[name]) for i in (0, 1)]
        by = [ratio(name, "plain fp32 NCHW", i) for i in (0, 1)]
        print(
            f"{name:30s} cpu {seconds[0]:6.3f} s, {by[0]:.2f} x plain   wall {seconds[1]:6.3f} s, {by[1]:.2f} x plain"
        )
    found = {
        "supervised / plain (cpu)": ratio("supervised bf16", "plain fp32 NCHW", 0),
        "supervised / plain (wall)": ratio("supervised bf16", "plain fp32 NCHW", 1),
        "supervised / its network (cpu)": ratio("supervised bf16", "network bf16", 0),
        "pixel contrast / its network (cpu)": ratio("pixel contrast bf16", "network and projection bf16", 0),
        "pixel contrast / its network (wall)": ratio("pixel contrast bf16", "network and projection bf16", 1),
    }
    for name, value in found.items():
        print(f"{name:40s} {value:.2f}")
    print(
        "loss curves:", {name: [round(v, 3) for v in losses[name]] for name in ("plain fp32 NCHW", "supervised bf16")}
    )
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"ratios": found, "times": times, "losses": losses}, file)


if __name__ == "__main__":
    main()
