"""Compact segmenters: genotypes, the modules they describe, and models on disk."""

import math
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from segue.models.compact import (
    OPERATIONS,
    AuxiliaryHeads,
    Cell,
    CompactDecoder,
    CompactSegmenter,
    CompactSpec,
    Genotype,
    choices_of,
    operation,
)
from segue.weights import load_model, save_model

CHANNELS = (24, 32, 96, 320)  # of MobileNetV2 at strides 4, 8, 16, 32
PUBLISHED = {
    "arch0": "[[8,[0,0,5,2],[0,2,8,8],[0,5,1,4]],[[3,3],[3,2],[3,0]]]",
    "arch1": "[[2,[1,0,3,6],[0,1,2,8],[2,0,6,1]],[[2,3],[3,1],[4,4]]]",
    "arch2": "[[5,[0,0,4,1],[3,2,0,1],[5,6,5,0]],[[1,3],[4,3],[2,2]]]",
}


def features(side: int = 64, batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = zip(CHANNELS, (4, 8, 16, 32), strict=True)
    return [torch.rand(batch, c, side // s, side // s, generator=generator) for c, s in sizes]


def decoder(text: str, channels: int = 64, repeats: int = 2) -> CompactDecoder:
    torch.manual_seed(0)
    return CompactDecoder(Genotype.parse(text), CHANNELS, 21, channels=channels, repeats=repeats)


@pytest.mark.parametrize(
    ("name", "parameters", "stride"), [("arch0", 817_109, 4), ("arch1", 997_333, 8), ("arch2", 1_040_341, 8)]
)
def test_published_genotypes_have_the_published_sizes(name: str, parameters: int, stride: int) -> None:
    built = decoder(PUBLISHED[name])
    assert sum(p.numel() for p in built.parameters()) == parameters
    assert built.eval()(features()).shape == (2, 21, 64 // stride, 64 // stride)


def test_arch0_under_mobilenetv2_has_2_628_821_parameters() -> None:
    spec = CompactSpec("mobilenetv2_100", tuple(map(str, range(21))), ((0, 0, 0),) * 21, PUBLISHED["arch0"])
    assert sum(p.numel() for p in CompactSegmenter(spec).parameters()) == 2_628_821


def test_the_space_has_the_published_size() -> None:
    assert len(choices_of(2)) == 17
    assert math.prod(choices_of(2)) == pytest.approx(4.99e13, rel=1e-3)
    assert math.prod(choices_of(3)) == pytest.approx(1.80e15, rel=5e-3)
    assert [n for n in choices_of(2) if n != 11][4:] == [2, 2, 5, 5, 8, 8]


def test_tokens_and_text_are_inverses() -> None:
    draws = random.Random(0)
    for blocks in (1, 2, 3):
        tokens = tuple(draws.randrange(n) for n in choices_of(blocks))
        genotype = Genotype.from_tokens(tokens, blocks)
        assert genotype.tokens() == tokens
        assert Genotype.parse(str(genotype)) == genotype


@pytest.mark.parametrize(
    "text",
    ["", "[]", "[[1],[[0,0]]]",
     "[[11,[0,0,0,0],[0,0,0,0],[0,0,0,0]],[[0,0]]]", PUBLISHED["arch0"].replace("3,3", "4,3"),
     PUBLISHED["arch1"].replace("[1,0,3,6]", "[2,0,3,6]"), "__import__('os')", "[[1,2],[3]]"],
)  # fmt: skip
def test_what_is_no_genotype_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no genotype"):
        Genotype.parse(text)


@pytest.mark.parametrize("index", range(len(OPERATIONS)), ids=OPERATIONS)
def test_operations_keep_the_shape(index: int) -> None:
    built = operation(index, 8, 2).eval()
    assert built(torch.rand(2, 8, 13, 7)).shape == (2, 8, 13, 7)


class Times(nn.Module):
    """Stands for an operation: a node's value tells which path it came by."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def test_a_cell_sums_the_nodes_that_no_layer_takes() -> None:
    cell = Cell(Genotype(0, ((1, 0, 0, 0), (0, 1, 0, 0), (4, 2, 0, 0)), ((0, 0),)), 4, 1)
    cell.operations = nn.ModuleList(Times(f) for f in (2, 3, 5, 7, 11, 13, 17))
    # n1 = 2; n2 = 3 n1 = 6, n3 = 5 n0 = 5, n4 = 11; n5 = 7 n0 = 7, n6 = 11 n1 = 22, n7 = 29;
    # n8 = 13 n4 = 143, n9 = 17 n2 = 102, n10 = 245. Layers take n1, n0, n4, n2: what is left is n7 + n10.
    assert float(cell(torch.ones(1, 4, 1, 1))[0, 0, 0, 0]) == 29 + 245


@pytest.mark.slow
def test_faults_are_what_an_untrained_network_shows() -> None:
    draws = random.Random(1)
    seen = {"": 0, "its output is zero": 0, "its output is the same everywhere": 0}
    while min(seen.values()) < 3:
        genotype = Genotype.from_tokens([draws.randrange(n) for n in choices_of(2)], 2)
        fault = genotype.fault()
        if seen[fault] >= 3:
            continue
        seen[fault] += 1
        torch.manual_seed(0)
        built = CompactDecoder(genotype, CHANNELS, 5, channels=8, repeats=1).eval()
        with torch.inference_mode():  # the border, whose padding would tell it from the middle, is 100 pixels away
            blocks = built.block_outputs([torch.rand(1, c, 200, 200) + 0.1 for c in CHANNELS])
        loose = [blocks[b] for b in genotype.loose()]
        middle = [b[..., b.shape[-2] // 2, b.shape[-1] // 2] for b in loose]
        other = [b[..., b.shape[-2] // 2 - 1, b.shape[-1] // 2] for b in loose]
        differs = max(float((one - two).abs().max()) for one, two in zip(middle, other, strict=True))
        if fault == "its output is zero":
            assert all(not b.any() for b in loose)
        else:
            assert (differs > 1e-5) == (not fault), (str(genotype), differs)


def test_shares_of_faulty_genotypes_are_those_of_the_source() -> None:
    draws = random.Random(0)
    faults = [Genotype.from_tokens([draws.randrange(n) for n in choices_of(2)], 2).fault() for _ in range(20_000)]
    assert faults.count("its output is zero") / 20_000 == pytest.approx(0.018, abs=0.004)
    assert faults.count("its output is the same everywhere") / 20_000 == pytest.approx(0.034, abs=0.005)


def test_auxiliary_heads_read_every_block_and_leave_the_output_alone() -> None:
    built = decoder(PUBLISHED["arch1"], 16, 1).train()
    heads = AuxiliaryHeads(built)
    blocks = built.block_outputs(features())
    assert [tuple(x.shape) for x in heads(blocks)] == [(2, 21, *b.shape[-2:]) for b in blocks]
    sum(x.sum() for x in heads(blocks)).backward()
    assert built.head.weight.grad is None
    assert built.blocks[0].cells[0].operations[0][0].weight.grad is not None


@pytest.mark.parametrize("size", [(64, 64), (45, 70), (1, 1)])
def test_a_model_on_disk_predicts_the_same_at_any_size(size: tuple[int, int], tmp_path: Path) -> None:
    spec = CompactSpec("mobilenetv2_035", ("a", "b"), ((0, 0, 0), (9, 9, 9)), PUBLISHED["arch2"], channels=16)
    torch.manual_seed(0)
    model = CompactSegmenter(spec).to(memory_format=torch.channels_last).eval()
    image = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8)
    save_model(model, tmp_path, method="compact_search", metrics={})
    loaded = load_model(str(tmp_path))
    assert loaded.kind == "compact"
    with torch.inference_mode():
        assert loaded(image).shape == (1, 2, *size)
        torch.testing.assert_close(loaded(image), model(image), rtol=0, atol=0)


def test_an_encoder_without_the_four_strides_is_refused() -> None:
    spec = CompactSpec("test_vit", ("a", "b"), ((0, 0, 0), (9, 9, 9)), PUBLISHED["arch0"])
    with pytest.raises(ValueError, match="test_vit"):
        CompactSegmenter(spec)


@pytest.mark.parametrize("crop", [64, 96, 208])
def test_taps_that_no_crop_reaches_are_dropped_and_no_others(crop: int) -> None:
    """Those that are dropped change nothing on crops, get no gradient, and are all that get none."""
    torch.manual_seed(0)
    genotype = Genotype.parse("[[6, [0, 1, 8, 5], [0, 1, 7, 3], [1, 0, 1, 6]], [[1, 2], [3, 4]]]")
    decoder = CompactDecoder(genotype, [3, 3, 3, 3], 2, channels=4, repeats=1).double().eval()
    side = crop + -crop % 32
    maps = [torch.randn(1, 3, side >> e, side >> e, dtype=torch.float64) for e in range(2, 6)]
    before, weights = decoder(maps), [p.clone() for p in decoder.blocks.parameters() if p.ndim == 4]
    decoder.drop_unreached(crop)
    torch.testing.assert_close(decoder(maps), before)
    assert genotype.levels() == (1, 2, 3, 1)
    hard = [torch.rand_like(m) for m in maps]
    decoder.train()
    torch.autograd.backward(decoder(hard).square().sum())
    kept = [p for p in decoder.blocks.parameters() if p.ndim == 4]
    assert any((new != old).any() for new, old in zip(kept, weights, strict=True))  # something was out of reach
    for new in kept:
        per_tap = new.detach().abs().amax((0, 1)), new.grad.abs().amax((0, 1))  # type: ignore[union-attr]
        assert torch.equal(per_tap[0] > 0, per_tap[1] > 0)
