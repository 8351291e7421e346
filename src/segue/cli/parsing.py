"""What the commands share: a parser whose errors are one line with a hint, and options that several commands take."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from segue.disk import held
from segue.errors import UsageError

FAILED_EXIT = 1  # training did not converge, or the disk is full
USAGE_EXIT = 2
GATE_EXIT = 3  # the run is finished, and what it gave is not for release
PARITY_EXIT = 4  # an exported file is not the model that was evaluated
STOPPED_EXIT = 130  # by Ctrl-C, as a shell has it


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are one line with a hint, and whose exit status for them is 2."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}")


def whole_number(text: str) -> int:
    """An argument that counts something."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None


class _ListFields(argparse.Action):
    """``--fields``: asked for alone, it needs nothing of what a command requires."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: object) -> None:
        namespace.fields = True
        for action in parser._actions:
            action.required = False


def add_fields(command: Parser) -> None:
    """Options of commands whose further options are the fields of a method."""
    told = "list the fields of the method and stop"
    command.add_argument("--fields", action=_ListFields, nargs=0, default=False, help=told)
    told = "take fields from this file, as RUN/config.yaml of a run by the same method; options beside it win"
    command.add_argument("--config", default="", metavar="FILE", help=told)


Command = Callable[[str, Callable[[argparse.Namespace], int], str], Parser]
"""Adds a command: (name, what it runs, what it does in words) gives its parser."""


def add_surroundings(command: Parser, *, divisible: bool = False) -> None:
    """Options of every training command that are no field of a method; ``divisible`` where processes may share it."""
    command.add_argument("--seed", type=whole_number, default=0, help="of everything random")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda")
    command.add_argument("--precision", default="auto", help="auto, fp32, bf16")
    command.add_argument(
        "--workers", type=whole_number, default=-1, help="processes that load data; -1 decides by device"
    )
    if divisible:
        told = "divide weights, gradients and optimiser state over the processes of torchrun"
        command.add_argument("--shard", action="store_true", help=told)
    told = "write the log to these as well: tensorboard, wandb, mlflow"
    command.add_argument("--log-to", default="", metavar="NAMES", help=told)
    command.add_argument("--json", action="store_true", help="print the result as JSON")


def add_seeds(command: Parser) -> None:
    """The option of commands that train an arm beside a plain one."""
    told = "train with so many seeds, from --seed on, and say what they say together"
    command.add_argument("--seeds", type=whole_number, default=1, metavar="N", help=told)


def refuse_idle(arguments: argparse.Namespace, *options: str, without: str) -> None:
    """Refuses options that do nothing ``without`` another one, which is absent.

    Raises:
        UsageError: one of them is given.
    """
    for option in options:
        if getattr(arguments, option) != arguments.parser.get_default(option):
            name = option.replace("_", "-")
            raise UsageError(f"--{name} does nothing without {without}; add that, or leave --{name} out")


def empty_folder(name: str) -> Path:
    """The folder that ``--out`` names.

    Raises:
        UsageError: it holds something.
    """
    out = Path(name)
    if out.exists() and (not out.is_dir() or held(out)):
        raise UsageError(f"--out {out} is not an empty folder; name another")
    return out
