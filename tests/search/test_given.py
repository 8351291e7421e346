"""Options that do nothing beside others are refused by name, and the same ones are taken where they do something."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segue.config import build
from segue.errors import UsageError
from segue.methods.compact_search import Config, refuse

IDLE: list[tuple[dict[str, Any], dict[str, Any], str]] = [  # what is given, what makes it idle, what is said
    ({"feedback": "none"}, {"strategy": "evolution"}, "--feedback: --strategy evolution has .* or give --strategy"),
    (
        {"feedback": "none"},
        {"strategy": "random"},
        "--feedback: --strategy random has no .*; leave out",
    ),
    ({"cost": 2.0}, {"target": ""}, "--cost: without --target no time is charged; leave out --cost or give --target"),
    ({"distill_weight": 1.0}, {"distill": "none"}, "--distill-weight: with --distill none .* or --distill none"),
    ({"end_steps": 9}, {"gate": "never"}, "--end-steps: with --gate never .* leave out --end-steps or --gate never"),
    ({"end_batch": 9}, {"gate": "never"}, "--end-batch: with --gate never .* leave out --end-batch or --gate never"),
    ({"end_lr": 0.1}, {"gate": "never"}, "--end-lr: with --gate never .* leave out --end-lr or --gate never"),
    ({"controls": 2}, {"val": "none"}, "--controls: with --val none nothing tells .* or --val none"),
    ({"lr_aspp": True}, {"val": "none"}, "--lr-aspp: with --val none nothing tells .* or --val none"),
]


@pytest.mark.parametrize(("given", "beside", "told"), IDLE)
def test_an_option_that_does_nothing_is_refused_by_name(
    given: dict[str, Any], beside: dict[str, Any], told: str
) -> None:
    small = {"encoder": "test_efficientnet"}
    with pytest.raises(UsageError, match=told):
        refuse(build(Config, {**small, **beside, **given}))
    refuse(build(Config, {**small, **beside}))
    refuse(build(Config, {**small, "strategy": "controller", "target": "20ms@64x64", **given}))


def test_a_genotype_is_trained_beside_what_counts_in_its_training_alone() -> None:
    from segue.search.strategies import strategy

    given = {"encoder": "test_efficientnet", "genotype": str(strategy("random", 2, 0).ask().genotype)}
    with pytest.raises(UsageError, match="--cost: with --genotype nothing is searched"):
        refuse(build(Config, {**given, "cost": 2.0}))
    with pytest.raises(UsageError, match="--lr-aspp: with --val none"):
        refuse(build(Config, {**given, "val": "none", "lr_aspp": True}))
    refuse(build(Config, {**given, "lr_aspp": True, "distill_weight": 1.0}))


def test_the_command_says_so_in_a_line_and_writes_nothing(
    segue: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    status, _, errors = segue(
        "compress", "teacher", "--data", tmp_path, "--out", tmp_path / "run", "--encoder=test_efficientnet",
        "--val=none", "--lr-aspp",
    )  # fmt: skip
    assert (status, errors.count("\n"), (tmp_path / "run").exists()) == (2, 1, False)
    assert "--lr-aspp: with --val none nothing tells models apart" in errors
