"""Which strategy finds good genotypes at the budgets people have? A table of trained genotypes, made once, and searches
on it, which then cost milliseconds.

    python benchmarks/evidence/search_table.py table data/camvid --table search_table.csv [--teacher RUN]
    python benchmarks/evidence/search_table.py regret --table search_table.csv --out runs/regret

``table`` trains 300 random genotypes with 3 seeds each (the short training of `segue compress`, without auxiliary
heads, at 32 channels and 8 crops a step: about 3.5 CPU seconds each) and appends a row for each; cut anywhere, it goes
on, and what is there is complete genotypes but for the last. ``--processes 2`` takes two cores.

``regret`` lets every strategy search 100 times. A strategy asks for genotypes that the table lacks, so it is given a
landscape: ``forest``, extremely randomised trees fitted to the table (how well they order genotypes that they have not
seen is printed), or ``nearest``, the row of the table with the most decisions in common. What a search observes is the
value with the seeds' noise; its regret is how far the true value of the one that it would pick is below the best that
any search of the same file held for its pick, in standard deviations between random genotypes. Candidates are asked for
in groups of 8, as in a search. Every search is a line of a file in ``--out``; cut anywhere, it goes on.
"""

import argparse
import csv
import json
import multiprocessing
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from shared import difference, refuse_chance
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.model_selection import KFold, cross_val_predict

from segue.batches import mix
from segue.config import Data
from segue.data.images import RandomViews
from segue.data.training import open_training
from segue.data.transforms import ColorJitter
from segue.disk import write_atomically
from segue.models.compact import MAPS, OPERATIONS, Genotype, feature_encoder
from segue.models.pixels import Normalise
from segue.models.segmenter import encoder_statistics
from segue.processes.tuning import tune
from segue.search.cache import Cache, build_cache
from segue.search.candidates import Job, Recipe, reliability, try_candidate
from segue.search.strategies import Evolution, Strategy, strategy
from segue.search.trials import Trial
from segue.starting import encoder_weights
from segue.weights import load_model

BLOCKS, SEEDS, GENERATION = 2, 3, 8
HEADER = ("genotype", "seed", "reward", "miou", "fwiou", "mpa", "seconds", "parameters", "macs", "error")
SETTINGS = ("encoder", "images", "crop", "channels", "steps", "batch", "teacher")  # one table, one of each
SCALE = (0.3, 0.6)  # of CamVid's 480 x 360, so that a crop of 128 shows a good part of the street
STRATEGIES = {
    "controller, token feedback": ("controller", "token"),
    "controller, as published": ("controller", "none"),
    "evolution": ("evolution", "token"),
    "random": ("random", "token"),
}
MARKS = (10, 25, 32, 40, 50, 100, 200)  # candidates at which regret is printed


# -- the table ---------------------------------------------------------------------------------------------------------


