"""The page in a real browser, as a person uses it; and the ledger of a review, which training obeys."""

import io
import json
import os
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browsing import HOSTILE, canvas, made, needs_browser, said, shoot, wait
from conftest import CLASSES, COLORS, draw, options
from PIL import Image

from segue.data.ledger import read_ledger
from segue.errors import DataError
from segue.models.segmenter import Segmenter, SegmenterSpec
from segue.prediction.pictures import find_images

pytest_plugins = ["browsing"]
Segue = Callable[..., tuple[int, str, str]]
# Okabe and Ito's colours without black.
SAFE = np.array([[0, 114, 178], [230, 159, 0], [0, 158, 115], [204, 121, 167], [86, 180, 233], [213, 94, 0]])
CIVIDIS = np.array([[0, 34, 78], [65, 77, 107], [124, 123, 120], [188, 175, 111], [254, 232, 56]])


def press(page: Any, keys: str, *, decided: int) -> None:
    """Presses keys of the review, each when its picture is shown, and waits until so many of the ten are decided."""
    for key in keys:
        wait(page, "document.body.dataset.painted")
        page.keyboard.press(key)
    until_decided(page, decided)


def until_decided(page: Any, count: int) -> None:
    wait(page, f"document.getElementById('progress').textContent.startsWith('{count} of 10')")


def kept_share(page: Any, number: int) -> float:
    """Per cent of the pixels of a class that its threshold keeps."""
    return float(page.locator("#thresholds tbody tr").nth(number).inner_text().split()[-2])


def kept_of(items: Any, number: int, threshold: int) -> Any:
    """The same by hand; the page shows one decimal."""
    histograms = [item["histogram"][number] for item in items]
    kept = sum(sum(histogram[threshold:]) for histogram in histograms)
    return pytest.approx(100 * kept / sum(map(sum, histograms)), abs=0.051)


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
def test_two_models_may_have_more_than_255_names_together(page: Any, more: Path) -> None:
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    from serving import TOKEN, live

    from segue.serve.app import Served

    models, colors = [], [tuple((i, 255 - i, blue) for i in range(255)) for blue in (0, 200)]
    for seed, own in enumerate(colors):
        torch.manual_seed(seed)
        names = tuple(f"class {seed}.{i}" for i in range(255))
        models.append(Segmenter(SegmenterSpec("test_efficientnet", names, own, decoder_channels=16)).eval())
    with live(Served(models[0], "runs/first", models[1], "runs/second")) as server:
        page.goto(f"{server.address}/#{TOKEN}")
        wait(page, "document.body.dataset.ready")
        page.set_input_files("#file", str(more / "new_0.png"))
        wait(page, "document.querySelectorAll('#legend tbody tr').length == 510")
        assert "the models differ on 100.0 %" in page.locator("#summary").inner_text()
        page.locator("#colors").select_option("model")
        page.locator("#opacity").fill("100")
        page.locator("#slider").fill("0")
        after = said(models[1], more / "new_0.png")[0]
        np.testing.assert_array_equal(canvas(page, "canvas"), np.array(colors[1])[after])
        assert page.faults == []


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
        page.goto(f"{server.address}/#{TOKEN}")  # in the same tab, which takes it
        page.wait_for_url(f"{server.address}/")
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
    model.spec = replace(model.spec, classes=("ground", "traffic light", "child's bar"))
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
        pasted = shlex.split(page.locator("#option").inner_text())
        assert pasted == ["--adjust", "false", "--thresholds", "ground:0.99,traffic light:0.80,child's bar:0.80"]
        for i, key in enumerate("arrdaar"):  # keys go to the page, though a slider has the focus
            wait(page, f"document.body.dataset.painted == '{order[i]}'")
            press(page, key, decided=i + 1)
        assert kept_share(page, 1) == kept_of([listed[i] for i in (0, 4, 5, 7, 8, 9)], 1, 80)  # type: ignore[index]
        press(page, "ra", decided=9)  # in the wrong order
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


