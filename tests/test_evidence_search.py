"""The table of trained genotypes and the searches on it, at a tiny size."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import write_set

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "evidence"))
import search_table as script


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setenv("SEGUE_TUNE", "0")
    monkeypatch.setattr(sys, "argv", ["search_table.py", *map(str, words)])
    script.main()


def write_table(path: Path) -> None:
    """A table whose reward is the share of 3 x 3 convolutions, with noise of 0.01 between seeds."""
    noise = np.random.default_rng(0)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(script.HEADER)
        for text in script.genotypes(40):
            genotype = script.Genotype.parse(text)
            kinds = [genotype.first, *(kind for layer in genotype.layers for kind in layer[2:])]
            for seed in range(3):
                reward = 0.3 + 0.05 * sum(kind in (1, 5) for kind in kinds) + 0.01 * noise.normal()
                writer.writerow((text, seed, f"{reward:.5f}", "", "", "", "4.00", 1, 1, ""))


@pytest.mark.slow
def test_the_table_is_made_in_two_goes_and_a_row_cut_short_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, path = write_set(tmp_path / "set", train=40, size=64), tmp_path / "table.csv"
    small = ("--encoder", "test_efficientnet", "--init", "random", "--images", 4, "--crop", 64, "--channels", 8)
    given = ("table", root, "--table", path, "--cache", tmp_path / "cache", "--steps", 1, "--batch", 2, *small)
    run(monkeypatch, *given, "--genotypes", 2)
    whole = path.read_text()
    path.write_text(whole[:-9])
    run(monkeypatch, *given, "--genotypes", 3)
    rows = script.read_rows(path)
    assert [(row["genotype"], row["seed"]) for row in rows] == [
        (text, str(seed)) for text in script.genotypes(3) for seed in range(3)
    ]
    assert rows[5]["reward"] == list(csv.DictReader(whole.splitlines()))[5]["reward"]
    with pytest.raises(SystemExit, match="was made with"):
        run(monkeypatch, *given[:-8], "--channels", 16, "--genotypes", 2)


@pytest.mark.slow
def test_searches_on_a_table_are_counted_once_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_table(tmp_path / "table.csv")
    given = ("regret", "--table", tmp_path / "table.csv", "--out", tmp_path / "out", "--budget", 8)
    run(monkeypatch, *given, "--landscape", "nearest", "--seeds", 2)
    path = tmp_path / "out" / "searches_nearest_8.jsonl"
    before = path.read_text()
    run(monkeypatch, *given, "--landscape", "nearest", "--seeds", 3)
    assert path.read_text().startswith(before)
    runs = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted((r["strategy"], r["seed"]) for r in runs) == sorted(
        (name, seed) for name in script.STRATEGIES for seed in range(3)
    )
    assert all(len(r["picked"]) == 8 for r in runs)
    assert "reliability 0.9" in capsys.readouterr().out
    assert (tmp_path / "out" / "regret_nearest_8.svg").stat().st_size > 10_000


def test_a_search_picks_what_it_saw_best_and_pays_the_true_value() -> None:
    world = script.Landscape(
        lambda asked: np.array([float(g.first) for g in asked]), lambda asked: np.full(len(asked), 4.0), 0.0, 1.0
    )
    found = script.searched(world, "random", 0, 30)
    assert found["picked"] == sorted(found["picked"])
    assert found["picked"][-1] == 10  # op_0 has 11 values; 30 draws all but surely hold the largest
    assert found["seconds"] == [4.0 * n for n in range(1, 31)]
    noisy = script.Landscape(world.values, world.seconds, 100.0, 1.0)
    picked = script.searched(noisy, "random", 0, 30)["picked"]
    assert picked != sorted(picked)  # the best observed value is not the best value
