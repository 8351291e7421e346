"""What ``segue check`` finds in a data set, for the page: looked at once, in the background, when somebody asks.

The set is named on the command line; no request names a file.
"""

import contextlib
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from segue.data.check.audit import audit, open_any
from segue.data.check.page import set_view
from segue.data.finding import printable
from segue.errors import DataError
from segue.serve.page import sendable


class Checked:
    """A data set and what was found in it.

    Args:
        address: its folder, or ``FOLDER:split``.

    Raises:
        DataError: no data set is there.
    """

    def __init__(self, address: str) -> None:
        open_any(address)
        self.address = address
        self.done = self.of = 0
        self.found: dict[str, Any] | None = None
        self.error = ""
        self.starting = threading.Lock()
        self.is_started = False

    def view(self) -> dict[str, Any]:
        """``found`` once it is there; how far it is before; ``error`` where it cannot be had."""
        with self.starting:
            if not self.is_started:
                self.is_started = True
                threading.Thread(target=self._look, name="check", daemon=True).start()
        return {"done": self.done, "of": self.of, "found": self.found, "error": self.error}

    def _look(self) -> None:
        try:
            # In this process: others would have to import the network's library first.
            whole = audit(self.address, layout="auto", mapping="", allow_missing=False, workers=0, track=self._track)
            self.found = sendable(set_view(whole))
        except DataError as error:
            self.error = printable(str(error))
        except Exception:  # whoever waits must hear that it failed; the log says why
            traceback.print_exc(file=sys.stderr)
            self.error = "the check failed; the log of the server says why"

    @contextlib.contextmanager
    def _track(self, what: str, total: int) -> Iterator[Callable[[], None]]:
        self.of = total

        def tick() -> None:
            self.done += 1

        yield tick


def add_check(app: Any, checked: Checked) -> None:
    """``GET /check``."""

    async def view() -> dict[str, Any]:
        return checked.view()

    app.add_api_route("/check", view, methods=["GET"])
