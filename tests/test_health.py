"""Meters that need no labels, and what is said of them."""

import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from segue.engine import Run
from segue.health import METERS, PANELS, history, look, verdict, write_health, write_panels
from segue.metrics import effective_rank, rank_agreement, spread
from segue.runs.sections import read_headline, read_sections

HEALTHY = {
    "spread": 0.8, "effective_rank": 40.0, "agreement": 0.9, "ranking": 0.2, "floor": 0.15, "constant": 0.7
}  # fmt: skip


def test_spread_by_hand() -> None:
    assert spread(torch.tensor([[2.0, 0.0], [5.0, 0.0]])) == 0
    assert spread(torch.tensor([[1.0, 0.0], [0.0, 3.0]])) == pytest.approx(0.5)  # the mean is (1/2, 1/2)
    assert spread(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])) == 1


def test_effective_rank_by_hand() -> None:
    corners = torch.tensor([[1.0, 1, 0], [1, -1, 0], [-1, 1, 0], [-1, -1, 0]])
    assert effective_rank(corners) == pytest.approx(2)
    assert effective_rank(corners + 7) == pytest.approx(2)
    shares = (3 / 4, 1 / 4)  # of singular values 3 and 1
    expected = math.exp(-sum(p * math.log(p) for p in shares))
    assert effective_rank(corners * torch.tensor([3.0, 1, 1])) == pytest.approx(expected)
    assert effective_rank(torch.ones(4, 3)) == 1


def test_rank_agreement_by_hand() -> None:
    first = torch.tensor([0.1, 0.5, 0.2, 0.9])
    assert rank_agreement(first, first.exp()) == pytest.approx(1)
    assert rank_agreement(first, -first) == pytest.approx(-1)
    # Ranks 0 2 1 3 and 1 2 0 3: 1 - 6 (1 + 0 + 1 + 0) / (4 * 15).
    assert rank_agreement(first, torch.tensor([0.2, 0.5, 0.1, 0.9])) == pytest.approx(0.8)
    assert rank_agreement(first, torch.zeros(4)) == 0


def test_a_student_like_the_teacher_is_at_the_floor_and_a_collapsed_one_at_the_constant() -> None:
    torch.manual_seed(0)
    teacher = torch.nn.functional.normalize(torch.randn(3, 9, 8), dim=2)
    same = look(teacher, teacher, tau=0.5, threshold=-0.2)
    assert same["ranking"] == same["floor"] < same["constant"]
    assert same["agreement"] == pytest.approx(1)
    collapsed = look(teacher[:1, :1].expand_as(teacher), teacher, tau=0.5, threshold=-0.2)
    assert collapsed["spread"] == pytest.approx(0, abs=1e-6)
    assert collapsed["ranking"] == pytest.approx(collapsed["constant"], rel=1e-3)
    assert len(verdict(collapsed, same)) == 4


def test_patches_that_are_no_numbers_are_said_and_do_not_stop_the_look() -> None:
    patches = torch.full((2, 4, 3), math.nan)
    found = look(patches, patches, tau=0.5, threshold=-0.2)
    assert set(found) == set(HEALTHY)
    assert "no numbers" in verdict(found, HEALTHY)[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"spread": 0.1}, "features collapse: their spread is 0.100, 0.800 at the start"),
        ({"effective_rank": 5.0}, "use 5.0 directions, 40.0 at the start"),
        ({"agreement": 0.1}, "do not agree"),
        ({"ranking": 0.71}, "Nothing is learnt"),
        ({"ranking": math.nan}, "no numbers"),
    ],
)
def test_each_thing_that_goes_wrong_is_said_plainly(change: dict[str, float], said: str | None) -> None:
    found = verdict({**HEALTHY, **change}, HEALTHY)
    assert len(found) == (said is not None)
    assert said is None or said in found[0]
    assert said is None or "--" in found[0]  # and what to do


def test_panels_show_the_nearest_patches_of_other_images(tmp_path: Path) -> None:
    images = torch.stack([torch.full((3, 40, 40), 40 * k, dtype=torch.uint8) for k in range(4)])
    patches = torch.zeros(4, 4, 3)
    patches[..., 2] = 1
    patches[0, 3] = torch.tensor([1.0, 0, 0])  # the middle of 2 x 2 is the last
    patches[2, 1] = torch.tensor([1.0, 0, 0])  # its like is at the upper right of image 2
    write_panels(tmp_path, 7, images, patches, (2, 2))
    with Image.open(tmp_path / PANELS / "0000007_0.jpg") as shown:
        assert shown.size == (4 * 42, 40)
        assert abs(shown.getpixel((42 + 10, 30))[0] - 80) < 8  # image 2 comes first
        red, _, blue = shown.getpixel((42 + 20, 10))
        assert red > blue + 60  # left edge of the frame round its upper right patch


@pytest.mark.parametrize("wrong", [False, True])
def test_the_report_says_how_it_went(wrong: bool, tmp_path: Path) -> None:
    run = Run(tmp_path, quiet=True)
    last = {**HEALTHY, "spread": 0.01} if wrong else HEALTHY
    for step, meters in ((0, HEALTHY), (5, HEALTHY), (9, last)):
        run.log("distil", step, {f"val/{name}": value for name, value in meters.items()})
    write_health(run, 12)
    headline, sections = read_headline(tmp_path), read_sections(tmp_path)
    assert headline is not None
    assert headline["is_warning"] == wrong
    assert "12 images" in headline["text"]
    assert ("collapse: their spread" in headline["text"]) == wrong
    blocks = sections["10_health"]["blocks"]
    assert any("warning" in block for block in blocks) == wrong
    curves = [block["lines"]["series"] for block in blocks if "lines" in block]
    assert curves[0] == {"spread": [[0, 0.8], [5, 0.8], [9, last["spread"]]]}


def test_a_look_without_numbers_is_in_the_history(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", quiet=True)
    run.log("train", 1, {"loss": 0.5, "seconds": 1.0})
    for step, value in ((2, 0.5), (4, math.nan)):
        run.log("train", step, {f"val/{name}": value for name in METERS})
    (_, first), (last, now) = history(run)
    assert (first, last) == (dict.fromkeys(METERS, 0.5), 4)
    assert "no numbers any more" in verdict(now, first)[0]
