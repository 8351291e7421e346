"""Exports of labelling tools, in the form in which they lie on disk, give the class maps that were drawn."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import draw
from PIL import Image

from segue.config import Data
from segue.data.check import check
from segue.data.decoder import mask_image
from segue.data.layouts import open_listing
from segue.data.layouts.exports import Cvat, LabelMe, LabelStudio
from segue.data.listing import Listing
from segue.data.sample import IGNORE, ORIENTATION
from segue.data.training import open_training
from segue.errors import DataError

WIDTH, HEIGHT = 48, 40
PATHS = ["../a.png", "/etc/passwd", "C:/a.png", "a\\b.png", "x/../../a.png", "a\0.png"]


def photo(path: Path, index: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw(index)[0][:HEIGHT]).save(path)
    return path


def maps(listing: Listing) -> dict[str, np.ndarray]:
    pairs = [pair for split in listing.splits.values() for pair in split]
    return {pair.name: np.asarray(mask_image(pair)) for pair in pairs if pair.mask is not None}


def expected(*areas: tuple[int, slice, slice]) -> np.ndarray:
    """A class map of boxes (class, rows, columns), later ones on top."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    for index, rows, columns in areas:
        mask[rows, columns] = index
    return mask


# ---- CVAT

LABELS = """<label><name>car</name><color>#fa3253</color><type>any</type><attributes></attributes></label>
<label><name>Background</name><color>#010203</color><attributes></attributes></label>
<label><name>bus</name><color>#33ddff</color><type>polygon</type><attributes></attributes></label>
<label><name>nose</name><color>#33ddff</color><type>points</type><attributes></attributes></label>"""
SQUARE = "2.00,2.00;9.00,2.00;9.00,9.00;2.00,9.00"
SHAPES = [
    f"""<polygon label="bus" source="manual" occluded="0" points="{SQUARE}" z_order="1"></polygon>
    <polygon label="car" source="manual" occluded="0" points="5.0,5.0;15.0,5.0;15.0,15.0;5.0,15.0" z_order="0">
    <attribute name="old">true</attribute></polygon>""",
    """<mask label="car" source="manual" occluded="0" rle="0, 4, 2, 6, 1, 2" left="10" top="20" width="5" height="3"
    z_order="0"></mask><box label="bus" occluded="0" xtl="30" ytl="4" xbr="40" ybr="8" z_order="0"></box>
    <ellipse label="car" cx="10" cy="10" rx="3" ry="3" z_order="0"></ellipse>
    <points label="nose" points="1,1;2,2" z_order="0"></points>""",
    "",
]


def cvat(root: Path, shapes: list[str] = SHAPES, subsets: tuple[str, ...] = ("", "", ""), head: str = "") -> Path:
    names = ["a.png", "sub/b.png", "c.png"]
    images = []
    for i, (name, shape, subset) in enumerate(zip(names, shapes, subsets, strict=True)):
        photo(root / "images" / subset / name, i)
        where = f' subset="{subset}" task_id="7"' if subset else ""
        images.append(f'<image id="{i}" name="{name}"{where} width="{WIDTH}" height="{HEIGHT}">{shape}</image>')
    kind = "project" if any(subsets) else "task"
    listed = "<subsets>\n" + "\n".join(sorted(set(subsets))) + "</subsets>" if any(subsets) else ""
    text = f"""<?xml version="1.0" encoding="utf-8"?>{head}
<annotations><version>1.1</version><meta><{kind}><id>7</id><name>toy</name>{listed}<labels>{LABELS}</labels></{kind}>
<dumped>2026-01-01 00:00:00.000000+00:00</dumped></meta>
{"".join(images)}</annotations>"""
    (root / "annotations.xml").write_text(text, encoding="utf-8")
    return root


@pytest.fixture
def datumaro() -> None:
    pytest.importorskip("datumaro")


