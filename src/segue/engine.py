"""The one training loop: a method, its batches, and a run folder that can be cut at any step and resumed bit for bit.

Everything random is a function of (seed, stage, step, index): `endless` seeds each sample, `fit` seeds each step. So a
checkpoint holds no random state, and neither the number of workers nor a restart changes what a run computes.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, Sampler

Losses = dict[str, Tensor]
Batch = Any
PREEMPTED = 75
PATIENCE = 5  # steps in a row whose loss or gradient may be NaN or infinite before the run stops
REFRESH = 10.0  # seconds between two progress lines where the output is no terminal


class Preempted(SystemExit):
    """A signal asked the run to stop; its checkpoint is on disk and the same command goes on from there."""

    def __init__(self) -> None:
        super().__init__(PREEMPTED)


class Method(nn.Module):
    """A training method: ``forward(batch)`` gives named losses, which `fit` adds up; all state is in the state_dict."""

    def after_step(self, step: int) -> None:
        """Called after optimiser step ``step`` (from 0); nothing by default."""


def mix(*parts: object) -> int:
    """A seed below 2**63 that depends on every part."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of processes: (0, 1) unless ``torchrun`` started several."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def only_first(work: Callable[[], None]) -> None:
    """Does ``work`` on the first process while the others wait."""
    rank, world = rank_and_world()
    if rank == 0:
        work()
    if world > 1:
        dist.barrier()


class Run:
    """A run folder and what a method needs from its surroundings.

    Args:
        out: the run folder; made if missing.
        seed: of initial weights, data order, augmentation and dropout.
        device: a torch device.
        precision: ``fp32``, or ``bf16`` for autocast with float32 weights.
        workers: processes that load data; 0 loads in this one.
        checkpoint_every: seconds between two checkpoints of a stage.
        quiet: say nothing on the terminal; the log is written all the same.
        records: files that describe the run, written with the first thing that is: a run that is refused before it
            starts leaves no folder.
    """

    def __init__(
        self,
        out: Path,
        *,
        seed: int = 0,
        device: str = "cpu",
        precision: str = "fp32",
        workers: int = 0,
        checkpoint_every: float = 60.0,
        quiet: bool = False,
        records: Mapping[str, bytes] | None = None,
    ) -> None:
        self.out = out
        self.records = dict(records or {})
        self.seed = seed
        self.device = torch.device(device)
        self.precision = precision
        self.workers = workers
        self.checkpoint_every = checkpoint_every
        self.console = Console(stderr=True, quiet=quiet or rank_and_world()[0] > 0, soft_wrap=True, highlight=False)

    def child(self, name: str) -> "Run":
        """A run in the subfolder ``name`` with the same surroundings."""
        return Run(
            self.out / name,
            seed=self.seed,
            device=str(self.device),
            precision=self.precision,
            workers=self.workers,
            checkpoint_every=self.checkpoint_every,
            quiet=self.console.quiet,
        )

    def say(self, text: str) -> None:
        """One line for the person who waits."""
        self.console.print(text, markup=False)

    def open(self) -> None:
        """Makes the folder and writes its records, unless both are there."""
        self.out.mkdir(parents=True, exist_ok=True)
        while self.records and rank_and_world()[0] == 0:
            name, content = self.records.popitem()
            if not (self.out / name).exists():
                write_atomically(self.out / name, content)

    def log(self, stage: str, step: int, values: Mapping[str, float | str]) -> None:
        """Appends one line to ``log.jsonl``."""
        self.open()
        if rank_and_world()[0] == 0:
            with (self.out / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"stage": stage, "step": step, **values}) + "\n")

    def read_log(self) -> list[dict[str, Any]]:
        """The lines of ``log.jsonl``, oldest first; a half-written last line is left out."""
        path = self.out / "log.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def rewind(self, stage: str, step: int) -> None:
        """Takes lines of ``stage`` after ``step`` out of the log: the resumed run writes them again."""
        lines = self.read_log()
        kept = [line for line in lines if line["stage"] != stage or line["step"] <= step]
        if rank_and_world()[0] == 0 and (self.out / "log.jsonl").exists():
            write_atomically(self.out / "log.jsonl", "".join(json.dumps(line) + "\n" for line in kept).encode())

    def keep(self, name: str, arrays: Mapping[str, Any]) -> None:
        """Writes arrays as ``<name>.npz``, unless a part of this run that was done before has written them."""
        path = self.out / f"{name}.npz"
        self.open()
        if rank_and_world()[0] == 0 and not path.exists():
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **arrays)
            write_atomically(path, buffer.getbuffer())

    def checkpoint(self, stage: str) -> dict[str, Any] | None:
        """The last checkpoint of ``stage``, or None."""
        path = self.out / f"{stage}.pt"
        return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None

    def finished(self, stage: str) -> bool:
        """Whether ``stage`` has run to its end."""
        checkpoint = self.checkpoint(stage)
        return checkpoint is not None and bool(checkpoint["done"])

    def save(self, stage: str, state: dict[str, Any]) -> None:
        """Writes the checkpoint of ``stage`` atomically: after a crash the file is the old one or the new one."""
        if rank_and_world()[0] == 0:
            buffer = io.BytesIO()
            torch.save(state, buffer)
            write_atomically(self.out / f"{stage}.pt", buffer.getbuffer())


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Writes ``path`` through a temporary file beside it, synced to disk before it takes the name.

    Raises:
        OSError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


