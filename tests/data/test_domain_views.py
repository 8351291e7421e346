"""Views of two domains: labels stay where they were, padding takes no part, and the same seed gives the same view."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_set
from PIL import Image

from segue.config import Domains
from segue.data.domain_views import DomainViews, in_style, inverted
from segue.data.sample import IGNORE
from segue.data.style import fourier, lab, rounded
from segue.data.transforms import Window
from segue.data.two_domains import DomainData, open_domains
from segue.engine import endless


@pytest.fixture
def data(tmp_path: Path) -> DomainData:
    source, target = write_set(tmp_path / "source"), tmp_path / "target"
    target.mkdir()
    for i in range(4):
        noise = np.random.default_rng(i).integers(0, 60, (40, 56, 3)) + np.array([150, 20, 0])
        Image.fromarray(noise.astype(np.uint8)).save(target / f"{i}.png")
    return open_domains(Domains(source=(str(source),), target=str(target)), crop=32)


def views(data: DomainData, **fields: object) -> DomainViews:
    sets = tuple(source.labelled(translated=False) for source in data.sources)
    return DomainViews(sets, data.target, 32, **fields)  # type: ignore[arg-type]


def at(dataset: DomainViews, index: int, seed: int) -> dict[str, dict[str, torch.Tensor]]:
    torch.manual_seed(seed)
    return dataset[index]


def test_labels_do_not_depend_on_the_style_and_pictures_do(data: DomainData) -> None:
    for seed in range(4):
        plain, styled = (at(views(data, style=s), 1, seed)["source"] for s in ("none", "lab"))
        assert torch.equal(plain["mask"], styled["mask"])
        assert not torch.equal(plain["image"], styled["image"])


def test_a_style_moves_the_colours_towards_the_target(data: DomainData) -> None:
    def blue(style: str) -> float:
        pictures = [at(views(data, style=style, scale=(1.0, 1.0)), i, i)["source"]["image"] for i in range(6)]
        return float(torch.stack(pictures)[:, 2].float().mean())

    assert blue("none") > 80
    for style in ("lab", "covariance", "fourier"):
        assert blue(style) < 50, style


def test_padding_is_outside_and_black_whatever_the_style(data: DomainData) -> None:
    for style in ("lab", "covariance", "fourier"):
        for seed in range(6):
            sample = at(views(data, style=style, scale=(0.4, 0.6)), 0, seed)
            inside = sample["target"]["inside"]
            assert 0 < int(inside.sum()) < inside.numel()
            assert (sample["target"]["image"][:, ~inside] == 0).all()
            known = sample["source"]["mask"] != IGNORE
            assert known.any()
            padding = sample["source"]["image"][:, ~known]  # black, which the jitter of contrast lifts everywhere alike
            assert (padding == padding[:, :1]).all()


def test_light_is_inverted_by_chance_inside_the_picture_alone_and_labels_stay(data: DomainData) -> None:
    turned = 0
    for seed in range(40):
        plain, maybe = (at(views(data, invert=i, gives_target=False), 1, seed)["source"] for i in (0.0, 0.5))
        assert torch.equal(plain["mask"], maybe["mask"])
        both = torch.stack([one["image"].float()[:, one["mask"] != IGNORE].flatten() for one in (plain, maybe)])
        turned += int(torch.corrcoef(both)[0, 1] < 0)  # colours are changed by other draws too, but never upside down
    assert 8 <= turned <= 32
    light = [
        float(at(views(data, style="lab", invert=i, scale=(1.0, 1.0)), 1, 3)["source"]["image"].float().mean())
        for i in (0.0, 1.0)
    ]
    assert abs(light[0] - light[1]) < 40  # inverted before it gets its style, not after
    canvas = np.zeros((8, 8, 3), np.uint8)
    canvas[2:6, 1:8] = 40
    piece = Image.fromarray(canvas)
    window = Window((0, 0, 7, 4), (7, 4), (1, 2), False)
    once = np.array(inverted(piece, window, 8))
    assert (once[2:6, 1:8] == 215).all()
    assert once.sum() == 215 * 4 * 7 * 3
    assert (np.array(inverted(Image.fromarray(once), window, 8)) == canvas).all()


def test_style_sees_the_pieces_and_not_their_padding() -> None:
    rng = np.random.default_rng(0)
    own, theirs = rng.integers(60, 200, (12, 20, 3)), rng.integers(0, 90, (16, 16, 3))
    canvas, other = np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32, 3), np.uint8)
    canvas[5:17, 3:23], other[8:24, 8:24] = own, theirs
    window, other_window = (
        Window((0, 0, 20, 12), (20, 12), (3, 5), False),
        Window((0, 0, 16, 16), (16, 16), (8, 8), False),
    )
    found = np.array(in_style(Image.fromarray(canvas), window, Image.fromarray(other), other_window, 32,
                              style="lab", band=0.1))  # fmt: skip
    assert (found[5:17, 3:23] == lab(own.astype(np.uint8), theirs.astype(np.uint8))).all()
    found[5:17, 3:23] = 0
    assert not found.any()
    found = np.array(in_style(Image.fromarray(canvas), window, Image.fromarray(other), other_window, 32,
                              style="fourier", band=0.1))  # fmt: skip
    resized = np.asarray(Image.fromarray(theirs.astype(np.uint8)).resize((20, 12), Image.Resampling.BILINEAR))
    assert (found[5:17, 3:23] == rounded(fourier(own.astype(np.uint8), resized, band=0.1))).all()


def test_weak_and_strong_views_lie_on_each_other(data: DomainData) -> None:
    weak = at(views(data), 0, 3)["target"]
    assert torch.equal(weak["image"], weak["view"])
    differs = 0
    for seed in range(30):
        strong = at(views(data, strong=True), 0, seed)["target"]
        plain = at(views(data), 0, seed)["target"]
        assert torch.equal(strong["image"], plain["image"])
        differs += not torch.equal(strong["image"], strong["view"])
    assert differs >= 20  # of 30, at a chance of 0.84


def test_without_style_and_target_the_target_is_not_opened(data: DomainData) -> None:
    for pair in data.target:
        pair.image.unlink()
    assert set(at(views(data, gives_target=False), 0, 0)) == {"source"}


def test_batches_hold_both_domains(data: DomainData) -> None:
    batch = next(endless(views(data, style="fourier"), 3, seed=0))
    assert batch["source"]["image"].shape == batch["target"]["view"].shape == (3, 3, 32, 32)
    assert batch["source"]["mask"].dtype == torch.uint8
    assert batch["target"]["inside"].dtype == torch.bool


def test_places_run_through_all_sources(data: DomainData) -> None:
    source = data.sources[0]
    both = DomainViews(
        ((source.pairs, source.decoder, None), (source.pairs[:2], source.decoder, None)), data.target, 32
    )
    assert len(both) == 8
    assert [both.at(i)[0].name for i in (5, 6, 7)] == ["train_005", "train_000", "train_001"]
    with pytest.raises(IndexError, match="sample 8 of 8"):
        both.at(8)
