"""Candidates in this process, or in several: the same results, in the order they finish."""

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from segue.search.candidates import Job, try_candidate
from segue.search.trials import Trial

TRIES = 3  # how often a candidate is tried whose process dies


def tried(jobs: Sequence[Job], parallel: int, work: Callable[[Job], Trial] = try_candidate) -> Iterator[Trial]:
    """Every candidate, tried; one whose process dies is tried again, and fails the third time.

    Args:
        jobs: what to try.
        parallel: processes; 1 takes this one.
        work: tries one.
    """
    if parallel == 1:
        yield from map(work, jobs)
        return
    left = {job.trial: job for job in jobs}
    for attempt in range(TRIES):
        # Once processes have died, one at a time: then it is known whose fault it is.
        with ProcessPoolExecutor(parallel if attempt == 0 else 1, multiprocessing.get_context("spawn")) as pool:
            futures = [pool.submit(work, job) for job in left.values()]
            try:
                for future in as_completed(futures):
                    trial = future.result()
                    del left[trial.trial]
                    yield trial
            except BrokenProcessPool:
                continue
        break
    for job in left.values():
        yield died(job)


def died(job: Job) -> Trial:
    """A candidate whose process died every time."""
    return Trial(
        job.trial, job.genotype, "failed", job.log_probability, error="ProcessDied: killed by the system",
        error_type="ProcessDied", policy_version=len(job.before), finished=time.time(),
    )  # fmt: skip
