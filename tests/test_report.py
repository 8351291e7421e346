"""The report, of run folders written by hand: what it says, what it leaves out, and what it survives."""

import ast
import base64
import functools
import html
import inspect
import io
import json
import math
import re
from copy import deepcopy
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CLASSES, COLORS, write_set
from PIL import Image

from segue import report
from segue.data.decoder import Decoder
from segue.data.images import Whole
from segue.data.layouts import open_listing
from segue.errors import DataError
from segue.evaluation import measure
from segue.models.segmenter import Segmenter, SegmenterSpec
from segue.report import Arm, class_rows, confusion_table, separation, write_report
from segue.report.plots import lines, points_of
from segue.runs.folder import Run
from segue.runs.sections import write_headline, write_section
from segue.text import count, duration, percent, points
from segue.weights import save_model

NASTY = "<script>alert(1)</script> & $\\frac$ \u6c34"
CONFUSION = [[60, 20, 0], [10, 10, 0], [0, 0, 0]]  # IoU 60/90, 10/40, and a class that is not there


def evaluation(method: str, confusion: list[list[int]], images: dict[str, float | None]) -> dict[str, Any]:
    """What `segue.launch` writes as evaluation.json, of a confusion matrix made up by hand."""
    counts = np.array(confusion)
    hit, union = np.diag(counts), counts.sum(0) + counts.sum(1) - np.diag(counts)
    ious = [float(h / u) if t else None for h, u, t in zip(hit, union, counts.sum(1), strict=True)]
    present = [iou for iou in ious if iou is not None]
    scores = {
        "miou": sum(present) / len(present) if present else None,
        "accuracy": 0.7,
        "mean_accuracy": 0.6,
        "ece": 0.05,
    }
    bins = {"count": [0, 40, 60], "right": [0, 20, 50], "probability": [0, 20, 54]}
    return {
        "method": method, "seconds": 75.0, "split": "validation", "classes": [*CLASSES], "scores": scores,
        "classes_present": len(present), "confusion": confusion, "calibration": bins,
        "images": [{"name": name, "miou": miou} for name, miou in images.items()],
    }  # fmt: skip


@functools.cache
def tiny(classes: tuple[str, ...] = CLASSES) -> Segmenter:
    torch.manual_seed(0)
    colors = tuple(COLORS[i % 3] for i in range(len(classes)))
    return Segmenter(SegmenterSpec("test_efficientnet", classes, colors, decoder_channels=16)).eval()


