"""Sets in tar shards: the same pictures in the same order, the same training, little memory, and every damage named."""

import json
import pickle
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import test_contract as contract
import torch
from conftest import options, write_set
from panoptic_sets import write_objects
from PIL import Image

from segue.config import Data
from segue.data.decoder import Decoder
from segue.data.fingerprint import fingerprint
from segue.data.images import Whole
from segue.data.layouts import open_images, open_listing
from segue.data.layouts.shards import RECORD
from segue.data.listing import Pair
from segue.data.panoptic import Annotation
from segue.data.sharding import ranges, write_shards
from segue.data.training import open_training
from segue.errors import DataError
from segue.methods import names, verb_of
from segue.runs.folder import Run

Segue = Callable[..., tuple[int, str, str]]


def packed(root: Path, out: Path, *, images_in_shard: int = 3) -> Path:
    """The set in small shards of a few images each."""
    further = open_images(str(root))
    size = max(pair.image.stat().st_size for pair in further) * images_in_shard
    write_shards(open_listing(str(root)), out, further=further, size=size)
    return out


@pytest.fixture
def shards(dataset: Path, tmp_path: Path) -> Path:
    return packed(dataset, tmp_path / "shards")


def told(pairs: tuple[Pair, ...]) -> list[tuple[str, bytes, bytes | None]]:
    return [(p.name, p.image.read_bytes(), p.mask and p.mask.read_bytes()) for p in pairs]


def test_numbers_as_runs_by_hand() -> None:
    assert ranges([0, 1, 2, 5, 6, 4, 9]) == [(0, 3), (5, 7), (4, 5), (9, 10)]
    assert ranges([]) == []


def test_the_same_set_byte_for_byte_in_the_same_order(dataset: Path, shards: Path) -> None:
    described = json.loads((dataset / "dataset.json").read_text())
    described["splits"]["train"].reverse()  # an order of its own, and images of no split
    described["splits"]["both"] = [described["splits"]["val"][1], *described["splits"]["train"][:2]]
    del described["splits"]["test"]
    (dataset / "dataset.json").write_text(json.dumps(described))
    shutil.rmtree(shards)
    packed(dataset, shards)
    assert len(list(shards.glob("*.tar"))) > 2
    ours, theirs = open_listing(str(shards)), open_listing(str(dataset))
    assert (ours.classes, ours.colors, ours.ids, ours.things) == (
        theirs.classes, theirs.colors, theirs.ids, theirs.things
    )  # fmt: skip
    assert told(ours.unnamed) == told(theirs.unnamed) != []
    assert list(ours.splits) == list(theirs.splits)
    for split, pairs in theirs.splits.items():
        assert told(ours.splits[split]) == told(pairs)
        assert told(open_images(f"{shards}:{split}")) == told(open_images(f"{dataset}:{split}"))
    assert told(open_images(str(shards))) == told(open_images(str(dataset)))
    wholes = [Whole(of.splits["train"], Decoder.of(of)) for of in (ours, theirs)]
    for a, b in zip(*wholes, strict=True):
        assert torch.equal(a["image"], b["image"])
        assert torch.equal(a["mask"], b["mask"])
    config = [Data(data=str(root), unlabeled=(str(root),)) for root in (shards, dataset)]
    assert fingerprint(open_training(config[0], seed=0).files()) == fingerprint(
        open_training(config[1], seed=0).files()
    )


def test_other_tools_read_the_shards(shards: Path, dataset: Path) -> None:
    found = {}
    for path in shards.glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                found[member.name] = file.read()
    assert set(found) == {f"{p.stem}{kind}.png" for p in (dataset / "images").iterdir() for kind in ("", ".labels")}
    assert found["val_006.labels.png"] == (dataset / "labels" / "val_006.png").read_bytes()


def test_names_in_folders_long_names_and_umlauts(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", train=3, val=2, test=1, splits=False)
    for i, path in enumerate(sorted((root / "images").iterdir())):
        name = f"{'train' if i < 3 else 'val'}/{'ü' * 60}/{'long' * 20}/{path.name}"
        for kind in ("images", "labels"):
            target = root / kind / name
            target.parent.mkdir(parents=True, exist_ok=True)
            (root / kind / path.name).rename(target)
    out = packed(root, tmp_path / "shards")
    assert {k: told(v) for k, v in open_listing(str(out)).splits.items()} == {
        k: told(v) for k, v in open_listing(str(root)).splits.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name == "supervised" else pytest.mark.slow) for name in names()],
)
def test_a_training_on_shards_is_that_on_the_files_and_resumes(name: str, tmp_path: Path) -> None:
    contract_set = write_set(tmp_path / "set", splits=verb_of(name) != "pretrain")
    out = packed(contract_set, tmp_path / "shards")
    files = contract.weights_after(name, contract.settings(name, contract_set), Run(tmp_path / "files", quiet=True))
    config = contract.settings(name, out)
    lines = len(Run(tmp_path / "files").read_log()) // 2
    with pytest.raises(contract.CutError):
        contract.weights_after(name, config, contract.CutRun(tmp_path / "run", quiet=True, workers=2, lines=lines))
    resumed = contract.weights_after(name, config, Run(tmp_path / "run", quiet=True, workers=2))
    assert set(files) == set(resumed)
    assert all(torch.equal(files[key], resumed[key]) for key in files)


