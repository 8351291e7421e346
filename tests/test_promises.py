"""The promises of README.md and SECURITY.md: each names the tests that prove it, and those tests exist."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import options

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\[(test_\w+)\]\(([^)]+)\)")


def rows_of_readme() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text[text.index("| Promise |") : text.index("Exit status:")]
    return table.strip().splitlines()[2:]


def points_of_security() -> list[str]:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    promised = text[text.index("## What is promised") : text.index("## What is not promised")]
    return [point for point in re.split(r"\n- ", promised)[1:]]


def missing(text: str) -> list[str]:
    """Links whose file is not there or does not define the test."""
    return [
        f"{file}::{name}"
        for name, file in LINK.findall(text)
        if not (ROOT / file).is_file()
        or not re.search(rf"^def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
    ]


def test_every_promise_links_to_tests_that_exist() -> None:
    promises = [*rows_of_readme(), *points_of_security()]
    assert len(promises) >= 25
    for promise in promises:
        assert LINK.findall(promise), promise
        assert not missing(promise)


def test_a_link_to_a_test_that_is_not_there_is_found() -> None:
    here = "tests/test_promises.py"
    assert missing(f"[test_that_nobody_wrote]({here}), [test_x](tests/no_file.py)") == [
        f"{here}::test_that_nobody_wrote",
        "tests/no_file.py::test_x",
    ]


FONTS = ".cache/matplotlib/"  # matplotlib's own list of the fonts of this machine


def every_file(folder: Path, *, but: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of change of every file below ``folder``, those below ``but`` and `FONTS` aside."""
    return {
        str(path): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_relative_to(but) and FONTS not in str(path)
    }


@pytest.mark.slow
def test_nothing_is_written_outside_out(
    segue: Callable[..., tuple[int, str, str]], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    for folder in (dataset, *dataset.iterdir()):
        if folder.is_dir():
            os.chmod(folder, 0o555)
    out, before = tmp_path / "out", every_file(tmp_path, but=tmp_path / "out")
    assert segue("check", dataset)[0] == 0
    assert segue("train", dataset, "--out", out / "run", "--device", "cpu", *options(method="supervised"))[0] == 0
    assert segue("evaluate", out / "run")[0] == 0
    assert segue("predict", out / "run", dataset / "images", "--out", out / "found")[0] == 0
    assert segue("suggest", f"{dataset}:test", "--model", out / "run", "--n", "1", "--out", out / "next")[0] == 0
    after = every_file(tmp_path, but=out)
    assert sorted(path for path in {*before, *after} if before.get(path) != after.get(path)) == []
    assert {path.name for path in tmp_path.iterdir()} == {"home", "out", "set"}


def test_the_servers_limits_are_those_of_the_readme() -> None:
    from segue.cli import parser
    from segue.prediction.pictures import WHOLE
    from segue.serve.limits import Limits

    (row,) = [row for row in rows_of_readme() if row.startswith("| The server listens")]
    found = re.search(r"(\d+) MB, (\d+) MP \((\d+) for a panoptic model\), (\d+) s and (\d+) requests", row)
    assert found is not None
    megabytes, megapixels, panoptic, seconds, queue = map(int, found.groups())
    assert round(WHOLE.largest / 1_000_000) == panoptic
    taken = Limits()
    assert (taken.body, taken.pixels, taken.seconds, taken.queue) == (
        megabytes << 20, megapixels * 1_000_000, seconds, queue
    )  # fmt: skip
    given = parser().parse_args(["serve", "run"])
    assert given.host == "127.0.0.1"
    assert (given.max_mb, given.max_megapixels, given.timeout, given.queue) == (megabytes, megapixels, seconds, queue)
