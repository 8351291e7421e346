"""``segue serve``: a model behind HTTP on this machine, and the page."""

import argparse
import os
import re
import secrets
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from segue.cli.parsing import Command, whole_number
from segue.errors import UsageError

if TYPE_CHECKING:
    from segue.serve.app import Served

TOKEN = "SEGUE_TOKEN"  # noqa: S105  the name of a variable
PLAIN = re.compile(r"[!#-;=?-_a-~]+")  # what browsers leave as it is behind the # of an address
EVERY_ADDRESS = ("0.0.0.0", "::", "")  # noqa: S104  looked for, to be refused


def add_commands(command: Command) -> None:
    """Adds it to the parser."""
    serve = command("serve", serve_command, "a model behind HTTP on this machine, with a page to look and decide")
    serve.add_argument("model", metavar="RUN", help="run or model folder, or hf:owner/name")
    serve.add_argument("--against", default="", metavar="RUN", help="a second model to compare with on the page")
    serve.add_argument("--review", default="", metavar="IMAGES", help="unlabelled images whose pseudo-labels to review")
    serve.add_argument("--ledger", default="", metavar="FILE", help="where the decisions of the review are kept")
    serve.add_argument("--runs", default="", metavar="FOLDER", help="list the runs beneath it, with their curves")
    serve.add_argument("--check", default="", metavar="DATA", help="show what segue check finds in this data set")
    serve.add_argument("--suggested", default="", metavar="FOLDER", help="show what segue suggest --out FOLDER chose")
    serve.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; others than this machine's see it too"
    )
    serve.add_argument(
        "--names",
        default="",
        metavar="NAMES",
        help="how others reach it, as box.lan,box.lan:8080; 0.0.0.0 and a proxy need them",
    )
    serve.add_argument("--port", type=whole_number, default=8765, help="0 takes a free one")
    told = f"of at least 16 characters; that of {TOKEN} if absent, else a new one is made and printed"
    serve.add_argument("--token", default="", help=told)
    serve.add_argument("--max-mb", type=whole_number, default=32, help="largest request")
    serve.add_argument("--max-megapixels", type=whole_number, default=64, help="largest picture")
    serve.add_argument("--timeout", type=float, default=30.0, help="seconds for a request to come and to be answered")
    serve.add_argument("--queue", type=whole_number, default=8, help="requests that may wait; the next gets 429")
    serve.add_argument("--batch", type=whole_number, default=4, help="pictures of one size that go through together")
    serve.add_argument("--device", default="auto")


