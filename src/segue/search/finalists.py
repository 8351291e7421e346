"""Gate B: which genotypes are trained in full after a search, beside which controls, and which is the result."""

import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from segue.batches import mix
from segue.disk import write_atomically
from segue.models.compact import LR_ASPP, CompactDecoder, CompactSegmenter, Genotype
from segue.processes.ranks import only_first
from segue.records import expecting
from segue.runs.folder import Run
from segue.search.cache import Cache
from segue.search.candidates import Recipe, macs
from segue.search.latency import Cost, Speed
from segue.search.strategies import strategy
from segue.search.trials import Trial

CHOSEN, FILE = "chosen.json", "finalists.json"
DRAWS = 40  # random genotypes of which those of the found one's size are taken


@dataclass(frozen=True)
class Entry:
    """One full training.

    Args:
        name: ``finalist 1``, ``random 2`` or ``LR-ASPP``.
        genotype: in its text form.
        attempt: counts trainings of the same genotype with other seeds, from 0.
    """

    name: str
    genotype: str
    attempt: int = 0

    @property
    def folder(self) -> str:
        """Of its training, below the run folder."""
        return f"finalists/{self.name.replace(' ', '_').lower()}_{self.attempt}"

    def seed(self, seed: int) -> int:
        """Of its training, in a run of this seed."""
        return mix(seed, "finalist", self.attempt) if self.attempt else seed


@dataclass(frozen=True)
class Outcome:
    """What a full training came to.

    Args:
        name: see `Entry`.
        genotype: see `Entry`.
        attempt: see `Entry`.
        miou: on the validation images.
        milliseconds: measured median of one picture.
        late: 95th percentile.
        memory: MiB at the peak; None where it is not known.
        parameters: of encoder and decoder.
    """

    name: str
    genotype: str
    attempt: int
    miou: float
    milliseconds: float
    late: float
    memory: float | None
    parameters: int

    @classmethod
    def of(cls, entry: Entry, miou: float, speed: Speed, parameters: int) -> "Outcome":
        """The outcome of an entry."""
        memory = None if math.isnan(speed.memory) else speed.memory
        return cls(entry.name, entry.genotype, entry.attempt, miou, speed.median, speed.late, memory, parameters)

    def write(self, folder: Path) -> None:
        """Keeps it, so that a resumed run decides by the same numbers."""
        write_atomically(folder / "outcome.json", json.dumps(asdict(self)).encode())

    @classmethod
    def read(cls, folder: Path) -> "Outcome | None":
        """What was kept."""
        path = folder / "outcome.json"
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def best_trials(trials: Iterable[Trial], cost: Cost, count: int) -> list[Trial]:
    """The best one of each of the best genotypes, in the order of `Cost.rank`."""
    ranked = sorted((trial for trial in trials if trial.state != "failed"), key=cost.rank, reverse=True)
    best: dict[str, Trial] = {}
    for trial in ranked:
        best.setdefault(trial.genotype, trial)
    return list(best.values())[:count]


@dataclass(frozen=True)
class Found:
    """What a search gave.

    Args:
        genotypes: in their text form, the best first.
        cost: what a picture costs.
        alike: gives random genotypes of the size of one.
    """

    genotypes: list[str]
    cost: Cost = field(default_factory=Cost)
    alike: Callable[[str], list[str]] = lambda _: []


def chosen_once(out: Path, choose: Callable[[], Sequence[str]]) -> list[str]:
    """The genotypes that are trained in full, as they were chosen before the first of these trainings.

    A candidate may have been tried once more since, and be better than they are: its weights are not in the folders.
    """
    path = out / CHOSEN

    def write() -> None:
        if not path.is_file():
            write_atomically(path, json.dumps(list(choose())).encode())

    only_first(write)
    with expecting(path, "the finalists of a search: remove it, and the folder finalists beside it"):
        return [str(Genotype.parse(text)) for text in json.loads(path.read_text(encoding="utf-8"))]


def finalists(genotypes: Sequence[str], seeds: int) -> list[Entry]:
    """Their full trainings."""
    texts = [str(Genotype.parse(text)) for text in genotypes]
    return [Entry(f"finalist {n}", text, k) for n, text in enumerate(texts, 1) for k in range(seeds)]


def controls(genotypes: Sequence[str], *, lr_aspp: bool) -> list[Entry]:
    """The full trainings of random genotypes and, if asked for, of LR-ASPP."""
    found = [Entry(f"random {n}", text) for n, text in enumerate(genotypes, 1)]
    return [*found, Entry("LR-ASPP", LR_ASPP)] if lr_aspp else found


