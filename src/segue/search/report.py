"""What a search puts into the report of its run."""

import json
import math
from collections.abc import Mapping, Sequence

from segue.data.images import Whole
from segue.evaluation import measure
from segue.models.compact import CompactSpec, Genotype
from segue.run import BASELINE, Run, write_atomically
from segue.search.candidates import RELIABLE
from segue.search.data import Compression
from segue.search.latency import Cost, Table, Target, of_model
from segue.search.runtime import runtime
from segue.search.trials import Trial
from segue.sections import Block, write_headline, write_section
from segue.weights import load_model

SHOWN = 10
TOLD = 8  # candidates between two lines of progress


def tell(run: Run, trials: Sequence[Trial], best: Trial, reliability: float) -> None:
    """Section ``20_search``: rewards over candidates, the best ones, what the gate did, what failed."""
    done = [t for t in trials if t.reward1 is not None]
    states = {state: sum(t.state == state for t in trials) for state in ("done", "stopped", "failed")}
    first, second = (sum(getattr(t, name) for t in trials) / 60 for name in ("seconds1", "seconds2"))
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
    best_so_far, running = [], 0.0
    for trial in done:
        running = max(running, trial.reward2 or 0.0)
        best_so_far.append([trial.trial + 1, running])
    blocks.append({
        "lines": {
            "title": "Rewards", "x": "candidate", "y": "reward",
            "series": {
                "after the short training": [[t.trial + 1, t.reward1] for t in done],
                "best after training end to end": best_so_far,
            },
        }
    })  # fmt: skip
    ranked = sorted(done, key=lambda t: (t.reward2 is not None, t.reward2 or t.reward1 or 0.0), reverse=True)
    rows = [
        [str(t.trial), t.genotype, f"{t.reward1:.3f}", "–" if t.reward2 is None else f"{t.reward2:.3f}",
         f"{t.parameters / 1e6:.2f}", f"{t.macs / 1e6:.0f}"]
        for t in ranked[:SHOWN]
    ]  # fmt: skip
    head = ["Candidate", "Genotype", "Short reward", "Reward end to end", "Decoder, M parameters", "MMAC a crop"]
    blocks.append({"table": {"head": head, "rows": rows}})
    failed = [t for t in trials if t.state == "failed"]
    if failed:
        rows = [[str(t.trial), t.genotype, t.error] for t in failed[:SHOWN]]
        blocks.append({"table": {"head": ["Failed candidate", "Genotype", "Error"], "rows": rows}})
    write_section(run, "20_search", f"Search: candidate {best.trial} of {len(trials)}", blocks)


def tell_candidate(trial: Trial, known: Mapping[int, Trial], planned: int, run: Run, cost: Cost) -> None:
    """Log and progress line of a candidate."""
    best = cost.best(known[n] for n in sorted(known) if n <= trial.trial)
    values = {"reward1": trial.reward1, "reward2": trial.reward2, "best": cost.worth(best) if best else None}
    numbers = {name: value for name, value in values.items() if value is not None}
    run.log("search", trial.trial + 1, numbers)
    spent = sum(t.seconds1 + t.seconds2 for t in known.values()) / len(known)
    done = trial.trial + 1
    told = trial.error or f"reward {trial.reward1:.3f}" + (f", then {trial.reward2:.3f}" if trial.reward2 else "")
    left = f"{spent * (planned - done) / 60:.1f} min left at {spent:.1f} s each"
    if done % TOLD == 0 or done == planned or trial.error:
        so_far = f"best so far {cost.worth(best):.3f} of candidate {best.trial}" if best else "none so far"
        run.say(f"search {done}/{planned}: {told}; {so_far}; {left}")


def conclude_compression(run: Run, data: Compression, target: str, threads: int) -> None:
    """Section ``10_compression`` and the headline: teacher, found model and control in accuracy, size and time."""
    goal = Target.parse(target) if target else Target(0.0, 512, 512)
    models = {"teacher": data.teacher.cpu(), "found": load_model(str(run.out))}
    if (run.out / BASELINE / "model" / "model.yaml").is_file():
        models["DeepLabV3+ on the same encoder"] = load_model(str(run.out / BASELINE))
    val = Whole(data.training.val, data.training.decoder)
    rows, numbers = [], {}
    for name, model in models.items():
        miou = measure(model.eval(), val, data.training.classes).confusion.miou() if data.training.val else math.nan
        median, late = of_model(model, goal.height, goal.width, threads)
        parameters = sum(p.numel() for p in model.parameters())
        numbers[name] = {"miou": miou, "milliseconds": median, "late": late, "parameters": parameters}
        shown = "–" if math.isnan(miou) else f"{100 * miou:.1f}"
        rows.append([name, shown, f"{parameters / 1e6:.2f}", f"{median:.0f}", f"{late:.0f}"])
    size = f"{goal.width} x {goal.height}"
    head = ["Model", "Validation mIoU, %", "M parameters", f"ms at {size}, median", "95th percentile"]
    on = "one thread" if threads == 1 else f"{threads} threads"
    note = f"Time of one picture of {size} in {runtime()} on {on} of this CPU, with other work on it as it was."
    blocks: list[Block] = [{"table": {"head": head, "rows": rows}}, {"text": note}]
    found, teacher = numbers["found"], numbers["teacher"]
    table = run.out / "latency.json"
    spec = models["found"].spec
    if target and table.is_file() and isinstance(spec, CompactSpec):
        estimate = Table.read(table).estimate(Genotype.parse(spec.genotype))
        gap = 100 * (estimate / found["milliseconds"] - 1)
        blocks.append({"text": f"The table of parts says {estimate:.0f} ms: {gap:+.0f} % of what was measured."})
    write_section(run, "10_compression", "What was won and lost", blocks)
    write_atomically(run.out / "compression.json", json.dumps({n: _plain(v) for n, v in numbers.items()}).encode())
    told = (
        f"{found['parameters'] / 1e6:.2f} million parameters in place of {teacher['parameters'] / 1e6:.2f}, "
        f"{found['milliseconds']:.0f} ms in place of {teacher['milliseconds']:.0f} at {size}"
    )
    if not math.isnan(found["miou"]):
        told += f"; validation mIoU {100 * found['miou']:.1f} in place of {100 * teacher['miou']:.1f}"
    missed = bool(target) and found["milliseconds"] > goal.milliseconds
    write_headline(
        run, f"{told}{f'. The target of {goal.milliseconds:g} ms is missed' if missed else ''}.", is_warning=missed
    )
    run.say(f"compress: {told}")


def _plain(values: dict[str, float]) -> dict[str, float | None]:
    """NaN as null."""
    return {name: None if math.isnan(value) else value for name, value in values.items()}
