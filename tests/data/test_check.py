"""Every named fault is found with its code, its file and what mends it; it stops or is said; and the mend works."""

import json
import os
import re
import shlex
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import COLORS, draw, write_set
from PIL import Image

from segue.config import Data
from segue.data.check import check
from segue.data.check.audit import audit
from segue.data.check.inspection import MANY_VALUES
from segue.data.finding import Finding
from segue.data.layouts import LAYOUTS, open_listing
from segue.data.sample import write_label_map
from segue.data.training import open_training
from segue.errors import DataError
from segue.progress import track

SIZE = 48


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Six training and two validation pictures."""
    root = write_set(tmp_path / "my set", train=6, val=2, test=0, size=SIZE)
    described(root, lambda told: told["splits"].pop("test"))
    return root


def save_mask(root: Path, values: np.ndarray, name: str = "train_002") -> None:
    Image.fromarray(values.astype(np.uint8)).save(root / "labels" / f"{name}.png")


def every_mask(root: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    for path in sorted((root / "labels").iterdir()):
        with Image.open(path) as image:
            values = np.array(image)
        Image.fromarray(change(values).astype(np.uint8)).save(path)


def described(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = root / "dataset.json"
    told = json.loads(path.read_text())
    change(told)
    path.write_text(json.dumps(told))


def png(width: int, height: int, rows: bytes) -> bytes:
    """A grey PNG with any header and any pixel bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def cut_short(root: Path) -> None:
    path = root / "images" / "train_002.png"
    path.write_bytes(path.read_bytes()[:600])


def jpeg_mask(root: Path) -> None:
    (root / "labels" / "train_002.png").unlink()
    Image.fromarray(draw(2)[1] * 100).save(root / "labels" / "train_002.jpg", quality=60)


