"""How long a compact model takes on this machine: measured, and estimated from a table of its parts.

Operations with few multiply-accumulates can be the slowest (dilated depthwise convolutions), so candidates are ranked
by time. The table is measured once for a search; estimates from it are the same for every resume.
"""

import json
import math
import re
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from segue.disk import write_atomically
from segue.errors import DataError, UsageError
from segue.models.compact import MAPS, OPERATIONS, SKIP, ZERO, Genotype, conv_bn_relu, operation
from segue.records import expecting
from segue.search.runtime import enlarging_runner, maps_runners, model_runner, on_cores, part_runner, runtime
from segue.search.trials import LEDGER, Trial

STRIDES = (4, 8, 16, 32)
LEAST = 0.5  # share of its reward that its time leaves a candidate that does not miss the target by far


@dataclass(frozen=True)
class Target:
    """What a model may take.

    Args:
        milliseconds: median time of one picture.
        height: of the picture, in pixels.
        width: of the picture, in pixels.
    """

    milliseconds: float
    height: int
    width: int

    @classmethod
    def parse(cls, text: str) -> "Target":
        """``25ms@512x512``: milliseconds, width and height; without any, no limit and a size to measure at.

        Raises:
            UsageError: it is no such thing.
        """
        if not text:
            return cls(math.inf, 512, 512)
        found = re.fullmatch(r"(\d+(?:\.\d+)?)ms@(\d+)x(\d+)", text)
        if not found or not float(found[1]) or min(int(found[2]), int(found[3])) < 32:
            raise UsageError(f"--target {text!r}: write milliseconds at a size of at least 32, as 25ms@512x512")
        return cls(float(found[1]), int(found[3]), int(found[2]))


