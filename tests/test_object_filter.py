"""Prototypes: even codes, their use, and the filter, by hand and by property."""

import math

import pytest
import torch

from segue.losses.prototypes import code_cross_entropy, even_codes, uneven_use
from segue.models.object_filter import CodeQueue, ObjectFilter, PrototypeHead, neighbourhoods


def test_even_codes_by_hand() -> None:
    # exp(S / T) is [[2, 1], [2, 1]] : columns alike gives [[1/2, 1/2], ...], rows of 1 leave that.
    scores = torch.tensor([[math.log(2), 0.0], [math.log(2), 0.0]])
    torch.testing.assert_close(even_codes(scores, temperature=1.0), torch.full((2, 2), 0.5))
    # [[4, 1], [1, 1]]: columns 4/5 1/5, 1/2 1/2; rows (4/5)/(13/10), (1/2)/(13/10); (1/5)/(7/10), (1/2)/(7/10).
    scores = torch.tensor([[math.log(4), 0.0], [0.0, 0.0]])
    expected = torch.tensor([[8 / 13, 5 / 13], [2 / 7, 5 / 7]])
    torch.testing.assert_close(even_codes(scores, temperature=1.0, rounds=1), expected)


def test_even_codes_use_all_prototypes_alike() -> None:
    torch.manual_seed(0)
    scores = torch.randn(400, 8) + torch.arange(8.0)  # the last one would take all
    codes = even_codes(scores, temperature=0.5, rounds=30)
    torch.testing.assert_close(codes.sum(1), torch.ones(400))
    torch.testing.assert_close(codes.sum(0), torch.full((8,), 50.0), rtol=0.05, atol=0)


def test_code_cross_entropy_by_hand() -> None:
    codes = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    scores = torch.tensor([[0.1 * math.log(3), 0.0], [0.0, 0.0]])
    expected = (-math.log(3 / 4) + math.log(2)) / 2
    assert float(code_cross_entropy(scores, codes, temperature=0.1)) == pytest.approx(expected, rel=1e-5)


def test_uneven_use_by_hand() -> None:
    assert float(uneven_use(torch.eye(4))) == pytest.approx(0, abs=1e-6)
    assert float(uneven_use(torch.tensor([[1.0, 0], [1, 0]]))) == 1
    entropy = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    assert float(uneven_use(torch.tensor([[1.0, 0], [0.5, 0.5]]))) == pytest.approx(1 - entropy, rel=1e-5)


def test_filter_puts_the_means_of_the_prototypes_it_resembles_beside_a_patch() -> None:
    module = ObjectFilter(2, prototypes=2)
    module.norm = torch.nn.Identity()
    with torch.no_grad():
        module.prototypes[0], module.prototypes[1] = 30.0, -30.0
    maps = torch.ones(1, 2, 5, 5)
    found = module(maps)
    assert found.shape == (1, 4, 5, 5)
    torch.testing.assert_close(found[:, :2], maps)
    torch.testing.assert_close(found[:, 2:], torch.full((1, 2, 5, 5), 30.0))  # all like the first


def test_filter_starts_at_centres_of_neighbourhoods_and_moves_by_use_alone() -> None:
    torch.manual_seed(0)
    maps = torch.randn(2, 3, 6, 6) + 5 * torch.randint(0, 2, (2, 1, 1, 1))
    module = ObjectFilter(3, prototypes=4)
    module.start_from(maps, seed=0)
    windows = neighbourhoods(maps)
    assert windows.shape == (72, 27)
    centre = maps[0, :, 2:5, 3:6].flatten()
    assert (windows == centre).all(1).any()
    nearest = torch.cdist(windows, module.prototypes.detach().flatten(1)).min(1).values
    assert nearest.mean() < torch.cdist(windows, torch.randn(4, 27)).min(1).values.mean()
    module(maps).sum().backward()
    assert module.prototypes.grad is None
    optimizer = torch.optim.Adam([module.prototypes], 0.1)
    before = float(module.use_loss(maps).detach())
    for _ in range(30):
        optimizer.zero_grad()
        module.use_loss(maps).backward()
        optimizer.step()
    assert float(module.use_loss(maps).detach()) < before


def test_head_gives_cosines() -> None:
    scores = PrototypeHead(4, scores=7)(torch.randn(2, 4, 3, 3))
    assert scores.shape == (2, 7, 3, 3)
    assert scores.abs().max() <= 1 + 1e-5


def test_queue_keeps_the_latest_scores_and_counts_them() -> None:
    queue = CodeQueue(5, scores=3)
    first, second = torch.randn(3, 3), torch.randn(4, 3)
    torch.testing.assert_close(queue(first, temperature=0.5), even_codes(first, temperature=0.5))
    expected = even_codes(torch.cat([second, first]), temperature=0.5)[:4]
    torch.testing.assert_close(queue(second, temperature=0.5), expected)
    torch.testing.assert_close(queue.kept, torch.cat([second, first[:1]]))
    assert int(queue.filled) == 5
