"""A progress bar for work that is no training: shown on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

REFRESH = 10.0  # seconds between two lines where the output is no terminal


@contextmanager
def track(what: str, total: int, *, quiet: bool = False) -> Iterator[Callable[[], None]]:
    """A function to call after each of ``total`` pieces of work."""
    console = Console(stderr=True, quiet=quiet)
    if console.is_terminal and not quiet:
        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("eta"), TimeRemainingColumn())
        with Progress(*columns, console=console) as progress:
            task = progress.add_task(what, total=total)
            yield lambda: progress.advance(task)
        return
    done, said = 0, time.monotonic()

    def tick() -> None:
        nonlocal done, said
        done += 1
        if time.monotonic() - said > REFRESH:
            said = time.monotonic()
            console.print(f"{what} {done}/{total}", highlight=False)

    yield tick