@needs_browser
@pytest.mark.slow
def test_one_press_is_one_decision_about_the_picture_that_is_seen(page: Any, more: Path, tmp_path: Path) -> None:
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    from serving import TOKEN, live

    from segue.serve.app import Served
    from segue.serve.review import Review

    (more / "new_1.png").write_bytes(b"no")  # the first of the list, and decided without being seen
    model, ledger, late = made(0), tmp_path / "ledger", []
    with live(Served(model, "runs/first", review=Review(model, find_images([str(more)]), ledger))) as server:
        page.goto(f"{server.address}/#{TOKEN}")
        wait(page, "document.body.dataset.ready")
        page.locator("#tab-review").click()
        wait(page, "document.querySelectorAll('#gallery button').length == 10")
        order = [entry["name"] for entry in server.json("/review")["items"]]  # type: ignore[attr-defined]
        page.keyboard.press("r")
        until_decided(page, 1)
        for place, key in ((1, "a"), (2, "Enter")):
            wait(page, f"document.body.dataset.painted == '{order[place]}'")
            page.locator("#redraw").focus()
            for _ in range(4):  # from the second on as a key that is held
                page.keyboard.down(key)
                page.wait_for_timeout(100)
            page.keyboard.up(key)
        until_decided(page, 3)
        page.route("**/review/picture?*", lambda route: late.append(route.request.url))  # waits until nobody holds it
        page.locator("#gallery button").nth(7).click()
        while not late:
            page.wait_for_timeout(30)
        assert (canvas(page, "review-canvas") == 0).all()  # the picture before is gone
        page.keyboard.press("a")
        page.locator("#reject").click()
        assert page.locator("#current-name").inner_text() == order[7]
        page.unroute("**/review/picture?*")
        press(page, "a", decided=4)
    decided = {0: "reject", 1: "accept", 2: "redraw", 7: "accept"}
    assert read_ledger(ledger) == {str((more / f"{order[i]}.png").resolve()): word for i, word in decided.items()}
    assert len(ledger.read_text().splitlines()) == 4


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


def test_a_decision_taken_back_is_none(more: Path, tmp_path: Path) -> None:
    from segue.serve.review import Review

    review = Review(made(0), find_images([str(more)]), tmp_path / "ledger")
    review.decide(0, "accept")
    assert len(review.decisions) == 1
    review.decide(0, "undecided")
    assert review.decisions == {} == read_ledger(tmp_path / "ledger")
    review.decide(0, "undecided")


def test_the_last_decision_counts_and_a_torn_line_is_left_out(tmp_path: Path) -> None:
    from segue.data.ledger import append

    path = tmp_path / "ledger"
    lines = [{"image": "/a", "decision": "accept"}, {"image": "/b", "decision": "reject"}]
    lines += [{"image": "/a", "decision": "redraw"}, {"image": "/b", "decision": "undecided"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"image": "/c", "deci')
    assert read_ledger(path) == {"/a": "redraw"}
    append(path, {"image": "/c", "decision": "reject"})  # the torn one must not spoil the next
    assert read_ledger(path) == {"/a": "redraw", "/c": "reject"}


def test_a_last_line_without_its_newline_counts_if_it_is_a_decision_and_else_is_left_as_it_is(tmp_path: Path) -> None:
    from segue.data.ledger import append

    path = tmp_path / "ledger"
    path.write_text('{"image": "/a", "decision": "accept"}\n{"decision": "reject", "image": "/b"}')
    assert read_ledger(path) == {"/a": "accept", "/b": "reject"}
    append(path, {"image": "/c", "decision": "redraw"})
    assert read_ledger(path) == {"/a": "accept", "/b": "reject", "/c": "redraw"}
    for other in ("what I must not forget", '["notes"]', '{"decision": "rej', '{"image": "/a"}', "7"):
        path.write_text(other)
        with pytest.raises(DataError, match="ledger:1 is no decision"):
            read_ledger(path)
        with pytest.raises(DataError, match="ledger:1 is no decision"):
            append(path, {"image": "/c", "decision": "redraw"})
        assert path.read_text() == other
    for cut in ("", "{", '{"ima', '{"image": "/a", "decision": "acc', '{"image": "/a", "decision": "accept"'):
        path.write_text(cut)
        assert read_ledger(path) == {}
        append(path, {"image": "/c", "decision": "redraw"})
        assert read_ledger(path) == {"/c": "redraw"}


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
