"""What every method owes, for all of them at once: nothing is written here when one is added."""

import dataclasses
import json
import os
import random
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CLASSES, COLORS, KILLS, TINY, Child, write_set

from segue import methods
from segue.config import build, documented, flat, leaves
from segue.data.decoder import Decoder
from segue.data.images import Whole
from segue.data.layouts import open_listing
from segue.data.training import open_training
from segue.data.two_domains import open_domains
from segue.data.unlabelled import open_image_set
from segue.engine import Run
from segue.extension import open_extension
from segue.models.mask_classifier import MaskClassifier, MaskClassifierSpec
from segue.models.segmenter import Segmenter, SegmenterSpec
from segue.search.data import open_compression
from segue.verbs import train
from segue.weights import load_saved, save_model

TRAINERS = methods.names("train")
# How each verb opens its data, as `segue.verbs` does.
OPENERS: dict[str, Callable[[Any, int], Any]] = {
    "train": lambda config, seed: open_training(config.data, seed=seed),
    "adapt": lambda config, seed: open_domains(config.domains, crop=config.views.crop),
    "pretrain": lambda config, seed: open_image_set(every_image(config.data)),
    "extend": lambda config, seed: open_extension(
        config.model, config.data, keep_val=config.keep_val, new_classes=config.new_classes,
        by_region=config.by_region, seed=seed,
    ),
    "compress": lambda config, seed: open_compression(config.teacher, config.data, seed=seed),
}  # fmt: skip
METHODS = [name for verb in OPENERS for name in methods.names(verb)]
LONG = ("compact_search", "mask_classification", "mean_teacher", "incremental_panoptic", "incremental_semantic")
SHORT = {(name, 0) for name in METHODS if name not in LONG}
LONG_ONES_SLOW = [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in METHODS]


# The smallest search: two generations, the second of them short.
SEARCH = {
    "candidates": 10, "decoder_steps": 2, "decoder_batch": 4, "end_steps": 1, "end_batch": 2, "search_crop": 64,
    "search_channels": 8, "channels": 8, "draws": 1, "reliable": False,
    "finalists": 1,
}  # fmt: skip


class CutError(Exception):
    """Stops a run in the middle, as a crash would."""


