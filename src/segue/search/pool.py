"""Candidates in this process, in several, or over a Ray cluster: the same results, in the order they finish."""

import contextlib
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from segue.errors import DataError
from segue.processes.cluster import connect
from segue.search.candidates import Job, try_candidate
from segue.search.trials import Trial

TRIES = 3  # how often a candidate is tried whose process dies


def tried(
    jobs: Sequence[Job], parallel: int, work: Callable[[Job], Trial] = try_candidate, *, ray: str = ""
) -> Iterator[Trial]:
    """Every candidate, tried; one whose process dies is tried again, and fails the third time.

    Args:
        jobs: what to try.
        parallel: processes; 1 takes this one.
        work: tries one.
        ray: address of a Ray cluster, which then takes the place of processes; see `segue.processes.cluster.connect`.

    Raises:
        DataError: a machine of the cluster does not see the cache, or has no Segue.
        UsageError: no cluster answers.
    """
    if ray:
        yield from _over_cluster(jobs, connect(ray), work)
        return
    if parallel == 1:
        yield from map(work, jobs)
        return
    left = {job.trial: job for job in jobs}
    with _processes(parallel) as pool:
        futures = [pool.submit(work, job) for job in jobs]
        try:
            with contextlib.suppress(BrokenProcessPool):
                for future in as_completed(futures):
                    trial = future.result()
                    del left[trial.trial]
                    yield trial
        finally:
            pool.shutdown(cancel_futures=True)  # who asks no further does not wait for what has not begun
    for job in left.values():  # a process died, and took with it what waited
        yield _alone(job, work)


def _processes(count: int) -> ProcessPoolExecutor:
    """Processes that leave Ctrl-C, which a terminal sends to all, to the one that started them."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(count, context, signal.signal, (signal.SIGINT, signal.SIG_IGN))


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
        job.trial, job.genotype, "failed", job.log_probability, error="ProcessDied: killed by the system",
        error_type="ProcessDied", policy_version=len(job.before), finished=time.time(),
    )  # fmt: skip
