"""What gate A is worth in equal CPU seconds: the trials of a search without it, replayed under each rule.

    python benchmarks/evidence/compress.py data/camvid --out runs/compress --arms always --seconds 1000
    python benchmarks/evidence/gate.py runs/compress/always_*

A strategy is told the reward of the short training, and the gate's draw is of (seed, trial): with every rule the same
genotypes are proposed and have the same rewards. A rule decides who is trained end to end, and by that how many can be
tried. So one search that trains all of them end to end holds what each rule would have found, in any budget below its
own; a + behind the candidates says that a rule had seconds left when those of a search were all replayed.

The pick of a search is the first by `Cost.rank`, as of `segue compress`. What it is worth is its reward after training
end to end, its time considered, which the pick of ``never`` was not chosen by; *best* is the most that any candidate of
the whole search is worth.
"""

import argparse
import json
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any, get_args

from shared import difference

from segue.methods.compact_search import GENERATION
from segue.search.gate import Rule, decide
from segue.search.latency import Cost, Table, Target
from segue.search.trials import Trial, Trials, is_beyond

RULES: tuple[Rule, ...] = get_args(Rule)


@dataclass(frozen=True)
class Search:
    """One that trained every candidate end to end.

    Args:
        trials: its candidates, in their order.
        cost: what their time makes of their rewards.
        planned: candidates that the gate cools over.
        seed: of the run.
    """

    trials: Sequence[Trial]
    cost: Cost
    planned: int
    seed: int

    @classmethod
    def read(cls, run: Path) -> "Search":
        """That of a run folder.

        Raises:
            SystemExit: its gate stopped some.
        """
        identity: Mapping[str, Any] = json.loads((run / "run.json").read_text())["identity"]
        config = identity["config"]
        if config["gate"] != "always":
            raise SystemExit(f"{run}: a search with --gate {config['gate']}; those that it stopped have no reward here")
        path = run / "trials.sqlite"
        with closing(sqlite3.connect(path)) as ledger:
            (own,) = ledger.execute("SELECT identity FROM search").fetchone()
        cost = Cost()
        if config["target"]:
            goal = Target.parse(config["target"]).milliseconds
            cost = Cost(Table.read(run / "latency.json"), goal, config["cost"])
        return cls(tuple(Trials(path, own).all().values()), cost, config["candidates"], identity["seed"])

    def replayed(self, rule: Rule, seconds: float) -> list[Trial]:
        """The candidates that a search with ``rule`` would have tried within ``seconds`` of computing."""
        known: dict[int, Trial] = {}
        rewards: list[float] = []
        for start in range(0, len(self.trials), GENERATION):
            before = tuple(rewards)  # of a generation, nobody knows the others' rewards
            for trial in self.trials[start : start + GENERATION]:
                if is_beyond(known, seconds / 60, trial.trial):
                    return list(known.values())
                known[trial.trial] = self._gated(trial, rule, before)
                rewards += [] if trial.reward1 is None else [self.cost.of(trial, trial.reward1)]
        return list(known.values())

    def is_short(self, found: Sequence[Trial], seconds: float) -> bool:
        """Whether ``found`` are all that there are, and a search would have gone on."""
        known = {trial.trial: trial for trial in found}
        return len(known) == len(self.trials) < self.planned and not is_beyond(known, seconds / 60, len(self.trials))

    def _gated(self, trial: Trial, rule: Rule, before: Sequence[float]) -> Trial:
        """A candidate as it would have come out under ``rule``."""
        if trial.reward1 is None:
            return trial
        reward = self.cost.of(trial, trial.reward1)
        passed = decide(rule, reward, before, trial=trial.trial, planned=self.planned, seed=self.seed).accepted
        return trial if passed else replace(trial, state="stopped", reward2=None, seconds2=0.0, cpu2=0.0)

    def worth(self, trial: Trial | None) -> float:
        """R of a candidate after training end to end, whatever the rule that picked it knew; 0 of none."""
        return 0.0 if trial is None else self.cost.worth(self.trials[trial.trial])


def table(searches: Sequence[Search], budgets: Sequence[int]) -> str:
    """Means over the searches, by rule and budget; differences to ``always`` are paired."""
    lines = [
        "| seconds | gate | candidates | trained end to end | R of the pick | minus always, in 0.001 | R of the best |",
        "|---|---|---|---|---|---|---|",
    ]
    best = mean(max(search.worth(trial) for trial in search.trials if trial.state == "done") for search in searches)
    for seconds in budgets:
        found = {rule: [search.replayed(rule, seconds) for search in searches] for rule in RULES}
        picks = {
            rule: [s.worth(s.cost.best(trials)) for s, trials in zip(searches, found[rule], strict=True)]
            for rule in RULES
        }
        for rule in RULES:
            tried = f"{mean(map(len, found[rule])):.0f}"
            is_short = any(s.is_short(trials, seconds) for s, trials in zip(searches, found[rule], strict=True))
            ended = mean(sum(trial.state == "done" for trial in trials) for trials in found[rule])
            gains = [1000 * (own - other) for own, other in zip(picks[rule], picks["always"], strict=True)]
            lines.append(
                f"| {seconds} | {rule} | {tried}{'+' if is_short else ''} | {ended:.0f} | {mean(picks[rule]):.3f} "
                f"| {difference(gains) if rule != 'always' else ''} | {best:.3f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders of segue compress --gate always")
    parser.add_argument("--seconds", nargs="+", type=int, default=[150, 300, 600, 1000])
    options = parser.parse_args()
    print(table([Search.read(run) for run in options.runs], options.seconds))


if __name__ == "__main__":
    main()