@pytest.mark.usefixtures("datumaro")
def test_cvat_gives_polygons_by_height_masks_and_boxes(tmp_path: Path) -> None:
    root = cvat(tmp_path)
    assert Cvat.matches(root)
    listing = Cvat.read(root)
    assert listing.classes == ("background", "car", "bus")
    assert listing.colors == ((1, 2, 3), (0xFA, 0x32, 0x53), (0x33, 0xDD, 0xFF))
    assert {split: [p.name for p in pairs] for split, pairs in listing.splits.items()} == {"train": ["a", "c", "sub/b"]}
    found = maps(listing)
    assert sorted(found) == ["a", "sub/b"]  # nobody said that c is all background
    np.testing.assert_array_equal(
        found["a"], expected((1, slice(5, 16), slice(5, 16)), (2, slice(2, 10), slice(2, 10)))
    )
    stamp = np.zeros((HEIGHT, WIDTH), np.uint8)
    stamp[20:23, 10:15] = [[1, 1, 1, 1, 0], [0, 1, 1, 1, 1], [1, 1, 0, 1, 1]]
    stamp[4:9, 30:41] = 2
    np.testing.assert_array_equal(found["sub/b"], stamp)
    assert [(f.code, f.stop) for f in listing.faults] == [("W127", False)] * 2
    assert "'ellipse'" in str(listing.faults[0])
    assert "'points'" in str(listing.faults[1])
    assert listing.split("train")[0].mask == root / "annotations.xml"


@pytest.mark.usefixtures("datumaro")
def test_cvat_takes_areas_without_a_group_apart_and_those_of_one_together(tmp_path: Path) -> None:
    squares = [f'<polygon label="car" points="{SQUARE}" z_order="0"{group}></polygon>'
               for group in ("", "", ' group_id="3"', ' group_id="3"')]  # fmt: skip
    pairs = {pair.name: pair for pair in Cvat.read(cvat(tmp_path, ["".join(squares), "", ""])).split("train")}
    assert [len(outline.polygons) for outline in pairs["a"].outlines or ()] == [1, 1, 2]


@pytest.mark.usefixtures("datumaro")
def test_cvat_project_has_a_split_for_each_subset(tmp_path: Path) -> None:
    listing = Cvat.read(cvat(tmp_path, subsets=("Train", "Validation", "default")))
    names = {split: [p.name for p in pairs] for split, pairs in listing.splits.items()}
    assert names == {"train": ["Train/a", "default/c"], "val": ["Validation/sub/b"]}
    assert sorted(maps(listing)) == ["Train/a", "Validation/sub/b"]


LAUGHS = "<!DOCTYPE l [" + "".join(
    f'<!ENTITY l{i} "{f"&l{i - 1};" * 10 if i else "ha"}">' for i in range(10)
)  # 10 ** 9 times "ha"


@pytest.mark.usefixtures("datumaro")
@pytest.mark.parametrize(
    "head",
    [
        LAUGHS + "]>", '<!DOCTYPE l [<!ENTITY l9 SYSTEM "file:///etc/passwd">]>', "<!DOCTYPE annotations>",
        '<!DOCTYPE l SYSTEM "http://127.0.0.1:9/l.dtd">', '<!DOCTYPE l [<!ENTITY % p SYSTEM "file:///dev/zero"> %p;]>',
    ],
)  # fmt: skip
def test_cvat_refuses_every_doctype(head: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="DTDForbidden"):
        Cvat.read(cvat(tmp_path, head=head, shapes=["&l9;" if "ENTITY l9" in head else "", "", ""]))


@pytest.mark.usefixtures("datumaro")
@pytest.mark.parametrize(
    ("old", "new"),
    [
        *((f'name="{"a.png"}"', f'name="{path}"') for path in PATHS if "\0" not in path),
        ('name="a.png"', 'name="a&#0;.png"'),
        ('name="a.png"', 'name="absent.png"'),
        ('name="a.png"', 'name="sub/b.png"'),
        ('name="a.png"', 'subset="../.." name="a.png"'),
        ('id="0"', 'id="1"'),
        ('id="0"', 'id="x"'),
        ('width="48"', 'width="x"'),
        (SQUARE, ""),
        (SQUARE, "1,2;3,4"),
        (SQUARE, "1,2;3"),
        (SQUARE, "nan,2;3,4;5,6"),
        (SQUARE, "1e300,2;3,4;5,6"),
        (SQUARE, "1,inf;3,4;5,6"),
        ('points="2', 'dots="2'),
        ('label="bus"', 'label="plane"'),
        ("0, 4, 2, 6, 1, 2", "4000000000, 4000000000"),
        ("0, 4, 2, 6, 1, 2", "0, 4, -2, 13"),
        ("0, 4, 2, 6, 1, 2", ""),
        ('left="10"', 'left="-1"'),
        ('left="10"', 'left="44"'),
        ('width="5" height="3"', 'width="15" height="100000000"'),
        ("<meta>", "<meta>" + "<a>" * 100_000 + "</a>" * 100_000),
        ("<meta>", "<track id='0' label='car'></track><meta>"),
        ("<meta>", "<atem>"),
        ("#fa3253</color>", "#fa3253</color></name>"),
        ("<name>car</name>", "<name></name>"),
        ("<name>car</name>", "<name>bus</name>"),
        ('encoding="utf-8"', 'encoding="no-such-code"'),
        ('z_order="1"', 'z_order="x"'),
    ],
)
def test_cvat_refuses_unsound_files_by_a_data_error(old: str, new: str, tmp_path: Path) -> None:
    root = cvat(tmp_path)
    text = (root / "annotations.xml").read_text()
    assert old in text
    (root / "annotations.xml").write_text(text.replace(old, new, 1))
    with pytest.raises(DataError):
        Cvat.read(root)


