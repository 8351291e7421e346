"""What is used and what is left out, by seed, by list, with and without unlabelled images."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import draw, write_set
from PIL import Image

from segue.config import Data
from segue.data.layouts import open_listing
from segue.data.ledger import append
from segue.data.listing import Pair
from segue.data.splits import amount, choose
from segue.data.training import TrainingData, open_training
from segue.errors import DataError

PAIRS = tuple(Pair(f"{i:03d}", Path(f"{i}.png")) for i in range(40))


def opened(root: Path, seed: int = 0, **fields: object) -> TrainingData:
    data = open_training(Data(data=str(root), **fields), seed=seed)  # type: ignore[arg-type]
    assert data.found == len(data.labelled) + len(data.unlabelled) + sum(data.dropped.values())
    return data


def test_amounts_by_hand() -> None:
    assert [amount(text, 367, "--labels") for text in ("5%", "10%", "0.1%", "20", "all")] == [18, 37, 1, 20, 367]


@pytest.mark.parametrize("text", ["0", "41", "-3", "x", "%", "120%", "0%", "-5%", "inf%", "nan%"])
def test_impossible_amounts_are_refused(text: str) -> None:
    with pytest.raises(DataError, match="--labels"):
        choose(PAIRS, text, 0)


def test_choices_are_nested_seeded_and_divide_the_set() -> None:
    few, rest = choose(PAIRS, "10%", 1)
    more, _ = choose(PAIRS, "50%", 1)
    assert set(few) < set(more)
    assert set(few) | set(rest) == set(PAIRS)
    assert not set(few) & set(rest)
    assert choose(PAIRS, "50%", 2)[0] != more
    assert choose(tuple(reversed(PAIRS)), "50%", 1)[0] == tuple(reversed(more))


def test_a_list_chooses_by_name(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("003\n017\n")
    assert [pair.name for pair in choose(PAIRS, str(tmp_path / "names.txt"), 0)[0]] == ["003", "017"]
    (tmp_path / "names.txt").write_text("nobody\n")
    with pytest.raises(DataError, match="'nobody'"):
        choose(PAIRS, str(tmp_path / "names.txt"), 0)


def test_labels_not_asked_for_are_counted_and_can_serve_unlabelled(dataset: Path) -> None:
    data = opened(dataset, labels="2")
    assert (len(data.labelled), len(data.unlabelled), len(data.val), data.found) == (2, 0, 2, 6)
    assert sum(data.dropped.values()) == 4
    data = opened(dataset, labels="2", unlabeled=("rest",))
    assert (len(data.labelled), len(data.unlabelled), data.dropped) == (2, 4, {})
    assert all(pair.mask is None for pair in data.unlabelled)


def test_further_folders_add_images_and_those_already_used_are_counted(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    for i in range(3):
        Image.fromarray(draw(100 + i)[0]).save(tmp_path / "more" / f"m{i}.jpg")
    data = opened(dataset, labels="2", unlabeled=(str(tmp_path / "more"), str(dataset)))
    assert len(data.unlabelled) == 3 + 6 - 2  # of the training images of the set those that are not labelled
    assert sum(data.dropped.values()) == 2 + 4 + 4  # the labelled ones, those of val and test, labels not asked for
    data = opened(dataset, labels="2", unlabeled=(f"{dataset}:test",))  # unless they are asked for
    assert len(data.unlabelled) == 2


def test_copies_of_what_is_validated_on_are_not_learnt_from(dataset: Path, tmp_path: Path) -> None:
    """As `segue suggest` gives images to label: under other paths, byte for byte."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("val_006", "val_007", "train_001"):
        shutil.copy(dataset / "images" / f"{name}.png", photos / f"copy_of_{name}.png")
    Image.fromarray(draw(20)[0]).save(photos / "fresh.png")
    data = opened(dataset, unlabeled=(str(photos),))
    assert [pair.name for pair in data.unlabelled] == ["fresh"]
    assert data.dropped["named twice, or also labelled or in validation"] == 3


def test_a_list_of_images_that_nobody_has_labelled_yet_says_so(dataset: Path, tmp_path: Path) -> None:
    (dataset / "labels" / "train_001.png").unlink()
    (tmp_path / "names.txt").write_text("train_000\ntrain_001\n")
    with pytest.raises(DataError, match=r"names 'train_001' \(1 such\), which has no mask"):
        opened(dataset, allow_missing=True, labels=str(tmp_path / "names.txt"))
    (tmp_path / "names.txt").write_text("images/train_000\n")
    with pytest.raises(DataError, match="none of the images to train on, which are called like 'train_000'"):
        opened(dataset, allow_missing=True, labels=str(tmp_path / "names.txt"))


