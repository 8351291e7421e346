"""Trying one candidate: a short training of its decoder on cached maps, the gate, and training end to end."""

import json
import math
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.flop_counter import FlopCounterMode

from segue.batches import mix
from segue.disk import write_atomically
from segue.metrics import Confusion
from segue.models.compact import AuxiliaryHeads, CompactDecoder, Genotype, enlarged
from segue.records import read_json
from segue.search.cache import Cache, Part
from segue.search.gate import Rule, decide
from segue.search.objective import Distill, Objective, Reward, distilled, reward_of, segmentation_loss
from segue.search.runtime import alike
from segue.search.strategies import strategy
from segue.search.trials import Trial

RELIABLE = 0.5  # share of the reward's variance below which a search ranks chance


@dataclass(frozen=True)
class Recipe:
    """How candidates are trained, the same for all of a search.

    Args:
        channels: C of the decoder.
        aux_weight: of the auxiliary heads' loss.
        objective: ``dice+ce``, ``dice`` or ``ce``.
        distill: ``logits``, ``kl``, ``bounded`` or ``none``.
        distill_weight: coff.
        decoder_steps: of the short training.
        decoder_batch: crops in a step of it.
        decoder_lr: of Adam.
        end_steps: of the training end to end.
        end_batch: crops in a step of it.
        end_lr: of SGD, for the encoder.
        background: id of the class that Dice and reward leave out; -1 for none.
        gate: the rule of gate A.
        planned: candidates of the search.
        seed: of the run.
    """

    channels: int
    aux_weight: float
    objective: Objective
    distill: Distill
    distill_weight: float
    decoder_steps: int
    decoder_batch: int
    decoder_lr: float
    end_steps: int
    end_batch: int
    end_lr: float
    background: int
    gate: Rule
    planned: int
    seed: int


@dataclass(frozen=True)
class Job:
    """A candidate to try: everything a process needs, and nothing large.

    Args:
        cache: the cache's folder.
        recipe: of its training.
        trial: its number.
        genotype: in its text form.
        before: charged rewards of short trainings, known when it was asked for.
        log_probability: of the policy that proposed it.
        attempt: counts trainings of the same genotype with other seeds.
        charge: what its time leaves of its reward, in (0, 1]; 1 without a target.
    """

    cache: Path
    recipe: Recipe
    trial: int
    genotype: str
    before: tuple[float, ...] = ()
    log_probability: float | None = None
    attempt: int = 0
    charge: float = 1.0


def opened(folder: Path) -> Cache:
    """The cache, opened once a process for as long as it is the same."""
    described = (folder / "cache.json").stat()
    return _opened(folder, described.st_ino, described.st_mtime_ns)


@lru_cache(maxsize=1)
def _opened(folder: Path, *_: int) -> Cache:
    return Cache.open(folder)


def try_candidate(job: Job) -> Trial:
    """The candidate with its rewards, the gate's verdict, its size; or with the error that it failed by."""
    known = opened(job.cache)
    found = Trial(
        job.trial, job.genotype, "failed", job.log_probability, policy_version=len(job.before),
        host=platform.node(), started=time.time(),
    )  # fmt: skip
    with alike(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix(job.recipe.seed, "candidate", job.trial, job.attempt))
        started = Stopwatch()
        try:
            genotype = Genotype.parse(job.genotype)
            found = replace(found, tokens=genotype.tokens())
            channels = [feature.shape[1] for feature in known.train.features]
            decoder = CompactDecoder(genotype, channels, known.classes, channels=job.recipe.channels, repeats=1)
            decoder.to(memory_format=torch.channels_last)
            found = replace(found, parameters=sum(p.numel() for p in decoder.parameters()), macs=macs(decoder, known))
            started = Stopwatch()
            first = train_decoder(decoder, known, job.recipe)
            found = replace(
                found, reward1=first.value, parts1=first.parts, seconds1=started.seconds(), cpu1=started.cpu()
            )
            verdict = decide(
                job.recipe.gate, job.charge * first.value, job.before,
                trial=job.trial, planned=job.recipe.planned, seed=job.recipe.seed,
            )  # fmt: skip
            found = replace(
                found, state="stopped", mu=verdict.mu, s=verdict.s, temperature=verdict.temperature, u=verdict.u,
                verdict="accepted" if verdict.accepted else "stopped",
            )  # fmt: skip
            if verdict.accepted:
                started = Stopwatch()
                second = train_end_to_end(decoder, known, job.recipe)
                found = replace(
                    found, state="done", reward2=second.value, parts2=second.parts, seconds2=started.seconds(),
                    cpu2=started.cpu(),
                )  # fmt: skip
        except (RuntimeError, ValueError, MemoryError, FloatingPointError) as error:
            first_line = str(error).splitlines()[0] if str(error) else ""
            kind = type(error).__name__
            spent = ("seconds1", "cpu1") if found.reward1 is None else ("seconds2", "cpu2")  # of what it failed in
            taken = dict(zip(spent, (started.seconds(), started.cpu()), strict=True))
            found = replace(found, state="failed", error=f"{kind}: {first_line}", error_type=kind, **taken)  # type: ignore[arg-type]
    return replace(found, finished=time.time())