def test_cvat_without_datumaro_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("datumaro", "datumaro.plugins.data_formats.cvat.base"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(DataError, match=r"pip install .*\[formats\]"):
        Cvat.read(cvat(tmp_path))


# ---- LabelMe


def png(values: np.ndarray) -> str:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def shape(
    label: str, points: list[Any], kind: str = "polygon", group: int | None = None, **more: Any
) -> dict[str, Any]:
    return {"label": label, "points": points, "group_id": group, "shape_type": kind, "flags": {}, **more}


def box(x0: float, y0: float, x1: float, y1: float) -> list[list[float]]:
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


BOX = box(2, 2, 9, 9)


def labelme(root: Path, shapes: list[Any], name: str = "a", **changes: Any) -> Path:
    photo(root / f"{name}.jpg")
    said = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": f"{Path(name).name}.jpg", "imageData": None,
            "imageHeight": HEIGHT, "imageWidth": WIDTH, **changes}  # fmt: skip
    (root / f"{name}.json").write_text(json.dumps(said), encoding="utf-8")
    return root


def test_labelme_gives_every_kind_of_area(tmp_path: Path) -> None:
    stamp = np.array([[0, 1, 1], [1, 1, 0]], np.uint8)
    labelme(tmp_path, [
        shape("dog", BOX, group=1), shape("cat", box(5, 5, 15, 15)), shape("dog", box(30, 2, 33, 5), group=1),
        shape("_background_", box(12, 12, 13, 13)), shape("__ignore__", [[40, 8], [36, 2]], "rectangle"),
    ], "a")  # fmt: skip
    labelme(tmp_path, [
        shape("dog", [[20.0, 20.0], [22.0, 21.0]], "mask", mask=png(stamp)),
        shape("cat", [[10, 10], [13, 14]], "circle"), shape("cat", [[1, 1], [2, 2]], "line"),
    ], "b")  # fmt: skip
    photo(tmp_path / "bare.jpg")
    labelme(tmp_path, [], "empty")
    assert LabelMe.matches(tmp_path)
    listing = LabelMe.read(tmp_path)
    assert listing.classes == ("background", "cat", "dog")
    assert [pair.name for pair in listing.split("train")] == ["a", "b", "bare", "empty"]
    found = maps(listing)
    assert sorted(found) == ["a", "b", "empty"]
    areas = [(2, slice(2, 10), slice(2, 10)), (2, slice(2, 6), slice(30, 34)), (1, slice(5, 16), slice(5, 16)),
             (0, slice(12, 14), slice(12, 14)), (IGNORE, slice(2, 9), slice(36, 41))]  # fmt: skip
    np.testing.assert_array_equal(found["a"], expected(*areas))
    np.testing.assert_array_equal(found["b"][20:22, 20:23], stamp * 2)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    distance = np.hypot(x - 10, y - 10)
    assert (found["b"][distance <= 4] == 1).all()
    assert (found["b"][distance > 6] != 1).all()
    assert not found["empty"].any()
    assert len(listing.split("train")[0].outlines or ()) == 4  # the two of a group are one dog
    assert [f.code for f in listing.faults] == ["W127"]


def test_labelme_takes_order_from_labels_txt_and_splits_from_folders(tmp_path: Path) -> None:
    for name in ("train/a", "train/b", "val/a"):
        labelme(tmp_path, [shape("cat", box(2, 2, 9, 9))], name)
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\ndog\ncat\n")
    (tmp_path / "info.json").write_text('{"licence": "of the set"}')
    assert LabelMe.matches(tmp_path)
    listing = LabelMe.read(tmp_path)
    assert listing.classes == ("background", "dog", "cat")
    assert {split: len(pairs) for split, pairs in listing.splits.items()} == {"train": 2, "val": 1}
    np.testing.assert_array_equal(maps(listing)["val/a"], expected((2, slice(2, 10), slice(2, 10))))


