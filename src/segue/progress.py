"""Progress bars: drawn on a terminal, a plain line now and then elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

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


class StageBar:
    """Progress of one training stage: loss, images per second and ETA.

    Args:
        console: where it is shown.
        stage: its name.
        steps: its optimiser steps.
        done: how many of them were taken before.
    """

    def __init__(self, console: Console, stage: str, steps: int, done: int) -> None:
        self.console, self.stage, self.steps, self.first = console, stage, steps, done
        self.started = self.said = time.monotonic()
        self.images = 0
        self.progress: Progress | None = None
        self.task = TaskID(0)
        if console.is_terminal and not console.quiet:
            self.progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}  {task.fields[state]}  eta"),
                TimeRemainingColumn(elapsed_when_finished=True),
                console=console,
            )
            self.task = self.progress.add_task(stage, total=steps, completed=done, state="")
            self.progress.start()

    def update(self, step: int, loss: float, images: int) -> None:
        """Shows step ``step``, its loss, and counts its images."""
        self.images += images
        now = time.monotonic()
        if self.progress is None and now - self.said < REFRESH and step != self.steps:
            return
        rate = self.images / max(now - self.started, 1e-9)
        state = f"loss {loss:.4f}  {rate:.1f} images/s"
        if self.progress is not None:
            self.progress.update(self.task, completed=step, state=state)
            return
        left = (now - self.started) / max(step - self.first, 1) * (self.steps - step)
        self.said = now
        self.console.print(
            f"{self.stage} {step}/{self.steps}  {state}  eta {int(left) // 60}:{int(left) % 60:02d}", markup=False
        )

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self.progress is not None:
            self.progress.stop()
