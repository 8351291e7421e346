"""Options that do nothing beside others: who gives them means something by them, so they are refused by name."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from segue.errors import UsageError
from segue.models.compact import Genotype

TIMED = ("target", "threads")  # the found model is timed by them, searched or not
OPTIONS = {"minutes": "--minutes or --budget"}  # of fields that have other options than their own


def refuse_idle(config: Mapping[str, Any], defaults: Mapping[str, Any], of_search: Sequence[str]) -> None:
    """Refuses fields that do nothing beside the others, and a genotype that is none.

    Args:
        config: values of all fields, by name.
        defaults: of the same fields.
        of_search: names of a search's fields; a genotype that is given takes its place.

    Raises:
        UsageError: the first of them.
    """
    if config["genotype"]:
        _refuse_unsound(config["genotype"])
        names = [name for name in of_search if name not in TIMED]
        _refuse(names, config, defaults, "with --genotype nothing is searched", "--genotype")
    if config["strategy"] != "controller":
        why = f"--strategy {config['strategy']} has no controller to feed"
        _refuse(["feedback"], config, defaults, why, "give --strategy controller")
    if not config["target"]:
        _refuse(["cost"], config, defaults, "without --target no time is charged", "give --target")
    if config["distill"] == "none":
        why = "with --distill none nothing is distilled"
        _refuse(["distill_weight"], config, defaults, why, "--distill none")
    if config["gate"] == "never":
        why = "with --gate never nothing is trained end to end in the search"
        _refuse(["end_steps", "end_batch", "end_lr"], config, defaults, why, "--gate never")
    if config["val"] == "none":
        why = "with --val none nothing tells models apart, and one alone is trained"
        _refuse(["controls", "lr_aspp"], config, defaults, why, "--val none")


def _refuse_unsound(genotype: str) -> None:
    """Refuses a text that is no genotype, or one that can learn nothing.

    Raises:
        UsageError: it is either.
    """
    try:
        Genotype.sound(genotype)
    except ValueError as error:
        raise UsageError(f"--genotype {error}") from None


def _refuse(
    names: Iterable[str], config: Mapping[str, Any], defaults: Mapping[str, Any], why: str, otherwise: str
) -> None:
    """Refuses fields that are not what they are by default.

    Args:
        names: of the fields.
        config: values of all fields, by name.
        defaults: of the same fields.
        why: they do nothing.
        otherwise: what may be done in place of leaving them out: an option that may go, or what to give.

    Raises:
        UsageError: the first of them.
    """
    for name in names:
        if config[name] != defaults[name]:
            option = OPTIONS.get(name, f"--{name.replace('_', '-')}")
            raise UsageError(f"{option}: {why}; leave out {option} or {otherwise}")