class Stopwatch:
    """Seconds since it was made, on the wall and of this process's computing."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.monotonic(), time.process_time()

    def seconds(self) -> float:
        """On the wall."""
        return time.monotonic() - self._wall

    def cpu(self) -> float:
        """Of computing."""
        return time.process_time() - self._cpu


def macs(decoder: nn.Module, known: Cache) -> int:
    """Multiply-accumulates of the decoder's convolutions for a training crop; torch counts two operations for each."""
    decoder.eval()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        decoder(known.train.maps([0]))
    decoder.train()
    return int(counter.get_total_flops()) // 2


def draws(part: Part, batch: int, steps: int) -> Iterator[list[int]]:
    """Indices of each step's crops: one shuffle after the other, from torch's generator.

    As many as there are, if those are fewer than ``batch``; but never one alone, which batch normalisation cannot take.
    """
    batch = max(2, min(batch, len(part)))
    left: list[int] = []
    for _ in range(steps):
        while len(left) < batch:
            left += torch.randperm(len(part)).tolist()
        yield sorted(left[:batch])
        left = left[batch:]


def train_decoder(decoder: CompactDecoder, known: Cache, recipe: Recipe) -> Reward:
    """The short training: the decoder alone, on cached maps; it is left with averaged weights (Polyak)."""
    decoder.drop_unreached(known.train.images.shape[-1])
    auxiliary = AuxiliaryHeads(decoder).to(memory_format=torch.channels_last)
    both = nn.ModuleList([decoder, auxiliary]) if recipe.aux_weight else nn.ModuleList([decoder])
    optimizer = torch.optim.Adam(both.parameters(), recipe.decoder_lr, weight_decay=1e-5, fused=True)
    averaged = _averaged(decoder, 0.9)
    for chosen in draws(known.train, recipe.decoder_batch, recipe.decoder_steps):
        labels = torch.from_numpy(known.train.labels[chosen]).long()
        teacher = torch.from_numpy(known.train.logits[chosen]).float()
        blocks = decoder.block_outputs(known.train.maps(chosen))
        logits = enlarged(decoder.classify(blocks), labels.shape[-2:])
        loss = distilled(
            logits, teacher, labels, torch.from_numpy(known.train.inside[chosen]), mode=recipe.distill,
            weight=recipe.distill_weight, objective=recipe.objective, background=recipe.background,
        )  # fmt: skip
        if recipe.aux_weight:
            for extra in auxiliary(blocks):
                loss = loss + recipe.aux_weight * segmentation_loss(
                    enlarged(extra, labels.shape[-2:]), labels, recipe.objective, recipe.background
                )
        _step(loss, both, [optimizer])
        averaged.update_parameters(decoder)
    decoder.load_state_dict(averaged.module.state_dict())
    return validated(lambda chosen: decoder(known.val.maps(chosen)), decoder, known, recipe)


def train_end_to_end(decoder: CompactDecoder, known: Cache, recipe: Recipe) -> Reward:
    """Encoder and decoder together, on the cached crops; the encoder keeps its statistics."""
    encoder, normalise = known.new_encoder()
    both = nn.ModuleList([encoder, decoder])
    decoder.train()
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.SGD(encoder.parameters(), recipe.end_lr, momentum=0.9, weight_decay=1e-5, fused=True),
        torch.optim.Adam(decoder.parameters(), recipe.decoder_lr, weight_decay=1e-5, fused=True),
    ]
    averaged = _averaged(both, end_decay(recipe.end_steps))
    for chosen in draws(known.train, recipe.end_batch, recipe.end_steps):
        labels = torch.from_numpy(known.train.labels[chosen]).long()
        maps = encoder(normalise(torch.from_numpy(known.train.images[chosen])))
        logits = enlarged(decoder(maps), labels.shape[-2:])
        _step(segmentation_loss(logits, labels, recipe.objective, recipe.background), both, optimizers)
        averaged.update_parameters(both)
    both.load_state_dict(averaged.module.state_dict())

    def said(chosen: Sequence[int]) -> Tensor:
        logits: Tensor = decoder(encoder(normalise(torch.from_numpy(known.val.images[chosen]))))
        return logits

    return validated(said, both, known, recipe)


