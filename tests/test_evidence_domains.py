"""The experiment on domains at its smallest: it runs, is resumed, and its tables hold what its runs measured."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "evidence" / "domains.py"
SMALL = (
    "--steps 3 --crop 32 --encoder test_efficientnet --init random --decoder-channels 16 --scenes 4 --scene 48 64 "
    "--looks 2 --seeds 0 --pairs scenes --passes 1 --device cpu --precision fp32 --quiet"
)


def run(out: Path, *arms: str) -> str:
    command = [sys.executable, str(SCRIPT), "--out", str(out), *SMALL.split(), "--arms", *arms]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=240).stdout


@pytest.mark.slow
def test_arms_are_measured_once_and_tabled(tmp_path: Path) -> None:
    run(tmp_path, "source_only", "oracle")
    first = tmp_path / "scenes" / "source_only_0" / "evaluation.json"
    before = first.stat().st_mtime_ns
    printed = run(tmp_path, "source_only", "style", "ungated")
    assert first.stat().st_mtime_ns == before
    shown = {arm: 100 * json.loads((tmp_path / "scenes" / f"{arm}_0" / "evaluation.json").read_text())["scores"]["miou"]
             for arm in ("source_only", "style", "ungated")}  # fmt: skip
    for arm, value in shown.items():
        assert f"| scenes | {arm} | {value:.1f} ± 0.0 (1) |" in printed
    assert f"{shown['style'] - shown['source_only']:+.1f}" in printed
    assert "| scenes | ungated | last | 100.0 |" in printed
    assert "| best possible |" in printed
    assert (tmp_path / "table.md").read_text().strip() in printed
