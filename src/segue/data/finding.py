"""One kind of fault of a data set, with every place it was found in; and paths that can be printed."""

import shlex
from dataclasses import dataclass

SHOWN = 3  # example paths in a message


@dataclass(frozen=True)
class Finding:
    """One kind of fault and every place it was found in.

    Args:
        code: E101 and so on where training must not start, W115 and so on where it may; stable.
        what: the fault, with its value.
        where: the files.
        why: what would happen if it went unnoticed.
        fix: the command or the act that mends it.
    """

    code: str
    what: str
    where: tuple[str, ...]
    why: str
    fix: str

    @property
    def stop(self) -> bool:
        """Whether training must not start."""
        return self.code.startswith("E")

    def __str__(self) -> str:
        more = f" and {len(self.where) - SHOWN} more" if len(self.where) > SHOWN else ""
        return printable(f"{self.code} {self.what}: {', '.join(self.where[:SHOWN])}{more}. {self.why} {self.fix}")


def drawn_elsewhere(image: object, size: tuple[int, int], labelled: tuple[object, object]) -> Finding:
    """E108 of outlines whose file says that ``image`` has another (width, height) than it has."""
    width, height = (str(side)[:9] for side in labelled)
    where = printable(f"{image} is {size[0]}x{size[1]}, labelled at {width}x{height}")
    return Finding("E108", "picture is not of the size it was labelled at", (where,),
                   "Labels would lie beside their objects.", "Export both together.")  # fmt: skip


def printable(text: str) -> str:
    """``text`` on one line and in characters that every terminal and file takes: names on disk need not be UTF-8."""
    sound = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in sound)


def argument(path: object) -> str:
    """A path as a shell takes it, for a command that is shown."""
    return shlex.quote(str(path))


def option(name: str, value: object) -> str:
    """An option with its value as a shell takes it, for a command that is shown."""
    return f"--{name}{'=' if str(value).startswith('-') else ' '}{argument(value)}"


def reading(layout: str, mapping: str, *, allow_missing: bool = False, skip_bad: bool = False) -> str:
    """The options that say how a set is read, as a shell takes them, each behind a space; none if all are usual."""
    given = {"layout": layout if layout != "auto" else "", "map": mapping}
    options = "".join(f" {option(name, value)}" for name, value in given.items() if value)
    return options + " --allow-missing" * allow_missing + " --skip-bad" * skip_bad


def fixing(root: object, options: str) -> str:
    """The command that writes a mended copy of the set at ``root``, read with ``options``: see `reading`."""
    return f"segue check {argument(root)}{options} --fix OUT"


def proposing(source: object, target: object) -> str:
    """The command that proposes which class of one set is which of the other's."""
    return f"segue check --source {argument(source)} --target {argument(target)} --maps maps.yaml"


def merged(findings: list[Finding]) -> list[Finding]:
    """Findings that differ in their places only as one, the stopping ones first, in the order of their codes."""
    places: dict[tuple[str, str, str, str], list[str]] = {}
    for found in findings:
        places.setdefault((found.code, found.what, found.why, found.fix), []).extend(found.where)
    rows = [Finding(code, what, tuple(where), why, fix) for (code, what, why, fix), where in places.items()]
    return sorted(rows, key=lambda finding: (not finding.stop, finding.code))
