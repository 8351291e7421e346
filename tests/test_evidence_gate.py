"""The replay of a gate: what a search with a rule does is what the replay of one without it says."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "evidence"))
import gate as script

from segue.search.latency import Cost, Table
from segue.search.trials import Trial

REWARDS = ((0.4, 0.5), (0.9, 0.6), (0.5, 0.8), (0.2, 0.3))


def search() -> script.Search:
    """Of each candidate the short training takes 10 s and training end to end 30 s; the third failed at once."""
    trials = [
        Trial(i, f"g{i}", "done", reward1=one, reward2=two, cpu1=10.0, cpu2=30.0)
        for i, (one, two) in enumerate(REWARDS)
    ]
    trials.insert(2, Trial(2, "failed", "failed", error="x", cpu1=5.0))
    return script.Search([script.replace(trial, trial=i) for i, trial in enumerate(trials)], Cost(), 5, 0)


def test_rules_and_budgets_by_hand() -> None:
    found = search()
    assert [trial.state for trial in found.replayed("always", 1e9)] == ["done", "done", "failed", "done", "done"]
    assert [trial.state for trial in found.replayed("never", 1e9)] == ["stopped", "stopped", "failed", *["stopped"] * 2]
    assert len(found.replayed("always", 39)) == 1  # the candidate that reaches the limit is the last
    assert len(found.replayed("always", 40)) == 2
    assert len(found.replayed("never", 25)) == 4  # 10 + 10 + 5 reach 25, and do not pass it
    assert found.replayed("metropolis", 1e9) == found.replayed("always", 1e9)  # the first ten pass
    pick = found.cost.best(found.replayed("never", 1e9))
    assert pick is not None
    assert (pick.genotype, found.worth(pick)) == (
        "g1",
        0.6,
    )  # by its short training; worth what training end to end says
    best = found.cost.best(found.replayed("always", 1e9))
    assert best is not None
    assert (best.genotype, found.worth(best)) == ("g2", 0.8)


def test_the_gate_draws_as_it_does_in_a_search() -> None:
    trials = [Trial(i, f"g{i}", "done", reward1=0.5 - 0.01 * (i % 7), reward2=0.5, cpu2=1.0) for i in range(40)]
    found = script.Search(trials, Cost(), 40, 3)
    stopped = [trial.trial for trial in found.replayed("metropolis", 1e9) if trial.state == "stopped"]
    expected = []
    for i, trial in enumerate(trials):
        before = [known.reward1 for known in trials[: i - i % script.GENERATION]]
        if not script.decide("metropolis", trial.reward1, before, trial=i, planned=40, seed=3).accepted:
            expected.append(i)
    assert stopped == expected
    assert stopped


def test_the_replayed_gate_charges_a_candidates_time() -> None:
    table = Table((10.0,) * 4, (0.0,) * 4, ((1.0,) * 11,) * 4, (0.5,) * 4, (0.0,) * 4, (2.0,) * 4)
    times = [80.0 if i % 2 else 20.0 for i in range(40)]  # a slow one is a little better
    trials = [
        Trial(i, f"g{i}", "done", reward1=0.6 if i % 2 else 0.5, reward2=0.5, latency=time)
        for i, time in enumerate(times)
    ]
    found = script.Search(trials, Cost(table, 20.0), 40, 3)
    stopped = [trial.trial for trial in found.replayed("metropolis", 1e9) if trial.state == "stopped"]
    assert stopped
    assert all(i % 2 for i in stopped)


def test_the_table_pairs_the_searches() -> None:
    shorter = script.replace(search(), planned=9)  # of nine that were planned five are there
    lines = script.table([search(), shorter], [20, 1000]).splitlines()
    assert len(lines) == 2 + 2 * 4
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
    by_key = {(seconds, rule): rest for seconds, rule, *rest in cells}
    assert by_key["1000", "never"] == ["5+", "0", "0.600", "-200.0 ± 0.0", "0.800"]
    assert by_key["20", "always"][:3] == ["1", "1", "0.500"]


def test_a_search_with_a_gate_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"identity": {"config": {"gate": "metropolis"}, "seed": 0}}')
    with pytest.raises(SystemExit, match="--gate metropolis"):
        script.Search.read(tmp_path)