def write_run(out: Path, *, data: Path | str = "gone", classes: tuple[str, ...] = CLASSES, **account: Any) -> Path:
    """A finished run of pixel_contrast without validation."""
    out.mkdir()
    described = {
        "root": str(data), "layout": "folder", "classes": classes, "found": 10, "labelled": 3, "unlabelled": 5,
        "validation": 0, "dropped": {"masks without an image": 2}, "labelled_names": ["a"], "warnings": [],
        "fingerprint": "f00d", "validation_at": {"data": str(data), "layout": "auto", "map": "", "split": "val"},
        **account,
    }  # fmt: skip
    config = {"data": str(data), "layout": "auto", "map": "", "val": "auto", "steps": 4}
    identity = {"verb": "train", "method": "pixel_contrast", "seed": 7, "precision": "fp32", "config": config}
    record = {
        "identity": identity, "command": "segue train gone --seed 7", "started": "2026-01-01", "git": "abc123",
        "versions": {"segue": "0.1.0", "torch": "9.9.9"}, "data": described,
    }  # fmt: skip
    (out / "run.json").write_text(json.dumps(record))
    (out / "evaluation.json").write_text(json.dumps({"method": "pixel_contrast", "seconds": 3, "split": "validation"}))
    lines = [
        {"stage": stage, "step": step, "loss": 1.5, "contrast": 1.5} for stage in ("one", "two") for step in (1, 2)
    ]
    (out / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    save_model(tiny(classes), out / "model", method="pixel_contrast", metrics={})
    return out


def add_scores(out: Path, confusion: list[list[int]], baseline: list[list[int]] | None = None, **images: Any) -> Path:
    """Validation scores of a run, and those of a plain arm beside it."""
    images = images or {"a": 0.1, "b": 0.5, "c": None}
    record = json.loads((out / "run.json").read_text())
    record["data"]["validation"] = len(images)
    (out / "run.json").write_text(json.dumps(record))
    (out / "evaluation.json").write_text(json.dumps(evaluation("pixel_contrast", confusion, images)))
    if baseline:
        (out / "baseline").mkdir()
        (out / "baseline" / "model").symlink_to(out / "model")
        worse = {name: miou and miou - 0.05 for name, miou in images.items()}
        (out / "baseline" / "evaluation.json").write_text(json.dumps(evaluation("supervised", baseline, worse)))
    return out


class Page(HTMLParser):
    """The text of a page, the address in every attribute that fetches, and its tags."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.raw, self.words, self.tags, self.fetched = path.read_text(encoding="utf-8"), "", [], []
        self.hidden = 0
        self.feed(self.raw)
        self.text = " ".join(self.words.split())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.hidden += tag in ("style", "script")
        self.words += " " if tag not in ("i", "code", "span") else ""
        self.fetched += [
            v or "" for k, v in attributes if k in ("src", "href", "xlink:href", "srcset", "data", "action")
        ]

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in ("style", "script")
        self.words += " " if tag not in ("i", "code", "span") else ""

    def handle_data(self, data: str) -> None:
        self.words += data if not self.hidden else ""


def page_of(out: Path) -> Page:
    return Page(write_report(out))


def pictures(page: Page) -> list[Image.Image]:
    """Every photograph in the page."""
    found = [source for source in page.fetched if source.startswith("data:image/jpeg")]
    return [Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) for source in found]


@pytest.fixture
def compared(tmp_path: Path) -> Path:
    """A run with a plain arm that was never better, on data that has gone."""
    return add_scores(write_run(tmp_path / "run"), CONFUSION, [[40, 40, 0], [10, 10, 0], [0, 0, 0]])


def test_headline_states_both_arms_their_difference_and_the_images(compared: Path) -> None:
    text = page_of(compared).text
    # (60/90 + 10/40) / 2 against (40/90 + 10/60) / 2
    assert "pixel_contrast reaches 45.8 % mIoU on 3 validation images, 15.3 points more than plain supervised" in text
    assert "(30.6 %)" in text
    assert "better on 2 and worse on 0 of 2" in text  # the third has no score
    assert "one run cannot tell whether the difference is larger than that noise" in text
    assert "Repeat it with several seeds (--seeds 3, into another folder)" in text


def test_an_arm_alone_is_told_where_it_is_compared(compared: Path) -> None:
    with pytest.raises(DataError, match=r"baseline is one arm of the run .*report\.html compares them"):
        write_report(compared / "baseline")


def test_seeds_are_advised_as_the_command_has_them(compared: Path) -> None:
    record = json.loads((compared / "run.json").read_text())
    record["identity"] |= {"verb": "compress", "method": "compact_search"}
    (compared / "run.json").write_text(json.dumps(record))
    text = page_of(compared).text
    assert ("--finalist-seeds 3" in text, "--seeds 3" in text) == (True, False)


@pytest.mark.parametrize(("baseline", "words"), [(CONFUSION, "as much as plain"), ([[80, 0, 0], [0, 20, 0], [0, 0, 0]],
                         "54.2 points less than plain")])  # fmt: skip
def test_headline_is_not_always_good_news(tmp_path: Path, baseline: list[list[int]], words: str) -> None:
    assert words in page_of(add_scores(write_run(tmp_path / "run"), CONFUSION, baseline)).text


def test_absent_class_is_a_dash_and_left_out_of_the_mean(compared: Path) -> None:
    text = page_of(compared).text
    assert "Mean IoU over 2 of 3 classes" in text
    assert "bar – – – 0.0 0.0" in text
    assert "Mean of 2 classes 45.8 30.6 +15.3" in text
    assert "over 2 of 3 classes. Left out: bar." in text
    assert "nan" not in text.lower()


def test_what_was_left_out_adds_up_to_what_was_found(tmp_path: Path) -> None:
    dropped = {"masks without an image": 2, "of the training split kept for validation": 1}
    page = page_of(write_run(tmp_path / "run", found=11, dropped=dropped, warnings=["W201 two pictures are alike"]))
    wanted = (
        "labels 3 Used without labels 5 Left out 3 masks without an image 2 of the training split kept for validation 1"
    )
    assert f"{wanted} Found 11" in page.text
    assert "W201 two pictures are alike" in page.text
    assert "not accounted for" not in page.text


def test_what_does_not_add_up_is_said(tmp_path: Path) -> None:
    assert "4 of these are not accounted for" in page_of(write_run(tmp_path / "run", found=14)).text


def test_nothing_is_fetched_or_run(compared: Path) -> None:
    page = page_of(compared)
    assert all(address.startswith(("#", "data:image/")) for address in page.fetched)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert not re.search(r"url\(\s*['\"]?(?!#)|@import", page.raw)
    assert "default-src 'none'" in page.raw


def test_names_are_text_everywhere(tmp_path: Path) -> None:
    classes = (NASTY, "b", "c")
    out = write_run(tmp_path / "run", classes=classes, root=NASTY, dropped={NASTY: 2}, warnings=[NASTY])
    write_embeddings(out, "embeddings_before")
    rows = {name: {"threshold": 0.8, "predicted": 4, "kept": 1} for name in classes}
    (out / "pseudo_labels.json").write_text(json.dumps({"classes": rows, "images": {NASTY: NASTY}}))
    page = page_of(add_scores(out, CONFUSION, **{NASTY: 0.5}))
    assert "<script" not in page.raw
    assert "script" not in page.tags
    assert page.text.count(NASTY) >= 8
    assert f"{html.escape(NASTY)}</text>" in page.raw  # named in the t-SNE, and not read as mathematics
    assert "svg" in page.tags


def test_run_without_validation_claims_nothing(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run"))
    assert "nothing can be said of its accuracy: there were no validation images" in page.text
    for absent in ("Confusion", "Calibration", "Embeddings", "Pseudo-labels", "mIoU"):
        assert absent not in page.text
    assert "segue train gone --seed 7" in page.text
    assert "torch 9.9.9" in page.text
    assert "abc123" in page.text


def test_run_without_a_plain_arm_does_not_say_what_the_method_adds(tmp_path: Path) -> None:
    page = page_of(add_scores(write_run(tmp_path / "run"), CONFUSION))
    assert "reaches 45.8 % mIoU on 3 validation images; no plain training ran beside it" in page.text
    assert "Difference" not in page.text


def test_validation_images_without_labels_are_no_score(tmp_path: Path) -> None:
    nothing = [[0] * 3] * 3
    page = page_of(add_scores(write_run(tmp_path / "run"), nothing, nothing, a=None))
    assert "no validation image has a labelled pixel" in page.text
    assert "nan" not in page.text.lower()


def test_pictures_are_the_worst_then_the_best_and_small(tmp_path: Path) -> None:
    data = write_set(tmp_path / "set", train=1, val=11, test=0, size=32)
    Image.new("RGB", (900, 60)).save(data / "images" / "val_009.png")
    Image.new("L", (900, 60)).save(data / "labels" / "val_009.png")
    scores = {f"val_{i:03d}": 0.9 - 0.05 * i for i in range(1, 12)}
    page = page_of(add_scores(write_run(tmp_path / "run", data=data), CONFUSION, CONFUSION, **scores))
    shown = re.findall(r"(val_\d+) truth pixel_contrast: ([\d.]+) supervised: ([\d.]+)", page.text)
    assert [name for name, *_ in shown] == [f"val_{i:03d}" for i in (11, 10, 9, 8, 7, 6, 1, 2, 3)]
    assert shown[0][1:] == ("35.0", "30.0")
    found = pictures(page)
    assert len(found) == 9 * 4
    assert max(picture.width for picture in found) == 480
    assert len(page.raw) < 500_000


def test_overlays_are_of_the_saved_model_and_the_truth(tmp_path: Path) -> None:
    data = write_set(tmp_path / "set", train=1, val=1, test=0, size=32)
    out = write_run(tmp_path / "run", data=data)
    model = deepcopy(tiny())
    torch.nn.init.zeros_(model.head.weight)
    model.head.bias.data = torch.tensor([0.0, 9.0, 0.0])  # says disc everywhere
    save_model(model, out / "model", method="pixel_contrast", metrics={})
    Image.new("L", (32, 32), 2).save(data / "labels" / "val_001.png")
    photo, truth, predicted = (
        np.array(p, np.float64).mean((0, 1)) for p in pictures(page_of(add_scores(out, CONFUSION, val_001=0.5)))
    )
    np.testing.assert_allclose(truth, 0.4 * photo + 0.6 * np.array(COLORS[2]), atol=4)  # JPEG
    np.testing.assert_allclose(predicted, 0.4 * photo + 0.6 * np.array(COLORS[1]), atol=4)


def test_a_picture_that_has_gone_is_said(tmp_path: Path) -> None:
    data = write_set(tmp_path / "set", train=1, val=1, test=0, size=32)
    out = add_scores(write_run(tmp_path / "run", data=data), CONFUSION, val_001=0.5, val_002=0.4)
    page = page_of(out)
    assert "Not all images could be shown: val_002 is no longer in the data set" in page.text
    assert len(pictures(page)) == 3


def test_data_that_has_gone_costs_the_pictures_alone(compared: Path) -> None:
    page = page_of(compared)
    assert "Not all images could be shown: gone does not exist" in page.text
    assert pictures(page) == []


def write_embeddings(out: Path, name: str, *, pixels: int = 30, classes: int = 3, fill: float | None = None) -> None:
    generator = np.random.default_rng(0)
    labels = (np.arange(pixels) % classes).astype(np.uint8)
    features = generator.normal(size=(pixels, 4)) * 0.01 + np.eye(4)[labels]
    features = features if fill is None else np.full_like(features, fill)
    np.savez(out / f"{name}.npz", features=features.astype(np.float16), labels=labels)


def test_embeddings_are_drawn_and_their_separation_is_stated(tmp_path: Path) -> None:
    out = write_run(tmp_path / "run")
    write_embeddings(out, "embeddings_before", pixels=60)
    write_embeddings(out, "embeddings_after_pseudo", pixels=60)
    page = page_of(out)
    assert page.text.count("100.0 % of neighbours are of the same class (by chance 32.2 %); 60 pixels") == 2
    assert "Before contrast" in page.text
    assert "After contrast with pseudo-labels" in page.text
    assert page.raw.count("data:image/png") == 2


@pytest.mark.parametrize(
    "shape", [{"pixels": 0}, {"pixels": 1}, {"pixels": 12, "classes": 1}, {"fill": 0.0}, {"fill": math.inf}]
)
def test_poor_embeddings_are_survived(tmp_path: Path, shape: dict[str, Any]) -> None:
    out = write_run(tmp_path / "run")
    write_embeddings(out, "embeddings_before", **shape)
    page = page_of(out)
    assert "Before contrast" in page.text
    assert "nan" not in page.text.lower()
    assert ("Too few different pixels" in page.text) == ("classes" not in shape)


def test_curves_show_every_loss_and_what_was_refused(tmp_path: Path) -> None:
    out = write_run(tmp_path / "run")
    lines = [
        {"stage": "two", "step": 3, "refused": "not finite", "loss": "nan", "contrast": "nan", "norm": "nan"},
        {"stage": "two", "step": 4, "val/miou": 0.4, "val/iou/bar": math.nan},
        {"stage": "three", "step": 1, "loss": math.nan, "cross_entropy": 1.0},
    ]
    with (out / "log.jsonl").open("a") as log:
        log.write("".join(json.dumps(line) + "\n" for line in lines) + '{"stage": "cut')
    page = page_of(out)
    for title in ("contrast", "cross entropy", "validation mIoU"):
        assert f'aria-label="{title} over training steps"' in page.raw
    assert page.tags.count("svg") == 3
    assert "one 2, two 4, three 1 steps" in page.text
    assert "1 step not taken" in page.text


def test_pseudo_labels_are_counted(tmp_path: Path) -> None:
    out = write_run(tmp_path / "run")
    rows = {
        "ground": {"threshold": 0.97, "predicted": 1000, "kept": 250},
        "disc": {"threshold": 0.8, "predicted": 0, "kept": 0},
    }
    (out / "pseudo_labels.json").write_text(json.dumps({"classes": rows, "images": {"0.png": "a", "1.png": "b"}}))
    page = page_of(out)
    assert "ground 0.97 1 000 250 25.0" in page.text
    assert "All 1 000 250 25.0" in page.text
    assert "disc 0.8 0 0 –" in page.text
    assert "2 images without labels" in page.text
    assert "No pixel was kept of disc: of these" in page.text


def test_pseudo_labels_that_taught_nothing_are_said(tmp_path: Path) -> None:
    out = write_run(tmp_path / "run")
    rows = {"ground": {"threshold": 0.97, "predicted": 1000, "kept": 0}}
    (out / "pseudo_labels.json").write_text(json.dumps({"classes": rows, "images": {"0.png": "a"}}))
    assert "No pixel was kept: the second round learnt from the labelled images alone" in page_of(out).text


def test_the_settings_of_the_plain_arm_are_shown_too(compared: Path) -> None:
    path = compared / "baseline" / "evaluation.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "settings": {"lr": 0.0123}}))
    assert "All settings of supervised lr 0.0123" in page_of(compared).text


def test_report_of_what_was_measured_says_the_same_numbers(tmp_path: Path) -> None:
    data = write_set(tmp_path / "set", train=1, val=2, test=0, size=32)
    out = write_run(tmp_path / "run", data=data, validation=2)
    listing = open_listing(str(data))
    measured = measure(tiny(), Whole(listing.split("val"), Decoder.of(listing)), CLASSES)
    written = {"method": "pixel_contrast", "seconds": 1.0, "split": "validation", **measured.plain()}
    (out / "evaluation.json").write_text(json.dumps(written))
    page = page_of(out)
    assert f"pixel_contrast reaches {100 * measured.scores()['miou']:.1f} % mIoU on 2 validation images" in page.text
    for name in CLASSES:
        assert f"{name} {percent(measured.scores()[f'iou/{name}'])} " in page.text


def test_class_rows_and_confusion_by_hand(compared: Path) -> None:
    arm = Arm.read("method", compared)
    ground, disc, bar = class_rows([arm])
    assert ground["iou"] == [pytest.approx(60 / 90)]
    assert (ground["truth"], ground["predicted"]) == (0.8, 0.7)
    assert disc["iou"] == [pytest.approx(10 / 40)]
    assert math.isnan(bar["iou"][0])
    table = confusion_table(arm.confusion(), CLASSES)
    assert table["rows"][0]["cells"] == [0.75, 0.25, 0.0]
    assert table["rows"][2]["cells"] == [None] * 3
    assert table["mistakes"] == [("ground", "disc", 0.25, 20), ("disc", "ground", 0.5, 10)]
    assert not table["is_cut"]


def test_large_confusion_keeps_the_commonest_classes_and_says_so(tmp_path: Path) -> None:
    classes = tuple(f"class{i}" for i in range(40))
    counts = np.diag(np.arange(40)) + np.eye(40, k=-8, dtype=int)
    out = add_scores(write_run(tmp_path / "run", classes=classes), counts.tolist())
    page = page_of(out)
    assert "The 32 commonest classes; the others are in the last column." in page.text
    table = confusion_table(Arm.read("method", out).confusion(), classes)
    assert [row["name"] for row in table["rows"]] == list(classes[8:])
    assert table["rows"][0]["others"] == pytest.approx(1 / 9)  # class8 is class0 in 1 of 9 pixels


def test_separation_by_hand() -> None:
    features = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    # Of three neighbours of each, one is of its class; chance is 2 * 2 * 1 of 4 * 3 ordered pairs.
    assert separation(features, np.array([0, 0, 1, 1])) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert all(math.isnan(value) for value in separation(features[:1], np.array([0])))


def test_separation_tells_apart_from_mixed() -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(90) % 3
    mixed = generator.normal(size=(90, 8))
    apart = mixed + 20 * np.eye(8)[labels]
    purities = [separation(f / np.linalg.norm(f, axis=1, keepdims=True), labels)[0] for f in (mixed, apart)]
    assert purities[0] < 0.45
    assert purities[1] == 1.0


def test_numbers_as_text() -> None:
    assert [percent(v) for v in (0.4567, 0.0, 0.0004, None, math.nan, 1.0)] == [
        "45.7",
        "0.0",
        "<0.1",
        "–",
        "–",
        "100.0",
    ]
    assert [points(a, b) for a, b in ((0.5, 0.4), (0.4, 0.5), (0.4, 0.4001), (None, 0.1))] == [
        "+10.0",
        "−10.0",
        "0.0",
        "–",
    ]
    assert [duration(s) for s in (0.2, 59.6, 75, 3720)] == ["0 s", "1 min", "1 min 15 s", "1 h 2 min"]
    assert count(1234567) == "1\u202f234\u202f567"


def test_unfinished_run_is_refused_by_name(tmp_path: Path) -> None:
    out = write_run(tmp_path / "run")
    (out / "evaluation.json").unlink()
    with pytest.raises(DataError, match=r"evaluation\.json does not exist: a report needs a finished run"):
        write_report(out)
    (out / "evaluation.json").write_text("{")
    with pytest.raises(DataError, match="is damaged"):
        write_report(out)
    assert not (out / "report.html").exists()


def test_the_same_run_gives_the_same_report(tmp_path: Path) -> None:
    out = write_run(tmp_path / "run")
    write_embeddings(out, "embeddings_before")
    assert write_report(out).read_bytes() == write_report(out).read_bytes()
    assert not list(out.glob(".*partial"))


def test_what_draws_is_imported_when_a_report_is_written_and_not_before() -> None:
    tree = ast.parse(inspect.getsource(report))
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in imports for alias in node.names} | {getattr(node, "module", "") for node in imports}
    assert "numpy" in names
    assert not {name.partition(".")[0] for name in names} & {"matplotlib", "sklearn", "jinja2", "markupsafe"}


def test_a_section_shows_its_blocks_and_escapes_them(tmp_path: Path) -> None:
    out = write_run(tmp_path / "run")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(out / "seen.png")
    blocks = [
        {"text": NASTY}, {"warning": "mind this"},
        {"table": {"head": ["Class", "IoU, %"], "rows": [["disc", "91.2"]]}},
        {"lines": {"title": "credible", "x": "step", "y": "%", "series": {"disc": [[0, 1.0], [5, 2.0]]}}},
        {"pictures": [["seen.png", "what it shows"], ["gone.png", "what is gone"]]},
    ]  # fmt: skip
    write_section(Run(out, quiet=True), "20_later", "Later", [{"text": "second"}])
    write_section(Run(out, quiet=True), "10_health", "Health", blocks)
    page = Page(write_report(out))
    for expected in (NASTY, "mind this", "91.2", "what it shows", "gone.png"):
        assert expected in page.words, expected
    assert page.words.index("mind this") < page.words.index("second")
    assert "<script" not in page.raw
    assert page.raw.count("data:image/jpeg") == 1


def test_a_headline_takes_the_place_of_the_usual_one(tmp_path: Path) -> None:
    out = write_run(tmp_path / "run")
    write_headline(Run(out, quiet=True), "The target is worse off.", is_warning=True)
    page = Page(write_report(out))
    assert "The target is worse off." in page.words
    assert "nothing can be said of its accuracy" not in page.words
    assert 'class="headline warn"' in page.raw


def test_every_name_stands_in_the_legend_of_a_plot() -> None:
    names = ("_road", "road", "<i>", "$x$")
    curves = lines("step", "%", {**{name: [[1, i], [2, i]] for i, name in enumerate(names)}, "_empty": []})
    groups = points_of("ms", "%", {name: [[i + 1, i]] for i, name in enumerate(names)})
    for drawn in (curves, groups):
        assert [name for name in names if f">{html.escape(name)}</text>" not in drawn] == []


def test_an_unknown_block_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one of text, warning"):
        write_section(Run(tmp_path / "run", quiet=True), "x", "X", [{"picture": []}])
    assert not (tmp_path / "run").exists()


def test_candidates_of_a_search_are_no_steps_of_a_curve(tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text('{"method": "compact_search"}')
    run = Run(tmp_path, quiet=True)
    for stage, steps in (("search", 60), ("stage_1", 4), ("stage_2", 2)):
        run.log(stage, steps, {"distilled": 1.0} if stage != "search" else {"reward1": 0.5})
    arm = Arm.read("method", tmp_path)
    assert arm.stages() == {"stage_1": (0, 4), "stage_2": (4, 2)}
    assert arm.trace("distilled") == [[(4, 1.0)], [(6, 1.0)]]
