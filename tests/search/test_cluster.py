"""Candidates over a Ray cluster: an address that is none, workers that die, the same results as in one process."""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, write_set
from test_contract import SEARCH, semantic_teacher

from segue.config import build
from segue.engine import Run
from segue.errors import DataError, UsageError
from segue.methods.compact_search import Config, cached, recipe_of
from segue.processes.cluster import connect
from segue.search import pool
from segue.search.candidates import Job
from segue.search.data import open_compression
from segue.search.trials import Trial

ARCH1 = "[[2, [1, 0, 3, 6], [0, 1, 2, 8], [2, 0, 6, 1]], [[2, 3], [3, 1]]]"


def test_an_address_that_does_not_answer_is_one_line_and_nothing_is_written(
    segue: Callable[..., tuple[int, str, str]], dataset: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # taken, and nobody listens
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        started, out = time.monotonic(), tmp_path / "run"
        teacher = semantic_teacher(tmp_path / "teacher")
        status, _, errors = segue("compress", teacher, "--data", dataset, "--out", out, "--ray", address)
    assert status == 2
    assert len(errors.strip().splitlines()) == 1
    assert f"--ray {address}: nothing answers there" in errors
    assert not out.exists()
    assert time.monotonic() - started < 60  # the machine may be busy; on an idle one it is the import of Ray


@pytest.mark.parametrize("address", ["nonsense", "host:", "ray://host", "host:no"])
def test_what_is_no_address_is_told(address: str) -> None:
    pytest.importorskip("ray")
    with pytest.raises(UsageError, match="write host:port"):
        connect(address)


@pytest.fixture
def cluster() -> Iterator[Any]:
    ray = pytest.importorskip("ray")
    os.environ.pop("RAY_ADDRESS", None)
    yield connect()
    ray.shutdown()


@pytest.mark.slow
def test_over_a_cluster_as_in_one_process_and_a_dead_worker_costs_its_candidate_alone(
    cluster: Any, tmp_path: Path
) -> None:
    def dies(job: Job) -> Trial:  # candidate 1 kills its worker always, candidate 2 once
        flag = job.cache / f"died_{job.trial}"
        if job.trial == 1 or (job.trial == 2 and not flag.exists()):
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return Trial(job.trial, job.genotype, "done", reward1=0.5)

    values = {**TINY, **SEARCH, "data": str(write_set(tmp_path / "set", train=10, size=64))}
    del values["decoder_channels"]
    config = build(Config, {**values, "teacher": str(semantic_teacher(tmp_path / "teacher"))})
    run = Run(tmp_path / "run", quiet=True)
    run.open()
    data = open_compression(config.teacher, config.data, seed=0)
    cache, recipe = cached(config, run, data, None), recipe_of(config, data.training.classes, 0)
    jobs = [Job(cache.folder, recipe, n, ARCH1.replace("[[2,", f"[[{n},", 1)) for n in range(4)]
    alone, spread = (
        {t.trial: (t.reward1, t.reward2, t.state) for t in pool.Workers(1, ray=ray).tried(jobs[:2])}
        for ray in ("", "auto")
    )
    assert alone == spread
    found = {trial.trial: trial for trial in pool.Workers(1, dies, ray="auto").tried(jobs)}
    assert [found[n].state for n in range(4)] == ["done", "failed", "done", "done"]
    assert (found[1].reward1, found[1].error_type) == (None, "ProcessDied")
    with pytest.raises(DataError, match="does not see"):
        list(pool.Workers(1, ray="auto").tried([Job(tmp_path / "elsewhere", recipe, 0, ARCH1)]))