@pytest.mark.parametrize("folder", ["images/train", "a/b/c/d"])
def test_labelme_is_found_in_folders_of_folders(tmp_path: Path, folder: str) -> None:
    photo(tmp_path / "another" / "bare.jpg")
    labelme(tmp_path, [shape("cat", box(2, 2, 9, 9))], f"{folder}/a")
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\ncat\n")
    listing = open_listing(str(tmp_path))
    assert (listing.layout, listing.classes) == ("labelme", ("background", "cat"))
    np.testing.assert_array_equal(maps(listing)[f"{folder}/a"], expected((1, slice(2, 10), slice(2, 10))))


def test_json_elsewhere_than_beside_a_picture_is_no_labelme(tmp_path: Path) -> None:
    photo(tmp_path / "images" / "train" / "a.jpg")
    for name in ("other/a.json", ".hidden/a.json", "images/train/b.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    photo(tmp_path / ".hidden" / "a.jpg")
    assert not LabelMe.matches(tmp_path)


def test_labelme_takes_folders_in_capitals_for_splits_and_never_merges_them(tmp_path: Path) -> None:
    for name in ("Train/a", "Train/b", "valid/a"):
        labelme(tmp_path, [shape("cat", box(2, 2, 9, 9))], name)
    assert {split: len(pairs) for split, pairs in LabelMe.read(tmp_path).splits.items()} == {"train": 2, "val": 1}
    (tmp_path / "Train").rename(tmp_path / "test")
    with pytest.raises(DataError, match="has test and valid, which look like splits, and none of them is train"):
        LabelMe.read(tmp_path)


def test_labelme_leaves_pixels_without_a_label_where_no_label_is_background(tmp_path: Path) -> None:
    labelme(tmp_path, [shape("sky", box(2, 2, 9, 9)), shape("__ignore__", box(4, 4, 5, 5))], "a")
    (tmp_path / "labels.txt").write_text("__ignore__\nroad\nsky\n")
    listing = LabelMe.read(tmp_path)
    assert (listing.classes, listing.things) == (("road", "sky"), (0, 1))
    mask = np.full((HEIGHT, WIDTH), IGNORE, np.uint8)
    mask[2:10, 2:10] = 1
    mask[4:6, 4:6] = IGNORE
    np.testing.assert_array_equal(maps(listing)["a"], mask)
    (tmp_path / "labels.txt").unlink()  # a shape called so does not say what is around it
    assert LabelMe.read(tmp_path).classes == ("background", "sky")


def test_labelme_is_not_taken_for_a_canonical_folder(dataset: Path, tmp_path: Path) -> None:
    (dataset / "images" / "train_000.json").write_text("{}")
    assert not LabelMe.matches(dataset)
    assert not LabelMe.matches(tmp_path)


def test_labels_of_a_turned_photograph_lie_on_it_upright(tmp_path: Path) -> None:
    labelme(tmp_path, [shape("cat", box(2, 2, 9, 30))], imageWidth=HEIGHT, imageHeight=WIDTH)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(draw(0)[0][:HEIGHT]).save(tmp_path / "a.jpg", exif=exif)
    mask = maps(LabelMe.read(tmp_path))["a"]
    assert mask.shape == (WIDTH, HEIGHT)
    assert mask[2:31, 2:10].all()


@pytest.mark.parametrize(
    "change",
    [
        {"imagePath": None}, {"imagePath": 7}, {"imagePath": ["a.jpg"]},
        {"shapes": None}, {"shapes": 7}, {"shapes": [7]}, {"shapes": {"a": 1}},
        {"shapes": [shape("cat", [[1, 2, 3]] * 4)]},
        {"shapes": [shape("cat", [[1, float("nan")], *BOX])]},
        {"shapes": [shape("cat", [[1, 1e300], *BOX])]},
        {"shapes": [shape("cat", [["x", 1], *BOX])]},
        {"shapes": [shape("cat", [[10**400, 1], *BOX])]},
        {"shapes": [shape("", BOX)]}, {"shapes": [shape("a\x1b[31m", BOX)]},
        {"shapes": [{**shape("cat", BOX), "label": None}]}, {"shapes": [{**shape("cat", BOX), "label": ["cat"]}]},
        {"shapes": [shape("cat", [[1, 1]], "rectangle")]}, {"shapes": [shape("cat", BOX, "circle")]},
        {"shapes": [shape("cat", BOX, "mask")]}, {"shapes": [shape("cat", BOX, "mask", mask="AAAA")]},
        {"shapes": [shape("cat", [[-1, 2], [3, 4]], "mask", mask=png(np.ones((3, 3), np.uint8)))]},
        {"shapes": [shape("cat", [[2, 2], [3, 4]], "mask", mask=png(np.ones((3, 300), np.uint8)))]},
        {"shapes": [shape(f"label {i}", BOX) for i in range(255)]},
    ],
)  # fmt: skip
def test_labelme_refuses_unsound_files_by_a_data_error(change: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError):
        LabelMe.read(labelme(tmp_path, change.pop("shapes", [shape("cat", BOX)]), **change))


@pytest.mark.parametrize("named", ["..\\images\\a.jpg", "/home/a/photos/a.jpg", "C:\\a.jpg", "gone.jpg", *PATHS])
def test_labelme_takes_the_picture_beside_wherever_it_lay_when_it_was_labelled(named: str, tmp_path: Path) -> None:
    labelme(tmp_path, [shape("cat", BOX)], imagePath=named)
    (pair,) = LabelMe.read(tmp_path).split("train")
    assert pair.image == tmp_path / "a.jpg"
    (tmp_path / "a.jpg").rename(tmp_path / "other.jpg")
    with pytest.raises(DataError, match=r"refusing the path|not there; put it beside a\.json"):
        LabelMe.read(tmp_path)


def test_labelme_takes_the_group_0_for_one(tmp_path: Path) -> None:
    shapes = [shape("cat", BOX, group=0), shape("cat", box(20, 20, 25, 25), group=0), shape("cat", box(30, 2, 33, 5))]
    labelme(tmp_path, shapes)
    (pair,) = LabelMe.read(tmp_path).split("train")
    assert [len(outline.polygons) for outline in pair.outlines or ()] == [2, 1]


@pytest.mark.parametrize(
    "text", [b"", b"{", b"\xff\xfe\xff", b'{"shapes": ' + b"[" * 100_000, b'{"shapes": 1' + b"0" * 9999]
)
def test_labelme_refuses_what_is_no_json(text: bytes, tmp_path: Path) -> None:
    labelme(tmp_path, [])
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(DataError, match=r"a\.json"):
        LabelMe.read(tmp_path)


# ---- Label Studio


def packed(values: np.ndarray, widths: tuple[int, int, int, int] = (3, 4, 8, 16)) -> list[int]:
    """Label Studio's run lengths of RGBA values: runs of 3 and more as such, the rest one by one."""
    flat = [int(v) for v in values.ravel()]
    bits = f"{len(flat):032b}" + f"{8 - 1:05b}" + "".join(f"{width - 1:04b}" for width in widths)
    start = 0
    while start < len(flat):
        end = start + 1
        while end < len(flat) and flat[end] == flat[start] and end - start < 1 << max(widths):
            end += 1
        end = end if end - start >= 3 else start + 1
        which = next(i for i, width in enumerate(widths) if end - start - 1 < 1 << width)
        bits += f"{int(end - start >= 3)}{which:02b}{end - start - 1:0{widths[which]}b}{flat[start]:08b}"
        start = end
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def region(kind: str, label: str | None, **value: Any) -> dict[str, Any]:
    labels = {} if label is None else {kind: [label]}
    return {"id": "r", "type": kind, "from_name": "label", "to_name": "image", "original_width": WIDTH,
            "original_height": HEIGHT, "image_rotation": 0, "value": {**value, **labels}}  # fmt: skip


def percent(points: list[list[float]]) -> list[list[float]]:
    return [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in points]


def task(address: str, *annotations: Any) -> dict[str, Any]:
    return {"id": 1, "data": {"image": address, "note": "seen"}, "annotations": list(annotations), "predictions": []}


def studio(root: Path, tasks: Any) -> Path:
    (root / "project-3-at-2026-01-31-09-30-0badcafe.json").write_text(json.dumps(tasks), encoding="utf-8")
    return root


STROKE = np.zeros((HEIGHT, WIDTH), bool)
STROKE[8:20, 5:31], STROKE[10:12, 8:12] = True, False  # with a hole
COLORED = np.stack([STROKE * 12, STROKE * 200, STROKE * 3, STROKE * 255], -1)


def test_label_studio_gives_polygons_and_strokes(tmp_path: Path) -> None:
    for name in ("images/1a2b3c4d-a.png", "images/deep/b c.png", "images/c.png"):
        photo(tmp_path / name)
    polygon = region("polygonlabels", "tree", points=percent(BOX), closed=True)
    brush = region("brushlabels", "sky", format="rle", rle=packed(COLORED))
    turned = {**polygon, "image_rotation": 90}
    rest = [region("rectanglelabels", "tree", x=1, y=1, width=5, height=5, rotation=0), turned,
            {"type": "choices", "value": {"choices": ["day"]}, "id": "c"},
            {"type": "relation", "from_id": "a", "to_id": "b", "direction": "right"},
            region("polygonlabels", "tree", points=percent(BOX)[:2], closed=False)]  # fmt: skip
    first, second = {"result": [polygon]}, {"result": [brush, polygon, *rest], "ground_truth": True}
    studio(tmp_path, [
        task("/data/upload/3/1a2b3c4d-a.png", second, first, {"result": [], "was_cancelled": True}),
        task("/data/local-files/?d=some/where/deep/b%20c.png", {"result": []}),
        task("s3://bucket/99887766-c.png"),
    ])  # fmt: skip
    assert LabelStudio.matches(tmp_path)
    listing = LabelStudio.read(tmp_path)
    assert listing.classes == ("background", "sky", "tree")
    assert [(p.name, p.mask is not None) for p in listing.split("train")] == [
        ("1a2b3c4d-a", True), ("c", False), ("deep/b c", True)
    ]  # fmt: skip
    found = maps(listing)
    mask = STROKE.astype(np.uint8)
    mask[2:10, 2:10] = 2
    np.testing.assert_array_equal(found["1a2b3c4d-a"], mask)
    assert not found["deep/b c"].any()
    assert [f.code for f in listing.faults] == ["W127", "W127", "W127", "W128"]
    assert any("fewer than three points" in f.what for f in listing.faults)
    assert not any(f.stop for f in listing.faults)


@pytest.mark.parametrize("widths", [(3, 4, 8, 16), (1, 2, 3, 12), (16, 16, 16, 16)])
def test_strokes_are_read_in_every_width_of_lengths(widths: tuple[int, int, int, int], tmp_path: Path) -> None:
    photo(tmp_path / "images" / "a.png")
    noisy = np.random.default_rng(0).random((HEIGHT, WIDTH)) < 0.3
    values = np.repeat(noisy[..., None] * 255, 4, -1)
    brush = region("brushlabels", "sky", format="rle", rle=packed(values, widths))
    listing = LabelStudio.read(studio(tmp_path, [task("a.png", {"result": [brush]})]))
    np.testing.assert_array_equal(maps(listing)["a"], noisy)


def stroke(code: Any) -> Callable[[], Any]:
    return lambda: [task("a.png", {"result": [region("brushlabels", "sky", format="rle", rle=code)]})]


def polygon_of(**value: Any) -> Callable[[], Any]:
    odd = value.pop("labelled", ["sky"])
    return lambda: [task("a.png", {"result": [region("polygonlabels", None, polygonlabels=odd, **value)]})]


@pytest.mark.parametrize(
    "tasks",
    [
        *((lambda path=path: [task(path)]) for path in PATHS if path != "/etc/passwd"),
        lambda: [task("/data/local-files/?d=../../a.png")], lambda: [task("%2e%2e/a.png")],
        lambda: [task("a.png" * 2000)], lambda: [task("absent.png")],
        lambda: [task("x" * 300 + ".png")], lambda: [task("http://[a.png")],
        lambda: [task("a.png"), task("a.png")], lambda: [{"image": "a.png", "label": []}],
        lambda: [{**task("a.png"), "data": {"left": "a.png", "right": "a.png"}}], lambda: [task("a.txt")],
        lambda: [{**task("a.png"), "data": 7}], lambda: [], lambda: {}, lambda: 7, lambda: [7], lambda: None,
        lambda: [task("a.png", 7)], lambda: [task("a.png", {"result": 7})], lambda: [task("a.png", {"result": [{}]})],
        polygon_of(points=7), polygon_of(points=[[1, 1e9], [2, 2], [3, 3]]),
        polygon_of(points=[[1, float("inf")], [2, 2], [3, 3]]), polygon_of(points=BOX, labelled=7),
        stroke(10**12), stroke([256]), stroke([-1]), stroke("AAAA"), stroke([]), stroke(packed(COLORED)[:-20]),
        stroke(packed(COLORED[:-1])), stroke([255] * 40), stroke([1.5] * 40), stroke(None), stroke([[1]]),
    ],
)  # fmt: skip
def test_label_studio_refuses_unsound_files_by_a_data_error(tasks: Callable[[], Any], tmp_path: Path) -> None:
    photo(tmp_path / "images" / "a.png")
    value = tasks()
    with pytest.raises(DataError):
        LabelStudio.read(studio(tmp_path, value))


def test_label_studio_asks_for_one_export(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="0 exports"):
        LabelStudio.read(tmp_path)
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text("[]")
    with pytest.raises(DataError, match="2 exports"):
        LabelStudio.read(tmp_path)


# ---- all of them


def cvat_of_three(root: Path) -> str:
    cvat(root, [SHAPES[0]] * 3)
    return "images/a.png"


def labelme_of_three(root: Path) -> str:
    for name in ("a", "b", "c"):
        labelme(root, [shape("cat", BOX)], name)
    return "a.jpg"


def studio_of_three(root: Path) -> str:
    for name in ("a", "b", "c"):
        photo(root / "images" / f"{name}.png")
    polygon = region("polygonlabels", "tree", points=percent(BOX), closed=True)
    studio(root, [task(f"/data/upload/3/{name}.png", {"result": [polygon]}) for name in ("a", "b", "c")])
    return "images/a.png"


@pytest.mark.usefixtures("datumaro")
@pytest.mark.parametrize("make", [cvat_of_three, labelme_of_three, studio_of_three])
def test_a_picture_of_another_size_than_its_labels_is_never_taken_for_background(
    make: Callable[[Path], str], tmp_path: Path, segue: Any
) -> None:
    root = tmp_path / "set"
    cut = root / make(root)
    Image.fromarray(draw(0)[0][:20, :24]).save(cut)
    (told,) = json.loads(segue("check", root, "--json")[1])["sets"]
    (fault,) = (f for f in told["findings"] if f["code"] == "E108")
    assert fault["where"] == [f"{cut} is 24x20, labelled at 48x40"]
    data = open_training(Data(data=str(root), skip_bad=True, val="none"), seed=0)
    names = {pair.name for pair in data.labelled}
    assert ("a" not in names, len(names) > 0) == (True, True)
    (told,) = json.loads(segue("check", root, "--skip-bad", "--json")[1])["sets"]
    assert (told["found"], told["dropped"] > 0) == (3, True)
    segue("check", root, "--fix", tmp_path / "copy")
    assert not list((tmp_path / "copy").glob("labels/**/a.png"))


def test_an_annotation_without_an_object_is_said_to_teach_background(tmp_path: Path) -> None:
    """As `segue suggest` writes them, to be labelled."""
    for name in ("a", "b"):
        labelme(tmp_path, [shape("cat", box(2, 2, 9, 9))], name)
    labelme(tmp_path, [], "later")
    findings, _ = check(open_listing(str(tmp_path)))
    assert [(f.code, f.where) for f in findings if f.code == "W116"] == [("W116", (str(tmp_path / "later.jpg"),))]


def test_labelme_calls_pictures_in_images_as_other_sets_do(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    labelme(tmp_path, [shape("cat", box(2, 2, 9, 9))], "images/a")
    assert [pair.name for pair in open_listing(str(tmp_path)).split("train")] == ["a"]
    photo(tmp_path / "another.jpg")
    assert [pair.name for pair in open_listing(str(tmp_path)).split("train")] == ["another", "images/a"]


def test_a_polygon_that_was_not_finished_is_left_out_and_said(tmp_path: Path) -> None:
    labelme(tmp_path, [shape("cat", [[1, 2], [3, 4]]), shape("cat", box(2, 2, 9, 9))])
    listing = LabelMe.read(tmp_path)
    assert [(f.code, f.stop) for f in listing.faults] == [("W127", False)]
    np.testing.assert_array_equal(maps(listing)["a"], expected((1, slice(2, 10), slice(2, 10))))
