"""Two domains: what is used and left out, how classes are matched, and every way in which the sets do not fit."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import CLASSES, draw, write_set
from PIL import Image

from segue.config import Domains
from segue.data.images import Whole
from segue.data.sample import IGNORE
from segue.data.two_domains import DomainData, open_domains
from segue.errors import DataError


def opened(source: Path | tuple[Path, ...], target: Path | str, *, crop: int = 32, **fields: object) -> DomainData:
    sources = source if isinstance(source, tuple) else (source,)
    config = Domains(source=tuple(map(str, sources)), target=str(target), **fields)  # type: ignore[arg-type]
    data = open_domains(config, crop=crop)
    account = data.account()
    assert account["found"] == account["labelled"] + account["unlabelled"] + sum(data.dropped.values())  # type: ignore[operator]
    return data


def recolor(root: Path, shift: int = 40) -> Path:
    """Another look of the same scenes, so that the sets share no file."""
    for path in (root / "images").iterdir():
        with Image.open(path) as image:
            Image.fromarray((np.array(image).astype(int) + shift).clip(0, 255).astype(np.uint8)).save(path)
    return root


def renamed(root: Path, classes: list[str]) -> Path:
    described = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps({**described, "classes": classes}))
    return root


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_set(tmp_path / "source")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return recolor(write_set(tmp_path / "target"))


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """Images and nothing more."""
    folder = tmp_path / "bare"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(draw(50 + i)[0]).save(folder / f"{i}.png")
    return folder


def test_labels_of_the_target_are_left_alone_and_that_is_said(source: Path, target: Path) -> None:
    data = opened(source, f"{target}:train", val=f"{target}:val")
    assert (len(data.labelled()), len(data.target), len(data.val), data.found) == (6, 6, 2, 12)
    assert all(pair.mask is None for pair in data.target)
    assert all(pair.mask is not None for pair in data.val)
    assert any("left alone" in note for note in data.notes)
    assert data.validation_at["split"] == "val"
    text = "\n".join(data.lines())
    assert "6 labelled" in text
    assert "2 labelled images of the target to validate; left out of 12 found: nothing" in text
    assert len(list(data.files())) == 6 + 6 + 2


def test_broken_masks_of_the_target_do_not_matter(source: Path, target: Path) -> None:
    for path in (target / "labels").iterdir():
        path.write_bytes(b"no picture")
    assert len(opened(source, target).target) == 6


def test_a_bare_folder_takes_the_classes_of_the_source(source: Path, bare: Path) -> None:
    data = opened(source, bare)
    assert data.classes == CLASSES
    assert len(data.target) == 3
    assert not data.val
    assert not data.validation_at["data"]
    assert any("--source" in note for note in data.notes)


@pytest.mark.parametrize("has_labels", [True, False])
def test_a_target_whose_held_out_images_cannot_be_told_is_refused(has_labels: bool, source: Path, target: Path) -> None:
    """Splits and no class list: taken for a bag of images, val and test would be adapted to."""
    splits = json.loads((target / "dataset.json").read_text())["splits"]
    (target / "dataset.json").unlink()
    (target / "splits").mkdir()
    for name, images in splits.items():
        (target / "splits" / f"{name}.txt").write_text("".join(f"{image}\n" for image in images))
    if not has_labels:
        shutil.rmtree(target / "labels")
    with pytest.raises(DataError, match="has no class list"):
        opened(source, target)


def test_validation_pictures_are_not_adapted_to(source: Path, target: Path) -> None:
    data = opened(source, target, val=f"{target}:val")
    assert len(data.target) == 6
    assert data.dropped == {"of the target, of the splits val and test": 4}
    described = json.loads((target / "dataset.json").read_text())
    described["splits"]["few"] = described["splits"]["train"][:2]
    (target / "dataset.json").write_text(json.dumps(described))
    data = opened(source, f"{target}:train", val=f"{target}:few")
    assert len(data.target) == 4
    assert data.dropped == {"of the target that --val has too": 2}


def test_names_in_another_order_are_matched_by_name(source: Path, target: Path) -> None:
    renamed(source, ["disc", "ground", "bar"])
    data = opened(source, f"{target}:train")
    assert data.classes == CLASSES
    mask = Whole(data.sources[0].pairs, data.sources[0].decoder)[0]["mask"].numpy()
    with Image.open(data.sources[0].pairs[0].mask) as image:  # type: ignore[arg-type]
        stored = np.array(image)
    assert (mask == np.array([1, 0, 2])[stored]).all()
    assert any("another order" in note for note in data.notes)


def test_a_map_merges_and_ignores_classes(source: Path, target: Path, tmp_path: Path) -> None:
    renamed(source, ["lawn", "ball", "fog"])
    (tmp_path / "maps.yaml").write_text("lawn: ground\nball: ignore\nfog: bar\n")
    data = opened(source, f"{target}:train", map=(str(tmp_path / "maps.yaml"),))
    mask = Whole(data.sources[0].pairs, data.sources[0].decoder)[0]["mask"].numpy()
    with Image.open(data.sources[0].pairs[0].mask) as image:  # type: ignore[arg-type]
        stored = np.array(image)
    assert (mask == np.array([0, IGNORE, 2])[stored]).all()
    counts = label_counts(source)
    np.testing.assert_allclose(data.shares, np.array([counts[0], 0, counts[2]]) / (counts[0] + counts[2]))
    assert any("leaves out ball" in note for note in data.notes)
    assert any(finding.code == "W115" and finding.where == ("disc",) for finding in data.warnings)


def test_coloured_masks_are_mapped_too(source: Path, target: Path) -> None:
    colors = [[10, 0, 0], [0, 20, 0], [0, 0, 30]]
    before = {}
    for path in (source / "labels").iterdir():
        with Image.open(path) as image:
            before[path.stem] = np.array(image)
        Image.fromarray(np.array(colors, np.uint8)[before[path.stem]]).save(path)
    described = json.loads((source / "dataset.json").read_text())
    (source / "dataset.json").write_text(
        json.dumps({**described, "colors": colors, "classes": ["bar", "disc", "ground"]})
    )
    data = opened(source, f"{target}:train")
    sample = Whole(data.sources[0].pairs, data.sources[0].decoder)[0]
    assert (sample["mask"].numpy() == np.array([2, 1, 0])[before[sample["name"]]]).all()


def label_counts(root: Path) -> np.ndarray:
    """Training pixels of each stored value."""
    counts = np.zeros(3)
    for i in range(6):
        with Image.open(root / "labels" / f"train_{i:03d}.png") as image:
            counts += np.bincount(np.array(image).ravel(), minlength=3)
    return counts


def test_shares_are_those_of_the_labels(source: Path, bare: Path) -> None:
    counts = label_counts(source)
    np.testing.assert_allclose(opened(source, bare).shares, counts / counts.sum())


def test_several_sources_each_with_its_map(source: Path, target: Path, tmp_path: Path) -> None:
    other = renamed(recolor(write_set(tmp_path / "other", train=4), 20), ["a", "b", "c"])
    (tmp_path / "one.yaml").write_text("".join(f"{name}: {name}\n" for name in CLASSES))
    (tmp_path / "two.yaml").write_text("a: bar\nb: disc\nc: ground\n")
    maps = (str(tmp_path / "one.yaml"), str(tmp_path / "two.yaml"))
    data = opened((source, other), f"{target}:train", map=maps)
    assert len(data.labelled()) == 10
    assert [dict(s.ids) for s in data.sources] == [{0: 0, 1: 1, 2: 2}, {0: 2, 1: 1, 2: 0}]
    assert str(other) in str(data.account()["root"])


def test_translated_pictures_take_the_place_of_the_source(source: Path, bare: Path, tmp_path: Path) -> None:
    folder = tmp_path / "translated"
    shutil.copytree(source / "images", folder)
    data = opened(source, bare, translated=str(folder))
    assert [p.image for p in data.sources[0].styled()] == [folder / p.image.name for p in data.labelled()]
    assert all(folder / p.image.name in files for p, (_, files) in zip(data.labelled(), data.files(), strict=False))
    Image.new("RGB", (9, 9)).save(folder / "train_000.png")
    with pytest.raises(DataError, match=r"train_000\.png is 9x9"):
        opened(source, bare, translated=str(folder))
    (folder / "train_000.png").unlink()
    with pytest.raises(DataError, match="no picture 'train_000' \\(1 of 6"):
        opened(source, bare, translated=str(folder))
    with pytest.raises(DataError, match="is no folder"):
        opened(source, bare, translated=str(tmp_path / "nowhere"))


def test_deep_pictures_are_read_by_the_rule_of_their_set_and_the_model_keeps_the_targets(
    source: Path, target: Path
) -> None:
    for root, gain in ((source, 10), (target, 200)):
        for path in (root / "images").iterdir():
            with Image.open(path) as image:
                grey = np.asarray(image.convert("L"), np.uint16)
            Image.fromarray(grey * gain).save(path)
    data = opened(source, f"{target}:train", val=f"{target}:val")
    (kind, black, white), (ours,) = data.listing.tones[0], {pair.tones for pair in data.labelled()}
    assert {pair.tones for pair in (*data.target, *data.val)} == {data.listing.tones}
    assert ours[0][0] == kind
    assert 15 < (white - black) / (ours[0][2] - ours[0][1]) < 25  # the target's range is twenty times as wide
    for pair, decoder in ((data.labelled()[0], data.sources[0].decoder), (data.val[0], data.decoder)):
        picture = Whole((pair,), decoder)[0]["image"]
        assert int(picture.max()) > 180
        assert int(picture.min()) < 75


def test_small_pictures_are_said(source: Path, bare: Path) -> None:
    data = opened(source, bare, crop=64)
    assert any("3 of 3 target images are smaller than --crop 64" in note for note in data.notes)
    assert any("6 of 6 source images are smaller" in note for note in data.notes)
    assert not any("smaller" in note for note in opened(source, bare, crop=48).notes)


# -- sets that do not fit ----------------------------------------------------------------------------------------------


def test_classes_that_differ_need_a_map(source: Path, target: Path) -> None:
    renamed(source, ["lawn", "disc", "bar"])
    with pytest.raises(DataError, match=r"E125 .*only there: lawn; only here: ground.*--maps maps.yaml") as error:
        opened(source, f"{target}:train")
    assert "\n" not in str(error.value)


def test_the_same_set_twice_is_refused(source: Path) -> None:
    for target in (source, f"{source}:train"):
        with pytest.raises(DataError, match="E125 --source and --target are one set"):
            opened(Path(f"{source}:train"), target)
    with pytest.raises(DataError, match="E125 every image of --target is in --source"):
        opened(source, f"{source}:train")
    assert len(opened(source, f"{source}:test").target) == 2


def test_a_copy_of_the_source_is_no_target(source: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    copied.mkdir()
    for i in range(6):
        shutil.copy(source / "images" / f"train_{i:03d}.png", copied / f"{i}.png")
    with pytest.raises(DataError, match="E125 every image"):
        opened(source, copied)
    Image.fromarray(draw(70)[0]).save(copied / "new.png")
    data = opened(source, copied)
    assert [pair.name for pair in data.target] == ["new"]
    assert data.dropped == {"of the target that --source has too": 6}


def test_validation_on_the_source_is_refused(source: Path, bare: Path) -> None:
    with pytest.raises(DataError, match="--source and --val share 6 images"):
        opened(source, bare, val=f"{source}:train")


def test_all_of_the_target_for_validation_is_refused(source: Path, target: Path) -> None:
    with pytest.raises(DataError, match="every image of --target is in --val"):
        opened(source, f"{target}:val", val=f"{target}:val")


def test_an_empty_target_is_named(source: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no image"):
        opened(source, tmp_path / "empty")
    with pytest.raises(DataError, match="nowhere"):
        opened(source, tmp_path / "nowhere")


def test_an_unreadable_target_picture_is_named_or_left_out(source: Path, bare: Path) -> None:
    (bare / "1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"E1\d\d .*1\.png"):
        opened(source, bare)
    data = opened(source, bare, skip_bad=True)
    assert [pair.name for pair in data.target] == ["0", "2"]
    assert data.dropped == {"unreadable (--skip_bad)": 1}


def test_a_source_without_masks_is_named(bare: Path, target: Path, tmp_path: Path) -> None:
    source = write_set(tmp_path / "unlabelled")
    shutil.rmtree(source / "labels")
    with pytest.raises(DataError, match="mask"):
        opened(source, bare)


@pytest.mark.parametrize("missing", ["source", "target"])
def test_both_domains_are_asked_for(missing: str) -> None:
    fields = {"source": ("a",), "target": "b"} | ({"source": ()} if missing == "source" else {"target": ""})
    with pytest.raises(DataError, match="name both domains"):
        open_domains(Domains(**fields), crop=32)  # type: ignore[arg-type]


def test_a_source_named_twice_and_maps_that_do_not_count_are_refused(source: Path, bare: Path) -> None:
    with pytest.raises(DataError, match="names a set twice"):
        opened((source, source), bare)
    with pytest.raises(DataError, match="--map names 2 files for 1 sources"):
        opened(source, bare, map=("a", "b"))