def test_frames_of_a_video_on_both_sides_of_a_division_are_told(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", train=24, splits=False)
    assert any("frames of one video" in str(finding) for finding in opened(root).warnings)
    few = write_set(tmp_path / "few", splits=False)
    assert not any("frames of one video" in str(finding) for finding in opened(few).warnings)


def test_a_review_of_other_images_is_refused(dataset: Path, tmp_path: Path) -> None:
    ledger, images = tmp_path / "ledger.jsonl", sorted((dataset / "images").glob("train_*"))
    append(ledger, {"image": str(images[0].resolve()), "decision": "reject"})
    data = opened(dataset, labels="2", unlabeled=(str(dataset / "images"),), ledger=str(ledger))
    assert data.dropped["rejected or to be redrawn by the review"] == 1
    with pytest.raises(DataError, match="name them: --unlabeled FOLDER"):
        opened(dataset, labels="2", ledger=str(ledger))
    moved = dataset.rename(tmp_path / "moved")
    with pytest.raises(DataError, match=f"decides of other images than those of --unlabeled, as {images[0]}"):
        opened(moved, labels="2", unlabeled=(str(moved / "images"),), ledger=str(ledger))


def test_validation_is_split_off_where_there_is_none(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", splits=False)
    data = opened(root)
    assert (len(data.labelled), len(data.val)) == (8, 2)
    assert not {p.name for p in data.labelled} & {p.name for p in data.val}
    assert opened(root, val="none").val == ()
    assert len(opened(root, val="50%").val) == 5


def test_images_held_back_are_known_by_name_without_comparing_each_with_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, compared = write_set(tmp_path / "set", splits=False), list[object]()
    monkeypatch.setattr(Pair, "__eq__", lambda self, other: compared.append(other) or self is other)
    data = opened(root, val="50%")
    assert (len(data.labelled), len(data.val), len(compared)) == (5, 5, 0)


def relist(root: Path, splits: dict[str, list[str]]) -> Path:
    """The set with these splits of its own images."""
    described = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps({**described, "splits": splits}))
    return root


def test_a_set_or_address_with_only_val_is_not_validated_on_what_it_learns_from(dataset: Path) -> None:
    data = opened(Path(f"{dataset}:val"))
    assert (len(data.labelled), len(data.val)) == (1, 1)
    assert data.labelled != data.val
    assert (data.dropped, data.validation_at["split"]) == ({"of the training split kept for validation": 1}, "val")
    every = sorted(path.stem for path in (dataset / "images").iterdir())
    assert len(opened(relist(dataset, {"val": every})).val) == 2
    for name in ("val", "test"):
        with pytest.raises(DataError, match=f"has no split 'train' but {name}, and 8 images in none; list those"):
            opened(relist(dataset, {name: every[:2]}))
    assert len(opened(relist(dataset, {"mine": every[:5]})).val) == 1


def test_a_named_split_that_holds_all_there_is_to_train_on_is_refused(dataset: Path) -> None:
    with pytest.raises(DataError, match=r"--val train: the split 'train' of .* holds all 6 labelled images"):
        opened(dataset, val="train")
    described = json.loads((dataset / "dataset.json").read_text())["splits"]
    relist(dataset, {**described, "trainval": described["train"] + described["val"]})
    with pytest.raises(DataError, match="--val trainval: the split 'trainval'"):
        opened(dataset, val="trainval")


def test_images_of_both_splits_are_validated_on_alone_and_counted(dataset: Path, tmp_path: Path) -> None:
    described = json.loads((dataset / "dataset.json").read_text())["splits"]
    relist(dataset, {**described, "val": described["val"] + described["train"][:2]})
    data = opened(dataset)
    assert ([pair.name for pair in data.labelled], len(data.val)) == (described["train"][2:], 4)
    assert data.dropped == {"of the training split that are of the validation split too": 2}
    names = tmp_path / "names.txt"
    names.write_text("\n".join(described["train"][1:3]))
    assert [pair.name for pair in opened(dataset, labels=str(names)).labelled] == described["train"][2:3]


@pytest.mark.parametrize("seed", range(6))
def test_validation_is_not_taken_from_the_images_that_a_list_names(tmp_path: Path, seed: int) -> None:
    root, names = write_set(tmp_path / "set", splits=False), tmp_path / "names.txt"
    every = sorted(path.stem for path in (root / "images").iterdir())
    names.write_text("\n".join(every[:4]))
    data = opened(root, labels=str(names), seed=seed)
    assert ([pair.name for pair in data.labelled], len(data.val)) == (every[:4], 2)
    names.write_text("\n".join(every[:9]))
    assert [pair.name for pair in opened(root, labels=str(names), seed=seed).val] == every[9:]
    names.write_text("\n".join(every))  # all of them: some have to be held back
    data = opened(root, labels=str(names), seed=seed)
    assert (len(data.labelled), len(data.val)) == (8, 2)
    assert not {pair.name for pair in data.labelled} & {pair.name for pair in data.val}


def test_a_list_that_leaves_nothing_to_train_on_is_refused(tmp_path: Path, dataset: Path, segue: Any) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n")
    undivided = write_set(tmp_path / "undivided", splits=False)
    for root in (dataset, undivided):
        with pytest.raises(DataError, match=r"names\.txt leaves no image to train on: it is empty"):
            opened(root, labels=str(names))
    relist(dataset, {"train": ["train_000", "train_001", "train_002"], "val": ["train_001", "train_002"]})
    names.write_text("train_001\ntrain_002\n")
    status, _, errors = segue("train", dataset, "--labels", names, "--out", tmp_path / "run")
    assert (status, errors.count("\n"), (tmp_path / "run").exists()) == (2, 1, False)
    assert "names.txt leaves no image to train on: the 2 that it names are validated on" in errors


def test_images_in_no_split_are_said_counted_and_can_serve_unlabelled(dataset: Path) -> None:
    described = json.loads((dataset / "dataset.json").read_text())
    described["splits"]["train"] = described["splits"]["train"][:4]
    (dataset / "dataset.json").write_text(json.dumps(described))
    data = opened(dataset)
    assert (len(data.labelled), data.found, list(data.dropped.values())) == (4, 6, [2])
    assert any(finding.code == "W117" and finding.what == "2 images are in no split" for finding in data.warnings)
    assert open_listing(f"{dataset}:train").unnamed == ()  # another split was asked for, so nothing is said of them
    data = opened(dataset, unlabeled=("rest",))
    assert ([pair.name for pair in data.unlabelled], data.dropped) == (["train_004", "train_005"], {})
    assert all(pair.mask is None for pair in data.unlabelled)
    (dataset / "images" / "train_005.png").write_text("no")
    assert opened(dataset).found == 6  # nobody asked for it
    with pytest.raises(DataError, match=r"E111 .*train_005\.png"):
        opened(dataset, unlabeled=("rest",))
    assert opened(dataset, unlabeled=("rest",), skip_bad=True).dropped == {"unreadable (--skip_bad)": 1}


def test_images_without_masks_are_counted_once_allowed(dataset: Path) -> None:
    (dataset / "labels" / "train_001.png").unlink()
    assert sum(opened(dataset, allow_missing=True).dropped.values()) == 1
    assert len(opened(dataset, allow_missing=True, unlabeled=("rest",)).unlabelled) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"val": "tset"}, "did you mean 'test'"),
        ({"unlabeled": ("rest",)}, "adds no image"),
        ({"unlabeled": ("gone",)}, "gone does not exist"),
        ({"map": "x:1"}, "'x:1' is no value:class"),
        ({"map": "7:nothing"}, "'7:nothing'"),
        ({"labels": "9"}, "9 of 6"),
    ],
)
def test_impossible_wishes_are_refused_by_name(dataset: Path, fields: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        opened(dataset, **fields)


def test_one_labelled_image_and_no_validation_is_too_few(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", train=1, val=0, test=0, splits=False)
    with pytest.raises(DataError, match="at least 2"):
        opened(root)


def test_mapped_values_reach_the_masks(dataset: Path) -> None:
    from segue.data.images import Whole

    with Image.open(dataset / "labels" / "train_000.png") as image:
        values = np.array(image)
    Image.fromarray(np.where(values == 2, 9, values).astype(np.uint8)).save(dataset / "labels" / "train_000.png")
    data = opened(dataset, map="9:ignore")
    sample = next(s for s in Whole(data.labelled, data.decoder) if s["name"] == "train_000")
    assert (sample["mask"].numpy() == np.where(values == 2, 255, values)).all()


def test_committed_splits_are_what_the_seed_chooses() -> None:
    import os

    from segue.data.layouts import open_listing

    root = Path(os.environ.get("SEGUE_MIRROR") or "gone", "camvid")
    if not root.is_dir():
        pytest.skip("SEGUE_MIRROR holds no camvid")
    train = open_listing(str(root)).split("train")
    lists = sorted((Path(__file__).parents[2] / "splits" / "camvid").glob("*.txt"))
    assert len(lists) == 6
    for path in lists:
        share, _, _, seed = path.stem.split("_")
        assert [pair.name for pair in choose(train, f"{share}%", int(seed))[0]] == path.read_text().split()