def open_socket(host: str, port: int) -> socket.socket:
    """A bound socket.

    Raises:
        UsageError: the port is in use, or the address is not this machine's.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        raise UsageError(
            f"--host {host} --port {port}: {error}; name another port, or --port 0 for a free one"
        ) from None
    return bound


def names_of(host: str, names: str, port: int) -> frozenset[str]:
    """What requests may be sent to: this machine's own names and ``host`` at ``port``, and ``names`` as they are.

    A name without a port holds for ``port`` and for none: browsers leave out 80, and a proxy may take 443.
    """
    own = ("127.0.0.1", "localhost", "[::1]", bracketed(host))
    given = [name.strip() for name in names.split(",") if name.strip()]
    bare = (*(own if port == 80 else ()), *given)
    return frozenset((*bare, *(f"{name}:{port}" for name in (*own, *given))))


def bracketed(host: str) -> str:
    """A host as it stands before a port: an address of IPv6 has colons of its own."""
    return f"[{host}]" if ":" in host else host


def address_of(host: str, port: int) -> str:
    """Of the page."""
    return f"http://{bracketed(host)}:{port}/"


def token_of(given: str) -> str:
    """The token of the option, else of the environment, where no list of processes shows it; else a new one.

    Raises:
        UsageError: it is too short, or an address would not take it as it is.
    """
    token, origin = (given, "--token") if given else (os.environ.get(TOKEN, ""), TOKEN)
    if not token:
        return secrets.token_urlsafe(24)
    if len(token) < 16:
        raise UsageError(f"{origin}: at least 16 characters, or none for a new one")
    if not PLAIN.fullmatch(token):
        raise UsageError(
            f'{origin}: the address of the page holds it: no spaces, no letters beyond ASCII, none of "<>`'
        )
    return token


def serve_command(arguments: argparse.Namespace) -> int:
    """``segue serve``."""
    from segue.extras import require
    from segue.processes.surroundings import pick_device
    from segue.processes.tuning import tune

    for name in ("max_mb", "max_megapixels", "timeout", "queue", "batch"):
        if getattr(arguments, name) <= 0:
            raise UsageError(f"--{name.replace('_', '-')} {getattr(arguments, name)}: must be above 0")
    token = token_of(arguments.token)
    if arguments.host in EVERY_ADDRESS and not arguments.names:
        raise UsageError(
            f"--host {arguments.host}: say by which names others reach this machine, as --names box.lan,192.168.1.5; a "
            "request to any other name is refused, for it may be a foreign page's"
        )
    if bool(arguments.review) != bool(arguments.ledger):
        raise UsageError("--review IMAGES and --ledger FILE belong together")
    uvicorn = require("uvicorn", "serve")
    from segue.serve.app import create_app
    from segue.serve.limits import Limits

    device = pick_device(arguments.device)
    tune(device)
    served = open_served(arguments, device)
    if served.suggested is not None and (missing := served.suggested.missing()):
        print(f"segue serve: {missing}", file=sys.stderr)  # noqa: T201
    limits = Limits(
        arguments.max_mb << 20,
        arguments.max_megapixels * 1_000_000,
        arguments.timeout,
        arguments.queue,
        arguments.batch,
    )
    with open_socket(arguments.host, arguments.port) as bound:
        port = bound.getsockname()[1]
        hosts = names_of(arguments.host, arguments.names, port)
        app = create_app(served, token=token, hosts=hosts, limits=limits)
        print(f"serving {arguments.model} on {device}; stop with Ctrl-C", flush=True)  # noqa: T201
        print(f"page:  {address_of(arguments.host, port)}#{token}", flush=True)  # noqa: T201
        print(f"token: {token}", flush=True)  # noqa: T201
        # A configuration of logging would close the handlers of other libraries, and the files below some of them.
        config = uvicorn.Config(
            app, log_level="warning", log_config=None, access_log=False, server_header=False, lifespan="off"
        )
        uvicorn.Server(config).run(sockets=[bound])
    return 0


def open_served(arguments: argparse.Namespace, device: str) -> "Served":
    """What the options name.

    Raises:
        UsageError: a model of deep pictures, a panoptic one with a review, or a folder that is not there.
        DataError: no model, no picture to review, a ledger or a list that holds something else, or no data set.
    """
    from segue.export.delivery import refuse_deep, refuse_unfit
    from segue.prediction.pictures import find_images
    from segue.serve.app import Served
    from segue.serve.checked import Checked
    from segue.serve.review import Review
    from segue.serve.runs import RunList
    from segue.serve.suggested import Suggested
    from segue.weights import load_any

    model = load_any(arguments.model, device=device)
    against = load_any(arguments.against, device=device) if arguments.against else None
    for network, name in ((model, arguments.model), (against, arguments.against)):
        if network is not None:
            refuse_deep(network, name)
    review = None
    if arguments.review:
        ledger = Path(arguments.ledger)
        if not ledger.parent.is_dir() or ledger.is_dir():
            raise UsageError(f"--ledger {ledger}: name a file in a folder that is there")
        review = Review(refuse_unfit(model, arguments.model), find_images([arguments.review]), ledger)
    if arguments.runs and not Path(arguments.runs).is_dir():
        raise UsageError(f"--runs {arguments.runs} is no folder; name the one that your runs lie in")
    runs = RunList(Path(arguments.runs)) if arguments.runs else None
    return Served(
        model,
        arguments.model,
        against,
        arguments.against,
        review,
        runs,
        Checked(arguments.check) if arguments.check else None,
        Suggested.read(Path(arguments.suggested)) if arguments.suggested else None,
    )
