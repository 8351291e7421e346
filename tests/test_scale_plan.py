"""The simulation behind docs/scale.md, against cases worked out by hand."""

import importlib.util
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

PATH = Path(__file__).parents[1] / "benchmarks" / "speed" / "scale_plan.py"
spec = importlib.util.spec_from_file_location("scale_plan", PATH)
assert spec is not None
assert spec.loader is not None
plan = importlib.util.module_from_spec(spec)
sys.modules["scale_plan"] = plan  # dataclasses look their module up
spec.loader.exec_module(plan)

# Two GPUs, 4 images each of 10 ms: a step of 40 ms, 200 images a second, and nothing else to wait for.
IMAGE = plan.Image(size=1e5, load=0.001, compute=0.01)
CLUSTER = plan.Cluster(gpus=2, cores=1, storage=1e9, link=1e10, latency=0.0, disk=1e9)
TRAINING = plan.Training(batch=4, gradients=1e8, checkpoint=1e9, every=math.inf, queue=8, overlap=0.5)


def test_a_ring_by_hand() -> None:
    # 4 GPUs, 8 GB, 1 GB/s: 2 * 3 pieces of 2 GB, and 6 messages of half a second
    assert plan.ring(8e9, 4, 1e9, 0.5) == pytest.approx(12 + 3)
    assert plan.ring(8e9, 1, 1e9, 0.5) == 0


def test_a_step_that_waits_for_nothing_by_hand() -> None:
    found = plan.simulate(IMAGE, CLUSTER, TRAINING, steps=50)
    # gradients: 2 pieces of 50 MB at 10 GB/s are 10 ms, of which half of 40 ms is hidden: none is left
    assert found.rate == pytest.approx(200)
    assert found.shares["compute"] == pytest.approx(1)


def test_gradients_that_do_not_hide_by_hand() -> None:
    found = plan.simulate(IMAGE, replace(CLUSTER, link=1e9), TRAINING, steps=50)
    # 100 ms of sending, 20 ms hidden: 80 ms more a step of 40 ms
    assert found.rate == pytest.approx(8 / 0.12)
    assert found.shares["gradients"] == pytest.approx(2 / 3)
    assert found.bottleneck() == "gradients"


@pytest.mark.parametrize(("changes", "cause"), [({"load": 0.02}, "loader"), ({"size": 1e7}, "storage")])
def test_a_loader_of_fifty_images_a_second_gives_fifty_a_gpu(changes: dict[str, float], cause: str) -> None:
    found = plan.simulate(replace(IMAGE, **changes), CLUSTER, TRAINING, steps=5000)
    # a step takes 4 / 50 s instead of 40 ms, the full queue at the beginning aside
    assert found.rate == pytest.approx(100, rel=1e-3)
    assert found.shares[cause] == pytest.approx(0.5, rel=1e-2)
    assert found.bottleneck() == cause


def test_checkpoints_by_hand() -> None:
    found = plan.simulate(IMAGE, CLUSTER, replace(TRAINING, every=4.0), steps=10_000)
    # every 100 steps of 40 ms, 1 s for 1 GB at 1 GB/s
    assert found.shares["checkpoint"] == pytest.approx(1 / 5, rel=1e-2)


def test_failures_by_hand() -> None:
    cluster = replace(CLUSTER, life=2000.0, restart=40.0)
    # one every 1000 s, which costs 40 s and half of 120 s: 100 of 1100 s
    assert plan.lost_to_failures(cluster, 120.0) == pytest.approx(1 / 11)
    assert plan.lost_to_failures(CLUSTER, 120.0) == 0


def test_the_slowest_of_many_is_waited_for() -> None:
    rates = [
        plan.simulate(IMAGE, replace(CLUSTER, gpus=n, storage=1e12, link=1e15, jitter=0.1), TRAINING, steps=300).rate
        / n
        for n in (1, 16, 256)
    ]
    assert rates[0] > rates[1] > rates[2] > 100 / 1.5
    # the largest of 256 normal draws lies at about 2.8 deviations
    assert rates[2] == pytest.approx(100 / 1.28, rel=0.03)


def test_more_of_anything_is_never_slower() -> None:
    slow = replace(IMAGE, load=0.02, size=1e7)
    base = plan.simulate(slow, CLUSTER, TRAINING, steps=200).rate
    for more in ({"cores": 4.0}, {"storage": 1e10}, {"link": 1e11}, {"cores": 4.0, "storage": 1e10}):
        assert plan.simulate(slow, replace(CLUSTER, **more), TRAINING, steps=200).rate >= base - 1e-9


def test_costs_are_measured_on_real_pictures() -> None:
    found = plan.measure(6, 0)
    assert all(value > 0 for value in found.values())
    assert 10_000 < found["bytes of an image and its mask"] < 400_000
    assert found["read, s"] < found["read, decode, cut, recolour, s"]
