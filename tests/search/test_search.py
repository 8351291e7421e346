"""Controller, strategies, gate and ledger: each against a value by hand, a rate, or a crash."""

import math
import random
import resource
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import torch
from conftest import Child

from segue.errors import DataError
from segue.models.compact import Genotype, choices_of
from segue.processes.signals import Preempted, Signals
from segue.records import SEARCH
from segue.runs.folder import Run
from segue.search.controller import Controller, Feedback, Policy, clipped
from segue.search.gate import chance, decide, statistics, temperature
from segue.search.latency import Cost, Table
from segue.search.report import Teller
from segue.search.strategies import (
    DRAWS,
    Evolution,
    InTime,
    LearntController,
    Name,
    RandomSearch,
    Strategy,
    strategy,
)
from segue.search.trials import DIED, LEDGER, Trial, Trials

SOUND = "[[0, [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], [[0, 1], [2, 3]]]"


# -- controller --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("feedback", ["token", "none"])
def test_an_untrained_controller_is_nearly_uniform(feedback: Feedback) -> None:
    torch.manual_seed(0)
    controller = Controller(2, feedback)
    generator = torch.Generator().manual_seed(0)
    drawn = [controller.sample(generator) for _ in range(200)]
    uniform = -sum(math.log(n) for n in choices_of(2))
    assert sum(p for _, p in drawn) / 200 == pytest.approx(uniform, abs=0.5)
    for t, choices in enumerate(choices_of(2)):
        counts = Counter(tokens[t] for tokens, _ in drawn)
        deviation = math.sqrt(200 / choices * (1 - 1 / choices))
        assert all(abs(counts[v] - 200 / choices) < 5 * deviation for v in range(choices)), (t, counts)


def test_the_published_controller_has_the_published_size() -> None:
    assert sum(p.numel() for p in Controller(3, "none").parameters()) == 168_871


@pytest.mark.parametrize("feedback", ["token", "none"])
def test_probability_of_a_sample_is_what_teacher_forcing_says(feedback: Feedback) -> None:
    torch.manual_seed(1)
    controller = Controller(2, feedback)
    tokens, log_probability = controller.sample(torch.Generator().manual_seed(3))
    assert float(controller.log_probability(torch.tensor([tokens]))) == pytest.approx(log_probability, abs=1e-4)


def test_only_token_feedback_lets_a_decision_depend_on_the_last() -> None:
    one, other = torch.zeros(1, 17, dtype=torch.long), torch.zeros(1, 17, dtype=torch.long)
    other[0, 0] = 3
    for feedback, differs in (("token", True), ("none", False)):
        torch.manual_seed(0)
        controller = Controller(2, feedback)  # type: ignore[arg-type]
        found = controller.log_probability(torch.cat([one, other]))
        x, state = controller._warm(1)
        head = controller._decide(0, x, state)[0].log_softmax(1)[0]
        rest = found - torch.stack([head[0], head[3]])
        assert bool((rest[0] - rest[1]).abs() > 1e-4) == differs


def test_clipping_by_hand() -> None:
    ratio, advantage = torch.tensor([1.2, 0.8, 1.0]), torch.tensor([1.0, -1.0, 2.0])
    # min(1.2, 1.1), min(-0.8, -0.9), min(2, 2)
    assert float(clipped(ratio, advantage)) == pytest.approx(-(1.1 - 0.9 + 2.0) / 3)


@pytest.mark.slow
def test_ppo_raises_the_probability_of_what_is_rewarded() -> None:
    policy = Policy(2, seed=0)
    place = 4  # op_0
    for _ in range(50):
        tokens, log_probability = policy.propose()
        policy.learn(tokens, log_probability, 1.0 if tokens[place] == 3 else 0.0)
    drawn = Counter(policy.propose()[0][place] for _ in range(200))
    assert drawn[3] > 2 * 200 / 11


# -- strategies --------------------------------------------------------------------------------------------------------


def landscape(genotype: Genotype) -> float:
    """Tokens that are large are good: something that chance does not find."""
    return sum(t / n for t, n in zip(genotype.tokens(), choices_of(2), strict=True))


