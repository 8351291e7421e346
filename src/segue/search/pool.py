"""Candidates in this process, in several, or over a Ray cluster: the same results, in the order they finish."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from segue.errors import DataError
from segue.processes.cluster import connect
from segue.search.candidates import Job, try_candidate
from segue.search.trials import DIED, Trial

WHY = (
    "killed by the system, most often for want of memory (a smaller --parallel needs less), or started by a script "
    "without `if __name__ == '__main__':`"
)
TRIES = 3  # how often a candidate is tried whose process dies


class Workers:
    """Who tries candidates: this process, several that live as long as the search, or the CPUs of a cluster.

    Args:
        parallel: processes; 1 takes this one.
        work: tries one.
        ray: address of a Ray cluster, which then takes the place of processes; see `segue.processes.cluster.connect`.
    """

    def __init__(self, parallel: int, work: Callable[[Job], Trial] = try_candidate, *, ray: str = "") -> None:
        self._parallel, self._work, self._ray = parallel, work, ray
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self._dismiss()

    def tried(self, jobs: Sequence[Job]) -> Iterator[Trial]:
        """Every candidate, tried; one whose process dies is tried again, and fails the third time.

        Raises:
            DataError: a machine of the cluster does not see the cache, or has no Segue.
            UsageError: no cluster answers.
        """
        if self._ray:
            yield from _over_cluster(jobs, connect(self._ray), self._work)
        elif self._parallel == 1:
            yield from map(self._work, jobs)
        else:
            yield from self._in_processes(jobs)

    def _in_processes(self, jobs: Sequence[Job]) -> Iterator[Trial]:
        left, futures = {job.trial: job for job in jobs}, list[Future[Trial]]()
        try:
            self._pool = self._pool or _processes(self._parallel)
            for job in jobs:  # which fails where a process died since the last ones were tried
                futures.append(self._pool.submit(self._work, job))
            for future in as_completed(futures):
                trial = future.result()
                del left[trial.trial]
                yield trial
        except BrokenProcessPool:
            self._dismiss()
        finally:  # who asks no further does not wait for what has not begun
            for future in futures:
                future.cancel()
        for job in left.values():  # a process died, and took with it what waited
            yield _alone(job, self._work)

    def _dismiss(self) -> None:
        """Ends the processes; what has not begun is not tried."""
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
        self._pool = None


def _processes(count: int) -> ProcessPoolExecutor:
    """Processes of their own for candidates."""
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _begin)


def _begin() -> None:
    """Leaves Ctrl-C, which a terminal sends to all, to the process that started this one; ends when that one does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    """Ends this process as soon as the other has: one that was killed leaves nothing behind."""
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def _alone(job: Job, work: Callable[[Job], Trial]) -> Trial:
    """A candidate in a process of its own, so that it is known whose fault it is when that dies."""
    for _ in range(TRIES - 1):
        with _processes(1) as pool:
            try:
                return pool.submit(work, job).result()
            except BrokenProcessPool:
                continue
    return died(job)


def _over_cluster(jobs: Sequence[Job], ray: Any, work: Callable[[Job], Trial]) -> Iterator[Trial]:
    """One task a candidate, on one CPU each; Ray tries again where a worker died, not where ``work`` failed."""
    task = ray.remote(num_cpus=1, max_retries=TRIES - 1)(work)
    left = {task.remote(job): job for job in jobs}
    while left:
        (reference, *_), _ = ray.wait(list(left))
        job = left.pop(reference)
        try:
            trial: Trial = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, FileNotFoundError):
                raise DataError(
                    f"a machine of the cluster does not see {job.cache}; put --out on a disk that all of them share"
                ) from None
            if "failed to import" in str(error):
                raise DataError(f"a machine of the cluster lacks this Segue: {str(error).splitlines()[-1]}") from None
            raise
        except ray.exceptions.RayError:
            trial = died(job)
        yield trial


def died(job: Job) -> Trial:
    """A candidate whose process died every time."""
    return Trial(
        job.trial, job.genotype, "failed", job.log_probability, error=f"{DIED}: {WHY}", error_type=DIED,
        policy_version=len(job.before), finished=time.time(),
    )  # fmt: skip