def test_images_of_no_split_stay_that_in_shards_of_shards(dataset: Path, tmp_path: Path, segue: Segue) -> None:
    described = json.loads((dataset / "dataset.json").read_text())
    described["splits"].pop("test")
    (dataset / "dataset.json").write_text(json.dumps(described))
    for source, out in ((dataset, "shards"), (tmp_path / "shards", "again")):
        assert segue("data", "shard", source, "--out", tmp_path / out)[0] == 0
    assert told(open_listing(str(tmp_path / "again")).unnamed) == told(open_listing(str(dataset)).unnamed) != []


def test_instances_are_packed_with_their_masks(tmp_path: Path) -> None:
    root = write_objects(tmp_path / "set", ("ground", "disc"))
    out = packed(root, tmp_path / "shards")
    ours, theirs = (open_listing(str(where)) for where in (out, root))
    for a, b in zip(ours.splits["train"], theirs.splits["train"], strict=True):
        assert (root / "instances" / f"{b.name}.png").is_file()
        np.testing.assert_array_equal(Annotation(ours).read(a).ids, Annotation(theirs).read(b).ids)


@pytest.mark.slow
def test_the_command_line_packs_checks_trains_predicts_and_brings_back(
    segue: Segue, dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "shards"
    status, output, errors = segue("data", "shard", dataset, "--out", out, "--json")
    assert status == 0, errors
    assert json.loads(output)["images"] == 10
    before = [segue("check", where)[1].replace(str(where), "") for where in (dataset, out)]
    assert before[0].replace("(folder)", "") == before[1].replace("(shards)", "")
    given = ("--method", "supervised", "--device", "cpu", *options(steps=2))
    assert segue("train", out, "--out", tmp_path / "run", *given)[0] == 0
    assert segue("evaluate", tmp_path / "run")[0] == 0
    assert segue("predict", tmp_path / "run", out, "--out", tmp_path / "found")[0] == 0
    assert len(list((tmp_path / "found" / "labels").iterdir())) == 10
    assert segue("data", "convert", out, tmp_path / "back")[0] == 0
    for path in (dataset / "images").iterdir():
        assert (tmp_path / "back" / "images" / path.name).read_bytes() == path.read_bytes()
    status, _, errors = segue("suggest", out, "--model", tmp_path / "run", "--n", "1", "--out", tmp_path / "next")
    assert (status, errors.count("\n")) == (2, 1)


def test_images_without_labels_are_packed_too(segue: Segue, dataset: Path, tmp_path: Path) -> None:
    status, output, errors = segue("data", "shard", dataset / "images", "--out", tmp_path / "shards")
    assert status == 0, errors
    assert "images 10" in output
    assert told(open_images(str(tmp_path / "shards"))) == told(open_images(str(dataset / "images")))
    assert segue("check", tmp_path / "shards")[0] == 0


@pytest.mark.slow
def test_what_cannot_be_packed_is_a_line_and_writes_nothing(segue: Segue, dataset: Path, tmp_path: Path) -> None:
    import test_readers as readers

    readers.write_panoptic(tmp_path / "coco")
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "a file").touch()
    for data, out, said in (
        (tmp_path / "coco", tmp_path / "out", "segue data convert"),
        (dataset, dataset / "shards", "lies in the data set itself"),
        (dataset, tmp_path / "held", "is not an empty folder"),
        (tmp_path / "none", tmp_path / "out", "does not exist"),
    ):
        status, _, errors = segue("data", "shard", data, "--out", out)
        assert (status, errors.count("\n")) == (2, 1), errors
        assert said in errors
    assert not (tmp_path / "out").exists()


def test_an_interrupted_packing_is_no_set_and_starts_anew(dataset: Path, tmp_path: Path) -> None:
    whole = packed(dataset, tmp_path / "whole")
    out = tmp_path / "shards"
    count = iter(range(100))

    def stop() -> None:
        if next(count) == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(open_listing(str(dataset)), out, tick=stop)
    with pytest.raises(DataError, match="is unfinished"):
        open_listing(str(out))
    packed(dataset, out)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {p.name: p.read_bytes() for p in whole.iterdir()}


def cut(root: Path) -> None:
    path = root / "shard-000001.tar"
    path.write_bytes(path.read_bytes()[:-9000])


def gone(root: Path) -> None:
    (root / "shard-000001.tar").unlink()


