"""Search for a small decoder under a teacher's guidance (Nekrasov, Chen, Shen, Reid, *Fast Neural Architecture Search
of Compact Semantic Segmentation Models via Auxiliary Cells*, CVPR 2019, arXiv:1810.10804).

A genotype g (`segue.models.compact`) describes a decoder over the maps of a mobile encoder. Candidates are proposed and
tried on cached maps, where neither the encoder nor the teacher need be run:

    (1)  g_k  ~  strategy(R_1 ... R_{k-1})                                             `segue.search.strategies`
    (2)  short training of the decoder alone:   min  L(z_s, z_t, y)  +  0.15 sum_b L_seg(aux_b, y)
    (3)  gate A, on R_k:  goes on with probability  1 if z_k >= 0,  else  e^{z_k / T_k}    `segue.search.gate`
    (4)  training end to end:   min  L_seg(z_s, y)
    (5)  R  =  ( mIoU fwIoU mPA )^{1/3} min(1, t* / t)^w                               `segue.search.objective`

with L_seg soft Dice and cross-entropy, L the same with distillation, t the model's time on one thread of this CPU by a
table of its parts (`segue.search.latency`), and t* the target, where there is one. The best genotype is built at full
width and trained in three stages, batch statistics frozen in the third:

    (6)  min  L(z_s, z_t, y)  +  a sum_b L_seg(aux_b, y),     a = 0.2, 0.2, 0.15

Departs from the source: two blocks; steps are counted, not epochs; the gate is Metropolis's on standardised rewards,
since the published one stops nobody at the budgets people have; the default strategy is evolution, as good as the
``controller`` and cheaper; failure is no reward of 0; what is degenerate or misses t* by far is drawn again.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from segue.batches import mix
from segue.bounds import AT_LEAST_0, AT_LEAST_1, BATCH, Bound
from segue.config import Data, Network, Views, flat
from segue.data.fingerprint import fingerprint
from segue.data.images import RandomViews, Whole
from segue.data.transforms import ColorJitter
from segue.engine import Losses, Method, Run, endless, fit, hold_statistics, poly
from segue.errors import DataError, UsageError
from segue.evaluation import semantic
from segue.models.compact import AuxiliaryHeads, CompactDecoder, CompactSegmenter, enlarged
from segue.models.pixels import Normalise
from segue.processes.cluster import connect
from segue.processes.signals import Signals
from segue.search.cache import Cache, build_cache
from segue.search.candidates import Job, Recipe, measured_once
from segue.search.controller import Feedback
from segue.search.data import Compression, divided
from segue.search.finalists import Entry, Found, best_trials, chosen_once, contest, controls, finalists, of_its_size
from segue.search.gate import Rule
from segue.search.given import refuse_idle
from segue.search.latency import Cost, Target, of_models
from segue.search.objective import Distill, Objective, background_of, distilled, segmentation_loss
from segue.search.pool import Workers
from segue.search.report import Teller, tell
from segue.search.strategies import Name, Proposal, strategy
from segue.search.trials import LEDGER, Trial, Trials, is_beyond
from segue.starting import encoder_weights, new_compact_encoder, new_compact_segmenter, start_line, start_statistics

VERB = "compress"
GENERATION = 8  # candidates that are asked for before any of them is told: the same trials with any number of processes
ANYHOW = ("parallel", "ray")  # where and how many at once: the trials are the same, and a run may go on with others
BOUNDS = {
    **dict.fromkeys(("candidates", "blocks", "draws", "search_channels", "decoder_steps"), AT_LEAST_1),
    **dict.fromkeys(("parallel", "threads", "finalists", "finalist_seeds", "channels", "repeats"), AT_LEAST_1),
    **dict.fromkeys(("cost", "minutes", "decoder_lr", "end_steps", "end_lr", "controls"), AT_LEAST_0),
    **dict.fromkeys(("aux_weight", "distill_weight"), AT_LEAST_0),
    **dict.fromkeys(("decoder_batch", "end_batch"), BATCH),
    "images": Bound(lambda value: value >= 2, "at least 2: some to train on, the rest for the reward"),
    "search_crop": Bound(lambda value: value >= 64 and value % 32 == 0, "a multiple of 32, at least 64"),
}
STAGES = ((0.2, 1.0, False), (0.2, 0.3, False), (0.15, 0.1, True))  # aux weight, share of the rate, frozen statistics


@dataclass(frozen=True)
class Search:
    """How genotypes are found.

    Args:
        candidates: how many are tried, K.
        target: largest time of a picture and its width and height, as ``25ms@512x512``; empty for no target.
        cost: w of eq. 5.
        threads: of this CPU that the target is meant for.
        minutes: of CPU time after which no further candidate is asked for; 0 for no limit.
        strategy: ``evolution``, ``controller`` or ``random``.
        feedback: what the controller is fed: its last ``token``, or ``none`` as published.
        blocks: B of the decoder.
        gate: rule of eq. 3: ``metropolis``, ``published``, ``always``, ``never``.
        search_crop: side of the cached crops, in pixels; a multiple of 32.
        images: labelled images that the search looks at, at most; 4,000 in the source.
        draws: crops kept of each of them.
        search_channels: C in the search.
        decoder_steps: of eq. 2.
        decoder_batch: crops a step of eq. 2; 64 in the source, with far more images.
        decoder_lr: of Adam, eqs. 2 and 4.
        end_steps: of eq. 4.
        end_batch: crops a step of eq. 4.
        end_lr: of SGD for the encoder in eq. 4.
        aux_weight: of eq. 2.
        parallel: candidates tried at once, at most 8, each in a process with one thread.
        ray: address of a Ray cluster whose CPUs try the candidates, or ``auto``; then ``parallel`` says nothing.
        reliable: first measure how much of the reward is the genotype's and not chance's, by 3 genotypes x 3 seeds.
    """

    candidates: int = 60
    target: str = ""
    cost: float = 1.0
    threads: int = 1
    minutes: float = 0.0
    strategy: Name = "evolution"
    feedback: Feedback = "token"
    blocks: int = 2
    gate: Rule = "metropolis"
    search_crop: int = 128
    images: int = 4000
    draws: int = 2
    search_channels: int = 48
    decoder_steps: int = 100
    decoder_batch: int = 16
    decoder_lr: float = 3e-3
    end_steps: int = 40
    end_batch: int = 16
    end_lr: float = 1e-3
    aux_weight: float = 0.15
    parallel: int = 1
    ray: str = ""
    reliable: bool = True


@dataclass(frozen=True)
class Config:
    """A small model for a teacher's task.

    Args:
        teacher: run or model folder of the teacher.
        genotype: trains this one, in its text form, in place of a search.
        finalists: best genotypes that are trained in full; the validation images choose among them.
        finalist_seeds: trainings of each; 3 and more tell a difference from chance.
        controls: random genotypes of the found one's size that are trained as well.
        lr_aspp: trains LR-ASPP on the same encoder as well.
        objective: L_seg: ``dice+ce``, ``dice`` or ``ce``.
        distill: ``logits``, ``kl``, ``bounded`` or ``none``.
        distill_weight: coff; 0.3 in the source.
        channels: C of the model; 64 in the source.
        repeats: of separable operations in the model; 2 in the source.
        steps: optimiser steps of the three stages of eq. 6 together.
        lr: peak learning rate of SGD for the decoder, for 16 crops; the encoder takes a tenth.
        weight_decay: of all weights.
        evaluate_every: steps between two evaluations on the validation split; 0 evaluates at the end only.
    """

    data: Data = field(default_factory=Data)
    network: Network = field(default_factory=Network)
    views: Views = field(default_factory=Views)
    search: Search = field(default_factory=Search)
    teacher: str = ""
    genotype: str = ""
    finalists: int = 2
    finalist_seeds: int = 1
    controls: int = 0
    lr_aspp: bool = False
    objective: Objective = "dice+ce"
    distill: Distill = "logits"
    distill_weight: float = 0.3
    channels: int = 64
    repeats: int = 2
    steps: int = 600
    lr: float = 0.3
    weight_decay: float = 1e-4
    evaluate_every: int = 0


def recipe_of(config: Config, classes: tuple[str, ...], seed: int) -> Recipe:
    """How candidates are trained."""
    search = config.search
    return Recipe(
        channels=search.search_channels, aux_weight=search.aux_weight, objective=config.objective,
        distill=config.distill, distill_weight=config.distill_weight, decoder_steps=search.decoder_steps,
        decoder_batch=search.decoder_batch, decoder_lr=search.decoder_lr, end_steps=search.end_steps,
        end_batch=search.end_batch, end_lr=search.end_lr, background=background_of(classes), gate=search.gate,
        planned=search.candidates, seed=seed,
    )  # fmt: skip


def cached(config: Config, run: Run, data: Compression, state: Mapping[str, Tensor] | None) -> Cache:
    """Everything that candidates share: crops of 90 % of the images to train on, larger ones of the rest for R."""
    kept, held, paste = divided(data.training, config.data.copy_paste, run.seed, config.search.images)
    crop, decoder = config.search.search_crop, data.training.decoder
    train = RandomViews(kept, decoder, crop, config.views.scale, paste=paste, tells_inside=True)
    val = RandomViews(held, decoder, 2 * crop, (1.0, 1.0), jitter=ColorJitter(chance=0.0), tells_inside=True)
    torch.manual_seed(mix(run.seed, "encoder"))  # the same whether or not the table of times was measured just now
    encoder = new_compact_encoder(config.network.encoder, state)
    statistics = start_statistics(config.network.init, config.network.encoder, 3)
    return build_cache(
        run.out / "cache",
        {"train": (train, config.search.draws), "val": (val, max(1, config.search.draws // 4))},
        encoder=encoder.to(run.device).eval(), encoder_name=config.network.encoder, statistics=statistics,
        normalise=Normalise(*statistics, 255.0, 32).to(run.device), seed=run.seed,
        teacher=None if config.distill == "none" else data.teacher, classes=len(data.training.classes),
        device=run.device, source=fingerprint(data.files()), quiet=run.console.quiet,
    )  # fmt: skip


def search(config: Config, run: Run, cache: Cache, recipe: Recipe, cost: Cost) -> list[Trial]:
    """Eqs. 1 to 5: every candidate tried, in order. What the ledger holds already is not tried again."""
    same = replace(config.search, parallel=1, ray="")  # wherever and however many at once, the trials are the same
    about = {"seed": run.seed, "strategy": same.strategy, "data": cache.source, "run": run.out.name}
    ledger = Trials(run.out / LEDGER, repr((same, recipe, cache.encoder, cache.source)), about)
    settings, known = config.search, ledger.resumed(GENERATION)
    found = strategy(
        settings.strategy, settings.blocks, mix(run.seed, "strategy"), feedback=settings.feedback, share=cost.charge
    )
    rewards, counted, is_spent = list[float](), list[Trial](), partial(is_beyond, known, settings.minutes)
    at_once = min(GENERATION if settings.ray else settings.parallel, GENERATION)
    teller = Teller(run, cost, planned=settings.candidates, minutes=settings.minutes, at_once=at_once)

    def job(number: int, proposal: Proposal) -> Job:
        text, before = str(proposal.genotype), tuple(rewards)
        return Job(cache.folder, recipe, number, text, before, proposal.log_probability, charge=cost.charge(text))

    with Signals() as signals, Workers(settings.parallel, ray=settings.ray) as workers:
        for start in range(0, settings.candidates, GENERATION):
            proposals = {n: found.ask() for n in range(start, min(start + GENERATION, settings.candidates))}
            jobs = [job(n, p) for n, p in proposals.items() if n not in known and not is_spent(n)]
            for trial in workers.tried(jobs):
                trial = replace(trial, latency=cost.latency(trial.genotype))
                ledger.add(trial)
                known[trial.trial] = trial
                teller.end_at(signals, known)
                if is_spent(next((n for n in proposals if n not in known), 0)):
                    break
            for number, proposal in proposals.items():
                if is_spent(number):
                    break
                trial = known[number]
                if trial.genotype != str(proposal.genotype):
                    raise DataError(f"{ledger.path}: another Segue or table of times chose these; name another --out")
                if trial.reward1 is not None:
                    rewards.append(cost.of(trial, trial.reward1))
                    found.tell(proposal, rewards[-1])
                teller.tell(trial, known)
                counted.append(trial)
            teller.end_at(signals, known)
            if is_spent(len(counted)):
                run.say(f"search: {settings.minutes:g} minutes of computing are spent after {len(counted)} candidates")
                break
    if all(trial.state == "failed" for trial in counted):
        raise DataError(f"every candidate failed; the first by {counted[0].error}")
    return counted


# -- the model ---------------------------------------------------------------------------------------------------------


class Distilled(Method):
    """Eq. 6. A batch holds ``image`` (B, 3, H, W), ``mask`` (B, H, W) and ``inside`` (B, H, W)."""

    def __init__(
        self, network: CompactSegmenter, auxiliary: AuxiliaryHeads, teacher: nn.Module, config: Config,
        *, aux_weight: float, frozen: bool, background: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.network, self.auxiliary = network, auxiliary
        self.teacher = (teacher,)  # in a tuple: no part of what is trained or saved
        self.config, self.aux_weight, self.frozen, self.background = config, aux_weight, frozen, background

    def train(self, mode: bool = True) -> "Distilled":
        """Statistics of batch normalisation stay as they are where they are frozen."""
        super().train(mode)
        if self.frozen:
            hold_statistics(self)
        return self

    def forward(self, batch: dict[str, Any]) -> Losses:
        image, labels = batch["image"], batch["mask"].long()
        with torch.no_grad():
            told = self.teacher[0](image).float() if self.config.distill != "none" else torch.empty(0)
        pixels = self.network.normalise(image)
        decoder = self.network.decoder
        blocks = decoder.block_outputs(self.network.encoder(pixels))

        def full(logits: Tensor) -> Tensor:
            return enlarged(logits, pixels.shape[-2:])[..., : image.shape[-2], : image.shape[-1]]

        config = self.config
        loss = distilled(
            full(decoder.classify(blocks)), told, labels, batch["inside"], mode=config.distill,
            weight=config.distill_weight, objective=config.objective, background=self.background,
        )  # fmt: skip
        extra = [segmentation_loss(full(x), labels, config.objective, self.background) for x in self.auxiliary(blocks)]
        return {"distilled": loss, "auxiliary": self.aux_weight * sum(extra, torch.zeros((), device=pixels.device))}


def train_model(config: Config, run: Run, data: Compression, network: CompactSegmenter) -> CompactSegmenter:
    """Eq. 6: three stages, each with an optimiser of its own."""
    learnt, classes, size = data.training, data.training.classes, config.views
    auxiliary = AuxiliaryHeads(network.decoder)
    if isinstance(network.decoder, CompactDecoder):
        network.decoder.drop_unreached(size.crop)
    nn.ModuleList([network, auxiliary]).to(run.device).to(memory_format=torch.channels_last)
    teacher = data.teacher.to(run.device).eval()
    views = RandomViews(learnt.labelled, learnt.decoder, size.crop, size.scale, paste=learnt.paste, tells_inside=True)
    val = Whole(learnt.val, learnt.decoder)
    ends = [round(config.steps * part / len(STAGES)) for part in range(len(STAGES) + 1)]
    for number, (aux_weight, share, frozen) in enumerate(STAGES):
        stage, steps = f"stage_{number + 1}", ends[number + 1] - ends[number]
        if not steps:
            continue
        torch.manual_seed(mix(run.seed, stage))
        method = Distilled(
            network, auxiliary, teacher, config, aux_weight=aux_weight, frozen=frozen, background=background_of(classes)
        )
        lr = config.lr * share * config.views.batch * config.views.accumulate / 16
        rest = [p for module in (network.decoder, auxiliary) for p in module.parameters()]
        groups = [{"params": list(network.encoder.parameters()), "lr": 0.1 * lr}, {"params": rest, "lr": lr}]
        optimizer = torch.optim.SGD(groups, lr, momentum=0.9, weight_decay=config.weight_decay, fused=True)

        def batches(start: int, stage: str = stage) -> Iterator[dict[str, Any]]:
            return endless(views, config.views.batch, seed=mix(run.seed, stage), start=start, workers=run.workers)

        fit(
            method, batches, run=run, optimizer=optimizer, steps=steps, stage=stage, schedule=poly(steps), clip=3.0,
            accumulate=config.views.accumulate, evaluate_every=config.evaluate_every,
            evaluate=(lambda: semantic(network, val, classes)) if config.evaluate_every else None,
        )  # fmt: skip
    return network


def refuse(config: Config) -> None:
    """Refuses fields that do not go together, and a cluster that does not answer.

    Raises:
        UsageError: the first of them.
        DataError: an encoder that cannot be used.
    """
    Target.parse(config.search.target)
    new_compact_encoder(config.network.encoder, None)
    if config.distill == "kl" and config.distill_weight > 1:
        raise UsageError(f"--distill_weight {config.distill_weight:g}: with kl it is a share, from 0 to 1")
    refuse_idle(flat(config), flat(Config()), [*flat(config.search), "finalists", "controls"])
    if config.search.ray:
        connect(config.search.ray)


def train(config: Config, run: Run, data: Compression) -> CompactSegmenter:
    """The found network, trained."""
    torch.manual_seed(run.seed)
    state, origin = encoder_weights(config.network.init, config.network.encoder)
    run.open()
    run.say(start_line(f"encoder: {config.network.encoder} from {origin}", config.network.init, state))
    count, seeds = config.finalists, config.finalist_seeds
    if not data.training.val and (count, seeds) != (1, 1):
        if not (config.genotype and seeds == 1):
            run.say("no validation images to choose by: one model is trained")
        count = seeds = 1
    found = Found([config.genotype]) if config.genotype else searched(config, run, data, state, count)
    has_others = config.controls > 0 or config.lr_aspp

    def train_one(entry: Entry, part: Run) -> CompactSegmenter:
        torch.manual_seed(mix(part.seed, "model"))
        sizes = {"channels": config.channels, "repeats": config.repeats}
        network = new_compact_segmenter(config.network, state, data.training.listing, entry.genotype, **sizes)
        return train_model(config, part, data, network)

    every = finalists(found.genotypes, seeds)
    if len(every) == 1 and not has_others:
        return train_one(every[0], run)
    val = Whole(data.training.val, data.training.decoder)
    goal = Target.parse(config.search.target)
    return contest(
        every, run, found.cost, train=train_one,
        against=lambda chosen: controls(found.alike(chosen), lr_aspp=config.lr_aspp) if has_others else [],
        accuracy=lambda model: semantic(model, val, data.training.classes)["miou"],
        speeds=lambda models: of_models(models, goal.height, goal.width, config.search.threads),
    )  # fmt: skip


def searched(config: Config, run: Run, data: Compression, state: Mapping[str, Tensor] | None, count: int) -> Found:
    """The ``count`` best genotypes, the best first."""
    settings = config.search
    normalise = Normalise(*start_statistics(config.network.init, config.network.encoder, 3), 255.0, 32)
    encoder = new_compact_encoder(config.network.encoder, state)
    cost = Cost.made(  # before the teacher is asked: a target that nothing can meet costs a minute
        run.out / "latency.json", nn.Sequential(normalise, encoder), target=settings.target,
        power=settings.cost, blocks=settings.blocks, channels=config.channels, repeats=config.repeats,
        classes=len(data.training.classes), threads=settings.threads,
    )  # fmt: skip
    data.teacher.to(run.device).eval()
    recipe, cache = recipe_of(config, data.training.classes, run.seed), cached(config, run, data, state)

    def best() -> list[str]:
        share = measured_once(run.out, cache, recipe, settings.blocks, run.say) if settings.reliable else math.nan
        trials = search(config, run, cache, recipe, cost)
        found = best_trials(trials, cost, count)
        tell(run, trials, found[0], share, cost)
        return [trial.genotype for trial in found]

    alike = partial(of_its_size, count=config.controls, known=cache, recipe=recipe)
    return Found(chosen_once(run.out, best), cost, alike)
