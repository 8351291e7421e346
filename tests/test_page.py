"""The page in a real browser, as a person uses it; and the ledger of a review, which training obeys."""

import io
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CLASSES, COLORS, draw, options
from PIL import Image

from segue.data.ledger import read_ledger
from segue.data.sample import DataError
from segue.models.segmenter import Segmenter, SegmenterSpec
from segue.prediction import find_images, predict_image
from segue.weights import save_model

Segue = Callable[..., tuple[int, str, str]]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SHOTS = os.environ.get("SEGUE_SHOTS")  # a folder for screenshots, to be looked at
# Okabe and Ito's colours without black.
SAFE = np.array([[0, 114, 178], [230, 159, 0], [0, 158, 115], [204, 121, 167], [86, 180, 233], [213, 94, 0]])
CIVIDIS = np.array([[0, 34, 78], [65, 77, 107], [124, 123, 120], [188, 175, 111], [254, 232, 56]])
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine: the page is not tested")


def made(seed: int) -> Segmenter:
    torch.manual_seed(seed)
    model = Segmenter(SegmenterSpec("test_efficientnet", CLASSES, COLORS, decoder_channels=16)).eval()
    torch.nn.init.normal_(model.head.weight, std=20.0)  # sure of itself, so that thresholds matter
    return model


@pytest.fixture
def more(tmp_path: Path) -> Path:
    """Ten unlabelled pictures."""
    folder = tmp_path / "more"
    folder.mkdir()
    for i in range(10):
        Image.fromarray(draw(100 + i, 96)[0]).save(folder / f"new_{i}.png")
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: the page is not tested")
    with api.sync_playwright() as tool:
        started = tool.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.faults = []
    opened.on("pageerror", lambda error: opened.faults.append(str(error)))
    opened.on("console", lambda line: opened.faults.append(line.text) if line.type == "error" else None)
    opened.on("request", lambda request: opened.faults.append(request.url) if elsewhere(request.url) else None)
    yield opened
    opened.close()


def elsewhere(url: str) -> bool:
    return not url.startswith(("http://127.0.0.1:", "data:", "blob:"))


def shoot(page: Any, name: str) -> None:
    if SHOTS:
        page.screenshot(path=str(Path(SHOTS) / f"{name}.png"), full_page=True)


def wait(page: Any, claim: str) -> None:
    """Until ``claim`` is true; playwright's own way evaluates a string, which the page's policy forbids."""
    until = time.monotonic() + 30
    while not page.evaluate(claim):
        assert time.monotonic() < until, (claim, page.faults, page.locator("#message").inner_text())
        page.wait_for_timeout(30)


def press(page: Any, keys: str, *, decided: int) -> None:
    """Presses keys of the review one after the other, and waits until so many of the ten pictures are decided."""
    for key in keys:
        page.keyboard.press(key)
    wait(page, f"document.getElementById('progress').textContent.startsWith('{decided} of 10')")


def kept_share(page: Any, number: int) -> float:
    """Per cent of the pixels of a class that its threshold keeps."""
    return float(page.locator("#thresholds tbody tr").nth(number).inner_text().split()[-2])


def kept_of(items: Any, number: int, threshold: int) -> Any:
    """The same by hand; the page shows one decimal."""
    histograms = [item["histogram"][number] for item in items]
    kept = sum(sum(histogram[threshold:]) for histogram in histograms)
    return pytest.approx(100 * kept / sum(map(sum, histograms)), abs=0.051)


def canvas(page: Any, name: str) -> np.ndarray:
    """What a canvas shows: uint8 (H, W, 3)."""
    found = page.evaluate(
        "name => { const c = document.getElementById(name); const d = c.getContext('2d').getImageData(0, 0, c.width,"
        " c.height); return [c.height, c.width, Array.from(d.data)]; }",
        name,
    )
    return np.array(found[2], np.uint8).reshape(found[0], found[1], 4)[..., :3]


def said(model: Segmenter, path: Path) -> list[np.ndarray]:
    """(ids, uncertainty) of a model for a picture."""
    pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)
    classes, _, uncertainty = predict_image(model, pixels)
    return [classes.numpy(), uncertainty.numpy()]


