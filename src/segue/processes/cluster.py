"""A Ray cluster that work is spread over, for commands that take ``--ray [ADDRESS]``."""

import os
import signal
import socket
import threading
from typing import Any
from urllib.parse import urlsplit

from segue.errors import UsageError
from segue.extras import require

ANYWHERE = "auto"  # the cluster of this machine or of RAY_ADDRESS; where there is none, one is started here
PATIENCE = 10.0  # seconds in which an address must take a connection
JOINING = 90.0  # seconds in which a cluster must be joined


def connect(address: str = ANYWHERE) -> Any:
    """The module ``ray``, connected; a second time it changes nothing.

    Args:
        address: ``host:port``, ``ray://host:port`` or `ANYWHERE`.

    Raises:
        UsageError: Ray is not installed, or nothing that is a cluster answers at the address in time.
    """
    ray = require("ray", "ray")
    if ray.is_initialized():
        return ray
    if address != ANYWHERE:
        _refuse_silent(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    os.environ.setdefault("RAY_task_oom_retries", "2")  # else a task that does not fit is tried for ever
    if address == ANYWHERE:
        before = signal.getsignal(signal.SIGTERM)
        try:
            _init(ray, include_dashboard=False)
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, before)  # Ray's own ends the process without a word
        return ray
    failures: list[UsageError] = []

    def join() -> None:
        try:
            _init(ray, address=address)
        except UsageError as error:
            failures.append(error)

    # In a thread: what takes connections and is no cluster keeps `ray.init` for minutes. Not so above: what Ray starts
    # here dies with the thread that started it.
    thread = threading.Thread(target=join, daemon=True)
    thread.start()
    thread.join(JOINING)
    if failures:
        raise failures[0]
    if thread.is_alive():
        raise UsageError(f"--ray {address}: something answers there, but no Ray cluster; start one: ray start --head")
    return ray


def _init(ray: Any, address: str = ANYWHERE, **options: Any) -> None:
    """Joins or starts a cluster.

    Raises:
        UsageError: it cannot be done.
    """
    given = None if address == ANYWHERE else address
    try:
        ray.init(address=given, log_to_driver=False, logging_level="ERROR", **options)
    except Exception as error:  # whatever it is, the person who named the address must be told
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"--ray {address}: no Ray cluster can be joined ({why}); start one: ray start --head"
        ) from None


def _refuse_silent(address: str) -> None:
    """Refuses an address that takes no connection.

    Raises:
        UsageError: so it is, or it is no address.
    """
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port:
        raise UsageError(f"--ray {address}: write host:port, as 10.0.0.5:6379, or ray://10.0.0.5:10001")
    try:
        socket.create_connection((host, port), timeout=PATIENCE).close()
    except OSError as error:
        raise UsageError(
            f"--ray {address}: nothing answers there ({error.strerror or error}); start a cluster with: "
            f"ray start --head --port {port}"
        ) from None