def end_decay(steps: int) -> float:
    """Decay of the average over an end-to-end training of so few steps: the source's 0.99, which looks 100 steps back,
    but at most a quarter of the training: 40 steps at 0.99 would leave two thirds of the first."""
    return min(0.99, max(0.0, 1 - 4 / max(1, steps)))


def _averaged(module: nn.Module, decay: float) -> AveragedModel:
    """A moving average of weights and statistics."""
    return AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)  # type: ignore[no-untyped-call]


def _step(loss: Tensor, modules: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """One step of each optimiser, with the gradient's norm held at 3.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    if not math.isfinite(float(loss.detach())):
        raise FloatingPointError("the loss is not finite")
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_(modules.parameters(), 3.0)
    for optimizer in optimizers:
        optimizer.step()


@torch.inference_mode()
def validated(
    logits_of: Callable[[Sequence[int]], Tensor], module: nn.Module, known: Cache, recipe: Recipe, batch: int = 16
) -> Reward:
    """The reward on the validation crops, the last incomplete batch included."""
    module.eval()
    confusion = Confusion(known.classes)
    for start in range(0, len(known.val), batch):
        chosen = list(range(start, min(start + batch, len(known.val))))
        labels = known.val.labels[chosen]
        predicted = enlarged(logits_of(chosen), labels.shape[-2:]).argmax(1).numpy().astype(np.uint8)
        for truth, prediction in zip(labels, predicted, strict=True):
            confusion.update(truth, prediction)
    return reward_of(confusion, recipe.background)


def reliability(values: Sequence[Sequence[float]]) -> float:
    """Share of the rewards' variance that is between genotypes: (genotypes, seeds) -> [0, 1]; 0 if nothing varies."""
    array = np.asarray(values, dtype=np.float64)
    within = float(array.var(1, ddof=1).mean())
    between = max(float(array.mean(1).var(ddof=1)) - within / array.shape[1], 0.0)
    return between / (between + within) if between + within > 0 else 0.0


def measured_once(out: Path, known: Cache, recipe: Recipe, blocks: int, say: Callable[[str], None]) -> float:
    """`measured_reliability`, which a run measures once and keeps in its folder."""
    path = out / "reliability.json"
    if not path.is_file():
        share = measured_reliability(known, recipe, blocks, say)
        write_atomically(path, json.dumps({"genotype": share}).encode())
    return float(read_json(path, "the reliability of a search")["genotype"])


def measured_reliability(known: Cache, recipe: Recipe, blocks: int, say: Callable[[str], None]) -> float:
    """Share of the short reward's variance that is the genotype's: 3 random genotypes x 3 seeds; NaN if one fails."""
    recipe = replace(recipe, gate="never")  # of the short trainings alone
    draws = strategy("random", blocks, mix(recipe.seed, "reliability"))
    genotypes = [str(draws.ask().genotype) for _ in range(3)]
    rewards = [
        [try_candidate(Job(known.folder, recipe, -1 - i, text, attempt=k)).reward1 for k in range(1, 4)]
        for i, text in enumerate(genotypes)
    ]
    values = [[reward for reward in row if reward is not None] for row in rewards]
    failed = sum(3 - len(row) for row in values)
    if failed:
        say(
            f"warning: {failed} of 9 trainings failed, so it is not known how much of the reward is the genotype's; "
            "the candidates' errors will say why"
        )
        return math.nan
    found = reliability(values)
    told = f"reward: {100 * found:.0f} % of its variance is the genotype's (3 genotypes x 3 seeds)"
    if found < RELIABLE:
        told = (
            f"warning: {told}; below {100 * RELIABLE:.0f} % the search ranks chance: raise --decoder_steps, "
            "or give more images"
        )
    say(told)
    return found
