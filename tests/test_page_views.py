"""What the page shows of folders that are named at the start: runs, a data set, suggestions."""

import io
import json
import math
import shutil
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import HOSTILE, made, needs_browser, said, shoot, wait
from conftest import draw, options
from PIL import Image

from segue.weights import save_model

pytest_plugins = ["browsing"]
Segue = Callable[..., tuple[int, str, str]]


def write_run(folder: Path, log: list[dict[str, Any]], miou: float | None, **told: Any) -> None:
    """A run folder as training leaves it, without its model."""
    folder.mkdir(parents=True)
    identity = {"verb": "train", "method": "supervised", "seed": 3, "config": {}}
    record = {
        "identity": identity,
        "command": "segue train photos --out o",
        "started": "2026-01-02T03:04:05+0000",
        **told,
    }
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    if miou is not None:
        evaluation = {
            "method": "supervised",
            "seconds": 2.5,
            "scores": {"miou": miou, "ece": math.nan, "iou/disc": 0.1},
        }
        (folder / "evaluation.json").write_text(json.dumps(evaluation))


def lines(stage: str, values: list[float]) -> list[dict[str, Any]]:
    return [{"stage": stage, "step": i, "loss": value, "lr": 0.1} for i, value in enumerate(values, 1)]


@needs_browser
@pytest.mark.slow
def test_runs_are_listed_and_their_curves_drawn(page: Any, segue: Segue, dataset: Path, tmp_path: Path) -> None:
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    from serving import TOKEN, live

    from segue.serve.app import Served
    from segue.serve.runs import RunList

    out = tmp_path / "runs" / "first"
    status, _, errors = segue(
        "train", dataset, "--out", out, "--compare", "--device", "cpu", *options(evaluate_every=4)
    )
    assert status == 0, errors
    write_run(tmp_path / "runs" / HOSTILE, lines(HOSTILE, [2.0, 1.0]), 0.9, command=HOSTILE)
    with live(Served(made(0), "runs/first", runs=RunList(tmp_path / "runs"))) as server:
        page.goto(f"{server.address}/#{TOKEN}")
        wait(page, "document.body.dataset.ready")
        page.locator("#tab-runs").click()
        wait(page, "document.body.dataset.drawn")
        rows = page.locator("#run-table tbody tr")
        assert "first" in rows.nth(0).inner_text()  # started last
        assert "90.0 % mIoU" in page.locator("#run-table").inner_text()
        page.get_by_role("button", name="Score").click()
        assert HOSTILE in rows.nth(0).inner_text()
        for name in ("first", "first/baseline"):
            page.get_by_label(f"draw {name}", exact=True).uncheck()
        page.get_by_label(f"draw {HOSTILE}").focus()
        page.keyboard.press("Space")
        wait(page, "document.querySelectorAll('#charts figure').length == 1")
        assert page.evaluate("document.activeElement.ariaLabel") == f"draw {HOSTILE}"
        path = page.locator("#charts .line").get_attribute("d")
        ends = [float(part.split()[1]) for part in path.removeprefix("M").split("L")]
        assert ends == [10.0, 220.0]  # from the top to the bottom of the axes
        page.get_by_label("draw first", exact=True).check()
        wait(page, "document.querySelectorAll('#charts figure:first-child .line').length >= 2")
        assert page.locator("#charts figure").first.locator("text.end").all_text_contents() in (["1", "2"], ["2", "1"])
        page.locator("#curve").select_option("lr")
        wait(page, "document.querySelectorAll('#charts figure').length == 1")
        shoot(page, "runs_wide")
        assert HOSTILE in page.locator("#run-notes").inner_text()
        assert page.evaluate("document.body.dataset.harmed") is None
        page.set_viewport_size({"width": 390, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.faults == []


def test_runs_are_read_by_number_and_damaged_ones_are_named(tmp_path: Path) -> None:
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    from serving import live

    from segue.serve.app import Served
    from segue.serve.runs import POINTS, RunList

    root, long = tmp_path / "runs", [1.0 / i for i in range(1, 2001)]
    write_run(root / "a", [*lines("one", [3.0, math.nan, 1.0]), *lines("two", long)], 0.5)
    write_run(root / "deep" / "b", lines("one", [2.0]), None, started="2026-01-03")
    (root / "a" / "baseline").mkdir()
    (root / "a" / "baseline" / "log.jsonl").write_text('{"stage": "one", "step": 7, "loss": 1.5}\n{"stage": "on')
    write_run(root / "torn", [], None)
    (root / "torn" / "run.json").write_text('{"identity": [')
    write_run(root / "odd", [], 0.5, identity=["x"])
    (root / "odd" / "log.jsonl").write_text("[]\n")
    write_run(tmp_path / "elsewhere", [], 0.5)
    write_run(root / "harmed", [], 0.25)
    (root / "harmed" / "rejected").mkdir()
    (root / "harmed" / "baseline").mkdir()
    plain = {"method": "source_only", "scores": {"miou": 0.75}}
    (root / "harmed" / "baseline" / "evaluation.json").write_text(json.dumps(plain))
    (root / "link").symlink_to(tmp_path / "elsewhere")
    with live(Served(made(0), "m", runs=RunList(root))) as server:
        found = {row["name"]: row for row in server.json("/runs")["runs"]}  # type: ignore[attr-defined]
        assert set(found) == {"a", "a/baseline", "deep/b", "harmed", "torn", "odd"}
        assert [found[name]["at"] for name in ("a", "a/baseline", "deep/b")] == ["two 2000", "one 7", "one 1"]
        assert (found["a"]["score"], found["a"]["scores"]) == (["miou", 0.5], {"miou": 0.5})
        assert (found["harmed"]["method"], found["harmed"]["score"]) == ("source_only", ["miou", 0.75])
        assert [found[name]["is_finished"] for name in ("a", "deep/b")] == [True, False]
        assert "is damaged" in found["torn"]["fault"]
        assert "no sound run" in found["odd"]["fault"]
        drawn = server.json(f"/runs/curves?run={found['a']['run']}")
        assert drawn["stages"] == {"one": 0, "two": 3}
        first, second = drawn["curves"]["loss"]  # type: ignore[index]
        assert first == [[1, 3.0], [3, 1.0]]  # what is not finite is no point
        assert (len(second) <= POINTS + 1, second[0], second[-1]) == (True, [4, 1.0], [2003, 1 / 2000])
        status, content = server.ask(f"/runs/curves?run={found['odd']['run']}")
        assert (status, b"damaged" in content) == (404, True)
        for run in ("-1", "6", "..", "/etc", "0/../..", ""):
            assert server.ask(f"/runs/curves?run={run}")[0] in (404, 422), run
        write_run(root / "c", [], 0.25)
        numbers = {row["name"]: row["run"] for row in server.json("/runs")["runs"]}  # type: ignore[attr-defined]
        assert numbers == {**{name: row["run"] for name, row in found.items()}, "c": 6}


def test_runs_are_listed_once_when_several_ask_at_the_same_time(tmp_path: Path) -> None:
    from segue.serve.runs import RunList

    runs, together = RunList(tmp_path), threading.Barrier(8)
    names = [f"run_{i:02}" for i in range(40)]
    for name in names:
        write_run(tmp_path / name, [], None)

    def listed(_: int) -> list[str]:
        together.wait(20)
        return sorted(row["name"] for row in runs.listing()["runs"])

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(listed, range(8))) == [names] * 8


@needs_browser
@pytest.mark.slow
def test_curves_of_a_run_that_ends_meanwhile_are_drawn_to_their_end(page: Any, tmp_path: Path) -> None:
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    from serving import TOKEN, live

    from segue.serve.app import Served
    from segue.serve.runs import RunList

    drawn = "document.querySelector('#charts .line').getAttribute('d').split('L').length"
    write_run(tmp_path / "runs" / "a", lines("one", [3.0, 2.0]), None)
    with live(Served(made(0), "m", runs=RunList(tmp_path / "runs"))) as server:
        page.goto(f"{server.address}/#{TOKEN}")
        wait(page, "document.body.dataset.ready")
        page.locator("#tab-runs").click()
        wait(page, "document.body.dataset.drawn")
        assert page.evaluate(drawn) == 2
        shutil.rmtree(tmp_path / "runs" / "a")
        write_run(tmp_path / "runs" / "a", lines("one", [3.0, 2.0, 1.5, 1.0]), 0.5)
        page.locator("#again").click()
        wait(page, f"{drawn} == 4")
        assert page.faults == []


@needs_browser
@pytest.mark.slow
def test_what_is_wrong_with_a_set_and_what_to_label_next_is_shown(
    page: Any, segue: Segue, dataset: Path, more: Path, tmp_path: Path
) -> None:
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    from serving import TOKEN, live

    from segue.serve.app import Served
    from segue.serve.checked import Checked
    from segue.serve.suggested import Suggested

    described = json.loads((dataset / "dataset.json").read_text())
    (dataset / "dataset.json").write_text(json.dumps({**described, "classes": [HOSTILE, "disc", "bar"]}))
    mask = np.array(Image.open(dataset / "labels" / "train_002.png"))
    mask[:9] = 77
    Image.fromarray(mask).save(dataset / "labels" / "train_002.png")
    (more / "new_0.png").rename(more / f"{HOSTILE}.png")
    source = save_model(made(0), tmp_path / "model", method="supervised", metrics={})
    status, _, errors = segue(
        "suggest", more, "--model", source, "--n", 10, "--out", tmp_path / "next", "--device", "cpu"
    )
    assert status == 0, errors
    served = Served(made(0), "m", checked=Checked(str(dataset)), suggested=Suggested.read(tmp_path / "next"))
    with live(served) as server:
        page.goto(f"{server.address}/#{TOKEN}")
        wait(page, "document.body.dataset.ready")
        page.locator("#tab-check").click()
        wait(page, "document.body.dataset.checked")
        fault = page.locator("#findings article.stop")
        assert "STOP E101" in fault.locator("h3").inner_text()
        assert "train_002.png" in fault.inner_text()
        assert "--fix" in fault.locator(".fix").inner_text() or "--map" in fault.locator(".fix").inner_text()
        wait(page, "document.querySelector('#findings img').naturalWidth > 0")
        assert page.locator("#check-account").inner_text().count("Using 10 of 10 files found, 0 left out") == 1
        assert HOSTILE in page.locator("#check-classes").inner_text()
        assert page.locator("#sheet figure").count() == 10
        shoot(page, "check_wide")
        page.locator("#tab-suggested").click()
        wait(page, "document.body.dataset.suggested == '10'")
        names = (tmp_path / "next" / "chosen.txt").read_text().splitlines()
        assert page.locator("#to-label strong").all_inner_texts() == [f"{i}. {name}" for i, name in enumerate(names, 1)]
        assert "of all doubt about" in page.locator("#to-label li").first.inner_text()
        assert f"--labels {tmp_path / 'next' / 'chosen.txt'}" in page.locator("#suggested").inner_text()
        page.locator("#to-label li").last.scroll_into_view_if_needed()
        wait(page, "[...document.querySelectorAll('#to-label img')].every(i => i.naturalWidth > 0)")
        shoot(page, "suggested_wide")
        page.get_by_label(f"look at {names[3]} with the model").press("Enter")
        wait(page, "document.querySelectorAll('#legend tbody tr').length == 3")
        assert page.locator("#look").is_visible()
        ids = said(made(0), more / f"{names[3]}.png")[0]
        shares = page.locator("#legend tbody tr", has_text="disc").locator("td").nth(1).inner_text()
        assert float(shares.removesuffix(" %")) == pytest.approx(100 * (ids == 1).mean(), abs=5)  # through a JPEG
        page.set_viewport_size({"width": 390, "height": 800})
        for name in ("check", "suggested"):
            page.locator(f"#tab-{name}").click()
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
            shoot(page, f"{name}_phone")
        assert page.evaluate("document.body.dataset.harmed") is None
        assert page.faults == []


@pytest.mark.slow
def test_suggestions_and_a_check_are_given_by_number_alone(
    segue: Segue, dataset: Path, more: Path, tmp_path: Path
) -> None:
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    from serving import live

    from segue.serve.app import Served
    from segue.serve.checked import Checked
    from segue.serve.suggested import Suggested

    one = {"distance": 0.5, "reason": "far; stands for 2", "stands_for": 2, "uncertainty": None}
    chosen = [{**one, "name": name, "image": str(more / f"{name}.png")} for name in ("gone", "new_3")]
    whole = {"chosen": chosen, "coverage": dict.fromkeys(("farthest", "mean", "random_farthest", "random_mean"), 0.5)}
    (tmp_path / "next").mkdir()
    (tmp_path / "next" / "suggestion.json").write_text(json.dumps({**whole, "labelled": 1, "found": 12}))
    Image.fromarray(draw(3, 500)[0]).save(more / "new_3.png")
    served = Served(made(0), "m", checked=Checked(str(dataset)), suggested=Suggested.read(tmp_path / "next"))
    with live(served) as server:
        assert server.json("/about")["views"] == ["suggested", "check"]
        assert [entry["item"] for entry in server.json("/suggested")["items"]] == [0, 1]  # type: ignore[attr-defined]
        for size, side in (("small", 320), ("large", 500)):
            with Image.open(io.BytesIO(server.ask(f"/suggested/picture?item=1&size={size}")[1])) as image:
                assert image.size == (side, side)
        for asked in ("item=0", "item=2", "item=-1", "item=..", "item=1&size=..", f"item={more}"):
            assert server.ask(f"/suggested/picture?{asked}")[0] in (404, 422), asked
        until = time.monotonic() + 20
        while not (found := server.json("/check"))["found"]:
            assert (time.monotonic() < until, found["error"]) == (True, "")
        assert found["found"]["account"] == {"found": 10, "used": 10, "dropped": 0}  # type: ignore[index]
        assert found["done"] == found["of"] == 10
    source = save_model(made(0), tmp_path / "model", method="supervised", metrics={})
    (tmp_path / "next" / "suggestion.json").write_text('{"chosen": [{"name": 1}]}')
    for arguments, message in (
        (("--suggested", tmp_path / "next"), "no list of segue suggest"),
        (("--suggested", more), "segue suggest --out"),
        (("--check", tmp_path / "none"), "none"),
        (("--runs", tmp_path / "none"), "is no folder"),
        (("--sugested", more), "--suggested"),
    ):
        status, _, errors = segue("serve", source, *arguments)
        assert (status, errors.count("\n"), message in errors) == (2, 1, True), errors


def test_a_list_whose_images_are_not_there_is_said_at_the_start(segue: Segue, more: Path, tmp_path: Path) -> None:
    source = save_model(made(0), tmp_path / "model", method="supervised", metrics={})
    one = {"name": "a", "distance": 0.5, "reason": "far", "stands_for": 2, "uncertainty": None}
    images = [str(more / "new_3.png"), "photos/old.png", "photos/older.png"]
    whole = {"chosen": [{**one, "image": image} for image in images], "labelled": 1, "found": 12}
    whole["coverage"] = dict.fromkeys(("farthest", "mean", "random_farthest", "random_mean"), 0.5)
    (tmp_path / "suggestion.json").write_text(json.dumps(whole))
    with socket.create_server(("127.0.0.1", 0)) as taken:  # so that it ends there
        status, _, errors = segue("serve", source, "--suggested", tmp_path, "--port", taken.getsockname()[1])
    said = errors.splitlines()
    assert (status, len(said)) == (2, 2)
    assert "2 of 3 images" in said[0]
    assert "photos/old.png" in said[0]
    assert "segue suggest" in said[0]


def test_a_saved_model_is_served_with_its_review_runs_and_set(tmp_path: Path, more: Path, dataset: Path) -> None:
    """What the command opens, without listening."""
    from segue.cli import parser
    from segue.cli.serving import open_served

    source = save_model(made(0), tmp_path / "model", method="supervised", metrics={})
    call = ["serve", str(source), "--against", str(source), "--review", str(more), "--ledger", str(tmp_path / "l")]
    write_run(tmp_path / "runs" / "a", [], 0.5)
    further = ["--runs", str(tmp_path / "runs"), "--check", f"{dataset}:train"]
    served = open_served(parser().parse_args([*call, *further]), "cpu")
    assert served.against is not None
    assert served.suggested is None
    assert served.runs is not None
    assert [row["name"] for row in served.runs.listing()["runs"]] == ["a"]
    assert served.checked is not None
    until = time.monotonic() + 30
    while not (found := served.checked.view()["found"]):
        assert time.monotonic() < until
    assert found["splits"] == {"train": 6}
    assert served.review is not None
    listing = served.review.listing()
    assert len(listing["items"]) == 10
    assert sum(map(sum, listing["items"][0]["histogram"])) == 96 * 96
