"""Plain training: its equations, its options, and that it learns."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, write_set

from segue import verbs
from segue.config import build
from segue.data.balance import class_weights
from segue.data.images import Whole
from segue.data.training import open_training
from segue.engine import Run
from segue.errors import UsageError
from segue.evaluation import semantic
from segue.methods.supervised import Config, Supervised, refuse, train
from segue.starting import encoder_weights
from segue.weights import save_model


def test_class_weights_by_hand(dataset: Path) -> None:
    data = open_training(build(Config, {"data": str(dataset)}).data, seed=0)
    masks = Whole(data.labelled, data.decoder)
    pixels = np.sum([np.bincount(masks[i]["mask"].numpy().ravel(), minlength=3) for i in range(len(masks))], axis=0)
    np.testing.assert_allclose(class_weights(data), (np.median(pixels) / pixels).clip(0.1, 10), rtol=1e-6)


def test_weights_change_the_loss_as_eq_1_says() -> None:
    logits = torch.zeros(1, 2, 1, 3)
    logits[0, 0, 0, 0] = 1.0
    network = torch.nn.Identity()
    batch = {"image": logits, "mask": torch.tensor([[[0, 1, 255]]])}
    ce = [-float(torch.log_softmax(logits[0, :, 0, i], 0)[k]) for i, k in ((0, 0), (1, 1))]
    found = Supervised(network, torch.tensor([3.0, 1.0]))(batch)["cross_entropy"]
    assert float(found) == pytest.approx((3 * ce[0] + ce[1]) / 4, rel=1e-6)


def test_linear_probe_leaves_the_encoder_alone(dataset: Path, tmp_path: Path) -> None:
    config = build(Config, {**TINY, "data": str(dataset), "linear_probe": True})
    data = open_training(config.data, seed=0)
    probe = train(config, Run(tmp_path / "a", quiet=True), data)
    short = probe.state_dict()
    longer = train(
        build(Config, {**TINY, "data": str(dataset), "linear_probe": True, "steps": 9}),
        Run(tmp_path / "b", quiet=True),
        data,
    )
    changed = {name for name, tensor in longer.state_dict().items() if not torch.equal(tensor, short[name])}
    assert changed == {"head.weight", "head.bias"}
    state, _ = encoder_weights(
        str(save_model(probe, tmp_path / "probe", method="supervised", metrics={})), config.network.encoder
    )
    assert len(state) > 10


def test_a_decoder_is_refused_of_a_linear_probe_which_has_none(tmp_path: Path) -> None:
    given = {"linear_probe": True, "decoder_channels": 64}
    with pytest.raises(UsageError, match="--decoder-channels: --linear-probe trains without a decoder"):
        verbs.train("gone", tmp_path / "run", method="supervised", quiet=True, **given)
    for name, value in given.items():
        refuse(build(Config, {"data": "set", name: value}))


@pytest.mark.slow
@pytest.mark.parametrize("balance", ["none", "auto"])
def test_it_learns_discs_and_bars(tmp_path: Path, balance: str) -> None:
    root = write_set(tmp_path / "set", train=24, val=8, test=0)
    config = build(
        Config, {**TINY, "data": str(root), "steps": 250, "lr": 0.05, "balance": balance, "scale": (0.8, 1.25)}
    )
    data = open_training(config.data, seed=0)
    network = train(config, Run(tmp_path / "run", quiet=True), data)
    scores = semantic(network, Whole(data.val, data.decoder), data.classes)
    assert scores["miou"] > 0.75
