"""What a search puts into the report of its run."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence

from segue.data.images import Whole
from segue.disk import write_atomically
from segue.evaluation import measure
from segue.models.compact import CompactSpec, Genotype
from segue.processes.signals import Preempted, Signals
from segue.records import BASELINE, SEARCH
from segue.runs.folder import Run
from segue.runs.sections import Block, write_headline, write_section
from segue.search.candidates import RELIABLE
from segue.search.data import Compression
from segue.search.finalists import Outcome, best_trials, by_name, read_outcomes
from segue.search.latency import Cost, Table, Target, of_models
from segue.search.picture import picture
from segue.search.runtime import runtime
from segue.search.strategies import NEAR
from segue.search.trials import Trial, computing
from segue.weights import load_model

SHOWN = 10
TOLD = 8  # candidates between two lines of progress


def tell(run: Run, trials: Sequence[Trial], best: Trial, reliability: float, cost: Cost) -> None:
    """Section ``20_search``: rewards over candidates, the best ones, what the gate did, what failed."""
    run.say(f"first of the search: candidate {best.trial}, {best.genotype}, reward {cost.worth(best):.3f}")
    done = [t for t in trials if t.state != "failed"]
    states = {state: sum(t.state == state for t in trials) for state in ("done", "stopped", "failed")}
    first, second = (sum(getattr(t, name) for t in trials) / 60 for name in ("cpu1", "cpu2"))
    summary = (
        f"{len(trials)} candidates in {first + second:.1f} minutes of computing ({first:.1f} on cached maps, "
        f"{second:.1f} end to end): {states['done']} trained end to end, {states['stopped']} stopped by the gate, "
        f"{states['failed']} failed."
    )
    blocks: list[Block] = [{"text": summary}]
    if math.isfinite(reliability):
        told = f"{100 * reliability:.0f} % of the reward's variance is the genotype's (3 genotypes, 3 seeds each)."
        blocks.append(
            {"text": told}
            if reliability >= RELIABLE
            else {"warning": f"{told} Below {100 * RELIABLE:.0f} % it ranks chance."}
        )
    ended = [(t.trial, t.reward2) for t in done if t.reward2 is not None]
    best_so_far = [[number, max(reward for _, reward in ended[: i + 1])] for i, (number, reward) in enumerate(ended)]
    blocks.append({
        "lines": {
            "title": "Rewards", "x": "candidate, from 0", "y": "reward",
            "series": {
                "after the short training": [[t.trial, t.reward1] for t in done],
                "best after training end to end": best_so_far,
            },
        }
    })  # fmt: skip
    rows = [
        [str(t.trial), t.genotype, f"{t.reward1:.3f}", "–" if t.reward2 is None else f"{t.reward2:.3f}",
         f"{cost.worth(t):.3f}", "–" if t.latency is None else f"{t.latency:.0f}", f"{t.parameters / 1e6:.2f}",
         f"{t.macs / 1e6:.0f}"]
        for t in best_trials(done, cost, SHOWN)
    ]  # fmt: skip
    head = ["Candidate", "Genotype", "Short reward", "Reward end to end", "with its time", "ms, estimated"]
    head += ["Decoder, M parameters", "MMAC a crop"]
    blocks.append({"table": {"head": head, "rows": rows}})
    failed = [t for t in trials if t.state == "failed"]
    if failed:
        rows = [[str(t.trial), t.genotype, t.error] for t in failed[:SHOWN]]
        blocks.append({"table": {"head": ["Failed candidate", "Genotype", "Error"], "rows": rows}})
    write_section(run, "20_search", f"Search: of {len(trials)} candidates number {best.trial} is first", blocks)


class Teller:
    """Log and progress lines of a search, each once.

    Args:
        run: of the search.
        cost: what a candidate is worth.
        planned: candidates.
        minutes: of computing that they may take; 0 for no limit.
        at_once: how many are tried side by side.
    """

    def __init__(self, run: Run, cost: Cost, *, planned: int, minutes: float, at_once: int) -> None:
        self._run, self._cost, self._planned, self._minutes, self._at_once = run, cost, planned, minutes, at_once
        run.rewind(SEARCH, planned)
        self._warned = False
        self._logged = {line["step"] for line in run.read_log() if line["stage"] == SEARCH}
        run.say(f"search: candidates are tried on CPUs, one thread each, {at_once} at once")

    def end_at(self, signals: Signals, known: Mapping[int, Trial]) -> None:
        """Ends the search where a signal was seen.

        Raises:
            Preempted: so it is.
        """
        if signals.seen:
            self._run.say(f"stopped by a signal after {len(known)} candidates; the same command goes on from there")
            raise Preempted

    def tell(self, trial: Trial, known: Mapping[int, Trial]) -> None:
        """A candidate, of all that are known."""
        done = trial.trial + 1
        if done in self._logged:
            return
        best = self._cost.best(known[n] for n in sorted(known) if n <= trial.trial)
        if not self._warned and trial.latency is not None and self._cost.charged(1.0, trial.latency) < NEAR:
            self._warned = True
            self._run.say(
                f"warning: none of the genotypes drawn for candidate {trial.trial} comes near the target; the nearest, "
                f"of {trial.latency:.0f} ms by the table, is tried; a higher --target leaves more of a choice"
            )
        values = {"reward1": trial.reward1, "reward2": trial.reward2, "best": self._cost.worth(best) if best else None}
        self._run.log(SEARCH, done, {name: value for name, value in values.items() if value is not None})
        if done % TOLD == 0 or done == self._planned or trial.error:
            then = "" if trial.reward2 is None else f", then {trial.reward2:.3f}"
            told = trial.error or f"reward {trial.reward1:.3f}{then}"
            so_far = f"best so far {self._cost.worth(best):.3f} of candidate {best.trial}" if best else "none so far"
            self._run.say(f"search {done}/{self._planned}: {told}; {so_far}; {self._left(done, known)}")

    def _left(self, done: int, known: Mapping[int, Trial]) -> str:
        """How long the rest takes."""
        each = sum(trial.seconds1 + trial.seconds2 for trial in known.values()) / len(known)
        left, computed = float(self._planned - done), computing(known.values())
        if self._minutes and computed:
            left = min(left, max(0.0, 60 * self._minutes - computed) * len(known) / computed)
        return f"{each * left / self._at_once / 60:.1f} min left at {each:.1f} s each"


def conclude_compression(run: Run, data: Compression, target: str, threads: int) -> None:
    """Section ``10_compression`` and the headline: teacher, found model and controls in numbers."""
    goal = Target.parse(target)
    models = {"teacher": data.teacher.cpu(), "found": load_model(str(run.out))}
    if (run.out / BASELINE / "model" / "model.yaml").is_file():
        models["DeepLabV3+ on the same encoder"] = load_model(str(run.out / BASELINE))
    val = Whole(data.training.val, data.training.decoder)
    numbers: dict[str, dict[str, float]] = {}
    speeds = of_models([model.eval() for model in models.values()], goal.height, goal.width, threads)
    for (name, model), speed in zip(models.items(), speeds, strict=True):
        miou = measure(model, val, data.training.classes).confusion.miou() if data.training.val else math.nan
        parameters = sum(p.numel() for p in model.parameters())
        numbers[name] = {
            "miou": miou, "milliseconds": speed.median, "late": speed.late, "memory": speed.memory,
            "parameters": parameters,
        }  # fmt: skip
    outcomes, chosen = read_outcomes(run.out)
    for name, trainings in by_name(outcomes).items():
        mean, first = statistics.fmean(o.miou for o in trainings), trainings[0]
        numbers[name] = {
            "miou": mean, "milliseconds": first.milliseconds, "late": first.late,
            "memory": math.nan if first.memory is None else first.memory, "parameters": first.parameters,
        }  # fmt: skip
    size = f"{goal.width} x {goal.height}"
    blocks = [*_table(numbers, outcomes, chosen, size, threads), *_pareto(numbers, size)]
    found, spec = numbers["found"], models["found"].spec
    table = run.out / "latency.json"
    if isinstance(spec, CompactSpec):
        genotype = Genotype.parse(spec.genotype)
        if target and table.is_file():
            estimate = Table.read(table).estimate(genotype)
            gap = 100 * (estimate / found["milliseconds"] - 1)
            blocks.append({"text": f"The table of parts says {estimate:.0f} ms: {gap:+.0f} % of what was measured."})
        blocks += [{"text": f"The genotype: {spec.genotype}"}, *picture(genotype)]
    write_section(run, "10_compression", "What was won and lost", blocks)
    write_atomically(run.out / "compression.json", json.dumps({n: _plain(v) for n, v in numbers.items()}).encode())
    _headline(run, numbers, goal, size)


def _table(
    numbers: Mapping[str, Mapping[str, float]], outcomes: Sequence[Outcome], chosen: str, size: str, threads: int
) -> list[Block]:
    """Every model in numbers, and how they came about."""
    trainings, rows = by_name(outcomes), []
    for name, row in numbers.items():
        shown = [f"{100 * o.miou:.1f}" for o in trainings.get(name, [])]
        cells = [f"{100 * row['miou']:.1f}", f"{row['milliseconds']:.0f}", f"{row['late']:.0f}"]
        cells += [f"{row['parameters'] / 1e6:.2f}", f"{row['memory']:.0f}"]
        each = ", ".join(shown) if len(shown) > 1 else ""
        rows.append([name, *("–" if cell == "nan" else cell for cell in cells), each])
    head = ["Model", "Validation mIoU, %", f"ms at {size}, median", "95th percentile", "M parameters", "peak MiB"]
    on = "one thread" if threads == 1 else f"{threads} threads"
    note = f"Time of one picture of {size} in {runtime()} on {on} of this CPU, with other work on it as it was."
    blocks: list[Block] = [{"table": {"head": [*head, "each training"], "rows": rows}}, {"text": note}]
    if outcomes:
        told = (
            f"Found is {chosen}, the best of its trainings. The validation images chose among "
            f"{sum(o.name.startswith('finalist') for o in outcomes)} trainings: its mIoU on them is a little too good."
        )
        blocks.append({"text": told})
    random = [row for name, row in numbers.items() if name.startswith("random")]
    if random:
        mean, best = (100 * f(row["miou"] for row in random) for f in (statistics.fmean, max))
        mine = numbers[chosen if chosen in numbers else "found"]["miou"]
        told = (
            f"{len(random)} random genotypes of about the size of {chosen or 'found'}, each trained once in the same "
            f"way: mean {mean:.1f} %, best {best:.1f} %. With their mean compares that of its own trainings, "
            f"{100 * mine:.1f} %."
        )
        blocks.append({"text": told})
    return blocks


def _pareto(numbers: Mapping[str, Mapping[str, float]], size: str) -> list[Block]:
    """Accuracy against time, from the median to the 95th percentile."""
    groups: dict[str, list[list[float]]] = {}
    for name, row in numbers.items():
        if not math.isnan(row["miou"]):
            group = next((f"{kind}s" for kind in ("finalist", "random") if name.startswith(kind)), name)
            groups.setdefault(group, []).append([row["milliseconds"], 100 * row["miou"], row["late"]])
    if "randoms" in groups:
        drawn = groups.pop("randoms")
        groups["random, of its size"] = drawn
        groups["their mean"] = [[statistics.fmean(values) for values in zip(*drawn, strict=True)]]
    if not groups:
        return []
    x, y = f"ms at {size}, median to 95th percentile", "validation mIoU (%)"
    return [{"points": {"title": "Accuracy against time", "x": x, "y": y, "groups": groups}}]


def _headline(run: Run, numbers: Mapping[str, Mapping[str, float]], goal: Target, size: str) -> None:
    """What the report says first."""
    found, teacher = numbers["found"], numbers["teacher"]
    told = (
        f"{found['parameters'] / 1e6:.2f} million parameters in place of {teacher['parameters'] / 1e6:.2f}, "
        f"{found['milliseconds']:.0f} ms in place of {teacher['milliseconds']:.0f} at {size}"
    )
    if not math.isnan(found["miou"]):
        told += f"; validation mIoU {100 * found['miou']:.1f} in place of {100 * teacher['miou']:.1f}"
    missed = found["milliseconds"] > goal.milliseconds
    write_headline(
        run, f"{told}{f'. The target of {goal.milliseconds:g} ms is missed' if missed else ''}.", is_warning=missed
    )
    run.say(f"compress: {told}")


def _plain(values: Mapping[str, float]) -> dict[str, float | None]:
    """NaN as null."""
    return {name: None if math.isnan(value) else value for name, value in values.items()}