def best_after(found: Strategy, asks: int) -> float:
    best = -math.inf
    for _ in range(asks):
        proposal = found.ask()
        reward = landscape(proposal.genotype)
        found.tell(proposal, reward)
        best = max(best, reward)
    return best


@pytest.mark.slow
@pytest.mark.parametrize("name", ["controller", "evolution", "random"])
def test_a_strategy_is_a_function_of_its_seed_and_of_what_it_was_told(name: Name) -> None:
    one, other = strategy(name, 2, 7), strategy(name, 2, 7)
    for _ in range(25):
        first, second = one.ask(), other.ask()
        assert first == second
        assert not first.genotype.fault()
        one.tell(first, landscape(first.genotype))
        other.tell(second, landscape(second.genotype))
    assert strategy(name, 2, 8).ask() != strategy(name, 2, 7).ask()


def test_evolution_finds_better_than_chance() -> None:
    evolved = [best_after(strategy("evolution", 2, seed), 200) for seed in range(4)]
    drawn = [best_after(strategy("random", 2, seed), 200) for seed in range(4)]
    assert min(evolved) > max(drawn)


def test_children_differ_in_one_decision_and_the_oldest_dies() -> None:
    found = Evolution(2, 0, population=4, tournament=2)
    parents = []
    for i in range(4):
        proposal = found.ask()
        found.tell(proposal, float(i))
        parents.append(proposal.genotype.tokens())
    child = found.ask()
    assert min(sum(a != b for a, b in zip(child.genotype.tokens(), p, strict=True)) for p in parents) == 1
    found.tell(child, 0.5)
    assert parents[0] not in [tokens for tokens, _ in found.living]


@pytest.mark.parametrize("name", ["controller", "evolution", "random"])
def test_what_misses_the_target_by_far_is_drawn_again(name: Name) -> None:
    """One in five is in time: all that is proposed is, what was told goes on to the strategy, and nothing else."""
    asked = Counter[bool]()

    def share(genotype: str) -> float:
        is_in_time = Genotype.parse(genotype).first <= 1
        asked[is_in_time] += 1
        return 0.95 if is_in_time else 0.4

    found, other = strategy(name, 2, 7, share=share), strategy(name, 2, 7)
    proposals = [found.ask() for _ in range(23)]
    assert {proposal.genotype.first <= 1 for proposal in proposals} == {True}
    assert asked[True] == 23
    drawn = [other.ask().genotype for _ in range(sum(asked.values()))]
    if name != "evolution":  # whose later draws depend on what it was told
        assert [p.genotype for p in proposals] == [genotype for genotype in drawn if genotype.first <= 1]
    found.tell(proposals[0], 1.0)
    assert isinstance(found, InTime)
    if isinstance(found.asked, Evolution):
        assert found.asked.living[-1] == (proposals[0].genotype.tokens(), 1.0)
    if isinstance(found.asked, LearntController):
        assert found.asked.policy.baseline is not None


def test_where_every_genotype_misses_it_the_nearest_are_taken_each_once() -> None:
    shares: list[float] = []

    def share(genotype: str) -> float:
        shares.append(Genotype.parse(genotype).first / 20)
        return shares[-1]

    found = strategy("random", 2, 0, share=share)
    assert found.ask().genotype.first / 20 == max(shares) == 0.5
    assert len(shares) == DRAWS

    evolved = strategy("evolution", 2, 0, share=lambda genotype: 0.5 * len(set(genotype)) / 20)
    parents = RandomSearch(2, 0)
    for _ in range(20):
        evolved.tell(parents.ask(), 1.0)
    assert len({evolved.ask().genotype for _ in range(8)}) == 8


# -- gate A ------------------------------------------------------------------------------------------------------------


def test_one_deviation_below_passes_with_the_stated_chances() -> None:
    shares = [chance(-1.0, temperature(k, 100)) for k in (0, 50, 100)]
    assert shares == pytest.approx([0.90, 0.61, 0.10], abs=0.005)
    assert [chance(-2.0, temperature(k, 100)) for k in (0, 50, 100)] == pytest.approx([0.81, 0.37, 0.01], abs=0.005)


