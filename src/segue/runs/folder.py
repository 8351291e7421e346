"""The run folder: what a run writes, atomically."""

import contextlib
import hashlib
import io
import json
import math
import os
import pickle
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from segue.disk import alone_in, write_atomically
from segue.errors import DataError, UsageError
from segue.processes.ranks import only_first, rank_and_world
from segue.records import MISREAD
from segue.runs.loggers import Loggers


class Clock:
    """Time that a training took, over all its starts: checkpoints hold it."""

    def __init__(self) -> None:
        self.before, self.began = 0.0, time.monotonic()

    def seconds(self) -> float:
        """Seconds of this start and of those before it."""
        return self.before + time.monotonic() - self.began

    def go_on(self, seconds: float) -> None:
        """Takes what a checkpoint of an earlier start says; of several the latest."""
        self.before = max(self.before, seconds)


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
        shard: divide parameters, gradients and optimiser state over the processes.
        records: files that describe the run, written with the first thing that is: a run that is refused before it
            starts leaves no folder.
        parent: the run that this one is a part of; its records are written first.
        loggers: what else each line of the log is written to, by the first process.
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
        shard: bool = False,
        records: Mapping[str, bytes] | None = None,
        parent: "Run | None" = None,
        loggers: Loggers | None = None,
    ) -> None:
        self.out = out
        self.parent = parent
        self.clock: Clock = Clock() if parent is None else parent.clock
        self.loggers = loggers
        self.records = dict(records or {})
        self.is_new = False  # whether nothing was there when `alone` began
        self.locks: contextlib.ExitStack | None = None  # where `alone` waits for the folder to be there
        self.damaged: set[Path] = set()  # checkpoints that must not take the place of the good ones before them
        self.seed = seed
        self.device = torch.device(device)
        self.precision = precision
        self.workers = workers
        self.checkpoint_every = checkpoint_every
        self.shard = shard
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
            shard=self.shard,
            parent=self,
            loggers=self.loggers,
        )

    def say(self, text: str) -> None:
        """One line for the person who waits."""
        self.console.print(text, markup=False)

    def open(self) -> None:
        """Makes the folder and writes its records, unless both are there.

        Raises:
            UsageError: another command writes to it; see `alone`.
        """
        if self.parent is not None:
            self.parent.open()
        if self.locks is not None and rank_and_world()[0] == 0:
            locks, self.locks = self.locks, None
            locks.enter_context(alone_in(self.out))
            if self.is_new and (self.out / "run.json").is_file():
                raise UsageError(f"--out {self.out}: another run began there meanwhile; name another folder")
        self.out.mkdir(parents=True, exist_ok=True)
        while self.records and rank_and_world()[0] == 0:
            name, content = self.records.popitem()
            if not (self.out / name).exists():
                write_atomically(self.out / name, content)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps other commands out of the folder while the block runs: at once where a run is gone on with, or else
        from the first thing that is written.

        Raises:
            UsageError: another command writes to it.
        """
        self.is_new = not (self.out / "run.json").is_file()
        with contextlib.ExitStack() as self.locks:
            only_first(lambda: self.open() if (self.out / "run.json").is_file() else None)
            yield

    def log(self, stage: str, step: int, values: Mapping[str, float | str]) -> None:
        """Appends one line to ``log.jsonl``, without numbers that are not finite: JSON has none."""
        self.open()
        values = {k: v for k, v in values.items() if not isinstance(v, float) or math.isfinite(v)}
        if rank_and_world()[0] == 0:
            with (self.out / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"stage": stage, "step": step, **values}) + "\n")
            if self.loggers is not None:
                self.loggers.write(self._part(stage), step, values)

    def read_log(self) -> list[dict[str, Any]]:
        """The lines of ``log.jsonl``, oldest first; a half-written last line is left out.

        Raises:
            DataError: a whole line is damaged.
        """
        path = self.out / "log.jsonl"
        found: list[dict[str, Any]] = []
        for number, line in enumerate(path.read_bytes().splitlines(keepends=True) if path.exists() else [], 1):
            if line.endswith(b"\n"):
                try:
                    entry = json.loads(line)
                    sound = isinstance(entry["stage"], str) and isinstance(entry["step"], int)
                except (ValueError, LookupError, TypeError, RecursionError):
                    sound = False
                if not sound:
                    raise DataError(f"{path}:{number} is no line of a log; take it out, or begin a new run")
                found.append(entry)
        return found

    def rewind(self, stage: str, step: int) -> None:
        """Takes out what a run that was cut left behind ``step`` of ``stage``: log lines and half-written files."""
        if rank_and_world()[0] == 0:
            for left in self.out.glob(".*.partial"):
                left.unlink()
            if self.loggers is not None:
                self.loggers.begin(self._part(stage), step)
        lines = self.read_log()
        kept = [line for line in lines if line["stage"] != stage or line["step"] <= step]
        if rank_and_world()[0] == 0 and (self.out / "log.jsonl").exists():
            write_atomically(self.out / "log.jsonl", "".join(json.dumps(line) + "\n" for line in kept).encode())

    def _part(self, stage: str) -> str:
        """The stage, after the name of each run that this one is a part of, but for the first."""
        return self.parent._part(f"{self.out.name}/{stage}") if self.parent is not None else stage

    def keep(self, name: str, arrays: Callable[[], Mapping[str, Any]]) -> None:
        """Writes arrays as ``<name>.npz``, unless a part of this run that was done before has: then none are made."""
        path = self.out / f"{name}.npz"
        self.open()
        if rank_and_world()[0] == 0 and not path.exists():
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **arrays())
            write_atomically(path, buffer.getbuffer())

    def checkpoint(self, stage: str) -> dict[str, Any] | None:
        """The newest sound checkpoint of ``stage``, or None: a stage that begins again ends the same."""
        paths = (self.out / f"{stage}.pt", self.out / f"{stage}.previous.pt")
        for path in filter(Path.exists, paths):
            try:
                return _load(path)
            except _UNSOUND as error:
                self.damaged.add(path)
                self.say(f"warning: {path} is damaged ({str(error).splitlines()[0]}); going on from what is before it")
        return None

    def save(self, stage: str, state: dict[str, Any], *, own: bool = False) -> None:
        """Writes the checkpoint of ``stage`` atomically and keeps the one before it.

        Args:
            stage: its name.
            state: what it holds.
            own: each process writes its own, of its own name; else the first writes that of all.
        """
        if own or rank_and_world()[0] == 0:
            path = self.out / f"{stage}.pt"
            buffer = io.BytesIO()
            torch.save(state, buffer)
            if path.exists() and path not in self.damaged:
                os.replace(path, self.out / f"{stage}.previous.pt")
            write_atomically(path, signed(buffer.getvalue()))
            self.damaged.discard(path)


# What reading a checkpoint raises when bytes of it are missing or changed.
_UNSOUND = (*MISREAD, RuntimeError, pickle.UnpicklingError, AssertionError, struct.error, OSError)
_DIGITS = 64  # of a sha256, as the comment that ends a zip archive: torch writes CRC sums but does not check them


def signed(archive: bytes) -> bytes:
    """A zip archive without a comment, with the sha256 of all before it as its comment."""
    content = archive[:-2] + _DIGITS.to_bytes(2, "little")
    return content + hashlib.sha256(content).hexdigest().encode()


def _load(path: Path) -> dict[str, Any]:
    """A checkpoint whose every byte is as it was written."""
    content = path.read_bytes()
    if hashlib.sha256(content[:-_DIGITS]).hexdigest().encode() != content[-_DIGITS:]:
        raise ValueError("its sha256 is wrong")
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise ValueError("it holds no dictionary")
    return state
