"""A converted set is the same set: classes, splits, class ids pixel by pixel, and pictures byte for byte."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import CLASSES, COLORS, draw, write_set
from PIL import Image

from segue.data.convert import convert
from segue.data.decoder import Decoder
from segue.data.images import Whole
from segue.data.layouts import open_images, open_listing
from segue.data.listing import Listing, Pair, identity
from segue.data.outlines import Outline, Segment
from segue.data.panoptic import Annotation
from segue.data.sample import IGNORE, ORIENTATION
from segue.data.sharding import write_shards
from segue.data.unfinished import MARK
from segue.errors import DataError

Segue = Callable[..., tuple[int, str, str]]


def photo(path: Path, index: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw(index)[0]).save(path)
    return path


def drawn(root: Path, pairs: tuple[Pair, ...], **changes: object) -> Listing:
    colors = ((0, 0, 0), *COLORS[1:])
    whole = Listing(root, "test", CLASSES, colors, {"train": pairs}, identity(len(CLASSES)), things=(1,))
    return replace(whole, **changes)


def same(left: Listing, right: Listing) -> None:
    assert (left.classes, left.colors, left.things) == (right.classes, right.colors, right.things)
    assert list(left.splits) == list(right.splits)
    for split, pairs in left.splits.items():
        assert [p.name for p in pairs] == [p.name for p in right.splits[split]]
        assert [p.image.read_bytes() for p in pairs] == [p.image.read_bytes() for p in right.splits[split]]
        first, second = Whole(pairs, Decoder.of(left)), Whole(right.splits[split], Decoder.of(right))
        for i, pair in enumerate(pairs):
            assert ("mask" in first[i]) == ("mask" in second[i]), pair
            if pair.mask is not None:
                np.testing.assert_array_equal(first[i]["mask"].numpy(), second[i]["mask"].numpy())


def instances(out: Path, name: str) -> np.ndarray:
    with Image.open(out / "instances" / f"{name}.png") as stored:
        assert stored.mode.startswith("I;16")
        return np.array(stored)


def test_canonical_set_stays_the_same_and_is_copied_not_linked(dataset: Path, tmp_path: Path) -> None:
    ticks: list[int] = []
    found = convert(open_listing(str(dataset)), tmp_path / "out", tick=lambda: ticks.append(1))
    assert found == {"found": 10, "written": 10, "left_out": 0}
    assert len(ticks) == 10
    same(open_listing(str(dataset)), open_listing(str(tmp_path / "out")))
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert all(not path.is_symlink() and path.stat().st_nlink == 1 for path in files)
    with Image.open(tmp_path / "out" / "labels" / "train_000.png") as mask:
        assert mask.mode == "P"
    assert not (tmp_path / "out" / MARK).exists()


def test_colour_coded_set_becomes_class_ids(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set")
    for path in (root / "labels").iterdir():
        with Image.open(path) as mask:
            ids = np.array(mask)
        Image.fromarray(np.array(COLORS, np.uint8)[ids]).save(path)
    before = open_listing(str(root))
    assert before.by_color
    convert(before, tmp_path / "out")
    after = open_listing(str(tmp_path / "out"))
    assert not after.by_color
    same(before, after)


def test_outlines_become_classes_and_numbered_things(tmp_path: Path) -> None:
    square, lower = (2.0, 2, 9, 2, 9, 9, 2, 9), (5.0, 5, 14, 5, 14, 14, 5, 14)
    outlines = (
        Outline(1, (square,)), Outline(2, (lower,)), Outline(1, ((20.0, 20, 24, 20, 24, 24, 20, 24),)),
        Outline(IGNORE, ((22.0, 20, 24, 20, 24, 24, 22, 24),)), Outline(1, ((40, 40, 44, 40, 44, 44),), is_crowd=True),
    )  # fmt: skip
    annotation = tmp_path / "set" / "all.json"
    pairs = tuple(Pair(f"a/{i}", photo(tmp_path / "set" / f"{i}.jpg", i), annotation, None, outlines) for i in range(3))
    before = drawn(tmp_path / "set", pairs)
    assert convert(before, tmp_path / "out")["written"] == 3
    same(before, open_listing(str(tmp_path / "out")))
    found = instances(tmp_path / "out", "a/1")
    assert np.unique(found).tolist() == [0, 1, 2]
    assert (found[3, 3], found[7, 7], found[21, 21], found[21, 23], found[41, 42]) == (1, 0, 2, 0, 0)


def test_more_than_255_objects_keep_their_numbers(tmp_path: Path) -> None:
    dots = [(float(x), float(y)) for y in range(0, 40, 2) for x in range(0, 40, 2)]
    outlines = tuple(Outline(1, ((x, y, x, y, x, y),)) for x, y in dots)
    pair = Pair("a", photo(tmp_path / "set" / "a.png"), tmp_path / "set" / "all.json", None, outlines)
    convert(drawn(tmp_path / "set", (pair,)), tmp_path / "out")
    found = instances(tmp_path / "out", "a")
    assert [int(found[int(y), int(x)]) for x, y in dots] == list(range(1, 401))


def test_panoptic_segments_become_classes_and_numbered_things(tmp_path: Path) -> None:
    ids = np.zeros((48, 48), np.uint32)
    ids[:10], ids[10:20], ids[20:30], ids[30:40] = 70000, 300, 7, 8
    rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
    (tmp_path / "set").mkdir()
    Image.fromarray(rgb).save(tmp_path / "set" / "p.png")
    segments = (Segment(70000, 1), Segment(300, 1), Segment(7, 2), Segment(8, 1, is_crowd=True))
    pair = Pair("a", photo(tmp_path / "set" / "a.jpg"), tmp_path / "set" / "p.png", segments)
    before = drawn(tmp_path / "set", (pair,))
    convert(before, tmp_path / "out")
    after = open_listing(str(tmp_path / "out"))
    same(before, after)
    mask = Whole(after.split("train"), Decoder.of(after))[0]["mask"].numpy()
    assert mask[::10, 0].tolist() == [1, 1, 2, 1, IGNORE]
    assert instances(tmp_path / "out", "a")[::10, 0].tolist() == [1, 2, 0, 0, 0]


def test_instances_of_a_canonical_set_go_along(dataset: Path, tmp_path: Path) -> None:
    (dataset / "instances").mkdir()
    Image.fromarray(np.full((48, 48), 300, np.uint16)).save(dataset / "instances" / "val_006.png")
    convert(open_listing(str(dataset)), tmp_path / "out")
    assert np.unique(instances(tmp_path / "out", "val_006")).tolist() == [300]


def test_instances_of_another_size_are_named_with_what_mends_them(dataset: Path, tmp_path: Path) -> None:
    (dataset / "instances").mkdir()
    Image.fromarray(np.full((24, 24), 300, np.uint16)).save(dataset / "instances" / "val_006.png")
    found = convert(open_listing(str(dataset)), tmp_path / "out")
    assert (found["left_out"], found["unusable_mask"]) == (1, 1)
    (why,) = json.loads((tmp_path / "out" / "dataset.json").read_text())["left_out"].values()
    assert why.startswith(f"E108 {dataset / 'instances' / 'val_006.png'} is 24x24, ")
    assert why.endswith(f"segue check {dataset} --fix OUT")


@pytest.mark.parametrize("kind", ["labelIds", "labelTrainIds"])
def test_objects_of_cityscapes_go_along_and_into_shards(tmp_path: Path, kind: str) -> None:
    root, stem = tmp_path / "set", "aachen_000000_000019"
    gt = root / "gtFine" / "train" / "aachen"
    gt.mkdir(parents=True)
    photo(root / "leftImg8bit" / "train" / "aachen" / f"{stem}_leftImg8bit.png")
    columns = {  # road, two cars, a group of cars, a caravan (no class), parking, a rider
        "labelIds": [7, 26, 26, 26, 29, 9, 25], "labelTrainIds": [0, 13, 13, 13, 255, 255, 12],
        "instanceIds": [7, 26000, 26001, 26, 29000, 9, 25000],
    }  # fmt: skip
    for name in {"labelIds", kind, "instanceIds"}:
        empty = IGNORE if name == "labelTrainIds" else 0
        pixels = np.full((48, 48), empty, np.uint16 if name == "instanceIds" else np.uint8)
        pixels[:, :7] = columns[name]
        Image.fromarray(pixels).save(gt / f"{stem}_gtFine_{name}.png")
    before = open_listing(str(root))
    convert(before, tmp_path / "out")
    after = open_listing(str(tmp_path / "out"))
    assert instances(tmp_path / "out", f"train/aachen/{stem}")[0, :8].tolist() == [0, 26000, 26001, 0, 0, 0, 25000, 0]
    write_shards(after, tmp_path / "shards")
    for copy in (after, open_listing(str(tmp_path / "shards"))):
        first, second = (Annotation(one).read(one.split("train")[0]) for one in (before, copy))
        assert (first.labels, first.is_crowd) == (second.labels, second.is_crowd)
        np.testing.assert_array_equal(first.ids, second.ids)


def test_turned_photographs_are_copied_and_their_labels_lie_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    (tmp_path / "set").mkdir()
    Image.fromarray(draw(0)[0][:, :30]).save(tmp_path / "set" / "a.jpg", exif=exif)
    outline = Outline(1, ((0.0, 0, 9, 0, 9, 4, 0, 4),))
    pair = Pair("a", tmp_path / "set" / "a.jpg", tmp_path / "set" / "all.json", None, (outline,))
    convert(drawn(tmp_path / "set", (pair,)), tmp_path / "out")
    with Image.open(tmp_path / "out" / "labels" / "a.png") as mask:
        assert mask.size == (48, 30)
    assert (tmp_path / "out" / "images" / "a.jpg").read_bytes() == (tmp_path / "set" / "a.jpg").read_bytes()


def test_mapped_values_are_written_mapped(dataset: Path, tmp_path: Path) -> None:
    before = open_listing(str(dataset)).extended({2: IGNORE})
    convert(before, tmp_path / "out")
    after = open_listing(str(tmp_path / "out"))
    same(before, after)
    mask = Whole(after.split("val"), Decoder.of(after))[0]["mask"].numpy()
    assert np.unique(mask).tolist() == [0, 1, IGNORE]


def test_names_that_differ_in_suffix_or_case_only_do_not_collide(tmp_path: Path) -> None:
    masks = []
    for i in range(3):
        Image.fromarray(np.full((48, 48), i, np.uint8)).save(tmp_path / f"m{i}.png")
        masks.append(tmp_path / f"m{i}.png")
    images = [photo(tmp_path / "set" / name, i) for i, name in enumerate(("a.png", "a.bmp", "A.png"))]
    pairs = tuple(Pair(n, image, m) for n, image, m in zip(("x/a", "x/a", "x/A"), images, masks, strict=True))
    assert convert(drawn(tmp_path / "set", pairs), tmp_path / "out")["written"] == 3
    after = open_listing(str(tmp_path / "out"))
    assert len({pair.name.lower() for pair in after.split("train")}) == 3
    data = Whole(after.split("train"), Decoder.of(after))
    assert [int(data[i]["mask"].max()) for i in range(3)] == [0, 1, 2]
    assert [p.image.read_bytes() for p in after.split("train")] == [image.read_bytes() for image in images]


def test_images_of_no_split_go_along_without_masks(dataset: Path, tmp_path: Path) -> None:
    described = json.loads((dataset / "dataset.json").read_text())
    described["splits"].pop("test")
    (dataset / "dataset.json").write_text(json.dumps(described))
    (dataset / "images" / "test_009.png").write_bytes(b"")
    before = open_listing(str(dataset))
    found = convert(before, tmp_path / "out")
    assert found == {"found": 10, "written": 9, "left_out": 1, "unreadable_image": 1}
    after = open_listing(str(tmp_path / "out"))
    same(before, after)
    assert [pair.name for pair in after.unnamed] == ["test_008"]
    assert not (tmp_path / "out" / "labels" / "test_008.png").exists()


def test_deep_images_of_no_split_are_written_by_the_rule_of_the_set(tmp_path: Path) -> None:
    pixels = np.full((4, 4), 300, np.uint16)
    for name in ("a", "b"):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    whole = drawn(tmp_path, (Pair("a", tmp_path / "a.png"),), unnamed=(Pair("b", tmp_path / "b.png"),))
    convert(whole.toned((("I;16", 100, 300),)), tmp_path.with_name("out"))
    for name in ("a", "b"):
        with Image.open(tmp_path.with_name("out") / "images" / f"{name}.png") as image:
            assert (image.mode, image.getextrema()) == ("L", (255, 255))


def test_what_cannot_be_read_is_left_out_counted_and_named(dataset: Path, tmp_path: Path) -> None:
    (dataset / "images" / "train_000.png").write_bytes(b"")
    (dataset / "labels" / "train_001.png").write_bytes((dataset / "labels" / "train_001.png").read_bytes()[:60])
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(dataset / "labels" / "train_002.png")
    Image.fromarray(np.full((48, 48), 77, np.uint8)).save(dataset / "labels" / "val_006.png")
    (dataset / "labels" / "train_003.png").unlink()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(dataset / "labels" / "stray.png")
    found = convert(open_listing(str(dataset)), tmp_path / "out")
    assert found == {"found": 11, "written": 6, "left_out": 5, "unreadable_image": 1, "unusable_mask": 3,
                     "mask_without_image": 1}  # fmt: skip
    described = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert {Path(file).name for file in described["left_out"]} == {
        "train_000.png", "train_001.png", "train_002.png", "val_006.png", "stray.png"
    }  # fmt: skip
    assert "77" in described["left_out"][str(dataset / "images" / "val_006.png")]
    assert described["splits"]["val"] == ["val_007"]
    assert not (tmp_path / "out" / "labels" / "train_003.png").exists()  # an image without labels stays one
    assert (tmp_path / "out" / "images" / "train_003.png").is_file()


@pytest.mark.parametrize("name", ["../a", "/a", "a/../../b", "C:a", "a\\b", "a\0b", ".a", "b/.a", ""])
def test_nothing_is_written_outside_or_hidden(name: str, tmp_path: Path) -> None:
    image = photo(tmp_path / "set" / "a.png")
    pairs = (Pair(name, image), Pair("good", photo(tmp_path / "set" / "b.png")))
    found = convert(drawn(tmp_path / "set", pairs), tmp_path / "deep" / "out")
    assert (found["written"], found["unsafe_name"]) == (1, 1)
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {"set/a.png", "set/b.png", "deep/out/images/good.png", "deep/out/dataset.json"}


def test_interrupted_conversion_is_marked_and_starts_anew(dataset: Path, tmp_path: Path) -> None:
    out, calls = tmp_path / "out", []

    def stop() -> None:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(open_listing(str(dataset)), out, tick=stop)
    assert (out / MARK).is_file()
    assert not (out / "dataset.json").exists()
    for name in (path.name for path in (out / "images").iterdir()):  # as GTA5's are called, whose classes are known
        for kind in ("images", "labels"):
            (out / kind / name).rename(out / kind / f"00{name[-7:-4]}.png")
    for opens in (open_listing, open_images):
        with pytest.raises(DataError, match="is unfinished"):
            opens(str(out))
    (dataset / "images" / "train_000.png").unlink()
    (dataset / "labels" / "train_000.png").unlink()
    described = json.loads((dataset / "dataset.json").read_text())
    described["splits"]["train"].remove("train_000")
    (dataset / "dataset.json").write_text(json.dumps(described))
    assert convert(open_listing(str(dataset)), out)["written"] == 9
    same(open_listing(str(dataset)), open_listing(str(out)))
    assert len(list((out / "images").iterdir())) == len(list((out / "labels").iterdir())) == 9


@pytest.mark.parametrize("held", ["images/mine.png", "a.txt", "dataset.json"])
def test_a_folder_with_anything_else_in_it_is_left_alone(held: str, dataset: Path, tmp_path: Path) -> None:
    mine = tmp_path / "out" / held
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    for marker in (None, b"", b"of another program"):
        if marker is not None:
            (tmp_path / "out" / MARK).write_bytes(marker)
        with pytest.raises(DataError, match="not an empty folder"):
            convert(open_listing(str(dataset)), tmp_path / "out")
        assert mine.read_text() == "mine"
    with pytest.raises(DataError, match="lies in the data set itself"):
        convert(open_listing(str(dataset)), dataset)
    with pytest.raises(DataError, match="not an empty folder"):
        convert(open_listing(str(dataset)), mine)


@pytest.mark.parametrize("numbers", [[0, 1, 65536, 196609], [7, 8, 9, 1 << 20]])
def test_objects_of_large_numbers_stay_apart(numbers: list[int], dataset: Path, tmp_path: Path) -> None:
    (dataset / "instances").mkdir()
    for path in sorted((dataset / "labels").iterdir()):
        with Image.open(path) as mask:
            stored = np.array(numbers, np.int32)[np.arange(mask.width * mask.height) % 4].reshape(mask.size[::-1])
        Image.fromarray(stored).save(dataset / "instances" / f"{path.stem}.tif")
    assert convert(open_listing(str(dataset)), tmp_path / "out")["left_out"] == 0
    for path in (tmp_path / "out" / "instances").iterdir():
        with Image.open(path) as kept:
            pixels = np.asarray(kept).ravel()[:4].tolist()
        assert pixels == ([0, 1, 2, 3] if 0 in numbers else [1, 2, 3, 4])


def test_colours_of_objects_are_no_numbers(dataset: Path, tmp_path: Path) -> None:
    (dataset / "instances").mkdir()
    for path in (dataset / "labels").iterdir():
        with Image.open(path) as mask:
            Image.new("RGB", mask.size).save(dataset / "instances" / path.name)
    with pytest.raises(DataError, match="holds no numbers of objects"):
        convert(open_listing(str(dataset)), tmp_path / "out")


def test_sets_that_do_not_fit_are_refused(dataset: Path, tmp_path: Path) -> None:
    many = tuple(map(str, range(256)))
    with pytest.raises(DataError, match="256 classes"):
        convert(replace(open_listing(str(dataset)), classes=many), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for path in (dataset / "images").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match="nothing of"):
        convert(open_listing(str(dataset)), tmp_path / "out")
    assert (tmp_path / "out" / MARK).is_file()


def test_a_full_disk_is_no_reason_to_leave_pictures_out(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(DataError, match=r"cannot be written .*No space left"):
        convert(open_listing(str(dataset)), tmp_path / "out")
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_what_the_layout_does_not_take_over_is_said_and_noted_in_the_copy(tmp_path: Path, segue: Segue) -> None:
    root = tmp_path / "set"
    shapes = [{"label": "disc", "points": [[0, 0], [9, 0], [9, 9]], "shape_type": kind} for kind in ("polygon", "line")]
    for i in range(2):
        image = photo(root / f"{i}.png", i)
        said = {"imagePath": image.name, "shapes": shapes, "imageWidth": 48, "imageHeight": 48}
        image.with_suffix(".json").write_text(json.dumps(said))
    for number, more in enumerate(([], ["--json"])):
        status, output, errors = segue("data", "convert", root, tmp_path / str(number), *more)
        (note,) = json.loads((tmp_path / str(number) / "dataset.json").read_text())["notes"]
        assert status == 0
        assert f"note: {note}\n" in errors
        assert note.startswith("W127")
    assert json.loads(output)["notes"] == [note]
    segue("check", root, "--fix", tmp_path / "mended")
    assert json.loads((tmp_path / "mended" / "dataset.json").read_text())["notes"] == [note]
