"""Pixel contrast, equation by equation, against loops and numbers worked out by hand."""

import json
import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CLASSES, TINY, untrained
from PIL import Image
from torch import Tensor

from segue import verbs
from segue.config import build
from segue.data.layouts import open_listing
from segue.data.training import open_training
from segue.data.transforms import ColorJitter
from segue.engine import Run, cosine
from segue.errors import DataError, UsageError
from segue.methods.pixel_contrast import (
    CONTRASTS,
    Config,
    _views,
    bags,
    class_thresholds,
    fine_tune,
    labels_at,
    refuse,
    rounds_of,
    train,
    within_image,
)
from segue.prediction.pseudo_labels import RAREST, adjusted, label_images, pseudo_label
from segue.verbs import control

T = 0.2


def crops(seed: int = 0, count: int = 3, pixels: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """Two views' embeddings (B, N, D) and labels (B, N) with ignored pixels and a class of one pixel."""
    torch.manual_seed(seed)
    first, second = (torch.nn.functional.normalize(torch.randn(count, pixels, 4), dim=2) for _ in range(2))
    labels = torch.randint(0, 3, (count, pixels))
    labels[0, 0], labels[1, 2] = 255, 9
    return first, second, labels


def plain(first: Tensor, second: Tensor, labels: Tensor, form: str, others: bool) -> float:
    """Eqs. 1 to 3 as they are written, pixel by pixel."""
    crop_losses = []
    count, pixels = labels.shape
    keys = [(j, q) for j in range(count) for q in range(pixels) if labels[j, q] != 255]
    anchors = keys if form == "batch" else None
    for i in range(count) if anchors is None else [None]:
        losses = []
        for j, p in [(i, p) for p in range(pixels) if labels[i, p] != 255] if anchors is None else anchors:
            home = {"image": [j], "pair": [j, (j - 1) % count], "batch": list(range(count))}[form]
            negatives_from = home if form == "batch" else [j]
            z = {k: float(first[j, p] @ second[k]) / T for k in keys if k[0] in home}
            positives = [k for k in z if labels[k] == labels[j, p]]
            negatives = [k for k in z if labels[k] != labels[j, p] and k[0] in negatives_from]
            if not positives:
                continue
            if others:
                rest = sum(math.exp(z[k]) for k in negatives)
                terms = [-math.log(math.exp(z[q]) / (math.exp(z[q]) + rest)) for q in positives]
            else:
                total = sum(math.exp(z[k]) for k in [*positives, *negatives])
                terms = [-math.log(math.exp(z[q]) / total) for q in positives]
            losses.append(sum(terms) / len(terms))
        if losses:
            crop_losses.append(sum(losses) / len(losses))
    return sum(crop_losses) / len(crop_losses)


@pytest.mark.parametrize("others", [False, True])
@pytest.mark.parametrize("form", sorted(CONTRASTS))
def test_each_form_equals_the_equation_written_as_a_loop(form: str, others: bool) -> None:
    first, second, labels = crops()
    found = CONTRASTS[form](first, second, labels, temperature=T, others=others)
    assert float(found) == pytest.approx(plain(first, second, labels, form, others), rel=1e-5)


def test_within_image_by_hand() -> None:
    # Two pixels of two classes, orthogonal embeddings, both views alike: L = log(1 + e^{-1/t}).
    views = torch.eye(2)[None]
    found = within_image(views, views, torch.tensor([[0, 1]]), temperature=0.5)
    assert float(found) == pytest.approx(math.log(1 + math.exp(-2)), rel=1e-6)


def test_a_crop_without_labels_counts_for_nothing() -> None:
    first, second, labels = crops(count=2)
    alone = within_image(first[:1], second[:1], labels[:1], temperature=T)
    labels[1] = 255
    torch.testing.assert_close(within_image(first, second, labels, temperature=T), alone)
    labels[0] = 255
    leaf = first.clone().requires_grad_()
    loss = within_image(leaf, second, labels, temperature=T)
    loss.backward()
    assert float(loss.detach()) == 0
    assert leaf.grad is not None
    assert leaf.grad.abs().sum() == 0


def test_crops_do_not_see_each_other_in_eq_1_and_do_in_eq_2() -> None:
    first, second, labels = crops()
    changed = second.clone()
    changed[2] = -changed[2]
    for form, same in (("image", True), ("pair", False), ("batch", False)):
        before, after = (
            CONTRASTS[form](first[:1] if form == "image" else first, view[:1] if form == "image" else view,
                            labels[:1] if form == "image" else labels, temperature=T)
            for view in (second, changed)
        )  # fmt: skip
        assert torch.equal(before, after) == same, form


def test_labels_are_taken_at_the_centre_of_each_feature_pixel() -> None:
    mask = torch.arange(64).reshape(1, 8, 8)
    assert labels_at(mask, 2, 2).tolist() == [[[18, 22], [50, 54]]]  # rows and columns 2 and 6


def test_bags_are_unit_rows_in_the_order_of_the_labels() -> None:
    embedding = torch.randn(2, 5, 3, 4)
    rows, labels = bags(embedding, torch.arange(24).reshape(2, 3, 4))
    torch.testing.assert_close(rows.norm(dim=2), torch.ones(2, 12))
    torch.testing.assert_close(rows[1, 6], embedding[1, :, 1, 2] / embedding[1, :, 1, 2].norm())
    assert labels[1, 6] == 12 + 6


def test_thresholds_by_class() -> None:
    found = class_thresholds(Config(thresholds="car:0.5"), ("background", "road", "car"))
    np.testing.assert_allclose(found, [0.97, 0.8, 0.5])
    for text in ("car", "car:x", "lorry:0.5", "car:1.5"):
        with pytest.raises(DataError, match="--thresholds"):
            class_thresholds(Config(thresholds=text), ("background", "car"))


def test_every_round_has_a_step_of_fine_tuning() -> None:
    assert rounds_of(Config(), False) == [(150, 450)]
    assert rounds_of(Config(), True) == [(90, 270), (0, 240)]
    assert rounds_of(Config(second_round="contrast"), True) == [(90, 270), (60, 180)]
    assert rounds_of(Config(steps=4, contrast_share=0.9), False) == [(3, 1)]
    assert rounds_of(Config(steps=4, first_round=0.9), True) == [(1, 2), (0, 1)]
    assert rounds_of(Config(steps=4, first_round=0.1, second_round="contrast"), True) == [(0, 1), (1, 2)]
    assert rounds_of(Config(steps=1), True) == [(0, 1)]
    for steps, first_round, share in product(range(1, 12), (0.1, 0.5, 0.9), (0.1, 0.5, 0.9)):
        settings = {"steps": steps, "first_round": first_round, "contrast_share": share}
        for second_round, has_unlabelled in product(("finetune", "contrast"), (False, True)):
            rounds = rounds_of(build(Config, {"data": "set", "second_round": second_round, **settings}), has_unlabelled)
            assert len(rounds) == 1 + (has_unlabelled and steps > 1)
            assert sum(map(sum, rounds)) == steps
            assert all(contrasts >= 0 and tunings >= 1 for contrasts, tunings in rounds)


def test_a_threshold_of_background_is_refused_where_no_class_is_called_so(dataset: Path, tmp_path: Path) -> None:
    assert class_thresholds(Config(background_threshold=0.5), ("background", "a")).tolist() == pytest.approx([0.5, 0.8])
    given = {**TINY, "labels": "3", "unlabeled": ("rest",), "background_threshold": 0.5}
    told = r"--background-threshold 0\.5: none of the classes ground, disc, bar is .* --thresholds CLASS:0\.5$"
    with pytest.raises(DataError, match=told):
        verbs.train(str(dataset), tmp_path / "run", method="pixel_contrast", quiet=True, **given)
    assert not (tmp_path / "run").exists()


def test_pseudo_labels_by_hand() -> None:
    classes = np.array([[0, 0, 1, 1]], np.uint8)
    probability = np.array([[0.96, 0.97, 0.79, 0.81]], np.float32)
    found = pseudo_label(classes, probability, np.array([0.97, 0.8], np.float32))
    assert found.tolist() == [[255, 0, 255, 1]]


@pytest.mark.parametrize(
    ("second_round", "stages"),
    [
        ("finetune", {"contrast": 2, "finetune": 2, "finetune_pseudo": 4}),
        ("contrast", {"contrast": 2, "finetune": 2, "contrast_pseudo": 2, "finetune_pseudo": 2}),
    ],
)
def test_the_whole_path_with_pseudo_labels(
    dataset: Path, tmp_path: Path, second_round: str, stages: dict[str, int]
) -> None:
    values = {
        **TINY,
        "data": str(dataset),
        "labels": "3",
        "unlabeled": ("rest",),
        "threshold": 0.0,
        "evaluate_every": 1,
        "contrast_share": 0.5,
        "first_round": 0.5,
        "second_round": second_round,
    }
    config = build(Config, values)
    run = Run(tmp_path / "run", quiet=True)
    data = open_training(config.data, seed=0)
    train(config, run, data)
    lines = run.read_log()
    last = {
        stage: max(line["step"] for line in lines if line["stage"] == stage) for stage in {x["stage"] for x in lines}
    }
    assert last == stages  # 8 steps in all
    assert any("val/miou" in line for line in lines)
    ledger = json.loads((run.out / "pseudo_labels.json").read_text())
    assert len(ledger["images"]) == len(data.unlabelled) == 3
    assert set(ledger["classes"]) == set(CLASSES)
    assert sum(row["kept"] for row in ledger["classes"].values()) == 3 * 48 * 48  # a threshold of 0 keeps all
    shown = ["embeddings_before", *(f"embeddings_after{s.removeprefix('contrast')}" for s in stages if "contrast" in s)]
    assert sorted(path.stem for path in run.out.glob("embeddings*")) == sorted(shown)
    for name in shown:
        with np.load(run.out / f"{name}.npz") as kept:
            assert kept["features"].shape == (len(kept["labels"]), 16)
            assert set(kept["labels"].tolist()) <= {0, 1, 2}


def test_adjusted_probabilities_are_divided_by_the_shares_of_the_classes_and_put_back() -> None:
    network, image = untrained(spread=0.5), torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    shares = np.array([0.9, 0.1, 0.0])  # of the last there is no label
    with torch.inference_mode():
        plain_probabilities = network(image).softmax(1)
        with adjusted(network, shares):
            found = network(image).softmax(1)
        with adjusted(network, np.array([1 - 1e-6, 1e-6, 0.0])):
            capped = network(image).softmax(1)
    expected = plain_probabilities / torch.tensor([0.9, 0.1, 1.0])[:, None, None]
    torch.testing.assert_close(found, expected / expected.sum(1, keepdim=True))
    expected = plain_probabilities / torch.tensor([1 - 1e-6, RAREST, 1.0])[:, None, None]
    torch.testing.assert_close(capped, expected / expected.sum(1, keepdim=True))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_pseudo_labels_of_a_run_are_adjusted_unless_it_is_told_not_to(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    def noted(network: Any, pairs: Any, thresholds: Any, shares: np.ndarray, run: Run) -> tuple[Any, ...]:
        given.append(shares)
        return ()

    monkeypatch.setattr("segue.methods.pixel_contrast.label_images", noted)
    values = {**TINY, "data": str(dataset), "labels": "3", "unlabeled": ("rest",), "steps": 4}
    for adjust in (True, False):
        config = build(Config, {**values, "adjust": adjust})
        data = open_training(config.data, seed=0)
        run = Run(tmp_path / str(adjust), quiet=True)
        train(config, run, data)
    masks = np.stack([np.asarray(Image.open(str(pair.mask))) for pair in data.labelled])
    np.testing.assert_allclose(given[0], [(masks == i).mean() for i in range(3)])
    np.testing.assert_array_equal(given[1], np.ones(3))


def test_pseudo_labels_that_were_cut_go_on_picture_by_picture_and_tell_how_far_they_are(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("segue.progress.REFRESH", -1.0)
    network, pairs = untrained(), open_listing(str(dataset)).split("train")
    thresholds, shares = np.array([0.5, 0.6, 0.61], np.float32), np.array([0.7, 0.2, 0.1])
    passes, most = 0, 6

    def stop(*_: object) -> None:
        nonlocal passes
        passes += 1
        if passes > most:
            raise KeyboardInterrupt

    network.register_forward_pre_hook(stop)
    for name in ("uncut", "cut"):
        Run(tmp_path / name).open()
    assert len(label_images(network, pairs, thresholds, shares, Run(tmp_path / "uncut"))) == 5
    done = tmp_path / "cut" / "pseudo_labels" / "done.jsonl"
    for left in ('["000002.png", [[1', '["000004.png", [[0, 0, 0], [0, 0, 0]]]\n'):  # of a kill, and of no picture
        passes, most = 0, 2
        with pytest.raises(KeyboardInterrupt):
            label_images(network, pairs, thresholds, shares, Run(tmp_path / "cut"))
        with done.open("a") as file:
            file.write(left)
    assert done.read_text().count("png") == 5  # two of each start, and what was left by the second
    passes, most = 0, 2
    capsys.readouterr()
    label_images(network, pairs, thresholds, shares, Run(tmp_path / "cut"))
    told = capsys.readouterr().err.splitlines()
    assert told[:6] == [f"pseudo-labels {i}/6" for i in range(1, 7)]
    files = [{p.name: p.read_bytes() for p in (tmp_path / n).rglob("*") if p.is_file()} for n in ("uncut", "cut")]
    assert len(files[0]) == 7  # six pictures, one of which no pixel is kept, and the ledger
    assert files[0] == files[1]


def test_where_fine_tuning_goes_on_the_classifier_is_kept(dataset: Path, tmp_path: Path) -> None:
    config = build(Config, {**TINY, "data": str(dataset), "finetune_lr": 0.0, "weight_decay": 0.0})
    data = open_training(config.data, seed=0)
    network = untrained()
    before = network.head.weight.detach().clone()
    for stage, begun in (("a", 1), ("b", 0)):
        run = Run(tmp_path / stage, quiet=True)
        run.open()
        sets = [(data.labelled, data.decoder, None)]
        fine_tune(network, sets, config, run, data, 1, stage, begun=begun, total=2)
        assert torch.equal(network.head.weight, before) == bool(begun)


def test_both_rounds_of_fine_tuning_have_one_schedule(dataset: Path, tmp_path: Path) -> None:
    values = {**TINY, "data": str(dataset), "labels": "3", "unlabeled": ("rest",), "threshold": 0.0, "steps": 10}
    config = build(Config, {**values, "first_round": 0.6, "contrast_share": 0.34})
    run = Run(tmp_path / "run", quiet=True)
    train(config, run, open_training(config.data, seed=0))
    rates = [line["lr"] for line in run.read_log() if line["stage"].startswith("finetune") and "lr" in line]
    whole = [config.finetune_lr * cosine(8)(step) for step in range(8)]  # 2 of 10 steps are contrast
    assert rates == pytest.approx(whole)


def test_pseudo_labelled_pictures_alone_come_in_other_colours(dataset: Path) -> None:
    config = build(Config, {**TINY, "data": str(dataset)})
    data = open_training(config.data, seed=0)
    sets = [(data.labelled[:2], data.decoder, None), (data.labelled[2:], data.decoder, None)]
    views = _views(sets, config, pseudo_jitter=ColorJitter(gray=1.0))
    labelled = {pair.name for pair in data.labelled[:2]}
    for i in range(len(views)):  # type: ignore[arg-type]
        sample = views[i]
        is_grey = torch.equal(sample["image"][0], sample["image"][1])
        assert is_grey == (sample["name"] not in labelled)


def test_embeddings_are_of_the_middle_of_large_pictures_and_made_once(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []

    def looked_at(network: Any, data: Any, *, seed: int) -> dict[str, np.ndarray]:
        seen.append(tuple(data[0]["image"].shape))
        return {"features": np.zeros((0, 16), np.float16), "labels": np.zeros(0, np.uint8)}

    monkeypatch.setattr("segue.data.images.SHOWN", 24 * 24)
    monkeypatch.setattr("segue.methods.pixel_contrast.pixel_embeddings", looked_at)
    config = build(Config, {**TINY, "data": str(dataset), "steps": 2})
    data = open_training(config.data, seed=0)
    for _ in range(2):  # the second time it is finished before
        train(config, Run(tmp_path / "run", quiet=True), data)
    assert seen == [(3, 24, 24)] * 2


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_contrast_draws_classes_together(dataset: Path, tmp_path: Path, precision: str) -> None:
    """After contrast, features of one class are nearer to their own mean than before, next to the others' means."""
    config = build(Config, {**TINY, "data": str(dataset), "steps": 60, "contrast_share": 0.9, "val": "none"})
    run = Run(tmp_path, quiet=True, precision=precision)
    train(config, run, open_training(config.data, seed=0))

    def separation(name: str) -> float:
        with np.load(run.out / f"{name}.npz") as kept:
            features, labels = kept["features"].astype(np.float64), kept["labels"]
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        means = np.stack([features[labels == k].mean(0) for k in range(3)])
        within = np.mean([((features[labels == k] - means[k]) ** 2).sum(1).mean() for k in range(3)])
        between = np.mean([((means[j] - means[k]) ** 2).sum() for j in range(3) for k in range(j)])
        return float(between / within)

    assert separation("embeddings_after") > 1.5 * separation("embeddings_before")


@pytest.mark.parametrize(("given", "expected"), [(True, 0.02), (False, 0.1)])
def test_contrast_is_gentle_with_given_weights(dataset: Path, tmp_path: Path, given: bool, expected: float) -> None:
    from segue.weights import save_model

    values = {**TINY, "data": str(dataset)}
    if given:
        run, config = Run(tmp_path / "first", quiet=True), build(Config, values)
        save_model(train(config, run, open_training(config.data, seed=0)), tmp_path / "model", method="x", metrics={})
        values["init"] = str(tmp_path / "model")
    run, config = Run(tmp_path / "run", quiet=True), build(Config, values)
    train(config, run, open_training(config.data, seed=0))
    assert run.read_log()[0]["lr"] == pytest.approx(expected)


def test_rare_classes_can_count_more_in_fine_tuning_and_in_its_control(dataset: Path, tmp_path: Path) -> None:
    """The first loss that is logged is that of the same weights and batch, weighted by class or not."""
    first = {}
    for balance in ("none", "auto"):
        config = build(Config, {**TINY, "data": str(dataset), "balance": balance})
        train(config, run := Run(tmp_path / balance, quiet=True), open_training(config.data, seed=0))
        first[balance] = next(line["cross_entropy"] for line in run.read_log() if line["stage"] == "finetune")
        assert control(config).balance == balance
    assert first["auto"] != pytest.approx(first["none"], rel=1e-3)


def test_its_control_takes_the_learning_rate_and_weight_decay_that_were_given() -> None:
    plain = control(build(Config, {"data": "set"}))
    assert (plain.lr, plain.weight_decay) == (type(plain).lr, type(plain).weight_decay)
    given = control(build(Config, {"data": "set", "finetune_lr": 0.004, "weight_decay": 0.01}))
    assert (given.lr, given.weight_decay) == (0.004, 0.01)


@pytest.mark.parametrize(
    "given",
    [
        {"first_round": 0.4}, {"second_round": "contrast"}, {"threshold": 0.9}, {"background_threshold": 0.9},
        {"thresholds": "disc:0.9"}, {"adjust": False},
    ],
)  # fmt: skip
def test_settings_of_pseudo_labels_are_refused_where_no_image_gets_any(given: dict[str, Any], tmp_path: Path) -> None:
    (name,) = given
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')}: there are no images"):
        verbs.train("gone", tmp_path / "run", method="pixel_contrast", quiet=True, **given)
    refuse(build(Config, {"data": "set", "unlabeled": ("rest",), **given}))
    refuse(build(Config, {"data": "set", **{field: getattr(Config, field) for field in given}}))
