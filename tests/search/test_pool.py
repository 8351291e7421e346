"""Candidates in processes of their own: those that die while nothing is asked of them."""

import multiprocessing
import time
from pathlib import Path
from typing import Any

import pytest

from segue.search.candidates import Job
from segue.search.pool import Workers
from segue.search.trials import Trial


def tries(job: Job) -> Trial:
    return Trial(job.trial, job.genotype, "done", reward1=0.5)


@pytest.mark.slow
def test_a_process_that_dies_between_two_generations_costs_no_candidate() -> None:
    nothing: Any = None

    def generation(start: int) -> list[Job]:
        return [Job(Path(), nothing, number, "") for number in range(start, start + 2)]

    def tried(jobs: list[Job]) -> dict[int, str]:
        return {trial.trial: trial.state for trial in workers.tried(jobs)}

    with Workers(2, tries) as workers:
        assert tried(generation(0)) == {0: "done", 1: "done"}
        multiprocessing.active_children()[0].kill()
        deadline = time.monotonic() + 60
        while multiprocessing.active_children() and time.monotonic() < deadline:
            time.sleep(0.05)  # until it is noticed: the others are ended then
        assert tried(generation(2)) == {2: "done", 3: "done"}
        assert tried(generation(4)) == {4: "done", 5: "done"}  # in new processes
