"""The experiments run from end to end at a tiny size, go on where they stopped, and measure what they say."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import write_set

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks" / "evidence"))
from dense_probe import knn_scores, linear_probe, miou, table  # noqa: E402
from shared import refuse_chance  # noqa: E402


def run(script: str, *arguments: object) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / "evidence" / script), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SEGUE_TUNE": "0"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_linear_probe_separates_what_a_line_can() -> None:
    torch.manual_seed(0)
    features = torch.randn(500, 4) * torch.tensor([1.0, 100, 1, 1]) + 5
    label = (features[:, 0] > 5).long()
    weight, bias = linear_probe(features, torch.nn.functional.one_hot(label, 2).float(), seed=0)
    assert ((features @ weight.T + bias).argmax(1) == label).float().mean() > 0.98


def test_knn_votes_by_hand() -> None:
    bank = torch.eye(2).repeat(10, 1)  # 20 neighbours: all of them
    shares = torch.tensor([[1.0, 0], [0, 1]]).repeat(10, 1)
    votes = knn_scores(torch.tensor([3.0, 0])[:, None, None], bank, shares)
    e = torch.tensor(1 / 0.07).exp()
    torch.testing.assert_close(votes.flatten(), torch.stack([e / (e + 1), 1 / (e + 1)]))


def test_miou_is_at_the_masks_own_size_by_hand() -> None:
    scores = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])  # left half class 0, right half class 1, 16 pixels a cell
    mask = torch.zeros(16, 30, dtype=torch.long)
    mask[:, 15:] = 1
    mask[:, 20:] = 255
    # Columns 0 to 15 are 0, 16 and on 1: of class 1, four of five columns; of class 0, 15 of 16.
    assert miou([(scores, mask)], 2, 16) == pytest.approx(100 * (15 / 16 + 4 / 5) / 2)


def test_table_pairs_the_seeds(tmp_path: Path) -> None:
    for arm, values in (("before", (30, 40)), ("ranking", (33, 41))):
        for seed, value in enumerate(values):
            (tmp_path / f"{arm}_{seed}.json").write_text(f'{{"linear": {value}, "knn": 1}}')
    assert "| ranking | 37.0 ± 5.7 (2) | +2.0 |" in table(tmp_path, ["before", "ranking"], [0, 1])


@pytest.mark.slow
def test_dense_probe_end_to_end_and_again(tmp_path: Path) -> None:
    data = write_set(tmp_path / "set", train=10, size=64)
    arguments = (
        data, "--out", tmp_path / "out", "--shrink", 1, "--encoder", "test_efficientnet", "--init", "random",
        "--steps", 2, "--seeds", 0, "--arms", "before", "ranking", "--crop", 32, "--few-steps", 2, "--few-crop", 32,
        "--", "--batch=4",
    )  # fmt: skip
    said = run("dense_probe.py", *arguments)
    assert "test: 2 masks of 64 x 64" in said
    assert said.count("seed 0: linear") == 2
    assert (tmp_path / "out" / "ranking_0" / "model" / "model.yaml").is_file()
    (tmp_path / "out" / "ranking_0.json").unlink()  # as if cut before it was probed
    assert run("dense_probe.py", *arguments).splitlines()[-2:] == said.splitlines()[-2:]


@pytest.mark.slow
def test_suggest_end_to_end(tmp_path: Path) -> None:
    data = write_set(tmp_path / "set", train=12, size=64)
    arguments = (
        data, "--out", tmp_path / "out", "--shrink", 1, "--encoder", "test_efficientnet", "--init", "random",
        "--steps", 2, "--crop", 32, "--n", 4, "--draws", 1,
    )  # fmt: skip
    said = run("suggest.py", *arguments)
    assert "| doubt |" in said
    assert run("suggest.py", *arguments).splitlines()[-3:] == said.splitlines()[-3:]


def test_figures_of_random_weights_are_not_made_by_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEGUE_MIRROR", raising=False)
    refuse_chance("random", "test_resnet")
    with pytest.raises(SystemExit, match="no weights of test_resnet at hand: set SEGUE_MIRROR"):
        refuse_chance("auto", "test_resnet")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "test_resnet_some.safetensors").touch()
    monkeypatch.setenv("SEGUE_MIRROR", str(tmp_path))
    refuse_chance("auto", "test_resnet")