def without_index(root: Path) -> None:
    (root / "shard-000001.json").unlink()


def exchanged(root: Path) -> None:
    (root / "shard-000001.json").write_bytes((root / "shard-000000.json").read_bytes())


def outside(root: Path) -> None:
    path = root / "shard-000001.json"
    rows = json.loads(path.read_text())
    rows["pairs"][0][1][2] = 10**15
    path.write_text(json.dumps(rows))


def escaping(root: Path) -> None:
    path = root / RECORD
    path.write_text(path.read_text().replace("shard-000001.tar", "../shard-000001.tar"))


def climbing(root: Path) -> None:
    path = root / "shard-000001.json"
    path.write_text(path.read_text().replace("train_00", "../../train_00"))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut, r"shard-000001\.tar is cut short: [\d,]+ bytes, [\d,]+ were written; copy it again"),
        (gone, r"shard-000001\.tar is missing: .* copy it again"),
        (without_index, r"shard-000001\.json is missing"),
        (outside, r"shard-000001\.json is damaged .*outside the shard"),
        (escaping, r"a shard is a \.tar file beside it"),
        (climbing, r"refusing the path '\.\./\.\./train_00"),
    ],
)
def test_each_damage_to_the_shards_is_named_at_once(
    segue: Segue, shards: Path, tmp_path: Path, damage: Callable[[Path], None], said: str
) -> None:
    damage(shards)
    with pytest.raises(DataError, match=said):
        open_listing(str(shards))
    status, _, errors = segue("train", shards, "--out", tmp_path / "run", "--device", "cpu", *options())
    assert (status, errors.count("\n")) == (2, 1), errors
    assert not (tmp_path / "run").exists()


def test_an_index_of_another_shard_is_noticed_when_a_picture_is_read(shards: Path) -> None:
    exchanged(shards)
    listing = open_listing(str(shards))
    wrong = [pair for split in listing.splits.values() for pair in split if "000001" in str(pair.image)]
    assert wrong
    noticed = 0
    for pair in wrong:
        try:
            pair.image.read_bytes()
        except DataError as error:
            assert "does not hold" in str(error)
            noticed += 1
    assert noticed == len(wrong)


def test_a_shard_that_is_cut_while_it_is_read_is_named(shards: Path) -> None:
    pair = open_listing(str(shards)).splits["train"][0]
    path = Path(str(pair.image)).parent
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(DataError, match=r"shard-000000\.tar is cut short before the end of train_000"):
        pair.image.read_bytes()


def test_a_packed_file_of_a_relative_path_is_read_by_its_absolute_one(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shards.parent)
    image = open_listing(shards.name).split("train")[0].image
    whole, content = image.absolute(), image.read_bytes()
    monkeypatch.chdir("/")
    assert str(whole) == str(shards.parent / image)
    assert whole.read_bytes() == content
    assert pickle.loads(pickle.dumps(whole)).read_bytes() == content


def test_a_packed_file_is_a_path_that_can_be_sent_to_a_process(shards: Path) -> None:
    image = open_listing(str(shards)).splits["train"][0].image
    again = pickle.loads(pickle.dumps(image))
    assert again == image
    assert again.read_bytes() == image.read_bytes()
    assert (image.name, image.suffix, image.stat().st_size) == ("train_000.png", ".png", len(image.read_bytes()))
    assert image.resolve() == Path(str(image)).resolve()
    with pytest.raises(ValueError, match="never written"):
        image.open("wb")


READS = """
import sys
from pathlib import Path
from segue.data.decoder import Decoder
from segue.data.images import Whole
from segue.data.layouts import open_listing

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])

listing = open_listing(sys.argv[1])
data = Whole(listing.splits["train"], Decoder.of(listing))
data[0]
before = peak()
for i in range(len(data)):
    data[i]
print(len(data), peak() - before)
"""


@pytest.mark.slow
def test_reading_takes_the_memory_of_a_few_pictures_however_many_there_are(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (600, 600, 3), np.uint8)
    for i in range(40):  # 43 MB
        Image.fromarray(pixels + np.uint8(i)).save(root / "images" / f"{i:03d}.bmp")
        Image.fromarray(np.full((600, 600), i % 3, np.uint8)).save(root / "labels" / f"{i:03d}.png", compress_level=1)
    (root / "classes.txt").write_text("a\nb\nc\n")
    written = write_shards(open_listing(str(root)), tmp_path / "shards", size=16 << 20)
    assert written["bytes"] > 40 << 20
    shutil.rmtree(root)
    done = subprocess.run(
        [sys.executable, "-c", READS, str(tmp_path / "shards")], capture_output=True, text=True, check=True
    )
    count, grown = map(int, done.stdout.split())
    assert count == 40
    assert grown < 12 << 10  # KiB; a picture takes about five times its 1 MB while it is decoded