# -- batches -----------------------------------------------------------------------------------------------------------


class _Draws(Dataset[Any]):
    """``dataset`` asked by (index, seed): whatever it draws from torch's generator depends on that seed alone."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitem__(self, key: tuple[int, int]) -> Any:
        index, seed = key
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.dataset[index]


class _Order(Sampler[list[tuple[int, int]]]):
    """Batches of (index, seed): one shuffle of the data after the other, cut into batches, from batch ``start`` on."""

    def __init__(self, length: int, batch_size: int, seed: int, start: int) -> None:
        self.length, self.batch_size, self.seed, self.start = length, batch_size, seed, start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rank, world = rank_and_world()
        shuffle, order = -1, torch.empty(0)
        position = self.start * self.batch_size * world
        while True:
            batch = []
            for position in range(position, position + self.batch_size * world):
                if position // self.length != shuffle:
                    shuffle = position // self.length
                    generator = torch.Generator().manual_seed(mix(self.seed, "shuffle", shuffle))
                    order = torch.randperm(self.length, generator=generator)
                batch.append((int(order[position % self.length]), mix(self.seed, "sample", position)))
            position += 1
            yield batch[rank * self.batch_size : (rank + 1) * self.batch_size]


def _start_worker(_: int) -> None:
    """Lets the parent alone answer signals: a worker that kept its handlers would neither stop nor save."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def endless(
    dataset: Dataset[Any], batch_size: int, *, seed: int, start: int = 0, workers: int = 0
) -> Iterator[dict[str, Any]]:
    """Collated batches without end, from batch ``start`` on, the same for every number of workers.

    Args:
        dataset: has a length; draws its randomness from torch's global generator.
        batch_size: samples in a batch of this process; a data set smaller than that is gone through more than once.
        seed: of the order and of every sample's augmentation.
        start: number of batches to leave out, without loading them.
        workers: processes that load.

    Raises:
        ValueError: the data set is empty.
    """
    length = len(dataset)  # type: ignore[arg-type]
    if length == 0:
        raise ValueError("the data set is empty: there is nothing to draw batches from")
    loader = DataLoader(
        _Draws(dataset),
        batch_sampler=_Order(length, batch_size, seed, start),
        num_workers=workers,
        worker_init_fn=_start_worker,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(0),  # else it draws from the global one
    )
    return iter(loader)


