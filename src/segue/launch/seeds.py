"""One training with several seeds: their folders, and what they say together."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from segue.disk import held
from segue.errors import UsageError
from segue.processes.ranks import only_first
from segue.processes.surroundings import Surroundings, refuse_seed


def with_seeds(run: Callable[[Path, Surroundings], Path], out: Path, around: Surroundings, seeds: int) -> Path:
    """Runs a training into ``out``, or with several seeds into folders of it, beside what they say together.

    Args:
        run: gives the folder of a run from where it is to lie and its surroundings.
        out: the run folder, or that of all seeds.
        around: its seed is the first.
        seeds: how many.

    Raises:
        UsageError: fewer than one, a last seed that is too large, or ``out`` holds something else.
    """
    if seeds < 1:
        raise UsageError(f"--seeds {seeds}: give at least 1")
    if seeds == 1:
        return run(out, around)
    refuse_seed(around.seed + seeds - 1)
    own = ("seed_", "seeds.")
    if out.exists() and (not out.is_dir() or any(not path.name.startswith(own) for path in held(out))):
        raise UsageError(f"--out {out} is not empty and holds no runs of several seeds; name another folder")
    folders = [
        run(out / f"seed_{seed}", replace(around, seed=seed)) for seed in range(around.seed, around.seed + seeds)
    ]

    def conclude() -> None:
        from segue.report.seeds import write_seeds

        told = write_seeds(out, folders)
        if not around.quiet:
            print(f"{told}\nreport: {out / 'seeds.html'}", file=sys.stderr)  # noqa: T201

    only_first(conclude)
    return out