def test_statistics_by_hand_and_of_a_constant() -> None:
    # weights 0.05 * 0.95 and 0.05 of rewards 1 and 3, over 1 - 0.95^2
    mu = (0.0475 * 1 + 0.05 * 3) / 0.0975
    second = (0.0475 * 1 + 0.05 * 9) / 0.0975
    assert statistics([1.0, 3.0]) == pytest.approx((mu, math.sqrt(second - mu**2)))
    assert statistics([0.4] * 30) == pytest.approx((0.4, 1e-3))


def test_acceptance_has_the_frequency_of_the_rule_within_binomial_error() -> None:
    before = [random.Random(0).gauss(0.5, 0.1) for _ in range(40)]
    mu, s = statistics(before)
    for z in (-0.5, -1.0, -2.0):
        expected = chance(z, temperature(40, 60))
        found = [
            decide("metropolis", mu + z * s, before, trial=39, planned=60, seed=seed).accepted for seed in range(2000)
        ]
        assert sum(found) / 2000 == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 2000))


def test_ten_candidates_are_free_however_few_rewards_a_generation_was_told_of() -> None:
    before = [0.5 + 0.01 * (-1) ** k for k in range(8)]  # the ninth to sixteenth are asked for when eight are known
    found = [
        [decide("metropolis", 0.0, before, trial=trial, planned=60, seed=seed).accepted for seed in range(20)]
        for trial in range(8, 16)
    ]
    assert [all(passed) for passed in found] == [True, True, *[False] * 6]


def test_the_published_rule_lets_nearly_all_pass_at_budgets_people_have() -> None:
    draws = random.Random(0)
    rewards = [draws.gauss(0.5, 0.06) for _ in range(200)]
    passed = {
        rule: sum(decide(rule, r, rewards[:k], trial=k, planned=200, seed=0).accepted for k, r in enumerate(rewards))
        for rule in ("published", "metropolis", "always", "never")
    }
    assert passed["published"] > 195
    assert 140 < passed["metropolis"] < 190
    assert (passed["always"], passed["never"]) == (200, 0)


def test_the_time_left_counts_the_limit_and_what_runs_at_once(tmp_path: Path) -> None:
    run, told = Run(tmp_path / "run", quiet=True), list[str]()
    run.say = told.append  # type: ignore[method-assign]
    known = {n: Trial(n, SOUND, "done", reward1=0.5, seconds1=15.0, seconds2=5.0, cpu1=8.0, cpu2=2.0) for n in range(8)}
    # 52 candidates of 20 s on the wall, two at once
    Teller(run, Cost(), planned=60, minutes=0.0, at_once=2).tell(known[7], known)
    assert "8.7 min left at 20.0 s each" in told[-1]
    run.rewind(SEARCH, 0)
    # 80 of 120 CPU seconds are spent: 4 more of 10, which take 20 on the wall
    Teller(run, Cost(), planned=60, minutes=2.0, at_once=2).tell(known[7], known)
    assert "0.7 min left" in told[-1]


def test_a_search_ends_at_a_signal_though_no_candidate_is_left(tmp_path: Path) -> None:
    run, told = Run(tmp_path / "run", quiet=True), list[str]()
    run.say = told.append  # type: ignore[method-assign]
    teller, signals = Teller(run, Cost(), planned=1, minutes=0.0, at_once=1), Signals()
    teller.end_at(signals, {})
    signals.seen = True
    with pytest.raises(Preempted):
        teller.end_at(signals, {0: Trial(0, SOUND, "done", reward1=0.5)})
    assert told[-1] == "stopped by a signal after 1 candidates; the same command goes on from there"


