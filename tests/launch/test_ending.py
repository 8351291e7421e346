"""What a run writes last: the report holds every arm, however often the run was cut."""

from pathlib import Path

import pytest
from conftest import TINY

from segue.verbs import train

FIELDS = {"method": "pixel_contrast", "device": "cpu", "precision": "fp32", "quiet": True, **TINY, "steps": 4}


@pytest.mark.slow
def test_an_arm_that_was_added_is_in_the_report_though_writing_it_was_cut(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = train(str(dataset), tmp_path / "run", **FIELDS)
    assert "plain supervised" not in (out / "report.html").read_text()

    def full(out: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("segue.report.write_report", full)
        with pytest.raises(OSError, match="No space left"):
            train(str(dataset), out, compare=True, **FIELDS)
    assert (out / "baseline" / "evaluation.json").is_file()
    train(str(dataset), out, compare=True, **FIELDS)
    assert "plain supervised" in (out / "report.html").read_text()
