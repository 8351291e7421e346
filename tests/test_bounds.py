"""Numbers that a method cannot be trained with are refused by name, before any data is opened."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from segue import methods
from segue.bounds import EVERYWHERE, refuse_impossible
from segue.config import build, leaves
from segue.errors import UsageError

METHODS = {name: methods.load(name) for name in methods.names()}
NAN = float("nan")
UNBOUNDED = {"threshold"}  # theta of the ranking loss may have any sign


def numbers(module: ModuleType) -> dict[str, Any]:
    """Default of each field of a method that is a number or several."""
    found = {name: default for name, (_, default) in leaves(module.Config).items()}
    kinds = (int, float, tuple)
    return {name: value for name, value in found.items() if type(value) in kinds and value != ()}


@pytest.mark.parametrize("name", METHODS)
def test_defaults_are_sound(name: str) -> None:
    refuse_impossible(METHODS[name], build(METHODS[name].Config, {}))


@pytest.mark.parametrize(
    ("name", "field"), [(name, field) for name, module in METHODS.items() for field in numbers(module)]
)
def test_every_number_of_every_method_has_a_bound(name: str, field: str) -> None:
    module = METHODS[name]
    kind = type(numbers(module)[field])
    wrong: dict[type, list[Any]] = {int: [-1], float: [NAN, -1.0], tuple: [(NAN, 1.0), (2.0, -1.0)]}
    for value in wrong[kind][:1] if field in UNBOUNDED else wrong[kind]:
        config = build(module.Config, {field: value})
        with pytest.raises(UsageError, match=f"--{field} .*: give "):
            refuse_impossible(module, config)


def test_bounds_name_fields_that_there_are() -> None:
    known = set().union(*(leaves(module.Config) for module in METHODS.values()))
    assert set(EVERYWHERE) <= known
    for module in METHODS.values():
        assert set(getattr(module, "BOUNDS", {})) <= set(leaves(module.Config))


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("supervised", {"crop": 40}, "--crop 40: give a multiple of 16, at least 32"),
        ("supervised", {"lr": float("inf")}, "--lr inf: give at least 0"),
        ("mean_teacher", {"gate_shares": (0.3,)}, r"--gate_shares \[0.3\]: give two shares"),
        ("pixel_contrast", {"batch": 6 + 1}, "--batch 7: give an even number of at least 4"),
        ("pixel_contrast", {"batch": 3}, "--batch 3: give an even number of at least 4"),
        ("pixel_contrast", {"contrast_share": 1.0}, "--contrast_share 1.0: give a share between 0 and 1"),
        ("pixel_contrast", {"threshold": 1.5}, "--threshold 1.5: give a share from 0 to 1"),
        ("pixel_contrast", {"background_threshold": -0.1}, "--background_threshold -0.1: give a share from 0 to 1"),
        ("pixel_contrast", {"temperature": -1.0}, "--temperature -1.0: give a number above 0"),
        ("ranking_distillation", {"ema_end": 1.5}, "--ema_end 1.5: give a share from 0 to 1"),
        ("pixel_contrast", {"batch": 2}, "--batch 2: give an even number of at least 4"),
        ("pixel_contrast", {"contrast_share": 0.0}, "--contrast_share 0.0: give a share between 0 and 1"),
        ("pixel_contrast", {"first_round": 1.0}, "--first_round 1.0: give a share between 0 and 1"),
        ("pixel_contrast", {"temperature": 0.0}, "--temperature 0.0: give a number above 0"),
        ("ranking_distillation", {"batch": 4, "others": 4}, "--others 4: give fewer than --batch 4"),
        ("ranking_distillation", {"variant": "cotap", "embedding": 64}, "--embedding 64: --variant cotap compares"),
        ("mean_teacher", {"translated": "x", "style": "lab"}, "--style and --band: pictures of --translated"),
        ("mean_teacher", {"translated": "x", "band": 0.01}, "--style and --band: pictures of --translated"),
        ("incremental_semantic", {"by_region": True}, "--by-region: semantic models tell no objects apart"),
        ("ranking_distillation", {"ema_start": 0.9, "ema_end": 0.5}, "--ema_start 0.9: give at most --ema_end 0.5"),
        ("compact_search", {"decoder_batch": 1}, "--decoder_batch 1: give at least 2; batch normalisation"),
        ("compact_search", {"images": 1}, "--images 1: give at least 2: some to train on"),
        ("compact_search", {"genotype": "x"}, "--genotype "),
        ("supervised", {"val": "none", "evaluate_every": 9}, "--evaluate-every 9: with --val none there is nothing to"),
        ("incremental_panoptic", {"min_ratio": 1.5}, "--min_ratio 1.5: give a share from 0 to 1"),
    ],
)
def test_messages_by_hand(name: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        refuse_impossible(METHODS[name], build(METHODS[name].Config, fields))


def test_a_refused_number_leaves_no_folder(segue: Any, dataset: Path, tmp_path: Path) -> None:
    status, _, errors = segue("train", dataset, "--out", tmp_path / "run", "--method=supervised", "--lr=-1")
    assert (status, errors.count("\n"), (tmp_path / "run").exists()) == (2, 1, False)
    assert "--lr -1.0: give at least 0" in errors


@pytest.mark.parametrize("seed", [-1, 2**63])
@pytest.mark.parametrize(
    "command",
    ["train SET", "adapt --source SET --target SET", "pretrain SET", "extend SET --new SET", "compress SET --data SET",
     "demo", "suggest SET --model SET", "train SET --seeds 2"],
)  # fmt: skip
def test_seeds_that_no_generator_takes_are_refused_before_anything_is_written(
    segue: Any, dataset: Path, tmp_path: Path, command: str, seed: int
) -> None:
    words = [str(dataset) if word == "SET" else word for word in command.split()]
    status, _, errors = segue(*words, "--out", tmp_path / "out", f"--seed={seed}")
    assert (status, errors) == (2, f"error: --seed {seed}: give a whole number from 0 to {2**63 - 1}\n")
    assert not (tmp_path / "out").exists()


def test_the_last_of_several_seeds_is_refused_before_the_first_is_trained(
    segue: Any, dataset: Path, tmp_path: Path
) -> None:
    status, _, errors = segue("train", dataset, "--out", tmp_path / "out", "--seeds=2", f"--seed={2**63 - 1}")
    assert (status, errors.split(":")[1], (tmp_path / "out").exists()) == (2, f" --seed {2**63}", False)