def test_that_no_draw_comes_near_the_target_is_said_once(tmp_path: Path) -> None:
    run, told = Run(tmp_path / "run", quiet=True), list[str]()
    run.say = told.append  # type: ignore[method-assign]
    table = Table((1.0,) * 4, (0.0,) * 4, ((0.0,) * 11,) * 4, (0.0,) * 4, (0.0,) * 4, (0.0,) * 4)
    known = {n: Trial(n, SOUND, "done", reward1=0.5, latency=t) for n, t in enumerate((11.0, 12.0, 30.0))}
    teller = Teller(run, Cost(table, target=10.0), planned=60, minutes=0.0, at_once=1)
    for trial in known.values():
        teller.tell(trial, known)
    warned = [line for line in told if line.startswith("warning")]
    assert len(warned) == 1
    assert "drawn for candidate 1 comes near the target; the nearest, of 12 ms" in warned[0]


def test_a_search_does_not_go_on_with_another_table_of_times(tmp_path: Path) -> None:
    Trials(tmp_path / LEDGER, "a search")
    sizes = {"blocks": 2, "channels": 8, "repeats": 1, "classes": 3, "threads": 1}
    with pytest.raises(
        DataError, match=r"latency\.json is gone, and the candidates in .*trials\.sqlite were chosen by"
    ):
        Cost.made(tmp_path / "latency.json", torch.nn.Identity(), target="10ms@64x64", power=1.0, **sizes)


# -- ledger ------------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_and_a_second_write_changes_nothing(tmp_path: Path) -> None:
    ledger = Trials(tmp_path / "trials.sqlite", "a")
    trial = Trial(0, SOUND, "done", reward1=0.25, parts1={"miou": 0.5}, mu=0.1, reward2=0.5, macs=7, latency=None)
    ledger.add(trial)
    ledger.add(Trial(0, SOUND, "failed", error="OutOfMemoryError: no"))
    assert Trials(tmp_path / "trials.sqlite", "a").all() == {0: trial}


def test_a_process_that_died_is_tried_again_while_nothing_was_asked_for_since(tmp_path: Path) -> None:
    ledger = Trials(tmp_path / "trials.sqlite", "a search")
    for number in range(11):
        died = number in (3, 9)
        state = {"state": "failed", "error_type": DIED} if died else {"state": "done", "reward1": 0.5}
        ledger.add(Trial(number, SOUND, **state))
    assert set(ledger.resumed(8)) == {*range(9), 10}
    assert ledger.all()[3].error_type == DIED  # later candidates were proposed without it
    assert 9 not in ledger.all()


def test_a_ledger_of_another_search_and_a_file_that_is_none_are_refused(tmp_path: Path) -> None:
    Trials(tmp_path / "trials.sqlite", "a")
    with pytest.raises(DataError, match="another search"):
        Trials(tmp_path / "trials.sqlite", "b")
    (tmp_path / "other.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(DataError, match="is no ledger"):
        Trials(tmp_path / "other.sqlite", "a")


def test_a_ledger_of_another_version_is_refused(tmp_path: Path) -> None:
    Trials(tmp_path / "trials.sqlite", "a")
    with closing(sqlite3.connect(tmp_path / "trials.sqlite")) as ledger, ledger:
        ledger.execute("ALTER TABLE trials DROP COLUMN verdict")
    with pytest.raises(DataError, match="another version of Segue"):
        Trials(tmp_path / "trials.sqlite", "a")


def test_a_database_of_another_program_is_no_ledger(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "trials.sqlite")) as other, other:
        other.execute("CREATE TABLE search (words TEXT)")
    with pytest.raises(DataError, match=r"is no ledger of a search .*; name another folder"):
        Trials(tmp_path / "trials.sqlite", "a")


@contextmanager
def hampered(pragma: str) -> Iterator[None]:
    """Connections that are made meanwhile begin with a pragma."""
    connect = sqlite3.connect

    def begun(path: Path, timeout: float) -> sqlite3.Connection:
        ledger = connect(path, timeout=timeout)
        ledger.execute(f"PRAGMA {pragma}")
        return ledger

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", begun)
        yield


