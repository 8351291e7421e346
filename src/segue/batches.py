"""Batches as a function of (seed, step, index): the same with any number of workers, from any step on.

A worker that dies, hangs or meets a sample that it cannot load is named, with the sample it was at.
"""

import bisect
import hashlib
import itertools
import multiprocessing
import multiprocessing.util
import resource
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Sampler, default_collate, get_worker_info

from segue.errors import DataError
from segue.processes.ranks import rank_and_world


def drawn(dataset: Dataset[Any], index: int, seed: int) -> Any:
    """A sample whose randomness depends on ``seed`` alone; a GPU's generator is a training step's, and left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return dataset[index]


def mix(*parts: object) -> int:
    """A seed below 2**63 that depends on every part."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


_LOOK_EVERY = 1.0  # seconds between two looks whether the processes that load live


class WorkerError(ChildProcessError):
    """A process that loads data died or hangs, more than once; the message names the sample that it was at."""


class _Failed(NamedTuple):
    """Takes the place of a batch, one of whose samples cannot be loaded: torch would wrap the error in a traceback."""

    error: DataError


class _Draws(Dataset[Any]):
    """``dataset`` asked by (index, seed): whatever it draws from torch's generator depends on that seed alone.

    Args:
        dataset: what is drawn from.
        workers: processes that ask.
    """

    def __init__(self, dataset: Dataset[Any], workers: int) -> None:
        self.dataset = dataset
        self.loading = multiprocessing.Array("q", [-1] * workers, lock=False)  # index of the sample each worker is at
        self.memory = multiprocessing.Array("q", workers, lock=False)  # its largest resident set, in MiB

    def __getitem__(self, key: tuple[int, int]) -> Any:
        index, seed = key
        worker = get_worker_info()
        if worker is not None:
            self.memory[worker.id] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            self.loading[worker.id] = index
        try:
            return drawn(self.dataset, index, seed)
        except DataError as error:
            if worker is None:
                raise
            return _Failed(error)
        finally:
            if worker is not None:
                self.loading[worker.id] = -1

    def suspects(self) -> str:
        """What the workers were at, in words."""
        at = [
            f"{name_of_sample(self.dataset, index)} (by a process of {memory} MiB)"
            for index, memory in zip(self.loading, self.memory, strict=True)
            if index >= 0
        ]
        return f"being loaded: {', '.join(at)}" if at else "no sample was being loaded"


def name_of_sample(dataset: Dataset[Any], index: int) -> str:
    """The file of a sample where the data set tells it by ``pairs``, else its number."""
    if isinstance(dataset, ConcatDataset):
        which = bisect.bisect_right(dataset.cumulative_sizes, index)
        return name_of_sample(dataset.datasets[which], index - ([0, *dataset.cumulative_sizes][which]))
    pairs = getattr(dataset, "pairs", None)
    return str(pairs[index].image) if pairs is not None else f"sample {index}"


def _collated(samples: list[Any]) -> Any:
    failed = [sample for sample in samples if isinstance(sample, _Failed)]
    return failed[0] if failed else default_collate(samples)


class _Order(Sampler[list[tuple[int, int]]]):
    """Batches of (index, seed): one shuffle of the data after the other, cut into batches, from batch ``start`` on."""

    def __init__(self, length: int, batch_size: int, seed: int, start: int) -> None:
        self.length, self.batch_size, self.seed, self.start = length, batch_size, seed, start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rank, world = rank_and_world()
        shuffle, order = -1, torch.empty(0)
        size = self.batch_size * world
        for number in itertools.count(self.start):
            batch = []
            for position in range(number * size, (number + 1) * size):
                if position // self.length != shuffle:
                    shuffle = position // self.length
                    generator = torch.Generator().manual_seed(mix(self.seed, "shuffle", shuffle))
                    order = torch.randperm(self.length, generator=generator)
                batch.append((int(order[position % self.length]), mix(self.seed, "sample", position)))
            yield batch[rank * self.batch_size : (rank + 1) * self.batch_size]


