"""A search's costs beside the work that cannot be spared: `segue compress` on cached maps.

    python benchmarks/speed/search.py [--images 200] [--genotypes 5] [--rounds 3] [--teacher resnet101] [--json FILE]

Random pictures of 128 x 96, 8 classes, MobileNetV2's maps, decoders of 48 channels without auxiliary heads, batches of
32, one thread, CPU time (user and system), medians over random genotypes of ratios taken in the same round:

- ``cached``: a step of the short training over forward and backward of the decoder alone, maps in memory (goal: 1.10);
- ``uncached``: the same with encoder and teacher run in every step, over the cached step (goal: 3 or more);
- ``search``: controller, gate and ledger for one candidate, over a candidate's short training (goal: 0.02);
- ``candidates an hour`` on two cores: five times through the images, and validation (goal: 600 or more).
"""

import argparse
import json
import resource
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from segue.models.compact import CompactDecoder, Genotype, enlarged, feature_encoder
from segue.models.pixels import Normalise
from segue.models.segmenter import Segmenter, SegmenterSpec
from segue.search.cache import LABEL_STRIDE, Cache, build_cache
from segue.search.candidates import Job, Recipe, draws, train_decoder, try_candidate, validated
from segue.search.gate import decide
from segue.search.objective import distilled
from segue.search.strategies import strategy
from segue.search.trials import Trial, Trials

CLASSES, HEIGHT, WIDTH, BATCH = 8, 96, 128, 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RECIPE = Recipe(
    channels=48, aux_weight=0.0, objective="dice+ce", distill="logits", distill_weight=0.3, decoder_steps=1,
    decoder_batch=BATCH, decoder_lr=3e-3, end_steps=0, end_batch=16, end_lr=1e-3, background=-1, gate="never",
    planned=100, seed=0,
)  # fmt: skip


def cpu(work: Callable[[], object]) -> float:
    before = resource.getrusage(resource.RUSAGE_SELF)
    work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


