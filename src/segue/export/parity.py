"""Is an exported file the model that was evaluated? Both are run over real pictures, and over noise of odd sizes."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from segue.data.sample import IGNORE, Array
from segue.evaluation import Samples, none_for_nan
from segue.export.graph import Classify
from segue.metrics import Confusion

PROBES = ((1, 1), (16, 16), (37, 53), (64, 200), (129, 65))  # heights and widths of the pictures of noise
REAL = 0.999  # share of the pixels of real pictures that must agree
NOISE = 0.99  # the same of noise, where classes are level more often


@dataclass(frozen=True)
class Limits:
    """What a file may differ by.

    Args:
        agreement: least share of equal pixels over the real pictures.
        noise: the same over the pictures of noise.
        drop: points of mean IoU that may be lost.
    """

    agreement: float = REAL
    noise: float = NOISE
    drop: float = 0.1


@dataclass(frozen=True)
class Parity:
    """What was found.

    Args:
        images: real pictures compared.
        agreement: share of their pixels with the same class in both.
        worst: the picture that agrees least, and its share.
        noise: share of equal pixels over the pictures of noise.
        before: mean IoU of the model over the labelled pictures, in [0, 1]; 1 where there are none: then the model
            itself is the truth.
        after: mean IoU of the file.
        labelled: pictures with a mask that says something.
        faults: which limits it breaks, in words; empty where the gate passes.
    """

    images: int
    agreement: float
    worst: tuple[str, float]
    noise: float
    before: float
    after: float
    labelled: int
    faults: tuple[str, ...] = ()

    def line(self) -> str:
        """In words, for the person who waits."""
        truth = f"mIoU on {self.labelled} labelled" if self.labelled else "mIoU with the model as truth"
        return (
            f"{self.images} images: pixel agreement {100 * self.agreement:.2f} % (least {self.worst[0]}"
            f" {100 * self.worst[1]:.2f} %), odd sizes {100 * self.noise:.2f} %, "
            f"{truth} {100 * self.before:.1f} -> {100 * self.after:.1f}"
        )

    def plain(self) -> dict[str, Any]:
        """Everything as JSON can hold it."""
        return {k: none_for_nan(v) if isinstance(v, float) else v for k, v in asdict(self).items()}


def agreement_on_noise(model: Classify, file: Classify, bands: int) -> float:
    """Share of equal pixels over noise of the sizes `PROBES`, and a batch of two; 0 where a size does not run."""
    generator = np.random.default_rng(0)
    same = total = 0
    for height, width in PROBES:
        noise = generator.integers(0, 256, (2, height, width, bands), np.uint8)
        expected = model(noise)
        found = _or_nothing(file, noise)
        if found.shape != expected.shape:
            return 0.0
        same += int((found == expected).sum())
        total += expected.size
    return same / total


def compare(model: Classify, file: Classify, data: Samples, *, classes: int, bands: int, limits: Limits) -> Parity:
    """Runs both over ``data`` and over noise, and holds the difference against ``limits``."""
    masks, own = ((Confusion(classes), Confusion(classes)) for _ in range(2))  # the truth: masks, or the model
    same = total = labelled = 0
    worst = ("", 2.0)
    for sample in (data[i] for i in range(len(data))):
        image = sample["image"].permute(1, 2, 0).numpy()[None]
        expected, found = model(image)[0], _or_nothing(file, image)[0]
        equal = int((expected == found).sum()) if found.shape == expected.shape else 0
        same, total = same + equal, total + expected.size
        worst = min(worst, (sample["name"], equal / expected.size), key=lambda entry: entry[1])
        truths = [(own, expected)]
        if "mask" in sample and bool((sample["mask"] != IGNORE).any()):
            labelled += 1
            truths.append((masks, np.asarray(sample["mask"])))
        for (before, after), truth in truths if found.shape == expected.shape else ():
            before.update(truth, expected)
            after.update(truth, found)
    before, after = masks if labelled else own
    found_parity = Parity(
        len(data), same / max(total, 1), worst, agreement_on_noise(model, file, bands), before.miou(), after.miou(),
        labelled,
    )  # fmt: skip
    return Parity(**{**asdict(found_parity), "faults": _faults(found_parity, limits)})


def _or_nothing(file: Classify, images: Array) -> Array:
    """What a file says; maps of no size where it does not run."""
    try:
        return file(images)
    except Exception:  # each runtime raises its own
        return np.zeros((len(images), 0, 0), np.uint8)


def _faults(found: Parity, limits: Limits) -> tuple[str, ...]:
    """The limits that are broken."""
    faults = []
    if not found.agreement >= limits.agreement:
        faults.append(f"{100 * found.agreement:.2f} % of the pixels agree, {100 * limits.agreement:g} % must")
    if not found.noise >= limits.noise:
        faults.append(f"{100 * found.noise:.2f} % agree on odd sizes, {100 * limits.noise:g} % must")
    if not 100 * (found.before - found.after) <= limits.drop:
        faults.append(f"mIoU falls by {100 * (found.before - found.after):.1f} points, {limits.drop:g} are allowed")
    return tuple(faults)