@needs_browser
@pytest.mark.slow
def test_a_person_looks_at_a_picture_and_compares_two_models(page: Any, more: Path) -> None:
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    from serving import TOKEN, live

    from segue.serve.app import Served

    first, second, colors = made(0), made(1), np.array(COLORS)
    (before, doubt), (after, _) = said(first, more / "new_0.png"), said(second, more / "new_0.png")
    photo = np.asarray(Image.open(more / "new_0.png"))
    with live(Served(first, "runs/first", second, "runs/second")) as server:
        page.goto(f"{server.address}/#{TOKEN}")
        wait(page, "document.body.dataset.ready")
        assert TOKEN not in page.url
        assert page.locator("#model").inner_text() == "runs/first against runs/second"
        page.set_input_files("#file", str(more / "new_0.png"))
        wait(page, "document.querySelectorAll('#legend tbody tr').length == 3")
        assert f"the models differ on {100 * (before != after).mean():.1f} %" in page.locator("#summary").inner_text()
        page.locator("#opacity").fill("100")
        shoot(page, "look_wide")
        for position, border in (("100", 96), ("50", 48), ("0", 0)):
            page.locator("#slider").fill(position)
            expected = np.concatenate([colors[before][:, :border], colors[after][:, border:]], 1)
            np.testing.assert_array_equal(canvas(page, "canvas"), expected)
        box = page.locator("#canvas").bounding_box()
        page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
        name = [CLASSES[ids[48, 24]] for ids in (before, after)]
        words = page.locator("#here").inner_text()
        assert words.startswith(f"24, 48: {name[0]}, uncertainty {100 * doubt[48, 24]:.0f}"[:-1])
        assert f"after: {name[1]}, " in words
        page.mouse.down()  # the picture itself can be dragged
        page.mouse.up()
        assert page.locator("#slider").input_value() == "25"
        page.locator("#slider").fill("100")
        page.locator("#legend button", has_text="disc").click()
        np.testing.assert_array_equal(
            canvas(page, "canvas"), np.where((before == 1)[..., None], colors[1], photo)
        )  # the other classes are not painted
        page.locator("#legend button", has_text="disc").click()
        page.locator("#colors").select_option("safe")
        shoot(page, "look_safe")
        np.testing.assert_array_equal(canvas(page, "canvas"), SAFE[before])
        page.locator("#opacity").fill("0")
        np.testing.assert_array_equal(canvas(page, "canvas"), photo)
        page.locator("#opacity").fill("100")
        page.locator("#show-uncertainty").check()
        shown = canvas(page, "canvas")
        ramp = np.stack([np.interp(doubt, np.linspace(0, 1, 5), anchors) for anchors in CIVIDIS.T], -1)
        np.testing.assert_allclose(shown, ramp, atol=1.5)
        shares = page.locator("#legend tbody td:nth-child(2)").all_inner_texts()
        assert sum(float(share.removesuffix(" %")) for share in shares) == pytest.approx(100, abs=0.3)
        assert page.faults == []
        page.emulate_media(color_scheme="dark")
        page.set_viewport_size({"width": 390, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        shoot(page, "look_phone_dark")


@needs_browser
@pytest.mark.slow
def test_what_goes_wrong_is_said_and_colours_that_look_alike_are_not_taken(page: Any, more: Path) -> None:
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    from serving import TOKEN, live

    from segue.serve.app import Served

    names = tuple(f"class {i}" for i in range(12))
    greens = tuple((200 - 10 * (i // 2), 40 + 10 * (i // 2), 40) for i in range(12))  # two classes have one colour
    torch.manual_seed(0)
    model = Segmenter(SegmenterSpec("test_efficientnet", names, greens, decoder_channels=16)).eval()
    with live(Served(model, "runs/first")) as server:
        page.goto(f"{server.address}/")
        wait(page, "document.getElementById('message').textContent.includes('holds the token')")
        page.faults.clear()  # the browser names the 401
        page.goto(f"{server.address}/#{TOKEN}")
        page.reload()
        wait(page, "document.body.dataset.ready")
        assert page.locator("#colors").input_value() == "safe"
        assert page.locator("#alike").is_visible()
        page.locator("#file").focus()
        assert page.evaluate("getComputedStyle(document.getElementById('drop')).outlineStyle") == "solid"
        page.set_input_files("#file", str(more / "new_0.png"))
        wait(page, "document.querySelectorAll('#legend tbody tr').length == 12")
        signs = page.evaluate("[...document.querySelectorAll('#legend .chip')].map(c => c.toDataURL())")
        assert len(set(signs)) == 12  # the ninth has the colour of the first, and a pattern
        shoot(page, "look_patterns")
        ids = said(model, more / "new_0.png")[0]
        assert set(np.unique(ids)) <= {1, 5}  # the second of their colours
        page.locator("#opacity").fill("100")
        np.testing.assert_array_equal(canvas(page, "canvas"), SAFE[ids])
        page.locator("#colors").select_option("model")
        page.reload()
        wait(page, "document.body.dataset.ready")
        assert page.locator("#colors").input_value() == "model"  # as the person chose
        assert page.faults == []
        (more / "broken.png").write_bytes(b"no")
        page.set_input_files("#file", str(more / "broken.png"))
        wait(page, "!document.getElementById('message').hidden")
        assert "no JPEG, PNG" in page.locator("#message").inner_text()


@needs_browser
@pytest.mark.slow
def test_ten_pseudo_labels_are_reviewed_by_keys_and_the_next_training_obeys(
    page: Any, segue: Segue, more: Path, dataset: Path, tmp_path: Path
) -> None:
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    from serving import TOKEN, live

    from segue.serve.app import Served
    from segue.serve.review import Review

    ledger = tmp_path / "ledger.jsonl"
    model = made(0)
    review = Review(model, find_images([str(more)]), ledger)
    with live(Served(model, "runs/first", review=review)) as server:
        page.goto(f"{server.address}/#{TOKEN}")
        wait(page, "document.body.dataset.ready")
        page.locator("#tab-review").click()
        wait(page, "document.querySelectorAll('#gallery button').length == 10")
        listed = server.json("/review")["items"]
        order = [entry["name"] for entry in listed]  # type: ignore[attr-defined]
        uncertain = [entry["uncertainty"] for entry in listed]  # type: ignore[attr-defined]
        assert uncertain == sorted(uncertain, reverse=True)
        shown = "[...document.querySelectorAll('#gallery img')].filter(i => i.naturalWidth > 0).length"
        wait(page, f"{shown} == 10")
        shoot(page, "review_wide")
        page.locator("#thresholds input").nth(0).fill("99")
        assert kept_share(page, 0) == kept_of(listed, 0, 99)
        assert "--thresholds ground:0.99,disc:0.80,bar:0.80" in page.locator("#option").inner_text()
        for i, key in enumerate("arrdaar"):  # keys go to the page, though a slider has the focus
            wait(page, f"document.body.dataset.painted == '{order[i]}'")
            press(page, key, decided=i + 1)
        assert kept_share(page, 1) == kept_of([listed[i] for i in (0, 4, 5, 7, 8, 9)], 1, 80)  # type: ignore[index]
        press(page, "ra", decided=9)  # in the wrong order, and faster than the disk
        press(page, "u", decided=8)  # takes back the last decision and shows its picture again
        assert page.locator("#current-name").inner_text() == order[8]
        press(page, "u", decided=7)
        press(page, "aad", decided=10)
        shoot(page, "review_done")
        page.set_viewport_size({"width": 390, "height": 800})
        page.emulate_media(color_scheme="dark")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        shoot(page, "review_phone_dark")
        assert page.faults == []
    words = {"a": "accept", "r": "reject", "d": "redraw"}
    decided = read_ledger(ledger)
    assert decided == {
        str((more / f"{name}.png").resolve()): words[key] for name, key in zip(order, "arrdaaraad", strict=True)
    }
    assert len(ledger.read_text().splitlines()) == 14
    assert Review(model, find_images([str(more)]), ledger).decisions == decided

    call = ("train", dataset, "--out", tmp_path / "run", "--device", "cpu", *options(threshold=0.0))
    status, _, errors = segue(*call, "--unlabeled", more, "--ledger", ledger)
    assert status == 0, errors
    assert "5 rejected or to be redrawn by the review" in errors
    described = json.loads((tmp_path / "run" / "pseudo_labels.json").read_text())
    used = {Path(path).stem for path in (*described["images"].values(), *described["left_out"])}
    assert used == {name for name, key in zip(order, "arrdaaraad", strict=True) if key == "a"}


HOSTILE = "<img src=x onerror=document.body.dataset.harmed=1>"


@needs_browser
@pytest.mark.slow
def test_names_from_the_disk_are_text_and_a_broken_picture_is_no_end(page: Any, more: Path, tmp_path: Path) -> None:
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    from serving import TOKEN, live

    from segue.serve.app import Served
    from segue.serve.review import Review

    (more / "new_0.png").rename(more / f"{HOSTILE}.png")
    (more / "new_1.png").write_bytes(b"no")
    model = Segmenter(SegmenterSpec("test_efficientnet", (HOSTILE, "disc", "bar"), COLORS, decoder_channels=16)).eval()
    with live(Served(model, HOSTILE, review=Review(model, find_images([str(more)]), tmp_path / "ledger"))) as server:
        page.goto(f"{server.address}/#{TOKEN}")
        wait(page, "document.body.dataset.ready")
        page.set_input_files("#file", str(more / f"{HOSTILE}.png"))
        wait(page, "document.querySelectorAll('#legend tbody tr').length == 3")
        page.locator("#tab-look").focus()
        page.keyboard.press("ArrowRight")
        wait(page, "document.querySelectorAll('#gallery button').length == 10")
        assert page.evaluate("document.activeElement.id") == "tab-review"
        assert "new_1: " in page.locator("#current-name").inner_text()  # the least certain of all
        page.locator("#gallery button", has_text=HOSTILE).click()
        wait(page, "document.body.dataset.painted")
        for text in ("#model", "#gallery", "#thresholds", "#option"):
            assert HOSTILE in page.locator(text).inner_text()
        assert page.evaluate("[document.body.dataset.harmed, document.querySelectorAll('img[src=x]').length]") == [
            None,
            0,
        ]
        assert page.faults == []


def test_pictures_of_a_review_are_found_by_number_alone(more: Path, tmp_path: Path) -> None:
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    from serving import live

    from segue.serve.app import Served
    from segue.serve.review import Review

    Image.fromarray(draw(7, 400)[0]).save(os.fsencode(more / "b") + b"\xff.png")  # a name that is no UTF-8
    model = made(0)
    with live(
        Served(model, "runs/first", review=Review(model, find_images([str(more)]), tmp_path / "ledger"))
    ) as server:
        assert server.json("/review/progress") == {"measured": 0, "of": 11}
        assert server.ask("/review/thumbnail?item=0")[0] == 404  # nothing was predicted yet
        listed = server.json("/review")["items"]
        assert "b\\udcff" in {entry["name"] for entry in listed}  # type: ignore[attr-defined]
        assert server.json("/review/progress") == {"measured": 11, "of": 11}
        for entry in listed:  # type: ignore[attr-defined]
            status, content = server.ask(f"/review/thumbnail?item={entry['item']}")
            with Image.open(io.BytesIO(content)) as small:
                assert (status, max(small.size)) == (200, 160 if entry["name"].startswith("b") else 96)
        for item in ("11", "-1", "..%2f..%2fetc%2fpasswd", "1e3", ""):
            for path in ("thumbnail", "picture"):
                assert server.ask(f"/review/{path}?item={item}")[0] in (404, 422), item
        assert server.ask("/review/picture?item=0&kind=../ledger")[0] == 404
        for body in (
            b"{}",
            b"[]",
            b'{"item": true, "decision": "accept"}',
            b'{"item": 0, "decision": ["accept"]}',
            b"\xff",
        ):
            assert server.ask("/review/decision", body)[0] == 400
        assert not (tmp_path / "ledger").exists()


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
    (root / "link").symlink_to(tmp_path / "elsewhere")
    with live(Served(made(0), "m", runs=RunList(root))) as server:
        found = {row["name"]: row for row in server.json("/runs")["runs"]}  # type: ignore[attr-defined]
        assert set(found) == {"a", "a/baseline", "deep/b", "torn", "odd"}
        assert [found[name]["at"] for name in ("a", "a/baseline", "deep/b")] == ["two 2000", "one 7", "one 1"]
        assert (found["a"]["score"], found["a"]["scores"]) == (["miou", 0.5], {"miou": 0.5})
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
        for run in ("-1", "5", "..", "/etc", "0/../..", ""):
            assert server.ask(f"/runs/curves?run={run}")[0] in (404, 422), run
        write_run(root / "c", [], 0.25)
        numbers = {row["name"]: row["run"] for row in server.json("/runs")["runs"]}  # type: ignore[attr-defined]
        assert numbers == {**{name: row["run"] for name, row in found.items()}, "c": 5}


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


def test_suggestions_and_a_check_are_given_by_number_alone(
    segue: Segue, dataset: Path, more: Path, tmp_path: Path
) -> None:
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    from serving import live

    from segue.serve.app import Served
    from segue.serve.checked import Checked
    from segue.serve.suggested import Suggested

    one = {"distance": 0.5, "reason": "far; stands for 2", "stands_for": 2, "uncertainty": None}
    chosen = [{**one, "name": name, "image": str(more / f"{name}.png")} for name in ("new_3", "gone")]
    whole = {"chosen": chosen, "coverage": dict.fromkeys(("farthest", "mean", "random_farthest", "random_mean"), 0.5)}
    (tmp_path / "next").mkdir()
    (tmp_path / "next" / "suggestion.json").write_text(json.dumps({**whole, "labelled": 1, "found": 12}))
    Image.fromarray(draw(3, 500)[0]).save(more / "new_3.png")
    served = Served(made(0), "m", checked=Checked(str(dataset)), suggested=Suggested.read(tmp_path / "next"))
    with live(served) as server:
        assert server.json("/about")["views"] == ["suggested", "check"]
        assert [entry["item"] for entry in server.json("/suggested")["items"]] == [0, 1]  # type: ignore[attr-defined]
        for size, side in (("small", 320), ("large", 500)):
            with Image.open(io.BytesIO(server.ask(f"/suggested/picture?item=0&size={size}")[1])) as image:
                assert image.size == (side, side)
        for asked in ("item=1", "item=2", "item=-1", "item=..", "item=0&size=..", f"item={more}"):
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


def test_the_last_decision_counts_and_a_torn_line_is_left_out(tmp_path: Path) -> None:
    from segue.data.ledger import append

    path = tmp_path / "ledger"
    lines = [{"image": "/a", "decision": "accept"}, {"image": "/b", "decision": "reject"}]
    lines += [{"image": "/a", "decision": "redraw"}, {"image": "/b", "decision": "undecided"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"image": "/c", "deci')
    assert read_ledger(path) == {"/a": "redraw"}
    append(path, {"image": "/c", "decision": "reject"})  # the torn one must not spoil the next
    assert read_ledger(path) == {"/a": "redraw", "/c": "reject"}


@pytest.mark.parametrize("line", ["no", "[]", '{"image": "/a"}', '{"image": "/a", "decision": "maybe"}'])
def test_a_ledger_that_holds_something_else_is_named_with_its_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "ledger").write_text(f'{{"image": "/a", "decision": "accept"}}\n{line}\n')
    with pytest.raises(DataError, match="ledger:2"):
        read_ledger(tmp_path / "ledger")


def test_training_obeys_a_ledger_and_counts_what_it_leaves_out(
    segue: Segue, dataset: Path, more: Path, tmp_path: Path
) -> None:
    refused = [str((more / f"new_{i}.png").resolve()) for i in range(8)]
    ledger = tmp_path / "ledger"
    ledger.write_text("".join(json.dumps({"image": path, "decision": "reject"}) + "\n" for path in refused))
    from segue.config import Data
    from segue.data.training import open_training

    found = open_training(Data(str(dataset), unlabeled=(str(more),), ledger=str(ledger)), seed=0)
    assert [pair.name for pair in found.unlabelled] == ["new_8", "new_9"]
    assert found.dropped == {"rejected or to be redrawn by the review": 8}
    assert len(found.labelled) + len(found.unlabelled) + 8 == found.found
    gone = ("train", dataset, "--out", tmp_path / "o", "--unlabeled", more, "--ledger", tmp_path / "gone")
    status, _, errors = segue(*gone, "--device", "cpu", *options())
    assert (status, "cannot be read" in errors) == (2, True)
    assert not (tmp_path / "o").exists()


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
