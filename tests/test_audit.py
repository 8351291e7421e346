"""``make audit``: what it makes of pip-audit's answers."""

import importlib.util
import json
from pathlib import Path

import pytest

PATH = Path(__file__).parents[1] / ".ci" / "audit.py"
spec = importlib.util.spec_from_file_location("segue_audit", PATH)
assert spec is not None
assert spec.loader is not None
audit = importlib.util.module_from_spec(spec)
spec.loader.exec_module(audit)

SOUND = {"name": "numpy", "version": "2.4.6", "vulns": []}
WEAK = {"name": "torch", "version": "2.5.1", "vulns": [{"id": "CVE-2025-32434", "fix_versions": ["2.6.0"]}]}
UNKNOWN = {"name": "segue", "skip_reason": "not on the index"}


@pytest.mark.parametrize(
    ("packages", "status", "said"),
    [
        ([SOUND], 0, "audited 1 of 1 packages: 0 weaknesses"),
        ([SOUND, WEAK], 1, "torch 2.5.1: CVE-2025-32434, mended in 2.6.0"),
        ([SOUND, UNKNOWN], 0, "audited 1 of 2 packages: 0 weaknesses; the index did not know 1"),
    ],
)
def test_a_weakness_fails_and_the_rest_is_counted(packages: list[object], status: int, said: str) -> None:
    found = audit.verdict(json.dumps({"dependencies": packages}), "")
    assert found[0] == status
    assert said in found[1]


@pytest.mark.parametrize("found", ["", "not JSON", "[]", "{}"])
def test_without_an_answer_nothing_fails_and_it_is_said(found: str) -> None:
    status, (line,) = audit.verdict(found, "Traceback\nConnectionError: Name or service not known\n")
    assert status == 0
    assert line.startswith("not audited") and "Name or service not known" in line
