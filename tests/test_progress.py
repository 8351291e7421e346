"""What a person who waits sees: a bar on a terminal, plain lines elsewhere, nothing when asked to be quiet."""

import io
import re

import pytest
from rich.console import Console

from segue import progress
from segue.progress import StageBar, track


def shown(*, terminal: bool) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=120, soft_wrap=True)
    bar = StageBar(console, "finetune", steps=10, done=4)
    for step in range(5, 11):
        bar.update(step, loss=1.25, images=8)
    bar.close()
    return file.getvalue()


def test_a_bar_shows_loss_speed_and_eta() -> None:
    text = shown(terminal=True)
    assert "finetune" in text
    assert "10/10" in text
    assert "loss 1.2500" in text
    assert re.search(r"\d images/s", text)
    assert "eta" in text


def test_plain_lines_have_no_control_characters_and_end_with_the_last_step() -> None:
    lines = shown(terminal=False).splitlines()
    assert len(lines) == 1  # six quick steps: only the last is worth a line
    assert re.fullmatch(r"finetune 10/10  loss 1\.2500  [\d.]+ images/s  eta 0:00", lines[0])


def test_lines_come_at_intervals(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "REFRESH", 0.0)
    with track("predict", 3) as tick:
        for _ in range(3):
            tick()
    assert capsys.readouterr().err.split("\n") == ["predict 1/3", "predict 2/3", "predict 3/3", ""]
    with track("predict", 3, quiet=True) as tick:
        tick()
    assert capsys.readouterr().err == ""