def to_device(batch: Any, device: torch.device) -> Any:
    """``batch`` with every tensor in it on ``device``."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    return batch


def _count(batch: Any) -> int:
    """Images in a batch: rows of every tensor called ``image``."""
    if isinstance(batch, dict):
        return sum(len(v) if k == "image" else _count(v) for k, v in batch.items() if isinstance(v, dict) or k == "image")
    return len(batch) if isinstance(batch, Tensor) else 0


def _names(batch: Any) -> list[str]:
    """The names of the samples in a batch."""
    if not isinstance(batch, dict):
        return []
    own = [str(name) for name in batch.get("name", [])]
    return own + [name for value in batch.values() if isinstance(value, dict) for name in _names(value)]


# -- schedules and averages --------------------------------------------------------------------------------------------


def cosine(steps: int) -> Callable[[int], float]:
    """Factor of the learning rate: half a cosine from 1 at step 0 to 0 at ``steps``."""
    return lambda step: 0.5 * (1 + math.cos(math.pi * step / steps))


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, decay: float) -> None:
    """teacher <- decay * teacher + (1 - decay) * student for parameters; buffers are copied."""
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - decay)
    buffers = list(teacher.buffers())
    if buffers:
        torch._foreach_copy_(buffers, list(student.buffers()))


# -- the loop ----------------------------------------------------------------------------------------------------------


class _Signals(contextlib.AbstractContextManager["_Signals"]):
    """Notes SIGTERM and SIGINT, so that the loop can save first; a second signal acts at once."""

    def __init__(self) -> None:
        self.seen = False
        self.old: dict[int, Any] = {}

    def __enter__(self) -> "_Signals":
        if threading.current_thread() is threading.main_thread():
            self.old = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _note(self, *_: object) -> None:
        self.seen = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self.old.items():
            signal.signal(number, handler)

    def __exit__(self, *_: object) -> None:
        self._restore()


class _Bar:
    """Progress of one stage: a bar with loss, images per second and ETA, or a plain line every few seconds."""

    def __init__(self, run: Run, stage: str, steps: int, done: int) -> None:
        self.run, self.stage, self.steps, self.first = run, stage, steps, done
        self.started = self.said = time.monotonic()
        self.images = 0
        self.progress: Progress | None = None
        self.task = TaskID(0)
        if run.console.is_terminal and not run.console.quiet:
            self.progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}  {task.fields[state]}  eta"),
                TimeRemainingColumn(elapsed_when_finished=True),
                console=run.console,
            )
            self.task = self.progress.add_task(stage, total=steps, completed=done, state="")
            self.progress.start()

    def update(self, step: int, loss: float, images: int) -> None:
        self.images += images
        now = time.monotonic()
        if self.progress is None and now - self.said < REFRESH and step != self.steps:
            return
        rate = self.images / max(now - self.started, 1e-9)
        state = f"loss {loss:.4f}  {rate:.1f} images/s"
        if self.progress is not None:
            self.progress.update(self.task, completed=step, state=state)
            return
        left = (now - self.started) / max(step - self.first, 1) * (self.steps - step)
        self.said = now
        self.run.say(f"{self.stage} {step}/{self.steps}  {state}  eta {int(left) // 60}:{int(left) % 60:02d}")

    def close(self) -> None:
        if self.progress is not None:
            self.progress.stop()


def _accumulated(
    module: nn.Module, stream: Iterator[Batch], run: Run, accumulate: int
) -> tuple[dict[str, float], int, list[str]]:
    """Gradients of ``accumulate`` batches, averaged: (losses by name, images, names of the samples)."""
    losses: dict[str, float] = {}
    images, names = 0, list[str]()
    for i in range(accumulate):
        batch = to_device(next(stream), run.device)
        images, names = images + _count(batch), names + _names(batch)
        last = i == accumulate - 1
        sync = contextlib.nullcontext() if last or not isinstance(module, DistributedDataParallel) else module.no_sync()
        with sync:
            with torch.autocast(run.device.type, torch.bfloat16, enabled=run.precision == "bf16"):
                named: Losses = module(batch)
            total = torch.stack([loss.float() for loss in named.values()]).sum()
            if total.requires_grad:
                torch.autograd.backward(total / accumulate)
        for name, loss in {"loss": total, **named}.items():
            losses[name] = losses.get(name, 0.0) + float(loss.detach()) / accumulate
    return losses, images, names


def _all_agree(claim: bool, device: torch.device) -> bool:
    """Whether ``claim`` holds on every process."""
    if not dist.is_initialized():
        return claim
    flag = torch.tensor(float(claim), device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MIN)
    return bool(flag)


def fit(
    method: Method,
    batches: Callable[[int], Iterator[Batch]],
    *,
    run: Run,
    optimizer: torch.optim.Optimizer,
    steps: int,
    stage: str = "train",
    schedule: Callable[[int], float] | None = None,
    accumulate: int = 1,
    clip: float = 0.0,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    evaluate_every: int = 0,
) -> None:
    """Trains ``method`` for ``steps`` optimiser steps, or for what is left of them after a resume.

    Args:
        method: gives named losses; its whole state_dict is saved.
        batches: gives the stream of batches from batch number n on.
        run: the folder, device, precision and seed.
        optimizer: over the parameters to train.
        steps: optimiser steps of this stage.
        stage: names the checkpoint ``<stage>.pt`` and the lines of the log.
        schedule: factor of the learning rates at each step; constant if absent.
        accumulate: batches per optimiser step.
        clip: largest norm of the whole gradient; 0 leaves it as it is.
        evaluate: gives scores to log, at the end and every ``evaluate_every`` steps.
        evaluate_every: steps between two evaluations; 0 evaluates at the end only.

    Raises:
        FloatingPointError: loss or gradient was not finite `PATIENCE` times in a row; none of those steps was taken.
        Preempted: SIGTERM or SIGINT came; the checkpoint is written.
    """
    run.open()
    method.to(run.device)
    state = run.checkpoint(stage)
    step, meter, meter_steps, bad = 0, dict[str, float](), 0, 0
    rates = [group["lr"] for group in optimizer.param_groups]
    if state is not None:
        method.load_state_dict(state["method"])
        if state["done"]:
            run.say(f"{stage}: finished before, taken from {run.out / f'{stage}.pt'}")
            return
        optimizer.load_state_dict(state["optimizer"])
        step, meter, meter_steps, bad = state["step"], state["meter"], state["meter_steps"], state["bad"]
        run.say(f"{stage}: resumed at step {step} of {steps}")
    run.rewind(stage, step)
    rank, world = rank_and_world()
    module: nn.Module = DistributedDataParallel(method, find_unused_parameters=True) if world > 1 else method
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    log_every = max(1, min(50, steps // 100))
    stream = batches(step * accumulate)
    bar = _Bar(run, stage, steps, step)
    saved_at = time.monotonic()

    def save(done: bool) -> None:
        run.save(
            stage,
            {
                "method": method.state_dict(),
                "optimizer": optimizer.state_dict() if not done else {},
                "step": step,
                "meter": meter,
                "meter_steps": meter_steps,
                "bad": bad,
                "done": done,
            },
        )

    try:
        with _Signals() as signals:
            method.train()
            while step < steps:
                torch.manual_seed(mix(run.seed, stage, step, rank))
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * (schedule(step) if schedule else 1.0)
                optimizer.zero_grad(set_to_none=True)
                losses, images, names = _accumulated(module, stream, run, accumulate)
                norm = float(nn.utils.clip_grad_norm_(parameters, clip or math.inf, foreach=True))
                finite = _all_agree(math.isfinite(losses["loss"]) and math.isfinite(norm), run.device)
                if finite:
                    optimizer.step()
                    method.after_step(step)
                    for name, value in {**losses, "gradient_norm": norm}.items():
                        meter[name] = meter.get(name, 0.0) + value
                    meter_steps += 1
                    bad = 0
                else:
                    bad += 1
                    _refuse(run, stage, step, losses, norm, names, bad)
                step += 1
                if step % log_every == 0 and meter_steps:
                    means = {name: total / meter_steps for name, total in meter.items()}
                    run.log(stage, step, {**means, "lr": optimizer.param_groups[0]["lr"], "seconds": time.time()})
                    meter, meter_steps = {}, 0
                bar.update(step, losses["loss"], images * world)
                if evaluate is not None and (step == steps or (evaluate_every and step % evaluate_every == 0)):
                    run.log(stage, step, {f"val/{name}": value for name, value in evaluate().items()})
                    method.train()
                stopping = not _all_agree(not signals.seen, run.device) and step < steps
                if stopping or (time.monotonic() - saved_at >= run.checkpoint_every and step < steps):
                    save(done=False)
                    saved_at = time.monotonic()
                if stopping:
                    run.say(f"stopped by a signal at step {step} of {stage}; the same command goes on from there")
                    raise Preempted
    finally:
        bar.close()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    save(done=True)


def _refuse(
    run: Run, stage: str, step: int, losses: Mapping[str, float], norm: float, names: list[str], bad: int
) -> None:
    """Notes a step that was not taken, and stops the run after `PATIENCE` of them in a row."""
    run.log(stage, step + 1, {"refused": "not finite", **{k: repr(v) for k, v in losses.items()}, "norm": repr(norm)})
    shown = ", ".join(f"{name} {value:g}" for name, value in losses.items())
    message = f"{stage} step {step}: loss or gradient is not finite ({shown}, gradient norm {norm:g}); step not taken"
    run.say(f"warning: {message}")
    if bad >= PATIENCE:
        raise FloatingPointError(
            f"{message}; {bad} in a row, so the run stops. Samples: {', '.join(names[:8])}. "
            "Lower --lr, or train with --precision fp32, and run again"
        )


