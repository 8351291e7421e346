"""SIGTERM and SIGINT: a run saves, ends with status 75, and the same command goes on. Imports nothing heavy."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

PREEMPTED = 75
ECHO = 2.0  # seconds


class Preempted(SystemExit):
    """A signal asked the run to stop; its checkpoint is on disk and the same command goes on from there.

    Args:
        told: what is still to be said of it.
    """

    def __init__(self, told: str = "") -> None:
        super().__init__(PREEMPTED)
        self.told = told


class Signals(contextlib.AbstractContextManager["Signals"]):
    """Notes SIGTERM and SIGINT, so that the loop can save first; a second signal acts at once.

    One of several processes gets a signal more than once, from whoever ends the job and from ``torchrun``: there those
    that come within `ECHO` of the first are the same one.
    """

    def __init__(self) -> None:
        self.seen = False
        self.at = 0.0
        self.old: dict[int, Any] = {}
        self.is_alone = True

    def __enter__(self) -> "Signals":
        from segue.processes.ranks import rank_and_world

        self.is_alone = rank_and_world()[1] == 1
        if threading.current_thread() is threading.main_thread():
            self.old = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _note(self, number: int, _: object) -> None:
        if not self.seen:
            self.seen, self.at = True, time.monotonic()
            if self.is_alone:
                self._restore()
        elif time.monotonic() - self.at > ECHO:
            self._restore()
            os.kill(os.getpid(), number)

    def _restore(self) -> None:
        for number, handler in self.old.items():
            signal.signal(number, handler)

    def __exit__(self, *_: object) -> None:
        self._restore()


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM and SIGINT end the block with `Preempted`, wherever it is; `Signals` in it still lets a step come to its
    end.

    For work of which nothing is lost but what was not written yet.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise Preempted("stopped by a signal; the same command goes on")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
