"""`segue predict --ray`: what one process writes, also where workers die."""

import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import CLASSES, COLORS, write_model

from segue.data.listing import Pair
from segue.models.mask_classifier import MaskClassifier, MaskClassifierSpec
from segue.prediction.bulk import TRIES, Work, over_cluster, write_batch
from segue.prediction.pictures import Account, find_images
from segue.processes.cluster import connect
from segue.weights import AnyModel, load_any, save_model

Segue = Callable[..., tuple[int, str, str]]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


@pytest.fixture
def cluster() -> Iterator[Any]:
    ray = pytest.importorskip("ray", reason="the extra ray is not installed")
    os.environ.pop("RAY_ADDRESS", None)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield connect()
    ray.shutdown()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.slow
def test_two_workers_write_what_one_process_writes_though_one_is_killed_in_the_middle(
    segue: Segue, cluster: Any, source: Path, dataset: Path, tmp_path: Path
) -> None:
    model, pairs = load_any(str(source)), find_images([str(dataset / "images")])
    alone = Work(str(source), tmp_path / "alone")
    assert write_batch(model, pairs, alone).written == 10
    calls = tmp_path / "calls"
    calls.mkdir()

    def dies(model: AnyModel, part: Sequence[Pair], work: Work) -> Account:
        """The second batch loses its worker after one picture, once; one picture always."""
        (calls / f"{os.getpid()}_{part[0].name}").touch()
        if len(part) > 1 and any(pair.name == "train_003" for pair in part):
            write_batch(model, part[:1], work)
            os.kill(os.getpid(), signal.SIGKILL)
        if len(part) == 1 and part[0].name == "val_006":
            os.kill(os.getpid(), signal.SIGKILL)
        if len(part) > 1 and any(pair.name == "val_006" for pair in part):
            os.kill(os.getpid(), signal.SIGKILL)
        return write_batch(model, part, work)

    spread, ticks = Work(str(source), tmp_path / "spread"), []
    account = over_cluster(cluster, model, pairs, spread, batch=3, write=dies, tick=lambda: ticks.append(1))
    assert (account.written, account.there, list(account.failed)) == (9, 0, [str(dataset / "images" / "val_006.png")])
    assert f"{TRIES} workers died over it" in account.failed[str(dataset / "images" / "val_006.png")]
    assert len(ticks) == 10
    expected = {name: data for name, data in contents(alone.out).items() if "val_006" not in name}
    assert contents(spread.out) == expected
    assert len({path.name.split("_")[0] for path in calls.iterdir()}) > 2  # workers, new ones in place of the dead

    again = over_cluster(cluster, model, pairs, spread, batch=3)  # and goes on where it was cut
    assert (again.written, again.there, again.failed) == (1, 9, {})
    assert contents(spread.out) == contents(alone.out)

    (dataset / "images" / "broken.png").write_bytes(b"none")
    status, output, errors = segue("predict", source, dataset / "images", "--out", tmp_path / "by_command", "--ray")
    assert status == 2
    assert "10 of 11 images written" in output
    refused = [line for line in errors.splitlines() if not line.startswith("predict ")]
    assert len(refused) == 1  # beside its progress, where it is slow
    assert "broken.png" in refused[0]
    assert contents(tmp_path / "by_command" / "labels") == contents(alone.out / "labels")

    panoptic = MaskClassifier(
        MaskClassifierSpec(
            "test_efficientnet", CLASSES, COLORS, (1, 2), width=32, queries=5, pixel_layers=1, decoder_layers=1,
            feedforward=32,
        )
    ).eval()  # fmt: skip
    place = save_model(panoptic, tmp_path / "panoptic", method="mask_classification", metrics={})
    (dataset / "images" / "broken.png").unlink()
    for name, more in (("here", ()), ("there", ("--ray",))):
        assert segue("predict", place, dataset / "images", "--out", tmp_path / name, *more)[0] == 0
    assert contents(tmp_path / "here") == contents(tmp_path / "there")


@pytest.mark.slow
def test_machines_that_do_not_see_the_folders_are_told(
    cluster: Any, source: Path, dataset: Path, tmp_path: Path
) -> None:
    model, pairs = load_any(str(source)), find_images([str(dataset / "images")])
    work = Work(str(source), tmp_path / "out")
    with pytest.raises(ValueError, match=r"cannot load .*elsewhere.* put it on a disk that all of them share"):
        over_cluster(cluster, model, pairs, replace(work, source=str(tmp_path / "elsewhere")))

    def away(model: AnyModel, part: Sequence[Pair], work: Work) -> Account:
        return write_batch(model, part, replace(work, out=work.out.with_name("own")))

    with pytest.raises(ValueError, match=r"has a .*out of its own; put --out on a disk"):
        over_cluster(cluster, model, pairs, work, write=away)


def test_an_address_that_nobody_answers_writes_nothing(
    segue: Segue, source: Path, dataset: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="the extra ray is not installed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"127.0.0.1:{port}"
    status, _, errors = segue("predict", source, dataset / "images", "--out", tmp_path / "out", "--ray", address)
    assert (status, errors.count("\n")) == (2, 1)
    assert f"--ray {address}: nothing answers there" in errors
    assert not (tmp_path / "out").exists()