class CutRun(Run):
    """A run that saves after every step and dies once it has written ``lines`` lines of its log."""

    def __init__(self, *arguments: Any, lines: int, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.lines = lines
        self.checkpoint_every = 0.0

    def log(self, *arguments: Any) -> None:
        super().log(*arguments)
        self.lines -= 1
        if self.lines == 0:
            raise CutError


def settings(method: str, root: Path, **changes: Any) -> Any:
    kind = methods.load(method).Config
    values = {**TINY, "data": str(root), "queries": 6, "points": 32, **changes}
    if "source" in leaves(kind):
        values |= {"source": (f"{root}:train",), "target": f"{root}:test", "val": f"{root}:val", "keep": "information"}
    if "unlabeled" in leaves(kind) and method == "pixel_contrast":
        values = {"labels": "3", "unlabeled": ("rest",), "threshold": 0.0, **values}
    if methods.verb_of(method) == "extend":
        folder = historic(root.parent / f"historic_{method}", is_panoptic=method == "incremental_panoptic")
        values = {"model": str(folder), "min_score": 0.3, "min_ratio": 0.0, **values}
    if methods.verb_of(method) == "compress":
        values = {**SEARCH, "teacher": str(semantic_teacher(root.parent / "teacher")), **values}
    if method == "ranking_distillation":
        values = {"refresh": 5, **values}  # clusters are found anew in the middle
    return build(kind, {name: value for name, value in values.items() if name in leaves(kind)})


def semantic_teacher(folder: Path) -> Path:
    """An untrained model with the classes of the set."""
    if not folder.exists():
        torch.manual_seed(6)
        spec = SegmenterSpec("test_efficientnet", CLASSES, COLORS, decoder_channels=16)
        save_model(Segmenter(spec), folder, method="none", metrics={})
    return folder


def historic(folder: Path, *, is_panoptic: bool) -> Path:
    """A model that knows all classes of the set but the last."""
    if folder.exists():
        return folder
    torch.manual_seed(5)
    encoder, classes, colors = "test_efficientnet", CLASSES[:-1], COLORS[:-1]
    sizes = {"width": 32, "queries": 6, "pixel_layers": 1, "decoder_layers": 1, "feedforward": 32}
    if is_panoptic:
        model = MaskClassifier(MaskClassifierSpec(encoder, classes, colors, (), **sizes))
        return save_model(model, folder, method="mask_classification", metrics={})
    segmenter = Segmenter(SegmenterSpec(encoder, classes, colors, decoder_channels=16))
    return save_model(segmenter, folder, method="supervised", metrics={})


def weights_after(method: str, config: Any, run: Run) -> dict[str, torch.Tensor]:
    model = methods.load(method).train(config, run, OPENERS[methods.verb_of(method)](config, run.seed))
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def outputs(model: torch.nn.Module, image: torch.Tensor) -> list[torch.Tensor]:
    """What a model says of a picture, as tensors."""
    found = model(image)
    return [found] if isinstance(found, torch.Tensor) else list(vars(found).values())


def every_image(data: str) -> str:
    """The address of all images of a set, those of val and test among them."""
    images = Path(data) / "images"
    return str(images if images.is_dir() else data)


def test_every_verb_has_an_opener_here() -> None:
    assert set(METHODS) == set(methods.names())


@pytest.mark.parametrize("name", methods.names())
def test_docstring_cites_and_has_equations(name: str) -> None:
    text = methods.load(name).__doc__ or ""
    assert re.search(r"(19|20)\d\d", text), "no year of a source"
    assert re.search(r"^ {4}\(1\)  ", text, re.MULTILINE), "no equation (1)"
    assert methods.verb_of(name) in ("train", "pretrain", "adapt", "compress", "extend")


@pytest.mark.parametrize("name", methods.names())
def test_every_field_is_documented_and_frozen(name: str) -> None:
    kind = methods.load(name).Config
    undocumented = set(leaves(kind)) - {field for field, text in documented(kind).items() if text}
    assert not undocumented
    with pytest.raises(dataclasses.FrozenInstanceError):
        kind().steps = 1


@pytest.mark.parametrize("name", methods.names())
def test_config_survives_flat_and_build(name: str) -> None:
    kind = methods.load(name).Config
    config = build(kind, {"steps": 7, "crop": 64})
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in flat(config).items()}
    assert build(kind, values) == config