def _start_worker(_: int) -> None:
    """Lets the parent alone answer signals: a worker that kept its handlers would neither stop nor save."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def endless(
    dataset: Dataset[Any], batch_size: int, *, seed: int, start: int = 0, workers: int = 0, timeout: float = 120.0
) -> Iterator[dict[str, Any]]:
    """Collated batches without end, from batch ``start`` on, the same for every number of workers.

    When a worker dies or hangs, loading goes on once with half as many, from the batch that is missing.

    Args:
        dataset: has a length; draws its randomness from torch's global generator.
        batch_size: samples in a batch of this process; a data set smaller than that is gone through more than once.
        seed: of the order and of every sample's augmentation.
        start: number of batches to leave out, without loading them.
        workers: processes that load.
        timeout: seconds after which a worker that has not delivered counts as hanging.

    Raises:
        DataError: a sample cannot be loaded.
        ValueError: the data set is empty.
        WorkerError: a worker died or hangs for the second time.
    """
    length = len(dataset)  # type: ignore[arg-type]
    if length == 0:
        raise ValueError("the data set is empty: there is nothing to draw batches from")
    return _batches(dataset, batch_size, seed, start, workers, timeout)


def _batches(
    dataset: Dataset[Any], batch_size: int, seed: int, start: int, workers: int, timeout: float
) -> Iterator[dict[str, Any]]:
    fault = ""
    for processes in [workers, max(1, workers // 2)] if workers else [0]:
        if fault:
            warnings.warn(f"{fault}; going on with {processes} of {workers} loading processes", stacklevel=2)
        draws = _Draws(dataset, processes)
        order = _Order(len(dataset), batch_size, seed, start)  # type: ignore[arg-type]
        stream, children = _started(draws, order, processes)
        waiting_since = time.monotonic()
        try:
            while True:
                try:
                    batch = next(stream)
                except (RuntimeError, ConnectionError, EOFError) as error:
                    is_of_sample = isinstance(error, RuntimeError) and not str(error).startswith("DataLoader")
                    if is_of_sample:
                        raise
                    all_live = all(child.is_alive() for child in children)
                    if all_live and time.monotonic() - waiting_since < timeout:
                        continue
                    fault = _fault(children, draws, timeout)
                    break
                if isinstance(batch, _Failed):
                    raise batch.error
                start += 1
                yield batch
                waiting_since = time.monotonic()
        finally:
            for child in children:  # some might wait for what a dead one took with it
                child.terminate()
    raise WorkerError(f"{fault}; it is the second time, so the run stops. --workers 0 loads without processes")


def _started(draws: _Draws, order: _Order, processes: int) -> tuple[Iterator[Any], list[Any]]:
    """The batches of a loader, and its processes."""
    loader = DataLoader(
        draws,
        batch_sampler=order,
        num_workers=processes,
        collate_fn=_collated,
        worker_init_fn=_start_worker,
        timeout=_LOOK_EVERY if processes else 0,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(0),  # else it draws from the global one
    )
    if processes:  # theirs would stay behind when they are terminated; this one is removed when Segue ends
        multiprocessing.util.get_temp_dir()
    before = set(multiprocessing.active_children())
    stream = iter(loader)
    if processes and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise in the middle of a training step
    return stream, [child for child in multiprocessing.active_children() if child not in before]


def _fault(children: list[Any], draws: _Draws, timeout: float) -> str:
    """What befell the processes that load, in words."""
    ends = [child.exitcode for child in children if child.exitcode]
    names = [signal.Signals(-code).name if code < 0 else f"exit status {code}" for code in ends]
    what = f"ended by {', '.join(names)}" if names else f"has delivered nothing for {timeout:.0f} s"
    hint = " (the system kills so what takes too much memory)" if -signal.SIGKILL in ends else ""
    return f"a process that loads data {what}{hint}; {draws.suspects()}"


def to_device(batch: Any, device: torch.device) -> Any:
    """``batch`` with every tensor in it on ``device``."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    return batch


def counts(batch: Any) -> list[int]:
    """Rows of each tensor called ``image`` in a batch, which may be a dict of batches."""
    if not isinstance(batch, dict):
        return []
    own = [len(batch["image"])] if "image" in batch else []
    return own + [rows for value in batch.values() if isinstance(value, dict) for rows in counts(value)]


def count(batch: Any) -> int:
    """Images in a batch."""
    return sum(counts(batch))


def split(batch: Any, parts: int) -> list[Any]:
    """A batch cut along its images: in each dict, what has a row for each ``image`` is cut, all else is shared."""

    def cut(value: Any, part: int) -> Any:
        if not isinstance(value, dict):
            return value
        size = len(value.get("image", ()))
        rows = slice(round(size * part / parts), round(size * (part + 1) / parts))
        return {
            key: item[rows] if isinstance(item, (Tensor, list)) and len(item) == size else cut(item, part)
            for key, item in value.items()
        }

    return [cut(batch, part) for part in range(parts)] if parts > 1 else [batch]


def names_of(batch: Any) -> list[str]:
    """The names of the samples in a batch."""
    if not isinstance(batch, dict):
        return []
    own = [str(name) for name in batch.get("name", [])]
    return own + [name for value in batch.values() if isinstance(value, dict) for name in names_of(value)]
