"""A genotype that is given, in place of a search: what is said of a search does nothing then."""

from collections.abc import Mapping, Sequence
from typing import Any

from segue.errors import UsageError
from segue.models.compact import Genotype

TIMED = ("target", "threads")  # the found model is timed by them, searched or not
OPTIONS = {"minutes": "--minutes or --budget"}  # of fields that have other options than their own


def refuse_given(genotype: str, names: Sequence[str], config: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Refuses a text that is no genotype, and fields of a search beside one.

    Args:
        genotype: in its text form.
        names: of a search's fields.
        config: values of all fields, by name.
        defaults: of the same fields.

    Raises:
        UsageError: the first of them.
    """
    try:
        Genotype.sound(genotype)
    except ValueError as error:
        raise UsageError(f"--genotype {error}") from None
    for name in names:
        if name not in TIMED and config[name] != defaults[name]:
            option = OPTIONS.get(name, f"--{name.replace('_', '-')}")
            raise UsageError(f"{option}: with --genotype nothing is searched; leave out {option} or --genotype")