@pytest.mark.parametrize("name", LONG_ONES_SLOW)
def test_losses_are_finite_and_the_saved_model_predicts_the_same(name: str, dataset: Path, tmp_path: Path) -> None:
    config, run = settings(name, dataset), Run(tmp_path / "run", quiet=True)
    model = methods.load(name).train(config, run, OPENERS[methods.verb_of(name)](config, 0)).eval()
    lines = run.read_log()
    assert {line["step"] for line in lines} >= {1, 2}
    assert all(torch.isfinite(torch.tensor([v for v in line.values() if isinstance(v, float)])).all() for line in lines)
    save_model(model, tmp_path / "model", method=name, metrics={})
    image = Whole(open_listing(str(dataset)).split("val"), Decoder.of(open_listing(str(dataset))))[0]["image"][None]
    with torch.inference_mode():
        loaded = load_saved(str(tmp_path / "model"))
        torch.testing.assert_close(outputs(loaded, image), outputs(model, image), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "workers"),
    [
        pytest.param(name, workers, marks=() if (name, workers) in SHORT else pytest.mark.slow)
        for name in METHODS
        for workers in (0, 2)
    ],
)
def test_resumed_equals_uninterrupted_bit_for_bit(name: str, workers: int, dataset: Path, tmp_path: Path) -> None:
    config = settings(name, dataset, steps=6 if name == "supervised" else 12, accumulate=2)
    whole = weights_after(name, config, Run(tmp_path / "whole", quiet=True))
    total = len(Run(tmp_path / "whole").read_log())
    cuts = range(2, total, 3) if workers == 0 else [total // 2]
    folder = tmp_path / "cut"
    for lines in cuts:  # each life of the run dies a little later
        run = CutRun(folder, quiet=True, workers=workers, lines=lines - len(Run(folder).read_log()))
        with pytest.raises(CutError):
            weights_after(name, config, run)
    resumed = weights_after(name, config, Run(folder, quiet=True, workers=workers))
    for tensor_name, tensor in whole.items():
        assert torch.equal(tensor, resumed[tensor_name]), tensor_name
    steps = [(line["stage"], line["step"]) for line in Run(folder).read_log()]
    assert steps == [(line["stage"], line["step"]) for line in Run(tmp_path / "whole").read_log()]


def train_in(folder: Path, name: str, config: Any) -> None:
    torch.save(weights_after(name, config, Run(folder, quiet=True, checkpoint_every=0.0)), folder / "weights")


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_killed_anywhere_it_ends_as_if_it_had_not_been(name: str, dataset: Path, tmp_path: Path) -> None:
    config = settings(name, dataset)
    assert Child(time.sleep, 0).status() == 0  # the server that forks is there: its start is not of a life's time
    started = time.monotonic()
    assert Child(train_in, tmp_path / "whole", name, config).status() == 0
    longest = 0.75 * (time.monotonic() - started)  # each life goes on where the one before it was killed
    draws, folder, killed, whole_lives = random.Random(name), tmp_path / "cut", 0, 0
    while killed < KILLS:
        child = Child(train_in, folder, name, config)
        time.sleep(draws.uniform(0.0, longest))
        child.signal(signal.SIGKILL)
        if child.status() == -signal.SIGKILL:
            killed += 1
        else:  # it was done before: another one
            whole_lives += 1
            folder = tmp_path / f"cut_{whole_lives}"
    assert whole_lives or list(folder.glob("*.pt"))  # or no life came as far as a checkpoint
    assert Child(train_in, folder, name, config).status() == 0
    # All in processes alike: an earlier test may have tuned this one, and then its products are rounded otherwise.
    whole, resumed = (torch.load(path / "weights", weights_only=True) for path in (tmp_path / "whole", folder))
    for tensor_name, tensor in whole.items():
        assert torch.equal(tensor, resumed[tensor_name]), tensor_name


@pytest.mark.parametrize("name", LONG_ONES_SLOW)
def test_same_seed_same_weights_and_another_seed_others(name: str, dataset: Path, tmp_path: Path) -> None:
    config = settings(name, dataset, steps=4)
    first, again, other = (
        weights_after(name, config, Run(tmp_path / str(i), seed=seed, quiet=True)) for i, seed in enumerate((3, 3, 4))
    )
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


@pytest.fixture
def runs(dataset: Path, tmp_path: Path) -> Iterator[dict[str, Path]]:
    yield {
        name: train(
            str(dataset), tmp_path / name, method=name, quiet=True, device="cpu", precision="fp32",
            **{field: value for field, value in TINY.items() if field in leaves(methods.load(name).Config)},
        )
        for name in TRAINERS
    }  # fmt: skip


@pytest.mark.slow
def test_every_run_folder_holds_what_the_design_names(runs: dict[str, Path]) -> None:
    for out in runs.values():
        for name in ("run.json", "config.yaml", "log.jsonl", "metrics.csv", "report.html", "model/model.yaml"):
            assert (out / name).is_file(), name
        record = json.loads((out / "run.json").read_text())
        assert record["data"]["found"] == sum(
            (record["data"]["labelled"], record["data"]["unlabelled"], *record["data"]["dropped"].values())
        )
        assert {"versions", "git", "command", "identity"} <= set(record)
        assert record["identity"]["seed"] == 0


def test_fingerprint_reads_a_file_of_all_masks_once_and_takes_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from segue.data.fingerprint import fingerprint

    names = ["a", "b", os.fsdecode(b"\xe9t\xe9")]  # not UTF-8, as an old disk has it
    shared, reads = tmp_path / "annotations.json", []
    for name in (*names, shared.name):
        (tmp_path / name).write_text(name.encode("utf-8", "surrogateescape").hex())
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: reads.append(path.name) or read(path))
    before = fingerprint((name, (None, shared)) for name in names)
    assert reads == [shared.name]
    shared.write_text("other")
    assert fingerprint((name, (None, shared)) for name in names) != before


def test_fingerprint_changes_with_one_pixel(tmp_path: Path) -> None:
    from PIL import Image

    from segue.data.fingerprint import fingerprint

    root = write_set(tmp_path / "set")
    config = settings("supervised", root)
    before = fingerprint(open_training(config.data, seed=0).files())
    path = root / "labels" / "train_000.png"
    with Image.open(path) as image:
        image.putpixel((0, 0), (image.getpixel((0, 0)) + 1) % 3)
        image.save(path)
    assert fingerprint(open_training(config.data, seed=0).files()) != before
