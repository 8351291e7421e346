"""Numbers as text, and pages made of them."""

import math
from functools import cache
from pathlib import Path
from typing import Any

SCORES = {  # names of scores as people read them
    "miou": "mIoU", "accuracy": "pixel accuracy", "mean_accuracy": "mean class accuracy", "ece": "calibration error",
    "iou": "IoU", "pq": "PQ", "sq": "SQ", "rq": "RQ",
}  # fmt: skip


def percent(value: float | None) -> str:
    """A share in [0, 1] in percent; "–" where it is not defined."""
    if value is None or math.isnan(value):
        return "–"
    return "<0.1" if 0 < value < 0.0005 else f"{100 * value:.1f}"


def points(first: float | None, second: float | None) -> str:
    """How much ``first`` is above ``second``, two shares, in percentage points with its sign."""
    if first is None or second is None or math.isnan(first - second):
        return "–"
    text = f"{100 * (first - second):+.1f}"
    return "0.0" if text[1:] == "0.0" else text.replace("-", "−")


def count(value: int) -> str:
    """A count with its thousands apart."""
    return f"{value:,}".replace(",", "\u202f")


def duration(seconds: float) -> str:
    """Seconds as hours, minutes and seconds."""
    hours, rest = divmod(round(seconds), 3600)
    parts = ((hours, "h"), (rest // 60, "min"), (rest % 60 if not hours else 0, "s"))
    return " ".join(f"{number} {unit}" for number, unit in parts if number) or "0 s"


def page(template: Path, **values: Any) -> str:
    """An HTML page from a Jinja template; text is escaped, a name that is not given is an error.

    The functions above are its filters.
    """
    text: str = _compiled(template).render(**values)
    return text


@cache
def _compiled(template: Path) -> Any:
    """The template, which takes longer to compile than to fill."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": percent, "points": points, "count": count, "duration": duration}
    return environment.from_string(template.read_text(encoding="utf-8"))