def measured(
    work: Callable[[], object],
    *,
    runs: int = 7,
    seconds: float = 2.0,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Milliseconds of each of some runs by ``clock``, two to warm up left out; fewer where a run is long."""
    return measured_in_turn([work], runs=runs, seconds=seconds, clock=clock)[0]


def measured_in_turn(
    works: Sequence[Callable[[], object]],
    *,
    runs: int = 7,
    seconds: float = 2.0,
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[float]]:
    """Of each of several works the same, each run once a round: what else a machine does meets all of them alike.

    Args:
        works: what is run.
        runs: of each, at most.
        seconds: for all of them together, after which no further round begins; there are 3 at least.
        clock: gives seconds.
    """
    for work in works:
        work()
        work()
    found: list[list[float]] = [[] for _ in works]
    started = time.monotonic()
    for done in range(runs):
        if done >= 3 and time.monotonic() - started >= seconds:
            break
        for work, times in zip(works, found, strict=True):
            before = clock()
            work()
            times.append(1000 * (clock() - before))
    return found


class Speed(NamedTuple):
    """What a model takes for one picture.

    Args:
        median: milliseconds.
        late: 95th percentile of them.
        memory: MiB at the peak; NaN where it is not known.
    """

    median: float
    late: float
    memory: float


def of_models(models: Sequence[nn.Module], height: int, width: int, threads: int = 1, *, runs: int = 15) -> list[Speed]:
    """Time and memory of models for one picture each, on so many threads of this CPU: in turn, to be compared."""
    runners = [model_runner(model, height, width, threads) for model in models]
    with on_cores(threads):
        found = measured_in_turn([work for work, _ in runners], runs=runs, seconds=10.0 * len(runners))
    speeds = []
    for (_, memory), times in zip(runners, map(sorted, found), strict=True):
        late = times[min(len(times) - 1, round(0.95 * (len(times) - 1)))]
        speeds.append(Speed(statistics.median(times), late, memory))
    return speeds


@dataclass(frozen=True)
class Table:
    """Milliseconds of the parts of a compact model at one size of picture, each the least of some runs.

    On one thread they are those of computing alone: what else a machine does must not rule out a target that it meets.

    Args:
        encoder: (4,), of normalisation and encoder, up to each of its maps.
        adaptation: (4,), of a 1 x 1 convolution from each of the maps to the decoder's channels.
        operations: (4, 11), of each operation at each stride.
        projection: (4,), of a 1 x 1 convolution and a sum: behind a cell, and for each map that the output is made of.
        enlarging: (4,), of bringing a coarser map to each stride.
        output: (4,), of the classifier at each stride, and of its logits at the picture's size with the class of each
            pixel.
    """

    encoder: tuple[float, ...]
    adaptation: tuple[float, ...]
    operations: tuple[tuple[float, ...], ...]
    projection: tuple[float, ...]
    enlarging: tuple[float, ...]
    output: tuple[float, ...]

    @classmethod
    def made(
        cls,
        path: Path,
        encoder: nn.Module,
        *,
        height: int,
        width: int,
        channels: int,
        repeats: int,
        classes: int,
        threads: int = 1,
    ) -> "Table":
        """The table in ``path``; measured now if it is not there.

        Args:
            path: of the JSON file.
            encoder: pictures uint8 (1, 3, H, W) -> four maps.
            height: of the pictures.
            width: of the pictures.
            channels: C of the decoder.
            repeats: of separable operations.
            classes: K.
            threads: of the CPU.
        """
        if not path.is_file():
            table = _measure(encoder, height, width, channels, repeats, classes, threads)
            write_atomically(path, json.dumps(asdict(table)).encode())
        return cls.read(path)

    @classmethod
    def read(cls, path: Path) -> "Table":
        """The table in ``path``."""
        with expecting(path, "a table of times"):
            columns = json.loads(path.read_text(encoding="utf-8"))
            operations = tuple(map(tuple, columns.pop("operations")))
            return cls(operations=operations, **{name: tuple(column) for name, column in columns.items()})

    def estimate(self, genotype: Genotype) -> float:
        """Milliseconds of a genotype's model."""
        levels = list(range(MAPS))
        total = self.maps({level for pair in genotype.blocks for level in pair if level < MAPS})
        for i, j in genotype.blocks:
            for level in (levels[i], levels[j]):
                chosen = (genotype.first, *(index for layer in genotype.layers for index in layer[2:]))
                total += sum(self.operations[level][index] for index in chosen) + self.projection[level]
            levels.append(min(levels[i], levels[j]))
            total += self.enlarging[levels[-1]] * (levels[i] != levels[j])
        loose = [levels[MAPS + b] for b in genotype.loose()]
        finest = min(loose)
        joined = sum(self.projection[finest] + self.enlarging[finest] * (level != finest) for level in loose)
        return total + joined + self.output[finest]

    def maps(self, taken: Collection[int]) -> float:
        """Milliseconds of the maps that a decoder takes: of the encoder up to the coarsest, and of their adaptation."""
        return self.encoder[max(taken)] + sum(self.adaptation[level] for level in taken)

    def fastest(self, blocks: int) -> float:
        """Milliseconds below which no genotype of so many blocks can come, by the table."""
        encoder = min(self.maps({level}) for level in range(MAPS))
        cheapest = [min(row) for row in self.operations]
        block = min(2 * (7 * cheap + cost) for cheap, cost in zip(cheapest, self.projection, strict=True))
        return encoder + blocks * block + min(map(sum, zip(self.projection, self.output, strict=True)))


@dataclass(frozen=True)
class Cost:
    """What a candidate is worth, its time considered: R min(1, t* / t)^w.

    Args:
        table: gives t; None where there is no target.
        target: t*.
        power: w.
    """

    table: Table | None = None
    target: float = 0.0
    power: float = 1.0

    @classmethod
    def made(
        cls, path: Path, encoder: nn.Module, *, target: str, power: float, blocks: int, channels: int, repeats: int,
        classes: int, threads: int,
    ) -> "Cost":  # fmt: skip
        """With the table in ``path``, measured now unless it was before; arguments as of `Table.made`.

        Raises:
            UsageError: no genotype of so many ``blocks`` can meet the target.
            DataError: candidates were chosen by a table that is gone.
        """
        if not target:
            return cls()
        if not path.is_file() and (path.parent / LEDGER).is_file():
            raise DataError(
                f"{path} is gone, and the candidates in {path.parent / LEDGER} were chosen by it: times measured anew "
                "would choose others; bring it back, or name another folder for --out"
            )
        goal = Target.parse(target)
        table = Table.made(
            path, encoder, height=goal.height, width=goal.width, channels=channels, repeats=repeats, classes=classes,
            threads=threads,
        )  # fmt: skip
        fastest = table.fastest(blocks)
        if fastest > goal.milliseconds:
            raise UsageError(
                f"--target {target}: no model of {blocks} blocks on this encoder comes below {fastest:.1f} ms here, "
                f"and the encoder takes {table.encoder[0]:.1f} up to its finest map; give more time, fewer pixels or "
                "another --encoder"
            )
        return cls(table, goal.milliseconds, power)

    def latency(self, genotype: str) -> float | None:
        """t, in milliseconds."""
        return self.table.estimate(Genotype.parse(genotype)) if self.table else None

    def worth(self, trial: Trial) -> float:
        """R: after training end to end where the gate let it, else after the short one."""
        return self.of(trial, trial.reward2 if trial.reward2 is not None else float(trial.reward1 or 0.0))

    def of(self, trial: Trial, reward: float) -> float:
        """A reward of a candidate, times what its time makes of it."""
        return reward if trial.latency is None else self.charged(reward, trial.latency)

    def charged(self, reward: float, milliseconds: float) -> float:
        """A reward, times what so many milliseconds make of it."""
        return float(reward * min(1.0, self.target / milliseconds) ** self.power) if self.table else reward

    def charge(self, genotype: str) -> float:
        """What its time leaves of the reward of a genotype that was not tried yet: a share."""
        milliseconds = self.latency(genotype)
        return 1.0 if milliseconds is None else self.charged(1.0, milliseconds)

    def rank(self, trial: Trial) -> tuple[bool, float]:
        """By this candidates are put in order: first those trained end to end, by what they are worth.

        One that its time leaves less than `LEAST` of its reward is not among those. It is compared with the stopped
        ones, and by the short training, the only one that all of them had.
        """
        is_first = trial.state == "done" and self.of(trial, 1.0) >= LEAST
        return is_first, self.worth(trial) if is_first else self.of(trial, float(trial.reward1 or 0.0))

    def best(self, trials: Iterable[Trial]) -> Trial | None:
        """The first by `rank` of those that did not fail; None if all failed."""
        return max((t for t in trials if t.state != "failed"), key=self.rank, default=None)


@torch.no_grad()
def _measure(
    encoder: nn.Module, height: int, width: int, channels: int, repeats: int, classes: int, threads: int
) -> Table:
    """A table; arguments as of `Table.made`."""
    is_fine = time.get_clock_info("thread_time").resolution < 1e-6
    clock = time.thread_time if threads == 1 and is_fine else time.perf_counter

    def least(part: nn.Module, x: Tensor, *, adds: bool = False) -> float:
        part = part.to(memory_format=torch.channels_last).eval()
        return min(measured(part_runner(part, x, threads, adds=adds), seconds=0.5, clock=clock))

    def least_enlarged(x: Tensor, size: tuple[int, int], *, picks: bool = False) -> float:
        return min(measured(enlarging_runner(x, size, threads, picks=picks), seconds=0.5, clock=clock))

    size = (height + -height % 32, width + -width % 32)
    pictures = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8)
    encoder = deepcopy(encoder).to(memory_format=torch.channels_last).eval()
    to_maps = maps_runners(encoder, pictures, threads)
    operations, projection, enlarging, output = [], [], [], []
    head, join = nn.Conv2d(channels, classes, 3, padding=1), conv_bn_relu(channels, channels)
    with on_cores(threads):
        encoded = tuple(min(measured(run, runs=15, clock=clock)) for run in to_maps)
        adaptation = tuple(least(conv_bn_relu(found.shape[1], channels), found) for found in encoder(pictures))
        for stride in STRIDES:
            here = (size[0] // stride, size[1] // stride)
            x = torch.rand(1, channels, *here).to(memory_format=torch.channels_last)
            operations.append(tuple(
                0.0 if index in (SKIP, ZERO) else least(operation(index, channels, repeats), x)
                for index in range(len(OPERATIONS))
            ))  # fmt: skip
            projection.append(least(join, x, adds=True))
            coarser = torch.rand(1, channels, -(-here[0] // 2), -(-here[1] // 2))
            enlarging.append(least_enlarged(coarser.to(memory_format=torch.channels_last), here))
            output.append(least(head, x) + least_enlarged(torch.rand(1, classes, *here), size, picks=True))
    if runtime() == "torch":  # which leaves nothing out
        encoded, adaptation = (encoded[-1] + sum(adaptation),) * MAPS, (0.0,) * MAPS
    return Table(encoded, adaptation, tuple(operations), tuple(projection), tuple(enlarging), tuple(output))