def open_cache(arguments: argparse.Namespace) -> Cache:
    """Crops of 200 training images, 30 more for the reward, with maps of an ImageNet encoder."""
    folder = Path(arguments.cache)
    if (folder / "cache.json").is_file():
        return Cache.open(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    data = open_training(Data(data=arguments.data), seed=0)
    pairs = list(data.labelled)
    random.Random("table").shuffle(pairs)
    held, kept = tuple(pairs[:30]), tuple(pairs[30 : 30 + arguments.images])
    refuse_chance(arguments.init, arguments.encoder)
    encoder = feature_encoder(arguments.encoder)
    state, origin = encoder_weights(arguments.init, arguments.encoder)
    print(f"encoder: {arguments.encoder} from {origin}; {len(kept)} images to train on, {len(held)} for the reward")
    if state is not None:
        own = encoder.state_dict()
        encoder.load_state_dict({name: state.get(name, value).float() for name, value in own.items()})
    statistics = encoder_statistics(arguments.encoder, 3)
    teacher = load_model(arguments.teacher) if arguments.teacher else None
    plain = ColorJitter(chance=0.0)
    return build_cache(
        folder,
        {
            "train": (RandomViews(kept, data.decoder, arguments.crop, SCALE, tells_inside=True), 1),
            "val": (RandomViews(held, data.decoder, arguments.crop, (0.4, 0.4), plain, tells_inside=True), 4),
        },
        encoder=encoder.eval(), encoder_name=arguments.encoder, normalise=Normalise(*statistics, 255.0, 32),
        statistics=statistics, teacher=teacher, classes=len(data.classes), seed=0, device=torch.device("cpu"),
    )  # fmt: skip


def recipe(arguments: argparse.Namespace) -> Recipe:
    return Recipe(
        channels=arguments.channels, aux_weight=0.0, objective="dice+ce",
        distill="logits" if arguments.teacher else "none", distill_weight=0.3, decoder_steps=arguments.steps,
        decoder_batch=arguments.batch, decoder_lr=3e-3, end_steps=0, end_batch=16, end_lr=1e-3, background=-1,
        gate="never", planned=0, seed=0,
    )  # fmt: skip


def genotypes(count: int) -> list[str]:
    """Random sound genotypes, no two alike."""
    draws, found = strategy("random", BLOCKS, 0), dict[str, None]()
    while len(found) < count:
        found[str(draws.ask().genotype)] = None
    return list(found)


def make_table(arguments: argparse.Namespace) -> None:
    tune("cpu")
    cache, path = open_cache(arguments), Path(arguments.table)
    settings = json.dumps({name: getattr(arguments, name) for name in SETTINGS})
    record = path.with_suffix(".json")
    if record.exists() and record.read_text(encoding="utf-8") != settings:
        sys.exit(f"{path} was made with {record.read_text(encoding='utf-8')}; name another --table and --cache")
    write_atomically(record, settings.encode())
    done = {(row["genotype"], int(row["seed"])) for row in read_rows(path)} if path.exists() else set()
    jobs = [
        Job(cache.folder, recipe(arguments), index, text, attempt=seed)
        for index, text in enumerate(genotypes(arguments.genotypes))
        for seed in range(SEEDS)
        if (text, seed) not in done
    ]
    print(f"{len(done)} of {len(done) + len(jobs)} trainings are in {path}")
    is_new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if is_new:
            writer.writerow(HEADER)
        for number, (job, trial, seconds) in enumerate(trained(jobs, arguments.processes), 1):
            parts = [f"{trial.parts1[name]:.5f}" if trial.parts1 else "" for name in ("miou", "fwiou", "mpa")]
            reward = "" if trial.reward1 is None else f"{trial.reward1:.5f}"
            numbers = (f"{seconds:.2f}", trial.parameters, trial.macs, trial.error)
            writer.writerow((job.genotype, job.attempt, reward, *parts, *numbers))
            file.flush()
            print(f"{number}/{len(jobs)} {job.genotype} seed {job.attempt}: {reward or trial.error}", flush=True)


def timed(job: Job) -> tuple[Trial, float]:
    """The candidate, and the CPU seconds of all of it: the machine may be shared."""
    tune("cpu")
    started = time.process_time()
    return try_candidate(job), time.process_time() - started


def trained(jobs: Sequence[Job], processes: int) -> Iterator[tuple[Job, Trial, float]]:
    if processes == 1:
        yield from ((job, *timed(job)) for job in jobs)
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(timed, job): job for job in jobs}
        yield from ((futures[future], *future.result()) for future in as_completed(futures))


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows; a last one that a crash cut short is taken out of the file."""
    text = path.read_text(encoding="utf-8")
    if not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1]
        write_atomically(path, text.encode())
    return list(csv.DictReader(text.splitlines()))


# -- landscapes --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Landscape:
    """What a search sees in place of training.

    Args:
        values: true rewards of genotypes.
        seconds: what training them would take.
        noise: standard deviation between seeds.
        spread: standard deviation between random genotypes.
    """

    values: Callable[[Sequence[Genotype]], np.ndarray]
    seconds: Callable[[Sequence[Genotype]], np.ndarray]
    noise: float
    spread: float


def described(genotype: Genotype) -> list[float]:
    """Numbers that say what a genotype costs and can do."""
    strides: list[int] = [4, 8, 16, 32]
    area = 0.0
    for i, j in genotype.blocks:
        area += strides[i] ** -2 + strides[j] ** -2
        strides.append(min(strides[i], strides[j]))
    live = [False] * (2 + 3 * len(genotype.layers))
    for node in genotype.collected():
        live[node] = True
    for k in reversed(range(len(genotype.layers))):
        p, q, _, _ = genotype.layers[k]
        live[2 + 3 * k] |= live[4 + 3 * k]
        live[3 + 3 * k] |= live[4 + 3 * k]
        live[p] |= live[2 + 3 * k]
        live[q] |= live[3 + 3 * k]
    chosen = [(1, genotype.first)]
    chosen += [(2 + 3 * k + n, layer[2 + n]) for k, layer in enumerate(genotype.layers) for n in range(2)]
    counts = [sum(operation == kind and live[node] for node, operation in chosen) for kind in range(len(OPERATIONS))]
    used = [sum(index == kind for block in genotype.blocks for index in block) for kind in range(MAPS + BLOCKS)]
    output = min(strides[MAPS + b] for b in genotype.loose())
    shape = [area, output, len(genotype.loose()), len(genotype.collected()), sum(live), area * sum(counts)]
    return [*genotype.tokens(), *counts, *used, *shape]


def landscape(path: Path, kind: str) -> Landscape:
    rows = [row for row in read_rows(path) if row["reward"]]
    by_genotype: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        by_genotype.setdefault(row["genotype"], []).append(row)
    full = {text: found for text, found in by_genotype.items() if len(found) == SEEDS}
    if len(full) < 2 * GENERATION:
        sys.exit(f"{path} holds {len(full)} genotypes with {SEEDS} seeds each; make the table first")
    known = [Genotype.parse(text) for text in full]
    rewards = np.array([[float(row["reward"]) for row in found] for found in full.values()])
    seconds = np.array([np.mean([float(row["seconds"]) for row in found]) for found in full.values()])
    noise, means = float(np.sqrt(rewards.var(1, ddof=1).mean())), rewards.mean(1)
    print(
        f"{len(known)} genotypes, reward {means.mean():.3f}, best {means.max():.3f}, sd between genotypes "
        f"{means.std(ddof=1):.3f}, between seeds {noise:.3f}, reliability {reliability(rewards.tolist()):.2f}"
    )
    if kind == "nearest":
        tokens = np.array([genotype.tokens() for genotype in known])

        def places(asked: Sequence[Genotype]) -> np.ndarray:
            found = np.array([genotype.tokens() for genotype in asked])
            return (found[:, None] == tokens[None]).sum(2).argmax(1)

        return Landscape(lambda g: means[places(g)], lambda g: seconds[places(g)], noise, float(means.std(ddof=1)))
    inputs = np.array([described(genotype) for genotype in known])
    models = [ExtraTreesRegressor(200, min_samples_leaf=2, random_state=0) for _ in range(2)]
    for name, model, truth in zip(("rewards", "seconds"), models, (means, np.log(seconds)), strict=True):
        unseen = cross_val_predict(model, inputs, truth, cv=KFold(5, shuffle=True, random_state=0))
        share = 1 - float(((unseen - truth) ** 2).sum() / ((truth - truth.mean()) ** 2).sum())
        print(f"forest on unseen genotypes, {name}: Spearman {spearmanr(unseen, truth)[0]:.2f}, R2 {share:.2f}")
        model.fit(inputs, truth)

    def asked(model: ExtraTreesRegressor) -> Callable[[Sequence[Genotype]], np.ndarray]:
        return lambda found: model.predict(np.array([described(genotype) for genotype in found]))

    value, lasting = asked(models[0]), asked(models[1])
    draws = strategy("random", BLOCKS, 1)
    spread = float(value([draws.ask().genotype for _ in range(500)]).std(ddof=1))
    return Landscape(value, lambda found: np.exp(lasting(found)), noise, spread)


# -- searches ----------------------------------------------------------------------------------------------------------


def named(name: str, seed: int) -> Strategy:
    """A strategy of `STRATEGIES`, or ``evolution P:T``: of P that live, T compete to be the parent."""
    if name in STRATEGIES:
        kind, feedback = STRATEGIES[name]
        return strategy(kind, BLOCKS, seed, feedback=feedback)  # type: ignore[arg-type]
    population, tournament = map(int, name.split()[1].split(":"))
    return Evolution(BLOCKS, seed, population=population, tournament=tournament)


def searched(world: Landscape, name: str, seed: int, budget: int) -> dict[str, list[float]]:
    """True value of what a search would pick after each candidate, and the seconds spent by then."""
    found = named(name, mix("table", seed))
    noise = np.random.default_rng([seed, 7])
    picked, spent, best, value, total = [], [], -np.inf, 0.0, 0.0
    while len(picked) < budget:
        proposals = [found.ask() for _ in range(min(GENERATION, budget - len(picked)))]
        asked = [proposal.genotype for proposal in proposals]
        for proposal, truth, lasting in zip(proposals, world.values(asked), world.seconds(asked), strict=True):
            observed = float(truth + noise.normal(0, world.noise))
            found.tell(proposal, observed)
            best, value = max((best, value), (observed, float(truth)))
            total += float(lasting)
            picked.append(value)
            spent.append(total)
    return {"picked": [round(v, 5) for v in picked], "seconds": [round(v, 1) for v in spent]}


def measure_regret(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    world = landscape(Path(arguments.table), arguments.landscape)
    path = out / f"searches_{arguments.landscape}_{arguments.budget}.jsonl"
    names = [name for name, (kind, _) in STRATEGIES.items() if kind in arguments.strategies]
    names += [f"evolution {sizes}" for sizes in arguments.populations]
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    runs = {(r["strategy"], r["seed"]): r for r in map(json.loads, filter(lambda line: line.endswith("}"), lines))}
    with path.open("a", encoding="utf-8") as file:
        for seed in range(arguments.seeds):
            for name in names:
                if (name, seed) not in runs:
                    run = {"strategy": name, "seed": seed, **searched(world, name, seed, arguments.budget)}
                    runs[name, seed] = run
                    file.write(json.dumps(run) + "\n")
                    file.flush()
    reference = max(max(run["picked"]) for run in runs.values())
    curves = {name: np.array([runs[name, s]["picked"] for s in range(arguments.seeds)]) for name in names}
    regret = {name: (reference - curve) / world.spread for name, curve in curves.items()}
    marks = [mark for mark in MARKS if mark <= arguments.budget]
    print(f"regret in sd between random genotypes, mean ± standard error over {arguments.seeds} seeds")
    print("| Strategy | " + " | ".join(f"at {mark}" for mark in marks) + " | hours at the end |")
    print("|---|" + "---|" * (len(marks) + 1))
    for name, found in regret.items():
        cells = [f"{found[:, m - 1].mean():.2f} ± {found[:, m - 1].std(ddof=1) / len(found) ** 0.5:.2f}" for m in marks]
        hours = np.mean([runs[name, s]["seconds"][-1] for s in range(arguments.seeds)]) / 3600
        print(f"| {name} | " + " | ".join(cells) + f" | {hours:.2f} |")
    for name in [name for name in names if name != "random" and "random" in names]:
        gains = 1e4 * (curves[name] - curves["random"])
        parts = [f"{difference(gains[:, mark - 1].tolist())} at {mark}" for mark in (*marks, arguments.budget)]
        print(f"{name}: reward of the pick less that of random, same seeds, 1e-4: {', '.join(parts)}")
    spent = {name: np.array([runs[name, s]["seconds"] for s in range(arguments.seeds)]) for name in names}
    print(f"plot: {plot(regret, spent, out / f'regret_{arguments.landscape}_{arguments.budget}.svg')}")


def plot(regret: dict[str, np.ndarray], spent: dict[str, np.ndarray], path: Path) -> Path:
    """Regret over candidates and over minutes of training: means, with two standard errors."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for name, found in regret.items():
        mean, error = found.mean(0), 2 * found.std(0, ddof=1) / len(found) ** 0.5
        candidates = np.arange(1, found.shape[1] + 1)
        left.plot(candidates, mean, label=name)
        left.fill_between(candidates, mean - error, mean + error, alpha=0.2)
        grid = np.linspace(spent[name][:, 0].max(), spent[name][:, -1].min(), 200)
        at = [f[np.searchsorted(s, grid, side="right") - 1] for f, s in zip(found, spent[name], strict=True)]
        right.plot(grid / 60, np.mean(at, 0), label=name)
    left.set(xlabel="candidates", ylabel="regret, sd between random genotypes")
    right.set(xlabel="minutes of training")
    left.legend(frameon=False)
    figure.savefig(path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    table = commands.add_parser("table")
    table.add_argument("data")
    table.add_argument("--table", required=True)
    table.add_argument("--cache", default="runs/search_table_cache", help="made if missing")
    table.add_argument("--teacher", default="", help="run folder of a model; without one nothing is distilled")
    table.add_argument("--encoder", default="mobilenetv2_100")
    table.add_argument("--init", default="auto")
    table.add_argument("--genotypes", type=int, default=300)
    table.add_argument("--images", type=int, default=200)
    table.add_argument("--crop", type=int, default=128)
    table.add_argument("--channels", type=int, default=32)
    table.add_argument("--steps", type=int, default=60)
    table.add_argument("--batch", type=int, default=8)
    table.add_argument("--processes", type=int, default=1)
    table.set_defaults(run=make_table)
    regret = commands.add_parser("regret")
    regret.add_argument("--table", required=True)
    regret.add_argument("--out", required=True)
    regret.add_argument("--landscape", choices=("forest", "nearest"), default="forest")
    regret.add_argument("--seeds", type=int, default=100)
    regret.add_argument("--budget", type=int, default=200)
    regret.add_argument("--strategies", nargs="+", choices=("controller", "evolution", "random"),
                        default=("controller", "evolution", "random"))  # fmt: skip
    regret.add_argument("--populations", nargs="*", default=[], metavar="P:T", help="evolution of other sizes, too")
    regret.set_defaults(run=measure_regret)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
