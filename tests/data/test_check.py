"""Every named fault is found, named with its file, and stops training or is said."""

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import COLORS, draw, write_set
from PIL import Image

from segue.config import Data
from segue.data.check import Finding, check
from segue.data.layouts import open_listing
from segue.data.sample import DataError
from segue.data.training import open_training


def mask(root: Path, values: np.ndarray, name: str = "train_002") -> None:
    Image.fromarray(values.astype(np.uint8)).save(root / "labels" / f"{name}.png")


def every_mask(root: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    for path in (root / "labels").iterdir():
        with Image.open(path) as image:
            values = np.array(image)
        Image.fromarray(change(values).astype(np.uint8)).save(path)


def bomb(root: Path) -> None:
    """A PNG whose header says 30000 x 30000."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    content = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )
    (root / "images" / "train_002.png").write_bytes(content)


def cut_short(root: Path) -> None:
    path = root / "images" / "train_002.png"
    path.write_bytes(path.read_bytes()[:600])


FAULTS: list[tuple[str, Callable[[Path], object], str, str]] = [
    ("E101", lambda r: mask(r, np.where(draw(2)[1] == 2, 77, draw(2)[1])), "train_002", "--map 77:ignore"),
    ("E102", lambda r: every_mask(r, lambda v: np.where(v > 0, 255, 0)), "", "--map 255:1"),
    ("E103", lambda r: every_mask(r, lambda v: v + 1), "", "--map 1:0,2:1,3:2"),
    ("E106", lambda r: (r / "labels" / "train_002.png").unlink(), "train_002", "--allow-missing"),
    (
        "E106",
        lambda r: os.rename(r / "labels" / "train_002.png", r / "labels" / "other.png"),
        "other.png",
        "--allow-missing",
    ),
    ("E107", lambda r: [p.rename(p.with_stem(p.stem + "_mask")) for p in (r / "labels").iterdir()], "", "same names"),
    ("E108", lambda r: mask(r, np.zeros((24, 24))), "train_002", "size of its image"),
    ("E110", cut_short, "train_002", "Export it again"),
    ("E111", lambda r: (r / "images" / "train_002.png").write_text("hello"), "train_002", "Export it again"),
    ("E111", lambda r: (r / "images" / "train_002.png").write_bytes(b""), "train_002", "Export it again"),
    ("E111", lambda r: (r / "labels" / "train_002.png").write_bytes(b""), "train_002", "Export it again"),
    ("E112", bomb, "train_002", "Cut it into pieces"),
    ("E116", lambda r: every_mask(r, lambda v: np.full_like(v, 255)), "", "class ids"),
]


def found(root: Path) -> list[Finding]:
    return check(open_listing(str(root)))[0]


def test_a_sound_set_has_no_finding(dataset: Path) -> None:
    findings, facts = check(open_listing(str(dataset)))
    assert findings == []
    assert facts.read == 10
    assert facts.pixels.sum() == 10 * 48 * 48
    assert facts.images.tolist() == [10, 10, 10]


@pytest.mark.parametrize(
    ("code", "damage", "where", "fix"), FAULTS, ids=[f"{c}-{i}" for i, (c, *_) in enumerate(FAULTS)]
)
def test_each_fault_stops_training_and_names_code_file_and_mend(
    dataset: Path, code: str, damage: Callable[[Path], object], where: str, fix: str
) -> None:
    damage(dataset)
    stops = [finding for finding in found(dataset) if finding.stop]
    named = [finding for finding in stops if finding.code == code and any(where in place for place in finding.where)]
    assert named
    assert fix in str(named[0])
    with pytest.raises(DataError, match=code):
        open_training(Data(data=str(dataset)), seed=0)


@pytest.mark.parametrize(
    ("damage", "fields"),
    [
        (FAULTS[0][1], {"map": "77:ignore"}),
        (FAULTS[0][1], {"map": "77:bar"}),
        (FAULTS[1][1], {"map": "255:1"}),
        (FAULTS[2][1], {"map": "1:0,2:1,3:2"}),
        (FAULTS[3][1], {"allow_missing": True}),
        (FAULTS[4][1], {"allow_missing": True}),
    ],
)
def test_the_printed_mend_works(dataset: Path, damage: Callable[[Path], object], fields: dict[str, object]) -> None:
    damage(dataset)
    data = open_training(Data(data=str(dataset), **fields), seed=0)  # type: ignore[arg-type]
    assert data.found == len(data.labelled) + len(data.unlabelled) + sum(data.dropped.values())


def test_all_faults_come_in_one_pass(dataset: Path) -> None:
    for i in (0, 6, 8):
        FAULTS[i][1](dataset) if i != 8 else (dataset / "images" / "train_001.png").write_text("no")
    (dataset / "labels" / "train_004.png").unlink()
    assert {"E101", "E106", "E108", "E111"} >= {f.code for f in found(dataset)} >= {"E106", "E108", "E111"}


def test_some_blank_masks_and_an_absent_class_are_said_but_do_not_stop(dataset: Path) -> None:
    every_mask(dataset, lambda v: np.where(v == 1, 0, v))
    mask(dataset, np.full((48, 48), 255))
    findings = found(dataset)
    assert {finding.code: finding.where for finding in findings} == {
        "W115": ("disc",),
        "W116": (str(dataset / "labels" / "train_002.png"),),
    }
    assert not any(finding.stop for finding in findings)


def test_unknown_colours_are_named(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", train=1, val=1, test=0)
    for path in (root / "labels").iterdir():
        with Image.open(path) as image:
            Image.fromarray(np.array(COLORS, np.uint8)[np.array(image)]).save(path)
    with Image.open(root / "labels" / "train_000.png") as image:
        image.putpixel((0, 0), (1, 2, 3))
        image.save(root / "labels" / "train_000.png")
    (finding,) = found(root)
    assert (finding.code, finding.what) == ("E101", "the colour 1,2,3 is no class")


def test_sampling_still_reads_every_header(dataset: Path) -> None:
    (dataset / "images" / "train_003.png").write_text("no")
    findings, facts = check(open_listing(str(dataset)), sample=2)
    assert [finding.code for finding in findings if finding.stop] == ["E111"]
    assert facts.read <= 3


def test_upright_sizes_are_compared(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", train=3, val=1, test=0)
    wide, ids = draw(0, 48)[0][:24], draw(0, 48)[1][:24]
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to look upright
    Image.fromarray(wide).rotate(90, expand=True).save(root / "images" / "train_000.jpg", exif=exif)
    (root / "images" / "train_000.png").unlink()
    mask(root, ids, "train_000")
    assert found(root) == []
