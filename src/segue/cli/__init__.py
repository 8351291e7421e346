"""The command line. Parsers are built from plain tables; torch is imported only by a command that needs it."""

import argparse
import contextlib
import errno
import os
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise

from segue import __version__
from segue.cli import data, inspecting, learning, serving, shipping, using
from segue.cli.parsing import FAILED_EXIT, STOPPED_EXIT, USAGE_EXIT, Parser
from segue.config import did_you_mean
from segue.errors import DataError, UsageError
from segue.processes.signals import Preempted, stoppable

__all__ = ["main", "parser"]

RESUMED = ("pretrain", "train", "adapt", "compress", "extend", "demo", "predict")  # the same command goes on


ADVICE = {
    **dict.fromkeys(RESUMED, "free some, and the same command goes on from its last checkpoint; or lower --batch"),
    "predict": "free some, take a smaller --tile, or --device cpu",
}  # for a GPU whose memory is full


def parser() -> Parser:
    """Every command with its options; the fields of a method are added by the commands that train."""
    top = Parser(
        prog="segue", allow_abbrev=False, description="From images and few labels to a trained segmentation model."
    )
    top.add_argument("--version", action="version", version=f"segue {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> Parser:
        added: Parser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.set_defaults(run=run, parser=added)
        return added

    for group in (learning, data, using, shipping, inspecting, serving):
        group.add_commands(command)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    top = parser()
    try:
        commands = next(iter(a.choices for a in top._actions if isinstance(a, argparse._SubParsersAction)))
        if arguments and not arguments[0].startswith("-") and arguments[0] not in (commands or {}):
            raise UsageError(
                f"segue: unknown command {arguments[0]!r}{did_you_mean(arguments[0], list(commands or {}))}"
            )
        known, rest = top.parse_known_args(arguments)
        known.words, known.rest = arguments, rest
        if known.command is None:
            return data.print_help(top)
        if rest and "fields" not in known:  # which only commands have whose further options are a method's
            options = [name for action in known.parser._actions for name in action.option_strings]
            raise UsageError(f"{known.parser.prog}: unknown {rest[0]!r}{did_you_mean(rest[0], options)}")
        refuse_swapped(known.parser.prog, arguments, rest)
        with stoppable() if known.command in RESUMED else contextlib.nullcontext():
            return int(known.run(known))
    except (UsageError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return USAGE_EXIT
    except (FloatingPointError, ChildProcessError, MemoryError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return FAILED_EXIT
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported for its name
            raise
        told = ADVICE.get(known.command, "free some, or take --device cpu")
        print(f"error: the GPU's memory is full ({str(error).splitlines()[0]}): {told}", file=sys.stderr)  # noqa: T201
        return FAILED_EXIT
    except Preempted as stop:
        if stop.told:
            print(stop.told, file=sys.stderr)  # noqa: T201
        raise
    except KeyboardInterrupt:  # of commands that begin anew; see RESUMED
        print("stopped", file=sys.stderr)  # noqa: T201
        return STOPPED_EXIT
    except BrokenPipeError:  # whoever read the output has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  nothing more can be flushed to the old one
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            if error.filename is None:  # of no file that somebody named
                raise
            print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)  # noqa: T201
            return FAILED_EXIT
        print(  # noqa: T201
            f"error: {error}; what was written before is intact: make room, and the same command goes on",
            file=sys.stderr,
        )
        return FAILED_EXIT


def refuse_swapped(prog: str, arguments: Sequence[str], rest: Sequence[str]) -> None:
    """A command without a method's fields takes the first free word for its own argument, also where it is the value
    of such a field that stands before it.

    Args:
        prog: the command.
        arguments: all words that were given.
        rest: those that are a method's, in their order.

    Raises:
        UsageError: the value of an option of the method was taken for an argument, and the argument for its value.
    """
    words = iter(zip(arguments, (*arguments[1:], ""), strict=True))
    for option, value in pairwise(rest):
        behind = next(after for word, after in words if word == option)
        if option.startswith("--") and "=" not in option and not value.startswith("-") and behind != value:
            raise UsageError(f"{prog}: put {option} behind {value!r}, or write {option}={behind}")


if __name__ == "__main__":
    raise SystemExit(main())