class Pictures(Dataset[Any]):
    """Random pictures with blocks of classes."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        blocks = torch.randint(0, CLASSES, (HEIGHT // 16, WIDTH // 16), dtype=torch.uint8)
        mask = blocks.repeat_interleave(16, 0).repeat_interleave(16, 1)
        noise = torch.randint(0, 60, (3, HEIGHT, WIDTH), dtype=torch.uint8)
        return {"image": noise + 24 * mask, "mask": mask, "inside": torch.ones_like(mask, dtype=torch.bool)}


def prepared(folder: Path, images: int, teacher: nn.Module) -> Cache:
    torch.manual_seed(0)
    encoder = feature_encoder("mobilenetv2_100").eval().to(memory_format=torch.channels_last)
    return build_cache(
        folder, {"train": (Pictures(images), 1), "val": (Pictures(max(8, images // 10)), 1)}, encoder=encoder,
        encoder_name="mobilenetv2_100", normalise=Normalise(MEAN, STD, 255.0, 32), statistics=(MEAN, STD),
        teacher=teacher, classes=CLASSES, seed=0, device=torch.device("cpu"),
    )  # fmt: skip


def new_decoder(text: str, cache: Cache) -> CompactDecoder:
    torch.manual_seed(1)
    channels = [feature.shape[1] for feature in cache.train.features]
    decoder = CompactDecoder(Genotype.parse(text), channels, CLASSES, channels=RECIPE.channels, repeats=1)
    return decoder.to(memory_format=torch.channels_last)


def passes(decoder: CompactDecoder, maps: list[Tensor], steps: int) -> None:
    """Forward and backward, and nothing else."""
    for _ in range(steps):
        torch.autograd.backward(decoder(maps).sum())
        decoder.zero_grad(set_to_none=True)


def uncached(decoder: CompactDecoder, cache: Cache, encoder: nn.Module, teacher: nn.Module, steps: int) -> None:
    """The short training as it would be without a cache."""
    normalise = Normalise(MEAN, STD, 255.0, 32)
    optimizer = torch.optim.Adam(decoder.parameters(), RECIPE.decoder_lr, weight_decay=1e-5)
    for chosen in draws(cache.train, BATCH, steps):
        labels = torch.from_numpy(cache.train.labels[chosen]).long()
        images = torch.from_numpy(cache.train.images[chosen])
        with torch.no_grad():
            maps = encoder(normalise(images))
            told = F.interpolate(teacher(images).float(), scale_factor=1 / LABEL_STRIDE, mode="bilinear")
        logits = enlarged(decoder(maps), labels.shape[-2:])
        inside = torch.from_numpy(cache.train.inside[chosen])
        loss = distilled(logits, told, labels, inside, mode="logits", weight=0.3, objective="dice+ce")
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(decoder.parameters(), 3.0)
        optimizer.step()


def bookkeeping(folder: Path, rounds: int) -> float:
    """CPU seconds of controller, gate and ledger for one candidate, with a full memory of 100."""
    found, ledger = strategy("controller", 2, 0), Trials(folder / "trials.sqlite", "speed")
    rewards: list[float] = []

    def one() -> None:
        proposal = found.ask()
        reward = 0.1 + 0.01 * (len(rewards) % 7)
        decide("metropolis", reward, rewards, trial=len(rewards), planned=200, seed=0)
        ledger.add(Trial(len(rewards), str(proposal.genotype), "done", proposal.log_probability, reward1=reward))
        found.tell(proposal, reward)
        rewards.append(reward)

    for _ in range(100):
        one()
    return statistics.median(cpu(one) for _ in range(10 * rounds))


def compared(decoder: CompactDecoder, cache: Cache, encoder: nn.Module, teacher: nn.Module) -> tuple[float, float]:
    """(cached step over the passes alone, uncached step over cached), once."""
    steps = max(2, len(cache.train) // BATCH)
    recipe, maps = replace(RECIPE, decoder_steps=steps), cache.train.maps(list(range(min(BATCH, len(cache.train)))))
    floor = cpu(lambda: passes(decoder, maps, steps))
    whole = cpu(lambda: train_decoder(decoder, cache, recipe))
    check = cpu(lambda: validated(lambda chosen: decoder(cache.val.maps(chosen)), decoder, cache, recipe))
    decoder.train()
    without = cpu(lambda: uncached(decoder, cache, encoder, teacher, 2)) / 2
    return (whole - check) / floor, without * steps / (whole - check)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--genotypes", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--teacher", default="resnet101", help="timm encoder under DeepLabV3+")
    parser.add_argument("--json", default="")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    spec = SegmenterSpec(arguments.teacher, tuple(map(str, range(CLASSES))), ((0, 0, 0),) * CLASSES)
    teacher = Segmenter(spec).to(memory_format=torch.channels_last).eval()
    random = strategy("random", 2, 0)
    ratios: list[tuple[float, float]] = []
    candidates: list[float] = []
    five = replace(RECIPE, decoder_steps=5 * arguments.images // BATCH)
    with tempfile.TemporaryDirectory() as scratch:
        cache = prepared(Path(scratch) / "cache", arguments.images, teacher)
        encoder = cache.new_encoder()[0]
        for number in range(arguments.genotypes):
            job = Job(cache.folder, five, number, str(random.ask().genotype))
            decoder = new_decoder(job.genotype, cache)
            passes(decoder, cache.train.maps([0, 1]), 1)
            ratios += [compared(decoder, cache, encoder, teacher) for _ in range(arguments.rounds)]
            candidates.append(cpu(partial(try_candidate, job)))
            cached, without = ratios[-1]
            print(f"{job.genotype}: cached {cached:.2f}, uncached {without:.2f}, candidate {candidates[-1]:.2f} s")
        extra = bookkeeping(Path(scratch), arguments.rounds)
    mean = statistics.mean(candidates)
    found = {
        "cached / passes": statistics.median(cached for cached, _ in ratios),
        "uncached / cached": statistics.median(without for _, without in ratios),
        "search / candidate": extra / mean,
        "candidates an hour on two cores": 2 * 3600 / (mean + extra),
    }
    for name, value in found.items():
        print(f"{name}: {value:.3f}" if value < 100 else f"{name}: {value:.0f}")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