@pytest.mark.parametrize(
    ("pragma", "told"),
    [
        ("max_page_count = 2", r"disk is full\).* kept: make room on the disk and give the same command again"),
        ("query_only = ON", r"readonly .* kept: make it and its folder writable and give the same command again"),
    ],
)
def test_a_ledger_that_the_disk_does_not_let_be_made_is_made_once_it_does(
    tmp_path: Path, pragma: str, told: str
) -> None:
    path = tmp_path / "trials.sqlite"
    with hampered(pragma), pytest.raises(DataError, match=f"cannot be opened .*{told}"):
        Trials(path, "a")
    assert not Trials(path, "a").all()


def test_a_ledger_that_another_program_holds_is_not_said_to_be_damaged(tmp_path: Path) -> None:
    path = tmp_path / "trials.sqlite"
    ledger = Trials(path, "a")
    ledger.add(Trial(0, SOUND, "failed", error_type=DIED))
    told = r"\(database is locked\)\. The .* kept: end the other program that holds it and give the same command again"
    with closing(sqlite3.connect(path)) as other, hampered("busy_timeout = 0"):
        other.execute("BEGIN IMMEDIATE")  # which keeps others from writing
        with pytest.raises(DataError, match=f"candidate 0, whose process died, cannot be taken out {told}"):
            ledger.resumed(8)
        with pytest.raises(DataError, match=f"candidate 1 cannot be written {told}"):
            ledger.add(Trial(1, SOUND, "done"))
        other.rollback()
        other.execute("PRAGMA locking_mode = EXCLUSIVE")  # and from reading
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(DataError, match=f"cannot be read {told}"):
            ledger.all()
        with pytest.raises(DataError, match=f"cannot be opened {told}"):
            Trials(path, "a")
    assert set(Trials(path, "a").all()) == {0}


def test_a_ledger_that_became_read_only_keeps_the_candidate_that_died(tmp_path: Path) -> None:
    ledger = Trials(tmp_path / "trials.sqlite", "a")
    ledger.add(Trial(0, SOUND, "failed", error_type=DIED))
    with hampered("query_only = ON"), pytest.raises(DataError, match=r"taken out \(.*readonly .* kept: make it and"):
        ledger.resumed(8)
    assert not ledger.resumed(8)


def fill_the_disk(path: Path) -> None:
    ledger = Trials(path, "a")
    ledger.add(Trial(0, SOUND, "done", reward1=0.5))
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))  # what a full disk does, for this process alone
    try:
        for number in range(1, 1000):
            ledger.add(Trial(number, SOUND, "failed", error="x" * 500))
    except DataError as error:
        path.with_suffix(".told").write_text(str(error))


@pytest.mark.slow
def test_a_full_disk_is_told_and_costs_no_candidate_before(tmp_path: Path) -> None:
    path = tmp_path / "trials.sqlite"
    child = Child(fill_the_disk, path)
    assert child.status() == 0
    told = path.with_suffix(".told").read_text()
    assert "cannot be written" in told
    assert "give the same command again" in told
    found = Trials(path, "a").all()
    assert f"candidate {len(found)} " in told
    assert list(found) == list(range(len(found)))
    assert found[0].reward1 == 0.5


def write_without_end(path: Path) -> None:
    ledger = Trials(path, "a")
    for number in range(len(ledger.all()), 100_000):
        ledger.add(Trial(number, SOUND, "done", reward1=number / 7))


@pytest.mark.slow
def test_killed_at_any_moment_the_ledger_holds_whole_rows_without_a_gap(tmp_path: Path) -> None:
    path, draws, before = tmp_path / "trials.sqlite", random.Random(0), 0
    for _ in range(5):
        child = Child(write_without_end, path)
        while len(Trials(path, "a").all()) <= before:
            time.sleep(0.01)
        time.sleep(draws.uniform(0.0, 0.2))
        child.signal(signal.SIGKILL)
        assert child.status() == -signal.SIGKILL
        found = Trials(path, "a").all()
        assert list(found) == list(range(len(found)))
        assert all(trial.reward1 == number / 7 for number, trial in found.items())
        assert len(found) >= before
        before = len(found)
    assert before > 0