def smoothed(root: Path) -> None:
    large = Image.fromarray(draw(2)[1] * 100).resize((24, 24)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    large.save(root / "labels" / "train_002.png")


def blurred(ids: np.ndarray) -> np.ndarray:
    """A mask of 0, 100 and 200 whose edges, drawn with smoothing, hold dozens of values between."""
    large = (
        Image.fromarray((ids * 100).astype(np.uint8)).resize((19, 19)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    )
    values = np.asarray(large)
    assert len(np.unique(values)) > MANY_VALUES
    return values


def case_clash(root: Path) -> None:
    for kind in ("images", "labels"):
        (root / kind / "train_003.png").rename(root / kind / "Train_002.png")
    described(root, lambda told: told["splits"].update(train=["train_000", "train_001", "train_002", "Train_002"]))


def colored(root: Path) -> None:
    every_mask(root, lambda v: np.array(COLORS, np.uint8)[v])
    described(root, lambda told: told.pop("colors"))


def turned(root: Path) -> None:
    """A photo that EXIF turns, and a mask that lies as the photo is stored."""
    image, ids = draw(2)[0][:24], draw(2)[1][:24]
    exif = Image.Exif()
    exif[0x0112] = 6
    (root / "images" / "train_002.png").unlink()
    Image.fromarray(image).save(root / "images" / "train_002.jpg", exif=exif)
    save_mask(root, ids)


def with_nan(root: Path) -> None:
    (root / "images" / "train_002.png").unlink()
    values = np.full((SIZE, SIZE), 0.5, np.float32)
    values[3, 3] = np.nan
    Image.fromarray(values, "F").save(root / "images" / "train_002.tif")


def deep(root: Path) -> None:
    for i, path in enumerate(sorted((root / "images").iterdir())):
        values = np.arange(SIZE * SIZE, dtype=np.uint16).reshape(SIZE, SIZE) + 1000
        Image.fromarray(np.roll(values, i - 2)).save(path)  # train_002 is not rolled


def link_out(root: Path) -> None:
    path = root / "images" / "train_002.png"
    elsewhere = root.parent / "elsewhere.png"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def without_image(root: Path) -> None:
    (root / "images" / "train_002.png").unlink()
    described(root, lambda told: told["splits"]["train"].remove("train_002"))


def unlink(path: Path) -> None:
    path.unlink()


def swapped_palette(root: Path) -> None:
    for path in sorted((root / "labels").iterdir()):
        with Image.open(path) as image:
            write_label_map(path, np.array(image), [COLORS[0], COLORS[2], COLORS[1]])


def photo_of_a_phone(root: Path) -> None:
    (root / "images" / "train_002.png").unlink()
    (root / "images" / "train_002.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))


@dataclass(frozen=True)
class Fault:
    """One fault, how it is made, what is said of it, and the training options that its message prints as a mend."""

    code: str
    make: Callable[[Path], object]
    where: str
    fix: str
    options: dict[str, object] | None = None
    copied: bool = True  # whether --fix writes a sound copy
    by_hand: Callable[[Path], object] | None = None  # the act that the message asks for, where no command does it
    id: str = field(default="")


IMAGE, MASK, IMAGE_FILE = "images/train_002", "labels/train_002", "images/train_002.png"
STOPS = [
    Fault("E101", lambda r: save_mask(r, np.where(draw(2)[1] == 2, 77, draw(2)[1])), MASK, "--map 77:ignore",
          {"map": "77:ignore"}),
    Fault("E102", lambda r: (every_mask(r, lambda v: np.where(v > 0, 255, 0)), described(
        r, lambda t: t.update(classes=["a", "b"], colors=COLORS[:2]))), "set", "--map 255:1", {"map": "255:1"}),
    Fault("E103", lambda r: every_mask(r, lambda v: v + 1), "set", "--map 1-3:0", {"map": "1-3:0"}),
    Fault("E104", colored, "labels/train_000", "dataset.json: \"colors\"", copied=False,
          by_hand=lambda r: described(r, lambda t: t.update(colors=COLORS))),
    Fault("E104", swapped_palette, MASK, "order of the palette", copied=False,
          by_hand=lambda r: every_mask(r, lambda v: v), id="palette"),
    Fault("E101", lambda r: every_mask(r, lambda v: np.where(v == 0, 3, v - 1)), "set", "--map 3:ignore",
          {"map": "3:ignore"}, id="unlabelled last"),
    Fault("E101", lambda r: every_mask(r, lambda v: np.where(np.arange(SIZE) < 9, 0, v + 1)), "set",
          "--map 0:ignore,1-3:0", {"map": "0:ignore,1-3:0"}, id="unlabelled first"),
    Fault("E105", lambda r: every_mask(r, blurred), "labels/", "nearest neighbour", id="all smoothed"),
    Fault("E105", jpeg_mask, MASK, "nearest neighbour", id="jpeg"),
    Fault("E105", smoothed, MASK, "nearest neighbour", id="smoothed"),
    Fault("E106", lambda r: unlink(r / "labels" / "train_002.png"), IMAGE, "--allow-missing", {"allow_missing": True},
          id="image"),
    Fault("E106", without_image, MASK, "--allow-missing", {"allow_missing": True}, id="mask"),
    Fault("E106", lambda r: os.rename(r / "labels" / "train_002.png", r / "labels" / "train_002_mask.png"), IMAGE,
          "1 look renamed", id="renamed"),
    Fault("E107", lambda r: [p.rename(p.with_stem(p.stem + "_mask")) for p in sorted((r / "labels").iterdir())], "set",
          "give them the same names"),
    Fault("E107", lambda r: [unlink(p) for p in (r / "labels").glob("train_*")], "set:train", "Put the masks there",
          copied=False, id="train", by_hand=lambda r: [save_mask(r, draw(i)[1], f"train_00{i}") for i in range(6)]),
    Fault("E108", lambda r: save_mask(r, draw(2)[1][::2, ::2]), MASK, "size of its image", {"skip_bad": True},
          id="half"),
    Fault("E108", turned, MASK, "size of its image", {"skip_bad": True}, id="turned"),
    Fault("E110", cut_short, IMAGE, "--skip-bad", {"skip_bad": True}),
    Fault("E111", lambda r: (r / "images" / "train_002.png").write_text("hello"), IMAGE, "--skip-bad",
          {"skip_bad": True}, id="text"),
    Fault("E111", lambda r: (r / "images" / "train_002.png").write_bytes(b""), IMAGE, "--skip-bad",
          {"skip_bad": True}, id="empty"),
    Fault("E111", lambda r: (r / "labels" / "train_002.png").write_bytes(b""), MASK, "--skip-bad",
          {"skip_bad": True}, id="mask"),
    Fault("E111", photo_of_a_phone, IMAGE, "Convert it to PNG or JPEG", {"skip_bad": True}, id="heic"),
    Fault("E112", lambda r: (r / "images" / "train_002.png").write_bytes(png(30000, 30000, b"\0" * 1000)), IMAGE,
          "--skip-bad", {"skip_bad": True}),
    Fault("E113", with_nan, IMAGE, "--fix OUT", {"skip_bad": True}),
    Fault("E116", lambda r: every_mask(r, np.zeros_like), "set", "are not empty", copied=False, id="empty",
          by_hand=lambda r: [save_mask(r, draw(int(p.stem[-3:]))[1], p.stem) for p in (r / "labels").iterdir()]),
    Fault("E116", lambda r: every_mask(r, lambda v: np.full_like(v, 255)), "labels", "class ids", copied=False,
          by_hand=lambda r: [save_mask(r, draw(int(p.stem[-3:]))[1], p.stem) for p in (r / "labels").iterdir()]),
    Fault("E116", lambda r: every_mask(r, lambda v: np.array(COLORS, np.uint8)[np.zeros_like(v)]), "set",
          "are not empty", copied=False, id="one colour",
          by_hand=lambda r: every_mask(r, lambda v: np.array(COLORS, np.uint8)[draw(2)[1]])),
    Fault("E117", lambda r: described(r, lambda t: t["splits"].update(val=[])), "set:val", "--fix OUT"),
    Fault("E118", lambda r: Image.fromarray(draw(2)[0]).save(r / "images" / "train_002.jpg"), IMAGE, "Rename",
          by_hand=lambda r: unlink(r / "images" / "train_002.jpg")),
    Fault("E126", lambda r: described(r, lambda t: t["splits"].update(train=["train_000"])), "set", "at least two more",
          copied=False, by_hand=lambda r: described(
              r, lambda t: t["splits"].update(train=["train_000", "train_001", "train_002"]))),
    Fault("E130", lambda r: (unlink(r / IMAGE.replace("002", "002.png")), (r / "images" / "train_002.png").symlink_to(
        "gone.png")), IMAGE, "--skip-bad", {"skip_bad": True}, id="broken"),
    Fault("E130", link_out, IMAGE, "--skip-bad", {"skip_bad": True}, id="out"),
    Fault("E130", lambda r: (unlink(r / "images" / "train_002.png"), os.mkfifo(r / "images" / "train_002.png")), IMAGE,
          "--skip-bad", {"skip_bad": True}, id="pipe"),
    Fault("E130", lambda r: (unlink(r / "images" / "train_002.png"), (r / "images" / "train_002.png").symlink_to(
        "train_002.png")), IMAGE, "--skip-bad", {"skip_bad": True}, id="loop"),
    Fault("E130", lambda r: (r / "images" / "more").symlink_to(r / "labels"), "images/more", "name it in the command",
          by_hand=lambda r: (r / "images" / "more").unlink(), id="folder"),
    Fault("E151", lambda r: every_mask(r, lambda v: np.arange(SIZE * SIZE).reshape(SIZE, SIZE) // 20), "set",
          "instances/", copied=False, by_hand=lambda r: (
              (r / "labels").rename(r / "instances"), (r / "labels").mkdir(),
              [save_mask(r, draw(int(p.stem[-3:]))[1], p.stem) for p in (r / "instances").iterdir()])),
]  # fmt: skip
NOTES = [
    Fault("W107", lambda r: [unlink(p) for p in (r / "labels").glob("val_*")], "set:val", "--val none"),
    Fault("W109", turned, IMAGE, "Nothing to do"),
    Fault("W114", lambda r: Image.fromarray(draw(2)[0]).convert("L").save(r / IMAGE_FILE), "L (1 images)",
          "Nothing to do"),
    Fault("W114", deep, "(8 images)", "1023.03 black and 3279.97 white", id="deep"),
    Fault("W115", lambda r: every_mask(r, lambda v: np.where(v == 1, 0, v)), "disc", "class list"),
    Fault("W115", lambda r: [save_mask(r, np.minimum(draw(i)[1], 1), f"val_00{i}") for i in (6, 7)], "bar",
          "The mean is over the other classes", id="val"),
    Fault("W116", lambda r: save_mask(r, np.full((SIZE, SIZE), 255)), MASK, "take it out"),
    Fault("W118", lambda r: (r / "images" / "train_002.png").write_bytes((r / "images" / "train_001.png").read_bytes()),
          "train_001.png = ", "copies out"),
    Fault("W119", lambda r: (r / "images" / "val_006.png").write_bytes((r / "images" / "train_001.png").read_bytes()),
          "train_001.png = ", "--fix OUT", id="equal"),
    Fault("W119", lambda r: described(r, lambda t: t["splits"].update(val=["val_006", "train_000"])), "train_000",
          "never train on one", id="listed"),
    Fault("W126", lambda r: described(r, lambda t: t["splits"].update(val=["val_006"])), "set:val", "Move some"),
    Fault("W126", lambda r: [save_mask(r, np.minimum(draw(i)[1], 1), f"train_00{i}") for i in range(5)], "bar",
          "Label more images of them", id="once"),
    Fault("W131", case_clash, "train_002.png and ", "Rename one of each"),
]  # fmt: skip


def names(faults: list[Fault]) -> list[str]:
    return [f"{fault.code}-{fault.id}" if fault.id else fault.code for fault in faults]


def look(root: Path) -> list[Finding]:
    quiet = audit(
        str(root), layout="auto", mapping="", allow_missing=False, workers=0, track=lambda w, n: track(w, n, quiet=True)
    )
    account = quiet.account()
    assert account["used"] + account["dropped"] == account["found"]
    return quiet.findings


def test_a_photo_beside_what_it_was_converted_to_is_no_fault(dataset: Path, tmp_path: Path, segue: Any) -> None:
    (dataset / "images" / "train_002.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    (dataset / "images" / "a.HEIC").write_bytes(b"")
    (dataset / "images" / "a.gif").write_bytes(b"")
    assert [(f.code, len(f.where)) for f in look(dataset) if f.stop] == [("E118", 1)]  # neither of the two is read
    for name in ("a.HEIC", "a.gif"):
        unlink(dataset / "images" / name)
    assert look(dataset) == []
    data = open_training(Data(data=str(dataset)), seed=0)
    assert (data.found, len(data.labelled), data.dropped) == (6, 6, {})
    assert segue("check", dataset, "--fix", tmp_path / "copy")[0] == 0
    assert [path.name for path in (tmp_path / "copy" / "images").glob("train_002.*")] == ["train_002.png"]


def test_a_link_may_lead_anywhere_within_the_set(tmp_path: Path, dataset: Path) -> None:
    """In layouts whose folders have other names, too; and not beyond it where it lies below one of such a name."""
    root = tmp_path / "images" / "camvid"
    for split in ("train", "val"):
        for kind, folder in (("images", split), ("labels", f"{split}annot")):
            (root / folder).mkdir(parents=True)
            for path in (dataset / kind).glob(f"{split}_*"):
                path.rename(root / folder / path.name)
    (root / "store").mkdir()
    linked = root / "train" / "train_002.png"
    linked.rename(root / "store" / "a.png")
    linked.symlink_to("../store/a.png")
    assert not [found for found in look(root) if found.code == "E130"]
    (root / "store").rename(tmp_path / "images" / "store")
    linked.unlink()
    linked.symlink_to("../../store/a.png")
    assert [found.where for found in look(root) if found.code == "E130"] == [(str(linked),)]


def test_a_sound_set_has_no_finding(dataset: Path) -> None:
    findings, facts = check(open_listing(str(dataset)), hashes=True)
    assert findings == []
    assert facts.read == 8
    assert facts.pixels.sum() == 8 * SIZE * SIZE
    assert facts.images.tolist() == [8, 8, 8]


def test_every_value_that_is_no_class_is_told_at_once(dataset: Path) -> None:
    values = draw(2)[1].copy()
    values[:4], values[4:6] = 77, 78
    save_mask(dataset, values)
    findings, _ = check(open_listing(str(dataset)))
    assert [(f.code, f.what.split(" is ")[0]) for f in findings if f.stop] == [
        ("E101", "the value 77"), ("E101", "the value 78")
    ]  # fmt: skip


@pytest.mark.parametrize("fault", STOPS, ids=names(STOPS))
def test_each_fault_stops_training_and_names_code_file_and_mend(dataset: Path, fault: Fault, segue: Any) -> None:
    fault.make(dataset)
    named = [f for f in look(dataset) if f.code == fault.code and any(fault.where in place for place in f.where)]
    assert named
    assert fault.fix in str(named[0])
    with pytest.raises(DataError, match=fault.code):
        open_training(Data(data=str(dataset)), seed=0)
    status, output, _ = segue("check", dataset)
    assert status == 2
    assert f"{fault.code} " in output and "STOP: " in output


@pytest.mark.parametrize("fault", [f for f in STOPS if f.options], ids=names([f for f in STOPS if f.options]))
def test_the_printed_option_mends_and_nothing_is_dropped_silently(dataset: Path, fault: Fault) -> None:
    fault.make(dataset)
    data = open_training(Data(data=str(dataset), **fault.options), seed=0)  # type: ignore[arg-type]
    assert data.found == len(data.labelled) + len(data.unlabelled) + sum(data.dropped.values())
    assert data.found == 6
    assert len(data.labelled) + len(data.val) <= 8


def printed_commands(finding: Finding, root: Path, out: Path) -> list[tuple[Any, ...]]:
    """The commands that a message prints, ready to run; options go to the check of the same set."""
    commands: list[tuple[Any, ...]] = []
    for option, value in re.findall(r"(--map|--allow-missing|--skip-bad)( [0-9][^ .;)]*)?", finding.fix):
        commands.append(("check", root, option, value.strip()) if value else ("check", root, option))
    for address in re.findall(r"segue check (.+?) --fix OUT", finding.fix):
        commands.append(("check", *shlex.split(address), "--fix", out))
    return commands


@pytest.mark.slow
@pytest.mark.parametrize("fault", STOPS, ids=names(STOPS))
def test_after_each_printed_command_or_act_the_check_passes(
    dataset: Path, tmp_path: Path, fault: Fault, segue: Any
) -> None:
    fault.make(dataset)
    named = next(f for f in look(dataset) if f.code == fault.code and any(fault.where in place for place in f.where))
    commands = printed_commands(named, dataset, tmp_path / "copy")
    assert commands or fault.by_hand
    for command in commands:
        status, output, errors = segue(*command)
        assert status == 0, (command, output, errors)
        if "--fix" in command:
            assert segue("check", tmp_path / "copy")[0] == 0
    if fault.by_hand:
        fault.by_hand(dataset)
        status, output, _ = segue("check", dataset)
        assert status == 0, output


@pytest.mark.parametrize("fault", STOPS, ids=names(STOPS))
def test_the_mended_copy_is_sound_or_says_why_not(dataset: Path, tmp_path: Path, fault: Fault, segue: Any) -> None:
    fault.make(dataset)
    before = {p: p.read_bytes() for p in dataset.rglob("*") if p.is_file()}
    status, output, errors = segue("check", dataset, "--fix", tmp_path / "copy")
    assert {p: p.read_bytes() for p in dataset.rglob("*") if p.is_file()} == before
    if not fault.copied:
        assert status == 2
        assert "no rule mends" in errors and fault.code in errors
        return
    assert status == 0, output
    assert not [f for f in look(tmp_path / "copy") if f.stop]


@pytest.mark.parametrize("fault", NOTES, ids=names(NOTES))
def test_each_note_is_said_and_does_not_stop_by_itself(dataset: Path, fault: Fault) -> None:
    fault.make(dataset)
    findings = look(dataset)
    named = [f for f in findings if f.code == fault.code and any(fault.where in place for place in f.where)]
    assert named
    assert fault.fix in str(named[0])
    assert not named[0].stop


LEFT_OUT = {"E106-image": 1, "E106-mask": 1, "E106-renamed": 2, "E107": 8, "E108-half": 1, "E110": 1, "E130-loop": 1}


@pytest.mark.parametrize("fault", STOPS, ids=names(STOPS))
def test_what_is_left_out_is_counted(dataset: Path, fault: Fault, segue: Any) -> None:
    fault.make(dataset)
    told = json.loads(segue("check", dataset, "--json")[1])["sets"][0]
    assert told["used"] + told["dropped"] == told["found"]
    name = names([fault])[0]
    if name in LEFT_OUT:
        assert told["dropped"] == LEFT_OUT[name]
    if fault.options and fault.options.get("skip_bad"):
        assert (told["dropped"], told["used"]) == (1, 7)


SINGLE = [f for f in STOPS if f.code in ("E101", "E105", "E108", "E110", "E111", "E112", "E113", "E130") and f.options]


TWO = [  # a quarter of them in the fast tests
    pytest.param(*two, marks=pytest.mark.slow if i % 4 else ())
    for i, two in enumerate(combinations(range(len(SINGLE)), 2))
]


@pytest.mark.parametrize(("one", "other"), TWO)
def test_two_faults_are_named_in_one_pass_and_mended_in_one_copy(
    dataset: Path, tmp_path: Path, segue: Any, one: int, other: int
) -> None:
    SINGLE[one].make(dataset)
    for kind in ("images", "labels"):  # the second fault in another pair
        for path in sorted((dataset / kind).glob("train_002.*")):
            path.rename(path.with_name(path.name.replace("002", "keep")))
        for path in sorted((dataset / kind).glob("train_003.*")):
            path.rename(path.with_name(path.name.replace("003", "002")))
    SINGLE[other].make(dataset)
    described(dataset, lambda told: told["splits"].update(train=["train_000", "train_001", "train_002", "train_keep"]))
    codes = {finding.code for finding in look(dataset)}
    assert {SINGLE[one].code, SINGLE[other].code} <= codes | ({"E130"} if "loop" in SINGLE[one].id else set())
    status, output, errors = segue("check", dataset, "--fix", tmp_path / "copy")
    assert status == 0, output + errors
    assert not [f for f in look(tmp_path / "copy") if f.stop]


@pytest.mark.parametrize("fault", STOPS, ids=names(STOPS))
def test_no_fault_lets_training_begin(dataset: Path, tmp_path: Path, fault: Fault, segue: Any) -> None:
    fault.make(dataset)
    status, _, errors = segue("train", dataset, "--out", tmp_path / "run", "--steps", 1)
    assert status == 2
    assert fault.code in errors
    assert not (tmp_path / "run").exists()


def test_half_size_masks_are_resized_in_the_copy_and_unknown_ids_ignored(
    dataset: Path, tmp_path: Path, segue: Any
) -> None:
    save_mask(dataset, draw(2)[1][::2, ::2])
    save_mask(dataset, np.where(draw(3)[1] == 2, 77, draw(3)[1]), "train_003")
    assert segue("check", dataset, "--fix", tmp_path / "copy")[0] == 0
    with Image.open(tmp_path / "copy" / "labels" / "train_002.png") as image:
        np.testing.assert_array_equal(np.array(image), draw(2)[1][::2, ::2].repeat(2, 0).repeat(2, 1))
    with Image.open(tmp_path / "copy" / "labels" / "train_003.png") as image:
        np.testing.assert_array_equal(np.array(image), np.where(draw(3)[1] == 2, 255, draw(3)[1]))


def test_a_turned_mask_is_turned_with_its_photo_in_the_copy(dataset: Path, tmp_path: Path, segue: Any) -> None:
    turned(dataset)
    assert segue("check", dataset, "--fix", tmp_path / "copy")[0] == 0
    with Image.open(tmp_path / "copy" / "labels" / "train_002.png") as image:
        np.testing.assert_array_equal(np.array(image), np.rot90(draw(2)[1][:24], -1))


def test_numbers_of_objects_are_resized_and_turned_with_their_masks_in_the_copy(
    dataset: Path, tmp_path: Path, segue: Any
) -> None:
    (dataset / "instances").mkdir()
    turned(dataset)
    lying, half = draw(2)[1][:24] * np.uint16(300), draw(3)[1][::2, ::2] * np.uint16(300)
    save_mask(dataset, draw(3)[1][::2, ::2], "train_003")
    for name, pixels in (("train_002", lying), ("train_003", half), ("train_004", half)):
        Image.fromarray(pixels).save(dataset / "instances" / f"{name}.png")
    assert segue("check", dataset, "--fix", tmp_path / "copy")[0] == 0
    doubled = half.repeat(2, 0).repeat(2, 1)
    for name, pixels in (("train_002", np.rot90(lying, -1)), ("train_003", doubled), ("train_004", doubled)):
        with Image.open(tmp_path / "copy" / "instances" / f"{name}.png") as image:
            assert image.mode == "I;16"
            np.testing.assert_array_equal(np.array(image), pixels)


def test_deep_images_are_scaled_by_one_rule_in_the_copy(dataset: Path, tmp_path: Path, segue: Any) -> None:
    deep(dataset)
    assert segue("check", dataset, "--fix", tmp_path / "copy")[0] == 0
    with Image.open(tmp_path / "copy" / "images" / "train_002.png") as image:
        copied = np.array(image)
    expected = (np.arange(SIZE * SIZE).reshape(SIZE, SIZE) + 1000 - 1023.03) / (3279.97 - 1023.03)
    np.testing.assert_allclose(copied, 255 * expected.clip(0, 1), atol=0.51)


def test_the_copy_is_never_written_into_the_set_itself(dataset: Path, segue: Any) -> None:
    before = sorted(dataset.rglob("*"))
    for out in (dataset, dataset / "mended"):
        status, _, errors = segue("check", dataset, "--fix", out)
        assert status == 2
        assert "lies in the data set itself" in errors
    assert sorted(dataset.rglob("*")) == before


def test_a_class_list_saved_by_windows_is_read(dataset: Path) -> None:
    (dataset / "dataset.json").unlink()
    (dataset / "classes.txt").write_bytes(b"\xef\xbb\xbfground\r\ndisc\r\nbar\r\n")
    assert open_listing(str(dataset)).classes == ("ground", "disc", "bar")


def test_files_that_the_copy_cannot_hold_are_named(dataset: Path, tmp_path: Path, segue: Any) -> None:
    (dataset / "dataset.json").unlink()
    (dataset / "classes.txt").write_text("a\nb\nc\n")
    for kind in ("images", "labels"):
        (dataset / kind / "train_000.png").rename(dataset / kind / "a:b.png")
    for command in (("check", dataset, "--fix", tmp_path / "copy"), ("data", "convert", dataset, tmp_path / "other")):
        status, output, errors = segue(*command)
        assert "left out: " in output + errors and "a:b.png" in output + errors
        assert status == (2 if command[0] == "data" else 0)


@pytest.mark.parametrize("value", ["99999999999999999999:1", "65536:1", "0-65536:ignore", "-1-65535:ignore"])
def test_a_value_that_no_mask_stores_is_refused(dataset: Path, segue: Any, value: str) -> None:
    status, _, errors = segue("check", dataset, f"--map={value}")
    assert status == 2
    assert "is no value:class" in errors


def test_two_values_and_three_classes_are_not_mended_by_guess(dataset: Path, tmp_path: Path, segue: Any) -> None:
    every_mask(dataset, lambda v: np.where(v > 0, 255, 0))
    assert "--fix" not in str(next(f for f in look(dataset) if f.code == "E102"))
    assert segue("check", dataset, "--fix", tmp_path / "copy")[0] == 2
    assert not (tmp_path / "copy").exists()


def test_parallel_and_single_looks_agree(tmp_path: Path) -> None:
    root = write_set(tmp_path / "many", train=140, val=4, test=0, size=16)
    (root / "images" / "train_003.png").write_text("no")
    one, many = check(open_listing(str(root)), sample=None), check(open_listing(str(root)), sample=None, workers=2)
    assert one[0] == many[0]
    np.testing.assert_array_equal(one[1].pixels, many[1].pixels)


def test_sampling_still_reads_every_header(dataset: Path) -> None:
    (dataset / "images" / "train_003.png").write_text("no")
    findings, facts = check(open_listing(str(dataset)), sample=2)
    assert [finding.code for finding in findings if finding.stop] == ["E111"]
    assert facts.read <= 3


def test_an_unlabelled_folder_is_looked_at_as_images(dataset: Path, segue: Any) -> None:
    (dataset / "images" / "train_003.png").write_text("no")
    status, output, _ = segue("check", dataset / "images")
    assert status == 2
    assert "E111" in output and "no labels" in output and "E107" not in output


def test_json_holds_every_occurrence_and_odd_names(dataset: Path, segue: Any) -> None:
    for i in range(5):
        (dataset / "images" / f"train_00{i}.png").write_text("no")
    odd = os.fsencode(dataset / "images" / "train_00") + b"\xff.png"
    Path(os.fsdecode(odd)).write_text("no")
    (dataset / "dataset.json").unlink()
    (dataset / "classes.txt").write_text("a\nb\nc\n")
    status, output, _ = segue("check", dataset, "--json")
    told = json.loads(output)["sets"][0]
    assert status == 2
    assert sum(len(f["where"]) for f in told["findings"] if f["code"] == "E111") == 6
    assert told["used"] + told["dropped"] == told["found"]


def test_the_page_shows_findings_and_pictures_and_runs_no_script(dataset: Path, tmp_path: Path, segue: Any) -> None:
    save_mask(dataset, np.where(draw(2)[1] == 2, 77, draw(2)[1]))
    segue("check", dataset, "--html", tmp_path / "check.html")
    page = (tmp_path / "check.html").read_text()
    assert "<b>E101</b> train_002" in page and page.count("<img") >= 16 and "<script" not in page
    assert segue("check", dataset, "--html", tmp_path / "check.html")[0] == 2


def test_domains_propose_a_map_and_refuse_one_set_twice(dataset: Path, tmp_path: Path, segue: Any) -> None:
    other = write_set(tmp_path / "other", train=3, val=2, test=0)
    described(other, lambda told: told.update(classes=["Ground", "rod", "bar"]))
    status, output, _ = segue("check", "--source", dataset, "--target", other, "--maps", tmp_path / "maps.yaml")
    assert status == 2
    assert "E125" in output
    assert (tmp_path / "maps.yaml").read_text().splitlines()[1:] == ["ground: Ground", "disc: ignore  # ?", "bar: bar"]
    status, output, _ = segue("check", "--source", dataset, "--target", dataset)
    assert status == 2
    assert "share images" in output
    for target, why in (
        (dataset, "the classes of both are the same"),
        (other / "images", "names no classes to map to"),
    ):
        _, output, _ = segue("check", "--source", dataset, "--target", target, "--maps", tmp_path / "none.yaml")
        assert why in output and "none.yaml is not written" in output
    assert not (tmp_path / "none.yaml").exists()


def test_a_model_of_other_classes_is_named(dataset: Path, tmp_path: Path, segue: Any) -> None:
    model = tmp_path / "model"
    model.mkdir()
    spec = {"kind": "segmenter", "format": 1, "spec": {"classes": ["disc", "ground", "bar"]}}
    (model / "model.yaml").write_text(json.dumps(spec))
    status, output, _ = segue("check", dataset, "--model", model)
    assert status == 2
    assert "E132" in output and "another order" in output and "--map 0:1,1:0,2:2" in output
    (model / "model.yaml").write_text(json.dumps({**spec, "spec": {"classes": ["ground", "bar"]}}))
    status, output, _ = segue("check", dataset, "--model", model)
    assert status == 2
    assert f"To teach it disc: segue extend {model} --new {shlex.quote(str(dataset))} --out RUN" in output


def test_the_docs_name_every_code_and_every_layout() -> None:
    root = Path(__file__).parents[2]
    said = (root / "docs" / "data.md").read_text(encoding="utf-8")
    code = "".join(path.read_text(encoding="utf-8") for path in (root / "src" / "segue" / "data").rglob("*.py"))
    spans = re.findall(r"([EW])(\d{3}) to [EW](\d{3})", said)
    listed = set(re.findall(r"\b[EW]1\d\d\b", said)) | {
        f"{kind}{number}" for kind, first, last in spans for number in range(int(first), int(last) + 1)
    }
    assert set(re.findall(r'"([EW]1\d\d)"', code)) <= listed
    assert all(f"`{name}`" in said for name in LAYOUTS)


def test_a_check_does_without_torch() -> None:
    """Torch takes ten times the memory of everything else, in each process that reads masks."""
    code = "import sys, segue.cli.data, segue.data.check.audit; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