def of_its_size(genotype: str, *, count: int, known: Cache, recipe: Recipe) -> list[str]:
    """Random genotypes whose decoders multiply about as much as that of ``genotype``."""
    if not count:
        return []
    channels = [feature.shape[1] for feature in known.train.features]

    def size(text: str) -> int:
        decoder = CompactDecoder(Genotype.parse(text), channels, known.classes, channels=recipe.channels, repeats=1)
        return macs(decoder, known)

    blocks = len(Genotype.parse(genotype).blocks)
    draws = strategy("random", blocks, mix(recipe.seed, "controls"))
    drawn = {str(draws.ask().genotype) for _ in range(max(DRAWS, 4 * count))} - {genotype}
    aim = size(genotype)
    return sorted(drawn, key=lambda text: (abs(size(text) - aim), text))[:count]


def by_name(outcomes: Iterable[Outcome]) -> dict[str, list[Outcome]]:
    """Outcomes by name, in their order."""
    found: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        found.setdefault(outcome.name, []).append(outcome)
    return found


def winner(outcomes: Sequence[Outcome], cost: Cost) -> Outcome:
    """Of the finalist that is worth most, by the mean over its trainings and its measured time, the best training."""
    finalists = by_name(o for o in outcomes if o.name.startswith("finalist"))

    def worth(found: list[Outcome]) -> float:
        return cost.charged(statistics.fmean(o.miou for o in found), found[0].milliseconds)

    best: list[Outcome] = max(finalists.values(), key=worth)
    return max(best, key=lambda outcome: outcome.miou)


def parameters_of(network: CompactSegmenter) -> int:
    """How many numbers it has learnt."""
    return sum(parameter.numel() for parameter in network.parameters())


def contest(
    entries: Sequence[Entry],
    run: Run,
    cost: Cost,
    *,
    against: Callable[[str], Sequence[Entry]],
    train: Callable[[Entry, Run], CompactSegmenter],
    accuracy: Callable[[CompactSegmenter], float],
    speeds: Callable[[Sequence[CompactSegmenter]], Sequence[Speed]],
) -> CompactSegmenter:
    """Every entry trained, each in a folder of its own; the best finalist, whose log becomes the run's.

    Args:
        entries: the finalists.
        run: of all.
        cost: what slower ones lose.
        against: gives the controls of the best finalist's genotype, which are trained when that is known.
        train: trains one in a run folder.
        accuracy: mIoU on the validation images.
        speeds: measures time and memory of several, to be compared.
    """
    outcomes: list[Outcome] = []

    def attend(group: Sequence[Entry]) -> list[CompactSegmenter]:
        """All of a group, timed beside each other when the last is trained."""
        parts = [run.child(entry.folder) for entry in group]
        networks, scores = list[CompactSegmenter](), list[float]()

        def score(entry: Entry, part: Run, network: CompactSegmenter) -> None:
            known = Outcome.read(part.out)
            scores.append(known.miou if known else accuracy(network))
            run.say(f"{entry.name}, training {entry.attempt + 1}: validation mIoU {100 * scores[-1]:.1f} %")

        for entry, part in zip(group, parts, strict=True):
            part.seed = entry.seed(run.seed)
            network = train(entry, part).eval()
            only_first(partial(score, entry, part, network))
            networks.append(network.cpu())

        def settle() -> None:
            if not all(Outcome.read(part.out) for part in parts):
                distinct = {entry.genotype: network for entry, network in zip(group, networks, strict=True)}
                known = dict(zip(distinct, speeds(list(distinct.values())), strict=True))
                for entry, part, network, miou in zip(group, parts, networks, scores, strict=True):
                    Outcome.of(entry, miou, known[entry.genotype], parameters_of(network)).write(part.out)

        only_first(settle)  # the others read what it wrote: all must decide alike
        found = [outcome for part in parts if (outcome := Outcome.read(part.out))]
        for name, trainings in by_name(found).items():
            run.say(f"{name}: {trainings[0].milliseconds:.0f} ms")
        outcomes.extend(found)
        return networks

    networks = attend(entries)
    chosen = winner(outcomes, cost)
    place = outcomes.index(chosen)
    attend(against(chosen.genotype))
    write_outcomes(run.out, outcomes, chosen)
    take_log(run, run.child(entries[place].folder))
    return networks[place]


def write_outcomes(out: Path, outcomes: Sequence[Outcome], chosen: Outcome) -> None:
    """All of them, for the report."""
    content = {"chosen": chosen.name, "attempt": chosen.attempt, "outcomes": [asdict(outcome) for outcome in outcomes]}
    write_atomically(out / FILE, json.dumps(content, indent=1).encode())


def read_outcomes(out: Path) -> tuple[list[Outcome], str]:
    """The outcomes of a run and the name of the chosen one; none where one model alone was trained."""
    if not (out / FILE).is_file():
        return [], ""
    content = json.loads((out / FILE).read_text(encoding="utf-8"))
    return [Outcome(**outcome) for outcome in content["outcomes"]], content["chosen"]


def take_log(run: Run, other: Run) -> None:
    """The training of ``other`` as the run's own, once."""
    lines = other.read_log()
    for stage in dict.fromkeys(line["stage"] for line in lines):
        run.rewind(stage, 0)
    for line in lines:
        run.log(line["stage"], line["step"], {k: v for k, v in line.items() if k not in ("stage", "step")})
