"""A model is measured on what its training held back, unless something else is asked for by name."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import options, write_set

from segue.calibration import calibrate
from segue.cli import main
from segue.data.layouts import open_listing
from segue.errors import DataError
from segue.export.delivery import open_check
from segue.held_out import part_for, to_measure
from segue.weights import load_model

Segue = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def undivided(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A set without splits, and a run on it, which held back a fifth."""
    folder = tmp_path_factory.mktemp("undivided")
    data = write_set(folder / "set", splits=False)
    words = ["train", str(data), "--out", str(folder / "run"), "--method", "supervised", "--device", "cpu"]
    assert main([*words, *options(steps=1)]) == 0
    return data, folder / "run"


def test_of_a_set_without_splits_it_is_what_the_run_validated_on(undivided: tuple[Path, Path], segue: Segue) -> None:
    data, run = undivided
    validated = [image["name"] for image in json.loads((run / "evaluation.json").read_text())["images"]]
    learnt = json.loads((run / "run.json").read_text())["data"]["labelled_names"]
    assert (len(validated), set(validated) & set(learnt)) == (2, set())
    for asked in ([], ["--split", "val"], ["--data", data]):
        status, output, errors = segue("evaluate", run, "--json", *asked)
        assert status == 0, errors
        found = json.loads(output)
        assert [image["name"] for image in found["images"]] == validated
        assert found["split"] == "what it held back of train"
    status, _, errors = segue("evaluate", run, "--split", "test")
    assert (status, "has no split 'test': it has train" in errors) == (2, True)
    assert len(json.loads(segue("evaluate", run, "--split", "train", "--json")[1])["images"]) == len(learnt) + 2
    assert [open_check(str(data), load_model(str(run)), str(run), limit=9).pairs[i].name for i in (0, 1)] == validated
    assert calibrate(load_model(str(run)), open_check(str(data), load_model(str(run)), str(run), limit=9)).images == 2


def test_of_another_set_it_is_val_or_all_there_is(undivided: tuple[Path, Path], dataset: Path, tmp_path: Path) -> None:
    _, run = undivided
    name, pairs = to_measure(open_listing(str(dataset)), str(run))
    assert (name, len(pairs)) == ("val", 2)
    name, pairs = to_measure(open_listing(str(write_set(tmp_path / "other", splits=False))), str(run))
    assert (name, len(pairs)) == ("train", 10)
    described = json.loads((dataset / "dataset.json").read_text())
    described["splits"]["sunny"] = described["splits"].pop("val")
    (dataset / "dataset.json").write_text(json.dumps(described))
    with pytest.raises(DataError, match="has no split 'val' but"):
        part_for(open_listing(str(dataset)), str(run))


def test_a_run_that_held_back_nothing_says_so(undivided: tuple[Path, Path], tmp_path: Path) -> None:
    data, run = undivided
    record = json.loads((run / "run.json").read_text())
    record["data"]["validation_names"] = []
    (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match=r"held back no image of .*; name a split that it did not learn from"):
        to_measure(open_listing(str(data)), str(tmp_path))
