"""What the numbers of a config may be: refused by name before any data is opened.

A method's file may hold ``BOUNDS``, by the names of its fields, and ``refuse(config)`` for what involves several of
them.
"""

import math
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

from segue.config import flat
from segue.errors import UsageError


class Bound(NamedTuple):
    """What a value has to be.

    Args:
        holds: whether a value is sound; NaN and infinity never are.
        wanted: the same in words, after "give".
    """

    holds: Callable[[Any], bool]
    wanted: str


AT_LEAST_0 = Bound(lambda value: value >= 0, "at least 0")
AT_LEAST_1 = Bound(lambda value: value >= 1, "at least 1")
ABOVE_0 = Bound(lambda value: value > 0, "a number above 0")
SHARE = Bound(lambda value: 0 <= value <= 1, "a share from 0 to 1")
BELOW_1 = Bound(lambda value: 0 <= value < 1, "a share from 0 up to, not with, 1")
BETWEEN_0_AND_1 = Bound(lambda value: 0 < value < 1, "a share between 0 and 1")
POINTS = Bound(lambda value: value >= 0, "the points that may be lost, at least 0")
BATCH = Bound(lambda value: value >= 2, "at least 2; batch normalisation needs them")
EVERYWHERE = {  # of fields that mean the same in every method
    "steps": AT_LEAST_1,
    "crop": Bound(lambda value: value >= 32 and value % 16 == 0, "a multiple of 16, at least 32"),
    "scale": Bound(
        lambda value: len(value) == 2 and 0 < value[0] <= value[1], "a smallest and a largest factor, as [0.5,2]"
    ),
    "batch": BATCH,
    "accumulate": AT_LEAST_1,
    "evaluate_every": AT_LEAST_0,
    "output_stride": Bound(lambda value: value in (8, 16), "8 or 16"),
    "decoder_channels": AT_LEAST_1,
    "lr": AT_LEAST_0,
    "encoder_lr": AT_LEAST_0,
    "weight_decay": AT_LEAST_0,
    "clip": Bound(lambda value: value >= 0, "at least 0; 0 leaves the gradient as it is"),
    "points": AT_LEAST_1,
    "distill": AT_LEAST_0,
    "max_forget": POINTS,
}


def refuse_impossible(module: ModuleType, config: Any) -> None:
    """Refuses what the method of ``module`` cannot be trained with, and evaluations of nothing.

    Raises:
        UsageError: the first such field.
    """
    refuse_outside(config, {**EVERYWHERE, **getattr(module, "BOUNDS", {})})
    values = flat(config)
    if values.get("val") == "none" and values.get("evaluate_every"):
        raise UsageError(
            f"--evaluate-every {values['evaluate_every']}: with --val none there is nothing to evaluate on; leave one "
            "of them out"
        )
    if hasattr(module, "refuse"):
        module.refuse(config)


def refuse_outside(config: Any, bounds: Mapping[str, Bound]) -> None:
    """Refuses a number that is not finite or breaks its bound.

    Raises:
        UsageError: the first of them.
    """
    for name, value in flat(config).items():
        numbers = [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, float)]
        bound = bounds.get(name)
        if not all(map(math.isfinite, numbers)):
            raise UsageError(f"--{name} {value}: give {bound.wanted if bound else 'a finite number'}")
        if bound and isinstance(value, int | float | list) and not bound.holds(value):
            raise UsageError(f"--{name} {value}: give {bound.wanted}")
