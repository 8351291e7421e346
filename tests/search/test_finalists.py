"""Gate B: who is trained in full, who wins, and how it is drawn."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from segue.engine import Run
from segue.errors import DataError
from segue.models.compact import (
    LR_ASPP,
    AuxiliaryHeads,
    CompactSegmenter,
    CompactSpec,
    Genotype,
    LiteDecoder,
)
from segue.report.plots import graph, points_of
from segue.search.finalists import (
    Entry,
    Outcome,
    best_trials,
    chosen_once,
    contest,
    controls,
    finalists,
    read_outcomes,
    take_log,
    winner,
)  # fmt: skip
from segue.search.latency import Cost, Speed, Table, measured_in_turn
from segue.search.picture import picture
from segue.search.trials import Trial

ARCH1 = "[[2, [1, 0, 3, 6], [0, 1, 2, 8], [2, 0, 6, 1]], [[2, 3], [3, 1]]]"
TABLE = Table((10.0,) * 4, (0.0,) * 4, ((1.0,) * 11,) * 4, (0.5,) * 4, (0.0,) * 4, (2.0,) * 4)


def test_finalists_are_distinct_and_those_trained_end_to_end_come_first() -> None:
    texts = [ARCH1.replace("[[2, [", f"[[{n}, [", 1) for n in range(5)]
    trials = [
        Trial(0, texts[0], "stopped", reward1=0.9),
        Trial(1, texts[1], "done", reward1=0.1, reward2=0.4),
        Trial(2, texts[2], "done", reward1=0.1, reward2=0.5),
        Trial(3, texts[2], "done", reward1=0.1, reward2=0.55),
        Trial(4, texts[3], "failed", error="OutOfMemoryError: no"),
        Trial(5, texts[4], "stopped", reward1=0.2),
    ]
    assert [trial.trial for trial in best_trials(trials, Cost(), 2)] == [3, 1]  # of one genotype the better trial
    assert [trial.trial for trial in best_trials(trials, Cost(), 9)] == [3, 1, 0, 5]


def test_one_far_above_the_target_ranks_among_the_stopped_by_its_short_training() -> None:
    texts = [ARCH1.replace("[[2, [", f"[[{n}, [", 1) for n in range(4)]
    cost = Cost(TABLE, target=20.0)
    trials = [
        Trial(0, texts[0], "done", reward1=0.65, reward2=0.60, latency=80.0),  # a quarter is left: 0.15 and 0.1625
        Trial(1, texts[1], "stopped", reward1=0.50, latency=20.0),
        Trial(2, texts[2], "stopped", reward1=0.16, latency=20.0),
    ]
    assert [trial.trial for trial in best_trials(trials, cost, 9)] == [1, 0, 2]
    best = cost.best(trials)
    assert best is not None
    assert best.trial == 1
    trials.append(Trial(3, texts[3], "done", reward1=0.3, reward2=0.4, latency=40.0))  # half is left: it is not far
    assert [trial.trial for trial in best_trials(trials, cost, 9)] == [3, 1, 0, 2]
    assert [trial.trial for trial in best_trials(trials, Cost(TABLE, 20.0, 0.0), 9)] == [0, 3, 1, 2]


def test_every_training_has_a_folder_and_a_seed_of_its_own() -> None:
    other = ARCH1.replace("[[2, [", "[[3, [", 1)
    found = [*finalists([ARCH1, other], 3), *controls([ARCH1], lr_aspp=True)]
    assert [entry.name for entry in found] == ["finalist 1"] * 3 + ["finalist 2"] * 3 + ["random 1", "LR-ASPP"]
    assert len({entry.folder for entry in found}) == 8
    assert [entry.seed(5) for entry in found[:3]] == [5, found[1].seed(5), found[5].seed(5)]
    assert len({entry.seed(5) for entry in found}) == 3


def test_the_winner_is_the_best_mean_after_its_time_is_charged() -> None:
    one = Outcome("finalist 1", "a", 0, 0.60, 20.0, 21.0, None, 1)
    two = Outcome("finalist 2", "b", 0, 0.58, 20.0, 21.0, None, 1)
    # means 0.52 and 0.57, though the best single training is finalist 1's
    outcomes = [
        one, replace(one, attempt=1, miou=0.44), two, replace(two, attempt=1, miou=0.56),
        replace(one, name="random 1", miou=0.9),
    ]  # fmt: skip
    assert winner(outcomes, Cost()) == two
    slow = [replace(o, milliseconds=40.0) if o.name == "finalist 2" else o for o in outcomes]
    # a target of 20 ms halves 0.57
    assert winner(slow, Cost(TABLE, target=20.0, power=1.0)) == one
    assert winner(slow, Cost()).name == "finalist 2"


def test_controls_are_those_of_the_finalist_that_won(tmp_path: Path) -> None:
    texts = [ARCH1.replace("[[2, [", f"[[{n}, [", 1) for n in range(3)]
    accuracies = {texts[0]: 0.4, texts[1]: 0.6, texts[2]: 0.9}
    spec = CompactSpec("test_efficientnet", ("a", "b"), ((0, 0, 0), (9, 9, 9)), ARCH1, channels=4)
    asked: list[str] = []

    def against(genotype: str) -> list[Entry]:
        asked.append(genotype)
        return controls([texts[2]], lr_aspp=False)

    trained: list[Entry] = []

    def trains(entry: Entry, part: Run) -> CompactSegmenter:
        part.log("stage_1", 1, {"distilled": accuracies[entry.genotype]})
        trained.append(entry)
        return CompactSegmenter(replace(spec, genotype=entry.genotype))

    timed: list[list[str]] = []

    def speeds(models: Sequence[CompactSegmenter]) -> list[Speed]:
        timed.append([model.spec.genotype for model in models])
        return [Speed(10.0 * len(timed) + n, 1.0, 1.0) for n, _ in enumerate(models)]

    def held() -> CompactSegmenter:
        return contest(
            finalists(texts[:2], 2), run, Cost(), against=against, train=trains,
            accuracy=lambda model: accuracies[model.spec.genotype], speeds=speeds,
        )  # fmt: skip

    run = Run(tmp_path / "run", quiet=True)
    found = held()
    assert asked == [texts[1]]
    # both finalists in one go, when the last of their four trainings is over
    assert timed == [texts[:2], [texts[2]]]
    assert [o.milliseconds for o in read_outcomes(run.out)[0]] == [10.0, 10.0, 11.0, 11.0, 20.0]
    assert [entry.name for entry in trained] == ["finalist 1", "finalist 1", "finalist 2", "finalist 2", "random 1"]
    assert found.spec.genotype == texts[1]  # a control is never the result, however good
    assert [line["distilled"] for line in run.read_log()] == [0.6]
    held()  # goes on with the times that it has
    assert len(timed) == 2
    (run.out / Entry("finalist 2", texts[1], 1).folder / "outcome.json").unlink()
    held()  # ended before the last was written: no time is compared with one of another moment
    assert timed[2:] == [texts[:2]]
    assert [o.milliseconds for o in read_outcomes(run.out)[0]] == [30.0, 30.0, 31.0, 31.0, 20.0]


def test_finalists_stay_those_that_were_chosen_first(tmp_path: Path) -> None:
    other = ARCH1.replace("[[2, [", "[[3, [", 1)
    assert chosen_once(tmp_path, lambda: [ARCH1]) == [ARCH1]
    assert chosen_once(tmp_path, lambda: [other]) == [ARCH1]  # a candidate that was tried once more is better now
    (tmp_path / "chosen.json").write_text('["[[1]]"]')
    with pytest.raises(DataError, match="finalists of a search"):
        chosen_once(tmp_path, lambda: [other])


def test_the_chosen_training_becomes_the_log_of_the_run_once(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", quiet=True)
    run.log("search", 1, {"reward1": 0.5})
    part = run.child(Entry("finalist 2", ARCH1).folder)
    for step in (1, 2):
        part.log("stage_1", step, {"distilled": 1.0 / step})
    take_log(run, part)
    take_log(run, part)
    assert [(line["stage"], line["step"]) for line in run.read_log()] == [("search", 1), ("stage_1", 1), ("stage_1", 2)]


def test_lr_aspp_by_hand() -> None:
    torch.manual_seed(0)
    decoder = LiteDecoder([2, 3, 4, 5], 2, channels=4).eval()
    maps = [torch.rand(1, c, 16 >> i, 16 >> i) for i, c in enumerate((2, 3, 4, 5))]
    deep = decoder.project(maps[3]) * torch.sigmoid(decoder.gate[1](maps[3].mean((2, 3), keepdim=True)))
    grown = nn.functional.interpolate(deep, size=(8, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(decoder(maps), decoder.deep(grown) + decoder.fine(maps[1]))
    assert AuxiliaryHeads(decoder)(decoder.block_outputs(maps)) == []
    spec = CompactSpec("test_efficientnet", ("a", "b"), ((0, 0, 0), (9, 9, 9)), LR_ASPP)
    assert CompactSegmenter(spec)(torch.zeros(2, 3, 40, 64, dtype=torch.uint8)).shape == (2, 2, 40, 64)


def test_the_drawing_has_the_edges_of_the_genotype() -> None:
    cell, decoder = (block["graph"] for block in picture(Genotype.parse(ARCH1)))
    names = [name for name, *_ in cell["nodes"]]
    assert names[:5] == ["input", "separable 3x3", "separable 5x5", "conv 3x3, dilation 12", "+"]
    # first layer: p = 1 to its first operation, q = 0 to the second; both to their sum
    assert {(1, 2), (0, 3), (2, 4), (3, 4)} <= set(cell["edges"])
    last = len(names) - 1
    assert {start for start, end in cell["edges"] if end == last} == set(Genotype.parse(ARCH1).collected())
    joined = {(decoder["nodes"][a][0], decoder["nodes"][b][0]) for a, b in decoder["edges"]}
    assert ("1/16", "block 1: cell + cell") in joined
    assert ("block 2: cell + cell", "classes") in joined
    assert graph(cell["nodes"], cell["edges"]).count("dilation 12") == 2


def test_points_are_drawn_with_their_names_and_reach() -> None:
    drawn = points_of("ms", "mIoU", {"teacher": [[310, 74.1, 350]], "found <b>": [[30, 70.0, 33], [40, 71.0, 41]]})
    assert "found &lt;b&gt;" in drawn
    assert "teacher" in drawn


@pytest.mark.slow
def test_memory_is_what_the_model_adds(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from segue.search.runtime import model_runner

    spec = CompactSpec("test_efficientnet", ("a", "b"), ((0, 0, 0), (9, 9, 9)), ARCH1, channels=16, repeats=1)
    network = CompactSegmenter(spec).eval()
    small, large = (model_runner(network, side, side, 1)[1] for side in (64, 512))
    assert 0 < small < large < 2000


def test_works_are_timed_in_turn() -> None:
    done: list[str] = []
    now = [0.0]

    def work(name: str, seconds: float) -> None:
        done.append(name)
        now[0] += seconds

    works = [lambda: work("a", 0.5), lambda: work("b", 0.25)]
    assert measured_in_turn(works, runs=4, clock=lambda: now[0]) == [[500.0] * 4, [250.0] * 4]
    assert "".join(done) == "aabb" + "ab" * 4
    done.clear()
    assert len(measured_in_turn(works, runs=9, seconds=0.0, clock=lambda: now[0])[0]) == 3
